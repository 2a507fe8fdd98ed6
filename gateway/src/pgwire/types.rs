//! Which PostgreSQL type an Arrow type appears as, and which Arrow type a client's
//! parameter of a PostgreSQL type becomes.

use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};

/// Object identifiers of `pg_type`, as every PostgreSQL server has them.
pub mod oid {
    #![allow(missing_docs, reason = "the names are those of pg_type")]
    pub const BOOL: u32 = 16;
    pub const BYTEA: u32 = 17;
    pub const CHAR: u32 = 18;
    pub const NAME: u32 = 19;
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT4: u32 = 23;
    pub const TEXT: u32 = 25;
    pub const OID: u32 = 26;
    pub const JSON: u32 = 114;
    pub const FLOAT4: u32 = 700;
    pub const FLOAT8: u32 = 701;
    pub const UNKNOWN: u32 = 705;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
    pub const DATE: u32 = 1082;
    pub const TIME: u32 = 1083;
    pub const TIMESTAMP: u32 = 1114;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const INTERVAL: u32 = 1186;
    pub const NUMERIC: u32 = 1700;
    pub const UUID: u32 = 2950;
    pub const JSONB: u32 = 3802;
}

/// Element type → array type.
const ARRAYS: &[(u32, u32)] = &[
    (oid::BOOL, 1000),
    (oid::BYTEA, 1001),
    (oid::CHAR, 1002),
    (oid::NAME, 1003),
    (oid::INT2, 1005),
    (oid::INT4, 1007),
    (oid::TEXT, 1009),
    (oid::BPCHAR, 1014),
    (oid::VARCHAR, 1015),
    (oid::INT8, 1016),
    (oid::FLOAT4, 1021),
    (oid::FLOAT8, 1022),
    (oid::OID, 1028),
    (oid::TIMESTAMP, 1115),
    (oid::DATE, 1182),
    (oid::TIME, 1183),
    (oid::TIMESTAMPTZ, 1185),
    (oid::INTERVAL, 1187),
    (oid::NUMERIC, 1231),
    (oid::JSON, 199),
    (oid::UUID, 2951),
    (oid::JSONB, 3807),
];

/// The array type of an element type, where it has one.
#[must_use]
pub fn array_of(element: u32) -> Option<u32> {
    ARRAYS.iter().find(|(each, _)| *each == element).map(|(_, array)| *array)
}

/// The element type of an array type; `None` for a type that is no array.
#[must_use]
pub fn element_of(array: u32) -> Option<u32> {
    ARRAYS.iter().find(|(_, each)| *each == array).map(|(element, _)| *element)
}

/// The PostgreSQL type that values of an Arrow type are sent as.
///
/// Unsigned 64-bit integers and decimals are `numeric`; structs, maps, unions and lists of
/// lists are `json`; an instant with a zone is `timestamptz`.
#[must_use]
pub fn of_arrow(data_type: &DataType) -> u32 {
    match data_type {
        DataType::Boolean => oid::BOOL,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => oid::INT2,
        DataType::Int32 | DataType::UInt16 => oid::INT4,
        DataType::Int64 | DataType::UInt32 => oid::INT8,
        DataType::UInt64
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => oid::NUMERIC,
        DataType::Float16 | DataType::Float32 => oid::FLOAT4,
        DataType::Float64 => oid::FLOAT8,
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => oid::BYTEA,
        DataType::Date32 | DataType::Date64 => oid::DATE,
        DataType::Time32(_) | DataType::Time64(_) => oid::TIME,
        DataType::Timestamp(_, None) => oid::TIMESTAMP,
        DataType::Timestamp(_, Some(_)) => oid::TIMESTAMPTZ,
        DataType::Interval(_) | DataType::Duration(_) => oid::INTERVAL,
        DataType::Dictionary(_, values) => of_arrow(values),
        DataType::RunEndEncoded(_, values) => of_arrow(values.data_type()),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _) => {
            if element_is_array(field.data_type()) {
                oid::JSON
            } else {
                array_of(of_arrow(field.data_type())).unwrap_or(oid::JSON)
            }
        }
        DataType::Struct(_) | DataType::Map(..) | DataType::Union(..) => oid::JSON,
        DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => oid::TEXT,
    }
}

fn element_is_array(data_type: &DataType) -> bool {
    data_type.is_nested()
        && !matches!(data_type, DataType::Struct(_) | DataType::Map(..) | DataType::Union(..))
        && !matches!(data_type, DataType::Dictionary(..) | DataType::RunEndEncoded(..))
}

/// The Arrow type that a parameter of a PostgreSQL type becomes; `None` where the type says
/// nothing (`unknown`), is not known here, or has no fixed shape (`numeric`).
#[must_use]
pub fn to_arrow(oid: u32) -> Option<DataType> {
    if let Some(element) = element_of(oid) {
        let element = to_arrow(element).unwrap_or(DataType::Utf8);
        return Some(DataType::new_list(element, true));
    }
    Some(match oid {
        oid::BOOL => DataType::Boolean,
        oid::BYTEA => DataType::Binary,
        oid::INT2 => DataType::Int16,
        oid::INT4 => DataType::Int32,
        oid::INT8 | oid::OID => DataType::Int64,
        oid::FLOAT4 => DataType::Float32,
        oid::FLOAT8 => DataType::Float64,
        oid::CHAR | oid::NAME | oid::TEXT | oid::BPCHAR | oid::VARCHAR | oid::UUID => {
            DataType::Utf8
        }
        oid::JSON | oid::JSONB => DataType::Utf8,
        oid::DATE => DataType::Date32,
        oid::TIME => DataType::Time64(TimeUnit::Microsecond),
        oid::TIMESTAMP => DataType::Timestamp(TimeUnit::Nanosecond, None),
        oid::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Nanosecond, Some("+00:00".into())),
        oid::INTERVAL => DataType::Interval(IntervalUnit::MonthDayNano),
        _ => return None,
    })
}

/// The width of a type's values as RowDescription tells it; -1 where it varies.
#[must_use]
pub fn width(oid: u32) -> i16 {
    match oid {
        oid::BOOL | oid::CHAR => 1,
        oid::INT2 => 2,
        oid::INT4 | oid::FLOAT4 | oid::DATE | oid::OID => 4,
        oid::INT8 | oid::FLOAT8 | oid::TIME | oid::TIMESTAMP | oid::TIMESTAMPTZ => 8,
        oid::INTERVAL | oid::UUID => 16,
        oid::NAME => 64,
        _ => -1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_scalars_are_arrays_and_deeper_ones_json() {
        let ints = DataType::new_list(DataType::Int64, true);
        assert_eq!(of_arrow(&ints), 1016);
        assert_eq!(of_arrow(&DataType::new_list(ints, true)), oid::JSON);
        assert_eq!(element_of(1016), Some(oid::INT8));
    }

    #[test]
    fn tags_are_text() {
        let tag = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        assert_eq!(of_arrow(&tag), oid::TEXT);
    }
}
