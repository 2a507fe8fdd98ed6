//! The durable log as the rest of the store sees it: groups of self-contained records in,
//! positions out, in order.
//!
//! One implementation exists, the journal in the data folder ([`crate::storage::journal`]).
//! Others (numbered objects in a bucket, JetStream) fit behind the same two traits, which is
//! why a record carries everything that another machine needs to replay it and nothing that
//! points into this process.

use std::cell::RefCell;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::ipc::MetadataVersion;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use bytes::Bytes;

use crate::error::{Code, Error, Result};
use crate::ids::{Epoch, PartitionId, Position, TableId};
pub use crate::message::Durability;

/// Told when a group is as durable as was asked, with the position of its last record; or
/// why it is not. Called in the order of the log, on the log's own thread, so it must be
/// quick: post a message, wake somebody. A group that is refused at once is answered on the
/// caller's thread.
pub type Done = Box<dyn FnOnce(Result<Position>) + Send>;

/// Takes records of one partition. Made by [`DurableLog::open`], which fences earlier owners.
pub trait LogWriter: Send + Sync {
    /// Queues a group and returns at once; positions follow the order of the calls.
    ///
    /// A group is kept whole or not at all. It is refused with `busy` where the queue is
    /// full, `too_large` where a record is over its limit, `poisoned` after an I/O error.
    fn append(&self, group: RecordGroup, durability: Durability, done: Done);

    /// Whether the queue would take more now.
    fn has_room(&self) -> bool;
}

/// Keeps records of partitions until they are trimmed. Calls block: not for actors' turns.
pub trait DurableLog: Send + Sync {
    /// Claims a partition for an epoch and fences earlier owners.
    ///
    /// # Errors
    /// `fenced` where a later owner exists, `corrupt` and I/O errors.
    fn open(&self, partition: PartitionId, epoch: Epoch) -> Result<Arc<dyn LogWriter>>;

    /// All groups with records after `from`, in order, up to the tail.
    ///
    /// # Errors
    /// I/O errors; items are `corrupt`, naming file and offset, where a stored record does
    /// not verify.
    fn read(&self, partition: PartitionId, from: Position) -> Result<GroupStream<'_>>;

    /// Lets go of records up to a position. What is kept longer is the log's own choice.
    ///
    /// # Errors
    /// I/O errors.
    fn trim(&self, partition: PartitionId, upto: Position) -> Result<()>;
}

/// Groups as they are read back.
pub type GroupStream<'log> = Box<dyn Iterator<Item = Result<StoredGroup>> + Send + 'log>;

/// A group as it was stored: every record with its position.
pub type StoredGroup = Vec<(Position, Record)>;

/// Records that become durable together or not at all.
#[derive(Debug, Clone, Default)]
pub struct RecordGroup {
    /// At least one.
    pub records: Vec<Record>,
}

impl RecordGroup {
    /// A group of one record.
    #[must_use]
    pub fn of(record: Record) -> Self {
        RecordGroup { records: vec![record] }
    }

    /// A group of two records, in this order: their positions follow one another.
    #[must_use]
    pub fn of_two(first: Record, second: Record) -> Self {
        RecordGroup { records: vec![first, second] }
    }

    /// Bytes of all payloads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.payload.len()).sum()
    }
}

/// Rows of one table, encoded: an Arrow IPC stream of one batch, compressed with LZ4 where
/// that helps. Its columns carry their ids ([`crate::schema::FIELD_ID_KEY`]), by which they are
/// found in a table that was altered since ([`crate::storage::conform`]).
#[derive(Debug, Clone)]
pub struct Record {
    /// The table.
    pub table: TableId,
    /// The version of its schema that the rows fit.
    pub schema_version: u32,
    /// How many bytes the payload decompresses to; equal to its length where it is stored
    /// as it is.
    pub raw_len: u32,
    /// Whether the payload is an LZ4 block.
    pub compressed: bool,
    /// CRC32C of the payload.
    pub crc: u32,
    /// The stored bytes.
    pub payload: Bytes,
    /// When it was written to the log, in milliseconds since 1970; 0 before that, and where an
    /// earlier build wrote it.
    pub written_ms: u64,
}

/// Payloads below this size are not worth compressing.
const COMPRESS_FROM: usize = 256;
/// A thread's scratch space is given back beyond this size.
const KEEP_SCRATCH: usize = 4 << 20;

thread_local! {
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl Record {
    /// Encodes rows: one copy into IPC form, one compressing copy, one checksum. Meant for
    /// the caller's thread, so that the log's own thread only writes.
    ///
    /// # Errors
    /// `internal` where Arrow refuses, `too_large` beyond 4 GiB.
    pub fn encode(table: TableId, schema_version: u32, batch: &RecordBatch) -> Result<Record> {
        SCRATCH.with_borrow_mut(|(raw, packed)| {
            let record = encode_with(raw, packed, table, schema_version, batch);
            for scratch in [raw, packed] {
                if scratch.capacity() > KEEP_SCRATCH {
                    *scratch = Vec::new();
                }
            }
            record
        })
    }

    /// The rows again.
    ///
    /// # Errors
    /// `corrupt` where the payload does not decode although its checksum held.
    pub fn decode(&self) -> Result<RecordBatch> {
        let corrupt = |what: String| {
            Error::new(Code::Corrupt, format!("log record of table id {}: {what}", self.table))
        };
        let raw = if self.compressed {
            lz4_flex::block::decompress(&self.payload, self.raw_len as usize)
                .map_err(|error| corrupt(error.to_string()))?
        } else {
            self.payload.to_vec()
        };
        let mut buffer = Buffer::from_vec(raw);
        let mut decoder = StreamDecoder::new();
        match decoder.decode(&mut buffer) {
            Ok(Some(batch)) => Ok(batch),
            Ok(None) => Err(corrupt("holds no batch".to_owned())),
            Err(error) => Err(corrupt(error.to_string())),
        }
    }
}

fn encode_with(
    raw: &mut Vec<u8>,
    packed: &mut Vec<u8>,
    table: TableId,
    schema_version: u32,
    batch: &RecordBatch,
) -> Result<Record> {
    let internal = |error| Error::internal(format!("encode rows of table id {table}: {error}"));
    raw.clear();
    let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5).map_err(internal)?;
    let mut writer = StreamWriter::try_new_with_options(&mut *raw, &batch.schema(), options)
        .map_err(internal)?;
    writer.write(batch).map_err(internal)?;
    writer.finish().map_err(internal)?;
    drop(writer);
    let raw_len = u32::try_from(raw.len()).map_err(|_| {
        Error::new(Code::TooLarge, format!("rows of table id {table} exceed 4 GiB"))
    })?;
    let packed_len = compress(raw, packed)?;
    let compressed = packed_len < raw.len();
    let stored = if compressed { &packed[..packed_len] } else { raw.as_slice() };
    let payload = Bytes::copy_from_slice(stored);
    let crc = crc32c::crc32c(&payload);
    Ok(Record { table, schema_version, raw_len, compressed, crc, payload, written_ms: 0 })
}

/// Compresses into the scratch space; gives the raw length where that does not help.
fn compress(raw: &[u8], packed: &mut Vec<u8>) -> Result<usize> {
    if raw.len() < COMPRESS_FROM {
        return Ok(raw.len());
    }
    let bound = lz4_flex::block::get_maximum_output_size(raw.len());
    if packed.len() < bound {
        packed.resize(bound, 0);
    }
    lz4_flex::block::compress_into(raw, packed)
        .map_err(|error| Error::internal(format!("compress a log record: {error}")))
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, DictionaryArray, Float64Array, TimestampNanosecondArray};
    use arrow::datatypes::{Int32Type, Schema};

    use super::*;
    use crate::schema::{ColumnKind, FieldType, column_id, marked_field};

    fn batch(rows: usize) -> RecordBatch {
        let hosts: DictionaryArray<Int32Type> =
            (0..rows).map(|row| ["a", "b", "c"][row % 3]).collect();
        let times = TimestampNanosecondArray::from_iter_values((0..rows as i64).map(|at| at * 10))
            .with_timezone("+00:00");
        let values: Float64Array =
            (0..rows).map(|row| (row % 7 != 0).then_some(row as f64)).collect();
        let schema = Schema::new(vec![
            marked_field("host", ColumnKind::Tag, FieldType::Text),
            marked_field("time", ColumnKind::Time, FieldType::Timestamp),
            marked_field("value", ColumnKind::Field, FieldType::Float64),
        ]);
        let columns: Vec<ArrayRef> = vec![Arc::new(hosts), Arc::new(times), Arc::new(values)];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    #[test]
    fn rows_come_back_equal() {
        for rows in [1, 3, 100, 5000] {
            let rows = batch(rows);
            let record = Record::encode(TableId(7), 3, &rows).unwrap();
            assert_eq!(record.decode().unwrap(), rows);
        }
        let record = Record::encode(TableId(7), 3, &batch(5000)).unwrap();
        assert!(record.compressed && record.payload.len() < 5000 * 20);
    }

    #[test]
    fn columns_keep_their_ids() {
        let rows = crate::storage::model::Rows { rows: Vec::new(), columns: 0xff }.batch();
        let back = Record::encode(TableId(7), 3, &rows).unwrap().decode().unwrap();
        let ids = back.schema_ref().fields().iter().map(|field| column_id(field).unwrap().0);
        assert_eq!(ids.collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_payload_that_lies_is_an_error() {
        let mut record = Record::encode(TableId(7), 3, &batch(50)).unwrap();
        record.payload = record.payload.slice(..record.payload.len() / 2);
        assert_eq!(record.decode().unwrap_err().code(), Code::Corrupt);
    }
}
