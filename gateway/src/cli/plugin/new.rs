//! `kymo plugin new`: a project that builds as it is.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::ValueEnum;
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::template::{self, File};

use super::write;
use crate::cli::print;

/// What a plugin is written in.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Language {
    /// The SDK; the fastest
    Rust,
    /// Small and fast
    C,
    /// For small tables; easy
    #[value(alias = "js")]
    Javascript,
    /// For small tables; easy
    Python,
}

impl From<Language> for template::Language {
    fn from(language: Language) -> Self {
        match language {
            Language::Rust => template::Language::Rust,
            Language::C => template::Language::C,
            Language::Javascript => template::Language::JavaScript,
            Language::Python => template::Language::Python,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// A name that is none, or a folder that exists.
pub fn run(name: &str, language: Language) -> Result<()> {
    let files = template::project(language.into(), name)?;
    let folder = Path::new(name);
    if folder.exists() {
        return Err(Error::new(Code::AlreadyExists, format!("{name} exists here"))
            .with_hint("choose another name, or another folder to call this in"));
    }
    for file in &files {
        put(folder, file)?;
    }
    print(&format!("{name}: {} files\nnext: kymo plugin build {name}\n", files.len()))
}

fn put(folder: &Path, file: &File) -> Result<()> {
    let path = folder.join(file.path);
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .create(parent)
            .map_err(|error| Error::io(format_args!("create {}", parent.display()), error))?;
    }
    write(&path, &file.content)?;
    if file.executable {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .map_err(|error| Error::io(format_args!("make {} run", path.display()), error))?;
    }
    Ok(())
}
