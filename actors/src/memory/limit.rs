//! How much memory the process may take: what the settings say, else the limit of its container,
//! else what the machine has.
//!
//! A container's limit is that of the process's own control group or of any above it, whichever
//! is smallest: of version 2 (`memory.max`) and of version 1 (`memory.limit_in_bytes`), of which
//! a machine may have both.

use std::fmt;
use std::path::{Path, PathBuf};

/// A limit in bytes, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bytes.
    pub bytes: u64,
    /// Whose.
    pub of: Of,
}

/// Whose limit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// `memory.limit_bytes`.
    Settings,
    /// A control group's.
    Container,
    /// All the memory there is.
    Machine,
}

impl fmt::Display for Of {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Of::Settings => "memory.limit_bytes",
            Of::Container => "the container",
            Of::Machine => "the machine",
        })
    }
}

impl Limit {
    /// What counts, where the settings say `configured` (0 where they leave it open); `None`
    /// where the system tells nothing.
    #[must_use]
    pub fn find(configured: u64) -> Option<Limit> {
        match configured {
            0 => Limit::of_system(Path::new("/")),
            bytes => Some(Limit { bytes, of: Of::Settings }),
        }
    }

    /// The limit of the process in the system whose files lie below `root`.
    fn of_system(root: &Path) -> Option<Limit> {
        let machine = machine(root).map(|bytes| Limit { bytes, of: Of::Machine });
        let container = container(root).map(|bytes| Limit { bytes, of: Of::Container });
        // A group without a limit says a number that no machine has.
        container.into_iter().chain(machine).min_by_key(|limit| limit.bytes)
    }
}

fn machine(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn container(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    groups.lines().filter_map(|line| group_limit(root, line)).min()
}

/// The limit of one line of `/proc/self/cgroup`: `0::/path` of version 2, `4:memory:/path` of
/// version 1.
fn group_limit(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (base, file) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    let base = root.join(base);
    let mut folder: PathBuf = base.join(path.trim_start_matches('/'));
    let mut least = None;
    // Within a container the path may be that of the host, which is not there: then the mounted
    // root is the container's own group.
    while folder.starts_with(&base) {
        let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        if let Ok(bytes) = text.trim().parse::<u64>() {
            least = Some(least.map_or(bytes, |least: u64| least.min(bytes)));
        }
        if !folder.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "files of the system, not of the store")]
    fn system(files: &[(&str, &str)]) -> Option<Limit> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Limit::of_system(root.path())
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:       8000 kB\nMemFree: 1 kB\n");

    #[test]
    fn the_smallest_group_above_the_process_counts() {
        let limit = system(&[
            MACHINE,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "4096\n"),
        ]);
        assert_eq!(limit, Some(Limit { bytes: 4096, of: Of::Container }));
        let limit = system(&[
            MACHINE,
            ("proc/self/cgroup", "4:cpu,memory:/c/d\n0::/\n"),
            ("sys/fs/cgroup/memory/c/d/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "5000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(limit, Some(Limit { bytes: 5000, of: Of::Container }));
    }

    #[test]
    fn a_path_of_the_host_leads_to_the_mounted_root() {
        let limit = system(&[
            MACHINE,
            ("proc/self/cgroup", "0::/kubepods/pod1/c1\n"),
            ("sys/fs/cgroup/memory.max", "7000000\n"),
        ]);
        assert_eq!(limit, Some(Limit { bytes: 7_000_000, of: Of::Container }));
    }

    #[test]
    fn without_a_limit_the_machine_counts() {
        let machine = Some(Limit { bytes: 8000 << 10, of: Of::Machine });
        let unlimited = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(system(&[MACHINE, ("proc/self/cgroup", "1:memory:/\n"), unlimited]), machine);
        assert_eq!(system(&[MACHINE]), machine);
        assert_eq!(system(&[]), None);
        assert_eq!(Limit::find(77), Some(Limit { bytes: 77, of: Of::Settings }));
    }
}
