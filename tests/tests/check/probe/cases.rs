//! Origins of all kinds, and what is said of each.

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    nginx::{NginxBuilder, Site},
    openssl::OpenSslServer,
    pki::{Identity, Pki},
    testbed::Families,
};

use super::{DNS, SIMPLE, only_code, probe, probe_json, rule};

/// An origin and what is said of it.
struct Case {
    host: &'static str,
    families: Families,
    origin: Origin,
    tls: &'static str,
    code: i32,
    /// Of the only finding.
    finding: &'static str,
    /// Of the IPv4 address; empty if there is none.
    outcome: &'static str,
    cause: &'static str,
    says: &'static [&'static str],
}

enum Origin {
    Nginx(fn(&Pki, &str) -> Result<Identity>, &'static str),
    InClear,
    OpenSsl(&'static [&'static str]),
    Nobody,
}

const fn refused(host: &'static str, origin: Origin, cause: &'static str, says: &'static [&'static str]) -> Case {
    let (families, tls) = (Families::V4, SIMPLE);
    Case { host, families, origin, tls, code: 1, finding: "EG0403", outcome: "refused", cause, says }
}

const fn accepted(host: &'static str, origin: Origin, finding: &'static str, says: &'static [&'static str]) -> Case {
    Case { code: 0, finding, outcome: "verified", ..refused(host, origin, "", says) }
}

fn own(pki: &Pki, host: &str) -> Result<Identity> {
    pki.server(&[host])
}

const CASES: [Case; 15] = [
    refused(
        "expired.example",
        Origin::Nginx(|pki, host| pki.expired(&[host]), ""),
        "certificate_expired",
        &[
            "expired on 2020-01-01 00:00:00 UTC; now is ",
            // What the origin has all the same.
            "\n        TLSv1.3, ",
            ", ALPN h2\n        CN=expired.example, issued by CN=egress test authority: trusted\n",
            "until 2020-01-01 00:00:00 UTC (",
            " days ago)\n            pin sha256/",
            "remedy: have the origin's operator replace the certificate",
        ],
    ),
    refused(
        "wrong.example",
        Origin::Nginx(|pki, _| pki.server(&["right.example"]), ""),
        "wrong_name",
        &["not valid for wrong.example, but for right.example", "            for right.example\n"],
    ),
    refused(
        "untrusted.example",
        Origin::Nginx(|pki, host| pki.untrusted(&[host]), ""),
        "unknown_issuer",
        &[
            "not among this machine's",
            "\n        CN=untrusted.example, issued by CN=egress test authority: untrusted\n",
            // Sent along.
            "\n        CN=egress test authority: untrusted, issued by CN=egress test authority: untrusted\n",
        ],
    ),
    refused("clear.example", Origin::InClear, "not_tls", &["HTTP in clear", "let targetPort lead to a port with TLS"]),
    refused(
        "demanding.example",
        Origin::OpenSsl(&["-Verify", "1", "-CAfile", "@CLIENT_CA@", "-tls1_3"]),
        "client_certificate_required",
        &[
            "TLS with 198.51.100.5:443 ended: ",
            "alert certificate_required",
            "asks for a client certificate, and the rule has none",
        ],
    ),
    refused(
        "demanding-tls12.example",
        Origin::OpenSsl(&["-Verify", "1", "-CAfile", "@CLIENT_CA@", "-tls1_2"]),
        "client_certificate_required",
        &["alert handshake_failure"],
    ),
    refused("old.example", Origin::OpenSsl(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]), "tls_version", &["RFC 8996"]),
    Case {
        finding: "EG0402",
        outcome: "unreachable",
        ..refused("nobody.example", Origin::Nobody, "connection_refused", &["unreachable (connection_refused): "])
    },
    Case {
        families: Families::Neither,
        finding: "EG0401",
        outcome: "",
        ..refused("nowhere.example", Origin::Nobody, "", &["cannot resolve nowhere.example: "])
    },
    accepted(
        "tls12.example",
        Origin::Nginx(own, "ssl_protocols TLSv1.2;"),
        "",
        &["TLSv1.2, ", " (not post-quantum), TLS_ECDHE_ECDSA_WITH_", "1 rule, 0 errors, 0 warnings"],
    ),
    accepted(
        "soon.example",
        Origin::Nginx(|pki, host| pki.expiring(&[host], 10), ""),
        "EG0251",
        &["(9 days left)", "warning [EG0251 expires-soon]", ": 9 more days"],
    ),
    accepted(
        "stray.example",
        Origin::Nginx(|pki, host| pki.beside_expired(&[host]), ""),
        "",
        &["CN=stray.example, issued by CN=egress test authority: trusted", "1 rule, 0 errors, 0 warnings"],
    ),
    // nginx goes on without it, and answers by an error.
    accepted(
        "asking.example",
        Origin::Nginx(own, "ssl_client_certificate @CLIENT_CA@; ssl_verify_client on;"),
        "EG0253",
        &["verified", "asks for a client certificate, and the rule has none"],
    ),
    // Of both families one has nobody.
    Case {
        families: Families::Both,
        ..accepted("half.example", Origin::OpenSsl(&[]), "EG0252", &["verified", "unreachable (connection_refused)"])
    },
    Case {
        tls: "{mode: SIMPLE, insecureSkipVerify: true}",
        outcome: "unverified",
        ..accepted(
            "skipped.example",
            Origin::Nginx(|pki, host| pki.self_signed(&[host]), ""),
            "EG0206",
            &["NOT VERIFIED, as the rule has it", "CN=skipped.example, issued by CN=skipped.example"],
        )
    },
];

#[test]
fn what_is_wrong_with_an_origin_is_an_error_and_what_it_has_is_shown() -> Result<()> {
    let builder = TestBed::builder("probe-bad");
    let bed = CASES.iter().fold(builder, |builder, case| builder.host_with(case.host, case.families)).build()?;
    let client_ca = bed.pki().client_ca_file().display().to_string();
    let mut nginx: NginxBuilder<'_> = bed.nginx();
    let mut servers = Vec::new();
    for Case { host, origin, .. } in &CASES {
        match origin {
            Origin::Nginx(certificate, directives) => {
                let site = Site::new(&[host], certificate(bed.pki(), host)?);
                nginx = nginx.site(site.directives(&directives.replace("@CLIENT_CA@", &client_ca)));
            }
            Origin::InClear => nginx = nginx.site(Site::new(&[host], own(bed.pki(), host)?).in_clear()),
            Origin::OpenSsl(arguments) => {
                let arguments: Vec<_> = arguments.iter().map(|text| text.replace("@CLIENT_CA@", &client_ca)).collect();
                let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
                servers.push(OpenSslServer::spawn(&bed, host, &own(bed.pki(), host)?, &arguments)?);
            }
            Origin::Nobody => {}
        }
    }
    let nginx = nginx.start()?;
    for server in &servers {
        server.wait_until_ready()?;
    }
    for case in &CASES {
        check(&bed, case).context(case.host)?;
    }
    // Where it speaks HTTP in clear, nginx may take a ClientHello for a bad request.
    let requests = nginx.requests()?;
    ensure!(requests.iter().all(|request| request.get("status") == "400"), "{requests:?}");
    Ok(())
}

fn check(bed: &TestBed, case: &Case) -> Result<()> {
    let rules = rule(case.host, DNS, case.tls, "", "");
    let output = probe(bed, &rules, &[])?;
    let text = output.text();
    ensure!(output.code() == case.code, "{text}");
    for expected in case.says {
        ensure!(text.contains(expected), "{expected:?} was expected in:\n{text}");
    }
    ensure!(case.finding.is_empty() || probe(bed, &rules, &["--strict"])?.code() == 1);

    let (code, report) = probe_json(bed, &rules, &[])?;
    ensure!((code, only_code(&report)?) == (case.code, case.finding), "{report:#}");
    for finding in report["diagnostics"].as_array().context("no diagnostics")? {
        ensure!(finding["location"]["line"] == 18 && finding["remedy"].is_string(), "{finding:#}");
    }
    let found = &report["probes"][0]["addresses"][0];
    ensure!(found["outcome"].as_str().unwrap_or_default() == case.outcome, "{report:#}");
    ensure!(found["failure"]["cause"].as_str().unwrap_or_default() == case.cause, "{report:#}");
    if case.outcome == "refused" {
        let details = found["failure"]["details"].as_str().unwrap_or_default();
        ensure!(report["diagnostics"][0]["reason"] == details, "{report:#}");
        // What follows is the time, which goes on.
        let details = details.split("; now is").next().unwrap_or_default();
        ensure!(
            !details.is_empty() && text.matches(details).count() == 2,
            "{details:?} was expected twice in:\n{text}"
        );
    }
    Ok(())
}
