//! The state of a connection as a pure machine: transaction status, settings, savepoints.
//!
//! Kymo makes each write durable by itself; a transaction block groups nothing. What drivers
//! rely on is kept all the same: the status, that nothing runs in a failed block, that `SET
//! LOCAL` ends with its block and that a rollback takes settings back.

use std::sync::Arc;

use kymo_kernel::message::SessionContext;
use kymo_kernel::{Code, Error, Result};

use crate::query::{Command, Scope, Transaction};

use super::Status;

/// Savepoints that one block may have.
const MAX_SAVEPOINTS: usize = 1024;

/// The machine.
#[derive(Debug)]
pub(super) struct Machine {
    /// What the connection began with; the defaults of `RESET`.
    initial: SessionContext,
    /// What holds now.
    current: Arc<SessionContext>,
    /// What will hold after a commit.
    kept: SessionContext,
    /// What held before the block.
    before: SessionContext,
    savepoints: Vec<String>,
    status: Status,
}

impl Machine {
    pub(super) fn new(initial: SessionContext) -> Self {
        Machine {
            current: Arc::new(initial.clone()),
            kept: initial.clone(),
            before: initial.clone(),
            initial,
            savepoints: Vec::new(),
            status: Status::Idle,
        }
    }

    pub(super) fn status(&self) -> Status {
        self.status
    }

    pub(super) fn context(&self) -> &Arc<SessionContext> {
        &self.current
    }

    /// Notes that a statement failed.
    pub(super) fn failed(&mut self) {
        if self.status == Status::InBlock {
            self.status = Status::Failed;
        }
    }

    /// Whether a statement may run now.
    ///
    /// # Errors
    /// `transaction_failed` for anything but the end of a failed block.
    pub(super) fn admit(&self, command: &Command) -> Result<()> {
        let ends = matches!(
            command,
            Command::Transaction(
                Transaction::Commit | Transaction::Rollback | Transaction::RollbackTo(_)
            )
        );
        if self.status != Status::Failed || ends {
            return Ok(());
        }
        Err(Error::new(
            Code::TransactionFailed,
            "current transaction is aborted, commands ignored until end of transaction block",
        )
        .with_hint("ROLLBACK ends the block"))
    }

    /// Applies changes of settings; `None` as the value means back to the default.
    pub(super) fn set(&mut self, changes: Vec<(String, Option<String>)>, scope: Scope) {
        let mut current = self.current.as_ref().clone();
        let local = scope == Scope::Transaction;
        // Outside of a block there is nothing that SET LOCAL could last for.
        if local && self.status == Status::Idle {
            return;
        }
        for (name, value) in changes {
            apply(&mut current, &self.initial, &name, value.as_deref());
            if !local {
                apply(&mut self.kept, &self.initial, &name, value.as_deref());
            }
        }
        self.current = Arc::new(current);
    }

    /// Moves through a transaction statement; answers the command tag.
    ///
    /// # Errors
    /// `no_transaction` for savepoints outside of a block, `invalid_input` for an unknown one.
    pub(super) fn transaction(&mut self, command: &Transaction) -> Result<&'static str> {
        match command {
            Transaction::Begin(tag) => {
                if self.status == Status::Idle {
                    self.status = Status::InBlock;
                    self.before = self.current.as_ref().clone();
                    self.kept = self.before.clone();
                    self.savepoints.clear();
                }
                Ok(tag)
            }
            Transaction::Commit => {
                let failed = self.status == Status::Failed;
                self.end(!failed);
                Ok(if failed { "ROLLBACK" } else { "COMMIT" })
            }
            Transaction::Rollback => {
                self.end(false);
                Ok("ROLLBACK")
            }
            Transaction::Savepoint(name) => {
                self.in_block("SAVEPOINT")?;
                if self.savepoints.len() >= MAX_SAVEPOINTS {
                    return Err(Error::new(Code::LimitReached, "too many savepoints"));
                }
                self.savepoints.push(name.clone());
                Ok("SAVEPOINT")
            }
            Transaction::Release(name) => {
                self.in_block("RELEASE SAVEPOINT")?;
                let at = self.savepoint(name)?;
                self.savepoints.truncate(at);
                Ok("RELEASE")
            }
            Transaction::RollbackTo(name) => {
                self.in_block("ROLLBACK TO SAVEPOINT")?;
                let at = self.savepoint(name)?;
                self.savepoints.truncate(at + 1);
                self.status = Status::InBlock;
                Ok("ROLLBACK")
            }
            Transaction::Modes => Ok("SET"),
        }
    }

    fn in_block(&self, what: &str) -> Result<()> {
        if self.status != Status::Idle {
            return Ok(());
        }
        Err(Error::new(
            Code::NoTransaction,
            format!("{what} can only be used in transaction blocks"),
        ))
    }

    fn savepoint(&self, name: &str) -> Result<usize> {
        self.savepoints.iter().rposition(|each| each == name).ok_or_else(|| {
            Error::new(Code::InvalidInput, format!("savepoint \"{name}\" does not exist"))
        })
    }

    fn end(&mut self, commit: bool) {
        if self.status == Status::Idle {
            return;
        }
        let after = if commit { &self.kept } else { &self.before };
        self.current = Arc::new(after.clone());
        self.kept = after.clone();
        self.status = Status::Idle;
        self.savepoints.clear();
    }
}

fn apply(context: &mut SessionContext, initial: &SessionContext, name: &str, value: Option<&str>) {
    match name {
        "database" => context.database = value.unwrap_or(&initial.database).to_owned(),
        "schema" => context.schema = value.unwrap_or(&initial.schema).to_owned(),
        _ => {
            let value = value.map(str::to_owned).or_else(|| initial.settings.get(name).cloned());
            match value {
                Some(value) => context.settings.insert(name.to_owned(), value),
                None => context.settings.remove(name),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine::new(SessionContext {
            user: "ada".into(),
            admin: true,
            database: "kymo".into(),
            schema: "public".into(),
            settings: [("application_name".to_owned(), "psql".to_owned())].into(),
            read_only: false,
        })
    }

    fn set(machine: &mut Machine, name: &str, value: Option<&str>, scope: Scope) {
        machine.set(vec![(name.to_owned(), value.map(str::to_owned))], scope);
    }

    fn value(machine: &Machine, name: &str) -> Option<String> {
        machine.context().settings.get(name).cloned()
    }

    #[test]
    fn a_failed_block_takes_nothing_but_its_end() {
        let mut machine = machine();
        machine.failed();
        assert_eq!(machine.status(), Status::Idle);
        machine.transaction(&Transaction::Begin("BEGIN")).unwrap();
        machine.failed();
        assert_eq!(machine.status(), Status::Failed);
        let refused = machine.admit(&Command::Nothing).unwrap_err();
        assert_eq!(refused.code(), Code::TransactionFailed);
        machine.admit(&Command::Transaction(Transaction::Rollback)).unwrap();
        assert_eq!(machine.transaction(&Transaction::Commit).unwrap(), "ROLLBACK");
        assert_eq!(machine.status(), Status::Idle);
    }

    #[test]
    fn a_savepoint_rescues_a_failed_block() {
        let mut machine = machine();
        assert_eq!(
            machine.transaction(&Transaction::Savepoint("a".into())).unwrap_err().code(),
            Code::NoTransaction
        );
        machine.transaction(&Transaction::Begin("BEGIN")).unwrap();
        machine.transaction(&Transaction::Savepoint("a".into())).unwrap();
        machine.transaction(&Transaction::Savepoint("b".into())).unwrap();
        machine.failed();
        machine.transaction(&Transaction::RollbackTo("a".into())).unwrap();
        assert_eq!(machine.status(), Status::InBlock);
        assert!(machine.transaction(&Transaction::Release("b".into())).is_err());
        machine.transaction(&Transaction::Release("a".into())).unwrap();
    }

    #[test]
    fn settings_follow_their_block() {
        let mut machine = machine();
        set(&mut machine, "jit", Some("on"), Scope::Transaction);
        assert_eq!(value(&machine, "jit"), None);
        machine.transaction(&Transaction::Begin("BEGIN")).unwrap();
        set(&mut machine, "jit", Some("on"), Scope::Transaction);
        set(&mut machine, "statement_timeout", Some("5"), Scope::Session);
        assert_eq!(value(&machine, "jit").as_deref(), Some("on"));
        machine.transaction(&Transaction::Commit).unwrap();
        assert_eq!(value(&machine, "jit"), None);
        assert_eq!(value(&machine, "statement_timeout").as_deref(), Some("5"));
        machine.transaction(&Transaction::Begin("BEGIN")).unwrap();
        set(&mut machine, "schema", Some("other"), Scope::Session);
        assert_eq!(machine.context().schema, "other");
        machine.transaction(&Transaction::Rollback).unwrap();
        assert_eq!(machine.context().schema, "public");
    }

    #[test]
    fn reset_goes_back_to_what_the_connection_began_with() {
        let mut machine = machine();
        set(&mut machine, "application_name", Some("x"), Scope::Session);
        set(&mut machine, "application_name", None, Scope::Session);
        assert_eq!(value(&machine, "application_name").as_deref(), Some("psql"));
    }
}
