//! Connections to origins: made from the application's own network namespace, over TLS for configured hosts, pooled.

mod cause;
pub mod connect;
pub mod limits;
pub mod outlier;
pub mod pool;
pub mod tls;
pub mod tunnel;

use std::{error::Error, io, iter, net::SocketAddr, rc::Rc, time::Duration};

use hyper::client::conn::http1;
use rustls::AlertDescription;

pub use self::cause::Cause;
use self::{tls::Refusal, tunnel::TunnelError};
use crate::body::RequestBody;

/// What is known of an upstream connection from its making.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// The origin's address.
    pub address: SocketAddr,
    /// What TLS agreed on; none where a request is passed through as it came.
    pub tls: Option<TlsInfo>,
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

/// A connection on which a request can be sent.
pub struct Connection {
    /// The sending half; the rest is driven by a task of its own.
    pub sender: http1::SendRequest<RequestBody>,
    /// Facts for the log.
    pub info: Rc<ConnectionInfo>,
}

/// Why a request got no response from its origin.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// There is no address to try.
    #[error("the name has no known address")]
    NoAddress,
    /// All addresses failed; this is the last one's failure.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Connecting took too long.
    #[error("no TCP connection to {address} within {} s", .limit.as_secs())]
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
        /// hyper's words.
        source: hyper::Error,
    },
}

impl UpstreamError {
    /// The failure of an exchange on a connection that was made.
    pub fn of_exchange(info: &ConnectionInfo, source: hyper::Error) -> Self {
        let address = info.address;
        let io_error = source.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        match io_error.and_then(|error| error.get_ref()?.downcast_ref::<rustls::Error>()) {
            Some(error) => {
                let client_certificate = info.tls.as_ref().is_some_and(|tls| tls.client_certificate);
                Self::TlsEnded { address, source: Refusal::of_ended(error, client_certificate) }
            }
            None => Self::Http { address, source },
        }
    }

    /// What it is counted as.
    pub fn cause(&self) -> Cause {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
        match self {
            Self::NoAddress => Cause::NoAddress,
            Self::Connect { source, .. } => match source.kind() {
                ConnectionRefused => Cause::ConnectionRefused,
                HostUnreachable | NetworkUnreachable => Cause::Unroutable,
                TimedOut => Cause::ConnectTimeout,
                _ => Cause::ConnectFailed,
            },
            Self::ConnectTimeout { .. } => Cause::ConnectTimeout,
            Self::Tunnel { source: TunnelError::Timeout, .. } => Cause::TunnelTimeout,
            Self::Tunnel { source: TunnelError::Broken(_), .. } => Cause::TunnelBroken,
            Self::Tunnel { .. } => Cause::TunnelRefused,
            Self::Tls { source, .. } | Self::TlsEnded { source, .. } => source.cause,
            Self::Http { source, .. } if source.is_incomplete_message() => Cause::HttpIncomplete,
            Self::Http { source, .. } if source.is_parse() => Cause::HttpProtocol,
            Self::Http { .. } => Cause::ConnectionLost,
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

/// An error with all that led to it: hyper's own words leave the cause to its sources.
pub fn causes(error: &hyper::Error) -> String {
    let chain = iter::successors(Some(error as &dyn Error), |&error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
