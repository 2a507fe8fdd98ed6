//! What changes of plugins, functions and transforms mean.
//!
//! A new version may take away what others rely on: functions made by `CREATE FUNCTION` and
//! transforms of tables. Such a change is refused by name unless it is forced, and then they
//! fail with the reason until a version brings back what they need.

use kymo_kernel::digest::Digest;
use kymo_kernel::ids::TableId;
use kymo_kernel::message::{Existing, PluginDdl};
use kymo_kernel::plugin::{
    Canary, FunctionDef, PluginDef, PluginVersionDef, Suspension, TransformDef,
};
use kymo_kernel::schema::{SYSTEM_SCHEMA, TableName, check_name};
use kymo_kernel::storage::meta::{Op, Snapshot};
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::{Description, Kind, Overload};

use super::{Limits, Plan};
use crate::plugin_types::sql_name;

/// Plans one change.
///
/// # Errors
/// `plugin_not_found`, `function_not_found` and `table_not_found` where a name is missing,
/// `already_exists` where one is taken, `in_use` where others would lose what they use,
/// `invalid_input` for what cannot be, `limit_reached` for one plugin or version too many.
pub(super) fn plan(snapshot: &Snapshot, change: &PluginDdl, limits: Limits) -> Result<Plan> {
    let ops = match change {
        PluginDdl::AddVersion { name, version, existing, activate, force } => {
            add_version(snapshot, name, version, (*existing, *activate, *force), limits)?
        }
        PluginDdl::Activate { name, version, force } => edit(snapshot, name, |plugin| {
            let digest = plugin.find(version)?.digest;
            activate(snapshot, plugin, digest, *force)
        })?,
        PluginDdl::Rollback { name, force } => edit(snapshot, name, |plugin| {
            let Some(before) = plugin.previous else {
                return Err(Error::new(
                    Code::PluginNotFound,
                    format!("plugin {name:?} has no version before the one in use"),
                ));
            };
            activate(snapshot, plugin, before, *force)
        })?,
        PluginDdl::FallBack { name, from, to } => edit(snapshot, name, |plugin| {
            if plugin.active == Some(*from) {
                activate(snapshot, plugin, *to, true)?;
                plugin.previous = None;
            }
            Ok(())
        })?,
        PluginDdl::Suspend { name, reason, only, at_ns } => edit(snapshot, name, |plugin| {
            if only.is_none_or(|only| plugin.active == Some(only)) {
                plugin.suspended = Some(Suspension { reason: reason.clone(), since_ns: *at_ns });
            }
            Ok(())
        })?,
        PluginDdl::Resume { name } => edit(snapshot, name, |plugin| {
            plugin.suspended = None;
            Ok(())
        })?,
        PluginDdl::Set { name, settings } => edit(snapshot, name, |plugin| set(plugin, settings))?,
        PluginDdl::SetCanary { name, version, percent, force } => {
            edit(snapshot, name, |plugin| set_canary(snapshot, plugin, version, *percent, *force))?
        }
        PluginDdl::DropCanary { name, only } => edit(snapshot, name, |plugin| {
            plugin.canary =
                plugin.canary.filter(|canary| only.is_some_and(|only| only != canary.digest));
            Ok(())
        })?,
        PluginDdl::Drop { name, if_exists, cascade } => {
            drop_plugin(snapshot, name, *if_exists, *cascade)?
        }
        PluginDdl::CreateFunction { function, or_replace } => {
            create_function(snapshot, function, *or_replace)?
        }
        PluginDdl::DropFunction { name, if_exists } => match snapshot.functions.get(name) {
            Some(_) => vec![Op::DropFunction { name: name.clone() }],
            None if *if_exists => Vec::new(),
            None => return Err(no_function(name)),
        },
        PluginDdl::Attach { table, transform } => {
            attach(snapshot, table, transform, limits.max_transforms)?
        }
        PluginDdl::Detach { table, plugin, function } => detach(snapshot, table, plugin, function)?,
    };
    Ok(Plan { ops, ..Plan::default() })
}

fn find<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a PluginDef> {
    snapshot.plugins.get(name).map(AsRef::as_ref).ok_or_else(|| {
        Error::new(Code::PluginNotFound, format!("plugin {name:?} does not exist"))
            .with_hint("SHOW PLUGINS lists the plugins that do")
    })
}

/// The change of one plugin; none where it stays as it is.
fn edit(
    snapshot: &Snapshot,
    name: &str,
    change: impl FnOnce(&mut PluginDef) -> Result<()>,
) -> Result<Vec<Op>> {
    let known = find(snapshot, name)?;
    let mut plugin = known.clone();
    change(&mut plugin)?;
    if plugin == *known {
        return Ok(Vec::new());
    }
    plugin.revision += 1;
    Ok(vec![Op::PutPlugin { plugin }])
}

fn add_version(
    snapshot: &Snapshot,
    name: &str,
    version: &PluginVersionDef,
    (existing, activate_it, force): (Existing, bool, bool),
    limits: Limits,
) -> Result<Vec<Op>> {
    match (snapshot.plugins.contains_key(name), existing) {
        (true, Existing::Keep) => return Ok(Vec::new()),
        (true, Existing::Refuse) => {
            return Err(Error::new(Code::AlreadyExists, format!("plugin {name:?} exists"))
                .with_hint("use CREATE OR REPLACE PLUGIN to add a version to it"));
        }
        (true, Existing::AddVersion) => {}
        (false, _) => return create(snapshot, name, version, activate_it, limits),
    }
    edit(snapshot, name, |plugin| {
        // The same component again is the same version, with what it was installed with now.
        plugin.versions.retain(|known| known.digest != version.digest);
        plugin.versions.push(version.clone());
        if activate_it {
            activate(snapshot, plugin, version.digest, force)?;
        }
        forget_old(plugin, limits.max_versions)
    })
}

fn create(
    snapshot: &Snapshot,
    name: &str,
    version: &PluginVersionDef,
    activate_it: bool,
    limits: Limits,
) -> Result<Vec<Op>> {
    check_name("plugin", name)?;
    let count = snapshot.plugins.len();
    if count >= limits.max_plugins {
        return Err(Error::new(
            Code::LimitReached,
            format!("{count} plugins are installed, as many as there may be"),
        )
        .with_hint("drop one, or raise plugins.max_plugins"));
    }
    let plugin = PluginDef {
        name: name.to_owned(),
        revision: 1,
        versions: vec![version.clone()],
        active: activate_it.then_some(version.digest),
        previous: None,
        canary: None,
        suspended: None,
    };
    Ok(vec![Op::PutPlugin { plugin }])
}

/// Lets go of the oldest versions that are neither in use nor on trial nor the way back.
fn forget_old(plugin: &mut PluginDef, most: usize) -> Result<()> {
    let newest = plugin.versions.last().map(|version| version.digest);
    let canary = plugin.canary.map(|canary| canary.digest);
    let kept = [plugin.active, plugin.previous, canary, newest];
    while plugin.versions.len() > most.max(1) {
        let spare = plugin.versions.iter().position(|each| !kept.contains(&Some(each.digest)));
        match spare {
            Some(spare) => drop(plugin.versions.remove(spare)),
            None if plugin.previous.is_some() && plugin.previous != newest => {
                let previous = plugin.previous.take();
                plugin.versions.retain(|each| Some(each.digest) != previous);
            }
            None => {
                return Err(Error::new(
                    Code::LimitReached,
                    format!("plugin {:?} has {most} versions in use", plugin.name),
                )
                .with_hint("end its trial, or raise plugins.max_versions"));
            }
        }
    }
    Ok(())
}

fn activate(
    snapshot: &Snapshot,
    plugin: &mut PluginDef,
    digest: Digest,
    force: bool,
) -> Result<()> {
    if !force {
        check_users(snapshot, plugin, digest)?;
    }
    if plugin.active != Some(digest) {
        plugin.previous = plugin.active.replace(digest);
    }
    plugin.canary = plugin.canary.filter(|canary| canary.digest != digest);
    plugin.suspended = None;
    Ok(())
}

fn set(plugin: &mut PluginDef, settings: &[(String, Option<String>)]) -> Result<()> {
    let Some(active) = plugin.active else {
        return Err(Error::new(
            Code::PluginUnavailable,
            format!("plugin {:?} has no version in use", plugin.name),
        )
        .with_hint("activate one first"));
    };
    for version in plugin.versions.iter_mut().filter(|version| version.digest == active) {
        for (key, value) in settings {
            match value {
                Some(value) => drop(version.settings.insert(key.clone(), value.clone())),
                None => drop(version.settings.remove(key)),
            }
        }
    }
    Ok(())
}

fn set_canary(
    snapshot: &Snapshot,
    plugin: &mut PluginDef,
    version: &str,
    percent: u8,
    force: bool,
) -> Result<()> {
    let digest = plugin.find(version)?.digest;
    let invalid = |what: String| Err(Error::new(Code::InvalidInput, what));
    if !(1..=99).contains(&percent) {
        return invalid(format!("{percent} percent is no trial: give 1 to 99"));
    }
    if plugin.active.is_none() || plugin.active == Some(digest) {
        return invalid(format!(
            "a trial runs beside another version in use; {version:?} cannot be tried"
        ));
    }
    if !force {
        check_users(snapshot, plugin, digest)?;
    }
    plugin.canary = Some(Canary { digest, percent });
    Ok(())
}

fn drop_plugin(snapshot: &Snapshot, name: &str, if_exists: bool, cascade: bool) -> Result<Vec<Op>> {
    if !snapshot.plugins.contains_key(name) && if_exists {
        return Ok(Vec::new());
    }
    find(snapshot, name)?;
    let users = snapshot.users_of_plugin(name);
    if !users.is_empty() && !cascade {
        return Err(Error::new(
            Code::InUse,
            format!("plugin {name:?} is used by {}", users.join(", ")),
        )
        .with_hint("drop and detach these first, or use DROP PLUGIN … CASCADE"));
    }
    let functions = snapshot.functions.values().filter(|function| function.plugin == name);
    let mut ops: Vec<Op> =
        functions.map(|function| Op::DropFunction { name: function.name.clone() }).collect();
    for (table, chain) in snapshot.transforms.iter() {
        let rest: Vec<TransformDef> =
            chain.iter().filter(|transform| transform.plugin != name).cloned().collect();
        if rest.len() != chain.len() {
            ops.push(Op::PutTransforms { table: *table, chain: rest });
        }
    }
    ops.push(Op::DropPlugin { name: name.to_owned() });
    Ok(ops)
}

fn create_function(
    snapshot: &Snapshot,
    function: &FunctionDef,
    or_replace: bool,
) -> Result<Vec<Op>> {
    check_name("function", &function.name)?;
    if let Some(known) = snapshot.functions.get(&function.name) {
        if known.as_ref() == function && or_replace {
            return Ok(Vec::new());
        }
        if !or_replace {
            return Err(Error::new(
                Code::AlreadyExists,
                format!("function {:?} exists", function.name),
            )
            .with_hint("use CREATE OR REPLACE FUNCTION, or another name"));
        }
    }
    let plugin = find(snapshot, &function.plugin)?;
    let Some(active) = plugin.active_version() else {
        return Err(Error::new(
            Code::PluginUnavailable,
            format!("plugin {:?} has no version in use", plugin.name),
        ));
    };
    check_function(function, &describe(active)?)?;
    Ok(vec![Op::PutFunction { function: function.clone() }])
}

fn attach(
    snapshot: &Snapshot,
    table: &TableName,
    transform: &TransformDef,
    most: usize,
) -> Result<Vec<Op>> {
    if table.schema == SYSTEM_SCHEMA {
        let text = format!("table {table} takes no transforms: it is one of Kymo's own");
        return Err(Error::new(Code::InvalidInput, text));
    }
    let id = table_id(snapshot, table)?;
    let plugin = find(snapshot, &transform.plugin)?;
    if let Some(active) = plugin.active_version() {
        check_transform(&transform.plugin, &transform.function, &describe(active)?)?;
    }
    let mut chain = snapshot.transforms.get(&id).map(|chain| chain.to_vec()).unwrap_or_default();
    let same = |each: &TransformDef| {
        each.plugin == transform.plugin && each.function == transform.function
    };
    match chain.iter().position(same) {
        Some(at) if chain[at] == *transform => return Ok(Vec::new()),
        Some(at) => chain[at] = transform.clone(),
        None if chain.len() >= most => {
            let text = format!("table {table} has {most} transforms");
            return Err(Error::new(Code::LimitReached, text)
                .with_hint("detach one, or raise plugins.max_transforms"));
        }
        None => chain.push(transform.clone()),
    }
    Ok(vec![Op::PutTransforms { table: id, chain }])
}

fn detach(snapshot: &Snapshot, table: &TableName, plugin: &str, function: &str) -> Result<Vec<Op>> {
    let id = table_id(snapshot, table)?;
    let chain = snapshot.transforms.get(&id).map(|chain| chain.to_vec()).unwrap_or_default();
    let count = chain.len();
    let rest: Vec<TransformDef> = chain
        .into_iter()
        .filter(|each| each.plugin != plugin || each.function != function)
        .collect();
    if rest.len() == count {
        return Err(Error::new(
            Code::FunctionNotFound,
            format!("transform {plugin}.{function} is not attached to table {table}"),
        ));
    }
    Ok(vec![Op::PutTransforms { table: id, chain: rest }])
}

fn table_id(snapshot: &Snapshot, name: &TableName) -> Result<TableId> {
    snapshot.table(name).map(|table| table.def.id).ok_or_else(|| {
        Error::new(Code::TableNotFound, format!("table {name} does not exist"))
            .with_hint("SHOW TABLES lists the tables that do")
    })
}

fn no_function(name: &str) -> Error {
    Error::new(Code::FunctionNotFound, format!("function {name:?} does not exist"))
        .with_hint("system.functions lists the functions of plugins")
}

/// What a version said that it offers when it was installed.
pub(crate) fn describe(version: &PluginVersionDef) -> Result<Description> {
    serde_json::from_str(&version.description).map_err(|error| {
        Error::new(
            Code::Corrupt,
            format!("the description of component {} cannot be read: {error}", version.digest),
        )
        .with_hint("install the plugin again")
    })
}

/// Refuses a version that lacks what functions and transforms rely on.
fn check_users(snapshot: &Snapshot, plugin: &PluginDef, digest: Digest) -> Result<()> {
    let Some(version) = plugin.version(digest) else {
        return Err(Error::internal("a version that the plugin does not have"));
    };
    let offered = describe(version)?;
    let functions = snapshot.functions.values().filter(|each| each.plugin == plugin.name);
    let mut lost: Vec<String> = functions
        .filter_map(|function| check_function(function, &offered).err())
        .map(|error| error.message().to_owned())
        .collect();
    let transforms = snapshot.transforms.values().flat_map(|chain| chain.iter());
    for each in transforms.filter(|each| each.plugin == plugin.name) {
        lost.extend(
            check_transform(&plugin.name, &each.function, &offered)
                .err()
                .map(|error| error.message().to_owned()),
        );
    }
    lost.dedup();
    if lost.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Code::InUse,
        format!(
            "version {} of plugin {:?} lacks what is in use: {}",
            version.version,
            plugin.name,
            lost.join("; ")
        ),
    )
    .with_hint("drop or change what uses it, or force the change"))
}

/// Whether an overload of the plugin's function is what the definition says.
pub(crate) fn check_function(function: &FunctionDef, offered: &Description) -> Result<()> {
    let full = format!("{}.{}", function.plugin, function.function);
    let Some((_, found)) = offered.function(&function.function) else {
        return Err(Error::new(
            Code::FunctionNotFound,
            format!("function {:?}: there is no {full}", function.name),
        ));
    };
    if matches!(found.kind, Kind::Table | Kind::Transform) {
        return Err(Error::new(
            Code::Unsupported,
            format!("function {:?}: {full} is a {} function", function.name, found.kind.as_str()),
        )
        .with_hint("call table functions by their full name, attach transforms to tables"));
    }
    if found.overloads.iter().any(|overload| fits(function, overload)) {
        return Ok(());
    }
    let offers: Vec<String> = found.overloads.iter().map(signature).collect();
    Err(Error::new(
        Code::FunctionNotFound,
        format!(
            "function {:?}: {full} does not take ({}) and return {}",
            function.name,
            function.parameters.join(", "),
            function.returns
        ),
    )
    .with_hint(format!("it offers {}", offers.join(", "))))
}

fn fits(function: &FunctionDef, overload: &Overload) -> bool {
    let given = &function.parameters;
    let parameter = |(index, name): (usize, &String)| {
        overload.parameter(index).is_some_and(|field| sql_name(field.data_type()) == *name)
    };
    overload.takes(given.len())
        && given.iter().enumerate().all(parameter)
        && matches!(overload.returns.as_slice(),
            [field] if sql_name(field.data_type()) == function.returns)
}

/// A signature as SQL writes it.
pub(crate) fn signature(overload: &Overload) -> String {
    let mut parameters: Vec<String> =
        overload.parameters.iter().map(|field| sql_name(field.data_type())).collect();
    if overload.variadic
        && let Some(last) = parameters.last_mut()
    {
        last.push_str(" …");
    }
    let returns: Vec<String> =
        overload.returns.iter().map(|field| sql_name(field.data_type())).collect();
    format!("({}) → {}", parameters.join(", "), returns.join(", "))
}

fn check_transform(plugin: &str, function: &str, offered: &Description) -> Result<()> {
    match offered.function(function) {
        Some((_, found)) if found.kind == Kind::Transform => Ok(()),
        _ => Err(Error::new(
            Code::FunctionNotFound,
            format!("there is no transform {plugin}.{function}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kymo_kernel::ids::{Epoch, PartitionId};
    use kymo_kernel::plugin::OnError;
    use kymo_kernel::storage::meta::{Author, Edit};
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    const LIMITS: Limits = Limits {
        max_tables: 9,
        max_columns: 9,
        max_plugins: 2,
        max_versions: 3,
        max_transforms: 2,
        max_continuous: 0,
        max_alerts: 1,
        max_silences: 1,
        max_channels: 1,
    };

    fn description(functions: &[(&str, &str)]) -> String {
        let function = |(name, parameter): &(&str, &str)| {
            let scalar = json!([{
                "parameters": [{ "name": "x", "type": parameter, "nullable": true }],
                "variadic": false,
                "returns": [{ "name": "y", "type": "Float64", "nullable": true }],
                "state": [],
            }]);
            let transform =
                json!([{ "parameters": [], "variadic": false, "returns": [], "state": [] }]);
            let is_transform = *parameter == "transform";
            json!({
                "name": name,
                "kind": if is_transform { "transform" } else { "scalar" },
                "overloads": if is_transform { transform } else { scalar },
                "volatility": "immutable", "nulls": "skip", "state_version": 0,
                "retractable": false, "description": "",
            })
        };
        let functions: Vec<_> = functions.iter().map(function).collect();
        json!({ "name": "p", "version": "1", "description": "", "functions": functions })
            .to_string()
    }

    fn version(number: u8, functions: &[(&str, &str)]) -> Box<PluginVersionDef> {
        Box::new(PluginVersionDef {
            digest: Digest::of(&[number]),
            bytes: 1,
            version: format!("{number}.0.0"),
            description: description(functions),
            installed_ns: 0,
            settings: BTreeMap::new(),
        })
    }

    fn add(number: u8, functions: &[(&str, &str)]) -> PluginDdl {
        PluginDdl::AddVersion {
            name: "p".to_owned(),
            version: version(number, functions),
            existing: Existing::AddVersion,
            activate: true,
            force: false,
        }
    }

    fn function(parameter: &str) -> PluginDdl {
        let function = FunctionDef {
            name: "f".to_owned(),
            plugin: "p".to_owned(),
            function: "g".to_owned(),
            parameters: vec![parameter.to_owned()],
            returns: "DOUBLE PRECISION".to_owned(),
        };
        PluginDdl::CreateFunction { function, or_replace: false }
    }

    fn apply(snapshot: &Snapshot, change: &PluginDdl) -> Result<Snapshot> {
        let ops = plan(snapshot, change, LIMITS)?.ops;
        let by = Author { node: "n".to_owned(), partition: PartitionId::ONLY, epoch: Epoch(0) };
        snapshot.apply(&Edit { commit_id: Uuid::nil(), by, ops })
    }

    fn refused(snapshot: &Snapshot, change: &PluginDdl) -> Code {
        apply(snapshot, change).unwrap_err().code()
    }

    fn named(what: fn(String) -> PluginDdl) -> PluginDdl {
        what("p".to_owned())
    }

    #[test]
    fn versions_follow_one_another_and_lead_back() {
        let mut snapshot = Snapshot::default();
        for number in 1..=3 {
            snapshot = apply(&snapshot, &add(number, &[("g", "Float64")])).unwrap();
        }
        let plugin = &snapshot.plugins["p"];
        assert_eq!(plugin.active, Some(Digest::of(&[3])));
        assert_eq!(plugin.previous, Some(Digest::of(&[2])));
        let back = named(|name| PluginDdl::Rollback { name, force: false });
        let third = snapshot.clone();
        let snapshot = apply(&snapshot, &back).unwrap();
        assert_eq!(snapshot.plugins["p"].active, Some(Digest::of(&[2])));
        // What was left for its faults is no way back, and is left once.
        let (from, to) = (Digest::of(&[3]), Digest::of(&[2]));
        let fall = PluginDdl::FallBack { name: "p".to_owned(), from, to };
        let fallen = apply(&third, &fall).unwrap();
        assert_eq!((fallen.plugins["p"].active, fallen.plugins["p"].previous), (Some(to), None));
        assert_eq!(refused(&fallen, &back), Code::PluginNotFound);
        assert_eq!(apply(&snapshot, &fall).unwrap().plugins["p"].active, Some(to));
        // A fourth version takes the place of the oldest that nothing needs.
        let snapshot = apply(&snapshot, &add(4, &[("g", "Float64")])).unwrap();
        let kept: Vec<&str> =
            snapshot.plugins["p"].versions.iter().map(|each| each.version.as_str()).collect();
        assert_eq!(kept.len(), 3);
        assert!(kept.contains(&"4.0.0") && kept.contains(&"2.0.0"), "{kept:?}");
    }

    #[test]
    fn a_function_is_checked_against_the_overloads_and_holds_its_plugin() {
        let snapshot = apply(&Snapshot::default(), &add(1, &[("g", "Float64")])).unwrap();
        assert_eq!(refused(&snapshot, &function("BIGINT")), Code::FunctionNotFound);
        let snapshot = apply(&snapshot, &function("DOUBLE PRECISION")).unwrap();
        assert_eq!(refused(&snapshot, &function("DOUBLE PRECISION")), Code::AlreadyExists);
        let drop_it = |cascade| PluginDdl::Drop { name: "p".to_owned(), if_exists: false, cascade };
        assert_eq!(refused(&snapshot, &drop_it(false)), Code::InUse);
        let gone = apply(&snapshot, &drop_it(true)).unwrap();
        assert!(gone.plugins.is_empty() && gone.functions.is_empty());
        for lost in [vec![("g", "Int64")], vec![("h", "Float64")]] {
            assert_eq!(refused(&snapshot, &add(2, &lost)), Code::InUse);
            let mut forced = add(2, &lost);
            if let PluginDdl::AddVersion { force, .. } = &mut forced {
                *force = true;
            }
            assert!(apply(&snapshot, &forced).unwrap().functions.contains_key("f"));
        }
    }

    #[test]
    fn a_fault_suspends_only_the_version_that_had_it() {
        let snapshot = apply(&Snapshot::default(), &add(1, &[])).unwrap();
        let suspend = |version: u8| PluginDdl::Suspend {
            name: "p".to_owned(),
            reason: "five traps".to_owned(),
            only: Some(Digest::of(&[version])),
            at_ns: 1,
        };
        let other = apply(&snapshot, &suspend(9)).unwrap();
        assert_eq!(other.plugins["p"].state(), "active");
        let snapshot = apply(&snapshot, &suspend(1)).unwrap();
        assert_eq!(snapshot.plugins["p"].state(), "suspended");
        let resumed = apply(&snapshot, &named(|name| PluginDdl::Resume { name })).unwrap();
        assert_eq!(resumed.plugins["p"].state(), "active");
        let uploaded = apply(&snapshot, &add(2, &[])).unwrap();
        assert_eq!(uploaded.plugins["p"].state(), "active", "a new version ends it, too");
    }

    #[test]
    fn a_trial_needs_another_version_and_a_share() {
        let one = apply(&Snapshot::default(), &add(1, &[])).unwrap();
        let mut second = add(2, &[]);
        if let PluginDdl::AddVersion { activate, .. } = &mut second {
            *activate = false;
        }
        let two = apply(&one, &second).unwrap();
        assert_eq!(two.plugins["p"].active, Some(Digest::of(&[1])), "only staged");
        let trial = |version: &str, percent| PluginDdl::SetCanary {
            name: "p".to_owned(),
            version: version.to_owned(),
            percent,
            force: false,
        };
        assert_eq!(refused(&two, &trial("2.0.0", 0)), Code::InvalidInput);
        assert_eq!(refused(&two, &trial("2.0.0", 100)), Code::InvalidInput);
        assert_eq!(refused(&two, &trial("1.0.0", 5)), Code::InvalidInput);
        assert_eq!(refused(&two, &trial("3.0.0", 5)), Code::PluginNotFound);
        let tried = apply(&two, &trial("2.0.0", 5)).unwrap();
        assert!(tried.plugins["p"].canary.is_some());
        let end = |only: Option<u8>| PluginDdl::DropCanary {
            name: "p".to_owned(),
            only: only.map(|number| Digest::of(&[number])),
        };
        assert!(apply(&tried, &end(Some(1))).unwrap().plugins["p"].canary.is_some());
        assert!(apply(&tried, &end(Some(2))).unwrap().plugins["p"].canary.is_none());
        assert!(apply(&tried, &end(None)).unwrap().plugins["p"].canary.is_none());
    }

    #[test]
    fn a_transform_is_one_and_keeps_its_place() {
        let snapshot =
            apply(&Snapshot::default(), &add(1, &[("t", "transform"), ("g", "Float64")])).unwrap();
        let attach = |function: &str| PluginDdl::Attach {
            table: TableName::new("kymo", "cpu"),
            transform: TransformDef {
                plugin: "p".to_owned(),
                function: function.to_owned(),
                settings: BTreeMap::new(),
                on_error: OnError::Reject,
            },
        };
        assert_eq!(refused(&snapshot, &attach("t")), Code::TableNotFound);
    }

    #[test]
    fn limits_name_the_setting_that_raises_them() {
        let one = apply(&Snapshot::default(), &add(1, &[])).unwrap();
        let other = |name: &str| PluginDdl::AddVersion {
            name: name.to_owned(),
            version: version(1, &[]),
            existing: Existing::Refuse,
            activate: true,
            force: false,
        };
        assert_eq!(refused(&one, &other("p")), Code::AlreadyExists);
        let two = apply(&one, &other("q")).unwrap();
        let error = apply(&two, &other("r")).unwrap_err();
        assert!(error.hint().unwrap().contains("plugins.max_plugins"));
    }
}
