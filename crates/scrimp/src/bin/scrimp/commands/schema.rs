use clap::{Args, ValueEnum};
use scrimp::recipe::Recipe;
use scrimp::sweep::SweepFile;

use crate::ui::Ui;

/// Print the JSON Schema of recipes or of sweeps, for editors.
///
/// Example:
///   scrimp schema > recipe.schema.json
///
/// An editor with TOML support takes it up from a first line `#:schema ./recipe.schema.json`.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Schema {
    /// Of which files
    #[arg(value_name = "KIND", default_value = "recipe")]
    kind: Kind,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// What `scrimp train` takes
    Recipe,
    /// What `scrimp sweep` takes
    Sweep,
}

impl Schema {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        let schema = match self.kind {
            Kind::Recipe => schemars::schema_for!(Recipe),
            Kind::Sweep => schemars::schema_for!(SweepFile),
        };
        Ok(ui.say(serde_json::to_string_pretty(&schema)?)?)
    }
}
