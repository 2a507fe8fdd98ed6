//! The two places of segments, and moving old ones from the first to the second.
//!
//! The path of a segment tells where it lies: `data/…` is hot, `cold/…` cold. Nobody else has to
//! know: the disk leads the one folder elsewhere ([`crate::bucket::attached`]), and readers,
//! merges and deletions take a segment from wherever it is. What they write is hot.
//!
//! A move is an exchange of segments as any other. The bytes are copied as they are under a name
//! that was never used, read back and verified, and then one edit of the metadata
//! ([`crate::storage::meta::Op::Replace`]) puts the copy in the place of the original, which goes
//! when its last reader does. Until that edit nothing has happened, whatever crashes.
//! [`place`] makes sure that the second place is the one of this store.

use std::io::Write;
use std::sync::Arc;

use kymo_config::settings::Compaction;

use crate::bucket::COLD;
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::ids::SegmentId;
use crate::storage::compact;
use crate::storage::meta::SegmentMeta;
use crate::storage::segment::SegmentReader;
use crate::storage::segment::write::{Target, check, new_id};
use crate::storage::version::{SegmentRef, Version};

pub mod place;

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// Where a segment lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// With the metadata.
    Hot,
    /// In the second place.
    Cold,
}

impl Tier {
    /// Where a segment lies.
    #[must_use]
    pub fn of(segment: &SegmentMeta) -> Tier {
        match segment.path.split_once('/') {
            Some((COLD, _)) => Tier::Cold,
            _ => Tier::Hot,
        }
    }

    /// The tier as one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::Hot => "hot",
            Tier::Cold => "cold",
        }
    }
}

/// The next segment of a version to move: the oldest whose rows are all older than `before`, in
/// nanoseconds, and that no merge waits for. `may` leaves some out.
#[must_use]
pub fn pick(
    version: &Version,
    settings: &Compaction,
    before: i64,
    may: &dyn Fn(SegmentId) -> bool,
) -> Option<Arc<SegmentRef>> {
    let due = |segment: &Arc<SegmentRef>| {
        let meta = segment.meta();
        meta.time.last < before && Tier::of(meta) == Tier::Hot && may(meta.id)
    };
    // Most looks end here.
    if !version.segments.iter().any(due) {
        return None;
    }
    let settled = compact::settled(version, settings).into_iter();
    settled.filter(due).min_by_key(|segment| segment.meta().time.last)
}

/// Copies a segment to the second place and verifies the copy, which nothing names yet. Blocks;
/// `progress` is told the bytes that were copied so far.
///
/// # Errors
/// `corrupt` where the copy does not verify, as that of a damaged segment; `disk_full`,
/// `storage_unreachable` or `io_error` naming a file; `cancelled`.
pub fn run(
    segment: &SegmentRef,
    target: &Target,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(u64),
) -> Result<SegmentMeta> {
    let from = segment.meta();
    let id = new_id(&target.env);
    let copy = SegmentMeta { id, path: path(&from.path, id), ..SegmentMeta::clone(from) };
    let bytes = target.store.open(&from.path)?;
    let mut upload = target.store.create(&copy.path)?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        check(cancel)?;
        let read = bytes.read_at(&mut buffer, at);
        let read = read.map_err(|error| Error::io(format_args!("read {}", from.path), error))?;
        if read == 0 {
            break;
        }
        let written = upload.write_all(&buffer[..read]);
        written.map_err(|error| Error::io(format_args!("write {}", copy.path), error))?;
        at += read as u64;
        progress(at);
    }
    upload.publish()?;
    let copy = Arc::new(copy);
    match SegmentReader::open(target.store.as_ref(), &copy).and_then(|copy| copy.verify()) {
        Ok(()) => Ok(Arc::unwrap_or_clone(copy)),
        Err(error) => {
            if let Err(error) = target.store.delete(&copy.path) {
                tracing::warn!(%error, "a copy that does not verify stays until the next start");
            }
            Err(error.context(format_args!("copy segment {}", from.path)))
        }
    }
}

/// Where the copy of a segment lies: as the original, below another folder and with its own name.
fn path(from: &str, id: SegmentId) -> String {
    let below = from.split_once('/').map_or(from, |(_, below)| below);
    let folder = below.rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{COLD}/{folder}/{id}.parquet")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::error::Code;
    use crate::storage::model::{Bench, Row, Rows, WINDOW, scan};

    fn settings() -> Compaction {
        Compaction { min_segments: 2, ..Compaction::default() }
    }

    fn write(bench: &mut Bench, times: std::ops::Range<i64>) {
        let row = |time| Row {
            a: Some("x".into()),
            b: None,
            time,
            float: Some(0.5),
            int: Some(time),
            text: None,
        };
        bench.write(Rows { rows: times.map(row).collect(), columns: 0xff }.batch());
        bench.flush();
    }

    fn due(bench: &Bench, before: i64) -> Option<Arc<SegmentRef>> {
        pick(&bench.version(), &settings(), before, &|_| true)
    }

    fn relocate(bench: &mut Bench, segment: &SegmentRef) -> SegmentMeta {
        let moved = run(segment, &bench.target, &CancelToken::new(), &mut |_| {}).unwrap();
        bench.state.replaced(&[segment.meta().id], [Arc::new(moved.clone())]).unwrap();
        moved
    }

    fn settle(bench: &mut Bench) {
        while bench.compact(2, i64::MAX) {}
    }

    #[test]
    fn what_is_old_and_merged_moves_oldest_first_and_reads_the_same() {
        let mut bench = Bench::new(false);
        write(&mut bench, 0..10);
        assert!(due(&bench, i64::MAX).is_none(), "a merge comes first");
        write(&mut bench, WINDOW..WINDOW + 5);
        settle(&mut bench);
        assert!(due(&bench, 9).is_none(), "the newest row is not older");
        let before = scan(&bench.version(), 4);
        let first = due(&bench, 10).unwrap();
        assert_eq!(first.meta().time.last, 9);
        assert!(pick(&bench.version(), &settings(), 10, &|id| id != first.meta().id).is_none());
        let pinned = bench.version();
        let moved = relocate(&mut bench, &first);
        assert_eq!((Tier::of(first.meta()), Tier::of(&moved)), (Tier::Hot, Tier::Cold));
        assert!(moved.path.starts_with("cold/kymo/public/rows/1970-01-01T000000Z/"));
        let same =
            SegmentMeta { id: moved.id, path: moved.path.clone(), ..(**first.meta()).clone() };
        assert_eq!(moved, same);
        assert_eq!(scan(&bench.version(), 4), before);
        assert_eq!(scan(&pinned, 4), before, "whoever reads goes on with the original");
        assert!(due(&bench, WINDOW).is_none(), "once");
        assert_eq!(due(&bench, i64::MAX).unwrap().meta().time.first, WINDOW);
        bench.reopen();
        assert_eq!(scan(&bench.version(), 4), before);
        assert!(!bench.compact(2, i64::MAX), "a cold window that is quiet is left alone");
    }

    #[test]
    fn what_comes_late_is_merged_with_what_is_cold_and_moves_again() {
        let mut bench = Bench::new(false);
        write(&mut bench, 0..10);
        settle(&mut bench);
        let segment = due(&bench, i64::MAX).unwrap();
        relocate(&mut bench, &segment);
        write(&mut bench, 5..12);
        let before = scan(&bench.version(), 4);
        assert_eq!(before.len(), 12);
        assert!(due(&bench, i64::MAX).is_none(), "a merge comes first");
        settle(&mut bench);
        let version = bench.version();
        let [only] = &*version.segments else { panic!("{version:?}") };
        assert_eq!(Tier::of(only.meta()), Tier::Hot);
        assert_eq!(scan(&version, 4), before);
        relocate(&mut bench, only);
        assert_eq!(scan(&bench.version(), 4), before);
    }

    #[test]
    fn a_copy_that_does_not_verify_leaves_everything_as_it_was() {
        let mut bench = Bench::new(false);
        write(&mut bench, 0..10);
        settle(&mut bench);
        let segment = due(&bench, i64::MAX).unwrap();
        let files = bench.sim.disk.files().len();
        let path = format!("/store/{}", segment.meta().path);
        bench.sim.disk.flip_bit(Path::new(&path), 100, 3).unwrap();
        let failed = run(&segment, &bench.target, &CancelToken::new(), &mut |_| {}).unwrap_err();
        assert_eq!(failed.code(), Code::Corrupt, "{failed:?}");
        assert!(failed.to_string().contains(&segment.meta().path), "{failed}");
        assert_eq!(bench.sim.disk.files().len(), files, "the copy is gone");
        let cancel = CancelToken::new();
        cancel.cancel();
        let failed = run(&segment, &bench.target, &cancel, &mut |_| {}).unwrap_err();
        assert_eq!(failed.code(), Code::Cancelled);
        assert_eq!(bench.sim.disk.files().len(), files, "nothing half-written stays");
    }
}
