//! Runs while they go on, for every command that trains.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use scrimp::run::{Facts, RunError, RunId, RunResult, Watch};
use scrimp::train::kernels::Level;
use scrimp::train::trainer::{EpochReport, StepReport};
use scrimp::train::weights::WeightsReport;

use crate::interrupt::{self, Interrupted};
use crate::ui::{self, Ui};

/// Where a command says how far its runs have come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Lines to read.
    Text,
    /// JSON, one object per line.
    Json,
    /// Only the bar of a terminal, since the standard output is for something else.
    Bar,
}

impl Mode {
    /// JSON where that is asked for, else lines to read.
    pub fn of(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }
}

/// Shows runs while they go on: a bar on a terminal, else a line for each epoch.
pub struct Live<'a> {
    ui: &'a Ui,
    /// The length of the longest name of a run.
    name_width: usize,
    /// Whether a line has to say which seed it speaks of.
    has_seeds: bool,
    mode: Mode,
    bar: Option<ProgressBar>,
    begun: Instant,
    run_begun: Instant,
    /// What was said of data and model, which is said once where runs agree on them.
    announced: String,
    epochs: u64,
    last: Option<EpochReport>,
    pace: Option<Pace>,
}

/// How long steps take, to tell how long those that are left will.
#[derive(Default)]
struct Pace {
    seconds: f64,
    steps: u64,
    /// Steps of this process in the run that goes on.
    current: u64,
    runs_left: usize,
    steps_left: u64,
}

impl<'a> Live<'a> {
    /// Nothing is shown yet; `names` are those that runs will have.
    pub fn new<'n>(
        ui: &'a Ui,
        names: impl Iterator<Item = &'n str>,
        has_seeds: bool,
        mode: Mode,
    ) -> Self {
        Self {
            ui,
            name_width: names.map(|name| name.chars().count()).max().unwrap_or_default(),
            has_seeds,
            mode,
            bar: None,
            begun: Instant::now(),
            run_begun: Instant::now(),
            announced: String::new(),
            epochs: 0,
            last: None,
            pace: None,
        }
    }

    /// The time since the command began.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// What a command fails with whose runs ended early. Where the user wanted that, `outcome` is what it means, and the
    /// command that goes on is printed.
    pub fn ended(&mut self, error: RunError, outcome: &'static str) -> anyhow::Error {
        self.clear();
        match error {
            RunError::Stopped { folder } => {
                writeln!(
                    std::io::stderr(),
                    "stopped · saved in {}\n  to go on: {}",
                    folder.display(),
                    command_to_resume(&folder)
                )
                .ok();
                Interrupted { outcome }.into()
            }
            // As itself, since the messages of files say their cause.
            RunError::File(e) => e.into(),
            e => e.into(),
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// `run 2/4  int8`, and the seed where there are several.
    fn title(&self, run: &RunId) -> String {
        let (digits, name) = (run.of.to_string().len(), self.name_width);
        let seed = if self.has_seeds { format!("  seed {}", run.seed) } else { String::new() };
        format!("run {:>digits$}/{}  {:<name$}{seed}", run.number, run.of, run.label)
    }

    /// A line that stays. What cannot be printed is no reason to stop a training run.
    fn line(&self, text: &str) {
        match &self.bar {
            _ if self.mode == Mode::Bar => {}
            Some(bar) => bar.println(text),
            None => {
                self.ui.say(text).ok();
            }
        }
    }

    /// A line of JSON, with the point that a run of a sweep belongs to.
    fn json(&self, run: &RunId, mut value: serde_json::Value) {
        if let (Some(fields), Some(point)) = (value.as_object_mut(), &run.point) {
            fields.insert("point".into(), point.as_str().into());
        }
        self.ui.json(&value).ok();
    }

    /// Takes down the time of the run that ends, and says how long those that are left will take.
    fn left(&mut self, run_steps: u64) -> String {
        let seconds = self.run_begun.elapsed().as_secs_f64();
        let Some(pace) = &mut self.pace else { return String::new() };
        pace.seconds += seconds;
        pace.steps += pace.current;
        pace.runs_left = pace.runs_left.saturating_sub(1);
        pace.steps_left = pace.steps_left.saturating_sub(run_steps);
        if pace.runs_left == 0 || pace.steps == 0 {
            return String::new();
        }
        let left = pace.seconds / pace.steps as f64 * pace.steps_left as f64;
        let runs = ui::count(pace.runs_left as u64, "run");
        format!("  {runs} left, about {}", clock(Duration::from_secs_f64(left)))
    }
}

impl Watch for Live<'_> {
    fn begin(&mut self, facts: &Facts) {
        let [train, validation, test] = facts.images.map(|n| ui::number(n as u64));
        let line = format!(
            "{} ({}, {train} train / {validation} validation / {test} test) · {} ({} parameters) · flex, {} · seed {}",
            facts.data,
            facts.data_note,
            facts.model,
            ui::number(facts.parameters as u64),
            ui::count(rayon::current_num_threads() as u64, "thread"),
            facts.seed
        );
        let line = match &facts.weights {
            Some(weights) => format!("{line}\n{}", loaded(weights)),
            None => line,
        };
        if self.announced == line {
            return;
        }
        let is_first = self.announced.is_empty();
        if self.mode == Mode::Json {
            let facts = serde_json::json!({
                "type": "begin", "data": facts.data, "model": facts.model, "images": facts.images,
                "parameters": facts.parameters, "weights": facts.weights, "runs": facts.runs,
                "threads": rayon::current_num_threads(),
            });
            self.ui.json(&facts).ok();
        } else {
            self.line(&line);
            if is_first && Level::detected() == Level::Scalar {
                self.line(ui::PLAIN_LOOPS);
            }
            if facts.images[1] == 0 {
                self.line("no validation images: nothing may be chosen by the test figures below");
            }
        }
        self.announced = line;
    }

    fn run(&mut self, run: &RunId, done: u64, steps: u64) {
        self.run_begun = Instant::now();
        self.last = None;
        self.epochs = run.epochs;
        self.clear();
        let bar =
            if self.mode == Mode::Json { None } else { self.ui.step_bar(self.title(run), steps) };
        if let Some(bar) = bar {
            // Whatever moves the bar draws it, so it has its looks by now.
            bar.set_position(done);
            bar.reset_eta();
            self.bar = Some(bar);
        }
        if done > 0 && self.mode != Mode::Json {
            self.line(&format!(
                "{}  resumes at step {} of {}",
                self.title(run),
                ui::number(done),
                ui::number(steps)
            ));
        }
    }

    fn step(&mut self, report: &StepReport) {
        if let Some(pace) = &mut self.pace {
            pace.current += 1;
        }
        if let Some(bar) = &self.bar {
            bar.set_position(report.step);
            bar.set_message(format!(
                "epoch {}/{}  loss {:.3}  {:.1} ms/step",
                report.epoch + 1,
                self.epochs,
                report.loss,
                report.seconds * 1e3
            ));
        }
    }

    fn epoch(&mut self, run: &RunId, report: &EpochReport) {
        if self.mode == Mode::Json {
            let line = serde_json::json!({"type": "epoch", "variant": run.variant, "seed": run.seed, "epoch": report});
            self.json(run, line);
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
        if self.mode == Mode::Json {
            let line = serde_json::json!({"type": "run", "resumed": resumed, "result": result});
            return self.json(run, line);
        }
        let time = if resumed { "done before".into() } else { clock(self.run_begun.elapsed()) };
        let left = if resumed { String::new() } else { self.left(result.steps) };
        let step = result.step_ms.map_or(String::new(), |ms| format!("  {ms:.1} ms/step"));
        let loss = self.last.as_ref().map_or(String::new(), |e| format!("  loss {:.3}", e.loss));
        self.line(&format!(
            "{}  test {:.2} %{loss}{step}  {time}{left}",
            self.title(run),
            100.0 * result.test.accuracy
        ));
        if result.replaced_values > 0 {
            self.line(&format!(
                "  {} were NaN or infinite and replaced",
                ui::count(result.replaced_values, "value")
            ));
        }
        if let Some(state) = result.loss_scale.filter(|state| state.skipped > 0) {
            self.line(&format!(
                "  {} skipped by the loss scale, which is {} now",
                ui::count(state.skipped, "step"),
                state.scale
            ));
        }
    }

    fn failed(&mut self, run: &RunId, reason: &str) {
        self.clear();
        if self.mode == Mode::Json {
            let line = serde_json::json!({"type": "failed", "variant": run.variant, "seed": run.seed, "reason": reason});
            return self.json(run, line);
        }
        self.line(&format!("{}  failed: {reason}", self.title(run)));
    }

    fn left(&mut self, runs: usize, steps: u64) {
        let pace = self.pace.get_or_insert_default();
        (pace.runs_left, pace.steps_left, pace.current) = (runs, steps, 0);
    }

    fn stop_requested(&self) -> bool {
        interrupt::requested()
    }
}

/// Minutes and seconds, and hours where there are some.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        hours => format!("{hours}:{:02}:{seconds:02}", minutes % 60),
    }
}

/// What became of the keys of a file of first values, in a line.
fn loaded(report: &WeightsReport) -> String {
    let WeightsReport { file, dropped_prefix, used, unexpected, ignored, .. } = report;
    let of = report.tensors();
    let mut line = if *used == of {
        format!("weights {}: all {}", file.display(), ui::count(of as u64, "tensor"))
    } else {
        format!("weights {}: {used} of {}", file.display(), ui::count(of as u64, "tensor"))
    };
    // Writing to a string cannot fail.
    if !dropped_prefix.is_empty() {
        let _ = write!(line, " (without the prefix `{dropped_prefix}`)");
    }
    let fresh: Vec<&str> = report.fresh().collect();
    if !fresh.is_empty() {
        let _ = write!(line, " · random: {}", names(&fresh));
    }
    if !unexpected.is_empty() {
        let _ = write!(line, " · not of the network: {}", names(unexpected));
    }
    if !ignored.is_empty() {
        let ignored: Vec<String> = ignored.iter().map(|(key, n)| format!("{n} {key}")).collect();
        let _ = write!(line, " · without a part here: {}", ignored.join(", "));
    }
    line
}

/// The first few names, and how many more there are; `result.json` has all.
fn names(names: &[impl AsRef<str>]) -> String {
    const MOST: usize = 10;
    let shown: Vec<&str> = names.iter().take(MOST).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(MOST) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The command line that goes on with what was stopped.
fn command_to_resume(folder: &Path) -> String {
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
