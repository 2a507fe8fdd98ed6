//! A bucket in memory that loses answers, refuses, or does not answer at all.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use kymo_kernel::env::sim::Dice;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart,
};
use parking_lot::Mutex;

/// What becomes of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is done, and the answer is lost.
    Lost,
    /// It is not done.
    Refused,
    /// It is not done because somebody else is at it, which comes as if the name existed.
    Conflict,
}

/// The bucket; clones are one and the same.
#[derive(Debug, Clone, Default)]
pub struct Faulty(Arc<State>);

#[derive(Debug, Default)]
pub struct State {
    /// The bucket itself.
    pub inner: InMemory,
    pub plan: Mutex<Plan>,
}

/// What goes wrong, and what was asked for.
#[derive(Debug, Default)]
pub struct Plan {
    /// What becomes of the next puts.
    pub puts: VecDeque<Fault>,
    /// How many of a hundred puts beyond those fail, in one way or the other.
    pub often: Option<(Dice, u64)>,
    /// Nothing is answered.
    pub down: bool,
    /// Names that exist are given again, as by services that ignore the condition.
    pub forgetful: bool,
    /// How often each operation was asked for.
    pub requests: HashMap<&'static str, usize>,
}

impl Deref for Faulty {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl Faulty {
    fn ask(&self, operation: &'static str) -> Result<()> {
        let mut plan = self.plan.lock();
        *plan.requests.entry(operation).or_default() += 1;
        if plan.down { Err(failed("it is down")) } else { Ok(()) }
    }

    fn fault(&self) -> Option<Fault> {
        let mut plan = self.plan.lock();
        plan.puts.pop_front().or_else(|| {
            let (dice, percent) = plan.often.as_mut()?;
            let fault = [Fault::Lost, Fault::Refused, Fault::Conflict][dice.below(3)];
            dice.chance(*percent).then_some(fault)
        })
    }
}

fn failed(what: &'static str) -> Error {
    Error::Generic { store: "faulty", source: what.into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        self.ask("put")?;
        if self.plan.lock().forgetful {
            options.mode = PutMode::Overwrite;
        }
        let fault = self.fault();
        if fault == Some(Fault::Refused) {
            return Err(failed("it said 503"));
        }
        if fault == Some(Fault::Conflict) && options.mode == PutMode::Create {
            let source = "somebody else is at it".into();
            return Err(Error::AlreadyExists { path: location.to_string(), source });
        }
        let done = self.inner.put_opts(location, payload, options).await?;
        if fault == Some(Fault::Lost) { Err(failed("the answer is lost")) } else { Ok(done) }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.ask("upload")?;
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(Upload { inner, faulty: self.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.ask(if options.head { "head" } else { "get" })?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.ask("delete") {
            Ok(()) => self.inner.delete_stream(locations),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.ask("list") {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.ask("list")?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.ask("copy")?;
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct Upload {
    inner: Box<dyn MultipartUpload>,
    faulty: Faulty,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match self.faulty.ask("part") {
            Ok(()) => self.inner.put_part(data),
            Err(error) => Box::pin(async { Err(error) }),
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.faulty.ask("complete")?;
        match self.faulty.fault() {
            None => self.inner.complete().await,
            Some(Fault::Lost) => {
                self.inner.complete().await?;
                Err(failed("the answer is lost"))
            }
            Some(Fault::Refused | Fault::Conflict) => Err(failed("it said 503")),
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.faulty.ask("abort")?;
        self.inner.abort().await
    }
}
