//! The published interface: frozen files stay as they were published, and the line under
//! work still says what was published.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test reads its files")]

use std::path::{Path, PathBuf};

use kymo_plugins::Digest;
use wit_parser::Resolve;

/// Every frozen file and its digest on the day of its publication.
const FROZEN: [(&str, &str); 1] = [(
    "since-0.1/udf.wit",
    "sha256:f5e4283636a322764007500e42409ceaf9a47c3f26890b7e7f6d821c4c1ee82a",
)];

fn wit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit")
}

#[test]
fn frozen_files_never_change() {
    for (name, digest) in FROZEN {
        let bytes = std::fs::read(wit().join(name)).unwrap();
        assert_eq!(
            Digest::of(&bytes).to_string(),
            digest,
            "{name} is published: plugins in the field were built with it. Make a new line."
        );
    }
}

#[test]
fn every_frozen_folder_is_watched() {
    for entry in std::fs::read_dir(wit()).unwrap() {
        let folder = entry.unwrap();
        let name = folder.file_name().into_string().unwrap();
        if !name.starts_with("since-") {
            continue;
        }
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let file = format!("{name}/{}", file.unwrap().file_name().into_string().unwrap());
            assert!(FROZEN.iter().any(|(known, _)| *known == file), "{file} has no digest here");
        }
    }
}

/// Interfaces with their functions and types, without documentation.
fn items(folder: &str) -> Vec<String> {
    let mut resolve = Resolve::default();
    resolve.push_dir(wit().join(folder)).unwrap();
    let mut items = Vec::new();
    for (_, interface) in resolve.interfaces.iter() {
        let name = interface.name.clone().unwrap_or_default();
        for (function, shape) in &interface.functions {
            let parameters: Vec<_> = shape.params.iter().map(|each| each.name.clone()).collect();
            items.push(format!("{name}.{function}({})", parameters.join(", ")));
        }
        for (each, id) in &interface.types {
            items.push(format!("{name}.{each}: {}", resolve.types[*id].kind.as_str()));
        }
    }
    items
}

#[test]
fn the_line_under_work_keeps_what_was_published() {
    let now = items("kymo-udf");
    let missing: Vec<_> = items("since-0.1").into_iter().filter(|it| !now.contains(it)).collect();
    assert!(missing.is_empty(), "published and gone: {missing:#?}");
}

#[test]
fn the_preview_parses_beside_the_line_that_it_uses() {
    let mut resolve = Resolve::default();
    resolve.push_dir(wit().join("since-0.1")).unwrap();
    resolve.push_dir(wit().join("kymo-udf-preview")).unwrap();
}
