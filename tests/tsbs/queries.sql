-- The fifteen queries of the Time Series Benchmark Suite's "cpu-only" case, in SQL that
-- Kymo and DuckDB both read. {…} is filled in by compare.py: hosts, and times within the
-- data. Each query begins with a line `-- name`; `ordered` says that its order counts.

-- single-groupby-1-1-1 ordered
SELECT time_bucket(INTERVAL '1 minute', time) AS minute, max(usage_user) AS max_usage_user
FROM cpu WHERE hostname IN ({host1}) AND time >= {from1} AND time < {to1}
GROUP BY minute ORDER BY minute

-- single-groupby-1-1-12 ordered
SELECT time_bucket(INTERVAL '1 minute', time) AS minute, max(usage_user) AS max_usage_user
FROM cpu WHERE hostname IN ({host1}) AND time >= {from12} AND time < {to12}
GROUP BY minute ORDER BY minute

-- single-groupby-1-8-1 ordered
SELECT time_bucket(INTERVAL '1 minute', time) AS minute, max(usage_user) AS max_usage_user
FROM cpu WHERE hostname IN ({host8}) AND time >= {from1} AND time < {to1}
GROUP BY minute ORDER BY minute

-- single-groupby-5-1-1 ordered
SELECT time_bucket(INTERVAL '1 minute', time) AS minute, max(usage_user) AS a,
       max(usage_system) AS b, max(usage_idle) AS c, max(usage_nice) AS d,
       max(usage_iowait) AS e
FROM cpu WHERE hostname IN ({host1}) AND time >= {from1} AND time < {to1}
GROUP BY minute ORDER BY minute

-- single-groupby-5-1-12 ordered
SELECT time_bucket(INTERVAL '1 minute', time) AS minute, max(usage_user) AS a,
       max(usage_system) AS b, max(usage_idle) AS c, max(usage_nice) AS d,
       max(usage_iowait) AS e
FROM cpu WHERE hostname IN ({host1}) AND time >= {from12} AND time < {to12}
GROUP BY minute ORDER BY minute

-- single-groupby-5-8-1 ordered
SELECT time_bucket(INTERVAL '1 minute', time) AS minute, max(usage_user) AS a,
       max(usage_system) AS b, max(usage_idle) AS c, max(usage_nice) AS d,
       max(usage_iowait) AS e
FROM cpu WHERE hostname IN ({host8}) AND time >= {from1} AND time < {to1}
GROUP BY minute ORDER BY minute

-- cpu-max-all-1 ordered
SELECT time_bucket(INTERVAL '1 hour', time) AS hour, max(usage_user) AS a,
       max(usage_system) AS b, max(usage_idle) AS c, max(usage_nice) AS d,
       max(usage_iowait) AS e, max(usage_irq) AS f, max(usage_softirq) AS g,
       max(usage_steal) AS h, max(usage_guest) AS i, max(usage_guest_nice) AS j
FROM cpu WHERE hostname IN ({host1}) AND time >= {from8} AND time < {to8}
GROUP BY hour ORDER BY hour

-- cpu-max-all-8 ordered
SELECT time_bucket(INTERVAL '1 hour', time) AS hour, max(usage_user) AS a,
       max(usage_system) AS b, max(usage_idle) AS c, max(usage_nice) AS d,
       max(usage_iowait) AS e, max(usage_irq) AS f, max(usage_softirq) AS g,
       max(usage_steal) AS h, max(usage_guest) AS i, max(usage_guest_nice) AS j
FROM cpu WHERE hostname IN ({host8}) AND time >= {from8} AND time < {to8}
GROUP BY hour ORDER BY hour

-- double-groupby-1
SELECT time_bucket(INTERVAL '1 hour', time) AS hour, hostname, avg(usage_user) AS a
FROM cpu WHERE time >= {from12} AND time < {to12}
GROUP BY hour, hostname ORDER BY hour

-- double-groupby-5
SELECT time_bucket(INTERVAL '1 hour', time) AS hour, hostname, avg(usage_user) AS a,
       avg(usage_system) AS b, avg(usage_idle) AS c, avg(usage_nice) AS d,
       avg(usage_iowait) AS e
FROM cpu WHERE time >= {from12} AND time < {to12}
GROUP BY hour, hostname ORDER BY hour

-- double-groupby-all
SELECT time_bucket(INTERVAL '1 hour', time) AS hour, hostname, avg(usage_user) AS a,
       avg(usage_system) AS b, avg(usage_idle) AS c, avg(usage_nice) AS d,
       avg(usage_iowait) AS e, avg(usage_irq) AS f, avg(usage_softirq) AS g,
       avg(usage_steal) AS h, avg(usage_guest) AS i, avg(usage_guest_nice) AS j
FROM cpu WHERE time >= {from12} AND time < {to12}
GROUP BY hour, hostname ORDER BY hour

-- high-cpu-all
SELECT * FROM cpu WHERE usage_user > 90 AND time >= {from12} AND time < {to12}

-- high-cpu-1
SELECT * FROM cpu
WHERE usage_user > 90 AND time >= {from12} AND time < {to12} AND hostname IN ({busy})

-- lastpoint
SELECT DISTINCT ON (hostname) * FROM cpu ORDER BY hostname, time DESC

-- groupby-orderby-limit ordered
SELECT time_bucket(INTERVAL '1 minute', time) AS minute, max(usage_user) AS max_usage_user
FROM cpu WHERE time < {to1}
GROUP BY minute ORDER BY minute DESC LIMIT 5
