//! Rules in words.

use std::{fmt::Write as _, net::IpAddr};

use super::{Place, RouteReport, RuleReport};
use crate::{
    head::host_of,
    policy::{
        Abort, Action, EndpointAddress, Fault, HeaderChanges, HeaderMatch, HeaderOperations, HostName, HostPattern,
        HttpRoute, Match, PathRewrite, PinsMode, Redirect, RedirectPath, RedirectPort, Requirements, Rewrite, Roots,
        Rule, Share, Targets, TextMatch, TlsSettings, TlsVersion, Upstream, Verify, Weighted,
    },
    upstream::tunnel,
};

/// What becomes of requests for a rule's host and port.
pub(super) fn describe(rule: &Rule) -> RuleReport {
    RuleReport {
        host: rule.host.to_string(),
        port: rule.port,
        location: Place::from(&rule.location),
        routes: rule.routes.iter().map(|route| describe_route(rule, route)).collect(),
    }
}

fn describe_route(rule: &Rule, route: &HttpRoute) -> RouteReport {
    let matches: Vec<_> = route.matches.iter().map(describe_match).collect();
    RouteReport {
        // A match without conditions is for all requests.
        when: (!matches.is_empty() && matches.iter().all(|text| !text.is_empty())).then(|| matches.join(" or ")),
        then: describe_action(rule, route),
        location: Place::from(&route.location),
    }
}

fn describe_match(matched: &Match) -> String {
    let mut parts = Vec::new();
    let mut add =
        |what: &str, text: &Option<TextMatch>| parts.extend(text.as_ref().map(|text| describe_text(what, text)));
    add("method", &matched.method);
    add("authority", &matched.authority);
    parts.extend(matched.path.as_ref().map(|path| {
        // Expressions are not concerned.
        let ignores_case = matched.ignore_case && !matches!(path, TextMatch::Regex(_));
        describe_text("uri", path) + if ignores_case { " in upper or lower case" } else { "" }
    }));
    parts.extend(matched.headers.iter().map(|header| describe_header("header", header)));
    parts.extend(matched.without_headers.iter().map(|header| describe_header("without header", header)));
    parts.extend(matched.query.iter().map(|query| match &query.value {
        Some(text) => describe_text(&format!("query {}", query.name), text),
        None => format!("query {}", query.name),
    }));
    parts.join(", ")
}

fn describe_header(what: &str, header: &HeaderMatch) -> String {
    match &header.value {
        Some(text) => describe_text(&format!("{what} {}", header.name), text),
        None => format!("{what} {}", header.name),
    }
}

fn describe_text(what: &str, text: &TextMatch) -> String {
    match text {
        TextMatch::Exact(text) => format!("{what} {text}"),
        TextMatch::Prefix(text) => format!("{what} {text}*"),
        TextMatch::Regex(pattern) => format!("{what} ~{}", pattern.source()),
    }
}

fn describe_action(rule: &Rule, route: &HttpRoute) -> String {
    let mut text = match &route.action {
        Action::Respond(response) => response.status.as_u16().to_string(),
        Action::Redirect(redirect) => describe_redirect(redirect),
        Action::Forward(destinations) => {
            let total = destinations.last().map_or(0, |last| last.up_to);
            let mut below = 0;
            let shares = destinations.iter().map(|destination| {
                let weight = destination.up_to - below;
                below = destination.up_to;
                let mut upstream =
                    describe_upstream(rule.upstream(destination.upstream), &requested(rule, route, destination));
                // That of the route comes at the end, once for all of them.
                if route.rewrite.authority.is_none()
                    && let Some(authority) = &destination.authority
                {
                    let _ = write!(upstream, ", Host replaced by {authority}");
                }
                describe_changes(&destination.headers, &mut upstream);
                if destinations.len() == 1 { upstream } else { format!("{} {upstream}", part(weight, total)) }
            });
            shares.collect::<Vec<_>>().join(" and ")
        }
    };
    describe_rewrite(&route.rewrite, &mut text);
    describe_changes(&route.headers, &mut text);
    // What goes wrong here shows in the text alone: writing to a String does not fail.
    if let Some(timeout) = route.timeout {
        let _ = write!(text, ", timeout {timeout:?}");
    }
    if let Some(retries) = &route.retries {
        let _ = write!(text, ", at most {} retries", retries.attempts);
    }
    describe_fault(&route.fault, &mut text);
    for mirror in &route.mirrors {
        let upstream = rule.upstream(mirror.upstream);
        let _ = write!(text, ", {} mirrored to {}:{}", percent(mirror.share), upstream.host, upstream.target_port);
    }
    text
}

/// In percent, unless that would have to be rounded: 1 of 300 is neither nothing nor 1%.
fn part(weight: u64, total: u64) -> String {
    let hundredfold = u128::from(weight) * 100;
    match hundredfold % u128::from(total) {
        0 => format!("{}%", hundredfold / u128::from(total)),
        _ => format!("{weight} of {total}"),
    }
}

fn describe_rewrite(rewrite: &Rewrite, text: &mut String) {
    let _ = match &rewrite.path {
        None => Ok(()),
        Some(PathRewrite::Matched(new)) => write!(text, ", what has matched of the path replaced by {new}"),
        Some(PathRewrite::Regex(pattern, new)) => write!(text, ", ~{} in the path replaced by {new}", pattern.source()),
    };
    if let Some(authority) = &rewrite.authority {
        let _ = write!(text, ", Host replaced by {authority}");
    }
}

/// Names alone: values can be keys.
fn describe_changes(changes: &HeaderChanges, text: &mut String) {
    for (what, HeaderOperations { set, add, remove }) in
        [("request", &changes.request), ("response", &changes.response)]
    {
        let set = set.iter().map(|(name, _)| format!("{name} set"));
        let add = add.iter().map(|(name, _)| format!("{name} added"));
        let remove = remove.iter().map(|name| format!("{name} removed"));
        for change in remove.chain(set).chain(add) {
            let _ = write!(text, ", {what} field {change}");
        }
    }
}

fn describe_fault(fault: &Fault, text: &mut String) {
    if let Some((delay, share)) = fault.delay {
        let _ = write!(text, ", {} delayed by {delay:?}", percent(share));
    }
    if let Some((abort, share)) = fault.abort {
        let answer = match abort {
            Abort::Http(status) => status.as_u16().to_string(),
            Abort::Grpc(status) => format!("grpc-status {status}"),
        };
        let _ = write!(text, ", {} answered with {answer}", percent(share));
    }
}

fn percent(share: Share) -> String {
    format!("{}%", f64::from(share.0) / 10_000.0)
}

fn describe_redirect(redirect: &Redirect) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let host = redirect.host.as_deref().unwrap_or("HOST");
    let port = match redirect.port {
        RedirectPort::Default => String::new(),
        RedirectPort::Request => ":PORT".to_owned(),
        RedirectPort::Number(port) => format!(":{port}"),
    };
    let path = match &redirect.path {
        None => "/PATH",
        Some(RedirectPath::Whole(path) | RedirectPath::Prefix(path)) => path,
    };
    format!("{} {scheme}://{host}{port}{path}", redirect.status.as_u16())
}

/// The host that requests by a route are for when they are sent on.
fn requested(rule: &Rule, route: &HttpRoute, to: &Weighted) -> String {
    match (route.authority(to), &rule.host) {
        // Servers are asked for names.
        (Some(authority), _) if authority.host().trim_matches(['[', ']']).parse::<IpAddr>().is_ok() => {
            "of the destination".to_owned()
        }
        (Some(authority), _) => host_of(authority),
        (None, HostPattern::Exact(host)) => host.to_string(),
        (None, HostPattern::Wildcard(_)) => "of the request".to_owned(),
    }
}

fn describe_upstream(upstream: &Upstream, requested: &str) -> String {
    let port = upstream.target_port;
    let to = match &upstream.targets {
        Targets::Resolve(host) => format!("{host}:{port}"),
        Targets::Original => format!("the address connected to, port {port}"),
        Targets::Endpoints(endpoints) => {
            let address = |address: &EndpointAddress| match address {
                EndpointAddress::Ip(ip) if ip.is_ipv6() => format!("[{ip}]"),
                EndpointAddress::Ip(ip) => ip.to_string(),
                EndpointAddress::Name(name) => name.to_string(),
            };
            let endpoints: Vec<_> =
                endpoints.iter().map(|endpoint| format!("{}:{}", address(&endpoint.address), endpoint.port)).collect();
            endpoints.join(" or ")
        }
    };
    let subset = upstream.subset.as_ref().map(|subset| format!(" (subset {subset})")).unwrap_or_default();
    let tunnel = upstream.tunnel.as_ref().map(|tunnel| format!(", through it to {}", tunnel::authority(tunnel)));
    let version = match &upstream.tls.requirements {
        Requirements { post_quantum: false, min_version: TlsVersion::V12, .. } => "TLS 1.2+",
        // There is no post-quantum key exchange in TLS 1.2.
        Requirements { post_quantum: true, .. } | Requirements { min_version: TlsVersion::V13, .. } => "TLS 1.3",
    };
    format!(
        "{version} {to}{subset}{}, {}",
        tunnel.unwrap_or_default(),
        describe_tls(&upstream.tls, &upstream.host, requested)
    )
}

fn describe_tls(tls: &TlsSettings, host: &HostPattern, requested: &str) -> String {
    let mut text = match &tls.roots {
        _ if tls.verify == Verify::Skip => "NOT VERIFIED".to_owned(),
        Roots::System => "OS roots".to_owned(),
        Roots::File(pem) => format!("roots {}", pem.value),
    };
    let sni = tls.server_name(host).map_or(requested, HostName::as_str);
    let _ = write!(text, ", SNI {sni}");
    match &tls.verify {
        Verify::Names(names) if !matches!(names.as_slice(), [name] if name.to_str() == sni) => {
            let names: Vec<_> = names.iter().map(|name| name.to_str()).collect();
            let _ = write!(text, ", valid for {}", names.join(" or "));
        }
        Verify::Names(_) | Verify::Host | Verify::Skip => {}
    }
    if let Some(crl) = &tls.crl {
        let _ = write!(text, ", revoked by {}", crl.value);
    }
    let Requirements { pins, pins_mode, post_quantum, .. } = &tls.requirements;
    if *post_quantum {
        text += ", post-quantum key exchange";
    }
    if !pins.is_empty() {
        let mode = match pins_mode {
            PinsMode::Enforce => "pinned",
            PinsMode::Report => "pinned (reported only)",
        };
        let pins: Vec<_> = pins.iter().map(ToString::to_string).collect();
        let _ = write!(text, ", {mode} to {}", pins.join(" or "));
    }
    if let Some(client) = &tls.client {
        let _ = write!(text, ", client certificate {}", client.certificate.value);
    }
    text
}
