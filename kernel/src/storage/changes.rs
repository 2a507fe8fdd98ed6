//! Committed records of all tables in the order of the log: the log as a feed.
//!
//! [`Changes`] reads the files of the log one after the other, those that are kept as history
//! first. Of the log of an open store it gives what is durable and nothing else, so that no crash
//! takes back what somebody has read: complete files up to the length that counts, and the one
//! being written up to the end of the last fsync. Of the log of a closed store it gives what the
//! next start would find.
//!
//! A reader holds nothing back. Where it asks for records that have been let go, at its start or
//! because it was slow, it gets `gone` with the oldest position that there is. A file that was
//! let go is not read to its end, although the system would allow it: what is retained is
//! bounded, whoever reads.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::ids::{PartitionId, Position, Seq, TableId};
use crate::schema::TableName;
use crate::storage::Store;
use crate::storage::frame::{FileHeader, FileReader};
use crate::storage::integrity::lock_existing;
use crate::storage::journal::files::Place;
use crate::storage::journal::kept::Kept;
use crate::storage::journal::{Extent, local};
use crate::storage::log::{Record, StoredGroup};
use crate::storage::meta::Snapshot;
use crate::storage::metalog::{LocalMetaLog, MetaLog};

/// A committed record.
#[derive(Debug, Clone)]
pub struct Change {
    /// Where it lies.
    pub position: Position,
    /// Its rows.
    pub record: Record,
    /// The name that its table has now; `None` where it was dropped.
    pub table: Option<TableName>,
}

impl Change {
    /// The position to go on from.
    #[must_use]
    pub fn next(&self) -> Position {
        after(self.position)
    }
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// At the oldest record that there is.
    Oldest,
    /// At what is written from now on.
    Now,
    /// At this record, or where there is none, at the next one.
    At(Position),
}

impl std::str::FromStr for From {
    type Err = Error;

    fn from_str(text: &str) -> Result<From> {
        match text.trim() {
            "oldest" => Ok(From::Oldest),
            "now" => Ok(From::Now),
            position => position.parse().map(From::At),
        }
    }
}

/// A reader of the log.
pub struct Changes {
    source: Source,
    table: Option<TableId>,
    /// The first position that was not given yet; `None` before the first of all.
    next: Option<Position>,
    current: Option<(u64, FileReader)>,
    /// The number of the file that was read to its end last.
    finished: Option<u64>,
    group: std::vec::IntoIter<(Position, Record)>,
}

enum Source {
    Open(Arc<Store>),
    Closed { env: Env, files: Vec<Place>, catalog: Arc<Snapshot>, _lock: Lock },
}

type Lock = Box<dyn std::any::Any + Send + Sync>;

impl Changes {
    /// The log of an open store; of one table where it is named.
    ///
    /// # Errors
    /// `table_not_found`; `invalid_input` for a position that is still to come. Whether it is
    /// still there, the first [`Changes::read`] says.
    pub fn open(store: Arc<Store>, table: Option<&TableName>, from: From) -> Result<Changes> {
        let table = table.map(|name| find(&store.catalog(), name)).transpose()?;
        let end = store.journal.next();
        let next = match from {
            From::Oldest => None,
            From::Now => Some(end),
            From::At(position) if position > end => {
                let what = format!("position {position} is still to come, the next one is {end}");
                return Err(Error::new(Code::InvalidInput, what).with_hint(
                    "positions belong to one store: this may be another one, or one that was \
                     restored",
                ));
            }
            From::At(position) => Some(position),
        };
        Ok(Changes::over(Source::Open(store), table, next))
    }

    /// The log in the folder of a store that no server uses, which is locked meanwhile. Blocks.
    ///
    /// # Errors
    /// `locked`; `table_not_found`; `invalid_input` where the folder holds no store; `corrupt`
    /// naming the file; I/O errors.
    pub fn closed(env: Env, root: &Path, table: Option<&TableName>, from: From) -> Result<Changes> {
        let lock = lock_existing(&env, root)?;
        let catalog = LocalMetaLog::open(env.clone(), &root.join("meta"))?.head()?;
        let table = table.map(|name| find(&catalog, name)).transpose()?;
        let next = match from {
            From::Oldest => None,
            From::Now => {
                return Err(Error::new(
                    Code::InvalidInput,
                    "nothing comes from now on in a folder that no server uses",
                ));
            }
            From::At(position) => Some(position),
        };
        let files = closed_files(&env, &root.join("wal").join(PartitionId::ONLY.to_string()))?;
        Ok(Changes::over(Source::Closed { env, files, catalog, _lock: lock }, table, next))
    }

    fn over(source: Source, table: Option<TableId>, next: Option<Position>) -> Changes {
        let group = StoredGroup::new().into_iter();
        Changes { source, table, next, current: None, finished: None, group }
    }

    /// The next record; `None` where all that is durable was given. Blocks on the disk.
    ///
    /// # Errors
    /// `gone` where the records that follow are not kept any more; `corrupt`, naming file and
    /// offset; I/O errors.
    pub fn read(&mut self) -> Result<Option<Change>> {
        loop {
            for (position, record) in self.group.by_ref() {
                if self.next.is_some_and(|next| position < next) {
                    continue;
                }
                self.next = Some(after(position));
                if self.table.is_none_or(|table| table == record.table) {
                    let table = self.source.name(record.table);
                    return Ok(Some(Change { position, record, table }));
                }
            }
            let more = match &mut self.current {
                None => self.begin()?,
                Some((number, _)) if !self.source.has(*number) => {
                    self.current = None;
                    true
                }
                Some((_, reader)) => match reader.next_group()? {
                    Some(group) => {
                        self.group = group.into_iter();
                        true
                    }
                    None => self.go_on(),
                },
            };
            if !more {
                return Ok(None);
            }
        }
    }

    /// The position to go on from, once anything was given or passed over.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.next
    }

    /// What tells that more may be durable; `None` for a closed store.
    #[must_use]
    pub fn watch(&self) -> Option<watch::Receiver<Extent>> {
        match &self.source {
            Source::Open(store) => Some(store.journal.durable()),
            Source::Closed { .. } => None,
        }
    }

    /// Whether there are records that are written and wait for an fsync nobody has asked for.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        matches!(&self.source, Source::Open(store) if store.journal.is_unsynced())
    }

    /// Makes those durable, so that they can be read. Blocks for as long as an fsync takes.
    pub fn catch_up(&self) {
        if let Source::Open(store) = &self.source {
            store.journal.sync();
        }
    }

    /// Whether the open file goes on, or another one follows it.
    fn go_on(&mut self) -> bool {
        let Some((number, reader)) = &mut self.current else { return true };
        match self.source.durable(*number) {
            Durable::Open(bytes) if bytes <= reader.counted() => return false,
            Durable::Open(bytes) => reader.extend(bytes),
            Durable::Complete(Some(bytes)) if bytes > reader.counted() => reader.extend(bytes),
            Durable::Complete(_) => {
                self.finished = Some(*number);
                self.current = None;
            }
            Durable::Gone => self.current = None,
        }
        true
    }

    /// Opens the file that has the next position; false where there is none yet.
    fn begin(&mut self) -> Result<bool> {
        loop {
            let places = self.source.places();
            let follows = |number| places.iter().find(|place| place.number == number + 1);
            let place = match self.finished {
                Some(last) if places.last().is_none_or(|newest| newest.number <= last) => {
                    return Ok(false);
                }
                Some(last) if follows(last).is_some() => follows(last),
                _ => match self.search(&places)? {
                    Search::Found(place) => place,
                    Search::Moved => continue,
                },
            };
            let Some(place) = place else { return Ok(false) };
            // A file that was let go, or moved into history, in this very moment.
            let Some(reader) = self.source.open(place)? else { continue };
            if reader.header().is_none() {
                return Ok(false);
            }
            self.current = Some((place.number, reader));
            return Ok(true);
        }
    }

    /// The last file that begins at or before the next position, by the files' headers.
    fn search<'a>(&self, places: &'a [Place]) -> Result<Search<'a>> {
        let Some(oldest) = places.first() else { return Ok(Search::Found(None)) };
        let Some(next) = self.next else { return Ok(Search::Found(Some(oldest))) };
        let (mut low, mut high) = (0, places.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let Some(reader) = self.source.open(&places[middle])? else { return Ok(Search::Moved) };
            match reader.header() {
                Some(header) if header.begin() <= next => low = middle + 1,
                _ => high = middle,
            }
        }
        if low > 0 {
            return Ok(Search::Found(places.get(low - 1)));
        }
        let Some(reader) = self.source.open(oldest)? else { return Ok(Search::Moved) };
        match reader.header() {
            Some(header) if header.floor().is_none_or(|floor| floor >= next) => {
                Err(gone(next, &header))
            }
            _ => Ok(Search::Found(Some(oldest))),
        }
    }
}

enum Search<'a> {
    Found(Option<&'a Place>),
    /// Files went while they were looked at.
    Moved,
}

/// How much of a file counts.
enum Durable {
    /// It is being written.
    Open(u64),
    /// Nobody writes to it any more.
    Complete(Option<u64>),
    /// It is not there any more.
    Gone,
}

impl Source {
    fn places(&self) -> Vec<Place> {
        match self {
            Source::Closed { files, .. } => files.clone(),
            Source::Open(store) => {
                let Extent { number, bytes } = *store.journal.durable().borrow();
                let mut places = store.log_files.places();
                places.retain(|place| place.number < number);
                let path = store.journal.path(number);
                places.push(Place { number, path, bytes: Some(bytes) });
                places
            }
        }
    }

    fn durable(&self, wanted: u64) -> Durable {
        if let Source::Open(store) = self {
            let Extent { number, bytes } = *store.journal.durable().borrow();
            if number == wanted {
                return Durable::Open(bytes);
            }
        }
        let place = self.places().into_iter().find(|place| place.number == wanted);
        place.map_or(Durable::Gone, |place| Durable::Complete(place.bytes))
    }

    fn has(&self, number: u64) -> bool {
        match self {
            Source::Closed { .. } => true,
            Source::Open(store) => {
                number >= store.journal.durable().borrow().number || store.log_files.has(number)
            }
        }
    }

    /// A reader of a file; `None` where it is not there any more.
    fn open(&self, place: &Place) -> Result<Option<FileReader>> {
        let env = match self {
            Source::Closed { env, .. } => env,
            Source::Open(store) => &store.env,
        };
        match env.disk.open_to_read(&place.path) {
            Ok(file) => FileReader::open(place.path.clone(), file, place.bytes).map(Some),
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    && matches!(self, Source::Open(_)) =>
            {
                Ok(None)
            }
            Err(error) => {
                Err(Error::io(format_args!("open log file {}", place.path.display()), error))
            }
        }
    }

    fn name(&self, table: TableId) -> Option<TableName> {
        let catalog = match self {
            Source::Closed { catalog, .. } => catalog.clone(),
            Source::Open(store) => store.catalog(),
        };
        Some(catalog.table_by_id(table)?.def.name.clone())
    }
}

/// The files of a log that nobody writes to, history first. The newest one is made durable, so
/// that a power cut takes nothing back that is read of it.
fn closed_files(env: &Env, dir: &Path) -> Result<Vec<Place>> {
    let mut places = Kept::load(env, dir)?.places();
    let next = places.last().map_or(0, |last| last.number + 1);
    let mut live = local::list(env, dir)?;
    live.retain(|(number, _)| *number >= next);
    for (at, (number, path)) in live.iter().enumerate() {
        let failed = |error| Error::io(format_args!("read log file {}", path.display()), error);
        let bytes = match live.get(at + 1) {
            Some((_, following)) => {
                let file = env.disk.open_to_read(following).map_err(failed)?;
                FileReader::open(following.clone(), file, None)?
                    .header()
                    .map(|header| header.previous_len)
            }
            None => {
                env.disk.open(path).and_then(|mut file| file.sync()).map_err(failed)?;
                None
            }
        };
        places.push(Place { number: *number, path: path.clone(), bytes });
    }
    Ok(places)
}

fn find(catalog: &Snapshot, name: &TableName) -> Result<TableId> {
    catalog.names.get(name).copied().ok_or_else(|| {
        Error::new(Code::TableNotFound, format!("table {name} does not exist"))
            .with_hint("name it as database.schema.table, or leave --table out for all tables")
    })
}

fn after(position: Position) -> Position {
    Position { seq: Seq(position.seq.0 + 1), ..position }
}

fn gone(next: Position, oldest: &FileHeader) -> Error {
    let oldest = oldest.begin();
    let what = format!("position {next} is not in the journal any more, the oldest is {oldest}");
    Error::new(Code::Gone, what).with_hint(format!(
        "go on with {oldest} and read what lies before it from the tables; journal.retention \
         keeps more"
    ))
}
