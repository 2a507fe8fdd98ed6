//! Known bytes: what PostgreSQL 16 prints and what its send functions write.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray,
    DurationMicrosecondArray, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array,
    IntervalMonthDayNanoArray, ListArray, RecordBatch, StringArray, StructArray,
    Time64NanosecondArray, TimestampMicrosecondArray, TimestampNanosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Int32Type, IntervalMonthDayNano};
use bytes::BytesMut;

use super::{Cells, Format, Style, data_rows};

fn cell(array: impl Array + 'static, format: Format) -> Vec<u8> {
    let array: ArrayRef = Arc::new(array);
    let field = Arc::new(Field::new("x", array.data_type().clone(), true));
    let style = Style::default();
    let mut out = BytesMut::new();
    Cells::new(&field, &array, format, &style).unwrap().write(0, &mut out);
    out.to_vec()
}

fn text(array: impl Array + 'static) -> String {
    String::from_utf8(cell(array, Format::Text)).unwrap()
}

fn binary(array: impl Array + 'static) -> Vec<u8> {
    cell(array, Format::Binary)
}

#[test]
fn floats_print_as_postgres_does() {
    for (value, expected) in [
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (0.1, "0.1"),
        (-1.5, "-1.5"),
        (100_000.0, "100000"),
        (1e14, "100000000000000"),
        (1e15, "1e+15"),
        (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (1e-300, "1e-300"),
        (12.345, "12.345"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "Infinity"),
        (f64::NEG_INFINITY, "-Infinity"),
        (f64::MAX, "1.7976931348623157e+308"),
    ] {
        assert_eq!(text(Float64Array::from(vec![value])), expected);
    }
    for (value, expected) in
        [(1e5_f32, "100000"), (1e6, "1e+06"), (0.1, "0.1"), (1.25, "1.25"), (-0.0, "-0")]
    {
        assert_eq!(text(Float32Array::from(vec![value])), expected);
    }
    assert_eq!(binary(Float64Array::from(vec![1.0])), 1.0_f64.to_be_bytes());
}

#[test]
fn integers_and_booleans() {
    assert_eq!(text(Int64Array::from(vec![i64::MIN])), "-9223372036854775808");
    assert_eq!(binary(Int16Array::from(vec![-2])), [0xff, 0xfe]);
    assert_eq!(binary(Int32Array::from(vec![258])), [0, 0, 1, 2]);
    assert_eq!(text(BooleanArray::from(vec![true])), "t");
    assert_eq!(binary(BooleanArray::from(vec![false])), [0]);
}

#[test]
fn numerics_in_groups_of_four_digits() {
    // numeric_send(12345.678): 3 groups 1, 2345, 6780; weight 1; scale 3
    let value = Decimal128Array::from(vec![12_345_678]).with_precision_and_scale(20, 3).unwrap();
    assert_eq!(binary(value.clone()), [0, 3, 0, 1, 0, 0, 0, 3, 0, 1, 0x09, 0x29, 0x1a, 0x7c]);
    assert_eq!(text(value), "12345.678");
    // numeric_send(-0.00012): group 1 (0.0001), group 2000; weight -1; scale 5
    let small = Decimal128Array::from(vec![-12]).with_precision_and_scale(20, 5).unwrap();
    assert_eq!(binary(small.clone()), [0, 2, 0xff, 0xff, 0x40, 0, 0, 5, 0, 1, 0x07, 0xd0]);
    assert_eq!(text(small), "-0.00012");
    let zero = Decimal128Array::from(vec![0]).with_precision_and_scale(20, 2).unwrap();
    assert_eq!(binary(zero.clone()), [0, 0, 0, 0, 0, 0, 0, 2]);
    assert_eq!(text(zero), "0.00");
    // 10000 is one group of weight 1
    assert_eq!(binary(UInt64Array::from(vec![10_000])), [0, 1, 0, 1, 0, 0, 0, 0, 0, 1]);
    assert_eq!(text(UInt64Array::from(vec![u64::MAX])), "18446744073709551615");
}

#[test]
fn bytes_in_hexadecimal() {
    assert_eq!(text(BinaryArray::from_vec(vec![b"\x00\xffk"])), "\\x00ff6b");
    assert_eq!(binary(BinaryArray::from_vec(vec![b"\x00\xff"])), [0, 0xff]);
}

#[test]
fn instants_are_cut_to_microseconds_towards_the_past() {
    let at = |ns| TimestampNanosecondArray::from(vec![ns]);
    assert_eq!(text(at(0)), "1970-01-01 00:00:00");
    assert_eq!(text(at(1_700_000_000_123_456_789)), "2023-11-14 22:13:20.123456");
    assert_eq!(text(at(-1)), "1969-12-31 23:59:59.999999");
    assert_eq!(text(at(1_700_000_000_100_000_000)), "2023-11-14 22:13:20.1");
    assert_eq!(
        text(at(1_700_000_000_000_000_000).with_timezone("+00:00")),
        "2023-11-14 22:13:20+00"
    );
    assert_eq!(binary(at(946_684_800_000_001_999)), 1_i64.to_be_bytes());
    let ancient = TimestampMicrosecondArray::from(vec![-62_167_219_200_000_000]);
    assert_eq!(text(ancient), "0001-01-01 00:00:00 BC");
}

#[test]
fn zones_move_the_clock_and_name_their_distance() {
    let array: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![0]).with_timezone("+00:00"));
    let field = Arc::new(Field::new("x", array.data_type().clone(), true));
    for (zone, expected) in
        [("+05:30", "1970-01-01 05:30:00+05:30"), ("-08:00", "1969-12-31 16:00:00-08")]
    {
        let style = Style { zone: Some(zone.parse().unwrap()) };
        let mut out = BytesMut::new();
        Cells::new(&field, &array, Format::Text, &style).unwrap().write(0, &mut out);
        assert_eq!(out, expected);
    }
}

#[test]
fn dates_times_and_intervals() {
    assert_eq!(text(Date32Array::from(vec![11_016])), "2000-02-29");
    assert_eq!(binary(Date32Array::from(vec![10_958])), 1_i32.to_be_bytes());
    let noon = Time64NanosecondArray::from(vec![43_200_000_000_000 + 1_500_000]);
    assert_eq!(text(noon), "12:00:00.0015");
    let interval = |months, days, ns| {
        IntervalMonthDayNanoArray::from(vec![IntervalMonthDayNano::new(months, days, ns)])
    };
    assert_eq!(text(interval(14, 3, 14_706_789_000_000)), "1 year 2 mons 3 days 04:05:06.789");
    assert_eq!(text(interval(0, 0, 0)), "00:00:00");
    assert_eq!(text(interval(0, 1, 0)), "1 day");
    assert_eq!(text(interval(-1, 2, -1_000_000_000)), "-1 mons +2 days -00:00:01");
    let expected: Vec<u8> = [&1_i64.to_be_bytes()[..], &[0, 0, 0, 3], &[0, 0, 0, 14]].concat();
    assert_eq!(binary(interval(14, 3, 1000)), expected);
}

#[test]
fn arrays_are_quoted_where_they_must_be() {
    let mut list = arrow::array::ListBuilder::new(arrow::array::StringBuilder::new());
    for value in [Some("a"), Some("b c"), None, Some("null"), Some("q\"\\"), Some("")] {
        list.values().append_option(value);
    }
    list.append(true);
    assert_eq!(text(list.finish()), r#"{a,"b c",NULL,"null","q\"\\",""}"#);

    let ints = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(7), None])]);
    let expected: Vec<u8> =
        [1, 1, 23, 2, 1, 4, 7, -1].iter().flat_map(|word: &i32| word.to_be_bytes()).collect();
    assert_eq!(binary(ints), expected);
    let empty =
        ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(Vec::<Option<i32>>::new())]);
    assert_eq!(text(empty.clone()), "{}");
    assert_eq!(binary(empty), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 23]);
}

#[test]
fn structs_are_json() {
    let inner: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let field = Arc::new(Field::new("a", DataType::Int32, true));
    assert_eq!(text(StructArray::from(vec![(field, inner)])), r#"{"a":1}"#);
}

#[test]
fn rows_carry_nulls_and_dictionary_values() {
    let tags: DictionaryArray<Int32Type> = vec![Some("x"), None, Some("x")].into_iter().collect();
    let batch = RecordBatch::try_from_iter(vec![
        ("tag", Arc::new(tags) as ArrayRef),
        ("n", Arc::new(Int64Array::from(vec![Some(1), Some(2), None]))),
    ])
    .unwrap();
    let mut out = BytesMut::new();
    let formats = [Format::Text, Format::Binary];
    let next = data_rows(&batch, &formats, &Style::default(), 0..3, usize::MAX, &mut out).unwrap();
    assert_eq!(next, 3);
    let expected: Vec<u8> = [
        &b"D\0\0\0\x17\0\x02\0\0\0\x01x\0\0\0\x08\0\0\0\0\0\0\0\x01"[..],
        b"D\0\0\0\x16\0\x02\xff\xff\xff\xff\0\0\0\x08\0\0\0\0\0\0\0\x02",
        b"D\0\0\0\x0f\0\x02\0\0\0\x01x\xff\xff\xff\xff",
    ]
    .concat();
    assert_eq!(out.to_vec(), expected);
    out.clear();
    let next = data_rows(&batch, &formats, &Style::default(), 0..3, 1, &mut out).unwrap();
    assert_eq!(next, 1, "stops once the buffer is full");
}

#[test]
fn strings_are_sent_as_they_are() {
    assert_eq!(text(StringArray::from(vec!["grün"])), "grün");
    assert_eq!(binary(StringArray::from(vec!["grün"])), "grün".as_bytes());
}

/// `timestamp - timestamp` has days in PostgreSQL, in both directions of time.
#[test]
fn differences_of_instants_are_days_and_the_rest_of_one() {
    for (micros, expected) in [
        (0, "00:00:00"),
        (3_600_000_000, "01:00:00"),
        (90_000_000_000, "1 day 01:00:00"),
        (172_800_000_000, "2 days"),
        (-90_000_000_000, "-1 days -01:00:00"),
    ] {
        assert_eq!(text(DurationMicrosecondArray::from(vec![micros])), expected);
    }
    let bytes = binary(DurationMicrosecondArray::from(vec![90_000_000_000]));
    let expected = [&3_600_000_000_i64.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 0]].concat();
    assert_eq!(bytes, expected);
    text(DurationMicrosecondArray::from(vec![i64::MIN]));
}
