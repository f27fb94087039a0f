//! Recipes through `scrimp plan`: what it prints, and what it says of recipes that are wrong.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use insta::assert_snapshot;
use serde_json::Value;

/// What every recipe here begins with.
const HEAD: &str = r#"model = "lenet"
data = "digits"
epochs = 1
"#;

fn scrimp(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("SCRIMP_DATA")
        .output()
        .unwrap()
}

/// What a command says that must fail in an orderly way, and print no answer before it does.
fn refusal(folder: &Path, arguments: &[&str]) -> String {
    let output = scrimp(folder, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(said.starts_with("error: ") && !said.contains("panicked"), "{arguments:?}: {said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{arguments:?}");
    said
}

/// What `scrimp plan` says of a recipe that is wrong.
fn refused(recipe: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.toml"), recipe).unwrap();
    refusal(folder.path(), &["plan", "bad.toml"])
}

/// What `scrimp plan` prints for a recipe, one JSON object per line.
fn planned(recipe: &str, arguments: &[&str]) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("good.toml"), recipe).unwrap();
    let output = scrimp(folder.path(), &[&["plan", "good.toml", "--json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A recipe with one rule for all layers.
fn rule(keys: &str) -> String {
    format!("{HEAD}\n[[quantize]]\nlayers = \"*\"\n{keys}\n")
}

/// Checks that an error stands at a line and column, and says all of these.
fn expect(said: &str, place: &str, parts: &[&str]) {
    assert!(said.contains(&format!("bad.toml:{place}\n")), "{place}: {said}");
    assert!(said.contains('^'), "{said}");
    for part in parts {
        assert!(said.contains(part), "`{part}` is missing: {said}");
    }
}

#[test]
fn the_quickstart_is_planned_tensor_by_tensor() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (variant, more) in [("f32", &[][..]), ("int4", &[]), ("fp8", &["--cost"])] {
        let arguments = ["plan", "recipes/quickstart.toml", "--variant", variant];
        let output = scrimp(&root, &[&arguments, more].concat());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_eq!(output.status.code(), Some(0));
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_snapshot!(format!("quickstart_{variant}"), printed);
    }
}

#[test]
fn errors_point_at_the_place() {
    let key = refused(&HEAD.replace("epochs", "epoch"));
    assert_snapshot!(key, @r"
    error: unknown key `epoch`
      ┌─ bad.toml:3:1
    3 │ epoch = 1
      │ ^^^^^
      help: did you mean `epochs`? There are seed, model, data, images, epochs, batch, validation, limit, weights, optimizer, schedule, clip_norm, loss_scale, label_smoothing, augment, exchange, compute, saved, checkpoint_steps, telemetry, preset, quantize, variant
    ");
    let scheme = refused(&rule(r#"w = "int4/groups:32""#));
    assert_snapshot!(scheme, @r#"
    error: `groups:32` is no word that `int4` takes
      ┌─ bad.toml:7:11
    7 │ w = "int4/groups:32"
      │           ^^^^^^^^^
      help: did you mean `group:128`?
    "#);
    let second = rule(r#"w = "int8""#) + "\n[[quantize]]\nlayers = \"fc4\"\nw = \"f32\"\n";
    assert_snapshot!(refused(&second), @r#"
    error: rule 2 matches no layer: `fc4`
       ┌─ bad.toml:10:10
    10 │ layers = "fc4"
       │          ^^^^^
      help: layers here are conv1, conv2, fc1, fc2, fc3 - did you mean `fc1`?
    "#);
}

#[test]
fn an_unknown_word_is_answered_with_the_nearest() {
    let of = |from: &str, to: &str| refused(&HEAD.replace(from, to));
    expect(&of("epochs", "epoch"), "3:1", &["unknown key `epoch`", "did you mean `epochs`?"]);
    expect(&of("lenet", "lennet"), "1:9", &["unknown model `lennet`", "did you mean `lenet`?"]);
    expect(&of("lenet", "vgg"), "1:9", &["unknown model `vgg`", "models are mlp, lenet, resnet8"]);
    expect(&of("digits", "digit"), "2:8", &["`digit`", "did you mean `digits`?"]);
    expect(&of("digits", "imagenet"), "2:8", &["there are digits, mnist, fashion-mnist, cifar10"]);
    let nested = |text: &str| refused(&format!("{HEAD}{text}"));
    let optimizer = nested("[optimizer]\nname = \"adam\"\nlr = 0.1\nbeta = 0.5\n");
    expect(&optimizer, "7:1", &["unknown key `beta`", "did you mean `beta1`?"]);
    expect(&nested("schedule = { name = \"cosines\" }"), "4:21", &["did you mean `cosine`?"]);
    expect(&nested("augment = { flop = true }"), "4:13", &["did you mean `flip`?"]);
    expect(&refused(&rule("ww = \"int8\"")), "7:1", &["unknown key `ww`", "did you mean `w`?"]);
    let device = nested("[optimizer]\nname = \"sgd\"\n");
    expect(&device, "4:1", &["the key `lr` is missing"]);
}

#[test]
fn an_unknown_device_is_refused_with_those_there_are() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("r.toml"), HEAD).unwrap();
    let output = scrimp(folder.path(), &["plan", "r.toml", "--device", "cuda"]);
    let said = String::from_utf8(output.stderr).unwrap();
    // The code of a command line that cannot be read.
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("'cuda'") && said.contains("possible values: flex"), "{said}");
}

#[test]
fn a_scheme_that_does_not_exist_is_shown_with_the_nearest_that_does() {
    for (scheme, column, width, parts) in [
        ("int0", 6, 4, ["an integer has 1 to 16 bits", "int2"]),
        ("int17", 6, 5, ["an integer has 1 to 16 bits", "int16"]),
        ("uint99", 6, 6, ["an integer has 1 to 16 bits", "uint16"]),
        ("fp:e9m9", 6, 7, ["a float has 1 to 8 exponent bits and 0 to 10 mantissa", "fp:e8m9"]),
        ("fp:e4m11", 6, 8, ["0 to 10 mantissa bits", "fp:e4m10"]),
        ("itn8", 6, 4, ["unknown format `itn8`", "did you mean `int8`?"]),
        ("e4m3fm", 6, 6, ["unknown format `e4m3fm`", "did you mean `e4m3fn`?"]),
        ("", 6, 1, ["a scheme begins with a format", "for example int8"]),
        ("int4/group:0", 11, 7, ["`group:0`: 0 is too small", "the least is 1"]),
        ("int4/group", 11, 5, ["`group", "group:128"]),
        ("int8/chanel", 11, 6, ["`chanel`", "did you mean `channel`?"]),
        ("int8/scale:f8", 11, 8, ["`scale:f8`", "f16"]),
    ] {
        let said = refused(&rule(&format!("w = \"{scheme}\"")));
        expect(&said, &format!("7:{column}"), &parts);
        assert_eq!(said.matches('^').count(), width, "{said}");
    }
    let said = refused(&rule("w = 8"));
    expect(&said, "7:5", &["expected a scheme string such as \"int8/channel\""]);
}

#[test]
fn a_group_longer_than_its_axis_is_one_short_group() {
    let lines = planned(&rule(r#"w = "int8/group:100000""#), &[]);
    let weight = |layer: &str| {
        let is_it = |l: &&Value| l["tensor"]["layer"] == layer && l["tensor"]["role"] == "w";
        lines.iter().find(is_it).unwrap()["tensor"]["bytes"].clone()
    };
    // A code for each value, and four bytes of scale for each row.
    assert_eq!(weight("fc1"), 120 * 784 + 120 * 4);
    assert_eq!(weight("conv1"), 6 * 25 + 6 * 4);
}

#[test]
fn a_rule_that_matches_nothing_is_an_error_wherever_it_stands() {
    let int8 = "w = \"int8\"\n";
    let list = format!("{HEAD}[[quantize]]\nlayers = [\"conv*\", \"fd*\"]\n{int8}");
    expect(&refused(&list), "5:10", &["rule 1 matches no layer: `fd*`", "conv1, conv2, fc1"]);
    let regex = format!("{HEAD}[[quantize]]\nlayers = {{ regex = \"^fc$\" }}\n{int8}");
    expect(&refused(&regex), "5:10", &["rule 1 matches no layer: `^fc$`"]);
    let broken = format!("{HEAD}[[quantize]]\nlayers = {{ regex = \"(\" }}\n{int8}");
    expect(&refused(&broken), "5:10", &["`(` is no pattern", "unclosed group"]);
    let glob = format!("{HEAD}[[quantize]]\nlayers = \"fc[\"\n{int8}");
    expect(&refused(&glob), "5:10", &["`fc[` is no pattern"]);
    let number = format!("{HEAD}[[quantize]]\nlayers = 3\n{int8}");
    expect(&refused(&number), "5:10", &["expected a glob such as", "a list of globs"]);

    // A rule of a variant counts after the shared ones, and is shown where it stands.
    let variant = rule("w = \"int8\"")
        + "[[variant]]\nname = \"a\"\n[[variant.quantize]]\nlayers = \"fc4\"\nw = \"int4\"\n";
    expect(&refused(&variant), "11:10", &["rule 2 matches no layer: `fc4`", "did you mean `fc"]);
}

#[test]
fn a_rule_without_effect_is_an_error() {
    let none = refused(&rule("note = \"to do\""));
    expect(&none, "6:10", &["rule 1 says nothing", "give it a scheme under default, w"]);
    let two = |first: &str, second: &str| {
        refused(&format!("{HEAD}[[quantize]]\n{first}\n[[quantize]]\n{second}\n"))
    };
    let odds = two("layers = \"fc*\"\nw = \"int8\"", "layers = \"*\"\nw = \"int4\"\nx = \"int8\"");
    expect(&odds, "5:10", &["rules 1 and 2 are at odds", "remove rule 1, or narrow"]);
    let covered = two("layers = \"fc1\"\ndw = \"int8\"", "layers = \"fc1\"\ndefault = \"int4\"");
    expect(&covered, "5:10", &["rules 1 and 2 are at odds"]);
    let resnet = HEAD.replace("lenet", "resnet20").replace("digits", "cifar10");
    let no_bias = refused(&format!("{resnet}[[quantize]]\nlayers = \"layer1.*\"\nb = \"int8\"\n"));
    expect(&no_bias, "6:5", &["the key `b` claims no tensor"]);
    let no_moment = refused(&rule("w = \"int8\"\nv = \"int8\""));
    expect(
        &no_moment,
        "8:5",
        &["the key `v` has no effect: sgd keeps a momentum", "another optimizer"],
    );
    let no_master = refused(&rule("x = \"int8\"\nmaster = false"));
    expect(&no_master, "8:10", &["the key `master` has no effect", "f32 is its own master"]);
    let no_kind = refused(&rule("kinds = \"linaer\"\nw = \"int8\""));
    expect(&no_kind, "7:9", &["no layer here is a `linaer`", "did you mean `linear`?"]);
}

#[test]
fn channels_on_a_bias_are_an_error_that_suggests_the_whole_tensor() {
    let shared = refused(&rule(r#"default = "int8/channel""#));
    expect(&shared, "7:11", &["the b of `conv1`", "`tensor` fits it", "for example b = \"int8\""]);
    let own = refused(&rule(r#"b = "int8/group:4""#));
    expect(&own, "7:5", &["the b of `conv1`", "shape [6]", "`tensor` fits every shape"]);
    let axis = refused(&rule(r#"w = "int8/axis:2""#));
    expect(&axis, "7:5", &["the w of `fc1`", "axis:2"]);
}

#[test]
fn numbers_out_of_range_are_shown_with_what_is_valid() {
    let with = |text: &str| refused(&format!("{HEAD}{text}\n"));
    expect(&with("batch = 0"), "4:9", &["a batch of 0", "the least is 1"]);
    expect(&with("batch = 99999999999999"), "4:9", &["too large", "the most is"]);
    expect(&with("seed = -1"), "4:8", &["`-1`", "expected a whole number of at least 0"]);
    expect(&with("validation = 1.0"), "4:14", &["1 is not in [0, 1)"]);
    expect(&with("label_smoothing = -0.1"), "4:19", &["-0.1 is not in [0, 1)"]);
    expect(&with("clip_norm = 0.0"), "4:13", &["a norm is a number above 0"]);
    expect(&with("clip_norm = nan"), "4:13", &["a norm is a number above 0"]);
    expect(&with("limit = 0"), "4:9", &["leaves no image to train on"]);
    expect(&with("checkpoint_steps = 0"), "4:20", &["the least is 1"]);
    expect(&with("telemetry = { every = 0 }"), "4:23", &["the least is 1"]);
    expect(&with("telemetry = {}"), "4:13", &["says nothing", "`tensorboard = true`"]);
    expect(&with("telemetry = { ever = 5 }"), "4:15", &["did you mean `every`?"]);
    expect(&with("augment = { crop = 28 }"), "4:20", &["28", "at most 27"]);
    expect(&with("optimizer = 3"), "4:13", &["integer `3`", "a table such as { name = \"adam\""]);
    let sgd = |keys: &str| with(&format!("[optimizer]\nname = \"sgd\"\n{keys}"));
    expect(&sgd("lr = -1"), "6:6", &["-1 is no learning rate"]);
    expect(&sgd("lr = inf"), "6:6", &["inf is no learning rate"]);
    expect(&sgd("lr = 1\nmomentum = 1"), "7:12", &["1 is not in [0, 1)"]);
    expect(&sgd("lr = 1\nnesterov = true"), "7:12", &["needs a momentum above 0"]);
    let schedule = |text: &str| with(&format!("schedule = {{ {text} }}"));
    expect(&schedule("name = \"cosine\", floor = 2"), "4:39", &["2 is not in [0, 1]"]);
    expect(&schedule("name = \"multi-step\", milestones = [1], gamma = -1"), "4:61", &["-1"]);
    expect(&refused("model = \"lenet\"\nmodel = \"mlp\"\n"), "2:1", &["duplicate key"]);
    expect(&refused(""), "1:1", &["the key `model` is missing"]);
    let word = refused(&HEAD.replace("epochs = 1", "epochs = \"x\""));
    expect(&word, "3:10", &["string \"x\", expected a whole number"]);
}

#[test]
fn variants_have_names_that_are_folders() {
    let two = |first: &str, second: &str| {
        let variant = |name: &str| format!("[[variant]]\nname = \"{name}\"\n");
        refused(&format!("{HEAD}{}{}", variant(first), variant(second)))
    };
    expect(&two("a", "a"), "7:8", &["two variants are called `a`"]);
    for name in ["", "..", "a/b", "a b", "\u{e9}"] {
        expect(&two("a", name), "7:8", &["cannot name a variant", "letters, digits"]);
    }
    // The name of the run that --baseline adds.
    let float = refused(&(rule("w = \"int8\"") + "[[variant]]\nname = \"f32\"\n"));
    expect(&float, "9:8", &["`f32` is the run without rules", "another name"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("r.toml"), HEAD).unwrap();
    let said = refusal(folder.path(), &["plan", "r.toml", "--variant", "int8"]);
    assert!(said.contains("no variant `int8`") && said.contains("its variants are f32"), "{said}");
}

#[test]
fn settings_on_the_command_line_are_checked_as_the_recipe_is() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = rule("w = \"int8\"");
    std::fs::write(folder.path().join("r.toml"), recipe).unwrap();
    for (setting, parts) in [
        ("epochs", ["`--set epochs` has no `=`", "--set epochs=5"]),
        ("=5", ["`--set =5`", "no key"]),
        ("optimizer.=5", ["`--set optimizer.=5`", "no key"]),
        ("epoch=5", ["unknown key `epoch`", "did you mean `epochs`?"]),
        ("epochs=many", ["\"many\"", "expected a whole number"]),
        ("quantize.1.w=int8", ["`quantize` is a list of 1", "`quantize.0.KEY`"]),
        ("quantize.w=int8", ["`quantize` is a list of 1", "`quantize.0.KEY`"]),
        ("variant.0.name=x", ["`--set variant.0.name=x`", "no list `variant`"]),
        ("model.name=mlp", ["`--set model.name=mlp`", "`model` is not a table"]),
        ("quantize.0.w=itn4", ["unknown format `itn4`", "did you mean `int4`?"]),
        ("quantize.0.layers=fd*", ["matches no layer", "r.toml with --set"]),
        ("optimizer.name=adm", ["unknown value `adm`", "did you mean `adam`?"]),
    ] {
        let said = refusal(folder.path(), &["plan", "r.toml", "--set", setting]);
        for part in parts {
            assert!(said.contains(part), "`{part}` is missing: {said}");
        }
    }
    let recipe = std::fs::read_to_string(folder.path().join("r.toml")).unwrap();
    let lines = planned(&recipe, &["--set", "quantize.0.w=uint4", "--set", "model = mlp"]);
    assert_eq!(lines[0]["tensor"]["scheme"], "uint4");
    assert_eq!(lines[0]["tensor"]["layer"], "fc1");
}

#[test]
fn what_is_no_recipe_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    write("bytes.toml", &[0xFF, 0xFE, 0]);
    write("word.json", br#"{"model": "lennet", "data": "digits", "epochs": 1}"#);
    write("key.json", b"{\"model\": \"lenet\",\n \"data\": \"digits\", \"epoch\": 1}");
    write("cut.json", br#"{"model": "lenet", "#);
    for (name, parts) in [
        ("nowhere.toml", ["there is no such file", "nowhere.toml"]),
        (".", ["it is a folder", "cannot read the recipe"]),
        ("bytes.toml", ["it is not text", "bytes.toml"]),
        ("word.json", ["did you mean `lenet`?", "word.json as TOML"]),
        ("key.json", ["unknown key `epoch`", "key.json:2:"]),
        ("cut.json", ["EOF", "cut.json:1:"]),
    ] {
        let said = refusal(folder, &["plan", name]);
        for part in parts {
            assert!(said.contains(part), "`{part}` is missing: {said}");
        }
    }
}

#[test]
fn the_json_of_a_plan_adds_up_to_its_totals() {
    let recipe = rule("default = \"int8\"\nd = \"e5m2\"\nw = \"int4/group:32\"\nm = \"int8\"");
    let lines = planned(&recipe, &[]);
    let of = |kind: &str| lines.iter().filter(|l| l["type"] == kind).collect::<Vec<_>>();
    let (tensors, totals, products) = (of("tensor"), of("total"), of("products"));
    // What layers cost adds up, too.
    let macs = |cost: &Value| -> u64 {
        cost["products"].as_array().unwrap().iter().map(|p| p["macs"].as_u64().unwrap()).sum()
    };
    let (layers, all) = (of("layer_cost"), &of("cost")[0]["cost"]);
    assert_eq!(layers.len(), 5);
    assert_eq!(layers.iter().map(|l| macs(&l["cost"])).sum::<u64>(), macs(all));
    let moved = |cost: &Value| cost["moved"]["gradients"]["bytes"].as_u64().unwrap();
    assert_eq!(layers.iter().map(|l| moved(&l["cost"])).sum::<u64>(), moved(all));
    assert_eq!((tensors.len(), totals.len(), products.len()), (50, 16, 5));
    // int4 in groups along what is summed does not go with int8; the gradients are e5m2.
    let kinds = ["y", "dx", "dw"].map(|of| products[1]["products"][of]["kind"].clone());
    assert_eq!(kinds, ["f32", "f32", "bf16"]);
    for total in totals {
        let of_role = || {
            tensors
                .iter()
                .map(|t| &t["tensor"])
                .filter(|t| t["role"] == total["role"] && t["status"] != "not-computed")
        };
        let bytes: u64 = of_role().map(|t| t["bytes"].as_u64().unwrap()).sum();
        let count = |t: &Value| -> u64 {
            t["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product()
        };
        assert_eq!(total["bytes"], bytes, "{total}");
        assert_eq!(total["values"], of_role().map(count).sum::<u64>(), "{total}");
        // SGD keeps a momentum of weights and biases.
        let is_kept = ["m", "mb"].contains(&total["role"].as_str().unwrap());
        let status = if is_kept { "packed" } else { "emulated" };
        assert!(of_role().all(|t| t["rule"] == 1 && t["status"] == status), "{total}");
    }
}
