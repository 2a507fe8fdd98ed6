//! Many tasks with one owner: connections of a listener, jobs of a policy.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::pools::{Pool, Pools};

/// Owns any number of tasks on one pool. Dropping it aborts them all.
pub struct TaskGroup {
    pools: Pools,
    pool: Pool,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    emptied: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Name and handle of each task; the handle comes a moment after the entry.
    tasks: BTreeMap<u64, (Arc<str>, Option<AbortHandle>)>,
    /// Set by [`TaskGroup::abort`] and on drop, for tasks whose handle is still to come.
    aborted: bool,
}

impl TaskGroup {
    /// An empty group.
    #[must_use]
    pub fn new(pools: &Pools, pool: Pool) -> Self {
        TaskGroup { pools: pools.clone(), pool, shared: Arc::default() }
    }

    /// Spawns a task with a name. A panic in it ends that task only and is logged.
    pub fn spawn(
        &self,
        name: impl Into<Arc<str>>,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        let name = name.into();
        let number = {
            let mut state = self.shared.state.lock();
            state.next += 1;
            let number = state.next;
            state.tasks.insert(number, (Arc::clone(&name), None));
            number
        };
        let ended = Ended { shared: Arc::clone(&self.shared), number };
        let body = async move {
            let ended = ended;
            future.await;
            drop(ended);
        };
        let join = match self.pools.handle(self.pool) {
            Some(handle) => handle.spawn(body),
            None => tokio::task::spawn_local(body),
        };
        let mut state = self.shared.state.lock();
        if state.aborted {
            join.abort();
        } else if let Some((_, handle)) = state.tasks.get_mut(&number) {
            *handle = Some(join.abort_handle());
        }
    }

    /// How many run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.state.lock().tasks.len()
    }

    /// Whether none runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of those that run, oldest first.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        self.shared.state.lock().tasks.values().map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Completes once none runs; new ones may be spawned meanwhile and are waited for too.
    pub async fn ended(&self) {
        loop {
            let emptied = self.shared.emptied.notified();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Aborts all that run now; the group takes no more tasks.
    pub fn abort(&self) {
        let handles: Vec<AbortHandle> = {
            let mut state = self.shared.state.lock();
            state.aborted = true;
            state.tasks.values().filter_map(|(_, handle)| handle.clone()).collect()
        };
        for handle in handles {
            handle.abort();
        }
    }
}

impl Drop for TaskGroup {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Takes the entry of a task out when the task ends in any way.
struct Ended {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let empty = {
            let mut state = self.shared.state.lock();
            state.tasks.remove(&self.number);
            state.tasks.is_empty()
        };
        if empty {
            self.shared.emptied.notify_waiters();
        }
    }
}
