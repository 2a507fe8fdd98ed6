//! `GET /api/v1/wal`: what was committed, in the order of the journal, for `kymo wal tail` and
//! other consumers of changes. Administrators only: it shows the rows of all tables.
//!
//! `?from=&table=&db=&follow=&format=`. The stream has what is durable and nothing else. With
//! `follow=true` it goes on with what becomes durable; where a weaker durability leaves rows
//! unsynced, the follower has them synced every `journal.periodic_ms`. A consumer that is too
//! slow holds nothing back: the stream tells it what is gone, and ends.

use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::Response;
use kymo_kernel::observe::metrics;
use kymo_kernel::schema::DEFAULT_DATABASE;
use kymo_kernel::storage::changes::{Changes, From};
use kymo_kernel::storage::journal::Extent;
use kymo_kernel::{Code, Error, Result};
use tokio::sync::watch;

use super::App;
use super::guard::shutting_down;
use super::live::Seat;
use super::parameters::Parameters;
use super::plugins::blocking;
use super::respond::Api;
use crate::auth::Identity;
use crate::changes::{self, Format};

/// Bytes after which a piece is sent.
const PIECE: usize = 256 << 10;

/// `GET`.
pub async fn tail(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    RawQuery(query): RawQuery,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    match begin(app, &identity, &parameters).await {
        Ok((first, tail)) => respond(first, tail),
        Err(error) => Api::Own.refuse(&error),
    }
}

/// A stream under way.
struct Tail {
    app: App,
    changes: Changes,
    format: Format,
    watch: Option<watch::Receiver<Extent>>,
    follow: bool,
    _seat: Seat,
    _counted: Counted,
}

/// Counts in the metric for as long as it exists.
struct Counted;

impl Counted {
    fn new() -> Counted {
        metrics().journal.tails.inc();
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics().journal.tails.dec();
    }
}

/// Reads the first piece, so that what is wrong has a status.
async fn begin(app: App, identity: &Identity, parameters: &Parameters) -> Result<(Bytes, Tail)> {
    if !identity.admin {
        let what = format!("the journal needs an administrator, and {:?} is none", identity.name);
        return Err(Error::new(Code::NotAuthorized, what).with_hint("log in as an administrator"));
    }
    let database = parameters.get("db").unwrap_or(DEFAULT_DATABASE);
    let table = parameters.get("table").map(|text| changes::table(text, database)).transpose()?;
    let from = parameters.get("from").unwrap_or("oldest").parse::<From>()?;
    let format = parameters.get("format").unwrap_or("json").parse::<Format>()?;
    let follow = parameters.flag("follow", false);
    let seat = Seat::take(&app)?;
    let changes = app.backend.changes(table.as_ref(), from)?;
    let watch = changes.watch();
    let tail = Tail { app, changes, format, watch, follow, _seat: seat, _counted: Counted::new() };
    tail.read(true).await
}

/// Why a follower looks again.
enum Woken {
    /// More is durable.
    Durable,
    /// More is written, and nobody has it synced.
    Behind,
    /// Nothing has come for long.
    Beat,
}

impl Tail {
    /// What can be read at once, after an fsync of what is written where `sync` asks for it;
    /// nothing where all that is durable was read.
    async fn read(mut self, sync: bool) -> Result<(Bytes, Tail)> {
        blocking(move || {
            if sync && self.changes.is_behind() {
                self.changes.catch_up();
            }
            // What becomes durable from here on is news, whether this read comes to it or not.
            if let Some(watch) = &mut self.watch {
                watch.mark_unchanged();
            }
            Ok((self.fill()?, self))
        })
        .await
    }

    fn fill(&mut self) -> Result<Bytes> {
        let mut piece = Vec::new();
        while piece.len() < PIECE {
            match self.changes.read() {
                Ok(Some(change)) => self.format.write(&change, &mut piece)?,
                Ok(None) => break,
                // What was read before is told first; the next read fails again.
                Err(_) if !piece.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(piece.into())
    }

    /// Completes when there is something to do.
    ///
    /// # Errors
    /// `shutting_down`.
    async fn wait(&mut self) -> Result<Woken> {
        let settings = &self.app.settings;
        let clock = self.app.backend.clock();
        let mut beat = clock.sleep(Duration::from_millis(settings.live.heartbeat_ms));
        let look = Duration::from_millis(settings.journal.periodic_ms);
        let Some(watch) = &mut self.watch else { return Err(shutting_down()) };
        loop {
            tokio::select! {
                changed = watch.changed() => {
                    return changed.map(|()| Woken::Durable).map_err(|_| shutting_down());
                }
                () = self.app.draining() => return Err(shutting_down()),
                () = clock.sleep(look) => if self.changes.is_behind() {
                    return Ok(Woken::Behind);
                },
                () = &mut beat => return Ok(Woken::Beat),
            }
        }
    }

    /// The next piece; `None` at the end of a stream that does not follow.
    async fn piece(mut self) -> Result<Option<(Bytes, Tail)>> {
        let mut sync = false;
        loop {
            let (piece, tail) = self.read(sync).await?;
            self = tail;
            if !piece.is_empty() {
                return Ok(Some((piece, self)));
            }
            if !self.follow {
                return Ok(None);
            }
            let woken = self.wait().await?;
            sync = matches!(woken, Woken::Behind);
            // An empty line tells a client that is gone from one that waits.
            if matches!(woken, Woken::Beat) && self.format == Format::Json {
                return Ok(Some((Bytes::from_static(b"\n"), self)));
            }
        }
    }
}

/// What a stream still has to say.
enum Stage {
    First(Bytes, Box<Tail>),
    Open(Box<Tail>),
    Ended,
}

fn respond(first: Bytes, tail: Tail) -> Response {
    let format = tail.format;
    let body =
        futures::stream::unfold(Stage::First(first, Box::new(tail)), move |stage| async move {
            let tail = match stage {
                Stage::First(piece, tail) => return Some((Ok(piece), Stage::Open(tail))),
                Stage::Open(tail) => tail,
                Stage::Ended => return None,
            };
            match tail.piece().await {
                Ok(Some((piece, tail))) => Some((Ok(piece), Stage::Open(Box::new(tail)))),
                Ok(None) => None,
                Err(error) => {
                    let words = format.last_words(&error).map(Bytes::from);
                    Some((words.ok_or_else(|| std::io::Error::other(error)), Stage::Ended))
                }
            }
        });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
