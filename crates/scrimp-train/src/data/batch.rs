//! The order of an epoch, and batches of normalized, augmented images.

use rayon::prelude::*;
use scrimp_codec::philox::Stream;

use super::{AUGMENT_STREAM, Images, ORDER_STREAM};

/// Random changes to training images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Augment {
    /// Moves the picture by up to this many pixels along each axis, which is padding on all sides
    /// and a random crop of the original size. What comes into view is black (pixel 0).
    pub crop_pad: usize,
    /// Mirrors every second picture left to right, by chance.
    pub flip: bool,
}

/// The order in which an epoch visits `count` images: a permutation of `0..count` that depends on
/// nothing but its arguments.
///
/// # Panics
/// If `count` does not fit into `u32`.
pub fn epoch_order(count: usize, seed: u32, epoch: u64) -> Vec<u32> {
    permutation(count, &Stream::new(seed, ORDER_STREAM).at_step(epoch))
}

/// A random permutation of `0..count`.
///
/// # Source
/// Fisher and Yates, in the form of Durstenfeld 1964, Algorithm 235. A choice among `n` is the
/// upper half of a 64-bit random number times `n`, uneven by less than `n / 2^64`.
pub(super) fn permutation(count: usize, stream: &Stream) -> Vec<u32> {
    let count = u32::try_from(count).expect("a data set has fewer than 2^32 images");
    let mut order: Vec<u32> = (0..count).collect();
    let mut words = [0; 4];
    for (drawn, last) in (1..order.len()).rev().enumerate() {
        // One block of four words serves two draws.
        if drawn % 2 == 0 {
            words = stream.words(drawn as u64 / 2);
        } else {
            words.rotate_left(2);
        }
        let random = u64::from(words[0]) | u64::from(words[1]) << 32;
        let choices = last as u128 + 1;
        let other = (u128::from(random) * choices) >> 64;
        order.swap(last, other as usize);
    }
    order
}

/// Turns images into batches: `(pixel / 255 - mean) / std` per channel, augmented where asked.
///
/// What is drawn for an image depends on the seed, the epoch and the index of the image, so a batch
/// has the same bytes for any number of threads and wherever in the epoch it comes.
#[derive(Debug, Clone)]
pub struct Loader<'a> {
    images: &'a Images,
    /// `[channels, 256]`: the normalized value of every pixel value.
    values: Vec<[f32; 256]>,
    augment: Augment,
    seed: u32,
}

impl<'a> Loader<'a> {
    /// A loader without augmentation, for evaluation.
    ///
    /// `mean` and `std` hold one value per channel, in units of `pixel / 255`, as in
    /// [`Splits`](super::Splits).
    ///
    /// # Panics
    /// If `mean` or `std` is not one value per channel.
    pub fn new(images: &'a Images, mean: &[f32], std: &[f32]) -> Self {
        assert_eq!(mean.len(), images.channels, "one mean per channel");
        assert_eq!(std.len(), images.channels, "one standard deviation per channel");
        let values = mean
            .iter()
            .zip(std)
            .map(|(mean, std)| {
                std::array::from_fn(|pixel| (pixel as f32 / 255.0 - mean) / std)
            })
            .collect();
        Self { images, values, augment: Augment::default(), seed: 0 }
    }

    /// The same loader with augmentation, keyed by `seed`.
    #[must_use]
    pub fn augmented(self, augment: Augment, seed: u32) -> Self {
        Self { augment, seed, ..self }
    }

    /// The images behind it.
    pub fn images(&self) -> &'a Images {
        self.images
    }

    /// The labels of the images at `indices`, in order.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn labels(&self, indices: &[u32]) -> impl ExactSizeIterator<Item = u8> {
        indices.iter().map(|&index| self.images.labels[index as usize])
    }

    /// Fills `out`, `[indices.len(), channels, height, width]`, with the images at `indices` as
    /// they look in `epoch`. Nothing is allocated.
    ///
    /// # Panics
    /// If an index is out of range or `out` has another length.
    pub fn fill(&self, indices: &[u32], epoch: u64, out: &mut [f32]) {
        let image_len = self.images.image_len();
        assert_eq!(out.len(), indices.len() * image_len, "length of the batch");
        // Below this many values a second thread costs more than it saves.
        const WORTH_A_THREAD: usize = 1 << 14;
        let per_thread = WORTH_A_THREAD.div_ceil(image_len);
        let stream = Stream::new(self.seed, AUGMENT_STREAM).at_step(epoch);
        out.par_chunks_exact_mut(image_len)
            .zip(indices)
            .with_min_len(per_thread)
            .for_each(|(out, &index)| self.fill_image(index, &stream, out));
    }

    fn fill_image(&self, index: u32, stream: &Stream, out: &mut [f32]) {
        let (height, width) = (self.images.height, self.images.width);
        let planes = self.images.image(index as usize).chunks_exact(height * width);
        let View { down, right, flip } = View::draw(self.augment, index, stream);
        for ((plane, values), out) in
            planes.zip(&self.values).zip(out.chunks_exact_mut(height * width))
        {
            if (down, right, flip) == (0, 0, false) {
                for (out, &pixel) in out.iter_mut().zip(plane) {
                    *out = values[usize::from(pixel)];
                }
                continue;
            }
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                let source = row.checked_add_signed(down).filter(|&row| row < height);
                let Some(source) = source.map(|row| &plane[row * width..][..width]) else {
                    out.fill(values[0]);
                    continue;
                };
                for (column, out) in out.iter_mut().enumerate() {
                    let column = if flip { width - 1 - column } else { column };
                    let pixel = column.checked_add_signed(right).and_then(|at| source.get(at));
                    *out = values[usize::from(pixel.copied().unwrap_or(0))];
                }
            }
        }
    }
}

/// What of an image is seen.
struct View {
    /// Rows by which the view lies below the image.
    down: isize,
    /// Columns by which the view lies right of the image.
    right: isize,
    /// Whether the view is mirrored.
    flip: bool,
}

impl View {
    fn draw(augment: Augment, index: u32, stream: &Stream) -> Self {
        if augment == Augment::default() {
            return Self { down: 0, right: 0, flip: false };
        }
        let words = stream.words(u64::from(index));
        let places = 2 * augment.crop_pad as u64 + 1;
        let shift = |word: u32| {
            let place = (u64::from(word) * places) >> 32;
            place as isize - augment.crop_pad as isize
        };
        Self {
            down: shift(words[0]),
            right: shift(words[1]),
            flip: augment.flip && words[2] >> 31 == 1,
        }
    }
}
