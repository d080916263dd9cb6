//! Connections of which only the port is known: those for configured hosts are served like all others, the rest is passed
//! on byte for byte, whatever protocol it speaks and whoever speaks first.
//!
//! What a client sends is looked at before it goes on, for as long as there can be a request in it.

mod relay;
pub mod requests;

use std::{io, net, pin::pin, time::Duration};

use bytes::{Buf as _, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, tcp::ReadHalf},
    time::timeout,
};

use self::{
    relay::Broken,
    requests::{Next, Requests},
};
use crate::{
    limits::Beyond,
    request::Accepted,
    socket,
    upstream::{UpstreamError, connect::Connector},
};

/// A client that is silent for so long waits for the server to speak first. It still may not say anything unseen.
const SPEAKS_FIRST: Duration = Duration::from_millis(100);
/// How long a client may go on being silent where nobody takes connections: it can still ask for a configured host, which is
/// elsewhere.
const UNREACHABLE: Duration = Duration::from_secs(10);
/// How long the rest of something that has begun like a request may take.
const UNDECIDED: Duration = Duration::from_secs(10);
/// How long responses may take to come that are under way when a request for a configured host follows on their connection.
const LAST_RESPONSES: Duration = Duration::from_secs(5);
/// Bytes that are read at once.
const BUFFER: usize = 16 * 1024;

/// What became of a connection.
pub enum Passed {
    /// Its first request is for a configured host.
    Configured(net::TcpStream, BytesMut),
    /// It has been passed on to its end.
    On,
}

/// Why a connection was cut off.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The origin cannot be reached.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// One of the ends broke off.
    #[error("the connection broke off: {0}")]
    Broken(#[from] io::Error),
    /// The origin does not take what the client sends. What it said before that has been passed on.
    #[error("the origin does not read on: {0}")]
    Unsent(io::Error),
    /// What the client sends could be for a configured host.
    #[error("{0}")]
    Doubtful(&'static str),
    /// There is no room for what has come of a head.
    #[error("{0}")]
    Beyond(Beyond),
    /// A request for a configured host follows others. On a connection of its own it will be served.
    #[error("a request for a configured host came after others")]
    Configured,
}

/// Passes a connection on, unless its first request is for a configured host. Has what has come of a head held, in bytes.
///
/// # Errors
/// It cannot be passed on to its end. The client's connection is reset.
pub async fn pass(
    connector: &Connector,
    accepted: &Accepted,
    mut client: TcpStream,
    is_configured: impl Fn(&str, Option<u16>) -> bool,
    hold: &Hold<'_>,
) -> Result<Passed, PassError> {
    let mut outbound = Outbound { requests: Requests::new(is_configured), pending: BytesMut::new(), hold };
    let passed = async {
        let mut connecting = pin!(connector.tcp(&accepted.from, accepted.origin.socket_addr()));
        let mut connected = None;
        if timeout(SPEAKS_FIRST, client.readable()).await.is_err() {
            tokio::select! {
                ready = client.readable() => ready?,
                result = &mut connecting => connected = Some(result),
            }
            match connected {
                Some(Ok(upstream)) => {
                    tokio::select! {
                        ready = client.readable() => ready?,
                        ready = upstream.readable() => {
                            ready?;
                            return relay(&mut client, upstream, outbound, None).await.map(|()| None);
                        }
                    }
                    connected = Some(Ok(upstream));
                }
                Some(Err(error)) => {
                    let Ok(ready) = timeout(UNREACHABLE, client.readable()).await else { return Err(error.into()) };
                    ready?;
                    connected = Some(Err(error));
                }
                None => {}
            }
        }
        let first = outbound.next(&mut client.split().0).await?;
        if first == Outgoing::Configured {
            return Ok(Some(outbound.pending));
        }
        let upstream = match connected {
            Some(connected) => connected?,
            None => connecting.await?,
        };
        relay(&mut client, upstream, outbound, Some(first)).await.map(|()| None)
    };
    Ok(match passed.await? {
        Some(begun) => Passed::Configured(client.into_std()?, begun),
        None => {
            socket::close_in_order(&client);
            Passed::On
        }
    })
}

/// Passes bytes both ways until both ends are closed.
async fn relay<F: Fn(&str, Option<u16>) -> bool>(
    client: &mut TcpStream,
    mut upstream: TcpStream,
    mut outbound: Outbound<'_, F>,
    first: Option<Outgoing>,
) -> Result<(), PassError> {
    // As the client's end: unless both come to theirs, be it that the process dies, neither takes for complete what is not.
    SockRef::from(&upstream).set_linger(Some(Duration::ZERO))?;
    let (mut client_reader, mut client_writer) = client.split();
    let (mut upstream_reader, mut upstream_writer) = upstream.split();
    let out = async {
        let mut outgoing = match first {
            Some(first) => first,
            None => outbound.next(&mut client_reader).await?,
        };
        while let Outgoing::Bytes(count) = outgoing {
            let written = upstream_writer.write_all(&outbound.pending[..count]).await;
            written.map_err(PassError::Unsent)?;
            outbound.pending.advance(count);
            outgoing = if outbound.requests.are_over() && outbound.pending.is_empty() {
                outbound.pending = BytesMut::new();
                let relayed = relay::relay(&mut client_reader, &mut upstream_writer).await;
                relayed.map_err(|broken| match broken {
                    Broken::From(error) => PassError::Broken(error),
                    Broken::To(error) => PassError::Unsent(error),
                })?;
                Outgoing::End
            } else {
                outbound.next(&mut client_reader).await?
            };
        }
        upstream_writer.shutdown().await?;
        if outgoing == Outgoing::Configured {
            return Err(PassError::Configured);
        }
        Ok(())
    };
    let back = async {
        let relayed = relay::relay(&mut upstream_reader, &mut client_writer).await;
        relayed.map_err(|(Broken::From(error) | Broken::To(error))| PassError::Broken(error))?;
        client_writer.shutdown().await?;
        Ok::<(), PassError>(())
    };
    let relayed = {
        let (mut out, mut back) = (pin!(out), pin!(back));
        tokio::select! {
            sent = &mut out => match sent {
                Ok(()) => back.await,
                // A server that has heard enough may have answered, and closed.
                Err(unsent @ PassError::Unsent(_)) => back.await.and(Err(unsent)),
                Err(configured @ PassError::Configured) => {
                    let _ = timeout(LAST_RESPONSES, back).await;
                    Err(configured)
                }
                Err(error) => Err(error),
            },
            returned = &mut back => match returned {
                Ok(()) => out.await,
                Err(error) => Err(error),
            },
        }
    };
    if relayed.is_ok() {
        socket::close_in_order(&upstream);
    }
    relayed
}

/// Holds so many bytes of a head, or says why not.
type Hold<'a> = dyn Fn(usize) -> Result<(), Beyond> + 'a;

/// What a client sends.
struct Outbound<'a, F> {
    requests: Requests<F>,
    /// What has come and has not gone on.
    pending: BytesMut,
    hold: &'a Hold<'a>,
}

/// What is next of it.
#[derive(Debug, PartialEq, Eq)]
enum Outgoing {
    /// Bytes to be passed on: so many of those that are pending.
    Bytes(usize),
    /// A request for a configured host.
    Configured,
    /// Nothing more.
    End,
}

impl<F: Fn(&str, Option<u16>) -> bool> Outbound<'_, F> {
    async fn next(&mut self, client: &mut ReadHalf<'_>) -> Result<Outgoing, PassError> {
        // What was held has gone on.
        (self.hold)(0).map_err(PassError::Beyond)?;
        if let Some(outgoing) = self.decided()? {
            return Ok(outgoing);
        }
        if self.pending.is_empty() && self.read(client).await? == 0 {
            return Ok(Outgoing::End);
        }
        let rest = async {
            loop {
                if let Some(outgoing) = self.decided()? {
                    return Ok(outgoing);
                }
                (self.hold)(self.pending.len()).map_err(PassError::Beyond)?;
                if self.read(client).await? == 0 {
                    return match self.requests.end(&self.pending) {
                        Next::Doubtful(reason) => Err(PassError::Doubtful(reason)),
                        _ => Ok(Outgoing::Bytes(self.pending.len())),
                    };
                }
            }
        };
        let late = PassError::Doubtful("something that has begun like a request does not go on");
        timeout(UNDECIDED, rest).await.map_err(|_| late)?
    }

    /// What is next, if that can be said of what has come.
    fn decided(&mut self) -> Result<Option<Outgoing>, PassError> {
        match self.requests.next(&self.pending) {
            Next::Forward(count) => Ok(Some(Outgoing::Bytes(count))),
            Next::Configured => Ok(Some(Outgoing::Configured)),
            Next::Doubtful(reason) => Err(PassError::Doubtful(reason)),
            Next::Undecided => Ok(None),
        }
    }

    /// Reads more of it, and gives how much.
    async fn read(&mut self, client: &mut ReadHalf<'_>) -> io::Result<usize> {
        if self.pending.is_empty() {
            // There is a buffer only while something is in it.
            self.pending = BytesMut::new();
        }
        client.readable().await?;
        self.pending.reserve(BUFFER);
        client.read_buf(&mut self.pending).await
    }
}
