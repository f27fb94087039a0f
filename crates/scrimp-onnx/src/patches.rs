//! What the rows of a layer are multiplied by: the inputs of a product, the patches of a convolution.

use scrimp_kernels::matmul::{MatmulShape, matmul};
use scrimp_kernels::{Operand, Scale};

use crate::Value;
use crate::gptq::Moments;
use crate::proto::NodeProto;
use crate::weights::Layout;

/// Patches of one sample that are looked at; more of one image say little new.
const PATCHES_PER_SAMPLE: usize = 128;

/// The moments of a layer's inputs before any were seen; `None` for layers whose inputs are not looked at.
pub fn moments(node: &NodeProto, layout: &Layout) -> Option<Moments> {
    match node.op_type() {
        "Conv" => {
            let groups = usize::try_from(node.int("group", 1)).ok().filter(|&g| g > 0)?;
            layout.rows().is_multiple_of(groups).then(|| Moments::new(layout.row_len(), groups))
        }
        "Gemm" if node.int("transA", 0) == 0 => Some(Moments::new(layout.row_len(), 1)),
        "MatMul" if layout.shape.len() == 2 => Some(Moments::new(layout.row_len(), 1)),
        _ => None,
    }
}

/// Adds the inputs of one batch, as they are and as the float model has them.
pub fn add(node: &NodeProto, layout: &Layout, input: &Value, float: &Value, moments: &mut Moments) {
    let (Some(values), Some(floats)) = (input.as_f32(), float.as_f32()) else { return };
    if input.shape != float.shape {
        return;
    }
    if node.op_type() == "Conv" {
        convolved(node, layout, &input.shape, [values, floats], moments);
    } else {
        let rows = values.len() / moments.len.max(1);
        add_rows(values, values, rows, moments.len, &mut moments.sums[0]);
        add_rows(floats, values, rows, moments.len, &mut moments.cross[0]);
        moments.count += rows;
    }
}

/// `sums += left^T right` for factors of `[count, len]`.
fn add_rows(left: &[f32], right: &[f32], count: usize, len: usize, sums: &mut [f64]) {
    if count == 0 {
        return;
    }
    let shape = MatmulShape {
        batch: 1,
        m: len,
        k: count,
        n: len,
        left_is_transposed: true,
        right_is_transposed: false,
    };
    let mut product = vec![0.0; len * len];
    let (left, right) = (Operand::F32(left), Operand::F32(right));
    matmul(&shape, left, right, Scale::Tensor(1.0), &mut product)
        .expect("the slices have these sizes");
    for (sum, value) in sums.iter_mut().zip(product) {
        *sum += f64::from(value);
    }
}

/// One axis of a convolution: how places of the output meet places of the input.
#[derive(Clone, Copy)]
struct Axis {
    input: usize,
    output: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    before: usize,
}

impl Axis {
    /// The axes of a convolution of this input.
    fn all(node: &NodeProto, kernel: &[usize], input: &[usize]) -> Vec<Self> {
        let rank = kernel.len();
        let at = |values: &[i64], axis: usize, default: usize| {
            values.get(axis).and_then(|&v| usize::try_from(v).ok()).unwrap_or(default)
        };
        (0..rank)
            .map(|axis| {
                let stride = at(node.ints("strides"), axis, 1).max(1);
                let dilation = at(node.ints("dilations"), axis, 1).max(1);
                let reach = (kernel[axis] - 1) * dilation + 1;
                let size = input[axis];
                let (before, after) = match node.text("auto_pad", "NOTSET") {
                    "SAME_UPPER" | "SAME_LOWER" => {
                        let output = size.div_ceil(stride);
                        let total = ((output - 1) * stride + reach).saturating_sub(size);
                        let small = total / 2;
                        if node.text("auto_pad", "") == "SAME_UPPER" {
                            (small, total - small)
                        } else {
                            (total - small, small)
                        }
                    }
                    "VALID" => (0, 0),
                    _ => (at(node.ints("pads"), axis, 0), at(node.ints("pads"), axis + rank, 0)),
                };
                let output = (size + before + after).saturating_sub(reach) / stride + 1;
                Self { input: size, output, kernel: kernel[axis], stride, dilation, before }
            })
            .collect()
    }
}

fn convolved(
    node: &NodeProto,
    layout: &Layout,
    shape: &[usize],
    inputs: [&[f32]; 2],
    moments: &mut Moments,
) {
    let kernel = &layout.shape[2..];
    if shape.len() != layout.shape.len() || kernel.contains(&0) || shape.contains(&0) {
        return;
    }
    let (batch, channels) = (shape[0], shape[1]);
    let per_group = layout.shape[1];
    let axes = Axis::all(node, kernel, &shape[2..]);
    let places: usize = axes.iter().map(|axis| axis.output).product();
    let step = places.div_ceil(PATCHES_PER_SAMPLE).max(1);
    let plane: usize = shape[2..].iter().product();
    let taps: usize = kernel.iter().product();
    let offsets: Vec<Option<usize>> = (0..places)
        .flat_map(|place| (0..taps).map(move |tap| (place, tap)))
        .map(|(place, tap)| at_tap(&axes, place, tap))
        .collect();
    for group in 0..moments.sums.len() {
        let mut rows = [Vec::new(), Vec::new()];
        let mut count = 0;
        for sample in 0..batch {
            // Another start for each sample, so that every place has its turn.
            for place in (sample % step..places).step_by(step) {
                for channel in group * per_group..(group + 1) * per_group {
                    let from = (sample * channels + channel) * plane;
                    let offsets = &offsets[place * taps..(place + 1) * taps];
                    for (rows, values) in rows.iter_mut().zip(inputs) {
                        let plane = &values[from..from + plane];
                        rows.extend(offsets.iter().map(|at| at.map_or(0.0, |at| plane[at])));
                    }
                }
                count += 1;
            }
        }
        let [values, floats] = &rows;
        add_rows(values, values, count, moments.len, &mut moments.sums[group]);
        add_rows(floats, values, count, moments.len, &mut moments.cross[group]);
        if group == 0 {
            moments.count += count;
        }
    }
}

/// Where in a plane tap `tap` of the kernel lies for place `place` of the output; `None` in the padding.
fn at_tap(axes: &[Axis], mut place: usize, mut tap: usize) -> Option<usize> {
    let mut offset = 0;
    let mut stride = 1;
    for axis in axes.iter().rev() {
        let (out, within) = (place % axis.output, tap % axis.kernel);
        place /= axis.output;
        tap /= axis.kernel;
        let at = (out * axis.stride + within * axis.dilation).checked_sub(axis.before)?;
        if at >= axis.input {
            return None;
        }
        offset += at * stride;
        stride *= axis.input;
    }
    Some(offset)
}
