//! Continuous queries: the changes of definitions that are asked of the catalog.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::continuous::{Advance, ContinuousDef, Mark, Pause, QueryName};
use crate::ids::TableId;
use crate::schema::Column;

/// A change of continuous queries. Query, continuous → catalog.
#[derive(Debug, Clone)]
pub enum ContinuousDdl {
    /// `CREATE CONTINUOUS QUERY`, with its target where that does not exist.
    Create {
        /// The definition.
        query: Box<ContinuousDef>,
        /// The columns that the target needs; ids are assigned by the catalog.
        columns: Vec<Column>,
        /// Where it begins.
        marks: BTreeMap<TableId, Mark>,
        /// Succeed silently where it exists.
        if_not_exists: bool,
    },
    /// `DROP CONTINUOUS QUERY` and `DROP DOWNSAMPLING POLICY`. The target stays.
    Drop {
        /// Its name.
        name: QueryName,
        /// Succeed silently where it does not exist.
        if_exists: bool,
        /// Whether it must come from a downsampling policy.
        policy: bool,
    },
    /// Stops one, by somebody's wish or because it failed.
    Pause {
        /// Its name.
        name: QueryName,
        /// Only if it is still this definition, by identity and revision.
        only: Option<(Uuid, u64)>,
        /// Why.
        pause: Pause,
    },
    /// Lets one go on from its cursor, with its target where that is gone.
    Resume {
        /// Its name.
        name: QueryName,
        /// The columns that the target needs.
        columns: Vec<Column>,
    },
    /// Gives the table of a downsampling policy its retention, the first time that everything
    /// in it is part of the target.
    Retain {
        /// The policy's name.
        name: QueryName,
        /// Only if it is still this one.
        id: Uuid,
    },
    /// Moves cursors.
    Advance(Vec<Advance>),
}
