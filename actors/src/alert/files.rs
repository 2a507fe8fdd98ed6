//! Alert rules from files of a folder, as code is kept: read at the start, on a signal and by
//! `RELOAD ALERT RULES`.
//!
//! ```text
//! folder ── yaml ──► rules as written ─┐
//!                                      ├─ merge ──► plan each ──► one change of the metadata
//! metadata ──► rules that are there ───┘      └───► refused ──► system.alert_files, log
//! ```
//!
//! Rules of files are definitions like any other, kept in the metadata with where they come
//! from. So they are in force from the first moment of a start, before a file is read, and one
//! whose file was broken meanwhile goes on as it was.

mod merge;
mod yaml;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::stream::{self, StreamExt};
use kymo_config::settings::Alerts;
use kymo_kernel::alert::AlertDef;
use kymo_kernel::env::Disk;
use kymo_kernel::message::{AlertCommand, AlertDdl, AlertDone};
use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tracing::{info, warn};

use super::worker::Order;
use super::{Context, template};
use crate::query::{AlertFileRow, PlanRule};
use merge::{Merged, RuleFile, Shown, merge};
use yaml::Misread;

/// Rules that are planned at a time.
const PLANNING: usize = 4;

/// What is known of the files.
#[derive(Default)]
pub struct Files {
    /// As they were when they were read last; held while they are compared.
    read: tokio::sync::Mutex<Vec<RuleFile>>,
    shown: Mutex<Arc<[Shown]>>,
    /// Whether something is refused that may be there later.
    waits: AtomicBool,
    /// How often tables, columns or plugins changed.
    changes: AtomicU64,
    begun: AtomicBool,
    wants_reading: AtomicBool,
    wants_retrying: AtomicBool,
    wake: Notify,
}

impl Files {
    /// The rows of `system.alert_files`.
    pub(crate) fn rows(&self) -> Vec<AlertFileRow> {
        self.shown.lock().iter().map(Shown::row).collect()
    }

    /// Asks for the files to be read.
    pub(crate) fn reload(&self) {
        self.wants_reading.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Asks for the first reading: the rules from before are planned, as far as they can be.
    pub(super) fn begin(&self) {
        if !self.begun.swap(true, Ordering::AcqRel) {
            self.reload();
        }
    }

    /// Tables, columns or plugins have changed.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        if self.waits.load(Ordering::Acquire) {
            self.retry();
        }
    }

    fn retry(&self) {
        self.wants_retrying.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// The next thing to do for whoever keeps the rules of files up to date.
    pub(crate) async fn wanted(&self) -> AlertCommand {
        loop {
            // What is asked for in between is done along with it.
            if self.wants_reading.swap(false, Ordering::AcqRel) {
                self.wants_retrying.store(false, Ordering::Release);
                return AlertCommand::Reload;
            }
            if self.wants_retrying.swap(false, Ordering::AcqRel) {
                return AlertCommand::Retry;
            }
            self.wake.notified().await;
        }
    }
}

impl Context {
    /// What is known of files of rules.
    pub(crate) fn files(&self) -> &Files {
        &self.0.files
    }

    /// Makes the rules of files those that the files have, after reading them where `read` says
    /// so; answers how many were created, changed or dropped.
    ///
    /// # Errors
    /// Those of reading the folder and of changing the metadata; nothing changes then. A file or
    /// a rule that is refused is no error: the others are loaded.
    pub(super) async fn load_files(
        self,
        orders: Option<mpsc::Sender<Order>>,
        read: bool,
    ) -> Result<AlertDone> {
        let files = &self.0.files;
        let mut known = files.read.lock().await;
        if read {
            *known = self.read_files().await?;
        }
        let changes = files.changes.load(Ordering::Acquire);
        let catalog = self.0.store.catalog();
        let mut merged = merge(&catalog.alerts, &known, self.0.settings.max_rules);
        let put = self.planned(&mut merged).await?;
        let count = put.len() + merged.drop.len();
        if count > 0 {
            let change = AlertDdl::Files { put, drop: merged.drop };
            self.clone().change(orders, change).await?;
        }
        self.show(merged.shown, read, count);
        if files.waits.load(Ordering::Acquire) && files.changes.load(Ordering::Acquire) != changes {
            files.retry();
        }
        Ok(AlertDone { count: count as u64 })
    }

    async fn read_files(&self) -> Result<Vec<RuleFile>> {
        let (settings, disk) = (self.0.settings.clone(), self.0.env.disk.clone());
        if settings.rules_dir.as_os_str().is_empty() {
            return Ok(Vec::new());
        }
        let read = move || read_folder(disk.as_ref(), &settings);
        self.0.pools.foreground("files of alert rules", read).await?
    }

    /// Those of the new and changed rules that can be evaluated; notes why the others cannot.
    async fn planned(&self, merged: &mut Merged) -> Result<Vec<AlertDef>> {
        let wanted = std::mem::take(&mut merged.put);
        let checks = wanted.into_iter().map(|(place, def)| async move {
            let outcome = self.check(&def).await;
            (place, def, outcome)
        });
        let mut checked = stream::iter(checks).buffered(PLANNING);
        let mut put = Vec::new();
        while let Some((place, def, outcome)) = checked.next().await {
            match outcome {
                Ok(()) => put.push(def),
                // It says nothing about the rule.
                Err(error)
                    if matches!(error.code(), Code::Busy | Code::Down | Code::ShuttingDown) =>
                {
                    return Err(error.context("plan rules of files"));
                }
                Err(error) => {
                    if let Some(shown) = merged.shown.get_mut(place) {
                        shown.refused = Some(error);
                    }
                }
            }
        }
        Ok(put)
    }

    /// Whether a rule can be planned, its texts filled and its channels told.
    async fn check(&self, def: &AlertDef) -> Result<()> {
        self.check_channels(def)?;
        let planner = self.0.planner.get();
        let planner = planner.ok_or_else(|| Error::new(Code::Down, "nobody plans rules yet"))?;
        let planned = planner.call(PlanRule(Arc::new(def.clone()))).await?;
        template::check_all(def, &planned.layout.names)
    }

    fn show(&self, shown: Vec<Shown>, read: bool, changed: usize) {
        let files = &self.0.files;
        let refused = shown.iter().filter(|shown| shown.refused.is_some()).count();
        metrics().alerts.refused_rules.set(i64::try_from(refused).unwrap_or(i64::MAX));
        files.waits.store(shown.iter().any(Shown::waits), Ordering::Release);
        if read && !shown.is_empty() || changed > 0 {
            info!(rules = shown.len() - refused, refused, changed, "files of alert rules loaded");
        }
        for row in shown.iter().filter(|shown| read && shown.refused.is_some()).map(Shown::row) {
            let (group, rule) = (row.group.unwrap_or_default(), row.rule.unwrap_or_default());
            warn!(
                file = row.file,
                line = row.line,
                group,
                rule,
                status = row.status,
                error = row.error,
                hint = row.hint,
                "alert rule of a file is refused"
            );
        }
        *files.shown.lock() = shown.into();
    }
}

/// Reads the files of the folder, in the order of their names. Blocks.
///
/// # Errors
/// `io_error` for the folder, `limit_reached` for too many files in it.
fn read_folder(disk: &dyn Disk, settings: &Alerts) -> Result<Vec<RuleFile>> {
    let folder = &settings.rules_dir;
    let entries = disk.list(folder).map_err(|error| {
        Error::io(format!("read the folder of alert rules {}", folder.display()), error)
            .with_hint("set alerts.rules_dir to a folder that the server may read")
    })?;
    let of_rules = |name: &String| {
        !name.starts_with('.') && (name.ends_with(".yml") || name.ends_with(".yaml"))
    };
    let names: Vec<String> = entries
        .into_iter()
        .filter(|entry| !entry.is_dir)
        .map(|entry| entry.name)
        .filter(of_rules)
        .collect();
    if names.len() > settings.max_rule_files {
        let (count, most) = (names.len(), settings.max_rule_files);
        let text = format!("{} has {count} files of rules, more than {most}", folder.display());
        return Err(Error::new(Code::LimitReached, text)
            .with_hint("put rules together, or raise alerts.max_rule_files"));
    }
    let read = |name: String| {
        let text = read_text(disk, &folder.join(&name), settings.max_rule_file_bytes);
        let text = text.map_err(|error| Misread { line: None, error });
        RuleFile { rules: text.and_then(|text| yaml::read(&name, &text)), name }
    };
    Ok(names.into_iter().map(read).collect())
}

fn read_text(disk: &dyn Disk, path: &Path, most: u64) -> Result<String> {
    let failed = |error| Error::io("read the file", error);
    let file = disk.open_to_read(path).map_err(failed)?;
    let bytes = file.len().map_err(failed)?;
    if bytes > most {
        let text = format!("the file has {bytes} bytes, more than {most}");
        return Err(Error::new(Code::TooLarge, text)
            .with_hint("write the rules into several files, or raise alerts.max_rule_file_bytes"));
    }
    let mut text = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    let count = file.read_at(&mut text, 0).map_err(failed)?;
    text.truncate(count);
    String::from_utf8(text)
        .map_err(|_| Error::new(Code::InvalidEncoding, "the file is not UTF-8 text"))
}
