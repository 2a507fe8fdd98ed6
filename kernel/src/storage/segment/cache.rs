//! Open segments, kept for the next query within a bound of memory and of open files.

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::ids::SegmentId;
use crate::storage::segment::SegmentReader;

/// The most segments that are kept open, each of which holds a file descriptor.
const MAX_OPEN: usize = 512;

/// Readers by segment; those unused for longest go first.
#[derive(Debug)]
pub struct Readers {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<SegmentId, Kept>,
    bytes: usize,
    uses: u64,
}

#[derive(Debug)]
struct Kept {
    reader: SegmentReader,
    bytes: usize,
    used: u64,
}

impl Readers {
    /// Keeps readers whose footers and indexes take at most `bytes` together.
    #[must_use]
    pub fn new(bytes: usize) -> Readers {
        Readers { state: Mutex::default(), limit: bytes }
    }

    /// The reader of a segment, where it is kept.
    #[must_use]
    pub fn get(&self, id: SegmentId) -> Option<SegmentReader> {
        let mut state = self.state.lock();
        state.uses += 1;
        let now = state.uses;
        let kept = state.open.get_mut(&id)?;
        kept.used = now;
        Some(kept.reader.clone())
    }

    /// Keeps a reader, and lets go of those unused for longest beyond the bounds.
    pub fn put(&self, reader: SegmentReader) {
        let (id, bytes) = (reader.meta().id, reader.memory_bytes());
        let mut state = self.state.lock();
        state.uses += 1;
        let kept = Kept { reader, bytes, used: state.uses };
        state.bytes += bytes;
        if let Some(before) = state.open.insert(id, kept) {
            state.bytes -= before.bytes;
        }
        while state.bytes > self.limit || state.open.len() > MAX_OPEN {
            let Some(oldest) =
                state.open.iter().min_by_key(|(_, kept)| kept.used).map(|(id, _)| *id)
            else {
                break;
            };
            state.remove(oldest);
        }
    }

    /// Lets go of a segment that is no longer part of its table.
    pub fn forget(&self, id: SegmentId) {
        self.state.lock().remove(id);
    }

    /// How many readers are kept, and the memory they take.
    #[must_use]
    pub fn kept(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.open.len(), state.bytes)
    }
}

impl State {
    fn remove(&mut self, id: SegmentId) {
        if let Some(gone) = self.open.remove(&id) {
            self.bytes -= gone.bytes;
        }
    }
}
