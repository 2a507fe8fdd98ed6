//! The ports' own accounts as metric families, summed over all actors of a kind: a series per
//! table would be without bound.

use std::collections::BTreeMap;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use crate::port::{PortStats, WAIT_BOUNDS_US};

type Read = fn(&PortStats) -> u64;
type Join = fn(u64, u64) -> u64;
type Plain = (&'static str, &'static str, MetricType, Read, Join);

/// Gauges and counters: name, help, how to read it from one port, how to join several.
const PLAIN: [Plain; 11] = {
    use MetricType::{COUNTER, GAUGE};
    const SUM: Join = u64::saturating_add;
    [
        ("kymo_port_queued", "Messages queued or worked on.", GAUGE, |p| p.queued as u64, SUM),
        ("kymo_port_queued_bytes", "Bytes of those.", GAUGE, |p| p.queued_bytes as u64, SUM),
        (
            "kymo_port_peak_bytes",
            "The most bytes of one port.",
            GAUGE,
            |p| p.peak_bytes as u64,
            max,
        ),
        ("kymo_port_budget_bytes", "Room in bytes.", GAUGE, |p| p.budget_bytes as u64, SUM),
        ("kymo_port_budget", "Room in messages.", GAUGE, |p| p.budget_count as u64, SUM),
        ("kymo_port_waiting", "Callers that wait for room.", GAUGE, |p| p.waiting as u64, SUM),
        ("kymo_port_accepted_total", "Messages accepted.", COUNTER, |p| p.accepted, SUM),
        ("kymo_port_busy_total", "Messages without room.", COUNTER, |p| p.rejected_busy, SUM),
        ("kymo_port_closed_total", "Messages after closing.", COUNTER, |p| p.rejected_closed, SUM),
        ("kymo_port_down_total", "Messages to nobody.", COUNTER, |p| p.rejected_down, SUM),
        (
            "kymo_port_oldest_age_ns",
            "Age of the oldest unanswered message.",
            GAUGE,
            |p| p.oldest_age_ns,
            max,
        ),
    ]
};

fn max(a: u64, b: u64) -> u64 {
    a.max(b)
}

/// The families of these ports.
pub(crate) fn families(ports: &[PortStats]) -> Vec<MetricFamily> {
    let mut kinds: BTreeMap<(&str, &str), Vec<&PortStats>> = BTreeMap::new();
    for port in ports {
        kinds.entry((port.kind, port.message)).or_default().push(port);
    }
    if kinds.is_empty() {
        return Vec::new();
    }
    let mut families: Vec<MetricFamily> = PLAIN
        .iter()
        .map(|(name, help, kind, read, join)| {
            let metrics = kinds.iter().map(|(labels, ports)| {
                let value = ports.iter().map(|port| read(port)).fold(0, join);
                plain(*labels, *kind, value as f64)
            });
            family(name, help, *kind, metrics.collect())
        })
        .collect();
    let waits = kinds.iter().map(|(labels, ports)| histogram(*labels, ports)).collect();
    let help = "Time that accepted messages waited for room.";
    families.push(family("kymo_port_wait_seconds", help, MetricType::HISTOGRAM, waits));
    families
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labelled((kind, message): (&str, &str)) -> Metric {
    let pair = |name: &str, value: &str| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    Metric::from_label(vec![pair("kind", kind), pair("message", message)])
}

fn plain(labels: (&str, &str), kind: MetricType, value: f64) -> Metric {
    let mut metric = labelled(labels);
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

fn histogram(labels: (&str, &str), ports: &[&PortStats]) -> Metric {
    let mut cumulative = 0;
    let buckets = WAIT_BOUNDS_US.iter().enumerate().map(|(number, bound)| {
        cumulative += ports.iter().map(|port| port.waits[number]).sum::<u64>();
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64 / 1e6);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    let all = ports.iter().flat_map(|port| port.waits).sum::<u64>();
    histogram.set_sample_count(all);
    let nanos = ports.iter().map(|port| port.wait_sum_ns).sum::<u64>();
    histogram.set_sample_sum(nanos as f64 / 1e9);
    let mut metric = labelled(labels);
    metric.set_histogram(histogram);
    metric
}
