//! Nothing leaves in clear while no agent runs, unless that was asked for.

use std::{fs, io::ErrorKind, net::TcpListener};

use anyhow::{Result, ensure};
use egress_common::names::program;
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, ConfigDir, binary},
    cgroup::{PROGRAMS, detach_link},
    origin::{Origin, Reply, ServerTls},
    process::Output,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;

const HOST: &str = "edition.cnn.com";
const OTHER: &str = "other.example";
const URL: &str = "http://edition.cnn.com/politics";
const FAMILIES: [&str; 2] = ["-4", "-6"];
/// What curl ends with when its connection is refused.
const REFUSED: i32 = 7;

#[test]
fn a_stranger_on_a_dead_agents_port_gets_nothing() -> Result<()> {
    let bed = TestBed::new("stranger")?;
    let tripwire = bed.tripwire(&[HOST])?;
    let agent = start(&bed, &["--host", HOST])?;
    let ports = bed.client().listening()?;
    ensure!(ports.len() == 2, "{ports:?}");
    agent.kill();
    let strangers = bed.client().run(|| {
        let listeners = ports.iter().map(TcpListener::bind).collect::<Result<Vec<_>, _>>()?;
        for listener in &listeners {
            listener.set_nonblocking(true)?;
        }
        Ok(listeners)
    })?;
    check_refused(&bed)?;
    for stranger in &strangers {
        ensure!(stranger.accept().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{stranger:?}");
    }
    tripwire.assert_silent()
}

#[test]
fn with_fail_open_nothing_is_left() -> Result<()> {
    let bed = TestBed::new("open")?;
    let _origin = origin(&bed)?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut agent = start(&bed, &["--host", HOST, "--fail-open"])?;
        ensure!(statuses(&bed, URL)? == [200, 200]);
        agent.process().signal(signal)?;
        agent.wait()?;
        check_in_clear(&bed)?;
        ensure!(!bed.bpffs().join("egress").exists(), "something is pinned");
    }
    Ok(())
}

/// One that takes nothing over would not be asked: the programs that are left refuse.
#[test]
fn with_fail_open_what_a_dead_agent_left_is_to_be_removed_first() -> Result<()> {
    let bed = TestBed::new("open-left")?;
    let _origin = origin(&bed)?;
    start(&bed, &["--host", HOST])?.kill();
    let options = AgentOptions::new(bed.dir().join("config")).args(&["--host", HOST, "--fail-open"]);
    let mut agent = Agent::spawn(&bed, &options)?;
    ensure!(agent.wait()?.code() == Some(1), "{}", agent.log_text());
    ensure!(agent.log_text().contains("by `egress detach`"), "{}", agent.log_text());
    ensure!(statuses(&bed, URL)?.is_empty(), "not refused");
    run_detach(&bed, &[])?.success()?;
    let _agent = Agent::start(&bed, &options)?;
    ensure!(statuses(&bed, URL)? == [200, 200]);

    let mut agent = Agent::spawn(&bed, &options.args(&["--pin-dir", "/sys/fs/bpf/mine"]))?;
    ensure!(agent.wait()?.code() == Some(64), "{}", agent.log_text());
    Ok(())
}

#[test]
fn detach_removes_what_a_dead_agent_left_and_says_what() -> Result<()> {
    let bed = TestBed::new("detach")?;
    let _origin = origin(&bed)?;
    let detach = |arguments: &[&str]| -> Result<Output> { run_detach(&bed, arguments)?.success() };
    ensure!(detach(&[])?.text() == "nothing to detach: /sys/fs/bpf/egress has no pins\n");
    start(&bed, &["--host", HOST])?.kill();
    ensure!(statuses(&bed, URL)?.is_empty(), "not refused");
    let text = detach(&[])?.text();
    for pin in ["connect4", "connect6", "getpeername6", "publish_origin", "sock_create", "maps/DESTINATIONS"] {
        ensure!(text.contains("removed /sys/fs/bpf/egress/layout-") && text.contains(pin), "{pin}: {text}");
    }
    check_in_clear(&bed)?;
    ensure!(detach(&[])?.text().starts_with("nothing to detach"));

    // Under an agent that runs only if that is meant, and nothing that is somebody else's.
    const MINE: [&str; 2] = ["--pin-dir", "/sys/fs/bpf/mine"];
    let foreign = bed.bpffs().join("mine/foreign");
    fs::create_dir_all(&foreign)?;
    let _agent = start(&bed, &["--host", HOST, MINE[0], MINE[1]])?;
    ensure!(statuses(&bed, URL)? == [200, 200]);
    ensure!(detach(&[])?.text().starts_with("nothing to detach"));
    let refused = run_detach(&bed, &MINE)?;
    ensure!(refused.code() == 1 && refused.stderr.contains("uses the pins in /sys/fs/bpf/mine"), "{refused:?}");
    ensure!(refused.stderr.contains("--force") && statuses(&bed, URL)? == [200, 200], "{refused:?}");
    ensure!(detach(&[MINE[0], MINE[1], "--force"])?.text().contains("removed /sys/fs/bpf/mine/layout-"));
    ensure!(bed.cgroup().programs()? == 0, "{} programs are attached", bed.cgroup().programs()?);
    ensure!(foreign.exists(), "a directory of somebody else's was removed");
    let refused = run_detach(&bed, &["--pin-dir", &bed.dir().to_string_lossy()])?;
    ensure!(refused.code() == 1 && refused.stderr.contains("is not on a bpffs"), "{refused:?}");
    Ok(())
}

#[test]
fn the_next_agent_takes_over_and_lets_go_of_what_its_rules_do_not_name() -> Result<()> {
    let bed = TestBed::builder("heir").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    start(&bed, &["--host", HOST])?.kill();
    ensure!(statuses(&bed, URL)?.is_empty(), "not refused");
    let agent = start(&bed, &["--host", OTHER])?;
    ensure!(bed.cgroup().programs()? == PROGRAMS, "{} programs are attached", bed.cgroup().programs()?);
    ensure!(statuses(&bed, URL)? == [301, 301]);
    ensure!(agent.metrics()?.sum("egress_destinations", &[]) == 2.0, "{:?}", agent.metrics()?);
    ensure!(statuses(&bed, "http://other.example/")? == [200, 200]);
    Ok(())
}

#[test]
fn an_agent_that_cannot_start_disturbs_no_other() -> Result<()> {
    let bed = TestBed::new("undisturbed")?;
    let _origin = origin(&bed)?;
    let first = start(&bed, &["--host", HOST])?;
    let _taken = bed.node().run(|| Ok(TcpListener::bind("127.0.0.1:9902")?))?;
    let options = AgentOptions::new(bed.dir().join("config")).args(&["--host", HOST]).admin_port(9902);
    ensure!(Agent::spawn(&bed, &options)?.wait()?.code() == Some(1));
    ensure!(statuses(&bed, URL)? == [200, 200]);
    first.wait_for_records(2)?;
    Ok(())
}

/// It knows nothing of the first, and would detach its programs, or remove its destinations.
#[test]
fn an_agent_whose_pins_another_one_uses_is_refused() -> Result<()> {
    let bed = TestBed::builder("strangers").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let elsewhere = bed.cgroup().child("elsewhere")?;
    let first = start(&bed, &["--host", HOST])?;
    let apart = bed.dir().join("apart");
    let options = AgentOptions::new(bed.dir().join("config")).args(&["--host", OTHER]).state_dir(&apart);
    let options = options.admin_port(9902).cgroup(elsewhere.path());
    let check_refused = || -> Result<()> {
        let mut second = Agent::spawn(&bed, &options)?;
        ensure!(second.wait()?.code() == Some(1), "{}", second.log_text());
        let text = second.log_text();
        for word in ["uses the pins in /sys/fs/bpf/egress", "--pin-dir", "--state-dir", "--admin"] {
            ensure!(text.contains(word), "{word}: {text}");
        }
        ensure!(statuses(&bed, URL)? == [200, 200]);
        Ok(())
    };
    check_refused()?;
    // Nor while one that has followed the first runs.
    let config = bed.config_dir()?;
    let third = Agent::take_over(&bed, &AgentOptions::new(config.path()).args(&["--host", HOST]))?;
    ensure!(first.terminate()?.code() == Some(0));
    check_refused()?;

    third.kill();
    let _second = Agent::start(&bed, &options)?;
    ensure!(bed.cgroup().programs()? == 0 && elsewhere.programs()? == PROGRAMS);
    Ok(())
}

#[test]
fn an_agent_that_was_replaced_does_not_take_its_successors_place_down() -> Result<()> {
    let bed = TestBed::new("replaced")?;
    let _origin = origin(&bed)?;
    let first = start(&bed, &["--host", HOST])?;
    let apart = bed.dir().join("apart");
    let options =
        AgentOptions::new(bed.dir().join("config")).args(&["--host", HOST]).admin_port(9902).state_dir(&apart);
    run_detach(&bed, &["--force"])?.success()?;
    let second = Agent::start(&bed, &options)?;
    ensure!(statuses(&bed, URL)? == [200, 200]);
    first.terminate()?;
    ensure!(statuses(&bed, URL)? == [200, 200]);
    second.wait_for_records(4)?;
    Ok(())
}

/// What a dead agent had learnt is intercepted until its successor has learnt it again.
#[test]
fn addresses_are_inherited_while_names_are_unanswered() -> Result<()> {
    // Nobody answers there.
    let bed = TestBed::builder("unanswered").host(HOST).resolv_conf("nameserver 127.0.0.1\n").build()?;
    let _origin = origin(&bed)?;
    start(&bed, &["--host", HOST])?.kill();
    fs::write(bed.dir().join("hosts"), "127.0.0.1 localhost\n")?;
    let options = AgentOptions::new(bed.dir().join("config")).args(&["--host", HOST]);
    let mut agent = Agent::spawn(&bed, &options)?;
    agent.process().wait_for_line("the agent to attach", |line| line.contains("\"attached\""))?;
    for address in bed.sockets(HOST, 80) {
        let known = format!("{HOST}:80:[{}]", address.ip()).replace("[198", "198").replace(".1]", ".1");
        let response = bed.curl(URL)?.args(["--resolve", &known]).response()?;
        ensure!(response.body == b"over TLS\n", "{response:?}");
    }
    ensure!(agent.admin("/readyz")?.0 == 503, "{:?}", agent.admin("/readyz")?);
    Ok(())
}

#[test]
fn cgroups_that_are_no_longer_served_are_let_go() -> Result<()> {
    let bed = TestBed::new("moved")?;
    let [before, after] = ["before", "after"].map(|name| bed.cgroup().child(name));
    let (before, after) = (before?, after?);
    let config = bed.config_dir()?;
    let options = AgentOptions::new(config.path()).args(&["--host", HOST]);
    Agent::start(&bed, &options.clone().cgroup(before.path()))?.kill();
    ensure!(before.programs()? == PROGRAMS && after.programs()? == 0);
    let _agent = Agent::start(&bed, &options.cgroup(after.path()))?;
    ensure!(before.programs()? == 0 && after.programs()? == PROGRAMS);
    Ok(())
}

/// As by `bpftool link detach`, or an `egress detach` that was killed on its way.
#[test]
fn links_that_were_detached_are_made_anew() -> Result<()> {
    let bed = TestBed::new("detached-links")?;
    let _origin = origin(&bed)?;
    start(&bed, &["--host", HOST])?.kill();
    let layout = fs::read_dir(bed.bpffs().join("egress"))?.next().expect("an agent was here")?.path();
    let links = layout.join("links").join(bed.cgroup().id()?.to_string());
    for name in [program::CONNECT4, program::CONNECT6, program::LEARN_NAMES] {
        detach_link(&links.join(name))?;
    }
    ensure!(bed.cgroup().programs()? == PROGRAMS - 3);
    let agent = start(&bed, &["--host", HOST])?;
    ensure!(statuses(&bed, URL)? == [200, 200] && bed.cgroup().programs()? == PROGRAMS);
    agent.kill();
    ensure!(statuses(&bed, URL)?.is_empty(), "what was made anew is not pinned");
    Ok(())
}

#[test]
fn pins_of_another_layout_hold_until_they_are_replaced() -> Result<()> {
    let bed = TestBed::new("layout")?;
    let _origin = origin(&bed)?;
    start(&bed, &["--host", HOST])?.kill();
    let pins = bed.bpffs().join("egress");
    let layout = fs::read_dir(&pins)?.next().expect("an agent was here")?.path();
    fs::rename(&layout, pins.join("layout-0"))?;
    ensure!(statuses(&bed, URL)?.is_empty(), "not refused");
    let _agent = start(&bed, &["--host", HOST])?;
    ensure!(statuses(&bed, URL)? == [200, 200]);
    ensure!(bed.cgroup().programs()? == PROGRAMS, "{} programs are attached", bed.cgroup().programs()?);
    let left = fs::read_dir(&pins)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    ensure!(left == [layout], "{left:?}");
    Ok(())
}

/// Maps of another layout cannot be read, so what they intercept is refused until it is known anew.
#[test]
fn pins_of_another_layout_refuse_while_names_are_unanswered() -> Result<()> {
    let bed = TestBed::builder("layout-unanswered").host(HOST).resolv_conf("nameserver 127.0.0.1\n").build()?;
    let tripwire = bed.tripwire(&[HOST])?;
    start(&bed, &["--host", HOST])?.kill();
    let pins = bed.bpffs().join("egress");
    let layout = fs::read_dir(&pins)?.next().expect("an agent was here")?.path();
    fs::rename(&layout, pins.join("layout-0"))?;
    fs::write(bed.dir().join("hosts"), "127.0.0.1 localhost\n")?;
    let options = AgentOptions::new(bed.dir().join("config")).args(&["--host", HOST]);
    refuses_for_lack_of_answers(&bed, &options)?;
    // Where it is served says nothing of what applications are told.
    let config = ConfigDir::create(&bed.dir().join("endpoints"))?;
    config.write("rules.yaml", &rules("resolution: STATIC, endpoints: [{address: 192.0.2.99}]"))?;
    refuses_for_lack_of_answers(&bed, &AgentOptions::new(config.path()))?;
    tripwire.assert_silent()
}

fn refuses_for_lack_of_answers(bed: &TestBed, options: &AgentOptions) -> Result<()> {
    let mut agent = Agent::spawn(bed, options)?;
    agent.process().wait_for_line("the agent to attach", |line| line.contains("\"attached\""))?;
    // The programs are as they should be: what is in the way goes when the name is known.
    wait_until("it to say what it waits for", PATIENCE, || {
        agent.admin("/readyz").is_ok_and(|(_, text)| text.contains(HOST) && text.contains("/layout-0 stays"))
    })?;
    for address in bed.addresses(HOST).both() {
        let address = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        let result = bed.curl(URL)?.args(["--resolve", &format!("{HOST}:80:{address}")]).run()?;
        ensure!(result.exit_code == REFUSED, "{result:?}");
    }
    agent.kill();
    Ok(())
}

fn rules(resolution: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: x}}\nspec: {{hosts: [{HOST}], ports: [{{number: 80, \
         name: http, protocol: HTTP, targetPort: 443}}], {resolution}}}\n---\napiVersion: networking.istio.io/v1\nkind: \
         DestinationRule\nmetadata: {{name: x}}\nspec: {{host: {HOST}, trafficPolicy: {{tls: {{mode: SIMPLE}}}}}}\n"
    )
}

#[test]
fn a_pin_directory_elsewhere_is_refused_with_the_ways_out() -> Result<()> {
    let bed = TestBed::new("elsewhere")?;
    let directory = bed.dir().join("pins");
    let config = bed.config_dir()?;
    let options = AgentOptions::new(config.path()).args(&["--host", HOST, "--pin-dir", &directory.to_string_lossy()]);
    let mut agent = Agent::spawn(&bed, &options)?;
    ensure!(agent.wait()?.code() == Some(1), "{}", agent.log_text());
    let text = agent.log_text();
    for word in ["is not on a bpffs", "mount -t bpf", "--pin-dir", "--fail-open"] {
        ensure!(text.contains(word), "{word}: {text}");
    }
    ensure!(!directory.exists() && bed.cgroup().programs()? == 0);
    Ok(())
}

fn check_refused(bed: &TestBed) -> Result<()> {
    for family in FAMILIES {
        let result = bed.curl(URL)?.args([family]).run()?;
        ensure!(result.exit_code == REFUSED, "{family}: {result:?}");
    }
    Ok(())
}

fn check_in_clear(bed: &TestBed) -> Result<()> {
    ensure!(bed.cgroup().programs()? == 0, "{} programs are attached", bed.cgroup().programs()?);
    ensure!(statuses(bed, URL)? == [301, 301]);
    Ok(())
}

/// The status that each family gets; none where the connection is refused.
fn statuses(bed: &TestBed, url: &str) -> Result<Vec<u16>> {
    let mut statuses = Vec::new();
    for family in FAMILIES {
        let result = bed.curl(url)?.args([family]).run()?;
        ensure!([0, REFUSED].contains(&result.exit_code), "{family}: {result:?}");
        statuses.extend(result.statuses());
    }
    Ok(statuses)
}

/// A redirect in clear, a page over TLS, for each host of the test bed.
fn origin(bed: &TestBed) -> Result<Origin> {
    let hosts = bed.hosts();
    let identity = ServerTls::new(bed.pki().server(&hosts)?);
    let mut origin = bed.embedded_origin();
    for host in &hosts {
        origin = origin.clear(&bed.sockets(host, 80)).tls(&bed.sockets(host, 443), &identity)?;
    }
    origin
        .handler(|request| match &request.tls {
            Some(_) => Reply::ok("over TLS\n"),
            None => Reply::status(301, &[("Location", "https://edition.cnn.com/politics")], "in clear\n"),
        })
        .start()
}

fn run_detach(bed: &TestBed, arguments: &[&str]) -> Result<Output> {
    bed.node_command(binary()?)?.arg("detach").args(arguments).run()
}

fn start<'bed>(bed: &'bed TestBed, arguments: &[&str]) -> Result<Agent<'bed>> {
    let config = bed.config_dir()?;
    Agent::start(bed, &AgentOptions::new(config.path()).args(arguments))
}
