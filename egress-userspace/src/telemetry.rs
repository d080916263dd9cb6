//! What the agent tells about itself: one record for each request, and counters.

use std::{panic, sync::LazyLock, thread};

use prometheus_client::metrics::counter::Counter;

pub mod access_log;
pub mod metrics;
mod process;

/// Panics so far.
pub static PANICS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Has panics counted, and told by the log, which waits for nobody: standard error may be read by nobody.
pub fn report_panics() {
    panic::set_hook(Box::new(|panic| {
        PANICS.inc();
        let thread = thread::current();
        tracing::error!(thread = thread.name(), "a mistake of the agent's own: {panic}");
    }));
}
