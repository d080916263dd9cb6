//! Why there is no response, and what that says of the request.

use std::{error::Error, io, iter, net::SocketAddr, time::Duration};

use rustls::AlertDescription;

use super::{Cause, ConnectionInfo, limits::Kind, tls::Refusal, tunnel::TunnelError};
use crate::{body::BodyError, http1, http2};

/// A request that got no response on its connection.
pub struct NotAnswered {
    /// Whether nothing of it was sent.
    pub unsent: bool,
    /// Whether something of a response has come, be it an interim one.
    pub heard: bool,
    /// Why.
    pub error: ExchangeError,
}

impl NotAnswered {
    /// As the origin has closed the connection instead.
    pub fn closed() -> Self {
        Self { unsent: false, heard: false, error: http1::Error::Closed { begun: false }.into() }
    }

    /// What became of the request.
    pub fn fate(&self) -> Fate {
        match Fate::of(&self.error) {
            // It would not come to its end on another connection either.
            _ if matches!(self.error, ExchangeError::Content(_)) => Fate::Failed,
            fate @ Fate::NeedsHttp1 { .. } => fate,
            _ if self.unsent => Fate::Unprocessed { gone: true },
            Fate::Lost if self.heard => Fate::Failed,
            fate => fate,
        }
    }
}

/// Why an exchange does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// HTTP/1.1 has failed.
    #[error(transparent)]
    Http1(#[from] http1::Error),
    /// HTTP/2 has failed. The error is no source: `causes` would say it twice.
    #[error("HTTP/2: {0}")]
    Http2(http2::Error),
    /// The content of the request has not come to its end.
    #[error("the content of the request: {0}")]
    Content(Box<BodyError>),
}

impl From<http2::Error> for ExchangeError {
    fn from(error: http2::Error) -> Self {
        Self::Http2(error)
    }
}

impl From<BodyError> for ExchangeError {
    fn from(error: BodyError) -> Self {
        Self::Content(Box::new(error))
    }
}

impl ExchangeError {
    /// The error of the connection, if it is one.
    fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Http1(http1::Error::Io(error)) => Some(error),
            Self::Http2(error) => error.io(),
            Self::Http1(_) | Self::Content(_) => None,
        }
    }
}

/// Why a request got no response from its origin.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// There is as much under way as the settings allow.
    #[error("the limit of {} {limit}", .kind.limited())]
    Overflow {
        /// Of what.
        kind: Kind,
        /// The limit.
        limit: u32,
    },
    /// There is no address to try.
    #[error("the name has no known address")]
    NoAddress,
    /// No address is to be tried for now.
    #[error("all {count} addresses are left out by outlierDetection")]
    LeftOut {
        /// How many there are.
        count: usize,
    },
    /// All addresses failed; this is the last one's failure.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Connecting took too long.
    #[error("no TCP connection to {address} within {limit:?}")]
    ConnectTimeout {
        /// The address.
        address: SocketAddr,
        /// The limit.
        limit: Duration,
    },
    /// The proxy on the way makes no tunnel.
    #[error("no tunnel to {host} through the proxy at {proxy}: {source}")]
    Tunnel {
        /// The proxy's address.
        proxy: SocketAddr,
        /// The origin, as the proxy was asked for it.
        host: String,
        /// Why.
        source: TunnelError,
    },
    /// TLS could not be made, or the origin could not be verified.
    #[error("TLS with {host} at {address} failed: {source}")]
    Tls {
        /// Whom we wanted to talk to.
        host: String,
        /// The address.
        address: SocketAddr,
        /// What was wrong.
        source: Refusal,
    },
    /// The origin ended TLS after the handshake.
    #[error("TLS with {address} ended: {source}")]
    TlsEnded {
        /// The address.
        address: SocketAddr,
        /// What was wrong.
        source: Refusal,
    },
    /// The connection was made, but the exchange failed.
    #[error("{address}: {}", causes(source))]
    Http {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: ExchangeError,
    },
}

impl UpstreamError {
    /// The failure of an exchange on a connection that was made.
    pub fn of_exchange(info: &ConnectionInfo, source: ExchangeError) -> Self {
        match source.io().and_then(|error| error.get_ref()?.downcast_ref::<rustls::Error>()) {
            Some(error) => Self::of_ended(info, error),
            None => Self::Http { address: info.address, source },
        }
    }

    /// The end of TLS after the handshake: with TLS 1.3 that is when an origin tells that it misses a client certificate.
    pub(super) fn of_ended(info: &ConnectionInfo, error: &rustls::Error) -> Self {
        let client_certificate = info.tls.as_ref().is_some_and(|tls| tls.client_certificate);
        Self::TlsEnded { address: info.address, source: Refusal::of_ended(error, client_certificate) }
    }

    /// Whether the address has failed, as another might not: the connection broke during the handshake, or before it in a
    /// proxy's hands, or the proxy there is out of order.
    pub fn is_of_address(&self) -> bool {
        match self {
            Self::Tunnel { source, .. } => source.is_of_proxy(),
            _ => matches!(self.cause(), Cause::HandshakeReset | Cause::HandshakeClosed),
        }
    }

    /// The address that it speaks against, if it does, where one was `chosen`.
    pub fn blamed(&self, chosen: Option<SocketAddr>) -> Option<SocketAddr> {
        // That it is nobody of this name says nothing of what it is for others, and that there is no room here nothing at all.
        let is_its_own = !matches!(self.cause(), Cause::WrongName | Cause::UnknownName | Cause::OutOfResources);
        self.address().or(chosen).filter(|_| is_its_own)
    }

    /// What it is counted as.
    pub fn cause(&self) -> Cause {
        use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
        match self {
            Self::Overflow { .. } => Cause::Overflow,
            Self::NoAddress => Cause::NoAddress,
            Self::LeftOut { .. } => Cause::LeftOut,
            Self::Connect { source, address } if is_shortage(source, *address) => Cause::OutOfResources,
            Self::Connect { source, .. } => match source.kind() {
                ConnectionRefused => Cause::ConnectionRefused,
                HostUnreachable | NetworkUnreachable | AddrNotAvailable => Cause::Unroutable,
                TimedOut => Cause::ConnectTimeout,
                _ => Cause::ConnectFailed,
            },
            Self::ConnectTimeout { .. } => Cause::ConnectTimeout,
            Self::Tunnel { source: TunnelError::Timeout, .. } => Cause::TunnelTimeout,
            Self::Tunnel { source: TunnelError::Broken(_), .. } => Cause::TunnelBroken,
            Self::Tunnel { .. } => Cause::TunnelRefused,
            Self::Tls { source, .. } | Self::TlsEnded { source, .. } => source.cause,
            Self::Http { source: ExchangeError::Http1(error), .. } => match error {
                http1::Error::Closed { .. } => Cause::HttpIncomplete,
                http1::Error::Fault(_) => Cause::HttpProtocol,
                http1::Error::Io(_) => Cause::ConnectionLost,
            },
            Self::Http { source: ExchangeError::Content(_), .. } => Cause::ConnectionLost,
            Self::Http { source: ExchangeError::Http2(error), .. } => match error {
                error if error.is_remote() => Cause::HttpIncomplete,
                error if error.is_of_protocol() => Cause::HttpProtocol,
                _ => Cause::ConnectionLost,
            },
        }
    }

    /// The address that it is about, if it is one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Overflow { .. } | Self::NoAddress | Self::LeftOut { .. } => None,
            Self::Connect { address, .. }
            | Self::ConnectTimeout { address, .. }
            | Self::Tunnel { proxy: address, .. }
            | Self::Tls { address, .. }
            | Self::TlsEnded { address, .. }
            | Self::Http { address, .. } => Some(*address),
        }
    }

    /// The alert by which the origin ended TLS, if it did.
    pub fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Tls { source, .. } | Self::TlsEnded { source, .. } => source.alert,
            _ => None,
        }
    }
}

/// Whether a connection could not be made for want of what the node has too little of. That says nothing of the other end.
pub(super) fn is_shortage(error: &io::Error, address: SocketAddr) -> bool {
    match error.raw_os_error() {
        // The last is of epoll (`fs.epoll.max_user_watches`).
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC) => true,
        // All ports are in use. Over IPv6 there may be no address to come from, as where it is disabled.
        Some(libc::EADDRNOTAVAIL) => address.is_ipv4(),
        _ => false,
    }
}

/// What a failed exchange says of its request: whether it may be sent again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The origin has not looked at it, and says so (RFC 9113 section 8.7): whatever it is, it may be sent again.
    Unprocessed {
        /// Whether the connection will take no other either.
        gone: bool,
    },
    /// The origin takes it over HTTP/1.1 alone.
    NeedsHttp1 {
        /// Whether the connection will take no other either. Then it has not looked at this one.
        gone: bool,
    },
    /// The connection was gone, rather than that the origin answered nonsense. The request may have been heard.
    Lost,
    /// The origin had it.
    Failed,
}

impl Fate {
    /// What became of a request that got nothing but this error.
    fn of(error: &ExchangeError) -> Self {
        let error = match error {
            ExchangeError::Http1(http1::Error::Io(_) | http1::Error::Closed { begun: false }) => return Self::Lost,
            ExchangeError::Http1(_) | ExchangeError::Content(_) => return Self::Failed,
            ExchangeError::Http2(error) => error,
        };
        match error.reason() {
            Some(http2::Reason::HTTP_1_1_REQUIRED) if error.is_remote() => {
                Self::NeedsHttp1 { gone: error.is_go_away() }
            }
            // Only streams above the last one that GOAWAY names get this; the others go on.
            _ if error.is_go_away() && error.is_remote() => Self::Unprocessed { gone: true },
            Some(http2::Reason::REFUSED_STREAM) if error.is_remote() => Self::Unprocessed { gone: false },
            _ if error.io().is_some() => Self::Lost,
            _ => Self::Failed,
        }
    }
}

/// An error with all that led to it: its own words may leave the cause to its sources.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let chain = iter::successors(Some(error), |&error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
