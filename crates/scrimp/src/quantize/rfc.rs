//! The configuration that was proposed to DeepSpeed for compression before inference, and never came.
//!
//! ```json
//! {"compression_inference": {"static_quantization": {"enabled": true}}}
//! ```

use scrimp_onnx::Mode;
use serde::Deserialize;

#[derive(Deserialize)]
struct File {
    compression_inference: Inference,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inference {
    static_quantization: Option<Switch>,
    dynamic_quantization: Option<Switch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Switch {
    enabled: bool,
}

/// How activations are to be treated.
///
/// # Errors
/// A sentence, where the text is no such configuration, or asks for both ways or none. Keys beside `compression_inference` are
/// those of training and are not looked at.
pub fn mode_of(text: &str) -> Result<Mode, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let on = |switch: &Option<Switch>| switch.as_ref().is_some_and(|switch| switch.enabled);
    let inference = file.compression_inference;
    match (on(&inference.static_quantization), on(&inference.dynamic_quantization)) {
        (true, false) => Ok(Mode::Static),
        (false, true) => Ok(Mode::Dynamic),
        (true, true) => {
            Err("static_quantization and dynamic_quantization are both enabled; choose one".into())
        }
        (false, false) => {
            Err("neither static_quantization nor dynamic_quantization is enabled".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_way_is_chosen_and_misspelt_keys_are_named() {
        let of = |inner: &str| mode_of(&format!(r#"{{"compression_inference": {inner}}}"#));
        assert_eq!(of(r#"{"static_quantization": {"enabled": true}}"#), Ok(Mode::Static));
        let both = r#"{"static_quantization": {"enabled": false}, "dynamic_quantization": {"enabled": true}}"#;
        assert_eq!(of(both), Ok(Mode::Dynamic));
        assert!(of("{}").unwrap_err().contains("neither"));
        assert!(of(&both.replace("false", "true")).unwrap_err().contains("both"));
        assert!(of(r#"{"static_quantisation": {}}"#).unwrap_err().contains("static_quantisation"));
        assert!(mode_of("{}").unwrap_err().contains("compression_inference"));
    }
}
