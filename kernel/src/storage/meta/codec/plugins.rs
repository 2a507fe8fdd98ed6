//! The frozen form of plugins, functions and transforms; format 2 brought them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::TableId;
use crate::plugin::{
    Canary, FunctionDef, OnError, PluginDef, PluginVersionDef, Suspension, TransformDef,
};
use crate::storage::meta::Snapshot;

#[derive(Serialize, Deserialize)]
pub(super) struct PluginRecord {
    name: String,
    revision: u64,
    versions: Vec<VersionRecord>,
    active: Option<[u8; 32]>,
    previous: Option<[u8; 32]>,
    canary: Option<([u8; 32], u8)>,
    suspended: Option<(String, i64)>,
}

#[derive(Serialize, Deserialize)]
struct VersionRecord {
    digest: [u8; 32],
    bytes: u64,
    version: String,
    description: String,
    installed_ns: i64,
    settings: Vec<(String, String)>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct FunctionRecord {
    name: String,
    plugin: String,
    function: String,
    parameters: Vec<String>,
    returns: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TransformRecord {
    plugin: String,
    function: String,
    settings: Vec<(String, String)>,
    on_error: u8,
}

/// What follows the first format's snapshot in a checkpoint of the second format.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct PluginsRecord {
    plugins: Vec<PluginRecord>,
    functions: Vec<FunctionRecord>,
    transforms: Vec<(u64, Vec<TransformRecord>)>,
}

impl From<&PluginDef> for PluginRecord {
    fn from(from: &PluginDef) -> Self {
        let bytes = |digest: &Digest| *digest.as_bytes();
        PluginRecord {
            name: from.name.clone(),
            revision: from.revision,
            versions: from.versions.iter().map(VersionRecord::from).collect(),
            active: from.active.as_ref().map(bytes),
            previous: from.previous.as_ref().map(bytes),
            canary: from.canary.map(|canary| (bytes(&canary.digest), canary.percent)),
            suspended: from.suspended.clone().map(|each| (each.reason, each.since_ns)),
        }
    }
}

impl From<PluginRecord> for PluginDef {
    fn from(from: PluginRecord) -> Self {
        PluginDef {
            name: from.name,
            revision: from.revision,
            versions: from.versions.into_iter().map(PluginVersionDef::from).collect(),
            active: from.active.map(Digest::from_bytes),
            previous: from.previous.map(Digest::from_bytes),
            canary: from
                .canary
                .map(|(digest, percent)| Canary { digest: Digest::from_bytes(digest), percent }),
            suspended: from.suspended.map(|(reason, since_ns)| Suspension { reason, since_ns }),
        }
    }
}

impl From<&PluginVersionDef> for VersionRecord {
    fn from(from: &PluginVersionDef) -> Self {
        VersionRecord {
            digest: *from.digest.as_bytes(),
            bytes: from.bytes,
            version: from.version.clone(),
            description: from.description.clone(),
            installed_ns: from.installed_ns,
            settings: from.settings.clone().into_iter().collect(),
        }
    }
}

impl From<VersionRecord> for PluginVersionDef {
    fn from(from: VersionRecord) -> Self {
        PluginVersionDef {
            digest: Digest::from_bytes(from.digest),
            bytes: from.bytes,
            version: from.version,
            description: from.description,
            installed_ns: from.installed_ns,
            settings: from.settings.into_iter().collect(),
        }
    }
}

impl From<&FunctionDef> for FunctionRecord {
    fn from(from: &FunctionDef) -> Self {
        let FunctionDef { name, plugin, function, parameters, returns } = from.clone();
        FunctionRecord { name, plugin, function, parameters, returns }
    }
}

impl From<FunctionRecord> for FunctionDef {
    fn from(from: FunctionRecord) -> Self {
        let FunctionRecord { name, plugin, function, parameters, returns } = from;
        FunctionDef { name, plugin, function, parameters, returns }
    }
}

impl From<&TransformDef> for TransformRecord {
    fn from(from: &TransformDef) -> Self {
        TransformRecord {
            plugin: from.plugin.clone(),
            function: from.function.clone(),
            settings: from.settings.clone().into_iter().collect(),
            on_error: match from.on_error {
                OnError::Reject => 0,
                OnError::Pass => 1,
                OnError::DeadLetter => 2,
            },
        }
    }
}

impl From<TransformRecord> for TransformDef {
    fn from(from: TransformRecord) -> Self {
        TransformDef {
            plugin: from.plugin,
            function: from.function,
            settings: from.settings.into_iter().collect(),
            on_error: match from.on_error {
                1 => OnError::Pass,
                2 => OnError::DeadLetter,
                _ => OnError::Reject,
            },
        }
    }
}

pub(super) fn chain_records(chain: &[TransformDef]) -> Vec<TransformRecord> {
    chain.iter().map(TransformRecord::from).collect()
}

pub(super) fn chain(records: Vec<TransformRecord>) -> Vec<TransformDef> {
    records.into_iter().map(TransformDef::from).collect()
}

impl From<&Snapshot> for PluginsRecord {
    fn from(from: &Snapshot) -> Self {
        PluginsRecord {
            plugins: from.plugins.values().map(|each| each.as_ref().into()).collect(),
            functions: from.functions.values().map(|each| each.as_ref().into()).collect(),
            transforms: from
                .transforms
                .iter()
                .map(|(table, chain)| (table.0, chain_records(chain)))
                .collect(),
        }
    }
}

impl PluginsRecord {
    pub(super) fn add_to(self, snapshot: &mut Snapshot) {
        let plugins = self.plugins.into_iter().map(PluginDef::from);
        let functions = self.functions.into_iter().map(FunctionDef::from);
        let transforms = self.transforms.into_iter();
        snapshot.plugins =
            plugins.map(|each| (each.name.clone(), each.into())).collect::<BTreeMap<_, _>>().into();
        snapshot.functions = functions
            .map(|each| (each.name.clone(), each.into()))
            .collect::<BTreeMap<_, _>>()
            .into();
        snapshot.transforms = transforms
            .map(|(table, records)| (TableId(table), chain(records).into()))
            .collect::<BTreeMap<_, _>>()
            .into();
    }
}
