//! Pictures of grids: the values of small formats on a linear and on a logarithmic line.

use std::fmt::Write;

use scrimp_codec::formats::Scaling;
use scrimp_codec::{Params, Scheme};

use crate::numbers::{exact, power_of_two};
use crate::svg::{Anchor, Picture, WIDTH, short, ticks};

/// The widest format that has a picture: beyond, a tick is thinner than anything can show.
const MAX_BITS: u32 = 8;

/// Left and right end of each of the two lines of a row.
const LINEAR: [f64; 2] = [12.0, 362.0];
const LOGARITHMIC: [f64; 2] = [388.0, WIDTH - 12.0];

/// The parts of a row, from its top: the name, how dense values are, a tick for each, labels.
const NAME: f64 = 14.0;
const DENSITY: f64 = 22.0;
const TICK: f64 = 9.0;
const LABEL: f64 = 12.0;
const ROW: f64 = NAME + DENSITY + TICK + LABEL + 6.0;

/// The finite values of formats that have the same ones.
struct Row {
    names: Vec<String>,
    /// Ascending, one zero.
    values: Vec<f32>,
    /// The least magnitude that is no subnormal.
    min_normal: f32,
}

impl Row {
    /// The values that a scheme can come to at scale 1; none where elements have no format, or one of too many bits.
    fn of(scheme: &Scheme) -> Option<Self> {
        let format = scheme.format()?;
        let (bits, card) = (format.bits(), format.card());
        if bits > MAX_BITS {
            return None;
        }
        let mut values: Vec<f32> = (0..1u32 << bits)
            .map(|code| format.decode(code, &Params::UNIT) + 0.0)
            // Symmetric integers never write their most negative code.
            .filter(|value| value.is_finite() && (card.min..=card.max).contains(value))
            .collect();
        values.sort_by(f32::total_cmp);
        values.dedup();
        // With one exponent bit all steps are alike, and integers are written as such floats.
        let has_binades = card.exponent_bits.is_some_and(|bits| bits > 1);
        Some(Self {
            names: vec![scheme.to_string()],
            values,
            min_normal: card.min_normal.filter(|_| has_binades).unwrap_or(0.0),
        })
    }

    /// The largest magnitude.
    fn top(&self) -> f32 {
        self.values.iter().fold(0.0, |top, value| value.abs().max(top))
    }

    /// The smallest magnitude that is not zero.
    fn least(&self) -> f32 {
        let magnitudes = self.values.iter().map(|value| value.abs());
        magnitudes.filter(|magnitude| *magnitude > 0.0).fold(f32::INFINITY, f32::min)
    }
}

/// The picture of the small formats among these schemes, if there are any.
pub fn picture(title: &str, schemes: &[Scheme]) -> Option<String> {
    let mut rows: Vec<Row> = Vec::new();
    for (scheme, row) in schemes.iter().filter_map(|scheme| Some((scheme, Row::of(scheme)?))) {
        // A zero point and an offset move a grid and do not change it.
        match rows.iter_mut().find(|other| other.values == row.values) {
            Some(other) => other.names.push(scheme.to_string()),
            None => rows.push(row),
        }
    }
    // One value has no line.
    rows.retain(|row| row.values.len() > 1);
    if rows.is_empty() {
        return None;
    }
    // What is always scaled meets a range with its largest code, so that its magnitudes are parts of that.
    let relative = schemes.iter().all(|s| s.codec().defaults().scaling == Scaling::Always);
    let mut picture = Picture::new(title);
    let (axis, axis_title) = if relative {
        (Axis::over(&rows, Row::top), "magnitudes, in parts of the largest, on a logarithmic line")
    } else {
        (Axis::over(&rows, |_| 1.0), "magnitudes on a logarithmic line")
    };
    picture.text(LINEAR[0], 12.0, "", Anchor::Start, "values on a linear line");
    picture.text(LOGARITHMIC[0], 12.0, "", Anchor::Start, axis_title);

    let first = 20.0;
    #[expect(clippy::cast_precision_loss, reason = "rows are few")]
    let bottom = first + ROW * rows.len() as f64;
    axis.draw(&mut picture, first + NAME, bottom - LABEL);
    let lines: Vec<Lines> = rows
        .iter()
        .map(|row| Lines::of(row, &axis, if relative { row.top() } else { 1.0 }))
        .collect();
    let densest = |places: fn(&Lines) -> &[f64]| {
        lines.iter().flat_map(|lines| densities(places(lines))).fold(1.0, f64::max)
    };
    let (linear, logarithmic) = (densest(|l| &l.linear), densest(|l| &l.logarithmic));
    for (place, (row, lines)) in rows.iter().zip(&lines).enumerate() {
        let top = first + ROW * place as f64;
        profile(&mut picture, &lines.linear, top, linear);
        profile(&mut picture, &lines.logarithmic, top, logarithmic);
        draw(&mut picture, row, lines, top);
    }
    axis.label(&mut picture, bottom);
    Some(picture.finish(bottom + 8.0))
}

/// A logarithmic axis that all rows share.
struct Axis {
    /// Exponents of two at its ends.
    low: i32,
    high: i32,
}

impl Axis {
    /// The axis that holds the magnitudes of all rows, each over the unit of its row.
    fn over(rows: &[Row], unit: impl Fn(&Row) -> f32) -> Self {
        let exponent = |value: f32, row: &Row| f64::from(value / unit(row)).log2();
        let low = rows.iter().map(|row| exponent(row.least(), row)).fold(f64::INFINITY, f64::min);
        let high =
            rows.iter().map(|row| exponent(row.top(), row)).fold(f64::NEG_INFINITY, f64::max);
        #[expect(clippy::cast_possible_truncation, reason = "exponents of f32")]
        let (low, high) = (low.floor() as i32, high.ceil() as i32);
        Self { low, high: high.max(low + 1) }
    }

    fn place(&self, exponent: f64) -> f64 {
        let part = (exponent - f64::from(self.low)) / f64::from(self.high - self.low);
        LOGARITHMIC[0] + part * (LOGARITHMIC[1] - LOGARITHMIC[0])
    }

    /// The exponents that have a line and a label: at most ten.
    fn marks(&self) -> impl Iterator<Item = i32> {
        let span = self.high - self.low;
        let step = [1, 2, 4, 8, 16, 32].into_iter().find(|step| span / step < 10).unwrap_or(64);
        (self.low..=self.high).filter(move |exponent| exponent % step == 0)
    }

    fn draw(&self, picture: &mut Picture, top: f64, bottom: f64) {
        let lines = ticks(self.marks().map(|e| self.place(f64::from(e))), top, bottom - top);
        picture.add(&format!(r#"<path class="grid" d="{lines}"/>"#));
    }

    fn label(&self, picture: &mut Picture, y: f64) {
        for exponent in self.marks() {
            let text = match exponent {
                0 => "1".into(),
                _ => power_of_two(exponent),
            };
            picture.text(self.place(f64::from(exponent)), y, "", Anchor::Middle, &text);
        }
    }
}

/// Where the values of a row lie on its two lines, from left to right.
struct Lines {
    linear: Vec<f64>,
    /// Of positive values.
    logarithmic: Vec<f64>,
}

impl Lines {
    fn of(row: &Row, axis: &Axis, unit: f32) -> Self {
        let (min, max) = (f64::from(row.values[0]), f64::from(row.values[row.values.len() - 1]));
        let all = || row.values.iter().map(|value| f64::from(*value));
        let linear = |value: f64| LINEAR[0] + (value - min) / (max - min) * (LINEAR[1] - LINEAR[0]);
        let logarithmic = |value: f64| axis.place((value / f64::from(unit)).log2());
        Self {
            linear: all().map(linear).collect(),
            logarithmic: all().filter(|value| *value > 0.0).map(logarithmic).collect(),
        }
    }
}

/// How close each value is to the next: how often the gap between them fits into the line, as a power of two. Gaps that
/// are too narrow to be drawn are alike.
fn densities(places: &[f64]) -> impl Iterator<Item = f64> {
    const LENGTH: f64 = LINEAR[1] - LINEAR[0];
    const NARROWEST: f64 = 0.1;
    places.windows(2).map(|pair| (LENGTH / (pair[1] - pair[0]).max(NARROWEST)).log2().max(0.0))
}

fn draw(picture: &mut Picture, row: &Row, lines: &Lines, top: f64) {
    let count = format!("{} values", row.values.len());
    picture.text(LINEAR[0], top + NAME - 3.0, "name", Anchor::Start, &row.names.join(", "));
    picture.text(LOGARITHMIC[1], top + NAME - 3.0, "", Anchor::End, &count);

    let line = top + NAME + DENSITY;
    let is_sub = |value: &f32| *value != 0.0 && value.abs() < row.min_normal;
    let positive = || row.values.iter().filter(|value| **value > 0.0);
    for (class, sub) in [("tick", false), ("sub", true)] {
        let linear = row.values.iter().zip(&lines.linear).filter(|(v, _)| is_sub(v) == sub);
        let logarithmic = positive().zip(&lines.logarithmic).filter(|(v, _)| is_sub(v) == sub);
        let path = ticks(linear.map(|(_, x)| *x), line, TICK)
            + &ticks(logarithmic.map(|(_, x)| *x), line, TICK);
        if !path.is_empty() {
            picture.add(&format!(r#"<path class="{class}" d="{path}"/>"#));
        }
    }
    for [left, right] in [LINEAR, LOGARITHMIC] {
        let (left, right, line) = (short(left), short(right), short(line));
        picture.add(&format!(r#"<path class="axis" d="M{left} {line}H{right}"/>"#));
    }

    let y = line + TICK + LABEL - 2.0;
    picture.text(LINEAR[0], y, "", Anchor::Start, &exact(row.values[0]));
    picture.text(LINEAR[1], y, "", Anchor::End, &exact(row.values[row.values.len() - 1]));
    // The middle of the line is free; nearer to an end the labels there say enough.
    let zero = row.values.iter().position(|value| *value == 0.0).map(|place| lines.linear[place]);
    if let Some(x) = zero.filter(|x| (LINEAR[0] + 60.0..LINEAR[1] - 60.0).contains(x)) {
        picture.text(x, y, "", Anchor::Middle, "0");
    }
}

/// Steps over a line whose height between two values is their density, in parts of the densest of the picture.
fn profile(picture: &mut Picture, places: &[f64], top: f64, densest: f64) {
    let line = top + NAME + DENSITY;
    let Some(first) = places.first() else { return };
    let mut path = format!("M{} {}", short(*first), short(line));
    let mut height = String::new();
    for (pair, density) in places.windows(2).zip(densities(places)) {
        let y = short(line - density / densest * DENSITY);
        // Steps of one height are drawn as one. Writing to a string cannot fail.
        if y != height {
            write!(path, "H{}V{y}", short(pair[0])).ok();
            height = y;
        }
    }
    let last = places.last().unwrap_or(first);
    write!(path, "H{}V{}z", short(*last), short(line)).ok();
    picture.add(&format!(r#"<path class="density" d="{path}"/>"#));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Option<Row> {
        Row::of(&text.parse().unwrap())
    }

    #[test]
    fn a_row_has_the_values_that_a_format_can_come_to() {
        let values = row("e2m1fn").unwrap().values;
        assert_eq!(values.len(), 15);
        assert_eq!(values[7..], [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
        // Without the most negative code, with both zeros as one, and without infinities.
        assert_eq!(row("int4").unwrap().values.len(), 15);
        assert_eq!(row("e5m2").unwrap().values.len(), 247);
        assert!(row("f16").is_none());
    }

    #[test]
    fn formats_with_one_grid_share_a_row() {
        let schemes = ["uint4", "uint4/qml", "uint2"].map(|text| text.parse().unwrap());
        let picture = picture("t", &schemes).unwrap();
        assert!(picture.contains(">uint4, uint4/qml<"), "{picture}");
        assert_eq!(picture.matches("class=\"name\"").count(), 2);
    }

    #[test]
    fn an_axis_reaches_from_the_least_to_the_largest_magnitude() {
        let axis = Axis::over(&[row("e4m3fn").unwrap()], |_| 1.0);
        assert_eq!((axis.low, axis.high), (-9, 9));
        let axis = Axis::over(&[row("int8").unwrap(), row("int2").unwrap()], Row::top);
        assert_eq!((axis.low, axis.high), (-7, 0));
    }
}
