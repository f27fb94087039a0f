//! The plan: what every tensor of a network is held in, and which rule says so.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use burn::tensor::Tensor;
use schemars::JsonSchema;
use scrimp_codec::{Scheme, ShapeError};
use scrimp_exchange::{Reducer, Reduction, ReductionError};
use scrimp_kernels::Kind;
use serde::{Deserialize, Serialize};

use crate::compute::{Choice, Compute, Products};
use crate::engine;
use crate::exchange::{Exchange, ExchangeConfig};
use crate::models::{Blueprint, Network};
use crate::optimizers::OptimizerConfig;
use crate::params;
use crate::phases::{self, Phase, When};
use crate::role::Role;
use crate::rules::{ALL_KINDS, Matcher, Rule};
use crate::tap::{Point, Scope, Session, Site};

/// Which network, which rules, which optimizer.
#[derive(Clone, Debug)]
pub struct PlanRequest {
    /// `[channels, height, width]` of an image.
    pub image: [usize; 3],
    /// Number of classes.
    pub classes: usize,
    /// Samples in a batch, for the sizes of activations.
    pub batch: usize,
    /// The rules, the later the stronger.
    pub rules: Vec<Rule>,
    /// The device, as [`crate::device`] names it.
    pub device: String,
    /// In what products are computed.
    pub compute: Compute,
    /// The optimizer, which says what is kept of each parameter.
    pub optimizer: OptimizerConfig,
    /// How gradients are summed over the batch, if not at once.
    pub exchange: Option<ExchangeConfig>,
    /// What is kept of rounded tensors for the way back.
    pub saved: Saved,
}

/// What layers keep of rounded tensors for the way back. Both give the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Saved {
    /// What costs no time: the bytes of factors that are multiplied as integers, bf16 of those that it holds, f32 of
    /// others.
    #[default]
    Fast,
    /// The bytes of their schemes, which are decoded on the way back.
    Packed,
}

/// How a tensor of a plan is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Rounded to the values that the bytes would hold; the bytes are counted, not stored.
    Emulated,
    /// Held as the bytes of its scheme from step to step, or from the way there to the way back.
    Packed,
    /// Left as it is.
    Float,
    /// Never computed: the network's own input needs no gradient.
    NotComputed,
}

/// One tensor of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedTensor {
    /// Path of the layer.
    pub layer: String,
    /// Kind of the layer.
    pub kind: &'static str,
    /// The tensor's role.
    pub role: Role,
    /// Its shape; axis 0 of activations is the batch.
    pub shape: Vec<usize>,
    /// The scheme.
    pub scheme: Scheme,
    /// Bytes that the scheme takes, scales included; for activations and their gradients those of one step.
    pub bytes: usize,
    /// Bits per value, scales included.
    pub bits: f64,
    /// Number of the rule that says so, counted from 1.
    pub rule: Option<usize>,
    /// How it is held.
    pub status: Status,
    /// Of a weight or bias with a scheme, whether it is also kept in f32. If not, it is rounded after each update, and its
    /// f32 parameter holds rounded values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<bool>,
}

/// How the products of a layer are computed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedProducts {
    /// Path of the layer.
    pub layer: String,
    /// Of `x` and `w`.
    pub y: Choice,
    /// Of `dy` and `w`; `None` where it is never computed.
    pub dx: Option<Choice>,
    /// Of `x` and `dy`.
    pub dw: Choice,
}

/// What every tensor of a network is held in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// All tensors, layer by layer.
    pub tensors: Vec<PlannedTensor>,
    /// How the products of each layer are computed, in the order of the layers.
    pub products: Vec<PlannedProducts>,
    /// Samples in a batch.
    pub batch: usize,
    /// How gradients are summed over the batch, if not at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange: Option<ExchangeConfig>,
    /// What is kept of rounded tensors for the way back.
    pub saved: Saved,
    /// Where rules hold for a part of the run: when this plan starts, which is the last of the run, and how many come
    /// before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<LastPhase>,
    /// Values of parameters and buffers that no rule can speak of, such as running averages.
    pub untapped_parameters: usize,
}

/// The last of several phases of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LastPhase {
    /// When it starts.
    pub after: When,
    /// How many come before it.
    pub earlier: usize,
}

/// Rules that do not fit a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A pattern that cannot be read.
    #[error("rule {rule}: `{pattern}` is no pattern: {reason}")]
    Pattern {
        /// The rule, from 1.
        rule: usize,
        /// The text.
        pattern: String,
        /// Why.
        reason: String,
    },
    /// A rule that matches no layer.
    #[error("rule {rule} matches no layer: `{pattern}`")]
    NoLayer {
        /// The rule, from 1.
        rule: usize,
        /// The pattern that matches nothing.
        pattern: String,
        /// What would be valid.
        help: String,
    },
    /// A word for kinds that no layer of the network is of.
    #[error("rule {rule}: no layer here is a `{kind}`")]
    NoKind {
        /// The rule, from 1.
        rule: usize,
        /// The word.
        kind: String,
        /// What would be valid.
        help: String,
    },
    /// A rule without a scheme.
    #[error("rule {rule} says nothing: it has no scheme")]
    Empty {
        /// The rule, from 1.
        rule: usize,
    },
    /// A key that no tensor of the matched layers answers to.
    #[error(
        "rule {rule}: the key `{key}` claims no tensor: the layers that the rule matches have none of that role"
    )]
    NoTensor {
        /// The rule, from 1.
        rule: usize,
        /// The key.
        key: &'static str,
    },
    /// A key for what the optimizer does not keep.
    #[error("rule {rule}: the key `{key}` has no effect: {why}")]
    NoMoment {
        /// The rule, from 1.
        rule: usize,
        /// The key.
        key: &'static str,
        /// What the optimizer keeps.
        why: String,
    },
    /// A key for what workers send, and none is sent.
    #[error(
        "rule {rule}: the key `{key}` has no effect: the recipe has no [exchange] between workers"
    )]
    NoExchange {
        /// The rule, from 1.
        rule: usize,
        /// The key.
        key: &'static str,
    },
    /// An exchange that cannot be carried out.
    #[error("exchange of {role} of layer `{layer}`: {problem}")]
    Exchange {
        /// The role.
        role: Role,
        /// The layer.
        layer: String,
        /// What does not fit.
        problem: Box<ReductionError>,
    },
    /// A master copy of parameters that are not rounded.
    #[error(
        "rule {rule}: the key `master` has no effect: no weight or bias that it speaks of has a scheme"
    )]
    NoMaster {
        /// The rule, from 1.
        rule: usize,
    },
    /// A rule that ends before it starts.
    #[error("rule {rule} never holds: it ends after {until}, and does not start before")]
    NeverHolds {
        /// The rule, from 1.
        rule: usize,
        /// When it ends.
        until: When,
    },
    /// A rule that starts or ends when the run is over.
    #[error("rule {rule}: the key `{key}` has no effect: the run is over after {end}")]
    Late {
        /// The rule, from 1.
        rule: usize,
        /// `after` or `until`.
        key: &'static str,
        /// How long the run is.
        end: When,
    },
    /// Epochs and steps in one list of rules.
    #[error("rule {rule}: `{key}` counts what other rules do not: they count {other}")]
    Units {
        /// The rule, from 1.
        rule: usize,
        /// `after` or `until`.
        key: &'static str,
        /// What a rule before it counts.
        other: &'static str,
    },
    /// A key for what cannot change during a run.
    #[error("rule {rule}: what the key `{key}` speaks of stays as it is for a whole run")]
    Timed {
        /// The rule, from 1.
        rule: usize,
        /// The key.
        key: &'static str,
    },
    /// A rule of which nothing is left.
    #[error(
        "rules {rule} and {by} are at odds: every tensor that rule {rule} claims is claimed again, the last by rule {by}"
    )]
    Overridden {
        /// The rule without effect, from 1.
        rule: usize,
        /// The last rule that overrides it, from 1.
        by: usize,
    },
    /// A scheme that does not fit a tensor.
    #[error("rule {rule}: `{scheme}` does not fit the {role} of `{layer}`: {problem}")]
    Shape {
        /// The rule, from 1.
        rule: usize,
        /// The key that gave the scheme.
        key: &'static str,
        /// The scheme.
        scheme: String,
        /// The tensor's role.
        role: Role,
        /// The layer.
        layer: String,
        /// Why.
        problem: ShapeError,
    },
    /// The device is not known.
    #[error(transparent)]
    Device(#[from] engine::UnknownDevice),
    /// The network does not take such images.
    #[error("`{model}` does not take images of shape {image:?}; it takes {valid}")]
    Image {
        /// The network.
        model: &'static str,
        /// The shape of the images.
        image: [usize; 3],
        /// What it takes.
        valid: String,
    },
}

impl PlanError {
    /// The rule that is wrong, from 1, and the key in it.
    pub fn place(&self) -> Option<(usize, &'static str)> {
        match self {
            Self::Pattern { rule, .. }
            | Self::NoLayer { rule, .. }
            | Self::Empty { rule }
            | Self::Overridden { rule, .. } => Some((*rule, "layers")),
            Self::NoKind { rule, .. } => Some((*rule, "kinds")),
            Self::NeverHolds { rule, .. } => Some((*rule, "until")),
            Self::NoMaster { rule } => Some((*rule, "master")),
            Self::Late { rule, key, .. }
            | Self::Units { rule, key, .. }
            | Self::Timed { rule, key }
            | Self::NoTensor { rule, key }
            | Self::NoMoment { rule, key, .. }
            | Self::NoExchange { rule, key }
            | Self::Shape { rule, key, .. } => Some((*rule, key)),
            Self::Device(_) | Self::Image { .. } | Self::Exchange { .. } => None,
        }
    }

    /// What would be valid.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::NoLayer { help, .. } | Self::NoKind { help, .. } => help.clone(),
            Self::Empty { .. } => {
                "give it a scheme under default, w, b, x, y, d, dy, dx, dw, db, a, m or v".into()
            }
            Self::NoTensor { .. } => "leave the key out, or match other layers".into(),
            Self::NoExchange { .. } => {
                "leave the key out, or say [exchange] with a number of workers".into()
            }
            Self::NoMoment { .. } => "leave the key out, or choose another optimizer".into(),
            Self::NoMaster { .. } => {
                "give the weights a scheme under w, or leave the key out: f32 is its own master"
                    .into()
            }
            Self::NeverHolds { .. } => "let `after` be less than `until`".into(),
            Self::Late { .. } => "leave the key out, or train longer".into(),
            Self::Units { other, .. } => format!("count {other} in all rules"),
            Self::Timed { .. } => {
                "put the key into a rule of its own, without `after` and `until`".into()
            }
            Self::Overridden { rule, by } => {
                format!("remove rule {rule}, or narrow the layers or keys of rule {by}")
            }
            Self::Shape { problem: ShapeError::Rank { .. }, key, role, .. }
                if *key != role.key() && role.keys().contains(&role.key()) =>
            {
                format!(
                    "say what this tensor gets under its own key, for example {role} = \"int8\""
                )
            }
            Self::Shape { problem: ShapeError::Rank { .. }, .. } => {
                "leave the granularity out: `tensor` fits every shape".into()
            }
            _ => return None,
        })
    }
}

/// Resolves rules against a network's layers, for its [`ModelEntry`](crate::models::ModelEntry).
pub(crate) fn plan_network<N: Network>(
    blueprint: &Blueprint<N>,
    request: &PlanRequest,
) -> Result<Plan, PlanError> {
    let scope = Scope::root(0);
    let (net, _) = build(blueprint, request, &scope)?;
    let plan = last(requested(&scope, request)?);
    Ok(Plan { untapped_parameters: untapped(net.num_params(), &scope), ..plan })
}

/// Builds the network and lets one empty image through it, so that its layers know their shapes.
pub(crate) fn build<N: Network>(
    blueprint: &Blueprint<N>,
    request: &PlanRequest,
    scope: &Scope,
) -> Result<(N, burn::tensor::Device), PlanError> {
    let image = request.image;
    let Blueprint { name: model, options } = blueprint;
    N::accepts(image).map_err(|valid| PlanError::Image { model, image, valid })?;
    let device = engine::device(&request.device)?;
    let net = N::build(options, image, request.classes, scope, &device);
    check_paths(model, &net, scope);
    net.forward(Tensor::zeros([1, image[0], image[1], image[2]], &device));
    Ok((net, device))
}

/// Checks that every layer with parameters stands in the network at the path that its scope has: gradients and stored
/// weights are found by it.
fn check_paths<N: Network>(model: &str, net: &N, scope: &Scope) {
    let names: BTreeSet<String> = params::tensors(net).into_iter().map(|t| t.name).collect();
    for site in scope.sites().into_iter().filter(|site| site.weight.is_some()) {
        let name = format!("{}.weight", site.path);
        assert!(
            names.contains(&name),
            "the scope `{}` of `{model}` is not the path of its field",
            site.path,
        );
    }
}

/// How many parameters no tap sees.
pub(crate) fn untapped(parameters: usize, scope: &Scope) -> usize {
    let count = |shape: &Option<Vec<usize>>| shape.as_ref().map_or(0, |s| s.iter().product());
    let tapped: usize = scope.sites().iter().map(|s| count(&s.weight) + count(&s.bias)).sum();
    parameters - tapped
}

/// The kinds of layers that keep their input for the way back.
const KEEPING_KINDS: [&str; 4] = ["conv2d", "linear", "batch_norm", "layer_norm"];

/// What a request says of the layers of a network whose shapes are known, in every phase of a run.
pub(crate) fn requested(scope: &Scope, request: &PlanRequest) -> Result<Vec<Phase>, PlanError> {
    let PlanRequest { rules, batch, compute, optimizer, exchange, saved, .. } = request;
    let exchange = exchange.as_ref();
    let mut all = resolve_phases(&scope.sites(), rules, *batch, *compute, optimizer, exchange)?;
    for phase in &mut all {
        phase.plan.saved = *saved;
        let keeps = |t: &PlannedTensor| t.role == Role::Input && KEEPING_KINDS.contains(&t.kind);
        let rounded = phase.plan.tensors.iter_mut().filter(|t| t.status == Status::Emulated);
        for tensor in rounded.filter(|t| *saved == Saved::Packed && keeps(t)) {
            tensor.status = Status::Packed;
        }
    }
    Ok(all)
}

/// Resolves rules against layers whose shapes are known, in the last phase of a run.
///
/// # Errors
/// Everything that promise 3 forbids: a rule or a key without effect, rules at odds, a scheme that does not fit.
pub fn resolve(
    sites: &[Arc<Site>],
    rules: &[Rule],
    batch: usize,
    compute: Compute,
    optimizer: &OptimizerConfig,
    exchange: Option<&ExchangeConfig>,
) -> Result<Plan, PlanError> {
    Ok(last(resolve_phases(sites, rules, batch, compute, optimizer, exchange)?))
}

/// The plan that a run ends with.
pub(crate) fn last(mut phases: Vec<Phase>) -> Plan {
    let Phase { start, plan } = phases.pop().expect("every run has a first phase");
    Plan { phase: start.map(|after| LastPhase { after, earlier: phases.len() }), ..plan }
}

/// Resolves rules against layers whose shapes are known, in every phase of a run.
///
/// # Errors
/// As [`resolve`]. A rule has an effect if it has one in some phase.
pub fn resolve_phases(
    sites: &[Arc<Site>],
    rules: &[Rule],
    batch: usize,
    compute: Compute,
    optimizer: &OptimizerConfig,
    exchange: Option<&ExchangeConfig>,
) -> Result<Vec<Phase>, PlanError> {
    let matchers = rules
        .iter()
        .enumerate()
        .map(|(i, rule)| matcher(i + 1, rule, sites))
        .collect::<Result<Vec<_>, _>>()?;
    let mut claims = Claims::new(rules.len());
    let question = Question { sites, rules, matchers, batch, compute, optimizer, exchange };
    let all = phases::starts(rules)?
        .into_iter()
        .map(|start| Ok(Phase { start, plan: question.resolve(start, &mut claims)? }))
        .collect::<Result<Vec<_>, PlanError>>()?;
    claims.check(rules, optimizer, exchange)?;
    Ok(all)
}

/// Rules and what they are resolved against.
struct Question<'a> {
    sites: &'a [Arc<Site>],
    rules: &'a [Rule],
    /// One for each rule.
    matchers: Vec<Matcher>,
    batch: usize,
    compute: Compute,
    optimizer: &'a OptimizerConfig,
    exchange: Option<&'a ExchangeConfig>,
}

impl Question<'_> {
    /// The plan of the phase that starts then.
    fn resolve(&self, start: Option<When>, claims: &mut Claims) -> Result<Plan, PlanError> {
        let Self { sites, rules, matchers, batch, compute, optimizer, exchange } = self;
        let (batch, compute, exchange) = (*batch, *compute, *exchange);
        let (mut tensors, mut products) = (Vec::<PlannedTensor>::new(), Vec::new());
        for (i, site) in sites.iter().enumerate() {
            let first = tensors.len();
            let matching: Vec<(usize, &Rule)> = rules
                .iter()
                .enumerate()
                .filter(|(_, rule)| phases::holds(rule, start))
                .filter(|(r, rule)| rule.takes(site.kind) && matchers[*r].matches(&site.path))
                .collect();
            for role in Role::ALL {
                if role.moment().is_some_and(|moment| moment >= optimizer.moments()) {
                    continue;
                }
                // Only layers with a product sum over the batch by a kernel of their own.
                if role.is_sent() && (exchange.is_none() || !site.has_product()) {
                    continue;
                }
                let winner = claims.winner(matching.iter().filter_map(|(r, rule)| {
                    let (key, scheme) = rule.scheme(role).filter(|_| site.shape(role).is_some())?;
                    Some((*r, key, scheme))
                }));
                let Some(mut tensor) = planned(site, role, winner, batch, exchange)? else {
                    continue;
                };
                // The first layer is fed by the data, which need no gradient.
                if role == Role::InputGrad && i == 0 {
                    tensor.status = Status::NotComputed;
                }
                tensors.push(tensor);
            }
            // What has no parameters is part of a plan where a rule speaks of it: its tensors are those of the layers beside it.
            if site.weight.is_none() && tensors[first..].iter().all(|t| t.rule.is_none()) {
                tensors.truncate(first);
                continue;
            }
            let own = &mut tensors[first..];
            let parameters: Vec<&mut bool> =
                own.iter_mut().filter_map(|t| t.master.as_mut()).collect();
            let deciding = matching.iter().filter_map(|(r, rule)| Some((*r, MASTER, rule.master?)));
            if !parameters.is_empty()
                && let Some((_, _, kept)) = claims.winner(deciding)
            {
                for master in parameters {
                    *master = kept;
                }
            }
            if !site.has_product() {
                continue;
            }
            let float32 = Scheme::float32();
            let scheme = |role| own.iter().find(|t| t.role == role).map_or(&float32, |t| &t.scheme);
            let [x, w, dy] = [Role::Input, Role::Weight, Role::OutputGrad].map(scheme);
            let axes = 1 + site.shape(Role::Output).map_or(0, <[usize]>::len);
            let chosen = Products::of(compute, [x, w, dy], axes, site.lengths());
            products.push(PlannedProducts {
                layer: site.path.clone(),
                y: chosen.forward,
                dx: (i > 0).then_some(chosen.input_gradient),
                dw: chosen.weight_gradient,
            });
        }
        let exchange = exchange.cloned();
        let saved = Saved::default();
        Ok(Plan { tensors, products, batch, exchange, saved, phase: None, untapped_parameters: 0 })
    }
}

/// A tensor with the scheme of the rule that won it; `None` if the layer has none with this role.
fn planned(
    site: &Site,
    role: Role,
    winner: Option<(usize, &'static str, &Scheme)>,
    batch: usize,
    exchange: Option<&ExchangeConfig>,
) -> Result<Option<PlannedTensor>, PlanError> {
    let Some(sample) = site.shape(role) else { return Ok(None) };
    let shape: Vec<usize> =
        if role.has_batch() { [&[batch], sample].concat() } else { sample.to_vec() };
    let mut scheme = match exchange {
        Some(exchange) if role.is_sent() => exchange.up().for_weight(&shape),
        _ => Scheme::float32(),
    };
    if let Some((r, key, chosen)) = winner {
        scheme = if role.has_batch() {
            chosen.for_activation(site.channel_axis(shape.len()))
        } else {
            chosen.for_weight(&shape)
        };
        scheme.check(&shape).map_err(|problem| PlanError::Shape {
            rule: r + 1,
            key,
            scheme: chosen.to_string(),
            role,
            layer: site.path.clone(),
            problem,
        })?;
    }
    if let Some(exchange) = exchange.filter(|_| role.is_sent()) {
        let reduction = exchange.reduction(batch, scheme.clone());
        reduction.check(batch, &shape).map_err(|problem| PlanError::Exchange {
            role,
            layer: site.path.clone(),
            problem: Box::new(problem),
        })?;
    }
    let status = match role {
        _ if scheme.is_float32() => Status::Float,
        _ if role.moment().is_some() => Status::Packed,
        _ => Status::Emulated,
    };
    let is_rounded_parameter =
        matches!(role, Role::Weight | Role::Bias) && status == Status::Emulated;
    let values: usize = shape.iter().product();
    // Where the bytes depend on the values, a plan can only promise the most.
    let bytes = scheme.size(&shape).map_or(0, |size| size.most);
    Ok(Some(PlannedTensor {
        layer: site.path.clone(),
        kind: site.kind,
        role,
        shape,
        scheme,
        bytes,
        bits: bytes as f64 * 8.0 / values.max(1) as f64,
        rule: winner.map(|(r, ..)| r + 1),
        status,
        master: is_rounded_parameter.then_some(true),
    }))
}

/// Which rules have an effect.
struct Claims {
    /// Of each rule the keys that claimed something.
    keys: Vec<Vec<&'static str>>,
    /// Whether a rule won something.
    stands: Vec<bool>,
    /// Which rule took the last thing from each.
    overridden_by: Vec<usize>,
}

impl Claims {
    fn new(rules: usize) -> Self {
        Self {
            keys: vec![Vec::new(); rules],
            stands: vec![false; rules],
            overridden_by: vec![0; rules],
        }
    }

    /// The last of several claims to one thing: the rule, its key, and what it says.
    fn winner<T>(
        &mut self,
        claims: impl Iterator<Item = (usize, &'static str, T)>,
    ) -> Option<(usize, &'static str, T)> {
        let mut winner = None;
        for (r, key, said) in claims {
            self.keys[r].push(key);
            if let Some((earlier, ..)) = winner.replace((r, key, said)) {
                let by: &mut usize = &mut self.overridden_by[earlier];
                *by = (*by).max(r);
            }
        }
        if let Some((r, ..)) = winner {
            self.stands[r] = true;
        }
        winner
    }

    /// Fails if a rule, or a key of one, has no effect.
    fn check(
        &self,
        rules: &[Rule],
        optimizer: &OptimizerConfig,
        exchange: Option<&ExchangeConfig>,
    ) -> Result<(), PlanError> {
        for (r, rule) in rules.iter().enumerate() {
            if let Some(key) = rule.keys().find(|k| !self.keys[r].contains(k) && *k != "default") {
                let role = Role::ALL.into_iter().find(|role| role.key() == key);
                if exchange.is_none() && (key == "a" || role.is_some_and(Role::is_sent)) {
                    return Err(PlanError::NoExchange { rule: r + 1, key });
                }
                return Err(match role.and_then(Role::moment) {
                    Some(moment) if moment >= optimizer.moments() => {
                        PlanError::NoMoment { rule: r + 1, key, why: optimizer.keeps() }
                    }
                    _ => PlanError::NoTensor { rule: r + 1, key },
                });
            }
            if rule.master.is_some() && !self.keys[r].contains(&MASTER) {
                return Err(PlanError::NoMaster { rule: r + 1 });
            }
            if !self.stands[r] {
                return Err(PlanError::Overridden { rule: r + 1, by: self.overridden_by[r] + 1 });
            }
        }
        Ok(())
    }
}

/// What stands for the key `master` among those that claimed something.
const MASTER: &str = "master";

/// Reads which layers a rule speaks of, and checks that there are some, and that it says something of them.
fn matcher(number: usize, rule: &Rule, sites: &[Arc<Site>]) -> Result<Matcher, PlanError> {
    let matcher = Matcher::new(&rule.layers).map_err(|(pattern, reason)| PlanError::Pattern {
        rule: number,
        pattern,
        reason,
    })?;
    if let Some(kinds) = &rule.kinds {
        let here: BTreeSet<&str> = sites.iter().map(|s| s.kind).collect();
        let unknown = |word: &&String| *word != ALL_KINDS && !here.contains(word.as_str());
        let empty = kinds.words().is_empty().then(String::new);
        if let Some(kind) = empty.or_else(|| kinds.words().iter().find(unknown).cloned()) {
            let list = here.iter().copied().chain([ALL_KINDS]).collect::<Vec<_>>().join(", ");
            let near = scrimp_codec::nearest(&kind, here.iter().copied().chain([ALL_KINDS]));
            let help = match near.filter(|_| !kind.is_empty()) {
                Some(near) => format!("kinds here are {list} - did you mean `{near}`?"),
                None => format!("kinds here are {list}"),
            };
            return Err(PlanError::NoKind { rule: number, kind, help });
        }
    }
    let taken = sites.iter().filter(|s| rule.takes(s.kind));
    let paths: Vec<&str> = taken.map(|s| s.path.as_str()).collect();
    if let Some(pattern) = matcher.idle(&paths) {
        let all: Vec<&str> = sites.iter().map(|s| s.path.as_str()).collect();
        let of_other_kind = sites.iter().find(|s| matcher.matches(&s.path) && !rule.takes(s.kind));
        let help = match (matcher.idle(&all), of_other_kind) {
            (None, Some(site)) => {
                format!("`{0}` is a {1}: say kinds = \"{1}\" to speak of it", site.path, site.kind)
            }
            _ => layer_help(pattern, &paths),
        };
        return Err(PlanError::NoLayer { rule: number, pattern: pattern.to_owned(), help });
    }
    if rule.keys().next().is_none() && rule.master.is_none() {
        return Err(PlanError::Empty { rule: number });
    }
    Ok(matcher)
}

pub(crate) fn layer_help(pattern: &str, paths: &[&str]) -> String {
    const SHOWN: usize = 12;
    let mut list = paths.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if paths.len() > SHOWN {
        let _ = write!(list, ", ... ({} in all)", paths.len());
    }
    // A glob's own characters are kept, so that `clasifier.*` suggests `classifier*`.
    let stem = pattern.trim_end_matches(['*', '.', '$']);
    match scrimp_codec::nearest(stem, paths.iter().copied()) {
        Some(near) => format!("layers here are {list} - did you mean `{near}`?"),
        None => format!("layers here are {list}"),
    }
}

impl Plan {
    /// The planned tensor of a layer and role.
    pub fn get(&self, layer: &str, role: Role) -> Option<&PlannedTensor> {
        self.tensors.iter().find(|t| t.role == role && t.layer == layer)
    }

    /// Gives the layers' taps what this plan says, in place of an earlier plan. What workers send is that of the first, and
    /// the session forgets what it remembers of tensors whose scheme is another now.
    pub fn apply(&self, sites: &[Arc<Site>], session: &Arc<Session>) {
        for site in sites {
            if let Some(exchange) = self.exchange.as_ref().filter(|_| !site.has_exchange()) {
                self.exchange_of(site, exchange, session);
            }
            // What the optimizer keeps does not pass a layer, and what workers send is part of a sum.
            let of_site = self
                .tensors
                .iter()
                .filter(|t| t.layer == site.path && t.role.moment().is_none() && !t.role.is_sent());
            let point = |t: &PlannedTensor| {
                let name = format!("{}.{}", t.layer, t.role);
                (t.role, Arc::new(Point::of_role(name, t.role, &t.scheme, self.saved, session)))
            };
            let unplanned = Choice { kind: Kind::F32, why: "" };
            let products = self.products.iter().find(|p| p.layer == site.path);
            let products = products.map_or(Products::EMULATED, |p| Products {
                forward: p.y,
                input_gradient: p.dx.unwrap_or(unplanned),
                weight_gradient: p.dw,
            });
            site.set_points(of_site.map(point).collect(), products, session);
        }
    }

    /// Gives a layer the sums of its gradients.
    fn exchange_of(&self, site: &Site, exchange: &ExchangeConfig, session: &Arc<Session>) {
        let of = |role: Role| {
            let tensor = self.get(&site.path, role)?;
            let reduction = exchange.reduction(self.batch, tensor.scheme.clone());
            let (name, shape) = (format!("{}.{role}", site.path), &tensor.shape[..]);
            // Sums that nobody rounds are those of one product.
            if reduction.is_plain() {
                return None;
            }
            let reducer = Reducer::new(reduction.into(), self.batch, shape, session.seed(), &name);
            let reducer = reducer.expect("the plan was checked");
            let exchange = Arc::new(Exchange::new(name, reducer, session));
            session.add_exchange(&exchange);
            Some(exchange)
        };
        site.set_exchange([Role::WeightSent, Role::BiasSent].map(of));
    }

    /// Bytes of the messages of one step: what all workers send, what each gets back, and both in f32. `None` without
    /// workers, or where the bytes depend on values.
    pub fn messages(&self) -> Option<[[usize; 2]; 2]> {
        self.exchange.as_ref()?;
        let mut sum = [[0; 2]; 2];
        for tensor in self.tensors.iter().filter(|t| t.role.is_sent()) {
            for (sum, [up, down]) in sum.iter_mut().zip(self.message(tensor)?) {
                *sum = [sum[0] + up, sum[1] + down];
            }
        }
        Some(sum)
    }

    /// The same of one tensor that workers send.
    pub(crate) fn message(&self, tensor: &PlannedTensor) -> Option<[[usize; 2]; 2]> {
        let exchange = self.exchange.as_ref()?;
        let float = ExchangeConfig { down: Some(Scheme::float32()), ..exchange.clone() };
        let float = float.reduction(self.batch, Scheme::float32());
        let reduction = exchange.reduction(self.batch, tensor.scheme.clone());
        let bytes = |of: Reduction| of.bytes(self.batch, &tensor.shape).ok()?;
        Some([bytes(reduction)?, bytes(float)?])
    }

    /// Values, bits per value and bytes of all tensors with a role, leaving out those that are never computed.
    pub fn total(&self, role: Role) -> Total {
        self.tensors.iter().filter(|t| t.role == role && t.status != Status::NotComputed).fold(
            Total::default(),
            |sum, t| Total {
                values: sum.values + t.shape.iter().product::<usize>(),
                bytes: sum.bytes + t.bytes,
            },
        )
    }
}

/// Sizes of several tensors together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// Number of values.
    pub values: usize,
    /// Bytes, scales included.
    pub bytes: usize,
}

impl Total {
    /// Bits per value; 0 where there are no values.
    pub fn bits(self) -> f64 {
        self.bytes as f64 * 8.0 / self.values.max(1) as f64
    }

    /// Both together.
    #[must_use]
    pub fn join(self, other: Total) -> Total {
        Total { values: self.values + other.values, bytes: self.bytes + other.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lenet(rules: &[Rule]) -> Result<Plan, PlanError> {
        let request = PlanRequest {
            image: [1, 28, 28],
            classes: 10,
            batch: 64,
            rules: rules.to_vec(),
            device: "flex".into(),
            compute: Compute::Auto,
            optimizer: OptimizerConfig::default(),
            exchange: None,
            saved: Saved::default(),
        };
        (crate::models::find("lenet").unwrap().plan)(&request)
    }

    fn rule(layers: &str, keys: &[(&str, &str)]) -> Rule {
        let pairs = keys.iter().map(|(k, s)| (*k, serde_json::json!(s)));
        let all = pairs.chain([("layers", serde_json::json!(layers))]);
        serde_json::from_value(all.map(|(k, v)| (k.to_owned(), v)).collect()).unwrap()
    }

    #[test]
    fn later_rules_win_and_shorter_keys_cover_longer_ones() {
        let plan = lenet(&[
            rule("*", &[("default", "int8"), ("d", "e5m2"), ("dw", "bf16")]),
            rule("fc3", &[("w", "f32")]),
        ])
        .unwrap();
        let scheme = |layer: &str, role| plan.get(layer, role).unwrap().scheme.to_string();
        assert_eq!(scheme("conv1", Role::Weight), "int8");
        assert_eq!(scheme("conv1", Role::OutputGrad), "e5m2");
        assert_eq!(scheme("conv1", Role::WeightGrad), "bf16");
        assert_eq!(scheme("fc3", Role::Weight), "f32");
        assert_eq!(scheme("fc3", Role::Input), "int8");
        assert_eq!(plan.get("fc3", Role::Weight).unwrap().rule, Some(2));
        assert_eq!(plan.get("conv1", Role::InputGrad).unwrap().status, Status::NotComputed);
        assert_eq!(plan.get("conv1", Role::Output).unwrap().shape, [64, 28, 28, 6]);
    }

    #[test]
    fn channels_are_axis_0_of_weights_and_axis_1_of_activations() {
        let plan =
            lenet(&[rule("conv*", &[("w", "int8/channel"), ("y", "int8/channel")])]).unwrap();
        let bytes = |role| plan.get("conv1", role).unwrap().bytes;
        assert_eq!(bytes(Role::Weight), 6 * 25 + 6 * 4);
        assert_eq!(bytes(Role::Output), 64 * 6 * 28 * 28 + 6 * 4);
    }

    #[test]
    fn nothing_is_skipped_in_silence() {
        let error = |rules: &[Rule]| lenet(rules).unwrap_err();
        let no_layer = error(&[rule("*", &[("w", "int8")]), rule("clasifier.*", &[("w", "int8")])]);
        assert!(matches!(no_layer, PlanError::NoLayer { rule: 2, .. }));
        assert!(no_layer.help().unwrap().contains("conv1, conv2, fc1"));
        assert!(
            error(&[rule("fc4", &[("w", "int8")])]).help().unwrap().contains("did you mean `fc")
        );
        assert!(matches!(error(&[rule("*", &[])]), PlanError::Empty { rule: 1 }));
        assert_eq!(
            error(&[rule("fc1", &[("w", "int8")]), rule("fc*", &[("w", "int4"), ("x", "int8")])]),
            PlanError::Overridden { rule: 1, by: 2 }
        );
        let one_dimensional = error(&[rule("*", &[("default", "int8/channel")])]);
        assert!(matches!(
            &one_dimensional,
            PlanError::Shape { role: Role::Bias, key: "default", .. }
        ));
        assert!(one_dimensional.to_string().contains("`tensor` fits it"), "{one_dimensional}");
        assert!(matches!(error(&[rule("fc[", &[("w", "int8")])]), PlanError::Pattern { .. }));
        assert_eq!(
            lenet(&[rule("*", &[("w", "int4/group:100000")])])
                .unwrap()
                .get("fc1", Role::Weight)
                .unwrap()
                .bytes,
            120 * 392 + 480
        );
    }

    #[test]
    fn a_long_batch_costs_no_product_its_integers() {
        let request = PlanRequest {
            image: [1, 28, 28],
            classes: 10,
            batch: 1 << 18,
            rules: vec![rule("*", &[("default", "int8")])],
            device: "flex".into(),
            compute: Compute::Auto,
            optimizer: OptimizerConfig::default(),
            exchange: None,
            saved: Saved::default(),
        };
        let plan = (crate::models::find("lenet").unwrap().plan)(&request).unwrap();
        for product in &plan.products {
            assert_eq!([product.y.kind, product.dw.kind], [Kind::Int8; 2]);
        }
    }

    #[test]
    fn a_key_without_a_tensor_is_an_error() {
        let request = PlanRequest {
            image: [3, 32, 32],
            classes: 10,
            batch: 1,
            rules: vec![rule("layer1.*", &[("w", "int8"), ("b", "int8")])],
            device: "flex".into(),
            compute: Compute::Auto,
            optimizer: OptimizerConfig::default(),
            exchange: None,
            saved: Saved::default(),
        };
        let error = (crate::models::find("resnet20").unwrap().plan)(&request).unwrap_err();
        assert_eq!(error, PlanError::NoTensor { rule: 1, key: "b" });
    }
}
