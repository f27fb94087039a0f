//! A little-endian stream of bits in which fields of any width follow each other.

/// Appends fields.
pub(super) struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    window: u64,
    held: u32,
}

impl<'a> BitWriter<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, window: 0, held: 0 }
    }

    /// Appends a field of at most 32 bits; bits of the value above the width must be zero.
    #[inline(always)]
    pub fn put(&mut self, value: u32, bits: u32) {
        debug_assert!(bits <= 32 && u64::from(value) >> bits == 0);
        self.window |= u64::from(value) << self.held;
        self.held += bits;
        if self.held >= 32 {
            self.out.extend_from_slice(&low(self.window).to_le_bytes());
            self.window >>= 32;
            self.held -= 32;
        }
    }

    /// Pads the last byte with zeros.
    pub fn finish(self) {
        let bytes = self.held.div_ceil(8) as usize;
        self.out.extend_from_slice(&self.window.to_le_bytes()[..bytes]);
    }
}

/// Reads fields; beyond the end there are zeros.
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bits that are left.
    pub fn left(&self) -> usize {
        (self.bytes.len() * 8).saturating_sub(self.at)
    }

    /// A field of at most 32 bits.
    #[inline(always)]
    pub fn take(&mut self, bits: u32) -> u32 {
        let (byte, skip) = (self.at / 8, self.at % 8);
        let word = match self.bytes.get(byte..).and_then(|rest| rest.first_chunk::<8>()) {
            Some(eight) => u64::from_le_bytes(*eight),
            None => self.tail(byte),
        };
        self.at += bits as usize;
        low(word >> skip & ((1 << bits) - 1))
    }

    /// A field of at most 32 bits as a two's complement integer.
    #[inline(always)]
    pub fn take_signed(&mut self, bits: u32) -> i32 {
        extend(self.take(bits), bits)
    }

    #[cold]
    fn tail(&self, byte: usize) -> u64 {
        let mut word = [0; 8];
        let rest = self.bytes.get(byte..).unwrap_or(&[]);
        word[..rest.len()].copy_from_slice(rest);
        u64::from_le_bytes(word)
    }
}

/// The integer that so many bits mean in two's complement; bits above are ignored.
#[inline(always)]
pub(super) fn extend(code: u32, bits: u32) -> i32 {
    let unused = 32 - bits;
    (code << unused).cast_signed() >> unused
}

/// So many ones.
#[inline(always)]
pub(super) fn mask(bits: u32) -> u32 {
    low((1u64 << bits) - 1)
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
#[inline(always)]
fn low(x: u64) -> u32 {
    x as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_any_width_come_back_and_zeros_follow_the_end() {
        let fields: Vec<(u32, u32)> =
            (0..400u32).map(|i| (i.wrapping_mul(0x9E37_79B9) & mask(i % 33), i % 33)).collect();
        let mut bytes = vec![1];
        let mut writer = BitWriter::new(&mut bytes);
        for (value, bits) in &fields {
            writer.put(*value, *bits);
        }
        writer.finish();
        let total: u32 = fields.iter().map(|(_, bits)| bits).sum();
        assert_eq!(bytes.len(), 1 + total.div_ceil(8) as usize);
        let mut reader = BitReader::new(&bytes[1..]);
        for (value, bits) in &fields {
            assert_eq!(reader.take(*bits), *value);
        }
        assert!(reader.left() < 8);
        assert_eq!((reader.take(32), reader.take(32), reader.left()), (0, 0, 0));
        assert_eq!([extend(7, 3), extend(3, 3), extend(u32::MAX, 32)], [-1, 3, -1]);
    }
}
