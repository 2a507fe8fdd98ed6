//! Small plugins made in the test itself: WebAssembly text, packed as a component of the
//! published interface. They describe themselves and nothing more: calling one traps.

use std::fmt::Write as _;
use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Where the data begins in the plugin's memory; below it lies the empty result.
const BASE: u32 = 1024;

/// A plugin of a version with scalar functions of these names, each `float64 → float64`.
#[must_use]
pub fn plugin(version: &str, functions: &[&str]) -> Vec<u8> {
    pack(&text(version, functions))
}

/// Packs a core module as a component of the world `scalar-plugin`.
#[must_use]
pub fn pack(text: &str) -> Vec<u8> {
    let mut module = wat::parse_str(text).expect("WebAssembly text");
    let mut resolve = Resolve::default();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit/since-0.1");
    let (package, _) = resolve.push_dir(wit).expect("the published interface");
    let world = resolve.select_world(&[package], Some("scalar-plugin")).expect("its world");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .expect("the type of the component");
    let encoder = ComponentEncoder::default().module(&module).expect("a module of that type");
    encoder.validate(true).encode().expect("a component")
}

/// The memory of a plugin, laid out as the canonical ABI wants the description.
#[derive(Default)]
struct Memory(Vec<u8>);

impl Memory {
    /// Adds bytes at the next multiple of four; gives their address.
    fn put(&mut self, bytes: &[u8]) -> u32 {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        let address = BASE + u32::try_from(self.0.len()).expect("a small plugin");
        self.0.extend_from_slice(bytes);
        address
    }

    /// A string or a list: its address and its length.
    fn list(&mut self, bytes: &[u8], count: usize) -> [u8; 8] {
        let (address, count) = (self.put(bytes), u32::try_from(count).expect("a short list"));
        let mut pair = [0; 8];
        pair[..4].copy_from_slice(&address.to_le_bytes());
        pair[4..].copy_from_slice(&count.to_le_bytes());
        pair
    }

    fn text(&mut self, text: &str) -> [u8; 8] {
        self.list(text.as_bytes(), text.len())
    }

    /// `field`: name, type (case 5: float64), nullable.
    fn field(&mut self, name: &str) -> [u8; 32] {
        let mut field = [0; 32];
        field[..8].copy_from_slice(&self.text(name));
        field[8] = 5;
        field[28] = 1;
        field
    }

    /// `function`, of kind scalar, with one overload.
    fn function(&mut self, name: &str) -> [u8; 40] {
        let (parameter, result) = (self.field("x"), self.field("y"));
        let mut overload = [0; 28];
        overload[..8].copy_from_slice(&self.list(&parameter, 1));
        overload[12..20].copy_from_slice(&self.list(&result, 1));
        let mut function = [0; 40];
        function[..8].copy_from_slice(&self.text(name));
        function[12..20].copy_from_slice(&self.list(&overload, 1));
        function[32..40].copy_from_slice(&self.text("made in a test"));
        function
    }
}

fn text(version: &str, functions: &[&str]) -> String {
    let mut memory = Memory::default();
    let list: Vec<u8> = functions.iter().flat_map(|name| memory.function(name)).collect();
    let parts = [
        memory.text("sample"),
        memory.text(version),
        memory.text(""),
        memory.list(&list, functions.len()),
    ];
    let plugin = memory.put(&parts.concat());
    let mut data = String::new();
    for byte in &memory.0 {
        let _ = write!(data, "\\{byte:02x}");
    }
    let end = BASE + u32::try_from(memory.0.len()).expect("a small plugin");
    format!(
        r#"(module
  (memory (export "memory") 2)
  (global $free (mut i32) (i32.const {free}))
  (data (i32.const {BASE}) "{data}")
  (func (export "kymo:udf/catalog@0.1.0#describe") (result i32) (i32.const {plugin}))
  (func (export "kymo:udf/catalog@0.1.0#start")
    (param i64 i32 i32 i64 i32 i32) (result i32) (i32.const 16))
  (func (export "kymo:udf/scalar@0.1.0#call")
    (param i32 i32 i32 i32 i32) (result i32) (unreachable))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $at) (local.get 3)))
    (local.get $at)))"#,
        free = end.next_multiple_of(8),
    )
}
