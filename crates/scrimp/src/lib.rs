//! scrimp: any number format or compression scheme on any tensor of a neural network.
//!
//! The facade: [`recipe`] reads and checks a recipe, [`run`] carries it out and fills a run folder, [`sweep`]
//! carries out a grid of recipes, [`score`] compares schemes on given tensors, [`quantize`] makes a quantized ONNX model of a
//! float one, [`export`] an ONNX model of a run. The parts are re-exported as [`codec`], [`files`], [`onnx`] and [`train`].
//!
//! ```
//! use scrimp::recipe::Recipe;
//!
//! let recipe = Recipe::from_toml(
//!     r#"
//!     model = "lenet"
//!     data = "digits"
//!     epochs = 1
//!
//!     [[quantize]]
//!     layers = "*"
//!     default = "int8"
//!     d = "e5m2/stochastic"
//!     "#,
//! )?;
//! let plan = recipe.variants(false)[0].plan(&recipe, "flex")?;
//! assert_eq!(plan.get("conv1", scrimp::train::Role::Weight).unwrap().bytes, 6 * 25 + 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod csv;
mod document;
mod events;
pub mod export;
pub mod feed;
mod page;
mod plot;
pub mod presets;
pub mod quantize;
pub mod recipe;
pub mod run;
pub mod score;
pub mod sweep;

pub use scrimp_codec as codec;
pub use scrimp_files as files;
pub use scrimp_onnx as onnx;
pub use scrimp_train as train;
