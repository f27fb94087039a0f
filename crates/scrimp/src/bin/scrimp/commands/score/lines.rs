//! Scores for programs: JSON and CSV with the same names.

use std::fmt::Write as _;

use scrimp::csv;
use scrimp::score::{LeftOut, Outcome, Score, Survey, TensorScores};
use scrimp_codec::Scheme;
use serde::Serialize;
use serde_json::Value;

use crate::ui::Ui;

/// What a scheme made of a tensor, as a line of JSON or CSV.
#[derive(Serialize)]
pub struct ScoreLine<'a> {
    r#type: &'static str,
    file: &'a str,
    name: &'a str,
    shape: &'a [usize],
    values: u64,
    scheme: &'a Scheme,
    /// `scored`, `unfit` or `failed`.
    status: &'static str,
    reason: Option<&'a str>,
    #[serde(flatten)]
    figures: Figures,
}

/// The sums over the tensors that every scheme takes, as a line of JSON.
#[derive(Serialize)]
struct TotalLine<'a> {
    r#type: &'static str,
    scheme: &'a Scheme,
    tensors: usize,
    values: u64,
    #[serde(flatten)]
    figures: Figures,
}

/// How the values of a tensor are spread, as a line of JSON.
#[derive(Serialize)]
struct DistributionLine<'a> {
    r#type: &'static str,
    file: &'a str,
    name: &'a str,
    values: u64,
    nonfinite: u64,
    zeros: u64,
    min: f64,
    max: f64,
    mean: f64,
    std: f64,
    within_1_std_share: Option<f64>,
    within_2_5_std_share: Option<f64>,
}

/// A tensor that was not scored, as a line of JSON.
#[derive(Serialize)]
struct LeftOutLine<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    left: &'a LeftOut,
}

/// The figures of a score. JSON has no infinity: what has none is null, and `exact` says whether that is for want of loss.
#[derive(Default, Serialize)]
struct Figures {
    bytes: Option<u64>,
    bits_per_value: Option<f64>,
    sqnr_db: Option<f64>,
    exact: Option<bool>,
    cosine: Option<f64>,
    max_abs_error: Option<f64>,
    max_abs_error_to_amax: Option<f64>,
    zeroed_share: Option<f64>,
    saturated_share: Option<f64>,
    nonfinite: Option<u64>,
    encode_gbps: Option<f64>,
    decode_gbps: Option<f64>,
}

impl Figures {
    fn of(score: &Score) -> Self {
        let loss = &score.loss;
        Self {
            bytes: Some(score.bytes),
            bits_per_value: score.bits_per_value(),
            sqnr_db: loss.sqnr_db().filter(|db| db.is_finite()),
            exact: Some(loss.is_exact()),
            cosine: loss.cosine(),
            max_abs_error: Some(loss.max_error).filter(|error| error.is_finite()),
            max_abs_error_to_amax: loss.max_error_to_amax().filter(|error| error.is_finite()),
            zeroed_share: loss.zeroed_share(),
            saturated_share: score.saturated_share(),
            nonfinite: Some(loss.nonfinite),
            encode_gbps: score.encode_gbps(),
            decode_gbps: score.decode_gbps(),
        }
    }
}

impl<'a> ScoreLine<'a> {
    fn new(tensor: &'a TensorScores, scheme: &'a Scheme, outcome: &'a Outcome) -> Self {
        let (status, reason, figures) = match outcome {
            Outcome::Scored(score) => ("scored", None, Figures::of(score)),
            Outcome::Unfit(reason) => ("unfit", Some(reason.as_str()), Figures::default()),
            Outcome::Failed(reason) => ("failed", Some(reason.as_str()), Figures::default()),
        };
        Self {
            r#type: "score",
            file: &tensor.file,
            name: &tensor.name,
            shape: &tensor.shape,
            values: tensor.values(),
            scheme,
            status,
            reason,
            figures,
        }
    }

    fn all(survey: &'a Survey) -> impl Iterator<Item = Self> {
        survey.tensors.iter().flat_map(|tensor| {
            let outcomes = survey.schemes.iter().zip(&tensor.outcomes);
            outcomes.map(|(scheme, outcome)| Self::new(tensor, scheme, outcome))
        })
    }
}

/// Prints a line for each tensor and scheme, the spread of each tensor, and the sums of each scheme.
pub fn json(ui: &Ui, survey: &Survey) -> anyhow::Result<()> {
    ScoreLine::all(survey).try_for_each(|line| ui.json(&line))?;
    for tensor in &survey.tensors {
        let spread = &tensor.distribution;
        ui.json(&DistributionLine {
            r#type: "distribution",
            file: &tensor.file,
            name: &tensor.name,
            values: tensor.values(),
            nonfinite: spread.nonfinite,
            zeros: spread.zeros,
            min: spread.min,
            max: spread.max,
            mean: spread.mean,
            std: spread.std,
            within_1_std_share: spread.share(spread.within_one),
            within_2_5_std_share: spread.share(spread.within_outer),
        })?;
    }
    for left in &survey.left_out {
        ui.json(&LeftOutLine { r#type: "left_out", left })?;
    }
    let totals = survey.totals();
    for (place, score) in totals.scores() {
        ui.json(&TotalLine {
            r#type: "total",
            scheme: &survey.schemes[place],
            tensors: totals.tensors.len(),
            values: totals.values,
            figures: Figures::of(score),
        })?;
    }
    Ok(())
}

/// A table with a line for each tensor and scheme, whose columns are the keys of the JSON.
pub fn csv(survey: &Survey) -> anyhow::Result<String> {
    let mut out = String::new();
    for line in ScoreLine::all(survey) {
        let Value::Object(mut keys) = serde_json::to_value(&line)? else { continue };
        keys.shift_remove("type");
        if out.is_empty() {
            out = keys.keys().map(String::as_str).collect::<Vec<_>>().join(",");
            out.push('\n');
        }
        let cells: Vec<String> = keys.values().map(cell).collect();
        // Writing to a string cannot fail.
        writeln!(out, "{}", cells.join(",")).ok();
    }
    Ok(out)
}

/// A value as a cell of CSV.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(extents) => extents.iter().map(Value::to_string).collect::<Vec<_>>().join("x"),
        other => other.to_string(),
    };
    csv::cell(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        let cases = [
            (Value::Null, ""),
            ("smaq:6,8".into(), "\"smaq:6,8\""),
            ("a\"b".into(), "\"a\"\"b\""),
            (vec![3, 4].into(), "3x4"),
            (0.5.into(), "0.5"),
            (true.into(), "true"),
        ];
        for (value, text) in cases {
            assert_eq!(cell(&value), text);
        }
    }
}
