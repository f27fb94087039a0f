//! A sweep as a page: the table, training curves, and accuracy against bits.

use std::collections::BTreeMap;
use std::path::Path;

use scrimp_train::Role;
use scrimp_train::trainer::EpochReport;
use serde::Serialize;

use super::picture::{self, Curve, Dot};
use super::{Results, Row, Sweep};
use crate::page::{self, grouped};
use crate::run::{self, Metric, News, RunError, Spread};

/// The page of a sweep, from its results and the metrics of its runs.
///
/// # Errors
/// If the metrics of a point cannot be read.
pub(super) fn render(sweep: &Sweep, results: &Results, folder: &Path) -> Result<String, RunError> {
    let mut courses = Vec::new();
    for row in &results.rows {
        courses.push(course(row, &folder.join(&row.point))?);
    }
    Ok(page::render(include_str!("page.html"), &Page::of(sweep, results, &courses))?)
}

/// All that the template puts in its places.
#[derive(Serialize)]
struct Page {
    title: String,
    facts: String,
    axes: Vec<String>,
    /// Whether there is a row to compare with.
    has_baseline: bool,
    has_messages: bool,
    rows: Vec<PageRow>,
    failures: Vec<(String, String)>,
    loss: Option<String>,
    accuracy: Option<String>,
    accuracy_of: &'static str,
    has_bands: bool,
    bits: Vec<Choice>,
    noise: Vec<Choice>,
}

/// A row of the table. Every number comes with what the table is sorted by.
#[derive(Serialize)]
struct PageRow {
    label: String,
    hue: usize,
    dash: usize,
    coordinates: Vec<String>,
    cells: Vec<Cell>,
    status: String,
    is_failed: bool,
}

#[derive(Serialize)]
struct Cell {
    text: String,
    sort: f64,
}

/// One of several pictures, of which the page shows the chosen one.
#[derive(Serialize)]
struct Choice {
    id: &'static str,
    title: &'static str,
    picture: String,
}

/// What a row's runs gave after each epoch, and in the steps that were looked at.
struct Course {
    loss: Vec<(u64, Spread)>,
    training: Vec<(u64, Spread)>,
    validation: Vec<(u64, Spread)>,
    /// Signal to quantization noise of a role's tensors in dB, the mean over layers.
    noise: BTreeMap<Role, Vec<(u64, Spread)>>,
}

/// Reads the course of a row: of the seeds that are done, or where none is, of those that were begun.
fn course(row: &Row, folder: &Path) -> Result<Course, RunError> {
    let done: Vec<u32> = row.results().map(|result| result.seed).collect();
    let meant = |seed: u32| {
        if done.is_empty() { row.runs.iter().any(|r| r.seed == seed) } else { done.contains(&seed) }
    };
    let mut epochs: BTreeMap<u64, Vec<EpochReport>> = BTreeMap::new();
    let mut noise: BTreeMap<Role, BTreeMap<u64, BTreeMap<u32, Vec<f64>>>> = BTreeMap::new();
    for Metric { variant, seed, news } in run::read_metrics(folder)? {
        if variant != row.variant || !meant(seed) {
            continue;
        }
        match news {
            News::Epoch { epoch } => epochs.entry(epoch.epoch).or_default().push(epoch),
            News::Tensor { step, tensor } => {
                if let Some(db) = tensor.sqnr_db {
                    let steps = noise.entry(tensor.role).or_default();
                    steps.entry(step).or_default().entry(seed).or_default().push(db);
                }
            }
        }
    }
    let over_seeds = |(step, seeds): (u64, BTreeMap<u32, Vec<f64>>)| {
        let means: Vec<f64> = seeds.values().map(|layers| Spread::of(layers).mean).collect();
        (step, Spread::of(&means))
    };
    let noise = noise
        .into_iter()
        .map(|(role, steps)| (role, steps.into_iter().map(over_seeds).collect()))
        .collect();
    let spreads = |value: &dyn Fn(&EpochReport) -> Option<f64>| {
        let of = |(epoch, reports): (&u64, &Vec<EpochReport>)| {
            let values: Vec<f64> = reports.iter().filter_map(value).collect();
            (!values.is_empty()).then(|| (*epoch, Spread::of(&values)))
        };
        epochs.iter().filter_map(of).collect()
    };
    Ok(Course {
        loss: spreads(&|e| Some(e.loss)),
        training: spreads(&|e| Some(100.0 * e.accuracy)),
        validation: spreads(&|e| e.validation.map(|v| 100.0 * v.accuracy)),
        noise,
    })
}

impl Page {
    fn of(sweep: &Sweep, results: &Results, courses: &[Course]) -> Self {
        let rows = &results.rows;
        let is_grid = results.axes.len() > 1;
        let has_validation = courses.iter().any(|c| !c.validation.is_empty());
        let draw = |title, time, points: &dyn Fn(&Course) -> Vec<(u64, Spread)>, limits| {
            let curve = |(row, course): (usize, &Course)| Curve {
                label: rows[row].label.clone(),
                row,
                points: points(course),
            };
            let all = courses.iter().enumerate().map(curve).filter(|c| !c.points.is_empty());
            picture::curves(title, time, &all.collect::<Vec<_>>(), limits)
        };
        // A loss that leaps up would press all others to the ground.
        let mut first: Vec<f64> =
            courses.iter().filter_map(|c| c.loss.first()).map(|(_, loss)| loss.mean).collect();
        first.sort_by(f64::total_cmp);
        let most = first.get(first.len() / 2).map_or(f64::INFINITY, |median| 2.0 * median);
        let (accuracy_of, accuracy) = if has_validation {
            (
                "validation accuracy, %",
                draw("validation accuracy, %", "epoch", &|c| c.validation.clone(), (0.0, 100.0)),
            )
        } else {
            (
                "training accuracy, %",
                draw("training accuracy, %", "epoch", &|c| c.training.clone(), (0.0, 100.0)),
            )
        };
        let noise = |role: Role| {
            let points = |c: &Course| c.noise.get(&role).cloned().unwrap_or_default();
            let all = (f64::NEG_INFINITY, f64::INFINITY);
            let picture = draw("signal to quantization noise, dB", "step", &points, all)?;
            Some(Choice { id: role.key(), title: role.key(), picture })
        };
        Self {
            title: sweep.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            facts: facts(sweep, rows),
            // A point of a single axis is called as it is on the axis.
            axes: if is_grid { results.axes.clone() } else { Vec::new() },
            has_baseline: rows.iter().any(|row| row.baseline.is_some()),
            has_messages: rows.iter().any(|row| row.bits.a.is_some()),
            rows: rows.iter().enumerate().map(|(i, row)| page_row(i, row, is_grid)).collect(),
            failures: failures(rows),
            loss: draw("training loss", "epoch", &|c| c.loss.clone(), (0.0, most)),
            accuracy,
            accuracy_of,
            has_bands: sweep.seeds > 1,
            bits: bits_pictures(rows),
            noise: Role::ALL.into_iter().filter_map(noise).collect(),
        }
    }
}

fn facts(sweep: &Sweep, rows: &[Row]) -> String {
    let names = |of: &dyn Fn(&Row) -> &str| {
        let mut names: Vec<&str> = Vec::new();
        for name in rows.iter().map(of) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(", ")
    };
    let runs: usize = rows.iter().map(|row| row.runs.len()).sum();
    let done: usize = rows.iter().map(|row| row.results().count()).sum();
    let failed: usize = rows.iter().map(|row| row.failures().count()).sum();
    let wrong = if failed > 0 { format!(", {failed} failed") } else { String::new() };
    format!(
        "{} on {} · {} points · {} of {} runs done{wrong} · {} seeds",
        names(&|row| &row.model),
        names(&|row| &row.data),
        grouped(sweep.points.len() as u64),
        grouped(done as u64),
        grouped(runs as u64),
        sweep.seeds
    )
}

fn failures(rows: &[Row]) -> Vec<(String, String)> {
    let of = |row: &Row| {
        let one = |(seed, reason): (u32, &str)| {
            (format!("{}, seed {seed}", row.label), reason.to_owned())
        };
        row.failures().map(one).collect::<Vec<_>>()
    };
    rows.iter().flat_map(of).collect()
}

fn page_row(place: usize, row: &Row, is_grid: bool) -> PageRow {
    let cell = |value: Option<f64>, text: &dyn Fn(f64) -> String| Cell {
        text: value.map_or_else(|| "–".into(), text),
        sort: value.unwrap_or(-1e9),
    };
    let bits = |bits| cell(bits, &|bits| format!("{bits:.2}"));
    let several = row.results().count() > 1;
    let accuracy = |mean: f64| match row.accuracy {
        Some(Spread { sd, .. }) if several => format!("{mean:.2} ± {:.2} %", 100.0 * sd),
        _ => format!("{mean:.2} %"),
    };
    PageRow {
        label: row.label.clone(),
        hue: picture::hue(place),
        dash: picture::dash(place),
        coordinates: if is_grid { row.coordinates.clone() } else { Vec::new() },
        cells: vec![
            cell(row.accuracy.map(|a| 100.0 * a.mean), &accuracy),
            cell(row.difference.map(|d| 100.0 * d), &|d| format!("{d:+.2}").replace('-', "−")),
            bits(row.bits.w),
            bits(row.bits.xy),
            bits(row.bits.d),
            bits(row.bits.a),
            bits(row.bits.all),
            cell(row.packed_bytes.map(|b| b as f64), &|_| {
                row.packed_bytes.map_or_else(String::new, grouped)
            }),
            cell(row.step_ms, &|ms| format!("{ms:.1} ms")),
            cell(row.step_ratio, &|ratio| format!("{ratio:.2}x")),
            cell(Some(row.results().count() as f64), &|_| {
                format!("{} of {}", row.results().count(), row.runs.len())
            }),
        ],
        status: row.status(),
        is_failed: row.failures().next().is_some(),
    }
}

fn bits_pictures(rows: &[Row]) -> Vec<Choice> {
    let picture = |id: &'static str, title: &'static str, bits: fn(&Row) -> Option<f64>| {
        let dot = |(place, row): (usize, &Row)| {
            let Spread { mean, sd } = row.accuracy?;
            Some(Dot {
                label: row.label.clone(),
                row: place,
                bits: bits(row)?,
                accuracy: Spread { mean: 100.0 * mean, sd: 100.0 * sd },
            })
        };
        let dots: Vec<Dot> = rows.iter().enumerate().filter_map(dot).collect();
        let picture = picture::accuracy_against_bits(&dots, title)?;
        Some(Choice { id, title, picture })
    };
    let kinds = [
        picture("all", "all tensors", |row| row.bits.all),
        picture("w", "weights", |row| row.bits.w),
        picture("xy", "activations", |row| row.bits.xy),
        picture("d", "gradients", |row| row.bits.d),
        picture("a", "messages", |row| row.bits.a),
    ];
    kinds.into_iter().flatten().collect()
}
