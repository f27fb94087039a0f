//! One file per command, one row per command in [`Command`].

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand};

use crate::ui::Ui;

mod bench;
mod completions;
mod decode;
mod encode;
mod export;
mod formats;
mod inspect;
mod plan;
mod quantize;
mod schema;
mod score;
mod sweep;
mod train;

/// The colours of help texts, the same as those of errors.
const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default())
    .error(AnsiColor::Red.on_default().bold())
    .valid(AnsiColor::Cyan.on_default())
    .invalid(AnsiColor::Yellow.on_default());

/// Put any number format on any tensor of a neural network, and count every byte.
///
/// Example:
///   scrimp encode model.safetensors --scheme int8/channel -o small.safetensors
///   scrimp inspect small.safetensors
#[derive(Parser)]
#[command(
    name = "scrimp",
    version,
    verbatim_doc_comment,
    styles = STYLES,
    max_term_width = 100,
    after_help = "`scrimp help formats` explains how a scheme such as int4/group:64 is written."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Use this many threads [default: one per core]
    #[arg(
        long,
        global = true,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=1024),
        help_heading = "Everywhere"
    )]
    threads: Option<u16>,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Train),
    Sweep(sweep::SweepCommand),
    Plan(plan::PlanCommand),
    Formats(formats::Formats),
    Encode(encode::Encode),
    Decode(decode::Decode),
    Inspect(inspect::Inspect),
    Score(score::ScoreCommand),
    Quantize(Box<quantize::QuantizeCommand>),
    Export(export::Export),
    Bench(bench::Bench),
    Schema(schema::Schema),
    Completions(completions::Completions),
}

impl Cli {
    /// Does what was asked.
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        if let Some(threads) = self.threads {
            rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global()?;
        }
        match self.command {
            Command::Train(command) => command.run(ui),
            Command::Sweep(command) => command.run(ui),
            Command::Plan(command) => command.run(ui),
            Command::Formats(command) => command.run(ui),
            Command::Encode(command) => command.run(ui),
            Command::Decode(command) => command.run(ui),
            Command::Inspect(command) => command.run(ui),
            Command::Score(command) => command.run(ui),
            Command::Quantize(command) => command.run(ui),
            Command::Export(command) => command.run(ui),
            Command::Bench(command) => command.run(ui),
            Command::Schema(command) => command.run(ui),
            Command::Completions(command) => command.run(ui),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
