//! A plugin as the metadata names it, by its components.

use kymo_kernel::digest::Digest;
use kymo_kernel::plugin::{PluginDef, PluginVersionDef};

/// The first definition of a plugin, of which no version is active; a component is its digest
/// and how many bytes it has.
pub fn plugin(name: &str, components: &[(Digest, u64)]) -> PluginDef {
    let version = |(digest, bytes): &(Digest, u64)| PluginVersionDef {
        digest: *digest,
        bytes: *bytes,
        version: "1.0.0".to_owned(),
        description: String::new(),
        installed_ns: 0,
        settings: Default::default(),
    };
    PluginDef {
        name: name.to_owned(),
        revision: 1,
        versions: components.iter().map(version).collect(),
        active: None,
        previous: None,
        canary: None,
        suspended: None,
    }
}
