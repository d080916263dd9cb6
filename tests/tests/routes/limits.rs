//! Time, retries, and how much is under way.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{
    origin::{Origin, Reply},
    proxy_status::ProxyStatus,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::{Counter, HOST, URL, agent, bed, both, destination, echo, entry, get, origin, service};

#[test]
fn what_takes_too_long_is_given_up() -> Result<()> {
    let bed = bed("timeout")?;
    // It answers when the test has ended.
    let (_release, released) = watch::channel(false);
    let _origin = origin(&bed, move |request| {
        if request.target == "/slow" { Reply::Later(released.clone(), Box::new(echo(request))) } else { echo(request) }
    })?;
    let routes = "  - timeout: 300ms\n    route: [{destination: {host: edition.cnn.com}}]\n";
    let (agent, _config) = agent(&bed, &(both() + &service(routes)))?;
    let (status, body, result) = get(&bed, "/slow", &[])?;
    ensure!(status == 504 && body.contains("300ms"), "{result:?}");
    ensure!(result.elapsed < Duration::from_secs(8), "{result:?}");
    let reason = ProxyStatus::parse(result.responses[0].header("proxy-status").unwrap_or_default())?;
    ensure!(reason.get("error") == "http_response_timeout", "{reason:?}");
    ensure!(get(&bed, "/quick", &[])?.0 == 200);
    let failures = [("cause", "response_timeout")];
    wait_until("the counter", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum("egress_upstream_failures_total", &failures) == 1.0)
    })
}

#[test]
fn time_goes_by_while_a_client_takes_nothing() -> Result<()> {
    let bed = bed("timeout-untaken")?;
    // More than the kernel keeps for a client.
    let origin = origin(&bed, |_| Reply::ok("x".repeat(64 << 20)))?;
    let routes = "  - timeout: 2s\n    route: [{destination: {host: edition.cnn.com}}]\n";
    let (agent, _config) = agent(&bed, &(both() + &service(routes)))?;
    for (count, protocol) in [(1, "--http1.1"), (2, "--http2-prior-knowledge")] {
        let arguments = ["-q", "-sS", "-o", "/dev/null", "--limit-rate", "1M", protocol, URL];
        let mut client = bed.client_command("curl")?.args(arguments).spawn()?;
        wait_until("the request", PATIENCE, || origin.requests().len() == count)?;
        client.signal(Signal::SIGSTOP)?;
        let record = agent.wait_for_records(count)?.pop().context("no record")?;
        ensure!(record.text("outcome") == "truncated", "{protocol}: {record:?}");
        ensure!(
            record.text("error") == "the response took longer than the timeout of its route",
            "{protocol}: {record:?}"
        );
        client.signal(Signal::SIGCONT)?;
        ensure!(!client.wait(PATIENCE)?.success(), "{protocol}: a response that broke off looks complete");
    }
    Ok(())
}

#[test]
fn what_may_be_repeated_is_repeated_as_the_route_wants() -> Result<()> {
    let bed = bed("retries")?;
    let counter = Counter::default();
    let counted = counter.clone();
    let origin = origin(&bed, move |request| match request.target.as_str() {
        "/flaky" if counted.next() % 3 != 0 => Reply::status(503, &[], "not now\n"),
        "/never" => Reply::status(503, &[], "never\n"),
        _ => echo(request),
    })?;
    let routes = "  - retries: {attempts: 2, retryOn: \"5xx\", backoff: 5ms}\n    route: [{destination: {host: edition.cnn.com}}]\n";
    let (agent, _config) = agent(&bed, &(both() + &service(routes)))?;
    let tried = |target: &str, arguments: &[&str], status: u16, tries: usize| {
        let (found, _, result) = get(&bed, target, arguments)?;
        let requests = origin.take_requests();
        ensure!(found == status && requests.len() == tries, "{target} {arguments:?}: {result:?} {requests:?}");
        Ok(())
    };
    tried("/flaky", &[], 200, 3)?;
    tried("/never", &[], 503, 3)?;
    tried("/never", &["-X", "DELETE"], 503, 3)?;
    // It may have been processed, and would be a second time.
    tried("/never", &["-d", "pay"], 503, 1)?;
    tried("/never", &["-X", "POST"], 503, 1)?;
    wait_until("the records", PATIENCE, || agent.records().len() == 5)?;
    let retries: Vec<_> = agent.records().iter().map(|record| record.text("retries")).collect();
    ensure!(retries == ["2", "2", "2", "", ""], "{retries:?}");
    Ok(())
}

#[test]
fn more_than_the_settings_allow_is_refused_at_once() -> Result<()> {
    let bed = bed("limits")?;
    let (release, released) = watch::channel(false);
    let origin: Origin = origin(&bed, move |request| {
        if request.target == "/held" { Reply::Later(released.clone(), Box::new(echo(request))) } else { echo(request) }
    })?;
    let policy = "connectionPool: {http: {http2MaxRequests: 1}}";
    let (_agent, _config) = agent(&bed, &(entry(HOST, "resolution: DNS") + &destination(HOST, "", policy, "")))?;
    let held = bed.client_command("curl")?.args(["-sS", &format!("http://{HOST}/held")]).spawn()?;
    wait_until("the first request", PATIENCE, || origin.requests().len() == 1)?;
    let (status, body, result) = get(&bed, "/", &[])?;
    ensure!(status == 503 && body.contains("http2MaxRequests is 1"), "{result:?}");
    release.send(true)?;
    held.wait_for_output("GET edition.cnn.com /held\n")?;
    wait_until("room", PATIENCE, || get(&bed, "/", &[]).is_ok_and(|(status, ..)| status == 200))
}

#[test]
fn the_protocol_towards_the_origin_is_the_user_s_to_choose() -> Result<()> {
    for (policy, version) in [("DEFAULT", "HTTP/2"), ("DO_NOT_UPGRADE", "HTTP/1.1"), ("UPGRADE", "HTTP/2")] {
        let bed = bed("protocol")?;
        let origin = origin(&bed, echo)?;
        let pool = format!("connectionPool: {{http: {{h2UpgradePolicy: {policy}}}}}");
        let (_agent, _config) = agent(&bed, &(entry(HOST, "resolution: DNS") + &destination(HOST, "", &pool, "")))?;
        ensure!(get(&bed, "/", &[])?.0 == 200);
        ensure!(origin.only_request()?.version == version, "{policy}: {:?}", origin.requests());
    }
    Ok(())
}
