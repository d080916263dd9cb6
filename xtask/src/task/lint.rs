//! `cargo xtask lint`

use std::{env::consts::ARCH, process::Command};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use xtask::{
    ebpf::{Tools, build, clippy, repository},
    exec::{ask, exec, shown},
};

use super::{
    setup,
    steps::Steps,
    workspace::{cargo, target_dir},
};

/// How long the database of advisories may take to download, in seconds.
const ADVISORIES_DEADLINE: &str = "60";

/// Check formatting, lints, documentation and dependencies
///
/// Dependencies are checked where cargo-deny is installed, and advisories where their database can be had.
#[derive(Debug, Args)]
pub(crate) struct Options {}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        setup::for_build()?;
        let mut steps = Steps::default();
        lint(&mut steps)?;
        steps.summary();
        Ok(())
    }
}

/// Every static check, the quick ones first.
pub(crate) fn lint(steps: &mut Steps) -> Result<()> {
    steps.command("formatting", &mut cargo(&["fmt", "--all", "--check"]))?;
    steps.step("dependencies", dependencies)?;
    steps.step("lints of the eBPF crate", lint_ebpf)?;
    let selected = ["clippy", "--locked", "--workspace", "--exclude", "egress-ebpf", "--all-targets"];
    let mut clippy = cargo(&selected);
    // Nothing is linked, so that the fuzzer itself need not be compiled; it takes any file for it.
    clippy.env("CUSTOM_LIBFUZZER_PATH", repository().join("fuzz/Cargo.toml"));
    steps.command("lints", clippy.args(["--", "-D", "warnings"]))?;
    let mut doc = cargo(&["doc", "--locked", "--no-deps", "--document-private-items"]);
    // Replaces what the environment has: other flags would compile everything again.
    steps.command("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Clippy, if the toolchain that compiles the eBPF crate has it; otherwise the compiler's own lints.
fn lint_ebpf() -> Result<()> {
    let tools = Tools::find().map_err(|missing| anyhow!(missing.explain()))?;
    let target_dir = target_dir()?.join("ebpf");
    if let Some(mut clippy) = clippy(&tools, &repository(), &target_dir, ARCH) {
        return exec(clippy.args(["--", "-D", "warnings"]));
    }
    println!("{} has no clippy: the compiler's lints alone", tools.compiler.origin);
    let built = build(&tools, &repository(), &target_dir, ARCH)?;
    if !built.warnings.is_empty() {
        bail!("the eBPF crate compiles with warnings:\n{}", built.warnings);
    }
    Ok(())
}

fn dependencies() -> Result<()> {
    if ask(&mut cargo(&["deny", "--version"])).is_none() {
        println!("skipped: cargo-deny is not installed");
        return Ok(());
    }
    // The tree of every platform, of which a build needs a part.
    exec(&mut cargo(&["fetch", "--locked", "--quiet"]))?;
    exec(&mut cargo(&["deny", "--offline", "check", "licenses", "bans", "sources"]))?;

    let fetch = cargo(&["deny", "fetch", "db"]);
    let mut limited = Command::new("timeout");
    limited.current_dir(repository()).arg(ADVISORIES_DEADLINE).arg(fetch.get_program()).args(fetch.get_args());
    println!("$ {}", shown(&limited));
    if !limited.status().is_ok_and(|status| status.success()) {
        println!("advisories skipped: their database cannot be had");
        return Ok(());
    }
    exec(&mut cargo(&["deny", "--offline", "check", "advisories"]))
}
