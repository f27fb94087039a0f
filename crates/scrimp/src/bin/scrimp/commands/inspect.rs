use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use scrimp::run::RoleSize;
use scrimp::train::Role;
use scrimp_files::{FileError, Kind, Ledger, Reader, Status, open};
use serde_json::Value;

use crate::sizes::{self, TensorLine, TotalLine};
use crate::ui::{self, Side, Table, Ui, printable};

/// Show what every tensor of a file takes on the disk, or every model of a run folder.
///
/// Example:
///   scrimp inspect model.safetensors
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Inspect {
    /// Tensors (.safetensors, .pt .pth .th .bin, .npy), packed or not, or the folder of a run
    #[arg(value_name = "FILE|RUN_FOLDER")]
    path: PathBuf,

    /// Print one JSON object per tensor and one with the total
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Inspect {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        if self.path.is_dir() {
            return self.folder(ui);
        }
        let reader = open(&self.path)?;
        if self.json {
            json_lines(ui, &self.path, &reader.ledger())?;
            Ok(ui.json_ignored(&reader)?)
        } else {
            file(ui, &reader)
        }
    }

    /// A run folder: the result, and one line for each model.
    fn folder(self, ui: &Ui) -> anyhow::Result<()> {
        let models = models(&self.path)?;
        let result = result(&self.path)?;
        if models.is_empty() && result.is_none() {
            bail!(
                "{}: not the folder of a run: it holds neither a .safetensors file nor result.json",
                self.path.display()
            );
        }
        if self.json {
            if let Some(result) = result {
                ui.json(&serde_json::json!({"type": "result", "result": result}))?;
            }
            for RoleLine { run, role, size, status } in role_sizes(&self.path, &models)? {
                ui.json(&serde_json::json!({
                    "type": "role", "run": run, "role": role, "size": size, "status": status,
                }))?;
            }
            return models.iter().try_for_each(|(path, ledger)| json_lines(ui, path, ledger));
        }
        if let Some(Value::Object(facts)) = result {
            let mut table = Table::new(&[("result", Side::Left), ("", Side::Left)]);
            for (key, value) in &facts {
                match value {
                    Value::String(text) => table.row([key, text]),
                    Value::Array(_) | Value::Object(_) => {}
                    plain => table.row([key, &plain.to_string()]),
                }
            }
            ui.table(&table)?;
            ui.say("")?;
        }
        let roles = role_sizes(&self.path, &models)?;
        if !roles.is_empty() {
            let mut table = Table::new(&[
                ("run", Side::Left),
                ("tensors", Side::Left),
                ("values", Side::Right),
                ("bits", Side::Right),
                ("bytes", Side::Right),
                ("status", Side::Left),
            ]);
            for line in &roles {
                table.row([
                    line.run.clone(),
                    line.role.to_string(),
                    ui::number(line.size.values as u64),
                    ui::bits(Some(line.size.bits)),
                    ui::number(line.size.bytes as u64),
                    line.status.clone(),
                ]);
            }
            ui.table(&table)?;
            ui.say("x y dy dx: of one step; emulated: counted by the ledger, not stored")?;
            ui.say("")?;
        }
        let mut table = Table::new(&[
            ("model", Side::Left),
            ("tensors", Side::Right),
            ("values", Side::Right),
            ("bits", Side::Right),
            ("bytes", Side::Right),
            ("file bytes", Side::Right),
            ("", Side::Left),
        ]);
        for (path, ledger) in &models {
            let values = sizes::values(ledger);
            table.row([
                path.strip_prefix(&self.path).unwrap_or(path).display().to_string(),
                ui::number(ledger.rows.len() as u64),
                ui::number(values),
                ui::bits(sizes::bits_per_value(ledger.payload_bytes, values)),
                ui::number(ledger.payload_bytes),
                ui::number(ledger.file_bytes),
                ui::ratio(ledger.payload_bytes, ledger.f32_bytes),
            ]);
        }
        let is_packed = |(_, ledger): &&(PathBuf, Ledger)| {
            ledger.rows.iter().any(|row| row.status == Status::Packed)
        };
        if let Some((path, _)) = models.iter().find(is_packed).or(models.first()) {
            ui.table(&table)?;
            ui.say(format_args!("  next: scrimp inspect {}", ui::shell_word(path)))?;
        }
        Ok(())
    }
}

fn file(ui: &Ui, reader: &Reader) -> anyhow::Result<()> {
    ui.say(heading(reader))?;
    let ledger = reader.ledger();
    let mut table = Table::new(&[
        ("tensor", Side::Left),
        ("shape", Side::Left),
        ("scheme", Side::Left),
        ("bits", Side::Right),
        ("bytes on disk", Side::Right),
        ("status", Side::Left),
    ]);
    for row in &ledger.rows {
        table.row([
            row.name.clone(),
            ui::shape(&row.shape),
            row.scheme.clone(),
            ui::bits(row.bits_per_value),
            ui::number(row.bytes),
            sizes::status(&row.status),
        ]);
    }
    if !ledger.rows.is_empty() {
        ui.table(&table)?;
    }
    ui.say(format_args!(
        "{} · file {} with header",
        sizes::total(&ledger),
        ui::number(ledger.file_bytes)
    ))?;
    ui.say_ignored("no tensor", reader)?;
    // A checkpoint stores a shared tensor once, and counts it for each name.
    if reader.kind() == Kind::Pytorch && ledger.payload_bytes > ledger.file_bytes {
        ui.say("some tensors share their bytes in the file")?;
    }
    Ok(())
}

/// `model.safetensors · packed safetensors · 65 tensors`
pub fn heading(reader: &Reader) -> String {
    format!(
        "{} · {} · {}",
        printable(&reader.path().display()),
        reader.kind(),
        ui::count(reader.entries().len(), "tensor")
    )
}

/// One line of JSON for each tensor of `path`, and one with their sums.
pub fn json_lines(ui: &Ui, path: &Path, ledger: &Ledger) -> anyhow::Result<()> {
    let file = path.to_string_lossy();
    for row in &ledger.rows {
        ui.json(&TensorLine::new(&file, row))?;
    }
    Ok(ui.json(&TotalLine::new(&file, ledger))?)
}

/// How deep below a run's folder its models lie: variant and seed.
const MODEL_DEPTH: usize = 2;

/// The models of a folder with their ledgers, by name.
fn models(folder: &Path) -> anyhow::Result<Vec<(PathBuf, Ledger)>> {
    let mut paths = Vec::new();
    find_models(folder, MODEL_DEPTH, &mut paths)?;
    paths.sort();
    let ledger = |path: PathBuf| Ok(open(&path).map(|reader| (path, reader.ledger()))?);
    paths.into_iter().map(ledger).collect()
}

fn find_models(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), FileError> {
    let failed = |source| FileError::io("read", folder, source);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            if depth > 0 {
                find_models(&path, depth - 1, found)?;
            }
        } else if path.extension() == Some(OsStr::new("safetensors")) {
            found.push(path);
        }
    }
    Ok(())
}

/// What the tensors of one role take in a run.
struct RoleLine {
    /// The run's folder.
    run: String,
    role: Role,
    size: RoleSize,
    /// `packed`, `emulated` or `f32`.
    status: String,
}

/// The ledgers by role that runs have left beside their models.
fn role_sizes(folder: &Path, models: &[(PathBuf, Ledger)]) -> anyhow::Result<Vec<RoleLine>> {
    #[derive(serde::Deserialize)]
    struct Line {
        role: Role,
        size: RoleSize,
        status: String,
    }
    #[derive(serde::Deserialize)]
    struct Roles {
        roles: Vec<Line>,
    }
    let runs: BTreeSet<&Path> = models.iter().filter_map(|(path, _)| path.parent()).collect();
    let mut lines = Vec::new();
    for run in runs {
        let path = run.join("ledger.json");
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let Roles { roles } = serde_json::from_str(&text)
            .with_context(|| format!("{}: not the ledger of a run", path.display()))?;
        let run = run.strip_prefix(folder).unwrap_or(run).display().to_string();
        lines.extend(roles.into_iter().map(|Line { role, size, status }| RoleLine {
            run: run.clone(),
            role,
            size,
            status,
        }));
    }
    Ok(lines)
}

/// What the run says about itself, where it does.
fn result(folder: &Path) -> anyhow::Result<Option<Value>> {
    let path = folder.join("result.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io("read", &path, error).into()),
    };
    let value = serde_json::from_str(&text)
        .with_context(|| format!("{}: not a JSON document", path.display()))?;
    Ok(Some(value))
}
