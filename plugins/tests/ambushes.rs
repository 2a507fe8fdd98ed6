//! Plugins that do harm where nobody called them to compute: in the methods of an aggregate, in
//! what the canonical ABI calls by itself (allocator, end of a call, destructor), in tables, and
//! in descriptions of absurd size. Each has to end in the right error and in bounded time, and
//! neither the next call nor the memory of the query may suffer.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array};
use arrow::datatypes::Float64Type;
use kymo_kernel::env::{Clock, real::RealClock};
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::{Accumulator, Argument, Emit, LoadOptions, PluginVersion, QueryPlugins};
use support::lab::text;
use support::{Bench, Budget, FLOAT64, Told, bench, catalog, component, context, function};

const ENOUGH: usize = 1 << 30;
const ROWS: usize = 1000;
const FOR_EVER: &str = "(loop $for_ever (br $for_ever))";

fn short() -> Bench {
    bench(|settings| {
        settings.call_timeout_ms = 100;
        settings.max_faults = 10_000;
    })
}

fn floats(rows: usize) -> ArrayRef {
    Arc::new(Float64Array::from_iter_values((0..rows).map(|row| row as f64 / 2000.0)))
}

/// Runs an attack in a query of its own: it ends soon, the account is whole again and no
/// instance is left.
fn ambush<T>(bench: &Bench, name: &str, attack: impl FnOnce(&Arc<QueryPlugins>) -> T) -> T {
    let clock = RealClock::new();
    let budget = Budget::new(ENOUGH);
    let query = bench.host.query(context(budget.clone()));
    let begin = clock.monotonic();
    let outcome = attack(&query);
    drop(query);
    let took = clock.monotonic() - begin;
    assert!(took < Duration::from_secs(5), "{name} took {took:?}");
    assert_eq!(budget.left(), ENOUGH, "{name} kept memory");
    assert_eq!(bench.host.engine().instances(), 0, "{name} left an instance");
    outcome
}

fn c2f(query: &QueryPlugins, version: &Arc<PluginVersion>, rows: usize) -> Result<ArrayRef> {
    query.scalar(&function(version, "c2f"), 0, &[Argument::Column(floats(rows))], rows)
}

/// The laboratory with a body put in front of what one of its exports does.
fn lab_with(export: &str, body: &str) -> Vec<u8> {
    let text = text(1.8);
    let start = text.find(&format!("(export \"{export}\")")).unwrap();
    let head = ["(result i32)", "(result i64)"]
        .iter()
        .filter_map(|result| text[start..].find(result).map(|at| start + at + result.len()));
    let at = head.min().unwrap();
    component("plugin", &format!("{}{body}{}", &text[..at], &text[at..]))
}

/// The laboratory whose allocator runs a body for anything large.
fn lab_with_allocator(body: &str) -> Vec<u8> {
    let locals = "(local $at i32) (local $end i32)";
    let hook = format!("{locals} (if (i32.ge_u (local.get $size) (i32.const 4096)) (then {body}))");
    let changed = text(1.8).replacen(locals, &hook, 1);
    assert!(changed.contains(&hook));
    component("plugin", &changed)
}

/// The laboratory with one more export or field.
fn lab_and(addition: &str) -> Vec<u8> {
    let text = text(1.8);
    let end = text.rfind(')').unwrap();
    component("plugin", &format!("{}{addition})", &text[..end]))
}

type Step = fn(&mut Accumulator) -> Result<()>;

/// What is done with an accumulator until its attack.
const STEPS: [(&str, Step); 5] = [
    ("update", |it| it.update(&[floats(ROWS)], Some(&vec![0; ROWS]), 1, None)),
    ("merge", |it| it.merge(&[floats(1)], Some(&[0]), 1)),
    ("retract", |it| it.retract(&[floats(ROWS)], Some(&vec![0; ROWS]), None)),
    ("state", |it| it.state(Emit::All).map(drop)),
    ("evaluate", |it| it.evaluate(Emit::All).map(drop)),
];

fn aggregate(query: &Arc<QueryPlugins>, version: &Arc<PluginVersion>, step: Step) -> Result<()> {
    let mut accumulator = Accumulator::open(query, &function(version, "total"), 0)?;
    step(&mut accumulator)
}

#[test]
fn every_method_of_an_aggregate_is_stopped_and_ends_that_aggregate_alone() {
    let bench = short();
    for (method, step) in STEPS {
        let export = format!("kymo:udf/aggregate@0.1.0#[method]accumulator.{method}");
        for (body, code, part) in [
            (FOR_EVER, Code::Deadline, "longer than 100 ms"),
            ("(unreachable)", Code::PluginFailed, "it trapped"),
        ] {
            let version = bench.publish("lab", &lab_with(&export, body));
            ambush(&bench, method, |query| {
                let error = aggregate(query, &version, step).unwrap_err();
                assert_eq!(error.code(), code, "{method}: {error}");
                assert!(error.message().contains(&format!("total.{method}: ")), "{error}");
                assert!(error.message().contains(part), "{error}");
                assert_eq!(c2f(query, &version, 1).unwrap().len(), 1, "after {method}");
            });
        }
    }
}

#[test]
fn opening_and_measuring_an_aggregate_is_stopped() {
    let bench = short();
    let opening = "kymo:udf/aggregate@0.1.0#[static]accumulator.open";
    let version = bench.publish("lab", &lab_with(opening, FOR_EVER));
    ambush(&bench, "open", |query| {
        let error = aggregate(query, &version, |_| Ok(())).unwrap_err();
        assert_eq!(error.code(), Code::Deadline, "{error}");
        assert!(error.message().contains("total.open"), "{error}");
    });
    let measuring = "kymo:udf/aggregate@0.1.0#[method]accumulator.size";
    let version = bench.publish("lab", &lab_with(measuring, FOR_EVER));
    ambush(&bench, "size", |query| {
        let error = aggregate(query, &version, |it| it.size().map(drop)).unwrap_err();
        assert_eq!(error.code(), Code::Deadline, "{error}");
    });
}

#[test]
fn a_destructor_keeps_nobody() {
    let bench = short();
    let destructor = "kymo:udf/aggregate@0.1.0#[dtor]accumulator";
    let looping = format!("(func (export \"{destructor}\") (param i32) {FOR_EVER})");
    let version = bench.publish("lab", &lab_and(&looping));
    ambush(&bench, "destructor", |query| {
        aggregate(query, &version, STEPS[0].1).unwrap();
        assert_eq!(c2f(query, &version, 1).unwrap().len(), 1);
    });
}

#[test]
fn an_allocator_that_misbehaves_fails_its_call_only() {
    let bench = short();
    let attacks = [
        ("traps", "(unreachable)", Some(Code::PluginFailed)),
        ("loops", FOR_EVER, Some(Code::Deadline)),
        ("answers out of bounds", "(return (i32.const -4096))", Some(Code::PluginFailed)),
        ("answers past the end", "(return (i32.const 4194000))", Some(Code::PluginFailed)),
        ("answers unaligned", "(return (i32.const 65537))", Some(Code::PluginFailed)),
        // Valid addresses over its own data: nobody's business but the plugin's.
        ("answers what is in use", "(return (i32.const 1024))", None),
        (
            "hoards and traps",
            "(loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) \
             (unreachable)",
            Some(Code::OutOfMemory),
        ),
    ];
    for (name, body, code) in attacks {
        let version = bench.publish("lab", &lab_with_allocator(body));
        ambush(&bench, name, |query| {
            let outcome = c2f(query, &version, ROWS);
            match code {
                Some(code) => assert_eq!(outcome.unwrap_err().code(), code, "{name}"),
                None => assert_eq!(outcome.map_or(ROWS, |array| array.len()), ROWS, "{name}"),
            }
            let found = c2f(query, &version, 1).unwrap();
            assert_eq!(found.as_primitive::<Float64Type>().value(0), 32.0, "after {name}");
        });
    }
}

#[test]
fn an_end_of_a_call_that_misbehaves_fails_the_call() {
    let bench = short();
    let good = "(func (export \"cabi_post_kymo:udf/scalar@0.1.0#call\") (param i32) (call $free))";
    for (body, code) in [("(unreachable)", Code::PluginFailed), (FOR_EVER, Code::Deadline)] {
        let bad = good.replace("(call $free)", body);
        let changed = text(1.8).replace(good, &bad);
        assert!(changed.contains(&bad));
        let version = bench.publish("lab", &component("plugin", &changed));
        let error = ambush(&bench, body, |query| c2f(query, &version, 1)).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
}

#[test]
fn tables_are_bounded() {
    let bench = short();
    // Grown during a call: refused, and the plugin goes on with what it has.
    let grown = "(local $more i32) (block $full (loop $again (br_if $full (i32.eq (i32.const -1) \
        (table.grow $bomb (ref.null func) (i32.const 1000)))) (br $again)))";
    let export = "kymo:udf/scalar@0.1.0#call";
    let table = "(table $bomb 1 funcref)";
    let text = String::from_utf8(lab_text_with(export, grown)).unwrap();
    let text = text.replacen("(memory (export", &format!("{table}\n(memory (export"), 1);
    let version = bench.publish("lab", &component("plugin", &text));
    let found = ambush(&bench, "grow", |query| c2f(query, &version, 1)).unwrap();
    assert_eq!(found.len(), 1);
    // Asked for at once: it never starts.
    let huge = lab_and("(table 30000000 funcref)");
    let error = bench.host.load("lab", &huge, &LoadOptions::default()).unwrap_err();
    assert!(error.message().contains("table"), "{error:?}");
    assert_eq!(bench.host.engine().instances(), 0);
}

fn lab_text_with(export: &str, body: &str) -> Vec<u8> {
    let text = text(1.8);
    let start = text.find(&format!("(export \"{export}\")")).unwrap();
    // Behind the locals that the function has.
    let locals = "(local $first i32)";
    let at = start + text[start..].find(locals).unwrap() + locals.len();
    format!("{}{body}{}", &text[..at], &text[at..]).into_bytes()
}

/// A description that tells of this many functions (and has one), or of names of this length.
fn refused_description(body: &str) -> Error {
    let bench = bench(|_| ());
    let functions = [Told::scalar("f", &[FLOAT64], FLOAT64)];
    let call = r#"(func (export "kymo:udf/scalar@0.1.0#call")
        (param i32 i32 i32 i32 i32) (result i32) unreachable)"#;
    let module = format!("(module {} {call})", catalog(&functions, body, ""));
    let wasm = component("scalar-plugin", &module);
    let clock = RealClock::new();
    let begin = clock.monotonic();
    let error = bench.host.load("p", &wasm, &LoadOptions::default()).unwrap_err();
    assert!(clock.monotonic() - begin < Duration::from_secs(10));
    assert_eq!(bench.host.engine().instances(), 0);
    assert!(error.message().len() < 6000, "{} bytes of message", error.message().len());
    error
}

#[test]
fn descriptions_of_absurd_size_are_cut_off() {
    // The record of the description begins at 1024: name, version, text, functions.
    let room = "(drop (memory.grow (i32.const 400)))";
    let count =
        |functions: u32| format!("{room}(i32.store (i32.const 1052) (i32.const {functions}))");
    for functions in [100_000, i32::MAX as u32] {
        let error = refused_description(&count(functions));
        assert!([Code::PluginFailed, Code::InvalidInput].contains(&error.code()), "{error}");
    }
    let named = |bytes: u32| {
        format!(
            "{room}(i32.store (i32.const 1024) (i32.const 2097152)) \
             (i32.store (i32.const 1028) (i32.const {bytes}))"
        )
    };
    for bytes in [1 << 20, 24 << 20, i32::MAX as u32] {
        let error = refused_description(&named(bytes));
        assert!([Code::PluginFailed, Code::InvalidInput].contains(&error.code()), "{error}");
    }
}

#[test]
fn a_type_that_doubles_forty_times_is_refused_before_it_is_built() {
    // A type section of a component (section 7): tuples (0x6f) of two u8 (0x7d), then each of
    // two of the one before.
    let types = (0..40u8).flat_map(|level| match level {
        0 => [0x6f, 2, 0x7d, 0x7d],
        _ => [0x6f, 2, level - 1, level - 1],
    });
    let section: Vec<u8> = std::iter::once(40).chain(types).collect();
    let length = [section.len() as u8 | 0x80, (section.len() >> 7) as u8];
    let wasm = [b"\0asm\x0d\0\x01\0\x07", &length[..], &section].concat();
    let error = bench(|_| ()).host.load("p", &wasm, &LoadOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::InvalidInput, "{error}");
    assert!(error.message().contains("size"), "{error}");
}
