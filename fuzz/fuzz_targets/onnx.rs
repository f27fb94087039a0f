//! An ONNX model is read and changed, or refused; one that is not changed is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scrimp_onnx::{Model, upgrade_opset};

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = Model::parse(bytes.to_vec()) else { return };
    // Fields may stand in another order or be packed differently, but then it is the second writing that is the same.
    let written = model.to_bytes();
    let again = Model::parse(written.clone()).expect("what was written is read");
    assert_eq!(again.to_bytes(), written);
    for tensor in &model.graph().initializer {
        let elems = tensor.to_i64().map(|v| v.len()).or_else(|_| tensor.to_f32().map(|v| v.len()));
        if let Ok(elems) = elems {
            let dims = tensor.dims.iter().map(|&d| usize::try_from(d).expect("a checked shape"));
            assert_eq!(elems, dims.product::<usize>());
        }
    }
    let mut sorted = model.clone();
    if sorted.graph_mut().sort().is_ok() {
        assert_eq!(sorted.graph().node.len(), model.graph().node.len());
        let once = sorted.to_bytes();
        sorted.graph_mut().sort().expect("it is sorted");
        assert_eq!(sorted.to_bytes(), once);
    }
    for to in [13, 18, 25] {
        let mut raised = model.clone();
        if upgrade_opset(&mut raised, to).is_ok() {
            let now = raised.to_bytes();
            // There is nothing left to do.
            assert!(upgrade_opset(&mut raised, to).expect("it is raised").is_empty());
            assert_eq!(raised.to_bytes(), now);
            raised.graph_mut().drop_dead();
        } else {
            assert_eq!(raised.to_bytes(), written);
        }
    }
});
