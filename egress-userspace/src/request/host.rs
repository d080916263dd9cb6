//! Which host a request is for: the Host decides, never the address alone.

use http::{HeaderValue, header::HOST, request, uri::Authority};

use super::respond::ProxyError;

/// The host that a request names, in the form that rules use, beside the form that it was sent in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHost {
    /// Lower case, without port and trailing dots.
    name: String,
    /// As in the request.
    authority: HeaderValue,
}

impl RequestHost {
    /// The authority of an absolute target, which overrides Host (RFC 9112 section 3.2.2), else the one Host field.
    ///
    /// # Errors
    /// There is none, there are several, or it is not a host: nobody can say whose request this is.
    pub fn of(request: &request::Parts) -> Result<Self, ProxyError> {
        let mut fields = request.headers.get_all(HOST).iter();
        let field = fields.next();
        if fields.next().is_some() {
            return Err(ProxyError::bad_request("the request has more than one Host field"));
        }
        let value = match request.uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => field.cloned(),
        };
        let Some(value) = value else {
            return Err(ProxyError::bad_request("the request names no host: it has no Host field"));
        };
        Self::parse(&value).ok_or_else(|| ProxyError::bad_request("the request's Host is not a host name"))
    }

    /// The host that a field names.
    pub fn parse(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?.trim();
        let name = if text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')) {
            // As nearly always, there is nothing but the name.
            text.trim_end_matches('.').to_owned()
        } else {
            let authority: Authority = text.parse().ok()?;
            // User information has no place in Host, and would let one host look like another.
            let name = (!text.contains('@')).then(|| authority.host().trim_end_matches('.').to_ascii_lowercase());
            name?
        };
        (!name.is_empty()).then(|| Self { name, authority: value.clone() })
    }

    /// The host in the form that rules use.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The host as it was sent.
    pub fn authority(&self) -> &HeaderValue {
        &self.authority
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(target: &str, hosts: &[&str], expected: Option<&str>) {
        let mut request = http::Request::builder().uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (request, ()) = request.body(()).expect("a valid request").into_parts();
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
