//! The agent connects from its scope itself, and is ready only if that is intercepted.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, TcpListener},
    thread,
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, LogLine, binary},
    cgroup::{Cgroup, PROGRAMS},
    clients::Curl,
    origin::ServerTls,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;

const HOST: &str = "edition.cnn.com";
const FAILED: &str = "not ready: self-test: a connect from";

#[test]
fn an_agent_that_intercepts_passes_whenever_it_is_asked() -> Result<()> {
    let bed = TestBed::new("passes")?;
    let mut agent = start(&bed, bed.cgroup())?;
    check(&agent, [1.0, 0.0])?;
    test_again(&mut agent)?;
    check(&agent, [2.0, 0.0])?;
    // By a socket of either family each time.
    let metrics = agent.metrics()?;
    ensure!(metrics.sum("egress_connects_total", &[("outcome", "self_test")]) == 4.0, "{metrics:?}");
    ensure!(agent.admin("/readyz")?.0 == 200, "{:?}", agent.admin("/readyz")?);
    let mut left = fs::read_dir(bed.cgroup().path())?.flatten().filter(|entry| entry.path().is_dir());
    ensure!(left.next().is_none(), "a cgroup is left behind");
    ensure!(agent.terminate()?.code() == Some(0));
    Ok(())
}

#[test]
fn a_cgroup_that_was_removed_and_made_anew_is_attached_to() -> Result<()> {
    let bed = TestBed::new("dying")?;
    let scope = bed.cgroup().child("scope")?;
    let mut agent = start(&bed, &scope)?;
    check(&agent, [1.0, 0.0])?;
    drop(scope);
    test_again(&mut agent)?;
    check(&agent, [1.0, 1.0])?;
    let (status, reason) = agent.admin("/readyz")?;
    ensure!(status == 503 && reason.contains("cannot make a cgroup to connect from"), "{reason}");
    ensure!(agent.metrics()?.sum("egress_ready", &[]) == 0.0, "{:?}", agent.metrics()?);
    let warns = |line: &LogLine| {
        line.message() == "not ready" && line.text("level") == "WARN" && line.text("reason").starts_with("self-test: ")
    };
    ensure!(agent.log().iter().any(warns), "{}", agent.log_text());

    // All looks as it did, and is not.
    let _scope = bed.cgroup().child("scope")?;
    wait_until("the agent to follow", PATIENCE, || agent.admin("/readyz").is_ok_and(|(status, _)| status == 200))
        .with_context(|| agent.log_text())?;
    ensure!(agent.log_text().contains("a served cgroup has come, or was made anew"), "{}", agent.log_text());
    test_again(&mut agent)?;
    wait_until("another test", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum("egress_self_tests_total", &[("result", "passed")]) >= 3.0)
    })?;
    ensure!(agent.terminate()?.code() == Some(0));
    Ok(())
}

/// As after a change of kubelet's driver of cgroups, which leaves an empty one.
#[test]
fn one_of_several_cgroups_may_go() -> Result<()> {
    let mut bed = TestBed::new("several")?;
    let pod = bed.add_pod("pod")?;
    let [first, second] = ["first", "second"].map(|name| bed.cgroup().child(name));
    let (first, second) = (first?, second?);
    let config = bed.config_dir()?;
    let options = AgentOptions::new(config.path()).cgroup(first.path());
    let also = second.path().display().to_string();
    let arguments = ["--host", HOST, "--self-test-interval", "60m", "--cgroup", &also];
    let mut agent = Agent::start(&bed, &options.args(&arguments))?;
    drop(first);
    test_again(&mut agent)?;
    check(&agent, [2.0, 0.0])?;
    let ready = agent.admin("/readyz")?;
    ensure!(ready.0 == 200, "{ready:?}");
    // Pods come and go.
    let mut sleep = bed.pod_command(&pod, "sleep")?.in_cgroup(&second)?.arg("infinity").spawn()?;
    wait_until("the pod to be served", PATIENCE, || pod.listening().is_ok_and(|found| found.len() == 2))?;
    sleep.kill();
    wait_until("the pod to be let go", PATIENCE, || pod.listening().is_ok_and(|found| found.is_empty()))?;
    ensure!(agent.terminate()?.code() == Some(0));
    Ok(())
}

/// What kubelet's driver of cgroups has left is there until the machine is started anew.
#[test]
fn a_cgroup_of_pods_that_comes_later_is_served_too() -> Result<()> {
    let bed = TestBed::new("later")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let tripwire = bed.tripwire(&[HOST])?;
    let left = bed.cgroup().child("kubepods.slice")?;
    let config = bed.config_dir()?;
    let agent = Agent::start(&bed, &AgentOptions::new(config.path()).default_scope().args(&["--host", HOST]))?;
    ensure!(left.programs()? == PROGRAMS && bed.cgroup().programs()? == 0, "{}", agent.log_text());
    let pods = bed.cgroup().child("kubepods")?;
    wait_until("it to be attached to", PATIENCE, || pods.programs().is_ok_and(|count| count == PROGRAMS))
        .with_context(|| agent.log_text())?;
    let command = |program| bed.pod_command(bed.client(), program)?.in_cgroup(&pods);
    let _pause = command("sleep")?.arg("infinity").spawn()?;
    wait_until("the pod to be served", PATIENCE, || bed.client().listening().is_ok_and(|found| found.len() == 2))?;
    ensure!(Curl::new(command("curl")?, &format!("http://{HOST}/")).response()?.head.status == 200);
    ensure!(origin.requests().len() == 1);
    ensure!(agent.terminate()?.code() == Some(0));
    tripwire.assert_silent()
}

/// Others have as many programs there as the kernel takes.
#[test]
fn a_cgroup_that_cannot_be_attached_to_is_tried_again_and_keeps_others_from_nothing() -> Result<()> {
    let bed = TestBed::new("full")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let slice = bed.cgroup().child("kubepods.slice")?;
    let config = bed.config_dir()?;
    let mut agent = Agent::start(&bed, &AgentOptions::new(config.path()).default_scope().args(&["--host", HOST]))?;
    // It is not to be there sooner than the others.
    agent.process().signal(Signal::SIGSTOP)?;
    let pods = bed.cgroup().child("kubepods")?;
    let others = pods.fill()?;
    agent.process().signal(Signal::SIGCONT)?;
    agent.process().wait_for_line("it to fail", |line| line.contains("a served cgroup is not attached to"))?;
    let unready = || agent.admin("/readyz").is_ok_and(|(status, _)| status == 503);
    wait_until("the agent to say so", PATIENCE, unready).with_context(|| agent.log_text())?;
    let command = |program| bed.pod_command(bed.client(), program)?.in_cgroup(&slice);
    let _pause = command("sleep")?.arg("infinity").spawn()?;
    wait_until("the pod to be served", PATIENCE, || bed.client().listening().is_ok_and(|found| found.len() == 2))?;
    ensure!(Curl::new(command("curl")?, &format!("http://{HOST}/")).response()?.head.status == 200);
    ensure!(origin.requests().len() == 1);
    drop(others);
    let ready = || agent.admin("/readyz").is_ok_and(|(status, _)| status == 200);
    wait_until("the agent to be ready", PATIENCE, ready).with_context(|| agent.log_text())?;
    ensure!(pods.programs()? == PROGRAMS, "{}", agent.log_text());
    ensure!(agent.terminate()?.code() == Some(0));
    Ok(())
}

/// As by `docker pause` of the one above. A process would not even begin there, and who starts it waits for that.
#[test]
fn a_scope_that_stands_still_holds_nobody_up() -> Result<()> {
    let bed = TestBed::new("frozen")?;
    let scope = bed.cgroup().child("scope")?;
    let mut agent = start(&bed, &scope)?;
    fs::write(scope.path().join("cgroup.freeze"), "1")?;
    let events = || fs::read_to_string(scope.path().join("cgroup.events")).unwrap_or_default();
    wait_until("the cgroup to be frozen", PATIENCE, || events().contains("frozen 1"))?;
    test_again(&mut agent)?;
    check(&agent, [2.0, 0.0])?;
    fs::write(scope.path().join("cgroup.freeze"), "0")?;
    test_again(&mut agent)?;
    check(&agent, [3.0, 0.0])?;
    ensure!(agent.terminate()?.code() == Some(0));
    Ok(())
}

/// Nobody asks for a test here. What is detached leaves in clear until somebody notices.
#[test]
fn programs_that_were_detached_are_noticed_without_being_asked() -> Result<()> {
    let bed = TestBed::new("unasked")?;
    let agent = start_testing(&bed, bed.cgroup(), "1s")?;
    bed.node_command(binary()?)?.args(["detach", "--force"]).run()?.success()?;
    let unready = || agent.admin("/readyz").is_ok_and(|(status, reason)| status == 503 && reason.starts_with(FAILED));
    wait_until("the agent to notice", PATIENCE, unready).with_context(|| agent.log_text())?;
    let doubted = agent.log().iter().filter(|line| line.message().contains("it is repeated")).count();
    ensure!(doubted == 2, "{}", agent.log_text());
    Ok(())
}

/// Here there is for a moment no room for the cgroup that it connects from.
#[test]
fn one_failure_that_nobody_asked_for_is_not_believed() -> Result<()> {
    let bed = TestBed::new("doubted")?;
    let mut agent = start_testing(&bed, bed.cgroup(), "200ms")?;
    let most = bed.cgroup().path().join("cgroup.max.descendants");
    fs::write(&most, "0")?;
    agent.process().wait_for_line("a failure", |line| line.contains("it is repeated"))?;
    fs::write(&most, "max")?;
    let count = |result| agent.metrics().map(|metrics| metrics.sum("egress_self_tests_total", &[("result", result)]));
    let passed = count("passed")?;
    wait_until("more tests", PATIENCE, || count("passed").is_ok_and(|count| count > passed + 1.0))?;
    ensure!(count("doubted")? >= 1.0 && count("failed")? == 0.0, "{:?}", agent.metrics()?);
    ensure!(agent.admin("/readyz")?.0 == 200 && agent.metrics()?.sum("egress_ready", &[]) == 1.0);
    ensure!(!agent.log().iter().any(|line| line.text("reason").starts_with("self-test")), "{}", agent.log_text());
    Ok(())
}

#[test]
fn an_answer_by_somebody_else_does_not_pass() -> Result<()> {
    let bed = TestBed::new("impostor")?;
    // Takes every connection to port 80 of the node itself.
    let impostor = bed.node().run(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80))?))?;
    let visits = impostor.try_clone()?;
    let answering = thread::spawn(move || {
        let (mut stream, _) = visits.accept()?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    });
    let mut agent = start(&bed, bed.cgroup())?;
    check(&agent, [1.0, 0.0])?;
    ensure!(!answering.is_finished(), "the connect of the agent that intercepts came out");

    bed.node_command(binary()?)?.args(["detach", "--force"]).run()?.success()?;
    test_again(&mut agent)?;
    check(&agent, [1.0, 1.0])?;
    let (status, reason) = agent.admin("/readyz")?;
    ensure!(status == 503 && reason.starts_with(FAILED), "{reason}");
    ensure!(reason.contains("somebody else answered: \"HTTP/1.1 200 OK"), "{reason}");
    answering.join().expect("answering does not panic")?;

    // One who accepts and says nothing.
    test_again(&mut agent)?;
    check(&agent, [1.0, 2.0])
}

/// An agent that tests itself when it is told to.
fn start<'bed>(bed: &'bed TestBed, scope: &Cgroup) -> Result<Agent<'bed>> {
    start_testing(bed, scope, "60m")
}

fn start_testing<'bed>(bed: &'bed TestBed, scope: &Cgroup, interval: &str) -> Result<Agent<'bed>> {
    let config = bed.config_dir()?;
    let options = AgentOptions::new(config.path()).cgroup(scope.path());
    Agent::start(bed, &options.args(&["--host", HOST, "--self-test-interval", interval]))
}

fn test_again(agent: &mut Agent<'_>) -> Result<()> {
    agent.process().signal(Signal::SIGUSR2)
}

/// Waits until this many tests have passed and failed.
fn check(agent: &Agent<'_>, expected: [f64; 2]) -> Result<()> {
    let counts = || -> Result<[f64; 2]> {
        let metrics = agent.metrics()?;
        Ok(["passed", "failed"].map(|result| metrics.sum("egress_self_tests_total", &[("result", result)])))
    };
    wait_until("the self-test", PATIENCE, || counts().is_ok_and(|counts| counts == expected))
        .map_err(|error| error.context(format!("{:?} instead of {expected:?}:\n{}", counts(), agent.log_text())))
}
