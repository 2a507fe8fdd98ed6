//! Transforms on the way of rows into tables: what they change, what they refuse, and what
//! becomes of rows where they fail.

use datafusion::arrow::array::{
    DictionaryArray, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray,
};
use datafusion::arrow::datatypes::{Int32Type, Schema};
use kymo_kernel::message::{Acked, Existing, PluginSource, Write};
use kymo_kernel::schema::{ColumnKind, FieldType, TableBatch, TableName, marked_field};
use tempfile::TempDir;

use super::*;
use crate::ingest::transform::Counts;

/// `json_fields`: columns from members of a JSON column.
const JSON: &[u8] = include_bytes!("../../../../plugins/guests/json-fields/json-fields.wasm");
/// `deadband`: drops readings that hardly differ.
const DEADBAND: &[u8] = include_bytes!("../../../../plugins/guests/deadband/deadband.wasm");

const TABLE: &str = "CREATE TABLE t (host TEXT TAG, payload TEXT, time TIMESTAMPTZ)";
const REFUSED: &str = "SELECT transform, reason, row FROM system.rejected_writes ORDER BY row";

struct Lab {
    house: House,
    _folder: TempDir,
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let change = |settings: &mut Settings| {
            settings.plugins.preview = true;
            settings.plugins.start_timeout_ms = 10_000;
            settings.plugins.call_timeout_ms = 60_000;
            settings.plugins.max_transforms = 2;
        };
        Lab { house: House::managed(change, folder.path()), _folder: folder }
    }

    /// With the plugin `json`, the table `t` and the transform attached to it like this.
    fn with(attachment: &str) -> Lab {
        let lab = Lab::new();
        lab.install("json", JSON);
        lab.house.rows(TABLE);
        lab.house.rows(&format!("ATTACH TRANSFORM json.json_fields TO t {attachment}"));
        lab
    }

    fn install(&self, name: &str, wasm: &[u8]) {
        let mut staged = self.house.engine.store().components().begin().unwrap();
        staged.append(wasm).unwrap();
        let install = PluginCommand::Install {
            name: name.to_owned(),
            source: PluginSource::Stored(Arc::new(staged.publish(None).unwrap())),
            existing: Existing::AddVersion,
            activate: true,
            force: false,
            settings: Vec::new(),
        };
        let (_, commands) = self.house.manager.as_ref().unwrap();
        let commands = commands.clone();
        self.house.run(async move { commands.call(install).await }).unwrap();
    }

    fn put(&self, values: &str) -> Result<Vec<String>> {
        self.house.try_rows(&format!("INSERT INTO t (host, payload, time) VALUES {values}"))
    }

    fn write(&self, rows: TableBatch) -> Result<Acked> {
        let write = Write { batches: vec![rows], durability: None, create: true, partial: true };
        let port = self.house.engine.write().clone();
        self.house.run(async move { port.call(write).await })
    }

    fn counts(&self) -> Arc<Counts> {
        let mut all = self.house.engine.transforms().counts();
        assert_eq!(all.len(), 1);
        all.remove(0).1
    }
}

const FIELDS: &str = "WITH (column = 'payload', fields = 'v:double, room:text')";
const GOOD: &str = r#"('a', '{"v": 1.5, "room": "x"}', to_timestamp(1))"#;
const BAD: &str = "('b', 'no json', to_timestamp(2))";

/// Rows of `host` and `load`, as line protocol brings them.
fn readings(hosts: &[&str], loads: &[f64]) -> TableBatch {
    let fields = vec![
        marked_field("load", ColumnKind::Field, FieldType::Float64),
        marked_field("time", ColumnKind::Time, FieldType::Timestamp),
        marked_field("host", ColumnKind::Tag, FieldType::Text),
    ];
    let times = TimestampNanosecondArray::from_iter_values(1..=loads.len() as i64);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Float64Array::from(loads.to_vec())),
        Arc::new(times.with_timezone("+00:00")),
        Arc::new(hosts.iter().copied().map(Some).collect::<DictionaryArray<Int32Type>>()),
    ];
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    TableBatch { table: TableName::new("kymo", "r"), batch, lines: Vec::new() }
}

#[test]
fn rows_are_rewritten_enriched_and_refused_with_reason_and_raw_row() {
    let lab = Lab::with(FIELDS);
    assert_eq!(lab.put(&format!("{GOOD}, {BAD}")).unwrap(), ["INSERT 1"]);
    assert_eq!(lab.house.rows("SELECT host, v, room, payload FROM t"), ["a|1.5|x|NULL"]);
    let refused = lab.house.rows(REFUSED);
    assert_eq!(refused.len(), 1);
    let parts: Vec<&str> = refused[0].splitn(3, '|').collect();
    assert_eq!(parts[0], "json.json_fields");
    assert!(!parts[1].is_empty());
    let raw: serde_json::Value = serde_json::from_str(parts[2]).unwrap();
    let wanted = serde_json::json!({
        "host": "b", "payload": "no json", "time": "1970-01-01T00:00:02Z",
    });
    assert_eq!(raw, wanted);
    let whose = "SELECT database, schema, \"table\", time > to_timestamp(1e9) \
                 FROM system.rejected_writes";
    assert_eq!(lab.house.rows(whose), ["kymo|public|t|true"]);
    // A write of which nothing stays.
    assert_eq!(lab.put(BAD).unwrap(), ["INSERT 0"]);
    assert_eq!(lab.house.rows("SELECT count(*) FROM system.rejected_writes"), ["2"]);
    let counts = lab.counts();
    let read =
        |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((read(&counts.rows_in), read(&counts.rows_out), read(&counts.refused)), (3, 1, 2));
    lab.house.flush();
    assert_eq!(lab.house.rows("SELECT count(*) FROM system.rejected_writes"), ["2"]);
    assert_eq!(lab.house.rows("SELECT count(*) FROM t"), ["1"]);
}

#[test]
fn columns_of_a_transform_conflict_like_any_others() {
    let lab = Lab::with("WITH (column = 'payload', fields = 'v:text')");
    lab.house.rows("CREATE TABLE u (payload TEXT, v DOUBLE PRECISION, time TIMESTAMPTZ)");
    lab.house.rows(
        "ATTACH TRANSFORM json.json_fields TO u WITH (column = 'payload', fields = 'v:text')",
    );
    let insert = r#"INSERT INTO u (payload, time) VALUES ('{"v": "warm"}', to_timestamp(1))"#;
    let error = lab.house.fails(insert);
    assert_eq!(error.code(), Code::TypeConflict, "{error:?}");
    assert!(error.message().contains("\"v\""), "{error:?}");
    assert_eq!(lab.house.rows("SELECT count(*) FROM u"), ["0"]);
}

#[test]
fn a_failure_follows_the_policy() {
    // The table has no such column, which the transform says when it is opened.
    let wrong = "WITH (column = 'nothing', fields = 'v:double')";
    let lab = Lab::with(wrong);
    let error = lab.put(GOOD).unwrap_err();
    assert_eq!(error.code(), Code::InvalidInput, "{error:?}");
    for part in ["transform json.json_fields of table kymo.public.t", "no text column nothing"] {
        assert!(error.message().contains(part), "{error:?}");
    }
    let (rows, refused) =
        ("SELECT host, payload FROM t", "SELECT count(*) FROM system.rejected_writes");
    assert!(lab.house.rows(rows).is_empty());
    assert_eq!(lab.house.rows(refused), ["0"]);

    lab.house.rows(&format!("ATTACH TRANSFORM json.json_fields TO t {wrong} ON ERROR pass"));
    assert_eq!(lab.put(BAD).unwrap(), ["INSERT 1"]);
    assert_eq!(lab.house.rows(rows), ["b|no json"]);
    assert_eq!(lab.house.rows(refused), ["0"]);

    lab.house.rows(&format!("ATTACH TRANSFORM json.json_fields TO t {wrong} ON ERROR dead_letter"));
    assert_eq!(lab.put(&format!("{GOOD}, {BAD}")).unwrap(), ["INSERT 0"]);
    assert_eq!(lab.house.rows(rows), ["b|no json"]);
    let kept = lab.house.rows("SELECT DISTINCT reason FROM system.rejected_writes");
    assert!(kept.len() == 1 && kept[0].contains("no text column nothing"), "{kept:?}");
    assert_eq!(lab.house.rows(refused), ["2"]);
}

#[test]
fn a_suspended_plugin_is_a_failure_until_it_is_resumed() {
    let lab = Lab::with(&format!("{FIELDS} ON ERROR dead_letter"));
    lab.house.rows("ALTER PLUGIN json SUSPEND");
    assert_eq!(lab.put(GOOD).unwrap(), ["INSERT 0"]);
    let reason = lab.house.rows("SELECT reason FROM system.rejected_writes");
    assert!(reason[0].contains("suspended"), "{reason:?}");
    lab.house.rows("ALTER PLUGIN json RESUME");
    assert_eq!(lab.put(GOOD).unwrap(), ["INSERT 1"]);
    lab.house.rows(&format!("ATTACH TRANSFORM json.json_fields TO t {FIELDS}"));
    lab.house.rows("ALTER PLUGIN json SUSPEND");
    let error = lab.put(GOOD).unwrap_err();
    assert_eq!(error.code(), Code::PluginUnavailable, "{error:?}");
    assert!(error.message().contains("json.json_fields"), "{error:?}");
}

#[test]
fn a_new_version_holds_from_the_next_batch_on() {
    let lab = Lab::with(FIELDS);
    lab.put("('a', '[1]', to_timestamp(1))").unwrap();
    let old = b"no JSON object";
    let mut wasm = JSON.to_vec();
    let at = wasm.windows(old.len()).position(|bytes| bytes == old).unwrap();
    wasm[at..at + old.len()].copy_from_slice(b"not an object!");
    lab.install("json", &wasm);
    lab.put("('a', '[2]', to_timestamp(2))").unwrap();
    let reasons = "SELECT reason FROM system.rejected_writes ORDER BY time";
    assert_eq!(lab.house.rows(reasons), ["no JSON object", "not an object!"]);
}

#[test]
fn transforms_follow_one_another_are_bounded_and_leave() {
    let lab = Lab::with(FIELDS);
    lab.install("band", DEADBAND);
    let band = "ATTACH TRANSFORM band.deadband TO t \
                WITH (column = 'v', band = '1', series = 'host')";
    lab.house.rows(band);
    let row = |v: f64, at: u32| format!("('a', '{{\"v\": {v}}}', to_timestamp({at}))");
    lab.put(&[row(1.0, 1), row(1.5, 2), row(3.0, 3)].join(", ")).unwrap();
    assert_eq!(lab.house.rows("SELECT v FROM t ORDER BY time"), ["1.0", "3.0"]);
    // What a transform remembers, it remembers from batch to batch.
    lab.put(&row(3.5, 4)).unwrap();
    assert_eq!(lab.house.rows("SELECT count(*) FROM t"), ["2"]);
    lab.install("more", DEADBAND);
    let third = "ATTACH TRANSFORM more.deadband TO t WITH (column = 'v', band = '1')";
    assert_eq!(lab.house.code(third), Code::LimitReached);
    assert_eq!(
        lab.house
            .rows("SELECT \"table\", position, plugin, function, on_error FROM system.transforms"),
        ["t|1|json|json_fields|reject", "t|2|band|deadband|reject"]
    );
    assert_eq!(lab.house.code("DROP PLUGIN band"), Code::InUse);
    lab.house.rows("DETACH TRANSFORM band.deadband FROM t");
    lab.put(&row(3.6, 5)).unwrap();
    assert_eq!(lab.house.rows("SELECT count(*) FROM t"), ["3"]);
    lab.house.rows("DETACH TRANSFORM json.json_fields FROM t");
    lab.put(BAD).unwrap();
    assert_eq!(lab.house.rows("SELECT payload FROM t WHERE host = 'b'"), ["no json"]);
}

#[test]
fn tags_arrive_as_text_and_stay_tags() {
    let lab = Lab::new();
    lab.install("band", DEADBAND);
    lab.house.rows("CREATE TABLE r (host TEXT TAG, load DOUBLE PRECISION, time TIMESTAMPTZ)");
    lab.house.rows(
        "ATTACH TRANSFORM band.deadband TO r \
         WITH (column = 'load', band = '0.5', series = 'host')",
    );
    let acked = lab.write(readings(&["a", "b", "a", "b"], &[1.0, 1.0, 1.2, 2.0])).unwrap();
    assert_eq!((acked.rows, acked.refused, acked.rejected.len()), (3, 0, 0));
    assert_eq!(
        lab.house.rows("SELECT host, load FROM r ORDER BY host, time"),
        ["a|1.0", "b|1.0", "b|2.0"]
    );
}

#[test]
fn many_rows_at_once_are_all_accounted_for() {
    let lab = Lab::with(FIELDS);
    let hosts: DictionaryArray<Int32Type> = (0..150_000).map(|_| Some("a")).collect();
    let payloads: StringArray = (0..150_000)
        .map(|row| Some(if row % 2 == 0 { format!("{{\"v\": {row}}}") } else { "odd".to_owned() }))
        .collect();
    let times = TimestampNanosecondArray::from_iter_values(0..150_000).with_timezone("+00:00");
    let fields = vec![
        marked_field("host", ColumnKind::Tag, FieldType::Text),
        marked_field("payload", ColumnKind::Field, FieldType::Text),
        marked_field("time", ColumnKind::Time, FieldType::Timestamp),
    ];
    let columns: Vec<ArrayRef> = vec![Arc::new(hosts), Arc::new(payloads), Arc::new(times)];
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let rows = TableBatch { table: TableName::new("kymo", "t"), batch, lines: Vec::new() };
    let acked = lab.write(rows).unwrap();
    assert_eq!((acked.rows, acked.refused), (75_000, 75_000));
    assert_eq!(
        lab.house.rows("SELECT count(*), CAST(sum(v) AS BIGINT) FROM t"),
        ["75000|5624925000"]
    );
    assert_eq!(
        lab.house.rows("SELECT count(*), count(DISTINCT row) FROM system.rejected_writes"),
        ["75000|75000"]
    );
}

#[test]
fn nobody_else_fills_tables_of_the_system() {
    let lab = Lab::with(FIELDS);
    let session = Arc::new(lab.house.session());
    // Planned before the table was there, run after.
    let held = session.clone();
    let prepared = lab.house.run(async move {
        let sql = "SELECT count(*) FROM system.rejected_writes";
        let statement = held.parse(sql).await.unwrap().remove(0);
        held.prepare(statement, Vec::new()).await.unwrap()
    });
    let execute = || {
        let (session, prepared) = (session.clone(), prepared.clone());
        lab.house.run(async move {
            let outcome = session.execute(Runnable::Prepared(prepared), Vec::new(), None).await?;
            collect(outcome).await
        })
    };
    assert_eq!(execute().unwrap(), ["0"]);
    lab.put(BAD).unwrap();
    assert_eq!(execute().unwrap(), ["1"]);
    let insert = "INSERT INTO system.rejected_writes (reason, time) VALUES ('x', now())";
    for sql in [
        insert,
        "CREATE TABLE system.mine (v DOUBLE PRECISION, time TIMESTAMPTZ)",
        "ATTACH TRANSFORM json.json_fields TO system.rejected_writes",
    ] {
        lab.house.fails(sql);
    }
    let mut rows = readings(&["a"], &[1.0]);
    rows.table.schema = "system".to_owned();
    assert_eq!(lab.write(rows).unwrap_err().code(), Code::InvalidInput);
    assert_eq!(execute().unwrap(), ["1"]);
    assert_eq!(lab.house.rows("SHOW TABLES"), ["public|t"]);
    let listed = "SELECT count(*) FROM information_schema.tables \
                  WHERE table_name = 'rejected_writes'";
    assert_eq!(lab.house.rows(listed), ["1"]);
}
