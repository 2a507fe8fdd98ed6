//! Counting requests: by route pattern, never by path, so that clients cannot invent labels.

use std::time::Duration;

use axum::http::StatusCode;
use kymo_kernel::observe::metrics;
use tokio::time::Instant;

/// The pattern of a path.
#[must_use]
pub fn route_label(path: &str) -> &'static str {
    const KNOWN: [&str; 20] = [
        "/",
        "/health",
        "/ping",
        "/ready",
        "/stats",
        "/metrics",
        "/write",
        "/api/v2/write",
        "/api/v3/write_lp",
        "/api/v3/query_sql",
        "/sql",
        "/query",
        "/ws",
        "/api/v1/alerts",
        "/api/v1/alerts/stream",
        "/api/v1/rules",
        "/api/v1/plugins",
        "/api/v1/subscribe",
        "/api/v1/backups",
        "/api/v1/wal",
    ];
    match KNOWN.into_iter().find(|known| *known == path) {
        Some(known) => known,
        None if path.starts_with("/write/") => "/write/{database}",
        None if path.starts_with("/api/v1/plugins/") => "/api/v1/plugins/{name}",
        None if path.starts_with("/api/v1/backups/") => "/api/v1/backups/{number}",
        None => "other",
    }
}

/// Times one request.
pub struct Timer {
    route: &'static str,
    start: Instant,
}

impl Timer {
    /// Starts now.
    #[must_use]
    pub fn start(route: &'static str) -> Self {
        Timer { route, start: Instant::now() }
    }

    /// Counts the request; the time is that until the head of the answer.
    pub fn stop(self, status: StatusCode) {
        let http = &metrics().http;
        let took: Duration = self.start.elapsed();
        http.requests.with_label_values(&[self.route, status.as_str()]).inc();
        http.request_seconds.with_label_values(&[self.route]).observe(took.as_secs_f64());
    }
}
