//! Behaviour as text: every file of `tests/slt` is run in process and again over the
//! PostgreSQL wire protocol against the real binary, each time in a fresh database.
//!
//! The files are in the format of sqllogictest. The letters of a `query` are checked: `B`
//! boolean, `I` integer, `N` numeric, `R` floating point, `T` text, `P` instant, `D` date,
//! `C` time of day, `V` interval, `A` array, `J` JSON, `Y` bytes. Values are PostgreSQL's
//! text; NULL is `NULL`, an empty text is `(empty)`, a line break inside of a value is `↵`. An
//! error reads `SQLSTATE message (hint)`, so that `statement error` can ask for all three.
//!
//! Where Kymo gives another answer than it should, the right one stands under `onlyif defect`.
//! Such a record must fail; once it holds, the mark has to go.
//!
//! `KYMO_SLT=name` runs the files whose names contain it.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use futures::TryStreamExt;
use kymo::pgwire::encode::{Format, Style, data_rows};
use kymo::pgwire::types;
use kymo_actors::Database;
use kymo_actors::session::Session;
use kymo_kernel::message::{Outcome, Runnable, SessionContext};
use kymo_tests::{Options, Server};
use sqllogictest::{
    AsyncDB, ColumnType, Condition, DBOutput, Location, MakeConnection, Record, Runner,
    strict_column_validator,
};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// What a column holds, as one letter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Letter(char);

impl ColumnType for Letter {
    fn from_char(value: char) -> Option<Self> {
        "BINRTPDCVAJY".contains(value).then_some(Letter(value))
    }

    fn to_char(&self) -> char {
        self.0
    }
}

impl Letter {
    fn of(oid: u32) -> Letter {
        use types::oid as o;
        Letter(match oid {
            o::BOOL => 'B',
            o::INT2 | o::INT4 | o::INT8 | o::OID => 'I',
            o::NUMERIC => 'N',
            o::FLOAT4 | o::FLOAT8 => 'R',
            o::TIMESTAMP | o::TIMESTAMPTZ => 'P',
            o::DATE => 'D',
            o::TIME => 'C',
            o::INTERVAL => 'V',
            o::JSON | o::JSONB => 'J',
            o::BYTEA => 'Y',
            other if types::element_of(other).is_some() => 'A',
            _ => 'T',
        })
    }
}

/// An error as the files name it.
#[derive(Debug)]
struct Refusal {
    state: String,
    message: String,
    hint: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.state, self.message)?;
        match &self.hint {
            Some(hint) => write!(out, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl Error for Refusal {}

impl From<kymo_kernel::Error> for Refusal {
    fn from(error: kymo_kernel::Error) -> Self {
        Refusal {
            state: kymo::error::sqlstate(error.code()).to_owned(),
            message: error.message().to_owned(),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl From<tokio_postgres::Error> for Refusal {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(told) => Refusal {
                state: told.code().code().to_owned(),
                message: told.message().to_owned(),
                hint: told.hint().map(str::to_owned),
            },
            None => Refusal { state: "?????".to_owned(), message: error.to_string(), hint: None },
        }
    }
}

type Output = DBOutput<Letter>;

fn shown(value: Option<&str>) -> String {
    match value {
        None => "NULL".to_owned(),
        Some("") => "(empty)".to_owned(),
        Some(text) => text.replace('\n', "↵"),
    }
}

/// A session of the embedded database.
struct InProcess {
    session: Session,
}

#[async_trait]
impl AsyncDB for InProcess {
    type Error = Refusal;
    type ColumnType = Letter;

    async fn run(&mut self, sql: &str) -> Result<Output, Refusal> {
        let mut statements = self.session.parse(sql).await?;
        assert_eq!(statements.len(), 1, "one statement a record: {sql}");
        let run = Runnable::Statement(statements.remove(0));
        match self.session.execute(run, Vec::new(), None).await? {
            Outcome::Done { rows, .. } => Ok(DBOutput::StatementComplete(rows.unwrap_or(0))),
            Outcome::Rows { schema, stream, .. } => {
                let oids = schema.fields().iter().map(|field| types::of_arrow(field.data_type()));
                let types = oids.map(Letter::of).collect();
                let batches: Vec<RecordBatch> = stream.try_collect().await?;
                let zone = self.session.context().settings.get("timezone").cloned();
                let rows = batches.iter().flat_map(|batch| cells(batch, zone.as_deref())).collect();
                Ok(DBOutput::Rows { types, rows })
            }
        }
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "process"
    }

    fn error_sql_state(error: &Refusal) -> Option<String> {
        Some(error.state.clone())
    }
}

/// The rows of a batch as text.
fn cells(batch: &RecordBatch, zone: Option<&str>) -> Vec<Vec<String>> {
    let style = Style {
        zone: zone
            .filter(|zone| !zone.eq_ignore_ascii_case("utc"))
            .and_then(|zone| zone.parse().ok()),
    };
    let formats = vec![Format::Text; batch.num_columns()];
    let mut out = BytesMut::new();
    data_rows(batch, &formats, &style, 0..batch.num_rows(), usize::MAX, &mut out).unwrap();
    let mut rows = Vec::new();
    while out.has_remaining() {
        assert_eq!(out.get_u8(), b'D');
        out.advance(4);
        let row = (0..out.get_i16()).map(|_| match usize::try_from(out.get_i32()) {
            Ok(length) => shown(Some(std::str::from_utf8(&out.split_to(length)).unwrap())),
            Err(_) => shown(None),
        });
        rows.push(row.collect());
    }
    rows
}

/// A connection to the real binary. What a statement returns is asked by the extended
/// protocol, the rows by the simple one.
struct OverTheWire {
    client: tokio_postgres::Client,
}

#[async_trait]
impl AsyncDB for OverTheWire {
    type Error = Refusal;
    type ColumnType = Letter;

    async fn run(&mut self, sql: &str) -> Result<Output, Refusal> {
        let statement = self.client.prepare(sql).await?;
        let types: Vec<Letter> =
            statement.columns().iter().map(|column| Letter::of(column.type_().oid())).collect();
        let (mut rows, mut count) = (Vec::new(), 0);
        for message in self.client.simple_query(sql).await? {
            match message {
                SimpleQueryMessage::Row(row) => {
                    rows.push((0..row.len()).map(|at| shown(row.get(at))).collect());
                }
                SimpleQueryMessage::CommandComplete(affected) => count = affected,
                _ => {}
            }
        }
        Ok(if types.is_empty() {
            DBOutput::StatementComplete(count)
        } else {
            DBOutput::Rows { types, rows }
        })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "wire"
    }

    fn error_sql_state(error: &Refusal) -> Option<String> {
        Some(error.state.clone())
    }
}

/// The files to run, by name.
fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("slt");
    let wanted = std::env::var("KYMO_SLT").unwrap_or_default();
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|ending| ending == "slt"))
        .filter(|path| path.file_stem().unwrap().to_string_lossy().contains(&wanted))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no file of tests/slt is named like {wanted:?}");
    files
}

/// The database of a file.
fn database(file: &Path) -> String {
    format!("slt_{}", file.file_stem().unwrap().to_string_lossy())
}

/// Runs the records of a file to its end and tells what is wrong with each.
async fn run_file<D, M>(file: &Path, make: M) -> Vec<String>
where
    D: AsyncDB<ColumnType = Letter>,
    M: MakeConnection<Conn = D>,
{
    let records = sqllogictest::parse_file::<Letter>(file).unwrap();
    let queries = records.iter().filter(|record| matches!(record, Record::Query { .. })).count();
    assert!(queries > 0, "{} asks nothing", file.display());
    run(records, make).await
}

/// The mark of an answer that Kymo does not give yet.
const DEFECT: &str = "defect";

/// The place of a record that is marked so.
fn defect(record: &Record<Letter>) -> Option<Location> {
    let (Record::Statement { conditions, loc, .. } | Record::Query { conditions, loc, .. }) =
        record
    else {
        return None;
    };
    let marked = |each: &Condition| matches!(each, Condition::OnlyIf { label } if label == DEFECT);
    conditions.iter().any(marked).then(|| loc.clone())
}

async fn run<D, M>(records: Vec<Record<Letter>>, make: M) -> Vec<String>
where
    D: AsyncDB<ColumnType = Letter>,
    M: MakeConnection<Conn = D>,
{
    let mut runner = Runner::new(make);
    runner.add_label(DEFECT);
    runner.with_column_validator(strict_column_validator);
    // Spaces inside of a value count.
    runner.with_normalizer(|line| line.trim_end().to_owned());
    let mut wrong = Vec::new();
    for record in records {
        let defect = defect(&record);
        match (runner.run_async(record).await, defect) {
            (Err(error), None) => wrong.push(error.to_string()),
            (Ok(_), Some(place)) => {
                wrong.push(format!("holds: remove `onlyif {DEFECT}` at {place}"))
            }
            _ => {}
        }
    }
    runner.shutdown_async().await;
    wrong
}

fn judge(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{} answers are wrong:\n\n{}", wrong.len(), wrong.join("\n"));
}

/// A session of the embedded database, in a database of its own.
async fn session(database: &Database, name: String) -> Result<InProcess, Refusal> {
    let context = SessionContext {
        user: "admin".to_owned(),
        database: name,
        schema: "public".to_owned(),
        settings: Default::default(),
        read_only: false,
        admin: true,
    };
    Ok(InProcess { session: database.system().open_session(context)? })
}

fn embedded() -> (tempfile::TempDir, Arc<Database>) {
    let folder = tempfile::tempdir().unwrap();
    let database = Arc::new(Database::open(folder.path()).unwrap());
    (folder, database)
}

#[test]
fn files_hold_in_process() {
    let (_folder, database) = embedded();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut wrong = Vec::new();
    for file in files() {
        let name = self::database(&file);
        database.query(&format!("CREATE DATABASE {name}")).unwrap();
        let make = || session(&database, name.clone());
        wrong.extend(runtime.block_on(run_file(&file, make)));
    }
    judge(wrong);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_hold_over_the_wire() {
    let server = Server::start(Options::new());
    let mut wrong = Vec::new();
    for file in files() {
        let name = database(&file);
        server.sql(&format!("CREATE DATABASE {name}")).await;
        let mut config = server.pg_config();
        config.dbname(&name);
        let make = || async {
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            Ok::<_, Refusal>(OverTheWire { client })
        };
        wrong.extend(run_file(&file, make).await);
    }
    judge(wrong);
}

/// The runner must be able to fail: a wrong value, type, order, count, code or success.
#[test]
fn wrong_expectations_are_found() {
    let (_folder, database) = embedded();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cases = [
        ("query I\nSELECT 1\n----\n1\n", true),
        ("query I\nSELECT 1\n----\n2\n", false),
        ("query T\nSELECT 1\n----\n1\n", false),
        ("query I\nSELECT 1\n----\n", false),
        ("query I\nSELECT value FROM generate_series(1, 2) ORDER BY 1\n----\n2\n1\n", false),
        ("query II\nSELECT 1\n----\n1\n", false),
        ("query T\nSELECT NULL::text\n----\n(empty)\n", false),
        ("statement error 42703\nSELECT x\n", true),
        ("statement error 42P01\nSELECT x\n", false),
        ("statement error\nSELECT 1\n", false),
        ("statement ok\nSELECT x\n", false),
        ("onlyif defect\nquery I\nSELECT 1\n----\n2\n", true),
        ("onlyif defect\nquery I\nSELECT 1\n----\n1\n", false),
        ("statement count 1\nCREATE TABLE t (v BIGINT, time TIMESTAMP)\n", false),
    ];
    for (text, holds) in cases {
        let records = sqllogictest::parse::<Letter>(text).unwrap();
        let make = || session(&database, "kymo".to_owned());
        let wrong = runtime.block_on(run(records, make));
        assert_eq!(wrong.is_empty(), holds, "{text}: {wrong:?}");
    }
}
