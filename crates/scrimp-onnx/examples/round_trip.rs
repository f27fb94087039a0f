//! Reads every `.onnx` file under a folder, writes it again in memory, and counts how many came back byte for byte.
//!
//! ```text
//! cargo run -p scrimp-onnx --example round_trip -- FOLDER
//! ```
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::path::{Path, PathBuf};

use scrimp_onnx::Model;

fn files(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "onnx") {
            found.push(path);
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: round_trip FOLDER")?;
    let mut found = Vec::new();
    files(Path::new(&folder), &mut found)?;
    found.sort();
    let mut same = 0;
    for path in &found {
        let bytes = std::fs::read(path)?;
        match Model::parse(bytes.clone()) {
            Ok(model) if model.to_bytes() == bytes => same += 1,
            Ok(_) => println!("{}: other bytes", path.display()),
            Err(error) => println!("{}: {error}", path.display()),
        }
    }
    println!("{} files read, {same} byte-identical", found.len());
    Ok(())
}
