//! The model files under a folder.

use std::path::{Path, PathBuf};

/// Every `.onnx` file under a folder, in the order of their paths.
pub fn under(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(under(&path)?);
        } else if path.extension().is_some_and(|e| e == "onnx") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
