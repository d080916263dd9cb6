//! The Host decides: which requests on an intercepted connection are upgraded, passed through, or refused.

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    clients::Head,
    origin::{Origin, Reply, ServerTls},
    process::Output,
    wait::{PATIENCE, wait_until},
};

const HOST: &str = "edition.cnn.com";
const OTHER: &str = "other.example";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");

#[test]
fn a_host_that_shares_the_address_is_passed_through_as_it_is() -> Result<()> {
    let bed = TestBed::builder("shared").host(HOST).alias(OTHER, HOST).build()?;
    let origin = origin(&bed, true)?;
    let agent = agent(&bed)?;
    for family in ["-4", "-6"] {
        let capture = bed.capture()?;
        let response = bed.curl(&format!("http://{OTHER}/path"))?.args([family, "-A", "test"]).response()?;
        let trace = capture.stop()?;
        ensure!(response.body == b"in clear: other.example /path\n", "{response:?}");
        ensure!(trace.connections_to_port(443).is_empty() && trace.connections_to_port(80).len() == 1);
        let [request] = origin.take_requests().try_into().ok().context("not one request")?;
        let head = "GET /path HTTP/1.1\r\nHost: other.example\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n";
        ensure!(request.head == head.as_bytes(), "{:?}", String::from_utf8_lossy(&request.head));
        // The pod's address and routes are kept, so its network policy holds.
        ensure!(request.client.ip() == bed.client_address(request.server.ip()), "{request:?}");
    }
    for record in agent.wait_for_records(2)? {
        ensure!((record.text("outcome"), record.text("host")) == ("passed_through".into(), OTHER.into()), "{record:?}");
        ensure!(record.text("tls").is_empty(), "{record:?}");
    }
    ensure!(agent.metrics()?.sum("egress_requests_total", &[("outcome", "passed_through")]) == 2.0);
    Ok(())
}

#[test]
fn on_one_connection_each_request_goes_its_own_way() -> Result<()> {
    let bed = TestBed::builder("alternate").host(HOST).alias(OTHER, HOST).build()?;
    let origin = origin(&bed, true)?;
    let agent = agent(&bed)?;
    for address in bed.sockets(HOST, 80) {
        let output = bed
            .client_command(CLIENT)?
            .args(["http", &address.to_string(), "--count", "6", "--host", HOST, "--other-host", OTHER])
            .run()?
            .success()?;
        let text = output.text();
        let ways = text.lines().filter(|line| line.contains(" /politics")).collect::<Vec<_>>();
        let both = ["over TLS: edition.cnn.com /politics", "in clear: other.example /politics"];
        ensure!(ways == both.repeat(3), "{text}");
    }
    for request in origin.wait_for_requests(12)? {
        ensure!(request.tls.is_some() == (request.host == HOST), "{request:?}");
    }
    for record in agent.wait_for_records(12)? {
        let expected = if record.text("host") == HOST { "upgraded" } else { "passed_through" };
        ensure!(record.text("outcome") == expected, "{record:?}");
    }
    // Twice one connection, and not one for each request.
    ensure!(agent.metrics()?.sum("egress_connects_total", &[("outcome", "redirected")]) == 2.0);
    Ok(())
}

#[test]
fn a_host_is_recognised_in_all_its_forms() -> Result<()> {
    let bed = TestBed::new("forms")?;
    let origin = origin(&bed, false)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let agent = agent(&bed)?;
    // The request line and Host as sent, and as the origin must see them.
    let cases = [
        ("/a", "EDITION.Cnn.Com", "/a", "EDITION.Cnn.Com"),
        ("/b", "edition.cnn.com:80", "/b", "edition.cnn.com:80"),
        ("/c", "edition.cnn.com.", "/c", "edition.cnn.com."),
        ("/d", "Edition.CNN.com.:80", "/d", "Edition.CNN.com.:80"),
        // The target's authority is the one that counts (RFC 9112, 3.2.2).
        ("http://edition.cnn.com/e?q=%7E", "edition.cnn.com", "/e?q=%7E", "edition.cnn.com"),
        ("http://edition.cnn.com/f", "other.example", "/f", "edition.cnn.com"),
        ("http://Edition.cnn.com:80", "edition.cnn.com", "/", "Edition.cnn.com:80"),
    ];
    for address in bed.sockets(HOST, 80) {
        for (target, host, seen_target, seen_host) in cases {
            let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let output = raw(&bed, &address.to_string(), request)?.success()?;
            ensure!(Head::parse(&output.stdout)?.status == 200, "{target} {host}: {output:?}");
            let [request] = origin.take_requests().try_into().ok().context("not one request")?;
            ensure!((request.target.as_str(), request.host.as_str()) == (seen_target, seen_host), "{request:?}");
            ensure!(request.tls.context("in clear")?.sni.as_deref() == Some(HOST), "{target} {host}");
        }
    }
    for record in agent.wait_for_records(2 * cases.len())? {
        ensure!((record.text("outcome"), record.text("host")) == ("upgraded".into(), HOST.into()), "{record:?}");
    }
    tripwire.assert_silent()
}

#[test]
fn a_request_of_which_nobody_can_say_whose_it_is_goes_nowhere() -> Result<()> {
    let bed = TestBed::builder("nobody").host(HOST).alias(OTHER, HOST).build()?;
    let origin = origin(&bed, false)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let agent = agent(&bed)?;
    let requests = [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\nHost: edition.cnn.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: other.example\r\nHost: edition.cnn.com\r\n\r\n",
        "GET http://edition.cnn.com/ HTTP/1.1\r\nHost: other.example\r\nHost: edition.cnn.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: other.example@edition.cnn.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: edition.cnn.com/path\r\n\r\n",
    ];
    let addresses = bed.sockets(HOST, 80);
    for address in addresses {
        for request in requests {
            let output = raw(&bed, &address.to_string(), request)?.success()?;
            let head = Head::parse(&output.stdout)?;
            ensure!(head.status == 400, "{request:?}: {output:?}");
            let reason = head.header("proxy-status").context("without a reason")?;
            ensure!(reason.starts_with("egress;error=http_request_error;details="), "{request:?}: {reason}");
            ensure!(output.text().contains("egress could not forward this request: "), "{request:?}: {output:?}");
        }
    }
    let count = addresses.len() * requests.len();
    for record in agent.wait_for_records(count)? {
        ensure!((record.text("outcome"), record.text("status")) == ("refused".into(), "400".into()), "{record:?}");
        ensure!(!record.text("error").is_empty(), "{record:?}");
    }
    ensure!(agent.metrics()?.sum("egress_requests_total", &[("outcome", "refused")]) == count as f64);
    ensure!(origin.connections() == 0, "the origin's port 443 was touched");
    tripwire.assert_silent()
}

#[test]
fn what_is_not_http_goes_nowhere() -> Result<()> {
    let bed = TestBed::new("not-http")?;
    let origin = origin(&bed, false)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let agent = agent(&bed)?;
    let client_hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03 and so on, as of TLS sent to port 80";
    // As a rule there is no empty line, and whoever sends that waits for an answer.
    let cases: [&[u8]; 4] = [b"SSH-2.0-OpenSSH_9.2\r\n", client_hello, b"\0\x01\x02\x03", b"EHLO edition.cnn.com\r\n"];
    let addresses = bed.sockets(HOST, 80);
    for address in addresses {
        for bytes in cases {
            let output = bed.client_command(CLIENT)?.args(["raw", &address.to_string()]).stdin(bytes).run()?;
            // Answered or reset: whichever it is, the client learns that it got nowhere.
            let answered = Head::parse(&output.stdout).is_ok_and(|head| head.status == 400);
            ensure!(answered, "{:?}: {output:?}", String::from_utf8_lossy(bytes));
        }
    }
    let count = (addresses.len() * cases.len()) as f64;
    // The answer is sent first.
    wait_until("all of them to be counted", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum("egress_connections_not_http_total", &[]) == count)
    })?;
    ensure!(origin.connections() == 0, "the origin's port 443 was touched");
    ensure!(agent.records().is_empty(), "{:?}", agent.records());
    tripwire.assert_silent()
}

/// The configured host over TLS, and with `clear` whatever comes in clear as well.
fn origin(bed: &TestBed, clear: bool) -> Result<Origin> {
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.handler(|request| {
        let way = if request.tls.is_some() { "over TLS" } else { "in clear" };
        Reply::ok(format!("{way}: {} {}\n", request.host, request.target))
    });
    if clear { origin.clear(&bed.sockets(HOST, 80)).start() } else { origin.start() }
}

fn agent(bed: &TestBed) -> Result<Agent<'_>> {
    let config = bed.config_dir()?;
    Agent::start(bed, &AgentOptions::new(config.path()).args(&["--host", HOST]))
}

fn raw(bed: &TestBed, address: &str, bytes: impl Into<Vec<u8>>) -> Result<Output> {
    bed.client_command(CLIENT)?.args(["raw", address, "--half-close"]).stdin(bytes).run()
}
