//! Connections that are begun while the head of their request is still coming.

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, ConfigDir},
    process::Running,
    wait::{PATIENCE, wait_until},
};
use tokio::sync::watch;

use super::{
    HOST, SECOND, agent_with_one_worker, both, destination, echo, entry, get, origin, origin_http1, patient, pooled,
    service,
};

const CLIENT: &str = env!("CARGO_BIN_EXE_client");
/// Another name of HOST's addresses.
const THIRD: &str = "third.example";

/// A client that has sent the first half of a head.
fn slow(bed: &TestBed) -> Result<Running> {
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n").as_bytes())?;
    Ok(client)
}

/// An agent that waits for no head for long.
fn impatient<'bed>(bed: &'bed TestBed, rules: &str) -> Result<(Agent<'bed>, ConfigDir)> {
    let config = bed.config_dir()?;
    config.write("rules.yaml", rules)?;
    let options = AgentOptions::new(config.path()).args(&["--workers", "1", "--head-timeout", "500ms"]);
    Ok((Agent::start(bed, &options)?, config))
}

#[test]
fn a_connection_is_made_while_the_head_is_still_coming() -> Result<()> {
    for http2 in [false, true] {
        let bed = super::bed("early")?;
        let origin = if http2 { origin(&bed, echo)? } else { origin_http1(&bed, echo)? };
        let (_agent, _config) = agent_with_one_worker(&bed, &both())?;
        let client = slow(&bed)?;
        wait_until("a connection", PATIENCE, || origin.connections() == 1)?;
        ensure!(origin.requests().is_empty(), "{:?}", origin.requests());
        client.write_stdin(b"\r\n")?;
        client.wait_for_output(&format!("GET {HOST} /slow"))?;
        let request = origin.only_request()?;
        ensure!(request.tls.is_some_and(|tls| tls.sni.as_deref() == Some(HOST)));
        // Others of this client have what there is.
        client.write_stdin(format!("GET /next HTTP/1.1\r\nHost: {HOST}\r\n").as_bytes())?;
        client.write_stdin(b"\r\n")?;
        client.wait_for_output(&format!("GET {HOST} /next"))?;
        ensure!(origin.connections() == 1, "{} connections", origin.connections());
    }
    Ok(())
}

#[test]
fn nothing_is_begun_where_the_head_has_a_say() -> Result<()> {
    let to = |host: &str| format!("route: [{{destination: {{host: {host}}}}}]");
    let by_path = format!("  - match: [{{uri: {{prefix: /slow}}}}]\n    {}\n  - {}\n", to(HOST), to(SECOND));
    let by_itself =
        format!("  - match: [{{uri: {{exact: /}}}}]\n    directResponse: {{status: 204}}\n  - {}\n", to(HOST));
    let rewritten = format!("  - rewrite: {{authority: {THIRD}}}\n    {}\n", to(HOST));
    let third = entry(THIRD, "resolution: DNS") + &destination(THIRD, "", "", "");
    let balanced = destination(HOST, "", "loadBalancer: {simple: ROUND_ROBIN}", "");
    let listed = |bed: &TestBed| format!("resolution: DNS\n  addresses: [{}/32]", bed.sockets(HOST, 80)[0].ip());
    type Rules<'a> = &'a dyn Fn(&TestBed) -> String;
    let cases: [(&str, Rules<'_>, usize); 8] = [
        ("one host", &|_| both(), 1),
        ("one place", &|_| both() + &service(&format!("  - timeout: 5s\n    {}\n", to(HOST))), 1),
        ("two hosts", &|_| both() + &third, 0),
        ("by path", &|_| both() + &service(&by_path), 0),
        ("by itself", &|_| both() + &service(&by_itself), 0),
        ("rewritten", &|_| both() + &service(&rewritten), 0),
        ("balanced", &|_| entry(HOST, "resolution: DNS") + &balanced, 0),
        ("listed", &|bed| entry(HOST, &listed(bed)) + &destination(HOST, "", "", ""), 0),
    ];
    for (case, rules, expected) in cases {
        let bed = TestBed::builder("early-not").host(HOST).host(SECOND).alias(THIRD, HOST).build()?;
        let origin = origin_http1(&bed, echo)?;
        let (_agent, _config) = impatient(&bed, &rules(&bed))?;
        let client = slow(&bed)?;
        // By then whatever begins with the head has begun.
        client.wait_for_output("HTTP/1.1 408 ")?;
        let begun = || origin.connections() == expected;
        wait_until("as many as are expected", PATIENCE, begun).ok();
        ensure!(begun(), "{case}: {} connections", origin.connections());
    }
    Ok(())
}

#[test]
fn one_that_no_request_comes_for_ends_when_it_was_idle_for_long() -> Result<()> {
    let bed = super::bed("early-idle")?;
    let origin = origin_http1(&bed, echo)?;
    let (_agent, _config) = agent_with_one_worker(&bed, &pooled("http: {idleTimeout: 1s}"))?;
    let mut client = slow(&bed)?;
    wait_until("a connection", PATIENCE, || origin.connections() == 1)?;
    wait_until("its end", PATIENCE, || origin.open_connections() == 0)?;
    // More of a head that has begun is no reason for another.
    client.write_stdin(b"X: x\r\n")?;
    ensure!(get(&bed, "/other", &[])?.0 == 200 && client.is_running());
    ensure!(origin.connections() == 2, "{} connections", origin.connections());
    Ok(())
}

#[test]
fn there_are_no_more_than_may_be_for_requests_that_have_come() -> Result<()> {
    let bed = super::bed("early-limit")?;
    let (release, released) = watch::channel(false);
    let origin = origin_http1(&bed, patient(released))?;
    let (_agent, _config) = impatient(&bed, &pooled("tcp: {maxConnections: 1}"))?;
    let held = bed.client_command("curl")?.args(["-q", "-sS", "-4", "--max-time", "20", super::URL]).spawn();
    let mut held = held?;
    origin.wait_for_requests(1)?;
    slow(&bed)?.wait_for_output("HTTP/1.1 408 ")?;
    release.send_replace(true);
    ensure!(held.wait(PATIENCE)?.success() && origin.connections() == 1, "{} connections", origin.connections());
    Ok(())
}
