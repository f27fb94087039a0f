//! Batch-norm aware coding: what an affine batch normalisation did to its channels is undone before a scheme sees them.

use super::{DecodeError, EncodeError, Tally};
use crate::granularity::elems;
use crate::{Scheme, ShapeError, Stream};

/// A scheme for the output of a batch normalisation, `y = gamma x + beta` in each channel: it stores `x = (y - beta) /
/// gamma`, whose channels share mean and deviation, and multiplies and adds again after decoding.
///
/// `gamma` and `beta` are the layer's parameters, which both sides have: they are not in the bytes. Any scheme may lie
/// below; the statistics of SmaQ are those of the normalised values.
///
/// Removing is `(y - beta) / gamma` and applying `x gamma + beta`, each operation rounded to `f32`, clamped to the
/// finite ones. A channel with `gamma = 0` is stored as zeros and decodes as `beta`. NaN and infinity stay what they
/// are, for the scheme to refuse or to count.
///
/// # Shapes
/// `[N, C, ...]` with as many channels *C* as `gamma` and `beta` have; the scalar form takes any shape.
///
/// # Source
/// SmaQ's `--use_batch_norm` and `--bn_scalar_params`. Differs: the original computes its statistics before it undoes
/// the normalisation.
///
/// ```
/// use scrimp_codec::{Scheme, Stream, codecs::BatchNormAware};
///
/// let layer = BatchNormAware::new(&[0.1, 20.0], &[0.0, 5.0]).expect("of one length");
/// let scheme: Scheme = "smaq".parse()?;
/// let shape = [2, 2, 3];
/// let y = [0.1, -0.2, 0.0, 3.0, 25.0, 5.0, 0.1, 0.0, -0.1, -15.0, 5.0, 25.0];
/// let (stream, mut bytes, mut back) = (Stream::new(0, 0), Vec::new(), [0.0; 12]);
/// layer.encode(&scheme, &y, &shape, &stream, &mut bytes)?;
/// layer.decode(&scheme, &bytes, &shape, &mut back)?;
/// // The narrow channel keeps its detail beside the wide one.
/// assert!(y.iter().zip(back).all(|(y, b)| (y - b).abs() <= if y.abs() < 1.0 { 0.01 } else { 2.0 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormAware {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    scalar: bool,
}

impl BatchNormAware {
    /// Parameters of each channel; `None` if the two differ in length or hold a value that is not finite.
    pub fn new(gamma: &[f32], beta: &[f32]) -> Option<Self> {
        let finite = gamma.iter().chain(beta).all(|v| v.is_finite());
        (finite && gamma.len() == beta.len()).then(|| Self {
            gamma: gamma.into(),
            beta: beta.into(),
            scalar: false,
        })
    }

    /// The mean gamma and the mean beta for all channels alike (`bn_scalar`). As [`new`](Self::new), and `None` if
    /// there are no channels.
    #[expect(clippy::cast_possible_truncation, reason = "the mean of finite f32 lies among them")]
    pub fn scalar(gamma: &[f32], beta: &[f32]) -> Option<Self> {
        let of_channels = Self::new(gamma, beta).filter(|_| !gamma.is_empty())?;
        let mean =
            |v: &[f32]| (v.iter().copied().map(f64::from).sum::<f64>() / v.len() as f64) as f32;
        Some(Self {
            gamma: vec![mean(&of_channels.gamma)],
            beta: vec![mean(&of_channels.beta)],
            scalar: true,
        })
    }

    /// Undoes the affine part in place.
    ///
    /// # Errors
    /// If axis 1 of the shape has another number of channels. The caller has made `y` as long as the shape says.
    pub fn remove(&self, y: &mut [f32], shape: &[usize]) -> Result<(), ShapeError> {
        self.each(y, shape, |v, gamma, beta| {
            if gamma == 0.0 && v.is_finite() { 0.0 } else { bounded(v, (v - beta) / gamma) }
        })
    }

    /// Does the affine part again in place.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub fn apply(&self, x: &mut [f32], shape: &[usize]) -> Result<(), ShapeError> {
        self.each(x, shape, |v, gamma, beta| bounded(v, v * gamma + beta))
    }

    fn each(
        &self,
        x: &mut [f32],
        shape: &[usize],
        f: impl Fn(f32, f32, f32) -> f32,
    ) -> Result<(), ShapeError> {
        let channels = self.gamma.len();
        if !self.scalar && shape.get(1) != Some(&channels) {
            return Err(ShapeError::Channels { channels, shape: shape.to_vec() });
        }
        if elems(shape)? == 0 {
            return Ok(());
        }
        let run = if self.scalar { x.len().max(1) } else { shape[2..].iter().product() };
        for (i, part) in x.chunks_mut(run).enumerate() {
            let (gamma, beta) = (self.gamma[i % channels], self.beta[i % channels]);
            for v in part {
                *v = f(*v, gamma, beta);
            }
        }
        Ok(())
    }

    /// As [`Scheme::emulate`].
    ///
    /// # Errors
    /// As [`Scheme::emulate`] and [`remove`](Self::remove).
    pub fn emulate(
        &self,
        scheme: &Scheme,
        y: &mut [f32],
        shape: &[usize],
        stream: &Stream,
    ) -> Result<Tally, EncodeError> {
        self.remove(y, shape)?;
        let tally = scheme.emulate(y, shape, stream)?;
        self.apply(y, shape)?;
        Ok(tally)
    }

    /// As [`Scheme::encode`].
    ///
    /// # Errors
    /// As [`Scheme::encode`] and [`remove`](Self::remove).
    pub fn encode(
        &self,
        scheme: &Scheme,
        y: &[f32],
        shape: &[usize],
        stream: &Stream,
        out: &mut Vec<u8>,
    ) -> Result<Tally, EncodeError> {
        let mut x = y.to_vec();
        self.remove(&mut x, shape)?;
        scheme.encode(&x, shape, stream, out)
    }

    /// As [`Scheme::decode`].
    ///
    /// # Errors
    /// As [`Scheme::decode`] and [`remove`](Self::remove).
    pub fn decode(
        &self,
        scheme: &Scheme,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        scheme.decode(bytes, shape, out)?;
        self.apply(out, shape)?;
        Ok(())
    }
}

/// What came of a finite value stays finite.
fn bounded(from: f32, to: f32) -> f32 {
    if from.is_finite() { to.clamp(-f32::MAX, f32::MAX) } else { from }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of two images of three channels of unlike place and width.
    fn tensor() -> (Vec<f32>, [usize; 4]) {
        let stream = Stream::new(4, 4);
        let shape = [2, 3, 16, 16];
        let y = (0..2 * 3 * 256u64).map(|i| {
            let c = i / 256 % 3;
            let x = (0..4).map(|k| stream.uniform(4 * i + k)).sum::<f32>() - 2.0;
            x * [0.01, 1.0, 50.0][c as usize] + [3.0, 0.0, -100.0][c as usize]
        });
        (y.collect(), shape)
    }

    fn error(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    #[test]
    fn emulation_is_the_bytes_and_each_channel_keeps_its_detail() {
        let (y, shape) = tensor();
        let layer = BatchNormAware::new(&[0.01, 1.0, 50.0], &[3.0, 0.0, -100.0]).unwrap();
        let scheme: Scheme = "smaq".parse().unwrap();
        let stream = Stream::new(0, 0);
        let mut bytes = Vec::new();
        layer.encode(&scheme, &y, &shape, &stream, &mut bytes).unwrap();
        let mut decoded = vec![0.0; y.len()];
        layer.decode(&scheme, &bytes, &shape, &mut decoded).unwrap();
        let mut emulated = y.clone();
        layer.emulate(&scheme, &mut emulated, &shape, &stream).unwrap();
        assert_eq!(decoded, emulated);
        let mut plain = y.clone();
        scheme.emulate(&mut plain, &shape, &stream).unwrap();
        for c in 0..2 {
            let part = c * 256..(c + 1) * 256;
            let (with, without) = (
                error(&y[part.clone()], &decoded[part.clone()]),
                error(&y[part.clone()], &plain[part]),
            );
            assert!(with * 100.0 < without, "channel {c}: {with} {without}");
        }
        // Statistics are those of the normalised values: about 0 and the 0.58 of four uniform numbers.
        let float = |at: usize| f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert!(float(0).abs() < 0.05 && (float(4) - 0.577).abs() < 0.03);
    }

    #[test]
    fn the_scalar_form_uses_the_means() {
        let layer = BatchNormAware::scalar(&[1.0, 3.0], &[4.0, 6.0]).unwrap();
        let mut y = [7.0, 5.0];
        layer.remove(&mut y, &[2]).unwrap();
        assert_eq!(y, [1.0, 0.0]);
        layer.apply(&mut y, &[2]).unwrap();
        assert_eq!(y, [7.0, 5.0]);
    }

    #[test]
    fn a_channel_that_is_switched_off_is_its_beta() {
        let layer = BatchNormAware::new(&[0.0, 1.0], &[2.5, 0.0]).unwrap();
        let mut y: Vec<f32> = (0..8u8).map(f32::from).collect();
        let scheme: Scheme = "smaq".parse().unwrap();
        layer.emulate(&scheme, &mut y, &[1, 2, 4], &Stream::new(0, 0)).unwrap();
        assert_eq!(y[..4], [2.5; 4]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert!(BatchNormAware::new(&[1.0], &[]).is_none());
        assert!(BatchNormAware::new(&[f32::NAN], &[0.0]).is_none());
        assert!(BatchNormAware::scalar(&[], &[]).is_none());
        let layer = BatchNormAware::new(&[1.0; 3], &[0.0; 3]).unwrap();
        for shape in [&[3, 2][..], &[6]] {
            let error = layer.remove(&mut [0.0; 6], shape).unwrap_err();
            assert!(error.to_string().contains("3 channels"), "{error}");
        }
        assert!(layer.remove(&mut [], &[0, 3, 2]).is_ok());
    }
}
