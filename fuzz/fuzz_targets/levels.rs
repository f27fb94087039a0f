//! Codecs of one and two bits.
#![no_main]

scrimp_fuzz::codec_target!(scrimp_fuzz::Codecs::Members(|member| {
    ["sign", "binary", "ternary", "terngrad", "onebit"].iter().any(|head| member.starts_with(head))
}));
