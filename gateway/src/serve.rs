//! Opens the doors of a running system, and closes them in order.
//!
//! When the stop begins, no connection is accepted any more, idle ones end, and new requests
//! are told to come back; requests under way go on. They have until statements and writes
//! have had their time, then what is left is cut.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use kymo_actors::System;
use kymo_config::Settings;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::message::Ddl;
use kymo_kernel::pools::{Pool, Task};
use kymo_kernel::shutdown::Phase;
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::auth::first_start::{FirstStart, administrator};
use crate::auth::{Authenticator, check_open_door};
use crate::http::{self, App};
use crate::pgwire;
use crate::tls;

/// A system whose doors are open. Dropping it closes them at once.
pub struct Serving {
    /// Where HTTP is served.
    pub http_addr: SocketAddr,
    /// Where the PostgreSQL wire protocol is served.
    pub pg_addr: SocketAddr,
    /// The administrator, where this start made or changed it.
    pub first_start: Option<FirstStart>,
    _doors: Arc<Doors>,
}

/// The tasks that serve.
struct Doors {
    http: Mutex<Option<Task<()>>>,
    pg: Mutex<Option<Task<()>>>,
}

/// Makes the administrator where there is none, binds both ports and serves until the
/// system's shutdown.
///
/// # Errors
/// `invalid_settings` for addresses that cannot be had, certificates that cannot be used, or
/// authentication switched off on an address that others can reach.
pub async fn serve(system: System, settings: Arc<Settings>) -> Result<Serving> {
    check_open_door(&settings)?;
    let (door, first_start) = open_accounts(&system, &settings).await?;
    let disk = &*system.env().disk;
    let server = &settings.server;
    let http_tls = tls::acceptor(server, disk, tls::ALPN_HTTP)?;
    let pg_tls = tls::acceptor(server, disk, tls::ALPN_PG)?;
    let http_listener = http::serve::Listener::bind(&server.http_host, server.http_port, http_tls);
    let http_listener = http_listener.await?;
    let pg_listener = bind_pg(&server.pg_host, server.pg_port).await?;
    let http_addr = http_listener.address()?;
    let pg_addr =
        pg_listener.local_addr().map_err(|error| Error::io("address of the pg socket", error))?;

    let stop = CancelToken::new();
    let app = App::new(Arc::new(system.clone()), Arc::clone(&settings), door.clone());
    let router = http::router(app.clone());
    let gate = pgwire::Gate::new(
        Arc::new(system.clone()),
        door,
        Arc::clone(&settings),
        Arc::clone(&system.env().clock),
        Arc::clone(&system.env().random),
        pg_tls,
    );
    let pools = system.pools();
    let http_task =
        pools.spawn(Pool::Io, "http", http_listener.serve(app.clone(), router, stop.clone()));
    let pg_task = pools.spawn(Pool::Io, "pg", pgwire::serve(pg_listener, gate, stop.clone()));
    let doors =
        Arc::new(Doors { http: Mutex::new(Some(http_task)), pg: Mutex::new(Some(pg_task)) });
    plan_shutdown(&system, app, stop, &doors);
    Ok(Serving { http_addr, pg_addr, first_start, _doors: doors })
}

/// The authenticator, and the administrator where one had to be made. Hashes passwords, so
/// it leaves the sockets' threads.
async fn open_accounts(
    system: &System,
    settings: &Arc<Settings>,
) -> Result<(Authenticator, Option<FirstStart>)> {
    let (accounts, settings) = (system.clone(), Arc::clone(settings));
    let made = system.pools().foreground("administrator", move || {
        let random = &*accounts.env().random;
        let first = administrator(&settings, &accounts, random)?;
        let door = Authenticator::new(&settings, Arc::new(accounts.clone()), random)?;
        Ok::<_, Error>((door, first))
    });
    let (door, first) = made
        .await
        .map_err(|error| Error::internal(format!("make the administrator: {error}")))??;
    if let Some(first) = &first {
        system.ddl().call(Ddl::PutUser(first.user.clone())).await?;
    }
    Ok((door, first))
}

async fn bind_pg(host: &str, port: u16) -> Result<TcpListener> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    TcpListener::bind((bare, port)).await.map_err(|error| {
        Error::new(
            Code::Settings,
            format!("listen for the PostgreSQL protocol on {host}:{port}: {error}"),
        )
        .with_hint("choose server.pg_host and server.pg_port; port 0 takes a free one")
    })
}

/// How much of the statements' time is left to the query side to cut what does not end.
const MARGIN: Duration = Duration::from_millis(500);
/// How long answers may take to leave once everything else has stopped.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn plan_shutdown(system: &System, app: App, stop: CancelToken, doors: &Arc<Doors>) {
    let plan = system.shutdown_plan();
    let statements = Duration::from_millis(app.settings.shutdown.statements_ms);
    plan.on(Phase::Doors, "doors", move || async move {
        app.drain();
        stop.cancel();
        Ok(())
    });
    // Those that are not done by then are not late: writes are answered in a later phase.
    let waiting = Arc::clone(doors);
    plan.on(Phase::Statements, "requests", move || async move {
        let _ = timeout(statements.saturating_sub(MARGIN), waiting.closed()).await;
        Ok(())
    });
    let last = Arc::clone(doors);
    plan.on(Phase::Last, "connections", move || async move {
        let _ = timeout(LAST_WORDS, last.closed()).await;
        drop(last.http.lock().take());
        drop(last.pg.lock().take());
        Ok(())
    });
}

impl Doors {
    /// Completes when the last connection of both doors is gone.
    async fn closed(&self) {
        for door in [&self.http, &self.pg] {
            std::future::poll_fn(|cx| match door.lock().as_mut() {
                Some(task) => Pin::new(task).poll(cx).map(drop),
                None => Poll::Ready(()),
            })
            .await;
            *door.lock() = None;
        }
    }
}
