//! What codecs remember of a tensor from one step to the next.

use serde::{Deserialize, Serialize};

use crate::Range;
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
    /// The ranges of the last tensors, for scales that go by them.
    Delayed(History),
}

/// The ranges of the groups of the last tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    groups: usize,
    length: u16,
    /// Smallest and largest value of every group, tensor after tensor, the oldest first.
    ranges: Vec<[f32; 2]>,
}

impl History {
    /// Of no tensor yet, and of so many at most.
    pub(crate) fn new(groups: usize, length: u16) -> Self {
        Self { groups, length, ranges: Vec::new() }
    }

    /// Remembers the ranges of a tensor, and puts those of the tensors before it in their place. Where there are none, or
    /// nothing but zeros, a group keeps its own.
    pub(crate) fn next(&mut self, ranges: &mut [Range]) {
        // A memory comes from a file, so nothing of it is taken on trust.
        if self.groups != ranges.len() || !self.ranges.len().is_multiple_of(self.groups.max(1)) {
            *self = Self::new(ranges.len(), self.length);
        }
        let own: Vec<[f32; 2]> = ranges
            .iter()
            .map(|range| {
                let Range { min, max } = range.or_zero();
                [min, max]
            })
            .collect();
        for (group, range) in ranges.iter_mut().enumerate() {
            let known = self.ranges.iter().skip(group).step_by(self.groups);
            let known = known.filter(|known| known.iter().all(|v| v.is_finite()));
            let before = known
                .fold(Range::EMPTY, |all, [min, max]| all.join(Range { min: *min, max: *max }));
            if before.or_zero().amax() > 0.0 {
                *range = before;
            }
        }
        let most = usize::from(self.length.max(1)) * self.groups;
        self.ranges.extend(own);
        let excess = self.ranges.len().saturating_sub(most);
        self.ranges.drain(..excess);
    }

    fn values(&self) -> Vec<f32> {
        self.ranges.concat()
    }

    fn set_values(&mut self, values: &[f32]) -> bool {
        let (pairs, rest) = values.as_chunks::<2>();
        let most = usize::from(self.length) * self.groups;
        if !rest.is_empty() || pairs.len() > most || !pairs.len().is_multiple_of(self.groups.max(1))
        {
            return false;
        }
        self.ranges = pairs.to_vec();
        true
    }
}

impl Memory {
    /// The state as numbers, for files of tensors; [`set_values`](Self::set_values) takes them back.
    pub fn values(&self) -> Vec<f32> {
        match self {
            Self::Scales { scales } => scales.iter().map(|s| s.unwrap_or(f32::NAN)).collect(),
            Self::Shared { scales } => scales.clone(),
            Self::Residual { residual } => residual.clone(),
            Self::Flexpoint(autoflex) => autoflex.values(),
            Self::Delayed(history) => history.values(),
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
            Self::Delayed(history) => return history.set_values(values),
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
        let delayed = ["e4m3fn/delayed:3", "uint8/channel/delayed:2"].map(String::from);
        for member in crate::FAMILIES.iter().flat_map(|f| f.members()).chain(delayed) {
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

    /// The values of tensors in a row under one memory.
    fn row<const N: usize>(scheme: &str, tensors: &[[f32; N]]) -> Vec<[f32; N]> {
        let scheme: Scheme = scheme.parse().unwrap();
        let mut memory = scheme.memory(&[N]).unwrap();
        let stream = Stream::new(0, 0);
        tensors
            .iter()
            .map(|x| {
                let (mut emulated, mut bytes, mut decoded) = (*x, Vec::new(), [0.0; N]);
                let mut twin = memory.clone();
                scheme.encode_next(x, &[N], &stream, twin.as_mut(), &mut bytes).unwrap();
                scheme.decode(&bytes, &[N], &mut decoded).unwrap();
                scheme.emulate_next(&mut emulated, &[N], &stream, memory.as_mut()).unwrap();
                assert_eq!((&emulated, &memory), (&decoded, &twin));
                emulated
            })
            .collect()
    }

    #[test]
    fn a_delayed_scale_is_that_of_the_largest_of_the_tensors_before() {
        // Steps of 1 for 7, which is the largest code; then by 7 alone, by 7 and 14, by 14 and 3.5, by 3.5 and 70.
        assert_eq!(
            row(
                "int4/delayed:2",
                &[[7.0, 0.4], [14.0, -9.0], [3.5, 1.1], [70.0, 3.1], [21.0, 5.0]]
            ),
            [[7.0, 0.0], [7.0, -7.0], [4.0, 2.0], [14.0, 4.0], [20.0, 0.0]]
        );
        // Zeros say nothing of a range, before or after others.
        assert_eq!(
            row("int4/delayed:1", &[[0.0], [70.0], [0.0], [7.0]]),
            [[0.0], [70.0], [0.0], [7.0]]
        );
        // 448 is the largest code: a scale of 1, and what is beyond it is clipped.
        assert_eq!(
            row("e4m3fn/delayed:1", &[[448.0], [-1000.0], [-1000.0]]),
            [[448.0], [-448.0], [-1000.0]]
        );
        // An affine code remembers both ends: from -1 to 4 in 5 steps, zero being the first code above the least.
        assert_eq!(
            row("uint4/delayed:1", &[[-3.0, 12.0], [-9.0, 50.0]]),
            [[-3.0, 12.0], [-3.0, 12.0]]
        );
    }

    #[test]
    fn delayed_scales_round_as_the_format_says_by_elements() {
        let stream = Stream::new(4, 2);
        let noise = |step: u64, size: f32| -> Vec<f32> {
            (0..240).map(|i| (stream.at_step(step).uniform(i) - 0.45) * size).collect()
        };
        let mut tried = 0;
        for member in crate::FAMILIES.iter().flat_map(|f| f.members()) {
            for words in ["delayed:2", "channel/delayed:2", "delayed:2/stochastic"] {
                let Ok(scheme) = format!("{member}/{words}").parse::<Scheme>() else { continue };
                let (Some(format), Some(store)) = (scheme.format(), scheme.terms().scale) else {
                    panic!("{scheme} has no format");
                };
                tried += 1;
                let groups = scheme.groups(&[6, 40]).unwrap();
                let len = 240 / groups;
                let mut memory = scheme.memory(&[6, 40]).unwrap();
                let mut ranges = Vec::<Vec<Range>>::new();
                for (step, size) in [(0, 1.0), (1, 30.0), (2, 2.0), (3, 1e-3), (4, 5.0)] {
                    let x = noise(step, size);
                    let own: Vec<Range> = x.chunks(len).map(Range::of_finite).collect();
                    let mut got = x.clone();
                    scheme.emulate_next(&mut got, &[6, 40], &stream, memory.as_mut()).unwrap();
                    let before = &ranges[ranges.len().saturating_sub(2)..];
                    for (i, x) in x.iter().enumerate() {
                        let of = |all: &Vec<Range>| all[i / len];
                        let range =
                            before.iter().map(of).reduce(Range::join).unwrap_or(own[i / len]);
                        let params = format.fit(range, store);
                        let draw = stream.draw(i as u64);
                        let code = format.encode(*x, &params, scheme.rounding(), draw);
                        let value = format.decode(code, &params);
                        assert_eq!(got[i].to_bits(), value.to_bits(), "{scheme} {step} {i}: {x}");
                    }
                    ranges.push(own);
                }
            }
        }
        assert!(tried > 40, "few formats take it: {tried}");
    }

    #[test]
    fn a_history_goes_only_with_scales_of_whole_tensors_or_channels() {
        for (text, part) in [
            ("int8/delayed:0", "is no number of tensors"),
            ("int8/delayed:5000", "is no number of tensors"),
            ("int8/delayed:x", "is no number of tensors"),
            ("int8/delayed:4/delayed:4", "said twice"),
            ("int8/group:32/delayed:4", "as large as the tensor"),
            ("mxfp4/delayed:4", "as large as the tensor"),
            ("nvfp4/delayed:4", "delayed"),
            ("cfloat8_1_4_3/delayed:4", "no scale that could be that of earlier tensors"),
            ("onebit/delayed:4", "no scale that could be that of earlier tensors"),
            ("smaq:6,8/delayed:4", "no scale that could be that of earlier tensors"),
            ("int8/rans/delayed:4", "no scale that could be that of earlier tensors"),
        ] {
            let said = text.parse::<Scheme>().unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
        let scheme: Scheme = "e5m2/delayed:16/stochastic".parse().unwrap();
        assert_eq!(scheme.to_string(), "e5m2/tensor/stochastic/delayed:16");
    }

    #[test]
    fn a_history_from_elsewhere_does_no_harm() {
        let scheme: Scheme = "int8/delayed:3".parse().unwrap();
        for json in [
            r#"{"delayed":{"groups":0,"length":0,"ranges":[]}}"#,
            r#"{"delayed":{"groups":9,"length":3,"ranges":[[0,1]]}}"#,
            r#"{"delayed":{"groups":1,"length":65535,"ranges":[[1e38,-1e38],[0,1]]}}"#,
        ] {
            let mut memory: Memory = serde_json::from_str(json).unwrap();
            for _ in 0..3 {
                let mut x = [1.5, -0.5];
                scheme.emulate_next(&mut x, &[2], &Stream::new(0, 0), Some(&mut memory)).unwrap();
                assert!(x.iter().all(|v| v.is_finite()), "{json} {x:?}");
            }
        }
    }
}
