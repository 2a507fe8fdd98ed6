//! Texts with placeholders: `{{ $labels.host }}` and `{{ $value }}`, as in Prometheus' rules.

use kymo_kernel::alert::AlertDef;
use kymo_kernel::message::Labels;
use kymo_kernel::{Code, Error, Result};

/// A piece of a text.
enum Piece<'a> {
    Text(&'a str),
    Label(&'a str),
    Value,
    /// A placeholder that is none of ours.
    Unknown(&'a str),
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(begin) = rest.find("{{") else {
            return Some(Piece::Text(std::mem::take(&mut rest)));
        };
        if begin > 0 {
            let (before, placeholder) = rest.split_at(begin);
            rest = placeholder;
            return Some(Piece::Text(before));
        }
        let Some(end) = rest.find("}}") else {
            return Some(Piece::Unknown(std::mem::take(&mut rest)));
        };
        let (whole, after) = rest.split_at(end + 2);
        rest = after;
        let inner = whole[2..end].trim();
        Some(match inner.strip_prefix("$labels.").map(str::trim) {
            Some(label) if !label.is_empty() && !label.contains(char::is_whitespace) => {
                Piece::Label(label)
            }
            _ if inner == "$value" => Piece::Value,
            _ => Piece::Unknown(whole),
        })
    })
}

/// Refuses a text with a placeholder that is not known, or with one of a label that the rule
/// does not have.
///
/// # Errors
/// `invalid_input`, naming the placeholder.
pub fn check(what: &str, text: &str, labels: &[String]) -> Result<()> {
    for piece in pieces(text) {
        let (wrong, hint) = match piece {
            Piece::Unknown(whole) => (
                whole.to_owned(),
                "placeholders are {{ $value }} and {{ $labels.name }}".to_owned(),
            ),
            Piece::Label(label) if !labels.iter().any(|known| known == label) => (
                format!("{{{{ $labels.{label} }}}}"),
                format!("the query has these labels: {}", labels.join(", ")),
            ),
            _ => continue,
        };
        return Err(Error::new(
            Code::InvalidInput,
            format!("{what} has a placeholder that cannot be filled: {wrong}"),
        )
        .with_hint(hint));
    }
    Ok(())
}

/// Refuses a rule with such a text among its labels and annotations.
///
/// # Errors
/// `invalid_input`, naming the text and the placeholder.
pub fn check_all(alert: &AlertDef, labels: &[String]) -> Result<()> {
    for (what, texts) in [("label", &alert.labels), ("annotation", &alert.annotations)] {
        for (name, text) in texts {
            check(&format!("{what} {name}"), text, labels)?;
        }
    }
    Ok(())
}

/// Fills the placeholders. A label that a row does not have is empty.
#[must_use]
pub fn render(text: &str, labels: &Labels, value: Option<f64>) -> String {
    let mut filled = String::with_capacity(text.len());
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) | Piece::Unknown(text) => filled.push_str(text),
            Piece::Label(label) => filled.push_str(labels.get(label).map_or("", String::as_str)),
            Piece::Value => match value {
                Some(value) => filled.push_str(&value.to_string()),
                None => filled.push_str("no data"),
            },
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_and_others_are_refused() {
        let labels = Labels::from([("host".to_owned(), "a".to_owned())]);
        for (text, value, filled) in [
            ("{{ $labels.host }} at {{$value}}", Some(91.5), "a at 91.5"),
            ("{{$labels.rack}}|{{ $value }}", None, "|no data"),
            ("{{ $value }}", Some(3.0), "3"),
            ("no { placeholder }", None, "no { placeholder }"),
            ("{{ open", None, "{{ open"),
            ("{{ $value | humanize }}", None, "{{ $value | humanize }}"),
        ] {
            assert_eq!(render(text, &labels, value), filled, "{text}");
        }
        let known = ["host".to_owned()];
        assert!(check("summary", "{{ $labels.host }} {{ $value }}", &known).is_ok());
        for wrong in ["{{ open", "{{ $value | humanize }}", "{{ $labels.rack }}", "{{}}"] {
            let error = check("annotation summary", wrong, &known).unwrap_err();
            assert_eq!(error.code(), Code::InvalidInput);
            assert!(error.message().starts_with("annotation summary"), "{error}");
        }
    }
}
