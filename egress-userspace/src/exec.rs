//! `egress exec`: one command under interception.

mod child;
mod guardian;

use std::{io, num::NonZero, os::unix::process::ExitStatusExt as _, process::ExitCode, thread, time::Duration};

use egress::{
    agent::{Agent, AgentError, Configuration, Options},
    capture::Captured,
    kernel::cgroup::{CgroupError, ChildCgroup, Scope},
    resolve::MAX_STALE,
};
use nix::sys::signal::{SigSet, Signal};
use tokio::{runtime, sync::Notify};
use tokio_util::sync::CancellationToken;

use self::{
    child::{Before, BlockedSignals},
    guardian::Guardian,
};
use crate::{
    cli::{ExecOptions, complain, report},
    descriptors::Descriptors,
};

/// egress itself failed; the codes are those of env(1) and timeout(1).
const FAILURE: u8 = 125;
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// A shell reports a command that died of signal N as 128 + N.
const SIGNALLED: i32 = 128;

/// How long connections may take to end once the command and all that it left behind are gone.
const DRAIN: Duration = Duration::from_millis(500);

/// Signals that are passed on to the command.
const FORWARDED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

#[derive(Debug, thiserror::Error)]
enum ExecError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("{0}; without its addresses its traffic cannot be intercepted, so the command was not started")]
    Unresolved(#[from] egress::resolve::ResolveError),
    #[error("{command}: {source}")]
    Spawn { command: String, source: io::Error },
    #[error("{0} came before the command was started")]
    Ended(Signal),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

/// Says what was tried.
fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> ExecError {
    move |source| ExecError::Io { what, source }
}

pub(crate) fn exec(options: ExecOptions) -> ExitCode {
    // Before any thread exists, so that every thread has them blocked and they arrive at the descriptor alone.
    let signals = BlockedSignals::block(&SigSet::from_iter(FORWARDED));
    let _log = match options.log.start("warn") {
        Ok(guard) => guard,
        Err(code) => return code,
    };
    let result = signals.map_err(io_error("cannot take over signals")).and_then(|signals| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(io_error("cannot start"))?;
        runtime.block_on(supervise(options, signals))
    });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(ExecError::Agent(error)) => report(&error, FAILURE),
        Err(error) => {
            complain(&error);
            ExitCode::from(match &error {
                ExecError::Spawn { source, .. } if source.kind() == io::ErrorKind::NotFound => NOT_FOUND,
                ExecError::Spawn { .. } => CANNOT_EXECUTE,
                ExecError::Ended(signal) => exit_code(SIGNALLED + *signal as i32),
                _ => FAILURE,
            })
        }
    }
}

async fn supervise(options: ExecOptions, signals: BlockedSignals) -> Result<u8, ExecError> {
    let before = Before { blocked: signals.before(), descriptors: Descriptors::raise_limit() };
    let mut signals = signals.watch().map_err(io_error("cannot take over signals"))?;
    let configuration = tokio::select! {
        read = Configuration::read(options.rules.sources(), MAX_STALE, None) => read?,
        signal = signals.next_deadly() => return Err(ended(signal)),
    };
    // Dropped last, when the guardian has emptied it.
    let cgroup = ChildCgroup::create(&format!("egress-exec-{}", std::process::id()))?;
    let wanted = Options {
        scope: Scope::of(vec![cgroup.path().to_owned()]),
        workers: thread::available_parallelism().map_or(1, NonZero::get),
        log_ebpf: options.log.log_ebpf,
        // Its cgroup is new.
        reset_existing: false,
        // The guardian does for exec what pins do for an agent.
        pins: None,
        captured: Captured::new(options.capture.mode()).await.map_err(AgentError::from)?,
        limits: options.limits.limits(before.descriptors.limit),
        // What nobody tells it.
        self_test_interval: Duration::MAX,
    };
    let mut agent = Agent::start(configuration, wanted)?;
    agent.serve_own_namespace()?;
    agent.attach()?;
    tokio::select! {
        unresolved = agent.resolve_all() => {
            if let Some(unresolved) = unresolved.into_iter().next() {
                return Err(unresolved.into());
            }
        }
        signal = signals.next_deadly() => return Err(ended(signal)),
    }
    let guardian = Guardian::start(cgroup.path()).map_err(io_error("cannot start the guardian"))?;
    let mut child = child::spawn(&options.command, cgroup.path(), before)?;
    // What nobody tells it.
    let (end, test) = (CancellationToken::new(), Notify::new());
    let status = loop {
        tokio::select! {
            // Nobody takes over without a state directory.
            _ = agent.run(end.clone(), &test) => {}
            status = child.wait() => break status.map_err(io_error("cannot wait for the command"))?,
            signal = signals.next() => child::forward(&child, signal.map_err(io_error("cannot read signals"))?),
        }
    };
    // What the command left running would go on in clear.
    drop(guardian);
    agent.stop(DRAIN).await;
    Ok(exit_code(status.code().unwrap_or_else(|| SIGNALLED + status.signal().unwrap_or(0))))
}

/// Why the command was not started when this signal came.
fn ended(signal: io::Result<Signal>) -> ExecError {
    signal.map_or_else(io_error("cannot read signals"), ExecError::Ended)
}

fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}
