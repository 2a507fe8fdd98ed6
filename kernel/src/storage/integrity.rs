//! Is a store whole, and if it is not, what is lost and what can be saved: the core of
//! `kymo check` and `kymo repair`.
//!
//! [`check`] reads every byte that matters and changes nothing: the metadata log
//! ([`metadata`]), the journal past its damage ([`journal`]), every segment and every component
//! that the metadata names ([`objects`]). [`repair`] then does what the findings say can be
//! done. It never deletes: what it takes away it moves to a folder `salvage-<time>` of the
//! store. Both hold the store's lock, so a server cannot run meanwhile.
//!
//! | damage | what `repair` does |
//! |---|---|
//! | journal: a record, a header, a missing file | writes the rows of all records that verify into segments and begins a new journal |
//! | newest checkpoint of the metadata | goes back to the one before and the edits since, which lose nothing |
//! | an edit of the metadata | leaves it out, with the edits that do not fit without it |
//! | a segment | writes the rows that verify into a new one |
//! | a component of a plugin | cannot be made again: the plugin has to be installed once more |

use std::path::Path;
use std::sync::Arc;

use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::ids::PartitionId;
use crate::storage::backup::refuse_unfinished;
use crate::storage::folder::entries;
use crate::storage::meta::Snapshot;
use crate::storage::owner::refuse_astray;
use crate::storage::recover::lock;
use crate::storage::tier;

mod journal;
mod metadata;
mod objects;
mod repair;
mod report;

pub use repair::{Repaired, repair};
pub use report::{Finding, Report, Severity, Trouble};

/// How far a check is, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were read.
    pub done: u64,
    /// Bytes that are to be read in all.
    pub total: u64,
}

/// Reads a whole store and says what is wrong with it. Changes nothing. Blocks.
///
/// # Errors
/// `invalid_input` where the folder holds no store, `locked` while a server runs on it,
/// `unsupported` for the format of a later build, I/O errors of listing. What cannot be read
/// is a finding, not an error.
pub fn check(env: &Env, root: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let _lock = lock_existing(env, root)?;
    Ok(survey(env, root, progress)?.report)
}

/// A store as it was found.
struct Survey {
    report: Report,
    metadata: metadata::Metadata,
    journal: journal::Found,
    /// Paths of segments that do not verify, below the root.
    segments: Vec<String>,
}

/// What every part of a check works with.
struct Context<'a> {
    env: &'a Env,
    root: &'a Path,
    progress: &'a mut dyn FnMut(Progress),
    at: Progress,
    report: Report,
}

impl Context<'_> {
    fn read(&mut self, bytes: u64) {
        self.at.done = self.at.done.saturating_add(bytes).min(self.at.total);
        (self.progress)(self.at);
    }

    fn found(&mut self, finding: Finding) {
        self.report.findings.push(finding);
    }

    /// The path of an object below the root, for people.
    fn name(&self, path: &Path) -> String {
        path.strip_prefix(self.root).unwrap_or(path).display().to_string()
    }
}

fn survey(env: &Env, root: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Survey> {
    let report = Report::new(root);
    let mut context = Context { env, root, progress, at: Progress::default(), report };
    let metadata = metadata::read(&mut context)?;
    let snapshot = metadata.snapshot.clone();
    if let Some(snapshot) = &snapshot {
        tier::place::refuse_astray(env, root, snapshot)?;
        describe(&mut context.report, snapshot);
        context.at.total = objects::bytes(snapshot);
    }
    context.at.total += journal::bytes(&context)?;
    context.read(0);
    let nothing = Arc::new(Snapshot::default());
    let known = snapshot.as_ref().unwrap_or(&nothing);
    let journal = journal::check(&mut context, known)?;
    let mut segments = Vec::new();
    if snapshot.is_some() {
        segments = objects::segments(&mut context, known);
        objects::components(&mut context, known);
        objects::strays(&mut context, known)?;
    }
    let done = Progress { done: context.at.total, ..context.at };
    (context.progress)(done);
    Ok(Survey { report: context.report, metadata, journal, segments })
}

fn describe(report: &mut Report, snapshot: &Snapshot) {
    let segments = || snapshot.tables.values().flat_map(|table| table.segments.values());
    report.version = Some(snapshot.version.0);
    report.epoch = Some(snapshot.epoch(PartitionId::ONLY).0);
    report.tables = snapshot.tables.len();
    report.segments = segments().count();
    report.segment_rows = segments().map(|segment| segment.rows).sum();
}

pub(super) fn lock_existing(
    env: &Env,
    root: &Path,
) -> Result<Box<dyn std::any::Any + Send + Sync>> {
    let holds = |folder: &str| env.disk.exists(&root.join(folder)).unwrap_or(false);
    if !["meta", "wal", "data"].into_iter().any(holds) {
        return Err(Error::new(
            Code::InvalidInput,
            format!("folder {} holds no store", root.display()),
        )
        .with_hint("name the folder that server.data_dir names for the server"));
    }
    refuse_unfinished(env, root)?;
    refuse_astray(env, root)?;
    lock(env, root)
}

/// What an error says beside the path, which a finding names already.
fn beside(error: &Error, path: &str) -> String {
    let message = error.message();
    let rest = message.rsplit_once(path).map_or(message, |(_, rest)| rest);
    rest.trim_start_matches([':', ' ']).to_owned()
}

/// The names of the files in a folder; none where there is no such folder.
fn file_names(env: &Env, folder: &Path) -> Result<Vec<String>> {
    let entries = entries(&*env.disk, folder)?;
    Ok(entries.into_iter().filter(|entry| !entry.is_dir).map(|entry| entry.name).collect())
}
