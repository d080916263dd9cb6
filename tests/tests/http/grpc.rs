//! gRPC: clients that speak HTTP/2 in clear, with streams both ways, trailers and deadlines. Client and server are Debian's.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    pki::Identity,
    process::{Command, Running},
    wait::{PATIENCE, wait_until},
};

use super::{HOST, agent_with_one_worker, configure};

/// Debian's, whichever else there are: it has the package.
const PYTHON: &str = "/usr/bin/python3";
/// Shares the addresses of HOST, and no rule names it.
const BYSTANDER: &str = "bystander.example";
const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: calls}
spec:
  hosts: [edition.cnn.com]
  ports: [{number: 80, name: grpc, protocol: GRPC, targetPort: 443}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: calls}
spec:
  host: edition.cnn.com
  trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}
";

#[test]
fn calls_and_streams_go_through_tls_both_ways() -> Result<()> {
    let bed = TestBed::new("grpc")?;
    let _server = serve(&bed, Some(&bed.pki().server(&[HOST])?), &bed.sockets(HOST, 443))?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = bed.config_dir()?;
    config.write("rules.yaml", RULES)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let capture = bed.capture()?;
    for address in bed.sockets(HOST, 80) {
        let output = client(&bed, address, HOST, "all")?.run()?.success()?;
        let expected = "OK 5 first end b'\\x00\\xff'\nOK 3000000 first end b'\\x00\\xff'\n\
                        FAILED_PRECONDITION not today: 100 %\nUNIMPLEMENTED Method not found!\n";
        ensure!(output.text() == expected, "{output:?}");
    }
    // Each message is answered before the next is sent.
    let mut streaming = client(&bed, bed.sockets(HOST, 80)[0], HOST, "lines")?.spawn()?;
    for message in ["one", "two", "three"] {
        streaming.write_stdin(format!("{message}\n").as_bytes())?;
        streaming.wait_for_output(&format!("echo {message}\n"))?;
    }
    streaming.close_stdin();
    ensure!(streaming.wait(PATIENCE)?.success() && streaming.stdout().ends_with("rest []\n"), "{}", streaming.stdout());
    ensure!(!capture.stop()?.contains(b"hello"), "a message was seen in clear");
    let records = agent.wait_for_records(9)?;
    ensure!(records.iter().all(|record| record.text("outcome") == "upgraded" && record.text("protocol") == "HTTP/2"));
    ensure!(records[8].text("path") == "/test.Echo/Stream" && records[8].text("received") == "26", "{:?}", records[8]);
    tripwire.assert_silent()
}

#[test]
fn calls_of_one_channel_are_under_way_at_the_same_time() -> Result<()> {
    let bed = TestBed::new("grpc-meet")?;
    let _server = serve(&bed, Some(&bed.pki().server(&[HOST])?), &bed.sockets(HOST, 443))?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let output = client(&bed, bed.sockets(HOST, 80)[0], HOST, "meet")?.patience(PATIENCE).run()?.success()?;
    ensure!(output.text() == "0 1 2 3 4 5 6 7 8 9\n", "{output:?}");
    agent.wait_for_records(10)?;
    Ok(())
}

#[test]
fn a_call_that_is_given_up_ends_at_the_origin_too() -> Result<()> {
    let bed = TestBed::new("grpc-cancel")?;
    let server = serve(&bed, Some(&bed.pki().server(&[HOST])?), &bed.sockets(HOST, 443))?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let mut calling = client(&bed, bed.sockets(HOST, 80)[0], HOST, "cancel")?.spawn()?;
    server.wait_for_output("waiting\n")?;
    calling.write_stdin(b"\n")?;
    ensure!(calling.wait(PATIENCE)?.success() && calling.stdout() == "True\n", "{}", calling.stdout());
    server.wait_for_output("cancelled\n")?;
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "aborted");
    let output = client(&bed, bed.sockets(HOST, 80)[0], HOST, "deadline")?.run()?.success()?;
    ensure!(output.text().starts_with("DEADLINE_EXCEEDED"), "{output:?}");
    // The origin knows the deadline too, though clients may round it up. Without one it would have no number, or one that has no end.
    let output = client(&bed, bed.sockets(HOST, 80)[0], HOST, "remaining")?.run()?.success()?;
    let seconds: f64 = output.text().trim().parse()?;
    ensure!(seconds > 0.0 && seconds <= 16.0, "{output:?}");
    Ok(())
}

#[test]
fn a_failure_of_ours_has_a_status_and_says_why() -> Result<()> {
    let bed = TestBed::new("grpc-failure")?;
    let _server = serve(&bed, Some(&bed.pki().expired(&[HOST])?), &bed.sockets(HOST, 443))?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let output = client(&bed, bed.sockets(HOST, 80)[0], HOST, "repeat")?.stdin("\n").run()?.success()?;
    ensure!(output.text().starts_with("UNAVAILABLE egress could not forward this request: "), "{output:?}");
    ensure!(output.text().contains("expired"), "{output:?}");
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("outcome") == "failed" && record.text("status") == "502", "{record:?}");
    tripwire.assert_silent()
}

/// The client's own words for what has no status of gRPC would not say why.
#[test]
fn a_call_that_is_refused_before_it_is_looked_at_is_told_why() -> Result<()> {
    let bed = TestBed::new("grpc-refused")?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path()).args(&["--workers", "1", "--max-head-fields", "4"]);
    let agent = Agent::start(&bed, &options)?;
    let output = client(&bed, bed.sockets(HOST, 80)[0], HOST, "repeat")?.stdin("\n").run()?.success()?;
    ensure!(output.text().starts_with("UNKNOWN egress ") && output.text().contains("4 fields"), "{output:?}");
    ensure!(agent.wait_for_records(1)?[0].text("status") == "431", "{:?}", agent.records());
    Ok(())
}

#[test]
fn a_failure_made_on_purpose_has_the_status_of_its_route() -> Result<()> {
    let bed = TestBed::new("grpc-abort")?;
    let config = configure(&bed)?;
    let route = format!("route: [{{destination: {{host: {HOST}}}}}]");
    config.write(
        "abort.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: abort}}\nspec:\n  hosts: [{HOST}]\n  http:\n  - \
             fault: {{abort: {{grpcStatus: RESOURCE_EXHAUSTED, percentage: {{value: 100}}}}}}\n    {route}\n"
        ),
    )?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let output = client(&bed, bed.sockets(HOST, 80)[0], HOST, "repeat")?.stdin("\n").run()?.success()?;
    ensure!(output.text().starts_with("RESOURCE_EXHAUSTED fault filter abort"), "{output:?}");
    Ok(())
}

/// At an address that is intercepted, and at one that is only looked at for its port.
#[test]
fn calls_to_hosts_without_a_rule_go_on_in_clear() -> Result<()> {
    let bed = TestBed::builder("grpc-bystander").host(HOST).alias(BYSTANDER, HOST).host("place.example").build()?;
    let clear: Vec<_> = [bed.sockets(HOST, 80), bed.sockets("place.example", 80)].concat();
    let _server = serve(&bed, None, &clear)?;
    let _secure = serve(&bed, Some(&bed.pki().server(&[HOST])?), &bed.sockets(HOST, 443))?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path()).args(&["--capture", "ports", "--exclude-cidr", "203.0.113.0/24"]);
    let agent = Agent::start(&bed, &options)?;
    for address in clear {
        let output = client(&bed, address, BYSTANDER, "all")?.run()?.success()?;
        ensure!(output.text().starts_with("OK 5 first end") && output.text().contains("not today"), "{output:?}");
    }
    let records = agent.wait_for_records(16)?;
    ensure!(records.iter().all(|record| record.text("outcome") == "passed_through"), "{records:?}");
    // A configured host at an address that nobody knows.
    let output = client(&bed, bed.sockets("place.example", 80)[0], HOST, "all")?.run()?.success()?;
    ensure!(output.text().starts_with("OK 5 first end"), "{output:?}");
    ensure!(agent.wait_for_records(20)?[16..].iter().all(|record| record.text("outcome") == "upgraded"));
    Ok(())
}

#[test]
fn an_upgrade_fails_no_call_and_cuts_no_stream() -> Result<()> {
    let bed = TestBed::new("grpc-upgrade")?;
    let _server = serve(&bed, Some(&bed.pki().server(&[HOST])?), &bed.sockets(HOST, 443))?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path());
    let mut old = Agent::start(&bed, &options)?;
    let address = bed.sockets(HOST, 80)[0];
    let mut calling = client(&bed, address, HOST, "repeat")?.spawn()?;
    let mut streaming = client(&bed, address, HOST, "lines")?.spawn()?;
    let say = |streaming: &Running, message: &str| {
        streaming.write_stdin(format!("{message}\n").as_bytes())?;
        streaming.wait_for_output(&format!("echo {message}\n"))
    };
    say(&streaming, "before")?;
    calling.write_stdin(b"\n\n\n")?;
    let new = Agent::take_over(&bed, &options)?;
    for _ in 0..20 {
        calling.write_stdin(b"\n")?;
    }
    say(&streaming, "after")?;
    calling.close_stdin();
    ensure!(calling.wait(PATIENCE)?.success());
    ensure!(calling.stdout().lines().filter(|line| line.starts_with("OK ")).count() == 23, "{}", calling.stdout());
    streaming.close_stdin();
    ensure!(streaming.wait(PATIENCE)?.success() && streaming.stdout().ends_with("rest []\n"), "{}", streaming.stdout());
    ensure!(old.wait()?.success(), "{}", old.log_text());
    wait_until("the channel to move to the new one", PATIENCE, || !new.records().is_empty())
}

fn serve(bed: &TestBed, identity: Option<&Identity>, addresses: &[SocketAddr]) -> Result<Running> {
    let command = Command::new(PYTHON).args(["-c", include_str!("grpc/server.py")]);
    let command = match identity {
        Some(identity) => command.arg(&identity.certificate_file).arg(&identity.key_file),
        None => command.args(["-", "-"]),
    };
    let running = command.args(addresses.iter().map(SocketAddr::to_string)).in_netns(bed.origin())?.spawn()?;
    running.wait_for_output("ready\n")?;
    Ok(running)
}

fn client(bed: &TestBed, address: SocketAddr, host: &str, action: &str) -> Result<Command> {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let target = format!("{family}:{address}");
    Ok(bed.client_command(PYTHON)?.args(["-c", include_str!("grpc/client.py"), &target, host, action]))
}
