//! `egress run`.

use std::{num::NonZero, path::PathBuf, process::ExitCode, thread};

use egress::{
    admin,
    agent::{Agent, AgentError, Options},
    capture::Captured,
    kernel::cgroup,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use crate::cli::{LogOptions, RunOptions, USAGE, report};

const FAILURE: u8 = 1;

pub(crate) fn run(options: RunOptions, log: &LogOptions) -> ExitCode {
    let _log = match log.start("info") {
        Ok(guard) => guard,
        Err(code) => return code,
    };
    let cgroups = match scope(&options.cgroup) {
        Ok(cgroups) => cgroups,
        Err(error) => {
            eprintln!("egress: {error}");
            return ExitCode::from(USAGE);
        }
    };
    raise_descriptor_limit();
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("egress: cannot start: {error}");
            return ExitCode::from(FAILURE);
        }
    };
    match runtime.block_on(serve(options, cgroups, log.log_ebpf)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error, FAILURE),
    }
}

/// Every connection takes two descriptors, and the usual soft limit of 1024 is for programs that use select(2).
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

fn scope(named: &[PathBuf]) -> Result<Vec<PathBuf>, cgroup::CgroupError> {
    if named.is_empty() {
        Ok(vec![cgroup::default_scope()?])
    } else {
        Ok(cgroup::outermost(named.iter().map(|path| cgroup::check(path)).collect::<Result<_, _>>()?))
    }
}

async fn serve(options: RunOptions, cgroups: Vec<PathBuf>, log_ebpf: bool) -> Result<(), AgentError> {
    let io_error = |what| move |source| AgentError::Io { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(io_error("cannot handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("cannot handle SIGINT"))?;
    let mut test = signal(SignalKind::user_defined2()).map_err(io_error("cannot handle SIGUSR2"))?;
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let mut agent = Agent::start(Options {
        sources: options.rules.sources(),
        cgroups,
        workers: options.workers.map_or(cores, usize::from),
        log_ebpf,
        reset_existing: options.reset_existing,
        pin_dir: (!options.fail_open).then_some(options.pin_dir),
        captured: Captured::new(options.capture.mode()).await?,
    })?;
    let address = admin::start(options.admin, agent.readiness(), agent.metrics())
        .await
        .map_err(|source| AgentError::Admin { address: options.admin, source })?;
    tracing::info!(%address, "serving /readyz, /healthz and /metrics");
    // Pods with the host's network come and go; its namespace stays.
    agent.serve_own_namespace()?;
    agent.attach()?;
    agent.test_self();
    let signal = loop {
        tokio::select! {
            never = agent.run() => match never {},
            _ = test.recv() => agent.test_self(),
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
        }
    };
    tracing::info!(signal, timeout = ?options.drain_timeout, "draining");
    tokio::select! {
        () = agent.stop(options.drain_timeout) => {}
        // A second signal means now.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
