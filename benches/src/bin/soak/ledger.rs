//! What must be in the table: for each second and region the number of rows that were
//! acknowledged and the sum of their numbers.
//!
//! A row's number grows when it is overwritten, so the sum tells a lost overwrite from one that
//! came. Seconds that nobody writes to any more can be compared exactly.

use std::collections::BTreeMap;

/// Regions that rows come from.
pub const REGIONS: usize = 4;

/// Rows of one second and region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Rows.
    pub rows: i64,
    /// The sum of their numbers.
    pub numbers: i64,
}

/// All seconds that are not expired yet.
#[derive(Debug, Default)]
pub struct Ledger {
    seconds: BTreeMap<i64, [Sum; REGIONS]>,
}

impl Ledger {
    /// Takes in what a request changed, once it was acknowledged.
    pub fn add(&mut self, changes: &[(i64, usize, Sum)]) {
        for (second, region, change) in changes {
            let sum = &mut self.seconds.entry(*second).or_default()[*region];
            sum.rows += change.rows;
            sum.numbers += change.numbers;
        }
    }

    /// What must be there of a second, by region; `None` where nothing was ever written.
    pub fn at(&self, second: i64) -> Option<[Sum; REGIONS]> {
        self.seconds.get(&second).copied()
    }

    /// Notes that the rows of a second and region were deleted; how many those must have been.
    pub fn delete(&mut self, second: i64, region: usize) -> i64 {
        self.seconds.get_mut(&second).map_or(0, |sums| std::mem::take(&mut sums[region]).rows)
    }

    /// Forgets seconds before this one.
    pub fn forget(&mut self, before: i64) {
        self.seconds = self.seconds.split_off(&before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overwrite_counts_once_and_a_deletion_takes_its_region_only() {
        let mut ledger = Ledger::default();
        ledger.add(&[(5, 0, Sum { rows: 1, numbers: 7 }), (5, 1, Sum { rows: 1, numbers: 3 })]);
        ledger.add(&[(5, 0, Sum { rows: 0, numbers: 2 })]);
        assert_eq!(ledger.at(5).unwrap()[0], Sum { rows: 1, numbers: 9 });
        assert_eq!(ledger.delete(5, 0), 1);
        assert_eq!(ledger.at(5).unwrap()[0], Sum::default());
        assert_eq!(ledger.at(5).unwrap()[1], Sum { rows: 1, numbers: 3 });
        ledger.forget(6);
        assert_eq!(ledger.at(5), None);
    }
}
