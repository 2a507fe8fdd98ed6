//! The system as the protocols see it: their needs met by ports and snapshots.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use kymo_actors::System;
use kymo_actors::backup::Backups;
use kymo_actors::live::{Ask, Subscription};
use kymo_actors::notify::Feed;
use kymo_actors::query::AlertRow;
use kymo_actors::session::{Session, Status};
use kymo_kernel::alert::Matcher;
use kymo_kernel::env::Clock;
use kymo_kernel::message::{
    Acked, Ddl, DdlDone, Outcome, Parse, PluginCommand, PluginDone, Prepared, Query, Runnable,
    SessionContext, Statement, Write,
};
use kymo_kernel::schema::{TableDef, TableName};
use kymo_kernel::storage::changes::{self, Changes};
use kymo_kernel::storage::components::Staged;
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::user::User;
use kymo_kernel::{Code, Error, Result};
use serde_json::Value;

use crate::auth::Accounts;
use crate::auth::accounts::owner_of_token;
use crate::http;
use crate::pgwire::backend::{Backend as PgBackend, Conversation, Transaction};

impl http::Backend for System {
    fn catalog(&self) -> Arc<Snapshot> {
        System::catalog(self)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.env().clock.clone()
    }

    fn write(&self, write: Write) -> BoxFuture<'static, Result<Acked>> {
        let port = System::write(self).clone();
        async move { port.call(write).await }.boxed()
    }

    fn ddl(&self, ddl: Ddl) -> BoxFuture<'static, Result<DdlDone>> {
        let port = System::ddl(self).clone();
        async move { port.call(ddl).await }.boxed()
    }

    fn plugins(&self, command: PluginCommand) -> BoxFuture<'static, Result<PluginDone>> {
        let port = System::plugins(self).clone();
        async move { port.call(command).await }.boxed()
    }

    fn alerts(&self) -> Vec<AlertRow> {
        self.alert_rows()
    }

    fn alert_feed(&self, wanted: Matcher, resume: Option<u64>) -> Option<Feed> {
        Some(self.channels().follow(wanted, resume))
    }

    fn begin_component(&self) -> Result<Staged> {
        self.engine().store().components().begin()
    }

    fn parse(&self, sql: String) -> BoxFuture<'static, Result<Vec<Arc<Statement>>>> {
        let port = System::parse(self).clone();
        async move { port.call(Parse { sql }).await }.boxed()
    }

    fn query(&self, query: Query) -> BoxFuture<'static, Result<Outcome>> {
        let port = System::query(self).clone();
        async move { port.call(query).await }.boxed()
    }

    fn open_session(&self, context: SessionContext) -> Result<Session> {
        System::open_session(self, context)
    }

    fn subscribe(&self, ask: Ask) -> BoxFuture<'static, Result<Subscription>> {
        let live = self.live().clone();
        async move { live.subscribe(ask).await }.boxed()
    }

    fn backups(&self) -> Result<Backups> {
        Ok(System::backups(self).clone())
    }

    fn changes(&self, table: Option<&TableName>, from: changes::From) -> Result<Changes> {
        Changes::open(self.engine().store().clone(), table, from)
    }

    fn status(&self) -> Value {
        System::status(self)
    }

    fn metrics(&self) -> Result<String> {
        self.observe()
    }

    fn ready(&self) -> Result<()> {
        match self.poisoned() {
            Some(error) => Err(error),
            None if self.is_ready() => Ok(()),
            None => Err(Error::new(Code::ShuttingDown, "the server is shutting down")),
        }
    }
}

impl Accounts for System {
    fn user(&self, name: &str) -> Option<User> {
        System::catalog(self).users.get(name).map(|user| user.as_ref().clone())
    }

    fn by_token(&self, digest: &[u8; 32]) -> Option<User> {
        let catalog = System::catalog(self);
        owner_of_token(catalog.users.values().map(Arc::as_ref), digest).cloned()
    }

    fn is_empty(&self) -> bool {
        System::catalog(self).users.is_empty()
    }
}

#[async_trait]
impl PgBackend for System {
    fn has_database(&self, name: &str) -> bool {
        System::catalog(self).databases.contains(name)
    }

    fn table(&self, name: &TableName) -> Option<Arc<TableDef>> {
        System::catalog(self).table(name).map(|table| Arc::clone(&table.def))
    }

    async fn open(&self, context: SessionContext) -> Result<Box<dyn Conversation>> {
        Ok(Box::new(self.open_session(context)?))
    }

    async fn write(&self, write: Write) -> Result<Acked> {
        System::write(self).call(write).await
    }
}

#[async_trait]
impl Conversation for Session {
    async fn parse(&mut self, sql: String) -> Result<Vec<Arc<Statement>>> {
        Session::parse(self, sql).await
    }

    async fn prepare(
        &mut self,
        statement: Arc<Statement>,
        types: Vec<Option<DataType>>,
    ) -> Result<Arc<Prepared>> {
        Session::prepare(self, statement, types).await
    }

    async fn execute(
        &mut self,
        run: Runnable,
        parameters: Vec<ArrayRef>,
        timeout: Option<Duration>,
    ) -> Result<Outcome> {
        Session::execute(self, run, parameters, timeout).await
    }

    fn transaction(&self) -> Transaction {
        match Session::transaction(self) {
            Status::Idle => Transaction::Idle,
            Status::InBlock => Transaction::InBlock,
            Status::Failed => Transaction::Failed,
        }
    }

    fn context(&self) -> Arc<SessionContext> {
        Session::context(self)
    }

    fn canceller(&self) -> Arc<dyn Fn() + Send + Sync> {
        let canceller = Session::canceller(self);
        Arc::new(move || canceller.cancel())
    }
}
