//! One end of a link: what a tensor is rounded to before it is sent, and what that lost.

use scrimp_codec::codecs::Size;
use scrimp_codec::{DecodeError, EncodeError, Memory, Scheme, ShapeError, Stream};

/// Sends one tensor, step after step.
#[derive(Clone, Debug)]
pub struct Sender {
    scheme: Scheme,
    shape: Vec<usize>,
    stream: Stream,
    /// What the scheme itself remembers.
    memory: Option<Memory>,
    /// What the last message lost, where the scheme does not keep that itself.
    residual: Option<Vec<f32>>,
    /// Bytes of all messages.
    sent: u64,
}

impl Sender {
    /// A sender of tensors of this shape; with `feedback` it adds what a message lost to the next tensor.
    ///
    /// # Errors
    /// If the scheme does not fit the shape.
    pub fn new(
        scheme: Scheme,
        shape: &[usize],
        stream: Stream,
        feedback: bool,
    ) -> Result<Self, ShapeError> {
        scheme.check(shape)?;
        let memory = scheme.memory(shape)?;
        let is_kept = matches!(memory, Some(Memory::Residual { .. }));
        let count = shape.iter().product();
        let residual = (feedback && !is_kept && !scheme.is_float32()).then(|| vec![0.0; count]);
        Ok(Self { scheme, shape: shape.to_vec(), stream, memory, residual, sent: 0 })
    }

    /// Rounds `x` to what the message of this step holds, and counts its bytes.
    ///
    /// # Errors
    /// If the scheme cannot hold a value.
    pub fn emulate(&mut self, x: &mut [f32], step: u64) -> Result<(), EncodeError> {
        let stream = self.stream.at_step(step);
        // Where the number of bytes depends on values, only the message itself tells it.
        if self.scheme.size(&self.shape)?.exact().is_none() {
            let bytes = self.encode(x, step)?;
            read_back(&self.scheme, &bytes, &self.shape, x);
            return Ok(());
        }
        self.add_lost(x);
        let Self { scheme, shape, memory, .. } = self;
        scheme.emulate_next(x, shape, &stream, memory.as_mut())?;
        self.keep_lost(x);
        Ok(())
    }

    /// The message of this step.
    ///
    /// # Errors
    /// If the scheme cannot hold a value.
    pub fn encode(&mut self, x: &[f32], step: u64) -> Result<Vec<u8>, EncodeError> {
        let Self { scheme, shape, memory, residual, .. } = self;
        let stream = self.stream.at_step(step);
        let mut bytes = Vec::new();
        if let Some(residual) = residual {
            for (lost, x) in residual.iter_mut().zip(x) {
                *lost += x;
            }
            scheme.encode_next(residual, shape, &stream, memory.as_mut(), &mut bytes)?;
            let mut held = vec![0.0; x.len()];
            read_back(scheme, &bytes, shape, &mut held);
            lost(residual, &held);
        } else {
            scheme.encode_next(x, shape, &stream, memory.as_mut(), &mut bytes)?;
        }
        self.sent += bytes.len() as u64;
        Ok(bytes)
    }

    /// What a message holds.
    ///
    /// # Errors
    /// If the bytes are no message of such a sender. Any bytes may be given.
    pub fn decode(&self, bytes: &[u8], x: &mut [f32]) -> Result<(), DecodeError> {
        self.scheme.decode(bytes, &self.shape, x)
    }

    /// Bytes of all messages so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    pub(crate) fn stream(&self) -> Stream {
        self.stream
    }

    /// Adds what the last message lost, for who rounds a tensor together with others; [`Self::keep_lost`] comes after that.
    pub(crate) fn add_lost(&mut self, x: &mut [f32]) {
        if let Some(residual) = &mut self.residual {
            for (x, lost) in x.iter_mut().zip(residual) {
                *x += *lost;
                *lost = *x;
            }
        }
    }

    /// Keeps what was lost of the tensor that [`Self::add_lost`] gave. Its message is as long as any other.
    pub(crate) fn keep_lost(&mut self, held: &[f32]) {
        if let Some(residual) = &mut self.residual {
            lost(residual, held);
        }
        let bytes = self.scheme.size(&self.shape).ok().and_then(Size::exact);
        self.sent += bytes.unwrap_or_default() as u64;
    }

    /// What the next message depends on, as numbers.
    pub fn state(&self) -> Vec<f32> {
        let memory = self.memory.as_ref().map(Memory::values).unwrap_or_default();
        memory.into_iter().chain(self.residual.iter().flatten().copied()).collect()
    }

    /// Goes on where [`state`](Self::state) was taken. `false` if the numbers are not those of such a sender, which is then
    /// unspecified.
    #[must_use]
    pub fn set_state(&mut self, state: &[f32]) -> bool {
        let kept = self.residual.as_ref().map_or(0, Vec::len);
        let Some((memory, residual)) =
            state.len().checked_sub(kept).and_then(|at| state.split_at_checked(at))
        else {
            return false;
        };
        if let Some(own) = &mut self.residual {
            own.copy_from_slice(residual);
        }
        match &mut self.memory {
            Some(own) => own.set_values(memory),
            None => memory.is_empty(),
        }
    }
}

/// What our own message holds.
fn read_back(scheme: &Scheme, bytes: &[u8], shape: &[usize], x: &mut [f32]) {
    scheme.decode(bytes, shape, x).expect("a scheme reads what it wrote");
}

/// Makes what was to be sent into what was lost of it.
fn lost(wanted: &mut [f32], held: &[f32]) {
    for (wanted, held) in wanted.iter_mut().zip(held) {
        *wanted -= held;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(step: u64) -> Vec<f32> {
        let stream = Stream::new(5, 6).at_step(step);
        (0..60).map(|i| stream.uniform(i) - 0.45).collect()
    }

    fn sender(scheme: &str, feedback: bool) -> Sender {
        Sender::new(scheme.parse().unwrap(), &[3, 20], Stream::new(1, 2), feedback).unwrap()
    }

    #[test]
    fn messages_hold_what_emulation_says_and_bytes_are_counted() {
        for scheme in
            ["int4", "int8/stochastic", "onebit", "ternary", "smaq:4,6", "f32", "int8/rans"]
        {
            for feedback in [false, true] {
                let (mut here, mut there) = (sender(scheme, feedback), sender(scheme, feedback));
                let mut bytes = 0;
                for step in 0..4 {
                    let mut x = tensor(step);
                    let message = there.encode(&x, step).unwrap();
                    bytes += message.len() as u64;
                    here.emulate(&mut x, step).unwrap();
                    let mut held = vec![0.0; 60];
                    there.decode(&message, &mut held).unwrap();
                    assert_eq!(held, x, "{scheme} at step {step}");
                    assert_eq!(here.state(), there.state(), "{scheme} at step {step}");
                }
                assert_eq!((here.sent(), there.sent()), (bytes, bytes), "{scheme}");
            }
        }
    }

    #[test]
    fn feedback_sends_in_the_end_all_that_was_to_be_sent() {
        let mut total = vec![[0.0_f64; 2]; 60];
        let mut sender = sender("int2", true);
        for step in 0..300 {
            let mut x = tensor(step);
            x.iter().zip(&mut total).for_each(|(x, sums)| sums[0] += f64::from(*x));
            sender.emulate(&mut x, step).unwrap();
            x.iter().zip(&mut total).for_each(|(x, sums)| sums[1] += f64::from(*x));
        }
        let lost = sender.state();
        for ([wanted, sent], lost) in total.iter().zip(lost) {
            assert!((wanted - sent - f64::from(lost)).abs() < 1e-3);
            assert!(lost.abs() < 2.0, "what was lost stays small");
        }
    }

    #[test]
    fn a_state_of_another_length_is_refused() {
        let mut with = sender("int4", true);
        assert!(with.set_state(&[0.5; 60]) && !with.set_state(&[0.5; 59]));
        let mut without = sender("int4", false);
        assert!(without.set_state(&[]) && !without.set_state(&[0.5; 60]));
        assert!(!sender("onebit", true).set_state(&[]));
        assert!(
            Sender::new("int4/channel".parse().unwrap(), &[20], Stream::new(1, 2), true).is_err()
        );
    }
}
