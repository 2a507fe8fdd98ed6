//! `/api/v1/plugins`: uploading, listing and changing plugins. Administrators only.
//!
//! An upload goes piece by piece into a file of the store and is hashed on the way; nothing
//! holds it whole before it is known to be what was announced and within its limit. What is
//! answered says everything about the plugin but its code.

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use http_body_util::BodyExt;
use kymo_kernel::digest::Digest;
use kymo_kernel::message::{Existing, PluginCommand, PluginDdl, PluginSource};
use kymo_kernel::plugin::{PluginDef, PluginVersionDef};
use kymo_kernel::storage::components::{Held, Staged};
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::validate::{CodeLimits, check_size};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

use super::App;
use super::parameters::Parameters;
use super::respond::Api;
use crate::auth::Identity;

/// Bytes that are collected before the file is written to.
const PIECE: usize = 256 << 10;

fn administrator(identity: &Identity) -> Result<()> {
    if identity.admin {
        return Ok(());
    }
    Err(Error::new(
        Code::NotAuthorized,
        format!("plugins need an administrator, and {:?} is none", identity.name),
    )
    .with_hint("log in as an administrator; system.functions shows everybody what there is"))
}

fn respond(outcome: Result<Value>) -> Response {
    match outcome {
        Ok(body) => Json(body).into_response(),
        Err(error) => Api::Own.refuse(&error),
    }
}

/// `GET /api/v1/plugins`.
pub async fn list(State(app): State<App>, Extension(identity): Extension<Identity>) -> Response {
    respond(administrator(&identity).map(|()| {
        let catalog = app.backend.catalog();
        let plugins: Vec<Value> = catalog.plugins.values().map(|each| summary(each)).collect();
        json!({ "plugins": plugins })
    }))
}

/// `GET /api/v1/plugins/{name}`.
pub async fn one(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Path(name): Path<String>,
) -> Response {
    respond(administrator(&identity).and_then(|()| find(&app, &name).map(|plugin| full(&plugin))))
}

/// `GET /api/v1/plugins/{name}/versions`.
pub async fn versions(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Path(name): Path<String>,
) -> Response {
    respond(administrator(&identity).and_then(|()| {
        let plugin = find(&app, &name)?;
        let versions: Vec<Value> =
            plugin.versions.iter().rev().map(|each| version(&plugin, each)).collect();
        Ok(json!({ "name": name, "versions": versions }))
    }))
}

/// `PUT /api/v1/plugins/{name}`: installs the component in the body; `?activate=false` only
/// keeps it as a version, `?force=true` goes on where others lose what they use. The header
/// `X-Kymo-Digest: sha256:<hex>` or `Digest: sha-256=<base64>` announces what must arrive.
pub async fn put(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    match install(&app, &identity, name, &parameters, &headers, body).await {
        Ok((true, body)) => (StatusCode::CREATED, Json(body)).into_response(),
        Ok((false, body)) => Json(body).into_response(),
        Err(error) => Api::Own.refuse(&error),
    }
}

/// `DELETE /api/v1/plugins/{name}`; `?cascade=true` takes functions and transforms along.
pub async fn delete(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    let cascade = parameters.flag("cascade", false);
    let command = PluginDdl::Drop { name: name.clone(), if_exists: false, cascade };
    let outcome = match administrator(&identity) {
        Ok(()) => app.backend.plugins(PluginCommand::Change(command)).await,
        Err(error) => Err(error),
    };
    respond(outcome.map(|_| json!({ "status": "ok", "name": name })))
}

/// `POST /api/v1/plugins/{name}/{action}`: `activate`, `rollback`, `suspend`, `resume`, `set`,
/// `canary`, `drop-canary`, with what SQL's `ALTER PLUGIN` takes as parameters.
pub async fn act(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Path((name, action)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    respond(
        match administrator(&identity).and_then(|()| change(&app, &name, &action, &parameters)) {
            Ok(change) => match app.backend.plugins(PluginCommand::Change(change)).await {
                Ok(done) => Ok(done.plugin.map_or(Value::Null, |plugin| full(&plugin))),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        },
    )
}

fn change(app: &App, name: &str, action: &str, parameters: &Parameters) -> Result<PluginDdl> {
    let name = name.to_owned();
    let force = parameters.flag("force", false);
    let needed = |key: &str| {
        parameters.get(key).map(str::to_owned).ok_or_else(|| {
            Error::new(Code::InvalidInput, format!("action {action:?} needs `{key}`"))
                .with_hint(format!("add ?{key}=… to the address"))
        })
    };
    Ok(match action {
        "activate" => PluginDdl::Activate { name, version: needed("version")?, force },
        "rollback" => PluginDdl::Rollback { name, force },
        "suspend" => PluginDdl::Suspend {
            name,
            reason: parameters.get("reason").unwrap_or("an administrator suspended it").to_owned(),
            only: None,
            at_ns: app.backend.now_ns(),
        },
        "resume" => PluginDdl::Resume { name },
        "set" => {
            let value = parameters.get("value").map(str::to_owned);
            PluginDdl::Set { name, settings: vec![(needed("key")?, value)] }
        }
        "canary" => {
            let percent = needed("percent")?;
            let percent = percent.parse().map_err(|_| {
                Error::new(Code::InvalidInput, format!("{percent:?} is no percentage"))
                    .with_hint("give 1 to 99")
            })?;
            PluginDdl::SetCanary { name, version: needed("version")?, percent, force }
        }
        "drop-canary" => PluginDdl::DropCanary { name, only: None },
        other => {
            return Err(Error::new(Code::InvalidInput, format!("no such action: {other:?}"))
                .with_hint("use activate, rollback, suspend, resume, set, canary or drop-canary"));
        }
    })
}

/// Whether the plugin is new, and what it is now.
async fn install(
    app: &App,
    identity: &Identity,
    name: String,
    parameters: &Parameters,
    headers: &HeaderMap,
    body: Body,
) -> Result<(bool, Value)> {
    administrator(identity)?;
    if headers.contains_key("content-encoding") {
        return Err(Error::new(Code::Unsupported, "a compressed component")
            .with_hint("send the component as it is, without content-encoding"));
    }
    let announced = announced(headers)?;
    let held = receive(app, headers, body, announced).await?;
    let is_new = !app.backend.catalog().plugins.contains_key(&name);
    let command = PluginCommand::Install {
        name,
        source: PluginSource::Stored(Arc::new(held)),
        existing: Existing::AddVersion,
        activate: parameters.flag("activate", true),
        force: parameters.flag("force", false),
        settings: Vec::new(),
    };
    let done = app.backend.plugins(command).await?;
    let Some(plugin) = done.plugin else {
        return Err(Error::new(Code::PluginNotFound, "the plugin was dropped meanwhile"));
    };
    let mut answer = full(&plugin);
    if let Some(installed) = done.digest.and_then(|digest| plugin.version(digest)) {
        answer["installed"] = version(&plugin, installed);
        answer["functions"] = description(installed)["functions"].clone();
    }
    Ok((is_new, answer))
}

/// The digest that the client announces, if it does.
fn announced(headers: &HeaderMap) -> Result<Option<Digest>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(digest) = text("x-kymo-digest") {
        return digest.trim().parse().map(Some);
    }
    let parts = text("digest").into_iter().flat_map(|value| value.split(','));
    let sha = parts.filter_map(|part| part.trim().split_once('='));
    let Some((_, value)) = sha.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("sha-256"))
    else {
        return Ok(None);
    };
    let decoded = base64::engine::general_purpose::STANDARD.decode(value);
    let bytes = decoded.ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    bytes.map(Digest::from_bytes).or_else(|| Digest::from_hex(value)).map(Some).ok_or_else(|| {
        Error::new(Code::InvalidInput, format!("header Digest: {value:?} is no SHA-256"))
            .with_hint("send sha-256=<base64>, or X-Kymo-Digest: sha256:<hex>")
    })
}

async fn receive(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    announced: Option<Digest>,
) -> Result<Held> {
    let most = app.settings.plugins.max_component_bytes;
    let length = headers.get("content-length").and_then(|value| value.to_str().ok());
    if let Some(length) = length.and_then(|text| text.parse::<u64>().ok()) {
        check_size(length, &CodeLimits::of(&app.settings.plugins))?;
    }
    let time = Duration::from_millis(app.settings.ingest.body_timeout_ms);
    let staged = tokio::time::timeout(time, drain(app, body, most)).await.map_err(|_| {
        Error::new(
            Code::InvalidInput,
            format!("the body did not arrive within {} s", time.as_secs_f64()),
        )
        .with_hint("send it faster, or raise ingest.body_timeout_ms")
    })??;
    blocking(move || staged.publish(announced)).await
}

async fn drain(app: &App, mut body: Body, most: u64) -> Result<Staged> {
    let backend = app.backend.clone();
    let mut staged = blocking(move || backend.begin_component()).await?;
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        let frame = body.frame().await.transpose().map_err(|error| {
            Error::new(Code::InvalidInput, format!("the body broke off: {error}"))
        })?;
        let ended = frame.is_none();
        if let Some(data) = frame.and_then(|frame| frame.into_data().ok()) {
            piece.extend_from_slice(&data);
        }
        if staged.bytes() + piece.len() as u64 > most {
            return Err(too_large(most));
        }
        if ended || piece.len() >= PIECE {
            let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE));
            staged = blocking(move || staged.append(&full).map(|()| staged)).await?;
        }
        if ended {
            return Ok(staged);
        }
    }
}

fn too_large(most: u64) -> Error {
    Error::new(Code::TooLarge, format!("the component is larger than {most} bytes"))
        .with_hint("make it smaller, or raise plugins.max_component_bytes")
}

/// Runs work that waits for the disk, off the sockets' threads.
///
/// # Errors
/// Those of the work, and `internal` where it panics.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("receive a component: {error}")))?
}

fn find(app: &App, name: &str) -> Result<Arc<PluginDef>> {
    app.backend.catalog().plugins.get(name).cloned().ok_or_else(|| {
        Error::new(Code::PluginNotFound, format!("plugin {name:?} does not exist"))
            .with_hint("GET /api/v1/plugins lists the plugins that do")
    })
}

fn description(version: &PluginVersionDef) -> Value {
    serde_json::from_str(&version.description).unwrap_or(Value::Null)
}

/// One line of the list: no value in it is a tree.
fn summary(plugin: &PluginDef) -> Value {
    let active = plugin.active_version();
    let functions =
        active.map(description).and_then(|each| Some(each["functions"].as_array()?.len()));
    json!({
        "name": plugin.name,
        "version": active.map(|version| version.version.as_str()),
        "state": plugin.state(),
        "functions": functions,
        "versions": plugin.versions.len(),
        "digest": active.map(|version| version.digest.to_string()),
    })
}

fn full(plugin: &PluginDef) -> Value {
    let label = |digest: Option<Digest>| {
        let version = digest.and_then(|digest| plugin.version(digest));
        version.map(
            |version| json!({ "version": version.version, "digest": version.digest.to_string() }),
        )
    };
    let offered = plugin.active_version().map(description).unwrap_or(Value::Null);
    json!({
        "name": plugin.name,
        "state": plugin.state(),
        "reason": plugin.suspended.as_ref().map(|suspension| suspension.reason.as_str()),
        "active": label(plugin.active),
        "previous": label(plugin.previous),
        "canary": plugin.canary.map(|canary| json!({
            "digest": canary.digest.to_string(), "percent": canary.percent,
        })),
        "description": offered["description"],
        "functions": offered["functions"],
        "versions": plugin.versions.iter().rev().map(|each| version(plugin, each)).collect::<Vec<_>>(),
    })
}

fn version(plugin: &PluginDef, version: &PluginVersionDef) -> Value {
    let is = |digest: Option<Digest>| digest == Some(version.digest);
    let role = match plugin.canary {
        Some(canary) if canary.digest == version.digest => "canary",
        _ if is(plugin.active) => "active",
        _ if is(plugin.previous) => "previous",
        _ => "kept",
    };
    json!({
        "version": version.version,
        "digest": version.digest.to_string(),
        "role": role,
        "bytes": version.bytes,
        "installed_ns": version.installed_ns,
        "settings": version.settings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_announced_in_each_of_the_two_ways() {
        let digest = Digest::of(b"component");
        let base64 = base64::engine::general_purpose::STANDARD.encode(digest.as_bytes());
        let read = |name: &'static str, value: String| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            announced(&headers)
        };
        assert_eq!(read("x-kymo-digest", digest.to_string()).unwrap(), Some(digest));
        assert_eq!(read("digest", format!("sha-256={base64}")).unwrap(), Some(digest));
        assert_eq!(
            read("digest", format!("md5=x, SHA-256={}", digest.hex())).unwrap(),
            Some(digest)
        );
        assert_eq!(read("digest", "md5=x".to_owned()).unwrap(), None);
        for bad in ["sha-256=", "sha-256=abc"] {
            assert_eq!(read("digest", bad.to_owned()).unwrap_err().code(), Code::InvalidInput);
        }
    }
}
