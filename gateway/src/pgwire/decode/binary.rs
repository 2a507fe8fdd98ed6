//! What PostgreSQL's receive functions read.

use arrow::datatypes::IntervalMonthDayNano;
use kymo_kernel::{Code, Error, Result};

use super::super::encode::{EPOCH_DAYS, EPOCH_MICROS};
use super::super::types::oid;
use super::{Value, invalid, type_name};

/// Reads a scalar.
pub(super) fn value(oid: u32, bytes: &[u8]) -> Result<Value> {
    Ok(match oid {
        oid::BOOL => Value::Bool(fixed::<1>(oid, bytes)? != [0]),
        oid::INT2 => Value::Int2(i16::from_be_bytes(fixed(oid, bytes)?)),
        oid::INT4 => Value::Int4(i32::from_be_bytes(fixed(oid, bytes)?)),
        oid::INT8 => Value::Int8(i64::from_be_bytes(fixed(oid, bytes)?)),
        oid::OID => Value::Int8(i64::from(u32::from_be_bytes(fixed(oid, bytes)?))),
        oid::FLOAT4 => Value::Float4(f32::from_be_bytes(fixed(oid, bytes)?)),
        oid::FLOAT8 => Value::Float8(f64::from_be_bytes(fixed(oid, bytes)?)),
        oid::NUMERIC => numeric(bytes)?,
        oid::BYTEA => Value::Bytes(bytes.to_vec()),
        oid::DATE => {
            let days = i32::from_be_bytes(fixed(oid, bytes)?);
            Value::Date(days.checked_add(EPOCH_DAYS).ok_or_else(|| out_of_range("date"))?)
        }
        oid::TIME => Value::Time(i64::from_be_bytes(fixed(oid, bytes)?)),
        oid::TIMESTAMP => Value::Instant(instant(oid, bytes)?, false),
        oid::TIMESTAMPTZ => Value::Instant(instant(oid, bytes)?, true),
        oid::INTERVAL => interval(bytes)?,
        oid::UUID => Value::Text(uuid(fixed(oid, bytes)?)),
        oid::JSONB => {
            Value::Text(super::text::utf8(bytes.get(1..).unwrap_or_default())?.to_owned())
        }
        _ => Value::Text(super::text::utf8(bytes)?.to_owned()),
    })
}

fn fixed<const N: usize>(oid: u32, bytes: &[u8]) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| {
        invalid(format!(
            "binary value of type {} has {} bytes where {N} are needed",
            type_name(oid),
            bytes.len()
        ))
    })
}

fn out_of_range(what: &str) -> Error {
    Error::new(Code::OutOfRange, format!("{what} lies outside of the years 1677 to 2262"))
}

fn instant(oid: u32, bytes: &[u8]) -> Result<i64> {
    let micros = i64::from_be_bytes(fixed(oid, bytes)?);
    micros
        .checked_add(EPOCH_MICROS)
        .and_then(|micros| micros.checked_mul(1000))
        .ok_or_else(|| out_of_range("timestamp"))
}

fn interval(bytes: &[u8]) -> Result<Value> {
    let all: [u8; 16] = fixed(oid::INTERVAL, bytes)?;
    let mut reader = Reader(&all);
    let micros = reader.i64()?;
    let days = reader.i32()?;
    let months = reader.i32()?;
    let ns = micros.checked_mul(1000).ok_or_else(|| out_of_range("interval"))?;
    Ok(Value::Interval(IntervalMonthDayNano::new(months, days, ns)))
}

fn uuid(bytes: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts.map(|part| hex.get(part).unwrap_or_default().to_owned()).join("-")
}

/// Groups of four digits, of which the first stands for `10000^weight`.
fn numeric(bytes: &[u8]) -> Result<Value> {
    let mut reader = Reader(bytes);
    let groups = reader.u16()?;
    let weight = i32::from(reader.i16()?);
    let sign = reader.u16()?;
    let scale = reader.u16()?;
    if !matches!(sign, 0 | 0x4000) {
        return Err(Error::new(Code::InvalidCast, "numeric NaN and infinity are not supported"));
    }
    let too_large = || Error::new(Code::OutOfRange, "numeric value has more than 38 digits");
    let scale = i8::try_from(scale).ok().filter(|scale| *scale <= 38).ok_or_else(too_large)?;
    let mut unscaled: i128 = 0;
    for index in 0..i32::from(groups) {
        let group = i128::from(reader.u16()?);
        // The group's power of ten once the number is an integer of `scale` digits.
        let power = (weight - index) * 4 + i32::from(scale);
        let part = if power >= 0 {
            10_i128
                .checked_pow(power.unsigned_abs())
                .and_then(|factor| group.checked_mul(factor))
                .ok_or_else(too_large)?
        } else {
            group / 10_i128.checked_pow(power.unsigned_abs()).unwrap_or(i128::MAX)
        };
        unscaled = unscaled.checked_add(part).ok_or_else(too_large)?;
    }
    Ok(Value::Numeric(if sign == 0 { unscaled } else { -unscaled }, scale))
}

/// The elements of a one-dimensional array.
pub(super) fn elements(bytes: &[u8]) -> Result<Vec<Option<Vec<u8>>>> {
    let mut reader = Reader(bytes);
    let dimensions = reader.i32()?;
    let _has_null = reader.i32()?;
    let _element = reader.i32()?;
    if dimensions == 0 {
        return Ok(Vec::new());
    }
    if dimensions != 1 {
        return Err(Error::new(Code::Unsupported, "arrays of more than one dimension"));
    }
    let count = reader.i32()?;
    let _lower_bound = reader.i32()?;
    // Each element takes four bytes at least, so a false count cannot reserve memory.
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= reader.0.len() / 4)
        .ok_or_else(|| invalid(format!("array of {count} elements in {} bytes", bytes.len())))?;
    let mut elements = Vec::with_capacity(count);
    for _ in 0..count {
        let length = reader.i32()?;
        elements.push(match usize::try_from(length) {
            Ok(length) => Some(reader.take(length)?.to_vec()),
            Err(_) => None,
        });
    }
    Ok(elements)
}

/// Reads from the front, never beyond the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((front, rest)) = self.0.split_at_checked(count) else {
            return Err(invalid("binary value ends early"));
        };
        self.0 = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| invalid("binary value ends early"))
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn i16(&mut self) -> Result<i16> {
        self.array().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32> {
        self.array().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_be_bytes)
    }
}
