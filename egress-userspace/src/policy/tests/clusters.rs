//! What `kubectl get -A` brings along: resources of several namespaces, and those about a cluster's own services.

use super::*;

pub(super) const NONE: &str = "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}], resolution: NONE";

pub(super) fn resource(kind: &str, namespace: &str, spec: &str) -> String {
    format!(
        "kind: {kind}\napiVersion: networking.istio.io/v1\nmetadata: {{name: x, namespace: {namespace}}}\nspec: {{{spec}}}\n---\n"
    )
}

/// What is said of documents that are not about `a.com`, which has TLS.
fn outcome_beside(documents: &str) -> String {
    let outcome = outcome(&(documents.to_owned() + &entry("a.com", HTTP) + &destination("a.com", SIMPLE)));
    let lines = outcome.lines().filter(|line| !line.starts_with("a.com:80 -> 443"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn services_of_several_namespaces_have_the_same_name() {
    let rules = resource("DestinationRule", "a", "host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}}")
        + &resource("DestinationRule", "b", "host: reviews, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}");
    assert_eq!(outcome_beside(&rules), "");
    // With an entry it is one host.
    let conflict = "@9: spec.host: reviews has a DestinationRule already, at @4, which differs in loadBalancer, and in Istio the namespace of \
                    the client would decide; make one of the two";
    let rules = rules.replace("loadBalancer", "tls: {mode: SIMPLE}, loadBalancer");
    assert_eq!(outcome_beside(&(rules + &entry("reviews", HTTP))), conflict);

    let service = |namespace: &str, to: &str| {
        resource(
            "VirtualService",
            namespace,
            &format!("hosts: [reviews], http: [{{route: [{{destination: {{host: {to}}}}}]}}]"),
        )
    };
    let both = outcome_beside(&(service("a", "reviews") + &service("b", "ratings")));
    assert_eq!(both.matches("is left alone and goes to where it was going").count(), 2, "{both}");
    assert_eq!(both.lines().count(), 2, "{both}");
    // Which of them counts is no matter only where none leads to TLS.
    let conflict = "@9: spec.hosts[0]: reviews has a VirtualService already, at @4, and Istio would take either; make one of the two";
    for (first, second) in [("reviews", "a.com"), ("a.com", "reviews")] {
        assert_eq!(outcome_beside(&(service("a", first) + &service("b", second))), conflict, "{first} {second}");
    }
}

#[test]
fn what_is_about_a_cluster_s_own_services_can_have_what_egress_has_not() {
    let unread = |host: &str| {
        format!(
            "warning @1: kind: this has no effect here: {host} is taken for a service of the cluster, as no ServiceEntry has it"
        )
    };
    let rule = |host: &str, policy: &str| {
        resource("DestinationRule", "a", &format!("host: '{host}', trafficPolicy: {{{policy}}}"))
    };
    let balanced = "loadBalancer: {consistentHash: {useSourceIp: true}}";
    let route = |host: &str, to: &str| {
        let route = format!("{{corsPolicy: {{}}, route: [{{destination: {{host: {to}}}}}]}}");
        resource("VirtualService", "a", &format!("hosts: [{host}], http: [{route}]"))
    };
    for (text, host) in [
        (rule("*.local", "tls: {mode: ISTIO_MUTUAL}"), "*.local"),
        (rule("reviews", balanced), "reviews"),
        (rule("reviews.b.svc.cluster.local", balanced), "reviews.b.svc.cluster.local"),
        (route("reviews", "ratings.b.svc.cluster.local"), "reviews"),
        (resource("VirtualService", "a", "hosts: [redis], tcp: [{route: [{destination: {host: redis}}]}]"), "redis"),
    ] {
        assert_eq!(outcome_beside(&text), unread(host), "{text}");
    }

    let unsupported = "Istio has this field, egress does not implement it; remove it";
    // Of hosts that are configured nothing is ignored.
    let text = rule("*.local", "tls: {mode: ISTIO_MUTUAL}") + &entry("printer.local", HTTP);
    assert!(
        outcome_beside(&text).starts_with("@4: spec.trafficPolicy.tls.mode: Istio has ISTIO_MUTUAL"),
        "{}",
        outcome_beside(&text)
    );
    let text = rule("printer.local", balanced) + &entry("*.local", NONE);
    assert!(outcome_beside(&text).contains(unsupported), "{}", outcome_beside(&text));
    // Nor of what may lead to one, or asks for TLS.
    for text in [
        route("reviews", "a.com"),
        route("a.com", "reviews"),
        rule("reviews", &format!("{balanced}, {SIMPLE}")),
        rule("reviews", &format!("{balanced}, tls: {{sni: a.com}}")),
        rule("*", balanced),
        // Others may lead anywhere.
        resource("VirtualService", "a", "hosts: [reviews], http: [{delegate: {name: y}}]"),
    ] {
        assert!(outcome_beside(&text).contains(unsupported), "{}", outcome_beside(&text));
    }
    // Nor of what may be about anything.
    for http in ["{route: [{destination: a.com}]}", "{route: [{destination: {hosst: a.com}}], redirect: {}}"] {
        let text = resource("VirtualService", "a", &format!("hosts: [reviews], http: [{http}]"));
        assert!(!outcome_beside(&text).contains("is taken for a service"), "{}", outcome_beside(&text));
    }
    let mistyped = outcome_beside(&rule("reviews", "tls: {mode: simple}"));
    assert!(mistyped.contains("spec.trafficPolicy.tls.mode: "), "{mistyped}");
}

/// As in Istio's example of HTTPS to the outside.
#[test]
fn routes_of_tls_are_for_what_is_not_intercepted() {
    let routes = "tls: [{match: [{port: 443, sniHosts: [a.com]}], route: [{destination: {host: a.com}}]}]";
    let tcp = "tcp: [{route: [{destination: {host: b.com}}]}]";
    let of_tls =
        "warning @4: spec.tls[0]: these routes have no effect here: TLS of applications goes to where it was going";
    let service = |routes: &str| resource("VirtualService", "a", &format!("hosts: [a.com], {routes}"));
    assert_eq!(outcome_beside(&service(routes)), of_tls);
    // Those of TCP could lead to TLS.
    let with_tcp = outcome_beside(&service(&format!("{routes}, {tcp}")));
    assert!(with_tcp.contains(":4: spec.tcp: Istio has this field"), "{with_tcp}");
    // Beside one for HTTP they contradict nothing.
    let http = service("http: [{route: [{destination: {host: a.com}}]}]");
    assert_eq!(outcome_beside(&(service(routes) + &http)), of_tls);
}

#[test]
fn who_gives_no_namespace_is_in_the_one_called_default() {
    let secret = |namespace: &str| {
        format!("kind: Secret\napiVersion: v1\nmetadata: {{name: s{namespace}}}\nstringData: {{ca.crt: a}}\n---\n")
    };
    let rule = resource(
        "DestinationRule",
        "default",
        "host: b.com, workloadSelector: {matchLabels: {}}, trafficPolicy: {tls: {mode: SIMPLE, credentialName: s}}",
    );
    let text = |namespace: &str| entry("b.com", HTTP) + &rule + &secret(namespace);
    assert!(
        outcome(&text("")).starts_with("b.com:80 -> 443 verify=b.com roots=ca.crt of Secret s "),
        "{}",
        outcome(&text(""))
    );
    let expected = "@9: spec.trafficPolicy.tls.credentialName: there is no Secret s in namespace default, while there is one in namespace b; \
                    add it";
    assert!(outcome(&text(", namespace: b")).contains(expected), "{}", outcome(&text(", namespace: b")));
}

#[test]
fn routes_for_no_hosts_are_a_delegate_s() {
    let routes = "http: [{corsPolicy: {}, route: [{destination: {host: a.com}}]}]";
    let delegate = "warning @4: spec.http: without hosts these routes are for other VirtualServices, which delegate to them, so they have no \
                    effect here; add hosts if they are meant for applications";
    assert_eq!(outcome_beside(&resource("VirtualService", "a", routes)), delegate);
    assert_eq!(outcome_beside(&resource("VirtualService", "a", &format!("exportTo: ['.'], {routes}"))), delegate);
    // Who names some where nobody looks has not meant that.
    let mistyped = outcome_beside(&resource("VirtualService", "a", &format!("host: [a.com], {routes}")));
    assert!(mistyped.contains("spec.host: unknown field; did you mean `hosts`?"), "{mistyped}");
    for text in [
        format!("hosts: [], {routes}"),
        format!("hosts: null, {routes}"),
        format!("gateways: [mesh], {routes}"),
        "exportTo: ['.']".to_owned(),
    ] {
        let found = outcome_beside(&resource("VirtualService", "a", &text));
        assert!(found.contains("spec.hosts: "), "{text}: {found}");
    }
}

/// In Istio it is the namespace of the client that decides, and here one rule is for all.
#[test]
fn a_rule_in_another_namespace_than_its_entry_is_named() {
    let ports = "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}], resolution: DNS";
    let entry = |namespace: &str| resource("ServiceEntry", namespace, &format!("hosts: [b.com], {ports}"));
    let rule = |namespace: &str, mode: &str| {
        resource("DestinationRule", namespace, &format!("host: b.com, trafficPolicy: {{tls: {{mode: {mode}}}}}"))
    };
    let said = "warning @9: spec.host: in Istio this is for clients in namespace b alone, as the ServiceEntry at @4 is in namespace a, while \
                here it holds for all applications";
    let move_it = "; move it there if it is meant for all";
    let but = ", but mode DISABLE makes no exception by it to the TLS of a wildcard";
    let balanced = resource("DestinationRule", "b", "host: b.com, trafficPolicy: {loadBalancer: {simple: RANDOM}}");
    for (documents, expected) in [
        (entry("a") + &rule("b", "SIMPLE"), format!("{said}{move_it}")),
        (entry("a") + &rule("b", "DISABLE"), format!("{said}{but}{move_it}")),
        (entry("a") + &rule("a", "SIMPLE"), String::new()),
        (entry("a") + &rule("istio-system", "SIMPLE"), String::new()),
        (entry("a") + &balanced, String::new()),
        // Another entry for the host is where the rule is.
        (entry("a") + &rule("b", "SIMPLE") + &entry("b"), String::new()),
        // So is one of those that a wildcard has.
        (
            entry("a") + &rule("b", "SIMPLE").replace("b.com", "'*.com'") + &entry("b").replace("b.com", "c.com"),
            String::new(),
        ),
    ] {
        let found = outcome_beside(&documents);
        let found: Vec<_> = found.lines().filter(|line| line.contains("in Istio this")).collect();
        assert_eq!(found.concat(), expected, "{documents}");
    }
    // One that is not written can be any.
    let [of_rule, of_entry] = [
        (entry("a"), rule("b", "SIMPLE").replace(", namespace: b", "")),
        (entry("a").replace(", namespace: a", ""), rule("b", "SIMPLE")),
    ];
    let write = "; write the namespaces of both, which are the same if it is meant for all";
    for ((entry, rule), alone) in [
        (of_rule, "default alone, as it gives none and the ServiceEntry at @4 is in namespace a"),
        (of_entry, "b alone, as the ServiceEntry at @4 gives none and so is taken to be in namespace default"),
    ] {
        let found = outcome_beside(&(entry + &rule));
        let said = format!(
            "in Istio this is for clients in namespace {alone}, while here it holds for all applications{write}"
        );
        assert!(found.contains(&said), "{found}");
    }
}
