//! The borders between the rooms, read from the manifests and the sources: who imports
//! whom, which crates stay in which files, and that every file says what it is for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::Table;

/// What each room may import of ours; and what it must never import.
const ROOMS: [(&str, &[&str], &[&str]); 7] = [
    ("config", &[], &["tokio", "arrow", "datafusion", "axum", "pgwire", "wasmtime", "actix"]),
    (
        "kernel",
        &["kymo-config"],
        &["datafusion", "datafusion-pg-catalog", "axum", "pgwire", "wasmtime"],
    ),
    (
        "plugins",
        &["kymo-kernel", "kymo-config"],
        &["datafusion", "datafusion-pg-catalog", "axum", "pgwire"],
    ),
    (
        "actors",
        &["kymo-kernel", "kymo-plugins", "kymo-config"],
        &["wasmtime", "axum", "pgwire", "actix", "actix-rt"],
    ),
    (
        "gateway",
        &["kymo-actors", "kymo-plugins", "kymo-kernel", "kymo-config"],
        &["datafusion", "datafusion-pg-catalog", "actix", "actix-rt", "wasmtime"],
    ),
    (
        "tests",
        &["kymo", "kymo-actors", "kymo-kernel", "kymo-config", "kymo-plugins", "kymo-benches"],
        &[],
    ),
    ("benches", &["kymo", "kymo-actors", "kymo-kernel", "kymo-config", "kymo-plugins"], &[]),
];

/// Crates that may be named in these files only (paths begin with them).
const PLACES: [(&str, &[&str]); 4] = [
    ("actix::", &["kernel/src/host", "kernel/src/pools"]),
    ("actix_rt::", &["kernel/src/host", "kernel/src/pools"]),
    ("datafusion::", &["actors/src/query"]),
    ("datafusion_pg_catalog::", &["actors/src/query"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifest(path: &Path) -> Table {
    let text = std::fs::read_to_string(path).unwrap();
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names in all tables of dependencies, those for one platform included.
fn dependencies(manifest: &Table, with_dev: bool) -> BTreeSet<String> {
    let mut kinds = vec!["dependencies", "build-dependencies"];
    if with_dev {
        kinds.push("dev-dependencies");
    }
    let mut tables = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        tables.extend(targets.values().filter_map(toml::Value::as_table));
    }
    let mut names = BTreeSet::new();
    for table in tables {
        for kind in &kinds {
            if let Some(entries) = table.get(*kind).and_then(toml::Value::as_table) {
                names.extend(entries.keys().cloned());
            }
        }
    }
    names
}

/// Every Rust source of ours, with its path from the root.
fn sources() -> BTreeMap<String, String> {
    let root = root();
    let mut files = BTreeMap::new();
    let mut folders: Vec<PathBuf> = ROOMS.iter().map(|(room, _, _)| root.join(room)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("target") && !path.ends_with("node_modules") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                files.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert!(files.len() > 30, "only {} sources were found", files.len());
    files
}

/// The lines that are code: no comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
}

#[test]
fn rooms_import_downwards_only() {
    let root = root();
    let ours: BTreeSet<String> = ROOMS
        .iter()
        .map(|(room, _, _)| {
            let manifest = manifest(&root.join(room).join("Cargo.toml"));
            manifest["package"]["name"].as_str().unwrap().to_owned()
        })
        .collect();
    let mut wrong = Vec::new();
    for (room, may, never) in ROOMS {
        let manifest = manifest(&root.join(room).join("Cargo.toml"));
        for name in dependencies(&manifest, true) {
            if ours.contains(&name) && !may.contains(&name.as_str()) {
                wrong.push(format!("{room} imports {name}"));
            }
        }
        for name in dependencies(&manifest, false) {
            if never.contains(&name.as_str()) {
                wrong.push(format!("{room} imports {name}, which it must not know"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_room_is_looked_at() {
    let workspace = manifest(&root().join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let members: BTreeSet<&str> = members.iter().filter_map(toml::Value::as_str).collect();
    let known: BTreeSet<&str> = ROOMS.iter().map(|(room, _, _)| *room).collect();
    assert_eq!(members, known);
}

#[test]
fn some_crates_stay_in_their_files() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        if name.starts_with("tests/") || name.starts_with("benches/") {
            continue;
        }
        for (crate_path, places) in PLACES {
            if places.iter().any(|place| name.starts_with(place)) {
                continue;
            }
            for (number, line) in code(&text) {
                if names_crate(line, crate_path) {
                    wrong.push(format!("{name}:{number} names {crate_path}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether a line names the crate itself, not a longer name that ends alike.
fn names_crate(line: &str, crate_path: &str) -> bool {
    line.match_indices(crate_path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn the_embedded_database_comes_without_servers() {
    let tree = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--locked", "-p", "kymo", "--no-default-features"])
            .args(["-e", "normal", "--prefix", "none", "--format", "{p}"])
            // The client of buckets brings one for HTTP and TLS along, which listens nowhere.
            .args(["--prune", "object_store"])
            .args(arguments)
            .current_dir(root())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
        text.lines().filter_map(name).collect::<BTreeSet<String>>()
    };
    let all = tree(&[]);
    assert!(all.contains("kymo") && all.contains("datafusion"), "{all:?}");
    for server in ["axum", "hyper", "clap", "rustls", "reqwest", "ureq", "reedline", "sysinfo"] {
        assert!(!all.contains(server), "{server} is part of the embedded database");
    }
    // The tables of the PostgreSQL catalog bring an older one along, for its types.
    assert!(!tree(&["--depth", "1"]).contains("pgwire"), "the embedded database speaks pgwire");
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(name, _)| name)
        .collect();
    assert!(silent.is_empty(), "no opening //! paragraph: {silent:#?}");
}

#[test]
fn the_visible_top_level_is_the_design() {
    const DESIGN: [&str; 13] = [
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "actors",
        "benches",
        "config",
        "docs",
        "gateway",
        "kernel",
        "plugins",
        "tests",
        "wit",
    ];
    let output = std::process::Command::new("git")
        .args(["ls-files", "--full-name", ":/"])
        .current_dir(root())
        .output();
    // A source tree without its history has nothing to say here.
    let Some(output) = output.ok().filter(|output| output.status.success()) else { return };
    let files = String::from_utf8(output.stdout).unwrap();
    let visible: BTreeSet<&str> = files
        .lines()
        .filter_map(|path| path.split('/').next())
        .filter(|name| !name.starts_with('.'))
        .collect();
    let unexpected: Vec<&&str> = visible.iter().filter(|name| !DESIGN.contains(name)).collect();
    assert!(unexpected.is_empty(), "not part of the design: {unexpected:?}");
}

#[test]
fn names_of_crates_are_told_apart() {
    assert!(names_crate("use actix::Actor;", "actix::"));
    assert!(!names_crate("use kymo_actix::Actor;", "actix::"));
    assert!(!names_crate("crate::datafusion::x", "datafusion::"));
}
