//! MNIST and Fashion-MNIST, from IDX files.

use std::path::{Path, PathBuf};

use super::files::{FileError, Found, Hashed, hexadecimal};
use super::idx::{self, Idx};
use super::{DataError, DataRequest, DataSet, Images, Names, Splits, split};

/// The MNIST digits: 60,000 training and 10,000 test images of 28 x 28 grey pixels, 10 classes.
///
/// Read from the four IDX files in `DIR/mnist/` or in `DIR/` itself.
///
/// # Source
/// LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
#[derive(Debug, Clone, Copy)]
pub struct Mnist;

/// Zalando's articles of clothing, in the sizes and files of MNIST.
///
/// Read from `DIR/fashion-mnist/`, or from `DIR/` itself where that is its name: the file names are
/// those of MNIST, and a folder of one must not be taken for the other.
///
/// # Source
/// Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747.
#[derive(Debug, Clone, Copy)]
pub struct FashionMnist;

const SIDE: usize = 28;
const CLASSES: usize = 10;
const FASHION_FOLDER: &str = "fashion-mnist";

/// One of the four files.
struct Part {
    what: &'static str,
    names: [&'static str; 2],
    /// SHA-256 of the unpacked official file, where it is known.
    sha256: Option<&'static str>,
    /// Where the file is published, with its checksum.
    origin: &'static str,
}

const TRAIN_IMAGES: [&str; 2] = ["train-images-idx3-ubyte", "train-images.idx3-ubyte"];
const TRAIN_LABELS: [&str; 2] = ["train-labels-idx1-ubyte", "train-labels.idx1-ubyte"];
const TEST_IMAGES: [&str; 2] = ["t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"];
const TEST_LABELS: [&str; 2] = ["t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"];

struct Parts {
    train_images: Part,
    train_labels: Part,
    test_images: Part,
    test_labels: Part,
}

static MNIST: Parts = Parts {
    train_images: Part {
        what: "training images",
        names: TRAIN_IMAGES,
        sha256: Some("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        origin: "yann.lecun.com/exdb/mnist (unpacked md5 6bbc9ace898e44ae57da46a324031adb)",
    },
    train_labels: Part {
        what: "training labels",
        names: TRAIN_LABELS,
        sha256: Some("65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        origin: "yann.lecun.com/exdb/mnist (unpacked md5 a25bea736e30d166cdddb491f175f624)",
    },
    test_images: Part {
        what: "test images",
        names: TEST_IMAGES,
        sha256: Some("0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        origin: "yann.lecun.com/exdb/mnist (unpacked md5 2646ac647ad5339dbf082846283269ea)",
    },
    test_labels: Part {
        what: "test labels",
        names: TEST_LABELS,
        sha256: Some("ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
        origin: "yann.lecun.com/exdb/mnist (unpacked md5 27ae3e4e09519cfbb04c329615203637)",
    },
};

static FASHION: Parts = Parts {
    train_images: Part {
        what: "training images",
        names: TRAIN_IMAGES,
        sha256: None,
        origin: "github.com/zalandoresearch/fashion-mnist (.gz md5 8d4fb7e6c68d591d4c3dfef9ec88bf0d)",
    },
    train_labels: Part {
        what: "training labels",
        names: TRAIN_LABELS,
        sha256: None,
        origin: "github.com/zalandoresearch/fashion-mnist (.gz md5 25c81989df183df01b3e8a0aad5dffbe)",
    },
    test_images: Part {
        what: "test images",
        names: TEST_IMAGES,
        sha256: None,
        origin: "github.com/zalandoresearch/fashion-mnist (.gz md5 bef4ecab320f06d8554ea6380940ec79)",
    },
    test_labels: Part {
        what: "test labels",
        names: TEST_LABELS,
        sha256: None,
        origin: "github.com/zalandoresearch/fashion-mnist (.gz md5 bb300cfdad3c16e7a12a480ee83cd310)",
    },
};

impl DataSet for Mnist {
    fn name(&self) -> &'static str {
        "mnist"
    }

    fn about(&self) -> &'static str {
        "handwritten digits, 28 x 28 grey, 60,000 + 10,000; IDX files in DIR/mnist or DIR"
    }

    fn image_shape(&self) -> [usize; 3] {
        [1, SIDE, SIDE]
    }

    fn classes(&self) -> usize {
        CLASSES
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        request.check()?;
        let dir = request.folder(self)?;
        let mut folders = vec![dir.join("mnist")];
        if !is_fashion(&dir) {
            folders.push(dir);
        }
        let (train, test, official) = load(self, &folders, &MNIST)?;
        let (train, validation) = split(train, request)?;
        let note = if official { "official files" } else { "not the official files" };
        Ok(Splits {
            train,
            validation,
            test,
            classes: CLASSES,
            mean: vec![0.1307],
            std: vec![0.3081],
            note: note.to_owned(),
        })
    }
}

impl DataSet for FashionMnist {
    fn name(&self) -> &'static str {
        "fashion-mnist"
    }

    fn about(&self) -> &'static str {
        "articles of clothing, 28 x 28 grey, 60,000 + 10,000; IDX files in DIR/fashion-mnist"
    }

    fn image_shape(&self) -> [usize; 3] {
        [1, SIDE, SIDE]
    }

    fn classes(&self) -> usize {
        CLASSES
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        request.check()?;
        let dir = request.folder(self)?;
        let mut folders = vec![dir.join(FASHION_FOLDER)];
        if is_fashion(&dir) {
            folders.push(dir);
        }
        let (train, test, _) = load(self, &folders, &FASHION)?;
        let (train, validation) = split(train, request)?;
        Ok(Splits {
            train,
            validation,
            test,
            classes: CLASSES,
            mean: vec![0.2860],
            std: vec![0.3530],
            note: "IDX files".to_owned(),
        })
    }
}

fn is_fashion(dir: &Path) -> bool {
    dir.file_name().is_some_and(|name| name == FASHION_FOLDER)
}

/// Training set, test set, and whether every file is the official one.
fn load(
    set: &dyn DataSet,
    folders: &[PathBuf],
    parts: &Parts,
) -> Result<(Images, Images, bool), DataError> {
    let (train, official) = load_pair(set, folders, &parts.train_images, &parts.train_labels)?;
    let (test, also_official) = load_pair(set, folders, &parts.test_images, &parts.test_labels)?;
    Ok((train, test, official && also_official))
}

fn load_pair(
    set: &dyn DataSet,
    folders: &[PathBuf],
    image_part: &Part,
    label_part: &Part,
) -> Result<(Images, bool), DataError> {
    // Both files are looked for before the larger one is read.
    let image_file = search(set, folders, image_part)?;
    let label_file = search(set, folders, label_part)?;
    let (labels, official_labels) = read(&label_file, label_part)?;
    let (images, official_images) = read(&image_file, image_part)?;
    let &[label_count] = labels.dims.as_slice() else {
        let expected = "[labels]";
        let wrong = FileError::Shape { found: labels.dims, expected };
        return Err(DataError::file(&label_file.path, wrong));
    };
    let &[image_count, SIDE, SIDE] = images.dims.as_slice() else {
        let expected = "[images, 28, 28]";
        let wrong = FileError::Shape { found: images.dims, expected };
        return Err(DataError::file(&image_file.path, wrong));
    };
    if image_count != label_count {
        return Err(DataError::Unpaired {
            image_path: image_file.path,
            images: image_count,
            label_path: label_file.path,
            labels: label_count,
        });
    }
    let classes = set.classes();
    let stray = labels.values.iter().position(|&label| usize::from(label) >= classes);
    if let Some(index) = stray {
        let wrong = FileError::Label { index, label: labels.values[index], classes };
        return Err(DataError::file(&label_file.path, wrong));
    }
    let pair = Images {
        pixels: images.values,
        labels: labels.values,
        channels: 1,
        height: SIDE,
        width: SIDE,
    };
    Ok((pair, official_images && official_labels))
}

fn search(set: &dyn DataSet, folders: &[PathBuf], part: &Part) -> Result<Found, DataError> {
    Found::search(folders, &part.names).ok_or_else(|| DataError::FileNotFound {
        set: set.name(),
        part: part.what,
        folders: folders.to_vec(),
        names: Names(part.names.to_vec()),
        origin: part.origin,
    })
}

/// The array in a file, and whether the file is the official one.
fn read(file: &Found, part: &Part) -> Result<(Idx, bool), DataError> {
    let wrong = |error: FileError| DataError::file(&file.path, error);
    let mut source = Hashed::new(file.open().map_err(wrong)?);
    let array = idx::read(&mut source).map_err(|error| wrong(error.into()))?;
    let official = part.sha256.is_some_and(|sha256| hexadecimal(&source.digest()) == sha256);
    Ok((array, official))
}
