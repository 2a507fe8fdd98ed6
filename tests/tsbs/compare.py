"""Runs the fifteen TSBS queries on Kymo (over pgwire) and on DuckDB (over the same line
protocol, read from standard input) and compares every row.

    tsbs --print | compare.py HOST PORT USER PASSWORD

Prints a line for each query with its rows and times; exit code 1 where any differs.
"""

import csv
import datetime
import io
import pathlib
import random
import re
import sys
import tempfile
import time

import duckdb
import psycopg

START = datetime.datetime(2016, 1, 1, tzinfo=datetime.timezone.utc)
SEED = 20


def main():
    host, port, user, password = sys.argv[1:5]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.csv"
        columns, rows, hosts, span = to_csv(sys.stdin.buffer, path)
        duck = load(columns, path)
    kymo = psycopg.connect(
        host=host, port=port, user=user, password=password, dbname="kymo", autocommit=True
    )
    stored = kymo.execute("SELECT count(*) FROM cpu").fetchone()[0]
    wrong = []
    print(f"{rows} rows were sent, Kymo holds {stored}", flush=True)
    if stored != rows:
        wrong.append("count")
    values = choices(hosts, span)
    values["busy"] = busiest(duck, values)
    names = []
    for name, ordered, sql in queries():
        names.append(name)
        sql = sql.format(**values)
        theirs, _ = timed(lambda: run_duckdb(duck, sql))
        ours, took = timed(lambda: run_kymo(kymo, sql))
        difference = compare(ours, theirs, ordered)
        print(f"{name:24} {len(ours[1]):7} rows {took * 1000:9.2f} ms  {difference or 'same'}",
              flush=True)
        if difference:
            wrong.append(name)
        elif not ours[1]:
            print(f"{name}: no rows, so nothing is shown", flush=True)
            wrong.append(name)
    if len(names) != 15:
        wrong.append(f"{len(names)} queries instead of 15")
    if wrong:
        print("DIFFERENT: " + ", ".join(wrong))
        sys.exit(1)
    print("15 of 15 queries return the same rows")


def to_csv(lines, path):
    """Line protocol of one table without any escapes, as CSV in the order of columns."""
    columns, rows, hosts, last = None, 0, set(), 0
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        for line in io.TextIOWrapper(lines, encoding="ascii"):
            key, fields, stamp = line.rstrip("\n").split(" ")
            tags = [pair.split("=") for pair in key.split(",")[1:]]
            pairs = [pair.split("=") for pair in fields.split(",")]
            if columns is None:
                columns = ([name for name, _ in tags], [name for name, _ in pairs])
            out.writerow(
                [value for _, value in tags]
                + [value[:-1] for _, value in pairs]
                + [stamp]
            )
            rows += 1
            hosts.add(tags[0][1])
            last = max(last, int(stamp))
    span = datetime.timedelta(seconds=last // 10**9 - int(START.timestamp()) + 10)
    return columns, rows, sorted(hosts), span


def load(columns, path):
    tags, fields = columns
    duck = duckdb.connect()
    duck.execute("SET TimeZone = 'UTC'")
    types = {name: "VARCHAR" for name in tags}
    types |= {name: "BIGINT" for name in fields}
    types["ns"] = "BIGINT"
    described = ", ".join(f"'{name}': '{kind}'" for name, kind in types.items())
    duck.execute(
        "CREATE TABLE cpu AS SELECT * EXCLUDE (ns), make_timestamp_ns(ns)::TIMESTAMP AS time "
        f"FROM read_csv('{path}', header = false, columns = {{{described}}})"
    )
    return duck


def queries():
    text = (pathlib.Path(__file__).parent / "queries.sql").read_text()
    parts = re.split(r"^-- ([a-z0-9-]+)( ordered)?$", text, flags=re.MULTILINE)[1:]
    for name, ordered, sql in zip(parts[0::3], parts[1::3], parts[2::3]):
        yield name, bool(ordered), sql.strip()


def choices(hosts, span):
    """Hosts and windows within the data, the same in every run."""
    choose = random.Random(SEED)
    some = choose.sample(hosts, min(8, len(hosts)))
    values = {
        "host1": quoted(some[:1]),
        "host8": quoted(some),
    }
    for hours in (1, 8, 12):
        length = min(datetime.timedelta(hours=hours), span)
        free = int((span - length).total_seconds())
        first = START + datetime.timedelta(seconds=choose.randint(0, free))
        values[f"from{hours}"] = stamp(first)
        values[f"to{hours}"] = stamp(first + length)
    return values


def busiest(duck, values):
    """The host that high-cpu-1 finds most rows of: one without any would show nothing."""
    row = duck.execute(
        "SELECT hostname FROM cpu WHERE usage_user > 90 AND time >= {from12} AND time < {to12} "
        "GROUP BY hostname ORDER BY count(*) DESC, hostname LIMIT 1".format(**values)
    ).fetchone()
    return quoted([row[0]])


def quoted(names):
    return ", ".join(f"'{name}'" for name in names)


def stamp(moment):
    return moment.strftime("TIMESTAMP '%Y-%m-%d %H:%M:%S'")


def timed(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def run_duckdb(duck, sql):
    cursor = duck.execute(sql)
    return [column[0] for column in cursor.description], cursor.fetchall()


def run_kymo(kymo, sql):
    cursor = kymo.execute(sql)
    return [column.name for column in cursor.description], cursor.fetchall()


def compare(ours, theirs, ordered):
    """What differs, or nothing. Columns are matched by name: `*` may order them its way."""
    names, rows = ours
    their_names, their_rows = theirs
    if sorted(names) != sorted(their_names):
        return f"columns {names} instead of {their_names}"
    if len(rows) != len(their_rows):
        return f"{len(rows)} rows instead of {len(their_rows)}"
    order = [their_names.index(name) for name in names]
    rows = [tuple(map(plain, row)) for row in rows]
    their_rows = [tuple(plain(row[index]) for index in order) for row in their_rows]
    if not ordered:
        rows.sort(key=repr)
        their_rows.sort(key=repr)
    for number, (left, right) in enumerate(zip(rows, their_rows)):
        if left != right:
            return f"row {number} is {left} instead of {right}"
    return None


def plain(value):
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.timezone.utc).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, float):
        # Sums of integers below 2^53 are exact; the division may round its last digit.
        return float(f"{value:.12g}")
    return value


if __name__ == "__main__":
    main()
