//! Codes, values and bytes of every element, and weights as codes.

use std::collections::HashMap;

use scrimp_onnx::proto::TensorProto;
use scrimp_onnx::{Element, Layout, Packed, Sharing};

use super::{floats, parse, rows};

fn bytes(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn codes_values_and_bytes_are_those_of_onnx() {
    let mut seen = Vec::new();
    for row in rows(include_str!("../golden/elements.csv"), 6) {
        let [name, what, scale, zero, inputs, codes] = row[..] else { unreachable!() };
        let element = Element::named(name).unwrap();
        let codes: Vec<i32> = codes.split(' ').map(parse).collect();
        let (scale, zero): (f32, i32) = (parse(scale), parse(zero));
        match what {
            "codes" => {
                let inputs = floats(inputs);
                assert_eq!(inputs.len(), codes.len());
                for (&x, &code) in inputs.iter().zip(&codes) {
                    let ours = element.encode(x, scale, zero);
                    // A float has a zero of either sign; both are the same value.
                    let same = ours == code
                        || element.decode(ours, scale, zero) == element.decode(code, scale, zero);
                    assert!(same, "{name}, {scale}, {zero}: {x} is {ours}, not {code}");
                }
            }
            "values" => {
                for (value, &code) in floats(inputs).into_iter().zip(&codes) {
                    let ours = element.decode(code, scale, zero);
                    // Infinity and NaN are no value of a weight.
                    if value.is_finite() {
                        assert_eq!(ours.to_bits(), value.to_bits(), "{name}: {code}");
                    }
                }
            }
            "bytes" => {
                assert_eq!(element.pack(&codes), bytes(inputs), "{name}");
                assert_eq!(element.unpack(&bytes(inputs), codes.len()).unwrap(), codes, "{name}");
            }
            other => panic!("{other}"),
        }
        seen.push(name);
    }
    // ONNX has no int3; its codes are those of int4, the outermost left out.
    for name in Element::names().filter(|&name| name != "int3") {
        assert!(seen.contains(&name), "{name} is not in the golden file");
    }
}

#[test]
fn every_code_encodes_as_itself_and_survives_packing() {
    for name in Element::names() {
        let element = Element::named(name).expect(name);
        let all: Vec<i32> = match element.codes() {
            Some((low, high)) => (low..=high).collect(),
            None => (0..1 << element.bits()).collect(),
        };
        assert_eq!(element.levels(), all.len(), "{name}");
        assert_eq!(
            element.is_signed(),
            element.decode(all[0], 1.0, 0) < 0.0 || element.codes().is_none()
        );
        for &code in &all {
            let value = element.decode(code, 1.0, 0);
            if value.is_finite() && value.abs() <= element.reach().max(65536.0) {
                let again = element.encode(value, 1.0, 0);
                assert_eq!(element.decode(again, 1.0, 0), value, "{name}: {code}");
            }
        }
        for count in [0, 1, 2, 3, 5, all.len()] {
            let codes = &all[..count.min(all.len())];
            let packed = element.pack(codes);
            assert_eq!(packed.len(), element.kind.bytes(codes.len()).unwrap(), "{name}");
            assert_eq!(element.unpack(&packed, codes.len()).unwrap(), codes, "{name}");
            assert_eq!(element.unpack(&packed, codes.len() + 8), None, "{name}");
        }
    }
}

#[test]
fn a_fitted_grid_has_zero_and_reaches_both_ends() {
    for name in Element::names() {
        let element = Element::named(name).unwrap();
        for (min, max) in
            [(-1.0, 3.0), (0.5, 2.0), (-2.0, -0.5), (0.0, 0.0), (-1e-38, 1e-38), (-1e38, 1e38)]
        {
            for symmetric in [false, true] {
                let (scale, zero) = element.fit(min, max, symmetric);
                assert!(scale.is_finite() && scale > 0.0, "{name}: {min}..{max}: {scale}");
                assert_eq!(element.decode(element.encode(0.0, scale, zero), scale, zero), 0.0);
                // Half a step at an end, one more where the zero point was rounded; the steps of floats are wider there.
                let reached = |v: f32| {
                    let back = element.decode(element.encode(v, scale, zero), scale, zero);
                    let slack =
                        if element.codes().is_some() { 1.01 * scale } else { 0.2 * v.abs() };
                    (back - v).abs() <= slack
                };
                assert!(reached(min) && reached(max), "{name}: {min}..{max}, {symmetric}");
            }
        }
    }
    assert_eq!(Element::named("uint8").unwrap().fit(-1.0, 1.0, true), (1.0 / 127.0, 128));
    assert_eq!(Element::named("int8").unwrap().fit(-0.5, 0.25, true), (0.5 / 127.0, 0));
    // spec: x = {.1, -.4, 1.2} in u8 has the scale 1.6 / 255 and the zero point 64.
    let uint8 = Element::named("uint8").unwrap();
    let (scale, zero) = uint8.fit(-0.4, 1.2, false);
    assert!((scale - 0.006_274_5).abs() < 1e-7);
    assert_eq!(zero, 64);
    assert_eq!([0.1, -0.4, 1.2].map(|x| uint8.encode(x, scale, zero)), [80, 0, 255]);
}

/// The layouts of the layers that have weights: shape and axis of the rows.
fn layouts() -> Vec<(Vec<usize>, usize)> {
    vec![
        (vec![4, 3, 2, 5], 0), // Conv
        (vec![6, 1, 3], 0),    // Conv by channel, one axis
        (vec![7, 5], 0),       // Gemm, transposed
        (vec![7, 5], 1),       // Gemm, MatMul
        (vec![2, 7, 5], 2),    // MatMul in a batch
        (vec![3, 4, 2, 2], 1), // ConvTranspose
        (vec![2, 12, 5], 1),   // LSTM in two directions
        (vec![1, 1], 0),
    ]
}

#[test]
fn rows_are_the_elements_with_one_index_along_the_axis() {
    for (shape, axis) in layouts() {
        let count: usize = shape.iter().product();
        let layout = layout(&shape, axis);
        let values: Vec<usize> = (0..count).collect();
        let rows = layout.to_rows(&values);
        assert_eq!(layout.from_rows(&rows), values, "{shape:?}, {axis}");
        assert_eq!((layout.rows(), layout.row_len() * layout.rows()), (shape[axis], count));
        let inner: usize = shape[axis + 1..].iter().product();
        for (place, &at) in rows.iter().enumerate() {
            assert_eq!(at / inner % shape[axis], place / layout.row_len(), "{shape:?}, {axis}");
        }
        assert!(rows.chunks(layout.row_len()).all(<[usize]>::is_sorted));
        let mut floats = vec![0.0; count];
        layout.for_each_mut(&mut floats, |row, v| *v = row as f32);
        assert!(floats.iter().enumerate().all(|(at, &v)| v == (at / inner % shape[axis]) as f32));
    }
}

fn layout(shape: &[usize], axis: usize) -> Layout {
    Layout { shape: shape.to_vec(), axis }
}

/// Every index of a shape, in storage order.
fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    shape.iter().fold(vec![Vec::new()], |all, &size| {
        all.into_iter()
            .flat_map(|index| (0..size).map(move |at| [index.clone(), vec![at]].concat()))
            .collect()
    })
}

#[test]
fn groups_are_those_of_dequantize_linear() {
    for (shape, _) in layouts() {
        let all = indices(&shape);
        let mut sharings = vec![Sharing::Tensor];
        for axis in 0..shape.len() {
            sharings.push(Sharing::Axis(axis));
            // Whole blocks, a ragged last one, and a block that is longer than the axis.
            sharings.extend([1, 2, 3, 100].map(|len| Sharing::Blocks { axis, len }));
        }
        for sharing in sharings {
            let scales = sharing.scale_shape(&shape);
            let places = indices(&scales);
            let group = sharing.groups(&shape);
            for (at, index) in all.iter().enumerate() {
                let wanted = match sharing {
                    Sharing::Tensor => Vec::new(),
                    Sharing::Axis(axis) => vec![index[axis]],
                    Sharing::Blocks { axis, len } => {
                        let mut place = index.clone();
                        place[axis] /= len;
                        place
                    }
                };
                assert_eq!(places[group(at)], wanted, "{shape:?}, {sharing:?}, {index:?}");
            }
        }
    }
}

#[test]
fn what_is_written_is_read_again() {
    for name in Element::names() {
        let element = Element::named(name).unwrap();
        for (shape, axis) in layouts() {
            let count: usize = shape.iter().product();
            for sharing in [
                Sharing::Tensor,
                Sharing::Axis(axis),
                Sharing::Blocks { axis: usize::from(axis == 0), len: 2 },
            ] {
                let scales: usize = sharing.scale_shape(&shape).iter().product();
                for zeros in [false, true] {
                    let code = |at: usize| {
                        let (low, high) = element.codes().unwrap_or((0, 5));
                        low + i32::try_from(at * 7).unwrap() % (high - low + 1)
                    };
                    let packed = Packed {
                        element: element.clone(),
                        shape: shape.clone(),
                        sharing,
                        scales: (0..scales).map(|at| 0.5 + at as f32).collect(),
                        powers: false,
                        zeros: if zeros && element.codes().is_some() {
                            (0..scales).map(code).collect()
                        } else {
                            Vec::new()
                        },
                        codes: (0..count).map(code).collect(),
                    };
                    let (nodes, constants) = packed.write("y", ["c", "s", "z"]);
                    let known: HashMap<String, TensorProto> =
                        constants.into_iter().map(|t| (t.name().to_owned(), t)).collect();
                    let again = Packed::read(&nodes[0], &known).unwrap().unwrap();
                    let what = format!("{name}, {shape:?}, {sharing:?}");
                    assert_eq!(again.values(), packed.values(), "{what}");
                    assert_eq!(
                        (&again.codes, &again.scales),
                        (&packed.codes, &packed.scales),
                        "{what}"
                    );
                    assert_eq!(
                        (&again.zeros, &again.shape),
                        (&packed.zeros, &packed.shape),
                        "{what}"
                    );
                    let stored: usize =
                        known.values().map(|t| t.raw_data.as_ref().unwrap().len()).sum();
                    assert_eq!(stored, packed.bytes(), "{what}");
                }
            }
        }
    }
}

#[test]
fn codes_that_contradict_their_shape_are_refused() {
    let packed = Packed {
        element: Element::named("int4").unwrap(),
        shape: vec![3, 5],
        sharing: Sharing::Blocks { axis: 1, len: 2 },
        scales: vec![1.0; 9],
        powers: false,
        zeros: Vec::new(),
        codes: vec![1; 15],
    };
    let (nodes, constants) = packed.write("y", ["c", "s", "z"]);
    let node = &nodes[0];
    let read = |change: &dyn Fn(&mut HashMap<String, TensorProto>)| {
        let mut known: HashMap<String, TensorProto> =
            constants.iter().map(|t| (t.name().to_owned(), t.clone())).collect();
        change(&mut known);
        Packed::read(node, &known).map(|found| found.is_some()).map_err(|e| e.to_string())
    };
    assert_eq!(read(&|_| {}), Ok(true));
    assert_eq!(read(&|known| drop(known.remove("s"))), Ok(false));
    let shape = |dims: &'static [i64]| {
        move |known: &mut HashMap<String, TensorProto>| {
            known.get_mut("c").unwrap().dims = dims.to_vec();
        }
    };
    assert_eq!(
        read(&shape(&[3, 50])),
        Err("tensor `c`: its scales do not fit the shape [3, 50]".into())
    );
    assert_eq!(
        read(&shape(&[17, 1])),
        Err("tensor `c`: its scales do not fit the shape [17, 1]".into())
    );
    assert_eq!(read(&shape(&[3, -5])), Err("tensor `c`: impossible shape [3, -5]".into()));
    for dims in [&[1i64 << 40, 1 << 40][..], &[3, 1 << 62, 1 << 62], &[15]] {
        let dims: &'static [i64] = Vec::leak(dims.to_vec());
        assert!(read(&shape(dims)).is_err(), "{dims:?}");
    }
}
