//! Which operations of the disk fail: by script, each once, or at a rate.

use std::collections::BTreeMap;
use std::io;

use super::random::Dice;

/// What a fault can be injected into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Creating a file.
    Create,
    /// Appending to a file.
    Append,
    /// Reading from a file.
    Read,
    /// Syncing a file.
    Sync,
    /// Syncing a folder.
    SyncDir,
    /// Renaming or linking.
    Link,
    /// Removing a file.
    Remove,
}

/// What an injected fault looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An I/O error.
    Eio,
    /// No space left on the device.
    Enospc,
}

impl Fault {
    pub(super) fn error(self) -> io::Error {
        match self {
            Fault::Eio => io::Error::from_raw_os_error(libc::EIO),
            Fault::Enospc => io::Error::from_raw_os_error(libc::ENOSPC),
        }
    }
}

/// The faults that were asked for and did not happen yet.
#[derive(Default)]
pub(super) struct Faults {
    script: Vec<(Operation, u32, Fault)>,
    rates: BTreeMap<Operation, (u32, Fault)>,
}

impl Faults {
    /// One failure, after `after` operations of the kind that succeed.
    pub fn once(&mut self, operation: Operation, after: u32, fault: Fault) {
        self.script.push((operation, after, fault));
    }

    /// That many failures in a million operations of the kind.
    pub fn at_rate(&mut self, operation: Operation, per_million: u32, fault: Fault) {
        self.rates.insert(operation, (per_million, fault));
    }

    pub fn clear(&mut self) {
        self.script.clear();
        self.rates.clear();
    }

    /// Fails where the script or the rate says so.
    pub fn hit(&mut self, operation: Operation, dice: &mut Dice) -> io::Result<()> {
        let mut hit = None;
        self.script.retain_mut(|(wanted, after, fault)| {
            if *wanted != operation || hit.is_some() {
                return true;
            }
            if *after == 0 {
                hit = Some(*fault);
                return false;
            }
            *after -= 1;
            true
        });
        if hit.is_none()
            && let Some((rate, fault)) = self.rates.get(&operation).copied()
            && rate > 0
            && dice.below(1_000_000) < rate as usize
        {
            hit = Some(fault);
        }
        hit.map_or(Ok(()), |fault| Err(fault.error()))
    }
}
