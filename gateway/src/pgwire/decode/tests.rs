//! Values as stock clients send them.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float64Type, Int32Type, Int64Type, IntervalMonthDayNano,
    IntervalMonthDayNanoType, TimestampNanosecondType,
};
use kymo_kernel::Code;

use super::super::encode::Format;
use super::super::types::oid;
use super::{array, parameter};

fn text(oid: u32, value: &str) -> super::ArrayRef {
    array(oid, Format::Text, value.as_bytes()).unwrap()
}

fn binary(oid: u32, value: &[u8]) -> super::ArrayRef {
    array(oid, Format::Binary, value).unwrap()
}

#[test]
fn numbers_in_both_formats() {
    assert_eq!(text(oid::INT4, " 42 ").as_primitive::<Int32Type>().value(0), 42);
    assert_eq!(binary(oid::INT8, &7_i64.to_be_bytes()).as_primitive::<Int64Type>().value(0), 7);
    assert_eq!(text(oid::FLOAT8, "-1e3").as_primitive::<Float64Type>().value(0), -1000.0);
    let infinite = text(oid::FLOAT8, "Infinity");
    assert!(infinite.as_primitive::<Float64Type>().value(0).is_infinite());
    let error = array(oid::INT4, Format::Text, b"4x").unwrap_err();
    assert_eq!(error.code(), Code::InvalidCast);
    let error = array(oid::INT4, Format::Binary, b"\0\0\0").unwrap_err();
    assert_eq!(error.code(), Code::InvalidParameter);
}

#[test]
fn numerics_are_exact() {
    for value in [
        text(oid::NUMERIC, "-12345.678"),
        binary(oid::NUMERIC, &[0, 3, 0, 1, 0x40, 0, 0, 3, 0, 1, 0x09, 0x29, 0x1a, 0x7c]),
    ] {
        assert_eq!(*value.data_type(), DataType::Decimal128(38, 3));
        assert_eq!(value.as_primitive::<Decimal128Type>().value(0), -12_345_678);
    }
    assert_eq!(text(oid::NUMERIC, "1.5e3").as_primitive::<Decimal128Type>().value(0), 1500);
    let huge = array(oid::NUMERIC, Format::Text, "9".repeat(50).as_bytes()).unwrap_err();
    assert_eq!(huge.code(), Code::OutOfRange);
}

#[test]
fn instants() {
    let at = |value: &super::ArrayRef| value.as_primitive::<TimestampNanosecondType>().value(0);
    for form in [
        "2023-11-14T22:13:20.000+00:00",
        "2023-11-14 22:13:20",
        "2023-11-14 23:13:20+01",
        "2023-11-14 22:13:20Z",
    ] {
        assert_eq!(at(&text(oid::TIMESTAMPTZ, form)), 1_700_000_000_000_000_000, "{form}");
    }
    let micros: i64 = 1_700_000_000_000_000 - 946_684_800_000_000;
    let value = binary(oid::TIMESTAMP, &micros.to_be_bytes());
    assert_eq!(at(&value), 1_700_000_000_000_000_000);
    let error = array(oid::TIMESTAMP, Format::Binary, &i64::MAX.to_be_bytes()).unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);
    assert_eq!(text(oid::DATE, "2000-01-02").as_primitive::<Date32Type>().value(0), 10_958);
}

#[test]
fn intervals() {
    let read = |form| text(oid::INTERVAL, form).as_primitive::<IntervalMonthDayNanoType>().value(0);
    let hour = 3_600_000_000_000;
    assert_eq!(read("1 day 02:00:00"), IntervalMonthDayNano::new(0, 1, 2 * hour));
    assert_eq!(read("1 year 2 mons -3 days"), IntervalMonthDayNano::new(14, -3, 0));
    assert_eq!(read("5m"), IntervalMonthDayNano::new(0, 0, hour / 12));
    assert_eq!(read("1.5 hours"), IntervalMonthDayNano::new(0, 0, hour * 3 / 2));
    assert_eq!(read("250ms"), IntervalMonthDayNano::new(0, 0, 250_000_000));
    assert_eq!(read("P1DT2H"), IntervalMonthDayNano::new(0, 1, 2 * hour));
    assert_eq!(read("-00:00:01.5"), IntervalMonthDayNano::new(0, 0, -1_500_000_000));
    assert!(array(oid::INTERVAL, Format::Text, b"soon").is_err());
    assert!(array(oid::INTERVAL, Format::Text, b"").is_err());
}

#[test]
fn arrays_of_one_dimension() {
    let list = text(1007, "{1,NULL, 3}");
    let list = list.as_list::<i32>().value(0);
    let list = list.as_primitive::<Int32Type>();
    assert_eq!(list.iter().collect::<Vec<_>>(), [Some(1), None, Some(3)]);

    let words = text(1009, r#"{a,"b, \"c\"","NULL",null}"#);
    let words = words.as_list::<i32>().value(0);
    let words: Vec<_> = words.as_string::<i32>().iter().collect();
    assert_eq!(words, [Some("a"), Some("b, \"c\""), Some("NULL"), None]);

    let wire: Vec<u8> =
        [1, 0, 23, 1, 1, 4, 9].iter().flat_map(|word: &i32| word.to_be_bytes()).collect();
    let list = binary(1007, &wire);
    assert_eq!(list.as_list::<i32>().value(0).as_primitive::<Int32Type>().value(0), 9);
    let lying: Vec<u8> =
        [1, 0, 23, i32::MAX, 1].iter().flat_map(|word: &i32| word.to_be_bytes()).collect();
    assert!(array(1007, Format::Binary, &lying).is_err());
    assert!(array(1007, Format::Text, b"{1,{2}}").is_err());
    assert_eq!(text(1007, "{}").as_list::<i32>().value(0).len(), 0);
}

#[test]
fn values_meet_the_type_that_planning_found() {
    let value = parameter(1, oid::INT4, Format::Text, Some(b"5"), &DataType::Int64).unwrap();
    assert_eq!(*value.data_type(), DataType::Int64);
    let null = parameter(1, 0, Format::Text, None, &DataType::Float64).unwrap();
    assert!(null.is_null(0));
    let error =
        parameter(2, oid::INT8, Format::Text, Some(b"99999"), &DataType::Int16).unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);
    assert!(error.message().contains("$2"));
}

#[test]
fn bytes_in_both_text_forms() {
    for form in ["\\x00ff5c", "\\000\\377\\\\"] {
        let value = text(oid::BYTEA, form);
        assert_eq!(value.as_binary::<i32>().value(0), [0, 0xff, b'\\']);
    }
    assert!(array(oid::BYTEA, Format::Text, b"\\x0").is_err());
}

/// Text and binary values of every type: read or refused, and never more memory than bytes.
#[test]
fn mutated_values_are_read_or_refused() {
    let values: [&[u8]; 16] = [
        b"t",
        b"-42",
        b"1.5e-10",
        b"NaN",
        b"123456789.000100",
        b"\\xdeadbeef",
        b"a\\000b",
        b"2024-01-01 12:34:56.789+02",
        b"infinity",
        b"1 year 2 mons -3 days 04:05:06.7",
        b"P1Y2M3DT4H5M6.7S",
        b"{1,NULL,\"a \\\"b\"}",
        b"c0ffee00-0000-0000-0000-000000000001",
        b"\0\0\0\0\0\0\x1f\x40",
        b"\0\x02\0\0\0\0\0\x02\0\x01\x13\x88",
        b"\0\0\0\x01\0\0\0\x01\0\0\0\x17\0\0\0\x02\0\0\0\x01\0\0\0\x04\0\0\0\x07\xff\xff\xff\xff",
    ];
    let oids =
        [16, 17, 20, 21, 23, 25, 26, 114, 700, 701, 1082, 1083, 1114, 1184, 1186, 1700, 2950];
    let arrays = oids.iter().filter_map(|each| crate::pgwire::types::array_of(*each));
    let oids: Vec<u32> = oids.into_iter().chain(arrays).collect();
    let corpus = values.map(<[u8]>::to_vec);
    crate::fuzz::fuzz("values of parameters", &corpus, |bytes| {
        for oid in &oids {
            for format in [Format::Text, Format::Binary] {
                if let Ok(value) = array(*oid, format, bytes) {
                    assert_eq!(value.len(), 1);
                    assert!(value.get_buffer_memory_size() < 4096 + 64 * bytes.len());
                }
            }
        }
    });
}
