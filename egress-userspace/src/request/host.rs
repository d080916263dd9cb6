//! Which host a request is for: the Host decides, never the address alone.

use http::{header::HOST, uri::Authority};

use super::respond::ProxyError;
use crate::head::{RequestHead, host_of};

/// The port of what names none (RFC 9110 section 4.2.1).
const HTTP: u16 = 80;

/// The host that a request names, in the form that rules use, beside the form that it was sent in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHost {
    /// As in the request.
    authority: Authority,
    /// Lower case, without port and trailing dots, if that is another form.
    name: Option<Box<str>>,
}

impl RequestHost {
    /// The authority of an absolute target, which overrides Host (RFC 9112 section 3.2.2), else the one Host field.
    ///
    /// # Errors
    /// There is none, there are several, or it is not a host: nobody can say whose request this is.
    pub fn of(request: &RequestHead) -> Result<Self, ProxyError> {
        let mut fields = request.fields.get_all(&HOST);
        let field = fields.next();
        if fields.next().is_some() {
            return Err(ProxyError::bad_request("the request has more than one Host field"));
        }
        let host = match (request.uri().authority(), field) {
            (Some(authority), _) => Self::new(authority.clone()),
            (None, Some(field)) => Self::parse(field),
            (None, None) => {
                return Err(ProxyError::bad_request("the request names no host: it has no Host field"));
            }
        };
        host.ok_or_else(|| ProxyError::bad_request("the request's Host is not a host name"))
    }

    /// The host that a field names.
    pub fn parse(mut value: &[u8]) -> Option<Self> {
        // There can be blanks around it.
        while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
            value = rest;
        }
        Self::new(value.try_into().ok()?)
    }

    /// Whether two values name the same host and port.
    pub fn is_same(one: &[u8], other: &[u8]) -> bool {
        let parse = |value| Self::parse(value).map(|host| (host.authority.port_u16().unwrap_or(HTTP), host));
        matches!((parse(one), parse(other)), (Some((port, host)), Some((other_port, other)))
            if port == other_port && host.as_str() == other.as_str())
    }

    /// The host of an authority; None if it has user information, which would let one host look like another.
    pub fn new(authority: Authority) -> Option<Self> {
        let text = authority.as_str();
        // As nearly always, there is nothing but the name: it is looked through to its end, many bytes at a time.
        let is_of_name = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        let is_name = text.bytes().fold(true, |is_name, byte| is_name & is_of_name(byte));
        let name = if is_name && !text.ends_with('.') {
            None
        } else if text.contains('@') {
            return None;
        } else {
            Some(host_of(&authority).into())
        };
        let host = Self { authority, name };
        (!host.as_str().is_empty()).then_some(host)
    }

    /// The host in the form that rules use.
    pub fn as_str(&self) -> &str {
        self.name.as_deref().unwrap_or(self.authority.as_str())
    }

    /// The host as it was sent.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Fields;

    fn check(target: &str, hosts: &[&str], expected: Option<&str>) {
        let fields: Vec<_> = hosts.iter().map(|host| ("Host", *host)).collect();
        let request = RequestHead::get(target, Fields::of(&fields));
        let found = RequestHost::of(&request).ok();
        assert_eq!(found.as_ref().map(RequestHost::as_str), expected, "{target} {hosts:?}");
    }

    #[test]
    fn the_host_is_found_in_its_many_forms() {
        check("/politics", &["edition.cnn.com"], Some("edition.cnn.com"));
        check("/", &["Edition.CNN.com"], Some("edition.cnn.com"));
        check("/", &["edition.cnn.com:80"], Some("edition.cnn.com"));
        check("/", &["edition.cnn.com."], Some("edition.cnn.com"));
        check("/", &["EDITION.cnn.com.:80"], Some("edition.cnn.com"));
        check("/", &["edition.cnn.com.."], Some("edition.cnn.com"));
        check("/", &["[2001:db8::1]:80"], Some("[2001:db8::1]"));
        check("http://edition.cnn.com/x", &["other.example"], Some("edition.cnn.com"));
        check("http://edition.cnn.com:80/x", &[], Some("edition.cnn.com"));
    }

    #[test]
    fn a_request_of_nobody_is_refused() {
        check("/", &[], None);
        check("/", &[""], None);
        check("/", &["."], None);
        check("/", &["a.example", "b.example"], None);
        check("/", &["a.example@edition.cnn.com"], None);
        check("/", &["edition.cnn.com/path"], None);
        check("/", &["two words"], None);
    }
}
