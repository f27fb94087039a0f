//! What each runtime computes in integers, and in which form it wants to be told.

use scrimp_codec::Granularity;

use crate::config::{Mode, Spec};

/// A runtime that a model is made for.
#[derive(Debug, PartialEq, Eq)]
pub struct Profile {
    /// The name in configurations.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// The element of activations.
    pub activations: &'static str,
    /// Whether the zero point of activations must be 0.
    pub symmetric: bool,
    /// Whether every reader of a tensor gets a pair of `QuantizeLinear` and `DequantizeLinear` of its own.
    pub pair_per_reader: bool,
    /// Operators with rules that this runtime computes in floats whatever is said to it.
    pub float_ops: &'static [&'static str],
    /// Operators that it computes in integers only if their bias is stored in 32 bits, at the scale of the products; the
    /// bias of others stays float.
    pub integer_bias: &'static [&'static str],
    /// Operators that it computes in integers only if the zero points of their weights are there, although all are 0.
    pub zero_points: &'static [&'static str],
    /// The elements and schemes of blocks that it runs for weights.
    pub weights: &'static [&'static str],
    /// Those of them that it runs only beside float activations, or with scales for blocks: it would put others into operators
    /// that do not know them.
    pub beside_floats: &'static [&'static str],
    /// The elements of activations that it runs.
    pub inputs: &'static [&'static str],
}

/// What both kinds of ONNX Runtime have in common.
const ONNX_RUNTIME: Profile = Profile {
    name: "ort-x86",
    about: "ONNX Runtime on x86: unsigned activations, without which convolutions stay float",
    activations: "uint8",
    symmetric: false,
    pair_per_reader: false,
    float_ops: &["ConvTranspose"],
    integer_bias: &["Gemm"],
    zero_points: &["Gemm", "MatMul"],
    weights: &[
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int4",
        "uint4",
        "int3",
        "int2",
        "uint2",
        "e4m3fn",
        "e5m2",
        "mxfp8_e4m3",
        "mxfp8_e5m2",
    ],
    beside_floats: &["int2", "uint2", "e4m3fn", "e5m2"],
    inputs: &["uint8", "int8", "uint16", "int16"],
};

/// A runtime that takes biases and zero points as they come.
const OPENVINO: Profile = Profile {
    name: "openvino",
    about: "OpenVINO on the CPU: signed and unsigned alike, and every small float",
    float_ops: &[],
    beside_floats: &[],
    integer_bias: &[],
    zero_points: &[],
    weights: &[
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int4",
        "uint4",
        "int3",
        "e4m3fn",
        "e5m2",
        "e2m1fn",
        "mxfp8_e4m3",
        "mxfp8_e5m2",
        "mxfp4",
    ],
    inputs: &["uint8", "int8", "uint16", "int16", "e4m3fn", "e5m2"],
    ..ONNX_RUNTIME
};

/// Every profile; the first is the default.
pub static PROFILES: &[Profile] = &[
    ONNX_RUNTIME,
    Profile {
        name: "ort-arm",
        about: "ONNX Runtime on ARM: signed activations, for which its kernels are made",
        activations: "int8",
        ..ONNX_RUNTIME
    },
    OPENVINO,
    Profile {
        name: "tensorrt",
        about: "TensorRT: signed and symmetric, a pair of quantizers for each reader",
        activations: "int8",
        symmetric: true,
        pair_per_reader: true,
        weights: &["int8", "int4", "int3", "e4m3fn", "e2m1fn"],
        inputs: &["int8", "e4m3fn", "e2m1fn"],
        ..OPENVINO
    },
];

impl Profile {
    /// Whether the runtime runs weights of this scheme.
    ///
    /// # Errors
    /// A sentence that names what it runs.
    pub fn check_weights(&self, spec: &Spec, mode: Mode) -> Result<(), String> {
        if !self.weights.contains(&spec.name) {
            let known = self.weights.join(", ");
            return Err(format!("{} runs no weights in {}; it runs {known}", self.name, spec.name));
        }
        let blocks = matches!(spec.granularity, Granularity::Group(_));
        if mode == Mode::Static && !blocks && self.beside_floats.contains(&spec.name) {
            return Err(format!(
                "{} runs weights in {} only beside float activations; {}/group:32 it runs beside codes too",
                self.name, spec.text, spec.name
            ));
        }
        Ok(())
    }

    /// Whether the runtime runs activations of this scheme.
    ///
    /// # Errors
    /// A sentence that names what it runs.
    pub fn check_activations(&self, spec: &Spec) -> Result<(), String> {
        if self.inputs.contains(&spec.name) {
            return Ok(());
        }
        let known = self.inputs.join(", ");
        Err(format!("{} runs no activations in {}; it runs {known}", self.name, spec.name))
    }
}

/// The profile with this name.
///
/// # Errors
/// A sentence that names what would be valid.
pub fn find(name: &str) -> Result<&'static Profile, String> {
    PROFILES.iter().find(|profile| profile.name == name).ok_or_else(|| {
        let names: Vec<&str> = PROFILES.iter().map(|profile| profile.name).collect();
        let near = scrimp_codec::nearest(name, names.iter().copied())
            .map(|near| format!(" (did you mean `{near}`?)"));
        format!(
            "unknown target `{name}`{}; known are {}",
            near.unwrap_or_default(),
            names.join(", ")
        )
    })
}
