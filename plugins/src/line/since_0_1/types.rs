//! Types, fields and descriptions between this line's words and ours.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::ipc::writer::StreamWriter;
use kymo_kernel::{Error, Result};

use super::{accept, catalog, wire};
use crate::description::{Description, Function, Kind, Nulls, Overload, Volatility};

/// What a plugin says of itself; not yet held against any limit but the depth of its types.
///
/// # Errors
/// What cannot be understood, as a phrase.
pub(super) fn description(found: catalog::Plugin) -> Result<Description, String> {
    Ok(Description {
        name: found.name,
        version: found.version,
        description: found.description,
        functions: found.functions.into_iter().map(function).collect::<Result<_, _>>()?,
    })
}

fn function(found: catalog::Function) -> Result<Function, String> {
    Ok(Function {
        name: found.name,
        kind: match found.kind {
            catalog::Kind::Scalar => Kind::Scalar,
            catalog::Kind::Aggregate => Kind::Aggregate,
            catalog::Kind::Window => Kind::Window,
            catalog::Kind::Table => Kind::Table,
            catalog::Kind::Transform => Kind::Transform,
        },
        overloads: found.overloads.into_iter().map(overload).collect::<Result<_, _>>()?,
        volatility: match found.volatility {
            catalog::Volatility::Immutable => Volatility::Immutable,
            catalog::Volatility::Stable => Volatility::Stable,
            catalog::Volatility::Volatile => Volatility::Volatile,
        },
        nulls: match found.nulls {
            catalog::NullHandling::Skip => Nulls::Skip,
            catalog::NullHandling::Pass => Nulls::Pass,
        },
        state_version: found.state_version,
        retractable: found.retractable,
        description: found.description,
    })
}

fn overload(found: catalog::Overload) -> Result<Overload, String> {
    let fields = |list: Vec<wire::FieldResult>| list.into_iter().map(field).collect();
    let fields: &dyn Fn(Vec<wire::FieldResult>) -> Result<Vec<Field>, String> = &fields;
    Ok(Overload {
        parameters: fields(found.parameters)?,
        variadic: found.variadic,
        returns: fields(found.returns)?,
        state: fields(found.state)?,
    })
}

/// One field.
///
/// # Errors
/// What is wrong with its type, as a phrase.
pub(super) fn field(found: wire::FieldResult) -> Result<Field, String> {
    Ok(Field::new(found.name, data_type(found.data_type)?, found.nullable))
}

fn data_type(found: wire::DataTypeResult) -> Result<DataType, String> {
    use wire::DataTypeResult as Wire;
    Ok(match found {
        Wire::Boolean => DataType::Boolean,
        Wire::Int32 => DataType::Int32,
        Wire::Int64 => DataType::Int64,
        Wire::Uint64 => DataType::UInt64,
        Wire::Float32 => DataType::Float32,
        Wire::Float64 => DataType::Float64,
        Wire::Utf8 => DataType::Utf8,
        Wire::Binary => DataType::Binary,
        Wire::Date32 => DataType::Date32,
        Wire::Timestamp(timestamp) => {
            if timestamp.timezone.as_ref().is_some_and(|zone| zone.len() > 63) {
                return Err("a time zone of more than 63 bytes".to_owned());
            }
            DataType::Timestamp(unit(timestamp.unit), timestamp.timezone.map(Into::into))
        }
        Wire::Duration(found) => DataType::Duration(unit(found)),
        Wire::Arrow(schema) => framed_type(&schema)?,
    })
}

fn unit(found: wire::TimeUnit) -> TimeUnit {
    match found {
        wire::TimeUnit::Second => TimeUnit::Second,
        wire::TimeUnit::Millisecond => TimeUnit::Millisecond,
        wire::TimeUnit::Microsecond => TimeUnit::Microsecond,
        wire::TimeUnit::Nanosecond => TimeUnit::Nanosecond,
    }
}

/// The type of the one field of an Arrow schema message, framed or not.
fn framed_type(message: &[u8]) -> Result<DataType, String> {
    // The reader of schemas gives up on some of them in a panic.
    let schema = catch_unwind(AssertUnwindSafe(|| read_schema(message)))
        .map_err(|_| "an Arrow schema that cannot be read".to_owned())??;
    let [field] = schema.fields().as_ref() else {
        return Err(format!("an Arrow schema of {} fields", schema.fields().len()));
    };
    let data_type = field.data_type();
    if !accept::travels_framed(data_type) {
        return Err(format!("{data_type} as an Arrow schema, where the interface has a word"));
    }
    if has_dictionary(data_type) {
        return Err(format!("a type with dictionaries: {data_type}"));
    }
    Ok(data_type.clone())
}

fn read_schema(message: &[u8]) -> Result<Schema, String> {
    let body = match message {
        [0xff, 0xff, 0xff, 0xff, _, _, _, _, body @ ..] => body,
        body => body,
    };
    let message = arrow::ipc::root_as_message(body)
        .map_err(|error| format!("a bad Arrow schema: {error}"))?;
    let schema = message.header_as_schema().ok_or("no schema in an Arrow message")?;
    Ok(arrow::ipc::convert::fb_to_schema(schema))
}

fn has_dictionary(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, _) => true,
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _)
        | DataType::RunEndEncoded(_, field) => has_dictionary(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|each| has_dictionary(each.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, it)| has_dictionary(it.data_type())),
        _ => false,
    }
}

/// The schema message of each field whose type travels as one; empty for the others.
///
/// # Errors
/// [`kymo_kernel::Code::Internal`] if a type cannot be framed.
pub(super) fn schemas(fields: &[Field]) -> Result<Vec<Vec<u8>>> {
    let schema = |field: &Field| {
        if !accept::travels_framed(field.data_type()) {
            return Ok(Vec::new());
        }
        let schema = Schema::new(vec![Field::new("", field.data_type().clone(), true)]);
        let writer = StreamWriter::try_new(Vec::new(), &schema)
            .map_err(|error| Error::internal(format!("frame a type for a plugin: {error}")))?;
        Ok(writer.get_ref().clone())
    };
    fields.iter().map(schema).collect()
}

/// Fields as the bindings take them, with the messages that [`schemas`] made.
pub(super) fn as_fields<'a>(
    fields: &'a [Field],
    schemas: &'a [Vec<u8>],
) -> Vec<wire::FieldParam<'a>> {
    let param = |(field, schema): (&'a Field, &'a Vec<u8>)| wire::FieldParam {
        name: field.name(),
        data_type: as_data_type(field.data_type(), schema),
        nullable: field.is_nullable(),
    };
    fields.iter().zip(schemas).map(param).collect()
}

fn as_data_type<'a>(data_type: &'a DataType, schema: &'a [u8]) -> wire::DataTypeParam<'a> {
    use wire::DataTypeParam as Wire;
    match data_type {
        DataType::Boolean => Wire::Boolean,
        DataType::Int32 => Wire::Int32,
        DataType::Int64 => Wire::Int64,
        DataType::UInt64 => Wire::Uint64,
        DataType::Float32 => Wire::Float32,
        DataType::Float64 => Wire::Float64,
        DataType::Utf8 => Wire::Utf8,
        DataType::Binary => Wire::Binary,
        DataType::Date32 => Wire::Date32,
        DataType::Timestamp(found, zone) => Wire::Timestamp(wire::TimestampTypeParam {
            unit: as_unit(*found),
            timezone: zone.as_deref(),
        }),
        DataType::Duration(found) => Wire::Duration(as_unit(*found)),
        _ => Wire::Arrow(schema),
    }
}

fn as_unit(unit: TimeUnit) -> wire::TimeUnit {
    match unit {
        TimeUnit::Second => wire::TimeUnit::Second,
        TimeUnit::Millisecond => wire::TimeUnit::Millisecond,
        TimeUnit::Microsecond => wire::TimeUnit::Microsecond,
        TimeUnit::Nanosecond => wire::TimeUnit::Nanosecond,
    }
}
