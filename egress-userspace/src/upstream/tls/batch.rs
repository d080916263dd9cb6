//! Waiting for much at once where much is sure to come: a wake-up, a read, and a write to the client cost nearly as much for little.

use std::{pin::Pin, task::Context, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use crate::socket;

/// What is waited for, in bytes: nearly what is read at once. The kernel's buffer has room for it as it is (`net.ipv4.tcp_rmem`).
const BATCH: u32 = 60 * 1024;
/// What may have been taken off the socket of what is sure to come, in bytes: one record of which not all has come.
const RECORD: u64 = 17 * 1024;
/// How long it may take. Who sends more slowly is not held up by that more than once for each so many bytes.
const PATIENCE: Duration = Duration::from_millis(2);
const HELD_UP: u64 = 1024 * 1024;

/// How much a connection waits for.
#[derive(Debug, Default)]
pub struct Batch {
    /// Since when, if nobody is woken for less than a batch.
    since: Option<Instant>,
    /// Whether the socket is told so.
    is_set: bool,
    /// When that becomes too long, at the earliest. There while it is set.
    timer: Option<Pin<Box<Sleep>>>,
    /// How much is to come before it is waited for again, in bytes.
    barred: u64,
}

impl Batch {
    /// Notes that so many bytes have come.
    pub fn came(&mut self, count: usize) {
        self.since = None;
        self.barred = self.barred.saturating_sub(count as u64);
    }

    /// Has the task woken when a batch has come, or when that takes too long, if at least so many bytes are sure to come. Else it is when
    /// anything comes, as ever. To be called when nothing is there.
    pub fn expect(&mut self, socket: &TcpStream, sure: u64, cx: &mut Context<'_>) {
        if sure < u64::from(BATCH) + RECORD || self.barred > 0 {
            return self.release(socket);
        }
        let now = Instant::now();
        let end = *self.since.get_or_insert(now) + PATIENCE;
        if !self.is_set {
            self.is_set = true;
            socket::wake_for(socket, BATCH);
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        // It may be that of an earlier wait.
        while timer.as_mut().poll(cx).is_ready() {
            if end <= now {
                self.barred = HELD_UP;
                return self.release(socket);
            }
            timer.as_mut().reset(end);
        }
    }

    /// Has anything that comes wake the task.
    fn release(&mut self, socket: &TcpStream) {
        if self.is_set {
            *self = Self { barred: self.barred, ..Self::default() };
            // If there is something the kernel says so now.
            socket::wake_for(socket, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, os::fd::AsRawFd as _, task::Poll};

    use nix::libc;
    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    const MUCH: u64 = 1024 * 1024;

    /// How much the kernel wakes somebody for.
    fn woken_for(socket: &TcpStream) -> libc::c_int {
        let (mut bytes, mut length) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: both pointers are to live values, of which the one is as long as the other says.
        let status = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw mut bytes).cast(),
                &raw mut length,
            )
        };
        assert_eq!(status, 0);
        bytes
    }

    #[tokio::test(flavor = "current_thread")]
    async fn much_is_waited_for_until_that_takes_too_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let near = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let mut batch = Batch::default();
        let expect = async |batch: &mut Batch, sure| {
            poll_fn(|cx| {
                batch.expect(&near, sure, cx);
                Poll::Ready(woken_for(&near))
            })
            .await
        };
        let least = u64::from(BATCH) + RECORD;
        for (sure, bytes) in
            [(least - 1, 1), (least, BATCH as libc::c_int), (least - 1, 1), (MUCH, BATCH as libc::c_int)]
        {
            assert_eq!(expect(&mut batch, sure).await, bytes, "{sure}");
        }
        // It is the time since something has come that counts.
        batch.came(1);
        let vain = poll_fn(|cx| {
            batch.expect(&near, MUCH, cx);
            if batch.is_set { Poll::Pending } else { Poll::Ready(()) }
        });
        timeout(Duration::from_secs(10), vain).await.expect("the end of its patience");
        assert_eq!(woken_for(&near), 1);
        batch.came(HELD_UP as usize - 1);
        assert_eq!(expect(&mut batch, MUCH).await, 1);
        batch.came(1);
        assert_eq!(expect(&mut batch, MUCH).await, BATCH as libc::c_int);
        assert_eq!(expect(&mut batch, 0).await, 1);
        assert!(batch.timer.is_none());
    }
}
