//! What codecs remember of a tensor from one step to the next.

use serde::{Deserialize, Serialize};

use crate::codecs::Autoflex;

/// What a codec keeps of one tensor between steps. It is made by [`Scheme::memory`](crate::Scheme::memory), changed by
/// each [`encode_next`](crate::Scheme::encode_next) or [`emulate_next`](crate::Scheme::emulate_next), and can be saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Memory {
    /// The scale that each group had, for formats that change it only when they must.
    Scales {
        /// One for each group; `None` before its first tensor.
        scales: Vec<Option<f32>>,
    },
    /// The scales that several workers agreed on, by which each of them encodes its own tensor; made of what
    /// [`scales`](crate::Scheme::scales) gives, and not changed.
    Shared {
        /// One for each group.
        scales: Vec<f32>,
    },
    /// What the last encoding lost, which is added to the next tensor (error feedback).
    Residual {
        /// One for each element.
        residual: Vec<f32>,
    },
    /// The largest mantissas of the last tensors, from which Flexpoint predicts its exponent.
    Flexpoint(Autoflex),
}

impl Memory {
    /// The state as numbers, for files of tensors; [`set_values`](Self::set_values) takes them back.
    pub fn values(&self) -> Vec<f32> {
        match self {
            Self::Scales { scales } => scales.iter().map(|s| s.unwrap_or(f32::NAN)).collect(),
            Self::Shared { scales } => scales.clone(),
            Self::Residual { residual } => residual.clone(),
            Self::Flexpoint(autoflex) => autoflex.values(),
        }
    }

    /// Puts saved numbers into a memory of the same scheme and shape. `false` if they are not of its kind; it is then
    /// unchanged.
    #[must_use]
    pub fn set_values(&mut self, values: &[f32]) -> bool {
        match self {
            Self::Scales { scales } if scales.len() == values.len() => {
                for (scale, v) in scales.iter_mut().zip(values) {
                    *scale = (v.is_finite() && *v > 0.0).then_some(*v);
                }
            }
            Self::Shared { scales: numbers } | Self::Residual { residual: numbers }
                if numbers.len() == values.len() =>
            {
                numbers.copy_from_slice(values);
            }
            Self::Flexpoint(autoflex) => match Autoflex::from_values(values) {
                Some(saved) => *autoflex = saved,
                None => return false,
            },
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scheme, Stream};

    #[test]
    fn a_memory_goes_on_where_its_numbers_or_its_json_were_saved() {
        let mut tried = 0;
        for member in crate::FAMILIES.iter().flat_map(|f| f.members()) {
            let scheme: Scheme = member.parse().unwrap();
            let shape = [6, 40];
            let Some(mut memory) = scheme.memory(&shape).unwrap() else { continue };
            tried += 1;
            let stream = Stream::named(3, &member);
            let tensor = |step: u64| -> Vec<f32> {
                let size = if step == 3 { 1000.0 } else { 1.0 };
                (0..240).map(|i| (stream.at_step(step).uniform(i) - 0.4) * size).collect()
            };
            for step in 0..5 {
                let mut x = tensor(step);
                scheme.emulate_next(&mut x, &shape, &stream, Some(&mut memory)).unwrap();
            }
            let json = serde_json::to_string(&memory).unwrap();
            let mut from_json: Memory = serde_json::from_str(&json).unwrap();
            let mut from_values = scheme.memory(&shape).unwrap().unwrap();
            assert!(from_values.set_values(&memory.values()), "{member}");
            assert_eq!((&from_json, &from_values), (&memory, &memory), "{member}");
            let next = |memory: &mut Memory| {
                let mut bytes = Vec::new();
                scheme.encode_next(&tensor(9), &shape, &stream, Some(memory), &mut bytes).unwrap();
                bytes
            };
            let expected = next(&mut memory);
            assert!(next(&mut from_json) == expected && next(&mut from_values) == expected);
            assert!(!from_values.set_values(&[0.5; 7]), "{member}");
        }
        assert!(tried >= 3, "few codecs have a memory: {tried}");
    }
}
