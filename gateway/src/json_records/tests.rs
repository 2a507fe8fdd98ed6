//! Each shape a body may have, and each way a record can be wrong.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float64Type, TimestampNanosecondType};
use kymo_kernel::schema::{ColumnKind, TableDef};
use proptest::prelude::*;

use super::*;
use crate::line_protocol::Precision;

struct Nothing;

impl Types for Nothing {
    fn table(&self, _: &TableName) -> Option<std::sync::Arc<TableDef>> {
        None
    }
}

fn options() -> Options {
    Options {
        database: "kymo".into(),
        precision: Precision::Auto,
        now_ns: 7_000_000_000,
        max_line_bytes: 1000,
        max_columns: 100,
        max_tables: 10,
        max_errors: 10,
    }
}

fn target(table: Option<&str>, tags: &[&str]) -> Target {
    Target {
        database: "kymo".into(),
        schema: "public".into(),
        table: table.map(str::to_owned),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
    }
}

fn read(body: &str, target: &Target) -> Parsed {
    parse(body.as_bytes(), &Nothing, target, &options()).unwrap()
}

#[test]
fn every_shape_of_a_body_is_read() {
    let array = r#"[{"table":"cpu","time":1,"v":1.5},{"table":"cpu","time":2,"v":2.5}]"#;
    let wrapped = format!(r#"{{"records":{array},"more":[1,{{}}]}}"#);
    let lines =
        "{\"table\":\"cpu\",\"time\":1,\"v\":1.5}\n{\"table\":\"cpu\",\"time\":2,\"v\":2.5}\n\n";
    for body in [array, &wrapped, lines] {
        let parsed = read(body, &target(None, &[]));
        assert_eq!(parsed.bad_records, 0, "{body}: {:?}", parsed.errors);
        let batch = &parsed.batches[0].batch;
        let times = batch.column(0).as_primitive::<TimestampNanosecondType>();
        assert_eq!(times.values().as_ref(), [1_000_000_000, 2_000_000_000], "{body}");
        assert_eq!(parsed.batches[0].lines, [1, 2]);
    }
}

#[test]
fn tags_and_fields_are_told_apart() {
    let body = r#"{"metric":"cpu","timestamp":"2023-11-14T22:13:20.5+00:00",
        "tags":{"host":"a","rack":7,"none":null},"fields":{"v":1,"up":true,"s":"x"}}"#;
    let parsed = read(body, &target(None, &[]));
    assert_eq!(parsed.bad_records, 0, "{:?}", parsed.errors);
    let batch = &parsed.batches[0].batch;
    let schema = batch.schema();
    let kinds: Vec<_> =
        schema.fields().iter().map(|f| (f.name().as_str(), ColumnKind::of(f))).collect();
    assert_eq!(
        kinds,
        [
            ("time", ColumnKind::Time),
            ("host", ColumnKind::Tag),
            ("rack", ColumnKind::Tag),
            ("s", ColumnKind::Field),
            ("up", ColumnKind::Field),
            ("v", ColumnKind::Field)
        ]
    );
    let times = batch.column(0).as_primitive::<TimestampNanosecondType>();
    assert_eq!(times.value(0), 1_700_000_000_500_000_000);

    let parsed = read(r#"[{"host":"a","v":1},{"host":"b","v":2}]"#, &target(Some("t"), &["host"]));
    let batch = &parsed.batches[0].batch;
    assert_eq!(batch.schema().field(1).data_type(), &kymo_kernel::schema::tag_type());
    let times = batch.column(0).as_primitive::<TimestampNanosecondType>();
    assert_eq!(times.value(0), 7_000_000_000, "a record without a time gets the server's");
}

#[test]
fn the_seeds_records_carry_milliseconds() {
    let parsed = read(r#"{"records":[{"_time":1700000000000,"v":1}]}"#, &target(Some("t"), &[]));
    let times = parsed.batches[0].batch.column(0).as_primitive::<TimestampNanosecondType>();
    assert_eq!(times.value(0), 1_700_000_000_000_000_000);
    let parsed = read(r#"{"records":[{"_time":5,"v":1}]}"#, &target(Some("t"), &[]));
    let times = parsed.batches[0].batch.column(0).as_primitive::<TimestampNanosecondType>();
    assert_eq!(times.value(0), 5_000_000);
}

#[test]
fn integers_widen_and_nulls_stay_out() {
    let body = r#"[{"v":1,"n":null},{"v":1.5},{"v":null,"w":1},{"v":2}]"#;
    let parsed = read(body, &target(Some("t"), &[]));
    assert_eq!(parsed.bad_records, 0, "{:?}", parsed.errors);
    let batch = &parsed.batches[0].batch;
    assert_eq!(batch.num_columns(), 3);
    let v = batch.column(1).as_primitive::<Float64Type>();
    assert_eq!(v.iter().collect::<Vec<_>>(), [Some(1.0), Some(1.5), None, Some(2.0)]);
    assert_eq!(batch.column(2).data_type(), &DataType::Int64);
    assert!(batch.column(2).is_null(0));
}

#[test]
fn a_bad_record_is_named_and_costs_only_itself() {
    for (record, reason) in [
        (r#"7"#, "must be an object"),
        (r#"{"v":1}"#, "names no table"),
        (r#"{"table":7,"v":1}"#, "not a table's name"),
        (r#"{"table":"t","time":"yesterday","v":1}"#, "RFC 3339"),
        (r#"{"table":"t","time":1.5,"v":1}"#, "not a whole number"),
        (r#"{"table":"t","time":true,"v":1}"#, "not an instant"),
        (r#"{"table":"t","time":18446744073709551615,"v":1}"#, "1677"),
        (r#"{"table":"t","time":"9999-01-01T00:00:00Z","v":1}"#, "1677"),
        (r#"{"table":"t","v":[1]}"#, "not a single value"),
        (r#"{"table":"t","v":{"a":1}}"#, "not a single value"),
        (r#"{"table":"t","time":1}"#, "no field"),
        (r#"{"table":"t","v":null}"#, "no field"),
        (r#"{"table":"t","v":"text"}"#, "field type conflict"),
        (r#"{"table":"t","tags":[],"v":1}"#, "not an object"),
        (r#"{"table":"t","tags":{"a":[]},"fields":{"v":1}}"#, "not text"),
        (r#"{"table":"t","fields":{"v":1},"w":2}"#, "beside `fields`"),
        (r#"{"table":"t","tags":{"v":"x"},"fields":{"w":1}}"#, "already exists as a field"),
        (r#"{"table":"t","big":18446744073709551615}"#, "out of range"),
        (r#"{"table":"","v":1}"#, "is empty"),
    ] {
        let good = r#"{"table":"t","v":1}"#;
        let parsed = read(&format!("[{good},{record},{good}]"), &target(None, &[]));
        assert_eq!(parsed.bad_records, 1, "{record}: {:?}", parsed.errors);
        assert_eq!(parsed.errors[0].0, 2);
        let message = parsed.errors[0].1.message();
        assert!(message.contains(reason), "{record}: {message}");
        assert_eq!(parsed.batches[0].batch.num_rows(), 2, "{record}");
    }
}

#[test]
fn a_refused_record_leaves_no_series_behind() {
    let body = r#"[{"table":"t","tags":{"h":"a"},"fields":{"v":[]}},
                   {"table":"t","tags":{"h":"a"},"fields":{"v":1}},
                   {"table":"t","tags":{"h":"a"},"fields":{"v":2}}]"#;
    let parsed = read(body, &target(None, &[]));
    assert_eq!(parsed.bad_records, 1);
    assert_eq!(parsed.batches[0].batch.num_rows(), 2);
}

#[test]
fn broken_json_keeps_what_came_before() {
    let error = parse(b"{bad", &Nothing, &target(Some("t"), &[]), &options()).unwrap_err();
    assert!(error.message().contains("not JSON"), "{error}");
    let parsed = read("{\"v\":1}\n{\"v\":2}\n{bad", &target(Some("t"), &[]));
    assert_eq!(parsed.bad_records, 1);
    assert_eq!(parsed.errors[0].0, 3);
    assert_eq!(parsed.batches[0].batch.num_rows(), 2);
    assert!(read("", &target(Some("t"), &[])).batches.is_empty());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&body, &Nothing, &target(Some("t"), &["a"]), &options());
    }

    #[test]
    fn arbitrary_pieces_never_panic(pieces in prop::collection::vec(prop::sample::select(vec![
        "[", "]", "{", "}", ":", ",", "\"v\"", "\"table\"", "\"tags\"", "\"fields\"", "\"time\"",
        "\"records\"", "1", "1.5", "null", "true", "\"x\"", "-1e300", "\n",
    ]), 0..30)) {
        let _ = parse(pieces.concat().as_bytes(), &Nothing, &target(None, &["a"]), &options());
    }
}

#[test]
fn mutated_records_are_read_or_refused() {
    let documents = include_bytes!("../../../tests/fuzz/records.json");
    let corpus: Vec<Vec<u8>> =
        documents.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    crate::fuzz::fuzz("JSON records", &corpus, |body| {
        let read = parse(body, &Nothing, &target(Some("t"), &["host"]), &options());
        let rows =
            |parsed: &Parsed| parsed.batches.iter().map(|b| b.batch.num_rows()).sum::<usize>();
        match (
            read,
            serde_json::from_slice::<Vec<serde_json::Map<String, serde_json::Value>>>(body),
        ) {
            // Whatever is an array of objects for another parser is one here: each of them
            // is a row or a bad record.
            (Ok(parsed), Ok(objects)) => {
                assert_eq!(rows(&parsed) + parsed.bad_records as usize, objects.len());
            }
            (Ok(parsed), Err(_)) => assert!(rows(&parsed) <= body.len()),
            (Err(error), _) => assert!(!error.message().is_empty()),
        }
    });
}
