//! A safetensors file, packed or plain, gives tensors that add up, or an error.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(reader) = scrimp_files::open_bytes(Path::new("a.safetensors"), bytes.to_vec()) else {
        return;
    };
    let ledger = reader.ledger();
    assert!(ledger.payload_bytes <= ledger.file_bytes);
    let Ok(file) = reader.read_all() else { return };
    for tensor in &file.tensors {
        assert_eq!(tensor.dtype().byte_len(tensor.shape()), Some(tensor.bytes().len()));
    }
});
