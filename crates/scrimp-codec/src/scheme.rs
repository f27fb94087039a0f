//! The scheme string: one short text that says format, granularity, scale and rounding.
//!
//! ```text
//! scheme      = head *( "/" word )
//! head        = a format's name: f32, e4m3fn, int8, uint4, fp:e3m4, qml:m2, ...
//! word        = granularity | scale | rounding | special | a word of the format (full, qml, deepspeed, sat, ieee)
//! granularity = "tensor" | "channel" | "axis:" N | "row" | "group:" N | "flat:" N | "tile:" R "x" C | "matrix"
//! scale       = "scale:" ( "f32" | "f16" | "bf16" | "pow2" )
//! rounding    = "rne" | "half-away" | "toward-zero" | "floor" | "stochastic"
//! special     = "nonfinite:" ( "error" | "saturate" | "propagate" )
//! ```
//!
//! `matrix` goes with `row`, `group` and `tile`: all axes but the first count as one, so that the rows of a convolution's
//! weight are whole filters. Weights get it by themselves ([`Scheme::for_weight`]).
//!
//! Words may come in any order and are printed in one order, without those that say the default.

use std::fmt::{self, Write};
use std::ops;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::formats::{FAMILIES, Format, Scaling};
use crate::scaled::Scaled;
use crate::{
    DecodeError, EncodeError, Granularity, Rounding, ScaleFormat, ShapeError, Stream, Tally,
};

/// What happens to NaN and infinity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NonFinite {
    /// What the format cannot hold is an error that names the element. NaN stays NaN where it has a code, and infinity
    /// follows the format's overflow rule.
    #[default]
    Error,
    /// Infinity becomes the largest code and NaN zero; both are counted.
    Saturate,
    /// Infinity stays infinite (NaN in a format without it) although finite values saturate; only for formats with NaN.
    Propagate,
}

impl NonFinite {
    const WORDS: [(&str, NonFinite); 3] = [
        ("error", NonFinite::Error),
        ("saturate", NonFinite::Saturate),
        ("propagate", NonFinite::Propagate),
    ];
}

/// How a tensor is stored: the parsed form of a scheme string.
///
/// Two schemes are equal when they print the same.
#[derive(Clone)]
pub struct Scheme {
    text: Arc<str>,
    scaled: Scaled,
}

/// A string that is no scheme. Prints the string with a caret under what is wrong, and what would be valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemeError {
    /// The whole string.
    pub text: String,
    /// Which bytes of it are wrong.
    pub span: ops::Range<usize>,
    /// What is wrong with them.
    pub message: String,
    /// What would be valid.
    pub help: String,
}

impl fmt::Display for SchemeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = self.text[..self.span.start].chars().count();
        let width = self.text[self.span.clone()].chars().count().max(1);
        writeln!(f, "{}", self.message)?;
        writeln!(f, "  {}", self.text)?;
        writeln!(f, "  {:column$}{}", "", "^".repeat(width))?;
        write!(f, "  help: {}", self.help)
    }
}

impl std::error::Error for SchemeError {}

impl Scheme {
    /// The scheme that stores `f32` as it is.
    pub fn float32() -> Self {
        Self::build(Scaled {
            format: Arc::new(crate::formats::Float32),
            granularity: Granularity::Tensor,
            matrix: false,
            scale: None,
            rounding: Rounding::NearestEven,
            nonfinite: NonFinite::Error,
        })
    }

    /// Whether the tensor stays as it is.
    pub fn is_float32(&self) -> bool {
        self.scaled.format.header().scaling == Scaling::Never
    }

    /// The format of the elements.
    pub fn format(&self) -> &dyn Format {
        &*self.scaled.format
    }

    /// Which elements share a scale; `None` where there is no scale.
    pub fn granularity(&self) -> Option<Granularity> {
        self.scaled.scale.map(|_| self.scaled.granularity)
    }

    /// How values are rounded.
    pub fn rounding(&self) -> Rounding {
        self.scaled.rounding
    }

    /// The scheme for a tensor whose channels lie on axis 1 (a batch of activations or of their gradients):
    /// `channel` becomes `axis:1`.
    #[must_use]
    pub fn for_activation(&self) -> Self {
        if self.scaled.scale.is_some() && self.scaled.granularity == Granularity::Channel {
            Self::build(Scaled { granularity: Granularity::Axis(1), ..self.scaled.clone() })
        } else {
            self.clone()
        }
    }

    /// The scheme for a weight of this shape: where it has more than two axes (a convolution), `row`, `group` and `tile`
    /// take it as a matrix of one row for each output, so that groups run along everything that is summed over.
    #[must_use]
    pub fn for_weight(&self, shape: &[usize]) -> Self {
        if shape.len() > 2 && self.scaled.scale.is_some() && has_rows(self.scaled.granularity) {
            Self::build(Scaled { matrix: true, ..self.scaled.clone() })
        } else {
            self.clone()
        }
    }

    /// Whether the scheme fits a shape.
    ///
    /// # Errors
    /// [`ShapeError`] says why not, and what would.
    pub fn check(&self, shape: &[usize]) -> Result<(), ShapeError> {
        self.packed_bytes(shape).map(|_| ())
    }

    /// How many bytes [`encode`](Self::encode) writes for a tensor of this shape, scales included.
    ///
    /// # Errors
    /// If the scheme does not fit the shape.
    pub fn packed_bytes(&self, shape: &[usize]) -> Result<usize, ShapeError> {
        self.scaled.packed_bytes(shape)
    }

    /// How many groups with a scale of their own a tensor of this shape has.
    ///
    /// # Errors
    /// If the scheme does not fit the shape.
    pub fn groups(&self, shape: &[usize]) -> Result<usize, ShapeError> {
        self.scaled.groups(shape)
    }

    /// Rounds `x`, a tensor of the given shape in row-major order, to the values that its bytes would hold.
    ///
    /// `stream` is read only by stochastic rounding.
    ///
    /// # Errors
    /// If the scheme does not fit the shape or cannot hold a value. The contents of `x` are then unspecified.
    pub fn emulate(
        &self,
        x: &mut [f32],
        shape: &[usize],
        stream: &Stream,
    ) -> Result<Tally, EncodeError> {
        self.scaled.emulate(x, shape, stream, || self.to_string())
    }

    /// Appends the bytes of `x`, a tensor of the given shape in row-major order.
    ///
    /// # Errors
    /// If the scheme does not fit the shape or cannot hold a value; `out` is then unchanged.
    pub fn encode(
        &self,
        x: &[f32],
        shape: &[usize],
        stream: &Stream,
        out: &mut Vec<u8>,
    ) -> Result<Tally, EncodeError> {
        self.scaled.encode(x, shape, stream, out, || self.to_string())
    }

    /// Turns the bytes of a tensor back into its values.
    ///
    /// # Errors
    /// If the bytes are not what this scheme writes for this shape. Any bytes may be given.
    pub fn decode(
        &self,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        self.scaled.decode(bytes, shape, out, || self.to_string())
    }

    fn build(scaled: Scaled) -> Self {
        let format = &scaled.format;
        let mut text = format.name() + &format.suffix();
        let scaling = format.header().scaling;
        if let Some(store) = scaled.scale {
            if scaling == Scaling::OnRequest || scaled.granularity != format.default_granularity() {
                let _ = write!(text, "/{}", scaled.granularity);
            }
            if scaled.matrix {
                text += "/matrix";
            }
            if store != ScaleFormat::default() {
                let _ = write!(text, "/scale:{}", store.word());
            }
        }
        if scaled.rounding != format.default_rounding() {
            let _ = write!(text, "/{}", scaled.rounding.word());
        }
        if scaled.nonfinite != NonFinite::default() {
            let _ = write!(text, "/nonfinite:{}", NonFinite::WORDS[scaled.nonfinite as usize].0);
        }
        Self { text: text.into(), scaled }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scheme({})", self.text)
    }
}

impl PartialEq for Scheme {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Scheme {}

impl std::hash::Hash for Scheme {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// Whether `matrix` means something to a granularity.
fn has_rows(granularity: Granularity) -> bool {
    matches!(granularity, Granularity::Row | Granularity::Group(_) | Granularity::Tile(..))
}

/// A word of a scheme string, and where it stands.
struct Word<'a> {
    text: &'a str,
    start: usize,
}

/// What has been said so far, so that saying it twice is an error.
#[derive(Default)]
struct Said {
    granularity: Option<Granularity>,
    /// Where `matrix` stands.
    matrix: Option<ops::Range<usize>>,
    scale: Option<ScaleFormat>,
    rounding: Option<Rounding>,
    nonfinite: Option<NonFinite>,
    format_word: bool,
}

impl FromStr for Scheme {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let mut words = text.split('/').scan(0, |at, word| {
            let start = *at;
            *at += word.len() + 1;
            Some(Word { text: word, start })
        });
        let error = |word: &Word, message: String, help: String| SchemeError {
            text: text.to_owned(),
            span: word.start..word.start + word.text.len(),
            message,
            help,
        };
        let head = words.next().unwrap_or(Word { text: "", start: 0 });
        let mut format = FAMILIES
            .iter()
            .find_map(|family| family.parse(head.text))
            .unwrap_or_else(|| Err(unknown_head(head.text)))
            .map_err(|e| error(&head, e.message, e.help))?;
        let mut said = Said::default();
        for word in words {
            said.take(&word, &mut format).map_err(|(message, help)| error(&word, message, help))?;
        }
        if let Some(complaint) = format.complaint() {
            return Err(error(&head, complaint.message, complaint.help));
        }
        if let Some(span) = said.matrix.clone().filter(|_| !said.granularity.is_some_and(has_rows))
        {
            return Err(SchemeError {
                text: text.to_owned(),
                span,
                message: "`matrix` needs a granularity that has rows".into(),
                help: "use it with `row`, `group:N` or `tile:RxC`".into(),
            });
        }
        let scaled = match format.header().scaling {
            Scaling::Always => true,
            Scaling::OnRequest => said.granularity.is_some() || said.scale.is_some(),
            Scaling::Never => false,
        };
        Ok(Self::build(Scaled {
            granularity: said.granularity.unwrap_or(format.default_granularity()),
            matrix: said.matrix.is_some(),
            scale: scaled.then(|| said.scale.unwrap_or_default()),
            rounding: said.rounding.unwrap_or(format.default_rounding()),
            nonfinite: said.nonfinite.unwrap_or_default(),
            format,
        }))
    }
}

impl Said {
    fn take(&mut self, word: &Word, format: &mut Arc<dyn Format>) -> Result<(), (String, String)> {
        let text = word.text;
        let name = format.name();
        if format.header().scaling == Scaling::Never {
            return Err((
                format!("`{name}` takes no words: nothing is rounded"),
                format!("write `{name}`"),
            ));
        }
        if let Some(granularity) = parse_granularity(text)? {
            return once(&mut self.granularity, granularity, "granularity");
        }
        if text == "matrix" {
            return once(&mut self.matrix, word.start..word.start + text.len(), "`matrix`");
        }
        if let Some(name) = text.strip_prefix("scale:") {
            let scale = by_word(&ScaleFormat::WORDS, name, "scale")?;
            return once(&mut self.scale, scale, "scale");
        }
        if let Some(name) = text.strip_prefix("nonfinite:") {
            let rule = by_word(&NonFinite::WORDS, name, "nonfinite")?;
            if rule == NonFinite::Propagate {
                *format = format.with_word(text).ok_or_else(|| {
                    (
                        format!("`{name}` has no NaN to propagate", name = format.name()),
                        "use `nonfinite:saturate`, or leave it out: an error".into(),
                    )
                })?;
            }
            return once(&mut self.nonfinite, rule, "rule for NaN and infinity");
        }
        if let Some((_, rounding)) = Rounding::WORDS.iter().find(|(w, _)| *w == text) {
            return once(&mut self.rounding, *rounding, "rounding");
        }
        if let Some(changed) = format.with_word(text) {
            if std::mem::replace(&mut self.format_word, true) {
                return Err((
                    format!("`{text}` contradicts an earlier word of `{name}`"),
                    "keep one of the two".into(),
                ));
            }
            *format = changed;
            return Ok(());
        }
        let known = GRANULARITIES
            .into_iter()
            .chain(Rounding::WORDS.map(|(w, _)| w))
            .chain(ScaleFormat::WORDS.map(|(w, _)| match w {
                "f16" => "scale:f16",
                "bf16" => "scale:bf16",
                "pow2" => "scale:pow2",
                _ => "scale:f32",
            }))
            .chain(["nonfinite:error", "nonfinite:saturate", "nonfinite:propagate"])
            .chain(format.words().iter().copied());
        let help = match nearest(text, known.clone()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("words for `{name}` are {}", known.collect::<Vec<_>>().join(", ")),
        };
        Err((format!("`{text}` is no word that `{name}` takes"), help))
    }
}

/// Fills a slot that must be empty.
fn once<T>(slot: &mut Option<T>, value: T, what: &str) -> Result<(), (String, String)> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err((format!("the {what} is said twice"), "keep one of the two".into())),
    }
}

const GRANULARITIES: [&str; 8] =
    ["tensor", "channel", "axis:0", "row", "group:128", "flat:64", "tile:16x16", "matrix"];

fn parse_granularity(text: &str) -> Result<Option<Granularity>, (String, String)> {
    let number = |digits: &str, least: usize, example: &str| {
        let help = || format!("write for example `{example}`");
        match digits.parse::<usize>() {
            Ok(n) if n >= least => Ok(n),
            Ok(n) => Err((format!("`{text}`: {n} is too small; the least is {least}"), help())),
            Err(_) => Err((format!("`{text}` needs a whole number"), help())),
        }
    };
    Ok(Some(match text.split_once(':') {
        None => match text {
            "tensor" => Granularity::Tensor,
            "channel" => Granularity::Channel,
            "row" => Granularity::Row,
            "sample" => Granularity::Axis(0),
            "group" | "flat" | "axis" | "tile" => {
                let example =
                    GRANULARITIES.into_iter().find(|g| g.starts_with(text)).unwrap_or(text);
                return Err((
                    format!("`{text}` needs a length"),
                    format!("write for example `{example}`"),
                ));
            }
            _ => return Ok(None),
        },
        Some(("axis", n)) => Granularity::Axis(number(n, 0, "axis:1")?),
        Some(("group", n)) => Granularity::Group(number(n, 1, "group:128")?),
        Some(("flat", n)) => Granularity::Flat(number(n, 1, "flat:64")?),
        Some(("tile", size)) => {
            let (rows, cols) = size.split_once('x').unwrap_or((size, ""));
            Granularity::Tile(number(rows, 1, "tile:16x16")?, number(cols, 1, "tile:16x16")?)
        }
        Some(_) => return Ok(None),
    }))
}

fn by_word<T: Copy>(words: &[(&str, T)], text: &str, key: &str) -> Result<T, (String, String)> {
    words.iter().find(|(w, _)| *w == text).map(|(_, v)| *v).ok_or_else(|| {
        let all: Vec<String> = words.iter().map(|(w, _)| format!("{key}:{w}")).collect();
        (format!("`{key}:{text}` is not known"), format!("write one of {}", all.join(", ")))
    })
}

fn unknown_head(head: &str) -> crate::formats::HeadError {
    if head.is_empty() {
        return crate::formats::HeadError {
            message: "a scheme begins with a format".into(),
            help: "for example int8, int4/group:128 or e4m3fn".into(),
        };
    }
    let members: Vec<String> = FAMILIES.iter().flat_map(|f| f.members()).collect();
    let heads = members.iter().map(|m| m.split('/').next().unwrap_or(m));
    let near = nearest(head, heads).or_else(|| synonym(head));
    crate::formats::HeadError {
        message: format!("unknown format `{head}`"),
        help: if let Some(near) = near {
            format!("did you mean `{near}`? `scrimp formats` lists them all")
        } else {
            let all: Vec<&str> = FAMILIES.iter().map(|f| f.syntax()).collect();
            format!("formats are {}", all.join(", "))
        },
    }
}

/// Names that other tools use.
fn synonym(head: &str) -> Option<&'static str> {
    Some(match head.to_ascii_lowercase().as_str() {
        "fp32" | "float" | "float32" | "none" => "f32",
        "fp16" | "float16" | "half" => "f16",
        "bfloat16" => "bf16",
        "fp8" | "float8_e4m3fn" | "fp8_e4m3" | "fp8_e4m3fn" => "e4m3fn",
        "float8_e5m2" | "fp8_e5m2" => "e5m2",
        "fp6" | "float6_e3m2fn" => "e3m2fn",
        "float6_e2m3fn" => "e2m3fn",
        "fp4" | "float4_e2m1fn" => "e2m1fn",
        "i8" | "qint8" => "int8",
        "u8" | "quint8" => "uint8",
        _ => return None,
    })
}

/// The candidate that `text` is most likely a misspelling of, if one is near.
pub fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(text, c), c))
        .filter(|(distance, c)| *distance * 2 <= c.len().max(2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

impl Serialize for Scheme {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Scheme {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A table says the same with a key for each kind of word.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            format: String,
            granularity: Option<String>,
            scale: Option<String>,
            rounding: Option<String>,
            nonfinite: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a scheme string such as \"int8/channel\", or a table with `format`, `granularity`, `scale`, `rounding`, `nonfinite`"
        )]
        enum Form {
            Text(String),
            Table(Table),
        }
        let text = match Form::deserialize(deserializer)? {
            Form::Text(text) => text,
            Form::Table(t) => [
                Some(t.format),
                t.granularity,
                t.scale.map(|s| format!("scale:{s}")),
                t.rounding,
                t.nonfinite.map(|s| format!("nonfinite:{s}")),
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("/"),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Scheme {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn canonical_strings_print_as_they_were_read() {
        for text in [
            "f32",
            "int8",
            "int4/group:128",
            "int8/channel",
            "e4m3fn",
            "e5m2/stochastic",
            "fp:e3m4",
            "fp:e4m3:11:fn",
            "uint4/qml",
            "uint4/qml/tensor",
            "int8/full/channel/scale:pow2/stochastic/nonfinite:saturate",
            "e4m3fn/tensor",
            "e4m3fn/ieee/group:32/scale:f16",
            "f16/sat",
            "qml:m2",
            "qml:m2/rne",
            "int8/tile:2x3",
            "e4m3fn/nonfinite:propagate",
            "int4/group:32/matrix/scale:f16",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn words_come_in_any_order_and_defaults_are_left_out() {
        assert_eq!(
            parse("int8/stochastic/channel/full").to_string(),
            "int8/full/channel/stochastic"
        );
        assert_eq!(parse("int8/tensor/rne/scale:f32/nonfinite:error").to_string(), "int8");
        assert_eq!(parse("uint8/qml/sample").to_string(), "uint8/qml");
        assert_eq!(parse("e4m3fn/scale:f32").to_string(), "e4m3fn/tensor");
        assert_eq!(parse("f16/ieee").to_string(), "f16");
    }

    #[test]
    fn errors_point_at_the_word_and_name_what_is_valid() {
        for (text, span, part) in [
            ("itn8/channel", 0..4, "did you mean `int8`"),
            ("int0", 0..4, "int2"),
            ("int17", 0..5, "int16"),
            ("int1", 0..4, "uint1"),
            ("fp:e9m9", 0..7, "fp:e8m9"),
            ("int4/group:0", 5..12, "group:128"),
            ("int4/group", 5..10, "group:128"),
            ("int4/grup:32", 5..12, "group:128"),
            ("int8/chanel", 5..11, "channel"),
            ("int8/channel/row", 13..16, "keep one"),
            ("int8/ieee", 5..9, "full"),
            ("e2m1fn/ieee", 7..11, "sat"),
            ("int8/nonfinite:propagate", 5..24, "saturate"),
            ("int8/scale:f8", 5..13, "scale:f16"),
            ("f32/channel", 4..11, "write `f32`"),
            ("fp8", 0..3, "e4m3fn"),
            ("", 0..0, "int8"),
            ("int8/", 5..5, "words for"),
            ("ünt8", 0..5, "int8"),
            ("int8/channel/matrix", 13..19, "group:N"),
        ] {
            let error = text.parse::<Scheme>().unwrap_err();
            assert_eq!(error.span, span, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn json_takes_the_string_and_the_table() {
        let from = |json: &str| serde_json::from_str::<Scheme>(json);
        let scheme = from(r#"{"format": "int4", "granularity": "group:32", "scale": "f16", "rounding": "stochastic"}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&scheme).unwrap(),
            "\"int4/group:32/scale:f16/stochastic\""
        );
        assert_eq!(from("\"int4/group:32/scale:f16/stochastic\"").unwrap(), scheme);
        assert!(from("\"int99\"").is_err());
        assert!(from(r#"{"format": "int4", "grain": 3}"#).is_err());
    }

    #[test]
    fn groups_of_a_convolution_run_along_whole_filters() {
        let scheme = parse("int4/group:32").for_weight(&[16, 16, 3, 3]);
        assert_eq!(scheme.to_string(), "int4/group:32/matrix");
        assert_eq!(scheme.groups(&[16, 16, 3, 3]), Ok(16 * 5)); // 144 = 4 * 32 + 16
        assert_eq!(parse("int4/group:32").groups(&[16, 16, 3, 3]), Ok(16 * 16 * 3));
        assert_eq!(parse("int4/group:32").for_weight(&[16, 144]).to_string(), "int4/group:32");
        assert_eq!(parse("int4/flat:32").for_weight(&[16, 16, 3, 3]).to_string(), "int4/flat:32");
    }

    #[test]
    fn channels_of_an_activation_are_its_axis_1() {
        assert_eq!(parse("int8/channel").for_activation().to_string(), "int8/axis:1");
        assert_eq!(parse("int8/group:4").for_activation().to_string(), "int8/group:4");
    }
}
