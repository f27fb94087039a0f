//! Rules: which tensors of which layers get which scheme.

use globset::{Glob, GlobMatcher};
use regex::Regex;
use schemars::JsonSchema;
use scrimp_codec::Scheme;
use serde::{Deserialize, Serialize};

use crate::role::Role;

/// Which layers a rule speaks of, by path (`layer1.0.conv1`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a glob such as \"layer1.*\", a list of globs, or { regex = \"...\" }"
)]
pub enum Layers {
    /// A glob: `*` stands for any characters, `?` for one, `{a,b}` for either.
    Glob(String),
    /// Several globs.
    Globs(Vec<String>),
    /// A regular expression that matches anywhere in the path.
    Pattern(Pattern),
}

/// A regular expression.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// The expression.
    pub regex: String,
}

/// One rule. A later rule wins over an earlier one, tensor by tensor.
///
/// A shorter key covers a longer one: `dw` is looked for first, then `d`, then `default`. A tensor that no rule speaks of stays f32.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which layers, by path.
    pub layers: Layers,
    /// A remark, printed beside what the rule claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Every tensor that no other key of this rule names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub default: Option<Scheme>,
    /// The weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub w: Option<Scheme>,
    /// The bias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub b: Option<Scheme>,
    /// The input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub x: Option<Scheme>,
    /// The output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub y: Option<Scheme>,
    /// All four gradients: dy, dx, dw and db.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub d: Option<Scheme>,
    /// The gradient of the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub dy: Option<Scheme>,
    /// The gradient of the input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub dx: Option<Scheme>,
    /// The gradient of the weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub dw: Option<Scheme>,
    /// The gradient of the bias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub db: Option<Scheme>,
}

impl Rule {
    /// A rule for `layers` that says nothing yet.
    pub fn new(layers: &str) -> Self {
        Self {
            layers: Layers::Glob(layers.into()),
            note: None,
            default: None,
            w: None,
            b: None,
            x: None,
            y: None,
            d: None,
            dy: None,
            dx: None,
            dw: None,
            db: None,
        }
    }

    /// The scheme under a key: a role's, `d` or `default`.
    pub fn get(&self, key: &str) -> Option<&Scheme> {
        match key {
            "default" => &self.default,
            "w" => &self.w,
            "b" => &self.b,
            "x" => &self.x,
            "y" => &self.y,
            "d" => &self.d,
            "dy" => &self.dy,
            "dx" => &self.dx,
            "dw" => &self.dw,
            "db" => &self.db,
            _ => &None,
        }
        .as_ref()
    }

    /// The keys that this rule sets.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        ["default", "w", "b", "x", "y", "d", "dy", "dx", "dw", "db"]
            .into_iter()
            .filter(|k| self.get(k).is_some())
    }

    /// The scheme for a role, with the key that gave it.
    pub fn scheme(&self, role: Role) -> Option<(&'static str, &Scheme)> {
        role.keys().find_map(|k| self.get(k).map(|s| (k, s)))
    }
}

/// A compiled [`Layers`].
#[derive(Debug)]
pub(crate) enum Matcher {
    Globs(Vec<(String, GlobMatcher)>),
    Regex(String, Regex),
}

impl Matcher {
    /// Compiles the patterns.
    ///
    /// # Errors
    /// The pattern and what is wrong with it.
    pub fn new(layers: &Layers) -> Result<Self, (String, String)> {
        let glob = |text: &String| match Glob::new(text) {
            Ok(g) => Ok((text.clone(), g.compile_matcher())),
            Err(e) => Err((text.clone(), e.kind().to_string())),
        };
        match layers {
            Layers::Glob(text) => Ok(Self::Globs(vec![glob(text)?])),
            Layers::Globs(list) => {
                Ok(Self::Globs(list.iter().map(glob).collect::<Result<_, _>>()?))
            }
            Layers::Pattern(p) => match Regex::new(&p.regex) {
                Ok(r) => Ok(Self::Regex(p.regex.clone(), r)),
                Err(e) => {
                    let reason = e.to_string();
                    let last = reason.lines().last().unwrap_or_default();
                    Err((p.regex.clone(), last.trim_start_matches("error: ").to_owned()))
                }
            },
        }
    }

    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Globs(globs) => globs.iter().any(|(_, g)| g.is_match(path)),
            Self::Regex(_, r) => r.is_match(path),
        }
    }

    /// The first pattern that matches none of the paths.
    pub fn idle<'a>(&'a self, paths: &[&str]) -> Option<&'a str> {
        match self {
            Self::Globs(globs) => globs
                .iter()
                .find(|(_, g)| !paths.iter().any(|p| g.is_match(p)))
                .map(|(t, _)| t.as_str()),
            Self::Regex(text, r) => (!paths.iter().any(|p| r.is_match(p))).then_some(text),
        }
    }
}
