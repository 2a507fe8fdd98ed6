//! The bytes of a log file: a header, then frames. All numbers are little-endian.
//!
//! File header, 64 bytes:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `KYMOWAL1` |
//! | 8 | 4 | format version, today 1 |
//! | 12 | 2 | partition |
//! | 14 | 2 | zero |
//! | 16 | 8 | epoch of all records in the file |
//! | 24 | 8 | number of the file |
//! | 32 | 8 | sequence of the first record |
//! | 40 | 8 | length of the file before it, all of which was durable when this one was made |
//! | 48 | 4 | epoch of the last record before this file, 0 where it is not known |
//! | 52 | 8 | sequence of the last record before this file |
//! | 60 | 4 | CRC32C of bytes 0 to 60 |
//!
//! Frame, 56 bytes and a payload:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `KYF1` |
//! | 4 | 1 | kind: 1 rows |
//! | 5 | 1 | flags: 1 payload is an LZ4 block, 2 last frame of its group |
//! | 6 | 2 | when it was written, the upper 16 bits |
//! | 8 | 8 | table |
//! | 16 | 4 | schema version |
//! | 20 | 4 | length of the payload when decompressed |
//! | 24 | 4 | length of the payload |
//! | 28 | 4 | CRC32C of the payload |
//! | 32 | 8 | sequence |
//! | 40 | 8 | durable mark: how much of this file was known to be durable when the frame was written |
//! | 48 | 4 | when it was written, the lower 32 bits: milliseconds since 1970, 0 where not known |
//! | 52 | 4 | CRC32C of bytes 0 to 52 |
//!
//! The payload names columns as they were called, and carries their ids, which stay.
//!
//! **The torn-tail rule.** Sequences grow by one from frame to frame, also across files of an
//! epoch. Bytes that do not make a frame are either the torn tail of a write that was never
//! acknowledged, or damage to a record that was. The durable marks tell them apart exactly: if
//! any frame behind the bad place has a mark beyond it, or the next file's header says that
//! this file was durable beyond it, the place was durable once and the file is **damaged**: an
//! error names file and offset, nothing is skipped. Otherwise nobody behind can vouch, as for
//! the very last record, and the bytes themselves decide. What a power cut leaves of a write
//! that was not synced is short, or lacks whole sectors, which read as zeros: that is a **torn
//! tail**, which recovery leaves behind, from the start of the group. A record of which every
//! sector is there and whose checksum does not hold was not torn but **damaged**, too
//! (`docs/decisions/005-torn-or-damaged.md`).
//!
//! **What follows a crash.** Groups behind the last durable mark can be read, but may be in the
//! page cache only, where even another fsync does not make them durable if one has failed
//! before. Recovery therefore copies them into a file of their own, which is named when it is
//! durable and whose header says where the file before it ends. A file is read up to the length
//! that the next one states, never beyond.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::env::DiskFile;
use crate::error::{Code, Error, Result};
use crate::ids::{Epoch, PartitionId, Position, Seq, TableId};
use crate::storage::log::{Record, StoredGroup};

mod past;

pub use past::Gap;

/// Length of a file header.
pub const FILE_HEADER: usize = 64;
/// Length of a frame without its payload.
pub const FRAME_HEADER: usize = 56;

const FILE_MAGIC: [u8; 8] = *b"KYMOWAL1";
const FRAME_MAGIC: [u8; 4] = *b"KYF1";
const FORMAT: u32 = 1;
const KIND_ROWS: u8 = 1;
const FLAG_LZ4: u8 = 1;
const FLAG_LAST: u8 = 2;
/// How much of a file is read at a time.
const CHUNK: usize = 1 << 20;
/// The unit that a disk writes whole or not at all, and the smallest in use.
const SECTOR: usize = 512;

/// What a log file says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// The partition of its records.
    pub partition: PartitionId,
    /// The epoch of its records.
    pub epoch: Epoch,
    /// Its number, also its name.
    pub number: u64,
    /// The sequence of its first record.
    pub first: Seq,
    /// The durable length of the file before it.
    pub previous_len: u64,
    /// The last record before this file, also of an earlier epoch; epoch 0 where it is not known.
    pub before: (Epoch, Seq),
}

impl FileHeader {
    /// The bytes of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; FILE_HEADER] {
        let mut bytes = [0; FILE_HEADER];
        bytes[0..8].copy_from_slice(&FILE_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.partition.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.number.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.previous_len.to_le_bytes());
        // An epoch beyond 32 bits is not known: nobody starts a store that often.
        let before = u32::try_from(self.before.0.0).unwrap_or(0);
        bytes[48..52].copy_from_slice(&before.to_le_bytes());
        bytes[52..60].copy_from_slice(&self.before.1.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header back: `None` where the bytes are none.
    ///
    /// # Errors
    /// `unsupported` for a format of a later build.
    pub fn decode(path: &Path, bytes: &[u8; FILE_HEADER]) -> Result<Option<FileHeader>> {
        if bytes[..8] != FILE_MAGIC || crc32c::crc32c(&bytes[..60]) != word(bytes, 60) {
            return Ok(None);
        }
        let format = word(bytes, 8);
        if format != FORMAT {
            return Err(Error::new(
                Code::Unsupported,
                format!("log file {}: format {format} is not known", path.display()),
            )
            .with_hint("open the store with the version of kymo that wrote it, or a newer one"));
        }
        Ok(Some(FileHeader {
            partition: PartitionId(u16::from_le_bytes([bytes[12], bytes[13]])),
            epoch: Epoch(long(bytes, 16)),
            number: long(bytes, 24),
            first: Seq(long(bytes, 32)),
            previous_len: long(bytes, 40),
            before: (Epoch(u64::from(word(bytes, 48))), Seq(long(bytes, 52))),
        }))
    }

    /// The position of its first record.
    #[must_use]
    pub fn begin(&self) -> Position {
        Position { partition: self.partition, epoch: self.epoch, seq: self.first }
    }

    /// The position of the last record before the file; `None` where it is not known.
    #[must_use]
    pub fn floor(&self) -> Option<Position> {
        let at = |epoch, seq| Position { partition: self.partition, epoch, seq };
        match self.before {
            _ if self.first > Seq(1) => Some(at(self.epoch, Seq(self.first.0 - 1))),
            (Epoch(0), _) => None,
            (epoch, seq) => Some(at(epoch, seq)),
        }
    }
}

/// The header of a record's frame; `mark` is how much of the file is known to be durable, and
/// `written_ms` when the record is written, in milliseconds since 1970.
#[must_use]
pub fn frame_header(
    record: &Record,
    seq: Seq,
    last: bool,
    mark: u64,
    written_ms: u64,
) -> [u8; FRAME_HEADER] {
    let mut bytes = [0; FRAME_HEADER];
    let flags = if record.compressed { FLAG_LZ4 } else { 0 } | if last { FLAG_LAST } else { 0 };
    // Payload lengths fit 32 bits: encoding refuses larger ones.
    let payload_len = record.payload.len() as u32;
    bytes[0..4].copy_from_slice(&FRAME_MAGIC);
    bytes[4] = KIND_ROWS;
    bytes[5] = flags;
    bytes[8..16].copy_from_slice(&record.table.0.to_le_bytes());
    bytes[16..20].copy_from_slice(&record.schema_version.to_le_bytes());
    bytes[20..24].copy_from_slice(&record.raw_len.to_le_bytes());
    bytes[24..28].copy_from_slice(&payload_len.to_le_bytes());
    bytes[28..32].copy_from_slice(&record.crc.to_le_bytes());
    bytes[32..40].copy_from_slice(&seq.0.to_le_bytes());
    bytes[40..48].copy_from_slice(&mark.to_le_bytes());
    // 48 bits last until the year 10889.
    let written = written_ms.to_le_bytes();
    bytes[6..8].copy_from_slice(&written[4..6]);
    bytes[48..52].copy_from_slice(&written[..4]);
    let crc = crc32c::crc32c(&bytes[..52]);
    bytes[52..56].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | (u64::from(word(bytes, at + 4)) << 32)
}

/// A frame's header, verified.
#[derive(Debug, Clone, Copy)]
struct FrameHeader {
    flags: u8,
    table: TableId,
    schema_version: u32,
    raw_len: u32,
    payload_len: u32,
    crc: u32,
    seq: Seq,
    mark: u64,
    written_ms: u64,
}

impl FrameHeader {
    fn decode(bytes: &[u8]) -> Option<FrameHeader> {
        let bytes = bytes.get(..FRAME_HEADER)?;
        let known = bytes[..4] == FRAME_MAGIC && bytes[4] == KIND_ROWS;
        if !known || crc32c::crc32c(&bytes[..52]) != word(bytes, 52) {
            return None;
        }
        Some(FrameHeader {
            flags: bytes[5],
            table: TableId(long(bytes, 8)),
            schema_version: word(bytes, 16),
            raw_len: word(bytes, 20),
            payload_len: word(bytes, 24),
            crc: word(bytes, 28),
            seq: Seq(long(bytes, 32)),
            mark: long(bytes, 40),
            written_ms: u64::from(word(bytes, 48))
                | (u64::from(u16::from_le_bytes([bytes[6], bytes[7]])) << 32),
        })
    }
}

/// How reading a file ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Every byte belongs to a whole group.
    Clean,
    /// What follows the last whole group was never acknowledged.
    Torn,
}

/// Reads the groups of one log file, in chunks.
pub struct FileReader {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    len: u64,
    /// How much of the file is known to have been durable.
    durable: u64,
    /// Where the group that was read last begins and ends.
    group_start: u64,
    groups_end: u64,
    /// Bytes read ahead, starting at file offset `base`.
    chunk: Vec<u8>,
    base: u64,
    offset: u64,
    header: Option<FileHeader>,
    next: Seq,
    end: Option<End>,
    /// Where bytes did not verify and were read once more, in case the read itself failed.
    second_look: Option<u64>,
    /// Where the group that is being read begins, and its first sequence.
    begun: (u64, Seq),
}

impl FileReader {
    /// Reads the header. `stated` is the length that the next file's header states, where
    /// there is one: it was durable, and nothing behind it counts.
    ///
    /// # Errors
    /// `corrupt` where the header does not verify in a file that was durable; I/O errors.
    pub fn open(path: PathBuf, file: Box<dyn DiskFile>, stated: Option<u64>) -> Result<FileReader> {
        let mut reader = FileReader::unread(path, file, stated)?;
        reader.read_header()?;
        Ok(reader)
    }

    fn unread(path: PathBuf, file: Box<dyn DiskFile>, stated: Option<u64>) -> Result<FileReader> {
        let found = file.len().map_err(|error| read_error(&path, error))?;
        let len = stated.map_or(found, |stated| found.min(stated));
        let durable = stated.unwrap_or(0);
        Ok(FileReader {
            path,
            file,
            len,
            durable,
            group_start: 0,
            groups_end: 0,
            chunk: Vec::new(),
            base: 0,
            offset: FILE_HEADER as u64,
            header: None,
            next: Seq(0),
            end: None,
            second_look: None,
            begun: (FILE_HEADER as u64, Seq(0)),
        })
    }

    /// The file's header; `None` for a file that was never finished being made.
    #[must_use]
    pub fn header(&self) -> Option<FileHeader> {
        self.header
    }

    /// How reading ended, once [`FileReader::next_group`] has given `None`.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// How much of the file is known to have been durable, from the next file's header and
    /// from the marks of the frames read so far. Always the end of a group.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Where the group that was read last begins.
    #[must_use]
    pub fn group_start(&self) -> u64 {
        self.group_start
    }

    /// Where the group that was read last ends; zero before the first.
    #[must_use]
    pub fn groups_end(&self) -> u64 {
        self.groups_end
    }

    /// How many bytes of the file count.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.len
    }

    /// Says that more of a file that is still written to is durable, so that reading goes on
    /// where it had come to its end.
    pub fn extend(&mut self, durable: u64) {
        if durable > self.len {
            (self.len, self.durable) = (durable, durable);
            self.end = None;
        }
    }

    /// The sequence that the next record must have.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        self.next
    }

    fn read_header(&mut self) -> Result<()> {
        while self.header.is_none() && self.end.is_none() {
            let mut bytes = [0; FILE_HEADER];
            let count =
                self.file.read_at(&mut bytes, 0).map_err(|error| read_error(&self.path, error))?;
            let header =
                if count == FILE_HEADER { FileHeader::decode(&self.path, &bytes)? } else { None };
            match header {
                Some(header) => {
                    self.next = header.first;
                    self.header = Some(header);
                }
                // Without a frame that vouches for it, the file holds nothing to lose.
                None => self.bad(0, "its header does not verify", None)?,
            }
        }
        Ok(())
    }

    /// The next whole group, or `None` at the end.
    ///
    /// # Errors
    /// `corrupt`, naming file and offset, for a damaged record; I/O errors.
    pub fn next_group(&mut self) -> Result<Option<StoredGroup>> {
        let mut group = StoredGroup::new();
        let start = self.offset;
        self.begun = (start, self.next);
        while self.end.is_none() {
            if self.offset == self.len && group.is_empty() {
                self.finish_clean()?;
                break;
            }
            let Some((last, record)) = self.next_frame()? else { continue };
            group.push(record);
            if last {
                self.group_start = start;
                self.groups_end = self.offset;
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    fn finish_clean(&mut self) -> Result<()> {
        if self.len < self.durable {
            return Err(self.corrupt(
                self.len,
                &format!("the file ends here, but {} bytes were durable", self.durable),
            ));
        }
        self.end = Some(End::Clean);
        Ok(())
    }

    /// The frame at the current offset; `None` where none could be read.
    fn next_frame(&mut self) -> Result<Option<(bool, (Position, Record))>> {
        let at = self.offset;
        let payload_at = at + FRAME_HEADER as u64;
        let Some(header) = FrameHeader::decode(self.window(at, FRAME_HEADER)?) else {
            self.bad(at, "no frame starts here", Some(at..payload_at))?;
            return Ok(None);
        };
        if header.seq != self.next {
            // What verifies and is another record was here before: the write never came.
            let what = format!("sequence {} where {} belongs", header.seq, self.next);
            self.bad(at, &what, None)?;
            return Ok(None);
        }
        let stored = header.payload_len as usize;
        let payload_end = payload_at + stored as u64;
        if payload_end > self.len {
            self.bad(at, "its payload is cut off", None)?;
            return Ok(None);
        }
        let payload = Bytes::copy_from_slice(self.window(payload_at, stored)?);
        if crc32c::crc32c(&payload) != header.crc {
            let what = "the checksum of its payload does not hold";
            self.bad(at, what, Some(payload_at..payload_end))?;
            return Ok(None);
        }
        if header.mark <= at {
            self.durable = self.durable.max(header.mark);
        }
        self.offset = payload_end;
        self.next = Seq(header.seq.0 + 1);
        let record = Record {
            table: header.table,
            schema_version: header.schema_version,
            raw_len: header.raw_len,
            compressed: header.flags & FLAG_LZ4 != 0,
            crc: header.crc,
            payload,
            written_ms: header.written_ms,
        };
        let epoch = self.header.map(|file| (file.partition, file.epoch)).unwrap_or_default();
        let position = Position { partition: epoch.0, epoch: epoch.1, seq: header.seq };
        Ok(Some((header.flags & FLAG_LAST != 0, (position, record))))
    }

    /// Up to `want` bytes from an offset; fewer only at the end of the file.
    fn window(&mut self, offset: u64, want: usize) -> Result<&[u8]> {
        let want = want.min(usize::try_from(self.len.saturating_sub(offset)).unwrap_or(want));
        let end = offset + want as u64;
        let have = self.base + self.chunk.len() as u64;
        if offset < self.base || end > have {
            let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
            let size = want.max(CHUNK.min(left));
            self.chunk.resize(size, 0);
            let count = self
                .file
                .read_at(&mut self.chunk, offset)
                .map_err(|error| read_error(&self.path, error))?;
            self.chunk.truncate(count);
            self.base = offset;
        }
        // The difference is below the chunk's length.
        let from = (offset - self.base) as usize;
        let to = (from + want).min(self.chunk.len());
        Ok(self.chunk.get(from..to).unwrap_or_default())
    }

    /// Decides about bytes at `at` that are no frame: after a second look, an error where
    /// they were durable once, or where all of `part`, the bytes that do not verify, were
    /// written; else the end of the file.
    fn bad(&mut self, at: u64, what: &str, part: Option<Range<u64>>) -> Result<()> {
        if self.second_look.replace(at) != Some(at) {
            self.chunk.clear();
            return Ok(());
        }
        if at < self.durable || self.vouched_behind(at)? {
            return Err(self.corrupt(at, what));
        }
        if let Some(part) = part
            && !self.lacks_sectors(part)?
        {
            return Err(self.damaged_tail(at, what));
        }
        self.end = Some(End::Torn);
        Ok(())
    }

    /// Whether some of the bytes may never have been written: they lie beyond the end, or all
    /// of them within one sector are zero, as in a file that grew before its content came.
    fn lacks_sectors(&mut self, part: Range<u64>) -> Result<bool> {
        if part.end > self.len {
            return Ok(true);
        }
        // Both are below the length of one frame.
        let (want, into) = ((part.end - part.start) as usize, part.start as usize % SECTOR);
        let bytes = self.window(part.start, want)?;
        let (first, rest) = bytes.split_at((SECTOR - into).min(bytes.len()));
        let mut sectors = std::iter::once(first).chain(rest.chunks(SECTOR));
        Ok(sectors.any(|sector| sector.iter().all(|byte| *byte == 0)))
    }

    /// Whether a frame behind `at` says that the byte at `at` was durable when it was written.
    fn vouched_behind(&mut self, at: u64) -> Result<bool> {
        let mut offset = at + 1;
        let finder = memchr::memmem::Finder::new(&FRAME_MAGIC);
        while offset + FRAME_HEADER as u64 <= self.len {
            let bytes = self.window(offset, CHUNK)?;
            for found in finder.find_iter(bytes) {
                if let Some(frame) = FrameHeader::decode(&bytes[found..])
                    && frame.mark > at
                    && frame.mark <= offset + found as u64
                {
                    return Ok(true);
                }
            }
            // Neighbouring windows overlap by one header.
            let step = bytes.len().saturating_sub(FRAME_HEADER - 1).max(1);
            offset += step as u64;
        }
        Ok(false)
    }

    fn corrupt(&self, at: u64, what: &str) -> Error {
        self.damage(at, what).with_hint(
            "the record was stored and is damaged now: restore the file from a backup, or run \
             `kymo check` and `kymo repair`, which keep what can still be read; the store does \
             not open with it",
        )
    }

    /// Damage to the last record, behind which nothing tells whether it was acknowledged.
    fn damaged_tail(&self, at: u64, what: &str) -> Error {
        let path = self.path.display();
        self.damage(at, what).with_hint(format!(
            "all of the record was written, and it is damaged now: restore the file from a \
             backup, or give up this last record and what follows it, acknowledged or not, as \
             `kymo repair` does and: truncate --size={at} '{path}'"
        ))
    }

    fn damage(&self, at: u64, what: &str) -> Error {
        let path = self.path.display();
        Error::new(Code::Corrupt, format!("log file {path} at offset {at}: {what}"))
    }
}

fn read_error(path: &Path, error: std::io::Error) -> Error {
    Error::io(format_args!("read log file {}", path.display()), error)
}
