//! `scrimp score` from outside: its figures, its files, its memory, and Ctrl-C.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use scrimp_files::{Dtype, Tensor, save};
use serde_json::Value;

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scrimp"));
    command.args(arguments).current_dir(folder);
    command
}

/// Runs a command that must succeed and gives what it printed.
fn run(folder: &Path, arguments: &[&str]) -> String {
    let output = command(folder, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    run(folder, arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Values of several magnitudes and both signs, the same everywhere.
fn values(count: usize) -> Vec<f32> {
    let step = |i: usize| u16::try_from(i * 7919 % 4093).unwrap_or_default();
    (0..count).map(|i| (f32::from(step(i)) - 2046.0) / 700.0).collect()
}

fn network(folder: &Path) {
    let float = |name: &str, shape: &[usize], dtype| {
        Tensor::from_f32(name, shape.to_vec(), dtype, &values(shape.iter().product())).unwrap()
    };
    let tensors = [
        float("conv.weight", &[16, 8, 3, 3], Dtype::F32),
        float("fc.weight", &[10, 64], Dtype::F16),
        float("deep.weight", &[300, 1000], Dtype::F64),
    ];
    save(&folder.join("net.safetensors"), &tensors, &BTreeMap::default()).unwrap();
}

/// A file of so many tensors of 4 MiB each.
fn large(folder: &Path, tensors: usize) {
    let x = values(1 << 20);
    let tensors: Vec<Tensor> = (0..tensors)
        .map(|i| Tensor::from_f32(format!("{i}"), vec![1 << 10, 1 << 10], Dtype::F32, &x).unwrap())
        .collect();
    save(&folder.join("large.safetensors"), &tensors, &BTreeMap::default()).unwrap();
}

#[test]
fn the_bytes_that_are_scored_are_those_that_encode_writes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    network(folder);
    for scheme in ["int4/group:64", "smaq:6,8", "mxfp4", "e4m3fn/stochastic"] {
        let scored = json(folder, &["score", "net.safetensors", "-s", scheme, "--json"]);
        let arguments =
            ["encode", "net.safetensors", "-s", scheme, "-o", "x.safetensors", "--force"];
        let encoded = json(folder, &[&arguments[..], &["--json"]].concat());
        let bytes = |lines: &[Value], kind: &str| -> BTreeMap<String, Value> {
            let lines = lines.iter().filter(|line| line["type"] == kind);
            lines.map(|line| (line["name"].to_string(), line["bytes"].clone())).collect()
        };
        assert_eq!(bytes(&scored, "score"), bytes(&encoded, "tensor"), "{scheme}");
        let sum: u64 = bytes(&scored, "score").values().map(|bytes| bytes.as_u64().unwrap()).sum();
        let total = scored.iter().find(|line| line["type"] == "total").unwrap();
        assert_eq!(total["bytes"], sum, "{scheme}");
    }
}

#[test]
fn threads_change_nothing_but_the_time() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    network(folder);
    let figures = |threads: &str| {
        let schemes = "int4/channel/stochastic,smaq:6,8,mxfp4,e4m3fn";
        let arguments = ["score", "net.safetensors", "-s", schemes, "--json", "--threads", threads];
        let mut lines = json(folder, &arguments);
        for line in lines.iter_mut().filter_map(Value::as_object_mut) {
            line.retain(|key, _| !key.ends_with("_gbps"));
        }
        lines
    };
    let one = figures("1");
    assert_eq!(one.len(), 3 * 4 + 3 + 4);
    assert_eq!(figures("3"), one);
}

#[test]
fn a_page_and_a_table_are_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    network(folder);
    let schemes = ["-s", "smaq:6,8,int4/group:32"];
    let files = ["--html", "score.html", "--csv", "score.csv"];
    let said = run(folder, &[&["score", "net.safetensors"], &schemes[..], &files[..]].concat());
    assert!(said.contains("→ score.html (") && said.contains("→ score.csv ("), "{said}");

    let page = fs::read_to_string(folder.join("score.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    // One picture for all tensors, two for each.
    assert_eq!(page.matches("<svg").count(), 1 + 2 * 3);
    for name in ["conv.weight", "fc.weight", "deep.weight", "smaq:6,8", "int4/group:32"] {
        assert!(page.contains(name), "{name}");
    }
    let table = fs::read_to_string(folder.join("score.csv")).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 1 + 3 * 2);
    assert!(lines[0].starts_with("file,name,shape,values,scheme,status,reason,bytes,"));
    assert!(
        lines[1..].iter().any(|line| line.contains(",conv.weight,16x8x3x3,1152,\"smaq:6,8\","))
    );

    // All schemes that there are fit on a page too.
    let all = ["-s", "all", "-t", "conv.weight", "--html", "score.html", "--force"];
    let said = run(folder, &[&["score", "net.safetensors"], &all[..]].concat());
    assert!(said.contains("that another beats in size and loss: --full lists them"), "{said}");
}

/// What the system says about a process, in the unit that it uses; `None` once the process is over.
fn asked(child: &Child, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{}/{file}", child.id())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "asks /proc")]
fn a_file_is_never_in_memory_whole() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    large(folder, 64);
    let arguments = ["score", "large.safetensors", "-s", "int8,e4m3fn,int4/group:32"];
    let mut child = command(folder, &arguments).stdout(Stdio::null()).spawn().unwrap();
    let mut peak_kib = 0;
    while child.try_wait().unwrap().is_none() {
        peak_kib = peak_kib.max(asked(&child, "status", "VmHWM:").unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    assert!(peak_kib > 0 && peak_kib < 128 << 10, "{peak_kib} KiB for a file of 256 MiB");
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "asks /proc")]
fn an_interrupted_score_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    large(folder, 32);
    let arguments = ["score", "large.safetensors", "-s", "all", "--html", "score.html"];
    let mut child =
        command(folder, &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The handler is there before the first tensor is read.
    while asked(&child, "io", "rchar:").is_some_and(|bytes| bytes < 4 << 20)
        && child.try_wait().unwrap().is_none()
    {
        std::thread::yield_now();
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "error: interrupted; nothing was written\n"
    );
    assert_eq!(output.status.code(), Some(130));
    assert!(output.stdout.is_empty() && !folder.join("score.html").exists());
}
