//! The project's one door for checks: `cargo xtask ci` runs what CI runs.

mod book;
mod ci;
mod command;
mod readme;
mod setup;

use std::{env, process::ExitCode};

use anyhow::bail;

/// One thing this program can do, called as `cargo xtask NAME`.
struct Task {
    name: &'static str,
    usage: &'static str,
    about: &'static str,
    run: fn(&[String]) -> anyhow::Result<()>,
}

const TASKS: &[Task] = &[
    Task {
        name: "ci",
        usage: "ci [--list] [STEP...]",
        about: "run all checks, or the named ones; `--list` names them",
        run: ci::run,
    },
    Task {
        name: "book",
        usage: "book",
        about: "renew the parts of the book that are generated",
        run: book::run,
    },
    Task {
        name: "setup",
        usage: "setup",
        about: "install the tools that the checks need and this machine lacks",
        run: setup::run,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> =
        env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> anyhow::Result<()> {
    let (name, rest) = match args.split_first() {
        None => ("help", args),
        Some((name, rest)) => (name.as_str(), rest),
    };
    if matches!(name, "help" | "--help" | "-h") {
        show(&help());
        return Ok(());
    }
    match TASKS.iter().find(|task| task.name == name) {
        Some(task) => (task.run)(rest),
        None => bail!("there is no task `{name}`\n\n{}", help()),
    }
}

fn help() -> String {
    let mut lines = vec!["Usage: cargo xtask TASK\n\nTasks:\n".to_owned()];
    lines.extend(TASKS.iter().map(|task| format!("  {:<24}{}\n", task.usage, task.about)));
    lines.concat()
}

/// Prints what the user asked to see; progress goes to the other stream.
#[expect(clippy::print_stdout, reason = "this is the answer to the user's question")]
fn show(text: &str) {
    print!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_task_is_refused_with_the_list_of_tasks() {
        let message = dispatch(&["lint".to_owned()]).unwrap_err().to_string();
        assert!(message.contains("`lint`"), "{message}");
        for task in TASKS {
            assert!(message.contains(task.usage), "{message}");
        }
    }
}
