//! Schemes in ONNX: weights as codes, activations by pairs, and why not.

use std::collections::{BTreeMap, HashMap};

use scrimp_codec::formats::Card;
use scrimp_codec::{Format, Granularity, Params, Range, Rounding as Way, Scheme, Stream};
use scrimp_onnx::proto::{NodeProto, TensorProto};
use scrimp_onnx::{BLOCKS_SINCE, Element, Layout, Packed, Sharing};
use scrimp_train::Role;
use scrimp_train::data::{Loader, epoch_order};
use scrimp_train::evaluation::{Evaluator, FixedRange, Held};
use scrimp_train::params::NamedTensor;
use scrimp_train::plan::{Plan, PlannedTensor, Status};
use scrimp_train::telemetry::TensorReport;
use serde::Serialize;

use super::{ExportError, OPSET};

/// A tensor that the run rounds, in the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoundedTensor {
    /// Path of the layer.
    pub layer: String,
    /// The tensor's role.
    pub role: Role,
    /// Its scheme in the run.
    pub scheme: String,
    /// What it is in the model.
    #[serde(flatten)]
    pub is: As,
}

/// What a rounded tensor is in a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "as", rename_all = "kebab-case")]
pub enum As {
    /// Codes and scales, from which the values come by a `DequantizeLinear`.
    Codes {
        /// The element type.
        element: &'static str,
        /// Bytes of codes, scales and zero points.
        bytes: usize,
    },
    /// A pair of `QuantizeLinear` and `DequantizeLinear`.
    Pair {
        /// The element type.
        element: &'static str,
        /// The scale.
        scale: f32,
        /// The zero point.
        zero: i32,
        /// Where the range is from; `None` where the scale does not go by one.
        range: Option<RangeSource>,
    },
    /// 32-bit integers at the scale of the products that a bias is added to: its rounded values within half a step of that.
    Sums {
        /// Bytes of codes and scales.
        bytes: usize,
    },
    /// Its rounded values as they are, in f32.
    Values {
        /// Why they are no codes.
        why: String,
    },
    /// What it would be without a scheme.
    Float {
        /// Why it is not rounded.
        why: String,
    },
}

/// Where the range of an activation is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RangeSource {
    /// The scheme remembers it from training.
    Remembered,
    /// Training images were sent through the network.
    Calibrated,
}

/// How a pair rounds.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    element: Element,
    scale: f32,
    zero: i32,
    /// The least and greatest value, where the scheme has fewer codes than the element.
    clip: Option<[f32; 2]>,
}

/// What tells one pair from another.
impl Pair {
    fn key(&self) -> (&'static str, u32, i32, Option<[u32; 2]>) {
        let bits = |clip: [f32; 2]| clip.map(f32::to_bits);
        (self.element.name, self.scale.to_bits(), self.zero, self.clip.map(bits))
    }

    /// The nodes that round `value`, and their constants, which are called after `base`.
    pub(super) fn write(
        &self,
        value: &str,
        base: &str,
        rounded: &str,
    ) -> (Vec<NodeProto>, Vec<TensorProto>) {
        let [scale, zero, codes, low, high, clipped] =
            ["s", "z", "q", "low", "high", "clip"].map(|end| format!("{base}/{end}"));
        let zeros = self.element.pack(&[self.zero]);
        let mut constants = vec![
            TensorProto::from_f32(&scale, &[], &[self.scale]),
            TensorProto::from_raw(&zero, self.element.kind, &[], zeros),
        ];
        let mut nodes = Vec::new();
        let mut source = value;
        if let Some([least, greatest]) = self.clip {
            constants.push(TensorProto::from_f32(&low, &[], &[least]));
            constants.push(TensorProto::from_f32(&high, &[], &[greatest]));
            nodes.push(NodeProto::call("Clip", &clipped, &[value, &low, &high], &[&clipped]));
            source = &clipped;
        }
        let quantize = [source, &scale, &zero];
        nodes.push(NodeProto::call("QuantizeLinear", &codes, &quantize, &[&codes]));
        let name = format!("{base}/dq");
        let dequantize = [&*codes, &scale, &zero];
        nodes.push(NodeProto::call("DequantizeLinear", &name, &dequantize, &[rounded]));
        (nodes, constants)
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Pair {}

impl std::hash::Hash for Pair {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// A parameter as it is stored.
#[derive(Clone, Debug)]
pub(super) enum Stored {
    /// Codes.
    Codes(Packed),
    /// Rounded values.
    Values(Vec<f32>),
}

/// How the tensors of a model are rounded.
#[derive(Debug)]
pub(super) struct Rounding {
    pairs: HashMap<(String, Role), Pair>,
    stored: HashMap<String, Stored>,
    ranges: Vec<FixedRange>,
    /// What became of each tensor.
    pub tensors: Vec<RoundedTensor>,
    /// The version of the standard operators that all of this needs.
    pub opset: i64,
}

impl Default for Rounding {
    fn default() -> Self {
        Self {
            pairs: HashMap::new(),
            stored: HashMap::new(),
            ranges: Vec::new(),
            tensors: Vec::new(),
            opset: OPSET,
        }
    }
}

/// The tensors of a plan that the forward pass rounds.
pub(super) fn wanted(plan: &Plan) -> Vec<&PlannedTensor> {
    const FORWARD: [Role; 4] = [Role::Weight, Role::Bias, Role::Input, Role::Output];
    let rounded = |t: &&PlannedTensor| matches!(t.status, Status::Emulated | Status::Packed);
    plan.tensors.iter().filter(rounded).filter(|t| FORWARD.contains(&t.role)).collect()
}

/// Ranges by layer and role, and where they are from.
pub(super) type Ranges = BTreeMap<(String, Role), (Range, RangeSource)>;

/// The ranges that schemes remember.
pub(super) fn remembered(wanted: &[&PlannedTensor], memory: &[NamedTensor]) -> Ranges {
    let of = |t: &&&PlannedTensor| {
        t.scheme.terms().delayed?;
        let name = format!("{}.{}", t.layer, t.role);
        let values = &memory.iter().find(|m| m.name == name)?.values;
        let (pairs, _) = values.as_chunks::<2>();
        let range = pairs
            .iter()
            .filter(|pair| pair.iter().all(|v| v.is_finite()))
            .fold(Range::EMPTY, |all, &[min, max]| all.join(Range { min, max }));
        let known = range.min <= range.max;
        known.then(|| ((t.layer.clone(), t.role), (range, RangeSource::Remembered)))
    };
    wanted.iter().filter(|t| needs_range(t)).filter_map(|t| of(&t)).collect()
}

/// Whether no range is left to be found.
pub(super) fn all_known(wanted: &[&PlannedTensor], known: &Ranges) -> bool {
    let is_known = |t: &&PlannedTensor| known.contains_key(&(t.layer.clone(), t.role));
    wanted.iter().filter(|t| needs_range(t)).all(is_known)
}

/// Whether the model has a pair for the tensor, whose scale goes by a range.
fn needs_range(tensor: &PlannedTensor) -> bool {
    tensor.role.has_batch()
        && tensor.scheme.terms().scale.is_some()
        && pair_element(&tensor.scheme).is_ok()
}

/// The ranges of all other tensors over images of the training set.
pub(super) fn calibrated(
    mut evaluator: Box<dyn Evaluator>,
    loader: &Loader,
    known: Ranges,
    seed: u32,
    samples: usize,
    batch: usize,
) -> Result<Ranges, ExportError> {
    let mut found = BTreeMap::<(String, Role), Range>::new();
    let order = epoch_order(loader.images().len(), seed, 0);
    for indices in order[..samples].chunks(batch) {
        let mut images = vec![0.0; indices.len() * loader.images().image_len()];
        loader.fill(indices, 0, &mut images);
        let (_, reports) = evaluator.observe(&images).map_err(ExportError::Problem)?;
        for TensorReport { layer, role, min, max, .. } in reports {
            if let (Some(min), Some(max)) = (min, max) {
                let range = found.entry((layer, role)).or_insert(Range::EMPTY);
                *range = range.join(Range { min, max });
            }
        }
    }
    let new = found.into_iter().map(|(of, range)| (of, (range, RangeSource::Calibrated)));
    Ok(new.chain(known).collect())
}

impl Rounding {
    /// Decides for each tensor what it is in the model.
    pub(super) fn new(
        wanted: &[&PlannedTensor],
        values: &BTreeMap<&str, &NamedTensor>,
        ranges: &Ranges,
        seed: u32,
        step: u64,
    ) -> Result<Self, ExportError> {
        let mut rounding = Self::default();
        for tensor in wanted {
            let is = match tensor.role.parameter() {
                Some(field) => {
                    let name = format!("{}.{field}", tensor.layer);
                    let point = format!("{}.{}", tensor.layer, tensor.role);
                    let stream = Stream::named(seed, &point).at_step(step);
                    rounding.parameter(tensor, values[name.as_str()], &stream)?
                }
                None => rounding.activation(tensor, ranges),
            };
            let (layer, role) = (tensor.layer.clone(), tensor.role);
            let scheme = tensor.scheme.to_string();
            rounding.tensors.push(RoundedTensor { layer, role, scheme, is });
        }
        for tensor in wanted.iter().filter(|t| t.kind == "linear") {
            match tensor.role {
                Role::Weight => rounding.spell_zero_points(&tensor.layer),
                Role::Bias => rounding.note_sums(&tensor.layer),
                _ => {}
            }
        }
        Ok(rounding)
    }

    /// The weight of a linear layer that ONNX Runtime can compute in integers: between codes of eight bits. Codes of fewer bits
    /// in a wider type are left out: the steps of their sums are so coarse that a bias which moves by half of one shows.
    fn octets(&self, layer: &str) -> Option<(&Pair, &Packed)> {
        let pair = self.pair(layer, Role::Input).filter(|pair| pair.clip.is_none())?;
        let Stored::Codes(packed) = self.stored(&format!("{layer}.weight"))? else { return None };
        let is_octet = |element: &Element| element.bits() == 8 && element.codes().is_some();
        (is_octet(&pair.element) && is_octet(&packed.element)).then_some((pair, packed))
    }

    /// What became of a parameter.
    fn fate(&mut self, layer: &str, role: Role) -> Option<&mut As> {
        let mut tensors = self.tensors.iter_mut();
        tensors.find(|t| t.role == role && t.layer == layer).map(|tensor| &mut tensor.is)
    }

    /// Gives such a weight zero points, without which ONNX Runtime computes the layer in floats.
    fn spell_zero_points(&mut self, layer: &str) {
        if self.octets(layer).is_none() {
            return;
        }
        let name = format!("{layer}.weight");
        let Some(Stored::Codes(packed)) = self.stored.get_mut(&name) else { return };
        packed.spell_zero_points();
        let bytes_now = packed.bytes();
        if let Some(As::Codes { bytes, .. }) = self.fate(layer, Role::Weight) {
            *bytes = bytes_now;
        }
    }

    /// Notes that the rounded bias of such a layer is integers in the model.
    fn note_sums(&mut self, layer: &str) {
        let name = format!("{layer}.bias");
        let Some(Stored::Values(values)) = self.stored(&name) else { return };
        let Some((_, constants)) = self.bias(layer, &name, values) else { return };
        let bytes = constants.iter().filter_map(|t| t.raw_data.as_deref()).map(<[u8]>::len).sum();
        if let Some(is) = self.fate(layer, Role::Bias) {
            *is = As::Sums { bytes };
        }
    }

    /// The bias of such a layer as the integers that ONNX Runtime wants: the node that gives it under `name`, and the constants
    /// that it reads. It moves by half a step of the sums at most.
    pub(super) fn bias(
        &self,
        layer: &str,
        name: &str,
        values: &[f32],
    ) -> Option<(NodeProto, [TensorProto; 2])> {
        let (pair, packed) = self.octets(layer)?;
        let layout = Layout { shape: packed.shape.clone(), axis: 0 };
        let parts = ["/c", "/s"].map(|end| format!("{name}{end}"));
        packed.write_bias(&layout, values, pair.scale, name, parts.each_ref().map(String::as_str))
    }

    /// How an activation is rounded.
    pub(super) fn pair(&self, layer: &str, role: Role) -> Option<&Pair> {
        self.pairs.get(&(layer.to_owned(), role))
    }

    /// How a parameter is stored, if not as it is.
    pub(super) fn stored(&self, name: &str) -> Option<&Stored> {
        self.stored.get(name)
    }

    /// What of the activations is another than in training: scales that do not change, and no rounding at all.
    pub(super) fn held(&self) -> Held {
        let float = |t: &&RoundedTensor| matches!(t.is, As::Float { .. });
        let floats = self.tensors.iter().filter(float).map(|t| (t.layer.clone(), t.role)).collect();
        Held { fixed: self.ranges.clone(), floats }
    }

    fn needs(&mut self, element: &Element) {
        self.opset = self.opset.max(element.opset);
    }

    fn parameter(
        &mut self,
        tensor: &PlannedTensor,
        values: &NamedTensor,
        stream: &Stream,
    ) -> Result<As, ExportError> {
        let NamedTensor { name, shape, values } = values;
        let problem = |what: String| {
            let tensor = format!("{}.{}", tensor.layer, tensor.role);
            ExportError::Problem(scrimp_train::tap::Problem { tensor, step: 0, what })
        };
        let mut bytes = Vec::new();
        tensor
            .scheme
            .encode(values, shape, stream, &mut bytes)
            .map_err(|e| problem(e.to_string()))?;
        let mut rounded = vec![0.0; values.len()];
        let decoded = tensor.scheme.decode(&bytes, shape, &mut rounded);
        decoded.map_err(|e| problem(e.to_string()))?;
        let why = match codes(tensor, shape, values, &bytes, &rounded) {
            Ok(packed) => {
                self.needs(&packed.element);
                if matches!(packed.sharing, Sharing::Blocks { .. }) {
                    self.opset = self.opset.max(BLOCKS_SINCE);
                }
                let is = As::Codes { element: packed.element.name, bytes: packed.bytes() };
                self.stored.insert(name.clone(), Stored::Codes(packed));
                return Ok(is);
            }
            Err(why) => why,
        };
        self.stored.insert(name.clone(), Stored::Values(rounded));
        Ok(As::Values { why })
    }

    fn activation(&mut self, tensor: &PlannedTensor, ranges: &Ranges) -> As {
        let of = (tensor.layer.clone(), tensor.role);
        let element = match pair_element(&tensor.scheme) {
            Ok(element) => element,
            Err(why) => return As::Float { why },
        };
        let (format, scale) = (tensor.scheme.format(), tensor.scheme.terms().scale);
        let (params, source) = match (format, scale, ranges.get(&of)) {
            (Some(format), Some(store), Some((range, source))) => {
                let (layer, role) = of.clone();
                self.ranges.push(FixedRange { layer, role, min: range.min, max: range.max });
                (format.fit(*range, store), Some(*source))
            }
            (_, None, _) => (Params::UNIT, None),
            _ => return As::Float { why: "no value of it was seen".into() },
        };
        self.needs(&element);
        let Params { scale, zero, .. } = params;
        let clip = format.and_then(|f| clip(&f.card(), &element, &params));
        let is = As::Pair { element: element.name, scale, zero, range: source };
        self.pairs.insert(of, Pair { element, scale, zero, clip });
        is
    }
}

/// The element type that has the values of a scheme at scale 1.
fn element(scheme: &Scheme) -> Result<Element, String> {
    let Some(format) = scheme.format() else {
        return Err("ONNX has no type for its codes".into());
    };
    let header = format.header();
    let name = format.name();
    let element = match name.as_str() {
        "int2" | "int3" | "int4" => "int4",
        "uint1" | "uint2" | "uint3" | "uint4" => "uint4",
        "int5" | "int6" | "int7" | "int8" => "int8",
        "uint5" | "uint6" | "uint7" | "uint8" => "uint8",
        "e4m3fn" | "e5m2" => name.as_str(),
        _ => return Err(format!("ONNX has no pairs with codes of {name}")),
    };
    if header.offset {
        return Err("ONNX has zero points and no offsets".into());
    }
    Element::named(element).ok_or_else(|| format!("ONNX has no {element}"))
}

/// The element type of the pair that rounds as a scheme does.
fn pair_element(scheme: &Scheme) -> Result<Element, String> {
    let element = element(scheme)?;
    if scheme.rounding() != Way::NearestEven {
        return Err("QuantizeLinear rounds to nearest, ties to even".into());
    }
    match scheme.granularity() {
        None | Some(Granularity::Tensor) => Ok(element),
        Some(other) => {
            Err(format!("scales that do not change are found per tensor, not per {other}"))
        }
    }
}

/// The range of a scheme's codes, where the element has others besides: those beyond would be reached by values that the
/// scheme clips. One more on the negative side is let be, as runtimes have fast ways for pairs alone.
fn clip(card: &Card, element: &Element, params: &Params) -> Option<[f32; 2]> {
    let (_, high) = element.codes()?;
    let at = |code: f32| (code - params.zero as f32) * params.scale;
    (card.max < high as f32).then(|| [at(card.min), at(card.max)])
}

/// A weight as codes, whose values are the rounded ones to the last bit.
fn codes(
    tensor: &PlannedTensor,
    shape: &[usize],
    values: &[f32],
    bytes: &[u8],
    rounded: &[f32],
) -> Result<Packed, String> {
    if !(tensor.role == Role::Weight && matches!(tensor.kind, "conv2d" | "linear")) {
        return Err("runtimes take codes for the weights of products alone".into());
    }
    let scheme = &tensor.scheme;
    let element = element(scheme)?;
    let sharing = sharing(scheme, shape)?;
    let (Some(format), Ok(Some(found))) = (scheme.format(), scheme.codes(bytes, shape)) else {
        return Err("its codes are not of one width".into());
    };
    let params = params(scheme, format, sharing, shape, values);
    let signed = element.codes().is_some_and(|(low, _)| low < 0);
    let unused = 32 - format.bits();
    let code = |code: u32| {
        if signed { (code << unused).cast_signed() >> unused } else { code.cast_signed() }
    };
    let zeros = match format.header().zero_bits {
        0 => Vec::new(),
        _ => params.iter().map(|p| p.zero).collect(),
    };
    let packed = Packed {
        element,
        shape: shape.to_vec(),
        sharing,
        scales: params.iter().map(|p| p.scale).collect(),
        powers: false,
        zeros,
        codes: found.into_iter().map(code).collect(),
    };
    let same = packed.values().iter().zip(rounded).all(|(a, b)| a == b);
    same.then_some(packed).ok_or_else(|| "its scales are stored in a way that ONNX lacks".into())
}

/// Which elements share a scale, as ONNX says it.
fn sharing(scheme: &Scheme, shape: &[usize]) -> Result<Sharing, String> {
    let is_matrix = shape.len() == 2 || scheme.terms().matrix;
    // Runs along what is summed lie on axis 1 where a kernel has one pixel.
    let is_flat = is_matrix && shape.iter().skip(2).all(|&len| len == 1);
    Ok(match scheme.granularity() {
        None | Some(Granularity::Tensor) => Sharing::Tensor,
        Some(Granularity::Channel) => Sharing::Axis(0),
        Some(Granularity::Axis(axis)) => Sharing::Axis(axis),
        Some(Granularity::Row) if is_matrix => Sharing::Axis(0),
        Some(Granularity::Group(len)) if is_flat => {
            Sharing::Blocks { axis: 1, len: len.min(shape[1]) }
        }
        Some(other) => {
            return Err(format!("ONNX has scales for runs along one axis, and no {other} here"));
        }
    })
}

/// The parameters of each group.
fn params(
    scheme: &Scheme,
    format: &dyn Format,
    sharing: Sharing,
    shape: &[usize],
    values: &[f32],
) -> Vec<Params> {
    let groups: usize = sharing.scale_shape(shape).iter().product();
    let Some(store) = scheme.terms().scale else { return vec![Params::UNIT; groups] };
    let mut ranges = vec![Range::EMPTY; groups];
    let group = sharing.groups(shape);
    for (at, &value) in values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
        let range = &mut ranges[group(at)];
        *range = range.join(Range { min: value, max: value });
    }
    let fit = |range: Range| format.fit(range, store);
    let zero = Range { min: 0.0, max: 0.0 };
    ranges.into_iter().map(|r| fit(if r.min > r.max { zero } else { r })).collect()
}
