//! A bucket of a real S3 server (moto), and a proxy before it that loses answers, refuses, waits,
//! or does not answer at all.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Options;
use crate::python;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server does it, and the connection is cut before the answer.
    Lost,
    /// The server never sees it, and the answer is 503.
    Refused,
    /// It arrives late.
    Late(Duration),
}

/// Requests that something happens to.
#[derive(Debug, Clone)]
struct Order {
    method: &'static str,
    part: &'static str,
    fault: Fault,
    left: usize,
}

#[derive(Debug, Default)]
struct State {
    down: bool,
    orders: Vec<Order>,
    ended: bool,
}

/// A bucket; its server ends when this is dropped.
pub struct Bucket {
    server: Child,
    behind: SocketAddr,
    before: SocketAddr,
    state: Arc<Mutex<State>>,
    task: Option<JoinHandle<()>>,
}

/// The name of the one bucket.
const NAME: &str = "kymo-tests";

impl Bucket {
    /// Starts a server and makes the bucket.
    #[must_use]
    pub fn start() -> Bucket {
        let (server, behind) = moto();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let before = listener.local_addr().expect("its address");
        let state = Arc::<Mutex<State>>::default();
        let task = std::thread::spawn({
            let state = Arc::clone(&state);
            move || proxy(&listener, behind, &state)
        });
        let bucket = Bucket { server, behind, before, state, task: Some(task) };
        let made = bucket.ask("PUT", "");
        assert!(made.starts_with("HTTP/1.1 200"), "{made}");
        bucket
    }

    /// Settings of a server whose store lies in the bucket, below a prefix.
    #[must_use]
    pub fn store(&self, options: Options, prefix: &str) -> Options {
        let options = options.setting("storage.url", self.url(prefix));
        self.settings().iter().fold(options, |options, (key, value)| options.setting(key, value))
    }

    /// The same for a command, as variables of its environment.
    pub fn store_of(&self, command: &mut Command, prefix: Option<&str>) {
        let set = |(key, value): &(&str, String)| {
            (format!("KYMO__{}", key.to_uppercase().replace('.', "__")), value.clone())
        };
        command.envs(self.settings().iter().map(set));
        if let Some(prefix) = prefix {
            command.env("KYMO__STORAGE__URL", self.url(prefix));
        }
    }

    /// The address of a prefix in the bucket.
    #[must_use]
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{NAME}/{prefix}")
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("storage.endpoint", format!("http://{}", self.before)),
            ("storage.allow_http", "true".to_owned()),
            ("storage.region", "us-east-1".to_owned()),
            ("storage.access_key_id", "key".to_owned()),
            ("storage.secret_access_key", "secret".to_owned()),
            ("storage.max_retries", "2".to_owned()),
            ("storage.retry_timeout_ms", "2000".to_owned()),
            ("storage.request_timeout_ms", "5000".to_owned()),
        ]
    }

    /// The next `times` requests of this method whose path has this part come to `fault`.
    pub fn order(&self, method: &'static str, part: &'static str, fault: Fault, times: usize) {
        self.state().orders.push(Order { method, part, fault, left: times });
    }

    /// Forgets all faults that were ordered and did not come to pass.
    pub fn calm(&self) {
        self.state().orders.clear();
    }

    /// Nothing is answered any more, or everything again.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// The keys below a prefix, as the server has them.
    #[must_use]
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let answer = self.ask("GET", &format!("?list-type=2&prefix={prefix}/"));
        let keys = answer.split("<Key>").skip(1);
        keys.filter_map(|rest| rest.split_once("</Key>")).map(|(key, _)| key.to_owned()).collect()
    }

    /// Asks the server itself, past the proxy.
    fn ask(&self, method: &str, query: &str) -> String {
        let mut stream = TcpStream::connect(self.behind).expect("the server");
        let head = format!(
            "{method} /{NAME}{query} HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\n\
             connection: close\r\n\r\n",
            self.behind
        );
        stream.write_all(head.as_bytes()).expect("a request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds it")
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.state().ended = true;
        // Wakes the proxy, which looks whether it is to end.
        let _ = TcpStream::connect(self.before);
        if let Some(task) = self.task.take() {
            let _ = task.join();
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Starts moto on a free port and waits until it says which.
fn moto() -> (Child, SocketAddr) {
    let program = python::python().with_file_name("moto_server");
    let mut child = Command::new(program)
        .args(["-H", "127.0.0.1", "-p", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("moto_server runs");
    let errors = child.stderr.take().expect("a pipe");
    let mut lines = BufReader::new(errors).lines().map_while(Result::ok);
    let address = lines.find_map(|line| {
        let (_, rest) = line.split_once("Running on http://")?;
        rest.split(|c: char| c.is_whitespace() || c == '\u{1b}').next()?.parse().ok()
    });
    // Read on, so that the server never blocks on a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    (child, address.expect("moto says where it listens"))
}

fn proxy(listener: &TcpListener, behind: SocketAddr, state: &Arc<Mutex<State>>) {
    for stream in listener.incoming().map_while(Result::ok) {
        if state.lock().expect("no panic holds it").ended {
            return;
        }
        let state = Arc::clone(state);
        std::thread::spawn(move || {
            // A connection that breaks is what clients have to live with.
            let _ = pass(stream, behind, &state);
        });
    }
}

/// Passes one request on, and its answer back.
fn pass(client: TcpStream, behind: SocketAddr, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (head, length) = head(&mut reader)?;
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let Some(fault) = fault(state, method, path) else { return Ok(()) };
    match fault {
        Some(Fault::Refused) => return refuse(client),
        Some(Fault::Late(wait)) => std::thread::sleep(wait),
        _ => {}
    }
    let answer = forward(behind, &head, &body)?;
    if fault == Some(Fault::Lost) {
        return Ok(());
    }
    let mut client = client;
    client.write_all(&answer)
}

/// The lines of a request up to its body, and the length of that.
fn head(reader: &mut impl BufRead) -> std::io::Result<(String, usize)> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\r\n" {
            return Ok((head, length));
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
        head.push_str(&line);
    }
}

/// What becomes of this request; the outer `None` while nothing is answered.
fn fault(state: &Mutex<State>, method: &str, path: &str) -> Option<Option<Fault>> {
    let mut state = state.lock().expect("no panic holds it");
    if state.down {
        return None;
    }
    let mut orders = state.orders.iter_mut();
    let order =
        orders.find(|order| order.left > 0 && order.method == method && path.contains(order.part));
    let fault = order.map(|order| {
        order.left -= 1;
        order.fault
    });
    Some(fault)
}

fn refuse(mut client: TcpStream) -> std::io::Result<()> {
    client.write_all(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

/// One connection a request, so that the answer ends where the connection does.
fn forward(behind: SocketAddr, head: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(behind)?;
    server.write_all(head.as_bytes())?;
    server.write_all(b"connection: close\r\n\r\n")?;
    server.write_all(body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}
