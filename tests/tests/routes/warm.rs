//! Connections that are made before they are needed (`egress.dev/preconnect`).

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    origin::{Origin, Reply, Request, ServerTls, code},
    wait::{PATIENCE, wait_until},
};

use super::{HOST, agent_with_one_worker, bed, destination, entry, get, origin, origin_http1, serve};

/// Longer than the agent takes to look whether something is missing.
const WHILE: Duration = Duration::from_millis(2500);

fn rules(count: u32, settings: &str) -> String {
    entry(HOST, "resolution: DNS") + &destination(HOST, &format!("egress.dev/preconnect: '{count}'"), settings, "")
}

/// Closes its connection after an answer to `/close`, without a word.
fn closing(request: &Request) -> Reply {
    let fine = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfine\n".to_vec();
    if request.target == "/close" { Reply::RawThenClose(fine) } else { Reply::Raw(fine) }
}

fn wait_for_open(origin: &Origin, count: usize) -> Result<()> {
    wait_until(&format!("{count} connections"), PATIENCE, || origin.open_connections() == count)
}

fn fetch(bed: &TestBed, target: &str) -> Result<()> {
    let (status, text, _) = get(bed, target, &[])?;
    ensure!(status == 200 && text == "fine\n", "{status} {text}");
    Ok(())
}

#[test]
fn connections_are_ready_before_they_are_needed() -> Result<()> {
    let bed = bed("preconnect")?;
    let origin = origin_http1(&bed, closing)?;
    let (agent, _config) = agent_with_one_worker(&bed, &rules(3, ""))?;
    // Nobody uses the host, so there is none.
    thread::sleep(WHILE);
    ensure!(origin.connections() == 0, "{} connections", origin.connections());
    fetch(&bed, "/first")?;
    wait_for_open(&origin, 3)?;
    // What the origin closes is made anew.
    for _ in 0..3 {
        fetch(&bed, "/close")?;
        wait_until("the connection to close", PATIENCE, || origin.connections() > 3)?;
        wait_for_open(&origin, 3)?;
    }
    // And there are no more than that.
    thread::sleep(WHILE);
    ensure!(origin.open_connections() == 3 && origin.connections() == 6, "{} connections", origin.connections());
    fetch(&bed, "/last")?;
    let records = agent.wait_for_records(5)?;
    let reused: Vec<_> = records.iter().map(|record| record.text("reused")).collect();
    ensure!(reused == ["false", "true", "true", "true", "true"], "{reused:?}");
    Ok(())
}

/// Which hosts a wildcard stands for nobody knows before they are asked for, and a connection is for one of them.
#[test]
fn each_host_of_a_wildcard_that_is_asked_for_has_connections_of_its_own() -> Result<()> {
    let bed = bed("preconnect-wildcard")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST, "www.cnn.com"])?).http1_only();
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.handler(closing).start()?;
    let wildcard = "'*.cnn.com'";
    let rules = entry(wildcard, &format!("resolution: DNS\n  endpoints: [{{address: {HOST}}}]"))
        + &destination(wildcard, "egress.dev/preconnect: '2'", "", "");
    let (_agent, _config) = agent_with_one_worker(&bed, &rules)?;
    fetch(&bed, "/")?;
    wait_for_open(&origin, 2)?;
    let resolve = format!("www.cnn.com:80:{}", bed.addresses(HOST).v4);
    let response = bed.curl("http://www.cnn.com/")?.args(["--resolve", &resolve]).response()?;
    ensure!(response.body == b"fine\n", "{response:?}");
    wait_for_open(&origin, 4)
}

/// A pod's connections are its own, and end with it.
#[test]
fn each_pod_has_connections_ready_for_as_long_as_it_is_there() -> Result<()> {
    let mut bed = bed("preconnect-pods")?;
    let other = bed.add_pod("other")?;
    let origin = origin_http1(&bed, closing)?;
    let (agent, _config) = agent_with_one_worker(&bed, &rules(2, ""))?;
    fetch(&bed, "/first")?;
    wait_for_open(&origin, 2)?;
    let sandbox = serve(&bed, &other)?;
    wait_for_open(&origin, 4)?;
    drop(sandbox);
    wait_for_open(&origin, 2)?;
    let made = origin.connections();
    thread::sleep(WHILE);
    ensure!(origin.connections() == made && origin.open_connections() == 2, "{} connections", origin.connections());
    // Those that are left are of the pod that is.
    fetch(&bed, "/last")?;
    let last = agent.wait_for_records(3)?.pop().context("no record")?;
    ensure!(last.text("path") == "/last" && last.text("reused") == "true", "{last:?}");
    Ok(())
}

#[test]
fn one_connection_of_http2_is_enough() -> Result<()> {
    let bed = bed("preconnect-http2")?;
    let origin = origin(&bed, |_| Reply::ok("fine\n"))?;
    let (_agent, _config) = agent_with_one_worker(&bed, &rules(3, ""))?;
    fetch(&bed, "/first")?;
    thread::sleep(WHILE);
    ensure!(origin.connections() == 1 && origin.open_connections() == 1, "{} connections", origin.connections());
    Ok(())
}

/// One takes the place of one, though the rule speaks of several; and one that never says anything is not waited for.
#[test]
fn a_connection_of_http2_is_replaced_by_one_that_answers() -> Result<()> {
    let bed = bed("preconnect-silent")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?;
    let origin = origin.frames(|mut frames| async move {
        if (1..3).contains(&frames.connection) {
            return frames.closed().await;
        }
        frames.greet(100).await?;
        loop {
            let stream = frames.request().await?;
            if frames.connection == 0 {
                frames.go_away(stream, code::NO_ERROR).await?;
            }
            frames.answer(stream, b"fine\n").await?;
        }
    });
    let origin = origin.start()?;
    let (_agent, _config) = agent_with_one_worker(&bed, &rules(3, ""))?;
    fetch(&bed, "/first")?;
    wait_until("a connection in place of those that are silent", PATIENCE, || origin.connections() > 3)?;
    ensure!(origin.connections() == 4, "{} connections", origin.connections());
    // They are not kept, either.
    wait_for_open(&origin, 1)?;
    fetch(&bed, "/second")
}

#[test]
fn there_are_no_more_than_may_be() -> Result<()> {
    let bed = bed("preconnect-limit")?;
    let origin = origin_http1(&bed, closing)?;
    let (_agent, _config) = agent_with_one_worker(&bed, &rules(5, "connectionPool: {tcp: {maxConnections: 2}}"))?;
    fetch(&bed, "/first")?;
    wait_for_open(&origin, 2)?;
    thread::sleep(WHILE);
    ensure!(origin.connections() == 2, "{} connections", origin.connections());
    fetch(&bed, "/second")
}

#[test]
fn an_origin_that_comes_back_is_connected_to() -> Result<()> {
    let bed = bed("preconnect-refused")?;
    let origin = origin_http1(&bed, closing)?;
    let (agent, config) = agent_with_one_worker(&bed, &rules(2, ""))?;
    fetch(&bed, "/first")?;
    wait_for_open(&origin, 2)?;
    drop(origin);
    thread::sleep(WHILE);
    // When it is back, connections are made without anybody asking.
    let origin = origin_http1(&bed, closing)?;
    wait_for_open(&origin, 2)?;
    // A rule that is gone keeps nothing.
    config.write("rules.yaml", &(entry(HOST, "resolution: DNS") + &destination(HOST, "", "", "")))?;
    wait_until("the new rule", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum("egress_policy_applied_total", &[]) == 2.0)
    })?;
    fetch(&bed, "/close").context("by the new rule")?;
    let made = origin.connections();
    thread::sleep(WHILE);
    ensure!(origin.connections() == made, "{} connections", origin.connections());
    Ok(())
}
