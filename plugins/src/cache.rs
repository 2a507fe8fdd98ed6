//! Compiled components on disk, so that a start takes microseconds a plugin and not seconds.
//!
//! Compiled code is native code: the engine checks who made it, not what it holds. So every
//! file carries a code of authentication under a key that only the server's user can read,
//! and over the name that says which component and which engine it is for. Whatever does not
//! verify is deleted and compiled again. The folder is a cache: it is part of no backup, and
//! nothing in it ever comes from a client.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hmac::{Hmac, Mac};
use kymo_kernel::env::{Disk, Env};
use kymo_kernel::observe::metrics;
use kymo_kernel::{Error, Result};
use sha2::Sha256;

use crate::identity::Digest;

/// First bytes of a file: what it is, and the version of its layout.
const MAGIC: &[u8; 8] = b"kymocw01";
const CODE: usize = 32;
const HEAD: usize = MAGIC.len() + CODE;
const KEY: usize = 32;

/// The cache of one server.
pub struct Cache {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
    key: [u8; KEY],
    compatibility: String,
}

impl Cache {
    /// Opens the cache in this folder, which it makes readable for the server's user only, and
    /// makes a key where there is none.
    ///
    /// # Errors
    /// [`kymo_kernel::Code::Io`].
    pub fn open(folder: &Path, env: &Env, compatibility: String) -> Result<Cache> {
        let fail = |error| Error::io(format!("open the plugin cache {}", folder.display()), error);
        env.disk.create_dir_all(folder).map_err(fail)?;
        only_for_owner(folder, 0o700).map_err(fail)?;
        let key = read_key(folder, env).map_err(fail)?;
        Ok(Cache { folder: folder.to_owned(), disk: env.disk.clone(), key, compatibility })
    }

    /// The compiled code of a component, if it is there and verifies.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Vec<u8>> {
        let outcome = |name| metrics().plugins.cache.with_label_values(&[name]).inc();
        let name = self.name(digest);
        let Ok(mut file) = read_file(self.disk.as_ref(), &self.folder.join(&name)) else {
            outcome("missing");
            return None;
        };
        if self.verifies(&name, &file) {
            outcome("hit");
            file.drain(..HEAD);
            return Some(file);
        }
        outcome("rejected");
        tracing::warn!(file = %name, "compiled code in the plugin cache does not verify");
        self.remove(digest);
        None
    }

    /// Keeps compiled code. It came from [`crate::compile::Compiler::compile`], from nowhere else.
    ///
    /// # Errors
    /// [`kymo_kernel::Code::Io`].
    pub(crate) fn put(&self, digest: &Digest, compiled: &[u8]) -> Result<()> {
        let name = self.name(digest);
        let code = self.authentication(&name, compiled).finalize().into_bytes();
        let write = || -> io::Result<()> {
            replace(self.disk.as_ref(), &self.folder, &name, &[MAGIC, &code, compiled])
        };
        write().map_err(|error| Error::io(format!("write {name} to the plugin cache"), error))
    }

    /// Forgets the compiled code of a component.
    pub fn remove(&self, digest: &Digest) {
        let path = self.folder.join(self.name(digest));
        match self.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "not removed from the plugin cache");
            }
            _ => {}
        }
    }

    /// Removes whatever is not of one of these components and of this engine.
    ///
    /// # Errors
    /// [`kymo_kernel::Code::Io`].
    pub fn sweep(&self, keep: &[Digest]) -> Result<usize> {
        let fail = |error| Error::io("sweep the plugin cache", error);
        let names: Vec<String> = keep.iter().map(|digest| self.name(digest)).collect();
        let mut removed = 0;
        for entry in self.disk.list(&self.folder).map_err(fail)? {
            if entry.name != KEY_NAME && !names.contains(&entry.name) {
                self.disk.remove(&self.folder.join(&entry.name)).map_err(fail)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn name(&self, digest: &Digest) -> String {
        let digest = digest.to_string();
        let digits = digest.rsplit(':').next().unwrap_or_default();
        format!("{digits}-{}.cwasm", self.compatibility)
    }

    fn verifies(&self, name: &str, file: &[u8]) -> bool {
        let Some((head, compiled)) = file.split_at_checked(HEAD) else { return false };
        let (magic, code) = head.split_at(MAGIC.len());
        // Compared in constant time.
        magic == MAGIC && self.authentication(name, compiled).verify_slice(code).is_ok()
    }

    fn authentication(&self, name: &str, compiled: &[u8]) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mut code = Hmac::<Sha256>::new_from_slice(&self.key).expect("a key of any length");
        code.update(name.as_bytes());
        code.update(&[0]);
        code.update(compiled);
        code
    }
}

const KEY_NAME: &str = "key";

fn read_key(folder: &Path, env: &Env) -> io::Result<[u8; KEY]> {
    let path = folder.join(KEY_NAME);
    if env.disk.exists(&path)? {
        let bytes = read_file(env.disk.as_ref(), &path)?;
        if let Ok(key) = bytes.try_into() {
            only_for_owner(&path, 0o600)?;
            return Ok(key);
        }
        // Torn or cut: what it signed is worth nothing any more.
        tracing::warn!(path = %path.display(), "the key of the plugin cache is replaced");
    }
    let mut key = [0; KEY];
    env.random.fill(&mut key);
    replace(env.disk.as_ref(), folder, KEY_NAME, &[&key])?;
    only_for_owner(&path, 0o600)?;
    Ok(key)
}

fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], filled as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    Ok(bytes)
}

/// Writes a file under another name, syncs it, and gives it its own.
fn replace(disk: &dyn Disk, folder: &Path, name: &str, parts: &[&[u8]]) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.new"));
    match disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = disk.create(&temporary)?;
    file.append_all(parts)?;
    file.sync()?;
    drop(file);
    disk.rename(&temporary, &folder.join(name))?;
    disk.sync_dir(folder)
}

/// Takes the rights of everybody else away. Simulated disks have none to take.
fn only_for_owner(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    match std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests damage real files")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use kymo_kernel::env::{real, sim::Sim};

    use super::*;

    fn open(folder: &Path, engine: &str) -> Cache {
        Cache::open(folder, &real::env(), engine.to_owned()).unwrap()
    }

    fn only_file(folder: &Path) -> PathBuf {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut code = files.filter(|path| path.extension().is_some_and(|it| it == "cwasm"));
        code.next().unwrap()
    }

    #[test]
    fn what_was_put_is_found_again_also_by_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"component");
        let cache = open(folder.path(), "e1");
        assert_eq!(cache.get(&digest), None);
        cache.put(&digest, b"code").unwrap();
        assert_eq!(cache.get(&digest).unwrap(), b"code");
        assert_eq!(open(folder.path(), "e1").get(&digest).unwrap(), b"code");
        assert_eq!(open(folder.path(), "e2").get(&digest), None, "another engine");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&folder.path().join("key")), 0o600);
    }

    #[test]
    fn tampered_truncated_and_foreign_code_is_thrown_away() {
        type Damage = (&'static str, fn(&mut Vec<u8>));
        let damages: Vec<Damage> = vec![
            ("a flipped bit of code", |file| *file.last_mut().unwrap() ^= 1),
            ("a flipped bit of the authentication", |file| file[10] ^= 1),
            ("truncated code", |file| file.truncate(file.len() - 1)),
            ("a truncated head", |file| file.truncate(20)),
            ("nothing", Vec::clear),
            ("more code", |file| file.push(0)),
        ];
        for (what, damage) in damages {
            let folder = tempfile::tempdir().unwrap();
            let digest = Digest::of(b"component");
            let cache = open(folder.path(), "e");
            cache.put(&digest, b"native code").unwrap();
            let path = only_file(folder.path());
            let mut file = std::fs::read(&path).unwrap();
            damage(&mut file);
            std::fs::write(&path, file).unwrap();
            assert_eq!(cache.get(&digest), None, "{what}");
            assert!(!path.exists(), "{what} is still there");
        }
    }

    #[test]
    fn code_of_another_component_or_another_server_is_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path(), "e");
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        cache.put(&one, b"code").unwrap();
        let path = only_file(folder.path());
        std::fs::rename(&path, folder.path().join(cache.name(&two))).unwrap();
        assert_eq!(cache.get(&two), None);
        cache.put(&one, b"code").unwrap();
        std::fs::remove_file(folder.path().join("key")).unwrap();
        assert_eq!(open(folder.path(), "e").get(&one), None);
    }

    #[test]
    fn a_sweep_keeps_what_is_installed() {
        let sim = Sim::new(1);
        let cache = Cache::open(Path::new("/cache"), &sim.env(), "e".to_owned()).unwrap();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        cache.put(&one, b"code").unwrap();
        cache.put(&two, b"code").unwrap();
        assert_eq!(cache.sweep(&[two]).unwrap(), 1);
        assert_eq!((cache.get(&one), cache.get(&two).is_some()), (None, true));
    }
}
