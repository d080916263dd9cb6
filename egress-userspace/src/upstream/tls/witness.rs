//! What an origin sends during the handshake, remembered for the sake of a diagnosis. Nothing is decided by it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are remembered: enough for what TLS 1.2 says in clear with a long certificate chain.
const LIMIT: usize = 16 * 1024;

/// A stream that remembers what comes in, until the handshake is over.
#[derive(Debug)]
pub struct Witnessed<S> {
    stream: S,
    notes: Option<Arc<Mutex<Vec<u8>>>>,
}

/// What has come in so far.
#[derive(Debug, Default)]
pub struct Witness(Arc<Mutex<Vec<u8>>>);

impl<S> Witnessed<S> {
    /// A stream, and what is remembered of it.
    pub fn new(stream: S) -> (Self, Witness) {
        let witness = Witness::default();
        (Self { stream, notes: Some(witness.0.clone()) }, witness)
    }

    /// Remembers no more.
    pub fn release(&mut self) {
        self.notes = None;
    }

    /// The stream.
    pub fn inner(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl Witness {
    /// What has come in so far.
    pub fn seen(&self) -> Seen {
        Seen(std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Witnessed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(notes) = &self.notes {
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            let new = buffer.filled().get(before..).unwrap_or_default();
            let room = LIMIT.saturating_sub(notes.len()).min(new.len());
            notes.extend_from_slice(&new[..room]);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Witnessed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What an origin has sent during the handshake, from its first byte on.
#[derive(Debug, Default)]
pub struct Seen(Vec<u8>);

/// What a ServerHello says (RFC 8446 section 4.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// The version field: that of TLS 1.2 also for 1.3.
    pub version: u16,
    /// The cipher suite.
    pub cipher: u16,
}

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const SERVER_HELLO: u8 = 2;
const CERTIFICATE_REQUEST: u8 = 13;

impl Seen {
    /// How many bytes there are; more may have come than are remembered.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether the first record could be one of a TLS handshake (RFC 8446 section 5.1).
    pub fn looks_like_tls(&self) -> bool {
        matches!(
            self.0.as_slice(),
            [ALERT | HANDSHAKE, 3, ..=4, ..] | [ALERT | HANDSHAKE, 3] | [ALERT | HANDSHAKE] | []
        )
    }

    /// The first line, as far as it is text.
    pub fn first_line(&self) -> String {
        let line = self.0.split(|&byte| byte == b'\r' || byte == b'\n').next().unwrap_or_default();
        String::from_utf8_lossy(line).into_owned()
    }

    /// Whether it answers in the manner of HTTP/1.
    pub fn is_http(&self) -> bool {
        self.0.starts_with(b"HTTP/")
    }

    /// The ServerHello, if it has come.
    pub fn server_hello(&self) -> Option<ServerHello> {
        let messages = self.messages();
        let body = Messages(&messages).find(|(kind, _)| *kind == SERVER_HELLO)?.1;
        let number = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
        // Version, random, session id by its length, cipher suite.
        let session_id = usize::from(*body.get(34)?);
        Some(ServerHello { version: number(0)?, cipher: number(35 + session_id)? })
    }

    /// Whether it asked for a client certificate in clear, as before TLS 1.3.
    pub fn asks_for_certificate(&self) -> bool {
        Messages(&self.messages()).any(|(kind, _)| kind == CERTIFICATE_REQUEST)
    }

    /// The handshake messages of the records that come first; one can be spread over several records.
    fn messages(&self) -> Vec<u8> {
        let mut messages = Vec::new();
        let mut rest = self.0.as_slice();
        while let [HANDSHAKE, _, _, high, low, after @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
            let (payload, next) = after.split_at(length);
            messages.extend_from_slice(payload);
            rest = next;
        }
        messages
    }
}

/// Handshake messages by type, with their bodies; the last one may be cut off.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [kind, high, middle, low, after @ ..] = self.0 else { return None };
        let length = usize::try_from(u32::from_be_bytes([0, *high, *middle, *low])).unwrap_or(usize::MAX);
        let (body, rest) = after.split_at(length.min(after.len()));
        self.0 = rest;
        Some((*kind, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_hello_in_two_records_is_read() {
        let mut message = vec![SERVER_HELLO, 0, 0, 38, 3, 1];
        message.extend([0; 32]);
        message.extend([0, 0, 47, 0]);
        message.extend([CERTIFICATE_REQUEST, 0, 0, 1, 0]);
        let (one, two) = message.split_at(11);
        let record = |payload: &[u8]| [&[HANDSHAKE, 3, 1, 0, payload.len() as u8], payload].concat();
        let seen = Seen([record(one), record(two)].concat());
        assert_eq!(seen.server_hello(), Some(ServerHello { version: 0x0301, cipher: 47 }));
        assert!(seen.asks_for_certificate() && seen.looks_like_tls() && !seen.is_http());
        for length in 0..seen.count() {
            let cut = Seen(seen.0[..length].to_vec());
            assert!(cut.looks_like_tls());
            assert!(cut.server_hello().is_none_or(|hello| hello.cipher == 47));
        }
    }

    #[test]
    fn what_is_not_tls_is_told_by_its_first_line() {
        let seen = Seen(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n".to_vec());
        assert!(!seen.looks_like_tls() && seen.is_http());
        assert_eq!(seen.first_line(), "HTTP/1.1 400 Bad Request");
        assert_eq!(seen.server_hello(), None);
    }
}
