//! Opening a file of any kind and reading its tensors one at a time.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use scrimp_codec::Scheme;

use crate::dtype::value_count;
use crate::pytorch::Ignored;
use crate::safetensors::Placed;
use crate::{Dtype, FileError, Tensor, container, npy, pytorch, safetensors};

/// What kind of file a [`Reader`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Plain safetensors.
    Safetensors,
    /// scrimp's packed container, which is safetensors as well.
    Packed,
    /// A PyTorch checkpoint, zip archive or older.
    Pytorch,
    /// A `numpy` array.
    Npy,
}

/// Prints the name that users know the kind by.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Safetensors => "safetensors",
            Self::Packed => "packed safetensors",
            Self::Pytorch => "PyTorch checkpoint",
            Self::Npy => "npy",
        })
    }
}

/// How a tensor is stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Storage {
    /// As it is.
    Plain,
    /// As it is, although the file around it is packed.
    Kept {
        /// Why it was not packed: `1-D`, `integer`, `rule says f32`.
        reason: String,
    },
    /// As the bytes of a scheme.
    Packed {
        /// The scheme that encoded it.
        scheme: Scheme,
    },
}

/// What a file says about one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Extents, outermost first; empty for a scalar. Those of the values, where it is packed.
    pub shape: Vec<usize>,
    /// Element type; of a packed tensor, the one it had before and gets back.
    pub dtype: Dtype,
    /// How it is stored.
    pub storage: Storage,
}

impl Entry {
    /// Number of values, 1 for a scalar.
    pub fn values(&self) -> usize {
        value_count(&self.shape).unwrap_or_default()
    }
}

/// Bytes to read from, in a file or in memory.
trait Source: Read + Seek + Send {}
impl<T: Read + Seek + Send> Source for T {}

/// Where the tensors of a reader are.
enum Place {
    /// At known places of one source, each as it is.
    Spans { source: Mutex<Box<dyn Source>>, spans: Vec<Placed> },
    /// Behind the header of an `.npy` file.
    Npy { source: Mutex<Box<dyn Source>>, header: npy::Header },
    /// With the checkpoint's parser.
    Pytorch(Vec<pytorch_reader::Tensor>),
}

/// An open file of tensors: the header is read and checked, the tensors are still in the file.
///
/// Of a packed tensor a reader shows the shape, dtype and values that it stands for, so a packed
/// file can be used wherever the original could. A reader can be shared between threads.
///
/// ```no_run
/// use std::path::Path;
///
/// let reader = scrimp_files::open(Path::new("model.safetensors"))?;
/// for (place, entry) in reader.entries().iter().enumerate() {
///     if entry.dtype.is_float() {
///         let values = reader.read_f32(place)?; // one tensor in memory at a time
///         println!("{} {:?}: {} values", entry.name, entry.shape, values.len());
///     }
/// }
/// # Ok::<(), scrimp_files::FileError>(())
/// ```
pub struct Reader {
    path: PathBuf,
    kind: Kind,
    file_bytes: u64,
    entries: Vec<Entry>,
    metadata: BTreeMap<String, String>,
    ignored: Vec<Ignored>,
    place: Place,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({:?} {}, {} tensors)", self.path, self.kind, self.entries.len())
    }
}

/// Opens the file of tensors at `path`.
///
/// Its first bytes decide of what kind it is; only where they say nothing, its extension does.
/// Header and lengths are checked here, so that a tensor which is listed can be read.
///
/// Tensors stand in the order of the file, and those of a PyTorch checkpoint, whose parser does
/// not know that order, sorted by name. The keys of nested dictionaries are joined with dots:
/// `{"state_dict": {"fc.weight": ..}}` gives `state_dict.fc.weight`, which
/// [`Reader::strip_prefix`] shortens. An `.npy` array is called like its file.
///
/// # Errors
/// [`FileError`] naming the file and what is wrong with it.
pub fn open(path: &Path) -> Result<Reader, FileError> {
    let cannot_open = |source| FileError::io("open", path, source);
    let mut file = File::open(path).map_err(cannot_open)?;
    let about = file.metadata().map_err(cannot_open)?;
    if about.is_dir() {
        return Err(cannot_open(io::ErrorKind::IsADirectory.into()));
    }
    let file_bytes = about.len();

    let failed = |source| FileError::io("read", path, source);
    let mut start = Vec::new();
    file.by_ref().take(512).read_to_end(&mut start).map_err(failed)?;
    file.rewind().map_err(failed)?;
    match sniff(&start, path) {
        Ok(Sniffed::Safetensors) => open_safetensors(path, Box::new(file), file_bytes),
        Ok(Sniffed::Npy) => open_npy(path, Box::new(file), file_bytes),
        Ok(Sniffed::Pytorch { zip }) => open_pytorch(path, file_bytes, zip),
        Err(found) => Err(FileError::UnknownKind { path: path.to_owned(), found }),
    }
}

/// Opens a file of tensors that is in memory already; `path` stands for it in names and messages.
///
/// A PyTorch checkpoint can be opened from the disk only.
///
/// # Errors
/// Those of [`open`].
pub fn open_bytes(path: &Path, bytes: Vec<u8>) -> Result<Reader, FileError> {
    let file_bytes = bytes.len() as u64;
    match sniff(&bytes, path) {
        Ok(Sniffed::Safetensors) => {
            open_safetensors(path, Box::new(Cursor::new(bytes)), file_bytes)
        }
        Ok(Sniffed::Npy) => open_npy(path, Box::new(Cursor::new(bytes)), file_bytes),
        Ok(Sniffed::Pytorch { .. }) => Err(FileError::UnknownKind {
            path: path.to_owned(),
            found: "a PyTorch checkpoint, which is read from the disk only",
        }),
        Err(found) => Err(FileError::UnknownKind { path: path.to_owned(), found }),
    }
}

/// A kind of file, before its content has been looked at.
#[derive(Debug, PartialEq, Eq)]
enum Sniffed {
    Safetensors,
    Npy,
    Pytorch { zip: bool },
}

/// The value that opens a checkpoint of PyTorch 0.1.10 to 1.5, as pickle protocols 2 and up write
/// it and as the older ones spell it.
const LEGACY_MAGIC: [&[u8]; 2] =
    [b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", b"119547037146038801333356"];

/// What the first bytes of a file, and failing that its name, say about its kind; else what it
/// looks like.
fn sniff(start: &[u8], path: &Path) -> Result<Sniffed, &'static str> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let extension = extension.to_ascii_lowercase();
    let extension = extension.as_str();
    let header_bytes = start.first_chunk::<8>().map(|&length| u64::from_le_bytes(length));
    let checkpoint_name = matches!(extension, "pt" | "pth" | "th" | "bin" | "ckpt");

    if start.starts_with(npy::MAGIC) {
        return Ok(Sniffed::Npy);
    }
    if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        return if extension == "npz" {
            Err("an .npz archive, which holds .npy files; unpack it first")
        } else {
            Ok(Sniffed::Pytorch { zip: true })
        };
    }
    if start.get(257..262) == Some(b"ustar") {
        return Err(
            "a tar archive, as PyTorch before 0.1.10 wrote; load and save it with a newer one",
        );
    }
    // A safetensors length may begin like a pickle, so it is asked for first.
    if start.get(8) == Some(&b'{')
        && header_bytes.is_some_and(|bytes| bytes <= safetensors::MAX_HEADER_BYTES)
    {
        return Ok(Sniffed::Safetensors);
    }
    let opening = &start[..start.len().min(64)];
    if LEGACY_MAGIC.iter().any(|magic| opening.windows(magic.len()).any(|bytes| bytes == *magic)) {
        return Ok(Sniffed::Pytorch { zip: false });
    }
    match extension {
        "safetensors" => Ok(Sniffed::Safetensors),
        "npy" => Ok(Sniffed::Npy),
        _ if checkpoint_name && start.first() == Some(&0x80) => Ok(Sniffed::Pytorch { zip: false }),
        _ if start.is_empty() => Err("an empty file"),
        _ if checkpoint_name => Err("no PyTorch checkpoint, whatever its name says"),
        "onnx" | "tflite" | "gguf" | "h5" | "npz" | "zst" | "gz" => {
            Err("a file of another kind, by its name")
        }
        _ => Err("not a file of tensors"),
    }
}

fn open_safetensors(
    path: &Path,
    mut source: Box<dyn Source>,
    file_bytes: u64,
) -> Result<Reader, FileError> {
    let header = safetensors::read_header(&mut source, file_bytes)
        .map_err(|source| FileError::io("read", path, source))?
        .map_err(|problem| FileError::Safetensors { path: path.to_owned(), problem })?;
    let content = container::interpret(&header)
        .map_err(Box::new)
        .map_err(|problem| FileError::Container { path: path.to_owned(), problem })?;
    Ok(Reader {
        path: path.to_owned(),
        kind: if content.packed { Kind::Packed } else { Kind::Safetensors },
        file_bytes,
        entries: content.entries,
        metadata: content.metadata,
        ignored: Vec::new(),
        place: Place::Spans { source: Mutex::new(source), spans: header.tensors },
    })
}

fn open_npy(
    path: &Path,
    mut source: Box<dyn Source>,
    file_bytes: u64,
) -> Result<Reader, FileError> {
    let header = npy::read_header(&mut source, file_bytes)
        .map_err(|source| FileError::io("read", path, source))?
        .map_err(|problem| FileError::Npy { path: path.to_owned(), problem })?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (shape, dtype) = (header.shape.clone(), header.dtype);
    Ok(Reader {
        path: path.to_owned(),
        kind: Kind::Npy,
        file_bytes,
        entries: vec![Entry { name, shape, dtype, storage: Storage::Plain }],
        metadata: BTreeMap::new(),
        ignored: Vec::new(),
        place: Place::Npy { source: Mutex::new(source), header },
    })
}

fn open_pytorch(path: &Path, file_bytes: u64, zip: bool) -> Result<Reader, FileError> {
    let checkpoint = pytorch::open(path, zip)?;
    let entries = checkpoint.tensors.iter().map(|tensor| Entry {
        name: tensor.name.clone(),
        shape: tensor.shape().to_vec(),
        dtype: pytorch::dtype(tensor.dtype()),
        storage: Storage::Plain,
    });
    Ok(Reader {
        path: path.to_owned(),
        kind: Kind::Pytorch,
        file_bytes,
        entries: entries.collect(),
        metadata: BTreeMap::new(),
        ignored: checkpoint.ignored,
        place: Place::Pytorch(checkpoint.tensors),
    })
}

impl Reader {
    /// The file that is being read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of file it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The tensors. Their places here are what the reading functions take.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The place of the tensor called `name`.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.name == name)
    }

    /// The texts that a safetensors file carries beside its tensors, the container's own left out.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What a PyTorch checkpoint holds beside tensors, sorted by name.
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }

    /// The longest prefix, up to and with a dot, that all names share: `state_dict.module.`, say.
    pub fn common_prefix(&self) -> &str {
        let Some((first, rest)) = self.entries.split_first() else { return "" };
        let shared = rest.iter().fold(first.name.len(), |shared, entry| {
            let pairs = first.name.bytes().zip(entry.name.bytes()).take(shared);
            pairs.take_while(|(left, right)| left == right).count()
        });
        let dot = first.name.as_bytes()[..shared].iter().rposition(|&byte| byte == b'.');
        dot.map_or("", |dot| &first.name[..=dot])
    }

    /// Removes `prefix` from every name that starts with it and is longer. Returns how many did.
    ///
    /// # Errors
    /// [`FileError::NoSuchPrefix`] where none does and [`FileError::NameClash`] where two names
    /// would become one; the names are left as they were.
    pub fn strip_prefix(&mut self, prefix: &str) -> Result<usize, FileError> {
        let stripped = |entry: &Entry| {
            entry.name.strip_prefix(prefix).filter(|rest| !rest.is_empty()).map(str::to_owned)
        };
        let mut names = HashSet::with_capacity(self.entries.len());
        let mut count = 0;
        for entry in &self.entries {
            let name = stripped(entry).inspect(|_| count += 1).unwrap_or(entry.name.clone());
            if let Some(name) = names.replace(name) {
                return Err(FileError::NameClash { path: self.path.clone(), name });
            }
        }
        if count == 0 {
            let first = self.entries.first().map(|entry| entry.name.clone()).unwrap_or_default();
            let (path, prefix) = (self.path.clone(), prefix.to_owned());
            return Err(FileError::NoSuchPrefix { path, prefix, first });
        }
        for entry in &mut self.entries {
            if let Some(name) = stripped(entry) {
                entry.name = name;
            }
        }
        Ok(count)
    }

    /// Bytes of the tensor in the file. Those of a PyTorch tensor are the bytes that it stands
    /// for: two tensors may share them there.
    ///
    /// # Panics
    /// Where there is no tensor at `place`.
    pub fn stored_bytes(&self, place: usize) -> usize {
        match &self.place {
            Place::Spans { spans, .. } => spans[place].bytes,
            Place::Npy { header, .. } => [header.bytes][place],
            Place::Pytorch(tensors) => tensors[place].byte_len(),
        }
    }

    /// The bytes of a tensor as they are stored: of a packed one, what its scheme encoded; of any
    /// other, its elements, row-major and little-endian.
    ///
    /// # Errors
    /// [`FileError::Io`] and [`FileError::Memory`].
    ///
    /// # Panics
    /// Where there is no tensor at `place`.
    pub fn read_stored(&self, place: usize) -> Result<Vec<u8>, FileError> {
        match &self.place {
            Place::Spans { source, spans } => {
                let mut bytes = self.zeros(place, spans[place].bytes)?;
                self.read_at(source, spans[place].begin, &mut bytes)?;
                Ok(bytes)
            }
            Place::Npy { source, header } => {
                let mut bytes = self.zeros(place, header.bytes)?;
                self.read_at(source, header.begin, &mut bytes)?;
                Ok(header.normalize(bytes))
            }
            Place::Pytorch(tensors) => pytorch::read(&tensors[place])
                .map_err(|source| FileError::io("read", &self.path, source)),
        }
    }

    /// A tensor with its original dtype; a packed one is decoded.
    ///
    /// # Errors
    /// Those of [`Reader::read_stored`], and [`FileError::Decode`].
    ///
    /// # Panics
    /// Where there is no tensor at `place`.
    pub fn read_tensor(&self, place: usize) -> Result<Tensor, FileError> {
        let Entry { name, shape, dtype, storage } = &self.entries[place];
        let tensor = match storage {
            Storage::Packed { .. } => {
                Tensor::from_f32(name, shape.clone(), *dtype, &self.read_f32(place)?)
            }
            _ => Tensor::new(name, shape.clone(), *dtype, self.read_stored(place)?),
        };
        tensor.map_err(|problem| FileError::Tensor { path: self.path.clone(), problem })
    }

    /// The values of a float tensor; a packed one is decoded.
    ///
    /// # Errors
    /// Those of [`Reader::read_stored`], [`FileError::Decode`], and [`FileError::NotFloat`] for a
    /// tensor of any other dtype.
    ///
    /// # Panics
    /// Where there is no tensor at `place`.
    pub fn read_f32(&self, place: usize) -> Result<Vec<f32>, FileError> {
        let mut values = Vec::new();
        self.read_f32_into(place, &mut values)?;
        Ok(values)
    }

    /// As [`Reader::read_f32`], in memory that is there already: what `values` held is replaced.
    ///
    /// # Errors
    /// Those of [`Reader::read_f32`]. What `values` holds is then unspecified.
    ///
    /// # Panics
    /// Where there is no tensor at `place`.
    pub fn read_f32_into(&self, place: usize, values: &mut Vec<f32>) -> Result<(), FileError> {
        let Entry { name, shape, dtype, storage } = &self.entries[place];
        if let Storage::Packed { scheme } = storage {
            let bytes = self.read_stored(place)?;
            self.fit(place, values, self.entries[place].values())?;
            return scheme.decode(&bytes, shape, values).map_err(|problem| FileError::Decode {
                path: self.path.clone(),
                name: name.clone(),
                problem: Box::new(problem),
            });
        }
        // The values of a large model are read where they stay, without a second copy.
        #[cfg(target_endian = "little")]
        if let (Place::Spans { source, spans }, Dtype::F32) = (&self.place, dtype) {
            self.fit(place, values, self.entries[place].values())?;
            return self.read_at(source, spans[place].begin, bytemuck::cast_slice_mut(values));
        }
        if !dtype.is_float() {
            let (path, name) = (self.path.clone(), name.clone());
            return Err(FileError::NotFloat { path, name, dtype: *dtype });
        }
        let bytes = self.read_stored(place)?;
        *values = dtype.to_f32(&bytes).unwrap_or_default();
        Ok(())
    }

    fn read_at(
        &self,
        source: &Mutex<Box<dyn Source>>,
        begin: u64,
        bytes: &mut [u8],
    ) -> Result<(), FileError> {
        // A thread that panicked while it held the lock left nothing behind but a position.
        let mut source = source.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        source
            .seek(SeekFrom::Start(begin))
            .and_then(|_| source.read_exact(bytes))
            .map_err(|error| FileError::io("read", &self.path, error))
    }

    /// Zeroed memory, or an error that names the tensor instead of an abort.
    fn zeros<T: Clone + Default>(&self, place: usize, count: usize) -> Result<Vec<T>, FileError> {
        let mut zeros = Vec::new();
        self.fit(place, &mut zeros, count)?;
        Ok(zeros)
    }

    /// Makes `memory` so long, or an error that names the tensor instead of an abort.
    fn fit<T: Clone + Default>(
        &self,
        place: usize,
        memory: &mut Vec<T>,
        count: usize,
    ) -> Result<(), FileError> {
        let more = count.saturating_sub(memory.len());
        memory.try_reserve_exact(more).map_err(|_| FileError::Memory {
            path: self.path.clone(),
            name: self.entries[place].name.clone(),
            bytes: count.saturating_mul(size_of::<T>()),
        })?;
        memory.resize(count, T::default());
        Ok(())
    }
}

/// All tensors of a file, in memory.
#[derive(Debug, Clone)]
pub struct TensorFile {
    /// The tensors, in the order of [`Reader::entries`]; packed ones are decoded.
    pub tensors: Vec<Tensor>,
    /// See [`Reader::metadata`].
    pub metadata: BTreeMap<String, String>,
    /// See [`Reader::ignored`].
    pub ignored: Vec<Ignored>,
}

/// A file whose tensors take more memory than this many times its own length is not read whole,
/// unless they are small. Honest packed tensors take up to 32 times theirs.
const MAX_EXPANSION: u64 = 64;

/// What is small: the bytes that the tensors of any file may take.
const SMALL_BYTES: u64 = 1 << 30;

/// Reads all tensors of the file at `path`. For large files [`open`] takes less memory.
///
/// # Errors
/// Those of [`open`] and of [`Reader::read_all`].
pub fn read(path: &Path) -> Result<TensorFile, FileError> {
    open(path)?.read_all()
}

impl Reader {
    /// Reads all tensors.
    ///
    /// # Errors
    /// Those of [`Reader::read_tensor`], and [`FileError::TooMuch`] for a small file that claims
    /// tensors without end.
    pub fn read_all(&self) -> Result<TensorFile, FileError> {
        let bytes = self.entries.iter().fold(0u64, |sum, entry| {
            let bytes = entry.dtype.byte_len(&entry.shape).unwrap_or(usize::MAX);
            sum.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX))
        });
        if bytes > SMALL_BYTES.max(self.file_bytes.saturating_mul(MAX_EXPANSION)) {
            return Err(FileError::TooMuch { path: self.path.clone(), bytes });
        }
        let tensors = (0..self.entries.len()).map(|place| self.read_tensor(place));
        Ok(TensorFile {
            tensors: tensors.collect::<Result<_, _>>()?,
            metadata: self.metadata.clone(),
            ignored: self.ignored.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::save;

    fn named(names: &[&str]) -> Reader {
        let tensors: Vec<Tensor> = names
            .iter()
            .map(|name| Tensor::new(*name, vec![1], Dtype::U8, vec![7]).unwrap())
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        save(&path, &tensors, &BTreeMap::new()).unwrap();
        open_bytes(Path::new("a.safetensors"), std::fs::read(&path).unwrap()).unwrap()
    }

    #[test]
    fn the_common_prefix_ends_with_a_dot() {
        assert_eq!(named(&["m.a.w", "m.a.b"]).common_prefix(), "m.a.");
        assert_eq!(named(&["m.ab", "m.ac"]).common_prefix(), "m.");
        assert_eq!(named(&["\u{e4}.a", "\u{e5}.a"]).common_prefix(), "");
        assert_eq!(named(&["m.a", "m"]).common_prefix(), "");
        assert_eq!(named(&["m.a"]).common_prefix(), "m.");
        assert_eq!(named(&[]).common_prefix(), "");
    }

    #[test]
    fn stripping_keeps_names_apart() {
        let mut reader = named(&["m.a", "m.b", "c", "m."]);
        assert_eq!(reader.strip_prefix("m.").unwrap(), 2);
        let names: Vec<_> = reader.entries().iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["c", "m.", "a", "b"]);

        let mut reader = named(&["a", "m.a"]);
        let error = reader.strip_prefix("m.").unwrap_err().to_string();
        assert!(error.contains("two tensors would be called `a`"), "{error}");
        assert!(reader.find("m.a").is_some());
    }

    #[test]
    fn content_decides_before_the_name() {
        let is = |start: &[u8], name: &str| sniff(start, Path::new(name));
        assert_eq!(is(b"\x93NUMPY\x01\x00", "a.pt"), Ok(Sniffed::Npy));
        assert_eq!(is(b"PK\x03\x04", "a.safetensors"), Ok(Sniffed::Pytorch { zip: true }));
        // A header of 128 bytes begins with the opcode that begins a pickle.
        assert_eq!(is(b"\x80\0\0\0\0\0\0\0{", "a.bin"), Ok(Sniffed::Safetensors));
        assert_eq!(is(b"\x80\x02}.", "a.bin"), Ok(Sniffed::Pytorch { zip: false }));
        assert_eq!(is(b"", "a.NPY"), Ok(Sniffed::Npy));
        assert_eq!(is(b"", "a.SafeTensors"), Ok(Sniffed::Safetensors));
        assert!(is(b"PK\x03\x04", "a.npz").is_err());
        assert!(is(b"\x40\0\0\0\xac\0\0\0\x05", "stories.bin").is_err());
    }

    #[test]
    fn unknown_files_are_told_what_is_accepted() {
        let error = open_bytes(Path::new("a.txt"), b"hello".to_vec()).unwrap_err().to_string();
        for word in ["a.txt: not a file of tensors", ".safetensors", ".pt .pth .th .bin", ".npy"] {
            assert!(error.contains(word), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("it is a folder"), "{error}");
        let error = open(&folder.path().join("a.npy")).unwrap_err().to_string();
        assert!(error.ends_with("a.npy: no such file or folder"), "{error}");
    }

    #[test]
    fn a_file_that_shrinks_after_opening_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensor = Tensor::from_f32("a", vec![1000], Dtype::F32, &[1.0; 1000]).unwrap();
        save(&path, &[tensor], &BTreeMap::new()).unwrap();
        let reader = open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(200).unwrap();
        let error = reader.read_f32(0).unwrap_err().to_string();
        assert!(error.contains("the file ended early"), "{error}");
    }

    #[test]
    fn threads_share_a_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors: Vec<Tensor> = (0..64u8)
            .map(|i| {
                let values = vec![f32::from(i); 4096];
                Tensor::from_f32(format!("{i:02}"), vec![4096], Dtype::F32, &values).unwrap()
            })
            .collect();
        save(&path, &tensors, &BTreeMap::new()).unwrap();
        let reader = open(&path).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (place, tensor) in tensors.iter().enumerate() {
                        assert_eq!(reader.read_f32(place).unwrap(), tensor.to_f32().unwrap());
                    }
                });
            }
        });
    }
}
