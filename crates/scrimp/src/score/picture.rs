//! Pictures of scores, as SVG that takes its colours from the page around it.

use std::fmt::{self, Write};

use super::{Distribution, OUTER, front};
use crate::plot::{HUES, Labels, Plot, escape, opening, tick_step, ticks};

/// A scheme in the plane of size and error.
pub(super) struct Point {
    /// The scheme.
    pub label: String,
    /// Bits per value.
    pub bits: f64,
    /// Signal to noise in dB.
    pub db: f64,
    /// The number of its family among those of the page.
    pub family: usize,
}

/// Bits that a bit more is worth to the best code of independent normal values, in dB.
const DB_PER_BIT: f64 = 6.020_599_913_279_624;

/// Error against size: every scheme a point, those that nothing beats joined by a line.
///
/// Schemes that lose nothing, or more than the tensor itself, have no place on the axis of dB and are left to the text
/// around the picture. `None` where no scheme has one.
pub(super) fn trade_off(points: &[Point]) -> Option<String> {
    let shown: Vec<&Point> = points.iter().filter(|p| is_drawn(p.db)).collect();
    let widest = shown.iter().map(|p| p.bits).reduce(f64::max)?;
    let highest = shown.iter().map(|p| p.db).fold(0.0, f64::max);
    let step = tick_step(highest.max(1.0), 6);
    let (width, height) = (640.0, 380.0);
    let plot = Plot {
        left: 50.0,
        top: 14.0,
        width: width - 50.0 - 14.0,
        height: height - 14.0 - 44.0,
        x: (0.0, (widest * 1.04).max(1.0)),
        y: (0.0, (highest / step + 0.25).ceil() * step),
    };
    let mut svg = opening(width, height, "Signal to noise against bits per value of every scheme");
    draw_trade_off(&mut svg, &plot, &shown).ok()?;
    svg += "</svg>";
    Some(svg)
}

/// Whether a point with this error is in the picture.
pub(super) fn is_drawn(db: f64) -> bool {
    db.is_finite() && db >= 0.0
}

fn draw_trade_off(svg: &mut String, plot: &Plot, shown: &[&Point]) -> fmt::Result {
    plot.axes(svg, "bits per value, scales counted", "signal to noise, dB", &ticks(plot.x, 10))?;
    let end = plot.x.1.min(plot.y.1 / DB_PER_BIT);
    write!(
        svg,
        r#"<line class="limit" x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}"><title>6.02 dB per bit: no code of independent normal values does better</title></line>"#,
        plot.x(0.0),
        plot.y(0.0),
        plot.x(end),
        plot.y(end * DB_PER_BIT)
    )?;

    let pairs: Vec<(f64, f64)> = shown.iter().map(|p| (p.bits, p.db)).collect();
    let front = front(&pairs);
    svg.push_str(r#"<polyline class="front" points=""#);
    for &i in &front {
        write!(svg, "{:.1},{:.1} ", plot.x(shown[i].bits), plot.y(shown[i].db))?;
    }
    svg.push_str(r#""/>"#);
    // What is on the front is drawn last, above the others.
    let others = (0..shown.len()).filter(|i| !front.contains(i));
    let order: Vec<usize> = others.chain(front.iter().copied()).collect();
    for &i in &order {
        let point = shown[i];
        let (x, y) = (plot.x(point.bits), plot.y(point.db));
        let on_front = front.contains(&i);
        let radius = if on_front { 4.0 } else { 3.0 };
        let class = format!("f{}{}", point.family % HUES, if on_front { "" } else { " behind" });
        // Families beyond the colours have another shape.
        match point.family / HUES {
            0 => write!(svg, r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{radius}">"#)?,
            _ => write!(
                svg,
                r#"<path class="{class}" d="M{x:.1} {:.1}l{radius} {radius}l-{radius} {radius}l-{radius}-{radius}z">"#,
                y - radius
            )?,
        }
        let closing = if point.family < HUES { "circle" } else { "path" };
        let (label, bits, db) = (escape(&point.label), point.bits, point.db);
        write!(svg, "<title>{label}: {bits:.2} bits, {db:.1} dB</title></{closing}>")?;
    }

    let mut labels = Labels::new(shown.iter().map(|p| (plot.x(p.bits), plot.y(p.db))));
    let behind = order.iter().filter(|i| !front.contains(i));
    // Names of the front first. The others are many or few.
    let named = front.iter().rev().chain(behind.filter(|_| shown.len() <= MAX_ALL_NAMED));
    for &i in named {
        let (x, y) = (plot.x(shown[i].bits), plot.y(shown[i].db));
        let class = if front.contains(&i) { "name" } else { "name faint" };
        labels.place(svg, plot, (x, y), &shown[i].label, class)?;
    }
    Ok(())
}

/// Up to so many schemes all have their names in the picture, where there is room.
const MAX_ALL_NAMED: usize = 16;

/// Pieces of the curve of a normal distribution.
const STEPS: u8 = 120;

/// The histogram of a tensor beside the normal distribution of the same mean and standard deviation.
pub(super) fn histogram(distribution: &Distribution) -> String {
    let (width, height) = (460.0, 380.0);
    let mut svg = opening(width, height, "Histogram of the values, and the fitted normal");
    let (low, high) = distribution.span;
    let count = distribution.values.max(1) as f64;
    let bin_width = (high - low) / distribution.bins.len() as f64;
    let Distribution { mean, std, .. } = *distribution;
    // The part of a normal distribution that a bar around `x` would hold, in percent.
    let normal = |x: f64| {
        let z = (x - mean) / std;
        100.0 * bin_width / (std * (2.0 * std::f64::consts::PI).sqrt()) * (-0.5 * z * z).exp()
    };
    let percent = |bin: u64| 100.0 * bin as f64 / count;
    let tallest = distribution.bins.iter().map(|&bin| percent(bin)).fold(0.0, f64::max);
    let has_spread = high > low && std > 0.0;
    let peak = if has_spread { tallest.max(normal(mean)) } else { tallest };
    let plot = Plot {
        left: 50.0,
        top: 22.0,
        width: width - 50.0 - 14.0,
        height: height - 22.0 - 44.0,
        // A constant has no extent: its one bar stands in the middle.
        x: if has_spread { (low, high) } else { (low - 1.0, low + 1.0) },
        y: (0.0, (peak * 1.06).max(1e-9)),
    };
    let x_ticks = if has_spread { ticks(plot.x, 5) } else { vec![low] };
    // Writing to a string cannot fail.
    plot.axes(&mut svg, "value", "values per bar, %", &x_ticks).ok();
    let step = plot.width / distribution.bins.len() as f64;
    svg.push_str(r#"<path class="bars" d=""#);
    for (place, &bin) in distribution.bins.iter().enumerate().filter(|(_, bin)| **bin > 0) {
        let (x, y) = (plot.left + place as f64 * step, plot.y(percent(bin)));
        let bar = step * 0.86;
        write!(svg, "M{x:.1} {:.1}V{y:.1}h{bar:.1}V{0:.1}z", plot.bottom()).ok();
    }
    svg.push_str(r#""/>"#);
    if has_spread {
        svg.push_str(r#"<polyline class="normal" points=""#);
        for i in 0..=STEPS {
            let x = low + (high - low) * f64::from(i) / f64::from(STEPS);
            write!(svg, "{:.1},{:.1} ", plot.x(x), plot.y(normal(x))).ok();
        }
        svg.push_str(r#""/>"#);
        for (sigmas, name) in [(-OUTER, "−2.5σ"), (-1.0, "−σ"), (1.0, "σ"), (OUTER, "2.5σ")]
        {
            let value = mean + sigmas * std;
            if value > low && value < high {
                let x = plot.x(value);
                write!(
                    svg,
                    r#"<line class="sigma" x1="{x:.1}" y1="{:.1}" x2="{x:.1}" y2="{:.1}"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{name}</text>"#,
                    plot.top,
                    plot.bottom(),
                    plot.top - 5.0
                )
                .ok();
            }
        }
    }
    svg += "</svg>";
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(label: &str, bits: f64, db: f64) -> Point {
        Point { label: label.into(), bits, db, family: 0 }
    }

    #[test]
    fn names_do_not_lie_on_each_other_and_are_escaped() {
        let crowd: Vec<Point> = (0..200u8)
            .map(|i| point("int8/<b>", 4.0 + f64::from(i) / 50.0, 20.0 + f64::from(i) / 10.0))
            .collect();
        let svg = trade_off(&crowd).unwrap();
        assert!((1..60).contains(&svg.matches("class=\"name").count()));
        assert!(svg.contains("int8/&lt;b&gt;") && !svg.contains("<b>"));
        assert_eq!(svg.matches("<circle").count(), 200);
    }

    #[test]
    fn what_has_no_place_on_the_axis_is_not_drawn() {
        assert!(trade_off(&[]).is_none());
        assert!(trade_off(&[point("f32", 32.0, f64::INFINITY)]).is_none());
        let svg = trade_off(&[point("a", 4.0, -3.0), point("b", 8.0, 40.0)]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn every_distribution_has_a_picture() {
        for x in [&[][..], &[0.0; 5], &[3.0], &[f32::NAN], &[f32::MAX, f32::MIN], &[1e-40, 2e-40]] {
            let svg = histogram(&Distribution::of(x));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{x:?}: {svg}");
        }
    }
}
