//! Passes over memory in GB/s, beside `memcpy` in the same run.
//!
//! Bytes are those that a pass must read and write at least; a name on the command line chooses among the passes.
#![expect(clippy::print_stdout, reason = "a table is the purpose")]
#![expect(clippy::unwrap_used, reason = "the shapes are right")]

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;
use scrimp_kernels::activation::{self, Gelu};
use scrimp_kernels::attention::{self, Options, Rows, Shape};
use scrimp_kernels::batch_norm::{self, After, Gradients};
use scrimp_kernels::pool::{self, Window};
use scrimp_kernels::{Gate, concat, embedding, layer_norm, optim, softmax};

fn values(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

struct Table {
    filter: Option<String>,
}

impl Table {
    /// One row: the median and the best time of a pass over `floats` values.
    fn row(&self, name: &str, floats: usize, mut pass: impl FnMut()) {
        if self.filter.as_ref().is_some_and(|f| !name.contains(f.as_str())) {
            return;
        }
        let mut times: Vec<f64> = (0..41)
            .map(|_| {
                let start = Instant::now();
                pass();
                start.elapsed().as_secs_f64()
            })
            .skip(4)
            .collect();
        times.sort_by(f64::total_cmp);
        let rate = |t: f64| 4e-9 * floats as f64 / t;
        let (median, best) = (times[times.len() / 2], times[0]);
        println!(
            "{name:<44} {:>8.3} ms {:>6.1} GB/s   best {:>8.3} ms {:>6.1} GB/s",
            median * 1e3,
            rate(median),
            best * 1e3,
            rate(best)
        );
    }
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let table = Table { filter };
    memcpy(&table);
    norms(&table);
    pools(&table);
    concatenations(&table);
    optimizers(&table);
    activations(&table);
    rows(&table);
    attentions(&table);
    embeddings(&table);
}

fn memcpy(table: &Table) {
    for n in [1 << 21, 11_170_000] {
        let (x, mut y) = (values(n), vec![0.0; n]);
        table.row(&format!("memcpy {n}"), 2 * n, || {
            y.par_chunks_mut(1 << 15)
                .zip(x.par_chunks(1 << 15))
                .for_each(|(y, x)| y.copy_from_slice(x));
        });
    }
}

fn norms(table: &Table) {
    let n = 1 << 21;
    let (x, mut dout, residual) = (values(n), values(n), values(n));
    let mut out = vec![0.0; n];
    let mut words = vec![0; n / 32];
    for c in [64, 512, 6] {
        let x = &x[..n / c * c];
        let n = x.len();
        let (out, dout) = (&mut out[..n], &mut dout[..n]);
        let words = &mut words[..n.div_ceil(32)];
        let (gamma, beta) = (vec![1.0; c], vec![0.0; c]);
        table.row(&format!("batch norm statistics, {c} channels"), n, || {
            black_box(batch_norm::statistics(x, c, 1e-5).unwrap());
        });
        let s = batch_norm::statistics(x, c, 1e-5).unwrap();
        let moments = [&s.mean[..], &s.rstd[..]];
        let relu = || After { relu: true, ..After::default() };
        table.row(&format!("batch norm + relu, {c} channels"), 2 * n, || {
            black_box(batch_norm::apply(x, moments, &gamma, &beta, relu(), out).unwrap());
        });
        table.row(&format!("batch norm + relu with bits, {c} channels"), 2 * n, || {
            let after = After { bits: Some(&mut *words), ..relu() };
            black_box(batch_norm::apply(x, moments, &gamma, &beta, after, out).unwrap());
        });
        table.row(&format!("batch norm + residual + relu, {c} channels"), 3 * n, || {
            let after = After { residual: Some(&residual[..n]), ..relu() };
            black_box(batch_norm::apply(x, moments, &gamma, &beta, after, out).unwrap());
        });
        let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
        // Works on its own results from the second time on, which are as good as any values.
        let mut x = x.to_vec();
        let mut backward = |name: &str, floats, gate: Gate, residual| {
            table.row(&format!("batch norm backward, {name}, {c} channels"), floats, || {
                let (dgamma, dbeta) = (&mut dgamma[..], &mut dbeta[..]);
                let gradients = Gradients { dgamma, dbeta, residual };
                let top = batch_norm::backward(dout, gate, &mut x, moments, &gamma, gradients);
                black_box(top.unwrap());
            });
        };
        backward("no relu", 5 * n, Gate::Open, false);
        backward("relu", 7 * n, Gate::Output(out), false);
        backward("relu by bits", 5 * n, Gate::Bits(words), false);
        backward("relu + residual", 8 * n, Gate::Output(out), true);
    }
}

fn concatenations(table: &Table) {
    // The branches of a block of InceptionV3.
    let (rows, lens) = (16 * 35 * 35, [64, 64, 96, 64]);
    let columns: usize = lens.iter().sum();
    let parts = lens.map(|len| values(rows * len));
    let parts: Vec<_> = parts.iter().map(Vec::as_slice).zip(lens).collect();
    let (mut out, mut part) = (vec![0.0; rows * columns], vec![0.0; rows * 96]);
    table.row("concat 64, 64, 96, 64, [16, 35, 35, 288]", 2 * rows * columns, || {
        concat::concat(&parts, &mut out).unwrap();
    });
    table.row("96 columns of 288", 2 * rows * 96, || {
        concat::columns(&out, columns, 128..224, &mut part).unwrap();
    });
}

fn pools(table: &Table) {
    let shape = [64, 28, 28, 6];
    let n: usize = shape.iter().product();
    let (x, mut out, mut taps) = (values(n), vec![0.0; n / 4], vec![0u8; n / 4]);
    let mut dx = vec![0.0; n];
    let window = Window { kernel: [2, 2], stride: [2, 2], padding: [0, 0] };
    table.row("relu + max pool 2x2, [64, 28, 28, 6]", n + n / 4, || {
        pool::relu_max_pool2d(&x, shape, window, &mut out, &mut taps).unwrap();
    });
    table.row("relu + max pool 2x2 backward, [64, 28, 28, 6]", n + n / 4, || {
        pool::max_pool2d_backward(&out, &taps, shape, window, &mut dx).unwrap();
    });
    let shape = [16, 56, 56, 64];
    let n: usize = shape.iter().product();
    let (x, mut out, mut taps) = (values(n), vec![0.0; n / 4], vec![0u8; n / 4]);
    let mut dx = vec![0.0; n];
    let window = Window { kernel: [3, 3], stride: [2, 2], padding: [1, 1] };
    table.row("max pool 3x3 stride 2, [16, 56, 56, 64]", n + n / 4, || {
        pool::max_pool2d(&x, shape, window, &mut out, &mut taps).unwrap();
    });
    table.row("max pool 3x3 stride 2 backward", n + n / 4, || {
        pool::max_pool2d_backward(&out, &taps, shape, window, &mut dx).unwrap();
    });
    table.row("average pool 3x3 stride 2", n + n / 4, || {
        pool::avg_pool2d(&x, shape, window, true, &mut out).unwrap();
    });
    table.row("average pool 3x3 stride 2 backward", n + n / 4, || {
        pool::avg_pool2d_backward(&out, shape, window, true, &mut dx).unwrap();
    });
    let mut mean = vec![0.0; 16 * 64];
    table.row("global average pool, [16, 56, 56, 64]", n, || {
        pool::global_avg_pool(&x, shape, &mut mean).unwrap();
    });
    table.row("global average pool backward", n, || {
        pool::global_avg_pool_backward(&mean, shape, &mut dx).unwrap();
    });
}

fn optimizers(table: &Table) {
    let n = 11_170_000;
    let (mut w, g) = (values(n), values(n));
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    let sgd = |momentum| optim::Sgd { lr: 1e-3, momentum, nesterov: false, weight_decay: 1e-4 };
    table.row("sgd, 11.17M parameters", 3 * n, || {
        black_box(optim::sgd(&sgd(0.0), 1, &mut w, &g, None).unwrap());
    });
    table.row("sgd with momentum, 11.17M parameters", 5 * n, || {
        black_box(optim::sgd(&sgd(0.9), 1, &mut w, &g, Some(&mut m)).unwrap());
    });
    let adam = optim::Adam {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        decoupled: true,
    };
    table.row("adam, 11.17M parameters", 7 * n, || {
        let moments = optim::Moments { m: &mut m, v: &mut v, v_max: None };
        black_box(optim::adam(&adam, 1, &mut w, &g, moments).unwrap());
    });
    table.row("sum of squares, 11.17M parameters", n, || {
        black_box(optim::sum_of_squares(&g));
    });
    table.row("scale, 11.17M parameters", 2 * n, || {
        black_box(optim::scale(&mut w, 1.0));
    });
}

fn activations(table: &Table) {
    let n = 1 << 20;
    let (x, dout, mut out) = (values(n), values(n), values(n));
    let mut words = vec![0; n / 32];
    table.row("relu, 1M", 2 * n, || {
        black_box(activation::relu(&mut out, None).unwrap());
    });
    table.row("relu with bits, 1M", 2 * n, || {
        black_box(activation::relu(&mut out, Some(&mut words)).unwrap());
    });
    table.row("relu backward by output, 1M", 3 * n, || {
        black_box(activation::relu_backward(&mut out, Gate::Output(&x)).unwrap());
    });
    table.row("relu backward by bits, 1M", 2 * n, || {
        black_box(activation::relu_backward(&mut out, Gate::Bits(&words)).unwrap());
    });
    for form in [Gelu::Erf, Gelu::Tanh] {
        table.row(&format!("gelu, {form:?}, 1M"), 2 * n, || {
            black_box(activation::gelu(form, &x, &mut out).unwrap());
        });
        table.row(&format!("gelu backward, {form:?}, 1M"), 3 * n, || {
            black_box(activation::gelu_backward(form, &x, &dout, &mut out).unwrap());
        });
    }
}

fn rows(table: &Table) {
    let (count, len) = (4096, 128);
    let n = count * len;
    let (x, dout, mut out, mut dx) = (values(n), values(n), values(n), values(n));
    let (gamma, beta) = (vec![1.0; len], vec![0.0; len]);
    let (mut mean, mut rstd) = (vec![0.0; count], vec![0.0; count]);
    table.row("layer norm, [4096, 128]", 2 * n, || {
        let saved = [&mut mean[..], &mut rstd[..]];
        black_box(layer_norm::forward(&x, &gamma, &beta, 1e-5, &mut out, saved).unwrap());
    });
    let (mut dgamma, mut dbeta) = (vec![0.0; len], vec![0.0; len]);
    table.row("layer norm backward, [4096, 128]", 3 * n, || {
        let gradients =
            layer_norm::Gradients { dx: &mut dx, dgamma: &mut dgamma, dbeta: &mut dbeta };
        black_box(layer_norm::backward(&dout, &x, [&mean, &rstd], &gamma, gradients).unwrap());
    });
    table.row("softmax, [4096, 128]", 2 * n, || {
        softmax::softmax(&x, len, 1.0, &mut out).unwrap();
    });
    table.row("softmax backward, [4096, 128]", 3 * n, || {
        softmax::softmax_backward(&dout, &out, len, 1.0, &mut dx).unwrap();
    });
    let targets: Vec<u32> = (0..4096).map(|i| i % 128).collect();
    table.row("cross-entropy and gradient, [4096, 128]", 2 * n, || {
        black_box(softmax::cross_entropy(&x, len, &targets, 0.1, Some(&mut dx)).unwrap());
    });
}

fn attentions(table: &Table) {
    let shape = Shape { batch: 64, heads: 4, queries: 64, keys: 64, head_dim: 32 };
    let (width, count) = (128, 64 * 64);
    let (qkv, dout, mut out) =
        (values(count * 3 * width), values(count * width), values(count * width));
    let inputs = [0, 1, 2].map(|p| Rows { values: &qkv[p * width..], stride: 3 * width });
    let mut saved = vec![0.0; count * 4 * 2];
    let mut dqkv = vec![0.0; qkv.len()];
    for causal in [false, true] {
        let options = Options { scale: 0.176, causal, padding: None, dropout: None };
        let name = if causal { "causal attention" } else { "attention" };
        table.row(&format!("{name}, [64, 64, 4, 32]"), qkv.len() + out.len(), || {
            black_box(attention::forward(shape, inputs, options, &mut out, &mut saved).unwrap());
        });
        table.row(&format!("{name} backward"), 2 * qkv.len() + out.len(), || {
            let gradients = attention::Gradients::Packed(&mut dqkv);
            black_box(
                attention::backward(shape, inputs, options, &saved, &dout, gradients).unwrap(),
            );
        });
    }
}

fn embeddings(table: &Table) {
    let (rows, len, count) = (10_000, 128, 4096);
    let (weights, mut out, mut dtable) =
        (values(rows * len), values(count * len), values(rows * len));
    let ids: Vec<usize> = (0..count).map(|i| i * i * 31 % rows).collect();
    table.row("embedding, 4096 of [10000, 128]", 2 * out.len(), || {
        embedding::gather(&weights, len, &ids, &mut out).unwrap();
    });
    table.row("embedding backward", out.len() + dtable.len(), || {
        embedding::gather_backward(&out, len, &ids, &mut dtable).unwrap();
    });
}
