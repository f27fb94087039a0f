use std::path::PathBuf;

use clap::Args;
use scrimp::codec::Scheme;
use scrimp::recipe::Source;
use scrimp::train::compute::Compute;
use scrimp::train::kernels::{Kind, Level, register_peak};
use scrimp::train::models;
use scrimp::train::optimizers::{Adam, OptimizerConfig, Sgd};
use scrimp::train::plan::{PlanError, PlanRequest, Saved};
use scrimp::train::rules::Rule;
use scrimp::train::stepper::{self, ProductTime, StepJob, Stepper};
use scrimp::train::tap::Arithmetic;

use crate::allocator;
use crate::ui::{self, Side, Table, Ui};

/// Time the training steps of a network on this machine, in float and in few bits.
///
/// The steps of all rows alternate, so that a slow minute of the machine hits them alike; images are noise, on whose
/// values the time does not depend.
///
/// Example:
///   scrimp bench lenet
///   scrimp bench resnet20 --batch 128 --scheme e4m3fn --engine
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Bench {
    /// The network
    #[arg(value_name = "MODEL", value_parser = clap::builder::PossibleValuesParser::new(models::MODELS.iter().map(|m| m.name).chain([TEXT])))]
    model: String,

    /// Images in a batch
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,

    /// Channels, height and width of an image [default: 1x28x28 for mlp and lenet, else 3x32x32]
    #[arg(long, value_name = "CxHxW", value_parser = image)]
    image: Option<[usize; 3]>,

    /// One more row: this scheme on all operands
    #[arg(long = "scheme", value_name = "SCHEME")]
    schemes: Vec<Scheme>,

    /// One more row for each variant of this recipe: its rules and optimizer, on MODEL
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,

    /// The optimizer of all other rows
    #[arg(long, default_value = "sgd", value_parser = ["sgd", "adam"])]
    optimizer: String,

    /// One more row: the engine's own layers, in f32
    #[arg(long)]
    engine: bool,

    /// Only the rows of these names
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Steps of each row that count
    #[arg(long, default_value_t = 9, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,

    /// Print one JSON object per row and product, and one with the verdict
    #[arg(long, help_heading = "Output")]
    json: bool,
}

fn image(text: &str) -> Result<[usize; 3], String> {
    let sizes: Option<Vec<usize>> =
        text.split('x').map(|s| s.parse().ok().filter(|n| (1..=4096).contains(n))).collect();
    sizes
        .and_then(|s| <[usize; 3]>::try_from(s).ok())
        .ok_or_else(|| "an image is three sizes of 1 to 4096, such as 3x32x32".into())
}

/// The network that classifies text, which recipes do not train yet.
const TEXT: &str = "text-transformer";

/// The row that others are compared with.
const FLOAT: &str = "f32";

type MakeStepper = fn(&StepJob) -> Result<Box<dyn Stepper>, PlanError>;

/// A way to make a step.
struct Row {
    name: String,
    stepper: Box<dyn Stepper>,
    /// Seconds of each step that counts.
    seconds: Vec<f64>,
    products: Vec<ProductTime>,
}

impl Row {
    fn typical(&self) -> f64 {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    }

    /// GMAC/s of a product over all layers, and the kind that most of it was computed in.
    fn speed(&self, product: &str) -> Option<(f64, Kind)> {
        let parts: Vec<&ProductTime> =
            self.products.iter().filter(|p| p.product == product).collect();
        let most = parts.iter().max_by(|a, b| a.macs.total_cmp(&b.macs))?.choice.kind;
        let sum = |of: fn(&ProductTime) -> f64| parts.iter().map(|p| of(p)).sum::<f64>();
        let (macs, seconds) = (sum(|p| p.macs), sum(|p| p.seconds));
        (seconds > 0.0).then(|| (macs / seconds * 1e-9, most))
    }
}

/// Steps of each row that only warm up.
const WARM: u32 = 2;

impl Bench {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        let small = ["mlp", "lenet"].contains(&self.model.as_str());
        let image = self.image.unwrap_or(if small { [1, 28, 28] } else { [3, 32, 32] });
        let text = self.model == TEXT;
        anyhow::ensure!(
            !(text && (self.image.is_some() || self.engine)),
            "`{TEXT}` takes no images and has no layers of the engine's own"
        );
        let stepper =
            if text { stepper::text_transformer } else { models::find(&self.model)?.stepper };
        let mut rows = self.rows(stepper, image)?;
        let bar = ui.step_bar(self.model.clone(), u64::from(WARM + self.rounds));
        for round in 0..WARM + self.rounds {
            for row in &mut rows {
                let seconds = row.stepper.step();
                if round + 1 == WARM {
                    // From here on products are timed.
                    row.stepper.products();
                }
                if round >= WARM {
                    row.seconds.push(seconds);
                }
            }
            if let Some(bar) = &bar {
                bar.inc(1);
            }
        }
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        for row in &mut rows {
            row.products = row.stepper.products();
        }
        let threads = rayon::current_num_threads();
        let peaks =
            [Kind::F32, Kind::Bf16, Kind::Int8].map(|kind| (kind, register_peak(kind, threads)));
        if self.json {
            return self.print_json(ui, &rows, &peaks);
        }
        let [c, h, w] = image;
        let level = Level::detected();
        let input = if text { "64 tokens".to_owned() } else { format!("{c}x{h}x{w}") };
        ui.say(format_args!(
            "{} · batch {} · {input} · {} · {} · {}",
            self.model,
            self.batch,
            self.optimizer,
            ui::count(threads as u64, "thread"),
            level.name(),
        ))?;
        if level == Level::Scalar {
            ui.say(ui::PLAIN_LOOPS)?;
        }
        self.print(ui, &rows, &peaks)
    }

    fn rows(&self, stepper: MakeStepper, image: [usize; 3]) -> anyhow::Result<Vec<Row>> {
        let job = |scheme: Option<&Scheme>, compute, arithmetic| StepJob {
            plan: PlanRequest {
                image,
                classes: 10,
                batch: self.batch as usize,
                rules: scheme.map(operands).into_iter().collect(),
                device: "flex".into(),
                compute,
                optimizer: match self.optimizer.as_str() {
                    "adam" => OptimizerConfig::Adam(Adam::default()),
                    _ => OptimizerConfig::Sgd(Sgd::default()),
                },
                exchange: None,
                saved: Saved::default(),
            },
            arithmetic,
        };
        let [bf16, int8] = ["bf16", "int8"].map(|s| s.parse::<Scheme>().expect("it is a scheme"));
        let (auto, emulate) = (Compute::Auto, Compute::Emulate);
        let ours = Arithmetic::Kernels;
        let mut jobs = vec![
            (FLOAT.to_owned(), job(None, auto, ours)),
            ("bf16".to_owned(), job(Some(&bf16), auto, ours)),
            ("int8".to_owned(), job(Some(&int8), auto, ours)),
            ("int8, emulated".to_owned(), job(Some(&int8), emulate, ours)),
        ];
        jobs.extend(self.schemes.iter().map(|s| (s.to_string(), job(Some(s), auto, ours))));
        if let Some(path) = &self.recipe {
            let source = Source::read(path, &[])?;
            for variant in source.recipe.variants(false) {
                let mut job = job(None, variant.compute, ours);
                job.plan.rules = variant.rules;
                job.plan.saved = variant.saved;
                job.plan.optimizer = source.recipe.optimizer.clone();
                job.plan.exchange.clone_from(&source.recipe.exchange);
                let taken = jobs.iter().any(|(name, _)| *name == variant.name);
                let name = if taken { format!("{} (recipe)", variant.name) } else { variant.name };
                jobs.push((name, job));
            }
        }
        if self.engine {
            jobs.push(("f32, engine's own".to_owned(), job(None, emulate, Arithmetic::Engine)));
        }
        if !self.only.is_empty() {
            let names: Vec<String> = jobs.iter().map(|(name, _)| name.clone()).collect();
            if let Some(unknown) = self.only.iter().find(|name| !names.contains(name)) {
                anyhow::bail!("there is no row `{unknown}`\n  help: rows are {}", names.join("; "));
            }
            jobs.retain(|(name, _)| self.only.contains(name));
        }
        allocator::set_memory(jobs.iter().any(|(_, job)| job.plan.saved == Saved::Packed));
        jobs.into_iter()
            .map(|(name, job)| {
                let stepper = stepper(&job)?;
                Ok(Row { name, stepper, seconds: Vec::new(), products: Vec::new() })
            })
            .collect()
    }

    #[expect(clippy::unused_self, reason = "beside its sibling that prints JSON")]
    fn print(&self, ui: &Ui, rows: &[Row], peaks: &[(Kind, f64)]) -> anyhow::Result<()> {
        let mut table = Table::new(&[
            ("step", Side::Left),
            ("ms", Side::Right),
            ("of f32", Side::Right),
            ("y", Side::Right),
            ("dx", Side::Right),
            ("dw", Side::Right),
            ("GMAC/s (share of what registers alone reach)", Side::Left),
        ]);
        let float = float_step(rows);
        for row in rows {
            let speed = |product| row.speed(product).map_or("-".into(), |(s, _)| format!("{s:.0}"));
            let share = |product| {
                row.speed(product).map(|(s, kind)| {
                    let peak = peaks.iter().find(|(k, _)| *k == kind).map_or(f64::NAN, |(_, p)| *p);
                    format!("{} {:.0} %", kind.name(), 100.0 * s / peak)
                })
            };
            let shares: Vec<String> = ["y", "dx", "dw"].into_iter().filter_map(share).collect();
            table.row([
                row.name.clone(),
                format!("{:.2}", 1e3 * row.typical()),
                float.map_or("-".into(), |float| format!("{:.2}x", row.typical() / float)),
                speed("y"),
                speed("dx"),
                speed("dw"),
                shares.join(" · "),
            ]);
        }
        ui.table(&table)?;
        let peaks: Vec<String> =
            peaks.iter().map(|(kind, peak)| format!("{} {peak:.0}", kind.name())).collect();
        ui.say(format_args!("registers alone: {} GMAC/s", peaks.join(", ")))?;
        ui.say(verdict(rows))?;
        Ok(())
    }

    fn print_json(&self, ui: &Ui, rows: &[Row], peaks: &[(Kind, f64)]) -> anyhow::Result<()> {
        for (kind, peak) in peaks {
            ui.json(&serde_json::json!({
                "type": "peak", "kind": kind.name(), "gmac_per_s": peak,
            }))?;
        }
        for row in rows {
            ui.json(&serde_json::json!({
                "type": "step", "name": row.name, "model": self.model, "batch": self.batch,
                "threads": rayon::current_num_threads(), "median_ms": 1e3 * row.typical(),
                "of_f32": float_step(rows).map(|float| row.typical() / float), "steps": row.seconds.len(),
            }))?;
            for p in &row.products {
                ui.json(&serde_json::json!({
                    "type": "product", "name": row.name, "layer": p.layer, "product": p.product,
                    "choice": p.choice, "gmac_per_s": p.macs / p.seconds * 1e-9,
                    "ms_per_step": 1e3 * p.seconds / row.seconds.len() as f64,
                }))?;
            }
        }
        ui.json(&serde_json::json!({"type": "verdict", "text": verdict(rows)}))?;
        Ok(())
    }
}

/// The scheme on everything that is multiplied.
fn operands(scheme: &Scheme) -> Rule {
    let some = || Some(scheme.clone());
    Rule { x: some(), w: some(), dy: some(), ..Rule::new("*") }
}

/// Seconds of the float step, where it is a row.
fn float_step(rows: &[Row]) -> Option<f64> {
    rows.iter().find(|row| row.name == FLOAT).map(Row::typical)
}

/// Whether low precision pays here.
fn verdict(rows: &[Row]) -> String {
    let few = rows.iter().filter(|r| r.name != FLOAT && !r.name.contains(','));
    let best = few.min_by(|a, b| a.typical().total_cmp(&b.typical()));
    let share = |row: &Row| float_step(rows).map(|float| row.typical() / float);
    match best.and_then(|row| Some((row, share(row)?))) {
        Some((row, share)) if share < 0.95 => format!(
            "low precision pays here: a step in {} takes {share:.2} of the float step",
            row.name
        ),
        Some((row, share)) => format!(
            "low precision does not pay here: the best, {}, takes {share:.2} of the float step",
            row.name
        ),
        None => "there is nothing to compare: one row".into(),
    }
}
