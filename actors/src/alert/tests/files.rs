//! Rules of files over a whole system: what a reload changes, and what it leaves as it was.

use std::path::Path;

use kymo_kernel::env::Disk;

use super::*;

const FOLDER: &str = "/rules";
const FILES: &str = "SELECT file, line, rule, status FROM system.alert_files";

/// The rule `hot` with a limit and more keys.
fn hot(limit: u32, more: &str) -> String {
    format!(
        "groups:\n- name: web\n  rules:\n  - alert: hot\n    expr: SELECT host, value FROM cpu\n    \
         when: value > {limit}\n    notify: [ops]\n    {more}\n"
    )
}

impl House {
    fn with_files(seed: u64) -> House {
        let mut house = House::new(seed);
        house.settings.alerts.rules_dir = FOLDER.into();
        house.sim.disk.create_dir_all(Path::new(FOLDER)).unwrap();
        house
    }

    /// Writes a file of rules, in the place of one that is there.
    fn file(&self, name: &str, text: &str) {
        let (disk, path) = (&self.sim.disk, Path::new(FOLDER).join(name));
        self.remove(name);
        let mut file = disk.create(&path).unwrap();
        file.append(text.as_bytes()).unwrap();
        file.sync().unwrap();
        disk.sync_dir(Path::new(FOLDER)).unwrap();
    }

    fn remove(&self, name: &str) {
        let path = Path::new(FOLDER).join(name);
        if self.sim.disk.exists(&path).unwrap() {
            self.sim.disk.remove(&path).unwrap();
            self.sim.disk.sync_dir(Path::new(FOLDER)).unwrap();
        }
    }
}

impl Home {
    /// What a reload answers, without its reasons.
    async fn reload(&self) -> Vec<String> {
        let mut lines = self.ok("RELOAD ALERT RULES").await;
        for line in &mut lines {
            let columns: Vec<&str> = line.split('|').collect();
            *line = [columns[0], columns[1], columns[3], columns[4]].join("|");
        }
        lines
    }
}

#[test]
fn a_rule_of_a_file_is_in_force_once_its_table_is_there() {
    let house = House::with_files(20);
    house.file("a.yml", &hot(90, "labels: {severity: page}"));
    house.file(".b.yml", "groups: 7");
    house.file("c.txt", "groups: 7");
    house.run(async |home| {
        home.until(FILES, &["a.yml|4|hot|refused"]).await;
        let reason = "SELECT error, \"group\" FROM system.alert_files";
        assert_eq!(home.ok(reason).await, ["table \"cpu\" does not exist|web"]);
        assert!(home.ok("SELECT * FROM system.alerts").await.is_empty());
        home.put("a", 95.0).await;
        home.until(FILES, &["a.yml|4|hot|loaded"]).await;
        let told = home.told().await;
        assert_eq!((told.rule.as_str(), told.labels["severity"].as_str()), ("hot", "page"));
        let shown = "SELECT rule, status, class, state, origin FROM system.alerts";
        assert_eq!(home.ok(shown).await, ["hot|active|rows|firing|a.yml: web"]);
        let shown = home.ok("SHOW ALERTS").await;
        assert_eq!(
            shown,
            ["hot|active|NULL|SELECT host, value FROM cpu|value > 90|0s|ops|a.yml: web"]
        );
        // It is acknowledged, silenced and tried like any other.
        assert_eq!(home.ok("ACK hot").await, ["ACK 1"]);
        assert!(!home.ok("EXPLAIN ALERT hot OVER '1h'").await.is_empty());
    });
}

#[test]
fn statements_do_not_change_rules_of_files() {
    let house = House::with_files(21);
    house.file("a.yml", &hot(90, ""));
    house.run(async |home| {
        home.put("a", 1.0).await;
        home.ok("CREATE ALERT own ON (SELECT value FROM cpu)").await;
        home.until(FILES, &["a.yml|4|hot|loaded"]).await;
        for sql in ["DROP ALERT hot", "DROP ALERT IF EXISTS hot", "ALTER ALERT hot PAUSE", HOT] {
            let error = home.sql(sql).await.unwrap_err();
            assert!(error.message().contains("a.yml"), "{sql}: {error:?}");
            assert!(error.hint().unwrap().contains("RELOAD ALERT RULES"), "{sql}: {error:?}");
        }
        house.file("b.yml", &hot(1, "").replace("hot", "own"));
        assert_eq!(home.reload().await, ["a.yml|4|hot|loaded", "b.yml|4|own|refused"]);
        let error = home.ok("SELECT error FROM system.alert_files WHERE rule = 'own'").await;
        assert_eq!(error, ["alert \"own\" exists"]);
        home.ok("DROP ALERT own").await;
        assert_eq!(home.reload().await, ["a.yml|4|hot|loaded", "b.yml|4|own|loaded"]);
        assert_eq!(home.sql("DROP ALERT own").await.unwrap_err().code(), Code::InvalidInput);
    });
}

#[test]
fn what_is_refused_leaves_the_rule_as_it_was() {
    let house = House::with_files(22);
    house.file("a.yml", &hot(90, ""));
    house.file("b.yml", &hot(50, "").replace("hot", "warm"));
    house.run(async |home| {
        home.put("a", 60.0).await;
        home.until(FILES, &["a.yml|4|hot|loaded", "b.yml|4|warm|loaded"]).await;
        assert_eq!(home.told().await.rule, "warm");
        // One file is broken, a rule of the other names a column that is not there.
        house.file("a.yml", "groups:\n- name: [");
        let more = "\n  - {alert: cold, expr: 'SELECT host, value FROM cpu', when: value < 10}";
        let wrong = hot(70, more).replace("hot", "warm").replace("value >", "heat >");
        house.file("b.yml", &wrong);
        let expected = ["a.yml|2|NULL|previous", "b.yml|4|warm|previous", "b.yml|9|cold|loaded"];
        assert_eq!(home.reload().await, expected);
        let refused = home.ok("SELECT error FROM system.alert_files WHERE rule = 'warm'").await;
        assert!(refused[0].contains("heat"), "{refused:?}");
        let shown = "SELECT rule, state FROM system.alerts ORDER BY rule";
        home.until(shown, &["cold|inactive", "hot|inactive", "warm|firing"]).await;
        home.put("a", 95.0).await;
        assert_eq!(home.told().await.rule, "hot");
    });
    house.crash();
    house.run(async |home| {
        // What was there before goes on, though the file is still broken.
        let expected = ["a.yml|2|NULL|previous", "b.yml|4|warm|previous", "b.yml|9|cold|loaded"];
        home.until(FILES, &expected).await;
        let shown = "SELECT rule, state FROM system.alerts ORDER BY rule";
        home.until(shown, &["cold|inactive", "hot|firing", "warm|firing"]).await;
        let both = [home.told().await, home.told().await];
        assert!(both.iter().all(|told| told.repeated), "{both:?}");
        // Another table does not help it.
        home.ok("CREATE TABLE other (v DOUBLE, time TIMESTAMP TIME INDEX)").await;
        home.pass(2.0).await;
        assert_eq!(home.ok(FILES).await, expected);
    });
}

#[test]
fn a_rule_that_is_gone_from_the_files_ends_its_alerts() {
    let house = House::with_files(23);
    house.file("a.yml", &hot(90, ""));
    house.run(async |home| {
        home.put("a", 99.0).await;
        assert_eq!(home.told().await.status.as_str(), "firing");
        // It moves, and is what it was; its alert goes on.
        house.remove("a.yml");
        house.file("b.yaml", &hot(90, "for: 0s"));
        assert_eq!(home.reload().await, ["b.yaml|4|hot|loaded"]);
        home.until("SELECT state, origin FROM system.alerts", &["firing|b.yaml: web"]).await;
        // Another limit takes effect with the rows that are there.
        house.file("b.yaml", &hot(100, ""));
        home.reload().await;
        assert_eq!(home.told().await.status.as_str(), "resolved");
        house.file("b.yaml", &hot(90, ""));
        home.reload().await;
        assert_eq!(home.told().await.status.as_str(), "firing");
        // With other labels it is another alert, and the one before ends under its own.
        house.file("b.yaml", &hot(90, "labels: {team: a}"));
        home.reload().await;
        let ended = home.told().await;
        assert_eq!((ended.status.as_str(), ended.labels.get("team")), ("resolved", None));
        let begun = home.told().await;
        assert_eq!((begun.status.as_str(), begun.labels["team"].as_str()), ("firing", "a"));
        // So it is with other columns.
        let renamed = hot(90, "labels: {team: a}").replace("host,", "host AS node,");
        house.file("b.yaml", &renamed);
        home.reload().await;
        let ended = home.told().await;
        assert_eq!((ended.status.as_str(), ended.labels["host"].as_str()), ("resolved", "a"));
        let begun = home.told().await;
        assert_eq!((begun.status.as_str(), begun.labels["node"].as_str()), ("firing", "a"));
        house.remove("b.yaml");
        assert!(home.reload().await.is_empty());
        assert_eq!(home.told().await.status.as_str(), "resolved");
        assert!(home.ok("SELECT * FROM system.alerts").await.is_empty());
    });
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let mut house = House::with_files(24);
    house.settings.alerts.max_rule_file_bytes = 400;
    house.settings.alerts.max_rule_files = 2;
    house.file("a.yml", &hot(90, ""));
    house.run(async |home| {
        home.put("a", 1.0).await;
        home.until(FILES, &["a.yml|4|hot|loaded"]).await;
        house.file("a.yml", &hot(90, &format!("# {}", "x".repeat(400))));
        assert_eq!(home.reload().await, ["a.yml|NULL|NULL|previous"]);
        for name in ["b.yml", "c.yml"] {
            house.file(name, "");
        }
        let error = home.sql("RELOAD ALERT RULES").await.unwrap_err();
        assert_eq!(error.code(), Code::LimitReached);
        for name in ["a.yml", "b.yml", "c.yml"] {
            house.remove(name);
        }
        house.sim.disk.remove_dir(Path::new(FOLDER)).unwrap();
        let error = home.sql("RELOAD ALERT RULES").await.unwrap_err();
        assert_eq!(error.code(), Code::Io);
        assert!(error.message().contains(FOLDER), "{error:?}");
        assert_eq!(home.ok("SELECT rule FROM system.alerts").await, ["hot"]);
        for (expr, part) in [
            ("SELECT 1; SELECT 2", "one SELECT"),
            ("DELETE FROM cpu", "one SELECT"),
            ("SELECT 1) AS a, (SELECT 2", "syntax"),
            ("SELECT $1", "parameter"),
        ] {
            house.sim.disk.create_dir_all(Path::new(FOLDER)).unwrap();
            let text = hot(90, "").replace("SELECT host, value FROM cpu", &format!("\"{expr}\""));
            house.file("a.yml", &text.replace("hot", "odd"));
            assert_eq!(home.reload().await, ["a.yml|4|odd|refused"], "{expr}");
            let error = home.ok("SELECT error FROM system.alert_files").await;
            assert!(error[0].contains(part), "{expr}: {error:?}");
        }
    });
}

#[test]
fn without_a_folder_no_rule_of_a_file_is_left() {
    let mut house = House::with_files(25);
    house.file("a.yml", &hot(90, ""));
    house.run(async |home| {
        home.put("a", 99.0).await;
        assert_eq!(home.told().await.status.as_str(), "firing");
    });
    house.crash();
    house.settings.alerts.rules_dir = PathBuf::new();
    house.run(async |home| {
        home.until("SELECT * FROM system.alerts", &[]).await;
        let mut states = [home.told().await, home.told().await].map(|told| told.status.as_str());
        states.sort_unstable();
        assert_eq!(states, ["firing", "resolved"]);
        assert!(home.reload().await.is_empty());
    });
}
