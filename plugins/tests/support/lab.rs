//! The laboratory: one plugin that does a few useful things, and, asked for it, everything
//! that a plugin must not do.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::writer::StreamWriter;

use super::{
    BINARY, BOOLEAN, DATE32, FLOAT32, FLOAT64, INT32, INT64, Told, Type, UINT64, UTF8, catalog,
    component,
};

/// Ways to misbehave of `evil(int64) -> float64`, by the number in the first row: a name, and
/// what is done with `$rows`. Each ends in a result or does not end at all.
const EVIL: [(&str, &str); 24] = [
    ("loop", "(loop $for_ever (br $for_ever)) (unreachable)"),
    ("trap", "(unreachable)"),
    ("recurse", "(return (call $deeper (i32.const 0)))"),
    (
        "hoard",
        "(block $full (loop $more (br_if $full (i32.eq (i32.const -1) (memory.grow (i32.const 16)))) (br $more))) (return (call $floats (local.get $rows)))",
    ),
    (
        "hoard and trap",
        "(loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) (unreachable)",
    ),
    ("one row more", "(return (call $floats (i32.add (local.get $rows) (i32.const 1))))"),
    ("one row less", "(return (call $floats (i32.sub (local.get $rows) (i32.const 1))))"),
    ("no rows", "(return (call $floats (i32.const 0)))"),
    (
        "two billion rows",
        "(return (call $ok (i32.const 5) (i32.const 65536) (i32.const -2147483648)))",
    ),
    ("out of bounds", "(return (call $ok (i32.const 5) (i32.const -65536) (local.get $rows)))"),
    ("unaligned", "(return (call $ok (i32.const 5) (i32.const 65537) (local.get $rows)))"),
    ("wrong case", "(return (call $ok (i32.const 2) (i32.const 65536) (local.get $rows)))"),
    ("no such case", "(return (call $ok (i32.const 99) (i32.const 65536) (local.get $rows)))"),
    (
        "short validity",
        "(drop (call $floats (local.get $rows))) (return (call $validity (i32.const 65536) (i32.const 0)))",
    ),
    ("result out of memory", "(return (i32.const -16))"),
    (
        "neither ok nor error",
        "(drop (call $floats (local.get $rows))) (i32.store8 (i32.const 512) (i32.const 7)) (return (i32.const 512))",
    ),
    (
        "bad error text",
        "(i32.store8 (i32.const 65536) (i32.const 255)) (return (call $error (i32.const 0) (i32.const 65536) (i32.const 1)))",
    ),
    (
        "endless error text",
        "(drop (memory.grow (i32.const 64))) (memory.fill (i32.const 2097152) (i32.const 120) (i32.const 6000000)) (return (call $error (i32.const 0) (i32.const 2097152) (i32.const 6000000)))",
    ),
    (
        "more than fuel",
        "(drop (memory.grow (i32.const 512))) (return (call $ok (i32.const 5) (i32.const 65536) (i32.const 4000000)))",
    ),
    ("flood the log", "(call $flood) (return (call $floats (local.get $rows)))"),
    ("log out of bounds", "(call $log (i32.const 0) (i32.const -8) (i32.const 100)) (unreachable)"),
    ("exhausted", "(return (call $error (i32.const 3) (i32.const 600) (i32.const 7)))"),
    ("say and trap", "(call $log (i32.const 3) (i32.const 600) (i32.const 7)) (unreachable)"),
    ("fine", "(return (call $floats (local.get $rows)))"),
];

/// The number of a way to misbehave.
pub fn evil(name: &str) -> i64 {
    let found = EVIL.iter().position(|(each, _)| *each == name);
    i64::try_from(found.unwrap_or_else(|| panic!("no way called {name}"))).unwrap()
}

/// Ways of `evil_text(int64) -> utf8` to lie: offsets and data of a column of two rows.
pub const TEXTS: [(&str, [u32; 4], usize, &[u8]); 8] = [
    ("falling", [0, 3, 1, 0], 3, b"abc"),
    ("not from 0", [1, 2, 3, 0], 3, b"abc"),
    ("past the data", [0, 1, 9, 0], 3, b"abc"),
    ("no UTF-8", [0, 1, 2, 0], 3, b"a\xff"),
    ("within a letter", [0, 1, 2, 0], 3, "é".as_bytes()),
    ("an offset short", [0, 1, 0, 0], 2, b"abc"),
    ("an offset more", [0, 1, 2, 3], 4, b"abc"),
    ("huge", [0, 1, 0x8000_0000, 0], 3, b"abc"),
];

/// The type of `list<int32>`.
pub fn list_type() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Int32, true)))
}

/// A schema message of one field.
pub fn schema_message(data_type: DataType) -> Vec<u8> {
    let schema = Schema::new(vec![Field::new("x", data_type, true)]);
    let writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
    writer.get_ref().clone()
}

/// The overloads of `echo`, which hands its argument back.
pub fn echo_types() -> Vec<Type> {
    vec![
        BOOLEAN,
        INT32,
        INT64,
        UINT64,
        FLOAT32,
        FLOAT64,
        UTF8,
        BINARY,
        DATE32,
        Type::Timestamp(3, None),
        Type::Timestamp(1, Some("UTC")),
        Type::Duration(2),
        Type::Arrow(schema_message(list_type())),
    ]
}

pub fn functions() -> Vec<Told> {
    let mut echo = Told::scalar("echo", &[INT64], INT64).passing_nulls();
    echo.overloads =
        echo_types().into_iter().map(|each| (vec![each.clone()], vec![each], vec![])).collect();
    let mut total = Told::scalar("total", &[FLOAT64], FLOAT64);
    total.kind = 1;
    total.overloads[0].2 = vec![FLOAT64];
    total.retractable = true;
    vec![
        Told::scalar("c2f", &[FLOAT64], FLOAT64),
        Told::scalar("length", &[UTF8], INT64),
        echo,
        Told::scalar("evil", &[INT64], FLOAT64).passing_nulls().volatile(),
        Told::scalar("evil_text", &[INT64], UTF8).passing_nulls().volatile(),
        total,
        Told::scalar("evil_frame", &[INT64], Type::Arrow(schema_message(list_type())))
            .passing_nulls(),
    ]
}

/// The component.
pub fn lab() -> Vec<u8> {
    component("plugin", &text(1.8))
}

/// The same with another factor in `c2f`: another version.
pub fn lab_with_factor(factor: f64) -> Vec<u8> {
    component("plugin", &text(factor))
}

fn cases(selector: &str, bodies: impl Iterator<Item = String>) -> String {
    bodies
        .enumerate()
        .map(|(number, body)| {
            format!("(if (i32.eq (local.get {selector}) (i32.const {number})) (then {body}))\n")
        })
        .collect()
}

fn texts() -> String {
    let body = |(_, offsets, count, bytes): &(&str, [u32; 4], usize, &[u8])| {
        let mut body = String::new();
        for (index, offset) in offsets.iter().enumerate() {
            let at = 65536 + 4 * index;
            body += &format!("(i32.store (i32.const {at}) (i32.const {offset}))");
        }
        for (index, byte) in bytes.iter().enumerate() {
            let at = 65600 + index;
            body += &format!("(i32.store8 (i32.const {at}) (i32.const {byte}))");
        }
        format!("{body} (return (call $text (i32.const {count}) (i32.const {})))", bytes.len())
    };
    cases("$mode", TEXTS.iter().map(body))
}

/// Nothing that `evil_frame` hands back is an Arrow message: its memory as it lies, with a
/// plausible head in front.
fn frames() -> String {
    let head = "(i32.store (i32.const 65536) (i32.const -1))";
    let lengths = [0i32, 8, 64, 1024, -1, i32::MIN, i32::MAX];
    let body = |length: &i32| {
        format!(
            "{head} (i32.store (i32.const 65540) (i32.const {length})) \
             (return (call $ok (i32.const 7) (i32.const 65536) (i32.const 4096)))"
        )
    };
    cases("$mode", lengths.iter().map(body))
}

pub const FRAMES: i64 = 7;

pub fn text(factor: f64) -> String {
    let catalog = catalog(&functions(), "", "");
    let evil = cases("$mode", EVIL.iter().map(|(_, body)| (*body).to_owned()));
    let texts = texts();
    let frames = frames();
    format!(
        r#"(module
  (import "kymo:udf/host@0.1.0" "log" (func $log (param i32 i32 i32)))
  (import "[export]kymo:udf/aggregate@0.1.0" "[resource-new]accumulator"
    (func $new (param i32) (result i32)))
  {catalog}
  (data (i32.const 600) "I am so")

  ;; The result at 512: values of this kind, no validity.
  (func $ok (param $kind i32) (param $at i32) (param $length i32) (result i32)
    (i32.store8 (i32.const 512) (i32.const 0))
    (i32.store8 (i32.const 516) (local.get $kind))
    (i32.store (i32.const 520) (local.get $at))
    (i32.store (i32.const 524) (local.get $length))
    (i32.store8 (i32.const 536) (i32.const 0))
    (i32.const 512))
  (func $validity (param $at i32) (param $length i32) (result i32)
    (i32.store8 (i32.const 536) (i32.const 1))
    (i32.store (i32.const 540) (local.get $at))
    (i32.store (i32.const 544) (local.get $length))
    (i32.const 512))
  (func $error (param $code i32) (param $at i32) (param $length i32) (result i32)
    (i32.store8 (i32.const 512) (i32.const 1))
    (i32.store8 (i32.const 516) (local.get $code))
    (i32.store (i32.const 520) (local.get $at))
    (i32.store (i32.const 524) (local.get $length))
    (i32.store8 (i32.const 528) (i32.const 1))
    (i32.store (i32.const 532) (i32.const 3))
    (i32.const 512))
  (func $text (param $offsets i32) (param $bytes i32) (result i32)
    (drop (call $ok (i32.const 6) (i32.const 65536) (local.get $offsets)))
    (i32.store (i32.const 528) (i32.const 65600))
    (i32.store (i32.const 532) (local.get $bytes))
    (i32.const 512))
  (func $floats (param $rows i32) (result i32)
    (call $ok (i32.const 5)
      (call $realloc (i32.const 0) (i32.const 0) (i32.const 8)
        (i32.mul (local.get $rows) (i32.const 8)))
      (local.get $rows)))
  (func $deeper (param $depth i32) (result i32)
    (i32.add (i32.const 1) (call $deeper (i32.add (local.get $depth) (i32.const 1)))))
  (func $flood (local $line i32)
    (loop $more
      (call $log (i32.const 1) (i32.const 600) (i32.const 7))
      (local.set $line (i32.add (local.get $line) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $line) (i32.const 1000)))))

  (func $c2f (param $from i32) (param $constant i32) (param $rows i32) (result i32)
    (local $to i32) (local $row i32) (local $stride i32)
    (local.set $stride (select (i32.const 0) (i32.const 8) (local.get $constant)))
    (local.set $to (call $realloc (i32.const 0) (i32.const 0) (i32.const 8)
      (i32.mul (local.get $rows) (i32.const 8))))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $row) (local.get $rows)))
      (f64.store (i32.add (local.get $to) (i32.mul (local.get $row) (i32.const 8)))
        (f64.add (f64.const 32) (f64.mul (f64.const {factor})
          (f64.load (i32.add (local.get $from)
            (i32.mul (local.get $row) (local.get $stride)))))))
      (local.set $row (i32.add (local.get $row) (i32.const 1)))
      (br $next)))
    (call $ok (i32.const 5) (local.get $to) (local.get $rows)))

  (func $length (param $offsets i32) (param $rows i32) (result i32)
    (local $to i32) (local $row i32) (local $at i32)
    (local.set $to (call $realloc (i32.const 0) (i32.const 0) (i32.const 8)
      (i32.mul (local.get $rows) (i32.const 8))))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $row) (local.get $rows)))
      (local.set $at (i32.add (local.get $offsets) (i32.mul (local.get $row) (i32.const 4))))
      (i64.store (i32.add (local.get $to) (i32.mul (local.get $row) (i32.const 8)))
        (i64.extend_i32_u (i32.sub (i32.load offset=4 (local.get $at))
          (i32.load (local.get $at)))))
      (local.set $row (i32.add (local.get $row) (i32.const 1)))
      (br $next)))
    (call $ok (i32.const 2) (local.get $to) (local.get $rows)))

  (func $evil (param $mode i32) (param $rows i32) (result i32) {evil} (unreachable))
  (func $evil_text (param $mode i32) (result i32) {texts} (unreachable))
  (func $evil_frame (param $mode i32) (result i32) {frames} (unreachable))

  (func (export "kymo:udf/scalar@0.1.0#call")
      (param $function i32) (param $overload i32) (param $args i32) (param $count i32)
      (param $rows i32) (result i32)
    (local $first i32)
    (local.set $first (i32.load offset=8 (local.get $args)))
    (if (i32.eq (local.get $function) (i32.const 0))
      (then (return (call $c2f (local.get $first) (i32.load8_u (local.get $args))
        (local.get $rows)))))
    (if (i32.eq (local.get $function) (i32.const 1))
      (then (return (call $length (local.get $first) (local.get $rows)))))
    (if (i32.eq (local.get $function) (i32.const 2))
      (then
        (i32.store8 (i32.const 512) (i32.const 0))
        (memory.copy (i32.const 516) (i32.add (local.get $args) (i32.const 4)) (i32.const 32))
        (return (i32.const 512))))
    (if (i32.eq (local.get $function) (i32.const 3))
      (then (return (call $evil (i32.load (local.get $first)) (local.get $rows)))))
    (if (i32.eq (local.get $function) (i32.const 4))
      (then (return (call $evil_text (i32.load (local.get $first))))))
    (if (i32.eq (local.get $function) (i32.const 6))
      (then (return (call $evil_frame (i32.load (local.get $first))))))
    (unreachable))
  (func (export "cabi_post_kymo:udf/scalar@0.1.0#call") (param i32) (call $free))

  ;; One accumulator an instance: a sum a group, from 131072 on.
  (global $groups (mut i32) (i32.const 0))
  (func $slot (param $group i32) (result i32)
    (i32.add (i32.const 131072) (i32.mul (local.get $group) (i32.const 8))))
  (func (export "kymo:udf/aggregate@0.1.0#[static]accumulator.open")
      (param $function i32) (param $overload i32) (result i32)
    (i32.store8 (i32.const 512) (i32.const 0))
    (i32.store (i32.const 516) (call $new (i32.const 1)))
    (i32.const 512))
  (func $add (param $columns i32) (param $grouped i32) (param $ids i32) (param $rows i32)
      (param $sign f64)
    (local $row i32) (local $from i32) (local $slot i32) (local $value f64)
    (local.set $from (i32.load offset=4 (local.get $columns)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $row) (local.get $rows)))
      (local.set $slot (call $slot (i32.const 0)))
      (if (local.get $grouped) (then (local.set $slot (call $slot
        (i32.load (i32.add (local.get $ids) (i32.mul (local.get $row) (i32.const 4))))))))
      (local.set $value
        (f64.load (i32.add (local.get $from) (i32.mul (local.get $row) (i32.const 8)))))
      (if (f64.eq (local.get $value) (f64.const 666)) (then (unreachable)))
      (f64.store (local.get $slot) (f64.add (f64.load (local.get $slot))
        (f64.mul (local.get $sign) (local.get $value))))
      (local.set $row (i32.add (local.get $row) (i32.const 1)))
      (br $next))))
  (func $done (result i32) (i32.store8 (i32.const 512) (i32.const 0)) (i32.const 512))
  (func (export "kymo:udf/aggregate@0.1.0#[method]accumulator.update")
      (param $self i32) (param $columns i32) (param $count i32) (param $grouped i32)
      (param $ids i32) (param $ids_len i32) (param $total i32) (param $rows i32) (result i32)
    (global.set $groups (local.get $total))
    (call $add (local.get $columns) (local.get $grouped) (local.get $ids) (local.get $rows)
      (f64.const 1))
    (call $done))
  (func (export "kymo:udf/aggregate@0.1.0#[method]accumulator.merge")
      (param $self i32) (param $columns i32) (param $count i32) (param $grouped i32)
      (param $ids i32) (param $ids_len i32) (param $total i32) (param $rows i32) (result i32)
    (global.set $groups (local.get $total))
    (call $add (local.get $columns) (local.get $grouped) (local.get $ids) (local.get $rows)
      (f64.const 1))
    (call $done))
  (func (export "kymo:udf/aggregate@0.1.0#[method]accumulator.retract")
      (param $self i32) (param $columns i32) (param $count i32) (param $grouped i32)
      (param $ids i32) (param $ids_len i32) (param $rows i32) (result i32)
    (call $add (local.get $columns) (local.get $grouped) (local.get $ids) (local.get $rows)
      (f64.const -1))
    (call $done))
  (func $emit (param $first i32) (param $count i32) (result i32)
    (local $to i32) (local $left i32)
    (if (i32.eqz (local.get $first)) (then (local.set $count (global.get $groups))))
    (local.set $left (i32.sub (global.get $groups) (local.get $count)))
    (local.set $to (call $realloc (i32.const 0) (i32.const 0) (i32.const 8)
      (i32.mul (local.get $count) (i32.const 8))))
    (memory.copy (local.get $to) (call $slot (i32.const 0))
      (i32.mul (local.get $count) (i32.const 8)))
    (memory.copy (call $slot (i32.const 0)) (call $slot (local.get $count))
      (i32.mul (local.get $left) (i32.const 8)))
    (memory.fill (call $slot (local.get $left)) (i32.const 0)
      (i32.mul (local.get $count) (i32.const 8)))
    (global.set $groups (local.get $left))
    (call $ok (i32.const 5) (local.get $to) (local.get $count)))
  (func (export "kymo:udf/aggregate@0.1.0#[method]accumulator.state")
      (param $self i32) (param $first i32) (param $count i32) (result i32)
    (drop (call $emit (local.get $first) (local.get $count)))
    (i32.store8 (i32.const 640) (i32.const 0))
    (i32.store (i32.const 644) (i32.const 516))
    (i32.store (i32.const 648) (i32.const 1))
    (i32.const 640))
  (func (export "kymo:udf/aggregate@0.1.0#[method]accumulator.evaluate")
      (param $self i32) (param $first i32) (param $count i32) (result i32)
    (call $emit (local.get $first) (local.get $count)))
  (func (export "kymo:udf/aggregate@0.1.0#[method]accumulator.size")
      (param $self i32) (result i64)
    (i64.extend_i32_u (i32.mul (global.get $groups) (i32.const 8))))
  (func (export "cabi_post_kymo:udf/aggregate@0.1.0#[method]accumulator.update") (param i32)
    (call $free))
  (func (export "cabi_post_kymo:udf/aggregate@0.1.0#[method]accumulator.merge") (param i32)
    (call $free))
  (func (export "cabi_post_kymo:udf/aggregate@0.1.0#[method]accumulator.retract") (param i32)
    (call $free))
  (func (export "cabi_post_kymo:udf/aggregate@0.1.0#[method]accumulator.state") (param i32)
    (call $free))
  (func (export "cabi_post_kymo:udf/aggregate@0.1.0#[method]accumulator.evaluate") (param i32)
    (call $free))
)"#
    )
}
