//! How results, tables, progress and errors look.

use std::fmt::{self, Display, Write as _};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use scrimp_files::{FileError, Ignored, Reader};
use serde::Serialize;

use crate::interrupt;

/// Where a command says what it found.
///
/// Results go to the standard output, progress and errors to the standard error.
pub struct Ui {
    out_style: Style,
    error_style: Style,
    progress_bars: bool,
}

/// The standard output took no more.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to the standard output")]
pub struct OutputError(#[from] io::Error);

/// Escape sequences, or none where nobody would see them as colours.
#[derive(Clone, Copy)]
struct Style {
    colours: bool,
}

impl Style {
    fn of(stream: &impl IsTerminal) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colours: stream.is_terminal() && !refused }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// What is said once where the kernels have no fast version.
pub const PLAIN_LOOPS: &str =
    "this processor has no AVX2: products run in plain loops, and few bits are no faster";

const BOLD: &str = "1";
const RED: &str = "1;31";
const CYAN: &str = "36";

impl Ui {
    /// The two standard streams, with colours where they are terminals and `NO_COLOR` is not set.
    pub fn new() -> Self {
        Self {
            out_style: Style::of(&io::stdout()),
            error_style: Style::of(&io::stderr()),
            progress_bars: io::stderr().is_terminal(),
        }
    }

    /// Prints a line.
    #[expect(clippy::unused_self, reason = "where results go is for this type to decide")]
    pub fn say(&self, line: impl Display) -> Result<(), OutputError> {
        Ok(writeln!(io::stdout(), "{line}")?)
    }

    /// Prints a line that stands out.
    pub fn say_bold(&self, line: &str) -> Result<(), OutputError> {
        self.say(self.out_style.paint(BOLD, line))
    }

    /// Prints the path of what was made.
    pub fn say_made(&self, path: &Path) -> Result<(), OutputError> {
        self.say(format_args!("→ {}", self.out_style.paint(BOLD, &printable(&path.display()))))
    }

    /// Prints a value as one line of JSON.
    pub fn json(&self, value: &impl Serialize) -> Result<(), OutputError> {
        let line = serde_json::to_string(value).map_err(io::Error::from)?;
        self.say(line)
    }

    /// Prints what a checkpoint holds beside tensors, if anything, after what becomes of it.
    pub fn say_ignored(&self, verb: &str, reader: &Reader) -> Result<(), OutputError> {
        let entry = |ignored: &Ignored| format!("{} = {}", ignored.name, ignored.content);
        let entries: Vec<String> = reader.ignored().iter().map(entry).collect();
        let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
        if entries.is_empty() {
            return Ok(());
        }
        self.say(format_args!("{verb}: {}", printable(&Few(&entries))))
    }

    /// As [`say_ignored`](Self::say_ignored), one JSON object for each entry.
    pub fn json_ignored(&self, reader: &Reader) -> Result<(), OutputError> {
        reader.ignored().iter().try_for_each(|Ignored { name, content }| {
            self.json(&serde_json::json!({
                "type": "no_tensor",
                "file": reader.path(),
                "name": name,
                "content": content,
            }))
        })
    }

    /// Prints bytes as they are.
    #[expect(clippy::unused_self, reason = "where results go is for this type to decide")]
    pub fn raw(&self, bytes: &[u8]) -> Result<(), OutputError> {
        Ok(io::stdout().write_all(bytes)?)
    }

    /// Prints a table whose header stands out.
    pub fn table(&self, table: &Table) -> Result<(), OutputError> {
        for (place, line) in table.lines().into_iter().enumerate() {
            if place == 0 { self.say_bold(&line)? } else { self.say(line)? }
        }
        Ok(())
    }

    /// A bar of steps on the standard error, if that is a terminal; it is drawn when it moves first.
    pub fn step_bar(&self, title: String, steps: u64) -> Option<ProgressBar> {
        self.progress_bars.then(|| {
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
            let template = "{prefix}  {wide_bar}  {msg}  {elapsed} · {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
            }
            bar.set_prefix(title);
            bar
        })
    }

    /// Progress through `total_bytes` of work called `label`, on the standard error.
    pub fn progress(&self, label: &'static str, total_bytes: u64) -> Progress {
        let bar = self.progress_bars.then(|| {
            let bar =
                ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr());
            let template = "{msg} {wide_bar} {percent:>3} %  {decimal_bytes_per_sec}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
            }
            bar.set_message(label);
            bar
        });
        let start = Instant::now();
        Progress { label, total_bytes, done_bytes: 0, start, last_line: start, bar }
    }

    /// Prints an error with its causes and gives the exit code that goes with it.
    pub fn fail(&self, error: &anyhow::Error) -> ExitCode {
        if let Some(OutputError(source)) = error.downcast_ref()
            && source.kind() == io::ErrorKind::BrokenPipe
        {
            // The reader had enough, as `head` does.
            return ExitCode::SUCCESS;
        }
        let style = self.error_style;
        let mut text = style.paint(RED, "error:");
        write!(text, " {}", printable_lines(error)).ok();
        let mut above: &dyn std::error::Error = error.as_ref();
        while let Some(cause) = above.source()
            // The message of a `FileError` says everything, its cause included.
            && above.downcast_ref::<FileError>().is_none()
        {
            let line = printable_lines(cause);
            // Some messages end in that of their cause.
            if !text.contains(&line) {
                write!(text, "\n  caused by: {line}").ok();
            }
            above = cause;
        }
        let text = text.replace("\n  help:", &format!("\n  {}", style.paint(CYAN, "help:")));
        // Where the standard error is closed there is nobody to tell.
        writeln!(io::stderr(), "{text}").ok();
        match error.downcast_ref::<interrupt::Interrupted>() {
            Some(_) => ExitCode::from(interrupt::EXIT_CODE),
            None => ExitCode::FAILURE,
        }
    }
}

/// How far a command has come: a bar on a terminal, else a line now and then.
pub struct Progress {
    label: &'static str,
    total_bytes: u64,
    done_bytes: u64,
    start: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

/// How often a log gets a line; work that takes less leaves none.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

impl Progress {
    /// Some more of the work is done.
    pub fn advance(&mut self, bytes: u64) {
        self.done_bytes += bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done_bytes);
        } else if self.last_line.elapsed() >= LINE_INTERVAL && self.done_bytes < self.total_bytes {
            self.last_line = Instant::now();
            let line = self.line(self.start.elapsed());
            // Progress that cannot be shown is no reason to stop.
            writeln!(io::stderr(), "{line}").ok();
        }
    }

    fn line(&self, elapsed: Duration) -> String {
        let (done, total) = (self.done_bytes as f64, self.total_bytes as f64);
        let rate = done / elapsed.as_secs_f64();
        let left_seconds = ((total - done) / rate).max(0.0);
        format!(
            "{}  {:.0} %  {:.1} of {:.1} MB  {:.1} MB/s  {left_seconds:.0} s left",
            self.label,
            100.0 * done / total,
            done / 1e6,
            total / 1e6,
            rate / 1e6
        )
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// On which side the cells of a column stand.
#[derive(Clone, Copy)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table without lines: columns two spaces apart, one line per row.
pub struct Table(comfy_table::Table);

impl Table {
    /// A table with these columns.
    pub fn new(columns: &[(&str, Side)]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(columns.iter().map(|(title, _)| *title));
        for (column, (_, side)) in table.column_iter_mut().zip(columns) {
            column.set_padding((0, 2));
            column.set_cell_alignment(match side {
                Side::Left => CellAlignment::Left,
                Side::Right => CellAlignment::Right,
            });
        }
        Self(table)
    }

    /// Adds a row. Names in files are foreign, so control characters are made visible.
    pub fn row<T: Display>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.0.add_row(cells.into_iter().map(|cell| printable(&cell)));
    }

    /// The header and one line for each row, as wide as their content.
    pub fn lines(&self) -> Vec<String> {
        self.0.lines().map(|line| line.trim_end().to_owned()).collect()
    }
}

/// `text` with its control characters written as Rust would, so that a foreign name cannot move
/// the cursor.
pub fn printable(text: &impl Display) -> String {
    escape(&text.to_string(), char::is_control)
}

/// As [`printable`], line by line.
fn printable_lines(text: &(impl Display + ?Sized)) -> String {
    escape(&text.to_string(), |c| c.is_control() && c != '\n')
}

fn escape(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_escaped(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// A whole number with thousands separators: `1,089,896`.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count with its noun: `1 tensor`, `2,000 tensors`.
pub fn count(n: impl TryInto<u64>, noun: &str) -> String {
    let n = n.try_into().unwrap_or(u64::MAX);
    format!("{} {noun}{}", number(n), if n == 1 { "" } else { "s" })
}

/// Bits per value with two decimals, a dash where there is no value.
pub fn bits(bits_per_value: Option<f64>) -> String {
    bits_per_value.map_or_else(|| "-".to_owned(), |bits| format!("{bits:.2}"))
}

/// A shape without spaces: `[16,3,3,3]`.
pub fn shape(extents: &[usize]) -> String {
    let extents: Vec<String> = extents.iter().map(usize::to_string).collect();
    format!("[{}]", extents.join(","))
}

/// How many bytes there are against what f32 would take: `6.37x smaller than f32`.
pub fn ratio(bytes: u64, f32_bytes: u64) -> String {
    let ratio = f32_bytes as f64 / bytes as f64;
    match f32_bytes.cmp(&bytes) {
        std::cmp::Ordering::Equal => "as large as f32".to_owned(),
        std::cmp::Ordering::Greater => format!("{ratio:.2}x smaller than f32"),
        std::cmp::Ordering::Less => format!("{:.2}x larger than f32", 1.0 / ratio),
    }
}

/// `text` in lines of at most `width` characters, broken between words.
pub fn wrap(text: &str, width: usize) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut column = 0;
    for word in text.split(' ') {
        let len = word.chars().count();
        if column > 0 {
            let fits = column + 1 + len <= width;
            out.push(if fits { ' ' } else { '\n' });
            column = if fits { column + 1 } else { 0 };
        }
        out.push_str(word);
        column += len;
    }
    out
}

/// A path as a shell takes it, to be copied from a message.
pub fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    // A leading dash would read as a flag.
    let text = if text.starts_with('-') { format!("./{text}").into() } else { text };
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=,:@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.into_owned()
    } else {
        format!("'{}'", printable(&text.replace('\'', "'\\''")))
    }
}

/// Names for a message: all of a few, the first of many.
pub struct Few<'a>(pub &'a [&'a str]);

impl Display for Few<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        let shown = &self.0[..self.0.len().min(SHOWN)];
        f.write_str(&shown.join(", "))?;
        match self.0.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, " and {} more", number(more as u64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_separators() {
        assert_eq!(number(0), "0");
        assert_eq!(number(999), "999");
        assert_eq!(number(1000), "1,000");
        assert_eq!(number(1_089_896), "1,089,896");
        assert_eq!(number(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(count(1, "tensor"), "1 tensor");
        assert_eq!(count(1200, "tensor"), "1,200 tensors");
    }

    #[test]
    fn ratios_say_against_what() {
        assert_eq!(ratio(100, 637), "6.37x smaller than f32");
        assert_eq!(ratio(200, 100), "2.00x larger than f32");
        assert_eq!(ratio(0, 0), "as large as f32");
        assert_eq!(bits(None), "-");
        assert_eq!(bits(Some(4.5)), "4.50");
        assert_eq!(shape(&[16, 3, 3]), "[16,3,3]");
        assert_eq!(shape(&[]), "[]");
    }

    #[test]
    fn a_foreign_name_takes_one_line_and_moves_no_cursor() {
        let mut table = Table::new(&[("tensor", Side::Left), ("bytes", Side::Right)]);
        table.row(["a\x1b[2Jb\nc", "1"]);
        table.row(["d", "22"]);
        assert_eq!(
            table.lines(),
            ["tensor          bytes", "a\\u{1b}[2Jb\\nc      1", "d                  22"]
        );
    }

    #[test]
    fn long_lines_break_between_words() {
        assert_eq!(wrap("aa bb cc", 5), "aa bb\ncc");
        assert_eq!(wrap("aaaaaaa b", 5), "aaaaaaa\nb");
    }

    #[test]
    fn paths_can_be_copied_to_a_shell() {
        assert_eq!(shell_word(Path::new("runs/a-1.safetensors")), "runs/a-1.safetensors");
        assert_eq!(shell_word(Path::new("my model's.pt")), r"'my model'\''s.pt'");
        assert_eq!(shell_word(Path::new("-o")), "./-o");
    }

    #[test]
    fn progress_tells_rate_and_time_left() {
        let now = Instant::now();
        let progress = Progress {
            label: "encode",
            total_bytes: 8_000_000,
            done_bytes: 2_000_000,
            start: now,
            last_line: now,
            bar: None,
        };
        assert_eq!(
            progress.line(Duration::from_secs(1)),
            "encode  25 %  2.0 of 8.0 MB  2.0 MB/s  3 s left"
        );
    }
}
