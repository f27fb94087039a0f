//! From the values of a weight to its codes.

use scrimp_codec::{Scheme, Stream};

use crate::config::{Spec, WeightRange};
use crate::weights::{Layout, Packed, Sharing, power_of};

/// Shares of the largest magnitude that are tried: from 0.4 to 1 in steps of 0.0125.
const SHARES: usize = 49;

/// Scales for a weight, its codes rounded to the nearest.
///
/// `importance` has the mean square of the input that each element of a row is multiplied by, for one group of rows after
/// the other; without it every element counts the same when scales are searched.
///
/// # Errors
/// A sentence, where the scheme does not fit or a value is not finite.
pub fn nearest(
    values: &[f32],
    layout: &Layout,
    spec: &Spec,
    range: WeightRange,
    importance: Option<&[Vec<f32>]>,
) -> Result<Packed, String> {
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(format!("value {at} is {}", values[at]));
    }
    let sharing = spec.sharing(layout)?;
    let (scales, zeros) = match &spec.blocks {
        Some(scheme) => (powers(values, &layout.shape, sharing, scheme)?, Vec::new()),
        None => scales(values, layout, spec, sharing, range, importance),
    };
    let mut packed = Packed {
        element: spec.element.clone(),
        shape: layout.shape.clone(),
        sharing,
        scales,
        powers: spec.is_microscaled(),
        zeros,
        codes: Vec::new(),
    };
    let group = sharing.groups(&layout.shape);
    packed.codes = values
        .iter()
        .enumerate()
        .map(|(at, &v)| {
            let group = group(at);
            let zero = packed.zeros.get(group).copied().unwrap_or(0);
            spec.element.encode(v, packed.scales[group], zero)
        })
        .collect();
    if packed.zeros.iter().all(|&zero| zero == 0) {
        packed.zeros.clear();
    }
    Ok(packed)
}

/// The powers of two that a scheme gives the blocks of a weight: those of the codec, block by block.
fn powers(
    values: &[f32],
    shape: &[usize],
    sharing: Sharing,
    scheme: &Scheme,
) -> Result<Vec<f32>, String> {
    let count: usize = sharing.scale_shape(shape).iter().product();
    let group = sharing.groups(shape);
    let mut blocks = vec![Vec::new(); count];
    for (at, &v) in values.iter().enumerate() {
        blocks[group(at)].push(v);
    }
    let mut bytes = Vec::new();
    let power = |block: &Vec<f32>| {
        bytes.clear();
        scheme
            .encode(block, &[1, block.len()], &Stream::new(0, 0), &mut bytes)
            .map_err(|error| error.to_string())?;
        // The exponent comes before the codes.
        Ok(bytes.first().map_or(1.0, |&byte| power_of(byte)))
    };
    blocks.iter().map(power).collect()
}

fn scales(
    values: &[f32],
    layout: &Layout,
    spec: &Spec,
    sharing: Sharing,
    range: WeightRange,
    importance: Option<&[Vec<f32>]>,
) -> (Vec<f32>, Vec<i32>) {
    let element = &spec.element;
    let count: usize = sharing.scale_shape(&layout.shape).iter().product();
    let group = sharing.groups(&layout.shape);
    let mut ranges = vec![(0f32, 0f32); count];
    for (at, &v) in values.iter().enumerate() {
        let (low, high) = &mut ranges[group(at)];
        *low = low.min(v);
        *high = high.max(v);
    }
    let symmetric = element.is_signed();
    let fit = |(low, high): (f32, f32)| element.fit(low, high, symmetric);
    let mut grids: Vec<(f32, i32)> = ranges.iter().copied().map(fit).collect();
    if range == WeightRange::Mse {
        let counts = importance.map(|groups| {
            let per_group = layout.rows() / groups.len();
            let rows = (0..layout.rows()).flat_map(|row| groups[row / per_group].iter().copied());
            layout.from_rows(&rows.collect::<Vec<f32>>())
        });
        let mut members = vec![Vec::new(); count];
        for (at, &v) in values.iter().enumerate() {
            let count = counts.as_ref().map_or(1.0, |counts| f64::from(counts[at]));
            members[group(at)].push((v, count));
        }
        for ((grid, &(low, high)), members) in grids.iter_mut().zip(&ranges).zip(&members) {
            let error = |&(scale, zero): &(f32, i32)| -> f64 {
                let lost = |&(v, count): &(f32, f64)| {
                    let rounded = element.decode(element.encode(v, scale, zero), scale, zero);
                    f64::from(v - rounded).powi(2) * count
                };
                members.iter().map(lost).sum()
            };
            let tried = (0..SHARES).map(|at| {
                let share = 1.0 - 0.0125 * at as f32;
                fit((low * share, high * share))
            });
            let best = tried.map(|grid| (error(&grid), grid)).min_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((_, best)) = best {
                *grid = best;
            }
        }
    }
    grids.into_iter().unzip()
}
