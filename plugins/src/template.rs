//! The projects that `kymo plugin new` writes, one a language. They are ordinary files below
//! `plugins/templates`, tried as they are; the binary carries them, and the SDK with them, so
//! that what it writes fits what it runs.

use kymo_kernel::{Code, Error, Result};

use crate::pack::WIT;

/// A language to write plugins in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// The SDK; the fastest.
    Rust,
    /// Generated bindings; small and fast.
    C,
    /// An interpreter inside; fit for small tables.
    JavaScript,
    /// An interpreter inside; fit for small tables.
    Python,
}

/// A file of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where it goes, below the project's folder.
    pub path: &'static str,
    /// What is in it.
    pub content: Vec<u8>,
    /// Whether it is a script to run.
    pub executable: bool,
}

/// The name that stands for the plugin's own in every file of a template.
const PLACEHOLDER: &str = "my_plugin";

/// The files of a new project for a plugin of this name.
///
/// # Errors
/// [`Code::InvalidInput`] for a name other than `[a-z][a-z0-9_]*` of at most 63 bytes.
pub fn project(language: Language, name: &str) -> Result<Vec<File>> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !starts || !name.chars().all(good) || name.len() > 63 {
        return Err(Error::new(Code::InvalidInput, format!("{name:?} cannot name a plugin"))
            .with_hint("start with a lower-case letter, go on with letters, digits and _"));
    }
    let own = match language {
        Language::Rust => RUST,
        Language::C => C,
        Language::JavaScript => JAVASCRIPT,
        Language::Python => PYTHON,
    };
    let mut files: Vec<File> = own.iter().map(|file| file.named(name)).collect();
    match language {
        Language::Rust => files.extend(SDK.iter().map(Embedded::as_is)),
        Language::C => {}
        Language::JavaScript | Language::Python => files.push(File {
            path: "wit/udf.wit",
            content: WIT[0].1.as_bytes().to_vec(),
            executable: false,
        }),
    }
    Ok(files)
}

struct Embedded {
    path: &'static str,
    bytes: &'static [u8],
}

impl Embedded {
    fn as_is(&self) -> File {
        File { path: self.path, content: self.bytes.to_vec(), executable: self.path == "build" }
    }

    fn named(&self, name: &str) -> File {
        let mut file = self.as_is();
        if let Ok(text) = std::str::from_utf8(self.bytes) {
            file.content = text.replace(PLACEHOLDER, name).into_bytes();
        }
        file
    }
}

macro_rules! file {
    ($path:literal, $from:literal) => {
        Embedded { path: $path, bytes: include_bytes!(concat!("../", $from)) }
    };
}

const RUST: &[Embedded] = &[
    file!(".cargo/config.toml", "templates/rust/.cargo/config.toml"),
    file!("Cargo.toml", "templates/rust/Cargo.toml"),
    file!("README.md", "templates/rust/README.md"),
    file!(".gitignore", "templates/rust/gitignore"),
    file!("sdk/Cargo.toml", "templates/rust/sdk/Cargo.toml"),
    file!("src/lib.rs", "templates/rust/src/lib.rs"),
];

const SDK: &[Embedded] = &[
    file!("sdk/kymo-udf/Cargo.toml", "sdk/kymo-udf/Cargo.toml"),
    file!("sdk/kymo-udf/src/aggregate.rs", "sdk/kymo-udf/src/aggregate.rs"),
    file!("sdk/kymo-udf/src/bindings.rs", "sdk/kymo-udf/src/bindings.rs"),
    file!("sdk/kymo-udf/src/column.rs", "sdk/kymo-udf/src/column.rs"),
    file!("sdk/kymo-udf/src/context.rs", "sdk/kymo-udf/src/context.rs"),
    file!("sdk/kymo-udf/src/error.rs", "sdk/kymo-udf/src/error.rs"),
    file!("sdk/kymo-udf/src/lib.rs", "sdk/kymo-udf/src/lib.rs"),
    file!("sdk/kymo-udf/src/map.rs", "sdk/kymo-udf/src/map.rs"),
    file!("sdk/kymo-udf/src/plugin.rs", "sdk/kymo-udf/src/plugin.rs"),
    file!("sdk/kymo-udf/src/scalar.rs", "sdk/kymo-udf/src/scalar.rs"),
    file!("sdk/kymo-udf/src/state.rs", "sdk/kymo-udf/src/state.rs"),
    file!("sdk/kymo-udf/src/table.rs", "sdk/kymo-udf/src/table.rs"),
    file!("sdk/kymo-udf/src/transform.rs", "sdk/kymo-udf/src/transform.rs"),
    file!("sdk/kymo-udf/src/value.rs", "sdk/kymo-udf/src/value.rs"),
    file!("sdk/kymo-udf/src/window.rs", "sdk/kymo-udf/src/window.rs"),
    file!("sdk/kymo-udf/src/worlds/aggregate.world", "sdk/kymo-udf/src/worlds/aggregate.world"),
    file!("sdk/kymo-udf/src/worlds/scalar.world", "sdk/kymo-udf/src/worlds/scalar.world"),
    file!("sdk/kymo-udf/src/worlds/table.world", "sdk/kymo-udf/src/worlds/table.world"),
    file!("sdk/kymo-udf/src/worlds/transform.world", "sdk/kymo-udf/src/worlds/transform.world"),
    file!("sdk/kymo-udf/src/worlds/window.world", "sdk/kymo-udf/src/worlds/window.world"),
    file!("sdk/kymo-udf-macros/Cargo.toml", "sdk/kymo-udf-macros/Cargo.toml"),
    file!("sdk/kymo-udf-macros/src/aggregate.rs", "sdk/kymo-udf-macros/src/aggregate.rs"),
    file!("sdk/kymo-udf-macros/src/lib.rs", "sdk/kymo-udf-macros/src/lib.rs"),
    file!("sdk/kymo-udf-macros/src/options.rs", "sdk/kymo-udf-macros/src/options.rs"),
    file!("sdk/kymo-udf-macros/src/scalar.rs", "sdk/kymo-udf-macros/src/scalar.rs"),
    file!("sdk/kymo-udf-macros/src/signature.rs", "sdk/kymo-udf-macros/src/signature.rs"),
    file!("sdk/kymo-udf-macros/src/state.rs", "sdk/kymo-udf-macros/src/state.rs"),
    file!("sdk/kymo-udf-macros/src/table.rs", "sdk/kymo-udf-macros/src/table.rs"),
    file!("sdk/kymo-udf-macros/src/transform.rs", "sdk/kymo-udf-macros/src/transform.rs"),
    file!("sdk/kymo-udf-macros/src/window.rs", "sdk/kymo-udf-macros/src/window.rs"),
];

const C: &[Embedded] = &[
    file!("README.md", "templates/c/README.md"),
    file!("bindings/kymo.c", "templates/c/bindings/kymo.c"),
    file!("bindings/kymo.h", "templates/c/bindings/kymo.h"),
    file!("build", "templates/c/build"),
    file!(".gitignore", "templates/c/gitignore"),
    file!("udf.c", "templates/c/udf.c"),
];

const JAVASCRIPT: &[Embedded] = &[
    file!("README.md", "templates/javascript/README.md"),
    file!("build", "templates/javascript/build"),
    file!(".gitignore", "templates/javascript/gitignore"),
    file!("package.json", "templates/javascript/package.json"),
    file!("udf.js", "templates/javascript/udf.js"),
];

const PYTHON: &[Embedded] = &[
    file!("README.md", "templates/python/README.md"),
    file!("app.py", "templates/python/app.py"),
    file!("build", "templates/python/build"),
    file!(".gitignore", "templates/python/gitignore"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Every file below a folder, from the package's root.
    fn below(folder: &str) -> BTreeSet<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = BTreeSet::new();
        let mut folders = vec![root.join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.insert(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
                }
            }
        }
        found
    }

    #[test]
    fn every_file_of_a_template_is_carried() {
        for (files, folder, prefix) in [
            (RUST, "templates/rust", "templates/rust/"),
            (C, "templates/c", "templates/c/"),
            (JAVASCRIPT, "templates/javascript", "templates/javascript/"),
            (PYTHON, "templates/python", "templates/python/"),
            (SDK, "sdk/kymo-udf", ""),
            (SDK, "sdk/kymo-udf-macros", ""),
        ] {
            // A file called `.gitignore` would work in the repository itself.
            let carried: BTreeSet<String> = files
                .iter()
                .map(|file| format!("{prefix}{}", file.path.replace(".gitignore", "gitignore")))
                .collect();
            let lost: Vec<_> = below(folder).difference(&carried).cloned().collect();
            assert!(lost.is_empty(), "{lost:?}");
        }
    }

    #[test]
    fn a_project_bears_its_name() {
        for language in [Language::Rust, Language::C, Language::JavaScript, Language::Python] {
            let files = project(language, "weather").unwrap();
            let texts: Vec<_> =
                files.iter().map(|file| String::from_utf8_lossy(&file.content)).collect();
            assert!(texts.iter().any(|text| text.contains("weather")), "{language:?}");
            assert!(!texts.iter().any(|text| text.contains(PLACEHOLDER)), "{language:?}");
            assert!(files.iter().any(|file| file.path == ".gitignore"), "{language:?}");
        }
        for bad in ["", "Weather", "1st", "a-b", "a/b", "../x"] {
            assert!(project(Language::C, bad).is_err(), "{bad:?}");
        }
    }
}
