//! A connection: what moves the bytes, and what others know of it.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time,
};

use super::{
    Asked, Config, Error, Reason, Requested, Role,
    core::{Closing, Core},
    frame,
    handles::{Handle, Reader, Writer},
    heads::Sent,
    receive::Accepted,
};
use crate::http1::{Input, Output};

/// How much is read at a time, in bytes: what has come is passed on while it is still in the processor's cache.
const TURN: usize = 256 * 1024;

/// A connection for whoever drives it.
pub struct Connection<I> {
    io: I,
    link: Link,
    input: Input,
    /// A write that has failed, while what the other end said before is still to be read.
    write_failure: Option<io::Error>,
    /// Whether nothing more is read.
    is_over: bool,
    /// Whether nothing was there to be read when it was looked last.
    is_drained: bool,
}

/// A connection for its users.
#[derive(Clone)]
pub struct Link(pub(super) Rc<RefCell<Core>>);

impl<I: AsyncRead + AsyncWrite + Unpin> Connection<I> {
    /// HTTP/2 on `io`, of which nothing was read yet.
    pub fn new(io: I, role: Role, config: Config) -> Self {
        let link = Link(Rc::new(RefCell::new(Core::new(role, config))));
        Self { io, link, input: Input::new(BytesMut::new()), write_failure: None, is_over: false, is_drained: false }
    }

    /// The same for its users.
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// Whether it has looked for more, and nothing was there.
    pub fn is_drained(&self) -> bool {
        self.is_drained
    }

    /// What it is made of.
    pub fn io(&mut self) -> &mut I {
        &mut self.io
    }

    /// Goes on. Is ready when the connection has ended.
    ///
    /// # Errors
    /// It has not ended in order. All streams that were open see the same error.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.link.0.borrow_mut().drive_by(cx);
        let mut left = TURN;
        self.is_drained = false;
        let mut is_full = self.link.0.borrow().is_full();
        while !self.is_over && !is_full && !self.link.is_at_end() && left > 0 {
            match self.poll_read(cx) {
                Poll::Ready(count) => left = left.saturating_sub(count),
                Poll::Pending => {
                    self.is_drained = true;
                    break;
                }
            }
            is_full = self.link.0.borrow().is_full();
        }
        self.end_if_unused();
        let (had_room_for_heads, unwritten) = {
            let core = self.link.0.borrow();
            (core.has_room_for_heads(), core.out.len())
        };
        let written = self.poll_write(cx);
        let core = &mut *self.link.0.borrow_mut();
        if !had_room_for_heads && core.has_room_for_heads() {
            core.wake_writers();
        }
        core.note_full(unwritten);
        let has_room_again = is_full && !core.is_full();
        if has_room_again {
            // What it has sent meanwhile was not read.
            core.owed_since = core.owed_since.map(|_| time::Instant::now());
        }
        if left == 0 || has_room_again {
            // There may be more to be read. Others have their turn first.
            cx.waker().wake_by_ref();
        }
        core.wake_waiting();
        if !self.is_over {
            return Poll::Pending;
        }
        // Who has only ended its own side may be reading what was answered before.
        let is_writable = |error: &io::Error| core.role == Role::Server && error.kind() == io::ErrorKind::UnexpectedEof;
        if core.failure.as_ref().and_then(Error::io).is_none_or(is_writable) {
            ready!(written);
            // Whether or not the other end hears of it.
            let _ = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
        }
        Poll::Ready(core.failure.clone().map_or(Ok(()), Err))
    }

    /// Reads something, and says how much.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let read = ready!(self.input.poll_fill(&mut self.io, cx));
        let core = &mut *self.link.0.borrow_mut();
        let failed = match read {
            Ok(0) if core.role == Role::Server && self.write_failure.is_none() && core.take_end() => {
                self.input = Input::new(BytesMut::new());
                return Poll::Ready(0);
            }
            Ok(0) => self.write_failure.take().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()).into(),
            Ok(count) => {
                core.silent_since = None;
                match core.receive(&mut self.input.bytes) {
                    Ok(()) => return Poll::Ready(count),
                    Err(error) => error,
                }
            }
            Err(error) => error.into(),
        };
        self.is_over = true;
        // The other end may close when nothing is under way.
        if !core.ids.is_empty() || failed.io().is_none_or(|error| error.kind() != io::ErrorKind::UnexpectedEof) {
            core.fail(&failed);
        }
        core.closing = Closing::Told;
        Poll::Ready(0)
    }

    /// Ends a connection that has no stream and will have none.
    fn end_if_unused(&mut self) {
        let core = &mut *self.link.0.borrow_mut();
        if self.is_over || !core.ids.is_empty() {
            return;
        }
        if self.input.bytes.is_empty() {
            self.input.calm();
        }
        let is_gone = core.role == Role::Client && core.gone.is_some();
        match core.closing {
            Closing::Draining => frame::put_go_away(&mut core.out.buffer(), core.last, Reason::NO_ERROR),
            Closing::Told => {}
            Closing::No if is_gone => {}
            Closing::No | Closing::Announced => return,
        }
        core.closing = Closing::Told;
        self.is_over = true;
    }

    /// Writes what there is. A write that fails as the other end has closed is noted, and all that follows goes nowhere: what was said
    /// before, be it whole responses or an alert that says why, is read first. Nothing is begun any more that could not be sent.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let core = &mut *self.link.0.borrow_mut();
        if self.write_failure.is_some() {
            core.out = Output::default();
        }
        if core.out.is_empty() {
            return Poll::Ready(());
        }
        let Err(error) = ready!(core.out.poll_write(&mut self.io, cx)) else { return Poll::Ready(()) };
        core.out = Output::default();
        let is_closed = matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        if is_closed && !self.is_over && !core.is_at_end {
            self.write_failure = Some(error);
            core.drain();
        } else {
            core.fail(&error.into());
            self.is_over = true;
        }
        Poll::Ready(())
    }
}

impl<I> Drop for Connection<I> {
    fn drop(&mut self) {
        // Those who have streams see that nobody drives it any more.
        self.link.0.borrow_mut().fail(&io::Error::from(io::ErrorKind::ConnectionAborted).into());
    }
}

impl Link {
    /// The next stream that the other end has begun, if there is one that nobody has taken up: to be asked for whenever the connection has
    /// gone on.
    pub fn accepted(&self) -> Option<(Requested, Reader, Writer)> {
        let mut core = self.0.borrow_mut();
        while let Some(Accepted { key, head }) = core.accepted.pop_front() {
            if core.streams[key].error.is_none() {
                drop(core);
                let handle = Handle::new(self.0.clone(), key);
                return Some((head, Reader(handle.clone()), Writer(handle)));
            }
            // It was given up before anybody has looked at it.
            core.release(key);
        }
        None
    }

    /// Waits until a request can be sent.
    ///
    /// # Errors
    /// There will be no other on this connection.
    pub async fn ready(&self) -> Result<(), Error> {
        poll_fn(|cx| self.0.borrow_mut().poll_open(cx)).await
    }

    /// Sends the head of a request, which may be all of it. There must be room for it: see `ready`.
    pub fn ask(&self, head: &Asked<'_>, is_all: bool) -> (Reader, Writer) {
        let key = self.0.borrow_mut().open(&Sent::Request(head), is_all);
        let handle = Handle::new(self.0.clone(), key);
        (Reader(handle.clone()), Writer(handle))
    }

    /// Whether no more requests can be sent.
    pub fn is_closed(&self) -> bool {
        self.0.borrow().is_closed()
    }

    /// How many requests there may be at the same time, as far as the other end has said: at least one.
    pub fn limit(&self) -> usize {
        self.0.borrow().limit()
    }

    /// Whether it has said so.
    pub fn is_told(&self) -> bool {
        self.0.borrow().peer.is_known
    }

    /// How many bytes of content are sure to come: announced, and let come by the windows. None as long as something else is waited for
    /// that goes on after its head.
    pub fn announced(&self) -> u64 {
        let core = self.0.borrow();
        let mut all = 0;
        for (_, stream) in core.streams.iter().filter(|(_, stream)| !stream.is_closed()) {
            // It may be windows, or little pieces, that are waited for.
            if !stream.is_sent || stream.has_head && stream.left.is_none() {
                return 0;
            }
            all += stream.left.unwrap_or_default().min(stream.receive_window.max(0) as u64);
        }
        all.min(core.receive_window.max(0) as u64)
    }

    /// How much has come and was not read, in bytes, and how much of all connections that are counted with this one.
    pub fn unread(&self) -> (usize, usize) {
        self.0.borrow().unread.count()
    }

    /// How much of it is within so many bytes of each stream.
    pub fn unread_within(&self, window: u32) -> usize {
        self.0.borrow().streams.iter().map(|(_, stream)| stream.queue.len().min(window as usize)).sum()
    }

    /// Whether the other end takes requests that switch to another protocol (RFC 8441).
    pub fn takes_switches(&self) -> bool {
        self.0.borrow().peer.connect_protocol
    }

    /// For how long nothing has come, since it was made or a request was sent.
    pub fn silence(&self) -> Duration {
        self.0.borrow().silent_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Notes that a request was sent.
    pub fn expect(&self) {
        self.0.borrow_mut().silent_since.get_or_insert_with(Instant::now);
    }

    /// Since when the other end has owed the rest of what it has begun, if it does. While nothing is read it cannot end that, and is to read
    /// what answers it.
    pub fn owed_since(&self) -> Option<time::Instant> {
        let core = self.0.borrow();
        if core.is_full() { core.full_since } else { core.owed_since }
    }

    /// Whether the other end sends no more, while it may be reading what it is owed.
    pub fn is_at_end(&self) -> bool {
        self.0.borrow().is_at_end
    }

    /// How long the heads of requests are together that are served, with what has come of the next, in bytes.
    pub fn heads(&self) -> usize {
        let core = self.0.borrow();
        core.heads + core.begun()
    }

    /// How much has come of a head that has yet to end, in bytes.
    pub fn begun(&self) -> usize {
        self.0.borrow().begun()
    }

    /// Lets the other end send so much of each stream before that was read on, in bytes.
    pub fn set_stream_window(&self, window: u32) {
        let mut core = self.0.borrow_mut();
        if core.failure.is_none() {
            core.set_initial_window(window);
            core.wake_driver();
        }
    }

    /// Has a server's connection end once those streams are served that the other end has begun, or begins before it knows.
    pub fn close_gracefully(&self) {
        self.0.borrow_mut().close_gracefully();
    }

    /// Has a client's connection end with the last of its requests.
    pub fn close(&self) {
        self.0.borrow_mut().drain();
    }
}
