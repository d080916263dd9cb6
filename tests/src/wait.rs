//! The one place where the harness waits: for a condition, with a deadline, and never for a time.

use std::{
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// What a test waits at most for something that should happen within milliseconds on an idle machine, but may take a thousand
/// times as long where three emulated machines share two processors.
pub const PATIENCE: Duration = Duration::from_secs(40);

const POLL_INTERVAL: Duration = Duration::from_millis(2);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Waits until `condition` gives a value. `what` completes the sentence "timed out waiting for ...".
pub fn wait_for<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if interrupted() {
            bail!("interrupted while waiting for {what}");
        }
        if Instant::now() >= deadline {
            bail!("timed out after {patience:?} waiting for {what}");
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, patience, || condition().then_some(()))
}

/// Whether Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Turns the first SIGINT or SIGTERM into an error of whatever waits, so that the stack unwinds and everything that was
/// made is removed. The second one has its usual effect.
pub fn unwind_on_interrupt() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        extern "C" fn note(_signal: libc::c_int) {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
        let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESETHAND, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            // SAFETY: the handler stores to an atomic and does nothing else.
            unsafe { sigaction(signal, &action) }.expect("SIGINT and SIGTERM can be caught");
        }
    });
}
