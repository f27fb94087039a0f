//! The safetensors format: a length, a JSON header, and the tensors back to back.
//!
//! The header is read here rather than through the `safetensors` crate, because that crate wants
//! the whole file in memory, forgets the order of equal offsets, and keeps the last of two tensors
//! of one name. Its verdict on other files is the same; a test holds the two against each other.
//!
//! # Source
//! The safetensors format description, section "Format".

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::{Read, Write};
use std::path::Path;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Dtype, FileError, Tensor, write_atomic};

/// The largest JSON header that the format allows, in bytes.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of the length that precedes the JSON header.
const LENGTH_BYTES: u64 = 8;

/// Key of the one header entry that is not a tensor.
const METADATA_KEY: &str = "__metadata__";

/// Why a safetensors header was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The file is shorter than the header that it announces.
    #[error("the safetensors header needs {needed} bytes, but the file has {file_bytes}")]
    Truncated {
        /// Bytes of length and header.
        needed: u64,
        /// Bytes of the file.
        file_bytes: u64,
    },
    /// The header is larger than the format allows.
    #[error("the safetensors header claims {bytes} bytes; at most {MAX_HEADER_BYTES} are valid")]
    HeaderTooLarge {
        /// Bytes that the header claims or would take.
        bytes: u64,
    },
    /// The header is not the JSON that the format asks for.
    #[error("the safetensors header is not valid: {reason}")]
    Json {
        /// Place and kind of the mistake.
        reason: String,
    },
    /// The header names an element type that the format does not have.
    #[error("tensor `{name}` has the unknown dtype `{dtype}`; known are {}", known_dtypes())]
    UnknownDtype {
        /// Name of the tensor.
        name: String,
        /// What the header says.
        dtype: String,
    },
    /// Shape and dtype do not fit the bytes set aside for a tensor.
    #[error(
        "tensor `{name}` of shape {shape:?} and dtype {dtype} cannot fill bytes {begin}..{end}"
    )]
    Extent {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its element type.
        dtype: Dtype,
        /// First byte after the header.
        begin: u64,
        /// One past the last byte.
        end: u64,
    },
    /// A tensor overlaps the one before it or leaves a gap.
    #[error("tensor `{name}` starts at byte {begin}, but the tensor before it ends at {expected}")]
    Gap {
        /// Name of the tensor.
        name: String,
        /// Where it starts.
        begin: u64,
        /// Where it should start.
        expected: u64,
    },
    /// The tensors do not add up to the file.
    #[error("the tensors take {expected} bytes with the header, but the file has {file_bytes}")]
    Length {
        /// Bytes that the header accounts for.
        expected: u64,
        /// Bytes of the file.
        file_bytes: u64,
    },
    /// Two tensors to be written have one name, or one has the name of the metadata.
    #[error("a file cannot hold two entries called `{name}`")]
    Duplicate {
        /// The name in question.
        name: String,
    },
    /// Shape and dtype to be written have no length.
    #[error("tensor `{name}` of shape {shape:?} and dtype {dtype} does not fill whole bytes")]
    NoLength {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its element type.
        dtype: Dtype,
    },
    /// A tensor was announced with one length and given with another.
    #[error("tensor `{name}` was given as {bytes} bytes, but announced as {expected}")]
    Filled {
        /// Name of the tensor.
        name: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes given.
        bytes: u64,
    },
}

fn known_dtypes() -> String {
    Dtype::all().map(Dtype::key).collect::<Vec<_>>().join(", ")
}

/// Name, shape and element type of a tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Name of the tensor.
    pub name: String,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
}

/// A tensor of a file that is being read: a slot and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub slot: Slot,
    /// First byte of the tensor, counted from the start of the file.
    pub begin: u64,
    /// Its length, which fits the shape and lies within the file.
    pub bytes: usize,
}

/// A header that has been checked against the length of its file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// In the order in which the tensors lie in the file.
    pub tensors: Vec<Placed>,
    pub metadata: BTreeMap<String, String>,
}

/// Reads the header from the start of a file of `file_bytes` bytes.
///
/// Memory is taken for the header alone, once its length has been checked against the file's. The
/// outer error is that of `file`, the inner one that of the content.
pub(crate) fn read_header(
    file: &mut impl Read,
    file_bytes: u64,
) -> std::io::Result<Result<Header, SafetensorsError>> {
    if file_bytes < LENGTH_BYTES {
        return Ok(Err(SafetensorsError::Truncated { needed: LENGTH_BYTES, file_bytes }));
    }
    let mut length = [0u8; 8];
    file.read_exact(&mut length)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        return Ok(Err(SafetensorsError::HeaderTooLarge { bytes: header_bytes }));
    }
    let data_start = LENGTH_BYTES + header_bytes;
    if data_start > file_bytes {
        return Ok(Err(SafetensorsError::Truncated { needed: data_start, file_bytes }));
    }
    let mut json = Vec::new();
    file.take(header_bytes).read_to_end(&mut json)?;
    Ok(parse_header(&json, data_start, file_bytes))
}

/// Checks a header of a file of `file_bytes` bytes whose tensors start at `data_start`.
fn parse_header(json: &[u8], data_start: u64, file_bytes: u64) -> Result<Header, SafetensorsError> {
    let RawHeader { metadata, mut tensors } = serde_json::from_slice(json)
        .map_err(|error| SafetensorsError::Json { reason: error.to_string() })?;
    // Empty tensors share their offset with a neighbour, so the name decides.
    tensors.sort_by(|(left_name, left), (right_name, right)| {
        left.data_offsets.cmp(&right.data_offsets).then_with(|| left_name.cmp(right_name))
    });
    let mut expected = 0u64;
    let mut placed = Vec::with_capacity(tensors.len());
    for (name, RawTensor { dtype, shape, data_offsets: (begin, end) }) in tensors {
        let Some(dtype) = Dtype::from_key(&dtype) else {
            return Err(SafetensorsError::UnknownDtype { name, dtype });
        };
        if begin != expected {
            return Err(SafetensorsError::Gap { name, begin, expected });
        }
        let bytes = dtype.byte_len(&shape);
        let fits = bytes.and_then(|bytes| begin.checked_add(u64::try_from(bytes).ok()?));
        let (Some(bytes), true) = (bytes, fits == Some(end)) else {
            return Err(SafetensorsError::Extent { name, shape, dtype, begin, end });
        };
        // An overflow here means an end beyond any file, which the length check below refuses.
        let begin = data_start.saturating_add(begin);
        placed.push(Placed { slot: Slot { name, shape, dtype }, begin, bytes });
        expected = end;
    }
    let expected = data_start.saturating_add(expected);
    if expected != file_bytes {
        return Err(SafetensorsError::Length { expected, file_bytes });
    }
    Ok(Header { tensors: placed, metadata })
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The header as the JSON has it. Names come once: the format forbids a second entry of one name,
/// and whichever won, a tensor would be lost without a word.
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawTensor)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with one entry per tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut seen = HashSet::new();
                let mut header = RawHeader { metadata: BTreeMap::new(), tensors: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{name}` stands there twice")));
                    }
                    if name == METADATA_KEY {
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// The plan of a safetensors file: its header, complete before the first tensor exists.
///
/// The same slots and metadata give the same bytes, whatever their order: tensors lie wide
/// elements first, then by name, so that each is aligned for its type, and metadata is sorted.
#[derive(Debug, Clone)]
pub struct Layout {
    /// As given by the caller.
    slots: Vec<Slot>,
    /// Places in `slots`, in the order of the file, each with its length.
    order: Vec<(usize, u64)>,
    /// Length, JSON and the blanks that align the data.
    header: Vec<u8>,
}

impl Layout {
    /// Lays out a file with one tensor per slot.
    ///
    /// # Errors
    /// A name that comes twice, a shape without a length, or a header above
    /// [`MAX_HEADER_BYTES`].
    pub fn new(
        slots: Vec<Slot>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, SafetensorsError> {
        #[derive(Serialize)]
        struct TensorJson<'a> {
            dtype: Dtype,
            shape: &'a [usize],
            data_offsets: (u64, u64),
        }

        let mut places: Vec<usize> = (0..slots.len()).collect();
        places.sort_by(|&left, &right| {
            let (left, right) = (&slots[left], &slots[right]);
            right.dtype.cmp(&left.dtype).then_with(|| left.name.cmp(&right.name))
        });

        let mut json = b"{".to_vec();
        if !metadata.is_empty() {
            push_entry(&mut json, METADATA_KEY, metadata)?;
        }
        let mut names = HashSet::from([METADATA_KEY]);
        let mut order = Vec::with_capacity(places.len());
        let mut begin = 0u64;
        for place in places {
            let Slot { name, shape, dtype } = &slots[place];
            if !names.insert(name) {
                return Err(SafetensorsError::Duplicate { name: name.clone() });
            }
            let bytes = dtype.byte_len(shape).and_then(|bytes| u64::try_from(bytes).ok());
            let end = bytes.and_then(|bytes| begin.checked_add(bytes));
            let (Some(bytes), Some(end)) = (bytes, end) else {
                let (name, shape) = (name.clone(), shape.clone());
                return Err(SafetensorsError::NoLength { name, shape, dtype: *dtype });
            };
            let tensor = TensorJson { dtype: *dtype, shape, data_offsets: (begin, end) };
            push_entry(&mut json, name, &tensor)?;
            order.push((place, bytes));
            begin = end;
        }
        json.push(b'}');
        // Blanks after the JSON put the first tensor at a multiple of 8.
        json.resize(json.len().next_multiple_of(8), b' ');

        let json_bytes = json.len() as u64;
        if json_bytes > MAX_HEADER_BYTES {
            return Err(SafetensorsError::HeaderTooLarge { bytes: json_bytes });
        }
        let mut header = json_bytes.to_le_bytes().to_vec();
        header.append(&mut json);
        Ok(Self { slots, order, header })
    }

    /// The slots as they were given.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Exact length of the file, header included.
    pub fn file_bytes(&self) -> u64 {
        // The lengths add up, since their sum is the last offset of the header.
        let payload: u64 = self.order.iter().map(|&(_, bytes)| bytes).sum();
        payload.saturating_add(self.header.len() as u64)
    }

    /// Writes the file through [`write_atomic`], one tensor at a time.
    ///
    /// `fill` is called once per slot, in the order of the file, with the place of the slot among
    /// those given to [`Layout::new`]; it appends the tensor's bytes to the empty buffer.
    ///
    /// # Errors
    /// Those of `fill`, [`FileError::Io`], and [`SafetensorsError::Filled`] where the bytes do not
    /// have the length that the slot announces.
    pub fn write(
        &self,
        path: &Path,
        mut fill: impl FnMut(usize, &mut Vec<u8>) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let failed = |source| FileError::io("write", path, source);
        write_atomic(path, |file| {
            file.write_all(&self.header).map_err(failed)?;
            let mut buffer = Vec::new();
            for &(place, expected) in &self.order {
                buffer.clear();
                fill(place, &mut buffer)?;
                let bytes = buffer.len() as u64;
                if bytes != expected {
                    let name = self.slots[place].name.clone();
                    let problem = SafetensorsError::Filled { name, expected, bytes };
                    return Err(FileError::Safetensors { path: path.to_owned(), problem });
                }
                file.write_all(&buffer).map_err(failed)?;
            }
            Ok(())
        })
    }
}

/// Appends `"key":value`, and a comma where an entry precedes it.
fn push_entry(
    json: &mut Vec<u8>,
    key: &str,
    value: &impl Serialize,
) -> Result<(), SafetensorsError> {
    if json.len() > 1 {
        json.push(b',');
    }
    // Neither strings nor numbers can fail to become JSON in memory; the error is passed on all
    // the same.
    let failed = |error: serde_json::Error| SafetensorsError::Json { reason: error.to_string() };
    serde_json::to_writer(&mut *json, key).map_err(failed)?;
    json.push(b':');
    serde_json::to_writer(&mut *json, value).map_err(failed)
}

/// Writes `tensors` and `metadata` as a safetensors file.
///
/// # Errors
/// Those of [`Layout::new`] and [`Layout::write`].
pub fn save(
    path: &Path,
    tensors: &[Tensor],
    metadata: &BTreeMap<String, String>,
) -> Result<(), FileError> {
    let slots = tensors
        .iter()
        .map(|tensor| Slot {
            name: tensor.name().to_owned(),
            shape: tensor.shape().to_vec(),
            dtype: tensor.dtype(),
        })
        .collect();
    let layout = Layout::new(slots, metadata)
        .map_err(|problem| FileError::Safetensors { path: path.to_owned(), problem })?;
    layout.write(path, |place, bytes| {
        bytes.extend_from_slice(tensors[place].bytes());
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_bytes(file: &[u8]) -> Result<Header, SafetensorsError> {
        read_header(&mut &file[..], file.len() as u64).unwrap()
    }

    /// A file with this JSON and `data` bytes after it.
    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.resize(file.len() + data, 0);
        file
    }

    fn one_of_each() -> Vec<Tensor> {
        let mut tensors: Vec<Tensor> = Dtype::all()
            .flat_map(|dtype| {
                let bytes = dtype.byte_len(&[2, 4]).unwrap();
                let filled = (0..bytes).map(|i| u8::try_from(i % 251).unwrap()).collect();
                [
                    Tensor::new(format!("b.{dtype}"), vec![2, 4], dtype, filled).unwrap(),
                    Tensor::new(format!("a.{dtype}"), vec![0, 3], dtype, vec![]).unwrap(),
                ]
            })
            .collect();
        let odd = "quote \" and back\\slash, \u{e4}\u{1f600}\n";
        tensors.push(Tensor::new(odd, vec![], Dtype::F64, vec![1; 8]).unwrap());
        tensors
    }

    #[test]
    fn files_are_those_of_the_safetensors_crate_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors = one_of_each();
        let metadata = BTreeMap::from([("scrimp".to_owned(), "{\"a\":\"\u{e4}\\\"\"}".to_owned())]);
        save(&path, &tensors, &metadata).unwrap();

        let theirs = tensors.iter().map(|tensor| {
            let dtype = serde_json::from_str(&format!("{:?}", tensor.dtype().key())).unwrap();
            let shape = tensor.shape().to_vec();
            let view = safetensors::tensor::TensorView::new(dtype, shape, tensor.bytes()).unwrap();
            (tensor.name(), view)
        });
        let theirs = safetensors::serialize(theirs, Some(metadata.into_iter().collect())).unwrap();
        let ours = std::fs::read(&path).unwrap();
        assert_eq!(ours, theirs);

        let header = read_bytes(&ours).unwrap();
        for Placed { slot, begin, bytes } in header.tensors {
            let tensor = tensors.iter().find(|tensor| tensor.name() == slot.name).unwrap();
            assert_eq!((tensor.shape(), tensor.dtype()), (&slot.shape[..], slot.dtype));
            let begin = usize::try_from(begin).unwrap();
            assert_eq!(tensor.bytes(), &ours[begin..begin + bytes]);
        }
    }

    #[test]
    fn the_order_of_slots_and_metadata_does_not_show() {
        let slots: Vec<Slot> = one_of_each()
            .iter()
            .map(|tensor| Slot {
                name: tensor.name().to_owned(),
                shape: tensor.shape().to_vec(),
                dtype: tensor.dtype(),
            })
            .collect();
        let metadata: BTreeMap<_, _> =
            ["b", "a", "c"].map(|key| (key.to_owned(), key.to_owned())).into();
        let layout = Layout::new(slots.clone(), &metadata).unwrap();
        let reversed = Layout::new(slots.into_iter().rev().collect(), &metadata).unwrap();
        assert_eq!(layout.header, reversed.header);
        let text = String::from_utf8_lossy(&layout.header);
        assert!(text.contains(r#"{"__metadata__":{"a":"a","b":"b","c":"c"},"#), "{text}");
    }

    #[test]
    fn lying_headers_are_refused_with_the_tensor_named() {
        let f32_2 = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
        let cases = [
            (vec![], "needs 8 bytes, but the file has 0"),
            (100_000_001u64.to_le_bytes().to_vec(), "claims 100000001 bytes"),
            (u64::MAX.to_le_bytes().to_vec(), "at most 100000000 are valid"),
            (99_999_999u64.to_le_bytes().to_vec(), "needs 100000007 bytes, but the file has 8"),
            (file("[]", 0), "expected an object with one entry per tensor"),
            (file("{", 0), "EOF"),
            (file("{}x", 0), "trailing characters"),
            (file("{}", 1), "take 10 bytes with the header, but the file has 11"),
            (file(&format!(r#"{{"a":{f32_2}}}"#), 7), "bytes with the header, but the file has 69"),
            (file(&format!(r#"{{"a":{f32_2},"a":{f32_2}}}"#), 8), "`a` stands there twice"),
            (
                file(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8),
                "tensor `a` of shape [3] and dtype f32 cannot fill bytes 0..8",
            ),
            (
                file(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2),
                "tensor `a` of shape [3] and dtype f4 cannot fill bytes 0..2",
            ),
            (
                file(r#"{"a":{"dtype":"F9","shape":[2],"data_offsets":[0,8]}}"#, 8),
                "tensor `a` has the unknown dtype `F9`; known are BOOL, F4,",
            ),
            (
                file(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#, 3),
                "tensor `a` starts at byte 1, but the tensor before it ends at 0",
            ),
            (
                file(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[8,6]}}"#, 8),
                "tensor `a` starts at byte 8",
            ),
            (
                file(r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}"#, 0),
                "invalid value: integer `-1`",
            ),
            (
                file(
                    r#"{"a":{"dtype":"F64","shape":[4294967296,4294967296,4294967296],
                    "data_offsets":[0,0]}}"#,
                    0,
                ),
                "cannot fill bytes 0..0",
            ),
            (
                file(
                    r#"{"a":{"dtype":"U8","shape":[18446744073709551615],
                    "data_offsets":[0,18446744073709551615]}}"#,
                    0,
                ),
                "cannot fill bytes 0..18446744073709551615",
            ),
            (
                file(
                    r#"{"a":{"dtype":"U8","shape":[1000000000000],
                    "data_offsets":[0,1000000000000]}}"#,
                    0,
                ),
                "tensors take 1000000000",
            ),
        ];
        for (bytes, expected) in cases {
            let error = read_bytes(&bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\nshould say: {expected}");
            // The crate keeps the second of two tensors with one name.
            let theirs = safetensors::SafeTensors::deserialize(&bytes);
            assert_eq!(theirs.is_ok(), expected.contains("twice"), "{expected}");
        }
    }

    #[test]
    fn names_that_clash_cannot_be_laid_out() {
        let slot = |name: &str| Slot { name: name.to_owned(), shape: vec![1], dtype: Dtype::U8 };
        for names in [["a", "a"], ["a", METADATA_KEY]] {
            let error =
                Layout::new(names.iter().map(|name| slot(name)).collect(), &BTreeMap::new());
            assert_eq!(
                error.unwrap_err(),
                SafetensorsError::Duplicate { name: names[1].to_owned() }
            );
        }
        let long = Slot { shape: vec![usize::MAX, 2], ..slot("a") };
        let error = Layout::new(vec![long], &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, SafetensorsError::NoLength { .. }));
    }

    #[test]
    fn a_tensor_of_the_wrong_length_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let slot = Slot { name: "a".to_owned(), shape: vec![3], dtype: Dtype::U8 };
        let layout = Layout::new(vec![slot], &BTreeMap::new()).unwrap();
        let error = layout.write(&path, |_, bytes| {
            bytes.push(1);
            Ok(())
        });
        let message = error.unwrap_err().to_string();
        assert!(message.ends_with("tensor `a` was given as 1 bytes, but announced as 3"));
        assert!(!path.exists());
    }
}
