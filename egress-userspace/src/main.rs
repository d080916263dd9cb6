//! The command `egress`.

mod checking;
mod cli;
mod descriptors;
mod detach;
mod exec;
mod run;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use egress::{memory, self_test};

use crate::cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::Allocator;

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no mistakes. That they cannot be printed leaves nothing to be said.
            let code = if error.use_stderr() { cli::USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match cli.command {
        Command::Run(options) => run::run(options),
        Command::Exec(options) => exec::exec(options),
        Command::Check(options) => checking::check(&options),
        Command::Detach(options) => detach::detach(&options),
        Command::SelfTest => match self_test::connect() {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                let _ = writeln!(io::stderr(), "{failure}");
                ExitCode::FAILURE
            }
        },
    }
}
