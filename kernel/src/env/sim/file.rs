//! An open file of the disk. It dies with the process that opened it.

use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::disk::State;
use super::faults::{Fault, Operation};
use super::tree::{FileRef, Inode};
use crate::env::DiskFile;

pub(super) struct SimFile {
    pub disk: Arc<Mutex<State>>,
    pub generation: u64,
    pub file: FileRef,
}

impl SimFile {
    /// The disk's state, unless the process that opened this handle has died.
    fn enter(&self, operation: Operation) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.lock();
        if state.generation != self.generation {
            return Err(io::Error::other("file handle from before a simulated crash"));
        }
        state.fault(operation)?;
        Ok(state)
    }
}

impl DiskFile for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let entered = self.enter(Operation::Append);
        let mut state = match entered {
            Ok(state) => state,
            Err(error) => {
                // A failing write may have written a part.
                let mut state = self.disk.lock();
                if state.generation == self.generation {
                    let some = state.dice.below(bytes.len() + 1);
                    self.file.lock().live.extend_from_slice(&bytes[..some]);
                }
                return Err(error);
            }
        };
        let room = match state.capacity {
            Some(capacity) => capacity.saturating_sub(state.tree.used()),
            None => u64::MAX,
        };
        let fits = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        let full = fits < bytes.len();
        let written = if full { state.dice.below(fits + 1) } else { fits };
        self.file.lock().live.extend_from_slice(&bytes[..written]);
        if full { Err(Fault::Enospc.error()) } else { Ok(()) }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.enter(Operation::Read)?;
        let inode = self.file.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(inode.live.len());
        let count = buffer.len().min(inode.live.len() - start);
        buffer[..count].copy_from_slice(&inode.live[start..start + count]);
        let rate = state.flips_per_million_reads as usize;
        if rate > 0 && count > 0 && state.dice.below(1_000_000) < rate {
            let at = state.dice.below(count);
            buffer[at] ^= 1 << state.dice.below(8);
        }
        Ok(count)
    }

    fn sync(&mut self) -> io::Result<()> {
        let entered = self.enter(Operation::Sync).map(|mut state| {
            state.syncs += 1;
            state.broken_sync
        });
        let mut inode = self.file.lock();
        match entered {
            Ok(broken) if broken || inode.forgotten => Ok(()),
            Ok(_) => {
                let Inode { live, durable, .. } = &mut *inode;
                durable.clone_from(live);
                Ok(())
            }
            Err(error) => {
                inode.forgotten = true;
                Err(error)
            }
        }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let state = self.enter(Operation::Append)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.file.lock().live.truncate(len);
        drop(state);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.lock().live.len() as u64)
    }
}
