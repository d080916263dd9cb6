//! Pods that cannot be served.

use std::fs;

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::Agent,
    netns::Netns,
    wait::{PATIENCE, wait_until},
};

use super::{CLIENT, HOST, agent, origin};

#[test]
fn a_namespace_that_cannot_be_served_is_told_of_once() -> Result<()> {
    let mut bed = TestBed::new("unserved")?;
    let pod = bed.add_pod("pod")?;
    // There is no port left to listen on.
    reserve_ports(&pod, "1-65535\n")?;
    let _origin = origin(&bed)?;
    let mut agent = agent(&bed)?;
    let _pause = bed.pod_command(&pod, "sleep")?.in_cgroup(bed.cgroup())?.arg("infinity").spawn()?;
    wait_for_unserved(&agent, 1.0)?;
    for _ in 0..5 {
        // The agent is told of each.
        bed.pod_command(&pod, "true")?.in_cgroup(bed.cgroup())?.run()?.success()?;
    }
    reserve_ports(&pod, "\n")?;
    wait_for_unserved(&agent, 0.0)?;
    check_told_once(&mut agent)
}

/// Who looks through the processes does not see it.
#[test]
fn a_namespace_of_one_thread_that_cannot_be_served_is_told_of_once() -> Result<()> {
    let mut bed = TestBed::new("unserved-thread")?;
    let (pod, other) = (bed.add_pod("pod")?, bed.add_pod("other")?);
    reserve_ports(&pod, "1-65535\n")?;
    let _origin = origin(&bed)?;
    let mut agent = agent(&bed)?;
    let (address, path) = (bed.sockets(HOST, 80)[0].to_string(), pod.path().display().to_string());
    let command = bed.client_command(CLIENT)?.args(["--beside", "repeat", "--count", &address, "--netns", &path]);
    let client = command.spawn()?;
    client.write_stdin(b"\n")?;
    wait_for_unserved(&agent, 1.0)?;
    // That another one is let go takes two walks.
    let visitor = bed.pod_command(&other, "sleep")?.in_cgroup(bed.cgroup())?.arg("infinity").spawn()?;
    wait_until("the other pod to be served", PATIENCE, || other.listening().is_ok_and(|found| found.len() == 2))?;
    drop(visitor);
    wait_until("the other pod to be let go", PATIENCE, || other.listening().is_ok_and(|left| left.is_empty()))?;
    reserve_ports(&pod, "\n")?;
    wait_for_unserved(&agent, 0.0)?;
    check_told_once(&mut agent)
}

fn reserve_ports(pod: &Netns, ports: &str) -> Result<()> {
    pod.run(|| Ok(fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", ports)?))
}

fn wait_for_unserved(agent: &Agent<'_>, count: f64) -> Result<()> {
    wait_until(&format!("{count} unserved"), PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum("egress_network_namespaces_unserved", &[]) == count)
    })
}

/// That a namespace cannot be served, and that it is served now.
fn check_told_once(agent: &mut Agent<'_>) -> Result<()> {
    agent.process().wait_for_line("its recovery", |line| line.contains("is served now"))?;
    let warnings = agent.log_text().matches("cannot serve a network namespace").count();
    ensure!(warnings == 1, "{warnings}: {}", agent.log_text());
    Ok(())
}
