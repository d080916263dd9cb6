//! The Rust compilers on this machine, and whether they can compile `core` for another target.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::exec::ask;

/// A compiler and the `cargo` beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// Where it comes from, as the user would call it.
    pub origin: Origin,
    /// The compiler proper, never rustup's proxy, which would choose again.
    pub rustc: PathBuf,
    /// The `cargo` of the same installation.
    pub cargo: PathBuf,
    /// What it says about itself.
    pub version: Version,
    /// Whether the source of the standard library is installed with it.
    pub has_source: bool,
}

/// Who installed a compiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The toolchain `nightly` of rustup.
    RustupNightly,
    /// The toolchain that rustup uses in this directory.
    RustupActive,
    /// The operating system.
    System,
}

/// What `rustc -vV` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The release, for example 1.96.
    pub release: (u32, u32),
    /// The LLVM that it writes bitcode with.
    pub llvm: Llvm,
}

/// A version of LLVM. Bitcode of one can be read by the same and by newer major versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Llvm {
    /// 22 in 22.1.8.
    pub major: u32,
    /// 1 in 22.1.8.
    pub minor: u32,
}

impl Compiler {
    /// Every compiler to consider for the eBPF crate, in the order of preference.
    pub fn all() -> Vec<Self> {
        let rustup = |origin, arguments: &[&str]| {
            let rustc = ask(Command::new("rustup").arg("which").args(arguments).arg("rustc"))?;
            Self::at(origin, Path::new(rustc.trim()))
        };
        let candidates = [
            rustup(Origin::RustupNightly, &["--toolchain", "nightly"]),
            rustup(Origin::RustupActive, &[]),
            Self::at(Origin::System, Path::new("/usr/bin/rustc")),
        ];
        candidates.into_iter().flatten().collect()
    }

    /// Whether it is old: the workspace says what it needs at least.
    pub fn is_recent_enough(&self) -> bool {
        parse_release(env!("CARGO_PKG_RUST_VERSION")).is_none_or(|needed| self.version.release >= needed)
    }

    fn at(origin: Origin, rustc: &Path) -> Option<Self> {
        let cargo = rustc.with_file_name("cargo");
        let version = Version::parse(&ask(Command::new(rustc).arg("-vV"))?)?;
        let sysroot = ask(Command::new(rustc).args(["--print", "sysroot"]))?;
        // The lock is what -Z build-std reads first.
        let has_source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock").exists();
        cargo.exists().then(|| Self { origin, rustc: rustc.to_owned(), cargo, version, has_source })
    }
}

impl Version {
    /// Reads the output of `rustc -vV`.
    pub fn parse(output: &str) -> Option<Self> {
        let field = |name| output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Some(Self { release: parse_release(field("release")?)?, llvm: Llvm::parse(field("LLVM version")?)? })
    }
}

impl Llvm {
    /// Reads `22.1.8`, and `22` as 22.1: since LLVM 18 the first release of a series is N.1.
    pub fn parse(version: &str) -> Option<Self> {
        let mut numbers = version.trim().split('.');
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next().map_or(Some(1), |minor| minor.parse().ok())?;
        Some(Self { major, minor })
    }
}

impl fmt::Display for Llvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LLVM {}", self.major)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RustupNightly => "rustup's nightly",
            Self::RustupActive => "rustup's active toolchain",
            Self::System => "the system's compiler",
        })
    }
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_rustc_says() {
        let debian = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                      host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        let nightly = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        let future = "release: 2.0.0-beta.3\nLLVM version: 31.0\n";
        let check = |output, release, major, minor| {
            assert_eq!(Version::parse(output), Some(Version { release, llvm: Llvm { major, minor } }), "{output}");
        };
        check(debian, (1, 96), 22, 1);
        check(nightly, (1, 97), 22, 1);
        check(future, (2, 0), 31, 0);
        assert_eq!(Version::parse("rustc 1.63.0"), None);
        assert_eq!(Version::parse("release: 1.63.0\nLLVM version: unknown\n"), None);
    }
}
