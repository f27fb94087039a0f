//! The gradients of parameters after the backward pass: `dw` and `db`, their norm, and clipping.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use scrimp_kernels::optim;

use crate::engine::{self, PointRef};
use crate::params::Path;
use crate::role::Role;
use crate::tap::{Session, Site};

/// The taps of the gradients of a network's parameters.
#[derive(Debug)]
pub struct GradientTaps {
    /// By the parameter's name.
    points: BTreeMap<String, PointRef>,
    session: Arc<Session>,
}

impl GradientTaps {
    /// The taps of these layers, to which a plan was applied.
    pub fn new(sites: &[Arc<Site>], session: &Arc<Session>) -> Self {
        let pairs = [("weight", Role::WeightGrad), ("bias", Role::BiasGrad)];
        let points = sites
            .iter()
            .flat_map(|site| {
                pairs.iter().filter_map(|(field, role)| {
                    Some((format!("{}.{field}", site.path), site.point(*role)?))
                })
            })
            .collect();
        Self { points, session: Arc::clone(session) }
    }

    /// Rounds every gradient as the plan says, reports the first that is not finite to the session, and returns the
    /// 2-norm of all of them together.
    pub fn round<M: Module>(&self, module: &M, grads: &mut GradientsParams) -> f64 {
        let mut squares = 0.0;
        visit(module, grads, |name, shape, g| {
            if let Some(point) = self.points.get(name) {
                point.apply(g, shape);
            }
            let sum = optim::sum_of_squares(g);
            if !sum.is_finite() {
                self.session.report(&format!("gradient of {name}"), "it is not finite".into());
            }
            squares += sum;
        });
        squares.sqrt()
    }
}

/// Divides all gradients by the `loss_scale` that they were computed with, and scales them so that their 2-norm, which
/// is `norm` before either, is then at most `limit`.
///
/// # Source
/// Pascanu et al. 2013, arXiv:1211.5063; the factor is that of `torch.nn.utils.clip_grad_norm_`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a factor is rounded to f32 like all numbers of training"
)]
pub fn scale<M: Module>(
    module: &M,
    grads: &mut GradientsParams,
    norm: f64,
    loss_scale: f32,
    limit: Option<f64>,
) {
    let norm = norm / f64::from(loss_scale);
    let clip = limit.map_or(1.0, |limit| (limit / (norm + 1e-6)) as f32);
    let factor = clip.min(1.0) / loss_scale;
    // A factor of 1 is what most runs have; no bit would change.
    if factor.to_bits() != 1.0_f32.to_bits() {
        visit(module, grads, |_, _, g| {
            optim::scale(g, factor);
        });
    }
}

/// Lets `change` work on every parameter's gradient, by the parameter's name and shape.
fn visit<M: Module>(
    module: &M,
    grads: &mut GradientsParams,
    change: impl FnMut(&str, &[usize], &mut [f32]),
) {
    struct Visit<'a, F> {
        grads: &'a mut GradientsParams,
        path: Path,
        change: F,
    }
    impl<F: FnMut(&str, &[usize], &mut [f32])> ModuleVisitor for Visit<'_, F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(grad) = self.grads.remove::<D>(param.id) else { return };
            let shape = grad.dims();
            let name = self.path.name();
            let grad = engine::map_values(grad, |g| (self.change)(&name, &shape, g));
            self.grads.register(param.id, grad);
        }
    }
    module.visit(&mut Visit { grads, path: Path::default(), change });
}
