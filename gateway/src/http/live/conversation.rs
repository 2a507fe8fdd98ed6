//! One WebSocket connection: requests in order, events of subscriptions between them.
//!
//! One half reads and decides, the other writes; a short queue lies between. Statements run one
//! after the other, as in any session. An event is taken from a subscription only when there
//! is room for it in the queue, which is how a slow client makes its subscriptions wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::ArrayRef;
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket};
use futures::future::{AbortHandle, BoxFuture, FutureExt};
use futures::stream::{BoxStream, SelectAll, SplitSink, SplitStream, abortable};
use futures::{SinkExt, StreamExt};
use kymo_actors::live::{Event, Subscription};
use kymo_actors::notify::{Feed, FeedEvent};
use kymo_actors::session::Session;
use kymo_kernel::message::{Outcome, Runnable, Statement};
use kymo_kernel::{Code, Error, Result};
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Permit};

use super::alerts::{self, AlertWish};
use super::request::{Request, read};
use super::socket::close;
use super::{Wish, ask, encode};
use crate::auth::Identity;
use crate::http::App;
use crate::http::guard::shutting_down;
use crate::http::statement::{self, bind};

/// Messages between the two halves.
const QUEUE: usize = 4;
/// How long the last messages of a connection may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

type Outbox = mpsc::Sender<Message>;
/// What is sent, with the client's name for its subscription, and whether it is the last.
type Events = SelectAll<BoxStream<'static, (Arc<str>, Sent)>>;
type Work = BoxFuture<'static, Option<(Arc<str>, Begun)>>;

/// A subscription that has begun.
enum Begun {
    Query(Subscription),
    Alerts(Feed, bool),
}

/// An event of one.
enum Sent {
    Query(Event),
    Alerts(Result<FeedEvent>),
    /// Alerts are followed from here, or go on from before.
    AlertsBegin(bool),
}

/// A connection whose client is known.
pub struct Conversation {
    app: App,
    session: Arc<Session>,
    events: Events,
    subscriptions: HashMap<Arc<str>, AbortHandle>,
    waiting: VecDeque<Request>,
    work: Option<Work>,
}

impl Conversation {
    /// Opens the session of a connection.
    ///
    /// # Errors
    /// `database_not_found`; `shutting_down`.
    pub fn open(app: &App, who: &Identity, database: Option<String>) -> Result<Self> {
        let nothing =
            statement::Ask { sql: String::new(), parameters: None, database, read_only: false };
        let context = statement::session(app, who, &nothing)?;
        Ok(Conversation {
            app: app.clone(),
            session: Arc::new(app.backend.open_session(context)?),
            events: SelectAll::new(),
            subscriptions: HashMap::new(),
            waiting: VecDeque::new(),
            work: None,
        })
    }

    /// Talks until either side has enough.
    pub async fn hold(mut self, socket: WebSocket) {
        let (sink, stream) = socket.split();
        let (outbox, messages) = mpsc::channel(QUEUE);
        let mut writing = std::pin::pin!(write(sink, messages));
        let ended = tokio::select! {
            ended = self.talk(stream, &outbox) => ended,
            () = &mut writing => return,
        };
        let app = self.app.clone();
        // Subscriptions and the session go first: nothing more will be sent for them.
        drop(self);
        let last = async {
            if let Err(error) = ended {
                let _ = outbox.send(Message::Text(encode::fault(None, &error).into())).await;
                let _ = outbox.send(close(&error)).await;
            }
            drop(outbox);
        };
        last_words(&app, futures::future::join(last, writing)).await;
    }

    async fn talk(&mut self, mut stream: SplitStream<WebSocket>, outbox: &Outbox) -> Result<()> {
        let context = self.session.context();
        let ready = json!({ "user": context.user, "database": context.database });
        say(outbox, encode::message("ready", None, ready)).await;
        let live = self.app.settings.live.clone();
        let app = self.app.clone();
        let clock = app.backend.clock();
        let patience = Duration::from_millis(live.idle_timeout_ms);
        let every = Duration::from_millis(live.heartbeat_ms);
        let mut heartbeat = clock.sleep(Duration::ZERO);
        let mut heard = clock.monotonic();
        let mut silence = clock.sleep(patience);
        let mut draining = std::pin::pin!(app.draining());
        loop {
            let room = self.waiting.len() < live.max_requests;
            tokio::select! {
                () = &mut draining => return Err(shutting_down()),
                message = stream.next(), if room => {
                    heard = clock.monotonic();
                    match message {
                        Some(Ok(message)) => {
                            if !self.take(message, outbox).await {
                                return Ok(());
                            }
                        }
                        Some(Err(error)) => return Err(broken(&error)),
                        None => return Ok(()),
                    }
                }
                () = &mut silence => {
                    // Nobody listens while the client's requests have no room.
                    let since = if room { heard } else { clock.monotonic() };
                    let rest = (since + patience).saturating_sub(clock.monotonic());
                    if rest.is_zero() {
                        return Err(silent(patience));
                    }
                    silence = clock.sleep(rest);
                }
                begun = run(&mut self.work) => {
                    self.work = None;
                    if let Some((id, begun)) = begun {
                        self.follow(id, begun);
                    }
                    self.start_next(outbox);
                }
                next = event(outbox, &mut self.events) => self.pass_on(next),
                () = &mut heartbeat => {
                    heartbeat = clock.sleep(every);
                    // A client that does not take messages is not asked for more signs.
                    let _ = outbox.try_send(Message::Ping(Bytes::new()));
                }
            }
        }
    }

    /// Takes a message; answers whether to go on.
    async fn take(&mut self, message: Message, outbox: &Outbox) -> bool {
        let text = match message {
            Message::Text(text) => text,
            Message::Close(_) => return false,
            Message::Ping(_) | Message::Pong(_) => return true,
            Message::Binary(_) => {
                let error = Error::new(Code::Protocol, "messages are text")
                    .with_hint("send JSON, or SQL, in text messages");
                say(outbox, encode::fault(None, &error)).await;
                return true;
            }
        };
        match read(&text) {
            Ok(Request::Ping(id)) => {
                say(outbox, encode::message("pong", id.as_deref(), json!({}))).await;
            }
            Ok(Request::Unsubscribe(id)) => {
                let answer = match self.subscriptions.remove(id.as_str()) {
                    Some(handle) => {
                        handle.abort();
                        encode::message("unsubscribed", Some(&id), json!({}))
                    }
                    None => encode::fault(Some(&id), &unknown(&id)),
                };
                say(outbox, answer).await;
            }
            Ok(Request::Auth(id, _)) => {
                let error = Error::new(Code::Protocol, "the connection is authenticated already");
                say(outbox, encode::fault(id.as_deref(), &error)).await;
            }
            Ok(request) => {
                self.waiting.push_back(request);
                self.start_next(outbox);
            }
            Err(misread) => {
                say(outbox, encode::fault(misread.id.as_deref(), &misread.error)).await;
            }
        }
        true
    }

    /// Starts the request that has waited longest, where none is under way.
    fn start_next(&mut self, outbox: &Outbox) {
        if self.work.is_some() {
            return;
        }
        let Some(request) = self.waiting.pop_front() else { return };
        let worker = Worker {
            app: self.app.clone(),
            session: self.session.clone(),
            outbox: outbox.clone(),
            subscribed: self.subscriptions.keys().cloned().collect(),
        };
        self.work = Some(worker.run(request).boxed());
    }

    fn follow(&mut self, id: Arc<str>, begun: Begun) {
        let name = id.clone();
        let events = match begun {
            Begun::Query(subscription) => subscription.map(Sent::Query).boxed(),
            Begun::Alerts(feed, resumed) => {
                let first = futures::stream::iter([Sent::AlertsBegin(resumed)]);
                first.chain(feed.events().map(Sent::Alerts)).boxed()
            }
        };
        let (stream, handle) = abortable(events);
        self.events.push(stream.map(move |event| (name.clone(), event)).boxed());
        self.subscriptions.insert(id, handle);
    }

    fn pass_on(&mut self, (permit, id, event): (Permit<'_, Message>, Arc<str>, Sent)) {
        // It was ended while this event was on its way.
        if !self.subscriptions.contains_key(&id) {
            return;
        }
        let (json, ended) = match event {
            Sent::Query(event) => {
                let frame = encode::event(Some(&id), &event);
                let ended = frame.is_err() || matches!(event, Event::Ended(_));
                let fault = |error| encode::fault(Some(&id), &error);
                (frame.map_or_else(fault, |frame| frame.json), ended)
            }
            Sent::Alerts(next) => {
                let (frame, ended) = alerts::event(Some(&id), next);
                (frame.json, ended)
            }
            Sent::AlertsBegin(resumed) => (alerts::begun(Some(&id), resumed).json, false),
        };
        permit.send(Message::Text(json.into()));
        if ended && let Some(handle) = self.subscriptions.remove(&id) {
            handle.abort();
        }
    }
}

/// The next event, once there is room to send it. Loses nothing when it is dropped.
async fn event<'a>(
    outbox: &'a Outbox,
    events: &mut Events,
) -> (Permit<'a, Message>, Arc<str>, Sent) {
    if !events.is_empty()
        && let Ok(permit) = outbox.reserve().await
        && let Some((id, event)) = events.next().await
    {
        return (permit, id, event);
    }
    std::future::pending().await
}

async fn run(work: &mut Option<Work>) -> Option<(Arc<str>, Begun)> {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

/// Says goodbye, as long as the client listens.
pub async fn last_words<T>(app: &App, words: impl Future<Output = T>) {
    tokio::select! {
        _ = words => {}
        () = app.backend.clock().sleep(LAST_WORDS) => {}
    }
}

async fn write(mut sink: SplitSink<WebSocket, Message>, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
    let _ = sink.close().await;
}

/// The other half being gone is noticed elsewhere.
async fn say(outbox: &Outbox, json: String) {
    let _ = outbox.send(Message::Text(json.into())).await;
}

fn broken(error: &axum::Error) -> Error {
    let text = error.to_string();
    if text.contains("too long") || text.contains("too big") {
        return Error::new(Code::TooLarge, format!("a message is too large: {text}"))
            .with_hint("raise live.max_message_bytes");
    }
    Error::new(Code::Protocol, format!("the connection broke off: {text}"))
}

fn silent(patience: Duration) -> Error {
    Error::new(Code::Protocol, format!("nothing was heard for {} ms", patience.as_millis()))
        .with_hint("answer pings, or send {\"type\":\"ping\"}")
}

/// A statement whose rows come to an end.
fn with_an_end(statement: Arc<Statement>) -> Result<Runnable> {
    if statement.verb == "SUBSCRIBE" {
        return Err(Error::new(Code::Unsupported, "SUBSCRIBE is a request of its own").with_hint(
            "send {\"type\":\"subscribe\",\"id\":1,\"sql\":\"SELECT …\"}, which has a name to end it by",
        ));
    }
    Ok(Runnable::Statement(statement))
}

fn unknown(id: &str) -> Error {
    Error::new(Code::InvalidInput, format!("there is no subscription {id:?}"))
}

/// Carries out one request.
struct Worker {
    app: App,
    session: Arc<Session>,
    outbox: Outbox,
    subscribed: Vec<Arc<str>>,
}

impl Worker {
    async fn run(self, request: Request) -> Option<(Arc<str>, Begun)> {
        let (id, outcome) = match request {
            Request::Sql(id, sql, params) => {
                let outcome = self.sql(&id, sql, params).await;
                (Some(id), outcome)
            }
            Request::Text(sql) => {
                let outcome = self.text(sql).await;
                (None, outcome.map(|()| None))
            }
            Request::Subscribe(id, wish) => {
                let outcome = self.subscribe(&id, wish).await;
                (Some(id), outcome.map(Some))
            }
            Request::Alerts(id, wish) => {
                let outcome = self.watch(&id, wish);
                (Some(id), outcome.map(Some))
            }
            Request::Auth(..) | Request::Unsubscribe(_) | Request::Ping(_) => return None,
        };
        match outcome {
            Ok(begun) => begun.zip(id).map(|(begun, id)| (id.into(), begun)),
            Err(error) => {
                say(&self.outbox, encode::fault(id.as_deref(), &error)).await;
                None
            }
        }
    }

    fn watch(&self, id: &str, wish: AlertWish) -> Result<Begun> {
        self.place(id)?;
        let resumed = wish.resume.is_some();
        Ok(Begun::Alerts(alerts::follow(&self.app, wish)?, resumed))
    }

    async fn subscribe(&self, id: &str, wish: Wish) -> Result<Begun> {
        self.place(id)?;
        let ask = ask(&self.app, self.session.context(), wish).await?;
        self.app.backend.subscribe(ask).await.map(Begun::Query)
    }

    /// Refuses a subscription too many, and a second one of a name.
    fn place(&self, id: &str) -> Result<()> {
        let most = self.app.settings.live.max_connection_subscriptions;
        if self.subscribed.len() >= most {
            return Err(Error::new(
                Code::LimitReached,
                format!("{most} subscriptions of this connection live already"),
            )
            .with_hint("end some, or raise live.max_connection_subscriptions"));
        }
        if self.subscribed.iter().any(|known| &**known == id) {
            return Err(Error::new(
                Code::AlreadyExists,
                format!("there is a subscription {id:?} already"),
            )
            .with_hint("unsubscribe it first, or choose another id"));
        }
        Ok(())
    }

    /// Runs statements; their rows go out as they come.
    async fn sql(&self, id: &str, sql: String, params: Option<Value>) -> Result<Option<Begun>> {
        let (text, values) = bind(sql.clone(), params.clone())?;
        let statements = self.session.parse(text).await?;
        if let [only] = statements.as_slice()
            && only.verb == "SUBSCRIBE"
        {
            let wish = Wish { sql, parameters: params, ..Wish::default() };
            return self.subscribe(id, wish).await.map(Some);
        }
        for statement in statements {
            let verb = statement.verb.clone();
            let run = with_an_end(statement)?;
            let outcome = self.session.execute(run, values.clone(), None).await?;
            let done = self.rows(id, &verb, outcome).await?;
            say(&self.outbox, encode::message("done", Some(id), done)).await;
        }
        Ok(None)
    }

    async fn rows(&self, id: &str, verb: &str, outcome: Outcome) -> Result<Value> {
        match outcome {
            Outcome::Done { verb, rows, .. } => Ok(json!({ "command": verb, "count": rows })),
            Outcome::Rows { schema, mut stream, .. } => {
                let mut count = 0;
                let columns = encode::columns(&schema);
                while let Some(batch) = stream.next().await {
                    let batch = batch?;
                    count += batch.num_rows();
                    let rows = encode::rows(&batch)?;
                    say(&self.outbox, encode::with_rows("rows", Some(id), json!({}), &rows)).await;
                }
                Ok(json!({ "command": verb, "count": count, "columns": columns }))
            }
        }
    }

    /// Runs statements that were sent as plain text; the last one's outcome is the answer.
    async fn text(&self, sql: String) -> Result<()> {
        let statements = self.session.parse(sql).await?;
        let mut answer = json!({ "status": "ok" }).to_string();
        for statement in statements {
            let run = with_an_end(statement)?;
            let outcome = self.session.execute(run, Vec::<ArrayRef>::new(), None).await?;
            answer = self.whole(outcome).await?;
        }
        say(&self.outbox, answer).await;
        Ok(())
    }

    async fn whole(&self, outcome: Outcome) -> Result<String> {
        let mut stream = match outcome {
            Outcome::Done { verb, rows, .. } => {
                return Ok(json!({ "status": "ok", "command": verb, "count": rows }).to_string());
            }
            Outcome::Rows { stream, .. } => stream,
        };
        let most = usize::try_from(self.app.settings.live.max_reply_bytes).unwrap_or(usize::MAX);
        let mut all = String::from("{\"status\":\"ok\",\"results\":[");
        let mut first = true;
        while let Some(batch) = stream.next().await {
            let rows = encode::rows(&batch?)?;
            let inner = rows.trim().trim_start_matches('[');
            let inner = inner.strip_suffix(']').unwrap_or(inner);
            if inner.is_empty() {
                continue;
            }
            if !std::mem::take(&mut first) {
                all.push(',');
            }
            all.push_str(inner);
            if all.len() > most {
                return Err(Error::new(
                    Code::TooLarge,
                    format!("the answer is longer than live.max_reply_bytes = {most}"),
                )
                .with_hint("send {\"type\":\"sql\",…}, whose rows come in several messages"));
            }
        }
        all.push_str("]}");
        Ok(all)
    }
}
