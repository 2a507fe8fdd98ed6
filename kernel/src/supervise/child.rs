//! One supervised actor: its factory, its present incarnation, and the ports bound to it.

use std::sync::{Arc, Weak};

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::actor::{Actor, Handle, Poster, Turn, TurnBox};
use crate::host::{Address, Birth, DeathWatch, launch};
use crate::message::Message;
use crate::pools::Place;
use crate::port::{Budget, Gate, Port};
use crate::supervise::{Inner, Meta};

/// What the supervisor can do with an actor of any type.
pub(crate) trait Child: Send + Sync {
    fn meta(&self) -> &Meta;
    /// Makes an incarnation and swaps the target of all ports to it.
    fn launch(&self, incarnation: u64);
    /// Takes the incarnation away from all ports.
    fn unbind(&self);
    /// Asks the actor what it tells about itself.
    fn observe(&self) -> BoxFuture<'static, serde_json::Value>;
    /// The gates of its ports.
    fn gates(&self) -> Vec<Arc<Gate>>;
}

type Factory<A> = Box<dyn FnMut() -> A + Send>;
type Bind<A> = Box<dyn Fn(Option<&Address<A>>) + Send>;

/// The part of an actor that outlives its incarnations.
pub(crate) struct Core<A: Actor> {
    id: u64,
    meta: Arc<Meta>,
    place: Place,
    factory: Arc<Mutex<Factory<A>>>,
    supervisor: Weak<Inner>,
    bound: Mutex<Bound<A>>,
}

/// Changed together, so that a port bound during a restart gets the right incarnation.
struct Bound<A: Actor> {
    address: Option<Address<A>>,
    ports: Vec<(Arc<Gate>, Bind<A>)>,
    /// Nothing is launched any more.
    stopped: bool,
}

impl<A: Actor> Core<A> {
    pub(crate) fn new(
        id: u64,
        meta: Arc<Meta>,
        place: Place,
        factory: Factory<A>,
        supervisor: &Arc<Inner>,
    ) -> Self {
        let bound = Bound { address: None, ports: Vec::new(), stopped: false };
        Core {
            id,
            meta,
            place,
            factory: Arc::new(Mutex::new(factory)),
            supervisor: Arc::downgrade(supervisor),
            bound: Mutex::new(bound),
        }
    }

    fn bind<M: Message>(&self, port: &Port<M>)
    where
        A: Handle<M>,
    {
        let target = port.clone();
        let bind: Bind<A> = Box::new(move |address| match address {
            Some(address) => target.connect(address.clone()),
            None => target.disconnect(),
        });
        let mut bound = self.bound.lock();
        bind(bound.address.as_ref());
        bound.ports.push((Arc::clone(port.gate()), bind));
    }

    fn address(&self) -> Option<Address<A>> {
        self.bound.lock().address.clone()
    }
}

impl<A: Actor> Child for Core<A> {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn launch(&self, incarnation: u64) {
        let Some(supervisor) = self.supervisor.upgrade() else { return };
        let mut bound = self.bound.lock();
        if bound.stopped {
            return;
        }
        let birth = Birth {
            meta: Arc::clone(&self.meta),
            pools: supervisor.pools.clone(),
            clock: Arc::clone(&supervisor.clock),
            watch: DeathWatch::new(self.id, incarnation, supervisor.deaths.clone()),
        };
        let factory = Arc::clone(&self.factory);
        let address = launch(&self.place, birth, move || (factory.lock())());
        for (_, bind) in &bound.ports {
            bind(address.as_ref());
        }
        bound.address = address;
    }

    fn unbind(&self) {
        let mut bound = self.bound.lock();
        bound.address = None;
        for (_, bind) in &bound.ports {
            bind(None);
        }
    }

    fn observe(&self) -> BoxFuture<'static, serde_json::Value> {
        let (to, observed) = oneshot::channel();
        if let Some(address) = self.address() {
            address.post(Box::new(move |actor, _| drop(to.send(actor.observe()))));
        }
        observed.map(Result::unwrap_or_default).boxed()
    }

    fn gates(&self) -> Vec<Arc<Gate>> {
        self.bound.lock().ports.iter().map(|(gate, _)| Arc::clone(gate)).collect()
    }
}

/// Posts to whichever incarnation is there.
impl<A: Actor> TurnBox<A> for Core<A> {
    fn post(&self, turn: Turn<A>) -> bool {
        self.address().is_some_and(|address| address.post(turn))
    }
}

/// An actor that was started. It ends when this is dropped, after what is queued by then.
#[must_use = "an actor lives as long as its handle"]
pub struct Running<A: Actor>(Arc<Core<A>>);

impl<A: Actor> Running<A> {
    pub(crate) fn new(core: Arc<Core<A>>) -> Self {
        Running(core)
    }

    /// Name of the actor.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.meta.name
    }

    /// A new port to the actor, with a budget of its own. Make one per kind of message and
    /// clone it: each call here opens a further budget. It follows the actor's restarts.
    #[must_use]
    pub fn port<M: Message>(&self, budget: Budget) -> Port<M>
    where
        A: Handle<M>,
    {
        let clock = self.0.meta.progress.clock();
        let port = Port::new(Arc::clone(&self.0.meta.name), self.0.meta.kind, budget, clock);
        self.0.bind(&port);
        port
    }

    /// Posts turns to whichever incarnation is there; for callbacks of libraries.
    #[must_use]
    pub fn poster(&self) -> Poster<A> {
        Poster::new(Arc::clone(&self.0) as Arc<dyn TurnBox<A>>)
    }

    /// What the actor tells about itself; null if it is gone.
    pub async fn observe(&self) -> serde_json::Value {
        Child::observe(&*self.0).await
    }

    /// Ends the actor after what is queued now. It is not made again.
    pub fn stop(&self) {
        let address = {
            let mut bound = self.0.bound.lock();
            bound.stopped = true;
            bound.address.clone()
        };
        if let Some(address) = address {
            address.post(Box::new(|_, cx| cx.stop()));
        } else if let Some(inner) = self.0.supervisor.upgrade() {
            inner.forget(self.0.id);
        }
    }
}

impl<A: Actor> Drop for Running<A> {
    fn drop(&mut self) {
        self.stop();
    }
}
