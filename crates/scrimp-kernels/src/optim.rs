//! Optimizer steps in one pass over memory, and the norm of gradients.
//!
//! The order of operations is that of `torch.optim`, without fused multiply-adds: the same bits at every level and from
//! every number of threads.

use crate::KernelError;
use crate::blocks::{self, BLOCK, MAGNITUDE, check, check_len, map, parts_mut};
use crate::dispatch::versions;

/// Stochastic gradient descent: `g += wd w; m = mu m + g; w -= lr (nesterov ? g + mu m : m)`.
///
/// # Source
/// The form of `torch.optim.SGD` (Sutskever et al. 2013 with the learning rate outside the momentum); the first
/// momentum is the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// Whether the gradient is taken ahead of the momentum.
    pub nesterov: bool,
    /// Weight decay, added to the gradient.
    pub weight_decay: f64,
}

/// Adam: `m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr/(1-b1^t) m / (sqrt(v/(1-b2^t)) + eps)`.
///
/// # Source
/// Kingma and Ba 2015, arXiv:1412.6980; decoupled decay: Loshchilov and Hutter 2019, arXiv:1711.05101; the largest
/// second moment: Reddi et al. 2018, arXiv:1904.09237. The form of `torch.optim.Adam` and `AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the decay shrinks the weight itself (`AdamW`), or is added to the gradient.
    pub decoupled: bool,
}

/// The state that [`Adam`] keeps of a parameter, zeros before the first step.
#[derive(Debug)]
pub struct Moments<'a> {
    /// First moment.
    pub m: &'a mut [f32],
    /// Second moment.
    pub v: &'a mut [f32],
    /// The largest second moment so far, which divides instead of `v` if it is there (`amsgrad`).
    pub v_max: Option<&'a mut [f32]>,
}

/// One update; `step` counts from 1. `m` is there if there is momentum. Gives the largest magnitude of the new weights,
/// NaN if any is.
///
/// # Errors
/// If a slice has not the length of `w`, there is momentum without `m`, or `step` is 0.
#[expect(
    clippy::cast_possible_truncation,
    reason = "options are rounded to f32, in which weights are kept"
)]
pub fn sgd(
    options: &Sgd,
    step: u64,
    w: &mut [f32],
    g: &[f32],
    m: Option<&mut [f32]>,
) -> Result<f32, KernelError> {
    check_step(step)?;
    check_len("gradient", &[w.len()], g.len())?;
    let (lr, mu, decay) = (options.lr as f32, options.momentum as f32, options.weight_decay as f32);
    let Some(m) = m else {
        check(mu == 0.0, "momentum", || format!("{mu} needs a slice that keeps it"))?;
        let items = w.chunks_mut(BLOCK).zip(g.chunks(BLOCK));
        return Ok(blocks::absmax(items, |(w, g)| sgd_block(w, g, lr, decay)));
    };
    check_len("momentum", &[w.len()], m.len())?;
    let keep = if step == 1 { 0.0 } else { mu };
    let body = if options.nesterov { momentum_block::<true> } else { momentum_block::<false> };
    let items = w.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).zip(m.chunks_mut(BLOCK));
    Ok(blocks::absmax(items, |((w, g), m)| body(w, g, m, [lr, decay, mu, keep])))
}

/// One update; `step` counts from 1. Gives the largest magnitude of the new weights, NaN if any is.
///
/// # Errors
/// If a slice has not the length of `w`, or `step` is 0.
#[expect(
    clippy::cast_possible_truncation,
    reason = "options are rounded to f32, in which weights are kept"
)]
pub fn adam(
    options: &Adam,
    step: u64,
    w: &mut [f32],
    g: &[f32],
    moments: Moments,
) -> Result<f32, KernelError> {
    let Moments { m, v, v_max } = moments;
    check_step(step)?;
    check_len("gradient", &[w.len()], g.len())?;
    check_len("first moment", &[w.len()], m.len())?;
    check_len("second moment", &[w.len()], v.len())?;
    if let Some(v_max) = &v_max {
        check_len("largest second moment", &[w.len()], v_max.len())?;
    }
    let Adam { lr, beta1, beta2, epsilon, weight_decay, decoupled } = *options;
    let t = i32::try_from(step).unwrap_or(i32::MAX);
    let (bias1, bias2) = (1.0 - beta1.powi(t), 1.0 - beta2.powi(t));
    let factors = Factors {
        shrink: if decoupled { (1.0 - lr * weight_decay) as f32 } else { 1.0 },
        decay: if decoupled { 0.0 } else { weight_decay as f32 },
        b1: beta1 as f32,
        b2: beta2 as f32,
        rest1: (1.0 - beta1) as f32,
        rest2: (1.0 - beta2) as f32,
        rate: (lr / bias1) as f32,
        root: bias2.sqrt() as f32,
        epsilon: epsilon as f32,
    };
    let count = w.len().div_ceil(BLOCK);
    let items = w
        .chunks_mut(BLOCK)
        .zip(g.chunks(BLOCK))
        .zip(m.chunks_mut(BLOCK).zip(v.chunks_mut(BLOCK)))
        .zip(parts_mut(v_max, BLOCK, count));
    Ok(blocks::absmax(items, |(((w, g), (m, v)), v_max)| match v_max {
        None => adam_block(w, g, m, v, factors),
        Some(v_max) => amsgrad_block(w, g, m, v, v_max, factors),
    }))
}

/// The sum of squares, in f64. The Euclidean norm of several slices together is the root of the sum of theirs.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    map(x.chunks(BLOCK), squares_block).into_iter().sum()
}

/// Multiplies in place. Gives the largest magnitude of the products, NaN if any is.
pub fn scale(x: &mut [f32], factor: f32) -> f32 {
    blocks::absmax(x.chunks_mut(BLOCK), |x| scale_block(x, factor))
}

/// The largest magnitude, NaN if any value is.
pub fn absmax(x: &[f32]) -> f32 {
    blocks::absmax(x.chunks(BLOCK), absmax_block)
}

fn check_step(step: u64) -> Result<(), KernelError> {
    check(step > 0, "step", || "0 is before the first, which is 1".to_owned())
}

/// What an Adam step multiplies by, rounded once.
#[derive(Clone, Copy)]
struct Factors {
    shrink: f32,
    decay: f32,
    b1: f32,
    b2: f32,
    rest1: f32,
    rest2: f32,
    rate: f32,
    root: f32,
    epsilon: f32,
}

versions! {
    fn sgd_block(w: &mut [f32], g: &[f32], lr: f32, decay: f32) -> u32 {
        let mut top = 0;
        for (w, g) in w.iter_mut().zip(g) {
            *w -= lr * (g + decay * *w);
            top = top.max(w.to_bits() & MAGNITUDE);
        }
        top
    }
}

versions! {
    fn momentum_block<const NESTEROV: bool>(
        w: &mut [f32],
        g: &[f32],
        m: &mut [f32],
        factors: [f32; 4],
    ) -> u32 {
        let [lr, decay, mu, keep] = factors;
        let mut top = 0;
        for ((w, g), m) in w.iter_mut().zip(g).zip(m) {
            let g = g + decay * *w;
            *m = keep * *m + g;
            *w -= lr * if NESTEROV { g + mu * *m } else { *m };
            top = top.max(w.to_bits() & MAGNITUDE);
        }
        top
    }
}

versions! {
    fn adam_block(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], factors: Factors) -> u32 {
        let Factors { shrink, decay, b1, b2, rest1, rest2, rate, root, epsilon } = factors;
        let mut top = 0;
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            let g = g + decay * *w;
            *m = b1 * *m + rest1 * g;
            *v = b2 * *v + rest2 * g * g;
            *w = *w * shrink - rate * *m / (v.sqrt() / root + epsilon);
            top = top.max(w.to_bits() & MAGNITUDE);
        }
        top
    }
}

versions! {
    fn amsgrad_block(
        w: &mut [f32],
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        v_max: &mut [f32],
        factors: Factors,
    ) -> u32 {
        let Factors { shrink, decay, b1, b2, rest1, rest2, rate, root, epsilon } = factors;
        let mut top = 0;
        for ((((w, g), m), v), v_max) in w.iter_mut().zip(g).zip(m).zip(v).zip(v_max) {
            let g = g + decay * *w;
            *m = b1 * *m + rest1 * g;
            *v = b2 * *v + rest2 * g * g;
            // A NaN in either stays, as in `torch.maximum`.
            *v_max = if (*v <= *v_max) | v_max.is_nan() { *v_max } else { *v };
            *w = *w * shrink - rate * *m / (v_max.sqrt() / root + epsilon);
            top = top.max(w.to_bits() & MAGNITUDE);
        }
        top
    }
}

versions! {
    fn squares_block(x: &[f32]) -> f64 {
        let mut sums = [0.0f64; 16];
        let (groups, rest) = x.as_chunks::<16>();
        for group in groups {
            for (sum, x) in sums.iter_mut().zip(group) {
                let x = f64::from(*x);
                *sum += x * x;
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            let x = f64::from(*x);
            *sum += x * x;
        }
        sums.iter().sum()
    }
}

versions! {
    fn scale_block(x: &mut [f32], factor: f32) -> u32 {
        let mut top = 0;
        for x in x {
            *x *= factor;
            top = top.max(x.to_bits() & MAGNITUDE);
        }
        top
    }
}

versions! {
    fn absmax_block(x: &[f32]) -> u32 {
        x.iter().fold(0, |top, x| top.max(x.to_bits() & MAGNITUDE))
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "as in the step")]
mod tests {
    use super::*;
    use crate::testing::{self, same_everywhere, values};

    const LENGTHS: [usize; 7] = [0, 1, 3, 15, 17, 33, 2 * BLOCK + 77];

    #[test]
    fn sgd_is_the_definition_bit_for_bit() {
        for n in LENGTHS {
            for (momentum, nesterov, weight_decay) in
                [(0.0, false, 0.0), (0.0, false, 0.01), (0.9, false, 0.01), (0.9, true, 0.1)]
            {
                let options = Sgd { lr: 0.1, momentum, nesterov, weight_decay };
                let got = same_everywhere(|| {
                    let (mut w, mut m) = (values(1, n + 1), vec![0.0; n + 1]);
                    let (w, m) = (&mut w[1..], &mut m[1..]);
                    for step in 1..4 {
                        let m = (momentum > 0.0).then_some(&mut *m);
                        let top = sgd(&options, step, w, &values(1 + step, n), m).unwrap();
                        assert_eq!(top, testing::absmax(w));
                    }
                    vec![w.to_vec(), m.to_vec()]
                });
                let (mut w, mut m) = (values(1, n + 1)[1..].to_vec(), vec![0.0; n]);
                let (mu, decay) = (momentum as f32, weight_decay as f32);
                for step in 1..4 {
                    for (i, g) in values(1 + step, n).iter().enumerate() {
                        let g = g + decay * w[i];
                        if momentum > 0.0 {
                            m[i] = if step == 1 { 0.0 } else { mu } * m[i] + g;
                            w[i] -= 0.1f32 * if nesterov { g + mu * m[i] } else { m[i] };
                        } else {
                            w[i] -= 0.1f32 * g;
                        }
                    }
                }
                assert_eq!(got, [w, m], "{options:?}");
            }
        }
    }

    #[test]
    fn adam_is_the_definition_bit_for_bit() {
        for n in LENGTHS {
            for (decoupled, amsgrad) in [(false, false), (true, false), (false, true), (true, true)]
            {
                let options = Adam {
                    lr: 0.01,
                    beta1: 0.9,
                    beta2: 0.999,
                    epsilon: 1e-8,
                    weight_decay: 0.1,
                    decoupled,
                };
                let got = same_everywhere(|| {
                    let mut w = values(1, n);
                    let [mut m, mut v, mut v_max] = [0; 3].map(|_| vec![0.0; n + 1]);
                    for step in 1..4 {
                        let moments = Moments {
                            m: &mut m[1..],
                            v: &mut v[1..],
                            v_max: amsgrad.then_some(&mut v_max[1..]),
                        };
                        let top =
                            adam(&options, step, &mut w, &values(1 + step, n), moments).unwrap();
                        assert_eq!(top, testing::absmax(&w));
                    }
                    vec![w, m, v]
                });
                let (mut w, mut m, mut v, mut v_max) =
                    (values(1, n), vec![0.0f32; n], vec![0.0f32; n], vec![0.0f32; n]);
                for step in 1..4u8 {
                    let (rate, root) = (
                        (0.01 / (1.0 - 0.9f64.powi(step.into()))) as f32,
                        (1.0 - 0.999f64.powi(step.into())).sqrt() as f32,
                    );
                    for (i, g) in values(1 + u64::from(step), n).iter().enumerate() {
                        let g = g + if decoupled { 0.0 } else { 0.1 } * w[i];
                        m[i] = 0.9 * m[i] + (1.0 - 0.9f64) as f32 * g;
                        v[i] = 0.999 * v[i] + (1.0 - 0.999f64) as f32 * g * g;
                        v_max[i] = v_max[i].max(v[i]);
                        let below = if amsgrad { v_max[i] } else { v[i] }.sqrt() / root + 1e-8;
                        let shrink = if decoupled { (1.0 - 0.01 * 0.1f64) as f32 } else { 1.0 };
                        w[i] = w[i] * shrink - rate * m[i] / below;
                    }
                }
                assert_eq!(got[0], w, "{options:?} {amsgrad}");
            }
        }
    }

    #[test]
    fn the_first_step_of_adam_is_the_learning_rate() {
        let options = Adam {
            lr: 0.5,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 0.0,
            weight_decay: 0.0,
            decoupled: false,
        };
        let mut w = [1.0, 1.0];
        let moments = Moments { m: &mut [0.0; 2], v: &mut [0.0; 2], v_max: None };
        adam(&options, 1, &mut w, &[3.0, -2.0], moments).unwrap();
        assert!((w[0] - 0.5).abs() < 1e-6 && (w[1] - 1.5).abs() < 1e-6, "{w:?}");
    }

    #[test]
    fn a_nan_among_second_moments_stays() {
        let options = Adam {
            lr: 0.5,
            beta1: 0.9,
            beta2: 0.9,
            epsilon: 0.0,
            weight_decay: 0.0,
            decoupled: true,
        };
        for (g, v_max) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            let mut largest = [v_max];
            let moments = Moments { m: &mut [0.0], v: &mut [0.0], v_max: Some(&mut largest) };
            assert!(adam(&options, 1, &mut [1.0], &[g], moments).unwrap().is_nan());
            assert!(largest[0].is_nan());
        }
    }

    #[test]
    fn squares_are_summed_in_f64() {
        assert_eq!(sum_of_squares(&[3.0, 0.0, 4.0]), 25.0);
        assert_eq!(sum_of_squares(&[]), 0.0);
        // Squares that f32 does not hold.
        assert!((sum_of_squares(&[1e30; 4]) / 4e60 - 1.0).abs() < 1e-6);
        let x = values(3, 3 * BLOCK + 5);
        let expected = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let got = same_everywhere(|| vec![vec![sum_of_squares(&x) as f32]]);
        assert!((f64::from(got[0][0]) / expected - 1.0).abs() < 1e-6);
    }

    #[test]
    fn scaling_gives_the_new_range() {
        let mut x = [1.0, -3.0, 2.0];
        assert_eq!((scale(&mut x, 0.5), x), (1.5, [0.5, -1.5, 1.0]));
        assert_eq!(absmax(&x), 1.5);
        assert_eq!(absmax(&[]), 0.0);
        assert!(absmax(&[1.0, f32::NAN, f32::INFINITY]).is_nan());
        assert_eq!(absmax(&[1.0, f32::NEG_INFINITY]), f32::INFINITY);
    }

    #[test]
    fn wrong_calls_are_refused() {
        let options = Sgd { lr: 0.1, momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        assert!(sgd(&options, 1, &mut [1.0], &[1.0], None).is_err());
        assert!(sgd(&options, 0, &mut [1.0], &[1.0], Some(&mut [0.0])).is_err());
        let error = sgd(&options, 1, &mut [1.0], &[], Some(&mut [0.0])).unwrap_err();
        assert_eq!(error.to_string(), "gradient has 0 elements, and shape [1] needs 1");
    }
}
