//! Text on its way into Arrow: values one after the other, and the distinct values of a tag.

use std::hash::BuildHasher;

use arrow::array::StringArray;
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use kymo_kernel::{Code, Error, Result};

/// Text values one after the other, as Arrow keeps them.
#[derive(Default)]
pub(super) struct Text {
    ends: Vec<i32>,
    bytes: Vec<u8>,
}

impl Text {
    pub(super) fn push(&mut self, raw: &[u8]) {
        self.bytes.extend_from_slice(raw);
        self.end();
    }

    pub(super) fn push_unescaped(&mut self, raw: &[u8]) {
        let mut rest = raw;
        while let Some(at) = memchr::memchr(b'\\', rest) {
            let (before, after) = rest.split_at(at);
            self.bytes.extend_from_slice(before);
            let skip = usize::from(matches!(after.get(1), Some(b'"' | b'\\')));
            if let Some(kept) = after.get(skip) {
                self.bytes.push(*kept);
            }
            rest = after.get(skip + 1..).unwrap_or_default();
        }
        self.bytes.extend_from_slice(rest);
        self.end();
    }

    /// Bodies are far smaller than 2 GiB: the parsers refuse larger ones.
    fn end(&mut self) {
        self.ends.push(i32::try_from(self.bytes.len()).unwrap_or(i32::MAX));
    }

    pub(super) fn pop(&mut self) {
        self.ends.pop();
        self.bytes.truncate(self.last_end());
    }

    pub(super) fn pad(&mut self, len: usize) {
        let end = self.ends.last().copied().unwrap_or_default();
        self.ends.resize(len, end);
    }

    fn last_end(&self) -> usize {
        usize::try_from(self.ends.last().copied().unwrap_or_default()).unwrap_or_default()
    }

    fn get(&self, at: usize) -> &[u8] {
        let start = match at.checked_sub(1).and_then(|before| self.ends.get(before)) {
            Some(end) => usize::try_from(*end).unwrap_or_default(),
            None => 0,
        };
        let end = self.ends.get(at).map_or(0, |end| usize::try_from(*end).unwrap_or_default());
        self.bytes.get(start..end).unwrap_or_default()
    }

    pub(super) fn finish(self, nulls: Option<NullBuffer>) -> Result<StringArray> {
        let mut offsets = Vec::with_capacity(self.ends.len() + 1);
        offsets.push(0);
        offsets.extend_from_slice(&self.ends);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        StringArray::try_new(offsets, Buffer::from_vec(self.bytes), nulls)
            .map_err(|error| Error::new(Code::InvalidInput, format!("text: {error}")))
    }
}

/// The distinct values of a tag, numbered in the order of appearance.
#[derive(Default)]
pub(super) struct Dictionary {
    pub(super) values: Text,
    codes: HashTable<i32>,
    hasher: RandomState,
}

impl Dictionary {
    pub(super) fn code(&mut self, value: &[u8]) -> i32 {
        let hash = self.hasher.hash_one(value);
        let values = &self.values;
        let same = |code: &i32| values.get(usize::try_from(*code).unwrap_or(usize::MAX)) == value;
        if let Some(code) = self.codes.find(hash, same) {
            return *code;
        }
        let code = i32::try_from(self.values.ends.len()).unwrap_or(i32::MAX);
        self.values.push(value);
        let (values, hasher) = (&self.values, &self.hasher);
        self.codes.insert_unique(hash, code, |code| {
            hasher.hash_one(values.get(usize::try_from(*code).unwrap_or(usize::MAX)))
        });
        code
    }
}
