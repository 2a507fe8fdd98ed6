//! `kymo plugin`: from an empty folder to a function in SQL, without any other tool of ours.
//!
//! `new`, `build`, `pack`, `inspect` and `test` work on files; `install`, `list` and `remove` speak to a
//! server.

mod build;
mod inspect;
mod new;
mod server;
mod test;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use kymo_config::Settings;
use kymo_kernel::{Error, Result};
use kymo_plugins::validate::{CodeLimits, Need, measure};

use super::client::Target;
use super::print;

/// Where a server has its plugins.
pub const PATH: &str = "/api/v1/plugins";

/// Write, build and install functions as WebAssembly components
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a new project
    New {
        /// The plugin's name, which is also its folder's
        name: String,
        /// What it is written in
        #[arg(long, short, value_enum, default_value_t = new::Language::Rust)]
        language: new::Language,
    },
    /// Build the project in a folder and pack it
    Build {
        /// The project's folder
        #[arg(default_value = ".")]
        folder: PathBuf,
        /// The component to write [default: the project's name with .wasm, in its folder]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make a component of a core module
    Pack {
        /// The module, as a compiler wrote it
        module: PathBuf,
        /// The component to write
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Show what a component asks for and offers, without running it
    Inspect {
        /// The component
        component: PathBuf,
    },
    /// Call a function of a component, without a server
    Test {
        /// The component
        component: PathBuf,
        /// The function's name
        #[arg(long = "fn", value_name = "NAME")]
        function: String,
        /// The values of one argument, with commas; `null` is none. Once for each argument
        #[arg(long = "in", value_name = "VALUES", allow_hyphen_values = true)]
        columns: Vec<String>,
    },
    /// Send a component to a server; a plugin of the same name is replaced while it runs
    Install {
        /// The component
        component: PathBuf,
        /// Its name on the server [default: the file's]
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Show the plugins of a server
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Remove a plugin from a server
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Runs the command.
///
/// # Errors
/// Files that cannot be read or written, a build that fails, or what the server says is wrong.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::New { name, language } => new::run(name, *language),
        Command::Build { folder, output } => build::run(folder, output.as_deref()),
        Command::Pack { module, output } => pack(module, output),
        Command::Inspect { component } => inspect::run(component),
        Command::Test { component, function, columns } => test::run(component, function, columns),
        Command::Install { component, name, target } => {
            server::install(component, name.as_deref(), target)
        }
        Command::List { target } => server::list(target),
        Command::Remove { name, target } => server::remove(name, target),
    }
}

fn pack(module: &Path, output: &Path) -> Result<()> {
    let component = kymo_plugins::pack::pack(&read(module)?)
        .map_err(|error| error.context(format_args!("pack {}", module.display())))?;
    write(output, &component)?;
    let told = match needs(&component) {
        Ok(needs) if needs.is_empty() => String::new(),
        Ok(needs) => format!("a server takes it with\n{}", needs_text(&needs)),
        Err(error) => format!("a server refuses it: {}\n", error.message()),
    };
    print(&format!("{}: {} bytes\n{told}", output.display(), component.len()))
}

/// What has to be raised in a server with the default settings.
fn needs(component: &[u8]) -> Result<Vec<Need>> {
    Ok(CodeLimits::of(&Settings::default().plugins).needs(&measure(component)?))
}

fn needs_text(needs: &[Need]) -> String {
    needs.iter().map(|need| format!("  {need}  (by default {})\n", need.limit)).collect()
}

#[expect(clippy::disallowed_methods, reason = "a file of the user's, not of the store")]
fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::io(format_args!("read {}", path.display()), error))
}

#[expect(clippy::disallowed_methods, reason = "a file of the user's, not of the store")]
fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content)
        .map_err(|error| Error::io(format_args!("write {}", path.display()), error))
}
