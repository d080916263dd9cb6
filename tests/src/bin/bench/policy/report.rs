//! The table.

use std::fmt;

use serde_json::{Value, json};

use super::load::Latencies;
use crate::statistics::Series;

/// What was measured with one number of hosts. Times are in seconds, but for those of requests.
pub(super) struct Row {
    pub(super) hosts: u32,
    pub(super) start: f64,
    /// Bytes, once it was ready and after reloads.
    pub(super) memory: [u64; 2],
    pub(super) reload: Series,
    pub(super) reload_cpu: Series,
    /// What the hook takes for each connect.
    pub(super) connect_ns: f64,
    pub(super) calm: Latencies,
    pub(super) busy: Latencies,
    /// How many there were while requests were made.
    pub(super) reloads: u32,
    /// The longest that the control thread let a question wait meanwhile.
    pub(super) longest_wait: f64,
}

/// All of them.
#[derive(Default)]
pub(super) struct Figures(Vec<Row>);

impl Figures {
    pub(super) fn add(&mut self, row: Row) {
        self.0.push(row);
    }

    pub(super) fn to_json(&self) -> Value {
        let latencies = |latencies: &Latencies| {
            let Latencies { p50, p99, max, cpu } = latencies;
            json!({"p50_us": p50, "p99_us": p99, "max_us": max, "cpu_us": cpu})
        };
        let rows = self.0.iter().map(|row| {
            json!({
                "hosts": row.hosts,
                "start_seconds": row.start,
                "reload_seconds": row.reload.median(),
                "reload_cpu_seconds": row.reload_cpu.median(),
                "agent_bytes": row.memory[0],
                "agent_bytes_after_reloads": row.memory[1],
                "agent_bytes_each": self.bytes_each(row),
                "connect_ns": row.connect_ns,
                "reloads_during_requests": row.reloads,
                "control_thread_longest_wait_seconds": row.longest_wait,
                "requests": latencies(&row.calm),
                "requests_during_reloads": latencies(&row.busy),
            })
        });
        json!({ "policies": rows.collect::<Vec<_>>() })
    }

    /// What one more host takes than the smallest policy has; None for that one.
    fn bytes_each(&self, row: &Row) -> Option<f64> {
        let least = self.0.iter().min_by_key(|row| row.hosts)?;
        let hosts = row.hosts - least.hosts;
        (hosts > 0).then(|| (row.memory[0] as f64 - least.memory[0] as f64) / f64::from(hosts))
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MEBIBYTE: f64 = 1024.0 * 1024.0;
        let mut line = |what: &str, value: &dyn Fn(&Row) -> Option<f64>, digits: usize| {
            write!(f, "{what:42}")?;
            for row in &self.0 {
                match value(row) {
                    Some(value) => write!(f, " {value:11.digits$}")?,
                    None => write!(f, " {:>11}", "")?,
                }
            }
            writeln!(f)
        };
        line("hosts", &|row| Some(row.hosts.into()), 0)?;
        line("start until ready, s", &|row| Some(row.start), 2)?;
        line("reload, one host changed, s", &|row| Some(row.reload.median()), 3)?;
        line("  CPU time of the agent, s", &|row| Some(row.reload_cpu.median()), 3)?;
        line("memory of the agent, MiB", &|row| Some(row.memory[0] as f64 / MEBIBYTE), 1)?;
        line("  after all reloads, MiB", &|row| Some(row.memory[1] as f64 / MEBIBYTE), 1)?;
        line("  for each host, bytes", &|row| self.bytes_each(row), 0)?;
        line("connect hook, ns", &|row| Some(row.connect_ns), 0)?;
        type Get = fn(&Latencies) -> f64;
        let measures: [(&str, Get); 4] = [
            ("p50, ms", |l| l.p50 / 1e3),
            ("p99, ms", |l| l.p99 / 1e3),
            ("max, ms", |l| l.max / 1e3),
            ("CPU, us", |l| l.cpu),
        ];
        for (name, get) in measures {
            line(&format!("request {name}"), &|row| Some(get(&row.calm)), 2)?;
            line("  during reloads", &|row| Some(get(&row.busy)), 2)?;
        }
        line("reloads meanwhile", &|row| Some(row.reloads.into()), 0)?;
        line("  longest wait for the control thread, ms", &|row| Some(row.longest_wait * 1e3), 1)
    }
}
