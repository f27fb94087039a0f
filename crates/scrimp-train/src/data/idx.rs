//! IDX, the array file of MNIST.
//!
//! # Source
//! "The MNIST database of handwritten digits", yann.lecun.com/exdb/mnist, section "File formats":
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

#[cfg(test)]
mod tests {
    use scrimp_codec::philox::Stream;

    use super::*;

    fn file(kind: u8, dims: &[u32], values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, kind, u8::try_from(dims.len()).unwrap()];
        bytes.extend(dims.iter().flat_map(|dim| dim.to_be_bytes()));
        bytes.extend(values);
        bytes
    }

    fn message(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn an_array_is_read_with_its_shape() {
        let idx = parse(&file(8, &[2, 3], &[1, 2, 3, 4, 5, 6])).unwrap();
        assert_eq!(idx, Idx { dims: vec![2, 3], values: vec![1, 2, 3, 4, 5, 6] });
        let empty = parse(&file(8, &[0, 28, 28], &[])).unwrap();
        assert_eq!(empty, Idx { dims: vec![0, 28, 28], values: vec![] });
    }

    #[test]
    fn a_cut_off_header_is_an_error_at_every_length() {
        let whole = file(8, &[2, 1], &[1, 2]);
        for len in 0..12 {
            let expected = format!("the IDX header is cut off after {len} bytes");
            assert_eq!(message(&whole[..len]), expected);
        }
    }

    #[test]
    fn another_magic_number_type_or_number_of_dimensions_is_an_error() {
        assert_eq!(
            message(b"\x1f\x8b\x08\x00"),
            "no IDX file: it begins with [1f, 8b, 08, 00], expected [00, 00, 08, 01 to 04]"
        );
        assert_eq!(
            message(&file(0x0D, &[1], &[0; 4])),
            "the IDX values are of type 0x0d, only unsigned bytes (0x08) are read"
        );
        for dims in [0, 5, 255] {
            let expected = format!("the IDX header claims {dims} dimensions, 1 to 4 are valid");
            assert_eq!(message(&[0, 0, 8, dims]), expected);
        }
    }

    #[test]
    fn a_shape_that_overflows_or_exceeds_the_limit_is_refused_before_memory_is_taken() {
        for dims in [&[u32::MAX; 4][..], &[u32::MAX; 3], &[u32::MAX], &[(256 << 20) + 1]] {
            assert!(matches!(parse(&file(8, dims, &[])), Err(IdxError::TooLarge { .. })));
        }
    }

    #[test]
    fn fewer_or_more_values_than_claimed_are_errors() {
        assert_eq!(
            message(&file(8, &[2, 3], &[0; 5])),
            "cut off: 5 values, but the IDX header claims 6 (shape [2, 3])"
        );
        assert_eq!(
            message(&file(8, &[2, 3], &[0; 7])),
            "bytes follow the 6 values that the IDX header claims (shape [2, 3])"
        );
        // The largest claim that is let through takes memory for what is there.
        assert!(matches!(
            parse(&file(8, &[256 << 20], &[0; 9])),
            Err(IdxError::Truncated { got: 9, .. })
        ));
    }

    #[test]
    fn a_source_without_end_is_left_after_one_byte_too_many() {
        struct Counted<'a>(&'a mut usize);
        impl Read for Counted<'_> {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                out.fill(0);
                *self.0 += out.len();
                Ok(out.len())
            }
        }
        let mut drawn = 0;
        let header = file(8, &[1_000], &[]);
        let error = read(header.chain(Counted(&mut drawn))).unwrap_err();
        assert!(matches!(error, IdxError::Trailing { claimed: 1_000, .. }));
        assert_eq!(drawn, 1_001);
    }

    #[test]
    fn altered_files_are_answered_and_what_is_accepted_is_consistent() {
        let whole = file(8, &[3, 4, 4], &[7; 48]);
        let mut accepted = 0;
        for round in 0..20_000 {
            let dice = Stream::new(3, 4).at_step(round);
            let mut bytes = whole.clone();
            for change in 0..=round % 3 {
                let [place, value, how, _] = dice.words(change);
                let at = place as usize % 16;
                // Small dimensions are the likely ones to be accepted.
                bytes[at] = if how % 2 == 0 { (value % 9) as u8 } else { (value >> 24) as u8 };
            }
            let [len, cut, ..] = dice.words(9);
            match cut % 4 {
                0 => bytes.truncate(len as usize % 70),
                1 => bytes.resize(len as usize % 70, 1),
                _ => {}
            }
            if let Ok(idx) = parse(&bytes) {
                accepted += 1;
                assert_eq!(idx.values.len(), idx.dims.iter().product::<usize>());
                assert_eq!(idx.values.len() + 4 + 4 * idx.dims.len(), bytes.len());
            }
        }
        assert!(accepted > 50, "{accepted} of the altered files were accepted");
    }
}
