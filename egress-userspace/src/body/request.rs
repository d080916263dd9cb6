//! The content of requests: from the client to the origin, and once more where it has to be sent again.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    mem,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;

use super::{Body, BodyError, Frame, Incoming};
use crate::{head::ResponseHead, http2::Reason};

/// How much of a request body is kept for the case that it must be sent again, in bytes.
const KEPT: usize = 64 * 1024;
/// What a piece of it takes besides.
const PIECE: usize = 64;
/// Pieces that are shorter, in bytes, are kept as copies: the buffer that they were read into can be many times larger.
const SHORT: usize = 16 * 1024;

/// The content of a request as it comes from the client; shared between the bodies that carry it and the exchange.
pub struct Content {
    /// None of a copy.
    incoming: RefCell<Option<Incoming>>,
    /// What was read of it, for as long as it may have to be sent again.
    kept: RefCell<Kept>,
    /// Which body may read on: the last one.
    body: Cell<u32>,
    /// How many of the chunks that are kept it has passed on.
    passed: Cell<usize>,
    bytes: Cell<u64>,
    complete: Cell<bool>,
}

/// What was read of a request's content.
enum Kept {
    /// Nothing, as it will not be sent again; so far nothing was read either.
    Off,
    /// All of it, which takes so many bytes.
    All(Vec<Bytes>, usize),
    /// What the last body has still to pass on, as it will not be sent again.
    Rest(VecDeque<Bytes>),
    /// Not all of it.
    Lost,
}

impl Content {
    /// The content that `incoming` brings.
    pub fn new(incoming: Incoming) -> Rc<Self> {
        let complete = Cell::new(incoming.is_end_stream());
        Rc::new(Self {
            incoming: RefCell::new(Some(incoming)),
            kept: RefCell::new(Kept::Off),
            body: Cell::new(0),
            passed: Cell::new(0),
            bytes: Cell::new(0),
            complete,
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.get() == 0 && self.is_at_end()
    }

    /// What comes from the client after that is of its next request.
    fn is_at_end(&self) -> bool {
        self.is_complete() || self.incoming.borrow().as_ref().is_none_or(Incoming::is_end_stream)
    }

    /// The same content once more, if all of it was read and kept.
    pub fn copy(&self) -> Option<Rc<Self>> {
        let kept = match &*self.kept.borrow() {
            Kept::All(chunks, size) => Kept::All(chunks.clone(), *size),
            Kept::Off if self.is_empty() => Kept::All(Vec::new(), 0),
            Kept::Off | Kept::Rest(_) | Kept::Lost => return None,
        };
        self.is_complete().then(|| {
            Rc::new(Self {
                incoming: RefCell::new(None),
                kept: RefCell::new(kept),
                body: Cell::new(0),
                passed: Cell::new(0),
                bytes: Cell::new(self.bytes.get()),
                complete: Cell::new(true),
            })
        })
    }

    /// Bytes that were read from the client.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Whether the client has sent all of it.
    pub fn is_complete(&self) -> bool {
        self.complete.get()
    }

    /// Whether all of it or of an announced length has come, after which over HTTP/2 trailers can follow.
    pub fn has_all(&self) -> bool {
        self.is_complete() || self.incoming.borrow().as_ref().is_some_and(|incoming| incoming.left() == Some(0))
    }

    /// Takes it for complete, of which all has come that its receiver has room for.
    pub fn finish(&self) {
        self.complete.set(true);
    }

    /// Lets the client go if it has sent all: what of that is still on its way to the origin can outlive it.
    pub fn let_go(&self) {
        if self.is_complete() {
            *self.incoming.borrow_mut() = None;
        }
    }

    /// A body that carries it from the beginning. Earlier ones come to an end.
    pub fn body(self: &Rc<Self>) -> RequestBody {
        self.body.set(self.body.get() + 1);
        self.passed.set(0);
        RequestBody { content: self.clone(), number: self.body.get() }
    }

    /// Keeps what is read from now on, up to a limit, so that it can be sent again.
    pub fn keep(&self) {
        let mut kept = self.kept.borrow_mut();
        if matches!(*kept, Kept::Off) {
            *kept = if self.bytes.get() == 0 { Kept::All(Vec::new(), 0) } else { Kept::Lost };
        }
    }

    /// Keeps it no longer, as it will not be sent again.
    pub fn forget(&self) {
        let mut kept = self.kept.borrow_mut();
        *kept = match mem::replace(&mut *kept, Kept::Lost) {
            Kept::All(mut chunks, _) if chunks.len() > self.passed.get() => {
                Kept::Rest(chunks.drain(self.passed.get()..).collect())
            }
            Kept::Rest(rest) => Kept::Rest(rest),
            Kept::All(..) | Kept::Off | Kept::Lost => Kept::Lost,
        };
    }

    /// What was kept, and the last body has still to pass on.
    fn next_kept(&self) -> Option<Bytes> {
        match &mut *self.kept.borrow_mut() {
            Kept::All(chunks, _) => {
                let chunk = chunks.get(self.passed.get())?;
                self.passed.set(self.passed.get() + 1);
                Some(chunk.clone())
            }
            Kept::Rest(rest) => rest.pop_front(),
            Kept::Off | Kept::Lost => None,
        }
    }

    /// Whether there is any.
    fn has_kept(&self) -> bool {
        match &*self.kept.borrow() {
            Kept::All(chunks, _) => chunks.len() > self.passed.get(),
            Kept::Rest(rest) => !rest.is_empty(),
            Kept::Off | Kept::Lost => false,
        }
    }

    /// Whether a new body would carry all of it.
    pub fn is_repeatable(&self) -> bool {
        match *self.kept.borrow() {
            Kept::All(..) => true,
            Kept::Off => self.bytes.get() == 0,
            Kept::Rest(_) | Kept::Lost => false,
        }
    }

    /// Whether the client sends none before it is told to go on.
    pub fn is_waiting(&self) -> bool {
        matches!(&*self.incoming.borrow(), Some(Incoming::Client(connection)) if connection.waits())
    }

    /// Whether some has come from the client that nobody has taken.
    pub fn has_unread(&self) -> bool {
        matches!(&*self.incoming.borrow(), Some(Incoming::Client(connection)) if connection.has_unread())
    }

    /// Has us tell the client to go on, if it waits for that.
    pub fn go_on(&self) -> bool {
        matches!(&*self.incoming.borrow(), Some(Incoming::Client(connection)) if connection.go_on())
    }

    /// Passes an interim response on to the client.
    pub fn inform(&self, head: &ResponseHead, cx: &mut Context<'_>) {
        match &*self.incoming.borrow() {
            Some(Incoming::Client(connection)) => connection.inform(head, cx),
            Some(Incoming::Http2(received)) => received.inform(head),
            Some(Incoming::Http1(_)) | None => {}
        }
    }

    /// Reads on.
    pub fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut incoming = self.incoming.borrow_mut();
        let Some(incoming) = incoming.as_mut().filter(|_| !self.is_complete()) else { return Poll::Ready(None) };
        let frame = ready!(incoming.poll_frame(cx));
        if frame.is_none() || incoming.is_end_stream() {
            self.complete.set(true);
        }
        if let Some(Ok(frame)) = &frame {
            let data = frame.data_ref();
            self.bytes.set(self.bytes.get() + data.map_or(0, |data| data.len() as u64));
            let mut kept = self.kept.borrow_mut();
            match (&mut *kept, data) {
                (Kept::All(chunks, size), Some(data)) if *size + data.len() <= KEPT => {
                    // Whoever reads it passes it on.
                    self.passed.set(self.passed.get() + 1);
                    chunks.push(if data.len() < SHORT { Bytes::copy_from_slice(data) } else { data.clone() });
                    *size += data.len() + PIECE;
                }
                // Too much, or trailers.
                (Kept::All(..), _) => *kept = Kept::Lost,
                (Kept::Off | Kept::Rest(_) | Kept::Lost, _) => {}
            }
        }
        Poll::Ready(frame)
    }
}

/// The body of a request on its way to the origin.
pub struct RequestBody {
    content: Rc<Content>,
    number: u32,
}

impl RequestBody {
    /// The content that it carries.
    pub fn content(&self) -> &Rc<Content> {
        &self.content
    }
}

impl Body for RequestBody {
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if self.number != self.content.body.get() {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(chunk) = self.content.next_kept() {
            return Poll::Ready(Some(Ok(Frame::Data(chunk))));
        }
        self.content.poll_read(cx)
    }

    fn is_end_stream(&self) -> bool {
        !self.content.has_kept() && self.content.is_at_end()
    }

    fn reason(&self, error: &BodyError) -> Reason {
        // Who is gone wants no answer, however that is noticed first.
        if error.is_of_connection() { Reason::CANCEL } else { error.reason() }
    }
}
