//! Rounding that makes up for what it loses.
//!
//! Weights of a row are rounded one after the other; what one loses is spread over those that are still to come, by how the
//! inputs that they multiply go together on the calibration data.
//!
//! # Source
//! Frantar et al. 2023, arXiv:2210.17323. Differs: scales are fixed before, since codes of ONNX cannot be permuted;
//! everything is in f64; and before it is rounded a row is fitted to what the layers before it really give, so that it
//! makes up for their loss as well: `W' = (W C + λ W) (H + λ)^-1`, with `H` the moments of the inputs as they are and `C`
//! those between the float model's inputs and them. The least squares solution, drawn towards the float weight.

use rayon::prelude::*;

use crate::weights::{Layout, Packed};

/// What is added to the diagonal, as a share of its mean.
const DAMPING: f64 = 0.01;

/// How the inputs of a layer go together: `sum x x^T` over the places where its rows are applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Inputs of one row.
    pub len: usize,
    /// `[len, len]`, one matrix for each group of a grouped convolution.
    pub sums: Vec<Vec<f64>>,
    /// `[len, len]` for each group: `sum x_float x^T`, the rows by the inputs of the float model.
    pub cross: Vec<Vec<f64>>,
    /// Places.
    pub count: usize,
}

impl Moments {
    /// Of nothing yet.
    pub fn new(len: usize, groups: usize) -> Self {
        let zeros = vec![vec![0.0; len * len]; groups];
        Self { len, cross: zeros.clone(), sums: zeros, count: 0 }
    }

    /// The mean square of each input, for one group.
    pub fn squares(&self, group: usize) -> Vec<f32> {
        let sums = &self.sums[group];
        #[expect(clippy::cast_possible_truncation, reason = "weights of a search")]
        let mean = |at: usize| (sums[at * self.len + at] / self.count.max(1) as f64) as f32;
        (0..self.len).map(mean).collect()
    }
}

/// Fits the rows of a weight to the inputs that they will meet.
///
/// # Panics
/// If the moments are those of another layer.
pub fn refit(values: &[f32], layout: &Layout, moments: &Moments) -> Vec<f32> {
    let (rows, len) = (layout.rows(), layout.row_len());
    assert_eq!(len, moments.len, "moments of another layer");
    let per_group = rows / moments.sums.len();
    let mut weights = layout.to_rows(values);
    for (group, weights) in weights.chunks_mut(per_group * len).enumerate() {
        let (sums, cross) = (&moments.sums[group], &moments.cross[group]);
        let mean = (0..len).map(|at| sums[at * len + at]).sum::<f64>() / len as f64;
        let damping = DAMPING * mean;
        // Inputs that are always zero say nothing of the weights.
        if damping == 0.0 {
            continue;
        }
        let mut matrix = sums.clone();
        (0..len).for_each(|at| matrix[at * len + at] += damping);
        let Some(lower) = cholesky(&matrix, len) else { continue };
        weights.par_chunks_mut(len).for_each(|row| {
            let mut right: Vec<f64> = row.iter().map(|&w| f64::from(w) * damping).collect();
            for (&w, cross) in row.iter().zip(cross.chunks_exact(len)) {
                right.iter_mut().zip(cross).for_each(|(r, c)| *r += f64::from(w) * c);
            }
            solve(&lower, &mut right);
            #[expect(clippy::cast_possible_truncation, reason = "weights are stored in f32")]
            row.iter_mut().zip(&right).for_each(|(w, r)| *w = *r as f32);
        });
    }
    layout.from_rows(&weights)
}

/// Solves `L L^T x = b` in place.
fn solve(lower: &[f64], x: &mut [f64]) {
    let len = x.len();
    for i in 0..len {
        let dot: f64 = lower[i * len..i * len + i].iter().zip(&*x).map(|(a, b)| a * b).sum();
        x[i] = (x[i] - dot) / lower[i * len + i];
    }
    for i in (0..len).rev() {
        x[i] /= lower[i * len + i];
        let value = x[i];
        for (x, factor) in x[..i].iter_mut().zip(&lower[i * len..i * len + i]) {
            *x -= factor * value;
        }
    }
}

/// Rounds the rows of a weight anew under the scales that `packed` has.
///
/// # Panics
/// If the moments are those of another layer.
pub fn round(values: &[f32], layout: &Layout, moments: &Moments, packed: &mut Packed) {
    let (rows, len) = (layout.rows(), layout.row_len());
    assert_eq!(len, moments.len, "moments of another layer");
    let group_of = packed.sharing.groups(&layout.shape);
    let groups: Vec<usize> = layout.to_rows(&(0..values.len()).map(&group_of).collect::<Vec<_>>());
    let weights = layout.to_rows(values);
    let per_group = rows / moments.sums.len();
    let solved: Vec<Solved> = moments.sums.par_iter().map(|sums| Solved::of(sums, len)).collect();
    let mut codes = vec![0i32; values.len()];
    codes.par_chunks_mut(len).enumerate().for_each(|(row, codes)| {
        let solved = &solved[row / per_group];
        let mut left: Vec<f64> =
            weights[row * len..(row + 1) * len].iter().map(|&w| f64::from(w)).collect();
        for (step, &at) in solved.order.iter().enumerate() {
            let group = groups[row * len + at];
            let (scale, zero) =
                (packed.scales[group], packed.zeros.get(group).copied().unwrap_or(0));
            #[expect(clippy::cast_possible_truncation, reason = "codes are those of f32 values")]
            let wanted = left[at] as f32;
            let code = packed.element.encode(wanted, scale, zero);
            codes[at] = code;
            let lost = left[at] - f64::from(packed.element.decode(code, scale, zero));
            let factors = &solved.upper[step * len..(step + 1) * len];
            let share = lost / factors[step];
            for (factor, &other) in factors.iter().zip(&solved.order).skip(step + 1) {
                left[other] -= share * factor;
            }
        }
    });
    packed.codes = layout.from_rows(&codes);
}

/// The upper factor of the inverse of the damped moments, inputs with large squares first.
struct Solved {
    order: Vec<usize>,
    upper: Vec<f64>,
}

impl Solved {
    fn of(sums: &[f64], len: usize) -> Self {
        let mut order: Vec<usize> = (0..len).collect();
        order.sort_by(|&a, &b| sums[b * len + b].total_cmp(&sums[a * len + a]).then(a.cmp(&b)));
        let mean = (0..len).map(|at| sums[at * len + at]).sum::<f64>() / len as f64;
        let mut damping = DAMPING;
        loop {
            let mut matrix = vec![0.0; len * len];
            for (i, &a) in order.iter().enumerate() {
                for (j, &b) in order.iter().enumerate() {
                    matrix[i * len + j] = sums[a * len + b];
                }
                // An input that is always zero has no influence; its weight is rounded to the nearest.
                let dead = sums[a * len + a] == 0.0;
                matrix[i * len + i] += if dead { 1.0 } else { damping * mean };
            }
            if let Some(upper) = inverse_factor(&matrix, len) {
                return Self { order, upper };
            }
            damping *= 10.0;
            // Sums beyond what an f64 divides by have no factor; every weight is then rounded by itself.
            if !damping.is_finite() || !mean.is_finite() {
                let diagonal = |at: usize| f64::from(u8::from(at.is_multiple_of(len + 1)));
                return Self { order, upper: (0..len * len).map(diagonal).collect() };
            }
        }
    }
}

/// The upper triangular `U` with `U^T U` the inverse of a positive definite matrix; `None` where it is not positive
/// definite in this arithmetic.
fn inverse_factor(matrix: &[f64], len: usize) -> Option<Vec<f64>> {
    let lower = cholesky(matrix, len)?;
    // The columns of the inverse of the lower factor, row by row.
    let mut inverse = vec![0.0; len * len];
    for i in 0..len {
        let (done, rest) = inverse.split_at_mut(i * len);
        let row = &mut rest[..len];
        row[i] = 1.0;
        for k in 0..i {
            let factor = lower[i * len + k];
            if factor != 0.0 {
                for (r, d) in row[..=k].iter_mut().zip(&done[k * len..=k * len + k]) {
                    *r -= factor * d;
                }
            }
        }
        let pivot = lower[i * len + i];
        row[..=i].iter_mut().for_each(|v| *v /= pivot);
    }
    // A^-1 = L^-T L^-1, whose upper factor is asked for.
    let mut full = vec![0.0; len * len];
    for k in 0..len {
        let row = &inverse[k * len..(k + 1) * len];
        for i in 0..=k {
            let factor = row[i];
            if factor != 0.0 {
                for (f, r) in full[i * len..=i * len + k].iter_mut().zip(&row[..=k]) {
                    *f += factor * r;
                }
            }
        }
    }
    let lower = cholesky(&full, len)?;
    let mut upper = vec![0.0; len * len];
    for i in 0..len {
        for j in 0..=i {
            upper[j * len + i] = lower[i * len + j];
        }
    }
    Some(upper)
}

fn cholesky(matrix: &[f64], len: usize) -> Option<Vec<f64>> {
    let mut lower = vec![0.0; len * len];
    for i in 0..len {
        let (done, rest) = lower.split_at_mut(i * len);
        let row = &mut rest[..len];
        for j in 0..i {
            let other = &done[j * len..j * len + j];
            let dot: f64 = row[..j].iter().zip(other).map(|(a, b)| a * b).sum();
            row[j] = (matrix[i * len + j] - dot) / done[j * len + j];
        }
        let pivot = matrix[i * len + i] - row[..i].iter().map(|v| v * v).sum::<f64>();
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        row[i] = pivot.sqrt();
    }
    Some(lower)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Element;
    use crate::weights::Sharing;

    /// Four places with three inputs each.
    const INPUTS: [[f64; 3]; 4] =
        [[1.0, 0.8, 0.1], [0.9, 1.0, -0.2], [-0.5, -0.6, 1.0], [0.2, 0.1, 0.9]];

    fn moments_of(inputs: &[[f64; 3]]) -> Moments {
        let mut moments = Moments::new(3, 1);
        for x in inputs {
            for i in 0..3 {
                for j in 0..3 {
                    moments.sums[0][i * 3 + j] += x[i] * x[j];
                }
            }
        }
        moments.cross = moments.sums.clone();
        moments.count = inputs.len();
        moments
    }

    fn packed(rows: usize, scale: f32) -> Packed {
        Packed {
            element: Element::named("int8").unwrap(),
            shape: vec![rows, 3],
            sharing: Sharing::Tensor,
            scales: vec![scale],
            powers: false,
            zeros: Vec::new(),
            codes: Vec::new(),
        }
    }

    fn rounded(weights: &[f32], moments: &Moments, scale: f32) -> Vec<f32> {
        let layout = Layout { shape: vec![weights.len() / 3, 3], axis: 0 };
        let mut packed = packed(layout.rows(), scale);
        round(weights, &layout, moments, &mut packed);
        packed.values()
    }

    /// What a row gives wrong at all places, squared.
    fn error(weights: &[f32], rounded: &[f32]) -> f64 {
        let off = |x: &[f64; 3]| -> f64 {
            let terms = x.iter().zip(weights).zip(rounded);
            terms.map(|((x, w), r)| x * f64::from(w - r)).sum()
        };
        INPUTS.iter().map(|x| off(x).powi(2)).sum()
    }

    #[test]
    fn rows_worked_out_by_hand_get_these_codes() {
        let moments = moments_of(&INPUTS);
        // Errors in thousandths.
        for (weights, expected, lost, nearest_lost) in [
            ([0.7f32, 0.7, 0.2], [0.5f32, 1.0, 0.5], 124.5, 318.0),
            ([0.72, -0.3, 0.4], [0.5, 0.0, 0.5], 14.3, 421.2),
        ] {
            let found = rounded(&weights, &moments, 0.5);
            assert_eq!(found, expected);
            assert!((1e3 * error(&weights, &found) - lost).abs() < 0.1);
            let nearest = weights.map(|w| (w / 0.5).round_ties_even() * 0.5);
            assert!((1e3 * error(&weights, &nearest) - nearest_lost).abs() < 0.1);
        }
    }

    #[test]
    fn on_average_less_is_lost_than_by_the_nearest_codes() {
        let moments = moments_of(&INPUTS);
        let (mut ours, mut nearest) = (0.0, 0.0);
        for at in 0..500u16 {
            let part = |k: f32| (f32::from(at) * k).sin();
            let weights = [part(0.37), part(1.11), part(2.03)];
            ours += error(&weights, &rounded(&weights, &moments, 0.25));
            nearest += error(&weights, &weights.map(|w| (w / 0.25).round_ties_even() * 0.25));
        }
        assert!(ours < 0.8 * nearest, "{ours}, {nearest}");
    }

    #[test]
    fn inputs_that_say_nothing_leave_the_nearest_codes() {
        let weights = [0.3, -0.7, 1.2];
        let nearest = weights.map(|w: f32| (w / 0.5).round_ties_even() * 0.5);
        let silent = Moments::new(3, 1);
        assert_eq!(rounded(&weights, &silent, 0.5), nearest);
        // The middle input is always zero: its weight is rounded by itself.
        let half = INPUTS.map(|[a, _, c]| [a, 0.0, c]);
        assert_eq!(rounded(&weights, &moments_of(&half), 0.5)[1], nearest[1]);
        // Sums that overflowed end as well.
        let mut endless = moments_of(&INPUTS);
        endless.sums[0][4] = f64::INFINITY;
        assert_eq!(rounded(&weights, &endless, 0.5), nearest);
        endless.sums[0][4] = f64::NAN;
        assert_eq!(rounded(&weights, &endless, 0.5), nearest);
        let layout = Layout { shape: vec![1, 3], axis: 0 };
        assert_eq!(refit(&weights, &layout, &silent), weights);
    }

    #[test]
    fn a_refitted_row_undoes_what_a_layer_before_it_did() {
        // The inputs came out twice as large as those of the float model.
        let mut moments = moments_of(&INPUTS.map(|x| x.map(|v| 2.0 * v)));
        for v in &mut moments.cross[0] {
            *v /= 2.0;
        }
        let layout = Layout { shape: vec![1, 3], axis: 0 };
        let found = refit(&[0.8, -0.4, 0.6], &layout, &moments);
        let wanted = [0.4, -0.2, 0.3];
        let (off, signal) = (error(&wanted, &found), error(&wanted, &[0.0; 3]));
        assert!(off < 0.02 * signal, "{found:?}: {off} of {signal}");
        // With the inputs of the float model nothing changes.
        let found = refit(&[0.8, -0.4, 0.6], &layout, &moments_of(&INPUTS));
        for (found, wanted) in found.into_iter().zip([0.8, -0.4, 0.6]) {
            assert!((found - wanted).abs() < 1e-6, "{found}, {wanted}");
        }
    }

    #[test]
    fn the_factor_gives_the_inverse() {
        let matrix = [4.0, 1.0, 0.5, 1.0, 3.0, -0.25, 0.5, -0.25, 2.0];
        let upper = inverse_factor(&matrix, 3).unwrap();
        for i in 0..3 {
            for j in 0..3 {
                // (U^T U) A is the identity.
                let inverse = |a: usize, b: usize| -> f64 {
                    (0..3).map(|k| upper[k * 3 + a] * upper[k * 3 + b]).sum()
                };
                let product: f64 = (0..3).map(|k| inverse(i, k) * matrix[k * 3 + j]).sum();
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-12, "{i}, {j}");
            }
        }
        assert!(inverse_factor(&[1.0, 2.0, 2.0, 1.0], 2).is_none());
    }
}
