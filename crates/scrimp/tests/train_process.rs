//! Training as a user sees it: the program is started, killed, interrupted and resumed, and its run folders are read.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use scrimp::codec::Stream;
use scrimp::files::{Dtype, Storage, Tensor, open, save};
use scrimp::recipe::Source;
use scrimp::run::{Facts, Report, RunError, RunRequest, Watch, run};
use tempfile::TempDir;

mod support;

use support::{contains, files, json, same};
#[cfg(unix)]
use support::{interrupt, killed_by, wait_for};

// ----- Data sets that are small enough to be written by a test, under the names of the official files.

/// `count` images of `len` pixels: a band whose place tells the label, on a noisy ground.
fn pictures(count: usize, len: usize) -> impl Iterator<Item = (u8, Vec<u8>)> {
    (0..count).map(move |i| {
        let label = i * 7 % 10;
        let band = label * len / 10..(label + 2) * len / 10;
        let pixel = |p: usize| {
            let noise = (p * 31 + i * 17 + p * i % 23) % 97;
            u8::try_from(if band.contains(&p) { 150 + noise } else { noise }).unwrap()
        };
        (u8::try_from(label).unwrap(), (0..len).map(pixel).collect())
    })
}

/// The four IDX files of MNIST.
fn write_mnist(folder: &Path, train: usize, test: usize) {
    fs::create_dir_all(folder).unwrap();
    let count = |n: usize| u32::try_from(n).unwrap().to_be_bytes();
    for (name, n) in [("train", train), ("t10k", test)] {
        let mut images = [&[0, 0, 8, 3][..], &count(n), &count(28), &count(28)].concat();
        let mut labels = [&[0, 0, 8, 1][..], &count(n)].concat();
        for (label, pixels) in pictures(n, 28 * 28) {
            labels.push(label);
            images.extend(pixels);
        }
        fs::write(folder.join(format!("{name}-images-idx3-ubyte")), images).unwrap();
        fs::write(folder.join(format!("{name}-labels-idx1-ubyte")), labels).unwrap();
    }
}

/// The six files of the binary version of CIFAR-10, each with `records` images.
fn write_cifar10(folder: &Path, records: usize) {
    fs::create_dir_all(folder).unwrap();
    let batches = (1..=5).map(|n| format!("data_batch_{n}.bin"));
    for (n, name) in batches.chain(["test_batch.bin".to_owned()]).enumerate() {
        let all = pictures((n + 1) * records, 3072).skip(n * records);
        let bytes = all.flat_map(|(label, pixels)| [vec![label], pixels].concat());
        fs::write(folder.join(name), bytes.collect::<Vec<u8>>()).unwrap();
    }
}

/// A folder for each class, all with the same few JPEG and PNG images.
fn write_images(folder: &Path, classes: &[&str]) {
    let golden = include_str!("../../scrimp-train/tests/golden/images.csv");
    let rows = golden.lines().filter(|line| !line.starts_with('#')).skip(1);
    for row in rows.map(|line| line.split(',').collect::<Vec<_>>()) {
        let (name, digits) = (row[0], row[3].as_bytes());
        let digits = digits.chunks(2).map(|two| str::from_utf8(two).unwrap());
        let file: Vec<u8> = digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect();
        for (class, part) in classes.iter().flat_map(|c| ["train", "test"].map(|p| (c, p))) {
            let path = folder.join(part).join(class);
            fs::create_dir_all(&path).unwrap();
            let ending = if name.starts_with("png") { "png" } else { "jpg" };
            fs::write(path.join(format!("{name}.{ending}")), &file).unwrap();
        }
    }
}

/// A folder with small data sets in `data/` and a recipe in `recipe.toml`.
fn workplace(recipe: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_mnist(&folder.path().join("data/mnist"), 200, 60);
    write_cifar10(&folder.path().join("data/cifar-10-batches-bin"), 8);
    fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
    folder
}

// ----- The program.

fn scrimp(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scrimp"));
    command.current_dir(folder).env("SCRIMP_DATA", "data").env_remove("NO_COLOR");
    command
}

fn train(folder: &Path, arguments: &[&str]) -> Output {
    scrimp(folder).args(["train", "recipe.toml"]).args(arguments).output().unwrap()
}

/// Trains, which must succeed without a complaint, and gives what was printed.
fn trained(folder: &Path, arguments: &[&str]) -> String {
    let output = train(folder, arguments);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Trains, which must fail in an orderly way, and gives what was said.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = train(folder, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(said.starts_with("error: ") && !said.contains("panicked"), "{arguments:?}: {said}");
    // What went wrong is said once.
    let (message, causes) = said.split_once('\n').unwrap();
    for cause in causes.lines().filter_map(|l| l.trim().strip_prefix("caused by: ")) {
        assert!(!message.contains(cause), "{said}");
    }
    said
}

// ----- Kill and resume.

/// Trains into `cut`, but kills the program three times: after its first checkpoint, after its next one, and when it has
/// written of an epoch but not yet saved it. Resumes each time, with another number of threads.
#[cfg(unix)]
fn train_with_kills(folder: &Path) {
    let out = folder.join("cut");
    let checkpoint = out.join("quantized/seed-7/checkpoint.safetensors");
    let moments = [&checkpoint, &checkpoint, &out.join("metrics.jsonl")];
    for (round, awaited) in moments.into_iter().enumerate() {
        let before = fs::metadata(awaited).and_then(|m| m.modified()).ok();
        let (flag, threads) =
            if round == 0 { ("--out", "1") } else { ("--resume", ["1", "2"][round % 2]) };
        let mut child = scrimp(folder)
            .args(["train", "recipe.toml", flag, "cut", "--threads", threads])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let came = wait_for(&mut child, awaited, before);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(came.is_some() && killed_by(status) == Some(9), "round {round}: {status}");
        assert!(!out.join("result.json").exists());
    }
    trained(folder, &["--resume", "cut", "--threads", "2"]);
}

#[cfg(unix)]
fn a_killed_run_resumes_to_the_same_bytes(recipe: &str) {
    let folder = workplace(recipe);
    let folder = folder.path();
    trained(folder, &["--out", "whole", "--threads", "1"]);
    train_with_kills(folder);
    same(&folder.join("whole"), &folder.join("cut"));
}

const INT8: &str = "[[quantize]]\nlayers = \"*\"\ndefault = \"int8\"\nd = \"int8/stochastic\"\n";

#[cfg(unix)]
#[test]
fn a_killed_process_resumes_to_the_same_bytes_with_adam_and_stochastic_gradients() {
    a_killed_run_resumes_to_the_same_bytes(&format!(
        "model = \"lenet\"\ndata = \"digits\"\nepochs = 2\nlimit = 500\ncheckpoint_steps = 2\n\
         telemetry = {{ every = 3, tensorboard = true }}\n\
         optimizer = {{ name = \"adam\", lr = 0.001 }}\nschedule = {{ name = \"cosine\" }}\n{INT8}"
    ));
}

#[cfg(unix)]
#[test]
fn a_killed_process_resumes_to_the_same_bytes_with_momentum_and_augmentation() {
    a_killed_run_resumes_to_the_same_bytes(&format!(
        "model = \"lenet\"\ndata = \"mnist\"\nepochs = 3\nbatch = 16\ncheckpoint_steps = 3\n\
         clip_norm = 0.5\nlabel_smoothing = 0.1\naugment = {{ crop = 2, flip = true }}\n\
         schedule = {{ name = \"linear\", warmup = 4 }}\n[optimizer]\nname = \"sgd\"\nlr = 0.05\n\
         momentum = 0.9\nnesterov = true\nweight_decay = 0.001\n{INT8}w = \"int4/channel/stochastic\"\n"
    ));
}

#[cfg(unix)]
#[test]
fn a_killed_process_resumes_to_the_same_bytes_with_running_statistics() {
    a_killed_run_resumes_to_the_same_bytes(&format!(
        "model = \"resnet20\"\ndata = \"cifar10\"\nepochs = 2\nbatch = 8\nvalidation = 0.0\n\
         checkpoint_steps = 1\noptimizer = {{ name = \"sgd\", lr = 0.05, momentum = 0.9 }}\n{INT8}"
    ));
}

#[test]
fn processes_with_one_seed_leave_the_same_bytes_with_any_number_of_threads() {
    for (model, data) in [("lenet", "mnist"), ("resnet20", "cifar10")] {
        let folder = workplace(&format!(
            "model = \"{model}\"\ndata = \"{data}\"\nepochs = 1\nbatch = 20\n\
             optimizer = {{ name = \"adamw\", lr = 0.001 }}\n{INT8}"
        ));
        let folder = folder.path();
        trained(folder, &["--out", "one", "--threads", "1"]);
        for threads in ["2", "3"] {
            trained(folder, &["--out", threads, "--threads", threads]);
            same(&folder.join("one"), &folder.join(threads));
        }
        trained(folder, &["--out", "other", "--set", "seed=8"]);
        let model = |run: &str| fs::read(folder.join(run).join("model.safetensors")).unwrap();
        assert!(model("one/quantized/seed-7") != model("other/quantized/seed-8"));
    }
}

#[test]
fn a_process_for_several_seeds_leaves_what_one_for_each_would() {
    let recipe = format!("model = \"mlp\"\ndata = \"mnist\"\nepochs = 1\n{INT8}");
    let folder = workplace(&recipe);
    let folder = folder.path();
    let printed = trained(folder, &["--out", "all", "--seeds", "2", "--baseline"]);
    contains(&printed, &["run 1/4", "seed 7", "seed 8", "f32", "quantized", "±"]);
    // The data are split by the recipe's seed, which stays; only the run's own differs.
    let rows = json(&folder.join("all/result.json"));
    assert_eq!(rows["rows"][1]["seeds"], serde_json::json!([7, 8]));
    trained(folder, &["--out", "alone"]);
    let model = |run: &str| fs::read(folder.join(run).join("model.safetensors")).unwrap();
    assert!(model("all/quantized/seed-7") == model("alone/quantized/seed-7"));
    assert!(model("all/quantized/seed-7") != model("all/quantized/seed-8"));
    assert!(model("all/quantized/seed-7") != model("all/f32/seed-7"));
}

#[test]
fn a_process_that_resumes_leaves_out_no_run_that_was_begun() {
    let recipe = format!("model = \"mlp\"\ndata = \"mnist\"\nepochs = 1\n{INT8}");
    let folder = workplace(&recipe);
    let folder = folder.path();
    trained(folder, &["--out", "run", "--seeds", "2", "--baseline"]);
    let before = files(&folder.join("run"));
    let said = refused(folder, &["--resume", "run", "--seeds", "2"]);
    contains(&said, &["run: it was begun with run `f32`, seed 7", "--baseline"]);
    let said = refused(folder, &["--resume", "run", "--baseline"]);
    contains(&said, &["run: it was begun with run `f32`, seed 8", "--seeds"]);
    assert!(files(&folder.join("run")) == before);
    // More seeds may be added.
    let said = trained(folder, &["--resume", "run", "--seeds", "3", "--baseline"]);
    assert_eq!(said.matches("done before").count(), 4, "{said}");
    assert_eq!(
        json(&folder.join("run/result.json"))["rows"][0]["seeds"].as_array().unwrap().len(),
        3
    );
}

// ----- Ctrl-C.

#[cfg(unix)]
#[test]
fn an_interrupted_process_saves_and_its_last_words_resume_it() {
    let recipe = format!(
        "model = \"lenet\"\ndata = \"mnist\"\nepochs = 4\nbatch = 8\ncheckpoint_steps = 5\n{INT8}"
    );
    let folder = workplace(&recipe);
    let folder = folder.path();
    let arguments = ["--set", "optimizer.name=adam", "--set", "optimizer.lr = 0.001"];
    trained(folder, &[&arguments[..], &["--out", "whole"]].concat());

    let mut child = scrimp(folder)
        .args(["train", "recipe.toml", "--out", "my run"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let checkpoint = folder.join("my run/quantized/seed-7/checkpoint.safetensors");
    assert!(wait_for(&mut child, &checkpoint, None).is_some());
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(!folder.join("my run/result.json").exists());
    contains(&said, &["saved in my run", "to go on: scrimp train recipe.toml"]);

    let command = said.lines().find_map(|l| l.trim().strip_prefix("to go on: scrimp ")).unwrap();
    let line = format!("exec '{}' {command}", env!("CARGO_BIN_EXE_scrimp"));
    let output = Command::new("sh")
        .args(["-c", &line])
        .current_dir(folder)
        .env("SCRIMP_DATA", "data")
        .output()
        .unwrap();
    let resumed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    contains(&resumed, &["resumes at step"]);
    same(&folder.join("whole"), &folder.join("my run"));
}

#[cfg(unix)]
#[test]
fn a_process_that_is_interrupted_twice_stops_at_once() {
    // One step takes longer than the test waits between the signals.
    let folder = workplace("model = \"lenet\"\ndata = \"digits\"\nepochs = 9\nbatch = 8000\n");
    let folder = folder.path();
    let mut child = scrimp(folder)
        .args(["train", "recipe.toml", "--out", "run"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    contains(&first, &["digits (generated, 8,000 train", "lenet"]);
    interrupt(&child);
    std::thread::sleep(Duration::from_millis(50));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(!folder.join("run/f32/seed-7/checkpoint.safetensors").exists());
}

// ----- What is not a number.

#[test]
fn a_process_whose_loss_is_no_number_names_the_first_tensor_that_was_none() {
    let sgd = "optimizer = { name = \"sgd\", lr = 1e30 }\n";
    let folder =
        workplace(&format!("model = \"mlp\"\ndata = \"mnist\"\nepochs = 2\nbatch = 50\n{sgd}"));
    let folder = folder.path();
    let said = refused(folder, &["--out", "plain"]);
    contains(&said, &["run `f32`, seed 7: training went wrong at step 1 (loss NaN): fc2.y"]);
    assert!(!folder.join("plain/result.json").exists());

    // The last update is the one that breaks the network: only the evaluation can see it.
    let said = refused(folder, &["--out", "late", "--set", "batch=200"]);
    contains(&said, &["(loss NaN): fc2.y", "(in evaluation)"]);
    assert!(!folder.join("late/f32/seed-7/result.json").exists());
}

#[test]
fn a_process_names_the_tensor_that_a_scheme_cannot_hold() {
    let folder = workplace(&format!(
        "model = \"lenet\"\ndata = \"mnist\"\nepochs = 1\nbatch = 30\n\
         optimizer = {{ name = \"sgd\", lr = 1e30 }}\n{INT8}"
    ));
    let folder = folder.path();
    let said = refused(folder, &["--out", "int8"]);
    contains(&said, &["run `quantized`, seed 7: training went wrong at step 1", ".y: element "]);
    // What is not finite may be replaced, and is then counted.
    let rule = "quantize.0.default=int8/nonfinite:saturate";
    let said = trained(
        folder,
        &["--out", "counted", "--set", rule, "--set", "quantize.0.d=int8/nonfinite:saturate"],
    );
    contains(&said, &["NaN or infinite and replaced"]);
    let result = json(&folder.join("counted/quantized/seed-7/result.json"));
    assert!(result["replaced_values"].as_u64().unwrap() > 0);
}

/// A trained network with one value of one tensor replaced by NaN.
fn spoil(from: &Path, to: &Path, name: &str) {
    let reader = open(from).unwrap();
    let tensors: Vec<Tensor> = (0..reader.entries().len())
        .map(|place| {
            let entry = &reader.entries()[place];
            let mut values = reader.read_f32(place).unwrap();
            if entry.name == name {
                *values.last_mut().unwrap() = f32::NAN;
            }
            Tensor::from_f32(entry.name.clone(), entry.shape.clone(), Dtype::F32, &values).unwrap()
        })
        .collect();
    save(to, &tensors, &BTreeMap::new()).unwrap();
}

#[test]
fn a_process_names_the_tensor_of_a_weights_file_that_is_no_number() {
    let folder = workplace("model = \"resnet20\"\ndata = \"cifar10\"\nepochs = 0\nbatch = 8\n");
    let folder = folder.path();
    trained(folder, &["--out", "start"]);
    let start = folder.join("start/f32/seed-7/model.safetensors");
    for (name, element) in [
        ("layer1.0.conv1.weight", "element 2303 is NaN"),
        ("layer2.1.bn2.weight", "element 31 is NaN"),
        ("linear.bias", "element 9 is NaN"),
    ] {
        spoil(&start, &folder.join("spoilt.safetensors"), name);
        for epochs in ["epochs=0", "epochs=1"] {
            let weights = "weights=spoilt.safetensors";
            let said = refused(folder, &["--out", epochs, "--set", weights, "--set", epochs]);
            contains(&said, &[&format!("{name}: {element}")]);
            fs::remove_dir_all(folder.join(epochs)).unwrap();
        }
    }
    // Running statistics have no part in a step of training, and are seen when the network is evaluated.
    spoil(&start, &folder.join("spoilt.safetensors"), "bn1.running_var");
    let said = refused(folder, &["--out", "run", "--set", "weights=spoilt.safetensors"]);
    contains(&said, &["bn1.running_var: element 15 is NaN", "(in evaluation)"]);
}

// ----- Run folders.

const MLP: &str = "model = \"mlp\"\ndata = \"mnist\"\nepochs = 1\n";

#[test]
fn a_process_refuses_a_folder_that_it_cannot_use() {
    let folder = workplace(MLP);
    let folder = folder.path();
    trained(folder, &["--out", "run"]);
    let before = files(&folder.join("run"));
    contains(&refused(folder, &["--out", "run"]), &["run: it holds a run already", "`--resume`"]);
    assert!(files(&folder.join("run")) == before);

    contains(&refused(folder, &["--resume", "nowhere"]), &["nowhere: there is no such run folder"]);
    contains(&refused(folder, &["--resume", "data"]), &["data: it holds no run to resume"]);
    contains(&refused(folder, &["--resume", "recipe.toml"]), &["recipe.toml", "run folder"]);
    let under_a_file = refused(folder, &["--out", "recipe.toml/run"]);
    contains(&under_a_file, &["recipe.toml/run", "not a folder"]);
    fs::write(folder.join("taken"), "").unwrap();
    contains(&refused(folder, &["--out", "taken"]), &["taken"]);
    #[cfg(target_os = "linux")]
    contains(&refused(folder, &["--out", "/proc/run"]), &["/proc/run"]);

    // Where a file has to go there is a folder.
    fs::create_dir_all(folder.join("blocked/f32/seed-7/checkpoint.safetensors")).unwrap();
    let said = refused(folder, &["--out", "blocked"]);
    contains(&said, &["blocked/f32/seed-7/checkpoint.safetensors", "not a regular file"]);
    fs::create_dir_all(folder.join("unwritten/metrics.jsonl")).unwrap();
    contains(&refused(folder, &["--out", "unwritten"]), &["unwritten/metrics.jsonl"]);
}

#[cfg(unix)]
#[test]
fn a_process_without_permission_names_the_folder() {
    use std::os::unix::fs::PermissionsExt;
    let folder = workplace(MLP);
    let folder = folder.path();
    let closed = folder.join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(closed.join("probe"), "").is_ok() {
        return; // The superuser may write anywhere.
    }
    contains(&refused(folder, &["--out", "closed/run"]), &["closed/run", "permission denied"]);
}

#[test]
fn a_process_that_resumes_with_a_changed_recipe_names_the_key() {
    let recipe = format!("{MLP}optimizer = {{ name = \"sgd\", lr = 0.1 }}\n{INT8}");
    let folder = workplace(&recipe);
    let folder = folder.path();
    trained(folder, &["--out", "run"]);
    let before = files(&folder.join("run"));
    for (setting, key) in [
        ("epochs=2", "`epochs` was 1 and is 2"),
        ("optimizer.lr=0.2", "`optimizer.lr` was 0.1 and is 0.2"),
        ("seed=8", "`seed` was 7 and is 8"),
        ("quantize.0.x=int4", "`quantize.0.x` was null and is \"int4\""),
        ("model=lenet", "`model` was \"mlp\" and is \"lenet\""),
    ] {
        let said = refused(folder, &["--resume", "run", "--set", setting]);
        contains(&said, &["run: the recipe changed since this run", key]);
    }
    assert!(files(&folder.join("run")) == before);
    // How often it is saved has no part in what a run gives.
    let said = trained(folder, &["--resume", "run", "--set", "checkpoint_steps=1"]);
    contains(&said, &["done before"]);
}

#[test]
fn a_process_refuses_a_broken_checkpoint() {
    let folder = workplace(
        "model = \"mlp\"\ndata = \"mnist\"\nepochs = 2\nbatch = 60\n\
         [[quantize]]\nlayers = \"*\"\ndefault = \"int8/stochastic\"\n",
    );
    let folder = folder.path();
    trained(folder, &["--out", "run"]);
    fs::remove_file(folder.join("run/quantized/seed-7/result.json")).unwrap();
    let path = folder.join("run/quantized/seed-7/checkpoint.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        contains(&refused(folder, &["--resume", "run"]), &["checkpoint.safetensors"]);
    }
    // A tensor file that is none, one of another network, one that lacks a tensor, one with moments of another length.
    let reader = {
        fs::write(&path, &whole).unwrap();
        open(&path).unwrap()
    };
    let tensors: Vec<Tensor> =
        (0..reader.entries().len()).map(|place| reader.read_tensor(place).unwrap()).collect();
    let of = |keep: &dyn Fn(&str) -> bool| -> Vec<Tensor> {
        tensors.iter().filter(|t| keep(t.name())).cloned().collect()
    };
    let none = BTreeMap::new();
    fs::copy(folder.join("run/quantized/seed-7/model.safetensors"), &path).unwrap();
    contains(&refused(folder, &["--resume", "run"]), &["no checkpoint", "scrimp.checkpoint"]);
    save(&path, &of(&|name| name != "model.fc1.bias"), reader.metadata()).unwrap();
    contains(&refused(folder, &["--resume", "run"]), &["missing fc1.bias"]);
    let mut others = of(&|name| name != "optimizer.fc1.bias.m");
    let short = Tensor::from_f32("optimizer.fc1.bias.m", vec![3], Dtype::F32, &[0.0; 3]);
    others.push(short.unwrap());
    save(&path, &others, reader.metadata()).unwrap();
    contains(&refused(folder, &["--resume", "run"]), &["`fc1.bias.m`", "length"]);
    save(&path, &tensors, &none).unwrap();
    contains(&refused(folder, &["--resume", "run"]), &["no checkpoint"]);
    // The whole one goes on: all that is left is to evaluate, with the random numbers of the last step, and to write
    // down the result.
    fs::write(&path, &whole).unwrap();
    trained(folder, &["--resume", "run"]);
    trained(folder, &["--out", "again"]);
    same(&folder.join("run"), &folder.join("again"));
}

// ----- Data.

#[test]
fn a_process_without_data_says_where_they_are_to_be_had() {
    let folder = workplace(MLP);
    let folder = folder.path();
    let output = scrimp(folder)
        .args(["train", "recipe.toml", "--out", "run"])
        .env_remove("SCRIMP_DATA")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    contains(&said, &["mnist is read from files", "--data-dir", "SCRIMP_DATA"]);

    for (data, model, parts) in [
        ("mnist", "mlp", ["empty/mnist", "train-images-idx3-ubyte", "yann.lecun.com", "md5"]),
        ("fashion-mnist", "mlp", ["empty/fashion-mnist", "ubyte", "zalandoresearch", "md5"]),
        ("cifar10", "resnet20", ["empty", "data_batch_1.bin", "www.cs.toronto.edu", "md5"]),
    ] {
        let (data, model) = (format!("data={data}"), format!("model={model}"));
        let flags = ["--out", "run", "--data-dir", "empty", "--set", &data, "--set", &model];
        contains(&refused(folder, &flags), &parts);
    }
    // Nothing was begun.
    assert!(!folder.join("run").exists());
}

#[test]
fn a_process_refuses_data_files_that_are_cut_or_lie() {
    let folder = workplace(MLP);
    let folder = folder.path();
    let spoil = |path: &str, change: &dyn Fn(&mut Vec<u8>), parts: &[&str], flags: &[&str]| {
        let path = folder.join(path);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let said = refused(folder, &[&["--out", "run"], flags].concat());
        contains(&said, parts);
        contains(&said, &[path.file_name().unwrap().to_str().unwrap()]);
        fs::write(&path, whole).unwrap();
    };
    let images = "data/mnist/train-images-idx3-ubyte";
    spoil(images, &|b| b.truncate(1000), &["cut off"], &[]);
    spoil(images, &|b| b.truncate(6), &["cut off"], &[]);
    spoil(images, &|b| b.clear(), &[], &[]);
    spoil(images, &|b| b.push(0), &[], &[]);
    spoil(images, &|b| b[4] = 0xFF, &[], &[]);
    spoil("data/mnist/t10k-labels-idx1-ubyte", &|b| b[12] = 10, &["label 10", "0 to 9"], &[]);
    let cifar = ["--set", "data=cifar10", "--set", "model=resnet20"];
    let batch = "data/cifar-10-batches-bin/data_batch_3.bin";
    spoil(batch, &|b| b.truncate(5000), &["cut off", "record 1"], &cifar);
    spoil(batch, &|b| b.clear(), &["empty"], &cifar);
    spoil(batch, &|b| b[3073] = 200, &["label 200 of record 1"], &cifar);
    // Nothing was begun.
    assert!(!folder.join("run").exists());
    // A network that does not take such images is refused before anything is read.
    let said = refused(folder, &["--set", "model=resnet20", "--set", "data=nowhere"]);
    contains(&said, &["`nowhere`"]);
}

#[test]
fn a_process_refuses_weights_of_another_network() {
    let folder = workplace(MLP);
    let folder = folder.path();
    trained(folder, &["--out", "run"]);
    let weights = "weights=run/f32/seed-7/model.safetensors";
    let said = refused(folder, &["--out", "other", "--set", "model=lenet", "--set", weights]);
    contains(&said, &["model.safetensors", "fc1"]);
    let said = refused(folder, &["--out", "none", "--set", "weights=nowhere.safetensors"]);
    contains(&said, &["nowhere.safetensors", "no such file"]);
    fs::write(folder.join("cut.safetensors"), [0; 9]).unwrap();
    let said = refused(folder, &["--out", "cut", "--set", "weights=cut.safetensors"]);
    contains(&said, &["cut.safetensors"]);
}

const IMAGES: &str = "model = \"mlp\"\ndata = \"image-folder\"\nepochs = 1\nbatch = 8\n\n\
                      [images]\nfolder = \"pets\"\nclasses = 2\nsize = 12\nresize = 13\n";

#[test]
fn a_process_trains_on_a_folder_of_images() {
    let folder = workplace(IMAGES);
    let folder = folder.path();
    write_images(&folder.join("data/pets"), &["cat", "dog"]);
    let said = trained(folder, &["--out", "run"]);
    // Of 24 images 2 are for validation.
    contains(&said, &["image-folder (data/pets, test images of test, 22 train / 2 validation"]);
    // Another number of threads reads the same images.
    trained(folder, &["--out", "again", "--threads", "1"]);
    same(&folder.join("run"), &folder.join("again"));

    let wrong = |set: &str, parts: &[&str]| {
        let said = refused(folder, &["--out", "none", "--set", set]);
        contains(&said, parts);
        assert!(!folder.join("none").exists());
    };
    wrong("images.classes=3", &["pets/train: holds folders of 2 classes", "`classes = 3`"]);
    wrong("images.classes=1000", &["recipe.toml", "1000 classes: between 1 and 256"]);
    wrong("images.resize=11", &["11 pixels: valid are 12"]);
    wrong("images.sizes=3", &["unknown key `sizes`", "did you mean `size`?"]);
    wrong("images.folder=nowhere", &["nowhere: has no folder `train`"]);
    wrong("data=mnist", &["[images] has no effect: mnist"]);
    wrong("model=inception-v3", &["`inception-v3` does not take images", "75 x 75"]);
    fs::write(folder.join("data/pets/train/cat/broken.jpg"), "no image").unwrap();
    wrong("seed=7", &["train/cat/broken.jpg: is no JPEG or PNG image"]);
}

#[test]
fn a_process_begins_with_the_weights_of_a_network_with_other_classes() {
    let folder = workplace(IMAGES);
    let folder = folder.path();
    write_images(&folder.join("data/pets"), &["cat", "dog"]);
    let said = trained(folder, &["--out", "two"]);
    assert!(!said.contains("weights"), "{said}");
    write_images(&folder.join("data/more"), &["cat", "dog", "eel"]);
    let more = ["--set", "images.folder=more", "--set", "images.classes=3"];
    let file = "two/f32/seed-7/model.safetensors";
    let plain = format!("weights={file}");
    let all = trained(folder, &["--out", "all", "--set", &plain]);
    contains(&all, &[&format!("weights {file}: all 6 tensors\n")]);
    let said = refused(folder, &[&more[..], &["--out", "none", "--set", &plain]].concat());
    let help = format!("weights = {{ file = \"{file}\", fresh = [\"fc3.*\"] }}");
    contains(
        &said,
        &[
            "does not fit the network",
            "fc3.weight is [2, 128] in the file and [3, 128] here",
            "fc3.bias is [2] in the file and [3] here",
            &format!("weights = \"{file}\""),
            &help,
        ],
    );
    assert!(!folder.join("none").exists());

    // What the help says, as it is.
    let recipe = fs::read_to_string(folder.join("recipe.toml")).unwrap();
    fs::write(folder.join("recipe.toml"), format!("{help}\n{recipe}")).unwrap();
    let said = trained(folder, &[&more[..], &["--out", "three"]].concat());
    contains(&said, &["4 of 6 tensors", "random: fc3.weight, fc3.bias"]);
    for result in ["three/result.json", "three/f32/seed-7/result.json"] {
        let weights = &json(&folder.join(result))["weights"];
        assert_eq!(weights["file"], file);
        assert_eq!((&weights["used"], &weights["missing"]), (&4.into(), &serde_json::json!([])));
        assert_eq!(weights["reshaped"][1]["name"], "fc3.bias");
        assert_eq!(weights["unexpected"], serde_json::json!([]));
    }
    // A resumed run is the same recipe, and its result is there already.
    trained(folder, &[&more[..], &["--resume", "three"]].concat());
    let idle = "weights={ file = \"two/f32/seed-7/model.safetensors\", fresh = \"head.*\" }";
    let said = refused(folder, &["--out", "none", "--set", idle]);
    contains(&said, &["`head.*` matches no tensor of the network"]);
    let odd = "weights={ file = \"a\", freshh = \"head.*\" }";
    contains(&refused(folder, &["--out", "none", "--set", odd]), &["a file, or { file"]);
}

// ----- Through the library.

struct Quiet;

impl Watch for Quiet {
    fn begin(&mut self, facts: &Facts) {
        assert!(facts.images[0] > 0 && facts.images[2] > 0 && facts.parameters > 0);
    }
}

/// Carries out the recipe of a workplace with changes to it.
fn carry_out(folder: &Path, out: &str, settings: &[&str]) -> Result<Report, RunError> {
    let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
    let request = RunRequest {
        source: Source::read(&folder.join("recipe.toml"), &settings)?,
        folder: folder.join(out),
        resume: false,
        data_dir: Some(folder.join("data")),
        device: "flex".into(),
        baseline: false,
        seeds: 1,
    };
    run(&request, &mut Quiet)
}

#[test]
fn emulation_is_the_bytes_of_a_trained_network_in_process() {
    let folder = workplace(
        r#"
model = "lenet"
data = "mnist"
epochs = 2
batch = 16
compute = "emulate"   # what int8 products give differs in the last bit of f32 sums
optimizer = { name = "adam", lr = 0.002 }

[[quantize]]
layers = "*"
default = "int8"
d = "e5m2"
w = "int4/group:32/scale:f16"

[[quantize]]
layers = "conv2"
w = "e4m3fn/channel"
b = "bf16"

[[quantize]]
layers = "fc2"
w = "int8/tile:8x16/scale:pow2/stochastic"

[[quantize]]
layers = "fc3"
w = "f32"
b = "f32"
"#,
    );
    let folder = folder.path();
    let report = carry_out(folder, "run", &[]).unwrap();
    let run = folder.join("run/quantized/seed-7");
    let (plan, result) = (json(&run.join("plan.json")), json(&run.join("result.json")));
    let steps = result["steps"].as_u64().unwrap();
    let model = open(&run.join("model.safetensors")).unwrap();
    let packed = open(&run.join("model.packed.safetensors")).unwrap();
    assert_eq!(packed.entries().len(), 10);

    let mut stored = 0;
    for (place, entry) in packed.entries().iter().enumerate() {
        let (layer, field) = entry.name.split_once('.').unwrap();
        let role = if field == "weight" { "w" } else { "b" };
        let planned = plan["tensors"].as_array().unwrap().iter();
        let planned = planned.clone().find(|t| t["layer"] == layer && t["role"] == role).unwrap();
        let mut values = model.read_f32(model.find(&entry.name).unwrap()).unwrap();
        match &entry.storage {
            Storage::Packed { scheme } => {
                assert_eq!(planned["scheme"], scheme.to_string());
                // The random numbers are those of the last step.
                let stream = Stream::named(7, &format!("{layer}.{role}")).at_step(steps - 1);
                scheme.emulate(&mut values, &entry.shape, &stream).unwrap();
            }
            Storage::Kept { reason } => {
                assert_eq!((layer, &**reason), ("fc3", "the rule says f32"));
            }
            Storage::Plain => panic!("{} is plain", entry.name),
        }
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&packed.read_f32(place).unwrap()), bits(&values), "{}", entry.name);
        assert_eq!(planned["bytes"], packed.stored_bytes(place), "{}", entry.name);
        stored += packed.stored_bytes(place) as u64;
    }
    let sizes = &report.rows[0].sizes;
    assert_eq!(sizes.packed_bytes, stored);
    let bytes_of = |name: &str| fs::metadata(run.join(name)).unwrap().len();
    assert_eq!(sizes.packed_file_bytes, bytes_of("model.packed.safetensors"));
    assert_eq!(sizes.file_bytes, bytes_of("model.safetensors"));
    assert!(3 * sizes.packed_file_bytes < sizes.file_bytes);

    // The packed weights as they are give exactly the figures that the run reported.
    let weights = format!("weights={}", run.join("model.packed.safetensors").display());
    let as_stored = [
        "epochs=0",
        &weights,
        "quantize.0.w=f32",
        "quantize.0.b=f32",
        "quantize.1.w=f32",
        "quantize.1.b=f32",
        "quantize.2.w=f32",
    ];
    carry_out(folder, "stored", &as_stored).unwrap();
    let again = json(&folder.join("stored/quantized/seed-7/result.json"));
    assert_eq!(again["test"], result["test"]);
    // Rounded once more they stay what they are, up to the last bit of a scale.
    let once_more = ["epochs=0", &weights, "quantize.2.w=int8/tile:8x16/scale:pow2"];
    carry_out(folder, "again", &once_more).unwrap();
    let again = json(&folder.join("again/quantized/seed-7/result.json"));
    assert_eq!(again["test"]["accuracy"], result["test"]["accuracy"]);
}

#[test]
fn every_option_trains_and_is_reproducible_in_process() {
    let folder =
        workplace(&format!("model = \"mlp\"\ndata = \"mnist\"\nepochs = 2\nbatch = 50\n{INT8}"));
    let folder = folder.path();
    let sgd = |more: &str| format!("optimizer={{ name = \"sgd\", lr = 0.05, {more} }}");
    let adam = |name: &str| {
        format!("optimizer={{ name = \"{name}\", lr = 0.001, beta1 = 0.8, weight_decay = 0.1 }}")
    };
    let schedule = |text: &str| format!("schedule={{ name = {text} }}");
    let cases: &[(&str, &[&str], u64)] = &[
        ("as it is", &[], 8),
        ("limit", &["limit=70"], 4),
        ("limit beyond", &["limit=100000"], 8),
        ("no validation", &["validation=0"], 8),
        ("large batch", &["batch=1000"], 2),
        ("batch of one", &["batch=1", "limit=3"], 6),
        ("short last batch", &["batch=49", "limit=50"], 4),
        ("evaluation only", &["epochs=0"], 0),
        ("smoothing", &["label_smoothing=0.2"], 8),
        ("clipping", &["clip_norm=0.01"], 8),
        ("crop and flip", &["augment={ crop = 3, flip = true }"], 8),
        ("multi-step", &[&schedule("\"multi-step\", milestones = [1]")], 8),
        ("cosine", &[&schedule("\"cosine\", floor = 0.1")], 8),
        ("linear", &[&schedule("\"linear\", warmup = 3")], 8),
        ("plain sgd", &[&sgd("momentum = 0.0")], 8),
        ("nesterov", &[&sgd("momentum = 0.9, nesterov = true, weight_decay = 0.01")], 8),
        ("adam", &[&adam("adam")], 8),
        ("adamw", &[&adam("adamw")], 8),
    ];
    let mut models: BTreeMap<Vec<u8>, &str> = BTreeMap::new();
    for (name, settings, steps) in cases {
        let model = |out: &str| {
            carry_out(folder, out, settings).unwrap_or_else(|e| panic!("{name}: {e}"));
            let run = folder.join(out).join("quantized/seed-7");
            let result = json(&run.join("result.json"));
            assert_eq!(result["steps"], *steps, "{name}");
            assert_eq!(result["test"]["images"], 60, "{name}");
            assert_eq!(
                result["validation"].is_null(),
                ["no validation", "evaluation only"].contains(name)
            );
            fs::read(run.join("model.safetensors")).unwrap()
        };
        let first = model(name);
        assert!(first == model(&format!("{name} again")), "{name} is not reproducible");
        // Every option changes what is learned, but for a limit that limits nothing.
        if let Some(other) = models.insert(first, name) {
            assert_eq!((other, *name), ("as it is", "limit beyond"));
        }
    }
}
