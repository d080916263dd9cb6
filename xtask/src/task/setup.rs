//! `cargo xtask setup`

use std::{path::Path, process::Command};

use anyhow::{Result, bail};
use clap::Args;
use xtask::{
    ebpf::{Missing, Tools},
    exec::{ask, exec, which},
    recipe,
    rustc::{Compiler, Origin},
};

use super::{
    apt::{Apt, is_installed},
    workspace::{cargo, find_program},
};

/// Install what building and testing need, and is missing
///
/// A compiler and a linker for the eBPF programs, rustfmt and clippy, and the programs that the integration tests and
/// the comparisons call. Every command that changes something is printed. Does nothing the second time. Packages are
/// installed by apt-get; on other systems the names of what is missing are printed.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only what building needs
    #[arg(long)]
    build_only: bool,
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        let changed = if self.build_only { for_build()? } else { for_tests()? };
        if !changed {
            println!("nothing to do");
        }
        Ok(())
    }
}

/// What the tests call, and the package that has it.
const PROGRAMS: [(&str, &str); 10] = [
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("curl", "curl"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nginx", NGINX),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("tc", "iproute2"),
];

const NGINX: &str = "nginx-light";

/// What else they read: the roots that a machine trusts, and gRPC as Debian's Python has it.
const FILES: [(&str, &str); 2] = [
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
    ("/usr/lib/python3/dist-packages/grpc", "python3-grpcio"),
];

/// Installs what the build and the static checks need. Says whether anything was missing.
pub(crate) fn for_build() -> Result<bool> {
    build_tools(&mut Apt::default())
}

/// Installs what building and testing need. Says whether anything was missing.
pub(crate) fn for_tests() -> Result<bool> {
    let mut apt = Apt::default();
    let build = build_tools(&mut apt)?;
    let mut packages: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| find_program(program).is_none()).map(|(_, package)| *package).collect();
    packages.extend(FILES.iter().filter(|(path, _)| !Path::new(path).exists()).map(|(_, package)| *package));
    packages.dedup();
    if packages.is_empty() {
        return Ok(build);
    }
    let services: &[&str] = if packages.contains(&NGINX) { &["nginx"] } else { &[] };
    apt.install_without_services(&packages, services)?;
    Ok(true)
}

fn build_tools(apt: &mut Apt) -> Result<bool> {
    let toolchain = ebpf_toolchain(apt)?;
    let clippy = ebpf_clippy(apt)?;
    let components = components()?;
    Ok(toolchain || clippy || components)
}

/// Installs a compiler and a linker for the eBPF crate. Each round gets one of them, and then looks again.
fn ebpf_toolchain(apt: &mut Apt) -> Result<bool> {
    let mut before = None;
    loop {
        let Err(missing) = Tools::find() else { return Ok(before.is_some()) };
        if before.as_ref() == Some(&missing) {
            bail!("what was installed did not help: {}", missing.reason());
        }
        println!("{}", missing.reason());
        match &missing {
            Missing::Compiler(compilers) => compiler(apt, compilers),
            Missing::Linker(compilers, _) => linker(apt, compilers),
        }?;
        before = Some(missing);
    }
}

fn compiler(apt: &mut Apt, present: &[Compiler]) -> Result<()> {
    let nightly = present.iter().any(|compiler| compiler.origin == Origin::RustupNightly);
    if nightly && exec(&mut recipe::add_source()).is_ok() {
        return Ok(());
    }
    apt.install(&recipe::DEBIAN_COMPILER)
}

/// Builds a linker for the first compiler whose LLVM there is a package of.
fn linker(apt: &mut Apt, compilers: &[Compiler]) -> Result<()> {
    for compiler in compilers {
        let llvm = compiler.version.llvm;
        let packages = recipe::linker_packages(llvm);
        if apt.offers(&packages)? {
            apt.install(&packages)?;
            return exec(&mut recipe::install_linker(llvm));
        }
    }
    // A nightly can be ahead of what is packaged. Debian's compiler comes with its LLVM.
    apt.install(&recipe::DEBIAN_COMPILER)
}

/// Clippy for the eBPF crate: that of another compiler cannot read its libraries. Only Debian's is known by its package.
fn ebpf_clippy(apt: &mut Apt) -> Result<bool> {
    let debian = is_installed(recipe::DEBIAN_COMPILER[0]);
    if !debian || Path::new("/usr/bin/cargo-clippy").exists() {
        return Ok(false);
    }
    apt.install(&[recipe::DEBIAN_CLIPPY])?;
    Ok(true)
}

/// What the formatting and the lints need, from rustup where there is one.
fn components() -> Result<bool> {
    let lacks = |subcommand: &&str| ask(&mut cargo(&[subcommand, "--version"])).is_none();
    let missing: Vec<&str> = ["fmt", "clippy"].into_iter().filter(lacks).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    if which("rustup").is_none() {
        bail!("`cargo {}` is missing, and there is no rustup to install it", missing.join("` and `cargo "));
    }
    let mut add = Command::new("rustup");
    add.args(["component", "add"]);
    add.args(missing.iter().map(|subcommand| if *subcommand == "fmt" { "rustfmt" } else { subcommand }));
    exec(&mut add)?;
    Ok(true)
}
