//! Agents that die, say nothing, or are not what they should be.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
    sync::Mutex,
    thread,
};

use anyhow::{Result, ensure};
use egress_common::names::map;
use harness::{
    TestBed,
    agent::{Agent, binary},
    cgroup::PROGRAMS,
    clients::Curl,
    origin::Reply,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::mpsc::unbounded_channel;

use super::{HOST, URL, begin, load, options, origin, origin_with, report};

/// What curl ends with when its connection is refused.
const REFUSED: i32 = 7;

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
    bed.node_command(binary()?)?.arg("detach").run()?.success()?;
    ensure!(bed.cgroup().programs()? == 0);
    drop(successor);
    agent.process().wait_for_line("the end of the successor", |line| line.contains("undoing what it did"))?;
    wait_until("the programs to be attached", PATIENCE, || {
        bed.cgroup().programs().is_ok_and(|count| count == PROGRAMS)
    })?;
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    agent.kill();
    ensure!(bed.curl(URL)?.run()?.exit_code == REFUSED, "nothing is pinned");
    Ok(())
}

/// A successor that hangs holds new pods up for a while, and can do harm when it wakes.
#[test]
fn a_successor_that_hangs_is_given_up_and_undone_when_it_ends() -> Result<()> {
    let mut bed = TestBed::new("hangs")?;
    let pod = bed.add_pod("late")?;
    let _origin = origin(&bed)?;
    let agent = Agent::start(&bed, &options(&bed)?)?;
    let successor = succeed(&bed, &agent, 2)?;
    wait_until("the agent to go on", 3 * PATIENCE, || agent.log_text().contains("undoing what it did"))?;
    ensure!(
        Curl::new(bed.pod_command(&pod, "curl")?.in_cgroup(bed.cgroup())?, URL).response()?.body == b"over TLS\n",
        "a new pod is not served"
    );
    bed.node_command(binary()?)?.arg("detach").run()?.success()?;
    ensure!(bed.cgroup().programs()? == 0);
    say(&successor, &json!("done"))?;
    ensure!(hear(&successor)? == Some(json!("late")), "it was not told");
    drop(successor);
    wait_until("the programs to be attached", PATIENCE, || {
        bed.cgroup().programs().is_ok_and(|count| count == PROGRAMS)
    })?;
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    Ok(())
}

/// It holds the admin address, and connections in its queues. When it comes to itself, the place is another's.
#[test]
fn an_agent_that_hung_and_wakes_leaves_its_place_to_who_has_it() -> Result<()> {
    let bed = TestBed::new("wakes")?;
    let tripwire = bed.tripwire(&[HOST])?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let mut hung = Agent::start(&bed, &options)?;
    hung.process().signal(Signal::SIGSTOP)?;
    hung.process().wait_until_stopped()?;
    let mut agent = Agent::spawn(&bed, &options)?;
    agent.process().wait_for_line("its attachment", |line| line.contains("\"attached\""))?;
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    hung.process().signal(Signal::SIGCONT)?;
    ensure!(hung.wait()?.code() == Some(0), "{}", hung.log_text());
    ensure!(
        hung.log_text().contains("another agent has taken over, as this one did not answer"),
        "{}",
        hung.log_text()
    );
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n", "its end has undone what the other one did");
    agent.wait_until_ready()?;
    agent.wait_for_records(2)?;
    ensure!(bed.cgroup().programs()? == PROGRAMS && agent.namespaces()? == 2 && agent.flows()? == 0);
    tripwire.assert_silent()
}

#[test]
fn an_agent_that_does_not_answer_is_not_waited_for() -> Result<()> {
    let bed = TestBed::new("silent")?;
    let _origin = origin(&bed)?;
    let state = bed.dir().join("state");
    fs::create_dir(&state)?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700))?;
    let silent = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    silent.bind(&SockAddr::unix(socket_path(&bed))?)?;
    silent.listen(1)?;
    let options = options(&bed)?;
    let mut agent = Agent::start(&bed, &options)?;
    agent.process().wait_for_line("its decision", |line| line.contains("does not hand over; starting without it"))?;
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    let _next = Agent::take_over(&bed, &options)?;
    ensure!(agent.wait()?.code() == Some(0), "{}", agent.log_text());
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
    agent.process().signal(Signal::SIGSTOP)?;
    agent.process().wait_until_stopped()?;
    let mut queued = begin(&bed, "")?;
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
            ask(&successor, &agent)?;
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

/// Talks to the agent as a successor does, as far as `steps` go.
fn succeed(bed: &TestBed, agent: &Agent<'_>, steps: usize) -> Result<Socket> {
    let socket = connect(bed)?;
    if steps > 0 {
        ask(&socket, agent)?;
    }
    if steps > 1 {
        say(&socket, &json!("taking"))?;
    }
    Ok(socket)
}

fn ask(socket: &Socket, agent: &Agent<'_>) -> Result<()> {
    say(socket, &hello(agent.map_id(map::FLOWS)?))?;
    let answer = hear(socket)?;
    ensure!(answer == Some(json!({ "sockets": { "left": 0 } })), "{answer:?}");
    Ok(())
}

fn hello(maps: u32) -> Value {
    json!({ "hello": { "protocol": 2, "maps": maps } })
}

fn connect(bed: &TestBed) -> Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.connect(&SockAddr::unix(socket_path(bed))?)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn socket_path(bed: &TestBed) -> PathBuf {
    bed.dir().join("state/agent.sock")
}

fn say(mut socket: &Socket, message: &Value) -> Result<()> {
    Ok(socket.write_all(message.to_string().as_bytes())?)
}

/// The next message, without what comes with it; None at the end.
fn hear(mut socket: &Socket) -> Result<Option<Value>> {
    let mut buffer = [0; 1024];
    let length = socket.read(&mut buffer)?;
    Ok(if length == 0 { None } else { Some(serde_json::from_slice(&buffer[..length])?) })
}
