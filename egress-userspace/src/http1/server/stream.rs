//! An application's connection, and when epoll is to know of it.

use std::{
    io, net,
    os::fd::{AsFd, BorrowedFd},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, ReadBuf, unix::AsyncFd},
    task::coop::consume_budget,
};

/// A connection that is watched by the runtime's epoll once somebody has to wait for its client. Many of those that are made for one
/// request never are: that has come when it is first looked for, and the kernel takes the response at once.
pub struct ClientStream(
    /// None only while it changes hands in `watch`.
    Option<Socket>,
);

enum Socket {
    Unwatched(net::TcpStream),
    Watched(AsyncFd<net::TcpStream>),
}

impl ClientStream {
    /// A connection whose socket does not block.
    pub fn new(socket: net::TcpStream) -> Self {
        Self(Some(Socket::Unwatched(socket)))
    }

    /// Whether it is watched.
    pub(super) fn is_watched(&self) -> bool {
        matches!(self.0, Some(Socket::Watched(_)))
    }

    /// Has it watched from now on. What has come before is told of too, as is what there is room for.
    ///
    /// # Errors
    /// The system has no more room for that.
    pub(super) fn watch(&mut self) -> io::Result<()> {
        let (socket, done) = match self.0.take() {
            // SAFETY: it owns its descriptor, which neither closes nor changes before it is dropped.
            Some(Socket::Unwatched(socket)) => match unsafe { AsyncFd::register(socket) } {
                Ok(socket) => (Some(Socket::Watched(socket)), Ok(())),
                Err(failed) => {
                    let (socket, error) = failed.into_parts();
                    tracing::warn!(%error, "a client cannot be waited for");
                    (Some(Socket::Unwatched(socket)), Err(error))
                }
            },
            socket => (socket, Ok(())),
        };
        self.0 = socket;
        done
    }

    fn watched(&mut self) -> io::Result<&AsyncFd<net::TcpStream>> {
        if !self.is_watched() {
            self.watch()?;
        }
        match &self.0 {
            Some(Socket::Watched(socket)) => Ok(socket),
            _ => unreachable!("it has just been made so"),
        }
    }

    /// Waits until something has come, or the connection has failed.
    pub(super) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watched()?.poll_read_ready(cx).map_ok(|_| ())
    }

    /// Sends what the kernel takes of `length` bytes. When that is less, the next write waits for it to take more, without asking first.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        length: usize,
        send: impl Fn(SockRef<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if let Some(Socket::Unwatched(socket)) = &self.0 {
            ready!(poll_turn(cx));
            match send(SockRef::from(socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) if count < length => {
                    // That it cannot be watched is said to whoever waits.
                    let _ = self.watch();
                    return Poll::Ready(Ok(count));
                }
                sent => return Poll::Ready(sent),
            }
        }
        let socket = self.watched()?;
        loop {
            let mut room = ready!(socket.poll_write_ready(cx))?;
            match send(SockRef::from(socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => room.clear_ready(),
                sent => {
                    if sent.as_ref().is_ok_and(|count| *count < length) {
                        room.clear_ready();
                    }
                    return Poll::Ready(sent);
                }
            }
        }
    }
}

impl AsFd for ClientStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Some(Socket::Unwatched(socket)) => socket.as_fd(),
            Some(Socket::Watched(socket)) => socket.as_fd(),
            None => unreachable!("it is put back before anybody asks"),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(Socket::Unwatched(socket)) = &self.0 {
            ready!(poll_turn(cx));
            match receive(socket, buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Poll::Ready(received.map(drop)),
            }
        }
        let socket = self.watched()?;
        loop {
            let mut come = ready!(socket.poll_read_ready(cx))?;
            let room = buffer.remaining();
            match receive(socket, buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => come.clear_ready(),
                received => {
                    // Less than there is room for is all that there was (epoll(7), question 9).
                    if received.as_ref().is_ok_and(|count| (1..room).contains(count)) {
                        come.clear_ready();
                    }
                    return Poll::Ready(received.map(drop));
                }
            }
        }
    }
}

/// Reads what has come, and gives how much.
fn receive(socket: &impl AsFd, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
    // SAFETY: nothing is written to it but bytes.
    let room = unsafe { buffer.unfilled_mut() };
    let count = SockRef::from(socket).recv(room)?;
    // SAFETY: so many have been filled.
    unsafe { buffer.assume_init(count) };
    buffer.advance(count);
    Ok(count)
}

/// Keeps nobody else from his turn, as whatever is watched does by itself.
fn poll_turn(cx: &mut Context<'_>) -> Poll<()> {
    pin!(consume_budget()).poll(cx)
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        future::poll_fn,
        io::{Read as _, Write as _},
    };

    use bytes::BytesMut;
    use tokio::io::AsyncReadExt as _;

    use super::{
        super::{Connection, Limits, Waited},
        *,
    };

    /// Both ends of a connection.
    pub(crate) fn pair() -> (ClientStream, net::TcpStream) {
        let listener = net::TcpListener::bind("127.0.0.1:0").expect("loopback is there");
        let far = net::TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let near = listener.accept().expect("it has connected").0;
        near.set_nonblocking(true).expect("it is a socket");
        (ClientStream::new(near), far)
    }

    async fn send(near: &mut ClientStream, bytes: &[u8]) -> io::Result<usize> {
        poll_fn(|cx| near.poll_send(cx, bytes.len(), |socket| socket.send(bytes))).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn it_is_watched_once_somebody_has_to_wait() {
        let (mut near, mut far) = pair();
        assert_eq!(send(&mut near, b"bytes").await.ok(), Some(5));
        assert!(!near.is_watched());
        let more = vec![0; 100_000_000];
        let sent = send(&mut near, &more).await.expect("nobody resets it");
        assert!(sent < more.len() && near.is_watched(), "{sent}");
        // There is no room before that is read.
        let reading = std::thread::spawn(move || far.read_exact(&mut vec![0; 5 + sent]));
        assert!(send(&mut near, b"rest").await.is_ok());
        assert!(reading.join().expect("it reads").is_ok());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_has_come_is_read_without_and_what_comes_is_waited_for() {
        for is_early in [false, true] {
            let (mut near, mut far) = pair();
            let mut room = [0; 10];
            if is_early {
                far.write_all(b"early").expect("there is room");
                assert_eq!(near.read(&mut room).await.ok(), Some(5));
                assert!(!near.is_watched());
            }
            // What comes before it is watched is told of, too.
            far.write_all(b"bytes").expect("there is room");
            near.watch().expect("there is room");
            assert_eq!(near.read(&mut room[..2]).await.ok(), Some(2));
            assert_eq!(near.read(&mut room[2..]).await.ok(), Some(3));
            assert_eq!(&room[..5], b"bytes");
            let reading = near.read(&mut room);
            let later = async {
                tokio::task::yield_now().await;
                far.write_all(b"later").expect("there is room");
            };
            assert_eq!(tokio::join!(reading, later).0.ok(), Some(5));
            drop(far);
            assert_eq!(near.read(&mut room).await.ok(), Some(0));
            assert_eq!(near.read(&mut room).await.ok(), Some(0));
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_request_that_has_come_needs_no_watching_however_long_it_is() {
        let limits = Limits { head: 100_000, fields: 10 };
        for (head, content) in [(100, 10), (5_000, 0), (20_000, 0), (100, 5_000), (5_000, 20_000)] {
            let (near, mut far) = pair();
            let value = "x".repeat(head);
            let request = format!("POST / HTTP/1.1\r\nHost: a\r\nX: {value}\r\nContent-Length: {content}\r\n\r\n");
            far.write_all(&[request.as_bytes(), &vec![b'x'; content]].concat()).expect("there is room");
            let connection = Connection::new(near, BytesMut::new(), limits);
            let waited = poll_fn(|cx| connection.poll_request(cx)).await;
            assert!(matches!(waited, Ok(Waited::Request(..))), "{head} {content}");
            while poll_fn(|cx| connection.poll_content(cx)).await.is_some() {}
            assert!(connection.is_end() && !connection.io.borrow().stream.is_watched(), "{head} {content}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_is_silent_is_waited_for() {
        let (mut near, mut far) = pair();
        let mut room = [0; 10];
        let later = async {
            tokio::task::yield_now().await;
            far.write_all(b"later").expect("there is room");
        };
        assert_eq!(tokio::join!(near.read(&mut room), later).0.ok(), Some(5));
        assert!(near.is_watched());
    }
}
