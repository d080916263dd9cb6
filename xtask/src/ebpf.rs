//! Compiling the crate `egress-ebpf` for `bpfel-unknown-none`.
//!
//! `core` has to be compiled along, so the compiler needs the source of its library, which a toolchain of rustup has or
//! has not; and `bpf-linker` needs an LLVM at least as new as the compiler's. [`Tools::find`] picks a pair that fits.

pub mod linker;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail};

use self::linker::{LinkedLlvm, Linker};
use crate::{recipe, rustc::Compiler};

/// The crate, its binary, and the file that it is embedded from.
pub const CRATE: &str = "egress-ebpf";

const TARGET: &str = "bpfel-unknown-none";

/// A compiler and a linker that fit together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// Has the source of its library.
    pub compiler: Compiler,
    /// Reads what the compiler writes.
    pub linker: Linker,
}

/// Why there are no [`Tools`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// No compiler is recent and has the source of its library. The candidates say why they are none.
    Compiler(Vec<Compiler>),
    /// These compilers would do, but no linker reads their bitcode.
    Linker(Vec<Compiler>, Vec<Linker>),
}

/// What a build left.
#[derive(Debug)]
pub struct Built {
    /// The object to load.
    pub object: PathBuf,
    /// What the compiler had to say; empty if nothing.
    pub warnings: String,
}

/// The body of `egress-userspace`'s build script: leaves the object in `$OUT_DIR/egress-ebpf`.
///
/// Does not return an error: what `main` returns would reach the user below a screen of cargo's own words.
pub fn build_script() {
    if let Err(error) = try_build_script() {
        for line in format!("{error:#}").lines() {
            println!("cargo::error={line}");
        }
    }
}

/// Compiles the crate of the workspace at `repo` into `target_dir`, for programs that run on the architecture `arch`.
///
/// The target directory must not be one that a waiting cargo has locked.
pub fn build(tools: &Tools, repo: &Path, target_dir: &Path, arch: &str) -> Result<Built> {
    let mut command = cargo(tools, &tools.compiler.cargo, "build", repo, target_dir, arch);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", tools.compiler.cargo.display()))?;
    let messages = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    if !output.status.success() {
        bail!("{CRATE} does not compile ({}):\n{messages}", output.status);
    }
    Ok(Built { object: target_dir.join(TARGET).join("release").join(CRATE), warnings: messages })
}

/// Clippy with the same options; `None` if it is not installed beside the compiler.
pub fn clippy(tools: &Tools, repo: &Path, target_dir: &Path, arch: &str) -> Option<Command> {
    // `cargo clippy` would look into $CARGO_HOME first, and find the clippy of another compiler.
    let program = tools.compiler.cargo.with_file_name("cargo-clippy");
    let mut command = program.exists().then(|| cargo(tools, &program, "clippy", repo, target_dir, arch))?;
    command.env("CARGO", &tools.compiler.cargo);
    Some(command)
}

fn cargo(tools: &Tools, program: &Path, subcommand: &str, repo: &Path, target_dir: &Path, arch: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if belongs_to_outer_build(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    let linker = format!("linker={}", tools.linker.path.display());
    let bpf_target_arch = format!("--cfg=bpf_target_arch=\"{arch}\"");
    let flags = ["-C", &linker, "-C", "link-arg=--btf", "-C", "debuginfo=2", &bpf_target_arch];
    command
        .current_dir(repo)
        .arg(subcommand)
        .args(["--quiet", "--locked", "--release", "-Z", "build-std=core", "--target", TARGET, "--package", CRATE])
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTC", &tools.compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        // Not RUSTFLAGS: paths may have spaces.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    command
}

impl Tools {
    /// The first compiler with its library's source for which there is a linker.
    pub fn find() -> Result<Self, Missing> {
        Self::choose(Compiler::all(), &Linker::all())
    }

    fn choose(compilers: Vec<Compiler>, linkers: &[Linker]) -> Result<Self, Missing> {
        let (fit, unfit): (Vec<_>, Vec<_>) =
            compilers.into_iter().partition(|compiler| compiler.has_source && compiler.is_recent_enough());
        let pair = |compiler: &Compiler| {
            let linker = linkers.iter().find(|linker| linker.reads(compiler.version.llvm))?;
            Some(Self { compiler: compiler.clone(), linker: linker.clone() })
        };
        match fit.iter().find_map(pair) {
            Some(tools) => Ok(tools),
            None if fit.is_empty() => Err(Missing::Compiler(unfit)),
            None => Err(Missing::Linker(fit, linkers.to_vec())),
        }
    }
}

impl Missing {
    /// What was looked at, and why it does not do.
    pub fn reason(&self) -> String {
        match self {
            Self::Compiler(compilers) => {
                let candidates = compilers.iter().map(|compiler| format!("\n  {}", rejection(compiler)));
                format!("no Rust compiler has the source of its library{}", String::from_iter(candidates))
            }
            Self::Linker(compilers, linkers) => {
                let writers = compilers.iter().map(|Compiler { origin, rustc, version, .. }| {
                    format!("\n  {origin} ({}) writes {}", rustc.display(), version.llvm)
                });
                let readers = linkers.iter().map(|linker| format!("\n  {}", shortcoming(linker)));
                let lines = String::from_iter(writers.chain(readers));
                format!("no bpf-linker reads what the Rust compiler writes{lines}")
            }
        }
    }

    /// The reason, and what to run.
    pub fn explain(&self) -> String {
        let commands = match self {
            Self::Compiler(_) => recipe::for_compiler(),
            Self::Linker(compilers, _) => {
                compilers.first().map(|compiler| recipe::for_linker(compiler.version.llvm)).unwrap_or_default()
            }
        };
        format!(
            "the eBPF programs cannot be built: {}\nRun `cargo xtask setup`, which would run:\n  {}",
            self.reason(),
            commands.replace('\n', "\n  ")
        )
    }
}

fn try_build_script() -> Result<()> {
    let repo = repository();
    for input in [CRATE, "egress-common", "Cargo.lock", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", repo.join(input).display());
    }
    for name in ["CARGO_HOME", "RUSTUP_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let tools = Tools::find().map_err(|missing| anyhow!(missing.explain()))?;
    // A compiler or a linker that is upgraded gives another object.
    for tool in [&tools.compiler.rustc, &tools.linker.path] {
        println!("cargo::rerun-if-changed={}", tool.display());
    }

    let out_dir = PathBuf::from(set_by_cargo("OUT_DIR")?);
    let arch = set_by_cargo("CARGO_CFG_TARGET_ARCH")?;
    let built = build(&tools, &repo, &out_dir.join("target"), &arch.to_string_lossy())?;
    for line in built.warnings.lines() {
        println!("cargo::warning={line}");
    }
    let embedded = out_dir.join(CRATE);
    fs::copy(&built.object, &embedded)
        .with_context(|| format!("cannot copy {} to {}", built.object.display(), embedded.display()))?;
    Ok(())
}

/// The top of the workspace that this program was compiled from.
pub fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

fn set_by_cargo(name: &str) -> Result<OsString> {
    env::var_os(name).with_context(|| format!("{name} is not set: this runs in a build script"))
}

/// Whether a variable describes the build that this one runs inside of: its compiler, wrappers (clippy is one), flags,
/// profile and libraries. The rest, such as proxies, registries and the job server, holds for both.
fn belongs_to_outer_build(variable: &str) -> bool {
    const NAMES: [&str; 8] = [
        "CARGO",
        "CARGO_TARGET_DIR",
        "CARGO_ENCODED_RUSTFLAGS",
        "CLIPPY_ARGS",
        "LD_LIBRARY_PATH",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ];
    const PREFIXES: [&str; 7] =
        ["CARGO_BUILD_", "CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PKG_", "CARGO_PROFILE_", "CARGO_TARGET_", "RUSTC"];
    NAMES.contains(&variable) || PREFIXES.iter().any(|prefix| variable.starts_with(prefix))
}

fn rejection(compiler: &Compiler) -> String {
    let Compiler { origin, rustc, version, .. } = compiler;
    let (major, minor) = version.release;
    let reason = if compiler.is_recent_enough() {
        "has no source of its library"
    } else {
        concat!("is older than ", env!("CARGO_PKG_RUST_VERSION"))
    };
    format!("{origin} {major}.{minor} ({}) {reason}", rustc.display())
}

fn shortcoming(linker: &Linker) -> String {
    let path = linker.path.display();
    match linker.llvm {
        LinkedLlvm::Shared(llvm) => format!("{path} reads {llvm}"),
        LinkedLlvm::Gone(llvm) => format!("{path} needs {llvm}, which is not installed"),
        LinkedLlvm::Unknown => format!("{path} does not tell its LLVM"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rustc::{Llvm, Origin, Version};

    fn compiler(origin: Origin, release: (u32, u32), llvm: u32, has_source: bool) -> Compiler {
        let directory = Path::new(if origin == Origin::System { "/usr/bin" } else { "/toolchain/bin" });
        let version = Version { release, llvm: Llvm { major: llvm, minor: 1 } };
        Compiler { origin, rustc: directory.join("rustc"), cargo: directory.join("cargo"), version, has_source }
    }

    fn linker(llvm: u32) -> Linker {
        let path = PathBuf::from(format!("/linker-{llvm}"));
        Linker { path, llvm: LinkedLlvm::Shared(Llvm { major: llvm, minor: 1 }) }
    }

    #[test]
    fn picks_the_first_pair_that_fits() {
        let nightly = compiler(Origin::RustupNightly, (1, 99), 23, true);
        let without_source = compiler(Origin::RustupNightly, (1, 99), 23, false);
        let system = compiler(Origin::System, (1, 96), 22, true);
        let old_system = compiler(Origin::System, (1, 63), 14, true);
        let check = |compilers: &[&Compiler], linkers: &[u32], expected: Result<(&Compiler, u32), Missing>| {
            let linkers: Vec<Linker> = linkers.iter().copied().map(linker).collect();
            let chosen = Tools::choose(compilers.iter().copied().cloned().collect(), &linkers);
            let expected = expected.map(|(compiler, llvm)| Tools { compiler: compiler.clone(), linker: linker(llvm) });
            assert_eq!(chosen, expected);
        };
        let both = vec![nightly.clone(), system.clone()];
        check(&[&nightly, &system], &[22, 23], Ok((&nightly, 23)));
        check(&[&nightly, &system], &[22], Ok((&system, 22)));
        check(&[&without_source, &system], &[22], Ok((&system, 22)));
        check(&[&nightly, &system], &[21], Err(Missing::Linker(both.clone(), vec![linker(21)])));
        check(&[&nightly, &system], &[], Err(Missing::Linker(both, vec![])));
        let none = vec![without_source.clone(), old_system.clone()];
        check(&[&without_source, &old_system], &[22], Err(Missing::Compiler(none)));
    }

    #[test]
    fn says_what_is_missing_and_what_to_run() {
        let old = compiler(Origin::System, (1, 63), 14, true);
        let bare = compiler(Origin::RustupNightly, (1, 99), 23, false);
        let text = Missing::Compiler(vec![bare.clone(), old]).explain();
        for part in [
            "rustup's nightly 1.99 (/toolchain/bin/rustc) has no source of its library",
            "the system's compiler 1.63 (/usr/bin/rustc) is older than 1.",
            "`cargo xtask setup`",
            "rustup component add rust-src --toolchain nightly",
            "rustc-web cargo-web rust-web-src llvm-22-dev",
            "cargo install bpf-linker",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        let text = Missing::Linker(vec![bare], vec![linker(21)]).explain();
        for part in ["(/toolchain/bin/rustc) writes LLVM 23", "/linker-21 reads LLVM 21", "llvm-23-dev"] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn the_outer_builds_environment_stays_outside() {
        for name in
            ["RUSTC", "RUSTC_WORKSPACE_WRAPPER", "CARGO", "CARGO_ENCODED_RUSTFLAGS", "CARGO_PROFILE_RELEASE_LTO"]
        {
            assert!(belongs_to_outer_build(name), "{name}");
        }
        for name in ["PATH", "CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "CARGO_HTTP_CAINFO"] {
            assert!(!belongs_to_outer_build(name), "{name}");
        }
    }
}
