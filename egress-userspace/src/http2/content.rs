//! Content that comes and goes on streams.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;

use super::{Reader, Writer};
use crate::{
    body::{Body, BodyError, Frame},
    head::{Fields, ResponseHead},
    http1,
};

/// How many interim responses to one request are passed on: nothing else limits them.
const MOST_PASSED_ON: u32 = 100;

/// Content as it comes in.
pub struct Received {
    /// None where another protocol has begun.
    reader: Option<Reader>,
    /// How much is to come, if that is known.
    left: Option<u64>,
    /// Who is told of interim responses, if this is a request's.
    responder: Option<Rc<Writer>>,
    /// How many those were.
    interim: Cell<u32>,
}

impl Received {
    /// The content of a message with these fields. That it is as long as they say is seen to already.
    pub fn new(reader: Reader, fields: &Fields) -> Self {
        let left = http1::announced(fields).or(reader.is_end().then_some(0));
        Self { reader: Some(reader), left, ..Self::nothing() }
    }

    /// None.
    pub fn nothing() -> Self {
        Self { reader: None, left: Some(0), responder: None, interim: Cell::new(0) }
    }

    /// The same, of a request that is answered by `responder`.
    #[must_use]
    pub fn answered_by(self, responder: Rc<Writer>) -> Self {
        Self { responder: Some(responder), ..self }
    }

    /// Passes an interim response on to who has sent this.
    pub fn inform(&self, head: &ResponseHead) {
        self.interim.set(self.interim.get() + 1);
        if let Some(responder) = &self.responder
            && self.interim.get() <= MOST_PASSED_ON
        {
            // If it cannot be told, the response cannot be either.
            let _ = responder.respond(head, false);
        }
    }

    /// Reads on.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let Some(reader) = &self.reader else { return Poll::Ready(None) };
        let next = match ready!(reader.poll_data(cx)) {
            Some(Ok(data)) => {
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                Some(Ok(Frame::Data(data)))
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => reader.trailers().map(|trailers| Ok(Frame::Trailers(trailers))),
        };
        Poll::Ready(next)
    }

    /// Whether all has come.
    pub fn is_end_stream(&self) -> bool {
        self.reader.as_ref().is_none_or(Reader::is_end)
    }

    /// How many bytes are to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        self.left
    }
}

/// Content as it goes out.
pub struct Sending<B, W = Writer> {
    writer: W,
    body: B,
    /// What is being sent.
    piece: Bytes,
    /// What follows, if that is known.
    next: Option<Next>,
}

/// What is to be sent next.
enum Next {
    Piece(Bytes),
    Trailers(Fields),
    End,
}

impl<B, W> Sending<B, W>
where
    B: Body + Unpin,
    W: AsRef<Writer>,
{
    /// Content that is to be sent after a head.
    pub fn new(writer: W, body: B) -> Self {
        Self { writer, body, piece: Bytes::new(), next: None }
    }

    /// Sends on. Is ready when nothing more is to be sent; the other end may not have wanted all of it.
    ///
    /// # Errors
    /// The content does not come to its end. The other end sees that.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        // What is awaited, content or room for it, does not come after that.
        let mut ended = self.writer.as_ref().poll_reset(cx).is_ready();
        while !ended {
            if !self.piece.is_empty() {
                match self.writer.as_ref().poll_room(cx) {
                    Poll::Ready(room) => ended = room.is_err() || self.send_piece(),
                    Poll::Pending => {
                        // One more is fetched meanwhile, and no others.
                        if self.next.is_none() {
                            self.next = Some(ready!(self.poll_next(cx))?);
                        }
                        return Poll::Pending;
                    }
                }
                continue;
            }
            let next = match self.next.take() {
                Some(next) => next,
                None => ready!(self.poll_next(cx))?,
            };
            // It is over whether or not the other end hears of it.
            ended = match next {
                Next::Piece(piece) if piece.is_empty() => self.body.is_end_stream() && self.send_piece(),
                Next::Piece(piece) => {
                    self.piece = piece;
                    false
                }
                Next::Trailers(trailers) => {
                    // Nothing but that bounds them: after each, another stream can begin.
                    if self.writer.as_ref().poll_room_for_head(cx).is_pending() {
                        self.next = Some(Next::Trailers(trailers));
                        return Poll::Pending;
                    }
                    let _ = self.writer.as_ref().send_trailers(&trailers);
                    true
                }
                Next::End => {
                    let _ = self.writer.as_ref().end();
                    true
                }
            };
        }
        if !self.piece.is_empty() || matches!(self.next, Some(Next::Piece(_) | Next::Trailers(_))) {
            self.body.discard_last();
        }
        Poll::Ready(Ok(()))
    }

    /// Sends of the piece what there is room for. Says whether nothing is to be sent after that.
    fn send_piece(&mut self) -> bool {
        let is_last = match &self.next {
            None => self.body.is_end_stream(),
            Some(next) => matches!(next, Next::End),
        };
        self.writer.as_ref().send(&mut self.piece, is_last).is_err() || is_last && self.piece.is_empty()
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Next, BodyError>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose();
        Poll::Ready(match frame {
            Ok(Some(Frame::Data(data))) => Ok(Next::Piece(data)),
            Ok(Some(Frame::Trailers(trailers))) => Ok(Next::Trailers(trailers)),
            Ok(None) => Ok(Next::End),
            Err(error) => {
                self.break_off(&error);
                Err(error)
            }
        })
    }

    /// Has the other end see that the content does not come to its end.
    pub fn break_off(&mut self, error: &BodyError) {
        self.writer.as_ref().reset(self.body.reason(error));
    }

    /// What is sent.
    pub fn body(&mut self) -> &mut B {
        &mut self.body
    }
}

impl AsRef<Self> for Writer {
    fn as_ref(&self) -> &Self {
        self
    }
}
