//! The parameters of a request: of its query string, or of a form in its body.

/// Names with their decoded values; of a repeated name the first counts.
#[derive(Debug, Clone, Default)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads `a=1&b=2`.
    #[must_use]
    pub fn read(text: &[u8]) -> Self {
        Parameters(form_urlencoded::parse(text).into_owned().collect())
    }

    /// The value of a name; an empty value counts as none.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether a name is switched on: `true`, `1` or without a value.
    #[must_use]
    pub fn flag(&self, name: &str, default: bool) -> bool {
        match self.0.iter().find(|(key, _)| key == name) {
            None => default,
            Some((_, value)) => !matches!(value.as_str(), "false" | "0" | "f" | "no"),
        }
    }

    /// These parameters, and where a name is missing, those.
    #[must_use]
    pub fn or(mut self, others: Parameters) -> Self {
        self.0.extend(others.0);
        self
    }
}
