//! The `.npy` array format: a magic, a header that is a Python dictionary, and one array.
//!
//! # Source
//! The documentation of `numpy.lib.format`, versions 1.0 to 3.0.

use std::io::{Read, Write};
use std::path::Path;

use thiserror::Error;

use crate::{Dtype, FileError, Tensor, write_atomic};

/// The first bytes of every `.npy` file.
pub(crate) const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// The longest header that is read, in bytes. `numpy` itself stops at 10000 where it is not told to
/// trust the file.
const MAX_HEADER_BYTES: u64 = 65_535;

/// The limit of `numpy` for the number of axes.
const MAX_RANK: usize = 64;

/// The data of a file that is written starts at a multiple of this.
const ALIGNMENT: usize = 64;

/// Why an `.npy` file was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NpyError {
    /// The file does not start as an `.npy` file does.
    #[error("not an .npy file: it does not start with \\x93NUMPY")]
    Magic,
    /// The version is not one of those that exist.
    #[error(".npy version {major}.{minor} is not known; versions 1.0, 2.0 and 3.0 are read")]
    Version {
        /// First number of the version.
        major: u8,
        /// Second number of the version.
        minor: u8,
    },
    /// The header is longer than the file or than any honest header.
    #[error(
        "the .npy header claims {bytes} bytes; the file has {file_bytes}, and at most \
         {MAX_HEADER_BYTES} are read"
    )]
    HeaderLength {
        /// Bytes that the header claims.
        bytes: u64,
        /// Bytes of the file.
        file_bytes: u64,
    },
    /// The header is not the dictionary that the format asks for.
    #[error("the .npy header is not valid: expected {expected} at byte {at} of `{header}`")]
    Header {
        /// What should stand there.
        expected: &'static str,
        /// Place in the header.
        at: usize,
        /// The header.
        header: String,
    },
    /// The element type is not one that can be read.
    #[error(
        "the .npy element type `{descr}` is not read; floats f2 f4 f8, complex c8, integers i1 to \
         i8 and u1 to u8, and bool are"
    )]
    Descr {
        /// What the header says.
        descr: String,
    },
    /// The shape has no length.
    #[error("the .npy shape {shape:?} is not valid: too many axes or more values than can exist")]
    Shape {
        /// What the header says.
        shape: Vec<usize>,
    },
    /// The values do not add up to the file.
    #[error("the .npy array needs {expected} bytes with its header, but the file has {file_bytes}")]
    Length {
        /// Bytes that the header accounts for.
        expected: u64,
        /// Bytes of the file.
        file_bytes: u64,
    },
    /// The dtype does not exist in `numpy`.
    #[error("tensor `{name}` of dtype {dtype} cannot be written as .npy; convert it to f32 first")]
    NoSuchDtype {
        /// Name of the tensor.
        name: String,
        /// Its element type.
        dtype: Dtype,
    },
}

/// A header that has been checked against the length of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes of one element, or of one half of a complex one: what byte order applies to.
    word_bytes: usize,
    big_endian: bool,
    fortran_order: bool,
    /// Where the values start.
    pub begin: u64,
    /// Length of the values, which fits the shape and the file.
    pub bytes: usize,
}

/// Reads the header from the start of a file of `file_bytes` bytes.
///
/// The outer error is that of `file`, the inner one that of the content.
pub(crate) fn read_header(
    file: &mut impl Read,
    file_bytes: u64,
) -> std::io::Result<Result<Header, NpyError>> {
    let mut start = [0u8; 8];
    if file_bytes < start.len() as u64 {
        return Ok(Err(NpyError::Magic));
    }
    file.read_exact(&mut start)?;
    let [magic @ .., major, minor] = start;
    if magic != *MAGIC {
        return Ok(Err(NpyError::Magic));
    }
    let length_bytes = match (major, minor) {
        (1, 0) => 2,
        (2 | 3, 0) => 4,
        _ => return Ok(Err(NpyError::Version { major, minor })),
    };
    let mut length = [0u8; 4];
    let preamble = (start.len() + length_bytes) as u64;
    if file_bytes < preamble {
        return Ok(Err(NpyError::HeaderLength { bytes: 0, file_bytes }));
    }
    file.read_exact(&mut length[..length_bytes])?;
    let header_bytes = u64::from(u32::from_le_bytes(length));
    let begin = preamble + header_bytes;
    if header_bytes > MAX_HEADER_BYTES || begin > file_bytes {
        return Ok(Err(NpyError::HeaderLength { bytes: header_bytes, file_bytes }));
    }
    let mut text = Vec::new();
    file.take(header_bytes).read_to_end(&mut text)?;
    Ok(check_header(&text, begin, file_bytes))
}

fn check_header(text: &[u8], begin: u64, file_bytes: u64) -> Result<Header, NpyError> {
    let Dictionary { descr, fortran_order, shape } = Parser { text, at: 0 }.dictionary()?;
    let (dtype, word_bytes, big_endian) =
        parse_descr(&descr).ok_or(NpyError::Descr { descr: shorten(descr.as_bytes()) })?;
    let bytes = if shape.len() <= MAX_RANK { dtype.byte_len(&shape) } else { None };
    let Some(bytes) = bytes else { return Err(NpyError::Shape { shape }) };
    let expected = u64::try_from(bytes).ok().and_then(|bytes| begin.checked_add(bytes));
    // What follows the array would be a second one, which no reader of one array may drop.
    if expected != Some(file_bytes) {
        return Err(NpyError::Length { expected: expected.unwrap_or(u64::MAX), file_bytes });
    }
    Ok(Header { dtype, shape, word_bytes, big_endian, fortran_order, begin, bytes })
}

/// Element type, word length and whether the words are big-endian.
fn parse_descr(descr: &str) -> Option<(Dtype, usize, bool)> {
    let (order, kind) = descr.split_at_checked(1)?;
    let big_endian = match order {
        "<" | "|" => false,
        ">" => true,
        "=" => cfg!(target_endian = "big"),
        _ => return None,
    };
    let (dtype, word_bytes) = match kind {
        "b1" | "?" => (Dtype::Bool, 1),
        "i1" => (Dtype::I8, 1),
        "i2" => (Dtype::I16, 2),
        "i4" => (Dtype::I32, 4),
        "i8" => (Dtype::I64, 8),
        "u1" => (Dtype::U8, 1),
        "u2" => (Dtype::U16, 2),
        "u4" => (Dtype::U32, 4),
        "u8" => (Dtype::U64, 8),
        "f2" => (Dtype::F16, 2),
        "f4" => (Dtype::F32, 4),
        "f8" => (Dtype::F64, 8),
        "c8" => (Dtype::C64, 4),
        _ => return None,
    };
    // `|` says that the type has no byte order, which only a single byte has not.
    (order != "|" || word_bytes == 1).then_some((dtype, word_bytes, big_endian))
}

impl Header {
    /// Turns the values as stored into row-major little-endian ones.
    pub fn normalize(&self, mut stored: Vec<u8>) -> Vec<u8> {
        if self.big_endian && self.word_bytes > 1 {
            for word in stored.chunks_exact_mut(self.word_bytes) {
                word.reverse();
            }
        }
        // Where at most one axis is longer than 1, both orders are the same.
        if !self.fortran_order || self.shape.iter().filter(|&&extent| extent != 1).count() < 2 {
            return stored;
        }
        let element = self.dtype.bits() / 8;
        let rank = self.shape.len();
        let mut strides = vec![element; rank];
        for axis in 1..rank {
            strides[axis] = strides[axis - 1].saturating_mul(self.shape[axis - 1]);
        }
        let mut rows = Vec::with_capacity(stored.len());
        let mut index = vec![0usize; rank];
        let mut from = 0usize;
        while rows.len() < stored.len() {
            rows.extend_from_slice(&stored[from..from + element]);
            // The last axis turns fastest; one that is through returns to its start.
            for axis in (0..rank).rev() {
                index[axis] += 1;
                from += strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                from -= strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        rows
    }
}

/// The three entries of a header, which may stand in any order.
struct Dictionary {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

/// Reads the Python literals of a header and nothing else of Python.
struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn dictionary(mut self) -> Result<Dictionary, NpyError> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        self.token(b'{', "a dictionary")?;
        while !self.eat(b'}') {
            let key = self.string("a key")?;
            self.token(b':', "a colon")?;
            match key.as_str() {
                "descr" if descr.is_none() => descr = Some(self.descr()?),
                "fortran_order" if fortran_order.is_none() => fortran_order = Some(self.boolean()?),
                "shape" if shape.is_none() => shape = Some(self.tuple()?),
                _ => return Err(self.error("descr, fortran_order and shape, once each")),
            }
            if !self.eat(b',') {
                self.token(b'}', "a comma or the end of the dictionary")?;
                break;
            }
        }
        self.blanks();
        if self.at != self.text.len() {
            return Err(self.error("the end of the header"));
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => {
                Ok(Dictionary { descr, fortran_order, shape })
            }
            _ => Err(self.error("descr, fortran_order and shape, once each")),
        }
    }

    /// A plain element type. A list of fields, as a structured array has it, is named as such.
    fn descr(&mut self) -> Result<String, NpyError> {
        self.blanks();
        match self.text.get(self.at) {
            Some(b'[') => Err(NpyError::Descr { descr: "list of fields".to_owned() }),
            _ => self.string("an element type"),
        }
    }

    fn string(&mut self, expected: &'static str) -> Result<String, NpyError> {
        self.blanks();
        let Some(&quote @ (b'\'' | b'"')) = self.text.get(self.at) else {
            return Err(self.error(expected));
        };
        let body = &self.text[self.at + 1..];
        let length = body.iter().position(|&byte| byte == quote);
        let text = length.and_then(|length| std::str::from_utf8(&body[..length]).ok());
        let Some(text) = text else { return Err(self.error("a closed string")) };
        self.at += text.len() + 2;
        Ok(text.to_owned())
    }

    fn boolean(&mut self) -> Result<bool, NpyError> {
        self.blanks();
        for (word, value) in [("True", true), ("False", false)] {
            if self.text[self.at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.error("True or False"))
    }

    fn tuple(&mut self) -> Result<Vec<usize>, NpyError> {
        let mut extents = Vec::new();
        self.token(b'(', "a tuple")?;
        while !self.eat(b')') {
            extents.push(self.integer()?);
            if !self.eat(b',') {
                self.token(b')', "a comma or the end of the tuple")?;
                break;
            }
        }
        Ok(extents)
    }

    fn integer(&mut self) -> Result<usize, NpyError> {
        self.blanks();
        let start = self.at;
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        let digits = std::str::from_utf8(&self.text[start..self.at]).unwrap_or_default();
        let value = digits.parse().map_err(|_| self.error("a length"))?;
        // Python 2 wrote long integers with a suffix.
        if self.text.get(self.at) == Some(&b'L') {
            self.at += 1;
        }
        Ok(value)
    }

    fn token(&mut self, token: u8, expected: &'static str) -> Result<(), NpyError> {
        if self.eat(token) { Ok(()) } else { Err(self.error(expected)) }
    }

    fn eat(&mut self, token: u8) -> bool {
        self.blanks();
        let found = self.text.get(self.at) == Some(&token);
        self.at += usize::from(found);
        found
    }

    fn blanks(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn error(&self, expected: &'static str) -> NpyError {
        NpyError::Header { expected, at: self.at, header: shorten(self.text) }
    }
}

/// Foreign text as it can stand in a message.
fn shorten(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let text = text.trim_end();
    let short: String = text.chars().take(120).flat_map(char::escape_default).collect();
    if text.chars().nth(120).is_some() { short + ".." } else { short }
}

/// Writes one tensor as `.npy` version 1.0, row-major and little-endian; its name is not stored.
///
/// # Errors
/// [`NpyError::NoSuchDtype`] for a dtype that `numpy` does not have, such as bf16, and
/// [`FileError::Io`].
pub fn write_npy(path: &Path, tensor: &Tensor) -> Result<(), FileError> {
    let header = encode_header(tensor)
        .map_err(|problem| FileError::Npy { path: path.to_owned(), problem })?;
    write_atomic(path, |file| {
        file.write_all(&header)
            .and_then(|()| file.write_all(tensor.bytes()))
            .map_err(|source| FileError::io("write", path, source))
    })
}

fn encode_header(tensor: &Tensor) -> Result<Vec<u8>, NpyError> {
    let descr = match tensor.dtype() {
        Dtype::Bool => "|b1",
        Dtype::I8 => "|i1",
        Dtype::U8 => "|u1",
        Dtype::I16 => "<i2",
        Dtype::U16 => "<u2",
        Dtype::F16 => "<f2",
        Dtype::I32 => "<i4",
        Dtype::U32 => "<u4",
        Dtype::F32 => "<f4",
        Dtype::I64 => "<i8",
        Dtype::U64 => "<u8",
        Dtype::F64 => "<f8",
        Dtype::C64 => "<c8",
        dtype => {
            return Err(NpyError::NoSuchDtype { name: tensor.name().to_owned(), dtype });
        }
    };
    let extents: Vec<String> = tensor.shape().iter().map(usize::to_string).collect();
    let comma = if extents.len() == 1 { "," } else { "" };
    let mut text = format!(
        "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}",
        extents.join(", ")
    );
    let preamble = MAGIC.len() + 4;
    let total = (preamble + text.len() + 1).next_multiple_of(ALIGNMENT);
    text.extend(std::iter::repeat_n(' ', total - preamble - text.len() - 1));
    text.push('\n');
    let Ok(length) = u16::try_from(text.len()) else {
        return Err(NpyError::Shape { shape: tensor.shape().to_vec() });
    };
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&[1, 0]);
    header.extend_from_slice(&length.to_le_bytes());
    header.extend_from_slice(text.as_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{open, open_bytes};

    /// A file of version 1.0 with this header and `data` bytes after it.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&[1, 0]);
        file.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        file.resize(file.len() + data, 0);
        file
    }

    fn read_bytes(bytes: Vec<u8>) -> Result<Tensor, FileError> {
        open_bytes(Path::new("x.npy"), bytes)?.read_tensor(0)
    }

    #[test]
    fn arrays_that_numpy_wrote_are_read() {
        let golden = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
            open(&path).unwrap().read_tensor(0).unwrap()
        };
        let row = golden("row_f4.npy");
        assert_eq!((row.name(), row.shape(), row.dtype()), ("row_f4", &[2, 3][..], Dtype::F32));
        assert_eq!(row.to_f32().unwrap(), [-0.5, -0.25, 0.0, 0.25, 0.5, 0.75]);
        assert_eq!(golden("column_f4.npy").bytes(), row.bytes());

        let cube = golden("column_big_f8.npy");
        assert_eq!((cube.shape(), cube.dtype()), (&[2, 3, 4][..], Dtype::F64));
        let counted: Vec<f32> = (0..24u8).map(f32::from).collect();
        assert_eq!(cube.to_f32().unwrap(), counted);

        assert_eq!(golden("big_i2.npy").bytes(), [-2i16, 1, 256].map(i16::to_le_bytes).concat());
        assert_eq!(golden("half.npy").to_f32().unwrap(), [1.5, -0.0, f32::INFINITY]);
        let scalar = golden("scalar_bool.npy");
        assert_eq!((scalar.shape(), scalar.bytes()), (&[][..], &[1][..]));
        assert_eq!(golden("empty_u4.npy").shape(), [0, 3]);
        assert_eq!(golden("complex.npy").bytes(), [1f32, 2.0].map(f32::to_le_bytes).concat());
        for name in ["version_2.npy", "version_3.npy"] {
            assert_eq!(golden(name).bytes(), [7i64, -7].map(i64::to_le_bytes).concat());
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_aligned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.npy");
        for dtype in Dtype::all() {
            for shape in [vec![], vec![5], vec![2, 0, 3], vec![2, 4], vec![1; 64]] {
                let Some(bytes) = dtype.byte_len(&shape) else { continue };
                let bytes = (0..bytes).map(|i| u8::try_from(i).unwrap()).collect();
                let tensor = Tensor::new("w", shape, dtype, bytes).unwrap();
                match write_npy(&path, &tensor) {
                    Ok(()) => {
                        let file = std::fs::read(&path).unwrap();
                        assert_eq!((file.len() - tensor.bytes().len()) % ALIGNMENT, 0);
                        assert_eq!(open(&path).unwrap().read_tensor(0).unwrap(), tensor);
                    }
                    Err(error) => {
                        let message = error.to_string();
                        assert!(message.contains("cannot be written as .npy"), "{message}");
                        assert!(matches!(dtype.key(), "BF16") || dtype.bits() <= 8, "{dtype}");
                    }
                }
            }
        }
    }

    #[test]
    fn headers_may_be_ordered_and_spaced_freely() {
        for header in [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n",
            "{\"shape\":(2L,3L),\"fortran_order\":False,\"descr\":\"<f4\"}",
            "  { 'fortran_order' :False , 'shape' : ( 2,3, ) ,'descr':'<f4' } \n ",
        ] {
            let tensor = read_bytes(file(header, 24)).unwrap();
            assert_eq!(tensor.shape(), [2, 3], "{header}");
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        let with = |descr: &str, shape: &str| {
            format!("{{'descr': {descr}, 'fortran_order': True, 'shape': {shape}}}")
        };
        let cases = [
            (file("", 0), "expected a dictionary at byte 0"),
            (file("{}", 0), "expected descr, fortran_order and shape"),
            (file("{'descr': '<f4'", 0), "expected a comma or the end of the dictionary"),
            (file("{'descr': '<f4", 0), "expected a closed string"),
            (file("{'shape': (1,), 'shape': (1,)}", 4), "once each"),
            (file("{'extra': 1}", 4), "once each"),
            (file(&(with("'<f4'", "(1,)") + "x"), 4), "expected the end of the header"),
            (file(&with("'<f4'", "(-1,)"), 4), "expected a length"),
            (file(&with("'<f4'", "(99999999999999999999,)"), 4), "expected a length"),
            (file(&with("'<f4'", "(4294967296, 4294967296)"), 4), "shape [4294967296, 4294967296]"),
            (file(&with("'<f4'", &format!("({})", "1,".repeat(65))), 4), "too many axes"),
            (file(&with("'<f4'", "(1000000000000,)"), 4), "needs 4000000000"),
            (file(&with("'<f4'", "(1,)"), 5), "but the file has"),
            (file(&with("'<f4'", "(2,)"), 4), "but the file has"),
            (file(&with("'<f16'", "(1,)"), 16), "element type `<f16` is not read"),
            (file(&with("'|O'", "(1,)"), 8), "element type `|O` is not read"),
            (file(&with("'|f4'", "(1,)"), 4), "element type `|f4` is not read"),
            (file(&with("''", "(1,)"), 4), "element type `` is not read"),
            (file(&with("'\u{e4}4'", "(1,)"), 4), "is not read"),
            (file(&with("[('a', '<f4')]", "(1,)"), 4), "element type `list of fields` is not read"),
            (b"\x93NUMPY\x01".to_vec(), "does not start with"),
            (b"\x93NUMPY\x04\x00\x00\x00".to_vec(), "version 4.0 is not known"),
            (b"\x93NUMPY\x01\x00\x00".to_vec(), "claims 0 bytes"),
            (b"\x93NUMPY\x01\x00\x10\x00{".to_vec(), "claims 16 bytes; the file has 11"),
            (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(), "claims 4294967295 bytes"),
        ];
        for (bytes, expected) in cases {
            let error = read_bytes(bytes).unwrap_err().to_string();
            assert!(error.starts_with("x.npy: "), "{error}");
            assert!(error.contains(expected), "{error}\nshould say: {expected}");
        }
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        for name in ["fields.npy", "objects.npy"] {
            let error = open(&golden.join(name)).unwrap_err().to_string();
            assert!(error.contains("is not read"), "{error}");
        }
    }
}
