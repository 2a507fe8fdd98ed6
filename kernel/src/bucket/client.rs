//! The client of a bucket: requests that block their caller, with outcomes that the store can
//! act on.
//!
//! Requests run on a runtime of their own, so a caller may stand on any thread and nobody waits
//! for themselves. What a request came to is an `io::Error` whose kind says it: `NotFound`,
//! `AlreadyExists`, and `HostUnreachable` for everything that leaves open whether the bucket did
//! it or that may go away by itself. The library underneath tries again where that is safe.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::TryStreamExt;
use futures::lock::Mutex;
use object_store::path::Path as Key;
use object_store::{
    MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions,
    PutPayload,
};

use crate::env::Clock;
use crate::error::Result;
use crate::observe::metrics;
use crate::pools::OwnRuntime;

/// Threads that requests run on: they wait more than they work.
const THREADS: usize = 2;

/// Talks to one bucket; see the module. Keys are relative to the prefix of its address.
pub struct Client {
    store: Arc<dyn ObjectStore>,
    address: String,
    prefix: Key,
    runtime: OwnRuntime,
    clock: Arc<dyn Clock>,
    answers: AtomicBool,
}

/// What a folder of a bucket holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// The last parts of the names of folders.
    pub folders: Vec<String>,
    /// The last parts of the names of objects.
    pub objects: Vec<String>,
}

impl Client {
    pub(super) fn start(
        store: Arc<dyn ObjectStore>,
        address: String,
        prefix: Key,
        clock: Arc<dyn Clock>,
    ) -> Result<Client> {
        let runtime = OwnRuntime::start("kymo-objects", THREADS)?;
        let answers = AtomicBool::new(true);
        metrics().objects.reachable.set(1);
        Ok(Client { store, address, prefix, runtime, clock, answers })
    }

    /// The address, with the prefix.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The length of an object.
    pub fn size(&self, key: &str) -> io::Result<u64> {
        let (store, key) = (self.store.clone(), self.key(key)?);
        let head = self.request("head", async move { store.head(&key).await })?;
        Ok(head.size)
    }

    /// Some bytes of an object, all of which exist.
    pub fn read(&self, key: &str, range: Range<u64>) -> io::Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let wanted = range.end - range.start;
        let (store, key) = (self.store.clone(), self.key(key)?);
        let bytes = self.request("get", async move { store.get_range(&key, range).await })?;
        if bytes.len() as u64 != wanted {
            let what = format!("the bucket answered {} of {wanted} bytes", bytes.len());
            return Err(io::Error::new(ErrorKind::HostUnreachable, what));
        }
        metrics().objects.bytes.with_label_values(&["read"]).inc_by(wanted);
        Ok(bytes)
    }

    /// Stores an object, under a key that must be new where `create` says so.
    pub fn put(&self, key: &str, bytes: Bytes, create: bool) -> io::Result<()> {
        let count = bytes.len() as u64;
        let (store, key) = (self.store.clone(), self.key(key)?);
        let mode = if create { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, ..PutOptions::default() };
        self.request("put", async move {
            store.put_opts(&key, PutPayload::from_bytes(bytes), options).await
        })?;
        metrics().objects.bytes.with_label_values(&["written"]).inc_by(count);
        Ok(())
    }

    /// Stores an object in parts, which `next` gives one after the other until there are none.
    /// An object of this key is replaced. What was uploaded is given up after a failure.
    pub fn upload(
        &self,
        key: &str,
        next: &mut dyn FnMut() -> io::Result<Option<Bytes>>,
    ) -> io::Result<()> {
        let (store, key) = (self.store.clone(), self.key(key)?);
        let begin = async move {
            let options = PutMultipartOptions::default();
            Ok(Arc::new(Mutex::new(store.put_multipart_opts(&key, options).await?)))
        };
        let upload = self.request("begin_upload", begin)?;
        let sent = self.send(&upload, next);
        if sent.is_err() {
            let given_up = async move { upload.lock().await.abort().await };
            if let Err(error) = self.request("abort_upload", given_up) {
                tracing::warn!(%error, "parts of an upload stay until the bucket's rules remove them");
            }
        }
        sent
    }

    fn send(
        &self,
        upload: &Arc<Mutex<Box<dyn MultipartUpload>>>,
        next: &mut dyn FnMut() -> io::Result<Option<Bytes>>,
    ) -> io::Result<()> {
        while let Some(part) = next()? {
            let (upload, count) = (upload.clone(), part.len() as u64);
            self.request("put_part", async move {
                let sent = upload.lock().await.put_part(PutPayload::from_bytes(part));
                sent.await
            })?;
            metrics().objects.bytes.with_label_values(&["written"]).inc_by(count);
        }
        let upload = upload.clone();
        self.request("complete_upload", async move { upload.lock().await.complete().await })?;
        Ok(())
    }

    /// Deletes an object; one that does not exist counts as deleted.
    pub fn delete(&self, key: &str) -> io::Result<()> {
        let (store, key) = (self.store.clone(), self.key(key)?);
        match self.request("delete", async move { store.delete(&key).await }) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    /// What is in a folder.
    pub fn list(&self, folder: &str) -> io::Result<Listing> {
        let (store, folder) = (self.store.clone(), self.key(folder)?);
        let found =
            self.request("list", async move { store.list_with_delimiter(Some(&folder)).await })?;
        let last = |key: &Key| key.filename().map(str::to_owned);
        Ok(Listing {
            folders: found.common_prefixes.iter().filter_map(last).collect(),
            objects: found.objects.iter().filter_map(|each| last(&each.location)).collect(),
        })
    }

    /// The keys of all objects below a folder.
    pub fn walk(&self, folder: &str) -> io::Result<Vec<String>> {
        let (store, folder) = (self.store.clone(), self.key(folder)?);
        let all = self.request("list", async move {
            store.list(Some(&folder)).map_ok(|each| each.location).try_collect::<Vec<_>>().await
        })?;
        let within = |key: &Key| {
            let parts = key.prefix_match(&self.prefix)?;
            Some(parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
        };
        Ok(all.iter().filter_map(within).collect())
    }

    fn key(&self, key: &str) -> io::Result<Key> {
        let whole = match self.prefix.as_ref() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        };
        Key::parse(whole).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))
    }

    fn request<T: Send + 'static>(
        &self,
        operation: &'static str,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        let began = self.clock.monotonic();
        let outcome = match self.runtime.wait(request) {
            Some(outcome) => outcome.map_err(told),
            None => Err(io::Error::other("the client of the bucket ended")),
        };
        let took = self.clock.monotonic().saturating_sub(began);
        let families = &metrics().objects;
        families.request_seconds.with_label_values(&[operation]).observe(took.as_secs_f64());
        let word = match &outcome {
            Ok(_) => "ok",
            Err(error) if error.kind() == ErrorKind::NotFound => "missing",
            Err(error) if error.kind() == ErrorKind::AlreadyExists => "exists",
            Err(_) => "failed",
        };
        families.requests.with_label_values(&[operation, word]).inc();
        self.note(outcome.as_ref().err().filter(|_| word == "failed"));
        outcome
    }

    /// Says once that the bucket does not answer, and once that it does again.
    fn note(&self, failure: Option<&io::Error>) {
        let answers = failure.is_none();
        if self.answers.swap(answers, Ordering::Relaxed) == answers {
            return;
        }
        metrics().objects.reachable.set(i64::from(answers));
        match failure {
            None => tracing::info!(bucket = self.address, "the bucket answers again"),
            Some(error) => {
                tracing::warn!(bucket = self.address, %error, "the bucket does not answer");
            }
        }
    }
}

/// What became of a request, by the kind of the error.
fn told(error: object_store::Error) -> io::Error {
    use object_store::Error as Failure;
    let kind = match &error {
        Failure::NotFound { .. } => ErrorKind::NotFound,
        Failure::AlreadyExists { .. }
        | Failure::Precondition { .. }
        | Failure::NotModified { .. } => ErrorKind::AlreadyExists,
        Failure::NotSupported { .. } | Failure::NotImplemented { .. } => ErrorKind::Unsupported,
        Failure::InvalidPath { .. } => ErrorKind::InvalidInput,
        // Credentials run out and come back; everything else is the network or the service.
        _ => ErrorKind::HostUnreachable,
    };
    io::Error::new(kind, error)
}
