//! Connections to an upstream: how many there may be, who waits for them, and what each is used for.

use std::thread;

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    origin::{Origin, Reply, Request, ServerTls, script},
    process::Output,
    proxy_status::ProxyStatus,
    wait::{PATIENCE, wait_until},
};
use tokio::sync::watch;

use super::{
    HOST, SECOND, URL, agent_with_one_worker, ask_in, bed, destination, echo, entry, get, in_pod, origin, origin_http1,
    patient, pooled, serve, service,
};

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

/// Others' connections may be in use without end.
#[test]
fn a_pod_without_a_connection_has_one_beyond_the_limit() -> Result<()> {
    for http2 in [false, true] {
        let mut bed = bed("beyond")?;
        let other = bed.add_pod("other")?;
        let (_release, released) = watch::channel(false);
        let handler = move |request: &Request| match request.target.as_str() {
            "/stays" => Reply::Later(released.clone(), Box::new(echo(request))),
            _ => echo(request),
        };
        let origin = if http2 { origin(&bed, handler)? } else { origin_http1(&bed, handler)? };
        let (_agent, _config) = agent_with_one_worker(&bed, &pooled("tcp: {maxConnections: 1}"))?;
        let _sandbox = serve(&bed, &other)?;
        let stays = ["-q", "-sS", "-4", "--max-time", "30", &format!("{URL}/stays")];
        let _staying = bed.client_command("curl")?.args(stays).spawn()?;
        origin.wait_for_requests(2)?;
        for _ in 0..3 {
            ask_in(&bed, &other)?.run()?.success()?;
        }
        // They have one each, and no more than that.
        let mut expected = vec![0, 1, 0, 0, 0];
        if http2 {
            ensure!(get(&bed, "/", &["-4"])?.0 == 200);
            expected.push(1);
        }
        ensure!(connections(&origin.requests()) == expected, "{:?}", connections(&origin.requests()));
    }
    Ok(())
}

#[test]
fn a_connection_that_nobody_uses_is_given_up_for_another_pod() -> Result<()> {
    let mut bed = bed("given-up")?;
    let other = bed.add_pod("other")?;
    let (release, released) = watch::channel(true);
    let origin = origin_http1(&bed, patient(released))?;
    let (_agent, _config) = agent_with_one_worker(&bed, &pooled("tcp: {maxConnections: 2}"))?;
    let _sandbox = serve(&bed, &other)?;
    release.send_replace(false);
    let both = ["-q", "-sS", "-4", "-Z", "--parallel-immediate", "--max-time", "20", &format!("{URL}/[1-2]")];
    let mut pair = in_pod(&bed, &other, "curl")?.args(both).spawn()?;
    origin.wait_for_requests(3)?;
    release.send_replace(true);
    ensure!(pair.wait(PATIENCE)?.success() && origin.open_connections() == 2);
    // Of two of its own, one is beyond the limit.
    release.send_replace(false);
    origin.take_requests();
    check_waiting(&bed, &origin, &release, 2, 2)?;
    wait_until("one to be closed", PATIENCE, || origin.open_connections() == 3)?;
    ensure!(origin.connections() == 4, "{} connections", origin.connections());
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

/// Its connections end, as what it trusted is of no use any more.
#[test]
fn what_is_replaced_goes_though_a_response_of_it_lasts() -> Result<()> {
    let bed = bed("replaced")?;
    let (finish, finished) = watch::channel(false);
    let lasting = move |request: &Request| {
        let mut finished = finished.clone();
        (request.target == "/lasting").then(|| {
            script(|mut wire| async move {
                wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst").await?;
                finished.wait_for(|finished| *finished).await?;
                wire.write(b" last").await?;
                wire.read().await.map(drop)
            })
        })
    };
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.handler(echo).scripts(lasting).start()?;
    let rules = |settings: &str| {
        // What counts the requests under way.
        let policy = format!("loadBalancer: {{simple: LEAST_REQUEST}}\n    {settings}");
        entry(HOST, "resolution: DNS") + &destination(HOST, "", &policy, "")
    };
    let (mut agent, config) = agent_with_one_worker(&bed, &rules(""))?;
    let url = format!("{URL}/lasting");
    let mut client = bed.client_command("curl")?.args(["-q", "-sSN", "-4", "--max-time", "60", &url]).spawn()?;
    client.wait_for_output("first")?;
    ensure!(get(&bed, "/other", &["-4"])?.0 == 200 && origin.open_connections() == 2);
    agent.apply(|| config.write("rules.yaml", &rules("connectionPool: {tcp: {connectTimeout: 9s}}")))?;
    wait_until("the idle connection to end", PATIENCE, || origin.open_connections() == 1)?;
    ensure!(get(&bed, "/next", &["-4"])?.0 == 200 && origin.open_connections() == 2);
    finish.send_replace(true);
    ensure!(client.wait(PATIENCE)?.success() && client.stdout() == "first last", "{}", client.stdout());
    wait_until("its connection to end", PATIENCE, || origin.open_connections() == 1)
}
