//! Traces over OTLP, for those who ask for them by the standard `OTEL_…` variables.
//!
//! A request is one trace: the gateway opens a span, ports carry it to actors, [`Trace`]
//! carries it to the journal's thread and back. Every span of ours from level `info` up is
//! sent. Steps on hot paths are made with [`span!`](crate::span), whose target keeps them out
//! of the log: without an exporter they do not exist, and making one costs a check of a flag.
//!
//! ```
//! use kymo_kernel::observe::Trace;
//! use kymo_kernel::span;
//!
//! let request = span!("http.write", bytes = 1024);
//! let trace = request.in_scope(Trace::here); // rides in a message or a closure …
//! let commit = trace.child("journal.commit"); // … and goes on wherever that is handled
//! drop(commit); // its duration ends here
//! ```

use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, TracerProviderBuilder};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};

use crate::error::{Code, Error, Result};

/// Target of spans that are for traces only. The literal in [`span!`](crate::span) is equal.
pub(crate) const TRACE_TARGET: &str = "kymo::trace";

/// How long [`Traces::finish`] may take.
const FINISH: Duration = Duration::from_secs(1);

/// Makes a span of a trace, with fields: `span!("http.write", bytes = 10)`. Its parent is the
/// current span, or the one given first as `parent: &span`.
#[macro_export]
macro_rules! span {
    (parent: $parent:expr, $name:literal $($fields:tt)*) => {
        $crate::__tracing::info_span!(target: "kymo::trace", parent: $parent, $name $($fields)*)
    };
    ($name:literal $($fields:tt)*) => {
        $crate::__tracing::info_span!(target: "kymo::trace", $name $($fields)*)
    };
}

/// Whether and where traces are sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceSettings {
    enabled: bool,
    endpoint: Option<String>,
    named: bool,
    pub(crate) warnings: Vec<String>,
}

impl TraceSettings {
    /// No traces.
    #[must_use]
    pub fn off() -> TraceSettings {
        TraceSettings::default()
    }

    /// Traces to this full URL, whatever the environment says.
    #[must_use]
    pub fn to(url: impl Into<String>) -> TraceSettings {
        TraceSettings { enabled: true, endpoint: Some(url.into()), ..TraceSettings::default() }
    }

    /// What the environment of the process asks for.
    #[must_use]
    pub fn from_env() -> TraceSettings {
        TraceSettings::from_variables(|name| std::env::var(name).ok())
    }

    /// What these variables ask for: on, if an endpoint is named and nothing switches it off.
    /// Headers, time limits, sampling and batching are read by the OpenTelemetry libraries.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> TraceSettings {
        let get = |name: &str| {
            let value = variable(name)?.trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let either = |signal: &str, general: &str| get(signal).or_else(|| get(general));
        let disabled =
            get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let exporter = get("OTEL_TRACES_EXPORTER");
        let endpoint = either("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT");
        let protocol = either("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL");
        let enabled = match exporter.as_deref() {
            _ if disabled => false,
            Some("otlp") => true,
            Some(_) => false,
            None => endpoint.is_some(),
        };
        let mut settings = TraceSettings { enabled, ..TraceSettings::default() };
        settings.named = get("OTEL_SERVICE_NAME").is_some()
            || get("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|all| all.contains("service.name="));
        if !disabled && let Some(exporter) = exporter.filter(|it| it != "otlp" && it != "none") {
            settings.warnings.push(format!(
                "traces are not sent: OTEL_TRACES_EXPORTER={exporter} is not offered, use otlp"
            ));
        }
        if enabled && let Some(protocol) = protocol.filter(|it| it != "http/protobuf") {
            settings.warnings.push(format!(
                "traces are sent as http/protobuf: OTLP over {protocol} is not offered"
            ));
        }
        settings
    }
}

/// The exporter of traces, with its own thread and queue.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts the exporter where it is wanted.
    pub(crate) fn start(settings: TraceSettings) -> Result<Option<Traces>> {
        if !settings.enabled {
            return Ok(None);
        }
        let mut resource = Resource::builder();
        if !settings.named {
            resource = resource.with_service_name("kymo");
        }
        let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider =
            SdkTracerProvider::builder().with_resource(resource.with_attribute(version).build());
        Ok(Some(Traces { provider: export(provider, settings.endpoint)?.build() }))
    }

    /// The layer that turns our spans, and no events, into spans of a trace.
    pub(crate) fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("kymo"))
            .with_location(false)
            .with_threads(true)
            .with_filter(filter_fn(|metadata| {
                metadata.is_span()
                    && metadata.target().starts_with("kymo")
                    && *metadata.level() <= tracing::Level::INFO
            }))
            .boxed()
    }

    /// Sends what is left.
    pub(crate) fn finish(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FINISH) {
            tracing::warn!(%error, "traces were not sent in full");
        }
    }
}

/// Sends what the provider collects, to this address or to that of the environment.
#[cfg(feature = "otlp")]
fn export(provider: TracerProviderBuilder, to: Option<String>) -> Result<TracerProviderBuilder> {
    use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};

    let mut exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
    if let Some(endpoint) = to {
        exporter = exporter.with_endpoint(endpoint);
    }
    let exporter = exporter.build().map_err(|error| {
        Error::new(Code::Settings, format!("start the trace exporter: {error}"))
            .with_hint("check OTEL_EXPORTER_OTLP_ENDPOINT and its companions")
    })?;
    Ok(provider.with_batch_exporter(exporter))
}

#[cfg(not(feature = "otlp"))]
fn export(_: TracerProviderBuilder, _: Option<String>) -> Result<TracerProviderBuilder> {
    Err(Error::new(Code::Unsupported, "traces cannot be sent: built without OTLP")
        .with_hint("build with the feature `otlp` of kymo-kernel"))
}

/// The trace that a piece of work belongs to, to be carried to another thread or kept in a
/// queue. Cheap to clone; empty, and free, where no traces are sent.
#[derive(Debug, Clone)]
pub struct Trace(Span);

impl Default for Trace {
    fn default() -> Self {
        Trace::none()
    }
}

impl Trace {
    /// The trace of the current span.
    #[must_use]
    pub fn here() -> Trace {
        Trace(Span::current())
    }

    /// No trace.
    #[must_use]
    pub fn none() -> Trace {
        Trace(Span::none())
    }

    /// Whether anything is recorded.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.0.is_disabled()
    }

    /// A step within this trace, from now until the last clone of it is dropped. Nothing,
    /// where there is no trace: steps alone make none.
    #[must_use]
    pub fn child(&self, name: &'static str) -> Trace {
        if !self.is_on() {
            return Trace::none();
        }
        Trace(crate::span!(parent: &self.0, "step", otel.name = name))
    }

    /// Runs something as a step within this trace.
    pub fn run<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let step = self.child(name);
        if step.is_on() { step.0.in_scope(work) } else { self.0.in_scope(work) }
    }

    /// The span, for code that enters or extends it.
    #[must_use]
    pub fn span(&self) -> &Span {
        &self.0
    }
}

/// Makes a span that has not been entered yet part of the trace that a client has begun, from
/// the value of its `traceparent` header (W3C Trace Context). A broken value is ignored, as
/// that standard wants it.
pub fn join_remote(span: &Span, traceparent: &str) {
    if span.is_disabled() {
        return;
    }
    let carrier =
        std::collections::HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let remote = TraceContextPropagator::new().extract(&carrier);
    if let Err(error) = span.set_parent(remote) {
        tracing::debug!(%error, "remote trace not joined");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> TraceSettings {
        TraceSettings::from_variables(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");

    #[test]
    fn traces_are_on_only_where_somebody_asks() {
        assert!(!read(&[]).enabled);
        assert!(!read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).enabled);
        assert!(read(&[ENDPOINT]).enabled);
        assert!(read(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x/v1/traces")]).enabled);
        assert!(read(&[("OTEL_TRACES_EXPORTER", "otlp")]).enabled);
        assert!(!read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]).enabled);
        assert!(!read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]).enabled);
        assert!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "1")]).enabled, "only true counts");
    }

    #[test]
    fn what_is_not_offered_is_said() {
        let grpc = read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
        assert!(grpc.enabled && grpc.warnings[0].contains("grpc"));
        let zipkin = read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "zipkin")]);
        assert!(!zipkin.enabled && zipkin.warnings[0].contains("zipkin"));
        assert!(read(&[ENDPOINT]).warnings.is_empty());
    }

    #[test]
    fn without_an_exporter_a_trace_is_nothing() {
        let trace = crate::span!("http.write", bytes = 10).in_scope(Trace::here);
        assert!(!trace.is_on());
        assert!(!trace.child("journal.commit").is_on());
        assert_eq!(trace.run("work", || 7), 7);
    }

    #[test]
    fn a_bad_endpoint_is_a_settings_error() {
        let error = Traces::start(TraceSettings::to("not a url")).map(drop).unwrap_err();
        assert_eq!(error.code(), Code::Settings);
    }
}
