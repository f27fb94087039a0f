//! What a file takes, tensor by tensor, counted on the disk.

use std::path::Path;

use serde::Serialize;

use crate::{FileError, Reader, Storage, open};

/// How a tensor came to its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    /// Stored as the bytes of a scheme.
    Packed,
    /// Stored as it is in a packed file, for this reason.
    Kept(String),
    /// Stored as it is.
    Plain,
}

/// The size of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LedgerRow {
    /// Name of the tensor.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Number of values.
    pub values: usize,
    /// The scheme of a packed tensor, the dtype of any other: `int8/channel`, `f32`.
    pub scheme: String,
    /// Bits that a value takes with its share of the scales; `None` where there is no value.
    pub bits_per_value: Option<f64>,
    /// Bytes in the file.
    pub bytes: u64,
    /// How it came to that.
    pub status: Status,
}

/// The sizes of a file's tensors and of the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ledger {
    /// One row per tensor, sorted by name.
    pub rows: Vec<LedgerRow>,
    /// Bytes of all tensors. A PyTorch checkpoint may store less, where tensors share memory.
    pub payload_bytes: u64,
    /// Bytes of the file, header included.
    pub file_bytes: u64,
    /// Bytes of the tensors if every float value, packed or not, were stored as f32; tensors of
    /// other dtypes count as they are.
    pub f32_bytes: u64,
}

/// Reads the ledger of the file at `path`, of whatever kind, without reading a tensor.
///
/// # Errors
/// Those of [`open`].
pub fn ledger(path: &Path) -> Result<Ledger, FileError> {
    open(path).map(|reader| reader.ledger())
}

impl Reader {
    /// The ledger of the file.
    pub fn ledger(&self) -> Ledger {
        let mut ledger = Ledger {
            rows: Vec::with_capacity(self.entries().len()),
            payload_bytes: 0,
            file_bytes: self.file_bytes(),
            f32_bytes: 0,
        };
        for (place, entry) in self.entries().iter().enumerate() {
            let values = entry.values();
            let bytes = self.stored_bytes(place) as u64;
            let (scheme, status) = match &entry.storage {
                Storage::Plain => (entry.dtype.to_string(), Status::Plain),
                Storage::Kept { reason } => (entry.dtype.to_string(), Status::Kept(reason.clone())),
                Storage::Packed { scheme } => (scheme.to_string(), Status::Packed),
            };
            let f32_bytes =
                if entry.dtype.is_float() { (values as u64).saturating_mul(4) } else { bytes };
            ledger.payload_bytes = ledger.payload_bytes.saturating_add(bytes);
            ledger.f32_bytes = ledger.f32_bytes.saturating_add(f32_bytes);
            ledger.rows.push(LedgerRow {
                name: entry.name.clone(),
                shape: entry.shape.clone(),
                values,
                scheme,
                bits_per_value: (values > 0).then(|| bytes as f64 * 8.0 / values as f64),
                bytes,
                status,
            });
        }
        ledger.rows.sort_by(|left, right| left.name.cmp(&right.name));
        ledger
    }
}
