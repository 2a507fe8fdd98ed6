//! The fifteen TSBS "cpu-only" queries return the same rows as DuckDB on the same data:
//! 864,000 rows of 100 hosts, loaded over HTTP as line protocol.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use kymo_benches::load::{self, Target};
use kymo_benches::tsbs::Shape;
use kymo_tests::{ADMIN, Options, PASSWORD, Server, python, until_async};

/// `Basic` credentials of the administrator.
fn authorization() -> String {
    let request = reqwest::Client::new()
        .get("http://127.0.0.1")
        .basic_auth(ADMIN, Some(PASSWORD))
        .build()
        .unwrap();
    request.headers()["authorization"].to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fifteen_queries_return_the_same_rows_as_duckdb() {
    // Small memtables: the queries must meet segments and memory at the same time.
    let server = Server::start(Options::new().setting("memtable.table_bytes", 24 << 20));
    let shape = Shape::usual();
    let target = Target {
        url: server.url(""),
        database: "kymo".to_owned(),
        authorization: Some(authorization()),
        connections: 4,
        batch: 10_000,
    };
    let loaded =
        tokio::task::spawn_blocking(move || load::load(&target, shape)).await.unwrap().unwrap();
    assert_eq!(loaded.rows, 864_000);
    println!("{:.0} rows/s in this build, every write synced", loaded.rows_per_second());
    until_async("all rows to be visible", Duration::from_secs(10), || async {
        let rows = server.sql("SELECT count(*) AS n FROM cpu").await;
        (rows[0]["n"] == 864_000).then_some(())
    })
    .await;

    let (host, port) = (server.pg.ip().to_string(), server.pg.port().to_string());
    let output = tokio::task::spawn_blocking(move || {
        let mut child = Command::new(python::python())
            .arg(python::folder().join("tsbs/compare.py"))
            .args([&host, &port, ADMIN, PASSWORD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A script that fails early closes its input: its own words matter then.
        let _ = load::print(shape, &mut stdin).and_then(|()| stdin.flush());
        drop(stdin);
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success() && said.contains("15 of 15 queries return the same rows"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
