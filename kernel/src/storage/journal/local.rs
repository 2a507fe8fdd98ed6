//! The log in the data folder: `wal/<partition>/<number>.log`, read back, cut and trimmed.
//!
//! Opening a partition for writing first reads what is there. A file without records is
//! removed; records that were not known to be durable are copied into a file of their own;
//! only then does the new epoch's file begin. No file is ever changed after its writer ended.
//! What is kept of earlier files as history lies in a folder of its own
//! ([`kept`](crate::storage::journal::kept)) and is not read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::env::{DiskFile, Env};
use crate::error::{Code, Error, Result};
use crate::ids::{Epoch, PartitionId, Position, Seq};
use crate::storage::folder::entries;
use crate::storage::frame::{End, FILE_HEADER, FileHeader, FileReader, frame_header};
use crate::storage::journal::files::{FileInfo, Files};
use crate::storage::journal::kept::{Keep, Kept};
use crate::storage::journal::{Drive, Journal, Limits, file_name};
use crate::storage::log::{DurableLog, GroupStream, LogWriter, StoredGroup};
use crate::storage::poison::Poison;

/// A [`DurableLog`] of files below one folder.
pub struct LocalLog {
    env: Env,
    root: PathBuf,
    limits: Limits,
    drive: Drive,
    poison: Poison,
    partitions: Mutex<BTreeMap<PartitionId, Known>>,
}

#[derive(Clone, Default)]
struct Known {
    files: Arc<Files>,
    scanned: Option<Scanned>,
}

/// What reading a partition to its end found.
#[derive(Clone, Default)]
struct Scanned {
    files: Vec<(FileInfo, Tail)>,
    epoch: Epoch,
}

/// The files with which an owner begins.
struct Settled {
    files: Vec<FileInfo>,
    /// The last record of the owner before.
    before: (Epoch, Seq),
}

/// How a file ends.
#[derive(Clone, Copy)]
struct Tail {
    /// `None` for a file that was never finished being made.
    header: Option<FileHeader>,
    /// How much of it is known to be durable.
    durable: u64,
    /// Where its last whole group ends.
    end: u64,
    /// Whether bytes follow that are no whole group.
    torn: bool,
}

impl LocalLog {
    /// A log below the folder `root`, which need not exist yet.
    #[must_use]
    pub fn new(env: Env, root: PathBuf, limits: Limits, drive: Drive, poison: Poison) -> Self {
        LocalLog { env, root, limits, drive, poison, partitions: Mutex::default() }
    }

    /// As [`DurableLog::open`], with the journal's own type.
    ///
    /// # Errors
    /// `fenced` where the log holds records of this epoch or a later one; `corrupt`; I/O
    /// errors.
    pub fn open_journal(&self, partition: PartitionId, epoch: Epoch) -> Result<Arc<Journal>> {
        let scanned = self.scanned(partition)?;
        if scanned.epoch >= epoch {
            return Err(Error::new(
                Code::Fenced,
                format!(
                    "the log of partition {partition} is at epoch {}, cannot be opened for {epoch}",
                    scanned.epoch
                ),
            ));
        }
        let dir = self.dir(partition);
        self.env
            .disk
            .create_dir_all(&dir)
            .map_err(|error| Error::io(format_args!("create folder {}", dir.display()), error))?;
        let files = self.files(partition);
        let settled = self.settle(&dir, scanned)?;
        files.begin(settled.files, settled.before, Kept::load(&self.env, &dir)?);
        let journal = Journal::start(
            &self.env,
            dir,
            partition,
            epoch,
            files,
            self.poison.clone(),
            self.limits,
            self.drive,
        )?;
        Ok(Arc::new(journal))
    }

    /// The files of a partition that are complete.
    #[must_use]
    pub fn files(&self, partition: PartitionId) -> Arc<Files> {
        self.partitions.lock().entry(partition).or_default().files.clone()
    }

    /// Bytes of the files that [`DurableLog::read`] reads.
    ///
    /// # Errors
    /// I/O errors.
    pub fn bytes(&self, partition: PartitionId) -> Result<u64> {
        let mut bytes = 0;
        for (_, path) in list(&self.env, &self.dir(partition))? {
            let length = self.open_file(&path)?.len();
            bytes += length.map_err(|error| {
                Error::io(format_args!("read log file {}", path.display()), error)
            })?;
        }
        Ok(bytes)
    }

    fn dir(&self, partition: PartitionId) -> PathBuf {
        self.root.join(partition.to_string())
    }

    fn scanned(&self, partition: PartitionId) -> Result<Scanned> {
        let known = self.partitions.lock().get(&partition).and_then(|known| known.scanned.clone());
        if let Some(scanned) = known {
            return Ok(scanned);
        }
        let mut reader = Reader::new(self, partition)?;
        while reader.advance()?.is_some() {}
        Ok(reader.scanned)
    }

    /// Gives the files that count, all of them durable to the length they are noted with.
    fn settle(&self, dir: &Path, scanned: Scanned) -> Result<Settled> {
        let mut files = scanned.files;
        let mut before = (Epoch(0), Seq(0));
        self.remove_unfinished(dir)?;
        // Files that came to nothing: the last ones only, so that no number is missing.
        while let Some((last, tail)) =
            files.pop_if(|(last, tail)| tail.header.is_none() || last.tables.is_empty())
        {
            before = tail.header.map_or(before, |header| header.before);
            self.remove(dir, &last.path)?;
        }
        let newest = files.last().cloned();
        let mut kept: Vec<FileInfo> = files
            .into_iter()
            .map(|(info, tail)| FileInfo { bytes: tail.durable, ..info })
            .collect();
        let Some((last, tail)) = newest else { return Ok(Settled { files: kept, before }) };
        before = (last.last.epoch, last.last.seq);
        if tail.torn {
            tracing::warn!(
                file = %last.path.display(),
                offset = tail.end,
                "log ended in a write that was never acknowledged, left behind"
            );
        }
        if let Some(header) = tail.header.filter(|_| tail.end > tail.durable) {
            kept.push(self.copy_tail(dir, &last.path, &header, &tail)?);
        }
        Ok(Settled { files: kept, before })
    }

    /// Copies the groups behind the durable part of a file into the next file, which gets its
    /// name when it is durable.
    fn copy_tail(
        &self,
        dir: &Path,
        path: &Path,
        header: &FileHeader,
        tail: &Tail,
    ) -> Result<FileInfo> {
        let mut reader = FileReader::open(path.to_owned(), self.open_file(path)?, None)?;
        let number = header.number + 1;
        let target = dir.join(file_name(number));
        let unfinished = dir.join(format!("{}{UNFINISHED}", file_name(number)));
        let failed =
            |error| Error::io(format_args!("copy the tail of log file {}", path.display()), error);
        let mut copy = self.env.disk.create(&unfinished).map_err(failed)?;
        let mut info =
            FileInfo::new(number, target.clone(), FILE_HEADER as u64, Position::default());
        while let Some(group) = reader.next_group()? {
            if reader.group_start() < tail.durable {
                continue;
            }
            if info.tables.is_empty() {
                let first = group.first().map(|(position, _)| position.seq).unwrap_or_default();
                let before = (header.epoch, Seq(first.0.saturating_sub(1)));
                let previous_len = tail.durable;
                let begin = FileHeader { number, first, previous_len, before, ..*header };
                copy.append(&begin.encode()).map_err(failed)?;
            }
            let count = group.len();
            for (index, (position, record)) in group.iter().enumerate() {
                let mark = FILE_HEADER as u64;
                let last = index + 1 == count;
                let head = frame_header(record, position.seq, last, mark, record.written_ms);
                copy.append_all(&[&head, &record.payload]).map_err(failed)?;
                info.bytes += (head.len() + record.payload.len()) as u64;
                info.note(record.table, *position, record.written_ms);
            }
        }
        let publish = || {
            self.env.disk.rename(&unfinished, &target)?;
            self.env.disk.sync_dir(dir)
        };
        copy.sync().and_then(|()| publish()).map_err(failed)?;
        Ok(info)
    }

    fn open_file(&self, path: &Path) -> Result<Box<dyn DiskFile>> {
        self.env
            .disk
            .open(path)
            .map_err(|error| Error::io(format_args!("open log file {}", path.display()), error))
    }

    fn remove(&self, dir: &Path, path: &Path) -> Result<()> {
        let disk = &self.env.disk;
        disk.remove(path)
            .and_then(|()| disk.sync_dir(dir))
            .map_err(|error| Error::io(format_args!("remove log file {}", path.display()), error))
    }

    fn remove_unfinished(&self, dir: &Path) -> Result<()> {
        let entries = self.env.disk.list(dir);
        let failed = |error| Error::io(format_args!("list folder {}", dir.display()), error);
        for entry in entries.map_err(failed)? {
            if entry.name.ends_with(UNFINISHED) {
                self.remove(dir, &dir.join(entry.name))?;
            }
        }
        Ok(())
    }
}

/// What the names of files end in that are still being written by recovery.
const UNFINISHED: &str = ".tmp";

impl DurableLog for LocalLog {
    fn open(&self, partition: PartitionId, epoch: Epoch) -> Result<Arc<dyn LogWriter>> {
        Ok(self.open_journal(partition, epoch)?)
    }

    fn read(&self, partition: PartitionId, from: Position) -> Result<GroupStream<'_>> {
        let mut reader = Reader::new(self, partition)?;
        let mut failed = false;
        Ok(Box::new(std::iter::from_fn(move || {
            while !failed {
                match reader.advance() {
                    Ok(Some(group)) if group.last().is_some_and(|(at, _)| *at > from) => {
                        return Some(Ok(group));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(error) => {
                        failed = true;
                        return Some(Err(error));
                    }
                }
            }
            None
        })))
    }

    fn trim(&self, partition: PartitionId, upto: Position) -> Result<()> {
        self.files(partition).trim(&self.env, upto, Keep::NOTHING)?;
        Ok(())
    }
}

/// Reads a partition's files one after the other and checks how they join.
struct Reader<'log> {
    log: &'log LocalLog,
    partition: PartitionId,
    /// Files that were not begun yet, next one last.
    ahead: Vec<(u64, PathBuf)>,
    current: Option<(FileReader, FileInfo)>,
    /// Epoch and sequence that continue the file before.
    joint: Option<(Epoch, Seq)>,
    scanned: Scanned,
}

impl<'log> Reader<'log> {
    fn new(log: &'log LocalLog, partition: PartitionId) -> Result<Self> {
        let dir = log.dir(partition);
        let mut ahead = list(&log.env, &dir)?;
        if let Some(gap) = ahead.windows(2).find(|pair| pair[0].0 + 1 != pair[1].0) {
            return Err(Error::new(
                Code::Corrupt,
                format!("log file number {} is missing in folder {}", gap[0].0 + 1, dir.display()),
            )
            .with_hint("restore the file from a backup, or run `kymo repair`; the store does not open without it"));
        }
        ahead.reverse();
        Ok(Reader {
            log,
            partition,
            ahead,
            current: None,
            joint: None,
            scanned: Scanned::default(),
        })
    }

    fn advance(&mut self) -> Result<Option<StoredGroup>> {
        loop {
            let Some((reader, info)) = &mut self.current else {
                if !self.begin()? {
                    self.finish();
                    return Ok(None);
                }
                continue;
            };
            if let Some(group) = reader.next_group()? {
                for (position, record) in &group {
                    info.note(record.table, *position, record.written_ms);
                }
                return Ok(Some(group));
            }
            self.end_file();
        }
    }

    /// Opens the next file; false where there is none.
    fn begin(&mut self) -> Result<bool> {
        let Some((number, path)) = self.ahead.pop() else { return Ok(false) };
        let stated = match self.ahead.last() {
            Some((_, next)) => self.stated(next)?,
            None => None,
        };
        let file = self.log.open_file(&path)?;
        let reader = FileReader::open(path.clone(), file, stated)?;
        let mut last = Position { partition: self.partition, ..Position::default() };
        if let Some(header) = reader.header() {
            self.check_joint(&path, number, header.number, header.epoch, header.first)?;
            last = Position {
                partition: self.partition,
                epoch: header.epoch,
                seq: Seq(header.first.0.saturating_sub(1)),
            };
            self.scanned.epoch = header.epoch;
        }
        let info = FileInfo::new(number, path, 0, last);
        self.current = Some((reader, info));
        Ok(true)
    }

    /// The length that a file's header states for the file before it; `None` where the file
    /// was never finished being made.
    fn stated(&self, path: &Path) -> Result<Option<u64>> {
        let reader = FileReader::open(path.to_owned(), self.log.open_file(path)?, None)?;
        Ok(reader.header().map(|header| header.previous_len))
    }

    /// A file continues the one before, or begins a later epoch.
    fn check_joint(
        &self,
        path: &Path,
        named: u64,
        number: u64,
        epoch: Epoch,
        first: Seq,
    ) -> Result<()> {
        let joins = match self.joint {
            None => true,
            Some((before, next)) => {
                (epoch == before && first == next) || (epoch > before && first == Seq(1))
            }
        };
        if number == named && joins {
            return Ok(());
        }
        Err(Error::new(
            Code::Corrupt,
            format!(
                "log file {} at offset 0: number {number}, epoch {epoch}, first sequence {first} \
                 do not continue the file before",
                path.display()
            ),
        )
        .with_hint("restore the folder from a backup, or run `kymo repair`; the store does not open with a gap"))
    }

    fn end_file(&mut self) {
        let Some((reader, info)) = self.current.take() else { return };
        if let Some(header) = reader.header() {
            self.joint = Some((header.epoch, reader.next_seq()));
        }
        let tail = Tail {
            header: reader.header(),
            durable: reader.durable(),
            end: reader.groups_end(),
            torn: reader.end() != Some(End::Clean),
        };
        self.scanned.files.push((info, tail));
    }

    fn finish(&mut self) {
        let mut partitions = self.log.partitions.lock();
        let known = partitions.entry(self.partition).or_default();
        known.scanned = Some(std::mem::take(&mut self.scanned));
    }
}

pub(crate) fn list(env: &Env, dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in entries(&*env.disk, dir)? {
        let number = entry.name.strip_suffix(".log").and_then(|stem| stem.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| !entry.is_dir) {
            files.push((number, dir.join(&entry.name)));
        }
    }
    files.sort();
    Ok(files)
}
