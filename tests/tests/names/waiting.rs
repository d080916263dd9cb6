//! What the agent is not ready without, and for how long.

use anyhow::{Context as _, Result, ensure};
use harness::{
    agent::Agent,
    wait::{PATIENCE, wait_until},
};

use super::{BACKEND, HOST, Mode, OTHER, Site, THIRD, rules};

/// Of one that does not exist nothing can leave in clear; of one that nobody answers for it can.
#[test]
fn hosts_without_addresses_are_counted() -> Result<()> {
    for (mode, is_ready) in [(Mode::Denies, true), (Mode::IsSilent, false)] {
        let site = Site::new("names-counted")?;
        let _dns = site.name_server()?;
        site.set(mode);
        let agent = site.spawn(&[])?;
        let wait_for = |unresolved: f64, ready: bool| {
            wait_until(&format!("{unresolved} hosts without addresses"), PATIENCE, || {
                let found = |name| agent.metrics().is_ok_and(|metrics| metrics.sum(name, &[]) == unresolved);
                let status = if ready { 200 } else { 503 };
                found("egress_hosts_unresolved") && agent.admin("/readyz").is_ok_and(|(found, _)| found == status)
            })
            .with_context(|| agent.log_text())
        };
        // The other one is in the hosts file. To the name of its endpoint applications may go, too.
        wait_for(2.0, is_ready)?;
        site.set(Mode::Answers);
        wait_for(0.0, true)?;
    }
    Ok(())
}

/// As of one whose zone is broken: a node is not to be without its pods for that.
#[test]
fn a_host_that_cannot_be_looked_up_while_others_can_is_in_the_way_for_a_while() -> Result<()> {
    let site = Site::new("names-broken")?;
    let _dns = site.name_server()?;
    let _origin = site.origin()?;
    let tripwire = site.bed.tripwire(&[HOST, OTHER])?;
    site.set(Mode::FailsForOther);
    let mut agent = site.spawn(&[])?;
    wait_until("the agent to miss the host", PATIENCE, || {
        agent.admin("/readyz").is_ok_and(|(status, text)| status == 503 && text.contains(OTHER))
    })?;
    ensure!(site.status()? == [200], "it is in the way of others");
    agent.wait_until_ready()?;
    let told = |line: &str| line.contains("but for what cannot be looked up") && line.contains(OTHER);
    agent.process().wait_for_line("what it is ready without", told)?;
    let unresolved = || agent.metrics().map(|metrics| metrics.sum("egress_hosts_unresolved", &[]));
    ensure!(unresolved()? == 1.0);
    // It is still asked for.
    site.set(Mode::Answers);
    wait_until("the host to be known", PATIENCE, || unresolved().is_ok_and(|count| count == 0.0))?;
    site.check_interception()?;
    tripwire.assert_silent()
}

/// When nobody answers for anybody, that is no matter of a host.
#[test]
fn a_host_is_waited_for_when_name_servers_come_back() -> Result<()> {
    let site = Site::new("names-back")?;
    let _dns = site.name_server()?;
    site.set(Mode::Fails);
    let mut agent = site.spawn(&[])?;
    site.wait_until_given_up(&[BACKEND, OTHER])?;
    site.set(Mode::FailsForOther);
    let unresolved = || agent.metrics().map(|metrics| metrics.sum("egress_hosts_unresolved", &[]));
    wait_until("the first answer", PATIENCE, || unresolved().is_ok_and(|count| count == 1.0))?;
    let (status, text) = agent.admin("/readyz")?;
    ensure!(status == 503 && text.contains(OTHER), "{status} {text}");
    site.set(Mode::Answers);
    agent.wait_until_ready()?;
    check_that_it_waited(&agent)
}

#[test]
fn a_host_that_is_added_while_name_servers_are_away_is_waited_for() -> Result<()> {
    let site = Site::new("names-away")?;
    let _dns = site.name_server()?;
    let agent = site.agent(&[])?;
    site.set(Mode::Fails);
    site.bed.config_dir()?.write("third.yaml", &rules(THIRD, "  resolution: DNS\n"))?;
    site.wait_until_given_up(&[THIRD])?;
    site.set(Mode::Answers);
    wait_until("the agent to be ready again", PATIENCE, || {
        agent.admin("/readyz").is_ok_and(|(status, _)| status == 200)
            && agent.metrics().is_ok_and(|metrics| metrics.sum("egress_hosts_unresolved", &[]) == 0.0)
    })?;
    check_that_it_waited(&agent)
}

/// It has never been ready without a host.
fn check_that_it_waited(agent: &Agent) -> Result<()> {
    ensure!(agent.metrics()?.sum("egress_hosts_unresolved", &[]) == 0.0);
    ensure!(!agent.log_text().contains("but for what cannot be looked up"), "{}", agent.log_text());
    Ok(())
}
