//! What one query has spent in plugins, call by call: for `EXPLAIN ANALYZE`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

/// The calls of one kind that a query has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    /// The plugin.
    pub plugin: Arc<str>,
    /// The first digits of its version's digest.
    pub version: Arc<str>,
    /// What was called: `c2f`, `spread.update`; `instantiate` for making an instance.
    pub call: String,
    /// How often.
    pub calls: u64,
    /// Rows handed over.
    pub rows: u64,
    /// Time within the calls, added up over the workers; copies in and out included.
    pub time: Duration,
}

/// The calls of one query. It is written to once a batch, by all of the query's workers.
#[derive(Debug, Default)]
pub struct Usage(Mutex<Vec<Spent>>);

impl Usage {
    /// What has been spent so far, in the order of the first calls.
    #[must_use]
    pub fn spent(&self) -> Vec<Spent> {
        self.0.lock().clone()
    }

    /// Counts a call. The few kinds of calls of a query are looked through one by one.
    pub(crate) fn add(
        &self,
        (plugin, version): (&Arc<str>, &Arc<str>),
        call: &str,
        rows: u64,
        time: Duration,
    ) {
        let mut all = self.0.lock();
        let known = all
            .iter_mut()
            .find(|each| each.call == call && each.plugin == *plugin && each.version == *version);
        match known {
            Some(known) => {
                known.calls += 1;
                known.rows += rows;
                known.time += time;
            }
            None => all.push(Spent {
                plugin: plugin.clone(),
                version: version.clone(),
                call: call.to_owned(),
                calls: 1,
                rows,
                time,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_one_kind_add_up() {
        let usage = Usage::default();
        let (plugin, one, two): (Arc<str>, Arc<str>, Arc<str>) =
            ("p".into(), "1".into(), "2".into());
        let time = Duration::from_millis(2);
        usage.add((&plugin, &one), "f", 10, time);
        usage.add((&plugin, &one), "g", 1, time);
        usage.add((&plugin, &two), "f", 1, time);
        usage.add((&plugin, &one), "f", 5, time);
        let spent = usage.spent();
        assert_eq!(spent.len(), 3);
        assert_eq!((spent[0].calls, spent[0].rows, spent[0].time), (2, 15, 2 * time));
    }
}
