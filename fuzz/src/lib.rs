//! What the targets for codecs share: any bytes, and damaged real ones, must decode or be refused.

use std::sync::OnceLock;

use scrimp_codec::{FAMILIES, STAGES, Scheme, Stream};

/// Granularities that members are crossed with, where they take them.
const WORDS: [&str; 8] =
    ["", "/channel", "/axis:1", "/row", "/group:3", "/flat:5", "/tile:2x3", "/scale:f16"];

/// Every member of the registry that `wanted` takes by its head, under every word that fits it.
fn schemes(wanted: fn(&str) -> bool) -> Vec<Scheme> {
    FAMILIES
        .iter()
        .flat_map(|family| family.members())
        .filter(|member| wanted(member))
        .flat_map(|member| WORDS.map(|word| format!("{member}{word}").parse().ok()))
        .flatten()
        .collect()
}

/// Codes of every width and kind before every stage.
fn staged() -> Vec<Scheme> {
    let codes = (1..=16).flat_map(|bits| [format!("int{bits}"), format!("uint{bits}")]);
    let others = ["int4/full", "e4m3fn", "e2m1fn", "bf16"].map(String::from);
    codes
        .chain(others)
        .flat_map(|codes| WORDS.map(|word| format!("{codes}{word}")))
        .flat_map(|codes| {
            let stages = STAGES.iter().flat_map(|stage| stage.members());
            stages.map(move |stage| format!("{codes}/{stage}")).collect::<Vec<_>>()
        })
        .filter_map(|text| text.parse().ok())
        .collect()
}

/// What a target is about.
#[derive(Clone, Copy, Debug)]
pub enum Codecs {
    /// The members of the registry whose head the predicate takes.
    Members(fn(&str) -> bool),
    /// Everything with a stage.
    Staged,
}

/// Runs one input: which scheme, a shape, and bytes that are decoded as they are or, in the other mode, taken as
/// values, encoded, decoded, and decoded again after damage.
pub fn run(list: &OnceLock<Vec<Scheme>>, codecs: Codecs, input: Input) {
    let list = list.get_or_init(|| match codecs {
        Codecs::Members(wanted) => schemes(wanted),
        Codecs::Staged => staged(),
    });
    assert!(!list.is_empty(), "the target has no scheme: {codecs:?}");
    let scheme = &list[usize::from(input.scheme) % list.len()];
    let shape: Vec<usize> = input.extents.iter().map(|&extent| usize::from(extent % 48)).collect();
    let shape = &shape[..usize::from(input.rank % 4)];
    let Ok(size) = scheme.size(shape) else { return };
    let values: usize = shape.iter().product();
    if input.rank & 0x40 == 0 {
        let mut packed = input.bytes.to_vec();
        // Mostly a length that is possible, which is where the decoder's work begins.
        if input.rank & 0x80 == 0 {
            packed.resize(packed.len().clamp(size.least, size.most.max(size.least)), 0x3f);
        }
        decode(scheme, shape, values, &packed);
        return;
    }
    let (damage, floats) = input.bytes.split_at(input.bytes.len().min(8));
    let x: Vec<f32> = (0..values)
        .map(|i| {
            let word =
                |k: usize| floats.get((4 * i + k) % floats.len().max(1)).copied().unwrap_or(0);
            let v = f32::from_le_bytes([word(0), word(1), word(2), word(3)]);
            if v.is_finite() { v } else { 1.0 }
        })
        .collect();
    let stream = Stream::new(u32::from(input.scheme), 1);
    let mut bytes = Vec::new();
    scheme.encode(&x, shape, &stream, &mut bytes).expect("finite values are taken");
    assert!(size.contains(bytes.len()), "{scheme} {shape:?}: {} bytes, not {size:?}", bytes.len());
    let mut emulated = x;
    scheme.emulate(&mut emulated, shape, &stream).expect("finite values are taken");
    let decoded = decode(scheme, shape, values, &bytes).expect("own bytes are read");
    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&decoded), bits(&emulated), "{scheme} {shape:?}");
    for pair in damage.chunks_exact(2) {
        if !bytes.is_empty() {
            let at = usize::from(pair[0]) % bytes.len();
            bytes[at] ^= pair[1];
        }
    }
    decode(scheme, shape, values, &bytes);
}

fn decode(scheme: &Scheme, shape: &[usize], values: usize, bytes: &[u8]) -> Option<Vec<f32>> {
    let mut out = vec![0.0; values];
    let decoded = scheme.decode(bytes, shape, &mut out);
    let size = scheme.size(shape).expect("a shape that fits");
    assert!(decoded.is_err() || size.contains(bytes.len()));
    decoded.is_ok().then_some(out)
}

/// What the fuzzer makes of its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Which scheme.
    pub scheme: u16,
    /// The shape's extents, modulo 48.
    pub extents: [u8; 3],
    /// How many of them, and in its top bits what is done.
    pub rank: u8,
    /// The rest.
    pub bytes: &'a [u8],
}

/// Makes a target of some [`Codecs`].
#[macro_export]
macro_rules! codec_target {
    ($codecs:expr) => {
        static SCHEMES: std::sync::OnceLock<Vec<scrimp_codec::Scheme>> = std::sync::OnceLock::new();
        libfuzzer_sys::fuzz_target!(|input: (u16, [u8; 3], u8, &[u8])| {
            let (scheme, extents, rank, bytes) = input;
            $crate::run(&SCHEMES, $codecs, $crate::Input { scheme, extents, rank, bytes });
        });
    };
}
