//! Heads of messages: as HTTP/1.1 has them to us, and as HTTP/2 has them on the wire (RFC 9113 section 8).

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version};

use super::{
    Error, Reason,
    hpack::{Decoder, Encoder, Undecodable},
    stream::Asks,
};
use crate::{
    head::{Builder, Fields, Names, ResponseHead},
    http1::{Fault, Limits},
};

/// Fields that only HTTP/1.1 has (section 8.2.2).
const OF_HTTP1: Names = Names::new(&["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"]);
/// The same, with what a request says in other ways, and what a trailer does not say.
const NOT_ASKED: Names =
    Names::new(&["connection", "host", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"]);
/// What a field counts for besides its name and value (section 10.5.1), in bytes.
const FIELD: usize = 32;

/// A request as it is sent.
pub struct Asked<'a> {
    /// The method.
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The host, and the port if there is one.
    pub authority: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// The protocol that the stream is to switch to (RFC 8441).
    pub protocol: Option<&'static str>,
    /// As HTTP/1.1 has them; what only that has stays out.
    pub fields: &'a Fields,
    /// What else stays out.
    pub left_out: Option<&'static Names>,
    /// Whether trailers are taken.
    pub trailers: bool,
}

/// A head on its way out.
pub(super) enum Sent<'a> {
    Request(&'a Asked<'a>),
    Response(&'a ResponseHead),
    Trailers(&'a Fields),
}

impl Sent<'_> {
    /// What a request asks for.
    pub(super) fn asks_for(&self) -> Asks {
        match self {
            Self::Request(Asked { protocol: Some(_), .. }) => Asks::Switch,
            Self::Request(asked) if asked.method == Method::HEAD => Asks::Head,
            _ => Asks::Content,
        }
    }

    pub(super) fn encode(&self, encoder: &mut Encoder, out: &mut BytesMut) {
        match self {
            Self::Request(asked) => {
                let method = asked.protocol.map_or(asked.method, |_| &Method::CONNECT);
                encoder.field(b":method", method.as_str().as_bytes(), out);
                encoder.field(b":scheme", asked.scheme.as_bytes(), out);
                encoder.field(b":authority", asked.authority.as_bytes(), out);
                encoder.field(b":path", asked.path.as_bytes(), out);
                if let Some(protocol) = asked.protocol {
                    encoder.field(b":protocol", protocol.as_bytes(), out);
                }
                let goes = |name: &[u8]| !NOT_ASKED.has(name) && asked.left_out.is_none_or(|names| !names.has(name));
                for (name, value, is_secret) in asked.fields.marked().filter(|(name, ..)| goes(name)) {
                    put(encoder, name, value, is_secret, out);
                }
                if asked.trailers {
                    encoder.field(b"te", b"trailers", out);
                }
            }
            Self::Response(head) => {
                encoder.field(b":status", head.status.as_str().as_bytes(), out);
                for (name, value, is_secret) in head.fields.marked().filter(|(name, ..)| !OF_HTTP1.has(name)) {
                    put(encoder, name, value, is_secret, out);
                }
            }
            Self::Trailers(trailers) => {
                for (name, value, is_secret) in trailers.marked().filter(|(name, ..)| !NOT_ASKED.has(name)) {
                    put(encoder, name, value, is_secret, out);
                }
            }
        }
    }
}

fn put(encoder: &mut Encoder, name: &[u8], value: &[u8], is_secret: bool, out: &mut BytesMut) {
    if is_secret {
        encoder.secret(name, value, out);
    } else {
        encoder.field(name, value, out);
    }
}

/// A request as it has come.
pub struct Requested {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: Bytes,
    /// The protocol that the stream is to switch to (RFC 8441).
    pub protocol: Option<Bytes>,
    /// As HTTP/1.1 has them: what was said of the authority is Host, and the first of them.
    pub fields: Fields,
    /// How long all of that is, in bytes as section 10.5.1 counts them.
    pub size: usize,
    /// Why it cannot be served.
    pub fault: Option<Fault>,
}

/// The head of a response. The inner error is that of its stream. None if it is an interim one that cannot be used.
pub(super) fn response(
    decoder: &mut Decoder,
    block: &[u8],
    limits: &Limits,
) -> Result<Result<Option<ResponseHead>, Error>, Undecodable> {
    let mut taken = Taken::new(limits);
    let mut status = None;
    let is_sound = decoder.decode(block, |name, value, is_secret| {
        if name.first() != Some(&b':') {
            // Some have such of a server behind them. It says nothing here, as a request's could.
            if OF_HTTP1.has(name) {
                taken.count(name, value);
            } else {
                taken.field(name, value, is_secret);
            }
        } else if taken.pseudo(name, value, name == b":status" && status.is_none()) {
            status = StatusCode::from_bytes(value).ok();
        }
    })?;
    let (fields, fault) = taken.finish(is_sound);
    // HTTP/2 has no such switch (section 8.6).
    let Some(status) = status.filter(|status| *status != StatusCode::SWITCHING_PROTOCOLS) else {
        return Ok(Err(Error::reset(Reason::PROTOCOL_ERROR)));
    };
    Ok(match (fields, fault) {
        (None, _) => Err(Error::reset(Reason::PROTOCOL_ERROR)),
        (Some(fields), None) => Ok(Some(ResponseHead { version: Version::HTTP_2, fields, ..status.into() })),
        (Some(_), Some(_)) if status.is_informational() => Ok(None),
        (Some(_), Some(fault)) => Err(Error::Head(fault)),
    })
}

/// The head of a request. None if it is none.
pub(super) fn request(decoder: &mut Decoder, block: &[u8], limits: &Limits) -> Result<Option<Requested>, Undecodable> {
    let mut taken = Taken::new(limits);
    let (mut method, mut path, mut protocol, mut scheme, mut authority) = (None, None, None, false, false);
    let is_sound = decoder.decode(block, |name, value, is_secret| {
        if name.first() != Some(&b':') {
            return taken.field(name, value, is_secret);
        }
        let is_first = match name {
            b":method" => method.is_none(),
            b":path" => path.is_none(),
            b":protocol" => protocol.is_none(),
            b":scheme" => !scheme,
            b":authority" => !authority,
            _ => false,
        };
        if !taken.pseudo(name, value, is_first) {
            return;
        }
        match name {
            b":method" => method = Some(Bytes::copy_from_slice(value)),
            b":path" => path = Some(Bytes::copy_from_slice(value)),
            b":protocol" => protocol = Some(Bytes::copy_from_slice(value)),
            b":scheme" => scheme = true,
            _ => {
                authority = true;
                taken.fields.push(b"Host", value, false);
            }
        }
    })?;
    // What is beyond the limit was not taken.
    let size = taken.size.min(limits.head);
    let (fields, fault) = taken.finish(is_sound);
    let (Some(fields), Some(method)) = (fields, method) else { return Ok(None) };
    let Ok(method) = Method::from_bytes(&method) else { return Ok(None) };
    // One that makes a tunnel has neither (section 8.5).
    let is_tunnel = method == Method::CONNECT && protocol.is_none();
    let is_complete = is_tunnel == (!scheme && path.is_none())
        && (is_tunnel || path.as_ref().is_some_and(|path| !path.is_empty()) && scheme);
    let is_switch_allowed = protocol.is_none() || method == Method::CONNECT;
    // Of one that is too long not all was taken.
    let is_request = matches!(fault, Some(Fault::HeadTooLong(_))) || is_complete && is_switch_allowed;
    Ok(is_request.then(|| Requested {
        method,
        path: path.unwrap_or(Bytes::from_static(b"/")),
        protocol,
        fields,
        size,
        fault,
    }))
}

/// Trailers, which may be as long as heads: that is what the other end is told.
pub(super) fn trailers(
    decoder: &mut Decoder,
    block: &[u8],
    limits: &Limits,
) -> Result<Result<Fields, Error>, Undecodable> {
    let mut taken = Taken::new(limits);
    let is_sound = decoder.decode(block, |name, value, is_secret| match name {
        [b':', ..] => taken.is_message = false,
        _ => taken.field(name, value, is_secret),
    })?;
    Ok(match taken.finish(is_sound) {
        (_, Some(_)) => Err(Error::Head(Fault::Trailers)),
        (Some(fields), None) => Ok(fields),
        (None, None) => Err(Error::reset(Reason::PROTOCOL_ERROR)),
    })
}

/// The fields of a block.
struct Taken<'a> {
    fields: Builder,
    /// How many, and how many bytes, of those that have come.
    count: usize,
    size: usize,
    limits: &'a Limits,
    /// Whether it is a message as section 8.1 has it.
    is_message: bool,
}

impl<'a> Taken<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self { fields: Builder::new(), count: 0, size: 0, limits, is_message: true }
    }

    /// Notes a pseudo-header field. They come before all others, each once. Says whether it is to be taken.
    fn pseudo(&mut self, name: &[u8], value: &[u8], is_first: bool) -> bool {
        self.is_message &= is_first && self.count == 0;
        self.size += name.len() + value.len() + FIELD;
        self.is_message && self.is_within()
    }

    /// Notes another field, be it that it is not taken.
    fn count(&mut self, name: &[u8], value: &[u8]) {
        self.count += 1;
        self.size += name.len() + value.len() + FIELD;
    }

    fn field(&mut self, name: &[u8], value: &[u8], is_secret: bool) {
        self.count(name, value);
        let is_coding = || name.eq_ignore_ascii_case(b"te") && !value.eq_ignore_ascii_case(b"trailers");
        if OF_HTTP1.has(name) || is_coding() {
            self.is_message = false;
        }
        if self.is_within() {
            self.fields.push(name, value, is_secret);
        }
    }

    fn is_within(&self) -> bool {
        self.size <= self.limits.head && self.count <= self.limits.fields
    }

    /// The fields, unless this is no message, and what is wrong with them.
    fn finish(self, is_sound: bool) -> (Option<Fields>, Option<Fault>) {
        let fault = if self.size > self.limits.head {
            Some(Fault::HeadTooLong(self.limits.head))
        } else if self.count > self.limits.fields {
            Some(Fault::TooManyFields(self.limits.fields))
        } else {
            (!is_sound).then_some(Fault::Field)
        };
        (self.is_message.then(|| self.fields.finish()), fault)
    }
}
