//! Elementary functions that the compiler can turn into vector code.

/// `e^x` to 1 unit in the last place; zero and infinity beyond the range of f32, NaN for NaN.
///
/// # Source
/// Polynomial: Cephes `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding it rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // Beyond these the result is zero or infinite; NaN passes both.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let t = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(-LN2[0], x);
    let r = n.mul_add(-LN2[1], r);
    let p = 1.987_569_1e-4f32
        .mul_add(r, 1.398_199_9e-3)
        .mul_add(r, 8.333_452e-3)
        .mul_add(r, 4.166_579_6e-2)
        .mul_add(r, 1.666_666_5e-1)
        .mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    // In two factors, neither of which leaves the range of exponents.
    let n = t.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned());
    y * power(half) * power(n.wrapping_sub(half))
}

/// The error function to 1 unit in the last place.
///
/// # Source
/// Polynomials: N. Juffa, "Computing the error function with single precision", forums.developer.nvidia.com.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let (t, s) = (x.abs(), x * x);
    let far = (-1.728_534_7e-5f32).mul_add(t, 3.831_972e-4);
    let u = (-3.883_964_4e-3f32).mul_add(t, 2.425_462_2e-2);
    let far = far.mul_add(s, u).mul_add(t, -1.067_778_8e-1);
    let far = far.mul_add(t, -6.348_467e-1).mul_add(t, -1.287_175_1e-1).mul_add(t, -t);
    let far = (1.0 - exp(far)).copysign(x);
    let near = (-5.967_617e-4f32)
        .mul_add(s, 4.991_194_2e-3)
        .mul_add(s, -2.676_813_5e-2)
        .mul_add(s, 1.128_199_2e-1)
        .mul_add(s, -3.761_253_4e-1)
        .mul_add(s, 1.283_791_7e-1)
        .mul_add(x, x);
    if t > 0.927_734_4 { far } else { near }
}

/// How many sums run beside each other in a row.
const LANES: usize = 32;

/// The sum of `term(x[i], y[i], z[i])`.
#[inline(always)]
pub(crate) fn sum3(x: &[f32], y: &[f32], z: &[f32], term: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    let (zs, z_rest) = z.as_chunks::<LANES>();
    for ((x, y), z) in xs.iter().zip(ys).zip(zs) {
        for l in 0..LANES {
            sums[l] += term(x[l], y[l], z[l]);
        }
    }
    let mut rest = 0.0;
    for ((x, y), z) in x_rest.iter().zip(y_rest).zip(z_rest) {
        rest += term(*x, *y, *z);
    }
    // The compiler would arrange the loop above for the tree below, and gather.
    halved(std::hint::black_box(sums), |a, b| a + b) + rest
}

/// The sum of `term(x[i], y[i])`.
#[inline(always)]
pub(crate) fn sum2(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    sum3(x, y, y, |x, y, _| term(x, y))
}

/// The sum of `term(x[i])`.
#[inline(always)]
pub(crate) fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    sum3(x, x, x, |x, _, _| term(x))
}

/// The largest value that is not NaN; minus infinity if there is none.
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    let max = |a: f32, b: f32| if b > a { b } else { a };
    let mut tops = [f32::NEG_INFINITY; LANES];
    let (xs, rest) = x.as_chunks::<LANES>();
    for x in xs {
        for l in 0..LANES {
            tops[l] = max(tops[l], x[l]);
        }
    }
    rest.iter().fold(halved(tops, max), |top, x| max(top, *x))
}

/// All lanes in one, by halves.
#[inline(always)]
fn halved(lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    #[inline(always)]
    fn half<const N: usize, const H: usize>(
        lanes: [f32; N],
        join: impl Fn(f32, f32) -> f32,
    ) -> [f32; H] {
        let mut half = [0.0; H];
        for l in 0..H {
            half[l] = join(lanes[l], lanes[l + H]);
        }
        half
    }
    let lanes: [f32; 16] = half(lanes, join);
    let lanes: [f32; 8] = half(lanes, join);
    let lanes: [f32; 4] = half(lanes, join);
    let [a, b] = half(lanes, join);
    join(a, b)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Series and continued fraction, in f64.
    pub(crate) fn erf_definition(x: f64) -> f64 {
        let a = x.abs();
        let value = if a < 3.0 {
            let (mut term, mut sum) = (a, a);
            for n in 1..100 {
                let n = f64::from(n);
                term *= -a * a / n;
                sum += term / (2.0 * n + 1.0);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        } else {
            let fraction = (1..60).rev().fold(0.0, |f, n| f64::from(n) / 2.0 / (a + f));
            1.0 - (-a * a).exp() / ((a + fraction) * std::f64::consts::PI.sqrt())
        };
        value.copysign(x)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the nearest f32 tells the unit")]
    fn ulps(actual: f32, expected: f64) -> f64 {
        let near = (expected.abs() as f32).max(f32::MIN_POSITIVE);
        let ulp = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
        (f64::from(actual) - expected).abs() / ulp
    }

    #[test]
    fn functions_are_near_their_definitions() {
        for i in -120_000..120_000i32 {
            let x = i as f32 / 1000.0;
            let wide = f64::from(x);
            if x < 88.7 {
                let error = ulps(exp(x), wide.exp());
                assert!(error <= 1.5, "exp({x}) = {}, {error} ulp", exp(x));
            }
            let error = ulps(erf(x), erf_definition(wide));
            assert!(error <= 1.5, "erf({x}) = {}, {error} ulp", erf(x));
        }
    }

    #[test]
    fn ends_are_exact() {
        assert_eq!([0.0, f32::NEG_INFINITY, f32::INFINITY].map(exp), [1.0, 0.0, f32::INFINITY]);
        assert_eq!([0.0, f32::NEG_INFINITY, f32::INFINITY, 1e30].map(erf), [0.0, -1.0, 1.0, 1.0]);
        assert!([exp, erf].iter().all(|f| f(f32::NAN).is_nan()));
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(100.0), f32::INFINITY);
    }

    #[test]
    fn rows_of_any_length_are_summed() {
        for n in [0u8, 1, 3, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..n).map(f32::from).collect();
            assert_eq!(sum(&x, |v| v), x.iter().sum());
            assert_eq!(sum2(&x, &x, |a, b| a - b), 0.0);
            assert_eq!(largest(&x), x.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
    }
}
