//! The head of a request, read as leniently as anybody could.

use http::{HeaderName, HeaderValue, Version, header};

use super::{State, is_blank, is_space, is_token, line};
use crate::{
    head::Fields,
    http1::{self, Fault, Framing},
    request::host::RequestHost,
};

/// Fields of one name that are looked at. Who sends more has nothing good in mind.
const MAX_FIELDS: usize = 8;

pub(super) const NO_END: &str = "the content of a request has no end";
pub(super) const ODD_FRAMING: &str =
    "a field of a request that says where its content ends is written so that not all read it";
pub(super) const ODD_NAME: &str =
    "a field of a request that says whose it is has a name so written that not all read it";

/// Whether a name that is written so could be taken for this one.
fn is_spelled(written: &[u8], name: &HeaderName) -> bool {
    let letters = written.iter().copied().filter(|byte| is_token(*byte));
    letters.map(|byte| byte.to_ascii_lowercase()).eq(name.as_str().bytes())
}

/// The head of a request.
pub(super) struct Head<'a> {
    lines: Vec<&'a [u8]>,
}

impl<'a> Head<'a> {
    /// Of all its lines, the empty one at its end included.
    pub(super) fn new(mut bytes: &'a [u8]) -> Self {
        let mut lines = Vec::new();
        while let Some((text, length)) = line(bytes, 0).filter(|(text, _)| !text.is_empty()) {
            lines.push(text);
            bytes = &bytes[length..];
        }
        Self { lines }
    }

    /// Whether a line holds a carriage return.
    pub(super) fn has_lone_cr(&self) -> bool {
        self.lines.iter().any(|line| line.contains(&b'\r'))
    }

    /// Whether it could be for a configured host, or could lead to requests that nobody but who serves them can tell the hosts of.
    pub(super) fn is_for(&self, is_configured: impl Fn(&str, Option<u16>) -> bool) -> Result<bool, &'static str> {
        // What is sent through a tunnel goes to the tunnel's end, and to its port.
        let is_connect = self.is_connect();
        if !self.is_named_plainly(&header::HOST) || !self.is_named_plainly(&header::UPGRADE) {
            return Err(ODD_NAME);
        }
        // Without a host it is for none that is configured.
        let values = self.values(&header::HOST).chain(self.authority()).filter(|value| !value.is_empty());
        for (count, value) in values.enumerate() {
            if count == MAX_FIELDS {
                return Err("a request has too many Host fields");
            }
            let host = RequestHost::parse(&value).ok_or("the Host of a request is not a host name")?;
            let port = if is_connect { host.authority().port_u16() } else { None };
            if is_configured(host.as_str(), port) {
                return Ok(true);
            }
        }
        Ok(self.asks_for_http2())
    }

    /// Whether the server may go on in HTTP/2, each of whose requests has a host of its own (RFC 7540 section 3.2).
    fn asks_for_http2(&self) -> bool {
        self.values(&header::UPGRADE).enumerate().any(|(count, value)| {
            let tokens = value.split(|byte| *byte == b',');
            count == MAX_FIELDS || tokens.map(<[u8]>::trim_ascii).any(|token| token.eq_ignore_ascii_case(b"h2c"))
        })
    }

    fn is_connect(&self) -> bool {
        self.words().next().is_some_and(|method| method.eq_ignore_ascii_case(b"CONNECT"))
    }

    /// Whether there is nothing but blanks around the names of all fields that somebody could take for one of this name.
    fn is_named_plainly(&self, name: &HeaderName) -> bool {
        self.lines.iter().skip(1).all(|line| {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { return true };
            let before = &line[..colon];
            !is_spelled(before, name) || before.iter().all(|byte| is_token(*byte) || is_blank(*byte))
        })
    }

    /// The values of all fields of this name. One goes on in lines that begin with blanks (RFC 9112 section 5.2).
    fn values(&self, name: &HeaderName) -> impl Iterator<Item = Vec<u8>> {
        self.lines.iter().enumerate().skip(1).filter_map(move |(at, line)| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            if !line[..colon].trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()) {
                return None;
            }
            let more = self.lines[at + 1..].iter().take_while(|line| line.first().is_some_and(|byte| is_blank(*byte)));
            let mut value = line[colon + 1..].to_vec();
            more.for_each(|more| value.extend_from_slice(more));
            Some(value.trim_ascii().to_vec())
        })
    }

    /// Whether all fields that somebody could take for one of this name are written so that everybody does: with nothing but
    /// the name before the colon, on one line, and without control characters.
    fn is_plain(&self, name: &HeaderName) -> bool {
        self.lines.iter().enumerate().skip(1).all(|(at, line)| {
            let before = line.split(|byte| *byte == b':').next().unwrap_or_default();
            if !is_spelled(before, name) {
                return true;
            }
            let goes_on = self.lines.get(at + 1).is_some_and(|next| next.first().is_some_and(|byte| is_blank(*byte)));
            let has_control = line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t');
            before.len() == name.as_str().len() && !goes_on && !has_control
        })
    }

    /// The words of the first line.
    fn words(&self) -> impl Iterator<Item = &'a [u8]> {
        let words = self.lines.first().into_iter().flat_map(|line| line.split(|byte| is_space(*byte)));
        words.filter(|word| !word.is_empty())
    }

    /// The authority of a target that is more than a path.
    fn authority(&self) -> Option<Vec<u8>> {
        let target = self.words().nth(1).filter(|target| !target.starts_with(b"/"))?;
        let scheme = target.windows(3).position(|window| window == b"://");
        let rest = &target[scheme.map_or(0, |at| at + 3)..];
        let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
        Some(rest[..end].to_vec())
    }

    /// How its content is delimited, by those who serve requests for configured hosts: what they would refuse, others read in
    /// more than one way.
    pub(super) fn content(&self) -> Result<State, &'static str> {
        let is_old = self.words().last().is_some_and(|version| version.ends_with(b"1.0"));
        let version = if is_old { Version::HTTP_10 } else { Version::HTTP_11 };
        let mut fields = Fields::default();
        for name in [header::TRANSFER_ENCODING, header::CONTENT_LENGTH] {
            if !self.is_plain(&name) {
                return Err(ODD_FRAMING);
            }
            for value in self.values(&name) {
                let value = HeaderValue::from_bytes(&value).map_err(|_| NO_END)?;
                fields.append(&name, &value);
            }
        }
        match http1::of_request(version, &mut fields) {
            // What follows is the tunnel's (RFC 9110 section 9.3.6).
            Ok(framing) if self.is_connect() && framing != Framing::Length(0) => Err(ODD_FRAMING),
            Ok(Framing::Length(0)) => Ok(State::Start),
            Ok(Framing::Length(length)) => Ok(State::Content(length)),
            Ok(Framing::Chunked) => Ok(State::ChunkSize),
            Err(Fault::Length) => Err("the Content-Length of a request is not one number"),
            Err(Fault::LengthAndCoding) => Err("a request has both Content-Length and Transfer-Encoding"),
            Ok(Framing::Close) | Err(_) => Err(NO_END),
        }
    }
}
