//! Talking to a test server: HTTP with the administrator's credentials, and pgwire.

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio_postgres::NoTls;

use crate::server::Server;
use crate::{ADMIN, PASSWORD};

/// An HTTP answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body.
    pub body: bytes::Bytes,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }
}

impl Server {
    /// The address of a path, such as `/health`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// A request with the administrator's credentials (`Basic`), where the server wants any.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, self.url(path));
        if self.auth { request.basic_auth(ADMIN, Some(PASSWORD)) } else { request }
    }

    /// A request without credentials.
    pub fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// `GET` of a path.
    pub async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await.expect("an answer")
    }

    /// Writes line protocol (nanoseconds) into the database `kymo`; it must be accepted.
    pub async fn write(&self, lines: &str) {
        let answer = self.try_write(lines).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "write refused: {}", answer.text());
    }

    /// Writes line protocol (nanoseconds) into the database `kymo`.
    ///
    /// # Errors
    /// No answer came.
    pub async fn try_write(&self, lines: &str) -> reqwest::Result<Answer> {
        let path = "/api/v3/write_lp?db=kymo&precision=ns&accept_partial=false";
        send(self.request(Method::POST, path).body(lines.to_owned())).await
    }

    /// Runs one statement over HTTP; it must succeed. The rows as objects, none for a command.
    pub async fn sql(&self, sql: &str) -> Vec<Value> {
        let answer = self.try_sql(sql).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::OK, "{sql}: {}", answer.text());
        match answer.json() {
            Value::Array(rows) => rows,
            Value::Object(_) => Vec::new(),
            other => panic!("{sql}: not an array but {other}"),
        }
    }

    /// Runs one statement over HTTP.
    ///
    /// # Errors
    /// No answer came.
    pub async fn try_sql(&self, sql: &str) -> reqwest::Result<Answer> {
        let body = json!({"db": "kymo", "q": sql, "format": "json"});
        send(self.request(Method::POST, "/api/v3/query_sql").json(&body)).await
    }

    /// How to connect over pgwire as the administrator to the database `kymo`.
    #[must_use]
    pub fn pg_config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host(self.pg.ip().to_string())
            .port(self.pg.port())
            .user(ADMIN)
            .password(PASSWORD)
            .dbname("kymo");
        config
    }

    /// A pgwire connection as the administrator; its task ends with the client.
    pub async fn pg(&self) -> tokio_postgres::Client {
        let (client, connection) = self.pg_config().connect(NoTls).await.expect("a connection");
        tokio::spawn(async move {
            let _ = connection.await;
        });
        client
    }
}

/// Sends a request and reads the whole answer.
///
/// # Errors
/// No answer came, or it broke off.
pub async fn send(request: RequestBuilder) -> reqwest::Result<Answer> {
    let answer = request.send().await?;
    Ok(Answer {
        status: answer.status(),
        headers: answer.headers().clone(),
        body: answer.bytes().await?,
    })
}
