//! Training with any number format on any tensor of a network, on Burn.
//!
//! The one crate that knows the engine. A network is built from layers whose eight tensors are *tapped*
//! ([`tap::Tap`]); rules ([`rules::Rule`]) resolve against the layers of a network to a [`plan::Plan`], which says what
//! each tap does; the [`trainer`] runs epochs, checkpoints and resumes.
//!
//! Around a layer `y = op(x, w, b)` the tensors have roles ([`role::Role`]): `x w b y` forward, `dy dx dw db` backward.
//! Every tap passes gradients straight through (derivative 1, no mask), after QML.

pub mod checkpoint;
pub mod compute;
pub mod cost;
pub mod data;
mod engine;
pub mod evaluation;
pub mod exchange;
pub mod gradients;
pub mod layers;
pub mod loss;
pub mod loss_scale;
pub mod models;
mod ops;
pub mod optimizers;
pub mod params;
pub mod phases;
pub mod plan;
pub mod reparameterize;
pub mod role;
pub mod rules;
pub mod stepper;
pub mod tap;
pub mod telemetry;
pub mod trace;
pub mod trainer;
pub mod weights;

pub use burn;
pub use engine::{DEVICES, UnknownDevice, device};
pub use role::Role;
pub use scrimp_kernels as kernels;
