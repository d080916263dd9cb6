//! Both ends of a connection, by what they say.

mod ends;
mod turns;
mod windows;

use std::{
    cell::Cell,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use tokio::io::DuplexStream;

use super::{
    core::Core,
    frame::{HEADER, Header, MAX_SIZE, PREFACE, flag, kind},
    heads::Sent,
    *,
};
use crate::{
    head::{Fields, ResponseHead},
    http1::{Fault, Limits, Output},
};

const WINDOW: u32 = 64 * 1024;
const STREAMS: u32 = 8;
const HEADS: Limits = Limits { head: 64 * 1024, fields: 1000 };
/// What a server says: 200. GET, https, / and POST, as RFC 7541 has them by its appendix A, with an authority.
const OK: &[u8] = b"\x88";
const GET: &[u8] = b"\x82\x87\x84\x41\x01a";
const POST: &[u8] = b"\x83\x87\x84\x41\x01a";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&Header { length: payload.len(), kind, flags, stream }.bytes()[..], payload].concat()
}

fn head(stream: u32, block: &[u8], is_last: bool) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS | u8::from(is_last), stream, block)
}

fn data(stream: u32, payload: &[u8], is_last: bool) -> Vec<u8> {
    frame(kind::DATA, u8::from(is_last), stream, payload)
}

fn config() -> Config {
    Config {
        stream_window: WINDOW,
        connection_window: WINDOW,
        streams: STREAMS,
        heads: HEADS,
        unread: Rc::default(),
        trailers: Box::new(|_| true),
    }
}

/// An end whose other one has said that it has no settings.
fn core(role: Role) -> Core {
    let mut core = Core::new(role, config());
    let preface: &[u8] = if role == Role::Server { PREFACE } else { b"" };
    let acknowledged = frame(kind::SETTINGS, flag::ACK, 0, b"");
    feed(&mut core, &[preface, &frame(kind::SETTINGS, 0, 0, b""), &acknowledged].concat()).expect("it is in order");
    said(&mut core);
    core
}

/// A client that has asked for three things, in streams 1, 3 and 5; the second one goes on.
fn client() -> Core {
    let mut core = core(Role::Client);
    for is_all in [true, false, true] {
        ask(&mut core, &Fields::default(), is_all);
    }
    said(&mut core);
    core
}

fn ask(core: &mut Core, fields: &Fields, is_all: bool) -> usize {
    core.open(&Sent::Request(&asked(fields)), is_all)
}

fn asked(fields: &Fields) -> Asked<'_> {
    Asked {
        method: &Method::GET,
        scheme: "https",
        authority: "a.example",
        path: "/x",
        protocol: None,
        fields,
        left_out: None,
        trailers: false,
    }
}

fn feed(core: &mut Core, bytes: &[u8]) -> Result<(), Error> {
    core.receive(&mut BytesMut::from(bytes))
}

/// Waits for the other end to begin a stream. None when the connection has ended.
async fn accept(serving: &mut Connection<DuplexStream>) -> Result<Option<(Requested, Reader, Writer)>, Error> {
    poll_fn(|cx| {
        let polled = serving.poll(cx);
        match serving.link().accepted() {
            Some(accepted) => Poll::Ready(Ok(Some(accepted))),
            None => polled.map_ok(|()| None),
        }
    })
    .await
}

/// All that is to be written.
fn written(core: &mut Core) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(std::mem::take(&mut core.out).poll_write(&mut bytes, &mut cx).is_ready());
    core.out = Output::default();
    bytes
}

/// The same, as type, stream and payload.
fn said(core: &mut Core) -> Vec<(u8, u32, Vec<u8>)> {
    let bytes = written(core);
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(&bytes);
    let mut frames = Vec::new();
    while let Some(Header { length, kind, stream, .. }) = Header::read(rest) {
        assert!(length <= MAX_SIZE);
        frames.push((kind, stream, rest[HEADER..HEADER + length].to_vec()));
        rest = &rest[HEADER + length..];
    }
    assert!(rest.is_empty());
    frames
}

fn key(core: &Core, id: u32) -> usize {
    *core.ids.get(&id).expect("it is open")
}

#[test]
fn who_does_not_keep_to_the_protocol_loses_the_connection() {
    let long = frame(kind::PING, 0, 0, &vec![0; MAX_SIZE + 1]);
    for (role, bytes, reason) in [
        (Role::Client, long, Reason::FRAME_SIZE_ERROR),
        (Role::Client, frame(kind::PING, 0, 0, b"1234567"), Reason::FRAME_SIZE_ERROR),
        (Role::Client, frame(kind::PING, 0, 1, b"12345678"), Reason::PROTOCOL_ERROR),
        (Role::Client, frame(kind::PRIORITY, 0, 0, b"12345"), Reason::PROTOCOL_ERROR),
        (Role::Client, frame(kind::SETTINGS, 0, 0, b"12345"), Reason::FRAME_SIZE_ERROR),
        (Role::Client, frame(kind::SETTINGS, flag::ACK, 0, b""), Reason::PROTOCOL_ERROR),
        (Role::Client, frame(kind::SETTINGS, 0, 0, b"\0\x04\x80\0\0\0"), Reason::FLOW_CONTROL_ERROR),
        (Role::Client, frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, b"\0\0\0\x02\x82"), Reason::PROTOCOL_ERROR),
        (Role::Client, head(2, OK, true), Reason::PROTOCOL_ERROR),
        (Role::Client, head(7, OK, true), Reason::PROTOCOL_ERROR),
        (Role::Client, data(7, b"x", false), Reason::PROTOCOL_ERROR),
        (Role::Client, frame(kind::RST_STREAM, 0, 7, b"\0\0\0\x08"), Reason::PROTOCOL_ERROR),
        (Role::Client, frame(kind::WINDOW_UPDATE, 0, 0, b"\0\0\0\0"), Reason::PROTOCOL_ERROR),
        (Role::Client, frame(kind::WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), Reason::FLOW_CONTROL_ERROR),
        (Role::Client, frame(kind::DATA, flag::PADDED, 1, b"\x05abc"), Reason::PROTOCOL_ERROR),
        (Role::Client, frame(kind::CONTINUATION, flag::END_HEADERS, 1, OK), Reason::PROTOCOL_ERROR),
        (Role::Client, [frame(kind::HEADERS, 0, 1, OK), data(3, b"x", false)].concat(), Reason::PROTOCOL_ERROR),
        (Role::Client, head(1, b"\xff\xff\xff\xff\xff\xff", true), Reason::COMPRESSION_ERROR),
        (Role::Server, head(2, GET, true), Reason::PROTOCOL_ERROR),
        (Role::Server, data(1, b"x", false), Reason::PROTOCOL_ERROR),
    ] {
        let mut core = if role == Role::Client { client() } else { core(role) };
        let result = feed(&mut core, &bytes);
        let told = &bytes[..bytes.len().min(20)];
        assert!(
            matches!(&result, Err(Error::GoAway { reason: found, by: By::Us }) if *found == reason),
            "{told:?}: {result:?}"
        );
    }
}

#[test]
fn what_is_wrong_with_one_stream_ends_no_other() {
    let too_many = [OK, &b"\x00\x01a\x011".repeat(HEADS.fields + 1)].concat();
    for (bytes, reason) in [
        (data(1, b"x", true), Reason::PROTOCOL_ERROR),
        (head(1, b"\x0f\x0d\x011", true), Reason::PROTOCOL_ERROR),
        (head(1, b"\x88\x88", true), Reason::PROTOCOL_ERROR),
        (head(1, b"\x88\x82", true), Reason::PROTOCOL_ERROR),
        (head(1, b"\x88\x00\x01A\x011", true), Reason::PROTOCOL_ERROR),
        (head(1, b"\x88\x00\x01a\x01\n", true), Reason::PROTOCOL_ERROR),
        // What is left out keeps its place.
        (head(1, b"\x00\x07upgrade\x01x\x88", true), Reason::PROTOCOL_ERROR),
        (head(1, b"\x08\x03101", false), Reason::PROTOCOL_ERROR),
        (head(1, b"\x08\x03103", true), Reason::PROTOCOL_ERROR),
        (head(1, &too_many, true), Reason::PROTOCOL_ERROR),
        (head(1, b"\x88\x0f\x0d\x011", true), Reason::PROTOCOL_ERROR),
        ([head(1, b"\x88\x0f\x0d\x011", false), data(1, b"xy", true)].concat(), Reason::PROTOCOL_ERROR),
        ([head(1, b"\x88\x0f\x0d\x012", false), data(1, b"x", true)].concat(), Reason::PROTOCOL_ERROR),
        ([head(1, OK, false), head(1, b"\x00\x01a\x011", false)].concat(), Reason::PROTOCOL_ERROR),
        ([head(1, OK, false), head(1, OK, true)].concat(), Reason::PROTOCOL_ERROR),
        (
            [head(1, OK, false), head(1, &b"\x00\x01a\x011".repeat(HEADS.fields + 1), true)].concat(),
            Reason::PROTOCOL_ERROR,
        ),
        ([head(3, OK, true), data(3, b"x", false)].concat(), Reason::STREAM_CLOSED),
        (frame(kind::WINDOW_UPDATE, 0, 1, b"\0\0\0\0"), Reason::PROTOCOL_ERROR),
        (frame(kind::WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), Reason::FLOW_CONTROL_ERROR),
        (frame(kind::PRIORITY, 0, 1, b"1234"), Reason::FRAME_SIZE_ERROR),
    ] {
        let mut core = client();
        feed(&mut core, &bytes).expect("the connection goes on");
        let resets: Vec<_> = said(&mut core).into_iter().filter(|(kind, ..)| *kind == kind::RST_STREAM).collect();
        let told = &bytes[..bytes.len().min(20)];
        assert!(
            matches!(&resets[..], [(_, 1 | 3, why)] if *why == u32::from(reason).to_be_bytes()),
            "{told:?}: {resets:?}"
        );
        // What comes of it later is nobody's.
        feed(&mut core, &[head(resets[0].1, OK, false), data(resets[0].1, b"x", true)].concat())
            .expect("it is let past");
        feed(&mut core, &[head(5, OK, false), data(5, b"fine", true)].concat()).expect("another one goes on");
        let other = core.streams.iter_mut().find(|(_, stream)| stream.id == 5).expect("it has its users").1;
        assert!(other.error.is_none() && other.is_received && other.queue.pop().is_some_and(|piece| piece == "fine"));
    }
}

/// The other end is told how long, and not that it is for heads alone.
#[test]
fn trailers_may_be_as_long_as_heads() {
    let mut client = client();
    let key = key(&client, 1);
    let trailers = b"\x00\x01a\x011".repeat(HEADS.fields);
    feed(&mut client, &[head(1, OK, false), head(1, &trailers, true)].concat()).expect("it is in order");
    let stream = &client.streams[key];
    assert!(stream.error.is_none(), "{:?}", stream.error);
    assert_eq!(stream.trailers.as_ref().map(|trailers| trailers.listed().len()), Some(HEADS.fields));
}

/// The other two go on.
#[test]
fn a_stream_is_reset_for_whose_trailers_there_is_no_room() {
    let mut client = client();
    let kept = Rc::new(Cell::new(0));
    let counted = kept.clone();
    client.config.trailers = Box::new(move |bytes| {
        let has_room = bytes <= 150;
        counted.set(if has_room { bytes } else { counted.get() });
        has_room
    });
    let trailers = [b"\x00\x01a\x64", &[b'1'; 100][..]].concat();
    let [first, second, third] = [1, 3, 5].map(|id| key(&client, id));
    feed(&mut client, &[head(1, OK, false), head(1, &trailers, true)].concat()).expect("it is in order");
    let one = kept.get();
    assert!(one >= 100);
    feed(&mut client, &[head(3, OK, false), head(3, &trailers, true)].concat()).expect("the connection goes on");
    assert!(matches!(client.streams[second].error, Some(Error::NoRoom)));
    assert_eq!(said(&mut client), [(kind::RST_STREAM, 3, vec![0, 0, 0, 0x0b])]);
    assert_eq!(kept.get(), one, "what is not kept does not count");
    client.streams[first].trailers.take().expect("they are there");
    assert_eq!(kept.get(), one, "whoever has them keeps them");
    client.release(first);
    assert_eq!(kept.get(), 0);
    feed(&mut client, &[head(5, OK, false), head(5, &trailers, true)].concat()).expect("there is room again");
    assert!(client.streams[third].error.is_none());
}

#[test]
fn a_head_can_be_longer_than_a_frame() {
    let value = "x".repeat(40_000);
    let fields = Fields::of(&[("X-A", "1"), ("Host", "b"), ("Te", "gzip"), ("x-long", &value), ("Cookie", "a=1")]);
    let (mut client, mut server) = (core(Role::Client), core(Role::Server));
    ask(&mut client, &fields, true);
    let bytes = written(&mut client);
    feed(&mut server, &bytes).expect("it is in order");
    let head = server.accepted.pop_front().expect("a request").head;
    let expected = [("Host", "a.example"), ("X-A", "1"), ("X-Long", &*value), ("Cookie", "a=1")];
    assert_eq!((head.method, &head.path[..], head.fault), (Method::GET, &b"/x"[..], None));
    assert!(head.fields.listed() == expected);
}

#[test]
fn what_nobody_may_put_into_a_table_goes_on_so() {
    let mut server = core(Role::Server);
    // Never indexed (RFC 7541 section 6.2.3), and without indexing.
    let block = [GET, b"\x10\x05x-key\x06secret", b"\x00\x03x-a\x011"].concat();
    feed(&mut server, &head(1, &block, true)).expect("it is in order");
    let mut fields = server.accepted.pop_front().expect("a request").head.fields;
    fields.change(&HeaderName::from_static("x-key"), |_| Some(HeaderValue::from_static("other")));
    let mut client = core(Role::Client);
    for _ in 0..3 {
        ask(&mut client, &fields, true);
        assert!(written(&mut client).windows(13).any(|window| window == b"\x10\x05x-key\x05other"));
    }
}

#[test]
fn a_path_counts_as_part_of_its_head() {
    let mut server = core(Role::Server);
    // 16,000 bytes: 127 and 15,873 more.
    let long = [&b"\x7f\x81\x7c"[..], &[b'/'; 16_000]].concat();
    let block = [b"\x82\x87\x04", &long[..], &[&b"\x00\x01a"[..], &long].concat().repeat(4)].concat();
    let (first, rest) = block.split_at(MAX_SIZE);
    feed(&mut server, &frame(kind::HEADERS, flag::END_STREAM, 1, first)).expect("it is in order");
    let mut pieces = rest.chunks(MAX_SIZE).peekable();
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { flag::END_HEADERS } else { 0 };
        feed(&mut server, &frame(kind::CONTINUATION, flags, 1, piece)).expect("it is in order");
    }
    let faults: Vec<_> = server.accepted.iter().map(|accepted| accepted.head.fault).collect();
    assert_eq!(faults, [Some(Fault::HeadTooLong(HEADS.head))]);
}

#[test]
fn a_request_that_is_too_long_is_told_so() {
    let mut server = core(Role::Server);
    let field = [&b"\x00\x01a\x7f\x81\x7c"[..], &[b'x'; 16_000]].concat();
    let block = [GET, &field.repeat(5)].concat();
    let mut pieces = block.chunks(MAX_SIZE).peekable();
    let mut bytes = frame(kind::HEADERS, flag::END_STREAM, 1, pieces.next().expect("the first"));
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { flag::END_HEADERS } else { 0 };
        bytes.extend(frame(kind::CONTINUATION, flags, 1, piece));
    }
    bytes.extend(head(3, GET, true));
    feed(&mut server, &bytes).expect("the connection goes on");
    let faults: Vec<_> = server.accepted.iter().map(|accepted| accepted.head.fault).collect();
    assert_eq!(faults, [Some(Fault::HeadTooLong(HEADS.head)), None]);
}

/// A field of 4,000 bytes is sent once, and stands in each head as often as there is room.
#[test]
fn few_bytes_that_stand_for_long_heads_are_taken_of_few_requests() {
    let mut server = core(Role::Server);
    server.config.streams = 1024;
    let field = [&b"\x40\x01a\x7f\xa1\x1e"[..], &[b'x'; 4000]].concat();
    feed(&mut server, &head(1, &[GET, &field].concat(), true)).expect("it is in order");
    let block = [b"\x82\x87\x84", &[0xbe; 15][..]].concat();
    for id in (3..2000).step_by(2) {
        feed(&mut server, &head(id, &block, true)).expect("the connection goes on");
    }
    let refused =
        |frames: Vec<(u8, u32, Vec<u8>)>| frames.iter().filter(|(kind, ..)| *kind == kind::RST_STREAM).count();
    // 69 heads of 60,000 bytes are below 4 MiB, and another one is not.
    assert_eq!((server.accepted.len(), refused(said(&mut server))), (71, 929));
    let served: Vec<_> = server.accepted.drain(..).map(|accepted| accepted.key).collect();
    served.into_iter().for_each(|key| server.release(key));
    assert_eq!(server.heads, 0);
    said(&mut server);
    feed(&mut server, &head(2001, &block, true)).expect("the connection goes on");
    assert_eq!((server.accepted.len(), refused(said(&mut server))), (1, 0));
}
