//! The frozen form of alert rules, silences and channels; format 3 brought them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::alert::{
    AlertDef, AlertOrigin, ChannelDef, ChannelKind, Matcher, Missing, NoData, SilenceDef,
};
use crate::storage::meta::Snapshot;

#[derive(Serialize, Deserialize)]
pub(super) struct AlertRecord {
    name: String,
    revision: u64,
    database: String,
    schema: String,
    owner: String,
    query: String,
    condition: Option<String>,
    every_ns: Option<i64>,
    hold_ns: i64,
    keep_firing_ns: i64,
    no_data: Option<(i64, u8)>,
    labels: Vec<(String, String)>,
    annotations: Vec<(String, String)>,
    channels: Vec<String>,
    paused: bool,
    /// File and group.
    origin: Option<(String, String)>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct SilenceRecord {
    id: u64,
    rule: Option<String>,
    labels: Vec<(String, String)>,
    starts_ns: i64,
    ends_ns: i64,
    author: String,
    comment: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ChannelRecord {
    name: String,
    kind: u8,
    url: String,
    secret: String,
}

/// What follows the second format's records in a checkpoint of the third format.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct AlertsRecord {
    alerts: Vec<AlertRecord>,
    silences: Vec<SilenceRecord>,
    channels: Vec<ChannelRecord>,
}

impl From<&ChannelDef> for ChannelRecord {
    fn from(from: &ChannelDef) -> Self {
        let kind = match from.kind {
            ChannelKind::Webhook => 0,
            ChannelKind::Alertmanager => 1,
            ChannelKind::Log => 2,
        };
        let (name, url, secret) = (from.name.clone(), from.url.clone(), from.secret.clone());
        ChannelRecord { name, kind, url, secret }
    }
}

impl From<ChannelRecord> for ChannelDef {
    fn from(from: ChannelRecord) -> Self {
        let kind = match from.kind {
            1 => ChannelKind::Alertmanager,
            2 => ChannelKind::Log,
            _ => ChannelKind::Webhook,
        };
        ChannelDef { name: from.name, kind, url: from.url, secret: from.secret }
    }
}

impl From<&AlertDef> for AlertRecord {
    fn from(from: &AlertDef) -> Self {
        let means = |no_data: NoData| match no_data.means {
            Missing::Resolved => 0,
            Missing::Firing => 1,
            Missing::Ignore => 2,
        };
        AlertRecord {
            name: from.name.clone(),
            revision: from.revision,
            database: from.database.clone(),
            schema: from.schema.clone(),
            owner: from.owner.clone(),
            query: from.query.clone(),
            condition: from.condition.clone(),
            every_ns: from.every_ns,
            hold_ns: from.hold_ns,
            keep_firing_ns: from.keep_firing_ns,
            no_data: from.no_data.map(|no_data| (no_data.after_ns, means(no_data))),
            labels: from.labels.clone().into_iter().collect(),
            annotations: from.annotations.clone().into_iter().collect(),
            channels: from.channels.clone(),
            paused: from.paused,
            origin: from.origin.clone().map(|origin| (origin.file, origin.group)),
        }
    }
}

impl From<AlertRecord> for AlertDef {
    fn from(from: AlertRecord) -> Self {
        let no_data = |(after_ns, means): (i64, u8)| NoData {
            after_ns,
            means: match means {
                1 => Missing::Firing,
                2 => Missing::Ignore,
                _ => Missing::Resolved,
            },
        };
        AlertDef {
            name: from.name,
            revision: from.revision,
            database: from.database,
            schema: from.schema,
            owner: from.owner,
            query: from.query,
            condition: from.condition,
            every_ns: from.every_ns,
            hold_ns: from.hold_ns,
            keep_firing_ns: from.keep_firing_ns,
            no_data: from.no_data.map(no_data),
            labels: from.labels.into_iter().collect(),
            annotations: from.annotations.into_iter().collect(),
            channels: from.channels,
            paused: from.paused,
            origin: from.origin.map(|(file, group)| AlertOrigin { file, group }),
        }
    }
}

impl From<&SilenceDef> for SilenceRecord {
    fn from(from: &SilenceDef) -> Self {
        SilenceRecord {
            id: from.id,
            rule: from.matcher.rule.clone(),
            labels: from.matcher.labels.clone().into_iter().collect(),
            starts_ns: from.starts_ns,
            ends_ns: from.ends_ns,
            author: from.author.clone(),
            comment: from.comment.clone(),
        }
    }
}

impl From<SilenceRecord> for SilenceDef {
    fn from(from: SilenceRecord) -> Self {
        let labels = from.labels.into_iter().collect();
        SilenceDef {
            id: from.id,
            matcher: Matcher { rule: from.rule, labels },
            starts_ns: from.starts_ns,
            ends_ns: from.ends_ns,
            author: from.author,
            comment: from.comment,
        }
    }
}

impl From<&Snapshot> for AlertsRecord {
    fn from(from: &Snapshot) -> Self {
        AlertsRecord {
            alerts: from.alerts.values().map(|each| each.as_ref().into()).collect(),
            silences: from.silences.values().map(|each| each.as_ref().into()).collect(),
            channels: from.channels.values().map(|each| each.as_ref().into()).collect(),
        }
    }
}

impl AlertsRecord {
    pub(super) fn add_to(self, snapshot: &mut Snapshot) {
        let alerts = self.alerts.into_iter().map(AlertDef::from);
        let silences = self.silences.into_iter().map(SilenceDef::from);
        snapshot.alerts =
            alerts.map(|each| (each.name.clone(), each.into())).collect::<BTreeMap<_, _>>().into();
        let channels = self.channels.into_iter().map(ChannelDef::from);
        snapshot.channels = channels
            .map(|each| (each.name.clone(), each.into()))
            .collect::<BTreeMap<_, _>>()
            .into();
        snapshot.silences =
            silences.map(|each| (each.id, each.into())).collect::<BTreeMap<_, _>>().into();
    }
}
