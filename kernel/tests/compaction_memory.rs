//! The memory of a merge, counted: what the allocator hands out while one runs stays within what
//! it is allowed, and without that bound the same merge takes more.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use arrow::array::{Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use kymo_config::settings::{Compaction, Segment};
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::sim::Sim;
use kymo_kernel::ids::{ColumnId, Epoch, PartitionId, Position, Seq, TableId};
use kymo_kernel::schema::{
    Column, ColumnKind, FieldType, TableDef, TableName, TableOptions, TableSchema,
};
use kymo_kernel::storage::compact;
use kymo_kernel::storage::segment::{LocalSegments, Target, flush};
use kymo_kernel::storage::version::{SegmentFiles, TableState};

/// Counts what the thread that asks has in use, and the most that it ever had.
struct Counting;

thread_local! {
    static USED: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is ending has nothing to count with any more.
    let _ = USED.try_with(|used| {
        used.set(used.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(used.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;
const SEGMENTS: u64 = 24;
const ROWS: i64 = 1500;

fn table() -> TableDef {
    let columns = vec![
        Column::new(ColumnId(1), "time", ColumnKind::Time, FieldType::Timestamp),
        Column::new(ColumnId(2), "value", ColumnKind::Field, FieldType::Float64),
        Column::new(ColumnId(3), "text", ColumnKind::Field, FieldType::Text),
    ];
    TableDef {
        id: TableId(1),
        name: TableName::new("kymo", "wide"),
        schema: TableSchema { version: 1, columns },
        options: TableOptions { append_only: false, window_ns: 1 << 50, ..TableOptions::default() },
    }
}

/// Rows of about 2 KiB that take turns with those of all other segments.
fn batch(segment: u64) -> RecordBatch {
    let times = (0..ROWS).map(|row| row * SEGMENTS as i64 + segment as i64);
    let text = |time: i64| format!("{time:02048}");
    let texts: StringArray = times.clone().map(|time| Some(text(time))).collect();
    let values: Float64Array = times.clone().map(|time| Some(time as f64)).collect();
    let times = TimestampNanosecondArray::from_iter_values(times).with_timezone("+00:00");
    let schema = table().schema.arrow();
    RecordBatch::try_new(schema, vec![Arc::new(times), Arc::new(values), Arc::new(texts)]).unwrap()
}

/// The most that a merge has in use at a time within a budget, and how many inputs it takes.
fn merge(memory_bytes: u64) -> (usize, usize) {
    let sim = Sim::new(1);
    let store = Arc::new(LocalSegments::new(sim.disk.clone(), "/store".into()));
    let files = SegmentFiles::new(store.clone(), MIB);
    let target = Target { store, env: sim.env(), settings: Segment::default() };
    let at = |seq| Position { partition: PartitionId::ONLY, epoch: Epoch(1), seq: Seq(seq) };
    let mut state = TableState::open(Arc::new(table()), [], at(0), files);
    for segment in 0..SEGMENTS {
        state.apply(at(segment + 1), batch(segment)).unwrap();
        let frozen = state.freeze().unwrap();
        let def = state.table().clone();
        let segments = flush(&target, &def, &frozen, &CancelToken::new()).unwrap();
        state.flushed(&frozen, segments.into_iter().map(Arc::new)).unwrap();
    }
    let settings = Compaction { memory_bytes, ..Compaction::default() };
    let job = compact::pick(&state.cell().load(), &settings, i64::MAX).unwrap();
    assert_eq!(job.inputs.len() as u64, SEGMENTS);
    let job = compact::narrow(job).unwrap();
    let disk = sim.disk.used() as isize;
    let before = USED.get();
    MOST.set(before);
    let merged = compact::run(&job, &target, &CancelToken::new(), &mut |_| {}).unwrap();
    // The simulated disk keeps files in memory: what was written does not count.
    let written = sim.disk.used() as isize - disk;
    assert_eq!(merged.segment.unwrap().rows, ROWS as u64 * job.inputs.len() as u64);
    ((MOST.get() - before - written).max(0) as usize, job.inputs.len())
}

#[test]
fn a_merge_stays_within_its_memory() {
    let (most, inputs) = merge(1024 * MIB as u64);
    println!("without a bound: {inputs} inputs, {} KiB", most >> 10);
    assert_eq!(inputs as u64, SEGMENTS);
    let free = most;
    for budget in [64 * MIB, 32 * MIB, 16 * MIB] {
        let (most, inputs) = merge(budget as u64);
        println!("within {} MiB: {inputs} inputs, {} KiB", budget >> 20, most >> 10);
        assert!(most <= budget, "{most} bytes of {budget}");
        assert!(inputs >= 2);
        assert!(most < free, "the bound makes a difference: {most} of {free}");
    }
}
