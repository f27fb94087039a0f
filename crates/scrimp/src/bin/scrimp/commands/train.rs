use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use scrimp::run::{self, GRADIENTS, Report, Row, RunRequest};
use scrimp::train::Role;

use super::plan::RecipeArgs;
use crate::allocator;
use crate::interrupt;
use crate::live::{Live, Mode, clock};
use crate::ui::{self, Side, Table, Ui};

/// Train a network with a number format on every tensor, beside the float run.
///
/// Examples:
///   scrimp train recipes/quickstart.toml
///   scrimp train recipes/mnist.toml --baseline --seeds 3 --data-dir ~/data
///   scrimp train recipes/mnist.toml --set epochs=1 --set optimizer.lr=0.002
///   scrimp train recipes/mnist.toml --resume runs/mnist-1
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Train {
    #[command(flatten)]
    recipe: RecipeArgs,

    /// Add the run without any rule, which the others are compared with
    #[arg(long, help_heading = "Recipe")]
    baseline: bool,

    /// Repeat every run with so many seeds, counted up from the recipe's
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Recipe")]
    seeds: u32,

    /// Where data sets lie [default: the folder that `SCRIMP_DATA` names]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    data_dir: Option<PathBuf>,

    /// The run folder to make [default: runs/RECIPE-1, -2, ...]
    #[arg(long, value_name = "DIR", conflicts_with = "resume", help_heading = "Output")]
    out: Option<PathBuf>,

    /// Go on with the run in this folder: what is done stays, the rest starts at the last checkpoint
    #[arg(long, value_name = "RUN_FOLDER", help_heading = "Output")]
    resume: Option<PathBuf>,

    /// Print JSON, one object per line, instead of tables
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Train {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        let source = self.recipe.read()?;
        allocator::set_memory(source.recipe.saves_memory());
        if self.resume.as_ref().is_some_and(|f| !f.is_dir()) {
            bail!("{}: there is no such run folder", self.resume.unwrap_or_default().display());
        }
        let folder = self.resume.clone().or(self.out.clone());
        let request = RunRequest {
            folder: folder.unwrap_or_else(|| run::new_folder("runs".as_ref(), &source.path)),
            resume: self.resume.is_some(),
            data_dir: self.data_dir.clone(),
            device: self.recipe.changes.device.clone(),
            baseline: self.baseline,
            seeds: self.seeds,
            source,
        };
        interrupt::catch();
        let variants = request.source.recipe.variants(request.baseline);
        let names = variants.iter().map(|v| v.name.as_str());
        let mut watch = Live::new(ui, names, request.seeds > 1, Mode::of(self.json));
        let report = match run::run(&request, &mut watch) {
            Ok(report) => report,
            Err(e) => return Err(watch.ended(e, "the run can be resumed")),
        };
        if self.json {
            return Ok(ui.json(
                &serde_json::json!({"type": "report", "folder": request.folder, "report": report}),
            )?);
        }
        ui.say("")?;
        ui.table(&table(&report))?;
        let against = match float_run(&report) {
            Some(float) => format!("; Δ and x: against {}", float.variant),
            None => String::new(),
        };
        ui.say(format_args!(
            "bits per value and bytes count scales; b/step: bytes of one batch{against}"
        ))?;
        ui.say(format_args!("total {}", clock(watch.elapsed())))?;
        ui.say_made(&request.folder)?;
        Ok(ui.say(format_args!("  next: scrimp inspect {}", ui::shell_word(&request.folder)))?)
    }
}

/// One row for each variant.
fn table(report: &Report) -> Table {
    let float = float_run(report);
    let mut columns = vec![("scheme", Side::Left), ("test acc", Side::Right)];
    columns.extend(float.map(|_| ("Δ", Side::Right)));
    columns.extend(
        [
            "w bits",
            "x bits",
            "y bits",
            "d bits",
            "packed w b",
            "x y b/step",
            "d b/step",
            "packed m v",
            "step",
        ]
        .map(|title| (title, Side::Right)),
    );
    let mut table = Table::new(&columns);
    for row in &report.rows {
        let several = row.seeds.len() > 1;
        let sd = if several { format!(" ±{:.2}", 100.0 * row.accuracy.sd) } else { String::new() };
        let difference = float.map(|float| {
            if float.variant == row.variant {
                String::new()
            } else {
                format!("{:+.2}", 100.0 * (row.accuracy.mean - float.accuracy.mean))
            }
        });
        let speed = match (row.step_ms, float.and_then(|float| float.step_ms)) {
            (Some(ms), Some(float)) => format!("{ms:.1} ms {:.2}x", ms / float),
            (Some(ms), None) => format!("{ms:.1} ms"),
            (None, _) => "-".into(),
        };
        let bytes = |roles: &[Role]| run::bytes(&row.sizes.roles, roles);
        let (activations, gradients) = (bytes(&[Role::Input, Role::Output]), bytes(&GRADIENTS));
        let mut cells =
            vec![row.variant.clone(), format!("{:.2} %{sd}", 100.0 * row.accuracy.mean)];
        cells.extend(difference);
        cells.extend([
            bits(row, &[Role::Weight]),
            bits(row, &[Role::Input]),
            bits(row, &[Role::Output]),
            bits(row, &GRADIENTS),
            ui::number(row.sizes.packed_bytes),
            ui::number(activations as u64),
            ui::number(gradients as u64),
            ui::number(bytes(&STATE) as u64),
            speed,
        ]);
        table.row(cells);
    }
    table
}

/// The variant that holds every tensor in f32, which the others are compared with.
fn float_run(report: &Report) -> Option<&Row> {
    report.rows.iter().find(|row| run::is_float(&row.sizes.roles))
}

/// What the optimizer keeps.
const STATE: [Role; 6] = [
    Role::Moment1,
    Role::BiasMoment1,
    Role::Moment2,
    Role::BiasMoment2,
    Role::LargestMoment2,
    Role::BiasLargestMoment2,
];

fn bits(row: &Row, roles: &[Role]) -> String {
    ui::bits(run::bits(&row.sizes.roles, roles))
}
