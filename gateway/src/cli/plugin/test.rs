//! `kymo plugin test`: calls a function of a component in the host of this process, with the
//! same limits as in a server and without one. Only the component itself may be of any size:
//! `kymo plugin inspect` says what a server needs for it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arrow::array::{Array, ArrayRef, StringArray};
use arrow::compute::cast;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use kymo_config::Settings;
use kymo_kernel::{Code, Error, Result, env};
use kymo_plugins::memory::Unlimited;
use kymo_plugins::{
    Accumulator, Argument, Compiler, Emit, Kind, LoadOptions, Overload, PluginFunction, PluginHost,
    QueryContext, QueryPlugins,
};

use super::read;
use crate::cli::{misuse, print};

/// Runs the command: each of `columns` is a list of values with commas, `null` among them.
///
/// # Errors
/// The component cannot be loaded, has no such function, or the call fails.
pub fn run(component: &Path, function: &str, columns: &[String]) -> Result<()> {
    let bytes = read(component)?;
    let folder = Folder::new()?;
    let mut settings = Settings::default().plugins;
    settings.preview = true;
    settings.max_component_bytes = u64::MAX;
    settings.max_code_functions = usize::MAX;
    settings.max_code_body_bytes = u64::MAX;
    let compiler = Compiler::this_program(&settings)?;
    let host = PluginHost::start(&settings, &folder.0, env::real::env(), compiler)?;
    let version = host.load("tested", &bytes, &LoadOptions::default())?;
    let function = PluginFunction::named(&version, function).map_err(|error| {
        let names: Vec<&str> =
            version.description().functions.iter().map(|each| each.name.as_str()).collect();
        error.with_hint(format!("it has {}", names.join(", ")))
    })?;
    let result = call(&host, &function, columns)?;
    print(&render(&result)?)
}

fn call(host: &Arc<PluginHost>, function: &PluginFunction, columns: &[String]) -> Result<ArrayRef> {
    let (overload, arguments) = arguments(&function.function().overloads, columns)?;
    let rows = arguments.first().map_or(1, |column| column.len());
    let query = QueryPlugins::new(host.clone(), context());
    match function.function().kind {
        Kind::Scalar => {
            let arguments: Vec<Argument> = arguments.into_iter().map(Argument::Column).collect();
            query.scalar(function, overload, &arguments, rows)
        }
        Kind::Aggregate => {
            let mut groups = Accumulator::open(&query, function, overload)?;
            groups.update(&arguments, None, 1, None)?;
            groups.evaluate(Emit::All)
        }
        other => Err(Error::new(
            Code::Unsupported,
            format!("{} is a {} function", function.function().name, other.as_str()),
        )
        .with_hint("scalar functions and aggregates can be tried here")),
    }
}

/// A query that ends with its deadline of single calls, charged to nobody.
fn context() -> QueryContext {
    QueryContext {
        cancel: Arc::new(AtomicBool::new(false)),
        deadline: None,
        time_ns: env::real::env().clock.now_ns(),
        timezone: "UTC".to_owned(),
        seed: 0,
        memory: Arc::new(Unlimited),
        usage: Arc::default(),
    }
}

/// The first overload that takes so many columns and these values.
fn arguments(overloads: &[Overload], columns: &[String]) -> Result<(usize, Vec<ArrayRef>)> {
    let texts: Vec<ArrayRef> = columns.iter().map(|column| texts(column)).collect();
    if texts.windows(2).any(|two| two[0].len() != two[1].len()) {
        return Err(misuse("the columns differ in length", "give each as many values"));
    }
    let fitting = overloads.iter().enumerate().filter(|(_, each)| each.takes(texts.len()));
    let mut reason = None;
    for (number, overload) in fitting {
        match typed(overload, &texts) {
            Ok(arrays) => return Ok((number, arrays)),
            Err(error) => reason = reason.or(Some(error)),
        }
    }
    Err(reason.unwrap_or_else(|| {
        misuse(
            format!("the function does not take {} arguments", columns.len()),
            "give --in once for each argument",
        )
    }))
}

fn typed(overload: &Overload, texts: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    let types = (0..).map_while(|index| overload.parameter(index)).zip(texts);
    types
        .map(|(field, text)| {
            let array = cast(text, field.data_type());
            let array = array.ok().filter(|array| array.null_count() == text.null_count());
            array.ok_or_else(|| {
                let message =
                    format!("{} wants values of type {}", field.name(), field.data_type());
                Error::new(Code::InvalidCast, message)
            })
        })
        .collect()
}

/// Values with commas; `null` is none.
fn texts(column: &str) -> ArrayRef {
    let values = column.split(',').map(|value| {
        let value = value.trim();
        (!value.eq_ignore_ascii_case("null")).then_some(value)
    });
    Arc::new(values.collect::<StringArray>())
}

fn render(result: &ArrayRef) -> Result<String> {
    let options = FormatOptions::default().with_null("null");
    let broken = |error| Error::internal(format!("show the result: {error}"));
    let values = ArrayFormatter::try_new(result, &options).map_err(broken)?;
    Ok((0..result.len()).map(|row| format!("{}\n", values.value(row))).collect())
}

/// A folder for compiled code, gone with the command.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let name = format!("kymo-plugin-test-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        crate::cli::credentials::make_folder(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays behind in a temporary folder is the system's to clear.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;

    fn overload(parameters: &[DataType]) -> Overload {
        let field = |of: &DataType| Field::new("x", of.clone(), true);
        Overload {
            parameters: parameters.iter().map(field).collect(),
            variadic: false,
            returns: Vec::new(),
            state: Vec::new(),
        }
    }

    #[test]
    fn values_become_the_type_of_the_parameter() {
        let overloads = [overload(&[DataType::Int64]), overload(&[DataType::Float64])];
        let choose = |column: &str| arguments(&overloads, &[column.to_owned()]);
        let (number, columns) = choose("1, 2,null").unwrap();
        assert_eq!((number, columns[0].null_count()), (0, 1));
        assert_eq!(choose("1.5").unwrap().0, 1);
        assert_eq!(choose("hot").unwrap_err().code(), Code::InvalidCast);
        assert!(arguments(&overloads, &[]).is_err());
    }
}
