//! Recipes: one file that says what to train, on what, and in which formats.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use scrimp_train::compute::Compute;
use scrimp_train::data::{self, Augment, Form, ImagesConfig};
use scrimp_train::exchange::ExchangeConfig;
use scrimp_train::loss_scale::LossScale;
use scrimp_train::models;
use scrimp_train::optimizers::{OptimizerConfig, Schedule};
use scrimp_train::phases;
use scrimp_train::plan::{Plan, PlanError, PlanRequest, Saved};
use scrimp_train::rules::{Layers, Rule};
use serde::{Deserialize, Serialize};

use crate::document::{self, Document};
pub use crate::document::{Place, RecipeError};
use crate::presets::{self, Preset};

/// What to train, on what, and in which formats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub struct Recipe {
    /// Seed of first values, data order, augmentation and stochastic rounding.
    #[serde(default = "seed")]
    pub seed: u32,
    /// The network.
    #[schemars(schema_with = "model_schema")]
    pub model: String,
    /// The data set.
    #[schemars(schema_with = "data_schema")]
    pub data: String,
    /// The images of `image-folder`, and the size that they are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ImagesConfig>,
    /// Epochs. With 0 the network is only evaluated, which makes sense with `weights`.
    pub epochs: u64,
    /// Images in a batch.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Share of the training images that is kept for validation, in [0, 1).
    #[serde(default = "validation")]
    pub validation: f32,
    /// Train on so many images only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// First values of parameters and buffers: a safetensors file or PyTorch checkpoint with the network's key names (a
    /// common prefix such as `module.` is dropped). Relative to the data folder, or else to the current one. Every key has
    /// to fit; `{ file = "...", fresh = "fc.*" }` names those that need not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightsConfig>,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes.
    #[serde(default)]
    pub schedule: Schedule,
    /// The largest 2-norm of all gradients together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// What the loss is multiplied by on the way back, and gradients of parameters are divided by after it: a number, or
    /// `dynamic` for one that halves and skips a step whenever a gradient is not finite, and doubles every 2000 steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// Share of the target that is spread over all classes, in [0, 1).
    #[serde(default)]
    pub label_smoothing: f32,
    /// Random changes to training images.
    #[serde(default)]
    pub augment: AugmentConfig,
    /// Among how many simulated workers each batch is divided, and what they send. Without it there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<ExchangeConfig>,
    /// In what the products of layers are computed: `auto` takes int8 where both factors are integers of up to 8 bits,
    /// bf16 where it holds both exactly, and f32 elsewhere; `emulate` is always f32, on the rounded values.
    #[serde(default)]
    pub compute: Compute,
    /// What layers keep of rounded tensors for the way back: `fast` keeps what costs no time, `packed` the bytes of their
    /// schemes. Both give the same bits.
    #[serde(default)]
    pub saved: Saved,
    /// Save a checkpoint after so many steps, besides the end of every epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_steps: Option<u64>,
    /// What is written down of steps, besides every epoch. It changes no number of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<TelemetryConfig>,
    /// Rules of a piece of hardware, before all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "preset_schema")]
    pub preset: Option<String>,
    /// Which tensors of which layers get which scheme. A later rule wins over an earlier one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quantize: Vec<Rule>,
    /// Runs that differ in their rules: each adds its own to those above. Without variants there is one run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variant: Vec<VariantConfig>,
}

/// Random changes to training images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AugmentConfig {
    /// Pad by so many pixels on every side and crop at random.
    #[serde(default)]
    pub crop: usize,
    /// Mirror half of the images.
    #[serde(default)]
    pub flip: bool,
}

/// What is written down of steps, besides every epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Compare every tensor with what it is rounded to, in the first step and every so many after it: signal to
    /// quantization noise, clipped values, values that become zero, and the range before rounding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Also write loss, learning rate, accuracy and what `every` finds to event files, which TensorBoard shows.
    #[serde(default)]
    pub tensorboard: bool,
}

impl TelemetryConfig {
    /// What is wrong with the keys, if anything: the key, why, and what would be valid.
    fn complaint(self) -> Option<[&'static str; 3]> {
        match self {
            Self { every: Some(0), .. } => {
                Some(["every", "no step is every 0th", "the least is 1"])
            }
            Self { every: None, tensorboard: false } => Some([
                "every",
                "the table says nothing",
                "give it `every = 100` or `tensorboard = true`, or leave it out",
            ]),
            _ => None,
        }
    }
}

/// The file of first values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a file, or { file = \"...\", fresh = \"fc.*\" }")]
pub enum WeightsConfig {
    /// Every tensor of the network comes from the file.
    All(PathBuf),
    /// Some of them do.
    Some(PartialWeights),
}

/// A file of first values, of which some are not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartialWeights {
    /// The file.
    pub file: PathBuf,
    /// By name: tensors of the network that begin with random values, whatever the file holds, and keys of the file that
    /// the network may lack. A pattern that matches neither is an error.
    pub fresh: Layers,
}

impl WeightsConfig {
    /// The file.
    pub fn file(&self) -> &Path {
        match self {
            Self::All(file) => file,
            Self::Some(some) => &some.file,
        }
    }

    /// Which tensors are not taken from it.
    pub fn fresh(&self) -> Option<&Layers> {
        match self {
            Self::All(_) => None,
            Self::Some(some) => Some(&some.fresh),
        }
    }
}

/// A run that differs from the others in its rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VariantConfig {
    /// Its name, which is also the name of its folder.
    pub name: String,
    /// In what its products are computed, if not as the recipe says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Compute>,
    /// What its layers keep for the way back, if not as the recipe says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<Saved>,
    /// Rules of a piece of hardware, in place of those of the recipe's own preset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "preset_schema")]
    pub preset: Option<String>,
    /// Rules after those of the recipe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quantize: Vec<Rule>,
}

fn model_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let names: Vec<&str> = models::MODELS.iter().map(|m| m.name).collect();
    schemars::json_schema!({ "type": "string", "enum": names })
}

fn data_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let names: Vec<&str> = data::DATA_SETS.iter().map(|d| d.name()).collect();
    schemars::json_schema!({ "type": "string", "enum": names })
}

fn preset_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let names: Vec<&str> = presets::PRESETS.iter().map(|p| p.name).collect();
    schemars::json_schema!({ "type": "string", "enum": names })
}

fn seed() -> u32 {
    7
}

fn batch() -> usize {
    64
}

fn validation() -> f32 {
    0.1
}

/// The name of the run without a rule, which every other is compared with.
pub const BASELINE: &str = "f32";

/// One run of a recipe, for each seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Its name.
    pub name: String,
    /// All of its rules.
    pub rules: Vec<Rule>,
    /// In what its products are computed.
    pub compute: Compute,
    /// What its layers keep for the way back.
    pub saved: Saved,
    /// How many of the rules are those of a preset, and then of the whole recipe.
    before: [usize; 2],
    /// Which variant of the recipe it is, and whether the preset is its own.
    own: Option<(usize, bool)>,
}

/// The largest batch. Sizes are counted in bytes of whole batches, and have to fit into a word.
const MOST_IMAGES: usize = 1 << 24;

/// A recipe with its text, so that what is found wrong later can be shown where it stands.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// The recipe.
    pub recipe: Recipe,
    document: Document,
}

impl Source {
    /// Reads a recipe, TOML or (by its extension) JSON, and sets keys as `key=value`, where dots lead into tables.
    ///
    /// # Errors
    /// If the file cannot be read, or is no recipe.
    pub fn read(path: &Path, settings: &[String]) -> Result<Self, RecipeError> {
        let at = |e: RecipeError| RecipeError { path: Some(path.to_owned()), ..e };
        let mut document = Document::read::<Recipe>(path, "recipe")?;
        if !settings.is_empty() {
            document.text = with_settings(&document.text, settings).map_err(at)?;
            // Places are now those in the text after the changes, which is not the file's.
            document.shown.as_mut_os_string().push(" with --set");
        }
        Self::of(path, document)
    }

    /// The recipe in a text; `path` is the file that it is made from.
    ///
    /// # Errors
    /// If the text holds none that can be used.
    pub(crate) fn of(path: &Path, document: Document) -> Result<Self, RecipeError> {
        let source = Self { path: path.to_owned(), recipe: document.parse()?, document };
        source.check()?;
        Ok(source)
    }

    /// What can be said without the network: names, numbers.
    fn check(&self) -> Result<(), RecipeError> {
        let recipe = &self.recipe;
        let wrong = |keys: &[&str], message: String, help: Option<String>| {
            Err(RecipeError { help, ..self.error(keys, message) })
        };
        if let Err(e) = models::find(&recipe.model) {
            return wrong(&["model"], format!("unknown model `{}`", recipe.model), Some(e.help));
        }
        self.check_data()?;
        if recipe.batch == 0 {
            return wrong(
                &["batch"],
                "a batch of 0 images trains nothing".into(),
                Some("the least is 1".into()),
            );
        }
        if recipe.batch > MOST_IMAGES {
            let message = format!("a batch of {} images is too large", recipe.batch);
            return wrong(&["batch"], message, Some(format!("the most is {MOST_IMAGES}")));
        }
        if !(0.0..1.0).contains(&recipe.validation) {
            return wrong(&["validation"], format!("{} is not in [0, 1)", recipe.validation), None);
        }
        if !(0.0..1.0).contains(&recipe.label_smoothing) {
            return wrong(
                &["label_smoothing"],
                format!("{} is not in [0, 1)", recipe.label_smoothing),
                None,
            );
        }
        if recipe.limit == Some(0) {
            return wrong(
                &["limit"],
                "a limit of 0 leaves no image to train on".into(),
                Some("leave it out to train on all".into()),
            );
        }
        if recipe.checkpoint_steps == Some(0) {
            return wrong(
                &["checkpoint_steps"],
                "no checkpoint comes after 0 steps".into(),
                Some("the least is 1; without the key there is one after every epoch".into()),
            );
        }
        if let Some([key, why, help]) = recipe.telemetry.and_then(TelemetryConfig::complaint) {
            return wrong(&["telemetry", key], why.into(), Some(help.into()));
        }
        if recipe.clip_norm.is_some_and(|c| !(c.is_finite() && c > 0.0)) {
            return wrong(
                &["clip_norm"],
                "a norm is a number above 0".into(),
                Some("leave it out to clip nothing".into()),
            );
        }
        if let Some((key, why)) = recipe.loss_scale.as_ref().and_then(LossScale::complaint) {
            let keys = ["loss_scale", key];
            return wrong(if key.is_empty() { &keys[..1] } else { &keys }, why, None);
        }
        if let Some((key, why)) = recipe.optimizer.complaint() {
            return wrong(&["optimizer", key], why, None);
        }
        if let Some((key, why)) = recipe.exchange.as_ref().and_then(ExchangeConfig::complaint) {
            return wrong(&["exchange", key], why, None);
        }
        if let Some((key, why)) = recipe.schedule.complaint() {
            return wrong(&["schedule", key], why, None);
        }
        self.check_preset(&["preset"], recipe.preset.as_ref())?;
        for (i, v) in recipe.variant.iter().enumerate() {
            let place = ["variant", &i.to_string(), "name"].map(str::to_owned);
            let keys: Vec<&str> = place.iter().map(String::as_str).collect();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
            if v.name.is_empty() || v.name.starts_with('.') || !v.name.chars().all(plain) {
                let help =
                    "it is also a folder's name: letters, digits, `-`, `_`, `.` and `+`".to_owned();
                return wrong(&keys, format!("`{}` cannot name a variant", v.name), Some(help));
            }
            self.check_preset(&["variant", &i.to_string(), "preset"], v.preset.as_ref())?;
            let has_rules = v.preset.is_some()
                || recipe.preset.is_some()
                || !recipe.quantize.is_empty()
                || !v.quantize.is_empty();
            if v.name == BASELINE && has_rules {
                let message =
                    format!("`{BASELINE}` is the run without rules, and this one has some");
                return wrong(&keys, message, Some("give it another name".into()));
            }
            if recipe.variant[..i].iter().any(|w| w.name == v.name) {
                return wrong(&keys, format!("two variants are called `{}`", v.name), None);
            }
        }
        Ok(())
    }

    /// The data set, what its images have in common, and whether they can be augmented.
    fn check_data(&self) -> Result<(), RecipeError> {
        let recipe = &self.recipe;
        let set = data::find(&recipe.data).map_err(|e| self.error(&["data"], e.to_string()))?;
        if let Some((key, why)) = recipe.images.as_ref().and_then(ImagesConfig::complaint) {
            return Err(self.error(&["images", key], why));
        }
        let key = if recipe.images.is_some() { "images" } else { "data" };
        let form = set.form(recipe.images.as_ref());
        let Form { image_shape, .. } = form.map_err(|e| self.error(&[key], e.to_string()))?;
        let fits = recipe.augment().check(image_shape);
        fits.map_err(|e| self.error(&["augment", "crop"], e.to_string()))
    }

    fn check_preset(&self, keys: &[&str], name: Option<&String>) -> Result<(), RecipeError> {
        let Some(name) = name.filter(|name| presets::find(name).is_none()) else { return Ok(()) };
        let names = || presets::PRESETS.iter().map(|p| p.name);
        let help = match scrimp_codec::nearest(name, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("presets are {}", names().collect::<Vec<_>>().join(", ")),
        };
        let error = self.error(keys, format!("unknown preset `{name}`"));
        Err(RecipeError { help: Some(help), ..error })
    }

    /// An error that points at a key.
    pub fn error(&self, keys: &[&str], message: String) -> RecipeError {
        self.document.error(keys, message)
    }

    /// The plan of a variant; rules that do not fit are shown where they stand.
    ///
    /// # Errors
    /// If the rules do not fit the network.
    pub fn plan(&self, variant: &Variant, device: &str) -> Result<Plan, RecipeError> {
        variant.plan(&self.recipe, device).map_err(|e| {
            let mut keys: Vec<String> = Vec::new();
            if let Some((rule, key)) = e.place() {
                let [preset, shared] = variant.before;
                let in_variant = match variant.own {
                    Some((v, has_preset))
                        if rule > preset + shared || rule <= preset && has_preset =>
                    {
                        keys.extend(["variant".into(), v.to_string()]);
                        true
                    }
                    _ => false,
                };
                if rule <= preset {
                    keys.push("preset".into());
                } else {
                    let first = if in_variant { preset + shared } else { preset };
                    keys.extend(["quantize".into(), (rule - first - 1).to_string(), key.into()]);
                }
            }
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            RecipeError { help: e.help(), ..self.error(&keys, e.to_string()) }
        })
    }
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// If the text is no recipe; the place is shown.
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        document::parse(text)
    }

    /// The recipe as TOML, with every default written out.
    ///
    /// # Errors
    /// If a value has no TOML form, which a recipe that was read never has.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        document::to_toml(self)
    }

    /// The runs of this recipe; with `baseline` one without any rule first.
    pub fn variants(&self, baseline: bool) -> Vec<Variant> {
        let rules = |preset: Option<&String>| {
            preset.and_then(|name| presets::find(name)).map_or_else(Vec::new, Preset::rules)
        };
        let mut all: Vec<Variant> = if self.variant.is_empty() {
            let preset = rules(self.preset.as_ref());
            let before = [preset.len(), self.quantize.len()];
            let rules = [preset.as_slice(), &self.quantize].concat();
            let name = if rules.is_empty() { BASELINE } else { "quantized" };
            let Self { compute, saved, .. } = *self;
            vec![Variant { name: name.into(), rules, compute, saved, before, own: None }]
        } else {
            let named = |(i, v): (usize, &VariantConfig)| {
                let preset = rules(v.preset.as_ref().or(self.preset.as_ref()));
                Variant {
                    name: v.name.clone(),
                    rules: [preset.as_slice(), &self.quantize, &v.quantize].concat(),
                    compute: v.compute.unwrap_or(self.compute),
                    saved: v.saved.unwrap_or(self.saved),
                    before: [preset.len(), self.quantize.len()],
                    own: Some((i, v.preset.is_some())),
                }
            };
            self.variant.iter().enumerate().map(named).collect()
        };
        if baseline && !all.iter().any(|v| v.rules.is_empty()) {
            let (name, compute, saved) = (BASELINE.into(), self.compute, self.saved);
            let rules = Vec::new();
            all.insert(0, Variant { name, rules, compute, saved, before: [0; 2], own: None });
        }
        all
    }

    /// Whether layers of some run keep bytes for the way back, so that memory counts more than time.
    pub fn saves_memory(&self) -> bool {
        let all = self.variant.iter().filter_map(|v| v.saved).chain([self.saved]);
        all.into_iter().any(|saved| saved == Saved::Packed)
    }

    /// The augmentation.
    pub fn augment(&self) -> Augment {
        Augment { crop_pad: self.augment.crop, flip: self.augment.flip }
    }
}

impl Variant {
    /// What the network's tensors are held in.
    ///
    /// # Errors
    /// If the rules do not fit the network.
    ///
    /// # Panics
    /// If the recipe's model or data set does not exist, which [`Source::read`] has checked.
    pub fn plan(&self, recipe: &Recipe, device: &str) -> Result<Plan, Box<PlanError>> {
        let model = models::find(&recipe.model).expect("the model was checked");
        phases::check_end(&self.rules, recipe.epochs, None)?;
        (model.plan)(&self.request(recipe, device)).map_err(Box::new)
    }

    pub(crate) fn request(&self, recipe: &Recipe, device: &str) -> PlanRequest {
        let set = data::find(&recipe.data).expect("the data set was checked");
        let Form { image_shape, classes } =
            set.form(recipe.images.as_ref()).expect("the images were checked");
        PlanRequest {
            image: image_shape,
            classes,
            batch: recipe.batch,
            rules: self.rules.clone(),
            device: device.to_owned(),
            compute: self.compute,
            optimizer: recipe.optimizer.clone(),
            exchange: recipe.exchange.clone(),
            saved: self.saved,
        }
    }
}

/// The text with keys set.
fn with_settings(text: &str, settings: &[String]) -> Result<String, RecipeError> {
    let mut table: toml::Table = document::parse(text)?;
    for text in settings {
        let (key, value) = document::setting(text)?;
        document::set(&mut table, &key, value)
            .map_err(|message| RecipeError::plain(format!("`--set {text}`: {message}")))?;
    }
    document::to_toml(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
model = "lenet"
data = "digits"
epochs = 3

[optimizer]
name = "adam"
lr = 0.001

[[quantize]]
layers = "*"
w = "int8"

[[variant]]
name = "a"
[[variant.quantize]]
layers = "fc*"
x = "int4"
"#;

    fn source(text: &str) -> Result<Source, RecipeError> {
        let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        std::fs::write(file.path(), text).unwrap();
        Source::read(file.path(), &[])
    }

    fn refused(from: &str, to: &str) -> RecipeError {
        assert!(TEXT.contains(from), "{from}");
        source(&TEXT.replace(from, to)).unwrap_err()
    }

    #[test]
    fn a_recipe_survives_its_own_toml() {
        let recipe = Recipe::from_toml(TEXT).unwrap();
        assert_eq!(Recipe::from_toml(&recipe.to_toml().unwrap()).unwrap(), recipe);
        assert_eq!(
            recipe.variants(true).iter().map(|v| v.name.as_str()).collect::<Vec<_>>(),
            ["f32", "a"]
        );
        assert_eq!(recipe.variants(true)[1].rules.len(), 2);
    }

    #[test]
    fn json_is_taken_too() {
        let recipe = Recipe::from_toml(TEXT).unwrap();
        let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
        std::fs::write(file.path(), serde_json::to_string(&recipe).unwrap()).unwrap();
        assert_eq!(Source::read(file.path(), &[]).unwrap().recipe, recipe);
    }

    #[test]
    fn errors_show_the_place_and_the_nearest_word() {
        for (from, to, line, message, help) in [
            ("epochs = 3", "epoch = 3", 4, "unknown key `epoch`", "did you mean `epochs`?"),
            ("\"lenet\"", "\"lenett\"", 2, "unknown model `lenett`", "did you mean `lenet`?"),
            (
                "\"digits\"",
                "\"digit\"",
                3,
                "no data set is called `digit`, did you mean `digits`?",
                "",
            ),
            ("\"int8\"", "\"itn8\"", 12, "unknown format `itn8`", "did you mean `int8`?"),
            ("\"int8\"", "\"int17\"", 12, "`int17`: an integer has 1 to 16 bits", "int16"),
            ("\"adam\"", "\"adm\"", 7, "unknown value `adm`", "did you mean `adam`?"),
            ("lr = 0.001", "lr = -1.0", 8, "no learning rate", ""),
            ("name = \"a\"", "name = \"../a\"", 15, "cannot name a variant", "letters"),
        ] {
            let error = refused(from, to);
            let text = error.to_string();
            assert_eq!(error.place.as_ref().map(|p| p.line), Some(line), "{text}");
            assert!(text.contains(message) && text.contains(help) && text.contains('^'), "{text}");
        }
    }

    #[test]
    fn presets_come_before_all_rules_and_are_checked() {
        let head = TEXT.replace("epochs = 3", "epochs = 3\npreset = \"h100-fp8\"");
        let recipe = source(&head).unwrap().recipe;
        let rules = &recipe.variants(false)[0].rules;
        assert_eq!(rules.len(), 3);
        assert_eq!(rules[0].dy.as_ref().unwrap().to_string(), "e5m2/tensor");
        let own = head.replace("name = \"a\"", "name = \"a\"\npreset = \"weights-only\"");
        let rules = &source(&own).unwrap().recipe.variants(false)[0].rules;
        assert!(rules[0].dy.is_none());
        let error = source(&head.replace("h100-fp8", "h100-fp9")).unwrap_err();
        assert_eq!(error.place.as_ref().map(|p| p.line), Some(5));
        assert!(error.to_string().contains("did you mean `h100-fp8`?"), "{error}");
        // Errors of later rules stand where they did.
        let source = source(&head.replace("\"fc*\"", "\"fd*\"")).unwrap();
        let error = source.plan(&source.recipe.variants(false)[0], "flex").unwrap_err();
        assert_eq!(error.place.as_ref().map(|p| (p.line, p.column)), Some((18, 10)), "{error}");
    }

    #[test]
    fn a_rule_that_does_not_fit_is_shown_where_it_stands() {
        let source = source(&TEXT.replace("\"fc*\"", "\"fd*\"")).unwrap();
        let variant = &source.recipe.variants(false)[0];
        let error = source.plan(variant, "flex").unwrap_err();
        assert_eq!(error.place.as_ref().map(|p| (p.line, p.column)), Some((17, 10)), "{error}");
        assert!(error.to_string().contains("rule 2 matches no layer"), "{error}");
    }

    #[test]
    fn keys_are_set_through_tables_and_lists() {
        let settings = [
            "epochs=9",
            "optimizer.lr=0.5",
            "data=mnist",
            "quantize.0.w=int4",
            "augment.flip=true",
        ];
        let text = with_settings(TEXT, &settings.map(String::from)).unwrap();
        let recipe = Recipe::from_toml(&text).unwrap();
        assert_eq!((recipe.epochs, recipe.data.as_str(), recipe.augment.flip), (9, "mnist", true));
        assert_eq!(recipe.optimizer.learning_rate(), 0.5);
        assert_eq!(recipe.quantize[0].w.as_ref().unwrap().to_string(), "int4");
        for bad in ["epochs", "quantize.7.w=int4", "model.x=1"] {
            assert!(with_settings(TEXT, &[bad.into()]).is_err(), "{bad}");
        }
    }
}
