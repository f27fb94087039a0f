//! Scores against figures from other libraries; see `tools/golden_score.py`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use scrimp::codec::{Scheme, Stream};
use scrimp::score::{Distribution, Scorer};

/// The values of a case, by the rule in the header of the file.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the rule")]
fn values(count: usize, power: u32, factor: f64) -> Vec<f32> {
    let value = |i: u32| {
        let u = f64::from(2_654_435_761u32.wrapping_mul(i + 1)) / 2f64.powi(31) - 1.0;
        (0..power).fold(factor, |x, _| x * u) as f32
    };
    (0..u32::try_from(count).unwrap()).map(value).collect()
}

fn assert_close(actual: f64, expected: &str, what: &str) {
    let expected: f64 = expected.parse().unwrap();
    // Sums of ours are rounded; those of the file are exact.
    let error = (actual - expected).abs();
    assert!(error <= 1e-11 * expected.abs().max(1e-11), "{what}: {actual} and not {expected}");
}

#[test]
fn figures_are_those_of_other_libraries() {
    let table = include_str!("golden/score.csv");
    let mut lines = table.lines().filter(|line| !line.starts_with('#'));
    let columns: Vec<&str> = lines.next().unwrap().split(',').collect();
    let mut scorer = Scorer::default();
    let mut cases = 0;
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let field = |name: &str| fields[columns.iter().position(|c| *c == name).unwrap()];
        let count = |name: &str| field(name).parse::<usize>().unwrap();
        let case = format!("{} {} x {}", field("scheme"), field("rows"), field("cols"));
        let shape = [count("rows"), count("cols")];
        let power = u32::try_from(count("power")).unwrap();
        let x = values(shape[0] * shape[1], power, field("factor").parse().unwrap());

        let scheme: Scheme = field("scheme").parse().unwrap();
        let score = scorer.score(&x, &shape, &scheme, &Stream::new(0, 0)).unwrap();
        let whole = |name: &str| count(name) as u64;
        assert_eq!(score.bytes, whole("bytes"), "{case}");
        assert_eq!(score.values(), x.len() as u64, "{case}");
        assert_eq!(score.loss.zeroed, whole("zeroed"), "{case}");
        assert_eq!(score.saturated, Some(whole("saturated")), "{case}");
        assert_close(score.loss.sqnr_db().unwrap(), field("sqnr_db"), &case);
        assert_close(score.loss.cosine().unwrap(), field("cosine"), &case);
        assert_close(score.loss.max_error, field("max_error"), &case);
        assert_close(score.loss.amax, field("amax"), &case);

        let spread = Distribution::of(&x);
        assert_eq!((spread.values, spread.nonfinite), (x.len() as u64, 0), "{case}");
        assert_eq!(spread.within_one, whole("within_1"), "{case}");
        assert_eq!(spread.within_outer, whole("within_2.5"), "{case}");
        let bins: Vec<u64> = field("bins").split(' ').map(|bin| bin.parse().unwrap()).collect();
        assert_eq!(spread.bins.as_slice(), bins, "{case}");
        assert_eq!(spread.values - spread.bins.iter().sum::<u64>(), whole("beyond"), "{case}");
        for (actual, name) in [(spread.min, "min"), (spread.max, "max"), (spread.std, "std")] {
            assert_close(actual, field(name), &format!("{case} {name}"));
        }
        // A mean near zero is what large terms leave of each other.
        let mean: f64 = field("mean").parse().unwrap();
        assert!((spread.mean - mean).abs() <= 1e-12 * spread.std, "{case}: mean {}", spread.mean);
        cases += 1;
    }
    assert_eq!(cases, 8);
}
