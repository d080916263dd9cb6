//! What routes make of a target: texts match what they say they match, and what a target is rewritten to is one again, of this origin
//! and with the same query. There are a line each for the target, for a text that it is matched by, for what takes the place of what
//! has matched, and for a parameter of the query, which can have a value.

#![no_main]

use std::path::Path;

use bytes::{Bytes, BytesMut};
use egress::{
    head::RequestHead,
    http1::{self, Limits},
    policy::{
        HttpRoute, Location, Match, PathRewrite, Pattern, QueryMatch, Redirect, RedirectPath, RedirectPort, TextMatch,
    },
    request::{answer, rewrite, select},
};
use http::{StatusCode, Version, header, uri::Authority};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { head: 64 * 1024, fields: 10 };
/// Longer expressions take long.
const LONGEST: usize = 32;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.splitn(4, |byte| *byte == b'\n');
    let target = lines.next().unwrap_or_default();
    let Some(head) = read(target) else { return };
    let texts: Vec<_> = lines.filter_map(|line| str::from_utf8(line).ok()).collect();
    let [text, new, parameter] = texts[..] else { return };
    check_query(&head, parameter);
    let mut matched = Vec::new();
    for ignore_case in [false, true] {
        for kind in [TextMatch::Exact(text.into()), TextMatch::Prefix(text.into())] {
            let found = is_matched(&head, Match { path: Some(kind.clone()), ignore_case, ..Match::default() });
            assert_eq!(found.is_some(), is_like(head.uri().path(), &kind, ignore_case), "{head:?} {kind:?}");
            matched.extend(found);
        }
    }
    if text.len() <= LONGEST
        && let Ok(pattern) = Pattern::whole(text)
    {
        let wanted = Match { path: Some(TextMatch::Regex(pattern)), ..Match::default() };
        matched.extend(is_matched(&head, wanted));
    }
    for matched in matched.iter().map(Some).chain([None]) {
        check_rewritten(&head, &PathRewrite::Matched(new.into()), matched, new);
        check_redirected(&head, new, matched);
    }
    if text.len() <= LONGEST
        && let Ok(pattern) = Pattern::part(text)
    {
        check_rewritten(&head, &PathRewrite::Regex(pattern, new.into()), None, new);
    }
});

/// The head of a request for this target.
fn read(target: &[u8]) -> Option<RequestHead> {
    let head = [b"GET ", target, b" HTTP/1.1\r\nHost: a.example\r\n\r\n"].concat();
    http1::request(&Bytes::from(head), &LIMITS).ok()
}

/// The match, if the request has it.
fn is_matched(head: &RequestHead, wanted: Match) -> Option<Match> {
    let location = Location::whole(Path::new("rules.yaml"));
    let route = HttpRoute { matches: vec![wanted], ..HttpRoute::catch_all(location) };
    let (_, matched) = select::select(std::slice::from_ref(&route), head, "a.example")?;
    matched.cloned()
}

/// Whoever has all of the text before them finds the same.
fn is_like(path: &str, kind: &TextMatch, ignore_case: bool) -> bool {
    let cased = |text: &str| if ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
    match kind {
        TextMatch::Exact(text) => cased(path) == cased(text),
        TextMatch::Prefix(text) => cased(path).starts_with(&cased(text)),
        TextMatch::Regex(_) => unreachable!("what an expression is like only expressions can say"),
    }
}

/// A parameter is there where its text is, from one `&` to the next.
fn check_query(head: &RequestHead, parameter: &str) {
    let (name, value) = parameter.split_once('=').map_or((parameter, None), |(name, value)| (name, Some(value)));
    if name.contains('&') {
        return;
    }
    let all = format!("&{}&", head.uri().query().unwrap_or_default());
    let first = [format!("&{name}="), format!("&{name}&")].into_iter().filter_map(|text| all.find(&text)).min();
    let found = first.map(|at| {
        let text = all[at + 1 + name.len()..].split('&').next().unwrap_or_default();
        text.strip_prefix('=').unwrap_or(text)
    });
    let has = |value: Option<&str>| {
        let value = value.map(|value| TextMatch::Exact(value.into()));
        is_matched(head, Match { query: vec![QueryMatch { name: name.into(), value }], ..Match::default() }).is_some()
    };
    assert_eq!(has(None), found.is_some(), "{name:?} in {all:?}");
    if let Some(value) = value {
        assert_eq!(has(Some(value)), found == Some(value), "{name:?} is {value:?} in {all:?}");
    }
}

/// What comes of a rewrite is read as what it is.
fn check_rewritten(head: &RequestHead, rewrite: &PathRewrite, matched: Option<&Match>, new: &str) {
    let Some(uri) = rewrite::path(head.uri(), rewrite, matched) else { return };
    assert!(uri.scheme().is_none() && uri.authority().is_none() && uri.path().starts_with('/'), "{uri:?}");
    if !new.contains(['?', '#']) {
        assert_eq!(uri.query(), head.uri().query(), "{rewrite:?}");
    }
    let mut changed = head.clone();
    changed.set_uri(uri.clone());
    let mut written = BytesMut::new();
    http1::request_head(&changed, &[], &mut written);
    let again = http1::request(&written.freeze(), &LIMITS).expect("what we write can be read");
    assert_eq!(again.uri(), &uri);
    assert_eq!(again.target(), changed.target());
    assert!(again.fields.iter().eq(head.fields.iter()));
}

/// A redirect is one line, to the host that was asked for.
fn check_redirected(head: &RequestHead, new: &str, matched: Option<&Match>) {
    for path in [None, Some(RedirectPath::Whole(new.into())), Some(RedirectPath::Prefix(new.into()))] {
        let status = StatusCode::FOUND;
        let redirect = Redirect { path, host: None, port: RedirectPort::Default, scheme: None, status };
        let authority = Authority::from_static("a.example");
        let Some(response) = answer::redirect(&redirect, head, &authority, 80, matched) else { continue };
        let location = response.head.fields.get(&header::LOCATION).expect("there is one");
        assert!(location.starts_with(b"http://a.example"), "{location:?}");
        let mut written = BytesMut::new();
        http1::response_head(&response.head, Version::HTTP_11, &[], &mut written);
        let again = http1::response(&written.clone().freeze(), &LIMITS).expect("what we write can be read");
        assert!(again.fields.get(&header::LOCATION).is_some_and(|again| again == location.trim_ascii()), "{written:?}");
    }
}
