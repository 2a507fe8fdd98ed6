//! Plugins that mean harm. Each attack has to end in the right error and in bounded time, the
//! next call on the same plugin has to work, and the memory has to be back in its account.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test reads its files")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array};
use arrow::datatypes::Float64Type;
use kymo_kernel::env::{Clock, real::RealClock};
use kymo_kernel::{Code, Error};
use kymo_plugins::validate::{CodeLimits, validate};
use kymo_plugins::{
    Accumulator, Argument, Emit, Fault, Kind, LoadOptions, PluginFunction, PluginHost,
    PluginVersion, State,
};
use support::lab::{FRAMES, TEXTS, evil, lab};
use support::{
    Bench, Budget, FLOAT64, INT64, Told, bench, beside, catalog, component, context, function,
    importing, module,
};

const ENOUGH: usize = 1 << 30;
const CALL_MS: u64 = 200;

/// The laboratory with a short time for a call and patience with faults.
fn lab_bench() -> (Bench, Arc<PluginVersion>) {
    let bench = bench(|settings| {
        settings.call_timeout_ms = CALL_MS;
        settings.max_faults = 10_000;
    });
    let version = bench.publish("lab", &lab());
    (bench, version)
}

fn modes(mode: i64, rows: usize) -> Argument {
    Argument::Column(Arc::new(Int64Array::from(vec![mode; rows])))
}

/// One attack from a query of its own. Whatever comes of it, the query and the plugin go on
/// and nothing stays charged.
fn attack(
    host: &Arc<PluginHost>,
    version: &Arc<PluginVersion>,
    name: &str,
    mode: i64,
) -> Result<ArrayRef, Error> {
    let clock = RealClock::new();
    let budget = Budget::new(ENOUGH);
    let query = host.query(context(budget.clone()));
    let begin = clock.monotonic();
    let result = query.scalar(&function(version, name), 0, &[modes(mode, 2)], 2);
    let took = clock.monotonic() - begin;
    assert!(took < Duration::from_secs(5), "attack {mode} on {name} took {took:?}");
    works(&query, version);
    drop(query);
    assert_eq!(budget.left(), ENOUGH, "attack {mode} on {name} kept memory");
    assert_eq!(host.engine().instances(), 0);
    result
}

fn works(query: &kymo_plugins::QueryPlugins, version: &Arc<PluginVersion>) {
    let hundred: ArrayRef = Arc::new(Float64Array::from(vec![100.0]));
    let c2f = function(version, "c2f");
    let found = query.scalar(&c2f, 0, &[Argument::Column(hundred)], 1).unwrap();
    assert_eq!(found.as_primitive::<Float64Type>().value(0), 212.0);
}

fn faults(version: &PluginVersion, kind: Fault) -> u64 {
    version.stats().counts().faults[kind as usize]
}

/// The whole server is attacked with the component too, by a package that cannot pack it.
/// `KYMO_WRITE_FIXTURES` writes it anew.
#[test]
fn the_component_that_others_test_with_is_this_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lab.wasm");
    let component = lab();
    if std::env::var_os("KYMO_WRITE_FIXTURES").is_some() {
        std::fs::write(&path, &component).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == component, "{} is of another text", path.display());
}

#[test]
fn every_misdeed_of_a_call_ends_in_its_error() {
    let (bench, version) = lab_bench();
    let cases = [
        ("loop", Code::Deadline, "longer than 200 ms", Some(Fault::Deadline)),
        ("trap", Code::PluginFailed, "unreachable", Some(Fault::Trap)),
        ("recurse", Code::PluginFailed, "stack", Some(Fault::Trap)),
        ("hoard and trap", Code::OutOfMemory, "refused more memory", Some(Fault::Memory)),
        ("one row more", Code::PluginFailed, "3 rows instead of 2", Some(Fault::Interface)),
        ("one row less", Code::PluginFailed, "1 rows instead of 2", Some(Fault::Interface)),
        ("no rows", Code::PluginFailed, "0 rows instead of 2", Some(Fault::Interface)),
        ("two billion rows", Code::PluginFailed, "it failed", Some(Fault::Trap)),
        ("out of bounds", Code::PluginFailed, "it failed", Some(Fault::Trap)),
        ("unaligned", Code::PluginFailed, "align", Some(Fault::Trap)),
        ("wrong case", Code::PluginFailed, "kind int64", Some(Fault::Interface)),
        ("no such case", Code::PluginFailed, "it failed", Some(Fault::Trap)),
        ("short validity", Code::PluginFailed, "bytes of validity", Some(Fault::Interface)),
        ("result out of memory", Code::PluginFailed, "it failed", Some(Fault::Trap)),
        ("neither ok nor error", Code::PluginFailed, "it failed", Some(Fault::Trap)),
        ("bad error text", Code::PluginFailed, "it failed", Some(Fault::Trap)),
        ("more than fuel", Code::PluginFailed, "too much", Some(Fault::Trap)),
        ("log out of bounds", Code::PluginFailed, "it failed", Some(Fault::Trap)),
        ("say and trap", Code::PluginFailed, "before, it logged: I am so", Some(Fault::Trap)),
        ("exhausted", Code::OutOfMemory, "row 3: I am so", None),
        ("endless error text", Code::InvalidInput, "xxxx", None),
    ];
    for (name, code, message, fault) in cases {
        let before = fault.map(|fault| faults(&version, fault));
        let error = attack(&bench.host, &version, "evil", evil(name)).unwrap_err();
        assert_eq!(error.code(), code, "{name}: {error}");
        assert!(error.message().contains(message), "{name}: {error}");
        assert!(error.message().starts_with("plugin lab ("), "{name}: {error}");
        assert!(error.message().len() < 6000, "{name}: {} bytes", error.message().len());
        let after = fault.map(|fault| faults(&version, fault) - 1);
        assert_eq!(before, after, "{name} counts as {fault:?}");
    }
    let total: u64 = version.stats().counts().faults.iter().sum();
    assert_eq!(total, 19, "what a plugin reports itself is no fault");
}

#[test]
fn a_plugin_that_is_refused_memory_may_go_on_without() {
    let (bench, version) = lab_bench();
    let found = attack(&bench.host, &version, "evil", evil("hoard")).unwrap();
    assert_eq!(found.len(), 2);
    let high = version.stats().counts().memory_high_water;
    assert!((60 << 20..=64 << 20).contains(&high), "{high} bytes");
    assert_eq!(version.stats().counts().faults, [0; 4]);
}

#[test]
fn the_querys_account_bounds_a_plugin_as_its_own_limit_does() {
    let (bench, version) = lab_bench();
    let budget = Budget::new(8 << 20);
    let query = bench.host.query(context(budget.clone()));
    let evil_function = function(&version, "evil");
    let mode = modes(evil("hoard and trap"), 2);
    let error = query.scalar(&evil_function, 0, &[mode], 2).unwrap_err();
    assert_eq!(error.code(), Code::OutOfMemory);
    assert!(error.message().contains("the query has no memory left"), "{error}");
    assert_eq!(version.stats().counts().faults, [0; 4], "no fault of the plugin");
    works(&query, &version);
    drop(query);
    assert_eq!(budget.left(), 8 << 20);
    // Not enough for the memory that an instance begins with.
    let poor = Budget::new(1 << 20);
    let query = bench.host.query(context(poor.clone()));
    let error = query.scalar(&evil_function, 0, &[modes(0, 2)], 2).unwrap_err();
    assert_eq!(error.code(), Code::OutOfMemory, "{error}");
    assert_eq!(poor.left(), 1 << 20);
    assert_eq!(bench.host.engine().instances(), 0);
}

#[test]
fn lying_text_is_found_out() {
    let (bench, version) = lab_bench();
    for (mode, (name, ..)) in TEXTS.iter().enumerate() {
        let mode = i64::try_from(mode).unwrap();
        let error = attack(&bench.host, &version, "evil_text", mode).unwrap_err();
        assert_eq!(error.code(), Code::PluginFailed, "{name}: {error}");
        assert!(error.message().contains("it broke the interface"), "{name}: {error}");
    }
    assert_eq!(faults(&version, Fault::Interface), TEXTS.len() as u64);
}

#[test]
fn lying_arrow_messages_are_found_out() {
    let (bench, version) = lab_bench();
    for mode in 0..FRAMES {
        let error = attack(&bench.host, &version, "evil_frame", mode).unwrap_err();
        assert_eq!(error.code(), Code::PluginFailed, "{mode}: {error}");
        assert!(error.message().contains("Arrow message"), "{mode}: {error}");
    }
}

#[test]
fn a_flood_of_lines_is_cut_off_and_counted() {
    let (bench, version) = lab_bench();
    attack(&bench.host, &version, "evil", evil("flood the log")).unwrap();
    assert_eq!(bench.host.log().lines().len(), 64);
    assert_eq!(bench.host.log().dropped(), 936);
    let line = &bench.host.log().lines()[0];
    assert_eq!((&*line.plugin, line.message.as_str()), ("lab", "I am so"));
}

#[test]
fn a_cancelled_query_leaves_a_loop_soon_and_the_plugin_is_not_to_blame() {
    let bench = bench(|settings| {
        settings.call_timeout_ms = 60_000;
    });
    let version = bench.publish("lab", &lab());
    let clock = RealClock::new();
    let context = context(Budget::new(ENOUGH));
    let cancel = context.cancel.clone();
    let query = bench.host.query(context);
    let begin = clock.monotonic();
    let error = std::thread::scope(|scope| {
        let running = scope
            .spawn(|| query.scalar(&function(&version, "evil"), 0, &[modes(evil("loop"), 2)], 2));
        while version.stats().counts().instances == 0 {
            std::thread::yield_now();
        }
        cancel.store(true, Ordering::Relaxed);
        running.join().unwrap().unwrap_err()
    });
    assert_eq!(error.code(), Code::Cancelled);
    assert!(clock.monotonic() - begin < Duration::from_secs(5));
    assert_eq!(version.stats().counts().faults, [0; 4]);
    // Nothing of a cancelled query begins any more.
    let again = query.scalar(&function(&version, "evil"), 0, &[modes(evil("fine"), 2)], 2);
    assert_eq!(again.unwrap_err().code(), Code::Cancelled);
}

#[test]
fn a_querys_deadline_ends_its_calls() {
    let bench = bench(|settings| settings.call_timeout_ms = 60_000);
    let version = bench.publish("lab", &lab());
    let mut context = context(Budget::new(ENOUGH));
    // The clock of the process counts from its start, which lies in the past.
    context.deadline = Some(Duration::from_millis(1));
    let query = bench.host.query(context);
    let call = query.scalar(&function(&version, "evil"), 0, &[modes(evil("loop"), 2)], 2);
    assert_eq!(call.unwrap_err().code(), Code::Deadline);
    assert_eq!(version.stats().counts().faults, [0; 4]);
}

#[test]
fn a_trap_amid_a_thousand_groups_ends_that_aggregate_alone() {
    let (bench, version) = lab_bench();
    let budget = Budget::new(ENOUGH);
    let query = bench.host.query(context(budget.clone()));
    let total = function(&version, "total");
    let groups: Vec<u32> = (0..1000).collect();
    let good: Vec<ArrayRef> = vec![Arc::new(Float64Array::from(vec![1.0; 1000]))];
    let mut values = vec![1.0; 1000];
    values[700] = 666.0;
    let bad: Vec<ArrayRef> = vec![Arc::new(Float64Array::from(values))];
    let mut one = Accumulator::open(&query, &total, 0).unwrap();
    let mut other = Accumulator::open(&query, &total, 0).unwrap();
    other.update(&good, Some(&groups), 1000, None).unwrap();
    one.update(&good, Some(&groups), 1000, None).unwrap();
    let error = one.update(&bad, Some(&groups), 1000, None).unwrap_err();
    assert_eq!(error.code(), Code::PluginFailed);
    assert!(error.message().contains("total.update: it trapped"), "{error}");
    let after = one.evaluate(Emit::All).unwrap_err();
    assert!(after.message().contains("failed before"), "{after}");
    let found = other.evaluate(Emit::All).unwrap();
    assert_eq!(found.as_primitive::<Float64Type>().values(), &[1.0; 1000]);
    drop((one, other, query));
    assert_eq!(budget.left(), ENOUGH);
}

#[test]
fn a_thousand_traps_leave_nothing_behind() {
    let (bench, version) = lab_bench();
    let budget = Budget::new(ENOUGH);
    let query = bench.host.query(context(budget.clone()));
    let evil_function = function(&version, "evil");
    for _ in 0..1000 {
        let error = query.scalar(&evil_function, 0, &[modes(evil("trap"), 2)], 2).unwrap_err();
        assert_eq!(error.code(), Code::PluginFailed);
        assert_eq!(bench.host.engine().instances(), 0);
    }
    works(&query, &version);
    drop(query);
    assert_eq!(budget.left(), ENOUGH);
}

/// A plugin whose `describe` and `start` have these bodies.
fn with_bodies(describe: &str, start: &str) -> Vec<u8> {
    let functions = [Told::scalar("f", &[FLOAT64], FLOAT64)];
    let catalog = catalog(&functions, describe, start);
    let call = r#"(func (export "kymo:udf/scalar@0.1.0#call")
        (param i32 i32 i32 i32 i32) (result i32) unreachable)"#;
    component("scalar-plugin", &format!("(module {catalog} {call})"))
}

#[test]
fn what_fails_to_describe_itself_is_not_loaded() {
    let bench = bench(|settings| settings.start_timeout_ms = 100);
    let load = |wasm: &[u8]| bench.host.load("p", wasm, &LoadOptions::default()).unwrap_err();
    let late = load(&with_bodies("(loop $l (br $l))", ""));
    assert_eq!(late.code(), Code::Deadline, "{late}");
    assert!(late.message().contains("describe: the call took longer than 100 ms"), "{late}");
    assert!(late.hint().unwrap().contains("plugins.start_timeout_ms"), "{late:?}");
    let trap = load(&with_bodies("unreachable", ""));
    assert_eq!(trap.code(), Code::PluginFailed, "{trap}");
    let nowhere = load(&with_bodies("(return (i32.const -4))", ""));
    assert_eq!(nowhere.code(), Code::PluginFailed, "{nowhere}");
    assert_eq!(bench.host.engine().instances(), 0);
}

#[test]
fn what_fails_to_start_fails_its_query_only() {
    let bench = bench(|settings| {
        settings.start_timeout_ms = 100;
        settings.max_faults = 10_000;
    });
    for (start, code) in
        [("(loop $l (br $l))", Code::Deadline), ("unreachable", Code::PluginFailed)]
    {
        let version = bench.publish("p", &with_bodies("", start));
        let one: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
        let call = bench.query().scalar(&function(&version, "f"), 0, &[Argument::Column(one)], 1);
        let error = call.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains("start"), "{error}");
        assert_eq!(bench.host.engine().instances(), 0);
    }
}

#[test]
fn descriptions_beyond_the_limits_are_refused() {
    let bench = bench(|_| ());
    let refuse = |functions: &[Told]| {
        let call = r#"(func (export "kymo:udf/scalar@0.1.0#call")
            (param i32 i32 i32 i32 i32) (result i32) unreachable)"#;
        let text = format!("(module {} {call})", catalog(functions, "", ""));
        let wasm = component("scalar-plugin", &text);
        let error = bench.host.load("p", &wasm, &LoadOptions::default()).unwrap_err();
        assert_eq!(error.code(), Code::InvalidInput, "{error}");
        error.message().to_owned()
    };
    let named = |name: &str| Told::scalar(name, &[INT64], INT64);
    let many: Vec<Told> = (0..257).map(|number| named(&format!("f{number}"))).collect();
    assert!(refuse(&many).contains("257"));
    assert!(refuse(&[named("a"), named("a")]).contains("two functions"));
    assert!(refuse(&[named(&"a".repeat(20_000))]).contains("is called"));
    assert!(refuse(&[named("Select")]).contains("is called"));
    let mut aggregate = named("a");
    aggregate.kind = 1;
    aggregate.overloads[0].2 = vec![INT64];
    assert!(refuse(&[aggregate]).contains("does not export"));
    let mut nested = arrow::datatypes::DataType::Int32;
    for _ in 0..20 {
        let field = arrow::datatypes::Field::new("item", nested, true);
        nested = arrow::datatypes::DataType::List(Arc::new(field));
    }
    let schema = support::lab::schema_message(nested);
    let deep = Told::scalar("f", &[support::Type::Arrow(schema)], INT64);
    assert!(refuse(&[deep]).contains("nested deeper"));
    let garbage = Told::scalar("f", &[support::Type::Arrow(vec![7; 100])], INT64);
    assert!(refuse_interface(&bench, &garbage).contains("Arrow schema"));
    let plain = support::lab::schema_message(arrow::datatypes::DataType::Int64);
    let hidden = Told::scalar("f", &[support::Type::Arrow(plain)], INT64);
    assert!(refuse_interface(&bench, &hidden).contains("the interface has a word"));
}

fn refuse_interface(bench: &Bench, told: &Told) -> String {
    let call = r#"(func (export "kymo:udf/scalar@0.1.0#call")
        (param i32 i32 i32 i32 i32) (result i32) unreachable)"#;
    let text = format!("(module {} {call})", catalog(std::slice::from_ref(told), "", ""));
    let wasm = component("scalar-plugin", &text);
    let error = bench.host.load("p", &wasm, &LoadOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::PluginFailed, "{error}");
    error.message().to_owned()
}

#[test]
fn what_is_no_plugin_is_refused_by_name() {
    let bench = bench(|_| ());
    let refuse = |wasm: &[u8]| {
        let error = bench.host.load("p", wasm, &LoadOptions::default()).unwrap_err();
        assert_eq!(error.code(), Code::InvalidInput, "{error}");
        format!("{error} {}", error.hint().unwrap_or_default())
    };
    let text = |text: &str| wat::parse_str(text).unwrap();
    assert!(refuse(b"").contains("not WebAssembly"));
    assert!(refuse(b"PK\x03\x04 a zip").contains("not WebAssembly"));
    assert!(refuse(&text("(module)")).contains("core module"));
    assert!(refuse(b"\0asm\x0d\0\x01\0").contains("kymo:udf/catalog"));
    let wasi = importing("wasi:io", "poll", "0.2.0");
    assert!(refuse(&wasi).contains("it imports wasi:io/poll@0.2.0"));
    let other = importing("acme:udf", "host", "0.1.0");
    assert!(refuse(&other).contains("it imports acme:udf/host@0.1.0"));
    let future = importing("kymo:udf", "host", "9.0.0");
    assert!(refuse(&future).contains("known line"));
    let more = importing("kymo:udf", "host", "0.1.0");
    assert!(refuse(&more).contains("known line"), "a function that the host does not have");
    let good = lab();
    assert!(refuse(&good[..good.len() / 2]).contains("not valid"));
    let wasi = "(module (import \"wasi_snapshot_preview1\" \"fd_write\" \
        (func (param i32 i32 i32 i32) (result i32))))";
    assert!(refuse(&text(wasi)).contains("without WASI"));
}

#[test]
fn the_line_of_an_interface_is_part_of_its_name() {
    let bench = bench(|_| ());
    let good = String::from_utf8_lossy(&lab()).into_owned();
    assert!(good.contains("kymo:udf/catalog@0.1.0"));
    let of_line = |line: &[u8; 6]| {
        let mut wasm = lab();
        let places: Vec<usize> =
            (0..wasm.len() - 6).filter(|at| wasm[*at..].starts_with(b"@0.1.0")).collect();
        places.into_iter().for_each(|at| wasm[at..at + 6].copy_from_slice(line));
        bench.host.load("lab", &wasm, &LoadOptions::default())
    };
    works(&bench.query(), &of_line(b"@0.1.9").unwrap());
    for newer in [b"@0.2.0", b"@1.0.0"] {
        let error = of_line(newer).unwrap_err();
        assert_eq!(error.code(), Code::InvalidInput, "{error}");
        assert!(error.message().contains("known line"), "{error}");
    }
}

#[test]
fn memories_are_counted_and_share_their_plugins_limit() {
    let bench = bench(|_| ());
    let load = |wasm: &[u8]| bench.host.load("p", wasm, &LoadOptions::default());
    let two = "(module (memory 1) (memory 1))";
    let error = load(&beside(&lab(), two, 1)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidInput, "{error}");
    assert!(error.message().contains("multiple memories"), "{error}");
    let imported = "(module (import \"a\" \"b\" (memory 1)) (memory 1))";
    let error = load(&beside(&lab(), imported, 0)).unwrap_err();
    assert!(error.message().contains("multiple memories"), "{error}");

    let one = "(module (memory 1))";
    works(&bench.query(), &load(&beside(&lab(), one, 3)).unwrap());
    let error = load(&beside(&lab(), one, 4)).unwrap_err();
    assert_eq!(error.code(), Code::TooLarge, "{error}");
    assert!(error.message().contains("it has 5 memories, 4 are the most"), "{error}");
    assert!(error.hint().unwrap().contains("plugins.max_memories = 5"), "{error:?}");
    let tables = "(module (table 1 funcref))";
    let error = load(&beside(&lab(), tables, 20)).unwrap_err();
    assert!(error.message().contains("tables, 16 are the most"), "{error}");
    let small = beside(&beside(&lab(), "(module)", 39), "(module)", 39);
    let error = load(&small).unwrap_err();
    assert_eq!(error.code(), Code::PluginFailed, "{error}");
    assert!(error.message().contains("instance count too high"), "{error}");

    // Four megabytes are the laboratory's own; 64 are the limit of all.
    let megabytes = |number: u32| format!("(module (memory {}))", number * 16);
    let error = load(&beside(&lab(), &megabytes(31), 2)).unwrap_err();
    assert_eq!(error.code(), Code::OutOfMemory, "{error}");
    assert!(error.message().contains("refused more memory than its 67108864"), "{error}");
    let version = load(&beside(&lab(), &megabytes(29), 2)).unwrap();
    attack(&bench.host, &version, "evil", evil("hoard")).unwrap();
    let high = version.stats().counts().memory_high_water;
    assert!((62 << 20..=64 << 20).contains(&high), "{high} bytes");
    assert_eq!(bench.host.engine().instances(), 0);
}

#[test]
fn a_core_module_that_describes_its_interface_is_packed() {
    let bench = bench(|_| ());
    let module = module("plugin", &support::lab::text(1.8));
    let version = bench.publish("lab", &module);
    works(&bench.query(), &version);
}

/// The component of the published line, as it is committed.
#[expect(clippy::disallowed_methods, reason = "a test reads its files")]
fn golden() -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests");
    std::fs::read(folder.join("golden-0.1.0/golden-0.1.0.wasm")).unwrap()
}

/// Bytes that nobody packed: refused for what they are, or as good as any other plugin.
fn survives(bench: &Bench, wasm: &[u8]) {
    let Ok(version) = bench.host.load("p", wasm, &LoadOptions::default()) else { return };
    for each in PluginFunction::all(&version) {
        if each.function().kind == Kind::Scalar {
            let one: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
            let _ = bench.query().scalar(&each, 0, &[Argument::Column(one)], 1);
        }
    }
}

#[test]
fn a_component_that_broke_off_anywhere_is_refused() {
    let bench = bench(|settings| settings.start_timeout_ms = 100);
    let limits = CodeLimits::of(&bench.settings);
    let good = golden();
    assert!(validate(&good, &limits).is_ok());
    let mut whole = 0;
    for end in (0..good.len()).step_by(37) {
        match validate(&good[..end], &limits) {
            Err(error) => assert_eq!(error.code(), Code::InvalidInput, "{end} bytes: {error}"),
            Ok(component) => {
                whole += 1;
                survives(&bench, &component);
            }
        }
    }
    // What ends between two sections is another component, and rarely.
    assert!(whole < 20, "{whole} beginnings are valid");
    assert_eq!(bench.host.engine().instances(), 0);
    bench.publish("golden", &good);
}

#[test]
fn a_flipped_bit_anywhere_is_refused_or_harmless() {
    let bench = bench(|settings| {
        settings.start_timeout_ms = 100;
        settings.max_faults = 10_000;
    });
    let limits = CodeLimits::of(&bench.settings);
    let good = golden();
    let mut valid = 0_usize;
    for (number, at) in (0..good.len()).step_by(41).enumerate() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (number % 8);
        match validate(&bad, &limits) {
            Err(error) => {
                let expected = [Code::InvalidInput, Code::TooLarge];
                assert!(expected.contains(&error.code()), "byte {at}: {error}");
            }
            // Most bits are code or data; compiling them all would take minutes.
            Ok(_) => {
                valid += 1;
                if valid.is_multiple_of(100) {
                    survives(&bench, &bad);
                }
            }
        }
    }
    assert!(valid > 100, "{valid}");
    assert_eq!(bench.host.engine().instances(), 0);
    bench.publish("golden", &good);
}

#[test]
fn flipped_bits_of_a_component_never_harm_the_host() {
    let bench = bench(|settings| settings.start_timeout_ms = 100);
    let good = lab();
    let mut seed = 1u64;
    for _ in 0..30 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut bad = good.clone();
        let at = usize::try_from(seed >> 33).unwrap() % bad.len();
        bad[at] ^= 1 << (seed % 8);
        // Many a bit says nothing: what loads has to run or fail like any other plugin.
        if let Ok(version) = bench.host.load("p", &bad, &LoadOptions::default()) {
            let one: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
            if let Some((_, first)) = version.description().function("c2f") {
                let name = first.name.clone();
                let call = function(&version, &name);
                let _ = bench.query().scalar(&call, 0, &[Argument::Column(one)], 1);
            }
        }
    }
    assert_eq!(bench.host.engine().instances(), 0);
    works(&bench.query(), &bench.publish("lab", &good));
}

#[test]
fn too_many_faults_put_a_version_aside_until_it_is_resumed() {
    let bench = bench(|settings| settings.max_faults = 3);
    let version = bench.publish("lab", &lab());
    let query = bench.query();
    let evil_function = function(&version, "evil");
    for _ in 0..3 {
        query.scalar(&evil_function, 0, &[modes(evil("trap"), 2)], 2).unwrap_err();
    }
    let map = bench.host.registry().snapshot();
    let State::Suspended(reason) = &map.get("lab").unwrap().state else { panic!("not suspended") };
    assert!(reason.contains("3 faults"), "{reason}");
    let error = map.function("lab", "c2f", 0).unwrap_err();
    assert_eq!(error.code(), Code::PluginUnavailable);
    assert!(error.message().contains("3 faults"), "{error}");
    assert_eq!(map.functions(0).count(), 0);
    works(&query, &version);
    bench.host.registry().resume("lab").unwrap();
    assert!(bench.host.registry().snapshot().function("lab", "c2f", 0).is_ok());
}

#[test]
fn three_hundred_queries_share_a_few_instances() {
    let bench = bench(|settings| settings.max_instances = 4);
    let version = bench.publish("lab", &lab());
    std::thread::scope(|scope| {
        for _ in 0..300 {
            scope.spawn(|| works(&bench.query(), &version));
        }
    });
    assert_eq!(bench.host.engine().instances(), 0);
    assert_eq!(version.stats().counts().calls, 1 + 2 * 300);
}

#[test]
fn a_query_that_holds_idle_instances_gives_them_up_for_another_plugin() {
    let bench = bench(|settings| {
        settings.max_instances = 1;
        settings.instance_wait_ms = 50;
    });
    let one = bench.publish("one", &lab());
    let two = bench.publish("two", &support::lab::lab_with_factor(1.80));
    let query = bench.query();
    works(&query, &one);
    works(&query, &two);
    let held = Accumulator::open(&query, &function(&one, "total"), 0).unwrap();
    let busy = bench.query().scalar(
        &function(&one, "c2f"),
        0,
        &[Argument::Column(Arc::new(Float64Array::from(vec![1.0])))],
        1,
    );
    assert_eq!(busy.unwrap_err().code(), Code::Busy);
    drop(held);
    works(&bench.query(), &one);
}
