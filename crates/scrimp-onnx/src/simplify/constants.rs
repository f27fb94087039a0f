//! Values that do not depend on the input: moved, cut and joined once instead of at every run.
//!
//! Only operators that move elements are computed here, so that every bit is that of the file. Exporters wrap the weights
//! of recurrent layers in them.

use std::collections::{HashMap, HashSet};

use crate::OnnxError;
use crate::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::tensor::elems;

/// Turns `Constant` nodes and element moves of constants into initializers, in subgraphs too.
///
/// # Errors
/// If a constant contradicts its shape.
pub fn fold(graph: &mut GraphProto) -> Result<usize, OnnxError> {
    fold_within(graph, &HashMap::new())
}

fn fold_within(
    graph: &mut GraphProto,
    outside: &HashMap<String, TensorProto>,
) -> Result<usize, OnnxError> {
    let inputs: Vec<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
    let mut known = outside.clone();
    // What a caller may override is no constant.
    known.retain(|name, _| !inputs.contains(&name.as_str()));
    for tensor in &graph.initializer {
        if !inputs.contains(&tensor.name()) && !tensor.is_external() {
            known.insert(tensor.name().to_owned(), tensor.clone());
        }
    }
    let mut folded = 0;
    let mut kept = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        let is_output =
            graph.output.iter().any(|o| node.output.first().is_some_and(|n| n == o.name()));
        if let Some(mut tensor) = value_of(&node, &known)?.filter(|_| !is_output) {
            tensor.name = node.output.first().cloned();
            known.insert(tensor.name().to_owned(), tensor.clone());
            graph.initializer.push(tensor);
            folded += 1;
        } else {
            for sub in node.subgraphs_mut() {
                folded += fold_within(sub, &known)?;
            }
            kept.push(node);
        }
    }
    graph.node = kept;
    Ok(folded)
}

/// The constant that a node gives; `None` where it is none, or of a kind that is left to the runtime.
fn value_of(
    node: &NodeProto,
    known: &HashMap<String, TensorProto>,
) -> Result<Option<TensorProto>, OnnxError> {
    if node.is("Constant") {
        return Ok(node.attribute.first().and_then(constant_of));
    }
    if !node.is_standard() || node.output.len() != 1 {
        return Ok(None);
    }
    let arg = |at: usize| node.arg(at).and_then(|name| known.get(name));
    let Some(data) = arg(0) else { return Ok(None) };
    let Some(source) = Source::of(data)? else { return Ok(None) };
    // Axes and shapes are attributes in old versions and inputs in new ones.
    let list = |attribute: &str, at: usize| -> Result<Option<Vec<i64>>, OnnxError> {
        if let Some(found) = node.get(attribute) {
            return Ok(Some(found.ints.clone()));
        }
        match (node.arg(at), arg(at)) {
            (None, _) => Ok(Some(Vec::new())),
            (Some(_), Some(tensor)) => Ok(Some(tensor.to_i64()?)),
            (Some(_), None) => Ok(None),
        }
    };
    let rank = source.shape.len();
    Ok(match node.op_type() {
        "Identity" => Some(source.reshaped(&source.shape)),
        "Reshape" => list("shape", 1)?
            .and_then(|shape| source.resolve(&shape, node.int("allowzero", 0) == 1))
            .map(|shape: Vec<usize>| source.reshaped(&shape)),
        "Unsqueeze" => list("axes", 1)?
            .and_then(|axes| {
                let full = rank + axes.len();
                let axes = positions(&axes, full)?;
                let mut old = source.shape.iter();
                (0..full)
                    .map(|at| if axes.contains(&at) { Some(1) } else { old.next().copied() })
                    .collect()
            })
            .map(|shape: Vec<usize>| source.reshaped(&shape)),
        "Squeeze" => list("axes", 1)?
            .and_then(|axes| {
                let axes = positions(&axes, rank)?;
                let dropped = |at: usize| {
                    if axes.is_empty() { source.shape[at] == 1 } else { axes.contains(&at) }
                };
                Some((0..rank).filter(|&at| !dropped(at)).map(|at| source.shape[at]).collect())
            })
            .map(|shape: Vec<usize>| source.reshaped(&shape)),
        "Transpose" => {
            let reversed: Vec<i64> =
                (0..rank).rev().filter_map(|at| i64::try_from(at).ok()).collect();
            let order = node.get("perm").map_or(reversed, |perm| perm.ints.clone());
            positions(&order, rank)
                .filter(|order| order.len() == rank)
                .map(|order| source.transposed(&order))
        }
        "Slice" => {
            let (starts, ends) = (list("starts", 1)?, list("ends", 2)?);
            let (axes, steps) = (list("axes", 3)?, list("steps", 4)?);
            match (starts, ends, axes, steps) {
                (Some(starts), Some(ends), Some(axes), Some(steps)) => {
                    source.sliced(&starts, &ends, &axes, &steps)
                }
                _ => None,
            }
        }
        "Concat" => {
            let parts: Option<Vec<&TensorProto>> = (0..node.input.len()).map(arg).collect();
            match parts {
                Some(parts) => joined(&parts, node.int("axis", 0))?,
                None => None,
            }
        }
        _ => None,
    })
}

fn constant_of(attribute: &AttributeProto) -> Option<TensorProto> {
    match attribute.name() {
        "value" => attribute.t.clone().filter(|tensor| !tensor.is_external()),
        "value_float" => Some(TensorProto::from_f32("", &[], &[attribute.f?])),
        "value_floats" => {
            Some(TensorProto::from_f32("", &[attribute.floats.len()], &attribute.floats))
        }
        "value_int" => Some(TensorProto::from_i64("", &[], &[attribute.i?])),
        "value_ints" => Some(TensorProto::from_i64("", &[attribute.ints.len()], &attribute.ints)),
        _ => None,
    }
}

/// Axes as numbers from the front; `None` where one does not exist.
fn positions(axes: &[i64], rank: usize) -> Option<Vec<usize>> {
    let full = i64::try_from(rank).ok()?;
    axes.iter()
        .map(|&axis| {
            usize::try_from(if axis < 0 { axis + full } else { axis }).ok().filter(|&a| a < rank)
        })
        .collect()
}

/// The bytes of a constant whose elements are whole bytes.
struct Source<'a> {
    tensor: &'a TensorProto,
    shape: Vec<usize>,
    bytes: std::borrow::Cow<'a, [u8]>,
    width: usize,
}

impl<'a> Source<'a> {
    fn of(tensor: &'a TensorProto) -> Result<Option<Self>, OnnxError> {
        let Some(kind) = tensor.kind() else { return Ok(None) };
        let Some(width) = kind.bits().filter(|bits| bits % 8 == 0).map(|bits| bits / 8) else {
            return Ok(None);
        };
        let bytes = match &tensor.raw_data {
            Some(raw) => std::borrow::Cow::Borrowed(raw.as_ref()),
            None => match kind {
                crate::DataType::Float => {
                    tensor.to_f32()?.iter().flat_map(|v| v.to_le_bytes()).collect()
                }
                crate::DataType::Int64 => {
                    tensor.to_i64()?.iter().flat_map(|v| v.to_le_bytes()).collect()
                }
                _ => return Ok(None),
            },
        };
        let shape = tensor.shape()?;
        if elems(&tensor.dims).and_then(|n| n.checked_mul(width)) != Some(bytes.len()) {
            return Err(OnnxError::tensor(
                tensor.name(),
                format!("{} bytes for shape {shape:?}", bytes.len()),
            ));
        }
        Ok(Some(Self { tensor, shape, bytes, width }))
    }

    fn with(&self, shape: &[usize], bytes: Vec<u8>) -> TensorProto {
        let kind = self.tensor.kind().expect("checked when the source was made");
        TensorProto::from_raw("", kind, shape, bytes)
    }

    fn reshaped(&self, shape: &[usize]) -> TensorProto {
        self.with(shape, self.bytes.to_vec())
    }

    /// The shape that `Reshape` is asked for, with its 0 and -1 replaced.
    fn resolve(&self, wanted: &[i64], zero_is_zero: bool) -> Option<Vec<usize>> {
        let total: usize = self.shape.iter().product();
        let mut shape = Vec::new();
        let mut open = None;
        for (at, &size) in wanted.iter().enumerate() {
            match size {
                -1 if open.is_none() => {
                    open = Some(at);
                    shape.push(1);
                }
                0 if !zero_is_zero => shape.push(*self.shape.get(at)?),
                size => shape.push(usize::try_from(size).ok()?),
            }
        }
        let fixed: usize = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        if let Some(at) = open {
            if fixed == 0 || !total.is_multiple_of(fixed) {
                return None;
            }
            shape[at] = total / fixed;
            return Some(shape);
        }
        (fixed == total).then_some(shape)
    }

    /// The elements at the places that `index` gives, an index for each axis of the result.
    fn gathered(&self, shape: &[usize], place: impl Fn(&[usize]) -> usize) -> TensorProto {
        let count: usize = shape.iter().product();
        let mut bytes = Vec::with_capacity(count * self.width);
        let mut index = vec![0usize; shape.len()];
        for _ in 0..count {
            let at = place(&index) * self.width;
            bytes.extend_from_slice(&self.bytes[at..at + self.width]);
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        self.with(shape, bytes)
    }

    fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.shape.len()];
        for axis in (1..self.shape.len()).rev() {
            strides[axis - 1] = strides[axis] * self.shape[axis];
        }
        strides
    }

    fn transposed(&self, order: &[usize]) -> TensorProto {
        let strides = self.strides();
        let shape: Vec<usize> = order.iter().map(|&axis| self.shape[axis]).collect();
        self.gathered(&shape, |index| {
            index.iter().zip(order).map(|(&i, &axis)| i * strides[axis]).sum()
        })
    }

    fn sliced(
        &self,
        starts: &[i64],
        ends: &[i64],
        axes: &[i64],
        steps: &[i64],
    ) -> Option<TensorProto> {
        let rank = self.shape.len();
        let axes =
            if axes.is_empty() { (0..starts.len()).collect() } else { positions(axes, rank)? };
        if ends.len() != starts.len() || axes.len() != starts.len() || steps.iter().any(|&s| s != 1)
        {
            return None;
        }
        let mut begin = vec![0usize; rank];
        let mut shape = self.shape.clone();
        for ((&axis, &start), &end) in axes.iter().zip(starts).zip(ends) {
            let size = i64::try_from(*self.shape.get(axis)?).ok()?;
            let clamp = |at: i64| if at < 0 { at.saturating_add(size) } else { at }.clamp(0, size);
            let (start, end) = (clamp(start), clamp(end));
            begin[axis] = usize::try_from(start).ok()?;
            shape[axis] = usize::try_from((end - start).max(0)).ok()?;
        }
        let strides = self.strides();
        Some(self.gathered(&shape, |index| {
            index.iter().zip(&begin).zip(&strides).map(|((&i, &b), &stride)| (i + b) * stride).sum()
        }))
    }
}

/// Tensors joined along an axis.
fn joined(parts: &[&TensorProto], axis: i64) -> Result<Option<TensorProto>, OnnxError> {
    let sources: Option<Vec<Source>> =
        parts.iter().map(|part| Source::of(part)).collect::<Result<_, _>>()?;
    let Some(sources) = sources else { return Ok(None) };
    let first = &sources[0];
    let Some(axis) = positions(&[axis], first.shape.len()).map(|axes| axes[0]) else {
        return Ok(None);
    };
    let fits = |s: &Source| {
        s.tensor.data_type == first.tensor.data_type
            && s.shape.len() == first.shape.len()
            && s.shape.iter().zip(&first.shape).enumerate().all(|(at, (a, b))| at == axis || a == b)
    };
    if !sources.iter().all(fits) {
        return Ok(None);
    }
    let outer: usize = first.shape[..axis].iter().product();
    let mut bytes = Vec::new();
    for row in 0..outer {
        for source in &sources {
            let length = source.bytes.len() / outer;
            bytes.extend_from_slice(&source.bytes[row * length..(row + 1) * length]);
        }
    }
    let mut shape = first.shape.clone();
    shape[axis] = sources.iter().map(|s| s.shape[axis]).sum();
    Ok(Some(first.with(&shape, bytes)))
}

/// Constants of fewer bytes stay in their subgraph: their names would take more.
const WORTH_MOVING: usize = 256;

/// Brings large constants of subgraphs into the main graph, each content once: the branches of an `If` often compute the
/// same weights.
pub fn hoist(graph: &mut GraphProto) {
    let mut pool = Pool::default();
    graph.names(&mut |name| {
        pool.taken.insert(name.to_owned());
    });
    for sub in graph.node.iter_mut().flat_map(NodeProto::subgraphs_mut) {
        hoist_from(sub, &mut pool);
    }
    graph.initializer.extend(pool.moved);
}

/// What was brought to the main graph, by content.
#[derive(Default)]
struct Pool {
    names: HashMap<(Option<i32>, Vec<i64>, prost::bytes::Bytes), String>,
    taken: HashSet<String>,
    moved: Vec<TensorProto>,
}

fn hoist_from(sub: &mut GraphProto, pool: &mut Pool) {
    for inner in sub.node.iter_mut().flat_map(NodeProto::subgraphs_mut) {
        hoist_from(inner, pool);
    }
    let outputs: Vec<String> = sub.output.iter().map(|o| o.name().to_owned()).collect();
    for tensor in std::mem::take(&mut sub.initializer) {
        let raw = tensor.raw_data.clone().filter(|raw| raw.len() >= WORTH_MOVING);
        let Some(raw) = raw.filter(|_| !outputs.iter().any(|name| name == tensor.name())) else {
            sub.initializer.push(tensor);
            continue;
        };
        let key = (tensor.data_type, tensor.dims.clone(), raw);
        let old = tensor.name().to_owned();
        let new = pool.names.entry(key).or_insert_with(|| {
            // A name of its own, since another branch may use the old one for something else.
            let mut name = format!("{old}.1");
            while !pool.taken.insert(name.clone()) {
                name.push('1');
            }
            pool.moved.push(TensorProto { name: Some(name.clone()), ..tensor });
            name
        });
        let new = new.clone();
        sub.replace_uses(&old, &new);
    }
}
