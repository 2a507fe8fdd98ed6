//! A running server as a bench sees it: SQL and rows go in over HTTP, and out come answers,
//! metrics and what the process takes of the machine.

use std::process::ExitCode;

use serde_json::{Value, json};

/// What a bench comes to, or a sentence on what stopped it.
pub type Outcome<T> = Result<T, String>;

/// Any error as its sentence.
pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The end of a bench's `main`: prints the error where there is one.
#[must_use]
pub fn exit(outcome: Outcome<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Which server a bench drives: options that its own are put beside.
#[derive(Debug, clap::Args)]
pub struct Access {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:7878")]
    pub url: String,
    /// Token to come in with
    #[arg(long, env = "KYMO_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The server's process, to read of it what the bench takes of the machine
    #[arg(long)]
    pub pid: Option<u32>,
}

impl Access {
    /// A client of the server.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn server(&self) -> Outcome<Server> {
        Server::new(&self.url, self.token.as_deref())
    }
}

/// A client of one server; a connection of its own to each thread that clones it.
#[derive(Debug, Clone)]
pub struct Server {
    url: String,
    token: Option<String>,
    client: reqwest::blocking::Client,
}

impl Server {
    /// A client of the server at an address such as `http://127.0.0.1:7878`.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn new(url: &str, token: Option<&str>) -> Outcome<Server> {
        let client = reqwest::blocking::Client::builder().timeout(None).build().map_err(text)?;
        let url = url.trim_end_matches('/').to_owned();
        Ok(Server { url, token: token.map(str::to_owned), client })
    }

    fn send(&self, request: reqwest::blocking::RequestBuilder) -> Outcome<String> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let answer = request.send().map_err(text)?;
        let status = answer.status();
        let body = answer.text().map_err(text)?;
        if status.is_success() { Ok(body) } else { Err(format!("{status}: {body}")) }
    }

    /// Runs a statement; its rows as JSON objects. What a statement without rows answers, such
    /// as how many it deleted, is one object.
    ///
    /// # Errors
    /// No answer, or the server's refusal.
    pub fn sql(&self, sql: &str) -> Outcome<Vec<Value>> {
        let url = format!("{}/api/v3/query_sql", self.url);
        let body = json!({ "db": "kymo", "q": sql, "format": "json" });
        let answer = self.send(self.client.post(url).json(&body))?;
        Ok(match serde_json::from_str(&answer).map_err(text)? {
            Value::Array(rows) => rows,
            other => vec![other],
        })
    }

    /// Writes line protocol with times in nanoseconds.
    ///
    /// # Errors
    /// No answer, or the server's refusal.
    pub fn write(&self, lines: impl Into<reqwest::blocking::Body>) -> Outcome<()> {
        let url = format!("{}/api/v3/write_lp?db=kymo&precision=ns", self.url);
        self.send(self.client.post(url).body(lines)).map(drop)
    }

    /// The server's metrics as they are now.
    ///
    /// # Errors
    /// No answer.
    pub fn metrics(&self) -> Outcome<Metrics> {
        let url = format!("{}/metrics", self.url);
        Ok(Metrics(self.send(self.client.get(url))?))
    }

    /// Whether the server takes requests.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.client
            .get(format!("{}/ready", self.url))
            .send()
            .is_ok_and(|it| it.status().is_success())
    }
}

/// A server's metrics, as text.
#[derive(Debug)]
pub struct Metrics(pub String);

impl Metrics {
    /// The sum of all samples of a family whose labels hold a text.
    #[must_use]
    pub fn sum(&self, family: &str, labels: &str) -> f64 {
        let samples = self.0.lines().filter(|line| {
            let name = line.split(['{', ' ']).next();
            name == Some(family) && line.contains(labels)
        });
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The cumulative counts of a histogram by their upper bounds.
    #[must_use]
    pub fn buckets(&self, family: &str, labels: &str) -> Vec<(f64, f64)> {
        let name = format!("{family}_bucket");
        let lines = self.0.lines().filter(|line| line.starts_with(&name) && line.contains(labels));
        let bucket = |line: &str| {
            let bound = line.split("le=\"").nth(1)?.split('"').next()?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, line.rsplit(' ').next()?.parse().ok()?))
        };
        lines.filter_map(bucket).collect()
    }
}

/// The bound below which a share of what was counted between two looks lies.
#[must_use]
pub fn quantile(before: &[(f64, f64)], after: &[(f64, f64)], share: f64) -> f64 {
    let counts: Vec<(f64, f64)> = after
        .iter()
        .map(|(bound, count)| {
            let known = before.iter().find(|(other, _)| other == bound);
            (*bound, count - known.map_or(0.0, |(_, count)| *count))
        })
        .collect();
    let wanted = counts.last().map_or(0.0, |(_, all)| all * share);
    let mut below = (0.0, 0.0);
    for (bound, count) in counts {
        if count >= wanted && count > below.1 {
            let part = (wanted - below.1) / (count - below.1);
            return if bound.is_finite() { below.0 + part * (bound - below.0) } else { below.0 };
        }
        below = (bound, count);
    }
    below.0
}

/// Seconds of processor time that a process has used.
#[must_use]
pub fn processor_seconds(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    // A tick is a hundredth of a second on every Linux that there is.
    Some(ticks / 100.0)
}

/// What a process holds in memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resident {
    /// Bytes now.
    pub now: u64,
    /// The most there ever were, in bytes.
    pub peak: u64,
}

/// The resident memory of a process.
#[must_use]
pub fn resident(pid: u32) -> Option<Resident> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
    };
    Some(Resident { now: line("VmRSS:")?, peak: line("VmHWM:")? })
}

/// Bytes as mebibytes, for people.
#[must_use]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_came_between_two_looks() {
        let before = [(0.001, 10.0), (0.01, 10.0), (f64::INFINITY, 10.0)];
        let after = [(0.001, 60.0), (0.01, 109.0), (f64::INFINITY, 110.0)];
        assert!((quantile(&before, &after, 0.5) - 0.001).abs() < 1e-9);
        assert!((quantile(&before, &after, 0.99) - 0.01).abs() < 1e-9);
        let text = "a_total{to=\"x\"} 3\na_total{to=\"y\"} 4\na_totals 9\n\
                    h_bucket{to=\"x\",le=\"0.5\"} 2\nh_bucket{to=\"x\",le=\"+Inf\"} 3\n";
        let metrics = Metrics(text.to_owned());
        assert_eq!(metrics.sum("a_total", "to=\"x\""), 3.0);
        assert_eq!(metrics.buckets("h", "to=\"x\""), [(0.5, 2.0), (f64::INFINITY, 3.0)]);
    }

    #[test]
    fn this_process_takes_memory() {
        let resident = resident(std::process::id()).unwrap();
        assert!(resident.now > 1 << 20 && resident.peak >= resident.now);
    }
}
