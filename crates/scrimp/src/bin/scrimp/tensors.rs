//! Which tensors of a file a command means, and how a scheme takes them.

use std::str::FromStr;

use globset::{GlobBuilder, GlobMatcher};
use scrimp_codec::{Scheme, ShapeError, nearest};
use scrimp_files::{Dtype, Entry, Kind};

use crate::ui::Few;

/// A pattern for tensor names: `*`, `?`, `[abc]`, `{a,b}`, or a name as it stands in the file.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    glob: GlobMatcher,
}

impl FromStr for Pattern {
    type Err = globset::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let glob = GlobBuilder::new(text).backslash_escape(true).build()?.compile_matcher();
        Ok(Self { text: text.to_owned(), glob })
    }
}

impl Pattern {
    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it means this name.
    pub fn matches(&self, name: &str) -> bool {
        self.text == name || self.glob.is_match(name)
    }
}

/// Whether the tensors of such a file are weights, so that the rows of a convolution are its filters.
pub fn are_weights(kind: Kind) -> bool {
    kind != Kind::Npy
}

/// The scheme as a tensor of this shape takes it, if it fits.
pub fn fitted(scheme: &Scheme, shape: &[usize], is_weight: bool) -> Result<Scheme, ShapeError> {
    let scheme = if is_weight { scheme.for_weight(shape) } else { scheme.clone() };
    scheme.check(shape).map(|()| scheme)
}

/// Why values of this type are not rounded, if they are not.
pub fn unrounded(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        _ if dtype.is_float() => None,
        Dtype::Bool => Some("bool"),
        Dtype::C64 => Some("complex"),
        Dtype::U8
        | Dtype::I8
        | Dtype::U16
        | Dtype::I16
        | Dtype::U32
        | Dtype::I32
        | Dtype::U64
        | Dtype::I64 => Some("integer"),
        // Small floats of another tool, whose scales are not known here.
        _ => Some("small float already"),
    }
}

/// The error for a pattern without a tensor, with the name that it may mean.
pub fn no_match(
    flag: &str,
    value: &str,
    pattern: &Pattern,
    file: &str,
    entries: &[Entry],
) -> anyhow::Error {
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let help = match near(&pattern.text, &names) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("tensors here are {}", Few(&names)),
    };
    anyhow::anyhow!("`{flag} {value}` matches no tensor of {file}\n  help: {help}")
}

/// A pattern near `text` that does match one of `names`.
fn near(text: &str, names: &[&str]) -> Option<String> {
    // Checkpoints put prefixes such as `state_dict.module.` before the names of layers.
    let anywhere = format!("*{text}");
    if let Ok(pattern) = anywhere.parse::<Pattern>()
        && names.iter().any(|name| pattern.matches(name))
    {
        return Some(anywhere);
    }
    let stem = text.trim_end_matches(['*', '.']);
    let layers = names
        .iter()
        .flat_map(|name| name.match_indices('.').map(|(dot, _)| &name[..dot]).chain([*name]));
    nearest(stem, layers).map(|layer| format!("{layer}{}", &text[stem.len()..]))
}
