//! GB/s of `f32` for each scheme beside `memcpy`, large and in the cache.
//!
//! `cargo bench -p scrimp-codec` prints one table for each size and thread count: every figure is the median of rounds
//! that alternate between the cases, so that a slow minute of the machine hits all of them alike.
//!
//! Options come after `--`, each with what it is without it:
//!
//! | option | meaning |
//! |---|---|
//! | `--schemes int8,e4m3fn` | which schemes; the first member of every family and a list of usual ones |
//! | `--size small` | `small` (64 Ki values, in the cache), `large` (64 Mi values) or `both`; `both` |
//! | `--threads 1,2` | how many threads; `1,2` |
//! | `--row 27` | values in a row of the matrix, as many rows as there is room for; 64 rows |
//! | `--rounds 5` | rounds that count; 9 |
//! | `--best` | the fastest round instead of the median, for a machine that has other work |
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use scrimp_codec::{FAMILIES, Scheme, Stream};

const USUAL: [&str; 32] = [
    "int8",
    "e4m3fn",
    "bf16",
    "f16",
    "uint8",
    "int4/group:32",
    "int4/group:128/scale:f16",
    "uint4/group:128",
    "int8/channel",
    "int8/axis:1",
    "int8/group:32/scale:pow2",
    "e4m3fn/channel",
    "e4m3fn/group:32",
    "e4m3fn/group:32/scale:pow2",
    "int3/group:64",
    "int5",
    "int6",
    "e3m2fn",
    "int8/stochastic",
    "e5m2/stochastic",
    "cfloat8_1_4_3",
    "nf4",
    "mxfp4",
    "mxfp8_e4m3",
    "mxint8",
    "nvfp4",
    "msfp12",
    "binary/channel",
    "ternary",
    "smaq:6,8",
    "s2fp8",
    "int8/rans",
];

const SMALL: usize = 1 << 16;
const LARGE: usize = 1 << 26;

struct Options {
    schemes: Vec<Scheme>,
    sizes: Vec<usize>,
    threads: Vec<usize>,
    row: Option<usize>,
    rounds: usize,
    best: bool,
}

/// How long one timing lasts at least: what is in the cache is repeated.
const LEAST: Duration = Duration::from_millis(1);

fn main() {
    let options = match options() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            std::process::exit(2);
        }
    };
    for &n in &options.sizes {
        let stream = Stream::new(7, 1);
        let source = bell_shaped(n, &stream);
        for &threads in &options.threads {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("a thread pool");
            pool.install(|| table(&source, threads, &options, &stream));
        }
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        schemes: Vec::new(),
        sizes: vec![LARGE, SMALL],
        threads: vec![1, 2],
        row: None,
        rounds: 9,
        best: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        match name.as_str() {
            // What cargo itself adds.
            "--bench" => continue,
            "--best" => {
                options.best = true;
                continue;
            }
            // `cargo bench -- --test` and test runners only want to see that it starts.
            "--test" | "--list" => {
                (options.sizes, options.rounds) = (vec![1 << 12], 1);
                continue;
            }
            _ => {}
        }
        let value =
            args.next().ok_or_else(|| format!("`{name}` is no option, or lacks its value"))?;
        let parts = value.split(',');
        match name.as_str() {
            "--schemes" => options.schemes = parts.map(parse).collect::<Result<_, _>>()?,
            "--size" => {
                options.sizes = match value.as_str() {
                    "small" => vec![SMALL],
                    "large" => vec![LARGE],
                    "both" => vec![LARGE, SMALL],
                    _ => return Err(format!("`{value}` is no size: small, large or both")),
                }
            }
            "--threads" => options.threads = parts.map(number).collect::<Result<_, _>>()?,
            "--row" => options.row = Some(number(&value)?),
            "--rounds" => options.rounds = number(&value)?,
            _ => {
                return Err(format!(
                    "`{name}` is no option: --schemes, --size, --threads, --row, --rounds, --best"
                ));
            }
        }
    }
    if options.schemes.is_empty() {
        let firsts = FAMILIES.iter().filter_map(|f| f.members().into_iter().next());
        let all = USUAL.map(String::from).into_iter().chain(firsts);
        for text in all {
            let scheme = parse(&text)?;
            if !options.schemes.contains(&scheme) {
                options.schemes.push(scheme);
            }
        }
    }
    Ok(options)
}

fn parse(text: &str) -> Result<Scheme, String> {
    text.parse().map_err(|e| format!("{e}"))
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("`{text}` is no positive number"))
}

/// Sums of four uniform numbers: bell-shaped, like weights.
fn bell_shaped(n: usize, stream: &Stream) -> Vec<f32> {
    let mut draws = vec![0; n];
    stream.fill(0, &mut draws);
    (0..n)
        .map(|i| (0..4).map(|k| draws[(i + k * 7919) % n] as f32 / 16_777_216.0).sum::<f32>() - 2.0)
        .collect()
}

/// Seconds that a case took, one for each round.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    /// Runs a case as often as fills [`LEAST`]; the first round only warms up.
    fn take(&mut self, round: usize, mut case: impl FnMut()) {
        let start = Instant::now();
        let mut runs = 0;
        while start.elapsed() < LEAST {
            case();
            runs += 1;
        }
        if round > 0 {
            self.0.push(start.elapsed().as_secs_f64() / f64::from(runs));
        }
    }

    fn typical(&mut self, best: bool) -> f64 {
        self.0.sort_by(f64::total_cmp);
        if best { self.0[0] } else { self.0[self.0.len() / 2] }
    }
}

fn table(source: &[f32], threads: usize, options: &Options, stream: &Stream) {
    // 64 rows, so that rows are long and channels are few, as in weights of a network.
    let row = options.row.unwrap_or(source.len() / 64);
    let shape = &[source.len() / row, row];
    let n = shape[0] * row;
    let source = &source[..n];
    let schemes: Vec<&Scheme> = options.schemes.iter().filter(|s| s.check(shape).is_ok()).collect();
    let mut x = source.to_vec();
    let mut bytes = Vec::new();
    let mut copy = Times::default();
    let mut times: Vec<[Times; 3]> = schemes.iter().map(|_| Default::default()).collect();
    for round in 0..=options.rounds {
        for (scheme, [emulate, encode, decode]) in schemes.iter().zip(&mut times) {
            copy.take(round, || copy_in_parallel(source, &mut x, threads));
            emulate.take(round, || {
                scheme.emulate(black_box(&mut x), shape, stream).expect("it fits");
            });
            encode.take(round, || {
                bytes.clear();
                scheme.encode(black_box(source), shape, stream, &mut bytes).expect("it fits");
            });
            decode.take(round, || {
                scheme.decode(black_box(&bytes), shape, &mut x).expect("it fits");
            });
        }
    }
    let speed = |times: &mut Times| n as f64 * 4e-9 / times.typical(options.best);
    let memcpy = speed(&mut copy);
    println!("\n{n} values in rows of {row}, {threads} thread(s): GB/s of f32 (share of memcpy)");
    println!("{:<28}{:>16}{:>16}{:>16}", "scheme", "emulate", "encode", "decode");
    println!("{:<28}{memcpy:>9.2}", "memcpy");
    for (scheme, columns) in schemes.iter().zip(&mut times) {
        print!("{:<28}", scheme.to_string());
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
