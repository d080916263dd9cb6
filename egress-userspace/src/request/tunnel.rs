//! Connections that a request has switched to another protocol, such as WebSocket (RFC 9110 section 7.8).

use std::{io, rc::Rc};

use tokio::io::copy_bidirectional;

use crate::{
    body::Held,
    http1::server::{self, Connection},
    telemetry::access_log::Record,
    upstream::http1::Switched,
};

/// The upstream end of a connection whose origin has switched protocols, to be run once the client has been told.
pub struct Tunnel {
    upstream: Switched,
    record: Record,
    /// It is still under way.
    _held: Held,
}

impl Tunnel {
    /// The tunnel to an upstream end; the request's record stays open until it ends.
    pub fn new(upstream: Switched, record: Record, held: Held) -> Self {
        Self { upstream, record, _held: held }
    }

    /// Passes bytes both ways until both ends are closed. The client's is reset if that does not go in order.
    pub async fn run(mut self, client: Rc<Connection>) {
        let mut client = server::Switched::new(client);
        let copied = async {
            let copied = copy_bidirectional(&mut client, &mut self.upstream).await?;
            client.close_in_order();
            Ok::<_, io::Error>(copied)
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
