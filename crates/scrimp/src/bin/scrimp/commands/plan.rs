use std::path::PathBuf;

use clap::Args;
use scrimp::recipe::{Source, Variant};
use scrimp::train::Role;
use scrimp::train::compute::Choice;
use scrimp::train::cost::{self, Cost, Energy, Moved, ProductCost, StepCost};
use scrimp::train::plan::{LastPhase, Plan, PlannedTensor, Status, Total};

use crate::ui::{self, Side, Table, Ui};

/// Show what every tensor of every layer is held in, which rule says so, and what a step costs, without training.
///
/// Example:
///   scrimp plan recipes/quickstart.toml
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct PlanCommand {
    #[command(flatten)]
    recipe: RecipeArgs,

    /// Only this variant of the recipe
    #[arg(long, value_name = "NAME", help_heading = "Recipe")]
    variant: Option<String>,

    /// Show products, bytes moved and energy of a step for each layer, too
    #[arg(long, help_heading = "Output")]
    cost: bool,

    /// Print one JSON object per tensor, per layer and per total of each variant
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Which recipe, with which changes.
#[derive(Args)]
#[command(next_help_heading = "Recipe")]
pub struct RecipeArgs {
    /// The recipe, TOML or JSON
    #[arg(value_name = "RECIPE")]
    path: PathBuf,

    #[command(flatten)]
    pub changes: Changes,
}

/// What to change in a recipe, and where it is trained.
#[derive(Args)]
#[command(next_help_heading = "Recipe")]
pub struct Changes {
    /// Set a key of the recipe; dots lead into tables: optimizer.lr=0.01, quantize.0.w=int4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,

    /// The device to train on
    #[arg(long, default_value = "flex", value_parser = clap::builder::PossibleValuesParser::new(scrimp::train::DEVICES))]
    pub device: String,
}

impl RecipeArgs {
    pub fn read(&self) -> anyhow::Result<Source> {
        Ok(Source::read(&self.path, &self.changes.settings)?)
    }
}

impl PlanCommand {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        let source = self.recipe.read()?;
        let variants = chosen(&source, self.variant.as_deref())?;
        // All of them first: a table above an error would look like an answer.
        let plans = variants
            .iter()
            .map(|v| Ok((v, source.plan(v, &self.recipe.changes.device)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        for (i, (variant, plan)) in plans.iter().enumerate() {
            if self.json {
                json(ui, variant, plan)?;
                continue;
            }
            if i > 0 {
                ui.say("")?;
            }
            if !source.recipe.variant.is_empty() {
                ui.say_bold(&format!("variant {}", variant.name))?;
            }
            show(ui, variant, plan)?;
            let cost = cost::cost(plan);
            show_cost(ui, &cost.total)?;
            if self.cost {
                show_layers(ui, &cost)?;
            }
        }
        Ok(())
    }
}

fn chosen(source: &Source, name: Option<&str>) -> anyhow::Result<Vec<Variant>> {
    let all = source.recipe.variants(false);
    let Some(name) = name else { return Ok(all) };
    let names: Vec<String> = all.iter().map(|v| v.name.clone()).collect();
    let found: Vec<Variant> = all.into_iter().filter(|v| v.name == name).collect();
    if found.is_empty() {
        anyhow::bail!(
            "the recipe has no variant `{name}`\n  help: its variants are {}",
            names.join(", ")
        );
    }
    Ok(found)
}

fn show(ui: &Ui, variant: &Variant, plan: &Plan) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        ("layer", Side::Left),
        ("tensor", Side::Left),
        ("shape", Side::Left),
        ("scheme", Side::Left),
        ("bits", Side::Right),
        ("bytes", Side::Right),
        ("rule", Side::Left),
    ]);
    let mut last = None;
    for t in &plan.tensors {
        let is_new = last.replace(&t.layer) != Some(&t.layer);
        table.row([
            if is_new { t.layer.clone() } else { String::new() },
            t.role.to_string(),
            shape(t),
            t.scheme.to_string(),
            if t.status == Status::NotComputed { "-".into() } else { format!("{:.2}", t.bits) },
            match (t.status, t.role.has_batch()) {
                (Status::NotComputed, _) => "-".into(),
                (_, true) => format!("{}/step", ui::number(t.bytes as u64)),
                (_, false) => ui::number(t.bytes as u64),
            },
            reason(t, variant),
        ]);
    }
    ui.table(&table)?;
    if let Some(LastPhase { after, earlier }) = plan.phase {
        let phases = ui::count(earlier as u64, "earlier phase");
        ui.say(format_args!("this is how the run ends, after {after}; {phases} before it"))?;
    }
    for line in products(plan) {
        ui.say(line)?;
    }
    let layers = plan.tensors.iter().filter(|t| t.role == Role::Weight).count();
    let computed = || plan.tensors.iter().filter(|t| t.status != Status::NotComputed);
    let claimed = computed().filter(|t| t.rule.is_some()).count();
    ui.say(format_args!(
        "{} · {} · {claimed} claimed by a rule, {} left f32 · 0 skipped",
        ui::count(layers as u64, "layer"),
        ui::count(computed().count() as u64, "tensor"),
        computed().count() - claimed,
    ))?;
    let parameters = plan.total(Role::Weight).join(plan.total(Role::Bias));
    let activations = plan.total(Role::Input).join(plan.total(Role::Output));
    let gradients = [Role::OutputGrad, Role::InputGrad, Role::WeightGrad, Role::BiasGrad]
        .into_iter()
        .fold(Total::default(), |sum, role| sum.join(plan.total(role)));
    let state = [Role::WEIGHT_STATE, Role::BIAS_STATE]
        .into_iter()
        .flatten()
        .fold(Total::default(), |sum, role| sum.join(plan.total(role)));
    for (name, total) in [
        ("weights and biases", parameters),
        ("inputs and outputs, one step", activations),
        ("gradients, one step", gradients),
        ("optimizer state", state),
    ] {
        if total.values == 0 {
            continue;
        }
        let f32_bytes = 4 * total.values as u64;
        ui.say(format_args!(
            "{name}: {} → {} bytes, scales counted ({})",
            ui::number(f32_bytes),
            ui::number(total.bytes as u64),
            ui::ratio(total.bytes as u64, f32_bytes)
        ))?;
    }
    if let Some([[up, down], [float_up, float_down]]) = plan.messages() {
        let (up, down, float_up) = (up as u64, down as u64, float_up as u64);
        ui.say(format_args!(
            "messages of a step: {} → {} bytes from all workers ({}), {} → {} to each",
            ui::number(float_up),
            ui::number(up),
            ui::ratio(up, float_up),
            ui::number(float_down as u64),
            ui::number(down),
        ))?;
    }
    if plan.untapped_parameters > 0 {
        ui.say(format_args!(
            "{} that no rule speaks of, such as running averages, stay f32",
            ui::count(plan.untapped_parameters as u64, "value")
        ))?;
    }
    Ok(())
}

/// Which products are computed in what, and why: a line for each kind and reason.
fn products(plan: &Plan) -> Vec<String> {
    let mut groups: Vec<(Choice, Vec<String>)> = Vec::new();
    for p in &plan.products {
        for (role, choice) in [("y", Some(p.y)), ("dx", p.dx), ("dw", Some(p.dw))] {
            let Some(choice) = choice else { continue };
            let name = format!("{}.{role}", p.layer);
            match groups.iter_mut().find(|(c, _)| *c == choice) {
                Some((_, names)) => names.push(name),
                None => groups.push((choice, vec![name])),
            }
        }
    }
    let all: usize = groups.iter().map(|(_, names)| names.len()).sum();
    let line = |(choice, names): (Choice, Vec<String>)| {
        let why = if choice.why.is_empty() { String::new() } else { format!(": {}", choice.why) };
        let (kind, count) = (choice.kind.name(), names.len());
        let names = match &names[..] {
            _ if count == all => "all products of layers".into(),
            [first, .., last] if count > 6 => format!("{count} products, {first} to {last}"),
            names => names.join(", "),
        };
        format!("computed in {kind}: {names}{why}")
    };
    groups.into_iter().map(line).collect()
}

/// What a step costs: products by what is multiplied, bytes moved, and energy.
fn show_cost(ui: &Ui, total: &StepCost) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        ("MACs of a step", Side::Left),
        ("y", Side::Right),
        ("dx", Side::Right),
        ("dw", Side::Right),
        ("pJ each", Side::Right),
    ]);
    let mut pairs: Vec<(&[String; 2], f64)> = Vec::new();
    for ProductCost { factors, picojoules, .. } in &total.products {
        if pairs.iter().all(|(known, _)| *known != factors) {
            pairs.push((factors, *picojoules));
        }
    }
    for (factors, picojoules) in pairs {
        let macs = |role| {
            let of = total.products.iter().filter(|p| p.product == role && p.factors == *factors);
            match of.map(|p| p.macs).sum() {
                0 => "-".to_owned(),
                macs => ui::number(macs),
            }
        };
        table.row([
            factors.join(" x "),
            macs(Role::Output),
            macs(Role::InputGrad),
            macs(Role::WeightGrad),
            format!("{picojoules:.2}"),
        ]);
    }
    ui.table(&table)?;
    for (traffic, Moved { bytes, f32_bytes }) in &total.moved {
        let (bytes, f32_bytes) = (*bytes as u64, *f32_bytes as u64);
        ui.say(format_args!(
            "moved in a step, {}: {} → {} bytes ({})",
            traffic.name(),
            ui::number(f32_bytes),
            ui::number(bytes),
            ui::ratio(bytes, f32_bytes)
        ))?;
    }
    let StepCost { energy, f32_energy, .. } = total;
    ui.say(format_args!(
        "energy of a step, an estimate (Horowitz 2014, 45 nm): arithmetic {} mJ (f32 {}), memory {} mJ in {} (f32 {} in {})",
        significant(energy.arithmetic_mj),
        significant(f32_energy.arithmetic_mj),
        memory_mj(energy),
        energy.memory,
        memory_mj(f32_energy),
        f32_energy.memory,
    ))?;
    Ok(())
}

/// What each layer's part of a step costs.
fn show_layers(ui: &Ui, cost: &Cost) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        ("layer", Side::Left),
        ("y", Side::Left),
        ("dx", Side::Left),
        ("dw", Side::Left),
        ("MACs", Side::Right),
        ("bytes moved", Side::Right),
        ("f32", Side::Right),
        ("arithmetic mJ", Side::Right),
        ("f32", Side::Right),
        ("memory mJ", Side::Right),
        ("f32", Side::Right),
    ]);
    for (name, cost, is_layer) in cost
        .layers
        .iter()
        .map(|l| (l.layer.as_str(), &l.cost, true))
        .chain([("total", &cost.total, false)])
    {
        let factors = |role| {
            let found = cost.products.iter().find(|p| is_layer && p.product == role);
            found.map_or_else(|| "-".to_owned(), |p| p.factors.join(" x "))
        };
        let Moved { bytes, f32_bytes } = cost.all_moved();
        let StepCost { energy, f32_energy, .. } = cost;
        table.row([
            name.to_owned(),
            factors(Role::Output),
            factors(Role::InputGrad),
            factors(Role::WeightGrad),
            ui::number(cost.macs()),
            ui::number(bytes as u64),
            ui::number(f32_bytes as u64),
            significant(energy.arithmetic_mj),
            significant(f32_energy.arithmetic_mj),
            memory_mj(energy),
            memory_mj(f32_energy),
        ]);
    }
    ui.table(&table)?;
    Ok(())
}

/// Millijoules of memory, from the least to the most.
fn memory_mj(energy: &Energy) -> String {
    match energy.memory_mj.map(significant) {
        [least, most] if least == most => least,
        [least, most] => format!("{least} to {most}"),
    }
}

/// A number with two digits that count; more would promise what an estimate cannot keep.
fn significant(value: f64) -> String {
    let places = if value > 0.0 { 1.0 - value.log10().floor() } else { 0.0 };
    let places = (0..9_u8).find(|n| f64::from(*n) >= places).unwrap_or(9);
    format!("{value:.*}", usize::from(places))
}

/// Axis 0 of an activation is the batch.
fn shape(t: &PlannedTensor) -> String {
    let whole = ui::shape(&t.shape);
    match (t.role.has_batch(), whole.split_once(',')) {
        (true, Some((_, rest))) => format!("[·,{rest}"),
        _ => whole,
    }
}

fn reason(t: &PlannedTensor, variant: &Variant) -> String {
    match (t.status, t.rule) {
        (Status::NotComputed, _) => "not computed: the data need no gradient".into(),
        (_, None) => "no rule".into(),
        (status, Some(rule)) => {
            let note = variant.rules.get(rule - 1).and_then(|r| r.note.as_deref());
            let note = note.map_or(String::new(), |note| format!(" \"{note}\""));
            let how = match (status, t.master) {
                (Status::Packed, _) => ", packed",
                (_, Some(false)) => ", no f32 master",
                _ => "",
            };
            let after = variant.rules.get(rule - 1).and_then(|r| r.after);
            let after = after.map_or(String::new(), |when| format!(" after {when}"));
            format!("#{rule}{after}{note}{how}")
        }
    }
}

fn json(ui: &Ui, variant: &Variant, plan: &Plan) -> anyhow::Result<()> {
    for t in &plan.tensors {
        ui.json(&serde_json::json!({"type": "tensor", "variant": variant.name, "tensor": t}))?;
    }
    for p in &plan.products {
        ui.json(&serde_json::json!({
            "type": "products", "variant": variant.name, "products": p,
        }))?;
    }
    for role in Role::ALL {
        let total = plan.total(role);
        ui.json(&serde_json::json!({
            "type": "total", "variant": variant.name, "role": role, "values": total.values,
            "bytes": total.bytes, "bits": total.bits(),
        }))?;
    }
    let Cost { layers, total } = cost::cost(plan);
    for layer in layers {
        ui.json(&serde_json::json!({
            "type": "layer_cost", "variant": variant.name, "cost": layer,
        }))?;
    }
    ui.json(&serde_json::json!({"type": "cost", "variant": variant.name, "cost": total}))?;
    Ok(())
}
