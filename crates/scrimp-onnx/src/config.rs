//! What is asked of a quantization.

use globset::{Glob, GlobMatcher};
use regex::Regex;
use scrimp_codec::{Granularity, Scheme};

use crate::element::Element;
use crate::profile::Profile;
use crate::proto::NodeProto;
use crate::weights::{BLOCKS_SINCE, Layout, POWERS_SINCE, Sharing};

/// How activations are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Scales of activations are fixed from calibration data.
    #[default]
    Static,
    /// Scales of activations are found while the model runs, for products with 8-bit weights; all else has codes for its
    /// weights alone. Convolutions among them: runtimes have no fast form of theirs.
    Dynamic,
    /// Activations stay float.
    Weights,
}

/// Blocks of 32 under a power of two (OCP Microscaling): the name of the scheme, and that of the element.
const MICROSCALED: [(&str, &str); 3] =
    [("mxfp8_e4m3", "e4m3fn"), ("mxfp8_e5m2", "e5m2"), ("mxfp4", "e2m1fn")];
/// Elements of one of these blocks.
const MICROSCALED_LEN: usize = 32;

/// How a tensor becomes codes.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The scheme as it was written.
    pub text: String,
    /// What profiles and files call it: the element, or the scheme of blocks.
    pub name: &'static str,
    /// The element.
    pub element: Element,
    /// Which elements share a scale, by the words of the scheme.
    pub granularity: Granularity,
    /// The scheme that gives each block its power of two; `None` where scales are floats.
    pub blocks: Option<Scheme>,
}

impl Spec {
    /// The spec of a scheme string.
    ///
    /// # Errors
    /// A sentence that names what ONNX has, where the scheme is none or ONNX cannot say it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let scheme: Scheme =
            text.parse().map_err(|error: scrimp_codec::SchemeError| error.to_string())?;
        let canonical = scheme.to_string();
        let (head, words) = canonical.split_once('/').unwrap_or((canonical.as_str(), ""));
        let row = MICROSCALED.iter().find(|(name, _)| *name == head);
        if let Some(&(name, element)) = row
            && let Some(element) = Element::named(element)
        {
            if !words.split('/').all(|word| word.is_empty() || word.starts_with("scale:")) {
                return Err(format!(
                    "`{text}`: its blocks are of {MICROSCALED_LEN} elements and it knows no other words than those of \
                     `scale:`; `{name}` fits"
                ));
            }
            return Ok(Self {
                text: canonical.clone(),
                name,
                element,
                granularity: Granularity::Group(MICROSCALED_LEN),
                blocks: Some(scheme),
            });
        }
        let names = || {
            let blocks = MICROSCALED.iter().map(|(name, _)| *name);
            Element::names().chain(blocks).collect::<Vec<_>>().join(", ")
        };
        let element =
            scheme.format().and_then(|format| Element::named(&format.name())).ok_or_else(|| {
                format!("`{text}` has no element type in ONNX, which has {}", names())
            })?;
        let granularity = scheme.granularity().unwrap_or(Granularity::Tensor);
        let plain = match granularity {
            Granularity::Tensor => element.name.to_owned(),
            other => format!("{}/{other}", element.name),
        };
        // Words that choose rounding or how scales are stored have no place in a DequantizeLinear.
        if plain.parse::<Scheme>().ok().map(|s| s.to_string()).as_ref() != Some(&canonical) {
            return Err(format!(
                "`{text}`: ONNX stores scales as f32 and knows no other words; `{plain}` fits"
            ));
        }
        Ok(Self { text: canonical, name: element.name, element, granularity, blocks: None })
    }

    /// Whether scales are powers of two, of which the file holds the exponents.
    pub fn is_microscaled(&self) -> bool {
        self.blocks.is_some()
    }

    /// The first version of the standard operators that has all of it.
    pub fn opset(&self) -> i64 {
        let granularity = match self.granularity {
            Granularity::Group(_) => BLOCKS_SINCE,
            _ => 13,
        };
        let scales = if self.is_microscaled() { POWERS_SINCE } else { 13 };
        self.element.opset.max(granularity).max(scales)
    }

    /// Which elements of a weight share a scale.
    ///
    /// # Errors
    /// A sentence, where `DequantizeLinear` cannot say it.
    pub fn sharing(&self, layout: &Layout) -> Result<Sharing, String> {
        match self.granularity {
            Granularity::Tensor => Ok(Sharing::Tensor),
            Granularity::Channel | Granularity::Row => Ok(Sharing::Axis(layout.axis)),
            Granularity::Axis(axis) if axis < layout.shape.len() => Ok(Sharing::Axis(axis)),
            // Runs along the longest axis that is summed over: those of a layer by channel or of a recurrent one begin
            // with an axis of 1, along which every element would get a scale.
            Granularity::Group(len) => {
                let summed = (0..layout.shape.len()).filter(|&axis| axis != layout.axis).rev();
                let axis = summed.max_by_key(|&axis| layout.shape[axis]).unwrap_or(layout.axis);
                Ok(Sharing::Blocks { axis, len })
            }
            other => {
                Err(format!("ONNX has no scales for `{other}`; it has tensor, channel and group:N"))
            }
        }
    }

    /// Bytes of codes, scales and, where it has them, zero points of a weight.
    ///
    /// # Errors
    /// As [`sharing`](Self::sharing).
    pub fn bytes(&self, layout: &Layout, zero_points: bool) -> Result<usize, String> {
        let groups: usize = self.sharing(layout)?.scale_shape(&layout.shape).iter().product();
        let codes: usize = layout.shape.iter().product();
        let packed = |count| self.element.kind.bytes(count).unwrap_or(usize::MAX);
        let scales = if self.is_microscaled() { groups } else { 4 * groups };
        Ok(packed(codes) + scales + if zero_points { packed(groups) } else { 0 })
    }
}

/// Which nodes a rule speaks of.
#[derive(Clone, Debug)]
pub enum Matcher {
    /// Names that fit a glob.
    Glob(GlobMatcher),
    /// Names that fit a regular expression.
    Regex(Regex),
}

/// What a rule does.
#[derive(Clone, Debug, Default)]
pub struct NodeRule {
    /// The names of the nodes; all where it is `None`.
    pub nodes: Option<Matcher>,
    /// The operators; all where it is empty.
    pub ops: Vec<String>,
    /// Whether the nodes stay float.
    pub float: bool,
    /// The scheme of their weights.
    pub weights: Option<Spec>,
    /// The scheme of what they read.
    pub activations: Option<Spec>,
}

impl NodeRule {
    /// The nodes with such names. A text between slashes is a regular expression, others are globs.
    ///
    /// # Errors
    /// A sentence, where the pattern is none.
    pub fn matcher(pattern: &str) -> Result<Matcher, String> {
        if let Some(inner) = pattern.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'))
            && !inner.is_empty()
        {
            return Regex::new(inner).map(Matcher::Regex).map_err(|error| error.to_string());
        }
        Glob::new(pattern)
            .map(|glob| Matcher::Glob(glob.compile_matcher()))
            .map_err(|e| e.to_string())
    }

    /// A rule that keeps the node of exactly this name float.
    pub fn float(name: &str) -> Self {
        let exact = format!("^{}$", regex::escape(name));
        let nodes = Regex::new(&exact).ok().map(Matcher::Regex);
        Self { nodes, float: true, ..Self::default() }
    }

    /// Whether the rule speaks of this node.
    pub fn speaks_of(&self, node: &NodeProto) -> bool {
        let named = match &self.nodes {
            None => true,
            Some(Matcher::Glob(glob)) => glob.is_match(node.label()),
            Some(Matcher::Regex(regex)) => regex.is_match(node.label()),
        };
        named && (self.ops.is_empty() || self.ops.iter().any(|op| op == node.op_type()))
    }
}

/// How the scales of weights are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightRange {
    /// From the largest magnitude.
    #[default]
    Max,
    /// The share of it with the least squared error.
    Mse,
}

/// How weights become codes, once scales are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightRounding {
    /// Each to the nearest.
    #[default]
    Nearest,
    /// One after the other, the rest making up for what each loses on the calibration data (GPTQ).
    Gptq,
}

/// What is brought back to the float model in each output of a layer whose weights were rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Statistics {
    /// Nothing.
    #[default]
    Keep,
    /// The mean, by the bias (Nagel et al. 2019, arXiv:1906.04721, section 4.2, on data).
    Mean,
    /// Mean and spread, by the bias and the scales of the weight: what matching the statistics of a batch norm does, whether
    /// or not there is one.
    MeanAndSpread,
}

/// How range is moved between layers before anything is rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Equalize {
    /// Not at all.
    #[default]
    None,
    /// So that neighbouring weights have equal ranges.
    CrossLayer,
    /// From activations to weights (`SmoothQuant`).
    Smooth {
        /// How much of the range of activations goes over, 0 to 1.
        alpha: f32,
    },
    /// So that weights of large activations lose less (AWQ).
    ActivationAware,
}

impl Equalize {
    /// The way with this name: `none`, `cross-layer`, `smooth`, `smooth:ALPHA` or `awq`.
    ///
    /// # Errors
    /// A sentence that names what would be valid.
    pub fn parse(name: &str) -> Result<Self, String> {
        if let Some(alpha) = name.strip_prefix("smooth:") {
            return match alpha.parse() {
                Ok(alpha) if (0.0..=1.0).contains(&alpha) => Ok(Self::Smooth { alpha }),
                _ => Err(format!("`{name}`: alpha lies between 0 and 1")),
            };
        }
        match name {
            "none" => Ok(Self::None),
            "cross-layer" => Ok(Self::CrossLayer),
            "smooth" => Ok(Self::Smooth { alpha: 0.5 }),
            "awq" => Ok(Self::ActivationAware),
            _ => {
                Err(format!("`{name}`: there are none, cross-layer, smooth, smooth:ALPHA and awq"))
            }
        }
    }
}

/// What is asked of a quantization.
#[derive(Clone, Debug)]
pub struct Config {
    /// The runtime that the model is made for.
    pub profile: &'static Profile,
    /// How activations are treated.
    pub mode: Mode,
    /// The scheme of weights.
    pub weights: Spec,
    /// The scheme of activations.
    pub activations: Spec,
    /// The name of the calibration method of activations.
    pub calibration: String,
    /// How range is moved between layers before anything is rounded.
    pub equalize: Equalize,
    /// How scales of weights are chosen.
    pub weight_range: WeightRange,
    /// How weights are rounded.
    pub weight_rounding: WeightRounding,
    /// What is brought back to the float model in each output of a layer whose weights were rounded.
    pub statistics: Statistics,
    /// What is said of single nodes; the last rule that speaks of a node wins.
    pub rules: Vec<NodeRule>,
}

impl Config {
    /// What is done for a runtime when nothing else is asked for: int8 weights by channel.
    ///
    /// # Panics
    /// Never: the schemes of profiles are valid.
    pub fn of(profile: &'static Profile) -> Self {
        let spec = |text| Spec::parse(text).expect("the schemes of profiles are valid");
        Self {
            profile,
            mode: Mode::Static,
            weights: spec("int8/channel"),
            activations: spec(profile.activations),
            calibration: "l2".into(),
            equalize: Equalize::default(),
            weight_range: WeightRange::default(),
            weight_rounding: WeightRounding::default(),
            statistics: Statistics::default(),
            rules: Vec::new(),
        }
    }
}
