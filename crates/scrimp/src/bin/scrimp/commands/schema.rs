use clap::Args;
use scrimp::recipe::Recipe;

use crate::ui::Ui;

/// Print the JSON Schema of recipes, for editors.
///
/// Example:
///   scrimp schema > recipe.schema.json
///
/// An editor with TOML support takes it up from a first line `#:schema ./recipe.schema.json`.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Schema {}

impl Schema {
    #[expect(clippy::unused_self, reason = "every command is called alike")]
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        let schema = schemars::schema_for!(Recipe);
        Ok(ui.say(serde_json::to_string_pretty(&schema)?)?)
    }
}
