//! Messages to clients of live data: JSON objects with a `type`, rows as arrays of objects.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use kymo_actors::live::Event;
use kymo_kernel::{Error, Result};
use serde_json::{Value, json};

use crate::error;
use crate::http::format::{Encoder, Format};

/// A message: its type, the token that goes with it, and its JSON.
pub struct Frame {
    /// Its `type`.
    pub kind: &'static str,
    /// Where to go on after it.
    pub token: Option<String>,
    /// The whole message.
    pub json: String,
}

/// The message of an event of a subscription. `id` is what the client calls it.
///
/// # Errors
/// `unsupported` for a value that JSON cannot hold.
pub fn event(id: Option<&str>, event: &Event) -> Result<Frame> {
    let (kind, head) = match event {
        Event::Started { schema, class, resumed } => (
            "subscribed",
            json!({ "class": class, "resumed": resumed, "columns": columns(schema) }),
        ),
        Event::Rows { op, batch, token, .. } => {
            let mut head = json!({ "op": op.as_str() });
            if let Some(token) = token {
                head["seq"] = json!(token.position.seq.0);
                head["token"] = json!(token.to_string());
            }
            let rows = rows(batch)?;
            let token = token.as_ref().map(ToString::to_string);
            return Ok(Frame { kind: "change", token, json: with_rows("change", id, head, &rows) });
        }
        Event::SnapshotEnd { token } => {
            let head = json!({ "token": token.to_string(), "seq": token.position.seq.0 });
            let json = message("snapshot_end", id, head);
            return Ok(Frame { kind: "snapshot_end", token: Some(token.to_string()), json });
        }
        Event::Lagged { commits } => ("lagged", json!({ "commits": commits })),
        Event::Resync { reason } => ("resync", json!({ "reason": reason })),
        Event::Ended(error) => {
            let mut head = error::body(error);
            head["ended"] = json!(true);
            ("error", head)
        }
    };
    Ok(Frame { kind, token: None, json: message(kind, id, head) })
}

/// The message of a fault. Without an `id` it concerns the connection.
#[must_use]
pub fn fault(id: Option<&str>, error: &Error) -> String {
    message("error", id, error::body(error))
}

/// A message without rows.
#[must_use]
pub fn message(kind: &str, id: Option<&str>, mut head: Value) -> String {
    head["type"] = json!(kind);
    if let Some(id) = id {
        head["id"] = json!(id);
    }
    head.to_string()
}

/// A message with rows, which are JSON already.
#[must_use]
pub fn with_rows(kind: &str, id: Option<&str>, head: Value, rows: &str) -> String {
    let mut json = message(kind, id, head);
    json.pop();
    json.push_str(",\"rows\":");
    json.push_str(rows);
    json.push('}');
    json
}

/// Rows as an array of objects.
///
/// # Errors
/// `unsupported` for a value that JSON cannot hold.
pub fn rows(batch: &RecordBatch) -> Result<String> {
    let mut encoder = Encoder::new(Format::Json, &batch.schema())?;
    let mut text = encoder.batch(batch)?.to_vec();
    text.extend_from_slice(&encoder.finish()?);
    String::from_utf8(text).map_err(|error| Error::internal(format!("rows as JSON: {error}")))
}

/// Names and types of columns.
#[must_use]
pub fn columns(schema: &SchemaRef) -> Value {
    let column = |field: &arrow::datatypes::FieldRef| json!({ "name": field.name(), "type": field.data_type().to_string() });
    schema.fields().iter().map(column).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use kymo_actors::live::Op;
    use kymo_kernel::Code;

    use super::*;

    fn json(frame: &str) -> Value {
        serde_json::from_str(frame).unwrap_or_else(|error| panic!("{error}: {frame}"))
    }

    #[test]
    fn rows_are_part_of_their_message() {
        let columns: [(&str, ArrayRef); 2] = [
            ("host", Arc::new(StringArray::from(vec!["a}", "\"b\n"]))),
            ("n", Arc::new(Int64Array::from(vec![Some(1), None]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let token = "7.0.3.41.2".parse().unwrap();
        let rows = Event::Rows { op: Op::Insert, batch, token: Some(token), at: None };
        let frame = event(Some("x\"}"), &rows).unwrap();
        assert!(!frame.json.contains('\n'));
        assert_eq!(
            json(&frame.json),
            json!({
                "type": "change", "id": "x\"}", "op": "insert", "seq": 41, "token": "7.0.3.41.2",
                "rows": [{"host": "a}", "n": 1}, {"host": "\"b\n", "n": null}],
            })
        );
        assert_eq!(frame.token.as_deref(), Some("7.0.3.41.2"));
    }

    #[test]
    fn a_fault_has_its_code_and_the_last_one_says_so() {
        let error = Error::new(Code::TableNotFound, "gone");
        let frame = json(&event(None, &Event::Ended(error.clone())).unwrap().json);
        assert_eq!((&frame["type"], &frame["ended"]), (&json!("error"), &json!(true)));
        let frame = json(&fault(Some("1"), &error));
        assert_eq!((&frame["code"], &frame["id"]), (&json!("table_not_found"), &json!("1")));
    }
}
