//! What the store knows about itself: an immutable [`Snapshot`], changed only by applying
//! numbered [`Edit`]s.
//!
//! [`Snapshot::apply`] is a pure function: the same edits in the same order give the same
//! snapshot on every machine. An edit that no longer fits is refused with `conflict`, and then
//! nothing of it is applied. `AddSegments` commutes with everything but a drop of its table,
//! so that flushes never wait for one another.
//!
//! `flushed_upto` travels in the same edit as the segments it speaks for. What is in segments
//! and what must be replayed from the log is therefore decided by one durable record, never by
//! the order of files.
//!
//! The types here are the ones that code works with; [`codec`] holds their frozen form on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use crate::alert::{AlertDef, ChannelDef, SilenceDef};
use crate::continuous::{Advance, ContinuousDef, Mark, QueryName};
use crate::error::{Code, Error, Result};
use crate::ids::{
    ColumnId, Epoch, MetaVersion, PartitionId, Position, SegmentId, Slot, TableId, TimeRange,
};
use crate::plugin::{FunctionDef, PluginDef, TransformDef, Transforms};
use crate::schema::{DEFAULT_DATABASE, TableDef, TableName, TableSchema};
use crate::user::User;

mod alerts;
mod channels;
pub mod codec;
mod continuous;
mod plugins;
pub mod retention;

use retention::{RetentionOf, Retentions};

pub use continuous::{ContinuousQueries, Cursors};

/// The newest layout of data that this build writes and reads. A store that asks for a
/// newer reader is refused.
pub const FEATURE_LEVEL: u32 = 1;

/// One value of a column, as statistics keep it.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// Floating point; never NaN.
    Float64(f64),
    /// Signed integer.
    Int64(i64),
    /// Unsigned integer.
    UInt64(u64),
    /// True or false.
    Bool(bool),
    /// Text, possibly cut (then the bound it gives is still one).
    Text(String),
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    Timestamp(i64),
}

/// What is known of one column of a segment without opening it.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnStats {
    /// The column.
    pub column: ColumnId,
    /// How many rows hold no value.
    pub nulls: u64,
    /// No value is smaller; `None` where unknown or where all are NULL.
    pub min: Option<Scalar>,
    /// No value is larger; `None` where unknown or where all are NULL.
    pub max: Option<Scalar>,
}

/// An immutable Parquet file of one table and one time window, as the metadata names it.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentMeta {
    /// Its identity and the stem of its file name.
    pub id: SegmentId,
    /// The table that it belongs to.
    pub table: TableId,
    /// The version of the table's schema that it was written with.
    pub schema_version: u32,
    /// Its place below the data folder, parts divided by `/`: also its key in a bucket.
    pub path: String,
    /// Size of the file.
    pub bytes: u64,
    /// Rows in it.
    pub rows: u64,
    /// The earliest and the latest timestamp in it.
    pub time: TimeRange,
    /// The smallest and the largest slot of the series in it.
    pub slots: (Slot, Slot),
    /// The smallest encoded series key in it.
    pub key_min: Vec<u8>,
    /// The largest encoded series key in it.
    pub key_max: Vec<u8>,
    /// The partition whose log its rows came through.
    pub partition: PartitionId,
    /// The first and the last position of the log that its rows came from.
    pub seq_range: (Position, Position),
    /// How many times its rows were merged: 0 for a flush.
    pub level: u8,
    /// Where the last part of the file begins, which holds the footer.
    pub footer: u64,
    /// CRC32C of that part; it leads to the checksums of everything before it.
    pub checksum: u32,
    /// The times of those of its rows that may repeat the tags and time of a row of an
    /// older segment; `None` where no row does. A scan compares nothing else.
    pub late: Option<TimeRange>,
    /// Statistics by column.
    pub columns: Vec<ColumnStats>,
}

/// A table in a [`Snapshot`].
#[derive(Debug, Clone, PartialEq)]
pub struct TableMeta {
    /// Its definition.
    pub def: Arc<TableDef>,
    /// Its live segments.
    pub segments: BTreeMap<SegmentId, Arc<SegmentMeta>>,
    /// For each partition, the position up to which its rows are in segments.
    pub flushed: BTreeMap<PartitionId, Position>,
    /// How many times rows of it were deleted. Whoever has kept rows and then finds another
    /// number may have some that are gone.
    pub deletions: u64,
    /// The id of the next new column. Ids are never given twice, so that a column under the name
    /// of a dropped one does not show its values.
    pub next_column: ColumnId,
}

impl TableMeta {
    /// The position up to which rows of a partition are in segments; zero where none are.
    #[must_use]
    pub fn flushed_upto(&self, partition: PartitionId) -> Position {
        self.flushed
            .get(&partition)
            .copied()
            .unwrap_or(Position { partition, ..Position::default() })
    }
}

/// Who owns a log partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The node.
    pub node: String,
    /// The ownership's number: each new owner has a larger one.
    pub epoch: Epoch,
    /// The slots whose rows go through the partition, both ends included.
    pub slots: (Slot, Slot),
}

/// A process that takes part, as it announced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeMeta {
    /// Its name.
    pub id: String,
    /// This start of it; of a store in a bucket the folder with its journal, nil once it let go.
    pub instance: Uuid,
    /// What it does.
    pub roles: Vec<String>,
}

/// The whole metadata at one version. Cheap to clone: its parts are shared until changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The last edit it contains.
    pub version: MetaVersion,
    /// Builds below this level must not open the store.
    pub min_reader: u32,
    /// The layout that writers use.
    pub feature_level: u32,
    /// The id that the next new table takes at least.
    pub next_table: TableId,
    /// Databases by name.
    pub databases: Arc<BTreeSet<String>>,
    /// Tables by identity.
    pub tables: Arc<BTreeMap<TableId, Arc<TableMeta>>>,
    /// Tables by full name.
    pub names: Arc<BTreeMap<TableName, TableId>>,
    /// Accounts by name.
    pub users: Arc<BTreeMap<String, Arc<User>>>,
    /// Owners of partitions.
    pub assignments: Arc<BTreeMap<PartitionId, Assignment>>,
    /// Processes by name.
    pub nodes: Arc<BTreeMap<String, NodeMeta>>,
    /// Plugins by name.
    pub plugins: Arc<BTreeMap<String, Arc<PluginDef>>>,
    /// Functions of plugins under names of their own.
    pub functions: Arc<BTreeMap<String, Arc<FunctionDef>>>,
    /// Transforms of tables; a table without any is not in it.
    pub transforms: Arc<Transforms>,
    /// How long rows are kept.
    pub retentions: Arc<Retentions>,
    /// Continuous queries by name.
    pub continuous: Arc<ContinuousQueries>,
    /// How far they have brought their targets.
    pub cursors: Arc<Cursors>,
    /// Alert rules by name.
    pub alerts: Arc<BTreeMap<String, Arc<AlertDef>>>,
    /// Silences by number.
    pub silences: Arc<BTreeMap<u64, Arc<SilenceDef>>>,
    /// Channels of alerts by name, beside those of the settings.
    pub channels: Arc<BTreeMap<String, Arc<ChannelDef>>>,
}

impl Default for Snapshot {
    /// The metadata of a store that nobody has written to: the default database, no tables.
    fn default() -> Self {
        Snapshot {
            version: MetaVersion(0),
            min_reader: FEATURE_LEVEL,
            feature_level: FEATURE_LEVEL,
            next_table: TableId(1),
            databases: Arc::new(BTreeSet::from([DEFAULT_DATABASE.to_owned()])),
            tables: Arc::default(),
            names: Arc::default(),
            users: Arc::default(),
            assignments: Arc::default(),
            nodes: Arc::default(),
            plugins: Arc::default(),
            functions: Arc::default(),
            transforms: Arc::default(),
            retentions: Arc::default(),
            continuous: Arc::default(),
            cursors: Arc::default(),
            alerts: Arc::default(),
            silences: Arc::default(),
            channels: Arc::default(),
        }
    }
}

/// Who makes an edit, so that an owner that was replaced can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// The node.
    pub node: String,
    /// The partition it speaks for.
    pub partition: PartitionId,
    /// The ownership under which it speaks.
    pub epoch: Epoch,
}

/// One atomic change of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// Its own identity: tells a retried append from somebody else's.
    pub commit_id: Uuid,
    /// Who makes it.
    pub by: Author,
    /// What changes; all of it or nothing.
    pub ops: Vec<Op>,
}

/// One step of an [`Edit`].
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// A new database; it must not exist.
    CreateDatabase {
        /// Its name.
        name: String,
    },
    /// Removes a database with all of its tables; it must exist.
    DropDatabase {
        /// Its name.
        name: String,
    },
    /// A new table (its id must be [`Snapshot::next_table`] or larger, its name free), or a
    /// new definition of an existing one (its schema version must be the next).
    PutTable {
        /// The definition.
        def: TableDef,
    },
    /// Removes a table with its segments; it must exist.
    DropTable {
        /// Which.
        table: TableId,
    },
    /// A flush: new segments, and how far the log is covered by them.
    AddSegments {
        /// The table.
        table: TableId,
        /// Possibly none, where all rows flushed were replaced before.
        segments: Vec<SegmentMeta>,
        /// Rows of this position's partition up to it are in segments.
        flushed_upto: Position,
    },
    /// A compaction: all inputs must still be live.
    Replace {
        /// The table.
        table: TableId,
        /// Segments that go.
        inputs: Vec<SegmentId>,
        /// Segments that hold the same rows.
        outputs: Vec<SegmentMeta>,
    },
    /// A deletion: as a compaction, but the outputs hold fewer rows.
    Delete {
        /// The table.
        table: TableId,
        /// Segments that go; all must still be live.
        inputs: Vec<SegmentId>,
        /// Segments that hold the rows that stay.
        outputs: Vec<SegmentMeta>,
    },
    /// Expired segments; those that are gone already are passed over.
    DropSegments {
        /// The table.
        table: TableId,
        /// Segments that go with their rows.
        segments: Vec<SegmentId>,
    },
    /// Creates or replaces an account.
    PutUser {
        /// The account.
        user: User,
    },
    /// Removes an account; it must exist.
    DropUser {
        /// Its name.
        name: String,
    },
    /// Gives a partition to a node; the epoch must be the next.
    Assign {
        /// The partition.
        partition: PartitionId,
        /// The new owner.
        assignment: Assignment,
    },
    /// A process announces itself.
    Node {
        /// What it says.
        node: NodeMeta,
    },
    /// Creates a plugin or changes it; its revision must be the next. The components of its
    /// versions must be in the store ([`crate::storage::components`]).
    PutPlugin {
        /// The definition.
        plugin: PluginDef,
    },
    /// Removes a plugin that no function and no transform uses; it must exist.
    DropPlugin {
        /// Its name.
        name: String,
    },
    /// Creates or replaces a function; its plugin must exist.
    PutFunction {
        /// The definition.
        function: FunctionDef,
    },
    /// Removes a function; it must exist.
    DropFunction {
        /// Its name.
        name: String,
    },
    /// Sets the transforms of a table, none included; the table and their plugins must exist.
    PutTransforms {
        /// The table.
        table: TableId,
        /// In the order in which rows pass them.
        chain: Vec<TransformDef>,
    },
    /// Sets for how long rows are kept.
    SetRetention {
        /// What it is set for; it must exist.
        of: RetentionOf,
        /// Nanoseconds; zero for ever; `None` takes back what was set.
        retention_ns: Option<i64>,
    },
    /// Removes expired rows: as a deletion, but nobody is told, and it is refused where the table
    /// keeps its rows longer by now.
    Expire {
        /// The table.
        table: TableId,
        /// Segments that go; all must still be live.
        inputs: Vec<SegmentId>,
        /// Segments that hold the rows that stay.
        outputs: Vec<SegmentMeta>,
        /// The retention that it went by, in nanoseconds.
        retention_ns: i64,
    },
    /// Creates a continuous query or changes it; its revision must be the next.
    PutContinuous {
        /// The definition.
        query: ContinuousDef,
        /// Where a new one begins; nothing for one that exists.
        marks: BTreeMap<TableId, Mark>,
    },
    /// Removes a continuous query with its cursor; it must exist.
    DropContinuous {
        /// Its name.
        name: QueryName,
    },
    /// Moves cursors of continuous queries; those that are gone are passed over.
    AdvanceContinuous {
        /// Each query once.
        advances: Vec<Advance>,
    },
    /// Creates an alert rule or changes it; its revision must be the next.
    PutAlert {
        /// The definition.
        alert: AlertDef,
    },
    /// Removes an alert rule; it must exist.
    DropAlert {
        /// Its name.
        name: String,
    },
    /// Creates or replaces a silence.
    PutSilence {
        /// The definition.
        silence: SilenceDef,
    },
    /// Removes a silence; it must exist.
    DropSilence {
        /// Its number.
        id: u64,
    },
    /// Creates or replaces a channel of alerts.
    PutChannel {
        /// The definition.
        channel: ChannelDef,
    },
    /// Removes a channel of alerts; it must exist.
    DropChannel {
        /// Its name.
        name: String,
    },
}

fn conflict(what: impl Into<String>) -> Error {
    Error::new(Code::Conflict, what)
}

impl Snapshot {
    /// The table of a full name.
    #[must_use]
    pub fn table(&self, name: &TableName) -> Option<&Arc<TableMeta>> {
        self.tables.get(self.names.get(name)?)
    }

    /// The table of an identity.
    #[must_use]
    pub fn table_by_id(&self, id: TableId) -> Option<&Arc<TableMeta>> {
        self.tables.get(&id)
    }

    /// The ownership number of a partition; zero where nobody has owned it yet.
    #[must_use]
    pub fn epoch(&self, partition: PartitionId) -> Epoch {
        self.assignments.get(&partition).map(|each| each.epoch).unwrap_or_default()
    }

    /// The snapshot after an edit; `self` stays as it is. The version does not change: the
    /// log that numbers edits sets it.
    ///
    /// # Errors
    /// `conflict` where an op does not fit, `already_exists` and `table_not_found` or
    /// `database_not_found` where a name is taken or missing, `fenced` where the author's
    /// epoch is not the current one.
    pub fn apply(&self, edit: &Edit) -> Result<Snapshot> {
        self.clone().replay(edit)
    }

    /// As [`Snapshot::apply`], in place: nothing that nobody else has is copied, so that reading
    /// back many edits takes as long as they are, not as there are segments.
    ///
    /// # Errors
    /// As [`Snapshot::apply`].
    pub fn replay(mut self, edit: &Edit) -> Result<Snapshot> {
        let current = self.epoch(edit.by.partition);
        if edit.by.epoch < current {
            return Err(Error::new(
                Code::Fenced,
                format!(
                    "partition {} belongs to epoch {current}, the edit is of epoch {}",
                    edit.by.partition, edit.by.epoch
                ),
            ));
        }
        for op in &edit.ops {
            self.apply_op(op)?;
        }
        Ok(self)
    }

    fn apply_op(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::CreateDatabase { name } => self.create_database(name),
            Op::DropDatabase { name } => self.drop_database(name),
            Op::PutTable { def } => self.put_table(def),
            Op::DropTable { table } => self.drop_table(*table),
            Op::AddSegments { table, segments, flushed_upto } => {
                self.add_segments(*table, segments, *flushed_upto)
            }
            Op::Replace { table, inputs, outputs } => self.replace(*table, inputs, outputs),
            Op::Delete { table, inputs, outputs } => {
                self.continuous_rows_gone(*table, inputs);
                self.replace(*table, inputs, outputs)?;
                self.table_mut(*table)?.deletions += 1;
                Ok(())
            }
            Op::DropSegments { table, segments } => {
                let live = self.table_mut(*table)?;
                for id in segments {
                    live.segments.remove(id);
                }
                Ok(())
            }
            Op::PutUser { user } => {
                Arc::make_mut(&mut self.users).insert(user.name.clone(), Arc::new(user.clone()));
                Ok(())
            }
            Op::DropUser { name } => match Arc::make_mut(&mut self.users).remove(name) {
                Some(_) => Ok(()),
                None => Err(conflict(format!("user {name:?} does not exist"))),
            },
            Op::Assign { partition, assignment } => self.assign(*partition, assignment),
            Op::Node { node } => {
                Arc::make_mut(&mut self.nodes).insert(node.id.clone(), node.clone());
                Ok(())
            }
            Op::PutPlugin { plugin } => self.put_plugin(plugin),
            Op::DropPlugin { name } => self.drop_plugin(name),
            Op::PutFunction { function } => self.put_function(function),
            Op::DropFunction { name } => self.drop_function(name),
            Op::PutTransforms { table, chain } => self.put_transforms(*table, chain),
            Op::SetRetention { of, retention_ns } => self.set_retention(of, *retention_ns),
            Op::Expire { table, inputs, outputs, retention_ns } => {
                self.expire(*table, inputs, outputs, *retention_ns)
            }
            Op::PutContinuous { query, marks } => self.put_continuous(query, marks),
            Op::DropContinuous { name } => self.drop_continuous(name),
            Op::AdvanceContinuous { advances } => {
                advances.iter().for_each(|advance| self.advance_continuous(advance));
                Ok(())
            }
            Op::PutAlert { alert } => self.put_alert(alert),
            Op::DropAlert { name } => self.drop_alert(name),
            Op::PutSilence { silence } => self.put_silence(silence),
            Op::DropSilence { id } => self.drop_silence(*id),
            Op::PutChannel { channel } => self.put_channel(channel),
            Op::DropChannel { name } => self.drop_channel(name),
        }
    }

    fn create_database(&mut self, name: &str) -> Result<()> {
        if Arc::make_mut(&mut self.databases).insert(name.to_owned()) {
            return Ok(());
        }
        Err(Error::new(Code::AlreadyExists, format!("database {name:?} exists")))
    }

    fn drop_database(&mut self, name: &str) -> Result<()> {
        if !Arc::make_mut(&mut self.databases).remove(name) {
            return Err(Error::new(
                Code::DatabaseNotFound,
                format!("database {name:?} does not exist"),
            ));
        }
        self.forget_database_retention(name);
        self.drop_continuous_of(name)?;
        let inside: Vec<TableId> = self
            .names
            .iter()
            .filter(|(table, _)| table.database == name)
            .map(|(_, id)| *id)
            .collect();
        inside.into_iter().try_for_each(|table| self.drop_table(table))
    }

    fn put_table(&mut self, def: &TableDef) -> Result<()> {
        if !self.databases.contains(&def.name.database) {
            return Err(Error::new(
                Code::DatabaseNotFound,
                format!("database {:?} does not exist", def.name.database),
            ));
        }
        if let Some(holder) = self.names.get(&def.name)
            && *holder != def.id
        {
            return Err(Error::new(Code::AlreadyExists, format!("table {} exists", def.name)));
        }
        let Some(known) = self.tables.get(&def.id) else {
            return self.add_table(def);
        };
        if def.schema.version != known.def.schema.version + 1 {
            return Err(conflict(format!(
                "table {} is at schema version {}, the edit brings {}",
                def.name, known.def.schema.version, def.schema.version
            )));
        }
        check_columns(known, def)?;
        let old_name = known.def.name.clone();
        let names = Arc::make_mut(&mut self.names);
        names.remove(&old_name);
        names.insert(def.name.clone(), def.id);
        let table = self.table_mut(def.id)?;
        table.next_column = table.next_column.max(behind(&def.schema));
        table.def = Arc::new(def.clone());
        Ok(())
    }

    fn add_table(&mut self, def: &TableDef) -> Result<()> {
        if def.id < self.next_table {
            return Err(conflict(format!("table id {} was used before", def.id)));
        }
        let table = TableMeta {
            def: Arc::new(def.clone()),
            segments: BTreeMap::new(),
            flushed: BTreeMap::new(),
            deletions: 0,
            next_column: behind(&def.schema),
        };
        self.next_table = TableId(def.id.0 + 1);
        Arc::make_mut(&mut self.tables).insert(def.id, Arc::new(table));
        Arc::make_mut(&mut self.names).insert(def.name.clone(), def.id);
        Ok(())
    }

    fn drop_table(&mut self, table: TableId) -> Result<()> {
        let Some(gone) = Arc::make_mut(&mut self.tables).remove(&table) else {
            return Err(no_table(table));
        };
        Arc::make_mut(&mut self.names).remove(&gone.def.name);
        self.forget_transforms(table);
        self.forget_retention(table);
        Ok(())
    }

    fn add_segments(
        &mut self,
        table: TableId,
        segments: &[SegmentMeta],
        flushed_upto: Position,
    ) -> Result<()> {
        let live = self.table_mut(table)?;
        if flushed_upto < live.flushed_upto(flushed_upto.partition) {
            return Err(conflict(format!(
                "table {} is flushed beyond position {flushed_upto}",
                live.def.name
            )));
        }
        live.flushed.insert(flushed_upto.partition, flushed_upto);
        live.insert_segments(segments)
    }

    fn replace(
        &mut self,
        table: TableId,
        inputs: &[SegmentId],
        outputs: &[SegmentMeta],
    ) -> Result<()> {
        let live = self.table_mut(table)?;
        for id in inputs {
            if live.segments.remove(id).is_none() {
                return Err(conflict(format!(
                    "segment {id} of table {} is not live",
                    live.def.name
                )));
            }
        }
        live.insert_segments(outputs)
    }

    fn assign(&mut self, partition: PartitionId, assignment: &Assignment) -> Result<()> {
        let current = self.epoch(partition);
        if assignment.epoch.0 != current.0 + 1 {
            return Err(Error::new(
                Code::Fenced,
                format!(
                    "partition {partition} is at epoch {current}, cannot go to {}",
                    assignment.epoch
                ),
            ));
        }
        Arc::make_mut(&mut self.assignments).insert(partition, assignment.clone());
        Ok(())
    }

    fn table_mut(&mut self, table: TableId) -> Result<&mut TableMeta> {
        match Arc::make_mut(&mut self.tables).get_mut(&table) {
            Some(found) => Ok(Arc::make_mut(found)),
            None => Err(no_table(table)),
        }
    }
}

impl TableMeta {
    fn insert_segments(&mut self, segments: &[SegmentMeta]) -> Result<()> {
        for segment in segments {
            if self.segments.insert(segment.id, Arc::new(segment.clone())).is_some() {
                return Err(conflict(format!("segment {} is live already", segment.id)));
            }
        }
        Ok(())
    }
}

/// Refuses a definition under which stored rows cannot be read: a column that came back from the
/// dead, or one whose values do not become what it is now.
fn check_columns(known: &TableMeta, def: &TableDef) -> Result<()> {
    for column in &def.schema.columns {
        let before = known.def.schema.columns.iter().find(|each| each.id == column.id);
        let fits = match before {
            None => column.id >= known.next_column,
            Some(before) => {
                before.kind == column.kind && before.field_type.widens_to(column.field_type)
            }
        };
        if !fits {
            let text =
                format!("column {:?} of table {} has id {}", column.name, def.name, column.id);
            return Err(conflict(format!("{text}, which another column has or had")));
        }
    }
    Ok(())
}

/// The id behind those that columns of a definition have.
fn behind(schema: &TableSchema) -> ColumnId {
    ColumnId(schema.columns.iter().map(|column| column.id.0).max().unwrap_or(0) + 1)
}

fn no_table(table: TableId) -> Error {
    Error::new(Code::TableNotFound, format!("table with id {table} does not exist"))
}

#[cfg(test)]
mod tests;
