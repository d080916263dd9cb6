//! Connections that a request has switched to another protocol, such as WebSocket (RFC 9110 section 7.8).

use std::{
    cell::Cell,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional},
    time::{Instant, sleep_until},
};

use crate::{body::Held, telemetry::access_log::Record, upstream::Switched};

/// The upstream end of a connection whose origin has switched protocols, to be run once the client has been told.
pub struct Tunnel {
    upstream: Switched,
    record: Box<Record>,
    /// When it ends if nobody says anything.
    idle_timeout: Option<Duration>,
    /// It is still under way.
    _held: Held,
}

impl Tunnel {
    /// The tunnel to an upstream end; the request's record stays open until it ends.
    pub fn new(upstream: Switched, record: Box<Record>, held: Held, idle_timeout: Option<Duration>) -> Self {
        Self { upstream, record, idle_timeout, _held: held }
    }

    /// Passes bytes both ways until both ends are closed. Gives whether that has gone in order: if not, the client's end is to be
    /// reset.
    pub async fn run(self, client: impl AsyncRead + AsyncWrite + Unpin) -> bool {
        let mut heard = Heard::new(self.record);
        let copied = {
            let mut client = End { io: client, of: Side::Client, heard: &heard };
            let mut upstream = End { io: self.upstream, of: Side::Origin, heard: &heard };
            let copied = copy_bidirectional(&mut client, &mut upstream);
            match self.idle_timeout {
                None => copied.await,
                Some(limit) => tokio::select! {
                    copied = copied => copied,
                    () = heard.silence(limit) => Err(io::Error::other(format!("no bytes either way for {limit:?}"))),
                },
            }
        };
        match &copied {
            Ok(_) => heard.record.complete(),
            Err(error) if heard.failed.get() == Some(Side::Client) => heard.record.error(error.to_string()),
            Err(error) => heard.record.truncated(error),
        }
        copied.is_ok()
    }
}

/// Whose end of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Origin,
}

/// What has come of both ends. It is recorded however the tunnel ends.
struct Heard {
    record: Box<Record>,
    last: Cell<Instant>,
    /// From the client, and from the origin.
    bytes: Cell<(u64, u64)>,
    /// Whose end has failed first.
    failed: Cell<Option<Side>>,
}

impl Heard {
    fn new(record: Box<Record>) -> Self {
        Self { record, last: Cell::new(Instant::now()), bytes: Cell::default(), failed: Cell::default() }
    }

    fn more(&self, received: usize, sent: usize) {
        let bytes = self.bytes.get();
        self.bytes.set((bytes.0 + received as u64, bytes.1 + sent as u64));
        self.last.set(Instant::now());
    }

    /// Waits until nothing was heard for so long.
    async fn silence(&self, limit: Duration) {
        loop {
            let end = self.last.get() + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        let (received, sent) = self.bytes.get();
        self.record.add_received(received);
        self.record.add_sent(sent);
    }
}

/// One end of a tunnel, with what is heard of it.
struct End<'a, I> {
    io: I,
    of: Side,
    heard: &'a Heard,
}

impl<I> End<'_, I> {
    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let (Poll::Ready(Err(_)), None) = (&polled, self.heard.failed.get()) {
            self.heard.failed.set(Some(self.of));
        }
        polled
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for End<'_, I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        let count = buffer.filled().len() - before;
        match self.of {
            _ if polled.is_pending() => {}
            Side::Client => self.heard.more(count, 0),
            Side::Origin => self.heard.more(0, count),
        }
        self.noted(polled)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for End<'_, I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.noted(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.noted(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.noted(polled)
    }
}
