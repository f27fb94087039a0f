//! Images in folders: one folder for each class.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::{ImageReader, Limits, RgbImage};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::files::FileError;
use super::{DataError, DataRequest, DataSet, Form, Images, Splits, choose};

/// JPEG and PNG images in `train/CLASS/` and `test/CLASS/`, made one size and three channels.
///
/// Classes are the names of the folders in byte order, as torchvision's `ImageFolder` numbers
/// them. With `val/` and no `test/`, as `ImageNet` comes, the former is the test set; with both,
/// `val/` is the validation set and the share of the request has no part in it.
///
/// An image is scaled until its shorter side is [`ImagesConfig::resize`], with a triangle filter
/// that grows with the scale, as Pillow's `BILINEAR`, and its centre is cut out. Grey becomes three
/// equal channels, transparency is dropped, and a note that the camera was held sideways is not
/// looked at, all as torchvision does.
#[derive(Debug, Clone, Copy)]
pub struct ImageFolder;

/// Which folder of images, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImagesConfig {
    /// The folder that holds `train` and `test` or `val`. Relative to the data folder, or else to the current one; without
    /// it, the data folder itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// Number of classes, up to 256: one for each folder in `train`.
    pub classes: usize,
    /// Height and width of the square that the network sees.
    pub size: usize,
    /// The shorter side of an image before its centre is cut out, at least `size`. Without it, that is `size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<usize>,
    /// Mean of red, green and blue, as shares of white, which is subtracted. Without it and `std`, both are those of the
    /// images to train on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<[f32; CHANNELS]>,
    /// Standard deviation of red, green and blue, as shares of white, which is divided by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<[f32; CHANNELS]>,
}

const CHANNELS: usize = 3;

/// Most classes: labels are bytes.
const MOST_CLASSES: usize = 1 << 8;

/// Longest side that is asked for or read.
const LONGEST_SIDE: usize = 1 << 15;

/// Most pixels of an image after scaling, which a long thin one of few bytes would exceed.
const MOST_PIXELS: usize = 1 << 26;

/// Most memory of one image while it is read. A header asks for it before the pixels come.
const MOST_BYTES: u64 = 1 << 30;

/// Endings of the names of images, in any case.
const ENDINGS: [&str; 3] = ["jpg", "jpeg", "png"];

impl ImagesConfig {
    /// What is wrong with the options, if anything: the key and why.
    pub fn complaint(&self) -> Option<(&'static str, String)> {
        let Self { classes, size, resize, mean, std, .. } = self;
        if !(1..=MOST_CLASSES).contains(classes) {
            let why = format!("{classes} classes: between 1 and {MOST_CLASSES} are possible");
            return Some(("classes", why));
        }
        if !(1..=LONGEST_SIDE).contains(size) {
            return Some(("size", format!("{size} pixels: valid are 1 to {LONGEST_SIDE}")));
        }
        if let Some(resize) = resize.filter(|side| !(*size..=LONGEST_SIDE).contains(side)) {
            let why = format!("{resize} pixels: valid are {size} (the size) to {LONGEST_SIDE}");
            return Some(("resize", why));
        }
        match (mean, std) {
            (Some(_), None) => Some(("mean", "the key needs `std` beside it".into())),
            (None, Some(_)) => Some(("std", "the key needs `mean` beside it".into())),
            (Some(mean), _) if !mean.iter().all(|v| v.is_finite()) => {
                Some(("mean", format!("{mean:?} are no three numbers")))
            }
            (_, Some(std)) if !std.iter().all(|v| v.is_finite() && *v > 0.0) => {
                Some(("std", format!("{std:?} are no three numbers above 0")))
            }
            _ => None,
        }
    }

    /// What the images have in common.
    pub(super) fn form(&self) -> Form {
        Form { image_shape: [CHANNELS, self.size, self.size], classes: self.classes }
    }

    /// The folder that holds the images.
    fn root(&self, request: &DataRequest) -> Result<PathBuf, DataError> {
        let Some(folder) = &self.folder else { return request.folder(&ImageFolder) };
        let inside = request.folder(&ImageFolder).ok().map(|dir| dir.join(folder));
        let inside = inside.filter(|path| path.is_dir());
        Ok(inside.unwrap_or_else(|| folder.clone()))
    }
}

/// What is wrong with a folder of images.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FolderError {
    /// The folder cannot be listed.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The folder lacks one of the parts.
    #[error("has no folder {names}, in which each class has a folder of its images")]
    NoPart {
        /// What it could be called.
        names: &'static str,
    },
    /// There is no class.
    #[error("has no folder of a class")]
    NoClass,
    /// A class has no image.
    #[error("is the folder of a class and holds no image")]
    NoImage,
    /// A file where only folders are expected.
    #[error("lies beside the folders of classes and is none")]
    NoFolder,
    /// A folder where only images are expected.
    #[error("is a folder in the folder of a class: images lie in the latter itself")]
    Nested,
    /// A file that is no image by its name.
    #[error("is no image by its name, which would end in .jpg, .jpeg or .png")]
    Name,
    /// There are not as many classes as announced.
    #[error("holds folders of {found} classes, and the recipe says `classes = {expected}`")]
    Count {
        /// Folders that are there.
        found: usize,
        /// Classes that are expected.
        expected: usize,
    },
    /// One part has a class that the other lacks.
    #[error("has no folder of the class `{class}`, which {} has", .other.display())]
    Differs {
        /// The class.
        class: String,
        /// The part that has it.
        other: PathBuf,
    },
}

fn folder_error(path: &Path, source: impl Into<FolderError>) -> DataError {
    DataError::Folder { path: path.to_owned(), source: source.into() }
}

impl DataSet for ImageFolder {
    fn name(&self) -> &'static str {
        "image-folder"
    }

    fn about(&self) -> &'static str {
        "JPEG and PNG images of your own, in train/CLASS and test/CLASS; sizes are given by [images]"
    }

    fn own_form(&self) -> Option<Form> {
        None
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        request.check(self)?;
        let Some(config) = &request.images else { return Err(DataError::NoImages) };
        let root = config.root(request)?;
        let part = |names: &[&str]| names.iter().map(|name| root.join(name)).find(|p| p.is_dir());
        let missing = |names| folder_error(&root, FolderError::NoPart { names });
        let train = Part::list(&part(&["train"]).ok_or_else(|| missing("`train`"))?)?;
        let [validation, test] = match (part(&["val", "validation"]), part(&["test"])) {
            (validation, Some(test)) => [validation, Some(test)],
            (validation, None) => [None, validation],
        };
        let test = Part::list(&test.ok_or_else(|| missing("`test` or `val`"))?)?;
        let validation = validation.map(|path| Part::list(&path)).transpose()?;
        if train.classes.len() != config.classes {
            let (found, expected) = (train.classes.len(), config.classes);
            return Err(folder_error(&train.path, FolderError::Count { found, expected }));
        }
        for other in validation.iter().chain([&test]) {
            train.has_all_of(other)?;
            other.has_all_of(&train)?;
        }
        let share = if validation.is_some() { 0.0 } else { request.validation };
        let shares = DataRequest { validation: share, ..request.clone() };
        let (chosen, held_out) = choose(train.files.len(), &shares)?;
        let images = |part: &Part, indices: &[u32]| {
            let files: Vec<&Labelled> = indices.iter().map(|&i| &part.files[i as usize]).collect();
            read_all(&files, config)
        };
        let all = |part: &Part| read_all(&part.files.iter().collect::<Vec<_>>(), config);
        let trained = images(&train, &chosen)?;
        let (mean, std) = match (config.mean, config.std) {
            (Some(mean), Some(std)) => (mean, std),
            _ => {
                statistics(&trained).ok_or_else(|| DataError::Flat { path: train.path.clone() })?
            }
        };
        Ok(Splits {
            validation: match &validation {
                Some(part) => all(part)?,
                None => images(&train, &held_out)?,
            },
            train: trained,
            test: all(&test)?,
            classes: config.classes,
            class_names: train.classes.iter().map(|c| c.to_string_lossy().into_owned()).collect(),
            mean: mean.to_vec(),
            std: std.to_vec(),
            note: format!("{}, test images of {}", root.display(), name(&test.path)),
        })
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// An image and the number of its class.
#[derive(Debug)]
struct Labelled {
    path: PathBuf,
    label: u8,
}

/// The images of training, validation or test.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    classes: Vec<OsString>,
    files: Vec<Labelled>,
}

impl Part {
    /// Lists the folders of classes and their images, in the order of their names.
    fn list(path: &Path) -> Result<Self, DataError> {
        let classes = entries(path)?;
        if classes.is_empty() {
            return Err(folder_error(path, FolderError::NoClass));
        }
        let mut files = Vec::new();
        for (number, class) in classes.iter().enumerate() {
            let folder = path.join(class);
            if !folder.is_dir() {
                return Err(folder_error(&folder, FolderError::NoFolder));
            }
            // More classes than a label can tell are refused by their count before a label is looked at.
            let label = u8::try_from(number).unwrap_or(u8::MAX);
            let before = files.len();
            for file in entries(&folder)? {
                let path = folder.join(&file);
                if path.is_dir() {
                    return Err(folder_error(&path, FolderError::Nested));
                }
                if !is_image(&file) {
                    return Err(folder_error(&path, FolderError::Name));
                }
                files.push(Labelled { path, label });
            }
            if files.len() == before {
                return Err(folder_error(&folder, FolderError::NoImage));
            }
        }
        Ok(Self { path: path.to_owned(), classes, files })
    }

    /// Checks that no class of another part is missing here.
    fn has_all_of(&self, other: &Self) -> Result<(), DataError> {
        // Both lists are sorted.
        let missing = other.classes.iter().find(|class| self.classes.binary_search(class).is_err());
        let Some(class) = missing else { return Ok(()) };
        let (class, other) = (class.to_string_lossy().into_owned(), other.path.clone());
        Err(folder_error(&self.path, FolderError::Differs { class, other }))
    }
}

/// What a folder holds, sorted. Names that begin with a dot belong to the system.
fn entries(folder: &Path) -> Result<Vec<OsString>, DataError> {
    let failed = |error| folder_error(folder, FolderError::Read(error));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn is_image(name: &OsStr) -> bool {
    let ending = Path::new(name).extension().unwrap_or_default();
    ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// The images of a folder, in the order of their names, and whether they have labels: a folder of folders has a class in
/// each, in a folder of images every label is 0.
///
/// # Errors
/// [`DataError`] naming the folder or file, where there is no image or one cannot be read.
pub fn read_folder(folder: &Path, config: &ImagesConfig) -> Result<(Images, bool), DataError> {
    let names = entries(folder)?;
    let labelled = names.first().is_some_and(|first| folder.join(first).is_dir());
    let files = if labelled {
        Part::list(folder)?.files
    } else {
        let images = names.into_iter().filter(|name| is_image(name));
        images.map(|name| Labelled { path: folder.join(name), label: 0 }).collect()
    };
    if files.is_empty() {
        return Err(folder_error(folder, FolderError::NoImage));
    }
    Ok((read_all(&files.iter().collect::<Vec<_>>(), config)?, labelled))
}

/// Reads images, on all threads; of several broken ones the first is named.
fn read_all(files: &[&Labelled], config: &ImagesConfig) -> Result<Images, DataError> {
    let size = config.size;
    let image_len = CHANNELS * size * size;
    let mut pixels = Vec::new();
    let len = image_len.checked_mul(files.len());
    if len.is_none_or(|len| pixels.try_reserve_exact(len).is_err()) {
        return Err(DataError::NoMemory { images: files.len(), size });
    }
    pixels.resize(image_len * files.len(), 0);
    let broken = pixels.par_chunks_exact_mut(image_len).zip(files).find_map_first(|(out, file)| {
        let error = read(&file.path, config, out).err()?;
        Some(DataError::file(&file.path, error))
    });
    if let Some(error) = broken {
        return Err(error);
    }
    let labels = files.iter().map(|file| file.label).collect();
    Ok(Images { pixels, labels, channels: CHANNELS, height: size, width: size })
}

/// Reads an image into three planes of [`ImagesConfig::size`] squared.
fn read(path: &Path, config: &ImagesConfig, out: &mut [u8]) -> Result<(), FileError> {
    let file = File::open(path).map_err(FileError::Open)?;
    let mut reader = ImageReader::new(BufReader::new(file));
    let mut limits = Limits::default();
    #[expect(clippy::cast_possible_truncation, reason = "the longest side is a small constant")]
    let longest = Some(LONGEST_SIDE as u32);
    (limits.max_image_width, limits.max_image_height) = (longest, longest);
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    // Files are known by what they hold: that a name ends in .jpg says little.
    let reader = reader.with_guessed_format().map_err(FileError::Open)?;
    let image = reader.decode().map_err(FileError::Image)?.into_rgb8();
    planes(image, config, out)
}

/// Scales an image, cuts its centre out and takes its planes apart.
fn planes(image: RgbImage, config: &ImagesConfig, out: &mut [u8]) -> Result<(), FileError> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let shorter = config.resize.unwrap_or(config.size);
    let least = width.min(height);
    if least == 0 {
        return Err(FileError::Sides { width, height });
    }
    // The shorter side is met exactly, and of the longer one a part of a pixel is dropped.
    let [new_width, new_height] = [width, height].map(|side| side * shorter / least);
    if new_width.saturating_mul(new_height) > MOST_PIXELS {
        return Err(FileError::Sides { width, height });
    }
    let scaled = if least == shorter {
        image
    } else {
        #[expect(clippy::cast_possible_truncation, reason = "at most the number of pixels")]
        imageops::resize(&image, new_width as u32, new_height as u32, FilterType::Triangle)
    };
    let size = config.size;
    let [left, top] = [new_width, new_height].map(|side| centre(side - size));
    for (plane, out) in out.chunks_exact_mut(size * size).enumerate() {
        for (row, out) in out.chunks_exact_mut(size).enumerate() {
            let from = ((top + row) * new_width + left) * CHANNELS + plane;
            let pixels = scaled.as_raw()[from..].iter().step_by(CHANNELS);
            for (out, pixel) in out.iter_mut().zip(pixels) {
                *out = *pixel;
            }
        }
    }
    Ok(())
}

/// Half of what is too much, a half rounded to even, as Python's `round` does in torchvision.
fn centre(excess: usize) -> usize {
    excess / 2 + usize::from(excess % 4 == 3)
}

/// Mean and standard deviation of each channel over all pixels; `None` where a channel has one value
/// alone.
#[expect(clippy::cast_possible_truncation, reason = "statistics are rounded to f32")]
fn statistics(images: &Images) -> Option<([f32; CHANNELS], [f32; CHANNELS])> {
    let plane_len = images.height * images.width;
    let (mut mean, mut std) = ([0.0; CHANNELS], [0.0; CHANNELS]);
    for (channel, (mean, std)) in mean.iter_mut().zip(&mut std).enumerate() {
        // Whole numbers, so that no order of images changes the sum.
        let planes = images.pixels.par_chunks_exact(plane_len).skip(channel).step_by(CHANNELS);
        let sums = planes.map(|plane| {
            plane.iter().map(|&p| u64::from(p)).fold([0, 0], |[s, q], p| [s + p, q + p * p])
        });
        let [sum, squares] = sums.reduce(|| [0, 0], |a, b| [a[0] + b[0], a[1] + b[1]]);
        let count = (plane_len * images.len()) as f64;
        let exact = sum as f64 / count;
        let variance = squares as f64 / count - exact * exact;
        if variance <= 0.0 {
            return None;
        }
        (*mean, *std) = ((exact / 255.0) as f32, (variance.sqrt() / 255.0) as f32);
    }
    Some((mean, std))
}

#[cfg(test)]
mod tests {
    use image::ImageFormat;

    use super::super::tests::with_real_data;
    use super::super::{Cifar10Jpeg, Digits, Packing, unpack};
    use super::*;

    fn config(classes: usize, size: usize) -> ImagesConfig {
        ImagesConfig { folder: None, classes, size, resize: None, mean: None, std: None }
    }

    fn request(dir: &Path, images: ImagesConfig) -> DataRequest {
        DataRequest {
            dir: Some(dir.to_owned()),
            validation: 0.0,
            images: Some(images),
            ..DataRequest::default()
        }
    }

    /// A PNG of 4 x 4 pixels of a colour, but for one corner.
    fn png(path: &Path, colour: [u8; 3]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut image = RgbImage::from_pixel(4, 4, image::Rgb(colour));
        image.put_pixel(3, 3, image::Rgb(colour.map(|value| value ^ 255)));
        image.save_with_format(path, ImageFormat::Png).unwrap();
    }

    /// Three training images and one test image for each of these classes.
    fn folder(dir: &Path, classes: &[&str]) {
        for (number, class) in (0..).zip(classes) {
            for name in 0..3 {
                png(&dir.join("train").join(class).join(format!("{name}.png")), [number, name, 9]);
            }
            png(&dir.join("test").join(class).join("a.PNG"), [number, 7, 9]);
        }
    }

    fn refused(dir: &Path, classes: usize) -> String {
        let error = ImageFolder.load(&request(dir, config(classes, 4))).unwrap_err().to_string();
        error.replace(&dir.display().to_string(), "DIR")
    }

    fn bytes(hexadecimal: &str) -> Vec<u8> {
        let digits = hexadecimal.as_bytes().chunks(2).map(|two| str::from_utf8(two).unwrap());
        digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
    }

    #[test]
    fn images_are_those_of_pillow_and_torchvision() {
        let text = include_str!("../../tests/golden/images.csv");
        let dir = tempfile::tempdir().unwrap();
        let rows = text.lines().filter(|line| !line.starts_with('#')).skip(1);
        for row in rows.map(|line| line.split(',').collect::<Vec<_>>()) {
            let [case, resize, size, file, pixels] = row[..] else { panic!("{row:?}") };
            let path = dir.path().join(case);
            fs::write(&path, bytes(file)).unwrap();
            let (resize, size) = (resize.parse().unwrap(), size.parse().unwrap());
            let config = ImagesConfig { resize: Some(resize), ..config(1, size) };
            let (mut out, expected) = (vec![0; 3 * size * size], bytes(pixels));
            read(&path, &config, &mut out).unwrap();
            let apart: Vec<u8> = out.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).collect();
            let most = *apart.iter().max().unwrap();
            let mean = apart.iter().map(|&d| f64::from(d)).sum::<f64>() / apart.len() as f64;
            println!("{case}: apart by {most} at most, by {mean:.3} in the mean");
            // Pillow rounds rows before it scales columns, which moves up to a quarter of the values by a step. Decoders
            // of JPEG differ by a few steps where they spread halved chroma.
            let (within, on_average) = match case {
                "png" => (0, 0.0),
                _ if case.starts_with("png") => (1, 0.25),
                _ => (4, 0.6),
            };
            assert!(most <= within && mean <= on_average, "{case}: {most}, {mean}");
        }
    }

    #[test]
    fn classes_are_folders_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path(), &["Zebra", "ant", "bee"]);
        fs::write(dir.path().join("train/.hidden"), "no class").unwrap();
        fs::write(dir.path().join("train/ant/.hidden"), "no image").unwrap();
        let splits = ImageFolder.load(&request(dir.path(), config(3, 4))).unwrap();
        assert_eq!(splits.train.labels, [0, 0, 0, 1, 1, 1, 2, 2, 2]);
        assert_eq!(splits.test.labels, [0, 1, 2]);
        assert_eq!(splits.train.image(4)[..15], [1; 15]);
        assert_eq!(splits.train.image(4)[16..31], [1; 15]);
        assert_eq!((splits.classes, splits.validation.len()), (3, 0));
        assert!(splits.note.ends_with("test images of test"), "{}", splits.note);
        // Red is 0, 1 and 2 in 15 of 16 pixels, and what is left of 255 in one.
        let pixels: Vec<f64> = (0..9)
            .flat_map(|i| {
                let red = f64::from(i / 3);
                std::iter::repeat_n(red, 15).chain([255.0 - red])
            })
            .collect();
        let mean = pixels.iter().sum::<f64>() / 144.0;
        let variance = pixels.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / 144.0;
        assert!((f64::from(splits.mean[0]) - mean / 255.0).abs() < 1e-7);
        assert!((f64::from(splits.std[0]) - variance.sqrt() / 255.0).abs() < 1e-7);
    }

    #[test]
    fn given_statistics_are_taken_and_a_flat_channel_needs_them() {
        let dir = tempfile::tempdir().unwrap();
        for part in ["train", "test"] {
            let path = dir.path().join(part).join("a/a.png");
            png(&path, [128; 3]);
            RgbImage::from_pixel(4, 4, image::Rgb([9; 3])).save(&path).unwrap();
        }
        assert!(refused(dir.path(), 1).contains("give `mean` and `std`"));
        let images = ImagesConfig { mean: Some([0.5; 3]), std: Some([0.25; 3]), ..config(1, 4) };
        let splits = ImageFolder.load(&request(dir.path(), images)).unwrap();
        assert_eq!((splits.mean, splits.std), (vec![0.5; 3], vec![0.25; 3]));
    }

    #[test]
    fn validation_comes_from_its_folder_or_from_training() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path(), &["a", "b"]);
        let load = |limit| {
            let request = request(dir.path(), config(2, 4));
            let splits = ImageFolder.load(&DataRequest { validation: 0.5, limit, ..request });
            let Splits { train, validation, test, .. } = splits.unwrap();
            [train, validation, test].map(|images| images.len())
        };
        assert_eq!(load(None), [3, 3, 2]);
        assert_eq!(load(Some(1)), [1, 3, 2]);
        fs::rename(dir.path().join("test"), dir.path().join("val")).unwrap();
        assert_eq!(load(None), [3, 3, 2]);
        png(&dir.path().join("test/a/1.png"), [5; 3]);
        png(&dir.path().join("test/b/1.png"), [6; 3]);
        png(&dir.path().join("test/b/2.png"), [7; 3]);
        assert_eq!(load(None), [6, 2, 3]);
        assert_eq!(load(Some(4)), [4, 2, 3]);
    }

    #[test]
    fn a_folder_is_looked_for_in_the_data_folder_first() {
        let dir = tempfile::tempdir().unwrap();
        folder(&dir.path().join("mine"), &["a", "b"]);
        let images = ImagesConfig { folder: Some("mine".into()), ..config(2, 4) };
        assert_eq!(ImageFolder.load(&request(dir.path(), images)).unwrap().train.len(), 6);
        let images = ImagesConfig { folder: Some(dir.path().join("mine")), ..config(2, 4) };
        let request = request(Path::new("/nowhere"), images);
        assert_eq!(ImageFolder.load(&request).unwrap().train.len(), 6);
    }

    #[test]
    fn what_is_wrong_in_a_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(
            refused(dir, 2),
            "DIR: has no folder `train`, in which each class has a folder of its images"
        );
        fs::create_dir(dir.join("train")).unwrap();
        assert_eq!(refused(dir, 2), "DIR/train: has no folder of a class");
        png(&dir.join("train/a/1.png"), [1; 3]);
        assert!(refused(dir, 2).starts_with("DIR: has no folder `test` or `val`, in which"));
        folder(dir, &["a", "b"]);
        assert_eq!(
            refused(dir, 3),
            "DIR/train: holds folders of 2 classes, and the recipe says `classes = 3`"
        );
        let wrong = |path: &str, message: &str| {
            fs::write(dir.join(path), "GIF89a").unwrap();
            let text = refused(dir, 2);
            assert!(text.starts_with(&format!("DIR/{path}: {message}")), "{text}");
            fs::remove_file(dir.join(path)).unwrap();
        };
        wrong("train/list.txt", "lies beside the folders of classes");
        wrong("train/a/list.txt", "is no image by its name");
        wrong("test/b/9.jpg", "is no JPEG or PNG image that can be read: ");
        fs::create_dir_all(dir.join("train/a/images")).unwrap();
        assert!(refused(dir, 2).starts_with("DIR/train/a/images: is a folder in the folder"));
        fs::remove_dir(dir.join("train/a/images")).unwrap();
        fs::create_dir(dir.join("test/c")).unwrap();
        assert_eq!(refused(dir, 2), "DIR/test/c: is the folder of a class and holds no image");
        png(&dir.join("test/c/1.png"), [1; 3]);
        assert_eq!(
            refused(dir, 2),
            "DIR/train: has no folder of the class `c`, which DIR/test has"
        );
        fs::remove_dir_all(dir.join("test/c")).unwrap();
        fs::remove_dir_all(dir.join("test/b")).unwrap();
        assert_eq!(
            refused(dir, 2),
            "DIR/test: has no folder of the class `b`, which DIR/train has"
        );
    }

    #[test]
    fn altered_images_are_answered() {
        let text = include_str!("../../tests/golden/images.csv");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let (mut out, config) = (vec![0; 3 * 8 * 8], config(1, 8));
        let (mut accepted, mut refused) = (0, 0);
        for row in text.lines().filter(|line| !line.starts_with('#')).skip(1) {
            let whole = bytes(row.split(',').nth(3).unwrap());
            for round in 0..60 {
                let dice = scrimp_codec::philox::Stream::new(8, 9).at_step(round);
                let [place, value, cut, len] = dice.words(0);
                let mut bytes = whole.clone();
                let at = place as usize % bytes.len();
                bytes[at] = (value >> 24) as u8;
                if cut % 3 == 0 {
                    bytes.truncate(len as usize % bytes.len());
                }
                fs::write(&path, bytes).unwrap();
                match read(&path, &config, &mut out) {
                    Ok(()) => accepted += 1,
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(accepted > 20 && refused > 20, "{accepted} accepted, {refused} refused");
    }

    #[test]
    fn a_size_that_nobody_can_hold_is_refused() {
        let mut out = vec![0; 3 * 8 * 8];
        for (width, height) in [(1, 30_000), (30_000, 1)] {
            let image = RgbImage::new(width, height);
            let wide = ImagesConfig { resize: Some(60), ..config(1, 8) };
            let error = planes(image, &wide, &mut out).unwrap_err().to_string();
            assert!(error.contains("too long and thin"), "{error}");
        }
        // A header of 65,500 x 65,500 pixels, without them.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bomb.png");
        png(&path, [1; 3]);
        let mut bytes = fs::read(&path).unwrap();
        bytes[16..24].copy_from_slice(&[0, 0, 0xFF, 0xDC, 0, 0, 0xFF, 0xDC]);
        fs::write(&path, bytes).unwrap();
        assert!(read(&path, &config(1, 8), &mut out).is_err());
    }

    #[test]
    fn options_without_sense_are_named() {
        let key = |images: ImagesConfig| images.complaint().map(|(key, _)| key);
        assert_eq!(key(config(256, 1)), None);
        for (classes, size, expected) in [(0, 8, "classes"), (257, 8, "classes"), (2, 0, "size")] {
            assert_eq!(key(config(classes, size)), Some(expected));
        }
        assert_eq!(key(ImagesConfig { resize: Some(7), ..config(2, 8) }), Some("resize"));
        assert_eq!(key(ImagesConfig { mean: Some([0.5; 3]), ..config(2, 8) }), Some("mean"));
        assert_eq!(key(ImagesConfig { std: Some([0.5; 3]), ..config(2, 8) }), Some("std"));
        let zero = ImagesConfig { mean: Some([0.5; 3]), std: Some([0.0; 3]), ..config(2, 8) };
        assert_eq!(key(zero), Some("std"));
        let digits = DataRequest { images: Some(config(2, 8)), ..DataRequest::default() };
        let error = Digits.load(&digits).unwrap_err().to_string();
        assert!(error.contains("[images] has no effect: digits"), "{error}");
        let error = ImageFolder.load(&DataRequest::default()).unwrap_err().to_string();
        assert!(error.contains("needs a table [images]"), "{error}");
    }

    /// The files of a tar archive, of which names are short and nothing else is in it.
    fn tar(mut source: impl io::Read, mut file: impl FnMut(&str, Vec<u8>)) {
        let mut header = [0; 512];
        while source.read_exact(&mut header).is_ok() && header[0] != 0 {
            let text = |from: usize, len: usize| {
                let field = str::from_utf8(&header[from..from + len]).unwrap();
                field.trim_end_matches(['\0', ' ']).to_owned()
            };
            let (name, size) = (text(0, 100), usize::from_str_radix(&text(124, 12), 8).unwrap());
            let mut content = vec![0; size.next_multiple_of(512)];
            source.read_exact(&mut content).unwrap();
            content.truncate(size);
            file(&name, content);
        }
    }

    #[test]
    fn real_jpeg_files_are_those_that_pillow_decoded_with_scrimp_data_set() {
        with_real_data(|dir| {
            let packed = dir.join("cifar10_jpeg/train50k_jpegs.tar.zst");
            let Ok(file) = File::open(&packed) else {
                println!("skipped: there is no {}", packed.display());
                return;
            };
            let here = tempfile::tempdir().unwrap();
            // Names are CLASS/NUMBER.jpg.
            tar(unpack(BufReader::new(file), Packing::Zstd), |name, content| {
                let number: usize = name[2..6].parse().unwrap();
                let part = if number < 30 { "train" } else { "test" };
                if number < 40 {
                    let path = here.path().join(part).join(name);
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, content).unwrap();
                }
            });
            let splits = ImageFolder.load(&request(here.path(), config(10, 32))).unwrap();
            assert_eq!((splits.train.len(), splits.test.len()), (300, 100));
            let known = DataRequest { dir: Some(dir), validation: 0.0, ..DataRequest::default() };
            let known = Cifar10Jpeg.load(&known).unwrap().train;
            let mut most = 0;
            for index in 0..300 {
                // Records go through the classes, files through the numbers of one class first.
                let record = index % 30 * 10 + index / 30;
                assert_eq!(splits.train.labels[index], known.labels[record]);
                let (ours, theirs) = (splits.train.image(index), known.image(record));
                let apart = ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b));
                most = most.max(apart.max().unwrap());
            }
            println!("apart by {most} at most");
            assert!(most <= 6, "{most}");
        });
    }
}
