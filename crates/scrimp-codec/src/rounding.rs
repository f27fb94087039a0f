//! How a real number becomes an integer.

/// A rounding rule. `rne` is the default everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// To the nearest, ties to the even code (IEEE 754, ONNX).
    #[default]
    NearestEven,
    /// To the nearest, ties away from zero.
    HalfAway,
    /// Toward zero (truncation, as QML's floating-point quantizer does).
    TowardZero,
    /// Toward minus infinity.
    Floor,
    /// `floor(v + u)` with `u` uniform in [0, 1): right on average.
    Stochastic,
}

impl Rounding {
    /// Every rule, with the word that a scheme uses for it.
    pub const WORDS: [(&str, Rounding); 5] = [
        ("rne", Rounding::NearestEven),
        ("half-away", Rounding::HalfAway),
        ("toward-zero", Rounding::TowardZero),
        ("floor", Rounding::Floor),
        ("stochastic", Rounding::Stochastic),
    ];

    /// The word that a scheme uses for this rule.
    pub fn word(self) -> &'static str {
        Self::WORDS[self as usize].0
    }

    /// Rounds `v` to an integer; `draw` is the 24-bit random integer that stochastic rounding adds (over 2^24).
    ///
    /// This is the readable truth that fast paths are tested against. For `v` that came from an `f32` the
    /// sum `v + u` is exact in `f64` wherever its floor depends on it.
    #[inline(always)]
    pub fn round(self, v: f64, draw: u32) -> f64 {
        match self {
            Self::NearestEven => v.round_ties_even(),
            Self::HalfAway => v.round(),
            Self::TowardZero => v.trunc(),
            Self::Floor => v.floor(),
            Self::Stochastic => (v + f64::from(draw) * (1.0 / 16_777_216.0)).floor(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_in_the_order_of_the_rules() {
        for (word, rule) in Rounding::WORDS {
            assert_eq!(rule.word(), word);
        }
    }

    #[test]
    fn ties_follow_their_rule() {
        let v = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5];
        let by = |r: Rounding| v.map(|v| r.round(v, 0));
        assert_eq!(by(Rounding::NearestEven), [-2., -2., 0., 0., 2., 2.]);
        assert_eq!(by(Rounding::HalfAway), [-3., -2., -1., 1., 2., 3.]);
        assert_eq!(by(Rounding::TowardZero), [-2., -1., 0., 0., 1., 2.]);
        assert_eq!(by(Rounding::Floor), [-3., -2., -1., 0., 1., 2.]);
    }
}
