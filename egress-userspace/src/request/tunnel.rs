//! Connections that a request has switched to another protocol, such as WebSocket (RFC 9110 section 7.8).

use std::io;

use http::{Request, Response, StatusCode};
use hyper::upgrade::{self, OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::telemetry::access_log::Record;

/// Both ends of a connection whose origin has switched protocols, to be run once hyper has let go of them.
pub struct Tunnel {
    client: OnUpgrade,
    upstream: OnUpgrade,
    record: Record,
}

impl Tunnel {
    /// The client's end, of a request that asks for another protocol.
    pub fn client_end<B>(request: &mut Request<B>) -> OnUpgrade {
        upgrade::on(request)
    }

    /// The tunnel, if the origin agrees to switch.
    pub fn agreed<B>(response: &mut Response<B>, client: Option<OnUpgrade>) -> Option<(OnUpgrade, OnUpgrade)> {
        let client = client.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS)?;
        Some((client, upgrade::on(response)))
    }

    /// The tunnel between two ends; the request's record stays open until it ends.
    pub fn new((client, upstream): (OnUpgrade, OnUpgrade), record: Record) -> Self {
        Self { client, upstream, record }
    }

    /// Passes bytes both ways until both ends are closed.
    pub async fn run(mut self) {
        let copied = async {
            let (client, upstream) = tokio::try_join!(self.client, self.upstream).map_err(io::Error::other)?;
            copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(upstream)).await
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
