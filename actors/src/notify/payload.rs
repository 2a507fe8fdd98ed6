//! What receivers are sent: the payload of Alertmanager's webhooks, version 4, and the alerts
//! of Alertmanager's own interface, version 2.

use chrono::{DateTime, SecondsFormat};
use kymo_kernel::message::{AlertStatus, Labels, Notification};
use serde_json::{Value, json};

/// What Alertmanager writes for an end that is not known.
const NO_END: &str = "0001-01-01T00:00:00Z";

/// Where this server is reached by people; the beginning of links.
#[derive(Debug, Clone)]
pub struct Links(String);

impl Links {
    /// Links that begin with this address.
    #[must_use]
    pub fn new(external_url: &str) -> Links {
        Links(external_url.trim_end_matches('/').to_owned())
    }

    fn generator(&self, rule: &str) -> String {
        let name: String = url::form_urlencoded::byte_serialize(rule.as_bytes()).collect();
        format!("{}/api/v1/alerts?rule={name}", self.0)
    }
}

/// The payload of a webhook for one alert. Alertmanager groups by labels; here a group is one
/// alert of one rule, so that a request can be repeated and recognised.
#[must_use]
pub fn webhook(receiver: &str, told: &Notification, links: &Links) -> Value {
    json!({
        "version": "4",
        "receiver": receiver,
        "status": told.status.as_str(),
        "groupKey": group_key(told),
        "truncatedAlerts": 0,
        "groupLabels": { "alertname": told.rule },
        "commonLabels": told.labels,
        "commonAnnotations": told.annotations,
        "externalURL": links.0,
        "alerts": [{
            "status": told.status.as_str(),
            "labels": told.labels,
            "annotations": told.annotations,
            "startsAt": time(told.starts_at_ns),
            "endsAt": told.ends_at_ns.map_or_else(|| NO_END.to_owned(), time),
            "generatorURL": links.generator(&told.rule),
            "fingerprint": fingerprint(told.fingerprint),
        }],
    })
}

/// An alert for Alertmanager. One that fires is said to end at `until_ns`, unless it is told
/// again before: so it ends by itself where this server does not come back.
#[must_use]
pub fn alertmanager(told: &Notification, links: &Links, until_ns: i64) -> Value {
    let ends = match told.status {
        AlertStatus::Firing => until_ns,
        AlertStatus::Resolved => told.ends_at_ns.unwrap_or(until_ns),
    };
    json!({
        "labels": told.labels,
        "annotations": told.annotations,
        "startsAt": time(told.starts_at_ns),
        "endsAt": time(ends),
        "generatorURL": links.generator(&told.rule),
    })
}

/// What tells a notification from all others and stays the same when it is sent again: the
/// alert, whether it begins or ends, and since when it fires.
#[must_use]
pub fn key(told: &Notification) -> String {
    let (alert, status) = (fingerprint(told.fingerprint), told.status.as_str());
    format!("{alert}-{status}-{}", told.starts_at_ns)
}

/// An alert's number as text, as Alertmanager writes it.
#[must_use]
pub fn fingerprint(number: u64) -> String {
    format!("{number:016x}")
}

/// A time as RFC 3339 with as many digits as it needs.
#[must_use]
pub fn time(ns: i64) -> String {
    DateTime::from_timestamp_nanos(ns).to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// As Alertmanager writes keys of groups: the path of the route, then the group's labels.
fn group_key(told: &Notification) -> String {
    let labels = Labels::from([("alertname".to_owned(), told.rule.clone())]);
    let pairs: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{{}}:{{{}}}", pairs.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::tests::told;
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_webhook_gets_every_field_of_version_4() {
        let links = Links::new("https://kymo.example.org/");
        let fires = told(7, "hot cpu", AlertStatus::Firing);
        let alert = json!({
            "status": "firing",
            "labels": {"alertname": "hot cpu", "host": "a"},
            "annotations": {"summary": "a is at 97.5"},
            "startsAt": "2023-11-14T22:13:20Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "https://kymo.example.org/api/v1/alerts?rule=hot+cpu",
            "fingerprint": "00000000000000ab",
        });
        let wanted = json!({
            "version": "4",
            "receiver": "ops",
            "status": "firing",
            "groupKey": "{}:{alertname=\"hot cpu\"}",
            "truncatedAlerts": 0,
            "groupLabels": {"alertname": "hot cpu"},
            "commonLabels": {"alertname": "hot cpu", "host": "a"},
            "commonAnnotations": {"summary": "a is at 97.5"},
            "externalURL": "https://kymo.example.org",
            "alerts": [alert],
        });
        assert_eq!(webhook("ops", &fires, &links), wanted);

        let resolved = told(8, "hot cpu", AlertStatus::Resolved);
        let payload = webhook("ops", &resolved, &links);
        assert_eq!(payload["status"], "resolved");
        assert_eq!(payload["alerts"][0]["status"], "resolved");
        assert_eq!(payload["alerts"][0]["startsAt"], "2023-11-14T22:13:20Z");
        assert_eq!(payload["alerts"][0]["endsAt"], "2023-11-14T22:14:20Z");
    }

    #[test]
    fn alertmanager_is_told_when_an_alert_ends() {
        let links = Links::new("");
        let fires = told(7, "hot", AlertStatus::Firing);
        let until = fires.starts_at_ns + 240 * SECOND;
        let alert = alertmanager(&fires, &links, until);
        assert_eq!(alert["endsAt"], "2023-11-14T22:17:20Z");
        assert_eq!(alert["generatorURL"], "/api/v1/alerts?rule=hot");
        assert!(alert.get("status").is_none());
        let resolved = told(8, "hot", AlertStatus::Resolved);
        assert_eq!(alertmanager(&resolved, &links, until)["endsAt"], "2023-11-14T22:14:20Z");
    }

    #[test]
    fn a_key_is_that_of_the_alert_its_status_and_its_beginning() {
        let fires = told(7, "hot", AlertStatus::Firing);
        assert_eq!(key(&fires), "00000000000000ab-firing-1700000000000000000");
        let again = Notification { sequence: 9, repeated: true, value: None, ..fires.clone() };
        assert_eq!(key(&again), key(&fires));
        assert_ne!(key(&told(8, "hot", AlertStatus::Resolved)), key(&fires));
        let later = Notification { starts_at_ns: 1, ..fires.clone() };
        assert_ne!(key(&later), key(&fires));
    }

    #[test]
    fn times_have_the_digits_they_need() {
        assert_eq!(time(1), "1970-01-01T00:00:00.000000001Z");
        assert_eq!(time(1_500_000_000), "1970-01-01T00:00:01.500Z");
    }
}
