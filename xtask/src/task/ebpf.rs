//! `cargo xtask ebpf`

use std::env::consts::ARCH;

use anyhow::{Result, anyhow};
use clap::Args;
use xtask::ebpf::{Tools, build, repository};

use super::workspace::target_dir;

/// Compile the eBPF programs and print where the object is
///
/// Building the agent does this by itself. Here one sees the compiler's messages at once, and gets a file for
/// llvm-objdump or bpftool. Installs nothing: see setup.
#[derive(Debug, Args)]
pub(crate) struct Options {}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        let tools = Tools::find().map_err(|missing| anyhow!(missing.explain()))?;
        let built = build(&tools, &repository(), &target_dir()?.join("ebpf"), ARCH)?;
        if !built.warnings.is_empty() {
            eprintln!("{}", built.warnings);
        }
        println!("{}", built.object.display());
        Ok(())
    }
}
