//! A bucket in memory that loses answers, refuses, or does not answer at all.
#![allow(dead_code, reason = "each test uses some of it")]

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
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
struct State {
    inner: InMemory,
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    /// What becomes of the next puts.
    puts: VecDeque<Option<Fault>>,
    /// A seed, and how many of a hundred puts fail.
    dice: Option<(u64, u64)>,
    down: bool,
    /// The bucket takes a second object of a name.
    forgetful: bool,
    requests: HashMap<&'static str, usize>,
}

impl Faulty {
    /// The next put comes to this.
    pub fn next(&self, fault: Fault) {
        self.0.plan.lock().puts.push_back(Some(fault));
    }

    /// Some of a hundred puts fail, in one way or the other.
    pub fn fail_often(&self, seed: u64, percent: u64) {
        self.0.plan.lock().dice = Some((seed, percent));
    }

    /// Nothing is answered any more, or everything again.
    pub fn set_down(&self, down: bool) {
        self.0.plan.lock().down = down;
    }

    /// Names that exist are given again, as by services that ignore the condition.
    pub fn set_forgetful(&self) {
        self.0.plan.lock().forgetful = true;
    }

    /// How often an operation was asked for.
    pub fn requests(&self, operation: &'static str) -> usize {
        self.0.plan.lock().requests.get(operation).copied().unwrap_or(0)
    }

    /// The bucket itself.
    pub fn inner(&self) -> &InMemory {
        &self.0.inner
    }

    fn ask(&self, operation: &'static str) -> Result<()> {
        let mut plan = self.0.plan.lock();
        *plan.requests.entry(operation).or_default() += 1;
        if plan.down { Err(failed("it is down")) } else { Ok(()) }
    }

    fn fault(&self) -> Option<Fault> {
        let mut plan = self.0.plan.lock();
        if let Some(fault) = plan.puts.pop_front() {
            return fault;
        }
        let (seed, percent) = plan.dice.as_mut()?;
        *seed =
            seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let roll = *seed >> 33;
        let fault = [Fault::Lost, Fault::Refused, Fault::Conflict][(roll / 100 % 3) as usize];
        (roll % 100 < *percent).then_some(fault)
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
        if self.0.plan.lock().forgetful {
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
        let done = self.0.inner.put_opts(location, payload, options).await?;
        if fault == Some(Fault::Lost) { Err(failed("the answer is lost")) } else { Ok(done) }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.ask("upload")?;
        let inner = self.0.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(Upload { inner, faulty: self.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.ask(if options.head { "head" } else { "get" })?;
        self.0.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.ask("delete") {
            Ok(()) => self.0.inner.delete_stream(locations),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.ask("list") {
            Ok(()) => self.0.inner.list(prefix),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.ask("list")?;
        self.0.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.ask("copy")?;
        self.0.inner.copy_opts(from, to, options).await
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
