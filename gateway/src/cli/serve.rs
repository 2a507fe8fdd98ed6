//! A server in this process, from settings to its last log line.
//!
//! Signals, phases and exit codes meet here. `SIGTERM` and `SIGINT` begin the ordered stop,
//! a second one ends the process at once; a store that refuses to go on ends it with one
//! line and a code that is not 0, and the next start recovers.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use kymo_actors::System;
use kymo_actors::boot::Clients;
use kymo_actors::plugin_manager::Download;
use kymo_config::Settings;
use kymo_kernel::bucket;
use kymo_kernel::env::failpoint::{self, Holds};
use kymo_kernel::env::real;
use kymo_kernel::message::Ddl;
use kymo_kernel::observe::{self, Telemetry, TraceSettings};
use kymo_kernel::pools::{PoolSizes, Pools};
use kymo_kernel::schema::TableName;
use kymo_kernel::{Code, Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;

use super::credentials::{self, Login};
use super::print;
use crate::Serving;
use crate::auth::{accounts, password};
use crate::download::Client;
use crate::notify::Sender;

/// The exit code of a process that a second signal ended, as shells report it.
const INTERRUPTED: i32 = 130;

/// The signal that has files read, or, where there are none, ends the server in order.
const HANGUP: &str = "SIGHUP";

/// A server that listens.
pub struct Running {
    settings: Arc<Settings>,
    pools: Pools,
    system: System,
    serving: Serving,
    signals: Mutex<Signals>,
    telemetry: Telemetry,
}

/// Starts everything and says where it listens.
///
/// # Errors
/// What keeps the store from opening or the ports from being bound.
pub fn start(settings: Settings) -> Result<Running> {
    let settings = Arc::new(settings);
    let telemetry = observe::init(&settings.observe, TraceSettings::from_env())?;
    let pools = Pools::start(PoolSizes::of(&settings, PoolSizes::cores()))?;
    let signals = pools.block_on(async { Signals::new() })??;
    let folder = &settings.server.data_dir;
    // Steps that fail on purpose are those of the store, wherever its files lie.
    let env = bucket::attached(real::env(), folder, &settings.storage)?;
    let env = failpoint::armed(env, folder, Holds::Store)?;
    let clients = Clients {
        download: Client::new(&settings.plugins)?.map(|it| Arc::new(it) as Arc<dyn Download>),
        post: Some(Arc::new(Sender::new(&settings.alerts, Arc::clone(&env.clock))?)),
    };
    let system = System::boot_with(Arc::clone(&settings), env, pools.clone(), clients)?;
    let serving = pools.block_on(crate::serve(system.clone(), Arc::clone(&settings)))??;
    let running =
        Running { settings, pools, system, serving, signals: Mutex::new(signals), telemetry };
    running.announce()?;
    Ok(running)
}

impl Running {
    /// Where it serves the PostgreSQL wire protocol, as clients on this machine reach it.
    pub fn pg(&self) -> SocketAddr {
        reachable(self.serving.pg_addr)
    }

    /// Where it serves HTTP, as clients on this machine reach it.
    pub fn url(&self) -> String {
        let scheme = if self.settings.server.tls_cert.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", reachable(self.serving.http_addr))
    }

    /// The file of its certificate, where it has one.
    pub fn certificate(&self) -> Option<&Path> {
        self.settings.server.tls_cert.as_deref()
    }

    /// Whether a table exists.
    pub fn has_table(&self, name: &TableName) -> bool {
        self.system.catalog().table(name).is_some()
    }

    /// The settings that hold.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Gives an account a new password and a new token, and creates it where it is missing.
    /// Nobody has to log in where auth is off.
    ///
    /// # Errors
    /// The account cannot be stored.
    pub fn account(&self, name: &str) -> Result<Login> {
        if !self.settings.auth.enabled {
            return Ok(Login::default());
        }
        let random = &*self.system.env().random;
        let (password, token) = (password::generate(random), password::generate_token(random));
        let user = accounts::make(name, &password, true, &[&token], random)?;
        self.pools.block_on(self.system.ddl().call(Ddl::PutUser(user)))??;
        Ok(Login { user: Some(name.to_owned()), password: Some(password), token: Some(token) })
    }

    /// Prints what the first start made, keeps it for `kymo query`, and prints the line that
    /// says where the server listens.
    fn announce(&self) -> Result<()> {
        if let Some(first) = &self.serving.first_start {
            let tls = self.settings.server.tls_cert.is_some();
            print(&first.welcome(self.serving.http_addr, self.serving.pg_addr, tls))?;
            let login = Login {
                user: Some(first.user.name.clone()),
                password: None,
                token: first.token().map(str::to_owned),
            };
            // Convenience only: the lines above say the same.
            if let Err(error) = credentials::remember(&self.url(), login) {
                tracing::warn!(%error, "credentials are not kept for the command line");
            }
        }
        let (http, pg) = (self.serving.http_addr, self.serving.pg_addr);
        print(&format!("listening http={http} pg={pg}\n"))
    }

    /// Whether there are files that a signal has read again. Without any, a terminal that is
    /// closed ends what was started in it.
    fn has_files(&self) -> bool {
        !self.settings.alerts.rules_dir.as_os_str().is_empty()
    }

    /// Waits for a signal and stops in order, or for the store to refuse to go on. `SIGHUP` has
    /// files of alert rules read, where there are any.
    ///
    /// # Errors
    /// Why the store refused, or which parts did not stop in time.
    pub fn until_signal(&self) -> Result<()> {
        let outcome = self.pools.block_on(async {
            let mut signals = self.signals.lock().await;
            let name = loop {
                tokio::select! {
                    name = signals.next() => match name {
                        HANGUP if self.has_files() => {
                            tracing::info!(signal = name, "reading files of alert rules");
                            self.system.reload_alert_rules();
                        }
                        _ => break name,
                    },
                    reason = self.system.fatal() => return Err(reason),
                }
            };
            tracing::info!(signal = name, "stopping");
            let stopped = self.system.shutdown();
            tokio::select! {
                report = stopped => Ok(report),
                name = signals.second() => {
                    tracing::warn!(signal = name, "second signal, ending at once");
                    std::process::exit(INTERRUPTED);
                }
            }
        })?;
        match outcome {
            Ok(report) => {
                self.telemetry.finish();
                self.pools.stop();
                if report.is_clean() {
                    Ok(())
                } else {
                    Err(Error::new(Code::Deadline, "not everything stopped in time")
                        .with_hint("the log names who was late; nothing acknowledged is lost"))
                }
            }
            Err(reason) => {
                // Whoever still runs must not be waited for: the durable path is gone.
                Err(reason.context("the store refuses to go on"))
            }
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| Error::io("listen for signals", error));
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => HANGUP,
        }
    }

    /// The next signal that ends a server which is stopping.
    async fn second(&mut self) -> &'static str {
        loop {
            match self.next().await {
                HANGUP => {}
                name => return name,
            }
        }
    }
}

/// The address to connect to: that of this machine where all are listened on.
fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    let local: std::net::IpAddr = match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(local, address.port())
}
