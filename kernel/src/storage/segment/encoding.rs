//! How columns are encoded: quickly at a flush, by trial at a compaction.
//!
//! Times and integers are written as differences, tags through a dictionary. What suits a
//! field depends on its values: floats with two decimals want a dictionary, measured noise
//! wants its bytes split, counters want differences. A compaction therefore encodes a sample
//! of each field in every way that is open to its type and keeps the smallest.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use kymo_config::settings::Segment as Settings;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding as Layout, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{
    EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion,
};
use parquet::schema::types::ColumnPath;

use crate::error::{Error, Result};
use crate::schema::ColumnKind;
use crate::storage::width::row_bytes;

/// How much work goes into the size of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Fast: for rows fresh from memory, which a compaction will write again.
    Cheap,
    /// Small: each column in the layout that a sample compresses best with.
    Thorough,
}

/// Rows of a page. A look-up of one series decodes at least one page of each column; but
/// small pages compress worse and fill the page index: integers of the TSBS kind take 0.391
/// bytes a value with 8,192 rows, 0.371 with 20,480 and 0.367 with 32,768.
const PAGE_ROWS: usize = 20_480;
/// Size of a dictionary beyond which values are written in full.
const DICTIONARY_BYTES: usize = 4 << 20;
/// Size of a row group beyond which it holds fewer rows than set.
pub(super) const GROUP_BYTES: usize = 64 << 20;
/// Size of a page; also what is encoded at a time, at most.
const PAGE_BYTES: usize = 1 << 20;
/// Values that are encoded at a time, at most.
const STEP_ROWS: usize = 1024;
/// Rows of the sample.
pub(super) const SAMPLE_ROWS: usize = 32_768;

/// How the values of one column lie in its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Dictionary,
    Direct(Layout),
}

const DELTA: Choice = Choice::Direct(Layout::DELTA_BINARY_PACKED);
const PLAIN: Choice = Choice::Direct(Layout::PLAIN);
const SPLIT: Choice = Choice::Direct(Layout::BYTE_STREAM_SPLIT);
const PREFIXES: Choice = Choice::Direct(Layout::DELTA_BYTE_ARRAY);
const LENGTHS: Choice = Choice::Direct(Layout::DELTA_LENGTH_BYTE_ARRAY);

/// The layouts open to a column, the one for [`Encoding::Cheap`] first.
fn choices(field: &Field) -> &'static [Choice] {
    match (ColumnKind::of(field), field.data_type()) {
        (ColumnKind::Tag, _) => &[Choice::Dictionary],
        (ColumnKind::Time, _) => &[DELTA],
        (_, DataType::Int64 | DataType::UInt64 | DataType::Timestamp(_, _)) => {
            &[DELTA, Choice::Dictionary, PLAIN]
        }
        (_, DataType::Float64) => &[PLAIN, Choice::Dictionary, SPLIT],
        (_, DataType::Utf8) => &[Choice::Dictionary, PLAIN, PREFIXES, LENGTHS],
        _ => &[PLAIN],
    }
}

/// The properties to write a segment with. `sample` are its first rows.
pub(super) fn properties(
    schema: &Schema,
    sample: &[RecordBatch],
    encoding: Encoding,
    settings: &Settings,
) -> Result<WriterPropertiesBuilder> {
    let compression = compression(encoding, settings)?;
    let mut builder = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by(concat!("kymo ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_max_row_group_row_count(Some(settings.row_group_rows.max(1)))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_write_batch_size((PAGE_BYTES / row_bytes(sample).max(1)).clamp(1, STEP_ROWS))
        .set_dictionary_page_size_limit(DICTIONARY_BYTES)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_compression(compression)
        .set_sorting_columns(Some(sorting(schema)));
    for (place, field) in schema.fields().iter().enumerate() {
        let open = choices(field);
        let choice = match (encoding, open) {
            (Encoding::Thorough, [_, _, ..]) => smallest(field, place, sample, open, compression)?,
            _ => open[0],
        };
        builder = apply(builder, field.name(), choice);
        if ColumnKind::of(field) == ColumnKind::Tag {
            // The series index finds rows by tags; bounds per page would only take room.
            let path = ColumnPath::new(vec![field.name().to_owned()]);
            builder = builder.set_column_statistics_enabled(path, EnabledStatistics::Chunk);
        }
    }
    Ok(builder)
}

fn compression(encoding: Encoding, settings: &Settings) -> Result<Compression> {
    match encoding {
        Encoding::Cheap => Ok(Compression::LZ4_RAW),
        Encoding::Thorough => {
            let level = ZstdLevel::try_new(settings.zstd_level)
                .map_err(|error| Error::internal(format!("segment.zstd_level: {error}")))?;
            Ok(Compression::ZSTD(level))
        }
    }
}

fn apply(builder: WriterPropertiesBuilder, name: &str, choice: Choice) -> WriterPropertiesBuilder {
    // A column name is one part of a path, whatever dots are in it.
    let path = ColumnPath::new(vec![name.to_owned()]);
    match choice {
        Choice::Dictionary => builder.set_column_dictionary_enabled(path, true),
        Choice::Direct(layout) => builder
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_encoding(path, layout),
    }
}

/// Tags, then time: the order of the rows.
fn sorting(schema: &Schema) -> Vec<SortingColumn> {
    let of = |kind: ColumnKind| {
        let fields = schema.fields().iter().enumerate();
        fields.filter(move |(_, field)| ColumnKind::of(field) == kind).map(|(place, _)| {
            SortingColumn { column_idx: place as i32, descending: false, nulls_first: true }
        })
    };
    of(ColumnKind::Tag).chain(of(ColumnKind::Time)).collect()
}

fn smallest(
    field: &Field,
    place: usize,
    sample: &[RecordBatch],
    open: &[Choice],
    compression: Compression,
) -> Result<Choice> {
    let columns: Vec<ArrayRef> = sample.iter().map(|batch| batch.column(place).clone()).collect();
    let mut best = (open[0], usize::MAX);
    for choice in open {
        let size = measure(field, &columns, *choice, compression).map_err(|error| {
            Error::internal(format!("try encodings of column {:?}: {error}", field.name()))
        })?;
        if size < best.1 {
            best = (*choice, size);
        }
    }
    Ok(best.0)
}

/// The bytes that a column takes in one layout.
fn measure(
    field: &Field,
    columns: &[ArrayRef],
    choice: Choice,
    compression: Compression,
) -> Result<usize, ParquetError> {
    let schema = Arc::new(Schema::new(vec![field.clone()]));
    let builder = WriterProperties::builder()
        .set_statistics_enabled(EnabledStatistics::None)
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_compression(compression);
    let properties = apply(builder, field.name(), choice).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema.clone(), Some(properties))?;
    for column in columns {
        writer.write(&RecordBatch::try_new(schema.clone(), vec![column.clone()])?)?;
    }
    writer.close()?;
    Ok(bytes.len())
}
