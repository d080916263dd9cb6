//! Streams for their users.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::StatusCode;

use super::{
    By, Error, Reason,
    core::{Core, note},
    heads::Sent,
    stream::Stream,
};
use crate::head::{Fields, ResponseHead};

/// A stream in use. When the last of these is dropped before the stream has ended, it is reset.
pub(super) struct Handle {
    core: Rc<RefCell<Core>>,
    key: usize,
}

impl Handle {
    /// The one that is counted already.
    pub(super) fn new(core: Rc<RefCell<Core>>, key: usize) -> Self {
        Self { core, key }
    }

    fn with<R>(&self, look: impl FnOnce(&mut Stream) -> R) -> R {
        look(&mut self.core.borrow_mut().streams[self.key])
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        self.with(|stream| stream.users += 1);
        Self { core: self.core.clone(), key: self.key }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.borrow_mut().release(self.key);
    }
}

/// What comes on a stream.
pub struct Reader(pub(super) Handle);

impl Reader {
    /// Waits for an interim response. None when the response has come, or comes no more.
    pub fn poll_interim(&self, cx: &Context<'_>) -> Poll<Option<ResponseHead>> {
        self.0.with(|stream| match stream.interim.pop_front() {
            Some(interim) => Poll::Ready(Some(interim)),
            None if stream.has_head || stream.error.is_some() => Poll::Ready(None),
            None => {
                note(&mut stream.reader, cx);
                Poll::Pending
            }
        })
    }

    /// Waits for the head of the response.
    ///
    /// # Errors
    /// There is none.
    pub fn poll_head(&self, cx: &Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        self.0.with(|stream| match (stream.head.take(), &stream.error) {
            (Some(head), _) => Poll::Ready(Ok(head)),
            (None, Some(error)) => Poll::Ready(Err(error.clone())),
            (None, None) => {
                note(&mut stream.reader, cx);
                Poll::Pending
            }
        })
    }

    /// Waits for content. None when all has come.
    ///
    /// # Errors
    /// It does not come to its end.
    pub fn poll_data(&self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let core = &mut *self.0.core.borrow_mut();
        let stream = &mut core.streams[self.0.key];
        if let Some(piece) = stream.queue.pop() {
            core.read(self.0.key, piece.len());
            return Poll::Ready(Some(Ok(piece)));
        }
        match &stream.error {
            _ if stream.is_received => Poll::Ready(None),
            Some(error) => Poll::Ready(Some(Err(error.clone()))),
            None => {
                note(&mut stream.reader, cx);
                Poll::Pending
            }
        }
    }

    /// What has come after the content, once that has ended.
    pub fn trailers(&self) -> Option<Fields> {
        self.0.with(|stream| stream.trailers.take())
    }

    /// Whether all has come and was read.
    pub fn is_end(&self) -> bool {
        self.0.with(|stream| stream.is_received && stream.queue.len() == 0 && stream.trailers.is_none())
    }
}

/// What goes on a stream.
pub struct Writer(pub(super) Handle);

impl Writer {
    /// Sends a head: those of interim responses, which are left out while there is no room unless they are waited for, and then that of
    /// the response, which may be all of it.
    ///
    /// # Errors
    /// The stream has ended, or the response was sent before.
    pub fn respond(&self, head: &ResponseHead, is_all: bool) -> Result<(), Error> {
        let mut core = self.0.core.borrow_mut();
        core.check_sendable(self.0.key)?;
        let is_answered = &mut core.streams[self.0.key].is_answered;
        if std::mem::replace(is_answered, *is_answered || !head.status.is_informational()) {
            return Err(Error::Reset { reason: Reason::INTERNAL_ERROR, by: By::User });
        }
        let is_awaited = !head.status.is_informational() || head.status == StatusCode::CONTINUE;
        if is_awaited || core.has_room_for_more() {
            core.send_head(self.0.key, &Sent::Response(head), is_all);
        }
        Ok(())
    }

    /// Waits until so little is to be written that a head or trailers may be added, or the stream has ended.
    pub fn poll_room_for_head(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.core.borrow_mut().poll_room_for_head(self.0.key, cx)
    }

    /// Waits for room.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        self.0.core.borrow_mut().poll_room(self.0.key, cx)
    }

    /// Sends as much as there is room for, and leaves the rest. If nothing is left and this `is_last`, the stream ends.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn send(&self, data: &mut Bytes, is_last: bool) -> Result<(), Error> {
        self.0.core.borrow_mut().send_data(self.0.key, data, is_last)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// It has ended.
    pub fn end(&self) -> Result<(), Error> {
        self.send(&mut Bytes::new(), true)
    }

    /// Sends what comes after the content.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn send_trailers(&self, trailers: &Fields) -> Result<(), Error> {
        self.0.core.borrow_mut().send_trailers(self.0.key, trailers)
    }

    /// Waits for the stream to end before its time.
    pub fn poll_reset(&self, cx: &Context<'_>) -> Poll<Error> {
        self.0.with(|stream| match &stream.error {
            Some(error) => Poll::Ready(error.clone()),
            None => {
                note(&mut stream.writer, cx);
                Poll::Pending
            }
        })
    }

    /// Ends the stream before its time.
    pub fn reset(&self, reason: Reason) {
        self.0.core.borrow_mut().reset(self.0.key, Error::Reset { reason, by: By::User });
    }
}
