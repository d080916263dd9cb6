//! Agents that die, or are not what they should be.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result, ensure};
use aya::maps::MapInfo;
use egress_common::{LAYOUT_VERSION, names::map};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, ConfigDir, binary},
    cgroup::PROGRAMS,
    origin::Reply,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::mpsc::unbounded_channel;

use super::{
    HOST, REFUSED, URL, begin, load, options, origin, origin_with,
    peer::{NO_MAPS, ask, connect, hear, hello, say, socket_path, succeed},
    report,
};

#[test]
fn a_successor_that_dies_on_its_way_leaves_the_old_agent_serving() -> Result<()> {
    let bed = TestBed::new("dies")?;
    let tripwire = bed.tripwire(&[HOST])?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let mut agent = Agent::start(&bed, &options)?;
    let load = load(&bed, "500")?;
    load.wait_for_output("started\n")?;
    // Before it says anything, after it has asked, and after it has begun to change what is in the kernel.
    for (steps, said) in ["", "the other agent has not taken over", "undoing what it did"].into_iter().enumerate() {
        let mark = agent.process().stderr_mark();
        drop(succeed(&bed, &agent, steps)?);
        if !said.is_empty() {
            agent.process().wait_for_line_after(mark, said, |line| line.contains(said))?;
        }
    }
    let report = report(load)?;
    ensure!(report["failed"] == 0, "{report}\n{}", agent.log_text());
    // It is still there to be followed.
    let _next = Agent::take_over(&bed, &options)?;
    ensure!(agent.wait()?.code() == Some(0), "{}", agent.log_text());
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    tripwire.assert_silent()
}

#[test]
fn what_a_successor_did_before_it_died_is_undone() -> Result<()> {
    let bed = TestBed::new("undone")?;
    let _origin = origin(&bed)?;
    let mut agent = Agent::start(&bed, &options(&bed)?)?;
    let successor = succeed(&bed, &agent, 2)?;
    bed.node_command(binary()?)?.args(["detach", "--force"]).run()?.success()?;
    // One whose rules have other names has written them.
    agent.forget_names()?;
    ensure!(bed.cgroup().programs()? == 0 && agent.names()? == 0);
    drop(successor);
    agent.process().wait_for_line("the end of the successor", |line| line.contains("undoing what it did"))?;
    wait_until("the programs to be attached", PATIENCE, || {
        bed.cgroup().programs().is_ok_and(|count| count == PROGRAMS)
    })?;
    wait_until("the names to be learned", PATIENCE, || agent.names().is_ok_and(|count| count == 1))?;
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    // Nor may one that knows nothing of it use what is pinned, now as before.
    let stranger = options(&bed)?.state_dir(&bed.dir().join("apart")).admin_port(9902);
    let mut stranger = Agent::spawn(&bed, &stranger)?;
    let status = stranger.wait()?;
    ensure!(status.code() == Some(1) && stranger.log_text().contains("uses the pins in"), "{}", stranger.log_text());
    // Who follows it is to find what applications were told.
    let maps = bed.bpffs().join(format!("egress/layout-{LAYOUT_VERSION}/maps"));
    for name in [map::FLOWS, map::LEARNED] {
        ensure!(MapInfo::from_pin(maps.join(name))?.id() == agent.map_id(name)?, "{name} is another's");
    }
    ensure!(fs::read_dir(&maps)?.count() == map::PINNED.len());
    agent.kill();
    ensure!(bed.curl(URL)?.run()?.exit_code == REFUSED, "nothing is pinned");
    Ok(())
}

/// Until it has the place, the one before it can go on, with what it has pinned: on another cgroup, or with another layout.
#[test]
fn a_successor_removes_nothing_before_it_has_the_place() -> Result<()> {
    for layout in [LAYOUT_VERSION, 0] {
        let bed = TestBed::new("before")?;
        let [before, after] = ["before", "after"].map(|name| bed.cgroup().child(name));
        let (before, after) = (before?, after?);
        let options = options(&bed)?;
        Agent::start(&bed, &options.clone().cgroup(before.path()))?.kill();
        let pins = bed.bpffs().join("egress");
        let layout = pins.join(format!("layout-{layout}"));
        fs::rename(pins.join(format!("layout-{LAYOUT_VERSION}")), &layout)?;
        let links = layout.join("links").join(before.id()?.to_string());
        fs::remove_file(socket_path(&bed))?;
        let predecessor = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        predecessor.bind(&SockAddr::unix(socket_path(&bed))?)?;
        predecessor.listen(1)?;

        let mut agent = Agent::spawn(&bed, &options.cgroup(after.path()))?;
        let (successor, _) = predecessor.accept()?;
        successor.set_read_timeout(Some(PATIENCE))?;
        ensure!(hear(&successor)?.is_some_and(|message| message.get("hello").is_some()));
        say(&successor, &json!({ "sockets": { "left": 0 } }))?;
        for message in ["taking", "done"] {
            ensure!(hear(&successor)? == Some(json!(message)), "{}", agent.log_text());
        }
        ensure!(after.programs()? == PROGRAMS && before.programs()? == PROGRAMS && links.exists());
        ensure!(layout.join("maps").join(map::LEARNED).exists());
        say(&successor, &json!("relieved"))?;
        agent.wait_until_ready()?;
        ensure!(after.programs()? == PROGRAMS && before.programs()? == 0 && !links.exists());
        ensure!(fs::read_dir(&pins)?.count() == 1, "another layout is left");
    }
    Ok(())
}

/// As when the node's resolver is down: what the agent that runs knows is of more use than an agent that knows nothing.
#[test]
fn a_successor_that_can_look_nothing_up_leaves_the_old_agent_serving() -> Result<()> {
    const LISTED: &str = "listed.example";
    let bed = unresolving("unresolved")?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let agent = Agent::start(&bed, &options)?;
    let known = format!("{HOST}:80:{}", bed.sockets(HOST, 80)[0].ip());
    fs::write(bed.dir().join("hosts"), format!("127.0.0.1 localhost\n192.0.2.99 {LISTED}\n"))?;
    // That a file has one of the hosts says nothing of the others.
    for options in [options.clone(), options.args(&["--host", LISTED])] {
        let mut successor = Agent::spawn(&bed, &options)?;
        ensure!(successor.wait()?.code() == Some(1), "{}", successor.log_text());
        ensure!(successor.log_text().contains("the agent that runs goes on"), "{}", successor.log_text());
        let response = bed.curl(URL)?.args(["--resolve", &known]).response()?;
        ensure!(response.body == b"over TLS\n", "{}", agent.log_text());
    }
    Ok(())
}

/// Where something is intercepted without name servers, or the agent that runs is of no use, waiting for them helps nobody.
#[test]
fn a_successor_that_can_do_without_name_servers_takes_over() -> Result<()> {
    const RULES: &str = include_str!("../../seed/tls-origination.yaml");
    let bed = unresolving("unneeded")?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let mut agent = Agent::start(&bed, &options)?;
    fs::write(bed.dir().join("hosts"), "127.0.0.1 localhost\n")?;
    let config = ConfigDir::create(&bed.dir().join("addresses"))?;
    config.write("rules.yaml", &RULES.replace("  resolution: DNS", "  addresses: [192.0.2.99]\n  resolution: DNS"))?;
    let endpoints = ConfigDir::create(&bed.dir().join("endpoints"))?;
    let is_static = "  endpoints: [{address: 192.0.2.99}]\n  resolution: STATIC";
    endpoints.write("rules.yaml", &RULES.replace("  resolution: DNS", is_static))?;
    for options in [
        options.clone().args(&["--capture", "ports"]),
        options.clone().args(&["--host", "*.cnn.com"]),
        AgentOptions::new(config.path()),
        AgentOptions::new(endpoints.path()),
    ] {
        let mut next = Agent::spawn(&bed, &options)?;
        next.process().wait_for_line("it to take over", |line| line.contains("took over from the agent"))?;
        ensure!(agent.wait()?.code() == Some(0), "{}", agent.log_text());
        agent = next;
    }
    agent.process().stop()?;
    let mut next = Agent::spawn(&bed, &options)?;
    next.process().wait_for_line("its attachment", |line| line.contains("\"attached\""))?;
    Ok(())
}

/// Where no name server answers.
fn unresolving(name: &str) -> Result<TestBed> {
    TestBed::builder(name).host(HOST).resolv_conf("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").build()
}

/// With programs of its own it leaves more than an agent with our maps can: what only it knew would be refused from then on.
#[test]
fn what_a_successor_with_other_maps_did_before_it_died_is_undone() -> Result<()> {
    const OTHER: &str = "other.example";
    const OTHER_URL: &str = "http://other.example/";
    /// What the origin sends those who come in clear.
    const IN_CLEAR: u16 = 301;
    let bed = TestBed::builder("undone-layout").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let _clear = bed.embedded_origin().clear(&bed.sockets(OTHER, 80)).start()?;
    let options = options(&bed)?;
    let agent = Agent::start(&bed, &options)?;
    ensure!(bed.curl(OTHER_URL)?.response()?.head.status == IN_CLEAR);
    let successor = connect(&bed)?;
    ask(&successor, NO_MAPS)?;
    say(&successor, &json!("taking"))?;
    // What it does then, as an agent with another layout does it: one that knows nothing of the first.
    let (state, layout) = (bed.dir().join("other"), bed.bpffs().join("egress/layout-0"));
    let options = options.state_dir(&state).admin_port(9902);
    Agent::start(&bed, &options.args(&["--pin-dir", "/sys/fs/bpf/egress/layout-0", "--host", OTHER]))?.kill();
    ensure!(layout.exists() && bed.cgroup().programs()? == 2 * PROGRAMS);
    ensure!(bed.curl(OTHER_URL)?.run()?.exit_code == REFUSED, "this is not what is to be undone");
    drop(successor);
    wait_until("its programs to be detached", PATIENCE, || {
        bed.cgroup().programs().is_ok_and(|count| count == PROGRAMS) && !layout.exists()
    })
    .with_context(|| agent.log_text())?;
    ensure!(bed.curl(OTHER_URL)?.response()?.head.status == IN_CLEAR);
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    Ok(())
}

#[test]
fn others_are_kept_out_of_the_state_directory() -> Result<()> {
    const NOBODY: u32 = 65534;
    let bed = TestBed::new("state")?;
    let state = bed.dir().join("state");
    fs::create_dir(&state)?;
    let options = options(&bed)?;
    for (mode, owner) in [(0o755, 0), (0o770, 0), (0o700, NOBODY)] {
        chown(&state, Some(owner), None)?;
        fs::set_permissions(&state, fs::Permissions::from_mode(mode))?;
        let mut agent = Agent::spawn(&bed, &options)?;
        ensure!(agent.wait()?.code() == Some(1), "{}", agent.log_text());
        let reason = format!("{} belongs to user {owner} and has mode {mode:04o}", state.display());
        ensure!(agent.log_text().contains(&reason), "{}", agent.log_text());
    }
    let link = bed.dir().join("link");
    std::os::unix::fs::symlink(&state, &link)?;
    ensure!(Agent::spawn(&bed, &options.clone().state_dir(&link))?.wait()?.code() == Some(1), "a link was followed");
    ensure!(bed.cgroup().programs()? == 0 && !bed.bpffs().join("egress").exists());

    chown(&state, Some(0), None)?;
    let mut agent = Agent::start(&bed, &options)?;
    // Even when the way in is open.
    fs::set_permissions(bed.dir(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(socket_path(&bed), fs::Permissions::from_mode(0o777))?;
    let maps = agent.map_id(map::FLOWS)?;
    let heard = thread::scope(|scope| {
        let stranger = scope.spawn(|| {
            // SAFETY: no memory is involved. The system call, unlike the library's function, concerns this thread alone.
            ensure!(unsafe { libc::syscall(libc::SYS_setresuid, -1, NOBODY, -1) } == 0, "cannot become another user");
            let socket = connect(&bed)?;
            say(&socket, &hello(maps))?;
            hear(&socket)
        });
        stranger.join().expect("a stranger does not panic")
    });
    ensure!(!matches!(heard, Ok(Some(_))), "{heard:?}");
    agent.process().wait_for_line("its refusal", |line| line.contains("the other end runs as user 65534")).map(drop)
}

#[test]
fn a_killed_agent_leaves_resets_and_nothing_in_the_maps() -> Result<()> {
    let bed = TestBed::new("killed")?;
    let tripwire = bed.tripwire(&[HOST])?;
    let (parts, pieces) = unbounded_channel();
    let pieces = Mutex::new(Some(pieces));
    let _origin = origin_with(&bed, move |target| {
        let pieces = (target == "/slow").then(|| pieces.lock().expect("no test panics with it").take()).flatten();
        pieces.map_or_else(|| Reply::ok("over TLS\n"), Reply::Stream)
    })?;
    let options = options(&bed)?;
    let mut agent = Agent::start(&bed, &options)?;
    let mut idle = begin(&bed, &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
    idle.wait_for_output("over TLS\n")?;
    // A response that the close of its connection completes.
    let mut slow = begin(&bed, &format!("GET /slow HTTP/1.0\r\nHost: {HOST}\r\n\r\n"))?;
    parts.send(b"HTTP/1.1 200 OK\r\n\r\nfirst\n".to_vec())?;
    slow.wait_for_output("first\n")?;
    // Connections that are never accepted: their flows stay.
    agent.process().stop()?;
    let mut queued = begin(&bed, "GET")?;
    wait_until("a connection in the queue", PATIENCE, || agent.flows().is_ok_and(|flows| flows == 1))?;
    agent.kill();

    for client in [&mut idle, &mut slow, &mut queued] {
        let status = client.wait(PATIENCE)?;
        let reason = client.stderr().join("\n");
        ensure!(!status.success() && reason.contains("Connection reset by peer"), "{status}: {reason}");
    }
    for family in ["-4", "-6"] {
        ensure!(bed.curl(URL)?.args([family]).run()?.exit_code == REFUSED);
    }
    let agent = Agent::start(&bed, &options)?;
    ensure!(agent.flows()? == 0 && agent.namespaces()? == 2);
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    tripwire.assert_silent()
}

/// Whoever starts a new agent may tell the old one to end before it has been relieved.
#[test]
fn an_agent_that_is_told_to_end_waits_for_its_successor() -> Result<()> {
    for comes in [true, false] {
        let bed = TestBed::new("told")?;
        let _origin = origin(&bed)?;
        let mut agent = Agent::start(&bed, &options(&bed)?)?;
        let successor = connect(&bed)?;
        agent.process().wait_for_line("it to know", |line| line.contains("another agent is starting"))?;
        agent.process().signal(Signal::SIGTERM)?;
        agent.process().wait_for_line("the signal", |line| line.contains("\"ending\""))?;
        ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
        if comes {
            ask(&successor, agent.map_id(map::FLOWS)?)?;
            say(&successor, &json!("taking"))?;
            say(&successor, &json!("done"))?;
            agent
                .process()
                .wait_for_line("the drain", |line| line.contains("another agent has taken over; draining"))?;
        } else {
            drop(successor);
        }
        ensure!(agent.wait()?.code() == Some(0), "{}", agent.log_text());
        ensure!(bed.curl(URL)?.run()?.exit_code == REFUSED, "who listens?");
    }
    Ok(())
}
