//! One agent follows another: no request is lost, and nothing leaves in clear.

mod draining;
mod failing;
mod hanging;
mod peer;

use std::{fs, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    cgroup::PROGRAMS,
    origin::{Origin, Reply, ServerTls},
    process::Running,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::Value;

const HOST: &str = "edition.cnn.com";
const URL: &str = "http://edition.cnn.com/politics";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const LOAD: &str = env!("CARGO_BIN_EXE_load");
/// What curl ends with when its connection is refused.
const REFUSED: i32 = 7;

/// The load that is asked for, and what a slow machine may make of it.
const RATE: &str = "2000";
const LEAST_RATE: f64 = 200.0;
/// How many requests each agent serves at least before the next one takes over.
const REQUESTS_BETWEEN: f64 = 1000.0;

#[test]
fn ten_upgrades_in_a_row_lose_no_request() -> Result<()> {
    let bed = TestBed::new("upgrades")?;
    let tripwire = bed.tripwire(&[HOST])?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let mut agent = Agent::start(&bed, &options)?;
    let load = load(&bed, RATE)?;
    load.wait_for_output("started\n")?;
    for _ in 0..10 {
        let successor = Agent::take_over(&bed, &options)?;
        ensure!(agent.wait()?.code() == Some(0), "{}", agent.log_text());
        ensure!(agent.log_text().contains("ended; another agent serves"), "{}", agent.log_text());
        agent = successor;
        wait_until("the load to be its own", PATIENCE, || {
            agent.metrics().is_ok_and(|metrics| metrics.sum("egress_requests_total", &[]) > REQUESTS_BETWEEN)
        })?;
    }
    let report = report(load)?;
    eprintln!("{report}");
    ensure!(report["failed"] == 0, "{report}");
    ensure!(report["rate"].as_f64().is_some_and(|rate| rate > LEAST_RATE), "{report}");
    ensure!(bed.cgroup().programs()? == PROGRAMS && agent.namespaces()? == 2 && agent.flows()? == 0);
    tripwire.assert_silent()
}

#[test]
fn agents_that_do_not_share_maps_follow_one_another_too() -> Result<()> {
    const CLOSED: &[&str] = &[];
    const OPEN: &[&str] = &["--fail-open"];
    const ELSEWHERE: &[&str] = &["--pin-dir", "/sys/fs/bpf/elsewhere"];
    for (first, second) in [(OPEN, OPEN), (CLOSED, OPEN), (OPEN, CLOSED), (CLOSED, ELSEWHERE)] {
        check_unshared(first, second, |_| Ok(())).with_context(|| format!("{first:?}, then {second:?}"))?;
    }
    check_unshared(CLOSED, CLOSED, |bed| {
        // As an agent with another layout of its maps has them.
        let pins = bed.bpffs().join("egress");
        let layout = fs::read_dir(&pins)?.next().context("nothing is pinned")??.path();
        Ok(fs::rename(layout, pins.join("layout-0"))?)
    })
    .context("another layout")
}

fn check_unshared(first: &[&str], second: &[&str], between: impl Fn(&TestBed) -> Result<()>) -> Result<()> {
    let bed = TestBed::new("unshared")?;
    let tripwire = bed.tripwire(&[HOST])?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let mut old = Agent::start(&bed, &options.clone().args(first))?;
    let load = load(&bed, "500")?;
    load.wait_for_output("started\n")?;
    between(&bed)?;
    let new = Agent::take_over(&bed, &options.args(second))?;
    ensure!(old.wait()?.code() == Some(0), "{}", old.log_text());
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    let report = report(load)?;
    ensure!(report["failed"] == 0, "{report}\n{}\n{}", old.log_text(), new.log_text());
    ensure!(bed.cgroup().programs()? == PROGRAMS, "{} programs are attached", bed.cgroup().programs()?);
    tripwire.assert_silent()
}

/// More sockets than the kernel passes with one message.
#[test]
fn the_sockets_of_many_namespaces_are_handed_over() -> Result<()> {
    const MANY: usize = 260;
    let bed = TestBed::new("many")?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let pods = format!("for pod in $(seq {MANY}); do unshare --net sleep infinity & done; wait");
    let _pods = bed.node_command("sh")?.args(["-c", &pods]).in_cgroup(bed.cgroup())?.spawn()?;
    let mut first = Agent::start(&bed, &options)?;
    let all = |agent: &Agent<'_>| agent.namespaces().is_ok_and(|count| count == MANY + 2);
    wait_until("all namespaces to be served", PATIENCE, || all(&first))?;
    let ports = bed.client().listening()?;
    let second = Agent::take_over(&bed, &options)?;
    ensure!(first.wait()?.code() == Some(0), "{}", first.log_text());
    let handed = format!("\"sockets\":{}", 2 * (MANY + 2) + 1);
    ensure!(first.log_text().contains(&handed), "{}", first.log_text());
    ensure!(all(&second) && bed.client().listening()? == ports, "these are other sockets");
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    Ok(())
}

#[test]
fn the_successor_takes_the_admin_address_or_one_of_its_own() -> Result<()> {
    let bed = TestBed::new("admin-handed")?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let mut first = Agent::start(&bed, &options)?;
    ensure!(bed.curl(URL)?.response()?.head.status == 200);
    first.wait_for_records(1)?;
    let mut second = Agent::take_over(&bed, &options)?;
    ensure!(first.wait()?.code() == Some(0), "{}", first.log_text());
    ensure!(second.admin("/readyz")? == (200, "ready\n".into()));
    ensure!(second.metrics()?.sum("egress_requests_total", &[]) == 0.0, "these are the metrics of the first one");
    let third = Agent::take_over(&bed, &options.admin_port(9902))?;
    ensure!(second.wait()?.code() == Some(0), "{}", second.log_text());
    ensure!(third.admin("/readyz")? == (200, "ready\n".into()));
    ensure!(bed.curl(URL)?.response()?.head.status == 200);
    ensure!(!bed.node().listening()?.contains(&SocketAddr::from(([127, 0, 0, 1], 9901))), "the old address is served");
    third.wait_for_records(1).map(drop)
}

/// Files are replaced one by one, and a start can come between.
#[test]
fn a_configuration_that_lacks_a_host_of_the_predecessor_is_read_again() -> Result<()> {
    const RULES: &str = include_str!("../../seed/tls-origination.yaml");
    let bed = TestBed::builder("lacks").host(HOST).host("other.example").build()?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("rules.yaml", RULES)?;
    let options = AgentOptions::new(config.path()).args(&["--host", "other.example"]);
    let mut first = Agent::start(&bed, &options)?;
    let applied = |agent: &mut Agent<'_>| {
        let applied = |line: &str| line.contains("policy applied");
        agent.process().wait_for_line("the first policy", applied)
    };
    for comes_back in [true, false] {
        // The agent that runs learns of it later.
        first.process().stop()?;
        config.write("rules.yaml", "")?;
        let mut second = Agent::spawn(&bed, &options)?;
        second.process().wait_for_line("it to be read again", |line| line.contains("it is read again"))?;
        if comes_back {
            config.write("rules.yaml", RULES)?;
        }
        let line = applied(&mut second)?;
        ensure!(line.contains(if comes_back { "\"rules\":2" } else { "\"rules\":1" }), "{line}");
        first.process().signal(Signal::SIGCONT)?;
        second.process().wait_for_line("the agent to take over", |line| line.contains("took over from the agent"))?;
        ensure!(first.wait()?.code() == Some(0), "{}", first.log_text());
        first = second;
    }
    Ok(())
}

#[test]
fn agents_that_start_at_the_same_time_follow_one_another() -> Result<()> {
    let bed = TestBed::new("together")?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let mut agents = [Agent::spawn(&bed, &options)?, Agent::spawn(&bed, &options)?];
    let mut first = None;
    wait_until("one of them to take over", PATIENCE, || {
        first = agents.iter().position(|agent| agent.log_text().contains("ended; another agent serves"));
        first.is_some()
    })?;
    let first = first.context("one of them is first")?;
    ensure!(agents[first].wait()?.code() == Some(0), "{}", agents[first].log_text());
    agents[1 - first].wait_until_ready()?;
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    agents[1 - first].wait_for_records(1).map(drop)
}

fn load(bed: &TestBed, rate: &str) -> Result<Running> {
    let addresses = bed.sockets(HOST, 80).map(|address| address.to_string());
    bed.client_command(LOAD)?.args(&addresses).args(["--rate", rate]).spawn()
}

/// Ends a load. Says how it went.
fn report(mut load: Running) -> Result<Value> {
    let status = load.wait(PATIENCE)?;
    let text = load.stdout();
    let line = text.lines().last().filter(|_| status.success()).with_context(|| format!("{status}: {load:?}"))?;
    Ok(serde_json::from_str(line)?)
}

/// A client that sends a request and reads until its connection is closed.
fn begin(bed: &TestBed, request: &str) -> Result<Running> {
    let mut client = bed.client_command(CLIENT)?.args(["raw", &address(bed)]).stdin(request).spawn()?;
    if request.is_empty() {
        client.close_stdin();
    }
    client.wait_for_line("the connection", |line| line.starts_with("peername"))?;
    Ok(client)
}

fn address(bed: &TestBed) -> String {
    bed.sockets(HOST, 80)[0].to_string()
}

fn origin(bed: &TestBed) -> Result<Origin> {
    origin_with(bed, |_| Reply::ok("over TLS\n"))
}

fn origin_with(bed: &TestBed, page: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Result<Origin> {
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.handler(move |request| page(&request.target)).start()
}

fn options(bed: &TestBed) -> Result<AgentOptions> {
    let config = bed.config_dir()?;
    Ok(AgentOptions::new(config.path()).args(&["--host", HOST]))
}
