//! What `Secret`s come to.

use super::*;

fn secret(name: &str, entries: &str) -> String {
    format!("kind: Secret\napiVersion: v1\nmetadata: {{name: {name}}}\nstringData: {{{entries}}}\n---\n")
}

/// The outcome for `a.com` with this `tls`, without the warning that Istio's sidecars would do nothing.
fn outcome_with(tls: &str, secrets: &[(&str, &str)]) -> String {
    let secrets: String = secrets.iter().map(|(name, entries)| secret(name, entries)).collect();
    let rule = destination("a.com", &format!("tls: {{{tls}}}"));
    let rule = rule.replace("spec: {", "spec: {workloadSelector: {matchLabels: {app: x}}, ");
    let found = outcome(&(entry("a.com", HTTP) + &rule + &secrets));
    let lines = found.lines().filter(|line| !line.contains("workloadSelector is in force in Kubernetes alone"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn secrets_are_read_as_istio_reads_them() {
    const SIMPLE: &str = "mode: SIMPLE, credentialName: s";
    const MUTUAL: &str = "mode: MUTUAL, credentialName: s";
    let place = "@9: spec.trafficPolicy.tls";
    for (tls, secrets, expected) in [
        (SIMPLE, &[("s", "ca.crt: a")][..], "a.com:80 -> 443 verify=a.com roots=ca.crt of Secret s (@9)".to_owned()),
        (
            SIMPLE,
            &[("s", "cacert: a, crl: r")],
            "a.com:80 -> 443 verify=a.com roots=cacert of Secret s crl=crl of Secret s (@9)".to_owned(),
        ),
        (
            MUTUAL,
            &[("s", "tls.crt: c, tls.key: k"), ("s-cacert", "ca.crt: a, ca.crl: r")],
            "a.com:80 -> 443 verify=a.com roots=ca.crt of Secret s-cacert crl=ca.crl of Secret s-cacert \
             client=tls.crt of Secret s+tls.key of Secret s (@9)"
                .to_owned(),
        ),
        // What revokes is not lost because it is in the other one.
        (
            SIMPLE,
            &[("s", "ca.crt: a, ca.crl: r"), ("s-cacert", "ca.crt: a")],
            "a.com:80 -> 443 verify=a.com roots=ca.crt of Secret s-cacert crl=ca.crl of Secret s (@9)".to_owned(),
        ),
        (
            SIMPLE,
            &[("s", "ca.crt: a"), ("s-cacert", "ca.crt: b")],
            format!(
                "{place}.credentialName: ca.crt of Secret s-cacert and ca.crt of Secret s are not the same; remove one of them"
            ),
        ),
        (
            SIMPLE,
            &[("s", "ca.crt: a, ca.crl: r, crl: q")],
            format!(
                "{place}.credentialName: ca.crl of Secret s and crl of Secret s are not the same; remove one of them"
            ),
        ),
        (
            "mode: SIMPLE, credentialName: s, caCrl: crl.pem",
            &[("s", "ca.crt: a, ca.crl: r")],
            format!("{place}.caCrl: the Secret of credentialName says what is revoked, too; remove one of them"),
        ),
        (
            "mode: SIMPLE, credentialName: s, caCrl: crl.pem",
            &[("s", "ca.crt: a")],
            "a.com:80 -> 443 verify=a.com roots=ca.crt of Secret s crl=/etc/egress/crl.pem (@9)".to_owned(),
        ),
        (
            SIMPLE,
            &[("other", "ca.crt: a")],
            format!("{place}.credentialName: there is no Secret s in namespace default in these files; add it"),
        ),
        (
            MUTUAL,
            &[("s", "ca.crt: a, tls.crt: c")],
            format!("{place}.credentialName: Secret s has no tls.key, as MUTUAL needs; add it"),
        ),
    ] {
        assert_eq!(outcome_with(tls, secrets), expected, "{tls} {secrets:?}");
    }
}

/// Of several rules for a host, each can be in another namespace.
#[test]
fn a_subset_s_secret_is_in_the_namespace_of_its_rule() {
    let within = |namespace: &str, text: String| {
        text.replace("metadata: {name: ", &format!("metadata: {{namespace: {namespace}, name: "))
    };
    let endpoints = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}], resolution: STATIC, endpoints: [{address: \
                     203.0.113.7, labels: {v: one}}]";
    let subset = "kind: DestinationRule\napiVersion: networking.istio.io/v1\nmetadata: {name: y}\nspec: {host: a.com, subsets: \
                  [{name: v1, labels: {v: one}, trafficPolicy: {tls: {mode: SIMPLE, credentialName: s}}}]}\n---\n";
    let service = "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {name: x}\nspec: {hosts: [a.com], http: \
                   [{route: [{destination: {host: a.com, subset: v1}}]}]}\n---\n";
    let text = entry("a.com", endpoints)
        + &within("one", destination("a.com", SIMPLE))
        + &within("two", subset.to_owned())
        + service
        + &within("two", secret("s", "ca.crt: a"));
    let found = outcome(&text);
    let rule = found.lines().next().unwrap_or_default();
    assert_eq!(rule, "a.com:80 -> 203.0.113.7:443 verify=a.com roots=ca.crt of Secret s (@19)", "{found}");
}
