//! Connections that a request has switched to another protocol, such as WebSocket (RFC 9110 section 7.8).

use std::io;

use http::{Response, StatusCode};
use hyper::upgrade::{self, OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncWriteExt as _, copy_bidirectional},
    net::TcpStream,
};

use crate::{body::Held, socket, telemetry::access_log::Record};

/// The upstream end of a connection whose origin has switched protocols, to be run once hyper has let go of the client's.
pub struct Tunnel {
    upstream: OnUpgrade,
    record: Record,
    /// It is still under way.
    _held: Held,
}

impl Tunnel {
    /// The upstream end, if the origin agrees to switch.
    pub fn agreed<B>(response: &mut Response<B>) -> Option<OnUpgrade> {
        (response.status() == StatusCode::SWITCHING_PROTOCOLS).then(|| upgrade::on(response))
    }

    /// The tunnel to an upstream end; the request's record stays open until it ends.
    pub fn new(upstream: OnUpgrade, record: Record, held: Held) -> Self {
        Self { upstream, record, _held: held }
    }

    /// Passes bytes both ways until both ends are closed. The client's is reset if that does not go in order.
    ///
    /// `early` is what has been read from the client since it asked.
    pub async fn run(mut self, mut client: TcpStream, early: &[u8]) {
        let copied = async {
            let mut upstream = TokioIo::new(self.upstream.await.map_err(io::Error::other)?);
            upstream.write_all(early).await?;
            let (received, sent) = copy_bidirectional(&mut client, &mut upstream).await?;
            socket::close_in_order(&client);
            Ok::<_, io::Error>((early.len() as u64 + received, sent))
        };
        match copied.await {
            Ok((received, sent)) => {
                self.record.set_received(received);
                self.record.add_sent(sent);
                self.record.complete();
            }
            Err(error) => self.record.error(error.to_string()),
        }
    }
}
