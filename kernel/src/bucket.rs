//! Files in a bucket: what `storage.url` and the addresses of backups lead to.
//!
//! [`attached`] puts a [`BucketDisk`] in the place of a machine's disk. The folders of a store
//! that never change what they hold ([`FOLDERS`]) lie in the bucket from then on, under the same
//! relative names; the journal, the lock and scratch files stay where they are. The store does
//! not know: it publishes files by giving them a name that must be new, which is a create-only
//! put in a bucket. What lies below [`COLD`] is led to a place of its own, a bucket or a folder
//! of another file system, where `storage.cold_url` names one.
//!
//! | file | owns |
//! |---|---|
//! | `client` | the client: requests that block their caller, told apart and counted |
//! | `disk` | the disk: which path lies where, files on their way, publishing, reading |
//! | `cache` | pieces of segments that were read, within a bound |

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use kymo_config::settings::Storage;
use object_store::aws::AmazonS3Builder;
use object_store::memory::InMemory;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use parking_lot::Mutex;

use crate::env::mounted::Mounted;
use crate::env::{Disk, Env};
use crate::error::{Code, Error, Result};

mod cache;
mod client;
mod disk;

use cache::Cache;
use client::Client;
use disk::Covers;
pub use disk::{BucketDisk, SCRATCH};

/// The folders of a store that lie in its bucket.
pub const FOLDERS: [&str; 3] = ["data", "meta", "plugins"];

/// The folder of a store that leads to its second place for segments, where there is one.
pub const COLD: &str = "cold";

const S3: &str = "s3://";
const MEMORY: &str = "memory://";
const FILE: &str = "file://";

/// Whether a text is an address of a bucket rather than a path.
#[must_use]
pub fn is_address(text: &str) -> bool {
    text.starts_with(S3) || text.starts_with(MEMORY)
}

/// Whether all files of the store in a folder lie there.
///
/// # Errors
/// I/O errors.
pub fn is_local(env: &Env, root: &Path) -> Result<bool> {
    let folder = root.join("meta");
    let there = env.disk.shared().is_none().then(|| env.disk.exists(&folder)).transpose();
    let there =
        there.map_err(|error| Error::io(format_args!("look for {}", folder.display()), error))?;
    Ok(there.unwrap_or(false))
}

/// The environment of a store in the folder `root` whose files lie where the settings say. As
/// it is where they say nothing, or where its disk leads there already.
///
/// # Errors
/// `invalid_settings` for an address or credentials that cannot be used, for a folder whose
/// store is a local one, and as [`attached_cold`]; `io_error`.
pub fn attached(env: Env, root: &Path, settings: &Storage) -> Result<Env> {
    let cache = Arc::new(Cache::new(settings.cache_bytes));
    let env = with_store(env, root, settings, &cache)?;
    with_cold(env, root, settings, &cache)
}

/// As [`attached`], but only segments in the second place may lie elsewhere.
///
/// # Errors
/// `invalid_settings` for an address that cannot be used, and where segments of the second place
/// lie in the folder itself; `io_error`.
pub fn attached_cold(env: Env, root: &Path, settings: &Storage) -> Result<Env> {
    with_cold(env, root, settings, &Arc::new(Cache::new(settings.cache_bytes)))
}

fn with_store(env: Env, root: &Path, settings: &Storage, cache: &Arc<Cache>) -> Result<Env> {
    if settings.url.is_empty() || env.disk.shared().is_some() {
        return Ok(env);
    }
    if is_local(&env, root)? {
        let what = format!("folder {} holds a store, but {} is set", root.display(), settings.url);
        return Err(Error::new(Code::Settings, what).with_hint(
            "name a new folder with server.data_dir; docs/object-storage.md says how to move a \
             store into a bucket",
        ));
    }
    let client = connect(&settings.url, settings, &env)?;
    let (scratch, parts) = (root.join(SCRATCH), settings.part_bytes);
    let disk = BucketDisk::new(&env, root, scratch, Covers::Store, client, cache, parts);
    Ok(Env { disk: Arc::new(disk), ..env })
}

fn with_cold(env: Env, root: &Path, settings: &Storage, cache: &Arc<Cache>) -> Result<Env> {
    let url = settings.cold_url.as_str();
    if url.is_empty() || env.disk.cold().is_some() {
        return Ok(env);
    }
    refuse_hidden(&env, root, url)?;
    let disk: Arc<dyn Disk> = if is_address(url) {
        let client = connect(url, settings, &env)?;
        let (scratch, parts) = (root.join(SCRATCH), settings.part_bytes);
        Arc::new(BucketDisk::new(&env, root, scratch, Covers::Cold, client, cache, parts))
    } else {
        let place = cold_folder(root, url)?;
        Arc::new(Mounted::new(env.disk.clone(), root.join(COLD), place.join(COLD), url.to_owned()))
    };
    Ok(Env { disk, ..env })
}

/// Refuses to lead a folder elsewhere that has files.
fn refuse_hidden(env: &Env, root: &Path, url: &str) -> Result<()> {
    let folder = root.join(COLD);
    let failed = |error| Error::io(format_args!("list folder {}", folder.display()), error);
    if !env.disk.exists(&folder).map_err(failed)?
        || env.disk.list(&folder).map_err(failed)?.is_empty()
    {
        return Ok(());
    }
    let what = format!("folder {} holds segments, but storage.cold_url is {url}", folder.display());
    Err(Error::new(Code::Settings, what)
        .with_hint("move that folder into the place that storage.cold_url names, or unset it"))
}

/// The folder that a path or `file://…` names.
fn cold_folder(root: &Path, url: &str) -> Result<PathBuf> {
    let place = PathBuf::from(url.strip_prefix(FILE).unwrap_or(url));
    if place.starts_with(root) || root.starts_with(place.join(COLD)) {
        let what = format!("storage.cold_url {url} and data folder {} overlap", root.display());
        return Err(Error::new(Code::Settings, what).with_hint("name a folder beside it"));
    }
    Ok(place)
}

/// The environment of backups at an address: all files below `root` lie there, and those on
/// their way in the folder `scratch` of this machine.
///
/// # Errors
/// As [`attached`].
pub fn place(env: Env, root: &Path, scratch: &Path, url: &str, settings: &Storage) -> Result<Env> {
    let client = connect(url, settings, &env)?;
    let cache = Arc::new(Cache::new(settings.cache_bytes));
    let (scratch, parts) = (scratch.to_owned(), settings.part_bytes);
    let disk = BucketDisk::new(&env, root, scratch, Covers::All, client, &cache, parts);
    Ok(Env { disk: Arc::new(disk), ..env })
}

/// A bucket and where in it, as `s3://bucket/prefix` says.
struct Address<'a> {
    scheme: &'static str,
    bucket: &'a str,
    prefix: &'a str,
}

impl<'a> Address<'a> {
    fn parse(url: &'a str) -> Result<Address<'a>> {
        let parsed = [S3, MEMORY].into_iter().find_map(|scheme| {
            let rest = url.strip_prefix(scheme)?;
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            (!bucket.is_empty()).then_some(Address { scheme, bucket, prefix })
        });
        parsed.ok_or_else(|| unusable(format!("{url:?} names no bucket")))
    }
}

fn unusable(what: impl Into<String>) -> Error {
    Error::new(Code::Settings, what).with_hint("use s3://bucket/prefix; see docs/object-storage.md")
}

fn connect(url: &str, settings: &Storage, env: &Env) -> Result<Client> {
    let address = Address::parse(url)?;
    let store = match address.scheme {
        S3 => s3(address.bucket, settings)?,
        _ => named(address.bucket),
    };
    let prefix = object_store::path::Path::parse(address.prefix)
        .map_err(|error| unusable(format!("{url:?}: {error}")))?;
    Client::start(store, url.trim_end_matches('/').to_owned(), prefix, env.clock.clone())
}

fn s3(bucket: &str, settings: &Storage) -> Result<Arc<dyn ObjectStore>> {
    let milliseconds = Duration::from_millis;
    let options = ClientOptions::new()
        .with_allow_http(settings.allow_http)
        .with_connect_timeout(milliseconds(settings.connect_timeout_ms))
        .with_timeout(milliseconds(settings.request_timeout_ms));
    let retry = RetryConfig {
        max_retries: settings.max_retries,
        retry_timeout: milliseconds(settings.retry_timeout_ms),
        ..RetryConfig::default()
    };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(options)
        .with_retry(retry);
    if !settings.endpoint.is_empty() {
        builder = builder.with_endpoint(&settings.endpoint);
    }
    if !settings.region.is_empty() {
        builder = builder.with_region(&settings.region);
    }
    if !settings.access_key_id.is_empty() {
        builder = builder
            .with_access_key_id(&settings.access_key_id)
            .with_secret_access_key(&settings.secret_access_key);
    }
    let store = builder.build().map_err(|error| unusable(format!("bucket {bucket}: {error}")))?;
    Ok(Arc::new(store))
}

/// The buckets of `memory://name`, which live as long as the process: for tests.
static MEMORIES: LazyLock<Mutex<HashMap<String, Arc<dyn ObjectStore>>>> =
    LazyLock::new(Mutex::default);

fn named(name: &str) -> Arc<dyn ObjectStore> {
    let mut memories = MEMORIES.lock();
    memories.entry(name.to_owned()).or_insert_with(|| Arc::new(InMemory::new())).clone()
}

/// Puts a store behind `memory://name`, such as one that fails now and then.
pub fn register(name: &str, store: Arc<dyn ObjectStore>) {
    MEMORIES.lock().insert(name.to_owned(), store);
}
