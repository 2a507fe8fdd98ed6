//! Reading the metadata log past its damage: the best snapshot that can be had, and what it
//! lacks.
//!
//! Exact are the newest checkpoint with all edits after it, and, where that checkpoint is
//! damaged, the one before with all edits since. An edit that does not verify or is missing is
//! left out; edits after it are applied as far as they still fit, since most of them concern
//! other tables.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Code, Error, Result};
use crate::ids::{Epoch, MetaVersion};
use crate::storage::integrity::report::{Finding, Trouble};
use crate::storage::integrity::{Context, beside, file_names};
use crate::storage::meta::codec;
use crate::storage::meta::{Edit, FEATURE_LEVEL, Snapshot};

/// What can be had of the metadata.
pub(super) struct Metadata {
    /// The best snapshot; `None` where there is no beginning to go on from.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Whether edits were left out, so that the snapshot has to be written down.
    pub patched: bool,
    /// The newest owner that made an edit.
    pub newest: Epoch,
    /// Files that do not verify.
    pub damaged: Vec<PathBuf>,
}

/// The numbered files of a folder.
type Files = BTreeMap<u64, PathBuf>;

/// Checkpoints that do not verify, oldest first.
type Broken = Vec<(u64, PathBuf)>;

/// Reads everything and notes what is wrong.
pub(super) fn read(context: &mut Context<'_>) -> Result<Metadata> {
    let folder = context.root.join("meta");
    let snaps = numbered(context, &folder.join("snap"), "")?;
    let edits = numbered(context, &folder.join("log"), ".edit")?;
    let mut damaged = Vec::new();
    let (base, broken) = newest_checkpoint(context, &snaps, &mut damaged)?;
    let headless = base.is_none() && !edits.contains_key(&1);
    let mut snapshot = base.unwrap_or_default();
    let start = snapshot.version.0;
    let needed_from = broken.last().map_or(start, |(version, _)| *version);
    let mut patch = Patch::default();
    let last = edits.keys().next_back().copied().unwrap_or(0).max(needed_from);
    for version in start + 1..=last {
        patch.take(context, &edits, version, &mut snapshot, &mut damaged)?;
    }
    spares(context, &edits, start, &mut damaged)?;
    // Between two checkpoints everything must be there, or the newer one cannot be made again.
    let gone = patch.missing.iter().any(|version| *version <= needed_from);
    let lost = gone || headless;
    report_checkpoints(context, &broken, lost, &patch);
    if !lost {
        patch.report(context, needed_from);
    } else if broken.is_empty() {
        let what = "there is no checkpoint of the metadata and no beginning of its edits";
        context.found(beyond(Finding::damage(Trouble::MetadataMissing, "meta", what)));
    }
    if snapshot.min_reader > FEATURE_LEVEL {
        return Err(newer(&snapshot));
    }
    snapshot.version = MetaVersion(last);
    let patched = patch.is_needed();
    let snapshot = (!lost).then(|| Arc::new(snapshot));
    Ok(Metadata { snapshot, patched, newest: patch.newest, damaged })
}

fn newer(snapshot: &Snapshot) -> Error {
    let what = format!("the store asks for a reader of level {}", snapshot.min_reader);
    Error::new(Code::Unsupported, what)
        .with_hint("use the version of kymo that wrote it, or a newer one")
}

fn beyond(finding: Finding) -> Finding {
    let finding = finding
        .lost(
            "the definitions of tables, users and everything else; the rows are in the Parquet \
             files below data/",
        )
        .remedy("restore a backup");
    Finding { repairable: false, ..finding }
}

/// The newest checkpoint that verifies, and the newer ones that do not.
fn newest_checkpoint(
    context: &mut Context<'_>,
    snaps: &Files,
    damaged: &mut Vec<PathBuf>,
) -> Result<(Option<Snapshot>, Broken)> {
    let (mut best, mut broken) = (None, Vec::new());
    for (version, path) in snaps.iter().rev() {
        let decode = |bytes: &[u8]| codec::decode_snapshot(path, MetaVersion(*version), bytes);
        match verified(context, path, decode)? {
            Ok(snapshot) if best.is_none() => best = Some(snapshot),
            Ok(_) => {}
            Err(what) => {
                damaged.push(path.clone());
                if best.is_none() {
                    broken.push((*version, path.clone()));
                } else {
                    spare(context, path, &what);
                }
            }
        }
    }
    broken.reverse();
    Ok((best, broken))
}

/// Edits that a checkpoint has made a spare.
fn spares(
    context: &mut Context<'_>,
    edits: &Files,
    start: u64,
    damaged: &mut Vec<PathBuf>,
) -> Result<()> {
    for (version, path) in edits.range(..=start) {
        let decode = |bytes: &[u8]| codec::decode_edits(path, MetaVersion(*version), bytes);
        if let Err(what) = verified(context, path, decode)? {
            damaged.push(path.clone());
            spare(context, path, &what);
        }
    }
    Ok(())
}

fn spare(context: &mut Context<'_>, path: &Path, what: &str) {
    let object = context.name(path);
    let finding = Finding::damage(Trouble::SpareDamaged, object, what)
        .lost("nothing: newer metadata is whole, this is only a spare")
        .remedy("`kymo repair` moves it away");
    context.found(finding);
}

fn report_checkpoints(
    context: &mut Context<'_>,
    broken: &[(u64, PathBuf)],
    lost: bool,
    patch: &Patch,
) {
    for (_, path) in broken {
        let what = "the checkpoint of the metadata does not verify";
        let finding = Finding::damage(Trouble::MetadataDamaged, context.name(path), what);
        context.found(match (lost, patch.is_needed()) {
            (true, _) => beyond(finding),
            (false, true) => finding
                .lost("nothing by itself, but edits since the checkpoint before it are lost")
                .remedy("`kymo repair` goes on from the checkpoint before"),
            (false, false) => finding
                .lost("nothing: the checkpoint before it and the edits since are whole")
                .remedy("`kymo repair` moves it away, and the store opens from the one before"),
        });
    }
}

/// Edits after the checkpoint: those that fit, and what of them is lost.
#[derive(Default)]
struct Patch {
    missing: Vec<u64>,
    broken: Vec<(PathBuf, String)>,
    /// Edits that do not fit without those that are lost.
    unfit: Vec<(PathBuf, String)>,
    newest: Epoch,
}

impl Patch {
    fn is_needed(&self) -> bool {
        !(self.missing.is_empty() && self.broken.is_empty() && self.unfit.is_empty())
    }

    fn take(
        &mut self,
        context: &mut Context<'_>,
        edits: &Files,
        version: u64,
        snapshot: &mut Snapshot,
        damaged: &mut Vec<PathBuf>,
    ) -> Result<()> {
        let Some(path) = edits.get(&version) else {
            self.missing.push(version);
            return Ok(());
        };
        let decode = |bytes: &[u8]| codec::decode_edits(path, MetaVersion(version), bytes);
        match verified(context, path, decode)? {
            Ok(edits) => self.apply(path, &edits, snapshot),
            Err(what) => {
                damaged.push(path.clone());
                self.broken.push((path.clone(), what));
            }
        }
        Ok(())
    }

    fn apply(&mut self, path: &Path, edits: &[Edit], snapshot: &mut Snapshot) {
        for edit in edits {
            self.newest = self.newest.max(edit.by.epoch);
            match snapshot.apply(edit) {
                Ok(next) => *snapshot = next,
                Err(error) => self.unfit.push((path.to_owned(), error.to_string())),
            }
        }
    }

    /// Names what is lost, unless a checkpoint that cannot be made again says so already.
    fn report(&self, context: &mut Context<'_>, needed_from: u64) {
        let folder = context.root.join("meta").join("log");
        let lost = "the changes of this edit: definitions, or rows that it put into segments; \
                    segments that it named lie below data/";
        let remedy = "`kymo repair` goes on without it; better restore a backup, where it is \
                      newer than the edit";
        for version in self.missing.iter().filter(|version| **version > needed_from) {
            let object = context.name(&folder.join(format!("{version:020}.edit")));
            let finding = Finding::damage(Trouble::MetadataMissing, object, "it is not there");
            context.found(finding.lost(lost).remedy(remedy));
        }
        for (path, what) in &self.broken {
            let object = context.name(path);
            let finding = Finding::damage(Trouble::MetadataDamaged, object, what);
            context.found(finding.lost(lost).remedy(remedy));
        }
        for (path, why) in &self.unfit {
            let what = format!("it does not fit without the edits that are lost: {why}");
            let finding = Finding::damage(Trouble::MetadataDamaged, context.name(path), what);
            context.found(finding.lost(lost).remedy("`kymo repair` goes on without it"));
        }
    }
}

/// Reads and decodes a file, once more where the first read does not verify; what is wrong
/// where it is damaged.
fn verified<T>(
    context: &mut Context<'_>,
    path: &Path,
    decode: impl Fn(&[u8]) -> Result<T>,
) -> Result<Result<T, String>> {
    let attempt = || match context.env.disk.open(path).and_then(|file| file.read_all()) {
        Ok(bytes) => decode(&bytes),
        Err(error) => Err(Error::io(format_args!("read {}", path.display()), error)),
    };
    match attempt().or_else(|_| attempt()) {
        Ok(value) => Ok(Ok(value)),
        Err(error) if error.code() == Code::Corrupt => {
            Ok(Err(beside(&error, &path.display().to_string())))
        }
        Err(error) => Err(error),
    }
}

fn numbered(context: &mut Context<'_>, folder: &Path, suffix: &str) -> Result<Files> {
    let mut found = Files::new();
    for name in file_names(context.env, folder)? {
        match name.strip_suffix(suffix).and_then(|stem| stem.parse().ok()) {
            Some(number) => {
                found.insert(number, folder.join(&name));
            }
            None => {
                let object = context.name(&folder.join(&name));
                context.found(Finding::note(Trouble::Stray, object, "an interrupted write"));
            }
        }
    }
    Ok(found)
}
