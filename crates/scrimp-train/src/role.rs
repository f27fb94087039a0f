//! The roles of the tensors around a layer.

use serde::{Deserialize, Serialize};

/// What a tensor is to a layer `y = op(x, w, b)`, or to the optimizer of its parameters. Printed and written as
/// `x w b y dy dx dw db`, `aw ab` for what workers send of `dw` and `db`, and `m mb v vb v_max vb_max` for what the optimizer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// What comes in.
    #[serde(rename = "x")]
    Input,
    /// The weight.
    #[serde(rename = "w")]
    Weight,
    /// The bias.
    #[serde(rename = "b")]
    Bias,
    /// What goes out.
    #[serde(rename = "y")]
    Output,
    /// The gradient of the output, which comes in on the way back.
    #[serde(rename = "dy")]
    OutputGrad,
    /// The gradient of the input, which goes out on the way back.
    #[serde(rename = "dx")]
    InputGrad,
    /// The gradient of the weight, summed over the batch.
    #[serde(rename = "dw")]
    WeightGrad,
    /// The gradient of the bias, summed over the batch.
    #[serde(rename = "db")]
    BiasGrad,
    /// The weight's gradient over a worker's part of the batch, as it is sent.
    #[serde(rename = "aw")]
    WeightSent,
    /// The bias' gradient over a worker's part of the batch, as it is sent.
    #[serde(rename = "ab")]
    BiasSent,
    /// The first moment of the weight's gradient, or its momentum.
    #[serde(rename = "m")]
    Moment1,
    /// The first moment of the bias' gradient, or its momentum.
    #[serde(rename = "mb")]
    BiasMoment1,
    /// The second moment of the weight's gradient.
    #[serde(rename = "v")]
    Moment2,
    /// The second moment of the bias' gradient.
    #[serde(rename = "vb")]
    BiasMoment2,
    /// The largest second moment of the weight's gradient so far (`amsgrad`).
    #[serde(rename = "v_max")]
    LargestMoment2,
    /// The largest second moment of the bias' gradient so far (`amsgrad`).
    #[serde(rename = "vb_max")]
    BiasLargestMoment2,
}

impl Role {
    /// All roles, in the order of tables.
    pub const ALL: [Role; 16] = [
        Role::Weight,
        Role::Bias,
        Role::Input,
        Role::Output,
        Role::OutputGrad,
        Role::InputGrad,
        Role::WeightGrad,
        Role::BiasGrad,
        Role::WeightSent,
        Role::BiasSent,
        Role::Moment1,
        Role::BiasMoment1,
        Role::Moment2,
        Role::BiasMoment2,
        Role::LargestMoment2,
        Role::BiasLargestMoment2,
    ];

    /// What optimizers keep of a weight, in the order of their moments.
    pub const WEIGHT_STATE: [Role; 3] = [Role::Moment1, Role::Moment2, Role::LargestMoment2];

    /// What optimizers keep of a bias, in the order of their moments.
    pub const BIAS_STATE: [Role; 3] =
        [Role::BiasMoment1, Role::BiasMoment2, Role::BiasLargestMoment2];

    /// The short name. It is also the key in a recipe, but for the largest second moments, which follow the second.
    pub fn key(self) -> &'static str {
        match self {
            Role::Input => "x",
            Role::Weight => "w",
            Role::Bias => "b",
            Role::Output => "y",
            Role::OutputGrad => "dy",
            Role::InputGrad => "dx",
            Role::WeightGrad => "dw",
            Role::BiasGrad => "db",
            Role::WeightSent => "aw",
            Role::BiasSent => "ab",
            Role::Moment1 => "m",
            Role::BiasMoment1 => "mb",
            Role::Moment2 => "v",
            Role::BiasMoment2 => "vb",
            Role::LargestMoment2 => "v_max",
            Role::BiasLargestMoment2 => "vb_max",
        }
    }

    /// Whether the tensor is computed on the way back.
    pub fn is_gradient(self) -> bool {
        matches!(self, Role::OutputGrad | Role::InputGrad | Role::WeightGrad | Role::BiasGrad)
    }

    /// Whether the tensor is what a worker sends.
    pub fn is_sent(self) -> bool {
        matches!(self, Role::WeightSent | Role::BiasSent)
    }

    /// Whether axis 0 of the tensor counts the samples of a batch.
    pub fn has_batch(self) -> bool {
        matches!(self, Role::Input | Role::Output | Role::OutputGrad | Role::InputGrad)
    }

    /// Which moment of an optimizer the tensor is, from 0; `None` where it is none.
    pub fn moment(self) -> Option<usize> {
        let place = |roles: &[Role]| roles.iter().position(|role| *role == self);
        place(&Self::WEIGHT_STATE).or_else(|| place(&Self::BIAS_STATE))
    }

    /// The field of a layer that holds the parameter which the tensor is, or belongs to: `weight` or `bias`.
    pub fn parameter(self) -> Option<&'static str> {
        match self {
            Role::Weight
            | Role::WeightGrad
            | Role::WeightSent
            | Role::Moment1
            | Role::Moment2
            | Role::LargestMoment2 => Some("weight"),
            Role::Bias
            | Role::BiasGrad
            | Role::BiasSent
            | Role::BiasMoment1
            | Role::BiasMoment2
            | Role::BiasLargestMoment2 => Some("bias"),
            Role::Input | Role::Output | Role::OutputGrad | Role::InputGrad => None,
        }
    }

    /// The keys that may speak for this role, the most special first: `dw`, `d`, `default`. For what workers send and
    /// what an optimizer keeps neither `d` nor `default` speaks; but `a` speaks for `aw` and `ab`, and `m` also for `v`, and
    /// either for the bias.
    pub fn keys(self) -> &'static [&'static str] {
        match self {
            Role::Input => &["x", "default"],
            Role::Weight => &["w", "default"],
            Role::Bias => &["b", "default"],
            Role::Output => &["y", "default"],
            Role::OutputGrad => &["dy", "d", "default"],
            Role::InputGrad => &["dx", "d", "default"],
            Role::WeightGrad => &["dw", "d", "default"],
            Role::BiasGrad => &["db", "d", "default"],
            Role::WeightSent => &["aw", "a"],
            Role::BiasSent => &["ab", "a"],
            Role::Moment1 => &["m"],
            Role::BiasMoment1 => &["mb", "m"],
            Role::Moment2 | Role::LargestMoment2 => &["v", "m"],
            // Who says of a bias that its momentum stays f32 means what is kept of a bias.
            Role::BiasMoment2 | Role::BiasLargestMoment2 => &["vb", "mb", "v", "m"],
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.key())
    }
}
