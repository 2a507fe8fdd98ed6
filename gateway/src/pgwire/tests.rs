//! Conversations byte by byte with a session that answers from a script.
//!
//! The defects that made Kymo own its loop (A–M of the notes on clients) are each provoked
//! here over a real socket; the whole-system tests send the same bytes to the real binary.

mod fake;

use std::time::Duration;

use fake::Server;

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_trusted_client_is_greeted_and_served() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.query("SELECT 2").await;
    let messages = client.until_ready().await;
    assert_eq!(kinds(&messages), "TDDCZ");
    assert_eq!(tag(&messages), "SELECT 2");
}

#[tokio::test]
async fn scram_lets_the_right_password_in_and_nothing_else() {
    let server = Server::open(|settings| settings.auth.enabled = true).await;
    let config = |user: &str, password: &str| {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(server.port()).user(user).password(password).dbname("kymo");
        config
    };
    for (user, admins) in [("bob", 0), ("ann", 1)] {
        assert!(config(user, "secret").connect(tokio_postgres::NoTls).await.is_ok());
        assert_eq!(server.admins(), admins, "{user}");
    }
    let mut refusals = Vec::new();
    for (user, password) in [("ann", "wrong"), ("nobody", "secret")] {
        let error = config(user, password).connect(tokio_postgres::NoTls).await.err().unwrap();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.severity(), "FATAL");
        refusals.push((error.code().code().to_owned(), error.message().replace(user, "?")));
    }
    assert_eq!(refusals[0], refusals[1], "a known name must look like an unknown one");
    assert_eq!(refusals[0].0, "28P01");
}

/// Defects A and B: after any failure during start-up nothing runs.
#[tokio::test]
async fn a_failed_log_in_closes_and_runs_nothing() {
    let server = Server::open(|settings| settings.auth.enabled = true).await;
    let mut bogus = b"BOGUS\0\0\0\0\x05n,,n=".to_vec();
    let mut early = b"SELECT 1\0".to_vec();
    for (kind, body) in [(b'p', &mut bogus), (b'Q', &mut early)] {
        let mut client = server.connect().await;
        client.startup("ann", "kymo").await;
        assert_eq!(client.message().await.unwrap().0, b'R');
        client.send(kind, body).await;
        client.query("SELECT 1").await;
        let (kind, body) = client.message().await.unwrap();
        assert_eq!(kind, b'E');
        assert!(body.windows(6).any(|part| part == b"FATAL\0"));
        assert!(client.message().await.is_none(), "the connection must be closed");
    }
    let mut client = server.connect().await;
    client.startup("ann", "nowhere").await;
    assert_eq!(server.queries(), 0);
}

#[tokio::test]
async fn an_unknown_database_is_fatal() {
    let server = Server::open(|_| {}).await;
    let mut client = server.connect().await;
    client.startup("ann", "nowhere").await;
    let (kind, body) = client.message().await.unwrap();
    assert_eq!(kind, b'E');
    assert_eq!(field(&body, b'C'), "3D000");
    assert!(client.message().await.is_none());
}

#[tokio::test]
async fn rows_without_an_end_go_with_their_client_or_with_the_server() {
    for sync in [false, true] {
        let server = Server::open(|_| {}).await;
        let mut client = server.trusted().await;
        client.query("SUBSCRIBE").await;
        assert_eq!(client.message().await.unwrap().0, b'T');
        assert_eq!(client.message().await.unwrap().0, b'D');
        if sync {
            client.sync().await;
        }
        // Says goodbye and waits for the server to hang up.
        client.send(b'X', b"").await;
        assert!(client.message().await.is_none());
        server.until_stopped().await;
    }
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.query("SUBSCRIBE").await;
    assert_eq!(client.message().await.unwrap().0, b'T');
    assert_eq!(client.message().await.unwrap().0, b'D');
    server.stop();
    let (kind, body) = client.message().await.unwrap();
    assert_eq!((kind, field(&body, b'C').as_str()), (b'E', "57P01"));
    assert!(body.windows(6).any(|part| part == b"FATAL\0"));
    server.ended().await;
}

/// A driver that asks for some rows gets those that are there, and may ask again.
#[tokio::test]
async fn a_portal_without_an_end_does_not_wait_for_its_limit() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.parse("", "SUBSCRIBE").await;
    client.bind("", "", &[]).await;
    client.execute("", 100).await;
    client.send(b'H', b"").await;
    let mut kinds = String::new();
    while !kinds.ends_with('s') {
        kinds.push(char::from(client.message().await.unwrap().0));
    }
    assert_eq!(kinds, "12Ds");
    client.execute("", 100).await;
    client.send(b'H', b"").await;
    let (pid, secret) = client.key.clone();
    server.cancel(pid, &secret).await;
    let (kind, body) = client.message().await.unwrap();
    assert_eq!((kind, field(&body, b'C').as_str()), (b'E', "57014"));
    client.sync().await;
    client.until_ready().await;
}

/// Defects C and D: a row limit never reserves memory, a negative one is a violation.
#[tokio::test]
async fn row_limits_of_any_size_are_survived() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.parse("", "SELECT 3").await;
    client.bind("", "", &[]).await;
    client.execute("", i32::MAX).await;
    client.sync().await;
    assert_eq!(kinds(&client.until_ready().await), "12DDDCZ");
    client.bind("", "", &[]).await;
    client.execute("", -1).await;
    client.sync().await;
    let messages = client.until_ready().await;
    assert_eq!(kinds(&messages), "2EZ");
    assert_eq!(field(&messages[1].1, b'C'), "08P01");
}

/// Defect D: format codes that do not fit the columns.
#[tokio::test]
async fn format_codes_must_fit_the_columns() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    for formats in [&[0, 0][..], &[7]] {
        client.parse("", "SELECT 3").await;
        client.bind("", "", formats).await;
        client.execute("", 0).await;
        client.sync().await;
        let messages = client.until_ready().await;
        assert_eq!(kinds(&messages), "1EZ", "what follows an error is skipped up to Sync");
        assert_eq!(field(&messages[1].1, b'C'), "08P01");
    }
    client.query("SELECT 1").await;
    assert_eq!(kinds(&client.until_ready().await), "TDCZ");
}

/// Defect E: rows arrive while the statement still runs.
#[tokio::test]
async fn the_extended_protocol_streams() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.parse("", "ENDLESS").await;
    client.bind("", "", &[]).await;
    client.execute("", 0).await;
    client.sync().await;
    for expected in *b"12D" {
        assert_eq!(client.message().await.unwrap().0, expected);
    }
    drop(client);
    server.until_stopped().await;
}

#[tokio::test]
async fn a_portal_is_read_in_portions() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.query("BEGIN").await;
    client.until_ready().await;
    client.parse("s", "SELECT 5").await;
    client.bind("p", "s", &[]).await;
    client.execute("p", 2).await;
    client.sync().await;
    assert_eq!(kinds(&client.until_ready().await), "12DDsZ");
    client.execute("p", 2).await;
    client.execute("p", 2).await;
    client.sync().await;
    let messages = client.until_ready().await;
    assert_eq!(kinds(&messages), "DDsDCZ");
    client.query("COMMIT").await;
    client.until_ready().await;
    client.execute("p", 0).await;
    client.sync().await;
    let messages = client.until_ready().await;
    assert_eq!(field(&messages[0].1, b'C'), "34000", "a portal ends with its transaction");
}

/// Defect F: a cancel request stops what runs; a wrong secret does not.
#[tokio::test]
async fn a_cancel_request_stops_the_rows() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.query("ENDLESS").await;
    assert_eq!(client.message().await.unwrap().0, b'T');
    let (pid, secret) = client.key.clone();
    server.cancel(pid, &[0; 4]).await;
    server.cancel(pid, &secret).await;
    let messages = tokio::time::timeout(PATIENCE, client.until_ready()).await.unwrap();
    let error = messages.iter().find(|(kind, _)| *kind == b'E').unwrap();
    assert_eq!(field(&error.1, b'C'), "57014");
    client.query("SELECT 1").await;
    assert_eq!(kinds(&client.until_ready().await), "TDCZ");
}

/// Defect G: bytes that came with the request for encryption are never run.
#[tokio::test]
async fn nothing_may_follow_a_request_for_encryption() {
    let server = Server::open(|_| {}).await;
    let mut client = server.connect().await;
    let mut bytes = vec![0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    bytes.extend_from_slice(&fake::startup_packet("ann", "kymo"));
    client.raw(&bytes).await;
    assert!(client.message().await.is_none());
    let mut client = server.connect().await;
    client.raw(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30]).await;
    assert_eq!(client.byte().await, Some(b'N'));
    client.raw(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).await;
    assert_eq!(client.byte().await, Some(b'N'));
    client.startup("ann", "kymo").await;
    client.until_ready().await;
}

/// Defect H: nobody unknown makes the server hold more than a little.
#[tokio::test]
async fn messages_are_small_until_log_in_and_bounded_after() {
    let server = Server::open(|settings| settings.auth.enabled = true).await;
    let mut client = server.connect().await;
    client.startup("ann", "kymo").await;
    client.message().await.unwrap();
    client.raw(b"p\x10\x00\x00\x00").await;
    let (kind, body) = client.message().await.unwrap();
    assert_eq!((kind, field(&body, b'C').as_str()), (b'E', "54000"));
    assert!(client.message().await.is_none());

    let server = Server::open(|settings| settings.pg.max_message_bytes = 1000).await;
    let mut client = server.trusted().await;
    client.query(&format!("SELECT {}", "1".repeat(2000))).await;
    assert_eq!(client.message().await.unwrap().0, b'E');
    assert!(client.message().await.is_none());
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let server = Server::open(|settings| settings.server.startup_timeout_ms = 50).await;
    let mut client = server.connect().await;
    assert!(client.message().await.is_none());
}

#[tokio::test]
async fn an_error_does_not_wait_for_sync() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.bind("", "nope", &[]).await;
    client.send(b'H', b"").await;
    let error = tokio::time::timeout(PATIENCE, client.message()).await.unwrap();
    assert_eq!(error.unwrap().0, b'E');
    client.sync().await;
    assert_eq!(kinds(&client.until_ready().await), "Z");
}

/// Defect M: SQL that is not UTF-8 is refused, not altered.
#[tokio::test]
async fn sql_must_be_utf8() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.send(b'Q', b"SELECT '\xff'\0").await;
    let messages = client.until_ready().await;
    assert_eq!(field(&messages[0].1, b'C'), "22021");
    client.send(b'P', b"\0SELECT '\xff'\0\0\0").await;
    client.sync().await;
    let messages = client.until_ready().await;
    assert_eq!(field(&messages[0].1, b'C'), "22021");
}

#[tokio::test]
async fn broken_messages_cost_their_statement_only() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    for (kind, body) in [(b'P', &b"x"[..]), (b'B', b""), (b'E', b"\0"), (b'D', b"X\0")] {
        client.send(kind, body).await;
        client.sync().await;
        let messages = client.until_ready().await;
        assert_eq!(field(&messages[0].1, b'C'), "08P01");
    }
    client.send(b'!', b"").await;
    let (kind, body) = client.message().await.unwrap();
    assert_eq!((kind, field(&body, b'C').as_str()), (b'E', "08P01"));
    assert!(client.message().await.is_none(), "an unknown message ends the connection");
}

#[tokio::test]
async fn the_first_statement_keeps_its_rows_when_the_second_fails() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.query("SELECT 1; FAIL; SELECT 2").await;
    assert_eq!(kinds(&client.until_ready().await), "TDCEZ");
    client.query("").await;
    assert_eq!(kinds(&client.until_ready().await), "IZ");
}

#[tokio::test]
async fn a_failed_transaction_accepts_its_end_only() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.query("BEGIN").await;
    assert_eq!(status(&client.until_ready().await), b'T');
    client.query("LATE").await;
    let messages = client.until_ready().await;
    assert_eq!((kinds(&messages).as_str(), status(&messages)), ("TDEZ", b'E'));
    client.query("SELECT 1").await;
    let messages = client.until_ready().await;
    assert_eq!(field(&messages[0].1, b'C'), "25P02");
    client.query("COMMIT").await;
    let messages = client.until_ready().await;
    assert_eq!((tag(&messages).as_str(), status(&messages)), ("ROLLBACK", b'I'));
    client.query("COMMIT").await;
    let messages = client.until_ready().await;
    assert_eq!(kinds(&messages), "NCZ");
    assert_eq!(field(&messages[0].1, b'C'), "25P01");
}

#[tokio::test]
async fn statements_have_names_limits_and_an_end() {
    let server = Server::open(|settings| settings.pg.max_statements = 2).await;
    let mut client = server.trusted().await;
    let mut code = async |name: &str, sql: &str| {
        client.parse(name, sql).await;
        client.sync().await;
        let messages = client.until_ready().await;
        if messages[0].0 == b'E' { field(&messages[0].1, b'C') } else { String::new() }
    };
    assert_eq!(code("a", "SELECT 1").await, "");
    assert_eq!(code("a", "SELECT 1").await, "42P05");
    assert_eq!(code("b", "SELECT 1; SELECT 2").await, "42601");
    assert_eq!(code("b", "SELECT 1").await, "");
    assert_eq!(code("c", "SELECT 1").await, "54000");
    client.bind("", "nope", &[]).await;
    client.sync().await;
    assert_eq!(field(&client.until_ready().await[0].1, b'C'), "26000");
    client.query("DEALLOCATE a").await;
    assert_eq!(tag(&client.until_ready().await), "DEALLOCATE");
    client.query("DEALLOCATE a").await;
    assert_eq!(field(&client.until_ready().await[0].1, b'C'), "26000");
}

#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let server = Server::open(|settings| settings.server.max_connections = 1).await;
    let _first = server.trusted().await;
    let mut second = server.connect().await;
    second.startup("ann", "kymo").await;
    let (kind, body) = second.message().await.unwrap();
    assert_eq!((kind, field(&body, b'C').as_str()), (b'E', "53300"));
}

#[tokio::test]
async fn a_stopping_server_says_goodbye() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    server.stop();
    let (kind, body) = client.message().await.unwrap();
    assert_eq!((kind, field(&body, b'C').as_str()), (b'E', "57P01"));
    assert!(client.message().await.is_none());
    server.ended().await;
}

#[tokio::test]
async fn rows_are_copied_out_and_in() {
    let server = Server::open(|_| {}).await;
    let mut client = server.trusted().await;
    client.query("COPY (SELECT 2) TO STDOUT").await;
    let messages = client.until_ready().await;
    assert_eq!(kinds(&messages), "HddcCZ");
    assert_eq!(tag(&messages), "COPY 2");
    client.query("COPY cpu (time, host, n) FROM STDIN CSV").await;
    assert_eq!(client.message().await.unwrap().0, b'G');
    client.send(b'd', b"2024-01-01 00:00:00,a,1\n2024-01-01").await;
    client.send(b'd', b" 00:00:01,b,2\n").await;
    client.send(b'c', b"").await;
    assert_eq!(tag(&client.until_ready().await), "COPY 2");
    assert_eq!(server.written(), 2);
    client.query("COPY cpu (time, host, n) FROM STDIN CSV").await;
    client.send(b'd', b"2024-01-01,a,x\n").await;
    client.send(b'd', b"2024-01-01,a,1\n").await;
    client.send(b'c', b"").await;
    let messages = client.until_ready().await;
    assert_eq!(kinds(&messages), "GEZ");
    assert!(field(&messages[1].1, b'M').contains("line 1"));
    client.query("SELECT 1").await;
    assert_eq!(kinds(&client.until_ready().await), "TDCZ", "what is left of a copy is ignored");
}

fn kinds(messages: &[(u8, Vec<u8>)]) -> String {
    messages.iter().map(|(kind, _)| char::from(*kind)).collect()
}

fn tag(messages: &[(u8, Vec<u8>)]) -> String {
    let complete = messages.iter().find(|(kind, _)| *kind == b'C');
    let (_, body) = complete.unwrap_or_else(|| panic!("no CommandComplete: {messages:?}"));
    String::from_utf8_lossy(&body[..body.len() - 1]).into_owned()
}

fn status(messages: &[(u8, Vec<u8>)]) -> u8 {
    messages.last().unwrap().1[0]
}

fn field(body: &[u8], name: u8) -> String {
    let mut fields = body.split(|byte| *byte == 0);
    let found = fields.find(|field| field.first() == Some(&name));
    String::from_utf8_lossy(&found.unwrap_or_else(|| panic!("no field"))[1..]).into_owned()
}
