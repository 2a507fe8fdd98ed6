//! A server seen from the command line: where it is, who asks, and its answers as results.
//!
//! Over `https://` a server is trusted by the roots of this machine (or those that the variable
//! `SSL_CERT_FILE` names) and by those of `--ca`. There is no way to trust just anybody.

use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::{FileReader, StreamReader};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kymo_kernel::schema::DEFAULT_DATABASE;
use kymo_kernel::{Code, Error, Result};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use ureq::config::ConfigBuilder;
use ureq::http::StatusCode;
use ureq::http::header::AUTHORIZATION;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;
use ureq::{Agent, RequestBuilder, Timeout};

use super::credentials::{self, Credentials, Login};
use super::misuse;

/// Where a server is when nobody says.
const DEFAULT_URL: &str = "http://127.0.0.1:7878";

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections are kept for the next request: as many as `kymo ingest` may use.
const MAX_IDLE: usize = 256;

/// The longest answer that is read as one text; the list of a backup's objects is the longest.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// An answer whose body has not been read yet.
pub type Response = ureq::http::Response<ureq::Body>;

/// The flags of every command that talks to a server.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Target {
    /// Address of the server [default: the one last started here, or http://127.0.0.1:7878]
    #[arg(long, env = "KYMO_URL", value_name = "URL")]
    pub url: Option<String>,
    /// Log-in name
    #[arg(long, env = "KYMO_USER", value_name = "NAME")]
    pub user: Option<String>,
    /// Password
    #[arg(long, env = "KYMO_PASSWORD", value_name = "TEXT", hide_env_values = true)]
    pub password: Option<String>,
    /// Token, instead of name and password
    #[arg(long, env = "KYMO_TOKEN", value_name = "TEXT", hide_env_values = true)]
    pub token: Option<String>,
    /// Certificates (PEM) to trust beside those of this machine
    #[arg(long, env = "KYMO_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Database
    #[arg(long, short, env = "KYMO_DATABASE", value_name = "NAME", default_value = DEFAULT_DATABASE)]
    pub database: String,
}

/// A server to ask. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: Agent,
    url: String,
    login: Login,
    /// The database that is asked.
    pub database: String,
}

impl Client {
    /// Finds address and credentials: flags and environment, then the credentials file.
    ///
    /// # Errors
    /// The credentials file is broken, or the address or a certificate cannot be used.
    pub fn find(target: &Target) -> Result<Self> {
        let known = match credentials::path() {
            Some(path) => Credentials::read(&path)?,
            None => Credentials::default(),
        };
        let url = target.url.clone().or_else(|| known.url.clone());
        let url = normal_url(url.as_deref().unwrap_or(DEFAULT_URL))?;
        let given = target.user.is_some() || target.password.is_some() || target.token.is_some();
        let login = if given {
            Login {
                user: target.user.clone(),
                password: target.password.clone(),
                token: target.token.clone(),
            }
        } else {
            known.servers.get(&url).cloned().unwrap_or_default()
        };
        Self::new(url, login, target.ca.as_deref(), target.database.clone())
    }

    /// A server at this address, trusted also by the certificates of a file.
    ///
    /// # Errors
    /// The file cannot be read or holds no certificate.
    pub fn new(url: String, login: Login, ca: Option<&Path>, database: String) -> Result<Self> {
        let roots = if url.starts_with("https://") { roots(ca)? } else { Vec::new() };
        let http = agent(roots)
            .max_idle_connections(MAX_IDLE)
            .max_idle_connections_per_host(MAX_IDLE)
            .build()
            .new_agent();
        Ok(Client { http, url, login, database })
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs SQL; the answer streams in this format.
    ///
    /// # Errors
    /// No connection, or what the server says is wrong.
    pub fn query(&self, sql: &str, format: &str) -> Result<Response> {
        let body = json!({"db": self.database, "q": sql, "format": format});
        let request = self.http.post(format!("{}/api/v3/query_sql", self.url));
        let request = self.authorize(request).header("content-type", "application/json");
        self.accepted(request.send(body.to_string()))
    }

    /// Runs SQL; all of what it came to.
    ///
    /// # Errors
    /// No connection, what the server says is wrong, or an answer that breaks off.
    pub fn run(&self, sql: &str) -> Result<Answer> {
        let mut bytes = Vec::new();
        self.query(sql, "arrow")?
            .into_body()
            .into_reader()
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read the answer", error))?;
        decode(&bytes)
    }

    /// Follows a query; server-sent events stream in.
    ///
    /// # Errors
    /// No connection, or what the server says is wrong.
    pub fn subscribe(
        &self,
        sql: &str,
        snapshot: Option<bool>,
        resume: Option<&str>,
    ) -> Result<Response> {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let (database, sql) = (encoded(&self.database), encoded(sql));
        let mut url = format!("{}/api/v1/subscribe?db={database}&q={sql}", self.url);
        if let Some(snapshot) = snapshot {
            url.push_str(&format!("&snapshot={snapshot}"));
        }
        if let Some(resume) = resume {
            url.push_str(&format!("&resume={}", encoded(resume)));
        }
        self.accepted(self.authorize(self.http.get(url)).call())
    }

    /// Sends line protocol with timestamps in nanoseconds. Lines that cannot be taken are
    /// reported by the server while the others are kept.
    ///
    /// # Errors
    /// No connection (`unavailable`), or none that can be trusted.
    pub fn write(&self, body: &[u8], precision: &str) -> Result<Response> {
        let database = utf8_percent_encode(&self.database, NON_ALPHANUMERIC);
        let url = format!(
            "{}/api/v3/write_lp?db={database}&precision={precision}&accept_partial=true",
            self.url
        );
        let request = self.authorize(self.http.post(url)).header("content-type", "text/plain");
        request.send(body).map_err(|error| self.unreachable(&error))
    }

    /// `GET` of a path that answers JSON.
    ///
    /// # Errors
    /// No connection, or what the server says is wrong.
    pub fn get(&self, path: &str) -> Result<Value> {
        let request = self.authorize(self.http.get(format!("{}{path}", self.url)));
        json_of(path, self.accepted(request.call())?)
    }

    /// Reads the journal; what was committed streams in.
    ///
    /// # Errors
    /// No connection, or what the server says is wrong.
    pub fn tail(&self, parameters: &[(&str, &str)]) -> Result<Response> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let query = query.extend_pairs(parameters).finish();
        let url = format!("{}/api/v1/wal?{query}", self.url);
        self.accepted(self.authorize(self.http.get(url)).call())
    }

    /// Begins a backup; its number and what is in it.
    ///
    /// # Errors
    /// No connection, or what the server says is wrong.
    pub fn begin_backup(&self) -> Result<Value> {
        self.post("/api/v1/backups")
    }

    /// Takes a snapshot; what the server says of it.
    ///
    /// # Errors
    /// No connection, or what the server says is wrong.
    pub fn take_snapshot(&self) -> Result<Value> {
        self.post("/api/v1/snapshots")
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// No connection, or what the server says is wrong.
    pub fn drop_snapshot(&self, name: &str) -> Result<()> {
        let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
        let request = self.http.delete(format!("{}/api/v1/snapshots/{name}", self.url));
        self.accepted(self.authorize(request).call()).map(drop)
    }

    /// `POST` to a path that answers JSON.
    fn post(&self, path: &str) -> Result<Value> {
        let request = self.authorize(self.http.post(format!("{}{path}", self.url)));
        json_of(path, self.accepted(request.send_empty())?)
    }

    /// An object of a backup.
    ///
    /// # Errors
    /// No connection, or what the server says is wrong.
    pub fn backup_object(&self, number: u64, path: &str) -> Result<Response> {
        let path = utf8_percent_encode(path, NON_ALPHANUMERIC);
        let url = format!("{}/api/v1/backups/{number}/object?path={path}", self.url);
        self.accepted(self.authorize(self.http.get(url)).call())
    }

    /// Ends a backup.
    ///
    /// # Errors
    /// No connection, or what the server says is wrong.
    pub fn end_backup(&self, number: u64) -> Result<()> {
        let request = self.http.delete(format!("{}/api/v1/backups/{number}", self.url));
        self.accepted(self.authorize(request).call()).map(drop)
    }

    /// Sends a component; what the server says about the plugin.
    ///
    /// # Errors
    /// No connection, or why the server refuses it.
    pub fn put_plugin(&self, name: &str, digest: &str, component: &[u8]) -> Result<Value> {
        let request = self.authorize(self.http.put(self.plugin(name)));
        let request = request.header("x-kymo-digest", digest);
        let request = request.header("content-type", "application/wasm");
        let text = text(self.accepted(request.send(component))?)?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Removes a plugin.
    ///
    /// # Errors
    /// No connection, or what the server says is wrong.
    pub fn delete_plugin(&self, name: &str) -> Result<()> {
        let request = self.authorize(self.http.delete(self.plugin(name)));
        self.accepted(request.call()).map(drop)
    }

    fn plugin(&self, name: &str) -> String {
        let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
        format!("{}{}/{name}", self.url, super::plugin::PATH)
    }

    fn accepted(&self, answer: Result<Response, ureq::Error>) -> Result<Response> {
        let answer = answer.map_err(|error| self.unreachable(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        Err(refusal(status, &text(answer).unwrap_or_default()))
    }

    fn authorize<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.login {
            Login { token: Some(token), .. } => {
                request.header(AUTHORIZATION, format!("Bearer {token}"))
            }
            Login { user: Some(user), password, .. } => {
                let password = password.as_deref().unwrap_or_default();
                let pair = STANDARD.encode(format!("{user}:{password}"));
                request.header(AUTHORIZATION, format!("Basic {pair}"))
            }
            _ => request,
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> Error {
        let url = &self.url;
        if let Some(problem) = tls_problem(error) {
            return Error::new(
                Code::Settings,
                format!("no trusted connection to {url}: {problem}"),
            )
            .with_hint(
                "name the file of its certificate or authority with --ca, and the \
                    server by a name that the certificate holds",
            );
        }
        let reason = match error {
            ureq::Error::Io(error) => error.to_string(),
            other => other.to_string(),
        };
        let message = if is_connect(error) {
            format!("no server answers at {url} ({reason})")
        } else {
            format!("the connection to {url} broke off ({reason})")
        };
        Error::new(Code::Down, message)
            .with_hint("start one with `kymo start`, or name its address with --url")
    }
}

fn json_of(path: &str, answer: Response) -> Result<Value> {
    serde_json::from_str(&text(answer)?)
        .map_err(|error| Error::internal(format!("{path} did not answer JSON: {error}")))
}

/// All of an answer as text.
///
/// # Errors
/// The answer breaks off, or is longer than any that is meant to be read as one.
pub fn text(answer: Response) -> Result<String> {
    let body = answer.into_body().into_with_config().limit(MAX_TEXT_BYTES);
    body.read_to_string()
        .map_err(|error| Error::new(Code::Down, format!("the answer broke off: {error}")))
}

/// What all HTTP clients of the binary have in common: whom they trust, how long they wait for
/// a connection, no proxy, and answers of every status as answers.
pub(crate) fn agent(roots: Vec<Certificate<'static>>) -> ConfigBuilder<AgentScope> {
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .http_status_as_error(false)
        .proxy(None)
}

/// The certificates that are trusted: this machine's, and those of a file.
pub(crate) fn roots(ca: Option<&Path>) -> Result<Vec<Certificate<'static>>> {
    // A machine without any has nothing to trust, which the connection will say.
    let system = rustls_native_certs::load_native_certs().certs;
    let mut roots: Vec<_> = system.iter().map(|it| Certificate::from_der(it).to_owned()).collect();
    if let Some(path) = ca {
        let unusable = |problem: &dyn std::fmt::Display| {
            Error::new(Code::Settings, format!("--ca {}: {problem}", path.display()))
                .with_hint("it must be a PEM file with the line BEGIN CERTIFICATE")
        };
        let pem = std::fs::read_to_string(path).map_err(|error| unusable(&error))?;
        let count = roots.len();
        for certificate in rustls_pemfile::certs(&mut pem.as_bytes()) {
            let certificate = certificate.map_err(|error| unusable(&error))?;
            roots.push(Certificate::from_der(&certificate).to_owned());
        }
        if roots.len() == count {
            return Err(unusable(&"it holds no certificate"));
        }
    }
    Ok(roots)
}

/// What is wrong with the encryption, where that is what is wrong.
fn tls_problem(error: &ureq::Error) -> Option<String> {
    match error {
        ureq::Error::Tls(problem) => Some((*problem).to_owned()),
        ureq::Error::Rustls(problem) => Some(problem.to_string()),
        ureq::Error::Io(error) => {
            let problem = error.get_ref()?.downcast_ref::<rustls::Error>()?;
            Some(match problem {
                rustls::Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
                other => other.to_string(),
            })
        }
        _ => None,
    }
}

fn is_connect(error: &ureq::Error) -> bool {
    use io::ErrorKind;
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => true,
        ureq::Error::Io(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::AddrNotAvailable
                | ErrorKind::TimedOut
        ),
        _ => false,
    }
}

/// What a server said when it refused, as an error of ours.
pub fn refusal(status: StatusCode, body: &str) -> Error {
    let json: Value = serde_json::from_str(body).unwrap_or(Value::Null);
    let object = if json["error"].is_object() { &json["error"] } else { &json };
    let message = object["message"]
        .as_str()
        .or_else(|| object["error"].as_str())
        .map_or_else(|| body.trim().to_owned(), str::to_owned);
    let message =
        if message.is_empty() { format!("the server answered {status}") } else { message };
    let code = if status == StatusCode::UNAUTHORIZED {
        Code::NotAuthenticated
    } else if status.is_server_error() {
        Code::Busy
    } else {
        Code::InvalidInput
    };
    let error = Error::new(code, message);
    // Where the command line gets its login from says more than the server can know.
    if code == Code::NotAuthenticated {
        return error.with_hint(
            "give --user and --password, or --token, or set KYMO_USER and KYMO_PASSWORD",
        );
    }
    match object["hint"].as_str() {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// What a statement came to.
#[derive(Debug)]
pub enum Answer {
    /// Rows.
    Rows(SchemaRef, Vec<RecordBatch>),
    /// No rows: the command, and how many rows it wrote where that means something.
    Done(String),
}

/// Batches from Arrow IPC, as a stream or as a file; JSON for statements without rows.
fn decode(bytes: &[u8]) -> Result<Answer> {
    let broken = |error| Error::new(Code::Io, format!("the answer is not whole: {error}"));
    if bytes.starts_with(b"{") {
        let json: Value = serde_json::from_slice(bytes)
            .map_err(|error| Error::internal(format!("the answer is not JSON: {error}")))?;
        let command = json["command"].as_str().unwrap_or("ok");
        return Ok(Answer::Done(match json["rows"].as_u64() {
            Some(rows) => format!("{command} {rows}"),
            None => command.to_owned(),
        }));
    }
    if bytes.starts_with(b"ARROW1") {
        let reader = FileReader::try_new(Cursor::new(bytes), None).map_err(broken)?;
        let schema = reader.schema();
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(broken)?;
        return Ok(Answer::Rows(schema, batches));
    }
    let reader = StreamReader::try_new(Cursor::new(bytes), None).map_err(broken)?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(broken)?;
    Ok(Answer::Rows(schema, batches))
}

/// The address with a scheme and without a slash at its end.
fn normal_url(url: &str) -> Result<String> {
    let (scheme, host) = url.trim().split_once("://").unwrap_or(("http", url.trim()));
    let host = host.trim_end_matches('/');
    if !matches!(scheme, "http" | "https") || host.is_empty() {
        return Err(misuse(format!("{url:?} is no address"), "use http://HOST:PORT or https://…"));
    }
    Ok(format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_message_and_hint_in_every_form() {
        let forms = [
            r#"{"code":"syntax_error","message":"bad","hint":"good"}"#,
            r#"{"code":"syntax_error","error":"bad","hint":"good"}"#,
            r#"{"error":{"code":"syntax_error","message":"bad","hint":"good"}}"#,
        ];
        for form in forms {
            let error = refusal(StatusCode::BAD_REQUEST, form);
            assert_eq!((error.message(), error.hint()), ("bad", Some("good")), "{form}");
        }
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, "oops\n").message(), "oops");
        assert!(refusal(StatusCode::UNAUTHORIZED, "").hint().unwrap().contains("--token"));
    }

    #[test]
    fn a_command_without_rows_is_told_by_its_name() {
        let Answer::Done(text) = decode(br#"{"status":"ok","command":"INSERT","rows":3}"#).unwrap()
        else {
            panic!("rows");
        };
        assert_eq!(text, "INSERT 3");
        assert!(decode(b"").is_err());
    }

    #[test]
    fn addresses_may_be_short() {
        assert_eq!(normal_url("localhost:1/").unwrap(), "http://localhost:1");
        assert_eq!(normal_url("https://a:2/").unwrap(), "https://a:2");
        assert!(normal_url("ftp://a").is_err() && normal_url("https://").is_err());
    }
}
