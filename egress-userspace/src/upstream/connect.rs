//! Making connections.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hyper::{client::conn::http1, rt};
use hyper_util::rt::TokioIo;
use rustls::{HandshakeKind, ProtocolVersion};
use rustls_pki_types::ServerName;
use tokio::{
    net::TcpStream,
    task,
    time::{sleep, timeout},
};

use super::{
    Connection, ConnectionInfo, TlsInfo, UpstreamError,
    tls::{TlsStream, handshake},
};
use crate::{
    body::RequestBody,
    route::Route,
    socket::{Place, SocketFactory},
    telemetry::metrics::Metrics,
};

/// For all addresses of a host together; Istio's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an address has before the next is tried beside it (RFC 8305 section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to where the application was going, and adds nothing.
///
/// # Errors
/// The origin refuses, is unreachable, or does not answer.
pub async fn plain(sockets: &SocketFactory, from: &Place, origin: SocketAddr) -> Result<Connection, UpstreamError> {
    let stream = tcp(sockets, from, &[origin]).await?;
    let info = ConnectionInfo { address: origin, tls: None };
    http(TokioIo::new(stream), info).await
}

/// Connects to a configured host, originates TLS and verifies the peer.
///
/// # Errors
/// No address can be reached, or TLS fails. Nothing but the handshake has been sent then.
pub async fn tls(
    sockets: &SocketFactory,
    metrics: &Metrics,
    from: &Place,
    route: &Route,
    server_name: ServerName<'static>,
    origin: SocketAddr,
) -> Result<Connection, UpstreamError> {
    let stream = tcp(sockets, from, &route.candidates(origin.ip())).await?;
    let address = peer(&stream, origin);
    let host = server_name.to_str().into_owned();
    let result = handshake(&route.originator, server_name, stream).await;
    let info = result.as_ref().ok().map(|stream| tls_info(stream, route));
    metrics.handshake(info.as_ref());
    let stream = result.map_err(|source| UpstreamError::Tls { host: host.clone(), address, source })?;
    if let Some(mismatch) = route.originator.unenforced_pins(stream.get_ref().1.peer_certificates()) {
        metrics.unenforced_pins.inc();
        tracing::warn!(host, %address, "pins: {mismatch}");
    }
    http(TokioIo::new(stream), ConnectionInfo { address, tls: info }).await
}

/// Tries the addresses in order, each a moment after the one before or as soon as that fails; the first connection wins
/// (RFC 8305 section 5). All of them share one time limit.
///
/// # Errors
/// None can be reached; the error is the last one's.
pub async fn tcp(sockets: &SocketFactory, from: &Place, candidates: &[SocketAddr]) -> Result<TcpStream, UpstreamError> {
    let Some(&first) = candidates.first() else { return Err(UpstreamError::NoAddress) };
    let attempts = async {
        let mut waiting = candidates.iter();
        let mut under_way = FuturesUnordered::new();
        let mut failure = UpstreamError::NoAddress;
        loop {
            if let Some(&address) = waiting.next() {
                under_way.push(async move {
                    sockets.connect(from, address).await.map_err(|source| UpstreamError::Connect { address, source })
                });
            }
            let more = waiting.len() > 0;
            tokio::select! {
                result = under_way.next() => match result {
                    Some(Ok(stream)) => return Ok(stream),
                    Some(Err(error)) => failure = error,
                    None => return Err(failure),
                },
                () = sleep(ATTEMPT_DELAY), if more => {}
            }
        }
    };
    match timeout(CONNECT_TIMEOUT, attempts).await {
        Ok(result) => result,
        Err(_) => Err(UpstreamError::ConnectTimeout { address: first, limit: CONNECT_TIMEOUT }),
    }
}

fn peer(stream: &TcpStream, otherwise: SocketAddr) -> SocketAddr {
    stream.peer_addr().unwrap_or(otherwise)
}

fn tls_info(stream: &TlsStream, route: &Route) -> TlsInfo {
    let (_, session) = stream.get_ref();
    TlsInfo {
        version: match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "unknown",
        },
        cipher: session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown"),
        group: session.negotiated_key_exchange_group().and_then(|group| group.name().as_str()).unwrap_or("unknown"),
        resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
        client_certificate: route.upstream.tls.client.is_some(),
    }
}

/// Starts HTTP on a connection. A task of its own drives it until it ends.
async fn http<I>(io: I, info: ConnectionInfo) -> Result<Connection, UpstreamError>
where
    I: rt::Read + rt::Write + Send + Unpin + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .handshake::<_, RequestBody>(io)
        .await
        .map_err(|source| UpstreamError::of_exchange(&info, source))?;
    let address = info.address;
    task::spawn_local(async move {
        // The exchange that it concerns sees the same error.
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%address, %error, "upstream connection ended");
        }
    });
    Ok(Connection { sender, info: Rc::new(info) })
}

/// Whether a failure of an exchange says that the connection was gone, rather than that the origin answered nonsense.
pub fn is_gone(error: &hyper::Error) -> bool {
    use std::error::Error as _;
    let broken = error.source().and_then(|source| source.downcast_ref::<io::Error>()).is_some();
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || (broken && !error.is_parse())
}
