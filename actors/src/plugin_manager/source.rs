//! Where `CREATE PLUGIN … FROM '…'` may take a component from: one that was uploaded before,
//! by its digest, and files below a folder that the settings name. The server fetches nothing
//! from the network: whoever can reach an address uploads what is there.

use std::path::{Path, PathBuf};

use kymo_kernel::digest::Digest;
use kymo_kernel::storage::components::Held;
use kymo_kernel::{Code, Error, Result};

use super::Context;

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
    Err(Error::new(Code::Unsupported, format!("plugins are not installed from {location:?}"))
        .with_hint(
            "upload the component with PUT /api/v1/plugins/{name} or `kymo plugin install`, or \
             write FROM 'file:…' or FROM 'sha256:…'",
        ))
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
        staged.append(&piece[..count])?;
        if staged.bytes() > most {
            return Err(Error::new(
                Code::TooLarge,
                format!("the component is larger than {most} bytes"),
            )
            .with_hint("make it smaller, or raise plugins.max_component_bytes"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
