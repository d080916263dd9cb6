//! Where a connection was going follows it to the agent: its own origin, whatever else waits beside it or had its port before.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use egress_common::{address::IpBytes, flow::Flow};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    netns::Netns,
    origin::{Origin, Reply},
    process::{Output, Running},
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;

/// Both are configured.
const HOSTS: [&str; 2] = ["a.example", "b.example"];
/// Is not, so that it goes on to wherever its connection was going.
const UNLISTED: &str = "c.example";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");

#[test]
fn connections_of_one_slot_go_to_their_own_origins() -> Result<()> {
    const EACH: usize = 4;
    let mut bed = bed("one-slot")?;
    let pod = bed.add_pod("pod")?;
    let _origins = origins(&bed)?;
    let mut agent = agent(&bed)?;
    let _pause = bed.pod_command(&pod, "sleep")?.in_cgroup(bed.cgroup())?.arg("infinity").spawn()?;
    wait_until("the pod to be served", PATIENCE, || agent.namespaces().is_ok_and(|count| count == 3))?;
    for family in [0, 1] {
        agent.process().stop()?;
        let mut clients = Vec::new();
        let slot = slot(bed.client(), family)?;
        // While the first of the queue connects, so that it is not the one whose origin is in the slot.
        let mut before = Some(pend(&bed, HOSTS[0], family, 20_000)?);
        for netns in [bed.client(), &pod] {
            let ports = ports(netns, family, slot)?.into_iter().filter(|&port| port != 20_000);
            for (index, port) in ports.take(EACH).enumerate() {
                let host = HOSTS[index % HOSTS.len()];
                let client = hold(&bed, netns, host, family, port)?;
                client.wait_for_output("connected\n")?;
                clients.push((client, host));
                before.take().iter_mut().for_each(Running::kill);
            }
        }
        let [in_slots, rest] = agent.waiting()?;
        ensure!(
            clients.len() == 2 * EACH && in_slots.len() == 1 && rest.len() == 2 * EACH - 1,
            "{in_slots:?} {rest:?}"
        );
        agent.process().signal(Signal::SIGCONT)?;
        for (client, host) in &mut clients {
            client.close_stdin();
            ensure!(client.wait(PATIENCE)?.success(), "{:?}", client.stderr());
            ensure!(client.stdout().ends_with(&format!("\r\n\r\nby {host}\n")), "{host}: {}", client.stdout());
        }
        ensure!(agent.flows()? == 0, "{} flows are left", agent.flows()?);
    }
    ensure!(agent.metrics()?.sum("egress_connections_without_origin_total", &[]) == 0.0);
    Ok(())
}

#[test]
fn what_had_the_port_before_is_forgotten() -> Result<()> {
    let bed = bed("again")?;
    let _origins = origins(&bed)?;
    let mut agent = agent(&bed)?;
    let [a, b] = HOSTS;
    for family in [0, 1] {
        let all = ports(bed.client(), family, slot(bed.client(), family)?)?;
        let listener = agent.listener_ports(bed.client().cookie()?)?[family];
        let [first, second, third] = *all.first_chunk().context("too few ports")?;
        let to = |host, port| {
            Ok::<_, anyhow::Error>((flow(bed.client(), family, port, listener)?, bed.sockets(host, 80)[family]))
        };
        agent.process().stop()?;

        // Of those that fail nothing is left, wherever it was.
        let mut pending = pend(&bed, a, family, first)?;
        let mut other = pend(&bed, a, family, second)?;
        ensure!(agent.waiting()? == [[to(a, first)?], [to(a, second)?]], "{:?}", agent.waiting()?);
        other.kill();
        ensure!(agent.waiting()? == [vec![to(a, first)?], Vec::new()], "{:?}", agent.waiting()?);

        // It waits elsewhere, and then its next connection in the slot.
        ask_and_reset(&bed, a, family, second)?;
        ensure!(agent.waiting()? == [[to(a, first)?], [to(a, second)?]], "{:?}", agent.waiting()?);
        pending.kill();
        ask_and_reset(&bed, b, family, second)?;
        ensure!(agent.waiting()? == [vec![to(b, second)?], Vec::new()], "{:?}", agent.waiting()?);
        // Both times in the slot.
        ask_and_reset(&bed, a, family, second)?;
        ensure!(agent.waiting()? == [vec![to(a, second)?], Vec::new()], "{:?}", agent.waiting()?);
        // Both times elsewhere.
        for host in HOSTS {
            ask_and_reset(&bed, host, family, first)?;
            ensure!(agent.waiting()? == [[to(a, second)?], [to(host, first)?]], "{:?}", agent.waiting()?);
        }

        // One that has sent nothing is never accepted.
        let waiting = agent.waiting()?;
        reset(&bed, a, family, third)?;
        ensure!(agent.waiting()? == waiting, "{:?}", agent.waiting()?);

        agent.process().signal(Signal::SIGCONT)?;
        wait_until("the queue to be accepted", PATIENCE, || agent.flows().is_ok_and(|flows| flows == 0))?;
        // With an agent that is there it is the same.
        pend(&bed, a, family, first)?.kill();
        let output = retry(|| {
            let address = bed.sockets(b, 80)[family].to_string();
            let command = bed.client_command(CLIENT)?.args(["http", &address, "--port", &first.to_string()]);
            command.args(["--host", UNLISTED]).run()
        })?;
        ensure!(output.text().ends_with("by b.example\n"), "{output:?}");
        ensure!(agent.flows()? == 0, "{} flows are left", agent.flows()?);
    }
    Ok(())
}

/// One that is reset stays in the queue with its request, but its port is free for another.
#[test]
fn a_reset_connection_that_waits_does_not_get_the_next_one_s_origin() -> Result<()> {
    let bed = bed("reset")?;
    let origins = origins(&bed)?;
    let mut agent = agent(&bed)?;
    let [a, b] = HOSTS;
    let mut refused = 0.0;
    for family in [0, 1] {
        let slot = slot(bed.client(), family)?;
        let [before, moves, in_hash] = *ports(bed.client(), family, slot)?.first_chunk().context("too few ports")?;
        let [in_slot, fails] = *ports(bed.client(), family, slot ^ 1)?.first_chunk().context("too few ports")?;
        agent.process().stop()?;
        // The slot is taken until that connect fails, so that the first origin waits elsewhere, and the second in the slot.
        let mut before = pend(&bed, a, family, before)?;
        let mut clients = Vec::new();
        for port in [moves, in_hash, in_slot] {
            ask_and_reset(&bed, a, family, port)?;
            before.kill();
            let client = hold(&bed, bed.client(), b, family, port)?;
            client.wait_for_output("connected\n")?;
            clients.push(client);
        }
        // Between those that are made is one that is not.
        ask_and_reset(&bed, a, family, fails)?;
        pend(&bed, b, family, fails)?.kill();
        ask_and_reset(&bed, b, family, fails)?;
        let [in_slots, rest] = agent.waiting()?;
        ensure!(in_slots.len() == 2 && rest.len() == 2, "{in_slots:?} {rest:?}");
        agent.process().signal(Signal::SIGCONT)?;
        for client in &mut clients {
            client.close_stdin();
            ensure!(!client.wait(PATIENCE)?.success() && client.stdout() == "connected\n", "{}", client.stdout());
        }
        refused += 8.0;
        let requests = || origins.iter().flat_map(Origin::requests).collect::<Vec<_>>();
        wait_until("all of them to be refused", PATIENCE, || {
            let metrics = agent.metrics();
            metrics.is_ok_and(|found| found.sum("egress_connections_without_origin_total", &[]) == refused)
                || !requests().is_empty()
        })?;
        ensure!(requests().is_empty(), "asked for nevertheless: {:?}", requests());
        ensure!(agent.log_text().contains("whose origin may be another's"), "{}", agent.log_text());
        ensure!(agent.flows()? == 0, "{:?}", agent.waiting()?);
        // The port is none the worse for it.
        let mut client = hold(&bed, bed.client(), b, family, in_slot)?;
        client.close_stdin();
        ensure!(client.wait(PATIENCE)?.success() && client.stdout().ends_with("by b.example\n"), "{}", client.stdout());
        origins.iter().for_each(|origin| drop(origin.take_requests()));
    }
    Ok(())
}

#[test]
fn what_a_killed_agent_had_not_accepted_is_swept() -> Result<()> {
    let bed = bed("swept")?;
    let mut agent = agent(&bed)?;
    agent.process().stop()?;
    for port in ports(bed.client(), 0, slot(bed.client(), 0)?)?.into_iter().take(3) {
        ask_and_reset(&bed, HOSTS[0], 0, port)?;
    }
    ensure!(agent.waiting()?.map(|flows| flows.len()) == [1, 2], "{:?}", agent.waiting()?);
    agent.kill();
    let agent = self::agent(&bed)?;
    ensure!(agent.flows()? == 0, "{:?}", agent.waiting()?);
    Ok(())
}

/// One hangs, and the other has come in its place: each has a listener. What waits for the first is still its own.
#[test]
fn a_port_leads_to_two_agents_at_once() -> Result<()> {
    let bed = bed("two-agents")?;
    let _origins = origins(&bed)?;
    let mut hung = agent(&bed)?;
    hung.process().stop()?;
    let connect = |host: &'static str| {
        let clients = [0, 1].map(|family| {
            let client = hold(&bed, bed.client(), host, family, 20_000 + family as u16)?;
            client.wait_for_output("connected\n")?;
            Ok((client, host))
        });
        clients.into_iter().collect::<Result<Vec<_>>>()
    };
    let mut clients = connect(HOSTS[0])?;
    let config = bed.config_dir()?;
    let mut agent = Agent::spawn(&bed, &options(config.path()))?;
    agent.process().wait_for_line("its attachment", |line| line.contains("\"attached\""))?;
    agent.process().stop()?;
    clients.extend(connect(HOSTS[1])?);
    let netns = bed.client().cookie()?;
    let waiting = agent.waiting()?.concat().iter().filter(|(flow, _)| flow.netns == netns).count();
    ensure!(waiting == 4, "{:?}", agent.waiting()?);
    for agent in [&mut agent, &mut hung] {
        agent.process().signal(Signal::SIGCONT)?;
    }
    for (client, host) in &mut clients {
        client.close_stdin();
        ensure!(client.wait(PATIENCE)?.success(), "{host}: {:?}", client.stderr());
        ensure!(client.stdout().ends_with(&format!("\r\n\r\nby {host}\n")), "{host}: {}", client.stdout());
    }
    ensure!(hung.wait()?.code() == Some(0), "{}", hung.log_text());
    ensure!(agent.flows()? == 0, "{:?}", agent.waiting()?);
    Ok(())
}

/// Thousands wait at once, of two pods with the same ports, and each is told apart.
#[test]
fn a_full_queue_is_not_mixed_up() -> Result<()> {
    const COUNT: usize = 1500;
    let mut bed = bed("queue")?;
    let pod = bed.add_pod("pod")?;
    let _origins = origins(&bed)?;
    let mut agent = agent(&bed)?;
    let _pause = bed.pod_command(&pod, "sleep")?.in_cgroup(bed.cgroup())?.arg("infinity").spawn()?;
    wait_until("the pod to be served", PATIENCE, || agent.namespaces().is_ok_and(|count| count == 3))?;
    agent.process().stop()?;
    let pods = [bed.client(), &pod];
    let clients = pods.iter().zip([HOSTS, [HOSTS[1], HOSTS[0]]]).map(|(netns, hosts)| {
        let targets = hosts.map(|host| bed.sockets(host, 80)[0].to_string());
        let command = bed.pod_command(netns, CLIENT)?.in_cgroup(bed.cgroup())?.arg("queue").args(targets);
        let client = command.args(["--host", UNLISTED, "--port", "20000", "--count", &COUNT.to_string()]).spawn()?;
        client.wait_for_output("connected\n")?;
        Ok((client, hosts))
    });
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let [in_slots, rest] = agent.waiting()?.map(|flows| flows.len());
    ensure!(in_slots + rest == 2 * COUNT && in_slots > 0 && rest > 0, "{in_slots} {rest}");
    agent.process().signal(Signal::SIGCONT)?;
    for (mut client, hosts) in clients {
        client.close_stdin();
        ensure!(client.wait(PATIENCE)?.success(), "{:?}", client.stderr());
        let text = client.stdout();
        let mut lines = text.lines();
        ensure!(lines.next() == Some("connected") && text.lines().count() == 1 + COUNT, "{text}");
        for (line, host) in lines.zip(hosts.iter().cycle()) {
            ensure!(line == format!("200 by {host}"), "{line} rather than {host}");
        }
    }
    ensure!(agent.flows()? == 0, "{} flows are left", agent.flows()?);
    ensure!(agent.metrics()?.sum("egress_connections_without_origin_total", &[]) == 0.0);
    Ok(())
}

fn bed(name: &str) -> Result<TestBed> {
    HOSTS.iter().fold(TestBed::builder(name), |builder, host| builder.host(host)).build()
}

/// Each says which it is.
fn origins(bed: &TestBed) -> Result<Vec<Origin>> {
    let origin = |host: &&'static str| {
        let host = *host;
        bed.embedded_origin().clear(&bed.sockets(host, 80)).handler(move |_| Reply::ok(format!("by {host}\n"))).start()
    };
    HOSTS.iter().map(origin).collect()
}

fn agent(bed: &TestBed) -> Result<Agent<'_>> {
    let config = bed.config_dir()?;
    Agent::start(bed, &options(config.path()))
}

fn options(config: &Path) -> AgentOptions {
    AgentOptions::new(config).args(&HOSTS.map(|host| ["--host", host]).concat())
}

/// The flow of a client's port, to a listener of that family.
fn flow(netns: &Netns, family: usize, port: u16, listener: u16) -> Result<Flow> {
    Ok(Flow::new(netns.cookie()?, [IpBytes::LOOPBACK4, IpBytes::LOOPBACK6][family], port, listener))
}

/// A slot of a namespace, whatever the listener.
fn slot(netns: &Netns, family: usize) -> Result<u32> {
    Ok(flow(netns, family, 20_000, 0)?.slot())
}

/// Ports that have this slot, and that the kernel does not give out by itself.
fn ports(netns: &Netns, family: usize, slot: u32) -> Result<Vec<u16>> {
    let flow = flow(netns, family, 0, 0)?;
    Ok((2_000..32_000).filter(|&port| Flow::new(flow.netns, flow.address, port, 0).slot() == slot).collect())
}

/// A connection that asks once its standard input is closed.
fn hold(bed: &TestBed, netns: &Netns, host: &str, family: usize, port: u16) -> Result<Running> {
    let address = bed.sockets(host, 80)[family].to_string();
    let command = bed.pod_command(netns, CLIENT)?.in_cgroup(bed.cgroup())?.args(["hold", &address]);
    command.args(["--port", &port.to_string(), "--host", UNLISTED, "--count", "1"]).spawn()
}

/// A connection that is never made.
fn pend(bed: &TestBed, host: &str, family: usize, port: u16) -> Result<Running> {
    let address = bed.sockets(host, 80)[family].to_string();
    let command = bed.client_command(CLIENT)?.args(["pend", &address, "--port", &port.to_string(), "--count", "1"]);
    let client = command.spawn()?;
    client.wait_for_output("connecting\n")?;
    Ok(client)
}

/// A connection that is made and reset.
fn reset(bed: &TestBed, host: &str, family: usize, port: u16) -> Result<()> {
    let address = bed.sockets(host, 80)[family].to_string();
    let reset = || bed.client_command(CLIENT)?.args(["talk", &address, "--reset", "--port", &port.to_string()]).run();
    retry(reset).map(drop)
}

/// Likewise, once it has asked.
fn ask_and_reset(bed: &TestBed, host: &str, family: usize, port: u16) -> Result<()> {
    let address = bed.sockets(host, 80)[family].to_string();
    let request = format!("GET / HTTP/1.1\r\nhost: {UNLISTED}\r\n\r\n");
    let ask = || {
        let command = bed.client_command(CLIENT)?.args(["talk", &address, "--reset", "--port", &port.to_string()]);
        command.stdin(request.clone()).run()
    };
    retry(ask).map(drop)
}

/// Within some milliseconds of a connect that failed, the listener takes another from the same port for a part of it, and resets both.
fn retry(mut run: impl FnMut() -> Result<Output>) -> Result<Output> {
    let output = run()?;
    if output.code() != 0 && output.stderr.contains("Connection refused") { run()?.success() } else { output.success() }
}
