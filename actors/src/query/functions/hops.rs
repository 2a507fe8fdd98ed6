//! `time_hops(hop, width, time[, origin])`: the starts of all windows that an instant falls into,
//! as a list, for windows of a width that begin a hop apart and so overlap.
//!
//! `unnest` makes a row of each: `SELECT unnest(time_hops('1m', '5m', time)) AS w, avg(usage) …
//! GROUP BY 1`. The order of the arguments is that of `HOP` in Flink and RisingWave. Hops are
//! counted from where `time_bucket` counts; with a hop as long as the width both agree.

use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, ListArray, TimestampNanosecondArray};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::datatypes::{DataType, Field, TimestampNanosecondType};
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use kymo_kernel::ids::TimeRange;
use kymo_kernel::message::WindowSpec;
use kymo_kernel::{Code, Error};

use super::bucket::{self, MONDAY, instant};

/// Its name.
pub(crate) const NAME: &str = "time_hops";
/// Windows that one instant may fall into: as many rows come of one.
const MOST: i64 = 1000;

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TimeHops {
    signature: Signature,
}

impl TimeHops {
    pub(super) fn new() -> Self {
        TimeHops { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for TimeHops {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [hop, width, time, origin @ ..] = types else { return arguments() };
        let time = instant(NAME, time)?;
        let lengths = [bucket::length(NAME, hop)?, bucket::length(NAME, width)?];
        match origin {
            [] => Ok([lengths.as_slice(), &[time]].concat()),
            [_] => Ok([lengths.as_slice(), &[time.clone(), time]].concat()),
            _ => arguments(),
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let Some(time) = types.get(2) else { return arguments() };
        Ok(DataType::List(item(instant(NAME, time)?)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [hop, width, time, origin @ ..] = args.args.as_slice() else { return arguments() };
        let (Some(hop), Some(width)) = (nanos(hop)?, nanos(width)?) else {
            let null = ScalarValue::try_from(args.return_field.data_type())?;
            return Ok(ColumnarValue::Scalar(null));
        };
        let Some(origin) = self::origin(origin.first())? else {
            let null = ScalarValue::try_from(args.return_field.data_type())?;
            return Ok(ColumnarValue::Scalar(null));
        };
        if hop > width {
            return exec_err!("{NAME}: a hop longer than the width would leave instants out");
        }
        if width / hop >= MOST {
            return exec_err!("{NAME}: an instant would fall into more than {MOST} windows");
        }
        let windows = WindowSpec { column: 0, width, hop, origin };
        match time {
            ColumnarValue::Array(times) => {
                Ok(ColumnarValue::Array(Arc::new(lists(windows, times.as_ref())?)))
            }
            ColumnarValue::Scalar(time) => {
                let list = lists(windows, time.to_array()?.as_ref())?;
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&list, 0)?))
            }
        }
    }
}

fn item(of: DataType) -> Arc<Field> {
    Arc::new(Field::new_list_field(of, true))
}

fn arguments<T>() -> Result<T> {
    plan_err!("{NAME} takes a hop, a width, a time and optionally an origin")
}

/// A constant length of time; `None` for NULL.
fn nanos(argument: &ColumnarValue) -> Result<Option<i64>> {
    let Some(span) = bucket::width(NAME, Some(argument))? else { return Ok(None) };
    match span.fixed_nanos() {
        Some(nanos) => Ok(Some(nanos)),
        None => exec_err!("{NAME}: months differ in length; hop by days or less"),
    }
}

/// From where hops are counted; `None` for NULL.
fn origin(argument: Option<&ColumnarValue>) -> Result<Option<i64>> {
    match argument {
        None => Ok(Some(MONDAY)),
        Some(ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(origin, _))) => Ok(*origin),
        Some(_) => exec_err!("{NAME}: the origin is a constant timestamp"),
    }
}

/// The starts for each instant, ascending.
fn lists(windows: WindowSpec, times: &dyn Array) -> Result<ListArray> {
    let zoned = times.data_type().clone();
    let times = times.as_primitive::<TimestampNanosecondType>();
    let earliest = i64::MIN.saturating_add(windows.width).saturating_add(windows.hop);
    let most = usize::try_from(windows.width / windows.hop + 1).unwrap_or(1);
    let mut starts = Vec::with_capacity(times.len().saturating_mul(most));
    let mut lengths = Vec::with_capacity(times.len());
    for time in times {
        let before = starts.len();
        if let Some(time) = time {
            if time < earliest {
                return Err(too_early());
            }
            let range = TimeRange { first: windows.first_start(time), last: windows.start(time) };
            let all = std::iter::successors(Some(range.first), |start| Some(windows.next(*start)));
            starts.extend(all.take_while(|start| *start <= range.last));
        }
        lengths.push(starts.len() - before);
    }
    let values = TimestampNanosecondArray::from(starts).with_data_type(zoned.clone());
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(ListArray::try_new(item(zoned), offsets, Arc::new(values), times.nulls().cloned())?)
}

fn too_early() -> DataFusionError {
    let text = "time_hops: a window would begin before 1677-09-21, the earliest time there is";
    DataFusionError::External(Box::new(Error::new(Code::OutOfRange, text)))
}
