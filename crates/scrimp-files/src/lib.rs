//! Tensors in files: safetensors, PyTorch checkpoints, `.npy`, and scrimp's packed container.
//!
//! [`open`] looks at a file, checks its header against its length, and gives a [`Reader`] that
//! lists the tensors and reads them one at a time. [`save`] and [`write_npy`] write plain tensors,
//! [`pack`] and [`Plan`] the packed container, which is a valid safetensors file; all of them
//! write the file whole or not at all, through [`write_atomic`]. [`ledger`] tells what each tensor
//! takes on the disk.
//!
//! Files are foreign: every length is checked before memory is taken, and no content makes a
//! function here panic.
//!
//! ```
//! use scrimp_files::{Dtype, Storage, Tensor, open, pack, predicted_file_size, save};
//! # let folder = tempfile::tempdir()?;
//! # let plain = folder.path().join("plain.safetensors");
//! # let packed = folder.path().join("packed.safetensors");
//!
//! let weight = Tensor::from_f32("fc.weight", vec![2, 4], Dtype::F32, &[0.5; 8])?;
//! let bias = Tensor::from_f32("fc.bias", vec![2], Dtype::F32, &[1.0, 2.0])?;
//! save(&plain, &[weight, bias], &Default::default())?;
//!
//! let reader = open(&plain)?;
//! let decisions: Vec<Storage> = reader
//!     .entries()
//!     .iter()
//!     .map(|entry| match entry.shape.len() {
//!         1 => Storage::Kept { reason: "1-D".to_owned() },
//!         _ => Storage::Packed { scheme: "int8/channel".parse().expect("a valid scheme") },
//!     })
//!     .collect();
//! let size = predicted_file_size(&reader, &decisions)?;
//! pack(&reader, &decisions, 7, &packed, |_place| Ok(()))?;
//! assert_eq!(Some(std::fs::metadata(&packed)?.len()), size.exact());
//!
//! // A packed file reads as the original did.
//! let reader = open(&packed)?;
//! let place = reader.find("fc.weight").expect("the tensor is there");
//! assert_eq!(reader.read_f32(place)?, [0.5; 8]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod atomic;
pub mod container;
mod dtype;
mod error;
mod ledger;
pub mod npy;
mod npz;
pub mod pytorch;
mod reader;
pub mod safetensors;
mod tensor;

pub use atomic::write_atomic;
pub use container::{FileSize, Plan, pack, predicted_file_size};
pub use dtype::Dtype;
pub use error::FileError;
pub use ledger::{Ledger, LedgerRow, Status, ledger};
pub use npy::write_npy;
pub use npz::read_npz;
pub use pytorch::Ignored;
pub use reader::{Entry, Kind, Reader, Storage, TensorFile, open, open_bytes, read};
pub use safetensors::{Layout, Slot, save};
pub use tensor::{Tensor, TensorError};
