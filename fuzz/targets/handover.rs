//! What agents say to each other: whatever the other one says, and in whatever order, we go on only if it is what the handover has
//! at this place, with every descriptor that came and none left open. Each line is a message: a digit, how many descriptors go
//! with it, and the text. An even number of bytes is what a predecessor says, an odd one what a successor does.

#![no_main]

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    net::TcpListener,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    rc::Rc,
};

use egress::handover::{StateDir, Successors};
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// Our version of the protocol, and the maps that we use.
const PROTOCOL: u32 = 2;
const MAPS: u32 = 7;
/// No message is longer, in bytes.
const MAX_LENGTH: usize = 1024;
/// More messages are not sent, so that they fit into the socket's buffer.
const MAX_MESSAGES: usize = 32;

/// What can be said.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Hello { protocol: u32, maps: u32 },
    Learned,
    Sockets { left: usize },
    Taking,
    Done,
    Relieved,
    Late,
}

/// A message with its number of descriptors; None if it is malformed.
type Said = Option<(Message, usize)>;

struct Site {
    runtime: Rc<Runtime>,
    /// Where we are the successor, and the predecessor listens.
    successor: StateDir,
    predecessor: Socket,
    /// Where we are the predecessor.
    successors: Successors,
    address: SockAddr,
    /// What goes along.
    listener: TcpListener,
    _directory: TempDir,
}

thread_local! {
    static SITE: RefCell<Option<Site>> = const { RefCell::new(None) };
}

fuzz_target!(|bytes: &[u8]| {
    SITE.with_borrow_mut(|site| {
        let site = site.get_or_insert_with(|| Site::new().expect("a place to meet"));
        let lowest = lowest_descriptor();
        site.run(bytes);
        assert_eq!(lowest_descriptor(), lowest, "a descriptor was left open");
    });
});

impl Site {
    fn new() -> io::Result<Self> {
        let runtime = Rc::new(Builder::new_current_thread().enable_all().build()?);
        let directory = tempfile::tempdir()?;
        let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
        let lock = |path: &Path| runtime.block_on(StateDir::lock(path)).map_err(io::Error::other);
        let successor = lock(&one)?;
        let predecessor = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        predecessor.bind(&SockAddr::unix(one.join("agent.sock"))?)?;
        predecessor.listen(1)?;

        let state = lock(&other)?;
        let successors = {
            let _guard = runtime.enter();
            state.listen().map_err(io::Error::other)?
        };
        state.publish().map_err(io::Error::other)?;
        let address = SockAddr::unix(other.join("agent.sock"))?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        Ok(Self { runtime, successor, predecessor, successors, address, listener, _directory: directory })
    }

    fn run(&mut self, bytes: &[u8]) {
        let runtime = Rc::clone(&self.runtime);
        runtime.block_on(async {
            if bytes.len().is_multiple_of(2) { self.succeed(bytes).await } else { self.precede(bytes).await }
        });
    }

    /// We are the successor.
    async fn succeed(&self, bytes: &[u8]) {
        let predecessor = self.successor.predecessor().expect("somebody listens");
        let (other, _) = self.predecessor.accept().expect("a connection");
        let mut said = self.say(&other, bytes).into_iter();

        let legacy = predecessor.legacy(MAPS).await;
        let (mut sockets, mut learned) = (0, false);
        let expected = loop {
            match said.next().flatten() {
                Some((Message::Learned, descriptors)) => learned = descriptors > 0,
                Some((Message::Sockets { left }, descriptors)) => {
                    sockets += descriptors;
                    if left == 0 {
                        break true;
                    }
                }
                _ => break false,
            }
        };
        assert_eq!(legacy.is_ok(), expected, "{:?}", legacy.err());
        let Ok(legacy) = legacy else { return };
        assert_eq!((legacy.sockets.len(), legacy.learned.is_some()), (sockets, learned));
        let address = self.listener.local_addr().expect("its address");
        for socket in legacy.sockets {
            assert_eq!(socket.local_addr().expect("its address"), address);
        }
        predecessor.take().await.expect("there is room for it");
        let is_late = predecessor.dismiss().await.is_err();
        assert_eq!(is_late, matches!(said.next().flatten(), Some((Message::Late, _))));
    }

    /// We are the predecessor.
    async fn precede(&mut self, bytes: &[u8]) {
        let other = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        other.connect(&self.address).expect("we listen");
        let mut said = self.say(&other, bytes).into_iter();

        let successor = self.successors.next().await;
        assert!(!self.successors.is_expecting());
        let expected = match said.next().flatten() {
            Some((Message::Hello { protocol: PROTOCOL, maps }, _)) => Some(maps),
            _ => None,
        };
        assert_eq!(successor.is_some(), expected.is_some());
        let (Some(successor), Some(maps)) = (successor, expected) else { return };
        assert!(successor.shares(maps) && !successor.shares(maps.wrapping_add(1)));
        let given = successor.give(None, &[self.listener.as_fd(); 3]).await;
        assert_eq!(given.is_ok(), matches!(said.next().flatten(), Some((Message::Taking, _))));
        if given.is_ok() {
            let established = successor.established().await;
            assert_eq!(established.is_ok(), matches!(said.next().flatten(), Some((Message::Done, _))));
        }
        successor.reject().await;
        successor.ended().await;
    }

    /// Says what the lines have, and no more.
    fn say(&self, to: &Socket, bytes: &[u8]) -> Vec<Said> {
        let mut said = Vec::new();
        for line in bytes.split(|byte| *byte == b'\n').take(MAX_MESSAGES) {
            let Some((&digit, text)) = line.split_first() else { break };
            let descriptors = vec![self.listener.as_raw_fd(); usize::from(digit.wrapping_sub(b'0').min(9))];
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
            sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(text)], control, MsgFlags::MSG_DONTWAIT, None)
                .expect("it fits into the buffer");
            let message = (text.len() <= MAX_LENGTH).then(|| serde_json::from_slice(text).ok()).flatten();
            said.push(message.map(|message| (message, descriptors.len())));
            if message.is_none() {
                // Nobody reads on.
                break;
            }
        }
        to.shutdown(std::net::Shutdown::Write).expect("it is connected");
        said
    }
}

/// The number that the next descriptor gets.
fn lowest_descriptor() -> i32 {
    Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket").as_raw_fd()
}
