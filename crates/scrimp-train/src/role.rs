//! The roles of the tensors around a layer.

use serde::{Deserialize, Serialize};

/// What a tensor is to a layer `y = op(x, w, b)`. Printed and written as `x w b y dy dx dw db`.
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
}

impl Role {
    /// All roles, in the order of tables.
    pub const ALL: [Role; 8] = [
        Role::Weight,
        Role::Bias,
        Role::Input,
        Role::Output,
        Role::OutputGrad,
        Role::InputGrad,
        Role::WeightGrad,
        Role::BiasGrad,
    ];

    /// The short name, which is the key in a recipe.
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
        }
    }

    /// Whether the tensor is computed on the way back.
    pub fn is_gradient(self) -> bool {
        matches!(self, Role::OutputGrad | Role::InputGrad | Role::WeightGrad | Role::BiasGrad)
    }

    /// Whether axis 0 of the tensor counts the samples of a batch.
    pub fn has_batch(self) -> bool {
        matches!(self, Role::Input | Role::Output | Role::OutputGrad | Role::InputGrad)
    }

    /// The keys that may speak for this role, the most special first: `dw`, `d`, `default`.
    pub fn keys(self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.key()).chain(self.is_gradient().then_some("d")).chain(["default"])
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.key())
    }
}
