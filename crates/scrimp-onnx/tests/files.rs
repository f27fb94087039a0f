//! Model files are written as they were read, whatever their bytes; graphs are changed without a value being confused
//! with another.

#![expect(clippy::print_stdout, reason = "a test may say why it skips")]

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use scrimp_onnx::proto::{
    AttributeProto, GraphProto, NodeProto, SparseTensorProto, StringStringEntryProto, TensorProto,
    ValueInfoProto,
};
use scrimp_onnx::{DataType, Model, OnnxError, upgrade_opset};

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    (0..hex.len()).step_by(2).map(digit).collect()
}

/// The rows of a golden file, without its head.
fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    lines.map(|line| line.split(',').collect())
}

/// Small models by their names, which Python wrote.
fn small_models() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    rows(include_str!("golden/opsets.csv")).map(|fields| (fields[0], bytes(fields[3])))
}

fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("SCRIMP_DATA").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: SCRIMP_DATA is not set");
    }
    folder
}

fn value(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.into()), ..Default::default() }
}

fn graph(inputs: &[&str], nodes: Vec<NodeProto>, outputs: &[&str]) -> GraphProto {
    GraphProto {
        input: inputs.iter().map(|name| value(name)).collect(),
        node: nodes,
        output: outputs.iter().map(|name| value(name)).collect(),
        ..Default::default()
    }
}

fn node(name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto::call("Sum", name, inputs, outputs)
}

/// A node with a graph inside of it.
fn around(name: &str, inside: GraphProto, outputs: &[&str]) -> NodeProto {
    let mut node = NodeProto::call("Loop", name, &[], outputs);
    node.set(AttributeProto::of_graph("body", inside));
    node
}

fn labels(graph: &GraphProto) -> Vec<&str> {
    graph.node.iter().map(NodeProto::label).collect()
}

#[test]
fn small_models_are_written_byte_for_byte() {
    for (name, bytes) in small_models() {
        assert_eq!(Model::parse(bytes.clone()).expect(name).to_bytes(), bytes, "{name}");
    }
}

#[test]
fn real_models_are_written_byte_for_byte() {
    let Some(data) = data() else { return };
    let folders = [data.join("models"), data.join("models/silero")];
    let files = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let files = files.map(|entry| entry.expect("an entry").path());
    let mut found = 0;
    for path in files.filter(|path| path.extension().is_some_and(|e| e == "onnx")) {
        let bytes = fs::read(&path).expect("a file");
        let model = Model::parse(bytes.clone()).expect("a model");
        assert!(model.to_bytes() == bytes, "{}", path.display());
        found += 1;
    }
    assert!(found > 0, "no model under {}", data.display());
}

#[test]
fn a_model_cut_off_anywhere_is_refused_or_valid() {
    let nested = ["scan_8", "if_7", "loop_1", "function_11", "resize_10_both"];
    for (name, bytes) in small_models().filter(|(name, _)| nested.contains(name)) {
        let mut refused = 0;
        for length in 0..bytes.len() {
            match Model::parse(bytes[..length].to_vec()) {
                Ok(mut model) => {
                    assert_eq!(model.to_bytes(), bytes[..length], "{name}");
                    // Whatever comes of it, it must be an answer.
                    let _ = model.graph_mut().sort();
                    let _ = upgrade_opset(&mut model, 17);
                }
                Err(_) => refused += 1,
            }
        }
        assert!(refused > bytes.len() * 9 / 10, "{name}: {refused} of {}", bytes.len());
    }
}

#[test]
fn bytes_that_no_field_holds_are_refused_wherever_they_are() {
    // Field 99 with the number 7, in the model and then in its first node.
    let unknown = [0x98, 0x06, 0x07];
    let (_, bytes) = small_models().next().expect("a model");
    let mut longer = bytes.clone();
    longer.extend(unknown);
    let error = Model::parse(longer).expect_err("an unknown field");
    assert!(matches!(error, OnnxError::UnknownFields { bytes: 3 }), "{error}");

    let proto = Model::parse(bytes).expect("a model").proto;
    let graph = proto.graph.clone().expect("a graph");
    let mut first = graph.node[0].encode_to_vec();
    first.extend(unknown);
    let mut inner = vec![0x0a];
    prost::encode_length_delimiter(first.len(), &mut inner).expect("memory");
    inner.extend(first);
    let mut outer = vec![0x3a];
    prost::encode_length_delimiter(inner.len(), &mut outer).expect("memory");
    outer.extend(inner);
    let error = Model::parse(outer).expect_err("an unknown field");
    assert!(matches!(error, OnnxError::UnknownFields { bytes: 3 }), "{error}");
}

#[test]
fn bytes_without_a_graph_are_no_model() {
    for bytes in [&b""[..], b"\x08\x08", b"PK\x03\x04 something else", &[0xff; 64]] {
        let error = Model::parse(bytes.to_vec()).expect_err("no model");
        assert!(matches!(error, OnnxError::NotOnnx { .. }), "{error}");
    }
}

#[test]
fn graphs_nested_without_end_are_refused() {
    // A graph of a node with an attribute that is such a graph, and so on.
    let mut bytes = Vec::new();
    for _ in 0..2000 {
        for tag in [0x32, 0x2a, 0x0a] {
            let mut outer = vec![tag];
            prost::encode_length_delimiter(bytes.len(), &mut outer).expect("memory");
            outer.append(&mut bytes);
            bytes = outer;
        }
    }
    let mut model = vec![0x3a];
    prost::encode_length_delimiter(bytes.len(), &mut model).expect("memory");
    model.extend(bytes);
    let said = Model::parse(model).expect_err("it is too deep").to_string();
    assert!(said.contains("recursion limit reached"), "{said}");
}

fn large(name: &str, first: u8, elems: usize) -> TensorProto {
    let raw = (0..elems).map(|i| first.wrapping_add(i.to_le_bytes()[0])).collect();
    TensorProto::from_raw(name, DataType::Uint8, &[elems], raw)
}

/// A model with two large constants and a small one, one of them in a graph within.
fn with_constants() -> Model {
    let mut inside = graph(&[], vec![node("inner", &["v", "w"], &["i"])], &["i"]);
    inside.initializer.push(large("v", 3, 6000));
    let mut outside = graph(&["x"], vec![around("loop", inside, &["y"])], &["y"]);
    outside.initializer = vec![large("w", 1, 5000), large("small", 2, 10)];
    Model::new(outside, 17, 8)
}

fn external<'a>(tensor: &'a TensorProto, key: &str) -> &'a str {
    let entry = tensor.external_data.iter().find(|entry| entry.key() == key);
    entry.map_or("", StringStringEntryProto::value)
}

#[test]
fn values_in_another_file_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    let model = with_constants();
    let bytes = model.save_external(&path, 1024).expect("it is written");
    let data = fs::metadata(folder.path().join("m.onnx.data")).expect("a file").len();
    assert_eq!(bytes, data + fs::metadata(&path).expect("a file").len());

    let mut read = Model::open(&path).expect("a model");
    let outer = &read.graph().initializer;
    let inner = &read.graph().node[0].subgraphs().next().expect("a graph").initializer;
    assert!(outer[0].is_external() && inner[0].is_external() && !outer[1].is_external());
    for (tensor, length) in [(&outer[0], "5000"), (&inner[0], "6000")] {
        assert_eq!(external(tensor, "location"), "m.onnx.data");
        assert_eq!(external(tensor, "length"), length);
        assert_eq!(external(tensor, "offset").parse::<u64>().expect("a number") % 4096, 0);
    }
    assert!(outer[0].to_i64().expect_err("not here").to_string().contains("were not read"));
    read.load_external().expect("the values");
    assert_eq!(read.proto, model.proto);
}

#[test]
fn a_model_with_values_elsewhere_is_saved_over_itself_and_moved() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    let model = with_constants();
    model.save_external(&path, 1024).expect("it is written");
    Model::open(&path).expect("a model").save(&path).expect("it is written again");
    fs::create_dir(folder.path().join("other")).expect("a folder");
    let moved = folder.path().join("other/n.onnx");
    Model::open(&path).expect("a model").save(&moved).expect("it is written elsewhere");
    for path in [path, moved] {
        let mut read = Model::open(&path).expect("a model");
        assert!(read.graph().initializer[0].is_external());
        read.load_external().expect("the values");
        assert_eq!(read.proto, model.proto);
    }
}

/// What is said of a constant of 10 bytes whose values lie where these entries say; `data` has 16 bytes, `few` has 4.
fn external_error(folder: &Path, entries: &[(&str, &str)]) -> String {
    let mut tensor = large("w", 0, 10);
    tensor.raw_data = None;
    tensor.data_location = Some(1);
    let entry = |&(key, value): &(&str, &str)| StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
    };
    tensor.external_data = entries.iter().map(entry).collect();
    let mut graph = graph(&["x"], vec![node("a", &["x", "w"], &["y"])], &["y"]);
    graph.initializer.push(tensor);
    let path = folder.join("m.onnx");
    fs::write(&path, Model::new(graph, 17, 8).to_bytes()).expect("a file");
    let mut model = Model::open(&path).expect("a model");
    let before = model.proto.clone();
    let error = model.load_external().expect_err("the values cannot be read");
    assert_eq!(model.proto, before);
    // Nor are they when the model is saved, and then nothing is written.
    let copy = folder.join("copy.onnx");
    assert_eq!(
        model.save(&copy).expect_err("the values cannot be read").to_string(),
        error.to_string()
    );
    assert!(!copy.exists() && !folder.join("copy.onnx.data").exists());
    error.to_string()
}

#[test]
fn values_elsewhere_are_read_from_whole_files_of_the_folder_alone() {
    let parent = tempfile::tempdir().expect("a folder");
    fs::write(parent.path().join("secret"), [1; 16]).expect("a file");
    let folder = parent.path().join("model");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("data"), [2; 16]).expect("a file");
    fs::write(folder.join("few"), [2; 4]).expect("a file");
    fs::create_dir(folder.join("inner")).expect("a folder");
    let absolute = parent.path().join("secret").to_str().expect("text").to_owned();
    for (entries, reason) in [
        (vec![("location", "../secret")], "lies outside the folder of the model"),
        (vec![("location", "inner/../../secret")], "lies outside the folder of the model"),
        (vec![("location", absolute.as_str())], "lies outside the folder of the model"),
        (vec![("location", "nothing")], "cannot read"),
        (vec![("location", "inner")], "is not a file"),
        (vec![("location", "")], "is not a file"),
        (vec![("offset", "0")], "external data without a location"),
        (vec![("location", "few")], "4 bytes of external data for shape [10]"),
        (vec![("location", "few"), ("length", "10")], "has 4 bytes; 10 from 0 are asked for"),
        (vec![("location", "data")], "16 bytes of external data for shape [10]"),
        (
            vec![("location", "data"), ("offset", "7"), ("length", "10")],
            "has 16 bytes; 10 from 7 are asked for",
        ),
        (vec![("location", "data"), ("offset", "17")], "has 16 bytes; 0 from 17 are asked for"),
        (vec![("location", "data"), ("offset", "-1")], "has the offset `-1`, not a number"),
        (vec![("location", "data"), ("length", "ten")], "has the length `ten`, not a number"),
        (
            vec![("location", "data"), ("offset", "18446744073709551615"), ("length", "10")],
            "10 from 18446744073709551615 are asked for",
        ),
    ] {
        let said = external_error(&folder, &entries);
        assert!(said.contains(reason), "{entries:?}: {said}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../secret", folder.join("link")).expect("a link");
        std::os::unix::fs::symlink("..", folder.join("up")).expect("a link");
        for location in ["link", "up/secret"] {
            let said = external_error(&folder, &[("location", location), ("length", "10")]);
            assert!(said.contains("leads outside the folder of the model"), "{said}");
        }
    }
}

#[test]
fn integers_and_floats_are_what_python_reads() {
    let mut checked = 0;
    for fields in rows(include_str!("golden/tensors.csv")) {
        let [kind, held, _, tensor, values] = fields[..] else { panic!("five fields") };
        let tensor = TensorProto::decode(&*bytes(tensor)).expect("a tensor");
        let texts = values.split(' ');
        if ["float16", "bfloat16", "float", "double"].contains(&kind) {
            let bits = |text| u32::from_str_radix(text, 16).expect("hexadecimal digits");
            let found: Vec<u32> =
                tensor.to_f32().expect(kind).iter().map(|v| v.to_bits()).collect();
            assert_eq!(found, texts.map(bits).collect::<Vec<_>>(), "{kind} {held}");
            tensor.to_i64().expect_err("no integers");
        } else {
            let found = tensor.to_i64().expect(kind);
            assert_eq!(
                found,
                texts.map(|t| t.parse().expect("a number")).collect::<Vec<i64>>(),
                "{kind} {held}"
            );
            tensor.to_f32().expect_err("no floats");
        }
        checked += 1;
    }
    assert_eq!(checked, 58);
}

#[test]
fn tensors_that_contradict_themselves_are_refused() {
    let raw = |kind, dims: &[i64], bytes: &[u8]| {
        let tensor = TensorProto::from_raw("t", kind, &[], bytes.to_vec());
        TensorProto { dims: dims.to_vec(), ..tensor }
    };
    let typed = |kind: DataType, numbers: &[i32]| TensorProto {
        name: Some("t".into()),
        data_type: Some(kind as i32),
        dims: vec![i64::try_from(numbers.len()).expect("few")],
        int32_data: numbers.to_vec(),
        ..Default::default()
    };
    for (tensor, reason) in [
        (raw(DataType::Int32, &[2], &[0; 7]), "7 bytes are no whole number of 4-byte values"),
        (raw(DataType::Int32, &[3], &[0; 8]), "2 values for shape [3]"),
        (raw(DataType::Int32, &[i64::MAX, i64::MAX, 4], &[0; 8]), "2 values for shape"),
        (raw(DataType::Int32, &[-2], &[0; 8]), "2 values for shape [-2]"),
        (raw(DataType::Int4, &[5], &[0; 2]), "2 bytes of 4-bit values for shape [5]"),
        (raw(DataType::Uint4, &[i64::MAX], &[0; 2]), "2 bytes of 4-bit values for shape"),
        (raw(DataType::Uint64, &[1], &[0xff; 8]), "a value is beyond 64 bits with a sign"),
        (raw(DataType::String, &[1], &[0; 8]), "string where an integer is expected"),
        (typed(DataType::Uint8, &[256]), "a value is beyond 0..=255"),
        (typed(DataType::Int8, &[-129]), "a value is beyond -128..=127"),
        (typed(DataType::Int4, &[-1]), "a value is beyond a byte"),
    ] {
        let said = tensor.to_i64().expect_err("it is refused").to_string();
        assert_eq!(
            said.strip_prefix("tensor `t`: ").map(|s| s.starts_with(reason)),
            Some(true),
            "{said}"
        );
    }
    let none = TensorProto { data_type: Some(77), ..Default::default() };
    assert_eq!(
        none.to_f32().expect_err("no type").to_string(),
        "tensor ``: type 77 where a float is expected"
    );
}

#[test]
fn nodes_are_sorted_by_what_they_read_and_else_stay() {
    let mut sorted =
        graph(&["x"], vec![node("a", &["x"], &["1"]), node("b", &["x"], &["2"])], &["2"]);
    sorted.sort().expect("no cycle");
    assert_eq!(labels(&sorted), ["a", "b"]);

    // `c` reads `1` only in a graph within, where `x` is another value than that of node `d`.
    let inside = graph(&["x"], vec![node("inner", &["x", "1"], &["i"])], &["i"]);
    let nodes = vec![
        around("c", inside, &["3"]),
        node("b", &["1"], &["2"]),
        node("a", &[], &["1"]),
        node("d", &["3"], &["x"]),
    ];
    let mut graph = graph(&[], nodes, &["2"]);
    graph.sort().expect("no cycle");
    assert_eq!(labels(&graph), ["a", "c", "b", "d"]);
}

#[test]
fn a_cycle_is_named() {
    let mut cycle = graph(
        &["x"],
        vec![node("a", &["x"], &["1"]), node("b", &["1", "3"], &["2"]), node("c", &["2"], &["3"])],
        &["3"],
    );
    let before = cycle.clone();
    let said = cycle.sort().expect_err("a cycle").to_string();
    assert_eq!(said, "node `b` needs its own output: the graph has a cycle");
    assert_eq!(cycle, before);

    let inside = graph(&[], vec![node("inner", &["1"], &["i"])], &["i"]);
    let mut own = graph(&[], vec![around("a", inside, &["1"])], &["1"]);
    assert_eq!(own.sort().expect_err("a cycle").to_string(), said.replace("`b`", "`a`"));

    let mut twice =
        graph(&["x"], vec![node("a", &["x"], &["1"]), node("b", &["x"], &["1"])], &["1"]);
    let said = twice.sort().expect_err("two makers").to_string();
    assert_eq!(said, "nodes `a` and `b` both make the value `1`");
}

#[test]
fn long_chains_are_sorted_and_dropped_in_time() {
    let chain = |from: usize, to: usize| {
        node(&format!("n{to}"), &[&format!("v{from}")], &[&format!("v{to}")])
    };
    let nodes: Vec<_> = (0..50_000).rev().map(|at| chain(at, at + 1)).collect();
    let mut graph = graph(&["v0"], nodes, &["v3"]);
    graph.sort().expect("no cycle");
    assert_eq!(graph.node[0].label(), "n1");
    graph.drop_dead();
    assert_eq!(labels(&graph), ["n1", "n2", "n3"]);
}

#[test]
fn what_no_output_needs_is_dropped() {
    let inside = graph(&[], vec![node("inner", &["1", "kept"], &["i"])], &["i"]);
    let nodes = vec![
        node("a", &["x"], &["1"]),
        around("b", inside, &["2"]),
        node("dead", &["2", "gone"], &["3"]),
        node("half", &["2"], &["", "unread", "y"]),
        node("none", &["2"], &[""]),
    ];
    let mut graph = graph(&["x", "default"], nodes, &["y"]);
    let constants = ["kept", "gone", "default"].map(|name| large(name, 0, 1));
    graph.initializer = constants.into();
    let sparse =
        |name: &str| SparseTensorProto { values: Some(large(name, 0, 1)), ..Default::default() };
    graph.sparse_initializer = vec![sparse("sparse")];
    graph.value_info = ["1", "3", "unread"].map(value).into();
    graph.drop_dead();
    assert_eq!(labels(&graph), ["a", "b", "half"]);
    let names: Vec<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    assert_eq!(names, ["kept", "default"]);
    assert!(graph.sparse_initializer.is_empty());
    let known: Vec<&str> = graph.value_info.iter().map(ValueInfoProto::name).collect();
    assert_eq!(known, ["1", "unread"]);
}

#[test]
fn a_value_is_replaced_where_its_name_means_it() {
    let reads = |name: &str| graph(&[], vec![node("inner", &["v"], &[name])], &[name]);
    let deep = graph(&[], vec![around("deep", reads("d"), &["e"])], &["e"]);
    let own_input = graph(&["v"], vec![node("inner", &["v"], &["i"])], &["i"]);
    let own_output =
        graph(&[], vec![node("inner", &["x"], &["v"]), node("next", &["v"], &["i"])], &["i"]);
    let mut own_constant = reads("i");
    own_constant.initializer.push(large("v", 0, 1));
    let passed = graph(&[], vec![], &["v"]);
    let nodes = vec![
        node("a", &["v", "x", "v"], &["1"]),
        around("b", deep, &["2"]),
        around("c", own_input.clone(), &["3"]),
        around("d", own_output.clone(), &["4"]),
        around("e", own_constant.clone(), &["5"]),
        around("f", passed, &["6"]),
    ];
    let mut graph = graph(&["x"], nodes, &["v"]);
    graph.replace_uses("v", "w");
    assert_eq!(graph.node[0].input, ["w", "x", "w"]);
    let inside = |at: usize| graph.node[at].subgraphs().next().expect("a graph");
    let deep = inside(1).node[0].subgraphs().next().expect("a graph");
    assert_eq!(deep.node[0].input, ["w"]);
    assert_eq!(inside(2), &own_input);
    assert_eq!(inside(3), &own_output);
    assert_eq!(inside(4), &own_constant);
    assert_eq!(inside(5).output[0].name(), "w");
    assert_eq!(graph.output[0].name(), "v");
}

#[test]
fn a_fresh_name_is_nowhere_in_the_graph() {
    let inside = graph(&["v_1"], vec![node("inner", &["v_2"], &["v_3"])], &["v_3"]);
    let mut graph = graph(&["v"], vec![around("a", inside, &["y"])], &["y", "v_4"]);
    graph.initializer.push(large("v_5", 0, 1));
    let sparse = SparseTensorProto { values: Some(large("v_6", 0, 1)), ..Default::default() };
    graph.sparse_initializer.push(sparse);
    graph.value_info.push(value("v_7"));
    assert_eq!(graph.fresh_name("v"), "v_8");
    assert_eq!(graph.fresh_name("u"), "u");
}
