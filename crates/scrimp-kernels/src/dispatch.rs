//! Loops compiled once for each instruction set and chosen at run time.
//!
//! The bodies are plain Rust that the compiler turns into vector code; only the `#[target_feature]` wrappers differ. The
//! compiler neither reorders nor contracts floating-point operations, so a body gives the same bits at every level.
//! `mul_add` rounds once everywhere; without FMA it is a library call, which is slow and just as exact.

use crate::Level;

/// Defines a function whose body is compiled for every level.
///
/// `fn name<tile R, N>` is a function with a tile of `R` rows and `N` columns, as many as the registers of a level hold.
macro_rules! versions {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident <tile $rows:ident, $lanes:ident> ($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block
    ) => {
        $crate::dispatch::versions! {
            @ [$(#[$doc])* $vis] $name [const $rows: usize, const $lanes: usize] [] []
            [8, 32] [4, 16] ($($arg: $ty),*) [$(-> $ret)?] $body
        }
    };
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident $(<$(const $generic:ident: $kind:ty),+>)? ($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block
    ) => {
        $crate::dispatch::versions! {
            @ [$(#[$doc])* $vis] $name [$($(const $generic: $kind),+)?]
            [$($(const $generic: $kind),+)?] [$($($generic),+)?]
            [$($($generic),+)?] [$($($generic),+)?]
            ($($arg: $ty),*) [$(-> $ret)?] $body
        }
    };
    (
        @ [$($head:tt)*] $name:ident [$($generics:tt)*] [$($outer:tt)*] [$($given:tt)*]
        [$($wide:tt)*] [$($narrow:tt)*]
        ($($arg:ident: $ty:ty),*) [$($ret:tt)*] $body:block
    ) => {
        #[cfg_attr(
            target_arch = "x86_64",
            expect(unsafe_code, reason = "what is compiled for an instruction set is called after its detection")
        )]
        #[allow(clippy::too_many_arguments, reason = "the slices of one loop")]
        $($head)* fn $name<$($outer)*>($($arg: $ty),*) $($ret)* {
            #[inline(always)]
            fn body<$($generics)*>($($arg: $ty),*) $($ret)* $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
            fn avx512<$($outer)*>($($arg: $ty),*) $($ret)* {
                body::<$($wide)*>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$($outer)*>($($arg: $ty),*) $($ret)* {
                body::<$($narrow)*>($($arg),*)
            }
            match $crate::dispatch::level() {
                // SAFETY: `level` is at most what was detected.
                #[cfg(target_arch = "x86_64")]
                $crate::Level::Avx512 | $crate::Level::Avx512Bf16 => unsafe {
                    avx512::<$($given)*>($($arg),*)
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::Level::Avx2 => unsafe { avx2::<$($given)*>($($arg),*) },
                _ => body::<$($narrow)*>($($arg),*),
            }
        }
    };
}
pub(crate) use versions;

/// The level at which loops run: the detected one, or a lower one that a test asks for.
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = forced::get() {
        return level;
    }
    Level::detected()
}

/// A level for the whole process, because the work runs on the threads of a pool.
#[cfg(test)]
pub(crate) mod forced {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, PoisonError};

    use crate::Level;

    const LEVELS: [Level; 5] =
        [Level::Scalar, Level::Neon, Level::Avx2, Level::Avx512, Level::Avx512Bf16];
    static FORCED: AtomicUsize = AtomicUsize::new(usize::MAX);
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    pub(super) fn get() -> Option<Level> {
        LEVELS.get(FORCED.load(Ordering::Relaxed)).copied()
    }

    /// Runs the work at one level. Tests that run meanwhile may do so too, which changes no bit of theirs.
    pub(crate) fn at<R>(level: Level, work: impl FnOnce() -> R) -> R {
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        FORCED.store(LEVELS.iter().position(|l| *l == level).unwrap(), Ordering::Relaxed);
        let result = work();
        FORCED.store(usize::MAX, Ordering::Relaxed);
        result
    }
}
