//! The accept loop: places for connections, a time to log in, and a polite end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::{Clock, Random};
use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::backend::Backend;
use super::cancel::Registry;
use super::connection::Connection;
use super::failure;
use super::negotiate::{Opening, open};
use super::startup::admit;
use super::wire::{Broken, Wire};
use crate::auth::Authenticator;
use crate::limits::{Connections, Place};

/// Connections over the limit that are told so at a time; more are just closed.
const REFUSALS: usize = 32;
/// Pause after an error of accepting, such as running out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every connection shares.
pub struct Gate {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) authenticator: Authenticator,
    pub(super) settings: Arc<Settings>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
    pub(super) registry: Arc<Registry>,
    pub(super) stop: CancelToken,
    tls: Option<TlsAcceptor>,
    places: Connections,
    refusals: Connections,
}

impl Gate {
    /// A gate to this system.
    #[must_use]
    pub fn new(
        backend: Arc<dyn Backend>,
        authenticator: Authenticator,
        settings: Arc<Settings>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let places = Connections::new(settings.server.max_connections);
        Gate {
            backend,
            authenticator,
            settings,
            clock,
            random,
            registry: Arc::default(),
            stop: CancelToken::new(),
            tls,
            places,
            refusals: Connections::new(REFUSALS),
        }
    }
}

/// Serves connections until `stop`; then lets each end its statement, and returns when the
/// last one is gone. Dropping the future closes those that are left.
pub async fn serve(listener: TcpListener, mut gate: Gate, stop: CancelToken) {
    gate.stop = stop.clone();
    let gate = Arc::new(gate);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => accept(&gate, socket, peer, &mut connections),
                Err(error) => {
                    warn!(%error, "cannot accept connection");
                    gate.clock.sleep(ACCEPT_PAUSE).await;
                }
            },
        }
        let open = i64::try_from(gate.places.open()).unwrap_or(i64::MAX);
        metrics().pg.connections.set(open);
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    metrics().pg.connections.set(0);
}

fn accept(gate: &Arc<Gate>, socket: TcpStream, peer: SocketAddr, connections: &mut JoinSet<()>) {
    let place = gate.places.admit();
    let refusal = match &place {
        Ok(_) => None,
        // Also the connection of a cancel request comes this way when all places are taken.
        Err(error) => {
            metrics().pg.refused_connections.inc();
            match gate.refusals.admit() {
                Ok(refusal) => Some((refusal, error.clone())),
                Err(_) => return,
            }
        }
    };
    let gate = Arc::clone(gate);
    connections.spawn(async move {
        let full = refusal.as_ref().map(|(_, error)| error.clone());
        let end = Box::pin(connection(&gate, socket, place.ok(), full)).await;
        drop(refusal);
        match end {
            Ok(()) => debug!(%peer, "connection closed"),
            Err(Broken::Gone(error)) => debug!(%peer, %error, "connection lost"),
            Err(Broken::Refused(error)) => info!(%peer, %error, "connection refused"),
        }
    });
}

async fn connection(
    gate: &Arc<Gate>,
    socket: TcpStream,
    place: Option<Place>,
    full: Option<Error>,
) -> Result<(), Broken> {
    socket.set_nodelay(true)?;
    let limit = Duration::from_millis(gate.settings.server.startup_timeout_ms);
    let started = tokio::select! {
        started = start(gate, socket, full) => started?,
        () = gate.clock.sleep(limit) => return Err(Broken::Refused(
            Error::new(Code::Deadline, "no log-in within server.startup_timeout_ms"),
        )),
        () = gate.stop.cancelled() => return Ok(()),
    };
    let Some(mut connection) = started else { return Ok(()) };
    let end = connection.serve().await;
    drop(place);
    end
}

/// Negotiates and logs in; `None` where that was all that was wanted.
async fn start(
    gate: &Arc<Gate>,
    socket: TcpStream,
    full: Option<Error>,
) -> Result<Option<Connection>, Broken> {
    match open(socket, gate.tls.as_ref()).await? {
        Opening::Cancel { pid, secret } => {
            let known = gate.registry.cancel(pid, &secret);
            debug!(pid, known, "cancel request");
            Ok(None)
        }
        Opening::Startup { wire, minor, parameters } => {
            if let Some(error) = full {
                return Err(refuse(wire, error).await);
            }
            let admitted = admit(gate, wire, minor, parameters).await?;
            Ok(Some(Connection::new(Arc::clone(gate), admitted)))
        }
    }
}

async fn refuse(mut wire: Wire, error: Error) -> Broken {
    wire.put(&failure::fatal(&error));
    wire.close().await;
    Broken::Refused(error)
}
