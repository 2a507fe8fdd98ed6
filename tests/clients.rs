//! Stock clients against the real binary: psql, psycopg 3, asyncpg, SQLAlchemy 2, node-postgres.
//!
//! The Python and Node sides are scripts in `tests/clients/`, run with what `clients/setup`
//! installed; each expects the table `cpu` that is written here.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kymo_tests::{ADMIN, Options, PASSWORD, Server, python, until};

/// A server with 100 rows: `n` from 0, one each second, four hosts in turn.
fn server() -> Server {
    let server = Server::start(Options::new());
    let mut lines = String::new();
    for n in 0..100_u64 {
        let time = 1_704_067_200_000_000_000 + n * 1_000_000_000;
        let (host, ok) = (n % 4, n % 2 == 0);
        let region = if host < 2 { "eu" } else { "us" };
        lines.push_str(&format!(
            "cpu,host=h{host},region={region} usage={n}.5,n={n}i,u={n}u,ok={ok},note=\"n {n}\" {time}\n"
        ));
    }
    tokio::runtime::Runtime::new().unwrap().block_on(server.write(&lines));
    server
}

fn connected(server: &Server, program: impl Into<PathBuf>) -> Command {
    let mut command = Command::new(program.into());
    command
        .env("PGHOST", server.pg.ip().to_string())
        .env("PGPORT", server.pg.port().to_string())
        .env("PGUSER", ADMIN)
        .env("PGPASSWORD", PASSWORD)
        .env("PGDATABASE", "kymo")
        .env("PGCONNECT_TIMEOUT", "10")
        .stdin(Stdio::null());
    command
}

fn succeeded(what: &str, output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{said}\n{complained}", output.status);
    said
}

fn script(name: &str) {
    let server = server();
    let path = python::folder().join("clients").join(name);
    let output = connected(&server, python::python()).arg(path).output().unwrap();
    assert!(succeeded(name, &output).ends_with(": ok\n"));
}

#[test]
fn psycopg() {
    script("psycopg_client.py");
}

#[test]
fn asyncpg() {
    script("asyncpg_client.py");
}

#[test]
fn sqlalchemy() {
    script("sqlalchemy_client.py");
}

#[test]
fn node_postgres() {
    let setup = Command::new(python::folder().join("clients/setup")).output().unwrap();
    let said = succeeded("clients/setup", &setup);
    let modules = said.lines().find(|line| line.contains("/node-"));
    let folder = modules.expect("npm is missing: install it (apt-get install npm)");
    let server = server();
    let output = connected(&server, "node")
        .env("NODE_MODULES", folder)
        .arg(python::folder().join("clients/node_pg.mjs"))
        .output()
        .unwrap();
    assert!(succeeded("node_pg.mjs", &output).ends_with(": ok\n"));
}

fn psql(server: &Server, commands: &[&str]) -> String {
    let mut psql = connected(server, "psql");
    psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-P", "pager=off"]);
    for command in commands {
        psql.args(["-c", command]);
    }
    let output = psql.output().unwrap();
    let said = succeeded(&commands.join("; "), &output);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn psql_describes_what_there_is() {
    let server = server();
    let tables = psql(&server, &["\\dt"]);
    assert!(tables.contains("public | cpu  | table | "), "{tables}");
    let table = psql(&server, &["\\d cpu"]);
    for line in [
        " host   | text ",
        " n      | bigint ",
        " ok     | boolean ",
        " time   | timestamp with time zone ",
        " u      | numeric ",
        " usage  | double precision ",
    ] {
        assert!(table.contains(line), "{line:?} in\n{table}");
    }
    assert!(psql(&server, &["\\l"]).contains(" kymo "));
    assert!(psql(&server, &["\\dn"]).contains("public"));
    psql(&server, &["\\du"]);
    psql(&server, &["\\df"]);
    psql(&server, &["\\dv", "\\d", "\\conninfo", "\\timing on"]);
    // Of what there is none psql itself says so, on the error stream.
    let none = connected(&server, "psql").args(["-X", "-c", "\\di"]).output().unwrap();
    succeeded("\\di", &none);
    let said = String::from_utf8_lossy(&none.stderr);
    assert_eq!(said.trim(), "Did not find any relations.");
    let rows = psql(&server, &["\\x", "SELECT host, usage FROM cpu ORDER BY time LIMIT 1"]);
    assert!(rows.contains("host  | h0") && rows.contains("usage | 0.5"), "{rows}");
}

#[test]
fn psql_runs_several_statements_and_files() {
    let server = server();
    let said = psql(&server, &["SELECT 1 AS a; SELECT count(*) FROM cpu"]);
    assert!(said.contains(" a \n") && said.contains("100"), "{said}");
    let buckets =
        "SELECT time_bucket('10s', time), avg(usage) FROM cpu GROUP BY 1 ORDER BY 1 DESC LIMIT 5";
    let said = psql(&server, &[buckets]);
    assert!(said.contains("(5 rows)") && said.contains("2024-01-01 00:01:30+00 |  95"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cpu.csv");
    let out =
        format!("\\copy (SELECT time, host, usage FROM cpu) TO '{}' CSV HEADER", file.display());
    assert!(psql(&server, &[&out]).contains("COPY 100"));
    let create = "CREATE TABLE again (time TIMESTAMP TIME INDEX, host TEXT TAG, usage DOUBLE)";
    let back = format!("\\copy again (time, host, usage) FROM '{}' CSV HEADER", file.display());
    assert!(psql(&server, &[create, &back]).contains("COPY 100"));
    let same =
        "SELECT count(*) FROM cpu JOIN again USING (time, host) WHERE cpu.usage = again.usage";
    assert!(psql(&server, &[same]).contains(" 100"));
}

#[test]
fn psql_follows_a_query_by_a_cursor() {
    let server = server();
    let declare = "DECLARE c CURSOR FOR SUBSCRIBE TO SELECT n FROM cpu WHERE n IN (7, 8, 4711)";
    let write = "INSERT INTO cpu (time, host, n) VALUES (now(), 'h9', 4711)";
    let said = psql(&server, &["BEGIN", declare, "FETCH ALL c", write, "FETCH 5 c", "COMMIT"]);
    assert!(said.contains("kymo_op") && said.contains("(2 rows)"), "{said}");
    assert!(
        said.contains(" insert ") && said.contains("| 4711") && said.contains("(1 row)"),
        "{said}"
    );
}

#[test]
fn psql_shows_errors_with_their_place_and_hint() {
    let server = server();
    let output =
        connected(&server, "psql").args(["-X", "-c", "SELECT usage FROM cpuu"]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("ERROR:") && said.contains("cpuu"), "{said}");
    let output = connected(&server, "psql").args(["-X", "-c", "SELEC 1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("LINE 1: SELEC 1") && said.contains('^'), "{said}");
}

#[test]
fn psql_stops_at_ctrl_c() {
    let server = server();
    let endless = "SELECT count(*) FROM generate_series(1, 10000000) a(x), \
         generate_series(1, 10000000) b(y) WHERE x + y = 0";
    let mut child = connected(&server, "psql")
        .args(["-X", "-c", "SELECT 'begun'", "-c", endless])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // A signal that comes before psql waits for its answer ends psql without a request: the
    // first is sent once the server computes, and again until psql is done.
    let mut last = Instant::now();
    until("psql's end", Duration::from_secs(30), || {
        if last.elapsed() > Duration::from_secs(1) {
            last = Instant::now();
            // SAFETY: plain system call on a child that is not reaped yet.
            unsafe { libc::kill(pid, libc::SIGINT) };
        }
        child.try_wait().unwrap()
    });
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("canceling statement due to user request"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(30));
}
