//! The numbers that a plugin has to keep to: those of the server, and those that one plugin
//! was installed with, which the server caps.

use std::time::Duration;

use kymo_config::settings::Plugins;
use serde::{Deserialize, Serialize};

/// Limits that a plugin may be installed with, in place of the server's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OwnLimits {
    /// Memory of one instance, in bytes; at most `plugins.max_memory_bytes`.
    pub memory_bytes: Option<u64>,
    /// Time of one call, in milliseconds; at most `plugins.max_call_timeout_ms`.
    pub call_timeout_ms: Option<u64>,
    /// Rows of one call; at most `plugins.max_batch_rows`.
    pub batch_rows: Option<u64>,
}

/// What holds for the instances of one plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Memory of one instance, in bytes.
    pub memory_bytes: usize,
    /// Memories of one instance, which share `memory_bytes`.
    pub memories: usize,
    /// Entries of one function table.
    pub table_elements: usize,
    /// Time of one call.
    pub call_timeout: Duration,
    /// Time of `describe` and of `start`.
    pub start_timeout: Duration,
    /// What a call may hand back on top of four times the size of its arguments, in bytes.
    pub result_bytes: usize,
    /// Rows of one call.
    pub batch_rows: usize,
    /// Length at which the message of a plugin is cut, in bytes.
    pub text_bytes: usize,
    /// Lines that one instance may log; 0 if nothing is kept.
    pub log_lines: usize,
    /// Bytes that one instance may log.
    pub log_bytes: usize,
    /// Calls after which a long-lived instance is replaced.
    pub recycle_calls: u64,
    /// Age at which a long-lived instance is replaced.
    pub recycle_age: Duration,
}

impl Limits {
    /// The server's limits with those that a plugin was installed with, capped.
    #[must_use]
    pub fn of(server: &Plugins, own: &OwnLimits) -> Limits {
        let memory = own.memory_bytes.unwrap_or(server.memory_bytes).min(server.max_memory_bytes);
        let timeout =
            own.call_timeout_ms.unwrap_or(server.call_timeout_ms).min(server.max_call_timeout_ms);
        let rows = own.batch_rows.map_or(server.max_batch_rows, size).min(server.max_batch_rows);
        Limits {
            memory_bytes: size(memory),
            memories: server.max_memories as usize,
            table_elements: server.max_table_elements,
            call_timeout: Duration::from_millis(timeout),
            start_timeout: Duration::from_millis(server.start_timeout_ms),
            result_bytes: size(server.max_result_bytes),
            batch_rows: rows.max(1),
            text_bytes: size(server.max_text_bytes),
            log_lines: if server.log { server.log_lines } else { 0 },
            log_bytes: size(server.log_bytes),
            recycle_calls: server.recycle_calls,
            recycle_age: Duration::from_millis(server.recycle_ms),
        }
    }
}

/// What a description may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescriptionLimits {
    /// Functions of a plugin.
    pub functions: usize,
    /// Overloads of a function.
    pub overloads: usize,
    /// Parameters, results or state columns of an overload.
    pub columns: usize,
    /// Size of a text, in bytes.
    pub text_bytes: usize,
    /// Levels of a nested type.
    pub type_depth: usize,
}

impl DescriptionLimits {
    /// Those of the server's settings.
    #[must_use]
    pub fn of(server: &Plugins) -> DescriptionLimits {
        DescriptionLimits {
            functions: server.max_functions,
            overloads: server.max_overloads,
            columns: server.max_columns,
            text_bytes: size(server.max_text_bytes),
            type_depth: server.max_type_depth,
        }
    }
}

impl Default for DescriptionLimits {
    fn default() -> Self {
        DescriptionLimits::of(&Plugins::default())
    }
}

fn size(setting: u64) -> usize {
    usize::try_from(setting).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_limits_replace_the_defaults_up_to_the_cap() {
        let server = Plugins::default();
        assert_eq!(Limits::of(&server, &OwnLimits::default()).memory_bytes, 64 << 20);
        let small = OwnLimits { memory_bytes: Some(1 << 20), ..OwnLimits::default() };
        assert_eq!(Limits::of(&server, &small).memory_bytes, 1 << 20);
        let greedy = OwnLimits {
            memory_bytes: Some(u64::MAX),
            call_timeout_ms: Some(u64::MAX),
            batch_rows: Some(u64::MAX),
        };
        let limits = Limits::of(&server, &greedy);
        assert_eq!(limits.memory_bytes, 256 << 20);
        assert_eq!(limits.call_timeout, Duration::from_secs(60));
        assert_eq!(limits.batch_rows, 65_536);
    }
}
