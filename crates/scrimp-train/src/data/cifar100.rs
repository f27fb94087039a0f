//! CIFAR-100, from its binary records.

use super::cifar::{CHANNELS, Files, Layout, Part, SIDE, part};
use super::{DataError, DataRequest, DataSet, Form, Splits};

/// CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 colour pixels, 100 classes.
///
/// Read from the two files of the binary version, `train.bin` and `test.bin`, in
/// `DIR/cifar-100-binary/`, `DIR/cifar100/` or `DIR/` itself.
///
/// # Source
/// Krizhevsky 2009, "Learning multiple layers of features from tiny images".
#[derive(Debug, Clone, Copy)]
pub struct Cifar100;

/// [`Cifar100`] with its 20 superclasses as labels.
#[derive(Debug, Clone, Copy)]
pub struct Cifar100Coarse;

/// The superclass comes before the class.
static FINE: Layout = Layout { labels: &[20, 100], taken: 1, most_records: 50_000 };
static COARSE: Layout = Layout { taken: 0, ..FINE };

/// The statistics of the training images, as pretrained residual networks for CIFAR-100 have them.
const MEAN: [f32; CHANNELS] = [0.5070, 0.4865, 0.4409];
const STD: [f32; CHANNELS] = [0.2673, 0.2564, 0.2761];

static TRAIN: [Part; 1] = [part("training images", "train.bin")];
static TEST: Part = part("test images", "test.bin");

impl DataSet for Cifar100 {
    fn name(&self) -> &'static str {
        "cifar100"
    }

    fn about(&self) -> &'static str {
        "a hundred kinds of objects, 32 x 32 colour, 50,000 + 10,000; DIR/cifar-100-binary"
    }

    fn own_form(&self) -> Option<Form> {
        Some(Form { image_shape: [CHANNELS, SIDE, SIDE], classes: FINE.classes() })
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        load(self, &FINE, request)
    }
}

impl DataSet for Cifar100Coarse {
    fn name(&self) -> &'static str {
        "cifar100-coarse"
    }

    fn about(&self) -> &'static str {
        "CIFAR-100 with its 20 superclasses as labels; the same files"
    }

    fn own_form(&self) -> Option<Form> {
        Some(Form { image_shape: [CHANNELS, SIDE, SIDE], classes: COARSE.classes() })
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        load(self, &COARSE, request)
    }
}

fn load(set: &dyn DataSet, layout: &Layout, request: &DataRequest) -> Result<Splits, DataError> {
    request.check(set)?;
    let dir = request.folder(set)?;
    let folders = [
        dir.join("cifar-100-binary"),
        dir.join("cifar100").join("cifar-100-binary"),
        dir.join("cifar100"),
        dir,
    ];
    let origin = "www.cs.toronto.edu/~kriz/cifar.html \
                  (cifar-100-binary.tar.gz, md5 03b5dce01913d631647c71ecec9e9cb8)";
    let files = Files { set, layout, folders: &folders, origin, names: &[], mean: MEAN, std: STD };
    files.load(&TRAIN, &TEST, request, "binary version")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Records whose superclass is a fifth of their class, and whose pixels are the class.
    fn records(first: u8, count: u8) -> Vec<u8> {
        let record = |class: u8| [vec![class / 5, class], vec![class; 3 * SIDE * SIDE]].concat();
        (first..first + count).flat_map(record).collect()
    }

    fn folder(dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("train.bin"), records(60, 20)).unwrap();
        fs::write(dir.join("test.bin"), records(0, 6)).unwrap();
    }

    fn request(dir: &Path) -> DataRequest {
        DataRequest { dir: Some(dir.to_owned()), validation: 0.2, ..DataRequest::default() }
    }

    #[test]
    fn labels_are_classes_or_superclasses() {
        for below in ["cifar-100-binary", "cifar100/cifar-100-binary", "cifar100", "."] {
            let dir = tempfile::tempdir().unwrap();
            folder(&dir.path().join(below));
            let fine = Cifar100.load(&request(dir.path())).unwrap();
            let coarse = Cifar100Coarse.load(&request(dir.path())).unwrap();
            assert_eq!((fine.classes, coarse.classes), (100, 20));
            assert_eq!((fine.train.len(), fine.validation.len()), (16, 4));
            assert_eq!(fine.test.labels, [0, 1, 2, 3, 4, 5]);
            assert_eq!(coarse.test.labels, [0, 0, 0, 0, 0, 1]);
            for splits in [&fine, &coarse] {
                let classes = (0..16).map(|index| splits.train.image(index)[0]);
                assert!(classes.eq(fine.train.labels.iter().copied()));
            }
        }
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Cifar100.load(&request(dir.path())).unwrap_err().to_string();
        for part in ["training images", "train.bin", "cifar-100-binary.tar.gz", "--data-dir"] {
            assert!(error.contains(part), "{error}");
        }
        folder(dir.path());
        fs::write(dir.path().join("test.bin"), &records(0, 2)[..3075]).unwrap();
        let error = Cifar100.load(&request(dir.path())).unwrap_err().to_string();
        assert!(error.contains("test.bin: cut off: record 1 has 1 of 3074 bytes"), "{error}");
        let mut stray = records(0, 2);
        stray[3074] = 20;
        fs::write(dir.path().join("test.bin"), stray).unwrap();
        let error = Cifar100.load(&request(dir.path())).unwrap_err().to_string();
        let wrong = "label 20 of record 1 is no class: valid are 0 to 19";
        assert!(error.contains(wrong), "{error}");
    }
}
