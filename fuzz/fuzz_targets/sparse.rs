//! Codecs that keep few values, with their indices.
#![no_main]

scrimp_fuzz::codec_target!(scrimp_fuzz::Codecs::Members(|member| {
    member.starts_with("top_k") || member.starts_with("random_k")
}));
