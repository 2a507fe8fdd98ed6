//! Log files that are kept as history when their rows are in segments: for those who read the
//! log as a feed.
//!
//! They lie in `kept/` below the folder of their partition, where recovery does not look: a
//! start takes as long with a year of history as with none. A file comes here by a second name,
//! which is durable before the first one goes. The name says all that is known of it, as
//! `<number>-<bytes>-<newest>.log`: how many bytes count (what a crash left behind them never
//! does), and when its newest record was written, in milliseconds since 1970. Files go whole,
//! the oldest first, when the newest record is older than `journal.retention` or all of them
//! take more than `journal.retention_bytes`.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kymo_config::Span;
use kymo_config::settings::Journal as Settings;

use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::observe::metrics;
use crate::storage::folder::entries;
use crate::storage::journal::files::{FileInfo, Place};

/// The folder, below that of the partition.
const FOLDER: &str = "kept";

/// How much history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// For how long after its newest record; `None` for ever.
    age: Option<Duration>,
    /// Bytes of all files; `None` without a bound.
    bytes: Option<u64>,
}

impl Keep {
    /// None.
    pub const NOTHING: Keep = Keep { age: Some(Duration::ZERO), bytes: None };

    /// What the settings ask for.
    ///
    /// # Errors
    /// `invalid_settings` where `journal.retention` is no length of time.
    pub fn of(settings: &Settings) -> Result<Keep> {
        match settings.retention.parse::<Span>() {
            Ok(Span::Forever) => Ok(Keep { age: None, bytes: None }),
            Ok(Span::For(age)) => {
                Ok(Keep { age: Some(age), bytes: Some(settings.retention_bytes) })
            }
            Err(problem) => Err(Error::new(Code::Settings, format!("journal.retention {problem}"))),
        }
    }

    /// Whether files go as soon as recovery does not need them.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self.age == Some(Duration::ZERO)
    }
}

/// One file of history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    /// Its number.
    pub number: u64,
    path: PathBuf,
    bytes: u64,
    newest_ms: u64,
}

impl KeptFile {
    fn read(folder: &Path, name: &str) -> Option<KeptFile> {
        let mut parts = name.strip_suffix(".log")?.splitn(3, '-').map(|part| part.parse().ok());
        let mut next = || parts.next().flatten();
        let (number, bytes, newest_ms) = (next()?, next()?, next()?);
        Some(KeptFile { number, path: folder.join(name), bytes, newest_ms })
    }

    /// Removes it. A crash may bring it back, and then it goes with the next look.
    ///
    /// # Errors
    /// I/O errors.
    pub fn remove(&self, env: &Env) -> Result<()> {
        match env.disk.remove(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let what = format_args!("remove kept log file {}", self.path.display());
                Err(Error::io(what, error))
            }
            _ => Ok(()),
        }
    }
}

/// All of them, oldest first, without a gap.
#[derive(Debug, Default)]
pub struct Kept(VecDeque<KeptFile>);

impl Kept {
    /// What lies below the folder of a partition.
    ///
    /// # Errors
    /// I/O errors.
    pub fn load(env: &Env, dir: &Path) -> Result<Kept> {
        let folder = dir.join(FOLDER);
        let entries = entries(&*env.disk, &folder)?;
        let read = |entry: &crate::env::Entry| KeptFile::read(&folder, &entry.name);
        let mut files: Vec<KeptFile> = entries.iter().filter_map(read).collect();
        files.sort_by_key(|file| file.number);
        // What a crash brought back of what had gone is not worth a gap.
        let gap = files.windows(2).rposition(|pair| pair[0].number + 1 != pair[1].number);
        for stray in files.drain(..gap.map_or(0, |at| at + 1)) {
            stray.remove(env)?;
        }
        let kept = Kept(files.into());
        kept.report();
        Ok(kept)
    }

    /// Gives a complete file its second name, durably. Doing it again changes nothing.
    ///
    /// # Errors
    /// I/O errors.
    pub fn link(env: &Env, info: &FileInfo) -> Result<KeptFile> {
        let FileInfo { number, path, bytes, newest_ms, .. } = info;
        let folder = path.parent().unwrap_or(Path::new("")).join(FOLDER);
        let target = folder.join(format!("{number:020}-{bytes}-{newest_ms}.log"));
        let link = || {
            env.disk.create_dir_all(&folder)?;
            match env.disk.link(path, &target) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                outcome => outcome?,
            }
            env.disk.sync_dir(&folder)
        };
        // The first name may be gone after an earlier try that could not sync its folder.
        let there = || env.disk.exists(&target).unwrap_or(false);
        match link() {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound || !there() => {
                Err(Error::io(format_args!("keep log file {}", path.display()), error))
            }
            _ => {
                Ok(KeptFile { number: *number, path: target, bytes: *bytes, newest_ms: *newest_ms })
            }
        }
    }

    /// Adds the newest one; one that is there already is there once.
    pub fn push(&mut self, file: KeptFile) {
        if self.0.back().is_none_or(|last| last.number < file.number) {
            self.0.push_back(file);
            self.report();
        }
    }

    /// Where they lie.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let place = |file: &KeptFile| Place {
            number: file.number,
            path: file.path.clone(),
            bytes: Some(file.bytes),
        };
        self.0.iter().map(place).collect()
    }

    /// The number of the oldest.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.0.front().map(|file| file.number)
    }

    /// The number that follows the newest, and the length of the newest.
    #[must_use]
    pub fn next_number(&self) -> Option<(u64, u64)> {
        self.0.back().map(|file| (file.number + 1, file.bytes))
    }

    /// The oldest, where it is not to be kept any longer.
    #[must_use]
    pub fn expired(&self, keep: Keep, now_ns: i64) -> Option<KeptFile> {
        let oldest = self.0.front()?;
        let now_ms = u64::try_from(now_ns / 1_000_000).unwrap_or(0);
        let age = Duration::from_millis(now_ms.saturating_sub(oldest.newest_ms));
        let old = keep.age.is_some_and(|most| age >= most);
        let large = keep.bytes.is_some_and(|most| self.bytes() > most);
        (old || large).then(|| oldest.clone())
    }

    /// Takes one out of the list.
    pub fn forget(&mut self, number: u64) {
        self.0.retain(|file| file.number != number);
        self.report();
    }

    /// Puts back what could not be removed.
    pub fn put_back(&mut self, file: KeptFile) {
        self.0.push_front(file);
        self.report();
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|file| file.bytes).sum()
    }

    fn report(&self) {
        let shown = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        metrics().journal.kept_files.set(shown(self.0.len() as u64));
        metrics().journal.kept_bytes.set(shown(self.bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(files: &[(u64, u64)]) -> Kept {
        let file = |(at, (bytes, newest_ms)): (usize, &(u64, u64))| KeptFile {
            number: at as u64 + 1,
            path: PathBuf::new(),
            bytes: *bytes,
            newest_ms: *newest_ms,
        };
        Kept(files.iter().enumerate().map(file).collect())
    }

    fn keep(retention: &str, retention_bytes: u64) -> Keep {
        let retention = retention.to_owned();
        Keep::of(&Settings { retention, retention_bytes, ..Settings::default() }).unwrap()
    }

    #[test]
    fn a_name_says_all_there_is_to_know() {
        let file = KeptFile::read(Path::new("/k"), "00000000000000000012-345-678.log").unwrap();
        assert_eq!((file.number, file.bytes, file.newest_ms), (12, 345, 678));
        for bad in ["00000000000000000012.log", "1-2-3", "1-2-x.log", "1-2.log"] {
            assert_eq!(KeptFile::read(Path::new("/k"), bad), None, "{bad}");
        }
    }

    #[test]
    fn files_go_by_the_age_of_their_newest_record_or_by_size_and_never_where_they_stay_for_ever() {
        let second = 1_000_000_000;
        let files = kept(&[(100, 1_000), (100, 9_000)]);
        let gone = |keep, now| files.expired(keep, now).map(|file| file.number);
        assert_eq!(gone(keep("10s", 1000), 10 * second), None);
        assert_eq!(gone(keep("10s", 1000), 11 * second), Some(1));
        assert_eq!(gone(keep("10s", 199), 2 * second), Some(1));
        assert_eq!(gone(keep("10s", 200), 2 * second), None);
        assert_eq!(gone(keep("forever", 0), i64::MAX), None);
        assert_eq!(gone(Keep::NOTHING, 2 * second), Some(1));
        assert!(keep("0s", 5).is_nothing() && !keep("1s", 5).is_nothing());
    }
}
