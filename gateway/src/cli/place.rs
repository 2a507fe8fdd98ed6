//! Where the files of commands without a server lie: in a folder, or in the bucket that the
//! settings or an argument name.

use std::path::{Path, PathBuf};

use kymo_config::{Settings, Sources};
use kymo_kernel::bucket;
use kymo_kernel::env::failpoint::{self, Holds};
use kymo_kernel::env::{Env, real};
use kymo_kernel::storage::segment::LocalSegments;
use kymo_kernel::{Code, Error, Result};

/// Which settings count.
#[derive(Debug, clap::Args)]
pub struct Config {
    /// Settings file, for buckets and the layout of segments [default: ./kymo.toml where there
    /// is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Config {
    /// The settings of file and environment.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn settings(&self) -> Result<Settings> {
        let sources = Sources::of_process(self.config.clone(), Vec::new());
        kymo_config::load(&sources).map_err(|problems| {
            Error::new(Code::Settings, problems.to_string())
                .with_hint("config/default.toml explains every key")
        })
    }
}

/// The outside world of the store in a folder: with its second place for segments, and with its
/// bucket unless all else lies there.
///
/// # Errors
/// A bucket that cannot be used.
pub fn of_store(folder: &Path, settings: &Settings) -> Result<Env> {
    let env = real::env();
    if bucket::is_local(&env, folder)? {
        return bucket::attached_cold(env, folder, &settings.storage);
    }
    bucket::attached(env, folder, &settings.storage)
}

/// A place for backups: a folder of this machine, or `s3://bucket/prefix`.
pub struct Backups {
    /// Its files.
    pub files: LocalSegments,
    scratch: Option<(Env, PathBuf)>,
}

impl Backups {
    /// Finds it.
    ///
    /// # Errors
    /// A bucket that cannot be used.
    pub fn at(place: &Path, settings: &Settings) -> Result<Backups> {
        let env = real::env();
        let Some(address) = place.to_str().filter(|text| text.contains("://")) else {
            let env = failpoint::armed(env, place, Holds::Backups)?;
            let files = LocalSegments::new(env.disk, place.to_owned());
            return Ok(Backups { files, scratch: None });
        };
        let scratch = std::env::temp_dir().join(format!("kymo-uploads-{}", std::process::id()));
        let bucket = bucket::place(env.clone(), place, &scratch, address, &settings.storage)?;
        let bucket = failpoint::armed(bucket, place, Holds::Backups)?;
        let files = LocalSegments::new(bucket.disk, place.to_owned());
        Ok(Backups { files, scratch: Some((env, scratch)) })
    }
}

impl Drop for Backups {
    fn drop(&mut self) {
        if let Some((env, folder)) = &self.scratch {
            // It was never made where nothing was uploaded.
            let _ = env.disk.remove_dir(folder);
        }
    }
}
