//! Layer normalization over the last axis.
//!
//! `out = gamma (x - mean) / sqrt(var + epsilon) + beta`
//!
//! # Shapes
//! - `x`, `out` and their gradients: `[rows, len]`
//! - `gamma`, `beta` and their gradients: `[len]`
//! - saved `mean`, `rstd`: `[rows]`
//!
//! # Source
//! Ba, Kiros and Hinton 2016, arXiv:1607.06450. The variance is biased and taken about the mean, in two passes.

use crate::KernelError;
use crate::blocks::{self, BLOCK, MAGNITUDE, check, check_len, map};
use crate::dispatch::versions;
use crate::math::{sum, sum2, sum3};

/// What a backward pass writes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Of the input.
    pub dx: &'a mut [f32],
    /// Of the scale.
    pub dgamma: &'a mut [f32],
    /// Of the shift.
    pub dbeta: &'a mut [f32],
}

/// Normalizes each row, and saves its mean and `1 / sqrt(var + epsilon)`. Gives the largest magnitude of the output, NaN
/// if any is. NaN and infinity make a row NaN.
///
/// # Errors
/// If rows have no elements, or a slice has not its shape.
pub fn forward(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    out: &mut [f32],
    [mean, rstd]: [&mut [f32]; 2],
) -> Result<f32, KernelError> {
    let len = gamma.len();
    let rows = check_rows(x, len)?;
    check_len("beta", &[len], beta.len())?;
    check_len("output", &[rows, len], out.len())?;
    check_len("mean", &[rows], mean.len())?;
    check_len("deviation", &[rows], rstd.len())?;
    let part = rows_at_once(len);
    let items = out.chunks_mut(part * len).zip(x.chunks(part * len));
    let items = items.zip(mean.chunks_mut(part).zip(rstd.chunks_mut(part)));
    Ok(blocks::absmax(items, |((out, x), (mean, rstd))| {
        forward_block(x, gamma, beta, epsilon, out, mean, rstd)
    }))
}

/// The gradients, from that of the output. Gives the largest magnitude of `dx`, NaN if any is.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    dout: &[f32],
    x: &[f32],
    [mean, rstd]: [&[f32]; 2],
    gamma: &[f32],
    gradients: Gradients,
) -> Result<f32, KernelError> {
    let Gradients { dx, dgamma, dbeta } = gradients;
    let len = gamma.len();
    let rows = check_rows(x, len)?;
    check_len("gradient of the output", &[rows, len], dout.len())?;
    check_len("gradient of the input", &[rows, len], dx.len())?;
    check_len("gradient of gamma", &[len], dgamma.len())?;
    check_len("gradient of beta", &[len], dbeta.len())?;
    check_len("mean", &[rows], mean.len())?;
    check_len("deviation", &[rows], rstd.len())?;
    let part = rows_at_once(len);
    let items = dx.chunks_mut(part * len).zip(x.chunks(part * len)).zip(dout.chunks(part * len));
    let items = items.zip(mean.chunks(part).zip(rstd.chunks(part)));
    let parts = map(items, |(((dx, x), dout), (mean, rstd))| {
        let (mut dgamma, mut dbeta) = (vec![0.0; len], vec![0.0; len]);
        let top = backward_block(dout, x, mean, rstd, gamma, dx, &mut dgamma, &mut dbeta);
        (top, dgamma, dbeta)
    });
    let mut sums = vec![[0.0f64; 2]; len];
    let mut top = 0;
    for (part_top, part_dgamma, part_dbeta) in parts {
        top = top.max(part_top);
        for (sum, (g, b)) in sums.iter_mut().zip(part_dgamma.iter().zip(part_dbeta)) {
            sum[0] += f64::from(*g);
            sum[1] += f64::from(b);
        }
    }
    for ((dgamma, dbeta), [g, b]) in dgamma.iter_mut().zip(dbeta).zip(sums) {
        (*dgamma, *dbeta) = (narrow(g), narrow(b));
    }
    Ok(f32::from_bits(top))
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
fn narrow(v: f64) -> f32 {
    v as f32
}

fn check_rows(x: &[f32], len: usize) -> Result<usize, KernelError> {
    check(len > 0, "row", || "it has no elements, and a norm needs one".to_owned())?;
    let rows = x.len() / len;
    check_len("input", &[rows, len], x.len())?;
    Ok(rows)
}

fn rows_at_once(len: usize) -> usize {
    (BLOCK / len).max(1)
}

versions! {
    fn forward_block(
        x: &[f32],
        gamma: &[f32],
        beta: &[f32],
        epsilon: f32,
        out: &mut [f32],
        means: &mut [f32],
        rstds: &mut [f32],
    ) -> u32 {
        let len = gamma.len();
        let count = len as f32;
        let mut top = 0;
        for ((out, x), (saved_mean, saved_rstd)) in
            out.chunks_exact_mut(len).zip(x.chunks_exact(len)).zip(means.iter_mut().zip(rstds))
        {
            let rough = sum(x, |v| v) / count;
            // What rounding of the mean leaves is taken out of both.
            let rest = sum(x, |v| v - rough) / count;
            let var = sum(x, |v| (v - rough) * (v - rough)) / count - rest * rest;
            let (mean, rstd) = (rough + rest, 1.0 / (var + epsilon).sqrt());
            (*saved_mean, *saved_rstd) = (mean, rstd);
            for ((out, x), (gamma, beta)) in out.iter_mut().zip(x).zip(gamma.iter().zip(beta)) {
                let v = ((x - mean) * rstd).mul_add(*gamma, *beta);
                *out = v;
                top = top.max(v.to_bits() & MAGNITUDE);
            }
        }
        top
    }
}

versions! {
    fn backward_block(
        dout: &[f32],
        x: &[f32],
        means: &[f32],
        rstds: &[f32],
        gamma: &[f32],
        dx: &mut [f32],
        dgamma: &mut [f32],
        dbeta: &mut [f32],
    ) -> u32 {
        let len = gamma.len();
        let count = len as f32;
        let mut top = 0;
        for (((dx, x), dout), (mean, rstd)) in
            dx.chunks_exact_mut(len).zip(x.chunks_exact(len)).zip(dout.chunks_exact(len)).zip(means.iter().zip(rstds))
        {
            // dx is the normalized input until the sums are known.
            let sums = dgamma.iter_mut().zip(&mut *dbeta);
            for (((hat, x), dout), (dgamma, dbeta)) in dx.iter_mut().zip(x).zip(dout).zip(sums) {
                *hat = (x - mean) * rstd;
                *dgamma = dout.mul_add(*hat, *dgamma);
                *dbeta += dout;
            }
            let about = sum2(dout, gamma, |d, g| d * g) / count;
            let along = sum3(dout, gamma, dx, |d, g, hat| d * g * hat) / count;
            for ((dx, dout), gamma) in dx.iter_mut().zip(dout).zip(gamma) {
                let v = rstd * (-*dx).mul_add(along, dout.mul_add(*gamma, -about));
                *dx = v;
                top = top.max(v.to_bits() & MAGNITUDE);
            }
        }
        top
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{absmax, assert_close, dot, same_everywhere, slope, values, wide};

    const EPSILON: f32 = 1e-5;
    const SHAPES: [(usize, usize); 9] =
        [(0, 4), (3, 1), (2, 3), (5, 15), (7, 17), (4, 33), (1000, 128), (3, 4099), (2, 40_000)];

    /// The definition, in f64.
    fn definition(x: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
        let len = gamma.len();
        x.chunks(len)
            .flat_map(|x| {
                let mean = x.iter().sum::<f64>() / len as f64;
                let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / len as f64;
                let rstd = 1.0 / (var + f64::from(EPSILON)).sqrt();
                (0..len).map(move |i| gamma[i] * (x[i] - mean) * rstd + beta[i])
            })
            .collect()
    }

    #[test]
    fn forward_is_the_definition() {
        for (rows, len) in SHAPES {
            for shift in [0.0, 100.0] {
                let x: Vec<f32> =
                    values(1, rows * len + 1)[1..].iter().map(|v| v + shift).collect();
                let (gamma, beta) = (values(2, len), values(3, len));
                let got = same_everywhere(|| {
                    let mut out = vec![9.0; rows * len];
                    let (mut mean, mut rstd) = (vec![9.0; rows], vec![9.0; rows]);
                    let top = forward(&x, &gamma, &beta, EPSILON, &mut out, [&mut mean, &mut rstd])
                        .unwrap();
                    assert_eq!(top, absmax(&out));
                    vec![out, mean, rstd]
                });
                let expected = definition(&wide(&x), &wide(&gamma), &wide(&beta));
                assert_close("out", &got[0], &expected, if shift > 0.0 { 2e-5 } else { 1e-6 });
            }
        }
    }

    #[test]
    fn backward_is_the_slope_of_forward() {
        for (rows, len) in [(0, 4), (2, 3), (5, 15), (7, 17), (4, 33), (3, 100)] {
            let x = values(4, rows * len);
            let (gamma, beta, dout) = (values(5, len), values(6, len), values(7, rows * len));
            let got = same_everywhere(|| {
                let mut out = vec![9.0; rows * len];
                let (mut mean, mut rstd) = (vec![9.0; rows], vec![9.0; rows]);
                forward(&x, &gamma, &beta, EPSILON, &mut out, [&mut mean, &mut rstd]).unwrap();
                let mut dx = vec![9.0; rows * len];
                let (mut dgamma, mut dbeta) = (vec![9.0; len], vec![9.0; len]);
                let gradients = Gradients { dx: &mut dx, dgamma: &mut dgamma, dbeta: &mut dbeta };
                let top = backward(&dout, &x, [&mean, &rstd], &gamma, gradients).unwrap();
                assert_eq!(top, absmax(&dx));
                vec![dx, dgamma, dbeta]
            });
            let (x, gamma, beta) = (wide(&x), wide(&gamma), wide(&beta));
            let dx = slope(&x, |x| dot(&definition(x, &gamma, &beta), &dout));
            assert_close("dx", &got[0], &dx, 1e-4);
            let dgamma = slope(&gamma, |gamma| dot(&definition(&x, gamma, &beta), &dout));
            assert_close("dgamma", &got[1], &dgamma, 1e-5);
            let dbeta = slope(&beta, |beta| dot(&definition(&x, &gamma, beta), &dout));
            assert_close("dbeta", &got[2], &dbeta, 1e-5);
        }
    }

    #[test]
    fn sums_over_many_rows_are_the_definition() {
        let (rows, len) = (3000, 48);
        let (x, dout) = (values(8, rows * len), values(9, rows * len));
        let (mean, rstd) = (vec![0.5; rows], vec![2.0; rows]);
        let got = same_everywhere(|| {
            let mut dx = vec![9.0; rows * len];
            let (mut dgamma, mut dbeta) = (vec![9.0; len], vec![9.0; len]);
            let gradients = Gradients { dx: &mut dx, dgamma: &mut dgamma, dbeta: &mut dbeta };
            backward(&dout, &x, [&mean, &rstd], &vec![1.0; len], gradients).unwrap();
            vec![dx, dgamma, dbeta]
        });
        let (mut dgamma, mut dbeta) = (vec![0.0; len], vec![0.0; len]);
        for (i, (x, d)) in x.iter().zip(&dout).enumerate() {
            dgamma[i % len] += f64::from(*d) * (f64::from(*x) - 0.5) * 2.0;
            dbeta[i % len] += f64::from(*d);
        }
        assert_close("dgamma", &got[1], &dgamma, 1e-6);
        assert_close("dbeta", &got[2], &dbeta, 1e-6);
    }

    #[test]
    fn nan_stays_in_its_row() {
        let (mut out, mut mean, mut rstd) = ([0.0; 4], [0.0; 2], [0.0; 2]);
        let x = [1.0, 2.0, f32::INFINITY, 3.0];
        let saved = [&mut mean[..], &mut rstd[..]];
        let top = forward(&x, &[1.0; 2], &[0.0; 2], EPSILON, &mut out, saved).unwrap();
        assert!(top.is_nan());
        assert_eq!(out.map(f32::is_nan), [false, false, true, true]);
    }

    #[test]
    fn wrong_lengths_are_named() {
        let error = forward(&[1.0; 3], &[1.0; 2], &[0.0; 2], 0.0, &mut [], [&mut [], &mut []]);
        assert_eq!(
            error.unwrap_err().to_string(),
            "input has 3 elements, and shape [1, 2] needs 2"
        );
        assert!(forward(&[], &[], &[], 0.0, &mut [], [&mut [], &mut []]).is_err());
    }
}
