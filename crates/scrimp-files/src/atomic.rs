//! Writing a file whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::FileError;

/// Writes `path` through a temporary file in the same folder, which replaces `path` once it is
/// complete and on the disk.
///
/// A crash, a full disk or an error of `write` leaves what stood at `path` untouched. A symbolic
/// link stays and its target is replaced. A new file gets the permissions that the process gives
/// its files, a replaced one keeps its own.
///
/// # Errors
/// The error of `write`, or [`FileError::Io`] naming `path`. Anything at `path` that is not a
/// regular file is refused, since a rename would replace a device or a pipe by a file; so is a
/// write-protected file.
pub fn write_atomic<T>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<T, FileError>,
) -> Result<T, FileError> {
    let failed = |source| FileError::io("write", path, source);

    let target = destination(path).map_err(failed)?;
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".scrimp-").suffix(".part");
    match std::fs::metadata(&target) {
        Ok(existing) if !existing.is_file() => {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it exists and is not a regular file",
            )));
        }
        // A rename needs no right to the file itself, yet the owner asked that it stays.
        Ok(existing) if existing.permissions().readonly() => {
            return Err(failed(io::ErrorKind::PermissionDenied.into()));
        }
        Ok(existing) => {
            builder.permissions(existing.permissions());
        }
        Err(_) => {
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        }
    }
    let temporary = builder.tempfile_in(folder).map_err(failed)?;

    let mut buffer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    let value = write(&mut buffer)?;
    buffer.flush().map_err(failed)?;
    drop(buffer);
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.persist(&target).map_err(|error| failed(error.error))?;
    // The new name itself is on the disk once its folder is. Some file systems cannot sync a
    // folder, and the content is safe by now, so a refusal is no error.
    #[cfg(unix)]
    if let Ok(folder) = File::open(folder) {
        folder.sync_all().ok();
    }
    Ok(value)
}

/// The file behind `path`: the target of a symbolic link, else `path` itself.
fn destination(path: &Path) -> io::Result<PathBuf> {
    match std::fs::symlink_metadata(path) {
        Ok(entry) if entry.file_type().is_symlink() => path.canonicalize(),
        _ => Ok(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomic(&path, |w| w.write_all(b"old").map_err(|e| FileError::io("write", &path, e)))
            .unwrap();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = write_atomic(&path, |w| {
            w.write_all(b"half of the new").unwrap();
            Err::<(), _>(FileError::io("write", &path, full()))
        })
        .unwrap_err();
        assert!(error.to_string().ends_with("a.bin: no space is left on the disk"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn missing_folders_and_devices_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomic(&folder.path().join("no/a.bin"), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("no/a.bin: no such file or folder"), "{error}");
        let error = write_atomic(folder.path(), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_and_permissions_survive() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a.bin"), folder.path().join("link.bin"));
        std::fs::write(&path, b"old").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        write_atomic(&link, |w| w.write_all(b"new").map_err(|e| FileError::io("write", &path, e)))
            .unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);

        // A new file is as readable as any other that the process makes.
        let (fresh, plain) = (folder.path().join("fresh"), folder.path().join("plain"));
        write_atomic(&fresh, |_| Ok(())).unwrap();
        std::fs::write(&plain, b"").unwrap();
        let mode = |path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(fresh), mode(plain));
    }
}
