//! The chapter on formats, in Markdown.

use std::fmt::Write;
use std::sync::OnceLock;

use scrimp_codec::formats::Scaling;
use scrimp_codec::{Card, Family, Format, Params, STAGES, ScaleFormat, Scheme, Stream};

use crate::numbers::{exact, power};
use crate::{Page, grids};

/// The weight for which the bits of a value are counted, all that is stored beside codes included.
const WEIGHT: &[usize] = &[1024, 1024];

/// Floats of so many bits have their values listed by code.
const MAX_LISTED_BITS: u32 = 4;

/// Tables of so many bits, whose values follow from nothing else, have them listed too.
const MAX_TABLE_BITS: u32 = 8;

/// The chapter and its pictures.
pub fn pages(families: &[&dyn Family]) -> Vec<Page> {
    let sections: Vec<Section> = families.iter().map(|family| Section::of(*family)).collect();
    let mut chapter = format!("{}{}", include_str!("intro.md"), overview(&sections));
    chapter += &scaled_elements();
    let mut pages = Vec::new();
    for (place, section) in sections.iter().enumerate() {
        let picture = grids::picture(&format!("Grids of {}", section.title), &section.members);
        let path = format!("formats/{}.svg", section.file_name());
        // What several families say alike is said by the first.
        let layout = section.family.layout();
        let earlier = sections[..place]
            .iter()
            .find(|earlier| !layout.is_empty() && earlier.family.layout() == layout);
        chapter += &section.text(picture.is_some().then_some(&*path), earlier);
        pages.extend(picture.map(|text| Page { path, text }));
    }
    chapter += &stages();
    pages.insert(0, Page { path: "formats.md".into(), text: chapter });
    pages
}

/// What is told of one family.
struct Section<'a> {
    family: &'a dyn Family,
    title: String,
    members: Vec<Scheme>,
}

impl<'a> Section<'a> {
    fn of(family: &'a dyn Family) -> Self {
        let names = family.members();
        // A member is a scheme, as a test of the codec asserts.
        let members = names.iter().filter_map(|name| name.parse().ok()).collect();
        let words: Vec<&str> = family.syntax().split(' ').collect();
        let title = match &words[..] {
            // A list of names is told by its ends.
            [first, _, .., last] => format!("`{first}` to `{last}`"),
            _ => format!("`{}`", family.syntax()),
        };
        Self { family, title, members }
    }

    fn file_name(&self) -> String {
        let words = self.title.split(|c: char| !c.is_ascii_alphanumeric());
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-").to_lowercase()
    }

    fn link(&self) -> String {
        format!("[{}](#{})", self.title, anchor(&self.title))
    }

    fn text(&self, picture: Option<&str>, same_codes: Option<&Section>) -> String {
        let mut text = format!("## {}\n\n{}\n\n", self.title, sentence(self.family.about()));
        let facts = table(&self.members);
        text += &facts.shared;
        text += &facts.table;
        if let Some(path) = picture {
            let title = self.title.replace('`', "");
            // Writing to a string cannot fail.
            write!(text, "![Grids of {title}]({path})\n\n").ok();
        }
        text += &values(&self.members);
        text += &paragraph("Words:", &said_of(&self.members, |scheme| Some(words(scheme))), "");
        let codes = match same_codes {
            Some(other) => format!("Codes are as those of {}.", other.link()),
            None => self.family.layout().trim().to_owned(),
        };
        text += &paragraph("Bytes:", &said_of(&self.members, parts), &codes);
        text += &paragraph("Elsewhere called:", &[], &synonyms(self.family));
        if !self.family.source().is_empty() {
            text += &paragraph("Source:", &[], &sentence(self.family.source()));
        }
        text
    }
}

/// The anchor that mdBook and GitHub give to a heading.
fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

fn overview(sections: &[Section]) -> String {
    let mut text = String::from("| family | what it is | bits per value |\n|---|---|---|\n");
    for section in sections {
        let bits = bits_of_all(&section.members);
        let about = cell(&prose(section.family.about()));
        // Writing to a string cannot fail.
        writeln!(text, "| {} | {about} | {bits} |", cell(&section.link())).ok();
    }
    text.push('\n');
    text
}

fn scaled_elements() -> String {
    let word = |store: &ScaleFormat| format!("`scale:{}`", store.word());
    let general = ScaleFormat::GENERAL.iter().map(word).collect::<Vec<_>>().join(", ");
    let mut text = include_str!("scaled.md").replace("@GENERAL@", &general);
    text += "| scale | what is stored |\n|---|---|\n";
    for store in &ScaleFormat::ALL {
        // Writing to a string cannot fail.
        writeln!(text, "| {} | {} |", word(store), cell(&prose(store.about()))).ok();
    }
    text.push('\n');
    text
}

/// What may follow the codes.
fn stages() -> String {
    let mut text = include_str!("stages.md").to_owned();
    for family in STAGES {
        // Writing to a string cannot fail.
        write!(text, "### `{}`\n\n{}\n\n", family.syntax(), sentence(family.about())).ok();
        text += "| scheme | bits per value |\n|---|--:|\n";
        for member in family.members() {
            let scheme = format!("int8/{member}");
            let bits = scheme.parse().ok().as_ref().and_then(bits_per_value);
            writeln!(text, "| `{scheme}` | {} |", bits.unwrap_or_else(|| "-".into())).ok();
        }
        text.push('\n');
        text += &paragraph("Bytes:", &[], family.layout().trim());
        text += &paragraph("Source:", &[], &sentence(family.source()));
    }
    text
}

/// The facts about members: what all have in common, and a table of the rest.
struct Facts {
    shared: String,
    table: String,
}

fn table(members: &[Scheme]) -> Facts {
    type Fact = (&'static str, fn(&Scheme, &Card) -> Option<String>);
    const COLUMNS: [Fact; 12] = [
        ("format", |scheme, _| Some(format!("`{scheme}`"))),
        ("bits", |_, card| Some(card.bits.to_string())),
        ("exponent", |_, card| card.exponent_bits.map(|bits| bits.to_string())),
        ("mantissa", |_, card| card.mantissa_bits.map(|bits| bits.to_string())),
        ("bias", |_, card| card.bias.map(|bias| bias.to_string())),
        ("range", |_, card| Some(range(card))),
        ("smallest normal", |_, card| card.min_normal.map(power)),
        ("smallest subnormal", |_, card| card.min_subnormal.map(power)),
        ("specials", |_, card| Some(card.specials.to_owned()).filter(|text| !text.is_empty())),
        ("overflow", |_, card| Some(card.overflow.to_owned()).filter(|text| !text.is_empty())),
        ("rounding", |_, card| Some(format!("`{}`", card.rounding))),
        ("bits per value", |scheme, _| bits_per_value(scheme)),
    ];
    let rows: Vec<(&Scheme, Card)> = members.iter().map(|scheme| (scheme, scheme.card())).collect();
    let mut shared = Vec::new();
    let mut columns: Vec<(&str, Vec<String>)> = Vec::new();
    for (title, fact) in COLUMNS {
        let facts: Vec<Option<String>> = rows.iter().map(|(s, card)| fact(s, card)).collect();
        match &facts[..] {
            all if all.iter().all(Option::is_none) => {}
            [Some(first), _, ..] if facts.iter().all(|f| f.as_ref() == Some(first)) => {
                shared.push(format!("{title} {first}"));
            }
            _ => {
                let cells = facts.into_iter().map(|f| f.map_or("-".into(), |text| cell(&text)));
                columns.push((title, cells.collect()));
            }
        }
    }
    let mut about: Vec<&str> = rows.iter().map(|(_, card)| card.about.as_str()).collect();
    let cells = about.iter().map(|text| cell(&prose(text))).collect();
    about.sort_unstable();
    about.dedup();
    let mut kinds = String::new();
    if about.len() == rows.len() {
        columns.push(("", cells));
    } else {
        let said = said_of(members, |scheme| Some(prose(&scheme.card().about)));
        kinds = match &said[..] {
            [only] => format!("{}\n\n", sentence(only)),
            _ => paragraph("Kinds:", &said, ""),
        };
    }

    let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    let mut table = format!("| {} |\n", titles.join(" | "));
    let rule = |(place, title): (usize, &&str)| {
        if place == 0 || title.is_empty() || matches!(*title, "specials" | "overflow" | "rounding")
        {
            "---"
        } else {
            "--:"
        }
    };
    let rules: Vec<&str> = titles.iter().enumerate().map(rule).collect();
    // Writing to a string cannot fail.
    writeln!(table, "|{}|", rules.join("|")).ok();
    for row in 0..rows.len() {
        let cells: Vec<&str> = columns.iter().map(|(_, cells)| cells[row].as_str()).collect();
        writeln!(table, "| {} |", cells.join(" | ")).ok();
    }
    table.push('\n');
    let shared = if shared.is_empty() {
        String::new()
    } else {
        format!("In common: {}.\n\n", shared.join("; "))
    };
    Facts { shared: kinds + &shared, table }
}

/// `±448`, `0 to 255`
fn range(card: &Card) -> String {
    if card.min.to_bits() == (-card.max).to_bits() {
        format!("±{}", exact(card.max))
    } else {
        format!("{} to {}", exact(card.min), exact(card.max))
    }
}

/// What [`WEIGHT`] takes, by value: `4.25`. Where that depends on the values, its ends, and what normal values take.
fn bits_per_value(scheme: &Scheme) -> Option<String> {
    let (least, most) = bit_ends(scheme)?;
    if least == most {
        return Some(bits(least));
    }
    let ends = format!("{} to {}", bits(least), bits(most));
    let mut bytes = Vec::new();
    Some(match scheme.encode(normal_values(), WEIGHT, &Stream::new(0, 0), &mut bytes) {
        Ok(_) => format!("{ends}, normal values {}", bits(per_value(bytes.len()))),
        Err(_) => ends,
    })
}

/// Values that are close to a normal distribution and the same on every machine: sums of twelve uniform numbers.
fn normal_values() -> &'static [f32] {
    const DRAWS: usize = 12;
    static VALUES: OnceLock<Vec<f32>> = OnceLock::new();
    VALUES.get_or_init(|| {
        let mut draws = vec![0; DRAWS * WEIGHT.iter().product::<usize>()];
        Stream::new(1, 0).fill(0, &mut draws);
        let sum = |draws: &[u32]| draws.iter().map(|draw| f64::from(*draw)).sum::<f64>();
        #[expect(clippy::cast_possible_truncation, reason = "values are f32")]
        let value = |draws: &[u32]| (sum(draws) / f64::from(1 << 24) - 6.0) as f32;
        draws.chunks_exact(DRAWS).map(value).collect()
    })
}

/// The least and the most that a member of a family takes.
fn bits_of_all(members: &[Scheme]) -> String {
    let ends: Vec<(f64, f64)> = members.iter().filter_map(bit_ends).collect();
    let least = ends.iter().map(|ends| ends.0).fold(f64::INFINITY, f64::min);
    let most = ends.iter().map(|ends| ends.1).fold(0.0, f64::max);
    match (bits(least), bits(most)) {
        _ if ends.is_empty() => "-".into(),
        (least, most) if least == most => least,
        (least, most) => format!("{least} to {most}"),
    }
}

fn bit_ends(scheme: &Scheme) -> Option<(f64, f64)> {
    let size = scheme.for_weight(WEIGHT).size(WEIGHT).ok()?;
    Some((per_value(size.least), per_value(size.most)))
}

/// Bits of each value of [`WEIGHT`].
fn per_value(bytes: usize) -> f64 {
    bytes as f64 * 8.0 / WEIGHT.iter().product::<usize>() as f64
}

/// To a hundredth, without what says nothing.
fn bits(bits: f64) -> String {
    let text = format!("{bits:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The values of the narrowest formats, code by code. Codes of integers speak for themselves.
fn values(members: &[Scheme]) -> String {
    let (mut short, mut long) = (Vec::new(), String::new());
    for scheme in members {
        let Some(format) = scheme.format().filter(|f| !counts(*f)) else { continue };
        let floats = format.card().exponent_bits.is_some();
        if format.bits() > if floats { MAX_LISTED_BITS } else { MAX_TABLE_BITS } {
            continue;
        }
        let values = (0..1 << format.bits()).map(|code| exact(format.decode(code, &Params::UNIT)));
        let values = values.collect::<Vec<_>>().join(" ");
        if format.bits() <= MAX_LISTED_BITS {
            short.push(format!("`{scheme}`: {values}"));
        } else {
            let title = "Values of the codes of";
            // Writing to a string cannot fail.
            write!(long, "<details><summary>{title} <code>{scheme}</code></summary>\n\n").ok();
            write!(long, "{values}\n\n</details>\n\n").ok();
        }
    }
    paragraph("Values of the codes, from code 0:", &short, "") + &long
}

/// Whether codes are integers.
fn counts(format: &dyn Format) -> bool {
    let card = format.card();
    let steps = f64::from(card.max) - f64::from(card.min);
    card.exponent_bits.is_none()
        && card.max.fract() == 0.0
        && card.min.fract() == 0.0
        && steps > 2f64.powi(format.bits().cast_signed()) - 3.0
}

/// Which words a scheme of this codec may have.
fn words(scheme: &Scheme) -> String {
    let codec = scheme.codec();
    let defaults = codec.defaults();
    let mut said = Vec::new();
    let stores: Vec<String> =
        defaults.scales.iter().map(|store| format!("`scale:{}`", store.word())).collect();
    let stores = if defaults.scales == ScaleFormat::GENERAL {
        "how [a scale is stored](#scaled-elements)".to_owned()
    } else {
        stores.join(" ")
    };
    match (defaults.scaling, defaults.scales) {
        (Scaling::OnRequest, _) => {
            said.push("a granularity".to_owned());
            said.push(format!("{stores}; either of them adds scales"));
        }
        (Scaling::Always, stored) => {
            said.push(format!("a granularity (`{}` unless named)", defaults.granularity));
            if let [usual, _, ..] = stored {
                said.push(format!("{stores} (`{}` unless named)", usual.word()));
            }
        }
        (Scaling::Never, _) => {}
    }
    if let Some(usual) = defaults.rounding {
        said.push(format!("a rounding (`{}` unless named)", usual.word()));
    }
    if codec.takes_stages() {
        said.push("a [stage](#stages)".to_owned());
    }
    if !codec.words().is_empty() {
        let own: Vec<String> = codec.words().iter().map(|word| format!("`{word}`")).collect();
        said.push(format!("of its own {}", own.join(" ")));
    }
    if said.is_empty() {
        return "none".into();
    }
    said.join("; ")
}

/// Other names, each with the member that it stands for.
fn synonyms(family: &dyn Family) -> String {
    let names = family.synonyms().iter().map(|(other, own)| format!("`{other}` is `{own}`"));
    let text = names.collect::<Vec<_>>().join(", ");
    if text.is_empty() { text } else { text + "." }
}

/// The parts of a scaled tensor's bytes; `None` for other codecs, whose bytes are not these parts.
fn parts(scheme: &Scheme) -> Option<String> {
    const SHAPE: [usize; 2] = [6, 35];
    let format = scheme.format()?;
    let (header, bits) = (format.header(), format.bits() as usize);
    let groups = scheme.groups(&SHAPE).ok()?;
    let packed = |count: usize, bits: usize| (count * bits).div_ceil(8);
    let offsets = if header.offset { 4 * groups } else { 0 };
    let zeros = packed(groups, header.zero_bits as usize);
    let scales = scheme.terms().scale.map_or(Some(0), |store| store.bytes(groups))?;
    let codes = packed(SHAPE.iter().product(), bits);
    // A codec may have elements of a format and still lay out its bytes in another way.
    if scheme.size(&SHAPE).ok()?.exact() != Some(scales + offsets + zeros + codes) {
        return None;
    }
    let mut parts = Vec::new();
    match header.scaling {
        Scaling::Never => {}
        Scaling::OnRequest if scheme.terms().scale.is_none() => {
            parts.push("scales if a word asks for them".to_owned());
        }
        _ => parts.push(match scheme.codec().defaults().scales {
            [only] => format!("scales, always `scale:{}`", only.word()),
            _ => "scales".to_owned(),
        }),
    }
    if header.offset {
        parts.push("offsets".to_owned());
    }
    if header.zero_bits > 0 {
        // Said once for formats of all widths.
        parts.push(if header.zero_bits == format.bits() {
            "zero points of *K* bits".to_owned()
        } else {
            format!("zero points of {} bits", header.zero_bits)
        });
    }
    parts.push("codes".to_owned());
    let list = match &parts[..] {
        [init @ .., last] if !init.is_empty() => format!("{}, then {last}", init.join(", then ")),
        _ => parts.concat(),
    };
    Some(format!("[Scaled elements](#scaled-elements): {list}"))
}

/// What is said of each member, once for all of whom it is true.
fn said_of(members: &[Scheme], fact: impl Fn(&Scheme) -> Option<String>) -> Vec<String> {
    let mut said: Vec<(Option<String>, Vec<usize>)> = Vec::new();
    for (place, scheme) in members.iter().enumerate() {
        let text = fact(scheme);
        match said.iter_mut().find(|(other, _)| *other == text) {
            Some((_, places)) => places.push(place),
            None => said.push((text, vec![place])),
        }
    }
    let alone = said.len() == 1;
    let line = |(text, names): (Option<String>, Vec<usize>)| {
        let text = text?;
        Some(if alone {
            format!("{text}.")
        } else {
            format!("{}: {text}.", named(members, &names))
        })
    };
    said.into_iter().filter_map(line).collect()
}

/// The names of members in these places, ascending; a long run of neighbours by its ends.
fn named(members: &[Scheme], places: &[usize]) -> String {
    let runs = places.chunk_by(|left, right| left + 1 == *right);
    let names = runs.flat_map(|run| match run {
        [first, _, _, .., last] => vec![format!("`{}` to `{}`", members[*first], members[*last])],
        _ => run.iter().map(|place| format!("`{}`", members[*place])).collect(),
    });
    names.collect::<Vec<_>>().join(", ")
}

/// Text under a bold word: several lines as a list, and what follows them.
fn paragraph(title: &str, lines: &[String], rest: &str) -> String {
    let lines = match lines {
        [] => String::new(),
        [only] => format!(" {only}"),
        _ => lines.iter().fold("\n\n".into(), |list, line| format!("{list}- {line}\n")),
    };
    match (lines.is_empty(), rest.is_empty()) {
        (true, true) => String::new(),
        // A table needs a line of its own.
        (true, false) if rest.contains("\n|") || rest.starts_with('|') => {
            format!("**{title}**\n\n{rest}\n\n")
        }
        (true, false) => format!("**{title}** {rest}\n\n"),
        (false, true) => format!("**{title}**{}\n\n", lines.trim_end()),
        (false, false) => format!("**{title}**{}\n\n{rest}\n\n", lines.trim_end()),
    }
}

/// A line of a registry as a sentence.
fn sentence(text: &str) -> String {
    let mut text = prose(text);
    if let Some(first) = text.chars().next().filter(char::is_ascii_lowercase) {
        // A name keeps its case: `bfloat16`, `f32's exponent`.
        let word = text.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or("");
        if word.chars().all(|c| c.is_ascii_alphabetic()) {
            text.replace_range(..1, &first.to_ascii_uppercase().to_string());
        }
    }
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

/// Text whose characters mean themselves, except for code and links.
fn prose(text: &str) -> String {
    let mut out = String::new();
    let mut code = false;
    for c in text.chars() {
        code ^= c == '`';
        if !code && matches!(c, '*' | '_' | '<') {
            out.push('\\');
        }
        out.push(c);
    }
    out.replace("+-", "±")
}

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use scrimp_codec::codecs::{Defaults, Job, Terms};
    use scrimp_codec::{
        Codec, DecodeError, EncodeError, FAMILIES, Granularity, Rounding, ShapeError, Size, Tally,
    };

    use super::*;

    #[test]
    fn every_family_has_a_section_and_every_member_is_named() {
        let pages = pages(FAMILIES);
        for family in FAMILIES {
            let section = Section::of(*family);
            let heading = format!("\n## {}\n", section.title);
            assert_eq!(pages[0].text.matches(&heading).count(), 1, "{heading}");
            assert_eq!(section.members.len(), family.members().len(), "{}", family.syntax());
            let start = pages[0].text.find(&heading).unwrap();
            let rest = &pages[0].text[start + heading.len()..];
            let text = &rest[..rest.find("\n## ").unwrap_or(rest.len())];
            for member in family.members() {
                assert!(text.contains(&format!("\n| `{member}` |")), "{member}");
            }
        }
    }

    #[test]
    fn every_family_says_what_its_bytes_mean_and_where_it_is_from() {
        for family in FAMILIES {
            let section = Section::of(*family);
            assert!(!family.source().is_empty(), "{}: Family::source is empty", family.syntax());
            // For elements under scales it is enough that the values of their codes are listed.
            let told = section
                .members
                .iter()
                .all(|m| parts(m).is_some() && !values(std::slice::from_ref(m)).is_empty());
            assert!(
                told || !family.layout().is_empty(),
                "{}: Family::layout is empty, and the parts of its bytes are not those of scaled elements",
                family.syntax()
            );
        }
    }

    #[test]
    fn every_stage_has_a_section_that_says_what_its_bytes_mean() {
        let text = &pages(FAMILIES)[0].text;
        for family in STAGES {
            assert!(
                text.contains(&format!("\n### `{}`\n", family.syntax())),
                "{}",
                family.syntax()
            );
            assert!(
                !family.layout().is_empty() && !family.source().is_empty(),
                "{}",
                family.syntax()
            );
            for member in family.members() {
                let scheme = format!("int8/{member}");
                assert!(scheme.parse::<Scheme>().is_ok(), "{scheme}");
                assert!(text.contains(&format!("\n| `{scheme}` |")), "{scheme}");
            }
        }
    }

    #[test]
    fn an_empty_tensor_has_no_bytes() {
        for scheme in FAMILIES.iter().flat_map(|family| Section::of(*family).members) {
            assert_eq!(scheme.size(&[0, 4]).unwrap().exact(), Some(0), "{scheme}");
        }
    }

    #[test]
    fn links_within_the_chapter_lead_to_its_headings() {
        let text = &pages(FAMILIES)[0].text;
        let headings = text.lines().filter_map(|line| line.strip_prefix("## "));
        let anchors: Vec<String> = headings.map(anchor).collect();
        for link in text.split("](#").skip(1) {
            let target = link.split(')').next().unwrap();
            assert!(anchors.iter().any(|anchor| anchor == target), "{target}");
        }
        for (place, anchor) in anchors.iter().enumerate() {
            assert!(!anchors[..place].contains(anchor), "two headings are {anchor}");
        }
    }

    /// The rows of the tables of the guide, cell by cell, whose first cell is code.
    fn rows_of_the_guide() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
        let guide = include_str!("../../../../book/src/schemes.md");
        guide.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|line| {
            let (code, rest) = line.split_once("` | ")?;
            Some((code, rest.trim_end_matches(" |").split(" | ").collect()))
        })
    }

    #[test]
    fn schemes_in_tables_of_the_guide_are_canonical_and_cost_what_it_says() {
        let mut priced = 0;
        for (text, cells) in rows_of_the_guide() {
            let Ok(scheme) = text.parse::<Scheme>() else { continue };
            assert_eq!(scheme.to_string(), text);
            if let [groups, bits] = cells[..] {
                let number =
                    groups.split([' ', ',']).take_while(|part| part.parse::<u32>().is_ok());
                let number: String = number.collect();
                assert_eq!(number, scheme.groups(WEIGHT).unwrap().to_string(), "{text}");
                assert_eq!(bits, bits_per_value(&scheme).unwrap(), "{text}");
                priced += 1;
            }
        }
        assert_eq!(priced, 7);
    }

    #[test]
    fn the_table_of_roundings_is_what_they_do() {
        let mut found = 0;
        for (word, cells) in rows_of_the_guide() {
            let rule = Rounding::WORDS.into_iter().find(|(name, _)| *name == word);
            let Some((_, rule)) = rule.filter(|(name, _)| *name != "stochastic") else { continue };
            for (cell, value) in cells[1..].iter().zip([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]) {
                assert_eq!(cell.parse::<f64>().unwrap(), rule.round(value, 0), "{word} {value}");
            }
            found += 1;
        }
        assert_eq!(found, Rounding::WORDS.len() - 1);
    }

    /// A codec whose codes are none of a format, and whose bytes depend on the values.
    #[derive(Debug)]
    struct Odd;

    impl Codec for Odd {
        fn name(&self) -> String {
            "odd".into()
        }

        fn card(&self) -> Card {
            Card {
                name: self.name(),
                bits: 100_000,
                exponent_bits: None,
                mantissa_bits: None,
                bias: None,
                min: f32::MIN,
                max: f32::MAX,
                min_normal: None,
                min_subnormal: None,
                specials: "none",
                overflow: "saturate",
                rounding: "rne",
                about: "a_b | c*d".into(),
            }
        }

        fn defaults(&self) -> Defaults {
            Defaults {
                scaling: Scaling::Never,
                granularity: Granularity::Tensor,
                scales: &[],
                rounding: None,
            }
        }

        fn size(&self, _: &Terms, shape: &[usize]) -> Result<Size, ShapeError> {
            let elems: usize = shape.iter().product();
            Ok(Size { least: elems / 8, most: elems * 5 / 16 })
        }

        fn emulate(&self, _: Job, _: &mut [f32]) -> Result<Tally, EncodeError> {
            Ok(Tally::default())
        }

        fn encode(&self, _: Job, _: &[f32], _: &mut Vec<u8>) -> Result<Tally, EncodeError> {
            Ok(Tally::default())
        }

        fn decode(
            &self,
            _: &Terms,
            _: &[u8],
            _: &[usize],
            _: &mut [f32],
        ) -> Result<(), DecodeError> {
            Ok(())
        }
    }

    #[test]
    fn a_codec_without_a_format_and_of_any_size_has_a_row() {
        let odd = Scheme::of(Arc::new(Odd));
        assert_eq!(bits_per_value(&odd).unwrap(), "1 to 2.5, normal values 0");
        assert_eq!(parts(&odd), None);
        assert_eq!(words(&odd), "none");
        assert_eq!(values(std::slice::from_ref(&odd)), "");
        assert!(grids::picture("odd", std::slice::from_ref(&odd)).is_none());
        let facts = table(std::slice::from_ref(&odd));
        assert!(facts.table.contains("| `odd` | 100000 | ±3.4028235e38 |"), "{}", facts.table);
        assert!(facts.table.contains(r"a\_b \| c\*d"), "{}", facts.table);
        assert!(!facts.table.contains("exponent"), "{}", facts.table);
    }
}
