//! Scores: what a scheme costs on a tensor, in bytes that were really written, and what it loses.
//!
//! A [`Scorer`] encodes and decodes tensors under many schemes; a [`Survey`] keeps what came of it, finds the best
//! scheme for a size, and compares schemes over all tensors. [`page`] draws a survey.
//!
//! ```
//! use scrimp::codec::Stream;
//! use scrimp::score::Scorer;
//!
//! let x: Vec<f32> = (0..64u8).map(|i| f32::from(i) - 31.5).collect();
//! let scheme = "int4/group:32".parse()?;
//! let score = Scorer::default().score(&x, &[2, 32], &scheme, &Stream::new(0, 0))?;
//! assert_eq!(score.bits_per_value(), Some(5.0)); // 4 and a scale of 32 bits for 32 values
//! assert!(score.loss.sqnr_db().unwrap() > 20.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::time::{Duration, Instant};

use scrimp_codec::formats::Scaling;
use scrimp_codec::{DecodeError, EncodeError, FAMILIES, Scheme, Stream, Tally};
use scrimp_files::Dtype;

mod distribution;
pub mod page;
mod picture;

pub use distribution::{BINS, Distribution, OUTER};
pub use scrimp_codec::Loss;

/// The sizes for which a best scheme is named: bits per value that it may take at most, what is stored beside codes
/// included. As in print, half of a hundredth of a bit does not count: the one scale of a large tensor, or the short
/// last group of a row.
pub const CLASSES: [f64; 3] = [4.5, 6.5, 8.5];

/// The bits that a class forgives.
const SLACK: f64 = 0.005;

/// The schemes that are compared where nobody says which: three or four for each class of size.
pub const USUAL_SCHEMES: [&str; 11] = [
    "int4",
    "mxfp4",
    "nf4",
    "int4/group:32/scale:f16",
    "mxfp6_e2m3",
    "int6/channel",
    "int6/group:32/scale:f16",
    "smaq:6,8",
    "e4m3fn",
    "int8",
    "int8/channel",
];

/// Every member of every family that rounds: as it is, and with a scale for each channel and a 16-bit one for each 32
/// values where it takes that.
pub fn all_schemes() -> Vec<Scheme> {
    const ADDED: [&str; 2] = ["/channel", "/group:32/scale:f16"];
    let mut schemes: Vec<Scheme> = Vec::new();
    let mut add = |scheme: Scheme| {
        if !schemes.contains(&scheme) {
            schemes.push(scheme);
        }
    };
    for member in FAMILIES.iter().flat_map(|family| family.members()) {
        // A member is a scheme, as a test of the codec asserts.
        let Ok(plain) = member.parse::<Scheme>() else { continue };
        if plain.is_float32() {
            continue;
        }
        let takes_groups = plain.codec().defaults().scaling != Scaling::Never;
        add(plain);
        for words in ADDED.iter().filter(|_| takes_groups) {
            if let Ok(scheme) = format!("{member}{words}").parse() {
                add(scheme);
            }
        }
    }
    schemes
}

/// Where the family of a scheme stands in [`FAMILIES`].
pub fn family_of(scheme: &Scheme) -> Option<usize> {
    let name = scheme.codec().name();
    FAMILIES.iter().position(|family| family.parse(&name).is_some())
}

/// What a scheme made of a tensor, or of several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Bytes that were written.
    pub bytes: u64,
    /// What the values lost.
    pub loss: Loss,
    /// Values that were clipped, see [`Scheme::saturated`]; `None` where that means nothing to the scheme.
    pub saturated: Option<u64>,
    /// What the codec counted.
    pub tally: Tally,
    /// Time that encoding took, the shortest of three times for a small tensor.
    pub encode: Duration,
    /// Time that decoding took, likewise.
    pub decode: Duration,
}

impl Score {
    /// Values that were scored, finite or not.
    pub fn values(&self) -> u64 {
        self.loss.values + self.loss.nonfinite
    }

    /// Bits that a value takes, with its part of all that is stored beside codes.
    pub fn bits_per_value(&self) -> Option<f64> {
        (self.values() > 0).then(|| self.bytes as f64 * 8.0 / self.values() as f64)
    }

    /// The part of the values that were clipped.
    pub fn saturated_share(&self) -> Option<f64> {
        let count = self.saturated.filter(|_| self.values() > 0)?;
        Some(count as f64 / self.values() as f64)
    }

    /// `10^9` bytes of `f32` that were encoded in a second.
    pub fn encode_gbps(&self) -> Option<f64> {
        self.gbps(self.encode)
    }

    /// `10^9` bytes of `f32` that were decoded in a second.
    pub fn decode_gbps(&self) -> Option<f64> {
        self.gbps(self.decode)
    }

    fn gbps(&self, time: Duration) -> Option<f64> {
        let rate = 4e-9 * self.values() as f64 / time.as_secs_f64();
        rate.is_finite().then_some(rate)
    }

    /// Both scores together.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            loss: self.loss.join(other.loss),
            saturated: self.saturated.zip(other.saturated).map(|(left, right)| left + right),
            tally: self.tally.join(other.tally),
            encode: self.encode + other.encode,
            decode: self.decode + other.decode,
        }
    }
}

/// A tensor that could not be scored under a scheme.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScoreError {
    /// It could not be encoded: the scheme does not fit the shape, or cannot hold a value.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// What was encoded could not be decoded. This is a defect of the codec.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Tensors of fewer values are encoded and decoded three times, of which the shortest counts.
const SMALL: usize = 1 << 20;

/// Scores tensors, and keeps the memory for that from one to the next.
#[derive(Debug, Default)]
pub struct Scorer {
    bytes: Vec<u8>,
    decoded: Vec<f32>,
}

impl Scorer {
    /// Takes memory for tensors of up to so many values in up to so many bytes, touches it, and starts the threads, so
    /// that the first scheme is not timed while it waits for the system.
    pub fn reserve(&mut self, values: usize, bytes: usize) {
        rayon::broadcast(|_| ());
        self.decoded.resize(values, 0.0);
        self.bytes.resize(bytes, 0);
    }

    /// Encodes and decodes `x`, a tensor of this shape, and compares.
    ///
    /// # Errors
    /// [`ScoreError::Encode`] where the scheme does not fit the shape or cannot hold a value.
    pub fn score(
        &mut self,
        x: &[f32],
        shape: &[usize],
        scheme: &Scheme,
        stream: &Stream,
    ) -> Result<Score, ScoreError> {
        // Memory beyond the tensor stays touched.
        if self.decoded.len() < x.len() {
            self.decoded.resize(x.len(), 0.0);
        }
        let decoded = &mut self.decoded[..x.len()];
        // A small tensor is done sooner than a sleeping thread awakes.
        let repeats = if x.len() < SMALL { 3 } else { 1 };
        let (mut encode, mut decode, mut tally) = (Duration::MAX, Duration::MAX, Tally::default());
        for _ in 0..repeats {
            self.bytes.clear();
            let start = Instant::now();
            tally = scheme.encode(x, shape, stream, &mut self.bytes)?;
            encode = encode.min(start.elapsed());
            let start = Instant::now();
            scheme.decode(&self.bytes, shape, decoded)?;
            decode = decode.min(start.elapsed());
        }

        Ok(Score {
            bytes: self.bytes.len() as u64,
            loss: Loss::between(x, decoded),
            saturated: scheme.saturated(x, &self.bytes, shape)?,
            tally,
            encode,
            decode,
        })
    }
}

/// What became of a tensor under a scheme.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was scored.
    Scored(Score),
    /// The scheme does not fit its shape, for this reason.
    Unfit(String),
    /// It could not be encoded, for this reason.
    Failed(String),
}

impl Outcome {
    /// The score, where there is one.
    pub fn score(&self) -> Option<&Score> {
        match self {
            Self::Scored(score) => Some(score),
            _ => None,
        }
    }
}

/// A tensor with its outcome under every scheme of a survey.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorScores {
    /// The file that it lies in.
    pub file: String,
    /// Its name there.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its type in the file; values pass through `f32`.
    pub dtype: Dtype,
    /// How its values are spread.
    pub distribution: Distribution,
    /// One for each scheme, in their order.
    pub outcomes: Vec<Outcome>,
}

impl TensorScores {
    /// Number of values.
    pub fn values(&self) -> u64 {
        self.distribution.values + self.distribution.nonfinite
    }

    /// The scheme that loses least among those of at most so many bits, with its score.
    pub fn best(&self, max_bits: f64) -> Option<(usize, &Score)> {
        best(self.scores(), max_bits)
    }

    /// The scores that there are, with the places of their schemes.
    pub fn scores(&self) -> impl Iterator<Item = (usize, &Score)> {
        let outcomes = self.outcomes.iter().enumerate();
        outcomes.filter_map(|(place, outcome)| Some((place, outcome.score()?)))
    }

    /// How little the best schemes lose here, those of the smallest class that any scheme fits.
    pub fn best_db(&self) -> f64 {
        let mut classes = CLASSES.into_iter().chain([f64::INFINITY]);
        let db = |class| self.best(class).and_then(|(_, score)| score.loss.sqnr_db());
        classes.find_map(db).unwrap_or(f64::INFINITY)
    }
}

/// A tensor of a file that was not scored.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// The file.
    pub file: String,
    /// The tensor.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Why: `integer`, `no values`.
    pub reason: String,
}

/// The outcomes of many tensors under the same schemes.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The schemes as the user wrote them; weights of more than two axes may take them as matrices.
    pub schemes: Vec<Scheme>,
    /// The tensors that were scored.
    pub tensors: Vec<TensorScores>,
    /// The tensors that were not.
    pub left_out: Vec<LeftOut>,
}

/// What the schemes of a survey make of the same tensors together.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// The tensors that every scheme takes which takes any, as places in the survey.
    pub tensors: Vec<usize>,
    /// Their values.
    pub values: u64,
    /// The score of each scheme over these tensors, in the survey's order; `None` where a scheme takes no tensor.
    pub scores: Vec<Option<Score>>,
}

impl Totals {
    /// The scores that there are, with the places of their schemes.
    pub fn scores(&self) -> impl Iterator<Item = (usize, &Score)> {
        let scores = self.scores.iter().enumerate();
        scores.filter_map(|(place, score)| Some((place, score.as_ref()?)))
    }

    /// The scheme that loses least among those of at most so many bits, with its score.
    pub fn best(&self, max_bits: f64) -> Option<(usize, &Score)> {
        best(self.scores(), max_bits)
    }
}

impl Survey {
    /// The schemes over the tensors that all of them take: others would compare different values.
    ///
    /// A scheme that takes no tensor at all has no say in which these are.
    pub fn totals(&self) -> Totals {
        let takes = |place: usize| self.tensors.iter().any(|t| t.outcomes[place].score().is_some());
        let takes_any: Vec<bool> = (0..self.schemes.len()).map(takes).collect();
        let is_common = |tensor: &TensorScores| {
            let mut outcomes = tensor.outcomes.iter().zip(&takes_any);
            outcomes.all(|(outcome, takes_any)| outcome.score().is_some() || !takes_any)
        };
        let tensors: Vec<usize> = if takes_any.contains(&true) {
            (0..self.tensors.len()).filter(|&i| is_common(&self.tensors[i])).collect()
        } else {
            Vec::new()
        };
        let scores = (0..self.schemes.len()).map(|place| {
            let scores = tensors.iter().map(|&i| self.tensors[i].outcomes[place].score().copied());
            scores.flatten().reduce(Score::join)
        });
        let scores = scores.collect();
        let values = tensors.iter().map(|&i| self.tensors[i].values()).sum();
        Totals { tensors, values, scores }
    }
}

fn best<'a>(
    scores: impl Iterator<Item = (usize, &'a Score)>,
    max_bits: f64,
) -> Option<(usize, &'a Score)> {
    let fits =
        |(_, score): &(usize, &Score)| score.bits_per_value().is_some_and(|b| b < max_bits + SLACK);
    // The first of equals, and among those that lose nothing the smallest.
    scores.filter(fits).reduce(|best, other| if is_better(other.1, best.1) { other } else { best })
}

fn is_better(score: &Score, than: &Score) -> bool {
    let db = |score: &Score| score.loss.sqnr_db().unwrap_or(f64::NEG_INFINITY);
    let (left, right) = (db(score), db(than));
    left > right || (left == right && score.bytes < than.bytes)
}

/// The places of the points `(bits, db)` that no other beats in both: the Pareto front, by rising bits.
pub fn front(points: &[(f64, f64)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    let by = |i: &usize, j: &usize| {
        let ((left_bits, left_db), (right_bits, right_db)) = (points[*i], points[*j]);
        left_bits.total_cmp(&right_bits).then(right_db.total_cmp(&left_db))
    };
    order.sort_by(by);
    let mut highest = f64::NEG_INFINITY;
    order.retain(|&i| {
        let rises = points[i].1 > highest;
        highest = highest.max(points[i].1);
        rises
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score_of(bytes: u64, values: u64, noise: f64) -> Score {
        let loss = Loss { values, signal: 100.0, noise, ..Loss::default() };
        Score {
            bytes,
            loss,
            saturated: Some(0),
            tally: Tally::default(),
            encode: Duration::from_millis(1),
            decode: Duration::from_millis(2),
        }
    }

    fn tensor(outcomes: Vec<Outcome>) -> TensorScores {
        TensorScores {
            file: "a".into(),
            name: "x".into(),
            shape: vec![8],
            dtype: Dtype::F32,
            distribution: Distribution::of(&[1.0; 8]),
            outcomes,
        }
    }

    #[test]
    fn the_usual_schemes_and_all_of_them_are_canonical_and_different() {
        for text in USUAL_SCHEMES {
            assert_eq!(text.parse::<Scheme>().map(|s| s.to_string()).as_deref(), Ok(text));
        }
        let all = all_schemes();
        for wanted in ["int4", "int4/channel", "int4/group:32/scale:f16", "e4m3fn", "bf16/channel"]
        {
            assert!(all.iter().any(|s| s.to_string() == wanted), "{wanted}");
        }
        assert!(all.iter().enumerate().all(|(i, s)| !all[..i].contains(s) && !s.is_float32()));
        for family in FAMILIES.iter().skip(1) {
            let first = family.members()[0].parse().unwrap();
            assert!(all.contains(&first), "{first}");
        }
    }

    #[test]
    fn the_best_is_found_within_the_size_and_the_smaller_of_equals_wins() {
        let scores = [(4, 50.0), (4, 10.0), (6, 1.0), (8, 1.0), (8, 0.1)];
        let tensor = tensor(
            scores.iter().map(|&(b, noise)| Outcome::Scored(score_of(b, 8, noise))).collect(),
        );
        let best = |bits| tensor.best(bits).map(|(place, _)| place);
        assert_eq!([best(3.9), best(4.0), best(6.5), best(8.0)], [None, Some(1), Some(2), Some(4)]);
        assert_eq!(tensor.best_db(), 10.0);
    }

    #[test]
    fn totals_are_taken_over_the_tensors_that_every_scheme_takes() {
        let scored = |noise| Outcome::Scored(score_of(4, 8, noise));
        let unfit = || Outcome::Unfit("no".into());
        let survey = Survey {
            schemes: ["int4", "int4/channel", "int4/axis:7"].map(|s| s.parse().unwrap()).into(),
            tensors: vec![
                tensor(vec![scored(1.0), scored(2.0), unfit()]),
                tensor(vec![scored(1000.0), unfit(), unfit()]),
                tensor(vec![scored(3.0), scored(4.0), unfit()]),
            ],
            left_out: vec![],
        };
        let totals = survey.totals();
        assert_eq!((totals.tensors.as_slice(), totals.values), (&[0, 2][..], 16));
        let noise: Vec<f64> = totals.scores().map(|(_, score)| score.loss.noise).collect();
        assert_eq!(noise, [4.0, 6.0]);
        assert_eq!(totals.scores[2], None);
        assert_eq!(totals.best(4.0).map(|(place, _)| place), Some(0));
        assert!(Survey::default().totals().tensors.is_empty());
    }

    #[test]
    fn the_front_holds_what_nothing_beats() {
        let points = [(8.0, 40.0), (4.0, 20.0), (4.0, 18.0), (6.0, 19.0), (9.0, 40.0), (6.5, 30.0)];
        assert_eq!(front(&points), [1, 5, 0]);
        assert!(front(&[]).is_empty());
    }

    #[test]
    fn a_scorer_takes_tensors_of_any_size_one_after_another() {
        let mut scorer = Scorer::default();
        scorer.reserve(4, 4);
        let scheme: Scheme = "int8".parse().unwrap();
        for count in [0u8, 9, 3] {
            let x: Vec<f32> = (0..count).map(|i| f32::from(i) - 1.0).collect();
            let score = scorer.score(&x, &[x.len()], &scheme, &Stream::new(0, 0)).unwrap();
            assert_eq!(score.values(), u64::from(count));
            let bytes = scheme.size(&[x.len()]).unwrap().exact().unwrap() as u64;
            assert_eq!(score.bytes, bytes);
        }
        let error = scorer.score(&[f32::NAN], &[1], &scheme, &Stream::new(0, 0)).unwrap_err();
        assert!(error.to_string().starts_with("element 0 is NaN"), "{error}");
    }
}
