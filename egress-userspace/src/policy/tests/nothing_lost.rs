//! What is said of a host, and is not what becomes of its requests: it must not be lost without a word.

use super::*;

pub(super) const NONE: &str = "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}], resolution: NONE";

/// A `VirtualService` of four lines; its hosts are on line 4 of it.
pub(super) fn service(host: &str, routes: &str) -> String {
    format!(
        "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {{name: x}}\nspec: {{hosts: ['{host}'], http: \
         [{routes}]}}\n---\n"
    )
}

pub(super) fn to(host: &str) -> String {
    format!("{{route: [{{destination: {{host: {host}}}}}]}}")
}

#[test]
fn a_host_below_a_wildcard_with_tls_keeps_it() {
    let wildcard = entry("*.a.com", NONE) + &destination("*.a.com", SIMPLE);
    let by_wildcard = "*.a.com:80 -> original:443 verify=request (@9)";
    let warning = "warning @14: spec.ports[0].number: requests for www.a.com and port 80 go over TLS all the same, by what is said \
                   of *.a.com at @9, which has them too, whatever there is for www.a.com itself; add a DestinationRule with `tls` \
                   for www.a.com, be it with mode DISABLE, or leave its port out";
    let text =
        wildcard.clone() + &entry("www.a.com", HTTP) + &destination("www.a.com", "loadBalancer: {simple: RANDOM}");
    assert_eq!(outcome(&text), format!("{by_wildcard}\n{warning}"), "{text}");
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
    let expected = "@24: spec.ports[0].number: requests for www.a.com and port 80 would go to b.com, by what is said of *.a.com at @19, \
                    which has them too, whatever there is for www.a.com itself; add a DestinationRule with `tls` for www.a.com, be it with \
                    mode DISABLE, or leave its port out";
    assert_eq!(outcome(&text), expected);
    // Without an entry of its own it has port 80.
    let text = entry("b.com", HTTP)
        + &destination("b.com", SIMPLE)
        + &service("*.a.com", &to("b.com"))
        + &service("www.a.com", "{redirect: {uri: /}}");
    let expected = "@19: spec.hosts[0]: requests for www.a.com would go to b.com, by what is said of *.a.com at @14, which has the host \
                    too, and not by this, which sends none on over TLS; add a DestinationRule with `tls` for a destination";
    assert_eq!(outcome(&text), expected);
    // It may speak something else.
    let tcp = "ports: [{number: 80, name: a, protocol: TCP}], resolution: DNS";
    let expected = "warning @14: spec.ports[0].number: port 80 of www.a.com has protocol TCP, yet what is said of *.a.com at @9 has it \
                    intercepted, and anything but HTTP is refused there; list the hosts that are meant in place of the wildcard";
    assert_eq!(outcome(&(wildcard.clone() + &entry("www.a.com", tcp))), format!("{by_wildcard}\n{expected}"));
    assert_eq!(outcome(&(wildcard + &entry("www.a.com", &tcp.replace("TCP", "UDP")))), by_wildcard);
}

#[test]
fn a_port_without_a_protocol_is_taken_for_http_where_tls_is_asked_for_it() {
    let taken = |number: u16| {
        format!(
            "warning @4: spec.ports[0].number: port {number} has no protocol and is taken for HTTP: anything else is refused there; say so \
             by protocol HTTP, or by TCP or HTTPS if it is that"
        )
    };
    let not_concerned = "@4: spec.ports[0].number: port 22 has no protocol, so the VirtualService at @14, which leads to TLS, is not for it: \
                         HTTP would leave in clear there; if that is spoken, say so by protocol HTTP, and otherwise by TCP, or HTTPS";
    let ports = |number: u16| {
        format!("ports: [{{number: {number}, name: a}}, {{number: 443, name: b, protocol: HTTPS}}], resolution: DNS")
    };
    let on_443 = destination("a.com", "portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE}}]");
    let route = |matches: &str| {
        service("a.com", &format!("{{{matches}route: [{{destination: {{host: a.com, port: {{number: 443}}}}}}]}}"))
    };
    for (text, expected) in [
        (entry("a.com", &ports(22)) + &on_443 + &route(""), not_concerned.to_owned()),
        (
            entry("a.com", &ports(22)) + &on_443 + &route("match: [{port: 22}], "),
            format!("a.com:22 -> 443 verify=a.com (@14)\n{}", taken(22)),
        ),
        // Everybody knows this one.
        (
            entry("a.com", &ports(80)) + &on_443 + &route(""),
            format!("a.com:80 -> 443 verify=a.com (@14)\n{}", taken(80)),
        ),
        (
            entry("a.com", "ports: [{number: 443, name: a}], resolution: DNS") + &destination("a.com", SIMPLE),
            format!("a.com:443 -> 443 verify=a.com (@9)\n{}", taken(443)),
        ),
    ] {
        assert_eq!(outcome(&text), expected, "{text}");
    }
    // Of all hosts that have the port it is said once.
    let text = entry("a.com', 'b.com", "ports: [{number: 81, name: a, targetPort: 443}], resolution: DNS")
        + &destination("*.com", SIMPLE);
    assert_eq!(outcome(&text).matches("warning").count(), 1, "{}", outcome(&text));
    let text = entry("a.com", "ports: [{number: 81, name: a, targetPort: 443}], resolution: DNS");
    assert!(outcome(&text).contains("nothing originates TLS for port 81 of a.com"), "{}", outcome(&text));
}

#[test]
fn a_mesh_s_own_services_are_left_alone() {
    let unknown = |line: u32| {
        format!(
            "@{line}: spec.http[0].route[0].destination.host: no ServiceEntry has the host reviews; add one, or correct the name"
        )
    };
    let unused = "warning @4: spec.hosts[0]: no request for reviews is sent on over TLS by this, so it is left alone and goes to where \
                  it was going: reviews is taken for a service of the cluster, as no ServiceEntry has it; correct the name if it is none";
    let known = entry("a.com", HTTP) + &destination("a.com", SIMPLE);
    let subset = "{route: [{destination: {host: reviews, subset: v1}}]}";
    for (text, expected) in [
        (service("reviews", &to("reviews")), unused.to_owned()),
        (service("reviews", subset), unused.to_owned()),
        (service("reviews", &to("a.svc.cluster.local")), unused.replace(": reviews is", ": a.svc.cluster.local is")),
        // What can be none is a mistake.
        (service("reviews", &to("api.exmaple.com")), unknown(4).replace("reviews", "api.exmaple.com")),
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
        (
            entry("a.com", HTTP) + &service("a.com", &to("reviews")),
            "@9: spec.http[0].route[0].destination.host: this leads through a service of the cluster, as no ServiceEntry has the host \
             reviews, while egress originates TLS where the application is; lead to a.com and its port for TLS instead, or add a \
             ServiceEntry if reviews is none"
                .to_owned(),
        ),
        (
            known.clone() + &service("a.com", "{route: [{destination: {host: a.com}}], mirror: {host: reviews}}"),
            "@14: spec.http[0].mirror.host: no ServiceEntry has the host reviews, which copies of requests are to go to, and here they go over \
             TLS alone; add one, and `tls` for it to a DestinationRule, or remove the mirror"
                .to_owned(),
        ),
    ] {
        assert_eq!(outcome(&text), expected, "{text}");
    }
}

/// Whoever adds a route or a mirror to a port has not asked for what is sent there to leave in clear.
#[test]
fn a_port_that_a_route_leads_to_is_intercepted_still() {
    let ports = |number: u16| format!("ports: [{{number: {number}, name: b, protocol: HTTP}}], resolution: DNS");
    let same_port = |number: u16| {
        format!(
            "warning @9: spec.ports[0].number: TLS is originated to port {number} itself, while servers mostly have it on 443; name its port as \
             targetPort"
        )
    };
    let text = |number: u16, routes: &str| {
        entry("a.com", HTTP)
            + &entry("b.com", &ports(number))
            + &destination("*.com", SIMPLE)
            + &service("a.com", routes)
    };
    let mirror = "{route: [{destination: {host: a.com}}], mirror: {host: b.com}}";
    let [to_a, to_b] = ["a.com:80 -> 443 verify=a.com (@19)", "a.com:80 -> 8080 verify=b.com (@19)"];
    let own = "b.com:8080 -> 8080 verify=b.com (@14)";
    assert_eq!(outcome(&text(8080, &to("b.com"))), format!("{to_b}\n{own}\n{}", same_port(8080)));
    assert_eq!(outcome(&text(8080, mirror)), format!("{to_a}\n{own}\n{}", same_port(8080)));
    // The port for TLS is one for TLS alone if a route leads there; a copy does not.
    let https = "warning @9: spec.ports[0].number: port 443 is said to be HTTP: TLS that applications make there themselves is refused; use \
                 protocol HTTPS if they do";
    assert_eq!(outcome(&text(443, mirror)), format!("{to_a}\n{}\n{https}", own.replace("8080", "443")));
    let left_alone = "warning @9: spec.ports[0].number: port 443 of b.com is left alone, as a VirtualService leads to it: what applications \
                      send there themselves must be TLS already; say so by protocol HTTPS";
    let expected = format!("{}\n{left_alone}", to_b.replace("8080", "443"));
    assert_eq!(outcome(&text(443, &to("b.com"))), expected);
}

const NOT_LED_TO: &str = "warning @9: spec.subsets[0].trafficPolicy.tls: no VirtualService leads to subset v1 of a.com on a port that this is \
                          for, so it does nothing; have a route lead there, or say it in the trafficPolicy of the host";

#[test]
fn tls_of_a_subset_is_not_that_of_the_host() {
    let subset = destination("a.com", "").replace(
        "trafficPolicy: {}",
        &format!("subsets: [{{name: v1, trafficPolicy: {{{SIMPLE}}}}}, {{name: v2, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}]"),
    );
    let clear = "warning @4: spec.ports[0].targetPort: nothing originates TLS for port 80 of a.com, so its traffic is left as it is: in \
                 clear text to port 80, not to 443; add a DestinationRule";
    let text = entry("a.com", HTTP) + &subset;
    assert_eq!(outcome(&text), format!("{clear}\n{NOT_LED_TO}"));
    let led = service("a.com", "{route: [{destination: {host: a.com, subset: v1}}]}");
    assert_eq!(outcome(&(text.clone() + &led)), "a.com:80 -> 443 verify=a.com (@14)");
    // One for gateways leads nowhere.
    let gateways = led.replace("hosts:", "gateways: [g], hosts:");
    assert!(outcome(&(text + &gateways)).contains(NOT_LED_TO));
    // Of what is no host of ours nothing is said that is not said of its rule.
    assert_eq!(
        outcome(&subset),
        "warning @4: spec.host: no ServiceEntry has the host a.com, so this does nothing; add one"
    );
}

#[test]
fn settings_of_a_port_take_no_tls_away_without_a_word() {
    let http = "ports: [{number: 80, name: a, protocol: HTTP}], resolution: DNS";
    let settings = |tls: &str| {
        format!("portLevelSettings: [{{port: {{number: 80}}, connectionPool: {{tcp: {{maxConnections: 9}}}}{tls}}}]")
    };
    let warning = |path: &str| {
        format!(
            "warning @9: {path}portLevelSettings[0].port.number: portLevelSettings for port 80 replace all that is said of a.com there, `tls` \
             included, so nothing originates TLS for it: what is sent there leaves in clear; add `tls` to them, be it with mode DISABLE"
        )
    };
    let of_host = format!("{SIMPLE}, {}", settings(""));
    assert_eq!(outcome(&(entry("a.com", http) + &destination("a.com", &of_host))), warning("spec.trafficPolicy."));
    let of_subset = destination("a.com", "")
        .replace("trafficPolicy: {}", &format!("subsets: [{{name: v1, trafficPolicy: {{{of_host}}}}}]"));
    let expected = warning("spec.subsets[0].trafficPolicy.") + "\n" + NOT_LED_TO;
    assert_eq!(outcome(&(entry("a.com", http) + &of_subset)), expected);
    // Who says so means it.
    let disabled = format!("{SIMPLE}, {}", settings(", tls: {mode: DISABLE}"));
    assert_eq!(outcome(&(entry("a.com", http) + &destination("a.com", &disabled))), "");
}

#[test]
fn an_egress_gateway_is_not_gone_through() {
    let gateway = "istio-egressgateway.istio-system.svc.cluster.local";
    let text = entry(
        "a.com",
        "ports: [{number: 80, name: a, protocol: HTTP}, {number: 443, name: b, protocol: HTTPS}], resolution: DNS",
    ) + &destination("a.com", "portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE}}]")
        + &service("a.com", &to(gateway));
    let expected = format!(
        "@14: spec.http[0].route[0].destination.host: this leads through a service of the cluster, as no ServiceEntry has the host {gateway}, \
         while egress originates TLS where the application is; lead to a.com and its port for TLS instead, or add a ServiceEntry if {gateway} \
         is none"
    );
    assert_eq!(outcome(&text), expected);
}

#[test]
fn where_the_application_chooses_labels_do_not_matter() {
    let subset = "kind: DestinationRule\napiVersion: networking.istio.io/v1\nmetadata: {name: x}\nspec: {host: a.com, trafficPolicy: \
                  {tls: {mode: SIMPLE}}, subsets: [{name: v1, labels: {version: v1}}]}\n---\n";
    let service = service("a.com", "{route: [{destination: {host: a.com, subset: v1}}]}");
    assert_eq!(outcome(&(entry("a.com", NONE) + subset + &service)), "a.com:80 -> original:443 verify=a.com (@14)");
}

#[test]
fn who_gets_no_requests_is_told_why() {
    let known = entry("a.com", HTTP) + &destination("a.com", SIMPLE);
    let route = |matched: &str| service("a.com", &format!("{{match: [{matched}], directResponse: {{status: 403}}}}"));
    let by_rule = "a.com:80 -> 443 verify=a.com (@9)";
    let port = "warning @14: spec.hosts[0]: no route is for a port of a.com with HTTP (80), so this does nothing; correct the port in a match, \
                or leave it out";
    let gateways = "warning @14: spec.hosts[0]: the routes for a.com are for gateways alone, so this does nothing here; add `mesh` to the \
                    gateways of a match, if that is meant for applications";
    for (matched, expected) in
        [("{port: 8080}", port), ("{gateways: [g]}", gateways), ("{gateways: [g]}, {port: 8080}", port)]
    {
        assert_eq!(outcome(&(known.clone() + &route(matched))), format!("{by_rule}\n{expected}"), "{matched}");
    }
    assert_eq!(outcome(&(known + &route("{port: 80}"))), "a.com:80 -> answered (@14)");
    // A host without an entry has one port.
    assert_eq!(outcome(&route("{port: 8080}")), port.replace("@14", "@4"));

    // One that a wildcard has can get there with a rule of its own.
    let ports = NONE.replace("80,", "8080,");
    let wildcard = entry("*.a.com", &ports) + &destination("*.a.com", SIMPLE);
    let found = outcome(&(wildcard + &route("{port: 8080}").replace("a.com", "www.a.com")));
    assert!(found.contains("what is said of *.a.com at @9 counts, which has the host too"), "{found}");
}
