//! Who owns things, for the system catalogs: the administrator, since definitions are theirs.
//!
//! The tables of `datafusion-pg-catalog` know one owner, `postgres`, and a database of that
//! name. Here their rows are corrected as they are read.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray};
use datafusion::arrow::compute::{concat_batches, filter_record_batch};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::{SchemaProvider, Session, TableProvider};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_plan::{ExecutionPlan, collect};
use kymo_config::Settings;

use super::Tables;

/// The accounts, as far as ownership goes.
#[derive(Clone)]
pub(super) struct Owners {
    pub(super) tables: Arc<dyn Tables>,
    pub(super) settings: Arc<Settings>,
}

impl std::fmt::Debug for Owners {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Owners")
    }
}

impl Owners {
    /// The administrator that the settings name, or else the first one there is.
    fn owner(&self) -> String {
        let named = &self.settings.auth.admin_user;
        let users = &self.tables.catalog().users;
        if users.get(named).is_some_and(|user| user.admin) {
            return named.clone();
        }
        users.values().find(|user| user.admin).map_or_else(|| named.clone(), |u| u.name.clone())
    }

    /// `pg_get_userbyid(oid)`.
    pub(super) fn function(&self) -> ScalarUDF {
        let signature = Signature::any(1, Volatility::Stable);
        ScalarUDF::from(UserById { owners: self.clone(), signature })
    }
}

#[derive(Debug)]
struct UserById {
    owners: Owners,
    signature: Signature,
}

// One function a name: the name is the identity.
impl PartialEq for UserById {
    fn eq(&self, other: &Self) -> bool {
        self.signature == other.signature
    }
}

impl Eq for UserById {}

impl Hash for UserById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.signature.hash(state);
    }
}

impl ScalarUDFImpl for UserById {
    fn name(&self) -> &str {
        "pg_get_userbyid"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(self.owners.owner()))))
    }
}

/// The schema `pg_catalog` with corrected rows.
#[derive(Debug)]
pub(super) struct Corrected {
    pub(super) inner: Arc<dyn SchemaProvider>,
    pub(super) owners: Owners,
}

#[async_trait]
impl SchemaProvider for Corrected {
    fn table_names(&self) -> Vec<String> {
        self.inner.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let Some(inner) = self.inner.table(name).await? else { return Ok(None) };
        let correct: fn(&Owners, RecordBatch) -> Result<RecordBatch> = match name {
            "pg_database" => existing_databases,
            "pg_tables" => true_owners,
            _ => return Ok(Some(inner)),
        };
        Ok(Some(Arc::new(Correction { inner, owners: self.owners.clone(), correct })))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>, DataFusionError> {
        self.inner.table_type(name).await
    }

    fn table_exist(&self, name: &str) -> bool {
        self.inner.table_exist(name)
    }
}

/// Only the databases that exist.
fn existing_databases(owners: &Owners, rows: RecordBatch) -> Result<RecordBatch> {
    let snapshot = owners.tables.catalog();
    let names = rows.column(rows.schema().index_of("datname")?);
    let exists = names
        .as_string::<i32>()
        .iter()
        .map(|name| name.is_some_and(|name| snapshot.databases.contains(name)));
    let exists: BooleanArray = exists.map(Some).collect();
    Ok(filter_record_batch(&rows, &exists)?)
}

/// The owner in the place of an invented one.
fn true_owners(owners: &Owners, rows: RecordBatch) -> Result<RecordBatch> {
    let at = rows.schema().index_of("tableowner")?;
    let mut columns = rows.columns().to_vec();
    let owner = owners.owner();
    let named: ArrayRef =
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(owner, rows.num_rows())));
    columns[at] = named;
    Ok(RecordBatch::try_new(rows.schema(), columns)?)
}

/// A catalog table whose rows are corrected as they are read.
#[derive(Debug)]
struct Correction {
    inner: Arc<dyn TableProvider>,
    owners: Owners,
    correct: fn(&Owners, RecordBatch) -> Result<RecordBatch>,
}

#[async_trait]
impl TableProvider for Correction {
    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }

    fn table_type(&self) -> TableType {
        self.inner.table_type()
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all = self.inner.scan(state, None, &[], None).await?;
        let schema = all.schema();
        let batches = collect(all, state.task_ctx()).await?;
        let rows = (self.correct)(&self.owners, concat_batches(&schema, &batches)?)?;
        let scan = MemorySourceConfig::try_new_exec(&[vec![rows]], schema, projection.cloned())?;
        Ok(scan)
    }
}
