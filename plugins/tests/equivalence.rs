//! A plugin is its native code: over random batches with nulls, in slices, in dictionaries and
//! empty; in parts that are merged; and in states that another process merges.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test reads its files")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array,
    RecordBatch, StringArray, UInt16Array, UInt32Array,
};
use arrow::compute::{cast, concat, take};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, UInt32Type};
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use kymo_config::settings::Plugins;
use kymo_plugins::{Accumulator, Argument, Emit, PluginFunction, QueryPlugins};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use support::{Bench, bench, function, start};

/// Cases of each property.
const CASES: u32 = 200;

fn runner() -> TestRunner {
    TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() })
}

fn wasm(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(name);
    std::fs::read(folder.join(format!("{name}.wasm"))).unwrap()
}

/// What a random batch looks like; what is in it follows from the seed.
#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    /// Rows of the array that lie before the batch and after it.
    before: usize,
    after: usize,
    /// Of 256 rows, how many are null.
    nulls: u64,
    seed: u64,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let rows = prop_oneof![1 => Just(0usize), 4 => 1usize..200, 3 => 1usize..20_000];
    let nulls = prop_oneof![Just(0u64), 1u64..256, Just(256)];
    (rows, 0usize..70, 0usize..70, nulls, any::<u64>())
        .prop_map(|(rows, before, after, nulls, seed)| Shape { rows, before, after, nulls, seed })
}

/// Numbers that follow from a seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % most as u64).unwrap()
    }
}

impl Shape {
    /// The batch, a slice of a larger array, by what its rows are.
    fn slice<T>(self, salt: u64, value: impl Fn(&mut Numbers) -> T) -> Vec<Option<T>> {
        let mut numbers = Numbers(self.seed ^ salt);
        let rows = self.before + self.rows + self.after;
        (0..rows)
            .map(|_| {
                let null = numbers.next() % 256 < self.nulls;
                let value = value(&mut numbers);
                (!null).then_some(value)
            })
            .collect()
    }

    fn cut<A: Array + Clone + 'static>(self, array: A) -> ArrayRef {
        let whole: ArrayRef = Arc::new(array);
        whole.slice(self.before, self.rows)
    }

    /// Doubles: ordinary ones, and sometimes any bits at all.
    fn doubles(self, salt: u64) -> ArrayRef {
        let value = |numbers: &mut Numbers| match numbers.below(16) {
            0 => f64::from_bits(numbers.next()),
            _ => (numbers.next() as i64 >> 20) as f64 / 1024.0,
        };
        self.cut(Float64Array::from(self.slice(salt, value)))
    }

    fn longs(self, salt: u64) -> ArrayRef {
        self.cut(Int64Array::from(self.slice(salt, |numbers| numbers.next() as i64)))
    }

    /// Numbers whose sums are exact.
    fn small(self, salt: u64) -> ArrayRef {
        let value = |numbers: &mut Numbers| numbers.below(2001) as f64 - 1000.0;
        self.cut(Float64Array::from(self.slice(salt, value)))
    }

    fn texts(self, salt: u64) -> ArrayRef {
        self.cut(StringArray::from(self.slice(salt, text)))
    }

    /// Texts in a dictionary, in which values may be null, equal, or in no row at all.
    fn tags(self, salt: u64) -> ArrayRef {
        let mut numbers = Numbers(self.seed ^ !salt);
        let count = 1 + numbers.below(40);
        let values: StringArray =
            (0..count).map(|_| (numbers.below(8) > 0).then(|| text(&mut numbers))).collect();
        let key = |numbers: &mut Numbers| numbers.below(count);
        let keys = self.slice(salt, key);
        if self.seed.is_multiple_of(2) {
            let keys: UInt16Array =
                keys.into_iter().map(|key| key.map(|key| u16::try_from(key).unwrap())).collect();
            return self.cut(DictionaryArray::new(keys, Arc::new(values)));
        }
        let keys: Int32Array =
            keys.into_iter().map(|key| key.map(|key| i32::try_from(key).unwrap())).collect();
        self.cut(DictionaryArray::new(keys, Arc::new(values)))
    }
}

fn text(numbers: &mut Numbers) -> String {
    const LETTERS: [&str; 6] = ["a", "Z", "ß", "€", "😀", " "];
    (0..numbers.below(6)).map(|_| LETTERS[numbers.below(LETTERS.len())]).collect()
}

/// The overload that takes these arguments.
fn overload(function: &PluginFunction, arguments: &[Argument]) -> usize {
    let plain = |data_type: &DataType| match data_type {
        DataType::Dictionary(_, values) => values.as_ref().clone(),
        other => other.clone(),
    };
    let given: Vec<_> = arguments.iter().map(|each| plain(each.array().data_type())).collect();
    let takes = |parameters: &[Field]| parameters.iter().map(Field::data_type).eq(given.iter());
    function.function().overloads.iter().position(|each| takes(&each.parameters)).unwrap()
}

fn column(array: &ArrayRef) -> Argument {
    Argument::Column(array.clone())
}

/// The rows of a result, doubles by their bits.
fn bits(array: &ArrayRef) -> Vec<Option<u64>> {
    let bits = |value: f64| if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() };
    array.as_primitive::<Float64Type>().iter().map(|value| value.map(bits)).collect()
}

#[test]
fn numbers_are_answered_as_by_native_code() {
    let bench = bench(|_| ());
    let golden = bench.publish("golden", &wasm("golden-0.1.0"));
    let c2f = bench.publish("c2f", &wasm("c2f"));
    let query = bench.query();
    let call = |function: &PluginFunction, arguments: &[Argument], rows: usize| {
        query.scalar(function, overload(function, arguments), arguments, rows).unwrap()
    };
    let (twice, above, first) =
        (function(&golden, "twice"), function(&golden, "above"), function(&golden, "first_of"));
    let c2f = function(&c2f, "c2f");
    let run = |(one, other): (Shape, Shape)| {
        // Two columns of one batch that begin at different places of their arrays.
        let other = Shape { rows: one.rows, ..other };
        let (x, y, n) = (one.doubles(1), other.doubles(2), one.longs(3));
        let (xs, ys) = (x.as_primitive::<Float64Type>(), y.as_primitive::<Float64Type>());
        let native = |of: fn(f64) -> f64| -> ArrayRef {
            Arc::new(xs.iter().map(|value| value.map(of)).collect::<Float64Array>())
        };
        let rows = one.rows;
        prop_assert_eq!(bits(&call(&twice, &[column(&x)], rows)), bits(&native(|x| 2.0 * x)));
        prop_assert_eq!(bits(&call(&c2f, &[column(&x)], rows)), bits(&native(|x| x * 1.8 + 32.0)));
        let doubled: Int64Array = n
            .as_primitive::<arrow::datatypes::Int64Type>()
            .iter()
            .map(|value| value.map(|value| value.wrapping_mul(2)))
            .collect();
        let doubled: ArrayRef = Arc::new(doubled);
        prop_assert_eq!(&call(&twice, &[column(&n)], rows), &doubled);
        let found = call(&above, &[column(&x), column(&y)], rows);
        let native: BooleanArray = xs.iter().zip(ys.iter()).map(|(x, y)| Some(x? > y?)).collect();
        prop_assert_eq!(found.as_boolean(), &native);
        let found = call(&first, &[column(&x), column(&y)], rows);
        let native: ArrayRef =
            Arc::new(xs.iter().zip(ys.iter()).map(|(x, y)| x.or(y)).collect::<Float64Array>());
        prop_assert_eq!(bits(&found), bits(&native));
        let constant = Argument::Constant(Arc::new(Float64Array::from(vec![0.5])));
        let found = call(&above, &[column(&x), constant], rows);
        let native: BooleanArray = xs.iter().map(|x| Some(x? > 0.5)).collect();
        prop_assert_eq!(found.as_boolean(), &native);
        Ok(())
    };
    runner().run(&(shapes(), shapes()), run).unwrap();
}

#[test]
fn texts_and_their_dictionaries_are_answered_as_by_native_code() {
    let bench = bench(|_| ());
    let golden = bench.publish("golden", &wasm("golden-0.1.0"));
    let reversed = function(&golden, "reversed");
    let query = bench.query();
    let native = |texts: &ArrayRef| -> StringArray {
        let texts = cast(texts, &DataType::Utf8).unwrap();
        let reverse = |text: &str| text.chars().rev().collect::<String>();
        texts.as_string::<i32>().iter().map(|text| text.map(reverse)).collect()
    };
    let run = |shape: Shape| {
        for texts in [shape.texts(1), shape.tags(2)] {
            let before = golden.stats().counts().rows;
            let found = query.scalar(&reversed, 0, &[column(&texts)], shape.rows).unwrap();
            prop_assert_eq!(found.as_string::<i32>(), &native(&texts));
            if let Some(dictionary) = texts.as_any_dictionary_opt() {
                let asked = golden.stats().counts().rows - before;
                let most = dictionary.values().len().min(shape.rows);
                prop_assert!(asked <= most as u64, "{} rows for {} values", asked, most);
            }
        }
        Ok(())
    };
    runner().run(&shapes(), run).unwrap();
}

/// Rows of an aggregate: values, and the group of each.
struct Rows {
    values: ArrayRef,
    groups: Vec<u32>,
    total: u32,
    passes: Option<BooleanArray>,
}

impl Rows {
    fn new(shape: Shape) -> Rows {
        let mut numbers = Numbers(shape.seed);
        let total = u32::try_from(1 + numbers.below(300)).unwrap();
        let groups = (0..shape.rows).map(|_| numbers.below(total as usize) as u32).collect();
        let passes = (numbers.below(2) == 0).then(|| {
            (0..shape.rows).map(|_| [Some(true), Some(false), None][numbers.below(3)]).collect()
        });
        let mut values = shape.small(7);
        if numbers.below(3) == 0 {
            let of = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Float64));
            values = cast(&values, &of).unwrap();
        }
        Rows { values, groups, total, passes }
    }

    /// So many ends of parts, in order, the last of them that of the rows.
    fn cuts(&self, numbers: &mut Numbers, parts: usize) -> Vec<usize> {
        let rows = self.groups.len();
        let mut cuts: Vec<usize> = (1..parts).map(|_| numbers.below(rows + 1)).collect();
        cuts.push(rows);
        cuts.sort_unstable();
        cuts
    }

    fn part(&self, from: usize, to: usize) -> Rows {
        Rows {
            values: self.values.slice(from, to - from),
            groups: self.groups[from..to].to_vec(),
            total: self.total,
            passes: self.passes.as_ref().map(|passes| passes.slice(from, to - from)),
        }
    }

    /// The same rows with groups numbered as they first appear, and the group of each number:
    /// what a worker that has seen only these rows does.
    fn renumbered(&self) -> (Rows, Vec<u32>) {
        let mut known: Vec<u32> = Vec::new();
        let mut number = |group: u32| match known.iter().position(|each| *each == group) {
            Some(at) => at as u32,
            None => {
                known.push(group);
                known.len() as u32 - 1
            }
        };
        let groups = self.groups.iter().map(|group| number(*group)).collect();
        let part = self.part(0, self.groups.len());
        (Rows { groups, total: known.len() as u32, ..part }, known)
    }

    /// The values that count, by group.
    fn by_group(&self) -> Vec<Vec<f64>> {
        let values = cast(&self.values, &DataType::Float64).unwrap();
        let values = values.as_primitive::<Float64Type>();
        let mut found = vec![Vec::new(); self.total as usize];
        for (row, group) in self.groups.iter().enumerate() {
            let passes =
                self.passes.as_ref().is_none_or(|each| each.is_valid(row) && each.value(row));
            if passes && values.is_valid(row) {
                found[*group as usize].push(values.value(row));
            }
        }
        found
    }

    fn means(&self) -> Vec<Option<f64>> {
        let mean = |values: &Vec<f64>| {
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        self.by_group().iter().map(mean).collect()
    }
}

/// An aggregate of one numeric column and of constants.
struct Aggregate<'a> {
    query: Arc<QueryPlugins>,
    function: PluginFunction,
    constants: &'a [f64],
}

impl Aggregate<'_> {
    fn open(&self) -> Accumulator {
        Accumulator::open(&self.query, &self.function, 0).unwrap()
    }

    fn update(&self, accumulator: &mut Accumulator, rows: &Rows) {
        let mut arguments = vec![rows.values.clone()];
        for constant in self.constants {
            let column = Float64Array::from(vec![*constant; rows.groups.len()]);
            arguments.push(Arc::new(column));
        }
        let (groups, passes) = (Some(rows.groups.as_slice()), rows.passes.as_ref());
        accumulator.update(&arguments, groups, rows.total, passes).unwrap();
    }

    /// In one accumulator, in batches.
    fn whole(&self, rows: &Rows, numbers: &mut Numbers) -> ArrayRef {
        let mut accumulator = self.open();
        let mut from = 0;
        let batches = 1 + numbers.below(4);
        for to in rows.cuts(numbers, batches) {
            self.update(&mut accumulator, &rows.part(from, to));
            from = to;
        }
        accumulator.evaluate(Emit::All).unwrap()
    }

    /// The states of workers that each had a part of the rows: the columns of the state, and
    /// the group of each of their rows.
    fn parts(&self, rows: &Rows, numbers: &mut Numbers) -> Vec<(Vec<ArrayRef>, Vec<u32>)> {
        let mut from = 0;
        let mut states = Vec::new();
        let parts = 1 + numbers.below(4);
        for to in rows.cuts(numbers, parts) {
            let (part, known) = rows.part(from, to).renumbered();
            from = to;
            let mut accumulator = self.open();
            self.update(&mut accumulator, &part);
            // In two emissions, as with input that is ordered by its groups.
            let first = numbers.below(known.len() + 1);
            let one = accumulator.state(Emit::First(first as u32)).unwrap();
            let other = accumulator.state(Emit::All).unwrap();
            let join = |(one, other): (&ArrayRef, &ArrayRef)| {
                concat(&[one.as_ref(), other.as_ref()]).unwrap()
            };
            states.push((one.iter().zip(&other).map(join).collect(), known));
        }
        // Whoever is ready first is merged first.
        let turn = numbers.below(states.len());
        states.rotate_left(turn);
        states
    }

    fn merged(&self, states: &[(Vec<ArrayRef>, Vec<u32>)], total: u32) -> ArrayRef {
        let mut accumulator = self.open();
        for (state, groups) in states {
            accumulator.merge(state, Some(groups), total).unwrap();
        }
        // Groups that nobody has a row of are there all the same.
        let empty: ArrayRef = Arc::new(Float64Array::from(Vec::<f64>::new()));
        let nothing = vec![empty; 1 + self.constants.len()];
        accumulator.update(&nothing, Some(&[]), total, None).unwrap();
        accumulator.evaluate(Emit::All).unwrap()
    }
}

fn doubles(array: &ArrayRef) -> Vec<Option<f64>> {
    array.as_primitive::<Float64Type>().iter().collect()
}

fn mean(bench: &Bench) -> Aggregate<'static> {
    let golden = bench.publish("golden", &wasm("golden-0.1.0"));
    let function = function(&golden, "golden_mean");
    Aggregate { query: bench.query(), function, constants: &[] }
}

#[test]
fn groups_are_answered_as_by_native_code_whole_and_in_parts() {
    let bench = bench(|_| ());
    let mean = mean(&bench);
    let run = |shape: Shape| {
        let rows = Rows::new(shape);
        let mut numbers = Numbers(!shape.seed);
        let native = rows.means();
        prop_assert_eq!(&doubles(&mean.whole(&rows, &mut numbers)), &native);
        let states = mean.parts(&rows, &mut numbers);
        prop_assert_eq!(&doubles(&mean.merged(&states, rows.total)), &native);
        Ok(())
    };
    runner().run(&shapes(), run).unwrap();
    drop(mean);
    assert_eq!(bench.host.engine().instances(), 0);
}

#[test]
fn rows_that_were_taken_out_again_leave_no_trace() {
    let bench = bench(|_| ());
    let mean = mean(&bench);
    let run = |(kept, gone): (Shape, Shape)| {
        let (kept, gone) = (kept.small(1), gone.small(2));
        let mut accumulator = mean.open();
        accumulator.update(std::slice::from_ref(&gone), None, 1, None).unwrap();
        accumulator.update(std::slice::from_ref(&kept), None, 1, None).unwrap();
        accumulator.retract(&[gone], None, None).unwrap();
        let kept: Vec<f64> = kept.as_primitive::<Float64Type>().iter().flatten().collect();
        let native = (!kept.is_empty()).then(|| kept.iter().sum::<f64>() / kept.len() as f64);
        prop_assert_eq!(doubles(&accumulator.evaluate(Emit::All).unwrap()), [native]);
        Ok(())
    };
    runner().run(&(shapes(), shapes()), run).unwrap();
}

/// How far, in shares of the rows, a value is from being this quantile.
fn distance(values: &[f64], quantile: f64, found: f64) -> f64 {
    let share = |below: usize| below as f64 / values.len() as f64;
    let below = share(values.iter().filter(|value| **value < found).count());
    let upto = share(values.iter().filter(|value| **value <= found).count());
    if quantile < below { below - quantile } else { (quantile - upto).max(0.0) }
}

#[test]
fn a_sketch_stays_within_its_error_whole_and_in_parts() {
    let bench = bench(|_| ());
    let tdigest = bench.publish("tdigest", &wasm("tdigest"));
    let function = function(&tdigest, "tdigest_quantile");
    let run = |(shape, quantile): (Shape, f64)| {
        let constants = [quantile];
        let query = bench.query();
        let sketch = Aggregate { query, function: function.clone(), constants: &constants };
        let rows = Rows::new(shape);
        let mut numbers = Numbers(!shape.seed);
        let native = rows.by_group();
        let whole = doubles(&sketch.whole(&rows, &mut numbers));
        let states = sketch.parts(&rows, &mut numbers);
        let merged = doubles(&sketch.merged(&states, rows.total));
        for (group, values) in native.iter().enumerate() {
            for found in [whole[group], merged[group]] {
                let Some(found) = found else {
                    prop_assert!(values.is_empty(), "group {} has no result", group);
                    continue;
                };
                // Half a centroid, twice that for merged ones, and the row between two.
                let allowed = 0.03 + 1.0 / values.len() as f64;
                let off = distance(values, quantile, found);
                prop_assert!(off <= allowed, "{} of {} is off by {}", quantile, values.len(), off);
            }
        }
        Ok(())
    };
    runner().run(&(shapes(), 0.0..=1.0f64), run).unwrap();
}

/// Says to the test below, run in a process of its own, where the states lie.
const FOLDER: &str = "KYMO_TEST_STATES";

fn write(path: &Path, names: &[&str], columns: Vec<ArrayRef>) {
    let field =
        |(name, column): (&&str, &ArrayRef)| Field::new(*name, column.data_type().clone(), true);
    let schema = Arc::new(Schema::new(names.iter().zip(&columns).map(field).collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
    let mut writer = FileWriter::try_new(std::fs::File::create(path).unwrap(), &schema).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
}

fn read(path: &Path) -> RecordBatch {
    let mut reader = FileReader::try_new(std::fs::File::open(path).unwrap(), None).unwrap();
    reader.next().unwrap().unwrap()
}

/// The files of one case: its states, in order.
fn states(folder: &Path, case: u32) -> Vec<PathBuf> {
    let paths = (0..).map(|part| folder.join(format!("{case}-{part}.state")));
    paths.take_while(|path| path.exists()).collect()
}

#[test]
fn states_are_merged_by_another_process() {
    let bench = bench(|_| ());
    let mean = mean(&bench);
    let folder = tempfile::tempdir().unwrap();
    let mut runner = runner();
    let mut native = Vec::new();
    for case in 0..CASES {
        let shape = shapes().new_tree(&mut runner).unwrap().current();
        let rows = Rows::new(shape);
        let mut numbers = Numbers(!shape.seed);
        for (part, (state, groups)) in mean.parts(&rows, &mut numbers).into_iter().enumerate() {
            let groups: ArrayRef = Arc::new(UInt32Array::from(groups));
            let [sum, count] = <[ArrayRef; 2]>::try_from(state).unwrap();
            let path = folder.path().join(format!("{case}-{part}.state"));
            write(&path, &["group", "sum", "rows"], vec![groups, sum, count]);
        }
        let total: ArrayRef = Arc::new(UInt32Array::from(vec![rows.total]));
        write(&folder.path().join(format!("{case}.total")), &["total"], vec![total]);
        native.push((shape, rows.means()));
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "merges_states_of_another_process"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    for (case, (shape, native)) in (0..).zip(native) {
        let merged = read(&folder.path().join(format!("{case}.merged")));
        assert_eq!(doubles(merged.column(0)), native, "{shape:?}");
    }
}

/// Not a test by itself: the other process of the one above.
#[test]
#[ignore = "run by states_are_merged_by_another_process"]
fn merges_states_of_another_process() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let cache = tempfile::tempdir().unwrap();
    let settings = Plugins { start_timeout_ms: 1000, ..Plugins::default() };
    let host = start(&settings, cache.path());
    let bench = Bench { host, folder: cache, settings };
    let mean = mean(&bench);
    for case in 0..CASES {
        let total = read(&folder.join(format!("{case}.total")));
        let total = total.column(0).as_primitive::<UInt32Type>().value(0);
        let read = |path: PathBuf| {
            let batch = read(&path);
            let groups = batch.column(0).as_primitive::<UInt32Type>().values().to_vec();
            (batch.columns()[1..].to_vec(), groups)
        };
        let states: Vec<_> = states(&folder, case).into_iter().map(read).collect();
        let merged = mean.merged(&states, total);
        // The same once more, in pieces: how rows come together does not matter.
        let apart: Vec<_> = states
            .iter()
            .flat_map(|(state, groups)| {
                (0..groups.len()).step_by(97).map(|from| {
                    let to = groups.len().min(from + 97);
                    let rows = UInt32Array::from_iter_values(from as u32..to as u32);
                    let part = state.iter().map(|each| take(each, &rows, None).unwrap());
                    (part.collect(), groups[from..to].to_vec())
                })
            })
            .collect();
        assert_eq!(doubles(&mean.merged(&apart, total)), doubles(&merged), "case {case}");
        write(&folder.join(format!("{case}.merged")), &["mean"], vec![merged]);
    }
}
