//! Pieces of segments that were read from a bucket, kept in memory within a bound.
//!
//! Segments never change and their names are never used again, so a piece is right for as long
//! as it is kept. Those unused for longest go first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::observe::metrics;

/// Bytes of a piece, but for the last one of an object: what one request reads at least.
pub const PIECE: u64 = 1 << 20;

/// An object and the number of a piece of it.
type Place = (Arc<str>, u64);

/// See the module.
pub struct Cache {
    state: Mutex<State>,
    limit: u64,
}

#[derive(Default)]
struct State {
    pieces: HashMap<Place, (Bytes, u64)>,
    /// When each piece was used last, oldest first.
    order: BTreeMap<u64, Place>,
    bytes: u64,
    uses: u64,
}

impl Cache {
    /// Keeps at most `limit` bytes.
    pub fn new(limit: u64) -> Cache {
        Cache { state: Mutex::default(), limit }
    }

    /// A piece, where it is kept.
    pub fn get(&self, object: &Arc<str>, number: u64) -> Option<Bytes> {
        let found = self.state.lock().touch((object.clone(), number));
        let word = if found.is_some() { "hit" } else { "missed" };
        metrics().objects.cache.with_label_values(&[word]).inc();
        found
    }

    /// Keeps a piece.
    pub fn put(&self, object: &Arc<str>, number: u64, bytes: Bytes) {
        let mut state = self.state.lock();
        state.insert((object.clone(), number), bytes);
        while state.bytes > self.limit && state.drop_oldest() {}
        metrics().objects.cache_bytes.set(i64::try_from(state.bytes).unwrap_or(i64::MAX));
    }
}

impl State {
    fn touch(&mut self, place: Place) -> Option<Bytes> {
        let (bytes, used) = self.pieces.get_mut(&place)?;
        self.uses += 1;
        self.order.remove(used);
        *used = self.uses;
        let bytes = bytes.clone();
        self.order.insert(self.uses, place);
        Some(bytes)
    }

    fn insert(&mut self, place: Place, bytes: Bytes) {
        self.uses += 1;
        self.bytes += bytes.len() as u64;
        self.order.insert(self.uses, place.clone());
        if let Some((before, used)) = self.pieces.insert(place, (bytes, self.uses)) {
            self.bytes -= before.len() as u64;
            self.order.remove(&used);
        }
    }

    fn drop_oldest(&mut self) -> bool {
        let Some((_, place)) = self.order.pop_first() else { return false };
        if let Some((bytes, _)) = self.pieces.remove(&place) {
            self.bytes -= bytes.len() as u64;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_unused_for_longest_goes_first() {
        let cache = Cache::new(10);
        let object: Arc<str> = "o".into();
        let piece = |fill: u8| Bytes::from(vec![fill; 4]);
        cache.put(&object, 0, piece(0));
        cache.put(&object, 1, piece(1));
        assert_eq!(cache.get(&object, 0), Some(piece(0)));
        cache.put(&object, 2, piece(2));
        assert_eq!(cache.get(&object, 1), None, "0 was used later");
        assert_eq!(cache.get(&object, 0), Some(piece(0)));
        cache.put(&object, 2, piece(3));
        assert_eq!(cache.get(&object, 2), Some(piece(3)));
        let state = cache.state.lock();
        assert_eq!((state.bytes, state.pieces.len(), state.order.len()), (8, 2, 2));
    }
}
