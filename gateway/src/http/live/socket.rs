//! `/ws`: from a request to a conversation.
//!
//! Who asks is known by the request's own credentials or by the first message, because pages
//! in a browser cannot set headers of a WebSocket.

use std::time::Duration;

use axum::Extension;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use kymo_kernel::{Code, Error, Result};

use super::conversation::{Conversation, last_words};
use super::request::{Request, read};
use super::{Seat, encode, origin};
use crate::auth::Identity;
use crate::error::close_code;
use crate::http::App;
use crate::http::guard::Visitor;
use crate::http::parameters::Parameters;
use crate::http::respond::Api;

/// `GET /ws`, upgraded.
pub async fn open(
    State(app): State<App>,
    Extension(Visitor(identity)): Extension<Visitor>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    let database = parameters.get("db").or_else(|| parameters.get("database")).map(str::to_owned);
    let upgrade = upgrade.map_err(|rejection| {
        Error::new(Code::InvalidInput, rejection.body_text())
            .with_hint("connect to /ws with a WebSocket client")
    });
    let admitted = upgrade.and_then(|upgrade| {
        origin::check(&headers, &app.settings.live.allowed_origins)?;
        Ok((upgrade, Seat::take(&app)?))
    });
    let (upgrade, seat) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => return Api::Own.refuse(&error),
    };
    let most = usize::try_from(app.settings.live.max_message_bytes).unwrap_or(usize::MAX);
    upgrade.max_message_size(most).max_frame_size(most).on_upgrade(move |socket| async move {
        let _seat = seat;
        serve(app, identity, database, socket).await;
    })
}

async fn serve(
    app: App,
    identity: Option<Identity>,
    database: Option<String>,
    mut socket: WebSocket,
) {
    let begun = async {
        let identity = match identity {
            Some(identity) => identity,
            None => identify(&app, &mut socket).await?,
        };
        Conversation::open(&app, &identity, database)
    };
    match begun.await {
        Ok(conversation) => conversation.hold(socket).await,
        Err(error) => {
            last_words(&app, refuse(&mut socket, &error)).await;
        }
    }
}

/// Waits for the message that says who asks.
async fn identify(app: &App, socket: &mut WebSocket) -> Result<Identity> {
    let patience = Duration::from_millis(app.settings.server.startup_timeout_ms);
    let refused = |what: &str| {
        Error::new(Code::NotAuthenticated, what)
            .with_hint(r#"send {"type":"auth","token":"…"} or {"type":"auth","user":"…","password":"…"} first"#)
    };
    let first = async {
        loop {
            match socket.recv().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return Err(refused("the connection ended before it was authenticated")),
            }
        }
    };
    let text = tokio::select! {
        text = first => text?,
        () = app.backend.clock().sleep(patience) => {
            return Err(refused("no credentials came in time"));
        }
    };
    match read(&text) {
        Ok(Request::Auth(_, credentials)) => app.door.check(&credentials).await,
        Err(misread) => Err(misread.error),
        Ok(_) => Err(refused("authorization failed: the first message must be auth")),
    }
}

async fn refuse(socket: &mut WebSocket, error: &Error) {
    let _ = socket.send(Message::Text(encode::fault(None, error).into())).await;
    let _ = socket.send(close(error)).await;
    // The client may still be sending; it should see why it is refused.
    while let Some(Ok(_)) = socket.recv().await {}
}

/// The last message of a connection that a fault ends.
pub fn close(error: &Error) -> Message {
    // A reason has at most 123 bytes.
    let mut reason = error.code().as_str().to_owned();
    reason.truncate(123);
    Message::Close(Some(CloseFrame { code: close_code(error.code()), reason: reason.into() }))
}
