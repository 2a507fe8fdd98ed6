//! `kymo plugin build`: runs the language's own build, then packs what came out.
//!
//! A folder with a `Cargo.toml` is built by cargo; any other has a script `build` that writes
//! `plugin.core.wasm`, a core module or a component.

use std::path::{Path, PathBuf};
use std::process::Command;

use kymo_kernel::{Code, Error, Result};

use super::pack;
use crate::cli::misuse;

/// What Rust plugins are compiled for.
const TARGET: &str = "wasm32-unknown-unknown";

/// Runs the command.
///
/// # Errors
/// There is no project, its build fails, or what it writes is no plugin.
pub fn run(folder: &Path, output: Option<&Path>) -> Result<()> {
    let given = folder;
    let folder = folder
        .canonicalize()
        .map_err(|error| Error::io(format_args!("find {}", folder.display()), error))?;
    let module = if folder.join("Cargo.toml").exists() {
        cargo(&folder)?
    } else if folder.join("build").exists() {
        script(&folder)?
    } else {
        return Err(misuse(
            format!("{} is no plugin's project", folder.display()),
            "write one with `kymo plugin new NAME`",
        ));
    };
    match output {
        Some(output) => pack(&module, output),
        None => pack(&module, &given.join(name_of(&folder)).with_extension("wasm")),
    }
}

fn name_of(folder: &Path) -> String {
    folder.file_name().map_or_else(|| "plugin".to_owned(), |name| name.to_string_lossy().into())
}

fn script(folder: &Path) -> Result<PathBuf> {
    finish(Command::new("sh").arg("build").current_dir(folder), "./build")?;
    let module = folder.join("plugin.core.wasm");
    if module.exists() {
        return Ok(module);
    }
    Err(Error::new(Code::InvalidInput, "./build did not write plugin.core.wasm"))
}

fn cargo(folder: &Path) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--target", TARGET]);
    command.args(["--message-format", "json-render-diagnostics"]).current_dir(folder);
    command.stderr(std::process::Stdio::inherit());
    let output =
        command.output().map_err(|error| Error::io("run cargo, which builds the plugin", error))?;
    if !output.status.success() {
        return Err(Error::new(Code::InvalidInput, "cargo could not build the plugin")
            .with_hint(format!("if the target is missing: rustup target add {TARGET}")));
    }
    last_module(&output.stdout).ok_or_else(|| {
        Error::new(Code::InvalidInput, "the package has no library to make a plugin of")
            .with_hint("put crate-type = [\"cdylib\"] into [lib] of Cargo.toml")
    })
}

/// The module in cargo's messages; the plugin's own package is built last.
fn last_module(messages: &[u8]) -> Option<PathBuf> {
    let messages = messages.split(|byte| *byte == b'\n');
    messages
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter_map(|message| {
            let files = message["filenames"].as_array()?;
            let module = files.iter().filter_map(|file| file.as_str());
            module.filter(|file| file.ends_with(".wasm")).map(PathBuf::from).next_back()
        })
        .next_back()
}

fn finish(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().map_err(|error| Error::io(format_args!("run {what}"), error))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(Code::InvalidInput, format!("{what} failed: {status}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_found_in_what_cargo_says() {
        let messages = br#"{"reason":"compiler-artifact","filenames":["/t/libkymo_udf.rlib"]}
{"reason":"compiler-artifact","filenames":["/t/weather.wasm"]}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(last_module(messages), Some(PathBuf::from("/t/weather.wasm")));
        assert_eq!(last_module(b""), None);
    }

    #[test]
    fn a_folder_without_a_project_says_how_to_begin() {
        let folder = tempfile::tempdir().unwrap();
        let error = run(folder.path(), None).unwrap_err();
        assert!(error.hint().unwrap().contains("kymo plugin new"));
    }
}
