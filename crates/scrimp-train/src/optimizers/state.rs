//! What an optimizer keeps of a parameter between steps: in f32, or as the bytes of a scheme.
//!
//! Divided by a root, a second moment must not be lost where the first is there. So two things are seen to, for every
//! codec:
//!
//! - Where the bytes of a second moment would lose a value that is above zero, or whose first moment is not zero, it is
//!   raised to the smallest positive value that its codes offer ([`Scheme::smallest`]) and encoded again. That does not
//!   change a scale that follows from the largest value.
//! - Where bytes hold no positive second moment all the same, because the codec drops values or its values may be
//!   negative, an update takes the square of the first moment, so that the step is about as long as the learning rate.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use scrimp_codec::codecs::Size;
use scrimp_codec::{Granularity, Scheme};

use super::{Content, OptimizerConfig};
use crate::tap::{Point, Session};

/// About how many values are there in f32 at a time, where a scheme allows that a parameter is cut.
const PART_ELEMS: usize = 1 << 18;

/// How a moment of a parameter becomes bytes.
#[derive(Debug)]
pub(super) struct Packing {
    scheme: Scheme,
    elems: usize,
    /// Elements of a part; only the last may have fewer.
    part_elems: usize,
    /// Bytes of a part and of all, where there are several parts.
    part_bytes: usize,
    bytes: usize,
    parts: Vec<Part>,
}

/// A part of a parameter, which is a tensor of its own to the scheme.
#[derive(Debug)]
struct Part {
    shape: Vec<usize>,
    point: Point,
}

impl Packing {
    /// The packing of the tensor called `name`, whose random streams are that name and, after the first part, the name
    /// with `+` and the number of the part's first element.
    pub fn new(name: &str, scheme: &Scheme, shape: &[usize], session: &Arc<Session>) -> Arc<Self> {
        let elems = shape.iter().product();
        let rows = part_rows(scheme, shape);
        let whole = shape.first().copied().unwrap_or(1);
        let row = elems / whole.max(1);
        let parts = (0..whole.max(1)).step_by(rows.max(1)).map(|first| {
            let name = if first == 0 { name.to_owned() } else { format!("{name}+{}", first * row) };
            let shape = match shape {
                [] => Vec::new(),
                [all, rest @ ..] => [&[rows.min(all - first)], rest].concat(),
            };
            Part { shape, point: Point::new(name, Some(scheme.clone()), session) }
        });
        let parts: Vec<Part> = parts.collect();
        let part_elems = if parts.len() == 1 { elems } else { rows * row };
        let size = |shape: &[usize]| scheme.size(shape).ok().and_then(Size::exact).unwrap_or(0);
        let (part_bytes, bytes) = (size(&parts[0].shape), size(shape));
        Arc::new(Self { scheme: scheme.clone(), elems, part_elems, part_bytes, bytes, parts })
    }

    /// The parts within these elements, which begin and end where parts do, with the elements and bytes of each.
    fn parts(&self, range: &Range<usize>) -> impl Iterator<Item = (&Part, Range<usize>, usize)> {
        let first = range.start / self.part_elems.max(1);
        let count = range.len().div_ceil(self.part_elems.max(1));
        self.parts[first..first + count].iter().enumerate().map(move |(i, part)| {
            let start = i * self.part_elems;
            let end = (start + self.part_elems).min(range.len());
            (part, start..end, (first + i) * self.part_bytes)
        })
    }

    fn is_whole(&self) -> bool {
        self.parts.len() == 1
    }

    /// Where the bytes of a part lie that begin at `start`.
    fn place(&self, bytes: &[u8], start: usize) -> Range<usize> {
        if self.is_whole() {
            return 0..bytes.len();
        }
        start..(start + self.part_bytes).min(bytes.len())
    }

    fn decode(&self, bytes: &[u8], range: &Range<usize>, out: &mut [f32]) {
        for (part, elems, start) in self.parts(range) {
            let bytes = &bytes[self.place(bytes, start)];
            part.point.report_decoding(self.scheme.decode(bytes, &part.shape, &mut out[elems]));
        }
    }

    /// Fills `out` with the smallest positive values that codes offer.
    fn smallest(&self, bytes: &[u8], range: &Range<usize>, out: &mut [f32]) {
        for (part, elems, start) in self.parts(range) {
            let bytes = &bytes[self.place(bytes, start)];
            part.point.report_decoding(self.scheme.smallest(bytes, &part.shape, &mut out[elems]));
        }
    }

    /// Whether somebody wants to know what rounding does to the moment.
    fn is_compared(&self) -> bool {
        self.parts[0].point.is_compared()
    }

    /// Notes what bytes lost of the values of these elements, if somebody wants to know.
    fn compare(&self, x: &[f32], range: &Range<usize>, bytes: &[u8]) {
        // What was refused has no bytes, and was reported.
        if bytes.is_empty() {
            return;
        }
        for (part, elems, start) in self.parts(range) {
            part.point.compare(&x[elems], &bytes[self.place(bytes, start)], &part.shape);
        }
    }

    /// Encodes the values of these elements. `spare` is room for the bytes of a part.
    fn encode(&self, x: &[f32], range: &Range<usize>, bytes: &mut Vec<u8>, spare: &mut Vec<u8>) {
        if bytes.is_empty() && !self.is_whole() {
            bytes.resize(self.bytes, 0);
        }
        for (part, elems, start) in self.parts(range) {
            spare.clear();
            // What a scheme cannot hold was reported, and ends the training.
            if !part.point.encode_into(&x[elems], &part.shape, spare) {
                return;
            }
            if self.is_whole() {
                std::mem::swap(bytes, spare);
            } else {
                let place = self.place(bytes, start);
                bytes[place].copy_from_slice(spare);
            }
        }
    }
}

/// How many rows a part has, so that the scheme makes the same of parts as of the whole: no group lies in two of them,
/// and they take as many bytes. All rows, where that cannot be, or the parameter is short.
fn part_rows(scheme: &Scheme, shape: &[usize]) -> usize {
    const BITS: usize = u8::BITS as usize;
    let [whole, rest @ ..] = shape else { return 1 };
    let row: usize = rest.iter().product();
    if whole * row <= PART_ELEMS {
        return *whole;
    }
    // Codes of a part begin at a byte, and flat groups at an element.
    let unit = match scheme.granularity() {
        None if scheme.format().is_some() => BITS,
        Some(
            Granularity::Channel | Granularity::Axis(0) | Granularity::Row | Granularity::Group(_),
        ) => BITS,
        Some(Granularity::Flat(len)) => len / common_divisor(len, BITS) * BITS,
        _ => return *whole,
    };
    let step = unit / common_divisor(unit, row);
    let rows = (PART_ELEMS / row / step * step).max(step);
    if rows >= *whole {
        return *whole;
    }
    let size = |rows: usize| match rows {
        0 => Some(0),
        rows => scheme.size(&[&[rows], rest].concat()).ok()?.exact(),
    };
    let parts = || Some(whole / rows * size(rows)? + size(whole % rows)?);
    if parts().is_some() && parts() == size(*whole) { rows } else { *whole }
}

fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// Buffers that one parameter after the other uses.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Values of a part of each moment.
    moments: [Vec<f32>; 3],
    /// What the bytes of a part hold.
    decoded: Vec<f32>,
    /// The smallest positive values of a part.
    smallest: Vec<f32>,
    bytes: Vec<u8>,
}

/// The moments of a parameter.
#[derive(Debug)]
pub(super) struct State {
    moments: Vec<Held>,
    elems: usize,
}

/// A moment as it is held.
#[derive(Debug)]
enum Held {
    Float(Vec<f32>),
    /// Before the first update there are no bytes, and all values are zero.
    Packed(Arc<Packing>, Vec<u8>),
}

/// The packings of a parameter's moments, by number.
type Packings = BTreeMap<usize, Arc<Packing>>;

impl State {
    /// The state before the first update of a parameter with so many elements.
    pub fn new(moments: usize, packings: Option<&Packings>, elems: usize) -> Self {
        let held = |i| match packings.and_then(|p| p.get(&i)) {
            Some(packing) => Held::Packed(Arc::clone(packing), Vec::new()),
            None => Held::Float(vec![0.0; elems]),
        };
        Self { moments: (0..moments).map(held).collect(), elems }
    }

    /// The state that was saved; [`check`] has seen it.
    pub fn of(contents: Vec<Content>, packings: Option<&Packings>, elems: usize) -> Self {
        let mut state = Self::new(contents.len(), packings, elems);
        for (held, content) in state.moments.iter_mut().zip(contents) {
            match (held, content) {
                (Held::Float(values), Content::Values(saved)) => *values = saved,
                (Held::Packed(_, bytes), Content::Bytes { bytes: saved, .. }) => *bytes = saved,
                _ => unreachable!("what was saved is held as it was checked to be"),
            }
        }
        state
    }

    pub fn contents(&self) -> impl Iterator<Item = Content> {
        self.moments.iter().map(|held| match held {
            Held::Float(values) => Content::Values(values.clone()),
            Held::Packed(packing, bytes) => {
                Content::Bytes { scheme: packing.scheme.to_string(), bytes: bytes.clone() }
            }
        })
    }

    /// How many bytes are held of each moment.
    pub fn bytes(&self) -> impl Iterator<Item = usize> {
        self.moments.iter().map(|held| match held {
            Held::Float(values) => size_of_val(&values[..]),
            Held::Packed(_, bytes) => bytes.len(),
        })
    }

    /// The moments as an update sees them.
    pub fn values(&self) -> Vec<Vec<f32>> {
        let mut all: Vec<Vec<f32>> = self
            .moments
            .iter()
            .map(|held| match held {
                Held::Float(values) => values.clone(),
                Held::Packed(packing, bytes) => {
                    let mut values = vec![0.0; self.elems];
                    if !bytes.is_empty() {
                        packing.decode(bytes, &(0..self.elems), &mut values);
                    }
                    values
                }
            })
            .collect();
        if self.is_packed() {
            replace_lost(&mut all.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        }
        all
    }

    fn is_packed(&self) -> bool {
        self.moments.iter().any(|held| matches!(held, Held::Packed(..)))
    }

    /// How many elements are updated at a time: a part, where all packed moments have the same parts.
    fn part_elems(&self) -> usize {
        let mut sizes = self.moments.iter().filter_map(|held| match held {
            Held::Float(_) => None,
            Held::Packed(packing, _) => Some(packing.part_elems),
        });
        let first = sizes.next().unwrap_or(self.elems);
        if sizes.all(|size| size == first) { first } else { self.elems }
    }

    /// One update of the parameter `w` with the gradient `g`.
    pub fn update(
        &mut self,
        config: &OptimizerConfig,
        lr: f64,
        step: u64,
        w: &mut [f32],
        g: &[f32],
        room: &mut Room,
    ) {
        let part = self.part_elems().max(1);
        let is_packed = self.is_packed();
        let is_new: Vec<bool> = self
            .moments
            .iter()
            .map(|held| matches!(held, Held::Packed(_, bytes) if bytes.is_empty()))
            .collect();
        for start in (0..self.elems).step_by(part) {
            let range = start..(start + part).min(self.elems);
            let mut moments: Vec<&mut [f32]> = Vec::with_capacity(room.moments.len());
            for ((held, values), is_new) in
                self.moments.iter_mut().zip(&mut room.moments).zip(&is_new)
            {
                match held {
                    Held::Float(all) => moments.push(&mut all[range.clone()]),
                    Held::Packed(packing, bytes) => {
                        let values = resized(values, range.len());
                        if *is_new {
                            values.fill(0.0);
                        } else {
                            packing.decode(bytes, &range, values);
                        }
                        moments.push(values);
                    }
                }
            }
            if is_packed {
                replace_lost(&mut moments);
            }
            config.update(lr, step, &mut w[range.clone()], &g[range.clone()], &mut moments);
            self.encode(&range, room);
        }
    }

    /// Encodes what an update has left in `room`.
    fn encode(&mut self, range: &Range<usize>, room: &mut Room) {
        let Room { moments: values, decoded, smallest, bytes: spare } = room;
        let [first_values, later_values @ ..] = values;
        let Some((first, later)) = self.moments.split_first_mut() else { return };
        if let Held::Packed(packing, bytes) = first {
            packing.encode(first_values, range, bytes, spare);
            packing.compare(first_values, range, bytes);
        }
        let mut is_decoded = false;
        for (held, values) in later.iter_mut().zip(later_values) {
            let Held::Packed(packing, bytes) = held else { continue };
            let unrounded = packing.is_compared().then(|| values.clone());
            packing.encode(values, range, bytes, spare);
            if bytes.is_empty() {
                // It was refused, which was reported.
                continue;
            }
            packing.decode(bytes, range, resized(decoded, range.len()));
            if decoded.iter().any(|v| *v <= 0.0 || v.is_nan()) {
                packing.smallest(bytes, range, resized(smallest, range.len()));
                let first: &[f32] = match &*first {
                    Held::Float(all) => &all[range.clone()],
                    Held::Packed(packing, bytes) => {
                        if !is_decoded && !bytes.is_empty() {
                            packing.decode(bytes, range, first_values);
                            is_decoded = true;
                        }
                        first_values
                    }
                };
                let mut is_raised = false;
                let known = decoded.iter().zip(&*smallest).zip(first);
                for (v, ((decoded, least), m)) in values.iter_mut().zip(known) {
                    if *decoded <= 0.0 && (*v > 0.0 || *m != 0.0) && *v < *least {
                        *v = *least;
                        is_raised = true;
                    }
                }
                if is_raised {
                    packing.encode(values, range, bytes, spare);
                }
            }
            if let Some(unrounded) = unrounded {
                packing.compare(&unrounded, range, bytes);
            }
        }
    }
}

/// The buffer with this length, whatever it holds.
fn resized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}

/// Makes second moments that bytes have lost such that they can divide the first: none is below zero, and none zero where
/// the first is not.
fn replace_lost(moments: &mut [&mut [f32]]) {
    let Some((first, later)) = moments.split_first_mut() else { return };
    for second in later {
        for (v, m) in second.iter_mut().zip(&**first) {
            if *v <= 0.0 {
                *v = if *m == 0.0 { 0.0 } else { (m * m).max(f32::MIN_POSITIVE) };
            }
        }
    }
}

/// Whether a saved moment of a parameter with so many elements is held as it would be here; if not, why.
pub(super) fn check(
    content: &Content,
    packing: Option<&Arc<Packing>>,
    elems: usize,
) -> Result<(), String> {
    match (content, packing) {
        (Content::Values(values), None) if values.len() == elems => Ok(()),
        (Content::Values(_), None) => Err("its length is not that of the parameter".into()),
        (Content::Values(_), Some(packing)) => {
            Err(format!("it is f32, and the plan says `{}`", packing.scheme))
        }
        (Content::Bytes { scheme, .. }, None) => {
            Err(format!("it is packed as `{scheme}`, and the plan says f32"))
        }
        (Content::Bytes { scheme, .. }, Some(packing)) if *scheme != packing.scheme.to_string() => {
            Err(format!("it is packed as `{scheme}`, and the plan says `{}`", packing.scheme))
        }
        (Content::Bytes { .. }, Some(packing)) if packing.elems != elems => {
            Err("the plan has another shape for its parameter".into())
        }
        (Content::Bytes { bytes, .. }, Some(packing))
            if !packing.is_whole() && packing.bytes != bytes.len() =>
        {
            Err(format!("it has {} bytes, and {} are needed", bytes.len(), packing.bytes))
        }
        (Content::Bytes { bytes, .. }, Some(packing)) => {
            let mut values = vec![0.0; packing.part_elems];
            for (part, range, start) in packing.parts(&(0..elems)) {
                let (bytes, out) =
                    (&bytes[packing.place(bytes, start)], &mut values[..range.len()]);
                packing.scheme.decode(bytes, &part.shape, out).map_err(|e| e.to_string())?;
            }
            Ok(())
        }
    }
}
