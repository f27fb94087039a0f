//! What the elements of a tensor are as factors of a product, and the integers behind its bytes.

use std::borrow::Cow;

/// What arithmetic can do with the elements of a scheme without a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Factors {
    /// Elements are integers times the scale of their group.
    pub integers: Option<Width>,
    /// Values have at most 8 significant bits, as bf16 has them, under scales that are powers of two or none. A value
    /// that a small scale made subnormal may still have lost some.
    pub short: bool,
}

/// How wide the integers of a scheme are, less their zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// Within -128 to 127.
    Narrow,
    /// Within -255 to 255.
    Wide,
}

/// Integers and scales: `value = integer * scale`, rounded to f32. Zero points are subtracted already.
#[derive(Clone, Debug, PartialEq)]
pub struct Integers<'a> {
    /// The scale of each group, groups in storage order of their first elements.
    pub scales: Vec<f32>,
    /// One integer for each element.
    pub codes: IntegerCodes<'a>,
}

/// One integer for each element, as narrow as the scheme allows.
#[derive(Clone, Debug, PartialEq)]
pub enum IntegerCodes<'a> {
    /// Of [`Width::Narrow`]; the bytes of `int8` are taken as they are.
    Narrow(Cow<'a, [i8]>),
    /// Of [`Width::Wide`].
    Wide(Vec<i16>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FAMILIES, Scheme, Stream};

    #[test]
    fn integers_times_scales_and_short_values_are_what_the_bytes_hold() {
        let shape = [3, 4, 7];
        let stream = Stream::new(1, 2);
        let x: Vec<f32> = (0..84).map(|i| 8.0 * stream.uniform(i) - 3.0).collect();
        let words = ["", "/channel", "/group:3", "/flat:5", "/tile:2x3", "/scale:pow2"];
        let (mut narrow, mut wide, mut short) = (0, 0, 0);
        for member in FAMILIES.iter().flat_map(|f| f.members()) {
            for scheme in words.iter().filter_map(|w| format!("{member}{w}").parse::<Scheme>().ok())
            {
                let mut bytes = Vec::new();
                scheme.encode(&x, &shape, &stream, &mut bytes).unwrap();
                let mut values = vec![0.0; x.len()];
                scheme.decode(&bytes, &shape, &mut values).unwrap();
                let factors = scheme.factors();
                if factors.short {
                    short += 1;
                    assert!(values.iter().all(|v| v.to_bits().trailing_zeros() >= 16), "{scheme}");
                }
                let held = scheme.integers(&bytes, &shape).unwrap();
                assert_eq!(held.is_some(), factors.integers.is_some(), "{scheme}");
                let Some(Integers { scales, codes }) = held else { continue };
                let integers: Vec<f32> = match codes {
                    IntegerCodes::Narrow(codes) => {
                        narrow += 1;
                        codes.iter().map(|c| f32::from(*c)).collect()
                    }
                    IntegerCodes::Wide(codes) => {
                        wide += 1;
                        codes.iter().map(|c| f32::from(*c)).collect()
                    }
                };
                let layout = scheme.terms().layout(&shape).unwrap();
                assert_eq!(scales.len(), layout.groups());
                for (group, scale) in scales.iter().enumerate() {
                    for at in (0..layout.group_len(group)).map(|i| layout.element(group, i)) {
                        assert_eq!(integers[at] * scale, values[at], "{scheme} {at}");
                    }
                }
            }
        }
        assert!(narrow > 50 && wide >= 4 && short > 20, "{narrow} {wide} {short}");
    }
}
