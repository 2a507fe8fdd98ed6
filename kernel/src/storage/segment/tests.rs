//! Tests of whole segments: written, read back by us and by others, searched, and damaged.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type, TimestampNanosecondType};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type};
use parquet::file::reader::{FileReader, SerializedFileReader};
use proptest::prelude::*;

use super::read::intersect;
use super::*;
use crate::env::Disk;
use crate::error::Code;
use crate::ids::{SegmentId, TimeRange};
use crate::storage::key;
use crate::storage::meta::{Scalar, SegmentMeta};
use crate::storage::model::{Bench, Row, Rows, expected, read, row, table};

const ALL: u8 = 0xff;

/// A single range as the list that it stands for.
fn one(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

fn text(prefix: &str, number: i64) -> Option<String> {
    Some(format!("{prefix}{number}"))
}

/// 20 × 3 series of 8 rows each, within one window.
fn many() -> Rows {
    let mut rows = Vec::new();
    for time in 0..8 {
        for a in 0..20 {
            for b in 0..3 {
                rows.push(Row {
                    a: text("host", a),
                    b: (b > 0).then(|| format!("cpu{b}")),
                    time: time * 10,
                    float: Some(a as f64 / 2.0),
                    int: (b != 1).then_some(time),
                    text: text("t", b),
                });
            }
        }
    }
    Rows { rows, columns: ALL }
}

/// A table with one segment of these rows.
fn segment(rows: &Rows) -> (Bench, SegmentReader) {
    let mut bench = Bench::new(false);
    bench.write(rows.batch());
    bench.flush();
    let version = bench.version();
    assert_eq!(version.segments.len(), 1);
    let reader = version.segments[0].reader().unwrap();
    (bench, reader)
}

fn place(meta: &SegmentMeta) -> String {
    format!("/store/{}", meta.path)
}

fn content(bench: &Bench, meta: &SegmentMeta) -> Vec<u8> {
    let file = bench.sim.disk.open(Path::new(&place(meta))).unwrap();
    let mut bytes = vec![0; meta.bytes as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn rows_of(reader: &SegmentReader, ranges: &[Range<u64>]) -> Vec<Row> {
    let scan = reader.read(&table(false).schema.arrow(), ranges, 5).unwrap();
    scan.flat_map(|batch| read(&batch.unwrap())).collect()
}

#[test]
fn the_metadata_describes_the_rows() {
    let (_, reader) = segment(&many());
    let meta = reader.meta();
    assert_eq!(meta.rows, 480);
    assert_eq!(meta.time, TimeRange { first: 0, last: 70 });
    assert_eq!(meta.key_min, key::of([Some("host0"), None]));
    assert_eq!(meta.key_max, key::of([Some("host9"), Some("cpu2")]));
    assert_eq!(meta.late, None);
    assert!(meta.path.starts_with("data/kymo/public/rows/1970-01-01T000000Z/"), "{}", meta.path);
    assert!(meta.path.ends_with(&format!("{}.parquet", meta.id)));
    let stats = |id: u32| meta.columns.iter().find(|stats| stats.column.0 == id).unwrap();
    assert_eq!(stats(3).min, Some(Scalar::Float64(0.0)));
    assert_eq!(stats(3).max, Some(Scalar::Float64(9.5)));
    assert_eq!(stats(4).max, Some(Scalar::Timestamp(70)));
    assert_eq!(stats(5).nulls, 160);
    assert_eq!(stats(5).max, Some(Scalar::Int64(7)));
    assert_eq!(stats(2).min, Some(Scalar::Text("cpu1".into())));
    assert_eq!(reader.index().series(), 60);
    reader.verify().unwrap();
}

#[test]
fn a_nan_takes_the_bounds_of_its_column() {
    let mut rows = many();
    rows.rows[3].float = Some(f64::NAN);
    let (_, reader) = segment(&rows);
    let stats = &reader.meta().columns[2];
    assert_eq!((stats.column.0, &stats.min, &stats.max), (3, &None, &None));
}

/// Nothing of ours is needed to read a segment: plain types, plain names, stable ids.
#[test]
fn any_parquet_reader_opens_a_segment() {
    let (bench, reader) = segment(&many());
    let bytes = Bytes::from(content(&bench, reader.meta()));
    let plain = SerializedFileReader::new(bytes.clone()).unwrap();
    let schema = plain.metadata().file_metadata().schema_descr();
    let column = |at: usize| schema.column(at);
    assert_eq!(column(0).physical_type(), Type::BYTE_ARRAY);
    assert_eq!(column(0).logical_type_ref(), Some(&LogicalType::String));
    assert_eq!(column(0).converted_type(), ConvertedType::UTF8);
    assert_eq!(column(3).name(), "time");
    let time = column(3);
    let Some(LogicalType::Timestamp(kind)) = time.logical_type_ref() else { panic!("no instant") };
    assert!(kind.is_adjusted_to_u_t_c && kind.unit == TimeUnit::NANOS);
    for (at, id) in [(0, 1), (3, 4), (5, 6)] {
        assert_eq!(column(at).self_type().get_basic_info().id(), id);
    }
    let sorting = plain.metadata().row_group(0).sorting_columns().unwrap();
    assert_eq!(sorting.iter().map(|by| by.column_idx).collect::<Vec<_>>(), [0, 1, 3]);
    assert_eq!(plain.get_row_iter(None).unwrap().count(), 480);

    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let batches = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options).unwrap();
    let batches: Vec<RecordBatch> = batches.build().unwrap().map(Result::unwrap).collect();
    assert_eq!(*batches[0].column(0).data_type(), DataType::Utf8);
    let times: usize = batches.iter().map(|batch| batch.column(3).len()).sum();
    assert_eq!(times, 480);
    let first = batches[0].column(4).as_primitive::<Int64Type>().value(1);
    assert_eq!(first, 1);
}

#[test]
fn columns_are_found_by_their_id_and_absent_ones_are_null() {
    let mut rows = many();
    rows.columns = ALL & !(1 << 4);
    let (_, reader) = segment(&rows);
    let mut schema = table(false).schema;
    schema.columns[4].name = "renamed".to_owned();
    let batch = reader.scan(&Scan::all(schema.arrow(), 480)).unwrap().next().unwrap().unwrap();
    assert_eq!(batch.num_rows(), 480);
    let renamed = batch.column_by_name("renamed").unwrap();
    assert_eq!(renamed.null_count(), 160);
    let absent = batch.column_by_name("text").unwrap();
    assert_eq!(absent.null_count(), absent.len());
}

#[test]
fn a_scan_without_columns_counts_rows() {
    let (_, reader) = segment(&many());
    let none = Arc::new(arrow::datatypes::Schema::empty());
    let scan = reader.scan(&Scan::all(none, 100)).unwrap();
    assert_eq!(scan.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 480);
}

#[test]
fn pages_outside_of_the_time_range_are_passed_over() {
    let (_, reader) = segment(&many());
    let time = TimeRange { first: 70, last: 70 };
    let ranges = reader.rows_within(&time);
    let found = rows_of(&reader, &ranges);
    assert!(found.len() < 480, "{} rows", found.len());
    assert_eq!(found.iter().filter(|row| row.time == 70).count(), 60);
    assert!(reader.rows_within(&TimeRange { first: 71, last: 99 }).is_empty());
    assert_eq!(reader.rows_within(&TimeRange::ALL), one(0..480));
}

fn filter() -> impl Strategy<Value = Vec<(usize, Vec<Option<String>>)>> {
    let host = prop_oneof![
        8 => (0..25i64).prop_map(|a| text("host", a)),
        1 => Just(None),
    ];
    let cpu = prop_oneof![(0..4i64).prop_map(|b| text("cpu", b)), Just(None)];
    let hosts = proptest::option::of(proptest::collection::vec(host, 0..4));
    let cpus = proptest::option::of(proptest::collection::vec(cpu, 0..3));
    (hosts, cpus).prop_map(|(a, b)| {
        [(0, a), (1, b)]
            .into_iter()
            .filter_map(|(place, values)| values.map(|values| (place, values)))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_index_finds_exactly_the_wanted_series(wanted in filter()) {
        let (_, reader) = segment(&many());
        let all = expected(&[many()], false);
        let mut filter = TagFilter::all();
        for (place, values) in wanted.iter().rev() {
            filter = filter.and(*place, values.clone());
        }
        let ranges = reader.rows_of(&filter).unwrap();
        let passes = |row: &&Row| wanted.iter().all(|(place, values)| {
            values.contains(if *place == 0 { &row.a } else { &row.b })
        });
        let naive: Vec<Row> = all.iter().filter(passes).cloned().collect();
        prop_assert_eq!(rows_of(&reader, &ranges), naive.clone());
        let meta = reader.meta();
        prop_assert!(naive.is_empty() || filter.may_match(&meta.key_min, &meta.key_max));
    }

    #[test]
    fn what_is_written_is_read(rows in proptest::collection::vec(row(), 1..60)) {
        let rows: Vec<Row> = rows.into_iter().filter(|row| (0..100).contains(&row.time)).collect();
        prop_assume!(!rows.is_empty());
        let rows = Rows { rows, columns: ALL };
        let (_, reader) = segment(&rows);
        let all = 0..reader.meta().rows;
        prop_assert_eq!(rows_of(&reader, std::slice::from_ref(&all)), expected(&[rows], false));
    }
}

#[test]
fn many_series_take_several_blocks() {
    let rows = (0..1000).map(|number| Row {
        a: Some(format!("series-{number:04}")),
        b: None,
        time: 1,
        float: None,
        int: Some(number),
        text: None,
    });
    let (_, reader) = segment(&Rows { rows: rows.collect(), columns: ALL });
    assert_eq!(reader.index().series(), 1000);
    for number in [0, 255, 256, 511, 512, 999] {
        let filter = TagFilter::all().and(0, [Some(format!("series-{number:04}"))]);
        assert_eq!(reader.rows_of(&filter).unwrap(), one(number..number + 1));
    }
    let mut walked = 0;
    let visit = &mut |_: &[u8], rows: Range<u64>| {
        assert_eq!(rows, walked..walked + 1);
        walked += 1;
        Ok(std::ops::ControlFlow::Continue(()))
    };
    reader.index().walk(reader.bytes(), &[], visit).unwrap();
    assert_eq!(walked, 1000);
}

#[test]
fn ranges_intersect() {
    assert_eq!(intersect(&[0..5, 7..9], &one(4..8)), [4..5, 7..8]);
    assert!(intersect(&one(0..5), &one(5..8)).is_empty());
    assert!(intersect(&[], &one(5..8)).is_empty());
}

/// Opens, searches and reads everything.
fn use_all(bench: &Bench, meta: &Arc<SegmentMeta>) -> crate::Result<()> {
    let reader = SegmentReader::open(bench.files.store.as_ref(), meta)?;
    reader.rows_of(&TagFilter::all().and(1, [text("cpu", 1)]))?;
    for batch in reader.scan(&Scan::all(table(false).schema.arrow(), 64))? {
        batch?;
    }
    reader.verify()
}

fn replace(bench: &Bench, meta: &SegmentMeta, bytes: &[u8]) {
    let path = place(meta);
    bench.sim.disk.remove(Path::new(&path)).unwrap();
    bench.sim.disk.create(Path::new(&path)).unwrap().append(bytes).unwrap();
}

fn small() -> Rows {
    let mut rows = many();
    rows.rows.truncate(30);
    rows
}

#[test]
fn a_missing_or_cut_segment_is_named() {
    let (bench, reader) = segment(&small());
    let meta = reader.meta().clone();
    let bytes = content(&bench, &meta);
    for len in [0, 3, bytes.len() / 2, bytes.len() - 1] {
        replace(&bench, &meta, &bytes[..len]);
        let error = use_all(&bench, &meta).unwrap_err();
        assert_eq!(error.code(), Code::Corrupt, "{error:?}");
        assert!(error.message().contains(&meta.path), "{error:?}");
    }
    bench.sim.disk.remove(Path::new(&place(&meta))).unwrap();
    let error = use_all(&bench, &meta).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt);
    assert!(error.message().contains(&meta.path), "{error:?}");
    assert!(error.hint().is_some());
}

/// Whatever byte is damaged: an error that names the file, never a panic, never silence.
#[test]
fn a_damaged_segment_is_named() {
    let (bench, reader) = segment(&small());
    let meta = reader.meta().clone();
    let bytes = content(&bench, &meta);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        replace(&bench, &meta, &damaged);
        let error = use_all(&bench, &meta).unwrap_err();
        assert_eq!(error.code(), Code::Corrupt, "byte {at}: {error:?}");
        assert!(error.message().contains(&meta.path), "byte {at}: {error:?}");
    }
    replace(&bench, &meta, &bytes);
    use_all(&bench, &meta).unwrap();
}

#[test]
fn a_mutated_segment_is_never_read_as_something_else() {
    let (bench, reader) = segment(&small());
    let meta = reader.meta().clone();
    let bytes = content(&bench, &meta);
    crate::fuzz::fuzz("segment", std::slice::from_ref(&bytes), |changed| {
        replace(&bench, &meta, changed);
        match use_all(&bench, &meta) {
            Ok(_) => assert!(changed == bytes),
            Err(error) => {
                assert_eq!(error.code(), Code::Corrupt, "{error:?}");
                assert!(error.message().contains(&meta.path), "{error:?}");
            }
        }
    });
}

#[test]
fn a_flush_without_room_names_the_file_and_leaves_no_segment() {
    let mut bench = Bench::new(false);
    bench.write(many().batch());
    let frozen = bench.state.freeze().unwrap();
    bench.sim.disk.set_capacity(Some(100));
    let table = bench.state.table().clone();
    let cancel = crate::cancel::CancelToken::new();
    let error = flush(&bench.target, &table, &frozen, &cancel).unwrap_err();
    assert_eq!(error.code(), Code::DiskFull, "{error:?}");
    assert!(error.message().contains("data/kymo/public/rows"), "{error:?}");
    bench.sim.disk.set_capacity(None);
    let segments = flush(&bench.target, &table, &frozen, &cancel).unwrap();
    bench.state.flushed(&frozen, segments.into_iter().map(Arc::new)).unwrap();
    assert_eq!(bench.version().segments.len(), 1);
}

/// M1: what has its name is on the disk, whatever a crash takes of the rest.
#[test]
fn a_published_segment_survives_a_crash() {
    for seed in 0..24 {
        let (bench, reader) = segment(&small());
        let meta = reader.meta().clone();
        bench.sim.disk.crash(seed);
        use_all(&bench, &meta).unwrap();
    }
}

#[test]
fn names_make_safe_paths() {
    let mut named = table(false);
    named.name.table = "../up/ü".to_owned();
    assert_eq!(write::table_folder(&named), "data/kymo/public/%2E%2E%2Fup%2F%C3%BC");
    for (name, part) in [(".", "%2E"), ("..", "%2E%2E"), ("a%2Fb", "a%252Fb"), ("a\\b", "a%5Cb")] {
        assert_eq!(write::path_part(name), part);
    }
    let long = "ü".repeat(120);
    let part = write::path_part(&long);
    assert!(part.len() < 255, "{}", part.len());
    assert_ne!(part, write::path_part(&format!("{long}x")));
}

#[test]
fn times_come_back_with_their_zone() {
    let (_, reader) = segment(&small());
    let output = table(false).schema.arrow();
    let batch = reader.scan(&Scan::all(output.clone(), 64)).unwrap().next().unwrap().unwrap();
    assert_eq!(batch.schema(), output);
    assert_eq!(batch.column(3).as_primitive::<TimestampNanosecondType>().value(0), 0);
}

#[test]
fn open_segments_are_kept_within_bounds() {
    let (bench, reader) = segment(&small());
    let (count, bytes) = bench.files.readers.kept();
    assert_eq!((count, bytes), (1, reader.memory_bytes()));
    let tight = Readers::new(bytes * 5 / 2);
    let numbered = |number: u128| {
        let meta = SegmentMeta { id: SegmentId(number.into()), ..reader.meta().as_ref().clone() };
        SegmentReader::open(bench.files.store.as_ref(), &Arc::new(meta)).unwrap()
    };
    for number in 1..=2 {
        tight.put(numbered(number));
    }
    assert!(tight.get(SegmentId(1.into())).is_some());
    tight.put(numbered(3));
    assert_eq!(tight.kept().0, 2);
    assert!(tight.get(SegmentId(2.into())).is_none(), "it was unused for longest");
    assert!(tight.get(SegmentId(1.into())).is_some());
    tight.forget(SegmentId(1.into()));
    assert_eq!(tight.kept(), (1, bytes));
}

#[test]
fn a_reader_keeps_its_file_from_going() {
    let (mut bench, reader) = segment(&small());
    let id = reader.meta().id;
    bench.state.replaced(&[id], []).unwrap();
    assert!(bench.files.graveyard.take().is_empty());
    let scan = reader.scan(&Scan::all(table(false).schema.arrow(), 4)).unwrap();
    drop(reader);
    assert!(bench.files.graveyard.take().is_empty(), "a scan still reads it");
    assert_eq!(scan.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 30);
    assert_eq!(bench.files.graveyard.take().len(), 1);
}

/// Long texts go through memory a few at a time, in every direction.
#[test]
fn wide_rows_come_in_small_batches() {
    let long = "x".repeat(3 << 20);
    let rows = (0..24).map(|time| Row {
        a: text("host", time % 2),
        b: None,
        time,
        float: None,
        int: Some(time),
        text: Some(format!("{time}{long}")),
    });
    let rows = Rows { rows: rows.collect(), columns: ALL };
    let (bench, reader) = segment(&rows);
    let limit = 2 * crate::storage::width::BATCH_BYTES;
    let output = table(false).schema.arrow();
    let mut found = 0;
    for batch in reader.scan(&Scan::all(output.clone(), 8192)).unwrap() {
        let batch = batch.unwrap();
        assert!(crate::storage::memtable::batch_bytes(&batch) < limit);
        found += batch.num_rows();
    }
    assert_eq!(found, 24);
    let sources = (0..2).map(|_| {
        let scan = reader.scan(&Scan::all(output.clone(), 8192)).unwrap();
        Box::new(scan) as crate::storage::merge::SortedSource
    });
    let schema = Arc::new(table(false).schema);
    let merged = crate::storage::merge::stream(sources.collect(), schema, output, false, 8192);
    let mut found = 0;
    for batch in merged {
        let batch = batch.unwrap();
        assert!(crate::storage::memtable::batch_bytes(&batch) < limit);
        found += batch.num_rows();
    }
    assert_eq!(found, 48);
    drop(bench);
}
