//! The end towards an application.

mod asked;
mod outgoing;
mod stream;
mod switched;
mod told;

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    mem::{self, MaybeUninit},
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{BufMut as _, BytesMut};
use http::{Method, StatusCode, Version, header};
use socket2::SockRef;
use tokio::time::{Instant, Sleep, sleep, timeout};

pub use self::{asked::Asked, stream::ClientStream, switched::Switched};
use super::{
    Decoder, Error, Fault, Framing, Head, Input, Limits, Output, Progress, may_be_request, of_request, request,
};
use crate::{body::Frame, head::RequestHead, request::headers, socket};

/// What is kept of a response for a client that does not read on, and of what it sends after its request, in bytes.
const AHEAD: usize = 128 * 1024;
/// What a client begins with that knows that HTTP/2 is understood (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long is waited for a client that takes nothing of what is its, once its origin has failed.
pub const LAST_WAIT: Duration = Duration::from_secs(5);
/// The same for one that goes on taking, and how soon that is looked at.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How often is looked whether a client is still there whose content nobody takes.
const LOOK_FOR_RESET: Duration = Duration::from_secs(1);

/// A connection that an application has made. What is shared of it is its content, between whoever sends it on.
pub struct Connection {
    io: RefCell<Io>,
    limits: Limits,
}

struct Io {
    stream: ClientStream,
    input: Input,
    output: Output,
    head: Head,
    content: Decoder,
    /// Whether the client waits before it sends content.
    expects: Expects,
    /// Whether it speaks HTTP/1.0.
    is_old: bool,
    /// Whether a request has come.
    is_begun: bool,
    /// Whether the client sends no more.
    is_at_end: bool,
    /// Whether the kernel keeps little of what it has not taken.
    is_limited: bool,
    /// Whether an interim response has yet to go out.
    is_informing: bool,
    /// Who is to look for a reset once all content has come.
    watching: Option<Waker>,
}

/// Whether a client waits to be told to go on (RFC 9110 section 10.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Nothing,
    /// To be told by the origin.
    Origin,
    /// To be told by us, once somebody wants the content.
    Us,
}

/// What comes of waiting for a request.
pub enum Waited {
    /// A request, whose content is still to come.
    Request(Box<RequestHead>, Asked),
    /// The client speaks HTTP/2. Nothing of that has been taken.
    Http2,
    /// The client has ended the connection.
    Closed,
}

impl Io {
    /// Lets the buffer go, if nothing is in it, that a request was read into which has come: its response can take long.
    fn calm_at_end(&mut self) {
        if self.content.is_end() {
            self.input.calm();
        }
    }

    /// Tells a task that waits for all content to have come that it has. The one that reads it needs no telling.
    fn note_end(&mut self, cx: &Context<'_>) {
        if self.content.is_end()
            && let Some(watching) = self.watching.take()
            && !watching.will_wake(cx.waker())
        {
            watching.wake();
        }
    }
}

impl Connection {
    /// A connection of which `read` has been read already.
    pub fn new(stream: ClientStream, read: BytesMut, limits: Limits) -> Self {
        let (input, output, head) = (Input::new(read), Output::default(), Head::default());
        let content = Decoder::new(Framing::Length(0));
        let io = Io {
            stream,
            input,
            output,
            head,
            content,
            expects: Expects::Nothing,
            is_old: false,
            is_begun: false,
            is_at_end: false,
            is_limited: false,
            is_informing: false,
            watching: None,
        };
        Self { io: RefCell::new(io), limits }
    }

    /// Waits for the head of the next request.
    ///
    /// # Errors
    /// It is malformed, too long, or does not come to its end.
    pub fn poll_request(&self, cx: &mut Context<'_>) -> Poll<Result<Waited, Error>> {
        let io = &mut *self.io.borrow_mut();
        loop {
            let is_preface = !io.is_begun
                && io.input.bytes.starts_with(&HTTP2_PREFACE[..io.input.bytes.len().clamp(1, HTTP2_PREFACE.len())]);
            if is_preface && io.input.bytes.len() >= HTTP2_PREFACE.len() {
                return Poll::Ready(Ok(Waited::Http2));
            }
            if !is_preface && let Some(bytes) = io.head.take(&mut io.input.bytes, self.limits.head)? {
                io.is_begun = true;
                let mut head = request(&bytes, &self.limits)?;
                io.content = Decoder::new(of_request(head.version, &mut head.fields)?);
                let asked = Asked {
                    version: head.version,
                    keep_alive: headers::keeps_alive(head.version, &head.fields),
                    is_head: head.method == Method::HEAD,
                };
                io.is_old = head.version < Version::HTTP_11;
                if io.is_old {
                    // HTTP/1.0 has no such switch (RFC 9110 section 7.8), and knows no interim response (section 10.1.1).
                    head.fields.remove(&header::UPGRADE);
                    head.fields.remove(&header::EXPECT);
                }
                let expects =
                    head.fields.get(&header::EXPECT).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
                io.expects = if expects && !io.content.is_end() { Expects::Origin } else { Expects::Nothing };
                io.calm_at_end();
                return Poll::Ready(Ok(Waited::Request(Box::new(head), asked)));
            }
            if !is_preface && !may_be_request(&io.input.bytes) {
                return Poll::Ready(Err(Fault::NotHttp.into()));
            }
            if ready!(io.input.poll_fill(&mut io.stream, cx))? == 0 {
                let begun = !io.input.bytes.is_empty();
                return Poll::Ready(if begun { Err(Error::Closed { begun }) } else { Ok(Waited::Closed) });
            }
        }
    }

    /// How much of the next request has come, in bytes.
    pub fn begun(&self) -> usize {
        self.io.borrow().input.bytes.len()
    }

    /// Forgets what has come.
    pub fn forget(&self) {
        self.io.borrow_mut().input = Input::new(BytesMut::new());
    }

    /// Whether all content of the current request has come.
    pub fn is_end(&self) -> bool {
        self.io.borrow().content.is_end()
    }

    /// How much of it is to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        self.io.borrow().content.left()
    }

    /// Whether something has come that nobody has read.
    pub fn has_unread(&self) -> bool {
        let io = self.io.borrow();
        let mut byte = [MaybeUninit::uninit()];
        !io.input.bytes.is_empty() || SockRef::from(&io.stream).peek(&mut byte).is_ok_and(|count| count > 0)
    }

    /// Reads the content of the current request.
    pub fn poll_content(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let io = &mut *self.io.borrow_mut();
        loop {
            let decoded = io.content.decode(&mut io.input.bytes);
            io.note_end(cx);
            io.calm_at_end();
            match decoded {
                Ok(Progress::Data(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(Progress::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::Trailers(trailers)))),
                Ok(Progress::End) => return Poll::Ready(None),
                Ok(Progress::More) => {}
                Err(fault) => return Poll::Ready(Some(Err(fault.into()))),
            }
            if io.expects == Expects::Us {
                io.expects = Expects::Nothing;
                io.output.buffer().put_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                io.is_informing = true;
            }
            io.poll_inform(cx);
            match ready!(io.input.poll_fill(&mut io.stream, cx)) {
                Ok(0) => return Poll::Ready(Some(Err(Error::Closed { begun: true }))),
                Ok(_) => io.expects = Expects::Nothing,
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// Whether the client sends no content before it is told to go on.
    pub fn waits(&self) -> bool {
        self.io.borrow().expects != Expects::Nothing
    }

    /// Has us tell the client to go on, once somebody wants its content, if it waits for that.
    pub fn go_on(&self) -> bool {
        let waits = self.waits();
        if waits {
            self.io.borrow_mut().expects = Expects::Us;
        }
        waits
    }

    /// Has the connection watched from now on. That it cannot be keeps nobody from being answered.
    pub fn watch(&self) {
        let _ = self.io.borrow_mut().stream.watch();
    }

    /// Does something for as long as the client has not reset the connection, which nobody notices before that is watched. One that
    /// only sends no more waits for its response.
    ///
    /// # Errors
    /// It has.
    pub fn unless_reset<'a, A: Future>(
        &'a self,
        mut act: Pin<&'a mut A>,
    ) -> impl Future<Output = io::Result<A::Output>> + use<'a, A> {
        let mut timer = None;
        poll_fn(move |cx| match act.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending if self.is_end() => self.poll_reset(cx).map(Err),
            Poll::Pending => self.poll_reset_of_content(&mut timer, cx).map(Err),
        })
    }

    /// Looks whether the connection still is one: of content that the origin takes no more of nobody reads what would tell.
    fn poll_reset_of_content(&self, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<io::Error> {
        let io = &mut *self.io.borrow_mut();
        io.poll_inform(cx);
        // Whoever reads it may be another task.
        io.watching = Some(cx.waker().clone());
        let timer = timer.get_or_insert_with(|| Box::pin(sleep(LOOK_FOR_RESET)));
        while timer.as_mut().poll(cx).is_ready() {
            if socket::is_closed(&io.stream) {
                return Poll::Ready(io::ErrorKind::ConnectionReset.into());
            }
            timer.as_mut().reset(Instant::now() + LOOK_FOR_RESET);
        }
        Poll::Pending
    }

    /// Reads ahead, once all content has come, as that tells.
    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let io = &mut *self.io.borrow_mut();
        io.poll_inform(cx);
        while io.stream.is_watched() && !io.is_at_end && io.input.bytes.len() < AHEAD {
            // This needs no system call, and no buffer, while nothing has come.
            if let Err(error) = ready!(io.stream.poll_read_ready(cx)) {
                return Poll::Ready(error);
            }
            match ready!(io.input.poll_fill(&mut io.stream, cx)) {
                Ok(count) => io.is_at_end = count == 0,
                Err(error) => return Poll::Ready(error),
            }
        }
        Poll::Pending
    }

    /// How much has come from the client, and has been taken by it, in bytes.
    pub fn moved(&self) -> u64 {
        socket::moved(&self.io.borrow().stream)
    }

    /// Waits until the client has taken all that was written, for as long as it goes on taking: what it has not when the connection is
    /// reset, it never gets.
    pub async fn taken(&self) {
        let begin = Instant::now();
        let (mut before, mut last, mut pause) = (0, begin, LOOK_AGAIN);
        let look = || socket::taken_of_more(&self.io.borrow().stream);
        while let Some(taken) = look() {
            if mem::replace(&mut before, taken) != taken {
                last = Instant::now();
            }
            if last.elapsed() >= LAST_WAIT || begin.elapsed() >= LONGEST_WAIT {
                break;
            }
            // Nobody tells of it.
            sleep(pause).await;
            pause = (2 * pause).min(LAST_WAIT / 50);
        }
    }

    /// Says that no more is sent, so that what was is not lost by a reset: a client may still be sending.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn shut_down(&self) -> io::Result<()> {
        match SockRef::from(&self.io.borrow().stream).shutdown(Shutdown::Write) {
            // It has ended by itself.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        }
    }

    /// Reads what still comes, until nothing has come for as long as `silence`, and forgets it.
    ///
    /// # Errors
    /// The connection has failed.
    pub async fn discard(&self, silence: Duration) -> io::Result<()> {
        let read = || {
            poll_fn(|cx| {
                let io = &mut *self.io.borrow_mut();
                io.input.bytes.clear();
                io.input.poll_fill(&mut io.stream, cx)
            })
        };
        while timeout(silence, read()).await.unwrap_or(Ok(0))? > 0 {}
        Ok(())
    }

    /// Whether the connection has ended in both directions, as by a reset.
    pub fn is_closed(&self) -> bool {
        socket::is_closed(&self.io.borrow().stream)
    }

    /// Has the connection end in order once it is dropped.
    pub fn close_in_order(&self) {
        socket::close_in_order(&self.io.borrow().stream);
    }
}

/// The status that says what is wrong with a request.
pub fn status(fault: Fault) -> StatusCode {
    match fault {
        Fault::HeadTooLong(_) | Fault::TooManyFields(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Fault::TargetTooLong(_) => StatusCode::URI_TOO_LONG,
        _ => StatusCode::BAD_REQUEST,
    }
}
