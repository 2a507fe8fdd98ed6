//! Random data and random queries of every class: whoever applies what a subscription sends
//! ends with the rows of a fresh query.

use kymo_kernel::env::Random;
use kymo_kernel::env::sim::SimRandom;
use kymo_kernel::schema::TableName;

use kymo_plugins::LoadOptions;

use super::kept::Mirror;
use super::*;

const CASES: u64 = 210;
const HOSTS: [&str; 4] = ["a", "b", "c", "d"];

/// A query over the table `T`, with the class that it must have and the columns that name
/// its rows.
struct Shape {
    sql: &'static str,
    class: &'static str,
    keys: Option<&'static [usize]>,
}

impl Shape {
    /// Whether its answer is not settled where rows have the same tags and time.
    fn picks(&self) -> bool {
        self.sql.contains("last(")
    }
}

const SHAPES: &[Shape] = &[
    Shape {
        sql: "SELECT time_bucket('10ns', time) AS w, host, count(*) AS n, sum(value) AS s, \
              min(value) AS lo, max(value) AS hi, avg(value) AS a, first(value, time) AS f, \
              last(value, time) AS l FROM T GROUP BY 1, 2",
        class: "windows",
        keys: Some(&[0, 1]),
    },
    Shape {
        sql: "SELECT date_bin(INTERVAL '7 nanoseconds', time) AS w, count(*) AS n FROM T \
              WHERE value > 3 GROUP BY 1 HAVING count(*) > 1",
        class: "windows",
        keys: Some(&[0]),
    },
    Shape {
        sql: "SELECT time_bucket('20ns', time) AS w, count(value) * 2 + 1 AS n, \
              round(stddev(value), 6) AS d, approx_distinct(CAST(value AS BIGINT)) AS h, max(host) AS top, \
              sum(value) FILTER (WHERE host <> 'b') AS rest \
              FROM (SELECT time, host, value + 1 AS value FROM T WHERE host <> 'd') AS x \
              GROUP BY time_bucket('20ns', time)",
        class: "windows",
        keys: Some(&[0]),
    },
    Shape {
        sql: "SELECT time_bucket('10ns', time, '1970-01-01T00:00:00.000000003Z') AS w, \
              count(DISTINCT value) AS n, max(host) AS h FROM T GROUP BY 1",
        class: "windows",
        keys: Some(&[0]),
    },
    Shape {
        sql: "SELECT time_bucket('10ns', time) AS w, host, count(DISTINCT value) AS n FROM T \
              GROUP BY 1, 2",
        class: "windows",
        keys: Some(&[0, 1]),
    },
    Shape {
        sql: "SELECT time_bucket('20ns', time) AS w, median(value) AS m, \
              count(DISTINCT host) AS h, sum(DISTINCT value) AS s, \
              round(regr_slope(value, value * value), 6) AS r, \
              percentile_cont(0.25) WITHIN GROUP (ORDER BY value) AS q FROM T GROUP BY 1",
        class: "windows",
        keys: Some(&[0]),
    },
    Shape {
        sql: "SELECT unnest(time_hops('5ns', '20ns', time)) AS w, host, count(*) AS n, \
              sum(value) AS s, max(value) AS hi FROM T GROUP BY 1, 2",
        class: "windows",
        keys: Some(&[0, 1]),
    },
    Shape {
        sql: "SELECT w, count(*) AS n, count(DISTINCT host) AS h FROM (SELECT unnest(time_hops(\
              INTERVAL '4 nanoseconds', '10ns', time, '1970-01-01T00:00:00.000000003Z')) AS w, host \
              FROM T WHERE value > 1) AS x GROUP BY w HAVING count(*) > 1",
        class: "windows",
        keys: Some(&[0]),
    },
    Shape {
        sql: "SELECT w, host, n, rank() OVER (PARTITION BY w ORDER BY n DESC) AS r FROM \
              (SELECT unnest(time_hops('5ns', '10ns', time)) AS w, host, count(*) AS n FROM T \
              GROUP BY 1, 2) AS x",
        class: "rerun",
        keys: Some(&[0, 1]),
    },
    Shape {
        sql: "SELECT unnest(time_hops('10ns', '20ns', time_bucket('10ns', time))) AS w, \
              count(*) AS n FROM T GROUP BY 1",
        class: "windows",
        keys: Some(&[0]),
    },
    Shape {
        sql: "SELECT host, max(value) AS m FROM T GROUP BY host",
        class: "rerun",
        keys: Some(&[0]),
    },
    Shape { sql: "SELECT count(*) AS n, sum(value) AS s FROM T", class: "rerun", keys: Some(&[]) },
    Shape {
        sql: "SELECT x.w, x.s, y.s AS other FROM \
              (SELECT time_bucket('10ns', time) AS w, sum(value) AS s FROM T \
               WHERE host = 'a' GROUP BY 1) AS x LEFT JOIN \
              (SELECT time_bucket('10ns', time) AS w, sum(value) AS s FROM T \
               WHERE host = 'b' GROUP BY 1) AS y ON x.w = y.w",
        class: "rerun",
        keys: None,
    },
    Shape {
        sql: "SELECT * FROM (SELECT time_bucket('10ns', time) AS w, host, value, row_number() \
              OVER (PARTITION BY time_bucket('10ns', time) ORDER BY value DESC, host, time) AS r \
              FROM T) AS z WHERE r <= 2",
        class: "rerun",
        keys: None,
    },
    Shape {
        sql: "SELECT DISTINCT time_bucket('20ns', time) AS w, host FROM T",
        class: "windows",
        keys: Some(&[0, 1]),
    },
    Shape {
        sql: "SELECT time_bucket('20ns', w) AS v, max(n) AS n FROM \
              (SELECT time_bucket('10ns', time) AS w, count(*) AS n FROM T GROUP BY 1) AS x \
              GROUP BY 1",
        class: "rerun",
        keys: Some(&[0]),
    },
    Shape {
        sql: "SELECT time_bucket('10ns', time) AS w, count(*) AS n FROM T WHERE host = 'a' \
              GROUP BY 1 UNION ALL \
              SELECT time_bucket('10ns', time) AS w, count(*) AS n FROM T GROUP BY 1",
        class: "rerun",
        keys: None,
    },
    Shape {
        sql: "SELECT time_bucket('10ns', a.time) AS w, sum(a.value * b.value) AS s \
              FROM T a JOIN D b ON a.host = b.host GROUP BY 1",
        class: "rerun",
        keys: Some(&[0]),
    },
    Shape {
        sql: "SELECT time_bucket('10ns', time) AS w, avg(value) AS a FROM T GROUP BY 1 \
              ORDER BY 1 DESC LIMIT 3",
        class: "rerun",
        keys: Some(&[0]),
    },
    Shape {
        sql: "SELECT time_bucket('10ns', time) AS w, lag(count(*)) OVER \
              (ORDER BY time_bucket('10ns', time)) AS before FROM T GROUP BY 1",
        class: "rerun",
        keys: Some(&[0]),
    },
];

/// The same with aggregates of a plugin.
const LENT: &[Shape] = &[
    Shape {
        sql: "SELECT time_bucket('10ns', time) AS w, host, golden.golden_mean(value) AS m, \
              count(*) AS n, golden.golden_mean(value) FILTER (WHERE value > 3) AS o FROM T \
              GROUP BY 1, 2",
        class: "windows",
        keys: Some(&[0, 1]),
    },
    Shape {
        sql: "SELECT date_bin(INTERVAL '7 nanoseconds', time) AS w, \
              golden.twice(golden.golden_mean(golden.twice(value))) AS m FROM T \
              WHERE golden.twice(value) > 3 GROUP BY 1 HAVING golden.golden_mean(value) > 2",
        class: "windows",
        keys: Some(&[0]),
    },
    Shape {
        sql: "SELECT unnest(time_hops('5ns', '20ns', time)) AS w, golden.golden_mean(value) AS m \
              FROM T GROUP BY 1",
        class: "windows",
        keys: Some(&[0]),
    },
    Shape {
        sql: "SELECT time_bucket('10ns', time) AS w, golden.golden_mean(DISTINCT value) AS m \
              FROM T GROUP BY 1",
        class: "rerun",
        keys: Some(&[0]),
    },
];

/// Something of everything.
const GOLDEN: &[u8] = include_bytes!("../../../../plugins/guests/golden-0.1.0/golden-0.1.0.wasm");

/// Puts the plugin to use: each time as another version.
fn install(system: &System) {
    let host = system.plugin_host().unwrap();
    let version = host.load("golden", GOLDEN, &LoadOptions::default()).unwrap();
    host.registry().publish(version).unwrap();
}

/// One case: a table, some subscriptions, and what happens to them.
struct Case {
    shapes: &'static [Shape],
    dice: SimRandom,
    table: TableName,
    other: TableName,
    append_only: bool,
    /// How far time has come.
    now: i64,
}

impl Case {
    fn new(shapes: &'static [Shape], seed: u64) -> Case {
        let dice = SimRandom::new(seed);
        let append_only = dice.next_u64().is_multiple_of(3);
        let name = |letter: &str| TableName::new("kymo", format!("{letter}{seed}"));
        Case { shapes, dice, table: name("t"), other: name("d"), append_only, now: 0 }
    }

    fn below(&self, most: u64) -> i64 {
        i64::try_from(self.dice.next_u64() % most).unwrap()
    }

    async fn create(&self, system: &System) {
        for table in [&self.table, &self.other] {
            let name = &table.table;
            let kind = if self.append_only { "WITH (append_only = true)" } else { "" };
            let columns = "host TEXT TAG, value DOUBLE, time TIMESTAMP TIME INDEX";
            sql(system, &format!("CREATE TABLE {name} ({columns}) {kind}")).await.unwrap();
        }
    }

    fn query(&self, shape: &Shape) -> String {
        let named = shape.sql.replace("FROM T", &format!("FROM {}", self.table.table));
        named.replace("JOIN D", &format!("JOIN {}", self.other.table))
    }

    /// A few rows: mostly new, some late, some in the place of others.
    async fn write(&mut self, system: &System) {
        let mut points = Vec::new();
        for _ in 0..=self.below(12) {
            let time = match self.below(6) {
                0 => self.below(self.now.unsigned_abs() + 1),
                _ => {
                    self.now += self.below(5);
                    self.now
                }
            };
            let host = HOSTS[usize::try_from(self.below(4)).unwrap()];
            points.push((host, time, self.below(8) as f64));
        }
        let table = if self.below(8) == 0 { &self.other } else { &self.table };
        system.write().call(write(vec![rows(table, &points)])).await.unwrap();
    }

    async fn delete(&self, system: &System) {
        let (table, from) = (&self.table.table, self.below(self.now.unsigned_abs() + 1));
        let host = HOSTS[usize::try_from(self.below(4)).unwrap()];
        let which = match self.below(4) {
            0 => format!("value = {}", self.below(8)),
            1 => format!("host = '{host}'"),
            _ => {
                let at = |ns: i64| format!("'1970-01-01T00:00:00.{ns:09}Z'");
                let upto = from + self.below(15);
                format!("time BETWEEN {} AND {} AND host <> '{host}'", at(from), at(upto))
            }
        };
        sql(system, &format!("DELETE FROM {table} WHERE {which}")).await.unwrap();
    }

    async fn run(&mut self, system: &System) {
        self.create(system).await;
        let mut followed = Vec::new();
        for _ in 0..2 {
            self.write(system).await;
            let shape = self.shape();
            let query = self.query(shape);
            let mut subscription = follow(system, &query, None).await.unwrap();
            let mut mirror = Mirror::new(shape.keys);
            mirror.until(&mut subscription, "started").await;
            assert_eq!(mirror.notices[0], shape.class, "{query}");
            followed.push((query, subscription, mirror));
        }
        for _ in 0..=self.below(3) {
            for _ in 0..=self.below(5) {
                match self.below(9) {
                    0 => system.flush().await.unwrap(),
                    1 => self.delete(system).await,
                    2 if self.calls_plugins() => install(system),
                    _ => self.write(system).await,
                }
            }
            for (query, subscription, mirror) in &mut followed {
                let fresh = sql(system, query).await.unwrap();
                mirror.until_equal(subscription, &fresh).await;
            }
        }
    }

    fn calls_plugins(&self) -> bool {
        std::ptr::eq(self.shapes, LENT)
    }

    fn shape(&self) -> &'static Shape {
        loop {
            let at = usize::try_from(self.below(self.shapes.len() as u64)).unwrap();
            let shape = &self.shapes[at];
            if !(self.append_only && shape.picks()) {
                return shape;
            }
        }
    }
}

fn run(house: &House, shapes: &'static [Shape], seeds: std::ops::Range<u64>) {
    house.run(async |system| {
        for seed in seeds {
            println!("seed {seed}");
            Case::new(shapes, seed).run(&system).await;
        }
    });
}

fn eager(settings: &mut Settings) {
    settings.live.rerun_ms = 1;
    settings.live.window_push_ms = 1;
    settings.compaction.interval_ms = 5;
    settings.compaction.min_segments = 2;
}

fn poor(settings: &mut Settings) {
    eager(settings);
    settings.live.state_bytes = 8000;
    settings.live.buffer_bytes = 1;
}

#[test]
fn subscribers_end_with_the_rows_of_a_fresh_query() {
    run(&House::new(eager), SHAPES, 0..CASES / 2);
}

#[test]
fn so_do_those_with_little_memory_and_those_that_lag() {
    run(&House::new(poor), SHAPES, CASES / 2..CASES);
}

#[test]
fn so_do_those_whose_plugins_are_upgraded() {
    for (change, seeds) in [(eager as fn(&mut Settings), 0..30), (poor, 30..50)] {
        let house = House::on_disk(change);
        install(&house.system);
        run(&house, LENT, seeds);
        house.run(async |system| {
            let engine = system.plugin_host().unwrap().engine();
            let idle = async {
                while engine.instances() > 0 {
                    tokio::task::yield_now().await;
                }
            };
            let idle = tokio::time::timeout(PATIENCE, idle).await;
            assert!(idle.is_ok(), "nobody asks, and {} instances are held", engine.instances());
        });
    }
}
