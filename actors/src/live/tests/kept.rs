//! Subscriptions to results that change: what is sent when, going on, and limits.

use super::*;

/// A subscriber that applies what it is sent to the rows that it has.
#[derive(Debug)]
pub(super) struct Mirror {
    /// The places of the columns that name a row; `None` where whole rows are counted.
    keys: Option<Vec<usize>>,
    pub(super) rows: Vec<String>,
    pub(super) notices: Vec<String>,
    pub(super) token: Option<Token>,
}

impl Mirror {
    pub(super) fn new(keys: Option<&[usize]>) -> Mirror {
        let keys = keys.map(<[usize]>::to_vec);
        Mirror { keys, rows: Vec::new(), notices: Vec::new(), token: None }
    }

    fn key(&self, row: &str) -> String {
        let columns: Vec<&str> = row.split('|').collect();
        match &self.keys {
            Some(keys) => keys.iter().map(|at| columns[*at]).collect::<Vec<_>>().join("|"),
            None => row.to_owned(),
        }
    }

    fn remove(&mut self, row: &str) {
        let key = self.key(row);
        let at = self.rows.iter().position(|each| self.key(each) == key);
        let at = at.unwrap_or_else(|| panic!("{row} is to go but is not there: {self:?}"));
        self.rows.swap_remove(at);
    }

    fn insert(&mut self, row: String) {
        if self.keys.is_some() {
            let key = self.key(&row);
            let there = self.rows.iter().find(|each| self.key(each) == key);
            assert!(there.is_none(), "{row} is inserted but {there:?} is there");
        }
        self.rows.push(row);
    }

    fn apply(&mut self, op: Op, batch: &RecordBatch) {
        for row in texts(batch) {
            match op {
                Op::Snapshot | Op::Insert => self.insert(row),
                Op::Update => {
                    self.remove(&row);
                    self.rows.push(row);
                }
                Op::Delete => self.remove(&row),
                // Tests have the window in the first column.
                Op::Clear => self.rows.retain(|each| each.split('|').next() != Some(&row)),
                Op::Upsert => panic!("a result has no {op:?}"),
            }
        }
    }

    pub(super) async fn take(&mut self, subscription: &mut Subscription) {
        let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
        let event = next.unwrap_or_else(|_| panic!("nothing more after {self:?}"));
        match event.unwrap_or_else(|| panic!("it has ended: {self:?}")) {
            Event::Started { resumed, class, .. } => {
                self.notices.push(class.to_owned());
                self.notices.push(if resumed { "resumed" } else { "started" }.to_owned());
            }
            Event::Rows { op, batch, token, .. } => {
                assert!(batch.num_rows() > 0);
                self.notices.push(op.as_str().to_owned());
                self.apply(op, &batch);
                self.token = token.or(self.token);
            }
            Event::SnapshotEnd { token } => {
                self.notices.push("end".to_owned());
                self.token = Some(token);
            }
            Event::Lagged { .. } => self.notices.push("lagged".to_owned()),
            Event::Resync { .. } => {
                self.notices.push("resync".to_owned());
                self.rows.clear();
            }
            Event::Ended(error) => self.notices.push(error.to_string()),
        }
    }

    pub(super) async fn until(&mut self, subscription: &mut Subscription, notice: &str) {
        while self.notices.last().is_none_or(|last| last != notice) {
            self.take(subscription).await;
        }
    }

    /// Takes events until the rows are these, in any order.
    pub(super) async fn until_equal(&mut self, subscription: &mut Subscription, rows: &[String]) {
        let mut wanted = rows.to_vec();
        wanted.sort();
        loop {
            self.rows.sort();
            if self.rows == wanted {
                return;
            }
            let next = tokio::time::timeout(PATIENCE, self.take(subscription)).await;
            assert!(next.is_ok(), "has {:#?}\nand wants {wanted:#?}", self.rows);
            let last = self.notices.last().map(String::as_str).unwrap_or_default();
            assert!(!last.contains(':'), "it ended: {last}");
        }
    }
}

fn fast(settings: &mut Settings) {
    settings.live.rerun_ms = 1;
    settings.live.window_push_ms = 1;
}

const BY_WINDOW: &str = "SELECT time_bucket('10ns', time) AS w, host, count(*) AS n, sum(value) AS s FROM cpu GROUP BY 1, 2";

async fn keyed(system: &System) {
    let table = "CREATE TABLE cpu (host TEXT TAG, value DOUBLE, time TIMESTAMP TIME INDEX)";
    sql(system, table).await.unwrap();
}

async fn points(system: &System, points: &[(&'static str, i64, f64)]) {
    system.write().call(write(vec![rows(&cpu(), points)])).await.unwrap();
}

#[test]
fn groups_of_windows_are_inserted_updated_and_keep_their_place() {
    let house = House::new(fast);
    house.run(async |system| {
        keyed(&system).await;
        points(&system, &[("a", 1, 1.0), ("b", 2, 2.0), ("a", 11, 3.0)]).await;
        let mut subscription = follow(&system, BY_WINDOW, None).await.unwrap();
        let mut mirror = Mirror::new(Some(&[0, 1]));
        mirror.until(&mut subscription, "end").await;
        mirror.until_equal(&mut subscription, &sql(&system, BY_WINDOW).await.unwrap()).await;
        assert_eq!(mirror.rows.len(), 3);
        mirror.notices.clear();
        points(&system, &[("a", 12, 5.0)]).await;
        mirror.until_equal(&mut subscription, &sql(&system, BY_WINDOW).await.unwrap()).await;
        assert_eq!(mirror.notices, ["update"]);
        mirror.notices.clear();
        points(&system, &[("b", 13, 5.0), ("a", 25, 5.0)]).await;
        mirror.until_equal(&mut subscription, &sql(&system, BY_WINDOW).await.unwrap()).await;
        assert_eq!(mirror.notices, ["insert", "insert"]);
        // Overwritten, in a window that was complete.
        mirror.notices.clear();
        points(&system, &[("b", 2, 7.0)]).await;
        mirror.until_equal(&mut subscription, &sql(&system, BY_WINDOW).await.unwrap()).await;
        assert_eq!(mirror.notices, ["update"]);
    });
}

#[test]
fn rows_that_no_longer_meet_a_condition_go() {
    let house = House::new(fast);
    house.run(async |system| {
        keyed(&system).await;
        points(&system, &[("a", 1, 1.0), ("b", 2, 9.0)]).await;
        let query = "SELECT time_bucket('10ns', time) AS w, host, avg(value) AS a FROM cpu \
                     GROUP BY 1, 2 HAVING avg(value) > 5";
        let mut subscription = follow(&system, query, None).await.unwrap();
        let mut mirror = Mirror::new(Some(&[0, 1]));
        mirror.until(&mut subscription, "end").await;
        assert_eq!(mirror.rows.len(), 1);
        points(&system, &[("b", 3, 0.0)]).await;
        mirror.until(&mut subscription, "delete").await;
        assert_eq!(mirror.rows.len(), 0);
    });
}

#[test]
fn a_token_goes_on_where_nothing_has_changed() {
    let house = House::new(fast);
    house.run(async |system| {
        keyed(&system).await;
        points(&system, &[("a", 1, 1.0)]).await;
        let mut first = follow(&system, BY_WINDOW, None).await.unwrap();
        let mut mirror = Mirror::new(Some(&[0, 1]));
        mirror.until(&mut first, "end").await;
        points(&system, &[("a", 2, 1.0)]).await;
        mirror.until(&mut first, "update").await;
        drop(first);
        let mut second = follow(&system, BY_WINDOW, mirror.token).await.unwrap();
        mirror.until(&mut second, "resumed").await;
        points(&system, &[("a", 3, 1.0), ("b", 3, 1.0)]).await;
        mirror.until_equal(&mut second, &sql(&system, BY_WINDOW).await.unwrap()).await;
        assert!(!mirror.notices.contains(&"resync".to_owned()), "{:?}", mirror.notices);
        drop(second);
        points(&system, &[("c", 3, 1.0)]).await;
        let mut third = follow(&system, BY_WINDOW, mirror.token).await.unwrap();
        mirror.until(&mut third, "resync").await;
        mirror.until(&mut third, "end").await;
        mirror.until_equal(&mut third, &sql(&system, BY_WINDOW).await.unwrap()).await;
        for token in ["99.0.1.1.0", "1.0.99.1.0", "1.0.1.1.9", "1.0.1.1.0.5"] {
            let token = token.parse().unwrap();
            let mut other = follow(&system, BY_WINDOW, Some(token)).await.unwrap();
            let mut mirror = Mirror::new(Some(&[0, 1]));
            mirror.until(&mut other, "end").await;
            assert!(mirror.notices.contains(&"resync".to_owned()), "{:?}", mirror.notices);
        }
    });
}

#[test]
fn deleted_rows_go_and_correct_what_is_left() {
    let house = House::new(fast);
    house.run(async |system| {
        keyed(&system).await;
        points(&system, &[("a", 1, 1.0), ("b", 2, 2.0), ("b", 3, 4.0), ("a", 11, 3.0)]).await;
        for query in [BY_WINDOW, "SELECT host, count(*) AS n FROM cpu GROUP BY host"] {
            let mut subscription = follow(&system, query, None).await.unwrap();
            let keys: &[usize] = if query == BY_WINDOW { &[0, 1] } else { &[0] };
            let mut mirror = Mirror::new(Some(keys));
            mirror.until(&mut subscription, "end").await;
            points(&system, &[("b", 2, 2.0), ("c", 12, 5.0)]).await;
            mirror.until_equal(&mut subscription, &sql(&system, query).await.unwrap()).await;
            mirror.notices.clear();
            sql(&system, "DELETE FROM cpu WHERE host = 'c' OR (host = 'b' AND value = 2)")
                .await
                .unwrap();
            mirror.until_equal(&mut subscription, &sql(&system, query).await.unwrap()).await;
            assert!(mirror.notices.contains(&"delete".to_owned()), "{:?}", mirror.notices);
            assert!(mirror.notices.contains(&"update".to_owned()), "{:?}", mirror.notices);
        }
        let mut subscription = follow(&system, BY_WINDOW, None).await.unwrap();
        let mut mirror = Mirror::new(Some(&[0, 1]));
        mirror.until(&mut subscription, "end").await;
        sql(&system, "TRUNCATE cpu").await.unwrap();
        mirror.until_equal(&mut subscription, &[]).await;
    });
}

#[test]
fn a_slow_subscriber_ends_with_the_same_rows() {
    for catch_up in [32 << 20, 1] {
        let house = House::new(|settings| {
            fast(settings);
            settings.live.buffer_bytes = 1;
            settings.live.catch_up_bytes = catch_up;
        });
        house.run(async |system| {
            keyed(&system).await;
            let mut slow = follow(&system, BY_WINDOW, None).await.unwrap();
            let mut mirror = Mirror::new(Some(&[0, 1]));
            mirror.until(&mut slow, "end").await;
            for number in 0..200 {
                points(&system, &[("a", number, 1.0), ("b", number / 2, 2.0)]).await;
            }
            mirror.until_equal(&mut slow, &sql(&system, BY_WINDOW).await.unwrap()).await;
        });
    }
}

#[test]
fn windows_beyond_the_memory_are_sent_anew() {
    let house = House::new(|settings| {
        fast(settings);
        settings.live.state_bytes = 8000;
    });
    house.run(async |system| {
        keyed(&system).await;
        for window in 0..300 {
            points(&system, &[("a", window * 10, 1.0), ("b", window * 10, 1.0)]).await;
        }
        let mut subscription = follow(&system, BY_WINDOW, None).await.unwrap();
        let mut mirror = Mirror::new(Some(&[0, 1]));
        mirror.until(&mut subscription, "end").await;
        mirror.until_equal(&mut subscription, &sql(&system, BY_WINDOW).await.unwrap()).await;
        mirror.notices.clear();
        points(&system, &[("c", 5, 1.0), ("a", 11, 1.0), ("a", 2995, 1.0)]).await;
        mirror.until_equal(&mut subscription, &sql(&system, BY_WINDOW).await.unwrap()).await;
        assert!(mirror.notices.contains(&"clear".to_owned()), "{:?}", mirror.notices);
        assert!(!mirror.notices.contains(&"resync".to_owned()), "{:?}", mirror.notices);
    });
}

#[test]
fn a_result_beyond_the_memory_ends_with_the_name_of_the_setting() {
    let house = House::new(|settings| {
        fast(settings);
        settings.live.state_bytes = 1;
    });
    house.run(async |system| {
        keyed(&system).await;
        points(&system, &[("a", 1, 1.0)]).await;
        for query in [BY_WINDOW, "SELECT max(value) FROM cpu"] {
            let mut subscription = follow(&system, query, None).await.unwrap();
            let mut mirror = Mirror::new(Some(&[0, 1]));
            while !mirror.notices.last().is_some_and(|last| last.contains("live.state_bytes")) {
                mirror.take(&mut subscription).await;
            }
        }
    });
}

#[test]
fn a_table_that_is_dropped_ends_the_subscription() {
    let house = House::new(fast);
    house.run(async |system| {
        keyed(&system).await;
        points(&system, &[("a", 1, 1.0)]).await;
        let mut subscription = follow(&system, BY_WINDOW, None).await.unwrap();
        let mut mirror = Mirror::new(Some(&[0, 1]));
        mirror.until(&mut subscription, "end").await;
        sql(&system, "DROP TABLE cpu").await.unwrap();
        while !mirror.notices.last().is_some_and(|last| last.contains("dropped")) {
            mirror.take(&mut subscription).await;
        }
    });
}
