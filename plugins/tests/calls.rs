//! Calls: a plugin and native code answer the same, whatever the batch looks like.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, DictionaryArray,
    DurationMicrosecondArray, Float32Array, Float64Array, Int32Array, Int64Array, ListArray,
    StringArray, TimestampMillisecondArray, TimestampNanosecondArray, UInt64Array,
};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type};
use kymo_kernel::Code;
use kymo_plugins::{Accumulator, Argument, Emit, LoadOptions, OwnLimits, QueryPlugins};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::lab::lab;
use support::{Bench, bench, function};

fn column(array: impl Array + 'static) -> Argument {
    Argument::Column(Arc::new(array))
}

fn fahrenheit(celsius: &Float64Array) -> Float64Array {
    celsius.iter().map(|value| value.map(|value| value * 1.8 + 32.0)).collect()
}

/// A batch that begins and ends anywhere within a larger one.
fn sliced<T: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = T>,
    rows: usize,
) -> impl Strategy<Value = (Vec<Option<T>>, usize, usize)> {
    proptest::collection::vec(proptest::option::of(value), 0..rows).prop_flat_map(|values| {
        let length = values.len();
        (Just(values), 0..=length, 0..=length)
            .prop_map(|(values, one, two)| (values, one.min(two), one.max(two) - one.min(two)))
    })
}

fn cases(count: u32) -> TestRunner {
    TestRunner::new(Config { cases: count, failure_persistence: None, ..Config::default() })
}

#[test]
fn a_scalar_answers_as_native_code_does() {
    let bench = bench(|_| ());
    let version = bench.publish("lab", &lab());
    let c2f = function(&version, "c2f");
    let query = bench.query();
    let run = |(values, offset, length): (Vec<Option<f64>>, usize, usize)| {
        let array = Float64Array::from(values).slice(offset, length);
        let found = query.scalar(&c2f, 0, &[column(array.clone())], length).unwrap();
        assert_eq!(found.as_primitive::<Float64Type>(), &fahrenheit(&array));
        Ok(())
    };
    cases(200).run(&sliced(-1e9..1e9f64, 300), run).unwrap();
    let large: Float64Array =
        (0..100_000).map(|row| (row % 7 != 0).then_some(f64::from(row))).collect();
    let found = query.scalar(&c2f, 0, &[column(large.clone())], large.len()).unwrap();
    assert_eq!(found.as_primitive::<Float64Type>(), &fahrenheit(&large));
}

#[test]
fn text_and_dictionaries_of_it_answer_the_same() {
    let bench = bench(|_| ());
    let version = bench.publish("lab", &lab());
    let length = function(&version, "length");
    let query = bench.query();
    let run = |(values, offset, rows): (Vec<Option<String>>, usize, usize)| {
        let texts = StringArray::from(values.clone()).slice(offset, rows);
        let native: Int64Array =
            texts.iter().map(|text| text.map(|text| i64::try_from(text.len()).unwrap())).collect();
        let found = query.scalar(&length, 0, &[column(texts.clone())], rows).unwrap();
        assert_eq!(found.as_primitive::<Int64Type>(), &native);
        let dictionary: DictionaryArray<Int32Type> = values.iter().map(Option::as_deref).collect();
        let dictionary = dictionary.slice(offset, rows);
        let found = query.scalar(&length, 0, &[column(dictionary)], rows).unwrap();
        assert_eq!(found.as_primitive::<Int64Type>(), &native);
        Ok(())
    };
    cases(200).run(&sliced("[aäß€😀]{0,3}", 100), run).unwrap();
}

#[test]
fn a_dictionary_costs_as_many_rows_as_it_has_values() {
    let bench = bench(|_| ());
    let version = bench.publish("lab", &lab());
    let length = function(&version, "length");
    let hosts = ["one", "three", "five5"];
    let tags: DictionaryArray<Int32Type> = (0..8192).map(|row| Some(hosts[row % 3])).collect();
    bench.query().scalar(&length, 0, &[column(tags)], 8192).unwrap();
    assert_eq!(version.stats().counts().rows, 3);
}

/// One array of every type that `echo` takes, in the order of its overloads.
fn one_of_each(rows: usize) -> Vec<ArrayRef> {
    let some = |row: usize| !row.is_multiple_of(3);
    let number = |row: usize| i64::try_from(row).unwrap() - 5;
    fn collect<A, T>(rows: usize, value: impl Fn(usize) -> Option<T>) -> ArrayRef
    where
        A: FromIterator<Option<T>> + Array + 'static,
    {
        Arc::new((0..rows).map(value).collect::<A>())
    }
    let texts = |row: usize| some(row).then(|| "é".repeat(row % 4));
    vec![
        collect::<BooleanArray, _>(rows, |row| some(row).then_some(row % 2 == 0)),
        collect::<Int32Array, _>(rows, |row| some(row).then_some(number(row) as i32)),
        collect::<Int64Array, _>(rows, |row| some(row).then_some(number(row))),
        collect::<UInt64Array, _>(rows, |row| some(row).then_some(u64::MAX - row as u64)),
        collect::<Float32Array, _>(rows, |row| some(row).then_some(number(row) as f32 / 3.0)),
        collect::<Float64Array, _>(rows, |row| some(row).then_some(number(row) as f64 / 3.0)),
        collect::<StringArray, _>(rows, texts),
        collect::<BinaryArray, _>(rows, |row| some(row).then(|| vec![row as u8; row % 5])),
        collect::<Date32Array, _>(rows, |row| some(row).then_some(number(row) as i32)),
        collect::<TimestampNanosecondArray, _>(rows, |row| some(row).then_some(number(row))),
        Arc::new(
            (0..rows)
                .map(|row| some(row).then_some(number(row)))
                .collect::<TimestampMillisecondArray>()
                .with_timezone("UTC"),
        ),
        collect::<DurationMicrosecondArray, _>(rows, |row| some(row).then_some(number(row))),
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>((0..rows).map(|row| {
            some(row).then(|| (0..row % 4).map(|each| Some(each as i32)).collect::<Vec<_>>())
        }))),
    ]
}

#[test]
fn every_type_survives_the_way_there_and_back_also_in_slices() {
    let bench = bench(|_| ());
    let version = bench.publish("lab", &lab());
    let echo = function(&version, "echo");
    let query = bench.query();
    let arrays = one_of_each(100);
    assert_eq!(arrays.len(), echo.function().overloads.len());
    for (overload, array) in arrays.iter().enumerate() {
        for (offset, length) in [(0, 100), (0, 1), (1, 50), (7, 93), (8, 16), (3, 0), (0, 0)] {
            let slice = array.slice(offset, length);
            let found = query.scalar(&echo, overload, &[column_of(&slice)], length).unwrap();
            assert_eq!(&found, &slice, "overload {overload}, {length} rows from {offset}");
        }
    }
}

fn column_of(array: &ArrayRef) -> Argument {
    Argument::Column(array.clone())
}

#[test]
fn floats_keep_their_bits() {
    let bench = bench(|_| ());
    let version = bench.publish("lab", &lab());
    let bits = [0x7ff8_0000_dead_beef, 0xfff0_0000_0000_0001, 0x8000_0000_0000_0000, 1u64];
    let odd: ArrayRef = Arc::new(Float64Array::from_iter_values(bits.map(f64::from_bits)));
    let echo = function(&version, "echo");
    let found = bench.query().scalar(&echo, 5, &[column_of(&odd)], 4).unwrap();
    let back = found.as_primitive::<Float64Type>().values().iter().map(|it| it.to_bits());
    assert_eq!(back.collect::<Vec<_>>(), bits);
}

#[test]
fn constants_are_one_value_for_every_row_and_a_null_one_needs_no_call() {
    let bench = bench(|_| ());
    let version = bench.publish("lab", &lab());
    let c2f = function(&version, "c2f");
    let query = bench.query();
    let constant =
        |value: Option<f64>| Argument::Constant(Arc::new(Float64Array::from(vec![value])));
    let found = query.scalar(&c2f, 0, &[constant(Some(100.0))], 3).unwrap();
    assert_eq!(found.as_primitive::<Float64Type>().values(), &[212.0; 3]);
    let calls = version.stats().counts().calls;
    let found = query.scalar(&c2f, 0, &[constant(None)], 3).unwrap();
    assert_eq!((found.null_count(), version.stats().counts().calls), (3, calls));
}

#[test]
fn a_batch_beyond_the_limits_is_split_and_rows_keep_their_numbers() {
    let bench = bench(|_| ());
    let own = OwnLimits { batch_rows: Some(1000), ..OwnLimits::default() };
    let options = LoadOptions { limits: own, ..LoadOptions::default() };
    let version = bench.host.load("lab", &lab(), &options).unwrap();
    let query = bench.query();
    let values: Float64Array = (0..2500).map(|row| Some(f64::from(row))).collect();
    let before = version.stats().counts().calls;
    let c2f = function(&version, "c2f");
    let found = query.scalar(&c2f, 0, &[column(values.clone())], 2500).unwrap();
    assert_eq!(found.as_primitive::<Float64Type>(), &fahrenheit(&values));
    assert_eq!(version.stats().counts().calls - before, 4, "start and three calls");
    // The plugin blames row 3 of its batch, which is the second of the three.
    let mut modes = vec![support::lab::evil("fine"); 2500];
    modes[834] = support::lab::evil("exhausted");
    let evil = function(&version, "evil");
    let error = query.scalar(&evil, 0, &[column(Int64Array::from(modes))], 2500).unwrap_err();
    assert_eq!(error.code(), Code::OutOfMemory);
    assert!(error.message().contains("row 837: I am so"), "{error}");
}

#[test]
fn a_call_that_does_not_fit_the_signature_never_reaches_the_plugin() {
    let bench = bench(|_| ());
    let version = bench.publish("lab", &lab());
    let c2f = function(&version, "c2f");
    let query = bench.query();
    let floats = || column(Float64Array::from(vec![1.0]));
    let before = version.stats().counts().calls;
    let none = query.scalar(&c2f, 0, &[], 1).unwrap_err();
    assert_eq!(none.code(), Code::FunctionNotFound);
    let two = query.scalar(&c2f, 0, &[floats(), floats()], 1).unwrap_err();
    assert_eq!(two.code(), Code::FunctionNotFound);
    for (arguments, rows) in [(column(Int64Array::from(vec![1])), 1), (floats(), 2)] {
        assert_eq!(query.scalar(&c2f, 0, &[arguments], rows).unwrap_err().code(), Code::Internal);
    }
    assert_eq!(query.scalar(&c2f, 9, &[floats()], 1).unwrap_err().code(), Code::Internal);
    assert_eq!(version.stats().counts().calls, before);
}

/// Sums a group, computed natively.
fn sums(values: &[Option<f64>], groups: &[u32], total: u32) -> Vec<f64> {
    let mut sums = vec![0.0; total as usize];
    for (value, group) in values.iter().zip(groups) {
        sums[*group as usize] += value.unwrap_or(0.0);
    }
    sums
}

fn floats(array: &ArrayRef) -> Vec<f64> {
    array.as_primitive::<Float64Type>().values().to_vec()
}

fn open(bench: &Bench, query: &Arc<QueryPlugins>) -> Accumulator {
    let version = bench.host.registry().snapshot().get("lab").unwrap().version(0).unwrap().clone();
    Accumulator::open(query, &function(&version, "total"), 0).unwrap()
}

fn array(values: &[Option<f64>]) -> Vec<ArrayRef> {
    vec![Arc::new(Float64Array::from(values.to_vec()))]
}

#[test]
fn an_aggregate_answers_as_native_code_does_in_parts_and_as_a_whole() {
    let bench = bench(|_| ());
    bench.publish("lab", &lab());
    let query = bench.query();
    let rows = proptest::collection::vec(
        (proptest::option::of(-50i32..50), 0u32..20, any::<Option<bool>>()),
        0..200,
    );
    let run = |rows: Vec<(Option<i32>, u32, Option<bool>)>| {
        let groups: Vec<u32> = rows.iter().map(|row| row.1).collect();
        let values: Vec<_> = rows.iter().map(|row| row.0.map(f64::from)).collect();
        let passes = BooleanArray::from_iter(rows.iter().map(|row| row.2));
        let kept: Vec<_> =
            rows.iter().map(|row| row.0.filter(|_| row.2 == Some(true)).map(f64::from)).collect();
        let expected = sums(&kept, &groups, 20);

        let mut whole = open(&bench, &query);
        whole.update(&array(&values), Some(&groups), 20, Some(&passes)).unwrap();
        assert_eq!(whole.groups(), 20);
        assert_eq!(floats(&whole.evaluate(Emit::All).unwrap()), expected);
        assert_eq!(floats(&whole.evaluate(Emit::All).unwrap()), [0.0; 0], "it was forgotten");

        // Two partial ones merged; the result handed out in two pieces.
        let half = rows.len() / 2;
        let mut merged = open(&bench, &query);
        for part in [0..half, half..rows.len()] {
            let mut partial = open(&bench, &query);
            let passes = passes.slice(part.start, part.len());
            partial
                .update(&array(&values[part.clone()]), Some(&groups[part]), 20, Some(&passes))
                .unwrap();
            let state = partial.state(Emit::All).unwrap();
            let ids: Vec<u32> = (0..20).collect();
            merged.merge(&state, Some(&ids), 20).unwrap();
        }
        let first = floats(&merged.evaluate(Emit::First(7)).unwrap());
        assert_eq!(merged.groups(), 13);
        let rest = floats(&merged.evaluate(Emit::All).unwrap());
        assert_eq!([first, rest].concat(), expected);
        Ok(())
    };
    cases(40).run(&rows, run).unwrap();
}

#[test]
fn rows_are_taken_out_again_and_one_group_needs_no_numbers() {
    let bench = bench(|_| ());
    bench.publish("lab", &lab());
    let query = bench.query();
    let mut window = open(&bench, &query);
    window.update(&array(&[Some(1.0), None, Some(10.0)]), None, 1, None).unwrap();
    window.update(&array(&[Some(100.0)]), None, 1, None).unwrap();
    window.retract(&array(&[Some(1.0), None]), None, None).unwrap();
    assert_eq!(window.size().unwrap(), 8);
    assert!(window.memory() >= 4 << 20);
    assert_eq!(floats(&window.evaluate(Emit::All).unwrap()), [110.0]);
    assert_eq!(window.evaluate(Emit::First(1)).unwrap_err().code(), Code::Internal);
}

#[test]
fn groups_of_many_batches_add_up() {
    let bench = bench(|_| ());
    bench.publish("lab", &lab());
    let query = bench.query();
    let mut accumulator = open(&bench, &query);
    let mut expected: BTreeMap<u32, f64> = BTreeMap::new();
    for batch in 0..20u32 {
        let groups: Vec<u32> = (0..8192).map(|row| (row * 7 + batch) % 1000).collect();
        let values: Vec<_> = groups.iter().map(|group| Some(f64::from(group % 10))).collect();
        for (group, value) in groups.iter().zip(&values) {
            *expected.entry(*group).or_default() += value.unwrap();
        }
        accumulator.update(&array(&values), Some(&groups), 1000, None).unwrap();
    }
    let found = floats(&accumulator.evaluate(Emit::All).unwrap());
    assert_eq!(found, expected.into_values().collect::<Vec<_>>());
}

#[test]
fn workers_share_a_query_and_each_has_its_instance() {
    let bench = bench(|_| ());
    let version = bench.publish("lab", &lab());
    let c2f = function(&version, "c2f");
    let query = bench.query();
    let values: Float64Array = (0..5000).map(|row| Some(f64::from(row))).collect();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let found = query.scalar(&c2f, 0, &[column(values.clone())], 5000).unwrap();
                    assert_eq!(found.as_primitive::<Float64Type>(), &fahrenheit(&values));
                }
            });
        }
    });
    let counts = version.stats().counts();
    assert!((1..=8).contains(&counts.instances), "{counts:?}");
    assert_eq!(counts.rows, 8 * 50 * 5000);
    drop(query);
    assert_eq!(version.stats().counts().instances, 0);
    assert_eq!(bench.host.engine().instances(), 0);
}
