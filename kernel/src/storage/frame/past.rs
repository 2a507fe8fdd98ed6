//! Reading a log file past its damage: from a record that does not verify on to the next one
//! that does.
//!
//! Recovery never does this, because what it passed over may have been acknowledged. Whoever
//! looks for what can be salvaged does, and says what is lost: [`FileReader::pass`] tells which
//! sequences are missing, and of which tables where headers can still be read.

use std::ops::Range;
use std::path::PathBuf;

use crate::env::DiskFile;
use crate::error::Result;
use crate::ids::{Seq, TableId};
use crate::storage::frame::{
    CHUNK, End, FILE_HEADER, FRAME_HEADER, FRAME_MAGIC, FileHeader, FileReader, FrameHeader,
};

/// Bytes that hold no record that verifies, and what stood there as far as the rest tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Where they lie in the file.
    pub bytes: Range<u64>,
    /// The first sequence that is lost.
    pub first: Seq,
    /// The sequence that can be read again; `None` where none follows in the file.
    pub until: Option<Seq>,
    /// The tables of lost records whose headers verify.
    pub tables: Vec<TableId>,
}

impl FileReader {
    /// Opens a file whose header does not verify, at the first record that does; `None` where
    /// there is none. Its owner has to be told with [`FileReader::assume`].
    ///
    /// # Errors
    /// I/O errors.
    pub fn open_headless(
        path: PathBuf,
        file: Box<dyn DiskFile>,
        stated: Option<u64>,
    ) -> Result<Option<FileReader>> {
        let mut reader = FileReader::unread(path, file, stated)?;
        reader.offset = FILE_HEADER as u64;
        let gap = reader.pass()?;
        Ok(gap.until.map(|_| reader))
    }

    /// Says what a header that does not verify must have said.
    pub fn assume(&mut self, header: FileHeader) {
        self.header = Some(header);
    }

    /// Goes on behind the place that [`FileReader::next_group`] refused, at the next record
    /// that verifies, or at the end. What was read of the same group before is lost with it.
    ///
    /// # Errors
    /// I/O errors.
    pub fn pass(&mut self) -> Result<Gap> {
        let (start, first) = self.begun;
        let mut gap = Gap { bytes: start..self.len, first, until: None, tables: Vec::new() };
        let mut at = self.offset;
        while let Some((found, frame)) = self.frame_behind(at)? {
            let end = found + (FRAME_HEADER as u64) + u64::from(frame.payload_len);
            let later = frame.seq >= self.next;
            if later && end <= self.len && self.payload_holds(found, &frame)? {
                gap.bytes.end = found;
                gap.until = Some(frame.seq);
                break;
            }
            if later && !gap.tables.contains(&frame.table) {
                gap.tables.push(frame.table);
            }
            // The header's own checksum vouches for the length, so nothing inside is a frame.
            at = if later && end <= self.len { end } else { found + 1 };
        }
        self.second_look = None;
        self.offset = gap.bytes.end.max(start);
        match gap.until {
            Some(seq) => (self.next, self.end) = (seq, None),
            None => self.end = Some(End::Torn),
        }
        Ok(gap)
    }

    fn payload_holds(&mut self, at: u64, frame: &FrameHeader) -> Result<bool> {
        let payload = self.window(at + FRAME_HEADER as u64, frame.payload_len as usize)?;
        Ok(payload.len() == frame.payload_len as usize && crc32c::crc32c(payload) == frame.crc)
    }

    /// The first place at or behind `at` where a frame's header verifies.
    fn frame_behind(&mut self, at: u64) -> Result<Option<(u64, FrameHeader)>> {
        let finder = memchr::memmem::Finder::new(&FRAME_MAGIC);
        let mut offset = at;
        while offset + FRAME_HEADER as u64 <= self.len {
            let bytes = self.window(offset, CHUNK)?;
            let mut places = finder.find_iter(bytes);
            let found =
                places.find_map(|place| Some((place, FrameHeader::decode(&bytes[place..])?)));
            if let Some((place, frame)) = found {
                return Ok(Some((offset + place as u64, frame)));
            }
            // Neighbouring windows overlap by one header.
            offset += bytes.len().saturating_sub(FRAME_HEADER - 1).max(1) as u64;
        }
        Ok(None)
    }
}
