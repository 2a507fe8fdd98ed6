"""psycopg 3 against a server: parameters, binary, prepared statements, cursors, pipelines, COPY,
subscriptions.

Connects by the PG… variables of the environment; expects the table `cpu` of tests/clients.rs.
"""

import datetime as dt
import faulthandler
from decimal import Decimal

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

# Whoever waits for ever says where.
faulthandler.dump_traceback_later(120, exit=True)

UTC = dt.timezone.utc


def parameters(conn):
    at = dt.datetime(2024, 1, 1, 0, 0, 5, tzinfo=UTC)
    rows = conn.execute(
        "SELECT host, usage FROM cpu WHERE host = %s AND time >= %s AND n > %s ORDER BY time LIMIT %s",
        ("h1", at, 3, 2),
    ).fetchall()
    assert rows == [("h1", 5.5), ("h1", 9.5)], rows
    hosts = conn.execute(
        "SELECT DISTINCT host FROM cpu WHERE host = ANY(%s) ORDER BY 1", (["h0", "h2", "nope"],)
    ).fetchall()
    assert hosts == [("h0",), ("h2",)], hosts
    ids = conn.execute("SELECT count(*) FROM cpu WHERE n = ANY(%s)", ([1, 2, 3],)).fetchone()
    assert ids == (3,), ids
    back = conn.execute(
        "SELECT count(*) FROM cpu WHERE time > %s::timestamptz - %s",
        (at, dt.timedelta(seconds=2)),
    ).fetchone()
    assert back == (96,), back
    none = conn.execute("SELECT %s::text IS NULL, %s::bigint", (None, None)).fetchone()
    assert none == (True, None), none


def types(conn, binary):
    row = conn.execute(
        "SELECT true, 1::smallint, 2::int, 3::bigint, 1.5::real, 2.25::double precision, 'text',"
        " 12.50::numeric(10,2), DATE '2024-02-29', TIMESTAMP '2024-01-01 01:02:03.5',"
        " TIMESTAMPTZ '2024-01-01T01:02:03Z', INTERVAL '1 day 2 hours', ARRAY[1, 2], NULL",
        binary=binary,
    ).fetchone()
    assert row[:7] == (True, 1, 2, 3, 1.5, 2.25, "text"), row
    assert row[7] == Decimal("12.50"), row[7]
    assert row[8] == dt.date(2024, 2, 29), row[8]
    assert row[9] == dt.datetime(2024, 1, 1, 1, 2, 3, 500000), row[9]
    assert row[10] == dt.datetime(2024, 1, 1, 1, 2, 3, tzinfo=UTC), row[10]
    assert row[11] == dt.timedelta(days=1, hours=2), row[11]
    assert row[12] == [1, 2] and row[13] is None, row
    cells = conn.execute(
        "SELECT host, region, usage, n, u, ok, note, time FROM cpu ORDER BY time LIMIT 1", binary=binary
    ).fetchone()
    first = dt.datetime(2024, 1, 1, tzinfo=UTC)
    assert cells == ("h0", "eu", 0.5, 0, 0, True, "n 0", first), cells


def prepared(conn):
    for number in range(8):
        row = conn.execute(
            "SELECT count(*) FROM cpu WHERE n < %s", (number,), prepare=True
        ).fetchone()
        assert row == (number,), (number, row)
    names = [row[0] for row in conn.execute("SELECT 1 AS one").description]
    assert names == ["one"], names


def cursors(conn):
    with conn.transaction():
        with conn.cursor(name="rows") as cursor:
            cursor.execute("SELECT n FROM cpu WHERE n >= %s ORDER BY n", (10,))
            assert [row[0] for row in cursor.fetchmany(3)] == [10, 11, 12]
            assert cursor.fetchone() == (13,)
            assert [row[0] for row in cursor][-1] == 99
    with conn.transaction():
        with conn.cursor(name="bin", binary=True, row_factory=dict_row) as cursor:
            cursor.execute("SELECT n, usage FROM cpu ORDER BY n")
            cursor.itersize = 7
            assert sum(row["n"] for row in cursor) == 4950


def streams(conn):
    with conn.pipeline():
        cursors = [conn.execute("SELECT %s::int + 1", (number,)) for number in range(5)]
    assert [cursor.fetchone()[0] for cursor in cursors] == [1, 2, 3, 4, 5]
    numbers = [row[0] for row in conn.cursor().stream("SELECT n FROM cpu ORDER BY n")]
    assert numbers == list(range(100))


def subscriptions(conn):
    few = "SUBSCRIBE TO SELECT n FROM cpu WHERE n < 3"
    seen = []
    # The stream has no end; leaving it cancels the statement.
    for row in conn.cursor(row_factory=dict_row).stream(few):
        seen.append((row["kymo_op"], row["kymo_seq"], row["n"]))
        if len(seen) == 3:
            break
    assert sorted(seen) == [("snapshot", None, n) for n in range(3)], seen
    assert conn.execute("SELECT 1").fetchone() == (1,)
    conn.execute("CREATE TABLE followed (time TIMESTAMP TIME INDEX, v BIGINT)")
    with conn.transaction():
        with conn.cursor(name="changes") as cursor:
            cursor.execute("SUBSCRIBE TO SELECT v FROM followed WHERE v > %s", (1,))
            assert cursor.fetchall() == []
            conn.execute("INSERT INTO followed VALUES (now(), 1), (now() + INTERVAL '1 second', 2), (now() + INTERVAL '2 seconds', 3)")
            assert [row[3] for row in cursor.fetchmany(10)] == [2, 3]
            conn.execute('FETCH 1 FROM "changes" WITH (timeout = \'10ms\')')


def transactions(conn):
    try:
        with conn.transaction():
            conn.execute("SELECT * FROM missing")
    except psycopg.errors.UndefinedTable as error:
        assert "missing" in str(error)
    else:
        raise AssertionError("a missing table was found")
    conn.execute("BEGIN")
    try:
        conn.execute("SELECT 1/0")
    except psycopg.errors.DivisionByZero:
        pass
    try:
        conn.execute("SELECT 1")
    except psycopg.errors.InFailedSqlTransaction:
        pass
    else:
        raise AssertionError("a failed transaction went on")
    conn.execute("ROLLBACK")
    with conn.transaction():
        with conn.transaction():
            assert conn.execute("SELECT 1").fetchone() == (1,)


def copies(conn):
    conn.execute("CREATE TABLE copied (time TIMESTAMP TIME INDEX, host TEXT TAG, v DOUBLE)")
    with conn.cursor() as cursor:
        with cursor.copy("COPY copied (time, host, v) FROM STDIN") as copy:
            for second in range(50):
                copy.write_row((dt.datetime(2024, 1, 1, 0, 0, second, tzinfo=UTC), "h\t1", second / 2))
        assert cursor.rowcount == 50, cursor.rowcount
        with cursor.copy("COPY (SELECT host, v FROM copied ORDER BY v LIMIT 2) TO STDOUT") as copy:
            copy.set_types(["text", "float8"])
            assert list(copy.rows()) == [("h\t1", 0.0), ("h\t1", 0.5)]
        with cursor.copy("COPY copied TO STDOUT (FORMAT csv, HEADER)") as copy:
            lines = b"".join(copy).decode().splitlines()
        assert lines[0] == "time,host,v" and len(lines) == 51, lines[:2]


def inserts(conn):
    conn.execute("CREATE TABLE made (time TIMESTAMP TIME INDEX, host TEXT TAG, v DOUBLE, n BIGINT)")
    rows = [
        (dt.datetime(2024, 1, 1, 0, 0, second, tzinfo=UTC), f"h{second % 2}", second / 4, second)
        for second in range(20)
    ]
    with conn.cursor() as cursor:
        cursor.executemany("INSERT INTO made (time, host, v, n) VALUES (%s, %s, %s, %s)", rows)
        assert cursor.rowcount == 20, cursor.rowcount
    found = conn.execute("SELECT time, host, v, n FROM made ORDER BY time").fetchall()
    assert found == [(at.replace(tzinfo=found[0][0].tzinfo), *rest) for at, *rest in rows], found[:2]


def main():
    with psycopg.connect(autocommit=True) as conn:
        assert conn.info.server_version >= 160000, conn.info.server_version
        assert conn.info.encoding == "utf-8"
        assert "PostgreSQL 16" in conn.execute("SELECT version()").fetchone()[0]
        parameters(conn)
        for binary in (False, True):
            types(conn, binary)
        prepared(conn)
        cursors(conn)
        streams(conn)
        subscriptions(conn)
        transactions(conn)
        copies(conn)
        inserts(conn)
        query = sql.SQL("SELECT {} FROM {} LIMIT 1").format(sql.Identifier("n"), sql.Identifier("cpu"))
        assert len(conn.execute(query).fetchall()) == 1
    print("psycopg: ok")


main()
