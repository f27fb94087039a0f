//! The sums that tell values from what they became.

/// Elements whose sums run beside each other. Element `i` of a block belongs to lane `i % LANES`, and lanes are added
/// in their order, whatever the instruction set.
const LANES: usize = 16;

/// The sums of a block of values that are finite; what they became may be anything.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LossSums {
    /// Sum of the squares of the values.
    pub signal: f64,
    /// Sum of the squares of what they became.
    pub decoded: f64,
    /// Sum of the products of the two.
    pub product: f64,
    /// Sum of the squares of the differences.
    pub noise: f64,
    /// Largest magnitude of a difference; NaN does not count.
    pub max_error: f64,
    /// Values that are zero now and were not.
    pub zeroed: u32,
}

versions! {
    /// The sums of a block.
    fn loss_sums(x: &[f32], y: &[f32]) -> LossSums {
        // A loop for each sum over what lies in the first-level cache: compilers make vectors of these, and not of one
        // loop with all of them.
        LossSums {
            signal: sum(x, y, |x, _| x * x),
            decoded: sum(x, y, |_, y| y * y),
            product: sum(x, y, |x, y| x * y),
            noise: sum(x, y, |x, y| (x - y) * (x - y)),
            max_error: max(x, y),
            zeroed: x.iter().zip(y).map(|(x, y)| u32::from(*x != 0.0) & u32::from(*y == 0.0)).sum(),
        }
    }
}

#[inline(always)]
fn sum(x: &[f32], y: &[f32], of: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    each(x, y, &mut lanes, |lane, x, y| *lane += of(x, y));
    lanes.iter().sum()
}

#[inline(always)]
fn max(x: &[f32], y: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    each(x, y, &mut lanes, |lane, x, y| {
        let error = (x - y).abs();
        *lane = if error > *lane { error } else { *lane };
    });
    lanes.into_iter().fold(0.0, f64::max)
}

#[inline(always)]
fn each(x: &[f32], y: &[f32], lanes: &mut [f64; LANES], step: impl Fn(&mut f64, f64, f64)) {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            step(&mut lanes[i], f64::from(x[i]), f64::from(y[i]));
        }
    }
    for ((lane, x), y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        step(lane, f64::from(*x), f64::from(*y));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at_every_level, values};
    use super::*;

    /// Element by element.
    fn by_definition(x: &[f32], y: &[f32]) -> LossSums {
        let mut sums = LossSums::default();
        let mut lanes = [[0.0; 4]; LANES];
        for (i, (&x, &y)) in x.iter().zip(y).enumerate() {
            sums.zeroed += u32::from(x != 0.0 && y == 0.0);
            let (x, y) = (f64::from(x), f64::from(y));
            sums.max_error = sums.max_error.max((x - y).abs());
            let of = [x * x, y * y, x * y, (x - y) * (x - y)];
            lanes[i % LANES].iter_mut().zip(of).for_each(|(sum, term)| *sum += term);
        }
        [sums.signal, sums.decoded, sums.product, sums.noise] =
            std::array::from_fn(|k| lanes.iter().map(|lane| lane[k]).sum());
        sums
    }

    #[test]
    fn every_instruction_set_adds_in_the_same_order() {
        let finite = |v: &f32| if v.is_finite() { *v } else { 0.5 };
        let all: Vec<f32> = values(1100).iter().map(finite).collect();
        at_every_level(|level| {
            for len in (0..70).chain([1023, 1024]) {
                for from in [0, 1, 7] {
                    let (x, y) = (&all[from..from + len], &all[from + 3..from + 3 + len]);
                    assert_eq!(loss_sums(x, y), by_definition(x, y), "{level:?} {len} {from}");
                }
            }
        });
    }
}
