//! COPY as psql and drivers write it.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use bytes::BytesMut;
use kymo_kernel::Code;

use super::super::decode::Value;
use super::super::encode::Style;
use super::super::types::oid;
use super::command::{Direction, Layout, Source, parse};
use super::input::Records;
use super::output::Lines;

fn options(sql: &str) -> super::command::Options {
    parse(sql).unwrap().unwrap().options
}

#[test]
fn commands_of_stock_clients() {
    let copy = parse("COPY (SELECT ')', $$)$$, \")\" FROM t -- )\n) TO STDOUT").unwrap().unwrap();
    assert_eq!(copy.source, Source::Query("SELECT ')', $$)$$, \")\" FROM t -- )\n".to_owned()));
    assert_eq!((copy.direction, copy.options.layout), (Direction::Out, Layout::Text));

    let copy = parse("copy public.\"Cpu\" (time, \"Host\") from stdin with (format csv, header);");
    let copy = copy.unwrap().unwrap();
    assert_eq!(copy.direction, Direction::In);
    assert!(copy.options.header);
    assert_eq!(copy.columns(), ["time", "Host"]);
    assert_eq!(copy.query(), "SELECT \"time\", \"Host\" FROM \"public\".\"Cpu\"");

    let old = options("COPY t TO STDOUT WITH CSV HEADER DELIMITER ';' NULL AS 'nil'");
    assert_eq!((old.layout, old.delimiter, old.null.as_str()), (Layout::Csv, b';', "nil"));
    let new = options("COPY t TO STDOUT (FORMAT 'csv', HEADER false, DELIMITER E'\\t')");
    assert_eq!((new.layout, new.delimiter, new.header), (Layout::Csv, b'\t', false));
    assert_eq!(options("COPY t FROM STDIN BINARY").layout, Layout::Binary);
    assert_eq!(options("COPY \"t\"(\"a\") FROM STDIN (FORMAT 'binary')").layout, Layout::Binary);
}

#[test]
fn files_are_not_for_this_place() {
    for sql in ["COPY t TO '/tmp/x'", "COPY (SELECT 1) TO '/tmp/x.parquet'", "SELECT 1", ""] {
        assert_eq!(parse(sql).unwrap(), None, "{sql}");
    }
    assert_eq!(parse("COPY t TO STDOUT (FREEZE)").unwrap_err().code(), Code::Unsupported);
    assert_eq!(parse("COPY (SELECT 1 TO STDOUT").unwrap_err().code(), Code::Syntax);
}

fn written(sql: &str) -> String {
    let names: ArrayRef = Arc::new(StringArray::from(vec![Some("a,\"b\""), None, Some("")]));
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), None]));
    let batch = RecordBatch::try_from_iter(vec![("name", names), ("n", numbers)]).unwrap();
    let options = options(sql);
    let lines = Lines::new(&options);
    let mut out = BytesMut::new();
    lines.begin(&batch.schema(), &mut out);
    assert_eq!(lines.rows(&batch, 0, &Style::default(), &mut out).unwrap(), 3);
    let mut text = String::new();
    while !out.is_empty() {
        assert_eq!(out[0], b'd');
        let length = usize::try_from(u32::from_be_bytes(out[1..5].try_into().unwrap())).unwrap();
        let message = out.split_to(length + 1);
        text.push_str(std::str::from_utf8(&message[5..]).unwrap());
    }
    text
}

#[test]
fn rows_go_out_as_text_and_as_csv() {
    assert_eq!(written("COPY t TO STDOUT"), "a,\"b\"\t1\n\\N\t2\n\t\\N\n");
    assert_eq!(
        written("COPY t TO STDOUT (FORMAT csv, HEADER)"),
        "name,n\n\"a,\"\"b\"\"\",1\n,2\n\"\",\n"
    );
}

fn read(sql: &str, chunks: &[&[u8]]) -> kymo_kernel::Result<Vec<(u32, Vec<Option<Value>>)>> {
    let mut records = Records::new(&options(sql), &[oid::TEXT, oid::INT8], 1000);
    let mut pending = BytesMut::new();
    let mut found = Vec::new();
    for index in 0..=chunks.len() {
        if let Some(chunk) = chunks.get(index) {
            pending.extend_from_slice(chunk);
        }
        while let Some(record) = records.next(&mut pending, index == chunks.len())? {
            found.push((record.line, record.values));
        }
    }
    Ok(found)
}

fn row(line: u32, text: Option<&str>, number: Option<i64>) -> (u32, Vec<Option<Value>>) {
    (line, vec![text.map(|text| Value::Text(text.to_owned())), number.map(Value::Int8)])
}

#[test]
fn records_come_in_however_they_are_cut() {
    let csv = "COPY t FROM STDIN (FORMAT csv, HEADER)";
    let whole: &[u8] = b"name,n\r\n\"a,\"\"b\nc\",1\n,2\n\"\",\nlast,3";
    let expected = vec![
        row(2, Some("a,\"b\nc"), Some(1)),
        row(3, None, Some(2)),
        row(4, Some(""), None),
        row(5, Some("last"), Some(3)),
    ];
    assert_eq!(read(csv, &[whole]).unwrap(), expected);
    let bytes: Vec<&[u8]> = whole.chunks(1).collect();
    assert_eq!(read(csv, &bytes).unwrap(), expected);

    let text = read("COPY t FROM STDIN", &[b"a\\tb\t1\n\\N\t2\nx\t\\N\n\\.\nignored"]).unwrap();
    assert_eq!(
        text,
        vec![row(1, Some("a\tb"), Some(1)), row(2, None, Some(2)), row(3, Some("x"), None)]
    );
}

#[test]
fn bad_records_name_their_line() {
    let csv = "COPY t FROM STDIN CSV";
    let error = read(csv, &[b"a,1\nb,x\n"]).unwrap_err();
    assert!(error.message().contains("line 2"), "{error}");
    assert_eq!(error.code(), Code::InvalidCast);
    assert!(read(csv, &[b"a,1,2\n"]).unwrap_err().message().contains("3 values"));
    assert!(read(csv, &[b"\"open\n"]).is_err());
    let long = vec![b'x'; 2000];
    assert_eq!(read(csv, &[&long]).unwrap_err().code(), Code::TooLarge);
    assert_eq!(read(csv, &[b"\xff,1\n"]).unwrap_err().code(), Code::InvalidEncoding);
}

#[test]
fn binary_records() {
    let mut wire = super::output::SIGNATURE.to_vec();
    wire.extend_from_slice(b"\0\x02\0\0\0\x01x\0\0\0\x08\0\0\0\0\0\0\0\x05\xff\xff");
    let sql = "COPY t FROM STDIN BINARY";
    assert_eq!(read(sql, &[&wire]).unwrap(), vec![row(1, Some("x"), Some(5))]);
    let pieces: Vec<&[u8]> = wire.chunks(3).collect();
    assert_eq!(read(sql, &pieces).unwrap(), vec![row(1, Some("x"), Some(5))]);
    assert!(read(sql, &[&wire[..25]]).is_err());
}

/// The records of a COPY that arrives in pieces of some size, up to the first error.
fn records(sql: &str, bytes: &[u8], piece: usize) -> (Vec<String>, bool) {
    let mut records = Records::new(&options(sql), &[oid::TEXT, oid::INT8], 1000);
    let (mut found, mut buffer) = (Vec::new(), BytesMut::new());
    let mut pieces = bytes.chunks(piece).peekable();
    loop {
        match records.next(&mut buffer, pieces.peek().is_none()) {
            Ok(Some(record)) => found.push(format!("{} {:?}", record.line, record.values)),
            Err(_) => return (found, false),
            Ok(None) => match pieces.next() {
                Some(more) => buffer.extend_from_slice(more),
                None => return (found, true),
            },
        }
    }
}

/// How the client cuts its bytes into messages says nothing about the records in them.
#[test]
fn mutated_copies_are_read_alike_in_pieces_of_any_size() {
    let corpus = [
        b"a\t1\nb\\tc\t\\N\n\\.\n".to_vec(),
        b"name,n\r\n\"a,\"\"b\"\"\nc\",1\r\n,\r\nx,-9223372036854775808\r\n".to_vec(),
        b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\x01a\0\0\0\x08\0\0\0\0\0\0\0\x07\xff\xff"
            .to_vec(),
    ];
    crate::fuzz::fuzz("COPY", &corpus, |bytes| {
        for layout in ["text", "csv", "binary"] {
            let sql = format!("COPY t FROM STDIN (FORMAT {layout})");
            let whole = records(&sql, bytes, usize::MAX);
            for piece in [1, 7] {
                assert_eq!(records(&sql, bytes, piece), whole, "{layout} in pieces of {piece}");
            }
        }
    });
}
