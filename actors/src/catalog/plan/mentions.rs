//! Whether a text may speak of a name.
//!
//! It errs on one side: a word in a comment or a string counts, too. Who asks refuses a change
//! that could take something away, and would rather refuse one too many.

/// Whether a name occurs in a text as a word of its own, whatever the case of its letters.
#[must_use]
pub(super) fn mentions(text: &str, name: &str) -> bool {
    // A quote within a quoted name is written twice.
    let (text, name) = (text.to_lowercase(), name.to_lowercase().replace('"', "\"\""));
    let part = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
    text.match_indices(&name).any(|(at, found)| {
        let (before, after) = (&text[..at], &text[at + found.len()..]);
        !part(before.chars().next_back()) && !part(after.chars().next())
    })
}

/// Whether a query may read a column: it names it, or all columns.
#[must_use]
pub(super) fn may_mean(query: &str, column: &str) -> bool {
    mentions(query, column) || all_columns(query)
}

/// Whether a query has a `*` or `t.*` among its columns. One after an opening parenthesis counts
/// rows, any other multiplies.
fn all_columns(query: &str) -> bool {
    query.match_indices('*').any(|(at, _)| {
        let before = query[..at].trim_end().to_lowercase();
        let word = before.rsplit(|char: char| !char.is_alphanumeric() && char != '_').next();
        before.ends_with([',', '.']) || matches!(word, Some("select" | "distinct" | "all"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_as_words() {
        let query = "SELECT avg(\"Usage\"), u.idle FROM cpu u WHERE my_user > 1 -- load";
        for name in ["usage", "idle", "cpu", "my_user", "load", "Usage"] {
            assert!(mentions(query, name), "{name}");
        }
        for name in ["use", "user", "my", "idl", "o"] {
            assert!(!mentions(query, name), "{name}");
        }
        assert!(mentions("SELECT \"a\"\"b\" FROM t", "a\"b"));
        assert!(mentions("SELECT größe*2", "GRÖSSE") || mentions("SELECT größe*2", "größe"));
    }

    #[test]
    fn a_star_means_all_columns_where_it_stands_for_some() {
        for all in ["SELECT * FROM t", "select a,* from t", "SELECT t.* FROM t", "SELECT a, t . *"]
        {
            assert!(all_columns(all), "{all}");
        }
        for not in ["SELECT count(*) FROM t", "SELECT a * b FROM t", "SELECT (a)*2 FROM t"] {
            assert!(!all_columns(not), "{not}");
        }
    }
}
