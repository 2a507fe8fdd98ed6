//! The `kymo` binary: the command line decides, the library works.

use std::process::ExitCode;

fn main() -> ExitCode {
    return_large_blocks();
    kymo::cli::run()
}

/// Makes the allocator of glibc give blocks of 1 MiB and more back to the system when they are
/// freed. By itself it raises that threshold to 32 MiB as it goes, and then keeps the batches
/// of queries long gone: streaming 2 GB left 200 to 300 MiB behind.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn return_large_blocks() {
    const BLOCK_BYTES: libc::c_int = 1 << 20;
    // SAFETY: called before any other thread exists; it only sets a number of the allocator.
    // Where it is refused, memory is merely returned later.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, BLOCK_BYTES) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn return_large_blocks() {}
