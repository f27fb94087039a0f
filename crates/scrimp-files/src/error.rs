//! What can go wrong with a tensor file.

use std::io;
use std::path::{Path, PathBuf};

use scrimp_codec::{DecodeError, EncodeError};
use thiserror::Error;

use crate::container::ContainerError;
use crate::npy::NpyError;
use crate::pytorch::PytorchError;
use crate::safetensors::SafetensorsError;
use crate::{Dtype, TensorError};

/// Why a tensor file could not be read or written.
///
/// Every message is one complete line that names the file, and the tensor where there is one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {}", path.display(), plain_words(source))]
    Io {
        /// `open`, `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither content nor name belongs to a kind of file that holds tensors.
    #[error(
        "{}: {found}; accepted are safetensors (.safetensors), checkpoints of PyTorch 0.1.10 and \
         later (.pt .pth .th .bin) and NumPy arrays (.npy)",
        path.display()
    )]
    UnknownKind {
        /// The file.
        path: PathBuf,
        /// What the file looks like instead.
        found: &'static str,
    },
    /// The file is not valid safetensors, or could not be written as such.
    #[error("{}: {problem}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: SafetensorsError,
    },
    /// The file is not a valid `.npy` array, or could not be written as such.
    #[error("{}: {problem}", path.display())]
    Npy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: NpyError,
    },
    /// The file is not a PyTorch checkpoint that can be read.
    #[error("{}: {problem}", path.display())]
    Pytorch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: PytorchError,
    },
    /// The packed container is damaged, or could not be laid out.
    #[error("{}: {problem}", path.display())]
    Container {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: Box<ContainerError>,
    },
    /// A tensor read from the file contradicts its own header.
    #[error("{}: {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// What is wrong with the tensor.
        problem: TensorError,
    },
    /// A packed tensor holds bytes that its scheme cannot have written.
    #[error("{}: tensor `{name}`: {problem}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// What the codec said.
        problem: Box<DecodeError>,
    },
    /// A tensor could not be packed.
    #[error("{}: tensor `{name}`: {problem}", path.display())]
    Encode {
        /// The file that the tensor came from.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// What the codec said.
        problem: Box<EncodeError>,
    },
    /// Values were asked of a tensor that holds none.
    #[error(
        "{}: tensor `{name}` of dtype {dtype} holds no float values; f16, bf16, f32 and f64 do",
        path.display()
    )]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Its element type.
        dtype: Dtype,
    },
    /// A tensor does not fit into memory.
    #[error("{}: tensor `{name}` needs {bytes} bytes, more than there is", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Bytes that were asked for.
        bytes: usize,
    },
    /// The tensors together take far more memory than the file has bytes.
    #[error(
        "{}: its tensors take {bytes} bytes, far more than the file has; read them one by one",
        path.display()
    )]
    TooMuch {
        /// The file.
        path: PathBuf,
        /// Bytes of all tensors.
        bytes: u64,
    },
    /// No tensor has the prefix that was to be removed.
    #[error("{}: no tensor name starts with `{prefix}`; the first is `{first}`", path.display())]
    NoSuchPrefix {
        /// The file.
        path: PathBuf,
        /// The prefix that was asked for.
        prefix: String,
        /// A name that does exist.
        first: String,
    },
    /// Two tensors would get one name.
    #[error("{}: two tensors would be called `{name}`", path.display())]
    NameClash {
        /// The file.
        path: PathBuf,
        /// The name in question.
        name: String,
    },
}

impl FileError {
    /// An error of the operating system while doing `action` (`"open"`, `"read"`, `"write"`) to
    /// `path`.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// What an error of the operating system means, without its number and its jargon.
fn plain_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or folder".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::StorageFull => "no space is left on the disk".to_owned(),
        io::ErrorKind::QuotaExceeded => "the disk quota is used up".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".to_owned(),
        io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        io::ErrorKind::NotADirectory => "a part of the path is not a folder".to_owned(),
        io::ErrorKind::UnexpectedEof => "the file ended early; did it change meanwhile?".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_told_in_plain_words() {
        let error =
            FileError::io("write", Path::new("a/b.npy"), io::ErrorKind::PermissionDenied.into());
        assert_eq!(error.to_string(), "cannot write a/b.npy: permission denied");
        #[cfg(target_os = "linux")]
        {
            let full = io::Error::from_raw_os_error(28);
            let error = FileError::io("write", Path::new("b.npy"), full);
            assert_eq!(error.to_string(), "cannot write b.npy: no space is left on the disk");
        }
    }
}
