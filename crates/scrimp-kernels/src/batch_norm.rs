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
use crate::blocks::{
    self, BLOCK, Group, LANES, MAGNITUDE, check, check_len, filled_up, map, parts_mut,
};
use crate::dispatch::versions;
use crate::gate::{Gate, bits, pass, relu};

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

/// What a backward pass writes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Of the input.
    pub dx: &'a mut [f32],
    /// Of the scale.
    pub dgamma: &'a mut [f32],
    /// Of the shift.
    pub dbeta: &'a mut [f32],
    /// Of the residual: what passes the gate.
    pub dresidual: Option<&'a mut [f32]>,
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
    let affine: Vec<[Group; 3]> =
        tiled(period, channels, |c| [mean[c], gamma[c] * rstd[c], beta[c]]);
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

/// The gradients, from that of the output. Gives the largest magnitude of `dx`, NaN if any is.
///
/// `mean` and `rstd` are those of the forward pass with the statistics of the batch.
///
/// # Errors
/// If there are no channels, or a slice has not its shape.
pub fn backward(
    dout: &[f32],
    gate: Gate,
    x: &[f32],
    [mean, rstd]: [&[f32]; 2],
    gamma: &[f32],
    gradients: Gradients,
) -> Result<f32, KernelError> {
    let channels = gamma.len();
    let rows = check_rows(x, channels)?;
    let Gradients { dx, dgamma, dbeta, dresidual } = gradients;
    check_len("gradient of the output", &[rows, channels], dout.len())?;
    gate.check(x.len())?;
    check_len("mean", &[channels], mean.len())?;
    check_len("deviation", &[channels], rstd.len())?;
    check_len("gradient of the input", &[rows, channels], dx.len())?;
    check_len("gradient of gamma", &[channels], dgamma.len())?;
    check_len("gradient of beta", &[channels], dbeta.len())?;
    if let Some(d) = &dresidual {
        check_len("gradient of the residual", &[rows, channels], d.len())?;
    }

    let period = period(channels);
    let len = block_len(period);
    let means: Vec<[Group; 1]> = tiled(period, channels, |c| [mean[c]]);
    let output = gate.output(dout);
    let sums = match gate {
        Gate::Open => sums_block::<{ Gate::OPEN }>,
        Gate::Output(_) => sums_block::<{ Gate::OUTPUT }>,
        Gate::Bits(_) => sums_block::<{ Gate::BITS }>,
    };
    let items = dout.chunks(len).zip(output.chunks(len)).zip(x.chunks(len)).enumerate();
    let parts = map(items, |(i, ((dout, output), x))| {
        let mut acc = vec![[[0.0; LANES]; 2]; period / LANES];
        sums(dout, output, gate.words(i * len, x.len()), x, &means, &mut acc);
        folded(&acc, channels)
    });
    let mut totals = vec![[0.0f64; 2]; channels];
    for part in parts {
        for (total, part) in totals.iter_mut().zip(part) {
            total[0] += part[0];
            total[1] += part[1];
        }
    }
    for (c, [sum, product]) in totals.iter().enumerate() {
        dbeta[c] = narrow(*sum);
        dgamma[c] = narrow(product * f64::from(rstd[c]));
    }

    let count = rows as f64;
    // dx = a g + b (x - mean) + c, with the two means of the gradient in b and c.
    let affine: Vec<[Group; 4]> = tiled(period, channels, |c| {
        let (r, a) = (f64::from(rstd[c]), f64::from(gamma[c]) * f64::from(rstd[c]));
        let [sum, product] = totals[c];
        [mean[c], narrow(a), narrow(-a * r * r * product / count), narrow(-a * sum / count)]
    });
    let body = match (gate, dresidual.is_some()) {
        (Gate::Open, false) => dx_block::<{ Gate::OPEN }, false>,
        (Gate::Open, true) => dx_block::<{ Gate::OPEN }, true>,
        (Gate::Output(_), false) => dx_block::<{ Gate::OUTPUT }, false>,
        (Gate::Output(_), true) => dx_block::<{ Gate::OUTPUT }, true>,
        (Gate::Bits(_), false) => dx_block::<{ Gate::BITS }, false>,
        (Gate::Bits(_), true) => dx_block::<{ Gate::BITS }, true>,
    };
    let residuals = parts_mut(dresidual, len, x.len().div_ceil(len));
    let items = dx.chunks_mut(len).zip(residuals).zip(dout.chunks(len)).zip(x.chunks(len));
    let items = items.zip(output.chunks(len)).enumerate();
    Ok(blocks::absmax(items, |(i, ((((dx, dresidual), dout), x), output))| {
        let words = gate.words(i * len, x.len());
        body(dx, dresidual.unwrap_or(&mut []), dout, output, words, x, &affine)
    }))
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
) -> Vec<[Group; N]> {
    let channel: Vec<[f32; N]> = (0..channels).map(values).collect();
    let mut groups = vec![[[0.0; LANES]; N]; period / LANES];
    for (i, values) in channel.iter().cycle().take(period).enumerate() {
        for (n, v) in values.iter().enumerate() {
            groups[i / LANES][n][i % LANES] = *v;
        }
    }
    groups
}

/// Sums of a period, added up for each channel.
fn folded<const N: usize>(sums: &[[Group; N]], channels: usize) -> Vec<[f64; N]> {
    let mut totals = vec![[0.0; N]; channels];
    let mut c = 0;
    for group in sums {
        for lane in 0..LANES {
            for (total, sums) in totals[c].iter_mut().zip(group) {
                *total += f64::from(sums[lane]);
            }
            c = if c + 1 == channels { 0 } else { c + 1 };
        }
    }
    totals
}

/// Mean, and sum of squares about it, of every channel of a block.
fn moments(x: &[f32], channels: usize, period: usize) -> Vec<(f64, f64)> {
    let rows = (x.len() / channels) as f64;
    let mut sums = vec![[[0.0; LANES]]; period / LANES];
    rough_sums(x, &mut sums);
    let rough: Vec<f32> = folded(&sums, channels).iter().map(|[sum]| narrow(sum / rows)).collect();
    let shifts: Vec<[Group; 1]> = tiled(period, channels, |c| [rough[c]]);
    let mut sums = vec![[[0.0; LANES]; 2]; period / LANES];
    // A filled up group would add the shift's square where there is no value.
    let whole = x.len() / LANES * LANES;
    shifted_sums(&x[..whole], &shifts, &mut sums);
    let at = whole % period / LANES;
    for (lane, v) in x[whole..].iter().enumerate() {
        let d = v - shifts[at][0][lane];
        sums[at][0][lane] += d;
        sums[at][1][lane] = d.mul_add(d, sums[at][1][lane]);
    }
    let totals = folded(&sums, channels);
    totals
        .iter()
        .zip(rough)
        .map(|([sum, square], shift)| {
            (f64::from(shift) + sum / rows, (square - sum * sum / rows).max(0.0))
        })
        .collect()
}

versions! {
    /// Adds up each place of a period.
    fn rough_sums(x: &[f32], sums: &mut [[Group; 1]]) {
        let (groups, rest) = x.as_chunks::<LANES>();
        for chunk in groups.chunks(sums.len()) {
            for (x, [sum]) in chunk.iter().zip(&mut *sums) {
                for l in 0..LANES {
                    sum[l] += x[l];
                }
            }
        }
        let at = groups.len() % sums.len();
        for (x, sum) in rest.iter().zip(&mut sums[at][0]) {
            *sum += x;
        }
    }
}

versions! {
    /// Adds up, for each place of a period, differences from a shift and their squares.
    fn shifted_sums(x: &[f32], shifts: &[[Group; 1]], sums: &mut [[Group; 2]]) {
        let (groups, _) = x.as_chunks::<LANES>();
        for chunk in groups.chunks(sums.len()) {
            for ((x, [shift]), [sum, square]) in chunk.iter().zip(shifts).zip(&mut *sums) {
                for l in 0..LANES {
                    let d = x[l] - shift[l];
                    sum[l] += d;
                    square[l] = d.mul_add(d, square[l]);
                }
            }
        }
    }
}

versions! {
    fn apply_block<const RESIDUAL: bool, const RELU: bool>(
        out: &mut [f32],
        x: &[f32],
        residual: &[f32],
        affine: &[[Group; 3]],
        words: &mut [u32],
    ) -> u32 {
        let mut top = [0u32; LANES];
        let mut group = |out: &mut Group, x: &Group, residual: &Group, [mean, a, b]: &[Group; 3]| {
            for l in 0..LANES {
                let mut v = (x[l] - mean[l]).mul_add(a[l], b[l]);
                if RESIDUAL {
                    v += residual[l];
                }
                if RELU {
                    v = relu(v);
                }
                out[l] = v;
                top[l] = top[l].max(v.to_bits() & MAGNITUDE);
            }
        };
        let (outs, out_rest) = out.as_chunks_mut::<LANES>();
        let ((xs, x_rest), (residuals, residual_rest)) =
            (x.as_chunks::<LANES>(), residual.as_chunks::<LANES>());
        let period = affine.len();
        for ((out, x), residual) in
            outs.chunks_mut(period).zip(xs.chunks(period)).zip(residuals.chunks(period))
        {
            for (((out, x), residual), affine) in out.iter_mut().zip(x).zip(residual).zip(affine) {
                group(out, x, residual, affine);
            }
        }
        for (word, out) in words.iter_mut().zip(&*outs) {
            *word = bits(out);
        }
        if !out_rest.is_empty() {
            let mut last = [0.0; LANES];
            let affine = affine[outs.len() % period];
            let mut rest_affine = [[0.0; LANES]; 3];
            for (to, from) in rest_affine.iter_mut().zip(&affine) {
                *to = filled_up(&from[..out_rest.len()]);
            }
            group(&mut last, &filled_up(x_rest), &filled_up(residual_rest), &rest_affine);
            out_rest.copy_from_slice(&last[..out_rest.len()]);
            if let Some(word) = words.last_mut() {
                *word = bits(&last);
            }
        }
        top.into_iter().fold(0, u32::max)
    }
}

versions! {
    fn sums_block<const GATE: u8>(
        dout: &[f32],
        output: &[f32],
        words: &[u32],
        x: &[f32],
        means: &[[Group; 1]],
        sums: &mut [[Group; 2]],
    ) {
        let group = |dout: &Group, output: &Group, word, x: &Group, mean: &Group, sums: &mut [Group; 2]| {
            let [sum, product] = sums;
            for l in 0..LANES {
                let g = pass::<GATE>(dout[l], output[l], word, l);
                sum[l] += g;
                product[l] = g.mul_add(x[l] - mean[l], product[l]);
            }
        };
        let ((douts, dout_rest), (outputs, output_rest), (xs, x_rest)) =
            (dout.as_chunks::<LANES>(), output.as_chunks::<LANES>(), x.as_chunks::<LANES>());
        let period = means.len();
        let mut words = words.iter().copied();
        for ((dout, output), x) in douts.chunks(period).zip(outputs.chunks(period)).zip(xs.chunks(period)) {
            for ((((dout, output), x), [mean]), sums) in
                dout.iter().zip(output).zip(x).zip(means).zip(&mut *sums)
            {
                let word = if GATE == Gate::BITS { words.next().unwrap_or(0) } else { 0 };
                group(dout, output, word, x, mean, sums);
            }
        }
        if !x_rest.is_empty() {
            let at = xs.len() % period;
            let (dout, output, x) = (filled_up(dout_rest), filled_up(output_rest), filled_up(x_rest));
            group(&dout, &output, words.next().unwrap_or(0), &x, &means[at][0], &mut sums[at]);
        }
    }
}

versions! {
    fn dx_block<const GATE: u8, const RESIDUAL: bool>(
        dx: &mut [f32],
        dresidual: &mut [f32],
        dout: &[f32],
        output: &[f32],
        words: &[u32],
        x: &[f32],
        affine: &[[Group; 4]],
    ) -> u32 {
        let mut top = [0u32; LANES];
        let mut group = |dx: &mut Group, dout: &Group, output: &Group, word, x: &Group, affine: &[Group; 4]| {
            let [mean, a, b, c] = affine;
            for l in 0..LANES {
                let g = pass::<GATE>(dout[l], output[l], word, l);
                let v = g.mul_add(a[l], (x[l] - mean[l]).mul_add(b[l], c[l]));
                dx[l] = v;
                top[l] = top[l].max(v.to_bits() & MAGNITUDE);
            }
        };
        let gated = |dresidual: &mut Group, dout: &Group, output: &Group, word| {
            for l in 0..LANES {
                dresidual[l] = pass::<GATE>(dout[l], output[l], word, l);
            }
        };
        let (dxs, dx_rest) = dx.as_chunks_mut::<LANES>();
        let (dresiduals, dresidual_rest) = dresidual.as_chunks_mut::<LANES>();
        let ((douts, dout_rest), (outputs, output_rest), (xs, x_rest)) =
            (dout.as_chunks::<LANES>(), output.as_chunks::<LANES>(), x.as_chunks::<LANES>());
        let period = affine.len();
        let mut words = words.iter().copied();
        let mut dresiduals = dresiduals.iter_mut();
        for (((dx, dout), output), x) in
            dxs.chunks_mut(period).zip(douts.chunks(period)).zip(outputs.chunks(period)).zip(xs.chunks(period))
        {
            for ((((dx, dout), output), x), affine) in dx.iter_mut().zip(dout).zip(output).zip(x).zip(affine) {
                let word = if GATE == Gate::BITS { words.next().unwrap_or(0) } else { 0 };
                if RESIDUAL && let Some(dresidual) = dresiduals.next() {
                    gated(dresidual, dout, output, word);
                }
                group(dx, dout, output, word, x, affine);
            }
        }
        if !x_rest.is_empty() {
            let at = xs.len() % period;
            let mut last = [0.0; LANES];
            let mut rest_affine = [[0.0; LANES]; 4];
            for (to, from) in rest_affine.iter_mut().zip(&affine[at]) {
                *to = filled_up(&from[..x_rest.len()]);
            }
            let (dout, output, x) = (filled_up(dout_rest), filled_up(output_rest), filled_up(x_rest));
            let word = words.next().unwrap_or(0);
            if RESIDUAL {
                gated(&mut last, &dout, &output, word);
                dresidual_rest.copy_from_slice(&last[..x_rest.len()]);
            }
            group(&mut last, &dout, &output, word, &x, &rest_affine);
            dx_rest.copy_from_slice(&last[..x_rest.len()]);
        }
        top.into_iter().fold(0, u32::max)
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
                        let mut dx = vec![f32::NAN; rows * c];
                        let (mut dgamma, mut dbeta) = (vec![f32::NAN; c], vec![f32::NAN; c]);
                        let mut dresidual = vec![f32::NAN; rows * c];
                        let gradients = Gradients {
                            dx: &mut dx,
                            dgamma: &mut dgamma,
                            dbeta: &mut dbeta,
                            dresidual: Some(&mut dresidual),
                        };
                        let top = backward(&dout, gate, &x, [&s.mean, &s.rstd], &gamma, gradients)
                            .unwrap();
                        assert_eq!(top, absmax(&dx));
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
            let mut dx = vec![0.0; rows * c];
            let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
            let gradients =
                Gradients { dx: &mut dx, dgamma: &mut dgamma, dbeta: &mut dbeta, dresidual: None };
            backward(&dout, Gate::Open, &x, [&s.mean, &s.rstd], &gamma, gradients).unwrap();
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
        let gradients =
            Gradients { dx: &mut [], dgamma: &mut dgamma, dbeta: &mut dbeta, dresidual: None };
        assert_eq!(backward(&[], Gate::Open, &[], [&[0.0], &[1.0]], &[1.0], gradients), Ok(0.0));
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
