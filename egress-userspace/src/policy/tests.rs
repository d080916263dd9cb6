//! What documents mean together.

mod clusters;
mod credentials;
mod exceptions;
mod fields;
mod nothing_lost;
mod same_host;
mod short_names;
mod tls_policies;
mod twice;

use std::{num::NonZeroU32, path::Path, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, uri::Authority};

use super::{
    Action, Adjustments, ConnectionPool, HostPattern, HttpRoute, LoadBalancer, Mirror, PathRewrite, Policy,
    Requirements, Retries, RetryOn, Share, Targets, TlsVersion, TunnelMethod, Upstream, UpstreamIndex,
    UpstreamProtocol, Verify,
};
use crate::config::{self, Progress, Source};

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
            .chain(policy.exceptions().iter().map(|it| format!("{}:{} in clear ({})", it.host, it.port, it.location)))
            .chain(warnings.iter().map(|warning| format!("warning {warning}")))
            .collect(),
        Err(errors) => vec![errors.to_string()],
    };
    lines.join("\n").replace("/etc/egress/rules.yaml:", "@")
}

/// A rule on one line, without what is as it mostly is.
fn describe(rule: &super::Rule) -> String {
    let mut line = format!("{}:{} -> ", rule.host, rule.port);
    let Some(upstream) = rule.upstreams.first() else { return format!("{line}answered ({})", rule.location) };
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
        Verify::Host => match &upstream.host {
            HostPattern::Exact(host) => line += &format!(" verify={host}"),
            HostPattern::Wildcard(_) => line += " verify=request",
        },
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
    let documents = config::load(&[Source::Host(host)], &Progress::default()).expect("nothing to go wrong");
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
        // Where Istio looks at what is spoken, and where it is HTTP by another name.
        (
            "ports: [{number: 80, name: a, targetPort: 443}, {number: 81, name: b, protocol: grpc-web, targetPort: 443}], resolution: DNS",
            SIMPLE,
            "a.com:80 -> 443 verify=a.com (@9)\na.com:81 -> 443 verify=a.com (@9)\nwarning @4: spec.ports[0].number: port 80 has no \
             protocol and is taken for HTTP: anything else is refused there; say so by protocol HTTP, or by TCP or HTTPS if it is that",
        ),
        // A port's settings replace those of the host, even where they say nothing of TLS.
        (
            both,
            "tls: {mode: SIMPLE, sni: b.com, subjectAltNames: [c.com]}, portLevelSettings: [{port: {number: 8080}, tls: {mode: SIMPLE}}]",
            "a.com:80 -> 443 sni=b.com verify=c.com (@9)\na.com:8080 -> 8443 verify=a.com (@9)",
        ),
        (
            both,
            "tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 80}}]",
            "a.com:8080 -> 8443 verify=a.com (@9)\nwarning @9: spec.trafficPolicy.portLevelSettings[0].port.number: portLevelSettings for port 80 \
             replace all that is said of a.com there, `tls` included, so nothing originates TLS for it: what is sent there leaves in clear; \
             add `tls` to them, be it with mode DISABLE",
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
fn annotations_are_not_lost() {
    let with = |annotations: &str, rule: String| {
        let metadata = format!("metadata: {{name: x, annotations: {{{annotations}}}}}");
        rule.replace("metadata: {name: x}", &metadata)
    };
    const NEW: &str = "egress.dev/min-tls: '1.3'";
    const POLICY: &str = "kind: BackendTLSPolicy\napiVersion: gateway.networking.k8s.io/v1\nmetadata: {name: x}\nspec: \
                          {targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: x}], validation: {hostname: a.com, \
                          wellKnownCACertificates: System}}\n---\n";
    let bare = destination("a.com", "").replace(", trafficPolicy: {}", "");
    let merged = "has a DestinationRule already, at @9: as in Istio, the subsets of both are in force, and the one trafficPolicy; \
                  make one of the two";
    let unused =
        "nothing originates TLS for a.com by this rule, so its annotations do nothing; add `tls` to it, or remove them";
    for (text, expected) in [
        // Of two rules for a host.
        (
            entry("a.com", HTTP) + &destination("a.com", SIMPLE) + &with(NEW, bare.clone()),
            "@14: spec.host: the annotations for a.com are those of its DestinationRule at @9, whose trafficPolicy counts, and \
             they are others; move these there"
                .to_owned(),
        ),
        (
            entry("a.com", HTTP) + &with(NEW, destination("a.com", SIMPLE)) + &with(NEW, bare.clone()),
            format!("a.com:80 -> 443 verify=a.com min=V13 (@9)\nwarning @14: spec.host: a.com {merged}"),
        ),
        // Of one that does nothing.
        (
            with(NEW, bare.clone()),
            "warning @4: spec.host: no ServiceEntry has the host a.com, so this does nothing; add one".to_owned(),
        ),
        (
            entry("a.com", "ports: [{number: 80, name: a, protocol: HTTP}], resolution: DNS")
                + &with(NEW, bare.clone()),
            format!("warning @9: spec.host: {unused}"),
        ),
        (entry("a.com", HTTP) + &with(NEW, bare) + POLICY, "a.com:80 -> 443 sni=a.com verify=a.com min=V13 (@14)".to_owned()),
    ] {
        assert_eq!(outcome(&text), expected, "{text}");
    }
}

/// Each of the two is right by itself.
#[test]
fn what_a_subset_of_another_rule_does_not_verify_has_no_pins() {
    const PINS: &str = "egress.dev/pins: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let pinned = destination("a.com", SIMPLE)
        .replace("metadata: {name: x}", &format!("metadata: {{name: x, annotations: {{{PINS}}}}}"));
    let subset = "kind: DestinationRule\napiVersion: networking.istio.io/v1\nmetadata: {name: y}\nspec: {host: a.com, subsets: \
                  [{name: s, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}}]}\n---\n";
    let service = "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {name: x}\nspec: {hosts: [a.com], http: \
                   [{route: [{destination: {host: a.com, subset: s}}]}]}\n";
    let outcome = outcome(&(entry("a.com", HTTP) + &pinned + subset + service));
    let expected = "@14: spec.subsets[0].trafficPolicy.tls.insecureSkipVerify: this verifies nothing, yet the annotation \
                    egress.dev/pins of another DestinationRule for a.com pins keys of the verified chain; remove one of them";
    assert_eq!(outcome, expected);
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
            "warning @9: spec.trafficPolicy.tls: port 5432 of a.com has protocol TCP, which gets no TLS: what is sent there leaves in \
             clear; if HTTP is spoken there, say so by protocol HTTP, and if applications make TLS themselves, by protocol TLS",
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
            entry("a.com", HTTP) + &entry("A.com", &HTTP.replace("443", "444")) + &destination("a.com", SIMPLE),
            "@9: spec.ports[0].number: port 80 of a.com is already defined at @4, with another targetPort, and Istio would take the older \
             one; make one of the two",
        ),
        (
            entry("a.com", &nine_ports) + &destination("a.com", SIMPLE),
            "@9: a.com gets TLS on 9 ports, rules for wildcards included; leave some out, as at most 8 are possible",
        ),
        (
            entry("a.com", &port(", protocol: TCP")) + &destination("a.com", on_port),
            "@9: spec.trafficPolicy.portLevelSettings[0].tls: TLS can be originated only for HTTP, and port 80 of a.com has \
             protocol TCP; if HTTP is spoken there, say so by protocol HTTP",
        ),
    ] {
        assert_eq!(outcome(&text), expected, "{text}");
    }
}
