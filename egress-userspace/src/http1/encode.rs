//! Messages on their way out.

use std::fmt::Write as _;

use bytes::{BufMut as _, BytesMut};
use http::Version;

use super::{Fault, Framing, Output, decode::may_be_trailer};
use crate::{
    body::Frame,
    head::{Fields, RequestHead, ResponseHead},
};

/// Room for the head of a request, which as a rule has no content, and for that of a response and some content, in bytes.
const REQUEST: usize = 1024;
const RESPONSE: usize = 2 * 1024;

/// Writes the head of a request, followed by `more` fields.
pub fn request_head(head: &RequestHead, more: &[(&str, &str)], out: &mut BytesMut) {
    make_room(out, REQUEST);
    out.put_slice(head.method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(head.target());
    out.put_slice(b" HTTP/1.1\r\n");
    put_fields(&head.fields, more, out);
}

/// Writes the head of a response to a client of this version, followed by `more` fields.
pub fn response_head(head: &ResponseHead, version: Version, more: &[(&str, &str)], out: &mut BytesMut) {
    make_room(out, RESPONSE);
    out.put_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.put_slice(head.status.as_str().as_bytes());
    out.put_u8(b' ');
    match &head.reason {
        Some(reason) => out.put_slice(reason),
        None => out.put_slice(head.status.canonical_reason().unwrap_or_default().as_bytes()),
    }
    out.put_slice(b"\r\n");
    put_fields(&head.fields, more, out);
}

fn make_room(out: &mut BytesMut, bytes: usize) {
    if out.is_empty() {
        *out = BytesMut::with_capacity(bytes);
    } else {
        out.reserve(bytes);
    }
}

/// Writes fields, and the empty line that ends them.
fn put_fields(fields: &Fields, more: &[(&str, &str)], out: &mut BytesMut) {
    fields.write(out);
    for (name, value) in more {
        out.put_slice(name.as_bytes());
        put_value(value.as_bytes(), out);
    }
    out.put_slice(b"\r\n");
}

fn put_value(value: &[u8], out: &mut BytesMut) {
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// Frames content.
#[derive(Debug)]
pub struct Encoder(Framing);

impl Encoder {
    /// For content that is so framed.
    pub fn new(framing: Framing) -> Self {
        Self(framing)
    }

    /// Adds a piece of content, or trailers, to what is to be written.
    ///
    /// # Errors
    /// There is more than was announced.
    pub fn put(&mut self, frame: Frame, out: &mut Output) -> Result<(), Fault> {
        match (&mut self.0, frame) {
            (_, Frame::Data(data)) if data.is_empty() => {}
            (Framing::Length(left), Frame::Data(data)) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Fault::Length)?;
                out.push(data);
            }
            (Framing::Close, Frame::Data(data)) => out.push(data),
            (Framing::Chunked, Frame::Data(data)) => {
                // That many hexadecimal digits a length has at most.
                let _ = write!(out.buffer(), "{:x}\r\n", data.len());
                out.push(data);
                out.buffer().put_slice(b"\r\n");
            }
            (Framing::Chunked, Frame::Trailers(mut trailers)) => {
                trailers.retain(|name, _| may_be_trailer(name));
                let mut buffer = out.buffer();
                buffer.put_slice(b"0\r\n");
                put_fields(&trailers, &[], &mut buffer);
                self.0 = Framing::Length(0);
            }
            // Only chunks have room for trailers.
            (Framing::Length(_) | Framing::Close, Frame::Trailers(_)) => {}
        }
        Ok(())
    }

    /// Whether all that was announced has come. Only a length announces that.
    pub fn is_complete(&self) -> bool {
        matches!(self.0, Framing::Length(0))
    }

    /// Adds what ends the content.
    ///
    /// # Errors
    /// There was less than was announced.
    pub fn end(&mut self, out: &mut Output) -> Result<(), Fault> {
        match self.0 {
            Framing::Length(0) | Framing::Close => {}
            Framing::Length(_) => return Err(Fault::Length),
            Framing::Chunked => out.buffer().put_slice(b"0\r\n\r\n"),
        }
        self.0 = Framing::Length(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderName, HeaderValue, header};

    use super::*;
    use crate::http1::{self, Limits};

    const LIMITS: Limits = Limits { head: 4096, fields: 100 };

    fn check(fields: &str, change: fn(&mut Fields), expected: &str) {
        let head = Bytes::from(format!("GET /a<b> HTTP/1.1\r\n{fields}\r\n"));
        let mut head = http1::request(&head, &LIMITS).expect("a good head");
        change(&mut head.fields);
        let mut out = BytesMut::new();
        request_head(&head, &[], &mut out);
        let out = String::from_utf8_lossy(&out).into_owned();
        assert_eq!(out, format!("GET /a<b> HTTP/1.1\r\n{expected}\r\n"));
    }

    #[test]
    fn what_is_not_changed_is_written_as_it_came() {
        let fields = "HOST:a\r\nX-Empty:\r\nx-a: 1\r\nX-Odd:   b, c \r\nX-A: 2\r\n";
        check(fields, |_| {}, fields);
        let removed = "HOST:a\r\nX-Empty:\r\nX-Odd:   b, c \r\n";
        check(fields, |fields| fields.remove(&HeaderName::from_static("x-a")), removed);
        check(
            "HOST: a\r\nB: 1\r\n",
            |fields| fields.set(&header::HOST, &HeaderValue::from_static("c")),
            "HOST: c\r\nB: 1\r\n",
        );
        check(
            "A: 1\nB: 2\n",
            |fields| fields.append(&HeaderName::from_static("c"), &HeaderValue::from_static("3")),
            "A: 1\r\nB: 2\r\nC: 3\r\n",
        );
    }

    #[test]
    fn content_is_framed() {
        for (framing, expected) in [
            (Framing::Chunked, "5\r\nhello\r\n0\r\na: 1\r\nA: 2\r\n\r\n"),
            (Framing::Length(5), "hello"),
            (Framing::Close, "hello"),
        ] {
            let (mut encoder, mut out) = (Encoder::new(framing), Output::default());
            // Not those that would mislead who merges them into the head.
            let trailers = Fields::of(&[("a", "1"), ("Content-Length", "0"), ("A", "2")]);
            for frame in
                [Frame::Data(Bytes::from_static(b"hello")), Frame::Data(Bytes::new()), Frame::Trailers(trailers)]
            {
                encoder.put(frame, &mut out).expect("as announced");
            }
            assert_eq!(encoder.is_complete(), framing != Framing::Close, "trailers end chunks");
            encoder.end(&mut out).expect("as announced");
            assert_eq!(*out.buffer(), expected);
        }
        let (mut encoder, mut out) = (Encoder::new(Framing::Length(4)), Output::default());
        assert_eq!(encoder.end(&mut out), Err(Fault::Length));
        assert_eq!(encoder.put(Frame::Data(Bytes::from_static(b"hello")), &mut out), Err(Fault::Length));
    }
}
