//! Random edits of plugins, functions, transforms, tables and continuous queries: whatever is accepted leaves no
//! reference without its object, and both files of the metadata log bring it back as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::alert::{AlertOrigin, ChannelKind, Matcher, Missing, NoData};
use crate::continuous::{Advance, Cursor, Downsampling, MAX_GONE, Pause};
use crate::digest::Digest;
use crate::kit;
use crate::plugin::{Canary, OnError, PluginVersionDef, Suspension};
use crate::schema::{Column, ColumnKind, FieldType, TableOptions, TableSchema};
use crate::user::ScramVerifier;

fn table(id: u64) -> TableDef {
    let columns = vec![
        Column::new(ColumnId(1), "host", ColumnKind::Tag, FieldType::Text),
        Column::new(ColumnId(2), "time", ColumnKind::Time, FieldType::Timestamp),
        Column::new(ColumnId(3), "usage", ColumnKind::Field, FieldType::Float64),
    ];
    TableDef {
        id: TableId(id),
        name: TableName::new("kymo", if id == 1 { "cpu".to_owned() } else { format!("t{id}") }),
        schema: TableSchema { version: 1, columns },
        options: TableOptions::default(),
    }
}

/// What the checked-in files of the first format were made from.
fn first_format() -> Edit {
    let scram = ScramVerifier {
        salt: vec![1, 2],
        iterations: 4096,
        stored_key: [3; 32],
        server_key: [4; 32],
    };
    let user = User {
        name: "admin".to_owned(),
        admin: true,
        argon2: "$argon2id$".to_owned(),
        scram,
        tokens: vec![[5; 32]],
    };
    Edit {
        commit_id: Uuid::from_u128(7),
        by: Author { node: "node-1".to_owned(), partition: PartitionId::ONLY, epoch: Epoch(0) },
        ops: vec![
            Op::CreateDatabase { name: "d".to_owned() },
            Op::PutTable { def: table(1) },
            Op::PutUser { user },
        ],
    }
}

#[test]
fn files_of_the_first_format_are_read() {
    let version = MetaVersion(9);
    let edit = include_bytes!("testdata/format1.edit");
    assert_eq!(codec::decode_edits(Path::new("e"), version, edit).unwrap(), [first_format()]);
    let expected = Snapshot { version, ..Snapshot::default().apply(&first_format()).unwrap() };
    let checkpoint = include_bytes!("testdata/format1.snap");
    assert_eq!(codec::decode_snapshot(Path::new("s"), version, checkpoint).unwrap(), expected);
}

#[test]
fn files_of_the_second_format_are_read() {
    let version = MetaVersion(9);
    let expected = Snapshot { version, ..Snapshot::default().apply(&first_format()).unwrap() };
    let checkpoint = include_bytes!("testdata/format2.snap");
    assert_eq!(codec::decode_snapshot(Path::new("s"), version, checkpoint).unwrap(), expected);
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let version = MetaVersion(1);
    let mut bytes = codec::encode_edits(version, &[first_format()]).unwrap();
    bytes[4] = 5;
    let crc = crc32c::crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    let error = codec::decode_edits(Path::new("e"), version, &bytes).unwrap_err();
    assert_eq!(error.code(), Code::Unsupported);
}

#[test]
fn the_id_of_a_dropped_column_is_never_given_again() {
    let version = MetaVersion(9);
    let apply = |snapshot: &Snapshot, def: TableDef| {
        snapshot.apply(&Edit { ops: vec![Op::PutTable { def }], ..first_format() })
    };
    let made = Snapshot::default().apply(&first_format()).unwrap();
    let change = |version: u32, change: &dyn Fn(&mut Vec<Column>)| {
        let mut def = table(1);
        def.schema.version = version;
        change(&mut def.schema.columns);
        def
    };
    let dropped = change(2, &|columns| columns.truncate(2));
    let dropped = Snapshot { version, ..apply(&made, dropped).unwrap() };
    let bytes = codec::encode_snapshot(&dropped).unwrap();
    let dropped = codec::decode_snapshot(Path::new("s"), version, &bytes).unwrap();
    assert_eq!(dropped.tables[&TableId(1)].next_column, ColumnId(4));
    let back = apply(&dropped, change(3, &|_| {})).unwrap_err();
    assert_eq!(back.code(), Code::Conflict);
    assert!(back.message().contains("\"usage\""), "{back}");
    let new = change(3, &|columns| columns[2].id = ColumnId(4));
    let new = apply(&dropped, new).unwrap();
    assert_eq!(new.tables[&TableId(1)].next_column, ColumnId(5));
    let text = change(2, &|columns| columns[2].field_type = FieldType::Text);
    assert_eq!(apply(&made, text).unwrap_err().code(), Code::Conflict);
}

#[test]
fn options_of_a_table_come_back() {
    let version = MetaVersion(9);
    let mut def = table(1);
    def.options.widen_integers = true;
    let database = Op::CreateDatabase { name: "d".to_owned() };
    let edit = Edit { ops: vec![database, Op::PutTable { def }], ..first_format() };
    let bytes = codec::encode_edits(version, std::slice::from_ref(&edit)).unwrap();
    assert_eq!(
        codec::decode_edits(Path::new("e"), version, &bytes).unwrap(),
        std::slice::from_ref(&edit)
    );
    let wide = Snapshot { version, ..Snapshot::default().apply(&edit).unwrap() };
    let bytes = codec::encode_snapshot(&wide).unwrap();
    assert_eq!(codec::decode_snapshot(Path::new("s"), version, &bytes).unwrap(), wide);
}

fn digest() -> impl Strategy<Value = Digest> {
    (0..3u8).prop_map(|seed| Digest::of(&[seed]))
}

fn settings() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map("[a-c]", "[xyz]{0,3}", 0..3)
}

fn plugin_name() -> impl Strategy<Value = String> {
    "[pq]"
}

fn plugin() -> impl Strategy<Value = PluginDef> {
    let version =
        (digest(), settings(), any::<i64>()).prop_map(|(digest, settings, at)| PluginVersionDef {
            digest,
            bytes: 3,
            version: "1.0.0".to_owned(),
            description: "{}".to_owned(),
            installed_ns: at,
            settings,
        });
    (
        (plugin_name(), 1..4u64, proptest::collection::vec(version, 0..4)),
        proptest::option::of(digest()),
        proptest::option::of(digest()),
        proptest::option::weighted(0.3, (digest(), 0..102u8)),
        proptest::option::of("[a-z]{0,4}"),
    )
        .prop_map(|((name, revision, versions), active, previous, canary, reason)| PluginDef {
            name,
            revision,
            versions,
            active,
            previous,
            canary: canary.map(|(digest, percent)| Canary { digest, percent }),
            suspended: reason.map(|reason| Suspension { reason, since_ns: 5 }),
        })
}

fn transform() -> impl Strategy<Value = TransformDef> {
    let on_error =
        prop_oneof![Just(OnError::Reject), Just(OnError::Pass), Just(OnError::DeadLetter)];
    (plugin_name(), "[fg]", settings(), on_error).prop_map(
        |(plugin, function, settings, on_error)| TransformDef {
            plugin,
            function,
            settings,
            on_error,
        },
    )
}

fn retention_of() -> impl Strategy<Value = RetentionOf> {
    prop_oneof![
        "[de]".prop_map(RetentionOf::Database),
        (1..4u64).prop_map(|table| RetentionOf::Table(TableId(table))),
    ]
}

fn alert() -> impl Strategy<Value = AlertDef> {
    let means = prop_oneof![Just(Missing::Firing), Just(Missing::Resolved), Just(Missing::Ignore)];
    let no_data = (any::<i64>(), means).prop_map(|(after_ns, means)| NoData { after_ns, means });
    let origin = ("[fg]", "[gh]").prop_map(|(file, group)| AlertOrigin { file, group });
    (
        ("[ab]", 1..4u64, any::<bool>(), proptest::option::of(origin)),
        (proptest::option::of(any::<i64>()), any::<i64>(), any::<i64>()),
        (proptest::option::of(no_data), proptest::option::of("[xy]{0,3}")),
        (settings(), settings(), proptest::collection::vec("[a-c]", 0..3)),
    )
        .prop_map(|(names, times, (no_data, condition), (labels, annotations, channels))| {
            AlertDef {
                name: names.0,
                revision: names.1,
                database: "kymo".to_owned(),
                schema: "public".to_owned(),
                owner: "ada".to_owned(),
                query: "SELECT 1".to_owned(),
                condition,
                every_ns: times.0,
                hold_ns: times.1,
                keep_firing_ns: times.2,
                no_data,
                labels,
                annotations,
                channels,
                paused: names.2,
                origin: names.3,
            }
        })
}

fn silence() -> impl Strategy<Value = SilenceDef> {
    (0..3u64, proptest::option::of("[ab]"), settings(), any::<(i64, i64)>()).prop_map(
        |(id, rule, labels, (starts_ns, ends_ns))| SilenceDef {
            id,
            matcher: Matcher { rule, labels },
            starts_ns,
            ends_ns,
            author: "ada".to_owned(),
            comment: "work".to_owned(),
        },
    )
}

fn channel() -> impl Strategy<Value = ChannelDef> {
    let kinds = [ChannelKind::Webhook, ChannelKind::Alertmanager, ChannelKind::Log];
    ("[ab]", proptest::sample::select(kinds.to_vec()), "[xy]{0,3}", "[xy]{0,3}")
        .prop_map(|(name, kind, url, secret)| ChannelDef { name, kind, url, secret })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => plugin().prop_map(|plugin| Op::PutPlugin { plugin }),
        1 => plugin_name().prop_map(|name| Op::DropPlugin { name }),
        3 => ("[fg]", plugin_name()).prop_map(|(name, plugin)| Op::PutFunction {
            function: FunctionDef {
                function: name.clone(),
                name,
                plugin,
                parameters: vec!["DOUBLE PRECISION".to_owned()],
                returns: "TEXT".to_owned(),
            },
        }),
        1 => "[fg]".prop_map(|name| Op::DropFunction { name }),
        3 => (1..4u64, proptest::collection::vec(transform(), 0..3)).prop_map(|(table, chain)| {
            Op::PutTransforms { table: TableId(table), chain }
        }),
        3 => (1..4u64).prop_map(|id| Op::PutTable { def: table(id) }),
        1 => (1..4u64).prop_map(|table| Op::DropTable { table: TableId(table) }),
        1 => (1..4u64).prop_map(|table| Op::Delete {
            table: TableId(table),
            inputs: Vec::new(),
            outputs: Vec::new(),
        }),
        2 => (retention_of(), proptest::option::of(0..9i64))
            .prop_map(|(of, retention_ns)| Op::SetRetention { of, retention_ns }),
        1 => (1..4u64, 1..9i64).prop_map(|(table, retention_ns)| Op::Expire {
            table: TableId(table),
            inputs: Vec::new(),
            outputs: Vec::new(),
            retention_ns,
        }),
        1 => "[de]".prop_map(|name| Op::CreateDatabase { name }),
        1 => "[de]".prop_map(|name| Op::DropDatabase { name }),
        4 => (continuous(), marks()).prop_map(|(query, marks)| Op::PutContinuous { query, marks }),
        1 => query_name().prop_map(|name| Op::DropContinuous { name }),
        2 => (0..3u128, marks(), 0..4u64).prop_map(|(id, marks, gone)| Op::AdvanceContinuous {
            advances: vec![Advance { id: Uuid::from_u128(id), marks, gone }],
        }),
        3 => alert().prop_map(|alert| Op::PutAlert { alert }),
        1 => "[ab]".prop_map(|name| Op::DropAlert { name }),
        2 => silence().prop_map(|silence| Op::PutSilence { silence }),
        1 => (0..3u64).prop_map(|id| Op::DropSilence { id }),
        2 => channel().prop_map(|channel| Op::PutChannel { channel }),
        1 => "[ab]".prop_map(|name| Op::DropChannel { name }),
    ]
}

fn query_name() -> impl Strategy<Value = QueryName> {
    (prop_oneof![Just("kymo"), Just("d")], "[vw]")
        .prop_map(|(database, name)| QueryName { database: database.to_owned(), name })
}

fn marks() -> impl Strategy<Value = BTreeMap<TableId, Mark>> {
    let mark = (any::<u64>(), proptest::option::of(any::<i64>())).prop_map(|(seq, newest)| Mark {
        position: Position { epoch: Epoch(2), seq: crate::ids::Seq(seq), ..Position::default() },
        newest,
    });
    proptest::collection::btree_map((1..4u64).prop_map(TableId), mark, 0..3)
}

fn continuous() -> impl Strategy<Value = ContinuousDef> {
    (
        (query_name(), 0..3u128, 1..4u64, settings()),
        proptest::option::of(1..9i64),
        proptest::option::of(1..9i64),
        proptest::option::of("[a-z]{0,4}"),
        any::<bool>(),
    )
        .prop_map(|((name, id, revision, settings), every_ns, lateness_ns, reason, policy)| {
            let raw = TableName::new("kymo", "cpu");
            ContinuousDef {
                id: Uuid::from_u128(id),
                name,
                revision,
                text: "SELECT 1".to_owned(),
                schema: "public".to_owned(),
                user: "ada".to_owned(),
                settings,
                target: TableName::new("kymo", "cpu_1m"),
                sources: vec![raw.clone()],
                every_ns,
                lateness_ns,
                policy: policy.then_some(Downsampling {
                    table: raw,
                    after_ns: 7,
                    width_ns: 1,
                    retained: true,
                }),
                created_ns: 3,
                paused: reason.map(|reason| Pause { reason, failed: true, since_ns: 5 }),
            }
        })
}

fn check(snapshot: &Snapshot) {
    let plugins: BTreeSet<&String> = snapshot.plugins.keys().collect();
    for (name, plugin) in snapshot.plugins.iter() {
        assert_eq!(*name, plugin.name);
        plugin.check().unwrap();
    }
    assert!(snapshot.functions.values().all(|each| plugins.contains(&each.plugin)));
    for (name, query) in snapshot.continuous.iter() {
        assert!(*name == query.name && snapshot.databases.contains(&name.database));
    }
    let queries: BTreeSet<Uuid> = snapshot.continuous.values().map(|query| query.id).collect();
    assert_eq!(queries, snapshot.cursors.keys().copied().collect());
    for (table, chain) in snapshot.transforms.iter() {
        assert!(snapshot.tables.contains_key(table) && !chain.is_empty());
        assert!(chain.iter().all(|each| plugins.contains(&each.plugin)));
    }
    let Retentions { databases, tables } = snapshot.retentions.as_ref();
    assert!(databases.iter().all(|(name, ns)| snapshot.databases.contains(name) && *ns > 0));
    assert!(tables.keys().all(|id| snapshot.tables.contains_key(id)));
}

#[test]
fn what_is_to_be_kept_longer_by_now_is_not_removed() {
    let apply = |snapshot: &Snapshot, op| snapshot.apply(&Edit { ops: vec![op], ..first_format() });
    let set = |of, retention_ns| Op::SetRetention { of, retention_ns };
    let (own, all) = (RetentionOf::Table(TableId(1)), RetentionOf::Database("kymo".to_owned()));
    let snapshot = apply(&Snapshot::default(), Op::PutTable { def: table(1) }).unwrap();
    let expire = |snapshot: &Snapshot, retention_ns| {
        let (inputs, outputs) = (Vec::new(), Vec::new());
        let op = Op::Expire { table: TableId(1), inputs, outputs, retention_ns };
        apply(snapshot, op).map(|_| ()).map_err(|error| error.code())
    };
    assert_eq!(expire(&snapshot, i64::MAX), Err(Code::Conflict));
    let by_database = apply(&snapshot, set(all.clone(), Some(10))).unwrap();
    assert_eq!(by_database.retention_ns(&table(1).name), Some(10));
    assert_eq!(expire(&by_database, 10), Ok(()));
    let longer = apply(&by_database, set(own.clone(), Some(20))).unwrap();
    assert_eq!((expire(&longer, 10), expire(&longer, 20)), (Err(Code::Conflict), Ok(())));
    let always = apply(&longer, set(own.clone(), Some(0))).unwrap();
    assert_eq!(
        (always.retention_ns(&table(1).name), expire(&always, 20)),
        (None, Err(Code::Conflict))
    );
    let reset = apply(&always, set(own, None)).unwrap();
    assert_eq!(reset.retention_ns(&table(1).name), Some(10));
    assert_eq!(apply(&reset, set(all, None)).unwrap().retention_ns(&table(1).name), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_edit_leaves_a_reference_without_its_object(
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        let (mut snapshot, mut replayed) = (Snapshot::default(), Snapshot::default());
        for (number, op) in ops.into_iter().enumerate() {
            let version = MetaVersion(number as u64 + 1);
            let edit = Edit { ops: vec![op], ..first_format() };
            let bytes = codec::encode_edits(version, std::slice::from_ref(&edit)).unwrap();
            let read = codec::decode_edits(Path::new("e"), version, &bytes).unwrap();
            prop_assert_eq!(&read, std::slice::from_ref(&edit));
            let Ok(next) = snapshot.apply(&edit) else { continue };
            snapshot = Snapshot { version, ..next };
            replayed = Snapshot { version, ..replayed.apply(&read[0]).unwrap() };
            check(&snapshot);
        }
        prop_assert_eq!(&replayed, &snapshot);
        let bytes = codec::encode_snapshot(&snapshot).unwrap();
        let read = codec::decode_snapshot(Path::new("s"), snapshot.version, &bytes).unwrap();
        prop_assert_eq!(read, snapshot);
    }
}

fn segment(table: TableId, time: TimeRange) -> SegmentMeta {
    SegmentMeta {
        id: SegmentId(ulid::Ulid(u128::from(table.0))),
        table,
        schema_version: 1,
        path: String::new(),
        bytes: 1,
        rows: 1,
        time,
        slots: (Slot(0), Slot(0)),
        key_min: Vec::new(),
        key_max: Vec::new(),
        partition: PartitionId::ONLY,
        seq_range: (Position::default(), Position::default()),
        level: 0,
        footer: 0,
        checksum: 0,
        late: None,
        columns: Vec::new(),
    }
}

#[test]
fn deletions_are_kept_until_a_target_reflects_them() {
    let times = |first| TimeRange { first, last: first + 1 };
    let mut cursor = Cursor::default();
    let all = MAX_GONE as u64 + 10;
    for number in 1..=all {
        cursor.delete(times(i64::try_from(number).unwrap() * 10));
    }
    assert_eq!((cursor.gone.len(), cursor.last_gone), (MAX_GONE, all));
    let joined = cursor.gone.first_key_value().unwrap();
    assert_eq!(joined, (&11, &TimeRange { first: 10, last: 111 }));
    let apply = |snapshot: &Snapshot, op| {
        snapshot.apply(&Edit { ops: vec![op], ..first_format() }).unwrap()
    };
    let id = Uuid::from_u128(1);
    let mut snapshot = apply(
        &Snapshot::default(),
        Op::PutContinuous {
            query: ContinuousDef {
                id,
                name: QueryName { database: "kymo".to_owned(), name: "v".to_owned() },
                revision: 1,
                text: String::new(),
                schema: String::new(),
                user: String::new(),
                settings: BTreeMap::new(),
                target: TableName::new("kymo", "out"),
                sources: vec![TableName::new("kymo", "cpu")],
                every_ns: None,
                lateness_ns: None,
                policy: None,
                created_ns: 0,
                paused: None,
            },
            marks: BTreeMap::new(),
        },
    );
    for (number, name) in [(1, "other"), (2, "cpu"), (3, "cpu")] {
        let id = TableId(snapshot.next_table.0);
        let def = TableDef { id, name: TableName::new("kymo", name), ..table(id.0) };
        let segment = segment(id, times(number));
        let inputs = vec![segment.id];
        let flushed_upto = Position::default();
        let segments = vec![segment];
        snapshot = apply(&snapshot, Op::PutTable { def });
        snapshot = apply(&snapshot, Op::AddSegments { table: id, segments, flushed_upto });
        snapshot = apply(&snapshot, Op::Delete { table: id, inputs, outputs: Vec::new() });
        snapshot = apply(&snapshot, Op::DropTable { table: id });
    }
    let advance = Advance { id, marks: BTreeMap::new(), gone: 1 };
    let snapshot = apply(&snapshot, Op::AdvanceContinuous { advances: vec![advance] });
    assert_eq!(snapshot.cursors[&id].gone, BTreeMap::from([(2, times(3))]));
}

#[test]
fn a_plugin_in_use_stays_and_a_stale_change_is_refused() {
    let digest = Digest::of(b"1");
    let plugin = PluginDef { active: Some(digest), ..kit::plugin::plugin("p", &[(digest, 1)]) };
    let function = FunctionDef {
        name: "f".to_owned(),
        plugin: "p".to_owned(),
        function: "g".to_owned(),
        parameters: Vec::new(),
        returns: "TEXT".to_owned(),
    };
    let apply = |snapshot: &Snapshot, op| snapshot.apply(&Edit { ops: vec![op], ..first_format() });
    let empty = Snapshot::default();
    let put_function = Op::PutFunction { function };
    assert_eq!(apply(&empty, put_function.clone()).unwrap_err().code(), Code::PluginNotFound);
    let put = Op::PutPlugin { plugin: plugin.clone() };
    let with = apply(&apply(&empty, put.clone()).unwrap(), put_function).unwrap();
    assert_eq!(apply(&with, put).unwrap_err().code(), Code::Conflict);
    let drop_plugin = Op::DropPlugin { name: "p".to_owned() };
    let error = apply(&with, drop_plugin.clone()).unwrap_err();
    assert!(error.message().contains("function \"f\""), "{error}");
    let without = apply(&with, Op::DropFunction { name: "f".to_owned() }).unwrap();
    assert!(apply(&without, drop_plugin).unwrap().plugins.is_empty());
    assert_eq!(plugin.find("1.0.0").unwrap().digest, Digest::of(b"1"));
    assert_eq!(plugin.find("2.0.0").unwrap_err().code(), Code::PluginNotFound);
}
