//! Data for a trained model: arrays, images and the data sets of training, as the inputs that a model asks for.

use std::path::{Path, PathBuf};

use scrimp_files::{Dtype, FileError, Tensor, open, read_npz};
use scrimp_onnx::{Data, Elements, Model, Value};
use scrimp_train::data::{
    DataError, DataRequest, Images, ImagesConfig, Loader, find, read_cifar10, read_image_folder,
};

/// Where data comes from, and how pixels become numbers.
#[derive(Clone, Debug, Default)]
pub struct FeedRequest {
    /// A file (`.npz`, `.npy`, CIFAR-10 records in `.bin`), a folder of images, or the name of a data set.
    pub source: String,
    /// The folder of data sets.
    pub dir: Option<PathBuf>,
    /// Whether the test images of a data set are meant, not those to train on.
    pub test: bool,
    /// What is subtracted from each channel, in units of 1/255 of a pixel; 0 where it is `None`.
    pub mean: Option<Vec<f32>>,
    /// What each channel is divided by.
    pub std: Option<Vec<f32>>,
    /// Whether pixels stay 0 to 255.
    pub raw: bool,
    /// Most samples.
    pub samples: Option<usize>,
}

/// Why there is no data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Images could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The data is none for this model.
    #[error("{source_name}: {reason}")]
    Unfit {
        /// The source.
        source_name: String,
        /// What is wrong.
        reason: String,
    },
}

/// Samples of a model's inputs.
#[derive(Debug)]
pub struct Feed {
    content: Content,
    samples: usize,
    about: String,
}

#[derive(Debug)]
enum Content {
    Images { input: String, images: Images, mean: Vec<f32>, std: Vec<f32>, labelled: bool },
    Arrays { inputs: Vec<(String, Value)>, labels: Option<Vec<u32>> },
}

/// Names under which an archive holds the classes.
const LABEL_NAMES: [&str; 4] = ["labels", "label", "y", "targets"];

impl Feed {
    /// Opens the source for a model.
    ///
    /// # Errors
    /// [`FeedError`], naming the source and what the model asks for.
    pub fn open(request: &FeedRequest, model: &Model) -> Result<Self, FeedError> {
        let path = Path::new(&request.source);
        let unfit =
            |reason: String| FeedError::Unfit { source_name: request.source.clone(), reason };
        let inputs: Vec<(String, Option<Vec<Option<i64>>>)> = model
            .graph()
            .required_inputs()
            .map(|input| (input.name().to_owned(), input.tensor_type().and_then(|t| t.1)))
            .collect();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if path.is_file() && matches!(extension, "npz" | "npy") {
            let tensors =
                if extension == "npz" { read_npz(path)? } else { open(path)?.read_all()?.tensors };
            let names: Vec<&str> = inputs.iter().map(|(name, _)| name.as_str()).collect();
            return Self::of_arrays(tensors, &names, request).map_err(unfit);
        }
        let [(input, dims)] = inputs.as_slice() else {
            return Err(unfit(format!(
                "images are one input, and the model has {}: an .npz file can hold all of them",
                inputs.len()
            )));
        };
        let side = dims.as_ref().and_then(|dims| dims.get(2).copied().flatten());
        let (images, labelled, from_set) = if path.is_dir() {
            let size = side.and_then(|side| usize::try_from(side).ok()).ok_or_else(|| {
                unfit(format!("input `{input}` does not say how large images are"))
            })?;
            let config = ImagesConfig {
                folder: None,
                classes: 1,
                size,
                resize: None,
                mean: None,
                std: None,
            };
            let (images, labelled) = read_image_folder(path, &config)?;
            (images, labelled, None)
        } else if path.is_file() {
            (read_cifar10(path)?, true, None)
        } else if path.components().count() > 1 || !extension.is_empty() {
            return Err(unfit("no such file or folder".into()));
        } else {
            let set = find(&request.source)?;
            let data =
                DataRequest { dir: request.dir.clone(), validation: 0.0, ..Default::default() };
            let splits = set.load(&data)?;
            let images = if request.test { splits.test } else { splits.train };
            (images, true, Some((splits.mean, splits.std)))
        };
        let (mean, std) =
            normalization(request, model, from_set, images.channels).map_err(unfit)?;
        let shape = [images.channels, images.height, images.width];
        let fits = dims.as_ref().is_none_or(|dims| {
            dims.len() == 4
                && dims[1..]
                    .iter()
                    .zip(shape)
                    .all(|(dim, size)| dim.is_none_or(|dim| usize::try_from(dim) == Ok(size)))
        });
        if !fits {
            return Err(unfit(format!(
                "images are {shape:?}, and input `{input}` of the model wants {}",
                shape_text(dims.as_deref().unwrap_or_default())
            )));
        }
        let samples = request.samples.unwrap_or(usize::MAX).min(images.len());
        let about = format!(
            "{samples} images of {}x{}x{}, {}",
            shape[0],
            shape[1],
            shape[2],
            if request.raw {
                "pixels 0 to 255".into()
            } else {
                format!("mean {mean:?}, std {std:?}")
            }
        );
        let input = input.clone();
        Ok(Self { content: Content::Images { input, images, mean, std, labelled }, samples, about })
    }

    /// Arrays by name; a lone array is the lone input, whatever its name.
    fn of_arrays(
        tensors: Vec<Tensor>,
        names: &[&str],
        request: &FeedRequest,
    ) -> Result<Self, String> {
        let found: Vec<String> = tensors.iter().map(|t| format!("`{}`", t.name())).collect();
        let mut labels = None;
        let mut inputs = Vec::new();
        for tensor in tensors {
            let name = tensor.name().to_owned();
            if !names.contains(&name.as_str()) && LABEL_NAMES.contains(&name.as_str()) {
                labels = Some(classes(&tensor)?);
                continue;
            }
            inputs.push((name, value(&tensor)?));
        }
        if let ([name], [(given, _)]) = (names, inputs.as_mut_slice()) {
            (*name).clone_into(given);
        }
        for name in names {
            if !inputs.iter().any(|(given, _)| given == name) {
                return Err(format!(
                    "no array `{name}`, which the model asks for; there are {}",
                    found.join(", ")
                ));
            }
        }
        inputs.retain(|(given, _)| names.contains(&given.as_str()));
        let counts: Vec<usize> =
            inputs.iter().filter_map(|(_, v)| v.shape.first().copied()).collect();
        let samples = counts.iter().copied().max().unwrap_or(1);
        if let Some(labels) = &labels
            && labels.len() != samples
        {
            return Err(format!("{} labels for {samples} samples", labels.len()));
        }
        for (name, value) in &inputs {
            if value.shape.first().is_some_and(|&n| n != samples) {
                return Err(format!(
                    "array `{name}` has {} samples, and another has {samples}",
                    value.shape[0]
                ));
            }
        }
        let samples = samples.min(request.samples.unwrap_or(usize::MAX));
        let about = format!("{samples} samples of {}", names.join(", "));
        Ok(Self { content: Content::Arrays { inputs, labels }, samples, about })
    }

    /// What it holds, in a few words.
    pub fn about(&self) -> &str {
        &self.about
    }
}

/// Mean and standard deviation of each channel: as asked for, as the model says, or as the data set has them.
fn normalization(
    request: &FeedRequest,
    model: &Model,
    from_set: Option<(Vec<f32>, Vec<f32>)>,
    channels: usize,
) -> Result<(Vec<f32>, Vec<f32>), String> {
    if request.raw {
        return Ok((vec![0.0; channels], vec![1.0 / 255.0; channels]));
    }
    let of_model = |key: &str| -> Option<Vec<f32>> {
        let entry = model.proto.metadata_props.iter().find(|entry| entry.key() == key)?;
        entry.value().trim_matches(['[', ']']).split(',').map(|v| v.trim().parse().ok()).collect()
    };
    let (set_mean, set_std) = from_set.unzip();
    let pick = |asked: &Option<Vec<f32>>, key: &str, set: Option<Vec<f32>>, usual: f32| {
        asked.clone().or_else(|| of_model(key)).or(set).unwrap_or_else(|| vec![usual; channels])
    };
    let mut mean = pick(&request.mean, "mean", set_mean, 0.0);
    let mut std = pick(&request.std, "std", set_std, 1.0);
    for values in [&mut mean, &mut std] {
        if values.len() == 1 {
            *values = vec![values[0]; channels];
        }
        if values.len() != channels {
            return Err(format!(
                "{} values for mean or std, and images have {channels} channels",
                values.len()
            ));
        }
    }
    if !std.iter().all(|v| v.is_finite() && *v > 0.0) || !mean.iter().all(|v| v.is_finite()) {
        return Err(format!(
            "mean {mean:?} and std {std:?}: numbers are needed, those of std above 0"
        ));
    }
    Ok((mean, std))
}

fn shape_text(dims: &[Option<i64>]) -> String {
    let dims: Vec<String> = dims.iter().map(|d| d.map_or("?".into(), |d| d.to_string())).collect();
    format!("[{}]", dims.join(", "))
}

fn value(tensor: &Tensor) -> Result<Value, String> {
    let bytes = tensor.bytes();
    let data = match tensor.dtype() {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => Elements::F32(tensor.to_f32().unwrap_or_default()),
        Dtype::F64 => {
            Elements::F64(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect())
        }
        Dtype::I64 => {
            Elements::I64(bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect())
        }
        Dtype::I32 => {
            Elements::I32(bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect())
        }
        Dtype::U8 => Elements::U8(bytes.to_vec()),
        Dtype::I8 => Elements::I8(bytes.iter().map(|b| b.cast_signed()).collect()),
        Dtype::Bool => Elements::Bool(bytes.iter().map(|&b| b != 0).collect()),
        other => {
            return Err(format!("array `{}` is {other}, which models do not read", tensor.name()));
        }
    };
    Ok(Value { shape: tensor.shape().to_vec(), data })
}

fn classes(tensor: &Tensor) -> Result<Vec<u32>, String> {
    let wrong = || format!("array `{}` of labels holds no whole numbers from 0", tensor.name());
    let values: Vec<i64> = match value(tensor)?.data {
        Elements::I64(v) => v,
        Elements::I32(v) => v.into_iter().map(i64::from).collect(),
        Elements::U8(v) => v.into_iter().map(i64::from).collect(),
        _ => return Err(wrong()),
    };
    values.into_iter().map(|v| u32::try_from(v).map_err(|_| wrong())).collect()
}

impl Data for Feed {
    fn len(&self) -> usize {
        self.samples
    }

    fn batch(&self, start: usize, end: usize) -> Result<Vec<(String, Value)>, String> {
        if end > self.samples {
            return Err(format!(
                "there are {} samples, and sample {end} is asked for",
                self.samples
            ));
        }
        match &self.content {
            Content::Images { input, images, mean, std, .. } => {
                let indices: Vec<u32> =
                    (start..end).filter_map(|at| u32::try_from(at).ok()).collect();
                let mut out = vec![0.0; indices.len() * images.image_len()];
                Loader::new(images, mean, std).fill(&indices, 0, &mut out);
                let shape = vec![indices.len(), images.channels, images.height, images.width];
                Ok(vec![(input.clone(), Value::f32(shape, out))])
            }
            Content::Arrays { inputs, .. } => {
                Ok(inputs.iter().map(|(name, v)| (name.clone(), rows(v, start, end))).collect())
            }
        }
    }

    fn labels(&self, start: usize, end: usize) -> Option<Vec<u32>> {
        match &self.content {
            Content::Images { images, labelled, .. } => labelled
                .then(|| images.labels[start..end].iter().map(|&label| label.into()).collect()),
            Content::Arrays { labels, .. } => labels.as_ref().map(|l| l[start..end].to_vec()),
        }
    }
}

/// Some samples of an array; a scalar stands for every sample.
fn rows(value: &Value, start: usize, end: usize) -> Value {
    let Some(&count) = value.shape.first() else { return value.clone() };
    macro_rules! cut {
        ($variant:ident, $values:expr) => {{
            let len = $values.len() / count.max(1);
            Elements::$variant($values[start * len..end * len].to_vec())
        }};
    }
    let data = match &value.data {
        Elements::F32(v) => cut!(F32, v),
        Elements::F64(v) => cut!(F64, v),
        Elements::I64(v) => cut!(I64, v),
        Elements::I32(v) => cut!(I32, v),
        Elements::I8(v) => cut!(I8, v),
        Elements::U8(v) => cut!(U8, v),
        Elements::Bool(v) => cut!(Bool, v),
    };
    let mut shape = value.shape.clone();
    shape[0] = end - start;
    Value { shape, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(name, shape.to_vec(), Dtype::F32, values).unwrap()
    }

    fn labels(values: &[i64]) -> Tensor {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new("labels", vec![values.len()], Dtype::I64, bytes).unwrap()
    }

    fn feed(tensors: Vec<Tensor>, names: &[&str]) -> Result<Feed, String> {
        Feed::of_arrays(tensors, names, &FeedRequest::default())
    }

    #[test]
    fn arrays_are_cut_into_samples_with_their_labels() {
        let feed =
            feed(vec![tensor("x", &[3, 2], &[0., 1., 2., 3., 4., 5.]), labels(&[7, 8, 9])], &["x"]);
        let feed = feed.unwrap();
        assert_eq!(feed.len(), 3);
        assert_eq!(
            feed.batch(1, 3).unwrap(),
            [("x".into(), Value::f32([2, 2], vec![2., 3., 4., 5.]))]
        );
        assert_eq!(feed.labels(1, 3), Some(vec![8, 9]));
        assert!(feed.batch(2, 4).unwrap_err().contains("3 samples"));
    }

    #[test]
    fn a_lone_array_is_the_lone_input_and_what_does_not_fit_is_named() {
        let lone = feed(vec![tensor("anything", &[2, 1], &[1., 2.])], &["image"]).unwrap();
        assert_eq!(lone.batch(0, 1).unwrap()[0].0, "image");
        let x = || tensor("x", &[2, 1], &[1., 2.]);
        let missing = feed(vec![x()], &["x", "state"]).unwrap_err();
        assert!(missing.contains("`state`") && missing.contains("`x`"), "{missing}");
        let ragged = feed(vec![x(), tensor("y", &[3], &[0.; 3])], &["x", "y"]).unwrap_err();
        assert!(ragged.contains("2 samples") && ragged.contains('3'), "{ragged}");
        assert!(feed(vec![x(), labels(&[1])], &["x"]).unwrap_err().contains("1 labels for 2"));
        assert!(feed(vec![x(), labels(&[1, -1])], &["x"]).unwrap_err().contains("whole numbers"));
    }
}
