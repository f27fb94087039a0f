use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use scrimp_codec::nearest;
use scrimp_files::{Entry, FileError, Kind, Plan, Reader, Storage, open, write_npy};
use serde::Serialize;

use crate::interrupt::{self, Interrupted};
use crate::output::Output;
use crate::ui::{self, Few, Ui};

/// Turn a packed file back into plain tensors of their original types.
///
/// Example:
///   scrimp decode small.safetensors -o plain.safetensors
///
/// The values are those that the packed bytes stand for. What rounding took does not come back.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Decode {
    /// A file that `scrimp encode` wrote
    file: PathBuf,

    /// Decode this tensor alone
    #[arg(short, long, value_name = "NAME", help_heading = "What to decode")]
    tensor: Option<String>,

    #[command(flatten)]
    output: Output,
}

/// The line of `--json`.
#[derive(Serialize)]
struct DecodedLine {
    r#type: &'static str,
    input: PathBuf,
    output: PathBuf,
    tensors: usize,
    decoded: usize,
    input_file_bytes: u64,
    output_file_bytes: u64,
}

impl Decode {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        let reader = open(&self.file)?;
        if reader.kind() != Kind::Packed {
            bail!(
                "{} is not packed: it is a plain {} file, and there is nothing to decode",
                self.file.display(),
                reader.kind()
            );
        }
        let output =
            self.output.path(&self.file, ".decoded.safetensors", &["safetensors", "npy"])?;
        let places = match &self.tensor {
            Some(name) => vec![find(&reader, name)?],
            None => (0..reader.entries().len()).collect(),
        };
        // A file half written would stay behind.
        interrupt::catch();
        let is_npy = output.extension() == Some(OsStr::new("npy"));
        match places[..] {
            [place] if is_npy => write_npy(&output, &reader.read_tensor(place)?)?,
            _ if is_npy => bail!(
                "{}: an .npy file holds one tensor, and {} holds {}\n  help: choose one with \
                 --tensor NAME, or write a .safetensors file",
                output.display(),
                self.file.display(),
                places.len()
            ),
            _ => unpack(ui, &reader, &places, &output)?,
        }

        let is_packed =
            |place: &&usize| matches!(reader.entries()[**place].storage, Storage::Packed { .. });
        let decoded = places.iter().filter(is_packed).count();
        let output_file_bytes = open(&output)?.file_bytes();
        if self.output.json {
            ui.json(&DecodedLine {
                r#type: "decoded",
                input: self.file,
                output,
                tensors: places.len(),
                decoded,
                input_file_bytes: reader.file_bytes(),
                output_file_bytes,
            })?;
            return Ok(());
        }
        ui.say(super::inspect::heading(&reader))?;
        ui.say(format_args!(
            "{} decoded{} (file {} → {} with header)",
            ui::count(decoded, "tensor"),
            match places.len() - decoded {
                0 => String::new(),
                rest => format!(", {} copied", ui::number(rest as u64)),
            },
            ui::number(reader.file_bytes()),
            ui::number(output_file_bytes)
        ))?;
        Ok(ui.say_made(&output)?)
    }
}

fn find(reader: &Reader, name: &str) -> anyhow::Result<usize> {
    if let Some(place) = reader.find(name) {
        return Ok(place);
    }
    let names: Vec<&str> = reader.entries().iter().map(|entry| entry.name.as_str()).collect();
    let help = match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("tensors here are {}", Few(&names)),
    };
    bail!("{} holds no tensor `{name}`\n  help: {help}", reader.path().display())
}

/// Writes the tensors at `places` as plain safetensors, one in memory at a time.
fn unpack(ui: &Ui, reader: &Reader, places: &[usize], output: &Path) -> anyhow::Result<()> {
    let plain = |place: &usize| {
        let entry = reader.entries()[*place].clone();
        Entry { storage: Storage::Plain, ..entry }
    };
    let entries: Vec<Entry> = places.iter().map(plain).collect();
    let plan = Plan::new(entries, reader.metadata()).map_err(|problem| FileError::Container {
        path: output.to_owned(),
        problem: Box::new(problem),
    })?;
    let mut progress = ui.progress("decode", plan.file_size().most);
    let written = plan.write(output, |index, bytes| {
        if interrupt::requested() {
            return Err(FileError::io("write", output, std::io::ErrorKind::Interrupted.into()));
        }
        *bytes = reader.read_tensor(places[index])?.into_bytes();
        progress.advance(bytes.len() as u64);
        Ok(())
    });
    drop(progress);
    if written.is_err() && interrupt::requested() {
        return Err(Interrupted { outcome: "nothing was written" }.into());
    }
    Ok(written?)
}
