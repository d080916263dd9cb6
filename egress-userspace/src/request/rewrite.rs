//! What routes and annotations change in heads.

use http::{
    HeaderValue, Uri, header,
    uri::{Authority, PathAndQuery},
};

use crate::{
    head::{Fields, host_of},
    policy::{HeaderOperations, Match, PathRewrite, TextMatch},
};

/// Removes, sets and adds fields.
pub fn change(fields: &mut Fields, changes: &HeaderOperations) {
    for name in &changes.remove {
        fields.remove(name);
    }
    for (name, value) in &changes.set {
        fields.set(name, value);
    }
    for (name, value) in &changes.add {
        fields.append(name, value);
    }
}

/// Removes what would tell the origin that http was spoken: by what name ever proxies say who has asked them, and how (RFC 7239
/// section 4, and its forerunners).
pub fn strip_forwarded(fields: &mut Fields) {
    const BEFORE_IT: &[u8] = b"x-forwarded-";
    fields.retain(|name, _| {
        let is_older = name.get(..BEFORE_IT.len()).is_some_and(|start| start.eq_ignore_ascii_case(BEFORE_IT));
        !is_older && !name.eq_ignore_ascii_case(b"forwarded")
    });
}

/// Removes the attribute by which clients keep a cookie to https (RFC 6265 section 4.1.2.5), and those which ask for it:
/// `SameSite=None` and `Partitioned` are void without it.
pub fn drop_secure(fields: &mut Fields) {
    let needs_https = |attribute: &&[u8]| {
        let attribute: Vec<_> = attribute.iter().filter(|byte| !byte.is_ascii_whitespace()).copied().collect();
        [&b"secure"[..], b"samesite=none", b"partitioned"].iter().any(|other| attribute.eq_ignore_ascii_case(other))
    };
    fields.change(&header::SET_COOKIE, |cookie| {
        // The first part is the cookie's own name and value, which can be in any encoding.
        let mut parts = cookie.split(|byte| *byte == b';');
        let first = parts.next()?;
        if !parts.clone().any(|attribute| needs_https(&attribute)) {
            return None;
        }
        let kept: Vec<_> = std::iter::once(first).chain(parts.filter(|attribute| !needs_https(attribute))).collect();
        // Blanks at a value's end are none of it (RFC 9110 section 5.5).
        HeaderValue::from_bytes(kept.join(&b';').trim_ascii_end()).ok()
    });
}

/// Makes `Location: https://host...` one that is led through us, where `is_ours` says that TLS is originated for that host
/// on port 80.
pub fn lead_back(fields: &mut Fields, is_ours: impl Fn(&str) -> bool) {
    const SCHEME: &[u8] = b"https://";
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let Some((scheme, after)) = fields.get(&name).and_then(|value| value.split_at_checked(SCHEME.len())) else {
            continue;
        };
        // What follows the authority stays as it was written, which can be in any encoding.
        let end = after.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(after.len());
        let (authority, rest) = after.split_at(end);
        let Some(authority) = Authority::try_from(authority).ok().filter(|_| scheme.eq_ignore_ascii_case(SCHEME))
        else {
            continue;
        };
        let is_default_port = authority.port_u16().is_none_or(|port| port == 443);
        if !is_default_port || !is_ours(&host_of(&authority)) {
            continue;
        }
        if let Ok(value) = HeaderValue::from_bytes(&[b"http://", authority.host().as_bytes(), rest].concat()) {
            fields.set(&name, &value);
        }
    }
}

/// The target with its path changed; None if the outcome is no path.
pub fn path(target: &Uri, rewrite: &PathRewrite, matched: Option<&Match>) -> Option<Uri> {
    let old = target.path();
    let path = match rewrite {
        PathRewrite::Matched(new) => match matched.and_then(|matched| matched.path.as_ref()) {
            Some(TextMatch::Prefix(prefix)) => replace_prefix(old, prefix, new),
            Some(TextMatch::Exact(_) | TextMatch::Regex(_)) => new.to_string(),
            None => replace_prefix(old, "/", new),
        },
        PathRewrite::Regex(pattern, new) => pattern.regex().replace_all(old, &**new).into_owned(),
    };
    let written = match target.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let written = if written.starts_with('/') { written } else { format!("/{written}") };
    written.parse::<PathAndQuery>().ok().map(Uri::from)
}

/// The path with another prefix. It has matched, be it in another case.
pub fn replace_prefix(path: &str, prefix: &str, new: &str) -> String {
    format!("{new}{}", path.get(prefix.len()..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::policy::Pattern;

    #[test]
    fn fields_are_removed_set_and_added_in_this_order() {
        let mut found = Fields::of(&[("X-A", "1"), ("x-b", "2"), ("x-a", "3"), ("X-C", "4"), ("x-d", "5")]);
        let pair = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let changes = HeaderOperations {
            set: vec![pair("x-c", "new")],
            add: vec![pair("x-d", "6"), pair("x-b", "7")],
            remove: vec![HeaderName::from_static("x-a"), HeaderName::from_static("x-b")],
        };
        change(&mut found, &changes);
        assert_eq!(found.listed(), [("X-C", "new"), ("x-d", "5"), ("X-D", "6"), ("X-B", "7")]);
    }

    #[test]
    fn what_says_that_http_was_spoken_is_removed() {
        let mut found = Fields::of(&[
            ("x-forwarded-proto", "http"),
            ("accept", "*/*"),
            ("Forwarded", "proto=http"),
            ("X-Forwarded-Client-Cert", "By=spiffe://a"),
            ("x-forwarded", "1"),
            ("x-for", "1"),
        ]);
        strip_forwarded(&mut found);
        assert_eq!(found.listed(), [("accept", "*/*"), ("x-forwarded", "1"), ("x-for", "1")]);
    }

    #[test]
    fn cookies_lose_what_keeps_them_to_https() {
        for (before, after) in [
            ("a=1; Secure", "a=1"),
            ("a=secure; Path=/; SECURE; HttpOnly", "a=secure; Path=/; HttpOnly"),
            ("secure; Path=/", "secure; Path=/"),
            ("a=1; SameSite=None; Secure; Partitioned", "a=1"),
            ("a=1; SameSite=Lax;Secure", "a=1; SameSite=Lax"),
            ("a=1 ; Secure", "a=1"),
            ("a=1", "a=1"),
        ] {
            let mut found = Fields::of(&[("set-cookie", before)]);
            drop_secure(&mut found);
            assert_eq!(found.listed(), [("set-cookie", after)]);
        }
        let mut latin = Fields::default();
        latin.append(&header::SET_COOKIE, &HeaderValue::from_bytes(b"a=J\xfcrgen; Secure").expect("a value"));
        drop_secure(&mut latin);
        assert_eq!(latin.get(&header::SET_COOKIE), Some(&b"a=J\xfcrgen"[..]));
        let mut several = Fields::of(&[("Set-Cookie", "a=1; Secure"), ("x-a", "1"), ("set-cookie", "b=2; Secure")]);
        drop_secure(&mut several);
        assert_eq!(several.listed(), [("Set-Cookie", "a=1"), ("x-a", "1"), ("set-cookie", "b=2")]);
    }

    #[test]
    fn redirects_to_hosts_of_ours_lead_through_us() {
        for (before, after) in [
            ("https://cnn.com/a?b#c", "http://cnn.com/a?b#c"),
            ("https://CNN.com:443/a", "http://CNN.com/a"),
            ("https://cnn.com", "http://cnn.com"),
            ("HTTPS://cnn.com/", "http://cnn.com/"),
            ("https://cnn.com?a", "http://cnn.com?a"),
            ("https://cnn.com/{a}<b>", "http://cnn.com/{a}<b>"),
            ("https://cnn.com.evil.example/", "https://cnn.com.evil.example/"),
            ("https:", "https:"),
            ("https://cnn.com:8443/a", "https://cnn.com:8443/a"),
            ("https://other.example/a", "https://other.example/a"),
            ("http://cnn.com/a", "http://cnn.com/a"),
            ("/a", "/a"),
        ] {
            let mut found = Fields::of(&[("location", before)]);
            lead_back(&mut found, |host| host == "cnn.com");
            assert_eq!(found.listed(), [("location", after)]);
        }
        let mut latin = Fields::default();
        latin.append(&header::LOCATION, &HeaderValue::from_bytes(b"https://cnn.com/gr\xf6\xdfe").expect("a value"));
        lead_back(&mut latin, |host| host == "cnn.com");
        assert_eq!(latin.get(&header::LOCATION), Some(&b"http://cnn.com/gr\xf6\xdfe"[..]));
    }

    #[test]
    fn paths_are_rewritten_by_what_has_matched() {
        let check = |target: &'static str, rewrite: &PathRewrite, matcher: Option<TextMatch>, expected: &str| {
            let matched = Match { path: matcher, ..Match::default() };
            let found = path(&Uri::from_static(target), rewrite, Some(&matched)).expect("a path");
            assert_eq!(found.to_string(), expected, "{target} {rewrite:?} {matched:?}");
        };
        let to = |text: &str| PathRewrite::Matched(text.into());
        let prefix = |text: &str| Some(TextMatch::Prefix(text.into()));
        check("/v1/a?q=1", &to("/v2/"), prefix("/v1/"), "/v2/a?q=1");
        check("/v1", &to("/"), prefix("/v1"), "/");
        check("/v1/a", &to("/"), prefix("/v1"), "//a");
        check("/v1/a?q", &to("/b"), Some(TextMatch::Exact("/v1/a".into())), "/b?q");
        check("/a", &to("/v2/"), None, "/v2/a");
        let regex =
            PathRewrite::Regex(Pattern::part("^/([a-z]+)/([0-9]+)").expect("an expression"), "/${2}/${1}".into());
        check("/item/42/x?q", &regex, None, "/42/item/x?q");
        let emptied = PathRewrite::Regex(Pattern::part(".*").expect("an expression"), "".into());
        check("/a", &emptied, None, "/");
    }
}
