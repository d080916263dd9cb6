//! What the kernel refuses.

use std::{fs, io};

use aya::{EbpfError, maps::MapError};

use super::{FeatureError, LoadError, maps::is_full, pins::PinError};

/// What the kernel refused, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel lacks what the programs need.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// The object or one of its maps could not be loaded.
    #[error("cannot load the eBPF programs: {0}{hint}", hint = privilege_hint())]
    Load(#[source] Box<EbpfError>),
    /// The verifier or the kernel's version stands against a program.
    #[error("cannot load the eBPF program {name}: {source}{hint}", hint = privilege_hint())]
    Program {
        /// The program's name in the object.
        name: &'static str,
        /// The kernel's answer.
        source: LoadError,
    },
    /// A program could not be attached.
    #[error("cannot attach the eBPF program {name} to {cgroup}: {source}")]
    Attach {
        /// The program's name in the object.
        name: &'static str,
        /// The cgroup directory.
        cgroup: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The cgroup to attach to cannot be opened.
    #[error("cannot open the cgroup {cgroup}: {source}")]
    Cgroup {
        /// The cgroup directory.
        cgroup: String,
        /// Why.
        source: io::Error,
    },
    /// A map operation failed.
    #[error("eBPF map {name}: {source}")]
    Map {
        /// The map's name in the object.
        name: &'static str,
        /// The kernel's answer.
        source: MapError,
    },
    /// Something cannot be pinned.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The destinations map is full.
    #[error("more than {capacity} addresses to intercept; none of the new ones was added")]
    TooManyDestinations {
        /// How many the map holds.
        capacity: usize,
    },
    /// The object lacks a program or map that the names say it has.
    #[error("the eBPF object has no {0}; egress and its eBPF object were built from different sources")]
    Missing(&'static str),
    /// There is no descriptor left.
    #[error("cannot keep the eBPF maps open: {0}")]
    Descriptor(#[source] io::Error),
    /// An asynchronous descriptor could not be registered.
    #[error("cannot watch an eBPF ring buffer: {0}")]
    Watch(#[source] io::Error),
}

impl KernelError {
    /// The code of the system, if an operation on a map has failed with one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Map { source: MapError::SyscallError(error), .. } => error.io_error.raw_os_error(),
            _ => None,
        }
    }

    /// Whether a map is full.
    pub fn is_want_of_room(&self) -> bool {
        match self {
            Self::TooManyDestinations { .. } => true,
            Self::Map { source, .. } => is_full(source),
            _ => false,
        }
    }
}

/// What egress needs, by the numbers of linux/capability.h.
const CAPABILITIES: [(u32, &str); 4] =
    [(39, "CAP_BPF"), (12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (19, "CAP_SYS_PTRACE")];

/// Which privileges this process lacks, if that is what an error may come from.
pub fn privilege_hint() -> String {
    let effective = fs::read("/proc/self/status").ok().and_then(|status| capabilities(&status));
    effective.map_or_else(String::new, lacks)
}

/// The capabilities in force of a process, by the `status` file in /proc. Its name, which is there too, can be any bytes.
pub fn capabilities(status: &[u8]) -> Option<u64> {
    let effective = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"CapEff:"))?;
    u64::from_str_radix(str::from_utf8(effective).ok()?.trim(), 16).ok()
}

/// The user's id says nothing: root in a container can lack any.
fn lacks(effective: u64) -> String {
    let lacking = CAPABILITIES.iter().filter(|(number, _)| effective >> number & 1 == 0);
    let lacking: Vec<_> = lacking.map(|(_, name)| *name).collect();
    if lacking.is_empty() { String::new() } else { format!(" (egress needs root: it lacks {})", lacking.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named() {
        assert_eq!(lacks(0x1ff_ffff_ffff), "");
        let all = " (egress needs root: it lacks CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE)";
        assert_eq!(lacks(0xa804_25fb), all);
        assert_eq!(lacks(0x1ff_ffdf_ffff), " (egress needs root: it lacks CAP_SYS_ADMIN)");
    }

    #[test]
    fn capabilities_are_read_whatever_the_process_is_called() {
        assert_eq!(capabilities(b"Name:\t\xff\nCapPrm:\t0\nCapEff:\t00000000a80425fb\n"), Some(0xa804_25fb));
        assert_eq!(capabilities(b"CapEff:\tnone\n"), None);
        assert_eq!(capabilities(b"Name:\tegress\n"), None);
    }
}
