//! Each decision about the protocol in a table, and the fast parser against the plain one.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Float64Type, Int32Type, Int64Type, TimestampNanosecondType, UInt64Type,
};
use kymo_kernel::Code;
use kymo_kernel::ids::{ColumnId, TableId};
use kymo_kernel::schema::{
    Column, ColumnKind, FieldType, TableDef, TableName, TableOptions, TableSchema,
};
use proptest::prelude::*;

use super::reference::{self, Row, Value};
use super::*;

/// A catalog with at most one table.
struct Catalog(Option<Arc<TableDef>>);

impl Types for Catalog {
    fn table(&self, name: &TableName) -> Option<Arc<TableDef>> {
        self.0.clone().filter(|def| def.name == *name)
    }
}

/// A catalog with the table `cpu` of these columns.
fn catalog(columns: &[(&str, ColumnKind, FieldType)], options: TableOptions) -> Catalog {
    let column = |(id, (name, kind, field_type)): (u32, &(&str, ColumnKind, FieldType))| {
        Column::new(ColumnId(id), *name, *kind, *field_type)
    };
    Catalog(Some(Arc::new(TableDef {
        id: TableId(1),
        name: TableName::new("kymo", "cpu"),
        schema: TableSchema { version: 1, columns: (1..).zip(columns).map(column).collect() },
        options,
    })))
}

const NOW: i64 = 1_700_000_000_123_456_789;

fn options() -> Options {
    Options {
        database: "kymo".into(),
        precision: Precision::Nanoseconds,
        now_ns: NOW,
        max_line_bytes: 1000,
        max_columns: 100,
        max_tables: 100,
        max_errors: 100,
    }
}

fn read(body: &[u8]) -> Parsed {
    parse(body, &Catalog(None), &options()).unwrap()
}

/// The rows of a result in the plain parser's shape, in the order of their lines.
fn rows(parsed: &Parsed) -> Vec<Row> {
    let mut rows = Vec::new();
    for table in &parsed.batches {
        let batch = &table.batch;
        assert_eq!(table.lines.len(), batch.num_rows());
        for row in 0..batch.num_rows() {
            let mut tags = BTreeMap::new();
            let mut fields = BTreeMap::new();
            let mut time = None;
            for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
                let name = field.name().as_bytes().to_vec();
                match ColumnKind::of(field) {
                    _ if array.is_null(row) => {}
                    ColumnKind::Time => {
                        time = Some(array.as_primitive::<TimestampNanosecondType>().value(row));
                    }
                    ColumnKind::Tag => drop(tags.insert(name, tag(array, row))),
                    ColumnKind::Field => drop(fields.insert(name, value(array, row))),
                }
            }
            rows.push(Row {
                line: table.lines[row],
                measurement: table.table.table.clone().into_bytes(),
                tags,
                fields,
                time: time.filter(|time| *time != NOW),
            });
        }
    }
    rows.sort_by_key(|row| row.line);
    rows
}

fn tag(array: &ArrayRef, row: usize) -> Vec<u8> {
    let tags = array.as_dictionary::<Int32Type>();
    let key = tags.keys().value(row);
    tags.values().as_string::<i32>().value(key as usize).as_bytes().to_vec()
}

fn value(array: &ArrayRef, row: usize) -> Value {
    match array.data_type() {
        DataType::Float64 => Value::Float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Int64 => Value::Int(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt64 => Value::UInt(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        _ => Value::Text(array.as_string::<i32>().value(row).as_bytes().to_vec()),
    }
}

fn one(line: &str) -> Row {
    let parsed = read(line.as_bytes());
    assert!(parsed.errors.is_empty(), "{line:?}: {:?}", parsed.errors);
    let mut all = rows(&parsed);
    assert_eq!(all.len(), 1, "{line:?}");
    all.remove(0)
}

fn only_field(line: &str) -> Value {
    one(line).fields.into_values().next().unwrap()
}

#[test]
fn a_line_with_everything() {
    let row = one(r#"cpu,host=a,dc=eu usage=0.5,n=3i,u=7u,up=t,note="x y" 1700000000000000001"#);
    assert_eq!(row.measurement, b"cpu");
    assert_eq!(row.tags[&b"host"[..]], b"a");
    assert_eq!(row.tags[&b"dc"[..]], b"eu");
    assert_eq!(row.fields[&b"usage"[..]], Value::Float(0.5));
    assert_eq!(row.fields[&b"n"[..]], Value::Int(3));
    assert_eq!(row.fields[&b"u"[..]], Value::UInt(7));
    assert_eq!(row.fields[&b"up"[..]], Value::Bool(true));
    assert_eq!(row.fields[&b"note"[..]], Value::Text(b"x y".to_vec()));
    assert_eq!(row.time, Some(1_700_000_000_000_000_001));
}

#[test]
fn numbers_that_are_accepted() {
    for (text, expected) in [
        (".1", Value::Float(0.1)),
        ("1.", Value::Float(1.0)),
        ("-1", Value::Float(-1.0)),
        ("+1", Value::Float(1.0)),
        ("1e4", Value::Float(10_000.0)),
        ("1E-2", Value::Float(0.01)),
        ("-0009i", Value::Int(-9)),
        ("0i", Value::Int(0)),
        ("9223372036854775807i", Value::Int(i64::MAX)),
        ("-9223372036854775808i", Value::Int(i64::MIN)),
        ("18446744073709551615u", Value::UInt(u64::MAX)),
        ("True", Value::Bool(true)),
        ("FALSE", Value::Bool(false)),
    ] {
        assert_eq!(only_field(&format!("m v={text}")), expected, "{text}");
    }
}

#[test]
fn what_is_refused_and_why() {
    for (line, reason) in [
        ("m v=NaN", "expected a number"),
        ("m v=Inf", "expected a number"),
        ("m v=1ii", "invalid number"),
        ("m v=0x", "expected a number"),
        ("m v=.", "invalid number"),
        ("m v=-", "invalid number"),
        ("m v=1e", "invalid number"),
        ("m v=1.5i", "invalid number"),
        ("m v=-1u", "invalid number"),
        ("m v=1e999", "number out of range"),
        ("m v=9223372036854775808i", "integer out of range"),
        ("m v=18446744073709551616u", "unsigned integer out of range"),
        ("m v=tru", "expected a number"),
        ("m v=", "missing field value"),
        ("m v", "missing field value"),
        ("m =1", "missing field key"),
        ("m v=1,", "missing field key"),
        ("m v=1,,w=2", "missing field key"),
        ("m", "missing fields"),
        ("m ", "missing fields"),
        ("m,t=a", "missing fields"),
        ("m\r", "missing fields"),
        (",t=a v=1", "missing measurement"),
        ("m, v=1", "missing tag key"),
        ("m,=a v=1", "missing tag key"),
        ("m,t= v=1", "missing tag value"),
        ("m,t v=1", "missing tag value"),
        ("m,t=a, v=1", "missing tag key"),
        ("m,t=a=b v=1", "invalid tag format"),
        ("m,t=a,t=b v=1", "duplicate tag \"t\""),
        ("m,time=a v=1", "input tag \"time\""),
        ("m time=1", "input field \"time\""),
        (". v=1", "measurement name \".\" means a folder"),
        (".. v=1", "measurement name \"..\" means a folder"),
        ("m,v=a v=1", "\"v\" on measurement \"m\" is a field, already exists as a tag"),
        ("\tm v=1", "control character"),
        ("m\u{7f} v=1", "control character"),
        ("m,a\tb=1 v=1", "control character"),
        ("m a\tb=1", "control character"),
        ("m v=\"x", "unbalanced quotes"),
        ("m v=\"x\"y", "behind a string"),
        ("m v=\"x\\", "unbalanced quotes"),
        ("m v=1 x", "bad timestamp"),
        ("m v=1 1.5", "bad timestamp"),
        ("m v=1 -", "bad timestamp"),
        ("m v=1 9223372036854775808", "timestamp out of range"),
        ("m v=1 1 2", "behind the timestamp"),
        ("m v=1 1\rx", "behind the timestamp"),
    ] {
        let parsed = read(format!("ok v=1\n{line}\nok v=2").as_bytes());
        assert_eq!(parsed.bad_lines, 1, "{line:?}: {:?}", parsed.errors);
        let error = &parsed.errors[0];
        assert!(error.error.message().contains(reason), "{line:?}: {}", error.error);
        assert_eq!(error.line, 2, "{line:?}");
        assert_eq!(parsed.rows, 2, "{line:?}");
    }
}

#[test]
fn escapes_and_line_ends() {
    let row = one(r"my\ m\,x,k\ 1\==v\,\ \= f\ \=\,=1");
    assert_eq!(row.measurement, b"my m,x");
    assert_eq!(row.tags[&b"k 1="[..]], b"v, =");
    assert_eq!(row.fields.keys().next().unwrap(), b"f =,");
    assert_eq!(one(r"a\b,t=c\d v=1").measurement, br"a\b");
    let string = r#"m v="a\"b\\c\nd""#;
    assert_eq!(only_field(string), Value::Text(br#"a"b\c\nd"#.to_vec()));
    assert_eq!(
        only_field("m v=\"two\r\nlines\t\u{1}\""),
        Value::Text(b"two\r\nlines\t\x01".to_vec())
    );
    assert_eq!(only_field("  m   v=1   5  \r\n"), Value::Float(1.0));
    assert_eq!(one("m v=1 5\r").time, Some(5));
    assert_eq!(one("m,t=\t\u{1} v=1").tags[&b"t"[..]], b"\t\x01");
    assert_eq!(one("größe,ort=Köln höhe=1").measurement, "größe".as_bytes());
    assert_eq!(one("m=x v=1").measurement, b"m=x");
    let parsed = read(b"# a comment\n\n  \r\n   # another\nm v=1\n");
    assert_eq!((parsed.rows, parsed.bad_lines), (1, 0));
    assert_eq!(rows(&parsed)[0].line, 5);
}

#[test]
fn line_numbers_count_the_lines_inside_strings() {
    let parsed = read(b"m v=\"a\nb\nc\"\nbad\nm v=\"d\"\n");
    assert_eq!(parsed.errors[0].line, 4);
    assert_eq!(rows(&parsed).iter().map(|row| row.line).collect::<Vec<_>>(), [1, 5]);
}

#[test]
fn an_unclosed_string_costs_one_line() {
    let parsed = read(b"m v=\"a\nm v=1\nm v=2\n");
    assert_eq!((parsed.rows, parsed.bad_lines), (2, 1));
    assert_eq!(parsed.errors[0].line, 1);
}

#[test]
fn of_a_repeated_field_the_last_value_stays() {
    assert_eq!(one("m v=1,v=2").fields[&b"v"[..]], Value::Float(2.0));
    let parsed = read(b"m v=\"a\",w=1,v=\"b\"\nm v=\"c\",w=1,v=\"\"\n");
    let all = rows(&parsed);
    assert_eq!(all[0].fields[&b"v"[..]], Value::Text(b"b".to_vec()));
    assert_eq!(all[1].fields[&b"v"[..]], Value::Text(Vec::new()));
    assert_eq!(read(b"m v=1,v=\"x\"").bad_lines, 1);
}

#[test]
fn bytes_that_are_not_utf8_cost_their_line() {
    let parsed = read(b"m v=1\nm\xff v=1\nm,t=\xff v=1\nm w=\"\xff\"\nm \xff=1\nm v=2\n");
    assert_eq!(parsed.rows, 2);
    let bad: Vec<_> = parsed.errors.iter().map(|error| error.line).collect();
    assert_eq!(bad, [2, 3, 4, 5]);
    assert!(parsed.errors.iter().all(|error| error.error.message() == "invalid UTF-8"));
}

#[test]
fn types_conflict_within_a_body_and_with_the_catalog() {
    let columns = [
        ("ts", ColumnKind::Time, FieldType::Timestamp),
        ("host", ColumnKind::Tag, FieldType::Text),
        ("v", ColumnKind::Field, FieldType::Float64),
    ];
    let catalog = catalog(&columns, TableOptions::default());
    let body = b"cpu v=1i\ncpu,host=a v=1\ncpu,v=a x=1\ncpu host=1\ncpu ts=1\nnew v=1i\nnew v=1\n";
    let parsed = parse(body, &catalog, &options()).unwrap();
    let bad: Vec<_> = parsed.errors.iter().map(|error| error.line).collect();
    assert_eq!(bad, [1, 3, 4, 5, 7]);
    assert!(parsed.errors.iter().all(|error| error.error.code() == Code::TypeConflict));
    assert_eq!(
        parsed.errors[0].error.message(),
        "field type conflict: input field \"v\" on measurement \"cpu\" is type integer, \
         already exists as type float"
    );
    let cpu = parsed.batches.iter().find(|batch| batch.table.table == "cpu").unwrap();
    assert!(cpu.batch.schema().column_with_name("ts").is_some());
    assert_eq!(cpu.batch.num_columns(), 3, "a refused line leaves no column behind");
}

#[test]
fn integers_and_floating_point_meet_where_the_table_says_so() {
    let columns = [
        ("time", ColumnKind::Time, FieldType::Timestamp),
        ("v", ColumnKind::Field, FieldType::Float64),
        ("n", ColumnKind::Field, FieldType::Int64),
        ("u", ColumnKind::Field, FieldType::UInt64),
        ("kept", ColumnKind::Field, FieldType::Int64),
    ];
    let widening = TableOptions { widen_integers: true, ..TableOptions::default() };
    let catalog = catalog(&columns, widening);
    let body = b"cpu v=9007199254740992i,n=1i,u=1u 1\ncpu v=9007199254740993i 2\n\
                 cpu n=0.5,u=2u 3\ncpu n=2i,u=-0.5 4\ncpu kept=1i 5\ncpu kept=1.5,v=t 6\n\
                 cpu kept=2i,n=9007199254740993i 7\n";
    let parsed = parse(body, &catalog, &options()).unwrap();
    let bad: Vec<_> = parsed.errors.iter().map(|error| error.line).collect();
    assert_eq!(bad, [2, 6, 7]);
    assert!(parsed.errors[0].error.message().contains("9007199254740993 exactly"));
    let batch = &parsed.batches[0].batch;
    let floats = |name: &str| {
        let column = batch.column_by_name(name).unwrap().as_primitive::<Float64Type>();
        column.iter().collect::<Vec<_>>()
    };
    assert_eq!(floats("v")[0], Some(9_007_199_254_740_992.0));
    assert_eq!(floats("n"), [Some(1.0), Some(0.5), Some(2.0), None]);
    assert_eq!(floats("u"), [Some(1.0), Some(2.0), Some(-0.5), None]);
    let kept = batch.column_by_name("kept").unwrap();
    assert_eq!(kept.data_type(), &DataType::Int64, "a bad line widens nothing");
    let large = b"cpu n=9007199254740993i 1\ncpu n=0.5 2\n";
    let parsed = parse(large, &catalog, &options()).unwrap();
    assert_eq!(parsed.errors[0].line, 2, "what was there first is kept as it is");
    assert_eq!(parsed.batches[0].batch.column_by_name("n").unwrap().data_type(), &DataType::Int64);
}

#[test]
fn a_refused_line_does_not_fix_a_type() {
    let parsed = read(b"m v=1i,w=bad\nm v=\"text\"\n");
    assert_eq!((parsed.rows, parsed.bad_lines), (1, 1));
    let parsed = read(b"m,host=a v=bad\nm host=1\n");
    assert_eq!((parsed.rows, parsed.bad_lines), (1, 1));
    assert_eq!(parsed.batches[0].batch.num_columns(), 2);
}

#[test]
fn the_prediction_of_fields_survives_changes_of_order() {
    let body =
        b"m a=1,b=2i\nm b=3i,a=4\nm a=5\nm b=6i\nm a=7,b=8i,c=t\nm a=9,b=bad\nm a=1,b=2i,c=f\n";
    let parsed = read(body);
    let (expected, bad) = reference::read(body);
    assert_eq!(rows(&parsed), expected);
    assert_eq!(parsed.errors.iter().map(|e| e.line).collect::<Vec<_>>(), bad);
}

#[test]
fn limits_are_kept() {
    let mut options = options();
    options.max_line_bytes = 20;
    options.max_columns = 2;
    options.max_tables = 2;
    options.max_errors = 2;
    let body = "m v=\"0123456789012345\"\nm a=1,b=2,c=3\nx v=1\ny v=1\nz v=1\nm v=1\n";
    let parsed = parse(body.as_bytes(), &Catalog(None), &options).unwrap();
    assert_eq!(parsed.bad_lines, 4);
    assert_eq!(parsed.errors.len(), 2, "the rest is counted only");
    assert_eq!(parsed.errors[0].error.code(), Code::TooLarge);
    assert_eq!(parsed.errors[1].error.code(), Code::LimitReached);
    assert_eq!(parsed.errors[0].quote(body.as_bytes(), 20), "m v=\"012345678901234");
    assert_eq!(parsed.rows, 2);
}

#[test]
fn rows_of_different_shape_cannot_fill_the_memory() {
    let mut options = options();
    options.max_columns = 10_000;
    let mut body = String::new();
    for n in 0..5000 {
        body.push_str(&format!("m f{n}=1\n"));
    }
    let parsed = parse(body.as_bytes(), &Catalog(None), &options).unwrap();
    assert!(parsed.bad_lines > 0);
    let cells: usize =
        parsed.batches.iter().map(|b| b.batch.num_rows() * b.batch.num_columns()).sum();
    assert!(cells < 3 << 20, "{cells}");
}

#[test]
fn missing_timestamps_share_one_instant_cut_to_the_precision() {
    let mut options = options();
    options.precision = Precision::Seconds;
    let parsed = parse(b"m v=1\nn v=1\nm v=2 5\n", &Catalog(None), &options).unwrap();
    let times = |at: usize| {
        parsed.batches[at]
            .batch
            .column(0)
            .as_primitive::<TimestampNanosecondType>()
            .values()
            .to_vec()
    };
    assert_eq!(times(0), [1_700_000_000_000_000_000, 5_000_000_000]);
    assert_eq!(times(1), [1_700_000_000_000_000_000]);
    let parsed = parse(b"m v=1 9999999999999\n", &Catalog(None), &options).unwrap();
    assert!(parsed.errors[0].error.message().contains("timestamp out of range"));
    assert_eq!(parsed.errors[0].error.code(), Code::OutOfRange);
}

#[test]
fn a_quote_ends_between_characters() {
    let parsed = read("äöüäöüäöüäöü".as_bytes());
    assert_eq!(parsed.errors[0].quote("äöüäöüäöüäöü".as_bytes(), 5), "äö");
}

/// Pieces that make bodies look like line protocol often enough to reach every branch.
fn piece() -> impl Strategy<Value = &'static [u8]> {
    prop::sample::select(vec![
        &b"m"[..],
        b"cpu",
        b",",
        b",",
        b"=",
        b"=",
        b" ",
        b" ",
        b"\n",
        b"\n",
        b"\r\n",
        b"\\",
        b"\"",
        b"a",
        b"b",
        b"time",
        b"1",
        b"2i",
        b"3u",
        b"-4.5e3",
        b"t",
        b"false",
        b"\"x\"",
        b"#",
        b"\t",
        b"\xff",
        "ä".as_bytes(),
        b"1700000000",
        b"9999999999999999999",
        b"a=1",
        b"m a=1\n",
        b"m,t=a b=2i 7\n",
        b"m,t=a a=1,b=2i\n",
        b"m b=2i,a=1 3\n",
        b"\x00",
    ])
}

/// A body of well-formed lines over few names, so that series, orders and types recur.
fn plausible() -> impl Strategy<Value = String> {
    let field = (0..4_usize, 0..6_usize).prop_map(|(name, value)| {
        let value = ["1", "2i", "3u", "t", "\"s\\\"\"", "\"two\nlines\""][value];
        format!("{}={value}", ["a", "b", r"c\ c", "d"][name])
    });
    let tag = (0..3_usize, 0..3_usize).prop_map(|(name, value)| {
        format!(",{}={}", ["x", "y", r"z\="][name], ["1", "2", r"\,"][value])
    });
    let line = (
        0..3_usize,
        prop::collection::vec(tag, 0..3),
        prop::collection::vec(field, 1..5),
        prop::option::of(-5_i64..5),
    )
        .prop_map(|(measurement, tags, fields, time)| {
            let time = time.map(|time| format!(" {time}")).unwrap_or_default();
            format!(
                "{}{} {}{time}",
                ["m", "n", r"o\ o"][measurement],
                tags.concat(),
                fields.join(",")
            )
        });
    prop::collection::vec(line, 0..30).prop_map(|lines| lines.join("\n"))
}

/// What the plain parser leaves out: types and kinds of columns across rows.
fn with_types(rows: Vec<Row>, mut bad: Vec<u32>) -> (Vec<Row>, Vec<u32>) {
    let mut known: BTreeMap<(Vec<u8>, Vec<u8>), u8> = BTreeMap::new();
    let mut good = Vec::new();
    for row in rows {
        let mut added = known.clone();
        let names = row.tags.keys().map(|name| (name, 0));
        let fields = row.fields.iter().map(|(name, value)| (name, kind(value)));
        let fits = names.chain(fields).all(|(name, kind)| {
            *added.entry((row.measurement.clone(), name.clone())).or_insert(kind) == kind
        });
        if fits {
            known = added;
            good.push(row);
        } else {
            bad.push(row.line);
        }
    }
    bad.sort_unstable();
    (good, bad)
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Float(_) => 1,
        Value::Int(_) => 2,
        Value::UInt(_) => 3,
        Value::Bool(_) => 4,
        Value::Text(_) => 5,
    }
}

fn compare(body: &[u8]) {
    let mut options = options();
    options.max_errors = usize::MAX;
    let parsed = parse(body, &Catalog(None), &options).unwrap();
    let (expected, bad) = reference::read(body);
    let (expected, bad) = with_types(expected, bad);
    let found: Vec<_> = parsed.errors.iter().map(|error| error.line).collect();
    assert_eq!(found, bad, "bad lines of {:?}: {:?}", String::from_utf8_lossy(body), parsed.errors);
    assert_eq!(rows(&parsed), expected, "rows of {:?}", String::from_utf8_lossy(body));
    assert_eq!(parsed.rows as usize, expected.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn pieces_read_as_the_plain_parser_reads_them(
        pieces in prop::collection::vec(piece(), 0..40)
    ) {
        compare(&pieces.concat());
    }

    #[test]
    fn plausible_bodies_read_as_the_plain_parser_reads_them(body in plausible()) {
        compare(body.as_bytes());
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let parsed = read(&body);
        let lines = body.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        prop_assert!(parsed.rows + parsed.bad_lines <= lines);
    }
}

#[test]
fn mutated_lines_read_as_the_plain_parser_reads_them() {
    let lines = include_bytes!("../../../tests/fuzz/lines.lp");
    let mut corpus: Vec<Vec<u8>> =
        lines.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    corpus.extend(corpus.chunks(3).map(<[Vec<u8>]>::concat).collect::<Vec<_>>());
    crate::fuzz::fuzz("line protocol", &corpus, |body| {
        // The plain parser knows no limits.
        if body.len() <= options().max_line_bytes {
            compare(body);
        }
    });
}
