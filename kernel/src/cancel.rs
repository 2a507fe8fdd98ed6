//! Cancellation as a value: whoever runs something keeps one end, whoever may stop it the other.
//!
//! A token is a flag that can be waited for. It goes one way: once cancelled, it stays so.

use std::fmt;

use tokio::sync::watch;

/// A flag that stops what was started with it. Clones share the flag.
#[derive(Clone)]
pub struct CancelToken(watch::Sender<bool>);

impl CancelToken {
    /// A token that nobody has cancelled.
    #[must_use]
    pub fn new() -> Self {
        CancelToken(watch::Sender::new(false))
    }

    /// Asks to stop. Does nothing the second time.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Whether somebody asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Completes as soon as somebody asks to stop; at once if that has happened.
    pub async fn cancelled(&self) {
        let mut flag = self.0.subscribe();
        // The sender lives in `self`, so waiting cannot fail while this future exists.
        let _ = flag.wait_for(|cancelled| *cancelled).await;
    }
}

/// Cancels with whoever owns it: work whose result nobody waits for any more.
#[derive(Debug, Default)]
pub struct CancelOnDrop(pub CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Default for CancelToken {
    fn default() -> Self {
        CancelToken::new()
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "CancelToken({})", self.is_cancelled())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clone_sees_the_cancellation_and_late_waiters_do_not_wait() {
        let token = CancelToken::new();
        let other = token.clone();
        assert!(!other.is_cancelled());
        token.cancel();
        other.cancelled().await;
        assert!(other.is_cancelled());
    }
}
