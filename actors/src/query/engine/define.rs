//! Statements that change what is defined: tables, databases, retention, plugins.

use kymo_kernel::message::{Ddl, Kept, PluginCommand, PluginDdl, SessionContext};
use kymo_kernel::schema::SYSTEM_SCHEMA;
use kymo_kernel::{Code, Error, Result};

use super::Engine;
use crate::query::command::{Define, PartialName, Retained};
use crate::query::error::as_written;
use crate::query::manage::Manage;

impl Engine {
    /// Changes what is defined, as a statement says.
    pub(super) async fn define(&self, define: &Define, session: &SessionContext) -> Result<()> {
        let full = |name: &PartialName| name.resolve(&session.database, &session.schema);
        match define {
            Define::CreateTable(new) => {
                let name = full(&new.name);
                name.check()?;
                if name.schema == SYSTEM_SCHEMA {
                    let text = format!("schema {SYSTEM_SCHEMA} holds Kymo's own tables only");
                    return Err(Error::new(Code::InvalidInput, text)
                        .with_hint("create the table in another schema"));
                }
                if let Some(flaw) = &new.flaw {
                    let exists = self.tables.catalog().table(&name).is_some();
                    return if exists { Ok(()) } else { Err(flaw.clone()) };
                }
                let ddl = Ddl::CreateTable {
                    name: name.clone(),
                    schema: new.schema.clone(),
                    options: new.options.clone(),
                    if_not_exists: new.if_not_exists,
                    create_database: false,
                    retention_ns: new.retention_ns,
                };
                let made = self.changes.ddl(ddl).await;
                made.map_err(|error| as_written(error, &name, &new.name))?;
            }
            Define::DropTable { names, if_exists } => {
                for written in names {
                    let name = full(written);
                    let ddl = Ddl::DropTable { name: name.clone(), if_exists: *if_exists };
                    let dropped = self.changes.ddl(ddl).await;
                    dropped.map_err(|error| as_written(error, &name, written))?;
                }
            }
            Define::AlterTable(alter) => {
                let name = full(&alter.name);
                let ddl = Ddl::AlterTable {
                    name: name.clone(),
                    if_exists: alter.if_exists,
                    changes: alter.changes.clone(),
                };
                let altered = self.changes.ddl(ddl).await;
                altered.map_err(|error| as_written(error, &name, &alter.name))?;
            }
            Define::CreateDatabase { name, if_not_exists } => {
                let (name, if_not_exists) = (name.clone(), *if_not_exists);
                self.changes.ddl(Ddl::CreateDatabase { name, if_not_exists }).await?;
            }
            Define::DropDatabase { name, if_exists } => {
                if *name == session.database {
                    return Err(Error::new(
                        Code::InvalidInput,
                        format!("cannot drop the current database \"{name}\""),
                    )
                    .with_hint("USE another database first"));
                }
                let (name, if_exists) = (name.clone(), *if_exists);
                self.changes.ddl(Ddl::DropDatabase { name, if_exists }).await?;
            }
            Define::Retention(Retained::Table(written, retention_ns)) => {
                let (name, retention_ns) = (full(written), *retention_ns);
                let ddl = Ddl::SetRetention { of: Kept::Table(name.clone()), retention_ns };
                let set = self.changes.ddl(ddl).await;
                set.map_err(|error| as_written(error, &name, written))?;
            }
            Define::Retention(Retained::Database(name, retention_ns)) => {
                let (of, retention_ns) = (Kept::Database(name.clone()), *retention_ns);
                self.changes.ddl(Ddl::SetRetention { of, retention_ns }).await?;
            }
            Define::Manage(manage) => self.manage(manage, session).await?,
            Define::Alert(_) => return Err(Error::internal("a rule where none is expected")),
        }
        Ok(())
    }

    /// Changes plugins.
    async fn manage(&self, manage: &Manage, session: &SessionContext) -> Result<()> {
        let full = |table: &PartialName| table.resolve(&session.database, &session.schema);
        let change = match manage.clone() {
            Manage::Plugin(PluginCommand::Change(PluginDdl::Suspend { name, reason, .. })) => {
                let at_ns = self.env.clock.now_ns();
                PluginDdl::Suspend { name, reason, only: None, at_ns }
            }
            Manage::Plugin(PluginCommand::Change(change)) => change,
            Manage::Plugin(install) => return self.changes.plugins(install).await.map(|_| ()),
            Manage::CreateFunction(function, or_replace) => {
                self.free_for_function(&function.name)?;
                PluginDdl::CreateFunction { function, or_replace }
            }
            Manage::Attach(table, transform) => {
                PluginDdl::Attach { table: full(&table), transform }
            }
            Manage::Detach(table, plugin, function) => {
                PluginDdl::Detach { table: full(&table), plugin, function }
            }
        };
        self.changes.plugins(PluginCommand::Change(change)).await.map(|_| ())
    }

    /// Refuses a name that a built-in function has.
    fn free_for_function(&self, name: &str) -> Result<()> {
        let taken = self.base.scalar_functions().contains_key(name)
            || self.base.aggregate_functions().contains_key(name)
            || self.base.window_functions().contains_key(name)
            || self.base.table_functions().contains_key(name);
        if !taken {
            return Ok(());
        }
        Err(Error::new(Code::AlreadyExists, format!("{name:?} is a built-in function"))
            .with_hint("choose another name; built-in functions are not replaced"))
    }
}
