//! Origins whose TLS is not as it should be get nothing, and the application, the log and the metrics say why.

mod case;
mod cases;

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, ConfigDir, LogLine},
    clients::CurlResult,
    nginx::{NginxBuilder, NginxRequest, Site},
    origin::ServerTls,
    pki::Pki,
    testbed::Families,
    wait::{PATIENCE, wait_for, wait_until},
};

use self::{
    case::Case,
    cases::{CASES, REVOKED},
};
use super::{
    DNS, SIMPLE, annotated_rule, check_failed_record, check_failure, configure, proxy_status, record_of, rule,
};

/// Asked beside each of them in turn, of one nginx with some of them: one that says nothing special, and two that are at the
/// border of what is refused.
const GOOD: [(&str, &str, &str); 3] = [
    ("good.example", SIMPLE, ""),
    ("not-revoked.example", "{mode: SIMPLE, caCrl: crl.pem}", ""),
    (
        "reported.example",
        SIMPLE,
        "egress.dev/pins: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=, egress.dev/pins-mode: report",
    ),
];

#[test]
fn whatever_is_wrong_with_an_origin_has_a_name_and_nothing_leaves() -> Result<()> {
    let hosts: Vec<_> = CASES.iter().map(|case| case.host).chain(GOOD.map(|(host, ..)| host)).collect();
    let builder = TestBed::builder("tls-refused");
    // One family, since openssl listens on one address.
    let bed = hosts.iter().fold(builder, |builder, host| builder.host_with(host, Families::V4)).build()?;
    let mut nginx = bed.nginx();
    let (mut servers, mut raw) = (Vec::new(), Vec::new());
    for (host, ..) in GOOD {
        nginx = nginx.site(Site::new(&[host], bed.pki().server(&[host])?));
    }
    for case in &CASES {
        nginx = case.site(&bed)?.into_iter().fold(nginx, NginxBuilder::site);
        servers.extend(case.openssl(&bed)?);
        raw.extend(case.raw(&bed)?);
    }
    let nginx = nginx.file("fine", "fine").start()?;
    for server in &servers {
        server.wait_until_ready()?;
    }
    let tripwire = bed.tripwire(&hosts)?;
    let rules: Vec<_> = CASES
        .iter()
        .map(|case| (case.host, case.tls, case.annotations))
        .chain(GOOD)
        .map(|(host, tls, annotations)| annotated_rule(host, DNS, tls, annotations))
        .collect();
    let config = configure(&bed, &[])?;
    write_files(bed.pki(), &config)?;
    config.write("rules.yaml", &rules.concat())?;
    let agent = bed.agent(&config)?;
    let capture = bed.capture()?;

    std::thread::scope(|scope| {
        let (slow, quick) = CASES.split_last().context("no cases")?;
        let bed = &bed;
        let slow_one = scope.spawn(move || ask(bed, slow));
        for (case, (good, ..)) in quick.iter().zip(GOOD.iter().cycle()) {
            let before = failures(&agent, case)?;
            check(&agent, case, &ask(bed, case)?).with_context(|| case.host)?;
            ensure!(failures(&agent, case)? == before + 1.0, "{}: not counted as {}", case.host, case.cause);
            let response = bed.curl(&format!("http://{good}/fine"))?.response()?;
            ensure!(response.body == b"fine", "{good} after {}: {response:?}", case.host);
        }
        let result = slow_one.join().expect("curl's thread does not panic")?;
        check(&agent, slow, &result).context(slow.host)
    })?;

    let trace = capture.stop()?;
    ensure!(!trace.contains(b"secret"), "something of a request was to be seen");
    ensure!(trace.packets_of_port(80) == 0 && trace.packets_of_port(443) > 0, "not only port 443 was spoken to");
    let is_good = |request: &NginxRequest| GOOD.iter().any(|(host, ..)| request.get("host") == *host);
    wait_until("nginx to log the good requests", PATIENCE, || {
        nginx
            .requests()
            .is_ok_and(|requests| requests.iter().filter(|request| is_good(request)).count() == CASES.len() - 1)
    })?;
    // Where it speaks HTTP in clear, nginx may take a ClientHello for a bad request.
    ensure!(nginx.requests()?.iter().all(|request| is_good(request) || request.get("status") == "400"));
    let metrics = agent.metrics()?;
    ensure!(metrics.sum("egress_upstream_failures_total", &[]) == CASES.len() as f64);
    ensure!(metrics.sum("egress_requests_total", &[("outcome", "failed")]) == CASES.len() as f64);
    ensure!(metrics.sum("egress_pin_mismatches_unenforced_total", &[]) >= 1.0);
    let reported = |line: &LogLine| line.text("host") == GOOD[2].0 && line.message().contains("chain is pinned");
    ensure!(agent.log().iter().any(reported), "the mismatch of pins is not in the log:\n{}", agent.log_text());
    tripwire.assert_silent()
}

/// What the rules name.
fn write_files(pki: &Pki, config: &ConfigDir) -> Result<()> {
    let foreign = pki.foreign_client("stranger")?;
    // One that was put behind those before it.
    let lists = [pki.revocation_list(&[], 2018..2124)?, pki.revocation_list(&[REVOKED], 2019..2124)?];
    config.write("crl.pem", &lists.concat())?;
    config.write("old-crl.pem", &pki.revocation_list(&[], 2019..2020)?)?;
    config.write("foreign-crl.pem", &pki.foreign_revocation_list(2019..2124)?)?;
    config.write("foreign.crt", &fs::read_to_string(&foreign.certificate_file)?)?;
    config.write("foreign.key", &fs::read_to_string(&foreign.key_file)?)
}

fn ask(bed: &TestBed, case: &Case) -> Result<CurlResult> {
    let url = format!("http://{}/secret-path?secret-query", case.host);
    bed.curl(&url)?.header("Cookie: secret-cookie").run()
}

fn failures(agent: &Agent<'_>, case: &Case) -> Result<f64> {
    Ok(agent.metrics()?.sum("egress_upstream_failures_total", &[("cause", case.cause)]))
}

/// Checks that the application and the log are told the same: what is wrong, and what the origin has offered.
fn check(agent: &Agent<'_>, case: &Case, result: &CurlResult) -> Result<()> {
    check_failure(result, case.status, case.error, case.says[0])?;
    let record = wait_for("the access-log record", PATIENCE, || {
        agent.records().into_iter().find(|record| record.text("host") == case.host)
    })?;
    let proxy_status = proxy_status(result)?;
    for parameter in ["alert-id", "alert-message"] {
        let is_there = !proxy_status.get(parameter).is_empty();
        ensure!(is_there == (case.error == "tls_alert_received"), "{parameter}: {proxy_status:?}");
    }
    for text in case.says {
        ensure!(proxy_status.get("details").contains(text), "the details do not name {text:?}: {proxy_status:?}");
        check_failed_record(&record, case.status, text)?;
    }
    ensure!(record.text("cause") == case.cause, "{} was expected: {record:?}", case.cause);
    ensure!(record.text("path") == "/secret-path", "{record:?}");
    Ok(())
}

#[test]
fn a_request_with_a_body_is_not_sent_to_an_origin_that_cannot_be_verified() -> Result<()> {
    let bed = TestBed::builder("tls-bad-post").host("untrusted.example").build()?;
    let host = "untrusted.example";
    let tls = ServerTls::new(bed.pki().untrusted(&[host])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(host, 443), &tls)?.start()?;
    let config = configure(&bed, &[rule(host, DNS, SIMPLE)])?;
    let agent = bed.agent(&config)?;
    let capture = bed.capture()?;
    let result = bed.curl(&format!("http://{host}/"))?.body("card=4111".repeat(100)).run()?;
    check_failure(&result, 502, "tls_certificate_error", "neither among this machine's nor shown")?;
    ensure!(!capture.stop()?.contains(b"card=4111"));
    ensure!(origin.requests().is_empty());
    check_failed_record(&record_of(&agent.wait_for_records(1)?, host)?, 502, "neither among this machine's nor shown")
}
