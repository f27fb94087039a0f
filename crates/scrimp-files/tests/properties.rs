//! What holds for any tensors, not only for those that someone thought of.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use scrimp_files::{
    Dtype, Storage, Tensor, open, open_bytes, pack, predicted_file_size, save, write_npy,
};

fn shapes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..6usize, 0..5)
}

fn floats() -> impl Strategy<Value = Dtype> {
    prop::sample::select(vec![Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64])
}

/// Tensors of distinct names, of float dtypes and of others.
fn models() -> impl Strategy<Value = Vec<Tensor>> {
    let tensor = (floats(), shapes(), any::<u64>(), any::<bool>());
    prop::collection::btree_map(".{0,8}", tensor, 0..8).prop_map(|model| {
        let tensors = model.into_iter().filter(|(name, _)| name != "__metadata__");
        tensors
            .map(|(name, (dtype, shape, seed, float))| {
                let count = shape.iter().product();
                let values: Vec<f32> =
                    (0..count).map(|i| ((seed >> (i % 56)) & 0xff) as f32 - 128.0).collect();
                let floats = Tensor::from_f32(&name, shape.clone(), dtype, &values).unwrap();
                if float {
                    floats
                } else {
                    Tensor::new(name, shape, Dtype::I8, vec![1; count]).unwrap()
                }
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_saved_is_read_back(
        tensors in models(),
        metadata in prop::collection::btree_map(".{0,6}", ".{0,12}", 0..4),
    ) {
        prop_assume!(!metadata.contains_key("scrimp"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        save(&path, &tensors, &metadata).unwrap();
        let file = open(&path).unwrap().read_all().unwrap();
        prop_assert_eq!(file.metadata, metadata);
        let mut read = file.tensors;
        read.sort_by(|left, right| left.name().cmp(right.name()));
        prop_assert_eq!(read, tensors);
    }

    #[test]
    fn packed_files_have_the_predicted_size_and_the_emulated_values(
        tensors in models(),
        choices in prop::collection::vec(0..5usize, 8),
        seed in any::<u32>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("a.safetensors");
        let packed = folder.path().join("b.safetensors");
        save(&plain, &tensors, &BTreeMap::new()).unwrap();
        let reader = open(&plain).unwrap();
        let decisions: Vec<Storage> = reader.entries().iter().zip(choices).map(|(entry, choice)| {
            let text = ["int8", "int4/group:3", "e4m3fn/channel", "int5/stochastic"].get(choice);
            let scheme = text.map(|text| text.parse::<scrimp_codec::Scheme>().unwrap());
            match scheme {
                Some(scheme) if entry.dtype.is_float() && scheme.check(&entry.shape).is_ok() => {
                    Storage::Packed { scheme }
                }
                Some(_) => Storage::Kept { reason: "it does not fit".to_owned() },
                None => Storage::Plain,
            }
        }).collect();
        let predicted = predicted_file_size(&reader, &decisions).unwrap();
        pack(&reader, &decisions, seed, &packed, |_| Ok(())).unwrap();
        prop_assert_eq!(std::fs::metadata(&packed).unwrap().len(), predicted.exact().unwrap());

        let again = open(&packed).unwrap();
        prop_assert_eq!(again.ledger().f32_bytes, reader.ledger().f32_bytes);
        for (place, decision) in decisions.iter().enumerate() {
            let entry = &reader.entries()[place];
            let there = again.find(&entry.name).unwrap();
            prop_assert_eq!(&again.entries()[there].storage, decision);
            let Storage::Packed { scheme } = decision else {
                let (left, right) = (again.read_tensor(there), reader.read_tensor(place));
                prop_assert_eq!(left.unwrap(), right.unwrap());
                continue;
            };
            let mut expected = reader.read_f32(place).unwrap();
            let stream = scrimp_codec::Stream::named(seed, &entry.name);
            scheme.emulate(&mut expected, &entry.shape, &stream).unwrap();
            prop_assert_eq!(again.read_f32(there).unwrap(), expected);
        }
    }

    #[test]
    fn column_order_and_byte_order_do_not_change_an_array(shape in shapes()) {
        let count: usize = shape.iter().product();
        let values: Vec<u8> = (0..count).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let words: Vec<u8> = values.iter().flat_map(|&v| [v, 1]).collect();
        let tensor = Tensor::new("x", shape.clone(), Dtype::I16, words).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        write_npy(&path, &tensor).unwrap();
        prop_assert_eq!(&open(&path).unwrap().read_tensor(0).unwrap(), &tensor);

        // The element at each index, in the order of a column-major array, bytes swapped.
        let mut file = std::fs::read(&path).unwrap();
        let header = file.len() - tensor.bytes().len();
        for (column, word) in file[header..].chunks_exact_mut(2).enumerate() {
            let (mut rest, mut row, mut stride) = (column, 0, count);
            for &extent in &shape {
                stride /= extent;
                row += rest % extent * stride;
                rest /= extent;
            }
            word.copy_from_slice(&[1, values[row]]);
        }
        let text = String::from_utf8(file[10..header].to_vec()).unwrap();
        let text = text.replace("False", "True ").replace("'<i2'", "'>i2'");
        file[10..header].copy_from_slice(text.as_bytes());
        let swapped = open_bytes(Path::new("x.npy"), file).unwrap();
        prop_assert_eq!(&swapped.read_tensor(0).unwrap(), &tensor);
    }
}
