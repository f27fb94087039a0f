use half::bf16;
use proptest::prelude::*;

use super::{
    Conv2dShape, Window, forward_at, input_gradient_at, reference, weight_gradient,
    weight_gradient_at,
};
use crate::gemm::testing::{Draws, TestElement, assert_near};
use crate::{KernelError, Kind, Level, Operand, Scale};

fn shape(input: [usize; 4], weight: [usize; 4], window: Window) -> Conv2dShape {
    Conv2dShape::new(input, weight, window).unwrap()
}

/// All passes of one shape and kind, at every level.
fn check<T: TestElement>(shape: &Conv2dShape, seed: u64) {
    let mut draws = Draws::new(seed);
    let len = |sizes: [usize; 4]| sizes.iter().product::<usize>();
    let x = T::many(&mut draws, len(shape.input()));
    let w = T::many(&mut draws, len(shape.weight()));
    let dy = T::many(&mut draws, len(shape.output()));
    let bias = draws.floats(shape.out_channels);
    let (outs, ins) = (draws.floats(shape.out_channels), draws.floats(shape.in_channels));
    let [x, w, dy] = [&x, &w, &dy].map(Vec::as_slice);
    let per_image = shape.out_size[0] * shape.out_size[1];
    let taps = shape.kernel[0] * shape.kernel[1];
    let expected = [
        reference::forward(x, w, shape),
        reference::input_gradient(dy, w, shape),
        reference::weight_gradient(x, dy, shape),
    ];
    for level in Level::available() {
        let case = format!("{} {} {shape:?}", T::KIND.name(), level.name());
        let mut y = vec![f32::NAN; dy.len()];
        let scale = Scale::Channel(&outs);
        let (xo, wo, dyo) = (T::operand(x), T::operand(w), T::operand(dy));
        forward_at(level, shape, xo, wo, scale, Some(&bias), &mut y).unwrap();
        let terms = shape.group_in() * taps;
        let channel = |i| i % shape.out_channels;
        assert_near::<T>(
            &y,
            &expected[0],
            terms,
            scale,
            Some(&bias),
            channel,
            &format!("y {case}"),
        );

        let mut dx = vec![f32::NAN; x.len()];
        let scale = Scale::Channel(&ins);
        input_gradient_at(level, shape, dyo, wo, scale, &mut dx).unwrap();
        let terms = shape.group_out() * taps;
        let channel = |i| i % shape.in_channels;
        assert_near::<T>(&dx, &expected[1], terms, scale, None, channel, &format!("dx {case}"));

        let mut dw = vec![f32::NAN; w.len()];
        let scale = Scale::Channel(&outs);
        weight_gradient_at(level, shape, xo, dyo, scale, &mut dw).unwrap();
        let terms = shape.batch * per_image;
        let channel = |i| i / (w.len() / shape.out_channels);
        assert_near::<T>(&dw, &expected[2], terms, scale, None, channel, &format!("dw {case}"));
    }
}

fn check_all(input: [usize; 4], weight: [usize; 4], window: Window) {
    let shape = shape(input, weight, window);
    check::<f32>(&shape, 1);
    check::<bf16>(&shape, 2);
    check::<i8>(&shape, 3);
}

#[test]
fn channels_of_any_number() {
    for channels in [1, 3, 5, 8, 16, 17, 31, 33, 64] {
        for outs in [1, 6, 16, 17, 33] {
            let window = Window { padding: [1; 2], ..Window::default() };
            check_all([2, 5, 4, channels], [outs, channels, 3, 3], window);
        }
    }
}

#[test]
fn batches_of_any_number() {
    let window = Window { padding: [1; 2], ..Window::default() };
    for batch in [0, 1, 2, 3, 4, 5, 9, 33] {
        check_all([batch, 6, 5, 8], [16, 8, 3, 3], window);
        check_all([batch, 3, 3, 3], [5, 3, 2, 2], window);
    }
}

#[test]
fn every_window() {
    for kernel in [[1, 1], [2, 2], [3, 3], [5, 5], [1, 3], [4, 2]] {
        for stride in [[1, 1], [2, 2], [3, 3], [1, 2]] {
            for padding in [[0, 0], [1, 1], [2, 2], [0, 3]] {
                for dilation in [[1, 1], [2, 2], [1, 3]] {
                    let window = Window { stride, padding, dilation, groups: 1 };
                    let [kh, kw] = kernel;
                    let fits = |a: usize, size: usize| {
                        (kernel[a] - 1) * dilation[a] < size + 2 * padding[a]
                    };
                    if fits(0, 7) && fits(1, 6) {
                        check_all([2, 7, 6, 8], [5, 8, kh, kw], window);
                        check_all([1, 7, 6, 2], [2, 2, kh, kw], window);
                    }
                }
            }
        }
    }
}

#[test]
fn groups_and_depthwise() {
    for (channels, outs, groups) in [
        (4, 6, 2),
        (16, 16, 2),
        (6, 6, 6),
        (40, 40, 40),
        (5, 10, 5),
        (17, 17, 17),
        (34, 17, 17),
        (64, 64, 4),
    ] {
        for stride in [1, 2] {
            let window =
                Window { stride: [stride; 2], padding: [1; 2], groups, ..Window::default() };
            check_all([3, 6, 7, channels], [outs, channels / groups, 3, 3], window);
        }
    }
}

#[test]
fn one_pixel_and_one_line() {
    check_all([3, 1, 1, 5], [7, 5, 1, 1], Window::default());
    check_all([2, 1, 40, 3], [4, 3, 1, 5], Window { padding: [0, 2], ..Window::default() });
    check_all([2, 40, 1, 3], [4, 3, 5, 1], Window { stride: [3, 1], ..Window::default() });
    // All that the kernel sees but its middle is padding.
    check_all([2, 1, 1, 8], [8, 8, 3, 3], Window { padding: [1; 2], ..Window::default() });
    check_all([1, 2, 2, 4], [4, 4, 1, 1], Window { padding: [3; 2], ..Window::default() });
    check_all([2, 9, 9, 8], [8, 8, 2, 2], Window { stride: [7, 40], ..Window::default() });
}

#[test]
fn reductions_longer_than_a_block() {
    check_all([4, 4, 4, 130], [34, 130, 3, 3], Window { padding: [1; 2], ..Window::default() });
    check_all([5, 3, 4, 256], [64, 256, 3, 3], Window { padding: [1; 2], ..Window::default() });
    check_all([2, 40, 40, 3], [4, 3, 3, 3], Window { padding: [1; 2], ..Window::default() });
}

#[test]
fn extreme_codes_are_exact() {
    let shape =
        shape([4, 8, 8, 64], [32, 64, 3, 3], Window { padding: [1; 2], ..Window::default() });
    let len = |sizes: [usize; 4]| sizes.iter().product::<usize>();
    for (a, b) in [(127, 127), (-128, -128), (-128, 127), (127, -128)] {
        let (x, w, dy) = (
            vec![a; len(shape.input())],
            vec![b; len(shape.weight())],
            vec![b; len(shape.output())],
        );
        for level in Level::available() {
            let mut y = vec![0.0; dy.len()];
            let (xo, wo, dyo) = (Operand::Int8(&x), Operand::Int8(&w), Operand::Int8(&dy));
            forward_at(level, &shape, xo, wo, Scale::Tensor(1.0), None, &mut y).unwrap();
            let expected = reference::forward(&x, &w, &shape);
            assert!(
                y.iter().zip(&expected).all(|(y, e)| f64::from(*y) == e[0]),
                "{}",
                level.name()
            );
            let mut dw = vec![0.0; w.len()];
            weight_gradient_at(level, &shape, xo, dyo, Scale::Tensor(1.0), &mut dw).unwrap();
            let expected = reference::weight_gradient(&x, &dy, &shape);
            assert!(dw.iter().zip(&expected).all(|(y, e)| f64::from(*y) == e[0]));
        }
    }
}

#[test]
fn sums_of_a_weight_gradient_may_be_longer_than_32_bits() {
    // Two outputs of 70000 positions in each of five images, all products 127 * 127.
    let shape = shape([5, 250, 280, 1], [2, 1, 1, 1], Window::default());
    let (x, dy) = (vec![127_i8; 350_000], vec![127_i8; 700_000]);
    for level in Level::available() {
        let mut dw = [0.0; 2];
        let (x, dy) = (Operand::Int8(&x), Operand::Int8(&dy));
        weight_gradient_at(level, &shape, x, dy, Scale::Tensor(1.0), &mut dw).unwrap();
        let exact = 350_000_i64 * 127 * 127;
        assert_eq!(dw, [exact as f32; 2], "{}", level.name());
    }
}

#[test]
fn few_channels_of_pixels_beside_each_other() {
    for (width, channels, outs, kernel) in
        [(28, 1, 6, 5), (14, 16, 6, 5), (12, 3, 1, 3), (10, 2, 8, 3), (9, 2, 5, 2), (8, 5, 4, 1)]
    {
        for (stride, dilation) in [(1, 1), (2, 1), (1, 2)] {
            let window = Window {
                stride: [stride; 2],
                padding: [kernel / 2; 2],
                dilation: [dilation; 2],
                groups: 1,
            };
            check_all([3, 9, width, channels], [outs, channels, kernel, kernel], window);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    fn passes<T: TestElement>(shape: &Conv2dShape, threads: usize) -> Vec<u32> {
        let len = |sizes: [usize; 4]| sizes.iter().product::<usize>();
        let mut draws = Draws::new(9);
        let x = T::many(&mut draws, len(shape.input()));
        let w = T::many(&mut draws, len(shape.weight()));
        let dy = T::many(&mut draws, len(shape.output()));
        let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
        let (x, w, dy) = (T::operand(&x), T::operand(&w), T::operand(&dy));
        let scale = Scale::Tensor(0.3);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            super::forward(shape, x, w, scale, None, &mut y).unwrap();
            super::input_gradient(shape, dy, w, scale, &mut dx).unwrap();
            weight_gradient(shape, x, dy, scale, &mut dw).unwrap();
        });
        [y, dx, dw].concat().into_iter().map(f32::to_bits).collect()
    }
    let padding = Window { padding: [1; 2], ..Window::default() };
    for shape in [
        shape([6, 12, 12, 3], [6, 3, 3, 3], padding),
        shape([5, 9, 9, 32], [48, 32, 3, 3], Window { stride: [2; 2], ..padding }),
        shape([8, 20, 20, 1], [6, 1, 5, 5], padding),
    ] {
        let one = [passes::<f32>(&shape, 1), passes::<bf16>(&shape, 1), passes::<i8>(&shape, 1)];
        for threads in [2, 3] {
            assert!(one[0] == passes::<f32>(&shape, threads), "{shape:?}");
            assert!(one[1] == passes::<bf16>(&shape, threads), "{shape:?}");
            assert!(one[2] == passes::<i8>(&shape, threads), "{shape:?}");
        }
    }
}

#[test]
fn slices_at_any_address() {
    let shape = shape([3, 5, 5, 5], [7, 5, 3, 3], Window::default());
    let mut draws = Draws::new(4);
    let len = |sizes: [usize; 4]| sizes.iter().product::<usize>();
    let x = i8::many(&mut draws, len(shape.input()) + 3);
    let w = i8::many(&mut draws, len(shape.weight()) + 1);
    let mut y = vec![0.0; len(shape.output()) + 1];
    let expected = reference::forward(&x[3..], &w[1..], &shape);
    for level in Level::available() {
        let (x, w) = (Operand::Int8(&x[3..]), Operand::Int8(&w[1..]));
        forward_at(level, &shape, x, w, Scale::Tensor(1.0), None, &mut y[1..]).unwrap();
        assert!(y[1..].iter().zip(&expected).all(|(y, e)| f64::from(*y) == e[0]));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let window = Window::default();
    let shape = shape([1, 4, 4, 2], [3, 2, 3, 3], window);
    let (x, w, mut y) = ([0.0; 32], [0.0; 54], [0.0; 12]);
    let scale = Scale::Tensor(1.0);
    let run = |x, w, y: &mut [f32]| super::forward(&shape, x, w, scale, None, y);
    run(Operand::F32(&x), Operand::F32(&w), &mut y).unwrap();
    assert_eq!(
        run(Operand::F32(&x[1..]), Operand::F32(&w), &mut y).unwrap_err().to_string(),
        "x has 31 elements, and shape [1, 4, 4, 2] needs 32"
    );
    assert!(run(Operand::F32(&x), Operand::F32(&w), &mut y[1..]).is_err());
    assert_eq!(
        run(Operand::F32(&x), Operand::Int8(&[0; 54]), &mut y).unwrap_err(),
        KernelError::Kinds { left: Kind::F32.name(), right: Kind::Int8.name() }
    );
    let scale = Scale::Channel(&[1.0; 2]);
    assert!(
        super::forward(&shape, Operand::F32(&x), Operand::F32(&w), scale, None, &mut y).is_err()
    );

    let refused = |input, weight, window| Conv2dShape::new(input, weight, window).is_err();
    assert!(refused([1, 4, 4, 0], [3, 0, 3, 3], window));
    assert!(refused([1, 0, 4, 2], [3, 2, 3, 3], window));
    assert!(refused([1, 4, 4, 2], [3, 2, 0, 3], window));
    assert!(refused([1, 2, 4, 2], [3, 2, 3, 3], window));
    assert!(refused([1, 4, 4, 2], [3, 1, 3, 3], window));
    assert!(refused([1, 4, 4, 3], [3, 1, 3, 3], Window { groups: 2, ..window }));
    assert!(refused([usize::MAX, 4, 4, 2], [3, 2, 3, 3], window));
    for huge in [usize::MAX, usize::MAX / 2, 1 << 40] {
        assert!(refused([1, 4, 4, 2], [3, 2, 3, 3], Window { padding: [huge; 2], ..window }));
        assert!(refused([1, 4, 4, 2], [3, 2, 3, 3], Window { dilation: [huge; 2], ..window }));
        assert!(refused([1, 4, 4, 2], [3, 2, 3, 3], Window { stride: [huge; 2], ..window }));
        assert!(refused([1, huge, 4, 2], [3, 2, 3, 3], window));
        assert!(refused([1, 4, 4, huge], [3, huge, 3, 3], window));
    }
}

#[test]
fn sums_that_may_not_fit_are_refused() {
    let shape = shape([1, 1, 1, 133_145], [1, 133_145, 1, 1], Window::default());
    let x = vec![0; 133_145];
    let x = Operand::Int8(&x);
    assert!(super::forward(&shape, x, x, Scale::Tensor(1.0), None, &mut [0.0]).is_err());
}

/// An axis that fits: size, kernel, stride, padding, dilation. Padding may be wider than the image, and steps too.
fn any_axis() -> impl Strategy<Value = [usize; 5]> {
    (0..6_usize, 1..5_usize, 1..5_usize, 0..5_usize, 1..4_usize).prop_map(
        |(room, kernel, stride, padding, dilation)| {
            let reach = (kernel - 1) * dilation + 1;
            [reach.saturating_sub(2 * padding).max(1) + room, kernel, stride, padding, dilation]
        },
    )
}

fn any_shape() -> impl Strategy<Value = ([usize; 4], [usize; 4], Window)> {
    let channels = (1..4_usize, 1..20_usize, 1..36_usize, any::<bool>());
    (0..6_usize, channels, any_axis(), any_axis()).prop_map(
        |(batch, (groups, per_group, outs, is_depthwise), down, across)| {
            let (groups, per_group, outs) =
                if is_depthwise { (per_group, 1, 1) } else { (groups, per_group, outs) };
            let pair = |i: usize| [down[i], across[i]];
            let window = Window { stride: pair(2), padding: pair(3), dilation: pair(4), groups };
            let input = [batch, down[0], across[0], groups * per_group];
            (input, [groups * outs, per_group, down[1], across[1]], window)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_small_convolution_is_its_definition((input, weight, window) in any_shape()) {
        check_all(input, weight, window);
    }
}
