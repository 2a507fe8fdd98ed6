//! What a check says: findings, each about one object of the store, with what is lost and what
//! can be done.

use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat};
use serde::{Serialize, Serializer};

use crate::ids::TimeRange;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Normal after a crash; the next start deals with it and nothing acknowledged is lost.
    Note,
    /// Stored bytes are not what was stored.
    Damage,
}

/// What kind of trouble it is: stable, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The journal ends in a write that was never acknowledged.
    JournalTorn,
    /// Records of the journal do not verify.
    JournalDamaged,
    /// Records of the journal are not there.
    JournalMissing,
    /// A file of the metadata that is needed does not verify.
    MetadataDamaged,
    /// A file of the metadata that is needed is not there.
    MetadataMissing,
    /// A file of the metadata that is only kept as a spare does not verify.
    SpareDamaged,
    /// A segment does not verify.
    SegmentDamaged,
    /// A segment is not there.
    SegmentMissing,
    /// The component of a plugin does not verify or is not there.
    ComponentDamaged,
    /// A file that nothing names; the next start removes it.
    Stray,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of trouble it is.
    pub trouble: Trouble,
    /// The path of the object below the folder of the store.
    pub object: String,
    /// Where in the object, in bytes, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// The tables that are concerned.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// The earliest and the latest time of the rows that are concerned, where that is known.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "times")]
    pub time: Option<TimeRange>,
    /// How many rows cannot be read any more, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_lost: Option<u64>,
    /// How many rows of the object can still be read, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_left: Option<u64>,
    /// What is lost, in words.
    pub lost: String,
    /// What can be done.
    pub remedy: String,
    /// Whether `kymo repair` can do it.
    pub repairable: bool,
}

impl Finding {
    /// Damage to an object that `kymo repair` can deal with.
    pub(super) fn damage(
        trouble: Trouble,
        object: impl Into<String>,
        what: impl Into<String>,
    ) -> Finding {
        Finding {
            severity: Severity::Damage,
            trouble,
            object: object.into(),
            offset: None,
            what: what.into(),
            tables: Vec::new(),
            time: None,
            rows_lost: None,
            rows_left: None,
            lost: "nothing".to_owned(),
            remedy: String::new(),
            repairable: true,
        }
    }

    /// Something that is normal.
    pub(super) fn note(
        trouble: Trouble,
        object: impl Into<String>,
        what: impl Into<String>,
    ) -> Finding {
        let remedy = "none is needed: the next start deals with it".to_owned();
        let finding = Finding::damage(trouble, object, what);
        Finding { severity: Severity::Note, remedy, repairable: false, ..finding }
    }

    pub(super) fn lost(mut self, lost: impl Into<String>) -> Finding {
        self.lost = lost.into();
        self
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Finding {
        self.remedy = remedy.into();
        self
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The folder of the store.
    pub folder: PathBuf,
    /// The version of the metadata; `None` where none can be read.
    pub version: Option<u64>,
    /// How many times the store was opened.
    pub epoch: Option<u64>,
    /// Tables.
    pub tables: usize,
    /// Segments that the metadata names.
    pub segments: usize,
    /// Rows in them, counting each time that a row was written.
    pub segment_rows: u64,
    /// Records of the journal that verify.
    pub records: u64,
    /// What is not as it should be, in the order of reading.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(folder: &Path) -> Report {
        Report {
            folder: folder.to_owned(),
            version: None,
            epoch: None,
            tables: 0,
            segments: 0,
            segment_rows: 0,
            records: 0,
            findings: Vec::new(),
        }
    }

    /// Whether every stored byte is what was stored.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damage().next().is_none()
    }

    /// The findings that are damage.
    pub fn damage(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Damage)
    }
}

/// An instant as people write it.
#[must_use]
pub(super) fn instant(ns: i64) -> String {
    DateTime::from_timestamp_nanos(ns).to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn times<S: Serializer>(range: &Option<TimeRange>, to: S) -> Result<S::Ok, S::Error> {
    range.map(|range| [instant(range.first), instant(range.last)]).serialize(to)
}
