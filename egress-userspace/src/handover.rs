//! Upgrade without a lost request: a new agent takes the listening sockets of the one that runs, which then drains.
//!
//! Agents meet at a socket in the state directory. The successor prepares all that it can, and then:
//!
//! ```text
//! successor                       predecessor
//!   Hello (protocol, maps) ──────►  stops changing anything
//!                          ◄──────  Learned: the map of what applications were told, if theirs are not the same maps
//!                          ◄──────  Sockets: of its listeners, if they are, and of its admin address
//!   Taking                 ──────►
//!   listens, attaches
//!   Done                   ──────►
//!   serves                 ◄──────  Relieved; stops accepting, drains, ends
//! ```
//!
//! Meanwhile both accept from the same queues, and find their flows in the same maps. A successor that fails before
//! `Taking` has changed nothing; one that fails after it is undone by its predecessor, which goes on.
//!
//! Neither waits for the other without limit. A successor that takes too long is told so (`Late`), undone, and undone
//! again when it has ended: it may have gone on meanwhile. A predecessor that does not answer is left alone, and the
//! successor starts as if there were none. Should that one come to itself, it sees that the socket in the state directory
//! is another's ([`Successors::is_current`]), waits until no agent is starting, and ends; or it goes on, if nobody listens
//! at that socket any more.

mod channel;
mod state_dir;

use std::{
    fs::File,
    io,
    net::TcpListener,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use socket2::Socket;
use tokio::{io::unix::AsyncFd, time};

use self::channel::{Channel, Message, unexpected};
pub use self::state_dir::{DEFAULT_DIR, START_LIMIT, StateDir, StateError};

/// Version of the messages and of their order.
const PROTOCOL: u32 = 2;

/// How long the other one may take to answer. It has nothing to do but to send or to receive.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long a successor may take from `Taking` to `Done`. New namespaces are not served meanwhile.
const TAKING_LIMIT: Duration = Duration::from_secs(15);

/// The agent that runs, as its successor sees it.
pub struct Predecessor(Channel);

/// What a predecessor gives.
#[derive(Default)]
pub struct Legacy {
    /// Its listening sockets.
    pub sockets: Vec<TcpListener>,
    /// Its map of what applications were told, where it is not ours too.
    pub learned: Option<OwnedFd>,
}

/// The predecessor has waited for too long, and goes on.
#[derive(Debug, thiserror::Error)]
#[error("the agent that runs has waited {} s for this one to take over, and goes on; start it again", TAKING_LIMIT.as_secs())]
pub struct Late;

impl Predecessor {
    /// Asks for what it has to give. From now on it changes nothing in the kernel, until it is told more, or this value is
    /// dropped and it goes on. It waits for [`Self::take`] as long as for an answer. `maps` tells whether the sockets of its
    /// listeners are of use: see [`crate::kernel::Flows::id`].
    ///
    /// # Errors
    /// It does not answer in time, or not as it should.
    pub async fn legacy(&self, maps: u32) -> io::Result<Legacy> {
        let ask = async {
            self.0.send(&Message::Hello { protocol: PROTOCOL, maps }, &[]).await?;
            let mut legacy = Legacy::default();
            loop {
                let (message, mut descriptors) = self.0.receive().await?;
                match message {
                    Message::Learned => legacy.learned = descriptors.pop(),
                    Message::Sockets { left } => {
                        legacy.sockets.extend(descriptors.into_iter().map(TcpListener::from));
                        if left == 0 {
                            break;
                        }
                    }
                    message => return Err(unexpected(&message)),
                }
            }
            Ok(legacy)
        };
        time::timeout(ANSWER_LIMIT, ask).await?
    }

    /// Says that its place is taken now. Before that nothing is to be changed.
    ///
    /// # Errors
    /// It has gone.
    pub async fn take(&self) -> io::Result<()> {
        time::timeout(ANSWER_LIMIT, self.0.send(&Message::Taking, &[])).await?
    }

    /// Tells it to go.
    ///
    /// # Errors
    /// It has given up before, and the place is its own again.
    pub async fn dismiss(self) -> Result<(), Late> {
        let dismiss = async {
            self.0.send(&Message::Done, &[]).await?;
            self.0.receive().await
        };
        match time::timeout(ANSWER_LIMIT, dismiss).await {
            Ok(Ok((Message::Late, _))) => Err(Late),
            Ok(Ok(_)) => Ok(()),
            // If it is gone already, so much the better.
            Ok(Err(error)) => {
                tracing::debug!(%error, "the agent that handed over has ended");
                Ok(())
            }
            Err(_) => {
                tracing::warn!("the agent that handed over does not answer; it ends as soon as it comes to itself");
                Ok(())
            }
        }
    }
}

/// Where successors announce themselves.
pub struct Successors {
    socket: AsyncFd<Socket>,
    /// The state directory, and the inode of our socket's file there.
    path: PathBuf,
    directory: File,
    inode: u64,
    /// One that has not said what it wants.
    waiting: Option<Channel>,
}

impl Successors {
    /// Whether this still is where successors look. If not, another agent has our place.
    pub fn is_current(&self) -> bool {
        state_dir::inode_of_socket(&self.directory).is_none_or(|inode| inode == self.inode)
    }

    /// Waits until no agent is starting, and keeps others from it for as long as what it gives lives.
    ///
    /// # Errors
    /// The wait is too long, or the directory is not what it was.
    pub async fn lock(&self) -> Result<StateDir, StateError> {
        StateDir::lock(&self.path).await
    }

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

    /// Gives it our sockets, and the map of what applications were told if it has another.
    ///
    /// # Errors
    /// It went away or does not answer, and has changed nothing.
    pub async fn give(&self, learned: Option<BorrowedFd<'_>>, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let give = async {
            if let Some(learned) = learned {
                self.channel.send(&Message::Learned, &[learned]).await?;
            }
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
        };
        time::timeout(ANSWER_LIMIT, give).await?
    }

    /// Waits until it has taken over, and confirms that.
    ///
    /// # Errors
    /// It went away, or takes too long; it may have changed anything.
    pub async fn established(&self) -> io::Result<()> {
        time::timeout(TAKING_LIMIT, self.expect(|message| matches!(message, Message::Done))).await??;
        // If it does not wait for this any more it has the place all the same.
        let _ = self.channel.send(&Message::Relieved, &[]).await;
        Ok(())
    }

    /// Tells it that it is too late.
    pub async fn reject(&self) {
        // One that is gone needs not be told.
        let _ = self.channel.send(&Message::Late, &[]).await;
    }

    /// Waits until it has ended. May be cancelled.
    pub async fn ended(&self) {
        while self.channel.receive().await.is_ok() {}
    }

    async fn expect(&self, expected: impl Fn(&Message) -> bool) -> io::Result<()> {
        let (message, _) = self.channel.receive().await?;
        if expected(&message) { Ok(()) } else { Err(unexpected(&message)) }
    }
}

/// The descriptors of sockets, for [`Successor::give`].
pub fn descriptors<'a>(sockets: impl IntoIterator<Item = &'a (impl AsFd + 'a)>) -> Vec<BorrowedFd<'a>> {
    sockets.into_iter().map(AsFd::as_fd).collect()
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
                waiting.give(None, &descriptors(&listeners)).await
            };
            let take = async {
                let legacy = predecessor.legacy(7).await?;
                predecessor.take().await.map(|()| legacy)
            };
            let (given, taken) = tokio::join!(give, take);
            given.expect("all are given");
            let taken = taken.expect("all are taken");
            assert_eq!(addresses(&taken.sockets), addresses(&listeners));
            assert!(taken.learned.is_none());
            assert!(waiting.shares(7) && !waiting.shares(8));
            drop(predecessor);
            assert_eq!(waiting.established().await.expect_err("the end").kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    fn addresses(sockets: &[TcpListener]) -> Vec<SocketAddr> {
        sockets.iter().map(|socket| socket.local_addr().expect("its address")).collect()
    }
}
