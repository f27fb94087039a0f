use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use scrimp::run::new_folder;
use scrimp::sweep::{self, Bits, Results, Row, Sweep, SweepRequest};

use super::plan::Changes;
use crate::allocator;
use crate::interrupt;
use crate::live::{Live, Mode, clock};
use crate::tensors::Pattern;
use crate::ui::{self, Few, Side, Table, Ui};

/// Train a recipe at every point of a grid, with several seeds, and compare what they gave.
///
/// Examples:
///   scrimp sweep recipes/tables/qml-quantization.toml --dry-run
///   scrimp sweep recipes/tables/qml-quantization.toml --set epochs=1 --seeds 1 --only 'int8*'
///   scrimp sweep recipes/tables/qml-quantization.toml --resume runs/qml-quantization-1
///
/// Each point has a run folder as `scrimp train` makes it, inside the folder of the sweep. Beside
/// them results.json, results.csv and report.html are written anew whenever a run ends. A run that
/// goes wrong is a row with its reason, and the others go on.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct SweepCommand {
    /// The sweep, TOML or JSON
    #[arg(value_name = "SWEEP")]
    path: PathBuf,

    #[command(flatten)]
    changes: Changes,

    /// Train every point with so many seeds, in place of what the sweep says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Recipe")]
    seeds: Option<u32>,

    /// Only the points whose names match; the others keep what they have
    #[arg(long, value_name = "GLOB", help_heading = "Recipe")]
    only: Vec<Pattern>,

    /// Where data sets lie [default: the folder that `SCRIMP_DATA` names]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    data_dir: Option<PathBuf>,

    /// Check every recipe and print the points with their bits, without training
    #[arg(long, conflicts_with_all = ["out", "resume"], help_heading = "Output")]
    dry_run: bool,

    /// The folder to make [default: runs/SWEEP-1, -2, ...]
    #[arg(long, value_name = "DIR", conflicts_with = "resume", help_heading = "Output")]
    out: Option<PathBuf>,

    /// Go on with the sweep in this folder: what is done stays, the rest starts at the last checkpoint
    #[arg(long, value_name = "SWEEP_FOLDER", help_heading = "Output")]
    resume: Option<PathBuf>,

    /// Print JSON, one object per line, instead of tables
    #[arg(long, conflicts_with = "csv", help_heading = "Output")]
    json: bool,

    /// Print the rows as CSV instead of tables
    #[arg(long, help_heading = "Output")]
    csv: bool,
}

impl SweepCommand {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        let sweep = Sweep::read(&self.path, &self.changes.settings, self.seeds)?;
        allocator::set_memory(sweep.points.iter().any(|p| p.source.recipe.saves_memory()));
        let chosen = self.chosen(&sweep)?;
        if self.dry_run {
            let mut results = Results::new(&sweep, &self.changes.device)?;
            let is_chosen = |row: &Row| {
                sweep.points.iter().zip(&chosen).any(|(point, is)| *is && point.name == row.point)
            };
            results.rows.retain(is_chosen);
            return self.dry(ui, &sweep, &results);
        }
        if let Some(folder) = self.resume.as_ref().filter(|folder| !folder.is_dir()) {
            bail!("{}: there is no such sweep folder", folder.display());
        }
        let folder = self.resume.clone().or(self.out.clone());
        let folder = folder.unwrap_or_else(|| new_folder("runs".as_ref(), &sweep.path));
        let request = SweepRequest {
            resume: self.resume.is_some(),
            data_dir: self.data_dir.clone(),
            device: self.changes.device.clone(),
            chosen,
            folder,
            sweep,
        };
        interrupt::catch();
        let mode = if self.csv { Mode::Bar } else { Mode::of(self.json) };
        let names = request.sweep.points.iter().flat_map(|point| {
            let variants = point.source.recipe.variants(false);
            variants.into_iter().map(|variant| request.sweep.label(point, &variant.name))
        });
        let names: Vec<String> = names.collect();
        let has_seeds = request.sweep.seeds > 1;
        let mut watch = Live::new(ui, names.iter().map(String::as_str), has_seeds, mode);
        let results = match sweep::run(&request, &mut watch) {
            Ok(results) => results,
            Err(e) => return Err(watch.ended(e, "the sweep can be resumed")),
        };
        if self.csv {
            ui.raw(results.csv().as_bytes())?;
        } else if self.json {
            ui.json(&serde_json::json!({
                "type": "report", "folder": request.folder, "report": results,
            }))?;
        } else {
            ui.say("")?;
            show(ui, &results)?;
            ui.say(format_args!("total {}", clock(watch.elapsed())))?;
            for file in ["report.html", "results.csv"] {
                ui.say_made(&request.folder.join(file))?;
            }
        }
        failures(&request, &results)
    }

    /// Which points have their turn.
    fn chosen(&self, sweep: &Sweep) -> anyhow::Result<Vec<bool>> {
        let points = &sweep.points;
        for pattern in &self.only {
            if !points.iter().any(|point| pattern.matches(&point.name)) {
                let names: Vec<&str> = points.iter().map(|point| point.name.as_str()).collect();
                bail!(
                    "`--only {}` matches no point\n  help: points here are {}",
                    pattern.text(),
                    Few(&names)
                );
            }
        }
        let is_chosen = |name: &str| self.only.iter().any(|pattern| pattern.matches(name));
        Ok(points.iter().map(|p| self.only.is_empty() || is_chosen(&p.name)).collect())
    }

    fn dry(&self, ui: &Ui, sweep: &Sweep, results: &Results) -> anyhow::Result<()> {
        if self.csv {
            return Ok(ui.raw(results.csv().as_bytes())?);
        }
        if self.json {
            return results
                .rows
                .iter()
                .try_for_each(|row| Ok(ui.json(&serde_json::json!({"type": "row", "row": row}))?));
        }
        let has_messages = has_messages(results);
        let mut columns = ["point", "model", "data"].map(|title| (title, Side::Left)).to_vec();
        let numbers = ["epochs", "seeds", "w bits", "x y bits", "d bits"];
        columns.extend(numbers.map(|title| (title, Side::Right)));
        columns.extend(has_messages.then_some(MESSAGES));
        columns.push(("all", Side::Right));
        let mut table = Table::new(&columns);
        for row in &results.rows {
            let point = sweep.points.iter().find(|point| point.name == row.point);
            let seeds: Vec<String> = row.runs.iter().map(|run| run.seed.to_string()).collect();
            let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
            let mut cells = vec![
                row.label.clone(),
                row.model.clone(),
                row.data.clone(),
                point.map_or_else(String::new, |p| p.source.recipe.epochs.to_string()),
                Few(&seeds).to_string(),
            ];
            let Bits { w, xy, d, a, all } = row.bits;
            cells.extend([w, xy, d].map(ui::bits));
            cells.extend(has_messages.then(|| ui::bits(a)));
            cells.push(ui::bits(all));
            table.row(cells);
        }
        ui.table(&table)?;
        let runs: usize = results.rows.iter().map(|row| row.runs.len()).sum();
        Ok(ui.say(format_args!(
            "{} · {} · every recipe fits · nothing was trained",
            ui::count(results.rows.len() as u64, "row"),
            ui::count(runs as u64, "run")
        ))?)
    }
}

/// Prints what there is to read on a terminal.
fn show(ui: &Ui, results: &Results) -> anyhow::Result<()> {
    ui.table(&table(results))?;
    for row in &results.rows {
        let Some((seed, reason)) = row.failures().next() else { continue };
        let others = match row.failures().count() - 1 {
            0 => String::new(),
            more => format!(", and {}", ui::count(more as u64, "more seed")),
        };
        ui.say(format_args!("{}, seed {seed}: {reason}{others}", row.label))?;
    }
    let baselines = results.rows.iter().filter_map(|row| row.baseline.as_deref());
    let mut baselines: Vec<&str> = baselines.collect();
    baselines.dedup();
    let against = match &baselines[..] {
        [] => String::new(),
        [one] => format!("; Δ and x: against {one}"),
        _ => "; Δ and x: against the f32 row that is alike on most axes".to_owned(),
    };
    Ok(ui.say(format_args!(
        "test accuracy of the last epoch · bits per value count scales{against}"
    ))?)
}

/// The column of what workers send, where some do.
const MESSAGES: (&str, Side) = ("a bits", Side::Right);

fn has_messages(results: &Results) -> bool {
    results.rows.iter().any(|row| row.bits.a.is_some())
}

/// The runs that went wrong, and why.
fn wrong(results: &Results) -> impl Iterator<Item = (&Row, u32, &str)> {
    results.rows.iter().flat_map(|row| row.failures().map(move |(seed, why)| (row, seed, why)))
}

/// One row for each point and variant.
fn table(results: &Results) -> Table {
    let has_baseline = results.rows.iter().any(|row| row.baseline.is_some());
    let mut columns = vec![("point", Side::Left), ("test acc", Side::Right)];
    columns.extend(has_baseline.then_some(("Δ", Side::Right)));
    let has_messages = has_messages(results);
    columns.extend(["w bits", "x y bits", "d bits"].map(|title| (title, Side::Right)));
    columns.extend(has_messages.then_some(MESSAGES));
    columns.extend(["all", "packed w b", "step", "seeds"].map(|title| (title, Side::Right)));
    columns.push(("status", Side::Left));
    let mut table = Table::new(&columns);
    for row in &results.rows {
        let done = row.results().count();
        let accuracy = row.accuracy.map_or_else(
            || "-".to_owned(),
            |accuracy| {
                let sd = format!(" ±{:.2}", 100.0 * accuracy.sd);
                format!("{:.2} %{}", 100.0 * accuracy.mean, if done > 1 { &sd } else { "" })
            },
        );
        let mut cells = vec![row.label.clone(), accuracy];
        let difference = row.difference.map(|d| format!("{:+.2}", 100.0 * d));
        cells.extend(has_baseline.then(|| difference.unwrap_or_default()));
        let Bits { w, xy, d, a, all } = row.bits;
        cells.extend([w, xy, d].map(ui::bits));
        cells.extend(has_messages.then(|| ui::bits(a)));
        cells.extend([
            ui::bits(all),
            row.packed_bytes.map_or_else(|| "-".to_owned(), ui::number),
            match (row.step_ms, row.step_ratio) {
                (Some(ms), Some(ratio)) => format!("{ms:.1} ms {ratio:.2}x"),
                (Some(ms), None) => format!("{ms:.1} ms"),
                (None, _) => "-".to_owned(),
            },
            format!("{done} of {}", row.runs.len()),
            row.status(),
        ]);
        table.row(cells);
    }
    table
}

/// An error where a run went wrong that had its turn, after all that was found was told.
fn failures(request: &SweepRequest, results: &Results) -> anyhow::Result<()> {
    let points = request.sweep.points.iter().zip(&request.chosen);
    let chosen: Vec<&str> = points.filter(|(_, is)| **is).map(|(p, _)| p.name.as_str()).collect();
    let had_turn = |row: &&Row| chosen.contains(&row.point.as_str());
    let runs: usize = results.rows.iter().filter(had_turn).map(|row| row.runs.len()).sum();
    let wrong: Vec<_> = wrong(results).filter(|(row, ..)| had_turn(row)).collect();
    match wrong.first() {
        None => Ok(()),
        Some((row, seed, _)) => bail!(
            "{} of {} went wrong, the first of them {}, seed {seed}",
            wrong.len(),
            ui::count(runs as u64, "run"),
            row.label
        ),
    }
}
