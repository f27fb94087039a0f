//! Runs the commands that README.md shows, so that a reader's first minutes work.
//!
//! A console block runs when `<!-- ci -->` stands before it:
//!
//! ````text
//! <!-- ci -->
//! ```console
//! $ cargo run --release -- formats
//! ```
//! ````
//!
//! Only the exit status counts here; what the commands print is compared by other tests.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result, bail};

use crate::command;

const MARKER: &str = "<!-- ci -->";

/// What the commands need beside the program. It is copied, so that runs and other files that the
/// commands write do not land in the reader's working copy.
const COPIED: &[&str] = &["recipes", ".cargo", "rust-toolchain.toml"];

/// Defines `cargo` for the commands: they run in a folder without a manifest.
const PRELUDE: &str = r#"
cargo() {
    if [ "$1" != run ]; then
        echo "a marked block may call no cargo command but \`cargo run\`, found \`cargo $1\`" >&2
        return 2
    fi
    shift
    command "$SCRIMP_README_CARGO" run --manifest-path "$SCRIMP_README_ROOT/Cargo.toml" "$@"
}
"#;

/// The commands of a console block.
#[derive(Debug, PartialEq)]
struct Block {
    marked: bool,
    commands: Vec<Entry>,
}

/// One command and where it stands.
#[derive(Debug, PartialEq)]
struct Entry {
    line: usize,
    text: String,
}

/// Runs every marked block of README.md.
///
/// # Errors
/// When README.md has no marked block or a malformed one, or a command does not exit with 0.
pub fn run(root: &Path) -> Result<()> {
    let text = fs::read_to_string(root.join("README.md")).context("cannot read README.md")?;
    let blocks = console_blocks(&text)?;
    let (marked, others): (Vec<Block>, Vec<Block>) =
        blocks.into_iter().partition(|block| block.marked);
    for entry in others.iter().flat_map(|block| &block.commands) {
        eprintln!("README.md:{}: not marked, so not run: {}", entry.line, entry.text);
    }
    if marked.is_empty() {
        bail!("README.md has no console block with `{MARKER}` before it");
    }

    // Apart from the commands, so that their times are their own.
    command::build_program(root)?;

    let dir = command::target_dir()?.join("readme");
    prepare(root, &dir)?;
    for entry in marked.iter().flat_map(|block| &block.commands) {
        eprintln!("$ {}", entry.text);
        let start = Instant::now();
        let status = command::program("bash", &dir)
            .args(["-euo", "pipefail", "-c", &format!("{PRELUDE}\n{}", entry.text)])
            .env("SCRIMP_README_ROOT", root)
            .env("SCRIMP_README_CARGO", command::cargo_path())
            .status()
            .context("`bash` could not be started")?;
        if !status.success() {
            bail!(
                "README.md:{}: `{}` ended with {status}; its folder is {}",
                entry.line,
                entry.text,
                dir.display()
            );
        }
        eprintln!("README.md:{}: passed in {}", entry.line, command::human(start.elapsed()));
    }
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// Makes `dir` anew, with copies of what the commands need.
fn prepare(root: &Path, dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for name in COPIED {
        let from = root.join(name);
        if from.exists() {
            copy(&from, &dir.join(name))
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(|_| ());
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

/// The fence that opened a code block.
struct Fence {
    line: usize,
    marks: String,
    /// Where the block is a console block, its place in the list.
    block: Option<usize>,
}

/// All console blocks of a Markdown text.
///
/// A command starts with `$ `. It goes on in lines that start with `> `, and after a line that ends
/// with a backslash. Every other line is output.
fn console_blocks(text: &str) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut marker: Option<usize> = None;
    let mut open: Option<Fence> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let trimmed = line.trim();
        if let Some(fence) = &open {
            if trimmed.starts_with(&fence.marks) && trimmed.chars().all(|c| fence.marks.contains(c))
            {
                open = None;
            } else if let Some(index) = fence.block {
                add_line(&mut blocks[index].commands, number, trimmed);
            }
            continue;
        }
        if trimmed == MARKER {
            marker = Some(number);
            continue;
        }
        let mark = if trimmed.starts_with("~~~") { '~' } else { '`' };
        let info = trimmed.trim_start_matches(mark);
        let marks = &trimmed[..trimmed.len() - info.len()];
        // Marks on both ends of a line are code in a sentence.
        let is_fence = marks.len() >= 3 && !info.contains('`');
        let is_console = is_fence && info.split([' ', ',']).next() == Some("console");
        if let (Some(at), false) = (marker, is_console || trimmed.is_empty()) {
            bail!("README.md:{at}: `{MARKER}` must stand before a ```console block");
        }
        if is_fence {
            let block = is_console.then(|| {
                blocks.push(Block { marked: marker.take().is_some(), commands: Vec::new() });
                blocks.len() - 1
            });
            open = Some(Fence { line: number, marks: marks.to_owned(), block });
        }
    }
    if let Some(fence) = open {
        bail!("README.md:{}: the code block has no end", fence.line);
    }
    if let Some(at) = marker {
        bail!("README.md:{at}: `{MARKER}` must stand before a ```console block");
    }
    Ok(blocks)
}

fn add_line(commands: &mut Vec<Entry>, number: usize, line: &str) {
    if let Some(command) = line.strip_prefix("$ ") {
        commands.push(Entry { line: number, text: command.to_owned() });
        return;
    }
    let Some(last) = commands.last_mut() else { return };
    if let Some(more) = line.strip_prefix("> ") {
        last.text.push('\n');
        last.text += more;
    } else if last.text.ends_with('\\') {
        last.text.push('\n');
        last.text += line;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(line: usize, text: &str) -> Entry {
        Entry { line, text: text.to_owned() }
    }

    fn message(text: &str) -> String {
        console_blocks(text).unwrap_err().to_string()
    }

    #[test]
    fn commands_come_with_their_lines_and_without_their_output() {
        let text = "\
# scrimp

<!-- ci -->

```console
$ cargo run --release -- formats
name  bits
$ cargo run --release -- plan recipes/lenet.toml
```

```console
$ cargo xtask ci
```
";
        let blocks = console_blocks(text).unwrap();
        let first = [
            entry(6, "cargo run --release -- formats"),
            entry(8, "cargo run --release -- plan recipes/lenet.toml"),
        ];
        assert_eq!(blocks[0], Block { marked: true, commands: first.into() });
        let second = [entry(12, "cargo xtask ci")];
        assert_eq!(blocks[1], Block { marked: false, commands: second.into() });
        assert_eq!(blocks.len(), 2);
    }

    #[test]
    fn a_command_may_take_several_lines() {
        let blocks = console_blocks("```console\n$ a \\\n  b\nout\n$ c \\\n> d\n> e\n```").unwrap();
        assert_eq!(blocks[0].commands, [entry(2, "a \\\nb"), entry(5, "c \\\nd\ne")]);
    }

    #[test]
    fn other_code_is_no_command() {
        let text = "````markdown\n<!-- ci -->\n```console\n$ no\n```\n````\n```sh\n$ no\n```\n```console```\n";
        assert_eq!(console_blocks(text).unwrap(), []);
    }

    #[test]
    fn a_marker_that_marks_nothing_is_an_error() {
        assert!(message("\n<!-- ci -->\ntext\n```console\n```\n").starts_with("README.md:2:"));
        assert!(message("<!-- ci -->\n```toml\n```\n").starts_with("README.md:1:"));
        assert!(message("text\n<!-- ci -->\n").starts_with("README.md:2:"));
    }

    #[test]
    fn a_block_without_an_end_is_an_error() {
        assert!(message("text\n```console\n$ a\n").starts_with("README.md:2:"));
    }

    #[test]
    fn a_folder_is_copied_with_all_it_holds() {
        let dir = std::env::temp_dir().join(format!("scrimp-xtask-copy-{}", std::process::id()));
        fs::create_dir_all(dir.join("recipes/deep")).unwrap();
        fs::write(dir.join("recipes/deep/a.toml"), "seed = 7\n").unwrap();
        let to = dir.join("to");
        fs::create_dir_all(to.join("old")).unwrap();
        prepare(&dir, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("recipes/deep/a.toml")).unwrap(), "seed = 7\n");
        assert!(!to.join("old").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
