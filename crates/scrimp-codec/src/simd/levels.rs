//! Loops of the codecs whose codes name one of two or three levels: sums over blocks, codes of values, values of codes.
//!
//! A sum runs over [`SUM_LANES`] accumulators in `f64`: element `i` goes to accumulator `i mod SUM_LANES`, and halves of
//! the accumulators are added to each other until one is left. That order is part of the definition, so that neither
//! threads nor instruction sets change a sum.

#[cfg(target_arch = "x86_64")]
use super::Level;
use super::level;

/// Accumulators of a sum.
const SUM_LANES: usize = 16;

/// The sum of `N` quantities of each value.
#[inline(always)]
fn sums<const N: usize>(x: &[f32], each: impl Fn(f32) -> [f64; N]) -> [f64; N] {
    let mut lanes = [[0.0; SUM_LANES]; N];
    let (chunks, rest) = x.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for l in 0..SUM_LANES {
            let terms = each(chunk[l]);
            for (sum, term) in lanes.iter_mut().zip(terms) {
                sum[l] += term;
            }
        }
    }
    for (l, v) in rest.iter().enumerate() {
        for (sum, term) in lanes.iter_mut().zip(each(*v)) {
            sum[l] += term;
        }
    }
    lanes.map(|mut lanes| {
        let mut half = SUM_LANES / 2;
        while half > 0 {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
            half /= 2;
        }
        lanes[0]
    })
}

versions! {
    /// The sum of magnitudes.
    fn magnitudes(x: &[f32]) -> f64 {
        let [sum] = sums(x, |v| [f64::from(v.abs())]);
        sum
    }
}

versions! {
    /// The sum of the magnitudes above `cut`, and how many there are.
    fn magnitudes_above(x: &[f32], cut: f32) -> [f64; 2] {
        sums(x, |v| {
            let a = v.abs();
            let above = a > cut;
            [f64::from(if above { a } else { 0.0 }), f64::from(if above { 1.0f32 } else { 0.0 })]
        })
    }
}

versions! {
    /// The sums of the negative values and of all others, and how many are negative.
    fn sides(x: &[f32]) -> [f64; 3] {
        sums(x, |v| {
            let negative = v < 0.0;
            [
                f64::from(if negative { v } else { 0.0 }),
                f64::from(if negative { 0.0 } else { v }),
                f64::from(if negative { 1.0f32 } else { 0.0 }),
            ]
        })
    }
}

versions! {
    /// The mean, and the sum of squared distances from it.
    fn moments(x: &[f32]) -> [f64; 2] {
        let [sum] = sums(x, |v| [f64::from(v)]);
        let mean = sum / x.len() as f64;
        let [square] = sums(x, |v| {
            let d = f64::from(v) - mean;
            [d * d]
        });
        [mean, square]
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
    let x = if x > limit { limit } else { x };
    let x = if x < -limit { -limit } else { x };
    let share = x / scale;
    if share > 1.0 {
        1.0
    } else if share < -1.0 {
        -1.0
    } else {
        share
    }
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
