//! Scores for people.

use std::path::Path;

use scrimp::score::{CLASSES, Outcome, Score, Survey, TensorScores, Totals, front};
use scrimp_files::Reader;

use crate::commands::inspect;
use crate::ui::{self, Few, Side, Table, Ui, printable};

/// With more schemes than these, the table over all tensors holds those alone that nothing beats.
const MAX_ROWS: usize = 20;

/// A survey to be told.
pub struct Text<'a> {
    pub survey: &'a Survey,
    pub readers: &'a [Reader],
    /// Whether every row is to be told.
    pub full: bool,
    /// Whether tensors of fewer than two axes need not be told one by one: nobody asked for them by name.
    pub folds_vectors: bool,
    /// How long it took.
    pub seconds: f64,
}

impl Text<'_> {
    /// Prints tables, what was not scored, and the files that were made.
    pub fn print(&self, ui: &Ui, made: &[(&Path, &str)]) -> anyhow::Result<()> {
        for reader in self.readers {
            ui.say(inspect::heading(reader))?;
        }
        if self.full {
            ui.table(&self.every_score())?;
        } else {
            let shown = self.shown();
            ui.table(&self.best_of_each(&shown))?;
            let folded = self.survey.tensors.len() - shown.len();
            if folded > 0 {
                ui.say(format_args!(
                    "and {} of fewer than two axes, which `scrimp encode` keeps: --full lists them",
                    ui::count(folded, "tensor")
                ))?;
            }
        }
        ui.say("")?;
        let totals = self.survey.totals();
        self.overall(ui, &totals)?;
        self.not_scored(ui)?;
        for (path, what) in made {
            let path = printable(&path.display());
            ui.say(format_args!("→ {path} ({what})"))?;
        }
        let values: u64 = self.survey.tensors.iter().map(TensorScores::values).sum();
        ui.say(format_args!(
            "{} of f32 scored under {} in {}",
            decimal_bytes(4 * values),
            ui::count(self.survey.schemes.len(), "scheme"),
            match self.seconds {
                short if short < 0.1 => "less than 0.1 s".to_owned(),
                seconds => format!("{seconds:.1} s"),
            }
        ))?;
        Ok(())
    }

    fn name(&self, tensor: &TensorScores) -> String {
        match self.readers {
            [_] => tensor.name.clone(),
            _ => format!("{}: {}", tensor.file, tensor.name),
        }
    }

    /// The tensors whose best schemes are told. Biases and statistics of batch normalization outnumber the weights of
    /// many networks, and nobody rounds them.
    fn shown(&self) -> Vec<&TensorScores> {
        // What is alone in its file is taken whatever its shape.
        let is_alone = |tensor: &TensorScores| {
            let is_its = |reader: &&Reader| reader.path().display().to_string() == tensor.file;
            self.readers.iter().find(is_its).is_some_and(|reader| reader.entries().len() == 1)
        };
        let is_shown = |tensor: &&TensorScores| {
            !self.folds_vectors || tensor.shape.len() > 1 || is_alone(tensor)
        };
        let shown: Vec<&TensorScores> = self.survey.tensors.iter().filter(is_shown).collect();
        if shown.is_empty() { self.survey.tensors.iter().collect() } else { shown }
    }

    /// One row for each tensor: the best scheme of each class of size.
    fn best_of_each(&self, tensors: &[&TensorScores]) -> Table {
        let titles = CLASSES.map(|class| format!("best ≤{class} bits"));
        let mut columns = vec![("tensor", Side::Left), ("values", Side::Right)];
        for title in &titles {
            columns.extend([(title.as_str(), Side::Left), ("dB", Side::Right)]);
        }
        let mut table = Table::new(&columns);
        for tensor in tensors {
            let mut cells = vec![self.name(tensor), ui::number(tensor.values())];
            for class in CLASSES {
                match tensor.best(class) {
                    Some((place, score)) => {
                        cells.extend([self.survey.schemes[place].to_string(), decibels(score)]);
                    }
                    None => cells.extend(["-".to_owned(), String::new()]),
                }
            }
            table.row(cells);
        }
        table
    }

    /// One row for each tensor and scheme, by rising size.
    fn every_score(&self) -> Table {
        let mut columns = vec![("tensor", Side::Left), ("scheme", Side::Left)];
        columns.extend(FIGURES);
        columns.extend(SPEEDS);
        let mut table = Table::new(&columns);
        for tensor in &self.survey.tensors {
            let scores: Vec<(usize, &Score)> = tensor.scores().collect();
            for (place, score) in by_size(scores) {
                let mut cells = vec![self.name(tensor), self.survey.schemes[place].to_string()];
                cells.extend(figures(score));
                cells.extend(speeds(score));
                table.row(cells);
            }
        }
        table
    }

    /// One row for each scheme, over the tensors that all of them take.
    fn overall(&self, ui: &Ui, totals: &Totals) -> anyhow::Result<()> {
        let (common, all) = (totals.tensors.len(), self.survey.tensors.len());
        if common == 0 {
            let reason =
                "no tensor takes every scheme, so they cannot be compared over all of them";
            return Ok(ui.say(reason)?);
        }
        let of = match common {
            1 if all == 1 => "the tensor".to_owned(),
            1 => format!("the one of {all} tensors that every scheme takes"),
            _ if common == all => format!("all {}", ui::count(all, "tensor")),
            _ => format!("the {common} of {all} tensors that every scheme takes"),
        };
        let values = ui::count(totals.values, "value");
        ui.say_bold(&format!("over {of} · {values}"))?;

        let mut columns = vec![("scheme", Side::Left)];
        columns.extend(FIGURES);
        columns.push(("best", Side::Left));
        columns.extend(SPEEDS);
        let mut table = Table::new(&columns);
        let scores = by_size(totals.scores().collect());
        let points: Vec<(f64, f64)> = scores.iter().map(|(_, score)| point(score)).collect();
        let front = front(&points);
        let is_cut = scores.len() > MAX_ROWS && !self.full;
        for (i, (place, score)) in scores.iter().enumerate() {
            if is_cut && !front.contains(&i) {
                continue;
            }
            let mut cells = vec![self.survey.schemes[*place].to_string()];
            cells.extend(figures(score));
            let is_best = |class: &f64| totals.best(*class).is_some_and(|(best, _)| best == *place);
            let classes: Vec<String> =
                CLASSES.iter().filter(|class| is_best(class)).map(|c| format!("≤{c}")).collect();
            cells.push(classes.join(" "));
            cells.extend(speeds(score));
            table.row(cells);
        }
        ui.table(&table)?;
        if is_cut {
            ui.say(format_args!(
                "and {} that another beats in size and loss: --full lists them",
                ui::count(scores.len() - front.len(), "scheme")
            ))?;
        }
        Ok(())
    }

    /// What was left out, and why.
    fn not_scored(&self, ui: &Ui) -> anyhow::Result<()> {
        if !self.survey.left_out.is_empty() {
            let left = self.survey.left_out.iter();
            let left: Vec<String> = left.map(|l| format!("{} ({})", l.name, l.reason)).collect();
            ui.say(format_args!("not scored: {}", printable(&few(&left))))?;
        }
        for (tensors, schemes, reason) in self.refusals(|outcome| match outcome {
            Outcome::Unfit(reason) => Some(reason),
            _ => None,
        }) {
            ui.say(format_args!("not scored: {tensors} under {schemes}: {reason}"))?;
        }
        for (tensors, schemes, reason) in self.refusals(|outcome| match outcome {
            Outcome::Failed(reason) => Some(reason),
            _ => None,
        }) {
            ui.say(format_args!("failed: {tensors} under {schemes}: {reason}"))?;
        }
        for tensor in &self.survey.tensors {
            let nonfinite = tensor.distribution.nonfinite;
            if nonfinite > 0 && tensor.scores().next().is_some() {
                ui.say(format_args!(
                    "{}: {} NaN or infinite, left out of its figures",
                    printable(&self.name(tensor)),
                    ui::count(nonfinite, "value")
                ))?;
            }
        }
        Ok(())
    }

    /// The tensors that were refused, by which schemes, and why the first of them. Schemes that refuse the same tensors
    /// are told together.
    fn refusals(&self, reason: impl Fn(&Outcome) -> Option<&str>) -> Vec<(String, String, String)> {
        let mut groups: Vec<(Vec<usize>, Vec<String>, String)> = Vec::new();
        for (place, scheme) in self.survey.schemes.iter().enumerate() {
            let outcomes = self.survey.tensors.iter().map(|tensor| &tensor.outcomes[place]);
            let refused = outcomes.enumerate().filter_map(|(i, o)| Some((i, reason(o)?)));
            let refused: Vec<(usize, &str)> = refused.collect();
            let Some((_, reason)) = refused.first() else { continue };
            let tensors: Vec<usize> = refused.iter().map(|(i, _)| *i).collect();
            match groups.iter_mut().find(|(known, ..)| *known == tensors) {
                Some((_, schemes, _)) => schemes.push(scheme.to_string()),
                None => groups.push((tensors, vec![scheme.to_string()], (*reason).to_owned())),
            }
        }
        let tell = |(tensors, schemes, reason): (Vec<usize>, Vec<String>, String)| {
            let names = tensors.iter().map(|&i| self.name(&self.survey.tensors[i]));
            let names: Vec<String> = names.collect();
            (printable(&few(&names)), few(&schemes), reason)
        };
        groups.into_iter().map(tell).collect()
    }
}

const FIGURES: [(&str, Side); 7] = [
    ("bits", Side::Right),
    ("dB", Side::Right),
    ("cosine", Side::Right),
    ("max error", Side::Right),
    ("of amax", Side::Right),
    ("zeroed", Side::Right),
    ("clipped", Side::Right),
];

const SPEEDS: [(&str, Side); 2] = [("encode GB/s", Side::Right), ("decode GB/s", Side::Right)];

fn figures(score: &Score) -> [String; 7] {
    let loss = &score.loss;
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        ui::bits(score.bits_per_value()),
        decibels(score),
        dash(loss.cosine().map(|cosine| format!("{cosine:.6}"))),
        match loss.max_error {
            0.0 => "0".to_owned(),
            error => format!("{error:.2e}"),
        },
        dash(loss.max_error_to_amax().map(percent)),
        dash(loss.zeroed_share().map(percent)),
        dash(score.saturated_share().map(percent)),
    ]
}

fn speeds(score: &Score) -> [String; 2] {
    [score.encode_gbps(), score.decode_gbps()]
        .map(|rate| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2}")))
}

fn decibels(score: &Score) -> String {
    match score.loss.sqnr_db() {
        Some(f64::INFINITY) => "exact".to_owned(),
        Some(db) => format!("{db:.1}"),
        None => "-".to_owned(),
    }
}

fn percent(share: f64) -> String {
    match 100.0 * share {
        0.0 => "0 %".to_owned(),
        tiny if tiny < 0.01 => "<0.01 %".to_owned(),
        percent => format!("{percent:.2} %"),
    }
}

fn point(score: &Score) -> (f64, f64) {
    let db = score.loss.sqnr_db().unwrap_or(f64::NEG_INFINITY);
    (score.bits_per_value().unwrap_or(0.0), db)
}

/// Smaller ones first, and the better of equals.
fn by_size(mut scores: Vec<(usize, &Score)>) -> Vec<(usize, &Score)> {
    scores.sort_by(|(_, left), (_, right)| {
        let ((left_bits, left_db), (right_bits, right_db)) = (point(left), point(right));
        left_bits.total_cmp(&right_bits).then(right_db.total_cmp(&left_db))
    });
    scores
}

fn few(names: &[String]) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Few(&names).to_string()
}

/// `1.07 GB`
fn decimal_bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        _ if bytes >= 1e9 => format!("{:.2} GB", bytes / 1e9),
        _ if bytes >= 1e6 => format!("{:.2} MB", bytes / 1e6),
        _ if bytes >= 1e3 => format!("{:.2} kB", bytes / 1e3),
        _ => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_bytes_are_short() {
        assert_eq!(percent(0.0), "0 %");
        assert_eq!(percent(1e-6), "<0.01 %");
        assert_eq!(percent(0.125), "12.50 %");
        assert_eq!(decimal_bytes(999), "999 bytes");
        assert_eq!(decimal_bytes(1_070_000_000), "1.07 GB");
    }
}
