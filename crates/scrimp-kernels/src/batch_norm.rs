//! Batch normalization over the last axis, with the residual addition and the `ReLU` that follow it.
//!
//! `out = relu(gamma (x - mean) / sqrt(var + epsilon) + beta + residual)`
//!
//! # Shapes
//! - `x`, `out`, `residual` and their gradients: `[.., channels]`
//! - `gamma`, `beta`, `mean`, `var` and their gradients: `[channels]`
//!
//! # Source
//! Ioffe and Szegedy 2015, arXiv:1502.03167. Merging variances: Chan, Golub and LeVeque 1983, eq. 2.1.
//!
//! Sums run in f32 within a block, about the mean of the block, and in f64 across blocks, so that a mean far above the
//! deviation does not swallow the variance. NaN and infinity make a channel NaN, as in PyTorch.

use crate::KernelError;
use crate::blocks::{self, BLOCK, LANES, MAGNITUDE, check, check_len, map, map_with, parts_mut};
use crate::dispatch::versions;
use crate::gate::{Gate, bits, pass, relu, spread};

/// Mean and variance of every channel of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Over how many values of a channel. Running variances are unbiased: they take `var * count / (count - 1)`.
    pub count: usize,
    /// Mean; zero if there is no value.
    pub mean: Vec<f32>,
    /// Biased variance; zero if there is no value.
    pub var: Vec<f32>,
    /// `1 / sqrt(var + epsilon)`.
    pub rstd: Vec<f32>,
}

/// What is done to the normalized values in the same pass.
#[derive(Debug, Default)]
pub struct After<'a> {
    /// Added.
    pub residual: Option<&'a [f32]>,
    /// Whether a `ReLU` comes last.
    pub relu: bool,
    /// Takes up where the output is above zero, as [`Gate::Bits`] wants it: `ceil(len / 32)` words.
    pub bits: Option<&'a mut [u32]>,
}

/// What a backward pass writes besides what it changes in place.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Of the scale.
    pub dgamma: &'a mut [f32],
    /// Of the shift.
    pub dbeta: &'a mut [f32],
    /// Whether that of the residual, which is what passes the gate, is wanted in place of that of the output.
    pub residual: bool,
}

/// Mean and variance of every channel.
///
/// # Errors
/// If there are no channels, or `x` is not a whole number of rows of them.
pub fn statistics(x: &[f32], channels: usize, epsilon: f32) -> Result<Statistics, KernelError> {
    check_rows(x, channels)?;
    let period = period(channels);
    let parts =
        map(x.chunks(block_len(period)), |x| (x.len() / channels, moments(x, channels, period)));
    let (mut count, mut mean, mut m2) = (0usize, vec![0.0f64; channels], vec![0.0f64; channels]);
    for (n, part) in parts {
        let total = count + n;
        let (share, weight) = (n as f64 / total as f64, n as f64 * (count as f64 / total as f64));
        for ((mean, m2), (part_mean, part_m2)) in mean.iter_mut().zip(&mut m2).zip(part) {
            let delta = part_mean - *mean;
            *mean += delta * share;
            *m2 += part_m2 + delta * delta * weight;
        }
        count = total;
    }
    let var: Vec<f64> = m2.iter().map(|m2| m2 / (count.max(1) as f64)).collect();
    Ok(Statistics {
        count,
        mean: mean.into_iter().map(narrow).collect(),
        rstd: var.iter().map(|v| narrow(1.0 / (v + f64::from(epsilon)).sqrt())).collect(),
        var: var.into_iter().map(narrow).collect(),
    })
}

/// Normalizes with the statistics of this batch, which a backward pass needs again. Also gives the largest magnitude of
/// the output, NaN if any is.
///
/// # Errors
/// If there are no channels, or a slice has not its shape.
pub fn forward(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    after: After,
    out: &mut [f32],
) -> Result<(Statistics, f32), KernelError> {
    let statistics = statistics(x, gamma.len(), epsilon)?;
    let absmax = apply(x, [&statistics.mean, &statistics.rstd], gamma, beta, after, out)?;
    Ok((statistics, absmax))
}

/// Normalizes with statistics that were collected in training. Gives the largest magnitude of the output, NaN if any is.
///
/// # Errors
/// As [`forward`].
pub fn infer(
    x: &[f32],
    [mean, var]: [&[f32]; 2],
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    after: After,
    out: &mut [f32],
) -> Result<f32, KernelError> {
    let rstd: Vec<f32> =
        var.iter().map(|v| narrow(1.0 / (f64::from(*v) + f64::from(epsilon)).sqrt())).collect();
    apply(x, [mean, &rstd], gamma, beta, after, out)
}

/// The second pass of [`forward`] alone, for statistics that came with `x`.
///
/// # Errors
/// As [`forward`].
pub fn apply(
    x: &[f32],
    [mean, rstd]: [&[f32]; 2],
    gamma: &[f32],
    beta: &[f32],
    after: After,
    out: &mut [f32],
) -> Result<f32, KernelError> {
    let channels = gamma.len();
    let rows = check_rows(x, channels)?;
    let After { residual, relu, bits } = after;
    check_len("beta", &[channels], beta.len())?;
    check_len("mean", &[channels], mean.len())?;
    check_len("deviation", &[channels], rstd.len())?;
    check_len("output", &[rows, channels], out.len())?;
    if let Some(residual) = residual {
        check_len("residual", &[rows, channels], residual.len())?;
    }
    if let Some(bits) = &bits {
        check_len("bits of the relu", &[x.len().div_ceil(LANES)], bits.len())?;
    }
    let period = period(channels);
    let affine = tiled(period, channels, |c| [mean[c], gamma[c] * rstd[c], beta[c]]);
    let len = block_len(period);
    let body = match (residual.is_some(), relu) {
        (false, false) => apply_block::<false, false>,
        (false, true) => apply_block::<false, true>,
        (true, false) => apply_block::<true, false>,
        (true, true) => apply_block::<true, true>,
    };
    let words = parts_mut(bits, len / LANES, x.len().div_ceil(len));
    let residual = residual.unwrap_or(x);
    let items = out.chunks_mut(len).zip(x.chunks(len)).zip(residual.chunks(len)).zip(words);
    Ok(blocks::absmax(items, |(((out, x), residual), words)| {
        body(out, x, residual, &affine, words.unwrap_or(&mut []))
    }))
}

/// The gradients, from that of the output. That of the input takes the place of `x`, and that of the residual, where it is
/// wanted, the place of `dout`: on the way back memory is what a step has least of. Gives the largest magnitude of the
/// gradient of the input, NaN if any is.
///
/// `mean` and `rstd` are those of the forward pass with the statistics of the batch.
///
/// # Errors
/// If there are no channels, or a slice has not its shape.
pub fn backward(
    dout: &mut [f32],
    gate: Gate,
    x: &mut [f32],
    [mean, rstd]: [&[f32]; 2],
    gamma: &[f32],
    gradients: Gradients,
) -> Result<f32, KernelError> {
    let channels = gamma.len();
    let rows = check_rows(x, channels)?;
    let Gradients { dgamma, dbeta, residual } = gradients;
    check_len("gradient of the output", &[rows, channels], dout.len())?;
    gate.check(x.len())?;
    check_len("mean", &[channels], mean.len())?;
    check_len("deviation", &[channels], rstd.len())?;
    check_len("gradient of gamma", &[channels], dgamma.len())?;
    check_len("gradient of beta", &[channels], dbeta.len())?;

    let period = period(channels);
    let len = block_len(period);
    let [means] = tiled(period, channels, |c| [mean[c]]);
    let output = gate.output(dout);
    let sums = if gate.is_open() { sums_block::<false> } else { sums_block::<true> };
    let items = dout.chunks(len).zip(output.chunks(len)).zip(x.chunks(len)).enumerate();
    let parts = map(items, |(i, ((dout, output), x))| {
        let (mut sum, mut product) = (vec![0.0; period], vec![0.0; period]);
        sums(dout, output, gate.words(i * len, x.len()), x, &means, &mut sum, &mut product);
        (folded(&sum, channels), folded(&product, channels))
    });
    let mut totals = vec![[0.0f64; 2]; channels];
    for (sums, products) in parts {
        for (total, (sum, product)) in totals.iter_mut().zip(sums.into_iter().zip(products)) {
            total[0] += sum;
            total[1] += product;
        }
    }
    for (c, [sum, product]) in totals.iter().enumerate() {
        dbeta[c] = narrow(*sum);
        dgamma[c] = narrow(product * f64::from(rstd[c]));
    }

    let count = rows as f64;
    // dx = a g + b (x - mean) + c, with the two means of the gradient in b and c.
    let affine = tiled(period, channels, |c| {
        let (r, a) = (f64::from(rstd[c]), f64::from(gamma[c]) * f64::from(rstd[c]));
        let [sum, product] = totals[c];
        [mean[c], narrow(a), narrow(-a * r * r * product / count), narrow(-a * sum / count)]
    });
    let body = if gate.is_open() { dx_block::<false> } else { dx_block::<true> };
    let items = x.chunks_mut(len).zip(dout.chunks_mut(len)).enumerate();
    let copies = || [vec![0.0; len], vec![0.0; len]];
    let tops = map_with(items, copies, |[x_copy, dout_copy], (i, (dx, dout))| {
        let (x, upstream) = (&mut x_copy[..dx.len()], &mut dout_copy[..dx.len()]);
        x.copy_from_slice(dx);
        upstream.copy_from_slice(dout);
        let output = match gate {
            Gate::Output(output) => &output[i * len..][..dx.len()],
            _ => &*upstream,
        };
        let words = gate.words(i * len, dx.len());
        body(dx, upstream, output, words, x, &affine, residual.then_some(dout))
    });
    Ok(f32::from_bits(tops.into_iter().max().unwrap_or(0)))
}

/// How many rows there are.
fn check_rows(x: &[f32], channels: usize) -> Result<usize, KernelError> {
    check(channels > 0, "channels", || "there are none, and a norm needs one".to_owned())?;
    let rows = x.len() / channels;
    check_len("input", &[rows, channels], x.len())?;
    Ok(rows)
}

/// After how many values the pattern of channels repeats in whole groups; enough of them that inner loops are long.
fn period(channels: usize) -> usize {
    let gcd = 1 << channels.trailing_zeros().min(LANES.trailing_zeros());
    let step = channels * (LANES / gcd);
    step * 512usize.div_ceil(step)
}

fn block_len(period: usize) -> usize {
    period * (BLOCK / period).max(1)
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
fn narrow(v: f64) -> f32 {
    v as f32
}

/// Values of each channel, repeated over a period.
fn tiled<const N: usize>(
    period: usize,
    channels: usize,
    values: impl Fn(usize) -> [f32; N],
) -> [Vec<f32>; N] {
    let channel: Vec<[f32; N]> = (0..channels).map(values).collect();
    std::array::from_fn(|n| channel.iter().map(|v| v[n]).cycle().take(period).collect())
}

/// Sums of each place of a period, added up for each channel.
fn folded(sums: &[f32], channels: usize) -> Vec<f64> {
    let mut totals = vec![0.0; channels];
    for sums in sums.chunks_exact(channels) {
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total += f64::from(*sum);
        }
    }
    totals
}

/// Mean, and sum of squares about it, of every channel of a block.
fn moments(x: &[f32], channels: usize, period: usize) -> Vec<(f64, f64)> {
    let rows = (x.len() / channels) as f64;
    let (mut sums, mut squares) = (vec![0.0; period], vec![0.0; period]);
    rough_sums(x, &mut sums);
    let rough: Vec<f32> = folded(&sums, channels).iter().map(|sum| narrow(sum / rows)).collect();
    let [shifts] = tiled(period, channels, |c| [rough[c]]);
    sums.fill(0.0);
    shifted_sums(x, &shifts, &mut sums, &mut squares);
    let (sums, squares) = (folded(&sums, channels), folded(&squares, channels));
    sums.iter()
        .zip(squares)
        .zip(rough)
        .map(|((sum, square), shift)| {
            (f64::from(shift) + sum / rows, (square - sum * sum / rows).max(0.0))
        })
        .collect()
}

versions! {
    /// Adds up each place of a period.
    fn rough_sums(x: &[f32], sums: &mut [f32]) {
        // Four periods at once, so that sums are loaded and stored less often.
        let period = sums.len();
        let mut chunks = x.chunks_exact(4 * period);
        for chunk in &mut chunks {
            let (a, rest) = chunk.split_at(period);
            let (b, rest) = rest.split_at(period);
            let (c, d) = rest.split_at(period);
            for ((((sum, a), b), c), d) in sums.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *sum += (a + b) + (c + d);
            }
        }
        for chunk in chunks.remainder().chunks(period) {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum += x;
            }
        }
    }
}

versions! {
    /// Adds up, for each place of a period, differences from a shift and their squares.
    fn shifted_sums(x: &[f32], shifts: &[f32], sums: &mut [f32], squares: &mut [f32]) {
        let period = sums.len();
        let mut chunks = x.chunks_exact(2 * period);
        for chunk in &mut chunks {
            let (a, b) = chunk.split_at(period);
            for ((((sum, square), shift), a), b) in sums.iter_mut().zip(&mut *squares).zip(shifts).zip(a).zip(b) {
                let (a, b) = (a - shift, b - shift);
                *sum += a + b;
                *square += a.mul_add(a, b * b);
            }
        }
        for chunk in chunks.remainder().chunks(period) {
            for (((sum, square), shift), x) in sums.iter_mut().zip(&mut *squares).zip(shifts).zip(chunk) {
                let d = x - shift;
                *sum += d;
                *square = d.mul_add(d, *square);
            }
        }
    }
}

versions! {
    fn apply_block<const RESIDUAL: bool, const RELU: bool>(
        out: &mut [f32],
        x: &[f32],
        residual: &[f32],
        affine: &[Vec<f32>; 3],
        words: &mut [u32],
    ) -> u32 {
        let [mean, scale, shift] = affine;
        let period = mean.len();
        let mut words = words.chunks_mut(period / LANES);
        let mut top = 0;
        for ((out, x), residual) in out.chunks_mut(period).zip(x.chunks(period)).zip(residual.chunks(period)) {
            let affine = mean.iter().zip(scale).zip(shift);
            for (((out, x), residual), ((mean, scale), shift)) in out.iter_mut().zip(x).zip(residual).zip(affine) {
                let mut v = (x - mean).mul_add(*scale, *shift);
                if RESIDUAL {
                    v += residual;
                }
                if RELU {
                    v = relu(v);
                }
                *out = v;
                top = top.max(v.to_bits() & MAGNITUDE);
            }
            if let Some(words) = words.next() {
                bits(out, words);
            }
        }
        top
    }
}

versions! {
    /// Adds up, for each place of a period, the gradient and its product with the centred input.
    fn sums_block<const GATED: bool>(
        dout: &[f32],
        output: &[f32],
        words: &[u32],
        x: &[f32],
        mean: &[f32],
        sums: &mut [f32],
        products: &mut [f32],
    ) {
        let period = mean.len();
        let mut above = vec![0.0; if words.is_empty() { 0 } else { period }];
        let mut words = words.chunks(period / LANES);
        for ((dout, output), x) in dout.chunks(period).zip(output.chunks(period)).zip(x.chunks(period)) {
            let output = match words.next() {
                None => output,
                Some(words) => spread(words, &mut above[..output.len()]),
            };
            for (((((dout, output), x), mean), sum), product) in
                dout.iter().zip(output).zip(x).zip(mean).zip(&mut *sums).zip(&mut *products)
            {
                let g = pass::<GATED>(*dout, *output);
                *sum += g;
                *product = g.mul_add(x - mean, *product);
            }
        }
    }
}

versions! {
    fn dx_block<const GATED: bool>(
        dx: &mut [f32],
        dout: &[f32],
        output: &[f32],
        words: &[u32],
        x: &[f32],
        affine: &[Vec<f32>; 4],
        dresidual: Option<&mut [f32]>,
    ) -> u32 {
        let [mean, a, b, c] = affine;
        let period = mean.len();
        let mut above = vec![0.0; if words.is_empty() { 0 } else { period }];
        let mut words = words.chunks(period / LANES);
        let mut dresidual = dresidual.map(|d| d.chunks_mut(period));
        let mut top = 0;
        for (((dx, dout), output), x) in
            dx.chunks_mut(period).zip(dout.chunks(period)).zip(output.chunks(period)).zip(x.chunks(period))
        {
            let output = match words.next() {
                None => output,
                Some(words) => spread(words, &mut above[..output.len()]),
            };
            let affine = mean.iter().zip(a).zip(b).zip(c);
            let values = dout.iter().zip(output).zip(x).zip(affine);
            for (dx, (((dout, output), x), (((mean, a), b), c))) in dx.iter_mut().zip(values) {
                let g = pass::<GATED>(*dout, *output);
                let v = g.mul_add(*a, (x - mean).mul_add(*b, *c));
                *dx = v;
                top = top.max(v.to_bits() & MAGNITUDE);
            }
            if let Some(dresidual) = dresidual.as_mut().and_then(Iterator::next) {
                for ((d, dout), output) in dresidual.iter_mut().zip(dout).zip(output) {
                    *d = pass::<GATED>(*dout, *output);
                }
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

    /// The definition, in f64: mean, variance and output.
    fn definition(
        x: &[f64],
        gamma: &[f64],
        beta: &[f64],
        residual: Option<&[f64]>,
        with_relu: bool,
    ) -> [Vec<f64>; 3] {
        let c = gamma.len();
        let rows = (x.len() / c) as f64;
        let channel = |j: usize| x.iter().skip(j).step_by(c);
        let mean: Vec<f64> = (0..c).map(|j| channel(j).sum::<f64>() / rows).collect();
        let var: Vec<f64> =
            (0..c).map(|j| channel(j).map(|v| (v - mean[j]).powi(2)).sum::<f64>() / rows).collect();
        let out = x
            .iter()
            .enumerate()
            .map(|(i, v)| {
                let j = i % c;
                let y = gamma[j] * (v - mean[j]) / (var[j] + f64::from(EPSILON)).sqrt() + beta[j];
                let y = y + residual.map_or(0.0, |r| r[i]);
                if with_relu { y.max(0.0) } else { y }
            })
            .collect();
        [mean, var, out]
    }

    const SHAPES: [(usize, usize); 9] =
        [(1, 1), (7, 3), (33, 15), (5, 17), (40, 6), (300, 64), (9, 513), (700, 96), (11_000, 7)];

    #[test]
    fn forward_is_the_definition() {
        for (rows, c) in SHAPES {
            let x: Vec<f32> = values(1, rows * c + 1)[1..].iter().map(|v| v * 3.0 + 0.5).collect();
            let (gamma, beta, residual) = (values(2, c), values(3, c), values(4, rows * c));
            for (with_residual, with_relu) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let results = same_everywhere(|| {
                    let mut out = vec![f32::NAN; rows * c + 1];
                    let mut words = vec![!0; (rows * c).div_ceil(32)];
                    let after = After {
                        residual: with_residual.then_some(&residual[..]),
                        relu: with_relu,
                        bits: Some(&mut words),
                    };
                    let out = &mut out[1..];
                    let (s, top) = forward(&x, &gamma, &beta, EPSILON, after, out).unwrap();
                    assert_eq!(top, absmax(out));
                    for i in 0..words.len() * 32 {
                        let bit = words[i / 32] >> (i % 32) & 1 == 1;
                        assert_eq!(bit, out.get(i).is_some_and(|v| *v > 0.0), "{i}");
                    }
                    vec![s.mean, s.var, s.rstd, out.to_vec()]
                });
                let residual = with_residual.then(|| wide(&residual));
                let [mean, var, out] = definition(
                    &wide(&x),
                    &wide(&gamma),
                    &wide(&beta),
                    residual.as_deref(),
                    with_relu,
                );
                assert_close("mean", &results[0], &mean, 1e-6);
                assert_close("var", &results[1], &var, 1e-6);
                assert_close("out", &results[3], &out, 2e-6);
            }
        }
    }

    #[test]
    fn a_large_mean_leaves_the_variance() {
        let (rows, c) = (20_000, 5);
        let x: Vec<f32> = values(5, rows * c).iter().map(|v| 4096.0 + v).collect();
        let s = statistics(&x, c, EPSILON).unwrap();
        let [mean, var, _] = definition(&wide(&x), &vec![1.0; c], &vec![0.0; c], None, false);
        assert_close("mean", &s.mean, &mean, 1e-7);
        assert_close("var", &s.var, &var, 1e-5);
    }

    #[test]
    fn one_first_outlier_leaves_the_variance() {
        let (rows, c) = (40_000, 3);
        let mut x: Vec<f32> = values(5, rows * c).iter().map(|v| 1000.0 + v).collect();
        x[..c].fill(0.0);
        let s = statistics(&x, c, EPSILON).unwrap();
        let [_, var, _] = definition(&wide(&x), &vec![1.0; c], &vec![0.0; c], None, false);
        assert_close("var", &s.var, &var, 1e-5);
    }

    #[test]
    fn inference_takes_the_given_statistics() {
        let mut out = [0.0; 4];
        let top = infer(
            &[1.0, 2.0, 3.0, -4.0],
            [&[1.0, 0.0], &[4.0, 1.0]],
            &[2.0, 1.0],
            &[0.0, 1.0],
            0.0,
            After::default(),
            &mut out,
        );
        assert_eq!(out, [0.0, 3.0, 2.0, -3.0]);
        assert_eq!(top, Ok(3.0));
    }

    #[test]
    fn backward_is_the_slope_of_forward() {
        for (rows, c) in [(1, 1), (7, 3), (9, 15), (5, 17), (6, 33)] {
            let x = values(6, rows * c);
            let (gamma, beta, residual) = (values(7, c), values(8, c), values(9, rows * c));
            let dout = values(10, rows * c);
            for with_relu in [false, true] {
                let after = |bits| After { residual: Some(&residual), relu: with_relu, bits };
                let mut out = vec![0.0; rows * c];
                let mut words = vec![0; (rows * c).div_ceil(32)];
                let (s, _) =
                    forward(&x, &gamma, &beta, EPSILON, after(Some(&mut words)), &mut out).unwrap();
                let run = |gate| {
                    same_everywhere(|| {
                        let (mut dgamma, mut dbeta) = (vec![f32::NAN; c], vec![f32::NAN; c]);
                        let mut run = |residual| {
                            let (mut dx, mut dresidual) = (x.clone(), dout.clone());
                            let (dgamma, dbeta) = (&mut dgamma, &mut dbeta);
                            let gradients = Gradients { dgamma, dbeta, residual };
                            let (statistics, dx_of) = ([&s.mean[..], &s.rstd], &mut dx);
                            let top = backward(
                                &mut dresidual,
                                gate,
                                dx_of,
                                statistics,
                                &gamma,
                                gradients,
                            )
                            .unwrap();
                            assert_eq!(top, absmax(&dx));
                            (dx, dresidual)
                        };
                        // Where nobody asks, the gradient of the output stays as it is.
                        let (alone, untouched) = run(false);
                        assert_eq!(untouched, dout);
                        let (dx, dresidual) = run(true);
                        assert_eq!(alone, dx);
                        vec![dx, dgamma, dbeta, dresidual]
                    })
                };
                let got = if with_relu { run(Gate::Output(&out)) } else { run(Gate::Open) };
                if with_relu {
                    assert_eq!(got, run(Gate::Bits(&words)));
                }
                let (x, gamma, beta, residual) =
                    (wide(&x), wide(&gamma), wide(&beta), wide(&residual));
                let loss = |x: &[f64], gamma: &[f64], beta: &[f64], residual: &[f64]| {
                    dot(&definition(x, gamma, beta, Some(residual), with_relu)[2], &dout)
                };
                // One row alone has no slope, only rounding.
                let tolerance = 1e-4;
                if rows > 1 {
                    let dx = slope(&x, |x| loss(x, &gamma, &beta, &residual));
                    assert_close("dx", &got[0], &dx, tolerance);
                }
                let dgamma = slope(&gamma, |gamma| loss(&x, gamma, &beta, &residual));
                assert_close("dgamma", &got[1], &dgamma, tolerance);
                let dbeta = slope(&beta, |beta| loss(&x, &gamma, beta, &residual));
                assert_close("dbeta", &got[2], &dbeta, tolerance);
                let dresidual = slope(&residual, |residual| loss(&x, &gamma, &beta, residual));
                assert_close("dresidual", &got[3], &dresidual, tolerance);
            }
        }
    }

    #[test]
    fn gradients_of_many_blocks_are_the_formula() {
        let (rows, c) = (4000, 48);
        let (x, dout, gamma) = (values(11, rows * c), values(12, rows * c), values(13, c));
        let s = statistics(&x, c, EPSILON).unwrap();
        let got = same_everywhere(|| {
            let (mut dx, mut dout) = (x.clone(), dout.clone());
            let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
            let gradients = Gradients { dgamma: &mut dgamma, dbeta: &mut dbeta, residual: false };
            let statistics = [&s.mean[..], &s.rstd];
            backward(&mut dout, Gate::Open, &mut dx, statistics, &gamma, gradients).unwrap();
            vec![dx, dgamma, dbeta]
        });
        let (mut dbeta, mut dgamma) = (vec![0.0; c], vec![0.0; c]);
        let hat = |i: usize| f64::from(x[i] - s.mean[i % c]) * f64::from(s.rstd[i % c]);
        for (i, d) in dout.iter().enumerate() {
            dbeta[i % c] += f64::from(*d);
            dgamma[i % c] += f64::from(*d) * hat(i);
        }
        let dx: Vec<f64> = (0..x.len())
            .map(|i| {
                let j = i % c;
                let centred = f64::from(dout[i]) - (dbeta[j] + hat(i) * dgamma[j]) / rows as f64;
                f64::from(gamma[j]) * f64::from(s.rstd[j]) * centred
            })
            .collect();
        assert_close("dx", &got[0], &dx, 1e-6);
        assert_close("dgamma", &got[1], &dgamma, 1e-5);
        assert_close("dbeta", &got[2], &dbeta, 1e-5);
    }

    #[test]
    fn nan_and_infinity_stay_in_their_channel() {
        let x = [1.0, f32::NAN, f32::INFINITY, 3.0, 2.0, 1.0];
        let mut out = [0.0; 6];
        let after = After { relu: true, ..After::default() };
        let (_, top) = forward(&x, &[1.0; 3], &[0.0; 3], EPSILON, after, &mut out).unwrap();
        assert!(top.is_nan());
        let nan: Vec<bool> = out.iter().map(|v| v.is_nan()).collect();
        assert_eq!(nan, [false, true, true, false, true, true]);
    }

    #[test]
    fn an_empty_batch_is_empty() {
        let (s, top) = forward(&[], &[1.0], &[0.0], 1.0, After::default(), &mut []).unwrap();
        assert_eq!(s, Statistics { count: 0, mean: vec![0.0], var: vec![0.0], rstd: vec![1.0] });
        assert_eq!(top, 0.0);
        let (mut dgamma, mut dbeta) = ([1.0], [1.0]);
        let gradients = Gradients { dgamma: &mut dgamma, dbeta: &mut dbeta, residual: false };
        let top = backward(&mut [], Gate::Open, &mut [], [&[0.0], &[1.0]], &[1.0], gradients);
        assert_eq!(top, Ok(0.0));
        assert_eq!((dgamma, dbeta), ([0.0], [0.0]));
    }

    #[test]
    fn wrong_lengths_are_named() {
        let error = statistics(&[1.0; 5], 2, EPSILON).unwrap_err();
        assert_eq!(error.to_string(), "input has 5 elements, and shape [2, 2] needs 4");
        assert!(statistics(&[], 0, EPSILON).is_err());
        let after = After { residual: Some(&[1.0]), ..After::default() };
        let error =
            forward(&[1.0; 4], &[1.0; 2], &[0.0; 2], EPSILON, after, &mut [0.0; 4]).unwrap_err();
        assert_eq!(error.to_string(), "residual has 1 elements, and shape [2, 2] needs 4");
    }
}
