"""asyncpg against a server: a pool with its resets, typed parameters, cursors, COPY, timeouts,
subscriptions.

Connects by the PG… variables of the environment; expects the table `cpu` of tests/clients.rs.
"""

import asyncio
import datetime as dt
import faulthandler

import asyncpg

# Whoever waits for ever says where.
faulthandler.dump_traceback_later(120, exit=True)

UTC = dt.timezone.utc


async def queries(conn):
    rows = await conn.fetch(
        "SELECT host, n FROM cpu WHERE host = $1 AND n >= $2 ORDER BY n LIMIT $3", "h1", 5, 2
    )
    assert [tuple(row) for row in rows] == [("h1", 5), ("h1", 9)], rows
    at = dt.datetime(2024, 1, 1, 0, 1, 30, tzinfo=UTC)
    assert await conn.fetchval("SELECT count(*) FROM cpu WHERE time >= $1", at) == 10
    count = await conn.fetchval("SELECT count(*) FROM cpu WHERE host = ANY($1::text[])", ["h0", "h3"])
    assert count == 50, count
    assert await conn.fetchval("SELECT $1::interval", dt.timedelta(hours=1)) == dt.timedelta(hours=1)
    assert await conn.fetchval("SELECT $1::int", None) is None
    row = await conn.fetchrow("SELECT time, usage, ok, u FROM cpu ORDER BY time LIMIT 1")
    assert row["time"] == dt.datetime(2024, 1, 1, tzinfo=UTC), row
    assert (row["usage"], row["ok"], int(row["u"])) == (0.5, True, 0), row
    statement = await conn.prepare("SELECT n + $1::bigint AS more FROM cpu WHERE n = 1")
    assert [a.name for a in statement.get_attributes()] == ["more"]
    assert [await statement.fetchval(number) for number in range(7)] == list(range(1, 8))
    async with conn.transaction():
        numbers = [row["n"] async for row in conn.cursor("SELECT n FROM cpu ORDER BY n", prefetch=7)]
        assert numbers == list(range(100))
        cursor = await conn.cursor("SELECT n FROM cpu ORDER BY n")
        assert [row["n"] for row in await cursor.fetch(3)] == [0, 1, 2]


async def subscriptions(conn):
    few = "SUBSCRIBE TO SELECT n FROM cpu WHERE n >= $1 AND n < 5"
    seen = []
    async with conn.transaction():
        async for row in conn.cursor(few, 2, prefetch=50):
            seen.append((row["kymo_op"], row["n"]))
            if len(seen) == 3:
                break
    assert sorted(seen) == [("snapshot", n) for n in (2, 3, 4)], seen
    async with conn.transaction():
        cursor = await conn.cursor(few, 3)
        # More are asked for than are there.
        assert len(await cursor.fetch(10)) == 2
    assert await conn.fetchval("SELECT 1") == 1


async def writes(conn):
    await conn.execute(
        "CREATE TABLE pooled (time TIMESTAMP TIME INDEX, host TEXT TAG, v DOUBLE, n BIGINT)"
    )
    rows = [
        (dt.datetime(2024, 1, 1, 0, 0, second, tzinfo=UTC), "h", second / 2, second)
        for second in range(30)
    ]
    await conn.executemany("INSERT INTO pooled (time, host, v, n) VALUES ($1, $2, $3, $4)", rows[:10])
    said = await conn.copy_records_to_table(
        "pooled", records=rows[10:], columns=["time", "host", "v", "n"]
    )
    assert said == "COPY 20", said
    found = await conn.fetch("SELECT time, host, v, n FROM pooled ORDER BY n")
    assert [tuple(row) for row in found] == rows, found[:2]


async def errors(conn):
    try:
        await conn.fetch("SELECT * FROM missing")
    except asyncpg.UndefinedTableError:
        pass
    else:
        raise AssertionError("a missing table was found")
    endless = "SELECT count(*) FROM generate_series(1, 10000000) a(x), generate_series(1, 10000000) b(y)"
    try:
        await conn.fetch(endless + " WHERE x + y = 0", timeout=0.5)
    except asyncio.TimeoutError:
        pass
    else:
        raise AssertionError("no timeout")
    assert await conn.fetchval("SELECT 1") == 1


async def main():
    async with asyncpg.create_pool(min_size=1, max_size=3) as pool:
        for _ in range(3):
            async with pool.acquire() as conn:
                await conn.execute("SET application_name = 'pooled'")
                assert await conn.fetchval("SELECT 1") == 1
        async with pool.acquire() as conn:
            await queries(conn)
            await subscriptions(conn)
            await writes(conn)
            await errors(conn)
        results = await asyncio.gather(
            *(pool.fetchval("SELECT count(*) FROM cpu WHERE n < $1", number) for number in range(20))
        )
        assert results == list(range(20)), results
        async with pool.acquire() as conn:
            # Types that asyncpg does not know make it read the catalog.
            assert await conn.fetchval("SELECT ARRAY['a', 'b']") == ["a", "b"]
            await conn.set_type_codec("json", encoder=str, decoder=str, schema="pg_catalog")
    print("asyncpg: ok")


asyncio.run(main())
