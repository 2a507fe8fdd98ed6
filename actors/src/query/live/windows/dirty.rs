//! The windows that have to be looked at again, as few ranges of their starts.

use std::collections::BTreeMap;

use kymo_kernel::ids::TimeRange;

/// Ranges that are remembered; with more, the two that are nearest to each other become one.
const MOST: usize = 1024;

/// Starts of windows that lie `step` apart; ranges ascend and do not touch.
#[derive(Debug)]
pub(super) struct Dirty {
    step: i64,
    /// First and last start.
    ranges: BTreeMap<i64, i64>,
}

impl Dirty {
    /// Nothing, of windows of a width.
    pub(super) fn new(step: i64) -> Self {
        Dirty { step, ranges: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, starts: TimeRange) {
        let TimeRange { mut first, mut last } = starts;
        if first > last {
            return;
        }
        let (low, high) = (first.saturating_sub(self.step), last.saturating_add(self.step));
        let touching = self.ranges.range(..=high).rev().take_while(|(_, end)| **end >= low);
        let touching: Vec<i64> = touching.map(|(start, _)| *start).collect();
        for start in touching {
            if let Some(end) = self.ranges.remove(&start) {
                first = first.min(start);
                last = last.max(end);
            }
        }
        self.ranges.insert(first, last);
        if self.ranges.len() > MOST {
            self.join_nearest();
        }
    }

    pub(super) fn remove(&mut self, starts: TimeRange) {
        let overlapping = self.ranges.range(..=starts.last).rev();
        let overlapping: Vec<(i64, i64)> = overlapping
            .take_while(|(_, end)| **end >= starts.first)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (first, last) in overlapping {
            self.ranges.remove(&first);
            if first < starts.first {
                self.ranges.insert(first, starts.first.saturating_sub(1));
            }
            if last > starts.last {
                self.ranges.insert(starts.last.saturating_add(1), last);
            }
        }
    }

    pub(super) fn ranges(&self) -> Vec<TimeRange> {
        self.ranges.iter().map(|(first, last)| TimeRange { first: *first, last: *last }).collect()
    }

    fn join_nearest(&mut self) {
        let starts = self.ranges.iter().zip(self.ranges.keys().skip(1));
        let nearest = starts.min_by_key(|((_, end), next)| next.saturating_sub(**end));
        let Some(((first, _), next)) = nearest.map(|((first, end), next)| ((*first, *end), *next))
        else {
            return;
        };
        if let Some(end) = self.ranges.remove(&next) {
            self.ranges.insert(first, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: i64, last: i64) -> TimeRange {
        TimeRange { first, last }
    }

    fn of(ranges: &[(i64, i64)]) -> Dirty {
        let mut dirty = Dirty::new(10);
        ranges.iter().for_each(|(first, last)| dirty.add(range(*first, *last)));
        dirty
    }

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(of(&[(0, 0), (20, 20)]).ranges(), [range(0, 0), range(20, 20)]);
        assert_eq!(of(&[(0, 0), (20, 20), (10, 10)]).ranges(), [range(0, 20)]);
        assert_eq!(of(&[(0, 50), (20, 30)]).ranges(), [range(0, 50)]);
        assert_eq!(of(&[(0, 0), (i64::MIN, i64::MAX)]).ranges(), [TimeRange::ALL]);
    }

    #[test]
    fn what_was_taken_is_cut_out() {
        let mut dirty = of(&[(0, 100), (200, 200)]);
        dirty.remove(range(40, 60));
        assert_eq!(dirty.ranges(), [range(0, 39), range(61, 100), range(200, 200)]);
        dirty.remove(TimeRange::ALL);
        assert!(dirty.ranges().is_empty());
        let mut dirty = of(&[(i64::MIN, i64::MAX)]);
        dirty.remove(range(0, 10));
        assert_eq!(dirty.ranges(), [range(i64::MIN, -1), range(11, i64::MAX)]);
    }

    #[test]
    fn too_many_ranges_lose_their_smallest_gaps() {
        let mut dirty = Dirty::new(1);
        for n in 0..=(MOST as i64) {
            let at = if n == 7 { n * 100 - 95 } else { n * 100 };
            dirty.add(range(at, at));
        }
        assert_eq!(dirty.ranges().len(), MOST);
        assert!(dirty.ranges().contains(&range(600, 605)), "{:?}", &dirty.ranges()[..9]);
    }
}
