//! The switch that stops the store: thrown once by the first failure in a durable path,
//! never reset.
//!
//! After a failed write or fsync nobody knows what the disk holds, and trying again is not
//! safe (the kernel may have dropped the pages). So nothing is acknowledged afterwards, the
//! process is told to stop, and recovery decides from what is on disk.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::error::{Code, Error, Result};
use crate::observe::metrics;

type Listener = Box<dyn FnOnce(Error) + Send>;

/// The switch; clones are one and the same.
#[derive(Clone, Default)]
pub struct Poison(Arc<Inner>);

#[derive(Default)]
struct Inner {
    cause: OnceLock<Error>,
    listener: Mutex<Option<Listener>>,
}

impl Poison {
    /// Names who is told, once, with the error that threw the switch; at once if that has
    /// happened. Replaces an earlier listener.
    pub fn on_poison(&self, listener: impl FnOnce(Error) + Send + 'static) {
        let mut slot = self.0.listener.lock();
        match self.0.cause.get() {
            Some(cause) => listener(cause.clone()),
            None => *slot = Some(Box::new(listener)),
        }
    }

    /// Throws the switch. The first cause stays; it is logged and told to the listener.
    pub fn poison(&self, cause: Error) {
        if self.0.cause.set(cause.clone()).is_err() {
            return;
        }
        metrics().journal.poisoned.set(1);
        tracing::error!(
            code = cause.code().as_str(),
            error = %cause,
            hint = cause.hint().unwrap_or_default(),
            "store stopped after a failure in a durable path, restart recovers it"
        );
        let listener = self.0.listener.lock().take();
        if let Some(listener) = listener {
            listener(cause);
        }
    }

    /// Why the store stopped, if it has.
    #[must_use]
    pub fn cause(&self) -> Option<Error> {
        self.0.cause.get().cloned()
    }

    /// Refuses if the store has stopped.
    ///
    /// # Errors
    /// `poisoned`, naming the first cause.
    pub fn check(&self) -> Result<()> {
        match self.0.cause.get() {
            None => Ok(()),
            Some(cause) => Err(Error::new(
                Code::Poisoned,
                format!("the store stopped after an earlier failure: {cause}"),
            )
            .with_hint("remove the cause and restart the server; nothing acknowledged is lost")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_first_cause_stays_and_is_told_once() {
        let poison = Poison::default();
        poison.check().unwrap();
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        poison.on_poison(move |cause| {
            assert_eq!(cause.code(), Code::Io);
            count.fetch_add(1, Ordering::SeqCst);
        });
        poison.poison(Error::new(Code::Io, "first"));
        poison.poison(Error::new(Code::DiskFull, "second"));
        assert_eq!(told.load(Ordering::SeqCst), 1);
        let refused = poison.check().unwrap_err();
        assert_eq!(refused.code(), Code::Poisoned);
        assert!(refused.message().contains("first"));
    }
}
