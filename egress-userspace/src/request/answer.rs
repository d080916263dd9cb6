//! Answers that routes give themselves: redirects, responses, and failures made on purpose.

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, StatusCode, header,
    uri::{Authority, PathAndQuery},
};

use super::rewrite::replace_prefix;
use crate::{
    head::{RequestHead, Response, ResponseHead},
    policy::{Abort, DirectResponse, Match, Redirect, RedirectPath, RedirectPort, TextMatch},
};

/// What an answer says that is made on purpose, as Envoy's does.
const ABORTED: &str = "fault filter abort";

/// The response that a route has.
pub fn respond(direct: &DirectResponse) -> Response<Bytes> {
    let mut head = ResponseHead::from(direct.status);
    if !direct.body.is_empty() {
        head.fields.append(&header::CONTENT_TYPE, &HeaderValue::from_static("text/plain"));
    }
    Response { head, body: direct.body.clone() }
}

/// A failure made on purpose.
pub fn abort(abort: Abort) -> Response<Bytes> {
    match abort {
        Abort::Http(status) => respond(&DirectResponse { status, body: Bytes::from_static(ABORTED.as_bytes()) }),
        Abort::Grpc(status) => {
            // All that there is to say is in the head (a Trailers-Only response).
            let mut head = ResponseHead::default();
            head.fields.append(&header::CONTENT_TYPE, &HeaderValue::from_static("application/grpc"));
            head.fields.append(&HeaderName::from_static("grpc-status"), &u16::from(status).into());
            head.fields.append(&HeaderName::from_static("grpc-message"), &HeaderValue::from_static(ABORTED));
            Response { head, body: Bytes::new() }
        }
    }
}

/// A redirect of the request with this head, which was sent to `authority` on `port`. None if its `Location` would be
/// none.
pub fn redirect(
    redirect: &Redirect,
    head: &RequestHead,
    authority: &Authority,
    port: u16,
    matched: Option<&Match>,
) -> Option<Response<Bytes>> {
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let host = redirect.host.as_deref().unwrap_or(authority.host());
    let port = match redirect.port {
        // The request is one of http: where the scheme changes, only the port that this implies goes with it.
        RedirectPort::Default if redirect.host.is_none() => {
            authority.port_u16().filter(|port| scheme == "http" || Some(*port) != default_port("http"))
        }
        RedirectPort::Default => None,
        RedirectPort::Request => Some(port),
        RedirectPort::Number(port) => Some(port),
    };
    let port =
        port.filter(|port| Some(*port) != default_port(scheme)).map_or_else(String::new, |port| format!(":{port}"));
    let location = format!("{scheme}://{host}{port}{}", target(redirect, head, matched));
    let mut head = ResponseHead::from(redirect.status);
    head.fields.append(&header::LOCATION, &HeaderValue::try_from(location).ok()?);
    Some(Response { head, body: Bytes::new() })
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn target(redirect: &Redirect, head: &RequestHead, matched: Option<&Match>) -> String {
    let with_query = |path: String| match head.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    match &redirect.path {
        None => head.uri().path_and_query().map_or("/", PathAndQuery::as_str).to_owned(),
        Some(RedirectPath::Whole(path)) if path.contains('?') => path.to_string(),
        Some(RedirectPath::Whole(path)) => with_query(path.to_string()),
        Some(RedirectPath::Prefix(new)) => {
            let prefix = match matched.and_then(|matched| matched.path.as_ref()) {
                Some(TextMatch::Prefix(prefix)) => prefix,
                _ => "/",
            };
            with_query(replace_prefix(head.uri().path(), prefix, new))
        }
    }
}

/// What is answered to a request that none of a rule's routes is for.
pub fn no_route() -> Response<Bytes> {
    respond(&DirectResponse {
        status: StatusCode::NOT_FOUND,
        body: Bytes::from_static(b"egress: no route of the VirtualService for this host matches the request\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Fields;

    fn check(asked: (&str, &'static str, u16), wanted: &Redirect, matched: Option<TextMatch>, expected: &str) {
        let (target, authority, port) = asked;
        let head = RequestHead::get(target, Fields::default());
        let matched = Match { path: matched, ..Match::default() };
        let authority = Authority::from_static(authority);
        let response = redirect(wanted, &head, &authority, port, Some(&matched)).expect("a redirect");
        assert_eq!(response.head.status, wanted.status);
        assert_eq!(response.head.fields.text(&header::LOCATION), Some(expected), "{wanted:?}");
    }

    #[test]
    fn redirects_keep_what_they_do_not_name() {
        let none = Redirect {
            path: None,
            host: None,
            port: RedirectPort::Default,
            scheme: None,
            status: StatusCode::MOVED_PERMANENTLY,
        };
        let asked = ("/a/b?c=d", "cnn.com", 80);
        let to = |path| Redirect { path: Some(path), ..none.clone() };
        check(asked, &Redirect { host: Some("b.example".into()), ..none.clone() }, None, "http://b.example/a/b?c=d");
        check(asked, &Redirect { scheme: Some("https".into()), ..none.clone() }, None, "https://cnn.com/a/b?c=d");
        check(asked, &to(RedirectPath::Whole("/x".into())), None, "http://cnn.com/x?c=d");
        check(asked, &to(RedirectPath::Whole("/x?y".into())), None, "http://cnn.com/x?y");
        let prefix = Some(TextMatch::Prefix("/a/".into()));
        check(asked, &to(RedirectPath::Prefix("/new/".into())), prefix, "http://cnn.com/new/b?c=d");
        let status = StatusCode::PERMANENT_REDIRECT;
        check(
            asked,
            &Redirect { port: RedirectPort::Number(8080), status, ..none.clone() },
            None,
            "http://cnn.com:8080/a/b?c=d",
        );
        check(asked, &Redirect { port: RedirectPort::Request, ..none.clone() }, None, "http://cnn.com/a/b?c=d");
        let odd = ("/", "cnn.com:81", 81);
        check(odd, &to(RedirectPath::Whole("/x".into())), None, "http://cnn.com:81/x");
        let https = Redirect { scheme: Some("https".into()), ..none.clone() };
        check(odd, &https, None, "https://cnn.com:81/");
        check(("/", "cnn.com:80", 80), &https, None, "https://cnn.com/");
        check(odd, &Redirect { host: Some("b".into()), ..https }, None, "https://b/");
        check(odd, &Redirect { host: Some("b".into()), port: RedirectPort::Request, ..none }, None, "http://b:81/");
    }

    #[test]
    fn failures_are_what_the_client_s_protocol_has() {
        assert_eq!(abort(Abort::Http(StatusCode::IM_A_TEAPOT)).head.status, StatusCode::IM_A_TEAPOT);
        let head = abort(Abort::Grpc(14)).head;
        let status = head.fields.text(&HeaderName::from_static("grpc-status"));
        assert_eq!((head.status, status), (StatusCode::OK, Some("14")));
    }
}
