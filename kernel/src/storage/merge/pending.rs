//! Rows chosen for the next batch of a merge, not copied yet.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{concat, interleave};
use arrow::datatypes::{FieldRef, SchemaRef};
use arrow::error::ArrowError;

use crate::error::{Error, Result};
use crate::storage::interner::{Interner, NO_NUMBER, TagArray, Translation, as_tag, tag_values};
use crate::storage::merge::{Loaded, is_tag};

/// From this many rows per piece on, pieces are copied as ranges, below it row by row.
const RANGE_ROWS: usize = 16;

/// Consecutive rows of one batch.
#[derive(Clone, Copy)]
struct Piece {
    batch: usize,
    row: usize,
    rows: usize,
}

/// Chosen rows in order.
pub(super) struct Pending {
    output: SchemaRef,
    batches: Vec<Arc<Loaded>>,
    pieces: Vec<Piece>,
    /// Rows that come out merged, with their range in `members`.
    merged: Vec<(usize, Range<usize>)>,
    /// Batch and row, oldest first.
    members: Vec<(usize, usize)>,
    rows: usize,
    bytes: usize,
}

impl Pending {
    pub(super) fn new(output: SchemaRef) -> Self {
        Pending {
            output,
            batches: Vec::new(),
            pieces: Vec::new(),
            merged: Vec::new(),
            members: Vec::new(),
            rows: 0,
            bytes: 0,
        }
    }

    pub(super) fn output(&self) -> &SchemaRef {
        &self.output
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// About what the chosen rows take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn batch(&mut self, loaded: &Arc<Loaded>) -> usize {
        let known = self.batches.iter().rposition(|each| Arc::ptr_eq(each, loaded));
        known.unwrap_or_else(|| {
            self.batches.push(loaded.clone());
            self.batches.len() - 1
        })
    }

    /// Adds consecutive rows.
    pub(super) fn push(&mut self, loaded: &Arc<Loaded>, row: usize, rows: usize) {
        let batch = self.batch(loaded);
        self.rows += rows;
        self.bytes += rows * loaded.row_bytes;
        if let Some(last) = self.pieces.last_mut()
            && last.batch == batch
            && last.row + last.rows == row
        {
            last.rows += rows;
            return;
        }
        self.pieces.push(Piece { batch, row, rows });
    }

    /// Adds one row made of several, given oldest first.
    pub(super) fn push_merged<'a>(&mut self, rows: impl Iterator<Item = (&'a Arc<Loaded>, usize)>) {
        let start = self.members.len();
        for (loaded, row) in rows {
            let batch = self.batch(loaded);
            self.bytes += loaded.row_bytes;
            self.members.push((batch, row));
        }
        let Some(&(batch, row)) = self.members.last() else { return };
        self.merged.push((self.rows, start..self.members.len()));
        self.pieces.push(Piece { batch, row, rows: 1 });
        self.rows += 1;
    }

    /// Copies the chosen rows into a batch and starts anew; `None` where there are none.
    pub(super) fn take(&mut self) -> Result<Option<RecordBatch>> {
        if self.rows == 0 {
            return Ok(None);
        }
        let by_row = !self.merged.is_empty() || self.pieces.len() * RANGE_ROWS > self.rows;
        let places = if by_row { self.places() } else { Vec::new() };
        let found = self.found();
        let columns = self.output.fields().iter().enumerate().map(|(column, field)| {
            let sources: Vec<_> = found.iter().map(|columns| columns[column].as_ref()).collect();
            match is_tag(field) {
                true => self.tag(field, &sources),
                false => self.values(field, &sources, &places),
            }
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        let batch = RecordBatch::try_new_with_options(self.output.clone(), columns, &options);
        self.batches.clear();
        self.pieces.clear();
        self.merged.clear();
        self.members.clear();
        (self.rows, self.bytes) = (0, 0);
        batch.map(Some).map_err(|error| Error::internal(format!("merge rows: {error}")))
    }

    fn places(&self) -> Vec<(usize, usize)> {
        let rows = |piece: &Piece| {
            let (batch, row) = (piece.batch, piece.row);
            (row..row + piece.rows).map(move |row| (batch, row))
        };
        self.pieces.iter().flat_map(rows).collect()
    }

    /// For each batch the columns of the output that it has. Sources mostly share their schema,
    /// and so what is found there.
    fn found(&self) -> Vec<Rc<[Option<ArrayRef>]>> {
        let mut last: Option<(SchemaRef, Rc<[Option<usize>]>)> = None;
        let found = self.batches.iter().map(|each| {
            let schema = each.batch.schema_ref();
            let places = match &last {
                Some((known, places)) if Arc::ptr_eq(known, schema) => places.clone(),
                _ => {
                    let names = schema.fields().iter().enumerate();
                    let names: HashMap<&str, usize> =
                        names.map(|(at, field)| (field.name().as_str(), at)).collect();
                    let wanted = self.output.fields().iter();
                    wanted.map(|field| names.get(field.name().as_str()).copied()).collect()
                }
            };
            last = Some((schema.clone(), places.clone()));
            places.iter().map(|place| Some(each.batch.column((*place)?).clone())).collect()
        });
        found.collect()
    }

    fn values(
        &self,
        field: &FieldRef,
        sources: &[Option<&ArrayRef>],
        places: &[(usize, usize)],
    ) -> Result<ArrayRef> {
        if sources.iter().all(Option::is_none) {
            return Ok(new_null_array(field.data_type(), self.rows));
        }
        let copied = if places.is_empty() {
            self.copy_ranges(field, sources)
        } else {
            self.copy_rows(field, sources, places)
        };
        copied.map_err(|error| Error::internal(format!("merge column {:?}: {error}", field.name())))
    }

    fn copy_ranges(
        &self,
        field: &FieldRef,
        sources: &[Option<&ArrayRef>],
    ) -> Result<ArrayRef, ArrowError> {
        let part = |piece: &Piece| match sources[piece.batch] {
            Some(array) => array.slice(piece.row, piece.rows),
            None => new_null_array(field.data_type(), piece.rows),
        };
        let parts: Vec<ArrayRef> = self.pieces.iter().map(part).collect();
        match parts.as_slice() {
            [only] => Ok(only.clone()),
            _ => concat(&parts.iter().map(AsRef::as_ref).collect::<Vec<_>>()),
        }
    }

    fn copy_rows(
        &self,
        field: &FieldRef,
        sources: &[Option<&ArrayRef>],
        places: &[(usize, usize)],
    ) -> Result<ArrayRef, ArrowError> {
        let null = new_null_array(field.data_type(), 1);
        let arrays: Vec<&dyn Array> =
            sources.iter().map(|source| source.unwrap_or(&null).as_ref()).collect();
        let absent = sources.iter().any(Option::is_none);
        if self.merged.is_empty() && !absent {
            return interleave(&arrays, places);
        }
        let mut own = places.to_vec();
        for (row, members) in &self.merged {
            let newest_first = self.members[members.clone()].iter().rev();
            let mut with_value = newest_first
                .filter(|(batch, row)| sources[*batch].is_some_and(|array| array.is_valid(*row)));
            if let Some(place) = with_value.next() {
                own[*row] = *place;
            }
        }
        for place in own.iter_mut().filter(|place| sources[place.0].is_none()) {
            place.1 = 0;
        }
        interleave(&arrays, &own)
    }

    /// A tag: its texts under one new dictionary, which holds only what occurs.
    fn tag(&self, field: &FieldRef, sources: &[Option<&ArrayRef>]) -> Result<ArrayRef> {
        if let ([piece], [Some(array)]) = (self.pieces.as_slice(), sources) {
            return Ok(array.slice(piece.row, piece.rows));
        }
        let tags = sources
            .iter()
            .map(|source| source.map(|array| as_tag(array, field.name())).transpose())
            .collect::<Result<Vec<_>>>()?;
        let mut writer = TagWriter::new(&tags, self.rows)?;
        self.pieces.iter().try_for_each(|piece| writer.copy(piece))?;
        writer.finish()
    }
}

/// Copies ranges of tag columns, from text to text through numbers.
struct TagWriter<'a> {
    tags: &'a [Option<&'a TagArray>],
    translations: Vec<Translation>,
    interner: Interner,
    keys: Vec<i32>,
    nulls: bool,
}

/// Stands for NULL in keys until they are complete.
const NULL_KEY: i32 = -1;

impl<'a> TagWriter<'a> {
    fn new(tags: &'a [Option<&'a TagArray>], rows: usize) -> Result<Self> {
        let translations = tags.iter().map(|tag| {
            let mut translation = Translation::default();
            if let Some(tag) = tag {
                translation.reset(tag_values(tag)?.len());
            }
            Ok(translation)
        });
        Ok(TagWriter {
            tags,
            translations: translations.collect::<Result<_>>()?,
            interner: Interner::default(),
            keys: Vec::with_capacity(rows),
            nulls: false,
        })
    }

    fn copy(&mut self, piece: &Piece) -> Result<()> {
        let Some(tag) = self.tags[piece.batch] else {
            self.nulls = true;
            self.keys.resize(self.keys.len() + piece.rows, NULL_KEY);
            return Ok(());
        };
        let (values, codes) = (tag_values(tag)?, tag.keys());
        let translation = &mut self.translations[piece.batch];
        for row in piece.row..piece.row + piece.rows {
            let number = if codes.is_null(row) {
                NO_NUMBER
            } else {
                translation.number(codes.value(row) as usize, values, &mut self.interner)?
            };
            self.nulls |= number == NO_NUMBER;
            // The number of NULL, the largest, is -1 as a key.
            self.keys.push(number as i32);
        }
        Ok(())
    }

    fn finish(self) -> Result<ArrayRef> {
        let keys: Int32Array = if self.nulls {
            self.keys.iter().map(|key| (*key != NULL_KEY).then_some(*key)).collect()
        } else {
            Int32Array::from(self.keys)
        };
        let array = TagArray::try_new(keys, self.interner.finish()?)
            .map_err(|error| Error::internal(format!("merge a tag: {error}")))?;
        Ok(Arc::new(array))
    }
}
