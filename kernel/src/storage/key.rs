//! The encoded series key: the tag values of a series as bytes that never change.
//!
//! For each tag in the order of the table's columns: `00` for NULL, or `01`, the text and a
//! `00`, where a `00` inside of the text becomes `00 ff` (UTF-8 never holds `ff`). Trailing
//! NULLs are left out, so a key stays the same when its table gets another tag. Comparing
//! two keys as bytes is comparing their tags one after the other, NULL first: the order in
//! which segments are sorted. Slots are hashes of keys, so this encoding is part of the data.

use std::borrow::Cow;

use crate::error::{Code, Error, Result};
use crate::ids::Slot;

const NULL: u8 = 0;
const TEXT: u8 = 1;
const END: u8 = 0;
const ESCAPED: u8 = 0xff;

/// Appends the key of a series to `out`; the tags come in the order of the table's columns.
pub fn encode<'a>(tags: impl IntoIterator<Item = Option<&'a str>>, out: &mut Vec<u8>) {
    let mut nulls = 0;
    for tag in tags {
        match tag {
            None => nulls += 1,
            Some(text) => {
                out.resize(out.len() + nulls, NULL);
                nulls = 0;
                push_text(text, out);
            }
        }
    }
}

fn push_text(text: &str, out: &mut Vec<u8>) {
    out.push(TEXT);
    let mut rest = text.as_bytes();
    while let Some(at) = memchr::memchr(0, rest) {
        out.extend_from_slice(&rest[..=at]);
        out.push(ESCAPED);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(END);
}

/// The key of a series as a new buffer.
#[must_use]
pub fn of<'a>(tags: impl IntoIterator<Item = Option<&'a str>>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(tags, &mut out);
    out
}

/// The slot of a series, from its encoded key.
#[must_use]
pub fn slot(key: &[u8]) -> Slot {
    Slot::of(key)
}

/// Walks the tag values of an encoded key; tags after the last value are NULL.
#[derive(Debug, Clone)]
pub struct Tags<'a> {
    rest: &'a [u8],
}

/// The tag values of an encoded key, in the order of the table's columns.
#[must_use]
pub fn tags(key: &[u8]) -> Tags<'_> {
    Tags { rest: key }
}

impl<'a> Iterator for Tags<'a> {
    type Item = Result<Option<Cow<'a, str>>>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&mark, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(match mark {
            NULL => Ok(None),
            TEXT => self.text().map(Some),
            _ => Err(self.damaged()),
        })
    }
}

impl<'a> Tags<'a> {
    fn text(&mut self) -> Result<Cow<'a, str>> {
        let mut owned: Vec<u8> = Vec::new();
        loop {
            let Some(at) = memchr::memchr(END, self.rest) else { return Err(self.damaged()) };
            let (part, rest) = (&self.rest[..at], &self.rest[at + 1..]);
            if rest.first() == Some(&ESCAPED) {
                owned.extend_from_slice(&self.rest[..=at]);
                self.rest = &rest[1..];
                continue;
            }
            self.rest = rest;
            if owned.is_empty() {
                return std::str::from_utf8(part).map(Cow::Borrowed).map_err(|_| self.damaged());
            }
            owned.extend_from_slice(part);
            return String::from_utf8(owned).map(Cow::Owned).map_err(|_| self.damaged());
        }
    }

    fn damaged(&mut self) -> Error {
        self.rest = &[];
        Error::new(Code::Corrupt, "series key does not decode")
    }
}

/// The smallest key above all keys that start with `prefix`; `None` where there is none.
#[must_use]
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut out = prefix[..=last].to_vec();
    out[last] += 1;
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tag() -> impl Strategy<Value = Option<String>> {
        proptest::option::of("[\u{0}\u{1}a-c\u{ff}]{0,4}")
    }

    fn borrowed(tags: &[Option<String>]) -> Vec<u8> {
        of(tags.iter().map(Option::as_deref))
    }

    #[test]
    fn trailing_nulls_leave_the_key_alone() {
        assert_eq!(of([Some("a")]), of([Some("a"), None, None]));
        assert_eq!(of([None, None]), Vec::<u8>::new());
        assert_ne!(of([Some("")]), of([None]));
    }

    #[test]
    fn the_bytes_are_the_documented_ones() {
        assert_eq!(of([Some("a\0b"), None, Some("c")]), b"\x01a\x00\xffb\x00\x00\x01c\x00");
    }

    #[test]
    fn broken_keys_are_refused() {
        for key in [&b"\x02"[..], b"\x01a", b"\x01\xc3\x00"] {
            assert!(tags(key).any(|tag| tag.is_err()), "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn keys_compare_as_their_tags_do(
            a in proptest::collection::vec(tag(), 3),
            b in proptest::collection::vec(tag(), 3),
        ) {
            prop_assert_eq!(borrowed(&a).cmp(&borrowed(&b)), a.cmp(&b));
        }

        #[test]
        fn keys_decode_to_their_tags(tags_in in proptest::collection::vec(tag(), 0..5)) {
            let key = borrowed(&tags_in);
            let mut back: Vec<Option<String>> =
                tags(&key).map(|tag| tag.unwrap().map(Cow::into_owned)).collect();
            prop_assert!(back.len() <= tags_in.len());
            back.resize(tags_in.len(), None);
            prop_assert_eq!(back, tags_in);
        }

        #[test]
        fn a_prefix_ends_where_it_says(tags_in in proptest::collection::vec(tag(), 1..4)) {
            let key = borrowed(&tags_in);
            let prefix = borrowed(&tags_in[..1]);
            if key.starts_with(&prefix) && !prefix.is_empty() {
                let end = after_prefix(&prefix).unwrap();
                prop_assert!(key < end && key >= prefix);
            }
        }
    }
}
