//! The agent's start, readiness, end and death, and what its applications see of them.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, binary},
    cgroup::PROGRAMS,
    dns::{Answer, DnsServer},
    origin::{Origin, Reply, ServerTls},
    process::{Command, Running},
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const HOST: &str = "edition.cnn.com";
const URL: &str = "http://edition.cnn.com/politics";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const USAGE: i32 = 64;
/// What curl ends with when its connection is refused.
const REFUSED: i32 = 7;

#[test]
fn the_admin_port_tells_health_and_counts() -> Result<()> {
    let bed = TestBed::new("admin")?;
    let _origin = origin(&bed)?;
    let agent = agent(&bed)?;
    for _ in 0..2 {
        bed.curl(URL)?.response()?;
    }
    agent.wait_for_records(2)?;
    for (path, status, body) in [
        ("/readyz", 200, "ready\n"),
        ("/healthz", 200, "ok\n"),
        ("/", 404, "there are /readyz, /healthz and /metrics\n"),
        ("/metrics/", 404, "there are /readyz, /healthz and /metrics\n"),
    ] {
        ensure!(agent.admin(path)? == (status, body.to_owned()), "{path}: {:?}", agent.admin(path)?);
    }
    // Who kept a connection would go on being answered by this agent when another one has followed.
    let health = "http://127.0.0.1:9901/healthz";
    let twice = ["-q", "-sS", "-w", "%{num_connects} ", health, health];
    let connects = bed.node_command("curl")?.args(twice).run()?.success()?;
    ensure!(connects.text() == "ok\n1 ok\n1 ", "{connects:?}");
    let metrics = agent.metrics()?;
    for (name, labels, value) in [
        ("egress_connects_total", [("outcome", "redirected")].as_slice(), 2.0),
        ("egress_requests_total", &[("outcome", "upgraded")], 2.0),
        ("egress_requests_total", &[], 2.0),
        ("egress_upstream_handshakes_total", &[("result", "failed")], 0.0),
        ("egress_policy_applied_total", &[], 1.0),
        ("egress_policy_refused_total", &[], 0.0),
        ("egress_rules", &[], 1.0),
        ("egress_destinations", &[], 2.0),
        ("egress_network_namespaces", &[], 2.0),
    ] {
        ensure!(metrics.has(name) && metrics.sum(name, labels) == value, "{name} {labels:?}: {metrics:?}");
    }
    let takes = ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"];
    let are_told = takes.iter().all(|name| metrics.sum(&format!("process_{name}"), &[]) > 0.0);
    ensure!(are_told, "{metrics:?}");
    // The second one finds the first one's connection, unless another worker serves it.
    ensure!([1.0, 2.0].contains(&metrics.sum("egress_upstream_handshakes_total", &[])), "{metrics:?}");
    Ok(())
}

#[test]
fn the_agent_is_ready_once_its_hosts_have_addresses() -> Result<()> {
    const LATE: &str = "late.example";
    let bed = TestBed::builder("ready").host("dns.example").resolv_conf("nameserver 198.51.100.1\n").build()?;
    let address = bed.addresses("dns.example").v4;
    let tls = ServerTls::new(bed.pki().server(&[LATE])?);
    let _origin = bed.embedded_origin().tls(&bed.sockets("dns.example", 443), &tls)?.start()?;
    let (asked, answering) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (told, may) = (asked.clone(), answering.clone());
    let _dns = DnsServer::start(bed.origin(), address.into(), move |_| {
        told.store(true, Ordering::Relaxed);
        may.load(Ordering::Relaxed).then(|| Answer::addresses([address.into()]))
    })?;

    let config = bed.config_dir()?;
    let agent = Agent::spawn(&bed, &AgentOptions::new(config.path()).args(&["--host", LATE]))?;
    let not_ready = (503, "not ready: resolving the configured hosts\n".to_owned());
    wait_until("the agent to wait for an answer", PATIENCE, || {
        asked.load(Ordering::Relaxed) && agent.admin("/readyz").is_ok_and(|answer| answer == not_ready)
    })?;
    ensure!(agent.admin("/healthz")?.0 == 200);
    answering.store(true, Ordering::Relaxed);
    wait_until("the agent to be ready", PATIENCE, || agent.admin("/readyz").is_ok_and(|(status, _)| status == 200))
        .with_context(|| agent.log_text())?;
    let resolve = format!("{LATE}:80:{address}");
    let response = bed.curl(&format!("http://{LATE}/"))?.args(["--resolve", &resolve]).response()?;
    ensure!(response.head.status == 200, "{response:?}");
    Ok(())
}

#[test]
fn at_sigterm_a_response_under_way_is_finished_and_nothing_new_begins() -> Result<()> {
    let bed = TestBed::new("sigterm")?;
    let (origin, body) = slow_origin(&bed)?;
    let mut agent = agent(&bed)?;
    ensure!(bed.cgroup().programs()? == PROGRAMS, "{} programs are attached", bed.cgroup().programs()?);
    let addresses = bed.sockets(HOST, 80);
    let mut idle = begin(&bed, addresses[0], &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
    idle.wait_for_output("over TLS\n")?;
    let mut slow = begin_slow(&bed, addresses[0])?;
    body.send(b"Content-Length: 11\r\n\r\nfirst\n".to_vec())?;
    slow.wait_for_output("first\n")?;

    let mark = agent.process().stderr_mark();
    agent.process().signal(Signal::SIGTERM)?;
    agent.process().wait_for_line_after(mark, "the drain", |line| line.contains("draining"))?;
    // A connection that is not in use is closed, and the application is free to make another: which is refused.
    ensure!(idle.wait(PATIENCE)?.success(), "{:?}", idle.stderr());
    ensure!(agent.admin("/readyz")? == (503, "not ready: stopping\n".into()), "{:?}", agent.admin("/readyz")?);
    for address in addresses {
        for arguments in [[].as_slice(), &["--mptcp"], &["--fastopen"]] {
            let command = bed.client_command(CLIENT)?.args(["http", &address.to_string()]).args(arguments);
            let output = command.run()?;
            ensure!(output.code() != 0 && output.stderr.contains("Connection refused"), "{arguments:?}: {output:?}");
        }
    }
    ensure!(agent.metrics()?.sum("egress_connects_total", &[("outcome", "no_listener")]) == 6.0);

    body.send(b"last\n".to_vec())?;
    slow.wait_for_output("first\nlast\n")?;
    ensure!(agent.wait()?.code() == Some(0), "{}", agent.log_text());
    ensure!(slow.wait(PATIENCE)?.success());
    ensure!(origin.requests().iter().all(|request| request.tls.is_some()), "{:?}", origin.requests());
    check_refused(&bed)
}

#[test]
fn a_response_without_end_is_cut_off_after_the_drain_timeout() -> Result<()> {
    let bed = TestBed::new("drain")?;
    let (_origin, body) = slow_origin(&bed)?;
    let config = bed.config_dir()?;
    let options = AgentOptions::new(config.path()).args(&["--host", HOST, "--drain-timeout", "1s"]);
    let mut agent = Agent::start(&bed, &options)?;
    let mut slow = begin_slow(&bed, bed.sockets(HOST, 80)[0])?;
    body.send(b"Transfer-Encoding: chunked\r\n\r\n6\r\nfirst\n\r\n".to_vec())?;
    slow.wait_for_output("first\n")?;

    let began = Instant::now();
    agent.process().signal(Signal::SIGTERM)?;
    ensure!(agent.wait()?.code() == Some(0), "{}", agent.log_text());
    let took = began.elapsed();
    ensure!((1.0..6.0).contains(&took.as_secs_f64()), "the drain took {took:?}");
    ensure!(agent.log_text().contains("the drain timeout ran out"), "{}", agent.log_text());
    slow.wait(PATIENCE)?;
    ensure!(!slow.stdout().contains("0\r\n\r\n"), "what was cut off looks complete: {}", slow.stdout());
    let records = agent.wait_for_records(1)?;
    ensure!(["aborted", "truncated"].contains(&records[0].text("outcome").as_str()), "{records:?}");
    check_refused(&bed)
}

#[test]
fn a_second_signal_cuts_off_what_is_under_way() -> Result<()> {
    let bed = TestBed::new("second")?;
    let (_origin, body) = slow_origin(&bed)?;
    let mut agent = agent(&bed)?;
    let slow = begin_slow(&bed, bed.sockets(HOST, 80)[0])?;
    body.send(b"Content-Length: 11\r\n\r\nfirst\n".to_vec())?;
    slow.wait_for_output("first\n")?;
    for line in ["draining", "a second signal"] {
        agent.process().signal(Signal::SIGTERM)?;
        agent.process().wait_for_line(line, |text| text.contains(line))?;
    }
    ensure!(agent.wait()?.code() == Some(0), "{}", agent.log_text());
    check_refused(&bed)
}

#[test]
fn a_killed_agent_breaks_its_connections_and_the_next_one_works() -> Result<()> {
    let bed = TestBed::new("sigkill")?;
    let (origin, body) = slow_origin(&bed)?;
    let first = agent(&bed)?;
    let mut slow = begin_slow(&bed, bed.sockets(HOST, 80)[0])?;
    body.send(b"Content-Length: 11\r\n\r\nfirst\n".to_vec())?;
    slow.wait_for_output("first\n")?;
    first.kill();
    slow.wait(PATIENCE)?;
    ensure!(slow.stdout().ends_with("first\n"), "{}", slow.stdout());
    check_refused(&bed)?;

    let count = origin.requests().len();
    let _second = start(&bed)?;
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    ensure!(origin.requests()[count..].iter().all(|request| request.tls.is_some()));
    Ok(())
}

#[test]
fn agents_follow_one_another() -> Result<()> {
    let bed = TestBed::new("followers")?;
    let _origin = origin(&bed)?;
    bed.config_dir()?;
    for _ in 0..2 {
        let agent = start(&bed)?;
        for family in ["-4", "-6"] {
            ensure!(bed.curl(URL)?.args([family]).response()?.body == b"over TLS\n");
        }
        ensure!(agent.terminate()?.code() == Some(0));
        check_refused(&bed)?;
    }
    Ok(())
}

#[test]
fn several_cgroups_are_served_and_their_siblings_are_not() -> Result<()> {
    let bed = TestBed::new("cgroups")?;
    let _origin = origin(&bed)?;
    let [served, also, not] = ["a", "b", "c"].map(|name| bed.cgroup().child(name));
    let (served, also, not) = (served?, also?, not?);
    let nested = served.child("nested")?;
    let config = bed.config_dir()?;
    let also_path = also.path().to_string_lossy();
    let options =
        AgentOptions::new(config.path()).cgroup(served.path()).args(&["--host", HOST, "--cgroup", &also_path]);
    let sleepers = [&served, &also].map(|cgroup| bed.outside_command("sleep")?.arg("60").in_cgroup(cgroup)?.spawn());
    let _agent = Agent::start(&bed, &options)?;
    for (cgroup, body) in
        [(&served, "over TLS\n"), (&nested, "over TLS\n"), (&also, "over TLS\n"), (&not, "in clear\n")]
    {
        let command = bed.outside_command("curl")?.args(["-q", "-sS", URL]).in_cgroup(cgroup)?;
        let output = command.run()?.success()?;
        ensure!(output.text() == body, "{}: {output:?}", cgroup.path().display());
    }
    drop(sleepers);
    drop(nested);
    Ok(())
}

#[test]
fn a_bad_configuration_is_refused_before_anything_is_touched() -> Result<()> {
    let bed = TestBed::new("refused")?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    let yaml = include_str!("../seed/tls-origination.yaml").replace("mode: SIMPLE", "mode: SIMPEL");
    config.write("rules.yaml", &yaml)?;
    let line = 1 + yaml.lines().position(|line| line.contains("SIMPEL")).context("no such line")?;
    // Even before a scope that there is not.
    let missing = bed.cgroup().path().join("missing");
    let mut agent = Agent::spawn(&bed, &AgentOptions::new(config.path()).cgroup(&missing))?;
    ensure!(agent.wait()?.code() == Some(USAGE), "{}", agent.log_text());
    let text = agent.log_text();
    let place = format!("egress: {}:{line}:", config.path().join("rules.yaml").display());
    ensure!(text.starts_with(&place), "{text}");
    ensure!(text.contains("spec.trafficPolicy.portLevelSettings[0].tls.mode"), "{text}");
    check_detached(&bed)
}

#[test]
fn a_start_that_cannot_be_says_why() -> Result<()> {
    let bed = TestBed::new("why")?;
    let config = bed.config_dir()?;
    let options = AgentOptions::new(config.path()).args(&["--host", HOST]);

    let missing = bed.cgroup().path().join("missing");
    for (path, reason) in [(missing.as_path(), "No such file or directory"), (bed.dir(), "not a cgroup2 directory")] {
        let mut agent = Agent::spawn(&bed, &options.clone().cgroup(path))?;
        ensure!(agent.wait()?.code() == Some(USAGE), "{}", agent.log_text());
        let text = agent.log_text();
        ensure!(text.contains(reason) && text.contains(&*path.to_string_lossy()), "{text}");
    }

    // On a machine without any. Otherwise nothing is run: the agent would serve all processes.
    let script =
        "umount -a -l -t cgroup2 && ! grep -q cgroup2 /proc/self/mounts && exec \"$0\" run --host edition.cnn.com";
    let script = ["--mount", "sh", "-c", script, &binary()?.to_string_lossy()].map(ToOwned::to_owned);
    let output = bed.node_command("unshare")?.args(script).run()?;
    ensure!(output.stderr.contains("egress: no cgroup2 file system is mounted") && output.code() == 1, "{output:?}");

    let _taken = bed.node().run(|| Ok(std::net::TcpListener::bind("127.0.0.1:9901")?))?;
    let mut agent = Agent::spawn(&bed, &options)?;
    ensure!(agent.wait()?.code() == Some(1), "{}", agent.log_text());
    let text = agent.log_text();
    ensure!(text.contains("egress: cannot serve the admin address 127.0.0.1:9901: Address already in use"), "{text}");

    // Where the user nobody can reach it.
    let program = bed.dir().join("egress");
    // By a process of its own: what this one has open for writing, those have for a moment that other tests start.
    Command::new("cp").arg(binary()?).arg(&program).run()?.success()?;
    let cgroup = bed.cgroup().path().display().to_string();
    let command = bed.node_command(program)?.args(["run", "--host", HOST, "--cgroup", &cgroup]).uid(65534);
    let output = command.run()?;
    ensure!(output.code() == 1, "{output:?}");
    ensure!(output.stderr.contains("egress needs root: it lacks CAP_BPF, CAP_NET_ADMIN"), "{output:?}");
    ensure!(bed.cgroup().programs()? == 0);
    Ok(())
}

#[test]
fn a_pod_that_comes_later_is_served_and_let_go_when_it_ends() -> Result<()> {
    const SERVED: &str = "egress_network_namespaces";
    const NODE_AND_POD: f64 = 2.0;
    let mut bed = TestBed::new("later")?;
    let pod = bed.add_pod("late")?;
    let origin = origin(&bed)?;
    let agent = agent(&bed)?;
    ensure!(agent.metrics()?.sum(SERVED, &[]) == NODE_AND_POD, "{:?}", agent.metrics()?);

    let address = bed.sockets(HOST, 80)[0].to_string();
    let command = bed.pod_command(&pod, CLIENT)?.in_cgroup(bed.cgroup())?;
    let mut client = command.args(["repeat", &address]).spawn()?;
    client.wait_for_output("200\n")?;
    ensure!(client.wait(PATIENCE)?.success());
    // Before it was served it was refused, and never in clear.
    let unserved = client.stdout().lines().filter(|line| *line != "200").map(ToOwned::to_owned).collect::<Vec<_>>();
    ensure!(unserved.iter().all(|line| line.contains("Connection refused")), "{unserved:?}");
    ensure!(origin.requests().iter().all(|request| request.tls.is_some()), "{:?}", origin.requests());

    wait_until("the pod to be let go", 2 * PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum(SERVED, &[]) == NODE_AND_POD)
    })?;
    wait_until("its listeners to be closed", PATIENCE, || pod.listening().is_ok_and(|left| left.is_empty()))?;
    ensure!(bed.client().listening()?.len() == 2, "the other pod has lost its listeners");
    // It can come back.
    let command = bed.pod_command(&pod, CLIENT)?.in_cgroup(bed.cgroup())?;
    let client = command.args(["repeat", &address]).spawn()?;
    client.wait_for_output("200\n")
}

/// The agent is gone, its programs are not: what it served is refused.
fn check_refused(bed: &TestBed) -> Result<()> {
    ensure!(bed.cgroup().programs()? == PROGRAMS, "{} programs stay attached", bed.cgroup().programs()?);
    ensure!(bed.client().listening()?.is_empty(), "listeners stay: {:?}", bed.client().listening()?);
    for family in ["-4", "-6"] {
        let result = bed.curl(URL)?.args([family]).run()?;
        ensure!(result.exit_code == REFUSED, "{family}: {result:?}");
    }
    Ok(())
}

/// Nothing of an agent is left: its programs are gone, and requests go where they would without it.
fn check_detached(bed: &TestBed) -> Result<()> {
    ensure!(bed.cgroup().programs()? == 0, "{} programs stay attached", bed.cgroup().programs()?);
    ensure!(bed.client().listening()?.is_empty(), "listeners stay: {:?}", bed.client().listening()?);
    for family in ["-4", "-6"] {
        let result = bed.curl(URL)?.args([family]).run()?;
        ensure!(result.statuses() == [301], "{family}: {result:?}");
    }
    Ok(())
}

/// The origin of the seed: a redirect in clear, a page over TLS.
fn origin(bed: &TestBed) -> Result<Origin> {
    origin_with(bed, |_| Reply::ok("over TLS\n"))
}

fn origin_with(bed: &TestBed, page: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Result<Origin> {
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    bed.embedded_origin()
        .tls(&bed.sockets(HOST, 443), &tls)?
        .clear(&bed.sockets(HOST, 80))
        .handler(move |request| match &request.tls {
            Some(_) => page(&request.target),
            None => Reply::status(301, &[("Location", "https://edition.cnn.com/politics")], "in clear\n"),
        })
        .start()
}

/// An origin whose answer to `/slow` begins with a status line, and goes on as the test says.
fn slow_origin(bed: &TestBed) -> Result<(Origin, UnboundedSender<Vec<u8>>)> {
    let (body, pieces) = unbounded_channel();
    body.send(b"HTTP/1.1 200 OK\r\n".to_vec())?;
    let pieces = Mutex::new(Some(pieces));
    let origin = origin_with(bed, move |target| {
        let pieces = pieces.lock().ok().filter(|_| target == "/slow").and_then(|mut pieces| pieces.take());
        pieces.map_or_else(|| Reply::ok("over TLS\n"), Reply::Stream)
    })?;
    Ok((origin, body))
}

fn begin_slow(bed: &TestBed, address: SocketAddr) -> Result<Running> {
    begin(bed, address, &format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"))
}

/// A client that sends a request and reads until its connection is closed.
fn begin(bed: &TestBed, address: SocketAddr, request: &str) -> Result<Running> {
    bed.client_command(CLIENT)?.args(["raw", &address.to_string()]).stdin(request).spawn()
}

fn agent(bed: &TestBed) -> Result<Agent<'_>> {
    bed.config_dir()?;
    start(bed)
}

fn start(bed: &TestBed) -> Result<Agent<'_>> {
    Agent::start(bed, &AgentOptions::new(bed.dir().join("config")).args(&["--host", HOST]))
}
