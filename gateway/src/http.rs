//! HTTP: routes, and what all of them share.
//!
//! A request passes [`guard`] (identity, limits of shutdown, request id, metrics, trace),
//! then its handler, which turns it into one message for the system behind [`Backend`] and
//! the answer into a response. The handlers of writes speak the dialects of InfluxDB 1, 2
//! and 3, each with its own words ([`respond::Api`]).

pub mod admin;
pub mod alerts;
pub mod backup;
pub mod body;
pub mod format;
pub mod guard;
pub mod influxql;
pub mod live;
pub mod parameters;
pub mod plugins;
pub mod query;
pub mod respond;
pub mod serve;
pub mod statement;
pub mod wal;
pub mod write;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{delete, get, post};
use futures::future::BoxFuture;
use kymo_actors::backup::Backups;
use kymo_actors::live::{Ask, Subscription};
use kymo_actors::notify::Feed;
use kymo_actors::query::AlertRow;
use kymo_actors::session::Session;
use kymo_config::Settings;
use kymo_kernel::alert::Matcher;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::Clock;
use kymo_kernel::message::{
    Acked, Ddl, DdlDone, Outcome, PluginCommand, PluginDone, Query, SessionContext, Statement,
    Write,
};
use kymo_kernel::schema::TableName;
use kymo_kernel::storage::changes::{self, Changes};
use kymo_kernel::storage::components::Staged;
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::{Code, Error, Result};
use serde_json::Value;

use crate::auth::Authenticator;
use crate::limits::{Connections, Turns};

/// What HTTP needs of the system behind it.
pub trait Backend: Send + Sync + 'static {
    /// The metadata as it is now.
    fn catalog(&self) -> Arc<Snapshot>;
    /// What tells the time and waits for it.
    fn clock(&self) -> Arc<dyn Clock>;
    /// The server's time, in nanoseconds since 1970-01-01T00:00:00Z.
    fn now_ns(&self) -> i64 {
        self.clock().now_ns()
    }
    /// Keeps rows. Goes on when the future is dropped.
    fn write(&self, write: Write) -> BoxFuture<'static, Result<Acked>>;
    /// Changes definitions.
    fn ddl(&self, ddl: Ddl) -> BoxFuture<'static, Result<DdlDone>>;
    /// Changes plugins. Goes on when the future is dropped.
    fn plugins(&self, command: PluginCommand) -> BoxFuture<'static, Result<PluginDone>>;
    /// Begins the upload of a component. Blocks on the disk.
    ///
    /// # Errors
    /// `disk_full` or `io_error`, naming the file.
    fn begin_component(&self) -> Result<Staged>;
    /// Splits and parses SQL.
    fn parse(&self, sql: String) -> BoxFuture<'static, Result<Vec<Arc<Statement>>>>;
    /// Runs one statement.
    fn query(&self, query: Query) -> BoxFuture<'static, Result<Outcome>>;
    /// Opens the session of a connection.
    ///
    /// # Errors
    /// `shutting_down`, `poisoned`.
    fn open_session(&self, context: SessionContext) -> Result<Session>;
    /// Follows a query.
    fn subscribe(&self, ask: Ask) -> BoxFuture<'static, Result<Subscription>>;
    /// Alerts as they are now, and rules that have none.
    fn alerts(&self) -> Vec<AlertRow> {
        Vec::new()
    }
    /// Follows the alerts that are wanted, from after the transition of a number where there is
    /// one; `None` where no alerts are evaluated.
    fn alert_feed(&self, _wanted: Matcher, _resume: Option<u64>) -> Option<Feed> {
        None
    }
    /// Backups that are being taken.
    ///
    /// # Errors
    /// There is no store to back up.
    fn backups(&self) -> Result<Backups>;
    /// Reads the journal as a feed: of one table, or of all.
    ///
    /// # Errors
    /// There is no journal to read, and those of [`Changes::open`].
    fn changes(&self, _table: Option<&TableName>, _from: changes::From) -> Result<Changes> {
        Err(Error::new(Code::Unsupported, "there is no journal to read"))
    }
    /// What goes on inside, for `/stats`.
    fn status(&self) -> Value;
    /// Metrics in Prometheus' text format.
    fn metrics(&self) -> Result<String>;
    /// Whether requests can be served, and if not, why.
    fn ready(&self) -> Result<()>;
}

/// What every handler has at hand. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

/// The parts of an [`App`].
pub struct Inner {
    /// The system behind.
    pub backend: Arc<dyn Backend>,
    /// The settings.
    pub settings: Arc<Settings>,
    /// Who may come in.
    pub door: Authenticator,
    /// Turns for reading and parsing large bodies.
    pub parsing: Turns,
    /// Places for WebSocket connections and event streams.
    pub live: Connections,
    draining: CancelToken,
}

impl std::ops::Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    /// What handlers need, over a system.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, settings: Arc<Settings>, door: Authenticator) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = match settings.ingest.max_parsing {
            0 => 2 * cores,
            set => set,
        };
        let wait = Duration::from_millis(settings.ingest.queue_timeout_ms);
        let live = Connections::new(settings.live.max_connections).under("live.max_connections");
        App(Arc::new(Inner {
            backend,
            settings,
            live,
            door,
            parsing: Turns::new("parsing of large bodies", turns, wait),
            draining: CancelToken::new(),
        }))
    }

    /// Completes when the server begins to stop.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// From now on, requests are told to come back later.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Whether the server is stopping.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }
}

/// All routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/", get(admin::home))
        .route("/health", get(admin::health))
        .route("/ping", get(admin::ping))
        .route("/ready", get(admin::ready))
        .route("/stats", get(admin::stats))
        .route("/metrics", get(admin::metrics))
        .route("/write", post(write::v1))
        .route("/api/v2/write", post(write::v2))
        .route("/api/v3/write_lp", post(write::v3))
        .route("/write/{database}", post(write::json))
        .route("/api/v3/query_sql", get(query::get).post(query::post))
        .route("/sql", get(query::get).post(query::post))
        .route("/query", get(influxql::get).post(influxql::post))
        .route("/ws", get(live::socket::open))
        .route("/api/v1/subscribe", get(live::stream::get))
        .route("/api/v1/alerts", get(alerts::alerts))
        .route("/api/v1/alerts/stream", get(alerts::watch))
        .route("/api/v1/rules", get(alerts::rules))
        .route("/api/v1/plugins", get(plugins::list))
        .route(
            "/api/v1/plugins/{name}",
            get(plugins::one).put(plugins::put).delete(plugins::delete),
        )
        .route("/api/v1/plugins/{name}/versions", get(plugins::versions))
        .route("/api/v1/plugins/{name}/{action}", post(plugins::act))
        .route("/api/v1/wal", get(wal::tail))
        .route("/api/v1/backups", post(backup::begin))
        .route("/api/v1/backups/{number}", delete(backup::end))
        .route("/api/v1/backups/{number}/object", get(backup::object))
        .route("/api/v1/snapshots", get(backup::snapshots).post(backup::snapshot))
        .route("/api/v1/snapshots/{name}", delete(backup::forget))
        .fallback(admin::not_found)
        .method_not_allowed_fallback(admin::not_allowed)
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

#[cfg(test)]
mod tests;
