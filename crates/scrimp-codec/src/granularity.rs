//! Which elements of a tensor share a scale.

use std::ops;

/// Which elements share a scale. `tensor` is the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// The whole tensor.
    Tensor,
    /// The channel axis: axis 0 of a weight; [`Scheme::for_activation`](crate::Scheme::for_activation) says which axis of an activation.
    Channel,
    /// One group for each index along an axis.
    Axis(usize),
    /// All but the last axis: one group for each row.
    Row,
    /// Runs of so many elements along the last axis; the last of a row may be short.
    Group(usize),
    /// Runs of so many elements in storage order, whatever the rows.
    Flat(usize),
    /// Rectangles of the last two axes; those at the edges may be smaller.
    Tile(usize, usize),
}

/// A granularity that a tensor's shape cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// Channels, rows, groups and tiles need at least two axes.
    #[error(
        "`{granularity}` needs a tensor of at least two axes, and this one has shape {shape:?}; `tensor` fits it"
    )]
    Rank {
        /// The granularity as a scheme writes it.
        granularity: String,
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// The axis does not exist.
    #[error("`axis:{axis}` does not exist in shape {shape:?}; its axes are 0 to {}", shape.len().saturating_sub(1))]
    Axis {
        /// The axis asked for.
        axis: usize,
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// The shape has other channels than the parameters that go with them.
    #[error("shape {shape:?} has no {channels} channels on axis 1, for which there are parameters")]
    Channels {
        /// How many channels there are parameters for.
        channels: usize,
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// The number of elements or bytes does not fit the address space.
    #[error("a tensor of shape {shape:?} is too large for this machine's address space")]
    TooLarge {
        /// The tensor's shape.
        shape: Vec<usize>,
    },
}

impl std::fmt::Display for Granularity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tensor => f.write_str("tensor"),
            Self::Channel => f.write_str("channel"),
            Self::Row => f.write_str("row"),
            Self::Axis(n) => write!(f, "axis:{n}"),
            Self::Group(n) => write!(f, "group:{n}"),
            Self::Flat(n) => write!(f, "flat:{n}"),
            Self::Tile(r, c) => write!(f, "tile:{r}x{c}"),
        }
    }
}

impl Granularity {
    /// How a tensor of this shape falls into groups.
    pub(crate) fn layout(self, shape: &[usize]) -> Result<Layout, ShapeError> {
        let elems = elems(shape)?;
        let rank_error =
            || Err(ShapeError::Rank { granularity: self.to_string(), shape: shape.to_vec() });
        let last = shape.last().copied().unwrap_or(1);
        Ok(match self {
            Self::Tensor => Layout::Rows { elems, row: elems, block: elems },
            Self::Flat(n) => Layout::Rows { elems, row: elems, block: n },
            _ if shape.len() < 2 => return rank_error(),
            Self::Row => Layout::Rows { elems, row: last, block: last },
            Self::Group(n) => Layout::Rows { elems, row: last, block: n.min(last) },
            Self::Channel => return Self::Axis(0).layout(shape),
            Self::Axis(axis) if axis >= shape.len() => {
                return Err(ShapeError::Axis { axis, shape: shape.to_vec() });
            }
            Self::Axis(0) => {
                let row = elems.checked_div(shape[0]).unwrap_or(0);
                Layout::Rows { elems, row, block: row }
            }
            // An empty tensor may have other axes whose product is beyond counting.
            Self::Axis(_) if elems == 0 => Layout::Axis { elems, groups: 0, run: 0 },
            Self::Axis(axis) => {
                Layout::Axis { elems, groups: shape[axis], run: shape[axis + 1..].iter().product() }
            }
            Self::Tile(rows, cols) => Layout::Tiles {
                elems,
                height: shape[shape.len() - 2],
                width: last,
                rows: rows.min(shape[shape.len() - 2]),
                cols: cols.min(last),
            },
        })
    }
}

/// The number of elements of a shape.
pub(crate) fn elems(shape: &[usize]) -> Result<usize, ShapeError> {
    // Zero-sized axes first, so that an empty tensor is empty however large its other axes are.
    if shape.contains(&0) {
        return Ok(0);
    }
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| isize::try_from(n).is_ok())
        .ok_or_else(|| ShapeError::TooLarge { shape: shape.to_vec() })
}

/// A tensor as runs of consecutive elements, each of which belongs to one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Rows of `row` elements, each cut into blocks; every block is one group.
    Rows { elems: usize, row: usize, block: usize },
    /// Run after run; run `i` belongs to group `i % groups`.
    Axis { elems: usize, groups: usize, run: usize },
    /// Matrices of `height` x `width`, cut into tiles of `rows` x `cols`.
    Tiles { elems: usize, height: usize, width: usize, rows: usize, cols: usize },
}

/// A stretch of consecutive elements that one task works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Band {
    /// The elements.
    pub elems: ops::Range<usize>,
    /// The groups that have elements here.
    pub groups: ops::Range<usize>,
}

/// Consecutive elements of one group, counted from the start of a band.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub group: usize,
    pub start: usize,
    pub len: usize,
}

/// About how many elements one task works on: small enough to stay in the second-level cache between the pass
/// that finds the range and the pass that rounds.
pub(crate) const BAND_ELEMS: usize = 32 * 1024;

/// About how many elements a piece has, which is read twice or thrice: they and their codes fit the first-level cache.
const PIECE_ELEMS: usize = 8 * 1024;

/// Consecutive elements whose groups are consecutive too: element `i` of the batch belongs to group `group + i / run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// The first element, counted from that of the tensor.
    pub start: usize,
    pub len: usize,
    pub group: usize,
    pub run: usize,
}

/// How a tensor is cut into equal parts of whole groups; only the last may be smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub elems: usize,
    pub groups: usize,
}

impl Piece {
    /// The groups of the piece of that number.
    pub fn groups_of(self, index: usize, layout: Layout) -> ops::Range<usize> {
        let first = index * self.groups;
        first..(first + self.groups).min(layout.groups()).max(first)
    }
}

impl Layout {
    pub fn elems(self) -> usize {
        let (Self::Rows { elems, .. } | Self::Axis { elems, .. } | Self::Tiles { elems, .. }) =
            self;
        elems
    }

    /// The number of groups. An empty tensor has none.
    pub fn groups(self) -> usize {
        match self {
            _ if self.elems() == 0 => 0,
            Self::Rows { elems, row, block } => elems / row * row.div_ceil(block),
            Self::Axis { groups, .. } => groups,
            Self::Tiles { elems, height, width, rows, cols } => {
                elems / (height * width) * height.div_ceil(rows) * width.div_ceil(cols)
            }
        }
    }

    /// How many elements a group has.
    pub fn group_len(self, group: usize) -> usize {
        match self {
            Self::Rows { row, block, .. } => block.min(row - group % row.div_ceil(block) * block),
            Self::Axis { elems, groups, .. } => elems / groups,
            Self::Tiles { height, width, rows, cols, .. } => {
                let (down, across) = (height.div_ceil(rows), width.div_ceil(cols));
                let (y, x) = (group / across % down * rows, group % across * cols);
                rows.min(height - y) * cols.min(width - x)
            }
        }
    }

    /// The `i`th element of a group, in storage order.
    pub fn element(self, group: usize, i: usize) -> usize {
        match self {
            Self::Rows { row, block, .. } => {
                let per_row = row.div_ceil(block);
                group / per_row * row + group % per_row * block + i
            }
            Self::Axis { groups, run, .. } => (i / run * groups + group) * run + i % run,
            Self::Tiles { height, width, rows, cols, .. } => {
                let (down, across) = (height.div_ceil(rows), width.div_ceil(cols));
                let (y, x) = (group / across % down * rows, group % across * cols);
                let across_here = cols.min(width - x);
                let line = group / across / down * height + y + i / across_here;
                line * width + x + i % across_here
            }
        }
    }

    /// Whether a group's elements may lie in several bands, so that its range must be known before the first is rounded.
    pub fn spans_bands(self) -> bool {
        match self {
            Self::Rows { block, .. } => block > BAND_ELEMS,
            Self::Axis { .. } => true,
            Self::Tiles { .. } => false,
        }
    }

    /// Cuts the tensor into bands. Unless [`spans_bands`](Self::spans_bands), each band holds whole groups.
    pub fn bands(self) -> Vec<Band> {
        let elems = self.elems();
        if elems == 0 {
            return Vec::new();
        }
        match self {
            // Long blocks: every band lies inside one of them.
            Self::Rows { row, block, .. } if block > BAND_ELEMS => {
                let mut bands = Vec::new();
                let per_row = row.div_ceil(block);
                for g in 0..self.groups() {
                    let start = g / per_row * row + g % per_row * block;
                    let end = (start + block).min((g / per_row + 1) * row);
                    let mut at = start;
                    while at < end {
                        let next = (at + BAND_ELEMS).min(end);
                        bands.push(Band { elems: at..next, groups: g..g + 1 });
                        at = next;
                    }
                }
                bands
            }
            // Long rows of short blocks: whole blocks of one row.
            Self::Rows { row, block, .. } if row > BAND_ELEMS => {
                let (per_row, per_band) = (row.div_ceil(block), BAND_ELEMS / block);
                let mut bands = Vec::new();
                for r in 0..elems / row {
                    let mut g = 0;
                    while g < per_row {
                        let next = (g + per_band).min(per_row);
                        bands.push(Band {
                            elems: r * row + g * block..r * row + (next * block).min(row),
                            groups: r * per_row + g..r * per_row + next,
                        });
                        g = next;
                    }
                }
                bands
            }
            Self::Rows { row, block, .. } => {
                let (per_row, rows) = (row.div_ceil(block), elems / row);
                // A multiple of eight rows, so that every band's codes start on a byte.
                steps(rows, (BAND_ELEMS / row).max(1).next_multiple_of(8))
                    .map(|r| Band {
                        elems: r.start * row..r.end * row,
                        groups: r.start * per_row..r.end * per_row,
                    })
                    .collect()
            }
            Self::Axis { groups, run, .. } => steps(elems / run, (BAND_ELEMS / run).max(1))
                .map(|r| Band { elems: r.start * run..r.end * run, groups: 0..groups })
                .collect(),
            Self::Tiles { height, width, rows, cols, .. } => {
                let (down, across) = (height.div_ceil(rows), width.div_ceil(cols));
                (0..elems / (height * width) * down)
                    .map(|i| {
                        let (matrix, strip) = (i / down * height * width, i % down * rows);
                        let end = (strip + rows).min(height);
                        Band {
                            elems: matrix + strip * width..matrix + end * width,
                            groups: i * across..(i + 1) * across,
                        }
                    })
                    .collect()
            }
        }
    }

    /// The run that element `at` begins or lies in, cut to what comes from there on; `start` is `at`.
    pub fn run_at(self, at: usize) -> Run {
        let (group, len) = match self {
            Self::Rows { row, block, .. } => {
                let (column, per_row) = (at % row, row.div_ceil(block));
                let group = at / row * per_row + column / block;
                (group, (block - column % block).min(row - column))
            }
            Self::Axis { groups, run, .. } => (at / run % groups, run - at % run),
            Self::Tiles { height, width, rows, cols, .. } => {
                let (matrix, y, x) = (at / (height * width), at / width % height, at % width);
                let strip = matrix * height.div_ceil(rows) + y / rows;
                let group = strip * width.div_ceil(cols) + x / cols;
                (group, (cols - x % cols).min(width - x))
            }
        };
        Run { group, start: at, len }
    }

    /// The length of groups that follow each other through the whole tensor; `None` where lines cut them short.
    pub fn flat(self) -> Option<usize> {
        match self {
            Self::Rows { elems, row, block } => {
                (row >= elems || row.is_multiple_of(block)).then_some(block)
            }
            _ => None,
        }
    }

    /// The elements of a line, whose groups are consecutive, and of each group in it.
    pub fn line(self) -> (usize, usize) {
        match (self, self.flat()) {
            (_, Some(block)) => (self.elems(), block),
            (Self::Rows { row, block, .. }, _) => (row, block),
            (Self::Axis { groups, run, .. }, _) => (groups * run, run),
            (Self::Tiles { width, cols, .. }, _) => (width, cols),
        }
    }

    /// The first group of a line.
    fn group_of_line(self, line: usize) -> usize {
        match self {
            Self::Rows { row, block, .. } => line * row.div_ceil(block),
            Self::Axis { .. } => 0,
            Self::Tiles { height, width, rows, cols, .. } => {
                let strip = line / height * height.div_ceil(rows) + line % height / rows;
                strip * width.div_ceil(cols)
            }
        }
    }

    /// Calls `visit` for consecutive batches of any elements. A group that they cut short at its beginning is a batch
    /// of its own.
    pub fn batches(self, elems: ops::Range<usize>, mut visit: impl FnMut(Batch)) {
        let (width, run) = self.line();
        let mut start = elems.start;
        while start < elems.end {
            let (line, column) = (start / width, start % width);
            let group = self.group_of_line(line) + column / run;
            let missing = column % run;
            let end = if missing > 0 { start + run - missing } else { usize::MAX };
            let end = end.min((line + 1) * width).min(elems.end);
            visit(Batch { start, len: end - start, group, run });
            start = end;
        }
    }

    /// The groups of consecutive elements of rows.
    pub fn groups_of(self, elems: ops::Range<usize>) -> ops::Range<usize> {
        let (width, run) = self.line();
        let group = |elem: usize| self.group_of_line(elem / width) + elem % width / run;
        if elems.is_empty() { 0..0 } else { group(elems.start)..group(elems.end - 1) + 1 }
    }

    /// Cuts the tensor into pieces of whole groups, so that neither the codes of so many bits nor what groups store in
    /// so many bits share a byte. `None` where groups are too long or lie too far apart.
    pub fn pieces(self, bits: u32, group_bits: u32) -> Option<Piece> {
        let elems = self.elems();
        let (width, run) = self.line();
        let unit = match self {
            _ if elems == 0 => return None,
            _ if self.flat().is_some() => Piece { elems: run, groups: 1 },
            Self::Rows { .. } => Piece { elems: width, groups: width.div_ceil(run) },
            Self::Tiles { height, width, rows, .. }
                if height.is_multiple_of(rows) || elems == height * width =>
            {
                Piece { elems: rows * width, groups: width.div_ceil(run) }
            }
            _ => return None,
        };
        let ends_on_bytes = |count: usize, bits: u32| (count % 8 * bits as usize).is_multiple_of(8);
        let step = [1, 2, 4, 8].into_iter().find(|step| {
            ends_on_bytes(step * unit.elems, bits) && ends_on_bytes(step * unit.groups, group_bits)
        })?;
        let count = (PIECE_ELEMS / unit.elems.max(1)).max(1).next_multiple_of(step);
        // A single piece has no neighbour.
        let count = if unit.elems >= elems { 1 } else { count };
        let piece = Piece { elems: count.checked_mul(unit.elems)?, groups: count * unit.groups };
        (piece.elems <= 8 * BAND_ELEMS || matches!(self, Self::Tiles { .. })).then_some(piece)
    }

    /// Calls `visit` for every run of a band, in storage order.
    pub fn runs(self, band: &Band, mut visit: impl FnMut(Run)) {
        let len = band.elems.len();
        match self {
            Self::Rows { row, block, .. } => {
                let mut group = band.groups.start;
                let (mut at, mut column) = (0, band.elems.start % row);
                if block > BAND_ELEMS {
                    return visit(Run { group, start: 0, len });
                }
                while at < len {
                    let run = block.min(row - column);
                    visit(Run { group, start: at, len: run });
                    (at, column, group) = (at + run, (column + run) % row, group + 1);
                }
            }
            Self::Axis { groups, run, .. } => {
                let first = band.elems.start / run;
                for i in 0..len / run {
                    visit(Run { group: (first + i) % groups, start: i * run, len: run });
                }
            }
            Self::Tiles { width, cols, .. } => {
                for start in (0..len).step_by(width) {
                    for (i, column) in (0..width).step_by(cols).enumerate() {
                        let run = cols.min(width - column);
                        visit(Run {
                            group: band.groups.start + i,
                            start: start + column,
                            len: run,
                        });
                    }
                }
            }
        }
    }
}

fn steps(end: usize, step: usize) -> impl Iterator<Item = ops::Range<usize>> {
    (0..end).step_by(step).map(move |at| at..(at + step).min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The group of every element, by the definition of each granularity.
    fn by_definition(granularity: Granularity, shape: &[usize]) -> Vec<usize> {
        let n: usize = shape.iter().product();
        let last = *shape.last().unwrap_or(&1);
        let inner = |axis: usize| shape[axis + 1..].iter().product::<usize>();
        (0..n)
            .map(|i| match granularity {
                Granularity::Tensor => 0,
                Granularity::Channel => i / inner(0),
                Granularity::Axis(a) => i / inner(a) % shape[a],
                Granularity::Row => i / last,
                Granularity::Group(g) => i / last * last.div_ceil(g.min(last)) + i % last / g,
                Granularity::Flat(g) => i / g,
                Granularity::Tile(r, c) => {
                    let height = shape[shape.len() - 2];
                    let (matrix, y, x) = (i / (height * last), i / last % height, i % last);
                    (matrix * height.div_ceil(r) + y / r) * last.div_ceil(c) + x / c
                }
            })
            .collect()
    }

    #[test]
    fn every_element_lies_in_the_group_of_its_definition() {
        let shapes: [&[usize]; 8] = [
            &[5, 7],
            &[1, 1],
            &[4, 3, 5, 7],
            &[3, 70_000],
            &[70_000, 3],
            &[2, 40_000, 2],
            &[40_000, 1],
            &[1, 100_000],
        ];
        for shape in shapes {
            for granularity in [
                Granularity::Tensor,
                Granularity::Channel,
                Granularity::Axis(1),
                Granularity::Row,
                Granularity::Group(1),
                Granularity::Group(3),
                Granularity::Group(1_000_000),
                Granularity::Flat(64),
                Granularity::Flat(50_000),
                Granularity::Tile(2, 3),
            ] {
                let layout = granularity.layout(shape).unwrap();
                let expected = by_definition(granularity, shape);
                let mut got = Vec::new();
                for band in layout.bands() {
                    assert_eq!(band.elems.start, got.len());
                    layout.runs(&band, |run| {
                        assert!(band.groups.contains(&run.group));
                        assert_eq!(
                            band.elems.start + run.start,
                            got.len(),
                            "runs come in storage order"
                        );
                        got.extend(std::iter::repeat_n(run.group, run.len));
                    });
                }
                assert_eq!(got, expected, "{granularity} of {shape:?}");
                let mut lens = vec![0; layout.groups()];
                for (i, &group) in expected.iter().enumerate() {
                    assert_eq!(layout.element(group, lens[group]), i);
                    lens[group] += 1;
                }
                assert!((0..lens.len()).all(|g| layout.group_len(g) == lens[g]));
                let mut at = 0;
                while at < expected.len() {
                    let run = layout.run_at(at);
                    assert_eq!(run.start, at);
                    let end = at + run.len;
                    assert!(expected[at..end].iter().all(|g| *g == run.group));
                    let middle = layout.run_at(at + run.len / 2);
                    assert_eq!((middle.group, middle.start + middle.len), (run.group, end));
                    at = end;
                }
                for (from, to) in
                    [(0, got.len()), (1, got.len() - 1), (got.len() / 3, got.len() / 2)]
                {
                    let mut batched = Vec::new();
                    layout.batches(from..to.max(from), |b| {
                        assert_eq!(b.start, from + batched.len());
                        batched.extend((0..b.len).map(|i| b.group + i / b.run));
                    });
                    assert_eq!(batched, got[from..to.max(from)], "{granularity} of {shape:?}");
                }
                if let Some(piece) = layout.pieces(3, 5) {
                    let starts = (0..got.len()).step_by(piece.elems);
                    for (i, start) in starts.enumerate() {
                        let end = (start + piece.elems).min(got.len());
                        let groups = i * piece.groups..(i + 1) * piece.groups;
                        assert!(got[start..end].iter().all(|g| groups.contains(g)));
                        assert_eq!((start * 3 % 8, i * piece.groups * 5 % 8), (0, 0));
                    }
                }
                assert_eq!(
                    layout.groups(),
                    expected.last().unwrap().max(expected.iter().max().unwrap()) + 1
                );
            }
        }
    }

    #[test]
    fn the_slides_example_of_tiles_holds() {
        // A 4x4 matrix a..p in 2x2 tiles: abef, cdgh, ijmn, klop.
        let groups = by_definition(Granularity::Tile(2, 2), &[4, 4]);
        let tile = |g: usize| -> String {
            ('a'..='p').zip(&groups).filter(|(_, t)| **t == g).map(|(c, _)| c).collect()
        };
        assert_eq!([tile(0), tile(1), tile(2), tile(3)], ["abef", "cdgh", "ijmn", "klop"]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert!(matches!(Granularity::Channel.layout(&[5]), Err(ShapeError::Rank { .. })));
        assert!(matches!(Granularity::Group(4).layout(&[]), Err(ShapeError::Rank { .. })));
        assert!(matches!(Granularity::Axis(2).layout(&[5, 5]), Err(ShapeError::Axis { .. })));
        assert!(matches!(
            Granularity::Tensor.layout(&[usize::MAX, 2]),
            Err(ShapeError::TooLarge { .. })
        ));
        let empty = [0, 1, usize::MAX, usize::MAX];
        assert_eq!(Granularity::Axis(1).layout(&empty).unwrap().groups(), 0);
        assert_eq!(Granularity::Row.layout(&[usize::MAX, 2, 0]).unwrap().groups(), 0);
        assert_eq!(Granularity::Tensor.layout(&[]).unwrap().groups(), 1);
    }
}
