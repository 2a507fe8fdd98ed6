//! Reading the journal past its damage: every group that verifies, and between them what is
//! lost.
//!
//! [`walk`] is what both sides use: a check counts and says which tables may miss rows, a repair
//! puts the groups into segments. Records are lost for a table only where it has not been
//! flushed beyond them: what is in segments, the journal only repeats.

use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};
use crate::ids::{Epoch, PartitionId, Position, Seq, TableId};
use crate::storage::frame::{End, FileHeader, FileReader};
use crate::storage::integrity::report::{Finding, Trouble};
use crate::storage::integrity::{Context, file_names};
use crate::storage::journal::{file_name, local};
use crate::storage::log::StoredGroup;
use crate::storage::meta::Snapshot;

/// What a walk comes across.
pub(super) enum Event<'a> {
    /// A group that verifies.
    Group(&'a StoredGroup),
    /// Records that are not there or do not verify.
    Lost(&'a Lost),
    /// A file ends in a write that was never acknowledged.
    Torn { path: &'a Path, offset: u64 },
    /// A file was read to its end, and this would continue it.
    File { bytes: u64, next: Option<(Epoch, Seq)> },
}

/// Records that cannot be had.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub trouble: Trouble,
    /// The file that they were in, or would be.
    pub path: PathBuf,
    pub offset: Option<u64>,
    pub what: String,
    /// The epoch and the first sequence that are lost, where that can be told.
    pub first: Option<(Epoch, Seq)>,
    /// The sequence of the same epoch that can be read again.
    pub until: Option<Seq>,
    /// The tables of those records whose headers verify.
    pub tables: Vec<TableId>,
}

impl Lost {
    fn is_of(&self, epoch: Epoch) -> bool {
        self.first.is_some_and(|(own, _)| own == epoch)
    }
}

/// Bytes of all files of the journal.
pub(super) fn bytes(context: &Context<'_>) -> Result<u64> {
    let files = local::list(context.env, &folder(context.root))?;
    let length = |path: &Path| context.env.disk.open(path).and_then(|file| file.len());
    Ok(files.iter().filter_map(|(_, path)| length(path).ok()).sum())
}

/// The folder of the journal's files.
pub(super) fn folder(root: &Path) -> PathBuf {
    root.join("wal").join(PartitionId::ONLY.to_string())
}

/// What a check learns of the journal.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    /// Whether anything is damaged or missing.
    pub damaged: bool,
    /// The newest owner that left a file.
    pub newest: Epoch,
}

/// Reads the journal and notes what is wrong.
pub(super) fn check(context: &mut Context<'_>, snapshot: &Snapshot) -> Result<Found> {
    let (mut damaged, mut end) = (false, None);
    let (env, root) = (context.env, context.root);
    let current = snapshot.epoch(PartitionId::ONLY);
    walk(env, root, current, &mut |event| {
        match event {
            Event::Group(group) => context.report.records += group.len() as u64,
            Event::Lost(lost) => {
                damaged = true;
                let finding = finding(context, snapshot, lost);
                context.found(finding);
            }
            Event::Torn { path, offset } => {
                let what = "it ends in a write that was never acknowledged";
                let finding = Finding::note(Trouble::JournalTorn, context.name(path), what);
                context.found(Finding { offset: Some(offset), ..finding });
            }
            Event::File { bytes, next } => {
                end = next;
                context.read(bytes);
            }
        }
        Ok(())
    })?;
    if let Some(finding) = cut_short(context, snapshot, end).filter(|_| !damaged) {
        damaged = true;
        context.found(finding);
    }
    unfinished(context)?;
    Ok(Found { damaged, newest: end.map(|(epoch, _)| epoch).unwrap_or_default() })
}

/// What recovery was about to write when it was interrupted.
fn unfinished(context: &mut Context<'_>) -> Result<()> {
    let folder = folder(context.root);
    for name in file_names(context.env, &folder)? {
        if !name.ends_with(".log") {
            let object = context.name(&folder.join(&name));
            context.found(Finding::note(Trouble::Stray, object, "an interrupted write"));
        }
    }
    Ok(())
}

/// The journal of the current epoch must reach as far as the metadata knows of records: its
/// file is never removed before the next start.
fn cut_short(
    context: &Context<'_>,
    snapshot: &Snapshot,
    end: Option<(Epoch, Seq)>,
) -> Option<Finding> {
    let epoch = snapshot.epoch(PartitionId::ONLY);
    let flushed = snapshot.tables.values().map(|table| table.flushed_upto(PartitionId::ONLY));
    let known = flushed.filter(|position| position.epoch == epoch).max()?;
    let next = end.filter(|(own, _)| *own == epoch).map_or(1, |(_, next)| next.0);
    let reached = Seq(next.saturating_sub(1));
    if reached >= known.seq {
        return None;
    }
    let what = format!(
        "it ends at record {reached} of epoch {epoch}, but segments hold rows up to record {}",
        known.seq
    );
    let (tables, lost) = sufferers(snapshot, &[], epoch, None);
    let finding = Finding::damage(Trouble::JournalMissing, "wal", what).lost(lost).remedy(
        "`kymo repair` goes on without what is missing; nothing acknowledged is, if this was a \
         power cut and writes did not wait for an fsync",
    );
    let object = context.name(&folder(context.root));
    Some(Finding { tables, object, ..finding })
}

fn finding(context: &Context<'_>, snapshot: &Snapshot, lost: &Lost) -> Finding {
    let (tables, words) = match lost.first {
        // Everything behind the damage goes on where the records before it end.
        Some((_, first)) if lost.until == Some(first) => (Vec::new(), "nothing".to_owned()),
        Some((epoch, first)) => {
            let last = lost.until.map(|until| Seq(until.0.saturating_sub(1)));
            // All lost records are known where each has a header that verifies.
            let count = last.map(|last| last.0.saturating_sub(first.0) + 1);
            let known =
                if count == Some(lost.tables.len() as u64) { &lost.tables[..] } else { &[] };
            let (tables, words) = sufferers(snapshot, known, epoch, last);
            let which = match last {
                Some(last) if last == first => format!("record {first} of epoch {epoch}"),
                Some(last) => format!("records {first} to {last} of epoch {epoch}"),
                None => format!("records from {first} of epoch {epoch} on"),
            };
            (tables, format!("{which}: {words}"))
        }
        None => {
            let all = snapshot.tables.values().map(|table| table.def.name.to_string());
            (all.collect(), "records that cannot be told any more".to_owned())
        }
    };
    let finding = Finding::damage(lost.trouble, context.name(&lost.path), lost.what.clone())
        .lost(words)
        .remedy("`kymo repair` keeps all other records, as segments, and begins a new journal");
    Finding { offset: lost.offset, tables, ..finding }
}

/// Which tables may miss rows when records up to `last` of an epoch are lost.
fn sufferers(
    snapshot: &Snapshot,
    known: &[TableId],
    epoch: Epoch,
    last: Option<Seq>,
) -> (Vec<String>, String) {
    let partition = PartitionId::ONLY;
    let last = Position { partition, epoch, seq: last.unwrap_or(Seq(u64::MAX)) };
    let tables = snapshot.tables.iter().filter(|(id, table)| {
        (known.is_empty() || known.contains(*id)) && table.flushed_upto(partition) < last
    });
    let tables: Vec<String> = tables.map(|(_, table)| table.def.name.to_string()).collect();
    let words = if tables.is_empty() {
        "no rows, all of them are in segments".to_owned()
    } else {
        format!("rows of {} that were not in segments yet", listed(&tables))
    };
    (tables, words)
}

fn listed(tables: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = tables[..tables.len().min(SHOWN)].join(", ");
    let or = if tables.len() == 1 { "" } else { " (one or more of them)" };
    match tables.len().saturating_sub(SHOWN) {
        0 => format!("{shown}{or}"),
        more => format!("{shown} and {more} more{or}"),
    }
}

/// Reads all files in order. `current` is the epoch that owns the newest one.
pub(super) fn walk(
    env: &crate::env::Env,
    root: &Path,
    current: Epoch,
    visit: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<()> {
    let folder = folder(root);
    let files = local::list(env, &folder)?;
    let mut walk = Walk { env, folder, current, joint: None, open: None };
    for (at, (number, path)) in files.iter().enumerate() {
        let next = files.get(at + 1);
        if at > 0 && files[at - 1].0 + 1 != *number {
            walk.miss_file(files[at - 1].0 + 1);
        }
        let follows = next.filter(|(next, _)| *next == number + 1);
        let next_header = follows.and_then(|(_, path)| walk.header(path));
        walk.file(*number, path, next_header, next.is_none(), visit)?;
    }
    walk.settle(None, visit)
}

struct Walk<'a> {
    env: &'a crate::env::Env,
    folder: PathBuf,
    current: Epoch,
    /// The epoch and the sequence that continue what was read.
    joint: Option<(Epoch, Seq)>,
    /// Lost records whose end is not known before the next file is.
    open: Option<Lost>,
}

impl Walk<'_> {
    fn miss_file(&mut self, number: u64) {
        if self.open.is_none() {
            self.open = Some(Lost {
                trouble: Trouble::JournalMissing,
                path: self.folder.join(file_name(number)),
                offset: None,
                what: "it is not there".to_owned(),
                first: self.joint,
                until: None,
                tables: Vec::new(),
            });
        }
    }

    fn header(&self, path: &Path) -> Option<FileHeader> {
        let file = self.env.disk.open(path).ok()?;
        FileReader::open(path.to_owned(), file, None).ok()?.header()
    }

    fn file(
        &mut self,
        number: u64,
        path: &Path,
        next: Option<FileHeader>,
        last: bool,
        visit: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        let disk = &self.env.disk;
        let failed = |error| Error::io(format_args!("open log file {}", path.display()), error);
        let open = || disk.open(path).map_err(failed);
        let stated = next.map(|next| next.previous_len);
        let bytes = open()?.len().unwrap_or_default();
        let reader = match FileReader::open(path.to_owned(), open()?, stated) {
            Ok(reader) => Some(reader),
            Err(error) if error.code() == Code::Corrupt => {
                let found = FileReader::open_headless(path.to_owned(), open()?, stated)?;
                let found = found.and_then(|reader| self.identify(reader, number, next, last));
                let header = found.as_ref().and_then(FileReader::header);
                let first = header.map_or(self.joint, |header| Some(self.expected(&header)));
                self.lose(path, "its header does not verify", first, visit)?;
                found
            }
            Err(error) => return Err(error),
        };
        match reader {
            Some(reader) if reader.header().is_some() => self.groups(path, reader, visit)?,
            // Never finished being made: nothing was in it, if it is the last one.
            Some(_) if last => visit(Event::Torn { path, offset: 0 })?,
            Some(_) => self.lose(path, "it holds no record", self.joint, visit)?,
            None => {}
        }
        visit(Event::File { bytes, next: self.joint })
    }

    /// The epoch and the first sequence that a file should have.
    fn expected(&self, header: &FileHeader) -> (Epoch, Seq) {
        let first = match self.joint {
            Some((epoch, next)) if epoch == header.epoch => next,
            Some(_) => Seq(1),
            // What came before the oldest file was let go.
            None => header.first,
        };
        (header.epoch, first)
    }

    /// Finds out whose records a file holds whose header does not verify: they continue the
    /// file before, or are continued by the next, or are those of the newest owner, or those of
    /// the one before the next file's.
    fn identify(
        &self,
        mut reader: FileReader,
        number: u64,
        next: Option<FileHeader>,
        last: bool,
    ) -> Option<FileReader> {
        let first = reader.next_seq();
        let continued = self.joint.filter(|(_, seq)| *seq <= first).map(|(epoch, _)| epoch);
        let continues = next.filter(|next| next.first > first).map(|next| next.epoch);
        let newest = (last && self.joint.is_none_or(|(epoch, _)| epoch < self.current))
            .then_some(self.current);
        // A file of another epoch begins at 1, which continues nothing.
        let epoch = if first == Seq(1) { continues.or(newest) } else { continued.or(continues) };
        let before_next = next.map(|next| Epoch(next.epoch.0.saturating_sub(1)));
        let before_next = before_next.filter(|_| next.is_some_and(|next| next.first == Seq(1)));
        let partition = PartitionId::ONLY;
        let epoch = epoch.or(newest).or(before_next)?;
        reader.assume(FileHeader {
            partition,
            epoch,
            number,
            first,
            previous_len: 0,
            before: (Epoch(0), Seq(0)),
        });
        Some(reader)
    }

    fn groups(
        &mut self,
        path: &Path,
        mut reader: FileReader,
        visit: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(header) = reader.header() else { return Ok(()) };
        self.join(path, &header, visit)?;
        loop {
            match reader.next_group() {
                Ok(Some(group)) => {
                    self.settle(group.first().map(|(position, _)| *position), visit)?;
                    visit(Event::Group(&group))?;
                }
                Ok(None) => break,
                Err(error) if error.code() == Code::Corrupt => {
                    let gap = reader.pass()?;
                    self.open_lost(Lost {
                        trouble: Trouble::JournalDamaged,
                        path: path.to_owned(),
                        offset: Some(gap.bytes.start),
                        what: error.message().rsplit(": ").next().unwrap_or_default().to_owned(),
                        first: Some((header.epoch, gap.first)),
                        until: None,
                        tables: gap.tables,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        if reader.end() == Some(End::Torn) && self.open.is_none() {
            visit(Event::Torn { path, offset: reader.groups_end() })?;
        }
        self.joint = Some((header.epoch, reader.next_seq()));
        Ok(())
    }

    /// Looks whether a file continues what was read before.
    fn join(
        &mut self,
        path: &Path,
        header: &FileHeader,
        visit: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        let (partition, epoch) = (PartitionId::ONLY, header.epoch);
        let start = Position { partition, epoch, seq: header.first };
        let explained = self.open.as_ref().is_some_and(|lost| lost.is_of(epoch));
        self.settle(Some(start), visit)?;
        let expected = self.expected(header);
        if explained || expected.1 == header.first {
            return Ok(());
        }
        self.open_lost(Lost {
            trouble: Trouble::JournalMissing,
            path: path.to_owned(),
            offset: Some(0),
            what: "records before it are not there".to_owned(),
            first: Some(expected),
            until: None,
            tables: Vec::new(),
        });
        self.settle(Some(start), visit)
    }

    fn lose(
        &mut self,
        path: &Path,
        what: &str,
        first: Option<(Epoch, Seq)>,
        visit: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        self.settle(None, visit)?;
        self.open_lost(Lost {
            trouble: Trouble::JournalDamaged,
            path: path.to_owned(),
            offset: Some(0),
            what: what.to_owned(),
            first,
            until: None,
            tables: Vec::new(),
        });
        Ok(())
    }

    /// Notes records as lost up to the next one that can be read.
    fn open_lost(&mut self, lost: Lost) {
        match &mut self.open {
            Some(open) => open.tables.extend(lost.tables),
            None => self.open = Some(lost),
        }
    }

    /// Ends what is lost before a record, or before the end of the journal.
    fn settle(
        &mut self,
        before: Option<Position>,
        visit: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(mut lost) = self.open.take() else { return Ok(()) };
        lost.until = before.filter(|at| lost.is_of(at.epoch)).map(|at| at.seq);
        visit(Event::Lost(&lost))
    }
}
