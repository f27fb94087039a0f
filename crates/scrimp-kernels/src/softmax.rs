//! Softmax over rows, and the cross-entropy that ends in one.
//!
//! # Shapes
//! - `x`, `out`, `logits` and their gradients: `[rows, len]`
//! - `targets`: `[rows]`

use crate::blocks::{BLOCK, check, check_len, map, parts_mut};
use crate::dispatch::versions;
use crate::math::{exp, largest, sum, sum2};
use crate::{Id, KernelError};

/// `out = exp(scale x) / sum exp(scale x)` in each row. A row with NaN or plus infinity, or of nothing but minus
/// infinity, is NaN, as in PyTorch.
///
/// # Errors
/// If rows have no elements, or a slice has not its shape.
pub fn softmax(x: &[f32], len: usize, scale: f32, out: &mut [f32]) -> Result<(), KernelError> {
    let rows = check_rows(x, len)?;
    check_len("output", &[rows, len], out.len())?;
    let part = part_len(len);
    map(out.chunks_mut(part).zip(x.chunks(part)), |(out, x)| softmax_block(x, len, scale, out));
    Ok(())
}

/// The gradient of the input of [`softmax`], to `dx`: `scale out (dout - sum dout out)`.
///
/// # Errors
/// As [`softmax`].
pub fn softmax_backward(
    dout: &[f32],
    out: &[f32],
    len: usize,
    scale: f32,
    dx: &mut [f32],
) -> Result<(), KernelError> {
    let rows = check_rows(out, len)?;
    check_len("gradient of the output", &[rows, len], dout.len())?;
    check_len("gradient of the input", &[rows, len], dx.len())?;
    let part = part_len(len);
    let items = dx.chunks_mut(part).zip(out.chunks(part)).zip(dout.chunks(part));
    map(items, |((dx, out), dout)| backward_block(dout, out, len, scale, dx));
    Ok(())
}

/// The mean over rows of the cross-entropy between targets and the softmax of logits, and its gradient.
///
/// `loss = -sum q ln p`, where `q` is `1 - smoothing` for the target, and `smoothing / len` more for every class. The loss
/// of no rows is 0.
///
/// # Errors
/// If rows have no elements, a slice has not its shape, a target is no class, or the smoothing is not in 0 to 1.
///
/// # Source
/// Label smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7.
pub fn cross_entropy<I: Id>(
    logits: &[f32],
    len: usize,
    targets: &[I],
    smoothing: f32,
    dlogits: Option<&mut [f32]>,
) -> Result<f32, KernelError> {
    let rows = check_rows(logits, len)?;
    check_len("targets", &[rows], targets.len())?;
    if let Some(d) = &dlogits {
        check_len("gradient of the logits", &[rows, len], d.len())?;
    }
    check((0.0..=1.0).contains(&smoothing), "label smoothing", || {
        format!("{smoothing} is not in 0 to 1")
    })?;
    let targets = crate::embedding::checked(targets, len, "target")?;
    let part = part_len(len);
    let dlogits = parts_mut(dlogits, part, logits.len().div_ceil(part));
    let items = logits.chunks(part).zip(targets.chunks(part / len)).zip(dlogits);
    let losses = map(items, |((logits, targets), dlogits)| {
        entropy_block(logits, len, targets, smoothing, rows as f32, dlogits)
    });
    Ok(narrow(losses.into_iter().sum::<f64>() / rows.max(1) as f64))
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
fn narrow(v: f64) -> f32 {
    v as f32
}

fn check_rows(x: &[f32], len: usize) -> Result<usize, KernelError> {
    check(len > 0, "row", || "it has no elements, and a softmax needs one".to_owned())?;
    let rows = x.len() / len;
    check_len("input", &[rows, len], x.len())?;
    Ok(rows)
}

fn part_len(len: usize) -> usize {
    // An exponential is worth several passes.
    len * (BLOCK / 4 / len).max(1)
}

versions! {
    fn softmax_block(x: &[f32], len: usize, scale: f32, out: &mut [f32]) {
        for (out, x) in out.chunks_exact_mut(len).zip(x.chunks_exact(len)) {
            for (out, x) in out.iter_mut().zip(x) {
                *out = scale * x;
            }
            let top = largest(out);
            for out in &mut *out {
                *out = exp(*out - top);
            }
            let share = 1.0 / sum(out, |v| v);
            for out in out {
                *out *= share;
            }
        }
    }
}

versions! {
    fn backward_block(dout: &[f32], out: &[f32], len: usize, scale: f32, dx: &mut [f32]) {
        for ((dx, out), dout) in
            dx.chunks_exact_mut(len).zip(out.chunks_exact(len)).zip(dout.chunks_exact(len))
        {
            let along = sum2(dout, out, |d, y| d * y);
            for ((dx, out), dout) in dx.iter_mut().zip(out).zip(dout) {
                *dx = scale * out * (dout - along);
            }
        }
    }
}

versions! {
    /// The sum of losses, and gradients of the mean over `rows`.
    fn entropy_block(
        logits: &[f32],
        len: usize,
        targets: &[usize],
        smoothing: f32,
        rows: f32,
        dlogits: Option<&mut [f32]>,
    ) -> f64 {
        let mut dlogits = dlogits.map(|d| d.chunks_exact_mut(len));
        let mut loss = 0.0;
        for (x, target) in logits.chunks_exact(len).zip(targets) {
            let top = largest(x);
            let dlogits = dlogits.as_mut().and_then(Iterator::next);
            let total = match dlogits {
                None => sum(x, |v| exp(v - top)),
                Some(d) => {
                    for (d, x) in d.iter_mut().zip(x) {
                        *d = exp(x - top);
                    }
                    let total = sum(d, |v| v);
                    let (share, each) = (1.0 / (total * rows), smoothing / (len as f32 * rows));
                    for d in &mut *d {
                        *d = *d * share - each;
                    }
                    d[*target] -= (1.0 - smoothing) / rows;
                    total
                }
            };
            let mut row = f64::from(total).ln() - f64::from((1.0 - smoothing) * (x[*target] - top));
            // Not where it is 0, because the mean may be infinite.
            if smoothing > 0.0 {
                row -= f64::from(smoothing) * f64::from(sum(x, |v| v - top) / len as f32);
            }
            loss += row;
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, dot, same_everywhere, slope, values, wide};

    const SHAPES: [(usize, usize); 8] =
        [(0, 3), (1, 1), (2, 3), (3, 15), (5, 17), (4, 33), (2, 10_000), (3000, 10)];

    fn definition(x: &[f64], len: usize, scale: f64) -> Vec<f64> {
        x.chunks(len)
            .flat_map(|x| {
                let top = x.iter().fold(f64::NEG_INFINITY, |m, v| m.max(scale * v));
                let sum: f64 = x.iter().map(|v| (scale * v - top).exp()).sum();
                x.iter().map(move |v| (scale * v - top).exp() / sum)
            })
            .collect()
    }

    fn loss_definition(x: &[f64], len: usize, targets: &[i64], smoothing: f64) -> f64 {
        let p = definition(x, len, 1.0);
        let loss: f64 = p
            .iter()
            .enumerate()
            .map(|(i, p)| {
                let hit = i64::try_from(i % len).unwrap() == targets[i / len];
                let q = smoothing / len as f64 + if hit { 1.0 - smoothing } else { 0.0 };
                -q * p.ln()
            })
            .sum();
        loss / targets.len().max(1) as f64
    }

    #[test]
    fn softmax_is_the_definition_and_its_gradient_the_slope() {
        for (rows, len) in SHAPES {
            let x: Vec<f32> = values(1, rows * len + 1)[1..].iter().map(|v| v * 8.0).collect();
            let dout = values(2, rows * len);
            for scale in [1.0, 0.25] {
                let got = same_everywhere(|| {
                    let (mut out, mut dx) = (vec![9.0; rows * len], vec![9.0; rows * len]);
                    softmax(&x, len, scale, &mut out).unwrap();
                    softmax_backward(&dout, &out, len, scale, &mut dx).unwrap();
                    vec![out, dx]
                });
                let scale = f64::from(scale);
                assert_close("out", &got[0], &definition(&wide(&x), len, scale), 1e-6);
                if rows * len < 1000 {
                    let dx = slope(&wide(&x), |x| dot(&definition(x, len, scale), &dout));
                    // A softmax of one element has no slope.
                    let tolerance = if len == 1 { f64::INFINITY } else { 1e-5 };
                    assert_close("dx", &got[1], &dx, tolerance);
                }
            }
        }
    }

    #[test]
    fn cross_entropy_is_the_definition_and_its_gradient_the_slope() {
        for (rows, len) in SHAPES {
            let x: Vec<f32> = values(3, rows * len).iter().map(|v| v * 8.0).collect();
            let targets: Vec<i64> =
                (0..rows).map(|i| i64::try_from(i * 7 % len).unwrap()).collect();
            for smoothing in [0.0, 0.1, 1.0] {
                let got = same_everywhere(|| {
                    let mut d = vec![9.0; rows * len];
                    let loss = cross_entropy(&x, len, &targets, smoothing, Some(&mut d)).unwrap();
                    assert_eq!(cross_entropy(&x, len, &targets, smoothing, None), Ok(loss));
                    vec![vec![loss], d]
                });
                let smoothing = f64::from(smoothing);
                let loss = loss_definition(&wide(&x), len, &targets, smoothing);
                assert_close("loss", &got[0], &[loss], 1e-6);
                if rows * len < 1000 && len > 1 {
                    let d = slope(&wide(&x), |x| loss_definition(x, len, &targets, smoothing));
                    assert_close("dlogits", &got[1], &d, 1e-5);
                }
            }
        }
    }

    #[test]
    fn logits_of_any_size_give_a_finite_loss() {
        let mut d = [0.0; 3];
        let loss = cross_entropy(&[1e4, -1e4, f32::NEG_INFINITY], 3, &[1], 0.0, Some(&mut d));
        assert_eq!(loss, Ok(2e4));
        assert_eq!(d, [1.0, -1.0, 0.0]);
    }

    #[test]
    fn nan_makes_its_row_nan() {
        let x = [f32::NAN, 1.0, f32::INFINITY, 1.0, f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0, 0.0];
        let mut out = [0.0; 8];
        softmax(&x, 2, 1.0, &mut out).unwrap();
        assert_eq!(out[6..], [0.5, 0.5]);
        assert!(out[..2].iter().chain(&out[4..6]).all(|v| v.is_nan()));
        assert!(cross_entropy(&x[..2], 2, &[1], 0.0, None).unwrap().is_nan());
    }

    #[test]
    fn a_target_that_is_no_class_is_named() {
        let error = cross_entropy(&[0.0; 4], 2, &[1, -1], 0.0, None).unwrap_err();
        assert_eq!(error.to_string(), "target: -1 at position 1 is not below 2");
        assert!(cross_entropy(&[0.0; 4], 2, &[1u8, 2], 0.0, None).is_err());
        assert!(cross_entropy(&[0.0; 2], 2, &[1], 1.5, None).is_err());
        assert!(cross_entropy(&[], 0, &[0u32; 0], 0.0, None).is_err());
    }
}
