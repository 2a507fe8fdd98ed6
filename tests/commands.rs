//! The command line against a running server: what people type, and what they see.

use kymo_tests::command::{fails, kymo, run, succeeds};
use kymo_tests::{Certificate, Options, Server};

#[test]
fn line_protocol_goes_in_and_rows_come_out_in_every_format() {
    let server = Server::start(Options::new());
    let lines = "# two rows\nm,t=a v=1i,s=\"x\ny\" 1000000000\nm,t=b v=2i 2000000000\n";
    let said = succeeds(&mut kymo(&server, &["ingest", "-", "--precision", "ns"]), lines);
    assert!(said.starts_with("2 rows in "), "{said}");

    let sql = "SELECT t, v, s FROM m ORDER BY t";
    let table = succeeds(&mut kymo(&server, &["query", sql]), "");
    assert!(table.contains("| t | v | s") && table.contains("(2 rows)"), "{table}");
    let csv = succeeds(&mut kymo(&server, &["query", sql, "--format", "csv"]), "");
    assert_eq!(csv, "t,v,s\na,1,\"x\ny\"\nb,2,\n");
    let json = succeeds(&mut kymo(&server, &["query", sql, "--format", "json"]), "");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["s"], "x\ny");
    let jsonl = succeeds(&mut kymo(&server, &["query", sql, "--format", "jsonl"]), "");
    assert_eq!(jsonl.lines().count(), 2, "{jsonl}");
    let piped = succeeds(&mut kymo(&server, &["query"]), "SELECT count(*) AS n FROM m");
    assert!(piped.contains("| 2 |"), "{piped}");
}

#[test]
fn csv_types_come_from_the_whole_file_and_bad_lines_are_named() {
    let server = Server::start(Options::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rooms.csv");
    std::fs::write(
        &path,
        "time,room,temp,note\n2026-01-01T00:00:00Z,a b,1,\n2026-01-01T00:00:01Z,c,2.5,hot\n",
    )
    .unwrap();
    let path = path.to_str().unwrap();
    let said = succeeds(&mut kymo(&server, &["ingest", path, "--tags", "room"]), "");
    assert!(said.starts_with("2 rows in "), "{said}");
    let sql = "SELECT room, temp, note FROM rooms ORDER BY time";
    let csv = succeeds(&mut kymo(&server, &["query", sql, "--format", "csv"]), "");
    assert_eq!(csv, "room,temp,note\na b,1.0,\nc,2.5,hot\n");

    let said = fails(&mut kymo(&server, &["ingest", path, "--time", "when"]), "");
    assert!(said.contains("there is no column \"when\""), "{said}");
    assert!(said.contains("hint: ") && said.contains("time, room, temp, note"), "{said}");

    let lines = "m v=1i 1\nm v=oops 2\nm v=3i 3\n";
    let said = fails(&mut kymo(&server, &["ingest", "-", "--precision", "ns"]), lines);
    assert!(said.contains("1 rows were not taken") && said.contains("line 2:"), "{said}");
    let json = succeeds(&mut kymo(&server, &["query", "SELECT v FROM m", "-f", "jsonl"]), "");
    assert_eq!(json.lines().count(), 2, "{json}");
}

#[test]
fn samples_are_generated_at_a_rate() {
    let server = Server::start(Options::new());
    let arguments = ["ingest", "--generate-sample", "--rate", "2000/s", "--duration", "500ms"];
    let said = succeeds(&mut kymo(&server, &arguments), "");
    assert!(said.starts_with("1,000 rows in "), "{said}");
    let json = succeeds(
        &mut kymo(&server, &["query", "SELECT count(*) AS n FROM sample", "-f", "json"]),
        "",
    );
    assert_eq!(json.trim(), r#"[{"n":1000}]"#);
}

#[test]
fn mistakes_are_told_with_a_way_out() {
    let server = Server::start(Options::new());
    let said = fails(&mut kymo(&server, &["query", "SELECT * FROM nowhere"]), "");
    assert!(said.starts_with("error: ") && said.contains("nowhere"), "{said}");
    let said = fails(kymo(&server, &["query", "SELECT 1"]).env("KYMO_PASSWORD", "wrong"), "");
    assert!(said.contains("hint: ") && said.contains("--token"), "{said}");
    let said = fails(kymo(&server, &["query", "SELECT 1"]).env("KYMO_URL", "127.0.0.1:9"), "");
    assert!(said.contains("no server answers at http://127.0.0.1:9"), "{said}");
    assert!(said.contains("kymo start"), "{said}");
}

#[test]
fn a_server_with_tls_is_reached_by_who_trusts_its_certificate() {
    let certificate = Certificate::new();
    let server = Server::start(certificate.on(Options::new()));
    let ca = certificate.file();
    let url = format!("https://{}", server.http);
    let trusting = |arguments: &[&str]| {
        let mut command = kymo(&server, arguments);
        command.args(["--url", &url, "--ca", ca.to_str().unwrap()]);
        command
    };
    let said = succeeds(&mut trusting(&["ingest", "-", "--precision", "ns"]), "m v=1i 1\n");
    assert!(said.starts_with("1 rows in "), "{said}");
    let csv = succeeds(&mut trusting(&["query", "SELECT v FROM m", "-f", "csv"]), "");
    assert_eq!(csv, "v\n1\n");
    assert!(succeeds(&mut trusting(&["repl"]), "SELECT 7 AS n;").contains("| 7 |"));
    assert!(succeeds(&mut trusting(&["status"]), "").contains("tables"));

    // Without the certificate: refused at once, not tried again until the time is over.
    for arguments in [&["query", "SELECT 1"][..], &["ingest", "-"]] {
        let said = fails(kymo(&server, arguments).env("KYMO_URL", &url), "m v=1i 1\n");
        assert!(said.contains("no trusted connection to https://"), "{said}");
        assert!(said.contains("hint: ") && said.contains("--ca"), "{said}");
    }
    let other = Certificate::new();
    let wrong = other.file();
    let arguments = ["query", "SELECT 1", "--url", &url, "--ca", wrong.to_str().unwrap()];
    assert!(fails(&mut kymo(&server, &arguments), "").contains("no trusted connection"));
    let arguments = ["query", "SELECT 1", "--url", &url, "--ca", "/nonexistent"];
    assert!(fails(&mut kymo(&server, &arguments), "").contains("--ca /nonexistent"));

    let plain = Server::start(Options::new());
    let url = format!("https://{}", plain.http);
    let said = fails(kymo(&plain, &["query", "SELECT 1"]).env("KYMO_URL", url), "");
    assert!(said.contains("does not speak TLS"), "{said}");
}

#[test]
fn the_repl_takes_a_script() {
    let server = Server::start(Options::new());
    let script = "CREATE TABLE notes (time TIMESTAMP TIME INDEX, host TEXT TAG, v DOUBLE);\n\\dt\n\
                  SELECT 1 AS one,\n 2 AS two;\n\\q\nSELECT 3;\n";
    let said = succeeds(&mut kymo(&server, &["repl"]), script);
    assert!(said.contains("notes"), "{said}");
    assert!(said.contains("| 1   | 2   |") && !said.contains('3'), "{said}");
}

#[test]
fn the_repl_takes_several_statements_on_a_line_and_stops_at_an_error() {
    let server = Server::start(Options::new());
    let said = succeeds(&mut kymo(&server, &["repl"]), "SELECT 1 AS one; SELECT 2 AS two; \\q\n");
    let plain = "+-----+\n| one |\n+-----+\n| 1   |\n+-----+\n(1 row)\n\
                 +-----+\n| two |\n+-----+\n| 2   |\n+-----+\n(1 row)\n";
    assert_eq!(said, plain, "no prompt, no timing");
    let output = run(&mut kymo(&server, &["repl"]), "SELECT 1; SELECT nothing; SELECT 3;\n");
    let (said, errors) = (output.stdout, String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.starts_with("error: ") && errors.contains("nothing"), "{errors}");
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("| 1 ") && !said.contains('3'), "{said}");
    let script = "SET application_name = 'one';\nSHOW application_name; SELECT 'last'";
    let said = succeeds(&mut kymo(&server, &["repl"]), script);
    assert!(said.contains("| one ") && said.contains("| last "), "{said}");
}

#[test]
fn status_shows_tables() {
    let server = Server::start(Options::new());
    succeeds(&mut kymo(&server, &["ingest", "-", "--precision", "ns"]), "weather v=1i 1\n");
    let said = succeeds(&mut kymo(&server, &["status"]), "");
    assert!(said.contains("weather"), "{said}");
    let json = succeeds(&mut kymo(&server, &["status", "--json"]), "");
    assert!(serde_json::from_str::<serde_json::Value>(&json).unwrap().is_object());
}
