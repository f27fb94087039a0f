//! Pictures of a sweep: training curves, and accuracy against bits.

use std::fmt::{self, Write};

use crate::plot::{HUES, Labels, Plot, escape, number, opening, text_width, tick_step, ticks};
use crate::run::Spread;
use crate::score::front;

/// How lines of one colour are told apart: a class of the page for each pattern of dashes.
const DASHES: usize = 4;

/// The colour of a row, as a class of the page.
pub(super) fn hue(row: usize) -> usize {
    row % HUES
}

/// The pattern of dashes of a row's line, as a class of the page.
pub(super) fn dash(row: usize) -> usize {
    row / HUES % DASHES
}

/// The course of a row: a figure after each epoch, or in some steps, over its seeds.
pub(super) struct Curve {
    /// The row.
    pub label: String,
    /// Its number, which gives it its looks.
    pub row: usize,
    /// Epochs or steps in rising order.
    pub points: Vec<(u64, Spread)>,
}

/// A row in the plane of size and accuracy.
pub(super) struct Dot {
    /// The row.
    pub label: String,
    /// Its number, which gives it its looks.
    pub row: usize,
    /// Bits per value.
    pub bits: f64,
    /// Accuracy in percent.
    pub accuracy: Spread,
}

/// A range with round ends that holds all values, those beyond the limits as if they were there.
fn range(values: impl Iterator<Item = f64>, limits: (f64, f64)) -> (f64, f64) {
    let values = values.map(|value| value.clamp(limits.0, limits.1));
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return (0.0, 1.0);
    }
    // Values that are all alike have no extent of their own.
    let extent = (high - low).max(0.02 * high.abs()).max(1e-9);
    let step = tick_step(extent, 5);
    let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
    if high > low { (low, high) } else { (low, low + step) }
}

/// A figure against each `time`, which is `epoch` or `step`: the mean of every row as a line, with a band of one standard
/// deviation to both sides where there are several seeds. What lies beyond the limits is drawn at the edge. `None` where
/// no row has a point.
pub(super) fn curves(
    title: &str,
    time: &str,
    curves: &[Curve],
    limits: (f64, f64),
) -> Option<String> {
    let times = || curves.iter().flat_map(|c| &c.points).map(|(time, _)| *time);
    let (first, last) = (times().min()? as f64, times().max()? as f64);
    let (width, height) = (640.0, 380.0);
    // Names stand beside the ends of the lines, where they have room.
    let names = curves.iter().map(|c| text_width(&c.label)).fold(0.0, f64::max);
    let is_named = curves.len() <= MAX_NAMED && names <= 180.0;
    let right = if is_named { names + 14.0 } else { 14.0 };
    let ends = |(_, s): &(u64, Spread)| [s.mean - s.sd, s.mean + s.sd];
    let plot = Plot {
        left: 50.0,
        top: 14.0,
        width: width - 50.0 - right,
        height: height - 14.0 - 44.0,
        // A single point stands in the middle.
        x: if last > first { (first, last) } else { (first - 1.0, first + 1.0) },
        y: range(curves.iter().flat_map(|c| c.points.iter().flat_map(ends)), limits),
    };
    let mut svg = opening(width, height, &format!("{} by {time}", escape(title)));
    draw_curves(&mut svg, &plot, [title, time], curves, is_named).ok()?;
    svg += "</svg>";
    Some(svg)
}

/// Up to so many lines have names at their ends.
const MAX_NAMED: usize = 24;

fn draw_curves(
    svg: &mut String,
    plot: &Plot,
    [title, time]: [&str; 2],
    curves: &[Curve],
    is_named: bool,
) -> fmt::Result {
    let whole: Vec<f64> = ticks(plot.x, 8).into_iter().filter(|t| t.fract() == 0.0).collect();
    plot.axes(svg, time, title, &whole)?;
    let y = |value: f64| plot.y(value.clamp(plot.y.0, plot.y.1));
    for curve in curves.iter().filter(|c| c.points.iter().any(|(_, s)| s.sd > 0.0)) {
        write!(svg, r#"<path class="band f{}" d="M"#, hue(curve.row))?;
        let upper = curve.points.iter().map(|(e, s)| (*e, s.mean + s.sd));
        let lower = curve.points.iter().rev().map(|(e, s)| (*e, s.mean - s.sd));
        for (epoch, value) in upper.chain(lower) {
            write!(svg, "{:.1},{:.1} ", plot.x(epoch as f64), y(value))?;
        }
        svg.push_str(r#"z"/>"#);
    }
    for curve in curves {
        let (hue, dash, label) = (hue(curve.row), dash(curve.row), escape(&curve.label));
        write!(svg, r#"<polyline class="line s{hue} d{dash}" points=""#)?;
        for (epoch, spread) in &curve.points {
            write!(svg, "{:.1},{:.1} ", plot.x(*epoch as f64), y(spread.mean))?;
        }
        write!(svg, r#""><title>{label}</title></polyline>"#)?;
        for (at, spread) in &curve.points {
            write!(
                svg,
                r#"<circle class="f{hue}" cx="{:.1}" cy="{:.1}" r="2.2"><title>{label}, {time} {at}: {}</title></circle>"#,
                plot.x(*at as f64),
                y(spread.mean),
                number(spread.mean)
            )?;
        }
    }
    if !is_named {
        return Ok(());
    }
    let ends = curves.iter().filter_map(|c| Some((c, c.points.last()?)));
    let ends: Vec<(&Curve, f64, f64)> =
        ends.map(|(c, (epoch, s))| (c, plot.x(*epoch as f64), y(s.mean))).collect();
    let wanted: Vec<f64> = ends.iter().map(|(_, _, y)| *y).collect();
    let places = apart(&wanted, 12.0, (plot.top, plot.bottom()));
    for ((curve, x, y), place) in ends.iter().zip(places) {
        let (hue, left) = (hue(curve.row), plot.right() + 8.0);
        write!(
            svg,
            r#"<polyline class="lead" points="{:.1},{y:.1} {:.1},{place:.1}"/><text class="end f{hue}" x="{left:.1}" y="{:.1}">{}</text>"#,
            x + 3.0,
            left - 2.0,
            place + 4.0,
            escape(&curve.label)
        )?;
    }
    Ok(())
}

/// Places as near as can be to those that are wanted, in the same order and at least `distance` apart.
fn apart(wanted: &[f64], distance: f64, (low, high): (f64, f64)) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    let mut places = wanted.to_vec();
    let mut least = low;
    for &i in &order {
        places[i] = places[i].max(least);
        least = places[i] + distance;
    }
    let mut most = high;
    for &i in order.iter().rev() {
        places[i] = places[i].min(most);
        most = places[i] - distance;
    }
    places
}

/// Test accuracy against bits per value: every row a dot with a bar of one standard deviation to both sides, those that no
/// other beats joined by a line. `None` where there is no row.
pub(super) fn accuracy_against_bits(dots: &[Dot], of: &str) -> Option<String> {
    let widest = dots.iter().map(|dot| dot.bits).reduce(f64::max)?;
    let (width, height) = (640.0, 380.0);
    let ends =
        |dot: &Dot| [dot.accuracy.mean - dot.accuracy.sd, dot.accuracy.mean + dot.accuracy.sd];
    let plot = Plot {
        left: 50.0,
        top: 14.0,
        width: width - 50.0 - 20.0,
        height: height - 14.0 - 44.0,
        x: (0.0, (widest * 1.06).max(1.0)),
        y: range(dots.iter().flat_map(ends), (0.0, 100.0)),
    };
    let mut svg = opening(width, height, "Test accuracy against bits per value");
    draw_dots(&mut svg, &plot, dots, &format!("bits per value of {of}, scales counted")).ok()?;
    svg += "</svg>";
    Some(svg)
}

fn draw_dots(svg: &mut String, plot: &Plot, dots: &[Dot], title: &str) -> fmt::Result {
    plot.axes(svg, title, "test accuracy, %", &ticks(plot.x, 10))?;
    let place = |dot: &Dot| (plot.x(dot.bits), plot.y(dot.accuracy.mean));
    let pairs: Vec<(f64, f64)> = dots.iter().map(|dot| (dot.bits, dot.accuracy.mean)).collect();
    let front = front(&pairs);
    svg.push_str(r#"<polyline class="front" points=""#);
    for &i in &front {
        let (x, y) = place(&dots[i]);
        write!(svg, "{x:.1},{y:.1} ")?;
    }
    svg.push_str(r#""/>"#);
    for dot in dots {
        let ((x, y), Spread { mean, sd }) = (place(dot), dot.accuracy);
        let (hue, label) = (hue(dot.row), escape(&dot.label));
        if sd > 0.0 {
            let [low, high] = [mean - sd, mean + sd].map(|v| plot.y(v.clamp(plot.y.0, plot.y.1)));
            write!(
                svg,
                r#"<path class="error s{hue}" d="M{x:.1} {low:.1}V{high:.1}M{0:.1} {low:.1}h6M{0:.1} {high:.1}h6"/>"#,
                x - 3.0
            )?;
        }
        let sd = if sd > 0.0 { format!(" ± {}", number(sd)) } else { String::new() };
        write!(
            svg,
            r#"<circle class="f{hue}" cx="{x:.1}" cy="{y:.1}" r="4"><title>{label}: {:.2} bits, {mean:.2}{sd} %</title></circle>"#,
            dot.bits
        )?;
    }
    // Names keep off the bars too.
    let bar = |dot: &Dot| {
        let (x, Spread { mean, sd }) = (plot.x(dot.bits), dot.accuracy);
        (-4..=4).map(move |part| (x, plot.y(mean + sd * f64::from(part) / 4.0)))
    };
    let mut labels = Labels::new(dots.iter().flat_map(bar));
    let behind = (0..dots.len()).filter(|i| !front.contains(i));
    for i in front.iter().rev().copied().chain(behind) {
        labels.place(svg, plot, place(&dots[i]), &dots[i].label, "name")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(mean: f64, sd: f64) -> Spread {
        Spread { mean, sd }
    }

    #[test]
    fn a_range_has_round_ends_and_keeps_within_its_limits() {
        assert_eq!(range([97.2, 99.9].into_iter(), (0.0, 100.0)), (97.0, 100.0));
        assert_eq!(range([].into_iter(), (0.0, 100.0)), (0.0, 1.0));
        let (low, high) = range([100.0].into_iter(), (0.0, 100.0));
        assert!(low < high && (low..=high).contains(&100.0), "{low} {high}");
        assert_eq!(range([0.0, 1e9].into_iter(), (0.0, 4.7)), (0.0, 5.0));
        let (low, high) = range([0.0, 0.0].into_iter(), (0.0, f64::INFINITY));
        assert!(low < high, "{low} {high}");
    }

    #[test]
    fn names_at_the_ends_of_lines_are_moved_apart() {
        let places = apart(&[50.0, 50.0, 51.0, 10.0], 12.0, (0.0, 60.0));
        let mut sorted = places.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= 12.0 - 1e-9), "{places:?}");
        assert!(places.iter().all(|p| (0.0..=60.0).contains(p)), "{places:?}");
        assert!(apart(&[], 12.0, (0.0, 60.0)).is_empty());
    }

    #[test]
    fn every_course_has_a_picture() {
        assert!(curves("loss", "epoch", &[], (0.0, f64::INFINITY)).is_none());
        for points in [
            vec![(1, spread(0.0, 0.0))],
            vec![(1, spread(2.3, 0.1)), (2, spread(2.3, 0.0))],
            (1..200).map(|e| (e, spread(1.0 / e as f64, 0.01))).collect(),
        ] {
            let curve = Curve { label: "a<b".into(), row: 9, points };
            let svg = curves("loss", "epoch", &[curve], (0.0, f64::INFINITY)).unwrap();
            assert!(
                !svg.contains("NaN") && !svg.contains("inf") && svg.contains("a&lt;b"),
                "{svg}"
            );
        }
    }

    #[test]
    fn every_dot_is_drawn_with_its_deviation() {
        assert!(accuracy_against_bits(&[], "weights").is_none());
        let dot = |row: usize, sd| Dot {
            label: format!("int{row}"),
            row,
            bits: row as f64,
            accuracy: spread(90.0, sd),
        };
        let svg = accuracy_against_bits(&[dot(4, 0.0), dot(8, 1.5)], "weights").unwrap();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(svg.matches("class=\"error").count(), 1);
        assert!(
            svg.contains("bits per value of weights") && svg.contains("8.00 bits, 90.00 ± 1.5 %")
        );
    }
}
