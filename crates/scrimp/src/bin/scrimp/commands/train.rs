use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use indicatif::ProgressBar;
use scrimp::recipe::Source;
use scrimp::run::{self, Facts, Report, Row, RunError, RunId, RunRequest, RunResult, Watch};
use scrimp::train::Role;
use scrimp::train::kernels::Level;
use scrimp::train::trainer::{EpochReport, StepReport};

use super::plan::RecipeArgs;
use crate::allocator;
use crate::interrupt;
use crate::ui::{self, Side, Table, Ui};

/// Train a network with a number format on every tensor, beside the float run.
///
/// Examples:
///   scrimp train recipes/quickstart.toml
///   scrimp train recipes/mnist.toml --baseline --seeds 3 --data-dir ~/data
///   scrimp train recipes/mnist.toml --set epochs=1 --set optimizer.lr=0.002
///   scrimp train recipes/mnist.toml --resume runs/mnist-1
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Train {
    #[command(flatten)]
    recipe: RecipeArgs,

    /// Add the run without any rule, which the others are compared with
    #[arg(long, help_heading = "Recipe")]
    baseline: bool,

    /// Repeat every run with so many seeds, counted up from the recipe's
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Recipe")]
    seeds: u32,

    /// Where data sets lie [default: the folder that `SCRIMP_DATA` names]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    data_dir: Option<PathBuf>,

    /// The run folder to make [default: runs/RECIPE-1, -2, ...]
    #[arg(long, value_name = "DIR", conflicts_with = "resume", help_heading = "Output")]
    out: Option<PathBuf>,

    /// Go on with the run in this folder: what is done stays, the rest starts at the last checkpoint
    #[arg(long, value_name = "RUN_FOLDER", help_heading = "Output")]
    resume: Option<PathBuf>,

    /// Print JSON, one object per line, instead of tables
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Train {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        allocator::keep_memory();
        let source = self.recipe.read()?;
        if self.resume.as_ref().is_some_and(|f| !f.is_dir()) {
            bail!("{}: there is no such run folder", self.resume.unwrap_or_default().display());
        }
        let folder = self.resume.clone().or(self.out.clone());
        let request = RunRequest {
            folder: folder.unwrap_or_else(|| run::new_folder("runs".as_ref(), &source.path)),
            resume: self.resume.is_some(),
            data_dir: self.data_dir.clone(),
            device: self.recipe.device.clone(),
            baseline: self.baseline,
            seeds: self.seeds,
            source,
        };
        interrupt::catch();
        let variants = request.source.recipe.variants(request.baseline);
        let mut watch = Live {
            ui,
            source: &request.source,
            name_width: variants.iter().map(|v| v.name.len()).max().unwrap_or_default(),
            has_seeds: request.seeds > 1,
            json: self.json,
            bar: None,
            begun: Instant::now(),
            run_begun: Instant::now(),
            last: None,
        };
        let report = match run::run(&request, &mut watch) {
            Ok(report) => report,
            Err(RunError::Stopped { folder }) => {
                watch.clear();
                writeln!(
                    std::io::stderr(),
                    "stopped · saved in {}\n  to go on: {}",
                    folder.display(),
                    command_to_resume(&folder)
                )
                .ok();
                return Err(interrupt::Interrupted { outcome: "the run can be resumed" }.into());
            }
            Err(e) => {
                watch.clear();
                return Err(match e {
                    // As itself, since the messages of files say their cause.
                    RunError::File(e) => e.into(),
                    e => e.into(),
                });
            }
        };
        if self.json {
            return Ok(ui.json(
                &serde_json::json!({"type": "report", "folder": request.folder, "report": report}),
            )?);
        }
        ui.say("")?;
        ui.table(&table(&report))?;
        let against = match float_run(&report) {
            Some(float) => format!("; Δ and x: against {}", float.variant),
            None => String::new(),
        };
        ui.say(format_args!(
            "bits per value and bytes count scales; b/step: bytes of one batch{against}"
        ))?;
        ui.say(format_args!("total {}", clock(watch.begun.elapsed())))?;
        ui.say_made(&request.folder)?;
        Ok(ui.say(format_args!("  next: scrimp inspect {}", ui::shell_word(&request.folder)))?)
    }
}

/// The command line that goes on with a stopped run.
fn command_to_resume(folder: &std::path::Path) -> String {
    let mut args = std::env::args_os().skip(1).peekable();
    let mut words = vec!["scrimp".to_owned()];
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        if text == "--out" || text == "--resume" {
            args.next();
        } else if !(text.starts_with("--out=") || text.starts_with("--resume=")) {
            // A flag keeps its dashes; what a shell would take apart is quoted as in any word.
            let (dashes, rest) = text.split_at(text.len() - text.trim_start_matches('-').len());
            words.push(format!("{dashes}{}", ui::shell_word(rest.as_ref())));
        }
    }
    words.extend(["--resume".to_owned(), ui::shell_word(folder)]);
    words.join(" ")
}

/// Shows a run while it goes on: a bar on a terminal, else a line for each epoch.
struct Live<'a> {
    ui: &'a Ui,
    source: &'a Source,
    /// The length of the longest name of a variant.
    name_width: usize,
    /// Whether a line has to say which seed it speaks of.
    has_seeds: bool,
    json: bool,
    bar: Option<ProgressBar>,
    begun: Instant,
    run_begun: Instant,
    last: Option<EpochReport>,
}

impl Live<'_> {
    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// `run 2/4  int8`, and the seed where there are several.
    fn title(&self, run: &RunId) -> String {
        let (digits, name) = (run.of.to_string().len(), self.name_width);
        let seed = if self.has_seeds { format!("  seed {}", run.seed) } else { String::new() };
        format!("run {:>digits$}/{}  {:<name$}{seed}", run.number, run.of, run.variant)
    }

    /// A line that stays. What cannot be printed is no reason to stop a training run.
    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => {
                self.ui.say(text).ok();
            }
        }
    }
}

impl Watch for Live<'_> {
    fn begin(&mut self, facts: &Facts) {
        let recipe = &self.source.recipe;
        let [train, validation, test] = facts.images.map(|n| ui::number(n as u64));
        if self.json {
            let facts = serde_json::json!({
                "type": "begin", "data": recipe.data, "model": recipe.model, "images": facts.images,
                "parameters": facts.parameters, "runs": facts.runs, "threads": rayon::current_num_threads(),
            });
            self.ui.json(&facts).ok();
            return;
        }
        self.line(&format!(
            "{} ({}, {train} train / {validation} validation / {test} test) · {} ({} parameters) · flex, {} · seed {}",
            recipe.data,
            facts.data_note,
            recipe.model,
            ui::number(facts.parameters as u64),
            ui::count(rayon::current_num_threads() as u64, "thread"),
            recipe.seed
        ));
        if Level::detected() == Level::Scalar {
            self.line(ui::PLAIN_LOOPS);
        }
        if facts.images[1] == 0 {
            self.line("no validation images: nothing may be chosen by the test figures below");
        }
    }

    fn run(&mut self, run: &RunId, done: u64, steps: u64) {
        self.run_begun = Instant::now();
        self.last = None;
        self.clear();
        let bar = if self.json { None } else { self.ui.step_bar(self.title(run), steps) };
        if let Some(bar) = bar {
            // Whatever moves the bar draws it, so it has its looks by now.
            bar.set_position(done);
            bar.reset_eta();
            self.bar = Some(bar);
        }
        if done > 0 {
            self.line(&format!(
                "{}  resumes at step {} of {}",
                self.title(run),
                ui::number(done),
                ui::number(steps)
            ));
        }
    }

    fn step(&mut self, report: &StepReport) {
        if let Some(bar) = &self.bar {
            bar.set_position(report.step);
            bar.set_message(format!(
                "epoch {}/{}  loss {:.3}  {:.1} ms/step",
                report.epoch + 1,
                self.source.recipe.epochs,
                report.loss,
                report.seconds * 1e3
            ));
        }
    }

    fn epoch(&mut self, run: &RunId, report: &EpochReport) {
        if self.json {
            let line = serde_json::json!({"type": "epoch", "variant": run.variant, "seed": run.seed, "epoch": report});
            self.ui.json(&line).ok();
        } else if self.bar.is_none() {
            let validation = report
                .validation
                .map_or(String::new(), |v| format!("  validation {:.2} %", 100.0 * v.accuracy));
            self.line(&format!(
                "{}  epoch {}/{}  loss {:.3}{validation}  {}",
                self.title(run),
                report.epoch,
                run.epochs,
                report.loss,
                clock(self.run_begun.elapsed())
            ));
        }
        self.last = Some(report.clone());
    }

    fn finished(&mut self, run: &RunId, result: &RunResult, resumed: bool) {
        self.clear();
        if self.json {
            self.ui
                .json(&serde_json::json!({"type": "run", "resumed": resumed, "result": result}))
                .ok();
            return;
        }
        let time = if resumed { "done before".into() } else { clock(self.run_begun.elapsed()) };
        let step = result.step_ms.map_or(String::new(), |ms| format!("  {ms:.1} ms/step"));
        let loss = self.last.as_ref().map_or(String::new(), |e| format!("  loss {:.3}", e.loss));
        self.line(&format!(
            "{}  test {:.2} %{loss}{step}  {time}",
            self.title(run),
            100.0 * result.test.accuracy
        ));
        if result.replaced_values > 0 {
            self.line(&format!(
                "  {} were NaN or infinite and replaced",
                ui::count(result.replaced_values, "value")
            ));
        }
    }

    fn stop_requested(&self) -> bool {
        interrupt::requested()
    }
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// One row for each variant.
fn table(report: &Report) -> Table {
    let float = float_run(report);
    let mut columns = vec![("scheme", Side::Left), ("test acc", Side::Right)];
    columns.extend(float.map(|_| ("Δ", Side::Right)));
    columns.extend(
        [
            "w bits",
            "x bits",
            "y bits",
            "d bits",
            "packed w b",
            "x y b/step",
            "d b/step",
            "packed m v",
            "step",
        ]
        .map(|title| (title, Side::Right)),
    );
    let mut table = Table::new(&columns);
    for row in &report.rows {
        let several = row.seeds.len() > 1;
        let sd = if several { format!(" ±{:.2}", 100.0 * row.accuracy.sd) } else { String::new() };
        let difference = float.map(|float| {
            if float.variant == row.variant {
                String::new()
            } else {
                format!("{:+.2}", 100.0 * (row.accuracy.mean - float.accuracy.mean))
            }
        });
        let speed = match (row.step_ms, float.and_then(|float| float.step_ms)) {
            (Some(ms), Some(float)) => format!("{ms:.1} ms {:.2}x", ms / float),
            (Some(ms), None) => format!("{ms:.1} ms"),
            (None, _) => "-".into(),
        };
        let (activations, gradients) =
            (bytes(row, &[Role::Input, Role::Output]), bytes(row, &GRADIENTS));
        let mut cells =
            vec![row.variant.clone(), format!("{:.2} %{sd}", 100.0 * row.accuracy.mean)];
        cells.extend(difference);
        cells.extend([
            bits(row, &[Role::Weight]),
            bits(row, &[Role::Input]),
            bits(row, &[Role::Output]),
            bits(row, &GRADIENTS),
            ui::number(row.sizes.packed_bytes),
            ui::number(activations as u64),
            ui::number(gradients as u64),
            ui::number(bytes(row, &STATE) as u64),
            speed,
        ]);
        table.row(cells);
    }
    table
}

/// The variant that holds every tensor in f32, which the others are compared with.
fn float_run(report: &Report) -> Option<&Row> {
    let is_float = |row: &&Row| row.sizes.roles.values().all(|s| s.bytes == s.f32_bytes);
    report.rows.iter().find(is_float)
}

/// What the optimizer keeps.
const STATE: [Role; 6] = [
    Role::Moment1,
    Role::BiasMoment1,
    Role::Moment2,
    Role::BiasMoment2,
    Role::LargestMoment2,
    Role::BiasLargestMoment2,
];

const GRADIENTS: [Role; 4] = [Role::OutputGrad, Role::InputGrad, Role::WeightGrad, Role::BiasGrad];

fn bytes(row: &Row, roles: &[Role]) -> usize {
    roles.iter().filter_map(|r| row.sizes.roles.get(r)).map(|s| s.bytes).sum()
}

fn bits(row: &Row, roles: &[Role]) -> String {
    let values: usize = roles.iter().filter_map(|r| row.sizes.roles.get(r)).map(|s| s.values).sum();
    format!("{:.2}", bytes(row, roles) as f64 * 8.0 / values.max(1) as f64)
}
