//! `kymo plugin install|list|remove`: the plugins of a server, over its HTTP interface.

use std::path::Path;

use kymo_kernel::Result;
use kymo_plugins::{Digest, PluginRef};
use serde_json::Value;

use super::{PATH, read};
use crate::cli::client::{Client, Target};
use crate::cli::{misuse, print, status};

/// Sends a component under a name. Its digest goes along, so that what arrives is what was
/// sent.
///
/// # Errors
/// The file cannot be read, is a core module, or the server refuses it.
pub fn install(component: &Path, name: Option<&str>, target: &Target) -> Result<()> {
    let bytes = read(component)?;
    if !kymo_plugins::pack::outline(&bytes)?.component {
        return Err(misuse(
            format!("{} is a core module", component.display()),
            "make a component of it with `kymo plugin pack`",
        ));
    }
    let stem = component.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = name.map(str::to_owned).or(stem).unwrap_or_default();
    let plugin = PluginRef::new(name, &bytes)?;
    let answer =
        Client::find(target)?.put_plugin(&plugin.name, &plugin.digest.to_string(), &bytes)?;
    print(&told(&plugin.name, plugin.digest, &answer))
}

fn told(name: &str, digest: Digest, answer: &Value) -> String {
    let functions: Vec<&str> = answer["functions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|function| function["name"].as_str().or_else(|| function.as_str()))
        .collect();
    if functions.is_empty() {
        return format!("{name} installed, {digest}\n");
    }
    format!("{name} installed, {digest}\nfunctions: {}\n", functions.join(", "))
}

/// Prints the server's plugins.
///
/// # Errors
/// No connection, or what the server says is wrong.
pub fn list(target: &Target) -> Result<()> {
    let answer = Client::find(target)?.get(PATH)?;
    let plugins = if answer.is_array() { answer } else { answer["plugins"].clone() };
    print(&status::table(plugins.as_array().map_or(&[], Vec::as_slice)))
}

/// Removes a plugin.
///
/// # Errors
/// No connection, or what the server says is wrong.
pub fn remove(name: &str, target: &Target) -> Result<()> {
    Client::find(target)?.delete_plugin(name)?;
    print(&format!("{name} removed\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_functions_are_named_however_the_server_lists_them() {
        let digest = Digest::of(b"");
        for functions in [json!(["a", "b"]), json!([{"name": "a"}, {"name": "b"}])] {
            assert!(told("p", digest, &json!({"functions": functions})).ends_with(": a, b\n"));
        }
        assert_eq!(told("p", digest, &Value::Null), format!("p installed, {digest}\n"));
    }
}
