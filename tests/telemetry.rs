//! One write and one query, each followed from the socket to the disk as one trace, by a
//! collector that the standard variables name; and metrics that count them.

use kymo_tests::collector::Collector;
use kymo_tests::{Options, Server};
use reqwest::Method;

const WRITE: [u8; 16] = *b"\x0a\xf7\x65\x19\x16\xcd\x43\xdd\x84\x48\xeb\x21\x1c\x80\x31\x9c";
const QUERY: [u8; 16] = *b"\x1b\xf7\x65\x19\x16\xcd\x43\xdd\x84\x48\xeb\x21\x1c\x80\x31\x9d";

/// The header by which a client makes a request part of its own trace.
fn traceparent(trace: &[u8; 16]) -> String {
    let hex: String = trace.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("00-{hex}-b7ad6b7169203331-01")
}

/// Whether some path leads through these steps, in this order.
fn leads(paths: &[String], steps: &[&str]) -> bool {
    paths.iter().any(|path| {
        let mut names = path.split(" > ");
        steps.iter().all(|step| names.any(|name| name == *step))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_and_a_query_are_each_one_trace_from_socket_to_disk() {
    let collector = Collector::start();
    let options = Options::new()
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .environment("OTEL_SERVICE_NAME", "kymo-under-test");
    let mut server = Server::start(options);
    let write = server
        .request(Method::POST, "/write?db=kymo")
        .header("traceparent", traceparent(&WRITE))
        .body("cpu,host=a usage=1 1000000000\n");
    assert_eq!(write.send().await.unwrap().status(), 204);
    let query = server
        .request(Method::GET, "/api/v3/query_sql?db=kymo&q=SELECT%20usage%20FROM%20cpu")
        .header("traceparent", traceparent(&QUERY));
    assert!(query.send().await.unwrap().text().await.unwrap().contains('1'));
    let pg = server.pg().await;
    pg.simple_query("SELECT usage FROM cpu").await.unwrap();
    drop(pg);
    assert!(server.terminate().success());

    let paths = collector.paths(&WRITE);
    let root = "POST /write";
    for steps in [
        &[root, "parse"][..],
        &[root, "write", "ingest Write", "writer Append", "journal.commit", "journal.write"],
        &[root, "write", "ingest Write", "writer Append", "writer.apply"],
    ] {
        assert!(leads(&paths, steps), "{steps:?} is not in {paths:#?}");
    }
    // A count would be answered from what is known of the table, without reading it.
    let paths = collector.paths(&QUERY);
    let steps = ["GET /api/v3/query_sql", "query", "query Query", "run query", "scan"];
    assert!(leads(&paths, &steps), "{steps:?} is not in {paths:#?}");
    let trace = collector.trace_of("pg query").expect("a trace of the wire protocol");
    let paths = collector.paths(&trace);
    assert!(leads(&paths, &["pg query", "run query", "scan"]), "{paths:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_what_was_asked_for() {
    let server = Server::start(Options::new());
    server.write("cpu,host=a usage=1 1000000000").await;
    server.sql("SELECT host FROM cpu").await;
    let pg = server.pg().await;
    pg.simple_query("SELECT 1").await.unwrap();
    let text = server.get("/metrics").await.text();
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    for counted in [
        r#"kymo_port_accepted_total{kind="ingest",message="Write"}"#,
        r#"kymo_port_accepted_total{kind="writer",message="Append"}"#,
        r#"kymo_port_wait_seconds_count{kind="ingest",message="Write"}"#,
        r#"kymo_actor_turn_seconds_count{kind="writer"}"#,
        "kymo_journal_sync_seconds_count",
        "kymo_journal_groups_total",
        "kymo_store_rows_total",
        "kymo_store_tables",
        r#"kymo_http_request_seconds_count{route="#,
        r#"kymo_query_total{code="ok"}"#,
        "kymo_query_seconds_count",
        r#"kymo_pg_messages_total{kind="query"}"#,
        "kymo_pg_connections",
    ] {
        assert!(value(counted) >= 1.0, "{counted} is {}", value(counted));
    }
    let broken = text.lines().filter(|line| line.starts_with("kymo_invariant_violations_total"));
    assert!(broken.clone().count() >= 13 && broken.clone().all(|line| line.ends_with(" 0")));
    assert_eq!(value("kymo_store_poisoned"), 0.0);
}
