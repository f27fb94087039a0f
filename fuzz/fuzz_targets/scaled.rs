//! Formats under scales, and whatever no other target takes.
#![no_main]

scrimp_fuzz::codec_target!(scrimp_fuzz::Codecs::Members(|member| {
    !["smaq", "s2fp8", "top_k", "random_k", "sign", "binary", "ternary", "terngrad", "onebit"]
        .iter()
        .any(|head| member.starts_with(head))
}));
