//! A gate over a scripted session, and a client that speaks raw messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::StreamExt;
use kymo_config::Settings;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::real;
use kymo_kernel::ids::{ColumnId, TableId};
use kymo_kernel::message::{
    Acked, BatchStream, Outcome, Prepared, Runnable, SessionContext, Statement, Write,
};
use kymo_kernel::schema::{Column, ColumnKind, FieldType, TableDef, TableName, TableSchema};
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::super::backend::{Backend, Conversation, Transaction};
use super::super::{Gate, serve};
use crate::auth::Authenticator;
use crate::auth::accounts::{InMemory, make};

#[derive(Default)]
struct Counters {
    queries: AtomicUsize,
    written: AtomicUsize,
    stopped: AtomicUsize,
    admins: AtomicUsize,
}

struct Script(Arc<Counters>);

#[async_trait]
impl Backend for Script {
    fn has_database(&self, name: &str) -> bool {
        name == "kymo"
    }

    fn table(&self, name: &TableName) -> Option<Arc<TableDef>> {
        let column = |id, name: &str, kind, field_type| Column {
            id: ColumnId(id),
            name: name.to_owned(),
            kind,
            field_type,
        };
        let columns = vec![
            column(1, "time", ColumnKind::Time, FieldType::Timestamp),
            column(2, "host", ColumnKind::Tag, FieldType::Text),
            column(3, "n", ColumnKind::Field, FieldType::Int64),
        ];
        (name.table == "cpu").then(|| {
            Arc::new(TableDef {
                id: TableId(1),
                name: name.clone(),
                schema: TableSchema { version: 1, columns },
                options: Default::default(),
            })
        })
    }

    async fn open(&self, context: SessionContext) -> Result<Box<dyn Conversation>> {
        self.0.admins.fetch_add(usize::from(context.admin), Ordering::SeqCst);
        Ok(Box::new(Actor {
            counters: Arc::clone(&self.0),
            context: Arc::new(context),
            open: false,
            running: Arc::default(),
        }))
    }

    async fn write(&self, write: Write) -> Result<Acked> {
        let rows = write.batches.iter().map(|each| each.batch.num_rows()).sum();
        self.0.written.fetch_add(rows, Ordering::SeqCst);
        Ok(Acked { rows: rows as u64, ..Acked::default() })
    }
}

/// `SELECT n` gives n rows, `ENDLESS` and `SUBSCRIBE` never end, `LATE` fails after a row, `FAIL` at once.
struct Actor {
    counters: Arc<Counters>,
    context: Arc<SessionContext>,
    open: bool,
    running: Arc<Mutex<CancelToken>>,
}

fn schema() -> SchemaRef {
    let field = |name| Field::new(name, DataType::Int64, true);
    Arc::new(Schema::new(vec![field("a"), field("b"), field("c")]))
}

fn batch(rows: i64) -> RecordBatch {
    let array: ArrayRef = Arc::new((0..rows).collect::<Int64Array>());
    RecordBatch::try_new(schema(), vec![Arc::clone(&array), Arc::clone(&array), array]).unwrap()
}

/// Counts when it is dropped: the sign that a running statement was let go.
struct Guard(Arc<Counters>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.stopped.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Conversation for Actor {
    async fn parse(&mut self, sql: String) -> Result<Vec<Arc<Statement>>> {
        let texts = sql.split(';').map(str::trim).filter(|text| !text.is_empty());
        Ok(texts
            .map(|text| {
                let verb = text.split_whitespace().next().unwrap().to_owned();
                Arc::new(Statement { text: text.into(), verb, tree: Arc::new(()) })
            })
            .collect())
    }

    async fn prepare(
        &mut self,
        statement: Arc<Statement>,
        _types: Vec<Option<DataType>>,
    ) -> Result<Arc<Prepared>> {
        Ok(Arc::new(Prepared {
            statement,
            parameters: Vec::new(),
            columns: Some(schema()),
            plan: Arc::new(()),
        }))
    }

    async fn execute(
        &mut self,
        run: Runnable,
        _parameters: Vec<ArrayRef>,
        _timeout: Option<Duration>,
    ) -> Result<Outcome> {
        self.counters.queries.fetch_add(1, Ordering::SeqCst);
        let statement = match run {
            Runnable::Statement(statement) => statement,
            Runnable::Prepared(prepared) => Arc::clone(&prepared.statement),
        };
        let token = CancelToken::new();
        *self.running.lock() = token.clone();
        let stream: BatchStream = match statement.verb.as_str() {
            "SELECT" => {
                let count = statement.text.split_whitespace().nth(1).unwrap().parse().unwrap();
                Box::pin(futures::stream::iter([Ok(batch(count))]))
            }
            "ENDLESS" | "SUBSCRIBE" => {
                let guard = Guard(Arc::clone(&self.counters));
                let endless = futures::stream::unfold((guard, 0), move |(guard, turn)| {
                    let token = token.clone();
                    async move {
                        if turn == 0 {
                            return Some((Ok(batch(1)), (guard, 1)));
                        }
                        token.cancelled().await;
                        let error = Error::new(Code::Cancelled, "canceling statement");
                        Some((Err(error), (guard, 2)))
                    }
                });
                Box::pin(endless.take(3))
            }
            "LATE" => {
                let late = Error::new(Code::DivisionByZero, "division by zero");
                Box::pin(futures::stream::iter([Ok(batch(1)), Err(late)]))
            }
            "FAIL" => return Err(Error::new(Code::TableNotFound, "no such table")),
            verb => {
                self.open = match verb {
                    "BEGIN" => true,
                    "COMMIT" | "ROLLBACK" => false,
                    _ => self.open,
                };
                let verb = verb.to_owned();
                return Ok(Outcome::Done { verb, rows: None, settings: Vec::new() });
            }
        };
        Ok(Outcome::Rows { schema: schema(), stream, settings: Vec::new() })
    }

    fn transaction(&self) -> Transaction {
        if self.open { Transaction::InBlock } else { Transaction::Idle }
    }

    fn context(&self) -> Arc<SessionContext> {
        Arc::clone(&self.context)
    }

    fn canceller(&self) -> Arc<dyn Fn() + Send + Sync> {
        let running = Arc::clone(&self.running);
        Arc::new(move || running.lock().cancel())
    }
}

/// A gate that listens on a free port.
pub(super) struct Server {
    port: u16,
    counters: Arc<Counters>,
    stop: CancelToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    #[expect(clippy::disallowed_methods, reason = "a test owns its task")]
    pub(super) async fn open(change: impl FnOnce(&mut Settings)) -> Server {
        let mut settings = Settings::default();
        settings.auth.enabled = false;
        change(&mut settings);
        let settings = Arc::new(settings);
        let env = real::env();
        let random = Arc::clone(&env.random);
        let users = [("ann", true), ("bob", false)];
        let users = users.map(|(name, admin)| make(name, "secret", admin, &[], random.as_ref()));
        let accounts = InMemory::new(users.map(Result::unwrap).into());
        let authenticator = Authenticator::new(&settings, accounts, random.as_ref()).unwrap();
        let counters = Arc::new(Counters::default());
        let backend = Arc::new(Script(Arc::clone(&counters)));
        let gate = Gate::new(backend, authenticator, settings, env.clock, random, None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancelToken::new();
        let task = tokio::spawn(serve(listener, gate, stop.clone()));
        Server { port, counters, stop, task: Mutex::new(Some(task)) }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn queries(&self) -> usize {
        self.counters.queries.load(Ordering::SeqCst)
    }

    /// Sessions that were opened as an administrator's.
    pub(super) fn admins(&self) -> usize {
        self.counters.admins.load(Ordering::SeqCst)
    }

    pub(super) fn written(&self) -> usize {
        self.counters.written.load(Ordering::SeqCst)
    }

    pub(super) async fn connect(&self) -> Client {
        let socket = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        Client { socket, key: (0, Vec::new()) }
    }

    pub(super) async fn trusted(&self) -> Client {
        let mut client = self.connect().await;
        client.startup("ann", "kymo").await;
        for (kind, body) in client.until_ready().await {
            if kind == b'K' {
                let pid = i32::from_be_bytes(body[..4].try_into().unwrap());
                client.key = (pid, body[4..].to_vec());
            }
        }
        client
    }

    pub(super) async fn cancel(&self, pid: i32, secret: &[u8]) {
        let mut client = self.connect().await;
        let mut packet = (12 + secret.len() as u32).to_be_bytes().to_vec();
        packet.extend_from_slice(&80_877_102_i32.to_be_bytes());
        packet.extend_from_slice(&pid.to_be_bytes());
        packet.extend_from_slice(secret);
        client.raw(&packet).await;
        assert!(client.message().await.is_none(), "a cancel request has no answer");
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    pub(super) async fn ended(&self) {
        let task = self.task.lock().take().unwrap();
        tokio::time::timeout(super::PATIENCE, task).await.unwrap().unwrap();
    }

    pub(super) async fn until_stopped(&self) {
        let stopped = async {
            while self.counters.stopped.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(super::PATIENCE, stopped).await.unwrap();
    }
}

pub(super) fn startup_packet(user: &str, database: &str) -> Vec<u8> {
    let mut body = 196_608_i32.to_be_bytes().to_vec();
    for text in ["user", user, "database", database, ""] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    let mut packet = (4 + body.len() as u32).to_be_bytes().to_vec();
    packet.extend_from_slice(&body);
    packet
}

/// Sends and receives messages as they are.
pub(super) struct Client {
    socket: TcpStream,
    pub(super) key: (i32, Vec<u8>),
}

impl Client {
    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        // The server may have closed already; what it said before is read afterwards.
        let _ = self.socket.write_all(bytes).await;
    }

    pub(super) async fn startup(&mut self, user: &str, database: &str) {
        self.raw(&startup_packet(user, database)).await;
    }

    pub(super) async fn send(&mut self, kind: u8, body: &[u8]) {
        let mut message = vec![kind];
        message.extend_from_slice(&(4 + body.len() as u32).to_be_bytes());
        message.extend_from_slice(body);
        self.raw(&message).await;
    }

    pub(super) async fn query(&mut self, sql: &str) {
        self.send(b'Q', format!("{sql}\0").as_bytes()).await;
    }

    pub(super) async fn parse(&mut self, name: &str, sql: &str) {
        self.send(b'P', format!("{name}\0{sql}\0\0\0").as_bytes()).await;
    }

    pub(super) async fn bind(&mut self, portal: &str, statement: &str, formats: &[i16]) {
        let mut body = format!("{portal}\0{statement}\0\0\0\0\0").into_bytes();
        body.extend_from_slice(&(formats.len() as u16).to_be_bytes());
        body.extend(formats.iter().flat_map(|code| code.to_be_bytes()));
        self.send(b'B', &body).await;
    }

    pub(super) async fn execute(&mut self, portal: &str, max_rows: i32) {
        let mut body = format!("{portal}\0").into_bytes();
        body.extend_from_slice(&max_rows.to_be_bytes());
        self.send(b'E', &body).await;
    }

    pub(super) async fn sync(&mut self) {
        self.send(b'S', b"").await;
    }

    pub(super) async fn byte(&mut self) -> Option<u8> {
        self.socket.read_u8().await.ok()
    }

    /// The next message; `None` once the server has closed.
    pub(super) async fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        let kind = self.byte().await?;
        let length = self.socket.read_u32().await.ok()? as usize;
        let mut body = vec![0; length - 4];
        self.socket.read_exact(&mut body).await.ok()?;
        Some((kind, body))
    }

    pub(super) async fn until_ready(&mut self) -> Vec<(u8, Vec<u8>)> {
        let mut messages = Vec::new();
        loop {
            let message = self.message().await;
            let message = message.unwrap_or_else(|| panic!("closed after {messages:?}"));
            let ready = message.0 == b'Z';
            messages.push(message);
            if ready {
                return messages;
            }
        }
    }
}
