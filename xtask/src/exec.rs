//! Running other programs.

use std::{
    env,
    ffi::OsStr,
    fmt::Write as _,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Prints the command and runs it; anything but success is an error.
pub fn exec(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    let status = command.status().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Prints the command and becomes it, so that its exit code and signals are the caller's. Returns only on failure.
pub fn replace(command: &mut Command) -> anyhow::Error {
    println!("$ {}", shown(command));
    let error = command.exec();
    anyhow::Error::from(error).context(format!("cannot run {}", command.get_program().display()))
}

/// The standard output of a command that is only asked something; `None` if it fails or does not exist.
pub fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()
}

/// Where the program is found, by the directories of `PATH`.
pub fn which(program: &str) -> Option<PathBuf> {
    all_in_path(program).into_iter().next()
}

/// Every file of that name in the directories of `PATH` that can be executed.
pub fn all_in_path(program: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|directory| directory.join(program)).filter(|file| is_executable(file)).collect()
}

/// Whether the file exists and has an execute bit.
pub fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// The command as one would type it: changed environment first.
pub fn shown(command: &Command) -> String {
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let _ = write!(line, "{}={} ", name.display(), quoted(value));
        }
    }
    line.push_str(&quoted(command.get_program()));
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&quoted(argument));
    }
    line
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else if word.contains('\x1f') {
        // What separates cargo's encoded flags, as bash reads it.
        format!("$'{}'", word.replace('\'', r"\'").replace('\x1f', r"\x1f"))
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("cargo");
        command.args(["test", "--", "a b", "it's", ""]).env("RUSTDOCFLAGS", "-D warnings").env_remove("RUSTC");
        assert_eq!(shown(&command), r"RUSTDOCFLAGS='-D warnings' cargo test -- 'a b' 'it'\''s' ''");
        let mut flags = Command::new("cargo");
        flags.env("CARGO_ENCODED_RUSTFLAGS", "-C\x1fdebuginfo=2");
        assert_eq!(shown(&flags), r"CARGO_ENCODED_RUSTFLAGS=$'-C\x1fdebuginfo=2' cargo");
    }
}
