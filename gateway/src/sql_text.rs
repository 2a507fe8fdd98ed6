//! SQL as text, before anybody parses it: which stretches mean nothing but themselves
//! (strings, quoted names, comments), and where statements end.

/// A string, a quoted name, a comment or a dollar-quoted text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opaque {
    /// Its length, marks included; to the end of the text where it is not closed.
    pub bytes: usize,
    /// Whether it ends within the text. A comment to the end of the line needs no end.
    pub closed: bool,
    /// Whether it is a comment.
    pub comment: bool,
}

/// The opaque stretch that `text` begins with, if it does.
#[must_use]
pub fn opaque(text: &str) -> Option<Opaque> {
    let until = |open: usize, close: &str| {
        let end = text[open..].find(close).map(|at| open + at + close.len());
        Opaque { bytes: end.unwrap_or(text.len()), closed: end.is_some(), comment: false }
    };
    match text.as_bytes() {
        [b'\'', ..] => Some(until(1, "'")),
        [b'"', ..] => Some(until(1, "\"")),
        [b'-', b'-', ..] => Some(Opaque { closed: true, comment: true, ..until(2, "\n") }),
        [b'/', b'*', ..] => Some(Opaque { comment: true, ..until(2, "*/") }),
        [b'$', ..] => {
            let open = name_at_start(&text[1..]).len() + 2;
            let tagged = text.as_bytes().get(open - 1) == Some(&b'$');
            tagged.then(|| until(open, &text[..open]))
        }
        _ => None,
    }
}

/// The letters, digits and underscores that `text` begins with.
#[must_use]
pub fn name_at_start(text: &str) -> &str {
    let end = text.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The bytes of the first statement of `text`, its semicolon included; `None` where it does
/// not end within the text.
#[must_use]
pub fn statement_end(text: &str) -> Option<usize> {
    let mut at = 0;
    while let Some(step) = text[at..].find([';', '\'', '"', '-', '/', '$']) {
        at += step;
        match opaque(&text[at..]) {
            Some(stretch) if !stretch.closed => return None,
            Some(stretch) => at += stretch.bytes,
            None if text.as_bytes()[at] == b';' => return Some(at + 1),
            None => at += 1,
        }
    }
    None
}

/// The text without the blanks and comments that it begins with.
#[must_use]
pub fn skip_blank(text: &str) -> &str {
    let mut rest = text.trim_start();
    while let Some(stretch) = opaque(rest).filter(|stretch| stretch.comment && stretch.closed) {
        rest = rest[stretch.bytes..].trim_start();
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_ends_at_a_semicolon_that_is_not_part_of_something() {
        for (whole, rest) in [
            ("SELECT 1;", ""),
            ("SELECT 1; SELECT 2;", " SELECT 2;"),
            ("SELECT ';', \";\" ;x", "x"),
            ("SELECT 1 -- ;\n;", ""),
            ("SELECT /* ; */ 1-2/3;", ""),
            ("SELECT $$;$$, $a$ ; $$ $a$, $1;\n", "\n"),
            ("SELECT 'it''s;';", ""),
        ] {
            assert_eq!(statement_end(whole).map(|end| &whole[end..]), Some(rest), "{whole}");
        }
        for open in ["", "SELECT 1", "SELECT ';", "SELECT 1 -- ;", "SELECT \"a;\n", "/* ;", "$$;"] {
            assert_eq!(statement_end(open), None, "{open}");
        }
    }

    #[test]
    fn comments_before_a_statement_are_no_statement() {
        assert_eq!(skip_blank(" -- a\n /* b */\n SELECT 1"), "SELECT 1");
        assert_eq!(skip_blank("-- all of it"), "");
        assert_eq!(skip_blank("/* open"), "/* open");
    }
}
