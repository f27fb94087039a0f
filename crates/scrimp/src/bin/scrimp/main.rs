//! The command line of scrimp.

use std::process::ExitCode;

use clap::Parser;

mod allocator;
mod commands;
mod interrupt;
mod live;
mod output;
mod sizes;
mod tensors;
mod ui;

fn main() -> ExitCode {
    let ui = ui::Ui::new();
    match commands::Cli::try_parse() {
        Ok(cli) => match cli.run(&ui) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => ui.fail(&error),
        },
        // Help and version come here as well; `exit` knows where each belongs and its code.
        Err(error) => error.exit(),
    }
}
