//! Waiting for much at once where much is sure to come: a wake-up, a read, and a write to the client cost nearly as much for little.

use std::{mem, pin::Pin, task::Context, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use crate::socket;

/// What is waited for, in bytes, at most and at least: as much as is worth it, and still in the processor's cache when it is passed on.
const MOST: u64 = 252 * 1024;
const LEAST: u64 = 16 * 1024;
/// The most before so much has come in time, for which the kernel's buffer has room as it is (`net.ipv4.tcp_rmem`).
const FIRST: u64 = 60 * 1024;
/// What may have been taken off the socket of what is sure to come, in bytes: one record of which not all has come.
const RECORD: u64 = 17 * 1024;
/// How long it may take. A timer can take a millisecond more.
const PATIENCE: Duration = Duration::from_millis(2);
/// Where that was too long, it is less that is waited for, until so many bytes have come.
const SLOW: u64 = 1024 * 1024;

/// How much a connection waits for.
#[derive(Debug, Default)]
pub struct Batch {
    /// The socket wakes nobody for less, in bytes; 0 if it does for anything.
    set: u64,
    /// How much has come since there was nothing, in bytes.
    got: u64,
    /// Since when nothing has come, while that is so.
    since: Option<Instant>,
    /// When that becomes too long, at the earliest. There while it is set.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the last one has come in time.
    is_fast: bool,
    /// How much is waited for of an origin that was too slow, in bytes, and how much is to come before it is tried again.
    slow: Option<(u64, u64)>,
}

impl Batch {
    /// Notes that so many bytes have come.
    pub fn came(&mut self, count: usize) {
        self.since = None;
        self.got += count as u64;
        self.slow = self.slow.and_then(|(most, left)| Some((most, left.checked_sub(count as u64)?)));
    }

    /// Has the task woken when much has come, or when that takes too long, where at least so many bytes are sure to come. Else it is when
    /// anything comes, as ever. To be called when nothing is there.
    pub fn expect(&mut self, socket: &TcpStream, sure: u64, cx: &mut Context<'_>) {
        let got = mem::take(&mut self.got);
        if got > 0 && self.set > 0 {
            self.is_fast = got >= self.set;
        }
        let most = match self.slow {
            Some((most, _)) => most,
            None if self.is_fast => MOST,
            None => FIRST,
        };
        let batch = sure.saturating_sub(RECORD).min(most);
        if batch < LEAST {
            return self.release(socket);
        }
        let now = Instant::now();
        let end = *self.since.get_or_insert(now) + PATIENCE;
        if self.set != batch {
            self.set = batch;
            socket::wake_for(socket, batch as u32);
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        // It may be that of an earlier wait.
        while timer.as_mut().poll(cx).is_ready() {
            if end <= now {
                self.give_up(socket);
                return;
            }
            timer.as_mut().reset(end);
        }
    }

    /// Whether the task is woken before long, and for much.
    pub fn is_coming(&self) -> bool {
        self.set > 0 && self.is_fast && self.slow.is_none()
    }

    fn give_up(&mut self, socket: &TcpStream) {
        let come = socket::readable(socket);
        // Else it is this thread that was busy.
        if come < self.set {
            // As much should come in half of the time.
            self.slow = Some((come / 2, SLOW));
            self.is_fast = false;
        }
        self.release(socket);
    }

    /// Has anything that comes wake the task.
    fn release(&mut self, socket: &TcpStream) {
        if self.set > 0 {
            *self = Self { is_fast: self.is_fast, slow: self.slow, ..Self::default() };
            // If there is something the kernel says so now.
            socket::wake_for(socket, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, os::fd::AsRawFd as _, task::Poll};

    use nix::libc;
    use tokio::{io::AsyncWriteExt as _, net::TcpListener, time::timeout};

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
        let (mut far, _) = listener.accept().await.expect("the same");
        let mut batch = Batch::default();
        let expect = async |batch: &mut Batch, sure| {
            poll_fn(|cx| {
                // However long the test was kept from going on.
                batch.came(0);
                batch.expect(&near, sure, cx);
                Poll::Ready(woken_for(&near))
            })
            .await
        };
        let least = (LEAST + RECORD, LEAST as libc::c_int);
        let first = (MUCH, FIRST as libc::c_int);
        for (sure, bytes) in [(least.0 - 1, 1), least, first, least, (least.0 - 1, 1)] {
            assert_eq!(expect(&mut batch, sure).await, bytes, "{sure}");
        }
        // It is more once that has come in time, and what there is may wait for it.
        assert_eq!(expect(&mut batch, MUCH).await, first.1);
        batch.came(FIRST as usize - 1);
        assert_eq!(expect(&mut batch, MUCH).await, first.1);
        assert!(!batch.is_coming());
        (0..3).for_each(|_| batch.came(FIRST as usize / 3));
        assert_eq!(expect(&mut batch, MUCH).await, MOST as libc::c_int);
        assert!(batch.is_coming());
        // Where too little comes, half of that is waited for.
        for come in [100_000, 0] {
            far.write_all(&vec![b'x'; come]).await.expect("room");
            assert_eq!(expect(&mut batch, MUCH).await, if come > 0 { MOST as libc::c_int } else { first.1 });
            let vain = poll_fn(|cx| {
                batch.expect(&near, MUCH, cx);
                if batch.set > 0 { Poll::Pending } else { Poll::Ready(()) }
            });
            timeout(Duration::from_secs(10), vain).await.expect("the end of its patience");
            assert!(woken_for(&near) == 1 && !batch.is_coming());
            // The kernel says at once what is there.
            let mut left = come;
            while left > 0 {
                timeout(Duration::from_secs(10), near.readable()).await.expect("to be woken").expect("a connection");
                left -= near.try_read(&mut vec![0; come]).unwrap_or_default();
            }
            batch.came(SLOW as usize);
            assert_eq!(expect(&mut batch, MUCH).await, (come / 2).max(1) as libc::c_int);
            assert!(!batch.is_coming());
            batch.came(1);
        }
        assert_eq!(expect(&mut batch, MUCH).await, first.1);
        assert_eq!(expect(&mut batch, 0).await, 1);
        assert!(batch.timer.is_none());
    }
}
