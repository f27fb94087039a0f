//! The sizes of a convolution, which fit together once they are made.

use crate::KernelError;

/// How the kernel moves over the image. Pairs are height, then width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// From one output to the next, in pixels of the input.
    pub stride: [usize; 2],
    /// Zeros on each side of the image.
    pub padding: [usize; 2],
    /// From one element of the kernel to the next, in pixels of the input.
    pub dilation: [usize; 2],
    /// Into how many groups, which do not see each other, channels are divided.
    pub groups: usize,
}

impl Default for Window {
    /// Every position of the image, and nothing outside it.
    fn default() -> Self {
        Self { stride: [1; 2], padding: [0; 2], dilation: [1; 2], groups: 1 }
    }
}

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2dShape {
    pub(super) batch: usize,
    /// Of the input.
    pub(super) size: [usize; 2],
    /// Of the output.
    pub(super) out_size: [usize; 2],
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) kernel: [usize; 2],
    pub(super) window: Window,
}

/// Sizes and products of sizes are below this, so that sums of a few of them do not overflow, nor offsets of 32 bits.
const LIMIT: usize = (1 << 30) - 1;

fn wrong(what: &'static str, problem: impl Into<String>) -> KernelError {
    KernelError::Shape { what, problem: problem.into() }
}

impl Conv2dShape {
    /// Of an input `[batch, height, width, channels]` and a weight `[out, in / groups, kernel height, kernel width]`.
    ///
    /// # Errors
    /// A size of zero (an empty batch is none), channels that groups do not divide or that weight and input do not agree
    /// on, a kernel that is larger than the padded image, and images of more than 2^30 elements.
    pub fn new(input: [usize; 4], weight: [usize; 4], window: Window) -> Result<Self, KernelError> {
        let [batch, height, width, in_channels] = input;
        let [out_channels, per_group, kernel_height, kernel_width] = weight;
        let Window { stride, padding, dilation, groups } = window;
        if input[1..].contains(&0) {
            return Err(wrong(
                "conv2d input",
                format!("{input:?} has a size of zero besides the batch"),
            ));
        }
        if weight.contains(&0) {
            return Err(wrong("conv2d weight", format!("{weight:?} has a size of zero")));
        }
        if groups == 0 || stride.contains(&0) || dilation.contains(&0) {
            return Err(wrong("conv2d window", "stride, dilation and groups are at least 1"));
        }
        if !in_channels.is_multiple_of(groups) || !out_channels.is_multiple_of(groups) {
            let problem =
                format!("{groups} groups do not divide {in_channels} and {out_channels} channels");
            return Err(wrong("conv2d groups", problem));
        }
        if per_group != in_channels / groups {
            let problem = format!(
                "{weight:?} sees {per_group} channels, and {in_channels} in {groups} group(s) are {}",
                in_channels / groups
            );
            return Err(wrong("conv2d weight", problem));
        }
        let kernel = [kernel_height, kernel_width];
        let mut out_size = [0; 2];
        let mut padded = [0; 2];
        for (axis, size) in [height, width].into_iter().enumerate() {
            let too_large =
                || wrong("conv2d window", format!("axis {axis} is longer than {LIMIT}"));
            let limit =
                |size: Option<usize>| size.filter(|size| *size <= LIMIT).ok_or_else(too_large);
            padded[axis] = limit(padding[axis].checked_mul(2).and_then(|p| p.checked_add(size)))?;
            limit(Some(stride[axis]))?;
            let reach = limit(
                (kernel[axis] - 1).checked_mul(dilation[axis]).and_then(|r| r.checked_add(1)),
            )?;
            let Some(room) = padded[axis].checked_sub(reach) else {
                let problem = format!(
                    "a kernel that spans {reach} leaves no output of {} pixels",
                    padded[axis]
                );
                return Err(wrong("conv2d kernel", problem));
            };
            out_size[axis] = room / stride[axis] + 1;
        }
        let elements = |sizes: &[usize]| {
            let product = sizes.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
            product
                .filter(|n| *n <= LIMIT)
                .ok_or_else(|| wrong("conv2d", format!("{sizes:?} has more than {LIMIT} elements")))
        };
        elements(&input[1..])?;
        elements(&weight)?;
        // Padding of either pass: the gradient of the input sees an output with as much room around it.
        let around = [0, 1].map(|axis| {
            out_size[axis]
                + 2 * ((kernel[axis] - 1) * dilation[axis] + padding[axis])
                + padded[axis]
        });
        elements(&[padded[0], padded[1], in_channels + 4 * groups])?;
        elements(&[around[0], around[1], out_channels + 4 * groups])?;
        let largest = in_channels.max(out_channels) + 4 * groups;
        let all = [batch, around[0].max(padded[0]), around[1].max(padded[1]), largest, 4];
        if all
            .iter()
            .try_fold(1_usize, |n, d| n.checked_mul(*d))
            .is_none_or(|n| n > isize::MAX as usize)
        {
            return Err(wrong("conv2d", format!("a batch of {batch} does not fit the memory")));
        }
        Ok(Self {
            batch,
            size: [height, width],
            out_size,
            in_channels,
            out_channels,
            kernel,
            window,
        })
    }

    /// The same on a smaller batch.
    ///
    /// # Panics
    /// If the batch is larger, whose sizes were not checked.
    #[must_use]
    pub fn with_batch(self, batch: usize) -> Self {
        assert!(batch <= self.batch, "a batch of {batch} of {}", self.batch);
        Self { batch, ..self }
    }

    /// `[batch, height, width, channels]` of the input.
    pub fn input(&self) -> [usize; 4] {
        [self.batch, self.size[0], self.size[1], self.in_channels]
    }

    /// `[out, in / groups, kernel height, kernel width]`.
    pub fn weight(&self) -> [usize; 4] {
        [self.out_channels, self.group_in(), self.kernel[0], self.kernel[1]]
    }

    /// `[batch, height, width, channels]` of the output.
    pub fn output(&self) -> [usize; 4] {
        [self.batch, self.out_size[0], self.out_size[1], self.out_channels]
    }

    /// How the kernel moves.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Products of one pass; those with padding are counted.
    pub fn products(&self) -> usize {
        let sizes = self.output().into_iter().chain([self.group_in()]).chain(self.kernel);
        sizes.fold(1, usize::saturating_mul)
    }

    pub(super) fn group_in(&self) -> usize {
        self.in_channels / self.window.groups
    }

    pub(super) fn group_out(&self) -> usize {
        self.out_channels / self.window.groups
    }
}
