//! Whole blocks at once: where every group is a block of the same length that ends on a byte, its scale is found and its
//! codes are packed in one go, for formats that have a loop for it. The bytes are those of the general way.

use super::Terms;
use super::bands::{each_band, split};
use crate::formats::Format;
use crate::granularity::{Band, Layout};
use crate::{Rounding, ScaleFormat, pack};

/// A tensor that is made of whole blocks.
pub(super) struct Blocks<'a> {
    format: &'a dyn Format,
    terms: &'a Terms,
    store: ScaleFormat,
    len: usize,
}

impl<'a> Blocks<'a> {
    /// The blocks of a layout, if that is what it is made of.
    pub fn of(format: &'a dyn Format, terms: &'a Terms, layout: Layout) -> Option<Self> {
        let header = format.header();
        let plain = header.zero_bits == 0 && !header.offset;
        match (layout, terms.scale) {
            (Layout::Rows { row, block, .. }, Some(store))
                if plain
                    && !store.is_nested()
                    && !layout.spans_bands()
                    && row.checked_rem(block) == Some(0)
                    && block % 8 == 0 =>
            {
                Some(Self { format, terms, store, len: block })
            }
            _ => None,
        }
    }

    fn scale_bytes(&self, groups: usize) -> usize {
        self.store.bytes(groups).unwrap_or(0)
    }

    fn code_bytes(&self, elems: usize) -> usize {
        pack::packed_len(elems, self.format.bits()).unwrap_or(0)
    }

    /// Appends the bytes of all blocks; `false`, with `out` as it was, if that cannot be done in this way.
    pub fn encode(
        &self,
        x: &[f32],
        bands: &[Band],
        scales: usize,
        codes: usize,
        out: &mut Vec<u8>,
    ) -> bool {
        if self.terms.rounding != Rounding::NearestEven {
            return false;
        }
        let start = out.len();
        out.resize(start + scales + codes, 0);
        let (scales, packed) = out[start..].split_at_mut(scales);
        let scales = split(scales, bands, |band| self.scale_bytes(band.groups.len()));
        let packed = split(packed, bands, |band| self.code_bytes(band.elems.len()));
        let parts = scales.into_iter().zip(packed).collect();
        let done = each_band(parts, bands, |(scales, packed), band| {
            let x = &x[band.elems.clone()];
            self.format.encode_blocks(x, self.len, self.store, scales, packed)
        });
        let done = done.into_iter().all(|done| done);
        if !done {
            out.truncate(start);
        }
        done
    }

    /// Decodes all blocks; `false` if that cannot be done in this way.
    pub fn decode(&self, scales: &[u8], packed: &[u8], bands: &[Band], out: &mut [f32]) -> bool {
        let done = each_band(split(out, bands, |band| band.elems.len()), bands, |out, band| {
            let scales = &scales[self.scale_bytes(band.groups.start)..];
            let scales = &scales[..self.scale_bytes(band.groups.len())];
            let packed = &packed[self.code_bytes(band.elems.start)..];
            let packed = &packed[..self.code_bytes(band.elems.len())];
            self.format.decode_blocks(scales, packed, self.len, self.store, out)
        });
        done.into_iter().all(|done| done)
    }
}
