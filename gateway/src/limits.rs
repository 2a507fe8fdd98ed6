//! How many may come in at a time: connections of a port, and bodies being parsed.

use std::sync::Arc;
use std::time::Duration;

use kymo_kernel::{Code, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room for a fixed number of connections; cheap to clone.
#[derive(Debug, Clone)]
pub struct Connections {
    room: Arc<Semaphore>,
    max: usize,
    setting: &'static str,
}

/// A place taken by one connection, given back when dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Connections {
    /// Room for `max` connections.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        let room = Arc::new(Semaphore::new(max));
        Connections { room, max, setting: "server.max_connections" }
    }

    /// The same under another setting.
    #[must_use]
    pub fn under(self, setting: &'static str) -> Self {
        Connections { setting, ..self }
    }

    /// Takes a place, or says that there is none; never waits, because a connection that
    /// waits holds a socket without telling its client why.
    ///
    /// # Errors
    /// `limit_reached` while all places are taken.
    pub fn admit(&self) -> Result<Place> {
        Arc::clone(&self.room).try_acquire_owned().map(Place).map_err(|_| {
            Error::new(
                Code::LimitReached,
                format!("too many connections: all {} are in use", self.max),
            )
            .with_hint(format!("close some, or raise {}", self.setting))
        })
    }

    /// How many places are taken.
    #[must_use]
    pub fn open(&self) -> usize {
        self.max.saturating_sub(self.room.available_permits())
    }
}

/// Turns for work that takes a core for a while, such as parsing a large body.
#[derive(Debug, Clone)]
pub struct Turns {
    room: Arc<Semaphore>,
    wait: Duration,
    what: &'static str,
}

impl Turns {
    /// `max` turns at a time; a turn is waited for at most `wait`.
    #[must_use]
    pub fn new(what: &'static str, max: usize, wait: Duration) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Turns { room: Arc::new(Semaphore::new(max)), wait, what }
    }

    /// Waits for a turn. Cancel-safe: dropping the future gives up the place in the queue.
    ///
    /// # Errors
    /// `busy` when none came up in time.
    pub async fn take(&self) -> Result<OwnedSemaphorePermit> {
        match tokio::time::timeout(self.wait, Arc::clone(&self.room).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::new(Code::Busy, format!("too much {} under way", self.what))
                .with_hint("send the same request again shortly")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_when_dropped() {
        let connections = Connections::new(2);
        let first = connections.admit().unwrap();
        let _second = connections.admit().unwrap();
        assert_eq!(connections.open(), 2);
        assert_eq!(connections.admit().unwrap_err().code(), Code::LimitReached);
        drop(first);
        assert!(connections.admit().is_ok());
    }

    #[tokio::test]
    async fn a_turn_that_does_not_come_up_is_busy() {
        let turns = Turns::new("parsing", 1, Duration::ZERO);
        let held = turns.take().await.unwrap();
        assert_eq!(turns.take().await.unwrap_err().code(), Code::Busy);
        drop(held);
        assert!(turns.take().await.is_ok());
    }
}
