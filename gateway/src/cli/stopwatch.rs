//! Time as the person at the terminal feels it, from the real clock: commands that talk to
//! a server have no environment to take one from.

use std::sync::LazyLock;
use std::time::Duration;

use kymo_kernel::env::Clock;
use kymo_kernel::env::real::RealClock;

static CLOCK: LazyLock<RealClock> = LazyLock::new(RealClock::new);

/// Measures from the moment it is made.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Duration);

impl Stopwatch {
    /// Starts measuring.
    pub fn start() -> Self {
        Stopwatch(CLOCK.monotonic())
    }

    /// Time since the start.
    pub fn elapsed(self) -> Duration {
        CLOCK.monotonic().saturating_sub(self.0)
    }
}

/// Waits, blocking the thread.
#[expect(clippy::disallowed_methods, reason = "a command of the client side runs on plain threads")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Nanoseconds since 1970.
pub fn now_ns() -> i64 {
    CLOCK.now_ns()
}
