//! What changes of channels mean. Whether the settings allow an address is for who carries
//! alerts to say, before it asks for the change.

use kymo_kernel::alert::{ChannelDef, no_channel};
use kymo_kernel::schema::check_name;
use kymo_kernel::storage::meta::{Op, Snapshot};
use kymo_kernel::{Code, Error, Result};

/// Creates a channel.
///
/// # Errors
/// `already_exists`, `invalid_input` for a name that cannot be, `limit_reached`.
pub(super) fn create(
    snapshot: &Snapshot,
    channel: &ChannelDef,
    if_not_exists: bool,
    most: usize,
) -> Result<Vec<Op>> {
    check_name("channel", &channel.name)?;
    if snapshot.channels.contains_key(&channel.name) {
        if if_not_exists {
            return Ok(Vec::new());
        }
        let text = format!("channel {:?} exists", channel.name);
        return Err(Error::new(Code::AlreadyExists, text)
            .with_hint("use CREATE ALERT CHANNEL IF NOT EXISTS, or DROP ALERT CHANNEL first"));
    }
    if snapshot.channels.len() >= most {
        let text = format!("there are {most} channels already");
        return Err(Error::new(Code::LimitReached, text)
            .with_hint("drop some, or raise alerts.max_channels"));
    }
    Ok(vec![Op::PutChannel { channel: channel.clone() }])
}

/// Drops a channel that no rule tells.
///
/// # Errors
/// `alert_not_found`; `in_use`, naming a rule.
pub(super) fn drop(snapshot: &Snapshot, name: &str, if_exists: bool) -> Result<Vec<Op>> {
    if !snapshot.channels.contains_key(name) {
        return if if_exists { Ok(Vec::new()) } else { Err(no_channel(name)) };
    }
    let tells = |channels: &[String]| channels.iter().any(|each| each == name);
    if let Some(rule) = snapshot.alerts.values().find(|rule| tells(&rule.channels)) {
        let text = format!("channel {name:?} is used by the alert {:?}", rule.name);
        return Err(Error::new(Code::InUse, text).with_hint("drop the alert first"));
    }
    Ok(vec![Op::DropChannel { name: name.to_owned() }])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use kymo_kernel::alert::{AlertDef, ChannelKind};

    use super::*;

    fn channel(name: &str) -> ChannelDef {
        let (url, secret) = ("http://a".to_owned(), String::new());
        ChannelDef { name: name.to_owned(), kind: ChannelKind::Webhook, url, secret }
    }

    #[test]
    fn channels_are_created_once_and_dropped_when_no_rule_tells_them() {
        let with = |names: &[&str]| Snapshot {
            channels: Arc::new(
                names.iter().map(|name| ((*name).to_owned(), Arc::new(channel(name)))).collect(),
            ),
            ..Snapshot::default()
        };
        let one = with(&["a"]);
        let code = |outcome: Result<Vec<Op>>| outcome.unwrap_err().code();
        assert_eq!(create(&with(&[]), &channel("a"), false, 1).unwrap().len(), 1);
        assert_eq!(code(create(&one, &channel("a"), false, 2)), Code::AlreadyExists);
        assert!(create(&one, &channel("a"), true, 2).unwrap().is_empty());
        assert_eq!(code(create(&one, &channel("b"), false, 1)), Code::LimitReached);
        assert_eq!(code(create(&one, &channel(""), false, 2)), Code::InvalidInput);

        assert_eq!(code(drop(&one, "b", false)), Code::AlertNotFound);
        assert!(drop(&one, "b", true).unwrap().is_empty());
        assert_eq!(drop(&one, "a", false).unwrap().len(), 1);
        let channels = vec!["a".to_owned()];
        let rule = AlertDef { channels, ..AlertDef::new("hot", "ada", "SELECT 1") };
        let alerts = Arc::new(BTreeMap::from([("hot".to_owned(), Arc::new(rule))]));
        let error = drop(&Snapshot { alerts, ..one }, "a", true).unwrap_err();
        assert_eq!(error.code(), Code::InUse);
        assert!(error.message().contains("\"hot\""), "{error}");
    }
}
