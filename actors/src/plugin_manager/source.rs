//! Where `CREATE PLUGIN … FROM '…'` may take a component from: one that was uploaded before,
//! by its digest, files below a folder that the settings name, and addresses that begin with
//! what the settings name. Without such a setting the server fetches nothing: else whoever may
//! install a plugin could have it ask around in its own network.

use std::path::{Path, PathBuf};

use kymo_kernel::digest::Digest;
use kymo_kernel::storage::components::{Held, Staged};
use kymo_kernel::{Code, Error, Result};

use super::Context;

/// Reads what an address names. Whoever starts the system lends it one, where it has any.
pub trait Download: Send + Sync {
    /// Hands what is there over piece by piece. Redirects are errors: they lead elsewhere than
    /// to what was allowed. Blocks.
    ///
    /// # Errors
    /// `invalid_input` where there is no answer or another one than the thing itself; what
    /// `take` fails with.
    fn read(&self, url: &str, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
}

/// Bytes of a file that are copied at a time.
const PIECE: usize = 256 << 10;

/// Brings a component into the store. Blocks.
///
/// # Errors
/// `unsupported` for places that are not offered or switched off, `invalid_input` for a file
/// outside of the folder, `too_large`, `plugin_not_found` for an unknown digest, I/O errors.
pub(super) fn fetch(context: &Context, location: &str) -> Result<Held> {
    if location.starts_with("sha256:") {
        return context.0.store.components().hold(location.parse::<Digest>()?);
    }
    if let Some(path) = location.strip_prefix("file:") {
        let folder = &context.0.settings.plugins.install_folder;
        return copy(context, &permitted(folder, path.strip_prefix("//").unwrap_or(path))?);
    }
    if location.starts_with("https://") || location.starts_with("http://") {
        return download(context, location);
    }
    Err(not_from(location).with_hint(
        "upload the component with PUT /api/v1/plugins/{name} or `kymo plugin install`, or write \
         FROM 'file:…', FROM 'https://…' or FROM 'sha256:…'",
    ))
}

fn not_from(location: &str) -> Error {
    Error::new(Code::Unsupported, format!("plugins are not installed from {location:?}"))
}

fn download(context: &Context, url: &str) -> Result<Held> {
    let settings = &context.0.settings.plugins;
    if !allowed(&settings.install_urls, url) {
        return Err(not_from(url).with_hint(
            "upload the component, or name what its address begins with in plugins.install_urls",
        ));
    }
    let Some(download) = &context.0.download else {
        return Err(not_from(url).with_hint("this program has no client for it; upload it"));
    };
    let mut staged = context.0.store.components().begin()?;
    download.read(url, &mut |piece| append(&mut staged, piece, settings.max_component_bytes))?;
    staged.publish(None)
}

/// Whether an address begins with one that is allowed, whole folders of its path at a time, and
/// cannot leave it again.
pub(crate) fn allowed(prefixes: &[String], url: &str) -> bool {
    let plain = |url: &str| {
        let known = url::Url::parse(url).ok()?;
        // What a parser changes (`..`, an account before an @) was not written for people.
        let same = known.as_str() == url || known.as_str() == format!("{url}/");
        (same && known.username().is_empty() && known.password().is_none()).then_some(())
    };
    plain(url).is_some()
        && prefixes.iter().any(|prefix| {
            let prefix = prefix.trim_end_matches('/');
            !prefix.is_empty() && url.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        })
}

/// Adds to a component that is being stored, as far as one may be long.
fn append(staged: &mut Staged, piece: &[u8], most: u64) -> Result<()> {
    staged.append(piece)?;
    if staged.bytes() > most {
        return Err(Error::new(
            Code::TooLarge,
            format!("the component is larger than {most} bytes"),
        )
        .with_hint("make it smaller, or raise plugins.max_component_bytes"));
    }
    Ok(())
}

/// The real path of a file, if it lies below the folder whatever links are on the way.
fn permitted(folder: &Path, path: &str) -> Result<PathBuf> {
    if folder.as_os_str().is_empty() {
        return Err(Error::new(Code::Unsupported, "plugins are not installed from files")
            .with_hint("set plugins.install_folder, or upload the component"));
    }
    // One answer for what is not there and what is elsewhere: it tells nothing about the disk.
    let refused = || {
        Error::new(
            Code::InvalidInput,
            format!("file {path:?} is not a file below plugins.install_folder"),
        )
    };
    let folder = folder.canonicalize().map_err(|_| refused())?;
    let file = folder.join(path).canonicalize().map_err(|_| refused())?;
    if file.starts_with(&folder) && file.is_file() { Ok(file) } else { Err(refused()) }
}

fn copy(context: &Context, path: &Path) -> Result<Held> {
    let failed = |error| Error::io(format_args!("read {}", path.display()), error);
    let file = context.0.env.disk.open(path).map_err(failed)?;
    let most = context.0.settings.plugins.max_component_bytes;
    let mut staged = context.0.store.components().begin()?;
    let mut piece = vec![0; PIECE];
    loop {
        let count = file.read_at(&mut piece, staged.bytes()).map_err(failed)?;
        if count == 0 {
            return staged.publish(None);
        }
        append(&mut staged, &piece[..count], most)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_below_those_that_are_named_are_fetched() {
        let prefixes = ["https://a.org/released/".to_owned(), "http://b:8080".to_owned()];
        for good in ["https://a.org/released/x.wasm", "http://b:8080/x", "http://b:8080/"] {
            assert!(allowed(&prefixes, good), "{good}");
        }
        for bad in [
            "https://a.org/released.evil/x.wasm",
            "https://a.org/released/../secret",
            "https://a.org/released/%2e%2e/secret",
            "https://a.org.evil/released/x",
            "http://b:80801/x",
            "http://b:8080@evil/x",
            "http://me@b:8080/x",
            "ftp://a.org/released/x",
            "https://a.org/other",
        ] {
            assert!(!allowed(&prefixes, bad), "{bad}");
        }
        assert!(!allowed(&[], "https://a.org/") && !allowed(&["/".to_owned()], "https://a.org/"));
    }

    #[test]
    fn only_files_below_the_folder_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, outside) = (dir.path().join("plugins"), dir.path().join("secret.wasm"));
        kymo_kernel::env::real::env().disk.create_dir_all(&folder).unwrap();
        for file in [&outside, &folder.join("good.wasm")] {
            kymo_kernel::env::real::env().disk.create(file).unwrap();
        }
        std::os::unix::fs::symlink(&outside, folder.join("link.wasm")).unwrap();
        assert!(permitted(&folder, "good.wasm").is_ok());
        let whole = folder.join("good.wasm");
        assert!(permitted(&folder, whole.to_str().unwrap()).is_ok());
        for path in ["../secret.wasm", "link.wasm", "missing.wasm", ".", "/etc/passwd"] {
            assert_eq!(permitted(&folder, path).unwrap_err().code(), Code::InvalidInput, "{path}");
        }
        let off = permitted(Path::new(""), "good.wasm").unwrap_err();
        assert_eq!(off.code(), Code::Unsupported);
    }
}
