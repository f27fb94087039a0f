//! MNIST and Fashion-MNIST, from IDX files.

use std::path::{Path, PathBuf};

use super::files::{FileError, Found, Hashed, hexadecimal};
use super::idx::{self, Idx};
use super::{DataError, DataRequest, DataSet, Form, Images, Names, Splits, split};

/// The MNIST digits: 60,000 training and 10,000 test images of 28 x 28 grey pixels, 10 classes.
///
/// Read from the four IDX files in `DIR/mnist/` or in `DIR/` itself.
///
/// # Source
/// "The MNIST database of handwritten digits", yann.lecun.com/exdb/mnist.
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

    fn own_form(&self) -> Option<Form> {
        Some(Form { image_shape: [1, SIDE, SIDE], classes: CLASSES })
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        request.check(self)?;
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
            class_names: digits(),
            mean: vec![0.1307],
            std: vec![0.3081],
            note: note.to_owned(),
        })
    }
}

/// What the labels of Fashion-MNIST stand for, as its authors publish it.
const ARTICLES: [&str; CLASSES] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// The names of ten digits.
pub(super) fn digits() -> Vec<String> {
    (0..CLASSES).map(|digit| digit.to_string()).collect()
}

impl DataSet for FashionMnist {
    fn name(&self) -> &'static str {
        "fashion-mnist"
    }

    fn about(&self) -> &'static str {
        "articles of clothing, 28 x 28 grey, 60,000 + 10,000; IDX files in DIR/fashion-mnist"
    }

    fn own_form(&self) -> Option<Form> {
        Some(Form { image_shape: [1, SIDE, SIDE], classes: CLASSES })
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        request.check(self)?;
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
            class_names: ARTICLES.map(String::from).to_vec(),
            mean: vec![0.2860],
            std: vec![0.3530],
            note: "IDX files".to_owned(),
        })
    }
}

fn is_fashion(dir: &Path) -> bool {
    // A folder given as `.` has its name only in its full path.
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    full.file_name().is_some_and(|name| name == FASHION_FOLDER)
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
    let classes = CLASSES;
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::files::Packing;
    use super::super::files::tests::pack;
    use super::super::tests::with_real_data;
    use super::*;

    fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, u8::try_from(dims.len()).unwrap()];
        bytes.extend(dims.iter().flat_map(|dim| dim.to_be_bytes()));
        bytes.extend(values);
        bytes
    }

    /// A folder with a training set of 20 images, a test set of 10, in the given packing.
    fn folder(dir: &Path, packing: Packing, dotted: bool) {
        fs::create_dir_all(dir).unwrap();
        let which = usize::from(dotted);
        let write = |names: [&str; 2], bytes: Vec<u8>| {
            let name = format!("{}{}", names[which], packing.suffix());
            fs::write(dir.join(name), pack(&bytes, packing)).unwrap();
        };
        for (images, labels, count) in
            [(TRAIN_IMAGES, TRAIN_LABELS, 20_u8), (TEST_IMAGES, TEST_LABELS, 10)]
        {
            let pixels: Vec<u8> = (0..count).flat_map(|image| [image; SIDE * SIDE]).collect();
            let digits: Vec<u8> = (0..count).map(|image| image % 10).collect();
            write(images, idx(&[count.into(), 28, 28], &pixels));
            write(labels, idx(&[count.into()], &digits));
        }
    }

    fn request(dir: &Path) -> DataRequest {
        DataRequest { dir: Some(dir.to_owned()), validation: 0.25, ..DataRequest::default() }
    }

    /// What loading says after one file of a good folder is replaced.
    fn message_with(name: &str, bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path(), Packing::Plain, false);
        let plain = dir.path().join(name.trim_end_matches(".gz").trim_end_matches(".zst"));
        fs::remove_file(plain).unwrap();
        fs::write(dir.path().join(name), bytes).unwrap();
        let error = Mnist.load(&request(dir.path())).unwrap_err().to_string();
        assert!(error.contains(name), "the file is not named: {error}");
        error
    }

    #[test]
    fn the_files_are_read_in_every_packing_spelling_and_folder() {
        for packing in Packing::ALL {
            for dotted in [false, true] {
                for below in ["mnist", "."] {
                    let dir = tempfile::tempdir().unwrap();
                    folder(&dir.path().join(below), packing, dotted);
                    let splits = Mnist.load(&request(dir.path())).unwrap();
                    assert_eq!((splits.train.len(), splits.validation.len()), (15, 5));
                    assert_eq!(splits.test.labels, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
                    assert_eq!(splits.test.image(7), [7; SIDE * SIDE]);
                    for part in [&splits.train, &splits.validation] {
                        for index in 0..part.len() {
                            let pixel = part.image(index)[0];
                            assert_eq!(part.labels[index], pixel % 10);
                        }
                    }
                    assert_eq!(splits.note, "not the official files");
                }
            }
        }
    }

    #[test]
    fn a_missing_file_says_where_it_was_looked_for_and_where_to_get_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = Mnist.load(&request(dir.path())).unwrap_err().to_string();
        let shown = dir.path().display();
        let expected = format!(
            "mnist has no training images: looked in {shown}/mnist, {shown} for \
             train-images-idx3-ubyte, train-images.idx3-ubyte, each plain, .gz or .zst; get the \
             files from yann.lecun.com/exdb/mnist (unpacked md5 6bbc9ace898e44ae57da46a324031adb), \
             and give their folder with --data-dir or in SCRIMP_DATA"
        );
        assert_eq!(error, expected);
    }

    #[test]
    fn a_folder_of_fashion_mnist_is_not_taken_for_mnist_nor_the_other_way_round() {
        let dir = tempfile::tempdir().unwrap();
        let fashion = dir.path().join("fashion-mnist");
        folder(&fashion, Packing::Plain, false);
        assert!(FashionMnist.load(&request(dir.path())).is_ok());
        assert!(FashionMnist.load(&request(&fashion)).is_ok());
        let error = Mnist.load(&request(&fashion)).unwrap_err();
        assert!(matches!(error, DataError::FileNotFound { .. }), "{error}");
        let plain = tempfile::tempdir().unwrap();
        folder(plain.path(), Packing::Plain, false);
        let error = FashionMnist.load(&request(plain.path())).unwrap_err();
        assert!(matches!(error, DataError::FileNotFound { .. }), "{error}");
    }

    #[test]
    fn broken_files_are_named_with_what_is_wrong() {
        let cut = idx(&[20, 28, 28], &[0; 5_000]);
        let error = message_with("train-images-idx3-ubyte", &cut);
        assert!(error.ends_with(
            "cut off: 5000 values, but the IDX header claims 15680 (shape [20, 28, 28])"
        ));
        let error = message_with("t10k-images-idx3-ubyte", &idx(&[10, 28, 27], &[0; 7_560]));
        assert!(error.ends_with("shape [10, 28, 27], expected [images, 28, 28]"), "{error}");
        let error = message_with("t10k-labels-idx1-ubyte", &idx(&[10, 1], &[0; 10]));
        assert!(error.ends_with("shape [10, 1], expected [labels]"), "{error}");
        let error = message_with("t10k-labels-idx1-ubyte", &idx(&[9], &[0; 9]));
        assert!(error.contains("holds 9 labels, but "), "{error}");
        let error = message_with("train-labels-idx1-ubyte", &idx(&[3], &[0, 9, 10]));
        assert!(error.contains("holds 3 labels, but "), "{error}");
        let mut labels = [1; 20];
        labels[13] = 10;
        let error = message_with("train-labels-idx1-ubyte", &idx(&[20], &labels));
        assert!(error.ends_with("label 10 at index 13 is no class: valid are 0 to 9"), "{error}");
        let error = message_with("train-images-idx3-ubyte", &[]);
        assert!(error.ends_with("the IDX header is cut off after 0 bytes"), "{error}");
    }

    #[test]
    fn a_bomb_is_left_when_it_exceeds_its_header() {
        let mut bytes = idx(&[20, 28, 28], &[]);
        bytes.resize(50_000_000, 0);
        for packing in [Packing::Gzip, Packing::Zstd] {
            let packed = pack(&bytes, packing);
            assert!(packed.len() < 100_000, "{packing:?}: {} bytes", packed.len());
            let name = format!("train-images-idx3-ubyte{}", packing.suffix());
            let error = message_with(&name, &packed);
            assert!(error.contains("bytes follow the 15680 values"), "{error}");
        }
    }

    #[test]
    fn a_plain_file_under_a_packed_name_is_an_error() {
        let plain = idx(&[20, 28, 28], &[0; 20 * SIDE * SIDE]);
        for name in ["train-images-idx3-ubyte.gz", "train-images-idx3-ubyte.zst"] {
            let error = message_with(name, &plain);
            assert!(error.contains("cannot be read: "), "{error}");
        }
    }

    #[test]
    fn an_empty_training_set_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path(), Packing::Plain, false);
        fs::write(dir.path().join(TRAIN_IMAGES[0]), idx(&[0, 28, 28], &[])).unwrap();
        fs::write(dir.path().join(TRAIN_LABELS[0]), idx(&[0], &[])).unwrap();
        let error = Mnist.load(&request(dir.path())).unwrap_err();
        assert!(matches!(error, DataError::NothingLeft { .. }), "{error}");
    }

    #[test]
    fn the_official_files_are_recognised_with_scrimp_data_set() {
        with_real_data(|dir| {
            let request = DataRequest { dir: Some(dir), ..DataRequest::default() };
            let splits = Mnist.load(&DataRequest { validation: 0.0, ..request.clone() }).unwrap();
            assert_eq!((splits.train.len(), splits.test.len()), (60_000, 10_000));
            assert_eq!(splits.note, "official files");
            // The first labels as the literature shows them.
            assert_eq!(splits.train.labels[..10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]);
            assert_eq!(splits.test.labels[..10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);
            let count = splits.train.pixels.len() as f64;
            let sum: u64 = splits.train.pixels.iter().map(|&pixel| u64::from(pixel)).sum();
            let squares: u64 = splits.train.pixels.iter().map(|&p| u64::from(p).pow(2)).sum();
            let mean = sum as f64 / count / 255.0;
            let std = (squares as f64 / count / (255.0 * 255.0) - mean * mean).sqrt();
            assert!((mean - f64::from(splits.mean[0])).abs() < 5e-5, "{mean}");
            assert!((std - f64::from(splits.std[0])).abs() < 5e-5, "{std}");
            let split = Mnist.load(&DataRequest { limit: Some(5_000), ..request }).unwrap();
            assert_eq!((split.train.len(), split.validation.len()), (5_000, 6_000));
            assert_eq!(split.test, splits.test);
        });
    }
}
