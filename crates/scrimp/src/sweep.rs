//! Sweeps: one recipe at every point of a grid, with several seeds, and what they gave in one table.
//!
//! ```text
//! runs/formats-1/
//!   sweep.toml          the sweep, with the recipe and all that was set in it
//!   results.json        one row for each point and variant, with every run of it
//!   results.csv         the same rows
//!   report.html         the table, training curves, and accuracy against bits, on one page
//!   lr=0.1,int8/        the run folder of a point, as `scrimp train` makes it
//! ```
//!
//! Results are written anew whenever a run ends, so that they can be looked at while others go on. A run that goes wrong
//! is a finding and keeps no other from its turn.

use std::path::{Path, PathBuf};

use scrimp_files::FileError;

use crate::document::Document;
use crate::run::{self, Inputs, RunError, RunId, RunRequest, RunResult, Watch, Work};

mod grid;
mod page;
mod picture;
mod results;

pub use grid::{AxisConfig, Point, PointConfig, Sweep, SweepFile};
pub use results::{Bits, Results, Row, SeedRun, State};

/// Which points of a sweep to carry out, and where.
#[derive(Clone, Debug)]
pub struct SweepRequest {
    /// The sweep.
    pub sweep: Sweep,
    /// The sweep's folder.
    pub folder: PathBuf,
    /// Whether the folder holds an earlier part of this sweep.
    pub resume: bool,
    /// Where data sets lie; `None`: where `SCRIMP_DATA` says.
    pub data_dir: Option<PathBuf>,
    /// The device.
    pub device: String,
    /// Whether each point has its turn; the others keep what they have.
    pub chosen: Vec<bool>,
}

/// The files of a sweep beside the folders of its points.
const FILES: [&str; 4] = [SWEEP, "results.json", "results.csv", "report.html"];

/// The file that tells the folder of a sweep from others.
pub(crate) const SWEEP: &str = "sweep.toml";

/// Carries out a sweep.
///
/// # Errors
/// If a recipe does not fit, data or folder cannot be had, or the watcher asks to stop. Training that goes wrong is no
/// error but a row.
pub fn run(request: &SweepRequest, watch: &mut dyn Watch) -> Result<Results, RunError> {
    let SweepRequest { sweep, folder, .. } = request;
    // All that can be found wrong is found before the first step.
    check_folder(request)?;
    let mut results = Results::new(sweep, &request.device)?;
    let mut inputs = Inputs::default();
    let mut works = Vec::new();
    for (place, point) in sweep.points.iter().enumerate() {
        let root = folder.join(&point.name);
        let resume = request.resume && root.join(run::RECIPE).exists();
        if !request.chosen[place] {
            if resume {
                run::check_recipe(&point.source, &root)?;
            }
            continue;
        }
        let one = RunRequest {
            source: point.source.clone(),
            resume,
            folder: root,
            data_dir: request.data_dir.clone(),
            device: request.device.clone(),
            baseline: false,
            seeds: sweep.seeds,
        };
        let work = Work::new(one, &mut inputs).map_err(|e| of_point(sweep, point, e))?;
        works.push((place, work));
    }
    std::fs::create_dir_all(folder).map_err(|e| FileError::io("make", folder, e))?;
    let text = crate::document::to_toml(&sweep.resolved)?;
    run::write(&folder.join(SWEEP), text.as_bytes())?;
    results.read(sweep, folder)?;

    let all: Vec<(usize, &Work, RunId)> =
        works.iter().flat_map(|(i, w)| w.runs().into_iter().map(move |id| (*i, w, id))).collect();
    let (of, mut steps_left) = (all.len(), all.iter().map(|(_, work, _)| work.steps()).sum());
    let mut done: Vec<RunResult> = Vec::new();
    for (n, (place, work, id)) in all.iter().enumerate() {
        let point = &sweep.points[*place];
        if watch.stop_requested() {
            return Err(RunError::Stopped { folder: folder.clone() });
        }
        let is_first = n == 0 || all[n - 1].0 != *place;
        if is_first {
            work.begin().map_err(|e| of_point(sweep, point, e))?;
            watch.begin(&run::Facts { runs: of, ..work.facts() });
            done.clear();
        }
        let id = RunId {
            number: n + 1,
            of,
            label: sweep.label(point, &id.variant),
            point: Some(point.name.clone()),
            ..id.clone()
        };
        watch.left(of - n, steps_left);
        let state = match work.carry_out(&id, watch) {
            Ok(result) => {
                done.push(result.clone());
                State::Done(Box::new(result))
            }
            Err(RunError::Train { problem, .. }) => {
                let reason = problem.to_string();
                watch.failed(&id, &reason);
                State::Failed(reason)
            }
            Err(RunError::Stopped { .. }) => {
                return Err(RunError::Stopped { folder: folder.clone() });
            }
            Err(e) => return Err(of_point(sweep, point, e)),
        };
        steps_left -= work.steps();
        results.set(*place, &id, state);
        // The point is whole as a run of its own.
        if done.len() == work.runs().len() {
            work.finish(&done)?;
        }
        results.write(sweep, folder)?;
    }
    Ok(results)
}

/// An error of a point; what is wrong with its recipe is shown where it stands.
fn of_point(sweep: &Sweep, point: &Point, error: RunError) -> RunError {
    match error {
        RunError::Recipe(e) => sweep.of_point(point, e).into(),
        // Files and folders have the point in their paths.
        e @ (RunError::File(_) | RunError::Folder { .. }) => e,
        e => RunError::Point { point: point.name.clone(), problem: Box::new(e) },
    }
}

/// Checks that the sweep's folder holds no other, or the beginning of this one.
fn check_folder(request: &SweepRequest) -> Result<(), RunError> {
    let SweepRequest { sweep, folder, resume, .. } = request;
    let path = folder.join(SWEEP);
    let wrong = |reason: String| Err(RunError::Folder { folder: folder.clone(), reason });
    if *resume {
        let before = Document::read::<SweepFile>(&path, "sweep").and_then(|d| d.parse());
        let before: SweepFile = match before {
            Ok(before) => before,
            Err(e) => return wrong(format!("it holds no sweep to resume: {}", e.message)),
        };
        if before.seeds > sweep.seeds {
            return wrong(format!(
                "it was begun with {} seeds, of which some would be left out now\n  help: give as \
                 many, or more",
                before.seeds
            ));
        }
        // Points may be added, and what they share may only be what it was.
        for name in run::folders(folder)? {
            let begun = folder.join(&name).join(run::RECIPE).exists();
            if begun && sweep.points.iter().all(|point| point.name != name) {
                return wrong(format!(
                    "it was begun with the point `{name}`, which would be left out now\n  help: \
                     `--only` leaves points for another time"
                ));
            }
        }
    } else {
        for file in [SWEEP, run::RECIPE] {
            if folder.join(file).exists() {
                let what = if file == SWEEP { "sweep" } else { "run" };
                return wrong(format!("it holds a {what} already; `--resume` goes on with it"));
            }
        }
    }
    Ok(())
}

/// Where the files of a point's run lie.
fn run_folder(folder: &Path, point: &Point, variant: &str, seed: u32) -> PathBuf {
    run::run_folder(&folder.join(&point.name), variant, seed)
}
