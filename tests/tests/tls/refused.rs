//! Origins that cannot be verified get nothing.

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    clients::CurlResult,
    origin::{Reply, ServerTls},
    pki::{Identity, Pki},
};

use super::{DNS, SIMPLE, check_failed_record, check_failure, configure, record_of, rule};

/// A certificate that is not to be accepted, and how we call what is wrong with it.
struct Bad {
    host: &'static str,
    certificate: fn(&Pki, &str) -> Result<Identity>,
    cause: &'static str,
}

const BAD: [Bad; 5] = [
    Bad { host: "untrusted.example", certificate: |pki, host| pki.untrusted(&[host]), cause: "UnknownIssuer" },
    Bad { host: "expired.example", certificate: |pki, host| pki.expired(&[host]), cause: "certificate expired" },
    Bad {
        host: "early.example",
        certificate: |pki, host| pki.not_yet_valid(&[host]),
        cause: "certificate not valid yet",
    },
    Bad {
        host: "wrong.example",
        certificate: |pki, _| pki.server(&["right.example"]),
        cause: "certificate not valid for name \"wrong.example\"",
    },
    Bad { host: "self-signed.example", certificate: |pki, host| pki.self_signed(&[host]), cause: "UnknownIssuer" },
];
const GOOD: &str = "good.example";

#[test]
fn a_bad_certificate_is_a_502_that_names_the_cause_and_nothing_leaves() -> Result<()> {
    let mut builder = TestBed::builder("tls-bad").host(GOOD);
    for bad in &BAD {
        builder = builder.host(bad.host);
    }
    let bed = builder.build()?;
    let good = ServerTls::new(bed.pki().server(&[GOOD])?);
    let mut origin = bed.embedded_origin().handler(|_| Reply::ok("fine")).tls(&bed.sockets(GOOD, 443), &good)?;
    for bad in &BAD {
        let tls = ServerTls::new((bad.certificate)(bed.pki(), bad.host)?);
        origin = origin.tls(&bed.sockets(bad.host, 443), &tls)?;
    }
    let origin = origin.start()?;
    let hosts: Vec<_> = BAD.iter().map(|bad| bad.host).chain([GOOD]).collect();
    let tripwire = bed.tripwire(&hosts)?;
    let rules: Vec<_> = hosts.iter().map(|host| rule(host, DNS, SIMPLE)).collect();
    let config = configure(&bed, &rules)?;
    let agent = bed.agent(&config)?;

    // All the while, another host is asked again and again on connections of its own.
    let address = bed.sockets(GOOD, 80)[0].to_string();
    let mut unaffected = bed
        .client_command(env!("CARGO_BIN_EXE_client"))?
        .args(["repeat", &address, "--host", GOOD, "--path", "/fine"])
        .spawn()?;
    unaffected.wait_for_output("200\n")?;
    let capture = bed.capture()?;
    for family in ["-4", "-6"] {
        for bad in &BAD {
            let url = format!("http://{}/secret-path?secret-query", bad.host);
            let result: CurlResult = bed.curl(&url)?.args([family]).header("Cookie: secret-cookie").run()?;
            check_failure(&result, 502, "tls_certificate_error", bad.cause)?;
        }
    }
    let trace = capture.stop()?;
    let so_far = unaffected.stdout().lines().count();
    unaffected.wait_for_output(&"200\n".repeat(so_far + 1))?;
    ensure!(unaffected.wait(harness::wait::PATIENCE)?.success(), "{:?}", unaffected.stderr());
    ensure!(unaffected.stdout().lines().all(|status| status == "200"), "{}", unaffected.stdout());

    ensure!(!trace.contains(b"secret"), "something of the request was to be seen");
    ensure!(trace.packets_of_port(80) == 0 && trace.packets_of_port(443) > 0, "not only port 443 was spoken to");
    ensure!(origin.requests().iter().all(|request| request.host == GOOD), "a request reached a bad origin");
    let metrics = agent.metrics()?;
    let handshakes = |result| metrics.sum("egress_upstream_handshakes_total", &[("result", result)]);
    ensure!(handshakes("failed") == 10.0, "{} handshakes failed", handshakes("failed"));
    ensure!(metrics.sum("egress_requests_total", &[("outcome", "failed")]) == 10.0);
    for bad in &BAD {
        let records: Vec<_> = agent.records().into_iter().filter(|record| record.text("host") == bad.host).collect();
        ensure!(records.len() == 2, "{}: {records:?}", bad.host);
        for record in &records {
            check_failed_record(record, 502, bad.cause)?;
            ensure!(record.text("path") == "/secret-path", "{record:?}");
        }
    }
    tripwire.assert_silent()
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
    check_failure(&result, 502, "tls_certificate_error", "UnknownIssuer")?;
    ensure!(!capture.stop()?.contains(b"card=4111"));
    ensure!(origin.requests().is_empty());
    check_failed_record(&record_of(&agent.wait_for_records(1)?, host)?, 502, "UnknownIssuer")
}
