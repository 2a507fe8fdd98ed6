//! The alert of the demo: this machine's processors under load.
//!
//! It is created through SQL like any other rule, and tells every channel that the settings
//! name, beside the log.

use std::sync::atomic::{AtomicBool, Ordering};

use kymo_kernel::Result;
use kymo_kernel::schema::{DEFAULT_DATABASE, TableName};

use super::{GLANCE, pause};
use crate::cli::client::Client;
use crate::cli::serve::Running;

/// What it does, for people.
pub const ABOUT: &str = "the rule busy_cpu fires when they are used to more than 80 % on average \
                         for 5 s,\nand is resolved once they are not";

/// The table that it reads.
const TABLE: &str = "cpu";

/// Creates the rule where there is none, as soon as there is a reading.
///
/// # Errors
/// What keeps it from being created.
pub fn create(server: &Running, client: &Client, ended: &AtomicBool) -> Result<()> {
    let table = TableName::new(DEFAULT_DATABASE, TABLE);
    while !server.has_table(&table) {
        if ended.load(Ordering::Relaxed) {
            return Ok(());
        }
        pause(GLANCE);
    }
    let channels = server.settings().alerts.channels.keys().map(String::as_str);
    client.run(&statement(channels)).map(drop)
}

fn statement<'a>(channels: impl Iterator<Item = &'a str>) -> String {
    let quoted = |name: &str| format!(", \"{}\"", name.replace('"', "\"\""));
    let others: String = channels.filter(|name| *name != "log").map(quoted).collect();
    format!(
        "CREATE ALERT IF NOT EXISTS busy_cpu EVERY '1s' ON (SELECT host, round(avg(usage), 1) AS \
         usage FROM cpu WHERE time > now() - INTERVAL '5 seconds' GROUP BY host) \
         WHEN usage > 80 FOR '5s' LABELS (severity = 'warning') \
         ANNOTATIONS (summary = 'The processors of {{{{ $labels.host }}}} are used to \
         {{{{ $value }}}} %') NOTIFY log{others}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_is_told() {
        let sql = statement(["log", "ops", "a \"b\""].into_iter());
        assert!(sql.ends_with(r#"NOTIFY log, "ops", "a ""b""""#), "{sql}");
        assert!(sql.contains("'The processors of {{ $labels.host }} are used to {{ $value }} %'"));
    }
}
