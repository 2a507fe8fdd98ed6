//! The adapter to actix: with `pools` the only file that knows it.
//!
//! Every actor of ours lives inside a [`Hosted`], which is an actix actor. actix gives the
//! mailbox, the turn-taking and the placement on an arbiter or in a `LocalSet`; everything
//! that it does differently from what Kymo needs stays outside of it:
//!
//! * mailboxes are unbounded (`do_send` ignores capacities): permits bound them, see `port`;
//! * a panic is caught in the turn, so that actix never unwinds, polls the broken actor once
//!   more or runs hooks on it; the [`DeathWatch`] tells the supervisor which end it was;
//! * `stopping` and `stopped` stay empty: they would run on broken state;
//! * no actix futures are spawned on the context: each wake-up would poll all of them.
//!   Asynchronous work is a task of its own that posts its result (see [`Cx::then`]).

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use actix::{Actor as _, WeakAddr};
use tokio::sync::mpsc::UnboundedSender;

use crate::actor::{Actor, Cx, Handle, Poster, Turn, TurnBox};
use crate::env::Clock;
use crate::message::Message;
use crate::pools::{Place, Pools};
use crate::port::{Deliver, Parcel, short_name};
use crate::supervise::Meta;

/// How an actor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It was told to, or its thread ended.
    Stopped,
    /// By a panic, with its text.
    Panicked(String),
}

/// The end of one incarnation of an actor.
#[derive(Debug)]
pub(crate) struct Death {
    /// Number of the actor.
    pub actor: u64,
    /// Which of its incarnations, from 1.
    pub incarnation: u64,
    /// How.
    pub cause: Cause,
}

/// Reports the end of an incarnation when it is dropped with it.
///
/// Dropped while its thread unwinds, it reports a panic: that covers factories and anything
/// else outside of a turn.
pub(crate) struct DeathWatch {
    actor: u64,
    incarnation: u64,
    cause: Cause,
    report: UnboundedSender<Death>,
}

impl DeathWatch {
    pub(crate) fn new(actor: u64, incarnation: u64, report: UnboundedSender<Death>) -> Self {
        DeathWatch { actor, incarnation, cause: Cause::Stopped, report }
    }
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        let mut cause = std::mem::replace(&mut self.cause, Cause::Stopped);
        if cause == Cause::Stopped && std::thread::panicking() {
            cause = Cause::Panicked("panic outside of a turn".to_owned());
        }
        let (actor, incarnation) = (self.actor, self.incarnation);
        let _ = self.report.send(Death { actor, incarnation, cause });
    }
}

/// What an incarnation is given at birth.
pub(crate) struct Birth {
    pub meta: Arc<Meta>,
    pub pools: Pools,
    pub clock: Arc<dyn Clock>,
    pub watch: DeathWatch,
}

/// Starts an incarnation and returns its address at once; the factory runs on its thread.
/// `None` if that is this thread and the factory panicked, which the watch has reported.
pub(crate) fn launch<A: Actor>(
    place: &Place,
    birth: Birth,
    factory: impl FnOnce() -> A + Send + 'static,
) -> Option<Address<A>> {
    let build = move |ctx: &mut actix::Context<Hosted<A>>| {
        let Birth { meta, pools, clock, watch } = birth;
        let mailbox = Mailbox(actix::AsyncContext::address(ctx).downgrade());
        let cx = Cx::new(Arc::clone(&meta), Poster::new(Arc::new(mailbox)), pools, clock);
        Hosted { actor: Box::new(factory()), cx, meta, watch }
    };
    match place {
        Place::Arbiter(arbiter) => Some(Address(Hosted::start_in_arbiter(arbiter, build))),
        Place::Here => catch_unwind(AssertUnwindSafe(|| Address(Hosted::create(build)))).ok(),
    }
}

/// Our actor in the shape that actix runs.
struct Hosted<A: Actor> {
    /// Boxed because actix wants what it hosts to be `Unpin`.
    actor: Box<A>,
    cx: Cx<A>,
    meta: Arc<Meta>,
    watch: DeathWatch,
}

impl<A: Actor> Hosted<A> {
    /// Runs one turn; a panic in it ends the actor.
    fn turn(&mut self, ctx: &mut actix::Context<Self>, run: impl FnOnce(&mut A, &mut Cx<A>)) {
        let Hosted { actor, cx, meta, watch } = self;
        let began = meta.progress.enter();
        let outcome = catch_unwind(AssertUnwindSafe(|| run(actor, cx)));
        meta.progress.leave(began);
        if let Err(panic) = outcome {
            watch.cause = Cause::Panicked(panic_text(panic.as_ref()));
        } else if !cx.is_stopping() {
            return;
        }
        actix::ActorContext::stop(ctx);
    }

    /// The step that handling a message is within the caller's trace; the caller's own span
    /// where no traces are sent, so that log lines keep its fields.
    fn step<M>(&self, caller: tracing::Span) -> tracing::Span {
        if caller.is_disabled() {
            return caller;
        }
        let (kind, message) = (self.meta.kind, short_name::<M>());
        let step = crate::span!(
            parent: &caller,
            "handle",
            otel.name = %format_args!("{kind} {message}"),
            actor = &*self.meta.name,
        );
        if step.is_disabled() { caller } else { step }
    }
}

impl<A: Actor> actix::Actor for Hosted<A> {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.turn(ctx, A::started);
    }
}

impl<M: Message> actix::Message for Parcel<M> {
    type Result = ();
}

impl<A: Handle<M>, M: Message> actix::Handler<Parcel<M>> for Hosted<A> {
    type Result = ();

    fn handle(&mut self, parcel: Parcel<M>, ctx: &mut Self::Context) {
        let Parcel { message, reply, span } = parcel;
        let step = self.step::<M>(span);
        self.turn(ctx, |actor, cx| step.in_scope(|| actor.handle(message, reply, cx)));
    }
}

/// A turn in an envelope.
struct Posted<A: Actor>(Turn<A>);

impl<A: Actor> actix::Message for Posted<A> {
    type Result = ();
}

impl<A: Actor> actix::Handler<Posted<A>> for Hosted<A> {
    type Result = ();

    fn handle(&mut self, Posted(run): Posted<A>, ctx: &mut Self::Context) {
        self.turn(ctx, run);
    }
}

/// An actor's own way to its mailbox; does not keep it alive.
struct Mailbox<A: Actor>(WeakAddr<Hosted<A>>);

impl<A: Actor> TurnBox<A> for Mailbox<A> {
    fn post(&self, turn: Turn<A>) -> bool {
        self.0.upgrade().is_some_and(|address| Address(address).post(turn))
    }
}

/// The way to one incarnation. It ends, after what is queued, when the last one is dropped.
pub(crate) struct Address<A: Actor>(actix::Addr<Hosted<A>>);

impl<A: Actor> Clone for Address<A> {
    fn clone(&self) -> Self {
        Address(self.0.clone())
    }
}

impl<A: Actor> Address<A> {
    /// Queues a turn; false if the actor is gone.
    #[expect(clippy::disallowed_methods, reason = "turns are bounded by what the actor started")]
    pub(crate) fn post(&self, turn: Turn<A>) -> bool {
        let connected = self.0.connected();
        self.0.do_send(Posted(turn));
        connected
    }
}

impl<A: Handle<M>, M: Message> Deliver<M> for Address<A> {
    #[expect(clippy::disallowed_methods, reason = "the permit in the parcel bounds the mailbox")]
    fn deliver(&self, parcel: Parcel<M>) -> bool {
        let connected = self.0.connected();
        self.0.do_send(parcel);
        connected
    }
}

/// The text of a panic, where it has one.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&'static str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a text".to_owned())
}
