//! `json_build_object(key, value, …)`: a JSON object from pairs of arguments, as text.
//!
//! SQLAlchemy's reflection writes it. The spaces are PostgreSQL's: `{"a" : 1, "b" : null}`.

use std::fmt::Write;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, StringBuilder};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct JsonBuildObject {
    signature: Signature,
}

impl JsonBuildObject {
    pub(super) fn new() -> Self {
        JsonBuildObject { signature: Signature::user_defined(Volatility::Stable) }
    }
}

impl ScalarUDFImpl for JsonBuildObject {
    fn name(&self) -> &str {
        "json_build_object"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        if !types.len().is_multiple_of(2) {
            return plan_err!(
                "No function matches json_build_object() with {} arguments; it takes pairs",
                types.len()
            );
        }
        let coerced = types.iter().enumerate().map(|(at, data_type)| {
            let key = at.is_multiple_of(2);
            if key || !bare(data_type) { DataType::Utf8 } else { data_type.clone() }
        });
        Ok(coerced.collect())
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let options = FormatOptions::default();
        let members = arrays
            .iter()
            .map(|array| Ok((array, ArrayFormatter::try_new(array.as_ref(), &options)?)))
            .collect::<Result<Vec<_>>>()?;
        let mut out = StringBuilder::new();
        let (mut object, mut member) = (String::new(), String::new());
        for row in 0..args.number_rows {
            object.clear();
            object.push('{');
            for (at, (array, formatter)) in members.iter().enumerate() {
                let key = at.is_multiple_of(2);
                object.push_str(match (key, at) {
                    (true, 0) => "",
                    (true, _) => ", ",
                    (false, _) => " : ",
                });
                if array.is_null(row) {
                    if key {
                        return exec_err!("json_build_object(): a key must not be null");
                    }
                    object.push_str("null");
                    continue;
                }
                member.clear();
                write!(member, "{}", formatter.value(row))?;
                // JSON has no word for NaN and the infinities: they are strings there.
                if bare(array.data_type()) && !matches!(&*member, "NaN" | "inf" | "-inf") {
                    object.push_str(&member);
                } else {
                    quote(&member, &mut object);
                }
            }
            object.push('}');
            out.append_value(&object);
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish()) as ArrayRef))
    }
}

/// Whether JSON writes values of this type without quotation marks.
fn bare(data_type: &DataType) -> bool {
    data_type.is_numeric() || *data_type == DataType::Boolean
}

/// Appends a JSON string.
fn quote(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_numbers_are_not() {
        let mut out = String::new();
        quote("a \"b\"\n", &mut out);
        assert_eq!(out, r#""a \"b\"\n""#);
        assert!(bare(&DataType::Int64) && bare(&DataType::Boolean) && !bare(&DataType::Utf8));
    }

    #[test]
    fn arguments_come_in_pairs() {
        let function = JsonBuildObject::new();
        assert!(function.coerce_types(&[DataType::Utf8]).is_err());
        let pair = [DataType::Utf8View, DataType::Int16];
        let coerced = function.coerce_types(&pair).unwrap();
        assert_eq!(coerced, [DataType::Utf8, DataType::Int16]);
    }
}
