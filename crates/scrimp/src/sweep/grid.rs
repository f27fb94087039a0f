//! The file of a sweep, and the grid of recipes that it makes.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use scrimp_train::plan::Plan;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::document::{self, Document};
use crate::recipe::{Place, Recipe, RecipeError, Source, Variant};

/// Many trainings of one recipe that differ in some of its keys: every point of a grid, with several seeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SweepFile {
    /// The recipe, TOML or JSON; relative to this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<PathBuf>,
    /// The recipe itself, instead of a file. Keys that every point sets may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<RecipeKeys>")]
    pub base: Option<Table>,
    /// How many seeds each point is trained with, counted up from the recipe's.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub seeds: u32,
    /// Keys of the recipe for all points, as `--set` takes them: `optimizer.lr = 0.01`.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    #[schemars(with = "RecipeKeys")]
    pub set: Table,
    /// What the points differ in: every point of each axis is combined with every one of the others. The last axis changes
    /// fastest. Without axes there is one point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub axis: Vec<AxisConfig>,
}

/// What points differ in: either a `key` with its `values`, or a `name` and `point` tables that set several keys at once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AxisConfig {
    /// What tables call it; for a `key` its last part unless named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The key of the recipe that it sets; dots lead into tables and numbers into lists: `quantize.0.w`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The values of the key. Its last part and a value make the name of a point: `lr=0.1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<serde_json::Value>")]
    pub values: Vec<Value>,
    /// The points, each with a name and any keys of the recipe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub point: Vec<PointConfig>,
}

/// A point of an axis: its name, and the keys of the recipe that it sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PointConfig {
    /// Its name, which is a part of the name of a folder: letters, digits, `-`, `_`, `.`, `+` and `=`.
    pub name: String,
    /// Keys of the recipe. A table is laid over that of the recipe key by key, unless it has a `name` and so is whole.
    #[serde(flatten)]
    #[schemars(schema_with = "RecipeKeys::json_schema")]
    pub keys: Table,
}

fn one() -> u32 {
    1
}

/// For the schema: the keys of a recipe, of which none is required.
struct RecipeKeys;

impl JsonSchema for RecipeKeys {
    fn schema_name() -> Cow<'static, str> {
        "RecipeKeys".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = Recipe::json_schema(generator);
        schema.remove("required");
        schema.remove("description");
        // Keys with dots between quotes have no schema.
        schema.insert("additionalProperties".into(), true.into());
        let keys = schema.get_mut("properties").and_then(serde_json::Value::as_object_mut);
        for key in keys.into_iter().flat_map(serde_json::Map::values_mut) {
            let Some(of_key) = key.as_object_mut() else { continue };
            let is_list = of_key.get("type").is_some_and(|name| name == "array");
            // A table may stand for single keys of what is a table or a list.
            if is_list || of_key.contains_key("$ref") {
                let description = of_key.remove("description");
                let whole = key.take();
                *key = serde_json::json!({ "anyOf": [whole, { "type": "object" }] });
                if let Some(description) = description {
                    key["description"] = description;
                }
            }
        }
        schema
    }
}

/// The most points of a grid.
const MOST_POINTS: usize = 10_000;

/// The name of the point of a sweep without axes.
const ONLY_POINT: &str = "all";

/// A sweep whose every recipe was read and checked.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Its file.
    pub path: PathBuf,
    /// How many seeds each point is trained with.
    pub seeds: u32,
    /// The names of the axes.
    pub axes: Vec<String>,
    /// The points of the grid, the last axis changing fastest.
    pub points: Vec<Point>,
    /// The sweep with the recipe and all that was set in it, so that the folder of a sweep needs nothing else.
    pub(super) resolved: SweepFile,
    document: Document,
    base: Base,
    /// What is set for all points.
    common: Vec<Setting>,
}

/// A point of the grid.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its name, which is also that of its run folder: the names on all axes between commas.
    pub name: String,
    /// Its name on each axis.
    pub coordinates: Vec<String>,
    /// Its recipe.
    pub source: Source,
    document: Document,
    settings: Vec<Setting>,
}

/// Where the recipe stands that all points begin with.
#[derive(Clone, Debug)]
enum Base {
    /// In a file of its own.
    File(Document),
    /// In the sweep, under `base`.
    Inline,
}

/// A key of the recipe that is set, and where that is written.
#[derive(Clone, Debug)]
struct Setting {
    /// The key, dots between its parts.
    key: String,
    value: Value,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    /// Keys of the sweep that lead to the value, and to the key where it stands elsewhere.
    Sweep { value: Vec<String>, key: Option<Vec<String>> },
    /// A flag of the command line.
    Flag(String),
}

impl Setting {
    fn parts(&self) -> impl Iterator<Item = &str> {
        self.key.split('.').map(str::trim)
    }

    /// Whether this setting replaces all that `other` sets.
    fn covers(&self, other: &Setting) -> bool {
        let mut others = other.parts();
        self.parts().all(|part| others.next() == Some(part))
    }
}

/// An axis with the settings of each of its points.
struct Axis {
    name: String,
    points: Vec<(String, Vec<Setting>)>,
}

impl Sweep {
    /// Reads a sweep, TOML or (by its extension) JSON, with its recipe, and makes the recipes of all points.
    ///
    /// `settings` are set in the recipe after what the sweep itself sets for all points; `seeds` takes the place of its
    /// number of seeds.
    ///
    /// # Errors
    /// If a file cannot be read, is no sweep or recipe, or a point's recipe cannot be used.
    pub fn read(path: &Path, settings: &[String], seeds: Option<u32>) -> Result<Self, RecipeError> {
        let document = Document::read::<SweepFile>(path, "sweep")?;
        let file: SweepFile = document.parse()?;
        if !(1..=1000).contains(&file.seeds) {
            let message = format!("{} seeds are not from 1 to 1000", file.seeds);
            return Err(document.error(&["seeds"], message));
        }
        let (base, mut table) = base(&document, &file, path)?;
        let mut common = Vec::new();
        leaves(&file.set, "", &["set".to_owned()], &mut common);
        for text in settings {
            let (key, value) = document::setting(text)?;
            common.push(Setting { key, value, origin: Origin::Flag(format!("--set {text}")) });
        }
        let axes = file.axis.iter().enumerate().map(|(i, config)| axis(&document, i, config));
        let axes = axes.collect::<Result<Vec<Axis>, _>>()?;
        for setting in &common {
            apply(&document, &mut table, setting)?;
        }
        let resolved = SweepFile {
            recipe: None,
            base: Some(table.clone()),
            seeds: seeds.unwrap_or(file.seeds),
            set: Table::new(),
            axis: file.axis,
        };
        let mut sweep = Self {
            path: path.to_owned(),
            seeds: resolved.seeds,
            axes: axes.iter().map(|axis| axis.name.clone()).collect(),
            points: Vec::new(),
            resolved,
            document,
            base,
            common,
        };
        sweep.check_axes(&axes)?;
        for (coordinates, settings) in product(&axes) {
            sweep.points.push(sweep.point(&table, coordinates, settings)?);
        }
        Ok(sweep)
    }

    /// Finds axes of one name, and settings that another one undoes.
    fn check_axes(&self, axes: &[Axis]) -> Result<(), RecipeError> {
        let count = axes.iter().map(|axis| axis.points.len()).try_fold(1, usize::checked_mul);
        if count.is_none_or(|count| count > MOST_POINTS) {
            let message = format!("the grid has more than {MOST_POINTS} points");
            return Err(self.document.error(&["axis"], message));
        }
        for (i, axis) in axes.iter().enumerate() {
            if axes[..i].iter().any(|other| other.name == axis.name) {
                let message = format!("two axes are called `{}`", axis.name);
                let help = Some("give one of them a `name`".to_owned());
                let at = self.document.error(&["axis", &i.to_string(), "name"], message);
                return Err(RecipeError { help, ..at });
            }
            for (point, settings) in &axis.points {
                // What a later point sets takes the place of what an earlier axis sets.
                let lost = |earlier: &&Setting| settings.iter().any(|s| s.covers(earlier));
                let earlier = axes[..i].iter().flat_map(|a| a.points.iter().flat_map(|(_, s)| s));
                if let Some(setting) = earlier.clone().find(lost) {
                    let message = format!(
                        "`{}` is set by an axis, and set again by `{point}` of the axis `{}`",
                        setting.key, axis.name
                    );
                    let help = "an axis that comes later may only set keys inside it".to_owned();
                    return Err(RecipeError {
                        help: Some(help),
                        ..self.error_at(setting, message)
                    });
                }
            }
        }
        for setting in &self.common {
            let is_lost = |axis: &&Axis| {
                axis.points.iter().all(|(_, settings)| settings.iter().any(|s| s.covers(setting)))
            };
            if let Some(axis) = axes.iter().find(is_lost) {
                let message = format!(
                    "`{}` has no effect: every point of the axis `{}` sets it",
                    setting.key, axis.name
                );
                let help = "leave it out, or choose points with --only".to_owned();
                return Err(RecipeError { help: Some(help), ..self.error_at(setting, message) });
            }
        }
        Ok(())
    }

    fn point(
        &self,
        base: &Table,
        coordinates: Vec<String>,
        settings: Vec<Setting>,
    ) -> Result<Point, RecipeError> {
        let name = match &coordinates[..] {
            [] => ONLY_POINT.to_owned(),
            names => names.join(","),
        };
        let mut table = base.clone();
        for setting in &settings {
            let set = apply(&self.document, &mut table, setting);
            set.map_err(|e| self.named(&name, e))?;
        }
        let text = document::to_toml(&table)?;
        // Errors are shown where they stand in the files, so that nobody sees this name.
        let document = Document { text, shown: self.path.clone() };
        let source = Source::of(&self.path, document.clone());
        let source = source.map_err(|e| self.located(&name, &document, &settings, e))?;
        Ok(Point { name, coordinates, source, document, settings })
    }

    /// What tables call a variant of a point: the point, or where recipes have variants both, or where there are no axes
    /// the variant.
    pub fn label(&self, point: &Point, variant: &str) -> String {
        match (self.axes.is_empty(), point.source.recipe.variant.is_empty()) {
            (true, _) => variant.to_owned(),
            (false, true) => point.name.clone(),
            (false, false) => format!("{}/{variant}", point.name),
        }
    }

    /// The plan of a variant of a point; rules that do not fit are shown where they stand.
    ///
    /// # Errors
    /// If the rules do not fit the network.
    pub fn plan(
        &self,
        point: &Point,
        variant: &Variant,
        device: &str,
    ) -> Result<Plan, RecipeError> {
        point.source.plan(variant, device).map_err(|e| self.of_point(point, e))
    }

    /// An error of a point's recipe, shown where it stands in the files.
    pub(super) fn of_point(&self, point: &Point, error: RecipeError) -> RecipeError {
        self.located(&point.name, &point.document, &point.settings, error)
    }

    fn located(
        &self,
        name: &str,
        document: &Document,
        settings: &[Setting],
        error: RecipeError,
    ) -> RecipeError {
        let (path, place) = error
            .place
            .as_ref()
            .and_then(|place| self.origin(document, settings, place, &error.message))
            .unwrap_or_else(|| (self.base_document().shown.clone(), None));
        self.named(name, RecipeError { path: Some(path), place, ..error })
    }

    fn named(&self, point: &str, error: RecipeError) -> RecipeError {
        if self.axes.is_empty() {
            return error;
        }
        RecipeError { message: format!("point `{point}`: {}", error.message), ..error }
    }

    fn base_document(&self) -> &Document {
        match &self.base {
            Base::File(document) => document,
            Base::Inline => &self.document,
        }
    }

    /// Where that stands which has this place in the recipe of a point.
    fn origin(
        &self,
        document: &Document,
        settings: &[Setting],
        place: &Place,
        message: &str,
    ) -> Option<(PathBuf, Option<Place>)> {
        let spot = document.spot(place)?;
        let mut all = self.common.iter().chain(settings).rev();
        let is_inside = |setting: &&Setting| {
            let mut keys = spot.keys.iter();
            setting.parts().all(|part| keys.next().is_some_and(|key| key == part))
        };
        let base = match self.base {
            Base::File(_) => spot.keys.clone(),
            Base::Inline => [&["base".to_owned()], &spot.keys[..]].concat(),
        };
        // Of an optimizer or a schedule the parser tells what value is wrong, but not of which option.
        let prefix = format!("{}.", spot.keys.join("."));
        let mut inner = all.clone().filter(|s| !spot.is_key && s.key.starts_with(&prefix));
        let is_named = |s: &&Setting| message.contains(&s.value.to_string());
        let setting = all.find(is_inside).or_else(|| inner.clone().find(is_named));
        let is_of_recipe = self.base_document().has(&base);
        let setting = setting.or_else(|| inner.next().filter(|_| !is_of_recipe));
        let Some(setting) = setting else {
            let document = self.base_document();
            return Some((document.shown.clone(), document.place(&spot, &base)));
        };
        let (value, key) = match &setting.origin {
            Origin::Flag(flag) => return Some((flag.into(), None)),
            Origin::Sweep { value, key } => (value, key),
        };
        let rest = spot.keys.get(setting.parts().count()..).unwrap_or_default();
        let place = match key {
            Some(key) if spot.is_key && rest.is_empty() => {
                self.document.error(key, String::new()).place
            }
            _ => self.document.place(&spot, &[&value[..], rest].concat()),
        };
        Some((self.document.shown.clone(), place))
    }

    fn error_at(&self, setting: &Setting, message: String) -> RecipeError {
        error_at(&self.document, setting, message)
    }
}

/// An error that points at a setting.
fn error_at(document: &Document, setting: &Setting, message: String) -> RecipeError {
    match &setting.origin {
        Origin::Sweep { value, key } => document.error(key.as_ref().unwrap_or(value), message),
        Origin::Flag(flag) => {
            RecipeError { path: Some(flag.into()), ..RecipeError::plain(message) }
        }
    }
}

fn apply(document: &Document, table: &mut Table, setting: &Setting) -> Result<(), RecipeError> {
    document::set(table, &setting.key, setting.value.clone())
        .map_err(|message| error_at(document, setting, message))
}

/// The recipe that all points begin with.
fn base(document: &Document, file: &SweepFile, path: &Path) -> Result<(Base, Table), RecipeError> {
    let help = |e: RecipeError| RecipeError {
        help: Some("write recipe = \"FILE\", or the recipe itself under [base]".into()),
        ..e
    };
    match (&file.recipe, &file.base) {
        (Some(recipe), None) => {
            let recipe = path.parent().unwrap_or(Path::new("")).join(recipe);
            if !recipe.is_file() {
                let message = format!("there is no recipe {}", recipe.display());
                return Err(document.error(&["recipe"], message));
            }
            let recipe = Document::read::<Recipe>(&recipe, "recipe")?;
            let table = recipe.parse()?;
            Ok((Base::File(recipe), table))
        }
        (None, Some(table)) => Ok((Base::Inline, table.clone())),
        (None, None) => {
            let message = "the sweep has no recipe".to_owned();
            let path = Some(document.shown.clone());
            Err(help(RecipeError { path, ..RecipeError::plain(message) }))
        }
        (Some(_), Some(_)) => {
            let message = "the sweep has two recipes, a file and [base]".to_owned();
            Err(help(document.error(&["recipe"], message)))
        }
    }
}

/// The single keys that a table sets. A table within it is laid over the recipe's key by key; one with a `name` is an
/// optimizer or a schedule with options of its own, and takes the place of another.
fn leaves(table: &Table, prefix: &str, at: &[String], all: &mut Vec<Setting>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        let place = [at, std::slice::from_ref(name)].concat();
        match value {
            Value::Table(inner) if !inner.is_empty() && !inner.contains_key("name") => {
                leaves(inner, &format!("{key}."), &place, all);
            }
            _ => {
                let origin = Origin::Sweep { value: place, key: None };
                all.push(Setting { key, value: value.clone(), origin });
            }
        }
    }
}

/// The points of an axis.
fn axis(document: &Document, place: usize, config: &AxisConfig) -> Result<Axis, RecipeError> {
    let at = |keys: &[&str]| -> Vec<String> {
        let root = ["axis".to_owned(), place.to_string()];
        root.into_iter().chain(keys.iter().map(|&key| key.to_owned())).collect()
    };
    let wrong = |keys: &[&str], message: String, help: &str| {
        Err(RecipeError { help: Some(help.to_owned()), ..document.error(&at(keys), message) })
    };
    let axis = match config {
        AxisConfig { key: Some(key), values, point, name } if point.is_empty() => {
            if key.split('.').any(|part| part.trim().is_empty()) {
                return wrong(&["key"], format!("`{key}` is no key"), "for example optimizer.lr");
            }
            let last = key.rsplit('.').next().unwrap_or(key).trim();
            let mut points = Vec::new();
            for (i, value) in values.iter().enumerate() {
                let Some(value_name) = value_name(value) else {
                    let message = "a list or a table has no short name".to_owned();
                    let help = "give every point of the axis a name, under [[axis.point]]";
                    return wrong(&["values", &i.to_string()], message, help);
                };
                let origin = Origin::Sweep {
                    value: at(&["values", &i.to_string()]),
                    key: Some(at(&["key"])),
                };
                let setting = Setting { key: key.clone(), value: value.clone(), origin };
                points.push((format!("{last}={value_name}"), vec![setting]));
            }
            if points.is_empty() {
                let message = format!("the axis of `{key}` has no values");
                return wrong(&["key"], message, "for example values = [0.1, 0.05]");
            }
            Axis { name: name.clone().unwrap_or_else(|| last.to_owned()), points }
        }
        AxisConfig { key: None, values, point, name: Some(name) }
            if values.is_empty() && !point.is_empty() =>
        {
            let mut points = Vec::new();
            for (i, point) in point.iter().enumerate() {
                let mut settings = Vec::new();
                leaves(&point.keys, "", &at(&["point", &i.to_string()]), &mut settings);
                points.push((point.name.clone(), settings));
            }
            Axis { name: name.clone(), points }
        }
        _ => {
            let help = "an axis has a `key` and `values`, or a `name` and [[axis.point]] tables";
            return wrong(&[], "the axis is neither of values nor of points".to_owned(), help);
        }
    };
    let mut names = BTreeSet::new();
    for (i, (name, _)) in axis.points.iter().enumerate() {
        let (i, is_named) = (i.to_string(), config.key.is_none());
        let keys = if is_named { ["point", &i, "name"] } else { ["values", &i, ""] };
        let keys = if is_named { &keys[..] } else { &keys[..2] };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+=".contains(c);
        let is_taken = super::FILES.contains(&name.as_str());
        if name.is_empty() || name.starts_with('.') || is_taken || !name.chars().all(plain) {
            let help =
                "it is a part of a folder's name: letters, digits, `-`, `_`, `.`, `+` and `=`";
            return wrong(keys, format!("`{name}` cannot name a point"), help);
        }
        if !names.insert(name) {
            let help = "points are told apart by their names; [[axis.point]] tables have their own";
            return wrong(keys, format!("two points of the axis are called `{name}`"), help);
        }
    }
    Ok(axis)
}

/// What a value is called in the name of a point: as it is written, but for what no folder's name should hold.
fn value_name(value: &Value) -> Option<String> {
    let text = match value {
        Value::Array(_) | Value::Table(_) => return None,
        Value::String(text) => text.clone(),
        // Very large and very small ones would be all zeros.
        Value::Float(f) if *f != 0.0 && !(1e-4..1e6).contains(&f.abs()) => format!("{f:e}"),
        value => value.to_string(),
    };
    let is_kept = |c: char| c.is_ascii_alphanumeric() || "-_.+=".contains(c);
    let text: String = text.chars().map(|c| if is_kept(c) { c } else { '-' }).collect();
    Some(text.trim_end_matches('-').to_owned()).filter(|text| !text.is_empty()).or(Some("-".into()))
}

/// Every combination of the axes' points, the last axis changing fastest.
fn product(axes: &[Axis]) -> Vec<(Vec<String>, Vec<Setting>)> {
    let mut all = vec![(Vec::new(), Vec::new())];
    for axis in axes {
        let longer = all.iter().flat_map(|(names, settings)| {
            axis.points.iter().map(move |(name, more)| {
                ([&names[..], std::slice::from_ref(name)].concat(), [&settings[..], more].concat())
            })
        });
        all = longer.collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"# A comment, so that lines are not those of any other text.
model = "lenet"
data = "digits"
epochs = 3

[optimizer]
name = "adam"
lr = 0.001

[[quantize]]
layers = "*"
w = "int8"
"#;

    const SWEEP: &str = r#"recipe = "recipe.toml"
seeds = 2

[set]
epochs = 2
augment.flip = true

[[axis]]
key = "optimizer.lr"
values = [0.1, 1e-3]

[[axis]]
name = "format"
[[axis.point]]
name = "none"
quantize = []
[[axis.point]]
name = "int4"
quantize.0.w = "int4/group:32"
optimizer.weight_decay = 0.5
"#;

    fn read(sweep: &str, settings: &[&str]) -> Result<Sweep, RecipeError> {
        read_with(RECIPE, sweep, settings)
    }

    fn read_with(recipe: &str, sweep: &str, settings: &[&str]) -> Result<Sweep, RecipeError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
        let path = folder.path().join("sweep.toml");
        std::fs::write(&path, sweep).unwrap();
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        Sweep::read(&path, &settings, None)
    }

    fn names(sweep: &Sweep) -> Vec<&str> {
        sweep.points.iter().map(|point| point.name.as_str()).collect()
    }

    /// The error of a sweep in which a text stands in place of another.
    fn refused(from: &str, to: &str) -> RecipeError {
        assert!(SWEEP.contains(from), "{from}");
        let sweep = read(&SWEEP.replacen(from, to, 1), &[]);
        // What a recipe's rules do to its network is found with its plan.
        let plan = sweep.and_then(|sweep| {
            for point in &sweep.points {
                for variant in point.source.recipe.variants(false) {
                    sweep.plan(point, &variant, "flex")?;
                }
            }
            Ok(())
        });
        plan.expect_err(to)
    }

    #[test]
    fn a_grid_is_the_product_of_its_axes_and_the_last_changes_fastest() {
        let sweep = read(SWEEP, &["batch=16"]).unwrap();
        assert_eq!(names(&sweep), ["lr=0.1,none", "lr=0.1,int4", "lr=0.001,none", "lr=0.001,int4"]);
        assert_eq!((sweep.seeds, &sweep.axes[..]), (2, &["lr".to_owned(), "format".into()][..]));
        let recipe = |i: usize| &sweep.points[i].source.recipe;
        assert_eq!((recipe(0).epochs, recipe(0).batch, recipe(0).augment.flip), (2, 16, true));
        assert!(recipe(0).quantize.is_empty());
        assert_eq!(recipe(1).quantize[0].w.as_ref().unwrap().to_string(), "int4/group:32");
        assert_eq!(
            (recipe(1).optimizer.learning_rate(), recipe(3).optimizer.learning_rate()),
            (0.1, 1e-3)
        );
        assert_eq!(sweep.points[3].coordinates, ["lr=0.001", "int4"]);
    }

    #[test]
    fn a_sweep_with_its_recipe_in_it_makes_the_same_points() {
        let sweep = read(SWEEP, &["batch=16"]).unwrap();
        let again = read(&document::to_toml(&sweep.resolved).unwrap(), &[]).unwrap();
        assert_eq!(names(&sweep), names(&again));
        for (one, other) in sweep.points.iter().zip(&again.points) {
            assert_eq!(one.source.recipe, other.source.recipe);
        }
    }

    #[test]
    fn json_is_taken_too() {
        let file: SweepFile = document::parse(SWEEP).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
        let path = folder.path().join("sweep.json");
        std::fs::write(&path, serde_json::to_string(&file).unwrap()).unwrap();
        let sweep = Sweep::read(&path, &[], Some(5)).unwrap();
        assert_eq!((sweep.seeds, sweep.points.len()), (5, 4));
        std::fs::write(&path, "{\"recipe\": \"recipe.toml\",\n \"sets\": {}}").unwrap();
        let text = Sweep::read(&path, &[], None).unwrap_err().to_string();
        assert!(text.contains("sweep.json:2:") && text.contains("did you mean `set`?"), "{text}");
    }

    #[test]
    fn a_sweep_without_axes_has_one_point_whose_rows_are_the_variants() {
        let sweep = read("recipe = \"recipe.toml\"\n", &[]).unwrap();
        assert_eq!(names(&sweep), ["all"]);
        assert_eq!(sweep.label(&sweep.points[0], "quantized"), "quantized");
    }

    #[test]
    fn a_table_with_a_name_takes_the_place_of_another_and_others_are_laid_over() {
        let set = "[set]\noptimizer = { name = \"sgd\", lr = 0.5 }\naugment = { crop = 2 }\n";
        let sweep =
            read(&format!("recipe = \"recipe.toml\"\n{set}"), &["augment.flip=true"]).unwrap();
        let recipe = &sweep.points[0].source.recipe;
        assert_eq!(recipe.optimizer.learning_rate(), 0.5);
        assert_eq!((recipe.augment.crop, recipe.augment.flip), (2, true));
    }

    #[test]
    fn values_make_names_that_folders_can_have() {
        let name = |text: &str| {
            let table: Table = toml::from_str(&format!("v = {text}")).unwrap();
            value_name(&table["v"])
        };
        assert_eq!(name("0.1").unwrap(), "0.1");
        assert_eq!((name("-3").unwrap(), name("1e-5").unwrap()), ("-3".into(), "1e-5".into()));
        assert_eq!(name("\"int4/group:32/scale:f16\"").unwrap(), "int4-group-32-scale-f16");
        assert_eq!(name("\"top_k:1%\"").unwrap(), "top_k-1");
        assert_eq!(name("\"../..\"").unwrap(), "..-..");
        assert_eq!((name("[1]"), name("{ a = 1 }")), (None, None));
    }

    #[test]
    fn errors_of_a_sweep_show_the_place_and_what_would_be_valid() {
        for (from, to, line, message, help) in [
            ("[set]", "[sett]", 4, "unknown key `sett`", "did you mean `set`?"),
            ("values", "value", 10, "unknown key `value`", "did you mean `values`?"),
            ("seeds = 2", "seeds = 0", 2, "0 seeds are not from 1 to 1000", ""),
            ("\"recipe.toml\"", "\"nowhere.toml\"", 1, "there is no recipe", ""),
            ("[set]", "[base]\n[set]", 1, "two recipes", "under [base]"),
            ("name = \"format\"", "", 12, "neither of values nor of points", "`name`"),
            ("name = \"format\"", "name = \"lr\"", 13, "two axes are called `lr`", "`name`"),
            ("[0.1, 1e-3]", "[0.1, 0.1]", 10, "two points of the axis", "[[axis.point]]"),
            ("[0.1, 1e-3]", "[[0.1]]", 10, "no short name", "[[axis.point]]"),
            ("[0.1, 1e-3]", "[]", 9, "has no values", "values = "),
            ("name = \"int4\"", "name = \"a,b\"", 18, "cannot name a point", "letters"),
            ("name = \"int4\"", "name = \"report.html\"", 18, "cannot name a point", ""),
            // The last axis would undo the first.
            ("optimizer.weight_decay = 0.5", "optimizer.lr = 0.5", 9, "set again by `int4`", ""),
            ("epochs = 2", "optimizer.lr = 2", 5, "`optimizer.lr` has no effect", "--only"),
        ] {
            let error = refused(from, to);
            let text = error.to_string();
            assert_eq!(error.place.as_ref().map(|p| p.line), Some(line), "{text}");
            assert!(text.contains(message) && text.contains(help) && text.contains('^'), "{text}");
            assert!(text.contains("sweep.toml:"), "{text}");
        }
    }

    #[test]
    fn errors_of_a_point_name_it_and_stand_where_it_was_written() {
        for (from, to, place, message, help) in [
            (
                "epochs = 2",
                "epoch = 2",
                (5, 1),
                "point `lr=0.1,none`: unknown key `epoch`",
                "`epochs`",
            ),
            ("\"optimizer.lr\"", "\"optimizer.lrr\"", (9, 7), "unknown key `lrr`", "`lr`"),
            ("0.1, 1e-3", "0.1, -1e-3", (10, 16), "point `lr=-0.001,none`: ", ""),
            ("0.1, 1e-3", "0.1, \"a\"", (10, 16), "point `lr=a,none`: invalid type", "number"),
            (
                "int4/group:32",
                "int4/gruop:32",
                (19, 22),
                "point `lr=0.1,int4`: `gruop:32` is no word",
                "did you mean `group:",
            ),
            (
                "optimizer.weight_decay",
                "optimizer.decay",
                (20, 11),
                "unknown key `decay`",
                "weight_decay",
            ),
            // Rules that do not fit the network.
            (
                "quantize.0.w = ",
                "quantize = [{ layers = \"fd*\", w = \"int8\" }] #",
                (19, 24),
                "point `lr=0.1,int4`: rule 1 matches no layer: `fd*`",
                "layers here are conv1",
            ),
        ] {
            let error = refused(from, to);
            let text = error.to_string();
            assert_eq!(error.place.as_ref().map(|p| (p.line, p.column)), Some(place), "{text}");
            assert!(text.contains(message) && text.contains(help), "{text}");
            assert!(text.contains("sweep.toml:"), "{text}");
        }
    }

    #[test]
    fn errors_of_the_recipe_and_of_flags_stand_in_their_own_places() {
        for (from, to, place, message) in [
            ("epochs = 3", "epoch = 3", (4, 1), "unknown key `epoch`"),
            ("lr = 0.001", "lr = 0.001\nbeta = 1", (9, 1), "unknown key `beta`"),
            ("\"adam\"", "\"adm\"", (7, 8), "unknown value `adm`"),
            ("model = \"lenet\"", "", (1, 1), "the key `model` is missing"),
            ("model = ", "model : ", (2, 7), ""),
        ] {
            assert!(RECIPE.contains(from), "{from}");
            let error = read_with(&RECIPE.replacen(from, to, 1), SWEEP, &[]).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("recipe.toml") && text.contains(message), "{text}");
            if place != (1, 1) {
                assert_eq!(error.place.map(|p| (p.line, p.column)), Some(place), "{text}");
            }
        }
        let recipe = RECIPE.replace("layers = \"*\"", "layers = \"fd*\"");
        let sweep = read_with(&recipe, SWEEP, &[]).unwrap();
        let point = &sweep.points[1];
        let variant = &point.source.recipe.variants(false)[0];
        let text = sweep.plan(point, variant, "flex").unwrap_err().to_string();
        assert!(text.contains("recipe.toml:11:10") && text.contains("`lr=0.1,int4`"), "{text}");

        for (flag, message) in [
            ("modell=mlp", "unknown key `modell`"),
            ("batch=0", "a batch of 0 images"),
            ("optimizer.lr=2", "has no effect"),
            ("optimizer.beta1=a", "expected a number"),
            ("quantize.7.w=int4", "is a list of 1"),
        ] {
            let text = read(SWEEP, &[flag]).unwrap_err().to_string();
            assert!(text.contains(message) && text.contains(&format!("in --set {flag}")), "{text}");
        }
    }
}
