//! The committed components of the sample guests: each comes from the sources beside it, is
//! packed and asks for nothing but the log; and cores are packed with and without a type
//! section.

#![allow(clippy::unwrap_used, reason = "a test says where it fails")]
#![allow(clippy::disallowed_methods, reason = "it reads the sources, not a store")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kymo_plugins::Digest;
use kymo_plugins::pack::{outline, pack};

/// The component of line 0.1: it was built when the line was published.
const GOLDEN: &str = "sha256:465771cdb657c4d1822fa9fb758fdfb3bba2d762f7a4f144789954363ae016a2";

fn plugins() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn hex(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string().trim_start_matches("sha256:").to_owned()
}

/// Guest → digest of its sources, digest of its component.
fn lock() -> BTreeMap<String, (String, String)> {
    let text = fs::read_to_string(plugins().join("guests/guests.lock")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [guest, sources, component] = words[..] else { panic!("{line}") };
            (guest.to_owned(), (sources.to_owned(), component.to_owned()))
        })
        .collect()
}

fn component(guest: &str) -> Vec<u8> {
    fs::read(plugins().join(format!("guests/{guest}/{guest}.wasm"))).unwrap()
}

/// The files below a folder that a guest is built from.
fn files(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_none_or(|ending| ending != "wasm") {
            found.push(path);
        }
    }
}

/// The same digest of digests as `plugins/build-guests` writes.
fn sources(guest: &str) -> String {
    let mut found = vec![plugins().join("sdk/Cargo.toml")];
    for folder in [&format!("guests/{guest}"), "sdk/kymo-udf", "sdk/kymo-udf-macros"] {
        files(&plugins().join(folder), &mut found);
    }
    let mut names: Vec<String> = found
        .iter()
        .map(|path| path.strip_prefix(plugins()).unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    let line =
        |name: &String| format!("{}  {name}\n", hex(&fs::read(plugins().join(name)).unwrap()));
    hex(names.iter().map(line).collect::<String>().as_bytes())
}

#[test]
fn every_component_comes_from_the_sources_beside_it() {
    let lock = lock();
    for (guest, (from, built)) in &lock {
        assert_eq!(&hex(&component(guest)), built, "{guest}.wasm is not what was locked");
        if from != "frozen" {
            assert_eq!(
                &sources(guest),
                from,
                "the sources of {guest} changed and its component did not: run \
                 plugins/build-guests"
            );
        }
    }
    for entry in fs::read_dir(plugins().join("guests")).unwrap() {
        let entry = entry.unwrap();
        let guest = entry.file_name().into_string().unwrap();
        let known = !entry.path().is_dir() || lock.contains_key(&guest);
        assert!(known, "{guest} has no component: run plugins/build-guests");
    }
}

#[test]
fn the_golden_component_never_changes() {
    assert_eq!(
        Digest::of(&component("golden-0.1.0")).to_string(),
        GOLDEN,
        "plugins like it are in the field: make a new one beside it"
    );
}

#[test]
fn guests_ask_for_the_log_and_nothing_else() {
    for guest in lock().keys() {
        let outline = outline(&component(guest)).unwrap();
        assert!(outline.component, "{guest}");
        for import in &outline.imports {
            let allowed = import.starts_with("kymo:udf/host@")
                || import.starts_with("kymo:udf/types@")
                || import.starts_with("kymo:udf-preview/batches@");
            assert!(allowed, "{guest} imports {import}");
        }
        assert!(
            outline.exports.iter().any(|name| name == "kymo:udf/catalog@0.1.0"),
            "{guest}: {:?}",
            outline.exports
        );
    }
}

#[test]
fn a_component_is_packed_already() {
    let component = component("c2f");
    assert_eq!(pack(&component).unwrap(), component);
}

/// The smallest core module of a plugin; it describes nothing and is never run.
const CORE: &str = r#"(module
    (memory (export "memory") 1)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
    (func (export "kymo:udf/catalog@0.1.0#describe") (result i32) unreachable)
    (func (export "kymo:udf/catalog@0.1.0#start")
        (param i64 i32 i32 i64 i32 i32) (result i32) unreachable)
    (func (export "kymo:udf/scalar@0.1.0#call")
        (param i32 i32 i32 i32 i32) (result i32) unreachable))"#;

#[test]
fn a_module_without_types_is_packed_by_its_exports() {
    let outline = outline(&pack(&wat::parse_str(CORE).unwrap()).unwrap()).unwrap();
    assert!(outline.component);
    assert_eq!(outline.exports, ["kymo:udf/catalog@0.1.0", "kymo:udf/scalar@0.1.0"]);
}

#[test]
fn what_cannot_be_packed_says_why() {
    let lacking = CORE.replace("#start", "#begin");
    let cases = [
        (b"no wasm".to_vec(), "not WebAssembly"),
        (wat::parse_str("(module)").unwrap(), "exports no interface"),
        (wat::parse_str(lacking).unwrap(), "start"),
    ];
    for (bytes, reason) in cases {
        let error = pack(&bytes).unwrap_err();
        assert_eq!(error.code(), kymo_kernel::Code::InvalidInput);
        assert!(error.message().contains(reason), "{error}");
    }
}
