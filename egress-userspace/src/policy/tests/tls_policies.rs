//! What several `BackendTLSPolicy`s say of one port.

use super::*;

/// A `BackendTLSPolicy` of four lines that asks for the name `hostname`.
fn policy(target: &str, hostname: &str) -> String {
    format!(
        "kind: BackendTLSPolicy\napiVersion: gateway.networking.k8s.io/v1\nmetadata: {{name: x}}\nspec: {{targetRefs: [{{group: \
         networking.istio.io, {target}}}], validation: {{hostname: {hostname}, wellKnownCACertificates: System}}}}\n---\n"
    )
}

/// As in the Gateway API's tests of conformance, in any order.
#[test]
fn one_for_a_port_counts_there_rather_than_one_for_the_whole() {
    const PORTS: &str = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}, {number: 8080, name: other, protocol: HTTP, \
                         targetPort: 8443}], resolution: DNS";
    let (whole, section) = ("kind: ServiceEntry, name: x", "kind: ServiceEntry, name: x, sectionName: http");
    let (host, port_of_host) = ("kind: Hostname, name: a.com", "kind: Hostname, name: a.com, sectionName: http");
    for (one, other, is_refused) in [
        (whole, section, false),
        (host, port_of_host, false),
        (whole, whole, true),
        (section, section, true),
        // Which of the two is closer nobody can say.
        (host, section, true),
        (whole, port_of_host, true),
    ] {
        let policies = [policy(one, "whole.com"), policy(other, "section.com")];
        let backwards: String = policies.iter().rev().cloned().collect();
        for (text, at) in [(policies.concat(), [9, 14]), (backwards, [14, 9])] {
            let found = outcome(&(entry("a.com", PORTS) + &text));
            if is_refused {
                assert!(
                    found.contains("@14: spec.targetRefs[0]: port 80 of a.com has a BackendTLSPolicy already, at @9"),
                    "{found}"
                );
            } else {
                let expected = format!(
                    "a.com:80 -> 443 sni=section.com verify=section.com (@{})\na.com:8080 -> 8443 sni=whole.com verify=whole.com (@{})",
                    at[1], at[0],
                );
                assert_eq!(found, expected, "{text}");
            }
        }
    }
}
