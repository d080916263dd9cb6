//! Bodies on their way through: streamed, counted, never held back.

mod request;
mod response;

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame};

pub use self::{
    request::{Content, RequestBody},
    response::{Held, Lease, ResponseBody},
};
use crate::{
    http1::{self, server},
    upstream::{ExchangeError, http1::Wire},
};

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
    /// The client neither sends nor takes anything.
    #[error("nothing came from the client, and it took nothing, for {0:?} (--idle-timeout)")]
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

impl From<hyper::Error> for BodyError {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// Content as it comes in.
pub enum Incoming {
    /// From an application, over HTTP/1.
    Client(Rc<server::Connection>),
    /// From an origin, over HTTP/1.1.
    Http1(Rc<RefCell<Wire>>),
    /// Over HTTP/2, from either.
    Http2(hyper::body::Incoming),
}

impl Incoming {
    /// Reads on.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Client(connection) => {
                connection.poll_content(cx).map(|frame| frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Self::Http1(wire) => wire.borrow_mut().poll_content(cx),
            Self::Http2(incoming) => Poll::Ready(match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                // hyper takes a reset without an error for the end.
                None if !incoming.is_end_stream() => Some(Err(BodyError::Reset)),
                frame => frame.map(|frame| frame.map_err(BodyError::from)),
            }),
        }
    }

    /// Whether all has come.
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Client(connection) => connection.is_end(),
            Self::Http1(wire) => wire.borrow().is_end(),
            Self::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    /// How many bytes are to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        match self {
            Self::Client(connection) => connection.left(),
            Self::Http1(wire) => wire.borrow().left(),
            Self::Http2(incoming) => incoming.size_hint().exact(),
        }
    }
}
