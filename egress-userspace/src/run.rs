//! `egress run`.

use std::{env, num::NonZero, path::PathBuf, process::ExitCode, thread};

use egress::{
    agent::{Agent, AgentError, Configuration, Options},
    capture::Captured,
    handover::StateDir,
    kernel::{
        KernelError,
        cgroup::{self, Scope},
        pins::{self, PinPlace},
    },
    telemetry,
};
use nix::sys::prctl;
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{RunOptions, USAGE, complain, report},
    descriptors::Descriptors,
};

const FAILURE: u8 = 1;

pub(crate) fn run(options: RunOptions) -> ExitCode {
    let _log = match options.log.start("info") {
        Ok(guard) => guard,
        Err(code) => return code,
    };
    telemetry::report_panics();
    let descriptors = Descriptors::raise_limit();
    // Huge pages under many small things make 50 MiB of 8.
    if let Err(error) = prctl::set_thp_disable(true) {
        tracing::debug!(%error, "cannot do without huge pages");
    }
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format_args!("cannot start: {error}"));
            return ExitCode::from(FAILURE);
        }
    };
    // What was not named cannot be named wrongly.
    let bad_scope = if options.cgroup.is_empty() { FAILURE } else { USAGE };
    match runtime.block_on(serve(options, descriptors)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error, if matches!(error, AgentError::Scope(_)) { bad_scope } else { FAILURE }),
    }
}

fn scope(named: &[PathBuf]) -> Result<Scope, cgroup::CgroupError> {
    if named.is_empty() {
        cgroup::default_scope()
    } else {
        Ok(Scope::of(named.iter().map(|path| cgroup::check(path)).collect::<Result<_, _>>()?))
    }
}

async fn serve(options: RunOptions, descriptors: Descriptors) -> Result<(), AgentError> {
    let io_error = |what| move |source| AgentError::Io { what, source };
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate()).map_err(io_error("cannot handle SIGTERM"))?,
        interrupt: signal(SignalKind::interrupt()).map_err(io_error("cannot handle SIGINT"))?,
    };
    let mut usr2 = signal(SignalKind::user_defined2()).map_err(io_error("cannot handle SIGUSR2"))?;
    // They end who does not ask for them, and are what other servers are told to reload and to open their logs anew by.
    let mut hup = signal(SignalKind::hangup()).map_err(io_error("cannot handle SIGHUP"))?;
    let mut usr1 = signal(SignalKind::user_defined1()).map_err(io_error("cannot handle SIGUSR1"))?;
    let timeout = options.drain_timeout;
    let mut agent = tokio::select! {
        agent = start(options, descriptors) => agent?,
        signal = signals.next() => {
            tracing::info!(signal, "ended before the start was complete");
            return Ok(());
        }
    };
    let (end, test) = (CancellationToken::new(), Notify::new());
    let tests = async {
        loop {
            tokio::select! {
                _ = usr2.recv() => test.notify_one(),
                _ = hup.recv() => tracing::info!("SIGHUP does nothing: files are read again whenever they change"),
                _ = usr1.recv() => tracing::info!("SIGUSR1 does nothing: there is no log file to be opened anew"),
            }
        }
    };
    let relieved = tokio::select! {
        relieved = agent.run(end.clone(), &test) => relieved,
        never = tests => never,
        () = async {
            let signal = signals.next().await;
            tracing::info!(signal, "ending");
            end.cancel();
            signals.next().await;
        } => false,
    };
    if relieved {
        tracing::info!(?timeout, "another agent has taken over; draining");
    } else {
        tracing::info!(?timeout, "draining");
    }
    let now = async {
        if relieved && !end.is_cancelled() {
            // Who has started another agent may well tell this one to end, as it is about to.
            let signal = signals.next().await;
            tracing::info!(signal, "draining already; a second signal means now");
            end.cancel();
        }
        let signal = signals.next().await;
        tracing::warn!(signal, "a second signal; what is under way is cut off");
    };
    tokio::select! {
        () = agent.stop(timeout) => {}
        () = now => {}
    }
    if relieved && !end.is_cancelled() && is_restarted() {
        tracing::info!(
            "waiting to be told to end: Kubernetes would start this agent again, in the place of the other one"
        );
        signals.next().await;
    }
    Ok(())
}

/// Whether an agent that ends is started again at once, be it that it has ended in order: in Kubernetes containers are, until
/// their pod is deleted. Each of them has this variable.
fn is_restarted() -> bool {
    env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

async fn start(options: RunOptions, descriptors: Descriptors) -> Result<Agent, AgentError> {
    // With --fail-open there must be none.
    let pins = (!options.fail_open).then_some(options.pin_dir.as_path());
    let configuration = Configuration::read(options.rules.sources(), options.dns_max_stale, pins).await?;
    let scope = scope(&options.cgroup)?;
    let state = StateDir::lock(&options.state_dir).await?;
    let pins = if options.fail_open {
        pins::check_abandoned(&options.pin_dir).map_err(KernelError::Pins)?;
        None
    } else {
        Some(PinPlace { directory: options.pin_dir, lineage: state.id()? })
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let wanted = Options {
        scope,
        workers: options.workers.map_or(cores, usize::from),
        log_ebpf: options.log.log_ebpf,
        reset_existing: options.reset_existing,
        pins,
        captured: Captured::new(options.capture.mode()).await?,
        limits: options.limits.limits(descriptors.limit),
        self_test_interval: options.self_test_interval,
    };
    let mut agent = Agent::start(configuration, wanted)?;
    agent.succeed(&state, options.admin).await?;
    agent.test_self();
    Ok(agent)
}

/// The signals that end the agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Waits for one, and names it.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
