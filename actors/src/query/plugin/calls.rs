//! The functions that a statement calls, by the names it calls them.

use datafusion::sql::sqlparser::ast::{Ident, ObjectName};

/// A function's name in a statement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Called {
    /// The name as the engine's planner looks it up.
    pub(crate) key: String,
    /// Its parts, in lower case unless quoted.
    pub(crate) parts: Vec<String>,
    /// Where it is called.
    pub(crate) place: Place,
}

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// Among values.
    Value,
    /// In `FROM`.
    From,
}

impl Called {
    /// Reads a function's name; the unquoted parts of a name of several become lower case,
    /// which the engine leaves out. `None` for names that are no identifiers.
    pub(crate) fn read(name: &mut ObjectName, place: Place) -> Option<Called> {
        for part in &mut name.0 {
            if let Some(ident) = part.as_ident()
                && ident.quote_style.is_none()
                && ident.value.bytes().any(|letter| letter.is_ascii_uppercase())
            {
                let lower = Ident { value: ident.value.to_lowercase(), ..ident.clone() };
                *part = datafusion::sql::sqlparser::ast::ObjectNamePart::Identifier(lower);
            }
        }
        let parts = name.0.iter().map(|part| part.as_ident().map(|ident| ident.value.clone()));
        let parts: Vec<String> = parts.collect::<Option<_>>()?;
        let key = match parts.as_slice() {
            [name] => name.clone(),
            _ => name.to_string(),
        };
        Some(Called { key, parts, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parts: &[Ident]) -> (String, Called) {
        let mut name = ObjectName::from(parts.to_vec());
        let called = Called::read(&mut name, Place::Value).unwrap();
        (name.to_string(), called)
    }

    #[test]
    fn names_are_lower_case_unless_quoted() {
        let (written, called) = read(&[Ident::new("Weather"), Ident::new("C2F")]);
        assert_eq!((written.as_str(), called.key.as_str()), ("weather.c2f", "weather.c2f"));
        assert_eq!(called.parts, ["weather", "c2f"]);
        let (written, called) = read(&[Ident::with_quote('"', "Weather"), Ident::new("c2f")]);
        assert_eq!(called.key, written);
        assert_eq!(called.parts, ["Weather", "c2f"]);
        assert_eq!(read(&[Ident::with_quote('"', "Sum")]).1.key, "Sum");
    }
}
