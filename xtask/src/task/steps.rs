//! Steps that run one after the other, with the time that each took.

use std::{
    io::{IsTerminal as _, stdout},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use xtask::exec::exec;

/// The steps done so far.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    /// Runs a command as a step.
    pub(crate) fn command(&mut self, name: &'static str, command: &mut Command) -> Result<()> {
        self.step(name, || exec(command))
    }

    /// Runs a step. An error names it.
    pub(crate) fn step(&mut self, name: &'static str, body: impl FnOnce() -> Result<()>) -> Result<()> {
        let before: Duration = self.done.iter().map(|(_, took)| *took).sum();
        println!("== {name} (after {} s)", before.as_secs());
        let start = Instant::now();
        body().with_context(|| format!("step \"{name}\" failed after {} s", start.elapsed().as_secs()))?;
        self.done.push((name, start.elapsed()));
        Ok(())
    }

    /// Lists the steps for whoever watches. A log keeps the last step's own words at its end, where readers and tools
    /// look for the result.
    pub(crate) fn summary(&self) {
        if stdout().is_terminal() {
            println!("== all passed");
            for (name, took) in &self.done {
                println!("{:6.1} s  {name}", took.as_secs_f64());
            }
        }
    }
}
