//! Raises the version of the standard operators of every `.onnx` file under a folder, and writes the models under another.
//!
//! ```text
//! cargo run -p scrimp-onnx --example upgrade_opset -- FOLDER OPSET OUT
//! ```
//!
//! `tools/check_onnx_opsets.py` has the `onnx` package look at what comes out.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

#[path = "support/files.rs"]
mod files;

use std::path::Path;

use scrimp_onnx::{Model, upgrade_opset};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: upgrade_opset FOLDER OPSET OUT";
    let [folder, opset, out] = &std::env::args().skip(1).collect::<Vec<_>>()[..] else {
        return Err(usage.into());
    };
    let opset = opset.parse().map_err(|_| usage)?;
    let found = files::under(Path::new(folder))?;
    for path in &found {
        let name = path.strip_prefix(folder)?;
        let raised = Model::open(path).and_then(|mut model| {
            let lines = upgrade_opset(&mut model, opset)?;
            model.load_external()?;
            Ok((model, lines))
        });
        match raised {
            Ok((model, lines)) => {
                let target = Path::new(out).join(name);
                target.parent().map_or(Ok(()), std::fs::create_dir_all)?;
                model.save(&target)?;
                for line in lines {
                    println!("{}: {line}", name.display());
                }
            }
            Err(error) => println!("{}: refused: {error}", name.display()),
        }
    }
    Ok(())
}
