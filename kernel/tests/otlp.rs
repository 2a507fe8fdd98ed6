//! Traces as a collector receives them: one request through two actors and a thread is one
//! trace, and every step hangs below the one that caused it. A process of its own, because
//! telemetry is set up once a process.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use kymo_config::settings::Observe;
use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
use kymo_kernel::env::real;
use kymo_kernel::message::Message;
use kymo_kernel::observe::{self, Trace, TraceSettings};
use kymo_kernel::pools::{Group, PoolSizes, Pools, thread};
use kymo_kernel::port::{Budget, Port};
use kymo_kernel::span;
use kymo_kernel::supervise::{Spec, Supervisor};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tracing::Instrument;

/// Reads one HTTP request and answers it with 200.
fn serve(mut stream: TcpStream) -> Option<Vec<u8>> {
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
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(answer.as_bytes()).ok()?;
    Some(bytes.split_off(head))
}

/// A collector on a free port: its URL, and what it receives.
fn collector() -> (String, Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (to, received) = channel();
    thread("collector", move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let Some(body) = serve(stream) else { continue };
            let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
            if to.send(request).is_err() {
                return;
            }
        }
    })
    .unwrap();
    (url, received)
}

struct Front {
    keep: Port<Keep>,
}
struct Store {
    journal: Sender<Box<dyn FnOnce() + Send>>,
}
struct Put(u64);
struct Keep(u64);

impl Message for Put {
    type Reply = u64;
}
impl Message for Keep {
    type Reply = u64;
}
impl Actor for Front {}
impl Actor for Store {}

impl Handle<Put> for Front {
    fn handle(&mut self, Put(n): Put, reply: Reply<Put>, cx: &mut Cx<Self>) {
        let keep = self.keep.clone();
        cx.answer(reply, async move { keep.call(Keep(n)).await });
    }
}

/// Hands its work to a thread that is no actor and answers when that calls back.
impl Handle<Keep> for Store {
    fn handle(&mut self, Keep(n): Keep, reply: Reply<Keep>, cx: &mut Cx<Self>) {
        let (trace, poster) = (Trace::here(), cx.poster());
        let commit = trace.child("journal.commit");
        let work = move || {
            commit.run("journal.sync", || ());
            poster.post(move |_, _| trace.run("store.apply", || reply.ok(n + 1)));
            drop(commit);
        };
        self.journal.send(Box::new(work)).unwrap();
    }
}

#[test]
fn one_request_through_actors_and_a_thread_is_one_trace() {
    let (url, received) = collector();
    let settings = Observe { log: "info".to_owned(), log_format: "json".to_owned() };
    let telemetry = observe::init(&settings, TraceSettings::to(url)).unwrap();
    assert!(telemetry.traces());
    assert!(observe::init(&settings, TraceSettings::off()).is_err(), "once a process");

    let sizes = PoolSizes { io: 1, query: 1, background: 1, foreground: 1, arbiters: [1, 1, 1, 1] };
    let pools = Pools::start(sizes).unwrap();
    let supervisor = Supervisor::new(&pools, real::env().clock, |_| {});
    let (journal, jobs) = channel::<Box<dyn FnOnce() + Send>>();
    let journal_thread = pools.thread("journal", move || jobs.into_iter().for_each(|job| job()));
    let spec = Spec::new("store.cpu", "store").on(Group::Writers);
    let store = supervisor.start_once(spec, || Store { journal });
    let keep = store.port(Budget::count(10));
    let front = supervisor.start_once(Spec::new("front", "front"), || Front { keep });
    let put: Port<Put> = front.port(Budget::count(10));

    let request = span!("http.write", bytes = 3);
    observe::join_remote(&request, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let answer = pools.block_on(put.call(Put(1)).instrument(request)).unwrap();
    assert_eq!(answer.unwrap(), 2);
    drop((put, front, store));
    journal_thread.unwrap().join().unwrap();
    pools.stop();
    telemetry.finish();

    let spans = spans(&received);
    let tree: Vec<_> = spans.values().map(|span| path(&spans, span)).collect();
    for expected in [
        "http.write",
        "http.write > front Put",
        "http.write > front Put > store Keep",
        "http.write > front Put > store Keep > journal.commit",
        "http.write > front Put > store Keep > journal.commit > journal.sync",
        "http.write > front Put > store Keep > store.apply",
    ] {
        assert!(tree.iter().any(|path| path == expected), "{expected:?} is not in {tree:?}");
    }
    assert_eq!(spans.len(), 6, "{tree:?}");
    let trace_id = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    assert!(spans.values().all(|span| span.trace_id == trace_id), "the client's trace goes on");
}

/// All spans received, by id; checks the resource on the way.
fn spans(received: &Receiver<ExportTraceServiceRequest>) -> BTreeMap<Vec<u8>, Span> {
    let mut spans = BTreeMap::new();
    let first = received.recv_timeout(Duration::from_secs(20)).unwrap();
    for request in std::iter::once(first).chain(received.try_iter()) {
        for resource in request.resource_spans {
            let attributes = format!("{:?}", resource.resource);
            assert!(attributes.contains("service.name") && attributes.contains("kymo"));
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.insert(span.span_id.clone(), span);
            }
        }
    }
    spans
}

fn path(spans: &BTreeMap<Vec<u8>, Span>, span: &Span) -> String {
    match spans.get(&span.parent_span_id) {
        Some(parent) => format!("{} > {}", path(spans, parent), span.name),
        None => span.name.clone(),
    }
}
