//! Functions that tell about the session and the server, under PostgreSQL's names.
//!
//! Drivers, dashboards and administration tools call them when they connect. Where Kymo has
//! nothing of the kind, the answer is the one that an empty PostgreSQL database would give.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, ListArray, StringArray, StringBuilder,
};
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use kymo_kernel::Error;
use kymo_kernel::message::{SessionContext, SettingChange};

use crate::query::context::Caller;
use crate::query::guc;
use crate::query::pgtypes;

/// What a function does with its arguments.
#[derive(Clone, Copy)]
enum Body {
    /// The same for all rows, from the session.
    Text(fn(&SessionContext) -> String),
    /// A constant, NULL for `None`.
    Constant(Option<&'static str>),
    /// A constant truth.
    Truth(bool),
    /// A constant number, NULL for `None`.
    Number(Option<i64>),
    /// `current_setting(name[, missing_ok])`.
    CurrentSetting,
    /// `set_config(name, value, is_local)`: noted for the session to keep.
    SetConfig,
    /// `pg_typeof(anything)`.
    TypeOf,
    /// `current_schemas(include_implicit)`.
    Schemas,
    /// The first argument as text.
    Echo,
}

struct Function {
    name: &'static str,
    /// How many arguments it takes, from and to.
    arguments: (usize, usize),
    body: Body,
}

/// The processes of a PostgreSQL server are its connections; here there is one process.
const BACKEND_PID: i64 = 1;

const fn function(name: &'static str, from: usize, to: usize, body: Body) -> Function {
    Function { name, arguments: (from, to), body }
}

static FUNCTIONS: &[Function] = &[
    function("version", 0, 0, Body::Text(|_| version())),
    function("current_user", 0, 0, Body::Text(|session| session.user.clone())),
    function("session_user", 0, 0, Body::Text(|session| session.user.clone())),
    function("user", 0, 0, Body::Text(|session| session.user.clone())),
    function("current_role", 0, 0, Body::Text(|session| session.user.clone())),
    function("current_database", 0, 0, Body::Text(|session| session.database.clone())),
    function("current_catalog", 0, 0, Body::Text(|session| session.database.clone())),
    function("current_schema", 0, 0, Body::Text(|session| session.schema.clone())),
    function("current_schemas", 1, 1, Body::Schemas),
    function("current_query", 0, 0, Body::Constant(Some(""))),
    function("current_setting", 1, 2, Body::CurrentSetting),
    function("set_config", 3, 3, Body::SetConfig),
    function("pg_typeof", 1, 1, Body::TypeOf),
    function("to_regtype", 1, 1, Body::Number(None)),
    function("pg_backend_pid", 0, 0, Body::Number(Some(BACKEND_PID))),
    function("pg_is_in_recovery", 0, 0, Body::Truth(false)),
    function("pg_is_wal_replay_paused", 0, 0, Body::Truth(false)),
    function("pg_advisory_unlock_all", 0, 0, Body::Constant(None)),
    function("pg_advisory_lock", 1, 2, Body::Constant(None)),
    function("pg_try_advisory_lock", 1, 2, Body::Truth(true)),
    function("pg_advisory_unlock", 1, 2, Body::Truth(true)),
    function("pg_advisory_xact_lock", 1, 2, Body::Constant(None)),
    function("pg_try_advisory_xact_lock", 1, 2, Body::Truth(true)),
    function("pg_notify", 2, 2, Body::Constant(None)),
    function("pg_my_temp_schema", 0, 0, Body::Number(Some(0))),
    function("pg_is_other_temp_schema", 1, 1, Body::Truth(false)),
    function("inet_server_addr", 0, 0, Body::Constant(None)),
    function("inet_client_addr", 0, 0, Body::Constant(None)),
    function("inet_server_port", 0, 0, Body::Number(None)),
    function("inet_client_port", 0, 0, Body::Number(None)),
    function("obj_description", 1, 2, Body::Constant(None)),
    function("col_description", 2, 2, Body::Constant(None)),
    function("shobj_description", 2, 2, Body::Constant(None)),
    function("pg_get_viewdef", 1, 2, Body::Constant(None)),
    function("pg_get_indexdef", 1, 3, Body::Constant(None)),
    function("pg_get_functiondef", 1, 1, Body::Constant(None)),
    function("pg_get_function_result", 1, 1, Body::Constant(None)),
    function("pg_get_function_arguments", 1, 1, Body::Constant(None)),
    function("pg_get_function_identity_arguments", 1, 1, Body::Constant(None)),
    function("pg_get_triggerdef", 1, 2, Body::Constant(None)),
    function("pg_get_ruledef", 1, 2, Body::Constant(None)),
    function("pg_get_serial_sequence", 2, 2, Body::Constant(None)),
    function("pg_tablespace_location", 1, 1, Body::Constant(Some(""))),
    function("pg_database_size", 1, 1, Body::Number(None)),
    function("pg_table_size", 1, 1, Body::Number(None)),
    function("pg_indexes_size", 1, 1, Body::Number(Some(0))),
    function("pg_size_pretty", 1, 1, Body::Echo),
    function("pg_function_is_visible", 1, 1, Body::Truth(true)),
    function("pg_type_is_visible", 1, 1, Body::Truth(true)),
    function("pg_operator_is_visible", 1, 1, Body::Truth(true)),
    function("pg_collation_is_visible", 1, 1, Body::Truth(true)),
    function("pg_opclass_is_visible", 1, 1, Body::Truth(true)),
    function("pg_conversion_is_visible", 1, 1, Body::Truth(true)),
    function("has_function_privilege", 2, 3, Body::Truth(true)),
    function("has_column_privilege", 3, 4, Body::Truth(true)),
    function("has_sequence_privilege", 2, 3, Body::Truth(true)),
    function("pg_has_role", 2, 3, Body::Truth(true)),
    function("pg_encoding_max_length", 1, 1, Body::Number(Some(4))),
    function("txid_current", 0, 0, Body::Number(Some(1))),
    function("pg_current_xact_id", 0, 0, Body::Number(Some(1))),
    function("pg_jit_available", 0, 0, Body::Truth(false)),
    function("pg_postmaster_pid", 0, 0, Body::Number(Some(BACKEND_PID))),
];

/// What `version()` answers: a PostgreSQL version that drivers can read, and our own.
pub(crate) fn version() -> String {
    format!("PostgreSQL {} (Kymo {})", guc::PG_VERSION, env!("CARGO_PKG_VERSION"))
}

/// All of them.
pub(super) fn all() -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.iter().map(|each| Arc::new(ScalarUDF::from(SessionFunction::new(each)))).collect()
}

#[derive(Debug)]
struct SessionFunction {
    name: &'static str,
    arguments: (usize, usize),
    body: BodyBox,
    signature: Signature,
}

/// Bodies hold function pointers, which say nothing when shown.
#[derive(Clone, Copy)]
struct BodyBox(Body);

impl std::fmt::Debug for BodyBox {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("…")
    }
}

// One function a name: the name is the identity.
impl PartialEq for SessionFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for SessionFunction {}

impl std::hash::Hash for SessionFunction {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl SessionFunction {
    fn new(function: &Function) -> Self {
        let signature = match function.arguments {
            (0, 0) => Signature::nullary(Volatility::Stable),
            // It acts, so it runs when the statement does and not when it is planned.
            _ if matches!(function.body, Body::SetConfig) => {
                Signature::user_defined(Volatility::Volatile)
            }
            _ => Signature::user_defined(Volatility::Stable),
        };
        SessionFunction {
            name: function.name,
            arguments: function.arguments,
            body: BodyBox(function.body),
            signature,
        }
    }
}

impl ScalarUDFImpl for SessionFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let (from, to) = self.arguments;
        if !(from..=to).contains(&types.len()) {
            return plan_err!(
                "No function matches {}() with {} arguments; it takes {}",
                self.name,
                types.len(),
                if from == to { from.to_string() } else { format!("{from} to {to}") }
            );
        }
        let text = |data_type: &DataType| match data_type {
            DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => DataType::Utf8,
            DataType::Dictionary(_, values) if **values == DataType::Utf8 => DataType::Utf8,
            other => other.clone(),
        };
        Ok(match self.body.0 {
            Body::Echo => vec![DataType::Utf8],
            Body::TypeOf => types.to_vec(),
            Body::SetConfig => vec![DataType::Utf8, DataType::Utf8, DataType::Boolean],
            Body::CurrentSetting if types.len() == 2 => vec![DataType::Utf8, DataType::Boolean],
            Body::CurrentSetting => vec![DataType::Utf8],
            _ => types.iter().map(text).collect(),
        })
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(match self.body.0 {
            Body::Truth(_) => DataType::Boolean,
            // Process and port numbers are int4 in PostgreSQL; sizes and ids are int8.
            Body::Number(_) if self.name.ends_with("pid") || self.name.ends_with("port") => {
                DataType::Int32
            }
            Body::Number(_) => DataType::Int64,
            Body::Schemas => DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))),
            _ => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let session = || {
            Caller::of(&args.config_options).ok_or_else(|| {
                DataFusionError::Execution(format!("{}() needs a session", self.name))
            })
        };
        let text = |value: Option<String>| ColumnarValue::Scalar(ScalarValue::Utf8(value));
        Ok(match self.body.0 {
            Body::Text(value) => text(Some(value(session()?))),
            Body::Constant(value) => text(value.map(str::to_owned)),
            Body::Truth(value) => ColumnarValue::Scalar(ScalarValue::Boolean(Some(value))),
            Body::Number(value) => {
                let wide = ScalarValue::Int64(value);
                ColumnarValue::Scalar(wide.cast_to(args.return_field.data_type())?)
            }
            Body::CurrentSetting => current_setting(session()?, &args)?,
            Body::SetConfig => set_config(&args)?,
            Body::TypeOf => {
                let name = args.arg_fields.first().map(|field| pgtypes::name(field.data_type()));
                text(name.map(str::to_owned))
            }
            Body::Schemas => schemas(session()?),
            Body::Echo => args.args.into_iter().next().unwrap_or(text(None)),
        })
    }
}

fn raise(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Reads a text argument row by row; arguments are few, so they are expanded.
fn texts(args: &ScalarFunctionArgs, at: usize) -> Result<StringArray> {
    let array = args.args[at].to_array(args.number_rows)?;
    Ok(array.as_string::<i32>().clone())
}

fn truths(args: &ScalarFunctionArgs, at: usize) -> Result<Option<BooleanArray>> {
    match args.args.get(at) {
        Some(value) => Ok(Some(value.to_array(args.number_rows)?.as_boolean().clone())),
        None => Ok(None),
    }
}

/// All arguments constant means that the answer is, which lets the planner use it as one.
fn answer(args: &ScalarFunctionArgs, array: ArrayRef) -> Result<ColumnarValue> {
    let constant = args.args.iter().all(|each| matches!(each, ColumnarValue::Scalar(_)));
    if constant && !array.is_empty() {
        return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?));
    }
    Ok(ColumnarValue::Array(array))
}

fn current_setting(session: &SessionContext, args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let names = texts(args, 0)?;
    let missing_ok = truths(args, 1)?;
    let mut out = StringBuilder::new();
    for (row, name) in names.iter().enumerate() {
        let Some(name) = name else {
            out.append_null();
            continue;
        };
        match guc::show(session, name) {
            Ok(value) => out.append_value(value),
            Err(_) if missing_ok.as_ref().is_some_and(|ok| ok.is_valid(row) && ok.value(row)) => {
                out.append_null();
            }
            Err(error) => return Err(raise(error)),
        }
    }
    answer(args, Arc::new(out.finish()))
}

fn set_config(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let Some(changes) = Caller::changes(&args.config_options) else {
        return exec_err!("set_config() needs a session");
    };
    let (names, values, local) = (texts(args, 0)?, texts(args, 1)?, truths(args, 2)?);
    let mut out = StringBuilder::new();
    for (row, (name, value)) in names.iter().zip(values.iter()).enumerate() {
        let Some(name) = name else {
            out.append_null();
            continue;
        };
        let (name, value) = guc::check(name, value).map_err(raise)?;
        let local = local.as_ref().is_some_and(|local| local.is_valid(row) && local.value(row));
        out.append_option(value.as_deref());
        changes.lock().push(SettingChange { name, value, local });
    }
    Ok(ColumnarValue::Array(Arc::new(out.finish())))
}

fn schemas(session: &SessionContext) -> ColumnarValue {
    let mut names = vec!["pg_catalog".to_owned()];
    names.push(session.schema.clone());
    let values: Vec<ScalarValue> =
        names.into_iter().map(|name| ScalarValue::Utf8(Some(name))).collect();
    let list: Arc<ListArray> = ScalarValue::new_list_nullable(&values, &DataType::Utf8);
    ColumnarValue::Scalar(ScalarValue::List(list))
}
