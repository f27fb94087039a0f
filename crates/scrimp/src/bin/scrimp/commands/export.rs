use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use scrimp::export::{self, As, Check, ExportError, ExportRequest, Exported, RangeSource};
use scrimp::onnx::{Choice, open_engine};
use scrimp::run::TrainedRun;
use scrimp_files::FileError;
use serde::Serialize;

use crate::output::{Output, check_free};
use crate::ui::{self, Side, Table, Ui};

/// Write a trained network as an ONNX model.
///
/// Examples:
///   scrimp export runs/quickstart-1 --variant int8 -o lenet.onnx
///   scrimp export runs/quickstart-1 --variant int8 --quantized -o lenet.int8.onnx
///
/// Nodes have the names of layers, and weights those that they have in model.safetensors. The
/// input is normalized already; mean, deviation and the names of classes lie in `metadata_props`.
/// Of a run that is not done, the last checkpoint is taken.
///
/// With --quantized, weights are the codes of their schemes, and activations pass `QuantizeLinear`
/// and `DequantizeLinear` with scales that do not change: those that a scheme with delayed:N
/// remembers, or else of the range of each tensor over some training images. What ONNX has no
/// operators for stays float, and is listed.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Export {
    /// The folder that `scrimp train` made, or that of one run in it
    #[arg(value_name = "RUN_FOLDER")]
    folder: PathBuf,

    /// The variant, where there are several
    #[arg(long, value_name = "NAME", help_heading = "Run")]
    variant: Option<String>,

    /// The seed, where there are several
    #[arg(long, value_name = "N", help_heading = "Run")]
    seed: Option<u32>,

    /// Write tensors as the run rounds them; without it, weights are those that training updates
    #[arg(long, help_heading = "What to write")]
    quantized: bool,

    /// Training images on which ranges of activations are found [default: 128]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 128,
        hide_default_value = true,
        requires = "quantized",
        help_heading = "What to write"
    )]
    samples: usize,

    /// Also write so many test images, and what the network answers, to check a runtime with:
    /// input, logits and labels, in a .safetensors file
    #[arg(long, value_name = "FILE", help_heading = "What to write")]
    reference: Option<PathBuf>,

    /// How many test images the model is checked with
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 20), help_heading = "What to write")]
    images: u32,

    /// Where data sets lie [default: the folder that `SCRIMP_DATA` names]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    data_dir: Option<PathBuf>,

    #[command(flatten)]
    output: Output,
}

/// The device that the network is checked on.
const DEVICE: &str = "flex";

impl Export {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        let run = TrainedRun::open(&self.folder, self.variant.as_deref(), self.seed)?;
        let suffix = if self.quantized { ".quantized.onnx" } else { ".onnx" };
        let output = self.output.path(&run.file, suffix, &["onnx"])?;
        if let Some(path) = &self.reference {
            check_free(path, &[&run.file, &output], self.output.force())?;
        }
        let request = ExportRequest {
            quantized: self.quantized,
            samples: self.samples,
            data_dir: self.data_dir.clone(),
            device: DEVICE.to_owned(),
        };
        let exported = export::export(&run, &request)?;
        let reference = exported.reference(&run, DEVICE, self.images as usize)?;
        let check = match open_engine(&Choice::Best).map_err(ExportError::from) {
            Ok(engine) => exported.check(&reference, &*engine),
            Err(e) => Err(e),
        };
        let check = match check {
            Ok(check) => Ok(check),
            // That a runtime lacks a type is no fault of the model.
            Err(ExportError::Engine(e)) => Err(e.to_string()),
            Err(e) => return Err(e.into()),
        };
        let predicted_bytes = exported.model.to_bytes().len() as u64;
        exported.model.save(&output).map_err(ExportError::from)?;
        let failed = |e| FileError::io("read", &output, e);
        let file_bytes = std::fs::metadata(&output).map_err(failed)?.len();
        if predicted_bytes < EXTERNAL_FROM && file_bytes != predicted_bytes {
            bail!(
                "{}: {file_bytes} bytes were written where {predicted_bytes} were predicted; this \
                 is a defect of scrimp",
                output.display()
            );
        }
        if let Some(path) = &self.reference {
            scrimp_files::save(path, &reference.tensors()?, &BTreeMap::new())?;
        }
        let made = Made { run, exported, check, output, predicted_bytes, file_bytes };
        if self.output.json { made.json(ui) } else { made.text(ui, &self) }
    }
}

/// From this size on, tensors lie in a file beside the model.
const EXTERNAL_FROM: u64 = 1 << 31;

/// What was done, to be told.
struct Made {
    run: TrainedRun,
    exported: Exported,
    check: Result<Check, String>,
    output: PathBuf,
    predicted_bytes: u64,
    file_bytes: u64,
}

/// The last line of `--json`.
#[derive(Serialize)]
struct ExportedLine<'a> {
    r#type: &'static str,
    run: PathBuf,
    output: PathBuf,
    model: &'a str,
    variant: &'a str,
    seed: u32,
    finished: bool,
    epochs: u64,
    steps: u64,
    quantized: bool,
    opset: i64,
    nodes: usize,
    parameters: usize,
    parameter_bytes: usize,
    predicted_file_bytes: u64,
    file_bytes: u64,
    /// Training images that ranges were found on.
    samples: usize,
    /// Null where no runtime could run the model; `unchecked` says why.
    check: Option<&'a Check>,
    unchecked: Option<&'a str>,
}

impl Made {
    fn json(&self, ui: &Ui) -> anyhow::Result<()> {
        for tensor in &self.exported.tensors {
            ui.json(&serde_json::json!({"type": "tensor", "tensor": tensor}))?;
        }
        let Self { run, exported, check, .. } = self;
        Ok(ui.json(&ExportedLine {
            r#type: "exported",
            run: run.file.clone(),
            output: self.output.clone(),
            model: &run.source.recipe.model,
            variant: &run.variant.name,
            seed: run.seed,
            finished: run.is_finished,
            epochs: run.epochs,
            steps: run.steps,
            quantized: !exported.tensors.is_empty(),
            opset: exported.model.opset(),
            nodes: exported.model.graph().node.len(),
            parameters: exported.parameters,
            parameter_bytes: exported.parameter_bytes(),
            predicted_file_bytes: self.predicted_bytes,
            file_bytes: self.file_bytes,
            samples: exported.samples,
            check: check.as_ref().ok(),
            unchecked: check.as_ref().err().map(String::as_str),
        })?)
    }

    fn text(&self, ui: &Ui, command: &Export) -> anyhow::Result<()> {
        let Self { run, exported, .. } = self;
        let recipe = &run.source.recipe;
        let how_far = if run.is_finished {
            ui::count(run.epochs, "epoch")
        } else {
            format!(
                "not done: {} of {} epochs, {}",
                run.epochs,
                recipe.epochs,
                ui::count(run.steps, "step")
            )
        };
        ui.say(format_args!(
            "{} on {} · {}, seed {} · {how_far}",
            recipe.model, recipe.data, run.variant.name, run.seed
        ))?;
        if !exported.tensors.is_empty() {
            ui.table(&self.table())?;
            self.say_ranges(ui)?;
        }
        let f32_bytes = 4 * exported.parameters as u64;
        let bytes = exported.parameter_bytes() as u64;
        ui.say(format_args!(
            "opset {} · {} · {} in {} bytes ({})",
            exported.model.opset(),
            ui::count(exported.model.graph().node.len(), "node"),
            ui::count(exported.parameters, "parameter"),
            ui::number(bytes),
            ui::ratio(bytes, f32_bytes),
        ))?;
        ui.say(format_args!(
            "file {} bytes, as predicted · {} with names and graph",
            ui::number(self.file_bytes),
            ui::number(self.file_bytes.saturating_sub(bytes))
        ))?;
        if exported.tensors.is_empty() && !run.variant.rules.is_empty() {
            ui.say(
                "weights are those that training updates, and nothing is rounded; --quantized \
                 writes what the run computes with",
            )?;
        }
        self.say_check(ui)?;
        if let Some(path) = &command.reference {
            ui.say_made(path)?;
        }
        ui.say_made(&self.output)?;
        let output = ui::shell_word(&self.output);
        if exported.tensors.is_empty() {
            ui.say(format_args!(
                "  next: scrimp quantize {output} --data {0} --eval {0}",
                recipe.data
            ))?;
        } else if command.reference.is_none() {
            ui.say("  next: --reference writes images and logits to check another runtime with")?;
        }
        Ok(())
    }

    /// One row for each tensor that the run rounds.
    fn table(&self) -> Table {
        let mut table = Table::new(&[
            ("layer", Side::Left),
            ("tensor", Side::Left),
            ("scheme", Side::Left),
            ("in the model", Side::Left),
            ("scale", Side::Right),
            ("zero", Side::Right),
            ("bytes", Side::Right),
        ]);
        let mut last = None;
        for tensor in &self.exported.tensors {
            let is_new = last.replace(&tensor.layer) != Some(&tensor.layer);
            let none = String::new;
            let (is, scale, zero, bytes) = match &tensor.is {
                As::Codes { element, bytes } => {
                    (format!("{element} codes"), none(), none(), ui::number(*bytes as u64))
                }
                As::Pair { element, scale, zero, .. } => {
                    (format!("{element} pair"), format!("{scale:.4e}"), zero.to_string(), none())
                }
                As::Sums { bytes } => {
                    ("int32 codes".into(), none(), none(), ui::number(*bytes as u64))
                }
                As::Values { .. } => ("rounded, stored as f32".into(), none(), none(), none()),
                As::Float { .. } => ("float".into(), none(), none(), none()),
            };
            table.row([
                if is_new { tensor.layer.clone() } else { none() },
                tensor.role.to_string(),
                tensor.scheme.clone(),
                is,
                scale,
                zero,
                bytes,
            ]);
        }
        table
    }

    /// Where ranges are from, and why some tensors are no codes.
    fn say_ranges(&self, ui: &Ui) -> anyhow::Result<()> {
        let count = |source| {
            let is_from = |is: &As| matches!(is, As::Pair { range, .. } if *range == Some(source));
            self.exported.tensors.iter().filter(|t| is_from(&t.is)).count()
        };
        let remembered = count(RangeSource::Remembered);
        if remembered > 0 {
            ui.say(format_args!(
                "{} of training, as remembered by the schemes",
                ui::count(remembered, "range")
            ))?;
        }
        let calibrated = count(RangeSource::Calibrated);
        if calibrated > 0 {
            ui.say(format_args!(
                "{} from the least to the greatest value over {}, through the rounded network",
                ui::count(calibrated, "range"),
                ui::count(self.exported.samples, "training image")
            ))?;
        }
        let mut reasons = BTreeMap::<(&str, &str), Vec<String>>::new();
        for tensor in &self.exported.tensors {
            let (what, why) = match &tensor.is {
                As::Values { why } => ("rounded, stored as f32", why),
                As::Float { why } => ("left float", why),
                As::Codes { .. } | As::Sums { .. } | As::Pair { .. } => continue,
            };
            let name = format!("{}.{}", tensor.layer, tensor.role);
            reasons.entry((what, why)).or_default().push(name);
        }
        for ((what, why), names) in reasons {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            ui.say(format_args!("{what}: {} ({why})", ui::Few(&names)))?;
        }
        Ok(())
    }

    fn say_check(&self, ui: &Ui) -> anyhow::Result<()> {
        match &self.check {
            Ok(Check { engine, images, difference, steps, same_class }) => {
                let near = match steps {
                    Some(steps) => format!("logits within {steps:.2} steps of their scale"),
                    None => format!("logits within {difference:.1e} of the largest"),
                };
                ui.say(format_args!(
                    "checked in {engine} against the network: {near}, same class for {same_class} of {}",
                    ui::count(*images, "test image")
                ))?;
            }
            Err(why) => ui.say(format_args!("not checked: {why}"))?,
        }
        Ok(())
    }
}
