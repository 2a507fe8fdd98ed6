//! Ingest transform: columns from members of a JSON column.
//!
//! Settings: `column` (the JSON text), `fields` (what to take, as `name:type` with commas;
//! types are `double`, `bigint`, `boolean`, `text`; a name with dots goes down into objects and
//! becomes a column with underscores). A row whose text is no JSON object, or whose member has
//! another type, is rejected with the reason; a missing member is NULL.

mod json;

use json::Value;
use kymo_udf::column::Results;
use kymo_udf::{
    Batch, Column, DataType, Error, Field, Output, RejectedRow, Settings, Transform, Values,
    plugin, transform,
};

/// What a member becomes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Double,
    Bigint,
    Boolean,
    Text,
}

/// A member to take.
struct Member {
    path: Vec<String>,
    kind: Kind,
}

/// The JSON column, what to take of it, and the columns that stay.
struct JsonFields {
    column: usize,
    members: Vec<Member>,
    schema: Vec<Field>,
}

fn member(text: &str) -> Result<Member, Error> {
    let bad = || Error::invalid(format!("{text:?} is not name:type"));
    let (name, kind) = text.split_once(':').ok_or_else(bad)?;
    let kind = match kind.trim() {
        "double" => Kind::Double,
        "bigint" => Kind::Bigint,
        "boolean" => Kind::Boolean,
        "text" => Kind::Text,
        other => return Err(Error::invalid(format!("{other:?} is no type of a member"))),
    };
    let path: Vec<String> = name.trim().split('.').map(str::to_owned).collect();
    if path.iter().any(String::is_empty) { Err(bad()) } else { Ok(Member { path, kind }) }
}

impl Member {
    fn field(&self) -> Field {
        let data_type = match self.kind {
            Kind::Double => DataType::Float64,
            Kind::Bigint => DataType::Int64,
            Kind::Boolean => DataType::Boolean,
            Kind::Text => DataType::Utf8,
        };
        Field { name: self.path.join("_"), data_type, nullable: true }
    }

    /// The member in a document; none where it is missing or null.
    fn find<'a>(&self, document: &'a Value) -> Result<Option<&'a Value>, String> {
        let mut at = document;
        for name in &self.path {
            match at {
                Value::Object(members) => match members.iter().find(|(each, _)| each == name) {
                    Some((_, value)) => at = value,
                    None => return Ok(None),
                },
                _ => return Err(format!("{} is not inside of an object", self.path.join("."))),
            }
        }
        Ok((*at != Value::Null).then_some(at))
    }

    /// Whether a value fits.
    fn check(&self, value: &Value) -> Result<(), String> {
        let fits = match (self.kind, value) {
            (Kind::Double, Value::Number(_))
            | (Kind::Boolean, Value::Bool(_))
            | (Kind::Text, Value::String(_)) => true,
            (Kind::Bigint, Value::Number(text)) => text.parse::<i64>().is_ok(),
            _ => false,
        };
        if fits { Ok(()) } else { Err(format!("{} is no {:?}", self.path.join("."), self.kind)) }
    }

    /// The column of this member over all documents, each of which has been checked.
    fn column(&self, documents: &[Option<Value>]) -> Column {
        let found = documents.iter().map(|document| {
            document.as_ref().and_then(|document| self.find(document).ok().flatten())
        });
        match self.kind {
            Kind::Double => collect(found, |value| number(value)?.parse::<f64>().ok()),
            Kind::Bigint => collect(found, |value| number(value)?.parse::<i64>().ok()),
            Kind::Boolean => collect(found, |value| match value {
                Value::Bool(truth) => Some(*truth),
                _ => None,
            }),
            Kind::Text => collect(found, |value| match value {
                Value::String(text) => Some(text.clone()),
                _ => None,
            }),
        }
    }
}

fn number(value: &Value) -> Option<&str> {
    match value {
        Value::Number(text) => Some(text),
        _ => None,
    }
}

fn collect<'a, T: kymo_udf::value::Write>(
    found: impl ExactSizeIterator<Item = Option<&'a Value>>,
    convert: impl Fn(&Value) -> Option<T>,
) -> Column {
    let mut results = Results::<Option<T>>::with_capacity(found.len());
    for value in found {
        match value.and_then(&convert) {
            // An optional value never fails.
            Some(value) => results.push(Some(value)).unwrap_or_default(),
            None => results.push_null(),
        }
    }
    results.finish()
}

/// Columns from members of a JSON column.
#[transform]
impl Transform for JsonFields {
    fn open(settings: &Settings, input: &[Field]) -> Result<Self, Error> {
        let name = settings.require("column")?;
        let column = input
            .iter()
            .position(|field| field.name == name && field.data_type == DataType::Utf8)
            .ok_or_else(|| Error::invalid(format!("the table has no text column {name}")))?;
        let members: Vec<Member> =
            settings.require("fields")?.split(',').map(member).collect::<Result<_, _>>()?;
        let mut schema = input.to_vec();
        schema.remove(column);
        for member in &members {
            let field = member.field();
            if schema.iter().any(|each| each.name == field.name) {
                return Err(Error::invalid(format!("two columns {}", field.name)));
            }
            schema.push(field);
        }
        Ok(JsonFields { column, members, schema })
    }

    fn schema(&self) -> Vec<Field> {
        self.schema.clone()
    }

    fn apply(&mut self, batch: Batch) -> Result<Output, Error> {
        let mut documents = Vec::with_capacity(batch.rows as usize);
        let mut rejected = Vec::new();
        let mut keep = Vec::with_capacity(batch.rows as usize);
        for (row, text) in texts(&batch, self.column)?.enumerate() {
            match text.map(|text| self.read(text)).transpose() {
                Ok(document) => {
                    keep.push(true);
                    documents.push(document);
                }
                Err(reason) => {
                    keep.push(false);
                    rejected.push(RejectedRow { row: row as u32, reason });
                }
            }
        }
        let mut batch = batch.filter(&keep);
        batch.columns.remove(self.column);
        batch.columns.extend(self.members.iter().map(|member| member.column(&documents)));
        Ok(Output { batch, rejected })
    }
}

impl JsonFields {
    /// A document in which every member has its type.
    fn read(&self, text: &str) -> Result<Value, String> {
        let document = json::parse(text)?;
        if !matches!(document, Value::Object(_)) {
            return Err("no JSON object".to_owned());
        }
        for member in &self.members {
            if let Some(value) = member.find(&document)? {
                member.check(value)?;
            }
        }
        Ok(document)
    }
}

/// The texts of a column; none where it is null.
fn texts(batch: &Batch, column: usize) -> Result<impl Iterator<Item = Option<&str>>, Error> {
    let column = batch.columns.get(column).filter(|each| matches!(each.values, Values::Bytes(_)));
    let column = column.ok_or_else(|| Error::internal("the batch has no text column there"))?;
    let rows = batch.rows as usize;
    let texts = kymo_udf::column::Arg::<&str>::column(column, rows)?;
    Ok((0..rows).map(move |row| texts.option(row)))
}

plugin! {
    name: "json_fields",
    description: "Columns from members of a JSON column",
    transforms: [JsonFields],
}

#[cfg(test)]
mod tests {
    use kymo_udf::VarBytes;

    use super::*;

    fn open(fields: &str) -> Result<JsonFields, Error> {
        let input = [Field { name: "payload".into(), data_type: DataType::Utf8, nullable: true }];
        let settings = [("column", "payload"), ("fields", fields)];
        let settings = settings.map(|(a, b)| (a.to_owned(), b.to_owned()));
        JsonFields::open(&Settings(settings.to_vec()), &input)
    }

    fn batch(texts: &[&str]) -> Batch {
        let mut bytes = VarBytes { offsets: vec![0], data: Vec::new() };
        for text in texts {
            bytes.data.extend_from_slice(text.as_bytes());
            bytes.offsets.push(bytes.data.len() as u32);
        }
        let column = Column { values: Values::Bytes(bytes), validity: None };
        Batch { rows: texts.len() as u32, columns: vec![column] }
    }

    #[test]
    fn members_become_columns_and_bad_rows_are_rejected() {
        let mut fields = open("t:double, meta.id:bigint, ok:boolean, name:text").unwrap();
        let names: Vec<String> = fields.schema().into_iter().map(|field| field.name).collect();
        assert_eq!(names, ["t", "meta_id", "ok", "name"]);
        let output = fields
            .apply(batch(&[
                r#"{"t": 1.5, "meta": {"id": 7}, "ok": true, "name": "a\u00e9\n"}"#,
                r#"{"t": "hot"}"#,
                r#"{"meta": 3}"#,
                "[1]",
                "{",
                "{}",
            ]))
            .unwrap();
        let rejected: Vec<(u32, &str)> =
            output.rejected.iter().map(|each| (each.row, each.reason.as_str())).collect();
        assert_eq!(
            rejected[..3],
            [
                (1, "t is no Double"),
                (2, "meta.id is not inside of an object"),
                (3, "no JSON object"),
            ]
        );
        assert_eq!((rejected.len(), rejected[3].0), (4, 4));
        assert_eq!(output.batch.rows, 2);
        let [t, id, ok, name] = &output.batch.columns[..] else { panic!("columns") };
        assert_eq!(t.values, Values::Float64(vec![1.5, 0.0]));
        assert_eq!(t.validity, Some(vec![0b01]));
        assert_eq!(id.values, Values::Int64(vec![7, 0]));
        assert_eq!(ok.values, Values::Bits(vec![0b01]));
        let text = VarBytes { offsets: vec![0, 4, 4], data: "aé\n".as_bytes().to_vec() };
        assert_eq!(name.values, Values::Bytes(text));
    }

    #[test]
    fn settings_are_checked() {
        for bad in ["", "a", "a:int", ".:text", "a:text,a:double"] {
            assert!(open(bad).is_err(), "{bad:?}");
        }
    }
}
