//! HTTP/1.1 as a forwarder needs it (RFC 9112): heads that keep the bytes they came in, content that is passed on as it
//! comes, and nothing of either while a connection is idle.

mod decode;
mod encode;
mod framing;
mod head;
mod input;
mod output;
pub mod server;
mod target;

use std::io;

pub use self::{
    decode::{Decoder, Progress, chunk_size},
    encode::{Encoder, request_head, response_head},
    framing::{Framing, announced, end_in_chunks, is_bare, is_coded, of_http2, of_request, of_response},
    head::{Head, Limits, may_be_request, may_be_response, request, response},
    input::Input,
    output::Output,
    target::uri,
};

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The head has more bytes than are taken.
    #[error("the head is longer than {0} bytes")]
    HeadTooLong(usize),
    /// The head has more fields than are taken.
    #[error("the head has more than {0} fields")]
    TooManyFields(usize),
    /// It is not HTTP/1.
    #[error("what came is not HTTP/1")]
    NotHttp,
    /// A field is not written as RFC 9112 section 5 has it.
    #[error("a header field is malformed")]
    Field,
    /// The request's target is none.
    #[error("the target is malformed")]
    Target,
    /// The request's target is longer than one can be that is looked into.
    #[error("the target is longer than {0} bytes")]
    TargetTooLong(usize),
    /// Both say where the content ends.
    #[error("there are both Content-Length and Transfer-Encoding, so that nobody can say where the content ends")]
    LengthAndCoding,
    /// They say different things, or nothing.
    #[error("Content-Length is not one number")]
    Length,
    /// Its end cannot be found, or not by everybody.
    #[error("Transfer-Encoding does not end in one \"chunked\", or has codings that nobody knows")]
    Coding,
    /// HTTP/1.0 has no transfer codings.
    #[error("HTTP/1.0 has no Transfer-Encoding")]
    OldCoding,
    /// A chunk's size is none.
    #[error("the size of a chunk is malformed")]
    ChunkSize,
    /// A chunk is longer than it says.
    #[error("a chunk does not end where it should")]
    ChunkEnd,
    /// The trailers are malformed, or too long.
    #[error("the trailers are malformed or too long")]
    Trailers,
    /// What comes next in both directions is not clear.
    #[error("it switched to another protocol before it had all of the request")]
    EarlySwitch,
}

/// Why a message does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The message is malformed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The connection ended in the middle of the message, or before its beginning.
    #[error("the connection was closed {}", if *.begun { "before the end of the message" } else { "before a message began" })]
    Closed {
        /// Whether something of the message had come.
        begun: bool,
    },
}
