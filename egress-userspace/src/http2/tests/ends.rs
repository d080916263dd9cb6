//! How connections end.

use std::{
    io,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::*;

#[test]
fn an_origin_that_goes_away_says_what_it_has_not_looked_at() {
    let mut client = client();
    let third = key(&client, 5);
    feed(&mut client, &frame(kind::GOAWAY, 0, 0, b"\0\0\0\x03\0\0\0\0")).expect("it is in order");
    assert!(client.is_closed());
    assert!(matches!(&client.streams[third].error, Some(Error::GoAway { by: By::Peer, .. })));
    feed(&mut client, &[head(1, OK, true), head(3, OK, false)].concat()).expect("others go on");
    client.fail(&io::Error::from(io::ErrorKind::UnexpectedEof).into());
    let ends = client.streams.iter().map(|(_, stream)| (stream.id, stream.is_received, stream.error.is_some()));
    assert_eq!(ends.collect::<Vec<_>>(), [(1, true, false), (3, false, true), (5, false, true)]);
}

/// What one end says the other end reads, until it ends.
#[tokio::test]
async fn who_ends_its_own_side_gives_up_what_was_not_asked_to_its_end() {
    let (mut peer, own) = tokio::io::duplex(1000);
    let mut serving = Connection::new(own, Role::Server, config());
    let request = [PREFACE, &frame(kind::SETTINGS, 0, 0, b"")[..], &head(1, GET, true), &head(3, POST, false)].concat();
    peer.write_all(&request).await.expect("it is read");
    let Ok(Some((_, _reader, writer))) = accept(&mut serving).await else { panic!("no request") };
    let Ok(Some(other)) = accept(&mut serving).await else { panic!("no other request") };
    writer.respond(&ResponseHead::from(StatusCode::OK), false).expect("it is open");
    writer.send(&mut Bytes::from(vec![b'x'; 10_000]), true).expect("it is open");
    peer.shutdown().await.expect("it is open");
    let read = async {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).await.expect("it comes to its end");
        all
    };
    let (ended, all) = tokio::join!(accept(&mut serving), read);
    assert!(matches!(ended, Ok(None)) && other.1.poll_data(&Context::from_waker(Waker::noop())).is_ready());
    assert!(all.windows(9000).any(|window| window.iter().all(|byte| *byte == b'x')), "{} bytes", all.len());
}

#[tokio::test]
async fn who_ends_its_own_side_gets_as_much_as_it_has_let_us_send() {
    let (mut peer, own) = tokio::io::duplex(1 << 20);
    let mut serving = Connection::new(own, Role::Server, config());
    let asked = [1, 3, 5].map(|stream| head(stream, GET, true)).concat();
    let begin = [PREFACE, &frame(kind::SETTINGS, 0, 0, b"")[..], &asked].concat();
    peer.write_all(&begin).await.expect("it is read");
    peer.shutdown().await.expect("it is open");
    let mut writers = Vec::new();
    for _ in 0..3 {
        let Ok(Some((_, _, writer))) = accept(&mut serving).await else { panic!("no request") };
        writers.push(writer);
    }
    assert!(serving.poll(&mut Context::from_waker(Waker::noop())).is_pending(), "it is owed three responses");
    // The windows of all of them together, and no more.
    let lengths = [WINDOW as usize - 1001, 2000, 1000];
    let answering = async {
        for (writer, length) in writers.iter().zip(lengths) {
            writer.respond(&ResponseHead::from(StatusCode::OK), false).expect("it is open");
            let mut content = Bytes::from(vec![b'x'; length]);
            while !content.is_empty() && poll_fn(|cx| writer.poll_room(cx)).await.is_ok() {
                let _ = writer.send(&mut content, true);
            }
        }
        drop(writers);
    };
    let read = async {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).await.expect("it comes to its end");
        all
    };
    let (ended, (), all) = tokio::join!(accept(&mut serving), answering, read);
    assert!(matches!(ended, Ok(None)));
    let (mut ends, mut rest) = (Vec::new(), &all[..]);
    while let Some(Header { length, kind, flags, stream }) = Header::read(rest) {
        if stream > 0 && (kind == kind::RST_STREAM || flags & flag::END_STREAM > 0) {
            let is_cancelled = kind == kind::RST_STREAM && rest[HEADER..].starts_with(&[0, 0, 0, 8]);
            ends.push((stream, if is_cancelled { "cancelled" } else { "ended" }));
        }
        rest = &rest[HEADER + length..];
    }
    assert_eq!(ends, [(1, "ended"), (3, "cancelled"), (5, "cancelled")]);
}

#[test]
fn who_drains_serves_what_has_begun_and_nothing_after_its_last_word() {
    let mut server = core(Role::Server);
    feed(&mut server, &head(1, POST, false)).expect("it is in order");
    server.close_gracefully();
    let frames = said(&mut server);
    assert_eq!(frames[0], (kind::GOAWAY, 0, b"\x7f\xff\xff\xff\0\0\0\0".to_vec()));
    let pong = frame(kind::PING, flag::ACK, 0, &frames[1].2);
    let bytes = [head(3, POST, false), pong, head(5, POST, false), data(5, b"x", true), data(1, b"x", true)].concat();
    feed(&mut server, &bytes).expect("it is in order");
    assert_eq!(said(&mut server), [(kind::GOAWAY, 0, b"\0\0\0\x03\0\0\0\0".to_vec())]);
    assert_eq!(server.accepted.len(), 2);
    assert!(server.streams[key(&server, 1)].is_received);
}

/// The client is told to begin no other stream, and what it has begun by then is served.
#[tokio::test]
async fn a_connection_that_its_client_has_ended_ends_with_its_last_stream() {
    let (mut peer, own) = tokio::io::duplex(10_000);
    let mut serving = Connection::new(own, Role::Server, config());
    let begin = [PREFACE, &frame(kind::SETTINGS, 0, 0, b"")[..], &head(1, GET, true)].concat();
    let end = [frame(kind::GOAWAY, 0, 0, &[0; 8]), head(3, GET, true)].concat();
    peer.write_all(&[begin, end].concat()).await.expect("it is read");
    let mut served = Vec::new();
    for _ in 0..2 {
        let Ok(Some((_, reader, writer))) = accept(&mut serving).await else { panic!("no request") };
        served.push((reader, writer));
    }
    // What is answered is the last PING.
    peer.write_all(&frame(kind::PING, flag::ACK, 0, b"draining")).await.expect("it is read");
    for (_, writer) in served {
        writer.respond(&ResponseHead::from(StatusCode::OK), true).expect("it is open");
    }
    let ended = tokio::time::timeout(Duration::from_secs(10), accept(&mut serving)).await;
    assert!(matches!(ended, Ok(Ok(None))));
    let mut all = Vec::new();
    peer.read_to_end(&mut all).await.expect("it comes to its end");
    let last_word = frame(kind::GOAWAY, 0, 0, b"\0\0\0\x03\0\0\0\0");
    assert!(all.windows(last_word.len()).any(|window| window == last_word), "{all:?}");
}

/// A connection whose other end has closed it, which has not been seen by reading.
struct Closed;

impl AsyncRead for Closed {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Closed {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_connection_that_cannot_be_written_to_takes_no_more_requests() {
    let mut connection = Connection::new(Closed, Role::Client, config());
    let (link, mut cx) = (connection.link(), Context::from_waker(Waker::noop()));
    let (reader, _writer) = link.ask(&asked(&Fields::default()), true);
    let mut other = pin!(link.ready());
    assert!(other.as_mut().poll(&mut cx).is_pending(), "its settings have not come");
    assert!(connection.poll(&mut cx).is_pending() && reader.poll_head(&cx).is_pending(), "the response may have come");
    assert!(link.is_closed() && matches!(other.poll(&mut cx), Poll::Ready(Err(Error::GoAway { by: By::Peer, .. }))));
}

#[test]
fn who_takes_no_streams_says_so_of_one_that_is_asked_for() {
    let (mut core, cx) = (core(Role::Client), Context::from_waker(Waker::noop()));
    feed(&mut core, &frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0])).expect("it is in order");
    assert!(core.poll_open(&cx).is_ready());
    ask(&mut core, &Fields::default(), true);
    assert!(core.poll_open(&cx).is_pending());
}

#[tokio::test]
async fn who_is_not_read_owes_nothing_meanwhile() {
    let (mut peer, own) = tokio::io::duplex(1000);
    let mut serving = Connection::new(own, Role::Server, config());
    let (link, mut cx) = (serving.link(), Context::from_waker(Waker::noop()));
    // It ends in the middle of a frame.
    let begun = [PREFACE, &frame(kind::SETTINGS, 0, 0, b"")[..], b"\0\0\x08"].concat();
    peer.write_all(&begun).await.expect("it is read");
    assert!(serving.poll(&mut cx).is_pending() && link.owed_since().is_some());
    let long = Duration::from_secs(3600);
    {
        let core = &mut *link.0.borrow_mut();
        core.owed_since = core.owed_since.map(|since| since - long);
        // More than it takes at once.
        core.out.push(vec![b'x'; 1 << 18].into());
    }
    assert_eq!(link.owed_since(), None);
    assert!(serving.poll(&mut cx).is_pending());
    assert!(link.owed_since().is_some_and(|since| since.elapsed() < long));
}

#[tokio::test]
async fn who_does_not_read_what_answers_it_is_read_no_more() {
    let (mut peer, own) = tokio::io::duplex(10_000);
    let mut serving = Connection::new(own, Role::Server, config());
    let (link, mut cx) = (serving.link(), Context::from_waker(Waker::noop()));
    let unwritten = || link.0.borrow().out.len();
    peer.write_all(&[PREFACE, &frame(kind::SETTINGS, 0, 0, b"")[..]].concat()).await.expect("it is read");
    let pings = frame(kind::PING, 0, 0, b"12345678").repeat(100);
    let mut sent = 0;
    loop {
        while let Poll::Ready(written) = Pin::new(&mut peer).poll_write(&mut cx, &pings[sent % pings.len()..]) {
            sent += written.expect("it is open");
        }
        let before = unwritten();
        assert!(serving.poll(&mut cx).is_pending());
        if unwritten() == before {
            break;
        }
        // It has had its turn, as far as tokio is concerned.
        tokio::task::yield_now().await;
    }
    assert!((100_000..300_000).contains(&unwritten()), "{} bytes", unwritten());
    // That it owes, for as long as it reads none of it.
    let long = Duration::from_secs(3600);
    let since = |core: &mut Core| core.full_since = core.full_since.map(|since| since - long);
    since(&mut link.0.borrow_mut());
    assert!(serving.poll(&mut cx).is_pending());
    assert!(link.owed_since().is_some_and(|since| since.elapsed() >= long));
    peer.read_exact(&mut [0; 1000]).await.expect("it is written");
    assert!(serving.poll(&mut cx).is_pending());
    assert!(link.owed_since().is_some_and(|since| since.elapsed() < long));
}
