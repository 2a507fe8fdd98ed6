//! The frozen form of metadata on disk.
//!
//! An envelope and a body, all numbers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic: `KYME` for an edit file, `KYMS` for a checkpoint |
//! | 4 | 4 | format version, 1 to 4; written is 4 |
//! | 8 | 8 | metadata version |
//! | 16 | 8 | length of the body |
//! | 24 | 4 | CRC32C of the body |
//! | 28 | 4 | CRC32C of bytes 0 to 28 |
//! | 32 | … | body: postcard of the records below |
//!
//! The records are types of their own and never change once released: a new layout gets a
//! new format version and new records beside these. New kinds of `OpRecord` go to its end.
//! Format 2 added the operations on plugins, and the record of [`plugins`] behind the first
//! format's record in a checkpoint. Format 3 added deletions, retention, continuous queries and
//! alerts, and the records of [`keeping`], [`continuous`] and [`alerts`] behind that. Format 4
//! added columns that are dropped and renamed, the option of widening, and the record of
//! [`altering`] behind that.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Code, Error, Result};
use crate::ids::MetaVersion;
use crate::storage::meta::{Edit, Snapshot};

mod alerts;
mod altering;
mod cluster;
mod continuous;
mod edits;
mod keeping;
mod plugins;
mod segments;
mod snapshot;
mod tables;
#[cfg(test)]
mod tests;
mod users;

use alerts::AlertsRecord;
use altering::AlteringRecord;
use continuous::ContinuousRecords;
use edits::EditRecord;
use keeping::KeepingRecord;
use plugins::PluginsRecord;
use snapshot::SnapshotRecord;

const EDIT_MAGIC: [u8; 4] = *b"KYME";
const SNAPSHOT_MAGIC: [u8; 4] = *b"KYMS";
const FORMAT: u32 = 4;
const ENVELOPE: usize = 32;

/// The bytes of an edit file: the edits that were committed together as one version.
///
/// # Errors
/// `internal` if a record cannot be encoded, which no record of ours should cause.
pub fn encode_edits(version: MetaVersion, edits: &[Edit]) -> Result<Vec<u8>> {
    let records: Vec<EditRecord> = edits.iter().map(EditRecord::from).collect();
    seal(EDIT_MAGIC, version, &records)
}

/// Reads an edit file back.
///
/// # Errors
/// `corrupt`, naming the file, where the bytes do not verify.
pub fn decode_edits(file: &Path, version: MetaVersion, bytes: &[u8]) -> Result<Vec<Edit>> {
    let (_, body) = open(EDIT_MAGIC, file, version, bytes)?;
    let records: Vec<EditRecord> = decode(file, body)?;
    Ok(records.into_iter().map(Edit::from).collect())
}

/// The bytes of a checkpoint.
///
/// # Errors
/// `internal` if a record cannot be encoded, which no record of ours should cause.
pub fn encode_snapshot(snapshot: &Snapshot) -> Result<Vec<u8>> {
    let body = (
        SnapshotRecord::from(snapshot),
        PluginsRecord::from(snapshot),
        KeepingRecord::from(snapshot),
        ContinuousRecords::from(snapshot),
        AlertsRecord::from(snapshot),
        AlteringRecord::from(snapshot),
    );
    seal(SNAPSHOT_MAGIC, snapshot.version, &body)
}

/// Reads a checkpoint back.
///
/// # Errors
/// `corrupt`, naming the file, where the bytes do not verify.
pub fn decode_snapshot(file: &Path, version: MetaVersion, bytes: &[u8]) -> Result<Snapshot> {
    let (format, body) = open(SNAPSHOT_MAGIC, file, version, bytes)?;
    type Later = (KeepingRecord, ContinuousRecords, AlertsRecord, AlteringRecord);
    let (record, plugins, later): (SnapshotRecord, PluginsRecord, Later) = match format {
        1 => (decode(file, body)?, PluginsRecord::default(), Default::default()),
        2 => {
            let (record, plugins) = decode::<(SnapshotRecord, PluginsRecord)>(file, body)?;
            (record, plugins, Default::default())
        }
        3 => {
            let (record, plugins, keeping, continuous, alerts) = decode(file, body)?;
            (record, plugins, (keeping, continuous, alerts, AlteringRecord::default()))
        }
        _ => {
            let (record, plugins, keeping, continuous, alerts, altering) = decode(file, body)?;
            (record, plugins, (keeping, continuous, alerts, altering))
        }
    };
    let (keeping, continuous, alerts, altering) = later;
    let mut snapshot = record.into_snapshot(version);
    plugins.add_to(&mut snapshot);
    keeping.add_to(&mut snapshot);
    continuous.add_to(&mut snapshot);
    alerts.add_to(&mut snapshot);
    altering.add_to(&mut snapshot);
    Ok(snapshot)
}

fn seal<T: Serialize>(magic: [u8; 4], version: MetaVersion, body: &T) -> Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(body, vec![0; ENVELOPE])
        .map_err(|error| Error::internal(format!("encode metadata: {error}")))?;
    let length = (bytes.len() - ENVELOPE) as u64;
    let body_crc = crc32c::crc32c(&bytes[ENVELOPE..]);
    bytes[0..4].copy_from_slice(&magic);
    bytes[4..8].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[8..16].copy_from_slice(&version.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&length.to_le_bytes());
    bytes[24..28].copy_from_slice(&body_crc.to_le_bytes());
    let head_crc = crc32c::crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&head_crc.to_le_bytes());
    Ok(bytes)
}

fn corrupt(file: &Path, what: &str) -> Error {
    Error::new(Code::Corrupt, format!("metadata file {}: {what}", file.display()))
        .with_hint("restore the file from a backup, or run `kymo repair`; the store cannot be opened without it")
}

/// The format and the body of a file.
fn open<'a>(
    magic: [u8; 4],
    file: &Path,
    version: MetaVersion,
    bytes: &'a [u8],
) -> Result<(u32, &'a [u8])> {
    let corrupt = |what: &str| corrupt(file, what);
    let Some((head, body)) = bytes.split_at_checked(ENVELOPE) else {
        return Err(corrupt("shorter than its header"));
    };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | (u64::from(word(at + 4)) << 32);
    if head[..4] != magic || crc32c::crc32c(&head[..28]) != word(28) {
        return Err(corrupt("its header does not verify"));
    }
    if !(1..=FORMAT).contains(&word(4)) {
        return Err(Error::new(
            Code::Unsupported,
            format!("metadata file {}: format {} is not known", file.display(), word(4)),
        )
        .with_hint("open the store with the version of kymo that wrote it, or a newer one"));
    }
    if long(8) != version.0 {
        return Err(corrupt("it holds another version than its name says"));
    }
    if long(16) != body.len() as u64 || crc32c::crc32c(body) != word(24) {
        return Err(corrupt("its content does not verify"));
    }
    Ok((word(4), body))
}

fn decode<T: DeserializeOwned>(file: &Path, body: &[u8]) -> Result<T> {
    postcard::from_bytes(body).map_err(|_| corrupt(file, "its content does not decode"))
}
