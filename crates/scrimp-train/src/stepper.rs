//! Training steps on noise, to time them: what a step takes does not depend on the values.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use scrimp_codec::Stream;

use crate::compute::{Choice, Products};
use crate::engine;
use crate::gradients::GradientTaps;
use crate::layers::Ids;
use crate::loss::cross_entropy;
use crate::models::{Blueprint, Network, TextTransformer, TextTransformerOptions};
use crate::ops;
use crate::optimizers::Optimizer;
use crate::plan::{self, PlanError, PlanRequest, Saved};
use crate::tap::{Arithmetic, Scope, Session, Site};

/// What is timed.
#[derive(Clone, Debug)]
pub struct StepJob {
    /// The network's input, the rules and the optimizer.
    pub plan: PlanRequest,
    /// Whose arithmetic layers use.
    pub arithmetic: Arithmetic,
}

/// A network in training.
pub trait Stepper {
    /// Makes a step and says how many seconds it took.
    fn step(&mut self) -> f64;

    /// What the products of the layers took since the last call. They are timed from the first call on.
    fn products(&mut self) -> Vec<ProductTime>;
}

/// What a product of a layer took.
#[derive(Clone, Debug, PartialEq)]
pub struct ProductTime {
    /// Path of the layer.
    pub layer: String,
    /// Which product: `y`, `dx` or `dw`.
    pub product: &'static str,
    /// In what it was computed.
    pub choice: Choice,
    /// Products of two numbers, in all calls together; those with padding are counted.
    pub macs: f64,
    /// Seconds, in all calls together, without the rounding of operands.
    pub seconds: f64,
}

/// Seconds that the products of a layer take, once somebody wants to know.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    runs: AtomicBool,
    /// Of `y`, `dx` and `dw`: products of two numbers, and seconds.
    spent: Mutex<[[f64; 2]; 3]>,
}

impl Clock {
    /// Times the product of that number, if the clock runs.
    pub(crate) fn time<R>(&self, product: usize, macs: usize, work: impl FnOnce() -> R) -> R {
        if !self.runs.load(Ordering::Relaxed) {
            return work();
        }
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        let spent = &mut self.spent.lock().unwrap_or_else(PoisonError::into_inner)[product];
        *spent = [spent[0] + macs as f64, spent[1] + seconds];
        result
    }

    /// Lets the clock run from now on, and reads what it counted until now.
    pub(crate) fn read(&self, site: &Site) -> Vec<ProductTime> {
        self.runs.store(true, Ordering::Relaxed);
        let spent = std::mem::take(&mut *self.spent.lock().unwrap_or_else(PoisonError::into_inner));
        let Products { forward, input_gradient, weight_gradient } = site.products();
        [("y", forward), ("dx", input_gradient), ("dw", weight_gradient)]
            .into_iter()
            .zip(spent)
            .filter(|(_, [macs, _])| *macs > 0.0)
            .map(|((product, choice), [macs, seconds])| ProductTime {
                layer: site.path.clone(),
                product,
                choice,
                macs,
                seconds,
            })
            .collect()
    }
}

/// A network that trains on noise, for its [`ModelEntry`](crate::models::ModelEntry).
pub(crate) fn stepper<N: Network>(
    blueprint: &Blueprint<N>,
    job: &StepJob,
) -> Result<Box<dyn Stepper>, PlanError> {
    let PlanRequest { image, classes, batch, .. } = job.plan;
    let Blueprint { name: model, options } = blueprint;
    N::accepts(image).map_err(|valid| PlanError::Image { model, image, valid })?;
    let [channels, height, width] = image;
    let count = batch * channels * height * width;
    let noise = Stream::new(1, 2);
    let values: Vec<f32> = (0..count as u64).map(|i| noise.uniform(i) - 0.5).collect();
    let shape = [batch, channels, height, width];
    let images =
        |device: &Device| Tensor::<4>::from_data(TensorData::new(values.clone(), shape), device);
    let build = |scope: &Scope, device: &Device| N::build(options, image, classes, scope, device);
    steps(job, build, images, |net: &N, x: &Tensor<4>| net.forward(x.clone()))
}

/// The same for a transformer with 2 layers of 128 values and 4 heads, on texts of 64 tokens out of 20,000.
///
/// # Errors
/// If the rules do not fit the network.
pub fn text_transformer(job: &StepJob) -> Result<Box<dyn Stepper>, PlanError> {
    let options = TextTransformerOptions {
        tokens: 20_000,
        time: 64,
        dim: 128,
        heads: 4,
        hidden: 256,
        layers: 2,
        classes: job.plan.classes,
    };
    let mut draws = vec![0; job.plan.batch * options.time];
    Stream::new(1, 2).fill(0, &mut draws);
    let tokens = u32::try_from(options.tokens).unwrap_or(u32::MAX);
    let values = draws.iter().map(|draw| draw % tokens).collect();
    let ids = Ids { values, shape: [job.plan.batch, options.time] };
    let build = |scope: &Scope, device: &Device| TextTransformer::new(options, scope, device);
    steps(job, build, |_| ids.clone(), TextTransformer::forward)
}

/// Builds a network twice, once to learn its shapes, and applies the job's rules.
fn steps<N: Module + 'static, X: 'static>(
    job: &StepJob,
    build: impl Fn(&Scope, &Device) -> N,
    batch: impl Fn(&Device) -> X,
    forward: fn(&N, &X) -> Tensor<2>,
) -> Result<Box<dyn Stepper>, PlanError> {
    let PlanRequest { classes, batch: images, .. } = job.plan;
    let plain = engine::device(&job.plan.device)?;
    let shapes = Scope::root(0).with(job.arithmetic);
    forward(&build(&shapes, &plain), &batch(&plain));
    let plan = plan::last(plan::requested(&shapes, &job.plan)?);
    let device = plain.autodiff();
    let scope = Scope::root(0).with(job.arithmetic);
    let net = build(&scope, &device);
    let session = Session::new(0);
    let sites = scope.sites();
    plan.apply(&sites, &session);
    Ok(Box::new(Steps {
        gradients: GradientTaps::new(&sites, &session),
        net: Some(net),
        forward,
        optimizer: Optimizer::planned(job.plan.optimizer.clone(), &plan, &session),
        session,
        sites,
        x: batch(&device),
        packed: plan.saved == Saved::Packed,
        labels: (0..images).map(|i| u8::try_from(i % classes).unwrap_or(0)).collect(),
        done: 0,
    }))
}

struct Steps<N, X> {
    /// Taken out while a step replaces it.
    net: Option<N>,
    forward: fn(&N, &X) -> Tensor<2>,
    optimizer: Optimizer,
    session: Arc<Session>,
    sites: Vec<Arc<Site>>,
    gradients: GradientTaps,
    x: X,
    /// Whether memory is what counts.
    packed: bool,
    labels: Vec<u8>,
    done: u64,
}

impl<N: Module, X> Stepper for Steps<N, X> {
    fn step(&mut self) -> f64 {
        /// Small, so that noise does not drive the network to infinity.
        const LR: f64 = 1e-4;
        let net = self.net.take().expect("a step gives the network back");
        let start = Instant::now();
        self.session.set_step(self.done);
        ops::save_memory(self.packed);
        let logits = (self.forward)(&net, &self.x);
        let loss = cross_entropy(logits, &self.labels, 0.0);
        let _value = loss.clone().into_scalar::<f32>();
        let mut grads = GradientsParams::from_grads(loss.backward(), &net);
        self.gradients.round(&net, &mut grads);
        self.net = Some(self.optimizer.step(LR, net, &mut grads));
        let seconds = start.elapsed().as_secs_f64();
        self.done += 1;
        seconds
    }

    fn products(&mut self) -> Vec<ProductTime> {
        self.sites.iter().flat_map(|site| site.clock().read(site)).collect()
    }
}
