//! Gives each row the number of its series.

use arrow::array::{Array, ArrayRef, RecordBatch};
use hashbrown::HashTable;

use crate::error::{Code, Error, Result};
use crate::schema::TableSchema;
use crate::storage::interner::{Interner, NO_NUMBER, TagArray, Translation, as_tag, tag_values};
use crate::storage::sort::rank_texts;

/// Distinct series by the numbers of their tags' texts.
pub(super) struct SeriesTable {
    tags: usize,
    interners: Vec<Interner>,
    lookup: HashTable<u32>,
    /// For each series the hash of its codes.
    hashes: Vec<u64>,
    /// For each series the code of each tag: 0 for NULL, else the text's number plus one.
    codes: Vec<u32>,
    /// For each row its series, in the order of discovery.
    rows: Vec<u32>,
    scratch: Scratch,
}

#[derive(Default)]
struct Scratch {
    translation: Translation,
    codes: Vec<Vec<u32>>,
    hashes: Vec<u64>,
}

/// The series in order.
pub(super) struct Ranked {
    /// For each tag its texts, ascending.
    pub tag_values: Vec<ArrayRef>,
    /// For each series, in order, the rank of each tag.
    pub ranks: Vec<u32>,
    /// For each row the place of its series in that order.
    pub rows: Vec<u32>,
    /// How many series there are.
    pub count: usize,
}

impl SeriesTable {
    pub(super) fn new(schema: &TableSchema) -> Self {
        let tags = schema.tags().count();
        SeriesTable {
            tags,
            interners: (0..tags).map(|_| Interner::default()).collect(),
            lookup: HashTable::new(),
            hashes: Vec::new(),
            codes: Vec::new(),
            rows: Vec::new(),
            scratch: Scratch { codes: vec![Vec::new(); tags], ..Scratch::default() },
        }
    }

    /// Adds the rows of a batch.
    pub(super) fn add(&mut self, schema: &TableSchema, batch: &RecordBatch) -> Result<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.hashes.clear();
        scratch.hashes.resize(batch.num_rows(), 0);
        for (place, tag) in schema.tags().enumerate() {
            let column = batch.column_by_name(&tag.name);
            let column = column.map(|column| as_tag(column, &tag.name)).transpose()?;
            let codes = &mut scratch.codes[place];
            codes.clear();
            match column {
                Some(column) => {
                    let translation = &mut scratch.translation;
                    translate(column, translation, &mut self.interners[place], codes)?;
                }
                None => codes.resize(batch.num_rows(), 0),
            }
            for (hash, code) in scratch.hashes.iter_mut().zip(codes.iter()) {
                *hash = (hash.rotate_left(5) ^ u64::from(*code)).wrapping_mul(MIX);
            }
        }
        self.rows.reserve(batch.num_rows());
        for row in 0..batch.num_rows() {
            let hash = scratch.hashes[row];
            let series = self.find(hash ^ (hash >> 32), &scratch.codes, row)?;
            self.rows.push(series);
        }
        self.scratch = scratch;
        Ok(())
    }

    #[inline]
    fn find(&mut self, hash: u64, columns: &[Vec<u32>], row: usize) -> Result<u32> {
        let SeriesTable { tags, lookup, hashes, codes, .. } = self;
        let same = |series: &u32| {
            let start = *series as usize * *tags;
            codes[start..start + *tags]
                .iter()
                .zip(columns)
                .all(|(code, column)| *code == column[row])
        };
        if let Some(known) = lookup.find(hash, same) {
            return Ok(*known);
        }
        let series = u32::try_from(hashes.len())
            .map_err(|_| Error::new(Code::TooLarge, "more than 4,294,967,295 series at once"))?;
        codes.extend(columns.iter().map(|column| column[row]));
        hashes.push(hash);
        lookup.insert_unique(hash, series, |series| hashes[*series as usize]);
        Ok(series)
    }

    /// Puts the series in order.
    pub(super) fn rank(self) -> Result<Ranked> {
        let tags = self.tags;
        let mut codes = self.codes;
        let mut tag_values = Vec::with_capacity(tags);
        for (place, interner) in self.interners.into_iter().enumerate() {
            let (ascending, ranks) = rank_texts(&interner.finish()?)?;
            tag_values.push(ascending);
            for code in codes.iter_mut().skip(place).step_by(tags) {
                *code = code.checked_sub(1).map_or(0, |number| ranks[number as usize]);
            }
        }
        let count = self.hashes.len();
        let of = |series: &u32| &codes[*series as usize * tags..(*series as usize + 1) * tags];
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_unstable_by(|a, b| of(a).cmp(of(b)));
        let mut places = vec![0; count];
        let mut ranks = Vec::with_capacity(codes.len());
        for (place, series) in (0..).zip(&order) {
            places[*series as usize] = place;
            ranks.extend_from_slice(of(series));
        }
        let mut rows = self.rows;
        rows.iter_mut().for_each(|row| *row = places[*row as usize]);
        Ok(Ranked { tag_values, ranks, rows, count })
    }
}

const MIX: u64 = 0x517c_c1b7_2722_0a95;

fn translate(
    column: &TagArray,
    translation: &mut Translation,
    interner: &mut Interner,
    out: &mut Vec<u32>,
) -> Result<()> {
    let values = tag_values(column)?;
    translation.reset(values.len());
    let keys = column.keys();
    out.reserve(keys.len());
    for row in 0..keys.len() {
        let number = if keys.is_null(row) {
            NO_NUMBER
        } else {
            translation.number(keys.value(row) as usize, values, interner)?
        };
        // NULL, the largest number, wraps to 0.
        out.push(number.wrapping_add(1));
    }
    Ok(())
}
