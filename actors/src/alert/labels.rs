//! What tells one alert from another: the texts of a row's label columns, the labels made of
//! them, and the number that stands for them.

use kymo_kernel::alert::AlertDef;
use kymo_kernel::message::Labels;

use super::template;

/// The label that holds the name of the rule.
pub const ALERTNAME: &str = "alertname";

/// The texts of a row's label columns, in the order of the columns; an empty one is a label
/// that the row does not have.
pub type Values = Box<[Box<str>]>;

/// FNV-1a over texts, as Prometheus numbers its label sets: the same everywhere and always.
#[derive(Debug, Clone, Copy)]
pub struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Fingerprint(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    /// Adds a text, and where it ends.
    pub fn add(&mut self, text: &str) {
        for byte in text.bytes().chain([0xff]) {
            self.0 ^= u64::from(byte);
            self.0 = self.0.wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The number.
    #[must_use]
    pub fn finish(self) -> u64 {
        self.0
    }
}

/// The number of a label set within its rule.
#[must_use]
pub fn key<'a>(values: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut fingerprint = Fingerprint::default();
    values.into_iter().for_each(|value| fingerprint.add(value));
    fingerprint.finish()
}

/// The number of an alert among all, from its labels.
#[must_use]
pub fn fingerprint(labels: &Labels) -> u64 {
    let mut fingerprint = Fingerprint::default();
    for (name, value) in labels {
        fingerprint.add(name);
        fingerprint.add(value);
    }
    fingerprint.finish()
}

/// The labels of a row alone.
#[must_use]
pub fn of_row(names: &[String], values: &[Box<str>]) -> Labels {
    let labels = names.iter().zip(values).filter(|(_, value)| !value.is_empty());
    labels.map(|(name, value)| (name.clone(), value.to_string())).collect()
}

/// The labels of an alert: those of its row, then those of its rule, then the rule's name.
#[must_use]
pub fn of_alert(def: &AlertDef, row: &Labels, value: Option<f64>) -> Labels {
    let mut labels = row.clone();
    for (name, text) in &def.labels {
        let text = template::render(text, row, value);
        if text.is_empty() {
            labels.remove(name);
        } else {
            labels.insert(name.clone(), text);
        }
    }
    labels.insert(ALERTNAME.to_owned(), def.name.clone());
    labels
}

/// Labels as JSON.
#[must_use]
pub fn json(labels: &Labels) -> String {
    serde_json::to_string(labels).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_told_apart_by_where_they_end() {
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_ne!(key(["a", ""]), key(["a"]));
        assert_eq!(key(["a", "b"]), key(["a", "b"]));
        // Kept in rows of system.alert_states: it must not change.
        assert_eq!(key(["a"]), 0x089b_c907_b544_c769);
    }

    #[test]
    fn empty_values_are_no_labels() {
        let names = ["host".to_owned(), "core".to_owned()];
        let labels = of_row(&names, &["a".into(), "".into()]);
        assert_eq!(json(&labels), r#"{"host":"a"}"#);
        assert_ne!(fingerprint(&labels), fingerprint(&Labels::new()));
    }
}
