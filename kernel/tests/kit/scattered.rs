//! Values that do not compress, for what is bounded in bytes.

use super::table::Table;

/// A value by its time.
pub fn scatter(time: i64) -> i64 {
    let mixed = (time ^ (time << 17)).wrapping_mul(0x1e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0x3f58_476d_1ce4_e5b9)
}

impl Table {
    /// From now on with such values.
    pub fn scattered(self) -> Table {
        Table { value: scatter, ..self }
    }
}
