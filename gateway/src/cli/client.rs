//! A server seen from the command line: where it is, who asks, and its answers as results.

use std::io::{Cursor, Read};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::{FileReader, StreamReader};
use kymo_kernel::schema::DEFAULT_DATABASE;
use kymo_kernel::{Code, Error, Result};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::StatusCode;
use reqwest::blocking::{RequestBuilder, Response};
use serde_json::{Value, json};

use super::credentials::{self, Credentials, Login};

/// Where a server is when nobody says.
const DEFAULT_URL: &str = "http://127.0.0.1:7878";

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Database
    #[arg(long, short, env = "KYMO_DATABASE", value_name = "NAME", default_value = DEFAULT_DATABASE)]
    pub database: String,
}

/// A server to ask. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::blocking::Client,
    url: String,
    login: Login,
    /// The database that is asked.
    pub database: String,
}

impl Client {
    /// Finds address and credentials: flags and environment, then the credentials file.
    ///
    /// # Errors
    /// The credentials file is broken, or the address cannot be used.
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
        Self::new(url, login, target.database.clone())
    }

    /// A server at this address.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(url: String, login: Login, database: String) -> Result<Self> {
        let http = reqwest::blocking::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(None)
            .build()
            .map_err(|error| Error::internal(format!("set up the HTTP client: {error}")))?;
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
        let request = request.header("content-type", "application/json").body(body.to_string());
        self.send(request)
    }

    /// Runs SQL; all of what it came to.
    ///
    /// # Errors
    /// No connection, what the server says is wrong, or an answer that breaks off.
    pub fn run(&self, sql: &str) -> Result<Answer> {
        let mut bytes = Vec::new();
        self.query(sql, "arrow")?
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read the answer", error))?;
        decode(&bytes)
    }

    /// Sends line protocol with timestamps in nanoseconds. Lines that cannot be taken are
    /// reported by the server while the others are kept.
    ///
    /// # Errors
    /// No connection.
    pub fn write(&self, body: Vec<u8>, precision: &str) -> Result<Response> {
        let database = utf8_percent_encode(&self.database, NON_ALPHANUMERIC);
        let url = format!(
            "{}/api/v3/write_lp?db={database}&precision={precision}&accept_partial=true",
            self.url
        );
        let request = self.http.post(url).header("content-type", "text/plain").body(body);
        self.authorize(request).send().map_err(|error| self.unreachable(&error))
    }

    /// `GET` of a path that answers JSON.
    ///
    /// # Errors
    /// No connection, or what the server says is wrong.
    pub fn get(&self, path: &str) -> Result<Value> {
        let answer = self.send(self.http.get(format!("{}{path}", self.url)))?;
        let text = answer.text().map_err(|error| self.unreachable(&error))?;
        serde_json::from_str(&text)
            .map_err(|error| Error::internal(format!("{path} did not answer JSON: {error}")))
    }

    fn send(&self, request: RequestBuilder) -> Result<Response> {
        let answer = self.authorize(request).send().map_err(|error| self.unreachable(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        Err(refusal(status, &answer.text().unwrap_or_default()))
    }

    fn authorize(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.login {
            Login { token: Some(token), .. } => request.bearer_auth(token),
            Login { user: Some(user), password, .. } => {
                request.basic_auth(user, password.as_deref())
            }
            _ => request,
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        let mut reason: &dyn std::error::Error = error;
        while let Some(source) = reason.source() {
            reason = source;
        }
        let message = if error.is_connect() {
            format!("no server answers at {} ({reason})", self.url)
        } else {
            format!("the connection to {} broke off ({reason})", self.url)
        };
        Error::new(Code::Down, message)
            .with_hint("start one with `kymo start`, or name its address with --url")
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
    let url = url.trim().trim_end_matches('/');
    if url.starts_with("https://") {
        return Err(Error::new(Code::Unsupported, format!("{url}: no TLS in this command"))
            .with_hint("use the HTTP address, or curl"));
    }
    Ok(if url.contains("://") { url.to_owned() } else { format!("http://{url}") })
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
        assert!(normal_url("https://a").is_err());
    }
}
