//! What we offer to origins, and what we make of their answers.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    origin::{Reply, Request, ServerTls},
    wait::{PATIENCE, wait_until},
};

use super::{DNS, SIMPLE, check_failure, configure, rule};

const HOST: &str = "edition.cnn.com";
const URL: &str = "http://edition.cnn.com/politics";

#[test]
fn the_key_exchange_that_quantum_computers_do_not_break_is_offered_first() -> Result<()> {
    /// The beginning of the extension supported_groups (RFC 8446 section 4.2.7) between its two lengths, and
    /// X25519MLKEM768 as the first one.
    const SUPPORTED_GROUPS: [u8; 2] = [0, 10];
    const X25519MLKEM768: [u8; 2] = [0x11, 0xec];
    let bed = TestBed::new("tls-group")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let config = configure(&bed, &[rule(HOST, DNS, SIMPLE)])?;
    let agent = bed.agent(&config)?;
    let capture = bed.capture()?;
    bed.curl(URL)?.response()?;
    let trace = capture.stop()?;
    let seen = origin.only_request()?.tls.context("not over TLS")?;
    ensure!((seen.version.as_str(), seen.group.as_str()) == ("TLSv1_3", "X25519MLKEM768"), "{seen:?}");
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("group") == "X25519MLKEM768" && record.text("tls") == "TLSv1.3", "{record:?}");
    let connections = trace.connections_to_port(443);
    ensure!(connections.len() == 1, "{} connections", connections.len());
    let first = connections[0].sent.windows(8).any(|at| at[..2] == SUPPORTED_GROUPS && at[6..] == X25519MLKEM768);
    ensure!(first, "X25519MLKEM768 is not the first of the supported groups");
    Ok(())
}

#[test]
fn what_is_agreed_on_shows_in_the_access_log() -> Result<()> {
    struct Case {
        host: &'static str,
        tls: fn(ServerTls) -> ServerTls,
        version: [&'static str; 2],
        alpn: Option<&'static str>,
    }
    let cases = [
        Case { host: "a.example", tls: |tls| tls, version: ["TLSv1_3", "TLSv1.3"], alpn: Some("h2") },
        Case {
            host: "b.example",
            tls: |tls| tls.http1_only(),
            version: ["TLSv1_3", "TLSv1.3"],
            alpn: Some("http/1.1"),
        },
        // A server that has never heard of ALPN.
        Case { host: "c.example", tls: |tls| tls.alpn(&[]), version: ["TLSv1_3", "TLSv1.3"], alpn: None },
        Case { host: "d.example", tls: |tls| tls.tls12_only(), version: ["TLSv1_2", "TLSv1.2"], alpn: Some("h2") },
    ];
    let bed = cases.iter().fold(TestBed::builder("tls-agreed"), |builder, case| builder.host(case.host)).build()?;
    let mut origin = bed.embedded_origin();
    for case in &cases {
        let tls = (case.tls)(ServerTls::new(bed.pki().server(&[case.host])?));
        origin = origin.tls(&bed.sockets(case.host, 443), &tls)?;
    }
    let origin = origin.start()?;
    let config = configure(&bed, &cases.iter().map(|case| rule(case.host, DNS, SIMPLE)).collect::<Vec<_>>())?;
    let agent = bed.agent(&config)?;
    for (done, case) in cases.iter().enumerate() {
        let response = bed.curl(&format!("http://{}/", case.host))?.response()?;
        ensure!(response.head.status == 200, "{}: {response:?}", case.host);
        let request = origin.wait_for_requests(done + 1)?.pop().context("no request")?;
        let seen = request.tls.context("not over TLS")?;
        ensure!(seen.sni.as_deref() == Some(case.host) && seen.alpn.as_deref() == case.alpn, "{seen:?}");
        ensure!(seen.version == case.version[0] && !seen.resumed, "{seen:?}");
        let record = agent.wait_for_records(done + 1)?.pop().context("no record")?;
        ensure!(record.text("tls") == case.version[1], "{record:?}");
        let protocol = if case.alpn == Some("h2") { "HTTP/2" } else { "HTTP/1.1" };
        ensure!(record.text("protocol") == protocol && request.version == protocol, "{record:?}");
        ensure!(!record.text("cipher").is_empty() && !record.text("group").is_empty(), "{record:?}");
    }
    Ok(())
}

/// What is said to be HTTP/2 alone is so with an origin that has never heard of ALPN as well.
#[test]
fn http2_is_begun_without_alpn_where_nothing_else_will_do() -> Result<()> {
    let bed = TestBed::new("tls-prior-knowledge")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).alpn(&[]);
    let origin = bed.embedded_origin().prior_knowledge().tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let config = configure(&bed, &[rule(HOST, DNS, SIMPLE).replace("protocol: HTTP,", "protocol: HTTP2,")])?;
    let agent = bed.agent(&config)?;
    let response = bed.curl(URL)?.response()?;
    ensure!(response.head.status == 200, "{response:?}");
    let request = origin.only_request()?;
    let alpn = request.tls.context("not over TLS")?.alpn;
    ensure!((request.version.as_str(), alpn) == ("HTTP/2", None));
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("protocol") == "HTTP/2", "{record:?}");
    Ok(())
}

#[test]
fn the_name_asked_for_is_the_host_however_the_application_writes_it() -> Result<()> {
    let bed = TestBed::new("tls-sni")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    let origin = bed.embedded_origin().handler(closing).tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let config = configure(&bed, &[rule(HOST, DNS, SIMPLE)])?;
    let _agent = bed.agent(&config)?;
    for written in
        ["edition.cnn.com", "EDITION.cnn.com", "edition.cnn.com.", "edition.cnn.com:80", "Edition.CNN.com.:80"]
    {
        let response = bed.curl(URL)?.header(&format!("Host: {written}")).response()?;
        ensure!(response.head.status == 200, "{written}: {response:?}");
        let request = origin.take_requests().pop().context("no request")?;
        ensure!(request.host == written, "the origin got {} for {written}", request.host);
        let seen = request.tls.context("not over TLS")?;
        ensure!(seen.sni.as_deref() == Some(HOST), "{written}: {seen:?}");
    }
    Ok(())
}

#[test]
fn a_second_connection_resumes_the_session() -> Result<()> {
    for tls12 in [false, true] {
        let bed = TestBed::new("tls-resumed")?;
        let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
        let tls = if tls12 { tls.tls12_only() } else { tls };
        let origin = bed.embedded_origin().handler(closing).tls(&bed.sockets(HOST, 443), &tls)?.start()?;
        let config = configure(&bed, &[rule(HOST, DNS, SIMPLE)])?;
        let agent = bed.agent(&config)?;
        for _ in 0..3 {
            bed.curl(URL)?.response()?;
        }
        let resumed = origin.wait_for_requests(3)?.into_iter().map(|request| request.tls.map(|tls| tls.resumed));
        ensure!(resumed.eq([false, true, true].map(Some)), "TLS 1.2: {tls12}: {:?}", origin.requests());
        let metrics = agent.metrics()?;
        let handshakes = |result| metrics.sum("egress_upstream_handshakes_total", &[("result", result)]);
        ensure!([handshakes("full"), handshakes("resumed"), handshakes("failed")] == [1.0, 2.0, 0.0]);
    }
    Ok(())
}

/// A ticket is used once, so as many are needed as connections are made at the same time. Of rustls' own cache most would find none.
#[test]
fn connections_that_are_made_at_the_same_time_resume_sessions_as_well() -> Result<()> {
    const COUNT: usize = 24;
    // A handshake takes so long that all have begun before the first has ended.
    let bed = TestBed::builder("tls-tickets").host(HOST).delay(Duration::from_millis(50)).build()?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    let _origin = bed.embedded_origin().handler(closing).tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let config = configure(&bed, &[rule(HOST, DNS, SIMPLE)])?;
    let agent = bed.agent(&config)?;
    let parallel = ["-q", "-sS", "--max-time", "15", "--parallel", "--parallel-immediate", "--parallel-max"];
    let round = || {
        let urls = vec![URL; COUNT];
        bed.client_command("curl")?.args(parallel).args([COUNT.to_string()]).args(urls).run()?.success()?;
        let metrics = agent.metrics()?;
        let handshakes = |result| metrics.sum("egress_upstream_handshakes_total", &[("result", result)]);
        anyhow::Ok([handshakes("full"), handshakes("resumed")])
    };
    // Nobody has known that so many are needed before the second round.
    let (_, before, after) = (round()?, round()?, round()?);
    let made = [after[0] - before[0], after[1] - before[1]];
    ensure!(made == [0.0, COUNT as f64], "{before:?}, {after:?}");
    Ok(())
}

/// A session can be resumed for ever, as each time there is a new ticket; its certificate is shown but once.
#[test]
fn a_session_ends_with_the_certificate_that_it_began_with() -> Result<()> {
    const VALIDITY: Duration = Duration::from_secs(10);
    for tls12 in [false, true] {
        let bed = TestBed::new("tls-expiring")?;
        let (issued, identity) = (Instant::now(), bed.pki().expiring_in(&[HOST], VALIDITY)?);
        let tls = ServerTls::new(identity).http1_only();
        let tls = if tls12 { tls.tls12_only() } else { tls };
        let origin = bed.embedded_origin().handler(closing).tls(&bed.sockets(HOST, 443), &tls)?.start()?;
        let config = configure(&bed, &[rule(HOST, DNS, SIMPLE)])?;
        let _agent = bed.agent(&config)?;
        for _ in 0..2 {
            bed.curl(URL)?.response()?;
        }
        ensure!(issued.elapsed() < VALIDITY, "the certificate expired too early: {:?}", issued.elapsed());
        let resumed = origin.wait_for_requests(2)?.into_iter().map(|request| request.tls.map(|tls| tls.resumed));
        ensure!(resumed.eq([false, true].map(Some)), "TLS 1.2: {tls12}: {:?}", origin.requests());
        thread::sleep((VALIDITY + Duration::from_secs(1)).saturating_sub(issued.elapsed()));
        check_failure(&bed.curl(URL)?.run()?, 502, "tls_certificate_error", "expired")?;
        ensure!(origin.requests().len() == 2, "{:?}", origin.requests());
    }
    Ok(())
}

/// All workers and all pods share one client, as the rule says who they are to the origin.
#[test]
fn a_pod_resumes_the_session_of_another() -> Result<()> {
    let mut bed = TestBed::new("tls-pods")?;
    let other = bed.add_pod("other")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    let origin = bed.embedded_origin().handler(closing).tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let config = configure(&bed, &[rule(HOST, DNS, SIMPLE)])?;
    let _agent = bed.agent(&config)?;
    let in_other = |program: &str| bed.pod_command(&other, program)?.in_cgroup(bed.cgroup());
    let _sandbox = in_other("sleep")?.arg("infinity").spawn()?;
    bed.curl(URL)?.response()?;
    let curl = || in_other("curl")?.args(["-q", "-sS", "--max-time", "15", URL]).run();
    // Until the agent has noticed the pod, its connects are refused.
    wait_until("the other pod to be served", PATIENCE, || curl().is_ok_and(|output| output.code() == 0))?;
    let resumed = origin.wait_for_requests(2)?.into_iter().map(|request| request.tls.map(|tls| tls.resumed));
    ensure!(resumed.eq([Some(false), Some(true)]), "{:?}", origin.requests());
    Ok(())
}

#[test]
fn a_session_with_one_host_is_not_resumed_with_another() -> Result<()> {
    let hosts = ["a.example", "b.example"];
    let bed = TestBed::builder("tls-not-resumed").host(hosts[0]).alias(hosts[1], hosts[0]).build()?;
    let tls = ServerTls::new(bed.pki().server(&hosts)?).http1_only();
    let origin = bed.embedded_origin().handler(closing).tls(&bed.sockets(hosts[0], 443), &tls)?.start()?;
    let config = configure(&bed, &hosts.map(|host| rule(host, DNS, SIMPLE)))?;
    let _agent = bed.agent(&config)?;
    for host in hosts {
        bed.curl(&format!("http://{host}/"))?.response()?;
    }
    let resumed = origin.wait_for_requests(2)?.into_iter().map(|request| request.tls.map(|tls| tls.resumed));
    ensure!(resumed.eq([Some(false), Some(false)]), "{:?}", origin.requests());
    Ok(())
}

/// Says that the connection ends here, so that the next request needs another one.
fn closing(_: &Request) -> Reply {
    Reply::RawThenClose(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec())
}
