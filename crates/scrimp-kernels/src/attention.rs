//! Scaled dot-product attention.
//!
//! `out = dropout(softmax(scale q k^T + mask)) v` for each image and head
//!
//! Queries, keys and values are rows of `heads * head_dim` values, `[batch, time, heads, head_dim]`, as a projection
//! leaves them: nothing is transposed in memory, and the three may be columns of one packed projection. Of the
//! probabilities only the maximum and the sum of each row are saved; the backward pass computes them again.
//!
//! A head of an image is one task, and its scores are computed for 64 queries at a time.
//!
//! # Source
//! Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1. Computing probabilities again: Dao et al. 2022, arXiv:2205.14135,
//! appendix B. Differs: whole rows of scores are held, so that no sum is corrected later.

use crate::KernelError;
use crate::blocks::{LANES, MAGNITUDE, check, check_len, map_with};
use crate::dispatch::versions;
use crate::gate::spread;
use crate::math::{exp, largest, sum, sum2};

/// The sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Images, or sequences.
    pub batch: usize,
    /// Heads of each.
    pub heads: usize,
    /// Rows that ask.
    pub queries: usize,
    /// Rows that are asked.
    pub keys: usize,
    /// Values of a row that belong to one head.
    pub head_dim: usize,
}

impl Shape {
    /// Values of a row.
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Rows of `heads * head_dim` values, of which row `i` begins at `i * stride`.
///
/// In a projection packed as `[batch, time, 3, heads, head_dim]` the stride is `3 * heads * head_dim`, and the values of
/// the keys begin at `heads * head_dim`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// From the first value of the first row on, and at least to the last of the last.
    pub values: &'a [f32],
    /// From one row to the next.
    pub stride: usize,
}

/// What attention does beside products and softmax.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Whether query `i` sees keys 0 to `i` only.
    pub causal: bool,
    /// `[batch, keys]`: where it is true, the key is padding, which no query sees.
    pub padding: Option<&'a [bool]>,
    /// Which probabilities are dropped.
    pub dropout: Option<Dropout<'a>>,
}

/// Which probabilities are kept, as bits that the caller drew.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// `[batch, heads, queries, ceil(keys / 32)]`: bit `j % 32` of word `j / 32` of a row says whether key `j` is kept.
    pub kept: &'a [u32],
    /// What is kept is multiplied by it, usually `1 / (1 - p)`.
    pub scale: f32,
}

/// Where a backward pass writes.
#[derive(Debug)]
pub enum Gradients<'a> {
    /// `[batch, time, 3, heads, head_dim]`, of queries, keys and values that are equally many.
    Packed(&'a mut [f32]),
    /// Three of `[batch, queries or keys, heads, head_dim]`.
    Separate {
        /// Of the queries.
        dq: &'a mut [f32],
        /// Of the keys.
        dk: &'a mut [f32],
        /// Of the values.
        dv: &'a mut [f32],
    },
}

/// Attention, to `out`, `[batch, queries, heads, head_dim]`. `saved`, `[batch, heads, queries, 2]`, takes up what the
/// backward pass needs. Gives the largest magnitude of the output, NaN if any is.
///
/// A query that sees no key gets zeros.
///
/// # Errors
/// If a slice has not its shape, or is too short for its rows.
pub fn forward(
    shape: Shape,
    [q, k, v]: [Rows; 3],
    options: Options,
    out: &mut [f32],
    saved: &mut [f32],
) -> Result<f32, KernelError> {
    check_inputs(shape, [q, k, v], options)?;
    let Shape { batch, heads, queries, .. } = shape;
    check_len("output", &[batch, queries, heads, shape.head_dim], out.len())?;
    check_len("saved sums", &[batch, heads, queries, 2], saved.len())?;
    if out.is_empty() || shape.keys == 0 {
        out.fill(0.0);
        saved.fill(0.0);
        return Ok(0.0);
    }
    let [out] = of_heads(out, shape, queries);
    let items = out.into_iter().zip(saved.chunks_mut(queries * 2)).enumerate();
    let tops = map_with(
        items,
        || Memory::new(shape),
        |memory, (item, (mut out, saved))| {
            let (image, head) = (item / heads, item % heads);
            forward_head(shape, [q, k, v], options, image, head, &mut out, saved, memory)
        },
    );
    Ok(f32::from_bits(tops.into_iter().max().unwrap_or(0)))
}

/// The gradients, from that of the output, `[batch, queries, heads, head_dim]`. Gives their largest magnitude, NaN if any
/// is.
///
/// Shape, inputs, options and `saved` are those of the forward pass.
///
/// # Errors
/// As [`forward`]; if gradients are packed, and queries and keys are not equally many.
pub fn backward(
    shape: Shape,
    [q, k, v]: [Rows; 3],
    options: Options,
    saved: &[f32],
    dout: &[f32],
    gradients: Gradients,
) -> Result<f32, KernelError> {
    check_inputs(shape, [q, k, v], options)?;
    let Shape { batch, heads, queries, keys, head_dim } = shape;
    check_len("gradient of the output", &[batch, queries, heads, head_dim], dout.len())?;
    check_len("saved sums", &[batch, heads, queries, 2], saved.len())?;
    let width = shape.width();
    let nothing = [batch, width, queries, keys].contains(&0);
    let [dq, dk, dv] = match gradients {
        Gradients::Packed(d) => {
            check(queries == keys, "packed gradients", || {
                format!("{queries} queries and {keys} keys are not equally many")
            })?;
            check_len("packed gradients", &[batch, queries, 3, heads, head_dim], d.len())?;
            if nothing {
                return Ok(0.0);
            }
            of_heads(d, shape, queries)
        }
        Gradients::Separate { dq, dk, dv } => {
            check_len("gradient of queries", &[batch, queries, heads, head_dim], dq.len())?;
            check_len("gradient of keys", &[batch, keys, heads, head_dim], dk.len())?;
            check_len("gradient of values", &[batch, keys, heads, head_dim], dv.len())?;
            if nothing {
                for d in [dq, dk, dv] {
                    d.fill(0.0);
                }
                return Ok(0.0);
            }
            let [dq] = of_heads(dq, shape, queries);
            let ([dk], [dv]) = (of_heads(dk, shape, keys), of_heads(dv, shape, keys));
            [dq, dk, dv]
        }
    };
    let tops = map_with(
        dq.into_iter().zip(dk).zip(dv).enumerate(),
        || Memory::new(shape),
        |memory, (item, ((mut dq, mut dk), mut dv))| {
            let (image, head) = (item / heads, item % heads);
            let saved = &saved[item * queries * 2..][..queries * 2];
            let inputs = [q, k, v, Rows { values: dout, stride: width }];
            let gradients = [&mut dq[..], &mut dk, &mut dv];
            backward_head(shape, inputs, options, image, head, saved, gradients, memory)
        },
    );
    Ok(f32::from_bits(tops.into_iter().max().unwrap_or(0)))
}

fn check_inputs(shape: Shape, [q, k, v]: [Rows; 3], options: Options) -> Result<(), KernelError> {
    let Shape { batch, heads, queries, keys, head_dim } = shape;
    let too_large =
        || KernelError::Shape { what: "attention", problem: format!("{shape:?} is too large") };
    let width = heads.checked_mul(head_dim).ok_or_else(too_large)?;
    for (what, rows, time) in [("queries", q, queries), ("keys", k, keys), ("values", v, keys)] {
        check(rows.stride >= width, what, || {
            format!("a stride of {} is below the {width} values of a row", rows.stride)
        })?;
        let needed = match batch.checked_mul(time).ok_or_else(too_large)?.checked_sub(1) {
            None => 0,
            Some(before) => before
                .checked_mul(rows.stride)
                .and_then(|start| start.checked_add(width))
                .ok_or_else(too_large)?,
        };
        check(rows.values.len() >= needed, what, || {
            format!(
                "{} values, and rows with a stride of {} need {needed}",
                rows.values.len(),
                rows.stride
            )
        })?;
    }
    if let Some(padding) = options.padding {
        check_len("padding", &[batch, keys], padding.len())?;
    }
    if let Some(dropout) = options.dropout {
        let words = keys.div_ceil(LANES);
        check_len("bits of dropout", &[batch, heads, queries, words], dropout.kept.len())?;
    }
    check(head_dim > 0, "head", || "it has no values, and attention needs one".to_owned())
}

/// How many queries have their scores at once.
const QUERIES: usize = 64;

/// The rows of each head of each image, for each of the parts that a row of `[parts, heads, head_dim]` has.
fn of_heads<'a, const PARTS: usize>(
    values: &'a mut [f32],
    shape: Shape,
    time: usize,
) -> [Vec<Vec<&'a mut [f32]>>; PARTS] {
    let Shape { batch, heads, head_dim, .. } = shape;
    let mut all: [Vec<Vec<&'a mut [f32]>>; PARTS] =
        std::array::from_fn(|_| (0..batch * heads).map(|_| Vec::with_capacity(time)).collect());
    for (i, rows) in values.chunks_exact_mut(PARTS * heads * head_dim).enumerate() {
        for (j, row) in rows.chunks_exact_mut(head_dim).enumerate() {
            all[j / heads][i / time * heads + j % heads].push(row);
        }
    }
    all
}

/// What one task works with. Panels are what a product streams through: columns in groups of a tile's, filled up with
/// zeros, each `[depth, columns]`; no tile has more than 32 columns.
struct Memory {
    /// Below zero where a key is padding or filled up.
    hidden: Vec<f32>,
    keys_across: Vec<f32>,
    values_across: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    dout: Vec<f32>,
    scores: Vec<f32>,
    dscores: Vec<f32>,
    factors: Vec<f32>,
    rows: Vec<f32>,
    dkeys: Vec<f32>,
    dvalues: Vec<f32>,
}

impl Memory {
    fn new(shape: Shape) -> Self {
        let keys = shape.keys.next_multiple_of(LANES);
        let dims = shape.head_dim.next_multiple_of(LANES);
        let zeros = |count: usize| vec![0.0; count];
        Self {
            hidden: zeros(keys),
            keys_across: zeros(keys * shape.head_dim),
            values_across: zeros(keys * shape.head_dim),
            keys: zeros(shape.keys * dims),
            values: zeros(shape.keys * dims),
            queries: zeros(QUERIES * dims),
            dout: zeros(QUERIES * dims),
            scores: zeros(QUERIES * keys),
            dscores: zeros(QUERIES * keys),
            factors: zeros(keys),
            rows: zeros(QUERIES * dims),
            dkeys: zeros(shape.keys * dims),
            dvalues: zeros(shape.keys * dims),
        }
    }
}

/// The rows of one head, from row `first` on.
#[inline(always)]
fn of_head(rows: Rows<'_>, first: usize, shape: Shape, head: usize) -> Rows<'_> {
    Rows { values: &rows.values[first * rows.stride + head * shape.head_dim..], ..rows }
}

/// Panels of `count` rows of `dims` values: a column of the panel is a column of the rows.
#[inline(always)]
fn pack<const N: usize>(rows: Rows, count: usize, dims: usize, panels: &mut [f32]) {
    for (panel, from) in panels.chunks_mut(count.max(1) * N).zip((0..dims).step_by(N)) {
        let len = N.min(dims - from);
        for (to, row) in panel.chunks_exact_mut(N).zip(rows.values.chunks(rows.stride)) {
            if let Some(row) = row.get(from..from + N).filter(|_| len == N) {
                to.copy_from_slice(row);
            } else {
                to[..len].copy_from_slice(&row[from..][..len]);
                to[len..].fill(0.0);
            }
        }
    }
}

versions! {
    /// Panels of the same across: a column of the panel is a row. In squares that fit into registers, because the compiler
    /// would scatter whole rows.
    #[inline(never)]
    fn pack_across<const N: usize>(rows: Rows, count: usize, dims: usize, panels: &mut [f32]) {
        const SIDE: usize = 8;
        let Rows { values, stride } = rows;
        for (panel, from) in panels.chunks_mut(dims * N).zip((0..count).step_by(N)) {
            let len = N.min(count - from);
            if len < N {
                panel.fill(0.0);
            }
            let (whole_columns, whole_dims) = (len / SIDE * SIDE, dims / SIDE * SIDE);
            for column in (0..whole_columns).step_by(SIDE) {
                let rows = &values[(from + column) * stride..];
                for t in (0..whole_dims).step_by(SIDE) {
                    let mut square = [[0.0f32; SIDE]; SIDE];
                    for i in 0..SIDE {
                        square[i].copy_from_slice(&rows[i * stride + t..][..SIDE]);
                    }
                    for j in 0..SIDE {
                        let mut line = [0.0; SIDE];
                        for i in 0..SIDE {
                            line[i] = square[i][j];
                        }
                        panel[(t + j) * N + column..][..SIDE].copy_from_slice(&line);
                    }
                }
            }
            for column in 0..len {
                let row = &values[(from + column) * stride..][..dims];
                let done = if column < whole_columns { whole_dims } else { 0 };
                for (t, v) in row.iter().enumerate().skip(done) {
                    panel[t * N + column] = *v;
                }
            }
        }
    }
}

/// A factor in place: rows of a matrix, or its columns if it is `ACROSS`.
#[derive(Clone, Copy)]
struct Factor<'a> {
    values: &'a [f32],
    stride: usize,
}

versions! {
    /// `R` rows of a product with one panel, added to `out` or written to it. The sum of an element runs along the depth
    /// in one order, whatever `R` and `N` are.
    ///
    /// A function of its own, and constant indices, because the compiler then keeps the sums in registers.
    #[inline(never)]
    fn tile<const R: usize, const N: usize, const ACROSS: bool>(
        a: Factor,
        panel: &[[f32; N]],
        add: bool,
        out: &mut [f32],
        stride: usize,
    ) {
        let mut sums = [[0.0f32; N]; R];
        if add {
            for i in 0..R {
                sums[i].copy_from_slice(&out[i * stride..][..N]);
            }
        }
        if ACROSS {
            for (b, a) in panel.iter().zip(a.values.chunks(a.stride)) {
                let a = &a[..R];
                for i in 0..R {
                    add_product(a[i], b, &mut sums[i]);
                }
            }
        } else {
            let mut rows: [&[f32]; R] = [&[]; R];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = &a.values[i * a.stride..][..panel.len()];
            }
            for (t, b) in panel.iter().enumerate() {
                for i in 0..R {
                    add_product(rows[i][t], b, &mut sums[i]);
                }
            }
        }
        for i in 0..R {
            out[i * stride..][..N].copy_from_slice(&sums[i]);
        }
    }
}

#[inline(always)]
fn add_product<const N: usize>(a: f32, b: &[f32; N], sums: &mut [f32; N]) {
    for j in 0..N {
        sums[j] = a.mul_add(b[j], sums[j]);
    }
}

/// `rows` rows of a product with panels of a depth, `out` with `stride` columns.
#[inline(always)]
fn product<const R: usize, const N: usize, const ACROSS: bool>(
    rows: usize,
    a: Factor,
    depth: usize,
    (panels, panel_len): (&[f32], usize),
    columns: usize,
    add: bool,
    (out, stride): (&mut [f32], usize),
) {
    let step = if ACROSS { 1 } else { a.stride };
    for (panel, column) in panels.chunks(panel_len.max(1)).zip((0..columns).step_by(N)) {
        let panel = &panel.as_chunks::<N>().0[..depth];
        let mut row = 0;
        while row < rows {
            let a = Factor { values: &a.values[row * step..], ..a };
            let out = &mut out[row * stride + column..];
            if row + R <= rows {
                tile::<R, N, ACROSS>(a, panel, add, out, stride);
                row += R;
            } else {
                tile::<1, N, ACROSS>(a, panel, add, out, stride);
                row += 1;
            }
        }
    }
}

/// Which keys are hidden; gives the first that is not.
#[inline(always)]
fn hide(shape: Shape, options: Options, image: usize, hidden: &mut [f32]) -> usize {
    hidden.fill(-1.0);
    match options.padding {
        None => hidden[..shape.keys].fill(0.0),
        Some(padding) => {
            for (hidden, padding) in
                hidden.iter_mut().zip(&padding[image * shape.keys..][..shape.keys])
            {
                *hidden = if *padding { -1.0 } else { 0.0 };
            }
        }
    }
    hidden.iter().position(|v| *v == 0.0).unwrap_or(shape.keys)
}

/// The scaled scores of a row, of which the first `limit` may be seen.
#[inline(always)]
fn masked(scores: &mut [f32], hidden: &[f32], limit: usize, scale: f32) {
    for (s, hidden) in scores.iter_mut().zip(hidden) {
        *s = if *hidden < 0.0 { f32::NEG_INFINITY } else { *s * scale };
    }
    scores[limit..].fill(f32::NEG_INFINITY);
}

/// By what dropout multiplies a row.
#[inline(always)]
fn factors<'a>(shape: Shape, dropout: Dropout, row: usize, factors: &'a mut [f32]) -> &'a [f32] {
    let words = shape.keys.div_ceil(LANES);
    let len = factors.len();
    spread(&dropout.kept[row * words..][..words], &mut factors[..len.min(words * LANES)]);
    for factor in &mut *factors {
        *factor *= dropout.scale;
    }
    factors
}

versions! {
    fn forward_head<tile R, N>(
        shape: Shape,
        inputs: [Rows; 3],
        options: Options,
        image: usize,
        head: usize,
        out: &mut [&mut [f32]],
        saved: &mut [f32],
        memory: &mut Memory,
    ) -> u32 {
        let Shape { heads, queries, keys, head_dim, .. } = shape;
        let [q, k, v] = inputs;
        let stride = memory.hidden.len();
        let dims = head_dim.next_multiple_of(N);
        let first_seen = hide(shape, options, image, &mut memory.hidden);
        let mut top = 0;
        pack_across::<N>(of_head(k, image * keys, shape, head), keys, head_dim, &mut memory.keys_across);
        pack::<N>(of_head(v, image * keys, shape, head), keys, head_dim, &mut memory.values);
        for first in (0..queries).step_by(QUERIES) {
            let rows = QUERIES.min(queries - first);
            // No query of these sees a later key.
            let seen = if options.causal { keys.min(first + rows) } else { keys };
            // Not of `N`, because sums over a row must not depend on the level.
            let columns = seen.next_multiple_of(LANES);
            let asked = of_head(q, image * queries + first, shape, head);
            product::<R, N, false>(
                rows,
                Factor { values: asked.values, stride: asked.stride },
                head_dim,
                (&memory.keys_across, head_dim * N),
                columns,
                false,
                (&mut memory.scores, stride),
            );
            for (i, scores) in memory.scores.chunks_exact_mut(stride).take(rows).enumerate() {
                let row = first + i;
                let limit = if options.causal { keys.min(first + i + 1) } else { keys };
                let scores = &mut scores[..columns];
                let saved = &mut saved[row * 2..][..2];
                if first_seen >= limit {
                    scores.fill(0.0);
                    saved.fill(0.0);
                    continue;
                }
                masked(scores, &memory.hidden, limit, options.scale);
                let most = largest(scores);
                for s in &mut *scores {
                    *s = exp(*s - most);
                }
                saved[0] = most;
                saved[1] = 1.0 / sum(scores, |v| v);
                if let Some(dropout) = options.dropout {
                    let row = (image * heads + head) * queries + row;
                    for (s, factor) in scores.iter_mut().zip(factors(shape, dropout, row, &mut memory.factors)) {
                        *s *= factor;
                    }
                }
            }
            product::<R, N, false>(
                rows,
                Factor { values: &memory.scores, stride },
                seen,
                (&memory.values, keys * N),
                dims,
                false,
                (&mut memory.rows, dims),
            );
            for (i, sums) in memory.rows.chunks_exact(dims).take(rows).enumerate() {
                let share = saved[(first + i) * 2 + 1];
                for (out, sum) in out[first + i].iter_mut().zip(sums) {
                    *out = sum * share;
                    top = top.max(out.to_bits() & MAGNITUDE);
                }
            }
        }
        top
    }
}

/// The gradient of scores, in place of that of dropped probabilities, and these in place of probabilities.
#[inline(always)]
fn through_softmax(p: &mut [f32], d: &mut [f32], factors: Option<&[f32]>, scale: f32) {
    if let Some(factors) = factors {
        for (d, factor) in d.iter_mut().zip(factors) {
            *d *= factor;
        }
    }
    let along = sum2(p, d, |p, d| p * d);
    for (p, d) in p.iter().zip(d) {
        *d = p * (*d - along) * scale;
    }
    if let Some(factors) = factors {
        for (p, factor) in p.iter_mut().zip(factors) {
            *p *= factor;
        }
    }
}

versions! {
    fn backward_head<tile R, N>(
        shape: Shape,
        inputs: [Rows; 4],
        options: Options,
        image: usize,
        head: usize,
        saved: &[f32],
        gradients: [&mut [&mut [f32]]; 3],
        memory: &mut Memory,
    ) -> u32 {
        let Shape { heads, queries, keys, head_dim, .. } = shape;
        let [q, k, v, dout] = inputs;
        let [dq, dk, dv] = gradients;
        let stride = memory.hidden.len();
        let dims = head_dim.next_multiple_of(N);
        hide(shape, options, image, &mut memory.hidden);
        let mut top = 0;
        let mut write = |to: &mut [f32], from: &[f32]| {
            for (to, v) in to.iter_mut().zip(from) {
                *to = *v;
                top = top.max(v.to_bits() & MAGNITUDE);
            }
        };
        let key_rows = of_head(k, image * keys, shape, head);
        let value_rows = of_head(v, image * keys, shape, head);
        pack_across::<N>(key_rows, keys, head_dim, &mut memory.keys_across);
        pack_across::<N>(value_rows, keys, head_dim, &mut memory.values_across);
        pack::<N>(key_rows, keys, head_dim, &mut memory.keys);
        memory.dkeys.fill(0.0);
        memory.dvalues.fill(0.0);
        for first in (0..queries).step_by(QUERIES) {
            let rows = QUERIES.min(queries - first);
            let seen = if options.causal { keys.min(first + rows) } else { keys };
            let columns = seen.next_multiple_of(LANES);
            let asked = of_head(q, image * queries + first, shape, head);
            let given = of_head(dout, image * queries + first, shape, head);
            pack::<N>(asked, rows, head_dim, &mut memory.queries);
            pack::<N>(given, rows, head_dim, &mut memory.dout);
            product::<R, N, false>(
                rows,
                Factor { values: asked.values, stride: asked.stride },
                head_dim,
                (&memory.keys_across, head_dim * N),
                columns,
                false,
                (&mut memory.scores, stride),
            );
            product::<R, N, false>(
                rows,
                Factor { values: given.values, stride: given.stride },
                head_dim,
                (&memory.values_across, head_dim * N),
                columns,
                false,
                (&mut memory.dscores, stride),
            );
            let pairs = memory.scores.chunks_exact_mut(stride).zip(memory.dscores.chunks_exact_mut(stride));
            for (i, (scores, dscores)) in pairs.take(rows).enumerate() {
                let row = first + i;
                let limit = if options.causal { keys.min(first + i + 1) } else { keys };
                let (scores, dscores) = (&mut scores[..columns], &mut dscores[..columns]);
                let (most, share) = (saved[row * 2], saved[row * 2 + 1]);
                masked(scores, &memory.hidden, limit, options.scale);
                for s in &mut *scores {
                    *s = exp(*s - most) * share;
                }
                let factors = options.dropout.map(|dropout| {
                    factors(shape, dropout, (image * heads + head) * queries + row, &mut memory.factors)
                });
                through_softmax(scores, dscores, factors, options.scale);
            }
            product::<R, N, true>(
                seen,
                Factor { values: &memory.scores, stride },
                rows,
                (&memory.dout, rows * N),
                dims,
                true,
                (&mut memory.dvalues, dims),
            );
            product::<R, N, true>(
                seen,
                Factor { values: &memory.dscores, stride },
                rows,
                (&memory.queries, rows * N),
                dims,
                true,
                (&mut memory.dkeys, dims),
            );
            product::<R, N, false>(
                rows,
                Factor { values: &memory.dscores, stride },
                seen,
                (&memory.keys, keys * N),
                dims,
                false,
                (&mut memory.rows, dims),
            );
            for (i, row) in memory.rows.chunks_exact(dims).take(rows).enumerate() {
                write(dq[first + i], row);
            }
        }
        for (to, from) in dk.iter_mut().zip(memory.dkeys.chunks_exact(dims)) {
            write(to, from);
        }
        for (to, from) in dv.iter_mut().zip(memory.dvalues.chunks_exact(dims)) {
            write(to, from);
        }
        top
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{absmax, assert_close, dot, same_everywhere, slope, values, wide};

    /// The definition in f64, of contiguous rows.
    fn definition(shape: Shape, [q, k, v]: [&[f64]; 3], options: Options) -> Vec<f64> {
        let Shape { batch, heads, queries, keys, head_dim } = shape;
        let width = shape.width();
        let mut out = vec![0.0; batch * queries * width];
        for b in 0..batch {
            for h in 0..heads {
                for i in 0..queries {
                    let asked = &q[(b * queries + i) * width + h * head_dim..][..head_dim];
                    let weights: Vec<f64> = (0..keys)
                        .map(|j| {
                            let key = &k[(b * keys + j) * width + h * head_dim..][..head_dim];
                            let score: f64 = asked.iter().zip(key).map(|(a, b)| a * b).sum();
                            let padded = options.padding.is_some_and(|p| p[b * keys + j]);
                            let hidden = padded || options.causal && j > i;
                            if hidden { 0.0 } else { (score * f64::from(options.scale)).exp() }
                        })
                        .collect();
                    let total: f64 = weights.iter().sum();
                    for (j, weight) in weights.iter().enumerate() {
                        let row = ((b * heads + h) * queries + i) * keys.div_ceil(32);
                        let factor = options.dropout.map_or(1.0, |d| {
                            f64::from(d.kept[row + j / 32] >> (j % 32) & 1) * f64::from(d.scale)
                        });
                        if *weight > 0.0 {
                            for d in 0..head_dim {
                                out[(b * queries + i) * width + h * head_dim + d] += weight / total
                                    * factor
                                    * v[(b * keys + j) * width + h * head_dim + d];
                            }
                        }
                    }
                }
            }
        }
        out
    }

    fn plain(scale: f32) -> Options<'static> {
        Options { scale, causal: false, padding: None, dropout: None }
    }

    fn run(shape: Shape, inputs: [&[f32]; 3], options: Options, dout: &[f32]) -> Vec<Vec<f32>> {
        let rows = inputs.map(|values| Rows { values, stride: shape.width() });
        same_everywhere(|| {
            let mut out = vec![9.0; dout.len()];
            let mut saved = vec![9.0; shape.batch * shape.heads * shape.queries * 2];
            let top = forward(shape, rows, options, &mut out, &mut saved).unwrap();
            assert_eq!(top, absmax(&out));
            let [mut dq, mut dk, mut dv] = inputs.map(|v| vec![9.0; v.len()]);
            let gradients = Gradients::Separate { dq: &mut dq, dk: &mut dk, dv: &mut dv };
            let top = backward(shape, rows, options, &saved, dout, gradients).unwrap();
            assert_eq!(top, [&dq, &dk, &dv].map(|d| absmax(d)).into_iter().fold(0.0, f32::max));
            vec![out, dq, dk, dv]
        })
    }

    fn shapes() -> Vec<Shape> {
        [
            (1, 1, 1, 1, 1),
            (2, 3, 5, 5, 3),
            (1, 2, 17, 17, 15),
            (2, 1, 33, 7, 17),
            (1, 2, 3, 40, 33),
            (0, 1, 2, 2, 2),
            (2, 1, 0, 3, 2),
            (2, 1, 3, 0, 2),
        ]
        .map(|(batch, heads, queries, keys, head_dim)| Shape {
            batch,
            heads,
            queries,
            keys,
            head_dim,
        })
        .to_vec()
    }

    fn check_definition(shape: Shape) {
        let Shape { batch, heads, queries, keys, .. } = shape;
        let (asking, asked) = (batch * queries * shape.width(), batch * keys * shape.width());
        let (q, k, v) = (values(1, asking + 1), values(2, asked), values(3, asked));
        let (q, dout) = (&q[1..], values(4, asking));
        let padding: Vec<bool> = (0..batch * keys).map(|i| i % 3 == 0).collect();
        let kept: Vec<u32> = values(5, batch * heads * queries * keys.div_ceil(32))
            .iter()
            .map(|v| v.to_bits().wrapping_mul(0x9E37_79B9) ^ 0x5555_1234)
            .collect();
        let dropout = Some(Dropout { kept: &kept, scale: 1.5 });
        for options in [
            plain(0.7),
            Options { causal: true, ..plain(0.7) },
            Options { padding: Some(&padding), ..plain(0.7) },
            Options { dropout, ..plain(0.7) },
            Options { causal: true, padding: Some(&padding), dropout, scale: 1.3 },
        ] {
            let got = run(shape, [q, &k, &v], options, &dout);
            let (q, k, v) = (wide(q), wide(&k), wide(&v));
            assert_close("out", &got[0], &definition(shape, [&q, &k, &v], options), 1e-6);
            let loss = |q: &[f64], k: &[f64], v: &[f64]| {
                dot(&definition(shape, [q, k, v], options), &dout)
            };
            if q.len() + k.len() > 1000 && options.dropout.is_none() {
                continue;
            }
            // One key has no slope but that of its value.
            let tolerance = if keys < 2 || queries < 2 { f64::INFINITY } else { 1e-5 };
            assert_close("dq", &got[1], &slope(&q, |q| loss(q, &k, &v)), tolerance);
            assert_close("dk", &got[2], &slope(&k, |k| loss(&q, k, &v)), tolerance);
            assert_close("dv", &got[3], &slope(&v, |v| loss(&q, &k, v)), 1e-5);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_small_attention_is_its_definition(
            (batch, heads, head_dim) in (0..3_usize, 0..3_usize, 1..5_usize),
            (queries, keys) in (0..7_usize, 0..7_usize),
        ) {
            check_definition(Shape { batch, heads, queries, keys, head_dim });
        }
    }

    #[test]
    fn attention_is_the_definition_and_its_gradients_the_slope() {
        for shape in shapes() {
            check_definition(shape);
        }
    }

    #[test]
    fn blocks_of_queries_add_up() {
        let shape = Shape { batch: 2, heads: 2, queries: 150, keys: 150, head_dim: 8 };
        let count = 2 * 150 * 16;
        let (q, k, v, dout) =
            (values(1, count), values(2, count), values(3, count), values(4, count));
        for causal in [false, true] {
            let options = Options { causal, ..plain(0.4) };
            let got = run(shape, [&q, &k, &v], options, &dout);
            let wide = [&q, &k, &v].map(|v| wide(v));
            let at = |parts: &[Vec<f64>; 3]| {
                dot(&definition(shape, [&parts[0], &parts[1], &parts[2]], options), &dout)
            };
            let expected = definition(shape, [&wide[0], &wide[1], &wide[2]], options);
            assert_close("out", &got[0], &expected, 1e-6);
            // Some places are enough: each is a sum over all blocks.
            for part in 0..3 {
                for i in [0, 777, 2399, count - 1] {
                    let (mut up, mut down) = (wide.clone(), wide.clone());
                    up[part][i] += 1e-5;
                    down[part][i] -= 1e-5;
                    let slope = (at(&up) - at(&down)) / 2e-5;
                    let error = (f64::from(got[1 + part][i]) - slope).abs();
                    assert!(error < 2e-6, "{part} {i}: {} and {slope}", got[1 + part][i]);
                }
            }
        }
    }

    #[test]
    fn packed_rows_and_gradients_are_those_of_separate_ones() {
        let shape = Shape { batch: 3, heads: 2, queries: 9, keys: 9, head_dim: 5 };
        let (width, rows) = (10, 27);
        let packed = values(1, rows * 3 * width);
        let part = |p: usize| -> Vec<f32> {
            packed.chunks(3 * width).flat_map(|row| row[p * width..][..width].to_vec()).collect()
        };
        let (q, k, v, dout) = (part(0), part(1), part(2), values(2, rows * width));
        let separate = run(shape, [&q, &k, &v], plain(0.5), &dout);
        let views = [0, 1, 2].map(|p| Rows { values: &packed[p * width..], stride: 3 * width });
        let (mut out, mut saved) = (vec![9.0; rows * width], vec![9.0; rows * 2 * 2]);
        forward(shape, views, plain(0.5), &mut out, &mut saved).unwrap();
        assert_eq!(out, separate[0]);
        let mut d = vec![9.0; packed.len()];
        backward(shape, views, plain(0.5), &saved, &dout, Gradients::Packed(&mut d)).unwrap();
        for p in 0..3 {
            let got: Vec<f32> =
                d.chunks(3 * width).flat_map(|row| row[p * width..][..width].to_vec()).collect();
            assert_eq!(got, separate[1 + p]);
        }
    }

    #[test]
    fn a_query_that_sees_nothing_gets_zeros() {
        let shape = Shape { batch: 1, heads: 1, queries: 2, keys: 2, head_dim: 1 };
        let options = Options { causal: true, padding: Some(&[true, false]), ..plain(1.0) };
        let got = run(shape, [&[1.0, 2.0], &[3.0, 4.0], &[5.0, 6.0]], options, &[1.0, 1.0]);
        assert_eq!(got, [[0.0, 6.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]);
    }

    #[test]
    fn nan_stays_in_its_row_and_large_scores_are_finite() {
        let shape = Shape { batch: 1, heads: 1, queries: 2, keys: 2, head_dim: 1 };
        let rows = [[f32::NAN, 1e4], [1e4, -1e4], [5.0, 6.0]];
        let rows = rows.each_ref().map(|values| Rows { values, stride: 1 });
        let (mut out, mut saved) = ([0.0; 2], [0.0; 4]);
        assert!(forward(shape, rows, plain(1.0), &mut out, &mut saved).unwrap().is_nan());
        assert!(out[0].is_nan());
        assert_eq!(out[1], 5.0);
    }

    #[test]
    fn wrong_calls_are_refused() {
        let shape = Shape { batch: 1, heads: 1, queries: 2, keys: 2, head_dim: 2 };
        let row = |values, stride| Rows { values, stride };
        let x = [1.0; 5];
        let good = row(&x[..4], 2);
        let call = |rows, options| forward(shape, rows, options, &mut [0.0; 4], &mut [0.0; 4]);
        assert!(call([good, good, row(&x, 3)], plain(1.0)).is_ok());
        assert!(call([good, good, row(&x[..4], 3)], plain(1.0)).is_err());
        assert!(call([good, row(&x, 1), good], plain(1.0)).is_err());
        assert!(call([good; 3], Options { padding: Some(&[true]), ..plain(1.0) }).is_err());
        let dropout = Some(Dropout { kept: &[0], scale: 1.0 });
        assert!(call([good; 3], Options { dropout, ..plain(1.0) }).is_err());
        let nothing = Rows { values: &[], stride: usize::MAX };
        for huge in [
            Shape { batch: usize::MAX, ..shape },
            Shape { batch: usize::MAX / 2 + 1, ..shape },
            Shape { queries: usize::MAX / 2, keys: usize::MAX, ..shape },
            Shape { heads: usize::MAX, ..shape },
            Shape { batch: 0, heads: usize::MAX / 2 + 1, ..shape },
        ] {
            for rows in [[good; 3], [nothing; 3]] {
                assert!(forward(huge, rows, plain(1.0), &mut [], &mut []).is_err(), "{huge:?}");
                let gradients = Gradients::Packed(&mut []);
                assert!(backward(huge, rows, plain(1.0), &[], &[], gradients).is_err());
            }
        }
        let shape = Shape { keys: 1, ..shape };
        let gradients = Gradients::Packed(&mut []);
        assert!(backward(shape, [good; 3], plain(1.0), &[0.0; 4], &[0.0; 4], gradients).is_err());
    }
}
