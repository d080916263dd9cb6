//! Connections that a request has switched to another protocol, such as WebSocket (RFC 9110 section 7.8).

use std::{cell::Cell, io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    time::{Instant, sleep_until},
};
use tokio_util::io::InspectReader;

use crate::{body::Held, telemetry::access_log::Record, upstream::Switched};

/// The upstream end of a connection whose origin has switched protocols, to be run once the client has been told.
pub struct Tunnel {
    upstream: Switched,
    record: Record,
    /// When it ends if nobody says anything.
    idle_timeout: Option<Duration>,
    /// It is still under way.
    _held: Held,
}

impl Tunnel {
    /// The tunnel to an upstream end; the request's record stays open until it ends.
    pub fn new(upstream: Switched, record: Record, held: Held, idle_timeout: Option<Duration>) -> Self {
        Self { upstream, record, idle_timeout, _held: held }
    }

    /// Passes bytes both ways until both ends are closed. Gives whether that has gone in order: if not, the client's end is to be
    /// reset.
    pub async fn run(self, client: impl AsyncRead + AsyncWrite + Unpin) -> bool {
        let mut heard = Heard { record: self.record, last: Cell::new(Instant::now()), bytes: Cell::default() };
        let copied = {
            let mut client = InspectReader::new(client, |bytes: &[u8]| heard.more(bytes.len(), 0));
            let mut upstream = InspectReader::new(self.upstream, |bytes: &[u8]| heard.more(0, bytes.len()));
            let copied = copy_bidirectional(&mut client, &mut upstream);
            match self.idle_timeout {
                None => copied.await,
                Some(limit) => tokio::select! {
                    copied = copied => copied,
                    () = heard.silence(limit) => Err(io::Error::other(format!("no bytes either way for {limit:?}"))),
                },
            }
        };
        match &copied {
            Ok(_) => heard.record.complete(),
            Err(error) => heard.record.error(error.to_string()),
        }
        copied.is_ok()
    }
}

/// What has come of both ends. It is recorded however the tunnel ends.
struct Heard {
    record: Record,
    last: Cell<Instant>,
    /// From the client, and from the origin.
    bytes: Cell<(u64, u64)>,
}

impl Heard {
    fn more(&self, received: usize, sent: usize) {
        let bytes = self.bytes.get();
        self.bytes.set((bytes.0 + received as u64, bytes.1 + sent as u64));
        self.last.set(Instant::now());
    }

    /// Waits until nothing was heard for so long.
    async fn silence(&self, limit: Duration) {
        loop {
            let end = self.last.get() + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        let (received, sent) = self.bytes.get();
        self.record.add_received(received);
        self.record.add_sent(sent);
    }
}
