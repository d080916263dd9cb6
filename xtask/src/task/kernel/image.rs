//! The initial file system of the emulated machine, which is all that it has. One serves every kernel.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, Permissions},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use xtask::exec::{ask, exec};

use super::{Kernel, find};
use crate::task::workspace::{cargo, find_program, host, target_dir};

/// Programs of this machine that the tests call. What busybox has as well is there already.
const PROGRAMS: [&str; 2] = ["curl", "ip"];

/// Programs of the tests' own that they call.
const CLIENTS: [&str; 3] = ["client", "load", "lookup"];

/// Modules that the tests need, unless they are part of the kernel itself, in the order in which they are loaded: devices
/// of pods, and sock_diag.
const MODULES: [&str; 4] = ["veth", "tun", "inet_diag", "tcp_diag"];

/// What the resolver reads, and its users. The tests put files of their own over the empty ones.
const FILES: [(&str, &str); 6] = [
    ("etc/host.conf", "multi on\n"),
    ("etc/hosts", ""),
    ("etc/nsswitch.conf", "hosts: files dns\n"),
    ("etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"),
    ("etc/resolv.conf", ""),
    ("init", include_str!("init.sh")),
];

/// Makes the image for these kernels with the agent and the test programs as they have been built, and returns its path.
pub(super) fn build(
    directory: &Path,
    kernels: &[&Kernel],
    tests: &[String],
    arguments: &[OsString],
) -> Result<PathBuf> {
    let root = directory.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    for empty in ["dev", "proc", "run", "sys", "tmp", "tests"] {
        fs::create_dir_all(root.join(empty))?;
    }
    for (name, text) in FILES {
        write(&root.join(name), text.as_bytes())?;
    }
    fs::set_permissions(root.join("init"), Permissions::from_mode(0o755))?;
    let arguments = arguments.iter().flat_map(|argument| [argument.as_bytes(), b"\0"]).collect::<Vec<_>>().concat();
    write(&root.join("arguments"), &arguments)?;

    let mut programs = vec![copy_program("busybox", &root.join("bin/busybox"))?];
    for name in PROGRAMS {
        programs.push(copy_program(name, &root.join("usr/bin").join(name))?);
    }
    let built = target_dir()?.join("debug");
    // The tests know their clients by the paths that they were built at, and the agent by a variable.
    for client in CLIENTS.map(|name| built.join(name)) {
        install(&client, &inside(&root, &client)?)?;
        programs.push(client);
    }
    install(&built.join("egress"), &root.join("bin/egress"))?;
    programs.push(built.join("egress"));
    install_tests(&root.join("tests"), tests)?;
    copy_libraries(&programs, &root)?;
    write(&root.join("modules/order"), MODULES.join("\n").as_bytes())?;
    for kernel in kernels {
        copy_modules(&directory.join(kernel.series), &root.join("modules").join(kernel.series))?;
    }

    let image = directory.join("image.cpio");
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio --quiet --create --format=newc --owner=0:0 --file=\"$0\""]).arg(&image);
    exec(pack.current_dir(&root))?;
    Ok(image)
}

/// Copies a program of this machine, and says where it is here.
fn copy_program(name: &str, to: &Path) -> Result<PathBuf> {
    let program = find_program(name).with_context(|| format!("there is no {name}"))?;
    copy(&program, to)?;
    Ok(program)
}

/// Copies a program without what debuggers need, which is most of it.
fn install(program: &Path, to: &Path) -> Result<()> {
    exec(Command::new("install").args(["-D", "--strip"]).args([program, to]))
}

/// Has cargo tell where the test programs are: it calls `install` in place of running them. They lose the hash in their
/// names.
fn install_tests(directory: &Path, tests: &[String]) -> Result<()> {
    let runner = format!("['install', '--strip', '--target-directory={}']", directory.display());
    let mut command = cargo(&["test", "--locked", "--config", &format!("target.{}.runner = {runner}", host()?)]);
    for test in tests {
        command.args(["--test", test]);
    }
    exec(&mut command)?;
    for test in tests {
        let with_hash = format!("{test}-");
        let file = find(directory, &|name| name.starts_with(&with_hash))?;
        let file = file.with_context(|| format!("cargo did not install the test {test}"))?;
        fs::rename(&file, directory.join(test))?;
    }
    Ok(())
}

/// Copies the shared libraries that the programs ask for.
fn copy_libraries(programs: &[PathBuf], root: &Path) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for program in programs {
        // Fails for a program without any, as busybox can be.
        let listed = ask(Command::new("ldd").arg(program)).unwrap_or_default();
        libraries.extend(listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    libraries.iter().try_for_each(|library| copy(library, &inside(root, library)?))
}

/// Copies the modules of a kernel, compressed or not.
fn copy_modules(kernel: &Path, to: &Path) -> Result<()> {
    for module in MODULES {
        let names = [format!("{module}.ko"), format!("{module}.ko.xz")];
        if let Some(file) = find(kernel, &|name| names.iter().any(|known| known == name))? {
            copy(&file, &to.join(file.file_name().context("a file that was found has a name")?))?;
        }
    }
    Ok(())
}

/// The absolute path as it is below `root`.
fn inside(root: &Path, path: &Path) -> Result<PathBuf> {
    let relative = path.strip_prefix("/").with_context(|| format!("{} is not an absolute path", path.display()))?;
    Ok(root.join(relative))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn write(file: &Path, text: &[u8]) -> Result<()> {
    make_parent(file)?;
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn make_parent(file: &Path) -> Result<()> {
    let Some(parent) = file.parent() else { bail!("{} is not a file", file.display()) };
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))
}
