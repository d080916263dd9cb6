//! The commands that get what the eBPF build needs, as data: `setup` runs them, and error messages quote them.

use std::{path::PathBuf, process::Command};

use crate::{exec::shown, rustc::Llvm};

/// The version of `bpf-linker` that is known to work, and the newest LLVM that it knows.
const KNOWN_LINKER: (&str, u32) = ("0.13.0", 23);

/// What Debian's compiler brings today. Only messages need it: once the compiler is installed, it is asked.
const LLVM_OF_DEBIAN: Llvm = Llvm { major: 22, minor: 1 };

/// Debian's compiler with the source of its library. It lives beside rustup's, in /usr/bin.
pub const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Its clippy.
pub const DEBIAN_CLIPPY: &str = "rust-web-clippy";

/// The packages that `bpf-linker` is built from.
pub fn linker_packages(llvm: Llvm) -> Vec<String> {
    let major = llvm.major;
    let mut packages = vec![format!("llvm-{major}-dev"), format!("libpolly-{major}-dev")];
    packages.extend(["libzstd-dev", "zlib1g-dev", "g++"].map(String::from));
    packages
}

/// Adds the library's source to rustup's nightly.
pub fn add_source() -> Command {
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
    command
}

/// Installs `bpf-linker` with the LLVM that Debian's packages put under /usr/lib.
pub fn install_linker(llvm: Llvm) -> Command {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{}", llvm.major));
    let mut command = Command::new("cargo");
    command.env(format!("LLVM_SYS_{}{}_PREFIX", llvm.major, llvm.minor), &prefix).env("LLVM_PREFIX", &prefix);
    command.args(["install", "bpf-linker", "--locked", "--force"]);
    // A newer LLVM wants a newer linker, which crates.io has by then.
    if llvm.major <= KNOWN_LINKER.1 {
        command.args(["--version", KNOWN_LINKER.0]);
    }
    command.args(["--no-default-features", "--features", &format!("llvm-{}", llvm.major)]);
    command
}

/// Installs what runs the fuzz targets.
pub fn install_fuzzer() -> Command {
    let mut command = Command::new("cargo");
    command.args(["install", "cargo-fuzz", "--locked"]);
    command
}

/// Installs Debian packages.
pub fn install_packages<S: AsRef<str>>(packages: &[S]) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "--yes", "--no-install-recommends"]);
    command.args(packages.iter().map(AsRef::as_ref));
    command
}

/// How to get a compiler and a linker from nothing, one command a line.
pub fn for_compiler() -> String {
    let mut packages: Vec<String> = DEBIAN_COMPILER.map(String::from).into();
    packages.extend(linker_packages(LLVM_OF_DEBIAN));
    format!(
        "{}        (where rustup has a nightly that offers it; otherwise Debian's compiler:)\n{}\n{}",
        shown(&add_source()),
        shown(&install_packages(&packages)),
        shown(&install_linker(LLVM_OF_DEBIAN)),
    )
}

/// How to get a linker for a compiler with that LLVM, one command a line.
pub fn for_linker(llvm: Llvm) -> String {
    format!("{}\n{}", shown(&install_packages(&linker_packages(llvm))), shown(&install_linker(llvm)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_follows_the_compilers_llvm() {
        let check = |major, minor, expected: &str| assert_eq!(for_linker(Llvm { major, minor }), expected);
        check(
            22,
            1,
            "DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends llvm-22-dev libpolly-22-dev \
             libzstd-dev zlib1g-dev g++\n\
             LLVM_PREFIX=/usr/lib/llvm-22 LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --locked --force \
             --version 0.13.0 --no-default-features --features llvm-22",
        );
        check(
            24,
            1,
            "DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends llvm-24-dev libpolly-24-dev \
             libzstd-dev zlib1g-dev g++\n\
             LLVM_PREFIX=/usr/lib/llvm-24 LLVM_SYS_241_PREFIX=/usr/lib/llvm-24 cargo install bpf-linker --locked --force \
             --no-default-features --features llvm-24",
        );
    }
}
