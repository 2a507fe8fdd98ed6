//! What the engine sees when it looks for a table: databases as catalogs, their schemas, and
//! the system schemas beside them.
//!
//! Nothing is copied: each lookup reads the metadata snapshot of that moment.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::DataFusionError;
use datafusion::datasource::TableType;
use datafusion_pg_catalog::pg_catalog::catalog_info::CatalogInfo;
use datafusion_pg_catalog::pg_catalog::context::{PgCatalogContextProvider, Role};
use datafusion_pg_catalog::pg_catalog::{PgCatalogSchemaProvider, PgCatalogStaticTables};
use kymo_kernel::schema::{DEFAULT_SCHEMA, TableName, TableSchema};
use kymo_kernel::storage::meta::Snapshot;
use parking_lot::Mutex;

use super::information;
use super::owners::{Corrected, Owners};
use super::provider::KymoTable;
use super::system::{self, Inspector};
use super::{Changes, Tables};
use crate::alert::history;
use crate::ingest::rejected;

type Shared = Result<Option<Arc<dyn TableProvider>>, DataFusionError>;

/// Everything that a lookup can end at.
pub(super) struct Sources {
    pub(super) owners: Owners,
    pub(super) tables: Arc<dyn Tables>,
    pub(super) changes: Arc<dyn Changes>,
    pub(super) inspector: Arc<Inspector>,
    pub(super) statics: Arc<PgCatalogStaticTables>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Sources")
    }
}

/// All databases.
#[derive(Debug)]
pub(super) struct Databases {
    sources: Arc<Sources>,
    /// One a database, kept: the system catalog numbers its objects as it meets them, and
    /// the numbers must agree between connections.
    known: Mutex<HashMap<String, Arc<Database>>>,
}

impl Databases {
    pub(super) fn new(sources: Arc<Sources>) -> Self {
        Databases { sources, known: Mutex::default() }
    }
}

impl CatalogProviderList for Databases {
    fn register_catalog(
        &self,
        _name: String,
        _catalog: Arc<dyn CatalogProvider>,
    ) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        self.sources.tables.catalog().databases.iter().cloned().collect()
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        let mut known = self.known.lock();
        if !self.sources.tables.catalog().databases.contains(name) {
            known.remove(name);
            return None;
        }
        let database = known.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Database {
                name: name.into(),
                sources: self.sources.clone(),
                pg_catalog: OnceLock::new(),
            })
        });
        Some(database.clone())
    }
}

/// One database.
#[derive(Debug)]
struct Database {
    name: Arc<str>,
    sources: Arc<Sources>,
    pg_catalog: OnceLock<Arc<dyn SchemaProvider>>,
}

/// The schemas of a database that hold users' tables.
pub(super) fn user_schemas(snapshot: &Snapshot, database: &str) -> BTreeSet<String> {
    let named = snapshot
        .names
        .keys()
        .filter(|name| name.database == database && name.schema != system::SCHEMA)
        .map(|name| name.schema.clone());
    named.chain([DEFAULT_SCHEMA.to_owned()]).collect()
}

/// The names of the tables of a schema.
pub(super) fn table_names(snapshot: &Snapshot, database: &str, schema: &str) -> Vec<String> {
    snapshot
        .names
        .keys()
        .filter(|name| name.database == database && name.schema == schema)
        .map(|name| name.table.clone())
        .collect()
}

impl CatalogProvider for Database {
    fn schema_names(&self) -> Vec<String> {
        let mut names = user_schemas(&self.sources.tables.catalog(), &self.name);
        names.extend([system::SCHEMA, information::SCHEMA, "pg_catalog"].map(str::to_owned));
        names.into_iter().collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        match name {
            system::SCHEMA => Some(Arc::new(system::SystemSchema {
                inspector: self.sources.inspector.clone(),
                rejected: Arc::new(self.own(rejected::name(&self.name), &rejected::schema())),
                alert_history: Arc::new(self.own(history::history(), &history::schema())),
            })),
            information::SCHEMA => Some(Arc::new(information::InformationSchema {
                database: self.name.clone(),
                sources: self.sources.clone(),
            })),
            "pg_catalog" => self.pg_catalog(),
            _ => Some(Arc::new(UserSchema {
                database: self.name.clone(),
                schema: name.into(),
                sources: self.sources.clone(),
            })),
        }
    }
}

impl Database {
    /// A table that only Kymo fills, with what is stored of it.
    fn own(&self, name: TableName, schema: &TableSchema) -> system::Rejected {
        let snapshot = self.sources.tables.catalog();
        let (tables, changes) = (self.sources.tables.clone(), self.sources.changes.clone());
        let stored = snapshot
            .table(&name)
            .map(|meta| KymoTable::new(meta.def.clone(), snapshot.version, tables, changes));
        system::Rejected::new(name, schema.arrow(), stored)
    }

    fn pg_catalog(&self) -> Option<Arc<dyn SchemaProvider>> {
        if let Some(made) = self.pg_catalog.get() {
            return Some(made.clone());
        }
        let definitions =
            Definitions { database: self.name.clone(), sources: self.sources.clone() };
        let roles = Roles(self.sources.clone());
        let provider =
            PgCatalogSchemaProvider::try_new(definitions, self.sources.statics.clone(), roles);
        let inner: Arc<dyn SchemaProvider> = Arc::new(provider.ok()?);
        let owners = self.sources.owners.clone();
        let made: Arc<dyn SchemaProvider> = Arc::new(Corrected { inner, owners });
        Some(self.pg_catalog.get_or_init(|| made).clone())
    }
}

/// A schema of users' tables.
#[derive(Debug)]
struct UserSchema {
    database: Arc<str>,
    schema: Arc<str>,
    sources: Arc<Sources>,
}

impl UserSchema {
    fn full(&self, table: &str) -> TableName {
        TableName {
            database: self.database.to_string(),
            schema: self.schema.to_string(),
            table: table.to_owned(),
        }
    }
}

#[async_trait]
impl SchemaProvider for UserSchema {
    fn table_names(&self) -> Vec<String> {
        table_names(&self.sources.tables.catalog(), &self.database, &self.schema)
    }

    async fn table(&self, name: &str) -> Shared {
        let snapshot = self.sources.tables.catalog();
        let Some(meta) = snapshot.table(&self.full(name)) else { return Ok(None) };
        Ok(Some(Arc::new(KymoTable::new(
            meta.def.clone(),
            snapshot.version,
            self.sources.tables.clone(),
            self.sources.changes.clone(),
        ))))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>, DataFusionError> {
        Ok(self.table_exist(name).then_some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.sources.tables.catalog().table(&self.full(name)).is_some()
    }
}

/// The definitions that `pg_catalog` shows: those of one database, as PostgreSQL does, beside
/// the names of the other databases.
#[derive(Debug, Clone)]
struct Definitions {
    database: Arc<str>,
    sources: Arc<Sources>,
}

#[async_trait]
impl CatalogInfo for Definitions {
    async fn catalog_names(&self) -> Result<Vec<String>, DataFusionError> {
        Ok(self.sources.tables.catalog().databases.iter().cloned().collect())
    }

    async fn schema_names(&self, catalog: &str) -> Result<Option<Vec<String>>, DataFusionError> {
        if catalog != &*self.database {
            return Ok(None);
        }
        let mut names = user_schemas(&self.sources.tables.catalog(), catalog);
        names.extend([system::SCHEMA, information::SCHEMA, "pg_catalog"].map(str::to_owned));
        Ok(Some(names.into_iter().collect()))
    }

    async fn table_names(
        &self,
        catalog: &str,
        schema: &str,
    ) -> Result<Option<Vec<String>>, DataFusionError> {
        if catalog != &*self.database {
            return Ok(None);
        }
        Ok(Some(match schema {
            system::SCHEMA => system::names(),
            information::SCHEMA | "pg_catalog" => Vec::new(),
            _ => table_names(&self.sources.tables.catalog(), catalog, schema),
        }))
    }

    async fn table_schema(
        &self,
        catalog: &str,
        schema: &str,
        table: &str,
    ) -> Result<Option<SchemaRef>, DataFusionError> {
        if schema == system::SCHEMA {
            return Ok(system::schema(table));
        }
        let name = TableName {
            database: catalog.to_owned(),
            schema: schema.to_owned(),
            table: table.to_owned(),
        };
        let snapshot = self.sources.tables.catalog();
        Ok(snapshot.table(&name).map(|meta| meta.def.schema.arrow()))
    }

    async fn table_type(
        &self,
        _catalog: &str,
        schema: &str,
        _table: &str,
    ) -> Result<Option<TableType>, DataFusionError> {
        Ok(Some(if schema == system::SCHEMA { TableType::View } else { TableType::Base }))
    }
}

/// Accounts as roles.
#[derive(Debug, Clone)]
struct Roles(Arc<Sources>);

#[async_trait]
impl PgCatalogContextProvider for Roles {
    async fn roles(&self) -> Vec<String> {
        self.0.tables.catalog().users.keys().cloned().collect()
    }

    async fn role(&self, name: &str) -> Option<Role> {
        let snapshot = self.0.tables.catalog();
        let user = snapshot.users.get(name)?;
        Some(Role {
            name: user.name.clone(),
            is_superuser: user.admin,
            can_login: true,
            can_create_db: user.admin,
            can_create_role: user.admin,
            can_create_user: user.admin,
            can_replication: false,
            grants: Vec::new(),
            inherited_roles: Vec::new(),
        })
    }
}
