//! Pictures of granularities: which elements of a small tensor share a scale.
//!
//! The groups are asked of the codec: an element that grows takes away the precision of those that share its scale.

use std::fmt::Write;

use scrimp_codec::{Scheme, Stream};

use crate::Page;
use crate::svg::{Anchor, Picture, WIDTH, short};

/// The side of the square of one element.
const CELL: f64 = 15.0;
const PER_ROW: usize = 4;
/// Colours that neighbouring groups take in turn.
const COLOURS: [&str; 6] = ["#2f7fc1", "#c96a12", "#3a9a5b", "#b0569f", "#8a8a1c", "#6c6fc7"];

const OF_A_MATRIX: [&str; 8] =
    ["tensor", "channel", "axis:1", "row", "group:4", "group:5", "flat:7", "tile:2x4"];
const OF_A_CONVOLUTION: [&str; 8] = [
    "channel",
    "axis:1",
    "row",
    "group:2",
    "row/matrix",
    "group:6/matrix",
    "tile:2x2",
    "tile:2x6/matrix",
];

/// Both pictures.
pub fn pages() -> [Page; 2] {
    let matrix = [4, 10];
    let filters = [3, 2, 3, 3];
    [
        Page {
            path: "schemes/matrix.svg".into(),
            text: panels("Groups of a matrix of 4 rows and 10 columns", &OF_A_MATRIX, &matrix),
        },
        Page {
            path: "schemes/convolution.svg".into(),
            text: panels(
                "Groups of the weight of a convolution with 3 filters of 2 channels and 3 by 3 values",
                &OF_A_CONVOLUTION,
                &filters,
            ),
        },
    ]
}

/// The group of each element, numbered by their first elements.
fn groups(granularity: &str, shape: &[usize]) -> Vec<usize> {
    let count: usize = shape.iter().product();
    let mut groups = vec![usize::MAX; count];
    let Ok(scheme) = format!("int8/{granularity}").parse::<Scheme>() else { return groups };
    let mut next = 0;
    for element in 0..count {
        if groups[element] != usize::MAX {
            continue;
        }
        let mut x = vec![1.0; count];
        // The step becomes 1000 / 127, and a one under it zero.
        x[element] = 1000.0;
        if scheme.emulate(&mut x, shape, &Stream::new(0, 0)).is_ok() {
            for (group, _) in groups.iter_mut().zip(&x).filter(|(_, x)| **x != 1.0) {
                *group = next;
            }
        }
        next += 1;
    }
    groups
}

/// Where an element is drawn: a matrix as it is; filters side by side, their channels one below the other.
fn place(element: usize, shape: &[usize]) -> [f64; 2] {
    const GAP: f64 = 6.0;
    let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    let (row, column) = (element / columns % rows, element % columns);
    let (filter, channel) = match shape {
        &[_, channels, _, _] => {
            let kernel = element / (rows * columns);
            (kernel / channels, kernel % channels)
        }
        _ => (0, 0),
    };
    [
        filter as f64 * (columns as f64 * CELL + GAP) + column as f64 * CELL,
        channel as f64 * (rows as f64 * CELL + GAP) + row as f64 * CELL,
    ]
}

fn panels(title: &str, granularities: &[&str], shape: &[usize]) -> String {
    let mut picture = Picture::new(title);
    let count: usize = shape.iter().product();
    let height = place(count - 1, shape)[1] + CELL + 44.0;
    for (panel, granularity) in granularities.iter().enumerate() {
        let left = 4.0 + (panel % PER_ROW) as f64 * WIDTH / PER_ROW as f64;
        let top = (panel / PER_ROW) as f64 * height + 20.0;
        let groups = groups(granularity, shape);
        let number = groups.iter().max().map_or(0, |last| last + 1);
        let scales = if number == 1 { "1 scale".into() } else { format!("{number} scales") };
        picture.text(left, top - 5.0, "name", Anchor::Start, granularity);
        let bottom = top + place(count - 1, shape)[1] + CELL;
        picture.text(left, bottom + 12.0, "", Anchor::Start, &scales);
        for (colour, fill) in COLOURS.iter().enumerate() {
            let mut path = String::new();
            for element in (0..count).filter(|e| groups[*e] % COLOURS.len() == colour) {
                let [x, y] = place(element, shape);
                let side = short(CELL - 1.0);
                // Writing to a string cannot fail.
                write!(path, "M{} {}h{side}v{side}h-{side}z", short(left + x), short(top + y)).ok();
            }
            if !path.is_empty() {
                picture.add(&format!(r#"<path fill="{fill}" d="{path}"/>"#));
            }
        }
        // The number of a group stands in its first element.
        let mut seen = 0;
        for (element, &group) in groups.iter().enumerate() {
            if group == seen {
                let [x, y] = place(element, shape);
                let (x, y) = (left + x + CELL / 2.0 - 0.5, top + y + CELL - 4.0);
                picture.text(x, y, "group", Anchor::Middle, &group.to_string());
                seen += 1;
            }
        }
    }
    let rows = granularities.len().div_ceil(PER_ROW) as f64;
    picture.finish(rows * height)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_those_of_the_codec() {
        assert_eq!(groups("tensor", &[1, 3]), [0, 0, 0]);
        assert_eq!(groups("group:2", &[2, 3]), [0, 0, 1, 2, 2, 3]);
        assert_eq!(groups("flat:2", &[2, 3]), [0, 0, 1, 1, 2, 2]);
        assert_eq!(groups("axis:1", &[2, 3]), [0, 1, 2, 0, 1, 2]);
        assert_eq!(groups("tile:2x2", &[2, 3]), [0, 0, 1, 0, 0, 1]);
        assert_eq!(groups("row/matrix", &[2, 1, 1, 2]), [0, 0, 1, 1]);
    }

    #[test]
    fn every_element_of_every_panel_has_a_group() {
        for (granularities, shape) in
            [(OF_A_MATRIX, &[4, 10][..]), (OF_A_CONVOLUTION, &[3, 2, 3, 3])]
        {
            for granularity in granularities {
                let scheme: Scheme = format!("int8/{granularity}").parse().unwrap();
                let number = groups(granularity, shape).into_iter().max().unwrap() + 1;
                assert_eq!(scheme.groups(shape).unwrap(), number, "{granularity}");
            }
        }
    }
}
