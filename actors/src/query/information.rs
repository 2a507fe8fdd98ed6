//! `information_schema`: the definitions of one database under the standard's names.
//!
//! `data_type` holds PostgreSQL's type names, which is how dashboards find time columns.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result};
use kymo_kernel::schema::TableName;

use super::catalog::{Sources, table_names, user_schemas};
use super::{pgtypes, system};

/// The name of the schema.
pub(super) const SCHEMA: &str = "information_schema";

/// The schema of one database.
#[derive(Debug)]
pub(super) struct InformationSchema {
    pub(super) database: Arc<str>,
    pub(super) sources: Arc<Sources>,
}

/// A view: its columns and the function that computes its rows. Columns whose name ends in
/// `_position`, `_precision`, `_scale`, `_length` are numbers, all others text.
struct View {
    name: &'static str,
    columns: &'static [&'static str],
    rows: fn(&InformationSchema) -> Vec<Vec<Option<String>>>,
}

static VIEWS: &[View] = &[
    View {
        name: "tables",
        columns: &[
            "table_catalog",
            "table_schema",
            "table_name",
            "table_type",
            "self_referencing_column_name",
            "reference_generation",
            "user_defined_type_catalog",
            "user_defined_type_schema",
            "user_defined_type_name",
            "is_insertable_into",
            "is_typed",
            "commit_action",
        ],
        rows: InformationSchema::tables,
    },
    View {
        name: "columns",
        columns: &[
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "ordinal_position",
            "column_default",
            "is_nullable",
            "data_type",
            "character_maximum_length",
            "character_octet_length",
            "numeric_precision",
            "numeric_precision_radix",
            "numeric_scale",
            "datetime_precision",
            "interval_type",
            "character_set_name",
            "collation_name",
            "domain_name",
            "udt_catalog",
            "udt_schema",
            "udt_name",
            "is_identity",
            "is_generated",
            "is_updatable",
        ],
        rows: InformationSchema::columns,
    },
    View {
        name: "schemata",
        columns: &[
            "catalog_name",
            "schema_name",
            "schema_owner",
            "default_character_set_catalog",
            "default_character_set_schema",
            "default_character_set_name",
            "sql_path",
        ],
        rows: InformationSchema::schemata,
    },
    View {
        name: "views",
        columns: &[
            "table_catalog",
            "table_schema",
            "table_name",
            "view_definition",
            "check_option",
            "is_updatable",
            "is_insertable_into",
        ],
        rows: |_| Vec::new(),
    },
    View {
        name: "table_constraints",
        columns: &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "constraint_type",
            "is_deferrable",
            "initially_deferred",
            "enforced",
        ],
        rows: |_| Vec::new(),
    },
    View {
        name: "key_column_usage",
        columns: &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "ordinal_position",
            "position_in_unique_constraint",
        ],
        rows: |_| Vec::new(),
    },
    View {
        name: "referential_constraints",
        columns: &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "unique_constraint_catalog",
            "unique_constraint_schema",
            "unique_constraint_name",
            "match_option",
            "update_rule",
            "delete_rule",
        ],
        rows: |_| Vec::new(),
    },
    View {
        name: "routines",
        columns: &[
            "specific_catalog",
            "specific_schema",
            "specific_name",
            "routine_catalog",
            "routine_schema",
            "routine_name",
            "routine_type",
            "data_type",
        ],
        rows: |_| Vec::new(),
    },
];

fn is_number(column: &str) -> bool {
    ["_position", "_precision", "_scale", "_length", "_radix"]
        .iter()
        .any(|end| column.ends_with(end))
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

impl InformationSchema {
    /// Every table that a user may be interested in, with its schema and columns.
    fn definitions(&self) -> Vec<(String, String, SchemaRef)> {
        let snapshot = self.sources.tables.catalog();
        let mut found = Vec::new();
        for schema in user_schemas(&snapshot, &self.database) {
            for table in table_names(&snapshot, &self.database, &schema) {
                let name = TableName {
                    database: self.database.to_string(),
                    schema: schema.clone(),
                    table: table.clone(),
                };
                if let Some(meta) = snapshot.table(&name) {
                    found.push((schema.clone(), table, meta.def.schema.arrow()));
                }
            }
        }
        for table in system::names() {
            if let Some(columns) = system::schema(&table) {
                found.push((system::SCHEMA.to_owned(), table, columns));
            }
        }
        found
    }

    fn tables(&self) -> Vec<Vec<Option<String>>> {
        let row = |(schema, table, _): (String, String, SchemaRef)| {
            let system = schema == system::SCHEMA;
            let kind = if system { "VIEW" } else { "BASE TABLE" };
            let insertable = if system { "NO" } else { "YES" };
            vec![
                text(&self.database),
                Some(schema),
                Some(table),
                text(kind),
                None,
                None,
                None,
                None,
                None,
                text(insertable),
                text("NO"),
                None,
            ]
        };
        self.definitions().into_iter().map(row).collect()
    }

    fn columns(&self) -> Vec<Vec<Option<String>>> {
        let mut rows = Vec::new();
        for (schema, table, columns) in self.definitions() {
            for (at, field) in columns.fields().iter().enumerate() {
                rows.push(self.column(&schema, &table, at + 1, field));
            }
        }
        rows
    }

    fn column(&self, schema: &str, table: &str, at: usize, field: &Field) -> Vec<Option<String>> {
        let data_type = field.data_type();
        let precision = match data_type {
            DataType::Float64 => Some(("53", "2", None)),
            DataType::Int64 => Some(("64", "2", Some("0"))),
            DataType::UInt64 => Some(("20", "10", Some("0"))),
            _ => None,
        };
        let time = matches!(data_type, DataType::Timestamp(..)).then(|| "6".to_owned());
        vec![
            text(&self.database),
            text(schema),
            text(table),
            text(field.name()),
            Some(at.to_string()),
            None,
            text(if field.is_nullable() { "YES" } else { "NO" }),
            text(pgtypes::name(data_type)),
            None,
            None,
            precision.map(|(bits, _, _)| bits.to_owned()),
            precision.map(|(_, radix, _)| radix.to_owned()),
            precision.and_then(|(_, _, scale)| scale.map(str::to_owned)),
            time,
            None,
            None,
            None,
            None,
            text(&self.database),
            text("pg_catalog"),
            text(pgtypes::udt(data_type)),
            text("NO"),
            text("NEVER"),
            text("YES"),
        ]
    }

    fn schemata(&self) -> Vec<Vec<Option<String>>> {
        let mut names = user_schemas(&self.sources.tables.catalog(), &self.database);
        names.extend([system::SCHEMA, SCHEMA, "pg_catalog"].map(str::to_owned));
        let row = |name: String| {
            vec![text(&self.database), Some(name), text("kymo"), None, None, None, None]
        };
        names.into_iter().map(row).collect()
    }
}

impl View {
    fn schema(&self) -> SchemaRef {
        let fields = self.columns.iter().map(|name| {
            let data_type = if is_number(name) { DataType::Int32 } else { DataType::Utf8 };
            Field::new(*name, data_type, true)
        });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    fn batch(&self, of: &InformationSchema) -> Result<RecordBatch> {
        let rows = (self.rows)(of);
        let columns = self.columns.iter().enumerate().map(|(at, name)| -> ArrayRef {
            let cells = rows.iter().map(|row| row[at].as_deref());
            if is_number(name) {
                return Arc::new(Int32Array::from_iter(cells.map(|cell| cell?.parse().ok())));
            }
            Arc::new(StringArray::from_iter(cells))
        });
        Ok(RecordBatch::try_new(self.schema(), columns.collect())?)
    }
}

#[async_trait]
impl SchemaProvider for InformationSchema {
    fn table_names(&self) -> Vec<String> {
        VIEWS.iter().map(|view| view.name.to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let Some(view) = VIEWS.iter().find(|view| view.name == name) else { return Ok(None) };
        let batch = view.batch(self)?;
        Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
    }

    fn table_exist(&self, name: &str) -> bool {
        VIEWS.iter().any(|view| view.name == name)
    }
}
