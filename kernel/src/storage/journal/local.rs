//! The log in the data folder: `wal/<partition>/<number>.log`, read back, cut and trimmed.
//!
//! Opening a partition for writing first reads what is there: a torn tail is cut, a file that
//! was never finished being made is removed, and only then does a new file begin. An older
//! epoch's file is never appended to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::ids::{Epoch, PartitionId, Position, Seq};
use crate::storage::frame::{End, FileReader};
use crate::storage::journal::files::{FileInfo, Files};
use crate::storage::journal::{Drive, Journal, Limits};
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
    files: Vec<FileInfo>,
    epoch: Epoch,
    /// The last file's torn tail: its path and how much of it to keep.
    torn: Option<(PathBuf, u64)>,
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
        let kept = self.cut(&dir, scanned)?;
        kept.into_iter().for_each(|info| files.seal(info));
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

    /// Makes the torn tail disappear for good and gives the files that remain.
    fn cut(&self, dir: &std::path::Path, scanned: Scanned) -> Result<Vec<FileInfo>> {
        let Scanned { mut files, torn, .. } = scanned;
        let Some((path, keep)) = torn else { return Ok(files) };
        let disk = &self.env.disk;
        let cut = || {
            if keep == 0 {
                disk.remove(&path)?;
                return disk.sync_dir(dir);
            }
            let mut file = disk.open(&path)?;
            file.truncate(keep)?;
            file.sync()
        };
        cut().map_err(|error| {
            Error::io(format_args!("cut the torn tail of log file {}", path.display()), error)
        })?;
        tracing::warn!(
            file = %path.display(),
            offset = keep,
            "log ended in a write that was never acknowledged, cut"
        );
        match files.last_mut() {
            Some(last) if keep == 0 && last.path == path => {
                files.pop();
            }
            Some(last) => last.bytes = keep,
            None => {}
        }
        Ok(files)
    }
}

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
        self.files(partition).trim(&self.env, upto)?;
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
            .with_hint("restore the file from a backup; the store does not open without it"));
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
                    info.note(record.table, *position);
                }
                return Ok(Some(group));
            }
            self.end_file();
        }
    }

    /// Opens the next file; false where there is none.
    fn begin(&mut self) -> Result<bool> {
        let Some((number, path)) = self.ahead.pop() else { return Ok(false) };
        let durable = match self.ahead.last() {
            Some((_, next)) => self.vouched(next)?,
            None => 0,
        };
        let file = self.open_file(&path)?;
        let reader = FileReader::open(path.clone(), file, durable)?;
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
        let info = FileInfo::new(number, path, reader.len(), last);
        self.current = Some((reader, info));
        Ok(true)
    }

    /// How much of the file before it a file's header vouches for.
    fn vouched(&self, path: &std::path::Path) -> Result<u64> {
        let reader = FileReader::open(path.to_owned(), self.open_file(path)?, 0)?;
        Ok(reader.header().map_or(0, |header| header.previous_len))
    }

    fn open_file(&self, path: &std::path::Path) -> Result<Box<dyn crate::env::DiskFile>> {
        let disk = &self.log.env.disk;
        disk.open(path)
            .map_err(|error| Error::io(format_args!("open log file {}", path.display()), error))
    }

    /// A file continues the one before, or begins a later epoch.
    fn check_joint(
        &self,
        path: &std::path::Path,
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
        .with_hint("restore the folder from a backup; the store does not open with a gap"))
    }

    fn end_file(&mut self) {
        let Some((reader, info)) = self.current.take() else { return };
        if let Some(header) = reader.header() {
            self.joint = Some((header.epoch, reader.next_seq()));
        }
        if let Some(End::Torn { keep }) = reader.end() {
            self.scanned.torn = Some((info.path.clone(), keep));
        }
        self.scanned.files.push(info);
    }

    fn finish(&mut self) {
        let mut partitions = self.log.partitions.lock();
        let known = partitions.entry(self.partition).or_default();
        known.scanned = Some(std::mem::take(&mut self.scanned));
    }
}

fn list(env: &Env, dir: &std::path::Path) -> Result<Vec<(u64, PathBuf)>> {
    let failed = |error| Error::io(format_args!("list folder {}", dir.display()), error);
    if !env.disk.exists(dir).map_err(failed)? {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in env.disk.list(dir).map_err(failed)? {
        let number = entry.name.strip_suffix(".log").and_then(|stem| stem.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| !entry.is_dir) {
            files.push((number, dir.join(&entry.name)));
        }
    }
    files.sort();
    Ok(files)
}
