//! The way of the lines to whoever reads them, who may be slow.

use std::{
    io::Write,
    sync::LazyLock,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Batches of lines that wait for a reader who is slow; what is beyond them is dropped.
const WAITING: usize = 256;
/// Time between two warnings that lines are being lost.
const WARNED: Duration = Duration::from_secs(60);

/// Lines that were dropped.
pub static LOST: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Where lines are given to the thread that writes them.
pub(super) struct Output {
    writer: NonBlocking,
    /// When it was last warned of lines that are lost.
    warned: Option<Instant>,
}

impl Output {
    /// Has a thread of its own write to `to` what it is given, until the guard is dropped.
    pub(super) fn new(to: impl Write + Send + 'static) -> (Self, WorkerGuard) {
        let builder = NonBlockingBuilder::default().buffered_lines_limit(WAITING).thread_name("access-log");
        let (writer, guard) = builder.finish(to);
        (Self { writer, warned: None }, guard)
    }

    /// Gives lines to the writer, or counts them as lost. Gives how many were.
    pub(super) fn give(&mut self, lines: &[u8]) -> usize {
        let dropped = || self.writer.error_counter().dropped_lines();
        let before = dropped();
        // It never fails, but drops what is too much. Nobody else gives it anything meanwhile.
        let _ = self.writer.clone().write_all(lines);
        if dropped() == before {
            return 0;
        }
        let lost = lines.iter().filter(|byte| **byte == b'\n').count();
        let all = LOST.inc_by(lost as u64) + lost as u64;
        if self.warned.is_none_or(|warned| warned.elapsed() > WARNED) {
            self.warned = Some(Instant::now());
            tracing::warn!(lost = all, "lines of the access log are lost, as standard error is not read fast enough");
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::mpsc};

    use super::*;

    /// Somebody who says when there is something to read, and reads nothing until the other end is gone.
    struct Stuck {
        started: mpsc::Sender<()>,
        end: mpsc::Receiver<()>,
    }

    impl Write for Stuck {
        fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
            let _ = self.started.send(());
            let _ = self.end.recv();
            Ok(lines.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_reads_are_counted() {
        let ((started, has_started), (stuck, end)) = (mpsc::channel(), mpsc::channel());
        let (writer, _guard) = NonBlockingBuilder::default().buffered_lines_limit(1).finish(Stuck { started, end });
        let mut output = Output { writer, warned: None };
        let mut give = || output.give(b"a line\nanother\n");
        assert_eq!(give(), 0);
        has_started.recv().expect("it is being written");
        // One waits behind it.
        assert_eq!([give(), give(), give(), give()], [0, 2, 2, 2]);
        assert_eq!(LOST.get(), 6);
        assert!(output.warned.is_some());
        drop(stuck);
    }
}
