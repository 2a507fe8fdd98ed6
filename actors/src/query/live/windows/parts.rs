//! The states of an aggregate function of a plugin for the groups of a window, as the plugin
//! handed them out: it is asked for each commit, and holds nothing in between.
//!
//! Each commit adds the states of the groups that it has rows of. They are merged when they are
//! asked for, and once they are many, so that a commit costs what its own rows do.

use std::collections::HashMap;

use datafusion::arrow::array::{Array, ArrayRef, BooleanArray};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use kymo_kernel::Result;

use super::shape::Call;
use crate::query::error::from_engine;

/// Parts that are kept apart; more are merged.
const MOST_PARTS: usize = 64;

/// The states.
#[derive(Default)]
pub(super) struct Parts {
    parts: Vec<Part>,
}

/// The states of some groups, one row each.
struct Part {
    groups: Vec<usize>,
    states: Vec<ArrayRef>,
}

impl Parts {
    /// Adds rows; `groups` has the group of each, `total` is how many there are.
    ///
    /// # Errors
    /// Those of the function.
    pub(super) fn add(
        &mut self,
        call: &Call,
        (arguments, filter): (&[ArrayRef], Option<&BooleanArray>),
        groups: &[usize],
        total: usize,
    ) -> Result<()> {
        let (groups, local) = renumbered(groups);
        let mut fresh = call.accumulator()?;
        fresh.update_batch(arguments, &local, filter, groups.len()).map_err(from_engine)?;
        let states = fresh.state(EmitTo::All).map_err(from_engine)?;
        self.parts.push(Part { groups, states });
        if self.parts.len() > MOST_PARTS { self.join(call, total) } else { Ok(()) }
    }

    /// The value of each group.
    ///
    /// # Errors
    /// Those of the function.
    pub(super) fn values(&mut self, call: &Call, total: usize) -> Result<ArrayRef> {
        if self.parts.len() > 1 {
            self.join(call, total)?;
        }
        self.merged(call, total)?.evaluate(EmitTo::All).map_err(from_engine)
    }

    /// Makes one part of all.
    fn join(&mut self, call: &Call, total: usize) -> Result<()> {
        let states = self.merged(call, total)?.state(EmitTo::All).map_err(from_engine)?;
        self.parts = vec![Part { groups: (0..total).collect(), states }];
        Ok(())
    }

    fn merged(&self, call: &Call, total: usize) -> Result<Box<dyn GroupsAccumulator>> {
        let mut merged = call.accumulator()?;
        for part in &self.parts {
            merged.merge_batch(&part.states, &part.groups, total).map_err(from_engine)?;
        }
        Ok(merged)
    }

    pub(super) fn bytes(&self) -> usize {
        let part = |part: &Part| {
            let states: usize = part.states.iter().map(|each| each.get_array_memory_size()).sum();
            states + part.groups.capacity() * size_of::<usize>() + size_of::<Part>()
        };
        self.parts.iter().map(part).sum()
    }
}

/// The groups that rows have, each once, and the place of each row's group among them.
fn renumbered(groups: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let (mut places, mut found) = (HashMap::new(), Vec::new());
    let place = |group: &usize| {
        *places.entry(*group).or_insert_with(|| {
            found.push(*group);
            found.len() - 1
        })
    };
    let local = groups.iter().map(place).collect();
    (found, local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_numbered_as_they_appear() {
        assert_eq!(renumbered(&[7, 2, 7, 0, 2]), (vec![7, 2, 0], vec![0, 1, 0, 2, 1]));
        assert_eq!(renumbered(&[]), (vec![], vec![]));
    }
}
