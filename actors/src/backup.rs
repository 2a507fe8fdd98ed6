//! Backups that are being taken: each pins a moment of the store for a client that copies it.
//!
//! A client begins one, fetches its objects, and ends it. One that goes away without a word is
//! let go after `backup.lease_ms` without a request, since a pinned store deletes nothing. A
//! snapshot is a backup without a client: it stays in the data folder. This is no actor: whoever
//! serves a client calls it, and nobody waits for anybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::env::{Clock, Env};
use kymo_kernel::pools::{Pool, Pools, Task};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::backup::{Object, Pinned, Snapshot, Snapshots};
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use tracing::{info, warn};

/// The backups under way. Cheap to clone.
#[derive(Clone)]
pub struct Backups(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    snapshots: Arc<Snapshots>,
    pools: Pools,
    clock: Arc<dyn Clock>,
    lease: Duration,
    most: usize,
    under_way: Mutex<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    next: u64,
    /// Those that are being pinned.
    beginning: usize,
    pinned: BTreeMap<u64, Entry>,
    stopped: bool,
}

struct Entry {
    pinned: Arc<Pinned>,
    used: Duration,
    /// Lets go when the client is gone.
    _watch: Task<()>,
}

impl Backups {
    /// Nothing under way, over a store.
    #[must_use]
    pub fn new(settings: &Settings, env: &Env, pools: &Pools, store: Arc<Store>) -> Self {
        let most = settings.backup.max_snapshots;
        let snapshots = Snapshots::new(env.clone(), store.root().to_owned(), most);
        // For the metric; what cannot be listed now is told when somebody asks.
        if let Err(error) = snapshots.list() {
            warn!(%error, "the snapshots of the data folder cannot be listed");
        }
        Backups(Arc::new(Inner {
            store,
            snapshots: Arc::new(snapshots),
            pools: pools.clone(),
            clock: env.clock.clone(),
            lease: Duration::from_millis(settings.backup.lease_ms),
            most: settings.backup.max_running,
            under_way: Mutex::default(),
        }))
    }

    /// Pins the store as it is now, and gives the number of the backup and what is in it.
    ///
    /// # Errors
    /// `limit_reached` where too many are under way, `shutting_down`, and those of
    /// [`Store::pin`].
    pub async fn begin(&self) -> Result<(u64, Arc<Pinned>)> {
        let place = Place::take(&self.0)?;
        let store = self.0.store.clone();
        let pinned = Arc::new(self.0.pools.foreground("pin-store", move || store.pin()).await??);
        let number = place.fill(&self.0, pinned.clone())?;
        info!(
            backup = number,
            objects = pinned.plan().objects.len(),
            bytes = pinned.plan().bytes(),
            "backup began"
        );
        Ok((number, pinned))
    }

    /// An object of a backup, to be read; the client is there, so its time begins anew.
    ///
    /// # Errors
    /// `invalid_input` where there is no such backup, or no such object in it.
    pub fn object(&self, number: u64, path: &str) -> Result<(Arc<Pinned>, Object)> {
        let pinned = self.touch(number)?;
        let Some(object) = pinned.object(path).cloned() else {
            let what = format!("backup {number} has no object {path:?}");
            return Err(Error::new(Code::InvalidInput, what));
        };
        Ok((pinned, object))
    }

    /// Says that the client of a backup is still there.
    ///
    /// # Errors
    /// `invalid_input` where there is no such backup.
    pub fn touch(&self, number: u64) -> Result<Arc<Pinned>> {
        let now = self.0.clock.monotonic();
        let mut under_way = self.0.under_way.lock();
        let Some(entry) = under_way.pinned.get_mut(&number) else {
            let what = format!("backup {number} is not under way");
            return Err(Error::new(Code::InvalidInput, what)
                .with_hint("it has ended, or was let go after backup.lease_ms without a request"));
        };
        entry.used = now;
        Ok(entry.pinned.clone())
    }

    /// Lets a backup go; one that is gone stays gone.
    pub fn end(&self, number: u64) {
        let ended = self.0.under_way.lock().pinned.remove(&number);
        if ended.is_some() {
            info!(backup = number, "backup ended");
        }
    }

    /// Keeps the store as it is now, in the data folder.
    ///
    /// # Errors
    /// `limit_reached` where too many backups are under way, `shutting_down`, and those of
    /// [`Store::pin`] and [`Snapshots::take`].
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let place = Place::take(&self.0)?;
        let store = self.0.store.clone();
        let taken = self.snapshots("take-snapshot", move |all| all.take(&store)).await?;
        drop(place);
        info!(snapshot = taken.name, "snapshot taken");
        Ok(taken)
    }

    /// Runs something with the snapshots that are kept, where it may block.
    ///
    /// # Errors
    /// Its own.
    pub async fn snapshots<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&Snapshots) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let snapshots = self.0.snapshots.clone();
        self.0.pools.foreground(name, move || work(&snapshots)).await?
    }

    /// Lets all go and refuses more.
    pub fn stop(&self) {
        let pinned = {
            let mut under_way = self.0.under_way.lock();
            under_way.stopped = true;
            std::mem::take(&mut under_way.pinned)
        };
        drop(pinned);
    }
}

/// Room for one more backup.
struct Place(Arc<Inner>);

impl Place {
    fn take(inner: &Arc<Inner>) -> Result<Place> {
        let mut under_way = inner.under_way.lock();
        if under_way.stopped {
            return Err(Error::new(Code::ShuttingDown, "the server is stopping"));
        }
        if under_way.pinned.len() + under_way.beginning >= inner.most {
            let what = format!("{} backups are under way", inner.most);
            return Err(Error::new(Code::LimitReached, what)
                .with_hint("wait for one to end, or raise backup.max_running"));
        }
        under_way.beginning += 1;
        Ok(Place(inner.clone()))
    }

    fn fill(self, inner: &Arc<Inner>, pinned: Arc<Pinned>) -> Result<u64> {
        let mut under_way = inner.under_way.lock();
        if under_way.stopped {
            drop(under_way);
            return Err(Error::new(Code::ShuttingDown, "the server is stopping"));
        }
        under_way.next += 1;
        let number = under_way.next;
        let watch = watch(inner, number);
        let used = inner.clock.monotonic();
        under_way.pinned.insert(number, Entry { pinned, used, _watch: watch });
        drop(under_way);
        Ok(number)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.under_way.lock().beginning -= 1;
    }
}

/// Lets a backup go whose client has not been heard of for the time of the lease.
fn watch(inner: &Arc<Inner>, number: u64) -> Task<()> {
    let pools = inner.pools.clone();
    let inner = Arc::downgrade(inner);
    pools.spawn(Pool::Io, "backup-lease", async move {
        while let Some(inner) = inner.upgrade() {
            let used = inner.under_way.lock().pinned.get(&number).map(|entry| entry.used);
            let Some(used) = used else { return };
            let idle = inner.clock.monotonic().saturating_sub(used);
            let Some(left) = inner.lease.checked_sub(idle).filter(|left| !left.is_zero()) else {
                warn!(backup = number, "backup let go, its client is silent");
                // Not within the lock: the entry holds this very task.
                let entry = inner.under_way.lock().pinned.remove(&number);
                drop(entry);
                return;
            };
            let sleep = inner.clock.sleep(left);
            drop(inner);
            sleep.await;
        }
    })
}
