//! Real checkpoints, where the folder that `SCRIMP_DATA` names has them.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and say why")]

use std::path::{Path, PathBuf};

use scrimp_files::{Dtype, Kind, Reader, Status, Storage, open, pack, predicted_file_size};

/// The folder of real data, or `None` and a line that says so.
fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("SCRIMP_DATA").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: SCRIMP_DATA is not set");
    }
    folder
}

fn models(name: &str) -> Option<Reader> {
    data().map(|folder| open(&folder.join("models").join(name)).unwrap())
}

/// Asserts that both readers hold the same tensors, by name, bit for bit.
fn assert_same(left: &Reader, right: &Reader) {
    assert_eq!(left.entries().len(), right.entries().len());
    for (place, entry) in left.entries().iter().enumerate() {
        let there = right.find(&entry.name).expect(&entry.name);
        assert_eq!(left.read_tensor(place).unwrap(), right.read_tensor(there).unwrap());
    }
}

#[test]
fn a_legacy_checkpoint_from_a_gpu_equals_its_safetensors() {
    let Some(mut legacy) = models("resnet20-12fca82f.th") else { return };
    assert_eq!(legacy.kind(), Kind::Pytorch);
    assert_eq!(legacy.common_prefix(), "state_dict.module.");
    assert_eq!(legacy.ignored().len(), 1);
    assert_eq!(legacy.ignored()[0].name, "best_prec1");
    let prefix = legacy.common_prefix().to_owned();
    assert_eq!(legacy.strip_prefix(&prefix).unwrap(), legacy.entries().len());
    assert_same(&legacy, &models("resnet20-12fca82f.safetensors").unwrap());
}

#[test]
fn a_checkpoint_from_a_mac_holds_what_torch_reads_in_it() {
    let Some(zip) = models("burn_mnist.pt") else { return };
    // The safetensors file beside it has the same tensors from another training run.
    let other = models("burn_mnist.safetensors").unwrap();
    assert_eq!(zip.entries().len(), other.entries().len());
    for entry in zip.entries() {
        assert!(other.entries().contains(entry), "{entry:?}");
    }
    // torch 2.15: `torch.load(.., map_location="cpu")[name].view(torch.int32)`.
    let bytes = |name: &str| zip.read_stored(zip.find(name).unwrap()).unwrap();
    let bias = [0x3e08_f607u32, 0xbcf4_ab10, 0x3ce1_66e8, 0x3d72_7824];
    assert_eq!(bytes("conv1.bias")[..16], bias.map(u32::to_le_bytes).concat());
    let weight = [0xbc51_100fu32, 0xbc8f_11c6, 0xbbce_1c36, 0xbc8a_ce6f];
    assert!(bytes("fc1.weight").ends_with(&weight.map(u32::to_le_bytes).concat()));
    assert_eq!(bytes("norm1.num_batches_tracked"), 3752i64.to_le_bytes());
    let values = zip.read_f32(zip.find("fc1.weight").unwrap()).unwrap();
    let sum: f64 = values.into_iter().map(f64::from).sum();
    assert!((sum - -510.434_496_281_791).abs() < 1e-9, "{sum}");
}

#[test]
fn other_kinds_of_files_are_named() {
    let Some(folder) = data() else { return };
    for name in ["stories260K/stories260K.bin", "mnist-8.onnx", "mlperf_tiny/kws_int8.tflite"] {
        let error = open(&folder.join("models").join(name)).unwrap_err().to_string();
        assert!(error.contains("accepted are safetensors"), "{error}");
    }
    let tokens = models("stories260K/self_tokens_a.npy").unwrap();
    assert_eq!(tokens.entries()[0].shape, [32, 256]);
    assert_eq!(tokens.entries()[0].dtype, Dtype::U16);
    assert_eq!(models("silero/float_probs.npy").unwrap().read_f32(0).unwrap().len(), 1875);
}

#[test]
fn a_whole_model_packs_to_the_predicted_size() {
    let Some(reader) = models("resnet20-12fca82f.safetensors") else { return };
    let decisions: Vec<Storage> = reader
        .entries()
        .iter()
        .map(|entry| match entry.shape.len() {
            4 => Storage::Packed { scheme: "int4/channel".parse().unwrap() },
            2 => Storage::Packed { scheme: "int8/channel".parse().unwrap() },
            _ => Storage::Kept { reason: "1-D".to_owned() },
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("packed.safetensors");
    let predicted = predicted_file_size(&reader, &decisions).unwrap();
    pack(&reader, &decisions, 0, path, |_| Ok(())).unwrap();
    assert_eq!(std::fs::metadata(path).unwrap().len(), predicted.exact().unwrap());

    let packed = open(path).unwrap();
    let ledger = packed.ledger();
    assert_eq!(ledger.f32_bytes, reader.ledger().f32_bytes);
    assert!(ledger.file_bytes * 4 < ledger.f32_bytes, "{} bytes", ledger.file_bytes);
    for row in &ledger.rows {
        let place = packed.find(&row.name).unwrap();
        let original = reader.read_f32(reader.find(&row.name).unwrap()).unwrap();
        let decoded = packed.read_f32(place).unwrap();
        let largest = original.iter().fold(0f32, |largest, v| largest.max(v.abs()));
        let bound = if row.status == Status::Packed { largest / 13.9 } else { 0.0 };
        for (before, after) in original.iter().zip(&decoded) {
            assert!((before - after).abs() <= bound, "{}: {before} became {after}", row.name);
        }
    }
}
