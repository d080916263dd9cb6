//! Hosts below a wildcard with TLS that are to be left in clear.

use super::{
    nothing_lost::{NONE, service, to},
    *,
};

/// As in Istio the most specific rule counts, and who writes DISABLE there means it.
#[test]
fn a_host_below_a_wildcard_with_tls_leaves_in_clear_if_the_user_says_so() {
    const DISABLE: &str = "tls: {mode: DISABLE}";
    let clear =
        "ports: [{number: 80, name: a, protocol: HTTP}, {number: 81, name: b, protocol: HTTP, targetPort: 443}]";
    let [none, dns] = ["NONE", "DNS"].map(|resolution| format!("{clear}, resolution: {resolution}"));
    let wildcard = entry("*.a.com", NONE) + &destination("*.a.com", SIMPLE);
    let by_wildcard = "*.a.com:80 -> original:443 verify=request (@9)";
    let not_to = "warning @14: spec.ports[1].targetPort: nothing originates TLS for port 81 of www.a.com, so its traffic is left as it is: \
                  in clear text to port 81, not to 443; add a DestinationRule";
    let own = entry("www.a.com", &dns);
    for (text, expected) in [
        (
            wildcard.clone() + &own + &destination("www.a.com", DISABLE),
            format!("{by_wildcard}\nwww.a.com:80 in clear (@19)\n{not_to}"),
        ),
        // Of one port, and the other way round.
        (
            wildcard.clone()
                + &own
                + &destination("www.a.com", &format!("{SIMPLE}, portLevelSettings: [{{port: {{number: 80}}, {DISABLE}}}]")),
            format!("www.a.com:81 -> 443 verify=www.a.com (@19)\n{by_wildcard}\nwww.a.com:80 in clear (@19)"),
        ),
        (
            entry("*.a.com", &none) + &destination("*.a.com", DISABLE) + &entry("www.a.com", HTTP) + &destination("www.a.com", SIMPLE),
            "www.a.com:80 -> 443 verify=www.a.com (@19)\nwarning @4: spec.ports[1].targetPort: nothing originates TLS for port 81 of *.a.com, so \
             its traffic is left as it is: in clear text to port 81, not to 443; add a DestinationRule"
                .to_owned(),
        ),
        // By a wildcard within the wildcard, for all that it has.
        (
            wildcard.clone()
                + &entry("*.b.a.com", NONE).replace(", targetPort: 443", "")
                + &destination("*.b.a.com", DISABLE)
                + &entry("www.b.a.com", NONE).replace(", targetPort: 443", "")
                + &destination("www.b.a.com", "loadBalancer: {simple: RANDOM}"),
            format!("{by_wildcard}\nwww.b.a.com:80 in clear (@19)\n*.b.a.com:80 in clear (@19)"),
        ),
        // What is said of as many hosts is not said of this one.
        (
            entry("b.com", HTTP)
                + &destination("b.com", SIMPLE)
                + &entry("*.a.com", NONE)
                + &service("*.a.com", &to("b.com"))
                + &destination("*.a.com", DISABLE)
                + &service("www.a.com", &to("www.a.com"))
                + &entry("www.a.com", HTTP),
            "@34: spec.ports[0].number: requests for www.a.com and port 80 would go to b.com, by what is said of *.a.com at @19, \
             which has them too, whatever there is for www.a.com itself; add a DestinationRule with `tls` for www.a.com, be it with mode \
             DISABLE, or leave its port out"
                .to_owned(),
        ),
        // It is redirected with the others.
        (
            wildcard.clone()
                + &entry("www.a.com", "ports: [{number: 80, name: a}], resolution: DNS")
                + &destination("www.a.com", DISABLE),
            format!(
                "{by_wildcard}\nwww.a.com:80 in clear (@19)\nwarning @14: spec.ports[0].number: port 80 has no protocol and is taken for \
                 HTTP: anything else is refused there; say so by protocol HTTP, or by TCP or HTTPS if it is that"
            ),
        ),
        // What makes TLS there itself is refused.
        (
            entry("*.a.com", "ports: [{number: 443, name: a, protocol: HTTP}], resolution: NONE")
                + &destination("*.a.com", SIMPLE)
                + &entry("www.a.com", "ports: [{number: 443, name: a, protocol: HTTP}], resolution: DNS")
                + &destination("www.a.com", DISABLE),
            format!(
                "*.a.com:443 -> original:443 verify=request (@9)\nwww.a.com:443 in clear (@19)\nwarning @4: {said}\nwarning @14: {said}",
                said = "spec.ports[0].number: port 443 is said to be HTTP: TLS that applications make there themselves is refused; use protocol \
                        HTTPS if they do"
            ),
        ),
        // Its routes are its own, too.
        (
            wildcard.clone()
                + &entry("www.a.com", HTTP.replace(", targetPort: 443", "").as_str())
                + &destination("www.a.com", DISABLE)
                + &service("www.a.com", &to("www.a.com")),
            format!(
                "{by_wildcard}\nwww.a.com:80 in clear (@19)\nwarning @24: spec.hosts[0]: no request for www.a.com is sent on over TLS by this, so \
                 it is left alone and goes to where it was going; add a DestinationRule with `tls` for a destination"
            ),
        ),
        // It has no ports.
        (
            wildcard.clone() + &destination("www.a.com", DISABLE),
            format!(
                "{by_wildcard}\nwarning @14: spec.host: no ServiceEntry has port 80 of www.a.com, so this does nothing there: its requests go over TLS, \
                 by what is said of *.a.com at @9; add one if they are to leave in clear"
            ),
        ),
        // It has another one.
        (
            wildcard.clone() + &destination("www.a.com", DISABLE) + &entry("www.a.com", "ports: [{number: 81, name: a, protocol: HTTP}], resolution: DNS"),
            format!(
                "{by_wildcard}\nwarning @14: spec.host: no ServiceEntry has port 80 of www.a.com, so this does nothing there: its requests go \
                 over TLS, by what is said of *.a.com at @9; add one if they are to leave in clear"
            ),
        ),
        // What the wildcard's TLS is not for anyway is nothing to say.
        (
            wildcard.clone() + &destination("www.a.com", &format!("portLevelSettings: [{{port: {{number: 81}}, {DISABLE}}}]")),
            by_wildcard.to_owned(),
        ),
        (destination("www.a.com", DISABLE), String::new()),
    ] {
        assert_eq!(outcome(&text), expected, "{text}");
    }
}

/// Others would be in clear by a word that is not for them.
#[test]
fn what_disables_tls_for_some_pods_makes_no_exception_for_all() {
    let clear = HTTP.replace(", targetPort: 443", "");
    let [wildcard, own] = [entry("*.a.com", NONE) + &destination("*.a.com", SIMPLE), entry("www.a.com", &clear)];
    let disabled = destination("www.a.com", "tls: {mode: DISABLE}");
    let limited = |text: &str, by: &str| text.replace("{host: 'www.a.com',", &format!("{{host: 'www.a.com', {by},"));
    let exported = own.replace("spec: {", "spec: {exportTo: [team], ");
    for (text, limit) in [
        (own.clone() + &limited(&disabled, "workloadSelector: {matchLabels: {app: a}}"), "workloadSelector at @19"),
        (own.clone() + &limited(&disabled, "exportTo: ['.']"), "exportTo at @19"),
        (exported + &disabled, "exportTo at @14"),
        (own.clone() + &limited(&disabled, "exportTo: ['*']"), ""),
        (
            own.clone() + &disabled.replace("{name: x}", "{name: x, namespace: team}"),
            "namespace, default where none is written, of the DestinationRule at @19",
        ),
        // What asks for TLS holds for all of them.
        (own.replace("spec: {", "spec: {exportTo: [team], "), ""),
        (own.clone() + &limited(&destination("www.a.com", SIMPLE), "exportTo: [team]"), ""),
    ] {
        let found = outcome(&(wildcard.clone() + &text));
        let by_wildcard = "*.a.com:80 -> original:443 verify=request (@9)\n";
        assert!(found.contains(by_wildcard), "{found}");
        let is_disabled = text.contains("DISABLE");
        assert_eq!(found.contains("www.a.com:80 in clear"), limit.is_empty() && is_disabled, "{found}");
        if let Some(said) = found.lines().find(|line| line.contains("is in force in Kubernetes alone")) {
            let all = "here this holds for all applications";
            let but = ", but mode DISABLE makes no exception by it to the TLS of a wildcard";
            assert!(said.ends_with(&format!("{all}{}", if is_disabled { but } else { "" })), "{found}");
        } else {
            assert!(["exportTo: ['*']", "namespace: team"].iter().any(|it| text.contains(it)), "{found}");
        }
        let expected = format!(
            "requests for www.a.com and port 80 go over TLS all the same, by what is said of *.a.com at @9, which has them too, as mode \
             DISABLE at @19 is for some pods alone by the {limit}, and here one rule is for all; change that if they are to leave in clear \
             from all pods"
        );
        assert_eq!(found.contains(&expected), !limit.is_empty(), "{found}");
    }
}

/// In Istio a client has the rules of its own namespace first, then those of the service's, then those of the root namespace.
#[test]
fn what_disables_tls_is_for_all_if_no_namespace_has_it_otherwise() {
    let clear = HTTP.replace(", targetPort: 443", "");
    let within =
        |namespace: &str, text: String| text.replace("{name: x}", &format!("{{name: x, namespace: {namespace}}}"));
    let all = |namespace: &str| within(namespace, entry("*.a.com", NONE));
    let tls = |namespace: &str| within(namespace, destination("*.a.com", SIMPLE));
    let own = |namespace: &str| within(namespace, entry("www.a.com", &clear));
    let here = |namespace: &str| own(namespace).replace("spec: {", "spec: {exportTo: [.], ");
    let other_port = |namespace: &str| own(namespace).replace("80", "8080");
    let disabled = |namespace: &str| within(namespace, destination("www.a.com", "tls: {mode: DISABLE}"));
    for (documents, is_excepted) in [
        (vec![all("a"), tls("a"), own("a"), disabled("a")], true),
        // Where the services are.
        (vec![all("a"), tls("a"), own("a"), own("b"), disabled("b")], false),
        (vec![all("a"), tls("a"), own("a"), here("b"), disabled("b")], false),
        (vec![all("a"), tls("a"), own("b"), other_port("a"), disabled("a")], false),
        (vec![all("a"), tls("a"), own("a"), own("b"), disabled("b"), disabled("a")], true),
        (vec![all("a"), tls("a"), own("a"), here("a"), disabled("a")], false),
        (vec![all("a"), tls("a"), here("a"), disabled("a")], false),
        // Where the TLS is.
        (vec![all("b"), tls("b"), own("a"), disabled("a")], false),
        (vec![all("b"), tls("b"), own("a"), disabled("a"), disabled("b")], true),
        (vec![all("a"), tls("a"), tls("b"), own("a"), disabled("a")], false),
        (vec![all("b"), tls("istio-system"), own("a"), disabled("a")], true),
        (vec![all("a"), tls("a"), own("a"), disabled("istio-system")], false),
        (vec![all("a"), tls("istio-system"), own("a"), own("b"), disabled("istio-system")], true),
    ] {
        let backwards: Vec<_> = documents.iter().rev().cloned().collect();
        for text in [documents.concat(), backwards.concat()] {
            let found = outcome(&text);
            assert!(found.contains("*.a.com:80 -> original:443"), "{found}\n{text}");
            assert_eq!(found.contains("www.a.com:80 in clear"), is_excepted, "{found}\n{text}");
            let kept = "requests for www.a.com and port 80 go over TLS all the same";
            let why = [
                "namespace of the DestinationRule at @",
                "namespace of the DestinationRule with TLS at @",
                "exportTo at @",
            ];
            let is_named = found.contains(kept) && why.iter().any(|why| found.contains(why));
            assert_ne!(is_named, is_excepted, "{found}\n{text}");
        }
    }
}

/// The wildcard's TLS is that of a host whose own rule asks for it, and forgets the port.
#[test]
fn a_host_that_asks_for_tls_is_not_left_in_clear_by_a_wildcard_within_the_wildcard() {
    let clear = HTTP.replace(", targetPort: 443", "");
    let forgets = format!(
        "{SIMPLE}, portLevelSettings: [{{port: {{number: 80}}, connectionPool: {{tcp: {{maxConnections: 9}}}}}}]"
    );
    let wildcards =
        entry("*.a.com", NONE) + &destination("*.a.com", SIMPLE) + &destination("*.b.a.com", "tls: {mode: DISABLE}");
    let own = entry("www.b.a.com", &clear) + &destination("www.b.a.com", &forgets);
    let found = outcome(&(wildcards.clone() + &own));
    assert!(found.contains("requests for www.b.a.com and port 80 go over TLS all the same"), "{found}");
    assert!(!found.contains("in clear ("), "{found}");
    // Requests follow the closest that has the port.
    let expected = "@24: spec.ports[0].number: requests for www.b.a.com and port 80 would leave in clear, by what is said of *.b.a.com at @14, \
                    which has them too; add a DestinationRule for www.b.a.com that says for all pods what `tls` this port has, be it mode \
                    DISABLE";
    let closer = NONE.replace(", targetPort: 443", "");
    let text = wildcards + &entry("*.b.a.com", &closer) + &own;
    assert_eq!(outcome(&text), expected, "{text}");
}

/// What is left alone would go on in clear to where its own routes send nothing.
#[test]
fn what_is_to_be_left_in_clear_has_no_routes_that_answer() {
    let clear = HTTP.replace(", targetPort: 443", "");
    let wildcard = entry("*.a.com", NONE) + &destination("*.a.com", SIMPLE);
    let refused = |host: &str| {
        format!(
            "@24: spec.http[0]: requests for port 80 of {host} would leave in clear, by mode DISABLE at @19, and not be answered by this; \
             remove this route, or have TLS originated for {host}"
        )
    };
    let aborted =
        |to: String| to.replace("{route", "{fault: {abort: {httpStatus: 503, percentage: {value: 9}}}, route");
    let both = format!("{{match: [{{uri: {{exact: /}}}}], redirect: {{scheme: https}}}}, {}", to("b.com"));
    for (excepted, host, route, is_refused) in [
        ("www.a.com", "www.a.com", aborted(to("www.a.com")), true),
        ("www.a.com", "www.a.com", both.clone(), true),
        ("www.a.com", "www.a.com", "{match: [{port: 81}], redirect: {scheme: https}}".to_owned(), false),
        ("www.a.com", "www.a.com", to("www.a.com"), false),
        // Of a host below, without a port of its own.
        ("*.b.a.com", "*.b.a.com", both.clone(), true),
        ("*.b.a.com", "www.b.a.com", aborted(to("b.com")), true),
        ("*.b.a.com", "www.b.a.com", both.clone(), true),
        ("*.b.a.com", "*.c.b.a.com", both.clone(), true),
        ("*.b.a.com", "www.b.a.com", to("b.com"), false),
    ] {
        let own = entry(
            excepted,
            if excepted.starts_with('*') {
                "ports: [{number: 80, name: a, protocol: HTTP}], resolution: NONE"
            } else {
                &clear
            },
        ) + &destination(excepted, "tls: {mode: DISABLE}");
        let elsewhere = entry("b.com", "ports: [{number: 80, name: a, protocol: HTTP}], resolution: DNS");
        let other_port = entry("www.b.a.com", "ports: [{number: 8080, name: a, protocol: HTTP}], resolution: DNS");
        for more in [elsewhere.clone(), elsewhere + &other_port] {
            let text = wildcard.clone() + &own + &service(host, &route) + &more;
            let found = outcome(&text);
            assert_eq!(found.contains(&refused(host)), is_refused, "{text}: {found}");
            assert_ne!(found.contains(&format!("{excepted}:80 in clear (@19)")), is_refused, "{text}: {found}");
            assert!(!found.contains("what is said of *.a.com at @9 counts"), "{text}: {found}");
        }
    }
}

/// As in Istio, whatever is said of TLS there: nothing leaves.
#[test]
fn what_is_only_answered_is_not_left_in_clear() {
    let clear = HTTP.replace(", targetPort: 443", "");
    let wildcard = entry("*.a.com", NONE) + &destination("*.a.com", SIMPLE);
    let closer =
        entry("*.b.a.com", &NONE.replace(", targetPort: 443", "")) + &destination("*.b.a.com", "tls: {mode: DISABLE}");
    let own = entry("www.a.com", &clear) + &destination("www.a.com", "tls: {mode: DISABLE}");
    let (by_wildcard, in_clear) = ("*.a.com:80 -> original:443 verify=request (@9)", "*.b.a.com:80 in clear (@19)");
    for (own, host, answered, exception) in [
        (&closer, "www.b.a.com", "www.b.a.com:80 -> answered (@24)", Some(in_clear)),
        (&closer, "*.c.b.a.com", "*.c.b.a.com:80 -> answered (@24)", Some(in_clear)),
        (&closer, "*.b.a.com", "*.b.a.com:80 -> answered (@24)", None),
        (&own, "www.a.com", "www.a.com:80 -> answered (@24)", None),
    ] {
        for route in ["{redirect: {scheme: https}}", "{match: [{uri: {exact: /}}], directResponse: {status: 403}}"] {
            let text = wildcard.clone() + own + &service(host, route);
            let found = outcome(&text);
            let lines: Vec<_> = found.lines().filter(|line| !line.starts_with("warning")).collect();
            assert!(lines.contains(&by_wildcard), "{text}: {found}");
            assert!(lines.contains(&answered), "{text}: {found}");
            assert_eq!(found.contains("in clear (@"), exception.is_some(), "{text}: {found}");
            assert_eq!(lines.len(), 2 + exception.iter().count(), "{text}: {found}");
        }
    }
    // What has other ports of its own is answered on those alone.
    const OTHER: &str = "ports: [{number: 8080, name: a, protocol: HTTP, targetPort: 443}], resolution: DNS";
    let of_other = format!("portLevelSettings: [{{port: {{number: 8080}}, {SIMPLE}}}]");
    for more in [String::new(), destination("www.b.a.com", &of_other)] {
        let answered = service("www.b.a.com", "{redirect: {scheme: https}}");
        let found = outcome(&(wildcard.clone() + &closer + &answered + &entry("www.b.a.com", OTHER) + &more));
        let expected =
            "@24: spec.http[0]: requests for port 80 of www.b.a.com would leave in clear, by mode DISABLE at @19";
        assert!(found.contains(expected), "{found}");
    }
}

/// Of a host with such a port it is said there.
#[test]
fn what_asks_for_tls_is_not_left_in_clear_by_a_wildcard_for_want_of_a_port() {
    let closer = NONE.replace(", targetPort: 443", "");
    let wildcards = entry("*.a.com", NONE)
        + &destination("*.a.com", SIMPLE)
        + &entry("*.b.a.com", &closer)
        + &destination("*.b.a.com", "tls: {mode: DISABLE}");
    let of_81 = format!("portLevelSettings: [{{port: {{number: 81}}, {SIMPLE}}}]");
    let other_port =
        entry("www.b.a.com", "ports: [{number: 81, name: a, protocol: HTTP, targetPort: 443}], resolution: DNS");
    for (host, policy, more, is_refused) in [
        ("www.b.a.com", SIMPLE, String::new(), true),
        ("*.c.b.a.com", SIMPLE, String::new(), true),
        ("www.b.a.com", SIMPLE, other_port, true),
        // It is not for this port.
        ("www.b.a.com", &of_81, String::new(), false),
        ("www.b.a.com", "loadBalancer: {simple: RANDOM}", String::new(), false),
        // What is closer is no exception.
        ("www.b.a.com", SIMPLE, entry("www.b.a.com", HTTP), false),
        ("www.b.a.com", SIMPLE, service("www.b.a.com", "{redirect: {scheme: https}}"), false),
        ("www.a.com", SIMPLE, String::new(), false),
    ] {
        let text = wildcards.clone() + &destination(host, policy) + &more;
        let found = outcome(&text);
        let expected = format!(
            "@24: spec.host: requests for {host} and port 80 would leave in clear, by what is said of *.b.a.com at @19, as no ServiceEntry has \
             this port of {host}; add one"
        );
        assert_eq!(found.contains(&expected), is_refused, "{text}: {found}");
        assert_ne!(found.contains("*.b.a.com:80 in clear (@19)"), is_refused, "{text}: {found}");
    }
}

/// Files may be on their way.
#[test]
fn a_policy_with_another_exception_has_lost_something() {
    let policy = |text: &str| {
        let documents = config::parse(text, Path::new("rules.yaml")).expect("valid documents");
        Policy::compile(&documents).expect("valid rules").0
    };
    let wildcard = entry("*.a.com", NONE) + &destination("*.a.com", SIMPLE);
    let except = |host: &str| entry(host, HTTP) + &destination(host, "tls: {mode: DISABLE}");
    let [none, one, both] = [String::new(), except("b.a.com"), except("c.a.com") + &except("b.a.com")]
        .map(|exceptions| policy(&(wildcard.clone() + &exceptions)));
    assert!(none.covers(&one) && one.covers(&one) && one.covers(&both) && both.covers(&both));
    assert!(!one.covers(&none) && !both.covers(&one));
    // What is new as a whole had no TLS before.
    assert!(one.covers(&policy(&entry("a.com", HTTP))));
}
