//! What a `VirtualService` cannot say.

use super::check;

/// Each route as the only one, after its destination; what is expected is about a field of it.
fn check_routes(rows: &[(&str, &str)]) {
    for (route, expected) in rows {
        let spec = format!("hosts: [a.com]\nhttp:\n- {{route: [{{destination: {{host: a.com}}}}], {route}}}");
        let expected = if expected.is_empty() { String::new() } else { format!("@7: spec.http[0].{expected}") };
        check("VirtualService", &[(&spec, &expected)]);
    }
}

#[test]
fn retries() {
    check_routes(&[
        ("retries: {attempts: 0}", ""),
        ("retries: {attempts: 0, retryOn: ''}", ""),
        ("retries: {attempts: 1, retryOn: '', perTryTimeout: 1s}", ""),
        (
            "retries: {attempts: 0, perTryTimeout: 1s}",
            "retries: there is perTryTimeout, but without attempts nothing is tried again; set attempts, or remove perTryTimeout",
        ),
        (
            "retries: {retryOn: 5xx}",
            "retries: there is retryOn, but without attempts nothing is tried again; set attempts, or remove retryOn",
        ),
        (
            "retries: {attempts: 0, backoff: 1s}",
            "retries: there is backoff, but without attempts nothing is tried again; set attempts, or remove backoff",
        ),
    ]);
}

#[test]
fn an_empty_text_says_as_much_as_none() {
    check_routes(&[
        ("rewrite: {uri: /, authority: ''}", ""),
        ("rewrite: {authority: ''}", "rewrite: nothing is rewritten; give uri, uriRegexRewrite or authority"),
        // An empty path is one to compare with.
        ("match: [{uri: {exact: ''}, name: ''}]", ""),
        (
            "match: [{uri: {exact: '', prefix: ''}}]",
            "match[0].uri: exact, prefix and regex exclude each other; choose one",
        ),
    ]);
    let [redirect, respond] =
        ["redirect: {uri: /, authority: '', scheme: ''}", "directResponse: {status: 200, body: {string: ''}}"];
    for action in [redirect, respond] {
        check("VirtualService", &[(&format!("hosts: [a.com]\nhttp:\n- {{{action}}}"), "")]);
    }
}

#[test]
fn rewrites_by_an_expression() {
    let backslash = "a backslash stands before the number of a group; write two of them if one is meant";
    for (rewrite, expected) in [
        (r"/\0/\2\\", ""),
        (r"/\3", "there is no group 3 in the expression; use \\0 to \\2"),
        (r"/\n", backslash),
        (r"/\", backslash),
        (r"/\\\", backslash),
    ] {
        let route = format!("rewrite: {{uriRegexRewrite: {{match: '/(a)/(b)', rewrite: '{rewrite}'}}}}");
        let expected = if expected.is_empty() { "" } else { &format!("rewrite.uriRegexRewrite.rewrite: {expected}") };
        check_routes(&[(&route, expected)]);
    }
}

#[test]
fn whatever_there_is_excludes_what_there_must_be() {
    const EXCLUDE: &str = "exact, prefix and regex exclude each other; choose one";
    check_routes(&[
        ("match: [{headers: {x-a: {regex: '*'}}}]", ""),
        ("match: [{headers: {x-a: {exact: a, regex: '*'}}}]", &format!("match[0].headers.x-a: {EXCLUDE}")),
        ("match: [{uri: {prefix: a, regex: '*'}}]", &format!("match[0].uri: {EXCLUDE}")),
        (
            "match: [{uri: {regex: '*'}}]",
            "match[0].uri: \"*\" is not a regular expression; leave this out, or write .*, if all will do",
        ),
    ]);
}

#[test]
fn a_host_is_set_once() {
    const TWICE: &str = "@6: spec.http[0]: the Host is set more than once; choose one of rewrite.authority and a header field Host, or \
                         :authority";
    const B: &str = "headers: {request: {set: {Host: b.com}}}";
    for (fields, expected) in [
        (B, ""),
        (&format!("{B}, rewrite: {{uri: /}}"), ""),
        (&format!("{B}, rewrite: {{authority: b.com}}"), TWICE),
        ("headers: {request: {set: {Host: b.com, ':authority': b.com}}}", TWICE),
    ] {
        let spec = format!("hosts: [a.com]\nhttp: [{{route: [{{destination: {{host: a.com}}}}], {fields}}}]");
        check("VirtualService", &[(&spec, expected)]);
    }
}

#[test]
fn rewrites_and_redirects_to_nothing() {
    let nothing = "rewrite: nothing is rewritten; give uri, uriRegexRewrite or authority";
    let regex = "uriRegexRewrite: {match: a, rewrite: b}";
    check_routes(&[
        ("rewrite: {}", nothing),
        ("rewrite: {uri: ''}", nothing),
        ("rewrite: {uri: '', authority: b.com}", ""),
        (&format!("rewrite: {{uri: '', {regex}}}"), ""),
        (&format!("rewrite: {{uri: /, {regex}}}"), "rewrite: uri and uriRegexRewrite exclude each other; choose one"),
    ]);
    let nothing = "@6: spec.http[0].redirect: the redirect leads to where the request came from; give uri, authority, scheme or port";
    for (redirect, expected) in [
        ("", nothing),
        ("uri: ''", nothing),
        ("redirectCode: 302", nothing),
        ("scheme: https", ""),
        ("uri: '', port: 81", ""),
    ] {
        check("VirtualService", &[(&format!("hosts: [a.com]\nhttp: [{{redirect: {{{redirect}}}}}]"), expected)]);
    }
}

/// Nothing is said of what would be missing, or too much, without a field that is refused.
#[test]
fn what_follows_from_a_refused_field_is_not_said() {
    let refused = "Istio has this field, egress does not implement it; remove it";
    check_routes(&[
        (
            "fault: {abort: {http2Error: PROTOCOL_ERROR, percentage: {value: 1}}}",
            &format!("fault.abort.http2Error: {refused}"),
        ),
        (
            "fault: {abort: {percentage: {value: 1}}}",
            "fault.abort: the status is one of httpStatus and grpcStatus; give one of them",
        ),
        ("fault: {delay: {exponentialDelay: 1s}}", &format!("fault.delay.exponentialDelay: {refused}")),
        ("fault: {delay: {percentage: {value: 1}}}", "fault.delay.fixedDelay: this field is required"),
    ]);
    let no_routes = "@4: spec.http: there are no routes; add `http`, or remove the VirtualService";
    let nothing = "@6: spec.http[0]: nothing is done with the requests; add route, redirect or directResponse";
    for (routes, expected) in [
        ("tcp: [{route: [{destination: {host: b.com}}]}]", format!("@6: spec.tcp: {refused}")),
        ("exportTo: ['*']", no_routes.to_owned()),
        ("http: [{delegate: {name: y}, rewrite: {uri: /}}]", format!("@6: spec.http[0].delegate: {refused}")),
        ("http: [{name: y}]", nothing.to_owned()),
    ] {
        check("VirtualService", &[(&format!("hosts: [a.com]\n{routes}"), &expected)]);
    }
}

#[test]
fn what_could_never_be_sent_is_not_rewritten_to() {
    let path = |text: &str| format!("{text:?} has characters that no path has; write a blank as %20");
    let host = |text: &str| format!("{text:?} is not a host with or without a port");
    let fragment = "what comes after # is never sent to a server; write %23 if that character is meant";
    check_routes(&[
        ("rewrite: {uri: '/é?a=b', authority: 'b.com:8080'}", ""),
        ("rewrite: {uri: b/}", ""),
        ("rewrite: {uri: /a b}", &format!("rewrite.uri: {}", path("/a b"))),
        (
            "rewrite: {uriRegexRewrite: {match: a, rewrite: 'b c'}}",
            &format!("rewrite.uriRegexRewrite.rewrite: {}", path("b c")),
        ),
        ("rewrite: {uri: '/a#b'}", &format!("rewrite.uri: {fragment}")),
        (
            "rewrite: {uriRegexRewrite: {match: a, rewrite: '#'}}",
            &format!("rewrite.uriRegexRewrite.rewrite: {fragment}"),
        ),
        ("rewrite: {authority: 'b.com:http'}", &format!("rewrite.authority: {}", host("b.com:http"))),
        ("rewrite: {authority: ':80'}", &format!("rewrite.authority: {}", host(":80"))),
    ]);
    let ports = "authority has a port already, beside port or derivePort; remove one of them";
    let glued = "this comes after the host, and would be taken for a part of it; begin it with /";
    for (fields, expected) in [
        ("redirect: {uri: '/a?b#c', authority: 'b.com:81'}", String::new()),
        ("redirect: {uri: /a b}", format!("redirect.uri: {}", path("/a b"))),
        ("redirect: {uri: .evil.com}", format!("redirect.uri: {glued}")),
        ("match: [{uri: {prefix: /}}], redirect: {prefixRewrite: b/}", format!("redirect.prefixRewrite: {glued}")),
        ("redirect: {authority: 'b.com:81', port: 82}", format!("redirect: {ports}")),
        ("redirect: {authority: 'b.com:81', derivePort: FROM_REQUEST_PORT}", format!("redirect: {ports}")),
    ] {
        let expected = if expected.is_empty() { expected } else { format!("@6: spec.http[0].{expected}") };
        check("VirtualService", &[(&format!("hosts: [a.com]\nhttp: [{{{fields}}}]"), &expected)]);
    }
}
