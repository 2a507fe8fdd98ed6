//! `kymo demo`: a server that watches the machine it runs on.
//!
//! It is an ordinary server with an ordinary client beside it in the same process: every
//! reading goes through the public write endpoint. Each start gives the account `demo` a
//! new password, so that what is printed always works, whoever made the folder.

mod machine;
mod rule;
mod sine;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar};
use kymo_kernel::schema::{DEFAULT_DATABASE, TableName};
use kymo_kernel::{Error, Result};

use super::client::{Client, refusal, text};
use super::credentials::{self, Login};
use super::ingest::{Batch, Sender, bar};
use super::serve::{self, Running};
use super::start::Choices;
use super::stopwatch::{Stopwatch, now_ns, pause};
use super::{complain, print};
use machine::Machine;

/// The account of the demo.
const USER: &str = "demo";

/// Time between two readings.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often the feeder looks whether it should end.
const GLANCE: Duration = Duration::from_millis(50);

/// How long the table may wait for a busy server, and so how long it may delay the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Run a server that watches this machine, with a table to play with.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    settings: Choices,
}

/// Runs the command until a signal ends it.
///
/// # Errors
/// Those of `kymo start`, and a machine that does not tell about itself.
pub fn run(arguments: &Arguments) -> Result<()> {
    let machine = Machine::new()?;
    let server = serve::start(arguments.settings.settings()?)?;
    let login = server.account(USER)?;
    let url = server.url();
    let database = DEFAULT_DATABASE.to_owned();
    let client = Client::new(url.clone(), login.clone(), server.certificate(), database)?;
    let remembered = credentials::remember(&url, login.clone());
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| feed(&client, machine, &ended));
        scope.spawn(|| {
            let told = fill(&server, &client)
                .and_then(|()| rule::create(&server, &client, &ended))
                .and_then(|()| tell(&server, &login, &remembered));
            if let Err(error) = told
                && !ended.load(Ordering::Relaxed)
            {
                complain(&error);
            }
        });
        let stopped = server.until_signal();
        ended.store(true, Ordering::Relaxed);
        stopped
    })
}

/// Sends a reading every second. A reading that cannot be sent is lost, as with any agent
/// without a buffer, and said once until sending works again.
fn feed(client: &Client, mut machine: Machine, ended: &AtomicBool) {
    let watch = Stopwatch::start();
    let mut due = Duration::ZERO;
    let mut complained = false;
    while !ended.load(Ordering::Relaxed) {
        let now = watch.elapsed();
        if now < due {
            pause(GLANCE.min(due - now));
            continue;
        }
        due += INTERVAL;
        match send(client, machine.read(now_ns())) {
            Ok(()) => complained = false,
            Err(error) => {
                if !complained && !ended.load(Ordering::Relaxed) {
                    complain(&error.context("send a reading"));
                }
                complained = true;
            }
        }
    }
}

fn send(client: &Client, lines: String) -> Result<()> {
    let answer = client.write(lines.as_bytes(), "ns")?;
    if answer.status().is_success() {
        return Ok(());
    }
    let status = answer.status();
    Err(refusal(status, &text(answer).unwrap_or_default()))
}

/// Makes the table `demo` where there is none.
fn fill(server: &Running, client: &Client) -> Result<()> {
    if server.has_table(&TableName::new(DEFAULT_DATABASE, sine::TABLE)) {
        return Ok(());
    }
    let progress = bar(Some(sine::ROWS), "{human_pos} of {human_len} rows of table demo");
    let sender = Sender::new(client.clone(), 2, PATIENCE, "ns");
    let batches = sine::batches(now_ns(), 10_000).inspect(|batch| count(batch, &progress));
    let outcome = sender.send(batches, &progress)?;
    if outcome.rejected > 0 {
        return Err(Error::internal(format!("table demo: {:?}", outcome.reasons)));
    }
    Ok(())
}

fn count(batch: &Result<Batch>, progress: &ProgressBar) {
    if let Ok(batch) = batch {
        progress.inc(batch.rows);
    }
}

/// Says what there is and what to try, with lines that can be pasted.
fn tell(server: &Running, login: &Login, remembered: &Result<PathBuf>) -> Result<()> {
    let sql =
        "SELECT time_bucket('10s', time), avg(usage) FROM cpu GROUP BY 1 ORDER BY 1 DESC LIMIT 5";
    let pg = server.pg();
    let password = login.password.as_deref().unwrap_or_default();
    let (secret, header) = match (&login.password, &login.token) {
        (Some(_), Some(token)) => {
            (format!("PGPASSWORD={password} "), format!(" -H 'Authorization: Bearer {token}'"))
        }
        _ => (String::new(), String::new()),
    };
    let mut text = format!(
        "\nThis machine reports every second to the tables cpu, mem, disk, net and load.\n\
         The table demo holds {} rows: seven days of a sine with a period of two hours.\n\
         An alert watches its processors: {}.\n\n\
         Try:\n\
         {secret}psql 'host={} port={} user={USER} dbname={DEFAULT_DATABASE}' -c \"{sql}\"\n\
         curl '{}/api/v3/query_sql'{header} -G --data-urlencode 'db={DEFAULT_DATABASE}' \
         --data-urlencode 'q=SELECT * FROM load ORDER BY time DESC LIMIT 3'\n",
        HumanCount(sine::ROWS),
        rule::ABOUT,
        pg.ip(),
        pg.port(),
        server.url(),
    );
    let program = std::env::args().next().unwrap_or_else(|| "kymo".to_owned());
    match remembered {
        Ok(_) => text.push_str(&format!(
            "{program} query \"SELECT date_bin(INTERVAL '1 day', time) AS day, count(*), \
             max(value) FROM demo GROUP BY day ORDER BY day\"\n\
             {program} query \"SELECT rule, state, value, since FROM system.alerts\"\n\
             {program} repl\n{program} status\n"
        )),
        Err(error) => complain(&error.clone().context("keep the login for `kymo query`")),
    }
    text.push_str("\nCtrl-C stops it.\n");
    print(&text)
}
