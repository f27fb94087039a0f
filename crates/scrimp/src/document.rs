//! Files that people write, in TOML or JSON: how they are read, how single keys of them are set, and errors that show the
//! place.

use std::fmt;
use std::ops;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A recipe, or a sweep of recipes, that cannot be used. Prints the place in the file, a caret, and what would be valid.
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

impl RecipeError {
    pub(crate) fn plain(message: String) -> Self {
        Self { path: None, place: None, message, help: None }
    }
}

/// The text of a file, with what errors call it.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// TOML.
    pub text: String,
    /// What errors call the text.
    pub shown: PathBuf,
}

impl Document {
    /// Reads a file that holds a `T`, in TOML or (by its extension) JSON; `what` is the word for it.
    ///
    /// # Errors
    /// If the file cannot be read, or is JSON and no `T`.
    pub fn read<T: DeserializeOwned + Serialize>(
        path: &Path,
        what: &str,
    ) -> Result<Self, RecipeError> {
        let at = |e: RecipeError| RecipeError { path: Some(path.to_owned()), ..e };
        let text = std::fs::read_to_string(path).map_err(|e| {
            let reason = match e.kind() {
                std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
                std::io::ErrorKind::InvalidData => "it is not text".to_owned(),
                std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
                _ => e.to_string(),
            };
            at(RecipeError::plain(format!("cannot read the {what}: {reason}")))
        })?;
        let mut shown = path.to_owned();
        if path.extension().is_none_or(|e| e != "json") {
            return Ok(Self { text, shown });
        }
        shown.as_mut_os_string().push(" as TOML");
        Ok(Self { text: json_to_toml::<T>(&text).map_err(at)?, shown })
    }

    /// The `T` that the text holds.
    ///
    /// # Errors
    /// If it holds none; the place is shown.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, RecipeError> {
        parse(&self.text).map_err(|e| RecipeError { path: Some(self.shown.clone()), ..e })
    }

    /// An error that points at the value of a key. Numbers lead into lists; the nearest table or list that has a place is
    /// taken.
    pub fn error(&self, keys: &[impl AsRef<str>], message: String) -> RecipeError {
        let place = self.find(keys).map(|found| Place::new(&self.text, found.value));
        RecipeError { path: Some(self.shown.clone()), place, message, help: None }
    }

    /// Where a key and its value stand, or those of the nearest table or list that has a place. Only what stands in a list
    /// has no key of its own.
    fn find(&self, keys: &[impl AsRef<str>]) -> Option<Found> {
        let table = DeTable::parse(&self.text).ok()?;
        let (first, rest) = keys.split_first()?;
        let (key, mut value) = table.get_ref().get_key_value(first.as_ref())?;
        let mut key = Some(key.span());
        let mut is_whole = true;
        for next in rest.iter().map(AsRef::as_ref) {
            let found = match value.get_ref() {
                DeValue::Table(t) => t.get_key_value(next).map(|(k, v)| (Some(k.span()), v)),
                DeValue::Array(a) => {
                    next.parse::<usize>().ok().and_then(|i| a.get(i)).map(|v| (None, v))
                }
                _ => None,
            };
            let Some(found) = found else {
                is_whole = false;
                break;
            };
            (key, value) = found;
        }
        Some(Found { key, value: value.span(), is_whole })
    }

    /// Whether there is a value under these keys.
    pub fn has(&self, keys: &[impl AsRef<str>]) -> bool {
        self.find(keys).is_some_and(|found| found.is_whole)
    }

    /// What stands at a place.
    pub fn spot(&self, place: &Place) -> Option<Spot> {
        let line_start: usize =
            self.text.split_inclusive('\n').take(place.line - 1).map(str::len).sum();
        let before: usize =
            self.text[line_start..].chars().take(place.column - 1).map(char::len_utf8).sum();
        let mut search = Search { offset: line_start + before, keys: Vec::new(), best: None };
        search.table(DeTable::parse(&self.text).ok()?.get_ref());
        let (span, keys, is_key) = search.best?;
        let text = self.text[span.clone()].to_owned();
        let from = self.text[span.start..search.offset].chars().count();
        Some(Spot { keys, is_key, text, from, width: place.width })
    }

    /// The place of a spot of another text under its keys here.
    pub fn place(&self, spot: &Spot, keys: &[impl AsRef<str>]) -> Option<Place> {
        let Found { key, value, .. } = self.find(keys)?;
        let span = if spot.is_key { key.unwrap_or(value) } else { value };
        let mut place = Place::new(&self.text, span.clone());
        // A part of a string is the same part only where it is written alike.
        if self.text.get(span) == Some(spot.text.as_str()) && spot.from + spot.width <= place.width
        {
            place.column += spot.from;
            place.width = spot.width;
        }
        Some(place)
    }
}

/// Where a value stands.
struct Found {
    key: Option<ops::Range<usize>>,
    value: ops::Range<usize>,
    /// Whether it is the value that was looked for, and not one that it would stand in.
    is_whole: bool,
}

/// What stands at a place of a text, so that it can be found in another one.
pub(crate) struct Spot {
    /// Keys that lead to it; numbers are places in lists.
    pub keys: Vec<String>,
    /// Whether it is the last key itself, and not the value.
    pub is_key: bool,
    /// How the key or value is written.
    text: String,
    /// Characters of it before the place.
    from: usize,
    /// Characters that are meant.
    width: usize,
}

/// A walk to the smallest key or value around an offset. That of a table need not lie inside its table's, since tables
/// have their heads alone.
struct Search {
    offset: usize,
    keys: Vec<String>,
    best: Option<(ops::Range<usize>, Vec<String>, bool)>,
}

impl Search {
    fn table(&mut self, table: &DeTable) {
        for (key, value) in table {
            self.keys.push(key.get_ref().to_string());
            self.value(value);
            // A key of dots stands before every value below it; the last one is meant.
            self.take(key.span(), true);
            self.keys.pop();
        }
    }

    fn value(&mut self, value: &Spanned<DeValue>) {
        self.take(value.span(), false);
        match value.get_ref() {
            DeValue::Table(table) => self.table(table),
            DeValue::Array(list) => {
                for (place, value) in list.iter().enumerate() {
                    self.keys.push(place.to_string());
                    self.value(value);
                    self.keys.pop();
                }
            }
            _ => {}
        }
    }

    fn take(&mut self, span: ops::Range<usize>, is_key: bool) {
        let is_smaller = self.best.as_ref().is_none_or(|(best, ..)| span.len() < best.len());
        if span.contains(&self.offset) && is_smaller {
            self.best = Some((span, self.keys.clone(), is_key));
        }
    }
}

/// The `T` that a text holds.
///
/// # Errors
/// If it holds none; the place is shown.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, RecipeError> {
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

/// Where a key stands in the table at `span`.
fn find_key(text: &str, span: &ops::Range<usize>, key: &str) -> Option<ops::Range<usize>> {
    fn search(
        value: &Spanned<DeValue>,
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

fn json_to_toml<T: DeserializeOwned + Serialize>(text: &str) -> Result<String, RecipeError> {
    let value: T = serde_json::from_str(text).map_err(|e| {
        let line = text.lines().nth(e.line().saturating_sub(1)).unwrap_or_default();
        let place =
            Place { line: e.line(), column: e.column().max(1), width: 1, text: line.to_owned() };
        let message = e.to_string();
        // The place stands in the message's tail as well.
        let (message, help) = explain(message.split(" at line ").next().unwrap_or_default());
        RecipeError { path: None, place: Some(place), message, help }
    })?;
    to_toml(&value)
}

/// A value as TOML.
///
/// # Errors
/// If it has no such form, which what was read from TOML always has.
pub(crate) fn to_toml(value: &impl Serialize) -> Result<String, RecipeError> {
    toml::to_string(value).map_err(|e| RecipeError::plain(e.to_string()))
}

/// The key and the value of `KEY=VALUE`, as `--set` takes it.
///
/// # Errors
/// If it has no key or no value.
pub(crate) fn setting(text: &str) -> Result<(String, toml::Value), RecipeError> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(RecipeError {
            help: Some("write for example --set epochs=5 or --set optimizer.lr=0.01".into()),
            ..RecipeError::plain(format!("`--set {text}` has no `=`"))
        });
    };
    if key.split('.').any(|part| part.trim().is_empty()) {
        return Err(RecipeError::plain(format!("`--set {text}` names no key before its `=`")));
    }
    // What is no TOML value is a word, so that names need no quotes.
    let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut t| t.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.trim().to_owned()));
    Ok((key.trim().to_owned(), value))
}

/// Sets a key, where dots lead into tables and numbers into lists.
///
/// # Errors
/// The reason why there is no such key.
pub(crate) fn set(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<(), String> {
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
