//! `GET /api/v1/subscribe`: a subscription as server-sent events.
//!
//! The id of an event is the resume token, so a browser's `EventSource` that reconnects goes on
//! where it was by itself.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use futures::StreamExt;
use futures::stream::BoxStream;
use kymo_actors::live::{Event, Subscription};
use kymo_kernel::{Code, Error, Result};

use super::encode::{self, Frame};
use super::{Seat, Wish, ask};
use crate::auth::Identity;
use crate::http::App;
use crate::http::guard::shutting_down;
use crate::http::parameters::Parameters;
use crate::http::respond::Api;
use crate::http::statement;

/// `GET`: `?q=&db=&params=&snapshot=&resume=`, or the header `Last-Event-ID` for `resume`.
pub async fn get(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    match begin(&app, &identity, &parameters, &headers).await {
        Ok((seat, subscription)) => {
            respond(app, seat, subscription.map(|event| written(&event)).boxed())
        }
        Err(error) => Api::Own.refuse(&error),
    }
}

async fn begin(
    app: &App,
    identity: &Identity,
    parameters: &Parameters,
    headers: &HeaderMap,
) -> Result<(Seat, Subscription)> {
    let get = |names: &[&str]| names.iter().find_map(|name| parameters.get(name));
    let sql = get(&["q", "query", "sql"]).ok_or_else(|| {
        Error::new(Code::InvalidInput, "the request has no SQL").with_hint("send it as `q`")
    })?;
    let values = get(&["params"]).map(serde_json::from_str).transpose().map_err(|error| {
        Error::new(Code::InvalidParameter, format!("`params` is not JSON: {error}"))
    })?;
    let snapshot = match get(&["snapshot"]) {
        None => None,
        Some("true" | "1") => Some(true),
        Some("false" | "0") => Some(false),
        Some(_) => {
            return Err(Error::new(Code::InvalidInput, "`snapshot` is either true or false"));
        }
    };
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let resume = last.or_else(|| get(&["resume"])).map(str::to_owned);
    let database = get(&["db", "database"]).map(str::to_owned);
    let nothing =
        statement::Ask { sql: String::new(), parameters: None, database, read_only: true };
    let session = statement::session(app, identity, &nothing)?;
    let seat = Seat::take(app)?;
    let wish = Wish { sql: sql.to_owned(), parameters: values, snapshot, resume };
    let ask = ask(app, session.into(), wish).await?;
    Ok((seat, app.backend.subscribe(ask).await?))
}

/// Messages, and whether each is the last one.
type Frames = BoxStream<'static, (Frame, bool)>;

/// What a stream still has to say.
enum Stage {
    Open(App, Seat, Frames),
    Ended,
}

/// The answer that sends messages as they come.
pub fn respond(app: App, seat: Seat, frames: Frames) -> Response {
    let beat = Duration::from_millis(app.settings.live.heartbeat_ms);
    let open = Stage::Open(app, seat, frames);
    let body = futures::stream::unfold(open, move |state| async move {
        let Stage::Open(app, seat, mut frames) = state else { return None };
        let (frame, ended) = tokio::select! {
            frame = frames.next() => frame?,
            () = app.draining() => written(&Event::Ended(shutting_down())),
            () = app.backend.clock().sleep(beat) => {
                let piece = Bytes::from_static(b": still here\n\n");
                return Some((Ok::<_, Infallible>(piece), Stage::Open(app, seat, frames)));
            }
        };
        let next = if ended { Stage::Ended } else { Stage::Open(app, seat, frames) };
        Some((Ok(piece(&frame)), next))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The message of an event, and whether it is the last one.
fn written(event: &Event) -> (Frame, bool) {
    let frame = encode::event(None, event).unwrap_or_else(|error| Frame {
        kind: "error",
        token: None,
        json: encode::fault(None, &error),
    });
    let ended = frame.kind == "error";
    (frame, ended)
}

/// A message as it is sent.
fn piece(Frame { kind, token, json }: &Frame) -> Bytes {
    let id = match token {
        Some(token) => format!("id: {token}\n"),
        // Tokens from before are void: an empty one makes the client forget them.
        None if *kind == "resync" => "id\n".to_owned(),
        None => String::new(),
    };
    Bytes::from(format!("event: {kind}\n{id}data: {json}\n\n"))
}
