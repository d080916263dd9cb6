//! `cargo xtask test`

use std::{ffi::OsString, process::Command};

use anyhow::{Result, bail};
use clap::Args;

use super::{
    lint::lint,
    setup,
    steps::Steps,
    workspace::{as_root, cargo, host, integration_tests, is_root, target_dir},
};

/// Run the static checks, the unit tests and the integration tests
///
/// Installs first what is missing: see setup. The integration tests attach eBPF programs to cgroups of their own and make
/// network namespaces, so they need root and get it by sudo.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these: lint, unit, or the name of a file or directory in tests/tests; all without a name
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,
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
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        // Before anything is installed: a slip of the keyboard should cost nothing.
        let known = integration_tests()?;
        let groups = select(&self.groups, &known)?;
        setup::for_tests()?;
        let mut steps = Steps::default();
        for group in groups {
            match group {
                Group::Lint => lint(&mut steps)?,
                Group::Unit => self.unit(&mut steps)?,
                Group::EveryIntegration => self.integration(&mut steps, "*")?,
                Group::Integration(name) => self.integration(&mut steps, name)?,
            }
        }
        steps.summary();
        Ok(())
    }

    fn unit(&self, steps: &mut Steps) -> Result<()> {
        let mut tests = cargo(&["test", "--locked", "--lib", "--bins", "--"]);
        steps.command("unit tests", tests.args(&self.arguments))?;
        let mut examples = cargo(&["test", "--locked", "--doc", "--"]);
        steps.command("examples in the documentation", examples.args(&self.arguments))
    }

    fn integration(&self, steps: &mut Steps, pattern: &str) -> Result<()> {
        steps.command("agent", &mut cargo(&["build", "--locked", "--bin", "egress"]))?;
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

fn select<'a>(asked: &'a [String], integration: &[String]) -> Result<Vec<Group<'a>>> {
    if asked.is_empty() {
        return Ok(vec![Group::Lint, Group::Unit, Group::EveryIntegration]);
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
        let check = |asked: &[&str], expected: Result<Vec<Group<'_>>, &str>| {
            let asked: Vec<String> = asked.iter().copied().map(String::from).collect();
            let selected = select(&asked, &integration).map_err(|error| error.to_string());
            assert_eq!(selected, expected.map_err(String::from));
        };
        check(&[], Ok(vec![Group::Lint, Group::Unit, Group::EveryIntegration]));
        check(&["tls", "unit"], Ok(vec![Group::Integration("tls"), Group::Unit]));
        check(&["lint"], Ok(vec![Group::Lint]));
        check(&["sed"], Err("there is no test group sed; the groups are lint, unit, seed, tls"));
    }

    #[test]
    fn the_runner_is_named_as_cargo_reads_it() {
        assert_eq!(runner_variable("x86_64-unknown-linux-gnu"), "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER");
    }
}
