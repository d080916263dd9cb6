//! What processes take: CPU time and memory.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{
    time::clock_getcpuclockid,
    unistd::{Pid, SysconfVar, sysconf},
};

/// CPU time of some processes with all of their threads, also of those that have ended.
#[derive(Clone, Copy, Default)]
pub(super) struct Cpu {
    /// By the scheduler's clock, to the nanosecond.
    pub(super) total: Duration,
    /// In the kernel, by `utime` and `stime`: in steps of a tick, which is fine for a share of a second or more.
    pub(super) system: Duration,
}

impl Cpu {
    pub(super) fn of(processes: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in processes {
            let clock =
                clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).with_context(|| format!("process {pid}"))?;
            sum.total += Duration::from(clock.now()?);
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // `pid (name) state ...`, where the name can hold anything; stime is the fifteenth field.
            let system = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(12)?.parse().ok());
            sum.system += ticks(system.context("/proc/PID/stat has no stime")?)?;
        }
        Ok(sum)
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self { total: self.total - before.total, system: self.system - before.system }
    }
}

/// CPU time that all processes of the machine together have used.
pub(super) fn machine() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat without a sum")?;
    let fields: Vec<u64> =
        line.split_whitespace().map(|field| field.parse().context("a number")).collect::<Result<_>>()?;
    // user, nice, system, idle, iowait, irq, softirq; the rest is not used by processes here, or counted twice.
    ensure!(fields.len() >= 7, "/proc/stat: {line}");
    ticks(fields[0] + fields[1] + fields[2] + fields[5] + fields[6])
}

fn ticks(count: u64) -> Result<Duration> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(Duration::from_secs_f64(count as f64 / per_second as f64))
}

/// Resident memory of some processes, in bytes: what each shows, and the same with shared pages counted once.
#[derive(Clone, Copy, Default)]
pub(super) struct Memory {
    pub(super) resident: u64,
    pub(super) proportional: u64,
}

impl Memory {
    pub(super) fn of(processes: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in processes {
            let maps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let kibibytes = |name: &str| {
                let line = maps.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
                line.and_then(|number| number.parse::<u64>().ok()).with_context(|| format!("no line {name}"))
            };
            sum.resident += 1024 * kibibytes("Rss:")?;
            sum.proportional += 1024 * kibibytes("Pss:")?;
        }
        Ok(sum)
    }
}

/// A process and those that it has started.
pub(super) fn family(pid: u32) -> Result<Vec<u32>> {
    let mut processes = vec![pid];
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = fs::read_to_string(thread?.path().join("children"))?;
        for child in children.split_whitespace() {
            processes.extend(family(child.parse()?)?);
        }
    }
    Ok(processes)
}
