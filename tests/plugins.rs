//! Installing plugins, over HTTP and SQL against the real binary: versions, going back,
//! refusals, and that a kill leaves all of an installation or nothing.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use kymo_tests::clients::send;
use kymo_tests::component::plugin;
use kymo_tests::{Answer, Options, Server, until_async};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const PATH: &str = "/api/v1/plugins";

async fn put(server: &Server, path: &str, component: Vec<u8>) -> Answer {
    let request = server.request(Method::PUT, &format!("{PATH}/{path}"));
    send(request.body(component)).await.expect("an answer")
}

async fn install(server: &Server, path: &str, component: Vec<u8>) -> Value {
    let answer = put(server, path, component).await;
    assert!(answer.status.is_success(), "{path}: {}", answer.text());
    answer.json()
}

async fn post(server: &Server, path: &str) -> Answer {
    send(server.request(Method::POST, &format!("{PATH}/{path}"))).await.expect("an answer")
}

async fn show(server: &Server, name: &str) -> Value {
    server.get(&format!("{PATH}/{name}")).await.json()
}

/// The files that hold components, and those that unfinished uploads left.
fn files(server: &Server) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(server.data_dir().join("plugins")) else {
        return Vec::new();
    };
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.expect("an entry").file_name().into_string().expect("a name")
    };
    entries.map(name).collect()
}

async fn state(server: &Server, name: &str) -> Option<String> {
    let sql =
        format!("SELECT state FROM system.plugins WHERE plugin = '{name}' AND role = 'active'");
    server.sql(&sql).await.first().map(|row| row["state"].as_str().expect("a state").to_owned())
}

async fn until_active(server: &Server, name: &str) {
    until_async("the plugin is loaded", Duration::from_secs(60), || async {
        (state(server, name).await.as_deref() == Some("active")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn versions_are_installed_listed_rolled_back_and_survive_a_restart() {
    let server = Server::start(Options::new());
    let answer = put(&server, "p", plugin("1.0.0", &["f"])).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    assert_eq!(answer.json()["functions"][0]["name"], "f", "{}", answer.text());
    let second = install(&server, "p", plugin("2.0.0", &["f", "g"])).await;
    assert_eq!(second["active"]["version"], "2.0.0", "{second}");
    assert_eq!(second["previous"]["version"], "1.0.0", "{second}");
    let third = install(&server, "p?activate=false", plugin("3.0.0", &["f"])).await;
    assert_eq!(third["active"]["version"], "2.0.0", "{third}");
    assert_eq!(third["installed"]["version"], "3.0.0", "{third}");

    let list = server.get(PATH).await.json();
    assert_eq!(list["plugins"][0]["name"], "p", "{list}");
    assert_eq!(list["plugins"][0]["versions"], 3, "{list}");
    let versions = server.get(&format!("{PATH}/p/versions")).await.json();
    let labels: Vec<&str> = versions["versions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|each| each["version"].as_str().expect("a version"))
        .collect();
    assert_eq!(labels, ["3.0.0", "2.0.0", "1.0.0"]);
    assert_eq!(files(&server).len(), 3);

    let back = post(&server, "p/rollback").await;
    assert_eq!(back.json()["active"]["version"], "1.0.0", "{}", back.text());
    let trial = post(&server, "p/canary?version=3.0.0&percent=5").await;
    assert_eq!(trial.json()["canary"]["percent"], 5, "{}", trial.text());
    let suspended = post(&server, "p/suspend?reason=maintenance").await;
    assert_eq!(suspended.json()["state"], "suspended", "{}", suspended.text());
    assert_eq!(state(&server, "p").await.as_deref(), Some("suspended"));

    let before = show(&server, "p").await;
    let server = server.restart();
    assert_eq!(show(&server, "p").await, before);
    until_async("the plugin is loaded", Duration::from_secs(60), || async {
        (state(&server, "p").await.as_deref() == Some("suspended")).then_some(())
    })
    .await;
    let resumed = post(&server, "p/resume").await;
    assert_eq!(resumed.json()["state"], "active", "{}", resumed.text());
    assert_eq!(state(&server, "p").await.as_deref(), Some("active"));
    let shown = server.sql("SHOW PLUGINS").await;
    assert_eq!(shown[0]["version"], "1.0.0", "{shown:?}");

    let gone = send(server.request(Method::DELETE, &format!("{PATH}/p"))).await.expect("an answer");
    assert_eq!(gone.status, StatusCode::OK, "{}", gone.text());
    assert_eq!(server.get(&format!("{PATH}/p")).await.status, StatusCode::NOT_FOUND);
    assert!(server.sql("SELECT * FROM system.plugins").await.is_empty());
}

#[tokio::test]
async fn what_is_no_plugin_is_refused_by_name_and_the_server_goes_on() {
    let server = Server::start(Options::new().setting("plugins.max_component_bytes", 20_000));
    let whole = plugin("1.0.0", &["f"]);
    let half = whole[..whole.len() / 2].to_vec();
    for component in [b"not wasm".to_vec(), b"\0asm\x01\0\0\0".to_vec(), half, Vec::new()] {
        let answer = put(&server, "broken", component).await;
        assert!(answer.status.is_client_error(), "{}: {}", answer.status, answer.text());
        assert!(answer.text().contains("broken"), "{}", answer.text());
    }
    let answer = put(&server, "large", vec![0; 20_001]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{}", answer.text());
    let setting = "plugins.max_component_bytes = 1048576";
    assert!(answer.text().contains(setting), "what to set is said: {}", answer.text());
    let chunks = futures::stream::iter((0..30).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 1000])));
    let streamed = server.request(Method::PUT, &format!("{PATH}/large"));
    let streamed = streamed.body(reqwest::Body::wrap_stream(chunks));
    let answer = send(streamed).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{}", answer.text());
    let other = server.request(Method::PUT, &format!("{PATH}/p"));
    let digest = format!("sha256:{}", "0".repeat(64));
    let answer = send(other.header("x-kymo-digest", digest).body(whole.clone())).await.unwrap();
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text());
    assert!(answer.text().contains("announced"), "{}", answer.text());
    // A bomb in a zip is never unpacked: nothing compressed is taken.
    for encoding in ["gzip", "deflate", "zstd", "br"] {
        let packed = server.request(Method::PUT, &format!("{PATH}/p"));
        let packed = packed.header("content-encoding", encoding).body(vec![0; 1000]);
        let answer = send(packed).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text());
        assert_eq!(answer.json()["code"], "unsupported", "{}", answer.text());
        assert!(answer.text().contains("content-encoding"), "{}", answer.text());
    }
    assert!(server.sql("SELECT * FROM system.plugins").await.is_empty());
    let left = files(&server);
    assert!(left.iter().all(|name| name.ends_with(".wasm")), "{left:?}");
    install(&server, "p", whole).await;
    assert!(server.anonymous(Method::GET, PATH).send().await.unwrap().status() == 401);
}

/// Answers requests for these paths, one after the other, as long as the test lives: `/p.wasm`
/// with a component, `/endless` without an end, `/elsewhere` with a way to `/p.wasm`.
fn serve(component: Vec<u8>) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..count]).into_owned();
            // Who asked may hang up in the middle: that is what the test is about.
            let _ = match request.split(' ').nth(1) {
                Some("/released/p.wasm") => {
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                        component.len()
                    );
                    stream.write_all(&[head.as_bytes(), &component].concat())
                }
                Some("/released/endless") => endless(&mut stream),
                Some("/released/elsewhere") => stream.write_all(
                    b"HTTP/1.1 302 Found\r\nlocation: /secret\r\nconnection: close\r\n\
                      content-length: 0\r\n\r\n",
                ),
                _ => stream.write_all(
                    b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
                ),
            };
        }
    });
    address
}

fn endless(stream: &mut std::net::TcpStream) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
    loop {
        stream.write_all(&[0; 4096])?;
    }
}

#[tokio::test]
async fn components_are_fetched_from_where_the_settings_allow_and_from_nowhere_else() {
    let address = serve(plugin("1.0.0", &["f"]));
    let base = format!("http://{address}/released/");
    let server = Server::start(Options::new().setting("plugins.install_urls", &base));
    server.sql(&format!("CREATE PLUGIN p FROM '{base}p.wasm'")).await;
    assert_eq!(show(&server, "p").await["active"]["version"], "1.0.0");
    for (location, part) in [
        (format!("{base}missing"), "404"),
        (format!("{base}elsewhere"), "302"),
        (format!("{base}endless"), "larger than"),
        (format!("{base}../secret"), "install_urls"),
        (format!("http://{address}/secret"), "install_urls"),
        ("https://localhost/released/x".to_owned(), "install_urls"),
    ] {
        let sql = format!("CREATE PLUGIN q FROM '{location}'");
        let answer = server.try_sql(&sql).await.expect("an answer");
        assert!(answer.status.is_client_error(), "{location}: {}", answer.status);
        assert!(answer.text().contains(part), "{location}: {}", answer.text());
    }
    assert_eq!(server.sql("SHOW PLUGINS").await.len(), 1);
    assert_eq!(files(&server).len(), 1, "nothing unfinished is left");
}

#[tokio::test]
async fn functions_hold_their_plugin_and_say_what_they_miss() {
    let server = Server::start(Options::new());
    install(&server, "p", plugin("1.0.0", &["f", "g"])).await;
    let create = "CREATE FUNCTION half(x DOUBLE PRECISION) RETURNS DOUBLE PRECISION \
                  LANGUAGE wasm AS PLUGIN p FUNCTION f";
    server.sql(create).await;
    for (sql, status, part) in [
        (create, 409, "exists"),
        ("DROP PLUGIN p", 409, "half"),
        (
            "CREATE FUNCTION round(x DOUBLE PRECISION) RETURNS DOUBLE PRECISION LANGUAGE wasm \
             AS PLUGIN p FUNCTION f",
            409,
            "built-in",
        ),
        (
            "CREATE FUNCTION h(x BIGINT) RETURNS BIGINT LANGUAGE wasm AS PLUGIN p FUNCTION f",
            400,
            "does not take",
        ),
        ("CREATE PLUGIN q FROM 'https://localhost/x.wasm'", 400, "not installed from"),
        ("CREATE PLUGIN q FROM 'file:/etc/passwd'", 400, "install_folder"),
        ("ATTACH TRANSFORM p.f TO missing", 404, "missing"),
    ] {
        let answer = server.try_sql(sql).await.expect("an answer");
        assert!(answer.text().contains(part), "{sql}: {}", answer.text());
        assert!(answer.status.is_client_error(), "{sql}: {} not {status}", answer.status);
    }
    let refused = put(&server, "p", plugin("2.0.0", &["g"])).await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{}", refused.text());
    assert!(refused.text().contains("half"), "{}", refused.text());
    assert_eq!(show(&server, "p").await["active"]["version"], "1.0.0");
    install(&server, "p?force=true", plugin("2.0.0", &["g"])).await;
    let names = server.sql("SELECT name FROM system.functions ORDER BY name").await;
    assert_eq!(names, [json!({ "name": "p.g" })]);
    server.sql("DROP PLUGIN p CASCADE").await;
    assert!(server.sql("SHOW PLUGINS").await.is_empty());
}

#[tokio::test]
async fn a_function_is_called_by_the_name_that_it_was_given() {
    const C2F: &[u8] = include_bytes!("../plugins/guests/c2f/c2f.wasm");
    const GOLDEN: &[u8] = include_bytes!("../plugins/guests/golden-0.1.0/golden-0.1.0.wasm");
    let server = Server::start(Options::new());
    install(&server, "weather", C2F.to_vec()).await;
    install(&server, "golden", GOLDEN.to_vec()).await;
    for (name, of) in
        [("fahrenheit", "weather FUNCTION c2f"), ("middle", "golden FUNCTION golden_mean")]
    {
        let create = format!(
            "CREATE FUNCTION {name}(x DOUBLE PRECISION) RETURNS DOUBLE PRECISION \
             LANGUAGE wasm AS PLUGIN {of}"
        );
        server.sql(&create).await;
    }
    let sql = "SELECT fahrenheit(100.0) AS f, middle(value) AS m, sum(value) AS s \
               FROM generate_series(1, 9) WHERE Fahrenheit(value) > 40";
    assert_eq!(server.sql(sql).await, [json!({ "f": 212.0, "m": 7.0, "s": 35 })]);
    let sql = "SELECT value, middle(value) OVER (ORDER BY value ROWS 1 PRECEDING) AS m \
               FROM generate_series(1, 3) ORDER BY value DESC LIMIT 1";
    assert_eq!(server.sql(sql).await, [json!({ "value": 3, "m": 2.5 })]);
    server.sql("DROP FUNCTION fahrenheit").await;
    let gone = server.try_sql("SELECT fahrenheit(1.0)").await.expect("an answer");
    assert!(gone.text().contains("does not exist"), "{}", gone.text());
    let meant = server.try_sql("SELECT c2f(1.0)").await.expect("an answer");
    assert!(meant.text().contains("did you mean weather.c2f()?"), "{}", meant.text());
}

#[tokio::test]
async fn a_kill_leaves_all_of_an_installation_or_nothing() {
    let mut server = Server::start(Options::new());
    for round in 0..6_u64 {
        let component = plugin(&format!("{round}.0.0"), &["f"]);
        let request = server.request(Method::PUT, &format!("{PATH}/p")).body(component);
        let upload = tokio::spawn(send(request));
        // Later and later into what an installation does.
        tokio::time::sleep(Duration::from_millis(round * round * 12)).await;
        server.kill();
        let acknowledged = upload.await.unwrap().is_ok_and(|answer| answer.status.is_success());
        server = server.restart();
        let version = format!("{round}.0.0");
        let found = show(&server, "p").await;
        let active = found["active"]["version"] == version.as_str();
        assert!(active || !acknowledged, "round {round}: acknowledged and lost: {found}");
        let named = found["versions"].as_array().map_or(0, Vec::len);
        let left = files(&server);
        assert_eq!(left.len(), named, "round {round}: {left:?}");
        if named > 0 {
            until_active(&server, "p").await;
        }
    }
}

#[tokio::test]
async fn a_damaged_component_leaves_the_server_up_and_says_so() {
    let server = Server::start(Options::new());
    install(&server, "p", plugin("1.0.0", &["f"])).await;
    let object = server.data_dir().join("plugins").join(&files(&server)[0]);
    let damage = |path: &Path| {
        let mut bytes = std::fs::read(path).expect("the component");
        bytes[100] ^= 1;
        std::fs::write(path, bytes).expect("damage");
    };
    damage(&object);
    let server = server.restart();
    until_async("the failure is known", Duration::from_secs(60), || async {
        let rows = server.sql("SELECT state, reason FROM system.plugins").await;
        let reason = rows[0]["reason"].as_str().unwrap_or_default().to_owned();
        reason.contains("does not hold what its name says").then_some(())
    })
    .await;
    install(&server, "p", plugin("1.0.0", &["f"])).await;
    assert_eq!(state(&server, "p").await.as_deref(), Some("active"), "the same upload heals it");
}
