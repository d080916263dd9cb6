//! Hosts that several rules have.

use super::*;

/// A rule of four lines.
fn rule(metadata: &str, spec: &str) -> String {
    format!(
        "kind: DestinationRule\napiVersion: networking.istio.io/v1\nmetadata: {{name: x{metadata}}}\nspec: {{host: a.com, {spec}}}\n---\n"
    )
}

fn policy(policy: &str) -> String {
    rule("", &format!("trafficPolicy: {{{policy}}}"))
}

const BEFORE: &str = "spec.host: a.com has a DestinationRule already, at @9";

#[test]
fn the_same_thing_twice_is_one() {
    const SECRET: &str = "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nstringData: {ca.crt: x}\n---\n";
    let policies = |one: &str, other: &str| (policy(one), policy(other));
    let limited = |limit: &str| rule("", &format!("{limit}, trafficPolicy: {{tls: {{mode: SIMPLE}}}}"));
    for ((one, other), roots) in [
        (policies(SIMPLE, SIMPLE), ""),
        // By other words.
        (policies(SIMPLE, "tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]"), ""),
        (
            policies(
                "tls: {mode: SIMPLE, caCertificates: ca.pem}",
                "tls: {mode: SIMPLE, caCertificates: /etc/egress/ca.pem}",
            ),
            " roots=/etc/egress/ca.pem",
        ),
        (
            policies("tls: {mode: SIMPLE, credentialName: s}", "tls: {mode: SIMPLE, credentialName: s}"),
            " roots=ca.crt of Secret s",
        ),
        // For pods of several namespaces, each by itself.
        (
            (
                rule(", namespace: b", "exportTo: [.], trafficPolicy: {tls: {mode: SIMPLE}}"),
                rule(", namespace: c", "exportTo: [.], trafficPolicy: {tls: {mode: SIMPLE}}"),
            ),
            "",
        ),
        (
            (
                limited("workloadSelector: {matchLabels: {app: a}}"),
                limited("workloadSelector: {matchLabels: {app: b}}"),
            ),
            "",
        ),
    ] {
        let text = entry("a.com", HTTP) + &one + &other + SECRET;
        let outcome = outcome(&text);
        let found: Vec<_> =
            outcome.lines().filter(|line| !line.contains("EG0212") && !line.contains("credentialName")).collect();
        let expected = format!("a.com:80 -> 443 verify=a.com{roots} (@9)");
        assert!(found.contains(&expected.as_str()), "{outcome}\n{text}");
        let merged = format!("warning @14: {BEFORE}, with the same trafficPolicy; make one of the two");
        assert!(found.contains(&merged.as_str()), "{outcome}\n{text}");
    }
}

/// Be it the second that asks for what there is no TLS for.
#[test]
fn a_port_that_one_of_two_names_is_asked_for() {
    let ports =
        "ports: [{number: 80, name: a, protocol: HTTP}, {number: 8080, name: b, protocol: TCP}], resolution: DNS";
    let names = policy("tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 8080}, tls: {mode: SIMPLE}}]");
    for (rules, line) in [(names.clone() + &policy(SIMPLE), 9), (policy(SIMPLE) + &names, 14)] {
        let said = outcome(&(entry("a.com", ports) + &rules));
        let expected = format!(
            "@{line}: spec.trafficPolicy.portLevelSettings[0].tls: TLS can be originated only for HTTP, and port 8080 of a.com has protocol TCP; if \
             HTTP is spoken there, say so by protocol HTTP"
        );
        assert!(said.lines().any(|line| line == expected), "{said}");
    }
}

#[test]
fn what_makes_a_difference_is_refused_by_name() {
    const OLDER: &str = "and Istio would take the older one";
    let namespace = |namespace: &str, policy: &str| {
        rule(&format!(", namespace: {namespace}"), &format!("trafficPolicy: {{tls: {{mode: SIMPLE{policy}}}}}"))
    };
    let simple = || policy(SIMPLE);
    let with = |more: &str| policy(&format!("{SIMPLE}, {more}"));
    let credential = ", credentialName: s";
    for (one, other, difference, why) in [
        (simple(), policy("tls: {mode: SIMPLE, sni: b.com}"), "tls", OLDER),
        (simple(), policy("tls: {mode: SIMPLE, subjectAltNames: [b.com]}"), "tls", OLDER),
        (simple(), policy("tls: {mode: SIMPLE, insecureSkipVerify: true}"), "tls", OLDER),
        (simple(), policy("tls: {mode: SIMPLE, caCertificates: ca.pem}"), "tls", OLDER),
        (simple(), policy("tls: {mode: MUTUAL, clientCertificate: a.pem, privateKey: a.key}"), "tls", OLDER),
        (simple(), policy("tls: {mode: DISABLE}"), "tls", OLDER),
        (simple(), policy("loadBalancer: {simple: RANDOM}"), "tls", OLDER),
        (simple(), with("loadBalancer: {simple: RANDOM}"), "loadBalancer", OLDER),
        (simple(), with("connectionPool: {tcp: {maxConnections: 1}}"), "connectionPool", OLDER),
        (simple(), with("outlierDetection: {interval: 1s}"), "outlierDetection", OLDER),
        (simple(), with("tunnel: {targetHost: a.com, targetPort: 443}"), "tunnel", OLDER),
        (simple(), with("portLevelSettings: [{port: {number: 81}, tls: {mode: DISABLE}}]"), "tls for port 81", OLDER),
        (
            simple(),
            rule(", annotations: {egress.dev/min-tls: '1.3'}", "trafficPolicy: {tls: {mode: SIMPLE}}"),
            "its annotations",
            OLDER,
        ),
        // The Secrets are two.
        (
            namespace("b", credential),
            namespace("c", credential),
            "tls",
            "and in Istio the namespace of the client would decide",
        ),
        (
            simple(),
            rule("", "workloadSelector: {matchLabels: {a: b}}, trafficPolicy: {tls: {mode: SIMPLE, sni: b.com}}"),
            "tls",
            "while here each is for all pods",
        ),
    ] {
        for (one, other) in [(&one, &other), (&other, &one)] {
            let text = entry("a.com", HTTP) + one + other;
            let expected = format!("@14: {BEFORE}, which differs in {difference}, {why}; make one of the two");
            let outcome = outcome(&text);
            assert!(outcome.lines().any(|line| line == expected), "{outcome}\n{text}");
        }
    }
}

#[test]
fn what_makes_none_is_not() {
    let [random, least] =
        ["RANDOM", "LEAST_REQUEST"].map(|simple| policy(&format!("loadBalancer: {{simple: {simple}}}")));
    let http = "ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS";
    let rules = random + &least;
    let refused = format!(
        "@14: {BEFORE}, which differs in loadBalancer, and Istio would take the older one; make one of the two"
    );
    let policy = "kind: BackendTLSPolicy\napiVersion: gateway.networking.k8s.io/v1\nmetadata: {name: x}\nspec: {targetRefs: [{group: \
                  networking.istio.io, kind: Hostname, name: a.com}], validation: {hostname: a.com, wellKnownCACertificates: System}}\n";
    assert_eq!(
        outcome(&(entry("a.com", http) + &rules)),
        format!(
            "warning @14: {BEFORE}, which differs in loadBalancer: that makes no difference here, as neither leads to TLS; make one of the two"
        )
    );
    assert!(outcome(&(entry("a.com", http) + &rules + policy)).contains(&refused));
    // What would be left in clear though a wildcard has it.
    let wildcard = entry("*.com", &http.replace("DNS", "NONE")) + &destination("*.com", SIMPLE);
    let disabled = rules.replacen("loadBalancer: {simple: RANDOM}", "tls: {mode: DISABLE}", 1);
    let said = outcome(&(entry("a.com", http) + &disabled + &wildcard));
    assert!(said.contains(&refused.replace("loadBalancer", "tls")), "{said}");
}

/// Two that each hold for some pods are not for all of them, and one that does is enough.
#[test]
fn an_exception_is_made_by_one_that_is_for_all_pods() {
    let http = "ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS";
    let wildcard = entry("*.com", &http.replace("DNS", "NONE")) + &destination("*.com", SIMPLE);
    let [all, one, other] = ["", "workloadSelector: {matchLabels: {app: a}}, ", "exportTo: [.], "]
        .map(|limit| rule("", &format!("{limit}trafficPolicy: {{tls: {{mode: DISABLE}}}}")));
    for (rules, is_excepted) in
        [(one.clone() + &other, false), (other.clone() + &one, false), (one + &all, true), (all + &other, true)]
    {
        let said = outcome(&(entry("a.com", http) + &rules + &wildcard));
        assert_eq!(said.contains("a.com:80 in clear (@9)"), is_excepted, "{said}\n{rules}");
        assert!(said.contains(&format!("warning @14: {BEFORE}, with the same trafficPolicy")), "{said}\n{rules}");
    }
}

#[test]
fn subsets_of_one_name_must_be_the_same() {
    let service = "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {name: x}\nspec: {hosts: [a.com], http: \
                   [{route: [{destination: {host: a.com, subset: s}}]}]}\n---\n";
    let subset = |more: &str| rule("", &format!("subsets: [{{name: s{more}}}]"));
    let tls = ", trafficPolicy: {tls: {mode: SIMPLE}}";
    let before = "spec.subsets[0].name: subset s of a.com is already defined at @9";
    let random = ", trafficPolicy: {loadBalancer: {simple: RANDOM}}";
    // What a port's settings leave out is taken away from what is said of the host.
    let random_on_80 = ", trafficPolicy: {loadBalancer: {simple: RANDOM}, portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: \
                        RANDOM}}]}";
    let tls_on_80 =
        ", trafficPolicy: {tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}";
    for (one, other, difference) in [
        (tls, tls, ""),
        (random, random, ""),
        (tls_on_80, tls_on_80, ""),
        (tls, "", "trafficPolicy"),
        (tls, ", trafficPolicy: {tls: {mode: SIMPLE, sni: b.com}}", "tls"),
        ("", ", labels: {a: b}", "labels"),
        (random, random_on_80, "portLevelSettings"),
        (tls, tls_on_80, "portLevelSettings"),
        (", trafficPolicy: {}", ", trafficPolicy: {loadBalancer: {}}", "loadBalancer"),
    ] {
        for (one, other) in [(one, other), (other, one)] {
            let policy = "trafficPolicy: {tls: {mode: SIMPLE}, loadBalancer: {simple: ROUND_ROBIN}}";
            let first = subset(one).replace("host: a.com,", &format!("host: a.com, {policy},"));
            for first in [subset(one), first] {
                let said = outcome(&(entry("a.com", HTTP) + &first + &subset(other) + service));
                let expected = match difference {
                    "" => format!("warning @14: {before}, in the same way; remove one of them"),
                    _ => format!("@14: {before}, which differs in {difference}; make one of the two"),
                };
                assert!(said.lines().any(|line| line == expected), "{said}\n{one}\n{other}");
            }
        }
    }
}
