//! The checks, in the order in which they run: quick ones first, and those that share a build
//! next to each other.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result, bail};

use crate::{
    book,
    command::{self, cargo},
    readme,
    setup::{self, Tool},
    show,
};

struct Step {
    name: &'static str,
    about: &'static str,
    tools: &'static [&'static Tool],
    run: fn(&Path) -> Result<()>,
}

const STEPS: &[Step] = &[
    Step { name: "fmt", about: "formatting", tools: &[&setup::RUSTFMT], run: fmt },
    Step { name: "typos", about: "spelling", tools: &[&setup::TYPOS], run: typos },
    Step { name: "deny", about: "licences and sources", tools: &[&setup::DENY], run: deny },
    Step { name: "clippy", about: "lints", tools: &[&setup::CLIPPY], run: clippy },
    Step { name: "docs", about: "documentation builds", tools: &[], run: docs },
    Step {
        name: "test",
        about: "unit and integration tests",
        tools: &[&setup::NEXTEST],
        run: test,
    },
    Step { name: "doctest", about: "examples in the documentation", tools: &[], run: doctest },
    Step {
        name: "schema",
        about: "the stored schemas of recipes and sweeps are current",
        tools: &[],
        run: schema,
    },
    Step { name: "book", about: "the book is current", tools: &[], run: book::check },
    Step { name: "readme", about: "commands of README.md", tools: &[], run: readme::run },
];

/// `cargo xtask ci`: runs all steps, or those named, until one fails.
///
/// # Errors
/// When a name is no step, a tool is missing and cannot be installed, or a step fails.
pub fn run(args: &[String]) -> Result<()> {
    if args.iter().any(|arg| arg == "--list") {
        show(&list());
        return Ok(());
    }
    let steps = chosen(args)?;
    let root = command::workspace_root()?;
    let start = Instant::now();

    let tools: Vec<&Tool> = steps.iter().flat_map(|step| step.tools.iter().copied()).collect();
    setup::ensure(&tools)?;

    let mut times = Vec::new();
    for step in &steps {
        eprintln!("\n==> {}: {}", step.name, step.about);
        let start = Instant::now();
        (step.run)(&root).with_context(|| {
            let time = command::human(start.elapsed());
            format!("step `{0}` failed after {time}; `cargo xtask ci {0}` repeats it", step.name)
        })?;
        let time = command::human(start.elapsed());
        eprintln!("==> {}: passed in {time}", step.name);
        times.push((step.name, time));
    }

    eprintln!();
    for (name, time) in &times {
        eprintln!("{name:<10}{time:>13}");
    }
    eprintln!(
        "ci: {} of {} steps ran, all passed, in {}",
        times.len(),
        STEPS.len(),
        command::human(start.elapsed())
    );
    Ok(())
}

/// The steps with these names, in the order of the table; all of them when there are no names.
fn chosen(names: &[String]) -> Result<Vec<&'static Step>> {
    if let Some(unknown) = names.iter().find(|name| STEPS.iter().all(|step| step.name != **name)) {
        bail!("there is no step `{unknown}`; the steps are\n{}", list());
    }
    let all = names.is_empty();
    Ok(STEPS.iter().filter(|step| all || names.iter().any(|name| name == step.name)).collect())
}

fn list() -> String {
    let lines: Vec<String> =
        STEPS.iter().map(|step| format!("  {:<10}{}\n", step.name, step.about)).collect();
    lines.concat()
}

fn fmt(root: &Path) -> Result<()> {
    command::run(&mut cargo(root, &["fmt", "--all", "--check"]))
}

fn typos(root: &Path) -> Result<()> {
    command::run(&mut setup::TYPOS.command(root)?)
}

fn deny(root: &Path) -> Result<()> {
    let mut deny = setup::DENY.command(root)?;
    // Without the advisories, whose database is a download and changes from day to day.
    command::run(deny.args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
}

fn clippy(root: &Path) -> Result<()> {
    command::run(&mut cargo(
        root,
        &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    ))
}

fn docs(root: &Path) -> Result<()> {
    // With the examples, so that the dependencies have the features they have for the lints and
    // the tests; by itself `cargo doc` would check all of them, the engine included, once more.
    let targets = ["doc", "--no-deps", "--workspace", "--lib", "--examples"];
    command::run(cargo(root, &targets).env("RUSTDOCFLAGS", "-D warnings"))
}

fn test(root: &Path) -> Result<()> {
    let mut tests = if setup::NEXTEST.find().is_some() {
        let mut nextest = setup::NEXTEST.command(root)?;
        nextest.args(["nextest", "run", "--workspace", "--profile", "ci"]);
        nextest
    } else {
        // Step `doctest` has the rest.
        cargo(root, &["test", "--workspace", "--lib", "--bins", "--tests", "--examples"])
    };
    // A snapshot that differs fails the test and leaves no file behind.
    command::run(tests.env("INSTA_UPDATE", "no"))
}

fn doctest(root: &Path) -> Result<()> {
    command::run(&mut cargo(root, &["test", "--doc", "--workspace"]))
}

fn schema(root: &Path) -> Result<()> {
    // Apart from the runs, which are silent.
    command::build_program(root)?;
    for kind in ["recipe", "sweep"] {
        let stored_in = format!("recipes/{kind}.schema.json");
        let stored =
            fs::read(root.join(&stored_in)).with_context(|| format!("cannot read {stored_in}"))?;
        let mut print = cargo(root, &["run", "--release", "-q", "--", "schema", kind]);
        print.stderr(std::process::Stdio::inherit());
        let line = command::line_of(&print);
        eprintln!("$ {line}");
        let output = print.output().with_context(|| format!("`{line}` could not be started"))?;
        if !output.status.success() {
            bail!("`{line}` ended with {}", output.status);
        }
        if output.stdout != stored {
            bail!(
                "{stored_in} differs from what the program prints, first in line {}; \
                 renew it with `{line} > {stored_in}`",
                command::first_different_line(&stored, &output.stdout)
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(args: &[&str]) -> Vec<&'static str> {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        chosen(&args).unwrap().iter().map(|step| step.name).collect()
    }

    #[test]
    fn no_names_mean_all_steps_and_names_run_in_the_order_of_the_table() {
        assert_eq!(names(&[]).len(), STEPS.len());
        assert_eq!(names(&["test", "fmt", "test"]), ["fmt", "test"]);
    }

    #[test]
    fn a_step_that_does_not_exist_is_an_error_that_lists_the_steps() {
        let message = chosen(&["tests".to_owned()]).err().unwrap().to_string();
        assert!(message.contains("`tests`"), "{message}");
        for step in STEPS {
            assert!(message.contains(step.name), "{message}");
        }
    }
}
