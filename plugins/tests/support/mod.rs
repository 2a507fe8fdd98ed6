//! Plugins written as WebAssembly text and packed within the test, a host to run them in, and
//! an account that tells what it was charged.
#![allow(dead_code, reason = "each test uses its part")]

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kymo_config::settings::Plugins;
use kymo_kernel::env::real;
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::{
    Compiler, LoadOptions, MemoryAccount, PluginFunction, PluginHost, PluginVersion, QueryContext,
    QueryPlugins,
};
use tempfile::TempDir;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

pub mod lab;
pub mod preview;

/// Where the description begins in the memory of a fixture.
const DESCRIPTION: u32 = 1024;

/// Packs a core module, given as text, that implements a world of the published line.
pub fn component(world: &str, text: &str) -> Vec<u8> {
    encode(&module(world, text)).unwrap()
}

/// The core module with the description of its world.
pub fn module(world: &str, text: &str) -> Vec<u8> {
    let mut module = wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"));
    let mut resolve = Resolve::default();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    let (package, _) = resolve.push_dir(wit.join("since-0.1")).unwrap();
    let (preview, _) = resolve.push_dir(wit.join("kymo-udf-preview")).unwrap();
    let package = match world {
        "everything" => resolve.push_str("everything.wit", EVERYTHING).unwrap(),
        "transform-plugin" => preview,
        _ => package,
    };
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    module
}

const EVERYTHING: &str = "
    package kymo:fixture;
    world everything {
        import kymo:udf/host@0.1.0;
        export kymo:udf/catalog@0.1.0;
        export kymo:udf-preview/window@0.0.1;
        export kymo:udf-preview/table@0.0.1;
        export kymo:udf-preview/transform@0.0.1;
    }
";

/// A component that imports one function `f` of this interface (`package:name/interface`) of
/// this version.
pub fn importing(package: &str, interface: &str, version: &str) -> Vec<u8> {
    let name = format!("{package}/{interface}@{version}");
    let mut resolve = Resolve::default();
    let text = format!(
        "package {package}@{version}; interface {interface} {{ f: func(); }} \
         world w {{ import {interface}; }}"
    );
    let package = resolve.push_str("imports.wit", &text).unwrap();
    let world = resolve.select_world(&[package], Some("w")).unwrap();
    let text = format!("(module (import \"{name}\" \"f\" (func)))");
    let mut module = wat::parse_str(text).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    encode(&module).unwrap()
}

/// A component that is nothing but one core module that nobody instantiates.
pub fn around(module: &[u8]) -> Vec<u8> {
    let mut component = b"\0asm\x0d\0\x01\0\x01".to_vec();
    let mut length = module.len();
    while length >= 0x80 {
        component.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    component.push(length as u8);
    component.extend_from_slice(module);
    component
}

/// The same component with this module in it too, and so many instances of it that do nothing.
pub fn beside(component: &[u8], module: &str, instances: u8) -> Vec<u8> {
    let mut depth = 0;
    let mut modules = 0;
    for payload in wasmparser::Parser::new(0).parse_all(component) {
        match payload.unwrap() {
            wasmparser::Payload::ModuleSection { .. } => {
                modules += u8::from(depth == 0);
                depth += 1;
            }
            wasmparser::Payload::ComponentSection { .. } => depth += 1,
            wasmparser::Payload::End(_) => depth -= i32::from(depth > 0),
            _ => {}
        }
    }
    assert!(modules < 128 && instances < 40, "both are written as one byte");
    let module = around(&wat::parse_str(module).unwrap());
    let mut component = component.to_vec();
    component.extend_from_slice(&module[8..]);
    component.extend([2, 1 + 3 * instances, instances]);
    component.extend([0, modules, 0].repeat(usize::from(instances)));
    component
}

pub fn encode(module: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let encoder = ComponentEncoder::default().validate(true).module(module);
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|error| format!("{error:#}"))
}

/// A type in a description.
#[derive(Clone)]
pub enum Type {
    /// One without parameters, by its number in the interface.
    Plain(u8),
    /// A timestamp of this unit and zone.
    Timestamp(u8, Option<&'static str>),
    /// A duration of this unit.
    Duration(u8),
    /// An Arrow schema message.
    Arrow(Vec<u8>),
}

pub const BOOLEAN: Type = Type::Plain(0);
pub const INT32: Type = Type::Plain(1);
pub const INT64: Type = Type::Plain(2);
pub const UINT64: Type = Type::Plain(3);
pub const FLOAT32: Type = Type::Plain(4);
pub const FLOAT64: Type = Type::Plain(5);
pub const UTF8: Type = Type::Plain(6);
pub const BINARY: Type = Type::Plain(7);
pub const DATE32: Type = Type::Plain(8);

/// A function in a description.
#[derive(Clone)]
pub struct Told {
    pub name: String,
    pub kind: u8,
    pub overloads: Vec<(Vec<Type>, Vec<Type>, Vec<Type>)>,
    pub volatility: u8,
    pub nulls: u8,
    pub retractable: bool,
}

impl Told {
    pub fn scalar(name: &str, parameters: &[Type], returns: Type) -> Told {
        Told {
            name: name.to_owned(),
            kind: 0,
            overloads: vec![(parameters.to_vec(), vec![returns], vec![])],
            volatility: 0,
            nulls: 0,
            retractable: false,
        }
    }

    pub fn passing_nulls(mut self) -> Told {
        self.nulls = 1;
        self
    }

    pub fn volatile(mut self) -> Told {
        self.volatility = 2;
        self
    }
}

/// Lays a description out in memory as the canonical ABI wants it; the first 32 bytes are the
/// record itself.
pub fn description(functions: &[Told]) -> Vec<u8> {
    let mut memory = Memory(vec![0; 32]);
    let list: Vec<Vec<u8>> = functions.iter().map(|each| memory.function(each)).collect();
    let record = [
        memory.text("lab"),
        memory.text("1.2.3"),
        memory.text("A laboratory."),
        memory.list(&list),
    ];
    memory.0[..32].copy_from_slice(&record.concat());
    memory.0
}

struct Memory(Vec<u8>);

impl Memory {
    fn put(&mut self, bytes: &[u8]) -> u32 {
        while !self.0.len().is_multiple_of(8) {
            self.0.push(0);
        }
        let at = DESCRIPTION + u32::try_from(self.0.len()).unwrap();
        self.0.extend_from_slice(bytes);
        at
    }

    fn text(&mut self, text: &str) -> Vec<u8> {
        self.bytes(text.as_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Vec<u8> {
        let at = self.put(bytes);
        [at.to_le_bytes(), u32::try_from(bytes.len()).unwrap().to_le_bytes()].concat()
    }

    fn list(&mut self, items: &[Vec<u8>]) -> Vec<u8> {
        let at = self.put(&items.concat());
        [at.to_le_bytes(), u32::try_from(items.len()).unwrap().to_le_bytes()].concat()
    }

    fn function(&mut self, told: &Told) -> Vec<u8> {
        let overloads: Vec<Vec<u8>> = told
            .overloads
            .iter()
            .map(|(parameters, returns, state)| {
                let mut overload = self.fields(parameters);
                overload.extend([0; 4]);
                overload.extend(self.fields(returns));
                overload.extend(self.fields(state));
                overload
            })
            .collect();
        let mut function = self.text(&told.name);
        function.extend([told.kind, 0, 0, 0]);
        function.extend(self.list(&overloads));
        function.extend([told.volatility, told.nulls, 0, 0]);
        function.extend(1u32.to_le_bytes());
        function.extend([u8::from(told.retractable), 0, 0, 0]);
        function.extend(self.text("Does something."));
        function
    }

    fn fields(&mut self, types: &[Type]) -> Vec<u8> {
        let fields: Vec<Vec<u8>> = types.iter().map(|each| self.field(each)).collect();
        self.list(&fields)
    }

    fn field(&mut self, data_type: &Type) -> Vec<u8> {
        let mut field = self.text("x");
        let (case, mut payload) = match data_type {
            Type::Plain(case) => (*case, vec![]),
            Type::Timestamp(unit, None) => (9, vec![*unit, 0, 0, 0, 0, 0, 0, 0]),
            Type::Timestamp(unit, Some(zone)) => {
                let mut payload = vec![*unit, 0, 0, 0, 1, 0, 0, 0];
                payload.extend(self.text(zone));
                (9, payload)
            }
            Type::Duration(unit) => (10, vec![*unit]),
            Type::Arrow(schema) => (11, self.bytes(schema)),
        };
        payload.resize(16, 0);
        field.extend([case, 0, 0, 0]);
        field.extend(payload);
        field.extend([1, 0, 0, 0]);
        field
    }
}

/// Bytes as a data segment at an address.
pub fn data(at: u32, bytes: &[u8]) -> String {
    let mut text = format!("(data (i32.const {at}) \"");
    for byte in bytes {
        write!(text, "\\{byte:02x}").unwrap();
    }
    text + "\")"
}

/// What every fixture begins with: its memory, its allocator and its description. `describe`
/// and `start` are bodies of those two functions.
pub fn catalog(functions: &[Told], describe: &str, start: &str) -> String {
    let described = description(functions);
    assert!(described.len() < 60_000, "the description does not fit below the groups");
    format!(
        r#"
  (memory (export "memory") 64)
  (global $heap (mut i32) (i32.const 2097152))
  {data}
  (func $realloc (export "cabi_realloc")
      (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
    (local $at i32) (local $end i32)
    (local.set $at (i32.and
      (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
      (i32.sub (i32.const 0) (local.get $align))))
    (local.set $end (i32.add (local.get $at) (local.get $size)))
    (if (i32.gt_u (local.get $end) (i32.mul (memory.size) (i32.const 65536)))
      (then (if (i32.eq (i32.const -1) (memory.grow (i32.add (i32.const 1) (i32.div_u
          (i32.sub (local.get $end) (i32.mul (memory.size) (i32.const 65536)))
          (i32.const 65536)))))
        (then unreachable))))
    (global.set $heap (local.get $end))
    (local.get $at))
  (func $free (global.set $heap (i32.const 2097152)))
  (func (export "kymo:udf/catalog@0.1.0#describe") (result i32)
    {describe}
    (i32.const {DESCRIPTION}))
  (func (export "kymo:udf/catalog@0.1.0#start")
      (param $time i64) (param $zone i32) (param $zone_len i32) (param $seed i64)
      (param $settings i32) (param $settings_len i32) (result i32)
    {start}
    (i32.store8 (i32.const 256) (i32.const 0))
    (i32.const 256))
  (func (export "cabi_post_kymo:udf/catalog@0.1.0#start") (param i32) (call $free))
"#,
        data = data(DESCRIPTION, &described),
    )
}

/// A host in a folder of its own.
pub struct Bench {
    pub host: Arc<PluginHost>,
    pub folder: TempDir,
    pub settings: Plugins,
}

/// A host with settings of its own.
pub fn bench(change: impl FnOnce(&mut Plugins)) -> Bench {
    let mut settings = Plugins { preview: true, start_timeout_ms: 1000, ..Plugins::default() };
    change(&mut settings);
    let folder = tempfile::tempdir().unwrap();
    let host = start(&settings, folder.path());
    Bench { host, folder, settings }
}

/// A host over this folder.
pub fn start(settings: &Plugins, folder: &Path) -> Arc<PluginHost> {
    let compiler = Compiler::new(env!("CARGO_BIN_EXE_kymo-plugin-compile"), settings);
    PluginHost::start(settings, folder, real::env(), compiler).unwrap()
}

impl Bench {
    /// Loads and publishes a component.
    pub fn publish(&self, name: &str, wasm: &[u8]) -> Arc<PluginVersion> {
        let version = self.host.load(name, wasm, &LoadOptions::default()).unwrap();
        self.host.registry().publish(version.clone()).unwrap();
        version
    }

    /// A query without limits of its own.
    pub fn query(&self) -> Arc<QueryPlugins> {
        self.host.query(context(Budget::new(usize::MAX)))
    }
}

/// What a query passes.
pub fn context(memory: Arc<Budget>) -> QueryContext {
    QueryContext {
        cancel: Arc::new(AtomicBool::new(false)),
        deadline: None,
        time_ns: 1_700_000_000_000_000_000,
        timezone: "UTC".to_owned(),
        seed: 7,
        memory,
        usage: Arc::default(),
    }
}

/// A function of a version.
pub fn function(version: &Arc<PluginVersion>, name: &str) -> PluginFunction {
    PluginFunction::named(version, name).unwrap()
}

/// An account with so many bytes.
pub struct Budget {
    pub left: AtomicUsize,
}

impl Budget {
    pub fn new(bytes: usize) -> Arc<Budget> {
        Arc::new(Budget { left: AtomicUsize::new(bytes) })
    }

    pub fn left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }
}

impl MemoryAccount for Budget {
    fn try_grow(&self, bytes: usize) -> Result<()> {
        let take = |left: usize| left.checked_sub(bytes);
        let taken = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        taken.map(drop).map_err(|_| Error::new(Code::OutOfMemory, "the account is empty"))
    }

    fn shrink(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::SeqCst);
    }
}
