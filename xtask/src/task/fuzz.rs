//! `cargo xtask fuzz`

use std::fs;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use xtask::{
    ebpf::repository,
    exec::{ask, exec},
    recipe,
};

use super::{
    setup,
    steps::Steps,
    workspace::{cargo, fuzz_targets, target_dir},
};

/// Feed what reads from networks, from the kernel and from the user with what nobody has thought of
///
/// Installs cargo-fuzz if it is missing. The targets run one after the other, each in one process, and begin with the inputs in
/// fuzz/corpus. What they come upon stays in target/fuzz/corpus, for the next time; what one fails with, in fuzz/artifacts.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these targets, of those in fuzz/targets; all without a name
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// How long each of them runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        // Before anything is installed: a slip of the keyboard should cost nothing.
        let known = fuzz_targets()?;
        let names = select(&self.names, &known)?;
        setup::for_build()?;
        if ask(&mut cargo(&["fuzz", "--version"])).is_none() {
            exec(&mut recipe::install_fuzzer())?;
        }
        let directory = repository().join("fuzz");
        let mut steps = Steps::default();
        for name in names {
            // What is found is written to the first directory.
            let found = target_dir()?.join("fuzz/corpus").join(name);
            fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
            let mut fuzz = cargo(&["fuzz", "run", name]);
            fuzz.arg(found).arg(directory.join("corpus").join(name));
            fuzz.arg("--").arg(format!("-max_total_time={}", self.seconds));
            let dictionary = directory.join("dictionaries").join(name).with_extension("dict");
            if dictionary.exists() {
                fuzz.arg(format!("-dict={}", dictionary.display()));
            }
            // The sanitizer's flags are those of a nightly compiler, which a stable one has as well.
            fuzz.env("RUSTC_BOOTSTRAP", "1");
            // What makes the agent small takes long, and hides from the fuzzer where it has been.
            fuzz.envs([("CARGO_PROFILE_RELEASE_LTO", "off"), ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")]);
            steps.command("fuzz target", &mut fuzz)?;
        }
        steps.summary();
        Ok(())
    }
}

fn select<'a>(asked: &'a [String], known: &'a [String]) -> Result<&'a [String]> {
    match asked.iter().find(|name| !known.contains(name)) {
        Some(unknown) => bail!("there is no fuzz target {unknown}; there are {}", known.join(", ")),
        None if asked.is_empty() => Ok(known),
        None => Ok(asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_checked_by_name() {
        let known = ["config", "dns"].map(String::from);
        let check = |asked: &[&str], expected: Result<&[String], &str>| {
            let asked: Vec<String> = asked.iter().copied().map(String::from).collect();
            let selected = select(&asked, &known).map_err(|error| error.to_string());
            assert_eq!(selected, expected.map_err(String::from));
        };
        check(&[], Ok(&known));
        check(&["dns"], Ok(&known[1..]));
        check(&["dsn"], Err("there is no fuzz target dsn; there are config, dns"));
    }
}
