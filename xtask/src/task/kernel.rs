//! Integration tests on other kernels than this machine's: Debian's, in an emulated machine that has nothing but what the
//! tests call.

mod image;
mod machine;
mod packages;

use std::{
    env::consts::ARCH,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};

use self::machine::Machine;
use super::{steps::Steps, workspace::target_dir};

/// The processor that the kernels are for.
pub(crate) const ARCHITECTURE: &str = "x86_64";

/// A kernel to test on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// What it is called: the first numbers of its version.
    pub(crate) series: &'static str,
    /// The release of Debian that has it.
    suite: &'static str,
    /// The integration tests that are run on it unless others are asked for: `FILE`, or `FILE=NAME,NAME` for those alone that
    /// have one of these in their names.
    tests: &'static [&'static str],
    /// Whether it is tested on without being asked for.
    pub(crate) is_usual: bool,
}

/// What the promises rest on in the kernel. Everything else is much the same on any of them, and emulation is slow, so of each
/// file it is what asks something of the kernel that others do not: of upgrades just what hands sockets over.
const OLDEST: &[&str] = &[
    "requirements",
    "sockets=every_kind,redirected_and_left,bound_to_a_device,closes_at_once,leaves_nothing,share_the_port,without_ipv6",
    "flows=one_slot,two_agents,reset_connection,is_forgotten,is_swept",
    "bystanders=never_end",
    "dns=in_every_form,count_together,touches_no_other,cannot_be_learned,dead_agent",
    "fail_closed=a_stranger,takes_over,was_replaced,let_go,layout_refuse",
    "pods",
    "upgrade=is_under_way,a_killed_agent",
];

/// For the newest: what rests on helpers and hooks that could change. What rests on the oldest having them all is not asked again.
const NEWEST: &[&str] = &[
    "requirements",
    "sockets=every_kind,redirected_and_left,leaves_nothing,without_ipv6",
    "flows=one_slot,two_agents,reset_connection",
    "dns=in_every_form,count_together,touches_no_other",
    "fail_closed=a_stranger,takes_over",
    "pods=a_pod_dies,first_connect",
];

/// For a kernel between the oldest and the newest: that it takes the programs, and that they do what they are for.
const BETWEEN: &[&str] = &["requirements", "dns=in_every_form", "fail_closed=a_stranger"];

/// The kernels that there are.
pub(crate) const KERNELS: [Kernel; 4] = [
    // Too old for egress, which says so. Debian no longer supports it and may take it from its mirrors.
    Kernel { series: "5.10", suite: "bullseye", tests: &["requirements"], is_usual: false },
    Kernel { series: "6.1", suite: "bookworm", tests: OLDEST, is_usual: true },
    Kernel { series: "6.12", suite: "trixie", tests: BETWEEN, is_usual: true },
    Kernel { series: "7.2", suite: "forky", tests: NEWEST, is_usual: true },
];

impl Kernel {
    /// Finds the kernel that the command line names.
    pub(crate) fn parser() -> impl TypedValueParser<Value = &'static Self> {
        PossibleValuesParser::new(KERNELS.each_ref().map(|kernel| kernel.series))
            .try_map(|series| KERNELS.iter().find(|kernel| kernel.series == series).context("no such kernel"))
    }
}

/// Runs integration tests on these kernels: `tests` if there are any, otherwise what each is tested with. The agent and
/// the test programs have been built.
pub(crate) fn run(steps: &mut Steps, kernels: &[&Kernel], tests: &[String], arguments: &[OsString]) -> Result<()> {
    if ARCH != ARCHITECTURE {
        bail!("the kernels are for {ARCHITECTURE}, and this machine's programs are not");
    }
    let directory = target_dir()?.join("kernels");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    steps.step("kernels", || kernels.iter().try_for_each(|kernel| packages::fetch(kernel, &directory)))?;

    let of = |kernel: &Kernel| match tests {
        [] => kernel.tests.iter().map(|test| String::from(*test)).collect(),
        asked => asked.to_vec(),
    };
    let file = |test: String| test.split('=').next().map(ToOwned::to_owned);
    let mut every: Vec<String> = kernels.iter().flat_map(|kernel| of(kernel)).filter_map(file).collect();
    every.sort();
    every.dedup();
    let mut image = PathBuf::new();
    steps.step("image of the emulated machine", || {
        image = image::build(&directory, kernels, &every, arguments)?;
        Ok(())
    })?;
    steps.step("integration tests on other kernels", || {
        // Together, since each keeps but one processor busy.
        let start = |kernel| Machine::start(kernel, &directory, &image, &of(kernel), kernels.len() == 1);
        let machines: Vec<_> = kernels.iter().map(|kernel| start(kernel)).collect();
        let mut failures = Vec::new();
        for (machine, kernel) in machines.into_iter().zip(kernels) {
            if let Err(error) = machine.and_then(Machine::wait) {
                failures.push(format!("Linux {}: {error:#}", kernel.series));
            }
        }
        if !failures.is_empty() {
            bail!("{}", failures.join("; "));
        }
        Ok(())
    })
}

/// A file below `directory` whose name `matches`.
fn find(directory: &Path, matches: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let found = match entry.file_type()?.is_dir() {
            true => find(&entry.path(), matches)?,
            false => entry.file_name().to_str().filter(|name| matches(name)).map(|_| entry.path()),
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
