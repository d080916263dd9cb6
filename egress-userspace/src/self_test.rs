//! Sees whether connects from the scope are intercepted, by real ones. Links can be pinned to a cgroup that was removed
//! since, or have been detached by somebody else; either looks healthy from here.

use std::{
    fmt, fs, future,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{self, Stdio},
    time::Duration,
};

use egress_common::self_test::{ANSWER, DESTINATION};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::AsyncReadExt as _,
    process::Command,
    time::{self, Instant},
};
use tokio_util::task::AbortOnDropHandle;

use crate::kernel::cgroup::{CgroupError, ChildCgroup};

/// The subcommand of `egress` that connects: see [`connect`].
pub const COMMAND: &str = "self-test";

/// How long a connect may take, and how long its answer. Both stay on the machine, which may be busy.
const STEP: Duration = Duration::from_secs(5);
/// How long the process may take that connects.
const LIMIT: Duration = Duration::from_secs(20);
/// How long after a test that has failed there is another.
const RETRY: Duration = Duration::from_secs(5);
/// The same after a routine test that has failed, which is not believed before [`DOUBTED`] others have failed, too: a busy
/// machine can be too slow for one.
const SOON: Duration = Duration::from_secs(1);
const DOUBTED: u32 = 2;

/// Why a cgroup's connects are not known to be intercepted.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// There is no cgroup to connect from.
    #[error("cannot make a cgroup to connect from: {0}")]
    Cgroup(#[from] CgroupError),
    /// There is no process to connect.
    #[error("cannot run a process in {cgroup}: {source}")]
    Process {
        /// The served cgroup.
        cgroup: String,
        /// Why.
        source: io::Error,
    },
    /// A connect went elsewhere, or failed.
    #[error(
        "a connect from {cgroup} to {address} is not intercepted ({failure}); the programs were detached (bpftool \
         cgroup show {cgroup} lists them), or cannot be attached, which the log says: start egress anew",
        address = address()
    )]
    NotIntercepted {
        /// The served cgroup.
        cgroup: String,
        /// What happened instead.
        failure: String,
    },
}

/// The agent's test of itself: one at a time.
pub struct SelfTest {
    /// How long it is believed that all is well.
    interval: Duration,
    running: Option<AbortOnDropHandle<Result<(), SelfTestError>>>,
    /// What to test once more when the one that is running has ended.
    again: Option<Vec<PathBuf>>,
    /// Whether nobody has asked for the one that is running.
    is_routine: bool,
    verdict: Verdict,
    /// When there is to be another one.
    due: Option<Instant>,
    /// How many have failed that are not believed.
    doubted: u32,
}

/// What a test has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// All is well, be it for the first time, again, or for somebody who asked.
    Intercepted,
    /// All is as well as it was.
    StillIntercepted,
    /// Not all is, or so it seems: it is to be repeated before that is believed.
    Doubted,
    /// Not all is.
    NotIntercepted,
}

/// What is known from the last test.
#[derive(Default)]
enum Verdict {
    /// Nobody asked for one.
    #[default]
    None,
    /// The first one is running.
    Pending,
    Passed,
    Failed(String),
}

impl SelfTest {
    /// To be repeated when a test that has passed is older than `interval`. What it would miss until then leaves in clear.
    pub fn new(interval: Duration) -> Self {
        let (verdict, is_routine, doubted) = (Verdict::None, false, 0);
        Self { interval, running: None, again: None, is_routine, verdict, due: None, doubted }
    }

    /// Has nothing count as tested until the first test has ended.
    pub fn expect(&mut self) {
        if matches!(self.verdict, Verdict::None) {
            self.verdict = Verdict::Pending;
        }
    }

    /// Begins a test, unless one is running; then it is repeated.
    pub fn start(&mut self, cgroups: &[PathBuf]) {
        if self.running.is_some() {
            self.again = Some(cgroups.to_owned());
            return;
        }
        self.expect();
        self.begin(cgroups, false);
    }

    /// Begins a test as a matter of routine, unless one is running.
    pub fn repeat(&mut self, cgroups: &[PathBuf]) {
        if self.running.is_none() {
            self.begin(cgroups, true);
        }
    }

    fn begin(&mut self, cgroups: &[PathBuf], is_routine: bool) {
        self.is_routine = is_routine;
        self.due = None;
        self.running = Some(AbortOnDropHandle::new(tokio::spawn(test(cgroups.to_owned()))));
    }

    /// Waits until a test has ended, and says what it found. Nothing is lost if the future is dropped.
    pub async fn finished(&mut self) -> Finding {
        let Some(running) = &mut self.running else { return future::pending().await };
        // A task that panicked failed, too.
        let result = running.await.map_err(|error| error.to_string());
        self.running = None;
        let finding = match result.and_then(|result| result.map_err(|error| error.to_string())) {
            Ok(()) => self.passed(),
            Err(error) => self.failed(format!("self-test: {error}")),
        };
        if let Some(cgroups) = self.again.take() {
            self.start(&cgroups);
        }
        finding
    }

    fn passed(&mut self) -> Finding {
        const PASSED: &str = "the self-test passed: connects from the scope are intercepted";
        // What would be too far off never comes.
        self.due = Instant::now().checked_add(self.interval);
        self.doubted = 0;
        // One that nobody waits for, and that finds what was found before, is no news.
        if self.is_routine && matches!(self.verdict, Verdict::Passed) {
            tracing::debug!("{PASSED}");
            return Finding::StillIntercepted;
        }
        tracing::info!("{PASSED}");
        self.verdict = Verdict::Passed;
        Finding::Intercepted
    }

    fn failed(&mut self, reason: String) -> Finding {
        if self.is_routine && matches!(self.verdict, Verdict::Passed) && self.doubted < DOUBTED {
            tracing::warn!("{reason}; it is repeated before that is believed");
            self.due = Some(Instant::now() + SOON);
            self.doubted += 1;
            return Finding::Doubted;
        }
        if self.objection() != Some(&reason) {
            tracing::error!("{reason}");
        }
        self.due = Some(Instant::now() + RETRY);
        self.doubted = 0;
        self.verdict = Verdict::Failed(reason);
        Finding::NotIntercepted
    }

    /// Whether the first test is still to end.
    pub fn is_pending(&self) -> bool {
        matches!(self.verdict, Verdict::Pending)
    }

    /// When it is time for another test: the last one failed, so that it is to be seen whether that was for good, or will be too
    /// long ago.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Waits for the test that is running, if one is, so that it leaves nothing behind.
    pub async fn end(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.await;
        }
    }

    /// Why connects are not known to be intercepted; None if they are, or if nobody asked for a test.
    pub fn objection(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::None | Verdict::Passed => None,
            Verdict::Pending => Some("the self-test has not ended"),
            Verdict::Failed(reason) => Some(reason),
        }
    }
}

async fn test(cgroups: Vec<PathBuf>) -> Result<(), SelfTestError> {
    // In one that is frozen nobody connects, and a process would not even begin. Once it is thawed there will be another test.
    for cgroup in cgroups.iter().filter(|cgroup| !is_frozen(cgroup)) {
        test_one(cgroup).await?;
    }
    Ok(())
}

/// Whether the cgroup's processes stand still, be it for the sake of one above it (cgroup-v2.rst, cgroup.events).
fn is_frozen(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events"));
    events.is_ok_and(|events| events.lines().any(|line| line == "frozen 1"))
}

/// Has a process connect in a cgroup of its own below `cgroup`, in our own network namespace.
async fn test_one(cgroup: &Path) -> Result<(), SelfTestError> {
    let display = || cgroup.display().to_string();
    let process = |source| SelfTestError::Process { cgroup: display(), source };
    let place = ChildCgroup::create_in(cgroup, &format!("egress-self-test-{}", process::id()))?;
    let mut procs = place.procs()?;
    // The file itself, whatever is at its path by now.
    let mut command = Command::new("/proc/self/exe");
    command.kill_on_drop(true);
    command.arg(COMMAND).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: between fork and exec only a system call is made. 0 stands for the writing process.
    unsafe { command.pre_exec(move || procs.write_all(b"0")) };
    let mut child = command.spawn().map_err(process)?;
    let Ok(status) = time::timeout(LIMIT, child.wait()).await else {
        // Waits as well: the cgroup cannot be removed before.
        child.kill().await.map_err(process)?;
        let failure = format!("the process did not end within {LIMIT:?}");
        return Err(SelfTestError::NotIntercepted { cgroup: display(), failure });
    };
    let status = status.map_err(process)?;
    if status.success() {
        return Ok(());
    }
    let mut failure = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut failure).await.map_err(process)?;
    }
    if failure.is_empty() {
        failure = status.to_string();
    }
    failure.truncate(failure.trim_end().len());
    Err(SelfTestError::NotIntercepted { cgroup: display(), failure })
}

/// What a connect of the self-test met.
#[derive(Debug)]
pub struct Failure {
    socket: &'static str,
    what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} socket: {}", self.socket, self.what)
    }
}

/// Connects from where this process is, as an application would, by a socket of either family.
///
/// # Errors
/// A connect was not intercepted.
pub fn connect() -> Result<(), Failure> {
    let v4 = address();
    let v6 = match v4.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), v4.port()),
        IpAddr::V6(_) => v4,
    };
    for (socket, address) in [("IPv4", v4), ("IPv6", v6)] {
        match exchange(address) {
            Ok(answer) if answer == ANSWER => {}
            // Nobody can connect by such a socket.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            Ok(answer) => {
                let what = format!("somebody else answered: {:?}", String::from_utf8_lossy(&answer));
                return Err(Failure { socket, what });
            }
            Err(error) => return Err(Failure { socket, what: error.to_string() }),
        }
    }
    Ok(())
}

/// Gives what is answered to a connect. The socket is not marked as ours, or it would not be intercepted.
fn exchange(address: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.connect_timeout(&address.into(), STEP)?;
    socket.set_read_timeout(Some(STEP))?;
    let mut answer = vec![0; ANSWER.len()];
    let mut stream = TcpStream::from(socket);
    // A connection is accepted when something has come on it, be it its end.
    stream.shutdown(Shutdown::Write)?;
    let mut length = 0;
    while length < answer.len() {
        match stream.read(&mut answer[length..])? {
            0 => break,
            count => length += count,
        }
    }
    answer.truncate(length);
    Ok(answer)
}

fn address() -> SocketAddr {
    SocketAddr::new(DESTINATION.address.into(), u16::from_be_bytes(DESTINATION.port))
}
