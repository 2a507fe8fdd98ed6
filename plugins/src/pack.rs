//! From a core module, which is what compilers write, to a component, which is what a server
//! takes. No other tool is needed.
//!
//! A module that carries its own type section (the Rust SDK and every bindings generator put
//! one in) is packed by it. One that carries none is packed by its exports: their names say
//! which interfaces of ours it implements.

use kymo_kernel::{Code, Error, Result};
use wasmparser::{Encoding, Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The interfaces as this version of Kymo knows them: file name and text.
pub const WIT: [(&str, &str); 2] = [
    ("kymo-udf/udf.wit", include_str!("../../wit/kymo-udf/udf.wit")),
    ("kymo-udf-preview/preview.wit", include_str!("../../wit/kymo-udf-preview/preview.wit")),
];

/// Which world a module implements part of, if it has an export that begins so.
const WORLDS: [(&str, &str); 5] = [
    ("kymo:udf/scalar@", "kymo:udf/scalar-plugin@0.1.0"),
    ("kymo:udf/aggregate@", "kymo:udf/aggregate-plugin@0.1.0"),
    ("kymo:udf-preview/window@", "kymo:udf-preview/window-plugin@0.0.1"),
    ("kymo:udf-preview/table@", "kymo:udf-preview/table-plugin@0.0.1"),
    ("kymo:udf-preview/transform@", "kymo:udf-preview/transform-plugin@0.0.1"),
];

/// Makes a component of a core module. A component comes back as it is.
///
/// # Errors
/// [`Code::InvalidInput`] for bytes that are no WebAssembly, and for a module that does not
/// implement what it says or exports nothing of ours.
pub fn pack(bytes: &[u8]) -> Result<Vec<u8>> {
    let module = look(bytes)?;
    if module.component {
        return Ok(bytes.to_vec());
    }
    let mut bytes = bytes.to_vec();
    if !module.typed {
        embed(&mut bytes, &module.exports)?;
    }
    let encoder = ComponentEncoder::default().validate(true).module(&bytes);
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|error| {
        refuse(format!("the module cannot be made a component: {error:#}"))
            .with_hint("build it from the bindings of this version's interfaces")
    })
}

/// What matters of a binary before it is packed.
#[derive(Default)]
struct Module {
    component: bool,
    typed: bool,
    exports: Vec<String>,
}

fn look(bytes: &[u8]) -> Result<Module> {
    let mut module = Module::default();
    let broken = |error| refuse(format!("not WebAssembly: {error}"));
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(broken)? {
            Payload::Version { encoding: Encoding::Component, .. } => {
                module.component = true;
                return Ok(module);
            }
            Payload::CustomSection(section) => {
                module.typed |= section.name().starts_with("component-type");
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    module.exports.push(export.map_err(broken)?.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(module)
}

/// Adds a type section that says what the exports' names say.
fn embed(module: &mut Vec<u8>, exports: &[String]) -> Result<()> {
    let exported = |prefix: &&str| exports.iter().any(|name| name.starts_with(*prefix));
    let worlds: Vec<&str> =
        WORLDS.iter().filter(|(prefix, _)| exported(prefix)).map(|(_, world)| *world).collect();
    if worlds.is_empty() {
        return Err(refuse("the module exports no interface of a plugin").with_hint(
            "export kymo:udf/catalog and one of kymo:udf/scalar, kymo:udf/aggregate; \
             `kymo plugin new` writes a project that does",
        ));
    }
    let ours = |error| Error::internal(format!("the interfaces do not parse: {error:#}"));
    let mut resolve = Resolve::default();
    let mut packages = Vec::new();
    for (name, text) in WIT {
        packages.push(resolve.push_str(name, text).map_err(ours)?);
    }
    for world in worlds {
        let world = resolve.select_world(&packages, Some(world)).map_err(ours)?;
        embed_component_metadata(module, &resolve, world, StringEncoding::UTF8).map_err(ours)?;
    }
    Ok(())
}

/// What a component asks for and offers, by name, without running it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Whether it is a component; a core module has to be packed first.
    pub component: bool,
    /// Interfaces and functions that it wants from the server.
    pub imports: Vec<String>,
    /// Interfaces and functions that it gives.
    pub exports: Vec<String>,
    /// Bytes of code in all its modules.
    pub code_bytes: usize,
    /// Functions in all its modules.
    pub functions: u32,
}

/// Reads the outline of a component or a module.
///
/// # Errors
/// [`Code::InvalidInput`] for bytes that are no WebAssembly.
pub fn outline(bytes: &[u8]) -> Result<Outline> {
    let mut outline = Outline {
        component: false,
        imports: Vec::new(),
        exports: Vec::new(),
        code_bytes: 0,
        functions: 0,
    };
    let broken = |error| refuse(format!("not WebAssembly: {error}"));
    // Depth 0 is the outermost binary; what lies inside of it is its own affair.
    let mut depth = 0usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(broken)? {
            Payload::Version { encoding, .. } if depth == 0 => {
                outline.component = encoding == Encoding::Component;
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CodeSectionStart { count, size, .. } => {
                outline.functions += count;
                outline.code_bytes += size as usize;
            }
            Payload::ComponentImportSection(imports) if depth == 0 => {
                for import in imports {
                    outline.imports.push(import.map_err(broken)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(exports) if depth == 0 => {
                for export in exports {
                    outline.exports.push(export.map_err(broken)?.name.name.to_owned());
                }
            }
            Payload::ImportSection(imports) if depth == 0 => {
                for import in imports.into_imports() {
                    let import = import.map_err(broken)?;
                    outline.imports.push(format!("{} {}", import.module, import.name));
                }
            }
            Payload::ExportSection(exports) if depth == 0 => {
                for export in exports {
                    outline.exports.push(export.map_err(broken)?.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(outline)
}

fn refuse(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidInput, message)
}
