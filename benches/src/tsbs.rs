//! Rows like those of the Time Series Benchmark Suite's "cpu-only" case: hosts with ten
//! tags report ten integer fields every ten seconds, each field a random walk within 0 to
//! 100. The same seed gives the same rows.
//!
//! Rows come time by time, all hosts of a time together, as agents send them.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The start of every data set: 2016-01-01T00:00:00Z.
pub const START_NS: i64 = 1_451_606_400_000_000_000;

/// The ten fields.
pub const FIELDS: [&str; 10] = [
    "usage_user",
    "usage_system",
    "usage_idle",
    "usage_nice",
    "usage_iowait",
    "usage_irq",
    "usage_softirq",
    "usage_steal",
    "usage_guest",
    "usage_guest_nice",
];

/// The ten tags.
pub const TAGS: [&str; 10] = [
    "hostname",
    "region",
    "datacenter",
    "rack",
    "os",
    "arch",
    "team",
    "service",
    "service_version",
    "service_environment",
];

const REGIONS: [(&str, u32); 9] = [
    ("us-east-1", 5),
    ("us-west-1", 2),
    ("us-west-2", 3),
    ("eu-west-1", 3),
    ("eu-central-1", 2),
    ("ap-southeast-1", 2),
    ("ap-southeast-2", 2),
    ("ap-northeast-1", 2),
    ("sa-east-1", 3),
];
const SYSTEMS: [&str; 3] = ["Ubuntu16.10", "Ubuntu16.04LTS", "Ubuntu15.10"];
const ARCHITECTURES: [&str; 2] = ["x64", "x86"];
const TEAMS: [&str; 4] = ["SF", "NYC", "LON", "CHI"];
const ENVIRONMENTS: [&str; 3] = ["production", "staging", "test"];

/// Which rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The seed.
    pub seed: u64,
    /// How many hosts.
    pub hosts: usize,
    /// How many times each reports.
    pub steps: usize,
    /// Nanoseconds between two reports.
    pub interval_ns: i64,
}

impl Shape {
    /// 100 hosts for 24 hours: 864,000 rows.
    #[must_use]
    pub fn usual() -> Self {
        Shape::new(100, 24)
    }

    /// So many hosts for so many hours, every ten seconds.
    #[must_use]
    pub fn new(hosts: usize, hours: usize) -> Self {
        Shape { seed: 123, hosts, steps: hours * 360, interval_ns: 10_000_000_000 }
    }

    /// How many rows that makes.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.hosts * self.steps
    }
}

struct Host {
    /// `cpu,hostname=…,… `: what every line of the host begins with.
    prefix: String,
    values: [f64; FIELDS.len()],
}

/// The rows of a shape, in batches.
pub struct Generator {
    random: StdRng,
    shape: Shape,
    hosts: Vec<Host>,
    step: usize,
    next_host: usize,
}

impl Generator {
    /// All rows of a shape.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let mut random = StdRng::seed_from_u64(shape.seed);
        let hosts = (0..shape.hosts).map(|index| host(index, &mut random)).collect();
        Generator { random, shape, hosts, step: 0, next_host: 0 }
    }

    /// Appends up to so many lines; returns how many, 0 at the end.
    pub fn lines(&mut self, out: &mut Vec<u8>, rows: usize) -> usize {
        let mut written = 0;
        while written < rows && self.step < self.shape.steps {
            let time = START_NS + self.step as i64 * self.shape.interval_ns;
            let host = &mut self.hosts[self.next_host];
            walk(&mut host.values, &mut self.random);
            push_line(out, host, time);
            written += 1;
            self.next_host += 1;
            if self.next_host == self.hosts.len() {
                self.next_host = 0;
                self.step += 1;
            }
        }
        written
    }
}

fn pick<'a>(from: &[&'a str], random: &mut StdRng) -> &'a str {
    from[random.random_range(0..from.len())]
}

fn host(index: usize, random: &mut StdRng) -> Host {
    let (region, centers) = REGIONS[random.random_range(0..REGIONS.len())];
    let center = (b'a' + random.random_range(0..centers) as u8) as char;
    let prefix = format!(
        "cpu,hostname=host_{index},region={region},datacenter={region}{center},rack={},os={},\
         arch={},team={},service={},service_version={},service_environment={} ",
        random.random_range(0..100),
        pick(&SYSTEMS, random),
        pick(&ARCHITECTURES, random),
        pick(&TEAMS, random),
        random.random_range(0..20),
        random.random_range(0..2),
        pick(&ENVIRONMENTS, random),
    );
    let values = std::array::from_fn(|_| random.random_range(0.0..=100.0));
    Host { prefix, values }
}

/// One step of each random walk: the difference is about normal with deviation 1.
fn walk(values: &mut [f64; FIELDS.len()], random: &mut StdRng) {
    for value in values {
        let noise: f64 = (0..12).map(|_| random.random_range(0.0..1.0)).sum::<f64>() - 6.0;
        *value = (*value + noise).clamp(0.0, 100.0);
    }
}

fn push_line(out: &mut Vec<u8>, host: &Host, time: i64) {
    out.extend_from_slice(host.prefix.as_bytes());
    for (index, (name, value)) in FIELDS.iter().zip(&host.values).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        push_number(out, *value as i64);
        out.push(b'i');
    }
    out.push(b' ');
    push_number(out, time);
    out.push(b'\n');
}

fn push_number(out: &mut Vec<u8>, mut number: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(shape: Shape, rows: usize) -> String {
        let mut generator = Generator::new(shape);
        let mut out = Vec::new();
        while generator.lines(&mut out, rows) > 0 {}
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_same_seed_gives_the_same_rows_however_they_are_cut() {
        let shape = Shape { steps: 5, ..Shape::new(3, 1) };
        let text = all(shape, 4);
        assert_eq!(text, all(shape, 1000));
        assert_ne!(text, all(Shape { seed: 1, ..shape }, 4));
        assert_eq!(text.lines().count(), shape.rows());
    }

    #[test]
    fn a_line_has_ten_tags_ten_fields_and_its_time() {
        let text = all(Shape { steps: 2, ..Shape::new(2, 1) }, 10);
        let line = text.lines().nth(3).unwrap();
        let parts: Vec<&str> = line.split(' ').collect();
        assert_eq!(parts.len(), 3, "{line}");
        let tags: Vec<&str> = parts[0].split(',').skip(1).collect();
        assert_eq!(tags.len(), TAGS.len());
        assert!(tags.iter().zip(TAGS).all(|(tag, name)| tag.starts_with(&format!("{name}="))));
        assert_eq!(parts[1].split(',').count(), FIELDS.len());
        assert_eq!(parts[2], (START_NS + 10_000_000_000).to_string());
        assert_eq!(Shape::usual().rows(), 864_000);
    }
}
