//! The server as a child process that is stopped, killed and started again on its folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kymo_benches::server::{Outcome, Server, text};

/// How the server is made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Asked to, by SIGTERM.
    Stopped,
    /// By SIGKILL.
    Killed,
}

/// Small limits and short times, so that everything happens often.
const SETTINGS: [(&str, &str); 12] = [
    ("SERVER__PG_PORT", "0"),
    ("MEMTABLE__TABLE_BYTES", "8388608"),
    ("MEMTABLE__SOFT_BYTES", "33554432"),
    ("MEMTABLE__MAX_AGE_MS", "10000"),
    ("COMPACTION__INTERVAL_MS", "2000"),
    ("COMPACTION__QUIET_MS", "20000"),
    ("COMPACTION__GRACE_MS", "10000"),
    ("RETENTION__INTERVAL_MS", "5000"),
    ("JOURNAL__FILE_BYTES", "16777216"),
    ("SEGMENT__CACHE_BYTES", "33554432"),
    ("QUERY__MEMORY_BYTES", "268435456"),
    ("OBSERVE__LOG", "warn"),
];

/// How long a start or a polite end may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs.
pub struct Process {
    child: Child,
    binary: PathBuf,
    folder: PathBuf,
    port: u16,
}

impl Process {
    /// Starts a server and waits until it takes requests.
    pub fn start(binary: &Path, folder: &Path, port: u16) -> Outcome<Process> {
        let mut command = Command::new(binary);
        command.args(["start", "--no-auth", "--http-port", &port.to_string(), "--data-dir"]);
        command.arg(folder).stdin(Stdio::null()).stdout(Stdio::null());
        command.envs(SETTINGS.map(|(key, value)| (format!("KYMO__{key}"), value)));
        let child = command.spawn().map_err(|error| format!("{}: {error}", binary.display()))?;
        let (binary, folder) = (binary.to_owned(), folder.to_owned());
        let mut process = Process { child, binary, folder, port };
        let server = Server::new(&format!("http://127.0.0.1:{port}"), None)?;
        let began = Instant::now();
        while !server.ready() {
            if let Some(status) = process.child.try_wait().map_err(text)? {
                return Err(format!("the server ended with {status} before it was ready"));
            }
            if began.elapsed() > PATIENCE {
                return Err("the server is not ready after a minute".to_owned());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it and starts it again on the same folder.
    pub fn restart(mut self, end: End) -> Outcome<Process> {
        match end {
            End::Stopped => self.ask_to_stop()?,
            End::Killed => {
                self.child.kill().map_err(text)?;
                self.child.wait().map_err(text)?;
            }
        }
        Process::start(&self.binary, &self.folder, self.port)
    }

    /// Ends it politely.
    pub fn stop(mut self) -> Outcome<()> {
        self.ask_to_stop()
    }

    fn ask_to_stop(&mut self) -> Outcome<()> {
        Command::new("kill").arg(self.id().to_string()).status().map_err(text)?;
        let status = self.child.wait().map_err(text)?;
        if status.success() { Ok(()) } else { Err(format!("the server ended with {status}")) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already, but where the run ended by an error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
