//! `ReLU` and GELU, forward and backward.
//!
//! `gelu(x) = x Phi(x)`, with the normal distribution's `Phi(x) = (1 + erf(x / sqrt(2))) / 2`, or its approximation
//! `(1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`
//!
//! Each gives the largest magnitude of what it writes, NaN if any value is.
//!
//! # Source
//! Hendrycks and Gimpel 2016, arXiv:1606.08415.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::blocks::{self, BLOCK, LANES, MAGNITUDE, check_len, parts_mut};
use crate::dispatch::versions;
use crate::gate::{bits, pass, spread};
use crate::math::{erf, exp};
use crate::{Gate, KernelError};

/// Which form of GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// With the error function, as is the default of PyTorch.
    Erf,
    /// With its approximation by a hyperbolic tangent.
    Tanh,
}

/// `max(x, 0)` in place, NaN for NaN. `bits` takes up where it is above zero, as [`Gate::Bits`] wants it.
///
/// # Errors
/// If there are not `ceil(len / 32)` words for bits.
pub fn relu(x: &mut [f32], words: Option<&mut [u32]>) -> Result<f32, KernelError> {
    if let Some(words) = &words {
        check_len("bits of the relu", &[x.len().div_ceil(LANES)], words.len())?;
    }
    let words = parts_mut(words, BLOCK / LANES, x.len().div_ceil(BLOCK));
    Ok(blocks::absmax(x.chunks_mut(BLOCK).zip(words), |(x, words)| relu_block(x, words)))
}

/// What of the gradient passes the gate, in place.
///
/// # Errors
/// If the gate is of another length.
pub fn relu_backward(grad: &mut [f32], gate: Gate) -> Result<f32, KernelError> {
    gate.check(grad.len())?;
    Ok(blocks::absmax(grad.chunks_mut(BLOCK).enumerate(), |(i, grad)| match gate {
        Gate::Open => grad_block::<false>(grad, &[], &[]),
        Gate::Output(out) => grad_block::<true>(grad, &out[i * BLOCK..][..grad.len()], &[]),
        Gate::Bits(_) => grad_block::<true>(grad, &[], gate.words(i * BLOCK, grad.len())),
    }))
}

/// GELU. Minus infinity gives NaN, as in PyTorch.
///
/// # Errors
/// If the lengths differ.
pub fn gelu(form: Gelu, x: &[f32], out: &mut [f32]) -> Result<f32, KernelError> {
    check_len("output", &[x.len()], out.len())?;
    let body = match form {
        Gelu::Erf => gelu_block::<false>,
        Gelu::Tanh => gelu_block::<true>,
    };
    Ok(blocks::absmax(out.chunks_mut(BLOCK).zip(x.chunks(BLOCK)), |(out, x)| body(x, out)))
}

/// The gradient of the input of [`gelu`], to `dx`.
///
/// # Errors
/// If the lengths differ.
pub fn gelu_backward(
    form: Gelu,
    x: &[f32],
    dout: &[f32],
    dx: &mut [f32],
) -> Result<f32, KernelError> {
    check_len("gradient of the output", &[x.len()], dout.len())?;
    check_len("gradient of the input", &[x.len()], dx.len())?;
    let body = match form {
        Gelu::Erf => gelu_back_block::<false>,
        Gelu::Tanh => gelu_back_block::<true>,
    };
    let items = dx.chunks_mut(BLOCK).zip(x.chunks(BLOCK)).zip(dout.chunks(BLOCK));
    Ok(blocks::absmax(items, |((dx, x), dout)| body(x, dout, dx)))
}

/// How many values are worked on while they are in the nearest cache.
const PART: usize = 1024;

versions! {
    fn relu_block(x: &mut [f32], words: Option<&mut [u32]>) -> u32 {
        let mut top = 0;
        let mut words = words.map(|w| w.chunks_mut(PART / LANES));
        for x in x.chunks_mut(PART) {
            for x in &mut *x {
                *x = crate::gate::relu(*x);
                top = top.max(x.to_bits() & MAGNITUDE);
            }
            if let Some(words) = words.as_mut().and_then(Iterator::next) {
                bits(x, words);
            }
        }
        top
    }
}

versions! {
    fn grad_block<const GATED: bool>(grad: &mut [f32], out: &[f32], words: &[u32]) -> u32 {
        let mut top = 0;
        let mut above = [0.0; PART];
        let mut words = words.chunks(PART / LANES);
        let mut outs = out.chunks(PART);
        for grad in grad.chunks_mut(PART) {
            let out = match (words.next(), outs.next()) {
                (Some(words), _) => spread(words, &mut above[..grad.len()]),
                (None, Some(out)) => out,
                (None, None) => &above[..grad.len()],
            };
            for (grad, out) in grad.iter_mut().zip(out) {
                *grad = pass::<GATED>(*grad, *out);
                top = top.max(grad.to_bits() & MAGNITUDE);
            }
        }
        top
    }
}

const CUBE: f32 = 0.044_715;
const SQRT_2_BY_PI: f32 = FRAC_1_SQRT_2 * FRAC_2_SQRT_PI;

/// `exp(-2 z)` for the argument `z` of the hyperbolic tangent, at most so large that it stays finite. Then
/// `(1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z))`, which loses nothing where the tangent is near -1.
#[inline(always)]
fn decay(x: f32) -> f32 {
    let z = SQRT_2_BY_PI * (CUBE * x * x).mul_add(x, x);
    exp(if z < -44.0 { 88.0 } else { -2.0 * z })
}

versions! {
    fn gelu_block<const TANH: bool>(x: &[f32], out: &mut [f32]) -> u32 {
        let mut top = 0;
        for (out, x) in out.iter_mut().zip(x) {
            let share = if TANH { 1.0 / (1.0 + decay(*x)) } else { 0.5 + 0.5 * erf(FRAC_1_SQRT_2 * x) };
            *out = x * share;
            top = top.max(out.to_bits() & MAGNITUDE);
        }
        top
    }
}

versions! {
    fn gelu_back_block<const TANH: bool>(x: &[f32], dout: &[f32], dx: &mut [f32]) -> u32 {
        let mut top = 0;
        for ((dx, x), dout) in dx.iter_mut().zip(x).zip(dout) {
            let slope = if TANH {
                let decay = decay(*x);
                let share = 1.0 / (1.0 + decay);
                let inner = 2.0 * SQRT_2_BY_PI * (3.0 * CUBE * x).mul_add(*x, 1.0);
                (x * inner).mul_add(decay * share * share, share)
            } else {
                let density = 0.5 * SQRT_2_BY_PI * exp(-0.5 * x * x);
                x.mul_add(density, 0.5 + 0.5 * erf(FRAC_1_SQRT_2 * x))
            };
            *dx = dout * slope;
            top = top.max(dx.to_bits() & MAGNITUDE);
        }
        top
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::tests::erf_definition;
    use crate::testing::{absmax, assert_close, same_everywhere, values, wide};

    const LENGTHS: [usize; 9] = [0, 1, 3, 15, 17, 33, 1025, BLOCK, 2 * BLOCK + 77];

    fn definition(form: Gelu, x: f64) -> f64 {
        let twice = match form {
            Gelu::Erf => 1.0 + erf_definition(x / 2f64.sqrt()),
            Gelu::Tanh => {
                1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()
            }
        };
        0.5 * x * twice
    }

    #[test]
    fn gelu_is_the_definition_and_its_gradient_the_slope() {
        for n in LENGTHS {
            let mut x: Vec<f32> = values(1, n + 1)[1..].iter().map(|v| v * 6.0).collect();
            let dout = values(2, n);
            // The tolerance is relative to the largest value.
            x.iter_mut().take(1).for_each(|x| *x = 6.0);
            for form in [Gelu::Erf, Gelu::Tanh] {
                let got = same_everywhere(|| {
                    let (mut out, mut dx) = (vec![9.0; n], vec![9.0; n]);
                    let top = gelu(form, &x, &mut out).unwrap();
                    assert_eq!(top, absmax(&out));
                    let top = gelu_backward(form, &x, &dout, &mut dx).unwrap();
                    assert_eq!(top, absmax(&dx));
                    vec![out, dx]
                });
                let x = wide(&x);
                let out: Vec<f64> = x.iter().map(|x| definition(form, *x)).collect();
                assert_close("out", &got[0], &out, 2e-7);
                let slope = |x| (definition(form, x + 1e-5) - definition(form, x - 1e-5)) / 2e-5;
                let dx: Vec<f64> =
                    x.iter().zip(&dout).map(|(x, d)| f64::from(*d) * slope(*x)).collect();
                assert_close("dx", &got[1], &dx, 1e-6);
            }
        }
    }

    #[test]
    fn gelu_of_one_is_that_of_pytorch() {
        let mut out = [0.0; 2];
        gelu(Gelu::Erf, &[1.0, -1.0], &mut out).unwrap();
        assert_close("erf", &out, &[0.841_344_7, -0.158_655_3], 1e-7);
        gelu(Gelu::Tanh, &[1.0, -1.0], &mut out).unwrap();
        assert_close("tanh", &out, &[0.841_191_99, -0.158_808_0], 1e-7);
    }

    #[test]
    fn relu_and_its_gradient_are_the_definition() {
        for n in LENGTHS {
            let (x, grad) = (values(3, n + 1), values(4, n + 1));
            let (x, grad) = (&x[1..], &grad[1..]);
            let got = same_everywhere(|| {
                let (mut out, mut words) = (x.to_vec(), vec![!0; n.div_ceil(32)]);
                assert_eq!(relu(&mut out, Some(&mut words)).unwrap(), absmax(&out));
                let [mut a, mut b, mut c] = [0; 3].map(|_| grad.to_vec());
                let top = relu_backward(&mut a, Gate::Output(&out)).unwrap();
                assert_eq!(top, absmax(&a));
                relu_backward(&mut b, Gate::Bits(&words)).unwrap();
                assert_eq!(relu_backward(&mut c, Gate::Open).unwrap(), absmax(grad));
                assert_eq!(c, grad);
                vec![out, a, b]
            });
            let out: Vec<f32> = x.iter().map(|v| v.max(0.0)).collect();
            let dx: Vec<f32> =
                x.iter().zip(grad).map(|(v, g)| if *v > 0.0 { *g } else { 0.0 }).collect();
            assert_eq!(got, [out, dx.clone(), dx]);
        }
    }

    #[test]
    fn relu_keeps_nan_and_lets_its_gradient_pass() {
        let mut x = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0, 1e-40];
        let mut words = [0];
        assert!(relu(&mut x, Some(&mut words)).unwrap().is_nan());
        assert!(x[0].is_nan());
        assert_eq!(x[1..], [0.0, f32::INFINITY, 0.0, 1e-40]);
        assert_eq!(words, [0b10101]);
        let mut grad = [1.0; 5];
        relu_backward(&mut grad, Gate::Output(&x)).unwrap();
        assert_eq!(grad, [1.0, 0.0, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn wrong_lengths_are_named() {
        assert!(relu(&mut [1.0; 33], Some(&mut [0])).is_err());
        assert!(relu_backward(&mut [1.0; 33], Gate::Output(&[0.0])).is_err());
        let error = gelu(Gelu::Erf, &[1.0], &mut []).unwrap_err();
        assert_eq!(error.to_string(), "output has 0 elements, and shape [1] needs 1");
    }
}
