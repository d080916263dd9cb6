//! The emulated machine.

use std::{
    fs::{self, File},
    io::{self, stdout},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use xtask::exec::shown;

use super::{Kernel, find};

/// How long a kernel's tests may take, in seconds. Then something hangs.
const DEADLINE: &str = "2400";

/// A machine that runs tests. It has neither disk nor network, so that nothing outside can be reached.
pub(super) struct Machine {
    process: Child,
    /// What the tests print, unless it is shown at once.
    log: Option<PathBuf>,
    /// The exit status of the tests, from the machine's second serial port.
    result: PathBuf,
}

impl Machine {
    /// Starts the kernel below `directory` with the image. What the tests print is shown at once, or when they have ended.
    pub(super) fn start(
        kernel: &Kernel,
        directory: &Path,
        image: &Path,
        tests: &[String],
        at_once: bool,
    ) -> Result<Self> {
        let place = directory.join(kernel.series);
        let vmlinuz = find(&place, &|name| name.starts_with("vmlinuz"))?.with_context(|| {
            format!("{} has no vmlinuz; remove it to have the kernel fetched again", place.display())
        })?;
        let [log, result] = ["log", "result"].map(|kind| directory.join(format!("{}.{kind}", kernel.series)));
        // What follows the dashes is for the first process. A kernel that panics ends the machine, and leaves no result.
        let parameters = format!("console=ttyS0 quiet panic=-1 -- {} {}", kernel.series, tests.join(" "));
        let mut machine = Command::new("timeout");
        // Without a process group of its own, which Ctrl-C would not reach.
        machine.args(["--foreground", DEADLINE, "qemu-system-x86_64"]);
        machine.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        // Emulated even where there is KVM, which is far slower inside another virtual machine. With more than one processor
        // the emulation can stumble over what the kernel patches in its own code, as it does to attach the first program of
        // a kind to a cgroup: "Oops: int3".
        machine.args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1G"]);
        machine.args(["-serial", "stdio", "-serial", &format!("file:{}", result.display())]);
        machine.arg("-kernel").arg(vmlinuz).arg("-initrd").arg(image).args(["-append", &parameters]);

        println!("$ {}", shown(&machine));
        let (output, log) = match at_once {
            true => (Stdio::inherit(), None),
            false => (File::create(&log).with_context(|| format!("cannot make {}", log.display()))?.into(), Some(log)),
        };
        let process = machine.stdin(Stdio::null()).stdout(output).spawn().context("cannot run the machine")?;
        Ok(Self { process, log, result })
    }

    /// Waits for the end, and shows what has not been shown. Anything but success of all tests is an error.
    pub(super) fn wait(mut self) -> Result<()> {
        let status = self.process.wait().context("cannot wait for the machine")?;
        if let Some(log) = &self.log {
            let mut log = File::open(log).with_context(|| format!("cannot read {}", log.display()))?;
            io::copy(&mut log, &mut stdout()).context("cannot show what the tests print")?;
        }
        let result = fs::read_to_string(&self.result).unwrap_or_default();
        match result.trim() {
            "0" => Ok(()),
            "" => bail!("the machine ended before its tests did: {status}"),
            _ => bail!("tests failed"),
        }
    }
}
