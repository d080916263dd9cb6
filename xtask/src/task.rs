//! The tasks: one module and one options struct each.

mod apt;
mod bench;
mod ebpf;
mod fuzz;
mod kernel;
mod lint;
mod peers;
mod run;
mod setup;
mod steps;
mod test;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, run and test egress.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
pub(crate) struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Setup(setup::Options),
    Ebpf(ebpf::Options),
    Run(run::Options),
    Test(test::Options),
    Bench(bench::Options),
    Fuzz(fuzz::Options),
    Lint(lint::Options),
}

impl Options {
    /// Runs the task that was asked for.
    pub(crate) fn run(self) -> Result<()> {
        match self.task {
            Task::Setup(options) => options.run(),
            Task::Ebpf(options) => options.run(),
            Task::Run(options) => options.run(),
            Task::Test(options) => options.run(),
            Task::Bench(options) => options.run(),
            Task::Fuzz(options) => options.run(),
            Task::Lint(options) => options.run(),
        }
    }
}
