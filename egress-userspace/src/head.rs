//! Heads of messages. Their fields keep the order, the case and the bytes in which they were written (RFC 9110 section 5):
//! what nobody changes goes on as it came. What comes over HTTP/2 has no case, and gets the usual one.

mod fields;
mod names;

use bytes::Bytes;
use http::{
    Method, StatusCode, Uri, Version,
    uri::{Authority, PathAndQuery},
};

pub use self::{
    fields::{Builder, Fields, Line, Names, ascii},
    names::put as put_name,
};

/// The host of an authority in the form that rules use: in lower case, without port and trailing dots.
pub fn host_of(authority: &Authority) -> String {
    authority.host().trim_end_matches('.').to_ascii_lowercase()
}

/// The head of a request.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The version in which it came.
    pub version: Version,
    /// The fields.
    pub fields: Fields,
    uri: Uri,
    /// The target as it was written, where that is not how the URI is written.
    written: Option<Bytes>,
}

impl RequestHead {
    /// A head whose target is `uri`.
    pub fn new(method: Method, uri: Uri, version: Version, fields: Fields) -> Self {
        Self { method, version, fields, uri, written: None }
    }

    /// The same, whose target was written like this.
    #[must_use]
    pub fn written_as(self, target: Bytes) -> Self {
        Self { written: Some(target), ..self }
    }

    /// The target as routes see it.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Changes the target. One that stays the same stays as it was written.
    pub fn set_uri(&mut self, uri: Uri) {
        if self.uri != uri {
            self.uri = uri;
            self.written = None;
        }
    }

    /// Leaves of an absolute target what comes after its authority, as it was written.
    pub fn leave_authority(&mut self) {
        self.uri = origin_form(self.uri.path_and_query().cloned()).into();
        self.written = self.written.take().and_then(|written| {
            let rest = written.slice(end_of_authority(&written)?..);
            match rest.first()? {
                b'/' => Some(rest),
                _ => Some([b"/", &rest[..]].concat().into()),
            }
        });
    }

    /// How long it was, in bytes, but for a few.
    pub fn size(&self) -> usize {
        self.target().len() + self.fields.size()
    }

    /// The target as it was written, or else as the URI has it.
    pub fn target(&self) -> &[u8] {
        let of_uri = self.uri.path_and_query().map_or("/", |target| target.as_str());
        self.written.as_deref().unwrap_or(of_uri.as_bytes())
    }
}

/// Where the authority of an absolute target ends (RFC 3986 section 3.2), if that is what it is.
pub fn end_of_authority(target: &[u8]) -> Option<usize> {
    let start = target.windows(3).position(|bytes| bytes == b"://")? + 3;
    let length = target[start..].iter().position(|byte| b"/?#".contains(byte));
    Some(length.map_or(target.len(), |length| start + length))
}

/// What a URL has after its authority, as a target: its path is never empty there (RFC 9112 section 3.2.1).
pub fn origin_form(target: Option<PathAndQuery>) -> PathAndQuery {
    let target = match target {
        // As a text it has its slash.
        Some(target) if target.as_str().starts_with('?') => target.to_string().parse().ok(),
        target => target,
    };
    target.unwrap_or_else(|| PathAndQuery::from_static("/"))
}

#[cfg(test)]
impl RequestHead {
    /// The head of a request for `target`.
    pub fn get(target: &str, fields: Fields) -> Self {
        Self::new(Method::GET, target.parse().expect("a target"), Version::HTTP_11, fields)
    }
}

/// The head of a response.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// The version in which it came.
    pub version: Version,
    /// The reason phrase, where it is another than usual.
    pub reason: Option<Bytes>,
    /// The fields.
    pub fields: Fields,
}

impl From<StatusCode> for ResponseHead {
    /// Without fields.
    fn from(status: StatusCode) -> Self {
        Self { status, ..Self::default() }
    }
}

/// A response.
#[derive(Clone, Debug)]
pub struct Response<B> {
    /// Its head.
    pub head: ResponseHead,
    /// Its content.
    pub body: B,
}

impl<B> Response<B> {
    /// The same with other content.
    pub fn map<C>(self, change: impl FnOnce(B) -> C) -> Response<C> {
        Response { head: self.head, body: change(self.body) }
    }
}
