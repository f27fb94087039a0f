//! Inception v3.

#![expect(non_snake_case, reason = "fields are the names of parameters in usual checkpoints")]

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::Network;
use crate::layers::{
    AveragePool, BatchNorm, Conv2d, Conv2dOptions, GlobalAverage, Init, Linear, MaxPool, Pool,
    channels_last, concat,
};
use crate::tap::{Arithmetic, Place, Scope};

/// A stem of five convolutions, eleven blocks of three or four branches, and a linear classifier.
///
/// # Source
/// Szegedy et al. 2016, arXiv:1512.00567, table 1 and figures 5, 6, 7 and 10. Numbers of channels, padding
/// and parameter names (`Mixed_5b.branch5x5_1.conv.weight`) are those of torchvision.
/// Differs: there is no auxiliary classifier and no dropout before the last layer, and first values
/// are those of He et al. 2015. The input is normalized by the data set's statistics; weights of
/// torchvision expect a mean and deviation of 0.5.
#[derive(Module, Debug)]
pub struct InceptionV3 {
    Conv2d_1a_3x3: Convolution,
    Conv2d_2a_3x3: Convolution,
    Conv2d_2b_3x3: Convolution,
    maxpool1: MaxPool,
    Conv2d_3b_1x1: Convolution,
    Conv2d_4a_3x3: Convolution,
    maxpool2: MaxPool,
    Mixed_5b: Square,
    Mixed_5c: Square,
    Mixed_5d: Square,
    Mixed_6a: SquareReduction,
    Mixed_6b: Factorized,
    Mixed_6c: Factorized,
    Mixed_6d: Factorized,
    Mixed_6e: Factorized,
    Mixed_7a: FactorizedReduction,
    Mixed_7b: Expanded,
    Mixed_7c: Expanded,
    avgpool: GlobalAverage,
    fc: Linear,
    #[module(skip)]
    arithmetic: Arithmetic,
}

/// The least height and width: the reductions leave one pixel of it.
const LEAST: usize = 75;

/// Halves height and width.
const HALF: Pool = Pool { kernel: [3; 2], stride: [2; 2], padding: [0; 2] };
/// Leaves height and width.
const AROUND: Pool = Pool { kernel: [3; 2], stride: [1; 2], padding: [1; 2] };

impl Network for InceptionV3 {
    type Options = ();

    const LEFT_OUT: &'static [&'static str] = &["AuxLogits."];

    fn accepts([_, height, width]: [usize; 3]) -> Result<(), String> {
        if height >= LEAST && width >= LEAST {
            Ok(())
        } else {
            Err(format!("images of at least {LEAST} x {LEAST} pixels"))
        }
    }

    fn build(
        (): &(),
        [channels, ..]: [usize; 3],
        classes: usize,
        scope: &Scope,
        device: &Device,
    ) -> Self {
        let conv = |name: &str, channels, kernel, window| {
            Convolution::new(&scope.at(name), channels, [kernel; 2], window, device)
        };
        let square = |name: &str, inputs, pool| Square::new(&scope.at(name), inputs, pool, device);
        let factorized = |name: &str, inner| Factorized::new(&scope.at(name), inner, device);
        let expanded = |name: &str, inputs| Expanded::new(&scope.at(name), inputs, device);
        Self {
            Conv2d_1a_3x3: conv("Conv2d_1a_3x3", [channels, 32], 3, STRIDED),
            Conv2d_2a_3x3: conv("Conv2d_2a_3x3", [32, 32], 3, INSIDE),
            Conv2d_2b_3x3: conv("Conv2d_2b_3x3", [32, 64], 3, SAME),
            maxpool1: MaxPool::new(&scope.at("maxpool1"), HALF),
            Conv2d_3b_1x1: conv("Conv2d_3b_1x1", [64, 80], 1, SAME),
            Conv2d_4a_3x3: conv("Conv2d_4a_3x3", [80, 192], 3, INSIDE),
            maxpool2: MaxPool::new(&scope.at("maxpool2"), HALF),
            Mixed_5b: square("Mixed_5b", 192, 32),
            Mixed_5c: square("Mixed_5c", 256, 64),
            Mixed_5d: square("Mixed_5d", 288, 64),
            Mixed_6a: SquareReduction::new(&scope.at("Mixed_6a"), 288, device),
            Mixed_6b: factorized("Mixed_6b", 128),
            Mixed_6c: factorized("Mixed_6c", 160),
            Mixed_6d: factorized("Mixed_6d", 160),
            Mixed_6e: factorized("Mixed_6e", 192),
            Mixed_7a: FactorizedReduction::new(&scope.at("Mixed_7a"), 768, device),
            Mixed_7b: expanded("Mixed_7b", 1280),
            Mixed_7c: expanded("Mixed_7c", 2048),
            avgpool: GlobalAverage::new(&scope.at("avgpool")),
            fc: Linear::new(&scope.at("fc"), 2048, classes, device),
            arithmetic: scope.arithmetic(),
        }
    }

    // Sizes are those of an image of 299 x 299.
    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = channels_last(x, self.arithmetic);
        let x = self.Conv2d_1a_3x3.forward(x); // [batch, 149, 149, 32]
        let x = self.Conv2d_2a_3x3.forward(x);
        let x = self.Conv2d_2b_3x3.forward(x); // [batch, 147, 147, 64]
        let x = self.maxpool1.forward(x);
        let x = self.Conv2d_3b_1x1.forward(x); // [batch, 73, 73, 80]
        let x = self.Conv2d_4a_3x3.forward(x); // [batch, 71, 71, 192]
        let x = self.maxpool2.forward(x);
        let x = self.Mixed_5b.forward(x); // [batch, 35, 35, 256]
        let x = self.Mixed_5c.forward(x);
        let x = self.Mixed_5d.forward(x); // [batch, 35, 35, 288]
        let x = self.Mixed_6a.forward(x); // [batch, 17, 17, 768]
        let x = self.Mixed_6b.forward(x);
        let x = self.Mixed_6c.forward(x);
        let x = self.Mixed_6d.forward(x);
        let x = self.Mixed_6e.forward(x);
        let x = self.Mixed_7a.forward(x); // [batch, 8, 8, 1280]
        let x = self.Mixed_7b.forward(x); // [batch, 8, 8, 2048]
        let x = self.Mixed_7c.forward(x);
        self.fc.forward(self.avgpool.forward(x))
    }
}

/// A convolution without bias, a norm and a `ReLU`.
#[derive(Module, Debug)]
struct Convolution {
    conv: Conv2d,
    bn: BatchNorm,
}

/// Stride and padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Steps {
    stride: usize,
    padded: bool,
}

/// Height and width stay.
const SAME: Steps = Steps { stride: 1, padded: true };
/// Only where the whole kernel lies in the image.
const INSIDE: Steps = Steps { stride: 1, padded: false };
/// That, at every second place.
const STRIDED: Steps = Steps { stride: 2, padded: false };

/// Added to variances, as in torchvision.
const EPSILON: f32 = 1e-3;

impl Convolution {
    fn new(
        scope: &Scope,
        [inputs, outputs]: [usize; 2],
        kernel: [usize; 2],
        Steps { stride, padded }: Steps,
        device: &Device,
    ) -> Self {
        let options = Conv2dOptions {
            kernel,
            stride: [stride; 2],
            padding: if padded { kernel.map(|side| side / 2) } else { [0; 2] },
            bias: false,
            init: Init::KaimingNormal,
            ..Conv2dOptions::new(1)
        };
        Self {
            conv: Conv2d::new(&scope.at("conv"), inputs, outputs, options, device),
            bn: BatchNorm::new(&scope.at("bn"), outputs, device).with_epsilon(EPSILON),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.bn.forward_relu(self.conv.forward(x))
    }
}

/// Figure 5: kernels of 3x3, of which two stand for one of 5x5. torchvision keeps one of 5x5 beside
/// them.
#[derive(Module, Debug)]
struct Square {
    branch1x1: Convolution,
    branch5x5_1: Convolution,
    branch5x5_2: Convolution,
    branch3x3dbl_1: Convolution,
    branch3x3dbl_2: Convolution,
    branch3x3dbl_3: Convolution,
    pool: AveragePool,
    branch_pool: Convolution,
    #[module(skip)]
    concat: Place,
}

impl Square {
    fn new(scope: &Scope, inputs: usize, pool: usize, device: &Device) -> Self {
        let conv = |name: &str, channels, side| {
            Convolution::new(&scope.at(name), channels, [side; 2], SAME, device)
        };
        Self {
            branch1x1: conv("branch1x1", [inputs, 64], 1),
            branch5x5_1: conv("branch5x5_1", [inputs, 48], 1),
            branch5x5_2: conv("branch5x5_2", [48, 64], 5),
            branch3x3dbl_1: conv("branch3x3dbl_1", [inputs, 64], 1),
            branch3x3dbl_2: conv("branch3x3dbl_2", [64, 96], 3),
            branch3x3dbl_3: conv("branch3x3dbl_3", [96, 96], 3),
            pool: AveragePool::new(&scope.at("pool"), AROUND),
            branch_pool: conv("branch_pool", [inputs, pool], 1),
            concat: scope.at("concat").place(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let one = self.branch1x1.forward(x.clone());
        let five = self.branch5x5_2.forward(self.branch5x5_1.forward(x.clone()));
        let three = self.branch3x3dbl_2.forward(self.branch3x3dbl_1.forward(x.clone()));
        let three = self.branch3x3dbl_3.forward(three);
        let pool = self.branch_pool.forward(self.pool.forward(x));
        concat(vec![one, five, three, pool], &self.concat)
    }
}

/// Figure 10: half the height and width, without a bottleneck.
#[derive(Module, Debug)]
struct SquareReduction {
    branch3x3: Convolution,
    branch3x3dbl_1: Convolution,
    branch3x3dbl_2: Convolution,
    branch3x3dbl_3: Convolution,
    pool: MaxPool,
    #[module(skip)]
    concat: Place,
}

impl SquareReduction {
    fn new(scope: &Scope, inputs: usize, device: &Device) -> Self {
        let conv = |name: &str, channels, side, steps| {
            Convolution::new(&scope.at(name), channels, [side; 2], steps, device)
        };
        Self {
            branch3x3: conv("branch3x3", [inputs, 384], 3, STRIDED),
            branch3x3dbl_1: conv("branch3x3dbl_1", [inputs, 64], 1, SAME),
            branch3x3dbl_2: conv("branch3x3dbl_2", [64, 96], 3, SAME),
            branch3x3dbl_3: conv("branch3x3dbl_3", [96, 96], 3, STRIDED),
            pool: MaxPool::new(&scope.at("pool"), HALF),
            concat: scope.at("concat").place(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let one = self.branch3x3.forward(x.clone());
        let two = self.branch3x3dbl_2.forward(self.branch3x3dbl_1.forward(x.clone()));
        let two = self.branch3x3dbl_3.forward(two);
        concat(vec![one, two, self.pool.forward(x)], &self.concat)
    }
}

/// Figure 6: a kernel of 7x7 as one of 1x7 and one of 7x1.
#[derive(Module, Debug)]
struct Factorized {
    branch1x1: Convolution,
    branch7x7_1: Convolution,
    branch7x7_2: Convolution,
    branch7x7_3: Convolution,
    branch7x7dbl_1: Convolution,
    branch7x7dbl_2: Convolution,
    branch7x7dbl_3: Convolution,
    branch7x7dbl_4: Convolution,
    branch7x7dbl_5: Convolution,
    pool: AveragePool,
    branch_pool: Convolution,
    #[module(skip)]
    concat: Place,
}

/// Channels before and after such a block.
const WIDTH: usize = 768;

impl Factorized {
    fn new(scope: &Scope, inner: usize, device: &Device) -> Self {
        let conv = |name: &str, channels, kernel| {
            Convolution::new(&scope.at(name), channels, kernel, SAME, device)
        };
        Self {
            branch1x1: conv("branch1x1", [WIDTH, 192], [1, 1]),
            branch7x7_1: conv("branch7x7_1", [WIDTH, inner], [1, 1]),
            branch7x7_2: conv("branch7x7_2", [inner, inner], [1, 7]),
            branch7x7_3: conv("branch7x7_3", [inner, 192], [7, 1]),
            branch7x7dbl_1: conv("branch7x7dbl_1", [WIDTH, inner], [1, 1]),
            branch7x7dbl_2: conv("branch7x7dbl_2", [inner, inner], [7, 1]),
            branch7x7dbl_3: conv("branch7x7dbl_3", [inner, inner], [1, 7]),
            branch7x7dbl_4: conv("branch7x7dbl_4", [inner, inner], [7, 1]),
            branch7x7dbl_5: conv("branch7x7dbl_5", [inner, 192], [1, 7]),
            pool: AveragePool::new(&scope.at("pool"), AROUND),
            branch_pool: conv("branch_pool", [WIDTH, 192], [1, 1]),
            concat: scope.at("concat").place(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let none = self.branch1x1.forward(x.clone());
        let once = self.branch7x7_2.forward(self.branch7x7_1.forward(x.clone()));
        let once = self.branch7x7_3.forward(once);
        let twice = self.branch7x7dbl_2.forward(self.branch7x7dbl_1.forward(x.clone()));
        let twice = self.branch7x7dbl_4.forward(self.branch7x7dbl_3.forward(twice));
        let twice = self.branch7x7dbl_5.forward(twice);
        let pool = self.branch_pool.forward(self.pool.forward(x));
        concat(vec![none, once, twice, pool], &self.concat)
    }
}

/// Half the height and width, after the same factors.
#[derive(Module, Debug)]
struct FactorizedReduction {
    branch3x3_1: Convolution,
    branch3x3_2: Convolution,
    branch7x7x3_1: Convolution,
    branch7x7x3_2: Convolution,
    branch7x7x3_3: Convolution,
    branch7x7x3_4: Convolution,
    pool: MaxPool,
    #[module(skip)]
    concat: Place,
}

impl FactorizedReduction {
    fn new(scope: &Scope, inputs: usize, device: &Device) -> Self {
        let conv = |name: &str, channels, kernel, steps| {
            Convolution::new(&scope.at(name), channels, kernel, steps, device)
        };
        Self {
            branch3x3_1: conv("branch3x3_1", [inputs, 192], [1, 1], SAME),
            branch3x3_2: conv("branch3x3_2", [192, 320], [3, 3], STRIDED),
            branch7x7x3_1: conv("branch7x7x3_1", [inputs, 192], [1, 1], SAME),
            branch7x7x3_2: conv("branch7x7x3_2", [192, 192], [1, 7], SAME),
            branch7x7x3_3: conv("branch7x7x3_3", [192, 192], [7, 1], SAME),
            branch7x7x3_4: conv("branch7x7x3_4", [192, 192], [3, 3], STRIDED),
            pool: MaxPool::new(&scope.at("pool"), HALF),
            concat: scope.at("concat").place(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let three = self.branch3x3_2.forward(self.branch3x3_1.forward(x.clone()));
        let seven = self.branch7x7x3_2.forward(self.branch7x7x3_1.forward(x.clone()));
        let seven = self.branch7x7x3_4.forward(self.branch7x7x3_3.forward(seven));
        concat(vec![three, seven, self.pool.forward(x)], &self.concat)
    }
}

/// Figure 7: a kernel of 1x3 and one of 3x1 beside each other.
#[derive(Module, Debug)]
struct Expanded {
    branch1x1: Convolution,
    branch3x3_1: Convolution,
    branch3x3_2a: Convolution,
    branch3x3_2b: Convolution,
    branch3x3dbl_1: Convolution,
    branch3x3dbl_2: Convolution,
    branch3x3dbl_3a: Convolution,
    branch3x3dbl_3b: Convolution,
    pool: AveragePool,
    branch_pool: Convolution,
    #[module(skip)]
    branch3x3: Place,
    #[module(skip)]
    branch3x3dbl: Place,
    #[module(skip)]
    concat: Place,
}

impl Expanded {
    fn new(scope: &Scope, inputs: usize, device: &Device) -> Self {
        let conv = |name: &str, channels, kernel| {
            Convolution::new(&scope.at(name), channels, kernel, SAME, device)
        };
        Self {
            branch1x1: conv("branch1x1", [inputs, 320], [1, 1]),
            branch3x3_1: conv("branch3x3_1", [inputs, 384], [1, 1]),
            branch3x3_2a: conv("branch3x3_2a", [384, 384], [1, 3]),
            branch3x3_2b: conv("branch3x3_2b", [384, 384], [3, 1]),
            branch3x3dbl_1: conv("branch3x3dbl_1", [inputs, 448], [1, 1]),
            branch3x3dbl_2: conv("branch3x3dbl_2", [448, 384], [3, 3]),
            branch3x3dbl_3a: conv("branch3x3dbl_3a", [384, 384], [1, 3]),
            branch3x3dbl_3b: conv("branch3x3dbl_3b", [384, 384], [3, 1]),
            pool: AveragePool::new(&scope.at("pool"), AROUND),
            branch_pool: conv("branch_pool", [inputs, 192], [1, 1]),
            branch3x3: scope.at("branch3x3").at("concat").place(),
            branch3x3dbl: scope.at("branch3x3dbl").at("concat").place(),
            concat: scope.at("concat").place(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let both = |x: Tensor<4>, a: &Convolution, b: &Convolution, place: &Place| {
            concat(vec![a.forward(x.clone()), b.forward(x)], place)
        };
        let one = self.branch1x1.forward(x.clone());
        let three = self.branch3x3_1.forward(x.clone());
        let three = both(three, &self.branch3x3_2a, &self.branch3x3_2b, &self.branch3x3);
        let double = self.branch3x3dbl_2.forward(self.branch3x3dbl_1.forward(x.clone()));
        let double = both(double, &self.branch3x3dbl_3a, &self.branch3x3dbl_3b, &self.branch3x3dbl);
        let pool = self.branch_pool.forward(self.pool.forward(x));
        concat(vec![one, three, double, pool], &self.concat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_parameters_of_torchvision_without_the_auxiliary_classifier() {
        let net = InceptionV3::build(&(), [3, 299, 299], 1000, &Scope::root(0), &Device::flex());
        // Running averages are counted too, a mean and a variance for each output of a norm.
        let norms = 17_216;
        assert_eq!(net.num_params(), 23_834_568 + 2 * norms);
    }

    #[test]
    fn the_least_image_leaves_one_pixel_and_a_smaller_one_is_refused() {
        assert!(InceptionV3::accepts([3, 74, 299]).is_err());
        assert_eq!(InceptionV3::accepts([3, 75, 75]), Ok(()));
        let device = Device::flex();
        for arithmetic in [Arithmetic::Kernels, Arithmetic::Engine] {
            let scope = Scope::root(0).with(arithmetic);
            let net = InceptionV3::build(&(), [3, 75, 75], 7, &scope, &device);
            assert_eq!(net.forward(Tensor::ones([1, 3, 75, 75], &device)).dims(), [1, 7]);
            let sites = scope.sites();
            let last = sites.iter().find(|s| s.path == "Mixed_7c.branch1x1.conv").unwrap();
            let seen = last.shape(crate::Role::Input).unwrap();
            let expected = match arithmetic {
                Arithmetic::Kernels => [1, 1, 2048],
                _ => [2048, 1, 1],
            };
            assert_eq!(seen, expected);
        }
    }
}
