//! IDX, the array file of MNIST.
//!
//! # Source
//! LeCun, Cortes and Burges, "The MNIST database of handwritten digits", section "File formats":
//! two zero bytes, a byte for the type of the values, a byte for the number of dimensions, the
//! dimensions as big-endian `u32`, then the values, the last dimension running fastest.

use std::io::{self, Read};

use thiserror::Error;

/// Most values that a file may claim: five times the images of MNIST, all in one file.
pub const MOST_VALUES: usize = 256 << 20;

/// Most dimensions that a file may claim.
pub const MOST_DIMS: usize = 4;

/// The type byte of unsigned bytes, the only type read here.
const UNSIGNED_BYTE: u8 = 8;

/// An array of unsigned bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idx {
    /// Its shape, one to four dimensions.
    pub dims: Vec<usize>,
    /// Its values, row-major; as many as the product of `dims`.
    pub values: Vec<u8>,
}

/// Why bytes are not an IDX file of unsigned bytes.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdxError {
    /// The source failed; for packed files this is also how broken packing shows.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The bytes end within the header.
    #[error("the IDX header is cut off after {got} bytes")]
    Header {
        /// Bytes there are.
        got: usize,
    },
    /// The first two bytes are not zero.
    #[error("no IDX file: it begins with {found:02x?}, expected [00, 00, 08, 01 to 04]")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The values are not unsigned bytes.
    #[error("the IDX values are of type {found:#04x}, only unsigned bytes (0x08) are read")]
    Type {
        /// The type byte.
        found: u8,
    },
    /// There are no dimensions, or too many.
    #[error("the IDX header claims {found} dimensions, 1 to {MOST_DIMS} are valid")]
    Dims {
        /// The dimension byte.
        found: u8,
    },
    /// The dimensions claim more values than any data set has.
    #[error("the IDX header claims the shape {dims:?}, more than {MOST_VALUES} values")]
    TooLarge {
        /// The claimed shape.
        dims: Vec<usize>,
    },
    /// There are fewer values than the header claims.
    #[error("cut off: {got} values, but the IDX header claims {claimed} (shape {dims:?})")]
    Truncated {
        /// The claimed shape.
        dims: Vec<usize>,
        /// Its product.
        claimed: usize,
        /// Values there are.
        got: usize,
    },
    /// Bytes follow the last value.
    #[error("bytes follow the {claimed} values that the IDX header claims (shape {dims:?})")]
    Trailing {
        /// The claimed shape.
        dims: Vec<usize>,
        /// Its product.
        claimed: usize,
    },
}

/// Reads a whole IDX file from a slice.
///
/// # Errors
/// [`IdxError`]; any bytes are answered, and memory stays below a small multiple of their length.
pub fn parse(bytes: &[u8]) -> Result<Idx, IdxError> {
    read(bytes)
}

/// Reads a whole IDX file, and one byte beyond to see that it ends.
///
/// Memory grows with the bytes that arrive, not with what the header claims.
///
/// # Errors
/// [`IdxError`]. A packed source may unpack to no more than its header claims, and no header may
/// claim more than [`MOST_VALUES`].
pub fn read(mut source: impl Read) -> Result<Idx, IdxError> {
    let mut header = Vec::with_capacity(4 + 4 * MOST_DIMS);
    fill(&mut source, &mut header, 4)?;
    let magic = [header[0], header[1], header[2], header[3]];
    let [zero, also_zero, kind, dim_count] = magic;
    if zero != 0 || also_zero != 0 {
        return Err(IdxError::Magic { found: magic });
    }
    if kind != UNSIGNED_BYTE {
        return Err(IdxError::Type { found: kind });
    }
    if dim_count == 0 || usize::from(dim_count) > MOST_DIMS {
        return Err(IdxError::Dims { found: dim_count });
    }
    fill(&mut source, &mut header, 4 + 4 * usize::from(dim_count))?;
    let dims: Vec<usize> = header[4..]
        .chunks_exact(4)
        .map(|dim| u32::from_be_bytes([dim[0], dim[1], dim[2], dim[3]]) as usize)
        .collect();
    let claimed = dims.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
    let claimed = match claimed {
        Some(claimed) if claimed <= MOST_VALUES => claimed,
        _ => return Err(IdxError::TooLarge { dims }),
    };
    let mut values = Vec::new();
    source.by_ref().take(claimed as u64).read_to_end(&mut values)?;
    if values.len() < claimed {
        return Err(IdxError::Truncated { dims, claimed, got: values.len() });
    }
    if source.take(1).read_to_end(&mut Vec::new())? > 0 {
        return Err(IdxError::Trailing { dims, claimed });
    }
    Ok(Idx { dims, values })
}

/// Reads on until the header has `len` bytes.
fn fill(source: &mut impl Read, header: &mut Vec<u8>, len: usize) -> Result<(), IdxError> {
    source.by_ref().take((len - header.len()) as u64).read_to_end(header)?;
    if header.len() < len {
        return Err(IdxError::Header { got: header.len() });
    }
    Ok(())
}
