//! Places in SQL text: from the tokenizer's line and column to bytes and to the character
//! offset that PostgreSQL clients show a caret at.

use datafusion::sql::sqlparser::tokenizer::Location;

/// Where the lines of a text begin, so that a location is found without scanning all of it.
pub(crate) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// Reads the line starts of a text.
    pub(crate) fn new(text: &'a str) -> Self {
        let breaks = memchr_lines(text);
        Lines { text, starts: std::iter::once(0).chain(breaks).collect() }
    }

    /// The byte offset of a location; the end of the text where it lies beyond.
    pub(crate) fn byte(&self, at: Location) -> usize {
        let line = usize::try_from(at.line.saturating_sub(1)).unwrap_or(usize::MAX);
        let Some(start) = self.starts.get(line).copied() else { return self.text.len() };
        let column = usize::try_from(at.column.saturating_sub(1)).unwrap_or(usize::MAX);
        let rest = &self.text[start..];
        start + rest.char_indices().nth(column).map_or(rest.len(), |(byte, _)| byte)
    }

    /// The character offset of a location, from 1.
    pub(crate) fn position(&self, at: Location) -> u32 {
        position(self.text, self.byte(at))
    }
}

/// The character offset, from 1, of a byte offset.
pub(crate) fn position(text: &str, byte: usize) -> u32 {
    let end = byte.min(text.len());
    let before = text.char_indices().take_while(|(at, _)| *at < end).count();
    u32::try_from(before + 1).unwrap_or(u32::MAX)
}

fn memchr_lines(text: &str) -> impl Iterator<Item = usize> + '_ {
    text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1)
}

/// The candidate closest to a word that was not found, where one is close enough to be meant.
pub(crate) fn nearest<'a>(
    wanted: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    let limit = (wanted.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|each| (distance(&wanted, &each.to_lowercase()), each))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, each)| each)
}

/// Levenshtein's edit distance; names are short, so two rows of the table suffice.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_count_characters_not_bytes() {
        let text = "SELECT 'é',\n  bad";
        let lines = Lines::new(text);
        let at = Location { line: 2, column: 3 };
        assert_eq!(&text[lines.byte(at)..], "bad");
        assert_eq!(lines.position(at), 15);
        assert_eq!(lines.byte(Location { line: 9, column: 1 }), text.len());
    }

    #[test]
    fn the_nearest_name_is_offered_only_when_close() {
        assert_eq!(nearest("usge", ["usage", "host"]), Some("usage"));
        assert_eq!(nearest("cpus", ["cpu", "memory"]), Some("cpu"));
        assert_eq!(nearest("zebra", ["usage", "host"]), None);
    }
}
