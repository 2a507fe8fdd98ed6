//! Writing a backup to a place: what is there already stays, everything else is copied, read
//! back and verified, and a manifest names it all at the end.
//!
//! A backup that was interrupted has no manifest and does not count; the next one uses what it
//! copied, once it verifies. A segment that does not verify ends the backup: damage is not
//! copied over and over, it is told.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::ids::MetaVersion;
use crate::storage::backup::{Hashing, Kind, Object, PIECE, Plan, Progress, Vault, digest_of};
use crate::storage::meta::{SegmentMeta, Snapshot, codec};
use crate::storage::segment::store::PARTIAL;
use crate::storage::segment::{SegmentReader, SegmentStore};

/// Where the bytes of a plan come from.
pub trait Source {
    /// Writes the bytes of an object, all of them.
    ///
    /// # Errors
    /// What keeps them from coming.
    fn read(&self, object: &Object, to: &mut dyn Write) -> Result<()>;
}

/// What a manifest says of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What it is in a store.
    #[serde(flatten)]
    pub object: Object,
    /// Where it lies in the place for backups.
    pub at: String,
    /// SHA-256 of its bytes.
    pub digest: Digest,
}

/// A complete backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name.
    pub name: String,
    /// The version of the metadata.
    pub version: u64,
    /// When it was taken, in nanoseconds since 1970-01-01T00:00:00Z.
    pub taken_ns: i64,
    /// Everything in it.
    pub objects: Vec<Kept>,
}

/// What a backup came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Its name.
    pub name: String,
    /// Objects in it.
    pub objects: usize,
    /// Bytes in it.
    pub bytes: u64,
    /// Objects that were copied; the others were there from earlier backups.
    pub copied_objects: usize,
    /// Bytes that were copied.
    pub copied_bytes: u64,
}

/// The folder of all backups.
pub(super) const FOLDER: &str = "backups";
/// The first word of a manifest, with the number of its format.
const MAGIC: &str = "kymo-backup-1";
const MANIFEST: &str = "manifest";

/// Copies everything of a plan that is not there yet, and names it. Blocks.
///
/// # Errors
/// `corrupt` naming an object that does not verify, `disk_full`, I/O errors, and those of the
/// source. What was copied stays for the next attempt.
pub fn keep(
    plan: &Plan,
    source: &dyn Source,
    vault: &dyn Vault,
    progress: &mut dyn FnMut(Progress),
) -> Result<Copied> {
    let name = plan.name();
    let mut keeper = Keeper {
        source,
        vault,
        own: format!("{FOLDER}/{name}"),
        known: known(vault)?,
        metas: BTreeMap::new(),
        copied: Copied { name, objects: 0, bytes: 0, copied_objects: 0, copied_bytes: 0 },
    };
    let mut kept = Vec::with_capacity(plan.objects.len());
    let mut at = Progress { done: 0, total: plan.bytes() };
    progress(at);
    // The metadata first: it says what segments must verify against.
    let (first, rest): (Vec<_>, Vec<_>) =
        plan.objects.iter().partition(|object| object.kind == Kind::Metadata);
    let [metadata] = first[..] else {
        return Err(Error::new(Code::Corrupt, "a backup needs the metadata once"));
    };
    for object in std::iter::once(metadata).chain(rest) {
        kept.push(keeper.keep(object)?);
        at.done += object.bytes;
        progress(at);
    }
    let manifest = Manifest {
        name: keeper.copied.name.clone(),
        version: plan.version,
        taken_ns: plan.taken_ns,
        objects: kept,
    };
    keeper.seal(&manifest)?;
    Ok(keeper.copied)
}

struct Keeper<'a> {
    source: &'a dyn Source,
    vault: &'a dyn Vault,
    /// The folder of what belongs to this backup only.
    own: String,
    /// Shared objects of earlier backups.
    known: BTreeMap<String, Kept>,
    metas: BTreeMap<String, Arc<SegmentMeta>>,
    copied: Copied,
}

impl Keeper<'_> {
    fn keep(&mut self, object: &Object) -> Result<Kept> {
        object.check()?;
        self.copied.objects += 1;
        self.copied.bytes += object.bytes;
        let at = match object.kind.is_shared() {
            true => object.path.clone(),
            false => format!("{}/{}", self.own, object.path),
        };
        if let Some(kept) = self.there(object, &at)? {
            return Ok(kept);
        }
        let digest = self.copy(object, &at)?;
        self.copied.copied_objects += 1;
        self.copied.copied_bytes += object.bytes;
        let kept = Kept { object: object.clone(), at, digest };
        if let Err(error) = self.verify(&kept) {
            self.vault.delete(&kept.at)?;
            let hint = "stop the server and run `kymo check`; earlier backups are as they were";
            return Err(error.context("back up").with_hint(hint));
        }
        Ok(kept)
    }

    /// An object that is there already: from an earlier backup, or from one that was
    /// interrupted and has no manifest, which is verified again.
    fn there(&mut self, object: &Object, at: &str) -> Result<Option<Kept>> {
        if !object.kind.is_shared() {
            return Ok(None);
        }
        let bytes = match self.vault.open(at) {
            Ok(bytes) => bytes,
            Err(error) if error.code() == Code::Corrupt => return Ok(None),
            Err(error) => return Err(error),
        };
        let failed = |error| Error::io(format_args!("read {at}"), error);
        let known = self.known.get(&object.path).filter(|kept| kept.object == *object);
        if let Some(known) = known
            && bytes.size().map_err(failed)? == object.bytes
        {
            return Ok(Some(known.clone()));
        }
        let (digest, _) = digest_of(&*bytes).map_err(failed)?;
        let kept = Kept { object: object.clone(), at: at.to_owned(), digest };
        match self.verify(&kept) {
            Ok(()) => Ok(Some(kept)),
            Err(_) => self.vault.delete(at).map(|()| None),
        }
    }

    fn copy(&self, object: &Object, at: &str) -> Result<Digest> {
        // Left by a backup that was interrupted.
        self.vault.delete(&format!("{at}{PARTIAL}"))?;
        let failed = |error| Error::io(format_args!("write {at}"), error);
        let upload = self.vault.create(at)?;
        let mut hashing = Hashing::new(BufWriter::with_capacity(PIECE, upload));
        self.source.read(object, &mut hashing)?;
        if hashing.bytes != object.bytes {
            let what = format!("{} has {} bytes, not {}", object.path, hashing.bytes, object.bytes);
            return Err(Error::new(Code::Corrupt, what).with_hint("run `kymo backup` again"));
        }
        let digest = hashing.digester.finish();
        let upload = hashing.to.into_inner().map_err(|error| failed(error.into_error()))?;
        upload.publish()?;
        Ok(digest)
    }

    /// Whether an object is what a store takes it for, as it was written.
    fn verify(&mut self, kept: &Kept) -> Result<()> {
        match kept.object.kind {
            Kind::Metadata => self.learn(&kept.at, kept.object.bytes),
            Kind::Segment => {
                let Some(meta) = self.metas.get(&kept.object.path) else {
                    let what = format!("the metadata names no segment {}", kept.object.path);
                    return Err(Error::new(Code::Corrupt, what));
                };
                SegmentReader::open(self.vault_store(), meta)?.verify()
            }
            Kind::Component => match kept.object.path.contains(&kept.digest.hex()) {
                true => Ok(()),
                false => Err(Error::new(
                    Code::Corrupt,
                    format!("component {} does not hold what its name says", kept.object.path),
                )),
            },
            // The store verified it before it was pinned; the digest holds it from here on.
            Kind::Journal => Ok(()),
        }
    }

    fn vault_store(&self) -> &dyn SegmentStore {
        self.vault
    }

    /// Reads the metadata back: what segments are to be.
    fn learn(&mut self, at: &str, length: u64) -> Result<()> {
        let bytes = self.vault.open(at)?;
        let mut text = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let failed = |error| Error::io(format_args!("read {at}"), error);
        bytes.read_at(&mut text, 0).map_err(failed)?;
        let version = at.rsplit('/').next().and_then(|name| name.parse().ok());
        let version = MetaVersion(version.unwrap_or_default());
        let snapshot: Snapshot = codec::decode_snapshot(Path::new(at), version, &text)?;
        let segments = snapshot.tables.values().flat_map(|table| table.segments.values());
        self.metas = segments.map(|meta| (meta.path.clone(), meta.clone())).collect();
        Ok(())
    }

    fn seal(&self, manifest: &Manifest) -> Result<()> {
        let at = format!("{}/{MANIFEST}", self.own);
        let body = serde_json::to_string(manifest)
            .map_err(|error| Error::internal(format!("write a manifest: {error}")))?;
        let text = format!("{MAGIC} {}\n{body}\n", Digest::of(body.as_bytes()));
        let mut upload = self.vault.create(&at)?;
        upload
            .write_all(text.as_bytes())
            .map_err(|error| Error::io(format_args!("write {at}"), error))?;
        upload.publish()
    }
}

/// The shared objects of all complete backups.
fn known(vault: &dyn Vault) -> Result<BTreeMap<String, Kept>> {
    let mut known = BTreeMap::new();
    for name in vault.names(FOLDER)? {
        // One that does not verify has nothing to offer; reading it tells so.
        let Ok(Some(manifest)) = manifest(vault, &name) else { continue };
        let shared = manifest.objects.into_iter().filter(|kept| kept.object.kind.is_shared());
        known.extend(shared.map(|kept| (kept.object.path.clone(), kept)));
    }
    Ok(known)
}

/// Reads a manifest; `None` where the backup did not come to its end.
pub(super) fn manifest(vault: &dyn Vault, name: &str) -> Result<Option<Manifest>> {
    let folder = format!("{FOLDER}/{name}");
    if !vault.names(&folder)?.iter().any(|entry| entry == MANIFEST) {
        return Ok(None);
    }
    let at = format!("{folder}/{MANIFEST}");
    let failed = |error| Error::io(format_args!("read {at}"), error);
    let bytes = vault.open(&at)?;
    let mut text = vec![0; usize::try_from(bytes.size().map_err(failed)?).unwrap_or(usize::MAX)];
    let read = bytes.read_at(&mut text, 0).map_err(failed)?;
    text.truncate(read);
    decode(&text).map(Some).ok_or_else(|| {
        Error::new(Code::Corrupt, format!("{at} does not verify"))
            .with_hint("use another backup: `kymo restore SRC --list` shows them")
    })
}

fn decode(text: &[u8]) -> Option<Manifest> {
    let text = std::str::from_utf8(text).ok()?;
    let (head, body) = text.split_once('\n')?;
    let digest = head.strip_prefix(MAGIC)?.trim().parse::<Digest>().ok()?;
    let body = body.strip_suffix('\n')?;
    (Digest::of(body.as_bytes()) == digest).then(|| serde_json::from_str(body).ok())?
}
