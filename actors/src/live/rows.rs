//! A subscription as rows of a result, for those who read tables and not events: the query's
//! columns, and before them what each row means.
//!
//! ```text
//! kymo_op │ kymo_seq │ kymo_token │ columns of the query
//! insert  │       41 │ NULL       │ …
//! insert  │       41 │ 7.0.3.41   │ …                       the last row of its commit
//! lagged  │     NULL │ NULL       │ NULL …                  a message: no row of the query
//! ```
//!
//! The token stands on the last of the rows that belong to it: who reads a few rows at a time
//! has, with a token, everything up to it.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow::array::{
    ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringArray, new_null_array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::{StreamExt, stream};
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::ids::{Epoch, PartitionId, Position, Seq};
use kymo_kernel::message::BatchStream;
use kymo_kernel::{Code, Error, Result};
use tokio::sync::watch;

use super::{Event, Subscription, Token};
use crate::query::cancelled;

/// The columns before those of the query.
const LEADING: [(&str, DataType); 3] =
    [("kymo_op", DataType::Utf8), ("kymo_seq", DataType::Int64), ("kymo_token", DataType::Utf8)];

/// Words of rows that are messages; the others are those of [`super::Op`].
const LAGGED: &str = "lagged";
const RESYNC: &str = "resync";
const PROGRESS: &str = "progress";

/// Where nobody comes: what is waited for then is the end.
const NEVER: Position =
    Position { partition: PartitionId::ONLY, epoch: Epoch(u64::MAX), seq: Seq(u64::MAX) };

/// The shape of the rows of a subscription to a query with these columns. Any of them may be
/// NULL.
///
/// # Errors
/// `ambiguous_column` where the query has a column with the name of one of ours.
pub fn shape(query: &Schema) -> Result<SchemaRef> {
    let taken = |field: &&Arc<Field>| LEADING.iter().any(|(name, _)| field.name() == name);
    if let Some(field) = query.fields().iter().find(taken) {
        return Err(Error::new(
            Code::AmbiguousColumn,
            format!("the rows of a subscription have a column {} of their own", field.name()),
        )
        .with_hint("give the query's column another name with AS"));
    }
    let leading = LEADING.into_iter().map(|(name, of)| Arc::new(Field::new(name, of, true)));
    let own =
        query.fields().iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true)));
    Ok(Arc::new(Schema::new(leading.chain(own).collect::<Vec<_>>())))
}

/// How long to wait for rows where none are there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    /// Until there are some.
    Forever,
    /// Until everything has come that was committed to the table up to here, and that no
    /// longer than until this time of the monotonic clock.
    Until(Position, Duration),
    /// As the last one, and further until the time is over.
    Through(Position, Duration),
}

/// The rows of a subscription. Dropping them ends it.
pub struct Rows {
    subscription: Subscription,
    reached: watch::Receiver<Token>,
    schema: SchemaRef,
    /// How often to say how far the subscription is, where that is wanted.
    progress: Option<Duration>,
    /// When to say so next, on the monotonic clock.
    due: Duration,
    given: Given,
    ended: Option<Error>,
}

/// Up to where rows were given.
#[derive(Debug, Clone, Copy)]
enum Given {
    /// Not known, as within a snapshot.
    Unknown,
    /// All that was given before this subscription.
    Resumed,
    /// All up to here.
    All(Position),
    /// Some of this commit.
    Part(Position),
}

impl Given {
    /// After rows with this token.
    fn with(token: Option<Token>) -> Given {
        match token {
            None => Given::Unknown,
            Some(Token { position, rows: None, .. }) => Given::All(position),
            Some(Token { position, rows: Some(_), .. }) => Given::Part(position),
        }
    }

    fn has_all(self, upto: Position) -> bool {
        matches!(self, Given::All(position) if position >= upto)
    }

    /// Up to where nothing is missing, once everything up to `reached` has come.
    fn with_all(self, reached: Position) -> Option<Position> {
        match self {
            Given::All(position) => Some(position.max(reached)),
            Given::Part(position) => Some(reached).filter(|reached| *reached >= position),
            Given::Resumed => Some(reached).filter(|reached| *reached > Position::default()),
            Given::Unknown => None,
        }
    }
}

impl Rows {
    /// Waits for the beginning of a subscription.
    ///
    /// # Errors
    /// What keeps it from beginning; `ambiguous_column` as [`shape`].
    pub(super) async fn begin(
        mut subscription: Subscription,
        progress: Option<Duration>,
    ) -> Result<Rows> {
        let (schema, resumed) = match subscription.next().await {
            Some(Event::Started { schema, resumed, .. }) => (schema, resumed),
            Some(Event::Ended(error)) => return Err(error),
            Some(_) => return Err(Error::internal("a subscription without a beginning")),
            None => return Err(stopped()),
        };
        let reached = subscription.entry.follow();
        let given = if resumed { Given::Resumed } else { Given::Unknown };
        let mut rows = Rows {
            subscription,
            reached,
            schema: shape(&schema)?,
            progress,
            due: Duration::ZERO,
            given,
            ended: None,
        };
        rows.rearm();
        Ok(rows)
    }

    /// Their shape.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The rows as they come, until the subscription fails or is cancelled.
    #[must_use]
    pub fn stream(self, cancel: CancelToken) -> BatchStream {
        let begin = (Some(self), cancel);
        Box::pin(stream::unfold(begin, |(rows, cancel)| async move {
            let mut rows = rows?;
            match rows.next(Wait::Forever, &cancel).await {
                Ok(batch) => batch.map(|batch| (Ok(batch), (Some(rows), cancel))),
                Err(error) => Some((Err(error), (None, cancel))),
            }
        }))
    }

    /// How long somebody waits who asks for rows now: for those that are committed already, and
    /// with a patience of their own, for what comes until it is over.
    pub(crate) fn wait(&self, patience: Option<Duration>) -> Wait {
        let now = self.subscription.live.0.clock.monotonic();
        let newest = self.subscription.newest().unwrap_or(NEVER);
        match patience {
            None => Wait::Until(newest, now + self.subscription.live.0.cursor_wait),
            Some(patience) => Wait::Through(newest, now.saturating_add(patience)),
        }
    }

    /// The next rows; `None` once there is nothing more to wait for. What is cancelled while it
    /// waits loses nothing.
    ///
    /// # Errors
    /// What ended the subscription, again each time; `cancelled`.
    pub(crate) async fn next(
        &mut self,
        wait: Wait,
        cancel: &CancelToken,
    ) -> Result<Option<RecordBatch>> {
        let clock = self.subscription.live.0.clock.clone();
        loop {
            if let Some(error) = &self.ended {
                return Err(error.clone());
            }
            // Rows may come faster than they are taken.
            if cancel.is_cancelled() {
                return Err(cancelled());
            }
            // Read before looking for an event: what lies up to here has been queued by now.
            let reached = *self.reached.borrow_and_update();
            let now = clock.monotonic();
            if wait.is_over(now, self.given.has_all(wait.target()), false) {
                return Ok(None);
            }
            if let Poll::Ready(event) = self.subscription.try_next() {
                match self.told(event)? {
                    Some(batch) => return Ok(Some(batch)),
                    None => continue,
                }
            }
            if let Some(batch) = self.progressed(reached, now)? {
                return Ok(Some(batch));
            }
            if wait.is_over(now, reached.position >= wait.target(), true) {
                return Ok(None);
            }
            let pause = self.pause(wait, now);
            let pause = async {
                match pause {
                    Some(pause) => clock.sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            let told = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(cancelled()),
                event = self.subscription.next() => self.told(event)?,
                moved = self.reached.changed(), if !matches!(wait, Wait::Forever) => {
                    moved.map_err(|_| stopped())?;
                    None
                }
                () = pause => None,
            };
            if let Some(batch) = told {
                return Ok(Some(batch));
            }
        }
    }

    /// How long nothing needs to be done unless something comes.
    fn pause(&self, wait: Wait, now: Duration) -> Option<Duration> {
        let until = match wait {
            Wait::Forever => None,
            Wait::Until(_, until) | Wait::Through(_, until) => Some(until),
        };
        let due = self.progress.map(|_| self.due);
        until.into_iter().chain(due).min().map(|at| at.saturating_sub(now))
    }

    /// What becomes of an event; `None` where it is not shown.
    fn told(&mut self, event: Option<Event>) -> Result<Option<RecordBatch>> {
        match event {
            Some(Event::Rows { op, batch, token, .. }) => {
                self.given = Given::with(token);
                self.rearm();
                self.rows(op.as_str(), &batch, token).map(Some)
            }
            Some(Event::SnapshotEnd { token }) => {
                self.given = Given::with(Some(token));
                match self.progress {
                    Some(_) => self.message(PROGRESS, Some(token)).map(Some),
                    None => Ok(None),
                }
            }
            Some(Event::Started { .. }) => Ok(None),
            Some(Event::Lagged { .. }) => self.message(LAGGED, None).map(Some),
            Some(Event::Resync { .. }) => {
                self.given = Given::Unknown;
                self.message(RESYNC, None).map(Some)
            }
            Some(Event::Ended(error)) => Err(self.ended.insert(error).clone()),
            None => Err(self.ended.insert(stopped()).clone()),
        }
    }

    /// Says how far the subscription is, once it is time to, where there is nothing else to say.
    fn progressed(&mut self, reached: Token, now: Duration) -> Result<Option<RecordBatch>> {
        if self.progress.is_none() || now < self.due {
            return Ok(None);
        }
        let Some(position) = self.given.with_all(reached.position) else {
            self.rearm();
            return Ok(None);
        };
        let table = self.subscription.tables.first().copied().unwrap_or_default();
        let token = Token { table, position, deletions: reached.deletions, rows: None };
        self.given = Given::All(position);
        self.message(PROGRESS, Some(token)).map(Some)
    }

    fn rearm(&mut self) {
        if let Some(every) = self.progress {
            self.due = self.subscription.live.0.clock.monotonic() + every;
        }
    }

    /// A row that is none of the query's.
    fn message(&mut self, word: &str, token: Option<Token>) -> Result<RecordBatch> {
        self.rearm();
        let nothing = Arc::new(Schema::empty());
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let row =
            RecordBatch::try_new_with_options(nothing, Vec::new(), &options).map_err(broken)?;
        self.rows(word, &row, token)
    }

    /// Rows with the columns before them; columns that they lack are NULL.
    fn rows(&self, word: &str, batch: &RecordBatch, token: Option<Token>) -> Result<RecordBatch> {
        let count = batch.num_rows();
        let seq = token.map(|token| i64::try_from(token.position.seq.0).unwrap_or(i64::MAX));
        let tokens = (0..count).map(|row| token.filter(|_| row + 1 == count));
        let leading: [ArrayRef; 3] = [
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(word, count))),
            Arc::new(Int64Array::from_iter(std::iter::repeat_n(seq, count))),
            Arc::new(StringArray::from_iter(
                tokens.map(|token| token.map(|token| token.to_string())),
            )),
        ];
        let own = self.schema.fields().iter().skip(LEADING.len()).enumerate();
        let whole = batch.num_columns() + LEADING.len() == self.schema.fields().len();
        let own = own.map(|(at, field)| {
            let column =
                if whole { Some(batch.column(at)) } else { batch.column_by_name(field.name()) };
            column.cloned().unwrap_or_else(|| new_null_array(field.data_type(), count))
        });
        let columns = leading.into_iter().chain(own).collect();
        RecordBatch::try_new(self.schema.clone(), columns).map_err(broken)
    }
}

impl Wait {
    fn target(self) -> Position {
        match self {
            Wait::Forever => Position::default(),
            Wait::Until(target, _) | Wait::Through(target, _) => target,
        }
    }

    /// Whether to go away: everything may have come that there was, and nothing may be there.
    fn is_over(self, now: Duration, has_come: bool, is_empty: bool) -> bool {
        match self {
            Wait::Forever => false,
            Wait::Until(_, until) => has_come || (is_empty && now >= until),
            Wait::Through(_, until) => now >= until && (has_come || is_empty),
        }
    }
}

fn stopped() -> Error {
    Error::new(Code::ShuttingDown, "the server is stopping")
}

fn broken(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("rows of a subscription: {error}"))
}
