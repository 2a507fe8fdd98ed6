//! Statuses, bodies and headers of each interface, against a system that is told what to say.

use std::io::Write as _;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Request, Response, StatusCode};
use futures::FutureExt;
use http_body_util::BodyExt;
use kymo_kernel::env::{Random, real};
use kymo_kernel::ids::Position;
use kymo_kernel::message::{Durability, RejectedRow};
use kymo_kernel::{Code, Error};
use parking_lot::Mutex;
use serde_json::json;
use tower::ServiceExt;

use super::*;
use crate::auth::accounts::{InMemory, make};

/// A system that keeps what it is sent and answers what it is told.
#[derive(Default)]
struct Fake {
    writes: Mutex<Vec<Write>>,
    ddl: Mutex<Vec<Ddl>>,
    queries: Mutex<Vec<Query>>,
    refusal: Mutex<Option<Error>>,
    rejected: Mutex<Vec<RejectedRow>>,
    batches: Mutex<Vec<Result<RecordBatch>>>,
}

impl Fake {
    fn refused(&self) -> Result<()> {
        self.refusal.lock().clone().map_or(Ok(()), Err)
    }
}

impl Backend for Fake {
    fn catalog(&self) -> Arc<Snapshot> {
        Arc::new(Snapshot::default())
    }

    fn clock(&self) -> Arc<dyn Clock> {
        real::env().clock
    }

    fn now_ns(&self) -> i64 {
        1_700_000_000_000_000_000
    }

    fn write(&self, write: Write) -> BoxFuture<'static, Result<Acked>> {
        let rejected = std::mem::take(&mut *self.rejected.lock());
        let rows: usize = write.batches.iter().map(|batch| batch.batch.num_rows()).sum();
        let acked = self.refused().map(|()| Acked {
            rows: (rows - rejected.len()) as u64,
            position: Some(Position::default()),
            rejected,
            refused: 0,
        });
        self.writes.lock().push(write);
        std::future::ready(acked).boxed()
    }

    fn ddl(&self, ddl: Ddl) -> BoxFuture<'static, Result<DdlDone>> {
        self.ddl.lock().push(ddl);
        let version = kymo_kernel::ids::MetaVersion(1);
        let done = DdlDone { version, changed: true, table: None };
        std::future::ready(self.refused().map(|()| done)).boxed()
    }

    fn plugins(&self, _: PluginCommand) -> BoxFuture<'static, Result<PluginDone>> {
        let done = PluginDone { changed: true, plugin: None, digest: None };
        std::future::ready(self.refused().map(|()| done)).boxed()
    }

    fn begin_component(&self) -> Result<Staged> {
        Err(Error::internal("no store"))
    }

    fn parse(&self, sql: String) -> BoxFuture<'static, Result<Vec<Arc<Statement>>>> {
        let statements = sql
            .split(';')
            .filter(|text| !text.trim().is_empty())
            .map(|text| {
                let text: Arc<str> = text.trim().into();
                let verb = text.split(' ').next().unwrap_or_default().to_owned();
                Arc::new(Statement { text, verb, tree: Arc::new(()) })
            })
            .collect();
        std::future::ready(Ok(statements)).boxed()
    }

    fn query(&self, query: Query) -> BoxFuture<'static, Result<Outcome>> {
        let kymo_kernel::message::Runnable::Statement(statement) = &query.run else {
            return std::future::ready(Err(Error::internal("prepared"))).boxed();
        };
        let outcome = match statement.verb.as_str() {
            "SELECT" | "FETCH" => {
                let batches = std::mem::take(&mut *self.batches.lock());
                let first = batches.iter().find_map(|batch| batch.as_ref().ok());
                let schema = first.map_or_else(|| rows().schema(), RecordBatch::schema);
                let stream = Box::pin(futures::stream::iter(batches));
                Outcome::Rows { schema, stream, settings: Vec::new() }
            }
            "USE" => Outcome::Done {
                verb: "USE".into(),
                rows: None,
                settings: vec![("schema".into(), Some("other".into()))],
            },
            verb => Outcome::Done { verb: verb.into(), rows: Some(3), settings: Vec::new() },
        };
        self.queries.lock().push(query);
        std::future::ready(self.refused().map(|()| outcome)).boxed()
    }

    fn open_session(&self, _context: SessionContext) -> Result<Session> {
        Err(Error::new(Code::Unsupported, "no sessions here"))
    }

    fn subscribe(&self, _ask: Ask) -> BoxFuture<'static, Result<Subscription>> {
        std::future::ready(Err(Error::new(Code::Unsupported, "nothing to follow here"))).boxed()
    }

    fn backups(&self) -> Result<Backups> {
        Err(Error::new(Code::Unsupported, "nothing to back up here"))
    }

    fn status(&self) -> Value {
        json!({ "tables": 0 })
    }

    fn metrics(&self) -> Result<String> {
        kymo_kernel::observe::text(&[])
    }

    fn ready(&self) -> Result<()> {
        self.refused()
    }
}

fn rows() -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("host", DataType::Utf8, true),
        Field::new("n", DataType::Int64, true),
        Field::new("x", DataType::Float64, true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![Some("a, \"b\""), None])),
        Arc::new(Int64Array::from(vec![Some(1), None])),
        Arc::new(Float64Array::from(vec![Some(0.5), None])),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

struct Bits;

impl Random for Bits {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

struct Server {
    fake: Arc<Fake>,
    app: App,
    router: Router,
}

fn server() -> Server {
    let mut settings = Settings::default();
    settings.ingest.max_body_bytes = 1 << 20;
    let accounts = InMemory::new(vec![
        make("ada", "secret", true, &["tok"], &Bits).unwrap(),
        make("bob", "secret", false, &["visitor"], &Bits).unwrap(),
    ]);
    let door = Authenticator::new(&settings, accounts, &Bits).unwrap();
    let fake = Arc::new(Fake::default());
    let app = App::new(Arc::clone(&fake) as _, Arc::new(settings), door);
    Server { router: router(app.clone()), app, fake }
}

struct Answer {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Server {
    async fn raw(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.raw(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send(with_token(Request::post(path)).body(body.into()).unwrap()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(with_token(Request::get(path)).body(Body::empty()).unwrap()).await
    }
}

fn with_token(request: axum::http::request::Builder) -> axum::http::request::Builder {
    request.header("authorization", "Bearer tok")
}

const V1: &str = "/write?db=kymo";
const V2: &str = "/api/v2/write?bucket=kymo";
const V3: &str = "/api/v3/write_lp?db=kymo";

#[tokio::test]
async fn a_good_write_is_204_everywhere() {
    for path in [V1, V2, V3] {
        let server = server();
        let answer = server.post(path, "cpu,host=a v=1 5\ncpu,host=b v=2 6").await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{path}: {}", answer.text());
        assert!(answer.body.is_empty());
        assert_eq!(answer.headers["x-influxdb-version"], "1.8.10");
        assert_eq!(answer.headers["x-consistency-token"], "0-0-0");
        assert!(answer.headers.contains_key("request-id"));
        let writes = server.fake.writes.lock();
        assert_eq!(writes[0].batches[0].batch.num_rows(), 2, "{path}");
        assert!(writes[0].create && writes[0].durability.is_none());
    }
}

#[tokio::test]
async fn parameters_are_checked_in_each_dialects_words() {
    let server = server();
    for (path, status, body) in [
        ("/write", 400, json!({"error": "database is required"})),
        ("/write?db=x", 404, json!({"error": "database not found: \"x\""})),
        ("/write?db=kymo&rp=week", 500, json!({"error": "retention policy not found: week"})),
        (
            "/write?db=kymo&precision=x",
            400,
            json!({"error": "invalid precision \"x\" (use n, u, ms, s, m or h)"}),
        ),
        ("/api/v2/write", 404, json!({"code": "not found", "message": "bucket not found"})),
        (
            "/api/v2/write?bucket=x",
            404,
            json!({"code": "not found", "message": "bucket \"x\" not found"}),
        ),
        (
            "/api/v2/write?bucket=kymo&precision=m",
            400,
            json!({"code": "invalid", "message": "invalid precision \"m\" (use ns, us, ms or s)"}),
        ),
        ("/api/v3/write_lp", 400, json!({"error": "missing query parameter `db`", "data": null})),
    ] {
        let answer = server.post(path, "m v=1").await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.json(), body, "{path}");
    }
    assert_eq!(server.post("/api/v3/write_lp?db=new", "m v=1").await.status, 204);
    assert_eq!(server.post("/api/v2/write?bucket=kymo/autogen", "m v=1").await.status, 204);
    assert_eq!(server.post("/write?db=kymo&rp=autogen&precision=h", "m v=1 7").await.status, 204);
}

#[tokio::test]
async fn nothing_to_write_is_a_mistake_only_in_v3() {
    let server = server();
    for body in ["", "# comment\n\n"] {
        assert_eq!(server.post(V1, body).await.status, 204);
        assert_eq!(server.post(V2, body).await.status, 204);
        let answer = server.post(V3, body).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"], "incoming write was empty");
    }
    assert!(server.fake.writes.lock().is_empty());
}

#[tokio::test]
async fn a_line_that_does_not_parse_costs_what_the_dialect_says() {
    let body = "good v=1 1\nbad v=\ngood v=2 2\n";
    let server = server();
    let answer = server.post(V1, body).await;
    assert_eq!(answer.status, 400);
    let text = "partial write: unable to parse 'bad v=': missing field value (line 2) dropped=1 \
                for database: \"kymo\"";
    assert_eq!(answer.json(), json!({ "error": text }));
    assert_eq!(answer.headers["x-influxdb-error"], text);
    assert_eq!(server.fake.writes.lock().len(), 1, "v1 keeps the good lines");

    let answer = server.post(V1, "bad v=\nworse").await;
    assert_eq!(
        answer.json()["error"],
        "unable to parse 'bad v=': missing field value (line 1)\n\
         unable to parse 'worse': missing fields (line 2)"
    );

    let answer = server.post(V2, body).await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.json(),
        json!({"code": "invalid",
               "message": "unable to parse 'bad v=': missing field value (line 2)"})
    );
    assert_eq!(server.fake.writes.lock().len(), 1, "v2 keeps none");

    let answer = server.post(V3, body).await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.json(),
        json!({"error": "partial write of line protocol occurred", "dropped": 1, "data": [
            {"error_message": "missing field value", "line_number": 2, "original_line": "bad v="}
        ]})
    );
    assert_eq!(server.fake.writes.lock().len(), 2, "v3 keeps the good lines");

    let answer = server.post(&format!("{V3}&accept_partial=false"), body).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"], "line protocol parsing error");
    assert_eq!(server.fake.writes.lock().len(), 2, "v3 keeps none on request");
}

#[tokio::test]
async fn a_type_conflict_keeps_the_good_lines() {
    let body = "m v=1 1\nm v=2i 2\n";
    let conflict = "field type conflict: input field \"v\" on measurement \"m\" is type integer, \
                    already exists as type float";
    let server = server();
    let answer = server.post(V1, body).await;
    assert_eq!(answer.status, 400);
    let text = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(text.starts_with(&format!("partial write: {conflict}")), "{text}");
    assert!(text.contains("dropped=1"), "{text}");
    let answer = server.post(V2, body).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json()["code"], "unprocessable entity");
    let text = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(text.starts_with("failure writing points to database: partial write: "), "{text}");
    let answer = server.post(V3, body).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["data"][0]["line_number"], 2);
    assert_eq!(server.fake.writes.lock().len(), 3);
}

#[tokio::test]
async fn rows_that_the_system_leaves_out_are_named_by_their_line() {
    let server = server();
    let error = Error::new(Code::TypeConflict, "field type conflict: later");
    *server.fake.rejected.lock() = vec![RejectedRow { line: 3, error }];
    let answer = server.post(V3, "m v=1\nbad\nm s=\"x\ny\"\nm w=1").await;
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 2);
    assert_eq!(answer.json()["data"][1]["line_number"], 3);
    assert_eq!(answer.json()["data"][1]["original_line"], "m s=\"x");
}

#[tokio::test]
async fn limits_in_v3_are_422() {
    let mut body = String::from("m ");
    for n in 0..5001 {
        body.push_str(&format!("f{n}=1,"));
    }
    body.push_str("z=1\nok v=1\n");
    let answer = server().post(V3, body).await;
    assert_eq!(answer.status, 422, "{}", answer.text());
}

#[tokio::test]
async fn a_condition_that_clears_is_503_with_a_wait() {
    for code in [Code::Busy, Code::ShuttingDown, Code::Starting, Code::DiskFull, Code::Deadline] {
        for path in [V1, V2, V3, "/write/kymo?table=t"] {
            let server = server();
            *server.fake.refusal.lock() = Some(Error::new(code, "not now"));
            let body = if path.starts_with("/write/") { "{\"v\":1}" } else { "m v=1" };
            let answer = server.post(path, body).await;
            if code == Code::Deadline && path.starts_with("/write/") {
                continue;
            }
            assert_eq!(answer.status, 503, "{code} {path}");
            for poison in ["partial write", "unable to parse", "retention policy"] {
                assert!(!answer.text().contains(poison), "{}", answer.text());
            }
            assert!(code == Code::Deadline || answer.headers.contains_key(RETRY_AFTER), "{code}");
        }
    }
}

#[tokio::test]
async fn bodies_are_inflated_and_bounded() {
    let server = server();
    let gzip = |data: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let post = |path: &str, body: Vec<u8>| {
        with_token(Request::post(path))
            .header(CONTENT_ENCODING, "gzip")
            .body(Body::from(body))
            .unwrap()
    };
    assert_eq!(server.send(post(V1, gzip(b"m v=1"))).await.status, 204);
    assert_eq!(server.send(post(V1, b"m v=1".to_vec())).await.status, 400);
    let bomb = gzip(&vec![b'#'; 4 << 20]);
    let answer = server.send(post(V2, bomb)).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.json()["code"], "request too large");
    let line = "m v=1\n".repeat(200_000);
    assert_eq!(server.post(V3, line).await.status, 413);
    let large = "m v=1\n".repeat(20_000);
    assert_eq!(server.post(V3, large).await.status, 204, "large enough for a turn of its own");
}

#[tokio::test]
async fn no_sync_asks_for_less() {
    let server = server();
    server.post(&format!("{V3}&no_sync=true"), "m v=1").await;
    assert_eq!(server.fake.writes.lock()[0].durability, Some(Durability::OsDefault));
}

#[tokio::test]
async fn a_request_chooses_its_durability_on_every_endpoint() {
    let server = server();
    for path in [V1, V2, V3, "/write/kymo?table=m"] {
        let body = if path.contains("/kymo?") { r#"[{"v": 1}]"# } else { "m v=1" };
        for (name, mode) in [
            ("every_write", Durability::EveryWrite),
            ("periodic", Durability::Periodic),
            ("os_default", Durability::OsDefault),
            ("none", Durability::None),
        ] {
            let answer = server.post(&format!("{path}&durability={name}"), body).await;
            assert!(answer.status.is_success(), "{path}: {}", answer.text());
            let asked = server.fake.writes.lock().last().and_then(|write| write.durability);
            assert_eq!(asked, Some(mode), "{path}");
        }
        let written = server.fake.writes.lock().len();
        for wish in ["durability=sometimes", "durability=every_write&no_sync=true"] {
            let answer = server.post(&format!("{path}&{wish}"), body).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}: {}", answer.text());
            assert!(answer.text().contains("os_default"), "{path}: {}", answer.text());
        }
        assert_eq!(server.fake.writes.lock().len(), written, "{path}: nothing refused is written");
    }
    server.post(&format!("{V3}&durability=os_default&no_sync=true"), "m v=1").await;
    let asked = server.fake.writes.lock().last().and_then(|write| write.durability);
    assert_eq!(asked, Some(Durability::OsDefault));
}

#[tokio::test]
async fn every_form_of_credentials_gets_in_and_others_do_not() {
    let server = server();
    let basic = "Basic YWRhOnNlY3JldA==";
    for header in ["Bearer tok", "Token tok", "Token ada:secret", basic, "Basic YWRhOnRvaw=="] {
        let request = Request::post(V1).header("authorization", header);
        let answer = server.send(request.body(Body::from("m v=1")).unwrap()).await;
        assert_eq!(answer.status, 204, "{header}");
    }
    for query in ["u=ada&p=secret", "u=ada&p=tok", "p=tok"] {
        let request = Request::post(format!("{V1}&{query}"));
        let answer = server.send(request.body(Body::from("m v=1")).unwrap()).await;
        assert_eq!(answer.status, 204, "{query}");
    }
    let anonymous = |path: &str| Request::post(path).body(Body::from("m v=1")).unwrap();
    let answer = server.send(anonymous(V1)).await;
    assert_eq!(answer.status, 401);
    assert!(answer.headers.contains_key(WWW_AUTHENTICATE));
    assert_eq!(answer.json(), json!({"error": "authorization failed"}));
    let answer = server.send(anonymous(V2)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()),
        (401, json!({"code": "unauthorized", "message": "unauthorized access"}))
    );
    assert_eq!(server.send(anonymous(V3)).await.status, 401);
    let malformed = |path: &str| {
        Request::post(path).header("authorization", "nonsense").body(Body::empty()).unwrap()
    };
    assert_eq!(server.send(malformed(V3)).await.status, 400);
    assert_eq!(server.send(malformed(V1)).await.status, 401);
    for path in ["/stats", "/metrics", "/sql?q=SELECT", "/query?q=x", "/nothing"] {
        let answer = server.send(Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, 401, "{path}");
    }
    for path in ["/", "/health", "/ready", "/ping"] {
        let answer = server.send(Request::get(path).body(Body::empty()).unwrap()).await;
        assert!(answer.status.is_success(), "{path}");
    }
}

#[tokio::test]
async fn json_records_answer_with_a_count() {
    let server = server();
    let answer = server
        .post("/write/kymo%2Fpublic%2Fcpu", r#"{"records":[{"_time":5,"v":1},{"v":2}]}"#)
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json(), json!({"status": "ok", "written": 2}));
    assert_eq!(server.fake.writes.lock()[0].batches[0].table.to_string(), "kymo.public.cpu");
    let answer =
        server.post("/write/kymo?tags=host", r#"[{"table":"t","host":"a","v":1},7]"#).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["written"], 1);
    assert_eq!(answer.json()["errors"][0]["record"], 2);
    assert_eq!(server.post("/write/kymo", "{bad").await.status, 400);
    assert_eq!(server.post("/write/a%2Fb%2Fc%2Fd", "[]").await.status, 400);
    for path in ["/write/..%2f..", "/write/kymo%2F..", "/write/kymo%2Fa%00", "/write/..?table=t"] {
        let answer = server.post(path, r#"{"v":1}"#).await;
        assert_eq!(answer.status, 400, "{path}");
        assert_eq!(answer.json()["code"], "invalid_input", "{path}: {}", answer.text());
    }
    let answer = server.post("/api/v3/write_lp?db=..%2Fevil", "m v=1").await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().unwrap().contains("\"../evil\""), "{}", answer.text());
    assert_eq!(server.fake.writes.lock().len(), 2, "nothing went to a place that cannot be");
    assert_eq!(server.post(V3, "a/b\\ c/ü v=1").await.status, 204, "a measurement may be so");
}

async fn select(format: &str) -> Answer {
    let server = server();
    *server.fake.batches.lock() = vec![Ok(rows()), Ok(rows())];
    server.get(&format!("/api/v3/query_sql?db=kymo&q=SELECT+1&format={format}")).await
}

#[tokio::test]
async fn the_formats_say_the_same() {
    let json = select("json").await;
    assert_eq!(json.headers[CONTENT_TYPE], "application/json");
    let rows = json.json();
    assert_eq!(rows[0], json!({"host": "a, \"b\"", "n": 1, "x": 0.5}));
    assert_eq!(rows[1], json!({"host": null, "n": null, "x": null}));
    assert_eq!(rows.as_array().unwrap().len(), 4);

    let lines = select("jsonl").await.text();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(Value::Array(lines), rows);

    let csv = select("csv").await.text();
    assert_eq!(csv, "host,n,x\n\"a, \"\"b\"\"\",1,0.5\n,,\n\"a, \"\"b\"\"\",1,0.5\n,,\n");
    assert!(select("pretty").await.text().contains("| host"));

    let bytes = select("arrow").await.body;
    let reader = arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None).unwrap();
    let batches: Vec<RecordBatch> = reader.map(|batch| batch.unwrap()).collect();
    assert_eq!(batches, [super::tests::rows(), super::tests::rows()]);

    let bytes = bytes::Bytes::from(select("parquet").await.body);
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    let total: usize = reader.build().unwrap().map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(total, 4);
    assert_eq!(select("xml").await.status, 400);
}

#[tokio::test]
async fn an_empty_answer_is_whole_in_every_format() {
    let server = server();
    for (format, body) in [("json", "[]"), ("jsonl", ""), ("csv", "host,n,x\n")] {
        let answer = server.get(&format!("/sql?q=SELECT&format={format}")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.text(), body, "{format}");
    }
}

#[tokio::test]
async fn an_error_before_the_first_row_has_a_status_and_later_breaks_off() {
    let server = server();
    let failure = || Error::new(Code::DivisionByZero, "divided by zero").with_hint("do not");
    *server.fake.batches.lock() = vec![Err(failure())];
    let answer = server.get("/sql?q=SELECT").await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["code"], "division_by_zero");
    assert_eq!(answer.json()["hint"], "do not");

    for (format, has_words) in [("json", false), ("csv", false), ("jsonl", true)] {
        *server.fake.batches.lock() = vec![Ok(rows()), Err(failure())];
        let request = with_token(Request::get(format!("/sql?q=SELECT&format={format}")));
        let mut body = server.raw(request.body(Body::empty()).unwrap()).await.into_body();
        let mut text = Vec::new();
        let broken = loop {
            match body.frame().await {
                None => break false,
                Some(Err(_)) => break true,
                Some(Ok(frame)) => text.extend_from_slice(frame.data_ref().unwrap()),
            }
        };
        assert!(broken, "{format}");
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.contains("division_by_zero"), has_words, "{format}: {text}");
    }
}

#[tokio::test]
async fn questions_come_in_several_shapes() {
    let server = server();
    let ok = |answer: &Answer| answer.status == 200;
    let json_body = json!({"db": "kymo", "q": "SELECT $x", "params": {"x": 7}}).to_string();
    assert!(ok(&server.post("/api/v3/query_sql", json_body).await));
    assert_eq!(server.fake.queries.lock()[0].parameters.len(), 1);
    assert!(!server.fake.queries.lock()[0].session.read_only);
    assert!(ok(&server.get("/api/v3/query_sql?q=SELECT+%241&params=%5B7%5D").await));
    assert!(server.fake.queries.lock()[1].session.read_only, "GET only reads");
    assert!(ok(&server.post("/sql", "SELECT 1").await));
    let form = with_token(Request::post("/sql"))
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Body::from("q=SELECT+1&format=csv"));
    assert!(ok(&server.send(form.unwrap()).await));
    let done = server.post("/sql", "CREATE TABLE t (x INT)").await;
    assert_eq!(done.json(), json!({"status": "ok", "command": "CREATE", "rows": 3}));
    assert!(ok(&server.post("/sql", "USE other; SELECT 1").await));
    assert_eq!(server.fake.queries.lock().last().unwrap().session.schema, "other");
    assert_eq!(server.get("/sql").await.status, 400);
    assert_eq!(server.get("/sql?q=+").await.status, 400);
    assert_eq!(server.post("/sql", "{broken").await.status, 400);
    let unknown = server.get("/sql?db=nowhere&q=SELECT").await;
    assert_eq!(
        (unknown.status.as_u16(), &unknown.json()["code"]),
        (404, &json!("database_not_found"))
    );
}

#[tokio::test]
async fn only_the_last_statement_of_a_request_may_answer_rows() {
    let server = server();
    for sql in ["SELECT 1; SELECT 2", "INSERT x; SELECT 1; INSERT y", "USE a; SHOW t; SELECT 1;"] {
        for format in ["json", "jsonl", "csv", "pretty", "parquet", "arrow"] {
            let answer = server.post(&format!("/sql?format={format}"), sql).await;
            assert_eq!(answer.status, 400, "{sql} {format}");
            assert_eq!(answer.json()["code"], "unsupported", "{sql} {format}");
            let message = answer.json()["message"].as_str().unwrap().to_owned();
            assert!(message.contains("answers rows, but only the last one may"), "{message}");
        }
    }
    assert!(server.fake.queries.lock().is_empty(), "nothing of a refused request runs");
    // A statement that turns out to answer rows only when it runs is no way around.
    let answer = server.post("/sql", "FETCH ALL; SELECT 1").await;
    assert_eq!((answer.status.as_u16(), server.fake.queries.lock().len()), (400, 1));
    *server.fake.batches.lock() = vec![Ok(rows())];
    let answer = server.post("/sql", "USE a; INSERT x; SELECT 1;").await;
    assert_eq!((answer.status.as_u16(), answer.json()[0]["n"].as_i64()), (200, Some(1)));
}

#[tokio::test]
async fn columns_of_one_name_are_told_apart_in_every_format() {
    let server = server();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("count", Arc::new(Int64Array::from(vec![1]))),
        ("count", Arc::new(Int64Array::from(vec![2]))),
        ("count_1", Arc::new(Int64Array::from(vec![3]))),
    ];
    let fields: Vec<Field> =
        columns.iter().map(|(name, _)| Field::new(*name, DataType::Int64, true)).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let ask = async |format: &str| {
        *server.fake.batches.lock() = vec![Ok(batch.clone())];
        server.get(&format!("/sql?q=SELECT&format={format}")).await
    };
    let expected = r#"{"count":1,"count_2":2,"count_1":3}"#;
    assert_eq!(ask("json").await.text(), format!("[{expected}]"));
    assert_eq!(ask("jsonl").await.text(), format!("{expected}\n"));
    assert_eq!(ask("csv").await.text(), "count,count_2,count_1\n1,2,3\n");
    assert!(ask("pretty").await.text().contains("| count | count_2 | count_1 |"));
    let bytes = ask("arrow").await.body;
    let mut reader = arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().schema().field(1).name(), "count_2");
    let bytes = bytes::Bytes::from(ask("parquet").await.body);
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    assert_eq!(reader.schema().field(1).name(), "count_2");
}

#[tokio::test]
async fn influxql_knows_what_agents_ask() {
    let server = server();
    let created = server.post("/query?q=CREATE+DATABASE+%22my+db%22", "").await;
    assert_eq!(created.status, 200);
    assert_eq!(created.json(), json!({"results": [{"statement_id": 0}]}));
    assert!(matches!(&server.fake.ddl.lock()[0],
        Ddl::CreateDatabase { name, if_not_exists: true } if name == "my db"));
    let form = with_token(Request::post("/query"))
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Body::from("q=create+database+telegraf+WITH+DURATION+1d"));
    assert_eq!(server.send(form.unwrap()).await.status, 200);
    let shown = server.get("/query?q=SHOW+DATABASES&epoch=ms").await.json();
    assert_eq!(shown["results"][0]["series"][0]["values"], json!([["kymo"]]));
    let shown = server.get("/query?db=kymo&q=show+measurements").await.json();
    assert_eq!(shown, json!({"results": [{"statement_id": 0}]}));
    let other = server.get("/query?db=kymo&q=SELECT+*+FROM+cpu").await;
    assert_eq!(other.status, 200);
    assert!(other.json()["results"][0]["error"].as_str().unwrap().contains("query_sql"));
    assert_eq!(server.get("/query").await.status, 400);
    *server.fake.refusal.lock() = Some(Error::new(Code::Busy, "later"));
    assert_eq!(server.post("/query?q=CREATE+DATABASE+x", "").await.status, 503);
}

#[tokio::test]
async fn a_query_says_whether_an_administrator_asks() {
    let server = server();
    for (token, admin) in [("tok", true), ("visitor", false)] {
        let header = format!("Bearer {token}");
        let request = Request::get("/api/v3/query_sql?db=kymo&q=SELECT")
            .header("authorization", header.as_str());
        assert_eq!(server.send(request.body(Body::empty()).unwrap()).await.status, 200);
        let session = Arc::clone(&server.fake.queries.lock().last().unwrap().session);
        assert_eq!(session.admin, admin, "{token}");
        let request = Request::post("/query?q=CREATE+DATABASE+new").header("authorization", header);
        let answer = server.send(request.body(Body::empty()).unwrap()).await.json();
        let refused = answer["results"][0]["error"].as_str().is_some_and(|text| {
            text == "CREATE DATABASE needs an administrator, and \"bob\" is none"
        });
        assert_eq!(refused, !admin, "{answer}");
    }
    assert_eq!(server.fake.ddl.lock().len(), 1);
    let request = Request::post("/query?q=CREATE+DATABASE+kymo");
    let request = request.header("authorization", "Bearer visitor").body(Body::empty());
    let answer = server.send(request.unwrap()).await.json();
    assert_eq!(answer, json!({"results": [{"statement_id": 0}]}), "it is there already");
}

#[tokio::test]
async fn the_seeds_query_answers_with_results() {
    let server = server();
    *server.fake.batches.lock() = vec![Ok(rows())];
    let post = |body: &'static str| {
        with_token(Request::post("/query"))
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .unwrap()
    };
    let answer = server.send(post(r#"{"query": "SELECT 1"}"#)).await;
    assert_eq!(answer.json()["status"], "ok");
    assert_eq!(answer.json()["results"][0]["n"], 1);
    let answer = server.send(post(r#"{"query": "INSERT"}"#)).await;
    assert_eq!(answer.json()["results"]["rows"], 3);
    *server.fake.refusal.lock() = Some(Error::new(Code::Syntax, "no"));
    assert_eq!(server.send(post(r#"{"query": "SELECT"}"#)).await.status, 400);
    *server.fake.refusal.lock() = Some(Error::new(Code::ColumnNotFound, "no column x"));
    let answer = server.send(post(r#"{"query": "SELECT"}"#)).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json()["message"], "no column x");
}

#[tokio::test]
async fn operations_are_open_and_honest() {
    let server = server();
    let health = server.get("/health").await.json();
    assert_eq!((&health["name"], &health["status"]), (&json!("kymo"), &json!("pass")));
    assert_eq!(server.get("/ping").await.status, 204);
    assert_eq!(server.get("/ping?verbose=true").await.json()["version"], "1.8.10");
    let head = with_token(Request::head("/ping")).body(Body::empty()).unwrap();
    assert_eq!(server.send(head).await.status, 204);
    assert_eq!(server.get("/ready").await.status, 200);
    assert_eq!(server.get("/stats").await.json()["tables"], 0);
    let metrics = server.get("/metrics").await.text();
    assert!(
        metrics.contains(r#"kymo_http_requests_total{route="/ready",status="200"}"#),
        "{metrics}"
    );
    assert!(server.get("/").await.text().contains("Kymo"));
    assert_eq!(server.get("/nothing").await.status, 404);
    assert_eq!(server.get("/write").await.status, 405);
    *server.fake.refusal.lock() = Some(Error::new(Code::Poisoned, "the disk failed"));
    assert_eq!(server.get("/ready").await.status, 503);
    let health = server.get("/health").await;
    assert_eq!(
        (health.status.as_u16(), &health.json()["message"]),
        (503, &json!("the disk failed"))
    );
}

#[tokio::test]
async fn a_stopping_server_turns_requests_away() {
    let server = server();
    server.app.drain();
    let answer = server.post(V1, "m v=1").await;
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key(RETRY_AFTER));
    assert_eq!(server.get("/ready").await.status, 503);
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_clients_own_id_comes_back() {
    let server = server();
    let with_id =
        |id: &str| Request::get("/ping").header("x-request-id", id).body(Body::empty()).unwrap();
    assert_eq!(server.send(with_id("abc-1")).await.headers["x-request-id"], "abc-1");
    let long = "x".repeat(65);
    assert_ne!(server.send(with_id(&long)).await.headers["request-id"], long.as_str());
}

#[tokio::test]
async fn plugins_and_backups_are_the_administrators() {
    let server = server();
    let requests = [
        ("GET", "/api/v1/plugins"),
        ("GET", "/api/v1/plugins/p"),
        ("GET", "/api/v1/plugins/p/versions"),
        ("PUT", "/api/v1/plugins/p"),
        ("DELETE", "/api/v1/plugins/p"),
        ("POST", "/api/v1/plugins/p/resume"),
        ("POST", "/api/v1/backups"),
        ("GET", "/api/v1/backups/1/object?path=meta"),
        ("DELETE", "/api/v1/backups/1"),
        ("GET", "/api/v1/snapshots"),
        ("POST", "/api/v1/snapshots"),
        ("DELETE", "/api/v1/snapshots/yesterday"),
    ];
    for (method, path) in requests {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("authorization", "Bearer visitor");
        let answer = server.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{method} {path}: {}", answer.text());
        assert_eq!(answer.json()["code"], "not_authorized", "{}", answer.text());
    }
    let answer = server.get("/api/v1/plugins").await;
    assert_eq!(answer.json(), json!({ "plugins": [] }));
    assert_eq!(server.get("/api/v1/plugins/p").await.status, StatusCode::NOT_FOUND);
    let answer = server.post("/api/v1/plugins/p/dance", "").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text());
}
