//! Segments and components: every byte of what the metadata names, and files that it does not
//! name.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::bucket::COLD;
use crate::error::{Code, Error, Result};
use crate::schema::TableDef;
use crate::storage::components::{Components, object_path};
use crate::storage::folder::place;
use crate::storage::integrity::report::{Finding, Trouble};
use crate::storage::integrity::{Context, beside};
use crate::storage::meta::{SegmentMeta, Snapshot};
use crate::storage::segment::{LocalSegments, SegmentReader};
use crate::storage::tier::place::MARKER;

/// Rows that are read at a time from a damaged segment: what one damaged place costs at least.
const PIECE_ROWS: usize = 1024;

/// Bytes of all segments that the metadata names.
pub(super) fn bytes(snapshot: &Snapshot) -> u64 {
    let segments = snapshot.tables.values().flat_map(|table| table.segments.values());
    segments.map(|segment| segment.bytes).sum()
}

/// Reads all segments, notes what is wrong, and gives the paths of those that are damaged.
pub(super) fn segments(context: &mut Context<'_>, snapshot: &Snapshot) -> Vec<String> {
    let store = LocalSegments::new(context.env.disk.clone(), context.root.to_owned());
    let mut damaged = Vec::new();
    for table in snapshot.tables.values() {
        for meta in table.segments.values() {
            let verified = SegmentReader::open(&store, meta).and_then(|reader| reader.verify());
            match verified {
                Ok(()) => {}
                Err(error) if error.code() == Code::Corrupt => {
                    damaged.push(meta.path.clone());
                    let finding = damage(context, &store, &table.def, meta, &error);
                    context.found(finding);
                }
                Err(error) => context.found(unreadable(&table.def, meta, &error)),
            }
            context.read(meta.bytes);
        }
    }
    damaged
}

fn damage(
    context: &Context<'_>,
    store: &LocalSegments,
    table: &Arc<TableDef>,
    meta: &Arc<SegmentMeta>,
    error: &Error,
) -> Finding {
    let there = context.env.disk.exists(&place(context.root, &meta.path)).unwrap_or(true);
    let left = if there { rows_left(store, table, meta) } else { 0 };
    let gone = meta.rows.saturating_sub(left);
    let lost = if gone == 0 {
        "nothing: all of its rows verify".to_owned()
    } else {
        format!("{gone} of {} rows of {}", meta.rows, table.name)
    };
    let (trouble, remedy) = match (there, left) {
        (false, _) => (Trouble::SegmentMissing, "`kymo repair` takes it out of the metadata"),
        (true, 0) => (Trouble::SegmentDamaged, "`kymo repair` puts it aside"),
        (true, _) => (
            Trouble::SegmentDamaged,
            "`kymo repair` writes the rows that verify into a new segment and puts it aside",
        ),
    };
    let finding = Finding::damage(trouble, &meta.path, beside(error, &meta.path))
        .lost(lost)
        .remedy(format!("restore the file from a backup; {remedy}"));
    Finding {
        tables: vec![table.name.to_string()],
        time: Some(meta.time),
        rows_lost: Some(gone),
        rows_left: Some(left),
        ..finding
    }
}

/// The system does not give the bytes, which says nothing about them.
fn unreadable(table: &Arc<TableDef>, meta: &SegmentMeta, error: &Error) -> Finding {
    let finding = Finding::damage(Trouble::SegmentDamaged, &meta.path, error.message())
        .lost("cannot be told")
        .remedy("look after the device and the rights of the file, and check again");
    let tables = vec![table.name.to_string()];
    Finding { tables, time: Some(meta.time), repairable: false, ..finding }
}

fn rows_left(store: &LocalSegments, table: &Arc<TableDef>, meta: &Arc<SegmentMeta>) -> u64 {
    let Ok(reader) = SegmentReader::open_damaged(store, meta) else { return 0 };
    salvage(&reader, &table.schema.arrow(), &mut |_| Ok(())).unwrap_or_default()
}

/// Reads what can be read of a damaged segment, in order, and hands it on; gives the number of
/// rows. A piece is read whole or not at all, in all of the columns.
pub(super) fn salvage(
    reader: &SegmentReader,
    columns: &SchemaRef,
    take: &mut dyn FnMut(RecordBatch) -> Result<()>,
) -> Result<u64> {
    let total = reader.meta().rows;
    let mut rows = 0;
    for start in (0..total).step_by(PIECE_ROWS) {
        let piece = start..(start + PIECE_ROWS as u64).min(total);
        let read = reader.read(columns, std::slice::from_ref(&piece), PIECE_ROWS);
        let read = read.and_then(|batches| batches.collect::<Result<Vec<_>>>());
        match read {
            Ok(batches) => {
                rows += piece.end - piece.start;
                batches.into_iter().try_for_each(&mut *take)?;
            }
            Err(error) if error.code() == Code::Corrupt => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

/// Reads the components of all versions of all plugins.
pub(super) fn components(context: &mut Context<'_>, snapshot: &Snapshot) {
    let components = Components::new(context.env.disk.clone(), context.root);
    for plugin in snapshot.plugins.values() {
        for version in &plugin.versions {
            let Err(error) = components.read(version.digest) else { continue };
            let object = object_path(version.digest);
            let finding =
                Finding::damage(Trouble::ComponentDamaged, &object, beside(&error, &object))
                    .lost(format!("a version of plugin {:?} cannot be loaded", plugin.name))
                    .remedy("install the same component again, or restore the file from a backup");
            context.found(Finding { repairable: false, ..finding });
        }
    }
}

/// Notes the files of segments and components that nothing names.
pub(super) fn strays(context: &mut Context<'_>, snapshot: &Snapshot) -> Result<()> {
    let segments = snapshot.tables.values().flat_map(|table| table.segments.values());
    let mut named: HashSet<String> = segments.map(|segment| segment.path.clone()).collect();
    let versions = snapshot.plugins.values().flat_map(|plugin| &plugin.versions);
    named.extend(versions.map(|version| object_path(version.digest)));
    named.insert(MARKER.to_owned());
    for folder in ["data", COLD, "plugins"] {
        let path = context.root.join(folder);
        if context.env.disk.exists(&path).unwrap_or(false) {
            walk(context, &path, folder, &named)?;
        }
    }
    Ok(())
}

fn walk(
    context: &mut Context<'_>,
    folder: &Path,
    key: &str,
    named: &HashSet<String>,
) -> Result<()> {
    let listed = context.env.disk.list(folder);
    let failed = |error| Error::io(format_args!("list folder {}", folder.display()), error);
    for entry in listed.map_err(failed)? {
        let key = format!("{key}/{}", entry.name);
        if entry.is_dir {
            walk(context, &folder.join(&entry.name), &key, named)?;
        } else if !named.contains(&key) {
            let what = "nothing names it: a flush, merge or upload that did not come to its end, \
                        or rows that are merged or gone";
            context.found(Finding::note(Trouble::Stray, key, what));
        }
    }
    Ok(())
}
