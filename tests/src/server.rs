//! The real binary as a child process on a folder of its own, with free ports.
//!
//! It can be killed at any moment, stopped politely and started again on the same folder.
//! Its log is kept and printed when the test fails.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use crate::wait::until;
use crate::{ADMIN, PASSWORD};

/// How to start a server.
#[derive(Debug, Clone)]
pub struct Options {
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    command: &'static str,
    arguments: Vec<String>,
    data_dir: Option<PathBuf>,
    auth: bool,
    file_size_limit: Option<u64>,
    deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            settings: Vec::new(),
            environment: Vec::new(),
            command: "start",
            arguments: Vec::new(),
            data_dir: None,
            auth: true,
            file_size_limit: None,
            deadline: Duration::from_secs(60),
        }
    }
}

impl Options {
    /// A server on a new folder, with [`ADMIN`] and [`PASSWORD`], on free loopback ports.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key such as `memtable.table_bytes`.
    #[must_use]
    pub fn setting(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Sets a variable of the server's environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Runs `kymo demo` instead of `kymo start`.
    #[must_use]
    pub fn demo(mut self) -> Self {
        self.command = "demo";
        self
    }

    /// Adds an argument after `kymo start`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Lets everybody in.
    #[must_use]
    pub fn no_auth(mut self) -> Self {
        self.auth = false;
        self.argument("--no-auth")
    }

    /// Uses this folder, which then outlives the server.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// No file of the server may grow beyond this: the nearest thing to a full disk that
    /// needs no rights. Writes beyond it fail with `EFBIG`.
    #[must_use]
    pub fn file_size_limit(mut self, bytes: u64) -> Self {
        self.file_size_limit = Some(bytes);
        self
    }

    /// How long it may take until the server listens.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

/// A server that ended before it listened.
#[derive(Debug)]
pub struct StartFailed {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed, on both streams.
    pub log: String,
}

/// A running server; killed when dropped.
pub struct Server {
    /// Where it serves HTTP.
    pub http: SocketAddr,
    /// Where it serves the PostgreSQL wire protocol.
    pub pg: SocketAddr,
    pub(crate) auth: bool,
    pub(crate) client: reqwest::Client,
    child: Child,
    data: Data,
    options: Options,
    output: Output,
}

/// The data folder, which goes with the test unless the test owns it.
enum Data {
    Temporary(Arc<TempDir>),
    Given(PathBuf),
}

impl Data {
    fn path(&self) -> &Path {
        match self {
            Data::Temporary(dir) => dir.path(),
            Data::Given(path) => path,
        }
    }
}

/// Where the binary under test is: `KYMO_BIN`, or beside the test executables.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("KYMO_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the path of the test executable");
    let path = test.ancestors().nth(2).expect("a target folder").join("kymo");
    assert!(path.exists(), "{} is missing: run `cargo build` first", path.display());
    path
}

impl Server {
    /// Starts one and waits until it listens. Fails the test where it does not.
    #[must_use]
    pub fn start(options: Options) -> Server {
        Self::try_start(options)
            .unwrap_or_else(|failed| panic!("no start ({}):\n{}", failed.status, failed.log))
    }

    /// Starts one and waits until it listens, or tells how it ended.
    ///
    /// # Errors
    /// The exit status and the log of a server that ended before it listened.
    pub fn try_start(options: Options) -> Result<Server, StartFailed> {
        let data = match &options.data_dir {
            Some(path) => Data::Given(path.clone()),
            None => Data::Temporary(Arc::new(TempDir::new().expect("a temporary folder"))),
        };
        Self::start_on(options, data)
    }

    fn start_on(options: Options, data: Data) -> Result<Server, StartFailed> {
        let mut child = command(&options, data.path()).spawn().expect("the kymo binary runs");
        let mut output = Output::of(&mut child);
        let ready = until("the listening line", options.deadline, || {
            if let Some(addresses) = output.addresses() {
                return Some(Ok(addresses));
            }
            let status = child.try_wait().expect("the state of the child")?;
            Some(Err(status))
        });
        match ready {
            Ok((http, pg)) => Ok(Server {
                http,
                pg,
                auth: options.auth,
                client: reqwest::Client::new(),
                child,
                data,
                options,
                output,
            }),
            Err(status) => {
                output.finish();
                Err(StartFailed { status, log: output.text() })
            }
        }
    }

    /// The folder of its data.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, on both streams.
    #[must_use]
    pub fn log(&self) -> String {
        self.output.text()
    }

    /// Waits until the log holds a text.
    pub fn wait_for_log(&self, text: &str, deadline: Duration) {
        until(&format!("{text:?} in the log"), deadline, || {
            self.log().contains(text).then_some(())
        });
    }

    /// Sends `SIGTERM` without waiting.
    pub fn signal_terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Sends `SIGHUP`.
    pub fn signal_hangup(&self) {
        self.signal(libc::SIGHUP);
    }

    fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: plain system call on a child that is not reaped while `self` lives.
        let done = unsafe { libc::kill(pid, signal) };
        assert_eq!(done, 0, "signal {signal} was not delivered");
    }

    /// Waits for the process to end by itself, at most so long.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let child = &mut self.child;
        let status = until("the server's end", deadline, || {
            child.try_wait().expect("the state of the child")
        });
        self.output.finish();
        status
    }

    /// Stops it politely: `SIGTERM`, then 30 s.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal_terminate();
        self.wait(Duration::from_secs(30))
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("the end of the child");
        self.output.finish();
    }

    /// Starts again on the same folder; a server that still runs is killed first.
    #[must_use]
    pub fn restart(self) -> Server {
        self.try_restart()
            .unwrap_or_else(|failed| panic!("no restart ({}):\n{}", failed.status, failed.log))
    }

    /// Starts again on the same folder, or tells how that ended.
    ///
    /// # Errors
    /// The exit status and the log of a server that ended before it listened.
    pub fn try_restart(mut self) -> Result<Server, StartFailed> {
        if self.child.try_wait().expect("the state of the child").is_none() {
            self.kill();
        }
        Self::start_on(self.options.clone(), self.share_data())
    }

    /// Starts again on the same folder with other options.
    ///
    /// # Errors
    /// The exit status and the log of a server that ended before it listened.
    pub fn try_restart_with(mut self, options: Options) -> Result<Server, StartFailed> {
        if self.child.try_wait().expect("the state of the child").is_none() {
            self.kill();
        }
        Self::start_on(options, self.share_data())
    }

    /// Tries to start a second server on the folder of this one.
    ///
    /// # Errors
    /// The exit status and the log of a server that ended before it listened.
    pub fn try_second(&self) -> Result<Server, StartFailed> {
        Self::start_on(self.options.clone(), self.share_data())
    }

    fn share_data(&self) -> Data {
        match &self.data {
            Data::Temporary(dir) => Data::Temporary(Arc::clone(dir)),
            Data::Given(path) => Data::Given(path.clone()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.output.finish();
        if std::thread::panicking() {
            eprintln!("--- log of the server ---\n{}", self.output.tail(200));
        }
    }
}

fn command(options: &Options, data_dir: &Path) -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KYMO_") {
            command.env_remove(name);
        }
    }
    command
        .arg(options.command)
        .args(["--http-port", "0", "--pg-port", "0", "--data-dir"])
        .arg(data_dir)
        .args(&options.arguments)
        .current_dir(data_dir.parent().filter(|p| p.is_dir()).unwrap_or(Path::new("/")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // First starts may leave credentials for the command line: never in the tester's home.
    command.env("XDG_CONFIG_HOME", data_dir.with_extension("config"));
    if options.auth {
        command.env("KYMO__AUTH__ADMIN_USER", ADMIN).env("KYMO__AUTH__ADMIN_PASSWORD", PASSWORD);
    }
    for (key, value) in &options.settings {
        command.env(format!("KYMO__{}", key.to_uppercase().replace('.', "__")), value);
    }
    for (name, value) in &options.environment {
        command.env(name, value);
    }
    if let Some(bytes) = options.file_size_limit {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: only async-signal-safe calls between fork and exec. The signal is ignored
        // so that the write fails instead of the process.
        unsafe {
            command.pre_exec(move || {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
    }
    command
}

/// What a child prints, read by two threads so that it never blocks on a full pipe.
struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Output {
    fn of(child: &mut Child) -> Output {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stdout = child.stdout.take().map(|pipe| read(pipe, &lines));
        let stderr = child.stderr.take().map(|pipe| read(pipe, &lines));
        Output { lines, readers: stdout.into_iter().chain(stderr).collect() }
    }

    /// The addresses of the line `listening http=… pg=…`, once it has come.
    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        let lines = self.lines.lock().unwrap();
        let line = lines.iter().find(|line| line.starts_with("listening http="))?;
        let value = |key: &str| {
            let rest = line.split_once(key)?.1;
            rest.split_whitespace().next()?.parse().ok()
        };
        Some((value("http=")?, value("pg=")?))
    }

    fn finish(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    fn tail(&self, count: usize) -> String {
        let lines = self.lines.lock().unwrap();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

fn read(pipe: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            lines.lock().unwrap().push(line);
        }
    })
}
