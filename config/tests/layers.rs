//! The layers from the outside: who wins, what is refused, and that the files beside the
//! crate tell the truth.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use kymo_config::load::{DEFAULT_TOML, REDACTED};
use kymo_config::{Flag, Problems, Settings, Sources, load, print};

/// A settings file that disappears with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kymo-{}-{name}.toml", std::process::id()));
        #[expect(clippy::disallowed_methods, reason = "a test writes its input file")]
        std::fs::write(&path, text).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "a test removes its input file")]
        let _ = std::fs::remove_file(&self.0);
    }
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn flag(name: &'static str, key: &'static str, value: &str) -> Flag {
    Flag { name, key, value: value.to_owned() }
}

fn refused(sources: &Sources) -> Problems {
    load(sources).expect_err("settings that cannot be used")
}

#[test]
fn default_toml_equals_the_defaults_in_the_code() {
    let from_file: Settings = toml::from_str(DEFAULT_TOML).unwrap();
    assert_eq!(from_file, Settings::default());
}

#[test]
fn default_toml_names_every_key_under_a_comment() {
    let shape = serde_json::to_value(Settings::default()).unwrap();
    let mut section = String::new();
    let mut named = Vec::new();
    let mut before = "";
    for line in DEFAULT_TOML.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        }
        let bare = line.trim_start_matches("# ");
        if let Some((key, _)) = bare.split_once(" = ")
            && shape[&section].get(key).is_some()
        {
            assert!(before.starts_with("# "), "{section}.{key} has no comment");
            named.push(format!("{section}.{key}"));
        }
        before = line;
    }
    for (section, keys) in shape.as_object().unwrap() {
        for key in keys.as_object().unwrap().keys() {
            let name = format!("{section}.{key}");
            assert!(named.contains(&name), "default.toml does not explain {name}");
        }
    }
}

#[test]
fn nothing_said_means_the_defaults() {
    assert_eq!(load(&Sources::default()).unwrap(), Settings::default());
}

#[test]
fn the_example_for_production_loads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("example.production.toml");
    let settings = load(&Sources { file: Some(path), ..Sources::default() }).unwrap();
    assert_eq!(settings.server.data_dir, Path::new("/var/lib/kymo"));
    assert!(settings.server.tls_key.is_some());
}

#[test]
fn later_layers_win() {
    let file = Scratch::new(
        "layers",
        "[server]\nhttp_port = 1\npg_port = 2\nmax_connections = 3\nio_threads = 4\n",
    );
    let settings = load(&Sources {
        file: Some(file.0.clone()),
        environment: environment(&[
            ("KYMO__SERVER__PG_PORT", "20"),
            ("KYMO__SERVER__MAX_CONNECTIONS", "30"),
            ("KYMO__NODE__ROLES", "ingest, query"),
            ("KYMO__AUTH__ADMIN_PASSWORD", "0042"),
            ("KYMO_URL", "http://not-a-setting"),
            ("PATH", "/bin"),
        ]),
        flags: vec![flag("--pg-port", "server.pg_port", "200")],
    })
    .unwrap();
    let server = &settings.server;
    assert_eq!(
        (server.http_port, server.pg_port, server.max_connections, server.io_threads),
        (1, 200, 30, 4)
    );
    assert_eq!(settings.node.roles, ["ingest", "query"]);
    assert_eq!(settings.auth.admin_password.as_deref(), Some("0042"));
}

#[test]
fn all_problems_are_named_at_once_with_their_place_and_a_way_out() {
    let file = Scratch::new(
        "problems",
        "[server]\nhttp_prot = 80\nhttp_port = 70000\n[jurnal]\nx = 1\n[memtable]\n\
         table_bytes = 1.5\nsoft_bytes = 9\nhard_bytes = 8\n",
    );
    let problems = refused(&Sources {
        file: Some(file.0.clone()),
        environment: environment(&[("KYMO__QUERY__THREADS", "many")]),
        flags: vec![flag("--durability", "journal.durability", "maybe")],
    });
    let path = file.0.display().to_string();
    let expected = [
        ("journal.durability", "flag --durability", "every_write"),
        ("jurnal", path.as_str(), "did you mean journal?"),
        ("memtable.soft_bytes", path.as_str(), "raise hard"),
        ("memtable.table_bytes", path.as_str(), "67108864"),
        ("query.threads", "environment KYMO__QUERY__THREADS", "the default is 0"),
        ("server.http_port", path.as_str(), "7878"),
        ("server.http_prot", path.as_str(), "did you mean http_port?"),
    ];
    let keys: Vec<_> = problems.0.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, expected.map(|(key, _, _)| key), "{problems}");
    for (problem, (key, place, hint)) in problems.0.iter().zip(expected) {
        assert!(problem.place.contains(place), "place of {key}: {}", problem.place);
        assert!(problem.hint.contains(hint), "hint of {key}: {}", problem.hint);
    }
    assert!(problems.to_string().starts_with("7 problems in the settings\n  - journal.durability"));
}

#[test]
fn wrong_types_are_not_bent_until_they_fit() {
    let file = Scratch::new(
        "types",
        "[server]\nhttp_host = 5\nio_threads = true\n[auth]\nenabled = 1\n[compaction]\nenabled = \"no\"\n",
    );
    let problems = refused(&Sources { file: Some(file.0.clone()), ..Sources::default() });
    let keys: Vec<_> = problems.0.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(
        keys,
        ["auth.enabled", "compaction.enabled", "server.http_host", "server.io_threads"]
    );
}

#[test]
fn a_file_that_is_missing_or_broken_is_named() {
    let missing =
        refused(&Sources { file: Some("/no/such/kymo.toml".into()), ..Sources::default() });
    assert_eq!(missing.0[0].place, "file /no/such/kymo.toml");
    let file = Scratch::new("broken", "[server]\nhttp_port = \n");
    let broken = refused(&Sources { file: Some(file.0.clone()), ..Sources::default() });
    assert!(broken.0[0].what.contains("line 2"), "{broken}");
}

#[test]
fn printed_settings_load_again_and_hide_the_password() {
    let mut settings = Settings::default();
    settings.server.http_port = 99;
    let printed = print(&settings);
    let file = Scratch::new("printed", &printed);
    let again = load(&Sources { file: Some(file.0.clone()), ..Sources::default() }).unwrap();
    assert_eq!(again, settings);

    settings.auth.admin_password = Some("open sesame".to_owned());
    let printed = print(&settings);
    assert!(!printed.contains("sesame"));
    assert!(printed.contains(REDACTED));

    let mut settings = Settings::default();
    settings.storage.secret_access_key = "open sesame".to_owned();
    let printed = print(&settings);
    assert!(!printed.contains("sesame") && printed.contains(REDACTED), "{printed}");
}

#[test]
fn channels_of_alerts_are_tables_by_name_whose_secret_is_not_printed() {
    let text = "[alerts.channels.ops]\ntype = \"webhook\"\nurl = \"http://localhost:1/a\"\n\
                secret = \"sesame\"\n[alerts.channels.am]\ntype = \"alertmanager\"\n\
                url = \"http://localhost:2\"\n";
    let file = Scratch::new("channels", text);
    let sources = Sources { file: Some(file.0.clone()), ..Sources::default() };
    let settings = load(&sources).unwrap();
    let channels = &settings.alerts.channels;
    assert_eq!(channels.keys().collect::<Vec<_>>(), ["am", "ops"]);
    assert_eq!(channels["ops"].secret, "sesame");
    let printed = print(&settings);
    assert!(!printed.contains("sesame") && printed.contains(REDACTED), "{printed}");

    for (wrong, says) in [
        ("channels = 1", "a table"),
        ("[alerts.channels.ops]\ntype = \"pigeon\"", "pigeon"),
        ("[alerts.channels.ops]\ntype = \"webhook\"", "the url \"\""),
        ("[alerts.channels.ops]\ntype = \"log\"\nsecret = \"x\"", "nothing uses"),
        ("[alerts.channels.ops]\ntype = \"log\"\ncolour = \"x\"", "colour"),
    ] {
        let text =
            if wrong.starts_with('[') { wrong.to_owned() } else { format!("[alerts]\n{wrong}") };
        let file = Scratch::new("channel", &text);
        let problems = refused(&Sources { file: Some(file.0.clone()), ..Sources::default() });
        assert!(problems.to_string().contains(says), "{wrong}: {problems}");
    }
}
