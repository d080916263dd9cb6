//! The way of the lines to whoever reads them, who may be slow.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    sync::LazyLock,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
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
    losses: Losses,
}

impl Output {
    /// Has a thread of its own write to `to` what it is given, until the guard is dropped.
    pub(super) fn new(to: impl Write + AsFd + Send + 'static) -> (Self, WorkerGuard) {
        let builder = NonBlockingBuilder::default().buffered_lines_limit(WAITING).thread_name("access-log");
        let (writer, guard) = builder.finish(Whole { to, is_torn: false, losses: Losses::default() });
        (Self { writer, losses: Losses::default() }, guard)
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
        self.losses.count(lines, "is not read fast enough")
    }
}

/// Writes whole lines. What it cannot write is counted as lost, and never an error.
struct Whole<W> {
    to: W,
    /// Whether the last line has no end.
    is_torn: bool,
    losses: Losses,
}

impl<W: Write + AsFd> Write for Whole<W> {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let (mut end, mut rest): (&[u8], _) = (if self.is_torn { b"\n" } else { b"" }, lines);
        if let Err(error) = self.put(&mut end).and_then(|()| self.put(&mut rest)) {
            self.losses.count(rest, &format!("cannot be written to: {error}"));
        }
        let written = &lines[..lines.len() - rest.len()];
        self.is_torn = written.last().map_or(!end.is_empty(), |last| *last != b'\n');
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<W: Write + AsFd> Whole<W> {
    /// Writes all of it, or leaves what it could not write.
    fn put(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match self.to.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => *rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Others who share the pipe or terminal can have made it such for us as well.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut waiting = [PollFd::new(self.to.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut waiting, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Lines that are lost, of which it is warned now and then.
#[derive(Default)]
struct Losses {
    warned: Option<Instant>,
}

impl Losses {
    /// Counts lines that are lost because of what standard error is or does. Gives how many they are.
    fn count(&mut self, lines: &[u8], why: &str) -> usize {
        let lost = lines.iter().filter(|byte| **byte == b'\n').count();
        let all = LOST.inc_by(lost as u64) + lost as u64;
        if self.warned.is_none_or(|warned| warned.elapsed() > WARNED) {
            self.warned = Some(Instant::now());
            tracing::warn!(lost = all, "lines of the access log are lost, as standard error {why}");
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, fs::File, os::fd::BorrowedFd, sync::mpsc};

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
        let mut output = Output { writer, losses: Losses::default() };
        let mut give = || output.give(b"a line\nanother\n");
        assert_eq!(give(), 0);
        has_started.recv().expect("it is being written");
        // One waits behind it.
        assert_eq!([give(), give(), give(), give()], [0, 2, 2, 2]);
        // The other test counts as well.
        assert!(LOST.get() >= 6);
        assert!(output.losses.warned.is_some());
        drop(stuck);
    }

    /// What takes so many bytes at a time, or fails.
    struct Scripted {
        file: File,
        script: VecDeque<Result<usize, Errno>>,
        written: Vec<u8>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = self.script.pop_front().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
            self.written.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Scripted {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.file.as_fd()
        }
    }

    /// What is written of two batches, one after the other, and whether lines were lost.
    fn check(script: &[Result<usize, Errno>], expected: &str, is_lossy: bool) {
        let file = File::options().write(true).open("/dev/null").expect("it is there");
        let to = Scripted { file, script: script.iter().copied().collect(), written: Vec::new() };
        let mut whole = Whole { to, is_torn: false, losses: Losses::default() };
        for lines in [&b"one\ntwo\n"[..], b"three\n"] {
            whole.write_all(lines).expect("it never fails");
        }
        assert_eq!(String::from_utf8_lossy(&whole.to.written), expected);
        assert_eq!(whole.losses.warned.is_some(), is_lossy, "{expected}");
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_tear_no_others() {
        check(&[], "one\ntwo\nthree\n", false);
        check(&[Ok(2), Err(Errno::EAGAIN), Err(Errno::EINTR), Ok(1)], "one\ntwo\nthree\n", false);
        check(&[Err(Errno::ENOSPC)], "three\n", true);
        check(&[Ok(4), Err(Errno::ENOSPC)], "one\nthree\n", true);
        check(&[Ok(5), Err(Errno::ENOSPC)], "one\nt\nthree\n", true);
        check(&[Ok(5), Err(Errno::ENOSPC), Err(Errno::ENOSPC)], "one\nt", true);
    }
}
