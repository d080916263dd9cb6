//! What documents mean together.

use std::{num::NonZeroU32, path::Path, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, uri::Authority};

use super::{
    Action, Adjustments, ConnectionPool, HttpRoute, LoadBalancer, Mirror, PathRewrite, Policy, Requirements, Retries,
    RetryOn, Share, Targets, TlsVersion, TunnelMethod, Upstream, UpstreamIndex, UpstreamProtocol, Verify,
};
use crate::config::{self, Source};

const SEED_ACCESS: &str = include_str!("../config/tests/seed-access.yaml");
const SEED_ORIGINATION: &str = include_str!("../config/tests/seed-origination.yaml");

/// The rules, warnings and errors that a text leads to, one per line.
fn outcome(text: &str) -> String {
    let documents = match config::parse(text, Path::new("/etc/egress/rules.yaml")) {
        Ok(documents) => documents,
        Err(errors) => return errors.to_string(),
    };
    let lines: Vec<String> = match Policy::compile(&documents) {
        Ok((policy, warnings)) => policy
            .rules()
            .map(|rule| describe(rule))
            .chain(warnings.iter().map(|warning| format!("warning {warning}")))
            .collect(),
        Err(errors) => vec![errors.to_string()],
    };
    lines.join("\n").replace("/etc/egress/rules.yaml:", "@")
}

/// A rule on one line, without what is as it mostly is.
fn describe(rule: &super::Rule) -> String {
    let mut line = format!("{}:{} -> ", rule.host, rule.port);
    let upstream = rule.upstreams.first().expect("a rule leads somewhere");
    match &upstream.targets {
        Targets::Resolve(_) => line += &upstream.target_port.to_string(),
        Targets::Original => line += &format!("original:{}", upstream.target_port),
        Targets::Endpoints(endpoints) => {
            let endpoints: Vec<_> = endpoints
                .iter()
                .map(|endpoint| match &endpoint.address {
                    super::EndpointAddress::Ip(address) => format!("{address}:{}", endpoint.port),
                    super::EndpointAddress::Name(name) => format!("{name}:{}", endpoint.port),
                })
                .collect();
            line += &endpoints.join(",");
        }
    }
    for range in &rule.addresses {
        line += &format!(" address={range}");
    }
    if let Some(sni) = &upstream.tls.sni {
        line += &format!(" sni={sni}");
    }
    match &upstream.tls.verify {
        Verify::Skip => line += " unverified",
        Verify::Host => line += " verify=request",
        Verify::Names(names) => {
            let names: Vec<_> = names.iter().map(|name| name.to_str()).collect();
            line += &format!(" verify={}", names.join(","));
        }
    }
    if let super::Roots::File(file) = &upstream.tls.roots {
        line += &format!(" roots={}", file.value);
    }
    if let Some(file) = &upstream.tls.crl {
        line += &format!(" crl={}", file.value);
    }
    let Requirements { min_version, pins, pins_mode, post_quantum } = &upstream.tls.requirements;
    if *min_version != TlsVersion::V12 {
        line += &format!(" min={min_version:?}");
    }
    for pin in pins {
        line += &format!(" {pins_mode:?} {pin}");
    }
    if *post_quantum {
        line += " post-quantum";
    }
    if let Some(client) = &upstream.tls.client {
        line += &format!(" client={}+{}", client.certificate.value, client.key.value);
    }
    line + &format!(" ({})", rule.location)
}

/// A `ServiceEntry` of four lines; its ports are on line 4 of it.
fn entry(host: &str, spec: &str) -> String {
    format!(
        "kind: ServiceEntry\napiVersion: networking.istio.io/v1\nmetadata: {{name: x}}\nspec: {{hosts: ['{host}'], {spec}}}\n---\n"
    )
}

/// A `DestinationRule` of four lines.
fn destination(host: &str, policy: &str) -> String {
    format!(
        "kind: DestinationRule\napiVersion: networking.istio.io/v1\nmetadata: {{name: x}}\n\
         spec: {{host: '{host}', trafficPolicy: {{{policy}}}}}\n---\n"
    )
}

const HTTP: &str = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}], resolution: DNS";
const SIMPLE: &str = "tls: {mode: SIMPLE}";

#[test]
fn seed() {
    assert_eq!(outcome(SEED_ACCESS), "");
    assert_eq!(outcome(SEED_ORIGINATION), "edition.cnn.com:80 -> 443 verify=edition.cnn.com (@28)");

    let documents = config::parse(SEED_ORIGINATION, Path::new("seed.yaml")).expect("the seed is valid");
    let (policy, _) = Policy::compile(&documents).expect("the seed is valid");

    let host = "Edition.CNN.com.".parse().expect("a host name");
    let documents = config::load(&[Source::Host(host)]).expect("nothing to go wrong");
    let (short, warnings) = Policy::compile(&documents).expect("nothing to go wrong");
    assert_eq!(warnings, []);
    let same_place = |policy: &Policy| -> Vec<super::Rule> {
        let place = config::Location::whole(Path::new("somewhere"));
        let upstream =
            |upstream: &Arc<Upstream>| Arc::new(Upstream { location: place.clone(), ..(**upstream).clone() });
        let rules = policy.rules().map(|rule| super::Rule {
            location: place.clone(),
            upstreams: rule.upstreams.iter().map(upstream).collect(),
            routes: vec![HttpRoute::catch_all(place.clone())],
            ..(**rule).clone()
        });
        rules.collect()
    };
    assert_eq!(same_place(&short), same_place(&policy));
    assert_eq!(short.rules().next().expect("a rule").location.to_string(), "--host edition.cnn.com");
}

#[test]
fn rules() {
    let both = "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}, {number: 8080, name: b, protocol: http, \
                targetPort: 8443}], resolution: DNS";
    for (spec, policy, expected) in [
        (HTTP, SIMPLE, "a.com:80 -> 443 verify=a.com (@9)"),
        (both, SIMPLE, "a.com:80 -> 443 verify=a.com (@9)\na.com:8080 -> 8443 verify=a.com (@9)"),
        // A port's settings replace those of the host, even where they say nothing of TLS.
        (
            both,
            "tls: {mode: SIMPLE, sni: b.com, subjectAltNames: [c.com]}, portLevelSettings: [{port: {number: 8080}, tls: {mode: SIMPLE}}]",
            "a.com:80 -> 443 sni=b.com verify=c.com (@9)\na.com:8080 -> 8443 verify=a.com (@9)",
        ),
        (
            both,
            "tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 80}}]",
            "a.com:8080 -> 8443 verify=a.com (@9)\nwarning @4: spec.ports[0].targetPort: nothing originates TLS for port 80 of a.com, so its traffic is \
             left as it is: in clear text to port 80, not to 443; add a DestinationRule",
        ),
        (
            both,
            "tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 8080}, tls: {mode: DISABLE}}]",
            "a.com:80 -> 443 verify=a.com (@9)\nwarning @4: spec.ports[1].targetPort: nothing originates TLS for port 8080 of a.com, so its traffic is \
             left as it is: in clear text to port 8080, not to 8443; add a DestinationRule",
        ),
        (
            "addresses: [203.0.113.9/24], ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}]",
            SIMPLE,
            "a.com:80 -> original:443 address=203.0.113.0/24 verify=a.com (@9)",
        ),
        (
            "ports: [{number: 80, name: a, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 203.0.113.7, ports: {a: 8443}}, \
             {address: '2001:db8::7', ports: {a: 443}}]",
            SIMPLE,
            "a.com:80 -> 203.0.113.7:8443,2001:db8::7:443 verify=a.com (@9)",
        ),
        (
            "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}], resolution: DNS, endpoints: [{address: b.com}]",
            SIMPLE,
            "a.com:80 -> b.com:443 verify=a.com (@9)",
        ),
        (
            HTTP,
            "tls: {mode: MUTUAL, clientCertificate: /c.pem, privateKey: k.pem, caCertificates: ca.pem}",
            "a.com:80 -> 443 verify=a.com roots=/etc/egress/ca.pem client=/c.pem+/etc/egress/k.pem (@9)",
        ),
        (
            HTTP,
            "tls: {mode: SIMPLE, subjectAltNames: [B.com, 203.0.113.7]}",
            "a.com:80 -> 443 verify=b.com,203.0.113.7 (@9)",
        ),
    ] {
        assert_eq!(outcome(&(entry("a.com", spec) + &destination("A.com.", policy))), expected, "{spec} {policy}");
    }
}

#[test]
fn annotations_hold_for_every_port_of_the_rule() {
    const PINS: &str =
        "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=, BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let both = "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}, {number: 8080, name: b, protocol: HTTP, \
                targetPort: 8443}], resolution: DNS";
    let policy = "tls: {mode: SIMPLE, caCrl: crl.pem}, portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]";
    let annotations = format!(
        "metadata: {{name: x, annotations: {{egress.dev/min-tls: '1.3', egress.dev/pins: '{PINS}', egress.dev/pins-mode: \
         report, egress.dev/require-post-quantum: 'true'}}}}"
    );
    let text = entry("a.com", both) + &destination("a.com", policy).replace("metadata: {name: x}", &annotations);
    let pins = "min=V13 Report sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= Report \
                sha256/BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= post-quantum (@9)";
    let expected =
        format!("a.com:80 -> 443 verify=a.com {pins}\na.com:8080 -> 8443 verify=a.com crl=/etc/egress/crl.pem {pins}");
    assert_eq!(outcome(&text), expected);
}

#[test]
fn wildcards() {
    const NONE: &str = "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}], resolution: NONE";
    for (text, expected) in [
        (entry("*.a.com", NONE) + &destination("*.a.com", SIMPLE), "*.a.com:80 -> original:443 verify=request (@9)"),
        (
            entry("*.a.com", NONE) + &destination("*.a.com", "tls: {mode: SIMPLE, subjectAltNames: [b.com]}"),
            "*.a.com:80 -> original:443 verify=b.com (@9)",
        ),
        (
            entry(
                "*.a.com",
                "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}], resolution: DNS, endpoints: [{address: b.com}]",
            ) + &destination("*.a.com", SIMPLE),
            "*.a.com:80 -> b.com:443 verify=request (@9)",
        ),
        // The most specific DestinationRule that covers the host counts.
        (
            entry("www.a.com", HTTP)
                + &destination("*.com", "tls: {mode: DISABLE}")
                + &destination("*.a.com", SIMPLE)
                + &destination("*.www.a.com", "tls: {mode: DISABLE}"),
            "www.a.com:80 -> 443 verify=www.a.com (@14)",
        ),
    ] {
        assert_eq!(outcome(&text), expected, "{text}");
    }
}

#[test]
fn warnings() {
    let clear = "warning @4: spec.ports[0].targetPort: nothing originates TLS for port 80 of a.com, so its traffic is left as it is: in clear text to \
                 port 80, not to 443; add a DestinationRule";
    let https = "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}, {number: 443, name: b, protocol: HTTPS}], \
                 resolution: DNS";
    for (text, expected) in [
        (entry("a.com", HTTP), clear),
        (entry("a.com", HTTP) + &destination("a.com", "tls: {mode: DISABLE}"), clear),
        (
            destination("a.com", SIMPLE),
            "warning @4: spec.host: no ServiceEntry has the host a.com, so this does nothing; add one",
        ),
        (destination("a.com", ""), ""),
        (
            entry("a.com", "ports: [{number: 80, name: a, protocol: HTTP}], resolution: DNS")
                + &destination("a.com", SIMPLE),
            "a.com:80 -> 80 verify=a.com (@9)\nwarning @4: spec.ports[0].number: TLS is originated to port 80 itself, \
             while servers mostly have it on 443; name its port as targetPort",
        ),
        (
            entry("a.com", https) + &destination("a.com", SIMPLE),
            "a.com:80 -> 443 verify=a.com (@9)\nwarning @9: spec.trafficPolicy.tls: port 443 of a.com is HTTPS as it is, and gets no TLS around it",
        ),
        (
            entry("a.com", HTTP) + &destination("a.com", "tls: {mode: SIMPLE, insecureSkipVerify: true}"),
            "a.com:80 -> 443 unverified (@9)\nwarning @9: spec.trafficPolicy.tls.insecureSkipVerify: the certificate of a.com is not verified: anyone on the way can read \
             and change all; trust its issuer by caCertificates",
        ),
        (
            entry("a.com", HTTP) + &destination("a.com", "tls: {mode: SIMPLE, sni: b.com}"),
            "a.com:80 -> 443 sni=b.com verify=b.com (@9)\nwarning @9: spec.trafficPolicy.tls.sni: the certificate must be valid for b.com, while Istio \
             would accept any name, as there are no subjectAltNames; to have both do the same, add subjectAltNames: [b.com]",
        ),
        (
            entry("a.com", HTTP)
                + &destination("a.com", "portLevelSettings: [{port: {number: 81}, tls: {mode: SIMPLE}}]"),
            &format!(
                "{}the DestinationRule must name port 80, which applications connect to, rather than 81 (at @9)\nwarning @9: spec.trafficPolicy.portLevelSettings[0].port.number: no ServiceEntry has port 81 of a.com, so this does nothing",
                clear.trim_end_matches("add a DestinationRule"),
            ),
        ),
        (
            entry("a.com", "ports: [{number: 5432, name: a, protocol: TCP}]") + &destination("a.com", SIMPLE),
            "warning @9: spec.trafficPolicy.tls: port 5432 of a.com has protocol TCP, so its traffic is left as it is: without TLS",
        ),
        (entry("*.a.com", "ports: [{number: 80, name: a, protocol: HTTP}]"), ""),
    ] {
        assert_eq!(outcome(&text), expected, "{text}");
    }
}

#[test]
fn refused() {
    let port = |protocol: &str| format!("ports: [{{number: 80, name: a{protocol}}}], resolution: DNS");
    let on_port = "portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]";
    let ports: Vec<_> =
        (1..=9).map(|port| format!("{{number: {port}, name: p{port}, protocol: HTTP, targetPort: 443}}")).collect();
    let nine_ports = format!("ports: [{}], resolution: DNS", ports.join(", "));
    for (text, expected) in [
        (
            entry("a.com", HTTP) + &entry("b.com", HTTP) + &entry("A.com", HTTP),
            "@14: spec.ports[0].number: port 80 of a.com is already defined at @4; remove one of them",
        ),
        (
            entry("a.com", HTTP) + &destination("a.com", SIMPLE) + &destination("a.com.", SIMPLE),
            "@14: spec.host: a.com has a DestinationRule already, at @9; make one of the two",
        ),
        (
            entry("a.com", &nine_ports) + &destination("a.com", SIMPLE),
            "@9: a.com gets TLS on 9 ports, rules for wildcards included; leave some out, as at most 8 are possible",
        ),
        (
            entry("a.com", &port(", protocol: TCP")) + &destination("a.com", on_port),
            "@9: spec.trafficPolicy.portLevelSettings[0].tls: TLS can be originated only for protocol HTTP, and port 80 of a.com \
             has protocol TCP",
        ),
        (
            entry("a.com", &port("")) + &destination("a.com", on_port),
            "@9: spec.trafficPolicy.portLevelSettings[0].tls: TLS can be originated only for protocol HTTP, and port 80 of a.com \
             has no protocol",
        ),
    ] {
        assert_eq!(outcome(&text), expected, "{text}");
    }
}

/// What a route of a `VirtualService` becomes, to the last field.
#[test]
fn routes_are_compiled() {
    let route = "{\
        name: r, \
        route: [\
            {destination: {host: a.com}, weight: 1, headers: {request: {set: {X-A: '1%%'}}}}, \
            {destination: {host: b.com}, weight: 3}, \
            {destination: {host: b.com}, weight: 0}\
        ], \
        rewrite: {uriRegexRewrite: {match: '^/(v[0-9])/\\$', rewrite: '/\\1$x'}, authority: 'c.com:8080'}, \
        headers: {response: {add: {X-B: b}, remove: [x-c]}}, \
        timeout: 0s, \
        retries: {attempts: 2, perTryTimeout: 1s, retryOn: 'gateway-error, retriable-status-codes,429,unavailable'}, \
        mirror: {host: b.com}, mirrorPercentage: {value: 0.1}}";
    let service = format!(
        "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {{name: x}}\nspec: {{hosts: [a.com], http: [{route}]}}\n"
    );
    let text =
        [&entry("a.com", HTTP), &entry("b.com", HTTP), &destination("a.com", SIMPLE), &destination("b.com", SIMPLE)]
            .map(String::as_str)
            .concat()
            + &service;
    let documents = config::parse(&text, Path::new("rules.yaml")).expect("valid documents");
    let (policy, diagnostics) = Policy::compile(&documents).expect("valid rules");
    assert_eq!(diagnostics, []);

    let rules: Vec<_> = policy.rules().collect();
    assert_eq!(rules.len(), 2, "{rules:?}");
    let rule = rules[0];
    let hosts: Vec<_> = rule.upstreams.iter().map(|upstream| upstream.host.to_string()).collect();
    assert_eq!(hosts, ["a.com", "b.com"]);
    // The same upstream is one for all rules.
    assert!(Arc::ptr_eq(&rule.upstreams[1], &rules[1].upstreams[0]));

    let [route] = rule.routes.as_slice() else { panic!("{:?}", rule.routes) };
    assert_eq!((route.name.as_deref(), route.matches.len(), route.timeout), (Some("r"), 0, None));
    let Action::Forward(destinations) = &route.action else { panic!("{:?}", route.action) };
    let shares: Vec<_> = destinations.iter().map(|to| (to.upstream.0, to.up_to)).collect();
    assert_eq!(shares, [(0, 1), (1, 4)]);
    let set = &destinations[0].headers.request.set;
    assert_eq!(set, &[(HeaderName::from_static("x-a"), HeaderValue::from_static("1%"))]);

    let Some(PathRewrite::Regex(pattern, substitution)) = &route.rewrite.path else { panic!("{:?}", route.rewrite) };
    assert_eq!(pattern.regex().replace_all("/v1/$", &**substitution), "/v1$x");
    assert_eq!(route.rewrite.authority.as_ref().map(Authority::as_str), Some("c.com:8080"));
    assert_eq!(route.headers.response.add, [(HeaderName::from_static("x-b"), HeaderValue::from_static("b"))]);
    assert_eq!(route.headers.response.remove, [HeaderName::from_static("x-c")]);
    let retries = Retries {
        attempts: 2,
        per_try_timeout: Some(Duration::from_secs(1)),
        on: RetryOn {
            gateway_error: true,
            statuses: vec![StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS],
            grpc_statuses: vec![14],
            ..RetryOn::default()
        },
        backoff: Duration::from_millis(25),
    };
    assert_eq!(route.retries, Some(retries));
    assert_eq!(route.mirrors, [Mirror { upstream: UpstreamIndex(1), share: Share(1_000) }]);
}

/// What a `DestinationRule` says of connections, and what is the default for what it does not say.
#[test]
fn traffic_policies_are_compiled() {
    let upstream = |policy: &str, more: &str, subset: &str| -> Arc<Upstream> {
        let entry = entry(
            "a.com",
            "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}], resolution: STATIC, endpoints: [\
             {address: 203.0.113.7, labels: {v: one}, weight: 3}, {address: 203.0.113.8, labels: {v: two}}]",
        );
        let rule = format!(
            "kind: DestinationRule\napiVersion: networking.istio.io/v1\nmetadata: {{name: x, annotations: {{{more}}}}}\nspec: {{host: \
             a.com, trafficPolicy: {{{policy}}}, subsets: [{{name: v1, labels: {{v: one}}, trafficPolicy: {{{subset}}}}}]}}\n---\n"
        );
        let service = "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {name: x}\nspec: {hosts: [a.com], http: \
                       [{route: [{destination: {host: a.com, subset: v1}}]}]}\n";
        let service = if subset.is_empty() { "" } else { service };
        let text = entry + &rule + service;
        let documents =
            config::parse(&text, Path::new("rules.yaml")).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        let (policy, _) = Policy::compile(&documents).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        policy.rules().next().expect("a rule").upstreams[0].clone()
    };
    let plain = upstream(SIMPLE, "", "");
    assert_eq!((plain.pool.clone(), plain.outlier_detection, plain.balancer), (ConnectionPool::default(), None, None));
    assert_eq!((plain.adjustments, plain.preconnect), (Adjustments::default(), 0));
    let Targets::Endpoints(endpoints) = &plain.targets else { panic!("{:?}", plain.targets) };
    assert_eq!(endpoints.iter().map(|endpoint| endpoint.weight.get()).collect::<Vec<_>>(), [3, 1]);

    let annotations = "egress.dev/preconnect: '2', egress.dev/rewrite-location: 'true'";
    let pool = "connectionPool: {tcp: {maxConnections: 7, tcpKeepalive: {time: 60s}, idleTimeout: 0s}, \
                http: {h2UpgradePolicy: DO_NOT_UPGRADE, maxRequestsPerConnection: 0, maxRetries: 0}}";
    let rest = "outlierDetection: {splitExternalLocalOriginErrors: true, consecutive5xxErrors: 0}, loadBalancer: {simple: RANDOM}, \
                tunnel: {targetHost: b.com, targetPort: 443}";
    let full = upstream(&format!("{SIMPLE}, {pool}, {rest}"), annotations, "");
    assert_eq!((full.pool.max_connections, full.pool.max_retries, full.pool.max_requests), (7, 0, u32::MAX));
    assert_eq!((full.pool.tcp_idle_timeout, full.pool.max_requests_per_connection), (None, None));
    assert_eq!(full.pool.keepalive.and_then(|keepalive| keepalive.time), Some(Duration::from_secs(60)));
    assert_eq!((full.protocol, full.balancer), (UpstreamProtocol::Http1, Some(LoadBalancer::Random)));
    let outliers = full.outlier_detection.expect("it is asked for");
    assert_eq!((outliers.server_errors, outliers.local_origin.map(NonZeroU32::get)), (None, Some(5)));
    assert_eq!((outliers.interval, outliers.max_ejection_percent), (Duration::from_secs(10), 10));
    assert_eq!(full.tunnel.as_ref().map(|tunnel| tunnel.method), Some(TunnelMethod::Connect));
    assert!(full.adjustments.rewrite_location && !full.adjustments.strip_forwarded_headers);
    assert_eq!(full.preconnect, 2);

    // A port's settings replace all of the host's but the tunnel; a subset's replace field by field.
    let on_port = "portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]";
    let port = upstream(&format!("{SIMPLE}, {pool}, {rest}, {on_port}"), "", "");
    assert_eq!((port.pool.clone(), port.outlier_detection, port.balancer), (ConnectionPool::default(), None, None));
    assert!(port.tunnel.is_some());
    let subset = upstream(&format!("{SIMPLE}, {pool}, {rest}"), "", "loadBalancer: {simple: ROUND_ROBIN}");
    assert_eq!((subset.pool.max_connections, subset.balancer), (7, Some(LoadBalancer::RoundRobin)));
    let Targets::Endpoints(endpoints) = &subset.targets else { panic!("{:?}", subset.targets) };
    assert_eq!((subset.subset.as_deref(), endpoints.len()), (Some("v1"), 1));
    let passthrough = upstream(&format!("{SIMPLE}, loadBalancer: {{simple: PASSTHROUGH}}"), "", "");
    assert_eq!(passthrough.targets, Targets::Original);
}
