//! Data files: finding them, plain or packed, and unpacking them as a stream.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::cifar::CifarError;
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
    /// It is not a sound file of CIFAR records.
    #[error(transparent)]
    Cifar(#[from] CifarError),
    /// It is no image.
    #[error("is no JPEG or PNG image that can be read: {0}")]
    Image(#[source] image::ImageError),
    /// The image has no pixels, or one side is so much longer than the other that it cannot be scaled.
    #[error(
        "an image of {width} x {height} pixels cannot be scaled: it is empty, or too long and thin"
    )]
    Sides {
        /// Pixels of a row.
        width: usize,
        /// Rows.
        height: usize,
    },
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

    /// The file at a path, its packing by the end of its name.
    pub fn at(path: &Path) -> Self {
        let name = path.to_string_lossy();
        let packed = Packing::ALL.into_iter().filter(|packing| *packing != Packing::Plain);
        let packing = packed
            .into_iter()
            .find(|packing| name.ends_with(packing.suffix()))
            .unwrap_or(Packing::Plain);
        Self { path: path.to_owned(), packing }
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

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use scrimp_codec::philox::Stream;

    use super::*;

    pub fn pack(bytes: &[u8], packing: Packing) -> Vec<u8> {
        match packing {
            Packing::Plain => bytes.to_vec(),
            Packing::Gzip => {
                let mut gzip =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                gzip.write_all(bytes).unwrap();
                gzip.finish().unwrap()
            }
            Packing::Zstd => compress_to_vec(bytes, CompressionLevel::Fastest),
        }
    }

    /// Bytes that repeat now and then, so that packing uses all its means.
    fn sample() -> Vec<u8> {
        let stream = Stream::new(1, 2);
        let noise = (0..2_000).flat_map(|block| stream.words(block)).flat_map(u32::to_le_bytes);
        let mut bytes: Vec<u8> = noise.map(|byte| byte & 0x1F).collect();
        bytes.extend(std::iter::repeat_n(7, 200_000));
        bytes.extend_from_within(..30_000);
        bytes
    }

    fn unpack_all(packed: &[u8], packing: Packing) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        unpack(packed, packing).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn every_packing_gives_its_bytes_back() {
        for packing in Packing::ALL {
            for bytes in [sample(), vec![], vec![3]] {
                assert_eq!(unpack_all(&pack(&bytes, packing), packing).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn members_and_frames_follow_each_other_and_skippable_frames_are_skipped() {
        for packing in [Packing::Gzip, Packing::Zstd] {
            let mut packed = pack(b"one ", packing);
            if packing == Packing::Zstd {
                // RFC 8878, section 3.1.2: magic number, length, user data.
                packed.extend([0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 9, 9, 9]);
            }
            packed.extend(pack(b"two", packing));
            assert_eq!(unpack_all(&packed, packing).unwrap(), b"one two");
        }
        let cut = [0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 9];
        let error = unpack_all(&cut, Packing::Zstd).unwrap_err().to_string();
        assert_eq!(error, "a skippable zstd frame is cut off");
    }

    #[test]
    fn a_cut_or_altered_packing_is_an_error() {
        for packing in [Packing::Gzip, Packing::Zstd] {
            let packed = pack(&sample(), packing);
            for cut in [1, 5, packed.len() / 2, packed.len() - 1] {
                assert!(unpack_all(&packed[..cut], packing).is_err(), "{packing:?} cut to {cut}");
            }
            let mut altered = packed.clone();
            altered[packed.len() - 1] ^= 1;
            assert!(unpack_all(&altered, packing).is_err(), "{packing:?}");
        }
    }

    #[test]
    fn content_that_does_not_match_the_checksum_of_its_zstd_frame_is_an_error() {
        let mut packed = compress_to_vec(&b"0123456789"[..], CompressionLevel::Uncompressed);
        let at = packed.windows(10).position(|window| window == b"0123456789").unwrap();
        packed[at + 4] ^= 1;
        let error = unpack_all(&packed, Packing::Zstd).unwrap_err().to_string();
        assert_eq!(error, "the checksum of a zstd frame does not match its content");
    }

    #[test]
    fn a_zstd_window_that_takes_too_much_memory_is_refused() {
        // RFC 8878, section 3.1.1.1: no content size, no checksum; a window of 2^(10 + 17) bytes.
        let packed = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 17 << 3, 0x01, 0x00, 0x00];
        let error = unpack_all(&packed, Packing::Zstd).unwrap_err().to_string();
        assert!(error.contains("too big"), "{error}");
    }

    #[test]
    fn altered_packings_never_panic() {
        for packing in [Packing::Gzip, Packing::Zstd] {
            let packed = pack(&sample()[20_000..], packing);
            for round in 0..2_000 {
                let dice = Stream::new(5, 6).at_step(round);
                let mut altered = packed.clone();
                for change in 0..=round % 4 {
                    let [place, bit, early, _] = dice.words(change);
                    // The header and the tables of the first block decide most.
                    let span = if early % 2 == 0 { 64 } else { altered.len() };
                    altered[place as usize % span] ^= 1 << (bit % 8);
                }
                let _ = io::copy(&mut unpack(&altered[..], packing).take(1 << 20), &mut io::sink());
            }
        }
    }

    #[test]
    fn hashing_sees_every_byte() {
        // FIPS 180-4, the example of the one-block message.
        let mut source = Hashed::new(&b"abc"[..]);
        io::copy(&mut source, &mut io::sink()).unwrap();
        assert_eq!(
            hexadecimal(&source.digest()),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
