//! The memory of an instance: bounded by the plugin's limit, charged to whoever it works for,
//! and given back when the instance goes. An instance may have several memories, one for each
//! module with data of its own; the bound is that of their sum.

use std::sync::Arc;

use kymo_kernel::Result;
use wasmtime::ResourceLimiter;

use crate::engine::{CORE_INSTANCES, TABLES};
use crate::limits::Limits;

/// Where the memory of plugins is charged: a query's share of the pool, a server's budget.
pub trait MemoryAccount: Send + Sync {
    /// Takes bytes from the account.
    ///
    /// # Errors
    /// [`kymo_kernel::Code::OutOfMemory`] if it has none left; nothing is taken then.
    fn try_grow(&self, bytes: usize) -> Result<()>;
    /// Gives bytes back.
    fn shrink(&self, bytes: usize);
}

/// An account without a bottom, for instances that serve no query.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unlimited;

impl MemoryAccount for Unlimited {
    fn try_grow(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn shrink(&self, _: usize) {}
}

/// Why memory was refused to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It asked for more than its own limit.
    Limit,
    /// The account is empty.
    Account,
}

/// What wasmtime asks before memory and tables grow. It refuses and never traps: what a
/// plugin does without the memory is its own affair.
pub(crate) struct Limiter {
    account: Arc<dyn MemoryAccount>,
    memory_bytes: usize,
    memories: usize,
    table_elements: usize,
    /// Bytes of all its memories.
    charged: usize,
    /// What the growth under way has charged, to be given back if it fails after all.
    pending: usize,
    refused: Option<Refusal>,
}

impl Limiter {
    pub(crate) fn new(account: Arc<dyn MemoryAccount>, limits: &Limits) -> Limiter {
        Limiter {
            account,
            memory_bytes: limits.memory_bytes,
            memories: limits.memories,
            table_elements: limits.table_elements,
            charged: 0,
            pending: 0,
            refused: None,
        }
    }

    /// Bytes of linear memory that the instance has.
    pub(crate) fn charged(&self) -> usize {
        self.charged
    }

    /// The first refusal since the last time this was asked.
    pub(crate) fn take_refusal(&mut self) -> Option<Refusal> {
        self.refused.take()
    }

    fn refuse(&mut self, why: Refusal) -> wasmtime::Result<bool> {
        self.refused.get_or_insert(why);
        Ok(false)
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let all = self.charged.saturating_add(more);
        if all > self.memory_bytes || maximum.is_some_and(|most| desired > most) {
            return self.refuse(Refusal::Limit);
        }
        if self.account.try_grow(more).is_err() {
            return self.refuse(Refusal::Account);
        }
        self.charged += more;
        self.pending = more;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        let more = std::mem::take(&mut self.pending);
        self.charged -= more;
        self.account.shrink(more);
        Ok(())
    }

    fn table_growing(
        &mut self,
        _: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        match desired > self.table_elements {
            true => self.refuse(Refusal::Limit),
            false => Ok(true),
        }
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES as usize
    }

    fn tables(&self) -> usize {
        TABLES as usize
    }

    fn memories(&self) -> usize {
        self.memories
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.account.shrink(self.charged);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kymo_config::settings::Plugins;
    use kymo_kernel::{Code, Error};

    use super::*;
    use crate::limits::OwnLimits;

    struct Budget(AtomicUsize);

    impl MemoryAccount for Budget {
        fn try_grow(&self, bytes: usize) -> Result<()> {
            let take = |left: usize| left.checked_sub(bytes);
            let taken = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
            taken.map(drop).map_err(|_| Error::new(Code::OutOfMemory, "no memory is left"))
        }

        fn shrink(&self, bytes: usize) {
            self.0.fetch_add(bytes, Ordering::SeqCst);
        }
    }

    #[test]
    fn growth_is_charged_refused_at_either_limit_and_given_back() {
        let budget = Arc::new(Budget(AtomicUsize::new(100)));
        let limits = Limits { memory_bytes: 80, table_elements: 10, ..defaults() };
        let mut limiter = Limiter::new(budget.clone(), &limits);
        assert!(limiter.memory_growing(0, 60, None).unwrap());
        assert_eq!(budget.0.load(Ordering::SeqCst), 40);
        assert!(!limiter.memory_growing(60, 81, None).unwrap());
        assert_eq!(limiter.take_refusal(), Some(Refusal::Limit));
        budget.0.store(10, Ordering::SeqCst);
        assert!(!limiter.memory_growing(60, 80, None).unwrap());
        assert_eq!(limiter.take_refusal(), Some(Refusal::Account));
        assert_eq!(limiter.take_refusal(), None);
        assert!(!limiter.table_growing(0, 11, None).unwrap());
        drop(limiter);
        assert_eq!(budget.0.load(Ordering::SeqCst), 70);
    }

    #[test]
    fn several_memories_share_one_limit() {
        let budget = Arc::new(Budget(AtomicUsize::new(100)));
        let limits = Limits { memory_bytes: 80, ..defaults() };
        let mut limiter = Limiter::new(budget.clone(), &limits);
        assert!(limiter.memory_growing(0, 50, None).unwrap());
        assert!(!limiter.memory_growing(0, 31, None).unwrap(), "the second one's 31 make 81");
        assert_eq!(limiter.take_refusal(), Some(Refusal::Limit));
        assert!(limiter.memory_growing(0, 30, None).unwrap());
        assert!(!limiter.memory_growing(50, 51, None).unwrap());
        assert_eq!((limiter.charged(), budget.0.load(Ordering::SeqCst)), (80, 20));
    }

    fn defaults() -> Limits {
        Limits::of(&Plugins::default(), &OwnLimits::default())
    }
}
