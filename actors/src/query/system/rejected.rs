//! System tables whose rows are stored: `system.rejected_writes`, the rows that transforms of a
//! database refused, and `system.alert_history`, what became of alerts.
//!
//! They can be read like any table, also before the first row was written, and take none from
//! outside.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;

use kymo_kernel::ids::TableId;
use kymo_kernel::schema::TableName;

use super::super::provider::KymoTable;
use crate::ingest::rejected;

pub(super) use crate::ingest::rejected::TABLE;

/// Its columns.
pub(super) fn schema() -> SchemaRef {
    rejected::schema().arrow()
}

/// A table that only Kymo fills.
pub(crate) struct Rejected {
    name: TableName,
    /// Its columns as long as nothing is stored.
    empty: SchemaRef,
    /// Where the rows are; `None` before the first one.
    stored: Option<KymoTable>,
}

impl Rejected {
    /// The table of a name over what is stored, if anything is.
    pub(crate) fn new(name: TableName, empty: SchemaRef, stored: Option<KymoTable>) -> Rejected {
        Rejected { name, empty, stored }
    }

    /// What a plan was made with: name, id and schema version, zero where nothing is stored.
    pub(crate) fn identity(&self) -> (TableName, TableId, u32) {
        let def = self.stored.as_ref().map(KymoTable::def);
        let known = def.map_or_else(Default::default, |def| (def.id, def.schema.version));
        (self.name.clone(), known.0, known.1)
    }
}

impl fmt::Debug for Rejected {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Rejected({:?})", self.stored)
    }
}

#[async_trait]
impl TableProvider for Rejected {
    fn schema(&self) -> SchemaRef {
        self.stored.as_ref().map_or_else(|| self.empty.clone(), KymoTable::schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        match &self.stored {
            Some(stored) => stored.supports_filters_pushdown(filters),
            None => Ok(vec![TableProviderFilterPushDown::Unsupported; filters.len()]),
        }
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(stored) = &self.stored {
            return stored.scan(state, projection, filters, limit).await;
        }
        let (schema, none) = (self.empty.clone(), RecordBatch::new_empty(self.empty.clone()));
        let scan = MemorySourceConfig::try_new_exec(&[vec![none]], schema, projection.cloned())?;
        Ok(scan)
    }
}
