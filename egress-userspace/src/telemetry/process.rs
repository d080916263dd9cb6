//! What the process takes, by the names that the client libraries of Prometheus have for it.

use std::{
    fmt, fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::resource::{Resource, UsageWho, getrlimit, getrusage},
    time::{ClockId, clock_gettime},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Looks when asked. What cannot be seen is left out.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    /// When the process began, in seconds.
    began: Option<f64>,
}

impl ProcessCollector {
    /// For this process.
    pub(super) fn new() -> Self {
        Self { began: began().map(|began| began.as_secs_f64()) }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        if let Some(cpu) = cpu() {
            let about = "Processor time that the process has used";
            let used = encoder.encode_descriptor("process_cpu", about, Some(&Unit::Seconds), MetricType::Counter)?;
            ConstCounter::new(cpu).encode(used)?;
        }
        let mut gauge = |name: &str, about: &str, unit: Option<Unit>, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, about, unit.as_ref(), MetricType::Gauge)?)
        };
        gauge("process_start_time", "When the process began, since the epoch", Some(Unit::Seconds), self.began)?;
        gauge("process_resident_memory", "Memory that the process has", Some(Unit::Bytes), resident())?;
        gauge("process_open_fds", "Descriptors that are open", None, open_descriptors())?;
        let most = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft as f64);
        gauge("process_max_fds", "Descriptors that may be open", None, most)
    }
}

/// In seconds.
fn cpu() -> Option<f64> {
    let used = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = [used.user_time(), used.system_time()];
    Some(seconds.iter().map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6).sum())
}

/// In bytes.
fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"))?;
    Some(resident.trim().parse::<f64>().ok()? * 1024.0)
}

fn open_descriptors() -> Option<f64> {
    // Linux says how many they are since 6.2; to look at each of many takes long.
    let said = fs::metadata("/proc/self/fd").ok()?.len();
    let count = || Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64);
    Some(if said > 0 { said } else { count()? } as f64)
}

/// Since the epoch.
fn began() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Its name, in parentheses, can hold anything. The beginning is the 22nd of all fields (proc_pid_stat(5)).
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    // SAFETY: this only looks a number up.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let since_boot = Duration::try_from_secs_f64(ticks / per_second as f64).ok()?;
    let up = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
    SystemTime::now().duration_since(UNIX_EPOCH).ok()?.checked_sub(up)?.checked_add(since_boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_takes_can_be_seen() {
        let age = SystemTime::now().duration_since(UNIX_EPOCH + began().expect("a beginning")).expect("it is over");
        assert!(age < Duration::from_secs(3600), "{age:?}");
        assert!(cpu().is_some() && resident().is_some_and(|bytes| bytes > 1e6));
        assert!(open_descriptors().is_some_and(|count| count >= 3.0));
    }
}
