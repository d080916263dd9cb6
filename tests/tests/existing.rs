//! Connections that were made before they could be intercepted.

use std::{fs, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, LogLine},
    cgroup::Cgroup,
    dns::DnsServer,
    origin::{Origin, Reply, ServerTls},
    process::{Command, Running},
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;

const HOST: &str = "edition.cnn.com";
const OTHER: &str = "other.example";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const IN_CLEAR: &str = "egress_connections_in_clear";
const UNREAD: &str = "egress_dns_sockets_unread";
const LOOKUP: &str = env!("CARGO_BIN_EXE_lookup");
const RESET: &str = "egress_connections_reset_total";
/// What the application's call returns when its connection was reset.
const ABORTED: &str = "Software caused connection abort";
/// The same of a datagram socket.
const DISCONNECTED: &str = "Destination address required";

#[test]
fn connections_made_before_the_start_are_reported() -> Result<()> {
    let bed = TestBed::builder("reported").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let clients = Clients::connect(&bed)?;
    let agent = start(&bed, &["--host", HOST])?;
    wait_for_metric(&agent, IN_CLEAR, 3.0)?;
    let warnings = wait_for_lines(&agent, 3, |line| !line.text("remote").is_empty())?;
    for (remote, count) in bed.sockets(HOST, 80).into_iter().zip([2, 1]) {
        let of_remote = warnings.iter().filter(|line| line.text("remote") == remote.to_string()).collect::<Vec<_>>();
        ensure!(of_remote.len() == count, "{remote}: {warnings:?}");
        for line in of_remote {
            let cgroup = bed.cgroup().path().display().to_string();
            ensure!(line.text("level") == "WARN" && line.text("cgroup") == cgroup, "{line:?}");
            ensure!(line.message().contains("--reset-existing"), "{line:?}");
            let local: SocketAddr = line.text("local").parse().context("no local address")?;
            ensure!(local.ip() == bed.client_address(remote.ip()), "{line:?}");
        }
    }
    for client in clients.of_host.iter().chain(&clients.of_others) {
        check_in_clear(client)?;
    }
    ensure!(agent.metrics()?.sum(RESET, &[]) == 0.0);
    Ok(())
}

#[test]
fn connections_made_before_the_start_are_reset_if_that_is_asked_for() -> Result<()> {
    let bed = TestBed::builder("reset").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let mut clients = Clients::connect(&bed)?;
    let agent = start(&bed, &["--host", HOST, "--reset-existing"])?;
    wait_for_metric(&agent, RESET, 3.0)?;
    for client in &mut clients.of_host {
        client.write_stdin(b"\n")?;
        ensure!(!client.wait(PATIENCE)?.success());
        ensure!(client.stderr().concat().contains(ABORTED), "{:?}", client.stderr());
        ensure!(!client.stdout().contains("in clear"), "{}", client.stdout());
    }
    for client in &clients.of_others {
        check_in_clear(client)?;
    }
    wait_for_lines(&agent, 3, |line| line.message().contains("reset a connection"))?;
    ensure!(agent.metrics()?.sum(IN_CLEAR, &[]) == 0.0, "{}", agent.log_text());
    Ok(())
}

#[test]
fn connections_to_hosts_that_become_configured_are_found_and_our_own_are_not() -> Result<()> {
    let bed = TestBed::builder("become").host(HOST).host(OTHER).alias("shared.example", HOST).build()?;
    let _origin = origin(&bed)?;
    // Where the hooks' scope includes the agent itself.
    let config = bed.config_dir()?;
    let options = AgentOptions::new(config.path()).args(&["--host", HOST, "--reset-existing"]).inside_cgroup();
    let agent = Agent::start(&bed, &options)?;
    // No rule names this host, so the agent's own connection to it is in clear, at an intercepted address.
    let command = hold(bed.client_command(CLIENT)?, bed.sockets("shared.example", 80)[0]);
    let passed_through = connected(command.args(["--host", "shared.example"]))?;
    check_in_clear(&passed_through)?;
    let mut early = connected(hold(bed.client_command(CLIENT)?, bed.sockets(OTHER, 80)[0]))?;
    ensure!(agent.metrics()?.sum(RESET, &[]) == 0.0);

    config.write("other.yaml", &include_str!("../seed/tls-origination.yaml").replace(HOST, OTHER))?;
    wait_for_metric(&agent, RESET, 1.0)?;
    early.write_stdin(b"\n")?;
    early.wait(PATIENCE)?;
    ensure!(early.stderr().concat().contains(ABORTED), "{:?}", early.stderr());
    passed_through.write_stdin(b"\n")?;
    wait_until("the second answer", PATIENCE, || passed_through.stdout().matches("in clear").count() == 2)?;
    ensure!(agent.metrics()?.sum(RESET, &[]) == 1.0 && agent.metrics()?.sum(IN_CLEAR, &[]) == 0.0);
    Ok(())
}

/// What they are told cannot be learned.
#[test]
fn sockets_that_were_connected_to_a_name_server_before_are_reported_or_reset() -> Result<()> {
    for reset in [false, true] {
        let bed = TestBed::builder("askers").host(HOST).host(OTHER).build()?;
        // Nobody needs to answer there.
        let server = bed.addresses(HOST).v4.to_string();
        let hold =
            |options: &[&str]| connected(bed.client_command(LOOKUP)?.args([&server, HOST, "--hold"]).args(options));
        let mut early = [hold(&[])?, hold(&["--mapped"])?];
        let agent = start(&bed, if reset { &["--host", HOST, "--reset-existing"] } else { &["--host", HOST] })?;
        let (name, count) = if reset { (RESET, 2.0) } else { (UNREAD, 2.0) };
        wait_for_metric(&agent, name, count)?;
        wait_for_lines(&agent, 2, |line| is_of_asker(line, &server))?;
        // One that the hooks see is not among them when they are looked for again.
        let _late = hold(&[])?;
        if reset {
            for client in &mut early {
                client.write_stdin(b"\n")?;
                let failed = !client.wait(PATIENCE)?.success();
                ensure!(failed && client.stderr().concat().contains(DISCONNECTED), "{client:?}");
            }
        } else {
            drop(early);
        }
        fs::write(
            bed.dir().join("config/other.yaml"),
            include_str!("../seed/tls-origination.yaml").replace(HOST, OTHER),
        )?;
        wait_for_metric(&agent, "egress_rules", 2.0)?;
        wait_for_metric(&agent, UNREAD, 0.0)?;
        ensure!(agent.metrics()?.sum(RESET, &[]) == if reset { 2.0 } else { 0.0 });
    }
    Ok(())
}

/// Here the descriptors are short for a while.
#[test]
fn what_cannot_be_listed_at_first_is_listed_later() -> Result<()> {
    const SERVER: &str = "dns.example";
    let bed = TestBed::builder("askers-later").host(SERVER).host(HOST).unlisted_host(OTHER);
    let bed = bed.resolv_conf("nameserver 198.51.100.1\noptions timeout:1 attempts:3\n").build()?;
    // While it is silent nothing is looked for.
    let _silent = DnsServer::start(bed.origin(), bed.addresses(SERVER).v4.into(), |_| None)?;
    let _early = connected(bed.client_command(LOOKUP)?.args([&bed.addresses(HOST).v4.to_string(), HOST, "--hold"]))?;
    let config = bed.config_dir()?;
    let hosts = ["--host", HOST, "--host", OTHER];
    let mut agent = Agent::spawn(&bed, &AgentOptions::new(config.path()).args(&hosts))?;
    agent.process().wait_for_line("the start", |line| line.contains("serving /readyz"))?;
    let pid = agent.process().pid().to_string();
    let limit = |descriptors: u32| -> Result<()> {
        Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={descriptors}:")]).run()?.success()?;
        Ok(())
    };
    limit(3)?;
    agent.process().wait_for_line("what is missed", |line| line.contains("cannot list all connections"))?;
    limit(1024)?;
    wait_for_metric(&agent, UNREAD, 1.0)
}

/// The programs went with the cgroup before, and nobody has seen what was connected until the agent followed. What they have seen
/// elsewhere is read.
#[test]
fn sockets_that_were_connected_to_a_name_server_in_a_cgroup_made_anew_are_reported() -> Result<()> {
    let bed = TestBed::builder("askers-anew").host(HOST).build()?;
    let [scope, other] = ["scope", "other"].map(|name| bed.cgroup().child(name));
    let (scope, other) = (scope?, other?);
    let config = bed.config_dir()?;
    let options = AgentOptions::new(config.path()).cgroup(scope.path());
    let also = other.path().display().to_string();
    let mut agent = Agent::start(&bed, &options.args(&["--host", HOST, "--cgroup", &also]))?;
    let server = bed.addresses(HOST).v4.to_string();
    let hold = |cgroup: &Cgroup| {
        let command = bed.pod_command(bed.client(), LOOKUP)?.in_cgroup(cgroup)?;
        connected(command.args([&server, HOST, "--hold"]))
    };
    let _seen = hold(&other)?;
    drop(scope);
    agent.process().signal(Signal::SIGSTOP)?;
    let scope = bed.cgroup().child("scope")?;
    let _unseen = hold(&scope)?;
    agent.process().signal(Signal::SIGCONT)?;
    wait_for_metric(&agent, UNREAD, 1.0)?;
    let warnings = wait_for_lines(&agent, 1, |line| is_of_asker(line, &server))?;
    ensure!(warnings[0].text("cgroup") == scope.path().display().to_string(), "{}", agent.log_text());
    Ok(())
}

/// Connections in clear, with a request to come.
struct Clients {
    /// To the host, from the scope: one of each family, and one of a socket of the one that speaks the other.
    of_host: Vec<Running>,
    /// One to another host, and one from outside the scope.
    of_others: Vec<Running>,
}

impl Clients {
    fn connect(bed: &TestBed) -> Result<Self> {
        let [v4, v6] = bed.sockets(HOST, 80);
        let inside = || bed.client_command(CLIENT);
        let of_host = [hold(inside()?, v4), hold(inside()?, v6), hold(inside()?, v4).arg("--mapped")];
        let of_others = [hold(inside()?, bed.sockets(OTHER, 80)[0]), hold(bed.outside_command(CLIENT)?, v4)];
        let connect = |commands: Vec<Command>| commands.into_iter().map(connected).collect::<Result<Vec<_>>>();
        Ok(Self { of_host: connect(of_host.into())?, of_others: connect(of_others.into())? })
    }
}

fn hold(command: Command, address: SocketAddr) -> Command {
    command.args(["hold", "--count", "2", &address.to_string()])
}

fn connected(command: Command) -> Result<Running> {
    let client = command.spawn()?;
    client.wait_for_output("connected\n")?;
    Ok(client)
}

fn check_in_clear(client: &Running) -> Result<()> {
    client.write_stdin(b"\n")?;
    client.wait_for_output("in clear\n").with_context(|| format!("{:?}", client.stderr()))
}

fn wait_for_metric(agent: &Agent<'_>, name: &str, value: f64) -> Result<()> {
    wait_until(name, PATIENCE, || agent.metrics().is_ok_and(|metrics| metrics.sum(name, &[]) == value))
        .with_context(|| agent.log_text())
}

/// Waits for so many lines of the log, which has them a moment later than the metrics have what they tell of.
fn wait_for_lines(agent: &Agent<'_>, count: usize, is_one: impl Fn(&LogLine) -> bool) -> Result<Vec<LogLine>> {
    let lines = || agent.log().into_iter().filter(&is_one).collect::<Vec<_>>();
    wait_until("the log", PATIENCE, || lines().len() >= count).with_context(|| agent.log_text())?;
    ensure!(lines().len() == count, "{}", agent.log_text());
    Ok(lines())
}

/// Whether a line is of a socket that is connected to this name server.
fn is_of_asker(line: &LogLine, server: &str) -> bool {
    line.text("remote") == format!("{server}:53") && line.message().contains("name server")
}

fn origin(bed: &TestBed) -> Result<Origin> {
    let tls = ServerTls::new(bed.pki().server(&bed.hosts())?);
    let mut origin = bed.embedded_origin();
    for host in [HOST, OTHER] {
        origin = origin.clear(&bed.sockets(host, 80)).tls(&bed.sockets(host, 443), &tls)?;
    }
    origin.handler(|request| Reply::ok(if request.tls.is_some() { "over TLS\n" } else { "in clear\n" })).start()
}

fn start<'bed>(bed: &'bed TestBed, arguments: &[&str]) -> Result<Agent<'bed>> {
    let config = bed.config_dir()?;
    Agent::start(bed, &AgentOptions::new(config.path()).args(arguments))
}
