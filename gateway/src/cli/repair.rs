//! `kymo repair`: saves what can be saved of a damaged data folder, and deletes nothing.

use std::process::ExitCode;

use kymo_kernel::Result;
use kymo_kernel::storage::integrity::{self, Repaired};

use super::check::{Folder, Shown, code, print_json, render};
use super::place::{Config, of_store};
use super::print;

/// Save what can be saved of a damaged data folder.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    folder: Folder,
    #[command(flatten)]
    config: Config,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command; tells a folder that is whole now from one that is not.
///
/// # Errors
/// The folder holds no store, is in use, cannot be read or written.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let folder = arguments.folder.path()?;
    let settings = arguments.config.settings()?;
    let env = of_store(folder, &settings)?;
    let mut shown = Shown::default();
    let done = integrity::repair(&env, folder, &settings, &mut |at| shown.to(at));
    shown.clear();
    let done = done?;
    if arguments.json {
        print_json(&done)?;
    } else {
        print(&told(&done))?;
    }
    Ok(code(&done.after))
}

fn told(done: &Repaired) -> String {
    if done.actions.is_empty() {
        return render(&done.after);
    }
    let mut text = render(&done.before);
    text.push('\n');
    for action in &done.actions {
        text.push_str(&format!("{action}\n"));
    }
    if let Some(salvage) = &done.salvage {
        text.push_str(&format!("what was taken away is in {}\n", salvage.display()));
    }
    text.push('\n');
    text + &render(&done.after)
}
