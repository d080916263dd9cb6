//! Real processes, placed before exec: which netns, which cgroup, which files they find under /etc.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStdin, Command as StdCommand, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sched::CpuSet,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::{
    cgroup::Cgroup,
    netns::Netns,
    wait::{PATIENCE, wait_for, wait_until},
};

mod placement;
mod stop;

pub use placement::Mounts;
use placement::Placement;

/// A command to be run somewhere.
#[derive(Debug)]
pub struct Command {
    inner: StdCommand,
    placement: Placement,
    stdin: Vec<u8>,
    stderr: Option<File>,
    patience: Duration,
}

impl Command {
    /// A command that runs where the test runs, until told otherwise.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            inner: StdCommand::new(program),
            placement: Placement::default(),
            stdin: Vec::new(),
            stderr: None,
            patience: Duration::from_secs(20),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.inner.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.inner.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// Gives it an empty environment, to be filled by `env`.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.inner.env_clear();
        self
    }

    /// What it reads from standard input. Without this, standard input is empty.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Where its standard error goes. Without this it is read, and can be asked for.
    #[must_use]
    pub fn stderr(mut self, file: File) -> Self {
        self.stderr = Some(file);
        self
    }

    /// Runs it in a network namespace.
    pub fn in_netns(mut self, netns: &Netns) -> Result<Self> {
        self.placement.netns = Some(netns.try_clone_handle()?);
        Ok(self)
    }

    /// Runs it in a cgroup.
    pub fn in_cgroup(mut self, cgroup: &Cgroup) -> Result<Self> {
        let procs = File::options().write(true).open(cgroup.procs()).context("opening cgroup.procs")?;
        self.placement.cgroup_procs = Some(procs);
        Ok(self)
    }

    /// Gives it a mount namespace of its own with these files in place of the machine's.
    #[must_use]
    pub fn with_mounts(mut self, mounts: &Mounts) -> Self {
        self.placement.mounts = Some(mounts.clone());
        self
    }

    /// Runs it as another user and the group of the same number, without supplementary groups.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.placement.uid = Some(uid);
        self
    }

    /// Runs it at a lower priority: 19 is the lowest.
    #[must_use]
    pub fn nice(mut self, nice: i32) -> Self {
        self.placement.nice = Some(nice);
        self
    }

    /// Runs all of its threads on these processors alone.
    #[must_use]
    pub fn cpus(mut self, cpus: CpuSet) -> Self {
        self.placement.cpus = Some(cpus);
        self
    }

    /// How long `run` waits for the end before it kills.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Runs it to its end. A command that fails is a result, not an error; one that does not end is.
    pub fn run(self) -> Result<Output> {
        let patience = self.patience;
        let started = Instant::now();
        let mut running = self.spawn()?;
        let status = running.wait(patience)?;
        let elapsed = started.elapsed();
        running.join_readers();
        let stdout = std::mem::take(&mut *lock(&running.stdout));
        let stderr = lock(&running.stderr).iter().fold(String::new(), |text, line| text + line + "\n");
        Ok(Output { status, stdout, stderr, elapsed })
    }

    /// Starts it. It is killed on drop.
    pub fn spawn(mut self) -> Result<Running> {
        let name = self.inner.get_program().to_string_lossy().into_owned();
        let stderr = self.stderr.map_or_else(Stdio::piped, Stdio::from);
        self.inner.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).process_group(0);
        let placement = self.placement.prepare()?;
        // SAFETY: after the fork `enter` makes system calls on descriptors and strings prepared before it, and neither
        // allocates nor takes a lock.
        unsafe { self.inner.pre_exec(move || placement.enter()) };
        let mut child = self.inner.spawn().with_context(|| format!("starting {name}"))?;

        let mut stdin = child.stdin.take().expect("stdin is piped");
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let mut running = Running {
            name,
            child,
            stdin: Mutex::default(),
            stdout: Arc::default(),
            stderr: Arc::default(),
            readers: Vec::new(),
        };
        if self.stdin.is_empty() {
            *lock(&running.stdin) = Some(stdin);
        } else {
            let bytes = self.stdin;
            // A thread, since the process may write before it has read all. It may also not care to read: no error.
            running.readers.push(thread::spawn(move || drop(stdin.write_all(&bytes))));
        }
        let bytes = Arc::clone(&running.stdout);
        running.readers.push(thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                lock(&bytes).extend_from_slice(&buffer[..count]);
            }
        }));
        if let Some(stderr) = running.child.stderr.take() {
            let lines = Arc::clone(&running.stderr);
            running.readers.push(thread::spawn(move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    lock(&lines).push_back(String::from_utf8_lossy(&line).into_owned());
                }
            }));
        }
        Ok(running)
    }
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: String,
    /// From before the fork to the end.
    pub elapsed: Duration,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The exit code, or 128 + the signal that ended it, as in a shell.
    pub fn code(&self) -> i32 {
        self.status.code().or_else(|| self.status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
    }

    /// The output of a command that must succeed.
    pub fn success(self) -> Result<Self> {
        if !self.status.success() {
            bail!("{}\nstdout: {}\nstderr: {}", self.status, self.text(), self.stderr);
        }
        Ok(self)
    }
}

/// A process that runs, with its output so far. Killed on drop, with its process group.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    stdin: Mutex<Option<ChildStdin>>,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<VecDeque<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout_bytes()).into_owned()
    }

    /// The same, as bytes.
    pub fn stdout_bytes(&self) -> Vec<u8> {
        lock(&self.stdout).clone()
    }

    /// The lines of standard error so far.
    pub fn stderr(&self) -> Vec<String> {
        lock(&self.stderr).iter().cloned().collect()
    }

    /// How many lines of standard error there are: a mark for `wait_for_line_after`.
    pub fn stderr_mark(&self) -> usize {
        lock(&self.stderr).len()
    }

    /// Waits for a line of standard error that `matches`, old lines included.
    pub fn wait_for_line(&mut self, what: &str, matches: impl Fn(&str) -> bool) -> Result<String> {
        self.wait_for_line_after(0, what, matches)
    }

    /// Waits for a line of standard error that `matches`, past the first `mark`. Fails at once when the process ends.
    pub fn wait_for_line_after(&mut self, mark: usize, what: &str, matches: impl Fn(&str) -> bool) -> Result<String> {
        let found = wait_for(what, PATIENCE, || {
            // Asked first, so that the last words of a process that ends are not missed.
            let ended = !self.is_running() && self.readers.iter().all(JoinHandle::is_finished);
            let line = lock(&self.stderr).iter().skip(mark).find(|line| matches(line)).cloned();
            line.map(Ok).or_else(|| ended.then_some(Err(())))
        });
        match found {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(())) => {
                bail!("{} ended while waiting for {what}; it said:\n{}", self.name, self.stderr().join("\n"))
            }
            Err(error) => Err(error.context(format!("{} said:\n{}", self.name, self.stderr().join("\n")))),
        }
    }

    /// Waits for standard output to contain `text`. Fails at once when the process ends.
    pub fn wait_for_output(&self, text: &str) -> Result<()> {
        self.wait_for_bytes(text.as_bytes())
    }

    /// Waits for standard output to contain bytes that need not be a text. Fails at once when the process ends.
    pub fn wait_for_bytes(&self, bytes: &[u8]) -> Result<()> {
        let printed = wait_for(&format!("{} to print {}", self.name, bytes.escape_ascii()), PATIENCE, || {
            // Asked first, so that the last words of a process that ends are not missed.
            let ended = self.readers.iter().all(JoinHandle::is_finished);
            let is_there = lock(&self.stdout).windows(bytes.len()).any(|window| window == bytes);
            (is_there || ended).then_some(is_there)
        });
        let said = || format!("it said:\n{}\n{}", self.stdout(), self.stderr().join("\n"));
        match printed {
            Ok(true) => Ok(()),
            Ok(false) => bail!("{} ended without printing {}; {}", self.name, bytes.escape_ascii(), said()),
            Err(error) => Err(error.context(said())),
        }
    }

    /// Writes to its standard input, which stays open.
    pub fn write_stdin(&self, bytes: &[u8]) -> Result<()> {
        let mut stdin = lock(&self.stdin);
        stdin.as_mut().context("standard input is closed")?.write_all(bytes)?;
        Ok(())
    }

    /// Closes its standard input.
    pub fn close_stdin(&self) {
        lock(&self.stdin).take();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid().cast_signed()), signal)
            .with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Waits for its end and its last words, and kills it when that takes too long. Standard input is closed first.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        /// A process that it left behind may hold its output open for longer than this.
        const LAST_WORDS: Duration = Duration::from_secs(2);
        self.close_stdin();
        let ended = wait_for(&format!("{} to end", self.name), patience, || self.child.try_wait().transpose());
        match ended {
            Ok(status) => {
                wait_until("its last words", LAST_WORDS, || self.readers.iter().all(JoinHandle::is_finished)).ok();
                Ok(status?)
            }
            Err(error) => {
                self.kill();
                Err(error.context(format!("it said:\n{}\n{}", self.stdout(), self.stderr().join("\n"))))
            }
        }
    }

    /// Kills it and its process group with SIGKILL, and reaps it.
    pub fn kill(&mut self) {
        // Only while it is not reaped is the pid certainly its own; the group may have other members after its end.
        if self.is_running() {
            killpg(Pid::from_raw(self.pid().cast_signed()), Signal::SIGKILL).ok();
            self.child.wait().ok();
        }
    }

    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().ok();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Locks, also after a panic elsewhere: what is in there are bytes, which are never half-written.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
