//! What a sweep gave: one row for each point and variant.

use std::fmt::Write as _;
use std::path::Path;

use scrimp_train::Role;
use serde::{Serialize, Serializer};

use super::{Sweep, page};
use crate::csv;
use crate::recipe::RecipeError;
use crate::run::{self, GRADIENTS, RoleSizes, RunError, RunFailure, RunId, RunResult, Spread};

/// What a sweep gave.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The names of the axes.
    pub axes: Vec<String>,
    /// One row for each point and variant, in the order of the grid.
    pub rows: Vec<Row>,
}

/// A row of the table: a variant of a point, over its seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What tables call it.
    pub label: String,
    /// The point.
    pub point: String,
    /// The point's name on each axis.
    pub coordinates: Vec<String>,
    /// The variant of the recipe.
    pub variant: String,
    /// The model.
    pub model: String,
    /// The data set.
    pub data: String,
    /// Test accuracy after the last epoch, a share of 1, over the seeds that are done.
    pub accuracy: Option<Spread>,
    /// The row whose accuracy and time this one is compared with: of those that hold every tensor in f32 the one that is
    /// alike on most axes.
    pub baseline: Option<String>,
    /// Mean accuracy less that of the baseline, a share of 1.
    pub difference: Option<f64>,
    /// Bits per value, scales included.
    pub bits: Bits,
    /// Bytes of weights and biases, packed.
    pub packed_bytes: Option<u64>,
    /// Median milliseconds of a step: the median over the seeds.
    pub step_ms: Option<f64>,
    /// Milliseconds of a step against those of the baseline.
    pub step_ratio: Option<f64>,
    /// Every run.
    pub runs: Vec<SeedRun>,
    #[serde(skip)]
    sizes: RoleSizes,
    #[serde(skip)]
    place: usize,
}

/// Bits per value of groups of tensors, scales included: as stored for weights of runs that are done, else as planned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bits {
    /// Weights.
    pub w: Option<f64>,
    /// Inputs and outputs of layers.
    pub xy: Option<f64>,
    /// Gradients.
    pub d: Option<f64>,
    /// What workers send of the gradients, where there are some.
    pub a: Option<f64>,
    /// Every tensor of a step.
    pub all: Option<f64>,
}

impl Bits {
    fn of(sizes: &RoleSizes) -> Self {
        Self {
            w: run::bits(sizes, &[Role::Weight]),
            xy: run::bits(sizes, &[Role::Input, Role::Output]),
            d: run::bits(sizes, &GRADIENTS),
            a: run::bits(sizes, &[Role::WeightSent, Role::BiasSent]),
            all: run::bits(sizes, &Role::ALL),
        }
    }
}

/// A run of a row.
#[derive(Clone, Debug, Serialize)]
pub struct SeedRun {
    /// Its seed.
    pub seed: u32,
    /// What became of it.
    #[serde(flatten)]
    pub state: State,
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It was not begun, or is not at its end.
    Open,
    /// It went wrong, and why.
    Failed(String),
    /// It is done.
    Done(Box<RunResult>),
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let value = match self {
            Self::Open => serde_json::json!({"status": "open"}),
            Self::Failed(reason) => serde_json::json!({"status": "failed", "reason": reason}),
            Self::Done(result) => serde_json::json!({"status": "done", "result": result}),
        };
        value.serialize(to)
    }
}

impl Row {
    /// The results of the runs that are done.
    pub fn results(&self) -> impl Iterator<Item = &RunResult> {
        self.runs.iter().filter_map(|run| match &run.state {
            State::Done(result) => Some(&**result),
            _ => None,
        })
    }

    /// The runs that went wrong, and why.
    pub fn failures(&self) -> impl Iterator<Item = (u32, &str)> {
        self.runs.iter().filter_map(|run| match &run.state {
            State::Failed(reason) => Some((run.seed, reason.as_str())),
            _ => None,
        })
    }

    /// In a word or two, whether all runs are done.
    pub fn status(&self) -> String {
        let (all, done) = (self.runs.len(), self.results().count());
        match self.failures().count() {
            0 if done == all => "done".into(),
            0 if done == 0 => "not run".into(),
            0 => format!("{done} of {all} done"),
            failed if failed == all => "failed".into(),
            failed => format!("{failed} of {all} failed"),
        }
    }

    /// Whether every tensor is held in f32.
    pub fn is_float(&self) -> bool {
        run::is_float(&self.sizes)
    }
}

impl Results {
    /// The rows of a sweep of which nothing was run, with the bits that the plans announce.
    ///
    /// # Errors
    /// If the rules of a point do not fit its network.
    pub fn new(sweep: &Sweep, device: &str) -> Result<Self, RecipeError> {
        let mut rows = Vec::new();
        for (place, point) in sweep.points.iter().enumerate() {
            let recipe = &point.source.recipe;
            let seeds = run::seeds(recipe, sweep.seeds);
            for variant in recipe.variants(false) {
                let plan = sweep.plan(point, &variant, device)?;
                let sizes = run::role_sizes(&plan, &std::collections::BTreeMap::new());
                rows.push(Row {
                    label: sweep.label(point, &variant.name),
                    point: point.name.clone(),
                    coordinates: point.coordinates.clone(),
                    variant: variant.name,
                    model: recipe.model.clone(),
                    data: recipe.data.clone(),
                    accuracy: None,
                    baseline: None,
                    difference: None,
                    bits: Bits::of(&sizes),
                    packed_bytes: None,
                    step_ms: None,
                    step_ratio: None,
                    runs: seeds.iter().map(|&seed| SeedRun { seed, state: State::Open }).collect(),
                    sizes,
                    place,
                });
            }
        }
        Ok(Self { axes: sweep.axes.clone(), rows })
    }

    /// Reads what the runs of a folder gave.
    pub(super) fn read(&mut self, sweep: &Sweep, folder: &Path) -> Result<(), RunError> {
        for row in &mut self.rows {
            let point = &sweep.points[row.place];
            for one in &mut row.runs {
                let run = super::run_folder(folder, point, &row.variant, one.seed);
                if let Some(result) = run::read_json(&run.join(run::RESULT))? {
                    one.state = State::Done(Box::new(result));
                } else if let Some(failure) = run::read_json::<RunFailure>(&run.join(run::FAILURE))?
                {
                    one.state = State::Failed(failure.reason);
                }
            }
        }
        self.compare();
        Ok(())
    }

    /// Takes down what became of a run.
    pub(super) fn set(&mut self, place: usize, id: &RunId, state: State) {
        let is_it = |row: &&mut Row| row.place == place && row.variant == id.variant;
        let runs = self.rows.iter_mut().find(is_it).into_iter().flat_map(|row| &mut row.runs);
        if let Some(run) = runs.into_iter().find(|run| run.seed == id.seed) {
            run.state = state;
        }
        self.compare();
    }

    /// Works out means, and the differences to the baselines.
    fn compare(&mut self) {
        for row in &mut self.rows {
            let results: Vec<&RunResult> = row.results().collect();
            let accuracies: Vec<f64> = results.iter().map(|r| r.test.accuracy).collect();
            let step_ms = run::median_step(results.iter().copied());
            let first = results.first().map(|r| (r.roles.clone(), r.packed_bytes));
            row.accuracy = (!accuracies.is_empty()).then(|| Spread::of(&accuracies));
            row.step_ms = step_ms;
            if let Some((sizes, packed_bytes)) = first {
                (row.bits, row.sizes) = (Bits::of(&sizes), sizes);
                row.packed_bytes = Some(packed_bytes);
            }
        }
        let floats: Vec<Row> =
            self.rows.iter().filter(|r| r.is_float() && r.accuracy.is_some()).cloned().collect();
        for row in self.rows.iter_mut().filter(|row| !row.is_float()) {
            let alike = |float: &&Row| {
                let axes = float.coordinates.iter().zip(&row.coordinates);
                axes.filter(|(one, other)| one == other).count()
            };
            // Of several that are equally near, the first.
            let nearest = floats.iter().rev().max_by_key(alike);
            row.baseline = nearest.map(|float| float.label.clone());
            let accuracy = row.accuracy.zip(nearest.and_then(|float| float.accuracy));
            row.difference = accuracy.map(|(one, float)| one.mean - float.mean);
            let times = row.step_ms.zip(nearest.and_then(|float| float.step_ms));
            row.step_ratio = times.map(|(one, float)| one / float);
        }
    }

    /// The rows as CSV, with a line of names first. Shares are of 1.
    pub fn csv(&self) -> String {
        table(self)
    }

    /// Writes all that shows what there is by now.
    pub(super) fn write(&self, sweep: &Sweep, folder: &Path) -> Result<(), RunError> {
        run::write_json(&folder.join("results.json"), self)?;
        run::write(&folder.join("results.csv"), self.csv().as_bytes())?;
        let page = page::render(sweep, self, folder)?;
        Ok(run::write(&folder.join("report.html"), page.as_bytes())?)
    }
}

fn table(results: &Results) -> String {
    let mut out = String::from("row,point,variant");
    for axis in &results.axes {
        write!(out, ",{}", csv::cell(&format!("axis_{axis}"))).ok();
    }
    out += ",model,data,status,runs,runs_done,test_accuracy,test_accuracy_sd,baseline,difference,\
            bits_w,bits_xy,bits_d,bits_a,bits_all,packed_bytes,step_ms,step_ratio,reason\n";
    for row in &results.rows {
        let number = |value: Option<f64>| value.map_or_else(String::new, |v| v.to_string());
        let text = [row.label.as_str(), &row.point, &row.variant].map(csv::cell);
        let coordinates = row.coordinates.iter().map(|name| csv::cell(name));
        let several = row.results().count() > 1;
        let reason = row.failures().next().map_or("", |(_, reason)| reason);
        let rest = [
            csv::cell(&row.model),
            csv::cell(&row.data),
            row.status(),
            row.runs.len().to_string(),
            row.results().count().to_string(),
            number(row.accuracy.map(|a| a.mean)),
            number(row.accuracy.map(|a| a.sd).filter(|_| several)),
            csv::cell(row.baseline.as_deref().unwrap_or_default()),
            number(row.difference),
            number(row.bits.w),
            number(row.bits.xy),
            number(row.bits.d),
            number(row.bits.a),
            number(row.bits.all),
            row.packed_bytes.map_or_else(String::new, |bytes| bytes.to_string()),
            number(row.step_ms),
            number(row.step_ratio),
            csv::cell(reason),
        ];
        let cells: Vec<String> = text.into_iter().chain(coordinates).chain(rest).collect();
        out += &cells.join(",");
        out.push('\n');
    }
    out
}
