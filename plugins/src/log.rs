//! What plugins log: the last lines of all of them, in a ring of fixed length, for
//! `system.plugin_log`; and the allowance that keeps one instance from filling it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kymo_kernel::env::Clock;
use kymo_kernel::observe::metrics;
use parking_lot::Mutex;

/// How much a line matters, in the words of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the author.
    Debug,
    /// For who runs it.
    Info,
    /// Something is odd.
    Warn,
    /// Something went wrong.
    Error,
}

impl Level {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// One line of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    pub time_ns: i64,
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// The first digits of its version's digest.
    pub version: Arc<str>,
    /// How much it matters.
    pub level: Level,
    /// What it says.
    pub message: String,
}

/// The last lines of all plugins.
pub struct PluginLog {
    clock: Arc<dyn Clock>,
    entries: usize,
    lines: Mutex<VecDeque<Line>>,
    dropped: AtomicU64,
}

impl PluginLog {
    /// A log that remembers so many lines.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, entries: usize) -> PluginLog {
        PluginLog { clock, entries, lines: Mutex::default(), dropped: AtomicU64::new(0) }
    }

    /// The lines it remembers, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().iter().cloned().collect()
    }

    /// Lines that were not kept because their instance had used up its allowance.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn push(&self, line: Line) {
        let mut lines = self.lines.lock();
        while lines.len() >= self.entries.max(1) {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        metrics().plugins.dropped_log_lines.inc();
    }
}

/// What one instance may still log.
pub(crate) struct Logger {
    log: Arc<PluginLog>,
    plugin: Arc<str>,
    version: Arc<str>,
    lines: usize,
    bytes: usize,
    last: Option<String>,
}

impl Logger {
    pub(crate) fn new(
        log: Arc<PluginLog>,
        plugin: Arc<str>,
        version: Arc<str>,
        lines: usize,
        bytes: usize,
    ) -> Logger {
        Logger { log, plugin, version, lines, bytes, last: None }
    }

    /// Keeps a line, if the allowance and the settings let it.
    pub(crate) fn line(&mut self, level: Level, message: String) {
        if self.lines == 0 || message.len() > self.bytes {
            self.log.drop_one();
            return;
        }
        self.lines -= 1;
        self.bytes -= message.len();
        tracing::debug!(
            target: "kymo::plugin",
            plugin = %self.plugin, version = %self.version, level = level.as_str(), %message
        );
        self.last = Some(message.clone());
        self.log.push(Line {
            time_ns: self.log.clock.now_ns(),
            plugin: self.plugin.clone(),
            version: self.version.clone(),
            level,
            message,
        });
    }

    /// The line that came last since this was asked the last time: what a plugin said before
    /// it trapped.
    pub(crate) fn take_last(&mut self) -> Option<String> {
        self.last.take()
    }
}

#[cfg(test)]
mod tests {
    use kymo_kernel::env::real;

    use super::*;

    fn logger(log: &Arc<PluginLog>) -> Logger {
        Logger::new(log.clone(), "p".into(), "abc".into(), 3, 10)
    }

    #[test]
    fn an_instance_has_its_allowance_and_the_ring_its_length() {
        let log = Arc::new(PluginLog::new(real::env().clock, 4));
        let mut one = logger(&log);
        one.line(Level::Info, "123456".into());
        one.line(Level::Info, "12345".into());
        assert_eq!(log.dropped(), 1, "too many bytes");
        one.line(Level::Warn, "1".into());
        one.line(Level::Warn, "2".into());
        one.line(Level::Warn, "3".into());
        assert_eq!(log.dropped(), 2, "too many lines");
        assert_eq!(one.take_last().as_deref(), Some("2"));
        assert_eq!(one.take_last(), None);
        let mut two = logger(&log);
        two.line(Level::Error, "4".into());
        two.line(Level::Error, "5".into());
        let kept: Vec<_> = log.lines().into_iter().map(|line| line.message).collect();
        assert_eq!(kept, ["1", "2", "4", "5"]);
    }
}
