//! Where commands find the server that runs on this machine: `credentials.toml` in the
//! user's configuration folder, readable by that user alone. The first start and the demo
//! write it, so that `kymo query` works without any flag.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kymo_kernel::{Code, Error, Result};
use serde::{Deserialize, Serialize};

/// What is known about servers.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The address to use where none is given.
    #[serde(default)]
    pub url: Option<String>,
    /// How to log in, by address.
    #[serde(default)]
    pub servers: BTreeMap<String, Login>,
}

/// How to log in to one server.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// Log-in name.
    pub user: Option<String>,
    /// Password of that name.
    pub password: Option<String>,
    /// A token, which is preferred.
    pub token: Option<String>,
}

/// `$XDG_CONFIG_HOME/kymo/credentials.toml`, or below `~/.config`.
pub fn path() -> Option<PathBuf> {
    folder("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("credentials.toml"))
}

/// Kymo's own folder below an XDG base folder.
pub fn folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let set = std::env::var_os(variable).filter(|dir| Path::new(dir).is_absolute());
    let base = match set {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME")?).join(below_home),
    };
    Some(base.join("kymo"))
}

/// Creates a folder of the user's, closed to others.
///
/// # Errors
/// The folder cannot be made.
pub fn make_folder(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Error::io(format_args!("create folder {}", dir.display()), error))
}

impl Credentials {
    /// Reads a file; nothing is known where it does not exist.
    ///
    /// # Errors
    /// The file cannot be read or is not of this form.
    pub fn read(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(Error::io(format_args!("read {}", path.display()), error));
            }
        };
        toml::from_str(&text).map_err(|error| {
            Error::new(Code::Settings, format!("{}: {}", path.display(), error.message()))
                .with_hint("correct the file or remove it; a new first start writes it again")
        })
    }

    /// Writes the file, readable by its owner alone.
    ///
    /// # Errors
    /// The file or its folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|error| Error::internal(error.to_string()))?;
        if let Some(dir) = path.parent() {
            make_folder(dir)?;
        }
        let new = path.with_extension("toml.new");
        let failed = |error| Error::io(format_args!("write {}", path.display()), error);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        #[expect(clippy::disallowed_methods, reason = "a file of the user's, not of the store")]
        std::fs::rename(&new, path).map_err(failed)
    }

    /// Adds a server, or replaces what is known of it, and makes it the one that is meant
    /// where no address is given.
    pub fn remember(&mut self, url: &str, login: Login) {
        self.servers.insert(url.to_owned(), login);
        self.url = Some(url.to_owned());
    }
}

/// Remembers how to log in to a server on this machine.
///
/// # Errors
/// The file cannot be read or written.
pub fn remember(url: &str, login: Login) -> Result<PathBuf> {
    let path = path().ok_or_else(|| {
        Error::new(Code::Settings, "there is no home folder to keep credentials in")
            .with_hint("set HOME or XDG_CONFIG_HOME")
    })?;
    let mut known = Credentials::read(&path)?;
    known.remember(url, login);
    known.write(&path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_remembered_is_read_again_and_closed_to_others() {
        let dir = std::env::temp_dir().join(format!("kymo-credentials-{}", std::process::id()));
        let path = dir.join("kymo/credentials.toml");
        assert_eq!(Credentials::read(&path).unwrap(), Credentials::default());

        let login = Login { user: Some("a".into()), password: Some("b".into()), token: None };
        let mut known = Credentials::default();
        known.remember("http://127.0.0.1:7878", login.clone());
        known.write(&path).unwrap();

        let again = Credentials::read(&path).unwrap();
        assert_eq!(again, known);
        assert_eq!(again.url.as_deref(), Some("http://127.0.0.1:7878"));
        assert_eq!(again.servers["http://127.0.0.1:7878"], login);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
