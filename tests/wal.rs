//! `kymo wal tail` of the real binary: each committed batch once and in order, through rotations,
//! flushes and kills; resuming; what is gone; a folder that no server uses.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use kymo_tests::command::{fails, kymo, offline, run, succeeds};
use kymo_tests::load::{Load, busy};
use kymo_tests::{Options, Server, seed, until};
use serde_json::Value;

const WRITERS: usize = 4;
const TABLES: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything is kept, in files that a short test fills many of.
fn keeping() -> Options {
    busy().no_auth().setting("journal.retention", "forever")
}

/// A `kymo wal tail --follow` and the lines that it has printed.
struct Follower {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl Follower {
    fn start(mut command: Command) -> Follower {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (lines, pipe) = (Arc::new(Mutex::new(Vec::new())), child.stdout.take().unwrap());
        let taken = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                taken.lock().unwrap().push(line);
            }
        });
        Follower { child, lines, reader }
    }

    fn count(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    /// Ends it; all that it printed.
    fn end(mut self) -> Vec<Value> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reader.join().unwrap();
        let lines = self.lines.lock().unwrap();
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn tail(server: &Server, arguments: &[&str]) -> Vec<Value> {
    lines(&succeeds(&mut kymo(server, &[&["wal", "tail"], arguments].concat()), ""))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn next(batches: &[Value]) -> String {
    batches.last().map_or("oldest".to_owned(), |last| last["next"].as_str().unwrap().to_owned())
}

/// Epoch and sequence.
fn place(batch: &Value) -> (u64, u64) {
    let parts = batch["position"].as_str().unwrap().split('-').map(|part| part.parse().unwrap());
    let parts: Vec<u64> = parts.collect();
    (parts[1], parts[2])
}

/// Count and sum of the rows of each batch, by table, writer and number; each is there once.
fn sums(batches: &[Value]) -> BTreeMap<(String, String, i64), (i64, i64)> {
    let mut sums = BTreeMap::new();
    for batch in batches {
        let table = batch["table"].as_str().unwrap().rsplit('.').next().unwrap();
        let rows = batch["rows"].as_array().unwrap();
        let mut own: BTreeMap<_, (i64, i64)> = BTreeMap::new();
        for row in rows {
            let (writer, number) =
                (row["writer"].as_str().unwrap(), row["batch"].as_i64().unwrap());
            let sum = own.entry((table.to_owned(), writer.to_owned(), number)).or_default();
            *sum = (sum.0 + 1, sum.1 + row["value"].as_i64().unwrap());
        }
        for (key, sum) in own {
            assert_eq!(sums.insert(key.clone(), sum), None, "{key:?} came twice");
        }
    }
    sums
}

async fn stored(server: &Server, tables: &[String]) -> BTreeMap<(String, String, i64), (i64, i64)> {
    let mut stored = BTreeMap::new();
    for table in tables {
        let sql = format!(
            "SELECT writer, batch, count(*) AS n, sum(value) AS s FROM {table} GROUP BY writer, batch"
        );
        for row in server.sql(&sql).await {
            let whole = |name: &str| row[name].as_i64().unwrap();
            let writer = row["writer"].as_str().unwrap().to_owned();
            stored.insert((table.clone(), writer, whole("batch")), (whole("n"), whole("s")));
        }
    }
    stored
}

async fn in_the_meantime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_committed_batch_comes_once_and_in_order_through_kills_and_resumes() {
    let seed = seed();
    println!("KYMO_TEST_SEED={seed}");
    let load = Load::new(seed, WRITERS, TABLES);
    let mut server = Arc::new(Server::start(keeping()));
    let mut seen: Vec<Value> = Vec::new();
    for life in 1..=3 {
        let from = next(&seen);
        let follower =
            Follower::start(kymo(&server, &["wal", "tail", "--follow", "--from", &from]));
        let working = load.write(&server);
        let (ledger, target) = (load.ledger.clone(), load.ledger.count() + 150);
        in_the_meantime(move || ledger.wait_for(target, PATIENCE)).await;
        until("the follower to see most of it", PATIENCE, || {
            (follower.count() > 100).then_some(())
        });
        // While writers write and the follower reads.
        kill(&server);
        working.ended().await;
        seen.extend(follower.end());
        let killed = Arc::into_inner(server).expect("the writers have ended");
        server = Arc::new(killed.restart());
        println!("life {life}: {} batches", seen.len());
    }
    seen.extend(tail(&server, &["--from", &next(&seen)]));
    load.check(&server).await.unwrap();
    assert!(seen.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])), "in order");
    assert_eq!(sums(&seen), stored(&server, &load.tables).await, "each once and whole");
    // Whoever comes later reads the same, from the server and from its folder.
    let again = tail(&server, &[]);
    assert_eq!(again, seen);
    let one = tail(&server, &["--table", "kymo.load_0"]);
    let of_one = seen.iter().filter(|batch| batch["table"] == "kymo.public.load_0");
    assert_eq!(one, of_one.cloned().collect::<Vec<_>>());
    let mut server = Arc::into_inner(server).unwrap();
    let folder = server.data_dir().to_str().unwrap().to_owned();
    let refused = fails(&mut offline(&["wal", "tail", "--data-dir", &folder]), "");
    assert!(refused.contains("in use"), "{refused}");
    server.kill();
    let closed = succeeds(&mut offline(&["wal", "tail", "--data-dir", &folder]), "");
    assert_eq!(lines(&closed), seen);
}

fn kill(server: &Server) {
    let pid = libc::pid_t::try_from(server.pid()).unwrap();
    // SAFETY: plain system call on a child that is not reaped while `server` lives.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
}

#[tokio::test]
async fn values_are_exact_and_weaker_modes_are_followed_too() {
    let server = Server::start(Options::new().argument("--durability").argument("os_default"));
    server.write("t,host=a n=-9223372036854775808i,u=18446744073709551615u,f=0.1 1").await;
    server.write("t,host=b n=1i 1700000000123456789").await;
    let follower = Follower::start(kymo(&server, &["wal", "tail", "--follow", "--table", "t"]));
    until("rows that nobody has synced", PATIENCE, || (follower.count() == 2).then_some(()));
    server.write("t,host=c n=2i 2").await;
    until("rows that come later", PATIENCE, || (follower.count() == 3).then_some(()));
    let batches = follower.end();
    assert_eq!(
        batches[0]["rows"].to_string(),
        r#"[{"f":0.1,"host":"a","n":-9223372036854775808,"time":"1970-01-01T00:00:00.000000001Z","u":18446744073709551615}]"#
    );
    assert_eq!(batches[1]["rows"][0]["time"], "2023-11-14T22:13:20.123456789Z");
    assert_eq!(batches[0]["kind"], "rows");
    assert!(batches[0]["written"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_gone_is_said_with_the_oldest_that_there_is() {
    let options = busy().no_auth().setting("journal.retention_bytes", 64 * 1024);
    let server = Arc::new(Server::start(options));
    let load = Load::new(1, WRITERS, TABLES);
    let working = load.write(&server);
    let ledger = load.ledger.clone();
    in_the_meantime(move || ledger.wait_for(20, PATIENCE)).await;
    until("the first file to go", PATIENCE, || {
        let read = run(&mut kymo(&server, &["wal", "tail", "--from", "0-1-1"]), "");
        (!read.status.success()).then_some(())
    });
    working.stop().await;
    let said = fails(&mut kymo(&server, &["wal", "tail", "--from", "0-1-1"]), "");
    assert!(said.contains("0-1-1 is not in the journal any more, the oldest is 0-1-"), "{said}");
    assert!(said.contains("hint: go on with 0-1-"), "{said}");
    let said = fails(&mut kymo(&server, &["wal", "tail", "--from", "0-9-1"]), "");
    assert!(said.contains("is still to come"), "{said}");
    let said = fails(&mut kymo(&server, &["wal", "tail", "--table", "nowhere"]), "");
    assert!(said.contains("kymo.public.nowhere does not exist"), "{said}");
    let said = fails(&mut kymo(&server, &["wal", "tail", "--from", "17"]), "");
    assert!(said.contains("no position"), "{said}");
}
