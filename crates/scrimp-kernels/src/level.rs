//! Which instructions this machine has.

use std::sync::OnceLock;

/// An instruction set that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust: the definition of every kernel.
    Scalar,
    /// NEON; bf16 products widen to f32, int8 ones to 16 bits.
    Neon,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 with F, VL, BW, DQ and VNNI; bf16 products widen to f32.
    Avx512,
    /// The same and AVX-512 BF16.
    Avx512Bf16,
}

impl Level {
    /// The best of this machine, detected once.
    pub fn detected() -> Self {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            #[cfg(test)]
            if let Some(most) = asked_for() {
                return detect().min(most);
            }
            detect()
        })
    }

    /// All that this machine can run, the plainest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::OF_THIS_KIND.into_iter().filter(|level| *level <= Self::detected())
    }

    /// Those of this kind of machine.
    #[cfg(target_arch = "x86_64")]
    const OF_THIS_KIND: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16];
    #[cfg(not(target_arch = "x86_64"))]
    const OF_THIS_KIND: [Self; 2] = [Self::Scalar, Self::Neon];

    /// The name for tables and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    // A level includes those below it, whatever a virtual machine reports.
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni");
    if avx512 && is_x86_feature_detected!("avx512bf16") {
        Level::Avx512Bf16
    } else if avx512 {
        Level::Avx512
    } else if avx2 {
        Level::Avx2
    } else {
        Level::Scalar
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    // Every 64-bit ARM has it.
    if cfg!(target_arch = "aarch64") { Level::Neon } else { Level::Scalar }
}

/// The level that a run of tests is limited to, by its name in `SCRIMP_TEST_LEVEL`: for tools that know fewer
/// instructions than the machine.
#[cfg(test)]
fn asked_for() -> Option<Level> {
    let name = std::env::var("SCRIMP_TEST_LEVEL").ok()?;
    let level = Level::OF_THIS_KIND.into_iter().find(|level| level.name() == name);
    Some(level.unwrap_or_else(|| panic!("SCRIMP_TEST_LEVEL is `{name}`, which is no level")))
}
