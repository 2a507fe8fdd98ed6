//! Writes what plugins need of the WIT files and would otherwise have to generate themselves:
//! the SDK's bindings (so that a plugin builds without a bindings generator), the encoded
//! worlds that go into a component's type section, and the header of the C template.
//!
//! `bindings` writes them; `pack MODULE COMPONENT` makes a component of a core module. Both are
//! what `plugins/build-guests` runs.

#![expect(clippy::disallowed_methods, reason = "a tool of the developers, outside of any store")]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use wit_bindgen_core::{Files, WorldGenerator as _};

/// Everything a plugin may export: the SDK's bindings cover it, a plugin exports its share.
const EVERYTHING: &str = "
package kymo:everything;
world everything {
    include kymo:udf/plugin@0.1.0;
    include kymo:udf-preview/window-plugin@0.0.1;
    include kymo:udf-preview/table-plugin@0.0.1;
    include kymo:udf-preview/transform-plugin@0.0.1;
}
";

/// World, name of its file.
const WORLDS: [(&str, &str); 5] = [
    ("kymo:udf/scalar-plugin@0.1.0", "scalar.world"),
    ("kymo:udf/aggregate-plugin@0.1.0", "aggregate.world"),
    ("kymo:udf-preview/window-plugin@0.0.1", "window.world"),
    ("kymo:udf-preview/table-plugin@0.0.1", "table.world"),
    ("kymo:udf-preview/transform-plugin@0.0.1", "transform.world"),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bindings"] => bindings(),
        ["pack", module, component] => pack(Path::new(module), Path::new(component)),
        _ => bail!("kymo-udf-tools bindings | pack MODULE COMPONENT"),
    }
}

fn pack(module: &Path, component: &Path) -> Result<()> {
    let module = fs::read(module).with_context(|| format!("read {}", module.display()))?;
    let mut packed = wit_component::ComponentEncoder::default().validate(true).module(&module)?;
    fs::write(component, packed.encode()?).with_context(|| format!("write {}", component.display()))
}

fn bindings() -> Result<()> {
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let wit = plugins.join("../wit");
    let sdk = plugins.join("sdk/kymo-udf/src");
    rust(&wit, &sdk.join("bindings.rs"))?;
    worlds(&wit, &sdk.join("worlds"))?;
    c(&wit, &plugins.join("templates/c/bindings"))
}

fn packages(wit: &Path) -> [PathBuf; 2] {
    [wit.join("kymo-udf"), wit.join("kymo-udf-preview")]
}

fn rust(wit: &Path, to: &Path) -> Result<()> {
    let mut resolve = wit_bindgen_core::wit_parser::Resolve::default();
    for package in packages(wit) {
        resolve.push_path(package)?;
    }
    let package = resolve.push_str("everything.wit", EVERYTHING)?;
    let world = resolve.select_world(&[package], None)?;
    let options = wit_bindgen_rust::Opts {
        format: true,
        generate_all: true,
        runtime_path: Some("::wit_bindgen::rt".to_owned()),
        pub_export_macro: true,
        default_bindings_module: Some("$crate::bindings".to_owned()),
        additional_derive_attributes: vec!["PartialEq".to_owned()],
        ..Default::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files)?;
    let (_, source) = files.iter().next().context("no bindings came out")?;
    let source = std::str::from_utf8(source)?;
    fs::write(to, format!("{OPENING}{}{CLOSING}", without_world(source)?))
        .with_context(|| format!("write {}", to.display()))
}

const OPENING: &str = "//! Generated from the WIT files by `kymo-udf-tools`; not edited by hand.\n//!\n\
    //! Types, and the lifting and lowering of the canonical ABI.\n\n";

/// Each plugin names the worlds that it implements itself (`plugin!`), so nothing is to link.
const CLOSING: &str = "\nfn __link_custom_section_describing_imports() {\n    \
    ::wit_bindgen::rt::maybe_link_cabi_realloc();\n}\n";

/// The bindings without the type section of everything and the macro that exports everything.
fn without_world(source: &str) -> Result<&str> {
    let macro_at = source.find("macro_rules! __export_everything_impl").context("no macro")?;
    let end = source[..macro_at].rfind("extern crate alloc as alloc_crate;\n}\n");
    let end = end.context("no end of the runtime's names")?;
    Ok(&source[..end + "extern crate alloc as alloc_crate;\n}\n".len()])
}

fn worlds(wit: &Path, to: &Path) -> Result<()> {
    let mut resolve = wit_parser::Resolve::default();
    let mut known = Vec::new();
    for package in packages(wit) {
        known.push(resolve.push_path(package)?.0);
    }
    fs::create_dir_all(to)?;
    for (world, file) in WORLDS {
        let world = resolve.select_world(&known, Some(world))?;
        let bytes = wit_component::metadata::encode(
            &resolve,
            world,
            wit_component::StringEncoding::UTF8,
            None,
        )?;
        fs::write(to.join(file), bytes)?;
    }
    Ok(())
}

/// The bindings force an object file with the type section in; `kymo plugin pack` adds that
/// section by the names of the exports.
const NO_OBJECT: &str = "\n// The type section is added by `kymo plugin pack`.\n\
    void __component_type_object_force_link_kymo(void) {}\n";

fn c(wit: &Path, to: &Path) -> Result<()> {
    let mut resolve = wit_bindgen_core::wit_parser::Resolve::default();
    let (package, _) = resolve.push_path(wit.join("kymo-udf"))?;
    let world = resolve.select_world(&[package], Some("scalar-plugin"))?;
    let options = wit_bindgen_c::Opts {
        no_object_file: true,
        rename_world: Some("kymo".to_owned()),
        ..Default::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files)?;
    fs::create_dir_all(to)?;
    for (name, source) in files.iter() {
        let mut source = std::str::from_utf8(source)?.to_owned();
        if name.ends_with(".c") {
            source.push_str(NO_OBJECT);
        }
        fs::write(to.join(name), source)?;
    }
    Ok(())
}
