//! Where things are, and how to get root.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use xtask::{
    ebpf::repository,
    exec::{ask, is_executable, which},
};

/// `cargo`, called at the top of the workspace. Without `--package` it means the default members: everything but the
/// eBPF crate and the fuzz targets. Those resolve to the same features with the fuzz targets beside them, so that all tasks but `fuzz`
/// share what is compiled.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(repository()).args(arguments);
    if env::var_os("CI").is_some() {
        // What is compiled once for all gains nothing by being compiled in pieces.
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// Cargo's target directory, which this program was built into.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("cannot tell where this program is")?;
    let target = program.parent().and_then(Path::parent);
    Ok(target.with_context(|| format!("{} is not in a target directory", program.display()))?.to_owned())
}

/// The integration tests by name.
pub(crate) fn integration_tests() -> Result<Vec<String>> {
    programs("tests/tests")
}

/// The fuzz targets by name.
pub(crate) fn fuzz_targets() -> Result<Vec<String>> {
    programs("fuzz/targets")
}

/// The files in a directory, and its directories with a main.rs, as cargo finds them.
fn programs(directory: &str) -> Result<Vec<String>> {
    let directory = repository().join(directory);
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        let is_program = path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file();
        if let Some(name) = path.file_stem().filter(|_| is_program) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The target that binaries are built for unless one is named.
pub(crate) fn host() -> Result<String> {
    let version = ask(Command::new("rustc").arg("-vV")).context("cannot run rustc")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not tell its host")?.to_owned())
}

/// The program in `PATH` or in the directories of root, which other users need not have there.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let of_root = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(name));
    which(name).or_else(|| of_root.into_iter().find(|file| is_executable(file)))
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    // The owner of a process's directory in /proc is its effective user.
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// The command itself for root, otherwise the command by sudo with the environment that it sets.
pub(crate) fn as_root(command: Command) -> Result<Command> {
    if is_root() {
        return Ok(command);
    }
    if which("sudo").is_none() {
        bail!("only root can run {}, and there is no sudo: become root and try again", command.get_program().display());
    }
    let mut sudo = Command::new("sudo");
    sudo.arg("env");
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            sudo.arg(format!("{}={}", name.display(), value.display()));
        }
    }
    sudo.arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        sudo.current_dir(directory);
    }
    Ok(sudo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_gets_the_environment() {
        let mut command = Command::new("apt-get");
        command.arg("update").env("DEBIAN_FRONTEND", "noninteractive");
        let Ok(shown) = as_root(command).map(|command| xtask::exec::shown(&command)) else {
            assert!(!is_root() && which("sudo").is_none());
            return;
        };
        let expected = if is_root() { "" } else { "sudo env " };
        assert_eq!(shown, format!("{expected}DEBIAN_FRONTEND=noninteractive apt-get update"));
    }
}
