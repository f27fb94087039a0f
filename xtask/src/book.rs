//! The book: the parts of it that are generated, and whether what is stored is what would be generated now.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::command::{self, cargo};

/// The folder of the chapters.
const CHAPTERS: &str = "book/src";

/// `cargo xtask book`: renews the generated parts.
///
/// # Errors
/// When there are arguments, or the generator fails.
pub fn run(args: &[String]) -> Result<()> {
    if let Some(arg) = args.first() {
        bail!("`cargo xtask book` takes no arguments, found `{arg}`");
    }
    command::run(&mut generator(&command::workspace_root()?, Path::new(CHAPTERS)))
}

/// Compares what is stored with what is generated, and follows the links between files.
///
/// # Errors
/// When a generated file differs, lacks or is left over, or a link leads nowhere.
pub fn check(root: &Path) -> Result<()> {
    let fresh = command::target_dir()?.join("book");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    }
    fs::create_dir_all(&fresh).with_context(|| format!("cannot create {}", fresh.display()))?;
    // It lists the files that it writes, which are all of them here.
    command::run(generator(root, &fresh).stdout(Stdio::null()))?;
    let stored = root.join(CHAPTERS);
    if let Some(complaint) = difference(&stored, &fresh)? {
        bail!("{CHAPTERS}/{complaint}; renew it with `cargo xtask book`");
    }
    if let Some(complaint) = dead_link(&stored)? {
        bail!("{CHAPTERS}/{complaint}");
    }
    fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))
}

/// The program that writes the generated parts into a folder. It needs one small crate, so that it builds in seconds.
fn generator(root: &Path, folder: &Path) -> Command {
    let mut generator =
        cargo(root, &["run", "-q", "-p", "scrimp-codec", "--example", "book", "--"]);
    generator.arg(folder);
    generator
}

/// What is wrong with the stored files, if anything is. A folder that is generated holds nothing else.
fn difference(stored: &Path, fresh: &Path) -> Result<Option<String>> {
    let generated = files(fresh, Path::new(""))?;
    for path in &generated {
        let new = read(&fresh.join(path))?;
        let complaint = match fs::read(stored.join(path)) {
            Ok(old) if old == new => continue,
            Ok(old) => {
                let line = command::first_different_line(&old, &new);
                format!("is not what the registry of formats gives, first in line {line}")
            }
            Err(_) => "is missing".to_owned(),
        };
        return Ok(Some(format!("{} {complaint}", path.display())));
    }
    let folders: BTreeSet<&Path> =
        generated.iter().filter_map(|path| path.parent()).filter(|p| *p != Path::new("")).collect();
    for folder in folders {
        let left = files(stored, folder)?.into_iter().find(|path| !generated.contains(path));
        if let Some(path) = left {
            return Ok(Some(format!("{} is generated no longer", path.display())));
        }
    }
    Ok(None)
}

/// All files in `folder` of `root` and below it, by their paths from `root`.
fn files(root: &Path, folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let whole = root.join(folder);
    let context = || format!("cannot read {}", whole.display());
    for entry in fs::read_dir(&whole).with_context(context)? {
        let path = folder.join(entry.with_context(context)?.file_name());
        if root.join(&path).is_dir() {
            found.extend(files(root, &path)?);
        } else {
            found.insert(path);
        }
    }
    Ok(found)
}

/// The first link to a file that is not there, or a chapter that the summary lacks.
fn dead_link(chapters: &Path) -> Result<Option<String>> {
    let summary = read_text(&chapters.join("SUMMARY.md"))?;
    for path in files(chapters, Path::new(""))? {
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let name = path.display();
        if !path.ends_with("SUMMARY.md")
            && targets(&summary).all(|target| Path::new(target) != path)
        {
            return Ok(Some(format!("SUMMARY.md does not list {name}")));
        }
        let text = read_text(&chapters.join(&path))?;
        let folder = chapters.join(path.parent().unwrap_or(Path::new("")));
        if let Some(dead) = targets(&text).find(|target| !folder.join(target).exists()) {
            return Ok(Some(format!("{name} links to `{dead}`, which does not exist")));
        }
    }
    Ok(None)
}

/// The files that a Markdown text links to, without the place in them; links into the web are left out.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    links
        .filter(|link| !link.contains("://"))
        .map(|link| link.split('#').next().unwrap_or(link))
        .filter(|file| !file.is_empty())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files, in a place of its own.
    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("xtask-book-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_file_that_differs_lacks_or_is_left_over_is_named() {
        let fresh = folder("fresh", &[("a.md", "1\n2\n"), ("grids/x.svg", "x")]);
        let compare = |name: &str, files: &[(&str, &str)]| {
            let stored = folder(name, files);
            let complaint = difference(&stored, &fresh).unwrap();
            fs::remove_dir_all(stored).unwrap();
            complaint.unwrap_or_default()
        };
        let same = [("a.md", "1\n2\n"), ("grids/x.svg", "x"), ("hand.md", "by hand")];
        assert_eq!(compare("same", &same), "");
        let other = compare("other", &[("a.md", "1\n3\n"), ("grids/x.svg", "x")]);
        assert!(other.starts_with("a.md") && other.ends_with("line 2"), "{other}");
        assert_eq!(compare("less", &[("a.md", "1\n2\n")]), "grids/x.svg is missing");
        let more = [("a.md", "1\n2\n"), ("grids/x.svg", "x"), ("grids/y.svg", "y")];
        assert_eq!(compare("more", &more), "grids/y.svg is generated no longer");
        fs::remove_dir_all(fresh).unwrap();
    }

    #[test]
    fn a_link_to_nothing_and_a_chapter_that_is_not_listed_are_named() {
        let check = |name: &str, files: &[(&str, &str)]| {
            let chapters = folder(name, files);
            let complaint = dead_link(&chapters).unwrap();
            fs::remove_dir_all(chapters).unwrap();
            complaint.unwrap_or_default()
        };
        let summary = ("SUMMARY.md", "- [A](a.md)\n");
        let text = "[b](a.md#b) [c](#c) [d](https://d.example) ![e](e.svg)";
        assert_eq!(check("whole", &[summary, ("a.md", text), ("e.svg", "")]), "");
        let dead = check("dead", &[summary, ("a.md", text)]);
        assert_eq!(dead, "a.md links to `e.svg`, which does not exist");
        let unlisted = check("unlisted", &[summary, ("a.md", ""), ("b.md", "")]);
        assert_eq!(unlisted, "SUMMARY.md does not list b.md");
    }
}
