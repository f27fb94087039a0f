//! Reads every `.onnx` file under a folder, writes it again in memory, and counts how many came back byte for byte.
//!
//! ```text
//! cargo run -p scrimp-onnx --example round_trip -- FOLDER
//! ```
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

#[path = "support/files.rs"]
mod files;

use std::path::Path;

use scrimp_onnx::Model;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: round_trip FOLDER")?;
    let found = files::under(Path::new(&folder))?;
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
