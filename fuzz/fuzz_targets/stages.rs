//! Stages over a stream of codes: BDI in both forms, entropy coding.
#![no_main]

scrimp_fuzz::codec_target!(|member| {
    ["/nnw", "/bdi", "/zstd", "/rans"].iter().any(|word| member.contains(word))
});
