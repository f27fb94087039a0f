//! Whole blocks whose scales are e4m3fn under one of the tensor: where every group is a block of the same length that
//! ends on a byte, its scale is found and its codes are packed in one go, for formats that have a loop for it. The bytes
//! are those of the general way.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Terms;
use super::bands::{each_band, split};
use crate::formats::Format;
use crate::granularity::{Band, Layout};
use crate::scale::nested_e4m3fn;
use crate::{Rounding, ScaleFormat, pack, simd};

/// A tensor that is made of whole blocks.
pub(super) struct Blocks<'a> {
    format: &'a dyn Format,
    terms: &'a Terms,
    len: usize,
}

/// Scales that are decoded at a time.
const SCALES: usize = 256;

impl<'a> Blocks<'a> {
    /// The blocks of a layout, if that is what it is made of.
    pub fn of(format: &'a dyn Format, terms: &'a Terms, layout: Layout) -> Option<Self> {
        let header = format.header();
        let plain = header.zero_bits == 0 && !header.offset;
        match (layout, terms.scale) {
            (Layout::Rows { row, block, .. }, Some(ScaleFormat::E4m3fn))
                if plain
                    && !layout.spans_bands()
                    && row.checked_rem(block) == Some(0)
                    && block % 8 == 0 =>
            {
                Some(Self { format, terms, len: block })
            }
            _ => None,
        }
    }

    fn code_bytes(&self, elems: usize) -> usize {
        pack::packed_len(elems, self.format.bits()).unwrap_or(0)
    }

    /// Whether a format has a loop for blocks can only be seen by asking it, which a slice of nothing does cheaply.
    fn has_loop(&self) -> bool {
        self.terms.rounding == Rounding::NearestEven
            && self.format.encode_scaled(&[], &[], self.len, &mut [])
    }

    /// Rounds all blocks; `false`, with `x` as it was, if that cannot be done in this way.
    pub fn emulate(&self, x: &mut [f32], bands: &[Band]) -> bool {
        if !self.has_loop() {
            return false;
        }
        let Some((amax, ranges)) = self.ranges(x, bands) else { return false };
        let top = self.format.top();
        let global = nested_e4m3fn::global(amax, top);
        let done = each_band(split(x, bands, |band| band.elems.len()), bands, |x, band| {
            let parts =
                x.chunks_mut(SCALES * self.len).zip(ranges[band.groups.clone()].chunks(SCALES));
            let (mut unused, mut scales) = ([0; SCALES], [0.0; SCALES]);
            let mut done = true;
            for (x, ranges) in parts {
                simd::nest_e4m3fn(ranges, top, global, &mut unused, &mut scales);
                done &= self.format.quantize_scaled(&scales[..ranges.len()], x, self.len);
            }
            done
        });
        done.into_iter().all(|done| done)
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
        if !self.has_loop() {
            return false;
        }
        let start = out.len();
        out.resize(start + scales + codes, 0);
        let (scales, packed) = out[start..].split_at_mut(scales);
        let done = self.encode_nested(x, bands, scales, packed);
        if !done {
            out.truncate(start);
        }
        done
    }

    fn encode_nested(
        &self,
        x: &[f32],
        bands: &[Band],
        scales: &mut [u8],
        packed: &mut [u8],
    ) -> bool {
        let Some((amax, ranges)) = self.ranges(x, bands) else { return false };
        let Some((global_bytes, codes)) = scales.split_first_chunk_mut::<4>() else { return true };
        let top = self.format.top();
        let global = nested_e4m3fn::global(amax, top);
        *global_bytes = global.to_le_bytes();
        let codes = split(codes, bands, |band| band.groups.len());
        let packed = split(packed, bands, |band| self.code_bytes(band.elems.len()));
        let done =
            each_band(codes.into_iter().zip(packed).collect(), bands, |(codes, packed), band| {
                let x = x[band.elems.clone()].chunks(SCALES * self.len);
                let ranges = ranges[band.groups.clone()].chunks(SCALES);
                let packed = packed.chunks_mut(self.code_bytes(SCALES * self.len));
                let (mut wide, mut scales) = ([0; SCALES], [0.0; SCALES]);
                let mut done = true;
                for (((x, ranges), packed), codes) in
                    x.zip(ranges).zip(packed).zip(codes.chunks_mut(SCALES))
                {
                    simd::nest_e4m3fn(ranges, top, global, &mut wide, &mut scales);
                    simd::narrow(&wide[..ranges.len()], codes);
                    done &= self.format.encode_scaled(&scales[..ranges.len()], x, self.len, packed);
                }
                done
            });
        done.into_iter().all(|done| done)
    }

    /// The largest magnitude of the tensor, and the bits of each block's; `None` if a value is not finite.
    fn ranges(&self, x: &[f32], bands: &[Band]) -> Option<(f32, Vec<u32>)> {
        let mut ranges = vec![0; x.len() / self.len];
        let finite = AtomicBool::new(true);
        let parts = split(&mut ranges, bands, |band| band.groups.len());
        let largest = each_band(parts, bands, |ranges, band| {
            if !simd::block_ranges(&x[band.elems.clone()], self.len, ranges) {
                finite.store(false, Ordering::Relaxed);
            }
            ranges.iter().copied().max()
        });
        let amax = largest.into_iter().flatten().max().unwrap_or(0);
        finite.into_inner().then_some((f32::from_bits(amax), ranges))
    }

    /// Decodes all blocks; `false` if that cannot be done in this way, or if the bytes hold no scales.
    pub fn decode(&self, scales: &[u8], packed: &[u8], bands: &[Band], out: &mut [f32]) -> bool {
        let packed = |band: &Band| {
            let packed = &packed[self.code_bytes(band.elems.start)..];
            &packed[..self.code_bytes(band.elems.len())]
        };
        let outs = split(out, bands, |band| band.elems.len());
        let Some((global, codes)) = nested_e4m3fn::read_global(scales) else { return false };
        let done = each_band(outs, bands, |out, band| {
            let out = out.chunks_mut(SCALES * self.len);
            let codes = codes[band.groups.clone()].chunks(SCALES);
            let packed = packed(band).chunks(self.code_bytes(SCALES * self.len));
            let mut scales = [0.0; SCALES];
            let mut done = true;
            for ((out, codes), packed) in out.zip(codes).zip(packed) {
                for (scale, code) in scales.iter_mut().zip(codes) {
                    let read = nested_e4m3fn::read(*code, global);
                    done &= read.is_some();
                    *scale = read.unwrap_or(0.0);
                }
                done &= self.format.decode_scaled(&scales[..codes.len()], packed, self.len, out);
            }
            done
        });
        done.into_iter().all(|done| done)
    }
}
