//! Installing Debian packages.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use xtask::{
    exec::{ask, exec, which},
    recipe,
};

use super::workspace::as_root;

/// Where a Debian system asks whether a package may start its service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// apt-get, with its lists updated at most once, and not before something is missing.
#[derive(Debug, Default)]
pub(crate) struct Apt {
    is_updated: bool,
}

impl Apt {
    /// Installs those of the packages that are not installed.
    pub(crate) fn install<S: AsRef<str>>(&mut self, packages: &[S]) -> Result<()> {
        let missing: Vec<&str> = packages.iter().map(AsRef::as_ref).filter(|package| !is_installed(package)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if which("apt-get").is_none() {
            bail!("there is no apt-get here; install what these Debian packages have: {}", missing.join(" "));
        }
        self.update()?;
        let mut install = recipe::install_packages(&missing);
        // A freshly booted machine may be at its own upgrades.
        install.arg("-oDPkg::Lock::Timeout=300");
        exec(&mut as_root(install)?)
    }

    /// Installs packages that bring these services, which are neither started now nor at the next boot: what calls their
    /// programs starts its own.
    pub(crate) fn install_without_services<S: AsRef<str>>(&mut self, packages: &[S], services: &[&str]) -> Result<()> {
        let no_services = if services.is_empty() { None } else { NoServices::declare()? };
        self.install(packages)?;
        drop(no_services);
        if !services.is_empty() && which("systemctl").is_some() {
            let mut disable = Command::new("systemctl");
            disable.arg("disable").args(services);
            exec(&mut as_root(disable)?)?;
        }
        Ok(())
    }

    /// Whether every one of the packages is installed or could be.
    pub(crate) fn offers<S: AsRef<str>>(&mut self, packages: &[S]) -> Result<bool> {
        if packages.iter().all(|package| is_installed(package.as_ref())) || which("apt-get").is_none() {
            // Without apt-get, installing says what is needed.
            return Ok(true);
        }
        self.update()?;
        let show = |package: &S| ask(Command::new("apt-cache").args(["show", package.as_ref()])).is_some();
        Ok(packages.iter().all(show))
    }

    /// Where this machine gets Debian from.
    pub(crate) fn mirror(&mut self) -> Result<String> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
        let mut question = Command::new("apt-get");
        question.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Component: main"]);
        question.arg(format!("Release: {codename}"));
        let mut mirror = || ask(&mut question).and_then(|answer| answer.lines().next().map(String::from));
        if let Some(mirror) = mirror() {
            return Ok(mirror);
        }
        // Without lists apt does not tell.
        self.update()?;
        mirror().context("the configuration of apt has no mirror of Debian's main component")
    }

    fn update(&mut self) -> Result<()> {
        if !self.is_updated {
            let mut update = Command::new("apt-get");
            update.args(["update", "--quiet"]);
            if let Err(error) = exec(&mut as_root(update)?) {
                // One source of many may be unreachable. If it was the one that matters, the installation tells.
                eprintln!("warning: {error:#}");
            }
            self.is_updated = true;
        }
        Ok(())
    }
}

/// As long as it lives, installed packages do not start their services.
#[derive(Debug)]
struct NoServices;

impl NoServices {
    /// `None` if the machine has a policy of its own.
    fn declare() -> Result<Option<Self>> {
        if Path::new(POLICY).exists() {
            return Ok(None);
        }
        let mut write = Command::new("sh");
        write.args(["-c", &format!(r"printf '#!/bin/sh\nexit 101\n' >{POLICY} && chmod 755 {POLICY}")]);
        exec(&mut as_root(write)?)?;
        Ok(Some(Self))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let mut remove = Command::new("rm");
        remove.arg(POLICY);
        if let Err(error) = as_root(remove).and_then(|mut remove| exec(&mut remove)) {
            eprintln!("warning: services of packages stay disabled by {POLICY}: {error:#}");
        }
    }
}

/// Whether dpkg has the package installed.
pub(crate) fn is_installed(package: &str) -> bool {
    let query = ask(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]));
    query.is_some_and(|status| status == "installed")
}
