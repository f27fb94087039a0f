//! Numbers as text.

use std::fmt::Write;

/// A value with as many digits as tell it from its neighbours: `57,344`, `0.5`, `3.3895314e38`.
pub fn exact(value: f32) -> String {
    let magnitude = value.abs();
    if !value.is_finite() {
        return if value.is_nan() { "NaN".into() } else { format!("{value}") };
    }
    if magnitude >= 1e9 || (magnitude > 0.0 && magnitude < 1e-4) {
        return format!("{value:e}");
    }
    let plain = value.to_string();
    let (whole, rest) = plain.split_once('.').map_or((&*plain, None), |(w, r)| (w, Some(r)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut text = sign.to_owned();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if let Some(rest) = rest {
        // Writing to a string cannot fail.
        write!(text, ".{rest}").ok();
    }
    text
}

/// Which power of two a value is, if it is one.
pub fn exponent(value: f32) -> Option<i32> {
    let bits = value.to_bits();
    match ((bits >> 23).cast_signed(), bits & 0x007F_FFFF) {
        (field @ 1..=254, 0) => Some(field - 127),
        (0, subnormal) if subnormal.is_power_of_two() => {
            Some(subnormal.trailing_zeros().cast_signed() - 149)
        }
        _ => None,
    }
}

/// A positive value, as a power of two where it is one that is not plain to read.
pub fn power(value: f32) -> String {
    match exponent(value) {
        Some(exponent) if !(-3..=10).contains(&exponent) => power_of_two(exponent),
        _ => exact(value),
    }
}

/// `2⁻¹⁴`, in characters that pictures and tables share.
pub fn power_of_two(exponent: i32) -> String {
    let raised = |c: char| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        _ => c.to_digit(10).and_then(|d| char::from_u32(0x2070 + d)).unwrap_or(c),
    };
    format!("2{}", exponent.to_string().chars().map(raised).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_exactly() {
        assert_eq!(exact(-57344.0), "-57,344");
        assert_eq!(exact(448.0), "448");
        assert_eq!(exact(-1_234_567.5), "-1,234,567.5");
        assert_eq!(exact(0.001_953_125), "0.001953125");
        assert_eq!(exact(f32::MAX), "3.4028235e38");
        assert_eq!(exact(f32::NEG_INFINITY), "-inf");
        assert_eq!(exact(-0.0), "-0");
    }

    #[test]
    fn powers_of_two_are_told_as_such() {
        assert_eq!(power(2f32.powi(-14)), "2⁻¹⁴");
        assert_eq!(power(f32::from_bits(1)), "2⁻¹⁴⁹");
        assert_eq!(power(0.25), "0.25");
        assert_eq!(power(0.3), "0.3");
        assert_eq!(exponent(f32::INFINITY), None);
    }
}
