//! What the agent uses, and what the kernel uses on its behalf.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use nix::{time::clock_getcpuclockid, unistd::Pid};

use super::entries;

/// A cgroup of the memory controller, of whichever version the machine has, removed on drop: then its processes have ended.
pub(crate) struct Accounting {
    path: PathBuf,
    version: Version,
}

#[derive(Clone, Copy)]
enum Version {
    V1,
    V2,
}

impl Accounting {
    /// Makes one in the cgroup that this process is in; None if that has no memory controller.
    pub(super) fn create(name: &str) -> Result<Option<Self>> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        for (version, kind, option, line) in
            [(Version::V1, "cgroup", "memory", ":memory:/"), (Version::V2, "cgroup2", "rw", "0::/")]
        {
            let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| {
                fields.get(2) == Some(&kind)
                    && fields.get(3).is_some_and(|options| options.split(',').any(|o| o == option))
            });
            let place = own.lines().find_map(|known| known.split_once(line).map(|(_, place)| place));
            let Some((mount, place)) = mount.zip(place) else { continue };
            let path = Path::new(mount[1]).join(place).join(name);
            fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
            let accounting = Self { path, version };
            if accounting.kernel().is_ok() {
                return Ok(Some(accounting));
            }
        }
        Ok(None)
    }

    /// Moves a process here. What it has allocated before stays accounted for elsewhere.
    pub(super) fn add(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.path.join("cgroup.procs"), pid.to_string())?)
    }

    /// Bytes that the kernel has allocated for the processes here: sockets, files, inodes, maps.
    fn kernel(&self) -> Result<u64> {
        match self.version {
            Version::V1 => Ok(fs::read_to_string(self.path.join("memory.kmem.usage_in_bytes"))?.trim().parse()?),
            Version::V2 => {
                let stat = fs::read_to_string(self.path.join("memory.stat"))?;
                let value = stat.lines().find_map(|line| line.strip_prefix("kernel ")).context("no such line")?;
                Ok(value.parse()?)
            }
        }
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("{} stays behind: {error}", self.path.display());
        }
    }
}

/// What a process uses.
pub(crate) struct Usage {
    pub(super) descriptors: u64,
    pub(crate) cpu: Duration,
    /// Bytes of its own memory that are in use, without files.
    pub(crate) resident: u64,
    /// Bytes of kernel memory.
    pub(super) kernel: Option<u64>,
}

impl Usage {
    pub(crate) fn of(pid: u32, accounting: Option<&Accounting>) -> Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        // Unlike the counters in `status` this is exact.
        let maps = fs::read_to_string(process.join("smaps_rollup"))?;
        let resident = maps.lines().find_map(|line| line.strip_prefix("Anonymous:")?.trim().strip_suffix(" kB"));
        Ok(Self {
            cpu: clock_getcpuclockid(Pid::from_raw(pid.cast_signed()))?.now()?.into(),
            descriptors: entries(&process.join("fd"))?,
            resident: 1024 * resident.context("no line Anonymous")?.parse::<u64>()?,
            kernel: accounting.map(Accounting::kernel).transpose()?,
        })
    }
}
