//! Doing what a check says can be done, without deleting anything.
//!
//! Every step leaves a store that can be checked and repaired again, should the process end in
//! between: files are moved away before what replaces them is named, and rows are in segments
//! before the journal that held them goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::DateTime;
use kymo_config::Settings;
use serde::Serialize;

use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::ids::{Epoch, PartitionId, SLOTS, Slot};
use crate::schema::{ColumnKind, TableDef};
use crate::storage::committer::{Committer, Habits};
use crate::storage::folder::place;
use crate::storage::integrity::journal::{self, Event};
use crate::storage::integrity::report::{Report, Trouble};
use crate::storage::integrity::{Progress, Survey, lock_existing, objects, survey};
use crate::storage::journal::{Drive, local};
use crate::storage::meta::{Assignment, Op, SegmentMeta, Snapshot};
use crate::storage::metalog::{LocalMetaLog, MetaLog};
use crate::storage::owner::{self, Owner};
use crate::storage::poison::Poison;
use crate::storage::recover::{Replay, commit, take};
use crate::storage::segment::{
    Encoding, LocalSegments, Origin, SegmentReader, SegmentWriter, Target,
};
use crate::storage::sort::{project, window_start};
use crate::storage::version::SegmentFiles;

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Repaired {
    /// What was wrong.
    pub before: Report,
    /// What was done, one sentence each; empty where there was nothing to do.
    pub actions: Vec<String>,
    /// Where the files went that were taken away.
    pub salvage: Option<PathBuf>,
    /// What is wrong now.
    pub after: Report,
}

/// Checks a store and mends what can be mended. Blocks.
///
/// # Errors
/// As [`super::check`]; `disk_full` and I/O errors, after which it can be run again.
pub fn repair(
    env: &Env,
    root: &Path,
    settings: &Settings,
    progress: &mut dyn FnMut(Progress),
) -> Result<Repaired> {
    let _lock = lock_existing(env, root)?;
    let found = survey(env, root, progress)?;
    let before = found.report.clone();
    let head = found.metadata.snapshot.as_ref();
    let head = head.filter(|_| before.damage().any(|finding| finding.repairable));
    let Some(head) = head else {
        let after = before.clone();
        return Ok(Repaired { before, actions: Vec::new(), salvage: None, after });
    };
    let owner = owner::claim(env, root, head, settings.storage.take_over)?;
    let mut bench = Bench::new(env, root, settings, owner);
    bench.keep_report(&before)?;
    bench.metadata(&found)?;
    bench.rows(&found)?;
    let after = survey(env, root, progress)?.report;
    Ok(Repaired { before, actions: bench.actions, salvage: Some(bench.salvage), after })
}

struct Bench<'a> {
    env: &'a Env,
    root: &'a Path,
    settings: &'a Settings,
    owner: Option<Owner>,
    salvage: PathBuf,
    actions: Vec<String>,
}

impl<'a> Bench<'a> {
    fn new(env: &'a Env, root: &'a Path, settings: &'a Settings, owner: Option<Owner>) -> Self {
        let now = DateTime::from_timestamp_nanos(env.clock.now_ns());
        let name = format!("salvage-{}", now.format("%Y-%m-%dT%H%M%SZ"));
        let mut salvage = root.join(&name);
        let mut count = 1;
        while env.disk.exists(&salvage).unwrap_or(false) {
            count += 1;
            salvage = root.join(format!("{name}-{count}"));
        }
        Bench { env, root, settings, owner, salvage, actions: Vec::new() }
    }

    fn did(&mut self, what: impl Into<String>) {
        self.actions.push(what.into());
    }

    fn name(&self, path: &Path) -> String {
        path.strip_prefix(self.root).unwrap_or(path).display().to_string()
    }

    /// Leaves a note beside what is moved away, of why it was.
    fn keep_report(&self, report: &Report) -> Result<()> {
        let path = self.salvage.join("report.json");
        let text = serde_json::to_vec_pretty(report)
            .map_err(|error| Error::internal(format!("write a report: {error}")))?;
        let write = || {
            self.env.disk.create_dir_all(&self.salvage)?;
            let mut file = self.env.disk.create(&path)?;
            file.append(&text)?;
            file.sync()?;
            self.env.disk.sync_dir(&self.salvage)
        };
        write().map_err(|error| Error::io(format_args!("write {}", path.display()), error))
    }

    /// Moves a file of the store to the salvage folder, under the same path.
    fn put_aside(&mut self, path: &Path) -> Result<()> {
        let name = self.name(path);
        let target = self.salvage.join(path.strip_prefix(self.root).unwrap_or(path));
        let disk = &self.env.disk;
        let folders = [target.parent(), path.parent()];
        let moved = || {
            if let Some(folder) = folders[0] {
                disk.create_dir_all(folder)?;
            }
            disk.rename(path, &target)?;
            folders.iter().flatten().try_for_each(|folder| disk.sync_dir(folder))
        };
        moved().map_err(|error| Error::io(format_args!("move {name} away"), error))?;
        self.did(format!("moved {name} to {}", self.name(&target)));
        Ok(())
    }

    /// Makes the metadata one that opens.
    fn metadata(&mut self, found: &Survey) -> Result<()> {
        for path in &found.metadata.damaged {
            self.put_aside(path)?;
        }
        let Some(snapshot) = found.metadata.snapshot.as_ref().filter(|_| found.metadata.patched)
        else {
            return Ok(());
        };
        let log = LocalMetaLog::open(self.env.clone(), &self.root.join("meta"))?;
        log.checkpoint(&self.owned(found, snapshot))?;
        self.did(format!("wrote the metadata that is left as checkpoint {}", snapshot.version));
        // Segments of an edit that is lost are named by nothing now: a start would delete them.
        let strays = found.report.findings.iter().filter(|it| it.trouble == Trouble::Stray);
        let strays: Vec<PathBuf> = strays.map(|it| place(self.root, &it.object)).collect();
        for path in strays {
            if self.env.disk.exists(&path).unwrap_or(false) {
                self.put_aside(&path)?;
            }
        }
        Ok(())
    }

    /// The metadata with its newest owner, should the edit that said so be lost: the next one
    /// must not number its records like one before.
    fn owned(&self, found: &Survey, snapshot: &Snapshot) -> Snapshot {
        let mut snapshot = snapshot.clone();
        let epoch = found.metadata.newest.max(found.journal.newest);
        let epoch = epoch.max(snapshot.epoch(PartitionId::ONLY));
        let (node, slots) = (self.settings.node.id.clone(), (Slot(0), Slot(SLOTS - 1)));
        let owner = Assignment { node, epoch, slots };
        let owners = Arc::make_mut(&mut snapshot.assignments);
        owners.entry(PartitionId::ONLY).or_insert(owner).epoch = epoch;
        snapshot
    }

    /// Mends segments and journal, as a new owner of the store.
    fn rows(&mut self, found: &Survey) -> Result<()> {
        let meta = LocalMetaLog::open(self.env.clone(), &self.root.join("meta"))?;
        let (head, author) =
            take(&meta, meta.head()?, self.env, self.settings, self.owner.as_ref())?;
        let committer = Committer::start(
            self.env.clone(),
            Box::new(meta),
            head,
            author,
            Poison::default(),
            Box::new(|_, _| {}),
            Habits::alone(Drive::Manual, u64::MAX),
        )?;
        let store = LocalSegments::new(self.env.disk.clone(), self.root.to_owned());
        let files = SegmentFiles::new(Arc::new(store), 0);
        let target = Target {
            store: files.store.clone(),
            env: self.env.clone(),
            settings: self.settings.segment.clone(),
        };
        self.segments(found, &committer, &target)?;
        // Without an edit the journal may hold records of tables that nobody knows any more: a
        // start would let them go.
        if found.journal.damaged || found.metadata.patched {
            self.journal(&committer, &target, &files)?;
        }
        committer.close();
        Ok(())
    }

    fn segments(&mut self, found: &Survey, committer: &Committer, target: &Target) -> Result<()> {
        let head = committer.head();
        for table in head.tables.values() {
            for meta in table.segments.values() {
                if found.segments.contains(&meta.path) {
                    self.segment(committer, target, &table.def, meta)?;
                }
            }
        }
        Ok(())
    }

    /// Puts the rows that verify into a new segment, and the old one aside.
    ///
    /// The edit is that of a merge: rows that damage took were not deleted by anybody, so what
    /// was computed from them stays as it is.
    fn segment(
        &mut self,
        committer: &Committer,
        target: &Target,
        table: &Arc<TableDef>,
        meta: &Arc<SegmentMeta>,
    ) -> Result<()> {
        let left = rewrite(target, table, meta)?;
        let rows = left.as_ref().map_or(0, |left| left.rows);
        let told = match &left {
            Some(left) => format!(
                "wrote {rows} of {} rows of {} that verify to {}",
                meta.rows, table.name, left.path
            ),
            None => format!("took {} out of {}", meta.path, table.name),
        };
        commit(
            committer,
            vec![Op::Replace {
                table: table.id,
                inputs: vec![meta.id],
                outputs: left.into_iter().collect(),
            }],
        )?;
        self.did(told);
        let path = place(self.root, &meta.path);
        if self.env.disk.exists(&path).unwrap_or(false) {
            self.put_aside(&path)?;
        }
        Ok(())
    }

    /// Puts the rows of all records that verify into segments, and the journal aside.
    fn journal(
        &mut self,
        committer: &Committer,
        target: &Target,
        files: &SegmentFiles,
    ) -> Result<()> {
        let head = committer.head();
        let current = Epoch(head.epoch(PartitionId::ONLY).0.saturating_sub(1));
        let mut replay = Replay::new(committer, target, files, &head, self.settings);
        let mut unfit = Vec::new();
        journal::walk(self.env, self.root, current, &mut |event| {
            let Event::Group(group) = event else { return Ok(()) };
            for (position, record) in group {
                match replay.apply(*position, record) {
                    Err(error) if matches!(error.code(), Code::Corrupt | Code::Internal) => {
                        unfit.push(format!("left out record {position}: {error}"));
                    }
                    applied => applied?,
                }
            }
            Ok(())
        })?;
        replay.flush_all()?;
        let rows = replay.rows();
        drop(replay);
        self.actions.extend(unfit);
        self.did(format!("wrote {rows} rows of the journal's records to segments"));
        // The newest first: what remains after an interruption still begins where it began.
        for (_, path) in local::list(self.env, &journal::folder(self.root))?.into_iter().rev() {
            self.put_aside(&path)?;
        }
        Ok(())
    }
}

fn rewrite(
    target: &Target,
    table: &Arc<TableDef>,
    meta: &Arc<SegmentMeta>,
) -> Result<Option<SegmentMeta>> {
    let reader = match SegmentReader::open_damaged(target.store.as_ref(), meta) {
        Err(error) if error.code() == Code::Corrupt => return Ok(None),
        reader => reader?,
    };
    let held = |id| meta.columns.iter().any(|stats| stats.column == id);
    let columns = table.schema.columns.iter();
    let columns = columns.filter(|it| it.kind != ColumnKind::Field || held(it.id));
    let names = columns.map(|column| column.name.as_str());
    let columns = project(&table.schema.arrow(), names);
    let window = window_start(meta.time.first, table.options.window_ns);
    let mut writer =
        SegmentWriter::create(target, table, window, columns.clone(), Encoding::Thorough)?;
    let rows = objects::salvage(&reader, &columns, &mut |batch| writer.write(batch))?;
    if rows == 0 {
        return Ok(None);
    }
    let origin = Origin { positions: meta.seq_range, level: meta.level, late: meta.late };
    writer.finish(origin).map(Some)
}
