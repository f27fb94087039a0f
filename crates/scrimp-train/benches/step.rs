//! Milliseconds of a training step with formats on every tensor, beside the float step.
//!
//! `cargo bench -p scrimp-train` alternates the steps of all variants, so that a slow minute of the machine hits them
//! alike, and prints medians. `scrimp bench` times the operands alone, and says what each product takes.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use scrimp_train::compute::Compute;
use scrimp_train::models;
use scrimp_train::optimizers::OptimizerConfig;
use scrimp_train::plan::{PlanRequest, Saved};
use scrimp_train::rules::Rule;
use scrimp_train::stepper::{StepJob, Stepper};
use scrimp_train::tap::Arithmetic;

/// The allocator that the program has; the engine's tensors come and go with every operation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 64;

/// A name, and schemes of values and of gradients.
const VARIANTS: [(&str, Option<[&str; 2]>); 5] = [
    ("f32", None),
    ("int8", Some(["int8", "int8"])),
    ("int8, d stochastic", Some(["int8", "int8/stochastic"])),
    ("e4m3fn, d e5m2", Some(["e4m3fn", "e5m2"])),
    ("bf16", Some(["bf16", "bf16"])),
];

fn main() {
    // Test runners only want to see that it starts.
    let smoke = std::env::args().any(|a| a == "--test" || a == "--list");
    table("lenet", [1, 28, 28], if smoke { 1 } else { 60 });
    if !smoke {
        table("resnet20", [3, 32, 32], 8);
    }
}

fn job(image: [usize; 3], schemes: Option<[&str; 2]>) -> StepJob {
    let rule = schemes.map(|schemes| {
        let [values, gradients] = schemes.map(|s| Some(s.parse().expect("a scheme")));
        Rule { default: values, d: gradients, ..Rule::new("*") }
    });
    let plan = PlanRequest {
        image,
        classes: 10,
        batch: BATCH,
        rules: rule.into_iter().collect(),
        device: "flex".into(),
        compute: Compute::Auto,
        optimizer: OptimizerConfig::default(),
        exchange: None,
        saved: Saved::default(),
    };
    StepJob { plan, arithmetic: Arithmetic::Kernels }
}

fn table(model: &str, image: [usize; 3], rounds: usize) {
    const WARM: usize = 2;
    let model = models::find(model).expect("a model");
    let mut all: Vec<Box<dyn Stepper>> = VARIANTS
        .iter()
        .map(|(_, schemes)| (model.stepper)(&job(image, *schemes)).expect("the rules fit"))
        .collect();
    let mut times = vec![Vec::new(); VARIANTS.len()];
    for round in 0..rounds + WARM {
        for (stepper, times) in all.iter_mut().zip(&mut times) {
            let ms = 1e3 * stepper.step();
            if round >= WARM {
                times.push(ms);
            }
        }
    }
    let threads = rayon::current_num_threads();
    println!("\n{}, batch {BATCH}, {threads} threads: ms per step", model.name);
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
