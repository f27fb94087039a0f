//! What pictures are made of: axes, ticks, names beside points, as SVG that takes its colours from the page around it.

use std::fmt::{self, Write};

/// Colours that the page has for what pictures tell apart, as classes `f0` and so on.
pub(crate) const HUES: usize = 8;

/// The rectangle that data are drawn in, with the ranges of its axes.
pub(crate) struct Plot {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    pub x: (f64, f64),
    pub y: (f64, f64),
}

impl Plot {
    pub(crate) fn x(&self, x: f64) -> f64 {
        self.left + (x - self.x.0) / (self.x.1 - self.x.0) * self.width
    }

    pub(crate) fn y(&self, y: f64) -> f64 {
        self.top + (self.y.1 - y) / (self.y.1 - self.y.0) * self.height
    }

    pub(crate) fn right(&self) -> f64 {
        self.left + self.width
    }

    pub(crate) fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// Grid, ticks and titles.
    pub(crate) fn axes(
        &self,
        svg: &mut String,
        x_title: &str,
        y_title: &str,
        x_ticks: &[f64],
    ) -> fmt::Result {
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

/// A rectangle: left, top, right, bottom.
type Area = [f64; 4];

fn overlap(a: &Area, b: &Area) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

/// Where names of points stand.
pub(crate) struct Labels {
    taken: Vec<Area>,
}

impl Labels {
    /// Nothing but points, which no name may lie on, at these places of the picture.
    pub(crate) fn new(points: impl Iterator<Item = (f64, f64)>) -> Self {
        Self { taken: points.map(|(x, y)| [x - 3.0, y - 3.0, x + 3.0, y + 3.0]).collect() }
    }

    /// Writes the name of the point at this place of the picture where there is room beside it, or nowhere.
    pub(crate) fn place(
        &mut self,
        svg: &mut String,
        plot: &Plot,
        (x, y): (f64, f64),
        label: &str,
        class: &str,
    ) -> fmt::Result {
        const HEIGHT: f64 = 11.0;
        let width = text_width(label);
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
        let label = escape(label);
        write!(svg, r#"<text class="{class}" x="{left:.1}" y="{base:.1}">{label}</text>"#)
    }
}

/// About how wide a text of the pictures' small letters is.
pub(crate) fn text_width(text: &str) -> f64 {
    const CHAR_WIDTH: f64 = 6.5;
    text.chars().count() as f64 * CHAR_WIDTH
}

/// The begin of a picture.
pub(crate) fn opening(width: f64, height: f64, title: &str) -> String {
    format!(
        r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}" xmlns="http://www.w3.org/2000/svg">"#
    )
}

/// Round numbers from the low end of a range to its high end, about `count` of them.
pub(crate) fn ticks((low, high): (f64, f64), count: u8) -> Vec<f64> {
    let step = tick_step(high - low, count);
    if !(step > 0.0 && step.is_finite()) {
        return Vec::new();
    }
    let first = (low / step).ceil();
    let tick = |i: u8| (first + f64::from(i)) * step;
    (0..=2 * count).map(tick).take_while(|tick| *tick <= high + step * 1e-6).collect()
}

/// 1, 2 or 5 times a power of ten.
pub(crate) fn tick_step(extent: f64, count: u8) -> f64 {
    let rough = extent / f64::from(count);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().find(|step| step * power >= rough * 0.999);
    step.unwrap_or(10.0) * power
}

/// A number with up to four digits that count.
pub(crate) fn number(value: f64) -> String {
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
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
