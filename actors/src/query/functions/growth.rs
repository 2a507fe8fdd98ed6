//! How large the results of functions get that make large values from small ones.
//!
//! Each function has a [`Growth`]: an upper bound of a result's bytes from the bytes and the
//! values of its arguments. Bounds are taken per row and without running the function; where a
//! bound would often be far too high (`replace` of a text that hardly ever occurs), matches are
//! counted before a call is refused.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::IntervalUnit::MonthDayNano;
use datafusion::arrow::datatypes::{DataType, IntervalMonthDayNanoType, TimeUnit};
use datafusion::common::Result;
use datafusion::logical_expr::ColumnarValue;

/// Bytes of an element that is a number.
const NUMBER: u64 = 8;
/// Bytes that a number takes as text, at most about.
const NUMBER_AS_TEXT: u64 = 24;
/// Bytes of the longest character.
const CHARACTER: u64 = 4;
/// Nanoseconds of a day, and days of the shortest month.
const DAY: i128 = 86_400_000_000_000;
const SHORTEST_MONTH: i128 = 28;

/// How the result of a function relates to its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Growth {
    /// Argument 0 as often as argument 1 says.
    Repeated,
    /// Argument 0 with argument 1 elements, new ones like argument 2.
    Resized,
    /// Argument 1 characters.
    Padded,
    /// All arguments one after the other, each this many times as long.
    Joined(u64),
    /// All arguments but the first, with the first between them.
    JoinedWith,
    /// The elements of argument 0 as text, with argument 1 between them.
    Listed,
    /// Argument 0 with argument 2 in the place of argument 1.
    Replaced,
    /// Argument 0 with argument 2 in the place of what argument 1 matches.
    Matched,
    /// Argument 0 once for each group of the pattern in argument 1.
    Captured,
    /// The list in argument 0 with argument 2 in the place of elements.
    ReplacedElements,
    /// The numbers or instants from argument 0 to argument 1, by steps of argument 2.
    Series,
}

/// The functions that grow, by the engine's names for them.
static GROWTHS: LazyLock<HashMap<&'static str, Growth>> = LazyLock::new(|| {
    HashMap::from([
        ("repeat", Growth::Repeated),
        ("array_repeat", Growth::Repeated),
        ("array_resize", Growth::Resized),
        ("lpad", Growth::Padded),
        ("rpad", Growth::Padded),
        ("concat", Growth::Joined(1)),
        ("overlay", Growth::Joined(1)),
        ("make_array", Growth::Joined(1)),
        ("array_append", Growth::Joined(1)),
        ("array_prepend", Growth::Joined(1)),
        ("array_concat", Growth::Joined(1)),
        ("array_union", Growth::Joined(1)),
        ("arrays_zip", Growth::Joined(1)),
        ("map", Growth::Joined(1)),
        ("struct", Growth::Joined(1)),
        ("named_struct", Growth::Joined(1)),
        // Each byte may become two, four or six.
        ("encode", Growth::Joined(2)),
        ("quote_ident", Growth::Joined(2)),
        ("translate", Growth::Joined(CHARACTER)),
        ("json_build_object", Growth::Joined(6)),
        // A list of single characters: an offset for each.
        ("string_to_array", Growth::Joined(1 + CHARACTER)),
        ("concat_ws", Growth::JoinedWith),
        ("array_to_string", Growth::Listed),
        ("replace", Growth::Replaced),
        ("regexp_replace", Growth::Matched),
        ("regexp_match", Growth::Captured),
        ("array_replace", Growth::ReplacedElements),
        ("array_replace_n", Growth::ReplacedElements),
        ("array_replace_all", Growth::ReplacedElements),
        ("range", Growth::Series),
        ("generate_series", Growth::Series),
    ])
});

/// How a function grows; `None` for one whose results are about as large as its arguments.
pub(super) fn of(function: &str) -> Option<Growth> {
    GROWTHS.get(function).copied()
}

impl Growth {
    /// An upper bound of the bytes of each row's result.
    ///
    /// # Errors
    /// Arguments that cannot be read as what the function takes.
    pub(super) fn bytes(self, arguments: &[ColumnarValue], rows: usize) -> Result<Vec<u64>> {
        let call = Call::new(arguments)?;
        Ok((0..rows).map(|row| self.row(&call, row)).collect())
    }

    fn row(self, call: &Call, row: usize) -> u64 {
        let size = |at| call.size(at, row);
        let all = || (0..call.arguments.len()).map(size).fold(0, u64::saturating_add);
        match self {
            Growth::Repeated => size(0).max(1).saturating_mul(call.count(1, row)),
            Growth::Resized => {
                let each = size(2).max(NUMBER);
                size(0).saturating_add(each.saturating_mul(call.count(1, row)))
            }
            Growth::Padded => {
                let plain = [0, 2].iter().all(|at| call.text(*at, row).is_ascii());
                let width = if plain { 1 } else { CHARACTER };
                call.count(1, row).saturating_mul(width)
            }
            Growth::Joined(times) => all().saturating_mul(times),
            Growth::JoinedWith => {
                let between = call.arguments.len().saturating_sub(2) as u64;
                all().saturating_add(size(0).saturating_mul(between))
            }
            Growth::Listed => {
                let elements = call.elements(0, row);
                let each = size(1).saturating_add(size(2)).saturating_add(NUMBER_AS_TEXT);
                size(0).saturating_add(elements.saturating_mul(each))
            }
            Growth::Replaced => {
                let (text, from) = (call.text(0, row), call.text(1, row));
                if from.is_empty() || size(2) <= size(1) {
                    return size(0);
                }
                let found = text.matches(from).count() as u64;
                size(0).saturating_add(found.saturating_mul(size(2)))
            }
            Growth::Matched => {
                // Groups that do not overlap hold the text once for each time they are named.
                let named = call.text(2, row).matches(['\\', '$']).count() as u64;
                let all = call.text(3, row).contains('g');
                let found = if all { size(0).saturating_add(1) } else { 1 };
                size(0).saturating_mul(1 + named).saturating_add(found.saturating_mul(size(2)))
            }
            Growth::Captured => {
                let groups = call.text(1, row).matches('(').count() as u64;
                size(0).saturating_mul(groups + 1)
            }
            Growth::ReplacedElements => {
                size(0).saturating_add(call.elements(0, row).saturating_mul(size(2)))
            }
            Growth::Series => call.steps(row).saturating_mul(NUMBER),
        }
    }
}

/// The arguments of a call, as far as bounds need them.
struct Call {
    arguments: Vec<Argument>,
}

struct Argument {
    values: ArrayRef,
    /// One value for all rows.
    constant: bool,
    sizes: Vec<u64>,
    /// Whole numbers, and instants in their own unit.
    numbers: Option<Int64Array>,
}

impl Argument {
    fn new(value: &ColumnarValue) -> Result<Self> {
        let constant = matches!(value, ColumnarValue::Scalar(_));
        let values = match value {
            ColumnarValue::Scalar(scalar) => scalar.to_array()?,
            ColumnarValue::Array(array) => Arc::clone(array),
        };
        // One kind of text to look into, and one of lengths of time.
        let values = match values.data_type() {
            DataType::LargeUtf8 | DataType::Utf8View => cast(&values, &DataType::Utf8)?,
            DataType::Interval(_) => cast(&values, &DataType::Interval(MonthDayNano))?,
            _ => values,
        };
        let numbers = match values.data_type() {
            DataType::Date32 => Some(cast(&cast(&values, &DataType::Int32)?, &DataType::Int64)?),
            other if other.is_integer() || matches!(other, DataType::Timestamp(..)) => {
                Some(cast(&values, &DataType::Int64)?)
            }
            _ => None,
        };
        let numbers = numbers.map(|numbers| numbers.as_primitive().clone());
        Ok(Argument { constant, sizes: sizes(&values), numbers, values })
    }

    fn at(&self, row: usize) -> usize {
        if self.constant { 0 } else { row }
    }

    fn number(&self, row: usize) -> Option<i64> {
        let numbers = self.numbers.as_ref()?;
        let row = self.at(row);
        numbers.is_valid(row).then(|| numbers.value(row))
    }

    /// A number, or an instant in nanoseconds.
    fn place(&self, row: usize) -> Option<i128> {
        let unit = match self.values.data_type() {
            DataType::Date32 => DAY,
            DataType::Timestamp(TimeUnit::Second, _) => 1_000_000_000,
            DataType::Timestamp(TimeUnit::Millisecond, _) => 1_000_000,
            DataType::Timestamp(TimeUnit::Microsecond, _) => 1_000,
            _ => 1,
        };
        self.number(row).map(|number| i128::from(number) * unit)
    }

    /// A number, or the shortest time that an interval may take in nanoseconds.
    fn step(&self, row: usize) -> Option<i128> {
        let Some(intervals) = self.values.as_primitive_opt::<IntervalMonthDayNanoType>() else {
            return self.number(row).map(i128::from);
        };
        let row = self.at(row);
        intervals.is_valid(row).then(|| {
            let step = intervals.value(row);
            let days = i128::from(step.months) * SHORTEST_MONTH + i128::from(step.days);
            days * DAY + i128::from(step.nanoseconds)
        })
    }
}

impl Call {
    fn new(arguments: &[ColumnarValue]) -> Result<Self> {
        Ok(Call { arguments: arguments.iter().map(Argument::new).collect::<Result<_>>()? })
    }

    /// The bytes of an argument; 0 for one that was not given.
    fn size(&self, at: usize, row: usize) -> u64 {
        let Some(argument) = self.arguments.get(at) else { return 0 };
        argument.sizes.get(argument.at(row)).copied().unwrap_or(0)
    }

    /// The text of an argument; empty for NULL and for what is no text.
    fn text(&self, at: usize, row: usize) -> &str {
        let Some(argument) = self.arguments.get(at) else { return "" };
        let texts = argument.values.as_string_opt::<i32>();
        let row = argument.at(row);
        texts.filter(|texts| texts.is_valid(row)).map_or("", |texts| texts.value(row))
    }

    /// A whole number that counts something; 0 for NULL and below.
    fn count(&self, at: usize, row: usize) -> u64 {
        let number = self.arguments.get(at).and_then(|argument| argument.number(row));
        number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
    }

    /// The elements of a list.
    fn elements(&self, at: usize, row: usize) -> u64 {
        let Some(argument) = self.arguments.get(at) else { return 0 };
        let row = argument.at(row);
        match argument.values.data_type() {
            DataType::List(_) => argument.values.as_list::<i32>().value_length(row) as u64,
            DataType::LargeList(_) => argument.values.as_list::<i64>().value_length(row) as u64,
            DataType::FixedSizeList(_, length) => *length as u64,
            _ => 0,
        }
    }

    /// The elements of a series.
    fn steps(&self, row: usize) -> u64 {
        let (from, to, step) = match self.arguments.as_slice() {
            // range(stop) begins at 0.
            [to] => (Some(0), to.place(row), Some(1)),
            [from, to] if from.values.data_type().is_temporal() => {
                (from.place(row), to.place(row), Some(DAY))
            }
            [from, to] => (from.place(row), to.place(row), Some(1)),
            [from, to, step, ..] => (from.place(row), to.place(row), step.step(row)),
            [] => return 0,
        };
        match (from, to, step) {
            // The other way round there is nothing.
            (Some(from), Some(to), Some(step)) if step != 0 => {
                u64::try_from((to - from) / step + 1).unwrap_or(0)
            }
            _ => 0,
        }
    }
}

/// The bytes of each value of an array.
fn sizes(array: &ArrayRef) -> Vec<u64> {
    fn ranges(offsets: impl Iterator<Item = (usize, usize)>, values: &ArrayRef) -> Vec<u64> {
        // Sums up to each element, so that lists that share elements cost nothing more.
        let mut sums = Vec::with_capacity(values.len() + 1);
        sums.push(0_u64);
        for size in sizes(values) {
            sums.push(sums.last().copied().unwrap_or(0).saturating_add(size));
        }
        let sum = |at: usize| sums.get(at).copied().unwrap_or(0);
        offsets.map(|(from, to)| sum(to).saturating_sub(sum(from))).collect()
    }
    fn pairs<O: Copy + TryInto<usize>>(offsets: &[O]) -> impl Iterator<Item = (usize, usize)> {
        let place = |offset: O| offset.try_into().unwrap_or(0);
        offsets.windows(2).map(move |pair| (place(pair[0]), place(pair[1])))
    }
    let lengths = |pairs: &mut dyn Iterator<Item = (usize, usize)>| {
        pairs.map(|(from, to)| (to - from) as u64).collect()
    };
    match array.data_type() {
        DataType::Utf8 => lengths(&mut pairs(array.as_string::<i32>().value_offsets())),
        DataType::LargeUtf8 => lengths(&mut pairs(array.as_string::<i64>().value_offsets())),
        DataType::Binary => lengths(&mut pairs(array.as_binary::<i32>().value_offsets())),
        DataType::LargeBinary => lengths(&mut pairs(array.as_binary::<i64>().value_offsets())),
        DataType::Utf8View => array.as_string_view().lengths().map(u64::from).collect(),
        DataType::BinaryView => array.as_binary_view().lengths().map(u64::from).collect(),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            ranges(pairs(list.value_offsets()), list.values())
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            ranges(pairs(list.value_offsets()), list.values())
        }
        DataType::FixedSizeList(_, length) => {
            let list = array.as_fixed_size_list();
            let length = usize::try_from(*length).unwrap_or(0);
            ranges((0..array.len()).map(|row| (row * length, (row + 1) * length)), list.values())
        }
        DataType::Struct(_) => {
            let mut all = vec![0_u64; array.len()];
            for column in array.as_struct().columns() {
                for (sum, size) in all.iter_mut().zip(sizes(column)) {
                    *sum = sum.saturating_add(size);
                }
            }
            all
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let values = sizes(dictionary.values());
            if values.is_empty() {
                return vec![0; array.len()];
            }
            dictionary.normalized_keys().into_iter().map(|key| values[key]).collect()
        }
        other => vec![other.primitive_width().unwrap_or(1) as u64; array.len()],
    }
}
