//! scrimp's packed container: a safetensors file whose packed tensors are byte arrays.
//!
//! Each packed tensor lies under its own name as dtype `U8` and shape `[bytes]`, just as
//! [`Scheme::encode`] wrote it; a tensor that is not packed lies as it was. The metadata key
//! [`KEY`] holds a JSON object that says what is what:
//!
//! ```json
//! {"version":1,
//!  "tensors":{"fc.weight":{"scheme":"int4/group:32","shape":[10,64],"dtype":"F32"}},
//!  "kept":{"fc.bias":"1-D"}}
//! ```
//!
//! `shape` and `dtype` are those of the tensor before it was packed, so that decoding restores it.
//! `kept` gives the reason why a tensor was not packed; one that stands in neither list was not
//! meant to be. Both are sorted by name, and the rest follows [`Layout`], so the same tensors give
//! the same bytes. Any reader of safetensors opens the file.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use scrimp_codec::{Scheme, SchemeError, ShapeError, Size, Stream, Tally};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::dtype::value_count;
use crate::safetensors::{Header, SafetensorsError};
use crate::{Dtype, Entry, FileError, Layout, Reader, Slot, Storage};

/// The metadata key of the container's JSON.
pub const KEY: &str = "scrimp";

/// The version that is written, and the only one so far.
const VERSION: u32 = 1;

/// Why a packed container was refused, read or unwritten.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// The JSON under [`KEY`] is not what this module describes.
    #[error("the metadata `{KEY}` is not valid: {reason}")]
    Json {
        /// Place and kind of the mistake.
        reason: String,
    },
    /// A version that this reader does not know.
    #[error("packed container version {version} is not known; this scrimp reads version {VERSION}")]
    Version {
        /// What the file says.
        version: u64,
    },
    /// A tensor is listed but not in the file.
    #[error("tensor `{name}` is listed in the metadata `{KEY}`, but the file does not hold it")]
    Missing {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor is listed as packed and as kept.
    #[error("tensor `{name}` is listed both as packed and as kept")]
    Contradiction {
        /// Name of the tensor.
        name: String,
    },
    /// A packed tensor does not lie as a byte array.
    #[error("packed tensor `{name}` is stored as {dtype} {shape:?}; packed tensors are u8 [bytes]")]
    NotBytes {
        /// Name of the tensor.
        name: String,
        /// Its stored dtype.
        dtype: Dtype,
        /// Its stored shape.
        shape: Vec<usize>,
    },
    /// A tensor of a dtype without float values is listed as packed.
    #[error("tensor `{name}` of dtype {dtype} cannot be packed; f16, bf16, f32 and f64 can")]
    NotFloat {
        /// Name of the tensor.
        name: String,
        /// Its original dtype.
        dtype: Dtype,
    },
    /// A scheme that does not parse.
    #[error(
        "tensor `{name}`: `{}` is no scheme: {}; {}",
        problem.text,
        problem.message,
        problem.help
    )]
    Scheme {
        /// Name of the tensor.
        name: String,
        /// What the parser said.
        problem: SchemeError,
    },
    /// A scheme that does not fit the tensor's shape.
    #[error("tensor `{name}`: {problem}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// What does not fit.
        problem: ShapeError,
    },
    /// A packed tensor of the wrong length.
    #[error(
        "packed tensor `{name}`: `{scheme}` takes {expected} bytes for shape {shape:?}, \
         but {bytes} are stored"
    )]
    PackedLength {
        /// Name of the tensor.
        name: String,
        /// Its scheme.
        scheme: Box<Scheme>,
        /// Its original shape.
        shape: Vec<usize>,
        /// Bytes that the scheme takes.
        expected: Size,
        /// Bytes that the file holds.
        bytes: usize,
    },
    /// A tensor that is packed already was to be packed with another scheme, which would lose
    /// twice.
    #[error("tensor `{name}` is packed as `{scheme}` already; pack from the original instead")]
    AlreadyPacked {
        /// Name of the tensor.
        name: String,
        /// The scheme it has.
        scheme: Box<Scheme>,
    },
    /// The number of decisions is not the number of tensors.
    #[error("{decisions} decisions were given for {tensors} tensors")]
    Decisions {
        /// Decisions given.
        decisions: usize,
        /// Tensors in the file.
        tensors: usize,
    },
    /// The file around the tensors could not be laid out.
    #[error(transparent)]
    Layout(#[from] SafetensorsError),
}

/// The JSON under [`KEY`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    tensors: BTreeMap<String, PackedJson>,
    #[serde(default)]
    kept: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PackedJson {
    scheme: String,
    shape: Vec<usize>,
    dtype: Dtype,
}

/// What a safetensors header describes once the container's own metadata is understood.
pub(crate) struct Content {
    /// One entry per tensor of the header, in its order.
    pub entries: Vec<Entry>,
    /// The metadata without [`KEY`].
    pub metadata: BTreeMap<String, String>,
    pub packed: bool,
}

/// Checks the container's metadata against the header around it.
pub(crate) fn interpret(header: &Header) -> Result<Content, ContainerError> {
    let mut metadata = header.metadata.clone();
    let json = metadata.remove(KEY);
    let packed = json.is_some();
    let mut manifest = match json {
        Some(json) => parse_manifest(&json)?,
        None => Manifest { version: VERSION, tensors: BTreeMap::new(), kept: BTreeMap::new() },
    };
    let mut entries = Vec::with_capacity(header.tensors.len());
    for placed in &header.tensors {
        let Slot { name, shape, dtype } = placed.slot.clone();
        let kept = manifest.kept.remove(&name);
        entries.push(match (manifest.tensors.remove(&name), kept) {
            (Some(_), Some(_)) => return Err(ContainerError::Contradiction { name }),
            (Some(packed), None) => {
                if dtype != Dtype::U8 || shape.len() != 1 {
                    return Err(ContainerError::NotBytes { name, dtype, shape });
                }
                packed_entry(name, packed, placed.bytes)?
            }
            (None, Some(reason)) => Entry { name, shape, dtype, storage: Storage::Kept { reason } },
            (None, None) => Entry { name, shape, dtype, storage: Storage::Plain },
        });
    }
    match manifest.tensors.into_keys().chain(manifest.kept.into_keys()).next() {
        Some(name) => Err(ContainerError::Missing { name }),
        None => Ok(Content { entries, metadata, packed }),
    }
}

fn parse_manifest(json: &str) -> Result<Manifest, ContainerError> {
    /// The part that every version has.
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    let wrong = |error: serde_json::Error| ContainerError::Json { reason: error.to_string() };
    let Versioned { version } = serde_json::from_str(json).map_err(wrong)?;
    if version != u64::from(VERSION) {
        return Err(ContainerError::Version { version });
    }
    serde_json::from_str(json).map_err(wrong)
}

/// The entry of a packed tensor that takes `bytes` in the file.
fn packed_entry(name: String, packed: PackedJson, bytes: usize) -> Result<Entry, ContainerError> {
    let PackedJson { scheme, shape, dtype } = packed;
    let scheme: Scheme = match scheme.parse() {
        Ok(scheme) => scheme,
        Err(problem) => return Err(ContainerError::Scheme { name, problem }),
    };
    let entry = Entry { name, shape, dtype, storage: Storage::Packed { scheme } };
    let expected = entry.stored_size()?;
    match entry.storage {
        Storage::Packed { scheme } if !expected.contains(bytes) => {
            let Entry { name, shape, .. } = entry;
            let scheme = Box::new(scheme);
            Err(ContainerError::PackedLength { name, scheme, shape, expected, bytes })
        }
        _ => Ok(entry),
    }
}

impl Entry {
    /// Bytes of the tensor in the file.
    fn stored_size(&self) -> Result<Size, ContainerError> {
        let Self { name, shape, dtype, storage } = self;
        let no_length = || SafetensorsError::NoLength {
            name: name.clone(),
            shape: shape.clone(),
            dtype: *dtype,
        };
        let plain_bytes = dtype.byte_len(shape).ok_or_else(no_length)?;
        let Storage::Packed { scheme } = storage else { return Ok(Size::fixed(plain_bytes)) };
        if !dtype.is_float() {
            return Err(ContainerError::NotFloat { name: name.clone(), dtype: *dtype });
        }
        // The values must be addressable too, whatever little room the scheme leaves them.
        value_count(shape).and_then(|values| values.checked_mul(8)).ok_or_else(no_length)?;
        scheme.size(shape).map_err(|problem| ContainerError::Shape { name: name.clone(), problem })
    }
}

/// The length of a file that is not written yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSize {
    /// It will not be shorter, in bytes.
    pub least: u64,
    /// Nor longer.
    pub most: u64,
}

impl FileSize {
    /// The length, where no scheme makes it depend on the values.
    pub fn exact(self) -> Option<u64> {
        (self.least == self.most).then_some(self.least)
    }

    /// Whether the file may have this length.
    pub fn contains(self, bytes: u64) -> bool {
        (self.least..=self.most).contains(&bytes)
    }
}

/// The plan of a packed container: what can be wrong with it is known before a value is encoded.
#[derive(Debug, Clone)]
pub struct Plan {
    entries: Vec<Entry>,
    /// What each entry takes.
    sizes: Vec<Size>,
    metadata: BTreeMap<String, String>,
    file_size: FileSize,
}

impl Plan {
    /// Plans a file with one tensor per entry, stored as its [`Storage`] says, and `metadata`
    /// beside the container's own.
    ///
    /// Without a packed or kept entry the file is plain safetensors.
    ///
    /// # Errors
    /// A scheme that does not fit its tensor's shape, a packed tensor that is not float, and the
    /// errors of [`Layout::new`].
    pub fn new(
        entries: Vec<Entry>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, ContainerError> {
        let mut manifest =
            Manifest { version: VERSION, tensors: BTreeMap::new(), kept: BTreeMap::new() };
        let mut sizes = Vec::with_capacity(entries.len());
        for entry in &entries {
            let Entry { name, shape, dtype, storage } = entry;
            sizes.push(entry.stored_size()?);
            match storage {
                Storage::Plain => {}
                Storage::Kept { reason } => {
                    manifest.kept.insert(name.clone(), reason.clone());
                }
                Storage::Packed { scheme } => {
                    let (shape, dtype) = (shape.clone(), *dtype);
                    let packed = PackedJson { scheme: scheme.to_string(), shape, dtype };
                    manifest.tensors.insert(name.clone(), packed);
                }
            }
        }
        let mut metadata = metadata.clone();
        metadata.remove(KEY);
        if !(manifest.tensors.is_empty() && manifest.kept.is_empty()) {
            let json = serde_json::to_string(&manifest)
                .map_err(|error| ContainerError::Json { reason: error.to_string() })?;
            metadata.insert(KEY.to_owned(), json);
        }
        let mut plan = Self { entries, sizes, metadata, file_size: FileSize { least: 0, most: 0 } };
        let length = |pick: fn(Size) -> usize| {
            let bytes: Vec<usize> = plan.sizes.iter().map(|size| pick(*size)).collect();
            plan.layout(&bytes).map(|layout| layout.file_bytes())
        };
        plan.file_size = FileSize { least: length(|s| s.least)?, most: length(|s| s.most)? };
        Ok(plan)
    }

    /// The file's layout where the entries take so many bytes.
    fn layout(&self, bytes: &[usize]) -> Result<Layout, ContainerError> {
        let slot = |(entry, bytes): (&Entry, &usize)| match entry.storage {
            Storage::Packed { .. } => {
                Slot { name: entry.name.clone(), shape: vec![*bytes], dtype: Dtype::U8 }
            }
            _ => Slot { name: entry.name.clone(), shape: entry.shape.clone(), dtype: entry.dtype },
        };
        let slots = self.entries.iter().zip(bytes).map(slot).collect();
        Ok(Layout::new(slots, &self.metadata)?)
    }

    /// The entries as they were given.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Length of the file, header included: exact unless a scheme's bytes depend on the values.
    pub fn file_size(&self) -> FileSize {
        self.file_size
    }

    /// Writes the file through [`write_atomic`](crate::write_atomic), one tensor in memory at a time.
    ///
    /// `fill` is called once for each entry, with its place, and appends the tensor's bytes to the
    /// empty buffer: for a packed one what [`Scheme::encode`] gives. Tensors whose bytes depend on
    /// their values come first and wait in an unnamed temporary file, since the header states all
    /// lengths.
    ///
    /// # Errors
    /// Those of [`Layout::write`], and of the temporary file.
    pub fn write(
        &self,
        path: &Path,
        mut fill: impl FnMut(usize, &mut Vec<u8>) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let failed = |source| FileError::io("write", path, source);
        let mut waiting = None;
        let mut bytes: Vec<usize> = self.sizes.iter().map(|size| size.least).collect();
        let mut buffer = Vec::new();
        for (place, size) in self.sizes.iter().enumerate().filter(|(_, s)| s.exact().is_none()) {
            buffer.clear();
            fill(place, &mut buffer)?;
            if !size.contains(buffer.len()) {
                return Err(FileError::Safetensors {
                    path: path.to_owned(),
                    problem: SafetensorsError::Filled {
                        name: self.entries[place].name.clone(),
                        expected: size.most as u64,
                        bytes: buffer.len() as u64,
                    },
                });
            }
            bytes[place] = buffer.len();
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if waiting.is_none() {
                let file = tempfile::tempfile_in(folder.unwrap_or(Path::new(".")));
                waiting = Some((file.map_err(failed)?, BTreeMap::new()));
            }
            let Some((file, places)) = &mut waiting else { continue };
            places.insert(place, file.stream_position().map_err(failed)?);
            file.write_all(&buffer).map_err(failed)?;
        }
        let layout = self.layout(&bytes).map_err(|problem| FileError::Container {
            path: path.to_owned(),
            problem: Box::new(problem),
        })?;
        layout.write(path, |place, out| {
            let Some((file, start)) =
                waiting.as_mut().and_then(|(file, places)| Some((file, *places.get(&place)?)))
            else {
                return fill(place, out);
            };
            out.resize(bytes[place], 0);
            file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(out)).map_err(failed)
        })
    }
}

/// Length of the file that [`pack`] would write, header included, without reading a value.
///
/// # Errors
/// Those of [`pack`] that do not come from values or from the disk.
pub fn predicted_file_size(reader: &Reader, decisions: &[Storage]) -> Result<FileSize, FileError> {
    plan(reader, decisions).map(|plan| plan.file_size())
}

/// Writes the tensors of `reader` to `path`, each stored as the decision at its place says, one
/// tensor in memory at a time. Returns the tally of each packed tensor, by place.
///
/// A packed tensor that is to keep its scheme is copied; its place has no tally. Stochastic
/// rounding draws from the stream of `seed` and the tensor's name. `watch` is told the place of
/// each tensor after it was encoded or copied, and can stop the work.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::write`], those of reading, an encode error naming the
/// tensor, [`ContainerError::AlreadyPacked`], and those of `watch`.
pub fn pack(
    reader: &Reader,
    decisions: &[Storage],
    seed: u32,
    path: &Path,
    mut watch: impl FnMut(usize) -> Result<(), FileError>,
) -> Result<Vec<Option<Tally>>, FileError> {
    let plan = plan(reader, decisions)?;
    let mut tallies: Vec<Option<Tally>> = vec![None; decisions.len()];
    plan.write(path, |place, bytes| {
        let entry = &plan.entries[place];
        match (&entry.storage, &reader.entries()[place].storage) {
            (Storage::Packed { scheme }, Storage::Plain | Storage::Kept { .. }) => {
                let values = reader.read_f32(place)?;
                let stream = Stream::named(seed, &entry.name);
                let tally = scheme.encode(&values, &entry.shape, &stream, bytes);
                tallies[place] = Some(tally.map_err(|problem| FileError::Encode {
                    path: reader.path().to_owned(),
                    name: entry.name.clone(),
                    problem: Box::new(problem),
                })?);
            }
            (Storage::Packed { .. }, Storage::Packed { .. }) => {
                *bytes = reader.read_stored(place)?;
            }
            _ => *bytes = reader.read_tensor(place)?.into_bytes(),
        }
        watch(place)
    })?;
    Ok(tallies)
}

fn plan(reader: &Reader, decisions: &[Storage]) -> Result<Plan, FileError> {
    let wrong = |problem| FileError::Container {
        path: reader.path().to_owned(),
        problem: Box::new(problem),
    };
    let (tensors, given) = (reader.entries().len(), decisions.len());
    if tensors != given {
        return Err(wrong(ContainerError::Decisions { decisions: given, tensors }));
    }
    let mut entries = reader.entries().to_vec();
    for (entry, decision) in entries.iter_mut().zip(decisions) {
        if let (Storage::Packed { scheme: old }, Storage::Packed { scheme: new }) =
            (&entry.storage, decision)
            && old != new
        {
            let (name, scheme) = (entry.name.clone(), Box::new(old.clone()));
            return Err(wrong(ContainerError::AlreadyPacked { name, scheme }));
        }
        entry.storage = decision.clone();
    }
    Plan::new(entries, reader.metadata()).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Status, Tensor, open, open_bytes, save};

    fn scheme(text: &str) -> Storage {
        Storage::Packed { scheme: text.parse().unwrap() }
    }

    fn kept(reason: &str) -> Storage {
        Storage::Kept { reason: reason.to_owned() }
    }

    fn wave(values: usize) -> Vec<f32> {
        (0..values).map(|i| (i as f32 * 0.37).sin() * 3.0).collect()
    }

    /// A model with every kind of decision, in a folder that must live as long as it is used.
    struct Model {
        folder: tempfile::TempDir,
        reader: Reader,
        decisions: Vec<Storage>,
    }

    impl Model {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("plain.safetensors");
            let float = |name, shape: &[usize], dtype| {
                let values = wave(shape.iter().product());
                Tensor::from_f32(name, shape.to_vec(), dtype, &values).unwrap()
            };
            let tensors = [
                float("conv.weight", &[4, 3, 5], Dtype::F32),
                float("fc.weight", &[7, 33], Dtype::F16),
                float("fc.bias", &[7], Dtype::F32),
                float("deep.weight", &[3, 8], Dtype::F64),
                float("deep.brain", &[2, 5], Dtype::Bf16),
                float("empty", &[0, 4], Dtype::F32),
                Tensor::new("steps", vec![], Dtype::I64, vec![9; 8]).unwrap(),
            ];
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            save(&path, &tensors, &metadata).unwrap();
            let reader = open(&path).unwrap();
            let decide = |entry: &Entry| match entry.name.as_str() {
                "conv.weight" => scheme("int8/channel"),
                "fc.weight" => scheme("int4/group:32/stochastic"),
                "deep.weight" => scheme("e5m2"),
                "deep.brain" | "empty" => scheme("int8"),
                "fc.bias" => kept("1-D"),
                _ => Storage::Plain,
            };
            let decisions = reader.entries().iter().map(decide).collect();
            Self { folder, reader, decisions }
        }

        fn pack(&self, name: &str) -> Reader {
            let path = self.folder.path().join(name);
            pack(&self.reader, &self.decisions, 7, &path, |_| Ok(())).unwrap();
            open(&path).unwrap()
        }
    }

    #[test]
    fn packed_tensors_come_back_as_the_scheme_emulates_them() {
        let model = Model::new();
        let packed = model.pack("packed.safetensors");
        assert_eq!(packed.kind(), Kind::Packed);
        assert_eq!(packed.metadata(), model.reader.metadata());
        assert_eq!(packed.entries().len(), 7);
        for (place, decision) in model.decisions.iter().enumerate() {
            let original = model.reader.read_tensor(place).unwrap();
            let there = packed.find(original.name()).unwrap();
            let entry = &packed.entries()[there];
            assert_eq!((&entry.storage, entry.dtype), (decision, original.dtype()));
            assert_eq!(entry.shape, original.shape());
            let tensor = packed.read_tensor(there).unwrap();
            let Storage::Packed { scheme } = decision else {
                assert_eq!(tensor, original);
                continue;
            };
            let mut expected = original.to_f32().unwrap();
            let stream = Stream::named(7, original.name());
            scheme.emulate(&mut expected, original.shape(), &stream).unwrap();
            assert_eq!(packed.read_f32(there).unwrap(), expected, "{}", original.name());
            let rounded = original.dtype().from_f32(&expected).unwrap();
            assert_eq!(tensor.bytes(), rounded);
            let bytes = scheme.size(original.shape()).unwrap().exact().unwrap();
            assert_eq!(packed.read_stored(there).unwrap().len(), bytes);
        }
    }

    #[test]
    fn the_predicted_size_is_the_size_and_the_bytes_repeat() {
        let model = Model::new();
        let predicted = predicted_file_size(&model.reader, &model.decisions).unwrap();
        let files = ["a.safetensors", "b.safetensors"].map(|name| {
            model.pack(name);
            std::fs::read(model.folder.path().join(name)).unwrap()
        });
        assert_eq!(Some(files[0].len() as u64), predicted.exact());
        assert_eq!(files[0], files[1]);
        assert!(safetensors::SafeTensors::deserialize(&files[0]).is_ok());
    }

    #[test]
    fn the_ledger_counts_what_lies_in_the_file() {
        let model = Model::new();
        let ledger = model.pack("a.safetensors").ledger();
        let line = |name: &str| {
            let row = ledger.rows.iter().find(|row| row.name == name).unwrap();
            let bits = row.bits_per_value.unwrap_or(f64::NAN);
            format!("{} {} {} {bits:.2} {:?}", row.values, row.scheme, row.bytes, row.status)
        };
        // 60 codes and 4 scales; 231 codes of 4 bits and 2 scales in each of 7 rows.
        assert_eq!(line("conv.weight"), "60 int8/channel 76 10.13 Packed");
        let fc = &ledger.rows[ledger.rows.iter().position(|r| r.name == "fc.weight").unwrap()];
        assert_eq!((fc.scheme.as_str(), &fc.status), ("int4/group:32/stochastic", &Status::Packed));
        assert!(fc.bytes >= 116 + 14 * 4, "{fc:?}");
        assert_eq!(line("fc.bias"), "7 f32 28 32.00 Kept(\"1-D\")");
        assert_eq!(line("steps"), "1 i64 8 64.00 Plain");
        assert!(ledger.rows.is_sorted_by(|left, right| left.name < right.name));
        assert_eq!(ledger.payload_bytes, ledger.rows.iter().map(|row| row.bytes).sum::<u64>());
        assert_eq!(ledger.f32_bytes, 4 * (60 + 231 + 7 + 24 + 10) + 8);
        let bytes = std::fs::read(model.folder.path().join("a.safetensors")).unwrap();
        assert_eq!(ledger.file_bytes, bytes.len() as u64);
        let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) + 8;
        assert_eq!(ledger.file_bytes, header + ledger.payload_bytes);
    }

    #[test]
    fn packing_a_packed_file_copies_or_refuses() {
        let model = Model::new();
        let packed = model.pack("a.safetensors");
        let path = model.folder.path().join("b.safetensors");
        let same: Vec<_> = packed.entries().iter().map(|entry| entry.storage.clone()).collect();
        let tallies = pack(&packed, &same, 8, &path, |_| Ok(())).unwrap();
        assert!(tallies.iter().all(Option::is_none));
        assert_eq!(std::fs::read(packed.path()).unwrap(), std::fs::read(&path).unwrap());

        let other = vec![scheme("int4"); 7];
        let error = pack(&packed, &other, 8, &path, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("already; pack from the original instead"), "{error}");

        // Asking for plain tensors decodes.
        pack(&packed, &vec![Storage::Plain; 7], 8, &path, |_| Ok(())).unwrap();
        let decoded = open(&path).unwrap();
        assert_eq!(decoded.kind(), Kind::Safetensors);
        let place = decoded.find("fc.weight").unwrap();
        let before = packed.read_tensor(packed.find("fc.weight").unwrap()).unwrap();
        assert_eq!(decoded.read_tensor(place).unwrap(), before);
    }

    #[test]
    fn impossible_decisions_name_the_tensor() {
        let model = Model::new();
        let path = model.folder.path().join("a.safetensors");
        let place = |name| model.reader.find(name).unwrap();
        let error = |name, storage| {
            let mut decisions = vec![Storage::Plain; 7];
            decisions[place(name)] = storage;
            pack(&model.reader, &decisions, 7, &path, |_| Ok(())).unwrap_err().to_string()
        };
        let steps = error("steps", scheme("int8"));
        assert!(steps.contains("tensor `steps` of dtype i64 cannot be packed"), "{steps}");
        let bias = error("fc.bias", scheme("int8/channel"));
        assert!(bias.contains("tensor `fc.bias`: `channel` needs"), "{bias}");
        let few = pack(&model.reader, &[], 7, &path, |_| Ok(())).unwrap_err().to_string();
        assert!(few.contains("0 decisions were given for 7 tensors"), "{few}");
        assert!(!path.exists());
    }

    #[test]
    fn values_that_a_scheme_cannot_hold_name_the_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensor = Tensor::from_f32("bad", vec![2], Dtype::F32, &[1.0, f32::NAN]).unwrap();
        save(&path, &[tensor], &BTreeMap::new()).unwrap();
        let reader = open(&path).unwrap();
        let packed = folder.path().join("b.safetensors");
        let error =
            pack(&reader, &[scheme("int8")], 7, &packed, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("tensor `bad`"), "{error}");
        assert!(!packed.exists());
        let saturate = [scheme("int8/nonfinite:saturate")];
        let tallies = pack(&reader, &saturate, 7, &packed, |_| Ok(())).unwrap();
        assert_eq!(tallies[0].unwrap().nans, 1);
    }

    #[test]
    fn metadata_that_lies_is_refused_with_the_tensor_named() {
        // Two stored tensors: eight bytes that `int8` takes for four values, and two floats.
        let file = |json: &str| {
            let slots = vec![
                Slot { name: "a".to_owned(), shape: vec![8], dtype: Dtype::U8 },
                Slot { name: "b".to_owned(), shape: vec![2], dtype: Dtype::F32 },
            ];
            let metadata = BTreeMap::from([(KEY.to_owned(), json.to_owned())]);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a");
            Layout::new(slots, &metadata)
                .unwrap()
                .write(&path, |place, bytes| {
                    bytes.extend_from_slice(&[[1, 2, 3, 4, 0, 0, 0x80, 0x3f], [0; 8]][place]);
                    Ok(())
                })
                .unwrap();
            open_bytes(Path::new("x.safetensors"), std::fs::read(&path).unwrap())
        };
        let entry = |text: &str| format!(r#"{{"version":1,"tensors":{{{text}}}}}"#);
        let good = r#""a":{"scheme":"int8","shape":[2,2],"dtype":"F32"}"#;
        assert_eq!(file(&entry(good)).unwrap().entries()[1].shape, [2, 2]);

        let cases = [
            ("nonsense".to_owned(), "the metadata `scrimp` is not valid"),
            ("{}".to_owned(), "missing field `version`"),
            (r#"{"version":2,"of":"later"}"#.to_owned(), "container version 2 is not known"),
            (r#"{"version":1,"tensors":{},"x":0}"#.to_owned(), "unknown field `x`"),
            (entry(&good.replace("\"a\"", "\"c\"")), "tensor `c` is listed"),
            (entry(&good.replace("\"a\"", "\"b\"")), "tensor `b` is stored as f32 [2]"),
            (entry(&good.replace("int8", "int99")), "tensor `a`: `int99` is no scheme"),
            (entry(&good.replace("[2,2]", "[2,3]")), "takes 10 bytes for shape [2, 3], but 8"),
            (entry(&good.replace("int8", "int8/channel")), "tensor `a`: `int8/channel` takes 12"),
            (
                entry(&good.replace("\"int8\"", "\"int8/channel\"").replace("[2,2]", "[4]")),
                "tensor `a`: `channel` needs a tensor of at least two axes",
            ),
            (entry(&good.replace("F32", "I32")), "tensor `a` of dtype i32 cannot be packed"),
            (entry(&good.replace("F32", "F33")), "unknown variant `F33`"),
            (
                entry(&good.replace("[2,2]", "[4294967296,4294967296,0]")),
                "tensor `a` of shape [4294967296, 4294967296, 0]",
            ),
            (
                entry(good).replace("}}}", r#"}},"kept":{"a":"1-D"}}"#),
                "tensor `a` is listed both as packed and as kept",
            ),
            (
                entry(good).replace("}}}", r#"}},"kept":{"d":"1-D"}}"#),
                "tensor `d` is listed in the metadata",
            ),
        ];
        for (json, expected) in cases {
            let error = file(&json).unwrap_err().to_string();
            assert!(error.starts_with("x.safetensors: "), "{error}");
            assert!(error.contains(expected), "{error}\nshould say: {expected}");
        }
    }
}
