//! Names without dots, which Istio completes by the namespace of the rule that has them.

use super::{
    clusters::{NONE, resource},
    *,
};

const FULL: &str = "payments.prod.svc.cluster.local";

fn entry_of(hosts: &str) -> String {
    resource("ServiceEntry", "prod", &format!("hosts: [{hosts}], {HTTP}"))
}

fn rule_for(namespace: &str, host: &str) -> String {
    resource("DestinationRule", namespace, &format!("host: {host}, trafficPolicy: {{{SIMPLE}}}"))
}

/// One whose `/admin` is answered.
fn service_for(namespace: &str, host: &str, to: &str) -> String {
    let admin = "{match: [{uri: {prefix: /admin}}], directResponse: {status: 403}}";
    let route = format!("{{route: [{{destination: {{host: {to}}}}}]}}");
    resource("VirtualService", namespace, &format!("hosts: [{host}], http: [{admin}, {route}]"))
}

/// What is said of a name whose TLS is that of the full one, at a line and field.
fn in_clear(place: &str, full: &str) -> String {
    format!(
        "warning @{place}: requests that say payments stay in clear, as no ServiceEntry has that beside {full}; list it under `hosts` of one if \
         applications send it"
    )
}

#[test]
fn they_are_services_of_the_rule_s_namespace() {
    let routed = format!("{FULL}:80 -> 443 verify={FULL} (@14)");
    // Requests can say either name.
    let both = format!("payments:80 -> 443 verify={FULL} (@14)\n{routed}");
    let is_in_clear = in_clear("9: spec.host", FULL);
    let listed_twice = format!("payments, {FULL}");
    for (text, expected, warning) in [
        (service_for("prod", "payments", FULL), &both, None),
        (service_for("prod", "payments", "payments"), &both, None),
        (service_for("prod", &listed_twice, "payments"), &both, None),
        (service_for("prod", FULL, "payments"), &routed, Some(&is_in_clear)),
    ] {
        assert_eq!(outcome(&(entry_of(FULL) + &rule_for("prod", FULL) + &text)), *expected, "{text}");
        let expected = [Some(expected), warning].into_iter().flatten().cloned().collect::<Vec<_>>().join("\n");
        assert_eq!(outcome(&(entry_of(FULL) + &rule_for("prod", "payments") + &text)), expected, "{text}");
    }
    let by_rule = format!("{FULL}:80 -> 443 verify={FULL} (@9)");
    let by_short = format!("{by_rule}\n{is_in_clear}");
    assert_eq!(outcome(&(entry_of(FULL) + &rule_for("prod", "payments"))), by_short);
    // Two for the same host are two, however it is written.
    let disabled = rule_for("prod", "payments").replace("SIMPLE", "DISABLE");
    let twice = outcome(&(entry_of(FULL) + &rule_for("prod", FULL) + &disabled));
    let conflict = format!("@14: spec.host: {FULL} has a DestinationRule already, at @9, which differs in tls");
    assert!(twice.contains(&conflict), "{twice}");

    // In another namespace another service has the name.
    let elsewhere = outcome(&(entry_of(FULL) + &rule_for("test", "payments")));
    assert!(elsewhere.contains("no ServiceEntry has the host payments, so this does nothing"), "{elsewhere}");
    let elsewhere = outcome(&(entry_of(FULL) + &rule_for("prod", FULL) + &service_for("test", "payments", "payments")));
    assert!(elsewhere.starts_with(&by_rule) && elsewhere.contains("no request for payments is sent"), "{elsewhere}");
}

#[test]
fn they_can_be_below_a_wildcard() {
    let wildcard = resource("ServiceEntry", "prod", &format!("hosts: ['*.prod.svc.cluster.local'], {NONE}"));
    let text = wildcard + &rule_for("prod", "'*.prod.svc.cluster.local'");
    let by_wildcard = "*.prod.svc.cluster.local:80 -> original:443 verify=request (@9)";
    let answer = resource("VirtualService", "prod", "hosts: [payments], http: [{directResponse: {status: 403}}]");
    let is_in_clear = in_clear("14: spec.hosts[0]", FULL);
    let expected = format!("{FULL}:80 -> answered (@14)\n{by_wildcard}\n{is_in_clear}");
    assert_eq!(outcome(&(text.clone() + &answer)), expected);

    // What leads to TLS is for the name as it is written, too.
    let other = entry("a.com", HTTP) + &destination("a.com", SIMPLE);
    let found = outcome(&(text + &other + &service_for("prod", "payments", "a.com")));
    let rules: Vec<_> = found.lines().filter(|line| line.contains("payments")).collect();
    assert_eq!(
        rules,
        ["payments:80 -> 443 verify=a.com (@24)".to_owned(), format!("{FULL}:80 -> 443 verify=a.com (@24)")]
    );
}

#[test]
fn routes_are_for_both_names() {
    let other = entry("a.com", HTTP) + &destination("a.com", SIMPLE);
    let routes = |host: &str| service_for("prod", host, "a.com");
    let of_both = format!("payments:80 -> 443 verify=a.com (@14)\n{FULL}:80 -> 443 verify=a.com (@14)");
    let expected = format!("a.com:80 -> 443 verify=a.com (@9)\n{of_both}");
    assert_eq!(outcome(&(other.clone() + &routes("payments"))), expected);
    // Also where there is an entry for the full one, be it without TLS.
    let expected = expected.replace("@14", "@19").replace("@9", "@14");
    assert_eq!(outcome(&(entry_of(FULL) + &other + &routes("payments"))), expected);
}

#[test]
fn where_an_entry_has_both_each_has_the_rules_that_name_it() {
    let both = entry_of(&format!("payments, {FULL}"));
    let named =
        rule_for("prod", "payments").replace("SIMPLE", &format!("SIMPLE, sni: {FULL}, subjectAltNames: [{FULL}]"));
    let rules = rule_for("prod", FULL) + &named;
    let expected = format!("payments:80 -> 443 sni={FULL} verify={FULL} (@14)\n{FULL}:80 -> 443 verify={FULL} (@9)");
    assert_eq!(outcome(&(both.clone() + &rules)), expected);
    let routed = service_for("prod", &format!("payments, {FULL}"), FULL);
    let expected = format!("payments:80 -> 443 verify={FULL} (@19)\n{FULL}:80 -> 443 verify={FULL} (@19)");
    assert_eq!(outcome(&(both.clone() + &rules + &routed)), expected);
    let services = service_for("prod", "payments", FULL) + &service_for("prod", FULL, FULL);
    let expected = format!("payments:80 -> 443 verify={FULL} (@14)\n{FULL}:80 -> 443 verify={FULL} (@19)");
    assert_eq!(outcome(&(both + &rule_for("prod", FULL) + &services)), expected);
}

/// Applications can send it as it is.
#[test]
fn one_that_an_entry_has_as_it_is_written_keeps_what_is_said_of_it() {
    let both = entry_of(&format!("payments, {FULL}"));
    let expected = format!("payments:80 -> 443 verify=payments (@9)\n{FULL}:80 -> 443 verify={FULL} (@9)");
    assert_eq!(outcome(&(both.clone() + &rule_for("prod", "payments"))), expected);
    let routed = format!("payments:80 -> 443 verify={FULL} (@14)\n{FULL}:80 -> 443 verify={FULL} (@14)");
    let service = service_for("prod", "payments", "payments");
    assert_eq!(outcome(&(both + &rule_for("prod", "payments") + &service)), routed);

    // TLS for the one is not lost by the other.
    let text = entry_of(FULL)
        + &resource("ServiceEntry", "test", &format!("hosts: [payments], {HTTP}"))
        + &rule_for("test", "payments")
        + &resource("VirtualService", "prod", "hosts: [a.com], http: [{route: [{destination: {host: payments}}]}]");
    let found = outcome(&text);
    assert!(found.starts_with("a.com:80 -> 443 verify=payments (@19)"), "{found}");
}

#[test]
fn what_is_said_of_a_configured_host_is_read_to_its_end() {
    let balanced = "host: payments, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}";
    let text = entry_of(FULL) + &rule_for("prod", FULL) + &resource("DestinationRule", "prod", balanced);
    let found = outcome(&text);
    assert!(found.contains("egress does not implement it"), "{found}");
    let elsewhere = outcome(
        &text.replace("name: x, namespace: prod}\nspec: {host: pay", "name: x, namespace: b}\nspec: {host: pay"),
    );
    assert!(elsewhere.contains("payments is taken for a service of the cluster"), "{elsewhere}");
}
