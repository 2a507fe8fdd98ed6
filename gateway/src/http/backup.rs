//! `/api/v1/backups`: a moment of the store, object by object, for `kymo backup`.
//! Administrators only: an object holds what everybody wrote, and the hashes of passwords.
//!
//! `POST` pins the store and answers the number of the backup with the list of its objects,
//! `GET …/{number}/object?path=` gives one, `DELETE …/{number}` lets the store go.
//!
//! `/api/v1/snapshots` takes, lists and removes snapshots, for `kymo snapshot`.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use kymo_actors::backup::Backups;
use kymo_kernel::storage::backup::{Object, Pinned, Reader, Snapshots};
use kymo_kernel::storage::segment::SegmentBytes;
use kymo_kernel::{Code, Error, Result};
use serde_json::json;

use super::App;
use super::parameters::Parameters;
use super::plugins::blocking;
use super::respond::Api;
use crate::auth::Identity;

/// Bytes of an object that are read at a time.
const PIECE: u64 = 1 << 20;

fn backups(app: &App, identity: &Identity) -> Result<Backups> {
    if identity.admin {
        return app.backend.backups();
    }
    Err(Error::new(
        Code::NotAuthorized,
        format!("backups need an administrator, and {:?} is none", identity.name),
    )
    .with_hint("log in as an administrator"))
}

/// `POST /api/v1/backups`.
pub async fn begin(State(app): State<App>, Extension(identity): Extension<Identity>) -> Response {
    let begun = match backups(&app, &identity) {
        Ok(backups) => backups.begin().await,
        Err(error) => Err(error),
    };
    match begun {
        Ok((number, pinned)) => {
            let body = json!({ "number": number, "plan": pinned.plan() });
            (StatusCode::CREATED, Json(body)).into_response()
        }
        Err(error) => Api::Own.refuse(&error),
    }
}

/// `POST /api/v1/snapshots`.
pub async fn snapshot(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
) -> Response {
    let taken = async { backups(&app, &identity)?.snapshot().await };
    match taken.await {
        Ok(taken) => (StatusCode::CREATED, Json(taken)).into_response(),
        Err(error) => Api::Own.refuse(&error),
    }
}

/// `GET /api/v1/snapshots`.
pub async fn snapshots(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
) -> Response {
    let list = Snapshots::list;
    let listed = async { backups(&app, &identity)?.snapshots("list-snapshots", list).await };
    match listed.await {
        Ok(listed) => Json(listed).into_response(),
        Err(error) => Api::Own.refuse(&error),
    }
}

/// `DELETE /api/v1/snapshots/{name}`.
pub async fn forget(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Path(name): Path<String>,
) -> Response {
    let remove = move |all: &Snapshots| all.remove(&name);
    let removed = async { backups(&app, &identity)?.snapshots("remove-snapshot", remove).await };
    match removed.await {
        Ok(()) => Json(json!({ "status": "ok" })).into_response(),
        Err(error) => Api::Own.refuse(&error),
    }
}

/// `DELETE /api/v1/backups/{number}`.
pub async fn end(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Path(number): Path<u64>,
) -> Response {
    match backups(&app, &identity) {
        Ok(backups) => {
            backups.end(number);
            Json(json!({ "status": "ok" })).into_response()
        }
        Err(error) => Api::Own.refuse(&error),
    }
}

/// `GET /api/v1/backups/{number}/object?path=`.
pub async fn object(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Path(number): Path<u64>,
    RawQuery(query): RawQuery,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    let path = parameters.get("path").unwrap_or_default();
    match open(&app, &identity, number, path).await {
        Ok(reading) => respond(reading),
        Err(error) => Api::Own.refuse(&error),
    }
}

/// An object on its way.
struct Reading {
    backups: Backups,
    number: u64,
    /// Keeps the file.
    _pinned: Arc<Pinned>,
    object: Object,
    reader: Reader,
    at: u64,
}

async fn open(app: &App, identity: &Identity, number: u64, path: &str) -> Result<Reading> {
    let backups = backups(app, identity)?;
    let (pinned, object) = backups.object(number, path)?;
    blocking(move || {
        let reader = pinned.open(&object)?;
        Ok(Reading { backups, number, _pinned: pinned, object, reader, at: 0 })
    })
    .await
}

fn respond(reading: Reading) -> Response {
    let length = HeaderValue::from(reading.object.bytes);
    let body = futures::stream::try_unfold(reading, |reading| async move {
        if reading.at == reading.object.bytes {
            return Ok(None);
        }
        // A backup that was let go meanwhile is read to the end of this object all the same.
        let _ = reading.backups.touch(reading.number);
        let read = blocking(move || read(reading)).await;
        read.map(Some).map_err(std::io::Error::other)
    });
    let mut response = Body::from_stream(body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

/// The next piece.
fn read(mut reading: Reading) -> Result<(Bytes, Reading)> {
    let length = PIECE.min(reading.object.bytes - reading.at);
    let mut piece = vec![0; length as usize];
    let count = reading.reader.read_at(&mut piece, reading.at);
    let count =
        count.map_err(|error| Error::io(format_args!("read {}", reading.object.path), error))?;
    if count == 0 {
        let what =
            format!("{} ends before its {} bytes", reading.object.path, reading.object.bytes);
        return Err(Error::new(Code::Corrupt, what));
    }
    piece.truncate(count);
    reading.at += count as u64;
    Ok((piece.into(), reading))
}
