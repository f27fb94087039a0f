//! What can be wrong with a model or with what is asked of it.

use std::io;
use std::path::PathBuf;

use scrimp_files::FileError;

/// Why a model could not be read, changed or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that belongs to a model could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The bytes are no model.
    #[error("not an ONNX model: {reason}")]
    NotOnnx {
        /// What was found instead.
        reason: String,
    },
    /// Bytes of the file have no place in the messages known here, and would be lost.
    #[error(
        "{bytes} bytes of the model are fields that ONNX 1.23 does not know; a copy would lose them"
    )]
    UnknownFields {
        /// How many bytes.
        bytes: usize,
    },
    /// A tensor's values do not fit its shape or type.
    #[error("tensor `{tensor}`: {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The graph contradicts itself.
    #[error("{reason}")]
    Graph {
        /// What is wrong with it.
        reason: String,
    },
    /// The model would be larger than one file can be.
    #[error("the model takes {bytes} bytes in one message; protobuf allows 2 GiB")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
}

impl OnnxError {
    pub(crate) fn tensor(tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { tensor: tensor.to_owned(), reason: reason.into() }
    }

    pub(crate) fn graph(reason: impl Into<String>) -> Self {
        Self::Graph { reason: reason.into() }
    }
}
