//! Rows of one table read back from the log: for followers that could not keep up.
//!
//! The log keeps rows until they are in segments, so it has what was written in the last
//! minutes. What it gives is whole or nothing: its sequence has no gap (W3), so a file that
//! begins at or before the first missing record, together with all that follow it, holds
//! every record up to one that is known to be written.

use crate::error::{Code, Error, Result};
use crate::ids::{PartitionId, Position, TableId};
use crate::storage::Store;
use crate::storage::frame::FileReader;
use crate::storage::journal::local::list;
use crate::storage::log::{Record, StoredGroup};

/// Records of one table with their positions, in order.
pub type Missed = Vec<(Position, Record)>;

impl Store {
    /// The records of a table after `after` up to `upto`, the position of a record that is
    /// visible. `None` where the log does not have all of them any more, or not yet, or where
    /// they take more than `most` bytes. Blocks on the disk.
    ///
    /// # Errors
    /// I/O errors, and `corrupt` where the log does not verify.
    pub fn missed(
        &self,
        table: TableId,
        after: Position,
        upto: Position,
        most: u64,
    ) -> Result<Option<Missed>> {
        let dir = self.root.join("wal").join(PartitionId::ONLY.to_string());
        let known = self.log_files.all();
        let mut search = Search { table, after, upto, most, covered: false, found: Vec::new() };
        for (number, path) in list(&self.env, &dir)? {
            // Files that end before it need not be read, but the next one continues them.
            if known.iter().any(|info| info.number == number && info.last <= after) {
                search.covered = true;
                continue;
            }
            let file = match self.env.disk.open(&path) {
                Ok(file) => file,
                // It was let go in this very moment.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => {
                    let what = format_args!("open log file {}", path.display());
                    return Err(Error::io(what, error));
                }
            };
            let mut reader = FileReader::open(path, file, None)?;
            let Some(header) = reader.header() else { break };
            search.covered |=
                header.epoch == after.epoch && header.first.0 <= after.seq.0.saturating_add(1);
            if !search.covered {
                return Ok(None);
            }
            while let Some(group) = reader.next_group()? {
                match search.take(group) {
                    Step::More => {}
                    Step::Done => return Ok(Some(search.found)),
                    Step::TooMuch => return Ok(None),
                }
            }
        }
        // A write that is answered before it is written may be on its way still.
        Ok(None)
    }
}

/// What is looked for, and what was found of it.
struct Search {
    table: TableId,
    after: Position,
    upto: Position,
    /// Bytes that may still be taken.
    most: u64,
    covered: bool,
    found: Missed,
}

enum Step {
    More,
    Done,
    TooMuch,
}

impl Search {
    fn take(&mut self, group: StoredGroup) -> Step {
        for (position, record) in group {
            // Recovery copies the end of a file into the next one.
            let new = self.found.last().is_none_or(|(last, _)| position > *last);
            if record.table == self.table && position > self.after && new {
                let bytes = u64::from(record.raw_len);
                let Some(left) = self.most.checked_sub(bytes) else { return Step::TooMuch };
                self.most = left;
                self.found.push((position, record));
            }
            if position >= self.upto {
                return Step::Done;
            }
        }
        Step::More
    }
}

/// Whether an error of reading back only means that the rows have to come from elsewhere.
#[must_use]
pub fn read_elsewhere(error: &Error) -> bool {
    matches!(error.code(), Code::Io | Code::Corrupt | Code::Unsupported)
}
