//! From a series to its rows: an index that lies in the Parquet file, between the last row
//! group and the footer, where other readers pass over it.
//!
//! The keys are sorted as the rows are. They stand in blocks of [`BLOCK_SERIES`], each key
//! as what it shares with the one before and the rest, with the count of its rows; each
//! block is compressed with LZ4. A directory holds the first key and the first row of each
//! block. A look-up searches the directory and reads the blocks that can match; only the
//! directory stays in memory. File metadata under [`KEY`] says where the directory lies.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::storage::key;
use crate::storage::segment::blocks::read_part;
use crate::storage::segment::store::SegmentBytes;

/// The key of the file's metadata that holds [`Place`] as JSON.
pub const KEY: &str = "kymo.series_index";
/// Series in a block.
pub const BLOCK_SERIES: usize = 256;
/// Seeks of one look-up, beyond which it reads the whole range between them.
const MAX_SEEKS: usize = 256;

/// Where the directory of an index lies in its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The layout: 1.
    pub format: u32,
    /// Where the directory begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
    /// CRC32C of it.
    pub checksum: u32,
    /// How many series there are.
    pub series: u64,
}

/// What is called with each series and its rows; it may end the walk.
pub type Visit<'a> = dyn FnMut(&[u8], Range<u64>) -> Result<ControlFlow<()>> + 'a;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Block {
    first_key: Vec<u8>,
    first_row: u64,
    offset: u64,
    length: u32,
    checksum: u32,
}

/// Gathers series in order and writes the index.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    blocks: Vec<Block>,
    /// The compressed blocks; their offsets in `blocks` count from its start.
    bytes: Vec<u8>,
    open: Vec<u8>,
    open_series: usize,
    last_key: Vec<u8>,
    last_rows: u64,
    row: u64,
    series: u64,
}

impl IndexBuilder {
    /// Adds the next rows, all of one series; keys must not descend.
    ///
    /// # Errors
    /// `internal` where they do, which would mean that rows are not sorted.
    pub fn push(&mut self, key: &[u8], rows: u64) -> Result<()> {
        if self.last_rows > 0 {
            if key == self.last_key {
                self.last_rows += rows;
                return Ok(());
            }
            if key < self.last_key.as_slice() {
                return Err(Error::internal("rows for a segment are not sorted by series"));
            }
            self.close_series();
        }
        if self.open_series == 0 {
            self.blocks.push(Block {
                first_key: key.to_vec(),
                first_row: self.row,
                offset: 0,
                length: 0,
                checksum: 0,
            });
            self.last_key.clear();
        }
        let shared = self.last_key.iter().zip(key).take_while(|(a, b)| a == b).count();
        push_number(shared as u64, &mut self.open);
        push_number((key.len() - shared) as u64, &mut self.open);
        self.open.extend_from_slice(&key[shared..]);
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
        self.last_rows = rows;
        Ok(())
    }

    fn close_series(&mut self) {
        push_number(self.last_rows, &mut self.open);
        self.row += self.last_rows;
        self.last_rows = 0;
        self.series += 1;
        self.open_series += 1;
        if self.open_series == BLOCK_SERIES {
            self.close_block();
        }
    }

    fn close_block(&mut self) {
        let packed = lz4_flex::block::compress_prepend_size(&self.open);
        if let Some(block) = self.blocks.last_mut() {
            block.offset = self.bytes.len() as u64;
            block.length = packed.len() as u32;
            block.checksum = crc32c::crc32c(&packed);
        }
        self.bytes.extend_from_slice(&packed);
        self.open.clear();
        self.open_series = 0;
    }

    /// Ends the index: its bytes, to be written at `offset` of the file, and where the
    /// directory in them lies.
    ///
    /// # Errors
    /// `internal` if the directory cannot be encoded, which nothing in it should cause.
    pub fn finish(mut self, offset: u64) -> Result<(Vec<u8>, Place)> {
        if self.last_rows > 0 {
            self.close_series();
        }
        if self.open_series > 0 {
            self.close_block();
        }
        self.blocks.iter_mut().for_each(|block| block.offset += offset);
        let directory = postcard::to_allocvec(&self.blocks)
            .map_err(|error| Error::internal(format!("encode a series index: {error}")))?;
        let packed = lz4_flex::block::compress_prepend_size(&directory);
        let place = Place {
            format: 1,
            offset: offset + self.bytes.len() as u64,
            length: packed.len() as u64,
            checksum: crc32c::crc32c(&packed),
            series: self.series,
        };
        self.bytes.extend_from_slice(&packed);
        Ok((self.bytes, place))
    }
}

/// The directory of a segment's index.
#[derive(Debug)]
pub struct SeriesIndex {
    blocks: Vec<Block>,
    series: u64,
    rows: u64,
}

impl SeriesIndex {
    /// Reads the directory. `rows` is the number of rows of the segment.
    ///
    /// # Errors
    /// `corrupt` where it does not verify, `io_error` where it cannot be read.
    pub fn load(bytes: &dyn SegmentBytes, place: &Place, rows: u64) -> Result<SeriesIndex> {
        if place.format != 1 {
            return Err(Error::new(
                Code::Unsupported,
                format!("series index has format {}, this build reads 1", place.format),
            ));
        }
        let packed = read_verified(bytes, place.offset, place.length, place.checksum)?;
        let blocks = unpack(&packed)?;
        let blocks = postcard::from_bytes(&blocks).map_err(|_| damaged())?;
        Ok(SeriesIndex { blocks, series: place.series, rows })
    }

    /// Stands in for a directory that does not verify: rows are found by their place only.
    pub(super) fn absent(rows: u64) -> SeriesIndex {
        SeriesIndex { blocks: Vec::new(), series: 0, rows }
    }

    /// How many series the segment holds.
    #[must_use]
    pub fn series(&self) -> u64 {
        self.series
    }

    /// The memory that the directory takes, about.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let keys: usize = self.blocks.iter().map(|block| block.first_key.len()).sum();
        self.blocks.len() * size_of::<Block>() + keys
    }

    /// Calls `visit` with each series and its rows from the first key that is not below
    /// `from`, until it breaks.
    ///
    /// # Errors
    /// `corrupt` where a block does not verify, `io_error`, and what `visit` returns.
    pub fn walk(&self, bytes: &dyn SegmentBytes, from: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        let after = self.blocks.partition_point(|block| block.first_key.as_slice() <= from);
        self.walk_from(bytes, after.saturating_sub(1), from, visit)
    }

    /// Calls `visit` with each series that has any of some rows, and those of its rows, until it
    /// breaks.
    ///
    /// # Errors
    /// As [`SeriesIndex::walk`].
    pub fn walk_rows(
        &self,
        bytes: &dyn SegmentBytes,
        wanted: Range<u64>,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        let after = self.blocks.partition_point(|block| block.first_row <= wanted.start);
        self.walk_from(bytes, after.saturating_sub(1), &[], &mut |key, rows| {
            if rows.start >= wanted.end {
                return Ok(ControlFlow::Break(()));
            }
            let rows = rows.start.max(wanted.start)..rows.end.min(wanted.end);
            if rows.is_empty() { Ok(ControlFlow::Continue(())) } else { visit(key, rows) }
        })
    }

    fn walk_from(
        &self,
        bytes: &dyn SegmentBytes,
        first: usize,
        from: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        for at in first..self.blocks.len() {
            let block = &self.blocks[at];
            let end = self.blocks.get(at + 1).map_or(self.rows, |next| next.first_row);
            let packed =
                read_verified(bytes, block.offset, u64::from(block.length), block.checksum)?;
            if walk_block(&unpack(&packed)?, block.first_row..end, from, visit)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The rows of the series that a filter lets through, ascending, neighbours joined.
    ///
    /// # Errors
    /// `corrupt` where a block does not verify, `io_error`.
    pub fn select(&self, bytes: &dyn SegmentBytes, filter: &TagFilter) -> Result<Vec<Range<u64>>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        for seek in filter.seeks() {
            let end = key::after_prefix(&seek);
            self.walk(bytes, &seek, &mut |key, rows| {
                if end.as_ref().is_some_and(|end| key >= end.as_slice()) {
                    return Ok(ControlFlow::Break(()));
                }
                if filter.allows(key)? {
                    match found.last_mut() {
                        Some(last) if last.end == rows.start => last.end = rows.end,
                        _ => found.push(rows),
                    }
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(found)
    }
}

fn walk_block(
    mut block: &[u8],
    rows: Range<u64>,
    from: &[u8],
    visit: &mut Visit<'_>,
) -> Result<ControlFlow<()>> {
    let mut key = Vec::new();
    let mut row = rows.start;
    while !block.is_empty() {
        let shared = take_number(&mut block)? as usize;
        let rest = take_number(&mut block)? as usize;
        if shared > key.len() || rest > block.len() {
            return Err(damaged());
        }
        key.truncate(shared);
        key.extend_from_slice(&block[..rest]);
        block = &block[rest..];
        let count = take_number(&mut block)?;
        let next = row.checked_add(count).filter(|next| *next <= rows.end).ok_or_else(damaged)?;
        if key.as_slice() >= from && visit(&key, row..next)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        row = next;
    }
    if row == rows.end { Ok(ControlFlow::Continue(())) } else { Err(damaged()) }
}

fn push_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or_else(damaged)?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(damaged())
}

fn read_verified(
    bytes: &dyn SegmentBytes,
    offset: u64,
    length: u64,
    checksum: u32,
) -> Result<Vec<u8>> {
    let part = read_part(bytes, offset, length)?;
    if crc32c::crc32c(&part) == checksum { Ok(part) } else { Err(damaged()) }
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    lz4_flex::block::decompress_size_prepended(packed).map_err(|_| damaged())
}

fn damaged() -> Error {
    Error::new(Code::Corrupt, "its series index does not verify")
        .with_hint("restore the file from a backup, or run `kymo repair`")
}

/// Which series are wanted: for each tag named, the values allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagFilter {
    /// By the tag's place among the tags of the table; ascending.
    tags: Vec<(usize, BTreeSet<Option<String>>)>,
}

impl TagFilter {
    /// Lets every series through.
    #[must_use]
    pub fn all() -> TagFilter {
        TagFilter::default()
    }

    /// Also demands that the tag at `place` among the table's tags has one of `values`,
    /// where `None` is NULL.
    #[must_use]
    pub fn and(
        mut self,
        place: usize,
        values: impl IntoIterator<Item = Option<String>>,
    ) -> TagFilter {
        let values: BTreeSet<_> = values.into_iter().collect();
        match self.tags.binary_search_by_key(&place, |(tag, _)| *tag) {
            Ok(at) => self.tags[at].1.retain(|value| values.contains(value)),
            Err(at) => self.tags.insert(at, (place, values)),
        }
        self
    }

    /// Whether it lets every series through.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.tags.is_empty()
    }

    /// Whether it lets a series through.
    ///
    /// # Errors
    /// `corrupt` where the key does not decode.
    pub fn allows(&self, key: &[u8]) -> Result<bool> {
        let mut tags = key::tags(key).enumerate();
        'wanted: for (place, values) in &self.tags {
            for (at, tag) in tags.by_ref() {
                let tag = tag?;
                if at == *place {
                    if !contains(values, tag.as_deref()) {
                        return Ok(false);
                    }
                    continue 'wanted;
                }
            }
            if !contains(values, None) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether any series between two keys, both included, can pass: by the first tag only.
    #[must_use]
    pub fn may_match(&self, min: &[u8], max: &[u8]) -> bool {
        self.seeks().iter().any(|seek| {
            seek.as_slice() <= max && key::after_prefix(seek).is_none_or(|end| min < end.as_slice())
        })
    }

    /// Prefixes of the keys that can pass, ascending.
    fn seeks(&self) -> Vec<Vec<u8>> {
        let mut seeks = vec![Vec::new()];
        for (place, (tag, values)) in self.tags.iter().enumerate() {
            if place != *tag || values.contains(&None) || seeks.len() * values.len() > MAX_SEEKS {
                break;
            }
            let longer = seeks.iter().flat_map(|seek: &Vec<u8>| {
                values.iter().map(|value| {
                    let mut seek = seek.clone();
                    key::encode([value.as_deref()], &mut seek);
                    seek
                })
            });
            seeks = longer.collect();
        }
        seeks
    }
}

fn contains(values: &BTreeSet<Option<String>>, tag: Option<&str>) -> bool {
    // A set of owned texts cannot be asked with a borrowed one inside of an `Option`.
    match tag {
        None => values.contains(&None),
        Some(text) if values.len() <= 8 => {
            values.iter().any(|value| value.as_deref() == Some(text))
        }
        Some(text) => values.contains(&Some(text.to_owned())),
    }
}
