//! Log lines to standard error, as text for people or JSON for machines, and the panic hook
//! that puts panics into the same log.

use std::io::IsTerminal;
use std::sync::Once;

use kymo_config::settings::Observe;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::error::{Code, Error, Result};
use crate::observe::traces::{TRACE_TARGET, TraceSettings, Traces};

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Logs and traces of this process, once they are set up.
pub struct Telemetry {
    traces: Option<Traces>,
}

impl Telemetry {
    /// Sends what is left of the traces, waiting for at most a second. Blocks: not for
    /// asynchronous code. Belongs to the end of the last phase of the shutdown.
    pub fn finish(&self) {
        if let Some(traces) = &self.traces {
            traces.finish();
        }
    }

    /// Whether traces are sent.
    #[must_use]
    pub fn traces(&self) -> bool {
        self.traces.is_some()
    }
}

/// Sets up logs as the settings say, and traces where `traces` asks for them. Once a process.
///
/// # Errors
/// [`Code::Settings`] for a filter or an endpoint that cannot be read, [`Code::Internal`] the
/// second time.
pub fn init(settings: &Observe, traces: TraceSettings) -> Result<Telemetry> {
    let warnings = traces.warnings.clone();
    let traces = Traces::start(traces)?;
    let mut layers: Vec<BoxedLayer> = vec![lines(settings)?];
    if let Some(traces) = &traces {
        layers.push(traces.layer());
    }
    tracing_subscriber::registry().with(layers).try_init().map_err(|error| {
        Error::internal(format!("set up logs: {error}")).with_hint("set them up once a process")
    })?;
    log_panics();
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(Telemetry { traces })
}

fn lines(settings: &Observe) -> Result<BoxedLayer> {
    let unusable = |problem: String| {
        Error::new(Code::Settings, format!("observe.log = {:?}: {problem}", settings.log))
            .with_hint("use a level or targets with levels, such as info,kymo_kernel=debug")
    };
    let filter = EnvFilter::try_new(&settings.log).map_err(|error| unusable(error.to_string()))?;
    // Spans of traces are not for log lines; switched off here, they cost nothing without OTLP.
    let no_spans = format!("{TRACE_TARGET}=off").parse();
    let filter = filter.add_directive(no_spans.map_err(|_| unusable(TRACE_TARGET.to_owned()))?);
    let lines = fmt::layer().with_writer(std::io::stderr);
    Ok(match settings.log_format.as_str() {
        "text" => lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed(),
        "json" => lines.json().flatten_event(true).with_filter(filter).boxed(),
        other => {
            let text = format!("observe.log_format = {other:?} is not known");
            return Err(Error::new(Code::Settings, text).with_hint("use text or json"));
        }
    })
}

/// Panics become log lines that name the thread and the place.
fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let thread = std::thread::current();
            let thread = thread.name().unwrap_or("unnamed");
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let panic = info.payload_as_str().unwrap_or("panic without a text");
            let backtrace = std::backtrace::Backtrace::capture();
            if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
                tracing::error!(thread, place, panic, %backtrace, "panic");
            } else {
                tracing::error!(thread, place, panic, "panic");
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(log: &str, log_format: &str) -> Observe {
        Observe { log: log.to_owned(), log_format: log_format.to_owned() }
    }

    #[test]
    fn filters_and_formats_are_checked() {
        assert!(lines(&settings("info,kymo_kernel=debug", "text")).is_ok());
        assert!(lines(&settings("warn", "json")).is_ok());
        let filter = lines(&settings("info,kymo=loud", "text")).map(drop).unwrap_err();
        assert_eq!(filter.code(), Code::Settings);
        assert!(filter.message().contains("kymo=loud"), "{filter}");
        let format = lines(&settings("info", "xml")).map(drop).unwrap_err();
        assert!(format.message().contains("xml"), "{format}");
    }
}
