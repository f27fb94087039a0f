//! Where a command writes its file.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use crate::ui::shell_word;

/// The flags of a command that makes one file from another.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub struct Output {
    /// The file to write [default: a name made from FILE, beside it]
    #[arg(short = 'o', long = "output", value_name = "OUT")]
    path: Option<PathBuf>,

    /// Replace OUT if it exists
    #[arg(long)]
    pub force: bool,

    /// Print JSON, one object per line, instead of tables
    #[arg(long)]
    pub json: bool,
}

impl Output {
    /// Whether files that exist are replaced.
    pub fn force(&self) -> bool {
        self.force
    }

    /// The path to write, given the file that is read: one of these extensions, neither the input
    /// nor, without `--force`, any file that exists.
    ///
    /// Without `-o` the name is that of the input with `suffix` in place of its extension.
    pub fn path(&self, input: &Path, suffix: &str, extensions: &[&str]) -> anyhow::Result<PathBuf> {
        let path = self.path.clone().unwrap_or_else(|| {
            let mut name = input.file_stem().unwrap_or_default().to_owned();
            name.push(suffix);
            input.with_file_name(name)
        });
        // A folder or a device is left to the writer, which says what is wrong with it.
        if path.exists() && !path.is_file() {
            return Ok(path);
        }
        if !extensions.iter().any(|known| path.extension() == Some(OsStr::new(known))) {
            let known: Vec<String> = extensions.iter().map(|known| format!(".{known}")).collect();
            bail!(
                "cannot tell what to write to {}: its name does not end in {}\n  help: -o {}",
                path.display(),
                known.join(" or "),
                shell_word(&path.with_extension(extensions[0]))
            );
        }
        check_free(&path, &[input], self.force)?;
        Ok(path)
    }
}

/// Refuses a path that is one of the inputs or, unless `force`, exists.
pub fn check_free(path: &Path, inputs: &[&Path], force: bool) -> anyhow::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let same = |input: &&&Path| matches!((input.canonicalize(), path.canonicalize()), (Ok(left), Ok(right)) if left == right);
    if inputs.iter().any(|input| same(&input)) {
        bail!("{} is the input and is never overwritten", path.display());
    }
    if !force {
        bail!("{} exists already\n  help: --force replaces it", path.display());
    }
    Ok(())
}
