//! What an actor is: a plain struct that owns its state and takes one message at a time.
//!
//! An actor implements [`Actor`] and one [`Handle`] per message. It never sees the framework
//! that carries it; callers never see the actor, only a [`Port`](crate::port::Port). Code in
//! a handler is synchronous and short (half a millisecond); whatever takes longer goes to a
//! pool or a task and comes back as a turn of its own through [`Cx::then`].
//!
//! ```
//! use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
//! use kymo_kernel::message::Message;
//!
//! struct Add(u64);
//! impl Message for Add {
//!     type Reply = u64;
//! }
//!
//! struct Counter(u64);
//! impl Actor for Counter {}
//! impl Handle<Add> for Counter {
//!     fn handle(&mut self, Add(n): Add, reply: Reply<Add>, _cx: &mut Cx<Self>) {
//!         self.0 += n;
//!         reply.ok(self.0);
//!     }
//! }
//! // let counter = supervisor.start(Spec::new("counter", "counter"), || Counter(0));
//! // let port = counter.port::<Add>(Budget::count(16));
//! // assert_eq!(port.call(Add(2)).await?, 2);
//! ```
//!
//! The price of this seam: one boxed closure for a piece of work that comes back, and results
//! of asynchronous work that must be `Send` because they travel through the mailbox.

use std::future::Future;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};
use tracing::Instrument;

use crate::env::Clock;
use crate::error::{Code, Error, Result};
use crate::message::Message;
use crate::pools::Pools;
use crate::port::Permit;
use crate::supervise::Meta;

/// Something that owns state and handles messages one after the other.
///
/// The value lives on one thread and need not be `Send`; its factory is.
pub trait Actor: Sized + 'static {
    /// Called once, before the first message: the place to start timers.
    fn started(&mut self, _cx: &mut Cx<Self>) {}

    /// A small picture of the state for people and tests; shown in `system.actors`.
    fn observe(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// The ability of an actor to take one kind of message.
pub trait Handle<M: Message>: Actor {
    /// Takes the message. The answer may be given now or later, from anywhere: keep `reply`
    /// in a queue, move it into [`Cx::answer`] or [`Cx::then`]. A reply that is dropped
    /// unanswered answers [`Code::Down`].
    fn handle(&mut self, message: M, reply: Reply<M>, cx: &mut Cx<Self>);
}

/// A piece of work on an actor's state, run as a turn of its own.
pub type Turn<A> = Box<dyn FnOnce(&mut A, &mut Cx<A>) + Send>;

/// Where turns can be posted to; the host implements it.
pub(crate) trait TurnBox<A: Actor>: Send + Sync {
    /// Queues a turn; false if the actor is gone.
    fn post(&self, turn: Turn<A>) -> bool;
}

/// Posts turns to an actor from any thread: the way back for callbacks such as the journal's.
///
/// Turns run in the order of posting. They take no permit, so post only what the actor itself
/// has asked for. A poster does not keep its actor alive.
pub struct Poster<A: Actor>(Arc<dyn TurnBox<A>>);

impl<A: Actor> Poster<A> {
    pub(crate) fn new(to: Arc<dyn TurnBox<A>>) -> Self {
        Poster(to)
    }

    /// Queues a turn; false (and the turn is dropped) if the actor is gone.
    pub fn post(&self, turn: impl FnOnce(&mut A, &mut Cx<A>) + Send + 'static) -> bool {
        self.0.post(Box::new(turn))
    }
}

impl<A: Actor> Clone for Poster<A> {
    fn clone(&self) -> Self {
        Poster(Arc::clone(&self.0))
    }
}

/// What an actor can do besides changing its state: wait, repeat, be posted to, stop.
pub struct Cx<A: Actor> {
    meta: Arc<Meta>,
    poster: Poster<A>,
    pools: Pools,
    clock: Arc<dyn Clock>,
    tasks: JoinSet<()>,
    stopping: bool,
}

impl<A: Actor> Cx<A> {
    pub(crate) fn new(
        meta: Arc<Meta>,
        poster: Poster<A>,
        pools: Pools,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Cx { meta, poster, pools, clock, tasks: JoinSet::new(), stopping: false }
    }

    /// Name of the actor, for logs and errors.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.meta.name
    }

    /// Time.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Where work that takes longer than a turn is done.
    #[must_use]
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Runs a future beside the actor and hands its output back as a turn.
    ///
    /// The future lives on the actor's thread: it waits there, it does not compute there. It
    /// is aborted when the actor ends. A panic in it counts as a panic of the actor.
    pub fn then<F, O>(
        &mut self,
        future: F,
        done: impl FnOnce(&mut A, O, &mut Cx<A>) + Send + 'static,
    ) -> Pending
    where
        F: Future<Output = O> + 'static,
        O: Send + 'static,
    {
        let poster = self.poster.clone();
        let span = tracing::Span::current();
        self.spawn(
            async move {
                let output = future.await;
                let span = tracing::Span::current();
                poster.post(move |actor, cx| span.in_scope(|| done(actor, output, cx)));
            }
            .instrument(span),
        )
    }

    /// Runs a future beside the actor and answers with its output, without another turn.
    ///
    /// Aborted when the actor ends; the caller then reads [`Code::Down`].
    pub fn answer<M: Message>(
        &mut self,
        reply: Reply<M>,
        future: impl Future<Output = Result<M::Reply>> + 'static,
    ) -> Pending {
        let span = tracing::Span::current();
        self.spawn(async move { reply.send(future.await) }.instrument(span))
    }

    /// Runs a turn once `wait` has passed.
    pub fn after(
        &mut self,
        wait: Duration,
        turn: impl FnOnce(&mut A, &mut Cx<A>) + Send + 'static,
    ) -> Pending {
        let sleep = self.clock.sleep(wait);
        self.then(sleep, move |actor, (), cx| turn(actor, cx))
    }

    /// Runs a turn again and again, `period` after the end of the one before; the first one
    /// after one period. Turns never pile up behind a slow actor.
    pub fn every(
        &mut self,
        period: Duration,
        turn: impl FnMut(&mut A, &mut Cx<A>) + Send + 'static,
    ) -> Pending {
        let (poster, clock) = (self.poster.clone(), Arc::clone(&self.clock));
        self.spawn(async move {
            let mut turn = turn;
            loop {
                clock.sleep(period).await;
                let (give_back, back) = oneshot::channel();
                let posted = poster.post(move |actor, cx| {
                    turn(actor, cx);
                    let _ = give_back.send(turn);
                });
                match back.await {
                    Ok(returned) if posted => turn = returned,
                    _ => return,
                }
            }
        })
    }

    /// A way for any thread to post turns to this actor.
    #[must_use]
    pub fn poster(&self) -> Poster<A> {
        self.poster.clone()
    }

    /// Says that work goes on: a long turn that calls this is not reported as stuck.
    pub fn progress(&self) {
        self.meta.progress.mark();
    }

    /// Ends the actor after this turn. What is still queued is answered with [`Code::Down`].
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    fn spawn(&mut self, future: impl Future<Output = ()> + 'static) -> Pending {
        while self.tasks.try_join_next().is_some() {}
        let poster = self.poster.clone();
        let handle = self.tasks.spawn_local(async move {
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                poster.post(move |_, _| resume_unwind(panic));
            }
        });
        Pending(handle)
    }
}

/// Work that an actor started and that has not come back; dropping this does not stop it.
#[derive(Debug, Clone)]
pub struct Pending(AbortHandle);

impl Pending {
    /// Stops the work; its turn will not run.
    pub fn cancel(&self) {
        self.0.abort();
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

/// The duty to answer one message. Holds the message's permits until then.
///
/// Nobody is forgotten: dropping it unanswered answers [`Code::Down`] (invariant S1).
pub struct Reply<M: Message> {
    to: Option<oneshot::Sender<Result<M::Reply>>>,
    pub(crate) permit: Permit,
    deadline: Option<Duration>,
}

impl<M: Message> Reply<M> {
    pub(crate) fn new(
        to: Option<oneshot::Sender<Result<M::Reply>>>,
        permit: Permit,
        deadline: Option<Duration>,
    ) -> Self {
        Reply { to, permit, deadline }
    }

    /// Answers that it worked.
    pub fn ok(self, value: M::Reply) {
        self.send(Ok(value));
    }

    /// Answers that it did not.
    pub fn fail(self, error: Error) {
        self.send(Err(error));
    }

    /// Answers.
    pub fn send(mut self, answer: Result<M::Reply>) {
        self.permit.free_room();
        if let Some(to) = self.to.take() {
            let _ = to.send(answer);
        }
    }

    /// When the caller stops waiting, on the monotonic time of the clock; `None` if it waits
    /// for as long as it takes.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Whether the caller has gone. The message stays accepted; only optional work, such as
    /// computing rows that nobody reads, may be left out.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.to.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

impl<M: Message> Drop for Reply<M> {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            self.permit.free_room();
            let _ = to.send(Err(down(self.permit.port_name())));
        }
    }
}

/// The answer of an actor that is not there.
pub(crate) fn down(port: &str) -> Error {
    Error::new(Code::Down, format!("{port} did not answer: it stopped or failed"))
        .with_hint("retry; the server's log names the cause")
}
