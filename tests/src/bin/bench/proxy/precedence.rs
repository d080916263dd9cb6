//! Precedence over other processes: what is measured depends less on how busy the machine is.

use std::{fs, io};

use anyhow::{Context as _, Result};

/// Not the highest: whatever else runs must not starve.
const NICE: libc::c_int = -10;
/// Where the scheduler divides time between sessions first, and between the processes of one only then.
const AUTOGROUP: &str = "/proc/self/autogroup";

/// As long as it lives, this process's session comes before others, where sessions are told apart. So do for good this process
/// and those that it starts.
pub(super) struct Precedence {
    /// What the session had before.
    autogroup: Option<String>,
}

impl Precedence {
    pub(super) fn take() -> Result<Self> {
        // SAFETY: no memory is involved. 0 stands for this process.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
            return Err(io::Error::last_os_error()).context("taking precedence over other processes");
        }
        // Such as `/autogroup-16 nice 0`. It is there on kernels that can do it, whether or not they do.
        let autogroup = fs::read_to_string(AUTOGROUP).ok();
        let before = autogroup.and_then(|line| Some(line.trim().rsplit_once(" nice ")?.1.to_owned()));
        if before.is_some() {
            fs::write(AUTOGROUP, NICE.to_string()).context("taking precedence over other sessions")?;
        }
        Ok(Self { autogroup: before })
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        if let Some(before) = &self.autogroup
            && let Err(error) = fs::write(AUTOGROUP, before)
        {
            eprintln!("{AUTOGROUP} stays at {NICE}: {error}");
        }
    }
}
