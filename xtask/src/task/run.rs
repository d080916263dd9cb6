//! `cargo xtask run`

use std::{ffi::OsString, process::Command};

use anyhow::Result;
use clap::Args;
use xtask::exec::{exec, replace};

use super::{
    setup,
    workspace::{as_root, cargo, target_dir},
};

/// Build the agent and run it; without arguments run the demonstration
///
/// The demonstration makes a network of its own, with an application, an origin and the agent, and touches nothing
/// outside. With arguments the agent itself is run: `cargo xtask run -- --help`. Either needs root and gets it by sudo.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Build with optimisations
    #[arg(long)]
    release: bool,
    /// Arguments of the agent
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        setup::for_build()?;
        let mut build = cargo(&["build", "--bin", "egress"]);
        if self.arguments.is_empty() {
            build.args(["--bin", "demo"]);
        }
        if self.release {
            build.arg("--release");
        }
        exec(&mut build)?;

        let binaries = target_dir()?.join(if self.release { "release" } else { "debug" });
        let agent = binaries.join("egress");
        let command = if self.arguments.is_empty() {
            let mut demo = Command::new(binaries.join("demo"));
            demo.env("EGRESS_BIN", agent);
            demo
        } else {
            let mut command = Command::new(agent);
            command.args(&self.arguments);
            command
        };
        Err(replace(&mut as_root(command)?))
    }
}
