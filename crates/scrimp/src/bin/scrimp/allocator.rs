//! The allocator of the program.
#![expect(unsafe_code, reason = "an option of the allocator is set through its C interface")]

use libmimalloc_sys as mimalloc_c;

/// Training allocates a tensor for each operation; the system's allocator gives such blocks back at once and has to ask
/// for them again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, which the bindings do not name; it stands before one that they do.
const PURGE_DELAY: mimalloc_c::mi_option_t = mimalloc_c::mi_option_use_numa_nodes - 1;

/// From now on freed memory stays with the program, for commands that need as much again in the next step: the system
/// would clear every page that it gives anew. Where layers keep bytes to save memory, it goes back at once instead, since it
/// would stand beside what is in use. `MIMALLOC_PURGE_DELAY` in the environment has the last word.
pub fn set_memory(saves_memory: bool) {
    const NEVER: std::ffi::c_long = -1;
    let delay = if saves_memory { 0 } else { NEVER };
    // SAFETY: the option exists, and it is set on the main thread before training starts threads that could read it.
    unsafe { mimalloc_c::mi_option_set_default(PURGE_DELAY, delay) }
}
