//! A disk of which one folder lies at another path, on another file system for example: the
//! second place for segments, where it is no bucket.
//!
//! Paths below the folder are led to the other one, and everything else passes. Files cannot have
//! names on both sides; renaming from one to the other is a copy.

use std::any::Any;
use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::env::{Disk, DiskFile, Elsewhere, Entry, Shared};

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// See the module.
pub struct Mounted {
    inner: Arc<dyn Disk>,
    at: PathBuf,
    place: PathBuf,
    address: String,
}

impl Mounted {
    /// Leads what is below `at` to the folder `place`; `address` names that for people.
    #[must_use]
    pub fn new(inner: Arc<dyn Disk>, at: PathBuf, place: PathBuf, address: String) -> Mounted {
        Mounted { inner, at, place, address }
    }

    fn is_away(&self, path: &Path) -> bool {
        path.starts_with(&self.at)
    }

    /// Where a path leads.
    fn led<'a>(&self, path: &'a Path) -> Cow<'a, Path> {
        match path.strip_prefix(&self.at) {
            Err(_) => Cow::Borrowed(path),
            Ok(rest) => Cow::Owned(rest.iter().fold(self.place.clone(), |at, part| at.join(part))),
        }
    }

    fn copy(&self, from: &Path, to: &Path) -> io::Result<()> {
        let source = self.inner.open_to_read(from)?;
        let mut file = self.inner.create(to)?;
        let (mut buffer, mut at) = (vec![0; PIECE], 0);
        loop {
            let count = source.read_at(&mut buffer, at)?;
            if count == 0 {
                return file.sync();
            }
            file.append(&buffer[..count])?;
            at += count as u64;
        }
    }

    fn walk(&self, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in self.list(folder)? {
            let path = folder.join(entry.name);
            if entry.is_dir {
                self.walk(&path, files)?;
            } else {
                files.push(path);
            }
        }
        Ok(())
    }
}

impl Disk for Mounted {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.inner.create(&self.led(path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.inner.open(&self.led(path))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.inner.open_to_read(&self.led(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let crosses = self.is_away(from) != self.is_away(to);
        let (from, to) = (self.led(from), self.led(to));
        if !crosses {
            return self.inner.rename(&from, &to);
        }
        self.copy(&from, &to)?;
        self.inner.remove(&from)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.is_away(from) != self.is_away(to) {
            return Err(ErrorKind::CrossesDevices.into());
        }
        self.inner.link(&self.led(from), &self.led(to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(&self.led(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir(&self.led(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        self.inner.list(&self.led(dir))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir_all(&self.led(dir))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(&self.led(dir))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(&self.led(path))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.inner.lock(&self.led(path))
    }

    fn shared(&self) -> Option<&dyn Shared> {
        self.inner.shared()
    }

    fn cold(&self) -> Option<&dyn Elsewhere> {
        Some(self)
    }
}

impl Elsewhere for Mounted {
    fn address(&self) -> &str {
        &self.address
    }

    fn files_below(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        match self.walk(folder, &mut files) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            walked => walked.map(|()| files),
        }
    }

    fn has_folders(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::sim::Sim;

    fn write(disk: &dyn Disk, path: &str, bytes: &[u8]) {
        let path = Path::new(path);
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = disk.create(path).unwrap();
        file.append(bytes).unwrap();
        file.sync().unwrap();
    }

    fn read(disk: &dyn Disk, path: &str) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        let count = disk.open_to_read(Path::new(path)).unwrap().read_at(&mut bytes, 0).unwrap();
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn one_folder_lies_elsewhere_and_all_else_where_it_was() {
        let sim = Sim::new(1);
        let disk = Mounted::new(
            sim.disk.clone(),
            "/store/cold".into(),
            "/mnt/k/cold".into(),
            "/mnt/k".into(),
        );
        write(&disk, "/store/cold/a/b", b"cold");
        write(&disk, "/store/data/c", b"hot");
        write(&disk, "/store/colder", b"beside");
        let files = sim.disk.files();
        let files: Vec<&str> = files.iter().filter_map(|path| path.to_str()).collect();
        assert_eq!(files, ["/mnt/k/cold/a/b", "/store/colder", "/store/data/c"]);
        assert_eq!(read(&disk, "/store/cold/a/b"), b"cold");
        assert!(disk.exists(Path::new("/store/cold/a")).unwrap());
        let below = disk.cold().unwrap().files_below(Path::new("/store/cold")).unwrap();
        assert_eq!(below, [Path::new("/store/cold/a/b")]);
        assert!(disk.files_below(Path::new("/store/cold/x")).unwrap().is_empty());
    }

    #[test]
    fn a_file_goes_from_one_side_to_the_other_by_copying() {
        let sim = Sim::new(1);
        let disk = Mounted::new(sim.disk.clone(), "/s/cold".into(), "/m/cold".into(), "/m".into());
        write(&disk, "/s/cold/a", b"bytes");
        disk.create_dir_all(Path::new("/s/salvage")).unwrap();
        let (from, to) = (Path::new("/s/cold/a"), Path::new("/s/salvage/a"));
        assert_eq!(disk.link(from, to).unwrap_err().kind(), ErrorKind::CrossesDevices);
        disk.rename(from, to).unwrap();
        assert_eq!(read(&disk, "/s/salvage/a"), b"bytes");
        assert!(!disk.exists(from).unwrap());
        disk.rename(to, Path::new("/s/salvage/b")).unwrap();
        disk.rename(Path::new("/s/salvage/b"), from).unwrap();
        assert_eq!(read(sim.disk.as_ref(), "/m/cold/a"), b"bytes");
    }
}
