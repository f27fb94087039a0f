//! Which tensor of a file gets which scheme.

use std::str::FromStr;

use anyhow::bail;
use scrimp_codec::Scheme;
use scrimp_files::{Dtype, Entry, Storage};

use crate::tensors::{Pattern, fitted, no_match, unrounded};

/// `GLOB=SCHEME`
#[derive(Clone, Debug)]
pub struct TensorRule {
    pattern: Pattern,
    scheme: Scheme,
}

impl FromStr for TensorRule {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        // A scheme has no equals sign, a name may have one.
        let Some((pattern, scheme)) = text.rsplit_once('=') else {
            bail!("write a name or pattern, `=` and a scheme, as in 'fc.*=int8/channel'");
        };
        Ok(Self { pattern: pattern.parse()?, scheme: scheme.parse()? })
    }
}

/// The choice among schemes that the flags of `scrimp encode` make.
#[derive(Debug)]
pub struct Rules {
    /// For all tensors of two axes and more that nothing else claims.
    pub scheme: Option<Scheme>,
    /// For the tensors that a pattern matches; a later rule wins.
    pub tensors: Vec<TensorRule>,
    /// Tensors to leave as they are, whatever the other rules say.
    pub keep: Vec<Pattern>,
    /// Whether the tensors are weights, so that the rows of a convolution are its filters.
    pub are_weights: bool,
}

impl Rules {
    /// What becomes of each tensor of the file called `file`.
    ///
    /// A tensor with fewer than two axes (a bias, a statistic of batch normalization) is kept: it is
    /// small, and rounding it hurts. It takes a scheme where it is alone in the file, or where a
    /// pattern matches no tensor of more axes and so must mean it.
    ///
    /// # Errors
    /// A pattern that matches nothing or whose tensors all have another rule, a scheme that does
    /// not fit its tensor, and rules that leave every tensor as it is.
    pub fn decide(&self, file: &str, entries: &[Entry]) -> anyhow::Result<Vec<Storage>> {
        let takes_vectors: Vec<bool> = self
            .tensors
            .iter()
            .map(|rule| rule.takes_vectors(file, entries))
            .collect::<anyhow::Result<_>>()?;
        for pattern in &self.keep {
            if !entries.iter().any(|entry| pattern.matches(&entry.name)) {
                return Err(no_match("--keep", pattern.text(), pattern, file, entries));
            }
        }

        let alone = entries.len() == 1;
        let mut claims = vec![0; self.tensors.len()];
        let mut default_claims = 0;
        let mut decisions = Vec::with_capacity(entries.len());
        for entry in entries {
            let is_vector = entry.shape.len() < 2 && !alone;
            let rule =
                self.tensors.iter().zip(&takes_vectors).rposition(|(rule, takes_vectors)| {
                    rule.pattern.matches(&entry.name) && (!is_vector || *takes_vectors)
                });
            decisions.push(if let Some(reason) = unrounded(entry.dtype) {
                kept(reason)
            } else if self.keep.iter().any(|pattern| pattern.matches(&entry.name)) {
                kept("--keep")
            } else if let Some(place) = rule {
                claims[place] += 1;
                self.stored(&self.tensors[place].scheme, entry, file, alone)?
            } else if is_vector {
                kept(if entry.shape.is_empty() { "scalar" } else { "1-D" })
            } else if let Some(scheme) = &self.scheme {
                default_claims += 1;
                self.stored(scheme, entry, file, alone)?
            } else {
                kept("no rule")
            });
        }

        if let Some((rule, _)) = self.tensors.iter().zip(&claims).find(|(_, claims)| **claims == 0)
        {
            bail!(
                "`--tensor {}={}` decides nothing: a later --tensor or --keep has every tensor \
                 that it matches",
                rule.pattern.text(),
                rule.scheme
            );
        }
        if default_claims == 0 && self.tensors.is_empty() {
            return Err(nothing_to_do(file, entries, &decisions, self.scheme.as_ref()));
        }
        Ok(decisions)
    }

    /// A tensor in a scheme, if that fits its shape.
    fn stored(
        &self,
        scheme: &Scheme,
        entry: &Entry,
        file: &str,
        alone: bool,
    ) -> anyhow::Result<Storage> {
        if scheme.is_float32() && entry.dtype != Dtype::F64 {
            return Ok(kept("rule says f32"));
        }
        match fitted(scheme, &entry.shape, self.are_weights) {
            Ok(scheme) => Ok(Storage::Packed { scheme }),
            Err(problem) if alone => bail!("{file}: tensor `{}`: {problem}", entry.name),
            Err(problem) => bail!(
                "{file}: tensor `{name}`: {problem}\n  help: give it a scheme of its own with \
                 --tensor '{name}=SCHEME', or leave it as it is with --keep '{name}'",
                name = entry.name
            ),
        }
    }
}

impl TensorRule {
    /// Whether the pattern means tensors of fewer than two axes: it matches no others.
    fn takes_vectors(&self, file: &str, entries: &[Entry]) -> anyhow::Result<bool> {
        let mut matched =
            entries.iter().filter(|entry| self.pattern.matches(&entry.name)).peekable();
        let Some(first) = matched.peek().copied() else {
            let rule = format!("{}={}", self.pattern.text(), self.scheme);
            return Err(no_match("--tensor", &rule, &self.pattern, file, entries));
        };
        let mut floats = matched.filter(|entry| unrounded(entry.dtype).is_none()).peekable();
        if floats.peek().is_none() {
            bail!(
                "`--tensor {}={}` matches no float tensor of {file}: `{}` is {}",
                self.pattern.text(),
                self.scheme,
                first.name,
                first.dtype
            );
        }
        Ok(floats.all(|entry| entry.shape.len() < 2))
    }
}

fn kept(reason: &str) -> Storage {
    Storage::Kept { reason: reason.to_owned() }
}

/// The error for rules that leave everything as it is.
fn nothing_to_do(
    file: &str,
    entries: &[Entry],
    decisions: &[Storage],
    scheme: Option<&Scheme>,
) -> anyhow::Error {
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for decision in decisions {
        let Storage::Kept { reason } = decision else { continue };
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, count)) => *count += 1,
            None => reasons.push((reason, 1)),
        }
    }
    let reasons: Vec<String> =
        reasons.iter().map(|(reason, count)| format!("{count} kept ({reason})")).collect();
    let message = match (entries, decisions) {
        ([], _) => format!("{file} holds no tensor"),
        ([only], _) => format!(
            "{file}: its only tensor `{}` is {}, and only floats can be encoded",
            only.name, only.dtype
        ),
        _ => format!("no tensor of {file} takes the scheme: {}", reasons.join(", ")),
    };
    let help = match scheme {
        Some(scheme) if decisions.contains(&kept("1-D")) => {
            format!("\n  help: to round vectors too, write --tensor '*={scheme}'")
        }
        _ => String::new(),
    };
    anyhow::anyhow!("{message}{help}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, shape: &[usize], dtype: Dtype) -> Entry {
        Entry { name: name.into(), shape: shape.to_vec(), dtype, storage: Storage::Plain }
    }

    fn network() -> Vec<Entry> {
        vec![
            entry("layer1.conv.weight", &[4, 2, 3, 3], Dtype::F32),
            entry("layer1.bn.weight", &[4], Dtype::F32),
            entry("layer1.bn.count", &[], Dtype::I64),
            entry("fc.weight", &[10, 4], Dtype::F16),
            entry("fc.bias", &[10], Dtype::F16),
        ]
    }

    fn decide(scheme: &str, tensors: &[&str], keep: &[&str]) -> Result<Vec<String>, String> {
        decide_for(&network(), scheme, tensors, keep)
    }

    fn decide_for(
        entries: &[Entry],
        scheme: &str,
        tensors: &[&str],
        keep: &[&str],
    ) -> Result<Vec<String>, String> {
        let rules = Rules {
            scheme: (!scheme.is_empty()).then(|| scheme.parse().unwrap()),
            tensors: tensors.iter().map(|rule| rule.parse().unwrap()).collect(),
            keep: keep.iter().map(|pattern| pattern.parse().unwrap()).collect(),
            are_weights: true,
        };
        let decisions = rules.decide("net.pt", entries).map_err(|error| error.to_string())?;
        let text = |decision: &Storage| match decision {
            Storage::Plain => "plain".to_owned(),
            Storage::Kept { reason } => format!("({reason})"),
            Storage::Packed { scheme } => scheme.to_string(),
        };
        Ok(decisions.iter().map(text).collect())
    }

    #[test]
    fn matrices_take_the_scheme_and_vectors_are_kept() {
        let decisions = decide("int8/channel", &[], &[]).unwrap();
        assert_eq!(decisions, ["int8/channel", "(1-D)", "(integer)", "int8/channel", "(1-D)"]);
    }

    #[test]
    fn a_later_rule_wins_and_keep_wins_over_all() {
        let decisions = decide("int8", &["*=int4", "fc.*=e4m3fn"], &["layer1.conv.*"]);
        assert!(decisions.unwrap_err().contains("`--tensor *=int4` decides nothing"));
        let decisions = decide("int8", &["*=int4", "fc.*=e4m3fn"], &[]).unwrap();
        assert_eq!(decisions, ["int4", "(1-D)", "(integer)", "e4m3fn", "(1-D)"]);
        let decisions = decide("int8", &[], &["layer1.*"]).unwrap();
        assert_eq!(decisions, ["(--keep)", "(--keep)", "(integer)", "int8", "(1-D)"]);
    }

    #[test]
    fn a_pattern_for_vectors_alone_means_them() {
        let decisions = decide("int4", &["fc.bias=int8", "*.bn.*=f16"], &[]).unwrap();
        assert_eq!(decisions, ["int4", "f16", "(integer)", "int4", "int8"]);
        let decisions = decide("", &["layer1.*=int4/channel"], &[]).unwrap();
        assert_eq!(decisions, ["int4/channel", "(1-D)", "(integer)", "(no rule)", "(1-D)"]);
    }

    #[test]
    fn the_rows_of_a_convolution_are_its_filters_but_those_of_an_array_its_last_axis() {
        let decisions = decide("int4/group:16", &[], &[]).unwrap();
        assert_eq!(decisions[0], "int4/group:16/matrix");
        assert_eq!(decisions[3], "int4/group:16");
        let scheme: Scheme = "int4/group:16".parse().unwrap();
        let rules = Rules {
            scheme: Some(scheme.clone()),
            tensors: vec![],
            keep: vec![],
            are_weights: false,
        };
        let array = [entry("x", &[4, 2, 3, 3], Dtype::F32)];
        assert_eq!(rules.decide("x.npy", &array).unwrap(), [Storage::Packed { scheme }]);
    }

    #[test]
    fn a_tensor_that_is_alone_takes_the_scheme_whatever_its_rank() {
        let alone = [entry("x", &[5], Dtype::F32)];
        assert_eq!(decide_for(&alone, "int8", &[], &[]).unwrap(), ["int8"]);
        assert_eq!(decide_for(&alone, "f32", &[], &[]).unwrap(), ["(rule says f32)"]);
        let error = decide_for(&alone, "int8/channel", &[], &[]).unwrap_err();
        assert!(error.contains("tensor `x`") && error.contains("`tensor` fits it"), "{error}");
        let error = decide_for(&[entry("x", &[5], Dtype::I64)], "int8", &[], &[]).unwrap_err();
        assert_eq!(error, "net.pt: its only tensor `x` is i64, and only floats can be encoded");
    }

    #[test]
    fn doubles_are_rounded_to_f32_where_a_rule_says_so() {
        let doubles = [entry("x", &[5], Dtype::F64)];
        assert_eq!(decide_for(&doubles, "f32", &[], &[]).unwrap(), ["f32"]);
    }

    #[test]
    fn errors_name_the_rule_and_what_is_near() {
        for (scheme, tensors, keep, parts) in [
            ("int8", vec!["fv.*=int4"], vec![], ["`--tensor fv.*=int4`", "did you mean `fc.*`?"]),
            ("int8", vec!["conv.weight=int4"], vec![], ["no tensor", "`*conv.weight`"]),
            ("int8", vec!["zzzzzz=int4"], vec![], ["zzzzzz", "layer1.conv.weight, layer1.bn"]),
            ("int8", vec![], vec!["fc.wieght"], ["--keep fc.wieght", "`fc.weight`"]),
            ("int8", vec!["*.count=int4"], vec![], ["no float tensor", "is i64"]),
            ("int8", vec![], vec!["*.weight"], ["takes the scheme", "1 kept (1-D)"]),
            ("", vec!["fc.bias=int8/channel"], vec![], ["tensor `fc.bias`", "--keep 'fc.bias'"]),
            ("int8/axis:2", vec![], vec![], ["tensor `fc.weight`", "its axes are 0 to 1"]),
        ] {
            let error = decide(scheme, &tensors, &keep).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
