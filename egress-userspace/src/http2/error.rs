//! Why streams and connections end before their time (RFC 9113 sections 5.4 and 7).

use std::{fmt, io, sync::Arc};

use crate::http1::Fault;

/// An error code (section 7).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(u32);

/// Declares the codes, one to a row.
macro_rules! reasons {
    ($( $name:ident = $code:literal; )*) => {
        #[expect(missing_docs, reason = "section 7 describes them under these names")]
        impl Reason {
            $( pub const $name: Self = Self($code); )*
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $( Self::$name => f.write_str(stringify!($name)), )*
                    Self(code) => write!(f, "error {code:#x}"),
                }
            }
        }
    };
}

reasons! {
    NO_ERROR = 0x0;
    PROTOCOL_ERROR = 0x1;
    INTERNAL_ERROR = 0x2;
    FLOW_CONTROL_ERROR = 0x3;
    SETTINGS_TIMEOUT = 0x4;
    STREAM_CLOSED = 0x5;
    FRAME_SIZE_ERROR = 0x6;
    REFUSED_STREAM = 0x7;
    CANCEL = 0x8;
    COMPRESSION_ERROR = 0x9;
    CONNECT_ERROR = 0xa;
    ENHANCE_YOUR_CALM = 0xb;
    INADEQUATE_SECURITY = 0xc;
    HTTP_1_1_REQUIRED = 0xd;
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<u32> for Reason {
    fn from(code: u32) -> Self {
        Self(code)
    }
}

impl From<Reason> for u32 {
    fn from(reason: Reason) -> Self {
        reason.0
    }
}

/// Who ends it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// The other end.
    Peer,
    /// We do, as the other end does not keep to the protocol.
    Us,
    /// We do, as we were asked to.
    User,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "by the other end",
            Self::Us => "as the other end does not keep to HTTP/2",
            Self::User => "by us",
        })
    }
}

/// Why a stream does not come to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// It was reset (RST_STREAM).
    #[error("the stream was reset {by}: {reason}")]
    Reset {
        /// What was said of why.
        reason: Reason,
        /// By whom.
        by: By,
    },
    /// Its head cannot be used. It is reset for that.
    #[error(transparent)]
    Head(Fault),
    /// It is reset, as nothing of what comes after its content can be kept.
    #[error("there is no room for the trailers: as much of heads and trailers is kept already as may be")]
    NoRoom,
    /// The connection was ended (GOAWAY). If the other end has ended it, it has not looked at this stream, and will not.
    #[error("the connection was ended {by}: {reason}")]
    GoAway {
        /// What was said of why.
        reason: Reason,
        /// By whom.
        by: By,
    },
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(Arc<io::Error>),
    /// The same after the other end had ended it, but for this stream and others that it had looked at.
    #[error("the connection failed after the other end had ended it ({reason}): {error}")]
    Gone {
        /// What was said of why it was ended.
        reason: Reason,
        /// How it failed.
        error: Arc<io::Error>,
    },
}

impl Error {
    /// The other end sends no more.
    pub(super) fn ended() -> Self {
        io::Error::from(io::ErrorKind::UnexpectedEof).into()
    }

    /// A reset that the other end has earned.
    pub(super) const fn reset(reason: Reason) -> Self {
        Self::Reset { reason, by: By::Us }
    }

    /// The end of a connection on which the other end does not keep to the protocol.
    pub(super) const fn go_away(reason: Reason) -> Self {
        Self::GoAway { reason, by: By::Us }
    }

    /// What is, or was, said of why, unless nothing can be said any more.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Reset { reason, .. } | Self::GoAway { reason, .. } => Some(*reason),
            Self::Head(_) => Some(Reason::PROTOCOL_ERROR),
            Self::NoRoom => Some(Reason::ENHANCE_YOUR_CALM),
            Self::Io(_) | Self::Gone { .. } => None,
        }
    }

    /// Whether it is of this stream alone.
    pub fn is_reset(&self) -> bool {
        matches!(self, Self::Reset { .. } | Self::Head(_) | Self::NoRoom)
    }

    /// Whether it is of the connection, and was said.
    pub fn is_go_away(&self) -> bool {
        matches!(self, Self::GoAway { .. })
    }

    /// Whether the other end has said so.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Reset { by: By::Peer, .. } | Self::GoAway { by: By::Peer, .. })
    }

    /// Whether the other end does not keep to the protocol.
    pub fn is_of_protocol(&self) -> bool {
        matches!(self, Self::Reset { by: By::Us, .. } | Self::GoAway { by: By::Us, .. } | Self::Head(_))
    }

    /// How the connection failed, if it did.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Io(error) | Self::Gone { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<Reason> for Error {
    /// The other end's reset.
    fn from(reason: Reason) -> Self {
        Self::Reset { reason, by: By::Peer }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}
