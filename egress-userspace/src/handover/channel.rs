//! Messages between two agents, with descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt::PeerCredentials,
    },
    unistd::geteuid,
};
use serde::{Deserialize, Serialize};
use socket2::Socket;
use tokio::io::{Interest, unix::AsyncFd};

/// Descriptors that go with one message; the kernel's limit is 253 (SCM_MAX_FD).
pub(super) const MAX_DESCRIPTORS: usize = 250;

/// No message is longer.
const MAX_LENGTH: usize = 1024;

/// What agents say.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// From the successor, which asks for sockets.
    Hello { protocol: u32, maps: u32 },
    /// The map of what applications were told goes with it.
    Learned,
    /// Listening sockets go with it, and so many are to follow.
    Sockets { left: usize },
    /// From the successor: it has all of them, and begins to change what is in the kernel.
    Taking,
    /// From the successor: the place is taken.
    Done,
    /// From the predecessor: it leaves.
    Relieved,
    /// From the predecessor: it has waited for too long, and goes on.
    Late,
}

/// A connection to another agent of the same user. It keeps messages apart (SOCK_SEQPACKET).
#[derive(Debug)]
pub(super) struct Channel(AsyncFd<Socket>);

impl Channel {
    /// A channel over a connected socket.
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        let user = getsockopt(&socket, PeerCredentials)?.uid();
        if user != geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the other end runs as user {user}")));
        }
        // SAFETY: the socket owns its descriptor, which neither closes nor changes before it is dropped.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// Sends a message.
    pub(super) async fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        let send = |socket: &Socket| {
            let flags = MsgFlags::MSG_NOSIGNAL;
            Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&text)], control, flags, None)?)
        };
        self.0.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// Receives a message. May be cancelled: it is then still to be received.
    pub(super) async fn receive(&self) -> io::Result<(Message, Vec<OwnedFd>)> {
        self.0.async_io(Interest::READABLE, receive).await
    }
}

fn receive(socket: &Socket) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut text = [0; MAX_LENGTH];
    let mut space = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(&mut text)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let (length, flags) = (received.bytes, received.flags);
    let descriptors: Vec<OwnedFd> = received
        .cmsgs()?
        .filter_map(
            |message| if let ControlMessageOwned::ScmRights(descriptors) = message { Some(descriptors) } else { None },
        )
        .flatten()
        // SAFETY: the kernel has just given us these descriptors.
        .map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
        .collect();
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if flags.intersects(MsgFlags::MSG_CTRUNC | MsgFlags::MSG_TRUNC) {
        // This process has too few descriptors, or the sender is of another kind.
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message did not come whole"));
    }
    Ok((serde_json::from_slice(&text[..length])?, descriptors))
}

/// Accepts a connection. May be cancelled.
pub(super) async fn accept(socket: &AsyncFd<Socket>) -> io::Result<Channel> {
    let (accepted, _) = socket.async_io(Interest::READABLE, Socket::accept).await?;
    accepted.set_nonblocking(true)?;
    Channel::new(accepted)
}

/// A message that is not in its place.
pub(super) fn unexpected(message: &Message) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected message {message:?}"))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsFd as _};

    use socket2::{Domain, Type};

    use super::*;

    #[tokio::test]
    async fn messages_come_one_by_one_with_their_descriptors() {
        let (one, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET.nonblocking(), None).expect("a pair of sockets");
        let [one, other] = [one, other].map(|socket| Channel::new(socket).expect("a channel"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let many = vec![listener.as_fd(); MAX_DESCRIPTORS];
        one.send(&Message::Sockets { left: 7 }, &many).await.expect("it is sent");
        one.send(&Message::Done, &[]).await.expect("it is sent");
        drop(one);
        let (message, descriptors) = other.receive().await.expect("the first message");
        assert!(matches!(message, Message::Sockets { left: 7 }), "{message:?}");
        let address = listener.local_addr().expect("its address");
        assert_eq!(descriptors.len(), MAX_DESCRIPTORS);
        for descriptor in descriptors {
            assert_eq!(TcpListener::from(descriptor).local_addr().expect("its address"), address);
        }
        let (message, descriptors) = other.receive().await.expect("the second message");
        assert!(matches!(message, Message::Done) && descriptors.is_empty(), "{message:?}");
        assert_eq!(other.receive().await.expect_err("the end").kind(), io::ErrorKind::UnexpectedEof);
    }
}
