//! Build, run and test tasks of egress: `cargo xtask --help`.

mod task;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match task::Options::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtrace: that of a task runner helps nobody.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
