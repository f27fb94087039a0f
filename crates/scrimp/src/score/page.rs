//! A survey as a page: one file of HTML, pictures included, that needs nothing else.

use scrimp_codec::FAMILIES;
use serde::Serialize;

use super::picture::{self, Point};
use super::{
    CLASSES, Distribution, Outcome, Score, Survey, TensorScores, Totals, family_of, front,
};
pub use crate::page::PageError;
use crate::page::{self, grouped};
use crate::plot::{HUES, number};

/// Rows that the tables of single tensors may have together; in larger surveys they hold the Pareto fronts alone.
const MAX_ROWS: usize = 20_000;

/// Characters of a family's syntax that fit in a legend.
const MAX_SYNTAX: usize = 28;

/// The page of a survey.
///
/// # Errors
/// [`PageError`], which is a defect.
pub fn render(survey: &Survey) -> Result<String, PageError> {
    page::render(include_str!("page.html"), &Page::of(survey))
}

/// All that the template puts in its places.
#[derive(Serialize)]
struct Page {
    title: String,
    files: Vec<String>,
    facts: String,
    legend: Vec<Hue>,
    classes: Vec<String>,
    totals: Option<Overall>,
    best: Vec<BestRow>,
    tensors: Vec<Section>,
    left_out: Vec<(String, String)>,
}

/// A family of schemes and its colour.
#[derive(Serialize)]
struct Hue {
    class: usize,
    is_diamond: bool,
    family: String,
}

/// All tensors together.
#[derive(Serialize)]
struct Overall {
    facts: String,
    picture: Option<String>,
    undrawn: Option<String>,
    best: Vec<BestCell>,
    rows: Vec<Row>,
}

/// A scheme in a table. Every number comes with what the table is sorted by.
#[derive(Serialize)]
struct Row {
    scheme: String,
    hue: usize,
    is_front: bool,
    reason: Option<String>,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    text: String,
    sort: f64,
}

/// The best scheme of a class.
#[derive(Serialize)]
struct BestCell {
    class: String,
    scheme: Option<String>,
    hue: usize,
    db: String,
    sort: f64,
}

/// The best of each class for a tensor.
#[derive(Serialize)]
struct BestRow {
    id: usize,
    name: String,
    values: Cell,
    cells: Vec<BestCell>,
}

/// One tensor.
#[derive(Serialize)]
struct Section {
    id: usize,
    name: String,
    facts: String,
    spread: Vec<String>,
    histogram: String,
    picture: Option<String>,
    undrawn: Option<String>,
    rows: Vec<Row>,
    is_cut: bool,
}

/// The families of a survey's schemes, in the order in which they come.
struct Families {
    of_scheme: Vec<usize>,
    /// Their places in [`FAMILIES`].
    places: Vec<Option<usize>>,
}

impl Families {
    fn of(survey: &Survey) -> Self {
        let mut places = Vec::new();
        let of_scheme = survey.schemes.iter().map(|scheme| {
            let family = family_of(scheme);
            places.iter().position(|known| *known == family).unwrap_or_else(|| {
                places.push(family);
                places.len() - 1
            })
        });
        Self { of_scheme: of_scheme.collect(), places }
    }

    fn legend(&self) -> Vec<Hue> {
        let hue = |(class, place): (usize, &Option<usize>)| {
            let syntax = place.and_then(|place| FAMILIES.get(place)).map_or("", |f| f.syntax());
            let mut family: String = syntax.chars().take(MAX_SYNTAX).collect();
            if family.len() < syntax.len() {
                family.push('…');
            }
            Hue { class: class % HUES, is_diamond: class >= HUES, family }
        };
        self.places.iter().enumerate().map(hue).collect()
    }
}

impl Page {
    fn of(survey: &Survey) -> Self {
        let families = Families::of(survey);
        let mut files: Vec<String> = Vec::new();
        for tensor in &survey.tensors {
            if !files.contains(&tensor.file) {
                files.push(tensor.file.clone());
            }
        }
        let many_files = files.len() > 1;
        let title = |tensor: &TensorScores| {
            if many_files {
                format!("{} · {}", tensor.file, tensor.name)
            } else {
                tensor.name.clone()
            }
        };
        let values: u64 = survey.tensors.iter().map(TensorScores::values).sum();
        let is_cut = survey.tensors.len() * survey.schemes.len() > MAX_ROWS;
        let tensors = survey.tensors.iter().enumerate();
        Self {
            title: files.join(", "),
            facts: format!(
                "{} tensors · {} values · {} schemes",
                grouped(survey.tensors.len() as u64),
                grouped(values),
                survey.schemes.len()
            ),
            files,
            legend: families.legend(),
            classes: CLASSES.iter().map(|class| format!("≤ {class} bits")).collect(),
            totals: overall(survey, &survey.totals(), &families),
            best: tensors
                .clone()
                .map(|(id, tensor)| BestRow {
                    id,
                    name: title(tensor),
                    values: Cell { text: grouped(tensor.values()), sort: tensor.values() as f64 },
                    cells: best_cells(survey, &families, |class| tensor.best(class)),
                })
                .collect(),
            tensors: tensors
                .map(|(id, tensor)| section(survey, &families, tensor, id, title(tensor), is_cut))
                .collect(),
            left_out: survey
                .left_out
                .iter()
                .map(|left| (left.name.clone(), left.reason.clone()))
                .collect(),
        }
    }
}

fn overall(survey: &Survey, totals: &Totals, families: &Families) -> Option<Overall> {
    if totals.tensors.is_empty() {
        return None;
    }
    let scores: Vec<(usize, &Score)> = totals.scores().collect();
    let (picture, undrawn) = picture(survey, families, &scores);
    let rows = rows(survey, families, scores.into_iter().map(|(place, s)| (place, Ok(s))), false);
    let of = match totals.tensors.len() {
        all if all == survey.tensors.len() => "all tensors".to_owned(),
        some => format!("the {some} of {} tensors that every scheme takes", survey.tensors.len()),
    };
    Some(Overall {
        facts: format!("{} values, {of}", grouped(totals.values)),
        picture,
        undrawn,
        best: best_cells(survey, families, |class| totals.best(class)),
        rows,
    })
}

fn section(
    survey: &Survey,
    families: &Families,
    tensor: &TensorScores,
    id: usize,
    name: String,
    is_cut: bool,
) -> Section {
    let scores: Vec<(usize, &Score)> = tensor.scores().collect();
    let (picture, undrawn) = picture(survey, families, &scores);
    let outcomes = tensor.outcomes.iter().map(|outcome| match outcome {
        Outcome::Scored(score) => Ok(score),
        Outcome::Unfit(reason) | Outcome::Failed(reason) => Err(reason.as_str()),
    });
    let extents: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
    Section {
        id,
        name,
        facts: format!(
            "[{}] · {} · {} values",
            extents.join(", "),
            tensor.dtype,
            grouped(tensor.values())
        ),
        spread: spread(&tensor.distribution),
        histogram: picture::histogram(&tensor.distribution),
        picture,
        undrawn,
        rows: rows(survey, families, outcomes.enumerate(), is_cut),
        is_cut,
    }
}

/// Error against size, and a sentence on the schemes that have no place there.
fn picture(
    survey: &Survey,
    families: &Families,
    scores: &[(usize, &Score)],
) -> (Option<String>, Option<String>) {
    let points = scores.iter().filter_map(|&(place, score)| {
        Some(Point {
            label: survey.schemes[place].to_string(),
            bits: score.bits_per_value()?,
            db: score.loss.sqnr_db()?,
            family: families.of_scheme[place],
        })
    });
    let points: Vec<Point> = points.collect();
    let names = |is_meant: fn(f64) -> bool| {
        let names: Vec<&str> =
            points.iter().filter(|p| is_meant(p.db)).map(|p| p.label.as_str()).collect();
        match names.len() {
            0..=6 => names.join(", "),
            many => format!("{} and {} more", names[..5].join(", "), many - 5),
        }
    };
    let mut notes = Vec::new();
    let (exact, lost) = (names(|db| db == f64::INFINITY), names(|db| db < 0.0 || db.is_nan()));
    if !exact.is_empty() {
        notes.push(format!("Without any loss: {exact}."));
    }
    if !lost.is_empty() {
        notes.push(format!("Further off than zeros would be: {lost}."));
    }
    (picture::trade_off(&points), Some(notes.join(" ")).filter(|notes| !notes.is_empty()))
}

/// The rows of a table, those that have a score by rising size.
fn rows<'a>(
    survey: &Survey,
    families: &Families,
    outcomes: impl Iterator<Item = (usize, Result<&'a Score, &'a str>)>,
    only_front: bool,
) -> Vec<Row> {
    let (mut scored, mut others) = (Vec::new(), Vec::new());
    for (place, outcome) in outcomes {
        match outcome {
            Ok(score) => scored.push((place, score)),
            Err(reason) => others.push((place, reason)),
        }
    }
    let bits = |score: &Score| score.bits_per_value().unwrap_or(0.0);
    let db = |score: &Score| score.loss.sqnr_db().unwrap_or(f64::NEG_INFINITY);
    scored.sort_by(|(_, left), (_, right)| {
        bits(left).total_cmp(&bits(right)).then(db(right).total_cmp(&db(left)))
    });
    let points: Vec<(f64, f64)> = scored.iter().map(|(_, s)| (bits(s), db(s))).collect();
    let front = front(&points);
    let row = |place: usize, is_front, reason, cells| Row {
        scheme: survey.schemes[place].to_string(),
        hue: families.of_scheme[place] % HUES,
        is_front,
        reason,
        cells,
    };
    let scored = scored
        .iter()
        .enumerate()
        .map(|(i, (place, score))| row(*place, front.contains(&i), None, cells(score)));
    let scored = scored.filter(|row| row.is_front || !only_front);
    let others = others
        .into_iter()
        .filter(|_| !only_front)
        .map(|(place, reason)| row(place, false, Some(reason.to_owned()), Vec::new()));
    scored.chain(others).collect()
}

/// The numbers of a score, in the order of the columns of the template.
fn cells(score: &Score) -> Vec<Cell> {
    let loss = &score.loss;
    let cell = |value: Option<f64>, text: fn(f64) -> String| match value {
        Some(value) => Cell { text: text(value), sort: sortable(value) },
        None => Cell { text: "–".into(), sort: sortable(f64::NEG_INFINITY) },
    };
    vec![
        cell(score.bits_per_value(), |bits| format!("{bits:.2}")),
        cell(loss.sqnr_db(), decibels),
        cell(loss.cosine(), |cosine| format!("{cosine:.6}")),
        cell(Some(loss.max_error), number),
        cell(loss.max_error_to_amax(), percent),
        cell(loss.zeroed_share(), percent),
        cell(score.saturated_share(), percent),
        cell(score.encode_gbps(), |rate| format!("{rate:.2}")),
        cell(score.decode_gbps(), |rate| format!("{rate:.2}")),
    ]
}

fn best_cells<'a>(
    survey: &Survey,
    families: &Families,
    best: impl Fn(f64) -> Option<(usize, &'a Score)>,
) -> Vec<BestCell> {
    let cell = |class: f64| {
        let best = best(class);
        let db = best.and_then(|(_, score)| score.loss.sqnr_db());
        BestCell {
            class: format!("≤ {class} bits"),
            scheme: best.map(|(place, _)| survey.schemes[place].to_string()),
            hue: best.map_or(0, |(place, _)| families.of_scheme[place] % HUES),
            db: db.map_or_else(String::new, decibels),
            sort: sortable(db.unwrap_or(f64::NEG_INFINITY)),
        }
    };
    CLASSES.into_iter().map(cell).collect()
}

/// What there is to say about a histogram.
fn spread(distribution: &Distribution) -> Vec<String> {
    let share = |count| distribution.share(count).map_or_else(|| "–".to_owned(), percent);
    let mut facts = vec![
        format!("mean {}", number(distribution.mean)),
        format!("standard deviation {}", number(distribution.std)),
        format!("from {} to {}", number(distribution.min), number(distribution.max)),
        format!("within σ: {} (normal: 68.3 %)", share(distribution.within_one)),
        format!("within 2.5σ: {} (normal: 98.8 %)", share(distribution.within_outer)),
    ];
    let drawn: u64 = distribution.bins.iter().sum();
    let mut count = |count: u64, what: &str| {
        if count > 0 {
            facts.push(format!("{} {what}", grouped(count)));
        }
    };
    count(distribution.zeros, "zeros");
    count(distribution.values - drawn, "beyond ±5σ, not drawn");
    count(distribution.nonfinite, "NaN or infinite, left out");
    facts
}

/// `21.4 dB`, or words where there is no number.
fn decibels(db: f64) -> String {
    match db {
        f64::INFINITY => "exact".into(),
        f64::NEG_INFINITY => "−∞ dB".into(),
        _ => format!("{db:.1} dB").replace('-', "−"),
    }
}

fn percent(share: f64) -> String {
    match 100.0 * share {
        0.0 => "0".into(),
        tiny if tiny < 0.01 => "< 0.01 %".into(),
        percent if percent.is_finite() => format!("{percent:.2} %"),
        _ => "∞".into(),
    }
}

/// A number that JSON and the page's script can take.
fn sortable(value: f64) -> f64 {
    value.clamp(-1e300, 1e300)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::{LeftOut, Scorer};
    use scrimp_codec::{Scheme, Stream};
    use scrimp_files::Dtype;

    fn survey() -> Survey {
        let schemes = ["int4", "int4/channel", "e4m3fn", "f32"].map(str::parse::<Scheme>);
        let schemes: Vec<Scheme> = schemes.into_iter().map(Result::unwrap).collect();
        let x: Vec<f32> = (0..96u8).map(|i| (f32::from(i) - 47.0) / 31.0).collect();
        let mut scorer = Scorer::default();
        let mut outcome = |scheme: &Scheme, shape: &[usize]| match scheme.check(shape) {
            Ok(()) => Outcome::Scored(scorer.score(&x, shape, scheme, &Stream::new(0, 0)).unwrap()),
            Err(problem) => Outcome::Unfit(problem.to_string()),
        };
        let mut tensor = |name: &str, shape: &[usize]| TensorScores {
            file: "a.npy".into(),
            name: name.into(),
            shape: shape.to_vec(),
            dtype: Dtype::F32,
            distribution: Distribution::of(&x),
            outcomes: schemes.iter().map(|scheme| outcome(scheme, shape)).collect(),
        };
        let tensors = vec![tensor("fc<script>", &[8, 12]), tensor("bias", &[96])];
        let left_out = vec![LeftOut {
            file: "a.npy".into(),
            name: "steps".into(),
            dtype: Dtype::I64,
            reason: "integer".into(),
        }];
        Survey { schemes, tensors, left_out }
    }

    #[test]
    fn the_page_is_whole_and_foreign_names_stay_text() {
        let page = render(&survey()).unwrap();
        assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
        assert!(page.contains("fc&lt;script&gt;") && !page.contains("fc<script>"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<svg").count(), 5);
        for text in ["steps", "integer", "at least two axes", "Without any loss: f32", "exact"] {
            assert!(page.contains(text), "{text}");
        }
        // A single file: nothing is fetched from anywhere.
        let links = page.replace("http://www.w3.org/2000/svg", "");
        for outside in ["http", "src=", "@import", "url("] {
            assert!(!links.contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_survey_without_scores_has_a_page() {
        assert!(render(&Survey::default()).unwrap().contains("</html>"));
        let mut survey = survey();
        for tensor in &mut survey.tensors {
            tensor.outcomes.fill(Outcome::Failed("element 3 is NaN".into()));
        }
        assert!(render(&survey).unwrap().contains("element 3 is NaN"));
    }

    #[test]
    fn shares_and_decibels_are_short() {
        assert_eq!((percent(0.0), percent(0.00001)), ("0".into(), "< 0.01 %".into()));
        assert_eq!((percent(0.25), percent(f64::INFINITY)), ("25.00 %".into(), "∞".into()));
        assert_eq!((decibels(f64::INFINITY), decibels(-1.25)), ("exact".into(), "−1.2 dB".into()));
        assert_eq!((grouped(999), grouped(1_234_567)), ("999".into(), "1,234,567".into()));
    }
}
