//! The range of a group of values.

/// The smallest and largest finite value of a group; both 0 where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
}

impl Range {
    /// The range of no values, which any other range absorbs.
    pub const EMPTY: Range = Range { min: f32::INFINITY, max: f32::NEG_INFINITY };

    /// The range of two groups together.
    #[must_use]
    pub fn join(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// The range, with that of no values set to 0.
    #[must_use]
    pub(crate) fn or_zero(self) -> Range {
        if self.min > self.max { Range { min: 0.0, max: 0.0 } } else { self }
    }

    /// The largest magnitude.
    pub fn amax(self) -> f32 {
        self.max.abs().max(self.min.abs())
    }

    /// The range of the finite values of a slice. The readable truth.
    pub(crate) fn of_finite(x: &[f32]) -> Range {
        x.iter()
            .filter(|v| v.is_finite())
            .fold(Range::EMPTY, |r, &v| r.join(Range { min: v, max: v }))
    }
}
