//! What is said of a host, and is not what becomes of its requests: it must not be lost without a word.

use super::*;

const NONE: &str = "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}], resolution: NONE";

/// A `VirtualService` of four lines; its hosts are on line 4 of it.
fn service(host: &str, routes: &str) -> String {
    format!(
        "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {{name: x}}\nspec: {{hosts: ['{host}'], http: \
         [{routes}]}}\n---\n"
    )
}

fn to(host: &str) -> String {
    format!("{{route: [{{destination: {{host: {host}}}}}]}}")
}

#[test]
fn a_host_below_a_wildcard_with_tls_keeps_it() {
    let wildcard = entry("*.a.com", NONE) + &destination("*.a.com", SIMPLE);
    let by_wildcard = "*.a.com:80 -> original:443 verify=request (@9)";
    let warning = "warning @14: spec.ports[0].number: requests for www.a.com and port 80 go over TLS all the same, by what is said \
                   of *.a.com at @9, which has them too, whatever there is for www.a.com itself; add a DestinationRule with `tls` \
                   for www.a.com, or leave its port out";
    for policy in ["loadBalancer: {simple: RANDOM}", "tls: {mode: DISABLE}"] {
        let text = wildcard.clone() + &entry("www.a.com", HTTP) + &destination("www.a.com", policy);
        assert_eq!(outcome(&text), format!("{by_wildcard}\n{warning}"), "{text}");
    }
    // Its routes would be lost.
    let text = wildcard.clone()
        + &entry("www.a.com", HTTP)
        + &destination("www.a.com", "loadBalancer: {simple: RANDOM}")
        + &service("www.a.com", &to("www.a.com"));
    let expected = "@24: spec.http[0].route[0].destination: requests for port 80 of www.a.com would leave in clear to port 80 of \
                    www.a.com, while TLS is originated for the host at @9; add `tls` for this destination to a DestinationRule";
    assert_eq!(outcome(&text), expected, "{text}");
    // The wildcard's own TLS is that of its routes.
    let text = entry("*.a.com", NONE)
        + &entry("b.com", HTTP)
        + &destination("b.com", SIMPLE)
        + &service("*.a.com", &to("b.com"))
        + &entry("www.a.com", HTTP)
        + &service("www.a.com", "{redirect: {uri: /}}");
    let expected = "warning @29: spec.hosts[0]: no request for www.a.com is sent on over TLS by this, so it does nothing: what is said \
                    of *.a.com at @19 counts, which has the host too; add a DestinationRule with `tls` for a destination";
    let found = outcome(&text);
    assert!(found.contains(expected) && !found.contains("left as it is"), "{found}");
}

#[test]
fn a_mesh_s_own_services_are_left_alone() {
    let unknown = |line: u32| {
        format!(
            "@{line}: spec.http[0].route[0].destination.host: no ServiceEntry has the host reviews; add one, or correct the name"
        )
    };
    let unused = "warning @4: spec.hosts[0]: no request for reviews is sent on over TLS by this, so it is left alone and goes to where \
                  it was going; add a DestinationRule with `tls` for a destination";
    let known = entry("a.com", HTTP) + &destination("a.com", SIMPLE);
    let subset = "{route: [{destination: {host: reviews, subset: v1}}]}";
    for (text, expected) in [
        (service("reviews", &to("reviews")), unused.to_owned()),
        (service("reviews", subset), unused.to_owned()),
        // With TLS it is our business.
        (service("reviews", &to("reviews")) + &destination("reviews", SIMPLE), unknown(4)),
        (
            service(
                "reviews",
                &format!(
                    "{}, {}",
                    to("reviews").replacen("route", "match: [{uri: {exact: /}}], route", 1),
                    to("a.com")
                ),
            ) + &known,
            unknown(4),
        ),
        // So are hosts that are configured.
        (entry("a.com", HTTP) + &service("a.com", &to("reviews")), unknown(9)),
    ] {
        assert_eq!(outcome(&text), expected, "{text}");
    }
}

#[test]
fn where_the_application_chooses_labels_do_not_matter() {
    let subset = "kind: DestinationRule\napiVersion: networking.istio.io/v1\nmetadata: {name: x}\nspec: {host: a.com, trafficPolicy: \
                  {tls: {mode: SIMPLE}}, subsets: [{name: v1, labels: {version: v1}}]}\n---\n";
    let service = service("a.com", "{route: [{destination: {host: a.com, subset: v1}}]}");
    assert_eq!(outcome(&(entry("a.com", NONE) + subset + &service)), "a.com:80 -> original:443 verify=a.com (@14)");
}
