//! Reads segments: any columns, of any rows, in batches of bounded size.
//!
//! Opening reads the footer, the page index and the directory of the series index, and
//! keeps them; a reader is then cheap to clone and reads only the pages that hold wanted
//! rows. Every byte is checked before it is decoded: decoders of damaged bytes may panic, or
//! worse, succeed. Columns are found by their id, so a renamed column keeps its values; one that the
//! file lacks is NULL.

use std::io::{self, Read};
use std::iter;
use std::ops::ControlFlow;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::{Field, Schema, SchemaRef};
use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData, RowGroupMetaData,
};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::statistics::Statistics;
use serde::de::DeserializeOwned;

use crate::error::{Code, Error, Result};
use crate::ids::TimeRange;
use crate::schema::{ColumnKind, column_id};
use crate::storage::conform::{Places, widened};
use crate::storage::meta::SegmentMeta;
use crate::storage::segment::blocks::{self, Checked};
use crate::storage::segment::index::{self, SeriesIndex, TagFilter};
use crate::storage::segment::store::{SegmentBytes, SegmentStore};
use crate::storage::version::Lease;
use crate::storage::width::fitting;

/// An open segment.
#[derive(Clone)]
pub struct SegmentReader {
    open: Arc<Open>,
    /// Keeps the file from going while it is read.
    lease: Option<Arc<Lease>>,
}

struct Open {
    meta: Arc<SegmentMeta>,
    checked: Arc<Checked>,
    arrow: ArrowReaderMetadata,
    places: Places,
    index: SeriesIndex,
}

impl std::fmt::Debug for SegmentReader {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "SegmentReader({})", self.open.meta.path)
    }
}

/// What to read of a segment.
#[derive(Debug, Clone)]
pub struct Scan {
    /// The columns, as fields of the table's Arrow schema with their ids.
    pub output: SchemaRef,
    /// The series.
    pub tags: TagFilter,
    /// Rows outside may come too: pages are passed over, rows are not filtered.
    pub time: TimeRange,
    /// The largest batch.
    pub batch_rows: usize,
}

impl Scan {
    /// Everything, in some columns.
    #[must_use]
    pub fn all(output: SchemaRef, batch_rows: usize) -> Scan {
        Scan { output, tags: TagFilter::all(), time: TimeRange::ALL, batch_rows }
    }
}

impl SegmentReader {
    /// Opens a segment.
    ///
    /// # Errors
    /// `corrupt` naming the file where it is missing, cut off, or not what the metadata says;
    /// `io_error`.
    pub fn open(store: &dyn SegmentStore, meta: &Arc<SegmentMeta>) -> Result<SegmentReader> {
        SegmentReader::load(store, meta, false)
    }

    /// As [`SegmentReader::open`], for salvaging rows by their place: the series index may be
    /// damaged, and nothing can be asked of it.
    ///
    /// # Errors
    /// As [`SegmentReader::open`].
    pub fn open_damaged(
        store: &dyn SegmentStore,
        meta: &Arc<SegmentMeta>,
    ) -> Result<SegmentReader> {
        SegmentReader::load(store, meta, true)
    }

    fn load(
        store: &dyn SegmentStore,
        meta: &Arc<SegmentMeta>,
        damaged: bool,
    ) -> Result<SegmentReader> {
        let bytes = store.open(&meta.path)?;
        let size = bytes.size().map_err(|error| Error::io(read_of(&meta.path), error))?;
        if size != meta.bytes {
            return Err(corrupt(
                &meta.path,
                format_args!("it has {size} bytes, the metadata says {}", meta.bytes),
            ));
        }
        let tail = Tail::read(bytes.as_ref(), meta)?;
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let arrow = ArrowReaderMetadata::load(&tail, options)
            .map_err(|error| from_parquet(&meta.path, error))?;
        let rows = arrow.metadata().file_metadata().num_rows();
        if u64::try_from(rows) != Ok(meta.rows) {
            return Err(corrupt(
                &meta.path,
                format_args!("it has {rows} rows, the metadata says {}", meta.rows),
            ));
        }
        let (checked, index) = load_extras(bytes, &arrow, meta, damaged)
            .map_err(|error| error.context(read_of(&meta.path)))?;
        let places = Places::of(arrow.schema());
        let open = Open { meta: meta.clone(), checked, arrow, places, index };
        Ok(SegmentReader { open: Arc::new(open), lease: None })
    }

    /// The same, which keeps the file from going.
    #[must_use]
    pub fn held_by(mut self, lease: Arc<Lease>) -> SegmentReader {
        self.lease = Some(lease);
        self
    }

    /// The memory that footer and indexes take, about.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let own = self.parquet().memory_size() + self.open.index.memory_bytes();
        own + self.open.checked.memory_bytes()
    }

    /// What the metadata of the store says of it.
    #[must_use]
    pub fn meta(&self) -> &Arc<SegmentMeta> {
        &self.open.meta
    }

    /// The footer, with page index.
    #[must_use]
    pub fn parquet(&self) -> &Arc<ParquetMetaData> {
        self.open.arrow.metadata()
    }

    /// The footer as Parquet's Arrow readers want it.
    #[must_use]
    pub fn arrow(&self) -> &ArrowReaderMetadata {
        &self.open.arrow
    }

    /// The bytes, for walking the series index.
    #[must_use]
    pub fn bytes(&self) -> &dyn SegmentBytes {
        self.open.checked.bytes()
    }

    /// The index from series to rows.
    #[must_use]
    pub fn index(&self) -> &SeriesIndex {
        &self.open.index
    }

    /// The rows of the series that a filter lets through, ascending.
    ///
    /// # Errors
    /// `corrupt` naming the file, `io_error`.
    pub fn rows_of(&self, filter: &TagFilter) -> Result<Vec<Range<u64>>> {
        if filter.is_all() {
            return Ok(iter::once(0..self.open.meta.rows).collect());
        }
        self.open
            .index
            .select(self.bytes(), filter)
            .map_err(|error| error.context(read_of(&self.open.meta.path)))
    }

    /// The rows of the pages that can hold a time of the range, ascending.
    #[must_use]
    pub fn rows_within(&self, time: &TimeRange) -> Vec<Range<u64>> {
        let all = iter::once(0..self.open.meta.rows).collect();
        let own = self.open.meta.time;
        if time.first <= own.first && own.last <= time.last {
            return all;
        }
        let Some(column) = self.time_column() else { return all };
        page_rows(self.parquet(), column, time).unwrap_or(all)
    }

    /// The rows of a row group; none where there is no such row group.
    #[must_use]
    pub fn group_rows(&self, group: usize) -> Range<u64> {
        let rows = |group: &RowGroupMetaData| u64::try_from(group.num_rows()).unwrap_or_default();
        let groups = self.parquet().row_groups();
        let start = groups.iter().take(group).map(rows).sum();
        start..start + groups.get(group).map_or(0, rows)
    }

    /// The earliest and the latest time of a row group, where its statistics say.
    #[must_use]
    pub fn time_of(&self, group: usize) -> Option<TimeRange> {
        let column = self.parquet().row_groups().get(group)?.column(self.time_column()?);
        let Statistics::Int64(bounds) = column.statistics()? else { return None };
        Some(TimeRange { first: *bounds.min_opt()?, last: *bounds.max_opt()? })
    }

    /// Whether it has exactly these columns, in this order and with these types.
    #[must_use]
    pub fn has_columns(&self, columns: &Schema) -> bool {
        let own = self.open.arrow.schema().fields();
        let same = |(own, other): (&Arc<Field>, &Arc<Field>)| {
            column_id(own) == column_id(other)
                && own.name() == other.name()
                && own.data_type() == other.data_type()
                && own.is_nullable() == other.is_nullable()
        };
        own.len() == columns.fields().len() && own.iter().zip(columns.fields()).all(same)
    }

    /// Calls `visit` with each series from the first key that is not below `from`, and its rows.
    ///
    /// # Errors
    /// `corrupt` naming the file, `io_error`, and what `visit` returns.
    pub fn walk(&self, from: &[u8], visit: &mut index::Visit<'_>) -> Result<()> {
        let walked = self.open.index.walk(self.bytes(), from, visit);
        walked.map_err(|error| error.context(read_of(&self.open.meta.path)))
    }

    /// Calls `visit` with each series that has any of some rows, and those of its rows.
    ///
    /// # Errors
    /// `corrupt` naming the file, `io_error`, and what `visit` returns.
    pub fn walk_rows(&self, rows: Range<u64>, visit: &mut index::Visit<'_>) -> Result<()> {
        let walked = self.open.index.walk_rows(self.bytes(), rows, visit);
        walked.map_err(|error| error.context(read_of(&self.open.meta.path)))
    }

    /// The memory that reading all columns one page at a time takes, about: a page as it is
    /// stored and as it is decoded, and a dictionary.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        let parquet = self.parquet();
        let pages = |group: usize, column: usize| {
            let offsets = parquet.offset_index().and_then(|all| all.get(group)?.get(column));
            offsets.map_or(1, |offsets| offsets.page_locations().len().max(1))
        };
        let of_group = |(place, group): (usize, &RowGroupMetaData)| -> usize {
            let columns = group.columns().iter().enumerate();
            columns.map(|(at, column)| column_pages(column, pages(place, at))).sum()
        };
        parquet.row_groups().iter().enumerate().map(of_group).max().unwrap_or_default()
    }

    fn time_column(&self) -> Option<usize> {
        let fields = self.open.arrow.schema().fields();
        fields.iter().position(|field| ColumnKind::of(field) == ColumnKind::Time)
    }

    /// Reads what `scan` asks for, sorted by tags and time.
    ///
    /// # Errors
    /// `corrupt` naming the file, `io_error`.
    pub fn scan(&self, scan: &Scan) -> Result<SegmentScan> {
        let rows = intersect(&self.rows_of(&scan.tags)?, &self.rows_within(&scan.time));
        self.read(&scan.output, &rows, scan.batch_rows)
    }

    /// Reads some columns of some rows, given as ascending ranges, in batches of at most
    /// `batch_rows` and about [`crate::storage::width::BATCH_BYTES`].
    ///
    /// # Errors
    /// `corrupt` naming the file, `io_error`.
    pub fn read(
        &self,
        output: &SchemaRef,
        rows: &[Range<u64>],
        batch_rows: usize,
    ) -> Result<SegmentScan> {
        let failed = |error| from_parquet(&self.open.meta.path, error);
        let (groups, selection) = self.select(rows);
        let (mask, places) = self.columns(output);
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(
            self.source(),
            self.open.arrow.clone(),
        )
        .with_batch_size(fitting(batch_rows, self.row_bytes()))
        .with_projection(mask)
        .with_row_groups(groups);
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        Ok(SegmentScan {
            inner: builder.build().map_err(failed)?,
            reader: self.clone(),
            output: output.clone(),
            places,
        })
    }

    /// The mean size of a row once it is read.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        let columns = self.parquet().row_groups().iter().flat_map(|group| group.columns());
        let texts: i64 =
            columns.filter_map(|column| column.unencoded_byte_array_data_bytes()).sum();
        let rows = usize::try_from(self.open.meta.rows).unwrap_or(usize::MAX).max(1);
        let fixed = self.open.arrow.schema().fields().len() * size_of::<u64>();
        usize::try_from(texts).unwrap_or_default() / rows + fixed
    }

    /// The bytes as Parquet's readers want them.
    #[must_use]
    pub fn source(&self) -> Source {
        Source(self.open.checked.clone())
    }

    /// The row groups that hold any of the rows, and which of theirs are wanted; `None` for
    /// all of them.
    fn select(&self, rows: &[Range<u64>]) -> (Vec<usize>, Option<RowSelection>) {
        let mut groups = Vec::new();
        let mut wanted: Vec<Range<usize>> = Vec::new();
        let (mut start, mut kept, mut count) = (0u64, 0usize, 0usize);
        for (place, group) in self.parquet().row_groups().iter().enumerate() {
            let end = start + u64::try_from(group.num_rows()).unwrap_or_default();
            let first = rows.partition_point(|range| range.end <= start);
            let inside = rows[first..].iter().take_while(|range| range.start < end);
            let before = wanted.len();
            for range in inside {
                let from = (range.start.max(start) - start) as usize + kept;
                let to = (range.end.min(end) - start) as usize + kept;
                count += to - from;
                wanted.push(from..to);
            }
            if wanted.len() > before {
                groups.push(place);
                kept += (end - start) as usize;
            }
            start = end;
        }
        let selection =
            (count < kept).then(|| RowSelection::from_consecutive_ranges(wanted.into_iter(), kept));
        (groups, selection)
    }

    /// Which leaves to read, and for each field of the output its place among them.
    fn columns(&self, output: &Schema) -> (ProjectionMask, Vec<Option<usize>>) {
        let (own, places) = (self.open.arrow.schema(), &self.open.places);
        let find = |field: &Arc<Field>| places.find(own, field);
        let found: Vec<Option<usize>> = output.fields().iter().map(find).collect();
        let mut leaves: Vec<usize> = found.iter().flatten().copied().collect();
        leaves.sort_unstable();
        leaves.dedup();
        let places =
            found.iter().map(|leaf| leaf.and_then(|leaf| leaves.binary_search(&leaf).ok()));
        let places = places.collect();
        (ProjectionMask::leaves(self.open.arrow.parquet_schema(), leaves), places)
    }

    /// Reads the whole file and checks it.
    ///
    /// # Errors
    /// `corrupt` naming the file, `io_error`.
    pub fn verify(&self) -> Result<()> {
        let named = |error: Error| error.context(read_of(&self.open.meta.path));
        Tail::read(self.bytes(), &self.open.meta)?;
        self.open.checked.verify().map_err(named)?;
        let visit = &mut |_: &[u8], _: Range<u64>| Ok(ControlFlow::Continue(()));
        self.open.index.walk(self.bytes(), &[], visit).map_err(named)
    }
}

fn load_extras(
    bytes: Arc<dyn SegmentBytes>,
    arrow: &ArrowReaderMetadata,
    meta: &SegmentMeta,
    damaged: bool,
) -> Result<(Arc<Checked>, SeriesIndex)> {
    let place: index::Place = described(arrow, index::KEY)?;
    let index = match SeriesIndex::load(bytes.as_ref(), &place, meta.rows) {
        Err(error) if damaged && error.code() == Code::Corrupt => SeriesIndex::absent(meta.rows),
        loaded => loaded?,
    };
    let place: blocks::Place = described(arrow, blocks::KEY)?;
    let checked = Checked::load(bytes, &place)?;
    Ok((Arc::new(checked), index))
}

/// What the footer says of an extra part of the file.
fn described<T: DeserializeOwned>(arrow: &ArrowReaderMetadata, key: &str) -> Result<T> {
    let pairs = arrow.metadata().file_metadata().key_value_metadata();
    pairs
        .and_then(|pairs| pairs.iter().find(|pair| pair.key == key))
        .and_then(|pair| pair.value.as_deref())
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| Error::new(Code::Corrupt, format!("its footer has no valid {key}")))
}

/// The memory that one page of a column chunk and its dictionary take, about.
fn column_pages(column: &ColumnChunkMetaData, pages: usize) -> usize {
    let size = |bytes: i64| usize::try_from(bytes).unwrap_or_default();
    let (stored, full) = (size(column.compressed_size()), size(column.uncompressed_size()));
    let dictionary = column.dictionary_page_offset().map_or(0, |dictionary| {
        let packed = size(column.data_page_offset().saturating_sub(dictionary));
        // What is known is how well the whole chunk compresses.
        packed.saturating_mul(full) / stored.max(1)
    });
    (stored + full) / pages + dictionary
}

fn page_rows(
    parquet: &ParquetMetaData,
    column: usize,
    time: &TimeRange,
) -> Option<Vec<Range<u64>>> {
    let (ranges, offsets) = (parquet.column_index()?, parquet.offset_index()?);
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut start = 0u64;
    for (place, group) in parquet.row_groups().iter().enumerate() {
        let end = start + u64::try_from(group.num_rows()).ok()?;
        let ColumnIndexMetaData::INT64(range) = ranges.get(place)?.get(column)? else {
            return None;
        };
        let pages = offsets.get(place)?.get(column)?.page_locations();
        for (page, location) in pages.iter().enumerate() {
            let page_range =
                TimeRange { first: *range.min_value(page)?, last: *range.max_value(page)? };
            if !page_range.overlaps(time) {
                continue;
            }
            let from = start + u64::try_from(location.first_row_index).ok()?;
            let next = pages.get(page + 1).map(|next| u64::try_from(next.first_row_index));
            let to = next.map_or(Some(end), |next| Some(start + next.ok()?))?;
            match found.last_mut() {
                Some(last) if last.end == from => last.end = to,
                _ => found.push(from..to),
            }
        }
        start = end;
    }
    Some(found)
}

/// The rows that are in both, where both are ascending.
#[must_use]
pub fn intersect(a: &[Range<u64>], b: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut i, mut j) = (0, 0);
    let mut both = Vec::new();
    while i < a.len() && j < b.len() {
        let range = a[i].start.max(b[j].start)..a[i].end.min(b[j].end);
        if !range.is_empty() {
            both.push(range);
        }
        if a[i].end < b[j].end { i += 1 } else { j += 1 }
    }
    both
}

/// The batches of a segment.
pub struct SegmentScan {
    inner: ParquetRecordBatchReader,
    reader: SegmentReader,
    output: SchemaRef,
    places: Vec<Option<usize>>,
}

impl SegmentScan {
    fn shape(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let fill = |(place, field): (&Option<usize>, &Arc<Field>)| match place {
            Some(place) => widened(batch.column(*place), field),
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        };
        let columns = self.places.iter().zip(self.output.fields()).map(fill);
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(self.output.clone(), columns, &options)
            .map_err(|error| corrupt(&self.reader.meta().path, error))
    }
}

impl Iterator for SegmentScan {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(match self.inner.next()? {
            Ok(batch) => self.shape(&batch),
            Err(error) => Err(from_parquet(&self.reader.meta().path, error.into())),
        })
    }
}

/// The last part of a file, with footer and page index, checked and in memory.
struct Tail {
    start: u64,
    bytes: Bytes,
}

impl Tail {
    fn read(bytes: &dyn SegmentBytes, meta: &SegmentMeta) -> Result<Tail> {
        let length = meta.bytes.checked_sub(meta.footer);
        let length =
            length.ok_or_else(|| corrupt(&meta.path, "its footer begins behind its end"))?;
        let mut tail = vec![0; length as usize];
        let read = bytes
            .read_at(&mut tail, meta.footer)
            .map_err(|error| Error::io(read_of(&meta.path), error))?;
        if read != tail.len() || crc32c::crc32c(&tail) != meta.checksum {
            return Err(corrupt(&meta.path, "its footer does not match its checksum"));
        }
        Ok(Tail { start: meta.footer, bytes: tail.into() })
    }

    fn part(&self, start: u64, length: usize) -> Option<Bytes> {
        let from = usize::try_from(start.checked_sub(self.start)?).ok()?;
        let to = from.checked_add(length).filter(|to| *to <= self.bytes.len())?;
        Some(self.bytes.slice(from..to))
    }
}

impl Length for Tail {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Tail {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Reader<Bytes>> {
        let rest = self.len().saturating_sub(start) as usize;
        self.get_bytes(start, rest).map(Buf::reader)
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.part(start, length).ok_or_else(|| {
            ParquetError::EOF(format!("bytes {start}+{length} are no part of the footer"))
        })
    }
}

/// The row groups of a segment for Parquet's readers. Whatever is read is checked first.
#[derive(Clone)]
pub struct Source(Arc<Checked>);

impl Length for Source {
    fn len(&self) -> u64 {
        self.0.covered()
    }
}

impl ChunkReader for Source {
    type T = SourceRead;

    fn get_read(&self, start: u64) -> parquet::errors::Result<SourceRead> {
        Ok(SourceRead { source: self.clone(), at: start, ready: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.0.read(start, length).map_err(|error| ParquetError::External(Box::new(error)))
    }
}

/// Reads a segment's bytes one after the other.
pub struct SourceRead {
    source: Source,
    at: u64,
    ready: Bytes,
}

/// How much is read ahead.
const READ_AHEAD: u64 = 64 << 10;

impl Read for SourceRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            let rest = self.source.len().saturating_sub(self.at).min(READ_AHEAD);
            self.ready = self.source.0.read(self.at, rest as usize).map_err(io::Error::other)?;
            self.at += rest;
        }
        let count = buffer.len().min(self.ready.len());
        self.ready.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

fn read_of(path: &str) -> String {
    format!("read segment {path}")
}

fn corrupt(path: &str, what: impl std::fmt::Display) -> Error {
    Error::new(Code::Corrupt, format!("segment {path} does not verify: {what}"))
        .with_hint("restore the file from a backup, or run `kymo repair`")
}

/// An error of Parquet's, told apart into trouble with the disk and damaged bytes.
pub(super) fn from_parquet(path: &str, error: ParquetError) -> Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<Error>() {
            Ok(error) => error.context(read_of(path)),
            Err(error) => corrupt(path, error),
        },
        error => corrupt(path, error),
    }
}
