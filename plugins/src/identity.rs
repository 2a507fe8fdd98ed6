//! The identity of a plugin: its name and the SHA-256 of its component.
//!
//! Plans, metadata and other machines refer to a plugin as `name@sha256:<64 hex digits>`. The
//! digest makes the reference exact: the same reference is the same code, wherever the bytes
//! come from.

use std::fmt;
use std::str::FromStr;

pub use kymo_kernel::digest::Digest;
use kymo_kernel::{Code, Error, Result};
use serde::{Deserialize, Serialize};

/// A plugin by name and content.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PluginRef {
    /// Its name: a lower-case letter, then letters, digits, `_` and `-`; at most 64 bytes.
    pub name: String,
    /// Its content.
    pub digest: Digest,
}

impl PluginRef {
    /// Refers to these bytes under a name.
    ///
    /// # Errors
    /// `invalid_input` for a name that no plugin may have.
    pub fn new(name: impl Into<String>, component: &[u8]) -> Result<Self> {
        let name = name.into();
        check_name(&name)?;
        Ok(PluginRef { name, digest: Digest::of(component) })
    }
}

fn check_name(name: &str) -> Result<()> {
    let mut letters = name.bytes();
    let starts_well = letters.next().is_some_and(|first| first.is_ascii_lowercase());
    let goes_well = letters.all(|each| {
        each.is_ascii_lowercase() || each.is_ascii_digit() || matches!(each, b'_' | b'-')
    });
    if starts_well && goes_well && name.len() <= 64 {
        return Ok(());
    }
    Err(Error::new(Code::InvalidInput, format!("{name:?} cannot name a plugin")).with_hint(
        "start with a lower-case letter, go on with lower-case letters, digits, _ or -, \
         64 bytes at most",
    ))
}

impl fmt::Display for PluginRef {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}", self.name, self.digest)
    }
}

impl FromStr for PluginRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, digest) = text.split_once('@').ok_or_else(|| {
            Error::new(Code::InvalidInput, format!("{text:?} does not refer to a plugin"))
                .with_hint("write name@sha256:<64 hexadecimal digits>")
        })?;
        check_name(name)?;
        Ok(PluginRef { name: name.to_owned(), digest: digest.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_survives_its_text() {
        let plugin = PluginRef::new("t-digest", b"component").unwrap();
        assert_eq!(plugin.to_string().parse::<PluginRef>().unwrap(), plugin);
    }

    #[test]
    fn other_content_is_another_plugin() {
        assert_ne!(PluginRef::new("f", b"1").unwrap(), PluginRef::new("f", b"2").unwrap());
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(65);
        let digest = Digest::of(b"").to_string();
        for text in [
            "f".to_owned(),
            format!("@{digest}"),
            format!("F@{digest}"),
            format!("1f@{digest}"),
            format!("a/b@{digest}"),
            format!("{long}@{digest}"),
            format!("f@{}", digest.to_uppercase()),
            format!("f@{}0", digest),
            "f@sha256:".to_owned(),
        ] {
            let error = text.parse::<PluginRef>().unwrap_err();
            assert_eq!(error.code(), Code::InvalidInput, "{text}");
            assert!(error.hint().is_some(), "{text}");
        }
    }
}
