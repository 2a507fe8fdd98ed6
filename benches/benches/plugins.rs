//! Plugins beside native code, in the same run: what the boundary costs, a conversion and a
//! realistic kernel, a grouped aggregate, a fresh instance with its first batch, and
//! compiling. The ratios are what to look at.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench reads its files, and one that cannot run should stop"
)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array};
use arrow::compute::unary;
use arrow::datatypes::Float64Type;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kymo_config::settings::Plugins;
use kymo_kernel::env::real;
use kymo_plugins::memory::Unlimited;
use kymo_plugins::{
    Accumulator, Argument, Compiler, Emit, LoadOptions, PluginFunction, PluginHost, PluginVersion,
    QueryContext,
};

const ROWS: usize = 8192;
const GROUPS: u32 = 1000;

fn wasm(guest: &str) -> Vec<u8> {
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/guests");
    std::fs::read(plugins.join(guest).join(format!("{guest}.wasm"))).unwrap()
}

fn context() -> QueryContext {
    QueryContext {
        cancel: Arc::default(),
        deadline: None,
        time_ns: 0,
        timezone: "UTC".to_owned(),
        seed: 0,
        memory: Arc::new(Unlimited),
    }
}

fn values() -> Float64Array {
    (0..ROWS).map(|row| (row % 16 != 0).then_some(row as f64 / 100.0)).collect()
}

/// The realistic kernel, natively.
fn calibrated(x: f64) -> f64 {
    const CURVE: [f64; 8] = [0.5, -1.25, 0.75, 2.0, -0.125, 0.0625, -0.03125, 0.015625];
    let curve = CURVE.iter().rev().fold(0.0, |sum, coefficient| sum * x + coefficient);
    curve.abs().sqrt() / (1.0 + x * x)
}

fn load(host: &PluginHost, guest: &str) -> Arc<PluginVersion> {
    host.load(&guest.replace('.', "-"), &wasm(guest), &LoadOptions::default()).unwrap()
}

fn scalars(criterion: &mut Criterion, host: &Arc<PluginHost>) {
    beside_native(criterion, host, ("c2f", "c2f"), |x| x * 1.8 + 32.0);
    beside_native(criterion, host, ("kernel", "calibrated"), calibrated);
    one_row(criterion, host);
}

/// A function of a guest and the same in this program, which the compiler sees and may inline:
/// through a pointer, the native one would be slower than it is.
fn beside_native(
    criterion: &mut Criterion,
    host: &Arc<PluginHost>,
    (guest, name): (&str, &str),
    native: impl Fn(f64) -> f64 + Copy,
) {
    let query = host.query(context());
    let column = values();
    let argument = [Argument::Column(Arc::new(column.clone()))];
    let function = PluginFunction::named(&load(host, guest), name).unwrap();
    let mut group = criterion.benchmark_group("plugin scalar, 8192 rows");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function(format!("{name}, plugin"), |bencher| {
        bencher.iter(|| query.scalar(&function, 0, &argument, ROWS).unwrap());
    });
    group.bench_function(format!("{name}, native"), |bencher| {
        bencher.iter(|| unary::<_, _, Float64Type>(black_box(&column), native));
    });
    group.finish();
}

/// One row: what is paid for each call, whatever it holds.
fn one_row(criterion: &mut Criterion, host: &Arc<PluginHost>) {
    let query = host.query(context());
    let one: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
    let one = [Argument::Column(one)];
    let function = PluginFunction::named(&load(host, "c2f"), "c2f").unwrap();
    let mut group = criterion.benchmark_group("plugin scalar, one row");
    group.throughput(Throughput::Elements(1));
    group.bench_function("c2f, plugin", |bencher| {
        bencher.iter(|| query.scalar(&function, 0, &one, 1).unwrap());
    });
    group.finish();
}

fn aggregates(criterion: &mut Criterion, host: &Arc<PluginHost>) {
    let query = host.query(context());
    let mean = PluginFunction::named(&load(host, "golden-0.1.0"), "golden_mean").unwrap();
    let column: ArrayRef =
        Arc::new(Float64Array::from_iter_values((0..ROWS).map(|row| row as f64)));
    let groups: Vec<u32> = (0..ROWS as u32).map(|row| row.wrapping_mul(7919) % GROUPS).collect();
    let mut group = criterion.benchmark_group("plugin mean, 8192 rows in 1000 groups");
    group.throughput(Throughput::Elements(ROWS as u64));
    let mut accumulator = Accumulator::open(&query, &mean, 0).unwrap();
    let columns = [column.clone()];
    group.bench_function("plugin", |bencher| {
        bencher.iter(|| accumulator.update(&columns, Some(&groups), GROUPS, None).unwrap());
    });
    accumulator.evaluate(Emit::All).unwrap();
    let mut sums = vec![(0.0, 0i64); GROUPS as usize];
    let native = column.as_primitive::<Float64Type>();
    group.bench_function("native", |bencher| {
        bencher.iter(|| {
            for (value, group) in native.values().iter().zip(black_box(&groups)) {
                let (sum, rows) = &mut sums[*group as usize];
                *sum += value;
                *rows += 1;
            }
        });
    });
    group.finish();
}

fn life(criterion: &mut Criterion, host: &Arc<PluginHost>) {
    let function = PluginFunction::named(&load(host, "c2f"), "c2f").unwrap();
    let argument = [Argument::Column(Arc::new(values()))];
    let mut group = criterion.benchmark_group("plugin life");
    group.bench_function("fresh instance, start, first batch, drop", |bencher| {
        bencher.iter(|| {
            let query = host.query(context());
            query.scalar(&function, 0, &argument, ROWS).unwrap()
        });
    });
    let component = wasm("c2f");
    group.bench_function("load from the cache and describe", |bencher| {
        bencher.iter(|| host.load("c2f", &component, &LoadOptions::default()).unwrap());
    });
    let compiler = Compiler::in_process(&Plugins::default());
    let clock = real::env().clock;
    group.sample_size(10);
    group.bench_function("compile c2f", |bencher| {
        bencher.iter_batched(
            || component.clone(),
            |wasm| compiler.compile(&wasm, clock.as_ref()).unwrap(),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn plugins(criterion: &mut Criterion) {
    let settings = Plugins { preview: true, ..Plugins::default() };
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::in_process(&settings);
    let host = PluginHost::start(&settings, folder.path(), real::env(), compiler).unwrap();
    scalars(criterion, &host);
    aggregates(criterion, &host);
    life(criterion, &host);
}

criterion_group!(benches, plugins);
criterion_main!(benches);
