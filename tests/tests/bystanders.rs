//! Nobody else is touched: what no rule names goes where it was going, as it is.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use egress_common::flow::CONNECTING_PER_NETNS;
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    origin::{Origin, Reply, ServerTls},
    udp::UdpEcho,
    wait::{PATIENCE, wait_until},
};

const HOST: &str = "edition.cnn.com";
const OTHER: &str = "other.example";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");

#[test]
fn a_host_at_other_addresses_is_left_alone() -> Result<()> {
    let bed = TestBed::builder("unlisted").host(HOST).host(OTHER).build()?;
    check_untouched(&bed, &bed.sockets(OTHER, 80), OTHER)
}

#[test]
fn another_port_of_a_configured_host_is_left_alone() -> Result<()> {
    let bed = TestBed::new("port")?;
    check_untouched(&bed, &bed.sockets(HOST, 8080), HOST)
}

#[test]
fn udp_to_a_configured_address_and_port_arrives_as_it_is() -> Result<()> {
    let bed = TestBed::new("udp")?;
    let agent = agent(&bed)?;
    for address in bed.sockets(HOST, 80) {
        let _echo = UdpEcho::start(bed.origin(), address)?;
        let capture = bed.capture()?;
        let output = bed.client_command(CLIENT)?.args(["udp", &address.to_string(), "ping"]).run()?.success()?;
        let trace = capture.stop()?;
        ensure!(output.text() == "ping", "{output:?}");
        ensure!(output.stderr.contains(&format!("peername {address}\n")), "{output:?}");
        ensure!(trace.packets_of_port(80) == 2, "{address}: there and back are two packets: {trace:?}");
    }
    ensure!(agent.metrics()?.sum("egress_connects_total", &[("outcome", "not_tcp")]) == 2.0);
    ensure!(agent.records().is_empty(), "{:?}", agent.records());
    Ok(())
}

/// What is redirected waits in one place for all pods until it is accepted, and these connections never are.
#[test]
fn a_pod_whose_connects_never_end_leaves_room_for_others() -> Result<()> {
    const SHARE: usize = CONNECTING_PER_NETNS as usize;
    const MORE: usize = 8;
    // Where the processor is emulated, so many take a while.
    const LONG: Duration = Duration::from_secs(150);
    let mut bed = TestBed::new("pending")?;
    let pod = bed.add_pod("pod")?;
    let _origin = origin(&bed, &[])?;
    let agent = agent(&bed)?;
    let _pause = bed.pod_command(&pod, "sleep")?.in_cgroup(bed.cgroup())?.arg("infinity").spawn()?;
    wait_until("the pod to be served", PATIENCE, || pod.listening().is_ok_and(|found| found.len() == 2))?;
    let (address, count) = (bed.sockets(HOST, 80)[0].to_string(), (SHARE + MORE).to_string());
    let command = bed.pod_command(&pod, CLIENT)?.in_cgroup(bed.cgroup())?;
    let mut client = command.args(["pend", &address, "--count", &count]).spawn()?;
    for round in 1..=2 {
        wait_until("the connects", LONG, || client.stdout() == "connecting\n".repeat(round))?;
        ensure!(agent.flows()? == SHARE, "{} flows", agent.flows()?);
        let refused = agent.metrics()?.sum("egress_connects_total", &[("outcome", "flow_not_published")]);
        ensure!(refused == (round * MORE) as f64, "{refused} refused");
        ensure!(bed.curl(&format!("http://{HOST}/"))?.response()?.head.status == 200);
        // They end, and leave room for others.
        if round == 1 {
            client.write_stdin(b"\n")?;
        }
    }
    ensure!(client.wait(PATIENCE)?.success());
    ensure!(agent.flows()? == 0, "{} flows are left", agent.flows()?);
    Ok(())
}

#[test]
fn a_program_that_takes_our_callback_away_uses_up_no_share() -> Result<()> {
    let bed = TestBed::new("deaf")?;
    let _origin = origin(&bed, &[])?;
    let agent = agent(&bed)?;
    bed.cgroup().attach_deaf_program()?;
    for address in bed.sockets(HOST, 80) {
        for arguments in [[].as_slice(), &["--mptcp"], &["--fastopen"]] {
            let command = bed.client_command(CLIENT)?.args(["http", &address.to_string()]);
            let output = command.args(arguments).run()?.success()?;
            ensure!(output.text().ends_with(&format!("over TLS: {HOST}\n")), "{output:?}");
            ensure!(agent.connecting()? == 0, "{address} {arguments:?}: {} are left", agent.connecting()?);
        }
    }
    Ok(())
}

/// Nobody is told of their end.
#[test]
fn connects_that_fail_under_such_a_program_use_up_no_share_for_long() -> Result<()> {
    const MANY: u64 = CONNECTING_PER_NETNS / 2 + 8;
    let bed = TestBed::new("deaf-failing")?;
    let _origin = origin(&bed, &[])?;
    let agent = agent(&bed)?;
    bed.cgroup().attach_deaf_program()?;
    let (address, count) = (bed.sockets(HOST, 80)[0].to_string(), MANY.to_string());
    let mut client = bed.client_command(CLIENT)?.args(["pend", &address, "--count", &count]).spawn()?;
    client.wait_for_output("connecting\n")?;
    ensure!(agent.connecting()? == MANY, "{}", agent.connecting()?);
    client.kill();
    wait_until("them to be counted anew", PATIENCE, || agent.connecting().is_ok_and(|count| count < MANY / 2))
}

#[test]
fn the_programs_say_what_they_decide_when_asked_to() -> Result<()> {
    let bed = TestBed::builder("log").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed, &bed.sockets(OTHER, 80))?;
    let config = bed.config_dir()?;
    let start = |arguments: &[&str]| Agent::start(&bed, &AgentOptions::new(config.path()).args(arguments));
    for (arguments, expected) in
        [([].as_slice(), false), (&["--log-ebpf"], true), (&["--log-ebpf", "--log-level", "info"], true)]
    {
        let agent = start(&[&["--host", HOST], arguments].concat())?;
        for host in [HOST, OTHER] {
            bed.curl(&format!("http://{host}/"))?.run()?;
        }
        agent.wait_for_records(1)?;
        for line in ["connect: redirected", "connect: unmatched"] {
            if expected {
                wait_until("the programs' words", PATIENCE, || agent.log_text().contains(line))?;
            }
            ensure!(agent.log_text().contains(line) == expected, "{line}: {}", agent.log_text());
        }
        agent.terminate()?;
    }
    Ok(())
}

#[test]
fn a_process_outside_the_cgroup_is_left_alone() -> Result<()> {
    let bed = TestBed::new("outside")?;
    let origin = origin(&bed, &bed.sockets(HOST, 80))?;
    let agent = agent(&bed)?;
    for (address, family) in bed.sockets(HOST, 80).into_iter().zip(["-4", "-6"]) {
        let response = bed.outside_curl(&format!("http://{HOST}/politics"))?.args([family]).response()?;
        ensure!(response.body == b"in clear: edition.cnn.com\n", "{response:?}");
        let output = bed.outside_command(CLIENT)?.args(["http", &address.to_string()]).run()?.success()?;
        ensure!(output.stderr.contains(&format!("peername {address}\n")), "{output:?}");
        let requests = origin.take_requests();
        ensure!(requests.len() == 2 && requests.iter().all(|request| request.tls.is_none()), "{requests:?}");
        ensure!(output.stderr.contains(&format!("sockname {}\n", requests[1].client)), "{output:?} {requests:?}");
    }
    ensure!(agent.records().is_empty(), "{:?}", agent.records());
    let metrics = agent.metrics()?;
    // The agent's own test connects inside.
    let connects = |labels: &[(&str, &str)]| metrics.sum("egress_connects_total", labels);
    ensure!(connects(&[]) == connects(&[("outcome", "self_test")]), "the hooks ran outside the cgroup: {metrics:?}");
    Ok(())
}

/// Requests to these addresses reach the origin in clear, on the client's own connections.
fn check_untouched(bed: &TestBed, addresses: &[SocketAddr], host: &str) -> Result<()> {
    let origin = origin(bed, addresses)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let agent = agent(bed)?;
    for address in addresses {
        for arguments in [[].as_slice(), &["--mptcp"], &["--mapped"], &["--fastopen"]] {
            let command = bed.client_command(CLIENT)?.args(["http", &address.to_string(), "--host", host]);
            let output = command.args(arguments).run()?.success()?;
            ensure!(output.text().ends_with(&format!("in clear: {host}\n")), "{arguments:?}: {output:?}");
            let requests = origin.take_requests();
            ensure!(requests.len() == 1 && requests[0].server == *address, "{arguments:?}: {requests:?}");
            let own = requests[0].client;
            ensure!(own.ip() == bed.client_address(address.ip()), "{arguments:?}: {requests:?}");
            // A mapped socket writes the address in another form.
            ensure!(output.stderr.lines().any(|line| line.starts_with("sockname ") && ends_with_port(line, own)));
        }
    }
    let metrics = agent.metrics()?;
    ensure!(metrics.sum("egress_connects_total", &[("outcome", "unmatched")]) == 8.0, "{metrics:?}");
    ensure!(metrics.sum("egress_connects_total", &[("outcome", "redirected")]) == 0.0, "{metrics:?}");
    ensure!(agent.records().is_empty(), "{:?}", agent.records());
    tripwire.assert_silent()
}

fn ends_with_port(line: &str, address: SocketAddr) -> bool {
    line.ends_with(&format!(":{}", address.port()))
}

/// The configured host over TLS, and something in clear.
fn origin(bed: &TestBed, clear: &[SocketAddr]) -> Result<Origin> {
    bed.embedded_origin()
        .tls(&bed.sockets(HOST, 443), &ServerTls::new(bed.pki().server(&[HOST])?))?
        .clear(clear)
        .handler(|request| {
            let way = if request.tls.is_some() { "over TLS" } else { "in clear" };
            Reply::ok(format!("{way}: {}\n", request.host))
        })
        .start()
}

fn agent(bed: &TestBed) -> Result<Agent<'_>> {
    let config = bed.config_dir()?;
    Agent::start(bed, &AgentOptions::new(config.path()).args(&["--host", HOST]))
}
