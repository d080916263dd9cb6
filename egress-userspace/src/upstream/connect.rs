//! Making connections.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{
    Carrier, Cause, ConnectionInfo, Made, Offer, Order, TlsInfo, UpstreamError,
    error::is_shortage,
    health::Health,
    http1::{self, Exclusive},
    http2::Shared,
    outlier::Seen,
    tls::{HTTP2, TlsStream, handshake},
    tunnel::{self, Way},
};
use crate::{
    http1::Limits,
    http2::Room,
    netns::NetnsCookie,
    policy::{Keepalive, UpstreamProtocol},
    route::{Chosen, Cluster},
    socket::{Place, SocketFactory},
    telemetry::metrics::Metrics,
};

/// For all addresses of a host together; Istio's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an address has before the next is tried beside it (RFC 8305 section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Makes the connections of one worker.
pub struct Connector {
    sockets: SocketFactory,
    metrics: Arc<Metrics>,
    /// What heads of responses are taken.
    heads: Limits,
    /// What has come on connections of HTTP/2 and was not read, in bytes.
    unread: Rc<Cell<usize>>,
    /// Makes what counts trailers that come on one, for an application that connects from there.
    trailers: Box<dyn Fn(&Place) -> Room>,
    /// Which addresses to try last.
    pub health: Health,
}

impl Connector {
    /// A connector that makes its sockets with `sockets`, for responses with heads within these limits, and with trailers that there is
    /// room for where they go.
    pub fn new(
        sockets: SocketFactory,
        metrics: Arc<Metrics>,
        heads: Limits,
        trailers: Box<dyn Fn(&Place) -> Room>,
    ) -> Self {
        Self { sockets, metrics, heads, unread: Rc::default(), trailers, health: Health::default() }
    }

    /// What counts trailers that come on a connection, for an application that connects from there.
    pub fn room_for_trailers(&self, from: &Place) -> Room {
        (self.trailers)(from)
    }

    /// Forgets what is over, and lets go of what was not needed. To be called each second or so.
    pub fn tidy(&self) {
        self.health.expire();
        self.sockets.tidy();
    }

    /// Forgets a network namespace that is gone.
    pub fn forget(&self, netns: NetnsCookie) {
        self.health.forget(netns);
        self.sockets.forget(netns);
    }

    /// Connects to where the application was going, and adds nothing. `http2` says that HTTP/2 is understood there.
    ///
    /// # Errors
    /// The origin refuses, is unreachable, or does not answer.
    pub async fn plain(&self, from: &Place, origin: SocketAddr, http2: bool) -> Result<Made, UpstreamError> {
        let stream = self.tcp(from, origin).await?;
        let info = |protocol| ConnectionInfo::new(origin, protocol, None);
        if http2 {
            return Ok(self.http2(stream, from, info("HTTP/2")));
        }
        Ok(Made::Http1(Exclusive::new(http1::Stream::Left(stream), self.heads, info("HTTP/1.1"))))
    }

    /// Connects to a configured host where it was `chosen` for an application that was going to `origin`, originates TLS and verifies
    /// the peer.
    ///
    /// An address whose connection breaks during the handshake, or whose proxy is out of order, is passed over like one that
    /// refuses; whatever else is wrong with TLS there is the host's answer. What fails is held against its address.
    ///
    /// # Errors
    /// No address can be reached, or TLS fails. Nothing but the handshake has been sent then.
    pub async fn tls(
        &self,
        from: &Place,
        cluster: &Cluster,
        server_name: &ServerName<'static>,
        origin: IpAddr,
        chosen: Chosen,
        order: Order,
    ) -> Result<Made, UpstreamError> {
        let made = self.originated(from, cluster, server_name, origin, chosen, order.offer).await;
        if let Err(error) = &made
            && let Some(address) = error.blamed(chosen.address)
            && order.blame.lay()
        {
            cluster.seen(from.netns.cookie(), address, Seen::Failure, chosen.among.unwrap_or(1));
        }
        made
    }

    async fn originated(
        &self,
        from: &Place,
        cluster: &Cluster,
        server_name: &ServerName<'static>,
        origin: IpAddr,
        chosen: Chosen,
        offer: Offer,
    ) -> Result<Made, UpstreamError> {
        let netns = from.netns.cookie();
        let mut candidates = cluster.candidates(origin, chosen)?;
        self.health.order(netns, &mut candidates);
        let limit = cluster.upstream.pool.connect_timeout;
        let offer = match cluster.upstream.protocol {
            UpstreamProtocol::Negotiated => offer,
            UpstreamProtocol::Http1 => Offer::Http1,
            UpstreamProtocol::Http2 if offer == Offer::Both => Offer::Http2,
            // What switches protocols cannot do without it.
            UpstreamProtocol::Http2 => Offer::Http1,
        };
        let mut broken = None;
        loop {
            let (stream, address) = match self.first_of(from, &candidates, chosen.has_others, limit).await {
                Ok(connected) => connected,
                // What has got furthest says most.
                Err(error) => return Err(broken.unwrap_or(error)),
            };
            let handshake = self.prepared(stream, address, cluster, server_name, offer).await;
            match &handshake {
                Ok(_) => self.health.succeeded(netns, address),
                Err(error)
                    if error.is_of_address()
                        || matches!(error.cause(), Cause::HandshakeTimeout | Cause::TunnelTimeout) =>
                {
                    self.health.failed(netns, address);
                }
                Err(_) => {}
            }
            match handshake {
                Ok((stream, tls)) => return Ok(self.http(stream, from, address, tls, offer)),
                Err(error) if error.is_of_address() => {
                    candidates.retain(|candidate| *candidate != address);
                    broken = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes TLS on a connection, through a tunnel if there is to be one.
    async fn prepared(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        cluster: &Cluster,
        server_name: &ServerName<'static>,
        offer: Offer,
    ) -> Result<(TlsStream, TlsInfo), UpstreamError> {
        if let Some(keepalive) = &cluster.upstream.pool.keepalive {
            set_keepalive(&stream, keepalive);
        }
        let way = match &cluster.upstream.tunnel {
            Some(tunnel) => tunnel::open(stream, address, tunnel).await?,
            None => Way::Left(stream),
        };
        self.handshake(way, address, cluster, server_name, offer).await
    }

    async fn handshake(
        &self,
        way: Way,
        address: SocketAddr,
        cluster: &Cluster,
        server_name: &ServerName<'static>,
        offer: Offer,
    ) -> Result<(TlsStream, TlsInfo), UpstreamError> {
        let host = || server_name.to_str().into_owned();
        let result = handshake(&cluster.originator, server_name.clone(), offer, way).await;
        let made = result.map(|stream| {
            let info = TlsInfo::of(stream.session(), cluster.upstream.tls.client.is_some());
            (stream, info)
        });
        self.metrics.handshake(made.as_ref().ok().map(|(_, info)| info));
        let (stream, info) = made.map_err(|source| UpstreamError::Tls { host: host(), address, source })?;
        if let Some(mismatch) = cluster.originator.unenforced_pins(stream.session().peer_certificates()) {
            self.metrics.unenforced_pins.inc();
            // Of a session that is resumed it was said when that began.
            if !info.resumed {
                tracing::warn!(host = host(), %address, "pins: {mismatch}");
            }
        }
        Ok((stream, info))
    }

    /// Starts what the origin has picked. If it does not know ALPN, that is HTTP/1.1, unless nothing but HTTP/2 will do.
    fn http(&self, stream: TlsStream, from: &Place, address: SocketAddr, tls: TlsInfo, offer: Offer) -> Made {
        let http2 = stream.session().alpn_protocol().map_or(offer == Offer::Http2, |picked| picked == HTTP2);
        let protocol = if http2 { "HTTP/2" } else { "HTTP/1.1" };
        let info = ConnectionInfo::new(address, protocol, Some(tls));
        if http2 {
            self.http2(stream, from, info)
        } else {
            Made::Http1(Exclusive::new(http1::Stream::Right(Box::new(stream)), self.heads, info))
        }
    }

    fn http2(&self, stream: impl Carrier + 'static, from: &Place, info: ConnectionInfo) -> Made {
        Made::Http2(Shared::start(stream, self.heads, self.unread.clone(), self.room_for_trailers(from), info))
    }

    /// Connects to one address.
    ///
    /// # Errors
    /// It refuses, is unreachable, or does not answer.
    pub async fn tcp(&self, from: &Place, address: SocketAddr) -> Result<TcpStream, UpstreamError> {
        self.first_of(from, &[address], false, CONNECT_TIMEOUT).await.map(|(stream, _)| stream)
    }

    /// Tries the addresses in order, each a moment after the one before or as soon as that fails; the first connection wins
    /// (RFC 8305 section 5). All of them share one time limit, which begins now: what came of others before is not their fault.
    async fn first_of(
        &self,
        from: &Place,
        candidates: &[SocketAddr],
        has_others: bool,
        limit: Duration,
    ) -> Result<(TcpStream, SocketAddr), UpstreamError> {
        let Some(&first) = candidates.first() else { return Err(UpstreamError::NoAddress) };
        let failed = |address| {
            // The only address of a host cannot be put behind others.
            if candidates.len() > 1 || has_others {
                self.health.failed(from.netns.cookie(), address);
            }
        };
        let mut waiting = candidates.iter();
        let mut silent = Vec::new();
        let attempts = async {
            let mut under_way = FuturesUnordered::new();
            let mut failure = UpstreamError::NoAddress;
            loop {
                if let Some(&address) = waiting.next() {
                    silent.push((address, Instant::now()));
                    under_way.push(async move { (self.sockets.connect(from, address).await, address) });
                }
                let more = waiting.len() > 0;
                tokio::select! {
                    result = under_way.next() => match result {
                        Some((Ok(stream), address)) => return Ok((stream, address)),
                        Some((Err(source), address)) => {
                            if !is_shortage(&source, address) {
                                failed(address);
                            }
                            silent.retain(|(silent, _)| *silent != address);
                            failure = UpstreamError::Connect { address, source };
                        }
                        None => return Err(failure),
                    },
                    () = sleep(ATTEMPT_DELAY), if more => {}
                }
            }
        };
        let result = timeout(limit, attempts).await;
        // Those that had their time before the one that answered, or all.
        let winner = result.as_ref().ok().and_then(|result| result.as_ref().ok()).map(|(_, address)| *address);
        // The first had all of a limit that is over, whatever its clock says of a moment.
        let had_all = result.is_err().then_some(first);
        let had_time = |address: &SocketAddr, begun: &Instant| {
            Some(*address) == had_all || begun.elapsed() >= ATTEMPT_DELAY.min(limit)
        };
        let before = silent.into_iter().take_while(|(address, _)| Some(*address) != winner);
        before.filter(|(address, begun)| had_time(address, begun)).for_each(|(address, _)| failed(address));
        result.unwrap_or(Err(UpstreamError::ConnectTimeout { address: first, limit }))
    }
}

fn set_keepalive(stream: &TcpStream, wanted: &Keepalive) {
    let mut keepalive = TcpKeepalive::new();
    keepalive = wanted.time.into_iter().fold(keepalive, TcpKeepalive::with_time);
    keepalive = wanted.interval.into_iter().fold(keepalive, TcpKeepalive::with_interval);
    keepalive = wanted.probes.into_iter().fold(keepalive, |keepalive, probes| keepalive.with_retries(probes.get()));
    if let Err(error) = SockRef::from(stream).set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "the system does not take tcpKeepalive");
    }
}
