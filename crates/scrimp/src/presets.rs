//! What the hardware of others rounds tensors to, as rules.
//!
//! A preset says which formats the tensors of a layer pass through on a machine, as far as its makers published that. It
//! says nothing of the machine's order of additions, nor of its speed.

use scrimp_train::rules::Rule;
use serde::Deserialize;

/// A row of [`PRESETS`].
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The word in a recipe.
    pub name: &'static str,
    /// What it stands for, with the source.
    pub about: &'static str,
    /// The keys of its rule for all convolutions, linear layers and embeddings, as TOML.
    keys: &'static str,
}

impl Preset {
    /// Its rules.
    ///
    /// # Panics
    /// If a row holds something else, which a test would find.
    pub fn rules(&self) -> Vec<Rule> {
        #[derive(Deserialize)]
        struct Table {
            quantize: Vec<Rule>,
        }
        let text = format!("[[quantize]]\nlayers = \"*\"\n{}", self.keys);
        let table: Table = toml::from_str(&text).expect("a row holds the keys of a rule");
        table.quantize
    }
}

/// All presets.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: "tpuv1-int8",
        about: "weights and inputs in 8-bit integers, sums in 32 bits (Jouppi 2017, arXiv:1704.04760)",
        keys: "w = \"int8\"\nx = \"int8\"",
    },
    Preset {
        name: "dojo-cfloat8",
        about: "configurable 8-bit floats, with 3 bits of mantissa forward and 2 backward (Tesla Dojo whitepaper 2021)",
        keys: "w = \"cfloat8_1_4_3\"\nx = \"cfloat8_1_4_3\"\nd = \"cfloat8_1_5_2\"",
    },
    Preset {
        name: "a100-bf16",
        about: "factors of all products in bf16, sums in f32 (NVIDIA A100 whitepaper 2020)",
        keys: "w = \"bf16\"\nx = \"bf16\"\ndy = \"bf16\"",
    },
    Preset {
        name: "h100-fp8",
        about: "e4m3fn forward and e5m2 backward, each with a scale (Micikevicius 2022, arXiv:2209.05433)",
        keys: "w = \"e4m3fn/tensor\"\nx = \"e4m3fn/tensor\"\ndy = \"e5m2/tensor\"",
    },
    Preset {
        name: "blackwell-mxfp8",
        about: "MXFP8 with e4m3 elements on all factors (Mishra 2025, arXiv:2506.08027)",
        keys: "w = \"mxfp8_e4m3\"\nx = \"mxfp8_e4m3\"\ndy = \"mxfp8_e4m3\"",
    },
    Preset {
        name: "arduino-int8",
        about: "weights in int8 by channel, inputs and outputs in int8, as TensorFlow Lite Micro has it (David 2021, arXiv:2010.08678)",
        keys: "w = \"int8/channel\"\nx = \"uint8\"\ny = \"uint8\"",
    },
    Preset {
        name: "weights-only",
        about: "weights in int8 by channel, all else in f32",
        keys: "w = \"int8/channel\"",
    },
    Preset {
        name: "activations-only",
        about: "inputs and outputs in int8, all else in f32",
        keys: "x = \"int8\"\ny = \"int8\"",
    },
];

/// The preset with this name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_rule_that_says_something() {
        for preset in PRESETS {
            let rules = preset.rules();
            assert_eq!(rules.len(), 1, "{}", preset.name);
            assert!(rules[0].keys().next().is_some(), "{}", preset.name);
            assert_eq!(find(preset.name).map(|p| p.name), Some(preset.name));
        }
        assert!(find("h100").is_none());
    }
}
