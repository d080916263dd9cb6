//! Upgrade without a lost request: a new agent takes the listening sockets of the one that runs, which then drains.
//!
//! Agents meet at a socket in the state directory. The successor prepares all that it can, and then:
//!
//! ```text
//! successor                       predecessor
//!   Hello (protocol, maps) ──────►  stops changing anything
//!                          ◄──────  Sockets: of its listeners, if both have the same maps, and of its admin address
//!   Taking                 ──────►
//!   listens, attaches
//!   Done                   ──────►  stops accepting, drains, ends
//! ```
//!
//! Meanwhile both accept from the same queues, and find their flows in the same map. A successor that fails before
//! `Taking` has changed nothing; one that fails after it is undone by its predecessor, which goes on. A predecessor that
//! does not answer is left alone: the successor starts as if there were none.

mod channel;
mod state_dir;

use std::{
    io,
    net::TcpListener,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use socket2::Socket;
use tokio::time;

use self::channel::{Channel, Message, unexpected};
pub use self::state_dir::{DEFAULT_DIR, StateDir, StateError};

/// Version of the messages and of their order.
const PROTOCOL: u32 = 1;

/// How long a predecessor may take to answer. It has nothing to do but to send.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The agent that runs, as its successor sees it.
pub struct Predecessor(Channel);

impl Predecessor {
    /// Asks for its listening sockets. From now on it changes nothing in the kernel, until it is told more or this value is
    /// dropped. `maps` tells whether the sockets of its listeners are of use: see [`crate::kernel::Flows::id`].
    ///
    /// # Errors
    /// It does not answer in time, or not as it should.
    pub async fn sockets(&self, maps: u32) -> io::Result<Vec<TcpListener>> {
        let ask = async {
            self.0.send(&Message::Hello { protocol: PROTOCOL, maps }, &[]).await?;
            let mut sockets = Vec::new();
            loop {
                let (message, descriptors) = self.0.receive().await?;
                let Message::Sockets { left } = message else { return Err(unexpected(&message)) };
                sockets.extend(descriptors.into_iter().map(TcpListener::from));
                if left == 0 {
                    break;
                }
            }
            self.0.send(&Message::Taking, &[]).await?;
            Ok(sockets)
        };
        time::timeout(ANSWER_LIMIT, ask).await?
    }

    /// Tells it to go.
    pub async fn dismiss(self) {
        // If it is gone already, so much the better.
        if let Err(error) = self.0.send(&Message::Done, &[]).await {
            tracing::debug!(%error, "the agent that handed over has ended");
        }
    }
}

/// Where successors announce themselves.
pub struct Successors {
    socket: tokio::io::unix::AsyncFd<Socket>,
    /// One that has not said what it wants.
    waiting: Option<Channel>,
}

impl Successors {
    /// Whether one has announced itself that has yet to ask for our sockets.
    pub fn is_expecting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Waits for a successor that asks for our sockets; None if one that was expected has gone. May be cancelled.
    pub async fn next(&mut self) -> Option<Successor> {
        loop {
            let waiting = self.waiting.as_ref();
            let hello = async {
                match waiting {
                    Some(channel) => channel.receive().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                accepted = channel::accept(&self.socket) => match accepted {
                    // Successors start one after the other: an earlier one has given up.
                    Ok(channel) => {
                        tracing::info!("another agent is starting, and is to take over");
                        self.waiting = Some(channel);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot talk to a new agent");
                        // Out of descriptors: those who hold them need time.
                        time::sleep(Duration::from_millis(100)).await;
                    }
                },
                hello = hello => match (hello, self.waiting.take()) {
                    (Ok((Message::Hello { protocol: PROTOCOL, maps }, _)), Some(channel)) => {
                        return Some(Successor { channel, maps });
                    }
                    (Ok((message, _)), _) => {
                        tracing::warn!(?message, "a new agent does not speak our protocol");
                        return None;
                    }
                    (Err(error), _) => {
                        tracing::debug!(%error, "a new agent went away");
                        return None;
                    }
                },
            }
        }
    }
}

/// An agent that takes our place.
pub struct Successor {
    channel: Channel,
    maps: u32,
}

impl Successor {
    /// Whether it uses these maps.
    pub fn shares(&self, maps: u32) -> bool {
        self.maps == maps
    }

    /// Gives it our sockets.
    ///
    /// # Errors
    /// It went away, and has changed nothing.
    pub async fn give(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut left = sockets.len();
        let mut batches = sockets.chunks(channel::MAX_DESCRIPTORS);
        loop {
            let batch = batches.next().unwrap_or_default();
            left -= batch.len();
            self.channel.send(&Message::Sockets { left }, batch).await?;
            if left == 0 {
                break;
            }
        }
        self.expect(|message| matches!(message, Message::Taking)).await
    }

    /// Waits until it has taken over.
    ///
    /// # Errors
    /// It went away, and may have changed anything.
    pub async fn established(&self) -> io::Result<()> {
        self.expect(|message| matches!(message, Message::Done)).await
    }

    async fn expect(&self, expected: impl Fn(&Message) -> bool) -> io::Result<()> {
        let (message, _) = self.channel.receive().await?;
        if expected(&message) { Ok(()) } else { Err(unexpected(&message)) }
    }
}

/// The descriptors of sockets, for [`Successor::give`].
pub fn descriptors<'a>(sockets: impl IntoIterator<Item = &'a TcpListener>) -> Vec<BorrowedFd<'a>> {
    sockets.into_iter().map(|socket| socket.as_fd()).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use socket2::{Domain, Type};

    use super::*;

    #[tokio::test]
    async fn all_sockets_arrive_however_many_they_are() {
        for count in [0, 1, channel::MAX_DESCRIPTORS, 2 * channel::MAX_DESCRIPTORS + 1] {
            let pair = Socket::pair(Domain::UNIX, Type::SEQPACKET.nonblocking(), None).expect("a pair of sockets");
            let [one, other] = [pair.0, pair.1].map(|socket| Channel::new(socket).expect("a channel"));
            let (predecessor, mut waiting) = (Predecessor(one), Successor { channel: other, maps: 0 });
            let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a listener")).collect();
            let give = async {
                let (message, _) = waiting.channel.receive().await.expect("a message");
                let Message::Hello { maps, .. } = message else { panic!("{message:?}") };
                waiting.maps = maps;
                waiting.give(&descriptors(&listeners)).await
            };
            let (given, taken) = tokio::join!(give, predecessor.sockets(7));
            given.expect("all are given");
            let taken = taken.expect("all are taken");
            assert_eq!(addresses(&taken), addresses(&listeners));
            assert!(waiting.shares(7) && !waiting.shares(8));
            drop(predecessor);
            assert_eq!(waiting.established().await.expect_err("the end").kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    fn addresses(sockets: &[TcpListener]) -> Vec<SocketAddr> {
        sockets.iter().map(|socket| socket.local_addr().expect("its address")).collect()
    }
}
