//! Data files: finding them, plain or packed, and unpacking them as a stream.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::cifar10::Cifar10Error;
use super::idx::IdxError;

/// Why a data file was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file could not be opened.
    #[error("cannot be opened: {0}")]
    Open(#[source] io::Error),
    /// It is not a sound IDX file.
    #[error(transparent)]
    Idx(#[from] IdxError),
    /// It is not a sound file of CIFAR-10 records.
    #[error(transparent)]
    Cifar10(#[from] Cifar10Error),
    /// The IDX file holds an array of another shape.
    #[error("holds an array of shape {found:?}, expected {expected}")]
    Shape {
        /// The shape in its header.
        found: Vec<usize>,
        /// The shape that the data set asks for, in words.
        expected: &'static str,
    },
    /// A label is no class of the data set.
    #[error("label {label} at index {index} is no class: valid are 0 to {}", .classes - 1)]
    Label {
        /// Position of the label in the file.
        index: usize,
        /// Its value.
        label: u8,
        /// Number of classes.
        classes: usize,
    },
}

/// How a file is packed, by the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As it is.
    Plain,
    /// gzip (RFC 1952), `.gz`; several members follow each other as one stream.
    Gzip,
    /// Zstandard (RFC 8878), `.zst`; several frames follow each other as one stream.
    Zstd,
}

impl Packing {
    /// All packings, in the order in which files are looked for.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Gzip, Self::Zstd];

    /// What it adds to a file name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Gzip => ".gz",
            Self::Zstd => ".zst",
        }
    }
}

/// The unpacked bytes of `source`, as they are asked for.
///
/// Nothing is unpacked ahead beyond a buffer, or the window of Zstandard (at most 64 MiB, or the
/// frame is refused), so a reader that stops stops a bomb too. Checksums of gzip members and
/// Zstandard frames are verified when their end is reached. Broken bytes are errors of the reader.
pub fn unpack<'a>(source: impl BufRead + 'a, packing: Packing) -> Box<dyn Read + 'a> {
    match packing {
        Packing::Plain => Box::new(source),
        Packing::Gzip => Box::new(MultiGzDecoder::new(source)),
        Packing::Zstd => Box::new(ZstdFrames { source, frame: None }),
    }
}

/// A file that exists.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub path: PathBuf,
    pub packing: Packing,
}

impl Found {
    /// The first file among `folders`, then `names`, then packings.
    pub fn search(folders: &[PathBuf], names: &[&str]) -> Option<Self> {
        folders.iter().find_map(|folder| {
            names.iter().find_map(|name| {
                Packing::ALL.into_iter().find_map(|packing| {
                    let path = folder.join(format!("{name}{}", packing.suffix()));
                    path.is_file().then_some(Self { path, packing })
                })
            })
        })
    }

    /// Opens the file for reading its unpacked bytes.
    pub fn open(&self) -> Result<Box<dyn Read>, FileError> {
        let file = File::open(Path::new(&self.path)).map_err(FileError::Open)?;
        Ok(unpack(BufReader::with_capacity(1 << 16, file), self.packing))
    }
}

/// A reader that hashes what passes through it.
pub(super) struct Hashed<R> {
    source: R,
    hash: Sha256,
}

impl<R: Read> Hashed<R> {
    pub fn new(source: R) -> Self {
        Self { source, hash: Sha256::new() }
    }

    /// SHA-256 of all bytes read so far.
    pub fn digest(self) -> [u8; 32] {
        self.hash.finalize().into()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.source.read(out)?;
        self.hash.update(&out[..len]);
        Ok(len)
    }
}

/// Lower-case hexadecimal digits of a digest.
pub(super) fn hexadecimal(digest: &[u8]) -> String {
    use std::fmt::Write;
    digest.iter().fold(String::with_capacity(2 * digest.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The content of Zstandard frames, one after the other.
struct ZstdFrames<R> {
    source: R,
    frame: Option<FrameDecoder>,
}

/// Largest window of a frame that is decoded, which is memory that a few bytes can ask for. It
/// covers all levels for files of the sizes that are read here.
const MOST_WINDOW: u64 = 64 << 20;

impl<R: BufRead> ZstdFrames<R> {
    /// Begins the next frame; false at the end of the source.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            let mut frame = FrameDecoder::new();
            frame.set_max_window_size(MOST_WINDOW);
            match frame.init(&mut self.source) {
                Ok(()) => {
                    self.frame = Some(frame);
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
                    if skipped < length {
                        return Err(broken("a skippable zstd frame is cut off"));
                    }
                }
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(false)
    }
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(frame) = &mut self.frame else {
                if self.begin()? {
                    continue;
                }
                return Ok(0);
            };
            while frame.can_collect() == 0 && !frame.is_finished() {
                frame
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(broken)?;
            }
            let len = frame.read(out)?;
            if len > 0 {
                return Ok(len);
            }
            let stored = frame.get_checksum_from_data();
            if stored.is_some() && stored != frame.get_calculated_checksum() {
                return Err(broken("the checksum of a zstd frame does not match its content"));
            }
            self.frame = None;
        }
    }
}
