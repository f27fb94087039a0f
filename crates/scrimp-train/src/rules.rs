//! Rules: which tensors of which layers get which scheme.

use globset::{Glob, GlobMatcher};
use regex::Regex;
use schemars::JsonSchema;
use scrimp_codec::Scheme;
use serde::{Deserialize, Serialize};

use crate::phases::When;
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

/// Which kinds of layers a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a kind such as \"batch_norm\", a list of kinds, or \"all\"")]
pub enum Kinds {
    /// One kind, or `all`.
    Kind(String),
    /// Several kinds.
    List(Vec<String>),
}

/// The kinds that a rule speaks of where it names none: those whose weight is what the layer is about.
pub const USUAL_KINDS: [&str; 3] = ["conv2d", "linear", "embedding"];

/// The word for every kind.
pub const ALL_KINDS: &str = "all";

impl Kinds {
    /// The words.
    pub fn words(&self) -> &[String] {
        match self {
            Self::Kind(word) => std::slice::from_ref(word),
            Self::List(words) => words,
        }
    }
}

/// One rule. A later rule wins over an earlier one, tensor by tensor.
///
/// A shorter key covers a longer one: `dw` is looked for first, then `d`, then `default`. A tensor that no rule speaks of
/// stays f32. What an optimizer keeps between steps is looked for under keys of its own, which `d` and `default` do not
/// cover: `v`, then `m`, and for a bias `vb`, then `mb`, before either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which layers, by path.
    pub layers: Layers,
    /// Which kinds of layers among them: `conv2d`, `linear`, `embedding`, `batch_norm`, `layer_norm`, `activation`, `pooling`,
    /// `attention`, or `all`. Without the key the first three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kinds: Option<Kinds>,
    /// The rule holds once so many epochs, or steps, are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<When>,
    /// The rule holds until so many epochs, or steps, are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<When>,
    /// A remark, printed beside what the rule claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Every tensor of a step that no other key of this rule names; not what the optimizer keeps.
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
    /// What each worker sends of dw and db.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub a: Option<Scheme>,
    /// What each worker sends of dw, in place of the `up` of `[exchange]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub aw: Option<Scheme>,
    /// What each worker sends of db, in place of the `up` of `[exchange]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub ab: Option<Scheme>,
    /// The first moment of the optimizer, or its momentum, held as bytes between steps; where no other key names them
    /// also the second moment, and both of the bias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub m: Option<Scheme>,
    /// The second moment of the optimizer, and the largest one of `amsgrad`, held as bytes between steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub v: Option<Scheme>,
    /// What `m` is, of the bias alone; where `vb` does not say otherwise also its second moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub mb: Option<Scheme>,
    /// What `v` is, of the bias alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub vb: Option<Scheme>,
    /// Whether weights and biases are also kept in f32 (the default), so that small updates add up. With `false` each is
    /// rounded to its own scheme after every update, and the next update starts from that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<bool>,
}

/// The keys of a rule that take a scheme.
const KEYS: [&str; 17] = [
    "default", "w", "b", "x", "y", "d", "dy", "dx", "dw", "db", "a", "aw", "ab", "m", "v", "mb",
    "vb",
];

impl Rule {
    /// A rule for `layers` that says nothing yet.
    pub fn new(layers: &str) -> Self {
        Self {
            layers: Layers::Glob(layers.into()),
            kinds: None,
            after: None,
            until: None,
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
            a: None,
            aw: None,
            ab: None,
            m: None,
            v: None,
            mb: None,
            vb: None,
            master: None,
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
            "a" => &self.a,
            "aw" => &self.aw,
            "ab" => &self.ab,
            "m" => &self.m,
            "v" => &self.v,
            "mb" => &self.mb,
            "vb" => &self.vb,
            _ => &None,
        }
        .as_ref()
    }

    /// The keys with a scheme that this rule sets.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        KEYS.into_iter().filter(|k| self.get(k).is_some())
    }

    /// Whether the rule speaks of layers of this kind.
    pub fn takes(&self, kind: &str) -> bool {
        match &self.kinds {
            None => USUAL_KINDS.contains(&kind),
            Some(kinds) => kinds.words().iter().any(|word| word == ALL_KINDS || word == kind),
        }
    }

    /// The scheme for a role, with the key that gave it.
    pub fn scheme(&self, role: Role) -> Option<(&'static str, &Scheme)> {
        role.keys().iter().find_map(|k| self.get(k).map(|s| (*k, s)))
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
