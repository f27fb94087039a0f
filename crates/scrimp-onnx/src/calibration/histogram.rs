//! How values are spread.

/// Bins on each side of zero.
const HALF: usize = 4096;

/// Counts of values in bins of equal width around zero.
///
/// The width is a power of two and depends on the largest magnitude alone, so that bins of two histograms always nest:
/// merging is exact and in any order, and a histogram can grow while values come in.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// The bins are `2^exponent` wide; `None` before there are values other than zero.
    exponent: Option<i32>,
    counts: Vec<u64>,
    zeros: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { exponent: None, counts: vec![0; 2 * HALF], zeros: 0 }
    }
}

impl Histogram {
    /// Makes room for values of this magnitude.
    pub fn cover(&mut self, amax: f32) {
        if amax == 0.0 {
            return;
        }
        let needed = exponent_for(amax);
        match self.exponent {
            Some(exponent) if exponent >= needed => {}
            Some(_) => self.widen(needed),
            None => self.exponent = Some(needed),
        }
    }

    /// Counts values; those that are not finite or not covered are left out. Zeros, of which rectified tensors have many,
    /// are counted by themselves.
    ///
    /// # Panics
    /// Never: the number of bins is a small constant.
    #[expect(clippy::cast_possible_truncation, reason = "a place is checked to be among the bins")]
    pub fn add(&mut self, values: &[f32]) {
        let Some(exponent) = self.exponent else {
            self.zeros += values.iter().filter(|&&v| v == 0.0).count() as u64;
            return;
        };
        let per_unit = 2f64.powi(-exponent);
        let half = i32::try_from(HALF).expect("a constant");
        let zeros = values.iter().filter(|&&v| v == 0.0).count() as u64;
        let nans = values.iter().filter(|v| v.is_nan()).count() as u64;
        for &v in values {
            // The next integer below. A cast cuts off towards zero, and `floor` is a call on older processors.
            let place = f64::from(v) * per_unit;
            let whole = place as i32;
            let below = whole.saturating_sub(i32::from(f64::from(whole) > place));
            let at = usize::try_from(below.saturating_add(half));
            if let Some(count) = at.ok().and_then(|at| self.counts.get_mut(at)) {
                *count += 1;
            }
        }
        // A cast of NaN is 0 too. To leave them out here is faster than to ask each value what it is.
        self.counts[HALF] -= zeros + nans;
        self.zeros += zeros;
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.zeros += other.zeros;
        let Some(theirs) = other.exponent else { return };
        let mut other = other.clone();
        match self.exponent {
            None => self.exponent = Some(theirs),
            Some(ours) if ours < theirs => self.widen(theirs),
            Some(ours) => other.widen(ours),
        }
        for (ours, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *ours += theirs;
        }
    }

    fn widen(&mut self, exponent: i32) {
        let Some(old) = self.exponent else { return };
        let shift = u32::try_from(exponent - old).unwrap_or(0).min(31);
        self.exponent = Some(exponent);
        if shift == 0 {
            return;
        }
        let mut counts = vec![0; 2 * HALF];
        let half = i64::try_from(HALF).expect("a constant");
        for (at, &count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let place = i64::try_from(at).expect("a bin") - half;
            let place = usize::try_from((place >> shift) + half).expect("nearer to zero");
            counts[place] += count;
        }
        self.counts = counts;
    }

    /// The width of a bin; 0 before there are values other than zero.
    pub fn width(&self) -> f64 {
        self.exponent.map_or(0.0, |exponent| 2f64.powi(exponent))
    }

    /// The middle of each bin that has values and their number, in ascending order; zeros at zero.
    #[expect(clippy::cast_possible_truncation, reason = "the middle of a bin of f32 values")]
    pub fn bins(&self) -> impl Iterator<Item = (f32, f64)> + '_ {
        let width = self.width();
        let middle = move |at: usize| ((at as f64 - HALF as f64 + 0.5) * width) as f32;
        let side = move |from: usize, to: usize| {
            let counts = self.counts[from..to].iter().enumerate();
            counts.filter(|(_, n)| **n > 0).map(move |(at, &n)| (middle(from + at), n as f64))
        };
        let zeros = (self.zeros > 0).then_some((0.0, self.zeros as f64));
        side(0, HALF).chain(zeros).chain(side(HALF, 2 * HALF))
    }

    /// Counts in `count` bins of equal width from `low` to `high`, what lies beyond added to the outermost; values that are
    /// exactly zero among them where `zeros` says so.
    ///
    /// The values of a bin are spread over those that it meets: the new bins may be hardly wider than the old ones, and
    /// whole bins would pile up in every second or third of them.
    pub fn rebinned(&self, low: f64, high: f64, count: usize, zeros: bool) -> Vec<f64> {
        let mut out = vec![0.0; count];
        let per_unit = count as f64 / (high - low);
        let (end, half) = (count as f64, self.width() * per_unit / 2.0);
        let place = |at: f64| place(at.clamp(0.0, end - 1.0));
        for (value, n) in self.bins() {
            let middle = (f64::from(value) - low) * per_unit;
            if value == 0.0 {
                if zeros {
                    out[place(middle)] += n;
                }
                continue;
            }
            let (from, to) = ((middle - half).max(0.0), (middle + half).min(end));
            if from >= to {
                out[place(middle)] += n;
                continue;
            }
            let mut at = from;
            while at < to {
                let next = (at.floor() + 1.0).min(to);
                out[place(at)] += n * (next - at) / (to - from);
                at = next;
            }
        }
        out
    }
}

/// The bin of a place among them.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the bins")]
fn place(at: f64) -> usize {
    at as usize
}

/// The least exponent whose bins hold a value of this magnitude.
fn exponent_for(amax: f32) -> i32 {
    // amax < 2^e and a bin is 2^e / HALF; frexp by the bits of an f64, in which every f32 is normal.
    let bits = f64::from(amax).to_bits() >> 52 & 0x7ff;
    let exponent = i32::try_from(bits).expect("eleven bits") - 1022;
    exponent - i32::try_from(HALF.trailing_zeros()).expect("a constant")
}
