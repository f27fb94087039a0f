use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use anyhow::bail;
use clap::{Args, ValueEnum};
use scrimp::score::{
    Distribution, LeftOut, Outcome, Scorer, Survey, TensorScores, USUAL_SCHEMES, all_schemes, page,
};
use scrimp_codec::{Scheme, SchemeError, Stream};
use scrimp_files::{Entry, FileError, Kind, Reader, open, write_atomic};

use crate::interrupt::{self, Interrupted};
use crate::output::check_free;
use crate::tensors::{Pattern, are_weights, fitted, no_match, unrounded};
use crate::ui::{self, Ui, printable};

mod lines;
mod text;

use lines::{csv, json};
use text::Text;

/// Compare schemes on the tensors of a file: bits per value against what rounding loses.
///
/// Example:
///   scrimp score model.safetensors --schemes int8/channel,e4m3fn,int4/group:32 --html score.html
///
/// Every float tensor is encoded and decoded under every scheme. Bits are counted from the bytes
/// that were written, scales included. The loss is the ratio of signal to quantization noise in
/// dB: 6 dB more is an error half as large.
///
/// Tensors of a checkpoint are taken as weights, an .npy array as it is, just as `scrimp encode`
/// takes them. One tensor is in memory at a time.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct ScoreCommand {
    /// Tensors to read: .safetensors, .pt .pth .th .bin, or .npy
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// The schemes, as int8,e4m3fn,int4/group:32, or `all` [default: some of each size]
    #[arg(short, long, value_name = "LIST", help_heading = "What to score")]
    schemes: Option<SchemeList>,

    /// Score the tensors whose names match alone
    #[arg(short, long, value_name = "GLOB", help_heading = "What to score")]
    tensors: Vec<Pattern>,

    /// Seed of stochastic rounding [default: 0]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "What to score"
    )]
    seed: u32,

    /// Print every tensor under every scheme, and all schemes over all tensors
    #[arg(long, help_heading = "Output")]
    full: bool,

    /// The order of tensors; `loss` begins with those that lose most
    #[arg(long, value_name = "ORDER", default_value = "file", help_heading = "Output")]
    sort: Order,

    /// Draw histograms and error against bits on a page
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    html: Option<PathBuf>,

    /// Write every tensor under every scheme to a table; `-` prints it instead of the tables
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    csv: Option<PathBuf>,

    /// Replace what --html and --csv name if it exists
    #[arg(long, help_heading = "Output")]
    force: bool,

    /// Print one JSON object per tensor and scheme, and one per scheme with the sums
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// The order of tensors.
#[derive(Clone, Copy, ValueEnum)]
enum Order {
    /// As in the file
    File,
    /// By name
    Name,
    /// The largest first
    Values,
    /// Those that lose most first
    Loss,
}

/// Schemes between commas.
#[derive(Clone, Debug)]
enum SchemeList {
    /// Those that the user named.
    Named(Vec<Scheme>),
    /// All that there are.
    All,
}

impl FromStr for SchemeList {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text == "all" {
            return Ok(Self::All);
        }
        let mut schemes: Vec<Scheme> = Vec::new();
        for text in between_commas(text) {
            let scheme: Scheme = text.parse().map_err(|mut error: SchemeError| {
                if text == "all" {
                    error.help = "`all` stands alone".into();
                }
                error
            })?;
            if schemes.contains(&scheme) {
                bail!("`{scheme}` is named twice");
            }
            schemes.push(scheme);
        }
        Ok(Self::Named(schemes))
    }
}

/// The schemes of a list. Some have commas of their own, which digits follow; no scheme begins with one.
fn between_commas(list: &str) -> impl Iterator<Item = &str> {
    let is_cut = |&(place, _): &(usize, &str)| {
        !list[place + 1..].starts_with(|next: char| next.is_ascii_digit())
    };
    let cuts: Vec<usize> = list.match_indices(',').filter(is_cut).map(|(place, _)| place).collect();
    let starts = std::iter::once(0).chain(cuts.clone().into_iter().map(|cut| cut + 1));
    starts.zip(cuts.into_iter().chain([list.len()])).map(|(start, end)| &list[start..end])
}

/// A tensor to score, and how it takes each scheme.
struct Task {
    file: usize,
    place: usize,
    fitted: Vec<Result<Scheme, String>>,
}

impl ScoreCommand {
    pub fn run(self, ui: &Ui) -> anyhow::Result<()> {
        let csv_is_printed = self.csv.as_deref() == Some(Path::new("-"));
        if csv_is_printed && self.json {
            bail!("--json and --csv - would print both to the standard output");
        }
        let inputs: Vec<&Path> = self.files.iter().map(PathBuf::as_path).collect();
        let written = [self.html.as_deref(), self.csv.as_deref().filter(|_| !csv_is_printed)];
        for path in written.into_iter().flatten() {
            check_free(path, &inputs, self.force)?;
        }
        let readers = self.open_all()?;
        let schemes = self.candidates();
        let (tasks, left_out) = self.tasks(&readers, &schemes)?;

        let start = Instant::now();
        let mut survey = Survey { schemes, tensors: Vec::new(), left_out };
        self.score(ui, &readers, &tasks, &mut survey)?;
        self.order(&mut survey.tensors);
        let seconds = start.elapsed().as_secs_f64();

        if let Some(path) = &self.html {
            write(path, &page::render(&survey)?)?;
        }
        if let Some(path) = self.csv.as_deref().filter(|_| !csv_is_printed) {
            write(path, &csv(&survey)?)?;
        }
        if csv_is_printed {
            ui.raw(csv(&survey)?.as_bytes())?;
        } else if self.json {
            json(ui, &survey)?;
        } else {
            let made: Vec<(&Path, &str)> = [
                (self.html.as_deref(), "histograms, error against bits"),
                (self.csv.as_deref(), "every tensor under every scheme"),
            ]
            .into_iter()
            .filter_map(|(path, what)| Some((path?, what)))
            .collect();
            let text = Text {
                survey: &survey,
                readers: &readers,
                full: self.full,
                folds_vectors: self.tensors.is_empty(),
                seconds,
            };
            text.print(ui, &made)?;
            if self.html.is_none() {
                self.next(ui)?;
            }
        }
        failures(&survey)
    }

    fn open_all(&self) -> anyhow::Result<Vec<Reader>> {
        let open_one = |path: &PathBuf| {
            let reader = open(path)?;
            if reader.kind() == Kind::Packed {
                bail!(
                    "{} is packed already\n  help: score the file that it came from, since what is \
                     lost is lost",
                    path.display()
                );
            }
            Ok(reader)
        };
        self.files.iter().map(open_one).collect()
    }

    fn candidates(&self) -> Vec<Scheme> {
        match &self.schemes {
            Some(SchemeList::Named(schemes)) => schemes.clone(),
            Some(SchemeList::All) => all_schemes(),
            // They are schemes, as a test asserts.
            None => USUAL_SCHEMES.iter().filter_map(|text| text.parse().ok()).collect(),
        }
    }

    /// What is to be scored, and what is not.
    fn tasks(
        &self,
        readers: &[Reader],
        schemes: &[Scheme],
    ) -> anyhow::Result<(Vec<Task>, Vec<LeftOut>)> {
        let names: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        let all_names = names.join(", ");
        let entries: Vec<Entry> = readers.iter().flat_map(Reader::entries).cloned().collect();
        for pattern in &self.tensors {
            let mut matched = entries.iter().filter(|entry| pattern.matches(&entry.name));
            let Some(first) = matched.clone().next() else {
                return Err(no_match("--tensors", pattern.text(), pattern, &all_names, &entries));
            };
            if matched.all(|entry| unrounded(entry.dtype).is_some()) {
                bail!(
                    "`--tensors {}` matches no float tensor of {all_names}: `{}` is {}",
                    pattern.text(),
                    first.name,
                    first.dtype
                );
            }
        }

        let (mut tasks, mut left_out) = (Vec::new(), Vec::new());
        for (file, reader) in readers.iter().enumerate() {
            for (place, entry) in reader.entries().iter().enumerate() {
                let is_meant = |pattern: &Pattern| pattern.matches(&entry.name);
                if !self.tensors.is_empty() && !self.tensors.iter().any(is_meant) {
                    continue;
                }
                let reason = unrounded(entry.dtype).or((entry.values() == 0).then_some("empty"));
                if let Some(reason) = reason {
                    left_out.push(LeftOut {
                        file: names[file].clone(),
                        name: entry.name.clone(),
                        dtype: entry.dtype,
                        reason: reason.to_owned(),
                    });
                    continue;
                }
                let is_weight = are_weights(reader.kind());
                let fit = |scheme| {
                    fitted(scheme, &entry.shape, is_weight).map_err(|problem| problem.to_string())
                };
                tasks.push(Task { file, place, fitted: schemes.iter().map(fit).collect() });
            }
        }
        let axes = |task: &&Task| readers[task.file].entries()[task.place].shape.len();
        // The tensor with most axes says best what does not fit.
        let Some(widest) = tasks.iter().rev().max_by_key(axes) else {
            let reasons: Vec<String> =
                left_out.iter().map(|left| format!("{} ({})", left.name, left.reason)).collect();
            let reasons: Vec<&str> = reasons.iter().map(String::as_str).collect();
            let held = if reasons.is_empty() {
                "none at all".to_owned()
            } else {
                ui::Few(&reasons).to_string()
            };
            bail!("{all_names}: no float tensor to score, but {held}");
        };
        // A scheme that was asked for by name is meant to be compared.
        if matches!(self.schemes, Some(SchemeList::Named(_))) {
            for (i, scheme) in schemes.iter().enumerate() {
                if let Err(problem) = &widest.fitted[i]
                    && tasks.iter().all(|task| task.fitted[i].is_err())
                {
                    let name = &readers[widest.file].entries()[widest.place].name;
                    bail!("`{scheme}` fits no tensor of {all_names}; of `{name}`: {problem}");
                }
            }
        }
        Ok((tasks, left_out))
    }

    /// Scores one tensor after another, with a bar, and stops on Ctrl-C.
    fn score(
        &self,
        ui: &Ui,
        readers: &[Reader],
        tasks: &[Task],
        survey: &mut Survey,
    ) -> anyhow::Result<()> {
        let entry = |task: &Task| &readers[task.file].entries()[task.place];
        let f32_bytes = |task: &Task| 4 * entry(task).values() as u64;
        let total = tasks.iter().map(|task| f32_bytes(task) * task.fitted.len() as u64).sum();
        let mut scorer = Scorer::default();
        let most_bytes = |task: &Task| {
            let shape = &entry(task).shape;
            let sizes = task.fitted.iter().flatten().filter_map(|s| s.size(shape).ok());
            sizes.map(|size| size.most).max().unwrap_or(0)
        };
        scorer.reserve(
            tasks.iter().map(|task| entry(task).values()).max().unwrap_or(0),
            tasks.iter().map(most_bytes).max().unwrap_or(0),
        );

        interrupt::catch();
        let mut progress = ui.progress("score", total);
        let mut values = Vec::new();
        for task in tasks {
            let Entry { name, shape, dtype, .. } = entry(task);
            readers[task.file].read_f32_into(task.place, &mut values)?;
            let stream = Stream::named(self.seed, name);
            let mut outcomes = Vec::with_capacity(task.fitted.len());
            for fitted in &task.fitted {
                if interrupt::requested() {
                    drop(progress);
                    return Err(Interrupted { outcome: "nothing was written" }.into());
                }
                outcomes.push(match fitted {
                    Err(problem) => Outcome::Unfit(problem.clone()),
                    Ok(scheme) => match scorer.score(&values, shape, scheme, &stream) {
                        Ok(score) => Outcome::Scored(score),
                        Err(problem) => Outcome::Failed(problem.to_string()),
                    },
                });
                progress.advance(f32_bytes(task));
            }
            survey.tensors.push(TensorScores {
                file: self.files[task.file].display().to_string(),
                name: name.clone(),
                shape: shape.clone(),
                dtype: *dtype,
                distribution: Distribution::of(&values),
                outcomes,
            });
        }
        Ok(())
    }

    fn order(&self, tensors: &mut [TensorScores]) {
        match self.sort {
            Order::File => {}
            Order::Name => tensors.sort_by(|left, right| left.name.cmp(&right.name)),
            Order::Values => tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.values())),
            Order::Loss => {
                tensors.sort_by(|left, right| left.best_db().total_cmp(&right.best_db()));
            }
        }
    }

    /// Says how to go on.
    fn next(&self, ui: &Ui) -> anyhow::Result<()> {
        let files: Vec<String> = self.files.iter().map(|file| ui::shell_word(file)).collect();
        let advice = match &files[..] {
            [file] => format!("  next: scrimp score {file} --html score.html draws them"),
            _ => "  next: --html score.html draws them".to_owned(),
        };
        Ok(ui.say(advice)?)
    }
}

fn write(path: &Path, text: &str) -> Result<(), FileError> {
    write_atomic(path, |file| {
        file.write_all(text.as_bytes()).map_err(|source| FileError::io("write", path, source))
    })
}

/// An error where a tensor could not be encoded, after all that could be was told.
fn failures(survey: &Survey) -> anyhow::Result<()> {
    let (mut count, mut first) = (0u64, None);
    for tensor in &survey.tensors {
        for outcome in &tensor.outcomes {
            if let Outcome::Failed(reason) = outcome {
                count += 1;
                first.get_or_insert((tensor, reason));
            }
        }
    }
    let Some((tensor, reason)) = first else { return Ok(()) };
    let all = survey.tensors.len() * survey.schemes.len();
    bail!(
        "{} of {} scores could not be made, the first of them: {}: tensor `{}`: {reason}",
        ui::number(count),
        ui::number(all as u64),
        tensor.file,
        printable(&tensor.name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_schemes_is_cut_at_commas_that_are_not_theirs() {
        let cut = |list: &'static str| between_commas(list).collect::<Vec<_>>();
        assert_eq!(cut("int8,e4m3fn"), ["int8", "e4m3fn"]);
        assert_eq!(
            cut("smaq:6,8,int8,smaq:4,6/stochastic"),
            ["smaq:6,8", "int8", "smaq:4,6/stochastic"]
        );
        assert_eq!(cut("int8,"), ["int8", ""]);
        assert_eq!(cut(""), [""]);
    }

    #[test]
    fn a_list_names_each_scheme_once() {
        let named = |list: &str| match list.parse::<SchemeList>() {
            Ok(SchemeList::Named(schemes)) => Ok(schemes.len()),
            Ok(SchemeList::All) => Ok(usize::MAX),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(named("int8,int4/group:32/scale:f16"), Ok(2));
        assert_eq!(named("all"), Ok(usize::MAX));
        assert_eq!(named("int8,e4m3fn,int8/tensor"), Err("`int8` is named twice".to_owned()));
        assert!(named("int8,all").is_err_and(|error| error.contains("`all` stands alone")));
        assert!(named("int8,").is_err());
    }
}
