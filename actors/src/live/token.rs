//! Where a subscription stands, as a text that a client hands back to go on from there.

use std::fmt;
use std::str::FromStr;

use kymo_kernel::ids::{Epoch, PartitionId, Position, Seq, TableId};
use kymo_kernel::{Code, Error, Result};

/// Everything up to a position of a table has been sent, and of the commit after it the first
/// rows, where one commit is sent in parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Token {
    /// The table.
    pub table: TableId,
    /// The commit.
    pub position: Position,
    /// How many times rows of the table had been deleted.
    pub deletions: u64,
    /// `None` where all of it was sent; else how many of its rows were looked at.
    pub rows: Option<u64>,
}

/// `table.partition.epoch.sequence.deletions`, and `.rows` for a part.
impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { partition, epoch, seq } = self.position;
        write!(out, "{}.{partition}.{epoch}.{seq}.{}", self.table, self.deletions)?;
        match self.rows {
            Some(rows) => write!(out, ".{rows}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Token> {
        let numbers: Option<Vec<u64>> =
            text.trim().splitn(7, '.').map(|part| part.parse().ok()).collect();
        let token = |table, partition: u64, epoch, seq, deletions, rows| {
            let partition = PartitionId(u16::try_from(partition).ok()?);
            let position = Position { partition, epoch: Epoch(epoch), seq: Seq(seq) };
            Some(Token { table: TableId(table), position, deletions, rows })
        };
        let read = match numbers.as_deref() {
            Some([table, partition, epoch, seq, deletions]) => {
                token(*table, *partition, *epoch, *seq, *deletions, None)
            }
            Some([table, partition, epoch, seq, deletions, rows]) => {
                token(*table, *partition, *epoch, *seq, *deletions, Some(*rows))
            }
            _ => None,
        };
        read.ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Error::new(Code::InvalidInput, format!("{shown:?} is no resume token"))
                .with_hint("send the token of the last event that was taken, or none")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_went() {
        let position = Position { partition: PartitionId(0), epoch: Epoch(3), seq: Seq(41) };
        for rows in [None, Some(8192)] {
            let token = Token { table: TableId(7), position, deletions: 2, rows };
            assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        }
        for text in [
            "",
            "7",
            "7.0.3",
            "7.0.3.1",
            "7.0.3.1.x",
            "7.0.3.1.0.2.3",
            "7.70000.3.1.0",
            "-1.0.3.1.0",
        ] {
            assert_eq!(text.parse::<Token>().unwrap_err().code(), Code::InvalidInput, "{text}");
        }
    }
}
