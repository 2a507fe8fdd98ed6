//! What a component may be before anybody compiles it: its size, how much code it holds, and
//! that it asks for nothing but what the interface offers.

use kymo_kernel::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};

/// The bounds of a component, as they travel to the process that compiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeLimits {
    /// Size of the component, in bytes.
    pub bytes: u64,
    /// Functions with a body, over all modules of the component.
    pub functions: u64,
    /// Size of one body, in bytes.
    pub body_bytes: u64,
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
    let shape = look(wasm, limits)?;
    match shape {
        Shape::Component => Ok(wasm.to_vec()),
        Shape::Module { described: true } => {
            let component = wrap(wasm)?;
            look(&component, limits)?;
            Ok(component)
        }
        Shape::Module { described: false } => {
            Err(refuse("it is a core module without the description of its interface").with_hint(
                "make a component of it with `kymo plugin pack`, or build it with the kymo-udf SDK",
            ))
        }
    }
}

/// Refuses what is too large before anything else is done with it.
///
/// # Errors
/// [`Code::TooLarge`].
pub fn check_size(bytes: u64, limits: &CodeLimits) -> Result<()> {
    if bytes <= limits.bytes {
        return Ok(());
    }
    let text = format!("the component has {bytes} bytes, {} are the most", limits.bytes);
    Err(Error::new(Code::TooLarge, text).with_hint("raise plugins.max_component_bytes"))
}

enum Shape {
    Component,
    Module { described: bool },
}

/// Reads it once: every payload is counted, named and validated.
fn look(wasm: &[u8], limits: &CodeLimits) -> Result<Shape> {
    if wasm.get(..4) != Some(b"\0asm".as_slice()) {
        return Err(refuse("it is not WebAssembly"));
    }
    let mut look = Look { limits, functions: 0, nested: 0, depth: 0 };
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
        Some(Encoding::Component) => Ok(Shape::Component),
        Some(Encoding::Module) => Ok(Shape::Module { described }),
        None => Err(refuse("it is empty")),
    }
}

struct Look<'a> {
    limits: &'a CodeLimits,
    functions: u64,
    nested: u32,
    /// How many components we are within.
    depth: u32,
}

impl Look<'_> {
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
            Payload::CodeSectionStart { count, .. } => self.functions(u64::from(*count)),
            Payload::CodeSectionEntry(body) => {
                let range = body.range();
                self.body((range.end - range.start) as u64)
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

    fn functions(&mut self, count: u64) -> Result<()> {
        self.functions = self.functions.saturating_add(count);
        if self.functions <= self.limits.functions {
            return Ok(());
        }
        let text = format!(
            "it has {} WebAssembly functions, {} are the most",
            self.functions, self.limits.functions
        );
        Err(Error::new(Code::TooLarge, text).with_hint("raise plugins.max_code_functions"))
    }

    fn body(&mut self, bytes: u64) -> Result<()> {
        if bytes <= self.limits.body_bytes {
            return Ok(());
        }
        let text = format!(
            "one of its functions has {bytes} bytes, {} are the most",
            self.limits.body_bytes
        );
        Err(Error::new(Code::TooLarge, text).with_hint("raise plugins.max_code_body_bytes"))
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

/// What the engine is configured for.
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
