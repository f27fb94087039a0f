//! What tests of several operations share.

use crate::Level;
use crate::dispatch::forced;

/// Numbers in [-1, 1), the same for the same seed.
pub(crate) fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// The same work on 1, 2 and 3 threads and at every level of this machine gives the same bits, which are returned.
pub(crate) fn same_everywhere(work: impl Fn() -> Vec<Vec<f32>> + Sync) -> Vec<Vec<f32>> {
    let bits = |v: &Vec<Vec<f32>>| -> Vec<Vec<u32>> {
        v.iter().map(|v| v.iter().map(|x| x.to_bits()).collect()).collect()
    };
    let first = work();
    for threads in 1..=3 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(bits(&pool.install(&work)) == bits(&first), "{threads} threads");
    }
    for level in Level::available() {
        assert!(bits(&forced::at(level, &work)) == bits(&first), "{level:?}");
    }
    first
}

/// Every value is within a tolerance, relative to the largest expected magnitude.
#[track_caller]
pub(crate) fn assert_close(what: &str, actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let top = expected.iter().fold(1e-30, |m: f64, v| m.max(v.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(*a) - e).abs();
        assert!(error <= tolerance * top, "{what}[{i}]: {a} instead of {e}");
    }
}

/// The gradient of `loss` by central differences.
pub(crate) fn slope(at: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = at.to_vec();
    (0..x.len())
        .map(|i| {
            let step = 1e-5;
            x[i] = at[i] + step;
            let up = loss(&x);
            x[i] = at[i] - step;
            let down = loss(&x);
            x[i] = at[i];
            (up - down) / (2.0 * step)
        })
        .collect()
}

/// The values as f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// `sum of a * b`.
pub(crate) fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}

/// The largest magnitude; NaN if any value is.
pub(crate) fn absmax(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, v| if v.is_nan() || m < v.abs() { v.abs() } else { m })
}
