//! `cargo xtask bench`

use std::{ffi::OsString, process::Command};

use anyhow::Result;
use clap::Args;
use xtask::exec::{exec, replace};

use super::{
    peers, setup,
    workspace::{as_root, cargo, target_dir},
};

/// Build with optimisations and run a benchmark; without arguments list them
///
/// They run in network namespaces and cgroups of their own, print a table, and end by themselves. They need root and get it
/// by sudo. `cargo xtask bench NAME --help` has the options of one. `proxy` also installs what it compares with: HAProxy, and
/// Envoy into the target directory.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The benchmark's name and its options
    #[arg(value_name = "NAME", trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        setup::for_tests()?;
        let envoy = if self.arguments.first().is_some_and(|name| name == "proxy") { peers::install() } else { None };
        exec(&mut cargo(&["build", "--locked", "--release", "--bin", "egress", "--bin", "bench"]))?;

        let binaries = target_dir()?.join("release");
        let mut bench = Command::new(binaries.join("bench"));
        bench.args(&self.arguments).env("EGRESS_BIN", binaries.join("egress"));
        if let Some(envoy) = envoy {
            bench.env("ENVOY_BIN", envoy);
        }
        Err(replace(&mut as_root(bench)?))
    }
}
