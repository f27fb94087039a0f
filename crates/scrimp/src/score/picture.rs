//! Pictures of scores, as SVG that takes its colours from the page around it.

use std::fmt::{self, Write};

use super::{Distribution, OUTER, front};

/// Colours that the page has for families of schemes, as classes `f0` and so on.
pub(super) const HUES: usize = 8;

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

/// The rectangle that data are drawn in, with the ranges of its axes.
struct Plot {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    x: (f64, f64),
    y: (f64, f64),
}

impl Plot {
    fn x(&self, x: f64) -> f64 {
        self.left + (x - self.x.0) / (self.x.1 - self.x.0) * self.width
    }

    fn y(&self, y: f64) -> f64 {
        self.top + (self.y.1 - y) / (self.y.1 - self.y.0) * self.height
    }

    fn right(&self) -> f64 {
        self.left + self.width
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// Grid, ticks and titles.
    fn axes(&self, svg: &mut String, x_title: &str, y_title: &str, x_ticks: &[f64]) -> fmt::Result {
        for tick in ticks(self.y, 6) {
            let y = self.y(tick);
            write!(
                svg,
                r#"<line class="grid" x1="{:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                self.left,
                self.right(),
                self.left - 6.0,
                y + 4.0,
                number(tick)
            )?;
        }
        for tick in x_ticks {
            let x = self.x(*tick);
            write!(
                svg,
                r#"<line class="grid" x1="{x:.1}" y1="{:.1}" x2="{x:.1}" y2="{:.1}"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                self.top,
                self.bottom(),
                self.bottom() + 16.0,
                number(*tick)
            )?;
        }
        write!(
            svg,
            r#"<line class="axis" x1="{:.1}" y1="{1:.1}" x2="{2:.1}" y2="{1:.1}"/><text class="title" x="{3:.1}" y="{4:.1}" text-anchor="middle">{x_title}</text><text class="title" transform="translate(13 {5:.1}) rotate(-90)" text-anchor="middle">{y_title}</text>"#,
            self.left,
            self.bottom(),
            self.right(),
            self.left + self.width / 2.0,
            self.bottom() + 34.0,
            self.top + self.height / 2.0
        )
    }
}

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

    let mut labels = Labels::new(plot, shown);
    let behind = order.iter().filter(|i| !front.contains(i));
    // Names of the front first. The others are many or few.
    let named = front.iter().rev().chain(behind.filter(|_| shown.len() <= MAX_ALL_NAMED));
    for &i in named {
        labels.place(svg, plot, shown[i], front.contains(&i))?;
    }
    Ok(())
}

/// Up to so many schemes all have their names in the picture, where there is room.
const MAX_ALL_NAMED: usize = 16;

/// A rectangle: left, top, right, bottom.
type Area = [f64; 4];

fn overlap(a: &Area, b: &Area) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

/// Where names of points stand.
struct Labels {
    taken: Vec<Area>,
}

impl Labels {
    fn new(plot: &Plot, shown: &[&Point]) -> Self {
        let area = |p: &&Point| {
            let (x, y) = (plot.x(p.bits), plot.y(p.db));
            [x - 3.0, y - 3.0, x + 3.0, y + 3.0]
        };
        Self { taken: shown.iter().map(area).collect() }
    }

    /// Writes the name of a point where there is room beside it, or nowhere.
    fn place(&mut self, svg: &mut String, plot: &Plot, point: &Point, front: bool) -> fmt::Result {
        const CHAR_WIDTH: f64 = 6.5;
        const HEIGHT: f64 = 11.0;
        let width = point.label.chars().count() as f64 * CHAR_WIDTH;
        let (x, y) = (plot.x(point.bits), plot.y(point.db));
        // What lies above and to the left of the front is empty.
        let corners = [
            (x - 5.0 - width, y - 4.0),
            (x + 6.0, y + 12.0),
            (x + 7.0, y + 4.0),
            (x - 7.0 - width, y + 4.0),
            (x + 5.0, y - 5.0),
            (x - 5.0 - width, y + 13.0),
        ];
        let free = corners.into_iter().find_map(|(left, base)| {
            let area = [left, base - HEIGHT + 2.0, left + width, base + 2.0];
            let inside = left > plot.left && area[2] < plot.right() && area[1] > plot.top - 8.0;
            let is_free = inside
                && base < plot.bottom() - 2.0
                && !self.taken.iter().any(|taken| overlap(taken, &area));
            is_free.then_some((left, base, area))
        });
        let Some((left, base, area)) = free else { return Ok(()) };
        self.taken.push(area);
        let class = if front { "name" } else { "name faint" };
        let label = escape(&point.label);
        write!(svg, r#"<text class="{class}" x="{left:.1}" y="{base:.1}">{label}</text>"#)
    }
}

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

fn opening(width: f64, height: f64, title: &str) -> String {
    format!(
        r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}" xmlns="http://www.w3.org/2000/svg">"#
    )
}

/// Round numbers from the low end of a range to its high end, about `count` of them.
fn ticks((low, high): (f64, f64), count: u8) -> Vec<f64> {
    let step = tick_step(high - low, count);
    if !(step > 0.0 && step.is_finite()) {
        return Vec::new();
    }
    let first = (low / step).ceil();
    let tick = |i: u8| (first + f64::from(i)) * step;
    (0..=2 * count).map(tick).take_while(|tick| *tick <= high + step * 1e-6).collect()
}

/// 1, 2 or 5 times a power of ten.
fn tick_step(extent: f64, count: u8) -> f64 {
    let rough = extent / f64::from(count);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().find(|step| step * power >= rough * 0.999);
    step.unwrap_or(10.0) * power
}

/// A number with up to four digits that count.
pub(super) fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 {
        return "0".into();
    }
    if !(1e-4..1e6).contains(&magnitude) {
        return format!("{value:.2e}").replace('-', "−");
    }
    let decimals = if magnitude >= 1000.0 {
        0
    } else if magnitude >= 1.0 {
        2
    } else {
        5
    };
    let text = format!("{value:.decimals$}");
    let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    text.replace('-', "−")
}

/// Text as it may stand in a document.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(label: &str, bits: f64, db: f64) -> Point {
        Point { label: label.into(), bits, db, family: 0 }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 50.0), 6), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(ticks((-0.25, 0.31), 5), [-0.2, 0.0, 0.2]);
        assert_eq!(ticks((0.0, 0.0), 5), [0.0; 0]);
        assert_eq!(tick_step(9.0, 10), 1.0);
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (-0.25, "−0.25"),
            (1234.6, "1235"),
            (2.0, "2"),
            (1e-7, "1.00e−7"),
            (0.001, "0.001"),
            (100.0, "100"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
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
