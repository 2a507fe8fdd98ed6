//! What an account without administrator's rights may do and see, and what it may not.

use super::*;

const T: &str = "CREATE TABLE t (host TEXT TAG, v BIGINT, time TIMESTAMPTZ);
    INSERT INTO t VALUES ('a', 1, '2024-01-01')";

/// A session of somebody who is no administrator.
fn visitor(house: &House) -> Session {
    let mut context = house.session().context().as_ref().clone();
    context.user = "bob".into();
    context.admin = false;
    Session::start(&house.supervisor, house.ports.clone(), None, context)
}

#[test]
fn only_administrators_change_definitions() {
    let house = House::new();
    house.rows(T);
    let session = visitor(&house);
    house.run(async move {
        for sql in [
            "CREATE TABLE u (v BIGINT, time TIMESTAMPTZ)",
            "CREATE TABLE IF NOT EXISTS t (v BIGINT, time TIMESTAMPTZ)",
            "DROP TABLE t",
            "DROP TABLE IF EXISTS nothing",
            "CREATE DATABASE d",
            "DROP DATABASE IF EXISTS d",
            "ATTACH TRANSFORM p.f TO t",
            "DETACH TRANSFORM p.f FROM t",
            "ALTER TABLE t SET (retention = '1d')",
            "ALTER DATABASE d RESET (retention)",
        ] {
            let error = rows(&session, sql).await.unwrap_err();
            assert_eq!(error.code(), Code::NotAuthorized, "{sql}: {error:?}");
            let verb = sql.split(' ').take(2).collect::<Vec<_>>().join(" ");
            assert!(error.message().contains(&verb), "{sql}: {error:?}");
            assert!(error.message().contains("\"bob\""), "{sql}: {error:?}");
            assert!(error.hint().unwrap().contains("administrator"), "{sql}: {error:?}");
        }
        rows(&session, "INSERT INTO t VALUES ('b', 2, '2024-01-02')").await.unwrap();
        assert_eq!(rows(&session, "SELECT count(*) FROM t").await.unwrap(), ["2"]);
        assert_eq!(rows(&session, "DELETE FROM t WHERE host = 'b'").await.unwrap(), ["DELETE 1"]);
        assert_eq!(rows(&session, "SHOW is_superuser").await.unwrap(), ["off"]);
    });
    assert_eq!(house.rows("SHOW DATABASES"), ["kymo"]);
    assert_eq!(house.rows("SHOW TABLES"), ["public|t"]);
    assert_eq!(house.rows("SHOW is_superuser"), ["on"]);
}

#[test]
fn the_text_of_other_users_queries_is_hidden() {
    let house = House::new();
    let busy = house.session();
    let canceller = busy.canceller();
    let query = "SELECT count(*) FROM generate_series(1, 1000000000000) WHERE sqrt(value) < 0";
    let running = house
        .pools
        .spawn(kymo_kernel::pools::Pool::Io, "endless", async move { rows(&busy, query).await });
    let session = visitor(&house);
    let look = "SELECT \"user\" || ': ' || sql FROM system.queries ORDER BY 1";
    let seen = house.run(async move {
        loop {
            let seen = rows(&session, look).await.unwrap();
            if seen.len() == 2 {
                break seen;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(seen, ["ada: <insufficient privilege>".to_owned(), format!("bob: {look}")]);
    assert!(house.rows(look).contains(&format!("ada: {query}")));
    canceller.cancel();
    assert!(house.run(running).unwrap().is_err());
}

#[test]
fn settings_of_accounts_and_of_the_machine_are_hidden() {
    let house = House::with(|settings| settings.auth.admin_password = Some("secret".into()));
    let look = "SELECT name, value FROM system.settings WHERE name IN ('auth.admin_user', \
                'auth.admin_password', 'server.data_dir', 'server.http_port') ORDER BY 1";
    assert_eq!(
        house.rows(look),
        [
            "auth.admin_password|***",
            "auth.admin_user|admin",
            "server.data_dir|/data",
            "server.http_port|7878"
        ]
    );
    let session = visitor(&house);
    let seen = house.run(async move { rows(&session, look).await.unwrap() });
    assert_eq!(
        seen,
        [
            "auth.admin_password|***",
            "auth.admin_user|<insufficient privilege>",
            "server.data_dir|<insufficient privilege>",
            "server.http_port|7878"
        ]
    );
}

/// A prepared statement reads a system table as it is when it runs.
#[test]
fn system_tables_are_filled_when_they_are_read() {
    let house = House::new();
    let session = house.session();
    house.run(async move {
        let statement =
            session.parse("SELECT \"table\" FROM system.tables").await.unwrap().remove(0);
        let prepared = session.prepare(statement, Vec::new()).await.unwrap();
        rows(&session, T).await.unwrap();
        let run = Runnable::Prepared(prepared);
        let outcome = session.execute(run, Vec::new(), None).await.unwrap();
        assert_eq!(collect(outcome).await.unwrap(), ["t"]);
    });
}
