//! One at a time: whoever puts segments of a table in the place of others takes a turn first.
//!
//! Merges, deletions and retention each read segments, write new ones and commit the exchange.
//! Two of them on the same segments would cost one of them its work, and a long deletion could
//! never end beside merges. Whoever comes next looks at the table again: what it saw before its
//! turn may be gone. Flushes only add segments and need no turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use kymo_kernel::ids::TableId;
use parking_lot::Mutex;
use tokio::sync::{Mutex as Fair, OwnedMutexGuard};

/// The turns of all tables.
#[derive(Debug, Default)]
pub struct Turns(Mutex<BTreeMap<TableId, Arc<Fair<()>>>>);

/// The right to exchange segments of a table, until dropped.
pub type Turn = OwnedMutexGuard<()>;

impl Turns {
    /// A turn, where nobody has one.
    pub fn try_take(&self, table: TableId) -> Option<Turn> {
        self.of(table).try_lock_owned().ok()
    }

    /// A turn, after those who came before. Dropping the future gives the place up.
    pub async fn take(&self, table: TableId) -> Turn {
        let turns = self.of(table);
        turns.lock_owned().await
    }

    fn of(&self, table: TableId) -> Arc<Fair<()>> {
        let mut all = self.0.lock();
        // Nobody has or wants these any more.
        all.retain(|_, turns| Arc::strong_count(turns) > 1);
        all.entry(table).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_are_taken_one_after_the_other_and_forgotten() {
        let turns = Arc::new(Turns::default());
        let (one, other) = (TableId(1), TableId(2));
        let first = turns.try_take(one).unwrap();
        assert!(turns.try_take(one).is_none());
        assert!(turns.try_take(other).is_some());
        let mut waiting = Box::pin(turns.take(one));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(first);
        let second = waiting.await;
        assert!(turns.try_take(one).is_none());
        drop(second);
        assert!(turns.try_take(one).is_some());
        turns.try_take(other).unwrap();
        assert_eq!(turns.0.lock().len(), 1);
    }
}
