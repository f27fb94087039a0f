//! Recipes: one file that says what to train, on what, and in which formats.

use std::fmt;
use std::ops;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use scrimp_train::compute::Compute;
use scrimp_train::data::{self, Augment};
use scrimp_train::exchange::ExchangeConfig;
use scrimp_train::models;
use scrimp_train::optimizers::{OptimizerConfig, Schedule};
use scrimp_train::plan::{Plan, PlanError, PlanRequest};
use scrimp_train::rules::Rule;
use serde::{Deserialize, Serialize};

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
    /// common prefix such as `module.` is dropped). Relative to the data folder, or else to the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes.
    #[serde(default)]
    pub schedule: Schedule,
    /// The largest 2-norm of all gradients together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
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
    /// Save a checkpoint after so many steps, besides the end of every epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_steps: Option<u64>,
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

/// A run that differs from the others in its rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VariantConfig {
    /// Its name, which is also the name of its folder.
    pub name: String,
    /// In what its products are computed, if not as the recipe says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Compute>,
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
    /// Where its own rules begin, and which variant of the recipe it is.
    own: Option<(usize, usize)>,
}

/// A recipe that cannot be used. Prints the place in the file, a caret, and what would be valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipeError {
    /// The file, where there is one.
    pub path: Option<PathBuf>,
    /// The place: line and column, from 1, and the text of the line.
    pub place: Option<Place>,
    /// What is wrong.
    pub message: String,
    /// What would be valid.
    pub help: Option<String>,
}

/// A place in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Characters that are wrong.
    pub width: usize,
    /// The whole line.
    pub text: String,
}

impl Place {
    fn new(text: &str, span: ops::Range<usize>) -> Self {
        let start = text.floor_char_boundary(span.start.min(text.len()));
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let end = text.floor_char_boundary(span.end.min(line_end)).max(start);
        Self {
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end].chars().count().max(1),
            text: text[line_start..line_end].trim_end().to_owned(),
        }
    }
}

impl Place {
    /// Points at the part of a string that the string's own error points at: `message` shows the string on its second
    /// line and carets below it.
    fn narrow(&mut self, message: &str) {
        let [_, text, carets, ..] = message.lines().collect::<Vec<_>>()[..] else { return };
        let (Some(text), Some(carets)) = (text.strip_prefix("  "), carets.strip_prefix("  "))
        else {
            return;
        };
        let value: String = self.text.chars().skip(self.column - 1).take(self.width).collect();
        // An escape in the string would move what follows.
        if value.get(1..value.len().saturating_sub(1)) == Some(text) && carets.ends_with('^') {
            self.width = carets.trim_start().len();
            self.column += 1 + carets.len() - self.width;
        }
    }
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let path = self.path.as_ref().map_or("recipe".into(), |p| p.display().to_string());
        match &self.place {
            Some(Place { line, column, width, text }) => {
                let margin = line.to_string().len();
                write!(f, "\n{:margin$} ┌─ {path}:{line}:{column}", "")?;
                write!(f, "\n{line} │ {text}")?;
                write!(
                    f,
                    "\n{:margin$} │ {:indent$}{}",
                    "",
                    "",
                    "^".repeat(*width),
                    indent = column - 1
                )?;
            }
            None => write!(f, "\n  in {path}")?,
        }
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for RecipeError {}

/// The largest batch. Sizes are counted in bytes of whole batches, and have to fit into a word.
const MOST_IMAGES: usize = 1 << 24;

/// A recipe with its text, so that what is found wrong later can be shown where it stands.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// The recipe.
    pub recipe: Recipe,
    text: String,
    /// What errors call the text.
    shown: PathBuf,
}

impl Source {
    /// Reads a recipe, TOML or (by its extension) JSON, and sets keys as `key=value`, where dots lead into tables.
    ///
    /// # Errors
    /// If the file cannot be read, or is no recipe.
    pub fn read(path: &Path, settings: &[String]) -> Result<Self, RecipeError> {
        let at = |e: RecipeError| RecipeError { path: Some(path.to_owned()), ..e };
        let mut text = std::fs::read_to_string(path).map_err(|e| {
            let reason = match e.kind() {
                std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
                std::io::ErrorKind::InvalidData => "it is not text".to_owned(),
                std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
                _ => e.to_string(),
            };
            at(RecipeError::plain(format!("cannot read the recipe: {reason}")))
        })?;
        if path.extension().is_some_and(|e| e == "json") {
            text = json_to_toml(&text).map_err(at)?;
        }
        let mut shown = path.to_owned();
        if path.extension().is_some_and(|e| e == "json") {
            shown.as_mut_os_string().push(" as TOML");
        }
        if !settings.is_empty() {
            text = with_settings(&text, settings).map_err(at)?;
            // Places are now those in the text after the changes, which is not the file's.
            shown.as_mut_os_string().push(" with --set");
        }
        let recipe =
            Recipe::from_toml(&text).map_err(|e| RecipeError { path: Some(shown.clone()), ..e })?;
        let source = Self { path: path.to_owned(), recipe, text, shown };
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
        let set = match data::find(&recipe.data) {
            Ok(set) => set,
            Err(e) => return wrong(&["data"], e.to_string(), None),
        };
        if let Err(e) = recipe.augment().check(set.image_shape()) {
            return wrong(&["augment", "crop"], e.to_string(), None);
        }
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
        if recipe.clip_norm.is_some_and(|c| !(c.is_finite() && c > 0.0)) {
            return wrong(
                &["clip_norm"],
                "a norm is a number above 0".into(),
                Some("leave it out to clip nothing".into()),
            );
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
        for (i, v) in recipe.variant.iter().enumerate() {
            let place = ["variant", &i.to_string(), "name"].map(str::to_owned);
            let keys: Vec<&str> = place.iter().map(String::as_str).collect();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
            if v.name.is_empty() || v.name.starts_with('.') || !v.name.chars().all(plain) {
                let help =
                    "it is also a folder's name: letters, digits, `-`, `_`, `.` and `+`".to_owned();
                return wrong(&keys, format!("`{}` cannot name a variant", v.name), Some(help));
            }
            if v.name == BASELINE && !(recipe.quantize.is_empty() && v.quantize.is_empty()) {
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

    /// An error that points at a key.
    pub fn error(&self, keys: &[&str], message: String) -> RecipeError {
        let place = find_span(&self.text, keys).map(|span| Place::new(&self.text, span));
        RecipeError { path: Some(self.shown.clone()), place, message, help: None }
    }

    /// The plan of a variant; rules that do not fit are shown where they stand.
    ///
    /// # Errors
    /// If the rules do not fit the network.
    pub fn plan(&self, variant: &Variant, device: &str) -> Result<Plan, RecipeError> {
        variant.plan(&self.recipe, device).map_err(|e| {
            let mut keys: Vec<String> = Vec::new();
            if let Some((rule, key)) = e.place() {
                match variant.own {
                    Some((shared, v)) if rule > shared => {
                        keys.extend([
                            "variant".into(),
                            v.to_string(),
                            "quantize".into(),
                            (rule - shared - 1).to_string(),
                        ]);
                    }
                    _ => keys.extend(["quantize".into(), (rule - 1).to_string()]),
                }
                keys.push(key.into());
            }
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            RecipeError { help: e.help(), ..self.error(&keys, e.to_string()) }
        })
    }
}

impl RecipeError {
    fn plain(message: String) -> Self {
        Self { path: None, place: None, message, help: None }
    }
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// If the text is no recipe; the place is shown.
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        toml::from_str(text).map_err(|e| {
            // The parser knows the table of an unknown option, but not where the option stands in it.
            let key = e.message().strip_prefix("unknown field `").and_then(|m| m.split('`').next());
            let span = e.span().map(|span| match key {
                Some(key) => find_key(text, &span, key).unwrap_or(span),
                None => span,
            });
            let mut place = span.map(|span| Place::new(text, span));
            if let Some(place) = &mut place {
                place.narrow(e.message());
            }
            let (message, help) = explain(e.message());
            RecipeError { path: None, place, message, help }
        })
    }

    /// The recipe as TOML, with every default written out.
    ///
    /// # Errors
    /// If a value has no TOML form, which a recipe that was read never has.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        toml::to_string(self).map_err(|e| RecipeError::plain(e.to_string()))
    }

    /// The runs of this recipe; with `baseline` one without any rule first.
    pub fn variants(&self, baseline: bool) -> Vec<Variant> {
        let mut all: Vec<Variant> = if self.variant.is_empty() {
            let name = if self.quantize.is_empty() { BASELINE } else { "quantized" };
            let (rules, compute) = (self.quantize.clone(), self.compute);
            vec![Variant { name: name.into(), rules, compute, own: None }]
        } else {
            let named = |(i, v): (usize, &VariantConfig)| Variant {
                name: v.name.clone(),
                rules: [self.quantize.as_slice(), &v.quantize].concat(),
                compute: v.compute.unwrap_or(self.compute),
                own: Some((self.quantize.len(), i)),
            };
            self.variant.iter().enumerate().map(named).collect()
        };
        if baseline && !all.iter().any(|v| v.rules.is_empty()) {
            let (name, compute) = (BASELINE.into(), self.compute);
            all.insert(0, Variant { name, rules: Vec::new(), compute, own: None });
        }
        all
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
        (model.plan)(&self.request(recipe, device)).map_err(Box::new)
    }

    pub(crate) fn request(&self, recipe: &Recipe, device: &str) -> PlanRequest {
        let set = data::find(&recipe.data).expect("the data set was checked");
        PlanRequest {
            image: set.image_shape(),
            classes: set.classes(),
            batch: recipe.batch,
            rules: self.rules.clone(),
            device: device.to_owned(),
            compute: self.compute,
            optimizer: recipe.optimizer.clone(),
            exchange: recipe.exchange.clone(),
        }
    }
}

/// Makes a message of the parser's, and names the nearest valid word.
fn explain(message: &str) -> (String, Option<String>) {
    // A scheme's own error brings its caret and help along.
    if let Some((first, rest)) = message.split_once('\n') {
        let help = rest.lines().find_map(|l| l.trim().strip_prefix("help: "));
        return (first.to_owned(), help.map(str::to_owned));
    }
    if let Some(key) = message.strip_prefix("missing field ") {
        return (format!("the key {key} is missing"), None);
    }
    let is_unknown = message.starts_with("unknown ");
    if let Some((found, expected)) = message.split_once(", expected ").filter(|_| !is_unknown) {
        return (format!("{found}, expected {}", in_words(expected)), None);
    }
    if message.starts_with("a ") {
        return (format!("expected {message}"), None);
    }
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((word, valid)) = quoted.split_first().filter(|_| is_unknown) else {
        return (message.to_owned(), None);
    };
    let kind = if message.starts_with("unknown field") { "key" } else { "value" };
    let all = valid.join(", ");
    let help = match scrimp_codec::nearest(word, valid.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? There are {all}"),
        None => format!("there are {all}"),
    };
    (format!("unknown {kind} `{word}`"), Some(help))
}

/// What a Rust type is to somebody who writes a recipe.
fn in_words(rust_type: &str) -> &str {
    match rust_type {
        "u32" | "u64" | "usize" => "a whole number of at least 0",
        "f32" | "f64" => "a number",
        "internally tagged enum OptimizerConfig" => {
            "a table such as { name = \"adam\", lr = 0.001 }"
        }
        "internally tagged enum Schedule" => "a table such as { name = \"cosine\" }",
        "struct AugmentConfig" => "a table such as { crop = 4, flip = true }",
        "struct Rule" => "a table such as { layers = \"*\", w = \"int8\" }",
        other => other,
    }
}

/// Where the value of a key stands. Numbers lead into arrays; the nearest table or array that has a place is taken.
fn find_span(text: &str, keys: &[&str]) -> Option<ops::Range<usize>> {
    use toml::de::{DeTable, DeValue};
    let table = DeTable::parse(text).ok()?;
    let (first, rest) = keys.split_first()?;
    let mut value = table.get_ref().get(*first)?;
    for key in rest {
        let next = match value.get_ref() {
            DeValue::Table(t) => t.get(*key),
            DeValue::Array(a) => a.get(key.parse::<usize>().ok()?),
            _ => None,
        };
        match next {
            Some(v) => value = v,
            None => break,
        }
    }
    Some(value.span())
}

/// Where a key stands in the table at `span`.
fn find_key(text: &str, span: &ops::Range<usize>, key: &str) -> Option<ops::Range<usize>> {
    use toml::de::{DeTable, DeValue};
    fn search(
        value: &toml::Spanned<DeValue>,
        span: &ops::Range<usize>,
        key: &str,
    ) -> Option<ops::Range<usize>> {
        match value.get_ref() {
            DeValue::Table(table) if value.span() == *span => {
                table.get_key_value(key).map(|(key, _)| key.span())
            }
            DeValue::Table(table) => table.iter().find_map(|(_, v)| search(v, span, key)),
            DeValue::Array(list) => list.iter().find_map(|v| search(v, span, key)),
            _ => None,
        }
    }
    DeTable::parse(text).ok()?.get_ref().iter().find_map(|(_, v)| search(v, span, key))
}

fn json_to_toml(text: &str) -> Result<String, RecipeError> {
    let recipe: Recipe = serde_json::from_str(text).map_err(|e| {
        let line = text.lines().nth(e.line().saturating_sub(1)).unwrap_or_default();
        let place =
            Place { line: e.line(), column: e.column().max(1), width: 1, text: line.to_owned() };
        let message = e.to_string();
        // The place stands in the message's tail as well.
        let (message, help) = explain(message.split(" at line ").next().unwrap_or_default());
        RecipeError { path: None, place: Some(place), message, help }
    })?;
    recipe.to_toml()
}

/// The text with keys set.
fn with_settings(text: &str, settings: &[String]) -> Result<String, RecipeError> {
    let mut table: toml::Table = toml::from_str(text).map_err(|e| {
        let place = e.span().map(|span| Place::new(text, span));
        RecipeError { path: None, place, message: e.message().to_owned(), help: None }
    })?;
    for setting in settings {
        let Some((key, value)) = setting.split_once('=') else {
            return Err(RecipeError {
                help: Some("write for example --set epochs=5 or --set optimizer.lr=0.01".into()),
                ..RecipeError::plain(format!("`--set {setting}` has no `=`"))
            });
        };
        if key.split('.').any(|part| part.trim().is_empty()) {
            return Err(RecipeError::plain(format!(
                "`--set {setting}` names no key before its `=`"
            )));
        }
        // What is no TOML value is a word, so that names need no quotes.
        let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
            .ok()
            .and_then(|mut t| t.remove("value"))
            .unwrap_or_else(|| toml::Value::String(value.trim().to_owned()));
        set(&mut table, key.trim(), value)
            .map_err(|message| RecipeError::plain(format!("`--set {setting}`: {message}")))?;
    }
    toml::to_string(&table).map_err(|e| RecipeError::plain(e.to_string()))
}

fn set(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<(), String> {
    let (first, rest) = match key.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (key, None),
    };
    let Some(rest) = rest else {
        table.insert(first.to_owned(), value);
        return Ok(());
    };
    if !table.contains_key(first)
        && rest.split('.').next().is_some_and(|k| k.parse::<usize>().is_ok())
    {
        return Err(format!("the recipe has no list `{first}`"));
    }
    match table.entry(first).or_insert_with(|| toml::Table::new().into()) {
        toml::Value::Table(inner) => set(inner, rest, value),
        toml::Value::Array(list) => {
            let (index, rest) = rest.split_once('.').unwrap_or((rest, ""));
            let count = list.len();
            match index.parse::<usize>().ok().and_then(|i| list.get_mut(i)) {
                Some(toml::Value::Table(inner)) if !rest.is_empty() => set(inner, rest, value),
                Some(slot) if rest.is_empty() => {
                    *slot = value;
                    Ok(())
                }
                _ => Err(format!("`{first}` is a list of {count}; write `{first}.0.KEY`")),
            }
        }
        _ => Err(format!("`{first}` is not a table")),
    }
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
