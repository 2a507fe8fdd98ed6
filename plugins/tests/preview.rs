//! The preview interfaces: window functions, table functions and ingest transforms.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test reads its files")]

mod support;

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type};
use kymo_config::settings::Plugins;
use kymo_kernel::Code;
use kymo_plugins::{Argument, Cursor, LoadOptions, Pipeline, PluginVersion, State, Transformed};
use support::preview::{GROWS, LIES, REJECTS, TRAPS, preview};
use support::{Bench, Budget, bench, context, function};

fn started(change: impl FnOnce(&mut Plugins)) -> (Bench, Arc<PluginVersion>) {
    let bench = bench(change);
    let version = bench.publish("preview", &preview());
    (bench, version)
}

#[test]
fn preview_interfaces_are_for_those_who_ask_for_them() {
    let bench = bench(|settings| settings.preview = false);
    let error = bench.host.load("preview", &preview(), &LoadOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::Unsupported);
    assert!(error.hint().unwrap().contains("plugins.preview"), "{error:?}");
}

#[test]
fn a_window_function_sees_a_partition_and_its_peers() {
    let (bench, version) = started(|_| ());
    let values: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 1.0, 2.0]));
    let peers = function(&version, "peers");
    let arguments = [Argument::Column(values)];
    let found = bench.query().window(&peers, 0, &arguments, &[2, 2, 3], 3).unwrap();
    assert_eq!(found.as_primitive::<Int64Type>().values(), &[2, 2, 3]);
    let short = bench.query().window(&peers, 0, &arguments, &[2, 2], 3).unwrap_err();
    assert_eq!(short.code(), Code::Internal);
}

#[test]
fn a_table_function_hands_out_batches_to_its_end() {
    let (bench, version) = started(|_| ());
    let count: ArrayRef = Arc::new(Int64Array::from(vec![2500]));
    let query = bench.query();
    let numbers = function(&version, "numbers");
    let mut cursor = Cursor::open(&query, &numbers, 0, std::slice::from_ref(&count)).unwrap();
    let mut found = Vec::new();
    while let Some(batch) = cursor.next(1000).unwrap() {
        assert!(batch.num_rows() <= 1000);
        found.extend_from_slice(batch.column(0).as_primitive::<Int64Type>().values());
    }
    assert_eq!(found, (0..2500).collect::<Vec<_>>());
    assert!(cursor.next(1000).unwrap().is_none());
    // Removing the plugin meanwhile disturbs no cursor.
    let mut cursor = Cursor::open(&query, &numbers, 0, std::slice::from_ref(&count)).unwrap();
    bench.host.registry().remove("preview").unwrap();
    assert_eq!(cursor.next(10).unwrap().unwrap().num_rows(), 10);
    let overfull = function(&version, "overfull");
    let mut cursor = Cursor::open(&query, &overfull, 0, &[count]).unwrap();
    let error = cursor.next(10).unwrap_err();
    assert!(error.message().contains("11 rows where 10 were asked for"), "{error}");
    assert!(cursor.next(10).unwrap().is_none());
}

/// Other packages test with the component and cannot pack it themselves. `KYMO_WRITE_FIXTURES`
/// writes it anew.
#[test]
fn the_component_that_others_test_with_is_this_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preview.wasm");
    let component = preview();
    if std::env::var_os("KYMO_WRITE_FIXTURES").is_some() {
        std::fs::write(&path, &component).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == component, "{} is of another text", path.display());
}

#[test]
fn a_table_function_that_never_answers_or_traps_ends_alone() {
    let (bench, version) = started(|settings| settings.call_timeout_ms = 100);
    let query = bench.query();
    let one: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    for (name, code) in [("stuck", Code::Deadline), ("broken", Code::PluginFailed)] {
        let mut cursor =
            Cursor::open(&query, &function(&version, name), 0, std::slice::from_ref(&one)).unwrap();
        assert_eq!(cursor.next(10).unwrap_err().code(), code);
        assert!(cursor.next(10).unwrap().is_none());
    }
    let numbers = function(&version, "numbers");
    let mut cursor = Cursor::open(&query, &numbers, 0, &[one]).unwrap();
    assert_eq!(cursor.next(10).unwrap().unwrap().num_rows(), 1);
    drop(cursor);
    assert_eq!(bench.host.engine().instances(), 0);
}

fn pipeline(bench: &Bench, version: &Arc<PluginVersion>, budget: &Arc<Budget>) -> Pipeline {
    let input = vec![Field::new("x", DataType::Float64, true)];
    let pass = function(version, "pass");
    Pipeline::open(&bench.host, &pass, context(budget.clone()), vec![], input).unwrap()
}

fn apply(pipeline: &mut Pipeline, rows: usize) -> kymo_kernel::Result<Transformed> {
    let values: ArrayRef = Arc::new(Float64Array::from(vec![1.0; rows]));
    pipeline.apply(&[values], rows)
}

#[test]
fn a_transform_passes_rows_on_and_says_which_it_rejects() {
    let (bench, version) = started(|_| ());
    let budget = Budget::new(1 << 30);
    let mut pipeline = pipeline(&bench, &version, &budget);
    assert_eq!(pipeline.schema(), [Field::new("x", DataType::Float64, true)]);
    let all = apply(&mut pipeline, 3).unwrap();
    assert_eq!((all.rows, all.rejected.len()), (3, 0));
    assert_eq!(all.columns[0].as_primitive::<Float64Type>().values(), &[1.0; 3]);
    let some = apply(&mut pipeline, REJECTS).unwrap();
    assert_eq!((some.rows, some.columns[0].len()), (4, 4));
    assert_eq!(some.rejected, [(4, "too odd".to_owned())]);
    let lie = apply(&mut pipeline, LIES).unwrap_err();
    assert!(lie.message().contains("row 99 of 7 is rejected"), "{lie}");
    assert_eq!(apply(&mut pipeline, 3).unwrap().rows, 3, "a fresh instance goes on");
    assert_eq!(pipeline.replaced(), 1);
    drop(pipeline);
    assert_eq!(budget.left(), 1 << 30);
    assert_eq!(bench.host.engine().instances(), 0);
}

#[test]
fn a_transform_is_replaced_after_many_calls_and_when_it_has_grown() {
    let (bench, version) = started(|settings| settings.recycle_calls = 5);
    let budget = Budget::new(1 << 30);
    let mut pipeline = pipeline(&bench, &version, &budget);
    for _ in 0..20 {
        apply(&mut pipeline, 1).unwrap();
    }
    // Opening and asking for the schema are calls too: three batches an instance.
    assert_eq!(pipeline.replaced(), 6);
    let (bench, version) = started(|_| ());
    let mut pipeline = self::pipeline(&bench, &version, &budget);
    apply(&mut pipeline, GROWS).unwrap();
    assert_eq!(pipeline.replaced(), 0);
    apply(&mut pipeline, 1).unwrap();
    assert_eq!(pipeline.replaced(), 1, "more than half of its memory was in use");
}

#[test]
fn a_transform_that_fails_three_times_in_a_row_is_put_aside() {
    let (bench, version) = started(|settings| settings.max_faults = 1000);
    let budget = Budget::new(1 << 30);
    let mut pipeline = pipeline(&bench, &version, &budget);
    let state = || bench.host.registry().snapshot().get("preview").unwrap().state.clone();
    for rows in [TRAPS, TRAPS, 1, TRAPS, TRAPS] {
        let _ = apply(&mut pipeline, rows);
        assert_eq!(state(), State::Active);
    }
    apply(&mut pipeline, TRAPS).unwrap_err();
    let State::Suspended(reason) = state() else { panic!("not suspended") };
    assert!(reason.contains("in a row"), "{reason}");
}

#[test]
fn a_large_batch_is_split_and_its_rejected_rows_keep_their_numbers() {
    let (bench, version) = started(|settings| settings.max_batch_rows = REJECTS);
    let budget = Budget::new(1 << 30);
    let mut pipeline = pipeline(&bench, &version, &budget);
    let some = apply(&mut pipeline, 2 * REJECTS + 2).unwrap();
    // Three calls of four rows: none of a size that the plugin dislikes.
    assert_eq!((some.rows, some.rejected.len()), (12, 0));
    let some = apply(&mut pipeline, 2 * REJECTS).unwrap();
    assert_eq!((some.rows, some.columns[0].len()), (8, 8));
    assert_eq!(some.rejected, [(4, "too odd".to_owned()), (9, "too odd".to_owned())]);
}
