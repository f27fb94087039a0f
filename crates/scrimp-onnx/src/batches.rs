//! Running a model on data, part by part.

use std::collections::HashSet;
use std::ops::Range;

use crate::data::Data;
use crate::engine::{Engine, EngineError, LoadOptions, Session};
use crate::proto::ValueInfoProto;
use crate::quantize::QuantizeError;
use crate::{DataType, Model, Value};

/// Samples that are run at a time where the model leaves it open: enough to keep the processor busy, few enough to keep
/// memory low.
const BATCH: usize = 8;

/// The parts of the data that a model is run on, one after the other. A model with a fixed batch leaves out the samples at
/// the end that do not fill one.
pub(crate) fn batches(model: &Model, data: &dyn Data) -> Result<Vec<Range<usize>>, QuantizeError> {
    let (batch, fixed) = batch_size(model, data)?;
    let total = if fixed { data.len() / batch * batch } else { data.len() };
    if total == 0 {
        return Err(QuantizeError::Data(format!(
            "{} samples, and the model runs {batch} at a time",
            data.len()
        )));
    }
    Ok((0..total).step_by(batch).map(|start| start..(start + batch).min(total)).collect())
}

/// The fewest samples that the model runs on.
pub(crate) fn fewest(model: &Model, data: &dyn Data) -> Result<usize, QuantizeError> {
    let (batch, fixed) = batch_size(model, data)?;
    Ok(if fixed { batch } else { 1 })
}

/// How many samples are run at a time, and whether the model takes no other number. The inputs that a caller gives are
/// checked against the data.
fn batch_size(model: &Model, data: &dyn Data) -> Result<(usize, bool), QuantizeError> {
    if data.is_empty() {
        return Err(QuantizeError::Data("no samples".into()));
    }
    let sample = data.batch(0, 1).map_err(QuantizeError::Data)?;
    let given: HashSet<&str> = sample.iter().map(|(name, _)| name.as_str()).collect();
    let mut batch = usize::MAX;
    for input in model.graph().required_inputs() {
        let name = input.name();
        let Some((_, value)) = sample.iter().find(|(given, _)| given == name) else {
            return Err(QuantizeError::Data(format!(
                "no input `{name}`; the data has {}, and the model wants {}",
                names(given.iter().copied()),
                names(model.graph().required_inputs().map(ValueInfoProto::name)),
            )));
        };
        let Some((kind, dims)) = input.tensor_type() else { continue };
        if kind != value.kind() as i32 {
            let wanted = DataType::from_number(kind).map_or("another type", DataType::name);
            return Err(QuantizeError::Data(format!(
                "input `{name}` is {} in the data, and the model wants {wanted}",
                value.kind().name()
            )));
        }
        let Some(dims) = dims else { continue };
        let fits = dims.len() == value.shape.len()
            && dims
                .iter()
                .zip(&value.shape)
                .skip(1)
                .all(|(dim, &size)| dim.is_none_or(|dim| usize::try_from(dim) == Ok(size)));
        if !fits {
            let wanted: Vec<String> =
                dims.iter().map(|d| d.map_or("?".into(), |d| d.to_string())).collect();
            return Err(QuantizeError::Data(format!(
                "input `{name}` has shape {:?} in the data, and the model wants [{}]",
                value.shape,
                wanted.join(", ")
            )));
        }
        if let Some(Some(first)) = dims.first() {
            batch = batch.min(usize::try_from(*first).unwrap_or(1).max(1));
        }
    }
    Ok(if batch == usize::MAX { (BATCH, false) } else { (batch, true) })
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    names.sort();
    names.join(", ")
}

/// Runs a session on the inputs of one part.
pub(crate) fn run(
    session: &mut dyn Session,
    inputs: &[(String, Value)],
) -> Result<Vec<Value>, EngineError> {
    let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, v)| (name.as_str(), v)).collect();
    session.run(&inputs)
}

/// The values of some tensors of a model on all data, batch by batch.
pub(crate) struct Batches<'a> {
    outputs: &'a [String],
    data: &'a dyn Data,
    /// `None` where all of the tensors are what the caller gives.
    session: Option<Box<dyn Session>>,
    parts: std::vec::IntoIter<Range<usize>>,
}

impl<'a> Batches<'a> {
    pub(crate) fn new(
        model: &Model,
        outputs: &'a [String],
        data: &'a dyn Data,
        engine: &dyn Engine,
        options: LoadOptions,
    ) -> Result<Self, QuantizeError> {
        let given = |name: &String| model.graph().input.iter().any(|input| input.name() == name);
        let computed: Vec<String> = outputs.iter().filter(|name| !given(name)).cloned().collect();
        let session =
            if computed.is_empty() { None } else { Some(engine.load(model, &computed, options)?) };
        Ok(Self { outputs, data, session, parts: batches(model, data)?.into_iter() })
    }

    pub(crate) fn next(&mut self) -> Result<Option<Vec<Value>>, QuantizeError> {
        let Some(part) = self.parts.next() else { return Ok(None) };
        let inputs = self.data.batch(part.start, part.end).map_err(QuantizeError::Data)?;
        let made = match &mut self.session {
            Some(session) => run(&mut **session, &inputs)?,
            None => Vec::new(),
        };
        let mut made = made.into_iter();
        let value = |name: &String| {
            let given = inputs.iter().find(|(input, _)| input == name);
            given.map(|(_, value)| value.clone()).or_else(|| made.next())
        };
        Ok(Some(self.outputs.iter().filter_map(value).collect()))
    }
}
