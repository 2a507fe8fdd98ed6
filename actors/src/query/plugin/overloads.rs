//! Which signature of a plugin's function a call means.
//!
//! Plugins know twelve types; the engine casts arguments to them. Narrow integers widen,
//! dictionaries, views and large texts become plain. Where several signatures take the
//! arguments, the one with the least conversion is meant, and of those the first.

use datafusion::arrow::datatypes::DataType;
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::{Function, Overload, coerced};

/// The last resort: text, which is what parameters of unknown type arrive as.
const FROM_TEXT: u32 = 1000;
/// A conversion that can fail for a value.
const NARROWING: u32 = 100;

/// The signature for arguments of these types, and the types to cast them to.
///
/// # Errors
/// `function_not_found`, with the signatures that there are.
pub(super) fn choose(
    name: &str,
    function: &Function,
    types: &[DataType],
) -> Result<(usize, Vec<DataType>)> {
    let fits = function.overloads.iter().enumerate().filter_map(|(index, overload)| {
        let cost = price(overload, types)?;
        Some((cost, index, overload))
    });
    let best = fits.min_by_key(|(cost, index, _)| (*cost, *index));
    let Some((_, index, overload)) = best else { return Err(unknown(name, function, types)) };
    let wanted = |at: usize, given: &DataType| match overload.parameter(at) {
        Some(field) => keeping_dictionary(given, field.data_type()),
        None => given.clone(),
    };
    let casts = types.iter().enumerate().map(|(at, given)| wanted(at, given)).collect();
    Ok((index, casts))
}

/// The signature that takes exactly these types, in dictionaries or not.
///
/// # Errors
/// `function_not_found`: the engine did not cast the arguments.
pub(super) fn exact(name: &str, function: &Function, types: &[&DataType]) -> Result<usize> {
    let same = |overload: &Overload| {
        let matches = |(at, given): (usize, &&DataType)| {
            overload.parameter(at).is_some_and(|field| field.data_type() == plain(given))
        };
        overload.takes(types.len()) && types.iter().enumerate().all(matches)
    };
    function.overloads.iter().position(same).ok_or_else(|| {
        let types: Vec<DataType> = types.iter().map(|each| (*each).clone()).collect();
        unknown(name, function, &types)
    })
}

/// The type of the values of a dictionary; other types themselves.
pub(super) fn plain(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => values,
        other => other,
    }
}

/// A dictionary of what a plugin takes goes to the host as it is: there, one call for each of
/// its values can do.
fn keeping_dictionary(given: &DataType, wanted: &DataType) -> DataType {
    match given {
        DataType::Dictionary(_, values) if values.as_ref() == wanted => given.clone(),
        _ => wanted.clone(),
    }
}

fn price(overload: &Overload, types: &[DataType]) -> Option<u32> {
    if !overload.takes(types.len()) {
        return None;
    }
    let mut total = 0_u32;
    for (at, given) in types.iter().enumerate() {
        total += conversion(given, overload.parameter(at)?.data_type())?;
    }
    Some(total)
}

/// What a conversion costs; `None` where there is none without a cast in the statement.
fn conversion(from: &DataType, to: &DataType) -> Option<u32> {
    use DataType::{
        Boolean, Date32, Duration, Float32, Float64, Int32, Int64, Interval, Null, Timestamp,
        UInt32, UInt64, Utf8,
    };
    let from = plain(from);
    if from == to {
        return Some(0);
    }
    // Unsigned numbers have a type of their own among those of plugins.
    if to == &UInt64 && (from.is_unsigned_integer()) {
        return Some(if from == &UInt32 { 1 } else { 2 });
    }
    let given = coerced(from);
    if &given == to || from == &Null {
        return Some(1);
    }
    Some(match (&given, to) {
        (Int32, Int64) | (Float32, Float64) => 2,
        (Timestamp(one, _), Timestamp(other, _)) if one == other => 2,
        (Timestamp(..), Timestamp(..)) | (Duration(_), Duration(_)) => 3,
        (Int32 | Int64 | UInt64, Float64) => 4,
        (Date32, Timestamp(..)) | (Interval(_), Duration(_)) => 4,
        (number, Float64) if number.is_decimal() => 5,
        (Int32 | Int64, Float32) => 6,
        (Int64 | UInt64, Int32) | (UInt64, Int64) | (Int32 | Int64, UInt64) => NARROWING,
        (Float64, Float32) => NARROWING,
        (Utf8, Int32 | Int64 | UInt64 | Float32 | Float64) => FROM_TEXT,
        (Utf8, Boolean | Date32 | Timestamp(..)) => FROM_TEXT,
        _ => return None,
    })
}

fn unknown(name: &str, function: &Function, types: &[DataType]) -> Error {
    let given: Vec<String> = types.iter().map(DataType::to_string).collect();
    let shown = function.overloads.iter().take(5).map(|overload| shown(name, overload));
    let known: Vec<String> = shown.collect();
    Error::new(
        Code::FunctionNotFound,
        format!("function {name}({}) does not exist", given.join(", ")),
    )
    .with_hint(format!("there is {}; a cast may help", known.join(", ")))
}

fn shown(name: &str, overload: &Overload) -> String {
    let types = overload.parameters.iter().map(|field| field.data_type().to_string());
    let types: Vec<String> = types.collect();
    let more = if overload.variadic { ", ..." } else { "" };
    format!("{name}({}{more})", types.join(", "))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::{Field, TimeUnit};
    use kymo_plugins::{Kind, Nulls, Volatility};

    use super::*;

    fn function(signatures: &[&[DataType]], variadic: bool) -> Function {
        let overload = |types: &&[DataType]| Overload {
            parameters: types.iter().map(|each| Field::new("x", each.clone(), true)).collect(),
            variadic,
            returns: vec![Field::new("y", DataType::Float64, true)],
            state: Vec::new(),
        };
        Function {
            name: "f".into(),
            kind: Kind::Scalar,
            overloads: signatures.iter().map(overload).collect(),
            volatility: Volatility::Immutable,
            nulls: Nulls::Skip,
            state_version: 0,
            retractable: false,
            description: String::new(),
        }
    }

    fn tags() -> DataType {
        DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
    }

    #[test]
    fn the_least_conversion_wins() {
        use DataType::{Float32, Float64, Int16, Int32, Int64, Null, UInt8, UInt64, Utf8};
        let numbers = function(&[&[Float64], &[Int32], &[Int64], &[UInt64]], false);
        for (given, index) in [
            (Float64, 0),
            (Float32, 0),
            (Int16, 1),
            (Int32, 1),
            (Int64, 2),
            (UInt8, 1),
            (UInt64, 3),
            (DataType::Decimal128(10, 2), 0),
            (Null, 0),
            (Utf8, 0),
        ] {
            assert_eq!(
                choose("f", &numbers, std::slice::from_ref(&given)).unwrap().0,
                index,
                "{given}"
            );
        }
        let error = choose("f", &numbers, &[DataType::Date32]).unwrap_err();
        assert_eq!(error.code(), Code::FunctionNotFound);
        assert!(error.hint().unwrap().contains("f(Float64)"), "{error:?}");
        assert!(choose("f", &numbers, &[Int64, Int64]).is_err());
    }

    #[test]
    fn dictionaries_of_the_right_values_stay() {
        let texts = function(&[&[DataType::Utf8]], false);
        assert_eq!(choose("f", &texts, &[tags()]).unwrap().1, [tags()]);
        assert_eq!(choose("f", &texts, &[DataType::Utf8View]).unwrap().1, [DataType::Utf8]);
        assert_eq!(exact("f", &texts, &[&tags()]).unwrap(), 0);
    }

    #[test]
    fn the_last_parameter_of_a_variadic_signature_repeats() {
        let sum = function(&[&[DataType::Utf8, DataType::Float64]], true);
        let given = [DataType::Utf8, DataType::Float64, DataType::Int64];
        let casts = choose("f", &sum, &given).unwrap().1;
        assert_eq!(casts, [DataType::Utf8, DataType::Float64, DataType::Float64]);
        assert!(choose("f", &sum, &given[..1]).is_err());
    }

    #[test]
    fn instants_are_brought_into_their_unit() {
        let wanted = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        let instants = function(&[std::slice::from_ref(&wanted)], false);
        let given = DataType::Timestamp(TimeUnit::Microsecond, None);
        assert_eq!(choose("f", &instants, &[given]).unwrap().1, [wanted]);
    }
}
