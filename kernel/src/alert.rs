//! Alert rules and silences as the metadata keeps them: definitions only, as they were written.
//! What a rule found and which alerts it has is rows of Kymo's own tables.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Code, Error, Result};
use crate::message::Labels;
use crate::schema::{DEFAULT_DATABASE, DEFAULT_SCHEMA};

mod channel;

pub use channel::{ChannelDef, ChannelKind, no_channel};

/// A rule: a query, a condition over its rows, and what follows where it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertDef {
    /// Its name, unique on the server; the label `alertname` of its alerts.
    pub name: String,
    /// Counts its changes; the first definition has 1.
    pub revision: u64,
    /// Where unqualified names of the query are looked up.
    pub database: String,
    /// The schema within it.
    pub schema: String,
    /// Who created it, and as whom its query runs.
    pub owner: String,
    /// The text of the `SELECT`.
    pub query: String,
    /// The text of the condition over its columns; without one every row counts.
    pub condition: Option<String>,
    /// Nanoseconds between two evaluations; the server's setting where absent.
    pub every_ns: Option<i64>,
    /// Nanoseconds for which the condition has to hold before the alert fires.
    pub hold_ns: i64,
    /// Nanoseconds for which an alert goes on firing after the condition ceased to hold.
    pub keep_firing_ns: i64,
    /// What it means that a label set has no rows any more.
    pub no_data: Option<NoData>,
    /// Labels that its alerts have beside those of their rows; may have placeholders.
    pub labels: BTreeMap<String, String>,
    /// Texts for people; may have placeholders.
    pub annotations: BTreeMap<String, String>,
    /// The channels that are notified.
    pub channels: Vec<String>,
    /// Whether it is not evaluated.
    pub paused: bool,
    /// The file that it comes from and stays with; `None` for one that a statement created.
    pub origin: Option<AlertOrigin>,
}

/// Where a rule of a file is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertOrigin {
    /// The name of the file within the folder of rules.
    pub file: String,
    /// The group within it.
    pub group: String,
}

impl fmt::Display for AlertOrigin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.file, self.group)
    }
}

/// What it means that a label set has no rows any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoData {
    /// Nanoseconds without a row after which it takes effect.
    pub after_ns: i64,
    /// What it means.
    pub means: Missing,
}

/// What missing rows of a label set mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// An alert: it fires.
    Firing,
    /// No alert: one that fired is resolved.
    Resolved,
    /// Nothing: what the last row said counts until there is another.
    Ignore,
}

impl Missing {
    /// The word of SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Missing::Firing => "firing",
            Missing::Resolved => "resolved",
            Missing::Ignore => "ignore",
        }
    }

    /// The meaning of a word of SQL.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Missing> {
        [Missing::Firing, Missing::Resolved, Missing::Ignore]
            .into_iter()
            .find(|each| each.as_str().eq_ignore_ascii_case(word))
    }
}

/// Which alerts are meant: those of a rule or of all, with these labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Matcher {
    /// The rule; all rules where absent.
    pub rule: Option<String>,
    /// Labels that an alert must have, with these values.
    pub labels: BTreeMap<String, String>,
}

impl Matcher {
    /// Whether an alert of a rule with these labels is meant.
    #[must_use]
    pub fn matches(&self, rule: &str, labels: &Labels) -> bool {
        self.rule.as_deref().is_none_or(|wanted| wanted == rule)
            && self.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
    }
}

/// As it is written behind `SILENCE` and `ACK`.
impl fmt::Display for Matcher {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.rule.as_deref().unwrap_or("every rule"))?;
        for (number, (name, value)) in self.labels.iter().enumerate() {
            let word = if number == 0 { "WHERE" } else { "AND" };
            write!(out, " {word} {name} = '{}'", value.replace('\'', "''"))?;
        }
        Ok(())
    }
}

/// A time in which alerts are not sent to channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilenceDef {
    /// Its number.
    pub id: u64,
    /// Which alerts.
    pub matcher: Matcher,
    /// Its beginning, in nanoseconds since 1970-01-01T00:00:00Z.
    pub starts_ns: i64,
    /// Its end.
    pub ends_ns: i64,
    /// Who made it.
    pub author: String,
    /// Why.
    pub comment: String,
}

impl SilenceDef {
    /// Whether it covers an instant.
    #[must_use]
    pub fn covers(&self, instant_ns: i64) -> bool {
        (self.starts_ns..self.ends_ns).contains(&instant_ns)
    }
}

/// The error for a rule that does not exist.
#[must_use]
pub fn no_alert(name: &str) -> Error {
    Error::new(Code::AlertNotFound, format!("alert {name:?} does not exist"))
        .with_hint("SHOW ALERTS lists the rules that do")
}

impl AlertDef {
    /// A rule of the usual database that leaves out whatever may be left out.
    #[must_use]
    pub fn new(name: &str, owner: &str, query: &str) -> AlertDef {
        AlertDef {
            name: name.to_owned(),
            revision: 0,
            database: DEFAULT_DATABASE.to_owned(),
            schema: DEFAULT_SCHEMA.to_owned(),
            owner: owner.to_owned(),
            query: query.to_owned(),
            condition: None,
            every_ns: None,
            hold_ns: 0,
            keep_firing_ns: 0,
            no_data: None,
            labels: Labels::new(),
            annotations: Labels::new(),
            channels: Vec::new(),
            paused: false,
            origin: None,
        }
    }

    /// Whether another definition says the same: all but how often it was changed, and whether
    /// it is paused.
    #[must_use]
    pub fn says_the_same(&self, other: &AlertDef) -> bool {
        let AlertDef { revision, paused, .. } = *self;
        *self == AlertDef { revision, paused, ..other.clone() }
    }

    /// Whether alerts under another definition would be other alerts: they would have other
    /// labels, or others would be told of them.
    #[must_use]
    pub fn renames(&self, other: &AlertDef) -> bool {
        self.labels != other.labels || self.channels != other.channels
    }

    /// Whether its times can be: none negative, and an interval that is not zero.
    ///
    /// # Errors
    /// `invalid_input`.
    pub fn check(&self) -> Result<()> {
        let after = self.no_data.map(|no_data| no_data.after_ns);
        let times = [Some(self.hold_ns), Some(self.keep_firing_ns), after];
        if self.every_ns.is_some_and(|every| every < MIN_EVERY_NS)
            || times.into_iter().flatten().any(|time| time < 0)
        {
            return Err(Error::new(
                Code::InvalidInput,
                format!("alert {:?}: a time is negative or too short", self.name),
            )
            .with_hint("EVERY is at least '100ms'; FOR, KEEP FIRING FOR and NO DATA AFTER are not negative"));
        }
        Ok(())
    }
}

/// The shortest interval of evaluation: 100 ms.
pub const MIN_EVERY_NS: i64 = 100_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_compared_by_what_it_says() {
        let one = AlertDef::new("a", "ada", "SELECT 1");
        let later = AlertDef { revision: 7, paused: true, ..one.clone() };
        assert!(one.says_the_same(&later) && !one.renames(&later));
        let held = AlertDef { hold_ns: 1, ..one.clone() };
        assert!(!one.says_the_same(&held) && !one.renames(&held));
        let origin = AlertOrigin { file: "a.yml".to_owned(), group: "g".to_owned() };
        assert_eq!(origin.to_string(), "a.yml: g");
        let moved = AlertDef { origin: Some(origin), ..one.clone() };
        assert!(!one.says_the_same(&moved) && !one.renames(&moved));
        let told = AlertDef { channels: vec!["ops".to_owned()], ..one.clone() };
        assert!(one.renames(&told));
    }
}
