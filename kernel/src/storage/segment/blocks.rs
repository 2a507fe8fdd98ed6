//! Checksums of a segment's row groups, block by block, so that damage is found when the
//! damaged part is read, and at no other price than checking what is read.
//!
//! The table lies in the Parquet file behind the series index, where other readers pass over
//! it. Its own checksum stands in the file's metadata, whose checksum stands in the store's.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::storage::segment::store::SegmentBytes;

/// The key of the file's metadata that holds [`Place`] as JSON.
pub const KEY: &str = "kymo.checksums";
/// Bytes under one checksum.
const BLOCK: usize = 4096;

/// Where the table lies in its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
    /// CRC32C of it.
    pub checksum: u32,
    /// How many bytes a block has; the last one may have fewer.
    pub block: u64,
    /// How many bytes, from the start of the file, the table speaks for.
    pub covered: u64,
}

/// Computes the table while the bytes pass.
#[derive(Debug, Default)]
pub(super) struct BlockSums {
    sums: Vec<u32>,
    open: u32,
    filled: usize,
}

impl BlockSums {
    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            self.open = crc32c::crc32c_append(self.open, part);
            self.filled += part.len();
            if self.filled == BLOCK {
                self.close();
            }
            bytes = rest;
        }
    }

    fn close(&mut self) {
        self.sums.push(self.open);
        (self.open, self.filled) = (0, 0);
    }

    /// Ends the table: its bytes, to be written at `offset`, and where they lie.
    pub(super) fn finish(mut self, covered: u64, offset: u64) -> (Vec<u8>, Place) {
        if self.filled > 0 {
            self.close();
        }
        let bytes: Vec<u8> = self.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let place = Place {
            offset,
            length: bytes.len() as u64,
            checksum: crc32c::crc32c(&bytes),
            block: BLOCK as u64,
            covered,
        };
        (bytes, place)
    }
}

/// The row groups of a file, readable only where they verify.
pub struct Checked {
    bytes: Arc<dyn SegmentBytes>,
    sums: Vec<u32>,
    block: u64,
    covered: u64,
}

impl Checked {
    pub(super) fn load(bytes: Arc<dyn SegmentBytes>, place: &Place) -> Result<Checked> {
        let table = read_part(bytes.as_ref(), place.offset, place.length)?;
        let fits = place.block > 0
            && place.covered.div_ceil(place.block) * 4 == place.length
            && crc32c::crc32c(&table) == place.checksum;
        if !fits {
            return Err(Error::new(Code::Corrupt, "the table of its checksums does not verify"));
        }
        let sums =
            table.chunks_exact(4).map(|sum| u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]));
        Ok(Checked { sums: sums.collect(), bytes, block: place.block, covered: place.covered })
    }

    pub(super) fn bytes(&self) -> &dyn SegmentBytes {
        self.bytes.as_ref()
    }

    /// How many bytes, from the start of the file, can be read.
    pub(super) fn covered(&self) -> u64 {
        self.covered
    }

    /// The memory that the table takes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.sums.len() * size_of::<u32>()
    }

    /// Reads bytes after checking the blocks that they lie in.
    pub(super) fn read(&self, start: u64, length: usize) -> Result<Bytes> {
        let end = start.checked_add(length as u64).filter(|end| *end <= self.covered);
        let Some(end) = end else {
            return Err(Error::new(
                Code::Corrupt,
                format!("bytes {start}+{length} are no part of its row groups"),
            ));
        };
        if length == 0 {
            return Ok(Bytes::new());
        }
        let first = start / self.block;
        let from = first * self.block;
        let to = end.div_ceil(self.block).saturating_mul(self.block).min(self.covered);
        let part = read_part(self.bytes.as_ref(), from, to - from)?;
        let sums = &self.sums[first as usize..];
        for (at, (block, sum)) in part.chunks(self.block as usize).zip(sums).enumerate() {
            if crc32c::crc32c(block) != *sum {
                let offset = from + at as u64 * self.block;
                return Err(Error::new(
                    Code::Corrupt,
                    format!("the {} bytes at offset {offset} do not verify", block.len()),
                )
                .with_hint("restore the file from a backup, or run `kymo repair`"));
            }
        }
        let skipped = (start - from) as usize;
        Ok(Bytes::from(part).slice(skipped..skipped + length))
    }

    /// Reads and checks everything.
    pub(super) fn verify(&self) -> Result<()> {
        let step = self.block * 256;
        let starts = (0..self.covered).step_by(usize::try_from(step).unwrap_or(usize::MAX));
        for start in starts {
            self.read(start, step.min(self.covered - start) as usize)?;
        }
        Ok(())
    }
}

/// The largest part that is believed, against damaged lengths.
const MAX_PART: u64 = 1 << 30;

/// Reads a part of a file that must be there.
pub(super) fn read_part(bytes: &dyn SegmentBytes, offset: u64, length: u64) -> Result<Vec<u8>> {
    if length > MAX_PART {
        return Err(Error::new(Code::Corrupt, format!("a part of {length} bytes is too long")));
    }
    let mut part = vec![0; length as usize];
    let read = bytes.read_at(&mut part, offset).map_err(|error| Error::io("read", error))?;
    if read == part.len() {
        return Ok(part);
    }
    Err(Error::new(Code::Corrupt, format!("it ends before offset {}", offset + length)))
}
