//! What a plugin says that it offers, in types of our own: checked, bounded, and the same for
//! every line of the interface.

use arrow::datatypes::{DataType, Field};
use kymo_kernel::{Code, Error, Result};
use serde::{Deserialize, Serialize};

use crate::limits::DescriptionLimits;

/// What a plugin is and offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The name that its author gave it; installed it may be called otherwise.
    pub name: String,
    /// The version that its author gave it, by semantic versioning.
    pub version: String,
    /// What it is for, in Markdown.
    pub description: String,
    /// What it offers. The index in this list is the function's number in every call.
    pub functions: Vec<Function>,
}

/// What a function is to a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One value a row.
    Scalar,
    /// One value a group.
    Aggregate,
    /// One value a row, from its whole window partition.
    Window,
    /// A table.
    Table,
    /// Rows on their way into a table.
    Transform,
}

impl Kind {
    /// Its name as `system.functions` shows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Scalar => "scalar",
            Kind::Aggregate => "aggregate",
            Kind::Window => "window",
            Kind::Table => "table",
            Kind::Transform => "transform",
        }
    }
}

/// How far a result can be reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Volatility {
    /// Same arguments, same result, always.
    Immutable,
    /// Same within one query.
    Stable,
    /// Evaluated for every row.
    Volatile,
}

/// Who looks at nulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nulls {
    /// The host: a scalar is null where an argument is, an aggregate sees no row with a null.
    Skip,
    /// The plugin.
    Pass,
}

/// One function of a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Its name in SQL: `[a-z_][a-z0-9_]{0,62}`, its own within the plugin.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its signatures. The index in this list is the overload's number in every call.
    pub overloads: Vec<Overload>,
    /// How far results can be reused.
    pub volatility: Volatility,
    /// Who looks at nulls.
    pub nulls: Nulls,
    /// Aggregates: kept states are merged only with states of the same number.
    pub state_version: u32,
    /// Aggregates: rows can be taken out again, for sliding windows.
    pub retractable: bool,
    /// What it does, in Markdown.
    pub description: String,
}

/// One signature of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overload {
    /// Parameters in order.
    #[serde(with = "fields")]
    pub parameters: Vec<Field>,
    /// Whether the last parameter may repeat.
    pub variadic: bool,
    /// One field; the columns of a table function; nothing for a transform.
    #[serde(with = "fields")]
    pub returns: Vec<Field>,
    /// Aggregates: the columns of an intermediate state.
    #[serde(with = "fields")]
    pub state: Vec<Field>,
}

impl Overload {
    /// The type of the parameter that takes the argument of this index, counting the last one
    /// again where it repeats.
    #[must_use]
    pub fn parameter(&self, index: usize) -> Option<&Field> {
        match self.parameters.get(index) {
            None if self.variadic => self.parameters.last(),
            found => found,
        }
    }

    /// Whether it can be called with so many arguments.
    #[must_use]
    pub fn takes(&self, arguments: usize) -> bool {
        match self.variadic {
            true => arguments >= self.parameters.len(),
            false => arguments == self.parameters.len(),
        }
    }

    /// The type of the one result of scalar, aggregate and window functions.
    ///
    /// # Errors
    /// [`Code::Internal`] for a table function or a transform.
    pub fn result(&self) -> Result<&Field> {
        match self.returns.as_slice() {
            [field] => Ok(field),
            _ => Err(Error::internal("a function with one result has not one result field")),
        }
    }
}

impl Description {
    /// The function of this name with its number.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<(u32, &Function)> {
        let found = self.functions.iter().enumerate().find(|(_, each)| each.name == name);
        found.and_then(|(index, function)| Some((u32::try_from(index).ok()?, function)))
    }

    /// Refuses what goes beyond the limits or contradicts itself.
    ///
    /// # Errors
    /// [`Code::InvalidInput`] naming the first function at fault.
    pub fn check(&self, limits: &DescriptionLimits) -> Result<()> {
        for (what, text) in [("name", &self.name), ("version", &self.version)] {
            if text.is_empty() || text.len() > 63 {
                return Err(refuse(format!("its {what} has {} bytes, not 1 to 63", text.len())));
            }
        }
        bounded("its description", self.description.len(), limits.text_bytes)?;
        bounded("its list of functions", self.functions.len(), limits.functions)?;
        let mut names = std::collections::HashSet::new();
        for (index, function) in self.functions.iter().enumerate() {
            if !is_sql_name(&function.name) {
                let shown: String = function.name.chars().take(80).collect();
                return Err(refuse(format!("function {index} is called {shown:?}"))
                    .with_hint("use [a-z_][a-z0-9_]{0,62}"));
            }
            function
                .check(limits)
                .map_err(|error| error.context(format!("function {}", function.name)))?;
            if !names.insert(function.name.as_str()) {
                return Err(refuse(format!("two functions are called {}", function.name))
                    .with_hint("give one function several overloads"));
            }
        }
        Ok(())
    }
}

impl Function {
    fn check(&self, limits: &DescriptionLimits) -> Result<()> {
        bounded("its description", self.description.len(), limits.text_bytes)?;
        bounded("its list of overloads", self.overloads.len(), limits.overloads)?;
        if self.overloads.is_empty() {
            return Err(refuse("it has no overload"));
        }
        if self.retractable && self.kind != Kind::Aggregate {
            return Err(refuse("only an aggregate can be retractable"));
        }
        for (index, overload) in self.overloads.iter().enumerate() {
            overload
                .check(self.kind, limits)
                .map_err(|error| error.context(format!("overload {index}")))?;
        }
        Ok(())
    }
}

impl Overload {
    fn check(&self, kind: Kind, limits: &DescriptionLimits) -> Result<()> {
        let lists = [
            ("parameters", &self.parameters),
            ("results", &self.returns),
            ("state columns", &self.state),
        ];
        for (what, fields) in lists {
            bounded(&format!("its list of {what}"), fields.len(), limits.columns)?;
            for field in fields {
                check_field(field, limits)?;
            }
        }
        let results = match kind {
            Kind::Scalar | Kind::Aggregate | Kind::Window => self.returns.len() == 1,
            Kind::Table => !self.returns.is_empty(),
            Kind::Transform => self.returns.is_empty() && self.parameters.is_empty(),
        };
        if !results {
            return Err(refuse(format!(
                "{} result columns do not fit a function of kind {}",
                self.returns.len(),
                kind.as_str()
            )));
        }
        if (kind == Kind::Aggregate) == self.state.is_empty() {
            return Err(refuse("aggregates, and nothing else, have state columns"));
        }
        if kind == Kind::Aggregate && self.parameters.is_empty() {
            return Err(refuse("an aggregate takes at least one argument"));
        }
        if self.variadic && self.parameters.is_empty() {
            return Err(refuse("it is variadic without a parameter to repeat"));
        }
        Ok(())
    }
}

fn check_field(field: &Field, limits: &DescriptionLimits) -> Result<()> {
    bounded("the name of a field", field.name().len(), 63)?;
    match deeper_than(field.data_type(), limits.type_depth) {
        true => Err(refuse(format!("a type is nested deeper than {}", limits.type_depth))),
        false => Ok(()),
    }
}

/// Whether a type has more levels than allowed; looks no further than that.
fn deeper_than(data_type: &DataType, levels: usize) -> bool {
    let Some(below) = levels.checked_sub(1) else { return true };
    let deep = |field: &Field| deeper_than(field.data_type(), below);
    match data_type {
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => deep(field),
        DataType::Struct(fields) => fields.iter().any(|field| deep(field)),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| deep(field)),
        DataType::Dictionary(_, values) => deeper_than(values, below),
        DataType::RunEndEncoded(_, values) => deep(values),
        _ => false,
    }
}

fn bounded(what: &str, size: usize, limit: usize) -> Result<()> {
    match size > limit {
        true => Err(refuse(format!("{what} has a size of {size}, {limit} is the most"))),
        false => Ok(()),
    }
}

fn is_sql_name(name: &str) -> bool {
    let mut letters = name.bytes();
    letters.next().is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
        && letters.all(|each| each.is_ascii_lowercase() || each.is_ascii_digit() || each == b'_')
        && name.len() <= 63
}

fn refuse(what: impl Into<String>) -> Error {
    Error::new(Code::InvalidInput, what)
}

/// Fields as `{name, type, nullable}`, the type in Arrow's own notation.
mod fields {
    use super::{DataType, Deserialize, Field, Serialize};
    use serde::{Deserializer, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Plain {
        name: String,
        #[serde(rename = "type")]
        data_type: String,
        nullable: bool,
    }

    pub(super) fn serialize<S: Serializer>(fields: &[Field], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(fields.iter().map(|field| Plain {
            name: field.name().clone(),
            data_type: field.data_type().to_string(),
            nullable: field.is_nullable(),
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Field>, D::Error> {
        let fields = Vec::<Plain>::deserialize(from)?;
        let read = |field: Plain| {
            let data_type: DataType = field.data_type.parse().map_err(serde::de::Error::custom)?;
            Ok(Field::new(field.name, data_type, field.nullable))
        };
        fields.into_iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::TimeUnit;

    use super::*;

    fn field(data_type: DataType) -> Vec<Field> {
        vec![Field::new("x", data_type, true)]
    }

    fn good() -> Description {
        let scalar = Function {
            name: "c2f".into(),
            kind: Kind::Scalar,
            overloads: vec![Overload {
                parameters: field(DataType::Float64),
                variadic: false,
                returns: field(DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))),
                state: vec![],
            }],
            volatility: Volatility::Immutable,
            nulls: Nulls::Skip,
            state_version: 0,
            retractable: false,
            description: "d".into(),
        };
        let mut aggregate = scalar.clone();
        aggregate.name = "spread".into();
        aggregate.kind = Kind::Aggregate;
        aggregate.overloads[0].state = field(DataType::Utf8);
        Description {
            name: "weather".into(),
            version: "1.0.0".into(),
            description: String::new(),
            functions: vec![scalar, aggregate],
        }
    }

    #[test]
    fn a_description_survives_json() {
        let description = good();
        description.check(&DescriptionLimits::default()).unwrap();
        let text = serde_json::to_string(&description).unwrap();
        assert_eq!(serde_json::from_str::<Description>(&text).unwrap(), description);
    }

    #[test]
    fn each_rule_refuses_its_breach() {
        type Breach = (&'static str, fn(&mut Description));
        let breaches: Vec<Breach> = vec![
            ("its name has", |d| d.name.clear()),
            ("its version has", |d| d.version = "1".repeat(64)),
            ("its description has", |d| d.description = "x".repeat(4097)),
            ("its list of functions", |d| d.functions = vec![d.functions[0].clone(); 257]),
            ("is called", |d| d.functions[0].name = "C2F".into()),
            ("is called", |d| d.functions[0].name = "a".repeat(1 << 20)),
            ("is called", |d| d.functions[0].name = "drop table".into()),
            ("two functions", |d| d.functions[0].name = "spread".into()),
            ("its list of overloads", |d| {
                d.functions[0].overloads = vec![d.functions[0].overloads[0].clone(); 65];
            }),
            ("no overload", |d| d.functions[0].overloads.clear()),
            ("retractable", |d| d.functions[0].retractable = true),
            ("result columns", |d| d.functions[0].overloads[0].returns.clear()),
            ("result columns", |d| d.functions[0].kind = Kind::Transform),
            ("state columns", |d| d.functions[1].overloads[0].state.clear()),
            ("state columns", |d| d.functions[1].kind = Kind::Scalar),
            ("at least one argument", |d| d.functions[1].overloads[0].parameters.clear()),
            ("variadic", |d| {
                d.functions[0].overloads[0].variadic = true;
                d.functions[0].overloads[0].parameters.clear();
            }),
            ("nested deeper", |d| {
                let mut nested = DataType::Int32;
                for _ in 0..8 {
                    nested = DataType::List(Arc::new(Field::new("item", nested, true)));
                }
                d.functions[0].overloads[0].parameters = field(nested);
            }),
            ("name of a field", |d| {
                d.functions[0].overloads[0].parameters =
                    vec![Field::new("x".repeat(64), DataType::Int32, true)];
            }),
        ];
        for (message, breach) in breaches {
            let mut description = good();
            breach(&mut description);
            let error = description.check(&DescriptionLimits::default()).unwrap_err();
            assert_eq!(error.code(), Code::InvalidInput);
            assert!(error.message().contains(message), "{message}: {error}");
            assert!(error.message().len() < 300, "{}", error.message().len());
        }
    }
}
