//! Constant tensors that layers multiply by: along which axis they have rows, and how their codes are stored.

use std::collections::HashMap;

use crate::OnnxError;
use crate::element::Element;
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::tensor::DataType;

/// A weight as rows: one for each output of the layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The shape of the tensor.
    pub shape: Vec<usize>,
    /// The axis that counts the rows.
    pub axis: usize,
}

impl Layout {
    /// The layout of input 1 of a layer; `None` where that is no constant or the operator has no such weight.
    pub fn of(node: &NodeProto, graph: &GraphProto) -> Option<Self> {
        let tensor = graph.constant(node.arg(1)?)?;
        let shape = tensor.shape().ok()?;
        let rank = shape.len();
        let axis = match node.op_type() {
            "Conv" if rank > 2 => 0,
            "ConvTranspose" if rank > 2 && node.int("group", 1) == 1 => 1,
            "Gemm" if rank == 2 => usize::from(node.int("transB", 0) == 0),
            "MatMul" if rank >= 2 => rank - 1,
            _ => return None,
        };
        node.is_standard().then_some(Self { shape, axis })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.shape[self.axis]
    }

    /// The number of rows, as shapes of a file have it.
    pub(crate) fn rows_i64(&self) -> i64 {
        i64::try_from(self.rows()).unwrap_or(i64::MAX)
    }

    /// Elements of one row.
    pub fn row_len(&self) -> usize {
        self.shape.iter().product::<usize>() / self.rows().max(1)
    }

    fn inner(&self) -> usize {
        self.shape[self.axis + 1..].iter().product()
    }

    /// Calls `change` with each element and the number of its row, in storage order.
    pub fn for_each_mut(&self, values: &mut [f32], mut change: impl FnMut(usize, &mut f32)) {
        let (rows, inner) = (self.rows(), self.inner());
        for (at, value) in values.iter_mut().enumerate() {
            change(at / inner % rows, value);
        }
    }

    /// The elements row after row: `[rows, row_len]`.
    pub fn to_rows<T: Copy>(&self, values: &[T]) -> Vec<T> {
        if self.axis == 0 {
            return values.to_vec();
        }
        let (rows, inner) = (self.rows(), self.inner());
        let block = rows * inner;
        let mut out = Vec::with_capacity(values.len());
        for row in 0..rows {
            for outer in values.chunks_exact(block) {
                out.extend_from_slice(&outer[row * inner..(row + 1) * inner]);
            }
        }
        out
    }

    /// The inverse of [`to_rows`](Self::to_rows).
    pub fn from_rows<T: Copy + Default>(&self, rows: &[T]) -> Vec<T> {
        if self.axis == 0 {
            return rows.to_vec();
        }
        let (count, inner) = (self.rows(), self.inner());
        let outers = self.row_len() / inner.max(1);
        let mut out = vec![T::default(); rows.len()];
        for (row, values) in rows.chunks_exact(self.row_len()).enumerate() {
            for (outer, part) in values.chunks_exact(inner).enumerate().take(outers) {
                let at = (outer * count + row) * inner;
                out[at..at + inner].copy_from_slice(part);
            }
        }
        out
    }
}

/// The version of the standard operators that first has scales for blocks.
pub const BLOCKS_SINCE: i64 = 21;

/// Which elements of a tensor share a scale, as `DequantizeLinear` can say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All of them.
    Tensor,
    /// Those with the same index along an axis.
    Axis(usize),
    /// Runs of so many along an axis.
    Blocks {
        /// The axis that is cut.
        axis: usize,
        /// The length of a run.
        len: usize,
    },
}

impl Sharing {
    /// The shape of the scales for a tensor of this shape.
    pub fn scale_shape(self, shape: &[usize]) -> Vec<usize> {
        match self {
            Self::Tensor => Vec::new(),
            Self::Axis(axis) => vec![shape[axis]],
            Self::Blocks { axis, len } => {
                let mut scales = shape.to_vec();
                scales[axis] = scales[axis].div_ceil(len);
                scales
            }
        }
    }

    /// The number of the scale of each element, in storage order.
    pub fn groups(self, shape: &[usize]) -> impl Fn(usize) -> usize + use<> {
        let (axis, len) = match self {
            Self::Tensor => (0, 0),
            Self::Axis(axis) => (axis, 0),
            Self::Blocks { axis, len } => (axis, len),
        };
        let inner: usize = shape.iter().skip(axis + 1).product();
        let size = shape.get(axis).copied().unwrap_or(1);
        move |at: usize| match self {
            Self::Tensor => 0,
            Self::Axis(_) => at / inner % size,
            Self::Blocks { .. } => {
                let (outer, place) = (at / (inner * size), at / inner % size);
                (outer * size.div_ceil(len) + place / len) * inner + at % inner
            }
        }
    }
}

/// A constant as codes and scales.
#[derive(Clone, Debug)]
pub struct Packed {
    /// What the codes mean.
    pub element: Element,
    /// The shape of the tensor.
    pub shape: Vec<usize>,
    /// Which elements share a scale.
    pub sharing: Sharing,
    /// The scales.
    pub scales: Vec<f32>,
    /// Whether the scales are powers of two from 2^-127 to 2^127, of which a file holds the exponents.
    pub powers: bool,
    /// The zero points; empty where all are 0.
    pub zeros: Vec<i32>,
    /// The codes, in storage order.
    pub codes: Vec<i32>,
}

/// The version of the standard operators that first has exponents for scales.
pub const POWERS_SINCE: i64 = 24;

/// The byte of a scale that is a power of two: its exponent and 127.
fn exponent_byte(scale: f32) -> u8 {
    // 2^-127 is subnormal, and the exponent in its bits is 0 as its byte is.
    (scale.to_bits() >> 23).to_le_bytes()[0]
}

/// The power of two that a byte stands for; 255 stands for NaN.
pub(crate) fn power_of(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

impl Packed {
    /// The values that the codes stand for.
    pub fn values(&self) -> Vec<f32> {
        let group = self.sharing.groups(&self.shape);
        self.codes
            .iter()
            .enumerate()
            .map(|(at, &code)| {
                let group = group(at);
                let zero = self.zeros.get(group).copied().unwrap_or(0);
                self.element.decode(code, self.scales[group], zero)
            })
            .collect()
    }

    /// Whether there is one scale for each row.
    pub fn scales_by_row(&self) -> bool {
        matches!(self.sharing, Sharing::Axis(_))
    }

    /// Bytes of codes, scales and zero points.
    pub fn bytes(&self) -> usize {
        let packed = |count| self.element.kind.bytes(count).unwrap_or(0);
        let scale_bytes = if self.powers { 1 } else { 4 };
        packed(self.codes.len()) + scale_bytes * self.scales.len() + packed(self.zeros.len())
    }

    /// The nodes that give the values, and the constants they read: codes, scales, and zero points where there are any. The
    /// names are those of the constants; the third is free for scales as floats where the file holds exponents, as which no
    /// element with zero points has its scales.
    ///
    /// `DequantizeLinear` takes exponents for scales too, but ONNX Runtime has only a `Cast` of them.
    pub fn write(&self, output: &str, names: [&str; 3]) -> (Vec<NodeProto>, Vec<TensorProto>) {
        let [code_name, mut scale_name, zero_name] = names;
        let scale_shape = self.sharing.scale_shape(&self.shape);
        let packed = self.element.pack(&self.codes);
        let mut constants =
            vec![TensorProto::from_raw(code_name, self.element.kind, &self.shape, packed)];
        let mut nodes = Vec::new();
        if self.powers {
            let exponents = self.scales.iter().map(|&scale| exponent_byte(scale)).collect();
            let kind = DataType::Float8E8M0;
            constants.push(TensorProto::from_raw(scale_name, kind, &scale_shape, exponents));
            let cast = NodeProto::call("Cast", zero_name, &[scale_name], &[zero_name]);
            nodes.push(cast.with_int("to", i64::from(DataType::Float as i32)));
            scale_name = zero_name;
        } else {
            constants.push(TensorProto::from_f32(scale_name, &scale_shape, &self.scales));
        }
        let mut inputs = vec![code_name, scale_name];
        if !self.zeros.is_empty() {
            let packed = self.element.pack(&self.zeros);
            constants.push(TensorProto::from_raw(
                zero_name,
                self.element.kind,
                &scale_shape,
                packed,
            ));
            inputs.push(zero_name);
        }
        let node = NodeProto::call("DequantizeLinear", output, &inputs, &[output]);
        let node = match self.sharing {
            Sharing::Tensor => node,
            Sharing::Axis(axis) => node.with_int("axis", as_i64(axis)),
            Sharing::Blocks { axis, len } => {
                node.with_int("axis", as_i64(axis)).with_int("block_size", as_i64(len))
            }
        };
        nodes.push(node);
        (nodes, constants)
    }

    /// Gives an integer weight zero points, all 0, where it has none: some runtimes compute in integers only where they are
    /// there.
    pub fn spell_zero_points(&mut self) {
        if self.zeros.is_empty() && self.element.codes().is_some() {
            self.zeros = vec![0; self.scales.len()];
        }
    }

    /// The bias of a layer with this weight as 32-bit integers at the scale of the products that it is added to: the node that
    /// gives the values, and the codes and scales that it reads.
    ///
    /// `input_scale` is the scale of what the layer reads. `None` where there is not one value for each row, or the weight has
    /// other scales than for rows or for all of it.
    pub fn write_bias(
        &self,
        layout: &Layout,
        values: &[f32],
        input_scale: f32,
        output: &str,
        [code_name, scale_name]: [&str; 2],
    ) -> Option<(NodeProto, [TensorProto; 2])> {
        let rows = layout.rows();
        let by_row = self.sharing == Sharing::Axis(layout.axis);
        if values.len() != rows || !(by_row || self.sharing == Sharing::Tensor) {
            return None;
        }
        let scales: Vec<f32> = self.scales.iter().map(|s| s * input_scale).collect();
        #[expect(clippy::cast_possible_truncation, reason = "saturates, as the specification says")]
        let codes: Vec<u8> = values
            .iter()
            .enumerate()
            .map(|(row, v)| (v / scales[if by_row { row } else { 0 }]).round_ties_even() as i32)
            .flat_map(i32::to_le_bytes)
            .collect();
        let shape: &[usize] = if by_row { &[rows] } else { &[] };
        let constants = [
            TensorProto::from_raw(code_name, DataType::Int32, &[rows], codes),
            TensorProto::from_f32(scale_name, shape, &scales),
        ];
        let node = NodeProto::call("DequantizeLinear", output, &[code_name, scale_name], &[output]);
        Some((if by_row { node.with_int("axis", 0) } else { node }, constants))
    }

    /// What a `DequantizeLinear` of constants reads; `None` where it reads something else.
    ///
    /// # Errors
    /// If codes, scales and shape contradict each other.
    pub fn read(
        node: &NodeProto,
        known: &HashMap<String, TensorProto>,
    ) -> Result<Option<Self>, OnnxError> {
        let constant = |at: usize| node.arg(at).and_then(|name| known.get(name));
        let (Some(codes), Some(scales)) = (constant(0), constant(1)) else { return Ok(None) };
        let Some(element) = codes.kind().and_then(Element::of) else { return Ok(None) };
        if scales.kind() != Some(DataType::Float)
            || (node.arg(2).is_some() && constant(2).is_none())
        {
            return Ok(None);
        }
        let shape = codes.shape()?;
        if crate::tensor::elems(&codes.dims).is_none() {
            return Err(OnnxError::tensor(codes.name(), format!("impossible shape {shape:?}")));
        }
        let scale_values = scales.to_f32()?;
        let axis = node.int("axis", 1);
        let axis = if axis < 0 { axis + as_i64(shape.len()) } else { axis };
        let axis = usize::try_from(axis).unwrap_or(usize::MAX);
        let block = usize::try_from(node.int("block_size", 0)).unwrap_or(0);
        let sharing = if block > 0 {
            Sharing::Blocks { axis, len: block }
        } else if scale_values.len() == 1 {
            Sharing::Tensor
        } else {
            Sharing::Axis(axis)
        };
        let contradicts = |what: &str| {
            OnnxError::tensor(codes.name(), format!("{what} do not fit the shape {shape:?}"))
        };
        if sharing != Sharing::Tensor && axis >= shape.len() {
            return Err(contradicts("the axis of its scales does"));
        }
        let wanted: usize = sharing.scale_shape(&shape).iter().product();
        if scale_values.len() != wanted {
            return Err(contradicts("its scales"));
        }
        let read = |tensor: &TensorProto, what: &str| -> Result<Vec<i32>, OnnxError> {
            let count = crate::tensor::elems(&tensor.dims).ok_or_else(|| contradicts(what))?;
            match &tensor.raw_data {
                Some(raw) => element.unpack(raw, count).ok_or_else(|| contradicts(what)),
                None if element.bits() >= 8 && tensor.int32_data.len() == count => {
                    Ok(tensor.int32_data.clone())
                }
                None => Err(contradicts(what)),
            }
        };
        let zeros = constant(2).map(|tensor| read(tensor, "its zero points")).transpose()?;
        let zeros = zeros.unwrap_or_default();
        if !zeros.is_empty() && zeros.len() != wanted {
            return Err(contradicts("its zero points"));
        }
        let values = read(codes, "its codes")?;
        Ok(Some(Self {
            element,
            shape,
            sharing,
            scales: scale_values,
            powers: false,
            zeros,
            codes: values,
        }))
    }
}

pub(crate) fn as_i64(size: usize) -> i64 {
    i64::try_from(size).expect("a size in memory")
}
