//! `kymo start`: settings, a server, and waiting for a signal.

use std::path::PathBuf;

use kymo_config::{Flag, Settings, Sources};
use kymo_kernel::{Code, Error, Result};

use super::{print, serve};

/// Run the server.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    settings: Choices,
    /// Print the settings that hold, and end
    #[arg(long)]
    print_config: bool,
}

/// The settings that have a flag of their own; all others are keys of the file.
#[derive(Debug, Default, clap::Args)]
pub struct Choices {
    /// Settings file [default: ./kymo.toml where there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder that holds everything
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address for HTTP
    #[arg(long, value_name = "ADDRESS")]
    http_host: Option<String>,
    /// Port for HTTP; 0 takes a free one
    #[arg(long, value_name = "PORT")]
    http_port: Option<String>,
    /// Address for the PostgreSQL wire protocol
    #[arg(long, value_name = "ADDRESS")]
    pg_host: Option<String>,
    /// Port for the PostgreSQL wire protocol; 0 takes a free one
    #[arg(long, value_name = "PORT")]
    pg_port: Option<String>,
    /// Let everybody in; on loopback only
    #[arg(long)]
    no_auth: bool,
    /// When a write is answered: every_write, periodic, os_default or none
    #[arg(long, value_name = "WORD")]
    durability: Option<String>,
}

impl Choices {
    /// Reads all layers of settings with these flags on top.
    ///
    /// # Errors
    /// Everything that is wrong with them, at once.
    pub fn settings(&self) -> Result<Settings> {
        let sources = Sources::of_process(self.config.clone(), self.flags());
        kymo_config::load(&sources).map_err(|problems| {
            Error::new(Code::Settings, problems.to_string())
                .with_hint("config/default.toml explains every key")
        })
    }

    fn flags(&self) -> Vec<Flag> {
        let off = self.no_auth.then(|| "false".to_owned());
        let all = [
            ("--data-dir", "server.data_dir", &self.data_dir),
            ("--http-host", "server.http_host", &self.http_host),
            ("--http-port", "server.http_port", &self.http_port),
            ("--pg-host", "server.pg_host", &self.pg_host),
            ("--pg-port", "server.pg_port", &self.pg_port),
            ("--no-auth", "auth.enabled", &off),
            ("--durability", "journal.durability", &self.durability),
        ];
        all.into_iter()
            .filter_map(|(name, key, value)| Some(Flag { name, key, value: value.clone()? }))
            .collect()
    }
}

/// Runs the command until a signal ends it.
///
/// # Errors
/// Settings that cannot be used, a folder or port that cannot be had, or a store that
/// refused to go on.
pub fn run(arguments: &Arguments) -> Result<()> {
    let settings = arguments.settings.settings()?;
    if arguments.print_config {
        return print(&kymo_config::print(&settings));
    }
    serve::start(settings)?.until_signal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_settings() {
        let choices = Choices {
            http_port: Some("0".to_owned()),
            no_auth: true,
            durability: Some("none".to_owned()),
            ..Choices::default()
        };
        let sources = Sources { flags: choices.flags(), ..Sources::default() };
        let settings = kymo_config::load(&sources).unwrap();
        assert_eq!(settings.server.http_port, 0);
        assert!(!settings.auth.enabled);
        assert_eq!(settings.journal.durability, "none");
    }
}
