//! Writes the generated parts of the book into a folder: the chapter on formats from the registry, and its pictures.
//!
//! `cargo xtask book` calls it with `book/src`, and `cargo xtask ci book` with an empty folder, to compare. The same
//! registry gives the same bytes. A file that is up to date is not touched, and pictures of formats that are gone are
//! removed.

mod chapter;
mod granularities;
mod grids;
mod numbers;
mod svg;

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use scrimp_codec::FAMILIES;

/// A generated file, by its path below the folder of the chapters.
#[derive(Debug, PartialEq)]
struct Page {
    path: String,
    text: String,
}

/// Where the pictures lie. All other files in these folders are removed.
const FOLDERS: [&str; 2] = ["formats", "schemes"];

fn main() -> ExitCode {
    let Some(folder) = env::args_os().nth(1).filter(|_| env::args_os().len() == 2) else {
        eprintln!("usage: cargo run -p scrimp-codec --example book -- FOLDER");
        return ExitCode::FAILURE;
    };
    match write(Path::new(&folder), &pages()) {
        Ok(changed) => {
            show(&changed);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}: {error}", Path::new(&folder).display());
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is what the program is asked for")]
fn show(changed: &[String]) {
    for path in changed {
        println!("{path}");
    }
}

/// Everything that is generated.
fn pages() -> Vec<Page> {
    let mut pages = chapter::pages(FAMILIES);
    pages.extend(granularities::pages());
    pages
}

/// Brings the folder to this state, and answers which files changed.
fn write(folder: &Path, pages: &[Page]) -> io::Result<Vec<String>> {
    let mut changed = Vec::new();
    for name in FOLDERS {
        fs::create_dir_all(folder.join(name))?;
        for entry in fs::read_dir(folder.join(name))? {
            let path = format!("{name}/{}", entry?.file_name().to_string_lossy());
            if pages.iter().all(|page| page.path != path) {
                fs::remove_file(folder.join(&path))?;
                changed.push(format!("{path}: removed"));
            }
        }
    }
    for Page { path, text } in pages {
        let target = folder.join(path);
        if fs::read(&target).is_ok_and(|old| old == text.as_bytes()) {
            continue;
        }
        // A reader finds the old file or the new one.
        let fresh = folder.join(format!("{path}.new"));
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &target)?;
        changed.push(format!("{path}: written"));
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_registry_gives_the_same_pages_and_no_path_twice() {
        let pages = pages();
        assert_eq!(pages, super::pages());
        let mut paths: Vec<&str> = pages.iter().map(|page| page.path.as_str()).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), pages.len());
    }

    #[test]
    fn pictures_stay_small() {
        let bytes: usize =
            pages().iter().filter(|p| p.path != "formats.md").map(|p| p.text.len()).sum();
        assert!(bytes < 400_000, "{bytes}");
    }

    #[test]
    fn a_folder_is_brought_up_to_date_and_then_left_alone() {
        let folder = env::temp_dir().join(format!("scrimp-book-{}", std::process::id()));
        let page = |path: &str, text: &str| Page { path: path.into(), text: text.into() };
        let first = [page("formats.md", "a"), page("formats/x.svg", "x")];
        assert_eq!(
            write(&folder, &first).unwrap(),
            ["formats.md: written", "formats/x.svg: written"]
        );
        assert!(write(&folder, &first).unwrap().is_empty());
        let second = [page("formats.md", "b")];
        assert_eq!(
            write(&folder, &second).unwrap(),
            ["formats/x.svg: removed", "formats.md: written"]
        );
        assert_eq!(fs::read_to_string(folder.join("formats.md")).unwrap(), "b");
        fs::remove_dir_all(&folder).unwrap();
    }
}
