//! In which kind of number each product of a layer is computed, and why.

use schemars::JsonSchema;
use scrimp_codec::codecs::Width;
use scrimp_codec::{Granularity, Scheme};
use scrimp_kernels::{Kind, LONGEST_INT8};
use serde::{Deserialize, Serialize, Serializer};

/// In what products are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    /// In int8 where both factors are integers of up to 8 bits, in bf16 where it holds both exactly, else in f32.
    #[default]
    Auto,
    /// In f32, on the rounded values.
    Emulate,
}

/// The three products of a layer, each with what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Products<T = Choice> {
    /// `y` of `x` and `w`.
    pub forward: T,
    /// `dx` of `dy` and `w`.
    pub input_gradient: T,
    /// `dw` of `x` and `dy`.
    pub weight_gradient: T,
}

/// The kind of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// In what it is computed.
    #[serde(serialize_with = "kind_name")]
    pub kind: Kind,
    /// Why it is not a shorter one; empty where there is none.
    pub why: &'static str,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
pub(crate) fn kind_name<S: Serializer>(kind: &Kind, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(kind.name())
}

impl Products {
    /// All three in f32, on the rounded values.
    pub const EMULATED: Self = {
        let choice = Choice { kind: Kind::F32, why: "compute = \"emulate\"" };
        Self { forward: choice, input_gradient: choice, weight_gradient: choice }
    };

    /// The kinds that suit the schemes of a layer's `x`, `w` and `dy`, where activations have so many axes and so many
    /// products are summed.
    pub fn of(
        compute: Compute,
        [x, w, dy]: [&Scheme; 3],
        axes: usize,
        lengths: Products<usize>,
    ) -> Self {
        if compute == Compute::Emulate {
            return Self::EMULATED;
        }
        let Products { forward, input_gradient, weight_gradient } = lengths;
        let channels = axes.saturating_sub(1);
        let choose = |[left, right]: [Part; 2], length| choose(&left, &right, length);
        Self {
            forward: choose([Part::of(x, None), Part::of(w, Some(0))], forward),
            input_gradient: choose([Part::of(dy, None), Part::of(w, None)], input_gradient),
            weight_gradient: choose(
                [Part::of(x, None), Part::of(dy, Some(channels))],
                weight_gradient,
            ),
        }
    }

    /// The kinds alone.
    pub(crate) fn kinds(&self) -> Products<Kind> {
        Products {
            forward: self.forward.kind,
            input_gradient: self.input_gradient.kind,
            weight_gradient: self.weight_gradient.kind,
        }
    }
}

/// A factor of a product.
struct Part {
    integers: Option<Width>,
    short: bool,
    why: &'static str,
}

impl Part {
    /// `free` is the axis over which the product does not sum, and along which a scale may vary.
    fn of(scheme: &Scheme, free: Option<usize>) -> Self {
        let factors = scheme.factors();
        let uniform = match scheme.granularity() {
            None | Some(Granularity::Tensor) => true,
            // A plan has made an axis of the channels of an activation.
            Some(Granularity::Channel) => free == Some(0),
            Some(Granularity::Axis(axis)) => free == Some(axis),
            Some(_) => false,
        };
        let integers = factors.integers.filter(|_| uniform);
        let why = if scheme.is_float32() {
            "a factor is f32"
        } else if factors.integers.is_some() && !uniform {
            "scales vary along what is summed"
        } else {
            "a factor needs more than 8 bits"
        };
        Self { integers, short: factors.short, why }
    }

    fn fits_bf16(&self) -> bool {
        self.short || self.integers.is_some()
    }
}

fn choose(left: &Part, right: &Part, length: usize) -> Choice {
    let narrow = |part: &Part| part.integers == Some(Width::Narrow);
    if narrow(left) && narrow(right) {
        return if length <= LONGEST_INT8 {
            Choice { kind: Kind::Int8, why: "" }
        } else {
            Choice { kind: Kind::Bf16, why: "sums are too long for 32-bit integers" }
        };
    }
    match [left, right].into_iter().find(|part| !part.fits_bf16()) {
        Some(part) => Choice { kind: Kind::F32, why: part.why },
        None => Choice { kind: Kind::Bf16, why: "a factor is no integer of 8 bits" },
    }
}
