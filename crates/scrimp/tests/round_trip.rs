//! Files through the binary and back.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use scrimp_codec::FAMILIES;
use scrimp_codec::{Scheme, Stream};
use scrimp_files::{Dtype, Reader, Tensor, open, save, write_npy};

fn scrimp(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scrimp")).args(arguments).current_dir(folder).output().unwrap()
}

/// Runs a command that must succeed and gives what it printed.
fn run(folder: &Path, arguments: &[&str]) -> String {
    let output = scrimp(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail in an orderly way and gives what it said.
fn refuse(folder: &Path, arguments: &[&str]) -> String {
    let output = scrimp(folder, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(said.starts_with("error: ") && !said.contains("panicked"), "{arguments:?}: {said}");
    said
}

/// Values of several magnitudes and both signs, the same everywhere.
fn values(count: usize) -> Vec<f32> {
    let step = |i: usize| u16::try_from(i * 7919 % 4093).unwrap_or_default();
    (0..count).map(|i| (f32::from(step(i)) - 2046.0) / 700.0).collect()
}

/// A network with tensors of several types and ranks.
fn network(folder: &Path) -> PathBuf {
    let float = |name: &str, shape: &[usize], dtype| {
        Tensor::from_f32(name, shape.to_vec(), dtype, &values(shape.iter().product())).unwrap()
    };
    let tensors = [
        float("conv.weight", &[16, 8, 3, 3], Dtype::F32),
        float("conv.bias", &[16], Dtype::F32),
        float("fc.weight", &[10, 64], Dtype::F16),
        float("deep.weight", &[6, 50], Dtype::F64),
        Tensor::new("steps", vec![], Dtype::I64, 9i64.to_le_bytes().into()).unwrap(),
    ];
    let path = folder.join("net.safetensors");
    let metadata = BTreeMap::from([("made by".to_owned(), "a test".to_owned())]);
    save(&path, &tensors, &metadata).unwrap();
    path
}

fn read(reader: &Reader, name: &str) -> Tensor {
    reader.read_tensor(reader.find(name).expect(name)).unwrap()
}

#[test]
fn every_format_decodes_to_what_emulation_gives() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let shape = [6, 35];
    let x = values(210);
    let tensor = Tensor::from_f32("in", shape.to_vec(), Dtype::F32, &x).unwrap();
    write_npy(&folder.join("in.npy"), &tensor).unwrap();

    let members = FAMILIES.iter().flat_map(|family| family.members());
    let words =
        ["int4/group:16/scale:f16", "int8/channel/stochastic", "e4m3fn/tile:4x8/scale:pow2"];
    for scheme in members.chain(words.map(String::from)) {
        run(folder, &["encode", "in.npy", "-s", &scheme, "-o", "out.safetensors", "--force"]);
        run(folder, &["decode", "out.safetensors", "-o", "out.npy", "--force"]);
        let decoded = open(&folder.join("out.npy")).unwrap().read_f32(0).unwrap();

        let mut emulated = x.clone();
        let parsed: Scheme = scheme.parse().unwrap();
        parsed.emulate(&mut emulated, &shape, &Stream::named(0, "in")).unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&decoded), bits(&emulated), "{scheme}");
    }
}

#[test]
fn a_network_comes_back_with_its_types_and_what_was_kept_is_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let original = open(&network(folder)).unwrap();
    run(folder, &["encode", "net.safetensors", "-s", "int8/row", "-o", "small.safetensors"]);
    run(folder, &["decode", "small.safetensors", "-o", "back.safetensors"]);

    let back = open(&folder.join("back.safetensors")).unwrap();
    assert_eq!(back.metadata(), original.metadata());
    assert_eq!(back.entries(), original.entries());
    for name in ["conv.bias", "steps"] {
        assert_eq!(read(&back, name), read(&original, name));
    }
    let scheme: Scheme = "int8/row".parse().unwrap();
    for name in ["conv.weight", "fc.weight", "deep.weight"] {
        let before = read(&original, name);
        let scheme = scheme.for_weight(before.shape());
        let mut emulated = before.to_f32().unwrap();
        scheme.emulate(&mut emulated, before.shape(), &Stream::named(0, name)).unwrap();
        let expected =
            Tensor::from_f32(name, before.shape().to_vec(), before.dtype(), &emulated).unwrap();
        assert_eq!(read(&back, name), expected);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_with_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    network(folder);
    let encode = |seed: &str, threads: &str| {
        let scheme = "int4/channel/stochastic";
        let flags = ["--seed", seed, "--threads", threads, "-o", "x.safetensors", "--force"];
        run(folder, &[&["encode", "net.safetensors", "-s", scheme], &flags[..]].concat());
        fs::read(folder.join("x.safetensors")).unwrap()
    };
    let bytes = encode("7", "1");
    assert_eq!(encode("7", "3"), bytes);
    assert_ne!(encode("8", "1"), bytes);
}

#[test]
fn what_is_printed_is_what_is_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    network(folder);
    let printed = run(
        folder,
        &["encode", "net.safetensors", "-s", "int4/flat:32", "-o", "x.safetensors", "--json"],
    );
    let lines: Vec<serde_json::Value> =
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [tensors @ .., total, encoded] = lines.as_slice() else { panic!("{printed}") };
    let length = fs::metadata(folder.join("x.safetensors")).unwrap().len();
    assert_eq!(total["file_bytes"], length);
    assert_eq!(encoded["output_file_bytes"], length);
    assert_eq!(encoded["predicted_file_bytes"], length);
    let sum: u64 = tensors.iter().map(|line| line["bytes"].as_u64().unwrap()).sum();
    assert_eq!(total["payload_bytes"], sum);
    // Four bits for each value and four bytes for each 32 of them.
    let conv = tensors.iter().find(|line| line["name"] == "conv.weight").unwrap();
    assert_eq!(conv["bytes"], 1152 / 2 + 4 * 1152 / 32);
    let inspected = run(folder, &["inspect", "x.safetensors", "--json"]);
    assert_eq!(inspected.lines().count(), lines.len() - 1);
    assert!(printed.starts_with(&inspected), "{printed}{inspected}");
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    network(folder);
    let x = [1.0, f32::NAN];
    let broken = Tensor::from_f32("broken", vec![1, 2], Dtype::F32, &x).unwrap();
    write_npy(&folder.join("broken.npy"), &broken).unwrap();
    fs::write(folder.join("old.safetensors"), "old").unwrap();
    let names = || {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let encode = |input: &str, output: &str| {
        refuse(folder, &["encode", input, "-s", "int8", "-o", output, "--force"])
    };
    assert!(encode("broken.npy", "old.safetensors").contains("element 1 is NaN"));
    assert!(encode("net.safetensors", "no/x.safetensors").contains("no such file or folder"));
    assert!(encode("net.safetensors", ".").contains("not a regular file"));
    #[cfg(target_os = "linux")]
    assert!(encode("net.safetensors", "/dev/full").contains("/dev/full"));
    assert_eq!(fs::read(folder.join("old.safetensors")).unwrap(), b"old");
    assert_eq!(names(), before);
}

#[cfg(unix)]
#[test]
fn folders_without_permission_are_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    network(folder);
    let closed = folder.join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(closed.join("probe"), "").is_ok() {
        return; // The superuser may write anywhere.
    }
    let said =
        refuse(folder, &["encode", "net.safetensors", "-s", "int8", "-o", "closed/x.safetensors"]);
    assert!(said.contains("closed/x.safetensors: permission denied"), "{said}");
}

#[test]
fn damaged_files_are_refused_or_decoded_but_never_break_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    network(folder);
    run(folder, &["encode", "net.safetensors", "-s", "uint4/row", "-o", "whole.safetensors"]);
    let whole = fs::read(folder.join("whole.safetensors")).unwrap();
    let damaged = folder.join("damaged.safetensors");

    for length in [0, 1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&damaged, &whole[..length]).unwrap();
        for command in [&["inspect"][..], &["decode"], &["encode", "-s", "int8"]] {
            refuse(folder, &[command, &["damaged.safetensors"]].concat());
        }
    }
    for place in (0..whole.len()).step_by(41) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x55;
        fs::write(&damaged, &bytes).unwrap();
        let output = scrimp(folder, &["decode", "damaged.safetensors", "--force"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)), "byte {place}: {said}");
        assert!(!said.contains("panicked"), "byte {place}: {said}");
    }
}

#[test]
fn pipes_get_no_colours_and_may_be_closed_early() {
    let folder = tempfile::tempdir().unwrap();
    let text = run(folder.path(), &["formats"]);
    assert!(!text.contains('\x1b'));

    let mut child = Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .args(["formats", "f16", "--values", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_the_standard_output_is_an_error() {
    let full = fs::File::create("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .arg("formats")
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot write to the standard output"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[cfg(unix)]
#[test]
fn an_interrupted_command_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Large enough that the signal comes while it is encoded; small enough to be written quickly.
    let x = vec![1.0; 1 << 20];
    let tensors: Vec<Tensor> = (0..32)
        .map(|i| Tensor::from_f32(format!("{i}"), vec![1 << 10, 1 << 10], Dtype::F32, &x).unwrap())
        .collect();
    save(&folder.join("large.safetensors"), &tensors, &BTreeMap::default()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .args(["encode", "large.safetensors", "-s", "e4m3fn/stochastic", "-o", "x.safetensors"])
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The temporary file appears once the handler is there.
    let parts = || {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "part"))
            .count()
    };
    while parts() == 0 && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let id = child.id().to_string();
    Command::new("kill").args(["-INT", &id]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(parts(), 0);
    if output.status.success() {
        return; // It was faster than the signal.
    }
    assert_eq!(said, "error: interrupted; nothing was written\n");
    assert_eq!(output.status.code(), Some(130));
    assert!(!folder.join("x.safetensors").exists());
}
