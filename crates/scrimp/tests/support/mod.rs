//! What tests of training from outside share: waiting, killing, and comparing run folders.

#![allow(dead_code, reason = "every test file has its own copy and uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::Value;

pub fn contains(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "`{part}` is missing: {said}");
    }
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Every file below a folder by its path, without the times of steps, without what a killed process left unfinished, and
/// without what shows the same results once more.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn without_times(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.remove("step_ms");
                fields.remove("step_ratio");
                fields.values_mut().for_each(without_times);
            }
            Value::Array(values) => values.iter_mut().for_each(without_times),
            _ => {}
        }
    }
    /// The records of an event file, without the time that each begins with and their checksums.
    fn timeless(mut rest: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some((len, tail)) = rest.split_first_chunk() {
            let data = &tail[4..][..usize::try_from(u64::from_le_bytes(*len)).unwrap()];
            out.extend(&data[9..]);
            rest = &tail[4 + data.len() + 4..];
        }
        out
    }
    fn walk(folder: &Path, root: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, all);
            } else if path.extension().is_none_or(|e| e != "part" && e != "csv" && e != "html") {
                let mut bytes = fs::read(&path).unwrap();
                if path.ends_with("result.json") || path.ends_with("results.json") {
                    let mut value = serde_json::from_slice(&bytes).unwrap();
                    without_times(&mut value);
                    bytes = value.to_string().into_bytes();
                }
                if path.to_string_lossy().contains("tfevents") {
                    bytes = timeless(&bytes);
                }
                all.insert(path.strip_prefix(root).unwrap().to_owned(), bytes);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(folder, folder, &mut all);
    all
}

/// Two run folders must hold the same bytes.
pub fn same(one: &Path, other: &Path) {
    let (one, other) = (files(one), files(other));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    for (path, bytes) in &one {
        assert!(*bytes == other[path], "{} differs", path.display());
    }
    for name in ["model.safetensors", "model.packed.safetensors", "metrics.jsonl", "result.json"] {
        assert!(one.keys().any(|path| path.ends_with(name)), "{name} was not compared");
    }
}

/// Waits until a file is there that is newer than `before`, and gives its time; `None` if the program ended first.
pub fn wait_for(
    child: &mut Child,
    path: &Path,
    before: Option<std::time::SystemTime>,
) -> Option<()> {
    let start = Instant::now();
    loop {
        if let Ok(now) = fs::metadata(path).and_then(|m| m.modified())
            && Some(now) != before
        {
            return Some(());
        }
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        assert!(start.elapsed() < Duration::from_mins(2), "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(unix)]
pub fn killed_by(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[cfg(unix)]
pub fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}
