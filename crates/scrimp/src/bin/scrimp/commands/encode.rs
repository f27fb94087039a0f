use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use scrimp_codec::{Granularity, Scheme, Tally};
use scrimp_files::{
    FileError, FileSize, Kind, Ledger, Reader, Status, Storage, open, predicted_file_size,
};
use serde::Serialize;

use crate::interrupt::{self, Interrupted};
use crate::output::Output;
use crate::sizes;
use crate::tensors::{Pattern, are_weights};
use crate::ui::{self, Side, Table, Ui};

mod rules;

use rules::{Rules, TensorRule};

/// Store the tensors of a file in a number format, really packed.
///
/// Example:
///   scrimp encode model.safetensors --scheme int8/channel --keep 'fc.*' -o small.safetensors
///
/// Float tensors of two axes and more take the scheme. Those of fewer (biases, the statistics of
/// batch normalization) are kept as they are, and so are integers; a --tensor that matches nothing
/// but vectors means them. A tensor that is alone in its file takes the scheme in any case.
///
/// Tensors of a checkpoint are taken as weights: where they have more than two axes, the rows that
/// row, group and tile speak of are whole filters. An .npy array is taken as it is.
///
/// The result is a safetensors file: `scrimp inspect` shows it, `scrimp decode` turns it back.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Encode {
    /// Tensors to read: .safetensors, .pt .pth .th .bin, or .npy
    file: PathBuf,

    /// How to store tensors that no --tensor names, as int8/channel; see `scrimp help formats`
    #[arg(
        short,
        long,
        value_name = "SCHEME",
        required_unless_present = "tensors",
        help_heading = "What to store how"
    )]
    scheme: Option<Scheme>,

    /// How to store the tensors whose names match, as 'layer1.*=int4/group:64'; a later one wins
    #[arg(short, long = "tensor", value_name = "GLOB=SCHEME", help_heading = "What to store how")]
    tensors: Vec<TensorRule>,

    /// Leave the tensors whose names match as they are
    #[arg(short, long, value_name = "GLOB", help_heading = "What to store how")]
    keep: Vec<Pattern>,

    /// Seed of stochastic rounding [default: 0]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "What to store how"
    )]
    seed: u32,

    /// Remove this from the front of names, as `state_dict.module.`
    #[arg(long, value_name = "PREFIX", help_heading = "What to store how")]
    strip_prefix: Option<String>,

    #[command(flatten)]
    output: Output,
}

impl Encode {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        let mut reader = open(&self.file)?;
        if reader.kind() == Kind::Packed {
            bail!(
                "{} is packed already\n  help: encode the file that it came from, since rounding \
                 twice loses more",
                self.file.display()
            );
        }
        if let Some(prefix) = &self.strip_prefix {
            reader.strip_prefix(prefix)?;
        }
        let output = self.output.path(&self.file, &self.suffix(), &["safetensors"])?;
        let rules = Rules {
            scheme: self.scheme,
            tensors: self.tensors,
            keep: self.keep,
            are_weights: are_weights(reader.kind()),
        };
        let decisions = rules.decide(&self.file.display().to_string(), reader.entries())?;
        let predicted = predicted_file_size(&reader, &decisions)?;
        let tally = pack(ui, &reader, &decisions, self.seed, &output)?;

        // What is reported was read back from the disk.
        let packed = open(&output)?;
        let real_bytes = packed.file_bytes();
        if !predicted.contains(real_bytes) {
            bail!(
                "{}: {real_bytes} bytes were written where {} to {} were predicted; this is a \
                 defect of scrimp",
                output.display(),
                predicted.least,
                predicted.most
            );
        }
        let result = Encoded { reader, ledger: packed.ledger(), output, tally, predicted };
        if self.output.json { result.json(ui) } else { result.text(ui) }
    }

    /// What the name of the output ends with unless the user gives one: `.int4-group-64.safetensors`.
    fn suffix(&self) -> String {
        let scheme = self.scheme.as_ref().map_or("packed".to_owned(), Scheme::to_string);
        let safe = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        format!(".{}.safetensors", scheme.chars().map(safe).collect::<String>())
    }
}

/// Writes the file, with a bar, and stops on Ctrl-C.
fn pack(
    ui: &Ui,
    reader: &Reader,
    decisions: &[Storage],
    seed: u32,
    output: &Path,
) -> anyhow::Result<Tally> {
    let total = (0..decisions.len()).map(|place| reader.stored_bytes(place) as u64).sum();
    interrupt::catch();
    let mut progress = ui.progress("encode", total);
    let packed = scrimp_files::pack(reader, decisions, seed, output, |place| {
        progress.advance(reader.stored_bytes(place) as u64);
        if interrupt::requested() {
            return Err(FileError::io("write", output, std::io::ErrorKind::Interrupted.into()));
        }
        Ok(())
    });
    drop(progress);
    if packed.is_err() && interrupt::requested() {
        return Err(Interrupted { outcome: "nothing was written" }.into());
    }
    Ok(packed?.into_iter().flatten().fold(Tally::default(), Tally::join))
}

/// What was done, to be told.
struct Encoded {
    reader: Reader,
    output: PathBuf,
    ledger: Ledger,
    tally: Tally,
    predicted: FileSize,
}

/// The last line of `--json`.
#[derive(Serialize)]
struct EncodedLine {
    r#type: &'static str,
    input: PathBuf,
    output: PathBuf,
    input_file_bytes: u64,
    output_file_bytes: u64,
    /// Null where a scheme's bytes depend on the values.
    predicted_file_bytes: Option<u64>,
    nans: u64,
    infinities: u64,
}

impl Encoded {
    fn json(self, ui: &Ui) -> anyhow::Result<()> {
        super::inspect::json_lines(ui, &self.output, &self.ledger)?;
        ui.json_ignored(&self.reader)?;
        ui.json(&EncodedLine {
            r#type: "encoded",
            input: self.reader.path().to_owned(),
            output: self.output,
            input_file_bytes: self.reader.file_bytes(),
            output_file_bytes: self.ledger.file_bytes,
            predicted_file_bytes: self.predicted.exact(),
            nans: self.tally.nans,
            infinities: self.tally.infinities,
        })?;
        Ok(())
    }

    fn text(&self, ui: &Ui) -> anyhow::Result<()> {
        ui.say(super::inspect::heading(&self.reader))?;
        ui.table(&self.table())?;
        ui.say(format_args!(
            "{} (file {} → {} with header, {})",
            sizes::total(&self.ledger),
            ui::number(self.reader.file_bytes()),
            ui::number(self.ledger.file_bytes),
            match self.predicted.exact() {
                Some(_) => "as predicted".to_owned(),
                None => format!("at most {} predicted", ui::number(self.predicted.most)),
            }
        ))?;
        if self.tally != Tally::default() {
            ui.say(format_args!(
                "{} NaN became zero and {} infinite the largest code",
                ui::number(self.tally.nans),
                ui::number(self.tally.infinities)
            ))?;
        }
        if let Some(advice) = self.advice() {
            ui.say(advice)?;
        }
        ui.say_ignored("left out (no tensor)", &self.reader)?;
        ui.say_made(&self.output)?;
        ui.say(format_args!("  next: scrimp inspect {}", ui::shell_word(&self.output)))?;
        Ok(())
    }

    /// One row for each scheme, and for each reason to keep tensors.
    fn table(&self) -> Table {
        struct Sum {
            tensors: u64,
            values: u64,
            bytes: u64,
        }
        let mut sums: BTreeMap<(bool, &str, String), Sum> = BTreeMap::new();
        for row in &self.ledger.rows {
            let is_kept = row.status != Status::Packed;
            let sum = sums
                .entry((is_kept, &row.scheme, sizes::status(&row.status)))
                .or_insert(Sum { tensors: 0, values: 0, bytes: 0 });
            sum.tensors += 1;
            sum.values += row.values as u64;
            sum.bytes += row.bytes;
        }
        let mut table = Table::new(&[
            ("scheme", Side::Left),
            ("tensors", Side::Right),
            ("values", Side::Right),
            ("bits", Side::Right),
            ("bytes", Side::Right),
            ("status", Side::Left),
        ]);
        for ((_, scheme, status), sum) in &sums {
            table.row([
                *scheme,
                &ui::number(sum.tensors),
                &ui::number(sum.values),
                &ui::bits(sizes::bits_per_value(sum.bytes, sum.values)),
                &ui::number(sum.bytes),
                status,
            ]);
        }
        table
    }

    /// Rows that are short, or just longer than a group, cost more scales than their values are worth:
    /// four bytes for the nine values of a depthwise filter, say.
    fn advice(&self) -> Option<String> {
        let mut tensors = 0u64;
        let mut first = None;
        for row in self.ledger.rows.iter().filter(|row| row.status == Status::Packed) {
            let Ok(scheme) = row.scheme.parse::<Scheme>() else { continue };
            let Some(Granularity::Group(len)) = scheme.granularity() else { continue };
            let (Ok(groups), least) = (scheme.groups(&row.shape), row.values.div_ceil(len)) else {
                continue;
            };
            if groups > least + least / 2 {
                tensors += 1;
                first.get_or_insert((row, groups, least));
            }
        }
        let (row, groups, least) = first?;
        let flat = row.scheme.replace("group:", "flat:").replace("/matrix", "");
        Some(format!(
            "{} with rows that do not fill their groups, as {} {}: {} scales where {} would do\n  \
             help: {flat} shares scales across rows",
            ui::count(tensors, "tensor"),
            ui::printable(&row.name),
            ui::shape(&row.shape),
            ui::number(groups as u64),
            ui::number(least as u64)
        ))
    }
}
