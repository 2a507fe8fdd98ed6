//! Finds where series begin and end in a sorted batch, and encodes each one's key once.

use std::ops::Range;

use arrow::array::{Array, RecordBatch};

use crate::error::Result;
use crate::schema::TableSchema;
use crate::storage::interner::{TagArray, as_tag, tag_values};
use crate::storage::key;

/// The series of a sorted batch, in order, each with its rows.
#[derive(Debug, Default)]
pub struct SeriesRuns {
    keys: Vec<u8>,
    /// For each run the end of its key in `keys` and the row after its last.
    ends: Vec<(usize, usize)>,
}

impl SeriesRuns {
    /// Looks through a sorted batch that holds the tag columns of the table; tags that it
    /// lacks are NULL.
    ///
    /// # Errors
    /// `internal` where a tag column has another type.
    pub fn of(schema: &TableSchema, batch: &RecordBatch) -> Result<SeriesRuns> {
        let rows = batch.num_rows();
        let tags = tag_columns(schema, batch)?;
        let mut starts = vec![false; rows];
        for tag in tags.iter().flatten() {
            mark_changes(tag, &mut starts);
        }
        let mut runs = SeriesRuns::default();
        let mut scratch = Vec::new();
        let mut next = 0;
        while next < rows {
            let change = starts[next + 1..].iter().position(|change| *change);
            let end = change.map_or(rows, |after| next + 1 + after);
            scratch.clear();
            encode_row(&tags, next, &mut scratch)?;
            runs.push(&scratch, end);
            next = end;
        }
        Ok(runs)
    }

    fn push(&mut self, key: &[u8], end: usize) {
        // Two codes of a dictionary may hold one text; they are one series all the same.
        if let Some(last) = self.len().checked_sub(1)
            && self.key(last) == key
        {
            self.ends[last].1 = end;
            return;
        }
        self.keys.extend_from_slice(key);
        self.ends.push((self.keys.len(), end));
    }

    /// How many series there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none, as in an empty batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The key of a run.
    #[must_use]
    pub fn key(&self, run: usize) -> &[u8] {
        let start = run.checked_sub(1).map_or(0, |before| self.ends[before].0);
        &self.keys[start..self.ends[run].0]
    }

    /// The rows of a run.
    #[must_use]
    pub fn rows(&self, run: usize) -> Range<usize> {
        let start = run.checked_sub(1).map_or(0, |before| self.ends[before].1);
        start..self.ends[run].1
    }

    /// Keys and rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Range<usize>)> {
        (0..self.len()).map(|run| (self.key(run), self.rows(run)))
    }
}

/// The tag columns of a batch in the order of the table; `None` where it lacks one.
///
/// # Errors
/// `internal` where one has another type.
pub fn tag_columns<'a>(
    schema: &TableSchema,
    batch: &'a RecordBatch,
) -> Result<Vec<Option<&'a TagArray>>> {
    schema
        .tags()
        .map(|tag| {
            batch.column_by_name(&tag.name).map(|array| as_tag(array, &tag.name)).transpose()
        })
        .collect()
}

fn mark_changes(tag: &TagArray, starts: &mut [bool]) {
    let keys = tag.keys();
    if keys.null_count() == 0 {
        let values = keys.values();
        for (at, start) in starts.iter_mut().enumerate().skip(1) {
            *start |= values[at] != values[at - 1];
        }
        return;
    }
    let code = |at: usize| keys.is_valid(at).then(|| keys.value(at));
    for (at, start) in starts.iter_mut().enumerate().skip(1) {
        *start |= code(at) != code(at - 1);
    }
}

fn encode_row(tags: &[Option<&TagArray>], row: usize, out: &mut Vec<u8>) -> Result<()> {
    let mut problem = None;
    let texts = tags.iter().map(|tag| {
        let tag = tag.filter(|tag| tag.is_valid(row))?;
        match tag_values(tag) {
            Ok(values) => {
                let code = tag.keys().value(row) as usize;
                values.is_valid(code).then(|| values.value(code))
            }
            Err(error) => {
                problem = Some(error);
                None
            }
        }
    });
    key::encode(texts, out);
    problem.map_or(Ok(()), Err)
}
