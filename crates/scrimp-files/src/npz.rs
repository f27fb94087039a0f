//! `.npz`: several `.npy` arrays in one zip archive, as `numpy.savez` writes them.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::{FileError, Tensor, open_bytes};

/// Most bytes of one array after unpacking.
const MOST_BYTES: u64 = 1 << 34;

/// Reads all arrays of an archive; each is named as its member, without `.npy`.
///
/// # Errors
/// [`FileError`] where the file is no zip archive, a member is no array, or an array has more than 16 GiB.
pub fn read_npz(path: &Path) -> Result<Vec<Tensor>, FileError> {
    let failed = |source| FileError::io("read", path, source);
    let file = File::open(path).map_err(|source| FileError::io("open", path, source))?;
    let mut archive =
        zip::ZipArchive::new(BufReader::new(file)).map_err(|error| failed(error.into()))?;
    let mut tensors = Vec::new();
    for at in 0..archive.len() {
        let member = archive.by_index(at).map_err(|error| failed(error.into()))?;
        if member.is_dir() {
            continue;
        }
        let name = member.name().map_err(|error| failed(error.into()))?;
        let name = name.trim_end_matches(".npy").to_owned();
        let mut bytes = Vec::new();
        // The archive's own length of a member is a claim; what is unpacked is counted.
        member.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(FileError::Memory { path: path.to_owned(), name, bytes: bytes.len() });
        }
        let inner = path.join(format!("{name}.npy"));
        let read = open_bytes(&inner, bytes)?.read_all()?;
        for tensor in read.tensors {
            let (shape, dtype) = (tensor.shape().to_vec(), tensor.dtype());
            let renamed = Tensor::new(name.clone(), shape, dtype, tensor.into_bytes())
                .map_err(|problem| FileError::Tensor { path: path.to_owned(), problem })?;
            tensors.push(renamed);
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{Dtype, write_npy};

    #[test]
    fn members_are_arrays_by_name_and_what_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let array = folder.path().join("x.npy");
        let tensor =
            Tensor::from_f32("x", vec![2, 3], Dtype::F32, &[1., 2., 3., 4., 5., 6.]).unwrap();
        write_npy(&array, &tensor).unwrap();
        let bytes = std::fs::read(&array).unwrap();

        let path = folder.path().join("two.npz");
        let archive = |members: &[(&str, &[u8])]| {
            let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
            for (name, bytes) in members {
                writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
                writer.write_all(bytes).unwrap();
            }
            writer.finish().unwrap();
        };
        archive(&[("input.npy", &bytes), ("labels.npy", &bytes)]);
        let read = read_npz(&path).unwrap();
        let names: Vec<&str> = read.iter().map(Tensor::name).collect();
        assert_eq!(names, ["input", "labels"]);
        assert_eq!((read[0].shape(), read[1].to_f32()), (&[2, 3][..], tensor.to_f32()));

        archive(&[("input.npy", &bytes[..40])]);
        assert!(read_npz(&path).unwrap_err().to_string().contains("input.npy"));
        std::fs::write(&path, b"PK\x03\x04 nothing").unwrap();
        assert!(read_npz(&path).unwrap_err().to_string().contains("two.npz"));
        assert!(read_npz(&folder.path().join("none.npz")).is_err());
    }
}
