//! A store on a simulated disk, opened in steps, and the files that it has there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kymo_config::Settings;
use kymo_kernel::Result;
use kymo_kernel::env::sim::Sim;
use kymo_kernel::storage::Store;

pub const ROOT: &str = "/store";

/// Small files and a short grace, so that little is enough to fill and to wait for.
pub fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.journal.file_bytes = 4096;
    settings.compaction.grace_ms = 1000;
    settings
}

pub fn open(sim: &Sim, settings: &Settings) -> Result<Arc<Store>> {
    Store::open_stepped(sim.env(), PathBuf::from(ROOT), settings)
}

/// The files of a folder of the store, or of any whose path begins with `/`, in order.
pub fn files(sim: &Sim, folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(ROOT).join(folder);
    sim.disk.files().into_iter().filter(|path| path.starts_with(&folder)).collect()
}
