//! The row groups of a segment being written: rows that are encoded here, and row groups of
//! other segments that are copied as the bytes they are.
//!
//! A copied row group keeps its encodings, its statistics and its page index; only offsets
//! change. That costs reading and writing, and none of the decoding and compressing that makes
//! merging slow. Its bytes are checked like any that are read.

use std::io::{self, Write};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;

use crate::storage::segment::read::SegmentReader;

/// A Parquet file that grows by row groups.
pub(super) struct Groups<W: Write + Send> {
    file: SerializedFileWriter<W>,
    factory: ArrowRowGroupWriterFactory,
    columns: SchemaRef,
    /// The row group that rows are added to; empty where none is begun.
    open: Vec<ArrowColumnWriter>,
    /// Rows in it.
    rows: usize,
    max_rows: usize,
    max_bytes: usize,
}

impl<W: Write + Send> Groups<W> {
    /// Begins a file; row groups end where `properties` say.
    pub(super) fn create(
        sink: W,
        columns: &SchemaRef,
        properties: WriterProperties,
    ) -> Result<Self> {
        let writer = ArrowWriter::try_new(sink, columns.clone(), Some(properties))?;
        let (file, factory) = writer.into_serialized_writer()?;
        let max_rows = file.properties().max_row_group_row_count().unwrap_or(usize::MAX);
        let max_bytes = file.properties().max_row_group_bytes().unwrap_or(usize::MAX);
        let columns = columns.clone();
        Ok(Groups { file, factory, columns, open: Vec::new(), rows: 0, max_rows, max_bytes })
    }

    /// Adds rows, and ends row groups where they are full.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut done = 0;
        while done < batch.num_rows() {
            let rows = self.room().min(batch.num_rows() - done);
            self.encode(&batch.slice(done, rows))?;
            done += rows;
            if self.rows >= self.max_rows || self.bytes() >= self.max_bytes {
                self.end_group()?;
            }
        }
        Ok(())
    }

    /// How many more rows the row group takes, judged by those that it has; at least one.
    fn room(&self) -> usize {
        let rows = self.max_rows.saturating_sub(self.rows);
        let mean = self.bytes().checked_div(self.rows).unwrap_or_default().max(1);
        let fitting = self.max_bytes.saturating_sub(self.bytes()) / mean;
        rows.min(fitting).max(1)
    }

    /// About the size of the row group once it is encoded.
    fn bytes(&self) -> usize {
        self.open.iter().map(ArrowColumnWriter::get_estimated_total_bytes).sum()
    }

    fn encode(&mut self, rows: &RecordBatch) -> Result<()> {
        if self.open.is_empty() {
            self.open = self.factory.create_column_writers(self.file.flushed_row_groups().len())?;
        }
        self.rows += rows.num_rows();
        let mut writers = self.open.iter_mut();
        for (field, column) in self.columns.fields().iter().zip(rows.columns()) {
            for leaf in compute_leaves(field, column)? {
                let writer = writers.next();
                writer
                    .ok_or_else(|| ParquetError::General("no such column".into()))?
                    .write(&leaf)?;
            }
        }
        Ok(())
    }

    /// Ends the row group that rows are added to, if one is begun.
    pub(super) fn end_group(&mut self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        self.rows = 0;
        let mut group = self.file.next_row_group()?;
        for writer in std::mem::take(&mut self.open) {
            writer.close()?.append_to_row_group(&mut group)?;
        }
        group.close().map(|_| ())
    }

    /// Copies a row group of another segment, which must have the same columns.
    pub(super) fn copy(&mut self, from: &SegmentReader, number: usize) -> Result<()> {
        self.end_group()?;
        let (parquet, source) = (from.parquet(), from.source());
        let meta = parquet.row_group(number);
        let mut group = self.file.next_row_group()?;
        for (place, column) in meta.columns().iter().enumerate() {
            let ranges = parquet.column_index().and_then(|all| all.get(number)?.get(place));
            let offsets = parquet.offset_index().and_then(|all| all.get(number)?.get(place));
            let close = ColumnCloseResult {
                bytes_written: u64::try_from(column.compressed_size()).unwrap_or_default(),
                rows_written: u64::try_from(meta.num_rows()).unwrap_or_default(),
                metadata: column.clone(),
                bloom_filter: None,
                column_index: ranges
                    .filter(|ranges| !matches!(ranges, ColumnIndexMetaData::NONE))
                    .cloned(),
                offset_index: offsets.cloned(),
            };
            group.append_column(&source, close)?;
        }
        group.close().map(|_| ())
    }

    /// Hands everything down to the sink.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// The bytes so far, those included that are on their way to the sink.
    pub(super) fn bytes_written(&self) -> usize {
        self.file.bytes_written()
    }

    /// The sink, not to be written to.
    pub(super) fn sink(&mut self) -> &mut W {
        self.file.inner_mut()
    }

    /// Adds bytes that other readers pass over. The open row group must have ended.
    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Adds a pair to the file's metadata.
    pub(super) fn describe(&mut self, key: &str, value: String) {
        self.file.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
    }

    /// Ends the file with its footer.
    pub(super) fn finish(&mut self) -> Result<ParquetMetaData> {
        self.end_group()?;
        self.file.finish()
    }
}
