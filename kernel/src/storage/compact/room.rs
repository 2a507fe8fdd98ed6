//! How much memory a merge takes, and what follows from how much it may take: the number of its
//! inputs, the rows of a batch and the size of a row group.
//!
//! Half of the budget is for reading: of each input one page of each column, as it is stored and
//! as it is decoded, the dictionaries, a batch, and what is left of the batch before. The other
//! half is for the rows on their way and the row group that is being encoded. A merge of two
//! segments is never refused: where even that does not fit, batches are as small as is sensible.

use crate::storage::segment::SegmentReader;
use crate::storage::width::BATCH_BYTES;

/// Rows of a batch where there is room for them.
const BATCH_ROWS: usize = 8192;
/// Rows of a batch below which overhead would outweigh the rows, unless these are wide.
const FEWEST_ROWS: usize = 256;
/// Size of a batch beyond which it need not have that many rows.
const SMALL_BATCH: usize = 1 << 20;
/// Batches of an input in memory: the one that is merged, and the one before, of which rows are
/// on their way out.
const BATCHES: usize = 2;

/// What a merge may hold in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Rows of a batch.
    pub(super) batch_rows: usize,
    /// Size of an encoded row group.
    pub(super) group_bytes: usize,
}

/// What reading one input takes.
#[derive(Debug, Clone, Copy)]
struct Need {
    pages: usize,
    row: usize,
}

impl Need {
    fn of(reader: &SegmentReader) -> Need {
        Need { pages: reader.page_bytes(), row: reader.row_bytes() }
    }

    /// With batches of so many rows.
    fn bytes(&self, rows: usize) -> usize {
        self.pages + BATCHES * rows.saturating_mul(self.row).min(BATCH_BYTES)
    }

    fn least(&self) -> usize {
        self.bytes((SMALL_BATCH / self.row.max(1)).clamp(1, FEWEST_ROWS))
    }
}

/// How many of the first inputs fit into a budget: all, or at least two.
pub(super) fn fan_in(readers: &[SegmentReader], memory_bytes: usize) -> usize {
    fan_in_of(readers.iter().map(Need::of), memory_bytes / 2)
}

fn fan_in_of(needs: impl Iterator<Item = Need>, share: usize) -> usize {
    let mut total = 0usize;
    let fitting = needs.enumerate().take_while(|(at, need)| {
        total = total.saturating_add(need.least());
        *at < 2 || total <= share
    });
    fitting.count()
}

/// The room that each part of a merge gets.
pub(super) fn of(readers: &[SegmentReader], memory_bytes: usize) -> Room {
    let needs: Vec<Need> = readers.iter().map(Need::of).collect();
    let batch_rows = rows_of(&needs, memory_bytes / 2);
    Room { batch_rows, group_bytes: (memory_bytes / 4).max(SMALL_BATCH) }
}

/// The most rows of a batch, in halves, with which all inputs fit.
fn rows_of(needs: &[Need], share: usize) -> usize {
    let mut rows = BATCH_ROWS;
    while rows > 1 {
        let bytes = |need: &Need| need.bytes(rows);
        let enough = needs.iter().map(bytes).fold(0, usize::saturating_add) <= share;
        let small = needs.iter().all(|need| need.bytes(rows) <= need.least());
        if enough || small {
            break;
        }
        rows /= 2;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_small_budget_takes_fewer_inputs_but_never_less_than_two() {
        let needs = |count| std::iter::repeat_n(Need { pages: 4 * MIB, row: 100 }, count);
        assert_eq!(fan_in_of(needs(64), 1024 * MIB), 64);
        assert_eq!(fan_in_of(needs(64), 64 * MIB), 15);
        assert_eq!(fan_in_of(needs(64), MIB), 2);
        assert_eq!(fan_in_of(needs(1), MIB), 1);
    }

    #[test]
    fn batches_shrink_with_wide_rows_and_many_inputs() {
        let needs = |count, row| vec![Need { pages: MIB, row }; count];
        assert_eq!(rows_of(&needs(4, 100), 128 * MIB), 8192);
        assert_eq!(rows_of(&needs(64, 1000), 128 * MIB), 512);
        assert_eq!(rows_of(&needs(64, 1000), MIB), 256, "no smaller than is sensible");
        assert_eq!(rows_of(&needs(4, MIB), 32 * MIB), 2);
    }
}
