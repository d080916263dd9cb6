//! Bodies on their way through: streamed, counted, never held back for long.

mod request;
mod response;

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

pub use self::{
    request::{Content, RequestBody},
    response::{Held, Lease, ResponseBody},
};
use crate::{
    head::Fields,
    http1::{self, server},
    http2::{self, Reason, Received},
    upstream::{ExchangeError, http1::Wire},
};

/// A piece of what a message has after its head.
#[derive(Debug)]
pub enum Frame {
    /// Content.
    Data(Bytes),
    /// Fields after all content (RFC 9110 section 6.5).
    Trailers(Fields),
}

impl Frame {
    /// The content that it is.
    pub fn data_ref(&self) -> Option<&Bytes> {
        match self {
            Self::Data(data) => Some(data),
            Self::Trailers(_) => None,
        }
    }
}

/// What a message has after its head, on its way through.
pub trait Body {
    /// Reads on. None at the end.
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>>;

    /// Whether all has come.
    fn is_end_stream(&self) -> bool;

    /// Notes that what was read last goes nowhere, as nobody wants it any more.
    fn discard_last(&mut self) {}

    /// How it is told on a stream that it does not come to its end.
    fn reason(&self, error: &BodyError) -> Reason {
        error.reason()
    }
}

/// Why a body does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Where it comes from it breaks off.
    #[error(transparent)]
    Broken(#[from] ExchangeError),
    /// The sender gave up (RST_STREAM), though without an error, before the end.
    #[error("the stream was reset before its end")]
    Reset,
    /// The route's time for the exchange is over.
    #[error("the response took longer than the timeout of its route")]
    TimedOut,
    /// Nothing comes from the client or goes to it, be it that there is nothing.
    #[error("nothing came from the client, and nothing went to it, for {0:?} (--idle-timeout)")]
    Stalled(Duration),
    /// The request is being sent anew, by somebody else.
    #[error("the request was given up and is sent again")]
    Superseded,
}

impl From<http1::Error> for BodyError {
    fn from(error: http1::Error) -> Self {
        Self::Broken(error.into())
    }
}

impl From<http1::Fault> for BodyError {
    fn from(fault: http1::Fault) -> Self {
        http1::Error::from(fault).into()
    }
}

impl From<http2::Error> for BodyError {
    fn from(error: http2::Error) -> Self {
        if error.is_reset() && error.reason() == Some(Reason::NO_ERROR) {
            Self::Reset
        } else {
            Self::Broken(error.into())
        }
    }
}

impl BodyError {
    /// Whether the connection that it comes by is gone.
    pub fn is_of_connection(&self) -> bool {
        match self {
            Self::Broken(ExchangeError::Http1(error)) => !matches!(error, http1::Error::Fault(_)),
            Self::Broken(ExchangeError::Http2(error)) => error.io().is_some(),
            _ => false,
        }
    }

    /// How it is told on a stream.
    pub fn reason(&self) -> Reason {
        match self {
            // One without an error would look like the end of all.
            Self::Broken(ExchangeError::Http2(error)) => {
                error.reason().filter(|reason| *reason != Reason::NO_ERROR).unwrap_or(Reason::INTERNAL_ERROR)
            }
            Self::Broken(ExchangeError::Content(error)) => error.reason(),
            _ => Reason::INTERNAL_ERROR,
        }
    }
}

/// Content as it comes in.
pub enum Incoming {
    /// From an application, over HTTP/1.
    Client(Rc<server::Connection>),
    /// From an origin, over HTTP/1.1.
    Http1(Rc<RefCell<Wire>>),
    /// Over HTTP/2, from either.
    Http2(Received),
}

impl Incoming {
    /// Reads on.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match self {
            Self::Client(connection) => {
                connection.poll_content(cx).map(|frame| frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Self::Http1(wire) => wire.borrow_mut().poll_content(cx),
            Self::Http2(received) => received.poll_frame(cx),
        }
    }

    /// Whether all has come.
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Client(connection) => connection.is_end(),
            Self::Http1(wire) => wire.borrow().is_end(),
            Self::Http2(received) => received.is_end_stream(),
        }
    }

    /// Whether so much more comes before long that what there is may wait for it.
    pub fn is_coming(&self) -> bool {
        matches!(self, Self::Http1(wire) if wire.borrow().is_coming())
    }

    /// How many bytes are to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        match self {
            Self::Client(connection) => connection.left(),
            Self::Http1(wire) => wire.borrow().left(),
            Self::Http2(received) => received.left(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_reset_is_passed_on_unless_it_looks_like_none() {
        let reason = |reason: Reason| BodyError::from(http2::Error::from(reason)).reason();
        assert_eq!(reason(Reason::CANCEL), Reason::CANCEL);
        assert_eq!(reason(Reason::NO_ERROR), Reason::INTERNAL_ERROR);
        assert_eq!(BodyError::from(http1::Error::Closed { begun: true }).reason(), Reason::INTERNAL_ERROR);
    }
}
