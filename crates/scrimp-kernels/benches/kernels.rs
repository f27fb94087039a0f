//! GMAC/s of convolutions and linear layers, forward and backward, beside what registers alone reach.
//!
//! `cargo bench -p scrimp-kernels` prints one table for each network, kind and thread count. Every figure is the median of
//! rounds; products with padding are counted, which kernels may leave out.
//!
//! Options come after `--`, each with what it is without it:
//!
//! | option | meaning |
//! |---|---|
//! | `--nets lenet,linear` | which networks; `resnet18,resnet20,lenet,depthwise,linear` |
//! | `--kinds int8` | `f32,bf16,int8` |
//! | `--threads 1,2` | how many threads; `1,2` |
//! | `--level avx2` | the best instruction set to use; that of the machine |
//! | `--rounds 5` | rounds that count; 9 |
//! | `--cpu` | time on the CPU, a thread's share of it, instead of time on the clock (Linux), likewise |
//! | `--best` | the fastest round instead of the median, for a machine that has other work |
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Instant;

use half::bf16;
use scrimp_kernels::conv2d::{self, Conv2dShape, Window};
use scrimp_kernels::linear::{self, LinearShape};
use scrimp_kernels::{Kind, Level, Operand, Scale, register_peak};

/// Layers of one shape.
struct Layer {
    name: &'static str,
    count: usize,
    shape: Shape,
}

#[derive(Clone, Copy)]
enum Shape {
    Conv(Conv2dShape),
    Linear(LinearShape),
}

impl Layer {
    fn is_first(&self) -> bool {
        matches!(self.name, "stem" | "conv1")
    }
}

struct Options {
    nets: Vec<String>,
    kinds: Vec<Kind>,
    threads: Vec<usize>,
    level: Level,
    rounds: usize,
    best: bool,
    cpu: bool,
}

const NETS: [&str; 5] = ["resnet18", "resnet20", "lenet", "depthwise", "linear"];
const KINDS: [Kind; 3] = [Kind::F32, Kind::Bf16, Kind::Int8];

fn main() {
    let options = match options() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            std::process::exit(2);
        }
    };
    for &threads in &options.threads {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        for &kind in &options.kinds {
            let peak = register_peak(kind, threads);
            for net in &options.nets {
                pool.install(|| table(net, kind, threads, peak, &options));
            }
        }
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        nets: NETS.map(String::from).to_vec(),
        kinds: KINDS.to_vec(),
        threads: vec![1, 2],
        level: Level::detected(),
        rounds: 9,
        best: false,
        cpu: false,
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
            "--cpu" => {
                options.cpu = true;
                continue;
            }
            // `cargo bench -- --test` and test runners only want to see that it starts.
            "--test" | "--list" => {
                (options.nets, options.rounds) = (vec!["linear".into()], 1);
                continue;
            }
            _ => {}
        }
        let value =
            args.next().ok_or_else(|| format!("`{name}` is no option, or lacks its value"))?;
        let parts = value.split(',');
        match name.as_str() {
            "--nets" => options.nets = parts.map(net).collect::<Result<_, _>>()?,
            "--kinds" => options.kinds = parts.map(kind).collect::<Result<_, _>>()?,
            "--threads" => options.threads = parts.map(number).collect::<Result<_, _>>()?,
            "--rounds" => options.rounds = number(&value)?,
            "--level" => {
                options.level = Level::available()
                    .find(|level| level.name() == value)
                    .ok_or_else(|| format!("`{value}` is no level of this machine"))?;
            }
            _ => {
                return Err(format!(
                    "`{name}` is no option: --nets, --kinds, --threads, --level, --rounds, --best, --cpu"
                ));
            }
        }
    }
    Ok(options)
}

fn net(text: &str) -> Result<String, String> {
    let known = NETS.contains(&text);
    if known {
        Ok(text.into())
    } else {
        Err(format!("`{text}` is no network: {}", NETS.join(", ")))
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    KINDS.into_iter().find(|kind| kind.name() == text).ok_or_else(|| format!("`{text}` is no kind"))
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("`{text}` is no positive number"))
}

fn layers(net: &str) -> Vec<Layer> {
    let conv = |name, count, batch, size: usize, channels: [usize; 2], kernel: usize, stride| {
        let window = Window { stride: [stride; 2], padding: [kernel / 2; 2], ..Window::default() };
        let [inputs, outputs] = channels;
        let shape = Conv2dShape::new(
            [batch, size, size, inputs],
            [outputs, inputs, kernel, kernel],
            window,
        );
        Layer { name, count, shape: Shape::Conv(shape.expect("it fits")) }
    };
    let depthwise = |name, size: usize, channels| {
        let window = Window { padding: [1; 2], groups: channels, ..Window::default() };
        let shape = Conv2dShape::new([32, size, size, channels], [channels, 1, 3, 3], window);
        Layer { name, count: 1, shape: Shape::Conv(shape.expect("it fits")) }
    };
    let linear = |name, rows, inputs, outputs| Layer {
        name,
        count: 1,
        shape: Shape::Linear(LinearShape { rows, inputs, outputs }),
    };
    match net {
        "resnet18" => vec![
            conv("stem", 1, 32, 32, [3, 64], 3, 1),
            conv("layer1", 4, 32, 32, [64, 64], 3, 1),
            conv("layer2 first", 1, 32, 32, [64, 128], 3, 2),
            conv("layer2 skip", 1, 32, 32, [64, 128], 1, 2),
            conv("layer2", 3, 32, 16, [128, 128], 3, 1),
            conv("layer3 first", 1, 32, 16, [128, 256], 3, 2),
            conv("layer3 skip", 1, 32, 16, [128, 256], 1, 2),
            conv("layer3", 3, 32, 8, [256, 256], 3, 1),
            conv("layer4 first", 1, 32, 8, [256, 512], 3, 2),
            conv("layer4 skip", 1, 32, 8, [256, 512], 1, 2),
            conv("layer4", 3, 32, 4, [512, 512], 3, 1),
        ],
        "resnet20" => vec![
            conv("stem", 1, 128, 32, [3, 16], 3, 1),
            conv("stage1", 6, 128, 32, [16, 16], 3, 1),
            conv("stage2 first", 1, 128, 32, [16, 32], 3, 2),
            conv("stage2", 5, 128, 16, [32, 32], 3, 1),
            conv("stage3 first", 1, 128, 16, [32, 64], 3, 2),
            conv("stage3", 5, 128, 8, [64, 64], 3, 1),
        ],
        "lenet" => vec![
            conv("conv1", 1, 64, 28, [1, 6], 5, 1),
            conv("conv2", 1, 64, 14, [6, 16], 5, 1),
            linear("fc1", 64, 400, 120),
            linear("fc2", 64, 120, 84),
            linear("fc3", 64, 84, 10),
        ],
        "depthwise" => vec![depthwise("32x32x64", 32, 64), depthwise("8x8x256", 8, 256)],
        _ => vec![
            linear("1024", 1024, 1024, 1024),
            // Of a transformer with rows of 128 values, on 4096 tokens.
            linear("attention", 4096, 128, 128),
            linear("feed in", 4096, 128, 256),
            linear("feed out", 4096, 256, 128),
        ],
    }
}

/// The lengths of input, weight and output, and how many products a pass has.
fn sizes(shape: Shape) -> ([usize; 3], usize) {
    match shape {
        Shape::Conv(s) => {
            let len = |sizes: [usize; 4]| sizes.iter().product();
            ([len(s.input()), len(s.weight()), len(s.output())], s.products())
        }
        Shape::Linear(LinearShape { rows, inputs, outputs }) => {
            ([rows * inputs, inputs * outputs, rows * outputs], rows * inputs * outputs)
        }
    }
}

/// Elements of one kind.
enum Elements {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Int8(Vec<i8>),
}

impl Elements {
    fn new(kind: Kind, len: usize) -> Self {
        let code = |i: usize| i8::try_from(i * 7919 % 251).unwrap_or(0) - 64;
        match kind {
            Kind::F32 => Self::F32((0..len).map(|i| f32::from(code(i))).collect()),
            Kind::Bf16 => {
                Self::Bf16((0..len).map(|i| bf16::from_f32(f32::from(code(i)))).collect())
            }
            Kind::Int8 => Self::Int8((0..len).map(code).collect()),
        }
    }

    fn operand(&self) -> Operand<'_> {
        match self {
            Self::F32(v) => Operand::F32(v),
            Self::Bf16(v) => Operand::Bf16(v),
            Self::Int8(v) => Operand::Int8(v),
        }
    }
}

fn table(net: &str, kind: Kind, threads: usize, peak: f64, options: &Options) {
    println!(
        "\n{net}, {}, {threads} thread(s): GMAC/s (share of {peak:.0} out of registers)",
        kind.name()
    );
    println!("{:<16}{:>3}{:>18}{:>18}{:>18}", "layer", "x", "forward", "dx", "dw");
    let mut totals = [0.0; 3];
    for layer in layers(net) {
        let (_, products) = sizes(layer.shape);
        let seconds = time(layer.shape, kind, options);
        print!("{:<16}{:>3}", layer.name, layer.count);
        for (pass, (total, seconds)) in totals.iter_mut().zip(seconds).enumerate() {
            // Nothing needs the gradient of an image.
            if pass == 1 && layer.is_first() {
                print!("{:>18}", "-");
                continue;
            }
            let speed = products as f64 * 1e-9 / seconds;
            print!("{speed:>12.1} {:>3.0} %", 100.0 * speed / peak);
            *total += seconds * layer.count as f64 * 1e3;
        }
        println!();
    }
    let [forward, dx, dw] = totals;
    println!(
        "{:<19}{forward:>15.2} ms{dx:>15.2} ms{dw:>15.2} ms, together {:.2} ms",
        "all layers",
        forward + dx + dw
    );
}

/// Seconds since some time: on the clock, or of each of the pool's threads on the CPU, on average.
fn now(cpu: bool) -> f64 {
    if !cpu {
        static START: OnceLock<Instant> = OnceLock::new();
        return START.get_or_init(Instant::now).elapsed().as_secs_f64();
    }
    let tasks = std::fs::read_dir("/proc/self/task").expect("a list of threads");
    let nanoseconds = |task: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    let all: f64 = tasks.filter_map(nanoseconds).sum();
    all * 1e-9 / rayon::current_num_threads() as f64
}

/// Seconds of each pass.
fn time(shape: Shape, kind: Kind, options: &Options) -> [f64; 3] {
    let level = options.level;
    let ([x_len, w_len, y_len], products) = sizes(shape);
    let elements = [x_len, w_len, y_len].map(|len| Elements::new(kind, len));
    let [x, w, dy] = elements.each_ref().map(Elements::operand);
    let [mut dx, mut dw, mut y] = [x_len, w_len, y_len].map(|len| vec![0.0; len]);
    let scale = Scale::Tensor(1e-3);
    let mut times = [const { Vec::new() }; 3];
    // Short passes are repeated, more often where the clock is coarse.
    let enough = if options.cpu { 4_000_000_000 } else { 20_000_000 };
    let runs = (enough / products).max(1);
    for round in 0..=options.rounds {
        for (pass, times) in times.iter_mut().enumerate() {
            let start = now(options.cpu);
            for _ in 0..runs {
                let done = match (shape, pass) {
                    (Shape::Conv(s), 0) => conv2d::forward_at(level, &s, x, w, scale, None, &mut y),
                    (Shape::Conv(s), 1) => {
                        conv2d::input_gradient_at(level, &s, dy, w, scale, &mut dx)
                    }
                    (Shape::Conv(s), _) => {
                        conv2d::weight_gradient_at(level, &s, x, dy, scale, &mut dw)
                    }
                    (Shape::Linear(s), 0) => {
                        linear::forward_at(level, &s, x, w, scale, None, &mut y)
                    }
                    (Shape::Linear(s), 1) => {
                        linear::input_gradient_at(level, &s, dy, w, scale, &mut dx)
                    }
                    (Shape::Linear(s), _) => {
                        linear::weight_gradient_at(level, &s, x, dy, scale, &mut dw)
                    }
                };
                done.expect("it fits");
            }
            black_box((&y, &dx, &dw));
            if round > 0 {
                times.push((now(options.cpu) - start) / runs as f64);
            }
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        if options.best { times[0] } else { times[times.len() / 2] }
    })
}
