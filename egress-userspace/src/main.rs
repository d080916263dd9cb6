//! The command `egress`.

mod cli;
mod exec;
mod run;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Run(options) => run::run(options, &cli.log),
        Command::Exec(options) => exec::exec(options, &cli.log),
    }
}
