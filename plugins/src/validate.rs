//! What a component may be before anybody compiles it: its size, how much code it holds, and
//! that it asks for nothing but what the interface offers.

use kymo_config::settings::Plugins;
use kymo_kernel::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};
use wasmtime::ResourcesRequired;

use crate::engine::TABLES;

/// The bounds of a component, as they travel to the process that compiles; or what one component
/// comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CodeLimits {
    /// Size of the component, in bytes.
    pub bytes: u64,
    /// Functions with a body, over all modules of the component.
    pub functions: u64,
    /// Size of one body, in bytes.
    pub body_bytes: u64,
    /// Linear memories, over all modules of the component.
    pub memories: u64,
}

/// A setting that a component needs to be larger than it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The setting, in full.
    pub setting: &'static str,
    /// What it has to be at least; rounded up, so that the next build fits too.
    pub least: u64,
    /// What the component comes to.
    pub found: u64,
    /// What the setting is.
    pub limit: u64,
}

impl std::fmt::Display for Need {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} = {}", self.setting, self.least)
    }
}

impl CodeLimits {
    /// Those of the server's settings.
    #[must_use]
    pub fn of(server: &Plugins) -> CodeLimits {
        CodeLimits {
            bytes: server.max_component_bytes,
            functions: server.max_code_functions as u64,
            body_bytes: server.max_code_body_bytes,
            memories: u64::from(server.max_memories),
        }
    }

    /// What has to be raised for a component that comes to `found`.
    #[must_use]
    pub fn needs(&self, found: &CodeLimits) -> Vec<Need> {
        let all = [
            ("plugins.max_component_bytes", found.bytes, self.bytes, 1 << 20),
            ("plugins.max_code_functions", found.functions, self.functions, 1000),
            ("plugins.max_code_body_bytes", found.body_bytes, self.body_bytes, 64 << 10),
            ("plugins.max_memories", found.memories, self.memories, 1),
        ];
        let over = all.into_iter().filter(|(_, found, limit, _)| found > limit);
        over.map(|(setting, found, limit, unit)| Need {
            setting,
            least: found.checked_next_multiple_of(unit).unwrap_or(found),
            found,
            limit,
        })
        .collect()
    }
}

/// Modules, and components, within a component.
const NESTED: u32 = 64;

/// Checks a component and gives back what is to be compiled: the same bytes, or, for a core
/// module that carries the description of its interface, the component made of it.
///
/// # Errors
/// [`Code::TooLarge`] beyond a bound, [`Code::InvalidInput`] for what is no plugin.
pub fn validate(wasm: &[u8], limits: &CodeLimits) -> Result<Vec<u8>> {
    check_size(wasm.len() as u64, limits)?;
    let (shape, found) = look(wasm)?;
    check(limits, &found)?;
    match shape {
        Shape::Component => Ok(wasm.to_vec()),
        Shape::Module { described: true } => {
            let component = wrap(wasm)?;
            let (_, found) = look(&component)?;
            check(limits, &found)?;
            Ok(component)
        }
        Shape::Module { described: false } => {
            Err(refuse("it is a core module without the description of its interface").with_hint(
                "make a component of it with `kymo plugin pack`, or build it with the kymo-udf SDK",
            ))
        }
    }
}

/// What a component comes to, to be held against a server's limits.
///
/// # Errors
/// [`Code::InvalidInput`] for what no server takes, whatever its limits.
pub fn measure(wasm: &[u8]) -> Result<CodeLimits> {
    look(wasm).map(|(_, found)| found)
}

/// Refuses what is too large before anything else is done with it.
///
/// # Errors
/// [`Code::TooLarge`].
pub fn check_size(bytes: u64, limits: &CodeLimits) -> Result<()> {
    check(limits, &CodeLimits { bytes, ..CodeLimits::default() })
}

/// # Errors
/// [`Code::TooLarge`] for the first bound that is exceeded; the hint names all of them.
fn check(limits: &CodeLimits, found: &CodeLimits) -> Result<()> {
    let needs = limits.needs(found);
    let Some(first) = needs.first() else { return Ok(()) };
    let Need { found, limit, .. } = first;
    let text = match first.setting {
        "plugins.max_component_bytes" => {
            format!("the component has {found} bytes, {limit} are the most")
        }
        "plugins.max_code_functions" => {
            format!("it has {found} WebAssembly functions, {limit} are the most")
        }
        "plugins.max_memories" => format!("it has {found} memories, {limit} are the most"),
        _ => format!("one of its functions has {found} bytes, {limit} are the most"),
    };
    Err(Error::new(Code::TooLarge, text).with_hint(raise(&needs)))
}

/// What to do about settings that are too small.
fn raise(needs: &[Need]) -> String {
    let settings: Vec<String> = needs.iter().map(Need::to_string).collect();
    format!(
        "a server takes it with {}, or more; `kymo plugin inspect` lists all that it needs",
        settings.join(" and ")
    )
}

/// Refuses what an instance has no room for.
///
/// # Errors
/// [`Code::TooLarge`] beyond a bound, [`Code::InvalidInput`] for a component that says only when
/// it runs what it is made of.
pub(crate) fn check_resources(
    resources: Option<&ResourcesRequired>,
    limits: &CodeLimits,
) -> Result<()> {
    let Some(resources) = resources else {
        return Err(refuse("it is made of modules that it imports"));
    };
    // A module counts once for each of its instances, which `look` cannot know.
    let memories = u64::from(resources.num_memories);
    check(limits, &CodeLimits { memories, ..CodeLimits::default() })?;
    if resources.num_tables > TABLES {
        let text = format!("it has {} tables, {TABLES} are the most", resources.num_tables);
        return Err(Error::new(Code::TooLarge, text).with_hint("build it of fewer modules"));
    }
    Ok(())
}

enum Shape {
    Component,
    Module { described: bool },
}

/// Reads it once: every payload is counted, named and validated.
fn look(wasm: &[u8]) -> Result<(Shape, CodeLimits)> {
    if wasm.get(..4) != Some(b"\0asm".as_slice()) {
        return Err(refuse("it is not WebAssembly"));
    }
    let found = CodeLimits { bytes: wasm.len() as u64, ..CodeLimits::default() };
    let mut look = Look { found, nested: 0, depth: 0 };
    let mut shape = None;
    let mut described = false;
    let mut validator = Validator::new_with_features(features());
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload.map_err(broken)?;
        validator.payload(&payload).map_err(broken)?;
        look.payload(&payload)?;
        match payload {
            Payload::Version { encoding, .. } if shape.is_none() => shape = Some(encoding),
            Payload::CustomSection(section) => {
                described |= section.name().starts_with("component-type");
            }
            _ => {}
        }
    }
    match shape {
        Some(Encoding::Component) => Ok((Shape::Component, look.found)),
        Some(Encoding::Module) => Ok((Shape::Module { described }, look.found)),
        None => Err(refuse("it is empty")),
    }
}

struct Look {
    found: CodeLimits,
    nested: u32,
    /// How many components we are within.
    depth: u32,
}

impl Look {
    fn payload(&mut self, payload: &Payload<'_>) -> Result<()> {
        match payload {
            Payload::Version { .. } => self.nested(),
            Payload::ComponentSection { .. } | Payload::ModuleSection { .. } => {
                self.depth += 1;
                Ok(())
            }
            Payload::End(_) => {
                self.depth = self.depth.saturating_sub(1);
                Ok(())
            }
            Payload::MemorySection(memories) => {
                self.found.memories += u64::from(memories.count());
                Ok(())
            }
            Payload::CodeSectionStart { count, .. } => {
                self.found.functions += u64::from(*count);
                Ok(())
            }
            Payload::CodeSectionEntry(body) => {
                let range = body.range();
                let bytes = (range.end - range.start) as u64;
                self.found.body_bytes = self.found.body_bytes.max(bytes);
                Ok(())
            }
            Payload::ComponentImportSection(imports) if self.depth == 0 => imports
                .clone()
                .into_iter()
                .try_for_each(|import| check_import(import.map_err(broken)?.name.name)),
            Payload::ImportSection(imports) if self.depth == 0 => imports
                .clone()
                .into_imports()
                .try_for_each(|import| check_core_import(import.map_err(broken)?.module)),
            _ => Ok(()),
        }
    }

    fn nested(&mut self) -> Result<()> {
        self.nested += 1;
        if self.nested <= NESTED {
            return Ok(());
        }
        Err(Error::new(Code::TooLarge, format!("it is made of more than {NESTED} modules")))
    }
}

/// The interfaces of all published lines that a component may import.
fn check_import(name: &str) -> Result<()> {
    let interface = name.split('@').next().unwrap_or(name);
    let known = ["kymo:udf/types", "kymo:udf/host", "kymo:udf-preview/batches"];
    if known.contains(&interface) {
        return Ok(());
    }
    Err(unknown_import(name))
}

/// A core module names interfaces, and, for resources that it exports, the exports.
fn check_core_import(module: &str) -> Result<()> {
    if module.starts_with("[export]kymo:udf") {
        return Ok(());
    }
    check_import(module)
}

fn unknown_import(name: &str) -> Error {
    let shown: String = name.chars().take(120).collect();
    let error = refuse(format!("it imports {shown}, and plugins get nothing but kymo:udf/host"));
    match name.starts_with("wasi") {
        true => error.with_hint("plugins run without WASI: build for wasm32-unknown-unknown"),
        false => error.with_hint("build it against the interface kymo:udf 0.1"),
    }
}

/// The component that a described core module stands for.
fn wrap(module: &[u8]) -> Result<Vec<u8>> {
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| refuse(format!("it cannot be made a component: {error:#}")))
}

/// What a module may be made with. The engine knows several memories in one module, for the code
/// that it writes itself between two modules; nobody else may use them.
fn features() -> WasmFeatures {
    let never = WasmFeatures::MEMORY64
        | WasmFeatures::MULTI_MEMORY
        | WasmFeatures::RELAXED_SIMD
        | WasmFeatures::THREADS
        | WasmFeatures::EXCEPTIONS;
    WasmFeatures::default().difference(never)
}

fn broken(error: impl std::fmt::Display) -> Error {
    refuse(format!("it is not valid: {error}"))
}

fn refuse(what: impl Into<String>) -> Error {
    Error::new(Code::InvalidInput, what)
}
