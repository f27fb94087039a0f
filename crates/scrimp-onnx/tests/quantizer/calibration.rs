//! Ranges: those of torch's observers and of numpy, and what holds for every method on any values.

use scrimp_onnx::Element;
use scrimp_onnx::calibration::{CALIBRATIONS, Histogram, Stats, find};

use super::{bell, floats, mix, parse, rows};

const COUNT: u32 = 20_000;
const BATCH: usize = 5_000;

fn laplace(i: u32) -> f32 {
    let h = mix(i);
    let value = h >> 1 | 1;
    let zeros = value.leading_zeros();
    let below = if zeros == 31 { 0 } else { value << (zeros + 1) >> 16 };
    let whole = (zeros - 1) * 65536 + 65535 - below;
    let magnitude = whole as f32 * 2f32.powi(-16);
    if h & 1 == 1 { -magnitude } else { magnitude }
}

fn inputs(kind: &str) -> Vec<f32> {
    let value = |i: u32| match kind {
        "laplace" => laplace(i),
        "relu" => bell(i).max(0.0),
        "outlier" if i == 777 => 20.0,
        "normal" | "outlier" => bell(i),
        "shifted" => bell(i) * 0.125 + 4.0,
        "growing" => bell(i) * (i / 5000 + 1) as f32,
        "constant" => 0.75,
        "zeros" => 0.0,
        other => panic!("{other}"),
    };
    (0..COUNT).map(value).collect()
}

fn seen(values: &[f32]) -> Stats {
    let mut stats = Stats::default();
    values.chunks(BATCH).for_each(|batch| stats.add(batch));
    stats
}

fn element(name: &str) -> Element {
    Element::named(name).unwrap()
}

/// The sum of squared errors of the values themselves.
fn squared_error(values: &[f32], element: &Element, range: [f32; 2], symmetric: bool) -> f64 {
    let (scale, zero) = element.fit(range[0], range[1], symmetric);
    let lost = |&v: &f32| {
        let rounded = element.decode(element.encode(v, scale, zero), scale, zero);
        f64::from(v - rounded).powi(2)
    };
    values.iter().map(lost).sum()
}

#[test]
fn ranges_are_those_of_other_implementations() {
    let mut checked = 0;
    for row in rows(include_str!("../golden/calibration.csv"), 5) {
        let [kind, method, name, range, number] = row[..] else { unreachable!() };
        if method == "aciq" {
            continue;
        }
        let values = inputs(kind);
        let stats = seen(&values);
        let symmetric = name.starts_with("int");
        let element = element(name);
        let found = find(method).unwrap().range(&stats, &element, symmetric);
        let found = [found.min, found.max];
        if method == "mse" {
            // Theirs is the least of a grid, ours of a search on a histogram.
            let (ours, theirs) =
                (squared_error(&values, &element, found, symmetric), parse::<f64>(number));
            assert!(ours <= theirs * 1.01, "{row:?}: {ours}");
            checked += 1;
            continue;
        }
        let theirs = floats(range);
        if method == "entropy" {
            // The divergence has many minima of nearly the same depth.
            let threshold = found[1].max(-found[0]);
            let near = theirs[0] * 0.99..=theirs[1] * 1.01;
            assert!(near.contains(&threshold), "{row:?}: {threshold}, {near:?}");
            checked += 1;
            continue;
        }
        let width = stats.histogram.width() as f32;
        let bin = 2.0 * stats.range.amax() / 2048.0;
        let tolerance = match method.split(':').next().unwrap() {
            "min-max" => 0.0,
            "moving-average" => 1e-6,
            "percentile" => width,
            // Its steps are decided by sums whose last bits differ, and by values at the edges of bins.
            "l2" => 4.0 * bin,
            other => panic!("{other}"),
        };
        for (ours, theirs) in found.into_iter().zip(theirs) {
            assert!((ours - theirs).abs() <= tolerance, "{row:?}: {found:?}, {theirs}, {bin}");
        }
        checked += 1;
    }
    assert!(checked > 70, "{checked}");
}

#[test]
fn the_multiples_of_the_laplace_distribution_are_those_of_the_least_error() {
    for row in rows(include_str!("../golden/calibration.csv"), 5).filter(|row| row[1] == "aciq") {
        // Mean 0 and mean absolute deviation 1, and one value so large that the range does not cut in.
        let mut values = [1.0, -1.0].repeat(1 << 16);
        values.extend([100.0, -100.0]);
        let stats = seen(&values);
        let range = find("aciq").unwrap().range(&stats, &element(row[2]), false);
        let wanted: f32 = parse(row[4]);
        let half = (range.max - range.min) / 2.0;
        assert!((half / wanted - 1.0).abs() < 0.01, "{row:?}: {range:?}");
        assert!((range.min + range.max).abs() <= stats.histogram.width() as f32, "{range:?}");
    }
}

/// Values of every sort that a layer may give.
fn sorts() -> Vec<(&'static str, Vec<f32>)> {
    let named = ["normal", "laplace", "relu", "outlier", "shifted", "growing", "constant", "zeros"];
    let mut sorts: Vec<(&str, Vec<f32>)> =
        named.iter().map(|&kind| (kind, inputs(kind)[..4000].to_vec())).collect();
    sorts.push(("negative", inputs("relu")[..4000].iter().map(|v| -v - 0.5).collect()));
    sorts.push(("negative constant", vec![-5.0; 100]));
    sorts.push(("constant between bins", vec![4.999; 7]));
    sorts.push(("one value", vec![-3.0]));
    sorts.push(("two values", vec![-1.0, 1.0]));
    sorts.push(("two values of one sign", vec![2.0, 7.0]));
    // 49 is the smallest whole number of which f64 says that 49 (1 / 49) is less than 1.
    sorts.push(("zeros and a threshold of 49", [vec![0.0; 900], vec![-49.0, 49.0, 1.0]].concat()));
    sorts.push(("subnormal", vec![1e-40, -3e-41, 0.0]));
    sorts.push(("huge", vec![f32::MAX, f32::MIN, 1.0]));
    sorts.push(("minus zero", vec![-0.0, 2.0]));
    sorts
}

#[test]
fn every_range_lies_within_what_was_seen_and_its_codes_have_zero() {
    for (kind, values) in sorts() {
        let stats = seen(&values);
        let amax = stats.range.amax();
        for method in CALIBRATIONS {
            // A search is the same for all elements of so many levels.
            let searches = ["mse", "entropy", "l2"].contains(&method.name());
            let tried = |name: &&str| !searches || ["uint8", "int4"].contains(name);
            for name in Element::names().filter(tried) {
                for symmetric in [false, true] {
                    let element = element(name);
                    let range = method.range(&stats, &element, symmetric);
                    let what = format!("{kind}, {}, {name}, {symmetric}: {range:?}", method.name());
                    assert!(range.min.is_finite() && range.max.is_finite(), "{what}");
                    assert!(range.min <= range.max, "{what}");
                    let (low, high) = if symmetric {
                        (-amax, amax)
                    } else {
                        (stats.range.min.min(0.0), stats.range.max.max(0.0))
                    };
                    // A range that is found bin by bin may be a rounding off the value at its end.
                    let slack = amax * 1e-6;
                    assert!(range.min >= low - slack && range.max <= high + slack, "{what}");
                    let (scale, zero) = element.fit(range.min, range.max, symmetric);
                    assert!(scale.is_finite() && scale > 0.0, "{what}: {scale}");
                    let code = element.encode(0.0, scale, zero);
                    assert_eq!(element.decode(code, scale, zero), 0.0, "{what}");
                    if let Some((first, last)) = element.codes() {
                        assert!((first..=last).contains(&zero), "{what}: {zero}");
                    }
                }
            }
        }
    }
}

#[test]
fn stats_of_parts_are_those_of_the_whole_in_any_order() {
    for (kind, values) in sorts() {
        let whole = {
            let mut stats = Stats::default();
            stats.add(&values);
            stats
        };
        let parts: Vec<Stats> = values
            .chunks(values.len().div_ceil(7))
            .map(|part| {
                let mut stats = Stats::default();
                stats.add(part);
                stats
            })
            .collect();
        let merged = |order: &mut dyn Iterator<Item = &Stats>| {
            let mut all = Stats::default();
            order.for_each(|part| all.merge(part));
            all
        };
        for other in [seen(&values), merged(&mut parts.iter()), merged(&mut parts.iter().rev())] {
            assert_eq!(other.count, whole.count, "{kind}");
            assert_eq!(other.histogram, whole.histogram, "{kind}");
            // What the others look at is the histogram.
            let looked_at = ["l2", "min-max", "percentile", "aciq"];
            for method in CALIBRATIONS.iter().filter(|method| looked_at.contains(&method.name())) {
                let range = |stats| method.range(stats, &element("uint8"), false);
                let (a, b) = (range(&whole), range(&other));
                assert_eq!([a.min, a.max], [b.min, b.max], "{kind}, {}", method.name());
            }
        }
    }
}

#[test]
fn a_histogram_grows_as_if_it_had_been_wide_from_the_start() {
    // Magnitudes over 60 powers of two, the largest last, and some of them on the edges of bins.
    let values: Vec<f32> = (0..600)
        .map(|i| {
            let power = 2f32.powi(i / 10 - 30);
            let mantissa = [1.0, 1.5, 1.999, 1.0 + 2f32.powi(-12)][i as usize % 4];
            if i % 3 == 0 { -power * mantissa } else { power * mantissa }
        })
        .collect();
    let counted = |values: &[f32], covered: f32| {
        let mut histogram = Histogram::default();
        histogram.cover(covered);
        for &v in values {
            histogram.cover(v.abs());
            histogram.add(&[v]);
        }
        histogram
    };
    let wide = counted(&values, 2f32.powi(29));
    assert_eq!(counted(&values, 0.0), wide);
    let backward: Vec<f32> = values.iter().rev().copied().collect();
    assert_eq!(counted(&backward, 0.0), wide);
    let (left, right) = values.split_at(211);
    let mut merged = counted(left, 0.0);
    merged.merge(&counted(right, 0.0));
    assert_eq!(merged, wide);
    let total: f64 = wide.bins().map(|(_, n)| n).sum();
    assert_eq!(total, 600.0);
    assert!(wide.bins().is_sorted_by(|a, b| a.0 < b.0));
}

#[test]
fn values_that_are_not_finite_are_counted_and_move_no_range() {
    let mut values = inputs("normal");
    let clean = seen(&values);
    values.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN, f32::NAN]);
    let stats = seen(&values);
    assert_eq!((stats.count, stats.nans, stats.infinities), (u64::from(COUNT), 3, 2));
    assert_eq!(stats.histogram, clean.histogram);
    assert_eq!([stats.range.min, stats.range.max], [clean.range.min, clean.range.max]);

    let mut nothing = Stats::default();
    nothing.add(&[]);
    nothing.add(&[f32::NAN]);
    assert_eq!((nothing.count, nothing.nans, nothing.batches), (0, 1, 0));
    nothing.merge(&clean);
    assert_eq!((nothing.count, nothing.nans), (clean.count, 1));
    assert_eq!(nothing.histogram, clean.histogram);
    let mut other = clean.clone();
    other.merge(&Stats::default());
    assert_eq!(other.histogram, clean.histogram);
    assert_eq!([other.moving.min, other.moving.max], [clean.moving.min, clean.moving.max]);
}

#[test]
fn entropy_is_not_minmax() {
    // Peer failure 3: with as many bins as codes there is one candidate, and the method does nothing.
    let element = element("uint8");
    for kind in ["laplace", "outlier"] {
        let stats = seen(&inputs(kind));
        let found = find("entropy").unwrap().range(&stats, &element, false);
        assert!(found.max < 0.8 * stats.range.max, "{kind}: {found:?} of {:?}", stats.range);
    }
}

#[test]
fn a_name_of_a_method_finds_its_row() {
    for method in CALIBRATIONS {
        assert_eq!(find(method.name()).unwrap().name(), method.name());
        assert!(!method.about().is_empty());
    }
    let refused = |name: &str| find(name).unwrap_err();
    assert_eq!(
        refused("entropie"),
        "unknown calibration `entropie` (did you mean `entropy`?); known are l2, mse, min-max, moving-average, \
         percentile, entropy, aciq"
    );
    for name in ["percentile:50", "percentile:101", "percentile:NaN", "percentile:many"] {
        assert_eq!(
            refused(name),
            format!("`{name}`: a percentile lies above 50 and is at most 100")
        );
    }
}
