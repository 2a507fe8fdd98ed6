//! Compiling in a process of its own: a small component can keep the compiler busy for a
//! minute and take a gigabyte, and where the compiler runs out of memory it takes its process
//! with it.
//!
//! The process is the same binary under a hidden subcommand, [`SUBCOMMAND`]: it takes the
//! component on standard input, bounds its own address space and CPU time, and gives native
//! code on standard output. One runs at a time.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use kymo_config::settings::Plugins;
use kymo_kernel::env::Clock;
use kymo_kernel::observe::metrics;
use kymo_kernel::pools::{NamedThread, thread};
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use wasmtime::component::Component;

use crate::engine;
use crate::validate::{CodeLimits, check_resources, validate};

/// The hidden subcommand of the binary that compiles. Its one argument is a [`Request`].
pub const SUBCOMMAND: &str = "plugin-compile";

/// How much longer than its CPU time compiling may take by the clock: on a busy machine it waits.
const PATIENCE: u64 = 4;

/// The stack of the compiler, which is deeply recursive.
const COMPILER_STACK: usize = 32 << 20;

/// The largest compiled component that is read back, in bytes: some ten times what the
/// largest known plugin (Python) compiles to.
const MAX_COMPILED: u64 = 512 << 20;

/// The longest error that is read back, in bytes.
const MAX_COMPLAINT: u64 = 64 << 10;

/// What the compiling process is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Bounds of the component.
    pub limits: CodeLimits,
    /// Stack of a call, which compiled code depends on, in bytes.
    pub stack_bytes: usize,
    /// Address space of the process, in bytes.
    pub memory_bytes: u64,
    /// CPU time of the process, in seconds.
    pub cpu_seconds: u64,
}

/// Compiles components in processes of their own.
#[derive(Debug)]
pub struct Compiler {
    /// What to run; `None` compiles within this process.
    program: Option<PathBuf>,
    request: Request,
    timeout: Duration,
    one_at_a_time: Mutex<()>,
}

/// What the process says when it refuses.
#[derive(Serialize, Deserialize)]
struct Complaint {
    code: String,
    message: String,
    hint: Option<String>,
}

impl Compiler {
    /// A compiler that runs this program with [`SUBCOMMAND`].
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, settings: &Plugins) -> Compiler {
        Compiler::with(Some(program.into()), settings)
    }

    /// A compiler within this process: for tools and tests that compile what is their own.
    /// Nothing bounds its time and its memory, so it is not for what comes from outside.
    #[must_use]
    pub fn in_process(settings: &Plugins) -> Compiler {
        Compiler::with(None, settings)
    }

    fn with(program: Option<PathBuf>, settings: &Plugins) -> Compiler {
        Compiler {
            program,
            request: Request {
                limits: CodeLimits::of(settings),
                stack_bytes: settings.stack_bytes,
                memory_bytes: settings.compile_memory_bytes,
                cpu_seconds: settings.compile_timeout_ms.div_ceil(1000),
            },
            timeout: Duration::from_millis(settings.compile_timeout_ms.saturating_mul(PATIENCE)),
            one_at_a_time: Mutex::new(()),
        }
    }

    /// A compiler that runs the program that is running now.
    ///
    /// # Errors
    /// [`Code::Io`] if the system cannot tell which that is.
    pub fn this_program(settings: &Plugins) -> Result<Compiler> {
        let program = std::env::current_exe()
            .map_err(|error| Error::io("find the program that is running", error))?;
        Ok(Compiler::new(program, settings))
    }

    /// The bounds of components.
    #[must_use]
    pub fn limits(&self) -> &CodeLimits {
        &self.request.limits
    }

    /// Native code for a component, and how long it took. Blocks, behind other compilations
    /// too.
    ///
    /// # Errors
    /// [`Code::InvalidInput`] and [`Code::TooLarge`] for a component that is refused or takes
    /// too much time or memory, [`Code::Io`] if the process cannot be run.
    pub fn compile(&self, wasm: &[u8], clock: &dyn Clock) -> Result<(Vec<u8>, Duration)> {
        let _turn = self.one_at_a_time.lock();
        let begin = clock.monotonic();
        let Some(program) = &self.program else {
            let compiled = compile_aside(wasm.to_vec(), self.request)?;
            return Ok((compiled, clock.monotonic().saturating_sub(begin)));
        };
        let mut process = self.spawn(program)?;
        let compiled = self.converse(&mut process, wasm);
        // Whatever happened, nothing is left running. One that has ended gets no signal: it
        // would stand in its status like that of a limit.
        if !matches!(compiled, Ok(Some(_))) {
            let _ = process.kill();
        }
        let status = process.wait().map_err(|error| Error::io("await the compiler", error));
        let compiled = compiled?;
        let took = clock.monotonic().saturating_sub(begin);
        metrics().plugins.compile_seconds.observe(took.as_secs_f64());
        let Some((output, complaint)) = compiled else {
            let text = format!("compiling took longer than {} s", self.timeout.as_secs_f64());
            return Err(too_long(text));
        };
        match status? {
            status if status.success() => Ok((output, took)),
            status => Err(self.refusal(status, &complaint)),
        }
    }

    fn spawn(&self, program: &Path) -> Result<Child> {
        let request = serde_json::to_string(&self.request)
            .map_err(|error| Error::internal(format!("write a request: {error}")))?;
        Command::new(program)
            .arg(SUBCOMMAND)
            .arg(request)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Error::io("start the compiler", error))
    }

    /// Hands the component over and takes what comes back; `None` if it takes too long.
    fn converse(&self, process: &mut Child, wasm: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let missing = || Error::internal("the compiler has no pipes");
        let mut input = process.stdin.take().ok_or_else(missing)?;
        let output = process.stdout.take().ok_or_else(missing)?;
        let complaint = process.stderr.take().ok_or_else(missing)?;
        let wasm = wasm.to_vec();
        let (done, ended) = sync_channel(1);
        let id = process.id();
        // A process that refuses early does not read to the end: its answer counts.
        let _writer = thread("kymo-plugin-in", move || drop(input.write_all(&wasm)))?;
        let complaint = thread("kymo-plugin-err", move || read(complaint, MAX_COMPLAINT))?;
        let output = thread("kymo-plugin-out", move || {
            let bytes = read(output, MAX_COMPILED);
            // The end of what it says comes a moment before its own.
            let exited = await_exit(id);
            let _ = done.send(());
            exited.and(bytes)
        })?;
        if ended.recv_timeout(self.timeout) == Err(RecvTimeoutError::Timeout) {
            return Ok(None);
        }
        Ok(Some((join(output)?, join(complaint)?)))
    }

    fn refusal(&self, status: ExitStatus, complaint: &[u8]) -> Error {
        use std::os::unix::process::ExitStatusExt;

        if let Ok(complaint) = serde_json::from_slice::<Complaint>(complaint) {
            let codes = [Code::TooLarge, Code::InvalidInput];
            let code = codes.into_iter().find(|code| code.as_str() == complaint.code);
            let error = Error::new(code.unwrap_or(Code::Internal), complaint.message);
            return match complaint.hint {
                Some(hint) => error.with_hint(hint),
                None => error,
            };
        }
        match status.signal() {
            Some(libc::SIGXCPU | libc::SIGKILL) => {
                let seconds = self.request.cpu_seconds;
                too_long(format!("compiling needs more than {seconds} s of processor time"))
            }
            Some(_) => Error::new(
                Code::TooLarge,
                format!(
                    "compiling needs more than {} bytes of memory ({status})",
                    self.request.memory_bytes
                ),
            )
            .with_hint("make the plugin smaller, or raise plugins.compile_memory_bytes"),
            None => {
                let said = String::from_utf8_lossy(complaint);
                let said = crate::instance::cut(&said, 1024);
                Error::internal(format!("the compiler failed ({status}): {said}"))
            }
        }
    }
}

fn too_long(text: String) -> Error {
    Error::new(Code::TooLarge, text)
        .with_hint("make the plugin smaller, or raise plugins.compile_timeout_ms")
}

/// Waits until a child has ended, and leaves its status to be taken.
fn await_exit(id: u32) -> std::io::Result<()> {
    loop {
        // SAFETY: all zeros are a valid value of this plain struct.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: a plain system call that fills the struct it is given.
        if unsafe { libc::waitid(libc::P_PID, id, &raw mut info, libc::WEXITED | libc::WNOWAIT) }
            == 0
        {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn read(from: impl Read, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn join(reader: NamedThread<std::io::Result<Vec<u8>>>) -> Result<Vec<u8>> {
    reader.join()?.map_err(|error| Error::io("read from the compiler", error))
}

/// The compiling process: call this first thing in `main` when the first argument is
/// [`SUBCOMMAND`], with the argument after it.
#[must_use]
pub fn child(request: Option<&str>) -> ExitCode {
    let outcome = request
        .ok_or_else(|| Error::new(Code::InvalidInput, "the compiler takes one argument"))
        .and_then(|text| {
            serde_json::from_str(text)
                .map_err(|error| Error::new(Code::InvalidInput, format!("a request: {error}")))
        })
        .and_then(compile_here);
    let complaint = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => Complaint {
            code: error.code().as_str().to_owned(),
            message: error.message().to_owned(),
            hint: error.hint().map(str::to_owned),
        },
    };
    // Nobody is left to be told if this fails.
    let _ = serde_json::to_writer(std::io::stderr(), &complaint);
    ExitCode::FAILURE
}

fn compile_here(request: Request) -> Result<()> {
    bound(libc::RLIMIT_AS, request.memory_bytes, request.memory_bytes)?;
    bound(libc::RLIMIT_CPU, request.cpu_seconds, request.cpu_seconds + 1)?;
    bound(libc::RLIMIT_CORE, 0, 0)?;
    let wasm = read(std::io::stdin().lock(), request.limits.bytes.saturating_add(1))
        .map_err(|error| Error::io("read the component", error))?;
    let compiled = compile_aside(wasm, request)?;
    std::io::stdout().write_all(&compiled).map_err(|error| Error::io("write compiled code", error))
}

/// Compiles on a thread with a stack for it.
fn compile_aside(wasm: Vec<u8>, request: Request) -> Result<Vec<u8>> {
    let work = std::thread::Builder::new()
        .stack_size(COMPILER_STACK)
        .spawn(move || compile_bytes(&wasm, &request))
        .map_err(|error| Error::io("start the compiler's thread", error))?;
    work.join().map_err(|_| Error::internal("the compiler panicked"))?
}

fn compile_bytes(wasm: &[u8], request: &Request) -> Result<Vec<u8>> {
    let component = validate(wasm, &request.limits)?;
    let engine = engine::compiler(request.stack_bytes)?;
    let broken = |error: wasmtime::Error| {
        Error::new(Code::InvalidInput, format!("it does not compile: {error:#}"))
    };
    let compiled = Component::new(&engine, &component).map_err(broken)?;
    check_resources(compiled.resources_required().as_ref(), &request.limits)?;
    compiled.serialize().map_err(broken)
}

fn bound(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: a plain system call that reads the struct it is given.
    match unsafe { libc::setrlimit(resource, &limit) } {
        0 => Ok(()),
        _ => Err(Error::io("bound the compiler", std::io::Error::last_os_error())),
    }
}
