//! Milliseconds of a training step with formats on every tensor, beside the float step.
//!
//! `cargo bench -p scrimp-train` alternates the steps of all variants, so that a slow minute of the machine hits them
//! alike, and prints medians. The batches are noise: the time of a step does not depend on them.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::time::Instant;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use scrimp_codec::Stream;
use scrimp_train::burn;
use scrimp_train::compute::Compute;
use scrimp_train::gradients::GradientTaps;
use scrimp_train::loss::cross_entropy;
use scrimp_train::models::{LeNet, Network, ResNet20};
use scrimp_train::optimizers::{Optimizer, OptimizerConfig};
use scrimp_train::plan::resolve;
use scrimp_train::rules::Rule;
use scrimp_train::tap::{Scope, Session};

/// The allocator that the program has; the engine's tensors come and go with every operation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VARIANTS: [(&str, Option<(&str, &str)>); 5] = [
    ("f32", None),
    ("int8", Some(("int8", "int8"))),
    ("int8, d stochastic", Some(("int8", "int8/stochastic"))),
    ("e4m3fn, d e5m2", Some(("e4m3fn", "e5m2"))),
    ("bf16", Some(("bf16", "bf16"))),
];

fn main() {
    // Test runners only want to see that it starts.
    let smoke = std::env::args().any(|a| a == "--test" || a == "--list");
    table::<LeNet>([1, 28, 28], if smoke { 1 } else { 60 });
    if !smoke {
        table::<ResNet20>([3, 32, 32], 8);
    }
}

/// A network in training.
struct Training<N> {
    net: N,
    optimizer: Optimizer,
    session: std::sync::Arc<Session>,
    gradients: GradientTaps,
    steps: u64,
}

impl<N: Network> Training<N> {
    fn new(
        image: [usize; 3],
        batch: usize,
        schemes: Option<(&str, &str)>,
        device: &Device,
    ) -> Self {
        let scope = Scope::root(7);
        let net = N::build(image, 10, &scope, device);
        let [channels, height, width] = image;
        net.valid().forward(Tensor::zeros([1, channels, height, width], &device.clone().inner()));
        let session = Session::new(7);
        let sites = scope.sites();
        let rules = schemes.map(|(forward, backward)| Rule {
            default: Some(forward.parse().expect("a scheme")),
            d: Some(backward.parse().expect("a scheme")),
            ..Rule::new("*")
        });
        let rules: Vec<Rule> = rules.into_iter().collect();
        resolve(&sites, &rules, batch, Compute::Auto)
            .expect("the rules fit")
            .apply(&sites, &session);
        let gradients = GradientTaps::new(&sites, &session);
        let optimizer = Optimizer::new(OptimizerConfig::default());
        Self { net, optimizer, session, gradients, steps: 0 }
    }

    /// One step; returns its milliseconds.
    fn step(self, x: &Tensor<4>, labels: &[u8], device: &Device) -> (Self, f64) {
        let Self { net, mut optimizer, session, gradients, steps } = self;
        let start = Instant::now();
        session.set_step(steps);
        let loss = cross_entropy(net.forward(x.clone()), labels, 0.0, device);
        let _ = loss.clone().into_scalar::<f32>();
        let mut grads = GradientsParams::from_grads(loss.backward(), &net);
        gradients.round(&net, &mut grads);
        let net = optimizer.step(1e-4, net, &mut grads);
        let ms = start.elapsed().as_secs_f64() * 1e3;
        (Self { net, optimizer, session, gradients, steps: steps + 1 }, ms)
    }
}

fn table<N: Network>(image: [usize; 3], rounds: usize) {
    const BATCH: usize = 64;
    let device = Device::flex().autodiff();
    let [channels, height, width] = image;
    let count = BATCH * channels * height * width;
    let noise: Vec<f32> = (0..count as u64).map(|i| Stream::new(1, 2).uniform(i) - 0.5).collect();
    let shape = [BATCH, channels, height, width];
    let x = Tensor::<4>::from_data(TensorData::new(noise, shape), &device);
    let labels: Vec<u8> = (0..BATCH).map(|i| u8::try_from(i % 10).unwrap_or(0)).collect();

    let mut all: Vec<Option<Training<N>>> =
        VARIANTS.map(|(_, s)| Some(Training::new(image, BATCH, s, &device))).into();
    let mut times = vec![Vec::new(); VARIANTS.len()];
    for round in 0..rounds + 2 {
        for (slot, times) in all.iter_mut().zip(&mut times) {
            let Some(training) = slot.take() else { continue };
            let (training, ms) = training.step(&x, &labels, &device);
            *slot = Some(training);
            // The first rounds only warm up.
            if round >= 2 {
                times.push(ms);
            }
        }
    }
    println!("\n{}, batch {BATCH}, {} threads: ms per step", N::NAME, rayon::current_num_threads());
    let median = |t: &mut Vec<f64>| {
        t.sort_by(f64::total_cmp);
        t[t.len() / 2]
    };
    let float = median(&mut times[0]);
    for ((name, _), times) in VARIANTS.iter().zip(&mut times) {
        let ms = median(times);
        println!("{name:<20}{ms:>9.2} (least {:>7.2}){:>7.2}x", times[0], ms / float);
    }
}
