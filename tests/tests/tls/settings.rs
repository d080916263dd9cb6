//! What the fields of a `tls` block do, one by one.

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    clients::CurlResult,
    openssl::OpenSslServer,
    origin::{Origin, Reply, ServerTls},
    pki::{Identity, Pki},
    testbed::Families,
};

use super::{DNS, SIMPLE, agent_without_test_ca, check_failure, configure, rule};

const HOST: &str = "edition.cnn.com";
const UNKNOWN: &str = "breaks off at CN=egress test authority";
const SELF_SIGNED: &str = "vouches for itself";

/// One `tls` block against one certificate.
struct Case {
    /// A letter, for the host and the error.
    name: char,
    tls: &'static str,
    certificate: fn(&Pki) -> Result<Identity>,
    /// The name that the origin is asked for; HOST stands for the rule's own.
    sni: &'static str,
    /// Why it is refused, if it is.
    refused: Option<&'static str>,
}

/// Runs all cases with one agent, each on a host of its own.
fn check(name: &str, cases: &[Case], extra_files: impl Fn(&TestBed, &std::path::Path) -> Result<()>) -> Result<()> {
    let host = |case: &Case| format!("{}.example", case.name);
    let bed = cases.iter().fold(TestBed::builder(name), |builder, case| builder.host(&host(case))).build()?;
    let mut origin = bed.embedded_origin().handler(|_| Reply::ok("fine"));
    for case in cases {
        let tls = ServerTls::new((case.certificate)(bed.pki())?);
        origin = origin.tls(&bed.sockets(&host(case), 443), &tls)?;
    }
    let origin: Origin = origin.start()?;
    let hosts: Vec<_> = cases.iter().map(host).collect();
    let tripwire = bed.tripwire(&hosts.iter().map(String::as_str).collect::<Vec<_>>())?;
    let rules: Vec<_> = cases.iter().map(|case| rule(&host(case), DNS, case.tls)).collect();
    let config = configure(&bed, &rules)?;
    extra_files(&bed, config.path())?;
    let _agent = agent_without_test_ca(&bed, &config)?;
    for case in cases {
        let host = host(case);
        let result: CurlResult = bed.curl(&format!("http://{host}/"))?.run()?;
        match case.refused {
            Some(cause) => {
                check_failure(&result, 502, "tls_certificate_error", cause).with_context(|| host.clone())?;
                ensure!(origin.requests().is_empty(), "{host}: {:?}", origin.requests());
            }
            None => {
                ensure!(result.statuses() == [200], "{host} with {}: {result:?}", case.tls);
                let request = origin.take_requests().pop().context("no request")?;
                ensure!(request.host == host, "{request:?}");
                let sni = request.tls.context("not over TLS")?.sni;
                let expected = if case.sni == HOST { host.as_str() } else { case.sni };
                ensure!(sni.as_deref() == Some(expected), "{host}: {sni:?} instead of {expected}");
            }
        }
    }
    tripwire.assert_silent()
}

#[test]
fn the_name_to_ask_for_and_the_names_to_verify() -> Result<()> {
    const CA: &str = "caCertificates: ca.pem";
    let not_valid = |name: &str| -> &'static str { format!("not valid for {name}").leak() };
    let case = |name, fields: &str, certificate, sni, refused| Case {
        name,
        tls: format!("{{mode: SIMPLE, {CA}{fields}}}").leak(),
        certificate,
        sni,
        refused,
    };
    let with_ca = |bed: &TestBed, dir: &std::path::Path| {
        fs::copy(bed.pki().ca_file(), dir.join("ca.pem")).context("copying the authority")?;
        Ok(())
    };
    let cases = [
        case('a', "", |pki| pki.server(&["a.example"]), HOST, None),
        case('b', ", sni: front.example", |pki| pki.server(&["front.example"]), "front.example", None),
        // The name asked for is also the one that is verified, which Istio would not do.
        case('c', ", sni: front.example", |pki| pki.server(&["c.example"]), "", Some(not_valid("front.example"))),
        case('d', ", subjectAltNames: [other.example]", |pki| pki.server(&["other.example"]), HOST, None),
        case(
            'e',
            ", subjectAltNames: [other.example]",
            |pki| pki.server(&["e.example"]),
            "",
            Some(not_valid("other.example")),
        ),
        case('f', ", subjectAltNames: [one.example, two.example]", |pki| pki.server(&["two.example"]), HOST, None),
        case(
            'g',
            ", sni: front.example, subjectAltNames: [other.example]",
            |pki| pki.server(&["other.example"]),
            "front.example",
            None,
        ),
        case(
            'h',
            ", sni: front.example, subjectAltNames: [other.example]",
            |pki| pki.server(&["front.example"]),
            "",
            Some(not_valid("other.example")),
        ),
        case('i', ", subjectAltNames: [203.0.113.7]", |pki| pki.server(&["203.0.113.7"]), HOST, None),
        // A wildcard certificate stands for one label.
        case('j', ", sni: deep.example.com", |pki| pki.server(&["*.example.com"]), "deep.example.com", None),
        case(
            'k',
            ", sni: too.deep.example.com",
            |pki| pki.server(&["*.example.com"]),
            "",
            Some(not_valid("too.deep.example.com")),
        ),
        // The names do not make up for the authority.
        case('l', ", subjectAltNames: [l.example]", |pki| pki.untrusted(&["l.example"]), "", Some(UNKNOWN)),
        case('m', ", sni: m.example", |pki| pki.expired(&["m.example"]), "", Some("expired on")),
    ];
    check("tls-names", &cases, with_ca)
}

#[test]
fn the_authorities_to_trust() -> Result<()> {
    let cases = [
        // Relative to the file that names it, and not among the agent's own roots.
        Case {
            name: 'a',
            tls: "{mode: SIMPLE, caCertificates: ca.pem}",
            certificate: |pki| pki.server(&["a.example"]),
            sni: HOST,
            refused: None,
        },
        Case { name: 'b', tls: SIMPLE, certificate: |pki| pki.server(&["b.example"]), sni: "", refused: Some(UNKNOWN) },
        // It stands instead of the others, not beside them.
        Case {
            name: 'c',
            tls: "{mode: SIMPLE, caCertificates: other.pem}",
            certificate: |pki| pki.server(&["c.example"]),
            sni: "",
            refused: Some(UNKNOWN),
        },
        Case {
            name: 'd',
            tls: "{mode: SIMPLE, caCertificates: both.pem}",
            certificate: |pki| pki.untrusted(&["d.example"]),
            sni: HOST,
            refused: None,
        },
        // The agent's own, though there is a file of the name.
        Case {
            name: 'e',
            tls: "{mode: SIMPLE, caCertificates: system}",
            certificate: |pki| pki.server(&["e.example"]),
            sni: "",
            refused: Some(UNKNOWN),
        },
        Case {
            name: 'f',
            tls: "{mode: SIMPLE, caCertificates: ./system}",
            certificate: |pki| pki.server(&["f.example"]),
            sni: HOST,
            refused: None,
        },
    ];
    check("tls-authorities", &cases, |bed, dir| {
        fs::copy(bed.pki().ca_file(), dir.join("system"))?;
        fs::copy(bed.pki().ca_file(), dir.join("ca.pem"))?;
        fs::copy(bed.pki().untrusted_ca_file(), dir.join("other.pem"))?;
        let both = fs::read_to_string(bed.pki().ca_file())? + &fs::read_to_string(bed.pki().untrusted_ca_file())?;
        Ok(fs::write(dir.join("both.pem"), both)?)
    })
}

#[test]
fn who_wants_nothing_verified_gets_that_and_only_for_that_host() -> Result<()> {
    const SKIP: &str = "{mode: SIMPLE, insecureSkipVerify: true}";
    let case = |name, tls, certificate, refused| Case { name, tls, certificate, sni: HOST, refused };
    let cases = [
        case('a', SKIP, |pki: &Pki| pki.self_signed(&["somebody"]), None),
        case('b', SKIP, |pki: &Pki| pki.expired(&["b.example"]), None),
        case(
            'c',
            "{mode: SIMPLE, insecureSkipVerify: false}",
            |pki| pki.self_signed(&["c.example"]),
            Some(SELF_SIGNED),
        ),
        case('d', SIMPLE, |pki| pki.self_signed(&["d.example"]), Some(SELF_SIGNED)),
    ];
    check("tls-skip", &cases, |_, _| Ok(()))
}

/// Of a certificate that is of no kind that is ever verified the key counts, and its holder must prove to have that.
#[test]
fn a_certificate_that_cannot_be_read_is_taken_where_nothing_is_verified() -> Result<()> {
    const SKIP: &str = "{mode: SIMPLE, insecureSkipVerify: true}";
    const ANOTHER_KEY: &str = "does not hold the key of its certificate";
    let cases = [
        ("tls13.example", SKIP, None),
        ("tls12.example", SKIP, None),
        ("another-key.example", SKIP, Some(ANOTHER_KEY)),
        ("another-key-tls12.example", SKIP, Some(ANOTHER_KEY)),
        ("verified.example", SIMPLE, Some("cannot be verified: UnsupportedCriticalExtension")),
    ];
    let builder = TestBed::builder("tls-unreadable");
    let bed = cases.iter().fold(builder, |builder, (host, ..)| builder.host_with(host, Families::V4)).build()?;
    let mut servers = Vec::new();
    for (host, _, refused) in cases {
        let mut identity = bed.pki().with_unknown_extension(&[host])?;
        if refused == Some(ANOTHER_KEY) {
            identity = Pki::another_key(identity)?;
        }
        let version = if host.contains("tls12") { "-tls1_2" } else { "-tls1_3" };
        servers.push(OpenSslServer::spawn(&bed, host, &identity, &[version])?);
    }
    for server in &servers {
        server.wait_until_ready()?;
    }
    let config = configure(&bed, &cases.map(|(host, tls, _)| rule(host, DNS, tls)))?;
    let _agent = bed.agent(&config)?;
    for (host, _, refused) in cases {
        let result = bed.curl(&format!("http://{host}/"))?.run()?;
        match refused {
            Some(reason) => check_failure(&result, 502, "tls_certificate_error", reason).context(host)?,
            None => ensure!(result.statuses() == [200], "{host}: {result:?}"),
        }
    }
    Ok(())
}

#[test]
fn turning_verification_off_is_warned_of() -> Result<()> {
    let bed = TestBed::new("tls-skip-warning")?;
    let config = configure(&bed, &[rule(HOST, DNS, "{mode: SIMPLE, insecureSkipVerify: true}")])?;
    let agent = bed.agent(&config)?;
    let file = config.path().join("rules.yaml");
    let place = format!("{}:18: ", file.display());
    let warning = format!("tls.insecureSkipVerify: the certificate of {HOST} is not verified");
    let says = |message: &str| message.contains(&place) && message.contains(&warning);
    let warned = agent.log().iter().any(|line| line.text("level") == "WARN" && says(&line.message()));
    ensure!(warned, "{warning} was expected:\n{}", agent.log_text());
    Ok(())
}

#[test]
fn mode_disable_leaves_the_request_as_it_is() -> Result<()> {
    let bed = TestBed::new("tls-disable")?;
    let origin = bed.embedded_origin().clear(&bed.sockets(HOST, 80)).handler(|_| Reply::ok("in clear")).start()?;
    let config = configure(&bed, &[rule(HOST, DNS, "{mode: DISABLE}")])?;
    let agent = bed.agent(&config)?;
    let response = bed.curl("http://edition.cnn.com/politics")?.response()?;
    ensure!(response.body == b"in clear", "{response:?}");
    let request = origin.only_request()?;
    ensure!(request.client.ip() == bed.client_address(request.server.ip()), "{request:?}");
    // It did not come by us at all.
    ensure!(agent.records().is_empty() && agent.metrics()?.sum("egress_rules", &[]) == 0.0);
    Ok(())
}
