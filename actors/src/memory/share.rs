//! What each part may take of the memory of the process.
//!
//! Parts whose setting is the default are sized by their share of the limit, with the default as
//! the upper bound, so that a small container gets a small database by itself. What somebody has
//! set stays, the others share what it leaves, and it is refused where that cannot fit.

use std::sync::Arc;

use kymo_config::Settings;
use kymo_kernel::{Code, Error, Result};

use super::limit::Limit;

/// What code, threads, connections and all that is not counted take.
const BASE: u64 = 96 << 20;
/// No part that is sized by its share gets less.
const LEAST: u64 = 4 << 20;

/// A setting with its share.
struct Part {
    key: &'static str,
    /// Percent of what is left beside [`BASE`], where nothing is set.
    share: u64,
    /// Whether it adds to what may be taken at one time.
    counts: fn(&Settings) -> bool,
    place: fn(&mut Settings) -> &mut u64,
}

const ALWAYS: fn(&Settings) -> bool = |_| true;
/// What another part covers, or what is taken while nothing else is.
const NEVER: fn(&Settings) -> bool = |_| false;
const IN_BUCKET: fn(&Settings) -> bool = |settings| !settings.storage.url.is_empty();

const fn part(
    key: &'static str,
    share: u64,
    counts: fn(&Settings) -> bool,
    place: fn(&mut Settings) -> &mut u64,
) -> Part {
    Part { key, share, counts, place }
}

/// All of them. What counts adds up to less than everything: the rest is for what goes over.
const PARTS: [Part; 10] = [
    part("query.memory_bytes", 32, ALWAYS, |s| &mut s.query.memory_bytes),
    part("memtable.hard_bytes", 20, ALWAYS, |s| &mut s.memtable.hard_bytes),
    part("memtable.soft_bytes", 10, NEVER, |s| &mut s.memtable.soft_bytes),
    part("memtable.table_bytes", 5, NEVER, |s| &mut s.memtable.table_bytes),
    part("compaction.memory_bytes", 10, ALWAYS, |s| &mut s.compaction.memory_bytes),
    part("ingest.queue_bytes", 6, ALWAYS, |s| &mut s.ingest.queue_bytes),
    part("journal.queue_bytes", 4, ALWAYS, |s| &mut s.journal.queue_bytes),
    part("segment.cache_bytes", 6, ALWAYS, |s| &mut s.segment.cache_bytes),
    part("storage.cache_bytes", 6, IN_BUCKET, |s| &mut s.storage.cache_bytes),
    // While the store is opened, nothing else takes anything.
    part("journal.replay_bytes", 20, NEVER, |s| &mut s.journal.replay_bytes),
];

/// The settings with every part sized to a limit, which `memory.limit_bytes` says then.
///
/// # Errors
/// `invalid_settings`, naming what takes how much, where it cannot fit.
pub fn fit(settings: &Arc<Settings>, limit: Limit) -> Result<Arc<Settings>> {
    let mut defaults = Settings::default();
    let mut fitted = Settings::clone(settings);
    let (set, open): (Vec<&Part>, Vec<&Part>) =
        PARTS.iter().partition(|part| *(part.place)(&mut fitted) != *(part.place)(&mut defaults));
    let taken: Vec<&Part> = set.into_iter().filter(|part| (part.counts)(settings)).collect();
    let bytes = taken.iter().map(|part| *(part.place)(&mut fitted)).fold(0, u64::saturating_add);
    let shares: u64 = taken.iter().map(|part| part.share).sum();
    let room = limit.bytes.saturating_sub(BASE).saturating_sub(bytes) / (100 - shares);
    for part in open {
        let value = (part.place)(&mut fitted);
        *value = (*value).min((room * part.share).max(LEAST));
    }
    // What was set for one of the two may leave less for the other.
    let (soft, hard) = (&mut fitted.memtable.soft_bytes, fitted.memtable.hard_bytes);
    if *soft >= hard && settings.memtable.soft_bytes == defaults.memtable.soft_bytes {
        *soft = hard / 2;
    }
    check(&mut fitted, limit)?;
    fitted.memory.limit_bytes = limit.bytes;
    Ok(Arc::new(fitted))
}

fn check(settings: &mut Settings, limit: Limit) -> Result<()> {
    let counted: Vec<&Part> = PARTS.iter().filter(|part| (part.counts)(settings)).collect();
    let parts: Vec<(&str, u64)> =
        counted.into_iter().map(|part| (part.key, *(part.place)(settings))).collect();
    let needed = parts.iter().fold(BASE, |sum, (_, bytes)| sum.saturating_add(*bytes));
    if needed <= limit.bytes && settings.memtable.soft_bytes < settings.memtable.hard_bytes {
        return Ok(());
    }
    let named: Vec<String> =
        parts.iter().map(|(key, bytes)| format!("{key} {}", mib(*bytes))).collect();
    let what = format!(
        "{} allows {} of memory, and the parts may take {}: {}, and {} for the rest",
        limit.of,
        mib(limit.bytes),
        mib(needed),
        named.join(", "),
        mib(BASE)
    );
    Err(Error::new(Code::Settings, what).with_hint(
        "lower what is set or leave it out, so that it is sized to the memory that there is; or \
         give the server more memory",
    ))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::limit::Of;

    const MIB: u64 = 1 << 20;

    fn container(mib: u64) -> Limit {
        Limit { bytes: mib * MIB, of: Of::Container }
    }

    fn fitted(mib: u64, change: fn(&mut Settings)) -> Result<Settings> {
        let mut settings = Settings::default();
        change(&mut settings);
        fit(&Arc::new(settings), container(mib)).map(|fitted| fitted.as_ref().clone())
    }

    #[test]
    fn where_there_is_enough_the_defaults_stay() {
        let mut expected = Settings::default();
        expected.memory.limit_bytes = 8192 * MIB;
        assert_eq!(fitted(8192, |_| ()).unwrap(), expected);
    }

    #[test]
    fn shares_add_up_to_less_than_everything_at_every_size() {
        let mut bucket = Settings::default();
        bucket.storage.url = "s3://bucket".into();
        let counted = PARTS.iter().filter(|part| (part.counts)(&bucket));
        let shares = counted.map(|part| part.share);
        assert!(shares.sum::<u64>() <= 85);
        for mib in [160, 256, 300, 512, 1000, 2048, 4096] {
            let settings = fitted(mib, |_| ()).unwrap();
            let memtable = &settings.memtable;
            assert!(memtable.table_bytes < memtable.soft_bytes, "{mib}");
            assert!(memtable.soft_bytes < memtable.hard_bytes, "{mib}");
        }
        let small = fitted(512, |_| ()).unwrap();
        assert!((130 * MIB..136 * MIB).contains(&small.query.memory_bytes));
    }

    #[test]
    fn what_was_set_stays_and_is_refused_where_it_cannot_fit() {
        let set = |s: &mut Settings| s.query.memory_bytes = 300 * MIB;
        assert_eq!(fitted(512, set).unwrap().query.memory_bytes, 300 * MIB);
        let error = fitted(384, set).unwrap_err();
        assert_eq!(error.code(), Code::Settings);
        for word in ["the container allows 384 MiB", "query.memory_bytes 300 MiB"] {
            assert!(error.message().contains(word), "{error}");
        }
        assert_eq!(fitted(64, |_| ()).unwrap_err().code(), Code::Settings);
        let endless = |s: &mut Settings| {
            (s.query.memory_bytes, s.ingest.queue_bytes) = (u64::MAX, u64::MAX);
        };
        assert_eq!(fitted(8192, endless).unwrap_err().code(), Code::Settings);
        let hard = |s: &mut Settings| s.memtable.hard_bytes = 10 * MIB;
        assert_eq!(fitted(8192, hard).unwrap().memtable.soft_bytes, 5 * MIB);
    }
}
