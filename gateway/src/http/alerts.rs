//! `/api/v1/alerts` and `/api/v1/rules` as Prometheus answers them, and
//! `/api/v1/alerts/stream`, which pushes.
//!
//! What Prometheus has and Kymo has not is as Prometheus has it when there is nothing to say:
//! there is one group, as rules here are not grouped.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use kymo_actors::alert::template::render;
use kymo_actors::notify::payload::time;
use kymo_actors::query::AlertRow;
use kymo_kernel::alert::{AlertDef, Matcher};
use kymo_kernel::message::Labels;
use kymo_kernel::{Code, Error, Result};
use serde_json::{Value, json};

use super::App;
use super::live::alerts::{AlertWish, begun, event, follow, resume};
use super::live::{Seat, stream};
use super::parameters::Parameters;
use super::respond::Api;

/// The one group that all rules are in.
const GROUP: &str = "kymo";

/// `GET /api/v1/alerts`: what is pending and what fires; `?rule=` only that rule's.
pub async fn alerts(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    let wanted = |row: &AlertRow| parameters.get("rule").is_none_or(|rule| rule == row.rule);
    let rules = app.backend.catalog().alerts.clone();
    let rows = app.backend.alerts();
    let active = rows.iter().filter(|row| wanted(row));
    let alerts: Vec<Value> =
        active.filter_map(|row| alert(row, rules.get(&row.rule).map(AsRef::as_ref))).collect();
    success(json!({ "alerts": alerts }))
}

/// `GET /api/v1/rules`: the rules with their alerts; `?type=record` has none.
pub async fn rules(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    if parameters.get("type") == Some("record") {
        return success(json!({ "groups": [] }));
    }
    let mut rows: BTreeMap<String, Vec<AlertRow>> = BTreeMap::new();
    for row in app.backend.alerts() {
        rows.entry(row.rule.clone()).or_default().push(row);
    }
    let catalog = app.backend.catalog();
    let default_ms = app.settings.alerts.evaluation_ms;
    let described = |def: &AlertDef| rule(def, rows.get(&def.name).map_or(&[], Vec::as_slice));
    let rules: Vec<Value> = catalog.alerts.values().map(|def| described(def)).collect();
    let group = json!({
        "name": GROUP,
        "file": "",
        "interval": default_ms as f64 / 1000.0,
        "limit": 0,
        "rules": rules,
    });
    success(json!({ "groups": if catalog.alerts.is_empty() { vec![] } else { vec![group] } }))
}

/// `GET /api/v1/alerts/stream`: alerts as they begin and end, as server-sent events.
/// `?rule=&labels={"host":"a"}&resume=`, or the header `Last-Event-ID` for `resume`.
pub async fn watch(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    let begin = || {
        let wish = wish(&parameters, &headers)?;
        let resumed = wish.resume.is_some();
        Ok((Seat::take(&app)?, resumed, follow(&app, wish)?))
    };
    match begin() {
        Ok((seat, resumed, feed)) => {
            let first = futures::stream::iter([(begun(None, resumed), false)]);
            let told = feed.events().map(|next| event(None, next));
            stream::respond(app, seat, first.chain(told).boxed())
        }
        Err(error) => Api::Own.refuse(&error),
    }
}

fn wish(parameters: &Parameters, headers: &HeaderMap) -> Result<AlertWish> {
    let labels = match parameters.get("labels") {
        Some(text) => serde_json::from_str(text).map_err(|error| {
            Error::new(Code::InvalidParameter, format!("`labels` is no object of texts: {error}"))
        })?,
        None => Labels::new(),
    };
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let place = last.or_else(|| parameters.get("resume")).filter(|text| !text.is_empty());
    let rule = parameters.get("rule").map(str::to_owned);
    Ok(AlertWish { wanted: Matcher { rule, labels }, resume: place.map(resume).transpose()? })
}

fn success(data: Value) -> Response {
    Json(json!({ "status": "success", "data": data })).into_response()
}

/// An alert that is pending or fires.
fn alert(row: &AlertRow, def: Option<&AlertDef>) -> Option<Value> {
    if !matches!(row.state.as_str(), "pending" | "firing") {
        return None;
    }
    let labels: Labels = serde_json::from_str(row.labels.as_deref()?).ok()?;
    let filled =
        |(name, text): (&String, &String)| (name.clone(), render(text, &labels, row.value));
    let annotations: Labels =
        def.into_iter().flat_map(|def| &def.annotations).map(filled).collect();
    Some(json!({
        "labels": labels,
        "annotations": annotations,
        "state": row.state,
        "activeAt": row.since.map(time),
        // Prometheus writes numbers as texts, for those that JSON does not have.
        "value": row.value.map_or_else(String::new, |value| format!("{value:e}")),
    }))
}

fn rule(def: &AlertDef, rows: &[AlertRow]) -> Value {
    let first = rows.first();
    let error = first.and_then(|row| row.error.clone());
    let state =
        ["firing", "pending"].into_iter().find(|state| rows.iter().any(|row| row.state == *state));
    let query = match &def.condition {
        Some(condition) => format!("ON ({}) WHEN {condition}", def.query),
        None => format!("ON ({})", def.query),
    };
    json!({
        "type": "alerting",
        "name": def.name,
        "query": query,
        "duration": def.hold_ns as f64 / 1e9,
        "keepFiringFor": def.keep_firing_ns as f64 / 1e9,
        "labels": def.labels,
        "annotations": def.annotations,
        "alerts": rows.iter().filter_map(|row| alert(row, Some(def))).collect::<Vec<_>>(),
        "health": if error.is_some() { "err" } else { "ok" },
        "lastError": error.unwrap_or_default(),
        "lastEvaluation": first.and_then(|row| row.evaluated).map(time),
        "evaluationTime": first.map_or(0.0, |row| row.lag_ms / 1000.0),
        "state": state.unwrap_or("inactive"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(state: &str) -> AlertRow {
        AlertRow {
            rule: "hot".to_owned(),
            state: state.to_owned(),
            labels: Some(r#"{"alertname":"hot","host":"a"}"#.to_owned()),
            value: Some(97.5),
            since: Some(1_700_000_000_000_000_000),
            ..AlertRow::default()
        }
    }

    fn def() -> AlertDef {
        let summary = "{{ $labels.host }} is at {{ $value }}".to_owned();
        AlertDef {
            condition: Some("usage > 90".to_owned()),
            hold_ns: 60_000_000_000,
            annotations: Labels::from([("summary".to_owned(), summary)]),
            ..AlertDef::new("hot", "ada", "SELECT host, usage FROM cpu")
        }
    }

    #[test]
    fn active_alerts_have_the_fields_of_prometheus() {
        let def = def();
        assert_eq!(
            alert(&row("firing"), Some(&def)).unwrap(),
            json!({
                "labels": {"alertname": "hot", "host": "a"},
                "annotations": {"summary": "a is at 97.5"},
                "state": "firing",
                "activeAt": "2023-11-14T22:13:20Z",
                "value": "9.75e1",
            })
        );
        assert!(alert(&row("resolved"), Some(&def)).is_none());
        assert!(alert(&AlertRow::default(), None).is_none());
    }

    #[test]
    fn a_rule_is_in_the_state_of_its_worst_alert() {
        let rows = [row("pending"), row("firing"), row("resolved")];
        let shown = rule(&def(), &rows);
        assert_eq!(
            (&shown["state"], &shown["type"], &shown["duration"], &shown["health"]),
            (&json!("firing"), &json!("alerting"), &json!(60.0), &json!("ok"))
        );
        assert_eq!(shown["alerts"].as_array().unwrap().len(), 2);
        assert_eq!(shown["query"], "ON (SELECT host, usage FROM cpu) WHEN usage > 90");
        let failed = AlertRow { error: Some("no such column".to_owned()), ..row("inactive") };
        let shown = rule(&def(), &[failed]);
        assert_eq!((&shown["state"], &shown["health"]), (&json!("inactive"), &json!("err")));
        assert_eq!(shown["lastError"], "no such column");
    }
}
