use std::fmt::Write as _;

use anyhow::bail;
use clap::Args;
use scrimp_codec::formats::{Format, Scaling};
use scrimp_codec::{Card, FAMILIES, Granularity, Params, Scheme, Size};
use serde::Serialize;

use crate::ui::{self, Side, Table, Ui};

/// Show the number formats: what each can hold, and how a scheme names it.
///
/// Examples:
///   scrimp formats
///   scrimp formats e4m3fn int4/group:64
///   scrimp formats e2m1fn --values
#[derive(Args)]
#[command(verbatim_doc_comment, after_long_help = scheme_help())]
pub struct Formats {
    /// Formats (e4m3fn, int4, fp:e3m4) or whole schemes (int4/group:64); without any, all families
    #[arg(value_name = "NAME")]
    names: Vec<Scheme>,

    /// List every code with its value at scale 1 (formats of up to 8 bits; with --json up to 20)
    #[arg(long, requires = "names", help_heading = "Output")]
    values: bool,

    /// Print one JSON object per format, or per code with --values; NaN and infinity are strings
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Schemes that show what the words of one are, and what each of them means.
const EXAMPLES: [(&str, &str); 5] = [
    ("int8", "8-bit integers, one scale for the tensor"),
    ("int8/channel", "one scale for each output channel of a weight"),
    ("int4/group:64/scale:f16", "one 16-bit scale for 64 values of a row: 4.25 bits per value"),
    ("e5m2/stochastic", "OCP FP8 as it is, rounded up or down by chance, right on average"),
    ("fp:e4m3:11:fn/tensor", "a float of your own: 4 exponent bits of bias 11, scaled to fit"),
];

/// The chapter on schemes that `scrimp help formats` ends with.
fn scheme_help() -> String {
    let mut help = String::from(
        "Schemes:\n  A scheme is a format, then words in any order, each after a slash:\n\n",
    );
    for (scheme, meaning) in EXAMPLES {
        // Writing to a string cannot fail.
        writeln!(help, "  {scheme:24}  {meaning}").ok();
    }
    help.push_str(
        "
  which values share a scale
    tensor      all of them (the default of integers)
    channel     each index of axis 0 of a weight, of the channel axis of an activation
    axis:N      each index of axis N
    row         each row of the last axis
    group:N     N along the last axis; a shorter row is a group of its own
    flat:N      N in storage order, across rows
    tile:RxC    a rectangle of the last two axes
    matrix      with row, group or tile: the axes but the first count as one, so that the rows of
                a convolution's weight are its filters; weights get it by themselves
  how a scale is stored
    scale:f32   scale:f16   scale:bf16   scale:pow2 (one byte)
  how values are rounded
    rne (to nearest, ties to even, the default)   half-away   toward-zero   floor   stochastic
  what NaN and infinity become where the format lacks them
    nonfinite:error (the default)   nonfinite:saturate   nonfinite:propagate
  whose range a scale goes by
    delayed:N   that of the last N tensors before it, in training

  Small floats have no scale unless a scheme asks for one. Some formats take words of their own:
  int8/full, uint8/qml, f16/sat; the card of a format lists them.",
    );
    help
}

/// Shapes for which the card of a scheme counts bits: the weights of a linear layer and of a
/// convolution.
const SHAPES: [&[usize]; 2] = [&[1024, 1024], &[64, 64, 3, 3]];

/// Columns of the overview.
const WIDTH: usize = 100;

/// The widest format whose values are listed as text, in bits.
const MAX_TEXT_BITS: u32 = 8;

/// The widest format whose values are listed as JSON: a million lines.
const MAX_JSON_BITS: u32 = 20;

impl Formats {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        if self.values {
            // All names are checked before the first line.
            let formats = self.names.iter().map(|scheme| listable(scheme, self.json));
            let formats = formats.collect::<anyhow::Result<Vec<_>>>()?;
            return formats.into_iter().enumerate().try_for_each(|(place, format)| {
                if self.json {
                    return values_json(ui, format);
                }
                if place > 0 {
                    ui.say("")?;
                }
                values_text(ui, format)
            });
        }
        if self.json {
            let named = self.names.into_iter().map(|scheme| (family_of(&scheme), scheme));
            let all =
                || members().into_iter().flat_map(|(f, m)| m.into_iter().map(move |s| (f, s)));
            let mut rows: Vec<(&str, Scheme)> = named.collect();
            if rows.is_empty() {
                rows = all().collect();
            }
            return rows.iter().try_for_each(|(family, scheme)| {
                ui.json(&FormatLine::new(family, scheme)).map_err(Into::into)
            });
        }
        if self.names.is_empty() {
            return overview(ui);
        }
        self.names.iter().enumerate().try_for_each(|(place, scheme)| {
            if place > 0 {
                ui.say("")?;
            }
            card(ui, scheme)
        })
    }
}

/// Every family with the members that tables list.
fn members() -> Vec<(&'static str, Vec<Scheme>)> {
    FAMILIES
        .iter()
        // A member is a scheme, as a test of the codec asserts.
        .map(|f| (f.syntax(), f.members().iter().filter_map(|m| m.parse().ok()).collect()))
        .collect()
}

/// How the family of a scheme is written.
fn family_of(scheme: &Scheme) -> &'static str {
    let name = scheme.codec().name();
    FAMILIES.iter().find(|family| family.parse(&name).is_some()).map_or("", |f| f.syntax())
}

/// A format, or a scheme, as a line of JSON.
#[derive(Serialize)]
struct FormatLine<'a> {
    scheme: &'a Scheme,
    family: &'a str,
    #[serde(flatten)]
    card: Card,
    granularity: Option<String>,
    scale: Option<&'a str>,
    words: &'a [&'a str],
    sizes: Vec<SizeLine>,
}

/// What a scheme makes of a shape.
#[derive(Serialize)]
struct SizeLine {
    shape: &'static [usize],
    /// The most, where it depends on the values.
    bytes: Option<usize>,
    bits_per_value: Option<f64>,
    /// The least, where it depends on the values.
    #[serde(skip_serializing_if = "Option::is_none")]
    least_bytes: Option<usize>,
}

impl<'a> FormatLine<'a> {
    fn new(family: &'a str, scheme: &'a Scheme) -> Self {
        Self {
            scheme,
            family,
            card: scheme.card(),
            granularity: scheme.granularity().map(|granularity| granularity.to_string()),
            scale: scale_word(scheme),
            words: scheme.codec().words(),
            sizes: SHAPES.map(|shape| size(scheme, shape)).into(),
        }
    }
}

fn size(scheme: &Scheme, shape: &'static [usize]) -> SizeLine {
    let size = scheme.for_weight(shape).size(shape).ok();
    let values: usize = shape.iter().product();
    SizeLine {
        shape,
        bytes: size.map(|size| size.most),
        bits_per_value: size.map(|size| size.most as f64 * 8.0 / values as f64),
        least_bytes: size.filter(|size| size.exact().is_none()).map(|size| size.least),
    }
}

/// How the scales of a scheme are stored, if it has any.
fn scale_word(scheme: &Scheme) -> Option<&'static str> {
    scheme.terms().scale.map(scrimp_codec::ScaleFormat::word)
}

/// The table of all families.
fn overview(ui: &Ui) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        ("format", Side::Left),
        ("bits", Side::Right),
        ("exp", Side::Right),
        ("man", Side::Right),
        ("bias", Side::Right),
        ("range", Side::Right),
        ("normal from", Side::Right),
        ("subnormal", Side::Right),
        ("specials", Side::Left),
        ("overflow", Side::Left),
    ]);
    let mut headings = Vec::new();
    for (family, (syntax, members)) in FAMILIES.iter().zip(members()) {
        let names: Vec<String> = members.iter().map(Scheme::to_string).collect();
        // A family that is a list of names need not repeat them.
        let is_list = names.join(" ") == syntax;
        let runs = runs(&members);
        headings.push((
            runs.len(),
            if is_list { family.about().into() } else { format!("{syntax}: {}", family.about()) },
        ));
        for run in runs {
            table.row(row(run));
        }
    }
    let lines = table.lines();
    let mut lines = lines.iter();
    if let Some(header) = lines.next() {
        ui.say_bold(header)?;
    }
    for (rows, heading) in headings {
        ui.say("")?;
        ui.say(ui::wrap(&heading, WIDTH))?;
        for line in lines.by_ref().take(rows) {
            ui.say(line)?;
        }
    }
    ui.say(
        "\nmore: scrimp formats NAME shows the card of a format, with --values its grid;\n      \
         scrimp help formats explains schemes",
    )?;
    Ok(())
}

/// Neighbours that differ in nothing but their width, as `int2` to `int16` do, share a row.
fn runs(members: &[Scheme]) -> Vec<&[Scheme]> {
    let kind = |scheme: &Scheme| {
        let card = scheme.card();
        let width = card.bits.to_string();
        // What has an exponent is worth a row of its own.
        let name = card.exponent_bits.is_none().then(|| card.name.replacen(&width, "K", 1));
        (name, card.about)
    };
    members.chunk_by(|left, right| kind(left).0.is_some() && kind(left) == kind(right)).collect()
}

/// The row of one format, or of a run from the first to the last.
fn row(run: &[Scheme]) -> Vec<String> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return Vec::new() };
    let (low, high) = (first.card(), last.card());
    let span = |text: &dyn Fn(&Card) -> String| {
        let (left, right) = (text(&low), text(&high));
        if left == right { left } else { format!("{left}..{right}") }
    };
    let dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    // The words that both ends share are said once: `uint4..uint8/qml`.
    let name = match low.name.split_once('/') {
        Some((head, words)) if run.len() > 1 && high.name.ends_with(words) => {
            format!("{head}..{}", high.name)
        }
        _ => span(&|card| card.name.clone()),
    };
    vec![
        name,
        span(&|card| card.bits.to_string()),
        dash(low.exponent_bits.map(|bits| bits.to_string())),
        dash(low.mantissa_bits.map(|bits| bits.to_string())),
        dash(low.bias.map(|bias| bias.to_string())),
        match run {
            [_] => range(&low, short),
            _ => format!("{} to {}", range(&low, short), range(&high, short)),
        },
        dash(low.min_normal.map(short)),
        dash(low.min_subnormal.map(short)),
        low.specials.to_owned(),
        low.overflow.to_owned(),
    ]
}

/// `±448`, `0..255`
fn range(card: &Card, text: fn(f32) -> String) -> String {
    if card.min.to_bits() == (-card.max).to_bits() {
        format!("±{}", text(card.max))
    } else {
        format!("{}..{}", text(card.min), text(card.max))
    }
}

/// A value in a table: exact where that is short, else with three digits.
fn short(value: f32) -> String {
    let exact = exact(value);
    if exact.len() <= 8 { exact } else { format!("{value:.2e}") }
}

/// A value with as many digits as tell it from its neighbours.
fn exact(value: f32) -> String {
    let magnitude = value.abs();
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "inf".into() } else { "-inf".into() }
    } else if magnitude >= 1e9 || (magnitude > 0.0 && magnitude < 1e-4) {
        format!("{value:e}")
    } else if magnitude >= 1000.0 && value.fract() == 0.0 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 1e9")]
        let whole = ui::number(magnitude as u64);
        if value < 0.0 { format!("-{whole}") } else { whole }
    } else {
        value.to_string()
    }
}

/// A positive value, and which power of two it is, if it is one.
fn exact_power(value: f32) -> String {
    let bits = value.to_bits();
    let (exponent, mantissa) = ((bits >> 23).cast_signed(), bits & 0x007F_FFFF);
    let power = match (exponent, mantissa) {
        (1.., 0) => exponent - 127,
        (0, subnormal) if subnormal.is_power_of_two() => {
            subnormal.trailing_zeros().cast_signed() - 149
        }
        _ => return exact(value),
    };
    if power == 0 { exact(value) } else { format!("{} = 2^{power}", exact(value)) }
}

/// All that there is to know about one scheme.
fn card(ui: &Ui, scheme: &Scheme) -> anyhow::Result<()> {
    let codec = scheme.codec();
    let card = scheme.card();
    ui.say_bold(&format!("{scheme}  {}", card.about))?;
    let fact = |key: &str, value: &str| ui.say(format_args!("  {key:20}{value}"));

    let mut bits = card.bits.to_string();
    if let (Some(exponent), Some(mantissa)) = (card.exponent_bits, card.mantissa_bits) {
        write!(bits, " = 1 sign + {exponent} exponent + {mantissa} mantissa").ok();
    }
    fact("bits", &bits)?;
    if let Some(bias) = card.bias {
        fact("exponent bias", &bias.to_string())?;
    }
    if card.exponent_bits.is_some() {
        let or_none = |value: Option<f32>| value.map_or_else(|| "none".to_owned(), exact_power);
        fact("largest", &range(&card, exact))?;
        fact("smallest normal", &or_none(card.min_normal))?;
        fact("smallest subnormal", &or_none(card.min_subnormal))?;
    } else {
        fact("codes", &format!("{} to {}", exact(card.min), exact(card.max)))?;
    }
    fact("specials", card.specials)?;
    if let Some(rule) = nonfinite(scheme) {
        fact("NaN and infinity", rule)?;
    }
    fact("overflow", &overflow(&card))?;
    if codec.defaults().rounding.is_some() {
        fact("rounding", scheme.rounding().word())?;
    }

    let scaling = match (scheme.granularity(), codec.defaults().scaling) {
        (Some(granularity), _) => sharing(granularity, scheme.terms().matrix),
        (None, Scaling::Never) if scheme.is_float32() => {
            "none: values are stored as they are".to_owned()
        }
        (None, Scaling::Never) => "the tensor is taken as one".to_owned(),
        (None, _) => {
            "none; a word such as tensor, channel or group:64 adds one that fits the values".into()
        }
    };
    fact("scale", &scaling)?;
    if let Some(word) = scale_word(scheme) {
        let mut stored = format!("{word} for each");
        let header = scheme.format().map(Format::header);
        if let Some(bits) = header.map(|header| header.zero_bits).filter(|bits| *bits > 0) {
            write!(stored, ", and a zero point of {bits} bits").ok();
        }
        if header.is_some_and(|header| header.offset) {
            stored.push_str(", and an f32 offset");
        }
        fact("scale stored as", &stored)?;
    }
    if !codec.words().is_empty() {
        fact("words of its own", &codec.words().join(", "))?;
    }
    for (place, shape) in SHAPES.into_iter().enumerate() {
        let text = match scheme.for_weight(shape).size(shape) {
            Ok(size) => weight_size(shape, size),
            Err(problem) => problem.to_string(),
        };
        fact(if place == 0 { "bits per value" } else { "" }, &text)?;
    }
    Ok(())
}

/// `4.25 for a weight [1024,1024]: 557,056 bytes, 7.53x smaller than f32`
fn weight_size(shape: &[usize], size: Size) -> String {
    let values: usize = shape.iter().product();
    let bits = |bytes: usize| bytes as f64 * 8.0 / values as f64;
    let bytes = |bytes: usize| ui::number(bytes as u64);
    if size.exact().is_some() {
        let ratio = ui::ratio(size.most as u64, 4 * values as u64);
        let (bits, bytes) = (bits(size.most), bytes(size.most));
        format!("{bits:.2} for a weight {}: {bytes} bytes, {ratio}", ui::shape(shape))
    } else {
        format!(
            "{:.2} to {:.2}, by the values, for a weight {}: {} to {} bytes",
            bits(size.least),
            bits(size.most),
            ui::shape(shape),
            bytes(size.least),
            bytes(size.most)
        )
    }
}

/// What becomes of NaN and infinity, where that is not plain from the format.
fn nonfinite(scheme: &Scheme) -> Option<&'static str> {
    let text = scheme.to_string();
    if text.ends_with("/nonfinite:saturate") {
        Some("NaN becomes zero, infinity the largest value, both counted")
    } else if text.ends_with("/nonfinite:propagate") {
        let has_infinity = scheme.card().specials.contains("inf");
        Some(if has_infinity { "both stay" } else { "NaN stays, infinity becomes NaN" })
    } else if scheme.codec().holds_nan() {
        None
    } else {
        Some("an error that names the element; see nonfinite in `scrimp help formats`")
    }
}

fn overflow(card: &Card) -> String {
    match card.overflow {
        "saturate" => "saturate: the largest value".to_owned(),
        other => format!("becomes {other}"),
    }
}

fn sharing(granularity: Granularity, matrix: bool) -> String {
    // A weight of more than two axes is taken as a matrix unasked.
    let rows = if matrix {
        "all axes but the first being one"
    } else {
        "which in a convolution's weight is a filter"
    };
    match granularity {
        Granularity::Tensor => "tensor: one for all values".to_owned(),
        Granularity::Channel => "channel: one for each index of axis 0 of a weight".to_owned(),
        Granularity::Axis(axis) => format!("axis:{axis}: one for each index of axis {axis}"),
        Granularity::Row => format!("row: one for each row, {rows}"),
        Granularity::Group(len) => format!("group:{len}: one for {len} values of a row, {rows}"),
        Granularity::Flat(len) => {
            format!("flat:{len}: one for {len} values in storage order, across rows")
        }
        Granularity::Tile(rows, cols) => {
            format!("tile:{rows}x{cols}: one for {rows} by {cols} values of the last two axes")
        }
    }
}

/// The format of a scheme's elements, if it has so few codes that they can be listed.
fn listable(scheme: &Scheme, json: bool) -> anyhow::Result<&dyn Format> {
    let name = scheme.codec().name();
    let Some(format) = scheme.format() else {
        bail!("`{name}` has no codes of its own: what a value becomes depends on the others");
    };
    let bits = format.bits();
    if bits > MAX_JSON_BITS {
        bail!("`{name}` has 2^{bits} codes, too many to list");
    }
    if bits > MAX_TEXT_BITS && !json {
        bail!(
            "`{name}` has {} codes, too many for a table\n  help: --json prints one line for each",
            ui::number(1 << bits)
        );
    }
    Ok(format)
}

fn values_text(ui: &Ui, format: &dyn Format) -> anyhow::Result<()> {
    let bits = format.bits();
    ui.say(format_args!("{} codes of {}, values at scale 1", 1u64 << bits, format.card().name))?;
    let mut table = Table::new(&[
        ("code", Side::Right),
        ("bits", Side::Right),
        ("value", Side::Right),
        ("", Side::Left),
    ]);
    let card = format.card();
    for code in 0..1u32 << bits {
        let value = format.decode(code, &Params::UNIT);
        table.row([
            code.to_string(),
            format!("{code:0width$b}", width = bits as usize),
            exact(value),
            if is_written(&card, value) { "" } else { "never written" }.to_owned(),
        ]);
    }
    Ok(ui.table(&table)?)
}

/// Symmetric integers leave their most negative code out.
fn is_written(card: &Card, value: f32) -> bool {
    !value.is_finite() || (card.min..=card.max).contains(&value)
}

/// A code as a line of JSON.
#[derive(Serialize)]
struct CodeLine<'a> {
    format: &'a str,
    code: u32,
    value: JsonValue,
    written: bool,
}

/// JSON has no word for NaN and infinity.
#[derive(Serialize)]
#[serde(untagged)]
enum JsonValue {
    Finite(f32),
    Special(String),
}

fn values_json(ui: &Ui, format: &dyn Format) -> anyhow::Result<()> {
    let card = format.card();
    for code in 0..1u32 << format.bits() {
        let value = format.decode(code, &Params::UNIT);
        let written = is_written(&card, value);
        let value = if value.is_finite() {
            JsonValue::Finite(value)
        } else {
            JsonValue::Special(exact(value))
        };
        ui.json(&CodeLine { format: &card.name, code, value, written })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_help_are_canonical_schemes() {
        for (text, _) in EXAMPLES {
            let scheme: Scheme = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(scheme.to_string(), text);
        }
        let scheme: Scheme = EXAMPLES[2].0.parse().unwrap();
        assert_eq!(size(&scheme, SHAPES[0]).bits_per_value, Some(4.25));
    }

    #[test]
    fn every_word_of_the_help_is_taken_and_none_is_missing() {
        let help = scheme_help();
        for word in ["channel", "axis:1", "row", "group:8", "flat:8", "tile:2x3"] {
            assert!(format!("int8/{word}").parse::<Scheme>().is_ok(), "{word}");
            assert!(help.contains(word.split(':').next().unwrap_or(word)), "{word}");
        }
        assert!("int8/row/matrix".parse::<Scheme>().is_ok() && help.contains("matrix"));
        for scale in scrimp_codec::ScaleFormat::GENERAL {
            assert!(help.contains(&format!("scale:{}", scale.word())), "{scale:?}");
        }
        for (word, _) in scrimp_codec::Rounding::WORDS {
            assert!(help.contains(word), "{word}");
        }
    }

    #[test]
    fn every_member_of_every_family_is_listed_once() {
        for (family, (syntax, schemes)) in FAMILIES.iter().zip(members()) {
            assert_eq!(schemes.len(), family.members().len(), "{syntax}");
            assert_eq!(runs(&schemes).concat(), schemes, "{syntax}");
        }
    }

    #[test]
    fn widths_share_a_row_and_floats_have_their_own() {
        let parse = |texts: &[&str]| -> Vec<Scheme> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let integers = parse(&["int2", "int3", "int16", "int4/full", "int8/full"]);
        let rows: Vec<Vec<String>> = runs(&integers).into_iter().map(row).collect();
        assert_eq!(rows[0][..2], ["int2..int16", "2..16"]);
        assert_eq!(rows[0][5], "±1 to ±32,767");
        assert_eq!(rows[1][..2], ["int4..int8/full", "4..8"]);
        assert_eq!(rows.len(), 2);
        assert_eq!(runs(&parse(&["qml:m1", "qml:m2"])).len(), 2);
    }

    #[test]
    fn values_are_told_exactly_or_short() {
        assert_eq!(exact(-57344.0), "-57,344");
        assert_eq!(exact(-0.0), "-0");
        assert_eq!(exact(0.001_953_125), "0.001953125");
        assert_eq!(exact(f32::NEG_INFINITY), "-inf");
        assert_eq!(short(0.001_953_125), "1.95e-3");
        assert_eq!(short(f32::MAX), "3.40e38");
        assert_eq!(exact_power(f32::from_bits(1)), "1e-45 = 2^-149");
        assert_eq!(exact_power(f32::MIN_POSITIVE), "1.1754944e-38 = 2^-126");
        assert_eq!(exact_power(0.015_625), "0.015625 = 2^-6");
        assert_eq!(exact_power(1.0), "1");
        assert_eq!(exact_power(448.0), "448");
    }
}
