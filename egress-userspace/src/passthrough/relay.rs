//! Bytes from one connection to another that nobody looks at. Few are copied; of many the kernel moves the pages
//! (splice(2)), which costs a pipe and has to be worth it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::{
    fcntl::{OFlag, SpliceFFlags, splice},
    unistd::pipe2,
};
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::timeout,
};

/// Bytes that are copied at once. More than that is moved.
const BUFFER: usize = 16 * 1024;
/// Bytes that are moved at once: what a pipe takes (pipe(7)).
const PIPE: usize = 64 * 1024;
/// How long a pipe is kept while nothing comes.
const PIPE_KEPT: Duration = Duration::from_secs(1);

/// Which of the connections has broken off.
#[derive(Debug)]
pub(super) enum Broken {
    From(io::Error),
    To(io::Error),
}

/// Passes all on that comes, until the end of it.
///
/// # Errors
/// One of the connections breaks off.
pub(super) async fn relay(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> Result<(), Broken> {
    let mut pipe = None;
    loop {
        if pipe.is_some() && timeout(PIPE_KEPT, from.readable()).await.is_err() {
            pipe = None;
        }
        // There is a buffer only while something is in it.
        from.readable().await.map_err(Broken::From)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        let count = match from.try_read_buf(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(Broken::From(error)),
        };
        to.write_all(&buffer).await.map_err(Broken::To)?;
        if count == BUFFER {
            // Without descriptors to spare it is copied as before.
            pipe = pipe.or_else(|| pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok());
            if let Some(pipe) = &pipe {
                move_much(from.as_ref(), to.as_ref(), pipe).await?;
            }
        } else {
            pipe = None;
        }
    }
}

/// Moves what is there. Whether more comes only a read can tell: before an urgent byte splice(2) finds nothing for ever, or the end.
async fn move_much(from: &TcpStream, to: &TcpStream, (out, into): &(OwnedFd, OwnedFd)) -> Result<(), Broken> {
    loop {
        // The pipe is empty here, so that it is the connection that has nothing.
        let mut left = match move_some(from, into, PIPE) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(Broken::From(error)),
        };
        while left > 0 {
            left -= to.async_io(Interest::WRITABLE, || move_some(out, to, left)).await.map_err(Broken::To)?;
        }
    }
}

fn move_some(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, most, flags)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::SockRef;
    use tokio::{
        io::AsyncReadExt as _,
        net::TcpListener,
        time::{sleep, timeout},
    };

    use super::*;

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let connecting = TcpStream::connect(listener.local_addr().expect("an address"));
        let (near, accepted) = tokio::join!(connecting, listener.accept());
        (near.expect("a connection"), accepted.expect("the same").0)
    }

    /// What arrives of pieces of these sizes, sent after pauses, at an end that takes so much at once.
    async fn relayed(pieces: &[(u64, usize)], at_once: usize) -> bool {
        let ((mut sender, mut source), (mut sink, mut receiver)) = (connection().await, connection().await);
        let bytes = |length: usize| (0..length).map(|number| (number % 251) as u8).collect::<Vec<_>>();
        let send = async {
            for (pause, length) in pieces {
                sleep(Duration::from_millis(*pause)).await;
                sender.write_all(&bytes(*length)).await.expect("somebody reads");
            }
            sender.shutdown().await.expect("it is open");
        };
        let pass = async {
            relay(&mut source.split().0, &mut sink.split().1).await.expect("both ends are in order");
            sink.shutdown().await.expect("it is open");
        };
        let receive = async {
            let (mut all, mut some) = (Vec::new(), vec![0; at_once]);
            loop {
                match receiver.read(&mut some).await.expect("it ends in order") {
                    0 => return all,
                    count => all.extend_from_slice(&some[..count]),
                }
            }
        };
        let ((), (), all) = tokio::join!(send, pass, receive);
        all == pieces.iter().flat_map(|(_, length)| bytes(*length)).collect::<Vec<_>>()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn all_arrives_in_order_however_much_there_is_at_a_time() {
        for at_once in [1000, 1024 * 1024] {
            let pieces =
                [(0, 10), (0, 5_000_000), (20, 3), (20, BUFFER), (20, 100), (20, 1_000_000), (1200, 1_000_000)];
            assert!(relayed(&pieces, at_once).await, "{at_once} bytes at once");
            assert!(relayed(&[], at_once).await);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn nothing_is_missing_behind_an_urgent_byte() {
        let ((mut sender, mut source), (mut sink, mut receiver)) = (connection().await, connection().await);
        let send = async {
            sender.write_all(&vec![b'a'; 10 * PIPE]).await.expect("somebody reads");
            SockRef::from(&sender).send_out_of_band(b"!").expect("there is room");
            sender.write_all(b"b").await.expect("somebody reads");
            sender.shutdown().await.expect("it is open");
        };
        let pass = async {
            relay(&mut source.split().0, &mut sink.split().1).await.expect("both ends are in order");
            sink.shutdown().await.expect("it is open");
        };
        let mut all = Vec::new();
        let ((), (), read) = tokio::join!(send, pass, receiver.read_to_end(&mut all));
        read.expect("it ends in order");
        assert_eq!((all.len(), all.last()), (10 * PIPE + 1, Some(&b'b')));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_takes_nothing_holds_back_the_sender_and_who_resets_ends_it() {
        let ((mut sender, mut source), (mut sink, receiver)) = (connection().await, connection().await);
        let bytes = vec![0; 64 * 1024 * 1024];
        let (mut from, _keep) = source.split();
        let (_keep, mut to) = sink.split();
        let passing = relay(&mut from, &mut to);
        tokio::pin!(passing);
        let held = timeout(Duration::from_millis(300), async { tokio::join!(sender.write_all(&bytes), &mut passing) });
        assert!(held.await.is_err(), "more was taken than anybody keeps");
        receiver.set_zero_linger().expect("a connection");
        drop(receiver);
        assert!(matches!(passing.await, Err(Broken::To(_))));
    }
}
