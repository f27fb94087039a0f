//! An `.npy` file gives one tensor that adds up, or an error.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(reader) = scrimp_files::open_bytes(Path::new("a.npy"), bytes.to_vec()) {
        for place in 0..reader.entries().len() {
            let tensor = reader.read_tensor(place).expect("a checked header");
            assert_eq!(tensor.dtype().byte_len(tensor.shape()), Some(tensor.bytes().len()));
        }
    }
});
