//! The accept loop: bounded connections, TLS, a time for the first request, and a stop that
//! lets requests finish.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::App;
use crate::limits::{Connections, Place};

/// Bytes that the head of a request may have.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long a connection may be silent between two requests. Longer than the intervals at
/// which agents usually send, so that they find it open.
const IDLE: Duration = Duration::from_secs(120);
/// How long the loop pauses when the operating system has no more sockets to give.
const PAUSE: Duration = Duration::from_millis(50);

/// What a client gets while all places are taken, before its request is even read.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n\
    Content-Type: application/json\r\nContent-Length: 73\r\n\r\n\
    {\"status\":\"error\",\"code\":\"limit_reached\",\"error\":\"too many connections\"}\n";

/// A listening socket for HTTP.
pub struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// Binds an address; port 0 takes a free one.
    ///
    /// # Errors
    /// `invalid_settings` naming the address that cannot be had.
    pub async fn bind(host: &str, port: u16, tls: Option<TlsAcceptor>) -> Result<Listener> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let socket = TcpListener::bind((bare, port)).await.map_err(|error| {
            Error::new(Code::Settings, format!("listen for HTTP on {host}:{port}: {error}"))
                .with_hint("choose server.http_host and server.http_port; port 0 takes a free one")
        })?;
        Ok(Listener { socket, tls })
    }

    /// The address in use.
    ///
    /// # Errors
    /// `io_error` where the operating system does not tell.
    pub fn address(&self) -> Result<SocketAddr> {
        self.socket.local_addr().map_err(|error| Error::io("address of the HTTP socket", error))
    }

    /// Serves until `stop`, then lets the requests that are under way finish. Dropping the
    /// future drops every connection.
    pub async fn serve(self, app: App, router: Router, stop: CancelToken) {
        let server = &app.settings.server;
        let shared = Arc::new(Shared {
            router: router.into_service(),
            first_request: Duration::from_millis(server.startup_timeout_ms),
            tls: self.tls,
            stop: stop.clone(),
        });
        let places = Connections::new(server.max_connections);
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.socket.accept() => match accepted {
                    Ok((socket, _)) => match places.admit() {
                        Ok(place) => drop(tasks.spawn(Arc::clone(&shared).connection(socket, place))),
                        Err(_) => refuse(&socket),
                    },
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some(ended) = tasks.join_next() => log_panic(ended),
            }
            metrics().http.connections.set(i64::try_from(places.open()).unwrap_or(i64::MAX));
        }
        drop(self.socket);
        while let Some(ended) = tasks.join_next().await {
            log_panic(ended);
        }
    }
}

fn log_panic(ended: std::result::Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "http connection ended badly");
    }
}

/// Says no without waiting for the client to take it.
fn refuse(socket: &TcpStream) {
    metrics().http.refused_connections.inc();
    let _ = socket.try_write(FULL);
}

/// What all connections have in common.
struct Shared {
    router: axum::routing::RouterIntoService<axum::body::Body>,
    first_request: Duration,
    tls: Option<TlsAcceptor>,
    stop: CancelToken,
}

impl Shared {
    async fn connection(self: Arc<Self>, socket: TcpStream, place: Place) {
        // Answers are small and latency matters more than packets.
        let _ = socket.set_nodelay(true);
        match &self.tls {
            None => self.requests(socket).await,
            Some(tls) => match tokio::time::timeout(self.first_request, tls.accept(socket)).await {
                Ok(Ok(stream)) => self.requests(stream).await,
                Ok(Err(error)) => tracing::debug!(%error, "tls handshake failed"),
                Err(_) => tracing::debug!("tls handshake took too long"),
            },
        }
        drop(place);
    }

    async fn requests(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let asked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&asked);
        let service = self.router.clone().map_request(move |request: hyper::Request<Incoming>| {
            flag.store(true, Ordering::Relaxed);
            request.map(axum::body::Body::new)
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE.max(self.first_request))
            .max_buf_size(MAX_HEAD_BYTES)
            .max_header_size(MAX_HEAD_BYTES);
        let service = TowerToHyperService::new(service);
        // A WebSocket leaves this connection with its socket, and has places of its own.
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let mut connection = pin!(connection);
        let mut first_request = pin!(tokio::time::sleep(self.first_request));
        let (mut stopping, mut begun) = (false, false);
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "http connection broke off");
                    }
                    return;
                }
                () = &mut first_request, if !begun => {
                    begun = true;
                    if !asked.load(Ordering::Relaxed) {
                        return;
                    }
                }
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FULL;

    #[test]
    fn the_refusal_announces_its_length() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("Content-Length: {}\r\n", body.len()))
                || head.ends_with(&format!("Content-Length: {}", body.len())),
            "{}",
            body.len()
        );
    }
}
