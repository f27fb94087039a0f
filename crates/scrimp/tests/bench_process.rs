//! `scrimp bench` from outside: what it prints for people and machines, and what it refuses.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scrimp")).arg("bench").args(arguments).output().unwrap()
}

fn refusal(arguments: &[&str]) -> String {
    let output = bench(arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn every_row_and_product_is_an_object_of_json_in_process() {
    let small = ["lenet", "--batch", "3", "--rounds", "1", "--engine", "--scheme", "e4m3fn"];
    let output = bench(&[&small[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|l| l["type"] == kind).collect::<Vec<_>>();
    let names: Vec<&Value> = of("step").iter().map(|l| &l["name"]).collect();
    let rows = ["f32", "bf16", "int8", "int8, emulated", "e4m3fn", "f32, engine's own"];
    assert_eq!(names, rows);
    assert!(of("step").iter().all(|l| l["median_ms"].as_f64().unwrap() > 0.0));
    assert_eq!(of("peak").len(), 3);
    assert_eq!(of("verdict").len(), 1);
    // Three products of five layers but for the gradient of the images; the engine's own are not timed.
    assert_eq!(of("product").len(), 5 * 14);
    let kind = |name: &str| {
        let of = of("product").into_iter().find(|l| l["name"] == name).unwrap();
        of["choice"]["kind"].clone()
    };
    assert_eq!(
        ["bf16", "int8", "int8, emulated", "e4m3fn"].map(kind),
        ["bf16", "int8", "f32", "bf16"]
    );

    let output = bench(&small);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("lenet · batch 3 · 1x28x28 · sgd · "), "{text}");
    assert!(text.contains("low precision "), "{text}");
}

#[test]
fn a_text_network_is_timed_in_process() {
    let output =
        bench(&["text-transformer", "--batch", "2", "--rounds", "1", "--optimizer", "adam"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("text-transformer · batch 2 · 64 tokens · adam · "), "{text}");
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    for (arguments, parts) in [
        (&["lennet"][..], ["lenet", "possible values"]),
        (&["lenet", "--image", "1x28"], ["three sizes of 1 to 4096", "1x28"]),
        (&["resnet20", "--image", "3x30x30"], ["multiples of 4", "resnet20"]),
        (&["lenet", "--scheme", "int8/chanel"], ["did you mean `channel`", "^^^^^^"]),
        (&["lenet", "--scheme", "int8/tile:2x"], ["tile", "2x"]),
        (&["text-transformer", "--image", "3x32x32"], ["takes no images", "text-transformer"]),
        (&["lenet", "--batch", "0"], ["1..=65536", "0"]),
    ] {
        let said = refusal(arguments);
        for part in parts {
            assert!(said.contains(part), "`{part}` is missing: {said}");
        }
    }
}
