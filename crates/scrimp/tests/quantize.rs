//! Searches for a limit: what they choose, and that they go on where they were stopped.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use scrimp::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use scrimp::onnx::{
    Choice, Config, Data, DataType, Engine, EngineError, LoadOptions, Mode, Model, Session, State,
    Value, find_profile, open_engine,
};
use scrimp::quantize::{Error, Job, Limit, News, Outcome, Search, Trials, run};

/// Values near a normal distribution that are the same everywhere.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap()) / 65536.0 - 0.5
    };
    (0..count).map(|_| (0..6).map(|_| uniform()).sum()).collect()
}

/// Four products, of which the second is the largest and the third has one output that outshines the rest of its row.
fn model() -> Model {
    let value = |name: &str| ValueInfoProto::of_kind(name, DataType::Float as i32);
    let sizes = [8, 24, 48, 12, 5];
    let mut graph = GraphProto {
        name: Some("g".into()),
        input: vec![value("x")],
        output: vec![value("fc3")],
        ..GraphProto::default()
    };
    let mut input = "x".to_owned();
    for (at, size) in sizes.windows(2).enumerate() {
        let (name, weight) = (format!("fc{at}"), format!("w{at}"));
        let mut numbers = values(size[0] * size[1], u32::try_from(at).unwrap());
        if at == 2 {
            // Few bits for a scale that goes by these leave hardly any for the others.
            numbers.iter_mut().step_by(7).for_each(|v| *v *= 20.0);
        }
        graph.initializer.push(TensorProto::from_f32(&weight, size, &numbers));
        graph.node.push(NodeProto::call("MatMul", &name, &[&input, &weight], &[&name]));
        input = name;
    }
    Model::new(graph, 17, 8)
}

#[derive(Debug)]
struct Samples(usize);

impl Data for Samples {
    fn len(&self) -> usize {
        self.0
    }

    fn batch(&self, start: usize, end: usize) -> Result<Vec<(String, Value)>, String> {
        let all = values(self.0 * 8, 77);
        Ok(vec![("x".into(), Value::f32([end - start, 8], all[start * 8..end * 8].to_vec()))])
    }
}

/// An engine that counts the models it loads.
#[derive(Debug)]
struct Counting {
    inner: Box<dyn Engine>,
    loads: AtomicUsize,
}

impl Counting {
    fn new() -> Self {
        Self { inner: open_engine(&Choice::Rten).unwrap(), loads: AtomicUsize::new(0) }
    }

    fn take(&self) -> usize {
        self.loads.swap(0, Ordering::Relaxed)
    }
}

impl Engine for Counting {
    fn version(&self) -> String {
        self.inner.version()
    }

    fn is_deployed(&self) -> bool {
        false
    }

    fn runs_weights(&self, name: &str) -> bool {
        name != "mxfp4"
    }

    fn load(
        &self,
        model: &Model,
        outputs: &[String],
        options: LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.inner.load(model, outputs, options)
    }
}

const SAMPLES: Samples = Samples(64);

fn job(engine: &dyn Engine) -> Job<'_> {
    Job {
        config: Config::of(find_profile("ort-x86").unwrap()),
        calibration: &SAMPLES,
        evaluation: Some(&SAMPLES),
        engine,
        limit: None,
        threads: 1,
    }
}

fn done(job: &Job<'_>) -> Outcome {
    run(&model(), job, &mut Trials::forgotten(), false, &mut |_| true).unwrap()
}

fn size(outcome: &Outcome) -> u64 {
    outcome.quantized.model.to_bytes().len() as u64
}

fn sqnr(outcome: &Outcome) -> f64 {
    outcome.comparison.as_ref().unwrap().outputs[0].sqnr_db
}

#[test]
fn bits_are_taken_from_layers_that_need_them_least() {
    let engine = Counting::new();
    // Half of the second layer alone is 576 bytes. Beside codes of activations there are weights of 4 bits, alone also of 2.
    budgets(&engine, Mode::Static, &[0, 300, 600, 800]);
    budgets(&engine, Mode::Weights, &[0, 300, 600, 900, 1100]);
    let too_small = Job { limit: Some(Limit::Bytes(500)), ..job(&engine) };
    let refused = run(&model(), &too_small, &mut Trials::forgotten(), false, &mut |_| true);
    assert!(matches!(refused, Err(Error::Bytes { limit: 500, least }) if least > 500));
    let config = Config {
        mode: Mode::Weights,
        weights: scrimp::onnx::Spec::parse("e4m3fn/channel").unwrap(),
        ..job(&engine).config
    };
    let none_narrower = Job { config, limit: Some(Limit::Bytes(500)), ..job(&engine) };
    let refused = run(&model(), &none_narrower, &mut Trials::forgotten(), false, &mut |_| true);
    let said = refused.unwrap_err().to_string();
    assert_eq!(
        said,
        "a limit of bytes gives layers fewer bits, and ort-x86 has no scheme of fewer bits than e4m3fn/channel"
    );
}

/// Takes so many bytes away, and looks at which layers lost them.
fn budgets(engine: &Counting, mode: Mode, all: &[u64]) {
    let job = || {
        let job = job(engine);
        Job { config: Config { mode, ..job.config }, ..job }
    };
    let whole = done(&job());
    let mut last = f64::INFINITY;
    for &saved in all {
        let limit = size(&whole) - saved;
        let outcome = done(&Job { limit: Some(Limit::Bytes(limit)), ..job() });
        assert!(size(&outcome) <= limit, "{saved}: {} of {limit}", size(&outcome));
        let names: Vec<&str> = outcome.fewer.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.is_empty(), saved == 0, "{names:?}");
        assert!(sqnr(&outcome) <= last + 1.0, "{saved}: {} dB after {last} dB", sqnr(&outcome));
        last = sqnr(&outcome);
        if saved == 300 {
            // The third layer, which loses most, is not among them.
            assert!(!names.contains(&"fc2"), "{names:?}");
        }
        for (name, scheme) in &outcome.fewer {
            let place = outcome.quantized.plan.weights.iter().find(|w| w.readers[0] == *name);
            assert_eq!(place.unwrap().spec.text, *scheme);
        }
    }
}

/// Runs until so many layers or trials were begun, then again to the end; gives the outcomes of that and of a run that was not
/// stopped, and how many models each loaded.
fn stopped(job: &Job<'_>, engine: &Counting, file: &Path, stop: usize) -> [(Outcome, usize); 2] {
    engine.take();
    let whole = run(&model(), job, &mut Trials::forgotten(), false, &mut |_| true).unwrap();
    let loads = engine.take();
    let mut trials = Trials::open(file, &model(), job, false).unwrap();
    let mut count = 0;
    let cut = run(&model(), job, &mut trials, false, &mut |news| {
        count += usize::from(matches!(news, News::Stage { stage: "layers", .. }));
        count <= stop
    });
    assert!(cut.is_err());
    let kept = trials.len();
    assert!(kept > 0 && file.exists());
    drop(trials);

    engine.take();
    let mut trials = Trials::open(file, &model(), job, false).unwrap();
    assert_eq!(trials.len(), kept);
    let mut said: Option<Search> = None;
    let again = run(&model(), job, &mut trials, false, &mut |news| {
        if let News::Search(search) = news {
            assert!(said.replace(search).is_none(), "it is said once");
        }
        true
    });
    let search = said.unwrap();
    assert_eq!(search.kept, kept);
    assert!(search.trials > 0 && search.time() >= search.trial_time);
    trials.remove().unwrap();
    assert!(!file.exists());
    [(whole, loads), (again.unwrap(), engine.take())]
}

#[test]
fn a_search_that_was_stopped_goes_on_where_it_was() {
    let engine = Counting::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.onnx.trials.json");
    let limit = size(&done(&job(&engine))) - 600;
    let by_bytes = Job { limit: Some(Limit::Bytes(limit)), ..job(&engine) };
    // Four layers with two schemes each.
    let [(whole, loads), (again, fewer)] = stopped(&by_bytes, &engine, &file, 6);
    assert_eq!(again.quantized.model.to_bytes(), whole.quantized.model.to_bytes());
    assert!(fewer + 4 <= loads, "{fewer} of {loads} loads");

    // No layer with two bits keeps the class of every sample.
    let config =
        Config { weights: scrimp::onnx::Spec::parse("int2").unwrap(), ..job(&engine).config };
    let by_drop = Job { config, limit: Some(Limit::Drop(0.4)), ..job(&engine) };
    let [(whole, loads), (again, fewer)] = stopped(&by_drop, &engine, &file, 3);
    assert_eq!(again.quantized.model.to_bytes(), whole.quantized.model.to_bytes());
    assert_eq!(again.fallback, whole.fallback);
    assert!(!whole.fallback.is_empty());
    assert!(fewer < loads, "{fewer} of {loads} loads");
    let float = |outcome: &Outcome| {
        let nodes = &outcome.quantized.plan.nodes;
        nodes.iter().filter(|node| matches!(node.state, State::Float(_))).count()
    };
    assert_eq!(float(&whole), whole.fallback.len());
}

#[test]
fn trials_of_something_else_are_refused_until_they_may_be_replaced() {
    let engine = Counting::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trials.json");
    let job_of = |samples: &'static Samples| Job { calibration: samples, ..job(&engine) };
    let before =
        Job { limit: Some(Limit::Bytes(size(&done(&job(&engine))) - 300)), ..job(&engine) };
    let mut trials = Trials::open(&file, &model(), &before, false).unwrap();
    let mut count = 0;
    let cut = run(&model(), &before, &mut trials, false, &mut |news| {
        count += usize::from(matches!(news, News::Stage { stage: "layers", .. }));
        count < 3
    });
    assert!(cut.is_err());
    drop(trials);
    // Another limit is the same search.
    let wider = Job { limit: Some(Limit::Bytes(1_000_000)), ..job(&engine) };
    assert!(!Trials::open(&file, &model(), &wider, false).unwrap().is_empty());
    let refused =
        |job: &Job<'_>| Trials::open(&file, &model(), job, false).unwrap_err().to_string();
    let other = job_of(&Samples(32));
    assert!(refused(&other).ends_with(
        "trials.json does not fit: it is of another model, other data or another choice"
    ));
    assert!(Trials::open(&file, &model(), &other, true).unwrap().is_empty());
    for damaged in ["", "{}", "[1]", "{\"version\":1,\"inputs\":\"\",\"trials\":{\"a\":\"b\"}}"] {
        std::fs::write(&file, damaged).unwrap();
        assert!(refused(&before).contains("trials.json does not fit"), "{damaged}");
    }
}

#[test]
fn weights_that_the_engine_lacks_are_refused_before_the_work() {
    let engine = Counting::new();
    let config = Config {
        mode: Mode::Weights,
        weights: scrimp::onnx::Spec::parse("mxfp4").unwrap(),
        ..job(&engine).config
    };
    let asked = Job { config, ..job(&engine) };
    let refused = run(&model(), &asked, &mut Trials::forgotten(), false, &mut |_| true);
    assert_eq!(
        refused.unwrap_err().to_string(),
        format!(
            "{} runs no weights in mxfp4, so the model could not be checked; rten, which computes them back to floats, runs all",
            engine.version()
        )
    );
    assert_eq!(engine.take(), 0);
}
