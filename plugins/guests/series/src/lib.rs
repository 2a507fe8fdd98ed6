//! Table functions: rows that come from no table.

use kymo_udf::{Error, plugin, table};

/// The numbers from `start` to `stop`, both included, `step` apart.
///
/// `SELECT value FROM series.series(0, 100, 10)`
#[table(columns = "value")]
fn series(start: i64, stop: i64, step: i64) -> Result<impl Iterator<Item = (i64,)>, Error> {
    if step == 0 {
        return Err(Error::invalid("a step of 0 never ends"));
    }
    // The next number may not exist: the series ends with the type's range.
    let following = move |last: &i64| last.checked_add(step);
    let within = move |value: &i64| if step > 0 { *value <= stop } else { *value >= stop };
    Ok(std::iter::successors(Some(start), following).take_while(within).map(|value| (value,)))
}

/// The words of a text, with their places from 1. Without a separator, words end at spaces.
///
/// `SELECT word FROM series.words('a,b', ',')`
#[table(columns = "place, word")]
fn words(text: &str, separator: Option<&str>) -> impl Iterator<Item = (i64, String)> {
    let words: Vec<&str> = match separator {
        Some(separator) => text.split(separator).collect(),
        None => text.split_whitespace().collect(),
    };
    (1..).zip(words.into_iter().map(str::to_owned).collect::<Vec<_>>())
}

plugin! {
    name: "series",
    description: "Rows that come from no table",
    tables: [series, words],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(start: i64, stop: i64, step: i64) -> Vec<i64> {
        series(start, stop, step).unwrap().map(|(value,)| value).collect()
    }

    #[test]
    fn a_series_goes_either_way_and_ends() {
        assert_eq!(numbers(1, 7, 3), [1, 4, 7]);
        assert_eq!(numbers(7, 0, -3), [7, 4, 1]);
        assert_eq!(numbers(1, 0, 1), []);
        assert_eq!(numbers(i64::MAX - 1, i64::MAX, 1), [i64::MAX - 1, i64::MAX]);
        assert!(series(1, 2, 0).is_err());
    }

    #[test]
    fn words_are_numbered() {
        let found: Vec<_> = words(" a  bc ", None).collect();
        assert_eq!(found, [(1, "a".to_owned()), (2, "bc".to_owned())]);
        assert_eq!(words("a,,b", Some(",")).count(), 3);
    }
}
