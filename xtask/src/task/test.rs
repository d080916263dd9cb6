//! `cargo xtask test`

use std::{env::consts::ARCH, ffi::OsString, process::Command};

use anyhow::{Result, bail};
use clap::Args;

use super::{
    kernel::{self, KERNELS, Kernel},
    lint::lint,
    setup,
    steps::Steps,
    workspace::{as_root, cargo, host, integration_tests, is_root, target_dir},
};

/// Run the static checks, the unit tests and the integration tests
///
/// Installs first what is missing: see setup. The integration tests attach eBPF programs to cgroups of their own and make
/// network namespaces, so they need root and get it by sudo. Some are run once more on other kernels than this machine's,
/// which are Debian's, in an emulated machine.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these: lint, unit, or the name of a file or directory in tests/tests; all without a name
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,
    /// Only integration tests, on this kernel; can be given more than once
    #[arg(long = "kernel", value_name = "KERNEL", value_parser = Kernel::parser())]
    kernels: Vec<&'static Kernel>,
    /// Arguments of the test programs, for example a test's name or --nocapture
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

/// What can be asked for.
#[derive(Debug, PartialEq, Eq)]
enum Group<'a> {
    Lint,
    Unit,
    /// All of them, by cargo's pattern.
    EveryIntegration,
    Integration(&'a str),
    /// Those that rest on the kernel, on the kernels that are tested without being asked for.
    UsualKernels,
    /// Integration tests on the kernels asked for.
    Kernels,
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        // Before anything is installed: a slip of the keyboard should cost nothing.
        let known = integration_tests()?;
        let groups = select(&self.groups, !self.kernels.is_empty(), &known)?;
        setup::for_tests()?;
        let mut steps = Steps::default();
        for group in groups {
            match group {
                Group::Lint => lint(&mut steps)?,
                Group::Unit => self.unit(&mut steps)?,
                Group::EveryIntegration => self.integration(&mut steps, "*")?,
                Group::Integration(name) => self.integration(&mut steps, name)?,
                Group::UsualKernels if ARCH == kernel::ARCHITECTURE => {
                    let usual: Vec<_> = KERNELS.iter().filter(|kernel| kernel.is_usual).collect();
                    self.on_kernels(&mut steps, &usual)?;
                }
                Group::UsualKernels => println!("other kernels skipped: they are for {}", kernel::ARCHITECTURE),
                Group::Kernels => self.on_kernels(&mut steps, &self.kernels)?,
            }
        }
        steps.summary();
        Ok(())
    }

    fn on_kernels(&self, steps: &mut Steps, kernels: &[&Kernel]) -> Result<()> {
        build_agent(steps)?;
        kernel::run(steps, kernels, &self.groups, &self.arguments)
    }

    fn unit(&self, steps: &mut Steps) -> Result<()> {
        let mut tests = cargo(&["test", "--locked", "--lib", "--bins", "--"]);
        steps.command("unit tests", tests.args(&self.arguments))?;
        let mut examples = cargo(&["test", "--locked", "--doc", "--"]);
        steps.command("examples in the documentation", examples.args(&self.arguments))
    }

    fn integration(&self, steps: &mut Steps, pattern: &str) -> Result<()> {
        build_agent(steps)?;
        let mut tests = cargo(&["test", "--locked", "--no-fail-fast", "--test", pattern, "--"]);
        tests.args(&self.arguments).env("EGRESS_BIN", target_dir()?.join("debug/egress"));
        if !is_root() {
            // Fails here, with a reason, if there is no way to become root.
            as_root(Command::new("the integration tests"))?;
            tests.env(runner_variable(&host()?), "sudo --preserve-env");
        }
        steps.command("integration tests", &mut tests)
    }
}

fn build_agent(steps: &mut Steps) -> Result<()> {
    steps.command("agent", &mut cargo(&["build", "--locked", "--bin", "egress"]))
}

fn select<'a>(asked: &'a [String], on_kernels: bool, integration: &[String]) -> Result<Vec<Group<'a>>> {
    if on_kernels {
        return match asked.iter().find(|name| !integration.contains(name)) {
            Some(unknown) => bail!("there is no integration test {unknown}; there are {}", integration.join(", ")),
            None => Ok(vec![Group::Kernels]),
        };
    }
    if asked.is_empty() {
        return Ok(vec![Group::Lint, Group::Unit, Group::EveryIntegration, Group::UsualKernels]);
    }
    let group = |name: &'a String| match name.as_str() {
        "lint" => Ok(Group::Lint),
        "unit" => Ok(Group::Unit),
        known if integration.contains(name) => Ok(Group::Integration(known)),
        unknown => bail!("there is no test group {unknown}; the groups are lint, unit, {}", integration.join(", ")),
    };
    asked.iter().map(group).collect()
}

/// The variable by which cargo is told what to run test programs with.
fn runner_variable(host: &str) -> String {
    format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_checked_by_name() {
        let integration = ["seed", "tls"].map(String::from);
        let check = |asked: &[&str], on_kernels, expected: Result<Vec<Group<'_>>, &str>| {
            let asked: Vec<String> = asked.iter().copied().map(String::from).collect();
            let selected = select(&asked, on_kernels, &integration).map_err(|error| error.to_string());
            assert_eq!(selected, expected.map_err(String::from));
        };
        let everything = vec![Group::Lint, Group::Unit, Group::EveryIntegration, Group::UsualKernels];
        check(&[], false, Ok(everything));
        check(&["tls", "unit"], false, Ok(vec![Group::Integration("tls"), Group::Unit]));
        check(&["lint"], false, Ok(vec![Group::Lint]));
        check(&["sed"], false, Err("there is no test group sed; the groups are lint, unit, seed, tls"));
        check(&[], true, Ok(vec![Group::Kernels]));
        check(&["tls"], true, Ok(vec![Group::Kernels]));
        check(&["unit"], true, Err("there is no integration test unit; there are seed, tls"));
    }

    #[test]
    fn the_runner_is_named_as_cargo_reads_it() {
        assert_eq!(runner_variable("x86_64-unknown-linux-gnu"), "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER");
    }
}
