//! A collector of traces: takes OTLP over HTTP on a free port and keeps every span.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

type Spans = BTreeMap<Vec<u8>, Span>;

/// Listens until the test ends.
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Spans>>,
}

impl Collector {
    /// Starts one.
    #[must_use]
    pub fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let spans = Arc::<Mutex<Spans>>::default();
        let kept = Arc::clone(&spans);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if let Some(body) = receive(stream) {
                    let request = ExportTraceServiceRequest::decode(body.as_slice());
                    keep(&kept, request.expect("a trace export"));
                }
            }
        });
        Collector { address, spans }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` has to say.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every span of a trace as the names from its root to itself, sorted. A span whose
    /// parent is elsewhere counts as a root.
    #[must_use]
    pub fn paths(&self, trace: &[u8; 16]) -> Vec<String> {
        let spans = self.spans.lock().unwrap();
        let of_trace = spans.values().filter(|span| span.trace_id == trace);
        let mut paths: Vec<_> = of_trace.map(|span| path(&spans, span)).collect();
        paths.sort();
        paths
    }

    /// The trace of the first root with this name.
    #[must_use]
    pub fn trace_of(&self, root: &str) -> Option<[u8; 16]> {
        let spans = self.spans.lock().unwrap();
        let found =
            spans.values().find(|span| span.name == root && span.parent_span_id.is_empty())?;
        found.trace_id.as_slice().try_into().ok()
    }
}

fn keep(spans: &Mutex<Spans>, request: ExportTraceServiceRequest) {
    let scopes = request.resource_spans.into_iter().flat_map(|resource| {
        let about = format!("{:?}", resource.resource);
        assert!(about.contains("service.name") && about.contains("kymo"), "{about}");
        resource.scope_spans
    });
    for span in scopes.flat_map(|scope| scope.spans) {
        spans.lock().unwrap().insert(span.span_id.clone(), span);
    }
}

fn path(spans: &Spans, span: &Span) -> String {
    match spans.get(&span.parent_span_id) {
        Some(parent) => format!("{} > {}", path(spans, parent), span.name),
        None => span.name.clone(),
    }
}

/// Reads one request and answers it with 200; its body.
fn receive(mut stream: TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    let (head, length) = loop {
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
        assert!(head.starts_with("post /v1/traces "), "{head}");
        break (end + 4, length.trim().parse::<usize>().ok()?);
    };
    while bytes.len() < head + length {
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok()?;
    Some(bytes.split_off(head))
}
