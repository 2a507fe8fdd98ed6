//! What the process of the server asks of its system before it does anything else.

/// Settles with the system how memory comes back and how many files may be open. Call it first
/// thing in `main`.
pub fn prepare() {
    return_large_blocks();
    allow_many_files();
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

/// Raises the number of files and sockets that may be open to what the system allows at most;
/// many systems begin with 1024, which is less than the connections that settings allow.
/// Where that is refused, connections beyond the limit are.
pub fn allow_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls that fill and read the struct they are given.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
