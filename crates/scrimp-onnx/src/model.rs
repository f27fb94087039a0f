//! A model file: read whole, changed in memory, written whole.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use prost::Message;
use prost::bytes::Bytes;
use scrimp_files::{FileError, write_atomic};

use crate::OnnxError;
use crate::proto::{
    GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
};

/// Protobuf allows no message of 2 GiB or more.
const LARGEST_MESSAGE: usize = (1 << 31) - 1;
/// Where tensors begin in a file of external data, so that they can be mapped into memory.
const ALIGNMENT: u64 = 4096;

/// A model and the folder that its external data is looked for in.
#[derive(Clone, Debug)]
pub struct Model {
    /// The messages of the file.
    pub proto: ModelProto,
    folder: Option<PathBuf>,
}

impl Model {
    /// Reads a model file. Values in other files are left there until [`load_external`](Self::load_external).
    ///
    /// # Errors
    /// If the file cannot be read or holds no model.
    pub fn open(path: &Path) -> Result<Self, OnnxError> {
        let bytes = fs::read(path).map_err(|source| FileError::io("read", path, source))?;
        let mut model = Self::parse(bytes)?;
        model.folder = Some(path.parent().unwrap_or(Path::new("")).to_owned());
        Ok(model)
    }

    /// Reads a model from the bytes of its file.
    ///
    /// # Errors
    /// If the bytes are no model, or hold fields that would be lost when it is written.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, OnnxError> {
        let bytes: Bytes = bytes.into();
        let proto = ModelProto::decode(bytes.clone())
            .map_err(|error| OnnxError::NotOnnx { reason: error.to_string() })?;
        if proto.graph.is_none() {
            return Err(OnnxError::NotOnnx { reason: "no graph in it".into() });
        }
        let known = proto.encoded_len();
        if known < bytes.len() {
            return Err(OnnxError::UnknownFields { bytes: bytes.len() - known });
        }
        Ok(Self { proto, folder: None })
    }

    /// A model with this graph.
    pub fn new(graph: GraphProto, opset: i64, ir_version: i64) -> Self {
        let proto = ModelProto {
            ir_version: Some(ir_version),
            producer_name: Some("scrimp".into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(opset),
            }],
            graph: Some(graph),
            ..ModelProto::default()
        };
        Self { proto, folder: None }
    }

    /// The graph.
    ///
    /// # Panics
    /// If the graph was taken out of the messages.
    pub fn graph(&self) -> &GraphProto {
        self.proto.graph.as_ref().expect("a model has a graph")
    }

    /// The graph, to be changed.
    ///
    /// # Panics
    /// As [`graph`](Self::graph).
    pub fn graph_mut(&mut self) -> &mut GraphProto {
        self.proto.graph.as_mut().expect("a model has a graph")
    }

    /// The version of the standard operators that the model uses; 0 where it names none.
    pub fn opset(&self) -> i64 {
        self.proto
            .opset_import
            .iter()
            .find(|set| set.domain().is_empty() || set.domain() == "ai.onnx")
            .map_or(0, OperatorSetIdProto::version)
    }

    /// Declares that the standard operators are those of this version, and raises the format's version with it.
    pub fn set_opset(&mut self, opset: i64) {
        let set = self
            .proto
            .opset_import
            .iter_mut()
            .find(|set| set.domain().is_empty() || set.domain() == "ai.onnx");
        match set {
            Some(set) => set.version = Some(opset),
            None => self
                .proto
                .opset_import
                .push(OperatorSetIdProto { domain: Some(String::new()), version: Some(opset) }),
        }
        let ir_version = ir_version_of(opset).max(self.proto.ir_version());
        self.proto.ir_version = Some(ir_version);
    }

    /// The bytes of the model's file, external values staying where they are.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.proto.encode_to_vec()
    }

    /// Reads the values that lie in other files into memory.
    ///
    /// # Errors
    /// If a file is missing, lies outside the model's folder, or is too short.
    pub fn load_external(&mut self) -> Result<(), OnnxError> {
        let folder = self.folder.clone();
        let mut result = Ok(());
        crate::graph::for_each_tensor(&mut self.proto, &mut |tensor| {
            if result.is_ok() && tensor.is_external() {
                result = read_external(tensor, folder.as_deref());
            }
        });
        result
    }

    /// Writes the model; where it is too large for one message, large tensors go into `FILE.data` beside it.
    ///
    /// # Errors
    /// If a file cannot be written, or external values cannot be read. What stood at `path` is then untouched.
    pub fn save(&self, path: &Path) -> Result<u64, OnnxError> {
        let has_external = {
            let mut found = false;
            crate::graph::visit_tensors(&self.proto, &mut |tensor| found |= tensor.is_external());
            found
        };
        if !has_external && self.proto.encoded_len() <= LARGEST_MESSAGE {
            return write_message(path, &self.to_bytes());
        }
        self.save_external(path, 1024)
    }

    /// Writes the model with all tensors of at least `threshold` bytes in `FILE.data` beside it.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    ///
    /// # Panics
    /// Never: padding is shorter than the alignment.
    pub fn save_external(&self, path: &Path, threshold: usize) -> Result<u64, OnnxError> {
        let data_name = format!(
            "{}.data",
            path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default()
        );
        let data_path = path.with_file_name(&data_name);
        let mut copy = self.clone();
        let mut failure = None;
        let written = write_atomic(&data_path, |out| {
            let mut at = 0u64;
            crate::graph::for_each_tensor(&mut copy.proto, &mut |tensor| {
                if failure.is_some() {
                    return;
                }
                let large = tensor.raw_data.as_ref().is_some_and(|raw| raw.len() >= threshold);
                if !large && !tensor.is_external() {
                    return;
                }
                if tensor.is_external()
                    && let Err(error) = read_external(tensor, self.folder.as_deref())
                {
                    failure = Some(error);
                    return;
                }
                let raw = tensor.raw_data.take().unwrap_or_default();
                let start = at.next_multiple_of(ALIGNMENT);
                let padding =
                    vec![0u8; usize::try_from(start - at).expect("less than the alignment")];
                let wrote = out.write_all(&padding).and_then(|()| out.write_all(&raw));
                if let Err(source) = wrote {
                    failure = Some(FileError::io("write", &data_path, source).into());
                    return;
                }
                at = start + raw.len() as u64;
                tensor.data_location = Some(1);
                tensor.external_data = [
                    ("location", data_name.clone()),
                    ("offset", start.to_string()),
                    ("length", raw.len().to_string()),
                ]
                .map(|(key, value)| StringStringEntryProto {
                    key: Some(key.into()),
                    value: Some(value),
                })
                .into();
            });
            let bytes = copy.proto.encoded_len();
            if failure.is_none() && bytes > LARGEST_MESSAGE {
                failure = Some(OnnxError::TooLarge { bytes: bytes as u64 });
            }
            match failure {
                // The error below is replaced by the failure; it only keeps the file from being put in place.
                Some(_) => {
                    Err(FileError::io("write", &data_path, std::io::ErrorKind::Other.into()))
                }
                None => Ok(at),
            }
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        let data_bytes = written?;
        Ok(data_bytes + write_message(path, &copy.to_bytes())?)
    }
}

/// The version of the format that first allows these operators.
pub(crate) fn ir_version_of(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

fn write_message(path: &Path, bytes: &[u8]) -> Result<u64, OnnxError> {
    write_atomic(path, |out| {
        out.write_all(bytes).map_err(|source| FileError::io("write", path, source))
    })?;
    Ok(bytes.len() as u64)
}

/// Brings the values of one tensor into its message.
fn read_external(tensor: &mut TensorProto, folder: Option<&Path>) -> Result<(), OnnxError> {
    let name = tensor.name().to_owned();
    let entries: BTreeMap<&str, &str> =
        tensor.external_data.iter().map(|e| (e.key(), e.value())).collect();
    let number = |key: &str| -> Result<Option<u64>, OnnxError> {
        let Some(text) = entries.get(key) else { return Ok(None) };
        let number = text.parse();
        number.map(Some).map_err(|_| {
            OnnxError::tensor(&name, format!("external data has the {key} `{text}`, not a number"))
        })
    };
    let Some(location) = entries.get("location") else {
        return Err(OnnxError::tensor(&name, "external data without a location"));
    };
    let relative = Path::new(location);
    let inside =
        relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !inside {
        return Err(OnnxError::tensor(
            &name,
            format!("external data `{location}` lies outside the folder of the model"),
        ));
    }
    let Some(folder) = folder else {
        return Err(OnnxError::tensor(
            &name,
            "external data of a model that was not read from a file",
        ));
    };
    let path = folder.join(relative);
    let io_error = |source| OnnxError::Io { path: path.clone(), source };
    // A link could lead out of the folder although the text of its path does not. That is found out before anything is
    // opened, since to open a pipe or a device can have effects.
    let real = path.canonicalize().map_err(io_error)?;
    let home = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !real.starts_with(home.canonicalize().map_err(io_error)?) {
        return Err(OnnxError::tensor(
            &name,
            format!("external data `{location}` leads outside the folder of the model"),
        ));
    }
    let about = real.metadata().map_err(io_error)?;
    if !about.is_file() {
        return Err(OnnxError::tensor(&name, format!("external data `{location}` is not a file")));
    }
    let size = about.len();
    let mut file = fs::File::open(&real).map_err(io_error)?;
    let offset = number("offset")?.unwrap_or(0);
    let length = number("length")?.unwrap_or(size.saturating_sub(offset));
    if offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(OnnxError::tensor(
            &name,
            format!(
                "external data `{location}` has {size} bytes; {length} from {offset} are asked for"
            ),
        ));
    }
    let expected = tensor
        .kind()
        .and_then(|kind| crate::tensor::elems(&tensor.dims).and_then(|elems| kind.bytes(elems)));
    if expected.is_some_and(|expected| expected as u64 != length) {
        return Err(OnnxError::tensor(
            &name,
            format!("{length} bytes of external data for shape {:?}", tensor.dims),
        ));
    }
    file.seek(SeekFrom::Start(offset)).map_err(io_error)?;
    let mut raw = Vec::new();
    file.take(length).read_to_end(&mut raw).map_err(io_error)?;
    if raw.len() as u64 != length {
        let reason =
            format!("external data `{location}` ended after {} of {length} bytes", raw.len());
        return Err(OnnxError::tensor(&name, reason));
    }
    tensor.raw_data = Some(Bytes::from(raw));
    tensor.external_data.clear();
    tensor.data_location = None;
    Ok(())
}
