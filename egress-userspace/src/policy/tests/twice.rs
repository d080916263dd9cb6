//! Ports of hosts that several entries have.

use super::*;

/// What is said of the second entry for port 80 of a.com, whose first is at @4.
fn told(text: &str) -> Vec<String> {
    let found = outcome(text);
    let said = found
        .lines()
        .filter_map(|line| line.split_once("port 80 of a.com is already defined at @4, "))
        .map(|(_, said)| said.to_owned());
    said.collect()
}

#[test]
fn the_same_thing_twice_is_one() {
    const STATIC: &str = "ports: [{number: 80, name: a, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 203.0.113.7, ports: {a: 443}}]";
    let rule = destination("*.com", SIMPLE);
    let said = "warning @9: spec.ports[0].number: port 80 of a.com is already defined at @4, in the same way; remove one of them";
    for (one, other, expected) in [
        (HTTP, HTTP.replace("DNS", "DNS_ROUND_ROBIN"), "a.com:80 -> 443 verify=a.com (@14)"),
        // By other words.
        (
            STATIC,
            STATIC.replace("name: a", "name: b").replace("{a: 443}", "{b: 443}"),
            "a.com:80 -> 203.0.113.7:443 verify=a.com (@14)",
        ),
    ] {
        let text = entry("a.com", one) + &entry("a.com", &other) + &rule;
        assert_eq!(outcome(&text), format!("{expected}\n{said}"), "{text}");
    }
    // Each has its own hosts and ports besides.
    let more = "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}, {number: 81, name: b, protocol: HTTP, targetPort: 443}], resolution: DNS";
    let text = entry("a.com', 'b.com", HTTP) + &entry("c.com', 'a.com", more) + &rule;
    let rules = ["a.com:80", "a.com:81", "b.com:80", "c.com:80", "c.com:81"]
        .map(|host| format!("{host} -> 443 verify={} (@14)", host.split_once(':').expect("a port").0));
    assert_eq!(outcome(&text), format!("{}\n{said}", rules.join("\n")), "{text}");
}

#[test]
fn what_makes_a_difference_is_refused() {
    const STATIC: &str =
        "ports: [{number: 80, name: a, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 203.0.113.7}]";
    let with = |addition: &str| format!("{STATIC}, {addition}");
    for (one, other, difference) in [
        (HTTP, HTTP.replace(", targetPort: 443", ""), "another targetPort"),
        (HTTP, HTTP.replace("protocol: HTTP", "protocol: GRPC"), "another protocol"),
        (HTTP, HTTP.replace("DNS", "NONE"), "another resolution"),
        (STATIC, STATIC.replace("203.0.113.7", "203.0.113.8"), "other endpoints"),
        (STATIC, STATIC.replace("203.0.113.7", "203.0.113.7, ports: {a: 81}"), "other endpoints"),
        (STATIC, STATIC.replace("203.0.113.7", "203.0.113.7, labels: {a: b}"), "other endpoints"),
        (STATIC, with("addresses: [203.0.113.0/24]"), "other addresses"),
        (STATIC, with("subjectAltNames: [b.com]"), "other subjectAltNames"),
    ] {
        for (one, other) in [(one, other.as_str()), (&other, one)] {
            let text = entry("a.com", one) + &entry("a.com", other) + &destination("a.com", SIMPLE);
            let expected = format!("with {difference}, and Istio would take the older one; make one of the two");
            assert_eq!(told(&text), [expected], "{text}");
        }
    }
}

/// Which of the ports a policy means by the name `b` is another by each of the entries.
#[test]
fn names_of_ports_make_a_difference_where_a_policy_means_one_by_its_name() {
    const POLICY: &str = "kind: BackendTLSPolicy\napiVersion: gateway.networking.k8s.io/v1\nmetadata: {name: x}\nspec: {targetRefs: [{group: \
                          networking.istio.io, kind: Hostname, name: a.com, sectionName: b}], validation: {hostname: a.com, \
                          wellKnownCACertificates: System}}\n---\n";
    let ports = |http: &str, other: &str| {
        format!(
            "ports: [{{number: 80, name: {http}, protocol: HTTP}}, {{number: 81, name: {other}, protocol: HTTP}}], resolution: DNS"
        )
    };
    let entries = entry("a.com", &ports("a", "b")) + &entry("a.com", &ports("b", "a"));
    let refused =
        "with another name, while a BackendTLSPolicy means a port of the host by its name; make one of the two";
    assert_eq!(told(&(entries.clone() + POLICY)), [refused]);
    let same = ["in the same way; remove one of them"];
    assert_eq!(told(&entries), same);
    assert_eq!(told(&(entries + &POLICY.replace(", sectionName: b", ""))), same);
}

/// An export of a cluster in which teams have said different things of what they encrypt themselves, or not at all, is of use.
#[test]
fn what_makes_none_is_not() {
    let none = |difference: &str| {
        format!("with {difference}, which makes no difference here, as neither leads to TLS; make one of the two")
    };
    let refused =
        |difference: &str| format!("with {difference}, and Istio would take the older one; make one of the two");
    let other = HTTP.replace("DNS", "NONE");
    let [https, tls, tcp] =
        ["HTTPS", "TLS", "TCP"].map(|protocol| HTTP.replace("protocol: HTTP", &format!("protocol: {protocol}")));
    let service = "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {name: x}\nspec: {hosts: [b.com], http: [{route: \
                   [{destination: {host: a.com}}]}]}\n---\n";
    let led_to = entry("b.com", HTTP) + service;
    for (text, expected) in [
        (entry("a.com", HTTP) + &entry("a.com", &other), none("another resolution")),
        (entry("a.com", &https) + &entry("a.com", &tls) + &destination("a.com", SIMPLE), none("another protocol")),
        // A route that originates TLS leads there.
        (
            entry("a.com", &https) + &entry("a.com", &tls) + &destination("a.com", SIMPLE) + &led_to,
            refused("another protocol"),
        ),
        (entry("a.com", HTTP) + &entry("a.com", &tcp), none("another protocol")),
        (entry("a.com", &tcp) + &entry("a.com", HTTP) + &destination("b.com", SIMPLE), none("another protocol")),
        (
            entry("a.com", &tcp) + &entry("a.com", HTTP) + &entry("*.com", &other) + &destination("*.com", SIMPLE),
            refused("another protocol"),
        ),
        // By one of them there would be TLS.
        (entry("a.com", &tcp) + &entry("a.com", HTTP) + &destination("a.com", SIMPLE), refused("another protocol")),
        (entry("a.com", HTTP) + &entry("a.com", &tcp) + &destination("a.com", SIMPLE), refused("another protocol")),
        // The wildcard's is there whatever these say.
        (
            entry("a.com", HTTP)
                + &entry("a.com", &other)
                + &entry("*.com", &other)
                + &destination("*.com", SIMPLE)
                + &destination("a.com", "loadBalancer: {simple: RANDOM}"),
            none("another resolution"),
        ),
    ] {
        assert_eq!(told(&text), [expected], "{text}");
    }
}
