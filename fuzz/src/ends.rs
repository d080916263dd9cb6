//! Ends of connections of HTTP/2, with nothing between them but memory.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use egress::{
    head::{Fields, ResponseHead},
    http1::Limits,
    http2::{Asked, Config, Connection, Reader, Requested, Role, Writer},
};
use http::Method;
use tokio::io::{AsyncWrite as _, DuplexStream, duplex};

/// What there is room for between them, in bytes.
const ROOM: usize = 1 << 20;

/// One end of a connection of HTTP/2.
pub struct End {
    /// The connection.
    pub connection: Connection<DuplexStream>,
    /// The other one's way to it.
    other: Option<DuplexStream>,
}

impl End {
    /// One with nobody at the other.
    pub fn new(role: Role, heads: Limits) -> Self {
        let (near, far) = duplex(ROOM);
        Self { other: Some(far), ..Self::of(near, role, heads) }
    }

    fn of(io: DuplexStream, role: Role, heads: Limits) -> Self {
        let (stream_window, connection_window, unread) = (1 << 20, 1 << 20, Rc::default());
        let trailers = Box::new(|_| true);
        let config = Config { stream_window, connection_window, streams: 4, heads, unread, trailers };
        Self { connection: Connection::new(io, role, config), other: None }
    }

    /// Has these bytes come to it.
    pub fn say(&mut self, bytes: &[u8]) {
        if let Some(other) = &mut self.other {
            let written = Pin::new(other).poll_write(&mut context(), bytes);
            assert!(matches!(written, Poll::Ready(Ok(count)) if count == bytes.len()));
        }
        self.run();
    }

    /// Goes on for as long as there is something to do.
    pub fn run(&mut self) {
        let _ = self.connection.poll(&mut context());
    }

    /// The next request that has come, if there is one.
    pub fn accept(&mut self) -> Option<(Requested, Reader, Writer)> {
        self.run();
        self.connection.link().accepted()
    }

    /// The head of a response that is the last.
    pub fn head(&mut self, reader: &Reader) -> Option<ResponseHead> {
        while let Poll::Ready(Some(_)) = reader.poll_interim(&context()) {}
        match reader.poll_head(&context()) {
            Poll::Ready(Ok(head)) => Some(head),
            _ => None,
        }
    }
}

/// Both ends.
pub struct Ends {
    /// Who asks.
    pub client: End,
    /// Who answers.
    pub server: End,
}

impl Ends {
    /// Two that take heads within these limits.
    pub fn new(heads: Limits) -> Self {
        let (near, far) = duplex(ROOM);
        Self { client: End::of(near, Role::Client, heads), server: End::of(far, Role::Server, heads) }
    }

    /// Has what each says come to the other.
    pub fn run(&mut self) {
        for _ in 0..3 {
            self.client.run();
            self.server.run();
        }
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A request for `/`, which may ask for another protocol.
pub fn asked<'a>(method: &'a Method, protocol: Option<&'static str>, fields: &'a Fields) -> Asked<'a> {
    Asked {
        method,
        scheme: "https",
        authority: "a.example",
        path: "/",
        protocol,
        fields,
        left_out: None,
        trailers: false,
    }
}
