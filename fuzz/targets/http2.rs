//! HTTP/2: the same is seen of each stream however it comes, and what is sent are whole frames. The first byte says who reads: `s` a server,
//! any other a client that has sent three requests.

#![no_main]

use std::{
    collections::VecDeque,
    io, iter,
    pin::{Pin, pin},
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
    let role = if first == b's' { Role::Server } else { Role::Client };
    let whole = run(role, iter::once(bytes));
    assert_eq!(whole, run(role, pieces(bytes)));
});

/// A network that delivers what it is given, and then nothing more, not even an end.
#[derive(Default)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    written: Vec<u8>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(mut next) = self.incoming.pop_front() else { return Poll::Pending };
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
        self.written.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// All that was seen of a connection.
fn run<'a>(role: Role, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let mut wire = Wire::default();
    if role == Role::Server {
        wire.incoming.push_back(PREFACE.into());
    }
    wire.incoming.push_back(SETTINGS.into());
    let config = Config { stream_window: 1 << 20, connection_window: 1 << 24, streams: 4, heads: LIMITS };
    let mut written = Vec::new();
    let mut connection = Connection::new(&mut wire, role, config);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(connection.poll(&mut cx).is_pending());
    let mut seen = Vec::new();
    let mut streams: Vec<(Reader, Writer)> = Vec::new();
    if role == Role::Client {
        let fields = Fields::default();
        for method in [Method::GET, Method::HEAD, Method::POST] {
            let is_all = method != Method::POST;
            streams.push(connection.link().ask(&asked(&method, &fields), is_all));
        }
    }
    let mut has_ended = false;
    for piece in pieces.filter(|piece| !piece.is_empty()) {
        connection.io().incoming.push_back(piece.into());
        while !has_ended && !connection.io().incoming.is_empty() {
            has_ended = connection.poll(&mut cx).is_ready();
        }
    }
    // Not before all has come: those that are given up meanwhile nobody takes up.
    while role == Role::Server
        && let Poll::Ready(Ok(Some((head, reader, writer)))) = pin!(connection.accept()).poll(&mut cx)
    {
        seen.push(format!("{} {:?} {:?} {:?}", head.method, head.path, head.protocol, head.fault));
        streams.push((reader, writer));
    }
    for (reader, writer) in streams {
        seen.extend(read(&reader, &mut cx));
        send(role, &writer);
    }
    if !has_ended {
        let _ = connection.poll(&mut cx);
    }
    drop(connection);
    written.append(&mut wire.written);
    check_frames(if role == Role::Client { &written[PREFACE.len()..] } else { &written });
    seen
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
fn read(reader: &Reader, cx: &mut Context<'_>) -> Vec<String> {
    let mut seen = Vec::new();
    while let Poll::Ready(Some(interim)) = reader.poll_interim(cx) {
        seen.push(format!("{interim:?}"));
    }
    if let Poll::Ready(Ok(head)) = reader.poll_head(cx) {
        seen.push(format!("{head:?}"));
    }
    let mut content = Vec::new();
    let end: Option<Result<(), Error>> = loop {
        match reader.poll_data(cx) {
            Poll::Ready(Some(Ok(data))) => content.extend_from_slice(&data),
            Poll::Ready(Some(Err(error))) => break Some(Err(error)),
            Poll::Ready(None) => break Some(Ok(())),
            Poll::Pending => break None,
        }
    };
    seen.push(format!("{content:?} {end:?} {:?}", reader.trailers()));
    seen
}

fn send(role: Role, writer: &Writer) {
    if role == Role::Server {
        let _ = writer.respond(&ResponseHead::from(StatusCode::OK), false);
    }
    let mut data = Bytes::from_static(&[b'x'; 40_000]);
    let _ = writer.send(&mut data, true);
}

fn check_frames(mut bytes: &[u8]) {
    while let Some((header, rest)) = bytes.split_first_chunk::<9>() {
        let length = header[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        assert!(length <= 16 * 1024 && length <= rest.len(), "a frame of {length} bytes");
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty());
}
