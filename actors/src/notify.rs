//! Carries alerts to people: one carrier for each channel, each with its own pace.
//!
//! ```text
//! system.alert_history ─┐ what was missed
//! outlet ── queue of each channel ──► carrier ── webhook, Alertmanager, log
//!                                        └────► system.alert_deliveries: done up to here
//! ```
//!
//! A notification comes here once its transition is durable (A1). What a channel is done with is
//! durable, too: after a crash it is sent what comes after that, at least once and under the key
//! that it had before. A receiver that hangs or fails costs only its own channel.

mod board;
mod carrier;
mod cursor;
mod feed;
mod missed;
pub mod payload;
mod recent;
mod retry;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kymo_config::Settings;
use kymo_config::settings::{AlertChannel, Alerts};
use kymo_kernel::alert::{ChannelDef, ChannelKind, Matcher};
use kymo_kernel::env::{Clock, Env, Random};
use kymo_kernel::message::{Inbox, Outlet, WriteOwn};
use kymo_kernel::observe::metrics;
use kymo_kernel::pools::{Pool, Pools, Task};
use kymo_kernel::port::Port;
use kymo_kernel::storage::Store;
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use tracing::error;

use crate::plugin_manager::allowed;
use crate::query::ChannelRow;
use board::Board;
use carrier::Carrier;
pub use feed::{Feed, FeedEvent};
use payload::Links;
use retry::Policy;

/// The channel that is always there.
const LOG: &str = "log";
/// Where channels are defined: the settings.
const SETTINGS: &str = "settings";
/// And the metadata, by statements.
const SQL: &str = "sql";

/// A request to a receiver.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its address.
    pub url: String,
    /// JSON.
    pub body: Vec<u8>,
    /// What tells the receiver that it had this request before, where it is one that repeats.
    pub key: Option<String>,
    /// What to sign the body with, where it is to be signed.
    pub secret: Option<String>,
    /// The time that goes into the signature, in seconds since 1970-01-01T00:00:00Z.
    pub at_s: i64,
}

/// The answer of a receiver.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status of HTTP.
    pub status: u16,
    /// How long it asks to be left alone.
    pub retry_after: Option<Duration>,
    /// The beginning of what it said where it did not take the request.
    pub said: String,
}

/// Sends requests. Whoever starts the system lends it one, where it has any.
pub trait Post: Send + Sync + 'static {
    /// Sends a request; follows no redirects. Dropping the future gives the request up.
    ///
    /// # Errors
    /// No answer.
    fn post(&self, request: Request) -> BoxFuture<'static, Result<Answer>>;
}

/// The carriers of all channels. Cheap to clone.
#[derive(Clone)]
pub struct Notifier(Arc<Inner>);

struct Inner {
    parts: Arc<Parts>,
    channels: Mutex<BTreeMap<String, Channel>>,
}

struct Channel {
    board: Arc<Board>,
    _task: Task<()>,
}

/// What carriers work with.
struct Parts {
    settings: Alerts,
    links: Links,
    policy: Policy,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    pools: Pools,
    store: Arc<Store>,
    outlet: Arc<Outlet>,
    write: Port<WriteOwn>,
    post: Option<Arc<dyn Post>>,
}

impl Notifier {
    /// Opens the channels of the settings, and the log.
    #[must_use]
    pub fn start(
        settings: &Settings,
        env: &Env,
        pools: &Pools,
        store: Arc<Store>,
        outlet: Arc<Outlet>,
        write: Port<WriteOwn>,
        post: Option<Arc<dyn Post>>,
    ) -> Notifier {
        let alerts = settings.alerts.clone();
        let millis = Duration::from_millis;
        let parts = Parts {
            links: Links::new(&external_url(settings)),
            policy: Policy {
                first: millis(alerts.retry_first_ms),
                longest: millis(alerts.retry_longest_ms),
                give_up: millis(alerts.retry_for_ms),
            },
            timeout: millis(alerts.send_timeout_ms),
            settings: alerts,
            clock: env.clock.clone(),
            random: env.random.clone(),
            pools: pools.clone(),
            store,
            outlet,
            write,
            post,
        };
        let notifier =
            Notifier(Arc::new(Inner { parts: Arc::new(parts), channels: Mutex::default() }));
        let configured = &settings.alerts.channels;
        if !configured.contains_key(LOG) {
            let (url, secret) = Default::default();
            let log = ChannelDef { name: LOG.to_owned(), kind: ChannelKind::Log, url, secret };
            notifier.open(log, "built in", false);
        }
        for (name, channel) in configured {
            match defined(name, channel) {
                Ok(def) => notifier.open(def, SETTINGS, false),
                Err(error) => error!(channel = name, %error, "a channel cannot be opened"),
            }
        }
        notifier.follow_metadata(false);
        notifier
    }

    /// Whether a channel may be created by a statement.
    ///
    /// # Errors
    /// `already_exists` where the settings have one of that name; `invalid_input` for an address
    /// that its type cannot have; `not_authorized` for one that the settings do not allow.
    pub(crate) fn check(&self, channel: &ChannelDef) -> Result<()> {
        let ChannelDef { name, kind, url, .. } = channel;
        let settings = &self.0.parts.settings;
        if name == LOG || settings.channels.contains_key(name) {
            let text = format!("the settings have a channel {name:?}");
            return Err(Error::new(Code::AlreadyExists, text).with_hint("choose another name"));
        }
        let addressed = *kind != ChannelKind::Log;
        if addressed == url.is_empty() || (!addressed && !channel.secret.is_empty()) {
            let text = format!("a channel of type {} has another address", kind.as_str());
            return Err(Error::new(Code::InvalidInput, text)
                .with_hint("webhook and alertmanager need a url, log has neither url nor secret"));
        }
        let whole = format!("{}/", url.trim_end_matches('/'));
        if addressed && !allowed(&settings.channel_urls, &whole) {
            let text = format!("alerts are not sent to {}", channel.shown_url());
            return Err(Error::new(Code::NotAuthorized, text).with_hint(
                "define the channel in the settings, or name what its address begins with in \
                 alerts.channel_urls",
            ));
        }
        Ok(())
    }

    /// Opens the channels that the metadata has, and closes those that it has no more. `created`
    /// says that those which are new have never been before.
    pub(crate) fn follow_metadata(&self, created: bool) {
        let catalog = self.0.parts.store.catalog();
        let gone: Vec<String> = {
            let channels = self.0.channels.lock();
            let of_sql = channels.iter().filter(|(_, each)| each.board.defined_in() == SQL);
            let gone = of_sql.filter(|(name, _)| !catalog.channels.contains_key(*name));
            gone.map(|(name, _)| name.clone()).collect()
        };
        for name in gone {
            drop(self.0.channels.lock().remove(&name));
            self.0.parts.outlet.close(&name);
        }
        for def in catalog.channels.values() {
            let known = self.0.channels.lock().contains_key(&def.name);
            if !known {
                self.open(ChannelDef::clone(def), SQL, created);
            }
        }
    }

    /// Starts the carrier of a channel, in the place of the one that it has.
    fn open(&self, def: ChannelDef, defined_in: &'static str, fresh: bool) {
        let inner = &self.0;
        let name = def.name.clone();
        let board = Arc::new(Board::new(def, defined_in));
        let mut channels = inner.channels.lock();
        // One carrier at a time takes from a queue.
        drop(channels.remove(&name));
        // Open before anybody asks which channels there are.
        let opened = inner.parts.outlet.open(&name);
        let work = carry(inner.parts.clone(), board.clone(), opened, fresh);
        let task = inner.parts.pools.spawn(Pool::Io, format!("channel {name}"), work);
        channels.insert(name, Channel { board, _task: task });
    }

    /// Follows the alerts that are wanted: from now on, or from after the transition of a number.
    #[must_use]
    pub fn follow(&self, wanted: Matcher, resume: Option<u64>) -> Feed {
        let parts = &self.0.parts;
        let (store, pools) = (parts.store.clone(), parts.pools.clone());
        Feed::new(store, pools, &parts.outlet, wanted, resume, parts.clock.now_ns())
    }

    /// The rows of `system.alert_channels`.
    #[must_use]
    pub fn rows(&self) -> Vec<ChannelRow> {
        let channels = self.0.channels.lock();
        let row = |(name, channel): (&String, &Channel)| {
            channel.board.row(self.0.parts.outlet.waiting(name))
        };
        channels.iter().map(row).collect()
    }

    /// Sets the gauges of what waits, for who reads the metrics.
    pub fn count(&self) {
        for row in self.rows() {
            let gauge = metrics().channels.queued.with_label_values(&[&row.channel]);
            gauge.set(i64::try_from(row.queued).unwrap_or(i64::MAX));
        }
    }

    /// Ends all carriers. What they have not sent is sent after the next start.
    pub fn stop(&self) {
        self.0.channels.lock().clear();
    }
}

/// Runs the carrier of a channel, and another one where it fails.
async fn carry(parts: Arc<Parts>, board: Arc<Board>, mut inbox: Inbox, mut fresh: bool) {
    loop {
        let carrier = Carrier::new(parts.clone(), board.clone(), inbox, fresh);
        let ended = AssertUnwindSafe(carrier.run()).catch_unwind().await;
        let why = match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "a defect; the log has more".to_owned(),
        };
        error!(channel = board.def().name, why, "carrying alerts failed; beginning again");
        board.failed(0, why, parts.clock.now_ns());
        parts.clock.sleep(parts.policy.longest).await;
        inbox = parts.outlet.open(&board.def().name);
        fresh = false;
    }
}

fn defined(name: &str, channel: &AlertChannel) -> Result<ChannelDef> {
    Ok(ChannelDef {
        name: name.to_owned(),
        kind: ChannelKind::from_word(&channel.r#type)?,
        url: channel.url.clone(),
        secret: channel.secret.clone(),
    })
}

/// The address of this server as people reach it, as far as it can know.
fn external_url(settings: &Settings) -> String {
    if !settings.alerts.external_url.is_empty() {
        return settings.alerts.external_url.clone();
    }
    let server = &settings.server;
    let scheme = if server.tls_cert.is_some() { "https" } else { "http" };
    format!("{scheme}://{}:{}", server.http_host, server.http_port)
}
