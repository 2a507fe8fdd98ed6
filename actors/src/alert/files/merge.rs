//! What files of rules change: the rules that are there against those that the files have.
//!
//! A rule that a file has and that cannot be taken leaves the one in force that was there
//! before; so does a file that cannot be read. A rule that no file has any more goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kymo_kernel::alert::AlertDef;
use kymo_kernel::{Code, Error, Result};

use super::yaml::{Misread, Written};
use crate::catalog::plan::alerts::{taken, too_many};
use crate::query::AlertFileRow;

/// A file of the folder.
#[derive(Debug, Clone)]
pub struct RuleFile {
    /// Its name within the folder.
    pub name: String,
    /// Its rules.
    pub rules: Result<Vec<Written>, Misread>,
}

/// What is to be done, and what is to be shown.
#[derive(Debug, Default)]
pub struct Merged {
    /// A row for each rule and for each file that is refused.
    pub shown: Vec<Shown>,
    /// Rules that are new or have changed, with their places in `shown`. They are in force once
    /// they can be planned.
    pub put: Vec<(usize, AlertDef)>,
    /// Rules that are in the files no more.
    pub drop: Vec<String>,
}

/// A rule of a file, or a file that is refused.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The file.
    pub file: String,
    /// The line, where one is known.
    pub line: Option<u64>,
    /// Group and name of the rule; `None` for a file.
    pub rule: Option<(String, String)>,
    /// Why it is refused.
    pub refused: Option<Error>,
    /// Whether a rule of its name was there before and goes on.
    pub previous: bool,
}

impl Shown {
    /// Whether it is refused for what can come without a change of the file: a table, a column
    /// or a function of a plugin.
    pub fn waits(&self) -> bool {
        let missing = [
            Code::DatabaseNotFound,
            Code::TableNotFound,
            Code::ColumnNotFound,
            Code::FunctionNotFound,
            Code::PluginNotFound,
            Code::PluginUnavailable,
        ];
        self.refused.as_ref().is_some_and(|error| missing.contains(&error.code()))
    }

    /// As a row of `system.alert_files`.
    pub fn row(&self) -> AlertFileRow {
        let (group, rule) = self.rule.clone().unzip();
        let status = match (&self.refused, self.previous) {
            (None, _) => "loaded",
            (Some(_), true) => "previous",
            (Some(_), false) => "refused",
        };
        AlertFileRow {
            file: self.file.clone(),
            line: self.line,
            group,
            rule,
            status: status.to_owned(),
            error: self.refused.as_ref().map(|error| error.message().to_owned()),
            hint: self.refused.as_ref().and_then(|error| error.hint().map(str::to_owned)),
        }
    }
}

/// Compares files with the rules that are there, of which there may be `most`.
pub fn merge(known: &BTreeMap<String, Arc<AlertDef>>, files: &[RuleFile], most: usize) -> Merged {
    let mut merged = Merged { drop: gone(known, files), ..Merged::default() };
    let mut room = most.saturating_sub(known.len() - merged.drop.len());
    let mut names: BTreeMap<&str, &RuleFile> = BTreeMap::new();
    for file in files {
        let written = match &file.rules {
            Ok(written) => written,
            Err(misread) => {
                merged.shown.push(refused_file(known, file, misread));
                continue;
            }
        };
        for each in written {
            let place = merged.shown.len();
            let first = names.get(each.rule.as_str()).copied();
            let outcome = match first {
                Some(first) => Err(twice(&each.rule, first)),
                None => judge(known, each, &mut room, most),
            };
            names.entry(&each.rule).or_insert(file);
            let before = known.get(&each.rule).is_some_and(|known| known.origin.is_some());
            merged.shown.push(Shown {
                file: file.name.clone(),
                line: Some(each.line),
                rule: Some((each.group.clone(), each.rule.clone())),
                refused: outcome.as_ref().err().cloned(),
                // The first rule of a name has the name.
                previous: before && first.is_none(),
            });
            merged.put.extend(outcome.ok().flatten().map(|def| (place, def)));
        }
    }
    merged
}

/// A rule by itself: its definition where that is new or has changed.
fn judge(
    known: &BTreeMap<String, Arc<AlertDef>>,
    written: &Written,
    room: &mut usize,
    most: usize,
) -> Result<Option<AlertDef>> {
    let def = written.def.clone()?;
    match known.get(&def.name) {
        Some(known) if known.origin.is_none() => {
            Err(taken(known).with_hint("use another name in the file, or DROP ALERT first"))
        }
        Some(known) if known.says_the_same(&def) => Ok(None),
        Some(_) => Ok(Some(def)),
        None if *room == 0 => Err(too_many(most)),
        None => {
            *room -= 1;
            Ok(Some(def))
        }
    }
}

fn twice(rule: &str, first: &RuleFile) -> Error {
    let text = format!("alert {rule:?} is written twice, first in {:?}", first.name);
    Error::new(Code::AlreadyExists, text)
        .with_hint("names of rules are unique on a server; use another one")
}

fn refused_file(
    known: &BTreeMap<String, Arc<AlertDef>>,
    file: &RuleFile,
    misread: &Misread,
) -> Shown {
    Shown {
        file: file.name.clone(),
        line: misread.line,
        rule: None,
        refused: Some(misread.error.clone()),
        previous: known.values().any(|known| comes_from(known, file)),
    }
}

fn comes_from(rule: &AlertDef, file: &RuleFile) -> bool {
    rule.origin.as_ref().is_some_and(|origin| origin.file == file.name)
}

/// The rules of files that no file has any more. Those of a file that cannot be read stay.
fn gone(known: &BTreeMap<String, Arc<AlertDef>>, files: &[RuleFile]) -> Vec<String> {
    let written: BTreeSet<&str> = files
        .iter()
        .filter_map(|file| file.rules.as_ref().ok())
        .flatten()
        .map(|each| each.rule.as_str())
        .collect();
    let unread: Vec<&RuleFile> = files.iter().filter(|file| file.rules.is_err()).collect();
    known
        .values()
        .filter(|rule| rule.origin.is_some() && !written.contains(rule.name.as_str()))
        .filter(|rule| !unread.iter().any(|file| comes_from(rule, file)))
        .map(|rule| rule.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    fn file(name: &str, rules: &[&str]) -> RuleFile {
        let rules: Vec<String> = rules.iter().map(|rule| format!("{{{rule}}}")).collect();
        let text = format!("groups: [{{name: g, rules: [{}]}}]", rules.join(", "));
        RuleFile { name: name.to_owned(), rules: yaml::read(name, &text) }
    }

    fn broken(name: &str) -> RuleFile {
        RuleFile { name: name.to_owned(), rules: yaml::read(name, "groups: 7") }
    }

    /// The rules that are there after files were merged, all of which can be planned.
    fn after(
        mut known: BTreeMap<String, Arc<AlertDef>>,
        files: &[RuleFile],
    ) -> BTreeMap<String, Arc<AlertDef>> {
        let merged = merge(&known, files, 100);
        for name in merged.drop {
            known.remove(&name);
        }
        for (_, def) in merged.put {
            known.insert(def.name.clone(), def.into());
        }
        known
    }

    fn own(name: &str) -> (String, Arc<AlertDef>) {
        let written = yaml::read(
            "own",
            &format!("groups: [{{name: g, rules: [{{alert: {name}, expr: SELECT 0}}]}}]"),
        );
        let def = written.unwrap().remove(0).def.unwrap();
        (name.to_owned(), AlertDef { origin: None, ..def }.into())
    }

    /// `file:line name status`, and what is to be done.
    fn told(
        known: &BTreeMap<String, Arc<AlertDef>>,
        files: &[RuleFile],
        most: usize,
    ) -> Vec<String> {
        let merged = merge(known, files, most);
        let mut lines: Vec<String> = merged
            .shown
            .iter()
            .map(|shown| {
                let row = shown.row();
                format!("{} {} {}", row.file, row.rule.unwrap_or_default(), row.status)
            })
            .collect();
        lines.extend(merged.put.iter().map(|(place, def)| format!("put {place} {}", def.name)));
        lines.extend(merged.drop.iter().map(|name| format!("drop {name}")));
        lines
    }

    #[test]
    fn rules_come_change_and_go_with_their_files() {
        let none = BTreeMap::new();
        let first = [file("1", &["alert: a, expr: SELECT 1", "alert: b, expr: SELECT 2"])];
        let expected = ["1 a loaded", "1 b loaded", "put 0 a", "put 1 b"];
        assert_eq!(told(&none, &first, 9), expected);
        let known = after(none, &first);
        assert_eq!(told(&known, &first, 9), ["1 a loaded", "1 b loaded"]);
        let second =
            [file("1", &["alert: b, expr: SELECT 3"]), file("2", &["alert: c, expr: SELECT 4"])];
        let expected = ["1 b loaded", "2 c loaded", "put 0 b", "put 1 c", "drop a"];
        assert_eq!(told(&known, &second, 9), expected);
        let known = after(known, &second);
        assert_eq!(told(&known, &[], 9), ["drop b", "drop c"]);
        // It moves to another file, and stays what it is.
        let moved = [file("2", &["alert: b, expr: SELECT 3", "alert: c, expr: SELECT 4"])];
        assert_eq!(told(&known, &moved, 9), ["2 b loaded", "2 c loaded", "put 0 b"]);
    }

    #[test]
    fn what_is_refused_leaves_what_was_there() {
        let known = after(
            BTreeMap::new(),
            &[file("1", &["alert: a, expr: SELECT 1"]), file("2", &["alert: b, expr: SELECT 2"])],
        );
        let files = [broken("1"), file("2", &["alert: b, expr: ''", "alert: d, expr: ''"])];
        let expected = ["1  previous", "2 b previous", "2 d refused"];
        assert_eq!(told(&known, &files, 9), expected);
        assert_eq!(told(&known, &[broken("3")], 9), ["3  refused", "drop a", "drop b"]);
    }

    #[test]
    fn names_are_unique_among_files_and_statements() {
        let known: BTreeMap<_, _> = [own("x")].into();
        let files = [
            file("1", &["alert: x, expr: SELECT 1", "alert: a, expr: SELECT 1"]),
            file("2", &["alert: a, expr: SELECT 2"]),
        ];
        assert_eq!(
            told(&known, &files, 9),
            ["1 x refused", "1 a loaded", "2 a refused", "put 1 a"]
        );
        let merged = merge(&known, &files, 9);
        let clash = merged.shown[0].refused.clone().unwrap();
        assert_eq!(clash.code(), Code::AlreadyExists);
        assert!(clash.message().contains("\"x\""), "{clash:?}");
        let second = merged.shown[2].refused.clone().unwrap();
        assert!(second.message().contains("first in \"1\""), "{second:?}");
        // With the name in force from the first file, the second has nothing from before.
        let known = after(known, &files);
        assert_eq!(told(&known, &files, 9), ["1 x refused", "1 a loaded", "2 a refused"]);
        assert_eq!(told(&known, &[], 9), ["drop a"]);
    }

    #[test]
    fn there_are_no_more_rules_than_there_may_be() {
        let known: BTreeMap<_, _> = [own("x")].into();
        let two = ["alert: a, expr: SELECT 1", "alert: b, expr: SELECT 2"];
        let expected = ["1 a loaded", "1 b refused", "put 0 a"];
        assert_eq!(told(&known, &[file("1", &two)], 2), expected);
        let known = after(known, &[file("1", &two[..1])]);
        let other = [file("1", &two[1..])];
        assert_eq!(told(&known, &other, 2), ["1 b loaded", "put 0 b", "drop a"]);
    }
}
