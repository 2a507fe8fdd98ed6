//! The sample guests as they are committed: all of them load, they answer as the same code
//! does natively, and the golden one of each published line still runs.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test reads its files")]

mod support;

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampNanosecondArray,
};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, TimestampNanosecondType};
use kymo_kernel::Code;
use kymo_plugins::{
    Accumulator, Argument, Cursor, Emit, Kind, LoadOptions, Pipeline, PluginVersion, QueryPlugins,
};
use support::{Budget, bench, context, function};

fn guests() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| wasm_path(name).is_some()).collect();
    names.sort();
    names
}

fn wasm_path(name: &str) -> Option<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(name);
    let path = folder.join(format!("{name}.wasm"));
    path.exists().then_some(path)
}

fn wasm(name: &str) -> Vec<u8> {
    std::fs::read(wasm_path(name).unwrap()).unwrap()
}

fn call(
    query: &QueryPlugins,
    version: &Arc<PluginVersion>,
    name: &str,
    arguments: &[ArrayRef],
) -> kymo_kernel::Result<ArrayRef> {
    let function = function(version, name);
    let fits = |overload: &kymo_plugins::Overload| {
        let types = overload.parameters.iter().map(Field::data_type);
        types.eq(arguments.iter().map(|each| each.data_type()))
    };
    let overload = function.function().overloads.iter().position(fits).unwrap();
    let rows = arguments[0].len();
    let arguments: Vec<_> = arguments.iter().cloned().map(Argument::Column).collect();
    query.scalar(&function, overload, &arguments, rows)
}

#[test]
fn every_sample_loads_and_describes_itself() {
    let bench = bench(|_| ());
    let guests = guests();
    assert!(guests.len() >= 10, "{guests:?}");
    for name in guests {
        let name_of_plugin = name.replace('.', "-");
        let version =
            bench.host.load(&name_of_plugin, &wasm(&name), &LoadOptions::default()).unwrap();
        assert!(!version.description().functions.is_empty(), "{name}");
        let text = serde_json::to_string(version.description()).unwrap();
        let back: kymo_plugins::Description = serde_json::from_str(&text).unwrap();
        assert_eq!(&back, version.description(), "{name}");
    }
}

#[test]
fn samples_answer_as_native_code_does() {
    let bench = bench(|_| ());
    let query = bench.query();
    let values: Float64Array =
        (0..10_000).map(|row| (row % 11 != 0).then(|| f64::from(row) / 100.0 - 50.0)).collect();
    let native =
        |of: fn(f64) -> f64| -> Float64Array { values.iter().map(|value| value.map(of)).collect() };
    let c2f = bench.publish("c2f", &wasm("c2f"));
    let argument: ArrayRef = Arc::new(values.clone());
    let found = call(&query, &c2f, "c2f", std::slice::from_ref(&argument)).unwrap();
    assert_eq!(found.as_primitive::<Float64Type>(), &native(|x| x * 1.8 + 32.0));
    let kernel = bench.publish("kernel", &wasm("kernel"));
    let found = call(&query, &kernel, "calibrated", &[argument]).unwrap();
    let curve = |x: f64| {
        let curve = [0.5, -1.25, 0.75, 2.0, -0.125, 0.0625, -0.03125, 0.015625];
        let sum: f64 = curve.iter().rev().fold(0.0, |sum, factor| sum * x + factor);
        sum.abs().sqrt() / (1.0 + x * x)
    };
    assert_eq!(found.as_primitive::<Float64Type>(), &native(curve));
}

#[test]
fn the_golden_plugin_of_line_0_1_still_runs() {
    let bench = bench(|_| ());
    let golden = bench.publish("golden", &wasm("golden-0.1.0"));
    let query = bench.query();
    let floats =
        |values: &[Option<f64>]| -> ArrayRef { Arc::new(Float64Array::from(values.to_vec())) };
    let longs = |values: &[i64]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
    let x = [Some(1.5), None, Some(-4.0)];
    let y = [Some(1.0), Some(2.0), None];

    let found = call(&query, &golden, "twice", &[floats(&x)]).unwrap();
    assert_eq!(&found, &floats(&[Some(3.0), None, Some(-8.0)]));
    let found = call(&query, &golden, "twice", &[longs(&[4, -5])]).unwrap();
    assert_eq!(&found, &longs(&[8, -10]));
    let found = call(&query, &golden, "first_of", &[floats(&x), floats(&y)]).unwrap();
    assert_eq!(&found, &floats(&[Some(1.5), Some(2.0), Some(-4.0)]));
    let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("añb"), None, Some("")]));
    let found = call(&query, &golden, "reversed", &[texts]).unwrap();
    assert_eq!(found.as_string::<i32>(), &StringArray::from(vec![Some("bña"), None, Some("")]));
    let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"ab", b""]));
    let found = call(&query, &golden, "reversed_bytes", &[bytes]).unwrap();
    assert_eq!(found.as_binary::<i32>(), &BinaryArray::from_vec(vec![b"ba", b""]));
    let found = call(&query, &golden, "above", &[floats(&x), floats(&y)]).unwrap();
    let above: Vec<_> = found.as_boolean().iter().collect();
    assert_eq!(above, [Some(true), None, None]);
    let now = query.context().time_ns;
    let found = call(&query, &golden, "from_now", &[longs(&[60])]).unwrap();
    let later = found.as_primitive::<TimestampNanosecondType>().value(0);
    assert_eq!(later, now + 60_000_000_000);
    let hour = function(&golden, "hour");
    let zone = hour.function().overloads[0].parameters[0].data_type().clone();
    let time: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![now]));
    let time = arrow::compute::cast(&time, &zone).unwrap();
    let found = call(&query, &golden, "hour", &[time]).unwrap();
    let found = arrow::compute::cast(&found, &DataType::Int64).unwrap();
    assert_eq!(found.as_primitive::<Int64Type>().value(0), now - now % 3_600_000_000_000);

    let error = call(&query, &golden, "root", &[floats(&[Some(4.0), Some(-1.0)])]).unwrap_err();
    assert_eq!(error.code(), Code::InvalidInput);
    assert!(error.message().contains("row 1: -1 has no root"), "{error}");
    let error = call(&query, &golden, "panics", &[longs(&[7])]).unwrap_err();
    assert_eq!(error.code(), Code::PluginFailed);
    assert!(error.message().contains("panics(7) was called"), "{error}");

    let mean = function(&golden, "golden_mean");
    assert_eq!((mean.function().kind, mean.function().retractable), (Kind::Aggregate, true));
    let mut whole = Accumulator::open(&query, &mean, 0).unwrap();
    whole.update(&[floats(&x)], Some(&[0, 1, 2]), 3, None).unwrap();
    let state = whole.state(Emit::All).unwrap();
    let mut merged = Accumulator::open(&query, &mean, 0).unwrap();
    merged.merge(&state, Some(&[0, 1, 0]), 2).unwrap();
    merged.update(&[floats(&[Some(1.0)])], Some(&[0]), 2, None).unwrap();
    let found = merged.evaluate(Emit::All).unwrap();
    assert_eq!(&found, &floats(&[Some(-0.5), None]));
}

#[test]
fn window_functions_see_a_whole_partition() {
    let bench = bench(|_| ());
    let sessions = bench.publish("sessions", &wasm("sessions"));
    let query = bench.query();
    let session = function(&sessions, "session");
    assert_eq!((session.function().kind, session.function().overloads.len()), (Kind::Window, 1));
    let utc = session.function().overloads[0].parameters[0].data_type().clone();
    let seconds: TimestampNanosecondArray = [Some(0), Some(10), None, Some(70), Some(500)]
        .iter()
        .map(|second| second.map(|second: i64| second * 1_000_000_000))
        .collect();
    let times = Argument::Column(arrow::compute::cast(&seconds, &utc).unwrap());
    let gap = |seconds: f64| Argument::Constant(Arc::new(Float64Array::from(vec![seconds])));
    let peers = [1, 2, 3, 4, 5];
    let found = query.window(&session, 0, &[times.clone(), gap(60.0)], &peers, 5).unwrap();
    let found: Vec<_> = found.as_primitive::<Int64Type>().iter().collect();
    assert_eq!(found, [Some(1), Some(1), None, Some(2), Some(3)]);
    let error = query.window(&session, 0, &[times, gap(f64::NAN)], &peers, 5).unwrap_err();
    assert_eq!(error.code(), Code::InvalidInput);
    assert!(error.message().contains("row 0: a gap of NaN seconds"), "{error}");

    let covered = function(&sessions, "covered");
    let found = query.window(&covered, 0, &[], &[1, 3, 3, 4], 4).unwrap();
    assert_eq!(found.as_primitive::<Float64Type>().values(), &[0.25, 0.75, 0.75, 1.0]);
    let lying = query.window(&covered, 0, &[], &[1, 9], 2).unwrap_err();
    assert!(lying.message().contains("peers of another partition"), "{lying}");
}

/// All rows of a table function, a few at a time.
fn rows(
    query: &Arc<QueryPlugins>,
    version: &Arc<PluginVersion>,
    name: &str,
    arguments: &[ArrayRef],
) -> kymo_kernel::Result<Vec<RecordBatch>> {
    let mut cursor = Cursor::open(query, &function(version, name), 0, arguments)?;
    let mut found = Vec::new();
    while let Some(batch) = cursor.next(100)? {
        assert!((1..=100).contains(&batch.num_rows()));
        found.push(batch);
    }
    Ok(found)
}

#[test]
fn table_functions_hand_out_rows_of_any_columns() {
    let bench = bench(|_| ());
    let series = bench.publish("series", &wasm("series"));
    let query = bench.query();
    let numbers = |start: Option<i64>, stop: i64, step: i64| {
        let one = |value: Option<i64>| -> ArrayRef { Arc::new(Int64Array::from(vec![value])) };
        let batches =
            rows(&query, &series, "series", &[one(start), one(Some(stop)), one(Some(step))]);
        batches.map(|batches| {
            let values =
                |batch: &RecordBatch| batch["value"].as_primitive::<Int64Type>().values().to_vec();
            batches.iter().flat_map(values).collect::<Vec<_>>()
        })
    };
    assert_eq!(numbers(Some(-2), 997, 3).unwrap(), (-2..=997).step_by(3).collect::<Vec<_>>());
    assert_eq!(numbers(Some(3), 1, -1).unwrap(), [3, 2, 1]);
    assert!(numbers(None, 9, 1).unwrap().is_empty(), "what is NULL has no rows");
    let error = numbers(Some(1), 2, 0).unwrap_err();
    assert_eq!(error.code(), Code::InvalidInput);
    assert!(error.message().contains("a step of 0 never ends"), "{error}");

    let text = |text: Option<&str>| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
    let found = rows(&query, &series, "words", &[text(Some("ä,b,")), text(Some(","))]).unwrap();
    assert_eq!(found[0]["place"].as_primitive::<Int64Type>().values(), &[1, 2, 3]);
    assert_eq!(found[0]["word"].as_string::<i32>(), &StringArray::from(vec!["ä", "b", ""]));
    let found = rows(&query, &series, "words", &[text(Some(" a  b ")), text(None)]).unwrap();
    assert_eq!(found[0].num_rows(), 2, "an Option shows its NULL");
    assert!(!found[0].schema().field(1).is_nullable());
}

#[test]
fn a_transform_keeps_its_state_from_batch_to_batch() {
    let bench = bench(|_| ());
    let deadband = bench.publish("deadband", &wasm("deadband"));
    let name = deadband.description().functions[0].name.clone();
    let settings = [("column", "load"), ("band", "0.5"), ("series", "host")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let input =
        vec![Field::new("host", DataType::Utf8, true), Field::new("load", DataType::Float64, true)];
    let transform = function(&deadband, &name);
    let context = context(Budget::new(1 << 30));
    let mut pipeline =
        Pipeline::open(&bench.host, &transform, context, settings.to_vec(), input).unwrap();
    let mut kept = |hosts: Vec<&str>, loads: Vec<f64>| {
        let rows = hosts.len();
        let columns: [ArrayRef; 2] =
            [Arc::new(StringArray::from(hosts)), Arc::new(Float64Array::from(loads))];
        let found = pipeline.apply(&columns, rows).unwrap();
        found.columns[1].as_primitive::<Float64Type>().values().to_vec()
    };
    assert_eq!(kept(vec!["a", "a", "b"], vec![1.0, 1.4, 9.0]), [1.0, 9.0]);
    assert_eq!(kept(vec!["a", "b"], vec![1.6, 9.0]), [1.6]);
}
