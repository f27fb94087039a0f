//! The scheme string: one short text that says format, granularity, scale and rounding.
//!
//! ```text
//! scheme      = head *( "/" word )
//! head        = a format's name: f32, e4m3fn, int8, uint4, fp:e3m4, qml:m2, ...
//! word        = granularity | scale | rounding | special | stage | a word of the format (full, qml, deepspeed, sat, ieee)
//! granularity = "tensor" | "channel" | "axis:" N | "row" | "group:" N | "block:" N | "flat:" N | "tile:" R "x" C | "matrix"
//! scale       = "scale:" ( "f32" | "f16" | "bf16" | "pow2" | "e4m3fn" | "floor" | "ceil" | "even" | "rceil" )
//! rounding    = "rne" | "half-away" | "toward-zero" | "floor" | "stochastic"
//! special     = "nonfinite:" ( "error" | "saturate" | "propagate" ) | "delayed:" N
//! stage       = a word of [`STAGES`](crate::STAGES): nnw, bdi, rans
//! ```
//!
//! `block:N` is another word for `group:N`. Which ways to store a scale there are depends on the format: `floor`, `ceil`,
//! `even` and `rceil` are rules of the microscaling formats.
//!
//! `matrix` goes with `row`, `group` and `tile`: all axes but the first count as one, so that the rows of a convolution's
//! weight are whole filters. Weights get it by themselves ([`Scheme::for_weight`]).
//!
//! `delayed:N` takes the scale of a tensor from the ranges of the last N before it, where they are remembered; it goes with
//! `tensor`, `channel` and `axis`.
//!
//! Words may come in any order and are printed in one order, without those that say the default.

use std::fmt::{self, Write};
use std::ops;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codecs::{Codec, Factors, Integers, Job, Scaled, Size, Terms};
use crate::families::FAMILIES;
use crate::formats::{Card, Float32, Format, HeadError, Scaling};
use crate::granularity::elems;
use crate::stages::STAGES;
use crate::{
    DecodeError, EncodeError, Granularity, Memory, Rounding, ScaleFormat, ShapeError, Stream, Tally,
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
    codec: Arc<dyn Codec>,
    terms: Terms,
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
        Self::of(Scaled::of(Float32))
    }

    /// A codec as it is without a common word, be it in the registry or not.
    pub fn of(codec: Arc<dyn Codec>) -> Self {
        let defaults = codec.defaults();
        let scaled = defaults.scaling == Scaling::Always;
        let terms = Terms {
            granularity: defaults.granularity,
            matrix: false,
            scale: defaults.scales.first().copied().filter(|_| scaled),
            rounding: defaults.rounding.unwrap_or_default(),
            nonfinite: NonFinite::default(),
            delayed: None,
        };
        Self::build(codec, terms)
    }

    /// Whether the tensor stays as it is.
    pub fn is_float32(&self) -> bool {
        self.codec.format().is_some_and(|f| f.header().scaling == Scaling::Never)
    }

    /// The facts about it, with the rounding in force.
    pub fn card(&self) -> Card {
        Card { rounding: self.terms.rounding.word(), ..self.codec.card() }
    }

    /// The format of the elements, where elements have one.
    pub fn format(&self) -> Option<&dyn Format> {
        self.codec.format()
    }

    /// The codec that its head names.
    pub fn codec(&self) -> &dyn Codec {
        &*self.codec
    }

    /// Which elements share a scale, or whatever else there is for a group; `None` where there are no groups.
    pub fn granularity(&self) -> Option<Granularity> {
        self.has_groups().then_some(self.terms.granularity)
    }

    /// What the common words say.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// How values are rounded.
    pub fn rounding(&self) -> Rounding {
        self.terms.rounding
    }

    fn has_groups(&self) -> bool {
        match self.codec.defaults().scaling {
            Scaling::Never => false,
            Scaling::OnRequest => self.terms.scale.is_some(),
            Scaling::Always => true,
        }
    }

    /// The scheme for a tensor whose channels lie on this axis (a batch of activations or of their gradients): `channel`
    /// becomes `axis:N`.
    #[must_use]
    pub fn for_activation(&self, channels: usize) -> Self {
        if self.granularity() == Some(Granularity::Channel) {
            let terms = Terms { granularity: Granularity::Axis(channels), ..self.terms.clone() };
            Self::build(self.codec.clone(), terms)
        } else {
            self.clone()
        }
    }

    /// The scheme for a weight of this shape: where it has more than two axes (a convolution), `row`, `group` and `tile`
    /// take it as a matrix of one row for each output, so that groups run along everything that is summed over.
    #[must_use]
    pub fn for_weight(&self, shape: &[usize]) -> Self {
        if shape.len() > 2 && self.granularity().is_some_and(has_rows) {
            Self::build(self.codec.clone(), Terms { matrix: true, ..self.terms.clone() })
        } else {
            self.clone()
        }
    }

    /// Whether the scheme fits a shape.
    ///
    /// # Errors
    /// [`ShapeError`] says why not, and what would.
    pub fn check(&self, shape: &[usize]) -> Result<(), ShapeError> {
        self.size(shape).map(|_| ())
    }

    /// How many bytes [`encode`](Self::encode) writes for a tensor of this shape, with all that is stored beside codes.
    ///
    /// # Errors
    /// If the scheme does not fit the shape.
    pub fn size(&self, shape: &[usize]) -> Result<Size, ShapeError> {
        self.codec.size(&self.terms, shape)
    }

    /// How many groups with a scale of their own a tensor of this shape has.
    ///
    /// # Errors
    /// If the scheme does not fit the shape.
    pub fn groups(&self, shape: &[usize]) -> Result<usize, ShapeError> {
        Ok(if self.has_groups() { self.codec.groups(&self.terms, shape)? } else { 0 })
    }

    /// What a new tensor of this shape is remembered by, for schemes that depend on what was encoded before.
    ///
    /// # Errors
    /// If the scheme does not fit the shape.
    pub fn memory(&self, shape: &[usize]) -> Result<Option<Memory>, ShapeError> {
        self.codec.memory(&self.terms, shape)
    }

    /// The scales that `x` would get by itself, one for each group, for schemes whose workers can agree on common ones
    /// (`terngrad`); none for all others. The largest of each group over all workers, as [`Memory::Shared`], makes their
    /// codes mean the same, so that codes can be added up.
    ///
    /// # Errors
    /// As [`emulate`](Self::emulate).
    pub fn scales(&self, x: &[f32], shape: &[usize]) -> Result<Vec<f32>, EncodeError> {
        self.check_length(x.len(), shape)?;
        self.codec.scales(self.job(shape, &Stream::new(0, 0), None), x)
    }

    /// Rounds `x`, a tensor of the given shape in row-major order, to the values that its bytes would hold.
    ///
    /// `stream` is read only by schemes that draw random numbers.
    ///
    /// # Errors
    /// If the scheme does not fit the shape or cannot hold a value. The contents of `x` are then unspecified.
    pub fn emulate(
        &self,
        x: &mut [f32],
        shape: &[usize],
        stream: &Stream,
    ) -> Result<Tally, EncodeError> {
        self.emulate_next(x, shape, stream, None)
    }

    /// As [`emulate`](Self::emulate), for the next tensor in a row: `memory` is that of [`memory`](Self::memory).
    ///
    /// # Errors
    /// As [`emulate`](Self::emulate). The memory is then unspecified too.
    pub fn emulate_next(
        &self,
        x: &mut [f32],
        shape: &[usize],
        stream: &Stream,
        memory: Option<&mut Memory>,
    ) -> Result<Tally, EncodeError> {
        self.check_length(x.len(), shape)?;
        self.codec.emulate(self.job(shape, stream, memory), x)
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
        self.encode_next(x, shape, stream, None, out)
    }

    /// As [`encode`](Self::encode), for the next tensor in a row: `memory` is that of [`memory`](Self::memory).
    ///
    /// # Errors
    /// As [`encode`](Self::encode). The memory is then unspecified.
    pub fn encode_next(
        &self,
        x: &[f32],
        shape: &[usize],
        stream: &Stream,
        memory: Option<&mut Memory>,
        out: &mut Vec<u8>,
    ) -> Result<Tally, EncodeError> {
        self.check_length(x.len(), shape)?;
        self.codec.encode(self.job(shape, stream, memory), x, out)
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
        self.check_bytes(bytes, shape, out.len())?;
        self.codec.decode(&self.terms, bytes, shape, out)
    }

    /// How many values of `x`, whose encoding `bytes` is, were clipped: they lie beyond the outermost values that their
    /// group's codes reach, by more than rounding takes. `None` where that means nothing to the codec.
    ///
    /// NaN is not counted; an infinity is.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), where `x` takes the place of the output.
    pub fn saturated(
        &self,
        x: &[f32],
        bytes: &[u8],
        shape: &[usize],
    ) -> Result<Option<u64>, DecodeError> {
        self.check_bytes(bytes, shape, x.len())?;
        self.codec.saturated(&self.terms, bytes, shape, x)
    }

    /// Fills `out` with the smallest positive value that each element's codes offer beside what the bytes store for its
    /// group; 0 where they offer none. Codecs without such codes give the smallest positive value that the bytes hold.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn smallest(
        &self,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        self.check_bytes(bytes, shape, out.len())?;
        self.codec.smallest(&self.terms, bytes, shape, out)
    }

    /// Turns the bytes of a tensor back into its elements `range`, in storage order, of which `out` holds as many.
    ///
    /// Schemes whose bytes can be entered anywhere (`smaq`) read only what they need; others decode the tensor.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), or if the shape does not have these elements; but what is wrong outside of the range
    /// may go unnoticed.
    pub fn decode_range(
        &self,
        bytes: &[u8],
        shape: &[usize],
        range: ops::Range<usize>,
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        let elems = elems(shape)?;
        self.check_bytes(bytes, shape, elems)?;
        if range.start > range.end || range.end > elems {
            return Err(DecodeError::Range { shape: shape.to_vec(), elems, range });
        }
        let (expected, actual) = (range.len(), out.len());
        if expected != actual {
            return Err(DecodeError::Output { shape: shape.to_vec(), expected, actual });
        }
        if range.is_empty() {
            return Ok(());
        }
        self.codec.decode_range(&self.terms, bytes, shape, range, out)
    }

    fn check_bytes(&self, bytes: &[u8], shape: &[usize], values: usize) -> Result<(), DecodeError> {
        let (expected, actual) = (self.size(shape)?, bytes.len());
        if !expected.contains(actual) {
            let (scheme, shape) = (self.to_string(), shape.to_vec());
            return Err(DecodeError::Length { scheme, shape, expected, actual });
        }
        let expected = elems(shape)?;
        if expected != values {
            return Err(DecodeError::Output { shape: shape.to_vec(), expected, actual: values });
        }
        Ok(())
    }

    /// The codes that the bytes of a tensor hold, one for each element; `None` where elements have no codes of one width.
    ///
    /// [`entropy_bits`](crate::stages::entropy_bits) says how small they could get.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn codes(&self, bytes: &[u8], shape: &[usize]) -> Result<Option<Vec<u32>>, DecodeError> {
        self.check_bytes(bytes, shape, elems(shape)?)?;
        self.codec.codes(&self.terms, bytes, shape)
    }

    /// What the elements of a tensor are as factors of a product: whether integers or bf16 hold them exactly.
    pub fn factors(&self) -> Factors {
        self.codec.factors(&self.terms)
    }

    /// The integers and scales that the bytes of a tensor hold; `None` where [`factors`](Self::factors) has no integers.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn integers<'a>(
        &self,
        bytes: &'a [u8],
        shape: &[usize],
    ) -> Result<Option<Integers<'a>>, DecodeError> {
        self.check_bytes(bytes, shape, elems(shape)?)?;
        self.codec.integers(&self.terms, bytes, shape)
    }

    fn check_length(&self, actual: usize, shape: &[usize]) -> Result<(), EncodeError> {
        self.check(shape)?;
        let expected = elems(shape)?;
        if actual == expected {
            Ok(())
        } else {
            Err(EncodeError::Length { shape: shape.to_vec(), expected, actual })
        }
    }

    fn job<'a>(
        &'a self,
        shape: &'a [usize],
        stream: &'a Stream,
        memory: Option<&'a mut Memory>,
    ) -> Job<'a> {
        Job { terms: &self.terms, shape, stream, memory, scheme: &self.text }
    }

    fn build(codec: Arc<dyn Codec>, terms: Terms) -> Self {
        let mut text = codec.name() + &codec.suffix();
        let defaults = codec.defaults();
        let on_request = defaults.scaling == Scaling::OnRequest && terms.scale.is_some();
        let chosen =
            defaults.scaling == Scaling::Always && terms.granularity != defaults.granularity;
        if on_request || chosen {
            let _ = write!(text, "/{}", terms.granularity);
        }
        if terms.matrix {
            text += "/matrix";
        }
        if let Some(store) = terms.scale.filter(|store| Some(store) != defaults.scales.first()) {
            let _ = write!(text, "/scale:{}", store.word());
        }
        if defaults.rounding.is_some_and(|usual| usual != terms.rounding) {
            let _ = write!(text, "/{}", terms.rounding.word());
        }
        if terms.nonfinite != NonFinite::default() {
            let _ = write!(text, "/nonfinite:{}", NonFinite::WORDS[terms.nonfinite as usize].0);
        }
        if let Some(length) = terms.delayed {
            let _ = write!(text, "/delayed:{length}");
        }
        Self { text: text.into(), codec, terms }
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
    /// By how many tensors a scale goes, and where that stands.
    delayed: Option<(u16, ops::Range<usize>)>,
}

impl FromStr for Scheme {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let mut words = text.split('/').scan(0, |at, word| {
            let start = *at;
            *at += word.len() + 1;
            Some(Word { text: word, start })
        });
        let error = |word: &Word, e: HeadError| SchemeError {
            text: text.to_owned(),
            span: word.start..word.start + word.text.len(),
            message: e.message,
            help: e.help,
        };
        let head = words.next().unwrap_or(Word { text: "", start: 0 });
        let mut codec = FAMILIES
            .iter()
            .find_map(|family| family.parse(head.text))
            .unwrap_or_else(|| Err(unknown_head(head.text)))
            .map_err(|e| error(&head, e))?;
        let mut said = Said::default();
        for word in words {
            said.take(&word, &mut codec).map_err(|e| error(&word, e))?;
        }
        if let Some(complaint) = codec.complaint() {
            return Err(error(&head, complaint));
        }
        let defaults = codec.defaults();
        let granularity = said.granularity.unwrap_or(defaults.granularity);
        if let Some(span) = said.matrix.clone().filter(|_| !has_rows(granularity)) {
            return Err(SchemeError {
                text: text.to_owned(),
                span,
                message: "`matrix` needs a granularity that has rows".into(),
                help: "use it with `row`, `group:N` or `tile:RxC`".into(),
            });
        }
        let scaled = match defaults.scaling {
            Scaling::Always => true,
            Scaling::OnRequest => {
                said.granularity.is_some() || said.scale.is_some() || said.delayed.is_some()
            }
            Scaling::Never => false,
        };
        if let Some(other) = codec.under_scale().filter(|_| scaled) {
            codec = other;
        }
        let usual = defaults.scales.first().copied().filter(|_| scaled);
        let scale = said.scale.or(usual);
        if let Some((_, span)) = &said.delayed
            && let Some(e) = no_history(&*codec, granularity, scale)
        {
            let (text, span) = (text.to_owned(), span.clone());
            return Err(SchemeError { text, span, message: e.message, help: e.help });
        }
        let terms = Terms {
            granularity,
            matrix: said.matrix.is_some(),
            scale,
            rounding: said.rounding.or(defaults.rounding).unwrap_or_default(),
            nonfinite: said.nonfinite.unwrap_or_default(),
            delayed: said.delayed.map(|(length, _)| length),
        };
        Ok(Self::build(codec, terms))
    }
}

/// The longest history of ranges.
const MOST_DELAYED: u16 = 1024;

/// Why scales cannot be those of earlier tensors.
fn no_history(
    codec: &dyn Codec,
    granularity: Granularity,
    scale: Option<ScaleFormat>,
) -> Option<HeadError> {
    let says = |message: String, help: &str| Some(HeadError { message, help: help.into() });
    if !codec.takes_history() {
        let name = codec.name();
        let message = format!("`{name}` has no scale that could be that of earlier tensors");
        return says(message, "leave `delayed` out");
    }
    if scale.is_some_and(ScaleFormat::is_nested) {
        let message = "scales that have a scale of their own are never delayed".into();
        return says(message, "leave `delayed` out");
    }
    match granularity {
        Granularity::Tensor | Granularity::Channel | Granularity::Axis(_) => None,
        _ => says(
            format!("a history of every group of `{granularity}` would be as large as the tensor"),
            "use `tensor`, `channel` or `axis:N` with it",
        ),
    }
}

impl Said {
    fn take(&mut self, word: &Word, codec: &mut Arc<dyn Codec>) -> Result<(), HeadError> {
        let text = word.text;
        let (name, defaults) = (codec.name(), codec.defaults());
        let refuse = |message: String, help: String| Err(HeadError { message, help });
        // A codec may mean something of its own by a word, so it is asked first.
        if let Some(changed) = codec.with_word(text).filter(|_| !text.starts_with("nonfinite:")) {
            *codec = changed?;
            return Ok(());
        }
        if codec.format().is_some_and(|f| f.header().scaling == Scaling::Never) {
            return refuse(
                format!("`{name}` takes no words: nothing is rounded"),
                format!("write `{name}`"),
            );
        }
        if let Some(granularity) = parse_granularity(text)? {
            if defaults.scaling == Scaling::Never {
                return refuse(
                    format!("`{name}` has no groups: it takes the tensor as one"),
                    format!("leave `{text}` out"),
                );
            }
            return once(&mut self.granularity, granularity, "granularity");
        }
        if text == "matrix" {
            return once(&mut self.matrix, word.start..word.start + text.len(), "`matrix`");
        }
        let scale = text.strip_prefix("scale:").or((text == "double").then_some(text));
        if let Some(scale) = scale {
            let words: Vec<_> = defaults.scales.iter().map(|s| (s.word(), *s)).collect();
            if words.is_empty() {
                return refuse(
                    format!("`{name}` has no scale to choose a format for"),
                    format!("leave `{text}` out"),
                );
            }
            return once(&mut self.scale, by_word(&words, scale, "scale")?, "scale");
        }
        if let Some(rule) = text.strip_prefix("nonfinite:") {
            let rule = by_word(&NonFinite::WORDS, rule, "nonfinite")?;
            if rule == NonFinite::Propagate {
                *codec = codec.with_word(text).unwrap_or_else(|| {
                    Err(HeadError {
                        message: format!("`{name}` has no NaN to propagate"),
                        help: "use `nonfinite:saturate`, or leave it out: an error".into(),
                    })
                })?;
            }
            return once(&mut self.nonfinite, rule, "rule for NaN and infinity");
        }
        if let Some(length) = text.strip_prefix("delayed:") {
            let length = match length.parse::<u16>() {
                Ok(length) if (1..=MOST_DELAYED).contains(&length) => length,
                _ => {
                    return refuse(
                        format!("`{length}` is no number of tensors"),
                        format!("a scale goes by the last 1 to {MOST_DELAYED}: `delayed:16`"),
                    );
                }
            };
            let span = word.start..word.start + text.len();
            return once(&mut self.delayed, (length, span), "`delayed`");
        }
        if let Some((_, rounding)) = Rounding::WORDS.iter().find(|(w, _)| *w == text) {
            if defaults.rounding.is_none() {
                return refuse(
                    format!("`{name}` rounds in one way only"),
                    format!("leave `{text}` out"),
                );
            }
            return once(&mut self.rounding, *rounding, "rounding");
        }
        refuse(format!("`{text}` is no word that `{name}` takes"), {
            let known = known_words(&**codec);
            match nearest(text, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("words for `{name}` are {}", known.join(", ")),
            }
        })
    }
}

/// Every word that a codec takes, with an example where it has a number.
fn known_words(codec: &dyn Codec) -> Vec<String> {
    let defaults = codec.defaults();
    let mut known: Vec<String> = Vec::new();
    if defaults.scaling != Scaling::Never {
        known.extend(GRANULARITIES.map(String::from));
    }
    if defaults.rounding.is_some() {
        known.extend(Rounding::WORDS.map(|(w, _)| w.to_owned()));
    }
    known.extend(defaults.scales.iter().map(|s| format!("scale:{}", s.word())));
    known.extend(NonFinite::WORDS.map(|(w, _)| format!("nonfinite:{w}")));
    if codec.takes_history() {
        known.push("delayed:16".into());
    }
    known.extend(codec.words().iter().map(|w| (*w).to_owned()));
    if codec.takes_stages() {
        known.extend(STAGES.iter().filter_map(|s| s.members().first()).map(|w| (*w).to_owned()));
    }
    known
}

/// Fills a slot that must be empty.
fn once<T>(slot: &mut Option<T>, value: T, what: &str) -> Result<(), HeadError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(HeadError {
            message: format!("the {what} is said twice"),
            help: "keep one of the two".into(),
        }),
    }
}

const GRANULARITIES: [&str; 8] =
    ["tensor", "channel", "axis:0", "row", "group:128", "flat:64", "tile:16x16", "matrix"];

fn parse_granularity(text: &str) -> Result<Option<Granularity>, HeadError> {
    let wrong = |message: String, help: String| HeadError { message, help };
    let number = |digits: &str, least: usize, example: &str| {
        let help = || format!("write for example `{example}`");
        match digits.parse::<usize>() {
            Ok(n) if n >= least => Ok(n),
            Ok(n) => {
                Err(wrong(format!("`{text}`: {n} is too small; the least is {least}"), help()))
            }
            Err(_) => Err(wrong(format!("`{text}` needs a whole number"), help())),
        }
    };
    Ok(Some(match text.split_once(':') {
        None => match text {
            "tensor" => Granularity::Tensor,
            "channel" => Granularity::Channel,
            "row" => Granularity::Row,
            "sample" => Granularity::Axis(0),
            "group" | "block" | "flat" | "axis" | "tile" => {
                let known = if text == "block" { "group" } else { text };
                let example =
                    GRANULARITIES.into_iter().find(|g| g.starts_with(known)).unwrap_or(known);
                return Err(wrong(
                    format!("`{text}` needs a length"),
                    format!("write for example `{example}`"),
                ));
            }
            _ => return Ok(None),
        },
        Some(("axis", n)) => Granularity::Axis(number(n, 0, "axis:1")?),
        // Block formats are written with `block`; it prints as `group`.
        Some(("group" | "block", n)) => Granularity::Group(number(n, 1, "group:128")?),
        Some(("flat", n)) => Granularity::Flat(number(n, 1, "flat:64")?),
        Some(("tile", size)) => {
            let (rows, cols) = size.split_once('x').unwrap_or((size, ""));
            Granularity::Tile(number(rows, 1, "tile:16x16")?, number(cols, 1, "tile:16x16")?)
        }
        Some(_) => return Ok(None),
    }))
}

fn by_word<T: Copy>(words: &[(&str, T)], text: &str, key: &str) -> Result<T, HeadError> {
    words.iter().find(|(w, _)| *w == text).map(|(_, v)| *v).ok_or_else(|| {
        let all: Vec<String> = words.iter().map(|(w, _)| format!("{key}:{w}")).collect();
        HeadError {
            message: format!("`{key}:{text}` is not one of those that fit here"),
            help: format!("write one of {}", all.join(", ")),
        }
    })
}

fn unknown_head(head: &str) -> HeadError {
    if head.is_empty() {
        return HeadError {
            message: "a scheme begins with a format".into(),
            help: "for example int8, int4/group:128 or e4m3fn".into(),
        };
    }
    let members: Vec<String> = FAMILIES.iter().flat_map(|f| f.members()).collect();
    let heads = members.iter().map(|m| m.split('/').next().unwrap_or(m));
    let near = synonym(head).or_else(|| nearest(head, heads));
    HeadError {
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
        head => FAMILIES
            .iter()
            .flat_map(|f| f.synonyms())
            .find(|(other, _)| *other == head)
            .map(|(_, own)| *own)?,
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
            "mxfp4/group:16/scale:rceil/stochastic/nonfinite:propagate",
            "int4/group:16/scale:e4m3fn",
            "bfp:mb4/bump/group:32",
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
        assert_eq!(parse("int4/block:16").to_string(), "int4/group:16");
        assert_eq!(parse("mxfp8_e5m2/block:32/scale:floor").to_string(), "mxfp8_e5m2");
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
            ("int4/block", 5..10, "group:128"),
            ("mxfp4/scale:f32", 6..15, "scale:rceil"),
            ("mxfp8", 0..5, "mxfp8_e4m3"),
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
    fn what_is_finite_stays_so_under_a_scale_that_was_rounded() {
        for text in ["f16/group:4/scale:f16", "bf16/tensor/scale:f16", "f16/tensor/scale:bf16/rans"]
        {
            let scheme = parse(text);
            assert_eq!(parse(&scheme.to_string()), scheme);
            let mut x = [3e38, -3e38, 65521.0, 1.000_1];
            scheme.emulate(&mut x, &[1, 4], &Stream::new(0, 0)).unwrap();
            assert!(x.iter().all(|v| v.is_finite()), "{text} {x:?}");
            let mut x = [1.0, f32::INFINITY, f32::NEG_INFINITY, 0.0];
            scheme.emulate(&mut x, &[1, 4], &Stream::new(0, 0)).unwrap();
            assert_eq!(x[1..3], [f32::INFINITY, f32::NEG_INFINITY], "{text}");
        }
        assert_eq!(parse("f16/ieee/tensor").to_string(), "f16/ieee/tensor");
        assert_eq!(parse("f16/ieee").to_string(), "f16");
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
        assert_eq!(parse("int8/channel").for_activation(1).to_string(), "int8/axis:1");
        assert_eq!(parse("int8/group:4").for_activation(1).to_string(), "int8/group:4");
    }
}
