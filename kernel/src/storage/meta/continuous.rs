//! What edits do to continuous queries and their cursors. A cursor exists exactly as long as its
//! query; what is told of one that is gone by then changes nothing, because cursors come late
//! by design.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::{Snapshot, conflict};
use crate::continuous::{Advance, ContinuousDef, Cursor, Mark, QueryName};
use crate::error::{Code, Error, Result};
use crate::ids::{SegmentId, TableId};
use crate::schema::TableName;

/// The continuous queries of a store by name.
pub type ContinuousQueries = BTreeMap<QueryName, Arc<ContinuousDef>>;
/// The cursors of continuous queries by the query's identity.
pub type Cursors = BTreeMap<Uuid, Arc<Cursor>>;

impl Snapshot {
    pub(super) fn put_continuous(
        &mut self,
        query: &ContinuousDef,
        marks: &BTreeMap<TableId, Mark>,
    ) -> Result<()> {
        let known = self.continuous.get(&query.name);
        if let Some(known) = known
            && known.id != query.id
        {
            let text = format!("continuous query {:?} exists", query.name.name);
            return Err(Error::new(Code::AlreadyExists, text));
        }
        if self.continuous.values().any(|each| each.id == query.id && each.name != query.name) {
            return Err(conflict(format!("continuous query {} has the id of another", query.name)));
        }
        let current = known.map_or(0, |known| known.revision);
        if query.revision != current + 1 {
            return Err(conflict(format!(
                "continuous query {} is at revision {current}, the edit brings {}",
                query.name, query.revision
            )));
        }
        if !self.databases.contains(&query.name.database) {
            return Err(Error::new(
                Code::DatabaseNotFound,
                format!("database {:?} does not exist", query.name.database),
            ));
        }
        Arc::make_mut(&mut self.continuous).insert(query.name.clone(), Arc::new(query.clone()));
        let cursors = Arc::make_mut(&mut self.cursors);
        cursors
            .entry(query.id)
            .or_insert_with(|| Arc::new(Cursor { marks: marks.clone(), ..Cursor::default() }));
        Ok(())
    }

    pub(super) fn drop_continuous(&mut self, name: &QueryName) -> Result<()> {
        let Some(gone) = Arc::make_mut(&mut self.continuous).remove(name) else {
            return Err(conflict(format!("continuous query {name} does not exist")));
        };
        Arc::make_mut(&mut self.cursors).remove(&gone.id);
        Ok(())
    }

    /// The queries of a database go with it.
    pub(super) fn drop_continuous_of(&mut self, database: &str) -> Result<()> {
        let names: Vec<QueryName> =
            self.continuous.keys().filter(|name| name.database == database).cloned().collect();
        names.iter().try_for_each(|name| self.drop_continuous(name))
    }

    pub(super) fn advance_continuous(&mut self, advance: &Advance) {
        if !self.cursors.contains_key(&advance.id) {
            return;
        }
        if let Some(cursor) = Arc::make_mut(&mut self.cursors).get_mut(&advance.id) {
            let cursor = Arc::make_mut(cursor);
            cursor.marks.clone_from(&advance.marks);
            cursor.gone.retain(|number, _| *number > advance.gone);
        }
    }

    /// Notes for every continuous query over a table that rows of these segments are about to be
    /// deleted. Part of applying the edit that deletes them, so that no crash can come between.
    pub(super) fn continuous_rows_gone(&mut self, table: TableId, inputs: &[SegmentId]) {
        let Some(meta) = self.tables.get(&table) else { return };
        let reads = |query: &&Arc<ContinuousDef>| query.sources.contains(&meta.def.name);
        let readers: Vec<Uuid> =
            self.continuous.values().filter(reads).map(|query| query.id).collect();
        let segments = inputs.iter().filter_map(|id| meta.segments.get(id));
        let times = segments.map(|segment| segment.time).reduce(|all, each| all.union(&each));
        let Some(times) = times.filter(|_| !readers.is_empty()) else { return };
        let cursors = Arc::make_mut(&mut self.cursors);
        for id in readers {
            if let Some(cursor) = cursors.get_mut(&id) {
                Arc::make_mut(cursor).delete(times);
            }
        }
    }

    /// The continuous query that fills a table.
    #[must_use]
    pub fn continuous_into(&self, target: &TableName) -> Option<&Arc<ContinuousDef>> {
        self.continuous.values().find(|query| query.target == *target)
    }
}
