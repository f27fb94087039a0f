//! Which tensors are rounded to what, and how many of them are added.

use scrimp_codec::{Scheme, ShapeError};

/// What happens to the tensors of one level: each is rounded, then as many of them are added as the level says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// How many tensors are added to one; the last group may be shorter.
    pub count: usize,
    /// What each of them is rounded to first.
    pub scheme: Scheme,
}

/// How the gradients of the samples of a batch become one.
///
/// QML's `[(64, none), (8, int8)]` is the batch of 512 samples on 8 workers: each adds its 64, the sums are rounded to
/// int8, and added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reduction {
    /// The levels; the first gets the gradients of single samples.
    pub levels: Vec<Level>,
    /// What the result is rounded to on its way back to the workers.
    pub down: Scheme,
    /// Whether the tensors of all levels but the first, and the result, are sent with error feedback.
    pub feedback: bool,
    /// Whether the tensors of a level share one scale, the largest of theirs.
    pub shares_scales: bool,
}

/// A reduction that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReductionError {
    /// There is no level, or one that adds no tensors.
    #[error("a reduction has levels that each add at least one tensor")]
    Empty,
    /// Some tensors are left.
    #[error(
        "{samples} samples do not become one sum: the levels add {} = {} of them at most",
        counts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x "),
        counts.iter().product::<usize>()
    )]
    Left {
        /// Samples of a batch.
        samples: usize,
        /// Tensors that each level adds.
        counts: Vec<usize>,
    },
    /// The scheme of a level cannot have one scale for several tensors.
    #[error(
        "`{scheme}` has no scale that workers can share; `tensor` granularity or `terngrad` has one"
    )]
    Shared {
        /// The scheme.
        scheme: String,
    },
    /// A scheme does not fit a tensor.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

impl Reduction {
    /// Gradients of single samples that are added before anything is rounded.
    pub fn local(&self) -> usize {
        match &self.levels[..] {
            [first, ..] if first.scheme.is_float32() => first.count,
            _ => 1,
        }
    }

    /// The levels after those sums.
    pub(crate) fn rounded(&self) -> &[Level] {
        &self.levels[usize::from(self.levels.first().is_some_and(|l| l.scheme.is_float32()))..]
    }

    /// Whether anything is rounded at all.
    pub fn is_plain(&self) -> bool {
        self.down.is_float32() && self.levels.iter().all(|level| level.scheme.is_float32())
    }

    /// Fails unless a batch of so many samples becomes one tensor of this shape.
    ///
    /// # Errors
    /// If a level adds nothing, tensors are left, or a scheme does not fit.
    pub fn check(&self, samples: usize, shape: &[usize]) -> Result<(), ReductionError> {
        if self.levels.is_empty() || self.levels.iter().any(|level| level.count == 0) {
            return Err(ReductionError::Empty);
        }
        let left = self.levels.iter().fold(samples, |left, level| left.div_ceil(level.count));
        if left > 1 {
            let counts = self.levels.iter().map(|level| level.count).collect();
            return Err(ReductionError::Left { samples, counts });
        }
        for level in &self.levels {
            level.scheme.check(shape)?;
            if self.shares_scales && !shares(&level.scheme, shape) {
                return Err(ReductionError::Shared { scheme: level.scheme.to_string() });
            }
        }
        Ok(self.down.check(shape)?)
    }

    /// Bytes that all workers send up, and that each gets back, in a step on so many samples. `None` where that depends
    /// on values.
    ///
    /// # Errors
    /// If a scheme does not fit.
    pub fn bytes(&self, samples: usize, shape: &[usize]) -> Result<Option<[usize; 2]>, ShapeError> {
        let mut tensors = samples.div_ceil(self.local());
        let mut up = 0;
        for level in self.rounded() {
            let Some(bytes) = level.scheme.size(shape)?.exact() else { return Ok(None) };
            up += tensors * bytes;
            tensors = tensors.div_ceil(level.count);
        }
        Ok(self.down.size(shape)?.exact().map(|down| [up, down]))
    }
}

/// Whether several tensors can have one scale: they are one tensor of one group, or the scheme says how.
pub(crate) fn shares(scheme: &Scheme, shape: &[usize]) -> bool {
    let whole = |s: &Scheme| s.groups(shape).is_ok_and(|groups| groups <= 1);
    scheme.is_float32() || whole(scheme) && scheme.memory(shape).is_ok_and(|m| m.is_none())
}
