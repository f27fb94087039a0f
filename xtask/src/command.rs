//! Starting other programs from the root of the workspace.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// The root of the workspace.
///
/// It is asked for at run time: clones that share a target directory share this program's binary,
/// and a path compiled in would name the clone that built it.
///
/// # Errors
/// When the program was not started by cargo.
pub fn workspace_root() -> Result<PathBuf> {
    let own = env::var_os("CARGO_MANIFEST_DIR")
        .context("CARGO_MANIFEST_DIR is not set: start this program as `cargo xtask`")?;
    let root = Path::new(&own).parent().context("CARGO_MANIFEST_DIR has no parent folder")?;
    Ok(root.to_owned())
}

/// The target directory in use, which holds this program as `<profile>/xtask`.
///
/// # Errors
/// When the program lies outside a target directory.
pub fn target_dir() -> Result<PathBuf> {
    let own = env::current_exe().context("the path of this program is unknown")?;
    let target = own.ancestors().nth(2).context("this program is not in a target directory")?;
    Ok(target.to_owned())
}

/// A command that starts in `dir` and reads nothing from the terminal.
///
/// The variables that `cargo run` sets for this program are removed: build scripts may watch them,
/// and would run again for every change between `cargo xtask` and a plain `cargo build`.
pub fn program(name: impl AsRef<OsStr>, dir: &Path) -> Command {
    let mut command = Command::new(name);
    command.current_dir(dir).stdin(Stdio::null());
    for (key, _) in env::vars_os() {
        let text = key.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&key);
        }
    }
    command
}

/// The cargo that started this program.
pub fn cargo_path() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Cargo with these arguments, at `root`.
pub fn cargo(root: &Path, args: &[&str]) -> Command {
    let mut command = program(cargo_path(), root);
    command.args(args);
    command
}

/// Builds the program in its release profile, so that a later `cargo run` starts it at once.
///
/// # Errors
/// When it does not build.
pub fn build_program(root: &Path) -> Result<()> {
    run(&mut cargo(root, &["build", "--release", "--bin", "scrimp"]))
}

/// Prints the command line and runs it to its end.
///
/// # Errors
/// When it cannot be started or does not exit with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("`{line}` could not be started"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// The command as one would type it, with programs by their names and not their paths.
pub fn line_of(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut line = name.to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line += &arg.to_string_lossy();
    }
    line
}

/// A duration for people: `3.2 s`, `4 min 07 s`.
pub fn human(time: Duration) -> String {
    if time < Duration::from_mins(1) {
        return format!("{:.1} s", time.as_secs_f64());
    }
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

/// The number, from 1, of the first line in which two texts that differ do so.
pub fn first_different_line(left: &[u8], right: &[u8]) -> usize {
    let same = left.iter().zip(right).take_while(|(left, right)| left == right);
    1 + same.filter(|(byte, _)| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_shows_the_name_of_the_program_and_all_arguments() {
        let mut command = Command::new("/opt/tools/typos");
        command.args(["--format", "brief"]);
        assert_eq!(line_of(&command), "typos --format brief");
    }

    #[test]
    fn a_command_that_fails_is_an_error_that_names_it() {
        let message = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err().to_string();
        assert!(message.contains("sh -c exit 3") && message.contains('3'), "{message}");
        let message = run(&mut Command::new("no-such-program")).unwrap_err().to_string();
        assert!(message.contains("`no-such-program` could not be started"), "{message}");
    }

    #[test]
    fn times_are_short_to_read() {
        assert_eq!(human(Duration::from_millis(3240)), "3.2 s");
        assert_eq!(human(Duration::from_secs(247)), "4 min 07 s");
    }

    #[test]
    fn the_first_different_line_counts_from_one() {
        assert_eq!(first_different_line(b"a\nb\nc", b"a\nb\nd"), 3);
        assert_eq!(first_different_line(b"x", b"y"), 1);
        assert_eq!(first_different_line(b"a\n", b"a\nb\n"), 2);
        assert_eq!(first_different_line(b"", b"a"), 1);
    }
}
