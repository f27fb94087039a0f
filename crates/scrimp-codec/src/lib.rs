//! Numbers and bytes: every number format and how a tensor is stored in it.
//!
//! A [`Scheme`] is a short string such as `int4/group:128` or `e5m2/stochastic`. It says which values
//! exist (the *format*), which elements share a scale (the *granularity*), how that scale is stored and
//! how values are rounded. A scheme can
//!
//! - [`emulate`](Scheme::emulate): round a slice in place to the values that the bytes would hold;
//! - [`encode`](Scheme::encode): turn a slice into packed bytes;
//! - [`decode`](Scheme::decode): turn the bytes back into values;
//! - [`size`](Scheme::size): say how many bytes that is, exactly where it does not depend on the values.
//!
//! The crate's first promise is that `emulate(x) == decode(encode(x))`, bit for bit, on any shape, with any
//! number of threads.
//!
//! ```
//! use scrimp_codec::{Scheme, Stream};
//!
//! let scheme: Scheme = "int4/group:4".parse()?;
//! let x = [0.5, -1.0, 0.25, 0.0, 30.0, 10.0, -20.0, 5.0];
//! let stream = Stream::new(7, 0);
//!
//! let mut bytes = Vec::new();
//! scheme.encode(&x, &[2, 4], &stream, &mut bytes)?;
//! assert_eq!(Some(bytes.len()), scheme.size(&[2, 4])?.exact()); // 2 scales of 4 bytes and 8 codes of 4 bits
//! assert_eq!(bytes.len(), 12);
//!
//! let mut back = [0.0; 8];
//! scheme.decode(&bytes, &[2, 4], &mut back)?;
//! let mut emulated = x;
//! scheme.emulate(&mut emulated, &[2, 4], &stream)?;
//! assert_eq!(back, emulated);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate knows no training engine and does no input or output.

mod blank;
pub mod codecs;
pub mod families;
pub mod formats;
mod granularity;
mod logarithm;
mod loss;
mod memory;
mod pack;
pub mod philox;
mod range;
mod rounding;
mod scale;
mod scheme;
mod simd;
pub mod stages;

pub use codecs::{Codec, DecodeError, EncodeError, Size, Tally};
pub use families::{FAMILIES, Family};
pub use formats::{Card, Format, Params};
pub use granularity::{Granularity, ShapeError};
pub use loss::Loss;
pub use memory::{History, Memory};
pub use philox::Stream;
pub use range::Range;
pub use rounding::Rounding;
pub use scale::{ExponentRule, ScaleFormat};
pub use scheme::{NonFinite, Scheme, SchemeError, nearest};
pub use stages::STAGES;
