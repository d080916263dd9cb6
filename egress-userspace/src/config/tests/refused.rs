//! One row per mistake: the document, and what the user is told.

mod destination_rule;
mod secret;
mod virtual_service;

use std::path::Path;

use super::{super::Code, errors, parse};

/// Wraps a `spec` into a resource, in which it starts on line 5.
fn resource(kind: &str, spec: &str) -> String {
    let mut text = format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec:\n");
    for line in spec.lines() {
        text += &format!("  {line}\n");
    }
    text
}

/// Wraps each `spec` into a resource. What is expected has `@5` for `rules.yaml:5`.
fn check(kind: &str, rows: &[(&str, &str)]) {
    for (spec, expected) in rows {
        let text = resource(kind, spec);
        assert_eq!(errors(&text), expected.replace('@', "rules.yaml:"), "\n{text}");
    }
}

#[test]
fn what_istio_has_is_told_apart_from_what_nobody_has() {
    let balancer = |value: &str| format!("host: a.com\ntrafficPolicy: {{loadBalancer: {{simple: {value}}}}}");
    let tls = |fields: &str| format!("host: a.com\ntrafficPolicy: {{tls: {{{fields}}}}}");
    let header =
        "hosts: [a.com]\nhttp: [{route: [{destination: {host: a.com}}], headers: {request: {set: {a: '%B%'}}}}]";
    for (kind, spec, code) in [
        ("DestinationRule", balancer("LEAST_CONN"), Code::Unsupported),
        ("DestinationRule", tls("mode: ISTIO_MUTUAL"), Code::Unsupported),
        ("DestinationRule", tls("mode: SIMPLE, subjectAltNames: ['*.a.com']"), Code::Unsupported),
        ("VirtualService", header.to_owned(), Code::Unsupported),
        ("DestinationRule", balancer("LEAST"), Code::InvalidValue),
        // Whatever the user's words are.
        ("DestinationRule", tls("mode: egress does not implement it"), Code::InvalidValue),
    ] {
        let errors = parse(&resource(kind, &spec), Path::new("rules.yaml")).expect_err("a mistake");
        assert_eq!(errors.iter().map(|error| error.code).collect::<Vec<_>>(), [code], "{errors}");
    }
}

#[test]
fn service_entry_fields() {
    const REST: &str = "ports: [{number: 80, name: http, protocol: HTTP}]";
    let rows = [
        ("", "@1: spec: this field is required"),
        ("[]", "@4: spec: expected a map, found a list"),
        (
            "hosts: a.com",
            "@4: spec.ports: this field is required\n@5: spec.hosts: expected a list, found the text \"a.com\"",
        ),
        ("hosts: []", "@5: spec.hosts: the list is empty; name at least one host"),
        ("hosts: [80]", "@5: spec.hosts[0]: \"80\" is not a DNS name"),
        ("hosts: [a.com, A.com.]", "@5: spec.hosts[1]: a.com is already at rules.yaml:5; remove one of them"),
        (
            "hosts:\n- a.com\n- http://b.com",
            "@7: spec.hosts[1]: \"http://b.com\" is a URL; drop the scheme \"http\" and write `b.com`",
        ),
        (
            "hosts: ['a.com:80']",
            "@5: spec.hosts[0]: \"a.com:80\" contains a port; write `a.com` and give the port in its own field",
        ),
        ("hosts: [a b]", "@5: spec.hosts[0]: \"a b\" contains a space"),
        ("hosts: ['*']", "@5: spec.hosts[0]: `*` would be every host there is; name the hosts"),
        (
            "hosts: [a.*.com]",
            "@5: spec.hosts[0]: \"a.*.com\": a wildcard stands for all of the first label and nothing else, as in `*.example.com`",
        ),
        ("hosts: [203.0.113.7]", "@5: spec.hosts[0]: \"203.0.113.7\" is an IP address where a host name is wanted"),
        (
            "hosts: [a.com]\naddresses: [203.0.113.0/33]",
            "@6: spec.addresses[0]: \"33\" is not a prefix length; use 0 to 32",
        ),
        (
            "hosts: [a.com]\naddresses: [b.com]",
            "@6: spec.addresses[0]: \"b.com\" is not an IP address or a range such as 203.0.113.0/24",
        ),
        (
            "hosts: [a.com]\naddresses: [203.0.113.0/24]\nresolution: DNS",
            "@6: spec.addresses[0]: an address range needs resolution NONE or STATIC; with DNS, name single addresses",
        ),
        (
            "hosts: [a.com]\nlocation: OUTSIDE",
            "@6: spec.location: unknown value \"OUTSIDE\"; use MESH_EXTERNAL, MESH_INTERNAL",
        ),
        ("hosts: [a.com]\nresolution: dns", "@6: spec.resolution: unknown value \"dns\"; did you mean DNS?"),
        (
            "hosts: [a.com]\nresolution: DYNAMIC_DNS",
            "@5: spec.hosts[0]: DYNAMIC_DNS is for wildcards; use DNS for the name of one host",
        ),
        (
            "hosts: [a.com]\nresolution: STATIC\nendpoints: [{address: 203.0.113.7}]\nworkloadSelector: {labels: {}}",
            "@8: spec.workloadSelector: endpoints and workloadSelector exclude each other; remove one of them",
        ),
        ("hosts: [a.com]\nresolutoin: DNS", "@6: spec.resolutoin: unknown field; did you mean `resolution`?"),
        (
            "hosts: [a.com]\ncolour: red",
            "@6: spec.colour: unknown field; the fields known here are hosts, addresses, ports, location, resolution, endpoints, subjectAltNames, exportTo, workloadSelector",
        ),
        ("hosts: [a.com]\nhosts: [b.com]", "@6: duplicate mapping key `hosts` is not allowed here"),
        (
            "hosts: [a.com]\nresolution: STATIC",
            "@6: spec.resolution: STATIC needs `endpoints` with IP addresses; list them, or use DNS",
        ),
        (
            "hosts: [a.com]\nendpoints: [{address: 203.0.113.7}]",
            "@6: spec.endpoints[0].address: with resolution NONE there are no endpoints; remove them, or use STATIC or DNS",
        ),
        (
            "hosts: [a.com]\nresolution: STATIC\nendpoints: [{address: b.com}]",
            "@7: spec.endpoints[0].address: b.com is not an IP address, as STATIC needs; use resolution DNS",
        ),
        (
            "hosts: [a.com]\nresolution: DNS\nendpoints: [{address: b.com, ports: {htpp: 443}}]",
            "@7: spec.endpoints[0].ports.htpp: no port of this ServiceEntry has the name \"htpp\"",
        ),
        (
            "hosts: [a.com]\nresolution: DNS\nendpoints: [{address: b.com, ports: {http: 0}}]",
            "@7: spec.endpoints[0].ports.http: 0 is not a port; use 1 to 65535",
        ),
        (
            "hosts: [a.com]\nresolution: DNS\nendpoints:\n- ports: {}",
            "@8: spec.endpoints[0].address: this field is required",
        ),
        (
            "hosts: [a.com]\nresolution: DNS\nendpoints: [{address: a b}]\nsubjectAltNames: [c d]",
            "@7: spec.endpoints[0].address: \"a b\" contains a space\n@8: spec.subjectAltNames[0]: \"c d\" contains a space",
        ),
    ];
    let rows: Vec<(String, &str)> = rows
        .into_iter()
        .map(|(spec, expected)| {
            let is_whole = !spec.starts_with("hosts") || expected.contains("spec.ports");
            (if is_whole { spec.to_owned() } else { format!("{spec}\n{REST}") }, expected)
        })
        .collect();
    check("ServiceEntry", &rows.iter().map(|(spec, expected)| (spec.as_str(), *expected)).collect::<Vec<_>>());
}

/// Labels under the other kind's name would select whatever there is.
#[test]
fn workloads_are_selected_in_two_ways() {
    for (kind, spec, labels, known) in [
        ("ServiceEntry", "hosts: [a.com]\nports: [{number: 80, name: http}]", "matchLabels", "labels"),
        ("DestinationRule", "host: a.com\nexportTo: ['*']", "labels", "matchLabels"),
    ] {
        let selector = |labels: &str| format!("{spec}\nworkloadSelector: {{{labels}: {{app: a}}}}");
        let expected = format!("@7: spec.workloadSelector.{labels}: unknown field; the fields known here are {known}");
        check(kind, &[(&selector(known), ""), (&selector(labels), &expected)]);
    }
}

#[test]
fn ports() {
    let rows = [
        ("[]", "@6: spec.ports: the list is empty; name at least one port"),
        ("[80]", "@6: spec.ports[0]: expected a map, found the number 80"),
        ("[{number: 0, name: a}]", "@6: spec.ports[0].number: 0 is not a port; use 1 to 65535"),
        ("[{number: 70000, name: a}]", "@6: spec.ports[0].number: 70000 is not a port; use 1 to 65535"),
        ("[{number: '80', name: a}]", "@6: spec.ports[0].number: expected a port number, found the text \"80\""),
        ("[{number: 80.5, name: a}]", "@6: spec.ports[0].number: expected a port number, found the number 80.5"),
        (
            "[{number: 80, name: 80}]",
            "@6: spec.ports[0].name: expected text, found the number 80; put it in quotes if it is meant",
        ),
        ("[{number: 80}]", "@6: spec.ports[0].name: this field is required"),
        ("[{number: 80, name: ''}]", "@6: spec.ports[0].name: the name is empty"),
        ("[{number: 80, name: a, targetPort: -1}]", "@6: spec.ports[0].targetPort: -1 is not a port; use 1 to 65535"),
        (
            "[{number: 80, name: a, targetport: 443}]",
            "@6: spec.ports[0].targetport: unknown field; did you mean `targetPort`?",
        ),
        ("[{number: 80, name: a, protocol: ''}]", ""),
        (
            "[{number: 80, name: a, protocol: HTPP}]",
            "@6: spec.ports[0].protocol: unknown value \"HTPP\"; did you mean HTTP?",
        ),
        (
            "\n- {number: 80, name: a}\n- {number: 80, name: a}",
            "@8: spec.ports[1].name: a is already at rules.yaml:7; remove one of them\n\
             @8: spec.ports[1].number: 80 is already at rules.yaml:7; remove one of them",
        ),
        (
            "\n- {number: 0, name: a}\n- {number: 1, name: b, protocol: QUIC, weight: 3}",
            "@7: spec.ports[0].number: 0 is not a port; use 1 to 65535\n\
             @8: spec.ports[1].protocol: unknown value \"QUIC\"; use HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, TLS, TCP, UDP, MONGO, MYSQL, REDIS\n\
             @8: spec.ports[1].weight: unknown field; the fields known here are number, name, protocol, targetPort",
        ),
    ];
    for (ports, expected) in rows {
        check("ServiceEntry", &[(&format!("hosts: [a.com]\nports: {ports}"), expected)]);
    }
}

#[test]
fn envelope() {
    const V1: &str = "apiVersion: networking.istio.io/v1\n";
    const SPEC: &str = "spec: {hosts: [a.com], ports: [{number: 80, name: a}]}\n";
    for (text, expected) in [
        ("a: [1\n".to_owned(), "@1: unclosed bracket '['"),
        ("hello\n".to_owned(), "@1: expected a map, found the text \"hello\""),
        ("kind: ServiceEntry\n".to_owned(), "@1: apiVersion: this field is required"),
        ("apiVersion: v1\nkind: List\nitems: 3\n".to_owned(), "@3: items: expected a list, found the number 3"),
        (
            "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: BackendTLSPolicy\n".to_owned(),
            "@1: apiVersion: unknown version \"gateway.networking.k8s.io/v1alpha2\" of BackendTLSPolicy; use \
             gateway.networking.k8s.io/v1, gateway.networking.k8s.io/v1alpha3",
        ),
        (
            "apiVersion: v1\nkind: Deployment\n".to_owned(),
            "@2: unknown kind Deployment; egress knows ServiceEntry, DestinationRule, VirtualService, BackendTLSPolicy, Secret, \
             ConfigMap",
        ),
        (
            "apiVersion: v1\nkind: ServiceEntry\n".to_owned(),
            "@2: ServiceEntry is of another API group than \"\"; use networking.istio.io/v1",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ndata: {ca.crt: '%'}\n".to_owned(),
            "@4: data[\"ca.crt\"]: not base64: Invalid symbol 37, offset 0.",
        ),
        (format!("{V1}kind: ServiceEntrie\n"), "@2: unknown kind ServiceEntrie; did you mean ServiceEntry?"),
        (
            "apiVersion: networking.istio.io/v2\nkind: ServiceEntry\n".to_owned(),
            "@1: apiVersion: unknown version \"networking.istio.io/v2\" of ServiceEntry; use networking.istio.io/v1, \
             networking.istio.io/v1beta1, networking.istio.io/v1alpha3",
        ),
        (format!("{V1}kind: ServiceEntry\n{SPEC}"), "@1: metadata: this field is required"),
        (format!("{V1}kind: ServiceEntry\nmetadata: {{}}\n{SPEC}"), "@3: metadata.name: this field is required"),
        (
            format!("{V1}kind: ServiceEntry\nmetadata:\n  name: x\n  annotations:\n    egress.dev/pin: y\n{SPEC}"),
            "@6: metadata.annotations[\"egress.dev/pin\"]: unknown annotation; did you mean `egress.dev/pins`?",
        ),
        (
            format!(
                "{V1}kind: ServiceEntry\nmetadata:\n  name: x\n  annotations:\n    egress.dev/min-tls: '1.3'\n{SPEC}"
            ),
            "@6: metadata.annotations[\"egress.dev/min-tls\"]: this annotation belongs on a DestinationRule; move it there",
        ),
        (
            format!("{V1}kind: ServiceEntry\nmetadata: {{name: x, nmespace: y}}\n{SPEC}"),
            "@3: metadata.nmespace: unknown field; did you mean `namespace`?",
        ),
        (
            format!("{V1}kind: ServiceEntry\nmetadata: {{name: x}}\n{SPEC}specs: 1\n"),
            "@5: specs: unknown field; did you mean `spec`?",
        ),
        // The line is that of the file, not of the document.
        (
            format!(
                "{V1}kind: ServiceEntry\nmetadata: {{name: x}}\n{SPEC}---\n# why\n{V1}kind: DestinationRule\nmetadata: {{name: x}}\nspec:\n  hots: a.com\n"
            ),
            "@10: spec.host: this field is required\n@11: spec.hots: unknown field; did you mean `host`?",
        ),
        (
            format!("{V1}kind: IstioOperator\n---\n{V1}kind: IstioOperator\n---\na: 1\na: 2\n"),
            "@2: kind IstioOperator is not supported by egress yet; remove it\n@5: kind IstioOperator is not supported by egress yet; remove it\n@8: duplicate mapping key `a` is not allowed here",
        ),
    ] {
        assert_eq!(errors(&text), expected.replace('@', "rules.yaml:"), "\n{text}");
    }
}
