//! GB/s of `f32` for each scheme beside `memcpy`, large and in the cache.
//!
//! `cargo bench -p scrimp-codec` prints one table for each thread count: every figure is the median of rounds that
//! alternate between the cases, so that a slow minute of the machine hits all of them alike.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::hint::black_box;
use std::time::Instant;

use scrimp_codec::{Scheme, Stream};

const SCHEMES: [&str; 12] = [
    "int8",
    "e4m3fn",
    "bf16",
    "int4/group:32",
    "int8/channel",
    "uint8",
    "e4m3fn/channel",
    "e5m2/stochastic",
    "int8/stochastic",
    "e4m3fn/group:32",
    "smaq:6,8",
    "s2fp8",
];

fn main() {
    // `cargo bench -- --test` and test runners only want to see that it starts.
    let smoke = std::env::args().any(|a| a == "--test" || a == "--list");
    let (sizes, rounds): (&[usize], usize) =
        if smoke { (&[1 << 12], 1) } else { (&[1 << 26, 1 << 16], 9) };
    for &n in sizes {
        let shape = [64, n / 64];
        let stream = Stream::new(7, 1);
        let mut draws = vec![0; n];
        stream.fill(0, &mut draws);
        // Sums of four uniform numbers: bell-shaped, like weights.
        let source: Vec<f32> = (0..n)
            .map(|i| {
                (0..4).map(|k| draws[(i + k * 7919) % n] as f32 / 16_777_216.0).sum::<f32>() - 2.0
            })
            .collect();
        drop(draws);
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("a thread pool");
            pool.install(|| table(&source, &shape, threads, rounds, &stream));
        }
    }
}

fn table(source: &[f32], shape: &[usize], threads: usize, rounds: usize, stream: &Stream) {
    let n = source.len();
    let repeat = ((1 << 22) / n).max(1);
    let schemes: Vec<Scheme> = SCHEMES.iter().map(|s| s.parse().expect("a scheme")).collect();
    let mut x = source.to_vec();
    let mut bytes = Vec::new();
    let mut copy = Vec::new();
    let mut times = vec![[const { Vec::new() }; 3]; schemes.len()];
    for round in 0..=rounds {
        let timed = |list: &mut Vec<f64>, mut f: Box<dyn FnMut() + '_>| {
            let start = Instant::now();
            for _ in 0..repeat {
                f();
            }
            // The first round only warms up.
            if round > 0 {
                list.push(start.elapsed().as_secs_f64() / repeat as f64);
            }
        };
        timed(&mut copy, Box::new(|| copy_in_parallel(source, &mut x, threads)));
        for (scheme, [emulate, encode, decode]) in schemes.iter().zip(&mut times) {
            copy_in_parallel(source, &mut x, threads);
            timed(
                emulate,
                Box::new(|| {
                    scheme.emulate(black_box(&mut x), shape, stream).expect("it fits");
                }),
            );
            timed(
                encode,
                Box::new(|| {
                    bytes.clear();
                    scheme.encode(black_box(source), shape, stream, &mut bytes).expect("it fits");
                }),
            );
            timed(
                decode,
                Box::new(|| scheme.decode(black_box(&bytes), shape, &mut x).expect("it fits")),
            );
        }
    }
    let gigabytes = n as f64 * 4e-9;
    let speed = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        gigabytes / times[times.len() / 2]
    };
    let memcpy = speed(&mut copy);
    println!("\n{n} values, {threads} thread(s): GB/s of f32 (share of memcpy)");
    println!("{:<18}{:>16}{:>16}{:>16}", "scheme", "emulate", "encode", "decode");
    println!("{:<18}{memcpy:>16.2}", "memcpy");
    for (scheme, columns) in schemes.iter().zip(&mut times) {
        print!("{:<18}", scheme.to_string());
        for column in columns {
            let s = speed(column);
            print!("{s:>9.2} {:>4.0} %", 100.0 * s / memcpy);
        }
        println!();
    }
}

fn copy_in_parallel(from: &[f32], to: &mut [f32], threads: usize) {
    let len = from.len().div_ceil(threads);
    rayon::scope(|s| {
        for (from, to) in from.chunks(len).zip(to.chunks_mut(len)) {
            s.spawn(|_| to.copy_from_slice(black_box(from)));
        }
    });
}
