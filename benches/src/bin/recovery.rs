//! What opening a store takes after much history, and after a crash with much in its journal:
//!
//! ```sh
//! cargo run --release -p kymo-benches --bin recovery -- segments journal
//! ```
//!
//! `segments` makes a store of very many flushed segments in very many edits of the metadata;
//! `journal` one whose rows are all in the journal, some gigabytes of them. Both are opened by
//! processes of their own, so that what a process took at most is what opening took. `--keep
//! FOLDER` leaves the stores there, for a server to be started on.

#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::Int32Type;
use clap::{Parser, ValueEnum};
use kymo_benches::server::{Resident, exit, mib, resident, text};
use kymo_config::Settings;
use kymo_kernel::env::real;
use kymo_kernel::ids::{ColumnId, TableId};
use kymo_kernel::message::Durability;
use kymo_kernel::schema::{
    Column, ColumnKind, FieldType, TableDef, TableName, TableOptions, TableSchema,
};
use kymo_kernel::storage::log::{Record, RecordGroup};
use kymo_kernel::storage::meta::Op;
use kymo_kernel::storage::{Progress, Store};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Opening a store with much history, or with much in its journal.
#[derive(Debug, Parser)]
struct Arguments {
    /// Segments of the store with history
    #[arg(long, default_value_t = 10_000)]
    segments: i64,
    /// MiB in the journal of the store that crashed
    #[arg(long, default_value_t = 2048)]
    journal_mib: u64,
    /// Bytes of rows in memory while the journal is read [default: that of the settings]
    #[arg(long)]
    replay_bytes: Option<u64>,
    /// How often each is opened
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where the stores are made, and stay
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// Open the store in this folder, and say what that took
    #[arg(long, hide = true)]
    open: Option<PathBuf>,
    /// What to do, in this order
    #[arg(required_unless_present = "open")]
    what: Vec<What>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    Segments,
    Journal,
}

fn main() -> ExitCode {
    exit(run(&Arguments::parse()).map_err(text))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let mut settings = Settings::default();
    settings.journal.replay_bytes = arguments.replay_bytes.unwrap_or(settings.journal.replay_bytes);
    if let Some(folder) = &arguments.open {
        return open(folder, &settings);
    }
    let scratch = tempfile::tempdir()?;
    let above = arguments.keep.as_deref().unwrap_or(scratch.path());
    for what in &arguments.what {
        let folder = above.join(format!("{what:?}").to_lowercase());
        match what {
            What::Segments => make_segments(&folder, arguments.segments)?,
            What::Journal => make_journal(&folder, arguments.journal_mib << 20)?,
        }
        for _ in 0..arguments.rounds {
            let mut child = Command::new(std::env::current_exe()?);
            child.arg("--open").arg(&folder);
            if let Some(bytes) = arguments.replay_bytes {
                child.arg("--replay-bytes").arg(bytes.to_string());
            }
            if !child.status()?.success() {
                return Err("the store did not open".into());
            }
        }
    }
    Ok(())
}

/// Opens a store and says what that took.
fn open(folder: &Path, settings: &Settings) -> Outcome<()> {
    let before = memory()?;
    let mut last = Progress::default();
    let start = Instant::now();
    let store = Store::open(real::env(), folder.into(), settings, &mut |at| last = at)?;
    let took = start.elapsed();
    println!(
        "{} segments, {:.0} MiB of journal with {} rows: open in {:.3} s, memory {:.0} MiB before \
         and {:.0} MiB at most, rows may take {:.0} MiB",
        store.stats().segments,
        mib(last.total_bytes),
        last.rows,
        took.as_secs_f64(),
        mib(before.now),
        mib(memory()?.peak),
        mib(settings.journal.replay_bytes)
    );
    // As a crash leaves it: what was in the journal is there at the next opening.
    std::process::exit(0);
}

fn memory() -> Outcome<Resident> {
    Ok(resident(std::process::id()).ok_or("the system does not tell memory")?)
}

fn table(id: TableId, name: &str) -> TableDef {
    let columns = vec![
        Column::new(ColumnId(1), "host", ColumnKind::Tag, FieldType::Text),
        Column::new(ColumnId(2), "time", ColumnKind::Time, FieldType::Timestamp),
        Column::new(ColumnId(3), "value", ColumnKind::Field, FieldType::Int64),
    ];
    TableDef {
        id,
        name: TableName::new("kymo", name),
        schema: TableSchema { version: 1, columns },
        options: TableOptions::default(),
    }
}

/// Rows whose values do not compress.
fn batch(def: &TableDef, times: impl Iterator<Item = i64> + Clone) -> Outcome<RecordBatch> {
    let scatter = |time: i64| {
        let mixed = (time ^ (time << 17)).wrapping_mul(0x1e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0x3f58_476d_1ce4_e5b9)
    };
    let hosts: DictionaryArray<Int32Type> = times.clone().map(|_| "a").collect();
    let values: Int64Array = times.clone().map(scatter).map(Some).collect();
    let times = TimestampNanosecondArray::from_iter_values(times).with_timezone("+00:00");
    let columns: Vec<ArrayRef> = vec![Arc::new(hosts), Arc::new(times), Arc::new(values)];
    Ok(RecordBatch::try_new(def.schema.arrow(), columns)?)
}

/// An empty store, and a function that says how long making its content took.
fn begin(folder: &Path) -> Outcome<Arc<Store>> {
    if folder.exists() {
        return Err(format!("{} exists: name a new folder with --keep", folder.display()).into());
    }
    Ok(Store::open(real::env(), folder.into(), &Settings::default(), &mut |_| {})?)
}

fn create(store: &Store, at: u64) -> Outcome<Arc<TableDef>> {
    let def = table(store.catalog().next_table, &format!("t{at}"));
    store.commit(vec![Op::PutTable { def: def.clone() }])?;
    Ok(Arc::new(def))
}

/// A row in each window of time of ten tables becomes a segment of its own; they come in many
/// edits, as history has it, of which some are in the checkpoint and some behind it.
fn make_segments(folder: &Path, segments: i64) -> Outcome<()> {
    const TABLES: i64 = 10;
    const EDIT: usize = 50;
    let start = Instant::now();
    let store = begin(folder)?;
    for at in 0..TABLES {
        let def = create(&store, at.unsigned_abs())?;
        let mut state = store.claim(def.id)?;
        let window = def.options.window_ns;
        let rows = batch(&def, (0..segments / TABLES).map(move |at| at * window))?;
        state.apply(append(&store, &def, &rows, Durability::EveryWrite)?, rows)?;
        let frozen = state.freeze().ok_or("no rows to flush")?;
        let written = store.write_frozen(&def, &frozen)?;
        for piece in written.chunks(EDIT) {
            let segments = piece.to_vec();
            let flushed_upto = frozen.span.last;
            store.commit(vec![Op::AddSegments { table: def.id, segments, flushed_upto }])?;
        }
    }
    let edits = store.catalog().version;
    store.close();
    let made = start.elapsed();
    println!("a store of {segments} segments and {edits} edits, made in {}", seconds(made));
    Ok(())
}

fn make_journal(folder: &Path, bytes: u64) -> Outcome<()> {
    const RECORDS: i64 = 300;
    const ROWS: i64 = 5000;
    let start = Instant::now();
    let store = begin(folder)?;
    for at in 0.. {
        let def = create(&store, at)?;
        for record in 0..RECORDS {
            let rows = batch(&def, record * ROWS..(record + 1) * ROWS)?;
            let last = record + 1 == RECORDS;
            let durability = if last { Durability::EveryWrite } else { Durability::None };
            append(&store, &def, &rows, durability)?;
        }
        if store.stats().log_written_bytes >= bytes {
            break;
        }
    }
    let written = store.stats().log_written_bytes;
    store.close();
    let made = seconds(start.elapsed());
    println!("a journal of {:.0} MiB, made in {made}", mib(written));
    Ok(())
}

/// Journals a record, and gives its position.
fn append(
    store: &Store,
    def: &TableDef,
    rows: &RecordBatch,
    durability: Durability,
) -> Outcome<kymo_kernel::ids::Position> {
    let record = Record::encode(def.id, def.schema.version, rows)?;
    let (sender, receiver) = mpsc::channel();
    // Whoever waits is below.
    let done = move |outcome: kymo_kernel::Result<_>| drop(sender.send(outcome));
    store.log().append(RecordGroup::of(record), durability, Box::new(done));
    Ok(receiver.recv()??)
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}
