//! Distinct texts under small numbers: how dictionaries of many batches become one.

use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, Int32Array, StringArray};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::Int32Type;
use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::error::{Code, Error, Result};

/// What an arrow-encoded tag column is.
pub type TagArray = DictionaryArray<Int32Type>;

/// A set of texts that numbers them in the order of their arrival.
#[derive(Debug)]
pub struct Interner {
    numbers: HashTable<u32>,
    bytes: Vec<u8>,
    /// `ends[i]..ends[i + 1]` is where text `i` lies.
    ends: Vec<i32>,
    state: FixedState,
}

impl Default for Interner {
    fn default() -> Self {
        Interner {
            numbers: HashTable::new(),
            bytes: Vec::new(),
            ends: vec![0],
            state: FixedState::default(),
        }
    }
}

impl Interner {
    /// How many distinct texts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len() - 1
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a text, by its number. Comparing them is comparing the texts.
    #[must_use]
    pub fn get(&self, number: u32) -> &[u8] {
        at(&self.bytes, &self.ends, number)
    }

    /// The number of a text, new or known.
    ///
    /// # Errors
    /// `too_large` beyond 2 GiB of text, which one Arrow dictionary cannot hold.
    pub fn intern(&mut self, text: &str) -> Result<u32> {
        let Interner { numbers, bytes, ends, state } = self;
        let hash = state.hash_one(text.as_bytes());
        if let Some(known) = numbers.find(hash, |n| at(bytes, ends, *n) == text.as_bytes()) {
            return Ok(*known);
        }
        let end = i32::try_from(bytes.len() + text.len()).map_err(|_| too_large())?;
        let number = u32::try_from(ends.len() - 1).map_err(|_| too_large())?;
        bytes.extend_from_slice(text.as_bytes());
        ends.push(end);
        numbers.insert_unique(hash, number, |n| state.hash_one(at(bytes, ends, *n)));
        Ok(number)
    }

    /// Ends the set: the texts as an Arrow array whose positions are their numbers.
    ///
    /// # Errors
    /// `internal` if Arrow refuses the buffers, which are texts end to end.
    pub fn finish(self) -> Result<ArrayRef> {
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.ends));
        let array = StringArray::try_new(offsets, Buffer::from_vec(self.bytes), None)
            .map_err(|error| Error::internal(format!("build a dictionary: {error}")))?;
        Ok(Arc::new(array))
    }
}

fn at<'a>(bytes: &'a [u8], ends: &[i32], number: u32) -> &'a [u8] {
    let number = number as usize;
    &bytes[ends[number] as usize..ends[number + 1] as usize]
}

fn too_large() -> Error {
    Error::new(Code::TooLarge, "the distinct values of one tag exceed 2 GiB")
        .with_hint("make it a field instead of a tag, or write smaller batches")
}

/// Reads a column as a tag.
///
/// # Errors
/// `internal` naming the column where it has another type.
pub fn as_tag<'a>(array: &'a ArrayRef, name: &str) -> Result<&'a TagArray> {
    array.as_dictionary_opt::<Int32Type>().ok_or_else(|| {
        Error::internal(format!("tag column {name:?} has type {}", array.data_type()))
    })
}

/// The texts of a tag column's dictionary.
///
/// # Errors
/// `internal` where they are no texts.
pub fn tag_values(tag: &TagArray) -> Result<&StringArray> {
    tag.values()
        .as_string_opt::<i32>()
        .ok_or_else(|| Error::internal("the dictionary of a tag column does not hold text"))
}

/// Translates the codes of tag columns into numbers of an [`Interner`], looking at each
/// distinct code once.
#[derive(Debug, Default)]
pub struct Translation {
    numbers: Vec<u32>,
}

/// The number that stands for NULL and for codes not seen yet.
pub const NO_NUMBER: u32 = u32::MAX;

impl Translation {
    /// Starts anew for a dictionary of `values` entries.
    pub fn reset(&mut self, values: usize) {
        self.numbers.clear();
        self.numbers.resize(values, NO_NUMBER);
    }

    /// The number of the text under `code`.
    ///
    /// # Errors
    /// As [`Interner::intern`].
    #[inline]
    pub fn number(
        &mut self,
        code: usize,
        values: &StringArray,
        into: &mut Interner,
    ) -> Result<u32> {
        let known = self.numbers[code];
        if known != NO_NUMBER {
            return Ok(known);
        }
        let number = if values.is_null(code) {
            return Ok(NO_NUMBER);
        } else {
            into.intern(values.value(code))?
        };
        self.numbers[code] = number;
        Ok(number)
    }
}

/// Joins tag columns into one with a common dictionary.
///
/// # Errors
/// `too_large` where the dictionary exceeds 2 GiB.
pub fn concat_tags(parts: &[Option<&TagArray>], lens: &[usize]) -> Result<TagArray> {
    let mut interner = Interner::default();
    let mut translation = Translation::default();
    let mut keys = Int32Array::builder(lens.iter().sum());
    for (part, len) in parts.iter().zip(lens) {
        let Some(tag) = part else {
            keys.append_nulls(*len);
            continue;
        };
        let values = tag_values(tag)?;
        translation.reset(values.len());
        for code in tag.keys() {
            let number = match code {
                Some(code) => translation.number(code as usize, values, &mut interner)?,
                None => NO_NUMBER,
            };
            keys.append_option((number != NO_NUMBER).then_some(number as i32));
        }
    }
    TagArray::try_new(keys.finish(), interner.finish()?)
        .map_err(|error| Error::internal(format!("join tag columns: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_a_number() {
        let mut interner = Interner::default();
        let a = interner.intern("a").unwrap();
        let b = interner.intern("").unwrap();
        assert_eq!(interner.intern("a").unwrap(), a);
        assert_ne!(a, b);
        assert_eq!(interner.len(), 2);
        assert_eq!(interner.get(b), b"");
        let array = interner.finish().unwrap();
        assert_eq!(array.as_string::<i32>().iter().collect::<Vec<_>>(), [Some("a"), Some("")]);
    }

    #[test]
    fn columns_with_other_dictionaries_and_nulls_join() {
        let one: TagArray = [Some("x"), None, Some("y")].into_iter().collect();
        let two: TagArray = [Some("y"), Some("z")].into_iter().collect();
        let joined = concat_tags(&[Some(&one), None, Some(&two)], &[3, 1, 2]).unwrap();
        let texts: Vec<_> = joined.downcast_dict::<StringArray>().unwrap().into_iter().collect();
        assert_eq!(texts, [Some("x"), None, Some("y"), None, Some("y"), Some("z")]);
        assert_eq!(joined.values().len(), 3);
    }
}
