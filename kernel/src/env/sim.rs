//! A world under one seed: a clock that is turned by hand, seeded random bits, and a disk
//! that forgets.
//!
//! [`SimDisk`] keeps live and durable state apart. Content becomes durable with a sync of the
//! file; a name (created, renamed, linked or removed) with a sync of its folder.
//! [`SimDisk::crash`] throws the live state away: each 512-byte sector and each name that was
//! not synced survives or not, by the seed, independently of its neighbours. That is harsher
//! than file systems are, on purpose. Handles and locks from before a crash are dead: using
//! one fails, as the process that held them would be.
//!
//! Faults are injected by script ([`SimDisk::fail_after`]), at a rate ([`SimDisk::set_error_rate`]),
//! by a capacity ([`SimDisk::set_capacity`], with short writes), by flipping bits at rest or on
//! reads, and by [`SimDisk::break_sync`], a disk that lies about fsync. After a failed sync the
//! content is never made durable by a later one: the kernel has dropped the dirty pages.

use std::sync::Arc;

use crate::env::Env;

mod clock;
mod crash;
mod disk;
mod faults;
mod file;
mod random;
#[cfg(test)]
mod tests;
mod tree;

pub use clock::SimClock;
pub use disk::SimDisk;
pub use faults::{Fault, Operation};
pub use random::{Dice, SimRandom};

/// The parts of a simulated world, for the test that steers it.
#[derive(Clone)]
pub struct Sim {
    /// The clock.
    pub clock: Arc<SimClock>,
    /// The disk.
    pub disk: Arc<SimDisk>,
    /// The random source.
    pub random: Arc<SimRandom>,
}

impl Sim {
    /// A world with an empty disk, at the start of 2026.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Sim {
            clock: Arc::new(SimClock::new(1_767_225_600_000_000_000)),
            disk: Arc::new(SimDisk::new(seed ^ 0x5eed_d15c)),
            random: Arc::new(SimRandom::new(seed)),
        }
    }

    /// The same world as code under test receives it.
    #[must_use]
    pub fn env(&self) -> Env {
        Env { clock: self.clock.clone(), disk: self.disk.clone(), random: self.random.clone() }
    }
}
