"""SQLAlchemy 2 over psycopg and asyncpg: connect, reflect, insert, select.

Connects by the PG… variables of the environment; expects the table `cpu` of tests/clients.rs.
"""

import datetime as dt
import faulthandler
import os
import sys

import sqlalchemy as sa

# Whoever waits for ever says where.
faulthandler.dump_traceback_later(120, exit=True)

UTC = dt.timezone.utc


def url(driver):
    e = os.environ
    return sa.URL.create(
        driver, e["PGUSER"], e.get("PGPASSWORD"), e["PGHOST"], int(e["PGPORT"]), e["PGDATABASE"]
    )


def main():
    engine = sa.create_engine(url("postgresql+psycopg"))
    inspector = sa.inspect(engine)
    assert "cpu" in inspector.get_table_names(), inspector.get_table_names()
    assert "public" in inspector.get_schema_names(), inspector.get_schema_names()
    columns = {column["name"]: column["type"] for column in inspector.get_columns("cpu")}
    assert isinstance(columns["time"], sa.TIMESTAMP), columns
    assert isinstance(columns["usage"], sa.Double | sa.Float), columns
    assert isinstance(columns["host"], sa.Text | sa.VARCHAR), columns
    assert isinstance(columns["n"], sa.BigInteger), columns

    metadata = sa.MetaData()
    cpu = sa.Table("cpu", metadata, autoload_with=engine)
    with engine.connect() as connection:
        rows = connection.execute(
            sa.select(cpu.c.host, sa.func.avg(cpu.c.usage))
            .where(cpu.c.host.in_(["h0", "h1"]), cpu.c.n < 8)
            .group_by(cpu.c.host)
            .order_by(cpu.c.host)
        ).all()
        assert [tuple(row) for row in rows] == [("h0", 2.5), ("h1", 3.5)], rows
        assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1

    with engine.begin() as connection:
        connection.execute(
            sa.text("CREATE TABLE alchemy (time TIMESTAMP TIME INDEX, host TEXT TAG, v DOUBLE)")
        )
    made = sa.Table("alchemy", sa.MetaData(), autoload_with=engine)
    with engine.begin() as connection:
        connection.execute(
            sa.insert(made),
            [
                {"time": dt.datetime(2024, 1, 1, 0, 0, second), "host": "h", "v": second / 2}
                for second in range(10)
            ],
        )
    with engine.connect() as connection:
        total = connection.execute(sa.select(sa.func.count(), sa.func.sum(made.c.v))).one()
        assert tuple(total) == (10, 22.5), total
        connection.rollback()
    with engine.connect().execution_options(stream_results=True, yield_per=3) as connection:
        numbers = [n for (n,) in connection.execute(sa.select(cpu.c.n).order_by(cpu.c.n))]
        assert numbers == list(range(100)), numbers[:5]
    engine.dispose()
    print("sqlalchemy: ok")


main()
