//! Loops of the codecs whose codes name one of two or three levels: sums over blocks, codes of values, values of codes.
//!
//! A sum runs over [`SUM_LANES`] accumulators in `f64`: element `i` goes to accumulator `i mod SUM_LANES`, and halves of
//! the accumulators are added to each other until one is left. That order is part of the definition, so that neither
//! threads nor instruction sets change a sum.

use super::clamp;

/// Accumulators of a sum.
const SUM_LANES: usize = 16;

/// How many values `counts` is true for.
#[inline(always)]
fn count(x: &[f32], counts: impl Fn(f32) -> bool) -> u32 {
    x.iter().map(|v| u32::from(counts(*v))).sum()
}

/// The sum of what `term` makes of each value.
#[inline(always)]
fn sum(x: &[f32], term: impl Fn(f32) -> f64) -> f64 {
    let mut lanes = [0.0; SUM_LANES];
    let (chunks, rest) = x.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for l in 0..SUM_LANES {
            lanes[l] += term(chunk[l]);
        }
    }
    for (l, v) in rest.iter().enumerate() {
        lanes[l] += term(*v);
    }
    fold(lanes)
}

#[inline(always)]
fn fold(mut lanes: [f64; SUM_LANES]) -> f64 {
    let mut half = SUM_LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

versions! {
    /// The sum of magnitudes.
    fn magnitudes(x: &[f32]) -> f64 {
        sum(x, |v| f64::from(v.abs()))
    }
}

versions! {
    /// The sum of the magnitudes above `cut`, and how many there are.
    fn magnitudes_above(x: &[f32], cut: f32) -> (f64, u32) {
        let sum = sum(x, |v| f64::from(if v.abs() > cut { v.abs() } else { 0.0 }));
        (sum, count(x, |v| v.abs() > cut))
    }
}

versions! {
    /// The sum of the values from zero on, that of all others, and how many these others are.
    fn sides(x: &[f32]) -> (f64, f64, u32) {
        let above = sum(x, |v| f64::from(if is_negative(v) { 0.0 } else { v }));
        let below = sum(x, |v| f64::from(if is_negative(v) { v } else { 0.0 }));
        (above, below, count(x, is_negative))
    }
}

versions! {
    /// The mean, and the sum of squared distances from it.
    fn moments(x: &[f32]) -> (f64, f64) {
        let mean = sum(x, f64::from) / x.len() as f64;
        let square = sum(x, |v| {
            let d = f64::from(v) - mean;
            d * d
        });
        (mean, square)
    }
}

versions! {
    /// 0 for a negative value and 1 for all others, zeros of both signs and NaN among them.
    fn side_codes(x: &[f32], codes: &mut [u8]) {
        for (v, code) in x.iter().zip(codes) {
            *code = u8::from(!is_negative(*v));
        }
    }
}

versions! {
    /// The level of each value's side.
    fn side_values(x: &mut [f32], negative: f32, other: f32) {
        for v in x {
            *v = if is_negative(*v) { negative } else { other };
        }
    }
}

#[inline(always)]
fn is_negative(v: f32) -> bool {
    v < 0.0
}

versions! {
    /// 0 for a magnitude of at most `cut` and for NaN, else 1 above zero and 2 below.
    fn magnitude_codes(x: &[f32], cut: f32, codes: &mut [u8]) {
        for (v, code) in x.iter().zip(codes) {
            let sign = 1 + (v.to_bits() >> 31) as u8;
            *code = if v.abs() > cut { sign } else { 0 };
        }
    }
}

versions! {
    /// `levels[0]` for a magnitude of at most `cut` and for NaN, else `levels[1]` above zero and `levels[2]` below.
    fn magnitude_values(x: &mut [f32], cut: f32, levels: [f32; 3]) {
        for v in x {
            let [zero, above, below] = levels;
            let side = if *v < 0.0 { below } else { above };
            *v = if v.abs() > cut { side } else { zero };
        }
    }
}

/// Whether the magnitude of a share of the scale is rounded up to 1: `floor(share + u)` is not 0, for a share from -1
/// to 1 and `u = draw / 2^24`. Both sides of each comparison are exact.
#[inline(always)]
fn is_drawn(share: f32, draw: u32) -> bool {
    let draw = draw.cast_signed() as f32;
    let needed = if share < 0.0 { draw } else { 16_777_216.0 - draw } * (1.0 / 16_777_216.0);
    let a = share.abs();
    if share < 0.0 { a > needed } else { a >= needed }
}

#[inline(always)]
fn share(x: f32, limit: f32, scale: f32) -> f32 {
    clamp(clamp(x, -limit, limit) / scale, -1.0, 1.0)
}

versions! {
    /// The codes of `floor(clamp(x, -limit, limit) / scale + u)`: 0, 1, and 2 for -1.
    fn drawn_codes(x: &[f32], draws: &[u32], limit: f32, scale: f32, codes: &mut [u8]) {
        for ((v, draw), code) in x.iter().zip(draws).zip(codes) {
            let share = share(*v, limit, scale);
            let sign = 1 + (share.to_bits() >> 31) as u8;
            *code = if is_drawn(share, *draw) { sign } else { 0 };
        }
    }
}

versions! {
    /// The levels of [`drawn_codes`].
    fn drawn_values(x: &mut [f32], draws: &[u32], limit: f32, scale: f32, levels: [f32; 3]) {
        for (v, draw) in x.iter_mut().zip(draws) {
            let [zero, above, below] = levels;
            let share = share(*v, limit, scale);
            let side = if share < 0.0 { below } else { above };
            *v = if is_drawn(share, *draw) { side } else { zero };
        }
    }
}

versions! {
    /// The levels that codes name.
    fn values(codes: &[u8], levels: [f32; 3], out: &mut [f32]) {
        let [zero, one, two] = levels;
        for (code, v) in codes.iter().zip(out) {
            let rest = if *code == 0 { zero } else { two };
            *v = if *code == 1 { one } else { rest };
        }
    }
}
