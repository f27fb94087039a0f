use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::ui::Ui;

/// Print the completion script of a shell.
///
/// Example:
///   scrimp completions bash > ~/.local/share/bash-completion/completions/scrimp
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Completions {
    /// The shell that will read the script: bash, elvish, fish, powershell or zsh
    #[arg(hide_possible_values = true)]
    shell: Shell,
}

impl Completions {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "scrimp", &mut script);
        Ok(ui.raw(&script)?)
    }
}
