//! Copies the values of sorted rows into batches, a bounded number of rows at a time.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::interleave;
use arrow::datatypes::{Field, SchemaRef};

use crate::error::{Error, Result};
use crate::schema::ColumnKind;
use crate::storage::interner::TagArray;
use crate::storage::sort::{SeriesRows, SortedRows};

/// The batches of [`SortedRows`], in order.
#[derive(Debug)]
pub struct SortedBatches {
    rows: Arc<SortedRows>,
    output: SchemaRef,
    batch_rows: usize,
    next: usize,
}

impl SortedBatches {
    pub(super) fn new(rows: Arc<SortedRows>, output: SchemaRef, batch_rows: usize) -> Self {
        SortedBatches { rows, output, batch_rows, next: 0 }
    }
}

impl Iterator for SortedBatches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.rows.rows().min(self.next + self.batch_rows);
        if end == self.next {
            return None;
        }
        let rows = self.next..end;
        self.next = end;
        Some(self.rows.gather(rows, &self.output))
    }
}

/// The places that the rows of one output batch come from.
struct Places {
    /// For each output row the batch and the row within it of its newest source row.
    newest: Vec<(usize, usize)>,
    /// Output rows that several rows merge into, with the range of these in `order`.
    merged: Vec<(usize, Range<usize>)>,
}

impl SortedRows {
    fn gather(&self, rows: Range<usize>, output: &SchemaRef) -> Result<RecordBatch> {
        let places = self.places(&rows);
        let columns = output
            .fields()
            .iter()
            .map(|field| match ColumnKind::of(field) {
                ColumnKind::Tag => self.gather_tag(&rows, field),
                ColumnKind::Time | ColumnKind::Field => self.gather_values(&places, field),
            })
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(output.clone(), columns, &options)
            .map_err(|error| Error::internal(format!("gather sorted rows: {error}")))
    }

    fn places(&self, rows: &Range<usize>) -> Places {
        let Some(groups) = &self.groups else {
            let newest = self.locate(self.order[rows.clone()].iter().copied());
            return Places { newest, merged: Vec::new() };
        };
        let ends = &groups[rows.start + 1..=rows.end];
        let newest = self.locate(ends.iter().map(|end| self.order[*end as usize - 1]));
        let merged = rows
            .clone()
            .map(|row| groups[row] as usize..groups[row + 1] as usize)
            .enumerate()
            .filter(|(_, members)| members.len() > 1)
            .collect();
        Places { newest, merged }
    }

    fn locate(&self, rows: impl Iterator<Item = u32>) -> Vec<(usize, usize)> {
        let starts = &self.shared.starts;
        let mut batch = 0;
        rows.map(|row| {
            if row < starts[batch] || row >= starts[batch + 1] {
                batch = starts.partition_point(|start| *start <= row) - 1;
            }
            (batch, (row - starts[batch]) as usize)
        })
        .collect()
    }

    fn gather_tag(&self, rows: &Range<usize>, field: &Field) -> Result<ArrayRef> {
        let tags = self.shared.tag_values.len();
        let Some(tag) = self.shared.schema.tags().position(|tag| tag.name == *field.name()) else {
            return Ok(new_null_array(field.data_type(), rows.len()));
        };
        let first = self.series.partition_point(|run| run.end as usize <= rows.start);
        let mut keys = Int32Array::builder(rows.len());
        let mut at = rows.start;
        for SeriesRows { series, end } in &self.series[first..] {
            let end = rows.end.min(*end as usize);
            match self.shared.ranks[*series as usize * tags + tag] {
                0 => keys.append_nulls(end - at),
                rank => keys.append_value_n(rank as i32 - 1, end - at),
            }
            at = end;
            if at == rows.end {
                break;
            }
        }
        let array = TagArray::try_new(keys.finish(), self.shared.tag_values[tag].clone())
            .map_err(|error| Error::internal(format!("gather tag {:?}: {error}", field.name())))?;
        Ok(Arc::new(array))
    }

    fn gather_values(&self, places: &Places, field: &Field) -> Result<ArrayRef> {
        let Some(held) = self.shared.columns.get(field.name()) else {
            return Ok(new_null_array(field.data_type(), places.newest.len()));
        };
        let (sources, missing) = self.sources(field, held);
        let arrays: Vec<&dyn Array> = sources.iter().map(|source| source.array.as_ref()).collect();
        let gathered = if missing == 0 && places.merged.is_empty() {
            interleave(&arrays, &places.newest)
        } else {
            interleave(&arrays, &self.places_of(places, &sources))
        };
        gathered
            .map_err(|error| Error::internal(format!("gather column {:?}: {error}", field.name())))
    }

    /// For each batch the column, or a single NULL where it has none; and how often that was.
    /// `held` says which batches have it and where.
    fn sources(&self, field: &Field, held: &[(usize, usize)]) -> (Vec<Source>, usize) {
        let batches = &self.shared.batches;
        let missing = batches.len() - held.len();
        let null = new_null_array(field.data_type(), usize::from(missing > 0));
        let mut sources = vec![Source { absent: true, array: null }; batches.len()];
        for (batch, place) in held {
            let array = batches[*batch].column(*place).clone();
            sources[*batch] = Source { absent: false, array };
        }
        (sources, missing)
    }

    /// Where each value of a column comes from: the newest row of its group that has one.
    fn places_of(&self, places: &Places, sources: &[Source]) -> Vec<(usize, usize)> {
        let mut own = places.newest.clone();
        for (row, members) in &places.merged {
            let newest_first = self.order[members.clone()].iter().rev().copied();
            let found = self.locate_each(newest_first).find(|(batch, row)| {
                let source = &sources[*batch];
                !source.absent && source.array.is_valid(*row)
            });
            if let Some(place) = found {
                own[*row] = place;
            }
        }
        for place in &mut own {
            if sources[place.0].absent {
                place.1 = 0;
            }
        }
        own
    }

    fn locate_each(&self, rows: impl Iterator<Item = u32>) -> impl Iterator<Item = (usize, usize)> {
        let starts = &self.shared.starts;
        rows.map(|row| {
            let batch = starts.partition_point(|start| *start <= row) - 1;
            (batch, (row - starts[batch]) as usize)
        })
    }
}

#[derive(Clone)]
struct Source {
    array: ArrayRef,
    absent: bool,
}
