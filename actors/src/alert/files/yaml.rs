//! One file of rules: Prometheus' shape, with SQL in `expr` and some keys of our own.
//!
//! What is no YAML of this shape is refused as a whole, since nobody can tell which rules it
//! would have had. A rule whose words mean nothing is refused alone.

use std::collections::BTreeMap;

use kymo_kernel::alert::{AlertDef, AlertOrigin, Missing, NoData};
use kymo_kernel::schema::{DEFAULT_DATABASE, DEFAULT_SCHEMA};
use kymo_kernel::{Code, Error, Result};
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::query::Span;

/// As whom queries of rules of files run.
const OWNER: &str = "files";

/// A rule as a file has it.
#[derive(Debug, Clone)]
pub struct Written {
    /// Its group.
    pub group: String,
    /// Its name.
    pub rule: String,
    /// The line where it begins, from 1.
    pub line: u64,
    /// What it means, or why it means nothing.
    pub def: Result<AlertDef>,
}

/// Why a file is refused as a whole.
#[derive(Debug, Clone)]
pub struct Misread {
    /// The line, where one is known.
    pub line: Option<u64>,
    /// The reason.
    pub error: Error,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    groups: Option<Vec<Group>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    interval: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    rules: Option<Vec<Spanned<Rule>>>,
    // Ours.
    database: Option<String>,
    schema: Option<String>,
    notify: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: Option<String>,
    record: Option<String>,
    expr: Option<String>,
    r#for: Option<String>,
    keep_firing_for: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    // Ours.
    when: Option<String>,
    notify: Option<Vec<String>>,
    no_data_after: Option<String>,
    no_data_as: Option<String>,
}

/// Reads the rules of a file, in their order.
///
/// # Errors
/// [`Misread`] for a text that is no file of rules, with the line.
pub fn read(file: &str, text: &str) -> Result<Vec<Written>, Misread> {
    // A text without a document is a file without rules.
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Vec::new());
    }
    let read: Option<File> = serde_saphyr::from_str(text).map_err(misread)?;
    let groups = read.and_then(|file| file.groups).unwrap_or_default();
    let mut written = Vec::new();
    for mut group in groups {
        for rule in group.rules.take().unwrap_or_default() {
            written.push(one(file, &group, rule)?);
        }
    }
    Ok(written)
}

fn misread(error: serde_saphyr::Error) -> Misread {
    let line = error.location().map(|location| location.line());
    let error = Error::new(Code::Syntax, error.without_snippet().to_string()).with_hint(
        "groups: is a list of name, interval, labels and rules; a rule has alert, expr, when, \
         for, keep_firing_for, labels, annotations, notify, no_data_after and no_data_as",
    );
    Misread { line, error }
}

fn one(file: &str, group: &Group, rule: Spanned<Rule>) -> Result<Written, Misread> {
    let line = rule.defined.line();
    let name = rule.value.alert.as_ref().or(rule.value.record.as_ref());
    let Some(name) = name.cloned() else {
        let text = format!("a rule of group {:?} has no name", group.name);
        let error = Error::new(Code::InvalidInput, text).with_hint("write alert: and its name");
        return Err(Misread { line: Some(line), error });
    };
    let def = definition(file, group, &name, rule.value);
    Ok(Written { group: group.name.clone(), rule: name, line, def })
}

fn definition(file: &str, group: &Group, name: &str, rule: Rule) -> Result<AlertDef> {
    if rule.record.is_some() {
        let text = format!("{name} is a recording rule, which files of alert rules do not have");
        return Err(Error::new(Code::Unsupported, text).with_hint(
            "CREATE CONTINUOUS QUERY … INTO table AS SELECT … keeps a result up to date",
        ));
    }
    let mut labels = group.labels.clone().unwrap_or_default();
    labels.extend(rule.labels.unwrap_or_default());
    let mut channels = rule.notify.or_else(|| group.notify.clone()).unwrap_or_default();
    let mut seen = std::collections::BTreeSet::new();
    channels.retain(|channel| seen.insert(channel.clone()));
    let def = AlertDef {
        name: name.to_owned(),
        revision: 0,
        database: group.database.clone().unwrap_or_else(|| DEFAULT_DATABASE.to_owned()),
        schema: group.schema.clone().unwrap_or_else(|| DEFAULT_SCHEMA.to_owned()),
        owner: OWNER.to_owned(),
        query: sql("expr", rule.expr)?.ok_or_else(|| {
            Error::new(Code::InvalidInput, "the rule has no expr")
                .with_hint("write expr: and a SELECT, each of whose rows is an alert")
        })?,
        condition: sql("when", rule.when)?,
        every_ns: time("interval", group.interval.as_deref())?,
        hold_ns: time("for", rule.r#for.as_deref())?.unwrap_or_default(),
        keep_firing_ns: time("keep_firing_for", rule.keep_firing_for.as_deref())?
            .unwrap_or_default(),
        no_data: no_data(rule.no_data_after.as_deref(), rule.no_data_as.as_deref())?,
        labels,
        annotations: rule.annotations.unwrap_or_default(),
        channels,
        paused: false,
        origin: Some(AlertOrigin { file: file.to_owned(), group: group.name.clone() }),
    };
    crate::catalog::plan::alerts::check(&def)?;
    Ok(def)
}

/// SQL without the space and the semicolon around it.
fn sql(key: &str, text: Option<String>) -> Result<Option<String>> {
    let Some(text) = text else { return Ok(None) };
    let text = text.trim().trim_end_matches(';').trim_end();
    if text.is_empty() {
        return Err(Error::new(Code::InvalidInput, format!("{key} is empty")));
    }
    Ok(Some(text.to_owned()))
}

/// A length of time in nanoseconds, as Prometheus or SQL writes it; zero needs no unit.
fn time(key: &str, text: Option<&str>) -> Result<Option<i64>> {
    let Some(text) = text else { return Ok(None) };
    if text.trim() == "0" {
        return Ok(Some(0));
    }
    match Span::parse(text).map_err(|error| error.context(format!("read {key}")))?.fixed_nanos() {
        Some(nanos) if nanos >= 0 => Ok(Some(nanos)),
        _ => {
            let text = format!("{key}: {text} is negative or has no fixed length");
            Err(Error::new(Code::InvalidInput, text).with_hint("write it like 10s, 5m or 1h30m"))
        }
    }
}

fn no_data(after: Option<&str>, means: Option<&str>) -> Result<Option<NoData>> {
    let wrong = |text: &str| {
        Err(Error::new(Code::InvalidInput, text)
            .with_hint("write no_data_after: 5m and no_data_as: firing, resolved or ignore"))
    };
    match (time("no_data_after", after)?, means) {
        (None, None) => Ok(None),
        (Some(after_ns), Some(word)) => match Missing::from_word(word) {
            Some(means) => Ok(Some(NoData { after_ns, means })),
            None => wrong(&format!("no_data_as: {word} is not known")),
        },
        (Some(_), None) => wrong("no_data_after says nothing without no_data_as"),
        (None, Some(_)) => wrong("no_data_as says nothing without no_data_after"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn rules(text: &str) -> Vec<Written> {
        read("a.yml", text).unwrap_or_else(|misread| panic!("{text}: {misread:?}"))
    }

    fn def(text: &str) -> AlertDef {
        rules(text).remove(0).def.unwrap()
    }

    #[test]
    fn a_rule_is_read_with_every_key() {
        let text = "\
# Rules of the web servers.
groups:
  - name: web
    interval: 30s
    database: metrics
    schema: web
    labels: { team: a, severity: low }
    notify: [log]
    rules:
      - alert: HotCPU
        expr: |
          SELECT host, max(usage) AS u
          FROM cpu GROUP BY host;
        when: u > 90 AND u < 1000
        for: 1h30m
        keep_firing_for: 5m
        no_data_after: 2m
        no_data_as: firing
        labels:
          severity: 1
        annotations:
          summary: \"{{ $labels.host }}: {{ $value }}\"
        notify: [ops, log, ops]
      - alert: Plain
        expr: SELECT 1
";
        let found = rules(text);
        let shown: Vec<_> =
            found.iter().map(|each| (each.group.as_str(), each.rule.as_str(), each.line)).collect();
        assert_eq!(shown, [("web", "HotCPU", 10), ("web", "Plain", 24)]);
        let hot = found[0].def.clone().unwrap();
        assert_eq!(hot.query, "SELECT host, max(usage) AS u\nFROM cpu GROUP BY host");
        assert_eq!(hot.condition.as_deref(), Some("u > 90 AND u < 1000"));
        assert_eq!((hot.database.as_str(), hot.schema.as_str()), ("metrics", "web"));
        assert_eq!((hot.every_ns, hot.hold_ns), (Some(30 * SECOND), 5400 * SECOND));
        assert_eq!(hot.keep_firing_ns, 300 * SECOND);
        let no_data = NoData { after_ns: 120 * SECOND, means: Missing::Firing };
        assert_eq!(hot.no_data, Some(no_data));
        let labels: Vec<_> = hot.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(labels, ["severity=1", "team=a"]);
        assert_eq!(hot.annotations["summary"], "{{ $labels.host }}: {{ $value }}");
        assert_eq!(hot.channels, ["ops", "log"]);
        assert_eq!(hot.origin.unwrap().to_string(), "a.yml: web");
        let plain = found[1].def.clone().unwrap();
        assert_eq!((plain.condition, plain.hold_ns, plain.no_data), (None, 0, None));
        assert_eq!(
            (plain.labels["severity"].as_str(), plain.channels),
            ("low", vec!["log".into()])
        );
    }

    #[test]
    fn what_says_nothing_is_left_out() {
        for text in [
            "",
            "# nothing\n\n",
            "groups:\n",
            "groups: []\n",
            "---\n",
            "null\n",
            "groups:\n  - name: a\n",
            "groups:\n  - name: a\n    rules:\n",
        ] {
            assert!(rules(text).is_empty(), "{text:?}");
        }
        let alone = "groups: [{name: g, rules: [{alert: a, expr: SELECT 1, labels: , for: 0}]}]";
        let alone = def(alone);
        assert_eq!((alone.database.as_str(), alone.every_ns), (DEFAULT_DATABASE, None));
    }

    #[test]
    fn a_rule_that_means_nothing_is_refused_alone() {
        for (keys, code, part) in [
            ("record: a, expr: SELECT 1", Code::Unsupported, "recording rule"),
            ("alert: a", Code::InvalidInput, "no expr"),
            ("alert: a, expr: ' ; '", Code::InvalidInput, "expr is empty"),
            ("alert: a, expr: SELECT 1, when: ''", Code::InvalidInput, "when is empty"),
            ("alert: a, expr: SELECT 1, for: soon", Code::InvalidCast, "soon"),
            ("alert: a, expr: SELECT 1, for: 1mo", Code::InvalidInput, "1mo"),
            ("alert: a, expr: SELECT 1, for: -5m", Code::InvalidInput, "-5m"),
            ("alert: '', expr: SELECT 1", Code::InvalidInput, "empty"),
            ("alert: a, expr: SELECT 1, no_data_after: 5m", Code::InvalidInput, "no_data_as"),
            ("alert: a, expr: SELECT 1, no_data_as: firing", Code::InvalidInput, "no_data_after"),
            (
                "alert: a, expr: SELECT 1, no_data_after: 5m, no_data_as: odd",
                Code::InvalidInput,
                "odd",
            ),
        ] {
            let text = format!(
                "groups:\n- name: g\n  rules:\n  - {{{keys}}}\n  - {{alert: b, expr: SELECT 2}}\n"
            );
            let found = rules(&text);
            let error = found[0].def.clone().unwrap_err();
            assert_eq!(error.code(), code, "{keys}: {error:?}");
            assert!(error.message().contains(part), "{keys}: {error:?}");
            assert_eq!((found[0].line, found[1].line), (4, 5), "{keys}");
            assert!(found[1].def.is_ok(), "{keys}");
        }
        let often = "groups: [{name: g, interval: 1ms, rules: [{alert: a, expr: SELECT 1}]}]";
        assert_eq!(rules(often)[0].def.clone().unwrap_err().code(), Code::InvalidInput);
        let record = "groups: [{name: g, rules: [{record: a, expr: SELECT 1}]}]";
        let hint = rules(record)[0].def.clone().unwrap_err();
        assert!(hint.hint().unwrap().contains("CREATE CONTINUOUS QUERY"), "{hint:?}");
    }

    #[test]
    fn what_is_no_file_of_rules_is_refused_with_its_line() {
        for (text, line, part) in [
            ("groups:\n  - name: a\n   rules: []\n", 3, ""),
            ("groups:\n  - name: a\n    rulez: []\n", 3, "rulez"),
            ("groups:\n  - name: a\n    rules:\n    - alert: x\n      exp: SELECT 1\n", 5, "exp"),
            ("groups:\n  - rules: []\n", 2, "name"),
            ("groups:\n  - name: g\n    rules:\n    - expr: SELECT 1\n", 4, "no name"),
            ("rules: []\n", 1, "rules"),
            ("groups: 7\n", 1, ""),
            ("[1, 2\n", 1, ""),
            ("groups: &a [*a]\n", 1, ""),
            ("groups: []\n---\ngroups: []\n", 3, ""),
            ("groups: []\ngroups: []\n", 2, "groups"),
        ] {
            let misread = read("a.yml", text).unwrap_err();
            assert_eq!(misread.line, Some(line), "{text}: {misread:?}");
            assert!(misread.error.message().contains(part), "{text}: {misread:?}");
        }
    }

    #[test]
    fn mutated_files_are_read_or_refused() {
        let full = "groups:\n- name: web\n  interval: 30s\n  labels: &l {team: a}\n  rules:\n  - \
                    alert: Hot\n    expr: |\n      SELECT host, usage FROM cpu\n    when: usage > 90\n    \
                    for: 1m\n    labels: *l\n    annotations: {s: \"{{ $value }}\"}\n    notify: [log]\n  \
                    - {record: r, expr: SELECT 1, no_data_after: 5m, no_data_as: firing}\n";
        let deep = "[".repeat(3000);
        let merged = "groups: [{<<: {name: g}, rules: [{alert: a, expr: SELECT 1}]}]";
        let corpus = [full, deep.as_str(), merged].map(|text| text.as_bytes().to_vec());
        crate::fuzz::fuzz("files of alert rules", &corpus, |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let lines = text.lines().count() as u64 + 1;
            match read("a.yml", text) {
                Ok(written) => written.iter().for_each(|each| {
                    assert!((1..=lines).contains(&each.line), "line {}", each.line);
                    if let Ok(def) = &each.def {
                        assert!(def.check().is_ok() && !def.query.trim().is_empty());
                    }
                }),
                Err(misread) => assert!(!misread.error.message().is_empty()),
            }
        });
    }
}
