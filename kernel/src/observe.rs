//! What the process tells about itself: metrics, logs and traces.
//!
//! [`metrics`] is the one set of metric families, as typed structs that other files count
//! into; [`text`] renders them for Prometheus. [`init`] sets up log lines and, where the
//! standard `OTEL_…` variables ask for them, traces over OTLP; [`Trace`] carries a trace to
//! another thread. Nothing here decides anything.

mod logs;
mod metrics;
mod ports;
mod traces;

pub use logs::{Telemetry, init};
pub use traces::{Trace, TraceSettings, join_remote};

pub use metrics::{
    ActorMetrics, HttpMetrics, IngestMetrics, JournalMetrics, Metrics, PgMetrics, QueryMetrics,
    StoreMetrics, metrics,
};

use prometheus::TextEncoder;

use crate::error::{Error, Result};
use crate::port::PortStats;

/// All metrics in Prometheus' text format, with those of the ports given.
///
/// # Errors
/// [`Code::Internal`](crate::Code::Internal) if a family cannot be rendered.
pub fn text(ports: &[PortStats]) -> Result<String> {
    let mut families = metrics().gather();
    families.extend(ports::families(ports));
    TextEncoder::new()
        .encode_to_string(&families)
        .map_err(|error| Error::internal(format!("render metrics: {error}")))
}
