//! Stages over streams of codes: BDI in both forms, entropy coding.
#![no_main]

scrimp_fuzz::codec_target!(scrimp_fuzz::Codecs::Staged);
