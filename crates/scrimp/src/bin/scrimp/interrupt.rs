//! Ctrl-C: once asks the command to stop and leave things in order, twice stops.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The exit code of a program that was stopped by Ctrl-C: 128 and the number of the signal.
pub const EXIT_CODE: u8 = 130;

/// The command stopped because it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; {outcome}")]
pub struct Interrupted {
    /// What that means for the user: what was saved, how to go on.
    pub outcome: &'static str,
}

/// From now on the first Ctrl-C (or polite request to end) only makes [`requested`] true.
///
/// For commands that ask [`requested`] often; any other is better ended by the system.
pub fn catch() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Without a handler the system ends the command, as it always has.
        ctrlc::set_handler(|| {
            if REQUESTED.swap(true, Ordering::Relaxed) {
                std::process::exit(EXIT_CODE.into());
            }
        })
        .ok();
    });
}

/// Whether the command should stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
