//! Data sets: labelled images, split into training, validation and test, and the batches made of
//! them.
//!
//! A data set is one file and one row in [`DATA_SETS`]. Nothing here names the engine: images are
//! bytes, batches are `f32` slices. Foreign files are read as hostile: every length is checked
//! before memory is taken, and an error names the file and what is wrong with it.
//!
//! # Random streams
//! Everything random comes from [`scrimp_codec::philox`] under stream ids of the form `0xDA7A_000n`
//! ([`SPLIT_STREAM`], [`ORDER_STREAM`], [`AUGMENT_STREAM`], [`DIGITS_STREAM`]), so that it is
//! independent of the tensors' streams and of the number of threads.

mod batch;
mod cifar;
mod cifar10;
mod cifar100;
mod digits;
mod files;
pub mod idx;
mod image_folder;
mod mnist;

use std::fmt;
use std::path::{Path, PathBuf};

use scrimp_codec::philox::Stream;
use thiserror::Error;

pub use batch::{Augment, Loader, epoch_order};
pub use cifar::CifarError;
pub use cifar10::{Cifar10, Cifar10Jpeg, read_file as read_cifar10};
pub use cifar100::{Cifar100, Cifar100Coarse};
pub use digits::Digits;
pub use files::{FileError, Packing, unpack};
pub use image_folder::{FolderError, ImageFolder, ImagesConfig, read_folder as read_image_folder};
pub use mnist::{FashionMnist, Mnist};

/// Stream id of the permutation that takes the validation images out of a training set.
pub const SPLIT_STREAM: u32 = 0xDA7A_0001;
/// Stream id of the order of an epoch.
pub const ORDER_STREAM: u32 = 0xDA7A_0002;
/// Stream id of crops and flips.
pub const AUGMENT_STREAM: u32 = 0xDA7A_0003;
/// Stream id of the generator behind [`Digits`].
pub const DIGITS_STREAM: u32 = 0xDA7A_0004;

/// Environment variable that names the folder of data files where a request names none.
pub const FOLDER_VARIABLE: &str = "SCRIMP_DATA";

/// All data sets; the order is the order in tables, and the first needs no file.
pub static DATA_SETS: &[&dyn DataSet] = &[
    &Digits,
    &Mnist,
    &FashionMnist,
    &Cifar10,
    &Cifar10Jpeg,
    &Cifar100,
    &Cifar100Coarse,
    &ImageFolder,
];

/// A data set by its key.
///
/// # Errors
/// [`DataError::UnknownDataSet`] with the nearest key and the list of all.
pub fn find(name: &str) -> Result<&'static dyn DataSet, DataError> {
    // Below this likeness a suggestion would be a guess.
    const ALIKE: f64 = 0.5;
    if let Some(set) = DATA_SETS.iter().find(|set| set.name() == name) {
        return Ok(*set);
    }
    let wanted = name.to_ascii_lowercase().replace('_', "-");
    let nearest = DATA_SETS
        .iter()
        .map(|set| (strsim::normalized_damerau_levenshtein(&wanted, set.name()), set.name()))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name);
    let known = DATA_SETS.iter().map(|set| set.name()).collect();
    Err(DataError::UnknownDataSet { name: name.to_owned(), nearest, known: Names(known) })
}

/// A source of labelled images.
pub trait DataSet: fmt::Debug + Sync {
    /// The key in recipes, unique among [`DATA_SETS`].
    fn name(&self) -> &'static str;

    /// One line for lists: what the images show and where they come from.
    fn about(&self) -> &'static str;

    /// What all images have in common, known without loading; `None` where a request says it under
    /// [`DataRequest::images`].
    fn own_form(&self) -> Option<Form>;

    /// Reads or makes the images and splits them.
    ///
    /// The same request and the same files give the same bytes, for any number of threads. The
    /// validation images come out of the training set, the test set is never touched, and
    /// [`DataRequest::limit`] shortens what is left for training. Images keep the order of their
    /// source.
    ///
    /// # Errors
    /// [`DataError`], naming the file, for a file that is missing or broken and for a request that
    /// leaves nothing to train on.
    fn load(&self, request: &DataRequest) -> Result<Splits, DataError>;
}

/// What all images of a data set have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// `[channels, height, width]` of every image.
    pub image_shape: [usize; 3],
    /// Number of classes; labels lie in `0..classes`.
    pub classes: usize,
}

impl dyn DataSet + '_ {
    /// What all images have in common: that of the data set itself, or what `images` says.
    ///
    /// # Errors
    /// [`DataError`] for `images` that are needed and missing, have no effect, or are not valid.
    pub fn form(&self, images: Option<&ImagesConfig>) -> Result<Form, DataError> {
        match (self.own_form(), images) {
            (Some(form), None) => Ok(form),
            (Some(_), Some(_)) => Err(DataError::ImagesUnused { set: self.name() }),
            (None, None) => Err(DataError::NoImages),
            (None, Some(images)) => match images.complaint() {
                None => Ok(images.form()),
                Some((key, reason)) => Err(DataError::Images { key, reason }),
            },
        }
    }
}

/// What to load and how to split it.
#[derive(Debug, Clone, PartialEq)]
pub struct DataRequest {
    /// Folder of the data files; without one, the folder that `SCRIMP_DATA` names.
    pub dir: Option<PathBuf>,
    /// Share of the training set that becomes the validation set, in `[0, 1)`. A share above zero
    /// takes at least one image. A data set with a validation set of its own (`digits`) takes no
    /// notice.
    pub validation: f32,
    /// Seed of the split.
    pub seed: u32,
    /// Most images to train on, at least one; a smaller limit trains on a subset of a larger one.
    pub limit: Option<usize>,
    /// Which folder and which size, for [`ImageFolder`] alone.
    pub images: Option<ImagesConfig>,
}

impl Default for DataRequest {
    /// A tenth of the training set for validation, seed 0, no limit, folder from `SCRIMP_DATA`.
    fn default() -> Self {
        Self { dir: None, validation: 0.1, seed: 0, limit: None, images: None }
    }
}

impl DataRequest {
    /// The folder asked for, or the one that `SCRIMP_DATA` names.
    ///
    /// # Errors
    /// [`DataError::NoFolder`] where there is neither.
    fn folder(&self, set: &dyn DataSet) -> Result<PathBuf, DataError> {
        let from_environment = || {
            let value = std::env::var_os(FOLDER_VARIABLE)?;
            (!value.is_empty()).then(|| PathBuf::from(value))
        };
        self.dir.clone().or_else(from_environment).ok_or(DataError::NoFolder { set: set.name() })
    }

    /// Checks what does not depend on the data.
    fn check(&self, set: &dyn DataSet) -> Result<(), DataError> {
        set.form(self.images.as_ref())?;
        if !(0.0..1.0).contains(&self.validation) {
            return Err(DataError::ValidationShare { share: self.validation });
        }
        if self.limit == Some(0) {
            return Err(DataError::NothingLeft { reason: "limit is 0, at least 1 is needed" });
        }
        Ok(())
    }
}

/// Images of one size with their labels.
#[derive(Clone, PartialEq, Eq)]
pub struct Images {
    /// `[count, channels, height, width]`, row-major.
    pub pixels: Vec<u8>,
    /// `[count]`.
    pub labels: Vec<u8>,
    /// Planes per image: 1 for grey, 3 for red, green, blue.
    pub channels: usize,
    /// Rows per plane.
    pub height: usize,
    /// Pixels per row.
    pub width: usize,
}

impl Images {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Values per image: `channels * height * width`.
    pub fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Pixels of one image, `[channels, height, width]`.
    ///
    /// # Panics
    /// If `index` is not below [`Images::len`].
    pub fn image(&self, index: usize) -> &[u8] {
        let len = self.image_len();
        &self.pixels[index * len..(index + 1) * len]
    }

    /// A copy of the images at `indices`, which must be in range.
    fn select(&self, indices: &[u32]) -> Self {
        let mut pixels = Vec::with_capacity(indices.len() * self.image_len());
        let mut labels = Vec::with_capacity(indices.len());
        for &index in indices {
            pixels.extend_from_slice(self.image(index as usize));
            labels.push(self.labels[index as usize]);
        }
        Self { pixels, labels, ..*self }
    }
}

impl fmt::Debug for Images {
    /// Sizes only: the pixels of a data set help nobody in a message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Images[{}, {}, {}, {}]", self.len(), self.channels, self.height, self.width)
    }
}

/// A data set, loaded and split.
#[derive(Debug, Clone, PartialEq)]
pub struct Splits {
    /// Images to train on.
    pub train: Images,
    /// Images to choose settings by; empty where the request asked for none.
    pub validation: Images,
    /// Images to report by.
    pub test: Images,
    /// Number of classes; every label is below it.
    pub classes: usize,
    /// What the classes are called, in the order of their labels; empty where the source does not say.
    pub class_names: Vec<String>,
    /// Mean of `pixel / 255` per channel, to be subtracted.
    pub mean: Vec<f32>,
    /// Standard deviation of `pixel / 255` per channel, to divide by.
    pub std: Vec<f32>,
    /// Where the images are from, in a word or two: `generated`, `official files`.
    pub note: String,
}

/// Why a data set could not be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// No data set has this key.
    #[error(
        "no data set is called `{name}`{}; there are {known}",
        .nearest.map(|near| format!(", did you mean `{near}`?")).unwrap_or_default()
    )]
    UnknownDataSet {
        /// The key asked for.
        name: String,
        /// The most alike key, if any is alike.
        nearest: Option<&'static str>,
        /// All keys.
        known: Names,
    },
    /// The data set lies in files and no folder is known.
    #[error("{set} is read from files: give their folder with --data-dir or in {FOLDER_VARIABLE}")]
    NoFolder {
        /// Key of the data set.
        set: &'static str,
    },
    /// No file of a part of the data set was found.
    #[error(
        "{set} has no {part}: looked in {} for {names}, each plain, .gz or .zst; \
         get the files from {origin}, and give their folder with --data-dir or in {FOLDER_VARIABLE}",
        shown(.folders)
    )]
    FileNotFound {
        /// Key of the data set.
        set: &'static str,
        /// What the file would hold.
        part: &'static str,
        /// Folders searched, in order.
        folders: Vec<PathBuf>,
        /// File names looked for.
        names: Names,
        /// Where the files are published, with a checksum.
        origin: &'static str,
    },
    /// A file could not be read or does not hold what it should.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FileError,
    },
    /// An image file and its label file disagree.
    #[error(
        "{} holds {labels} labels, but {} holds {images} images",
        .label_path.display(), .image_path.display()
    )]
    Unpaired {
        /// The file of images.
        image_path: PathBuf,
        /// Images in it.
        images: usize,
        /// The file of labels.
        label_path: PathBuf,
        /// Labels in it.
        labels: usize,
    },
    /// A folder of images is not as it should be.
    #[error("{}: {source}", .path.display())]
    Folder {
        /// The folder, or the file in it.
        path: PathBuf,
        /// What is wrong with it.
        source: FolderError,
    },
    /// Nothing says which images.
    #[error("`image-folder` needs a table [images] with at least `classes` and `size`")]
    NoImages,
    /// The data set has no images to choose.
    #[error("[images] has no effect: {set} is a data set of its own, and not `image-folder`")]
    ImagesUnused {
        /// Key of the data set.
        set: &'static str,
    },
    /// An option of images is not valid.
    #[error("`{key}` of [images]: {reason}")]
    Images {
        /// Its key.
        key: &'static str,
        /// What is wrong, and what would be valid.
        reason: String,
    },
    /// The images take more memory than there is.
    #[error("no memory for {images} images of {size} x {size}: set a limit or a smaller size")]
    NoMemory {
        /// How many.
        images: usize,
        /// Their height and width.
        size: usize,
    },
    /// A channel has no deviation to divide by.
    #[error(
        "{}: a channel of its images has one value alone: give `mean` and `std` under [images]",
        .path.display()
    )]
    Flat {
        /// The folder of training images.
        path: PathBuf,
    },
    /// The validation share is not a share.
    #[error("validation share {share} is outside [0, 1)")]
    ValidationShare {
        /// The share asked for.
        share: f32,
    },
    /// A crop could leave nothing of the picture.
    #[error("crop_pad {crop_pad} is too large for images of {height} x {width}: at most {}", .height.min(.width).saturating_sub(1))]
    CropPad {
        /// The padding asked for.
        crop_pad: usize,
        /// Rows of an image.
        height: usize,
        /// Columns of an image.
        width: usize,
    },
    /// The request leaves no image to train on.
    #[error("no image is left to train on: {reason}")]
    NothingLeft {
        /// Why.
        reason: &'static str,
    },
}

impl DataError {
    fn file(path: &Path, source: impl Into<FileError>) -> Self {
        Self::File { path: path.to_owned(), source: source.into() }
    }
}

/// Names in a message, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(pub Vec<&'static str>);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

fn shown(folders: &[PathBuf]) -> String {
    let shown: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    shown.join(", ")
}

/// Which of `count` training images are trained on, and which are for validation, both in order.
///
/// The permutation depends on the seed and the number of images alone, validation takes its head
/// and training what follows, so that neither the limit nor the test set moves an image from one
/// side to the other.
///
/// # Errors
/// [`DataError::NothingLeft`] where no image is left for training; `request` has been checked.
fn choose(count: usize, request: &DataRequest) -> Result<(Vec<u32>, Vec<u32>), DataError> {
    if count == 0 {
        return Err(DataError::NothingLeft { reason: "the training set is empty" });
    }
    let share = f64::from(request.validation);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the share lies in [0, 1), so the product is a count below `count`"
    )]
    let mut held_out = (count as f64 * share + 0.5) as usize;
    if share > 0.0 {
        held_out = held_out.max(1);
    }
    if held_out >= count {
        return Err(DataError::NothingLeft { reason: "validation takes every training image" });
    }
    let kept = request.limit.unwrap_or(usize::MAX).min(count - held_out);
    let mut validation = batch::permutation(count, &Stream::new(request.seed, SPLIT_STREAM));
    let mut train = validation.split_off(held_out);
    train.truncate(kept);
    // Sorted parts keep the order of the source and are read in one sweep.
    validation.sort_unstable();
    train.sort_unstable();
    Ok((train, validation))
}

/// Takes the validation images out of a training set and limits the rest, as [`choose`] says.
///
/// # Errors
/// As [`choose`].
fn split(all: Images, request: &DataRequest) -> Result<(Images, Images), DataError> {
    let (train, validation) = choose(all.len(), request)?;
    if train.len() == all.len() {
        let none = all.select(&[]);
        return Ok((all, none));
    }
    Ok((all.select(&train), all.select(&validation)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Calls the test with the folder of real data, or prints that it is skipped.
    pub(super) fn with_real_data(test: impl FnOnce(PathBuf)) {
        match std::env::var_os(FOLDER_VARIABLE) {
            Some(dir) if !dir.is_empty() => test(dir.into()),
            _ => println!("skipped: {FOLDER_VARIABLE} names no folder of data files"),
        }
    }

    /// Grey images of one pixel that counts up.
    fn counted(count: usize) -> Images {
        let pixels: Vec<u8> = (0..count).map(|i| u8::try_from(i).unwrap()).collect();
        Images { labels: pixels.clone(), pixels, channels: 1, height: 1, width: 1 }
    }

    fn request(validation: f32, seed: u32, limit: Option<usize>) -> DataRequest {
        DataRequest { validation, seed, limit, ..DataRequest::default() }
    }

    #[test]
    fn every_data_set_is_found_by_its_own_key() {
        let mut names = HashSet::new();
        for set in DATA_SETS {
            assert!(names.insert(set.name()), "{} comes twice", set.name());
            assert_eq!(find(set.name()).unwrap().name(), set.name());
            assert!(!set.about().is_empty());
        }
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest_and_the_list() {
        let error = find("fashion_mnst").unwrap_err().to_string();
        assert_eq!(
            error,
            "no data set is called `fashion_mnst`, did you mean `fashion-mnist`?; \
             there are digits, mnist, fashion-mnist, cifar10, cifar10-jpeg, cifar100, \
             cifar100-coarse, image-folder"
        );
        let error = find("wikitext").unwrap_err().to_string();
        assert!(error.starts_with("no data set is called `wikitext`; there are digits"), "{error}");
    }

    #[test]
    fn every_data_set_whose_files_are_here_keeps_its_word_with_scrimp_data_set() {
        for set in DATA_SETS {
            let splits = match set.load(&DataRequest::default()) {
                Err(
                    error @ (DataError::NoFolder { .. }
                    | DataError::FileNotFound { .. }
                    | DataError::NoImages),
                ) => {
                    println!("skipped {}: {error}", set.name());
                    continue;
                }
                other => other.unwrap(),
            };
            let Form { image_shape: [channels, height, width], classes } = set.form(None).unwrap();
            assert_eq!(splits.classes, classes);
            assert_eq!((splits.mean.len(), splits.std.len()), (channels, channels));
            assert!(splits.std.iter().all(|&std| std > 0.0));
            assert!(!splits.note.is_empty());
            for part in [&splits.train, &splits.validation, &splits.test] {
                assert!(!part.is_empty());
                assert_eq!([part.channels, part.height, part.width], [channels, height, width]);
                assert_eq!(part.pixels.len(), part.len() * channels * height * width);
                assert!(part.labels.iter().all(|&label| usize::from(label) < splits.classes));
            }
            println!("{}: {splits:?}", set.name());
        }
    }

    #[test]
    fn a_split_loses_no_image_and_keeps_pixels_with_labels() {
        let (train, validation) = split(counted(200), &request(0.1, 3, None)).unwrap();
        assert_eq!((train.len(), validation.len()), (180, 20));
        assert_eq!(train.labels, train.pixels);
        assert_eq!(validation.labels, validation.pixels);
        let mut all = [train.labels.clone(), validation.labels.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, counted(200).labels);
        assert_eq!(split(counted(200), &request(0.1, 3, None)).unwrap(), (train, validation));
    }

    #[test]
    fn another_seed_takes_other_images_for_validation() {
        let of_seed = |seed| split(counted(200), &request(0.1, seed, None)).unwrap().1;
        assert_ne!(of_seed(1), of_seed(2));
    }

    #[test]
    fn a_limit_shortens_training_alone_and_a_smaller_one_takes_a_subset() {
        let (_, validation) = split(counted(200), &request(0.1, 3, None)).unwrap();
        let (large, same) = split(counted(200), &request(0.1, 3, Some(100))).unwrap();
        let (small, _) = split(counted(200), &request(0.1, 3, Some(30))).unwrap();
        assert_eq!(same, validation);
        assert_eq!((large.len(), small.len()), (100, 30));
        assert!(small.labels.iter().all(|label| large.labels.contains(label)));
        assert!(large.labels.iter().all(|label| !validation.labels.contains(label)));
        let (all, _) = split(counted(200), &request(0.1, 3, Some(5_000))).unwrap();
        assert_eq!(all.len(), 180);
    }

    #[test]
    fn a_share_of_zero_leaves_validation_empty_and_a_tiny_one_takes_an_image() {
        let (train, validation) = split(counted(50), &request(0.0, 0, None)).unwrap();
        assert_eq!((train, validation.len()), (counted(50), 0));
        let (train, validation) = split(counted(50), &request(1e-6, 0, None)).unwrap();
        assert_eq!((train.len(), validation.len()), (49, 1));
    }

    #[test]
    fn a_request_that_leaves_nothing_to_train_on_is_refused() {
        for share in [-0.1, 1.0, 1.5, f32::NAN, f32::INFINITY] {
            let error = Digits.load(&request(share, 0, None)).unwrap_err();
            assert!(matches!(error, DataError::ValidationShare { .. }), "{share}: {error}");
        }
        let error = Digits.load(&request(0.1, 0, Some(0))).unwrap_err().to_string();
        assert_eq!(error, "no image is left to train on: limit is 0, at least 1 is needed");
        for (count, share) in [(0, 0.5), (1, 0.1), (3, 0.9)] {
            let error = split(counted(count), &request(share, 0, None)).unwrap_err();
            assert!(matches!(error, DataError::NothingLeft { .. }), "{count}: {error}");
        }
    }
}
