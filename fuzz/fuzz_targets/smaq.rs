//! SmaQ and S2FP8: statistics in the header, streams whose lengths depend on the values.
#![no_main]

scrimp_fuzz::codec_target!(scrimp_fuzz::Codecs::Members(
    |member| member.starts_with("smaq") || member.starts_with("s2fp8")
));
