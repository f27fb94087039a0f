//! Thousands of damaged files for each reader: every one gives tensors or an error.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scrimp_files::{
    Dtype, FileError, Kind, Storage, Tensor, open, open_bytes, pack, save, write_npy,
};

/// Xorshift64*, so that every run damages alike.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % sides.max(1)
    }

    /// `file` with one to four damages, most of them near the start, where the headers are.
    fn damage(&mut self, file: &[u8]) -> Vec<u8> {
        let mut file = file.to_vec();
        for _ in 0..=self.roll(4) {
            let reach = if self.roll(2) == 0 { file.len().min(400) } else { file.len() };
            let at = self.roll(reach);
            match self.roll(7) {
                0 => file.truncate(at),
                1 if !file.is_empty() => file[at] ^= 1 << self.roll(8),
                2 if !file.is_empty() => file[at] = b"\x00\xff09{}[]\"',:()-NrRs."[self.roll(19)],
                3 => file.insert(at, u8::try_from(self.roll(256)).unwrap()),
                4 if !file.is_empty() => drop(file.remove(at)),
                5 => {
                    let end = (at + self.roll(64)).min(file.len());
                    let copy = file[at..end].to_vec();
                    let to = self.roll(file.len());
                    file.splice(to..to, copy);
                }
                _ => {
                    let huge = [u64::MAX, 1 << 63, 1 << 40, 100_000_000][self.roll(4)];
                    for (byte, new) in file.iter_mut().skip(at).zip(huge.to_le_bytes()) {
                        *byte = new;
                    }
                }
            }
        }
        file
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Damages `file` over and over for at most a second and hands each result to `read`. Returns how
/// many were read and how many refused.
fn damage_many(file: &[u8], mut read: impl FnMut(&[u8]) -> bool) -> (u32, u32) {
    let mut dice = Dice(0x5eed);
    let (mut accepted, mut refused) = (0, 0);
    let started = Instant::now();
    while accepted + refused < 4000 && started.elapsed() < Duration::from_secs(1) {
        if read(&dice.damage(file)) { accepted += 1 } else { refused += 1 }
    }
    assert!(accepted + refused >= 100, "too slow: {accepted} read, {refused} refused");
    (accepted, refused)
}

/// Reads every tensor. What is accepted must also add up.
fn read_all(reader: Result<scrimp_files::Reader, FileError>) -> bool {
    let Ok(reader) = reader else { return false };
    let ledger = reader.ledger();
    assert_eq!(ledger.rows.len(), reader.entries().len());
    if reader.kind() != Kind::Pytorch {
        assert!(ledger.payload_bytes <= ledger.file_bytes);
    }
    match reader.read_all() {
        Ok(file) => file.tensors.iter().for_each(|tensor| {
            assert_eq!(tensor.dtype().byte_len(tensor.shape()), Some(tensor.bytes().len()));
        }),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    true
}

fn tensors() -> Vec<Tensor> {
    let values: Vec<f32> = (0..48u8).map(f32::from).collect();
    vec![
        Tensor::from_f32("conv.weight", vec![4, 12], Dtype::F32, &values).unwrap(),
        Tensor::from_f32("fc.weight", vec![6, 8], Dtype::F16, &values).unwrap(),
        Tensor::from_f32("fc.bias", vec![4], Dtype::F64, &values[..4]).unwrap(),
        Tensor::new("steps", vec![], Dtype::I64, vec![1; 8]).unwrap(),
        Tensor::new("none", vec![0, 2], Dtype::U8, vec![]).unwrap(),
    ]
}

#[test]
fn damaged_safetensors_meet_the_verdict_of_the_safetensors_crate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    save(&path, &tensors(), &[("format".to_owned(), "pt".to_owned())].into()).unwrap();
    let file = std::fs::read(&path).unwrap();
    let (accepted, refused) = damage_many(&file, |bytes| {
        let ours = open_bytes(Path::new("a.safetensors"), bytes.to_vec());
        let theirs = safetensors::SafeTensors::deserialize(bytes);
        let kind = ours.as_ref().map(scrimp_files::Reader::kind);
        match (&ours, theirs) {
            (Ok(ours), Ok(theirs)) => {
                assert_eq!(ours.entries().len(), theirs.len());
                for (place, entry) in ours.entries().iter().enumerate() {
                    let view = theirs.tensor(&entry.name).unwrap();
                    assert_eq!(entry.shape, view.shape());
                    assert_eq!(ours.read_stored(place).unwrap(), view.data());
                }
            }
            (Err(_), Err(_)) => {}
            (Ok(_), Err(error)) => {
                assert_ne!(kind.ok(), Some(Kind::Safetensors), "only we accept: {error}");
            }
            // Names that come twice are refused here alone.
            (Err(error), Ok(_)) => {
                assert!(error.to_string().contains("twice"), "only we refuse: {error}");
            }
        }
        read_all(ours)
    });
    assert!(accepted > 100 && refused > 100, "{accepted} read, {refused} refused");
}

#[test]
fn damaged_containers_give_tensors_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, packed) =
        (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    save(&plain, &tensors(), &BTreeMap::new()).unwrap();
    let reader = open(&plain).unwrap();
    let packed_as = |scheme: &str| Storage::Packed { scheme: scheme.parse().unwrap() };
    let decisions: Vec<Storage> = reader
        .entries()
        .iter()
        .map(|entry| match entry.name.as_str() {
            "conv.weight" => packed_as("int4/group:8"),
            "fc.weight" => packed_as("e4m3fn/channel"),
            "fc.bias" => Storage::Kept { reason: "1-D".to_owned() },
            _ => Storage::Plain,
        })
        .collect();
    pack(&reader, &decisions, 1, &packed, |_| Ok(())).unwrap();
    let file = std::fs::read(&packed).unwrap();
    let (accepted, refused) = damage_many(&file, |bytes| {
        read_all(open_bytes(Path::new("b.safetensors"), bytes.to_vec()))
    });
    assert!(accepted > 50 && refused > 100, "{accepted} read, {refused} refused");
}

#[test]
fn damaged_arrays_give_tensors_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    write_npy(&path, &tensors()[0]).unwrap();
    for path in [path, golden("column_big_f8.npy"), golden("version_3.npy")] {
        let file = std::fs::read(path).unwrap();
        let (accepted, refused) =
            damage_many(&file, |bytes| read_all(open_bytes(Path::new("a.npy"), bytes.to_vec())));
        assert!(accepted > 20 && refused > 100, "{accepted} read, {refused} refused");
    }
}

#[test]
fn damaged_checkpoints_give_tensors_or_an_error() {
    for name in ["checkpoint.pt", "checkpoint_legacy.pth"] {
        let file = std::fs::read(golden(name)).unwrap();
        let (accepted, refused) = damage_many(&file, |bytes| {
            // A fresh file each time: some file systems make rewriting one wait for the disk.
            let mut damaged = tempfile::Builder::new().suffix(".pt").tempfile().unwrap();
            damaged.write_all(bytes).unwrap();
            read_all(open(damaged.path()))
        });
        assert!(accepted > 10 && refused > 100, "{accepted} read, {refused} refused");
    }
}
