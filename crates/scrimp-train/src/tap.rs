//! Taps: where a tensor of a layer is rounded, and where it is looked at.
//!
//! While a network is built, each layer asks its [`Scope`] for a [`Tap`]; the scope remembers the layer's path and
//! shapes, from which rules are resolved. The plan then gives every tap its [`Point`]s, one for each role.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

use burn::tensor::Tensor;
use scrimp_codec::codecs::Integers;
use scrimp_codec::{DecodeError, EncodeError, Memory, Scheme, Stream, Tally};

use crate::compute::Products;
use crate::engine::{self, PointRef};
use crate::exchange::Exchange;
use crate::ops::{self, Geometry, Points, Product};
use crate::params::NamedTensor;
use crate::plan::Saved;
use crate::role::Role;
use crate::stepper::Clock;
use crate::telemetry::Telemetry;
use crate::trace::{Op, Recorder};

/// A tensor that went wrong: the first one of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The tensor, as `layer.role` or the name of a parameter's gradient.
    pub tensor: String,
    /// The training step.
    pub step: u64,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at step {}: {}", self.tensor, self.step, self.what)
    }
}

/// What all taps of a network share: the seed, the step that random numbers are drawn for, and the first problem.
#[derive(Debug)]
pub struct Session {
    seed: u32,
    step: AtomicU64,
    /// Whether every tapped tensor is searched for values that are not finite.
    audit: AtomicBool,
    /// Whether what passes is scored, not learned from.
    evaluates: AtomicBool,
    problem: Mutex<Option<Problem>>,
    tally: Mutex<Tally>,
    memories: Mutex<BTreeMap<String, Remembered>>,
    exchanges: Mutex<Vec<Weak<Exchange>>>,
    telemetry: Telemetry,
}

/// What a scheme remembers of one gradient.
#[derive(Debug)]
enum Remembered {
    /// As a checkpoint had it; the gradient has not come by yet.
    Saved(Vec<f32>),
    /// For gradients of this shape.
    Known { shape: Vec<usize>, memory: Memory },
}

impl Session {
    /// A session whose random streams are named by `seed`.
    pub fn new(seed: u32) -> Arc<Self> {
        Arc::new(Self {
            seed,
            step: AtomicU64::new(0),
            audit: AtomicBool::new(false),
            evaluates: AtomicBool::new(false),
            problem: Mutex::new(None),
            tally: Mutex::new(Tally::default()),
            memories: Mutex::new(BTreeMap::new()),
            exchanges: Mutex::default(),
            telemetry: Telemetry::default(),
        })
    }

    /// The seed.
    pub fn seed(&self) -> u32 {
        self.seed
    }

    /// Says which training step comes now.
    pub fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// The training step.
    pub fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    /// Makes every tap look for values that are not finite, to name the first tensor that has one.
    pub fn set_audit(&self, audit: bool) {
        self.audit.store(audit, Ordering::Relaxed);
    }

    /// Says whether what passes now is scored, not learned from: no scheme then remembers it, or goes by what it
    /// remembers.
    pub fn set_evaluates(&self, evaluates: bool) {
        self.evaluates.store(evaluates, Ordering::Relaxed);
    }

    fn audit(&self) -> bool {
        self.audit.load(Ordering::Relaxed)
    }

    /// What is noted of tensors in steps that are looked at.
    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Records a problem, unless an earlier one is known.
    pub fn report(&self, tensor: &str, what: String) {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        problem.get_or_insert_with(|| Problem {
            tensor: tensor.to_owned(),
            step: self.step(),
            what,
        });
    }

    /// The first problem, if there was one.
    pub fn problem(&self) -> Option<Problem> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the problem and returns it.
    pub(crate) fn take_problem(&self) -> Option<Problem> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Makes the state of an exchange part of [`memories`](Self::memories).
    pub(crate) fn add_exchange(&self, exchange: &Arc<Exchange>) {
        let mut exchanges = self.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        exchanges.push(Arc::downgrade(exchange));
    }

    fn exchanges(&self) -> Vec<Arc<Exchange>> {
        let exchanges = self.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        exchanges.iter().filter_map(Weak::upgrade).collect()
    }

    /// What schemes and workers remember of gradients (a residual, the last scale), by the gradient's name.
    pub fn memories(&self) -> Vec<NamedTensor> {
        let memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        let tensor = |(name, known): (&String, &Remembered)| {
            let values = match known {
                Remembered::Saved(values) => values.clone(),
                Remembered::Known { memory, .. } => memory.values(),
            };
            NamedTensor { name: name.clone(), shape: vec![values.len()], values }
        };
        let exchanges = self.exchanges();
        memories.iter().map(tensor).chain(exchanges.iter().flat_map(|e| e.state())).collect()
    }

    /// Puts back what [`memories`](Self::memories) gave.
    pub fn restore_memories(&self, saved: Vec<NamedTensor>) {
        let exchanges = self.exchanges();
        let saved = saved.into_iter().filter_map(|tensor| {
            exchanges.iter().try_fold(tensor, |tensor, exchange| exchange.restore(tensor))
        });
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        *memories = saved.map(|t| (t.name, Remembered::Saved(t.values))).collect();
    }

    /// Lets `work` use what is remembered of a gradient.
    fn remember<R>(
        &self,
        name: &str,
        scheme: &Scheme,
        shape: &[usize],
        work: impl FnOnce(Option<&mut Memory>) -> R,
    ) -> R {
        let Ok(Some(fresh)) = scheme.memory(shape) else { return work(None) };
        let lock = || self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memory = match lock().remove(name) {
            Some(Remembered::Known { shape: of, memory }) if of == shape => memory,
            Some(Remembered::Known { memory, .. }) => {
                // A short last batch: the scale of a tensor still means something, a residual does not.
                let mut next = fresh;
                let _kept = next.set_values(&memory.values());
                next
            }
            Some(Remembered::Saved(values)) => {
                let mut memory = fresh;
                if !memory.set_values(&values) {
                    self.report(name, "the checkpoint's memory of it has another length".into());
                }
                memory
            }
            None => fresh,
        };
        let result = work(Some(&mut memory));
        lock().insert(name.to_owned(), Remembered::Known { shape: shape.to_vec(), memory });
        result
    }

    /// Forgets what is remembered of a gradient.
    fn forget(&self, name: &str) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// How many values were not finite and replaced, where schemes allow that.
    pub fn tally(&self) -> Tally {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One tensor of one layer: what is done to its values.
#[derive(Debug)]
pub struct Point {
    name: String,
    scheme: Option<Scheme>,
    stream: Stream,
    session: Arc<Session>,
    /// Whether the scheme may go by the tensors before this one.
    remembers: bool,
    /// Whether the scheme's values fit bf16 as they are, which takes a look at all codes to say.
    short: bool,
    /// Whether the way back keeps bytes of the tensor.
    packs: bool,
}

impl Point {
    /// A point that applies `scheme` to the tensor called `name`.
    pub fn new(name: String, scheme: Option<Scheme>, session: &Arc<Session>) -> Self {
        let stream = Stream::named(session.seed, &name);
        let scheme = scheme.filter(|s| !s.is_float32());
        let short = scheme.as_ref().is_some_and(|s| s.factors().short);
        Self {
            name,
            scheme,
            stream,
            session: Arc::clone(session),
            remembers: false,
            short,
            packs: false,
        }
    }

    /// The point of a tensor with this role. A scheme with a memory goes by it for gradients, and with a delayed scale for
    /// weights and activations too, while the network learns. Where it is evaluated, each tensor is rounded as its bytes
    /// are in the packed model: by itself.
    pub(crate) fn of_role(
        name: String,
        role: Role,
        scheme: &Scheme,
        saved: Saved,
        session: &Arc<Session>,
    ) -> Self {
        let point = Self::new(name, Some(scheme.clone()), session);
        let remembers = role.is_gradient() || scheme.terms().delayed.is_some();
        Self { remembers, packs: saved == Saved::Packed, ..point }
    }

    /// Whether [`apply`](Self::apply) would do anything now.
    pub(crate) fn is_active(&self) -> bool {
        self.scheme.is_some() || self.session.audit() || self.is_compared()
    }

    /// Whether the scheme's values fit bf16 as they are.
    pub(crate) fn is_short(&self) -> bool {
        self.short
    }

    /// Rounds the values in place. What cannot be held is reported to the session, which stops the training.
    pub(crate) fn apply(&self, x: &mut [f32], shape: &[usize]) {
        self.look(x);
        if self.is_compared() {
            // By way of the bytes, which hold the same values and say what was clipped.
            match self.encode(x, shape) {
                Some(bytes) => self.decode_into(&bytes, shape, x),
                None if self.scheme.is_none() => {
                    self.session.telemetry.note(&self.name, x, x, None);
                }
                None => {}
            }
            return;
        }
        if let Some(scheme) = &self.scheme {
            self.with_memory(scheme, shape, |stream, memory| {
                scheme.emulate_next(x, shape, stream, memory)
            });
        }
    }

    /// The bytes of the values, which [`apply`](Self::apply) would round to what these hold; `None` where there is no
    /// scheme, or it cannot hold them, which is reported.
    pub(crate) fn encode(&self, x: &[f32], shape: &[usize]) -> Option<Vec<u8>> {
        let scheme = self.scheme.as_ref()?;
        self.look(x);
        let mut bytes = Vec::new();
        let is_held = self.with_memory(scheme, shape, |stream, memory| {
            scheme.encode_next(x, shape, stream, memory, &mut bytes)
        });
        if is_held {
            self.compare(x, &bytes, shape);
        }
        is_held.then_some(bytes)
    }

    /// Whether somebody wants to know what rounding does to the tensor.
    pub(crate) fn is_compared(&self) -> bool {
        self.session.telemetry.is_on()
    }

    /// Notes what bytes lost of the values, if somebody wants to know.
    pub(crate) fn compare(&self, x: &[f32], bytes: &[u8], shape: &[usize]) {
        let Some(scheme) = self.scheme.as_ref().filter(|_| self.is_compared()) else { return };
        let clipped = scheme.saturated(x, bytes, shape).unwrap_or_else(|e| {
            self.report_decoding(Err(e));
            None
        });
        self.session.telemetry.note(&self.name, x, &self.decode(bytes, shape), clipped);
    }

    /// Appends what [`encode`](Self::encode) gives, for a point that has a scheme; `false` where it cannot hold a value,
    /// which is reported. A scheme's memory has no part in it.
    pub(crate) fn encode_into(&self, x: &[f32], shape: &[usize], out: &mut Vec<u8>) -> bool {
        self.scheme.as_ref().is_some_and(|scheme| {
            self.with_memory(scheme, shape, |stream, _| scheme.encode(x, shape, stream, out))
        })
    }

    /// Reports bytes that the scheme did not write.
    pub(crate) fn report_decoding(&self, result: Result<(), DecodeError>) {
        if let Err(e) = result {
            self.session.report(&self.name, e.to_string());
        }
    }

    /// The values that bytes of [`encode`](Self::encode) hold.
    pub(crate) fn decode(&self, bytes: &[u8], shape: &[usize]) -> Vec<f32> {
        let mut x = vec![0.0; shape.iter().product()];
        self.decode_into(bytes, shape, &mut x);
        x
    }

    /// Writes the values that bytes of [`encode`](Self::encode) hold.
    pub(crate) fn decode_into(&self, bytes: &[u8], shape: &[usize], x: &mut [f32]) {
        if let Some(scheme) = &self.scheme {
            self.report_decoding(scheme.decode(bytes, shape, x));
        }
    }

    /// Whether the bytes of [`encode`](Self::encode) hold [`integers`](Self::integers).
    pub(crate) fn has_integers(&self) -> bool {
        self.scheme.as_ref().is_some_and(|s| s.factors().integers.is_some())
    }

    /// Whether what is kept of the tensor for the way back is its bytes.
    pub(crate) fn packs(&self) -> bool {
        self.packs && self.scheme.is_some()
    }

    /// The integers in bytes of [`encode`](Self::encode), where the scheme has integers.
    pub(crate) fn integers<'a>(&self, bytes: &'a [u8], shape: &[usize]) -> Option<Integers<'a>> {
        match self.scheme.as_ref()?.integers(bytes, shape) {
            Ok(integers) => integers,
            Err(e) => {
                self.session.report(&self.name, e.to_string());
                None
            }
        }
    }

    /// Reports the first value that is not finite, while the session is audited.
    fn look(&self, x: &[f32]) {
        if self.session.audit()
            && let Some(index) = x.iter().position(|v| !v.is_finite())
        {
            self.session.report(&self.name, format!("element {index} is {}", x[index]));
        }
    }

    /// Lets `round` work with the random numbers of this step and what is remembered of the tensor, and reports what it
    /// complains of. Answers whether there was nothing.
    fn with_memory(
        &self,
        scheme: &Scheme,
        shape: &[usize],
        round: impl FnOnce(&Stream, Option<&mut Memory>) -> Result<Tally, EncodeError>,
    ) -> bool {
        let stream = self.stream.at_step(self.session.step());
        let learns = !self.session.evaluates.load(Ordering::Relaxed);
        let rounded = if self.remembers && learns {
            self.session.remember(&self.name, scheme, shape, |memory| round(&stream, memory))
        } else {
            round(&stream, None)
        };
        match rounded {
            Ok(tally) => {
                if tally != Tally::default() {
                    let mut all = self.session.tally.lock().unwrap_or_else(PoisonError::into_inner);
                    *all = all.join(tally);
                }
                return true;
            }
            Err(EncodeError::NonFinite { index, value, scheme, .. }) => {
                self.session.report(
                    &self.name,
                    format!("element {index} is {value}, which `{scheme}` cannot hold"),
                );
            }
            Err(e) => self.session.report(&self.name, e.to_string()),
        }
        false
    }
}

/// A layer as the rules see it.
#[derive(Debug)]
pub struct Site {
    /// Path of the layer in the network, e.g. `layer1.0.conv1`.
    pub path: String,
    /// Kind of the layer, e.g. `conv2d`.
    pub kind: &'static str,
    /// Shape of the weight, where there is one.
    pub weight: Option<Vec<usize>>,
    /// Shape of the bias, where there is one.
    pub bias: Option<Vec<usize>>,
    arithmetic: Arithmetic,
    /// Shape of the input without the batch axis, known after a first pass.
    input: OnceLock<Vec<usize>>,
    /// Shape of the output without the batch axis, known after a first pass.
    output: OnceLock<Vec<usize>>,
    /// What the current plan does to the layer's tensors.
    points: RwLock<Vec<(Role, PointRef)>>,
    products: RwLock<Products>,
    /// How the gradients of weight and bias are summed over the batch, if not at once.
    exchange: OnceLock<[Option<Arc<Exchange>>; 2]>,
    clock: Clock,
    recorder: Arc<Recorder>,
}

impl Site {
    /// The shape of the tensor with this role: that of one sample where it has a batch axis; `None` where the layer
    /// has no such tensor, or no input has passed yet.
    pub fn shape(&self, role: Role) -> Option<&[usize]> {
        match role {
            Role::Input | Role::InputGrad => self.input.get().map(Vec::as_slice),
            Role::Output | Role::OutputGrad => self.output.get().map(Vec::as_slice),
            _ if role.parameter() == Some("weight") => self.weight.as_deref(),
            _ => self.bias.as_deref(),
        }
    }

    /// How many products are summed for an element of `y`, `dx` and `dw`.
    pub fn lengths(&self) -> Products<usize> {
        let Some([outputs, rest @ ..]) = self.weight.as_deref() else {
            return Products { forward: 0, input_gradient: 0, weight_gradient: 0 };
        };
        let positions = self.output.get().map_or(0, |y| y.iter().product::<usize>() / outputs);
        Products {
            forward: rest.iter().product(),
            // With groups it is less; that only matters to sums of more than a hundred thousand.
            input_gradient: outputs * rest[1..].iter().product::<usize>(),
            // The batch is divided, for a linear layer with all positions, and its parts are added in more bits.
            weight_gradient: if rest.len() > 1 { positions } else { 1 },
        }
    }

    /// Whether the layer multiplies its input with its weight.
    pub fn has_product(&self) -> bool {
        matches!(self.kind, "conv2d" | "linear") && self.input.get().is_some()
    }

    /// The axis of the channels of an activation with so many axes.
    pub fn channel_axis(&self, axes: usize) -> usize {
        match self.arithmetic {
            Arithmetic::Kernels => axes.saturating_sub(1),
            Arithmetic::Engine | Arithmetic::Recorded => 1,
        }
    }

    /// Gives the taps their points, and says how the layer's products are computed. What is remembered of a tensor is
    /// forgotten where its scheme was another before.
    pub(crate) fn set_points(
        &self,
        points: Vec<(Role, PointRef)>,
        products: Products,
        session: &Session,
    ) {
        *self.products.write().unwrap_or_else(PoisonError::into_inner) = products;
        let mut all = self.points.write().unwrap_or_else(PoisonError::into_inner);
        for (role, old) in std::mem::replace(&mut *all, points) {
            let new = all.iter().find(|(r, _)| *r == role);
            if new.is_none_or(|(_, new)| new.scheme != old.scheme) {
                session.forget(&old.name);
            }
        }
    }

    /// Says how the gradients of weight and bias are summed. Only the first call has an effect.
    pub(crate) fn set_exchange(&self, exchange: [Option<Arc<Exchange>>; 2]) {
        let _ = self.exchange.set(exchange);
    }

    pub(crate) fn has_exchange(&self) -> bool {
        self.exchange.get().is_some()
    }

    /// How the gradients of weight and bias are summed over the batch, if not at once.
    pub(crate) fn exchange(&self) -> [Option<&Exchange>; 2] {
        let none = [None, None];
        self.exchange.get().map_or(none, |all| [all[0].as_deref(), all[1].as_deref()])
    }

    /// In which kinds the layer's products are computed.
    pub(crate) fn products(&self) -> Products {
        *self.products.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn point(&self, role: Role) -> Option<PointRef> {
        let points = self.points.read().unwrap_or_else(PoisonError::into_inner);
        points.iter().find(|(r, _)| *r == role).map(|(_, p)| Arc::clone(p))
    }
}

/// The layers of a network, in the order in which they were built.
#[derive(Debug, Default)]
pub struct Sites(Mutex<Vec<Arc<Site>>>);

impl Sites {
    /// All layers so far.
    pub fn all(&self) -> Vec<Arc<Site>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where in a network the layer is that is being built, and the seed of its initial values.
#[derive(Clone, Debug)]
pub struct Scope {
    path: String,
    seed: u32,
    arithmetic: Arithmetic,
    sites: Arc<Sites>,
    recorder: Arc<Recorder>,
}

/// Whose arithmetic layers use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// That of `scrimp-kernels`; activations are `[batch, height, width, channels]`.
    #[default]
    Kernels,
    /// The engine's own, in f32, to compare with; activations are `[batch, channels, height, width]`.
    Engine,
    /// Nobody's: layers note what they would compute, which [`trace`](crate::trace) makes a graph of; activations are
    /// `[batch, channels, height, width]`.
    Recorded,
}

/// Where in a network a function stands that has no parameters and is not tapped.
#[derive(Clone, Debug)]
pub struct Place {
    path: String,
    arithmetic: Arithmetic,
    recorder: Arc<Recorder>,
}

impl Place {
    /// Whose arithmetic the function uses.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Notes what the function, or a part of it, would compute.
    pub(crate) fn record(
        &self,
        part: &str,
        op: Op,
        inputs: &[&Tensor<4>],
        output: [usize; 4],
    ) -> Tensor<4> {
        self.recorder.node(None, part_name(&self.path, part), op, inputs, output)
    }
}

/// The name of a node: that of its layer, and of the part of it that the node is.
fn part_name(layer: &str, part: &str) -> String {
    if part.is_empty() { layer.to_owned() } else { format!("{layer}.{part}") }
}

impl Scope {
    /// The root of a network.
    pub fn root(seed: u32) -> Self {
        let arithmetic = Arithmetic::default();
        let (sites, recorder) = Default::default();
        Self { path: String::new(), seed, arithmetic, sites, recorder }
    }

    /// The scope whose layers use this arithmetic.
    #[must_use]
    pub fn with(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// Whose arithmetic the layers use.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// The place of this scope, for functions that are not tapped.
    pub fn place(&self) -> Place {
        let Self { path, arithmetic, recorder, .. } = self.clone();
        Place { path, arithmetic, recorder }
    }

    /// Who notes what layers would compute.
    pub(crate) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// The scope of a part of this one.
    #[must_use]
    pub fn at(&self, name: impl fmt::Display) -> Self {
        let path =
            if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Self { path, ..self.clone() }
    }

    /// The layers that were built so far.
    pub fn sites(&self) -> Vec<Arc<Site>> {
        self.sites.all()
    }

    /// The stream from which a parameter of this layer takes its initial values.
    pub fn init_stream(&self, parameter: &str) -> Stream {
        Stream::named(self.seed, &format!("init:{}.{parameter}", self.path))
    }

    /// Registers the layer of this scope.
    ///
    /// # Panics
    /// If two layers have one path, which is a mistake in the network's code.
    pub fn tap(&self, kind: &'static str, weight: &[usize], bias: Option<&[usize]>) -> Tap {
        self.register(kind, Some(weight), bias)
    }

    /// Registers the layer of this scope, which has no parameters.
    ///
    /// # Panics
    /// If two layers have one path, which is a mistake in the network's code.
    pub fn tap_function(&self, kind: &'static str) -> Tap {
        self.register(kind, None, None)
    }

    fn register(
        &self,
        kind: &'static str,
        weight: Option<&[usize]>,
        bias: Option<&[usize]>,
    ) -> Tap {
        let site = Arc::new(Site {
            path: self.path.clone(),
            kind,
            weight: weight.map(<[usize]>::to_vec),
            bias: bias.map(<[usize]>::to_vec),
            arithmetic: self.arithmetic,
            input: OnceLock::new(),
            output: OnceLock::new(),
            points: RwLock::default(),
            products: RwLock::new(Products::EMULATED),
            exchange: OnceLock::new(),
            clock: Clock::default(),
            recorder: Arc::clone(&self.recorder),
        });
        let mut sites = self.sites.0.lock().unwrap_or_else(PoisonError::into_inner);
        let paths: BTreeSet<&str> = sites.iter().map(|s| s.path.as_str()).collect();
        assert!(!paths.contains(self.path.as_str()), "two layers are called `{}`", self.path);
        sites.push(Arc::clone(&site));
        Tap { site }
    }
}

/// The taps of one layer. Before a plan is applied they pass everything through.
#[derive(Clone, Debug)]
pub struct Tap {
    site: Arc<Site>,
}

impl Tap {
    /// The layer.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Whose arithmetic the layer uses.
    pub fn arithmetic(&self) -> Arithmetic {
        self.site.arithmetic
    }

    /// Notes what the layer, or a part of it, would compute; its first part has the input, and its last the output.
    pub(crate) fn record<const I: usize, const O: usize>(
        &self,
        part: &str,
        op: Op,
        inputs: &[&Tensor<I>],
        output: [usize; O],
    ) -> Tensor<O> {
        let layer = &self.site.path;
        self.site.recorder.node(Some(layer), part_name(layer, part), op, inputs, output)
    }

    /// The layer's product, of which one op makes everything: rounding, arithmetic and both gradients.
    pub(crate) fn product<const D: usize, const W: usize>(
        &self,
        x: Tensor<D>,
        w: Tensor<W>,
        b: Option<Tensor<1>>,
        geometry: Geometry,
        output: [usize; D],
    ) -> Tensor<D> {
        self.see_input(x.dims());
        self.see_output(output);
        let point = |role| self.site.point(role);
        let layer = Product {
            geometry,
            products: self.site.products(),
            output: output.to_vec(),
            x: point(Role::Input),
            w: point(Role::Weight),
            b: point(Role::Bias),
            y: point(Role::Output),
            dy: point(Role::OutputGrad),
            dx: point(Role::InputGrad),
            has_bias: b.is_some(),
            site: Arc::clone(&self.site),
        };
        ops::product(x, w, b, layer)
    }

    /// What an op rounds that makes everything of a layer without a product.
    pub(crate) fn points<const I: usize, const O: usize>(
        &self,
        input: [usize; I],
        output: [usize; O],
    ) -> Points {
        self.see_input(input);
        self.see_output(output);
        let point = |role| self.site.point(role);
        Points {
            x: point(Role::Input),
            y: point(Role::Output),
            dy: point(Role::OutputGrad),
            dx: point(Role::InputGrad),
        }
    }

    /// Taps what comes in, and on the way back its gradient. Shape `[batch, ...]`.
    pub fn input<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.see_input(x.dims());
        self.through(x, Role::Input, Some(Role::InputGrad))
    }

    /// Taps the weight. Its gradient is rounded after the whole backward pass, when it is complete.
    pub fn weight<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        self.through(w, Role::Weight, None)
    }

    /// Taps the bias. Its gradient is rounded after the whole backward pass.
    pub fn bias<const D: usize>(&self, b: Tensor<D>) -> Tensor<D> {
        self.through(b, Role::Bias, None)
    }

    /// Taps what goes out, and on the way back its gradient. Shape `[batch, ...]`.
    pub fn output<const D: usize>(&self, y: Tensor<D>) -> Tensor<D> {
        self.see_output(y.dims());
        self.through(y, Role::Output, Some(Role::OutputGrad))
    }

    fn see_input<const D: usize>(&self, shape: [usize; D]) {
        self.site.input.get_or_init(|| shape[1..].to_vec());
    }

    fn see_output<const D: usize>(&self, shape: [usize; D]) {
        self.site.output.get_or_init(|| shape[1..].to_vec());
    }

    fn through<const D: usize>(
        &self,
        x: Tensor<D>,
        forward: Role,
        backward: Option<Role>,
    ) -> Tensor<D> {
        let active = |role: Role| self.site.point(role).filter(|p| p.is_active());
        engine::pass(x, active(forward), backward.and_then(active))
    }
}
