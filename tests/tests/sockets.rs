//! Which sockets are redirected: every kind of TCP socket that goes to a configured host, and what becomes of it.

use std::{fs, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    origin::{Origin, Reply, ServerTls},
    process::Command,
    topology::DEVICE,
    wait::{PATIENCE, wait_until},
};

const HOST: &str = "edition.cnn.com";
const OTHER: &str = "other.example";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");

/// A kind of socket: the address that the client is given, what it is told besides, and the peer that it must see.
type Kind<'a> = (SocketAddr, &'a [&'a str], SocketAddr);

#[test]
fn every_kind_of_tcp_socket_is_upgraded_and_sees_the_origin_as_its_peer() -> Result<()> {
    let bed = TestBed::builder("kinds").host(HOST).host(OTHER).build()?;
    let origin = origin(&bed)?;
    let _other = bed.embedded_origin().clear(&bed.sockets(OTHER, 80)).start()?;
    let tripwire = bed.tripwire(&[HOST])?;
    let agent = agent(&bed)?;
    for setting in ["mptcp/enabled", "ipv4/tcp_fastopen"] {
        let value = bed.client().run(|| Ok(fs::read_to_string(format!("/proc/sys/net/{setting}"))?))?;
        ensure!(value.trim() == "1", "net/{setting} is {value}");
    }

    let [v4, v6] = bed.sockets(HOST, 80);
    let mapped = SocketAddr::new(bed.addresses(HOST).v4.to_ipv6_mapped().into(), 80);
    let [source4, source6] = [v4, v6].map(|address| bed.client_address(address.ip()).to_string());
    // Nobody listens there.
    let [closed4, closed6] = bed.sockets(HOST, 81).map(|address| address.to_string());
    let [other4, other6] = bed.sockets(OTHER, 80).map(|address| address.to_string());
    let kinds: [Kind<'_>; 20] = [
        (v4, &[], v4),
        (v6, &[], v6),
        (v4, &["--mapped"], mapped),
        (v4, &["--mptcp"], v4),
        (v6, &["--mptcp"], v6),
        (v4, &["--mptcp", "--mapped"], mapped),
        (v4, &["--fastopen"], v4),
        (v6, &["--fastopen"], v6),
        (v4, &["--fastopen", "--mapped"], mapped),
        (v4, &["--nonblocking"], v4),
        (v6, &["--nonblocking"], v6),
        (v4, &["--nonblocking", "--mapped"], mapped),
        (v4, &["--bind", &source4], v4),
        (v6, &["--bind", &source6], v6),
        (v4, &["--bind", &source4, "--mapped"], mapped),
        (v4, &["--after-refusal-by", &closed4], v4),
        (v6, &["--after-refusal-by", &closed6], v6),
        (v4, &["--after-leaving", &other4], v4),
        (v6, &["--after-leaving", &other6], v6),
        (v4, &["--mptcp", "--after-leaving", &other4], v4),
    ];
    let capture = bed.capture()?;
    for (address, arguments, peer) in &kinds {
        let name = format!("{address} {arguments:?}");
        let output = http(&bed, *address)?.args(*arguments).run()?.success().context(name.clone())?;
        ensure!(output.text().starts_with("HTTP/1.1 200 OK\r\n"), "{name}: {output:?}");
        ensure!(output.text().ends_with("over TLS: edition.cnn.com /politics\n"), "{name}: {output:?}");
        ensure!(output.stderr.contains(&format!("peername {peer}\n")), "{name}: {output:?}");
        let mptcp = arguments.contains(&"--mptcp");
        ensure!(output.stderr.contains("protocol 262\n") == mptcp, "{name}: {output:?}");
    }
    let trace = capture.stop()?;
    ensure!(!trace.contains(b"/politics"), "the path was seen");
    // Where a client went first and left, it said nothing.
    ensure!(trace.connections_to_port(80).iter().all(|connection| connection.sent.is_empty()));

    for request in origin.wait_for_requests(kinds.len())? {
        let tls = request.tls.as_ref().context("a request in clear")?;
        ensure!(tls.sni.as_deref() == Some(HOST), "{request:?}");
        ensure!(request.head.starts_with(b"GET /politics HTTP/1.1\r\nHost: edition.cnn.com\r\nX-Odd-Case: kept\r\n"));
    }
    for (record, (address, arguments, _)) in agent.wait_for_records(kinds.len())?.iter().zip(&kinds) {
        for (field, expected) in
            [("outcome", "upgraded"), ("host", HOST), ("status", "200"), ("origin", &address.to_string())]
        {
            ensure!(record.text(field) == expected, "{arguments:?}: {field} should be {expected}: {record:?}");
        }
    }
    ensure!(agent.metrics()?.sum("egress_connects_total", &[("outcome", "redirected")]) == kinds.len() as f64);
    tripwire.assert_silent()
}

#[test]
fn a_socket_that_was_redirected_and_left_goes_where_it_is_connected_next() -> Result<()> {
    let bed = TestBed::builder("left").host(HOST).host(OTHER).build()?;
    let origin = origin(&bed)?;
    let other = bed.embedded_origin().clear(&bed.sockets(OTHER, 80)).handler(|_| Reply::ok("other\n")).start()?;
    let tripwire = bed.tripwire(&[HOST])?;
    let agent = agent(&bed)?;
    let [left4, left6] = bed.sockets(HOST, 80);
    let [v4, v6] = bed.sockets(OTHER, 80);
    let mapped = |address: SocketAddr| address.to_string().replace("198", "[::ffff:198").replace(":80", "]:80");
    for (left, address, arguments, left_peer, peer) in [
        (left4, v4, [].as_slice(), left4.to_string(), v4.to_string()),
        (left6, v6, &[], left6.to_string(), v6.to_string()),
        (left4, v4, &["--mapped"], mapped(left4), mapped(v4)),
        (left4, v4, &["--mptcp"], left4.to_string(), v4.to_string()),
        (left6, v6, &["--mptcp"], left6.to_string(), v6.to_string()),
    ] {
        let command = http(&bed, address)?.args(["--after-leaving", &left.to_string()]).args(arguments);
        let output = command.run()?.success()?;
        let name = format!("{arguments:?} {output:?}");
        ensure!(output.text().ends_with("other\n"), "{name}");
        ensure!(output.stderr.contains(&format!("left {left_peer}\n")), "{name}");
        ensure!(output.stderr.contains(&format!("peername {peer}\n")), "{name}");
        let requests = other.take_requests();
        // The connection is the client's own, from end to end.
        ensure!(requests.len() == 1 && requests[0].tls.is_none(), "{requests:?}");
        ensure!(output.stderr.contains(&format!(":{}\nprotocol", requests[0].client.port())), "{name} {requests:?}");
    }
    ensure!(origin.connections() == 0 && agent.records().is_empty(), "{}", agent.log_text());
    wait_until("the left flows to be taken", PATIENCE, || agent.flows().is_ok_and(|flows| flows == 0))?;
    tripwire.assert_silent()
}

/// Bound to a device its packets could not reach the listener: by the device they would leave.
#[test]
fn a_socket_bound_to_a_device_is_upgraded_by_that_device() -> Result<()> {
    let bed = TestBed::new("device")?;
    let origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let agent = agent(&bed)?;
    for address in bed.sockets(HOST, 80) {
        let capture = bed.capture()?;
        let output = http(&bed, address)?.args(["--device", DEVICE]).run()?.success()?;
        let trace = capture.stop()?;
        ensure!(output.text().contains("200 OK"), "{address}: {output:?}");
        ensure!(trace.packets_of_port(80) == 0 && trace.packets_of_port(443) > 0, "{address}: {:?}", trace.segments());
    }
    // As many as there are workers that were given a client.
    let connections = origin.connections();
    // By the loopback device there is no way to the origin, and so there is none for the upstream socket either.
    let output = http(&bed, bed.sockets(HOST, 80)[0])?.args(["--device", "lo"]).run()?.success()?;
    ensure!(output.text().starts_with("HTTP/1.1 504 "), "{output:?}");
    ensure!(origin.connections() == connections, "{} connections", origin.connections());
    agent.wait_for_records(3)?;
    ensure!(agent.flows()? == 0, "{} flows are left", agent.flows()?);
    tripwire.assert_silent()
}

/// It went by whatever device there was a route by.
#[test]
fn a_socket_that_was_redirected_and_left_is_bound_to_its_device_again() -> Result<()> {
    let bed = TestBed::builder("device-left").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let _other = bed.embedded_origin().clear(&bed.sockets(OTHER, 80)).handler(|_| Reply::ok("other\n")).start()?;
    let _agent = agent(&bed)?;
    for (left, address) in bed.sockets(HOST, 80).into_iter().zip(bed.sockets(OTHER, 80)) {
        let (left, again) = (left.to_string(), format!("device {DEVICE}\n"));
        let client = |to| Ok::<_, anyhow::Error>(http(&bed, to)?.args(["--device", DEVICE, "--after-leaving", &left]));
        let output = client(address)?.run()?.success()?;
        ensure!(output.text().ends_with("other\n") && output.stderr.contains(&again), "{output:?}");
        // To be released once more.
        let output = client(left.parse()?)?.run()?.success()?;
        ensure!(output.text().contains("over TLS") && output.stderr.contains("device \n"), "{output:?}");
    }
    Ok(())
}

#[test]
fn a_request_whose_client_closes_at_once_still_arrives() -> Result<()> {
    let bed = TestBed::new("forget")?;
    let origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let agent = agent(&bed)?;
    for address in bed.sockets(HOST, 80) {
        let request = "POST /report HTTP/1.1\r\nHost: edition.cnn.com\r\nContent-Length: 5\r\n\r\nhello";
        bed.client_command(CLIENT)?.args(["forget", &address.to_string()]).stdin(request).run()?.success()?;
    }
    for request in origin.wait_for_requests(2)? {
        ensure!(request.tls.is_some() && request.method == "POST" && request.body == b"hello", "{request:?}");
    }
    for record in agent.wait_for_records(2)? {
        ensure!(record.text("method") == "POST" && record.text("host") == HOST, "{record:?}");
    }
    tripwire.assert_silent()
}

#[test]
fn a_client_that_says_nothing_leaves_nothing_behind() -> Result<()> {
    let bed = TestBed::new("silent")?;
    let origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let agent = agent(&bed)?;
    for address in bed.sockets(HOST, 80) {
        let address = address.to_string();
        let output = bed.client_command(CLIENT)?.args(["connect", &address]).run()?.success()?;
        ensure!(output.stderr.contains(&format!("peername {address}\n")), "{output:?}");
        http(&bed, address.parse()?)?.run()?.success()?;
    }
    origin.wait_for_requests(2)?;
    agent.wait_for_records(2)?;
    wait_until("the flows to be taken", PATIENCE, || agent.flows().is_ok_and(|flows| flows == 0))?;
    tripwire.assert_silent()
}

#[test]
fn a_crowd_is_not_mixed_up() -> Result<()> {
    const CLIENTS: usize = 100;
    const COUNT: usize = 3;
    const CONFIGURED: [&str; 2] = ["a.example", "b.example"];
    const UNLISTED: &str = "c.example";
    let [a, b] = CONFIGURED;
    let bed = TestBed::builder("crowd").host(a).alias(b, a).alias(UNLISTED, a).build()?;
    let tls = ServerTls::new(bed.pki().server(&[a])?).for_name(b, bed.pki().server(&[b])?);
    let origin = bed
        .embedded_origin()
        .tls(&bed.sockets(a, 443), &tls)?
        .clear(&bed.sockets(a, 80))
        .handler(|request| {
            let sni = request.tls.as_ref().and_then(|tls| tls.sni.clone()).unwrap_or("in clear".to_owned());
            Reply::ok(format!("{sni}: {}\n", request.host))
        })
        .start()?;
    let config = bed.config_dir()?;
    let agent = Agent::start(&bed, &AgentOptions::new(config.path()).args(&["--host", a, "--host", b]))?;
    for address in bed.sockets(a, 80) {
        let hosts = [a, b, UNLISTED].map(|host| ["--host", host]);
        let output = bed
            .client_command(CLIENT)?
            .args(["crowd", &address.to_string()])
            .args(hosts.as_flattened())
            .args(["--clients", &CLIENTS.to_string(), "--count", &COUNT.to_string()])
            .run()?
            .success()?;
        let text = output.text();
        ensure!(text.lines().count() == CLIENTS * COUNT, "{text}");
        for line in text.lines() {
            let host = line.split(' ').next().context("an empty line")?;
            let way = if CONFIGURED.contains(&host) { host } else { "in clear" };
            ensure!(line == format!("{host} 200 {way}: {host}"), "{line}");
        }
    }
    let requests = origin.wait_for_requests(2 * CLIENTS * COUNT)?;
    ensure!(requests.iter().all(|request| request.tls.is_some() == CONFIGURED.contains(&request.host.as_str())));
    let records = agent.wait_for_records(2 * CLIENTS * COUNT)?;
    for record in &records {
        let outcome = if record.text("host") == UNLISTED { "passed_through" } else { "upgraded" };
        ensure!(record.text("outcome") == outcome, "{record:?}");
    }
    ensure!(agent.flows()? == 0, "{} flows are left", agent.flows()?);
    ensure!(agent.metrics()?.sum("egress_connections_without_origin_total", &[]) == 0.0);
    Ok(())
}

#[test]
fn other_users_are_served() -> Result<()> {
    let bed = TestBed::new("user")?;
    let origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let _agent = agent(&bed)?;
    for family in ["-4", "-6"] {
        let url = format!("http://{HOST}/politics");
        let command = bed.client_command("curl")?.args(["-q", "-sS", family, &url]).uid(65534);
        let output = command.run()?.success()?;
        ensure!(output.text() == "over TLS: edition.cnn.com /politics\n", "{output:?}");
    }
    origin.wait_for_requests(2)?;
    tripwire.assert_silent()
}

/// As on a node whose agent is a pod itself: its own connections to configured addresses must not come back to it.
#[test]
fn an_agent_inside_the_cgroup_does_not_redirect_itself() -> Result<()> {
    let bed = TestBed::builder("inside").host(HOST).alias(OTHER, HOST).build()?;
    let origin = bed
        .embedded_origin()
        .tls(&bed.sockets(HOST, 443), &ServerTls::new(bed.pki().server(&[HOST])?))?
        .clear(&bed.sockets(HOST, 80))
        .handler(tell)
        .start()?;
    let config = bed.config_dir()?;
    let options = AgentOptions::new(config.path()).args(&["--host", HOST]).inside_cgroup();
    let agent = Agent::start(&bed, &options)?;
    for (host, expected) in [(HOST, "over TLS: edition.cnn.com /"), (OTHER, "in clear: other.example /")] {
        for family in ["-4", "-6"] {
            let response = bed.curl(&format!("http://{host}/"))?.args([family]).response()?;
            ensure!(response.body == format!("{expected}\n").as_bytes(), "{family} {host}: {response:?}");
        }
    }
    origin.wait_for_requests(4)?;
    agent.wait_for_records(4)?;
    let metrics = agent.metrics()?;
    // Only the two that are passed through go to an address and port that is intercepted.
    ensure!(metrics.sum("egress_connects_total", &[("outcome", "own_socket")]) == 2.0, "{metrics:?}");
    ensure!(metrics.sum("egress_connects_total", &[("outcome", "redirected")]) == 4.0, "{metrics:?}");
    Ok(())
}

#[test]
fn nobody_can_share_the_port_of_the_listener() -> Result<()> {
    let bed = TestBed::new("share")?;
    let before = bed.client().listening()?;
    let _agent = agent(&bed)?;
    let listening = bed.client().listening()?;
    ensure!(before.is_empty() && listening.len() == 2, "{before:?} {listening:?}");
    for address in listening {
        ensure!(address.ip().is_loopback(), "{address}: the listener can be reached from outside the pod");
        let wildcard = if address.is_ipv4() { "0.0.0.0".parse()? } else { "::".parse()? };
        for taken in [address, SocketAddr::new(wildcard, address.port())] {
            for command in [bed.client_command(CLIENT)?, bed.outside_command(CLIENT)?] {
                let output = command.args(["listen", &taken.to_string()]).run()?;
                ensure!(output.code() != 0 && output.stderr.contains("Address already in use"), "{taken}: {output:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_pod_without_ipv6_is_served() -> Result<()> {
    let bed = TestBed::new("no-ipv6")?;
    for scope in ["all", "default"] {
        bed.client().sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
    }
    let origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let agent = agent(&bed)?;
    let [v4, v6] = bed.sockets(HOST, 80);
    for arguments in [[].as_slice(), &["--mapped"]] {
        let output = http(&bed, v4)?.args(arguments).run()?.success()?;
        ensure!(output.text().ends_with("over TLS: edition.cnn.com /politics\n"), "{arguments:?}: {output:?}");
    }
    let output = http(&bed, v6)?.run()?;
    ensure!(output.code() != 0, "{output:?}");
    origin.wait_for_requests(2)?;
    agent.wait_for_records(2)?;
    ensure!(agent.flows()? == 0, "the flow of the failed connect is left");
    tripwire.assert_silent()
}

/// The configured host on port 443 alone; port 80 is left to a tripwire.
fn origin(bed: &TestBed) -> Result<Origin> {
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.handler(tell).start()
}

fn tell(request: &harness::origin::Request) -> Reply {
    let way = if request.tls.is_some() { "over TLS" } else { "in clear" };
    Reply::ok(format!("{way}: {} {}\n", request.host, request.target))
}

fn agent(bed: &TestBed) -> Result<Agent<'_>> {
    let config = bed.config_dir()?;
    Agent::start(bed, &AgentOptions::new(config.path()).args(&["--host", HOST]))
}

fn http(bed: &TestBed, address: SocketAddr) -> Result<Command> {
    Ok(bed.client_command(CLIENT)?.args(["http", &address.to_string()]))
}
