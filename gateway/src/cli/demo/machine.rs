//! This machine's own metrics as line protocol: processors, memory, disks, network, load.

use std::fmt::Write;

use kymo_kernel::{Code, Error, Result};
use sysinfo::{Disks, Networks, System};

/// What is read from the operating system, kept between readings because usage is a
/// difference of two.
pub struct Machine {
    host: String,
    system: System,
    disks: Disks,
    networks: Networks,
}

impl Machine {
    /// Reads everything once, to have something to compare the next reading with.
    ///
    /// # Errors
    /// The operating system does not tell.
    pub fn new() -> Result<Self> {
        let failed = |error: sysinfo::Error| {
            Error::new(
                Code::Unsupported,
                format!("this machine does not tell about itself: {error}"),
            )
        };
        let mut system = System::new().map_err(failed)?;
        system.refresh_cpu_all();
        Ok(Machine {
            host: System::host_name().unwrap_or_else(|_| "localhost".to_owned()),
            system,
            disks: Disks::new_with_refreshed_list().map_err(failed)?,
            networks: Networks::new_with_refreshed_list().map_err(failed)?,
        })
    }

    /// A reading at this time. Tables `cpu`, `mem`, `disk`, `net` and `load`.
    pub fn read(&mut self, time_ns: i64) -> String {
        self.system.refresh_cpu_all();
        self.system.refresh_memory();
        self.disks.refresh(true);
        self.networks.refresh(true);
        let mut lines = String::with_capacity(4096);
        self.cpu(&mut lines, time_ns);
        self.memory(&mut lines, time_ns);
        self.disks(&mut lines, time_ns);
        self.networks(&mut lines, time_ns);
        self.load(&mut lines, time_ns);
        lines
    }

    fn cpu(&self, out: &mut String, time: i64) {
        let host = tag(&self.host);
        for cpu in self.system.cpus() {
            let _ = writeln!(
                out,
                "cpu,host={host},cpu={} usage={:.2},frequency_mhz={}i {time}",
                tag(cpu.name()),
                cpu.usage(),
                cpu.frequency(),
            );
        }
    }

    fn memory(&self, out: &mut String, time: i64) {
        let (total, used) = (self.system.total_memory(), self.system.used_memory());
        let _ = writeln!(
            out,
            "mem,host={} total={total}i,used={used}i,available={}i,used_percent={:.2},\
             swap_total={}i,swap_used={}i {time}",
            tag(&self.host),
            self.system.available_memory(),
            percent(used, total),
            self.system.total_swap(),
            self.system.used_swap(),
        );
    }

    fn disks(&self, out: &mut String, time: i64) {
        for disk in self.disks.iter() {
            let (total, free) = (disk.total_space(), disk.available_space());
            let usage = disk.usage();
            let _ = writeln!(
                out,
                "disk,host={},device={},path={} total={total}i,free={free}i,used_percent={:.2},\
                 read_bytes={}i,written_bytes={}i {time}",
                tag(&self.host),
                tag(&disk.name().to_string_lossy()),
                tag(&disk.mount_point().to_string_lossy()),
                percent(total.saturating_sub(free), total),
                usage.total_read_bytes,
                usage.total_written_bytes,
            );
        }
    }

    fn networks(&self, out: &mut String, time: i64) {
        for (interface, network) in self.networks.iter() {
            let _ = writeln!(
                out,
                "net,host={},interface={} received_bytes={}i,sent_bytes={}i,\
                 received_packets={}i,sent_packets={}i {time}",
                tag(&self.host),
                tag(&interface.to_string_lossy()),
                network.total_received(),
                network.total_transmitted(),
                network.total_packets_received(),
                network.total_packets_transmitted(),
            );
        }
    }

    fn load(&self, out: &mut String, time: i64) {
        if let Ok(load) = System::load_average() {
            let _ = writeln!(
                out,
                "load,host={} load1={:.2},load5={:.2},load15={:.2} {time}",
                tag(&self.host),
                load.one,
                load.five,
                load.fifteen,
            );
        }
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 }
}

/// A tag's value, escaped, and never empty or at odds with the form of a line.
fn tag(value: &str) -> String {
    if value.is_empty() {
        return "unknown".to_owned();
    }
    let mut text = String::with_capacity(value.len());
    for c in value.chars().filter(|c| !c.is_control() && *c != '\\') {
        if matches!(c, ',' | '=' | ' ') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_has_a_line_for_every_core_and_for_memory_and_load() {
        let mut machine = Machine::new().unwrap();
        let lines = machine.read(42);
        let cores = lines.lines().filter(|line| line.starts_with("cpu,")).count();
        assert_eq!(cores, machine.system.cpus().len());
        assert!(cores > 0);
        for table in ["mem,", "load,"] {
            assert_eq!(lines.lines().filter(|line| line.starts_with(table)).count(), 1);
        }
        assert!(lines.lines().all(|line| line.ends_with(" 42")), "{lines}");
    }

    #[test]
    fn tags_are_escaped() {
        assert_eq!(tag("a b,c=d\\"), "a\\ b\\,c\\=d");
        assert_eq!(tag(""), "unknown");
    }
}
