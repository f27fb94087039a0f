//! Sweeps as a user sees them: the program is started, killed and resumed, and its folders are read.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

mod support;

use support::{contains, files, json, same};
#[cfg(unix)]
use support::{interrupt, killed_by, wait_for};

const SWEEP: &str = r#"
seeds = 2

[base]
model = "mlp"
data = "digits"
epochs = 2
limit = 300
batch = 25
checkpoint_steps = 2
telemetry = { every = 5 }

[base.optimizer]
name = "sgd"
lr = 0.05
momentum = 0.9

[[axis]]
key = "label_smoothing"
values = [0.0, 0.1]

[[axis]]
name = "format"
[[axis.point]]
name = "none"
[[axis.point]]
name = "int8"
[[axis.point.quantize]]
layers = "*"
default = "int8"
d = "int8/stochastic"
"#;

/// A folder with a sweep in `sweep.toml`.
fn workplace(sweep: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("sweep.toml"), sweep).unwrap();
    folder
}

fn sweep(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scrimp"));
    command.current_dir(folder).env_remove("SCRIMP_DATA").env_remove("NO_COLOR");
    command.args(["sweep", "sweep.toml"]).args(arguments);
    command
}

/// Sweeps, which must succeed without a complaint, and gives what was printed.
fn swept(folder: &Path, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = sweep(folder, arguments).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&stderr), "", "{arguments:?}");
    assert_eq!(status.code(), Some(0), "{arguments:?}");
    String::from_utf8(stdout).unwrap()
}

/// Sweeps, which must fail in an orderly way, and gives what was said on both streams.
fn refused(folder: &Path, arguments: &[&str]) -> (String, String) {
    let Output { status, stdout, stderr } = sweep(folder, arguments).output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{arguments:?}: {said}");
    assert!(said.starts_with("error: ") && !said.contains("panicked"), "{arguments:?}: {said}");
    (String::from_utf8(stdout).unwrap(), said)
}

/// The lines of a CSV table by its columns; no cell of these tests' numbers holds a comma.
fn column(csv: &str, name: &str) -> Vec<String> {
    let cells = |line: &str| {
        let (mut cells, mut is_quoted) = (vec![String::new()], false);
        for c in line.chars() {
            match c {
                '"' => is_quoted = !is_quoted,
                ',' if !is_quoted => cells.push(String::new()),
                c => cells.last_mut().unwrap().push(c),
            }
        }
        cells
    };
    let place = cells(csv.lines().next().unwrap()).iter().position(|n| n == name).unwrap();
    csv.lines().skip(1).map(|line| cells(line)[place].clone()).collect()
}

#[test]
fn a_process_sweeps_a_grid_and_tells_it_in_four_ways() {
    let folder = workplace(SWEEP);
    let folder = folder.path();
    let said = swept(folder, &["--out", "run"]);
    let label = "label_smoothing=0.1,int8";
    contains(&said, &["run 1/8", "run 8/8", label, "seed 8", "±", "2 of 2", "done", "left, about"]);
    contains(&said, &["Δ and x: against the f32 row that is alike on most axes", "report.html"]);
    // Data that all points agree on are said once.
    assert_eq!(said.matches("digits (generated").count(), 1, "{said}");

    let results = json(&folder.join("run/results.json"));
    let rows = results["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    assert_eq!(results["axes"], serde_json::json!(["label_smoothing", "format"]));
    let row = &rows[3];
    assert_eq!(row["label"], label);
    assert_eq!(row["baseline"], "label_smoothing=0.1,none");
    assert!(rows[2]["baseline"].is_null() && row["difference"].is_f64());
    assert_eq!(row["runs"].as_array().unwrap().len(), 2);
    let bits = row["bits"]["w"].as_f64().unwrap();
    assert!((8.0..8.1).contains(&bits) && rows[2]["bits"]["w"] == 32.0, "{bits}");
    // The mean is that of the runs, whose folders are those of any training.
    let accuracy = |seed: u32| {
        let path = format!("run/{label}/quantized/seed-{seed}/result.json");
        json(&folder.join(path))["test"]["accuracy"].as_f64().unwrap()
    };
    let mean = row["accuracy"]["mean"].as_f64().unwrap();
    assert!((mean - f64::midpoint(accuracy(7), accuracy(8))).abs() < 1e-12);

    let csv = fs::read_to_string(folder.join("run/results.csv")).unwrap();
    assert_eq!(column(&csv, "axis_format"), ["none", "int8", "none", "int8"]);
    assert_eq!(column(&csv, "row")[3], label);
    assert_eq!(column(&csv, "test_accuracy")[3], mean.to_string());
    assert_eq!(column(&csv, "status"), ["done"; 4]);

    let page = fs::read_to_string(folder.join("run/report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    contains(&page, &[label, "training loss", "validation accuracy", "bits per value of weights"]);
    // Of what is rounded, and of nothing else.
    contains(&page, &["signal to quantization noise, dB by step", "id=\"noise-dy\""]);
    assert!(!page.contains("id=\"noise-m\""));
    let links = page.replace("http://www.w3.org/2000/svg", "");
    for outside in ["http", "src=", "@import", "url(", "NaN", "inf"] {
        assert!(!links.contains(outside), "{outside}");
    }

    // A point is a run like any other: it can be resumed, and would have come out the same alone.
    let point = format!("run/{label}");
    let train = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scrimp"));
        command.current_dir(folder).arg("train").arg(format!("{point}/recipe.toml"));
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = train(&["--resume", &point, "--seeds", "2"]);
    assert_eq!(said.matches("done before").count(), 2, "{said}");
    train(&["--out", "alone", "--seeds", "2"]);
    same(&folder.join("alone"), &folder.join(&point));

    // The sweep in the folder needs no other file, and has nothing left to do.
    fs::remove_file(folder.join("sweep.toml")).unwrap();
    fs::copy(folder.join("run/sweep.toml"), folder.join("sweep.toml")).unwrap();
    let before = files(&folder.join("run"));
    let again = swept(folder, &["--resume", "run", "--csv"]);
    assert_eq!(again, csv);
    assert!(files(&folder.join("run")) == before);
}

#[cfg(unix)]
#[test]
fn a_killed_process_of_a_sweep_resumes_to_the_same_bytes() {
    let folder = workplace(SWEEP);
    let folder = folder.path();
    swept(folder, &["--out", "whole", "--threads", "1"]);
    let run = |point: &str| format!("cut/{point}/seed-7/checkpoint.safetensors");
    let moments = [
        "cut/sweep.toml".to_owned(),
        run("label_smoothing=0.0,none/f32"),
        "cut/label_smoothing=0.0,int8/recipe.toml".to_owned(),
        run("label_smoothing=0.0,int8/quantized"),
        "cut/results.json".to_owned(),
        run("label_smoothing=0.1,int8/quantized"),
    ];
    for (round, awaited) in moments.iter().enumerate() {
        let awaited = folder.join(awaited);
        let before = fs::metadata(&awaited).and_then(|m| m.modified()).ok();
        let flag = if round == 0 { "--out" } else { "--resume" };
        let mut child = sweep(folder, &[flag, "cut", "--threads", ["1", "2"][round % 2]])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let came = wait_for(&mut child, &awaited, before);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(came.is_some() && killed_by(status) == Some(9), "round {round}: {status}");
    }
    let said = swept(folder, &["--resume", "cut"]);
    contains(&said, &["done before"]);
    same(&folder.join("whole"), &folder.join("cut"));
}

#[cfg(unix)]
#[test]
fn an_interrupted_process_of_a_sweep_saves_and_its_last_words_resume_it() {
    let folder = workplace(SWEEP);
    let folder = folder.path();
    let arguments = ["--set", "optimizer.momentum=0.5", "--seeds", "1"];
    swept(folder, &[&arguments[..], &["--out", "whole"]].concat());
    let mut child = sweep(folder, &[&arguments[..], &["--out", "my sweep"]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let checkpoint = "my sweep/label_smoothing=0.0,int8/quantized/seed-7/checkpoint.safetensors";
    assert!(wait_for(&mut child, &folder.join(checkpoint), None).is_some());
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    contains(&said, &["saved in my sweep", "to go on: scrimp sweep sweep.toml"]);
    // What was done by then is told.
    let rows = json(&folder.join("my sweep/results.json"));
    assert_eq!(rows["rows"][0]["runs"][0]["status"], "done");
    assert_eq!(rows["rows"][3]["runs"][0]["status"], "open");

    let command = said.lines().find_map(|l| l.trim().strip_prefix("to go on: scrimp ")).unwrap();
    let line = format!("exec '{}' {command}", env!("CARGO_BIN_EXE_scrimp"));
    let output = Command::new("sh").args(["-c", &line]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    same(&folder.join("whole"), &folder.join("my sweep"));
}

#[test]
fn a_process_goes_on_with_a_sweep_after_a_run_that_went_wrong() {
    let sweep =
        SWEEP.replace("label_smoothing", "optimizer.lr").replace("[0.0, 0.1]", "[1e30, 0.05]");
    let folder = workplace(&sweep);
    let folder = folder.path();
    let (said, error) = refused(folder, &["--out", "run", "--seeds", "1"]);
    contains(&error, &["2 of 4 runs went wrong", "the first of them lr="]);
    contains(&said, &["failed: training went wrong at step 1", "failed", "done"]);
    let results = json(&folder.join("run/results.json"));
    let run = |row: usize| results["rows"][row]["runs"][0].clone();
    assert_eq!(
        (run(0)["status"].clone(), run(2)["status"].clone()),
        ("failed".into(), "done".into())
    );
    contains(run(0)["reason"].as_str().unwrap(), &["training went wrong at step 1"]);
    assert_eq!(results["rows"][3]["baseline"], "lr=0.05,none");
    let csv = fs::read_to_string(folder.join("run/results.csv")).unwrap();
    assert_eq!(column(&csv, "status"), ["failed", "failed", "done", "done"]);
    assert!(
        column(&csv, "reason")[1].contains("went wrong")
            && column(&csv, "test_accuracy")[0].is_empty()
    );
    let page = fs::read_to_string(folder.join("run/report.html")).unwrap();
    contains(&page, &["What went wrong", "went wrong at step 1"]);

    // It is tried again, and the others are not. Without it, all is well.
    let before = files(&folder.join("run"));
    let (said, _) = refused(folder, &["--resume", "run", "--seeds", "1"]);
    assert_eq!(said.matches("done before").count(), 2, "{said}");
    assert!(files(&folder.join("run")) == before);
    swept(folder, &["--resume", "run", "--seeds", "1", "--only", "lr=0.05*"]);
}

#[test]
fn a_process_does_a_part_of_a_sweep_and_later_the_rest() {
    let folder = workplace(SWEEP);
    let folder = folder.path();
    let said = swept(folder, &["--out", "run", "--seeds", "1", "--only", "*,none"]);
    contains(&said, &["run 2/2", "not run"]);
    assert!(!folder.join("run/label_smoothing=0.0,int8").exists());
    let said = swept(folder, &["--resume", "run", "--seeds", "2", "--json"]);
    let lines: Vec<Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|l| l["type"] == kind).count();
    assert_eq!((of("begin"), of("run"), of("report")), (1, 8, 1));
    assert!(lines.iter().any(|l| l["type"] == "epoch" && l["point"] == "label_smoothing=0.1,int8"));
    assert_eq!(lines.iter().filter(|l| l["resumed"] == true).count(), 2);

    let (_, error) = refused(folder, &["--out", "run"]);
    contains(&error, &["run: it holds a sweep already", "`--resume`"]);
    let (_, error) = refused(folder, &["--resume", "run", "--seeds", "1"]);
    contains(&error, &["run: it was begun with 2 seeds", "as many, or more"]);
    let (_, error) = refused(folder, &["--resume", "run", "--set", "epochs=3"]);
    contains(&error, &["the recipe changed since this run: `epochs` was 2 and is 3"]);
    let (_, error) = refused(folder, &["--only", "*,int4"]);
    contains(&error, &["`--only *,int4` matches no point", "label_smoothing=0.0,none"]);
    let (_, error) = refused(folder, &["--resume", "nowhere"]);
    contains(&error, &["nowhere: there is no such sweep folder"]);
    fs::create_dir(folder.join("empty")).unwrap();
    let (_, error) = refused(folder, &["--resume", "empty"]);
    contains(&error, &["empty: it holds no sweep to resume"]);

    // Points may be added and not taken away.
    fs::write(folder.join("sweep.toml"), SWEEP.replace("[0.0, 0.1]", "[0.0, 0.2]")).unwrap();
    let (_, error) = refused(folder, &["--resume", "run"]);
    contains(&error, &["the point `label_smoothing=0.1,", "`--only`"]);
    fs::write(folder.join("sweep.toml"), SWEEP.replace("[0.0, 0.1]", "[0.0, 0.1, 0.2]")).unwrap();
    let said = swept(folder, &["--resume", "run"]);
    assert_eq!(said.matches("done before").count(), 8, "{said}");
}

#[test]
fn a_process_shares_data_that_points_agree_on_and_checks_all_points_first() {
    let folder = workplace(
        &SWEEP.replace("\"label_smoothing\"", "\"limit\"").replace("[0.0, 0.1]", "[50, 60]"),
    );
    let folder = folder.path();
    let said = swept(folder, &["--out", "run", "--seeds", "1", "--set", "epochs=1"]);
    assert_eq!(said.matches("digits (generated").count(), 2, "{said}");

    fs::write(
        folder.join("sweep.toml"),
        SWEEP.replace("d = \"int8/stochastic\"", "d = \"int8/axis:9\""),
    )
    .unwrap();
    let (said, error) = refused(folder, &["--out", "bad"]);
    contains(&error, &["point `label_smoothing=0.0,int8`: ", "sweep.toml:", "^"]);
    assert!(said.is_empty() && !folder.join("bad").exists(), "{said}");
    // Where data are missing for one point, nothing is begun.
    fs::write(
        folder.join("sweep.toml"),
        SWEEP.replace("name = \"int8\"", "name = \"other\"\ndata = \"mnist\""),
    )
    .unwrap();
    let (_, error) = refused(folder, &["--out", "bad"]);
    contains(&error, &["point `label_smoothing=0.0,other`: ", "SCRIMP_DATA"]);
    assert!(!folder.join("bad").exists());
}

#[test]
fn the_sweeps_of_the_repository_fit_their_networks() {
    let tables = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/tables");
    let mut count = 0;
    for entry in fs::read_dir(tables).unwrap() {
        let path = entry.unwrap().path();
        let mut command = Command::new(env!("CARGO_BIN_EXE_scrimp"));
        let output = command.arg("sweep").arg(&path).arg("--dry-run").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", path.display());
        count += 1;
    }
    assert!(count > 0);
}
