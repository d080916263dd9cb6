//! What is taken of applications.

use std::{
    fs,
    io::Read as _,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, LogLine},
    netns::Netns,
    origin::{Reply, Request, script},
    process::{Output, Running},
    wait::{PATIENCE, wait_until},
};
use tokio::{sync::watch, time::sleep};

use super::{CLIENT, HOST, URL, configure, origin};

/// What HTTP/2 begins with.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// More than the kernel keeps for a reader that stands still.
const LARGE: usize = 64 << 20;
pub(crate) const TURNED_AWAY: &str = "egress_connections_turned_away_total";

/// Whoever probes the agent or reads its metrics asks at once.
#[test]
fn the_admin_endpoint_waits_for_nobody() -> Result<()> {
    /// Half the time that they have.
    const SOON: Duration = Duration::from_secs(5);
    /// Twice of it.
    const ENDED: Duration = Duration::from_secs(20);
    let bed = TestBed::new("admin-silent")?;
    let agent = bed.agent(&configure(&bed)?)?;
    let admin = SocketAddr::from(([127, 0, 0, 1], 9901));
    let silent =
        bed.node().run(|| Ok((0..100).map(|_| TcpStream::connect(admin)).collect::<Result<Vec<_>, _>>()?))?;
    let begun = Instant::now();
    ensure!(agent.admin("/healthz")?.0 == 200);
    ensure!(begun.elapsed() < SOON, "after {:?}", begun.elapsed());
    // Nor do those stay whose places nobody needs.
    for mut silent in [&silent[0], &silent[99]] {
        silent.set_read_timeout(Some(ENDED))?;
        ensure!(silent.read(&mut [0])? == 0, "it was told something");
    }
    Ok(())
}

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
    // Until the agent has noticed the pod, its connects are refused.
    wait_until("one pod not to be in the way of the other", PATIENCE, || is_served(&other).is_ok_and(|served| served))?;
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

/// Over HTTP/1 each would have a connection.
#[test]
fn requests_over_http2_count_as_connections() -> Result<()> {
    let bed = TestBed::new("limits-streams")?;
    let (release, released) = watch::channel(false);
    let handler = move |_: &Request| Reply::Later(released.clone(), Box::new(Reply::ok("fine")));
    let origin = origin(&bed)?.handler(handler).start()?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path()).args(&["--max-connections-per-pod", "3"]);
    let agent = Agent::start(&bed, &options)?;
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    let get = |stream: u8| {
        let mut head = frame(1, 5, &head());
        head[8] = stream;
        head
    };
    client.write_stdin(&[PREFACE, &frame(4, 0, &[]), &get(1), &get(3), &get(5)].concat())?;
    // A status that is in no table (RFC 7541 section 5.2).
    client.wait_for_bytes(b"\x03503")?;
    client.wait_for_output("this pod has 3 connections already")?;
    ensure!(agent.metrics()?.sum(TURNED_AWAY, &[("limit", "pod")]) == 1.0);
    origin.wait_for_requests(2)?;
    release.send_replace(true);
    client.wait_for_output("fine")?;
    let outcomes: Vec<_> = agent.wait_for_records(3)?.iter().map(|record| record.text("outcome")).collect();
    ensure!(outcomes == ["refused", "upgraded", "upgraded"], "{outcomes:?}");
    // They count no more.
    client.write_stdin(&[get(7), get(9)].concat())?;
    let outcomes: Vec<_> = agent.wait_for_records(5)?.iter().map(|record| record.text("outcome")).collect();
    ensure!(outcomes[3..] == ["upgraded", "upgraded"], "{outcomes:?}");
    Ok(())
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
    let agent = Agent::start(&bed, &options)?;
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n");
    let cases = [
        (head(""), "HTTP/1.1 200 ", "fine"),
        (head(&format!("X: {}\r\n", "x".repeat(900))), "HTTP/1.1 200 ", "fine"),
        (head(&format!("X: {}\r\n", "x".repeat(1000))), "HTTP/1.1 431 ", "than 1000 bytes (--max-head-bytes)"),
        (head(&"X: x\r\n".repeat(9)), "HTTP/1.1 200 ", "fine"),
        (head(&"X: x\r\n".repeat(10)), "HTTP/1.1 431 ", "than 10 fields (--max-head-fields)"),
        (head("").replace("GET / ", "GET /long "), "HTTP/1.1 502 ", ""),
        // What does not come to its end.
        (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n"), "HTTP/1.1 408 ", "in time (--head-timeout)"),
        // Nor begins.
        (String::new(), "", ""),
    ];
    for (request, expected, says) in cases {
        // The connection is ended by the agent: after a response too, when it has been idle.
        let output = raw(&bed, request.as_str())?.success()?;
        ensure!(output.text().starts_with(expected) && output.text().contains(says), "{request}: {output:?}");
        ensure!(output.text().is_empty() == expected.is_empty(), "{request}: {output:?}");
    }
    ensure!(origin.take_requests().len() == 4);
    ensure!(agent.metrics()?.sum("egress_connections_late_total", &[]) == 1.0);
    ensure!(agent.metrics()?.sum("egress_connections_not_http_total", &[]) == 2.0);
    ensure!(agent.log().iter().filter(|line| line.message().ends_with("(--head-timeout)")).count() == 1);

    // Over HTTP/2 it is a request like any other that is refused.
    let fields: Vec<_> = (0..12).flat_map(|number| ["-H".to_owned(), format!("X-{number}: x")]).collect();
    let refused = || agent.metrics().map(|metrics| metrics.sum("egress_requests_total", &[("outcome", "refused")]));
    let before = refused()?;
    let url = format!("http://{HOST}/");
    let command = bed.client_command("curl")?.args(["-q", "-sSi", "--http2-prior-knowledge", &url]).args(&fields);
    let output = command.run()?.success()?;
    ensure!(output.text().starts_with("HTTP/2 431 ") && output.text().contains("(--max-head-fields)"), "{output:?}");
    ensure!(refused()? == before + 1.0);
    ensure!(agent.metrics()?.sum("egress_connections_not_http_total", &[]) == 2.0);
    Ok(())
}

/// What of HTTP/2 does not come to its end, nor goes on.
#[test]
fn limits_of_times_are_those_of_http2_as_well() -> Result<()> {
    let bed = TestBed::new("limits-http2")?;
    let origin = origin(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path()).args(&["--head-timeout", "500ms"]);
    let agent = Agent::start(&bed, &options)?;
    let block = head();
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
    // More than the system keeps for one who does not read what answers it.
    let pings = frame(6, 0, b"12345678").repeat(2_000_000);
    let output = raw(&bed, [PREFACE, &settings, &pings].concat())?;
    ensure!(output.code() != 0, "{output:?}");
    ensure!(origin.take_requests().is_empty());
    ensure!(agent.metrics()?.sum("egress_connections_late_total", &[]) == 6.0);
    client.write_stdin(&whole)?;
    client.wait_for_output("fine")
}

/// Who sends a byte now and then has no longer than others.
#[test]
fn a_head_that_comes_by_the_byte_is_late() -> Result<()> {
    let bed = TestBed::new("limits-drip")?;
    let origin = origin(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let agent = Agent::start(&bed, &AgentOptions::new(config.path()).args(&["--head-timeout", "500ms"]))?;
    let late = || Ok::<_, anyhow::Error>(agent.metrics()?.sum("egress_connections_late_total", &[]));
    // Both go on for twenty seconds: a field that does not end, and a head of HTTP/2 in as many pieces.
    let endless = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}", "x".repeat(200));
    let begun = [PREFACE, &frame(4, 0, &[]), &frame(1, 1, &head())].concat();
    let block = frame(9, 0, &[0; 200]);
    for (done, (first, rest, says)) in
        [(vec![], endless.into_bytes(), Some("HTTP/1.1 408 ")), (begun, block, None)].into_iter().enumerate()
    {
        let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
        client.write_stdin(&first)?;
        let mut left = rest.iter();
        while late()? < (done + 1) as f64 {
            let byte = left.next().context("it was not late")?;
            client.write_stdin(&[*byte])?;
            std::thread::sleep(Duration::from_millis(100));
        }
        if let Some(says) = says {
            client.wait_for_output(says)?;
        }
    }
    // A connection may have been begun.
    ensure!(origin.requests().is_empty(), "{:?}", origin.requests());
    Ok(())
}

#[test]
fn a_connection_of_http2_is_idle_from_the_end_of_its_last_request_on() -> Result<()> {
    let bed = TestBed::new("limits-idle")?;
    let (release, released) = watch::channel(false);
    let handler = move |_: &Request| Reply::Later(released.clone(), Box::new(Reply::ok("fine")));
    let origin = origin(&bed)?.handler(handler).start()?;
    let config = configure(&bed)?;
    let agent = Agent::start(&bed, &AgentOptions::new(config.path()).args(&["--idle-timeout", "6s"]))?;
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    let mut get = frame(1, 5, &head());
    client.write_stdin(&[PREFACE, &frame(4, 0, &[]), &get].concat())?;
    origin.wait_for_requests(1)?;
    std::thread::sleep(Duration::from_millis(5600));
    release.send_replace(true);
    client.wait_for_output("fine")?;
    std::thread::sleep(Duration::from_secs(4));
    get[8] = 3;
    client.write_stdin(&get)?;
    agent.wait_for_records(2)?;
    // And then it ends (GOAWAY).
    client.wait_for_bytes(b"\0\0\x08\x07\0\0\0\0\0")
}

/// Neither a request nor a response on which nothing moves is waited for without end, and none that goes on is cut short.
#[test]
fn an_exchange_on_which_nothing_moves_ends() -> Result<()> {
    let bed = TestBed::new("limits-stalled")?;
    let origin = origin(&bed)?
        .handler(|_| Reply::Silence)
        .scripts(|request| match request.target.as_str() {
            "/slow" => Some(script(|mut wire| async move {
                wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").await?;
                for _ in 0..10 {
                    sleep(Duration::from_millis(300)).await;
                    wire.write(b"x").await?;
                }
                wire.shutdown().await
            })),
            "/large" => Some(script(|mut wire| async move {
                wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes()).await?;
                wire.write(&vec![b'x'; LARGE]).await
            })),
            "/silent" => Some(script(|mut wire| async move {
                wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await?;
                while !wire.read().await?.is_empty() {}
                Ok(())
            })),
            "/upload" => Some(script(|mut wire| async move {
                while !wire.read().await?.is_empty() {}
                Ok(())
            })),
            _ => None,
        })
        .start()?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path()).args(&["--idle-timeout", "1s"]);
    let agent = Agent::start(&bed, &options)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let spawn = |arguments: &[&str]| bed.client_command("curl")?.args(["-q", "-sS"]).args(arguments).spawn();
    let mut slow = spawn(&[&format!("http://{HOST}/slow")])?;
    // It reads nothing while it is stopped; the kernel takes a few MiB for it.
    let mut stopped = spawn(&["-o", "/dev/null", "--limit-rate", "1M", &format!("http://{HOST}/large")])?;
    wait_until("the large response to begin", PATIENCE, || {
        origin.requests().iter().any(|request| request.target == "/large")
    })?;
    stopped.signal(nix::sys::signal::Signal::SIGSTOP)?;

    let begun = format!("POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\nhello");
    let output = raw(&bed, begun)?.success()?;
    ensure!(output.text().starts_with("HTTP/1.1 408 "), "{output:?}");
    ensure!(output.text().contains("error=http_request_error;details=\"nothing more came of the"), "{output:?}");
    let output = raw(&bed, format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?.success()?;
    ensure!(output.text().starts_with("HTTP/1.1 504 "), "{output:?}");
    ensure!(output.text().contains("error=http_response_timeout;details=\"no response within 1s"), "{output:?}");
    let output = bed.client_command("curl")?.args(["-q", "-sS", &format!("http://{HOST}/silent")]).run()?;
    ensure!(output.code() == 56, "reset rather than ended: {output:?}");
    // Over HTTP/2 it is the connection that ends, if nothing moves on any of its streams.
    let request = [PREFACE, &frame(4, 0, &[]), &frame(1, 5, &head())].concat();
    bed.client_command(CLIENT)?.args(["raw", &address]).stdin(request).run()?;

    let records = agent.wait_for_records(6)?;
    let outcome = |path: &str, method: &str| -> Result<String> {
        let is = |record: &&LogLine| record.text("path") == path && record.text("method") == method;
        Ok(records.iter().find(is).with_context(|| format!("{path}: {records:?}"))?.text("outcome"))
    };
    ensure!(outcome("/slow", "GET")? == "upgraded" && outcome("/large", "GET")? == "truncated", "{records:?}");
    ensure!(outcome("/silent", "GET")? == "truncated", "{records:?}");
    ensure!(outcome("/upload", "POST")? == "refused", "{records:?}");
    ensure!(slow.wait(PATIENCE)?.success() && slow.stdout() == "x".repeat(10), "{}", slow.stdout());
    stopped.signal(nix::sys::signal::Signal::SIGCONT)?;
    ensure!(!stopped.wait(PATIENCE)?.success(), "a response that broke off looks complete");
    wait_until("the origin's connections to end", PATIENCE, || origin.open_connections() == 0)
}

/// The client may be gone, and the origin not care.
#[test]
fn a_tunnel_that_one_end_has_left_ends_with_the_patience_for_the_other() -> Result<()> {
    let bed = TestBed::new("limits-tunnel")?;
    let (release, held) = watch::channel(true);
    let scripts = move |_: &Request| {
        let mut held = held.clone();
        Some(script(move |mut wire| async move {
            wire.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\n").await?;
            Ok(held.wait_for(|held| !held).await.map(drop)?)
        }))
    };
    let origin = origin(&bed)?.scripts(scripts).start()?;
    let config = configure(&bed)?;
    let agent = Agent::start(&bed, &AgentOptions::new(config.path()).args(&["--idle-timeout", "1s"]))?;
    let ask = format!("GET /chat HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n");
    let address = bed.sockets(HOST, 80)[0].to_string();
    let output = bed.client_command(CLIENT)?.args(["raw", &address, "--half-close"]).stdin(ask).run()?;
    ensure!(output.text().starts_with("HTTP/1.1 101 "), "{output:?}");
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("error").contains("no bytes either way for 1s"), "{record:?}");
    release.send_replace(false);
    wait_until("the origin's connection to end", PATIENCE, || origin.open_connections() == 0)
}

/// A frame of HTTP/2, of the first stream unless it is about the connection: its type, its flags, and what it says.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, u8::from(![4, 6].contains(&kind))], payload].concat()
}

/// `GET http /` for HOST (RFC 7541 appendix A).
fn head() -> Vec<u8> {
    [&[0x82, 0x86, 0x84, 0x41, HOST.len() as u8], HOST.as_bytes()].concat()
}

fn raw(bed: &TestBed, request: impl Into<Vec<u8>>) -> Result<Output> {
    bed.client_command(CLIENT)?.args(["raw", &bed.sockets(HOST, 80)[0].to_string()]).stdin(request).run()
}

/// A client that has connected, and is to send a request when a line comes. It is accepted, within a second, as it sends nothing.
pub(crate) fn hold(bed: &TestBed, pod: &Netns) -> Result<Running> {
    let arguments = ["hold", &bed.sockets(HOST, 80)[0].to_string(), "--host", HOST];
    let client = bed.pod_command(pod, CLIENT)?.in_cgroup(bed.cgroup())?.args(arguments).spawn()?;
    client.wait_for_output("connected\n")?;
    // Before that the kernel has a mere request for a connection (TCP_NEW_SYN_RECV).
    let is_accepted = || {
        let sockets = pod.run(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?));
        sockets.is_ok_and(|sockets| sockets.lines().all(|line| line.split_whitespace().nth(3) != Some("03")))
    };
    wait_until("the client to be accepted", PATIENCE, is_accepted)?;
    Ok(client)
}

fn curl(bed: &TestBed, pod: &Netns) -> Result<Output> {
    // To the same listener as those that are held, which accepts in order.
    let arguments = ["-q", "-4", "-sS", "-i", "--max-time", "15", URL];
    bed.pod_command(pod, "curl")?.in_cgroup(bed.cgroup())?.args(arguments).run()
}
