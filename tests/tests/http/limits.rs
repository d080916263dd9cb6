//! What is taken of applications.

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, LogLine},
    netns::Netns,
    origin::Reply,
    process::{Output, Running},
    wait::{PATIENCE, wait_until},
};

use super::{CLIENT, HOST, URL, configure, origin};

/// What HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const TURNED_AWAY: &str = "egress_connections_turned_away_total";

#[test]
fn connections_beyond_a_limit_are_told_so() -> Result<()> {
    let mut bed = TestBed::new("limits")?;
    let other = bed.add_pod("other")?;
    let origin = origin(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let limits = ["--max-connections", "4", "--max-connections-per-pod", "3"];
    let agent = Agent::start(&bed, &AgentOptions::new(config.path()).args(&limits))?;
    let here = bed.client();
    let mut held = (0..3).map(|_| hold(&bed, here)).collect::<Result<Vec<_>>>()?;
    let is_served = |pod: &Netns| Ok::<_, anyhow::Error>(curl(&bed, pod)?.text().starts_with("HTTP/1.1 200 "));
    let is_refused = |pod: &Netns, text: &str| {
        let output = curl(&bed, pod)?;
        let text = format!("error=connection_limit_reached;details=\"{text}");
        ensure!(output.text().starts_with("HTTP/1.1 503 ") && output.text().contains(&text), "{output:?}");
        Ok(())
    };
    is_refused(here, "this pod has 3 connections already")?;
    ensure!(is_served(&other)?, "one pod is in the way of the other");
    held.push(hold(&bed, &other)?);
    is_refused(&other, "the agent has 4 connections already")?;
    let count = |limit| Ok::<_, anyhow::Error>(agent.metrics()?.sum(TURNED_AWAY, &[("limit", limit)]));
    ensure!(count("pod")? == 1.0 && count("all")? == 1.0);
    // Those that were held are served all the same.
    for client in &held {
        client.write_stdin(b"\n")?;
        client.wait_for_output("fine")?;
    }
    drop(held);
    wait_until("connections to be counted no more", PATIENCE, || is_served(here).unwrap_or_default())?;
    ensure!(origin.take_requests().len() == 6);
    let is_refused = |record: &LogLine| record.text("outcome") == "refused";
    wait_until("their records", PATIENCE, || agent.records().into_iter().filter(is_refused).count() >= 2)
}

#[test]
fn limits_of_heads_and_times_can_be_set() -> Result<()> {
    let bed = TestBed::new("limits-set")?;
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(1000));
    let origin = origin(&bed)?
        .handler(move |request| match request.target.as_str() {
            "/long" => Reply::Raw(long.clone().into()),
            _ => Reply::ok("fine"),
        })
        .start()?;
    let config = configure(&bed)?;
    let limits = ["--max-head-bytes", "1000", "--max-head-fields", "10", "--head-timeout", "500ms"];
    let options = AgentOptions::new(config.path()).args(&limits).args(&["--idle-timeout", "500ms"]);
    let _agent = Agent::start(&bed, &options)?;
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n");
    let cases = [
        (head(""), "HTTP/1.1 200 "),
        (head(&format!("X: {}\r\n", "x".repeat(900))), "HTTP/1.1 200 "),
        (head(&format!("X: {}\r\n", "x".repeat(1000))), "HTTP/1.1 431 "),
        (head(&"X: x\r\n".repeat(9)), "HTTP/1.1 200 "),
        (head(&"X: x\r\n".repeat(10)), "HTTP/1.1 431 "),
        (head("").replace("GET / ", "GET /long "), "HTTP/1.1 502 "),
        // What does not come to its end.
        (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n"), "HTTP/1.1 408 "),
        // Nor begins.
        (String::new(), ""),
    ];
    for (request, expected) in cases {
        // The connection is ended by the agent: after a response too, when it has been idle.
        let output = raw(&bed, request.as_str())?.success()?;
        ensure!(output.text().starts_with(expected), "{request}: {output:?}");
        ensure!(output.text().is_empty() == expected.is_empty(), "{request}: {output:?}");
    }
    ensure!(origin.take_requests().len() == 4);
    Ok(())
}

/// What of HTTP/2 does not come to its end, nor goes on.
#[test]
fn limits_of_times_are_those_of_http2_as_well() -> Result<()> {
    let bed = TestBed::new("limits-http2")?;
    let origin = origin(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path()).args(&["--head-timeout", "500ms"]);
    let _agent = Agent::start(&bed, &options)?;
    // A frame: its type, its flags and what it says, of which so much is sent.
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, u8::from(kind != 4)], payload].concat()
    };
    // GET http /, for HOST (RFC 7541 appendix A).
    let block = [&[0x82, 0x86, 0x84, 0x41, HOST.len() as u8], HOST.as_bytes()].concat();
    let settings = frame(4, 0, &[]);
    let (whole, begun) = (frame(1, 5, &block), frame(1, 1, &block[..3]));
    let cases = [
        ("settings do not come", vec![]),
        ("settings do not end", settings[..5].to_vec()),
        ("a head does not end", [&settings[..], &whole[..whole.len() - 1]].concat()),
        ("a head does not go on", [&settings[..], &begun].concat()),
        ("a head goes on without an end", [&settings[..], &begun, &frame(9, 0, &block[3..])].concat()),
    ];
    // Who has begun nothing is waited for.
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(&[PREFACE, &settings].concat())?;
    for (case, bytes) in cases {
        // Ended by the agent, before the client's patience.
        let output = raw(&bed, [PREFACE, &bytes].concat())?.success().context(case)?;
        ensure!(!output.text().contains("fine"), "{case}: {output:?}");
    }
    ensure!(origin.take_requests().is_empty());
    client.write_stdin(&whole)?;
    client.wait_for_output("fine")
}

fn raw(bed: &TestBed, request: impl Into<Vec<u8>>) -> Result<Output> {
    bed.client_command(CLIENT)?.args(["raw", &bed.sockets(HOST, 80)[0].to_string()]).stdin(request).run()
}

/// A client that has connected, and is to send a request when a line comes.
fn hold(bed: &TestBed, pod: &Netns) -> Result<Running> {
    let arguments = ["hold", &bed.sockets(HOST, 80)[0].to_string(), "--host", HOST];
    let client = bed.pod_command(pod, CLIENT)?.in_cgroup(bed.cgroup())?.args(arguments).spawn()?;
    client.wait_for_output("connected\n")?;
    Ok(client)
}

fn curl(bed: &TestBed, pod: &Netns) -> Result<Output> {
    // To the same listener as those that are held, which accepts in order.
    let arguments = ["-q", "-4", "-sS", "-i", "--max-time", "15", URL];
    bed.pod_command(pod, "curl")?.in_cgroup(bed.cgroup())?.args(arguments).run()
}
