//! The promise above all others: nothing leaves in clear for a configured host, whatever happens to the agent.
//!
//! Three pods call configured hosts without pause, through sockets of every kind, while agents are started, killed and
//! upgraded, and given rules and files good and bad. Meanwhile a tripwire listens on port 80 of these hosts, and each pod's
//! link is captured.

mod callers;
mod node;
mod pod;
mod programs;
mod site;
mod tally;

use std::{
    env, iter,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    wait::{PATIENCE, wait_until},
};

use self::{
    callers::Callers,
    node::{Event, Node},
    pod::Pod,
    programs::Program,
    site::Site,
};

/// In the hosts file.
const HOST: &str = "edition.cnn.com";
/// Known to the pods' name server alone, by a rule for all such names.
const NAME: &str = "www.wild.example";
/// Has the address that the name server tells of NAME.
const PLACE: &str = "place.example";
/// Has a rule at times.
const OTHER: &str = "other.example";
/// Where the name server is.
const SERVER: &str = "dns.example";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const LOOKUP: &str = env!("CARGO_BIN_EXE_lookup");

/// How often all that can happen happens. More are for whoever has the time.
const ROUNDS: usize = 1;
/// Set this to another number for other orders of what happens.
const SEED: &str = "EGRESS_LEAK_SEED";

/// What may be seen on port 80 of configured hosts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tolerance {
    Nothing,
    /// Connections without a byte: those of clients that the machine was too busy to let speak in time.
    Silence,
}

#[test]
fn whatever_happens_to_the_agent_nothing_leaves_in_clear() -> Result<()> {
    // One after the other: each keeps the machine busy.
    check("leak", &[], Tolerance::Nothing)?;
    let by_port = ["--capture", "ports", "--exclude-cidr", "203.0.113.0/24"];
    check("leak-ports", &by_port, Tolerance::Silence).context("with --capture ports")
}

fn check(name: &str, arguments: &[&str], tolerance: Tolerance) -> Result<()> {
    let builder = TestBed::builder(name).host(SERVER).host(HOST).host(PLACE).host(OTHER);
    let mut bed = builder.resolv_conf("nameserver 198.51.100.1\noptions timeout:1 attempts:2\n").build()?;
    let names = ["second".to_owned(), "third".to_owned()].into_iter().chain((0..ROUNDS).map(|at| format!("late{at}")));
    let netns = names.map(|name| bed.add_pod(&name)).collect::<Result<Vec<_>>>()?;
    let bed = &bed;
    let all = iter::once(bed.client()).chain(&netns).enumerate();
    let pods = all.map(|(index, netns)| Pod::new(bed, netns, index)).collect::<Result<Vec<_>>>()?;
    let (lasting, late) = pods.split_at(pods.len() - ROUNDS);
    // As the pause process of a real pod does: without it a pod is let go between its last programs.
    let _sandboxes =
        lasting.iter().map(|pod| pod.command("sleep")?.arg("infinity").spawn()).collect::<Result<Vec<_>>>()?;
    let captures = pods.iter().map(Pod::capture).collect::<Result<Vec<_>>>()?;
    let site = Site::start(bed)?;

    let mut node = Node::start(bed, arguments)?;
    let mut callers = Callers::default();
    for pod in lasting {
        pod.learn(NAME)?;
        callers.add(pod)?;
    }
    callers.begin()?;
    let programs = Program::all(bed, lasting);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also when something fails: the scope waits for its threads.
        let _end = End(&ended);
        for of_thread in &programs {
            scope.spawn(|| programs::call(of_thread, &ended));
        }
        callers.wait_until_upgraded()?;
        endure(&mut node, &mut callers, &site, late)?;
        println!("{}", callers.summary()?);
        callers.check()?;
        drop(callers);
        Ok::<_, anyhow::Error>(())
    })?;
    programs.iter().flatten().try_for_each(Program::check)?;
    let agent = node.agent()?;
    wait_until("the flows to be taken", PATIENCE, || agent.flows().is_ok_and(|flows| flows == 0))?;

    // Once more in clear, on purpose and out of the agent's reach: to show that it would have been noticed.
    site.check_silent(tolerance)?;
    pods.iter().try_for_each(Pod::call_in_clear)?;
    site.check_in_clear(pods.len())?;
    for (capture, pod) in captures.into_iter().zip(&pods) {
        pod.check_trace(&capture.stop()?, tolerance).with_context(|| pod.netns.name().to_owned())?;
    }
    Ok(())
}

/// Lets happen what can happen, in an order that depends on the seed. After each of it every kind of socket is served.
fn endure<'bed>(node: &mut Node<'bed>, callers: &mut Callers, site: &Site, late: &[Pod<'bed>]) -> Result<()> {
    let seed = env::var(SEED).map_or(Ok(1), |seed| seed.parse()).with_context(|| format!("{SEED} is not a number"))?;
    println!("{SEED}={seed}");
    let mut random = Random(seed);
    for pod in late {
        for event in random.shuffle(Event::ALL) {
            println!("{event:?}");
            let happened = node.endure(event, callers, site, pod).and_then(|()| callers.wait_until_upgraded());
            happened.with_context(|| format!("{event:?}, {SEED}={seed}: the agent said:\n{}", node.log_text()))?;
        }
    }
    ensure!(node.agent()?.process().is_running());
    Ok(())
}

/// The end of the programs, by being dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Knuth's linear congruential generator: the same numbers for the same seed, on any machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The upper bits are the better ones.
        (self.0 >> 33) as usize % limit
    }

    fn shuffle<T, const N: usize>(&mut self, mut items: [T; N]) -> [T; N] {
        for at in (1..N).rev() {
            items.swap(at, self.below(at + 1));
        }
        items
    }
}
