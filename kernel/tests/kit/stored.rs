//! How many rows there are, wherever they lie.

use kymo_kernel::schema::TableName;
use kymo_kernel::storage::Store;

pub fn stored_rows(store: &Store, name: &str) -> u64 {
    let catalog = store.catalog();
    let id = catalog.table(&TableName::new("kymo", name)).unwrap().def.id;
    store.table(id).unwrap().load().stored_rows()
}
