//! `time_bucket(width, time[, origin])`: the start of the bucket that an instant falls into.
//!
//! The width is an interval, or text such as `'10s'`, `'5m'`, `'1 hour'`, `'1 month'`. Without
//! an origin, buckets are counted from 2000-01-03, a Monday, and calendar ones from
//! 2000-01-01, as in TimescaleDB: weeks begin on Mondays, and buckets that divide a day agree
//! with `date_bin`. The arithmetic is the engine's `date_bin`.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use datafusion::arrow::datatypes::{
    DataType, IntervalMonthDayNano, IntervalUnit, TimeUnit, TimestampNanosecondType,
};
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use kymo_kernel::schema::time_type;
use kymo_kernel::{Code, Error};

use crate::query::duration::Span;

/// Its name.
pub(crate) const NAME: &str = "time_bucket";
/// 2000-01-03T00:00:00Z, a Monday: where buckets of a fixed width are counted from.
pub(crate) const MONDAY: i64 = 946_857_600_000_000_000;
/// 2000-01-01T00:00:00Z.
const MILLENNIUM: i64 = 946_684_800_000_000_000;

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TimeBucket {
    signature: Signature,
    date_bin: Arc<ScalarUDF>,
}

impl TimeBucket {
    pub(super) fn new() -> Self {
        TimeBucket {
            signature: Signature::user_defined(Volatility::Immutable),
            date_bin: datafusion::functions::datetime::date_bin(),
        }
    }
}

impl ScalarUDFImpl for TimeBucket {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [width, time, origin @ ..] = types else { return arguments() };
        let (width, time) = (length(NAME, width)?, instant(NAME, time)?);
        match origin {
            [] => Ok(vec![width, time]),
            [_] => Ok(vec![width, time.clone(), time]),
            _ => arguments(),
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.get(1).map_or_else(arguments, |time| instant(NAME, time))
    }

    fn return_field_from_args(
        &self,
        args: ReturnFieldArgs,
    ) -> Result<Arc<datafusion::arrow::datatypes::Field>> {
        // A bucket of a column is NULL only where the instant is, or the width.
        let Some(time) = args.arg_fields.get(1) else { return arguments() };
        let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        let data_type = instant(NAME, time.data_type())?;
        Ok(Arc::new(datafusion::arrow::datatypes::Field::new(self.name(), data_type, nullable)))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(width) = width(NAME, args.args.first())? else {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from(
                args.return_field.data_type(),
            )?));
        };
        if args.args.len() == 2 {
            if let Some(nanos) = width.fixed_nanos()
                && let Some(ColumnarValue::Array(times)) = args.args.get(1)
            {
                return Ok(ColumnarValue::Array(floor(times, nanos)?));
            }
            let origin = if width.months == 0 { MONDAY } else { MILLENNIUM };
            let zone = match args.return_field.data_type() {
                DataType::Timestamp(_, zone) => zone.clone(),
                other => return exec_err!("time_bucket: {other} is not a timestamp"),
            };
            let origin = ScalarValue::TimestampNanosecond(Some(origin), zone);
            args.arg_fields.push(Arc::new(datafusion::arrow::datatypes::Field::new(
                "origin",
                origin.data_type(),
                false,
            )));
            args.args.push(ColumnarValue::Scalar(origin));
        }
        let interval = IntervalMonthDayNano::new(width.months, width.days, width.nanos);
        args.args[0] = ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(interval)));
        let times = args.args[1].clone();
        let bins = self.date_bin.invoke_with_args(args)?;
        // The engine answers NULL where a bucket begins before all times.
        if nulls(&bins) > nulls(&times) {
            return Err(too_early());
        }
        Ok(bins)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        // Buckets grow with their instants when the width and the origin are constants.
        let constant = |input: &ExprProperties| input.sort_properties == SortProperties::Singleton;
        match inputs {
            [width, time] if constant(width) => Ok(time.sort_properties),
            [width, time, origin] if constant(width) && constant(origin) => {
                Ok(time.sort_properties)
            }
            _ => Ok(SortProperties::Unordered),
        }
    }
}

fn nulls(value: &ColumnarValue) -> usize {
    match value {
        ColumnarValue::Array(array) => array.null_count(),
        ColumnarValue::Scalar(scalar) => usize::from(scalar.is_null()),
    }
}

fn too_early() -> DataFusionError {
    let text = "time_bucket: a bucket would begin before 1677-09-21, the earliest time there is";
    DataFusionError::External(Box::new(Error::new(Code::OutOfRange, text)))
}

fn arguments<T>() -> Result<T> {
    plan_err!("time_bucket takes a width, a time and optionally an origin")
}

/// The lengths of time that buckets are given in: text or intervals.
pub(super) fn length(function: &str, of: &DataType) -> Result<DataType> {
    Ok(match of {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Interval(_) | DataType::Duration(_) | DataType::Null => {
            DataType::Interval(IntervalUnit::MonthDayNano)
        }
        other => return plan_err!("{function}: the width is a text or an interval, not {other}"),
    })
}

/// The instants that buckets are computed with: nanoseconds, in the zone of the argument.
pub(super) fn instant(function: &str, time: &DataType) -> Result<DataType> {
    Ok(match time {
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Nanosecond, zone.clone()),
        DataType::Date32
        | DataType::Date64
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Null => time_type(),
        other => return plan_err!("{function}: the time is a timestamp, not {other}"),
    })
}

/// The width of the buckets; `None` for NULL.
pub(super) fn width(function: &str, argument: Option<&ColumnarValue>) -> Result<Option<Span>> {
    let scalar = match argument {
        Some(ColumnarValue::Scalar(scalar)) => scalar.clone(),
        Some(ColumnarValue::Array(array)) if array.len() == 1 => {
            ScalarValue::try_from_array(array, 0)?
        }
        Some(ColumnarValue::Array(_)) => {
            return exec_err!("{function}: the width is a constant, not a column");
        }
        None => return arguments(),
    };
    let span = match scalar {
        ScalarValue::Utf8(None) | ScalarValue::IntervalMonthDayNano(None) | ScalarValue::Null => {
            return Ok(None);
        }
        ScalarValue::Utf8(Some(text)) => {
            Span::parse(&text).map_err(|error| DataFusionError::External(Box::new(error)))?
        }
        ScalarValue::IntervalMonthDayNano(Some(value)) => {
            Span { months: value.months, days: value.days, nanos: value.nanoseconds }
        }
        other => return exec_err!("{function}: the width is a text or an interval, not {other}"),
    };
    if span.months < 0 || (span.months == 0 && span.fixed_nanos().is_none_or(|nanos| nanos <= 0)) {
        return exec_err!("{function}: the width must be greater than zero");
    }
    Ok(Some(span))
}

/// Buckets of a fixed width: one division a row. Runs of one bucket, which sorted data is full
/// of, cost a comparison.
fn floor(times: &ArrayRef, width: i64) -> Result<ArrayRef> {
    let times = times.as_primitive::<TimestampNanosecondType>();
    let origin = MONDAY.rem_euclid(width);
    let mut start = 0_i64;
    let mut end = 0_i64;
    let mut early = false;
    let values = times.values().iter().enumerate().map(|(row, time)| {
        let time = *time;
        if time < start || time >= end {
            // Both remainders are smaller than the width, so nothing overflows here.
            let offset = (time.rem_euclid(width) - origin).rem_euclid(width);
            let begin = time.checked_sub(offset);
            early |= begin.is_none() && times.is_valid(row);
            start = begin.unwrap_or(i64::MIN);
            end = start.saturating_add(width);
        }
        start
    });
    let values: Vec<i64> = values.collect();
    if early {
        return Err(too_early());
    }
    let floored =
        PrimitiveArray::<TimestampNanosecondType>::new(values.into(), times.nulls().cloned());
    Ok(Arc::new(floored.with_data_type(times.data_type().clone())))
}
