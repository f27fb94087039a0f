//! PyTorch checkpoints: what the `pytorch-reader` crate parses, behind limits of our own.
//!
//! A pickle is a program. The parser runs it without Python, so it cannot do harm, but it can
//! still ask for memory: every opcode may leave a value behind, and a view may repeat one element
//! a billion times. Before the parser sees a file, its pickles are skimmed, opcode by opcode, and
//! refused where they are longer than any honest checkpoint's; before a tensor is listed, its
//! length is held against that of the file.
//!
//! # Source
//! The opcodes of `pickletools` in Python 3, protocols 0 to 5; the containers that `torch.save`
//! writes, before and since PyTorch 1.6.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use pytorch_reader::{DType, PickleValue, PytorchReader, Tensor};
use thiserror::Error;

use crate::{Dtype, FileError};

/// The most opcodes that the pickles of a file may have. One tensor takes about 40.
const MAX_OPCODES: u64 = 4_000_000;

/// The most bytes that the pickles of a file may have.
const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// The most bytes that the names of all entries of a file may have.
const MAX_NAME_BYTES: usize = 256 << 20;

/// A tensor may be larger than its file only up to this many bytes.
const EXPANDED_BYTES: u64 = 256 << 20;

/// The most entries that a zip archive may have, and the most where a name is not ASCII: the
/// parser looks such names up one by one.
const MAX_ENTRIES: [usize; 2] = [1_000_000, 10_000];

/// A legacy checkpoint is five pickles and then the storages: magic, protocol, system, the saved
/// object, and the keys of the storages.
const LEGACY_PICKLES: usize = 5;

/// Why a PyTorch checkpoint was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PytorchError {
    /// The parser refused the file.
    #[error("not a PyTorch checkpoint that can be read: {reason}")]
    Parse {
        /// What the parser said.
        reason: String,
    },
    /// The file is a zip archive of something else.
    #[error("a zip archive without data.pkl, so not a PyTorch checkpoint; unpack it first")]
    NotACheckpoint,
    /// The pickles are longer than those of any honest checkpoint.
    #[error(
        "its pickle has more than {MAX_OPCODES} steps or {MAX_PICKLE_BYTES} bytes, which no \
         checkpoint needs"
    )]
    PickleTooLong,
    /// The names of the entries are longer than those of any honest checkpoint.
    #[error("the names in it take more than {MAX_NAME_BYTES} bytes, which no checkpoint needs")]
    NamesTooLong,
    /// The archive claims more than can be worth reading.
    #[error("its zip archive claims {bytes} bytes in {entries} entries; the file has {file_bytes}")]
    ArchiveTooLarge {
        /// Bytes of all entries, unpacked.
        bytes: u64,
        /// Number of entries.
        entries: usize,
        /// Bytes of the file.
        file_bytes: u64,
    },
    /// A view repeats its storage far beyond what the file holds.
    #[error(
        "tensor `{name}` of shape {shape:?} would take {bytes} bytes, but the file has only \
         {file_bytes}; save it with .contiguous() if it is meant"
    )]
    Expanded {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that it would take.
        bytes: u64,
        /// Bytes of the file.
        file_bytes: u64,
    },
    /// Two tensors have one path through the nested dictionaries.
    #[error("two tensors are called `{name}`: one key has a dot where another has a dictionary")]
    Ambiguous {
        /// The name in question.
        name: String,
    },
}

/// An entry of a checkpoint that is not a tensor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ignored {
    /// Path through the dictionaries, joined with dots as tensor names are.
    pub name: String,
    /// Its value where that is short, else its kind: `91.5`, `list of 3`, `torch.device`.
    pub content: String,
}

/// A parsed checkpoint whose tensors are still in the file.
pub(crate) struct Checkpoint {
    /// Sorted by name, since the parser does not keep the order of the file.
    pub tensors: Vec<Tensor>,
    /// Sorted by name.
    pub ignored: Vec<Ignored>,
}

/// Parses the checkpoint at `path`, whose bytes start as a zip archive where `zip` is set.
pub(crate) fn open(path: &Path, zip: bool) -> Result<Checkpoint, FileError> {
    let system = |source| FileError::io("read", path, source);
    let wrong = |problem| FileError::Pytorch { path: path.to_owned(), problem };

    let file = File::open(path).map_err(|source| FileError::io("open", path, source))?;
    let file_bytes = file.metadata().map_err(system)?.len();
    let verdict = if zip {
        check_archive(file, file_bytes)
    } else {
        let mut budget = Budget::default();
        let mut pickles = BufReader::new(file);
        budget.skim(&mut pickles, LEGACY_PICKLES)
    };
    verdict.map_err(wrong)?;

    // The saved object first: its names are counted before the parser writes each of them out.
    let values = PytorchReader::read_pickle_data(path, None);
    let root = values.map_err(|error| wrong(parse_error(&error)))?;
    let mut walk = Walk::default();
    walk.visit("", &root).map_err(wrong)?;
    drop(root);

    let parser = PytorchReader::new(path).map_err(|error| wrong(parse_error(&error)))?;
    let mut tensors: Vec<Tensor> = parser.into_tensors().into_values().collect();
    tensors.sort_by(|left, right| left.name.cmp(&right.name));
    for tensor in &tensors {
        let bytes = tensor.byte_len() as u64;
        if bytes > file_bytes.max(EXPANDED_BYTES) {
            let (name, shape) = (tensor.name.clone(), tensor.shape().to_vec());
            return Err(wrong(PytorchError::Expanded { name, shape, bytes, file_bytes }));
        }
    }

    let Walk { mut candidates, mut ignored, .. } = walk;
    candidates.sort();
    if let Some(pair) = candidates.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(wrong(PytorchError::Ambiguous { name: pair[0].clone() }));
    }
    candidates
        .retain(|name| tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).is_err());
    ignored.extend(
        candidates.into_iter().map(|name| Ignored { name, content: TENSOR_KIND.to_owned() }),
    );
    ignored.sort();
    Ok(Checkpoint { tensors, ignored })
}

/// The parser's message, cut where it quotes the file at length.
fn parse_error(error: &pytorch_reader::PytorchError) -> PytorchError {
    let text = error.to_string();
    let mut reason: String = text.chars().take(300).flat_map(char::escape_default).collect();
    if text.chars().nth(300).is_some() {
        reason.push_str("..");
    }
    PytorchError::Parse { reason }
}

/// Holds the sizes that a zip archive claims against the file, and skims its pickle.
fn check_archive(file: File, file_bytes: u64) -> Result<(), PytorchError> {
    let broken = |error: &dyn std::fmt::Display| PytorchError::Parse { reason: error.to_string() };
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|error| broken(&error))?;
    let entries = archive.len();
    let ascii = archive.file_names_raw().all(<[u8]>::is_ascii);
    if entries > MAX_ENTRIES[usize::from(!ascii)] {
        return Err(PytorchError::ArchiveTooLarge { bytes: 0, entries, file_bytes });
    }
    let mut bytes = 0u64;
    let mut pickles = Vec::new();
    for index in 0..entries {
        let entry = archive.by_index_raw(index).map_err(|error| broken(&error))?;
        bytes = bytes.saturating_add(entry.size());
        if entry.name().is_ok_and(|name| name.ends_with("data.pkl")) {
            pickles.push(index);
        }
    }
    if bytes > file_bytes.max(EXPANDED_BYTES) {
        return Err(PytorchError::ArchiveTooLarge { bytes, entries, file_bytes });
    }
    if pickles.is_empty() {
        return Err(PytorchError::NotACheckpoint);
    }
    // The parser takes one of them; which, is its affair.
    let mut budget = Budget::default();
    for index in pickles {
        let entry = archive.by_index(index).map_err(|error| broken(&error))?;
        budget.skim(&mut BufReader::new(entry), 1)?;
    }
    Ok(())
}

/// What the pickles of one file have used up.
#[derive(Default)]
struct Budget {
    opcodes: u64,
    bytes: u64,
}

impl Budget {
    /// Steps through `count` pickles without running them.
    ///
    /// Where the bytes end or make no sense this stops and says nothing: the parser gets no
    /// further either, and knows better what it missed.
    fn skim(&mut self, reader: &mut impl BufRead, count: usize) -> Result<(), PytorchError> {
        let mut finished = 0;
        while finished < count {
            let Some(&opcode) = reader.fill_buf().ok().and_then(<[u8]>::first) else {
                return Ok(());
            };
            reader.consume(1);
            finished += usize::from(opcode == b'.');
            let Ok(Some(argument)) = skip_argument(opcode, reader) else { return Ok(()) };
            self.opcodes += 1;
            self.bytes = self.bytes.saturating_add(argument).saturating_add(1);
            if self.opcodes > MAX_OPCODES || self.bytes > MAX_PICKLE_BYTES {
                return Err(PytorchError::PickleTooLong);
            }
        }
        Ok(())
    }
}

/// Skips what follows `opcode` and returns its length, or `None` for a byte that is no opcode.
fn skip_argument(opcode: u8, reader: &mut impl BufRead) -> io::Result<Option<u64>> {
    let prefix = match opcode {
        // No argument: marks, stack, containers, constants, objects, STOP.
        b'('
        | b'.'
        | b'0'
        | b'1'
        | b'2'
        | b'N'
        | b'Q'
        | b'R'
        | b'b'
        | b'd'
        | b'l'
        | b't'
        | b's'
        | b'a'
        | b')'
        | b']'
        | b'}'
        | b'e'
        | b'u'
        | 0x81
        | 0x85..=0x89
        | 0x8f..=0x94 => {
            return Ok(Some(0));
        }
        // A line of text; a global has two.
        b'I' | b'L' | b'F' | b'V' | b'g' | b'p' | b'P' => return skip_line(reader).map(Some),
        b'c' => return Ok(Some(skip_line(reader)? + skip_line(reader)?)),
        // A fixed number of bytes.
        b'K' | b'h' | b'q' | 0x80 => return skip(reader, 1).map(Some),
        b'M' => return skip(reader, 2).map(Some),
        b'J' | b'j' | b'r' => return skip(reader, 4).map(Some),
        b'G' | 0x95 => return skip(reader, 8).map(Some),
        // A length and as many bytes.
        b'U' | b'C' | 0x8a | 0x8c => 1,
        b'T' | b'X' | b'B' | 0x8b => 4,
        0x8d | 0x8e | 0x96 => 8,
        _ => return Ok(None),
    };
    let mut length = [0u8; 8];
    reader.read_exact(&mut length[..prefix])?;
    skip(reader, u64::from_le_bytes(length)).map(Some)
}

fn skip(reader: &mut impl BufRead, bytes: u64) -> io::Result<u64> {
    let skipped = io::copy(&mut reader.by_ref().take(bytes), &mut io::sink())?;
    if skipped == bytes { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<u64> {
    reader.skip_until(b'\n').map(|bytes| bytes as u64)
}

/// What the parser calls every tensor. An object of the class itself has the same name, so this
/// alone does not make a tensor.
const TENSOR_KIND: &str = "torch.Tensor";

/// A walk through the saved object that lists what is in it.
#[derive(Default)]
struct Walk {
    /// Paths to what may be tensors.
    candidates: Vec<String>,
    ignored: Vec<Ignored>,
    /// Bytes of all names so far.
    name_bytes: usize,
}

impl Walk {
    /// Visits the object at `path`. Returns whether there may be a tensor in it.
    fn visit(&mut self, path: &str, value: &PickleValue) -> Result<bool, PytorchError> {
        // Nested dictionaries multiply: a long key above many tensors is part of each name.
        self.name_bytes = self.name_bytes.saturating_add(path.len());
        if self.name_bytes > MAX_NAME_BYTES {
            return Err(PytorchError::NamesTooLong);
        }
        let listed = self.ignored.len();
        let mut holds_tensor = false;
        let child = |key: &str| {
            if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
        };
        match value {
            PickleValue::Dict(entries) => {
                for (key, entry) in entries {
                    holds_tensor |= self.visit(&child(key), entry)?;
                }
            }
            PickleValue::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    holds_tensor |= self.visit(&child(&index.to_string()), item)?;
                }
            }
            PickleValue::Unsupported(kind) if kind == TENSOR_KIND => {
                self.candidates.push(path.to_owned());
                return Ok(true);
            }
            _ => {}
        }
        // A collection is listed as one where nothing in it is a tensor; the root is no entry.
        if !holds_tensor && !path.is_empty() {
            self.ignored.truncate(listed);
            self.ignored.push(Ignored { name: path.to_owned(), content: describe(value) });
        }
        Ok(holds_tensor)
    }
}

fn describe(value: &PickleValue) -> String {
    match value {
        PickleValue::None => "None".to_owned(),
        PickleValue::Bool(value) => value.to_string(),
        PickleValue::Int(value) => value.to_string(),
        PickleValue::Float(value) => value.to_string(),
        PickleValue::String(text) if text.chars().count() <= 60 => format!("{text:?}"),
        PickleValue::String(text) => format!("text of {} bytes", text.len()),
        PickleValue::Bytes(bytes) => format!("{} bytes", bytes.len()),
        PickleValue::List(items) => format!("list of {}", items.len()),
        PickleValue::Dict(entries) => format!("dictionary of {}", entries.len()),
        PickleValue::Unsupported(kind) => kind.chars().take(120).collect(),
    }
}

/// The element type under its name here.
pub(crate) fn dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::Bf16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::Bool,
    }
}

/// Reads the elements of a tensor, little-endian.
pub(crate) fn read(tensor: &Tensor) -> io::Result<Vec<u8>> {
    let mut bytes = tensor.read()?;
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(tensor.dtype().size()).for_each(<[u8]>::reverse);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Tensor as Ours, open};

    fn golden(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
    }

    fn sorted(name: &str) -> Vec<Ours> {
        let mut tensors = crate::read(&golden(name)).unwrap().tensors;
        tensors.sort_by(|left, right| left.name().cmp(right.name()));
        tensors
    }

    #[test]
    fn both_containers_hold_what_safetensors_stored() {
        let expected = sorted("checkpoint.safetensors");
        assert_eq!(expected.len(), 10);
        assert_eq!(sorted("checkpoint.pt"), expected);
        assert_eq!(sorted("checkpoint_legacy.pth"), expected);
    }

    #[test]
    fn what_is_no_tensor_is_listed() {
        for name in ["checkpoint.pt", "checkpoint_legacy.pth"] {
            let reader = open(&golden(name)).unwrap();
            assert_eq!(reader.kind(), Kind::Pytorch);
            let listed: Vec<_> = reader
                .ignored()
                .iter()
                .map(|entry| format!("{} = {}", entry.name, entry.content))
                .collect();
            assert_eq!(
                listed,
                [
                    "arch = \"tiny\"",
                    "best_prec1 = 91.5",
                    "epoch = 3",
                    "optimizer.param_groups = list of 1"
                ]
            );
        }
    }

    #[test]
    fn prefixes_are_found_and_removed() {
        let mut reader = open(&golden("checkpoint.pt")).unwrap();
        assert_eq!(reader.common_prefix(), "");
        assert_eq!(reader.strip_prefix("state_dict.module.").unwrap(), 9);
        assert!(reader.find("weight").is_some());
        assert!(reader.find("optimizer.state.0.exp_avg").is_some());
        let error = reader.strip_prefix("model.").unwrap_err().to_string();
        assert!(error.contains("starts with `model.`; the first is `optimizer.state"), "{error}");
    }

    #[test]
    fn views_that_outgrow_the_file_are_refused() {
        let error = open(&golden("expanded.pt")).unwrap_err().to_string();
        assert!(error.contains("would materialize 17179869184 bytes"), "{error}");
        let error = open(&golden("expanded_less.pt")).unwrap_err().to_string();
        assert!(error.contains("tensor `large` of shape [1073741824] would take"), "{error}");
    }

    #[test]
    fn one_name_for_two_tensors_is_an_error() {
        let error = open(&golden("ambiguous.pt")).unwrap_err().to_string();
        assert!(error.contains("two tensors are called `a.b`"), "{error}");
    }

    /// A legacy file whose saved object is `pickle`.
    fn legacy(pickle: &[u8]) -> Result<Checkpoint, FileError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.pt");
        let mut file = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
        file.extend_from_slice(b"\x80\x02M\xe9\x03.");
        file.extend_from_slice(b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.");
        file.extend_from_slice(pickle);
        file.extend_from_slice(b"\x80\x02].");
        std::fs::write(&path, file).unwrap();
        super::open(&path, false)
    }

    fn reason(result: Result<Checkpoint, FileError>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn pickle_bombs_are_refused() {
        assert!(legacy(b"\x80\x02}X\x01\x00\x00\x00aK\x05s.").is_ok());

        // Millions of values, one byte each.
        let mut flood = b"\x80\x02(".to_vec();
        flood.resize(4_500_000, b'N');
        flood.extend_from_slice(b"l.");
        assert!(reason(legacy(&flood)).contains("more than 4000000 steps"));

        // A string that claims more than there is, and one that is really long.
        assert!(reason(legacy(b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\x7f")).contains("read"));
        let mut long = b"\x80\x02}X\x00\x00\x00\x05".to_vec();
        long.resize(long.len() + (5 << 24), b'a');
        long.extend_from_slice(b"Ns.");
        assert!(reason(legacy(&long)).contains("or 67108864 bytes"));

        // A list that doubles 40 times through the memo.
        let mut doubling = b"\x80\x02]q\x00".to_vec();
        for level in 0..40u8 {
            doubling.extend_from_slice(&[b'0', b'h', level, b'h', level, 0x86, b'q', level + 1]);
        }
        doubling.push(b'.');
        assert!(reason(legacy(&doubling)).contains("memo bomb"));

        // Deeper than a stack.
        let mut deep = b"\x80\x02N".to_vec();
        deep.resize(100_000, 0x85);
        deep.push(b'.');
        assert!(reason(legacy(&deep)).contains("nesting"));

        // A long key above many entries, each of which would be named with it.
        let mut names = b"\x80\x02}X\x00\x00\x10\x00".to_vec();
        names.resize(names.len() + (1 << 20), b'k');
        names.extend_from_slice(b"](");
        names.resize(names.len() + 1000, b'N');
        names.extend_from_slice(b"es.");
        assert!(reason(legacy(&names)).contains("names in it take more than"));
    }

    #[test]
    fn garbage_and_stumps_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["checkpoint.pt", "checkpoint_legacy.pth"] {
            let whole = std::fs::read(golden(name)).unwrap();
            let refused = |bytes: &[u8]| {
                // A fresh file each time: some file systems make rewriting one wait for the disk.
                let mut file = tempfile::Builder::new().suffix(".pt").tempfile().unwrap();
                io::Write::write_all(&mut file, bytes).unwrap();
                open(file.path()).and_then(|reader| reader.read_all()).is_err()
            };
            for length in (0..whole.len()).step_by(7) {
                assert!(refused(&whole[..length]), "{name} cut to {length} bytes");
            }
            let mut garbage = whole[..16].to_vec();
            garbage.resize(4096, 0xa5);
            assert!(refused(&garbage));
        }
        // An archive of something else, and one without any entry.
        let path = folder.path().join("other.bin");
        std::fs::write(&path, b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("other.bin: a zip archive without data.pkl"), "{error}");
    }
}
