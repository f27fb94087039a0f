//! The embedded data set: handwriting-like digits, generated in code.

use rayon::prelude::*;
use scrimp_codec::philox::Stream;

use super::{DIGITS_STREAM, DataError, DataRequest, DataSet, Form, Images, Splits};

/// Handwritten-looking digits of 28 x 28 grey pixels, generated; no file is needed.
///
/// 8,000 training, 2,000 validation and 2,000 test images, the ten classes equally often in each.
/// A digit is drawn with a round pen along splines through the control points of one of several
/// ways of writing it. The points wobble, the whole is bent, stretched, slanted, turned and
/// shifted, pen and paper vary, faint marks and gaps disturb. The sizes of these effects are set
/// so that a convolutional network does well after a few epochs and a linear classifier does not:
/// number formats should be told apart by what they cost.
///
/// The images are the same for every seed of a run, on every machine and for any number of
/// threads: the generator uses only the operations that IEEE 754 rounds correctly (`+ - * /` and
/// the square root), and image `i` draws its random numbers from step `i` of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Digits;

const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;
const CLASSES: usize = 10;
const TRAIN: usize = 8_000;
const VALIDATION: usize = 2_000;
const TEST: usize = 2_000;
/// Statistics of the whole training set.
const MEAN: f32 = 0.1247;
const STD: f32 = 0.2560;
/// Fixed, so that runs with different seeds differ by training alone.
const SEED: u32 = 1;

impl DataSet for Digits {
    fn name(&self) -> &'static str {
        "digits"
    }

    fn about(&self) -> &'static str {
        "handwriting-like digits, 28 x 28 grey, generated: needs no files"
    }

    fn own_form(&self) -> Option<Form> {
        Some(Form { image_shape: [1, SIDE, SIDE], classes: CLASSES })
    }

    fn load(&self, request: &DataRequest) -> Result<Splits, DataError> {
        request.check(self)?;
        Ok(Splits {
            train: draw(0, request.limit.unwrap_or(TRAIN).min(TRAIN)),
            validation: draw(TRAIN, VALIDATION),
            test: draw(TRAIN + VALIDATION, TEST),
            classes: CLASSES,
            class_names: super::mnist::digits(),
            mean: vec![MEAN],
            std: vec![STD],
            note: "generated".to_owned(),
        })
    }
}

/// Draws the images `first .. first + count`; image `i` shows the digit `i % 10`.
fn draw(first: usize, count: usize) -> Images {
    let mut pixels = vec![0; count * PIXELS];
    pixels.par_chunks_mut(PIXELS).with_min_len(16).enumerate().for_each(|(offset, image)| {
        let index = first + offset;
        let mut dice = Dice::new(index as u64);
        draw_digit(index % CLASSES, &mut dice, image);
    });
    #[expect(clippy::cast_possible_truncation, reason = "the digit is below ten")]
    let labels = (first..first + count).map(|index| (index % CLASSES) as u8).collect();
    Images { pixels, labels, channels: 1, height: SIDE, width: SIDE }
}

/// A point or a vector, x to the right and y down.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    x: f32,
    y: f32,
}

/// Shorthand for the tables: hundredths of the digit's box.
const fn p(x: i16, y: i16) -> Point {
    Point { x: x as f32 / 100.0, y: y as f32 / 100.0 }
}

/// Control points of one pen stroke; a point given twice is a corner.
type Stroke = &'static [Point];

/// Most control points of a stroke.
const MOST_POINTS: usize = 16;

/// Ways to write each digit, in a box of width and height 1.
#[rustfmt::skip]
static WAYS: [&[&[Stroke]]; CLASSES] = [
    // 0: an oval; a leaning oval whose ends cross at the top; a narrow one started at the left.
    &[
        &[&[p(50, 0), p(16, 16), p(4, 50), p(16, 84), p(50, 100), p(84, 84), p(96, 50), p(84, 16), p(50, 0)]],
        &[&[p(66, 4), p(28, 12), p(8, 52), p(22, 92), p(56, 98), p(88, 74), p(92, 34), p(66, 4), p(40, 6)]],
        &[&[p(24, 24), p(14, 62), p(34, 98), p(64, 94), p(80, 56), p(70, 10), p(44, 0), p(24, 24)]],
    ],
    // 1: a bar; with a flag; with a flag and a foot.
    &[
        &[&[p(50, 0), p(49, 34), p(50, 66), p(50, 100)]],
        &[&[p(26, 24), p(54, 0), p(54, 0), p(54, 50), p(53, 100)]],
        &[&[p(28, 20), p(52, 0), p(52, 0), p(52, 50), p(52, 100)], &[p(24, 100), p(52, 99), p(80, 100)]],
    ],
    // 2: round with a flat foot; with a loop at the foot; with a small hook and a long foot.
    &[
        &[&[p(10, 26), p(30, 3), p(66, 0), p(88, 24), p(72, 54), p(36, 80), p(8, 100), p(8, 100), p(50, 99), p(94, 98)]],
        &[&[p(14, 22), p(38, 0), p(74, 6), p(84, 34), p(58, 68), p(24, 94), p(8, 84), p(24, 74), p(58, 90), p(96, 96)]],
        &[&[p(8, 16), p(44, 0), p(84, 12), p(80, 44), p(44, 74), p(10, 98), p(10, 98), p(46, 94), p(96, 100)]],
    ],
    // 3: two bows; a flat top with an angle; two bows that meet in a small loop.
    &[
        &[&[p(10, 12), p(44, 0), p(82, 12), p(78, 36), p(40, 47), p(40, 47), p(82, 58), p(88, 84), p(48, 100), p(6, 88)]],
        &[&[p(10, 2), p(86, 2), p(86, 2), p(42, 42), p(42, 42), p(84, 54), p(90, 82), p(54, 100), p(8, 90)]],
        &[&[p(14, 16), p(50, 0), p(80, 18), p(66, 42), p(38, 50), p(50, 44), p(80, 56), p(86, 82), p(46, 100), p(10, 84)]],
    ],
    // 4: open; closed; open with a slanted arm.
    &[
        &[&[p(18, 0), p(10, 54), p(10, 54), p(52, 56), p(94, 54)], &[p(70, 20), p(69, 60), p(68, 100)]],
        &[&[p(70, 100), p(70, 50), p(70, 0), p(70, 0), p(36, 34), p(4, 66), p(4, 66), p(50, 67), p(96, 66)]],
        &[&[p(32, 0), p(18, 30), p(6, 58), p(6, 58), p(48, 54), p(92, 52)], &[p(80, 8), p(68, 54), p(58, 100)]],
    ],
    // 5: with a separate bar; in one line; round.
    &[
        &[&[p(24, 2), p(18, 44), p(18, 44), p(52, 38), p(86, 58), p(82, 88), p(46, 100), p(8, 90)], &[p(24, 2), p(54, 3), p(88, 0)]],
        &[&[p(88, 4), p(56, 3), p(28, 2), p(28, 2), p(20, 42), p(20, 42), p(58, 40), p(86, 66), p(70, 94), p(34, 100), p(6, 86)]],
        &[&[p(86, 6), p(50, 2), p(22, 14), p(20, 38), p(54, 48), p(84, 66), p(74, 94), p(40, 100), p(8, 90)]],
    ],
    // 6: a wide bow; a straight stem; an almost closed spiral.
    &[
        &[&[p(76, 2), p(38, 18), p(12, 54), p(16, 88), p(50, 100), p(84, 86), p(80, 60), p(50, 52), p(18, 70)]],
        &[&[p(50, 0), p(28, 34), p(14, 68), p(26, 96), p(60, 98), p(80, 78), p(64, 58), p(36, 62), p(18, 80)]],
        &[&[p(82, 14), p(54, 0), p(20, 24), p(8, 64), p(28, 96), p(66, 98), p(86, 74), p(64, 50), p(30, 56), p(12, 74)]],
    ],
    // 7: plain; with a bar through the stem; with a serif and a bent stem.
    &[
        &[&[p(8, 4), p(50, 4), p(92, 2), p(92, 2), p(62, 50), p(42, 100)]],
        &[&[p(10, 4), p(52, 4), p(90, 2), p(90, 2), p(62, 50), p(44, 100)], &[p(32, 52), p(54, 51), p(80, 50)]],
        &[&[p(8, 22), p(12, 4), p(12, 4), p(52, 6), p(92, 4), p(92, 4), p(64, 34), p(52, 66), p(50, 100)]],
    ],
    // 8: one line that crosses itself; two rings; a narrow one, open at the top.
    &[
        &[&[p(80, 14), p(50, 0), p(20, 14), p(30, 38), p(70, 58), p(86, 82), p(50, 100), p(14, 82), p(30, 58), p(70, 38), p(80, 14)]],
        &[
            &[p(50, 0), p(22, 8), p(20, 34), p(50, 46), p(80, 34), p(78, 8), p(50, 0)],
            &[p(50, 46), p(16, 58), p(14, 88), p(50, 100), p(86, 88), p(84, 58), p(50, 46)],
        ],
        &[&[p(78, 6), p(44, 0), p(26, 20), p(46, 44), p(72, 70), p(64, 96), p(34, 98), p(24, 74), p(48, 48), p(74, 24), p(84, 6)]],
    ],
    // 9: a ring and a stem; a ring and a hook; open at the top with a slanted stem.
    &[
        &[&[p(84, 16), p(50, 0), p(16, 14), p(18, 42), p(52, 50), p(84, 30), p(84, 16), p(84, 16), p(82, 58), p(76, 100)]],
        &[&[p(84, 20), p(56, 0), p(20, 12), p(16, 40), p(48, 52), p(82, 34), p(86, 14), p(88, 54), p(76, 90), p(44, 100), p(16, 90)]],
        &[&[p(74, 8), p(40, 2), p(14, 24), p(30, 48), p(64, 40), p(82, 6), p(82, 6), p(72, 54), p(52, 100)]],
    ],
];

/// How much each effect may do. Lengths are in pixels where nothing else is said.
mod look {
    /// Largest displacement of a control point, as a share of the digit's box.
    pub const WOBBLE: f32 = 0.05;
    /// Largest sag of the box's middle against its ends, along either axis, as a share of the box.
    pub const BEND: f32 = 0.12;
    pub const HEIGHT: (f32, f32) = (16.0, 21.0);
    /// Width over height.
    pub const ASPECT: (f32, f32) = (0.50, 0.88);
    /// Largest horizontal displacement per unit of height.
    pub const SLANT: f32 = 0.25;
    /// Largest tangent of half the angle of rotation: 0.12 is 13.7 degrees.
    pub const HALF_TURN: f32 = 0.12;
    pub const SHIFT: f32 = 2.8;
    pub const PEN_RADIUS: (f32, f32) = (0.85, 1.6);
    /// Width of the ramp from ink to paper, which stands for blur.
    pub const EDGE: (f32, f32) = (0.8, 1.8);
    pub const INK: (f32, f32) = (0.7, 1.0);
    /// Most stray marks, and their lengths.
    pub const MARKS: usize = 2;
    pub const MARK_LENGTH: (f32, f32) = (1.0, 6.0);
    /// Share of the digits with a gap, and how much ink stays in it.
    pub const GAPS: f32 = 0.15;
    pub const GAP_REST: (f32, f32) = (0.0, 0.5);
    /// Standard deviation of the noise of a pixel.
    pub const GRAIN: (f32, f32) = (0.01, 0.05);
}

/// Draws one digit into `image`, `[28, 28]`.
fn draw_digit(digit: usize, dice: &mut Dice, image: &mut [u8]) {
    let ways = WAYS[digit];
    let way = ways[dice.below(ways.len())];
    let place = Placement::throw(dice);
    let pen = Pen { radius: dice.between(look::PEN_RADIUS), edge: dice.between(look::EDGE) };
    let mut ink = Canvas([0.0; PIXELS]);
    for stroke in way {
        draw_stroke(stroke, &place, pen, dice, &mut ink);
    }
    if dice.uniform() < look::GAPS {
        // The gap crosses the middle half of the picture, where the digit is.
        let mut gap = Canvas([0.0; PIXELS]);
        let centre = Point { x: dice.between((8.0, 20.0)), y: dice.between((7.0, 21.0)) };
        mark(centre, dice.between((3.0, 7.0)), pen, dice, &mut gap);
        let rest = dice.between(look::GAP_REST);
        for (value, erased) in ink.0.iter_mut().zip(&gap.0) {
            *value *= 1.0 - erased * (1.0 - rest);
        }
    }
    for _ in 0..dice.below(look::MARKS + 1) {
        let mut stray = Canvas([0.0; PIXELS]);
        let centre = Point { x: dice.between((0.0, 28.0)), y: dice.between((0.0, 28.0)) };
        let length = dice.between(look::MARK_LENGTH);
        mark(centre, length, Pen { radius: 0.5, edge: 1.0 }, dice, &mut stray);
        let strength = dice.between((0.3, 0.9));
        for (value, mark) in ink.0.iter_mut().zip(&stray.0) {
            *value = value.max(mark * strength);
        }
    }
    let strength = dice.between(look::INK);
    let grain = dice.between(look::GRAIN);
    for (pixel, value) in image.iter_mut().zip(&ink.0) {
        let level = value * strength + grain * dice.normal();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the level is clamped to 0..=1"
        )]
        let byte = (level.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
        *pixel = byte;
    }
}

/// A straight mark of random direction.
fn mark(centre: Point, length: f32, pen: Pen, dice: &mut Dice, canvas: &mut Canvas) {
    // A point of the square that is not too close to its middle gives a direction without a sine.
    let (mut x, mut y) = (dice.centred(1.0), dice.centred(1.0));
    let norm = (x * x + y * y).sqrt();
    if norm < 0.1 {
        (x, y) = (1.0, 0.0);
    } else {
        (x, y) = (x / norm, y / norm);
    }
    let half = length / 2.0;
    let from = Point { x: centre.x - x * half, y: centre.y - y * half };
    let to = Point { x: centre.x + x * half, y: centre.y + y * half };
    canvas.line(from, to, pen);
}

/// Draws a spline through the displaced control points.
fn draw_stroke(stroke: Stroke, place: &Placement, pen: Pen, dice: &mut Dice, canvas: &mut Canvas) {
    // Lines per piece of the spline, short enough to look round.
    const STEPS: u16 = 6;
    let mut points = [Point { x: 0.0, y: 0.0 }; MOST_POINTS];
    let points = &mut points[..stroke.len()];
    for (i, control) in stroke.iter().enumerate() {
        // Both points of a corner, and both ends of a ring, move together.
        points[i] = if i > 0 && stroke[i - 1] == *control {
            points[i - 1]
        } else if i + 1 == stroke.len() && stroke[0] == *control {
            points[0]
        } else {
            place.apply(Point {
                x: control.x + dice.centred(look::WOBBLE),
                y: control.y + dice.centred(look::WOBBLE),
            })
        };
    }
    let last = points.len() - 1;
    for i in 0..last {
        let ends =
            [points[i.saturating_sub(1)], points[i], points[i + 1], points[(i + 2).min(last)]];
        let mut from = points[i];
        for step in 1..=STEPS {
            let to = catmull_rom(ends, f32::from(step) / f32::from(STEPS));
            canvas.line(from, to, pen);
            from = to;
        }
    }
}

/// The point at `t` in `[0, 1]` between the inner two of four points.
///
/// # Source
/// Catmull and Rom 1974, "A class of local interpolating splines": the uniform cubic case.
fn catmull_rom([a, b, c, d]: [Point; 4], t: f32) -> Point {
    let along = |a: f32, b: f32, c: f32, d: f32| {
        let linear = c - a;
        let square = 2.0 * a - 5.0 * b + 4.0 * c - d;
        let cube = 3.0 * (b - c) + d - a;
        0.5 * (2.0 * b + t * (linear + t * (square + t * cube)))
    };
    Point { x: along(a.x, b.x, c.x, d.x), y: along(a.y, b.y, c.y, d.y) }
}

/// From the digit's box to the picture.
struct Placement {
    bend: Point,
    size: Point,
    slant: f32,
    cosine: f32,
    sine: f32,
    centre: Point,
}

impl Placement {
    fn throw(dice: &mut Dice) -> Self {
        let bend = Point { x: dice.centred(look::BEND), y: dice.centred(look::BEND) };
        let height = dice.between(look::HEIGHT);
        let width = height * dice.between(look::ASPECT);
        // The tangent of the half angle gives a rotation without a sine or a cosine.
        let t = dice.centred(look::HALF_TURN);
        let middle = SIDE as f32 / 2.0;
        Self {
            bend,
            size: Point { x: width, y: height },
            slant: dice.centred(look::SLANT),
            cosine: (1.0 - t * t) / (1.0 + t * t),
            sine: 2.0 * t / (1.0 + t * t),
            centre: Point {
                x: middle + dice.centred(look::SHIFT),
                y: middle + dice.centred(look::SHIFT),
            },
        }
    }

    fn apply(&self, point: Point) -> Point {
        let (x, y) = (point.x - 0.5, point.y - 0.5);
        // A parabola with mean zero over the box, so that a bend does not shift.
        let bow = |t: f32| 4.0 * t * t - 1.0 / 3.0;
        let (x, y) = (x + self.bend.x * bow(y), y + self.bend.y * bow(x));
        let (x, y) = (x * self.size.x, y * self.size.y);
        let x = x - self.slant * y;
        Point {
            x: self.centre.x + self.cosine * x - self.sine * y,
            y: self.centre.y + self.sine * x + self.cosine * y,
        }
    }
}

/// A round pen: full ink up to about `radius`, then a ramp of width `edge`.
#[derive(Clone, Copy)]
struct Pen {
    radius: f32,
    edge: f32,
}

/// Ink in `[0, 1]`, `[28, 28]`.
struct Canvas([f32; PIXELS]);

impl Canvas {
    /// Draws a straight line; ink does not add up where lines overlap.
    fn line(&mut self, from: Point, to: Point, pen: Pen) {
        let reach = pen.radius + pen.edge / 2.0;
        let columns = covered(from.x.min(to.x) - reach, from.x.max(to.x) + reach);
        let rows = covered(from.y.min(to.y) - reach, from.y.max(to.y) + reach);
        let (dx, dy) = (to.x - from.x, to.y - from.y);
        let length_squared = dx * dx + dy * dy;
        for row in rows {
            let y = row as f32 + 0.5 - from.y;
            for column in columns.clone() {
                let x = column as f32 + 0.5 - from.x;
                let along = if length_squared > 0.0 {
                    ((x * dx + y * dy) / length_squared).clamp(0.0, 1.0)
                } else {
                    0.0
                };
                let (x, y) = (x - along * dx, y - along * dy);
                let distance = (x * x + y * y).sqrt();
                let ink = ((pen.radius - distance) / pen.edge + 0.5).clamp(0.0, 1.0);
                let value = &mut self.0[row * SIDE + column];
                *value = value.max(ink);
            }
        }
    }
}

/// The rows or columns that an interval touches.
fn covered(from: f32, to: f32) -> std::ops::Range<usize> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "both ends are clamped to 0..=28"
    )]
    let end = |value: f32| value.clamp(0.0, SIDE as f32) as usize;
    end(from)..(end(to) + 1).min(SIDE)
}

/// The random numbers of one image, in the order in which they are asked for.
struct Dice {
    stream: Stream,
    block: u64,
    words: [u32; 4],
    used: usize,
}

impl Dice {
    fn new(index: u64) -> Self {
        let stream = Stream::new(SEED, DIGITS_STREAM).at_step(index);
        Self { stream, block: 0, words: [0; 4], used: 4 }
    }

    fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = self.stream.words(self.block);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// Uniform on `[0, 1)`, 24 bits.
    fn uniform(&mut self) -> f32 {
        (self.word() >> 8) as f32 / 16_777_216.0
    }

    fn between(&mut self, (low, high): (f32, f32)) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Uniform on `[-most, most)`.
    fn centred(&mut self, most: f32) -> f32 {
        most * (2.0 * self.uniform() - 1.0)
    }

    /// Uniform on `0..count`, for a small count.
    fn below(&mut self, count: usize) -> usize {
        ((u64::from(self.word()) * count as u64) >> 32) as usize
    }

    /// Nearly normal, mean 0 and variance 1: four bytes of one word added up.
    fn normal(&mut self) -> f32 {
        let sum: u32 = self.word().to_le_bytes().into_iter().map(u32::from).sum();
        // The sum of four uniform bytes has mean 510 and variance (256² - 1) / 3.
        (sum as f32 - 510.0) / 147.8
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::super::files::hexadecimal;
    use super::super::{Loader, epoch_order};
    use super::*;

    fn load() -> Splits {
        Digits.load(&DataRequest::default()).unwrap()
    }

    #[test]
    fn the_splits_have_their_sizes_and_every_class_equally_often() {
        let splits = load();
        let parts = [(&splits.train, 8_000), (&splits.validation, 2_000), (&splits.test, 2_000)];
        for (images, count) in parts {
            assert_eq!(images.len(), count);
            assert_eq!(images.pixels.len(), count * PIXELS);
            let mut of_class = [0; CLASSES];
            for &label in &images.labels {
                of_class[usize::from(label)] += 1;
            }
            assert_eq!(of_class, [count / CLASSES; CLASSES]);
        }
    }

    #[test]
    fn the_images_are_those_of_every_other_machine() {
        let splits = load();
        let parts = [
            (&splits.train, "e16ebd25d9aeb3e7536f4e5c006e4d3a1b8dbc15f1b2eff7d900f5c8d739d804"),
            (
                &splits.validation,
                "b2eb47f1f2d586a1446dc4da593511cacf8b7d0b171bf1fd73eb38f817a34a9a",
            ),
            (&splits.test, "e9244419262f3ad40670a651293e824c4a20cedf7f1494a4ee09feed1ea9d1de"),
        ];
        for (images, sha256) in parts {
            assert_eq!(hexadecimal(&Sha256::digest(&images.pixels)), sha256);
        }
    }

    #[test]
    fn the_images_are_the_same_for_any_number_of_threads() {
        let with_threads = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| draw(100, 300))
        };
        let one = with_threads(1);
        assert_eq!(one, with_threads(2));
        assert_eq!(one, with_threads(5));
    }

    #[test]
    fn a_limit_keeps_the_head_of_the_training_set_and_all_of_the_rest() {
        let all = load();
        let limited = Digits.load(&DataRequest { limit: Some(70), ..DataRequest::default() });
        let limited = limited.unwrap();
        assert_eq!(limited.train.labels, all.train.labels[..70]);
        assert_eq!(limited.train.pixels, all.train.pixels[..70 * PIXELS]);
        assert_eq!((limited.validation, limited.test), (all.validation, all.test));
    }

    #[test]
    fn the_statistics_are_those_of_the_training_set() {
        let pixels = load().train.pixels;
        let count = pixels.len() as f64;
        let sum: u64 = pixels.iter().map(|&pixel| u64::from(pixel)).sum();
        let squares: u64 = pixels.iter().map(|&pixel| u64::from(pixel).pow(2)).sum();
        let mean = sum as f64 / count / 255.0;
        let std = (squares as f64 / count / (255.0 * 255.0) - mean * mean).sqrt();
        assert!((mean - f64::from(MEAN)).abs() < 5e-5, "{mean}");
        assert!((std - f64::from(STD)).abs() < 5e-5, "{std}");
    }

    #[test]
    fn no_image_comes_twice() {
        let splits = load();
        let mut images = std::collections::HashSet::new();
        for part in [&splits.train, &splits.validation, &splits.test] {
            for index in 0..part.len() {
                assert!(images.insert(part.image(index).to_vec()), "{part:?} {index}");
            }
        }
    }

    #[test]
    fn the_tables_stay_within_the_box_and_the_longest_stroke() {
        for stroke in WAYS.iter().flat_map(|ways| ways.iter()).flat_map(|way| way.iter()) {
            assert!((2..=MOST_POINTS).contains(&stroke.len()));
            for point in *stroke {
                assert!((0.0..=1.0).contains(&point.x) && (0.0..=1.0).contains(&point.y));
            }
        }
    }

    #[test]
    fn a_spline_runs_through_its_inner_points() {
        let points = [p(10, 20), p(30, 25), p(50, 75), p(100, 50)];
        assert_eq!(catmull_rom(points, 0.0), points[1]);
        let end = catmull_rom(points, 1.0);
        assert!((end.x - points[2].x).abs() < 1e-6 && (end.y - points[2].y).abs() < 1e-6);
    }

    /// Multinomial logistic regression by plain stochastic gradient descent, batches of 64.
    fn softmax_regression_accuracy(splits: &Splits, epochs: u64, rate: f32) -> f64 {
        let train = Loader::new(&splits.train, &splits.mean, &splits.std);
        let mut weights = vec![0.0_f32; CLASSES * PIXELS];
        let mut biases = [0.0_f32; CLASSES];
        let scores = |weights: &[f32], biases: &[f32; CLASSES], x: &[f32]| {
            let mut scores = *biases;
            for (score, row) in scores.iter_mut().zip(weights.chunks_exact(PIXELS)) {
                *score += row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
            }
            scores
        };
        let mut batch = vec![0.0; 64 * PIXELS];
        for epoch in 0..epochs {
            for indices in epoch_order(splits.train.len(), 1, epoch).chunks_exact(64) {
                train.fill(indices, epoch, &mut batch);
                let errors: Vec<[f32; CLASSES]> = batch
                    .chunks_exact(PIXELS)
                    .zip(train.labels(indices))
                    .map(|(x, label)| {
                        let mut p = scores(&weights, &biases, x);
                        let most = p.iter().copied().fold(f32::MIN, f32::max);
                        p = p.map(|p| (p - most).exp());
                        let sum: f32 = p.iter().sum();
                        p = p.map(|p| p / sum);
                        p[usize::from(label)] -= 1.0;
                        p
                    })
                    .collect();
                let step = rate / 64.0;
                for (x, error) in batch.chunks_exact(PIXELS).zip(&errors) {
                    for (class, row) in weights.chunks_exact_mut(PIXELS).enumerate() {
                        biases[class] -= step * error[class];
                        for (w, x) in row.iter_mut().zip(x) {
                            *w -= step * error[class] * x;
                        }
                    }
                }
            }
        }
        let test = Loader::new(&splits.test, &splits.mean, &splits.std);
        let mut x = vec![0.0; PIXELS];
        let mut right = 0;
        for index in 0..2_000 {
            test.fill(&[index], 0, &mut x);
            let scores = scores(&weights, &biases, &x);
            let best = (0..CLASSES).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
            right += usize::from(best == usize::from(splits.test.labels[index as usize]));
        }
        right as f64 / 2_000.0
    }

    #[test]
    fn a_linear_classifier_learns_something_but_stays_far_from_solving_them() {
        let accuracy = softmax_regression_accuracy(&load(), 8, 0.02);
        println!("softmax regression: {accuracy:.3}");
        assert!((0.70..0.90).contains(&accuracy), "{accuracy}");
    }
}
