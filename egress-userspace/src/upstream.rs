//! Connections to origins: made from the application's own network namespace, over TLS for configured hosts, pooled.

mod cause;
pub mod connect;
mod error;
pub mod health;
pub mod http1;
pub mod http2;
pub mod limits;
pub mod outlier;
pub mod pool;
pub mod tls;
pub mod tunnel;
pub mod warm;

use std::{cell::Cell, net::SocketAddr, rc::Rc, task::Context, time::Instant};

use rustls::{ClientConnection, HandshakeKind, ProtocolVersion};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_util::either::Either;

use self::limits::Place;
pub use self::{
    cause::Cause,
    error::{ExchangeError, Fate, NotAnswered, UpstreamError, causes},
};
use crate::telemetry::access_log::Rendered;

/// What carries a connection with an origin.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin {
    /// Says that a read has found nothing, and that the origin is sure to send so many bytes, as it has announced them: there may be no
    /// need to be woken for the first of them.
    fn expect(&mut self, _sure: u64, _cx: &mut Context<'_>) {}

    /// Whether so much of that comes before long, as it did before, that what there is may wait for it.
    fn is_coming(&self) -> bool {
        false
    }
}

impl Carrier for TcpStream {}

impl<L: Carrier, R: Carrier> Carrier for Either<L, R> {
    fn expect(&mut self, sure: u64, cx: &mut Context<'_>) {
        match self {
            Self::Left(carrier) => carrier.expect(sure, cx),
            Self::Right(carrier) => carrier.expect(sure, cx),
        }
    }

    fn is_coming(&self) -> bool {
        match self {
            Self::Left(carrier) => carrier.is_coming(),
            Self::Right(carrier) => carrier.is_coming(),
        }
    }
}

impl<C: Carrier + ?Sized> Carrier for Box<C> {
    fn expect(&mut self, sure: u64, cx: &mut Context<'_>) {
        (**self).expect(sure, cx);
    }

    fn is_coming(&self) -> bool {
        (**self).is_coming()
    }
}

/// What is known of an upstream connection from its making.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// The origin's address.
    pub address: SocketAddr,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// What TLS agreed on; none where a request is passed through as it came.
    pub tls: Option<TlsInfo>,
    /// What of it is logged, as it is written there.
    pub logged: Rendered,
}

impl ConnectionInfo {
    /// What is known of a connection to `address`.
    pub fn new(address: SocketAddr, protocol: &'static str, tls: Option<TlsInfo>) -> Self {
        Self { address, protocol, tls, logged: Rendered::default() }
    }
}

/// What TLS agreed on.
#[derive(Debug)]
pub struct TlsInfo {
    /// Such as `TLSv1.3`.
    pub version: &'static str,
    /// Such as `TLS13_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// Such as `X25519MLKEM768`.
    pub group: &'static str,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// Whether there is a client certificate to be shown on demand.
    pub client_certificate: bool,
}

impl TlsInfo {
    /// What a session agreed on.
    pub fn of(session: &ClientConnection, client_certificate: bool) -> Self {
        Self {
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "unknown",
            },
            cipher: session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown"),
            group: session.negotiated_key_exchange_group().and_then(|group| group.name().as_str()).unwrap_or("unknown"),
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
            client_certificate,
        }
    }

    /// Whether the key exchange withstands quantum computers: ML-KEM (FIPS 203) is in it.
    pub fn is_post_quantum(&self) -> bool {
        self.group.contains("MLKEM")
    }
}

/// The protocols that an origin may choose from (ALPN, RFC 7301).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer {
    /// HTTP/2 and HTTP/1.1.
    Both,
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/2 alone.
    Http2,
}

/// How a connection is to be made.
#[derive(Clone, Debug)]
pub struct Order {
    /// What the origin may choose from.
    pub offer: Offer,
    /// Whether it was held against the address already that it does not come.
    pub blame: Blame,
}

impl Order {
    /// A new one.
    pub fn new(offer: Offer) -> Self {
        Self { offer, blame: Blame::default() }
    }
}

/// Whether it was held against an address already that a connection does not come: it is once, whoever has begun it, and however many
/// wait for it.
#[derive(Clone, Default, Debug)]
pub struct Blame(Rc<Cell<bool>>);

impl Blame {
    /// Holds it against the address from now on. Gives whether that is the first time.
    pub fn lay(&self) -> bool {
        !self.0.replace(true)
    }
}

/// A connection that was just made.
pub enum Made {
    /// For one request at a time.
    Http1(http1::Exclusive),
    /// For many.
    Http2(http2::Shared),
}

impl Made {
    /// The same with its place.
    fn with(self, place: Option<Place>) -> Self {
        match self {
            Self::Http1(mut exclusive) => {
                exclusive.place = place;
                Self::Http1(exclusive)
            }
            Self::Http2(shared) => {
                shared.hold(place);
                Self::Http2(shared)
            }
        }
    }
}

/// A connection on which a request can be sent.
pub enum Connection {
    /// Nobody else's until its exchange has ended.
    Http1(http1::Exclusive),
    /// Shared with others.
    Http2(http2::Stream),
}

/// What comes after the head by which an origin has switched protocols.
pub type Switched = Either<http1::Switched, crate::http2::Switched<crate::http2::Writer, http2::Stream>>;

impl Connection {
    /// The connection as it is, if its origin has switched protocols.
    pub fn switched(self) -> Option<Switched> {
        match self {
            Self::Http1(exclusive) => Some(Either::Left(exclusive.switched())),
            Self::Http2(stream) => stream.switched().map(Either::Right),
        }
    }

    /// Facts for the log.
    pub fn info(&self) -> &Rc<ConnectionInfo> {
        match self {
            Self::Http1(exclusive) => &exclusive.info,
            Self::Http2(stream) => &stream.connection().info,
        }
    }

    /// When it was made.
    pub fn made(&self) -> Instant {
        match self {
            Self::Http1(exclusive) => exclusive.made,
            Self::Http2(stream) => stream.connection().made(),
        }
    }

    /// Whether it was there before the request.
    pub fn is_reused(&self) -> bool {
        match self {
            Self::Http1(exclusive) => exclusive.was_idle,
            Self::Http2(stream) => stream.reused,
        }
    }

    /// Whether it speaks HTTP/2, and the request is the first one on it.
    pub fn is_first_of_http2(&self) -> bool {
        matches!(self, Self::Http2(stream) if stream.is_first)
    }

    /// Whether it speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Whether some of a request is still to be sent.
    pub fn is_uploading(&self) -> bool {
        match self {
            Self::Http1(exclusive) => exclusive.is_uploading(),
            Self::Http2(stream) => stream.is_uploading(),
        }
    }

    /// Sends what is left of a request, of which all has come, after the response.
    pub async fn end_upload(&mut self) {
        match self {
            Self::Http1(exclusive) => exclusive.end_upload().await,
            Self::Http2(stream) => stream.end_upload().await,
        }
    }

    /// Why a request got no response on it.
    pub fn failure(&self, source: ExchangeError) -> UpstreamError {
        UpstreamError::of_exchange(self.info(), source)
    }
}
