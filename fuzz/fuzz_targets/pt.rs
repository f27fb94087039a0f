//! A PyTorch checkpoint gives tensors that add up, or an error.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Checkpoints are read from files; a folder in memory (`TMPDIR=/dev/shm`) is fast.
    let mut file = tempfile::Builder::new().suffix(".pt").tempfile().expect("a temporary file");
    file.write_all(bytes).expect("room in the folder for temporary files");
    let Ok(reader) = scrimp_files::open(file.path()) else { return };
    if let Ok(file) = reader.read_all() {
        for tensor in &file.tensors {
            assert_eq!(tensor.dtype().byte_len(tensor.shape()), Some(tensor.bytes().len()));
        }
    }
});
