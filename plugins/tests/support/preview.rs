//! A plugin of the preview interfaces: a window function, table functions, of which some
//! misbehave, and a transform that misbehaves when a batch has certain numbers of rows.

use super::{FLOAT64, INT64, Told, UTF8, catalog, component};

/// A batch of so many rows makes the transform trap.
pub const TRAPS: usize = 13;
/// A batch of so many rows loses its last one.
pub const REJECTS: usize = 5;
/// A batch of so many rows is answered with a rejected row that it does not have.
pub const LIES: usize = 7;
/// A batch of so many rows makes the transform keep ten pages of memory.
pub const GROWS: usize = 11;

fn functions() -> Vec<Told> {
    let told = |name: &str, kind: u8| Told { kind, ..Told::scalar(name, &[INT64], INT64) };
    let mut transform = told("pass", 4);
    transform.overloads[0] = (vec![], vec![], vec![]);
    let mut overfull = told("overfull", 3);
    overfull.overloads[0].1 = vec![INT64];
    let mut peers = told("peers", 2);
    peers.overloads[0] = (vec![FLOAT64], vec![INT64], vec![]);
    peers.overloads.push((vec![UTF8, INT64], vec![INT64], vec![]));
    let mut numbers = told("numbers", 3);
    numbers.overloads.push((vec![INT64, UTF8], vec![INT64], vec![]));
    vec![peers, numbers, transform, overfull, told("stuck", 3), told("broken", 3)]
}

/// The component.
pub fn preview() -> Vec<u8> {
    let catalog = catalog(&functions(), "", "");
    component(
        "everything",
        &format!(
            r#"(module
  (import "[export]kymo:udf-preview/table@0.0.1" "[resource-new]cursor"
    (func $cursor (param i32) (result i32)))
  (import "[export]kymo:udf-preview/transform@0.0.1" "[resource-new]pipeline"
    (func $pipeline (param i32) (result i32)))
  {catalog}
  ;; The field x, a double that can be null.
  (data (i32.const 700) "x")
  (data (i32.const 704) "\bc\02\00\00\01\00\00\00\05")
  (data (i32.const 732) "\01")
  (data (i32.const 740) "too odd")

  (func $longs (param $at i32) (param $rows i32) (param $column i32)
    (i32.store8 (local.get $column) (i32.const 2))
    (i32.store offset=4 (local.get $column) (local.get $at))
    (i32.store offset=8 (local.get $column) (local.get $rows))
    (i32.store8 offset=20 (local.get $column) (i32.const 0)))
  (func $space (param $rows i32) (result i32)
    (call $realloc (i32.const 0) (i32.const 0) (i32.const 8)
      (i32.mul (local.get $rows) (i32.const 8))))

  (func (export "kymo:udf-preview/window@0.0.1#call")
      (param $function i32) (param $overload i32) (param $args i32) (param $count i32)
      (param $peers i32) (param $peers_len i32) (param $rows i32) (result i32)
    (local $to i32) (local $row i32)
    (local.set $to (call $space (local.get $rows)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $row) (local.get $rows)))
      (i64.store (i32.add (local.get $to) (i32.mul (local.get $row) (i32.const 8)))
        (i64.load32_u
          (i32.add (local.get $peers) (i32.mul (local.get $row) (i32.const 4)))))
      (local.set $row (i32.add (local.get $row) (i32.const 1)))
      (br $next)))
    (i32.store8 (i32.const 512) (i32.const 0))
    (call $longs (local.get $to) (local.get $rows) (i32.const 516))
    (i32.const 512))
  (func (export "cabi_post_kymo:udf-preview/window@0.0.1#call") (param i32) (call $free))

  (global $which (mut i32) (i32.const 0))
  (global $left (mut i64) (i64.const 0))
  (global $number (mut i64) (i64.const 0))
  (func (export "kymo:udf-preview/table@0.0.1#[static]cursor.open")
      (param $function i32) (param $overload i32) (param $args i32) (param $count i32)
      (result i32)
    (global.set $which (local.get $function))
    (global.set $left (i64.load (i32.load offset=4 (local.get $args))))
    (i32.store8 (i32.const 512) (i32.const 0))
    (i32.store (i32.const 516) (call $cursor (i32.const 1)))
    (i32.const 512))
  (func (export "kymo:udf-preview/table@0.0.1#[method]cursor.next")
      (param $self i32) (param $most i32) (result i32)
    (local $to i32) (local $row i32) (local $rows i32)
    (i32.store8 (i32.const 512) (i32.const 0))
    (i32.store8 (i32.const 516) (i32.const 0))
    (if (i32.eq (global.get $which) (i32.const 4)) (then (loop $on (br $on))))
    (if (i32.eq (global.get $which) (i32.const 5)) (then (unreachable)))
    (if (i64.eqz (global.get $left)) (then (return (i32.const 512))))
    (local.set $rows (local.get $most))
    (if (i64.lt_u (global.get $left) (i64.extend_i32_u (local.get $most)))
      (then (local.set $rows (i32.wrap_i64 (global.get $left)))))
    (if (i32.eq (global.get $which) (i32.const 3))
      (then (local.set $rows (i32.add (local.get $most) (i32.const 1)))))
    (local.set $to (call $space (local.get $rows)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $row) (local.get $rows)))
      (i64.store (i32.add (local.get $to) (i32.mul (local.get $row) (i32.const 8)))
        (global.get $number))
      (global.set $number (i64.add (global.get $number) (i64.const 1)))
      (local.set $row (i32.add (local.get $row) (i32.const 1)))
      (br $next)))
    (global.set $left (i64.sub (global.get $left) (i64.extend_i32_u (local.get $rows))))
    (i32.store8 (i32.const 516) (i32.const 1))
    (i32.store (i32.const 520) (local.get $rows))
    (i32.store (i32.const 524) (i32.const 560))
    (i32.store (i32.const 528) (i32.const 1))
    (call $longs (local.get $to) (local.get $rows) (i32.const 560))
    (i32.const 512))
  (func (export "cabi_post_kymo:udf-preview/table@0.0.1#[method]cursor.next") (param i32)
    (call $free))

  (func (export "kymo:udf-preview/transform@0.0.1#[static]pipeline.open")
      (param $function i32) (param $settings i32) (param $settings_len i32)
      (param $input i32) (param $input_len i32) (result i32)
    (i32.store8 (i32.const 512) (i32.const 0))
    (i32.store (i32.const 516) (call $pipeline (i32.const 1)))
    (i32.const 512))
  (func (export "kymo:udf-preview/transform@0.0.1#[method]pipeline.schema")
      (param $self i32) (result i32)
    (i32.store (i32.const 512) (i32.const 704))
    (i32.store (i32.const 516) (i32.const 1))
    (i32.const 512))
  (func (export "kymo:udf-preview/transform@0.0.1#[method]pipeline.apply")
      (param $self i32) (param $rows i32) (param $columns i32) (param $count i32) (result i32)
    (if (i32.eq (local.get $rows) (i32.const {TRAPS})) (then (unreachable)))
    (if (i32.eq (local.get $rows) (i32.const {GROWS}))
      (then (drop (memory.grow (i32.const 512)))))
    (i32.store8 (i32.const 512) (i32.const 0))
    (i32.store (i32.const 516) (local.get $rows))
    (i32.store (i32.const 520) (local.get $columns))
    (i32.store (i32.const 524) (local.get $count))
    (i32.store (i32.const 528) (i32.const 800))
    (i32.store (i32.const 532) (i32.const 0))
    (i32.store (i32.const 804) (i32.const 740))
    (i32.store (i32.const 808) (i32.const 7))
    (if (i32.eq (local.get $rows) (i32.const {LIES})) (then
      (i32.store (i32.const 800) (i32.const 99))
      (i32.store (i32.const 532) (i32.const 1))))
    (if (i32.eq (local.get $rows) (i32.const {REJECTS})) (then
      (i32.store (i32.const 800) (i32.const 4))
      (i32.store (i32.const 532) (i32.const 1))
      (i32.store (i32.const 516) (i32.const 4))
      (i32.store offset=8 (local.get $columns) (i32.const 4))))
    (i32.const 512))
  (func (export "cabi_post_kymo:udf-preview/transform@0.0.1#[method]pipeline.apply") (param i32)
    (call $free))
)"#
        ),
    )
}
