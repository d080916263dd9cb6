//! What this kernel has of what the programs call. The kernel itself is asked: its version does not tell what a
//! distribution has carried back, or built it without.

use std::{fmt, fs, os::unix::fs::MetadataExt as _, path::Path};

use aya::{
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};

use super::privilege_hint;

/// Without these nothing is intercepted. Helpers that every kernel has which has these are not listed.
const REQUIRED: [Helper; 2] = [
    Helper { function: BpfHelper::BPF_FUNC_get_netns_cookie, hook: Hook::SockOps, since: "5.15" },
    Helper { function: BpfHelper::BPF_FUNC_set_retval, hook: Hook::Connect, since: "5.18" },
];

const MULTIPATH: Optional = Optional {
    helper: Helper { function: BpfHelper::BPF_FUNC_skc_to_mptcp_sock, hook: Hook::Connect, since: "5.19" },
    without: "getpeername of a multipath TCP socket shows our listener",
};

/// Is there where the kernel has multipath TCP. Without it the verifier knows the helper, but refuses every call.
const MULTIPATH_SETTINGS: &str = "/proc/sys/net/mptcp";

/// The inode number of the initial pid namespace, which is the same everywhere (`PROC_PID_INIT_INO` of linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What the programs may use on this kernel besides what they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The multipath socket of a subflow can be found. Irrelevant, and false, where there is no multipath TCP.
    pub multipath: bool,
    /// Processes have the ids here by which the kernel knows them.
    pub initial_pids: bool,
}

impl Features {
    /// Asks the kernel. What it lacks and can be done without is logged, with what follows from that.
    ///
    /// # Errors
    /// The kernel lacks what the programs need, or does not let itself be asked.
    pub fn detect() -> Result<Self, FeatureError> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let kernel = kernel.trim();
        require(kernel, &REQUIRED, Helper::is_there)?;
        let has_multipath = Path::new(MULTIPATH_SETTINGS).exists();
        let multipath = has_multipath && MULTIPATH.is_there(kernel)?;
        let namespace = fs::metadata("/proc/self/ns/pid").map(|metadata| metadata.ino());
        let initial_pids = namespace.is_ok_and(|inode| inode == INITIAL_PID_NAMESPACE);
        if !initial_pids {
            tracing::info!(
                "not in the machine's initial pid namespace: the log has 0 for ids of processes, and new network namespaces are \
                 found by looking through all processes"
            );
        }
        Ok(Self { multipath, initial_pids })
    }
}

/// Why the programs cannot be loaded here.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// The kernel is too old, or built without what is needed.
    #[error("this kernel (Linux {kernel}) cannot run egress: it lacks {missing}")]
    Lacking {
        /// Its release.
        kernel: String,
        /// The helpers, where they are needed, and since when they are there.
        missing: String,
    },
    /// The answer is neither yes nor no.
    #[error("cannot ask the kernel whether it has {helper}: {source}{hint}", hint = privilege_hint())]
    Unknown {
        /// The helper that it was asked about.
        helper: String,
        /// What it said.
        source: Box<ProgramError>,
    },
}

fn require(
    kernel: &str,
    helpers: &[Helper],
    is_there: impl Fn(&Helper) -> Result<bool, FeatureError>,
) -> Result<(), FeatureError> {
    let mut missing = Vec::new();
    for helper in helpers {
        if !is_there(helper)? {
            missing.push(helper.to_string());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(FeatureError::Lacking { kernel: kernel.to_owned(), missing: missing.join(", ") })
}

/// A helper function that the programs of one hook call.
#[derive(Clone, Copy, Debug)]
struct Helper {
    function: BpfHelper,
    hook: Hook,
    /// The first kernel that has it there.
    since: &'static str,
}

/// Where programs are attached, as far as helpers differ.
#[derive(Clone, Copy, Debug)]
enum Hook {
    Connect,
    SockOps,
}

/// A helper that can be done without.
struct Optional {
    helper: Helper,
    /// What is then not as it should be.
    without: &'static str,
}

impl Helper {
    fn is_there(&self) -> Result<bool, FeatureError> {
        let program = match self.hook {
            Hook::Connect => ProgramType::CgroupSockAddr,
            Hook::SockOps => ProgramType::SockOps,
        };
        is_helper_supported(program, self.function)
            .map_err(|source| FeatureError::Unknown { helper: self.to_string(), source: Box::new(source) })
    }
}

impl Optional {
    fn is_there(&self, kernel: &str) -> Result<bool, FeatureError> {
        let is_there = self.helper.is_there()?;
        if !is_there {
            tracing::warn!("this kernel (Linux {kernel}) lacks {}: {}", self.helper, self.without);
        }
        Ok(is_there)
    }
}

impl fmt::Display for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The kernel's enumeration has each helper by its name.
        let function = format!("{:?}", self.function).replace("BPF_FUNC_", "bpf_");
        write!(f, "{function} in {} (there since Linux {})", self.hook, self.since)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect hooks",
            Self::SockOps => "sock_ops programs",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_helper_is_named() {
        let lacking = |missing: &[BpfHelper]| {
            let answer = require("5.10.0", &REQUIRED, |helper| Ok(!missing.contains(&helper.function)));
            answer.map_err(|error| error.to_string())
        };
        let (cookie, retval) = (BpfHelper::BPF_FUNC_get_netns_cookie, BpfHelper::BPF_FUNC_set_retval);
        let sentence = "this kernel (Linux 5.10.0) cannot run egress: it lacks";
        let cookie_text = "bpf_get_netns_cookie in sock_ops programs (there since Linux 5.15)";
        let retval_text = "bpf_set_retval in connect hooks (there since Linux 5.18)";
        assert_eq!(lacking(&[]), Ok(()));
        assert_eq!(lacking(&[retval]), Err(format!("{sentence} {retval_text}")));
        assert_eq!(lacking(&[cookie, retval]), Err(format!("{sentence} {cookie_text}, {retval_text}")));
    }
}
