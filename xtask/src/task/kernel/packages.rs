//! Kernels from Debian's packages. The machine's own apt is asked for its mirror, and then left as it is: lists and packages
//! of other releases go to directories of ours.

use std::{
    cmp::Reverse,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use xtask::exec::{ask, exec};

use super::{Kernel, find};
use crate::task::apt::Apt;

/// The flavour for virtual machines: small, and with everything that the tests need.
const FLAVOUR: &str = "cloud-amd64";

/// Puts the kernel into the directory of its name, unless it is there.
pub(super) fn fetch(kernel: &Kernel, kernels: &Path) -> Result<()> {
    let place = kernels.join(kernel.series);
    if place.exists() {
        return Ok(());
    }
    let work = kernels.join(format!("{}.part", kernel.series));
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    let apt = OtherRelease::new(kernel.suite, &work)?;
    let names = apt.names()?;
    let version = newest(&names, kernel.series)
        .with_context(|| format!("{} has no kernel {} or later of flavour {FLAVOUR}", kernel.suite, kernel.series))?;
    if !is_of_series(version, kernel.series) {
        println!("{} no longer has Linux {}: testing on its successor, {version}", kernel.suite, kernel.series);
    }
    apt.download(&packages(&names, version))?;
    for entry in fs::read_dir(&apt.packages)? {
        exec(Command::new("dpkg-deb").arg("--extract").args([&entry?.path(), &apt.unpacked]))?;
    }
    if find(&apt.unpacked, &|name| name.starts_with("vmlinuz"))?.is_none() {
        bail!("no vmlinuz in the packages of Linux {version}");
    }
    // Last, so that what is there is complete.
    fs::rename(&apt.unpacked, &place).with_context(|| format!("cannot make {}", place.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}

/// apt with the packages of one release, and with files of its own. Needs no root.
struct OtherRelease {
    options: Vec<String>,
    packages: PathBuf,
    unpacked: PathBuf,
}

impl OtherRelease {
    fn new(suite: &str, work: &Path) -> Result<Self> {
        let [lists, cache, packages, unpacked] = ["lists", "cache", "packages", "unpacked"].map(|name| work.join(name));
        for directory in [lists.join("partial"), cache.join("archives/partial"), packages.clone(), unpacked.clone()] {
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let sources = work.join("sources.list");
        let mirror = Apt::default().mirror()?;
        fs::write(&sources, format!("deb [arch=amd64 lang=none target=Packages] {mirror} {suite} main\n"))?;
        let options = vec![
            format!("-oDir::Etc::SourceList={}", sources.display()),
            "-oDir::Etc::SourceParts=/dev/null".to_owned(),
            format!("-oDir::State::Lists={}", lists.display()),
            // What is installed on this machine says nothing about that release.
            "-oDir::State::Status=/dev/null".to_owned(),
            format!("-oDir::Cache={}", cache.display()),
            // Its own user may not be let into our directories.
            "-oAPT::Sandbox::User=".to_owned(),
        ];
        let apt = Self { options, packages, unpacked };
        exec(apt.command("apt-get").args(["update", "--quiet"]))?;
        Ok(apt)
    }

    /// The names of its packages of kernels.
    fn names(&self) -> Result<Vec<String>> {
        let names = ask(self.command("apt-cache").args(["pkgnames", "linux-"])).context("apt-cache does not answer")?;
        Ok(names.lines().map(String::from).collect())
    }

    fn download(&self, packages: &[String]) -> Result<()> {
        let mut download = self.command("apt-get");
        exec(download.args(["download", "--quiet"]).args(packages).current_dir(&self.packages))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }
}

/// The newest version of the series among the packages; when there is none any more, the newest after it.
fn newest<'a>(names: &'a [String], series: &str) -> Option<&'a str> {
    let image = |name: &'a String| name.strip_prefix("linux-image-")?.strip_suffix(FLAVOUR)?.strip_suffix('-');
    let versions = names.iter().filter_map(image).filter(|version| numbers(version) >= numbers(series));
    versions.min_by_key(|version| (!is_of_series(version, series), Reverse(numbers(version))))
}

/// The image, and what some releases have in packages of their own.
fn packages(names: &[String], version: &str) -> Vec<String> {
    let candidates = ["image", "binary", "modules"].map(|part| format!("linux-{part}-{version}-{FLAVOUR}"));
    candidates.into_iter().filter(|name| names.contains(name)).collect()
}

fn is_of_series(version: &str, series: &str) -> bool {
    numbers(version).starts_with(&numbers(series))
}

/// 6, 1, 0, 50 of `6.1.0-50`.
fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_taken_with_all_its_packages() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-unsigned",
            "linux-image-6.1.0-51-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64-dbg",
            "linux-image-cloud-amd64",
            "linux-image-7.4.12+deb14-cloud-amd64",
            "linux-binary-7.4.12+deb14-cloud-amd64",
            "linux-modules-7.4.12+deb14-cloud-amd64",
            "linux-modules-7.4.12+deb14-amd64",
        ]
        .map(String::from);
        let check = |series, version: Option<&str>, parts: &[&str]| {
            assert_eq!(newest(&names, series), version, "{series}");
            let expected = parts.iter().map(|part| format!("linux-{part}-{}-cloud-amd64", version.unwrap_or_default()));
            assert_eq!(packages(&names, version.unwrap_or_default()), expected.collect::<Vec<_>>(), "{series}");
        };
        check("6.1", Some("6.1.0-50"), &["image"]);
        check("6.12", Some("6.12.107+deb13"), &["image"]);
        check("7.2", Some("7.4.12+deb14"), &["image", "binary", "modules"]);
        check("7.5", None, &[]);
    }
}
