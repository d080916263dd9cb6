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
    pub async fn run(mut self, client: impl AsyncRead + AsyncWrite + Unpin) -> bool {
        let heard = Cell::new(Instant::now());
        let mut client = InspectReader::new(client, |_: &[u8]| heard.set(Instant::now()));
        let mut upstream = InspectReader::new(self.upstream, |_: &[u8]| heard.set(Instant::now()));
        let copied = async {
            let copied = copy_bidirectional(&mut client, &mut upstream).await?;
            Ok::<_, io::Error>(copied)
        };
        let copied = match self.idle_timeout {
            None => copied.await,
            Some(limit) => tokio::select! {
                copied = copied => copied,
                () = silence(&heard, limit) => Err(io::Error::other(format!("no bytes either way for {limit:?}"))),
            },
        };
        match &copied {
            Ok((received, sent)) => {
                self.record.set_received(*received);
                self.record.add_sent(*sent);
                self.record.complete();
            }
            Err(error) => self.record.error(error.to_string()),
        }
        copied.is_ok()
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
