//! The layers and how they meet: built-in defaults, a file, the environment, flags; the
//! later one wins, and every value remembers where it came from.
//!
//! The `config` crate reads and merges. It stops at the first value that does not fit,
//! and an operator should not have to start five times to see five mistakes, so each key
//! is then checked alone and [`crate::validate`] looks at the whole.

use std::fmt;
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, File, FileFormat, Map, Source, Value, ValueKind};

use crate::settings::Settings;
use crate::validate;

/// The settings that hold when nothing else is said, with every key explained.
pub const DEFAULT_TOML: &str = include_str!("../default.toml");

/// The file that is read from the current folder when no other is named.
pub const DEFAULT_FILE: &str = "kymo.toml";

/// What every environment variable with a setting begins with.
pub const ENV_PREFIX: &str = "KYMO__";

/// What secrets look like in printed settings.
pub const REDACTED: &str = "[redacted]";

/// One thing that is wrong, where it was said, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, as `section.key`; empty where a whole source is concerned.
    pub key: String,
    /// Where it came from: a file, an environment variable, a flag.
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What can be done about it.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(out, "{}: ", self.key)?;
        }
        write!(out, "{} ({}); {}", self.what, self.place, self.hint)
    }
}

/// Everything that is wrong with the settings, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(out, "{count} {noun} in the settings")?;
        for problem in &self.0 {
            write!(out, "\n  - {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A setting given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The flag as the user typed it, such as `--http-port`.
    pub name: &'static str,
    /// The setting it stands for, such as `server.http_port`.
    pub key: &'static str,
    /// Its value as text.
    pub value: String,
}

/// What the layers above the built-in defaults are read from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A file that must exist.
    pub file: Option<PathBuf>,
    /// Environment variables; those without [`ENV_PREFIX`] are ignored.
    pub environment: Vec<(String, String)>,
    /// Flags of the command line.
    pub flags: Vec<Flag>,
}

impl Sources {
    /// The named file, or `kymo.toml` in the current folder where there is one, this
    /// process's environment, and the flags.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        let file = file.or_else(|| {
            let usual = PathBuf::from(DEFAULT_FILE);
            usual.is_file().then_some(usual)
        });
        let environment = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Sources { file, environment, flags }
    }
}

/// Reads all layers, or says everything that is wrong with them.
///
/// # Errors
/// [`Problems`] lists every unknown key, every value of a wrong type and every combination
/// that cannot work, with the place each came from.
pub fn load(sources: &Sources) -> Result<Settings, Problems> {
    let mut problems = Vec::new();
    let merged = merge(sources, &mut problems);
    let mut kept = Kept::default();
    for (section, keys) in tables(merged, &mut problems) {
        for (key, value) in keys {
            kept.take(&section, &key, value, &mut problems);
        }
    }
    let settings = kept.settings(&mut problems);
    problems.extend(validate::check(&settings, &|key| kept.place(key)));
    problems.sort_by(|a, b| a.key.cmp(&b.key));
    if problems.is_empty() { Ok(settings) } else { Err(Problems(problems)) }
}

/// The effective settings as TOML, with secrets redacted.
#[must_use]
pub fn print(settings: &Settings) -> String {
    let mut shown = settings.clone();
    if shown.auth.admin_password.is_some() {
        shown.auth.admin_password = Some(REDACTED.to_owned());
    }
    if !shown.storage.secret_access_key.is_empty() {
        shown.storage.secret_access_key = REDACTED.to_owned();
    }
    for channel in shown.alerts.channels.values_mut().filter(|it| !it.secret.is_empty()) {
        channel.secret = REDACTED.to_owned();
    }
    toml::to_string(&shown).unwrap_or_else(|error| format!("# cannot be printed: {error}\n"))
}

/// The layers on top of each other. A source that cannot be read is a problem, and the
/// others still count.
fn merge(sources: &Sources, problems: &mut Vec<Problem>) -> Map<String, Value> {
    let mut layers: Vec<Box<dyn Source + Send + Sync>> =
        vec![Box::new(File::from_str(DEFAULT_TOML, FileFormat::Toml))];
    if let Some(path) = &sources.file {
        match readable(path) {
            Ok(()) => layers.push(Box::new(File::from(path.as_path()).format(FileFormat::Toml))),
            Err(problem) => problems.push(problem),
        }
    }
    layers.push(Box::new(Pairs(environment_pairs(&sources.environment))));
    layers.push(Box::new(Pairs(flag_pairs(&sources.flags))));

    let built = Config::builder().add_source(layers).build();
    match built.and_then(|config| config.cache.into_table()) {
        Ok(table) => table,
        Err(error) => {
            problems.push(Problem {
                key: String::new(),
                place: sources.file.as_deref().map_or_else(String::new, file_place),
                what: one_line(&error),
                hint: "see `kymo start --print-config` for the form of the file".to_owned(),
            });
            Map::new()
        }
    }
}

fn readable(path: &Path) -> Result<(), Problem> {
    let problem = |what: String, hint: &str| Problem {
        key: String::new(),
        place: file_place(path),
        what,
        hint: hint.to_owned(),
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        problem(
            format!("the settings file cannot be read: {error}"),
            "check the path and its permissions",
        )
    })?;
    toml::from_str::<toml::Table>(&text).map(|_| ()).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        problem(
            format!("line {line} is not TOML: {}", error.message().replace('\n', ", ")),
            "correct that line; nothing else of the file was used",
        )
    })
}

fn file_place(path: &Path) -> String {
    format!("file {}", path.display())
}

fn one_line(error: &ConfigError) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A key, its value as text and the place it came from.
#[derive(Debug, Clone)]
struct Pair {
    key: String,
    place: String,
    value: String,
}

fn environment_pairs(variables: &[(String, String)]) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = variables
        .iter()
        .filter_map(|(name, value)| {
            let rest = name.strip_prefix(ENV_PREFIX)?;
            Some(Pair {
                key: rest.to_lowercase().replace("__", "."),
                place: format!("environment {name}"),
                value: value.clone(),
            })
        })
        .collect();
    pairs.sort_by(|a, b| a.key.cmp(&b.key));
    pairs
}

fn flag_pairs(flags: &[Flag]) -> Vec<Pair> {
    flags
        .iter()
        .map(|flag| Pair {
            key: flag.key.to_owned(),
            place: format!("flag {}", flag.name),
            value: flag.value.clone(),
        })
        .collect()
}

/// A layer of texts. The crate's own environment source forgets which variable a value
/// came from, and guesses types, so that a password of digits would lose its zeros.
#[derive(Debug, Clone)]
struct Pairs(Vec<Pair>);

impl Source for Pairs {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        let mut sections: Map<String, Value> = Map::new();
        for Pair { key, place, value } in &self.0 {
            let value = Value::new(Some(place), ValueKind::String(value.clone()));
            let Some((section, key)) = key.split_once('.') else {
                sections.insert(key.clone(), value);
                continue;
            };
            let table = sections
                .entry(section.to_owned())
                .or_insert_with(|| Value::new(Some(place), ValueKind::Table(Map::new())));
            if let ValueKind::Table(keys) = &mut table.kind {
                keys.insert(key.to_owned(), value);
            }
        }
        Ok(sections)
    }

    fn collect_to(&self, cache: &mut Value) -> Result<(), ConfigError> {
        let ValueKind::Table(root) = &mut cache.kind else { return Ok(()) };
        for (section, value) in self.collect()? {
            let place = value.origin().map(str::to_owned);
            match (root.get_mut(&section).map(|old| &mut old.kind), value.kind) {
                (Some(ValueKind::Table(old)), ValueKind::Table(new)) => old.extend(new),
                (_, kind) => {
                    root.insert(section, Value::new(place.as_ref(), kind));
                }
            }
        }
        Ok(())
    }
}

/// The merged tree as sections with their keys, in order.
fn tables(
    merged: Map<String, Value>,
    problems: &mut Vec<Problem>,
) -> Vec<(String, Vec<(String, Value)>)> {
    let known = known_sections();
    let mut sections = Vec::new();
    for (section, value) in merged {
        let place = place_of(&value);
        match value.kind {
            ValueKind::Table(keys) if known.contains(&section) => {
                let mut keys: Vec<_> = keys.into_iter().collect();
                keys.sort_by(|a, b| a.0.cmp(&b.0));
                sections.push((section, keys));
            }
            ValueKind::Table(keys) => {
                let place = keys.values().next().map_or(place, place_of);
                problems.push(unknown("section", &section, &section, place, &known));
            }
            _ => problems.push(unknown("section", &section, &section, place, &known)),
        }
    }
    sections.sort_by(|a, b| a.0.cmp(&b.0));
    sections
}

fn place_of(value: &Value) -> String {
    let Some(origin) = value.origin() else { return "built-in default".to_owned() };
    if origin.starts_with("environment ") || origin.starts_with("flag ") {
        origin.to_owned()
    } else {
        // The origin is relative to the current folder, which helps nobody who stands elsewhere.
        let path = Path::new(origin).canonicalize().unwrap_or_else(|_| origin.into());
        file_place(&path)
    }
}

fn unknown(noun: &str, name: &str, key: &str, place: String, known: &[String]) -> Problem {
    let hint = match nearest(name, known) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known here: {}", known.join(", ")),
    };
    Problem { key: key.to_owned(), place, what: format!("there is no such {noun}"), hint }
}

/// The default settings as a tree, plus the keys that have no default value.
fn shape() -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(Settings::default()) {
        Ok(serde_json::Value::Object(sections)) => sections,
        _ => serde_json::Map::new(),
    }
}

fn known_sections() -> Vec<String> {
    shape().keys().cloned().collect()
}

fn known_keys(section: &str) -> Vec<String> {
    shape()
        .get(section)
        .and_then(|keys| keys.as_object())
        .map(|keys| keys.keys().cloned().collect())
        .unwrap_or_default()
}

/// The known name that is at most a third wrong.
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    known
        .iter()
        .map(|each| (distance(name, each), each.as_str()))
        .filter(|(distance, each)| distance * 3 <= each.len().max(name.len()))
        .min()
        .map(|(_, each)| each)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let change = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The values that fit, each with the place it came from.
#[derive(Default)]
struct Kept {
    values: Map<String, Map<String, Value>>,
    places: Vec<(String, String)>,
}

impl Kept {
    /// Keeps a value if the settings can hold it under that key, and says why where not.
    fn take(&mut self, section: &str, key: &str, value: Value, problems: &mut Vec<Problem>) {
        let name = format!("{section}.{key}");
        let place = place_of(&value);
        let keys = known_keys(section);
        if !keys.iter().any(|known| known == key) {
            problems.push(unknown("key", key, &name, place, &keys));
            return;
        }
        let default = shape().get(section).and_then(|keys| keys.get(key).cloned());
        let value = as_list(value, default.as_ref());
        let fits = strict(&value, default.as_ref())
            .and_then(|()| alone(section, key, value.clone()).map_err(|error| reason(&error)));
        match fits {
            Ok(()) => {
                self.values.entry(section.to_owned()).or_default().insert(key.to_owned(), value);
                self.places.push((name, place));
            }
            Err(what) => problems.push(Problem {
                key: name,
                place,
                what,
                hint: match default {
                    Some(serde_json::Value::Null) | None => "give a text".to_owned(),
                    Some(default) => format!("the default is {default}"),
                },
            }),
        }
    }

    fn place(&self, key: &str) -> String {
        self.places
            .iter()
            .find(|(name, _)| name == key)
            .map_or_else(|| "built-in default".to_owned(), |(_, place)| place.clone())
    }

    fn settings(&self, problems: &mut Vec<Problem>) -> Settings {
        let tree: Map<String, Value> =
            self.values.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect();
        let built = Value::from(tree).try_deserialize::<Settings>();
        built.unwrap_or_else(|error| {
            problems.push(Problem {
                key: String::new(),
                place: "all sources together".to_owned(),
                what: one_line(&error),
                hint: "see `kymo start --print-config`".to_owned(),
            });
            Settings::default()
        })
    }
}

/// Text from a flag or a variable becomes a list where the key holds one.
fn as_list(value: Value, default: Option<&serde_json::Value>) -> Value {
    let place = value.origin().map(str::to_owned);
    match (value.kind, default) {
        (ValueKind::String(text), Some(serde_json::Value::Array(_))) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            let parts = parts.map(|part| Value::new(place.as_ref(), part)).collect();
            Value::new(place.as_ref(), ValueKind::Array(parts))
        }
        (kind, _) => Value::new(place.as_ref(), kind),
    }
}

/// Refuses what the `config` crate would bend until it fits: a fraction as a count, a
/// number as a text or as yes and no.
fn strict(value: &Value, default: Option<&serde_json::Value>) -> Result<(), String> {
    use serde_json::Value as Json;
    let said = match &value.kind {
        ValueKind::Float(number) => format!("the number {number}"),
        ValueKind::Boolean(flag) => format!("{flag}"),
        ValueKind::String(text) => format!("the text {text:?}"),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        ValueKind::Nil => "nothing".to_owned(),
        number => format!("the number {}", Value::new(None, number.clone())),
    };
    let number = matches!(
        value.kind,
        ValueKind::I64(_) | ValueKind::U64(_) | ValueKind::I128(_) | ValueKind::U128(_)
    );
    let (fits, wanted) = match (default, &value.kind) {
        (Some(Json::Number(_)), ValueKind::String(text)) => {
            (text.trim().parse::<i128>().is_ok(), "a whole number")
        }
        (Some(Json::Number(_)), _) => (number, "a whole number"),
        (Some(Json::Bool(_)), ValueKind::String(text)) => {
            (matches!(text.to_lowercase().as_str(), "true" | "false"), "true or false")
        }
        (Some(Json::Bool(_)), kind) => (matches!(kind, ValueKind::Boolean(_)), "true or false"),
        (Some(Json::Array(_)), kind) => (matches!(kind, ValueKind::Array(_)), "a list of texts"),
        (Some(Json::Object(_)), kind) => (matches!(kind, ValueKind::Table(_)), "a table"),
        (_, kind) => (matches!(kind, ValueKind::String(_)), "a text"),
    };
    if fits { Ok(()) } else { Err(format!("{said} stands where {wanted} belongs")) }
}

/// Whether the settings can hold this one value.
fn alone(section: &str, key: &str, value: Value) -> Result<(), ConfigError> {
    let keys: Map<String, Value> = Map::from_iter([(key.to_owned(), value)]);
    let tree: Map<String, Value> = Map::from_iter([(section.to_owned(), Value::from(keys))]);
    Value::from(tree).try_deserialize::<Settings>().map(|_| ())
}

/// The crate's message without the key and the origin, which are printed anyway.
fn reason(error: &ConfigError) -> String {
    match error {
        ConfigError::Type { unexpected, expected, .. } => {
            format!("{unexpected} stands where {expected} belongs")
        }
        ConfigError::At { error, .. } => reason(error),
        other => {
            let text = one_line(other);
            text.split(" for key ").next().unwrap_or_default().to_owned()
        }
    }
}
