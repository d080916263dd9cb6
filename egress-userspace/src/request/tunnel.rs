//! Connections that a request has switched to another protocol, such as WebSocket (RFC 9110 section 7.8).

use std::{cell::Cell, io, time::Duration};

use http::{Response, StatusCode};
use hyper::upgrade::{self, OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncWriteExt as _, copy_bidirectional},
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tokio_util::io::InspectReader;

use crate::{
    body::{Held, Lease},
    socket,
    telemetry::access_log::Record,
    upstream::Connection,
};

/// The upstream end of a connection whose origin has switched protocols, to be run once hyper has let go of the client's.
pub struct Tunnel {
    upstream: OnUpgrade,
    record: Record,
    /// When it ends if nobody says anything.
    idle_timeout: Option<Duration>,
    /// It is still under way.
    _held: (Option<Connection>, Held),
}

impl Tunnel {
    /// The upstream end, if the origin agrees to switch.
    pub fn agreed<B>(response: &mut Response<B>) -> Option<OnUpgrade> {
        (response.status() == StatusCode::SWITCHING_PROTOCOLS).then(|| upgrade::on(response))
    }

    /// The tunnel to an upstream end; the request's record stays open until it ends.
    pub fn new(upstream: OnUpgrade, record: Record, lease: Lease, idle_timeout: Option<Duration>) -> Self {
        Self { upstream, record, idle_timeout, _held: (lease.connection, lease.held) }
    }

    /// Passes bytes both ways until both ends are closed. The client's is reset if that does not go in order.
    ///
    /// `early` is what has been read from the client since it asked.
    pub async fn run(mut self, client: TcpStream, early: &[u8]) {
        let heard = Cell::new(Instant::now());
        let mut client = InspectReader::new(client, |_: &[u8]| heard.set(Instant::now()));
        let copied = async {
            let upstream = TokioIo::new(self.upstream.await.map_err(io::Error::other)?);
            let mut upstream = InspectReader::new(upstream, |_: &[u8]| heard.set(Instant::now()));
            upstream.write_all(early).await?;
            let (received, sent) = copy_bidirectional(&mut client, &mut upstream).await?;
            Ok::<_, io::Error>((early.len() as u64 + received, sent))
        };
        let copied = match self.idle_timeout {
            None => copied.await,
            Some(limit) => tokio::select! {
                copied = copied => copied,
                () = silence(&heard, limit) => Err(io::Error::other(format!("no bytes either way for {limit:?}"))),
            },
        };
        match copied {
            Ok((received, sent)) => {
                socket::close_in_order(client.get_ref());
                self.record.set_received(received);
                self.record.add_sent(sent);
                self.record.complete();
            }
            Err(error) => self.record.error(error.to_string()),
        }
    }
}

/// Waits until nothing was heard for so long.
async fn silence(heard: &Cell<Instant>, limit: Duration) {
    loop {
        let end = heard.get() + limit;
        if end <= Instant::now() {
            return;
        }
        sleep_until(end).await;
    }
}
