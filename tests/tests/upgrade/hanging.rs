//! Agents that say nothing, or wake when another one has their place.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Result, ensure};
use aya::maps::MapInfo;
use egress_common::{LAYOUT_VERSION, names::map};
use harness::{
    TestBed,
    agent::{Agent, binary},
    cgroup::{Cgroup, PROGRAMS},
    clients::Curl,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    HOST, URL, options, origin,
    peer::{hear, say, socket_path, succeed},
};

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
    bed.node_command(binary()?)?.args(["detach", "--force"]).run()?.success()?;
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
    hung.process().stop()?;
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

/// Others came and went meanwhile: one that it was giving its sockets to, and one that did not wait for it.
#[test]
fn an_agent_that_hung_while_it_handed_over_leaves_its_place_to_a_third() -> Result<()> {
    // When it has given them, and when the second may have begun to change what is in the kernel.
    for steps in [1, 2] {
        let bed = TestBed::new("hung-giving")?;
        let tripwire = bed.tripwire(&[HOST])?;
        let _origin = origin(&bed)?;
        let options = options(&bed)?;
        let mut hung = Agent::start(&bed, &options)?;
        let second = succeed(&bed, &hung, steps)?;
        hung.process().stop()?;
        let mut third = Agent::spawn(&bed, &options)?;
        third.process().wait_for_line("its attachment", |line| line.contains("\"attached\""))?;
        drop(second);
        hung.process().signal(Signal::SIGCONT)?;
        ensure!(hung.wait()?.code() == Some(0), "{}", hung.log_text());
        ensure!(
            hung.log_text().contains(["has not taken over", "undoing what it did"][steps - 1]),
            "{}",
            hung.log_text()
        );
        third.wait_until_ready()?;
        check_served_by(&bed, &mut third)?;
        tripwire.assert_silent()?;
    }
    Ok(())
}

/// While the other one starts nobody can tell which listeners and pins are going to be whose.
#[test]
fn an_agent_that_wakes_while_another_one_starts_waits_for_the_end_of_that() -> Result<()> {
    for succeeds in [true, false] {
        let bed = TestBed::new("hung-starting")?;
        let tripwire = bed.tripwire(&[HOST])?;
        let _origin = origin(&bed)?;
        let options = options(&bed)?;
        let mut hung = Agent::start(&bed, &options)?;
        hung.process().stop()?;
        let mut other = Agent::spawn(&bed, &options)?;
        // It has just taken the name by which successors find it, and has yet to say where it listens.
        other.process().stop_after(libc::SYS_renameat)?;
        hung.process().signal(Signal::SIGCONT)?;
        hung.process().wait_for_line("it to know", |line| line.contains("another agent has taken over"))?;
        ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n", "what it serves it goes on to serve");
        if succeeds {
            other.process().signal(Signal::SIGCONT)?;
            ensure!(hung.wait()?.code() == Some(0), "{}", hung.log_text());
            other.wait_until_ready()?;
            check_served_by(&bed, &mut other)?;
        } else {
            other.kill();
            hung.process().wait_for_line("it to go on", |line| line.contains("undoing what it did"))?;
            check_served_by(&bed, &mut hung)?;
            // It is still there to be followed.
            let mut next = Agent::take_over(&bed, &options)?;
            ensure!(hung.wait()?.code() == Some(0), "{}", hung.log_text());
            check_served_by(&bed, &mut next)?;
        }
        tripwire.assert_silent()?;
    }
    Ok(())
}

/// It has said where it listens in one namespace, and nobody listens there any more.
#[test]
fn an_agent_that_wakes_after_another_one_failed_to_start_goes_on() -> Result<()> {
    let bed = TestBed::new("hung-failed")?;
    let tripwire = bed.tripwire(&[HOST])?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let mut hung = Agent::start(&bed, &options)?;
    hung.process().stop()?;
    let gone = Cgroup::create(&format!("egress-{}-gone", std::process::id()))?;
    let mut other = Agent::spawn(&bed, &options.clone().args(&["--cgroup", &gone.path().to_string_lossy()]))?;
    // That the scope is there is looked at before.
    wait_until("the other one to start", PATIENCE, || {
        fs::File::open(bed.dir().join("state")).is_ok_and(|state| state.try_lock().is_err())
    })?;
    drop(gone);
    ensure!(other.wait()?.code() == Some(1), "{}", other.log_text());
    ensure!(other.log_text().contains("cannot open the cgroup"), "{}", other.log_text());
    hung.process().signal(Signal::SIGCONT)?;
    hung.process().wait_for_line("it to go on", |line| line.contains("undoing what it did"))?;
    check_served_by(&bed, &mut hung)?;
    tripwire.assert_silent()
}

/// Sees that what is pinned is this agent's, and that it serves pod and node.
fn check_served_by(bed: &TestBed, agent: &mut Agent<'_>) -> Result<()> {
    let pinned = bed.bpffs().join(format!("egress/layout-{LAYOUT_VERSION}/maps")).join(map::FLOWS);
    ensure!(MapInfo::from_pin(pinned)?.id() == agent.map_id(map::FLOWS)?, "other maps are pinned than those it uses");
    ensure!(bed.cgroup().programs()? == PROGRAMS && agent.namespaces()? == 2 && agent.flows()? == 0);
    let (mark, records) = (agent.process().stderr_mark(), agent.records().len());
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    wait_until("its record", PATIENCE, || agent.records().len() > records)?;
    agent.process().signal(Signal::SIGUSR2)?;
    agent.process().wait_for_line_after(mark, "the self-test", |line| line.contains("the self-test passed")).map(drop)
}
