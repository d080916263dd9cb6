//! Finding a `bpf-linker` that can read what the compiler writes.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    exec::{all_in_path, ask, is_executable},
    rustc::Llvm,
};

/// An installed `bpf-linker`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linker {
    /// The executable.
    pub path: PathBuf,
    /// What it reads bitcode with.
    pub llvm: LinkedLlvm,
}

/// Which LLVM an executable is linked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkedLlvm {
    /// A shared library that was found.
    Shared(Llvm),
    /// A shared library that is no longer installed.
    Gone(Llvm),
    /// It is linked statically, and does not say which.
    Unknown,
}

impl Linker {
    /// Every `bpf-linker` in `PATH` and where `cargo install` puts it, which need not be in `PATH`.
    pub fn all() -> Vec<Self> {
        let mut paths = all_in_path("bpf-linker");
        paths.extend(cargo_bin_directories().into_iter().map(|bin| bin.join("bpf-linker")));
        let mut seen = Vec::new();
        paths.retain(|path| {
            is_executable(path) && !seen.contains(path) && {
                seen.push(path.clone());
                true
            }
        });
        paths.into_iter().map(Self::at).collect()
    }

    /// Whether it can read the bitcode of a compiler with that LLVM. One that does not tell its LLVM has the benefit of
    /// the doubt.
    pub fn reads(&self, compiler: Llvm) -> bool {
        match self.llvm {
            LinkedLlvm::Shared(llvm) => llvm.major >= compiler.major,
            LinkedLlvm::Gone(_) => false,
            LinkedLlvm::Unknown => true,
        }
    }

    fn at(path: PathBuf) -> Self {
        let llvm = ask(Command::new("ldd").arg(&path)).map_or(LinkedLlvm::Unknown, |output| LinkedLlvm::parse(&output));
        Self { path, llvm }
    }
}

impl LinkedLlvm {
    /// Reads the output of `ldd`.
    pub fn parse(ldd: &str) -> Self {
        let library = |line: &str| {
            let (name, place) = line.trim().split_once(" => ")?;
            let llvm = library_version(name)?;
            Some(if place.starts_with("not found") { Self::Gone(llvm) } else { Self::Shared(llvm) })
        };
        ldd.lines().find_map(library).unwrap_or(Self::Unknown)
    }
}

/// Debian once named it `libLLVM-17.so.1`, LLVM itself since version 18 `libLLVM.so.22.1`, and rustup's toolchains
/// `libLLVM.so.22.1-rust-1.95.0-stable`.
fn library_version(name: &str) -> Option<Llvm> {
    let rest = name.strip_prefix("libLLVM")?;
    let version = rest.strip_prefix(".so.").or_else(|| rest.strip_prefix('-')?.split(".so").next())?;
    Llvm::parse(version.split('-').next()?)
}

fn cargo_bin_directories() -> Vec<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let default = env::home_dir().map(|home| home.join(".cargo"));
    [cargo_home, default].into_iter().flatten().map(|home: PathBuf| Path::new(&home).join("bin")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ldd_says() {
        let llvm = |major| Llvm { major, minor: 1 };
        let check = |line: &str, expected| {
            let output =
                format!("\tlinux-vdso.so.1 (0x00007f21e63b2000)\n\t{line}\n\tlibc.so.6 => /lib/libc.so.6 (0x0)\n");
            assert_eq!(LinkedLlvm::parse(&output), expected, "{line}");
        };
        check("libLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x0)", LinkedLlvm::Shared(llvm(22)));
        check("libLLVM-17.so.1 => /lib/libLLVM-17.so.1 (0x0)", LinkedLlvm::Shared(llvm(17)));
        check("libLLVM.so.23.1-rust-1.99.0-nightly => /r/libLLVM.so (0x0)", LinkedLlvm::Shared(llvm(23)));
        check("libLLVM.so.22.1 => not found", LinkedLlvm::Gone(llvm(22)));
        check("libm.so.6 => /lib/libm.so.6 (0x0)", LinkedLlvm::Unknown);
        assert_eq!(LinkedLlvm::parse("\tstatically linked\n"), LinkedLlvm::Unknown);
    }

    #[test]
    fn a_linker_reads_the_same_and_older_bitcode() {
        let linker = |llvm| Linker { path: PathBuf::new(), llvm };
        let compiler = Llvm { major: 22, minor: 1 };
        assert!(linker(LinkedLlvm::Shared(compiler)).reads(compiler));
        assert!(linker(LinkedLlvm::Shared(Llvm { major: 23, minor: 1 })).reads(compiler));
        assert!(linker(LinkedLlvm::Unknown).reads(compiler));
        assert!(!linker(LinkedLlvm::Shared(Llvm { major: 21, minor: 1 })).reads(compiler));
        assert!(!linker(LinkedLlvm::Gone(compiler)).reads(compiler));
    }
}
