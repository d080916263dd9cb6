//! HTTP/2: the same is seen of each stream however it comes, and what is sent are whole frames. Bits of the first byte say who reads, and how:
//! a server (1) rather than a client that has sent three requests; until the other end closes (2); with windows that were made small (4)
//! rather than read from as it comes; and by a network that takes little at a time (8).

#![no_main]

use std::{
    collections::VecDeque,
    io, iter,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use egress::{
    head::{Fields, ResponseHead},
    http1::Limits,
    http2::{Asked, Config, Connection, Error, Reader, Role, Writer},
};
use egress_fuzz::pieces;
use http::{Method, StatusCode};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const LIMITS: Limits = Limits { head: 4096, fields: 32 };
/// What a client begins with (RFC 9113 section 3.4), and what each end says first: no settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, bytes)) = bytes.split_first() else { return };
    let how = How {
        role: if first & 1 != 0 { Role::Server } else { Role::Client },
        ends: first & 2 != 0,
        is_narrow: first & 4 != 0,
        is_slow: first & 8 != 0,
    };
    let whole = run(how, iter::once(bytes));
    assert_eq!(whole, run(how, pieces(bytes)));
});

#[derive(Clone, Copy)]
struct How {
    role: Role,
    ends: bool,
    is_narrow: bool,
    is_slow: bool,
}

/// A network that delivers what it is given, and then nothing more, or the end.
#[derive(Default)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    has_ended: bool,
    written: Vec<u8>,
    is_slow: bool,
    /// Whether it takes nothing for now.
    is_busy: bool,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(mut next) = self.incoming.pop_front() else {
            return if self.has_ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let rest = next.split_off(next.len().min(buffer.remaining()));
        buffer.put_slice(&next);
        if !rest.is_empty() {
            self.incoming.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_busy = self.is_slow && !self.is_busy;
        if self.is_slow && !self.is_busy {
            return Poll::Pending;
        }
        let taken = if self.is_slow { bytes.len().min(1000) } else { bytes.len() };
        self.written.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// All that was seen of a connection.
fn run<'a>(how: How, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let mut wire = Wire { is_slow: how.is_slow, ..Wire::default() };
    let role = how.role;
    if role == Role::Server {
        wire.incoming.push_back(PREFACE.into());
    }
    wire.incoming.push_back(SETTINGS.into());
    let (stream_window, connection_window, unread) = (1 << 20, 1 << 24, Rc::default());
    let trailers = Box::new(|_| true);
    let config = Config { stream_window, connection_window, streams: 4, heads: LIMITS, unread, trailers };
    let mut connection = Connection::new(&mut wire, role, config);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(connection.poll(&mut cx).is_pending());
    let mut streams: Vec<(Reader, Writer, Seen)> = Vec::new();
    if role == Role::Client {
        let fields = Fields::default();
        for method in [Method::GET, Method::HEAD, Method::POST] {
            let is_all = method != Method::POST;
            let (reader, writer) = connection.link().ask(&asked(&method, &fields), is_all);
            streams.push((reader, writer, Seen::default()));
        }
    }
    if how.is_narrow {
        connection.link().set_stream_window(64);
    }
    let mut has_ended = false;
    for piece in pieces.filter(|piece| !piece.is_empty()) {
        connection.io().incoming.push_back(piece.into());
        while !has_ended && !connection.io().incoming.is_empty() {
            has_ended = connection.poll(&mut cx).is_ready();
        }
        if !how.is_narrow {
            streams.iter_mut().for_each(|(reader, _, seen)| seen.read(reader, &mut cx));
        }
    }
    if how.ends && !has_ended {
        connection.io().has_ended = true;
        has_ended = connection.poll(&mut cx).is_ready();
    }
    let mut requests = Vec::new();
    // Not before all has come: those that are given up meanwhile nobody takes up.
    while role == Role::Server
        && let Some((head, reader, writer)) = connection.link().accepted()
    {
        requests.push(format!("{} {:?} {:?} {:?}", head.method, head.path, head.protocol, head.fault));
        streams.push((reader, writer, Seen::default()));
    }
    let mut all = Vec::new();
    for (reader, writer, mut seen) in streams {
        seen.read(&reader, &mut cx);
        send(role, &writer);
        all.push(seen);
    }
    // What is still to be written goes, however slowly.
    let mut in_vain = 0;
    while !has_ended && in_vain < 2 {
        let written = connection.io().written.len();
        has_ended = connection.poll(&mut cx).is_ready();
        in_vain = if connection.io().written.len() > written { 0 } else { in_vain + 1 };
    }
    drop(connection);
    // Nothing more is written to who has closed.
    let is_whole = !(how.ends && how.is_slow);
    check_frames(if role == Role::Client { &wire.written[PREFACE.len()..] } else { &wire.written }, is_whole);
    requests.extend(all.into_iter().map(|seen| format!("{seen:?}")));
    requests
}

fn asked<'a>(method: &'a Method, fields: &'a Fields) -> Asked<'a> {
    Asked {
        method,
        scheme: "https",
        authority: "a.example",
        path: "/",
        protocol: None,
        fields,
        left_out: None,
        trailers: true,
    }
}

/// What has come on a stream.
#[derive(Default, Debug)]
struct Seen {
    heads: Vec<ResponseHead>,
    content: Vec<u8>,
    end: Option<Result<(), Error>>,
    trailers: Option<Fields>,
}

impl Seen {
    /// Takes in what there is.
    fn read(&mut self, reader: &Reader, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(interim)) = reader.poll_interim(cx) {
            // Those that nobody takes in time can be dropped beyond these.
            if self.heads.len() < 8 {
                self.heads.push(interim);
            }
        }
        if let Poll::Ready(Ok(head)) = reader.poll_head(cx) {
            self.heads.push(head);
        }
        while self.end.is_none() {
            match reader.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => self.content.extend_from_slice(&data),
                Poll::Ready(Some(Err(error))) => self.end = Some(Err(error)),
                Poll::Ready(None) => self.end = Some(Ok(())),
                Poll::Pending => break,
            }
        }
        if let Some(trailers) = reader.trailers() {
            self.trailers = Some(trailers);
        }
    }
}

fn send(role: Role, writer: &Writer) {
    if role == Role::Server {
        let _ = writer.respond(&ResponseHead::from(StatusCode::OK), false);
    }
    let mut data = Bytes::from_static(&[b'x'; 40_000]);
    let _ = writer.send(&mut data, true);
}

/// There is nothing but frames, the last of which may not be whole.
fn check_frames(mut bytes: &[u8], is_whole: bool) {
    while let Some((header, rest)) = bytes.split_first_chunk::<9>() {
        let length = header[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        assert!(length <= 16 * 1024 && (length <= rest.len() || !is_whole), "a frame of {length} bytes");
        bytes = rest.get(length..).unwrap_or_default();
    }
    assert!(bytes.is_empty() || !is_whole);
}
