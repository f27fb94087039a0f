//! Real checkpoints, where the folder that `SCRIMP_DATA` names has them.

use std::path::{Path, PathBuf};

use scrimp_files::{Dtype, Kind, Reader, Status, Storage, open, pack, predicted_file_bytes};

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
fn a_checkpoint_from_a_mac_equals_its_safetensors() {
    let Some(zip) = models("burn_mnist.pt") else { return };
    assert_same(&zip, &models("burn_mnist.safetensors").unwrap());
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
            4 => Storage::Packed { scheme: "int4/group:32".parse().unwrap() },
            2 => Storage::Packed { scheme: "int8/channel".parse().unwrap() },
            _ => Storage::Kept { reason: "1-D".to_owned() },
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("packed.safetensors");
    let predicted = predicted_file_bytes(&reader, &decisions).unwrap();
    pack(&reader, &decisions, 0, path).unwrap();
    assert_eq!(std::fs::metadata(path).unwrap().len(), predicted);

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
