//! Connections to an upstream: how many there may be, who waits for them, and what each is used for.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    origin::{Origin, Reply, Request},
    process::{Command, Output},
    proxy_status::ProxyStatus,
    wait::{PATIENCE, wait_until},
};
use tokio::sync::watch;

use super::{HOST, SECOND, URL, agent, agent_with_one_worker, bed, echo, get, origin, origin_http1, pooled, service};

/// What answers when the test says so.
fn patient(released: watch::Receiver<bool>) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    move |request| Reply::Later(released.clone(), Box::new(echo(request)))
}

/// Requests of curls at the same time, each with a client connection of its own; prints the statuses.
fn at_once(bed: &TestBed, count: usize) -> Result<Output> {
    let parallel = ["-q", "-sS", "--max-time", "20", "--parallel", "--parallel-immediate", "--parallel-max", "50"];
    let statuses = ["-o", "/dev/null", "-w", "%{http_code}\n", &format!("{URL}/[1-{count}]")];
    bed.client_command("curl")?.args(parallel).args(statuses).run()
}

fn connections(requests: &[Request]) -> Vec<usize> {
    requests.iter().map(|request| request.connection).collect()
}

/// Has `count` requests made at the same time, of which no more than `first` come to the origin until it answers them.
fn check_waiting(
    bed: &TestBed,
    origin: &Origin,
    release: &watch::Sender<bool>,
    count: usize,
    first: usize,
) -> Result<()> {
    let output = thread::scope(|scope| {
        let client = scope.spawn(|| at_once(bed, count));
        origin.wait_for_requests(first)?;
        release.send_replace(true);
        client.join().expect("curl's thread does not panic")
    })?;
    ensure!(output.text() == "200\n".repeat(count), "{output:?}");
    origin.wait_for_requests(count).map(drop)
}

#[test]
fn requests_wait_for_the_connections_that_there_may_be() -> Result<()> {
    let bed = bed("max-connections")?;
    let (release, released) = watch::channel(false);
    let origin = origin_http1(&bed, patient(released))?;
    let (agent, _config) = agent_with_one_worker(&bed, &pooled("tcp: {maxConnections: 2}"))?;
    check_waiting(&bed, &origin, &release, 20, 2)?;
    ensure!(origin.connections() == 2, "{:?}", connections(&origin.requests()));
    ensure!(agent.records().iter().all(|record| record.text("outcome") == "upgraded"));
    // Nobody else is limited.
    release.send_replace(false);
    let output = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let urls = format!("http://{SECOND}/[1-5]");
            bed.client_command("curl")?.args(["-q", "-sS", "-Z", "--parallel-immediate", &urls]).run()
        });
        origin.wait_for_requests(25)?;
        release.send_replace(true);
        client.join().expect("curl's thread does not panic")
    })?;
    ensure!(output.text().lines().count() == 5 && origin.connections() == 7, "{output:?}");
    Ok(())
}

#[test]
fn streams_are_as_many_as_the_settings_allow() -> Result<()> {
    for (settings, first, connections) in [
        ("http: {maxConcurrentStreams: 2}", 7, 4),
        ("tcp: {maxConnections: 1}", 7, 1),
        ("tcp: {maxConnections: 1}, http: {maxConcurrentStreams: 2}", 2, 1),
    ] {
        let bed = bed("max-streams")?;
        let (release, released) = watch::channel(false);
        let origin = origin(&bed, patient(released))?;
        let (_agent, _config) = agent_with_one_worker(&bed, &pooled(settings))?;
        check_waiting(&bed, &origin, &release, 7, first).with_context(|| settings.to_owned())?;
        ensure!(origin.connections() == connections, "{settings}: {} connections", origin.connections());
    }
    Ok(())
}

#[test]
fn those_who_may_not_even_wait_are_refused_at_once() -> Result<()> {
    let bed = bed("max-pending")?;
    let (release, released) = watch::channel(true);
    let origin = origin_http1(&bed, patient(released))?;
    let rules = pooled("tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}");
    // Whatever the route wants repeated, this is not.
    let retries = "retries: {attempts: 3, retryOn: \"5xx,connect-failure\"}";
    let routes = format!("  - {retries}\n    route: [{{destination: {{host: {HOST}}}}}]\n");
    let (agent, _config) = agent_with_one_worker(&bed, &(rules + &service(&routes)))?;
    ensure!(get(&bed, "/first", &[])?.0 == 200);
    release.send_replace(false);
    let (refused, served) = thread::scope(|scope| {
        let ask = |target: &'static str| {
            let bed = &bed;
            move || get(bed, target, &[])
        };
        let held = scope.spawn(ask("/held"));
        origin.wait_for_requests(2)?;
        let both = [scope.spawn(ask("/one")), scope.spawn(ask("/other"))];
        wait_until("one of two to be refused", PATIENCE, || both.iter().any(thread::ScopedJoinHandle::is_finished))?;
        release.send_replace(true);
        let mut results = Vec::new();
        for thread in both {
            results.push(thread.join().expect("curl's thread does not panic")?);
        }
        ensure!(held.join().expect("curl's thread does not panic")?.0 == 200);
        results.sort_by_key(|(status, ..)| std::cmp::Reverse(*status));
        Ok((results.remove(0), results.remove(0)))
    })?;
    let (status, body, result) = refused;
    ensure!(status == 503 && body.contains("http.http1MaxPendingRequests is 1"), "{result:?}");
    let reason = ProxyStatus::parse(result.responses[0].header("proxy-status").unwrap_or_default())?;
    ensure!(reason.get("error") == "connection_limit_reached", "{reason:?}");
    ensure!(served.0 == 200 && origin.connections() == 1, "{served:?}");
    let records = agent.wait_for_records(4)?;
    let record = records.iter().find(|record| record.text("status") == "503").context("no record")?;
    ensure!(record.text("cause") == "overflow" && record.text("retries").is_empty(), "{record:?}");
    Ok(())
}

#[test]
fn a_connection_that_nobody_uses_is_given_up_for_another_pod() -> Result<()> {
    for http2 in [false, true] {
        let mut bed = bed("given-up")?;
        let other = bed.add_pod("other")?;
        let origin = if http2 { origin(&bed, echo)? } else { origin_http1(&bed, echo)? };
        let (_agent, _config) = agent(&bed, &pooled("tcp: {maxConnections: 1}"))?;
        let in_other = |program: &str| bed.pod_command(&other, program)?.in_cgroup(bed.cgroup());
        let ask_in_other = || in_other("curl")?.args(["-q", "-sS", "-4", "--max-time", "15", URL]).run();
        let _sandbox = in_other("sleep")?.arg("infinity").spawn()?;
        // Until the agent has noticed the pod, its connects are refused.
        wait_until("the other pod to be served", PATIENCE, || ask_in_other().is_ok_and(|output| output.code() == 0))?;
        for _ in 0..3 {
            ensure!(get(&bed, "/", &["-4"])?.0 == 200);
            ask_in_other()?.success()?;
        }
        let requests = origin.requests();
        ensure!(connections(&requests) == [0, 1, 2, 3, 4, 5, 6], "{:?}", connections(&requests));
        wait_until("the others to be closed", PATIENCE, || origin.open_connections() == 1)?;
    }
    Ok(())
}

/// Connections in use make no place before they end: to give up all of them would help nobody.
#[test]
fn of_connections_in_use_one_is_given_up_at_a_time() -> Result<()> {
    let mut bed = bed("given-up-used")?;
    let pods = ["second", "third"].map(|name| bed.add_pod(name)).into_iter().collect::<Result<Vec<_>>>()?;
    let (_release, released) = watch::channel(false);
    let origin = origin(&bed, move |request| match request.target.as_str() {
        "/stays" => Reply::Later(released.clone(), Box::new(echo(request))),
        _ => echo(request),
    })?;
    let (_agent, _config) = agent_with_one_worker(&bed, &pooled("tcp: {maxConnections: 2}"))?;
    let in_pod = |pod: usize, program: &str| bed.pod_command(&pods[pod], program)?.in_cgroup(bed.cgroup());
    let curl = |pod, url: &str, limit: &str| {
        Ok::<_, anyhow::Error>(in_pod(pod, "curl")?.args(["-q", "-sS", "-4", "--max-time", limit, url]))
    };
    let _sandboxes = [in_pod(0, "sleep")?.arg("infinity").spawn()?, in_pod(1, "sleep")?.arg("infinity").spawn()?];
    for pod in 0..2 {
        // Until the agent has noticed the pod, its connects are refused.
        wait_until("a pod to be served", PATIENCE, || {
            curl(pod, URL, "15").and_then(Command::run).is_ok_and(|output| output.code() == 0)
        })?;
    }
    let stays = format!("{URL}/stays");
    origin.take_requests();
    let _staying = [curl(0, &stays, "30")?.spawn()?, curl(1, &stays, "30")?.spawn()?];
    origin.wait_for_requests(2)?;
    // The pod without a connection waits; of the others at most one has lost its own.
    let waits = bed.client_command("curl")?.args(["-q", "-sS", "--max-time", "20", URL]).spawn()?;
    thread::sleep(Duration::from_secs(2));
    let served = [curl(0, URL, "2")?.spawn()?, curl(1, URL, "2")?.spawn()?];
    let served = served.map(|mut curl| curl.wait(PATIENCE).is_ok_and(|status| status.success()));
    ensure!(served.contains(&true), "{served:?}");
    drop(waits);
    Ok(())
}

#[test]
fn a_connection_has_as_many_requests_as_the_settings_say() -> Result<()> {
    for http2 in [false, true] {
        let bed = bed("max-requests")?;
        let origin = if http2 { origin(&bed, echo)? } else { origin_http1(&bed, echo)? };
        let (_agent, _config) = agent_with_one_worker(&bed, &pooled("http: {maxRequestsPerConnection: 2}"))?;
        for _ in 0..5 {
            ensure!(get(&bed, "/", &[])?.0 == 200);
        }
        ensure!(connections(&origin.requests()) == [0, 0, 1, 1, 2], "{:?}", connections(&origin.requests()));
        wait_until("the others to be closed", PATIENCE, || origin.open_connections() == 1)?;
    }
    Ok(())
}
