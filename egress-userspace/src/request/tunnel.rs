//! Connections that a request has switched to another protocol, such as WebSocket (RFC 9110 section 7.8).

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional},
    time::{Instant, Sleep, sleep, sleep_until},
};

use crate::{body::Held, http1::server::LAST_WAIT, telemetry::access_log::Record, upstream::Switched};

/// For how long nobody may say anything.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    /// Nothing limits it otherwise: WebSockets can be silent for days.
    pub limit: Option<Duration>,
    /// The same once one end says no more. Of the other one, which may be gone, nothing would be heard.
    pub half_closed: Duration,
}

/// The upstream end of a connection whose origin has switched protocols, to be run once the client has been told.
pub struct Tunnel {
    upstream: Switched,
    record: Box<Record>,
    silence: Silence,
    /// It is still under way.
    _held: Held,
}

impl Tunnel {
    /// The tunnel to an upstream end; the request's record stays open until it ends.
    pub fn new(upstream: Switched, record: Box<Record>, held: Held, silence: Silence) -> Self {
        Self { upstream, record, silence, _held: held }
    }

    /// Passes bytes both ways until both ends are closed, or one fails: what has come of an origin that fails goes to the client
    /// before that. Gives whether it has gone in order: if not, the client's end is to be reset.
    pub async fn run(self, client: impl AsyncRead + AsyncWrite + Unpin) -> bool {
        let mut heard = Heard::new(self.record);
        let copied = {
            let mut client = ClientEnd { io: client, heard: &heard, last_wait: None };
            let mut upstream = OriginEnd { io: self.upstream, heard: &heard };
            tokio::select! {
                copied = copy_bidirectional(&mut client, &mut upstream) => copied,
                limit = heard.silence(self.silence) => {
                    Err(io::Error::other(format!("no bytes either way for {limit:?}")))
                }
            }
        };
        let failure = heard.failure.take().map_or(copied.map(drop), Err);
        match &failure {
            Ok(()) => heard.record.complete(),
            Err(error) if heard.has_client_failed.get() => heard.record.error(error.to_string()),
            Err(error) => heard.record.truncated(error),
        }
        failure.is_ok()
    }
}

/// What has come of both ends. It is recorded however the tunnel ends.
struct Heard {
    record: Box<Record>,
    last: Cell<Instant>,
    /// From the client, and from the origin.
    bytes: Cell<(u64, u64)>,
    /// Why the origin's end has failed.
    failure: RefCell<Option<io::Error>>,
    /// Whether the client's end has failed before that.
    has_client_failed: Cell<bool>,
    /// Whether all has gone to the client that the origin had to say.
    has_client_all: Cell<bool>,
    /// Whether one of them says no more.
    is_half_closed: Cell<bool>,
}

impl Heard {
    fn new(record: Box<Record>) -> Self {
        Self {
            record,
            last: Cell::new(Instant::now()),
            bytes: Cell::default(),
            failure: RefCell::default(),
            has_client_failed: Cell::default(),
            has_client_all: Cell::default(),
            is_half_closed: Cell::default(),
        }
    }

    /// So much has come from the client, or the origin. Nothing is the end of what that says.
    fn more(&self, received: usize, sent: usize) {
        let bytes = self.bytes.get();
        self.bytes.set((bytes.0 + received as u64, bytes.1 + sent as u64));
        if received + sent == 0 {
            self.is_half_closed.set(true);
        }
        self.last.set(Instant::now());
    }

    fn has_origin_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// Waits until nothing was heard for too long, and gives how long that is.
    async fn silence(&self, most: Silence) -> Duration {
        loop {
            let half_closed = self.is_half_closed.get().then_some(most.half_closed);
            let limit = most.limit.into_iter().chain(half_closed).min();
            match limit {
                Some(limit) if self.last.get().elapsed() >= limit => return limit,
                Some(limit) => sleep_until(self.last.get() + limit).await,
                // That one end says no more is noticed by looking.
                None => sleep(most.half_closed).await,
            }
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

/// The client's end of a tunnel, with what is heard of it.
struct ClientEnd<'a, I> {
    io: I,
    heard: &'a Heard,
    /// While it takes nothing, and its origin has failed.
    last_wait: Option<Pin<Box<Sleep>>>,
}

impl<I> ClientEnd<'_, I> {
    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(polled, Poll::Ready(Err(_))) && !self.heard.has_origin_failed() {
            self.heard.has_client_failed.set(true);
        }
        polled
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for ClientEnd<'_, I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if polled.is_ready() {
            self.heard.more(buffer.filled().len() - before, 0);
        }
        self.noted(polled)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for ClientEnd<'_, I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        if polled.is_ready() {
            self.last_wait = None;
        } else if self.heard.has_origin_failed() {
            let last_wait = self.last_wait.get_or_insert_with(|| Box::pin(sleep(LAST_WAIT)));
            return last_wait.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        self.noted(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.noted(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.heard.has_origin_failed() {
            // All is written that had come. What broke off must not look complete.
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.heard.has_client_all.set(matches!(polled, Poll::Ready(Ok(()))));
        self.noted(polled)
    }
}

/// The origin's end of a tunnel, with what is heard of it. When it fails, what comes of it ends there, and what goes to it goes nowhere:
/// so the client gets what had come before, which can be more than was read.
struct OriginEnd<'a, I> {
    io: I,
    heard: &'a Heard,
}

impl<I> OriginEnd<'_, I> {
    /// What was polled, or `instead` if that has failed.
    fn or<T>(&self, polled: Poll<io::Result<T>>, instead: T, cx: &Context<'_>) -> Poll<io::Result<T>> {
        let Poll::Ready(Err(error)) = polled else { return polled };
        if self.heard.has_client_all.get() {
            return Poll::Ready(Err(error));
        }
        if !self.heard.has_origin_failed() {
            *self.heard.failure.borrow_mut() = Some(error);
            // The client is not waited for in the same way any more.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(instead))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for OriginEnd<'_, I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if polled.is_ready() {
            self.heard.more(0, buffer.filled().len() - before);
        }
        self.or(polled, (), cx)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for OriginEnd<'_, I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.heard.has_origin_failed() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.or(polled, bytes.len(), cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.heard.has_origin_failed() {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.or(polled, (), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.heard.has_origin_failed() {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.or(polled, (), cx)
    }
}
