//! The reduction of one tensor, in one process that stands for all workers.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use scrimp_codec::{EncodeError, Memory, Scheme, Stream};

use crate::{Reduction, ReductionError, Sender};

/// Adds the gradients of one tensor, step after step.
#[derive(Debug)]
pub struct Reducer {
    reduction: Arc<Reduction>,
    shape: Vec<usize>,
    /// Names the random numbers of each sender.
    seed: u32,
    name: String,
    /// By level and by place in it.
    senders: BTreeMap<(usize, usize), Sender>,
    down: Sender,
}

impl Reducer {
    /// The reduction of a tensor of this shape, whose random numbers are named by `seed` and `name`.
    ///
    /// # Errors
    /// If the reduction does not bring so many samples to one tensor of this shape.
    pub fn new(
        reduction: Arc<Reduction>,
        samples: usize,
        shape: &[usize],
        seed: u32,
        name: &str,
    ) -> Result<Self, ReductionError> {
        reduction.check(samples, shape)?;
        let stream = Stream::named(seed, &format!("{name}.down"));
        let down = Sender::new(reduction.down.clone(), shape, stream, reduction.feedback)?;
        let (shape, name) = (shape.to_vec(), name.to_owned());
        Ok(Self { reduction, shape, seed, name, senders: BTreeMap::new(), down })
    }

    /// How many gradients of single samples the caller adds to each tensor that he hands in; the last may have fewer.
    pub fn local(&self) -> usize {
        self.reduction.local()
    }

    /// The sum of a step, of the tensors in the order of their samples.
    ///
    /// Additions are in f64 and rounded once for each level. Rounded tensors that share a scale are multiples of it, whose
    /// sum is exact, so that it does not depend on an order.
    ///
    /// # Errors
    /// If a scheme cannot hold a value.
    pub fn reduce(
        &mut self,
        mut tensors: Vec<Vec<f32>>,
        step: u64,
    ) -> Result<Vec<f32>, EncodeError> {
        let reduction = Arc::clone(&self.reduction);
        for (at, level) in reduction.rounded().iter().enumerate() {
            if reduction.shares_scales && !level.scheme.is_float32() {
                self.round_together(at, &level.scheme, &mut tensors, step)?;
            } else {
                for (place, tensor) in tensors.iter_mut().enumerate() {
                    self.sender(at, place)?.emulate(tensor, step)?;
                }
            }
            tensors = tensors.chunks(level.count).map(sum).collect();
        }
        let mut total = match tensors.len() {
            1 => tensors.swap_remove(0),
            _ => sum(&tensors),
        };
        self.down.emulate(&mut total, step)?;
        Ok(total)
    }

    /// Rounds the tensors of a level to multiples of one scale.
    fn round_together(
        &mut self,
        level: usize,
        scheme: &Scheme,
        tensors: &mut [Vec<f32>],
        step: u64,
    ) -> Result<(), EncodeError> {
        for (place, tensor) in tensors.iter_mut().enumerate() {
            self.sender(level, place)?.add_lost(tensor);
        }
        let scales = tensors.iter().map(|t| scheme.scales(t, &self.shape));
        let scales = scales.collect::<Result<Vec<_>, _>>()?;
        if scales.iter().all(Vec::is_empty) {
            // Together they are a tensor whose one group has one scale.
            let shape = [&[tensors.len()], &self.shape[..]].concat();
            let mut all = tensors.concat();
            let stream = Stream::named(self.seed, &format!("{}.{level}", self.name));
            scheme.emulate(&mut all, &shape, &stream.at_step(step))?;
            for (tensor, held) in tensors.iter_mut().zip(all.chunks_exact(all.len() / shape[0])) {
                tensor.copy_from_slice(held);
            }
        } else {
            let largest = scales
                .into_iter()
                .reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a.max(*b)).collect());
            let mut shared = Memory::Shared { scales: largest.unwrap_or_default() };
            for (place, tensor) in tensors.iter_mut().enumerate() {
                let stream = self.sender(level, place)?.stream().at_step(step);
                scheme.emulate_next(tensor, &self.shape, &stream, Some(&mut shared))?;
            }
        }
        for (place, tensor) in tensors.iter().enumerate() {
            self.sender(level, place)?.keep_lost(tensor);
        }
        Ok(())
    }

    /// Bytes that were sent so far: by all workers, and by the sum to each of them.
    pub fn sent(&self) -> [u64; 2] {
        [self.senders.values().map(Sender::sent).sum(), self.down.sent()]
    }

    /// What the next step depends on: numbers, by the name of their sender.
    pub fn state(&self) -> Vec<(String, Vec<f32>)> {
        let name = |(level, place): &(usize, usize)| format!("{level}.{place}");
        let up = self.senders.iter().map(|(at, sender)| (name(at), sender.state()));
        let all = up.chain(std::iter::once(("down".to_owned(), self.down.state())));
        all.filter(|(_, state)| !state.is_empty()).collect()
    }

    /// Puts back what [`state`](Self::state) gave under a name. `false` if no sender has that name or such numbers.
    #[must_use]
    pub fn set_state(&mut self, name: &str, state: &[f32]) -> bool {
        if name == "down" {
            return self.down.set_state(state);
        }
        let numbers =
            |(level, place): (&str, &str)| Some((level.parse().ok()?, place.parse().ok()?));
        let Some((level, place)) = name.split_once('.').and_then(numbers) else { return false };
        let known = level < self.reduction.rounded().len();
        known && self.sender(level, place).is_ok_and(|sender| sender.set_state(state))
    }

    fn sender(&mut self, level: usize, place: usize) -> Result<&mut Sender, EncodeError> {
        let Self { reduction, shape, seed, name, senders, .. } = self;
        match senders.entry((level, place)) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(new) => {
                let stream = Stream::named(*seed, &format!("{name}.{level}.{place}"));
                // The gradient of a single sample has no successor that could make good for it.
                let feedback = reduction.feedback && !(level == 0 && reduction.local() == 1);
                let scheme = reduction.rounded()[level].scheme.clone();
                Ok(new.insert(Sender::new(scheme, shape, stream, feedback)?))
            }
        }
    }
}

/// The sum of tensors of one length.
fn sum(tensors: &[Vec<f32>]) -> Vec<f32> {
    let [first, rest @ ..] = tensors else { return Vec::new() };
    if rest.is_empty() {
        return first.clone();
    }
    let mut total: Vec<f64> = first.iter().map(|v| f64::from(*v)).collect();
    for tensor in rest {
        for (total, v) in total.iter_mut().zip(tensor) {
            *total += f64::from(*v);
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "a gradient is rounded to f32")]
    total.into_iter().map(|v| v as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    fn level(count: usize, scheme: &str) -> Level {
        Level { count, scheme: scheme.parse().unwrap() }
    }

    fn reduction(levels: &[(usize, &str)], down: &str, feedback: bool, shared: bool) -> Reduction {
        Reduction {
            levels: levels.iter().map(|(count, scheme)| level(*count, scheme)).collect(),
            down: down.parse().unwrap(),
            feedback,
            shares_scales: shared,
        }
    }

    fn reducer(reduction: Reduction, samples: usize, shape: &[usize]) -> Reducer {
        Reducer::new(Arc::new(reduction), samples, shape, 3, "fc.aw").unwrap()
    }

    #[test]
    fn levels_are_rounded_before_they_are_added() {
        let rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 10.0]];
        let mut plain = reducer(reduction(&[(2, "f32"), (3, "f32")], "f32", false, false), 5, &[2]);
        assert_eq!(plain.local(), 2);
        let sums = vec![vec![4.0, 6.0], vec![12.0, 14.0], vec![9.0, 10.0]];
        assert_eq!(plain.reduce(sums.clone(), 0).unwrap(), [25.0, 30.0]);
        // Each worker's sum is rounded by a scale of its own: 6, 14 and 10 are the largest.
        let mut each = reducer(reduction(&[(2, "f32"), (3, "int2")], "f32", false, false), 5, &[2]);
        let rounded = [[6.0, 6.0], [14.0, 14.0], [10.0, 10.0]];
        let expected = [0, 1].map(|c| rounded.iter().map(|r| r[c]).sum::<f32>());
        assert_eq!(each.reduce(sums.clone(), 0).unwrap(), expected);
        // One scale for all: 14.
        let mut shared =
            reducer(reduction(&[(2, "f32"), (3, "int2")], "f32", false, true), 5, &[2]);
        let rounded = [[0.0, 0.0], [14.0, 14.0], [14.0, 14.0]];
        let expected = [0, 1].map(|c| rounded.iter().map(|r| r[c]).sum::<f32>());
        assert_eq!(shared.reduce(sums, 0).unwrap(), expected);
        // Single samples may be rounded too.
        let mut single = reducer(reduction(&[(5, "int2")], "f32", false, false), 5, &[2]);
        assert_eq!(single.local(), 1);
        let rows = rows.iter().map(|r| r.to_vec()).collect();
        // One is half of two, and ties go to even.
        assert_eq!(single.reduce(rows, 0).unwrap(), [28.0, 30.0]);
    }

    fn gradients(workers: usize, len: usize, step: u64) -> Vec<Vec<f32>> {
        let stream = Stream::named(9, "gradients").at_step(step);
        let value = |i: usize| stream.uniform(i as u64) - 0.5;
        (0..workers).map(|w| (0..len).map(|i| value(w * len + i)).collect()).collect()
    }

    #[test]
    fn a_reduction_goes_on_where_its_state_was_saved() {
        for (scheme, shared) in [
            ("int4", false),
            ("int2", true),
            ("onebit", false),
            ("terngrad", true),
            ("int1", false),
        ] {
            let Ok(scheme) = scheme.parse::<Scheme>() else { continue };
            let how = Reduction {
                levels: vec![level(16, "f32"), Level { count: 4, scheme }],
                down: "int8/stochastic".parse().unwrap(),
                feedback: true,
                shares_scales: shared,
            };
            let mut whole = reducer(how.clone(), 64, &[6, 10]);
            for step in 0..3 {
                whole.reduce(gradients(4, 60, step), step).unwrap();
            }
            let mut resumed = reducer(how, 64, &[6, 10]);
            for (name, state) in whole.state() {
                assert!(resumed.set_state(&name, &state), "{name}");
            }
            assert_eq!(resumed.state(), whole.state());
            // A short last batch has fewer workers.
            for (step, workers) in [(3, 3), (4, 4)] {
                let both = [&mut whole, &mut resumed]
                    .map(|r| r.reduce(gradients(workers, 60, step), step).unwrap());
                assert_eq!(both[0], both[1]);
            }
            assert!(!resumed.set_state("7.0", &[]) && !resumed.set_state("x", &[]));
        }
    }

    #[test]
    fn feedback_keeps_the_mean_of_one_bit_gradients() {
        let how = |feedback| reduction(&[(8, "f32"), (8, "binary")], "f32", feedback, false);
        let mean_error = |feedback| {
            let mut reducer = reducer(how(feedback), 64, &[40]);
            let (mut sent, mut wanted) = (vec![0.0; 40], vec![0.0; 40]);
            for step in 0..200 {
                let mut all = gradients(8, 40, step);
                // Values that one bit without feedback never tells apart.
                for g in &mut all {
                    g.iter_mut().enumerate().for_each(|(i, v)| *v += i as f32 / 40.0);
                }
                for g in &all {
                    g.iter().zip(&mut wanted).for_each(|(g, w)| *w += f64::from(*g));
                }
                let sum = reducer.reduce(all, step).unwrap();
                sum.iter().zip(&mut sent).for_each(|(g, s)| *s += f64::from(*g));
            }
            let errors = sent.iter().zip(&wanted).map(|(s, w)| (s - w).abs());
            errors.fold(0.0, f64::max) / 1600.0
        };
        assert!(mean_error(true) < 0.05, "{}", mean_error(true));
        assert!(mean_error(false) > 0.1, "{}", mean_error(false));
    }

    #[test]
    fn bytes_are_those_of_all_messages() {
        let how = reduction(&[(2, "f32"), (2, "int4"), (4, "int8")], "int8", false, false);
        let mut reducer = reducer(how.clone(), 16, &[10, 10]);
        reducer.reduce(gradients(8, 100, 0), 0).unwrap();
        let [up, down] = how.bytes(16, &[10, 10]).unwrap().unwrap();
        assert_eq!(reducer.sent(), [up as u64, down as u64]);
        assert_eq!((up, down), (8 * (50 + 4) + 4 * (100 + 4), 104));
    }

    #[test]
    fn what_cannot_be_reduced_is_refused() {
        let refused = |r: Reduction, samples, shape: &[usize]| {
            Reducer::new(Arc::new(r), samples, shape, 0, "x").unwrap_err().to_string()
        };
        let left = refused(reduction(&[(8, "f32"), (4, "int8")], "f32", false, false), 33, &[4]);
        assert!(left.contains("8 x 4 = 32"), "{left}");
        assert!(refused(reduction(&[], "f32", false, false), 1, &[4]).contains("levels"));
        assert!(refused(reduction(&[(0, "f32")], "f32", false, false), 1, &[4]).contains("levels"));
        let shared = refused(reduction(&[(4, "int8/channel")], "f32", false, true), 4, &[4, 4]);
        assert!(shared.contains("share"), "{shared}");
        assert!(
            refused(reduction(&[(4, "int8/axis:3")], "f32", false, false), 4, &[4])
                .contains("axis")
        );
    }
}
