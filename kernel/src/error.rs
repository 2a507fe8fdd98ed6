//! The one error of Kymo: a stable code for programs, a context for people, a hint about
//! the way out, and whether trying again can help.
//!
//! Inner layers build an error where the fault is known and add context on the way up as
//! short verb phrases; the gateway maps [`Code`] to an HTTP status, an SQLSTATE or a
//! WebSocket close code, and nobody else does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The result of anything in Kymo that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// What went wrong, as a stable identifier that callers may match on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// The identifier as it appears in answers, logs and metrics.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// The request is malformed or asks for something that can never be accepted.
    InvalidInput = "invalid_input",
    /// SQL that does not parse.
    Syntax = "syntax_error",
    /// A named database does not exist.
    DatabaseNotFound = "database_not_found",
    /// A named table does not exist.
    TableNotFound = "table_not_found",
    /// A named column does not exist.
    ColumnNotFound = "column_not_found",
    /// A column name that more than one table in sight has.
    AmbiguousColumn = "ambiguous_column",
    /// A column that is neither grouped nor aggregated.
    Grouping = "grouping_error",
    /// A named function does not exist for these argument types.
    FunctionNotFound = "function_not_found",
    /// A named setting does not exist.
    SettingNotFound = "setting_not_found",
    /// A named plugin, or a version of it, does not exist.
    PluginNotFound = "plugin_not_found",
    /// A named continuous query does not exist.
    QueryNotFound = "query_not_found",
    /// A named alert rule or silence does not exist.
    AlertNotFound = "alert_not_found",
    /// Something that others use and that would be lost to them.
    InUse = "in_use",
    /// A plugin that is suspended, disabled or failed to load.
    PluginUnavailable = "plugin_unavailable",
    /// A plugin failed in a call: it trapped, broke its interface or reported a defect of its own.
    PluginFailed = "plugin_failed",
    /// The object to create exists.
    AlreadyExists = "already_exists",
    /// A value's type differs from its column's.
    TypeConflict = "type_conflict",
    /// A value cannot be read as the wanted type.
    InvalidCast = "invalid_cast",
    /// A number or a timestamp lies outside of its range.
    OutOfRange = "out_of_range",
    /// Division by zero.
    DivisionByZero = "division_by_zero",
    /// A statement parameter is missing or of the wrong type.
    InvalidParameter = "invalid_parameter",
    /// Valid, but not offered by Kymo.
    Unsupported = "unsupported",
    /// The transaction failed earlier; nothing runs until it is rolled back.
    TransactionFailed = "transaction_failed",
    /// The statement needs an open transaction.
    NoTransaction = "no_transaction",
    /// A named cursor does not exist.
    CursorNotFound = "cursor_not_found",
    /// A named prepared statement does not exist.
    StatementNotFound = "statement_not_found",
    /// The prepared statement to create exists.
    StatementExists = "statement_exists",
    /// Bytes that are not valid in the text encoding they claim.
    InvalidEncoding = "invalid_encoding",
    /// A message that the wire protocol does not allow here.
    Protocol = "protocol_violation",
    /// Credentials are missing or wrong.
    NotAuthenticated = "not_authenticated",
    /// Known, but not allowed.
    NotAuthorized = "not_authorized",
    /// A body, line, name or result is over its limit.
    TooLarge = "too_large",
    /// A count is over its limit: connections, columns, series, statements.
    LimitReached = "limit_reached",
    /// Too much is under way; the same request can succeed shortly.
    Busy = "busy",
    /// The deadline passed.
    Deadline = "deadline_exceeded",
    /// Cancelled by the one who asked.
    Cancelled = "cancelled",
    /// The query needs more memory than it may have.
    OutOfMemory = "out_of_memory",
    /// What was asked for was there once and is not kept any more.
    Gone = "gone",
    /// The actor that should answer is gone.
    Down = "down",
    /// The server is starting.
    Starting = "starting",
    /// The server is shutting down.
    ShuttingDown = "shutting_down",
    /// No space left on the device.
    DiskFull = "disk_full",
    /// The operating system reported an I/O error.
    Io = "io_error",
    /// The bucket that the store lies in did not do what was asked.
    Unreachable = "storage_unreachable",
    /// Stored bytes do not verify.
    Corrupt = "corrupt",
    /// The store refused to go on after an earlier error in a durable path.
    Poisoned = "poisoned",
    /// Another process holds the data folder.
    Locked = "locked",
    /// Another owner has taken the partition.
    Fenced = "fenced",
    /// A metadata edit no longer applies.
    Conflict = "conflict",
    /// Settings that cannot be used.
    Settings = "invalid_settings",
    /// A defect of Kymo.
    Internal = "internal",
}

impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It never will.
    Never,
    /// It may, after about this long.
    After(Duration),
}

/// An error with a code, a context and a way out.
///
/// Cheap to clone, so that one failed fsync can answer every writer that waited for it.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    context: String,
    hint: Option<String>,
    position: Option<u32>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with a code and a sentence that names the object concerned.
    pub fn new(code: Code, context: impl Into<String>) -> Self {
        Error(Arc::new(Inner {
            code,
            context: context.into(),
            hint: None,
            position: None,
            source: None,
        }))
    }

    /// An operating-system error in doing `what`, told apart into full disk and the rest.
    pub fn io(what: impl fmt::Display, source: std::io::Error) -> Self {
        let full = matches!(
            source.kind(),
            std::io::ErrorKind::StorageFull
                | std::io::ErrorKind::QuotaExceeded
                | std::io::ErrorKind::FileTooLarge
        );
        // No local disk reports this kind: `crate::bucket` does.
        let remote = source.kind() == std::io::ErrorKind::HostUnreachable;
        let code = match (full, remote) {
            (true, _) => Code::DiskFull,
            (_, true) => Code::Unreachable,
            _ => Code::Io,
        };
        let error = Error::new(code, format!("{what}: {source}")).with_source(source);
        match remote {
            true => error.with_hint("look whether the bucket of storage.url answers; try again"),
            false => error,
        }
    }

    /// A defect of ours: a state that should not exist.
    pub fn internal(context: impl Into<String>) -> Self {
        Error::new(Code::Internal, context)
    }

    /// Adds the way out: what the reader can do about it.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        self.change(|inner| inner.hint = Some(hint.into()))
    }

    /// Adds the place in the SQL text, as a character offset from 1.
    #[must_use]
    pub fn with_position(self, position: u32) -> Self {
        self.change(|inner| inner.position = Some(position))
    }

    /// Keeps the cause for logs.
    #[must_use]
    pub fn with_source(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.change(|inner| inner.source = Some(Arc::new(source)))
    }

    /// Puts a verb phrase in front of the context: `"flush table cpu: …"`.
    #[must_use]
    pub fn context(self, doing: impl fmt::Display) -> Self {
        self.change(|inner| inner.context = format!("{doing}: {}", inner.context))
    }

    fn change(mut self, edit: impl FnOnce(&mut Inner)) -> Self {
        edit(Arc::make_mut(&mut self.0));
        self
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The sentence for people, without the code and the hint.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.context
    }

    /// The way out, where one is known.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The place in the SQL text, as a character offset from 1.
    #[must_use]
    pub fn position(&self) -> Option<u32> {
        self.0.position
    }

    /// Whether and when the same request may succeed.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self.0.code {
            Code::Busy | Code::Down => Retry::After(Duration::from_secs(1)),
            Code::Starting | Code::ShuttingDown | Code::LimitReached | Code::Unreachable => {
                Retry::After(Duration::from_secs(5))
            }
            Code::DiskFull => Retry::After(Duration::from_secs(30)),
            _ => Retry::Never,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.0.code, self.0.context)?;
        if let Some(hint) = &self.0.hint {
            write!(out, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
