//! The order of an epoch, and batches of normalized, augmented images.

use rayon::prelude::*;
use scrimp_codec::philox::Stream;

use super::{AUGMENT_STREAM, DataError, Images, ORDER_STREAM};

/// Random changes to training images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Augment {
    /// Moves the picture by up to this many pixels along each axis, which is padding on all sides
    /// and a random crop of the original size. What comes into view is black (pixel 0).
    pub crop_pad: usize,
    /// Mirrors every second picture left to right, by chance.
    pub flip: bool,
}

impl Augment {
    /// Whether images of this shape, `[channels, height, width]`, can be augmented like that.
    ///
    /// # Errors
    /// [`DataError::CropPad`] where a crop could leave nothing of the picture.
    pub fn check(&self, image_shape: [usize; 3]) -> Result<(), DataError> {
        let [_, height, width] = image_shape;
        // No padding is right for any picture, an empty one included.
        if self.crop_pad > 0 && self.crop_pad >= height.min(width) {
            return Err(DataError::CropPad { crop_pad: self.crop_pad, height, width });
        }
        Ok(())
    }
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
        #[expect(clippy::cast_possible_truncation, reason = "at most `last`, which is an index")]
        let other = other as usize;
        order.swap(last, other);
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
            .map(|(mean, std)| std::array::from_fn(|pixel| (pixel as f32 / 255.0 - mean) / std))
            .collect();
        Self { images, values, augment: Augment::default(), seed: 0 }
    }

    /// The same loader with augmentation, keyed by `seed`.
    ///
    /// # Panics
    /// If [`Augment::check`] refuses the augmentation for these images.
    #[must_use]
    pub fn augmented(self, augment: Augment, seed: u32) -> Self {
        let Images { channels, height, width, .. } = *self.images;
        let checked = augment.check([channels, height, width]);
        assert!(checked.is_ok(), "an augmentation that was not checked: {checked:?}");
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
        // Below this many values a second thread costs more than it saves.
        const WORTH_A_THREAD: usize = 1 << 14;
        let image_len = self.images.image_len();
        assert_eq!(out.len(), indices.len() * image_len, "length of the batch");
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
            let place = ((u64::from(word) * places) >> 32) as usize;
            place.cast_signed() - augment.crop_pad.cast_signed()
        };
        Self {
            down: shift(words[0]),
            right: shift(words[1]),
            flip: augment.flip && words[2] >> 31 == 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` images of 2 x 5 x 4 with all values different within an image.
    fn images(count: u8) -> Images {
        let pixels =
            (0..count).flat_map(|i| (0..40).map(move |j| i.wrapping_mul(7).wrapping_add(j * 5)));
        Images {
            pixels: pixels.collect(),
            labels: (0..count).collect(),
            channels: 2,
            height: 5,
            width: 4,
        }
    }

    const MEAN: [f32; 2] = [0.25, 0.5];
    const STD: [f32; 2] = [0.5, 0.125];

    fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }

    #[test]
    fn an_order_visits_every_image_once_and_changes_with_seed_and_epoch() {
        for count in [0, 1, 2, 3, 10, 1001] {
            let mut order = epoch_order(count, 7, 3);
            assert_eq!(order, epoch_order(count, 7, 3));
            order.sort_unstable();
            assert!(order.iter().enumerate().all(|(i, &at)| i == at as usize), "{count}");
        }
        assert_ne!(epoch_order(100, 7, 3), epoch_order(100, 7, 4));
        assert_ne!(epoch_order(100, 7, 3), epoch_order(100, 8, 3));
    }

    #[test]
    fn every_image_is_equally_likely_at_every_place() {
        const COUNT: usize = 5;
        const EPOCHS: u64 = 20_000;
        let mut seen = [[0_u32; COUNT]; COUNT];
        for epoch in 0..EPOCHS {
            for (place, &image) in epoch_order(COUNT, 1, epoch).iter().enumerate() {
                seen[place][image as usize] += 1;
            }
        }
        // The expected count is 4,000 with a standard deviation of 56.6; five of them are allowed.
        for count in seen.as_flattened() {
            assert!(count.abs_diff(4_000) < 283, "{seen:?}");
        }
    }

    #[test]
    fn a_batch_without_augmentation_is_the_normalized_pixels() {
        let images = images(6);
        let loader = Loader::new(&images, &MEAN, &STD);
        let indices = [4, 0, 4];
        let mut out = vec![f32::NAN; indices.len() * 40];
        loader.fill(&indices, 9, &mut out);
        for (slot, &index) in indices.iter().enumerate() {
            for (at, &pixel) in images.image(index as usize).iter().enumerate() {
                let channel = at / 20;
                let expected = (f32::from(pixel) / 255.0 - MEAN[channel]) / STD[channel];
                assert_eq!(out[slot * 40 + at].to_bits(), expected.to_bits());
            }
        }
        assert_eq!(loader.labels(&indices).collect::<Vec<_>>(), [4, 0, 4]);
    }

    #[test]
    fn an_augmented_image_is_a_crop_of_the_padded_picture_and_perhaps_mirrored() {
        const PAD: usize = 2;
        let images = images(1);
        let augment = Augment { crop_pad: PAD, flip: true };
        let loader = Loader::new(&images, &MEAN, &STD).augmented(augment, 3);
        let plain = Loader::new(&images, &MEAN, &STD);
        // All 5 x 5 x 2 views, made the slow way: pad, cut, mirror.
        let view = |top: usize, left: usize, flip: bool| {
            let (high, wide) = (5 + 2 * PAD, 4 + 2 * PAD);
            let mut out = Vec::new();
            for plane in images.pixels.chunks_exact(20) {
                let mut padded = vec![0_u8; high * wide];
                for row in 0..5 {
                    for column in 0..4 {
                        padded[(row + PAD) * wide + column + PAD] = plane[row * 4 + column];
                    }
                }
                for row in 0..5 {
                    let mut cut: Vec<u8> =
                        (0..4).map(|column| padded[(row + top) * wide + column + left]).collect();
                    if flip {
                        cut.reverse();
                    }
                    out.extend(cut);
                }
            }
            let seen = Images { pixels: out, ..images.clone() };
            let mut values = vec![0.0; 40];
            Loader::new(&seen, &MEAN, &STD).fill(&[0], 0, &mut values);
            values
        };
        let mut views = Vec::new();
        for top in 0..=2 * PAD {
            for left in 0..=2 * PAD {
                views.extend([view(top, left, false), view(top, left, true)]);
            }
        }
        let mut seen = vec![0; views.len()];
        let mut out = vec![0.0; 40];
        for epoch in 0..1_000 {
            loader.fill(&[0], epoch, &mut out);
            let which = views.iter().position(|view| *view == out);
            seen[which.expect("the picture is one of the views")] += 1;
        }
        assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
        plain.fill(&[0], 0, &mut out);
        assert_eq!(views.iter().filter(|view| **view == out).count(), 1);
    }

    #[test]
    fn a_batch_has_the_same_bytes_for_any_threads_and_any_place_in_the_epoch() {
        let images = images(30);
        let augment = Augment { crop_pad: 2, flip: true };
        let loader = Loader::new(&images, &MEAN, &STD).augmented(augment, 11);
        // Long enough for several threads to take part.
        let indices: Vec<u32> = epoch_order(3_000, 2, 5).iter().map(|index| index % 30).collect();
        let fill = |threads| {
            let mut out = vec![0.0; indices.len() * 40];
            with_threads(threads, || loader.fill(&indices, 5, &mut out));
            out
        };
        let one = fill(1);
        assert_eq!(one, fill(2));
        assert_eq!(one, fill(5));
        let mut alone = vec![0.0; 40];
        loader.fill(&indices[17..18], 5, &mut alone);
        assert_eq!(alone, one[17 * 40..18 * 40]);
    }

    #[test]
    fn a_crop_that_could_leave_nothing_is_refused() {
        assert!(Augment { crop_pad: 3, flip: true }.check([2, 5, 4]).is_ok());
        let error = Augment { crop_pad: 4, flip: false }.check([2, 5, 4]).unwrap_err().to_string();
        assert_eq!(error, "crop_pad 4 is too large for images of 5 x 4: at most 3");
    }
}
