//! Which parts of a merge need no merging: row groups that no other input reaches into.
//!
//! Rows are sorted by series and time. Where all rows of a row group come before or after all
//! rows of every other input, nothing of it can be overwritten or stand between others, and it
//! can be copied as it is ([`SegmentWriter::copy`]). What is known of a row group without
//! decoding it are its first and last series, from the series index, and its earliest and
//! latest time, from its statistics.
//!
//! [`SegmentWriter::copy`]: crate::storage::segment::SegmentWriter::copy

use std::cmp::Ordering;
use std::ops::{ControlFlow, Range};

use crate::error::Result;
use crate::storage::segment::SegmentReader;

/// What a merge does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Merges these rows of each input.
    Merge(Vec<Range<u64>>),
    /// Copies a row group of an input.
    Copy {
        /// The place of the input.
        input: usize,
        /// The place of the row group in it.
        group: usize,
    },
}

/// Where a row group lies in the order of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Extent {
    first: Vec<u8>,
    last: Vec<u8>,
    /// The earliest and the latest time of all of its series.
    time: (i64, i64),
    rows: Range<u64>,
    /// Whether it may be copied as far as it is itself concerned.
    fits: bool,
}

impl Extent {
    /// Whether all of its rows are known to come before all of those of another.
    fn is_before(&self, other: &Extent) -> bool {
        self.last < other.first || (self.last == other.first && self.time.1 < other.time.0)
    }

    fn is_apart_from(&self, other: &Extent) -> bool {
        self.is_before(other) || other.is_before(self)
    }
}

/// What to do, in order, for all rows of some segments. `fits` says of the row groups of a
/// segment whether they may be copied.
///
/// # Errors
/// `corrupt` naming a segment whose series index does not verify, `io_error`.
pub(super) fn steps(
    inputs: &[SegmentReader],
    fits: &dyn Fn(&SegmentReader, usize) -> bool,
) -> Result<Vec<Step>> {
    let mut extents = Vec::with_capacity(inputs.len());
    for input in inputs {
        let groups = 0..input.parquet().num_row_groups();
        let fitting: Vec<bool> = groups.map(|group| fits(input, group)).collect();
        extents.push((input, fitting));
    }
    if !extents.iter().any(|(_, fitting)| fitting.contains(&true)) {
        let all = inputs.iter().map(|input| 0..input.meta().rows).collect();
        return Ok(vec![Step::Merge(all)]);
    }
    let extents = extents.into_iter().map(|(input, fitting)| extents_of(input, &fitting));
    Ok(in_order(&extents.collect::<Result<Vec<_>>>()?))
}

fn extents_of(input: &SegmentReader, fitting: &[bool]) -> Result<Vec<Extent>> {
    let mut extents: Vec<Extent> = Vec::with_capacity(fitting.len());
    let mut start = 0;
    for (group, fits) in input.parquet().row_groups().iter().zip(fitting) {
        let end = start + u64::try_from(group.num_rows()).unwrap_or_default();
        let time = input.time_of(extents.len());
        let fits = *fits && time.is_some();
        let time = time.map_or((i64::MIN, i64::MAX), |time| (time.first, time.last));
        let (first, last) = (Vec::new(), Vec::new());
        extents.push(Extent { first, last, time, rows: start..end, fits });
        start = end;
    }
    let mut at = 0;
    input.walk(&[], &mut |key, rows| {
        while let Some(extent) = extents.get_mut(at) {
            if rows.end <= extent.rows.start {
                break;
            }
            if rows.start <= extent.rows.start {
                extent.first = key.to_vec();
            }
            if rows.end < extent.rows.end {
                break;
            }
            extent.last = key.to_vec();
            at += 1;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(extents)
}

fn in_order(inputs: &[Vec<Extent>]) -> Vec<Step> {
    let mut copies: Vec<(usize, usize)> = Vec::new();
    for (input, extents) in inputs.iter().enumerate() {
        let others = || inputs.iter().enumerate().filter(move |(other, _)| *other != input);
        let alone = |extent: &Extent| {
            others().all(|(_, others)| others.iter().all(|other| extent.is_apart_from(other)))
        };
        let found = extents.iter().enumerate().filter(|(_, extent)| extent.fits && alone(extent));
        copies.extend(found.map(|(group, _)| (input, group)));
    }
    // Row groups that stand alone are before or after each other, those of one input by place.
    copies.sort_by(|(input, group), (other, number)| {
        if input == other {
            return group.cmp(number);
        }
        match inputs[*input][*group].is_before(&inputs[*other][*number]) {
            true => Ordering::Less,
            false => Ordering::Greater,
        }
    });
    let mut steps = Vec::new();
    let mut next = vec![0; inputs.len()];
    for (input, group) in copies {
        let before = |place: usize, extents: &Vec<Extent>| match place == input {
            true => group,
            false => extents.partition_point(|each| !inputs[input][group].is_before(each)),
        };
        let upto: Vec<usize> =
            inputs.iter().enumerate().map(|(place, extents)| before(place, extents)).collect();
        steps.extend(merge(inputs, &next, &upto));
        steps.push(Step::Copy { input, group });
        next = upto;
        next[input] = group + 1;
    }
    let ends: Vec<usize> = inputs.iter().map(Vec::len).collect();
    steps.extend(merge(inputs, &next, &ends));
    steps
}

/// The rows of the row groups between two places of each input; `None` where there are none.
fn merge(inputs: &[Vec<Extent>], from: &[usize], upto: &[usize]) -> Option<Step> {
    let rows = inputs.iter().zip(from.iter().zip(upto)).map(|(extents, (from, upto))| {
        let groups = extents.get(*from..*upto).unwrap_or_default();
        match (groups.first(), groups.last()) {
            (Some(first), Some(last)) => first.rows.start..last.rows.end,
            _ => 0..0,
        }
    });
    let rows: Vec<Range<u64>> = rows.collect();
    rows.iter().any(|rows| !rows.is_empty()).then_some(Step::Merge(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row groups of ten rows each, as the first and last series and the first and last time.
    fn input(groups: &[(&str, &str, i64, i64)]) -> Vec<Extent> {
        let extent = |(at, (first, last, from, to)): (usize, &(&str, &str, i64, i64))| Extent {
            first: first.as_bytes().to_vec(),
            last: last.as_bytes().to_vec(),
            time: (*from, *to),
            rows: at as u64 * 10..at as u64 * 10 + 10,
            fits: true,
        };
        groups.iter().enumerate().map(extent).collect()
    }

    fn copy(input: usize, group: usize) -> Step {
        Step::Copy { input, group }
    }

    #[test]
    fn series_of_their_own_are_copied_in_order() {
        let inputs = [input(&[("c", "d", 0, 9)]), input(&[("a", "b", 0, 9), ("e", "f", 0, 9)])];
        assert_eq!(in_order(&inputs), [copy(1, 0), copy(0, 0), copy(1, 1)]);
    }

    #[test]
    fn one_series_is_copied_by_time() {
        let inputs = [
            input(&[("a", "a", 0, 9), ("a", "a", 10, 19)]),
            input(&[("a", "a", 20, 29), ("a", "a", 30, 39)]),
            input(&[("a", "a", -9, -1)]),
        ];
        let order = [copy(2, 0), copy(0, 0), copy(0, 1), copy(1, 0), copy(1, 1)];
        assert_eq!(in_order(&inputs), order);
    }

    #[test]
    fn what_overlaps_is_merged_between_what_is_copied() {
        let inputs = [
            input(&[("a", "b", 0, 9), ("c", "c", 0, 9), ("x", "z", 0, 9)]),
            input(&[("c", "c", 9, 19), ("d", "e", 0, 9)]),
        ];
        assert_eq!(
            in_order(&inputs),
            [copy(0, 0), Step::Merge(vec![10..20, 0..10]), copy(1, 1), copy(0, 2)]
        );
    }

    #[test]
    fn rows_of_one_time_are_never_taken_for_apart() {
        let inputs = [input(&[("a", "a", 0, 9)]), input(&[("a", "a", 9, 19)])];
        assert_eq!(in_order(&inputs), [Step::Merge(vec![0..10, 0..10])]);
    }

    #[test]
    fn what_does_not_fit_is_merged_by_itself() {
        let mut first = input(&[("a", "b", 0, 9), ("b", "c", 0, 9)]);
        first[1].fits = false;
        let inputs = [first, input(&[("d", "e", 0, 9)])];
        assert_eq!(in_order(&inputs), [copy(0, 0), Step::Merge(vec![10..20, 0..0]), copy(1, 0)]);
    }

    #[test]
    fn one_input_alone_is_copied_whole() {
        let inputs = [input(&[("a", "b", 0, 9), ("b", "b", 3, 9)])];
        assert_eq!(in_order(&inputs), [copy(0, 0), copy(0, 1)]);
    }
}
