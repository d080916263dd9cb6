//! Connections to origins: made from the application's own network namespace, over TLS for configured hosts, pooled.

pub mod connect;
pub mod limits;
pub mod outlier;
pub mod pool;
pub mod tls;
pub mod tunnel;

use std::{error::Error, io, iter, net::SocketAddr, rc::Rc, time::Duration};

use hyper::client::conn::http1;

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
        source: tunnel::TunnelError,
    },
    /// TLS could not be made, or the origin could not be verified.
    #[error("TLS with {host} at {address} failed: {source}")]
    Tls {
        /// Whom we wanted to talk to.
        host: String,
        /// The address.
        address: SocketAddr,
        /// rustls's words.
        source: rustls::Error,
    },
    /// The connection broke while TLS was being made.
    #[error("the connection to {host} at {address} broke during the TLS handshake: {source}")]
    TlsBroken {
        /// Whom we wanted to talk to.
        host: String,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS took too long.
    #[error("{host} at {address} did not finish the TLS handshake within {} s", .limit.as_secs())]
    TlsTimeout {
        /// Whom we wanted to talk to.
        host: String,
        /// The address.
        address: SocketAddr,
        /// The limit.
        limit: Duration,
    },
    /// The origin ended TLS after the handshake: with TLS 1.3 that is when it tells that it misses a client certificate.
    #[error("{address} ended TLS: {source}")]
    TlsEnded {
        /// The address.
        address: SocketAddr,
        /// rustls's words.
        source: rustls::Error,
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
    pub fn of_exchange(address: SocketAddr, source: hyper::Error) -> Self {
        let io_error = source.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        match io_error.and_then(|error| error.get_ref()?.downcast_ref::<rustls::Error>()) {
            Some(source) => Self::TlsEnded { address, source: source.clone() },
            None => Self::Http { address, source },
        }
    }
}

/// An error with all that led to it: hyper's own words leave the cause to its sources.
pub fn causes(error: &hyper::Error) -> String {
    let chain = iter::successors(Some(error as &dyn Error), |&error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
