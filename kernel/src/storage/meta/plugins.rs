//! What edits do to plugins, functions and transforms. Whatever order they come in, a function
//! or a transform never names a plugin that is not there, and a transform never a table that
//! is not there.

use std::sync::Arc;

use super::{Snapshot, conflict, no_table};
use crate::error::{Code, Error, Result};
use crate::ids::TableId;
use crate::plugin::{FunctionDef, PluginDef, TransformDef};

impl Snapshot {
    pub(super) fn put_plugin(&mut self, plugin: &PluginDef) -> Result<()> {
        let current = self.plugins.get(&plugin.name).map_or(0, |known| known.revision);
        if plugin.revision != current + 1 {
            return Err(conflict(format!(
                "plugin {:?} is at revision {current}, the edit brings {}",
                plugin.name, plugin.revision
            )));
        }
        plugin.check()?;
        Arc::make_mut(&mut self.plugins).insert(plugin.name.clone(), Arc::new(plugin.clone()));
        Ok(())
    }

    pub(super) fn drop_plugin(&mut self, name: &str) -> Result<()> {
        if let Some(user) = self.users_of_plugin(name).first() {
            return Err(conflict(format!("plugin {name:?} is used by {user}")));
        }
        match Arc::make_mut(&mut self.plugins).remove(name) {
            Some(_) => Ok(()),
            None => Err(no_plugin(name)),
        }
    }

    pub(super) fn put_function(&mut self, function: &FunctionDef) -> Result<()> {
        self.need_plugin(&function.plugin)?;
        Arc::make_mut(&mut self.functions)
            .insert(function.name.clone(), Arc::new(function.clone()));
        Ok(())
    }

    pub(super) fn drop_function(&mut self, name: &str) -> Result<()> {
        match Arc::make_mut(&mut self.functions).remove(name) {
            Some(_) => Ok(()),
            None => {
                Err(Error::new(Code::FunctionNotFound, format!("function {name:?} does not exist")))
            }
        }
    }

    pub(super) fn put_transforms(&mut self, table: TableId, chain: &[TransformDef]) -> Result<()> {
        if !self.tables.contains_key(&table) {
            return Err(no_table(table));
        }
        chain.iter().try_for_each(|transform| self.need_plugin(&transform.plugin))?;
        let transforms = Arc::make_mut(&mut self.transforms);
        if chain.is_empty() {
            transforms.remove(&table);
        } else {
            transforms.insert(table, Arc::new(chain.to_vec()));
        }
        Ok(())
    }

    /// A dropped table takes its transforms along.
    pub(super) fn forget_transforms(&mut self, table: TableId) {
        if self.transforms.contains_key(&table) {
            Arc::make_mut(&mut self.transforms).remove(&table);
        }
    }

    /// Everything that would break without a plugin, in words for people.
    #[must_use]
    pub fn users_of_plugin(&self, name: &str) -> Vec<String> {
        let functions = self.functions.values().filter(|function| function.plugin == name);
        let mut users: Vec<String> =
            functions.map(|function| format!("function {:?}", function.name)).collect();
        for (table, chain) in self.transforms.iter() {
            let Some(table) = self.tables.get(table) else { continue };
            let own = chain.iter().filter(|transform| transform.plugin == name);
            users.extend(own.map(|transform| {
                format!("transform {}.{} of table {}", name, transform.function, table.def.name)
            }));
        }
        users
    }

    fn need_plugin(&self, name: &str) -> Result<()> {
        if self.plugins.contains_key(name) { Ok(()) } else { Err(no_plugin(name)) }
    }
}

fn no_plugin(name: &str) -> Error {
    Error::new(Code::PluginNotFound, format!("plugin {name:?} does not exist"))
        .with_hint("SHOW PLUGINS lists the plugins that do")
}
