//! Batches whose dictionaries fit them: of a tag's texts only those that a batch's rows have.
//!
//! Rows in memory and those of a row group share one dictionary, which for a tag of a million
//! texts is a million long, while a batch has a few thousand rows. Whoever groups or joins looks
//! at every text of every batch's dictionary, so a batch leaves with what it needs of it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int32Array, RecordBatch};
use arrow::compute::{kernels::aggregate, take};
use arrow::datatypes::Int32Type;

use crate::error::{Error, Result};
use crate::storage::interner::TagArray;

/// A dictionary that is at most so many times as long as its batch is left as it is.
const WORTH: usize = 2;

/// A batch with the same rows, none of whose dictionaries is much longer than it.
///
/// # Errors
/// `internal` where a dictionary cannot be made, which is a defect.
pub fn narrow(batch: RecordBatch) -> Result<RecordBatch> {
    let most = batch.num_rows().saturating_mul(WORTH);
    let wide = |column: &ArrayRef| tag(column).is_some_and(|tag| tag.values().len() > most);
    if !batch.columns().iter().any(wide) {
        return Ok(batch);
    }
    let columns = batch.columns().iter().map(|column| match tag(column) {
        Some(tag) if tag.values().len() > most => Ok(Arc::new(narrowed(tag, most)?) as ArrayRef),
        _ => Ok(column.clone()),
    });
    let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
    RecordBatch::try_new(batch.schema(), columns).map_err(defect)
}

fn tag(column: &ArrayRef) -> Option<&TagArray> {
    column.as_dictionary_opt::<Int32Type>()
}

fn narrowed(tag: &TagArray, most: usize) -> Result<TagArray> {
    let keys = tag.keys();
    let (first, last) = (aggregate::min(keys), aggregate::max(keys));
    let (Some(first), Some(last)) = (first, last) else {
        return TagArray::try_new(keys.clone(), tag.values().slice(0, 0)).map_err(defect);
    };
    // Rows of neighbouring series, as segments have them: a piece of the dictionary.
    let (from, span) = (first as usize, (last - first) as usize + 1);
    if span <= most {
        let keys: Int32Array = keys.unary(|key| key.wrapping_sub(first));
        return TagArray::try_new(keys, tag.values().slice(from, span)).map_err(defect);
    }
    let mut used: Vec<i32> = keys.iter().flatten().collect();
    used.sort_unstable();
    used.dedup();
    let place = |key: i32| used.binary_search(&key).unwrap_or_default() as i32;
    let keys: Int32Array = keys.iter().map(|key| key.map(place)).collect();
    let values = take(tag.values(), &Int32Array::from(used), None).map_err(defect)?;
    TagArray::try_new(keys, values).map_err(defect)
}

fn defect(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("shorten a dictionary: {error}"))
}

#[cfg(test)]
mod tests {

    use arrow::array::StringArray;
    use arrow::compute::cast;
    use arrow::datatypes::DataType;
    use proptest::prelude::*;

    use super::*;

    fn batch(keys: Vec<Option<i32>>, values: usize) -> RecordBatch {
        let values: StringArray = (0..values).map(|at| Some(format!("host{at}"))).collect();
        let tag = TagArray::try_new(keys.into(), Arc::new(values)).unwrap();
        RecordBatch::try_from_iter([("host", Arc::new(tag) as ArrayRef)]).unwrap()
    }

    fn length(batch: &RecordBatch) -> usize {
        tag(batch.column(0)).unwrap().values().len()
    }

    fn texts(batch: &RecordBatch) -> StringArray {
        cast(batch.column(0), &DataType::Utf8).unwrap().as_string().clone()
    }

    #[test]
    fn neighbours_are_a_piece_of_the_dictionary_and_others_are_gathered() {
        let near = narrow(batch((500..510).map(Some).collect(), 1000)).unwrap();
        assert_eq!(length(&near), 10);
        let far = narrow(batch(vec![Some(3), None, Some(999), Some(3)], 1000)).unwrap();
        assert_eq!(length(&far), 2);
        let nothing = narrow(batch(vec![None; 3], 1000)).unwrap();
        assert_eq!((length(&nothing), texts(&nothing).null_count()), (0, 3));
        let short = narrow(batch(vec![Some(3), Some(0)], 4)).unwrap();
        assert_eq!(length(&short), 4);
    }

    proptest! {
        #[test]
        fn rows_stay_what_they_were(
            keys in proptest::collection::vec(proptest::option::of(0..300i32), 0..60)
        ) {
            let before = batch(keys, 300);
            let after = narrow(before.clone()).unwrap();
            prop_assert!(length(&after) <= before.num_rows() * WORTH || before.num_rows() * WORTH >= 300);
            prop_assert_eq!(texts(&before), texts(&after));
        }
    }
}
