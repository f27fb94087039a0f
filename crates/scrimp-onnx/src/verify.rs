//! What quantization did to a model, seen from outside: outputs, classes, time.

use std::ops::Range;
use std::time::Instant;

use crate::batches::{batches, run};
use crate::data::Data;
use crate::engine::{Engine, LoadOptions};
use crate::quantize::QuantizeError;
use crate::{Model, Value};

/// Two models on the same data.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Samples.
    pub samples: usize,
    /// One for each output of the model.
    pub outputs: Vec<OutputError>,
    /// The classes, where the first output is `[samples, classes]`.
    pub classes: Option<Classes>,
}

/// How far an output is from that of the float model.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputError {
    /// The output.
    pub name: String,
    /// Signal against noise in dB: `10 log10(sum y² / sum (y - y')²)`; infinite where nothing differs.
    pub sqnr_db: f64,
    /// The largest difference.
    pub largest: f32,
}

/// How often the right class, or the same one, comes first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Classes {
    /// The share of samples whose label the float model puts first; `None` without labels.
    pub float: Option<f64>,
    /// The share of samples whose label the quantized model puts first.
    pub quantized: Option<f64>,
    /// The share of samples in which both put the same class first.
    pub same: f64,
}

/// Runs both models on all of the data.
///
/// # Errors
/// If the engine loads or runs one of them not, or the data does not fit. A value that is not finite in the quantized
/// model's outputs, where the float model's are, is an error too.
pub fn compare(
    engine: &dyn Engine,
    [float, quantized]: [&Model; 2],
    data: &dyn Data,
    watch: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Comparison, QuantizeError> {
    let outputs: Vec<String> = float.graph().output.iter().map(|o| o.name().to_owned()).collect();
    let batches = batches(float, data)?;
    let total = batches.last().map_or(0, |batch| batch.end);
    let mut sessions = [
        engine.load(float, &outputs, LoadOptions::default())?,
        engine.load(quantized, &outputs, LoadOptions::default())?,
    ];
    let mut sums = vec![Sums::default(); outputs.len()];
    let (mut same, mut right, mut seen, mut labelled) = (0usize, [0usize; 2], 0usize, true);
    for Range { start, end } in batches {
        if !watch(start, total) {
            return Err(QuantizeError::Stopped);
        }
        let batch = end - start;
        let inputs = data.batch(start, end).map_err(QuantizeError::Data)?;
        let [a, b] = &mut sessions;
        let (a, b) = (run(&mut **a, &inputs)?, run(&mut **b, &inputs)?);
        for ((sums, (a, b)), name) in sums.iter_mut().zip(a.iter().zip(&b)).zip(&outputs) {
            if let Some((a, b)) = sums.add(a, b) {
                return Err(QuantizeError::Config(format!(
                    "output `{name}` of the quantized model is {b} where that of the float model is {a}"
                )));
            }
        }
        let (Some(first), Some(second)) = (classes_of(&a[0], batch), classes_of(&b[0], batch))
        else {
            labelled = false;
            continue;
        };
        seen += batch;
        same += first.iter().zip(&second).filter(|(a, b)| a == b).count();
        match data.labels(start, end) {
            Some(labels) => {
                for (right, classes) in right.iter_mut().zip([&first, &second]) {
                    *right += classes.iter().zip(&labels).filter(|(c, l)| c == l).count();
                }
            }
            None => labelled = false,
        }
    }
    watch(total, total);
    let share = |count: usize| count as f64 / seen as f64;
    Ok(Comparison {
        samples: total,
        outputs: outputs
            .into_iter()
            .zip(sums)
            .map(|(name, sums)| OutputError {
                name,
                sqnr_db: sums.sqnr_db(),
                largest: sums.largest,
            })
            .collect(),
        classes: (seen > 0).then(|| Classes {
            float: labelled.then(|| share(right[0])),
            quantized: labelled.then(|| share(right[1])),
            same: share(same),
        }),
    })
}

/// What two values have and lack in common.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    signal: f64,
    noise: f64,
    largest: f32,
}

impl Sums {
    /// Adds two values, float and rounded; gives the first pair of which only the float one is finite.
    pub(crate) fn add(&mut self, float: &Value, rounded: &Value) -> Option<(f32, f32)> {
        let (floats, rounded) = (float.as_f32()?, rounded.as_f32()?);
        let mut spoilt = None;
        for (&a, &b) in floats.iter().zip(rounded) {
            if a.is_finite() && !b.is_finite() {
                spoilt = spoilt.or(Some((a, b)));
            }
            self.signal += f64::from(a).powi(2);
            self.noise += f64::from(a - b).powi(2);
            self.largest = self.largest.max((a - b).abs());
        }
        spoilt
    }

    /// Signal against noise in dB; infinite without noise.
    pub(crate) fn sqnr_db(&self) -> f64 {
        if self.noise == 0.0 { f64::INFINITY } else { 10.0 * (self.signal / self.noise).log10() }
    }
}

/// The class that comes first for each sample; `None` where the value has not a row of classes for each.
fn classes_of(value: &Value, samples: usize) -> Option<Vec<u32>> {
    let values = value.as_f32()?;
    let classes = values.len() / samples.max(1);
    let rows = value.shape.first() == Some(&samples) && value.shape.len() == 2 && classes > 1;
    rows.then(|| {
        values
            .chunks_exact(classes)
            .map(|row| {
                let first =
                    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
                first.map_or(0, |(at, _)| u32::try_from(at).unwrap_or(u32::MAX))
            })
            .collect()
    })
}

/// Loads the model, and runs it on the first samples where there are any: whether it was run.
///
/// # Errors
/// If the engine refuses it.
pub fn loads(engine: &dyn Engine, model: &Model, data: &dyn Data) -> Result<bool, QuantizeError> {
    let outputs: Vec<String> = model.graph().output.iter().map(|o| o.name().to_owned()).collect();
    let mut session = engine.load(model, &outputs, LoadOptions::default())?;
    if data.is_empty() {
        return Ok(false);
    }
    let first = batches(model, data)?[0].clone();
    let inputs = data.batch(first.start, first.end).map_err(QuantizeError::Data)?;
    run(&mut *session, &inputs)?;
    Ok(true)
}

/// How long a run takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Samples of one run.
    pub batch: usize,
    /// Milliseconds of the float model.
    pub float_ms: f64,
    /// Milliseconds of the quantized model.
    pub quantized_ms: f64,
}

/// The median times of both models, whose runs take turns so that other work on the machine falls on both.
///
/// # Errors
/// As [`compare`].
pub fn latency(
    engine: &dyn Engine,
    [float, quantized]: [&Model; 2],
    data: &dyn Data,
    wanted: usize,
    threads: usize,
) -> Result<Latency, QuantizeError> {
    const ROUNDS: usize = 15;
    let outputs: Vec<String> = float.graph().output.iter().map(|o| o.name().to_owned()).collect();
    // A model with a fixed batch is timed on that.
    let fixed = float
        .graph()
        .required_inputs()
        .find_map(|input| usize::try_from(input.tensor_type()?.1?.first().copied()??).ok());
    let batch = fixed.unwrap_or(wanted).min(data.len()).max(1);
    let options = LoadOptions { threads, ..LoadOptions::default() };
    let mut sessions =
        [engine.load(float, &outputs, options)?, engine.load(quantized, &outputs, options)?];
    let inputs = data.batch(0, batch).map_err(QuantizeError::Data)?;
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS + 2 {
        for (session, times) in sessions.iter_mut().zip(&mut times) {
            let start = Instant::now();
            run(&mut **session, &inputs)?;
            if round >= 2 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    let [float_ms, quantized_ms] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    Ok(Latency { batch, float_ms, quantized_ms })
}
