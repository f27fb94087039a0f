use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use scrimp::feed::{Feed, FeedRequest};
use scrimp::files::{FileError, write_atomic};
use scrimp::onnx::{
    Choice, Config, Data, Equalize, Mode, NodeRule, Spec, State, Statistics, WeightRange,
    WeightRounding, find_profile, open_engine,
};
use scrimp::quantize::{self, Job, Limit, News, Outcome, Search, Trials, census};

use crate::allocator;
use crate::interrupt::{self, Interrupted};
use crate::output::{Output, check_free};
use crate::ui::{self, Side, Table, Ui};

/// Quantize a trained ONNX model: int8 or fewer bits, calibrated on data, checked in a runtime.
///
/// Example:
///   scrimp quantize model.onnx --data calib.npz --eval test.npz -o model.int8.onnx
///
/// The result is an ONNX model with `QuantizeLinear` and `DequantizeLinear` nodes, which ONNX Runtime,
/// OpenVINO and TensorRT turn into integer arithmetic. Data is an .npz file with an array for each
/// input (and `labels`), an .npy file, a folder of images, a file of CIFAR-10 records, or the name
/// of a data set of `scrimp train`.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct QuantizeCommand {
    /// The float model
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,

    #[command(flatten)]
    data: DataFlags,

    #[command(flatten)]
    choice: ChoiceFlags,

    /// Take layers back to float, the worst first, until accuracy drops by no more per cent
    #[arg(long, value_name = "PERCENT", value_parser = percent, requires = "eval", help_heading = "What to keep")]
    max_drop: Option<f64>,

    /// Give layers fewer bits, those that lose least first, until the file has no more bytes: 300000, 300kB or 0.3MB
    #[arg(long, value_name = "SIZE", value_parser = bytes, conflicts_with = "max_drop", help_heading = "What to keep")]
    max_bytes: Option<u64>,

    /// Keep nodes with these names float: a glob, or a regular expression between slashes
    #[arg(long, value_name = "PATTERN", help_heading = "What to keep")]
    exclude: Vec<String>,

    /// Keep nodes of these operators float, such as Gemm
    #[arg(long, value_name = "OP", value_delimiter = ',', help_heading = "What to keep")]
    exclude_op: Vec<String>,

    /// Say more of some nodes: PATTERN:w=int4/channel,x=uint8 or PATTERN:float
    #[arg(long, value_name = "RULE", help_heading = "What to keep")]
    rule: Vec<String>,

    /// Write a page with every layer and tensor, ranked, which measures each alone
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,

    /// Measure what each layer loses alone
    #[arg(long, help_heading = "Output")]
    layers: bool,

    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
#[command(next_help_heading = "Data")]
struct DataFlags {
    /// Data to calibrate with
    #[arg(long, value_name = "FILE|FOLDER|NAME")]
    data: Option<String>,

    /// Data to judge with; a data set gives its test images
    #[arg(long, value_name = "FILE|FOLDER|NAME")]
    eval: Option<String>,

    /// The folder of data sets
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Samples to calibrate with
    #[arg(long, value_name = "N", default_value_t = 128)]
    samples: usize,

    /// Mean of each channel of images, as shares of white
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "std")]
    mean: Option<Vec<f32>>,

    /// Standard deviation of each channel of images
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "mean")]
    std: Option<Vec<f32>>,

    /// Give pixels as 0 to 255
    #[arg(long, conflicts_with = "mean")]
    raw: bool,
}

#[derive(Args)]
#[command(next_help_heading = "How to quantize")]
struct ChoiceFlags {
    /// The runtime: ort-x86, ort-arm, openvino or tensorrt
    #[arg(long, value_name = "NAME", default_value = "ort-x86")]
    target: String,

    /// The scheme of weights, such as int4/channel
    #[arg(short, long, value_name = "SCHEME", default_value = "int8/channel")]
    weights: String,

    /// The scheme of activations, f32 to leave them, or dynamic: 8 bits whose scale is found while
    /// the model runs, in products [default: as the target wants them]
    #[arg(short, long, value_name = "SCHEME", conflicts_with = "config")]
    activations: Option<String>,

    /// A JSON file with `compression_inference`, as was proposed to DeepSpeed, which says whether
    /// activations are static or dynamic
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// How ranges of activations are chosen: l2, mse, min-max, moving-average, percentile,
    /// percentile:P, entropy or aciq
    #[arg(long, value_name = "METHOD", default_value = "l2", value_parser = calibration)]
    calibration: String,

    /// How range is moved between layers first: none, cross-layer, smooth, smooth:ALPHA or awq
    #[arg(long, value_name = "WAY", default_value = "none", value_parser = Equalize::parse)]
    equalize: Equalize,

    /// How weights are rounded [default: gptq below 8 bits where there is data]
    #[arg(long, value_name = "METHOD")]
    rounding: Option<Rounding>,

    /// What is brought back in each output of a layer [default: mean-and-spread below 8 bits
    /// where there is data]
    #[arg(long, value_name = "WHAT")]
    correct: Option<Correct>,

    /// What runs the models [default: ort where it is found, else rten]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<EngineName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rounding {
    /// Each weight to the nearest
    Nearest,
    /// One after the other, the rest making up for what each loses
    Gptq,
}

#[derive(Clone, Copy, ValueEnum)]
enum Correct {
    /// Nothing
    None,
    /// The mean, by the bias
    Mean,
    /// Mean and spread, by bias and scales
    MeanAndSpread,
}

#[derive(Clone, Copy, ValueEnum)]
enum EngineName {
    /// ONNX Runtime, found as `ORT_DYLIB_PATH` says, or in the Python environment
    Ort,
    /// rten, which is built in
    Rten,
}

fn percent(text: &str) -> Result<f64, String> {
    let number: f64 =
        text.trim_end_matches('%').parse().map_err(|_| format!("`{text}` is no number"))?;
    if (0.0..=100.0).contains(&number) {
        Ok(number / 100.0)
    } else {
        Err("a share between 0 and 100 %".into())
    }
}

/// A number of bytes, with a unit or without.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number is checked to be positive and small"
)]
fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 6] =
        [("KiB", 1024.0), ("MiB", 1_048_576.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("B", 1.0)];
    let unit = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let (number, factor) = unit.unwrap_or((text, &1.0));
    let count = number.trim().parse::<f64>().map(|number| number * factor);
    match count {
        Ok(count) if (1.0..1e15).contains(&count) => Ok(count as u64),
        _ => Err("a number of bytes, as 300000, 300kB, 0.3MB or 256KiB".into()),
    }
}

fn calibration(text: &str) -> Result<String, String> {
    scrimp::onnx::calibration::find(text).map(|_| text.to_owned())
}

/// What a command without data calibrates with.
#[derive(Debug)]
struct NoData;

impl Data for NoData {
    fn len(&self) -> usize {
        0
    }

    fn batch(
        &self,
        _start: usize,
        _end: usize,
    ) -> Result<Vec<(String, scrimp::onnx::Value)>, String> {
        Err("there is none".into())
    }
}

impl QuantizeCommand {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        interrupt::catch();
        // What data and batches leave behind goes back at once, so that it does not stand beside the next.
        allocator::set_memory(true);
        let model = quantize::open(&self.model)?;
        let config = self.config()?;
        let suffix = format!(".{}.onnx", config.weights.name);
        let path = self.output.path(&self.model, &suffix, &["onnx"])?;
        if let Some(html) = &self.html {
            check_free(html, &[&self.model], self.output.force)?;
        }
        let open = |source: &Option<String>, test: bool, samples: Option<usize>| {
            let Some(source) = source else { return Ok(None) };
            let request = FeedRequest {
                source: source.clone(),
                dir: self.data.data_dir.clone(),
                test,
                mean: self.data.mean.clone(),
                std: self.data.std.clone(),
                raw: self.data.raw,
                samples,
            };
            Feed::open(&request, &model).map(Some)
        };
        let calibration = open(&self.data.data, false, Some(self.data.samples))?;
        let evaluation = open(&self.data.eval, true, None)?;
        if calibration.is_none() && config.mode == Mode::Static {
            bail!(
                "activations are calibrated on data, and there is none\n  help: --data FILE, or --activations f32 to quantize weights alone"
            );
        }
        let engine = open_engine(&match self.choice.engine {
            None => Choice::Best,
            Some(EngineName::Rten) => Choice::Rten,
            Some(EngineName::Ort) => Choice::OnnxRuntime(None),
        })?;
        let job = Job {
            config,
            calibration: calibration.as_ref().map_or(&NoData as &dyn Data, |feed| feed),
            evaluation: evaluation.as_ref().map(|feed| feed as &dyn Data),
            engine: &*engine,
            limit: self.max_drop.map(Limit::Drop).or(self.max_bytes.map(Limit::Bytes)),
            threads: rayon::current_num_threads(),
        };
        if !self.output.json {
            self.say_model(ui, &model, &job, [calibration.as_ref(), evaluation.as_ref()])?;
        }
        let mut trials = match job.limit {
            None => Trials::forgotten(),
            Some(_) => {
                Trials::open(&beside(&path, ".trials.json"), &model, &job, self.output.force)?
            }
        };
        let mut bars = Bars { ui, current: None, quiet: self.output.json };
        let outcome = quantize::run(
            &model,
            &job,
            &mut trials,
            self.layers || self.html.is_some(),
            &mut |news| bars.show(news),
        );
        drop(bars);
        if interrupt::requested() {
            let outcome = if trials.is_empty() {
                "nothing was written"
            } else {
                "what was measured is kept, and the same command goes on from there"
            };
            return Err(Interrupted { outcome }.into());
        }
        let outcome = outcome.with_context(|| self.model.display().to_string())?;
        let predicted = outcome.quantized.model.to_bytes().len() as u64;
        let bytes = quantize::save(&outcome.quantized.model, &path)?;
        trials.remove()?;
        let before = std::fs::metadata(&self.model)?.len();
        if let Some(html) = &self.html {
            let title = self.model.file_name().unwrap_or_default().to_string_lossy();
            let facts = format!(
                "target {} · w {} · {} · {} calibration samples",
                job.config.profile.name,
                job.config.weights.text,
                job.engine.version(),
                outcome.quantized.samples,
            );
            let page = quantize::render(&title, &facts, &outcome, [before, bytes])?;
            write_atomic(html, |out| {
                out.write_all(page.as_bytes())
                    .map_err(|source| FileError::io("write", html, source))
            })?;
        }
        if self.output.json {
            return json(ui, &outcome, &path, [before, bytes, predicted]);
        }
        say_outcome(ui, &outcome, &job, [before, bytes, predicted])?;
        ui.say_made(&path)?;
        if let Some(html) = &self.html {
            ui.say_made(html)?;
        }
        Ok(())
    }

    fn config(&self) -> anyhow::Result<Config> {
        let parse = |text: &str| Spec::parse(text).map_err(anyhow::Error::msg);
        let profile = find_profile(&self.choice.target).map_err(anyhow::Error::msg)?;
        let mut config = Config::of(profile);
        config.weights = parse(&self.choice.weights)?;
        match self.choice.activations.as_deref() {
            Some("f32") => config.mode = Mode::Weights,
            Some("dynamic") => config.mode = Mode::Dynamic,
            Some(text) => config.activations = parse(text)?,
            None => {}
        }
        if let Some(file) = &self.choice.config {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            config.mode = quantize::mode_of(&text)
                .map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
        }
        profile.check_weights(&config.weights, config.mode).map_err(anyhow::Error::msg)?;
        if config.mode == Mode::Static {
            profile.check_activations(&config.activations).map_err(anyhow::Error::msg)?;
        }
        config.equalize = self.choice.equalize;
        config.calibration.clone_from(&self.choice.calibration);
        let any_few_bits = config.weights.element.bits() < 8 || self.max_bytes.is_some();
        let few_bits = any_few_bits && self.data.data.is_some();
        config.weight_rounding = match self.choice.rounding {
            Some(Rounding::Gptq) => WeightRounding::Gptq,
            None if few_bits => WeightRounding::Gptq,
            Some(Rounding::Nearest) | None => WeightRounding::Nearest,
        };
        if any_few_bits {
            config.weight_range = WeightRange::Mse;
        }
        config.statistics = match self.choice.correct {
            Some(Correct::Mean) => Statistics::Mean,
            Some(Correct::MeanAndSpread) => Statistics::MeanAndSpread,
            None if few_bits => Statistics::MeanAndSpread,
            Some(Correct::None) | None => Statistics::Keep,
        };
        if self.data.data.is_none()
            && (config.weight_rounding == WeightRounding::Gptq
                || config.statistics != Statistics::Keep)
        {
            bail!("--rounding gptq and --correct look at data\n  help: --data FILE");
        }
        let matcher = |pattern: &str| {
            NodeRule::matcher(pattern)
                .map_err(|error| anyhow::anyhow!("`{pattern}` is no pattern of names: {error}"))
        };
        for pattern in &self.exclude {
            config.rules.push(NodeRule {
                nodes: Some(matcher(pattern)?),
                float: true,
                ..NodeRule::default()
            });
        }
        if !self.exclude_op.is_empty() {
            config.rules.push(NodeRule {
                ops: self.exclude_op.clone(),
                float: true,
                ..NodeRule::default()
            });
        }
        for text in &self.rule {
            let (pattern, said) = text
                .rsplit_once(':')
                .filter(|(_, said)| said.contains('=') || *said == "float")
                .or_else(|| text.split_once(':'))
                .with_context(|| format!("`{text}` is no rule; PATTERN:w=int4/channel is one"))?;
            let mut rule = NodeRule { nodes: Some(matcher(pattern)?), ..NodeRule::default() };
            for part in said.split(',') {
                match part.split_once('=') {
                    Some(("w", scheme)) => rule.weights = Some(parse(scheme)?),
                    Some(("x", scheme)) => rule.activations = Some(parse(scheme)?),
                    None if part == "float" => rule.float = true,
                    _ => bail!("`{part}` in rule `{text}`: w=SCHEME, x=SCHEME and float are known"),
                }
            }
            config.rules.push(rule);
        }
        Ok(config)
    }

    fn say_model(
        &self,
        ui: &Ui,
        model: &scrimp::onnx::Model,
        job: &Job<'_>,
        feeds: [Option<&Feed>; 2],
    ) -> anyhow::Result<()> {
        ui.say(format_args!(
            "model      {} · opset {} · {} · {} bytes · target {}",
            self.model.display(),
            model.opset(),
            ui::count(model.graph().node.len(), "node"),
            ui::number(std::fs::metadata(&self.model)?.len()),
            job.config.profile.name,
        ))?;
        for (label, feed) in ["calibrate", "judge"].into_iter().zip(feeds) {
            if let Some(feed) = feed {
                ui.say(format_args!("{label:<10} {}", feed.about()))?;
            }
        }
        Ok(())
    }
}

fn json(
    ui: &Ui,
    outcome: &Outcome,
    path: &std::path::Path,
    [before, bytes, predicted]: [u64; 3],
) -> anyhow::Result<()> {
    for layer in &outcome.layers {
        ui.json(&serde_json::json!({
            "type": "layer", "node": layer.node, "op": layer.op, "sqnr_db": finite(layer.sqnr_db),
        }))?;
    }
    let comparison = outcome.comparison.as_ref();
    let outputs: Vec<_> = comparison
        .iter()
        .flat_map(|c| &c.outputs)
        .map(|o| serde_json::json!({"name": o.name, "sqnr_db": finite(o.sqnr_db), "largest": o.largest}))
        .collect();
    let classes = comparison.and_then(|c| c.classes);
    ui.json(&serde_json::json!({
        "type": "model",
        "path": path,
        "float_bytes": before,
        "bytes": bytes,
        "predicted_bytes": predicted,
        "seconds": outcome.time.as_secs_f64(),
        "samples": outcome.quantized.samples,
        "outputs": outputs,
        "accuracy_float": classes.and_then(|c| c.float),
        "accuracy": classes.and_then(|c| c.quantized),
        "same": classes.map(|c| c.same),
        "latency": outcome.latency.iter().map(|l| serde_json::json!({
            "batch": l.batch, "float_ms": l.float_ms, "ms": l.quantized_ms,
        })).collect::<Vec<_>>(),
        "fallback": outcome.fallback,
        "fewer": outcome.fewer.iter().map(|(node, scheme)| serde_json::json!({
            "node": node, "scheme": scheme,
        })).collect::<Vec<_>>(),
    }))?;
    Ok(())
}

/// Numbers that JSON has; an error that does not exist is null.
fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// The file of this name and ending.
fn beside(path: &std::path::Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// One bar for each stage, and a line for a search.
struct Bars<'a> {
    ui: &'a Ui,
    current: Option<(&'static str, Option<indicatif::ProgressBar>, Instant)>,
    quiet: bool,
}

impl Bars<'_> {
    fn show(&mut self, news: News) -> bool {
        match news {
            News::Stage { stage, done, total } => self.stage(stage, done, total),
            News::Search(search) if !self.quiet => {
                self.clear();
                // A reader that is gone ends the command where it writes its result.
                self.search(&search).ok();
            }
            News::Search(_) => {}
        }
        !interrupt::requested()
    }

    fn stage(&mut self, stage: &'static str, done: usize, total: usize) {
        if self.current.as_ref().is_none_or(|(shown, ..)| *shown != stage) {
            self.clear();
            let bar = self.ui.step_bar(format!("{stage:<10}"), total as u64);
            self.current = Some((stage, bar, Instant::now()));
        }
        if let Some((_, Some(bar), _)) = &self.current {
            bar.set_position(done as u64);
        }
    }

    fn search(&self, search: &Search) -> anyhow::Result<()> {
        let kept = match search.kept {
            0 => String::new(),
            count => format!(" · {} kept from before", ui::count(count, "measurement")),
        };
        self.ui.say(format_args!(
            "search     {} of {:.2} s, then up to {} of {:.1} s: about {:.0} s{kept}",
            ui::count(search.layers, "layer"),
            search.layer_time.as_secs_f64(),
            ui::count(search.trials, "trial"),
            search.trial_time.as_secs_f64(),
            search.time().as_secs_f64().ceil(),
        ))?;
        Ok(())
    }

    fn clear(&mut self) {
        if let Some((_, Some(bar), _)) = self.current.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bars<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

fn say_outcome(
    ui: &Ui,
    outcome: &Outcome,
    job: &Job<'_>,
    [before, bytes, predicted]: [u64; 3],
) -> anyhow::Result<()> {
    let quantized = &outcome.quantized;
    say_plan(ui, outcome, job)?;
    ui.say(format_args!(
        "time       {:.2} s for {}",
        outcome.time.as_secs_f64(),
        if quantized.samples > 0 {
            ui::count(quantized.samples, "sample")
        } else {
            "weights alone".into()
        },
    ))?;
    let did = if outcome.ran { "loads and runs it" } else { "loads it" };
    ui.say(format_args!("runtime    {} {did}", job.engine.version()))?;
    let mut table = Table::new(&[
        ("", Side::Left),
        ("float", Side::Right),
        (job.config.weights.name, Side::Right),
        ("", Side::Left),
    ]);
    if let Some(comparison) = &outcome.comparison {
        if let Some(classes) = comparison.classes {
            if let (Some(float), Some(now)) = (classes.float, classes.quantized) {
                let change = format!("{:+.2}", 100.0 * (now - float));
                table.row(["top-1".into(), share(float), share(now), change]);
            }
            table.row(["same top-1".into(), String::new(), share(classes.same), String::new()]);
        }
        for output in &comparison.outputs {
            table.row([
                format!("SQNR of {}", output.name),
                String::new(),
                format!("{:.1} dB", output.sqnr_db),
                format!("largest difference {:.3}", output.largest),
            ]);
        }
    }
    table.row([
        "file bytes".into(),
        ui::number(before),
        ui::number(bytes),
        format!("{:.2}x (predicted {})", before as f64 / bytes as f64, ui::number(predicted)),
    ]);
    for latency in &outcome.latency {
        let ratio = latency.float_ms / latency.quantized_ms;
        let said = if ratio >= 1.0 {
            format!("{ratio:.2}x faster")
        } else {
            format!("{:.2}x SLOWER", 1.0 / ratio)
        };
        table.row([
            format!("latency b{}", latency.batch),
            format!("{:.2} ms", latency.float_ms),
            format!("{:.2} ms", latency.quantized_ms),
            said,
        ]);
    }
    ui.table(&table)?;
    if !outcome.latency.is_empty() && !job.engine.is_deployed() {
        ui.say(
            "  rten computes codes in floats: its times say nothing of ONNX Runtime or OpenVINO",
        )?;
    }
    if !outcome.layers.is_empty() {
        let worst: Vec<String> = outcome
            .layers
            .iter()
            .take(5)
            .map(|layer| format!("{} {:.1} dB", layer.node, layer.sqnr_db))
            .collect();
        ui.say(format_args!("worst layers alone  {}", worst.join(" · ")))?;
    }
    Ok(())
}

fn share(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn say_plan(ui: &Ui, outcome: &Outcome, job: &Job<'_>) -> anyhow::Result<()> {
    let quantized = &outcome.quantized;
    let counts = census(quantized);
    let list = |of: &dyn Fn(&quantize::Count) -> usize| -> Vec<String> {
        let some = counts.iter().filter(|count| of(count) > 0);
        some.map(|count| format!("{} {}", of(count), count.op)).collect()
    };
    let whole = list(&|count| count.quantized);
    let weights = list(&|count| count.weights);
    let float = list(&|count| count.float);
    for line in &quantized.upgraded {
        ui.say(format_args!("opset {:<4} {line}", quantized.model.opset()))?;
    }
    let folded = &quantized.simplified;
    if folded.norms + folded.biases > 0 {
        ui.say(format_args!(
            "folded     {}, {}",
            ui::count(folded.norms, "batch norm"),
            ui::count(folded.biases, "bias addition"),
        ))?;
    }
    if quantized.equalized > 0 {
        ui.say(format_args!(
            "equalized  the channels of {}",
            ui::count(quantized.equalized, "tensor")
        ))?;
    }
    if !whole.is_empty() {
        ui.say(format_args!(
            "plan       {} → w {}, x {} ({})",
            whole.join(", "),
            job.config.weights.text,
            job.config.activations.text,
            job.config.calibration,
        ))?;
    }
    if !weights.is_empty() {
        ui.say(format_args!("weights    {} → {}", weights.join(", "), job.config.weights.text))?;
    }
    for (scheme, names) in by_scheme(&outcome.fewer) {
        ui.say(format_args!("fewer bits  {scheme}: {}", names.join(", ")))?;
    }
    if !outcome.fallback.is_empty() {
        ui.say(format_args!("back to float  {}", outcome.fallback.join(", ")))?;
    }
    let nothing =
        quantized.plan.nodes.iter().filter(|node| matches!(node.state, State::Float(_))).count();
    ui.say(format_args!(
        "float      {}{}",
        ui::count(nothing, "node"),
        if float.is_empty() { String::new() } else { format!(": {}", float.join(", ")) },
    ))?;
    Ok(())
}

/// The layers of each scheme, in the order of their first ones.
fn by_scheme(fewer: &[(String, String)]) -> Vec<(&str, Vec<&str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for (node, scheme) in fewer {
        match found.iter_mut().find(|(known, _)| known == scheme) {
            Some((_, nodes)) => nodes.push(node),
            None => found.push((scheme, vec![node])),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use scrimp::onnx::PROFILES;
    use scrimp::onnx::calibration::CALIBRATIONS;

    #[derive(clap::Parser)]
    struct Alone {
        #[command(flatten)]
        _choice: super::ChoiceFlags,
    }

    #[test]
    fn sizes_have_units() {
        for (text, count) in [
            ("300000", 300_000),
            ("300kB", 300_000),
            ("0.3 MB", 300_000),
            ("2KiB", 2048),
            ("7B", 7),
        ] {
            assert_eq!(super::bytes(text), Ok(count), "{text}");
        }
        for text in ["", "0", "-3kB", "many", "NaN", "inf", "1e30", "3 bytes"] {
            assert!(super::bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_help_names_every_target_and_calibration() {
        let help = Alone::command().render_long_help().to_string();
        let words: Vec<&str> = help.split([' ', ',', '\n', '[', ']']).collect();
        let targets = PROFILES.iter().map(|profile| profile.name);
        for name in targets.chain(CALIBRATIONS.iter().map(|method| method.name())) {
            assert!(words.contains(&name), "{name}: {help}");
        }
    }
}
