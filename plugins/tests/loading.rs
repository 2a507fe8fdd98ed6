//! From bytes to a version in use: the compiler's bounds, the cache that trusts nobody, and
//! versions that change under load.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests touch real files")]

mod support;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array};
use arrow::datatypes::Float64Type;
use kymo_kernel::Code;
use kymo_kernel::env::{Clock, real::RealClock};
use kymo_plugins::{
    Argument, Event, LoadOptions, OwnLimits, PluginVersion, QueryPlugins, State, untried,
};
use parking_lot::Mutex;
use support::lab::{evil, lab, lab_with_factor};
use support::{Bench, around, bench, function, start};

fn c2f(query: &QueryPlugins, version: &Arc<PluginVersion>) -> f64 {
    let one: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
    let found = query.scalar(&function(version, "c2f"), 0, &[Argument::Column(one)], 1).unwrap();
    found.as_primitive::<Float64Type>().value(0)
}

fn trap(query: &QueryPlugins, version: &Arc<PluginVersion>) {
    let mode: ArrayRef = Arc::new(Int64Array::from(vec![evil("trap")]));
    let call = query.scalar(&function(version, "evil"), 0, &[Argument::Column(mode)], 1);
    assert_eq!(call.unwrap_err().code(), Code::PluginFailed);
}

fn cached(bench: &Bench) -> Vec<PathBuf> {
    let files = std::fs::read_dir(bench.folder.path()).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "cwasm")).collect()
}

#[test]
fn compiled_code_is_found_again_by_the_next_start() {
    let bench = bench(|_| ());
    let first = bench.publish("lab", &lab());
    assert!(first.compile_time().is_some());
    assert_eq!(cached(&bench).len(), 1);
    let again = start(&bench.settings, bench.folder.path());
    let version = again.load("lab", &lab(), &LoadOptions::default()).unwrap();
    assert_eq!(version.compile_time(), None, "from the cache");
    assert_eq!(version.plugin(), first.plugin());
    assert_eq!(version.description(), first.description());
    let query = again.query(support::context(support::Budget::new(usize::MAX)));
    assert_eq!(c2f(&query, &version), 33.8);
}

#[test]
fn tampered_code_is_compiled_again_and_never_run() {
    let bench = bench(|_| ());
    bench.publish("lab", &lab());
    let path = cached(&bench).remove(0);
    let good = std::fs::read(&path).unwrap();
    let mut flipped = good.clone();
    for at in 0..64 {
        let at = good.len() / 2 + at;
        flipped[at] ^= 0x55;
    }
    for bad in [flipped, good[..good.len() - 100].to_vec(), Vec::new(), vec![0; 4096]] {
        std::fs::write(&path, bad).unwrap();
        let version = bench.host.load("lab", &lab(), &LoadOptions::default()).unwrap();
        assert!(version.compile_time().is_some(), "it was compiled again");
        assert_eq!(c2f(&bench.query(), &version), 33.8);
        assert_eq!(std::fs::read(&path).unwrap().len(), good.len(), "and cached again");
    }
}

#[test]
fn what_is_too_large_is_refused_before_it_is_compiled() {
    let small = bench(|settings| settings.max_component_bytes = 1000);
    let error = small.host.load("lab", &lab(), &LoadOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::TooLarge);
    assert!(error.message().contains("1000 are the most"), "{error}");
    let few = bench(|settings| settings.max_code_functions = 5);
    let error = few.host.load("lab", &lab(), &LoadOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::TooLarge);
    assert!(error.message().contains("WebAssembly functions, 5 are the most"), "{error}");
    let short = bench(|settings| settings.max_code_body_bytes = 100);
    let error = short.host.load("lab", &lab(), &LoadOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::TooLarge);
    assert!(error.message().contains("100 are the most"), "{error}");
}

#[test]
fn components_with_several_memories_inside_are_compiled() {
    let bench = bench(|_| ());
    let wasm = include_bytes!("fixtures/talking.wasm");
    // As far as the interface, which it does not have.
    let error = bench.host.load("p", wasm, &LoadOptions::default()).unwrap_err();
    assert!(error.message().contains("kymo:udf/catalog"), "{error}");
    assert_eq!(cached(&bench).len(), 1, "it was compiled");
}

#[test]
fn what_has_to_be_raised_is_said_all_at_once() {
    let settings = |settings: &mut kymo_config::settings::Plugins| {
        settings.max_code_functions = 5;
        settings.max_code_body_bytes = 100;
    };
    let tight = bench(settings);
    let error = tight.host.load("lab", &lab(), &LoadOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::TooLarge);
    let hint = error.hint().unwrap();
    let all = "plugins.max_code_functions = 1000 and plugins.max_code_body_bytes = 65536";
    assert!(hint.contains(all), "{hint}");
    let raised = bench(|changed| {
        settings(changed);
        changed.max_code_functions = 1000;
        changed.max_code_body_bytes = 65_536;
    });
    assert_eq!(c2f(&raised.query(), &raised.publish("lab", &lab())), 33.8);
}

/// A component around one module with such functions: valid, small, and a day's work.
fn bomb(functions: usize, locals: usize, body: &str) -> Vec<u8> {
    let mut text = String::from("(module (memory 1)\n");
    for _ in 0..functions {
        write!(text, "(func (param i32) (result i32) (local").unwrap();
        for _ in 0..locals {
            text.push_str(" i64");
        }
        writeln!(text, ") {body} (local.get 0))").unwrap();
    }
    around(&wat::parse_str(text + ")").unwrap())
}

/// So many branches after one another, each over many values that live across all of them.
fn diamonds(count: usize, locals: usize) -> String {
    (0..count)
        .map(|number| {
            let (a, b) = (1 + number % locals, 1 + (number * 7 + 3) % locals);
            format!(
                "(if (local.get 0) (then (local.set {a} (i64.add (local.get {b}) \
                 (i64.const {number})))) (else (local.set {b} (local.get {a}))))\n"
            )
        })
        .collect()
}

fn nested_loops(depth: usize, locals: usize) -> String {
    let open: String = (0..depth)
        .map(|number| {
            let (a, b) = (1 + number % locals, 1 + (number + 1) % locals);
            format!("(loop $l{number} (local.set {a} (i64.add (local.get {b}) (i64.const 1)))")
        })
        .collect();
    let close: String =
        (0..depth).rev().map(|number| format!("(br_if $l{number} (local.get 0)))")).collect();
    open + &close
}

#[test]
fn compile_bombs_end_within_the_bounds_of_their_process() {
    // Bounds a tenth of the defaults, and the code limits out of the way.
    let bench = bench(|settings| {
        settings.compile_timeout_ms = 3000;
        settings.compile_memory_bytes = 200 << 20;
        settings.max_component_bytes = 64 << 20;
        settings.max_code_functions = 1_000_000;
        settings.max_code_body_bytes = 64 << 20;
    });
    let clock = RealClock::new();
    let bombs = [
        ("diamonds", bomb(1, 500, &diamonds(40_000, 500))),
        ("functions", bomb(200_000, 2, "")),
        ("loops", bomb(40, 300, &nested_loops(1000, 300))),
    ];
    for (name, wasm) in bombs {
        let begin = clock.monotonic();
        let error = bench.host.load("bomb", &wasm, &LoadOptions::default()).unwrap_err();
        let took = clock.monotonic() - begin;
        assert_eq!(error.code(), Code::TooLarge, "{name}: {error}");
        assert!(error.message().contains("compiling"), "{name}: {error}");
        // On a machine that has other things to do, too; unbounded they take far longer.
        assert!(took < Duration::from_secs(60), "{name} took {took:?}");
    }
    assert!(cached(&bench).is_empty());
    // With the defaults they do not get as far as the compiler.
    let defaults = support::bench(|_| ());
    let error =
        defaults.host.load("bomb", &bomb(1, 500, &diamonds(40_000, 500)), &LoadOptions::default());
    assert_eq!(error.unwrap_err().code(), Code::TooLarge);
    let error = defaults.host.load("bomb", &bomb(30_000, 2, ""), &LoadOptions::default());
    assert_eq!(error.unwrap_err().code(), Code::TooLarge);
    bench.publish("lab", &lab());
}

#[test]
fn a_compiler_that_is_not_there_or_talks_nonsense_is_an_error() {
    use kymo_plugins::{Compiler, PluginHost};
    let settings = kymo_config::settings::Plugins::default();
    for program in ["/nonexistent", "/bin/false", "/bin/true", "/bin/cat"] {
        let folder = tempfile::tempdir().unwrap();
        let env = kymo_kernel::env::real::env();
        let compiler = Compiler::new(program, &settings);
        let host = PluginHost::start(&settings, folder.path(), env, compiler).unwrap();
        let error = host.load("lab", &lab(), &LoadOptions::default()).unwrap_err();
        let expected = [Code::Io, Code::Internal, Code::Corrupt];
        assert!(expected.contains(&error.code()), "{program}: {error:?}");
    }
}

#[test]
fn a_plugin_has_its_own_limits_and_settings_up_to_the_servers() {
    let bench = bench(|_| ());
    let limits = OwnLimits { memory_bytes: Some(8 << 20), ..OwnLimits::default() };
    let settings = vec![("unit".to_owned(), "kelvin".to_owned())];
    let options = LoadOptions { limits, settings: settings.clone() };
    let version = bench.host.load("lab", &lab(), &options).unwrap();
    assert_eq!((version.limits().memory_bytes, version.settings()), (8 << 20, &settings[..]));
    let mode: ArrayRef = Arc::new(Int64Array::from(vec![evil("hoard")]));
    let call = function(&version, "evil");
    bench.query().scalar(&call, 0, &[Argument::Column(mode)], 1).unwrap();
    assert!(version.stats().counts().memory_high_water <= 8 << 20);
}

#[test]
fn switched_off_means_switched_off() {
    let off = bench(|settings| settings.enabled = false);
    let error = off.host.load("lab", &lab(), &LoadOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::Unsupported);
}

#[test]
fn versions_follow_each_other_and_can_be_rolled_back() {
    let bench = bench(|settings| settings.max_versions = 3);
    let registry = bench.host.registry();
    let names = |bench: &Bench| {
        let map = bench.host.registry().snapshot();
        let entry = map.get("lab").unwrap();
        let previous = entry.previous.iter().map(|version| version.plugin().digest);
        (entry.active.as_ref().unwrap().plugin().digest, previous.collect::<Vec<_>>())
    };
    let versions: Vec<_> =
        [1.0, 2.0, 3.0, 4.0].map(|factor| bench.publish("lab", &lab_with_factor(factor))).into();
    let digests: Vec<_> = versions.iter().map(|version| version.plugin().digest).collect();
    assert_eq!(names(&bench), (digests[3], vec![digests[2], digests[1]]));
    registry.roll_back("lab").unwrap();
    assert_eq!(names(&bench), (digests[2], vec![digests[1]]));
    registry.publish(versions[2].clone()).unwrap();
    assert_eq!(names(&bench), (digests[2], vec![digests[1]]), "the same again is no new one");
    registry.roll_back("lab").unwrap();
    assert_eq!(registry.roll_back("lab").unwrap_err().code(), Code::PluginNotFound);
    registry.remove("lab").unwrap();
    assert_eq!(registry.snapshot().get("lab").unwrap_err().code(), Code::PluginNotFound);
    assert_eq!(c2f(&bench.query(), &versions[0]), 33.0, "a pinned version still runs");
    drop(versions);
    assert!(registry.loaded().is_empty());
}

#[test]
fn a_plugin_that_is_off_or_broken_says_why() {
    let bench = bench(|settings| settings.max_plugins = 2);
    let registry = bench.host.registry();
    bench.publish("lab", &lab());
    let why = |name: &str| {
        let map = registry.snapshot();
        let error = map.function(name, "c2f", 0).unwrap_err();
        assert_eq!(error.code(), Code::PluginUnavailable);
        error.message().to_owned()
    };
    registry.disable("lab", "maintenance").unwrap();
    assert_eq!(why("lab"), "plugin lab is disabled: maintenance");
    registry.resume("lab").unwrap();
    registry.suspend("lab", "looks odd").unwrap();
    assert_eq!(why("lab"), "plugin lab is suspended: looks odd");
    registry.fail("old", "its line is gone").unwrap();
    assert_eq!(why("old"), "plugin old is failed: its line is gone");
    assert_eq!(registry.resume("old").unwrap_err().code(), Code::PluginUnavailable);
    assert_eq!(registry.fail("third", "x").unwrap_err().code(), Code::TooLarge);
    let missing = registry.snapshot().function("none", "c2f", 0).unwrap_err();
    assert_eq!(missing.code(), Code::PluginNotFound);
    let missing = bench.publish("lab", &lab());
    assert_eq!(registry.snapshot().get("lab").unwrap().state, State::Active);
    let map = registry.snapshot();
    assert_eq!(map.function("lab", "none", 0).unwrap_err().code(), Code::FunctionNotFound);
    drop(missing);
}

fn events(bench: &Bench) -> Arc<Mutex<Vec<Event>>> {
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = events.clone();
    bench.host.registry().on_event(move |event| heard.lock().push(event.clone()));
    events
}

#[test]
fn a_canary_gets_its_share_and_is_withdrawn_when_it_fails() {
    let bench = bench(|settings| settings.max_faults = 2);
    let events = events(&bench);
    let registry = bench.host.registry();
    let old = bench.publish("lab", &lab());
    let new = bench.host.load("lab", &lab_with_factor(2.0), &LoadOptions::default()).unwrap();
    assert_eq!(registry.try_out(new.clone(), 101).unwrap_err().code(), Code::InvalidInput);
    registry.try_out(new.clone(), 25).unwrap();
    let map = registry.snapshot();
    let entry = map.get("lab").unwrap();
    let share =
        (0..1000).filter(|seed| entry.version(*seed).unwrap().plugin() == new.plugin()).count();
    assert_eq!(share, 250);
    for seed in (0..300).chain([u64::MAX]) {
        assert_eq!(entry.version(untried(seed)).unwrap().plugin(), old.plugin(), "{seed}");
    }
    let query = bench.query();
    trap(&query, &new);
    assert!(events.lock().is_empty());
    trap(&query, &new);
    let withdrawn = Event::CanaryWithdrawn {
        plugin: new.plugin().clone(),
        reason: "2 faults within 60 s, the last one: trap".to_owned(),
    };
    assert_eq!(*events.lock(), [withdrawn]);
    let map = registry.snapshot();
    let entry = map.get("lab").unwrap();
    assert!(entry.canary.is_none());
    assert_eq!(
        (entry.state.clone(), entry.version(0).unwrap().plugin()),
        (State::Active, old.plugin())
    );
}

#[test]
fn a_failing_version_gives_way_to_the_one_before_where_that_is_wanted() {
    let bench = bench(|settings| {
        settings.max_faults = 2;
        settings.on_fault = "rollback".to_owned();
    });
    let events = events(&bench);
    let old = bench.publish("lab", &lab());
    let new = bench.publish("lab", &lab_with_factor(2.0));
    let query = bench.query();
    for _ in 0..5 {
        trap(&query, &new);
    }
    assert_eq!(events.lock().len(), 1, "one that is out of use is not put aside again");
    assert!(matches!(&events.lock()[0], Event::RolledBack { plugin, to, .. }
        if plugin == new.plugin() && to == old.plugin()));
    let map = bench.host.registry().snapshot();
    assert_eq!(map.get("lab").unwrap().version(0).unwrap().plugin(), old.plugin());
    for _ in 0..2 {
        trap(&query, &old);
    }
    assert!(matches!(&events.lock()[1], Event::Suspended { plugin, .. } if plugin == old.plugin()));
}

#[test]
fn a_thousand_swaps_under_load_fail_no_query_and_mix_no_versions() {
    const SWAPS: usize = 1000;
    // The process's memory is measured, so no other test may be in it.
    if std::env::var_os("KYMO_TEST_ALONE").is_none() {
        let name = "a_thousand_swaps_under_load_fail_no_query_and_mix_no_versions";
        let alone = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env("KYMO_TEST_ALONE", "1")
            .output()
            .unwrap();
        assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stdout));
        return;
    }
    let bench = bench(|_| ());
    let components = [lab_with_factor(1.0), lab_with_factor(2.0)];
    bench.publish("lab", &components[0]);
    bench.host.load("lab", &components[1], &LoadOptions::default()).unwrap();
    let ended = AtomicBool::new(false);
    let queries = AtomicUsize::new(0);
    let registry = bench.host.registry();
    let values: ArrayRef = Arc::new(Float64Array::from_iter_values((0..1000).map(f64::from)));
    let work = || {
        while !ended.load(Ordering::Relaxed) {
            let query = bench.query();
            let call = registry.snapshot().function("lab", "c2f", 0).unwrap();
            let mut factors = Vec::new();
            for _ in 0..3 {
                let argument = Argument::Column(values.clone());
                let found = query.scalar(&call, 0, &[argument], 1000).unwrap();
                let found = found.as_primitive::<Float64Type>().value(999);
                factors.push((found - 32.0) / 999.0);
            }
            assert!(factors == [1.0; 3] || factors == [2.0; 3], "{factors:?}");
            queries.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
        // Warm, so that what allocators keep is kept before it is measured.
        let swap = |number: usize| {
            bench.publish("lab", &components[number % 2]);
        };
        (0..100).for_each(swap);
        let before = resident();
        (0..SWAPS).for_each(swap);
        while queries.load(Ordering::Relaxed) < 100 {
            std::thread::yield_now();
        }
        let after = resident();
        ended.store(true, Ordering::Relaxed);
        assert!(after < before + before / 10 + (16 << 20), "{before} bytes grew to {after}");
    });
    assert_eq!(bench.host.engine().instances(), 0);
    assert!(registry.loaded().len() <= 4, "{} versions live", registry.loaded().len());
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
