//! Weights of any module in any format, without a change to the module.
//!
//! For networks that are not built from the layers of this crate: every parameter of at least two axes whose path a rule
//! matches is rounded on its way into the forward pass, with gradients passed straight through to the stored `f32` value.

use std::sync::Arc;

use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::tensor::Tensor;
use scrimp_codec::Scheme;

use crate::engine::{self, PointRef};
use crate::plan::PlanError;
use crate::rules::{Matcher, Rule};
use crate::tap::{Point, Session};

/// A parameter whose effective value is the rounded stored one.
#[derive(Module, Debug)]
pub struct RoundedWeight {
    #[module(skip)]
    point: PointRef,
}

impl Reparameterization for RoundedWeight {
    const NAME: &'static str = "rounded";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        engine::pass(base, Some(Arc::clone(&self.point)), None)
    }
}

/// Rounds the weights of a module as the `w` (or `default`) keys of the rules say. Returns the module and, for each
/// weight that a rule claims, its path and scheme.
///
/// # Errors
/// If a rule matches no parameter of at least two axes, speaks of another tensor than the weight, or is overridden
/// everywhere by later ones; if it has `kinds` or `master`, which mean nothing here; if a scheme does not fit a parameter.
pub fn round_weights<M: Module>(
    module: M,
    rules: &[Rule],
    session: &Arc<Session>,
) -> Result<(M, Vec<(String, Scheme)>), PlanError> {
    let mut matchers = Vec::new();
    for (i, rule) in rules.iter().enumerate() {
        let pattern = |(pattern, reason)| PlanError::Pattern { rule: i + 1, pattern, reason };
        let matcher = Matcher::new(&rule.layers).map_err(pattern)?;
        if let Some(key) = rule.keys().find(|key| !["w", "default"].contains(key)) {
            return Err(PlanError::NoTensor { rule: i + 1, key });
        }
        if let Some(kinds) = &rule.kinds {
            let kind = kinds.words().first().cloned().unwrap_or_default();
            let help = "a module of others has parameters and no kinds: leave the key out".into();
            return Err(PlanError::NoKind { rule: i + 1, kind, help });
        }
        if rule.master.is_some() {
            return Err(PlanError::NoMaster { rule: i + 1 });
        }
        let (key, scheme) = match (&rule.w, &rule.default) {
            (Some(s), _) => ("w", s),
            (None, Some(s)) => ("default", s),
            (None, None) => return Err(PlanError::Empty { rule: i + 1 }),
        };
        matchers.push((matcher, key, scheme));
    }

    let mut rounding = Rounding {
        matchers: &matchers,
        session,
        paths: Vec::new(),
        claimed: Vec::new(),
        stands: vec![false; rules.len()],
        overridden_by: vec![0; rules.len()],
        error: None,
    };
    let module = module.apply_reparameterization(&mut rounding);
    let Rounding { paths, claimed, stands, overridden_by, error, .. } = rounding;
    if let Some(error) = error {
        return Err(error);
    }
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    for (i, (matcher, ..)) in matchers.iter().enumerate() {
        if let Some(pattern) = matcher.idle(&paths) {
            let help = crate::plan::layer_help(pattern, &paths);
            return Err(PlanError::NoLayer { rule: i + 1, pattern: pattern.to_owned(), help });
        }
        if !stands[i] {
            return Err(PlanError::Overridden { rule: i + 1, by: overridden_by[i] + 1 });
        }
    }
    Ok((module, claimed))
}

/// A rule's layers, the key that gave its scheme, and the scheme.
type Claim<'a> = (Matcher, &'static str, &'a Scheme);

/// Attaches the rounding that the last matching rule asks for.
struct Rounding<'a> {
    matchers: &'a [Claim<'a>],
    session: &'a Arc<Session>,
    paths: Vec<String>,
    claimed: Vec<(String, Scheme)>,
    /// Which rules decide something, and the last rule that took a weight from each.
    stands: Vec<bool>,
    overridden_by: Vec<usize>,
    error: Option<PlanError>,
}

impl Reparameterizer for &mut Rounding<'_> {
    type Reparam = RoundedWeight;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<RoundedWeight>) {
        if D < 2 {
            return (param, None);
        }
        self.paths.push(path.to_owned());
        let matching = |i: &usize| self.matchers[*i].0.matches(path);
        let all: Vec<usize> = (0..self.matchers.len()).filter(matching).collect();
        let Some((&i, earlier)) = all.split_last() else { return (param, None) };
        self.stands[i] = true;
        for &rule in earlier {
            self.overridden_by[rule] = self.overridden_by[rule].max(i);
        }
        let (_, key, scheme) = &self.matchers[i];
        let shape = param.lazy_shape();
        let scheme = scheme.for_weight(shape.as_slice());
        if let Err(problem) = scheme.check(shape.as_slice()) {
            self.error.get_or_insert(PlanError::Shape {
                rule: i + 1,
                key,
                scheme: scheme.to_string(),
                role: crate::Role::Weight,
                layer: path.to_owned(),
                problem,
            });
            return (param, None);
        }
        self.claimed.push((path.to_owned(), scheme.clone()));
        let point = Point::new(path.to_owned(), Some(scheme), self.session);
        (param, Some(RoundedWeight { point: Arc::new(point) }))
    }
}
